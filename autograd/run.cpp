#include "autograd/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "autograd/backward.h"
#include "autograd/context.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "jit/gpu.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;
thread_local Clock::time_point record_start;

constexpr std::size_t kPendingNodes = 4096;

// Records a copy of each value that is to survive; equal nodes share one.
struct Results {
  std::vector<NodeId> nodes;
  std::unordered_map<NodeId, std::size_t> of;

  std::size_t add(const Tensor& value) {
    const NodeId id = value.node();
    const auto [it, fresh] = of.try_emplace(id, nodes.size());
    if (fresh) nodes.push_back(copy(value, value.dtype(), tape().origins[id].where).node());
    return it->second;
  }
};

void commit(Tape& t) {
  for (const auto& f : t.commits) f();
  for (Rng* r : t.draws) r->set(r->seed(), r->tick() + 1);
  t.commits.clear();
  t.draws.clear();
}

// A live value that may still be differentiated: something outside the tape holds it, and it leads to a parameter.
bool differentiable(const Tape& t) {
  for (NodeId id = 0; id < t.kept.size(); ++id)
    if (t.kept[id] && t.kept[id].value()->references.load() > 1 && t.nodes[id].has(Node::requires_grad)) return true;
  return false;
}

bool has_effects(const Tape& t) {
  for (NodeId id = 0; id < t.nodes.size(); ++id)
    if (t.op(id).writes) return true;
  return false;
}

// A GPU and the libraries that its kernels need. A GPU that lacks them is worth a line.
bool gpu_is_usable() {
  if (missing_cuda_device()) return false;
  for (const CudaLibrary library : {CudaLibrary::nvrtc, CudaLibrary::cublas_lt})
    if (const auto missing = missing_library(library)) {
      fmt::print(stderr, "weft: there is a GPU, but {}; computing on the CPU\n      {}\n", *missing, install_line(library));
      return false;
    }
  return true;
}

}  // namespace

namespace detail {

Recording::Recording(Site where) {
  Context& c = context();
  if (c.recording())
    fail_at(where, "run: called inside run", "a step is one recording", "call the inner step's function directly");
  flush();
  c.step.clear();
  c.use(c.step);
  detail::gradients_on = true;
  record_start = Clock::now();
}

Recording::~Recording() {
  if (!open_) return;
  Context& c = context();
  c.step.clear();
  c.use(c.pending);
  detail::gradients_on = true;
  c.checkpointing = false;
  c.hold = 0;
}

void Recording::finish(std::vector<Tensor*>& results) {
  Context& c = context();
  Tape& t = c.step;
  check_states(t);
  keep_gradients();
  Results copies;
  std::vector<std::pair<Tensor*, std::size_t>> wanted;
  {
    const NoGrad off;
    for (Tensor* r : results)
      if (*r && !(r->value() && r->value()->memory && r->value()->epoch != t.epoch)) wanted.emplace_back(r, copies.add(*r));
  }
  c.stats.record_seconds = seconds_since(record_start);
  const std::vector<Tensor> values = execute(t, copies.nodes);
  commit(t);
  for (auto& [tensor, index] : wanted) *tensor = values[index];
  t.clear();
  c.use(c.pending);
  open_ = false;
}

std::unique_ptr<Plan> Recording::plan(Device device, std::vector<Tensor*>& results) {
  Tape& t = context().step;
  keep_gradients();
  Results copies;
  const NoGrad off;
  for (Tensor* r : results)
    if (*r) copies.add(*r);
  return schedule(t, copies.nodes, device);
}

}  // namespace detail

bool recording() { return context().recording(); }

void flush() {
  Context& c = context();
  if (c.recording()) fail_at(Site::current(), "flush: called inside run", "the step is only being recorded");
  Tape& t = c.pending;
  if (t.nodes.empty()) return;
  record_start = Clock::now();
  keep_gradients();
  Results copies;
  std::vector<std::pair<Tensor, std::size_t>> wanted;
  {
    const NoGrad off;
    ++c.hold;
    const std::size_t live = t.kept.size();
    for (NodeId id = 0; id < live; ++id) {
      const Tensor value = t.kept[id];
      if (value && value.value()->references.load() > 2 && !value.value()->memory)
        wanted.emplace_back(value, copies.add(value));
    }
    --c.hold;
  }
  const bool effects = has_effects(t);
  c.stats.record_seconds = 0;
  std::vector<Tensor> values;
  if (effects || !copies.nodes.empty()) {
    try {
      values = execute(t, copies.nodes);
    } catch (...) {
      t.clear();  // what was pending cannot run: it is gone, and its handles are dead
      throw;
    }
  }
  commit(t);
  for (auto& [tensor, index] : wanted) {
    tensor.value()->memory = values[index].value()->memory;
    tensor.value()->offset = values[index].value()->offset;
  }
  wanted.clear();
  // A forward pass whose loss was printed before backward() keeps its tape; its values are computed again then.
  if (!effects && differentiable(t))
    t.retained = true;
  else
    t.clear();
}

void state_dies(StateImpl& state) {
  if (!detail::active_tape) return;  // the thread is ending
  Context& c = context();
  if (state.position_epoch == c.step.epoch) {
    c.step.states[std::size_t(state.position)] = nullptr;
  } else if (state.position_epoch == c.pending.epoch && !c.recording()) {
    try {
      flush();
    } catch (const Error&) {  // the tape is cleared, its handles are dead
    }
    c.pending.clear();
  }
}

void check_states(const Tape& t) {
  if (std::find(t.states.begin(), t.states.end(), nullptr) != t.states.end())
    fail(ErrorKind::usage, "run: a state was destroyed while the step that uses it was being recorded", {},
         "keep models, parameters and caches alive until run returns");
}

void detail::keep_house(Tape& t) {
  if (context().hold > 0) return;
  if (t.retained && !differentiable(t)) t.clear();
  if (t.nodes.size() >= kPendingNodes && t.nodes.size() % kPendingNodes < 64 && t.frame < 0 && !differentiable(t)) flush();
}

const RunStats& last_run() { return context().stats; }

void use_device(std::string_view name, Site where) {
  if (recording())
    fail_at(where, "use_device: called inside run", "a step runs on one device", "choose the device before the step");
  Device chosen = Device::cpu;
  if (name == "cuda" || (name == "auto" && gpu_is_usable())) {
    chosen = Device::cuda;
  } else if (name == "emu") {
    chosen = Device::emu;
  } else if (name != "auto" && name != "cpu") {
    throw Error(ErrorKind::usage, {fmt::format("unknown device '{}'{}", name, suggestion(name, {"auto", "cpu", "cuda", "emu"})),
                                   {},
                                   tape().where(where, -1),
                                   "use auto, cpu, cuda or emu"});
  }
  if (is_gpu(chosen)) Gpu::of(chosen);  // says what is missing
  flush();
  context().device = chosen;
}

Device device() { return context().device; }

}  // namespace weft
