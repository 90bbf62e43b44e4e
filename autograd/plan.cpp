#include "autograd/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>

#include <xxhash.h>

#include "autograd/context.h"
#include "autograd/gpu_plan.h"
#include "autograd/schedule.h"
#include "autograd/settings.h"
#include "jit/parallel.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

std::uint8_t switches() {
  const Settings& s = settings();
  return std::uint8_t(s.fuse | s.split_arena << 1 | s.check_nan << 2 | contraction() << 3 | int(s.products) << 4);
}

template <class T>
std::uint64_t hash(const std::vector<T>& data, std::uint64_t seed) {
  return XXH3_64bits_withSeed(data.data(), data.size() * sizeof(T), seed);
}

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace

namespace {

void add_text(std::vector<std::uint64_t>& words, std::string_view text) {
  words.push_back(XXH3_64bits(text.data(), text.size()));
}

// What the ints of a node stand for.
void add_ints(std::vector<std::uint64_t>& words, const Tape& tape, NodeId id) {
  const Op& op = tape.op(id);
  for (int h = 0; h < int(op.holes.size()); ++h) {
    const HoleView hole = hole_of(tape, id, h);
    for (const Expr root : hole.roots) words.push_back(root.hash());
    for (const int count : {int(hole.roots.size()), hole.captured, hole.first_input, hole.first_slot, hole.slots})
      words.push_back(std::uint64_t(count));
  }
  if (op.identity) return words.push_back(op.identity(tape, id));
  for (const std::int64_t value : plain_ints(tape, id)) words.push_back(std::uint64_t(value));
}

}  // namespace

std::uint64_t plan_hash(const Tape& tape, const std::vector<NodeId>& results, const Target& target) {
  std::vector<std::uint64_t> words = {std::uint64_t(target.device), std::uint64_t(target.capability), target.exact, switches()};
  for (NodeId id = 0; id < tape.nodes.size(); ++id) {
    const Node& node = tape.nodes[id];
    add_text(words, tape.op(id).name);
    for (const std::uint64_t word : {std::uint64_t(node.dtype), std::uint64_t(node.flags), std::uint64_t(node.outputs),
                                     std::uint64_t(node.inputs), std::uint64_t(node.constants)})
      words.push_back(word);
    words.push_back(node.constants > 0 ? node.first_constant : 0);
    for (const NodeId input : tape.inputs_of(id)) words.push_back(input);
    words.push_back(std::uint64_t(node.rank));
    const Shape shape = node.shape();  // a range-for keeps no temporary but its range
    for (const std::int64_t dim : shape.dims()) words.push_back(std::uint64_t(dim));
    add_ints(words, tape, id);
  }
  for (const StateImpl* state : tape.states) {
    add_text(words, state->name);
    words.push_back(std::uint64_t(state->dtype) << 1 | state->parameter);
    for (const std::int64_t dim : state->shape.dims()) words.push_back(std::uint64_t(dim));
  }
  words.insert(words.end(), results.begin(), results.end());
  return hash(words, 0);
}

Plan::Plan() = default;
Plan::~Plan() = default;

bool PlanCache::Key::matches(const Tape& tape, const std::vector<NodeId>& wanted) const {
  return switches == weft::switches() && target == weft::target() && same_bytes(nodes, tape.nodes) &&
         same_bytes(inputs, tape.inputs) && same_bytes(ints, tape.ints) && same_bytes(states, tape.state_ids) &&
         same_bytes(results, wanted);
}

Plan* PlanCache::find(const Tape& tape, const std::vector<NodeId>& results) {
  // Mostly it is the plan that ran last: comparing costs less than hashing.
  if (!entries_.empty() && entries_.front().key.matches(tape, results)) return entries_.front().plan.get();
  hash_ = hash(tape.nodes, switches());
  hash_ = hash(tape.inputs, hash_);
  hash_ = hash(tape.ints, hash_);
  hash_ = hash(tape.state_ids, hash_);
  hash_ = hash(results, hash_);
  const auto [begin, end] = index_.equal_range(hash_);
  for (auto it = begin; it != end; ++it) {
    if (!it->second->key.matches(tape, results)) continue;
    entries_.splice(entries_.begin(), entries_, it->second);
    return entries_.front().plan.get();
  }
  note_miss(tape);
  return nullptr;
}

std::size_t Plan::bytes() const {
  // Beside the strings: a kernel's function or text with its arguments, and on a GPU its node of a graph.
  constexpr std::size_t kKernel = 2048, kGraphNode = 4096;
  std::size_t total = sizeof *this + slots.size() * (sizeof(Slot) + sizeof(std::byte*)) + results.size() * sizeof(Out);
  for (const Slot& s : slots) total += s.name.size() + s.where.size();
  for (const PlannedKernel& k : kernels) {
    total += sizeof k + kKernel + (std::holds_alternative<Kernel>(k.work) ? 0 : kGraphNode) + k.where.size() +
             k.record.name.size() + k.record.where.size() + k.outputs.size() * sizeof(Operand);
    for (const std::string& reason : k.record.reasons) total += sizeof reason + reason.size();
  }
  return total + (twins ? twins->bytes() : 0);
}

