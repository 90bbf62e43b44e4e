// Training a language model: the loop's pieces, checkpoints, samples.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "autograd/random.h"
#include "models/language_model.h"
#include "models/orpo.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tools/data/data.h"
#include "tools/data/pairs.h"
#include "tools/evaluate/eval.h"
#include "tools/train/train_options.h"

namespace weft {

struct StepResult {
  std::int64_t step;  // from 1
  double loss;        // mean cross-entropy of a token, in nats, before the update; of the stage "orpo" its loss
  double grad_norm;   // before clipping
  double lr;
  bool stop;                                    // a rank wants to end
  bool skipped;                                 // something was not finite, and the weights are those before
  std::optional<OrpoMetrics> preferences = {};  // of the stage "orpo"
};

struct RejectedTexts {  // that the model has written
  std::int64_t count = 0;
  double seconds = 0;
};

using MakeModel = std::function<std::unique_ptr<LanguageModel>(const ComputeOptions& how)>;

// In a process that has joined ranks (jit/ranks/ranks.h) it trains together with them: `data` has this rank's part of each
// batch, the gradients of all are summed, the weights are those of rank 0. What it computes does not depend on the number of
// ranks but for rounding, nor does what it saves, which rank 0 does alone.
class Trainer {
 public:
  // `data` has the options' batch and length. Of the options, those of the model, the optimizer and the schedule matter here.
  // With options.from the model is that of the folder, whatever the options say of its sizes. The stage "orpo" needs a
  // PairStream (errors: ErrorKind::usage).
  Trainer(std::shared_ptr<BatchSource> data, TrainOptions options);
  Trainer(Trainer&& other) : Trainer(std::as_const(other)) {}  // shares what it holds with what it was moved from

  // One step on the next batches. Errors (ErrorKind::training): an adapter without gradient (tools/train/adapt.h), in the first
  // one; loss or gradient norm is not finite, and
  // options().skip_bad_steps do not allow it; the step is computed again op by op to name the one that made the value. The
  // weights are those before that step. `stop`: this process wants to end, of which all ranks hear at the same step.
  StepResult step(bool stop = false);
  std::int64_t steps_done() const { return step_; }
  const TrainOptions& options() const { return options_; }
  std::int64_t tokens_per_step() const {  // of a pair both texts, as if they were not padded to less
    return options_.accumulate * options_.batch * options_.length * (pairs_ ? 2 : 1);
  }

  // Of the validation part, over its first `batches` batches (all: 0).
  Evaluation validate(std::int64_t batches = 0) { return evaluate(*model_, *data_, batches); }
  // Of the stage "orpo": of the pairs held out. Before the first step it samples their rejected texts, if they are sampled.
  OrpoMetrics validate_pairs(std::int64_t batches = 0);
  const RejectedTexts& sampled() const { return sampled_; }  // by this process, in steps and validations
  std::string sample(const std::string& prompt, std::int64_t tokens, double temperature, std::int64_t top_k,
                     std::uint64_t seed);

  // config.json and model.safetensors as Hugging Face has them, adapter/ as PEFT has it if one is trained,
  // optimizer.safetensors, tokenizer.model, carried.safetensors (the states that --carry-state goes on from),
  // sampled.safetensors (rejected texts), and state.json with the checksums of the others. `folder` is new, empty or a
  // checkpoint; on an error what was in it before stays.
  void save(const std::filesystem::path& folder) const;
  void write_files(const std::filesystem::path& folder) const;  // one by one, into an existing folder
  void assist_save() const;                                     // on the other ranks, while rank 0 writes
  // Goes on as if training had not been interrupted, bit for bit. `data` must be the same; `options` are the saved ones,
  // changed as resumed_options allows.
  static Trainer resume(const std::filesystem::path& folder, std::shared_ptr<BatchSource> data, const TrainOptions& options);
  static Trainer resume(const std::filesystem::path& folder, std::shared_ptr<BatchSource> data);

  LanguageModel& model() { return *model_; }
  AdamW& optimizer() { return optimizer_; }
  const BatchSource& data() const { return *data_; }

 private:
  Trainer(const Trainer&) = default;
  Trainer(std::shared_ptr<BatchSource> data, TrainOptions options, const MakeModel& make);
  struct Computed {
    double loss, norm;
    bool stop;
    std::optional<OrpoMetrics> preferences;
  };
  Computed compute(bool stop);  // a step on the next batches
  void forget();                // what is carried
  enum class For { step, validation };
  void sample_rejected(For use);  // texts that are missing
  void share_weights();           // with all ranks
  [[noreturn]] void explain(const StepResult& result, std::int64_t position, std::uint64_t tick);

  TrainOptions options_;
  std::shared_ptr<Rng> rng_;
  std::shared_ptr<BatchSource> data_;
  std::shared_ptr<PairStream> pairs_;  // data_, of the stage "orpo"
  std::shared_ptr<LanguageModel> model_;
  AdamW optimizer_;
  std::shared_ptr<ModelCache> carried_;  // of options().carry_state: the states of the batch's rows
  std::int64_t step_ = 0, bad_steps_ = 0;
  RejectedTexts sampled_;
};

// What the folder of a checkpoint holds besides tensors. Errors (ErrorKind::io): missing, damaged, of another version of weft.
struct SavedState {
  std::int64_t step = 0, position = 0, bad_steps = 0;  // position: of the data
  std::uint64_t seed = 0, tick = 0;                    // of the generator
  std::string data_hash;
  TrainOptions options;
  nlohmann::json environment;  // see tools/system/environment.h
  nlohmann::json files;        // checksums of the others, see tools/train/checksums.h; empty: of a weft that wrote none
};
SavedState read_state(const std::filesystem::path& folder);
// Reads all files of the checkpoint. Errors (ErrorKind::io): one is missing, or its bytes are not those that were written.
void check_files(const std::filesystem::path& folder, const SavedState& state);

}  // namespace weft
