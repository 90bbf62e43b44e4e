// Training a Mamba language model on the bytes of a text: the loop's pieces, checkpoints, samples.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
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
  std::int64_t length = 128;  // bytes a window
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

// One batch as tensors (batch, length) of i64.
struct TokenBatch {
  Tensor inputs, targets;
};
TokenBatch to_tensors(const ByteBatches::Batch& batch, const ByteBatches::Options& options);

struct StepResult {
  std::int64_t step;  // from 1
  double loss;        // mean cross-entropy of a byte, in nats, before the update
  double grad_norm;   // before clipping
  double lr;
};

struct Validation {
  double loss;         // mean cross-entropy of a byte, in nats
  std::int64_t bytes;  // it is the mean of
};

class Trainer {
 public:
  Trainer(const Corpus& corpus, TrainOptions options);

  // One step on the next batch. Errors (ErrorKind::training): loss or gradient norm is not finite; the weights are
  // those before that step.
  StepResult step();
  std::int64_t steps_done() const { return data_.position(); }
  const TrainOptions& options() const { return options_; }
  void set_steps(std::int64_t steps);  // the end of the schedule

  // Of the validation part, over its first `batches` batches (all: 0).
  Validation validate(std::int64_t batches = 0);
  std::string sample(const std::string& prompt, std::int64_t bytes, double temperature, std::int64_t top_k,
                     std::uint64_t seed);

  // config.json and model.safetensors as Hugging Face has them, optimizer.safetensors, state.json. Every file is
  // replaced atomically; a folder whose files belong to different steps is refused by `resume`.
  void save(const std::filesystem::path& folder) const;
  // Goes on as if training had not been interrupted, bit for bit. `corpus` must be the same text.
  static Trainer resume(const std::filesystem::path& folder, const Corpus& corpus);

  Mamba& model() { return model_; }
  AdamW& optimizer() { return optimizer_; }

 private:
  Trainer(const Corpus& corpus, TrainOptions options, MambaConfig config);
  TrainOptions options_;
  std::unique_ptr<Rng> rng_;
  ByteBatches data_;
  Mamba model_;
  AdamW optimizer_;
  std::uint64_t text_hash_;
};

// Where the text of a checkpoint came from: a file, or nothing for the default one.
std::optional<std::filesystem::path> saved_data_file(const std::filesystem::path& folder);
// The options of the run that wrote a checkpoint; nothing if the folder holds none.
std::optional<TrainOptions> saved_options(const std::filesystem::path& folder);

}  // namespace weft
