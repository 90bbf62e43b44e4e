#include "tools/bench/time.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "autograd/lowering.h"
#include "autograd/settings.h"
#include "jit/gpu.h"
#include "ops/ops.h"

namespace weft {
namespace {

// An effect without a kernel: its operand is wanted, so it is computed and stored.
void no_kernels(Lowering&) {}
void no_states(const Tape&, NodeId, std::vector<std::int32_t>&) {}
const Op& keep_op = register_op({.name = "keep", .lower = no_kernels, .cuda = no_kernels, .writes = no_states});

int repeats(double one_ms, const TimeLimits& limits) {
  return int(std::clamp(limits.budget_ms / std::max(one_ms, 1e-3), 5.0, 100.0));
}

void run_step(const BenchStep& step) {
  run([&] { step(Keep()); });
}

double median_wall_ms(const BenchStep& step, int runs) {
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(time_wall([&] { run_step(step); }) * 1e3);
  return median(times);
}

void time_on_cpu(StepTimes& t, const TimedStep& step, const TimeLimits& limits) {
  const int runs = repeats(t.wall_ms, limits);
  t.total_ms = t.first_ms = median_wall_ms(step.step, runs);
  if (!step.first) return;
  run_step(step.first);
  t.first_ms = median_wall_ms(step.first, runs);
  t.second_ms = std::max(0.0, t.total_ms - t.first_ms);
}

// The kernels of the plan that ran last.
void time_kernels(StepTimes& t, const TimedStep& step, const TimeLimits& limits) {
  const std::vector<KernelRecord> kernels = last_kernels();
  const int n = int(kernels.size()), runs = repeats(t.wall_ms, limits);
  if (n == 0) fail(ErrorKind::usage, "the step has no kernels");
  t.total_ms = t.first_ms = time_last_plan({0, n}, runs)[0] * 1e3;
  if (!step.second) return;
  const int cut = int(std::find_if(kernels.begin(), kernels.end(), step.second) - kernels.begin());
  if (cut == 0 || cut == n)
    fail(ErrorKind::usage, fmt::format("all {} kernels belong to one part of the step", n), kernels[0].name);
  const std::vector<double> parts = time_last_plan({0, cut, n}, runs);
  t.first_ms = parts[0] * 1e3;
  t.second_ms = parts[1] * 1e3;
}

}  // namespace

void check_time(double seconds, const TimeLimits& limits) {
  if (seconds > limits.row_s) fail(ErrorKind::training, fmt::format("over {:.0f} s", limits.row_s));
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void Keep::operator()(const Tensor& value) const {
  const Out none{Shape{0}, DType::f32};
  record(keep_op, {value}, {none}, {}, {}, Site::current());
  if (sums_) sums_->push_back(sum(value));
}

void Keep::operator()(const std::vector<Tensor>& values) const {
  for (const Tensor& v : values) (*this)(v);
}

void check_step(const BenchStep& step) {
  const std::vector<Tensor> sums = run([&] {
    std::vector<Tensor> out;
    Keep keep;
    keep.sums_ = &out;
    step(keep);
    return out;
  });
  for (std::size_t i = 0; i < sums.size(); ++i)
    if (!std::isfinite(sums[i].item()))
      fail(ErrorKind::training, fmt::format("result {} of {} is not finite", i + 1, sums.size()));
}

double time_wall(const std::function<void()>& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  if (is_gpu(device())) Gpu::of(device()).synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double time_launches(const std::function<void()>& f, const TimeLimits& limits) {
  auto once = [&] {
    f();  // warms the CPU's caches; keeps a GPU busy while the host gets ahead
    return (is_gpu(device()) ? Gpu::of(device()).timed(f) : time_wall(f)) * 1e3;
  };
  once();
  std::vector<double> times(std::size_t(repeats(once(), limits)));
  for (double& t : times) t = once();
  return median(times);
}

StepTimes time_step(const TimedStep& step, const TimeLimits& limits) {
  if (is_gpu(device()) && settings().split_arena)
    fail(ErrorKind::usage, "bench: WEFT_ARENA=split gives values no lasting address", {}, "unset WEFT_ARENA");
  StepTimes t;
  t.first_s = time_wall([&] { run_step(step.step); });
  check_time(t.first_s, limits);
  const double second_s = time_wall([&] { run_step(step.step); });  // a GPU's graph is captured
  check_time(t.first_s + second_s, limits);
  const int runs = repeats(time_wall([&] { run_step(step.step); }) * 1e3, limits);
  t.wall_ms = time_wall([&] {
                for (int i = 0; i < runs; ++i) run_step(step.step);
              }) *
              1e3 / runs;
  if (is_gpu(device()))
    time_kernels(t, step, limits);
  else
    time_on_cpu(t, step, limits);
  check_step(step.step);
  return t;
}

}  // namespace weft
