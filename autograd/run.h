// Running steps. `run(step, args...)` calls the step function, which records; plans what was recorded, or finds the plan by
// key; executes it; and returns what the step returned, with values.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <ranges>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
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
Target target();           // what plans for it are made for
Target recorded_target();  // what the plan will be made for that is being recorded: of plan_for its own, else target()

namespace detail {

// ---- what a step may return

struct AnyField {  // stands for a member of any type, to count them
  template <class T>
  operator T() const;
};
template <class T, class... Fields>
constexpr std::size_t count_fields() {
  constexpr std::size_t kMost = 8;
  if constexpr (sizeof...(Fields) <= kMost && requires { T{std::declval<Fields>()..., std::declval<AnyField>()}; })
    return count_fields<T, Fields..., AnyField>();
  else
    return sizeof...(Fields);
}

// Gives f the members of a struct of 1 to 8 of them.
template <class T, class F>
void each_field(T& t, F&& f) {
  constexpr std::size_t n = count_fields<T>();
  const auto all = [&](auto&... fields) { (f(fields), ...); };
  if constexpr (n == 1) {
    auto& [a] = t;
    all(a);
  } else if constexpr (n == 2) {
    auto& [a, b] = t;
    all(a, b);
  } else if constexpr (n == 3) {
    auto& [a, b, c] = t;
    all(a, b, c);
  } else if constexpr (n == 4) {
    auto& [a, b, c, d] = t;
    all(a, b, c, d);
  } else if constexpr (n == 5) {
    auto& [a, b, c, d, e] = t;
    all(a, b, c, d, e);
  } else if constexpr (n == 6) {
    auto& [a, b, c, d, e, g] = t;
    all(a, b, c, d, e, g);
  } else if constexpr (n == 7) {
    auto& [a, b, c, d, e, g, h] = t;
    all(a, b, c, d, e, g, h);
  } else if constexpr (n == 8) {
    auto& [a, b, c, d, e, g, h, i] = t;
    all(a, b, c, d, e, g, h, i);
  }
}
template <class T>
concept StructOfFields = std::is_aggregate_v<T> && count_fields<T>()
>= 1 && count_fields<T>() <= 8;

// The Tensors in what a step returned.
template <class T>
void collect(T& value, std::vector<Tensor*>& out) {
  const auto inner = [&out](auto& part) { collect(part, out); };
  if constexpr (std::is_same_v<T, Tensor>) {
    out.push_back(&value);
  } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_same_v<std::remove_cv_t<T>, std::string>) {
    // A number or a text is what it is.
  } else if constexpr (requires { value.has_value(), *value; }) {  // optional
    if (value) inner(*value);
  } else if constexpr (requires { typename T::mapped_type; }) {
    for (auto& [key, mapped] : value) inner(mapped);
  } else if constexpr (std::ranges::range<T>) {
    for (auto& element : value) inner(element);
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    std::apply([&](auto&... parts) { (inner(parts), ...); }, value);
  } else if constexpr (StructOfFields<T>) {
    each_field(value, inner);
  } else {
    static_assert(
        sizeof(T) == 0,
        "run: a step returns nothing, a Tensor, a number or a text, or a vector, array, map, optional, pair, tuple or "
        "struct (of at most 8 public members) of these, none of them const");
  }
}

// While alive, what is recorded is for this target.
class RecordedFor {
 public:
  explicit RecordedFor(const Target& target);
  ~RecordedFor();
  RecordedFor(const RecordedFor&) = delete;
  RecordedFor& operator=(const RecordedFor&) = delete;

 private:
  std::optional<Target> before_;
};

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

// A step's argument. (The place of the call is none.)
template <class T>
concept StepArgument = !std::is_same_v<std::remove_cvref_t<T>, Site>;

namespace detail {
template <class Step, class... A>
auto run_step(Site where, Step& step, A&&... arguments) {
  static_assert(std::is_invocable_v<Step&, A...>,
                "run: the step cannot be called with the arguments that run was given after it");
  if constexpr (std::is_invocable_v<Step&, A...>) {
    using Result = std::decay_t<std::invoke_result_t<Step&, A...>>;
    Recording recording(where);
    std::vector<Tensor*> results;
    if constexpr (std::is_void_v<Result>) {
      step(std::forward<A>(arguments)...);
      recording.finish(results);
    } else {
      Result result = step(std::forward<A>(arguments)...);
      collect(result, results);
      recording.finish(results);
      return result;
    }
  }
}
}  // namespace detail

// The step returns nothing, a Tensor, or a vector, array, map, optional, pair, tuple or struct of them, beside which there may
// be numbers and texts. Handles that it does not return are dead afterwards. Not reentrant. On a GPU, the emulated one too, a
// replayed step returns before its kernels have run: what one of them raises comes with the next call that waits for it (item,
// to_host, a State's bytes, a new step), of which it may then bear the place; WEFT_CHECK=nan waits for every kernel.
template <class Step>
auto run(Step&& step, Site where = Site::current()) {
  return detail::run_step(where, step);
}
// run(step, args...) of step(args...). (A parameter pack takes no default argument after it; of a step of more than three
// arguments errors of `run` itself have no line.)
template <class Step, StepArgument A>
auto run(Step&& step, A&& a, Site where = Site::current()) {
  return detail::run_step(where, step, std::forward<A>(a));
}
template <class Step, StepArgument A, StepArgument B>
auto run(Step&& step, A&& a, B&& b, Site where = Site::current()) {
  return detail::run_step(where, step, std::forward<A>(a), std::forward<B>(b));
}
template <class Step, StepArgument A, StepArgument B, StepArgument C>
auto run(Step&& step, A&& a, B&& b, C&& c, Site where = Site::current()) {
  return detail::run_step(where, step, std::forward<A>(a), std::forward<B>(b), std::forward<C>(c));
}
template <class Step, StepArgument A, StepArgument B, StepArgument C, StepArgument D, StepArgument... More>
auto run(Step&& step, A&& a, B&& b, C&& c, D&& d, More&&... more) {
  return detail::run_step(Site(), step, std::forward<A>(a), std::forward<B>(b), std::forward<C>(c), std::forward<D>(d),
                          std::forward<More>(more)...);
}

// The plan of a step for a target, which need not be there: records and schedules, runs nothing and leaves no trace. Its
// kernels are what `weft inspect` shows. A caller includes autograd/plan.h (weft.h does).
template <class Step>
std::unique_ptr<Plan> plan_for(const Target& target, Step&& step, Site where = Site::current()) {
  const detail::RecordedFor recorded(target);
  detail::Recording recording(where);
  std::vector<Tensor*> results;
  if constexpr (std::is_void_v<decltype(step())>) {
    step();
    return recording.plan(target, results);
  } else {
    auto result = step();
    detail::collect(result, results);
    return recording.plan(target, results);
  }
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
