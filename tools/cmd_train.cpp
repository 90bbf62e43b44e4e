#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "autograd/run.h"
#include "jit/gpu.h"
#include "jit/parallel.h"
#include "tools/commands.h"
#include "tools/progress.h"

namespace weft {
namespace {

std::optional<std::filesystem::path> data_file(const TrainCommand& c) {
  if (!c.data.empty()) return c.data;
  if (!c.resume.empty()) return saved_data_file(c.resume);
  return std::nullopt;
}

std::shared_ptr<BatchSource> open_data(const TrainCommand& c, const TrainOptions& o) {
  const Corpus corpus = load_corpus(data_file(c));
  const Tokenizer tokenizer = c.resume.empty() ? make_tokenizer(c.tokenizer, c.vocabulary, corpus) : saved_tokenizer(c.resume);
  return std::make_shared<TokenStream>(corpus, tokenizer, BatchOptions{.batch = o.batch, .length = o.length, .seed = o.seed});
}

Trainer make_trainer(const TrainCommand& c) {
  if (c.resume.empty()) {
    TrainOptions options = c.train;
    options.bf16 = c.precision == "bf16" || (c.precision == "auto" && device() == Device::cuda);
    return Trainer(open_data(c, options), options);
  }
  const std::optional<TrainOptions> saved = saved_options(c.resume);
  Trainer trainer = Trainer::resume(c.resume, open_data(c, saved.value_or(c.train)));
  if (c.steps_given) trainer.set_steps(c.train.steps);
  return trainer;
}

void print_start(Trainer& trainer) {
  const TrainOptions& o = trainer.options();
  const BatchSource& data = trainer.data();
  fmt::print("text: {}, tokens: {} ({}), 9/10 to train on\n", data.name(), data.tokenizer()->name(), data.vocabulary());
  fmt::print("model: Mamba, {} layers, width {}, state {}, {} parameters\n", o.layers, o.width, o.state,
             trainer.model().config().parameter_count());
  const std::string where = is_gpu(device()) ? Gpu::of(device()).name() : fmt::format("{} threads", threads());
  fmt::print("device: {} ({}), {}; {} steps of {} x {} tokens\n", name_of(device()), where, o.bf16 ? "bf16" : "fp32", o.steps,
             o.batch, o.length);
  if (trainer.steps_done()) fmt::print("resumed after step {}\n", trainer.steps_done());
  std::fflush(stdout);
}

void validate(Trainer& trainer, Progress& progress, std::int64_t batches) {
  const Validation v = trainer.validate(batches);
  progress.note(fmt::format("step {}: validation loss {:.4f}, {:.3f} bits per character ({} tokens)",
                            trainer.steps_done(), v.loss, v.bits_per_character(), v.tokens));
}

// OUT/metrics.jsonl, one line a step; closed if nothing is saved.
std::ofstream open_metrics(const std::filesystem::path& out) {
  if (out.empty()) return {};
  std::filesystem::create_directories(out);
  const std::filesystem::path file = out / "metrics.jsonl";
  std::ofstream stream(file, std::ios::app);
  if (!stream) fail(ErrorKind::io, "train: the metrics cannot be written", file.string(), "give another --out");
  return stream;
}

}  // namespace

int cmd_train(const TrainCommand& c) {
  use_device(c.device);
  if (c.tf32 && is_gpu(device())) Gpu::of(device()).allow_tf32(true);
  if (c.threads > 0) set_threads(c.threads);
  Trainer trainer = make_trainer(c);
  const std::string out = c.out.empty() ? c.resume : c.out;
  print_start(trainer);

  const TrainOptions& o = trainer.options();
  Progress progress(trainer.steps_done(), o.steps, o.batch * o.length);
  std::ofstream metrics = open_metrics(out);
  while (trainer.steps_done() < o.steps) {
    const StepResult result = trainer.step();
    progress.step(result.step, result.loss, result.lr);
    if (metrics.is_open())
      metrics << fmt::format(R"({{"step": {}, "loss": {:.9g}, "grad_norm": {:.9g}, "lr": {:.9g}}})", result.step, result.loss,
                             result.grad_norm, result.lr) << std::endl;
    if (c.eval_every > 0 && result.step % c.eval_every == 0 && result.step < o.steps) {
      validate(trainer, progress, c.eval_batches);
      if (!out.empty()) trainer.save(out);
      progress.pause();
    }
  }
  validate(trainer, progress, c.eval_batches);
  if (!out.empty()) {
    trainer.save(out);
    progress.note("saved: " + out);
  }
  if (c.sample > 0)
    fmt::print("sample (temperature {:g}):\n{}\n", c.temperature,
               printable(trainer.sample(c.prompt, c.sample, c.temperature, c.top_k, o.seed)));
  return 0;
}

}  // namespace weft
