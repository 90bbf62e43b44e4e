#include "autograd/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <unordered_map>

#include "autograd/backward.h"
#include "autograd/context.h"
#include "autograd/gpu_plan.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/random.h"
#include "autograd/schedule.h"
#include "jit/gpu.h"
#include "jit/print.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;
thread_local Clock::time_point record_start;

// Records a copy of each value that is to survive; equal nodes share one.
struct Results {
  std::vector<NodeId> nodes;
  std::unordered_map<NodeId, std::size_t> of;

  std::size_t add(const Tensor& value, Site where) {
    const NodeId id = value.node(where);
    const auto [it, fresh] = of.try_emplace(id, nodes.size());
    if (fresh) nodes.push_back(copy(value, value.dtype(), tape().origins[id].where).node());
    return it->second;
  }
};

void commit(Tape& t) {
  for (const auto& f : t.commits) f();
  for (const auto& tick : t.draws) ++*tick;
  t.commits.clear();
  t.draws.clear();
}

std::atomic<Device>& process_device() {
  static std::atomic<Device> device = settings().device;
  return device;
}

// A GPU and the libraries that its kernels need. A GPU that lacks them is worth a line.
bool gpu_is_usable() {
  if (missing_cuda_device()) return false;
  for (const CudaLibrary library : {CudaLibrary::nvrtc, CudaLibrary::cublas_lt})
    if (const auto missing = missing_library(library)) {
      print_error("weft: there is a GPU, but {}; computing on the CPU\n      {}\n", *missing, install_line(library));
      return false;
    }
  return true;
}

}  // namespace

namespace detail {

RecordedFor::RecordedFor(const Target& target) : before_(std::exchange(context().recording, target)) {}
RecordedFor::~RecordedFor() { context().recording = before_; }

Recording::Recording(Site where) : where_(where) {
  if (recording())
    fail_at(where, "run: called inside run", "a step is one recording", "call the inner step's function directly");
  flush();
  look_at_watched();
  Tapes& t = tapes();
  t.step.clear();
  t.use(t.step);
  record_start = Clock::now();
}

Recording::~Recording() {
  if (!open_) return;
  Tapes& t = tapes();
  t.step.clear();
  t.use(t.pending);
  t.checkpointing = false;
  t.hold = 0;
}

void Recording::finish(std::vector<Tensor*>& results) {
  Tape& t = tapes().step;
  t.check_states(where_);
  keep_gradients();
  Results copies;
  std::vector<std::pair<Tensor*, std::size_t>> wanted;
  {
    const NoGrad off;
    for (Tensor* r : results)
      if (*r && !(r->value() && r->value()->memory && !r->value()->place.on(t.epoch)))
        wanted.emplace_back(r, copies.add(*r, where_));
  }
  context().stats.record_seconds = seconds_since(record_start);
  const std::vector<Tensor> values = execute(t, copies.nodes);
  commit(t);
  for (auto& [tensor, index] : wanted) *tensor = values[index];
  t.clear();
  tapes().use(tapes().pending);
  open_ = false;
  look_at_watched();
}

std::unique_ptr<Plan> Recording::plan(const Target& target, std::vector<Tensor*>& results) {
  Tape& t = tapes().step;
  keep_gradients();
  Results copies;
  const NoGrad off;
  for (Tensor* r : results)
    if (*r) copies.add(*r, where_);
  return schedule(t, copies.nodes, target);
}

}  // namespace detail

namespace {

std::vector<Tensor> execute_pending(Tape& t, const std::vector<NodeId>& results) {
  if (!t.retained) return execute(t, results);
  Remainder remainder(t, results);
  return execute(remainder.rest, remainder.results);
}

}  // namespace

void flush(Site where) {
  if (recording()) fail_at(where, "flush: called inside run", "the step is only being recorded");
  Tape& t = tapes().pending;
  if (t.nodes.empty()) return;
  if (t.outdated()) return t.clear();  // what another thread's writing left cannot be computed
  record_start = Clock::now();
  keep_gradients();
  Results copies;
  std::vector<std::pair<Tensor, std::size_t>> wanted;
  {
    const NoGrad off;
    ++tapes().hold;
    std::sort(t.handed_out.begin(), t.handed_out.end());
    for (const NodeId id : std::exchange(t.handed_out, {})) {
      const Tensor value = t.kept[id];
      if (value.value()->references.load() > 2 && !value.value()->memory) wanted.emplace_back(value, copies.add(value, Site()));
    }
    --tapes().hold;
  }
  const bool effects = has_effects(t);
  context().stats.record_seconds = 0;
  std::vector<Tensor> values;
  if (effects || !copies.nodes.empty()) {
    try {
      values = execute_pending(t, copies.nodes);
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
  // A forward pass whose loss was printed before backward() keeps its tape. Values that were read are not computed again; what
  // lies between them is.
  if (!effects && differentiable(t))
    t.retain(), t.executed = NodeId(t.nodes.size());
  else
    t.clear();
}

namespace {

std::uint64_t notices(Device device) { return is_gpu(device) ? Gpu::of(device).notices() : 0; }

}  // namespace

void watch(const std::shared_ptr<const Look>& look) {
  Context& c = context();
  std::erase_if(c.watched, [](const Watched& w) { return w.look.expired(); });
  if (std::ranges::none_of(c.watched, [&](const Watched& w) { return w.look.lock() == look; }))
    c.watched.push_back({look, device(), notices(device())});
}

void look_at_watched() {
  for (Watched& w : context().watched) {
    const std::uint64_t now = notices(w.device);
    if (is_gpu(w.device) && std::exchange(w.seen, now) == now) continue;
    if (const auto look = w.look.lock()) (*look)();
  }
}

const RunStats& last_run() { return context().stats; }

std::vector<KernelRecord> last_kernels() {
  std::vector<KernelRecord> out;
  if (const Plan* plan = context().last_plan)
    for (const PlannedKernel& k : plan->kernels) out.push_back(k.record);
  return out;
}

std::vector<double> time_last_plan(const std::vector<int>& cuts, int repeats) {
  const Context& c = context();
  if (!c.last_plan || !c.last_plan->gpu)
    fail(ErrorKind::usage, "time_last_plan: the last run was not on a GPU", {}, "use_device(\"cuda\")");
  return c.last_plan->gpu->time(*c.last_plan, cuts, repeats);
}

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
  if (on_main_thread())
    process_device() = chosen;
  else
    context().device = chosen;
}

Device device() { return context().device.value_or(process_device()); }
Target target() {
  if (!is_gpu(device())) return {};
  const Target own = Gpu::of(device()).target();
  const auto& wanted = settings().kernels;
  if (!wanted) return own;
  if (own.device == Device::cuda && wanted->sm_90a() && !own.sm_90a())
    fail(ErrorKind::usage, "WEFT_TARGET=sm_90a: this GPU has no such kernels", Gpu::of(device()).architecture(),
         "leave the variable out");
  return {own.device, wanted->capability, wanted->exact};
}
Target recorded_target() { return context().recording ? *context().recording : target(); }

}  // namespace weft
