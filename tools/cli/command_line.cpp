#include "tools/cli/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "jit/error.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"
#include "jit/sizes.h"
#include "tools/cli/commands.h"
#include "tools/cli/stop_signal.h"
#include "tools/version.h"

namespace weft {
namespace {

CLI::App* subcommand(CLI::App& app, const std::string& name, const std::string& description, std::function<int()> call,
                     std::function<int()>& chosen) {
  CLI::App* sub = app.add_subcommand(name, description);
  sub->option_defaults()->always_capture_default();
  sub->allow_extras();  // reported by check_extras, with a suggestion
  if (call) sub->callback([&chosen, call = std::move(call)] { chosen = call; });
  return sub;
}

// Checks of an option's value. What may be said about an option's values stands in its help.

// Takes every word: of an option that is checked elsewhere. The name of the check is the words: there completion finds them.
CLI::Validator some_of(const std::vector<std::string>& words) {
  return CLI::Validator([](const std::string&) { return std::string(); }, "", fmt::format("{}", fmt::join(words, " ")));
}

CLI::Validator one_of(const std::vector<std::string>& words) {
  return some_of(words).operation([words](const std::string& word) {
    if (std::ranges::find(words, word) != words.end()) return std::string();
    return fmt::format("unknown word '{}'{} ({})", word, suggestion(word, words), fmt::join(words, ", "));
  });
}

CLI::Validator between(double least, double most) {
  const auto check = [least, most](const std::string& text) {
    double number = 0;
    std::int64_t integer = 0;  // the parser takes the largest there is for a larger one
    if (!CLI::detail::lexical_cast(text, number)) return fmt::format("'{}' is no number", text);
    if (std::from_chars(text.data(), text.data() + text.size(), integer).ec == std::errc::result_out_of_range)
      return fmt::format("{} is beyond 64 bits", text);
    if (!std::isfinite(number)) return fmt::format("'{}' is no finite number", text);
    if (number > most) return fmt::format("{} is above {:.0f}", text, most);
    return number >= least ? std::string() : fmt::format("{} is below {}", text, least);
  };
  return CLI::Validator(check, "");
}

CLI::Validator at_least(double least) { return between(least, std::numeric_limits<double>::max()); }

CLI::Validator share() {
  const auto check = [](const std::string& text) {
    double number = 0;
    const bool fits = CLI::detail::lexical_cast(text, number) && number > 0 && number <= 1;
    return fits ? std::string() : fmt::format("{} is not above 0 and at most 1", text);
  };
  return CLI::Validator(check, "");
}

// Of what is counted: every sum and product of some fits 63 bits.
constexpr double kMostGpus = 1024, kMostSeeds = 1000, kMostWindows = 0x1p30, kMostTokens = 0x1p40;

CLI::Validator architecture() {
  const auto check = [](const std::string& text) {
    int number = 0;
    const bool known = std::sscanf(text.c_str(), "sm_%d", &number) == 1 && number >= 80;
    return known ? std::string() : fmt::format("'{}' is no architecture of 8.0 or later", text);
  };
  return CLI::Validator(check, "");
}

// The types of options that name files and folders, in help and for completion.
constexpr const char *kFile = "FILE", *kFolder = "FOLDER";

void add_device(CLI::App* sub, std::string& device) {
  sub->add_option(
         "--device", device,
         "Where to compute: auto (cuda if there is a GPU), cpu, cuda, or emu (the CUDA kernels on an interpreter, slow)")
      ->check(one_of({"auto", "cpu", "cuda", "emu"}));
}

// --weight-decay for the option weight_decay. What is given is kept as text, in order: set_option reads it, as it does
// --config.
CLI::Option* add_train_option(CLI::App* sub, TrainCommand& c, const OptionInfo& info, bool on) {
  const auto give = [&c, name = info.name](std::int64_t given) { c.given.emplace_back(name, given > 0 ? "true" : "false"); };
  const std::string state = on ? fmt::format("on; {}=false: off", flag_of(info.name)) : "off";
  return sub->add_flag_function(flag_of(info.name), give, fmt::format("{} (={})", info.help, state));
}
const char* type_of(const std::string& name, const std::string&) {
  return name == "data" || name == "tokenizer" ? kFile : name == "from" ? kFolder : "TEXT";
}
const char* type_of(const std::string&, double) { return "FLOAT"; }
template <class T>
const char* type_of(const std::string&, T) {
  return "INT";
}
template <class T>
CLI::Option* add_train_option(CLI::App* sub, TrainCommand& c, const OptionInfo& info, const T& fallback) {
  const auto give = [&c, name = info.name](const std::string& value) { c.given.emplace_back(name, value); };
  const std::string text = fmt::format("{}", fallback);
  CLI::Option* option = sub->add_option_function<std::string>(flag_of(info.name), give, info.help);
  option->type_name(type_of(info.name, fallback))->default_str(text.empty() ? "none" : text == "\n" ? "a new line" : text);
  return option->check(some_of(info.words));  // set_option checks it
}

// The family whose options `weft train --help` shows: that of --model, or the default.
std::string model_in(const std::vector<std::string>& words) {
  std::string name = model_families().front().name;
  if (words.size() < 2 || words[1] != "train") return name;
  for (std::size_t i = 2; i < words.size(); ++i) {
    if (words[i] == "--model" && i + 1 < words.size() && !words[i + 1].starts_with('-')) name = words[i + 1];
    if (words[i].starts_with("--model=")) name = words[i].substr(8);
  }
  return name;
}

void add_train(CLI::App& app, TrainCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "train", "Train a language model on a text", [&] { return cmd_train(c); }, chosen);
  sub->add_option("--out", c.out, "Folder of the run: checkpoints, metrics, curve; without one nothing is saved")
      ->type_name(kFolder)
      ->default_str("none");
  sub->add_option("--resume", c.resume, "Folder of a run or checkpoint: go on exactly where it ended, with its options")
      ->type_name(kFolder)
      ->default_str("none");
  sub->add_option("--config", c.config, "JSON file with options, as the config.json of a run")
      ->type_name(kFile)
      ->default_str("none");
  sub->add_option("--gpus", c.gpus, "GPUs of this machine to train on, each with a part of every batch; 0: one, or the CPU")
      ->check(between(0, kMostGpus));
  sub->add_option("--set", c.set, "An option as KEY=VALUE; may be repeated")->default_str("none");
  const TrainOptions defaults = options_from({{"model", model_in(c.words)}});
  each_option(defaults, [&](const OptionInfo& info, const auto& value) { add_train_option(sub, c, info, value); });
  // Those of the other families are known too, since --config or --set may name the model, but not shown.
  for (const ModelFamily& family : model_families()) {
    check_family(family);
    for (const ModelOption& option : family.options)
      if (!sub->get_option_no_throw(flag_of(option.name)))
        std::visit(
            [&](const auto& value) {
              add_train_option(sub, c, {option.name, option.help}, value)->group("");
            },
            option.fallback);
  }
}

void add_plot(CLI::App& app, PlotCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "plot", "Draw the loss curves of runs as PNG and SVG", [&] { return cmd_plot(c); }, chosen);
  sub->add_option("runs", c.runs, "Folders that `weft train --out` wrote")->type_name(kFolder)->required();
  sub->add_option("--out", c.out, "Name of the picture without its ending; auto: RUN/loss, or loss for several runs")
      ->type_name(kFile)
      ->default_str("auto");
}

