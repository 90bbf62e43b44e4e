// The weft program: reads the command line and calls a subcommand. Exit codes: 0 ok, 1 training (or verification)
// failed, 2 usage, 3 device, 4 input or output, 130 and 143 stopped by SIGINT and SIGTERM.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "jit/error.h"
#include "tools/commands.h"
#include "tools/version.h"

namespace {

using namespace weft;


CLI::App* subcommand(CLI::App& app, const std::string& name, const std::string& description, std::function<int()> call,
                     std::function<int()>& chosen) {
  CLI::App* sub = app.add_subcommand(name, description);
  sub->option_defaults()->always_capture_default();
  sub->allow_extras();  // reported by check_extras, with a suggestion
  if (call) sub->callback([&chosen, call = std::move(call)] { chosen = call; });
  return sub;
}

void add_device(CLI::App* sub, std::string& device) {
  sub->add_option("--device", device, "Where to compute: auto (cuda if there is a GPU), cpu, cuda, or emu (the CUDA kernels on an interpreter, slow)");
}

// --weight-decay for the option weight_decay. What is given is kept as text, in order: set_option reads it, as it does --config.
void add_train_option(CLI::App* sub, TrainCommand& c, const OptionInfo& info, bool) {
  const auto give = [&c, name = info.name](std::int64_t on) { c.given.emplace_back(name, on > 0 ? "true" : "false"); };
  sub->add_flag_function(flag_of(info.name), give, fmt::format("{} (=off)", info.help));
}
const char* type_of(const std::string&) { return "TEXT"; }
const char* type_of(double) { return "FLOAT"; }
template <class T>
const char* type_of(T) { return "INT"; }
template <class T>
void add_train_option(CLI::App* sub, TrainCommand& c, const OptionInfo& info, const T& fallback) {
  const auto give = [&c, name = info.name](const std::string& value) { c.given.emplace_back(name, value); };
  const std::string text = fmt::format("{}", fallback);
  sub->add_option_function<std::string>(flag_of(info.name), give, info.help)
      ->type_name(type_of(fallback))
      ->default_str(text.empty() ? "none" : text == "\n" ? "a new line" : text);
}

void add_train(CLI::App& app, TrainCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(app, "train", "Train a language model on a text", [&] { return cmd_train(c); }, chosen);
  sub->add_option("--out", c.out, "Folder of the run: checkpoints, metrics, curve; without one nothing is saved")->default_str("none");
  sub->add_option("--resume", c.resume, "Folder of a run or checkpoint: go on exactly where it ended, with its options")
      ->default_str("none");
  sub->add_option("--config", c.config, "JSON file with options, as the config.json of a run")->default_str("none");
  sub->add_option("--set", c.set, "An option as KEY=VALUE; may be repeated")->default_str("none");
  const TrainOptions defaults;
  each_option(defaults, [&](const OptionInfo& info, const auto& value) { add_train_option(sub, c, info, value); });
}

void add_plot(CLI::App& app, PlotCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(app, "plot", "Draw the loss curves of runs as PNG and SVG", [&] { return cmd_plot(c); }, chosen);
  sub->add_option("runs", c.runs, "Folders that `weft train --out` wrote")->required();
  sub->add_option("--out", c.out, "Name of the picture without its ending")->default_str("RUN/loss, or loss for several runs");
}

void add_model(CLI::App* sub, ModelCommand& c) {
  sub->add_option("--from", c.from, "A run, a checkpoint of it, or a Hugging Face folder of a Mamba")->required();
  add_device(sub, c.device);
  sub->add_option("--precision", c.precision, "Activations: fp32, bf16, or auto (bf16 on a GPU)")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}).description(""));
  sub->add_option("--threads", c.threads, "Threads; 0: as many as OMP_NUM_THREADS or the machine says");
}

void add_generate(CLI::App& app, GenerateCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(app, "generate", "Continue a text", [&] { return cmd_generate(c); }, chosen);
  GenerateOptions& o = c.options;
  sub->add_option("--prompt", c.prompt, "The text to continue; - for standard input")->default_str("a new line");
  sub->add_option("--tokens", o.tokens, "Tokens to append, unless the model ends the text before");
  sub->add_option("--temperature", o.temperature, "Temperature; 0: always the most probable token");
  sub->add_option("--top-k", o.top_k, "Sample among the k most probable tokens; 0: all");
  sub->add_option("--top-p", o.top_p, "Sample among the most probable tokens that make up this share; 1: all");
  sub->add_option("--seed", o.seed, "Seed of the sampling: equal seeds give equal texts");
  add_model(sub, c.model);
}

