// The subcommands of the weft program. main.cpp fills in the options and calls the function, which returns the exit code or
// throws.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/run.h"
#include "tools/data/data.h"
#include "tools/evaluate/benchmarks.h"
#include "tools/evaluate/generate.h"
#include "tools/evaluate/scan_order.h"
#include "tools/inspect/inspect.h"
#include "tools/train/train_options.h"

namespace weft {

struct TrainCommand {
  std::vector<OptionSetting> given;  // options on the command line
  std::vector<std::string> set;      // KEY=VALUE
  std::string config, out, resume;
  std::int64_t gpus = 0;           // > 0: as many processes, each with a GPU
  std::vector<std::string> words;  // the whole command line
};
int cmd_train(const TrainCommand& command);

struct AdapterCommand {
  std::string from;                   // a model, with an adapter in it unless there are `adapters`; of info an adapter, too
  std::vector<std::string> adapters;  // folders
  std::string out;
};
int cmd_adapter_info(const AdapterCommand& command);
int cmd_adapter_merge(const AdapterCommand& command);
int cmd_adapter_extract(const AdapterCommand& command);

struct PlotCommand {
  std::vector<std::string> runs;
  std::string out;  // name of the picture, without .png
};
int cmd_plot(const PlotCommand& command);

struct AblateCommand {
  bool quick = false, report_only = false;
  std::string data, out = "ablate-hymba", device = "auto";
  std::vector<std::string> models, set;  // names; KEY=VALUE
  std::int64_t seeds = 0;                // 0: 1, or as many as the study has
};
int cmd_ablate(const AblateCommand& command);

struct ModelCommand {
  std::string from, device = "auto", precision = "auto";
  int threads = 0;                    // 0: as OMP_NUM_THREADS says
  std::vector<std::string> adapters;  // folders
};
TextModel open_model(const ModelCommand& command);  // on that device

struct GenerateCommand {
  ModelCommand model;
  std::vector<std::string> prompts;  // "-": standard input; none, of the file neither: a new line
  std::string prompt_file;           // has one a line
  std::int64_t batch = 8;            // texts at once
  GenerateOptions options{.tokens = 200, .temperature = 0.8, .top_k = 40};
};
int cmd_generate(const GenerateCommand& command);

struct EvalCommand {
  ModelCommand model;
  std::string data, part = "all";                 // "training", "validation"
  BatchOptions options{.batch = 8, .length = 0};  // length 0: 1024, or the model's context if that is less
  std::int64_t stride = 0;                        // of windows; 0: the length
  std::vector<std::string> tasks;                 // instead of a text; "all"
  BenchmarkOptions benchmark;                     // but for length, stride and batch
  std::string json;                               // file for the scores
};
int cmd_eval(const EvalCommand& command);

struct ScanOrderCommand {
  ModelCommand model;
  std::string data, out, states, costs, order, mode = "channels";
  std::int64_t texts = 10, tokens = 256;  // tokens: of each text
  std::int64_t items = 512;               // tokens that are ordered
  std::vector<std::string> prompts;       // none: those of the report
  ScanReportOptions report;
};
int cmd_scan_order_extract(const ScanOrderCommand& command);
int cmd_scan_order_compute(const ScanOrderCommand& command);
int cmd_scan_order_apply(const ScanOrderCommand& command);
int cmd_scan_order_remove(const ScanOrderCommand& command);
int cmd_scan_order_report(const ScanOrderCommand& command);
int cmd_scan_order_run(const ScanOrderCommand& command);

struct DataCommand {
  std::string data, out, folder;
  TokenizerChoice tokenizer;
  std::int64_t shard_tokens = 100'000'000;
};
int cmd_data_make(const DataCommand& command);
int cmd_data_check(const DataCommand& command);

struct CheckCommand {
  std::string folder;  // a run, a checkpoint, or shards
};
int cmd_check(const CheckCommand& command);

struct VerifyCommand {
  std::string folder, device = "auto", dtype = "f32";
};
int cmd_verify(const VerifyCommand& command);

struct InspectCommand {
  std::string model;  // a config.json, or a folder with one
  InspectOptions options;
  std::string precision = "auto";  // "fp32", "bf16"; auto: as the run, else bf16
  std::string kernel, diff, html, json, trace;
  bool source = false, ptx = false, sass = false, why = false, repro = false;  // of `kernel`
  bool profile = false;                                                        // the list by kind
};
int cmd_inspect(const InspectCommand& command);

int cmd_doctor();

// The command line, as completion scripts need it.
struct CompletionWord {
  enum Takes { nothing, value, file, folder };
  std::string name, help;  // "--device"; of an argument without a name of its own: "folder"
  Takes takes = nothing;
  std::vector<std::string> words;  // the values it takes, if they are known
  bool many = false;               // takes several values
};
struct CompletionCommand {
  std::string name, help;
  std::vector<CompletionWord> words;
  std::vector<CompletionCommand> commands;
};
int cmd_completion(const std::string& shell, const CompletionCommand& program);  // "bash" or "zsh"

struct BenchCommand {
  BenchOptions bench;
  std::int64_t gpus = 0;           // > 0: as many processes, each with a GPU
  std::vector<std::string> words;  // the whole command line
  std::string device = "auto";
};
int cmd_bench(const BenchCommand& command);

}  // namespace weft