void add_ablate(CLI::App& app, AblateCommand& c, std::function<int()>& chosen) {
  CLI::App* study = subcommand(app, "ablate", "Train the models of a study and compare them", nullptr, chosen);
  CLI::App* sub = subcommand(
      *study, "hymba", "Mamba, attention and hybrids of both: pretraining, then ORPO; tables, pictures, a report",
      [&] { return cmd_ablate(c); }, chosen);
  sub->add_option("--out", c.out, "Folder of the study; one that has begun is gone on with, as it was begun")
      ->type_name(kFolder);
  sub->add_option("--data", c.data, "Text, or .jsonl file of documents; without one, the King James Bible")
      ->type_name(kFile)
      ->default_str("none");
  sub->add_flag("--quick", c.quick, "Small models and few steps: minutes on two cores (=off)");
  sub->add_option("--seeds", c.seeds, "Train every model so many times, with seeds 1, 2, ...; auto: 1, or as begun")
      ->check(between(1, kMostSeeds))
      ->default_str("auto");
  sub->add_option("--models", c.models, "Only these models, separated by commas")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("all");
  sub->add_option("--set", c.set, "An option of weft train as KEY=VALUE, for every run; may be repeated")->default_str("none");
  sub->add_flag("--report-only", c.report_only,
                "Train nothing: tables, pictures and report of what there is, which needs no checkpoints (=off)");
  add_device(sub, c.device);
}

