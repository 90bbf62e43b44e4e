#include "tools/data/tasks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <utility>

#include "jit/error.h"
#include "jit/philox.h"

namespace weft {
namespace {

enum BatchSite : std::uint64_t { kTraining = 1, kValidation = 2 };

void fill_copying(const SelectiveCopying& task, DataDraws& draws, std::span<std::int64_t> inputs,
                  std::span<std::int64_t> targets) {
  const std::int64_t n = std::int64_t(inputs.size()) - task.memorize;
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < n; ++i) {  // each choice of places is as likely as any other
    const bool take = draws.below(n - i) < task.memorize - found;
    inputs[std::size_t(i)] = take ? 1 + draws.below(task.vocab - 2) : 0;
    if (take) targets[std::size_t(n + found++)] = inputs[std::size_t(i)];
  }
  for (std::int64_t i = 0; i < task.memorize; ++i) inputs[std::size_t(n + i)] = task.vocab - 1;
}

void fill_induction(const InductionHeads& task, DataDraws& draws, std::span<std::int64_t> inputs,
                    std::span<std::int64_t> targets) {
  const std::int64_t special = task.vocab - 1, last = std::int64_t(inputs.size()) - 1;
  for (std::int64_t& token : inputs) token = draws.below(special);
  const std::size_t place = std::size_t(draws.below(last - 1));  // what follows it stands before the last input
  inputs[place] = inputs[std::size_t(last)] = special;
  targets[std::size_t(last)] = inputs[place + 1];
}

}  // namespace

TaskBatches::TaskBatches(std::string name, std::int64_t vocabulary, Fill fill, BatchOptions options)
    : BatchSource(options), name_(std::move(name)), vocabulary_(vocabulary), fill_(std::move(fill)) {}

TaskBatches::TaskBatches(SelectiveCopying task, BatchOptions options)
    : TaskBatches(
          fmt::format("selective copying of {} tokens", task.memorize), task.vocab,
          [task](DataDraws& d, auto inputs, auto targets) { fill_copying(task, d, inputs, targets); }, options) {
  if (task.vocab < 3 || task.memorize < 1 || task.memorize > options.length / 2)
    fail(ErrorKind::usage, "selective copying: the sizes leave no room",
         fmt::format("length {}, {} tokens to memorize, vocabulary {}", options.length, task.memorize, task.vocab),
         "give a --length of at least twice --memorize");
}

TaskBatches::TaskBatches(InductionHeads task, BatchOptions options)
    : TaskBatches(
          "induction heads", task.vocab,
          [task](DataDraws& d, auto inputs, auto targets) { fill_induction(task, d, inputs, targets); }, options) {
  if (task.vocab < 3 || options.length < 3)
    fail(ErrorKind::usage, "induction: the sizes leave no room",
         fmt::format("length {}, vocabulary {}", options.length, task.vocab), "give a --length of at least 3");
}

Batch TaskBatches::batch(std::uint64_t site, std::int64_t index) const {
  const BatchOptions& o = options();
  std::vector<std::int64_t> inputs(std::size_t(o.rows() * o.length)), targets(inputs.size(), kIgnored);
  for (std::int64_t row = 0; row < o.rows(); ++row) {
    DataDraws draws(philox_key(o.seed, site), index, o.first_row() + row);
    const std::size_t at = std::size_t(row * o.length), n = std::size_t(o.length);
    fill_(draws, std::span(inputs).subspan(at, n), std::span(targets).subspan(at, n));
  }
  Batch batch;
  for (std::int64_t target : targets) batch.counted += target != kIgnored;
  batch.inputs = Tensor::from(inputs, {o.rows(), o.length});
  batch.targets = Tensor::from(targets, {o.rows(), o.length});
  return batch;
}

Batch TaskBatches::training(std::int64_t position) const { return batch(kTraining, position); }

Batch TaskBatches::validation(std::int64_t index) const {
  if (index < 0 || index >= kValidationBatches)
    fail(ErrorKind::usage, "no such validation batch", fmt::format("{} of {}", index, kValidationBatches));
  return batch(kValidation, index);
}

std::uint64_t TaskBatches::hash() const { return XXH3_64bits_withSeed(name_.data(), name_.size(), std::uint64_t(vocabulary_)); }

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = {"selective-copying", "induction"};
  return names;
}

std::shared_ptr<BatchSource> make_task(const std::string& name, BatchOptions options, std::int64_t memorize) {
  if (name == task_names()[0]) return std::make_shared<TaskBatches>(SelectiveCopying{.memorize = memorize}, options);
  if (name == task_names()[1]) return std::make_shared<TaskBatches>(InductionHeads{}, options);
  fail(ErrorKind::usage, fmt::format("no task '{}'{}", name, suggestion(name, task_names())),
       fmt::format("{}", fmt::join(task_names(), ", ")));
}

}  // namespace weft