void add_eval(CLI::App& app, EvalCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(app, "eval", "Say how well a model predicts a text: loss, perplexity, bits per character",
                             [&] { return cmd_eval(c); }, chosen);
  sub->add_option("--data", c.data, "Text, .jsonl file of documents, or folder of shards")->required();
  sub->add_option("--part", c.part, "all, training (the first 9/10), or validation (the rest)")
      ->check(CLI::IsMember({"all", "training", "validation"}).description(""));
  sub->add_option("--length", c.options.length, "Tokens a window; a window knows nothing of the one before");
  sub->add_option("--batch", c.options.batch, "Windows at a time");
  add_model(sub, c.model);
}

void add_data(CLI::App& app, DataCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(app, "data", "Make a folder of token shards to train on, or check one", nullptr, chosen);
  CLI::App* make = subcommand(*sub, "make", "Turn a text into shards of tokens", [&] { return cmd_data_make(c); }, chosen);
  make->add_option("--data", c.data, "Text, or .jsonl file of documents; without one, the King James Bible")->default_str("none");
  make->add_option("--tokenizer", c.tokenizer.name, "bytes, unigram (made from the text, with --vocab pieces), or a SentencePiece model");
  make->add_option("--vocab", c.tokenizer.vocabulary, "Pieces of a unigram tokenizer");
  make->add_option("--out", c.out, "Folder for the shards; new or empty")->required();
  make->add_option("--shard-tokens", c.shard_tokens, "Tokens a shard, at most");
  CLI::App* check = subcommand(*sub, "check", "Read all shards of a folder and compare them with their checksums",
                               [&] { return cmd_data_check(c); }, chosen);
  check->add_option("folder", c.folder, "Folder that `weft data make` wrote")->required();
}

void add_others(CLI::App& app, VerifyCommand& verify, std::function<int()>& chosen) {
  CLI::App* v = subcommand(
      app, "verify", "Compare a model with the reference values in its folder", [&] { return cmd_verify(verify); },
      chosen);
  v->add_option("folder", verify.folder, "Folder with config.json, model.safetensors and reference.safetensors")
      ->required();
  v->add_option("--dtype", verify.dtype, "Precision: f32, f64, or bf16 for the activations")
      ->check(CLI::IsMember({"f32", "f64", "bf16"}).description(""));
  add_device(v, verify.device);
  subcommand(app, "doctor", "Say what this machine has and what weft uses of it", cmd_doctor, chosen);
}

void add_bench(CLI::App& app, BenchCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "bench", "Measure kernels against what the device could do, the interpreter, and the host's cost of a step",
      [&] { return cmd_bench(c); }, chosen);
  BenchOptions& o = c.bench;
  const std::string groups = fmt::format("{}", fmt::join(all_bench_groups(), ", "));
  sub->add_option("groups", o.groups, groups + ", or all; without one, those of the device")->default_str("");
  sub->add_option("--only", o.groups, "The same words, separated by commas")
      ->delimiter(',')->default_str("auto");
  sub->add_option("--json", o.json, "File for the figures; an existing one is merged into")->default_str("none");
  sub->add_option("--against", o.against, "JSON file of other implementations' figures, to print beside weft's")
      ->default_str("none");
  sub->add_option("--budget-ms", o.budget_ms, "Time for timing one row");
  sub->add_option("--row-timeout", o.row_timeout, "Seconds after which a row is given up");
  sub->add_option("--deadline", o.deadline, "Seconds after which no row is started")->default_str("none");
  sub->add_flag("--quick", o.quick, "Fewer repeats: a fifth of the budget (=off)");
  sub->add_flag("--smoke", o.smoke, "Tiny shapes, to try the command itself (=off)");
  sub->add_flag("--list", o.list, "Print the rows and measure nothing (=off)");
  add_device(sub, c.device);
}