void add_adapters(CLI::App* sub, std::vector<std::string>& adapters) {
  sub->add_option("--adapter", adapters,
                  "Folder of an adapter of the model, or run that trains one; may be given several times")
      ->allow_extra_args(false)
      ->type_name(kFolder)
      ->default_str("none");
}

void add_model(CLI::App* sub, ModelCommand& c) {
  sub->add_option("--from", c.from, "A run, a checkpoint of it, or a folder as Hugging Face has it")
      ->type_name(kFolder)
      ->required();
  add_device(sub, c.device);
  sub->add_option("--precision", c.precision, "Activations: fp32, bf16, or auto (bf16 on a GPU)")
      ->check(one_of({"auto", "fp32", "bf16"}));
  sub->add_option("--threads", c.threads, "Threads; 0: as many as OMP_NUM_THREADS or the machine says")
      ->check(between(0, kMostThreads));
  add_adapters(sub, c.adapters);
}

void add_generate(CLI::App& app, GenerateCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "generate", "Continue a text", [&] { return cmd_generate(c); }, chosen);
  GenerateOptions& o = c.options;
  sub->add_option("--prompt", c.prompts, "The text to continue; - for standard input; may be given several times")
      ->allow_extra_args(false)
      ->default_str("newline");
  sub->add_option("--prompt-file", c.prompt_file, "A file with a text to continue in each line, or .jsonl file of documents")
      ->type_name(kFile)
      ->default_str("none");
  sub->add_option("--batch", c.batch, "Texts to continue at a time")->check(between(1, kMostWindows));
  sub->add_option("--tokens", o.tokens, "Tokens to append, unless the model ends the text before")
      ->check(between(0, kMostTokens));
  sub->add_option("--temperature", o.temperature, "Temperature; 0: always the most probable token")->check(at_least(0));
  sub->add_option("--top-k", o.top_k, "Sample among the k most probable tokens; 0: all")->check(at_least(0));
  sub->add_option("--top-p", o.top_p, "Sample among the most probable tokens that make up this share; 1: all")->check(share());
  sub->add_option("--seed", o.seed, "Seed of the sampling: equal seeds give equal texts")->check(at_least(0));
  add_model(sub, c.model);
}

