// The synthetic tasks of the Mamba paper (arXiv:2312.00752, 4.1 and E.1): can a model choose what it remembers? The stream of
// batches is endless; only the answers are to be predicted, and what counts is how many are right.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tools/data/data.h"
#include "tools/data/draws.h"

namespace weft {

// Remember the tokens, not the noise between them, and repeat them in order. Length l: l - memorize inputs, of which
// `memorize` at random places are tokens in [1, vocab - 1) and the others noise, 0; then `memorize` times the marker
// vocab - 1, at which the tokens are the answers. The paper: vocab 16, memorize 16, length 4096.
struct SelectiveCopying {
  std::int64_t vocab = 16;
  std::int64_t memorize = 16;
};

// What followed the special token vocab - 1 the first time? Random tokens in [0, vocab - 1) with the special token once among
// them; it is also the last input, and there the token that followed it is the answer. The paper: vocab 16, length 256.
struct InductionHeads {
  std::int64_t vocab = 16;
};

class TaskBatches : public BatchSource {
 public:
  // Errors (ErrorKind::usage): sizes that leave no room for the task.
  TaskBatches(SelectiveCopying task, BatchOptions options);
  TaskBatches(InductionHeads task, BatchOptions options);

  std::int64_t validation_batches() const override { return kValidationBatches; }
  Batch validation(std::int64_t index) const override;
  std::int64_t vocabulary() const override { return vocabulary_; }
  std::string name() const override { return name_; }
  std::uint64_t hash() const override;
  bool has_accuracy() const override { return true; }

 protected:
  Batch training(std::int64_t position) const override;

 private:
  static constexpr std::int64_t kValidationBatches = 16;
  // DataDraws one sequence: inputs and targets (length); the latter come in as kIgnored.
  using Fill = std::function<void(DataDraws&, std::span<std::int64_t>, std::span<std::int64_t>)>;
  TaskBatches(std::string name, std::int64_t vocabulary, Fill fill, BatchOptions options);
  Batch batch(std::uint64_t site, std::int64_t index) const;

  std::string name_;
  std::int64_t vocabulary_;
  Fill fill_;
};

const std::vector<std::string>& task_names();  // "selective-copying", "induction"
// Errors (ErrorKind::usage): no such task. `memorize` is for selective copying.
std::shared_ptr<BatchSource> make_task(const std::string& name, BatchOptions options,
                                       std::int64_t memorize = SelectiveCopying{}.memorize);

}  // namespace weft
