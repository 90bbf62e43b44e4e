// Running steps. `run(step, args...)` calls the step function, which records; plans what was recorded, or finds the plan by
// key; executes it; and returns what the step returned, with values.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "autograd/tensor.h"
#include "jit/device.h"

namespace weft {

struct Plan;  // autograd/plan.h

// "auto" (cuda if there is one, else cpu), "cpu", "cuda", "emu" (the CUDA path on weft's own interpreter of PTX). States live
// on the device in use when they are made. On the main thread it is for all threads that do not call it, on another thread for
// that one. Threads may compute on the CPU at the same time; a GPU, the emulated one too, is for one thread at a time. Errors
// (ErrorKind::device) say what is missing.
void use_device(std::string_view name, Site where = Site::current());
Device device();
Target target();  // what plans for it are made for

namespace detail {
inline void collect(Tensor& t, std::vector<Tensor*>& out) { out.push_back(&t); }
template <class T>
void collect(std::vector<T>& v, std::vector<Tensor*>& out) {
  for (T& t : v) collect(t, out);
}
template <class T, std::size_t N>
void collect(std::array<T, N>& v, std::vector<Tensor*>& out) {
  for (T& t : v) collect(t, out);
}
template <class A, class B>
void collect(std::pair<A, B>& p, std::vector<Tensor*>& out) {
  collect(p.first, out), collect(p.second, out);
}
template <class... T>
void collect(std::tuple<T...>& t, std::vector<Tensor*>& out) {
  std::apply([&](auto&... e) { (collect(e, out), ...); }, t);
}

// Opens a recording; discards it unless finished (an exception while recording leaves nothing behind).
class Recording {
 public:
  explicit Recording(Site where);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  void finish(std::vector<Tensor*>& results);
  std::unique_ptr<Plan> plan(const Target& target, std::vector<Tensor*>& results);  // instead of finish: nothing runs

 private:
  Site where_;  // of the call of run
  bool open_ = true;
};
}  // namespace detail

// The step returns nothing, a Tensor, or a vector, array, pair or tuple of them. Handles that it does not return are dead
// afterwards. Not reentrant. On a GPU, the emulated one too, a replayed step returns before its kernels have run: what one of
// them raises comes with the next call that waits for it (item, to_host, a State's bytes, a new step), of which it may then
// bear the place; WEFT_CHECK=nan waits for every kernel.
template <class Step>
auto run(Step&& step, Site where = Site::current()) {
  detail::Recording recording(where);
  std::vector<Tensor*> results;
  if constexpr (std::is_void_v<decltype(step())>) {
    step();
    recording.finish(results);
  } else {
    auto result = step();
    detail::collect(result, results);
    recording.finish(results);
    return result;
  }
}
// run(step, args...) of step(args...). (A parameter pack takes no default argument after it; of a step of more than three
// arguments errors of `run` itself have no line.)
template <class T>
concept StepArgument = !std::is_same_v<std::remove_cvref_t<T>, Site>;
template <class Step, StepArgument A>
auto run(Step&& step, A&& a, Site where = Site::current()) {
  return run([&] { return step(std::forward<A>(a)); }, where);
}
template <class Step, StepArgument A, StepArgument B>
auto run(Step&& step, A&& a, B&& b, Site where = Site::current()) {
  return run([&] { return step(std::forward<A>(a), std::forward<B>(b)); }, where);
}
template <class Step, StepArgument A, StepArgument B, StepArgument C>
auto run(Step&& step, A&& a, B&& b, C&& c, Site where = Site::current()) {
  return run([&] { return step(std::forward<A>(a), std::forward<B>(b), std::forward<C>(c)); }, where);
}
template <class Step, StepArgument A, StepArgument B, StepArgument C, StepArgument D, StepArgument... More>
auto run(Step&& step, A&& a, B&& b, C&& c, D&& d, More&&... more) {
  return run(
      [&] {
        return step(std::forward<A>(a), std::forward<B>(b), std::forward<C>(c), std::forward<D>(d),
                    std::forward<More>(more)...);
      },
      Site());
}

// The plan of a step for a target, which need not be there: records and schedules, runs nothing and leaves no trace. Its
// kernels are what `weft inspect` shows. A caller includes autograd/plan.h (weft.h does).
template <class Step>
std::unique_ptr<Plan> plan_for(const Target& target, Step&& step, Site where = Site::current()) {
  detail::Recording recording(where);
  std::vector<Tensor*> results;
  auto result = step();
  detail::collect(result, results);
  return recording.plan(target, results);
}

// Runs what is pending outside `run`, keeping the values of live handles. An error inside `run`.
void flush(Site where = Site::current());

// What the host is to be told of when it can be known without waiting, such as a bad step of an optimizer. `look` runs on this
// thread at the begin and the end of each run and when a value has been fetched: on the CPU always, on a GPU once a kernel has
// called `notify` (jit/prelude.cuh). What it throws comes from there. Forgotten when the last owner of `look` goes; watching it
// again changes nothing.
using Look = std::function<void()>;
void watch(const std::shared_ptr<const Look>& look);
void look_at_watched();

// What the last run did and what the runtime holds: for tests, `weft bench` and `weft inspect`.
struct RunStats {
  bool replayed = false;  // a known plan
  bool graph = false;     // launched as one graph
  int nodes = 0, kernels = 0;
  double record_seconds = 0;  // in the step function and backward
  double lookup_seconds = 0;  // key, lookup, binding
  double plan_seconds = 0;    // scheduling, if the plan was new
  double kernel_seconds = 0;
  std::size_t arena_bytes = 0;
  std::size_t plans = 0;  // kept
};
const RunStats& last_run();

// The kernels of the last run's plan and why they are as they are, a line each.
struct KernelRecord {
  std::string name;   // "pointwise__add_silu__a3f9c1"
  std::string where;  // module path and op
  std::vector<std::string> reasons;
  bool backward = false;  // a gradient's or an update's
};
std::vector<KernelRecord> last_kernels();

// Launches the kernels of the last run's plan again on the GPU, with cold caches, and returns the median time in seconds of
// each stretch [cuts[i], cuts[i + 1]) of them. States are written again: for measurements only.
std::vector<double> time_last_plan(const std::vector<int>& cuts, int repeats = 30);

}  // namespace weft