void add_eval(CLI::App& app, EvalCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "eval", "Say how well a model predicts a text, or does in tasks: perplexity, ROUGE, F1, pass@k",
      [&] { return cmd_eval(c); }, chosen);
  sub->add_option("--data", c.data,
                  "Text, .jsonl file of documents, or folder of shards; of tasks: their file, or a folder with such files")
      ->type_name(kFile)
      ->default_str("none");
  std::vector<std::string> tasks = benchmark_names();
  tasks.insert(tasks.begin(), "all");
  BenchmarkOptions& o = c.benchmark;
  sub->add_option("--task", c.tasks,
                  "all, wikitext, cnn_dm, hotpotqa or humaneval, several with commas; without --data a few bundled examples")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(one_of(tasks))
      ->default_str("none");
  sub->add_option("--examples", o.examples, "Of a task: the first ones (of a text: batches); 0: all")
      ->check(between(0, kMostWindows));
  sub->add_option("--tokens", o.tokens, "Of a task: tokens to make for each example; auto: 64, 16, 160 by task")
      ->check(between(1, kMostWindows))
      ->default_str("auto");
  sub->add_option("--samples", o.samples, "Programs for each problem")->check(between(1, kMostWindows));
  sub->add_option("--k", o.k, "k of pass@k, several with commas")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(between(1, kMostWindows));
  sub->add_option("--temperature", o.temperature, "Of programs; 0: always the most probable token")->check(at_least(0));
  sub->add_option("--seed", o.seed, "Seed of programs that are sampled")->check(at_least(0));
  sub->add_option("--seconds", o.sandbox.seconds, "After which a program is killed")->check(between(0.1, 3600));
  sub->add_flag("--unsafe", o.sandbox.without_isolation,
                "Run programs where they cannot be isolated: they may then write files and use the network (=off)");
  sub->add_option("--json", c.json, "File for the scores")->type_name(kFile)->default_str("none");
  sub->add_option("--part", c.part, "all, training (the first 9/10), or validation (the rest)")
      ->check(one_of({"all", "training", "validation"}));
  sub->add_option("--length", c.options.length,
                  "Tokens a window, which knows nothing of the one before; auto: 1024, or the model's context if that is less")
      ->check(between(1, kMostWindows))
      ->default_str("auto");
  sub->add_option("--stride", c.stride,
                  "Tokens from window to window; less than --length: the rest of each is only read; auto: the length")
      ->check(between(1, kMostWindows))
      ->default_str("auto");
  sub->add_option("--batch", c.options.batch, "Windows at a time")->check(between(1, kMostWindows));
  add_model(sub, c.model);
}

void add_adapter(CLI::App& app, AdapterCommand& c, std::function<int()>& chosen) {
  CLI::App* sub =
      subcommand(app, "adapter", "Show adapters, merge them into their model, or take one out of a run", nullptr, chosen);
  CLI::App* info = subcommand(
      *sub, "info", "Say which layers have adapters, and how many parameters these are", [&] { return cmd_adapter_info(c); },
      chosen);
  info->add_option("folder", c.from, "A run, a checkpoint or a folder with an adapter, or that of an adapter")
      ->type_name(kFolder)
      ->required();
  CLI::App* merge = subcommand(
      *sub, "merge", "Write the model whose weights are those with its adapters", [&] { return cmd_adapter_merge(c); }, chosen);
  CLI::App* extract = subcommand(
      *sub, "extract", "Write the adapter of a run by itself, as PEFT has it", [&] { return cmd_adapter_extract(c); }, chosen);
  for (CLI::App* one : {merge, extract}) {
    one->add_option("--from", c.from, "A run, a checkpoint of it, or a folder as Hugging Face has it")
        ->type_name(kFolder)
        ->required();
    one->add_option("--out", c.out, "Folder to write; new or empty")->type_name(kFolder)->required();
  }
  add_adapters(merge, c.adapters);
}

