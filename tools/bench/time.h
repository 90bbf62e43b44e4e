// How long a step takes: on a GPU the time of its kernels, and on every device what back-to-back runs cost.
#pragma once

#include <functional>
#include <vector>

#include "autograd/run.h"
#include "autograd/tensor.h"

namespace weft {

// What a step under measurement does with its results: each is computed and stored by the kernels that make it, and nothing
// reads it. A result that `run` returns, or an `assign`, would cost a copy that is no part of the op; and a result that nobody
// wants is dropped from the plan. What is kept is also a border: a forward value is stored before the gradients begin.
class Keep {
 public:
  void operator()(const Tensor& value) const;
  void operator()(const std::vector<Tensor>& values) const;

 private:
  friend void check_step(const std::function<void(const Keep&)>& step);
  std::vector<Tensor>* sums_ = nullptr;  // of what is kept
};

using BenchStep = std::function<void(const Keep& keep)>;

// A step of one part, or of two that follow each other, such as forward and backward.
struct TimedStep {
  BenchStep step;
  BenchStep first = {};                           // its first part alone, for the CPU; absent: it has one part
  bool (*second)(const KernelRecord&) = nullptr;  // on a GPU the second part begins at the first such kernel
};

struct StepTimes {
  double first_ms = 0, second_ms = 0, total_ms = 0;  // on a GPU: its time alone, with cold caches; of one part: all the first
  double wall_ms = 0;                                // of a run when runs follow each other, the host's work included
  double first_s = 0;                                // the first run: recording, planning, compiling
};

struct TimeLimits {
  double budget_ms = 300;  // for timing one thing, which is done 5 to 100 times
  double row_s = 120;      // an error when a step's warm-up takes longer
};

double median(std::vector<double> values);  // of at least one

// Medians. Errors: what the step raises; a step that is too slow.
StepTimes time_step(const TimedStep& step, const TimeLimits& limits);

// An error if something that the step keeps is not finite.
void check_step(const BenchStep& step);

// Runs a function until what it launched is done; seconds.
double time_wall(const std::function<void()>& f);
// The median of runs of f, in ms, within the budget: on a GPU the time between two marks around what f launches.
double time_launches(const std::function<void()>& f, const TimeLimits& limits);

}  // namespace weft
