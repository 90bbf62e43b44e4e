// What a thread records into: one tape for `run`, one for ops outside it, and the switches of the process.
#pragma once

#include <memory>
#include <string>

#include "autograd/plan.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "autograd/tape.h"

namespace weft {

struct Context {
  Tape step;     // inside run
  Tape pending;  // outside
  Tape* tape = &pending;
  bool gradients = true;
  bool checkpointing = false;
  int hold = 0;  // > 0: `pending` must not be flushed now (gradients are being recorded by node)
  Rng default_rng;
  Rng* rng = &default_rng;
  PlanCache plans;
  const Plan* last_plan = nullptr;  // owned by `plans`, where it is the most recent
  RunStats stats;

  bool recording() const { return tape == &step; }
};

Context& context();

// Housekeeping of the tape outside `run`, before an op is recorded: it is flushed when it has become long, and forgotten when
// nothing on it can be asked for any more.
void before_record();

// Adds gradients that nobody consumed to the Params' gradient States; called when a recording ends.
void keep_gradients();

// A handle of node `id` of the active tape; outside `run` one whose value is kept when the tape is flushed.
Tensor handle(NodeId id);

}  // namespace weft