void add_scan_order(CLI::App& app, ScanOrderCommand& c, std::function<int()>& chosen) {
  CLI::App* sub =
      subcommand(app, "scan-order", "Order a Mamba's channels, or tokens, so that neighbours are correlated", nullptr, chosen);
  const auto below = [&](const char* name, const char* help, int (*call)(const ScanOrderCommand&)) {
    return subcommand(
        *sub, name, help, [&c, call] { return call(c); }, chosen);
  };
  CLI::App* extract =
      below("extract", "Save what the last mixer is given for each token of some texts", cmd_scan_order_extract);
  CLI::App* compute =
      below("compute", "Find an order from hidden states: nearest neighbours, then 2-opt and Or-opt", cmd_scan_order_compute);
  CLI::App* apply = below("apply", "Write the model with an order, its weights permuted with it", cmd_scan_order_apply);
  CLI::App* remove = below("remove", "Write the model as it was before its order", cmd_scan_order_remove);
  CLI::App* report = below("report", "Measure a model before and after an order", cmd_scan_order_report);
  CLI::App* run = below("run", "Extract, compute and report, all files in one folder", cmd_scan_order_run);
  for (CLI::App* one : {extract, apply, remove, report, run}) add_model(one, c.model);
  for (CLI::App* one : {extract, report, run})
    one->add_option("--data", c.data, "Text, or .jsonl file of documents")->type_name(kFile)->required();
  for (CLI::App* one : {extract, run}) {
    one->add_option("--texts", c.texts, "Lines or documents of at least 10 characters to read")
        ->check(between(1, kMostWindows));
    one->add_option("--text-tokens", c.tokens, "Tokens of each, at most")->check(between(1, kMostWindows));
  }
  compute->add_option("--states", c.states, "Hidden states, as extract saves them")->type_name(kFile)->default_str("none");
  compute->add_option("--costs", c.costs, "Instead: the cost of each step, an .npy file (n, n); it need not be symmetric")
      ->type_name(kFile)
      ->default_str("none");
  for (CLI::App* one : {compute, run})
    one->add_option("--items", c.items, "Tokens to order, evenly from all")->check(between(1, kMostWindows));
  for (CLI::App* one : {apply, report})
    one->add_option("--order", c.order, "scan_order.npy, as compute saves it")->type_name(kFile)->required();
  for (CLI::App* one : {compute, apply, report, run})
    one->add_option("--mode", c.mode,
                    "channels (the weights go with them: the same function), channels-keep (they stay: another one), or tokens "
                    "(not causal)")
        ->check(one_of(scan_mode_names()));
  for (CLI::App* one : {report, run}) {
    ScanReportOptions& o = c.report;
    one->add_option("--prompt", c.prompts, "A text to continue; may be given several times")
        ->allow_extra_args(false)
        ->default_str("three of them");
    one->add_option("--tokens", o.tokens, "Tokens to append to each")->check(between(0, kMostWindows));
    one->add_option("--runs", o.runs, "Runs of which the median time is taken")->check(between(1, kMostWindows));
    one->add_option("--batches", o.batches, "Batches of 4 x 256 tokens of the text to measure; 0: all")
        ->check(between(0, kMostWindows));
  }
  extract->add_option("--out", c.out, "File to write, .npy")->type_name(kFile)->required();
  for (CLI::App* one : {compute, apply, remove, report, run})
    one->add_option("--out", c.out, "Folder to write; new or empty")->type_name(kFolder)->required();
}

void add_data(CLI::App& app, DataCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(app, "data", "Make a folder of token shards to train on, or check one", nullptr, chosen);
  CLI::App* make = subcommand(
      *sub, "make", "Turn a text into shards of tokens", [&] { return cmd_data_make(c); }, chosen);
  make->add_option("--data", c.data, "Text, or .jsonl file of documents; without one, the King James Bible")
      ->type_name(kFile)
      ->default_str("none");
  make->add_option("--tokenizer", c.tokenizer.name,
                   "bytes, unigram (made from the text, with --vocab pieces), or a SentencePiece model")
      ->type_name(kFile);
  make->add_option("--vocab", c.tokenizer.vocabulary, "Pieces of a unigram tokenizer")->check(between(1, kMostWindows));
  make->add_option("--out", c.out, "Folder for the shards; new or empty")->type_name(kFolder)->required();
  make->add_option("--shard-tokens", c.shard_tokens, "Tokens a shard, at most")->check(between(1, kMostTokens));
  CLI::App* check = subcommand(
      *sub, "check", "Read all shards of a folder and compare them with their checksums", [&] { return cmd_data_check(c); },
      chosen);
  check->add_option("folder", c.folder, "Folder that `weft data make` wrote")->type_name(kFolder)->required();
}

void add_check(CLI::App& app, CheckCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "check", "Say whether the files of a run, checkpoint or folder of shards are those that were written",
      [&] { return cmd_check(c); }, chosen);
  sub->add_option("folder", c.folder, "Folder that `weft train --out` or `weft data make` wrote")
      ->type_name(kFolder)
      ->required();
}

void add_others(CLI::App& app, VerifyCommand& verify, std::function<int()>& chosen) {
  CLI::App* v = subcommand(
      app, "verify", "Compare a model with the reference values in its folder", [&] { return cmd_verify(verify); }, chosen);
  v->add_option("folder", verify.folder, "Folder with config.json, model.safetensors and reference.safetensors")
      ->type_name(kFolder)
      ->required();
  v->add_option("--dtype", verify.dtype, "Precision: f32, f64, or bf16 for the activations")
      ->check(one_of({"f32", "f64", "bf16"}));
  add_device(v, verify.device);
  subcommand(app, "doctor", "Say what this machine has and what weft uses of it", cmd_doctor, chosen);
}

