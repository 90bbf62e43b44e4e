#include "autograd/gpu_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "autograd/settings.h"
#include "jit/ranks/ranks.h"

namespace weft {
namespace {

constexpr std::size_t kSmallResult = 4096;  // bytes; such results of a step share one block, fetched at once

constexpr std::size_t kFlood = std::size_t(1) << 28;  // bytes, several times the L2 cache

std::size_t aligned(std::size_t bytes) { return (bytes + kPlacement - 1) / kPlacement * kPlacement; }

// What the ranks choose by timing is rank 0's choice on all of them: else their bits would be those of other algorithms. They
// prepare a plan with collectives together; in others of theirs, ranks but 0 time nothing (jit/gemm_cuda.h).
void prepare_alike(const Plan& plan, const std::function<void()>& prepare) {
  Ranks* const ranks = plan.collective.empty() || !tunes_gemms() ? nullptr : Ranks::joined();
  if (ranks && ranks->rank() != 0) use_gemm_choices(gemm_choices_from(ranks->share("the choice of algorithms", "")));
  if (!ranks || ranks->rank() != 0) return prepare();
  {
    const RankActivity choosing(RankBeat::busy, "algorithms are timed");
    prepare();
  }
  ranks->share("the choice of algorithms", to_text(gemm_choices()));
}

}  // namespace

GpuPlan::GpuPlan(Plan& plan, const Tape& tape, Device device) : device_(device), gpu_(Gpu::of(device)) {
  std::vector<const CudaKernel*> kernels;
  for (const PlannedKernel& k : plan.kernels)
    if (const auto* cuda = std::get_if<CudaKernelPointer>(&k.work)) kernels.push_back(cuda->get());
  gpu_.prepare(kernels);
  prepared_.resize(plan.kernels.size());
  const auto prepare = [&] {
    for (std::size_t k = 0; k < prepared_.size(); ++k)
      std::visit(
          by_kind{[](const Kernel&) {}, [&](const CudaKernelPointer& cuda) { prepared_[k].loaded = &gpu_.loaded(*cuda); },
                  [&](const GemmCall& call) { gpu_.prepare_gemm(call); }, [](const CollectiveCall&) {}},
          plan.kernels[k].work);
  };
  prepare_alike(plan, prepare);
  std::size_t at = aligned(tape.constants.size() * sizeof(double));
  constants_bytes_ = tape.constants.size() * sizeof(double);
  for (const Tensor& input : tape.bound) {
    input_at_.push_back(at);
    at += aligned(bytes_of(input.shape(), input.dtype()));
  }
  sent_bytes_ = small_begin_ = at;
  result_at_.resize(plan.results.size());
  for (const bool small : {true, false}) {
    for (std::size_t r = 0; r < plan.results.size(); ++r) {
      const std::size_t bytes = bytes_of(plan.results[r].shape, plan.results[r].dtype);
      if ((bytes <= kSmallResult) != small) continue;
      result_at_[r] = at;
      at += aligned(bytes);
    }
    if (small) small_end_ = at;
  }
  io_bytes_ = at;
}

// Every address is known once the plan's memory is: they never move, unless each value has an allocation of its own.
void GpuPlan::bind(Plan& plan, const Tape& tape, Arena& arena, Arena& io) {
  const bool split = settings().split_arena;
  if (!split) arena.grow(plan.arena_bytes);
  io.grow(io_bytes_);
  if (bound_) return;
  bound_ = true;
  plan.addresses.resize(plan.slots.size());
  for (std::size_t s = 0; s < plan.slots.size(); ++s) {
    const Slot& slot = plan.slots[s];
    switch (slot.kind) {
      case Slot::arena:
        plan.addresses[s] = split ? nullptr : arena.base() + slot.offset;
        break;
      case Slot::state:
        plan.addresses[s] = tape.states[std::size_t(slot.index)]->memory.data();
        break;
      case Slot::twin:
        plan.addresses[s] = tape.states[std::size_t(slot.index)]->make_twin().memory.data();
        break;
      case Slot::input:
        plan.addresses[s] = io.base() + input_at_[std::size_t(slot.index)];
        break;
      case Slot::result:
        plan.addresses[s] = io.base() + result_at_[std::size_t(slot.index)];
        break;
    }
  }
  if (!split)
    for (std::size_t k = 0; k < prepared_.size(); ++k) fill_args(plan, k, io);
}

void GpuPlan::fill_args(const Plan& plan, std::size_t k, Arena& io) {
  const auto* cuda = std::get_if<CudaKernelPointer>(&plan.kernels[k].work);
  if (!cuda) return;
  const CudaKernel& kernel = **cuda;
  Prepared& p = prepared_[k];
  auto word = [&](const CudaArg& arg) -> std::uint64_t {
    switch (arg.kind) {
      case CudaArg::pointer:
        return reinterpret_cast<std::uint64_t>(plan.addresses[std::size_t(arg.slot)]) + std::uint64_t(arg.value);
      case CudaArg::constants:
        return reinterpret_cast<std::uint64_t>(io.base());
      case CudaArg::status:
        return reinterpret_cast<std::uint64_t>(gpu_.status());
      case CudaArg::table:
        return reinterpret_cast<std::uint64_t>(p.tables[std::size_t(arg.value)]->data());
      case CudaArg::integer:
      case CudaArg::map:
        break;
    }
    return std::uint64_t(arg.value);
  };
  p.tables.clear();
  for (const auto& words : kernel.tables) {
    std::vector<std::uint64_t> values;
    for (const CudaArg& w : words) values.push_back(word(w));
    p.tables.push_back(std::make_unique<Memory>(device_, values.size() * sizeof(std::uint64_t), "a table of " + kernel.name));
    p.tables.back()->write(values.data());
  }
  p.args = {};
  for (const CudaArg& arg : kernel.args) {
    if (arg.kind == CudaArg::map) {
      const TmaMap& map = kernel.maps[std::size_t(arg.value)];
      p.args.add(gpu_.encode(map, plan.addresses[std::size_t(map.slot)]));
    } else {
      p.args.add(word(arg));
    }
  }
}

// Constants and host inputs by one copy through pinned memory, values that already are on this device by copies there.
void GpuPlan::send(const Tape& tape, Arena& io) {
  if (sent_bytes_ == 0) return;
  std::byte* staged = gpu_.stage(sent_bytes_);
  if (constants_bytes_) std::memcpy(staged, tape.constants.data(), constants_bytes_);
  for (std::size_t i = 0; i < tape.bound.size(); ++i) {
    const Value& v = *tape.bound[i].value();
    if (v.memory->device() != device_)
      std::memcpy(staged + input_at_[i], v.memory->host() + v.offset, bytes_of(v.shape, v.dtype));
  }
  gpu_.send_staged(io.base(), sent_bytes_);
  for (std::size_t i = 0; i < tape.bound.size(); ++i) {
    const Value& v = *tape.bound[i].value();
    if (v.memory->device() == device_)
      gpu_.copy(io.base() + input_at_[i], v.memory->data() + v.offset, bytes_of(v.shape, v.dtype));
  }
}

void GpuPlan::launch(const Plan& plan, std::size_t k) {
  std::visit(by_kind{[](const Kernel&) {},  // the scheduler makes none for a GPU
                     [&](const CudaKernelPointer& cuda) { gpu_.launch(*cuda, *prepared_[k].loaded, prepared_[k].args); },
                     [&](const GemmCall& call) { gpu_.gemm(call, plan.addresses.data()); },
                     [&](const CollectiveCall& call) {
                       gpu_.collective(call, plan.addresses.data(), Ranks::joined()->collectives(device_));
                     }},
             plan.kernels[k].work);
}

namespace {

// WEFT_ARENA=split: inputs and results with an allocation of their own too, so that what runs over an end is seen.
class SplitRegion {
 public:
  SplitRegion(Plan& plan, Device device) : plan_(plan), gpu_(Gpu::of(device)), places_(plan.addresses) {
    for (std::size_t s = 0; s < plan.slots.size(); ++s) {
      const Slot& slot = plan.slots[s];
      if (slot.kind != Slot::input && slot.kind != Slot::result) continue;
      slots_.push_back(s);
      values_.push_back(std::make_unique<Memory>(device, slot.bytes, fmt::format("{} {}", slot.name, slot.index)));
      plan_.addresses[s] = values_.back()->data();
      if (slot.kind == Slot::input) gpu_.copy(values_.back()->data(), places_[s], slot.bytes);
    }
  }
  ~SplitRegion() {
    for (const std::size_t s : slots_) plan_.addresses[s] = places_[s];
  }
  void fetch_results() {
    for (std::size_t k = 0; k < slots_.size(); ++k)
      if (plan_.slots[slots_[k]].kind == Slot::result) gpu_.copy(places_[slots_[k]], values_[k]->data(), values_[k]->size());
  }

