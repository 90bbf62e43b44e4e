// Training a Mamba language model: the loop's pieces, checkpoints, samples.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <numbers>
#include <optional>
#include <string>

#include "autograd/random.h"
#include "models/mamba.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tools/data.h"

namespace weft {

// The defaults give the best text in about two minutes on two slow cores.
struct TrainOptions {
  std::int64_t steps = 1500;
  std::int64_t batch = 8;     // windows a step
  std::int64_t length = 128;  // tokens a window
  std::int64_t width = 128;
  std::int64_t layers = 4;
  std::int64_t state = 16;
  double lr = 4e-3;  // at its peak
  double min_lr = 1e-5;
  std::int64_t warmup = 50;  // steps
  double weight_decay = 0.1;
  double clip = 1.0;
  std::uint64_t seed = 1;
  bool bf16 = false;  // activations; weights, residual stream and optimizer stay fp32
};

struct StepResult {
  std::int64_t step;  // from 1
  double loss;        // mean cross-entropy of a token, in nats, before the update
  double grad_norm;   // before clipping
  double lr;
};

struct Validation {
  double loss = 0;              // mean cross-entropy of a token, in nats
  std::int64_t tokens = 0;      // it is the mean of
  std::int64_t characters = 0;  // that they stand for; 0 if there is no text
  double bits_per_character() const { return loss * double(tokens) / (std::numbers::ln2 * double(characters)); }
};

class Trainer {
 public:
  // `data` has the options' batch and length.
  Trainer(std::shared_ptr<BatchSource> data, TrainOptions options);

  // One step on the next batch. Errors (ErrorKind::training): loss or gradient norm is not finite; the weights are
  // those before that step.
  StepResult step();
  std::int64_t steps_done() const { return data_->position(); }
  const TrainOptions& options() const { return options_; }
  void set_steps(std::int64_t steps);  // the end of the schedule

  // Of the validation part, over its first `batches` batches (all: 0).
  Validation validate(std::int64_t batches = 0);
  std::string sample(const std::string& prompt, std::int64_t tokens, double temperature, std::int64_t top_k,
                     std::uint64_t seed);

  // config.json and model.safetensors as Hugging Face has them, optimizer.safetensors, state.json. Every file is
  // replaced atomically; a folder whose files belong to different steps is refused by `resume`.
  void save(const std::filesystem::path& folder) const;
  // Goes on as if training had not been interrupted, bit for bit. `data` must be the same.
  static Trainer resume(const std::filesystem::path& folder, std::shared_ptr<BatchSource> data);

  Mamba& model() { return model_; }
  AdamW& optimizer() { return optimizer_; }
  const BatchSource& data() const { return *data_; }

 private:
  Trainer(std::shared_ptr<BatchSource> data, TrainOptions options, MambaConfig config);
  TrainOptions options_;
  std::unique_ptr<Rng> rng_;
  std::shared_ptr<BatchSource> data_;
  Mamba model_;
  AdamW optimizer_;
};

// Where the text of a checkpoint came from: a file, or nothing for the default one.
std::optional<std::filesystem::path> saved_data_file(const std::filesystem::path& folder);
Tokenizer saved_tokenizer(const std::filesystem::path& folder);
// The options of the run that wrote a checkpoint; nothing if the folder holds none.
std::optional<TrainOptions> saved_options(const std::filesystem::path& folder);

}  // namespace weft