void add_bench(CLI::App& app, BenchCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "bench",
      "Measure kernels against what the device could do, whole models, the interpreter, and the host's cost of a step",
      [&] { return cmd_bench(c); }, chosen);
  BenchOptions& o = c.bench;
  std::vector<std::string> groups = all_bench_groups();
  const std::string listed = fmt::format("{}", fmt::join(groups, ", "));
  groups.insert(groups.end(), {"all", "collectives"});
  sub->add_option("groups", o.groups, listed + ", or all; without one, those of the device; or collectives, which need ranks")
      ->default_str("")
      ->check(one_of(groups));
  sub->add_option("--only", o.groups, "The same words, separated by commas")
      ->delimiter(',')
      ->default_str("auto")
      ->check(one_of(groups));
  sub->add_option("--json", o.json, "File for the figures; an existing one is merged into")
      ->type_name(kFile)
      ->default_str("none");
  sub->add_option("--against", o.against, "JSON files of other implementations' figures, to print beside weft's")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name(kFile)
      ->default_str("none");
  sub->add_option("--budget-ms", o.budget_ms, "Time for timing one row")->check(at_least(0));
  sub->add_option("--step-seconds", o.step_seconds, "Time for timing one training step of a whole model")->check(at_least(0));
  sub->add_option("--row-timeout", o.row_timeout, "Seconds after which a row is given up")->check(at_least(0));
  sub->add_option("--deadline", o.deadline, "Seconds after which no row is started")->check(at_least(0))->default_str("none");
  sub->add_flag("--quick", o.quick, "Fewer repeats: a fifth of these times (=off)");
  sub->add_flag("--smoke", o.smoke, "Tiny shapes, to try the command itself (=off)");
  sub->add_flag("--list", o.list, "Print the rows and measure nothing (=off)");
  sub->add_option("--gpus", c.gpus, "GPUs of this machine between which collectives are measured")
      ->check(between(0, kMostGpus));
  add_device(sub, c.device);
}

void add_inspect(CLI::App& app, InspectCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "inspect", "Show the GPU kernels of a training step, which needs no GPU, and with one their times",
      [&] { return cmd_inspect(c); }, chosen);
  sub->add_option("model", c.model, "A run's folder, or one with a config.json, or such a file")->type_name(kFile)->required();
  sub->add_option("--arch", c.options.target,
                  "What to compile for: sm_80, sm_90a, sm_100, sm_120, ...; auto: as --device, or sm_90a")
      ->check(architecture())
      ->default_str("auto");
  sub->add_option("--batch", c.options.batch, "Sequences a step; auto: as the run, or 8")
      ->check(between(1, kMostWindows))
      ->default_str("auto");
  sub->add_option("--length", c.options.length, "Tokens a sequence; auto: as the run, or 256")
      ->check(between(1, kMostWindows))
      ->default_str("auto");
  sub->add_option("--precision", c.precision, "Activations: fp32, bf16, or auto (the run's, or bf16)")
      ->check(one_of({"auto", "fp32", "bf16"}));
  sub->add_option("--device", c.options.device,
                  "Time the kernels: none, cuda, or emu (an interpreter: the times are the host's)")
      ->check(one_of({"none", "cuda", "emu"}));
  sub->add_flag("--profile", c.profile, "Group the list by kind of kernel, beside the least time that each could take (=off)");
  sub->add_option("--kernel", c.kernel, "Show this kernel (its name, or how it begins) instead of the list")
      ->default_str("none");
  sub->add_flag("--why", c.why, "... who recorded it, and why it is as it is (=off)");
  sub->add_flag("--source", c.source, "... its source (=off)");
  sub->add_flag("--ptx", c.ptx, "... its PTX (=off)");
  sub->add_flag("--sass", c.sass,
                "... its machine code: counts, the hottest loop, and the listing if there is a disassembler (=off)");
  sub->add_flag("--repro", c.repro, "... as a program for nvcc (=off)");
  sub->add_option("--diff", c.diff, "... how its source differs from this kernel's")->default_str("none");
  sub->add_option("--html", c.html, "Write everything to one HTML file")->type_name(kFile)->default_str("none");
  sub->add_option("--json", c.json, "Write the list as JSON")->type_name(kFile)->default_str("none");
  sub->add_option("--trace", c.trace, "Write a step's launches with their times for Chrome or Perfetto; needs --device")
      ->type_name(kFile)
      ->default_str("none");
}