std::size_t PlanCache::Key::bytes() const {
  return nodes.size() * sizeof(Node) + (inputs.size() + results.size()) * sizeof(NodeId) +
         (ints.size() + states.size()) * sizeof(std::int64_t);
}

void PlanCache::drop_last() {
  const auto last = std::prev(entries_.end());
  const auto [begin, end] = index_.equal_range(last->hash);
  for (auto it = begin; it != end; ++it)
    if (it->second == last) {
      index_.erase(it);
      break;
    }
  bytes_ -= last->bytes;
  entries_.pop_back();
}

Plan* PlanCache::insert(const Tape& tape, const std::vector<NodeId>& results, std::unique_ptr<Plan> plan) {
  entries_.push_front(
      {hash_, {tape.nodes, tape.inputs, results, tape.ints, tape.state_ids, switches(), target()}, std::move(plan), 0});
  Entry& entry = entries_.front();
  entry.bytes = entry.key.bytes() + entry.plan->bytes();
  bytes_ += entry.bytes;
  index_.emplace(hash_, entries_.begin());
  while (entries_.size() > 1 && bytes_ > settings().plan_bytes) drop_last();  // never the one that runs
  return entry.plan.get();
}

void PlanCache::clear() {
  index_.clear();
  entries_.clear();
  bytes_ = 0;
}

// An integer is structure: one that changes every step makes every step a new plan. Three misses in a row in which nothing but
// one integer at the same place is new are named. What an op keeps in its integers may be the number of an expression, which
// says nothing to anybody.
void PlanCache::note_miss(const Tape& tape) {
  std::size_t differences = 0, at = 0;
  if (same_bytes(tape.nodes, missed_nodes_) && tape.ints.size() == missed_ints_.size())
    for (std::size_t i = 0; i < tape.ints.size(); ++i)
      if (tape.ints[i] != missed_ints_[i]) ++differences, at = i;
  misses_ = differences == 1 && (misses_ == 0 || at == missed_at_) ? misses_ + 1 : 0;
  // A real constant of an expression makes six of it: those of 0, 1, -1, 2, 1/2 and of any other number. Then all are known.
  constexpr int kPatience = 3, kPatienceWithExpressions = 8;
  if (misses_ == kPatience || misses_ == kPatienceWithExpressions)
    for (NodeId id = 0; id < tape.nodes.size(); ++id) {
      const Node& n = tape.nodes[id];
      if (at < n.first_int || at >= std::size_t(n.first_int) + n.ints) continue;
      const std::size_t k = at - n.first_int;
      const bool expression = tape.op(id).identity || k < n.ints - plain_ints(tape, id).size();
      if (misses_ != (expression ? kPatienceWithExpressions : kPatience)) continue;
      if (expression)
        print_error(
            "weft: an expression changes every step, so every step is planned anew: {} {}\n"
            "      an integer in it is another one each time; pass what changes as a Scalar\n",
            tape.name(id), tape.where(id));
      else
        print_error(
            "weft: an integer changes every step, so every step is planned anew: {} {}\n"
            "      its integer {} was {} and is {}; pass what changes as a Scalar or a tensor\n",
            tape.name(id), tape.where(id), k, missed_ints_[at], tape.ints[at]);
    }
  missed_at_ = at;
  missed_ints_ = tape.ints;
  missed_nodes_ = tape.nodes;
}

// ---- execution --------------------------------------------------------------------------------------------------------------

namespace {

Tensor make_result(const Out& out) {
  auto* v = new Value;
  v->dtype = out.dtype;
  v->shape = out.shape;
  v->memory = std::make_shared<Memory>(Device::cpu, bytes_of(out.shape, out.dtype), "a result");
  return Tensor::of_value(v);
}

// The values that are alive where most bytes are, largest first: what a person can do something about.
std::string largest_values(const Plan& plan) {
  std::size_t most = 0;
  int peak = 0;
  for (int k = 0; k < int(plan.kernels.size()); ++k) {
    std::size_t bytes = 0;
    for (const Slot& s : plan.slots)
      if (s.kind == Slot::arena && s.first <= k && k <= s.last) bytes += s.bytes;
    if (bytes > most) most = bytes, peak = k;
  }
  std::vector<const Slot*> alive;
  for (const Slot& s : plan.slots)
    if (s.kind == Slot::arena && s.first <= peak && peak <= s.last) alive.push_back(&s);
  std::stable_sort(alive.begin(), alive.end(), [](const Slot* a, const Slot* b) { return a->bytes > b->bytes; });
  std::string out = fmt::format("{:.2f} GB of values; the largest when kernel {} of {} runs:", double(plan.arena_bytes) / 1e9,
                                peak + 1, plan.kernels.size());
  for (std::size_t i = 0; i < std::min<std::size_t>(5, alive.size()); ++i)
    out += fmt::format("\n    {:9.1f} MB  {} {}", double(alive[i]->bytes) / 1e6, alive[i]->name, alive[i]->where);
  return out;
}

}  // namespace

