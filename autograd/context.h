// What a thread records into: one tape for `run`, one for ops outside it, and the switches of the process.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "autograd/plan.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "autograd/state.h"
#include "autograd/tape.h"

namespace weft {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Context {
  ~Context() { detail::active_tape = nullptr; }

  Device device = settings().device;
  Tape step;     // inside run
  Tape pending;  // outside
  bool checkpointing = false;
  int hold = 0;  // > 0: `pending` must not be flushed now (gradients are being recorded by node)
  Rng default_rng;
  Rng* rng = &default_rng;
  PlanCache plans;
  const Plan* last_plan = nullptr;  // owned by `plans`, where it is the most recent
  RunStats stats;

  Tape* tape() const { return detail::active_tape; }
  void use(Tape& t) {
    detail::active_tape = &t;
    detail::active_epoch = t.epoch;
  }
  bool recording() const { return detail::active_tape == &step; }
};

Context& context();  // of this thread

// A State that a recording names is going away: what is pending runs first; a step being recorded cannot be run any more.
void state_dies(StateImpl& state);

// An error if a State that the recording names has died since.
void check_states(const Tape& t);

// Adds gradients that nobody consumed to the Params' gradient States; called when a recording ends.
void keep_gradients();

namespace detail {
void keep_house(Tape& t);
Tensor kept_handle(Tape& t, NodeId id);
}  // namespace detail

// Before an op is recorded outside `run`: the tape is flushed when it has become long, and forgotten when nothing on it can be
// asked for any more.
inline void before_record() {
  if (Tape& t = tape(); t.eager) detail::keep_house(t);
}

// A handle of node `id` of the active tape; outside `run` one whose value is kept when the tape is flushed.
inline Tensor handle(NodeId id) {
  Tape& t = tape();
  return t.eager ? detail::kept_handle(t, id) : Tensor(t.epoch, id);
}

}  // namespace weft