// ---- completion -------------------------------------------------------------------------------------------------------------

std::vector<std::string> known_values(CLI::Option& option) {
  try {
    return CLI::detail::split(option.get_validator(0)->get_name(), ' ');
  } catch (const CLI::OptionNotFound&) {
    return {};
  }
}

CompletionWord describe(CLI::Option& option) {
  const std::string type = option.get_type_name();
  CompletionWord word{.name = option.get_positional() ? option.get_name(true, false) : "--" + option.get_lnames().at(0),
                      .help = option.get_description(),
                      .takes = option.get_items_expected_max() == 0 ? CompletionWord::nothing
                               : type == kFile                      ? CompletionWord::file
                               : type == kFolder                    ? CompletionWord::folder
                                                                    : CompletionWord::value,
                      .words = known_values(option),
                      .many = option.get_items_expected_max() > 1};
  std::erase(word.words, "");
  return word;
}

CompletionCommand describe(CLI::App& app) {
  CompletionCommand command{app.get_name(), app.get_description(), {}, {}};
  for (CLI::Option* option : app.get_options()) command.words.push_back(describe(*option));
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) command.commands.push_back(describe(*sub));
  return command;
}

void add_completion(CLI::App& app, std::string& shell, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "completion", "Print a script that completes weft's command line in a shell",
      [&] { return cmd_completion(shell, describe(app)); }, chosen);
  sub->add_option("shell", shell, "bash or zsh")->required()->check(one_of({"bash", "zsh"}));
}

// ---- mistakes ---------------------------------------------------------------------------------------------------------------

// A file, folder or kernel whose name is empty, as of a shell's variable that is not set, is not "none was given".
void forbid_empty(CLI::App& app) {
  const CLI::Validator check([](std::string& text) { return text.empty() ? std::string("the value is empty") : std::string(); },
                             "");
  const auto named = [](const CLI::Option* option) {
    return option->check_lname("task") || option->check_lname("adapter") || option->check_lname("kernel") ||
           option->check_lname("diff");
  };
  for (CLI::Option* option : app.get_options())
    if (const std::string type = option->get_type_name(); type == kFile || type == kFolder || named(option))
      option->check(check);
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) forbid_empty(*sub);
}

// Words that nothing takes are usage errors that name what is meant. `app` is called `name`.
void check_extras(const CLI::App& app, const std::string& name) {
  std::vector<std::string> names, options;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) names.push_back(sub->get_name());
  for (const CLI::Option* option : app.get_options())
    for (const std::string& word : option->get_lnames()) options.push_back("--" + word);
  const auto chosen = app.get_subcommands();
  const std::string who = app.get_parent() ? name.substr(name.find(' ') + 1) + ": " : "", help = name + " --help";
  for (const std::string& full : app.remaining()) {
    const std::string word = full.substr(0, full.find('='));
    if (word.starts_with('-'))
      fail(ErrorKind::usage, fmt::format("{}unknown option '{}'{}", who, word, suggestion(word, options)), {}, help);
    if (!names.empty() && chosen.empty())
      fail(ErrorKind::usage, fmt::format("{}unknown subcommand '{}'{}", who, word, suggestion(word, names)), {}, help);
    fail(ErrorKind::usage, fmt::format("{}unexpected word '{}'", who, word), {}, help);
  }
  if (!names.empty() && chosen.empty())
    fail(ErrorKind::usage, fmt::format("{}a subcommand is needed", who), fmt::format("{}", fmt::join(names, ", ")), help);
  for (const CLI::App* sub : chosen) check_extras(*sub, name + " " + sub->get_name());
}

