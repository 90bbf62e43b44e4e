// The subcommands of the weft program. main.cpp fills the options and calls; each returns the exit code of success or
// throws.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench_run.h"
#include "tools/inspect.h"
#include "tools/trainer.h"

namespace weft {

struct TrainCommand {
  TrainOptions train;
  std::string data, out, resume, device = "auto", prompt = "\n";
  std::string tokenizer = "bytes";  // "unigram", or a model file
  std::int64_t vocabulary = 4000;   // of "unigram"
  bool steps_given = false;         // on the command line: overrides those of a resumed run
  std::int64_t eval_every = 500;    // steps; 0: at the end only
  std::int64_t eval_batches = 100;  // of the validation part; 0: all
  std::int64_t sample = 500;        // tokens; 0: none
  double temperature = 0.7;
  std::int64_t top_k = 0;
  int threads = 0;  // 0: as OMP_NUM_THREADS says
  std::string precision = "auto";   // "fp32", "bf16"; auto: bf16 on a GPU
  bool tf32 = false;                // products of fp32 on tensor cores
};
int cmd_train(const TrainCommand& command);

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
};
int cmd_inspect(const InspectCommand& command);

int cmd_doctor();

struct BenchCommand {
  BenchOptions bench;
  std::string device = "auto";
};
int cmd_bench(const BenchCommand& command);

}  // namespace weft