 private:
  Plan& plan_;
  Gpu& gpu_;
  std::vector<std::byte*> places_;  // in the region, by slot
  std::vector<std::size_t> slots_;
  std::vector<std::unique_ptr<Memory>> values_;  // of slots_
};

}  // namespace

// Kernel by kernel: the first time, so that an error has a name, and where memory or switches change from kernel to kernel.
void GpuPlan::launch_each(Plan& plan, Arena& io) {
  const Settings& s = settings();
  std::optional<SplitMemory> memory;
  std::optional<SplitRegion> region;
  if (s.split_arena) memory.emplace(plan, device_), region.emplace(plan, device_);
  for (std::size_t k = 0; k < plan.kernels.size(); ++k) {
    const PlannedKernel& kernel = plan.kernels[k];
    try {
      if (memory) {
        memory->before(int(k));
        fill_args(plan, k, io);
      }
      launch(plan, k);
      if (s.split_arena || s.check_nan || runs_ == 0) gpu_.synchronize();
      if (s.check_nan) check_finite(plan, kernel, device_);
    } catch (const Error& e) {
      throw at_kernel(kernel, e);
    }
    if (memory) memory->after(int(k));
  }
  if (region) region->fetch_results();
}

// While a graph is captured: collectives beside what does not need them yet.
void GpuPlan::launch_all(const Plan& plan) {
  std::vector<std::pair<int, int>> flying;  // the kernel that waits for it, and which it is
  const auto land = [&](int kernel) {
    std::erase_if(flying, [&](const auto& f) {
      if (f.first > kernel) return false;
      gpu_.wait_for(f.second);
      return true;
    });
  };
  for (std::size_t k = 0; k < plan.kernels.size(); ++k) {
    land(int(k));
    const auto* call = std::get_if<CollectiveCall>(&plan.kernels[k].work);
    if (call && settings().overlap)
      flying.emplace_back(plan.kernels[k].join,
                          gpu_.collective_beside(*call, plan.addresses.data(), Ranks::joined()->collectives(device_)));
    else
      launch(plan, k);
  }
  land(int(plan.kernels.size()));
}

std::vector<Tensor> GpuPlan::results(const Plan& plan, const Arena& io) const {
  std::vector<Tensor> out;
  std::shared_ptr<Memory> small;
  if (!plan.results.empty()) {
    small = std::make_shared<Memory>(device_, small_end_ - small_begin_, "the results of a step");
    gpu_.copy(small->data(), io.base() + small_begin_, small->size());
  }
  for (std::size_t r = 0; r < plan.results.size(); ++r) {
    auto* v = new Value;
    out.push_back(Tensor::of_value(v));
    v->dtype = plan.results[r].dtype;
    v->shape = plan.results[r].shape;
    const std::size_t bytes = bytes_of(plan.results[r].shape, plan.results[r].dtype);
    if (bytes <= kSmallResult) {
      v->memory = small;
      v->offset = result_at_[r] - small_begin_;
    } else {
      v->memory = std::make_shared<Memory>(device_, bytes, "a result " + to_string(v->shape));
      gpu_.copy(v->memory->data(), io.base() + result_at_[r], bytes);
    }
  }
  return out;
}

std::vector<Tensor> GpuPlan::run(Plan& plan, const Tape& tape, Arena& arena, Arena& io) {
  const Settings& s = settings();
  bind(plan, tape, arena, io);
  send(tape, io);
  // Everything is loaded after the first run: the second is captured.
  if (s.split_arena || s.check_nan || !s.graph || runs_ == 0 || plan.kernels.empty()) {
    launch_each(plan, io);
  } else {
    if (!graph_) gpu_.capture(graph_, s.follow, [&] { launch_all(plan); });
    gpu_.launch(graph_);
  }
  ++runs_;
  return results(plan, io);
}

std::vector<double> GpuPlan::time(const Plan& plan, const std::vector<int>& cuts, int repeats) {
  const Memory flood(device_, gpu_.emulated() ? 1 : kFlood, "what empties the caches");
  std::vector<std::vector<double>> times(cuts.size() - 1);
  for (int r = 0; r < repeats; ++r)
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      gpu_.fill(flood.data(), 0, flood.size());  // also keeps the GPU busy while the host gets ahead
      times[i].push_back(gpu_.timed([&] {
        for (int k = cuts[i]; k < cuts[i + 1]; ++k) launch(plan, std::size_t(k));
      }));
    }
  std::vector<double> medians;
  for (auto& t : times) {
    std::nth_element(t.begin(), t.begin() + std::ptrdiff_t(t.size() / 2), t.end());
    medians.push_back(t[t.size() / 2]);
  }
  return medians;
}

}  // namespace weft