// What the parser says, of the subcommand at fault.
[[noreturn]] void fail_parse(const CLI::App& app, const CLI::ParseError& error) {
  std::string name;
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands()[0];
    name += (name.empty() ? "" : " ") + at->get_name();
  }
  const std::string space = name.empty() ? "" : " ";
  fail(ErrorKind::usage, name + (name.empty() ? "" : ": ") + error.what(), {}, fmt::format("weft{}{} --help", space, name));
}

int run_words(int argc, char** argv) {
  CLI::App app("weft trains language models with generated kernels", "weft");
  app.set_version_flag("--version", std::string("weft ") + kVersion);
  app.allow_extras();
  TrainCommand train;
  PlotCommand plot;
  AblateCommand ablate;
  GenerateCommand generate;
  EvalCommand eval;
  ScanOrderCommand scan_order;
  DataCommand data;
  CheckCommand check;
  VerifyCommand verify;
  BenchCommand bench;
  InspectCommand inspect;
  AdapterCommand adapter;
  std::string shell;
  std::function<int()> chosen;
  train.words.assign(argv, argv + argc);
  bench.words = train.words;
  add_train(app, train, chosen);
  add_plot(app, plot, chosen);
  add_ablate(app, ablate, chosen);
  add_generate(app, generate, chosen);
  add_eval(app, eval, chosen);
  add_scan_order(app, scan_order, chosen);
  add_data(app, data, chosen);
  add_check(app, check, chosen);
  add_others(app, verify, chosen);
  add_bench(app, bench, chosen);
  add_inspect(app, inspect, chosen);
  add_adapter(app, adapter, chosen);
  add_completion(app, shell, chosen);
  forbid_empty(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);  // help, version
  } catch (const CLI::RequiredError& e) {
    check_extras(app, "weft");  // a misspelt option may be why something is missing
    fail_parse(app, e);
  } catch (const CLI::ParseError& e) {
    fail_parse(app, e);
  }
  check_extras(app, "weft");
  return chosen();
}

}  // namespace

namespace {

ErrorKind kind_of(int code) {
  for (const ErrorKind kind : {ErrorKind::usage, ErrorKind::device, ErrorKind::io})
    if (exit_code(kind) == code) return kind;
  return ErrorKind::training;
}

// Of several ranks the first that fails says so, and all end. One that does not know its place has no other to speak for it.
bool speaks(ErrorKind kind, const ErrorParts& parts) {
  if (Ranks* ranks = Ranks::joined()) return ranks->fail(kind, parts);
  try {
    rank_place();
  } catch (const Error&) {
    return true;
  }
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");  // all have been given the same words
  if (!rank) rank = std::getenv("RANK");
  return !rank || std::string_view(rank) == "0";
}

}  // namespace

int run_program(int argc, char** argv) {
  prepare_process();
  std::string text;
  int code = 1;
  std::optional<ErrorParts> parts;
  try {
    const int result = run_words(argc, argv);
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return result;
    text = "the output cannot be written", code = exit_code(ErrorKind::io);
  } catch (const Error& e) {
    text = e.what(), code = exit_code(e.kind()), parts = e.parts();
  } catch (const std::filesystem::filesystem_error& e) {
    text = fmt::format("cannot use {}: {}", e.path1().string(), e.code().message()), code = exit_code(ErrorKind::io);
  } catch (const std::system_error& e) {  // of writing what is printed
    text = e.what(), code = exit_code(ErrorKind::io);
  } catch (const std::bad_alloc&) {
    text = "out of memory\n  hint: a smaller --batch, --length or --width needs less", code = exit_code(ErrorKind::device);
  } catch (const std::length_error&) {
    text = "a size is beyond any memory\n  hint: smaller numbers", code = exit_code(ErrorKind::usage);
  } catch (const std::exception& e) {
    text = e.what();
  }
  std::fflush(stdout);
  if (!parts) parts = ErrorParts{text, {}, {}, {}};
  if (speaks(kind_of(code), *parts)) mute(false), print_error("weft: {}\n", text);
  return code;
}

}  // namespace weft