void check_finite(const Plan& plan, const PlannedKernel& kernel, Device where) {
  const Launch launch{plan.addresses.data(), nullptr};
  for (const Operand& o : kernel.outputs) {
    if (!o || !is_real(o.dtype) || o.numel() == 0) continue;
    View view = launch.view(o);
    std::vector<std::byte> fetched;
    if (is_gpu(where)) {
      std::int64_t extent = 1;
      for (int i = 0; i < o.rank; ++i) extent += (o.dims[std::size_t(i)] - 1) * o.strides[std::size_t(i)];
      fetched.resize(std::size_t(extent) * size_of(o.dtype));
      Gpu::of(where).read(fetched.data(), view.data, fetched.size());
      view.data = fetched.data();
    }
    double buffer[kBlock];
    for (std::int64_t first = 0; first < view.numel(); first += kBlock) {
      const int n = int(std::min<std::int64_t>(kBlock, view.numel() - first));
      const auto* values = static_cast<const double*>(read_block<double>(view, ExprType::real, first, n, buffer));
      for (int i = 0; i < n; ++i)
        if (!std::isfinite(values[i]))
          throw Error(ErrorKind::training,
                      {fmt::format("{}: made a non-finite value", kernel.record.where),
                       fmt::format("{} at element {} of kernel {}", values[i], first + i, kernel.record.name), kernel.where,
                       "lower the learning rate, clip gradients, or check the input"});
    }
  }
}

SplitMemory::~SplitMemory() {
  for (std::size_t s = 0; s < values_.size(); ++s) drop(s);
}

void SplitMemory::drop(std::size_t slot) {
  if (!values_[slot]) return;
  values_[slot].reset();
  plan_.addresses[slot] = nullptr;
}

void SplitMemory::before(int kernel) {
  for (std::size_t s = 0; s < values_.size(); ++s)
    if (const Slot& slot = plan_.slots[s]; slot.kind == Slot::arena && slot.first == kernel) {
      values_[s] = std::make_unique<Memory>(device_, slot.bytes, slot.name);
      // NaN: what is read before it is written shows. The emulated device knows by itself what nobody wrote.
      if (device_ != Device::emu) values_[s]->fill(0xff);
      plan_.addresses[s] = values_[s]->data();
    }
}

void SplitMemory::after(int kernel) {
  for (std::size_t s = 0; s < values_.size(); ++s)
    if (plan_.slots[s].last == kernel) drop(s);
}

Error at_kernel(const PlannedKernel& kernel, const Error& error, std::string_view more) {
  ErrorParts parts = error.parts();
  if (parts.where.empty()) parts.where = kernel.where;
  parts.hint += more;
  return Error(error.kind(), parts);
}

