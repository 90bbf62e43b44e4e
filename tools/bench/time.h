// How long a step takes: on a GPU the time of its kernels, and on every device the cost of runs back to back.
#pragma once

#include <functional>
#include <vector>

#include "autograd/run.h"
#include "autograd/tensor.h"

namespace weft {

// What a measured step does with its results: each is computed and stored by the kernels that make it, and nothing reads it. A
// result that `run` returns, or an `assign`, would cost a copy that is not part of the op, and a result that nobody wants would
// be dropped from the plan. Keeping also draws a line: a forward value is stored before the gradients begin.
class Keep {
 public:
  void operator()(const Tensor& value) const;
  void operator()(const std::vector<Tensor>& values) const;

 private:
  friend void check_step(const std::function<void(const Keep&)>& step);
  std::vector<Tensor>* sums_ = nullptr;  // of what is kept
};

using BenchStep = std::function<void(const Keep& keep)>;

// A step in one part, or in two that follow each other, such as forward and backward.
struct TimedStep {
  BenchStep step;
  BenchStep first = {};                           // the first part alone, for the CPU; absent: the step has only one
  bool (*second)(const KernelRecord&) = nullptr;  // on a GPU the second part begins at the first such kernel
};

struct StepTimes {
  // On a GPU: the kernels alone, with cold caches. With one part all of it is the first.
  double first_ms = 0, second_ms = 0, total_ms = 0;
  double wall_ms = 0;  // of a run among runs back to back, with the host's work
  double first_s = 0;  // the first run: recording, planning, compiling
};

struct TimeLimits {
  double budget_ms = 300;  // for timing one thing, which is repeated 5 to 100 times
  double row_s = 120;      // an error when a step's warm-up takes longer
  double step_s = 30;      // for timing a whole training step
};

void check_time(double seconds, const TimeLimits& limits);  // an error if a warm-up took longer

double median(std::vector<double> values);  // of at least one

// Medians. Errors: whatever the step raises; a step that is too slow.
StepTimes time_step(const TimedStep& step, const TimeLimits& limits);

// An error if something that the step keeps is not finite.
void check_step(const BenchStep& step);

// Seconds until f has returned and everything that it launched is done.
double time_wall(const std::function<void()>& f);
// The median over runs of f, in ms, within the budget: on a GPU the time between two marks around what f launches.
double time_launches(const std::function<void()>& f, const TimeLimits& limits);

}  // namespace weft