void add_inspect(CLI::App& app, InspectCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "inspect", "Show the GPU kernels of a training step, which needs no GPU, and with one their times", [&] { return cmd_inspect(c); }, chosen);
  sub->add_option("model", c.model, "A run's folder, or one with a config.json, or such a file")->required();
  sub->add_option("--arch", c.options.target, "What to compile for: sm_80, sm_90a, sm_100, sm_120, ...")
      ->default_str("sm_90a, or that of --device");
  sub->add_option("--batch", c.options.batch, "Sequences a step")->check(CLI::PositiveNumber)->default_str("the run's, or 8");
  sub->add_option("--length", c.options.length, "Tokens a sequence")->check(CLI::PositiveNumber)->default_str("the run's, or 256");
  sub->add_option("--precision", c.precision, "Activations: fp32, bf16, or auto (the run's, or bf16)")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}).description(""));
  sub->add_option("--device", c.options.device, "Time the kernels: none, cuda, or emu (an interpreter: the times are the host's)")
      ->check(CLI::IsMember({"none", "cuda", "emu"}).description(""));
  sub->add_option("--kernel", c.kernel, "Show this kernel (its name, or how it begins) instead of the list")->default_str("none");
  sub->add_flag("--why", c.why, "... who recorded it, and why it is as it is");
  sub->add_flag("--source", c.source, "... its source");
  sub->add_flag("--ptx", c.ptx, "... its PTX");
  sub->add_flag("--sass", c.sass, "... its machine code: counts, the hottest loop, and the listing if there is a disassembler");
  sub->add_flag("--repro", c.repro, "... as a program for nvcc");
  sub->add_option("--diff", c.diff, "... how its source differs from this kernel's")->default_str("none");
  sub->add_option("--html", c.html, "Write everything to one HTML file")->default_str("none");
  sub->add_option("--json", c.json, "Write the list as JSON")->default_str("none");
  sub->add_option("--trace", c.trace, "Write a step's launches with their times for Chrome or Perfetto; needs --device")->default_str("none");
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
    if (word.starts_with('-')) fail(ErrorKind::usage, fmt::format("{}unknown option '{}'{}", who, word, suggestion(word, options)), {}, help);
    if (!names.empty() && chosen.empty())
      fail(ErrorKind::usage, fmt::format("{}unknown subcommand '{}'{}", who, word, suggestion(word, names)), {}, help);
    fail(ErrorKind::usage, fmt::format("{}unexpected word '{}'", who, word), {}, help);
  }
  if (!names.empty() && chosen.empty())
    fail(ErrorKind::usage, fmt::format("{}a subcommand is needed", who), fmt::format("{}", fmt::join(names, ", ")), help);
  for (const CLI::App* sub : chosen) check_extras(*sub, name + " " + sub->get_name());
}

int run_program(int argc, char** argv) {
  CLI::App app("weft trains Mamba language models with generated kernels", "weft");
  app.set_version_flag("--version", std::string("weft ") + kVersion);
  app.allow_extras();
  TrainCommand train;
  PlotCommand plot;
  GenerateCommand generate;
  EvalCommand eval;
  DataCommand data;
  VerifyCommand verify;
  BenchCommand bench;
  InspectCommand inspect;
  std::function<int()> chosen;
  train.words.assign(argv, argv + argc);
  add_train(app, train, chosen);
  add_plot(app, plot, chosen);
  add_generate(app, generate, chosen);
  add_eval(app, eval, chosen);
  add_data(app, data, chosen);
  add_others(app, verify, chosen);
  add_bench(app, bench, chosen);
  add_inspect(app, inspect, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);  // help, version
  } catch (const CLI::RequiredError& e) {
    check_extras(app, "weft");  // a misspelt option may be why something is missing
    fail(ErrorKind::usage, e.what(), {}, "weft --help");
  } catch (const CLI::ParseError& e) {
    fail(ErrorKind::usage, e.what(), {}, "weft --help");
  }
  check_extras(app, "weft");
  return chosen();
}

}  // namespace

int main(int argc, char** argv) {
  std::string text;
  int code = 1;
  try {
    return run_program(argc, argv);
  } catch (const Error& e) {
    text = e.what(), code = exit_code(e.kind());
  } catch (const std::filesystem::filesystem_error& e) {
    text = e.what(), code = exit_code(ErrorKind::io);
  } catch (const std::bad_alloc&) {
    text = "out of memory\n  hint: a smaller --batch, --length or --width needs less",
    code = exit_code(ErrorKind::device);
  } catch (const std::exception& e) {
    text = e.what();
  }
  std::fflush(stdout);
  fmt::print(stderr, "weft: {}\n", text);
  return code;
}