namespace {

// A plan belongs to its States, whose addresses never move; inputs and results are elsewhere at every run.
void bind_slots(Plan& plan, const Tape& tape, const std::vector<Tensor>& results, Arena& arena) {
  const bool split = settings().split_arena;
  if (!split) arena.grow(plan.arena_bytes);
  if (plan.addresses.empty()) {
    plan.addresses.resize(plan.slots.size());
    for (std::size_t s = 0; s < plan.slots.size(); ++s) {
      const Slot& slot = plan.slots[s];
      if (slot.kind == Slot::arena)
        plan.addresses[s] = split ? nullptr : arena.base() + slot.offset;
      else if (slot.kind == Slot::state)
        plan.addresses[s] = tape.states[std::size_t(slot.index)]->memory.data();
      else if (slot.kind == Slot::twin)
        plan.addresses[s] = tape.states[std::size_t(slot.index)]->make_twin().memory.data();
      else
        plan.moving.push_back(int(s));
    }
  }
  for (const int s : plan.moving) {
    const Slot& slot = plan.slots[std::size_t(s)];
    const Tensor& value = slot.kind == Slot::input ? tape.bound[std::size_t(slot.index)] : results[std::size_t(slot.index)];
    const Value& v = *value.value();  // one that was computed elsewhere is read from its copy on the host
    plan.addresses[std::size_t(s)] = const_cast<std::byte*>(v.memory->host()) + v.offset;
  }
}

void launch_all(Plan& plan, const Tape& tape) {
  const Settings& s = settings();
  const Launch launch{plan.addresses.data(), tape.constants.data()};
  std::optional<SplitMemory> memory;
  if (s.split_arena) memory.emplace(plan, Device::cpu);
  bool wrote = false;
  for (std::size_t k = 0; k < plan.kernels.size(); ++k) {
    const PlannedKernel& kernel = plan.kernels[k];
    if (memory) memory->before(int(k));
    try {
      std::get<Kernel>(kernel.work)(launch);
      if (s.check_nan) check_finite(plan, kernel, Device::cpu);
    } catch (const Error& e) {
      throw at_kernel(kernel, e, wrote ? "\n  the step had already written states: load a checkpoint" : "");
    }
    wrote |= kernel.writes_state;
    if (memory) memory->after(int(k));
  }
}

// A State lives on the device that was in use when it was made.
void check_devices(const Tape& tape, Device device) {
  for (std::size_t k = 0; k < tape.states.size(); ++k)
    if (const StateImpl& s = *tape.states[k]; s.memory.device() != device)
      throw Error(ErrorKind::usage,
                  {fmt::format("state '{}' lives on another device than the step", s.name),
                   fmt::format("{} against {}", name_of(s.memory.device()), name_of(device)), tape.where_used(std::int32_t(k)),
                   "call use_device before models, parameters and caches are made"});
}

void log_plan(const Plan& plan) {
  const Settings& s = settings();
  if (s.log_plan)
    print_error("weft: plan of {} kernels, {:.1f} MB of values\n", plan.kernels.size(), double(plan.arena_bytes) / 1e6);
  if (!s.log_kernels && !s.log_why) return;
  for (const PlannedKernel& k : plan.kernels) {
    print_error("  {:48} {}\n", k.record.name, k.record.where);
    if (s.log_why)
      for (const std::string& r : k.record.reasons) print_error("      {}\n", r);
  }
}

// One execution, and when all that it needs was there.
std::vector<Tensor> launch(Plan& plan, const Tape& tape, Context& c, Clock::time_point& bound) {
  std::vector<Tensor> values;
  if (!is_gpu(device())) {
    for (const Out& out : plan.results) values.push_back(make_result(out));
    bind_slots(plan, tape, values, c.plans.arena());
    bound = Clock::now();
    launch_all(plan, tape);
    return values;
  }
  if (!plan.gpu) plan.gpu = std::make_unique<GpuPlan>(plan, tape, device());
  bound = Clock::now();
  try {
    return plan.gpu->run(plan, tape, c.plans.arena(), c.plans.io());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::device) throw;
    ErrorParts parts = e.parts();
    parts.numbers += "\n  " + largest_values(plan);
    throw Error(e.kind(), parts);
  }
}

// Before a plan runs: the twins that it reads are made equal to their States, and those that it will leave behind are marked.
void refresh_twins(const Plan& plan, const Tape& tape, Context& c) {
  if (plan.twins) {
    std::vector<StateImpl*> read;
    for (const Slot& s : plan.twins->slots)
      if (s.kind == Slot::twin) read.push_back(tape.states[std::size_t(s.index)]);
    if (std::any_of(read.begin(), read.end(), [](const StateImpl* s) { return !s->twin || s->twin->stale; })) {
      Clock::time_point bound;
      launch(*plan.twins, tape, c, bound);
      for (StateImpl* s : read) s->twin->stale = false;
    }
  }
  for (const int s : plan.outdated) tape.states[std::size_t(s)]->outdate_twin();
}

}  // namespace

std::vector<Tensor> execute(Tape& tape, const std::vector<NodeId>& results) {
  Context& c = context();
  RunStats& stats = c.stats;
  const auto start = Clock::now();
  Plan* plan = c.plans.find(tape, results);
  stats.replayed = plan != nullptr;
  stats.plan_seconds = 0;
  if (!plan) {
    const auto planning = Clock::now();
    plan = c.plans.insert(tape, results, schedule(tape, results, target()));
    stats.plan_seconds = seconds_since(planning);
    log_plan(*plan);
  }
  c.last_plan = plan;
  check_devices(tape, device());
  if (Ranks* const ranks = plan->collective.empty() ? nullptr : Ranks::joined()) ranks->step(plan->hash, plan->collective);
  refresh_twins(*plan, tape, c);
  states_change(tape, plan->written);
  Clock::time_point bound;
  const std::vector<Tensor> values = launch(*plan, tape, c, bound);
  stats.lookup_seconds = std::chrono::duration<double>(bound - start).count() - stats.plan_seconds;
  stats.kernel_seconds = seconds_since(bound);
  stats.graph = plan->gpu && plan->gpu->graph();
  stats.nodes = int(tape.nodes.size());
  stats.kernels = int(plan->kernels.size());
  stats.arena_bytes = plan->arena_bytes;
  stats.plans = c.plans.size();
  return values;
}

}  // namespace weft
