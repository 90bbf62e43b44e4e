#include "autograd/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include <xxhash.h>

#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "jit/parallel.h"

namespace weft {
namespace {

double price(Expr e) {
  const ExprCost c = cost_of(std::span(&e, 1));
  return c.simple + kSpecialPrice * c.special;
}

// ---- the pointwise kernel ---------------------------------------------------------------------------------------------------

template <class T>
void run_pointwise(const Launch& launch, const Fused& fused, std::span<const Operand> outputs, std::int64_t n) {
  parallel((n + kPart - 1) / kPart, [&](std::int64_t part) {
    Runner<T> runner(launch, fused);
    const std::size_t count = outputs.size();
    std::vector<View> views;
    std::vector<char> in_place(count);  // may be written while the program runs: aliases nothing that it reads
    for (std::size_t k = 0; k < count; ++k) {
      views.push_back(collapse(launch.view(outputs[k])));
      in_place[k] = std::none_of(fused.leaves.begin(), fused.leaves.end(),
                                 [&](const Operand& leaf) { return leaf.slot == outputs[k].slot; });
    }
    std::vector<std::array<double, kBlock>> buffers(count);
    std::vector<void*> to(count);
    for (std::int64_t first = part * kPart; first < std::min(n, (part + 1) * kPart); first += kBlock) {
      const int m = int(std::min<std::int64_t>(kBlock, n - first));
      for (std::size_t k = 0; k < count; ++k) {
        void* direct = in_place[k] ? direct_block<T>(views[k], fused.program.output_type(int(k)), first, m) : nullptr;
        to[k] = direct ? direct : buffers[k].data();
      }
      runner.run(first, m, {}, to);
      for (std::size_t k = 0; k < count; ++k)
        if (to[k] == buffers[k].data()) write_block<T>(views[k], fused.program.output_type(int(k)), first, m, to[k]);
    }
  });
}

Kernel pointwise_kernel(Fused fused, std::vector<Operand> outputs, std::int64_t n, bool in_double) {
  return
      [fused = std::make_shared<const Fused>(std::move(fused)), outputs = std::move(outputs), n, in_double](const Launch& l) {
        if (n == 0) return;
        in_double ? run_pointwise<double>(l, *fused, outputs, n) : run_pointwise<float>(l, *fused, outputs, n);
      };
}

}  // namespace

Scheduler::Scheduler(const Tape& tape, const std::vector<NodeId>& results, const Target& target)
    : target_(target), gpu_(is_gpu(target.device)), t_(tape), results_(results), plan_(std::make_unique<Plan>()) {
  const std::size_t n = t_.nodes.size();
  kind_.resize(n);
  for (NodeId id = 0; id < n; ++id) {
    const Op& op = t_.op(id);
    kind_[id] = &op == &pointwise_op() || &op == &assign_op() ? Kind::pointwise
                : &op == &output_op()                         ? Kind::output
                : op.view                                     ? Kind::view
                : op.lower                                    ? Kind::structured
                                                              : Kind::leaf;
  }
  live_.resize(n);
  read_.resize(n);
  stored_.resize(n);
  snapshot_.resize(n);
  resolved_.resize(n);
  users_.resize(n);
  readers_.resize(n);
  expr_.resize(n);
  reason_.resize(n);
  operand_.resize(n);
  registers_.resize(n);
  leaf_of_.resize(n);
  constant_of_.resize(t_.constants.size() + 3);
  group_of_.assign(n, -1);
  guest_group_.assign(n, -1);
  assigned_.assign(t_.states.size(), -1);
  state_slot_.assign(t_.states.size(), -1);
  twin_slot_.assign(t_.states.size(), -1);
  twin_reader_.assign(t_.states.size(), Tape::kNone);
  twin_written_.resize(t_.states.size());
}

std::unique_ptr<Plan> Scheduler::run() {
  mark_live();
  find_users();
  if (gpu_ && settings().fuse && !settings().check_nan) write_in_place();
  if (settings().products != Products::none && settings().fuse && !settings().check_nan) fuse_products();
  fuse();
  find_readers();
  group();
  find_hosts();
  merge_small();
  find_snapshots();
  place_outputs();
  emit_all();
  assign_memory();
  for (std::size_t p = 0; p < assigned_.size(); ++p)
    if (assigned_[p] >= 0) plan_->written.push_back(int(p));
  plan_twins();
  return std::move(plan_);
}

std::unique_ptr<Plan> schedule(const Tape& tape, const std::vector<NodeId>& results, const Target& target) {
  std::unique_ptr<Plan> plan = Scheduler(tape, results, target).run();
  plan->hash = plan_hash(tape, results, target);
  return plan;
}

// ---- analysis ---------------------------------------------------------------------------------------------------------------

// A node lives if a result or a write of a State depends on it. `read_` tells outputs that somebody looks at.
void Scheduler::mark_live() {
  std::vector<NodeId> todo;
  auto need = [&](NodeId id) {
    read_[id] = 1;
    if (kind_[id] == Kind::output) {
      live_[id] = 1;
      id = t_.inputs_of(id)[0];
    }
    if (!live_[id]) live_[id] = 1, todo.push_back(id);
  };
  for (const NodeId id : results_) need(id);
  for (NodeId id = 0; id < t_.nodes.size(); ++id)
    if (const Op& op = t_.op(id); op.writes) {
      if (!live_[id]) live_[id] = 1, todo.push_back(id);
      std::vector<std::int32_t> positions;
      op.writes(t_, id, positions);
      for (const std::int32_t p : positions) assigned_[std::size_t(p)] = id;
    }
  while (!todo.empty()) {
    const NodeId id = todo.back();
    todo.pop_back();
    for (const NodeId input : t_.inputs_of(id))
      if (input != Tape::kNone) need(input);
  }
}

void Scheduler::find_users() {
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!live_[id] || kind_[id] == Kind::output) continue;
    for (const NodeId input : t_.inputs_of(id))
      if (input != Tape::kNone && (users_[input].empty() || users_[input].back() != id)) users_[input].push_back(id);
  }
}

// ---- States -----------------------------------------------------------------------------------------------------------------

// What a step of a recurrence leaves is written to its State by the kernel that computes it, over what that has read.
void Scheduler::write_in_place() {
  std::vector<std::vector<NodeId>> reads(t_.states.size());  // of each State as it was before the step
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!live_[id]) continue;
    if (t_.nodes[id].op == state_op().id) reads[std::size_t(t_.ints_of(id)[0])].push_back(id);
    if (&t_.op(id) != &assign_op()) continue;
    const NodeId value = t_.inputs_of(id)[0], producer = kind_[value] == Kind::output ? t_.inputs_of(value)[0] : value;
    const auto position = std::size_t(t_.ints_of(id)[0]);
    if (!may_write(producer, value, id, reads[position])) continue;
    kind_[id] = Kind::absorbed;
    assigned_[position] = producer;
    written_at_once_.push_back(id);
  }
}

// Output `value` of `producer` may be written where `assign` puts it; nobody else needs what stood there.
bool Scheduler::may_write(NodeId producer, NodeId value, NodeId assign, std::span<const NodeId> reads) const {
  const Op& op = t_.op(producer);
  if (kind_[producer] != Kind::structured || op.writes || op.product) return false;
  if (users_[value].size() != 1 || result_of(value) >= 0 || t_.nodes[value].dtype != t_.nodes[assign].dtype) return false;
  if (t_.states[std::size_t(t_.ints_of(assign)[0])]->parameter) return false;  // which has a twin
  const auto inputs = t_.inputs_of(producer);
  const auto in_place = [&](NodeId read) {
    for (std::size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i] == read && !(op.in_place && op.in_place(t_, producer, int(i), int(value - producer)))) return false;
    return std::all_of(users_[read].begin(), users_[read].end(), [&](NodeId user) { return user == producer; });
  };
  return std::all_of(reads.begin(), reads.end(), [&](NodeId read) { return result_of(read) < 0 && in_place(read); });
}

// ---- products ---------------------------------------------------------------------------------------------------------------

// A product takes over the pointwise nodes that follow it, each the only reader of the one before, as far as its library goes:
// a sum with a tensor and one with a bias, then an activation.
void Scheduler::fuse_products() {
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!live_[id] || !t_.op(id).product) continue;
    Product product{id};
    while (absorb_reader(id, product)) kind_[product.last] = Kind::absorbed;
    if (product.last != id) product_at_[product.last] = id;
    products_.emplace(id, std::move(product));
  }
}

// Somebody reads the value from memory, whatever the prices are.
bool Scheduler::read_from_memory(NodeId id) const {
  return result_of(id) >= 0 || std::any_of(users_[id].begin(), users_[id].end(), [&](NodeId user) {
           if (is_pointwise(user)) return false;
           const Op& op = t_.op(user);
           const auto inputs = t_.inputs_of(user);
           for (std::size_t i = 0; i < inputs.size(); ++i)
             if (inputs[i] == id && !(kind_[user] == Kind::structured && i < 32 && (op.prologues >> i & 1))) return true;
           return false;
         });
}

// Fuses the reader of what `product` computes so far into it, or says why not.
bool Scheduler::absorb_reader(NodeId id, Product& product) const {
  const std::vector<NodeId>& readers = users_[product.last];
  const NodeId reader = readers.size() == 1 ? readers[0] : Tape::kNone;
  const std::string why = [&]() -> std::string {
    if (reader == Tape::kNone) return fmt::format("{} has {} readers", t_.name(product.last), readers.size());
    if (!is_pointwise(reader) || &t_.op(reader) == &assign_op()) return fmt::format("{} reads it", t_.op(reader).name);
    const std::string name(pointwise_name(t_, reader));
    if (product.activation != Activation::none) return fmt::format("{} comes after the activation", name);
    if (result_of(reader) >= 0) return fmt::format("{} is returned by the step", name);
    if (t_.shape(reader) != t_.shape(id)) return fmt::format("{} has another shape", name);
    if (in_double(reader) != in_double(id)) return fmt::format("{} has another precision", name);
    const auto inputs = t_.inputs_of(id);
    std::vector<NodeId> read(inputs.begin(), inputs.end());
    for (const NodeId added : {product.bias, product.addend}) read.push_back(added);
    for (const NodeId input : read) {
      if (input == Tape::kNone) continue;
      if (t_.shape(input).numel() == 0) return "the product is a sum over nothing";
      if (overwritten(input, reader)) return fmt::format("it reads a State that is written before {}", name);
    }
    const Expr body = pointwise_body(t_, reader), x = expr::input(0);
    const auto operands = t_.inputs_of(reader);
    if (std::count(operands.begin(), operands.end(), product.last) > 1) return fmt::format("{} reads it twice", name);
    const bool sums_alone = settings().products == Products::sums;
    if (operands.size() == 2 && same(body, x + expr::input(1))) {
      const NodeId other = operands[operands[0] == product.last ? 1 : 0];
      if (sums_alone && t_.nodes[reader].dtype != t_.nodes[id].dtype) return fmt::format("{} has another type", name);
      if (sums_alone && !read_from_memory(reader)) return fmt::format("{} costs nothing where it is read", name);
      if (sums_alone && is_pointwise(other) && users_[other].size() == 1)
        return fmt::format("{} would have to be stored", t_.name(other));
      if (sums_alone && other > id && kind_[memory_of(other)] != Kind::leaf)
        return fmt::format("{} waits for {}", name, t_.name(other));  // with all that is multiplied
      return add_to(id, product, other);
    }
    if (sums_alone) return fmt::format("WEFT_PRODUCTS=all would try {}", name);
    if (!same(body, relu(x)) && !same(body, gelu_tanh(x))) return fmt::format("the library has no {}", name);
    if (in_double(id)) return "the library has no activation in fp64";
    product.activation = same(body, relu(x)) ? Activation::relu : Activation::gelu_tanh;
    return {};
  }();
  if (!why.empty()) return product.reasons.push_back("not fused: " + why), false;
  product.reasons.push_back("fused: " + t_.name(reader));
  product.last = reader;
  return true;
}

// What hinders that `other` is added to a product, "" if nothing does.
std::string Scheduler::add_to(NodeId id, Product& product, NodeId other) const {
  const Shape shape = t_.shape(other);
  const std::int64_t n = t_.shape(id)[-1];
  if (overwritten(other, users_[product.last][0])) return "what is added is a State that is written before";
  const auto inputs = t_.inputs_of(id);
  const bool has_bias = product.bias != Tape::kNone || (inputs.size() > 2 && inputs[2] != Tape::kNone);
  if (settings().products == Products::all && !has_bias && shape.rank() > 0 && shape[-1] == n && shape.numel() == n)
    return product.bias = other, "";
  if (product.addend != Tape::kNone || shape != t_.shape(id)) return "neither a bias nor one tensor of its shape is added";
  if (t_.nodes[other].dtype != t_.nodes[users_[product.last][0]].dtype) return "what is added has another dtype than the sum";
  return product.addend = other, "";
}

bool Scheduler::in_double(NodeId id) const {
  if (t_.nodes[id].dtype == DType::f64) return true;
  const auto inputs = t_.inputs_of(id);
  return std::any_of(inputs.begin(), inputs.end(),
                     [&](NodeId i) { return i != Tape::kNone && t_.nodes[i].dtype == DType::f64; });
}

int Scheduler::result_of(NodeId id) const {
  const auto it = std::find(results_.begin(), results_.end(), id);
  return it == results_.end() ? -1 : int(it - results_.begin());
}

// What a kernel that computes the value of `id` itself goes on with. Only the store of bf16 is not made there: kernels compute
// in fp32, which loses less and costs less. A cast to bf16 rounds by its own expression.
Expr Scheduler::narrowed(NodeId id, Expr value) const {
  const DType dtype = t_.nodes[id].dtype;
  return dtype == DType::i32 || (dtype == DType::f32 && in_double(id)) ? narrow(value, dtype) : value;
}

// Inputs of a pointwise node become leaves, or, where inlined, their own expressions.
Expr Scheduler::fused_expr(NodeId id) const {
  const auto inputs = t_.inputs_of(id);
  const Node& node = t_.nodes[id];
  auto leaf = [&](NodeId input) {
    return is_pointwise(input) && !stored_[input] ? narrowed(input, expr_[input])
                                                  : expr::input(int(input), expr_type(t_.nodes[input].dtype));
  };
  if (&t_.op(id) == &assign_op()) return stored_as(node.dtype, leaf(inputs[0]));
  std::vector<std::optional<Expr>> map(inputs.size());
  for (std::size_t k = 0; k < inputs.size(); ++k) map[k] = leaf(inputs[k]);
  std::vector<int> slots(node.constants);
  std::iota(slots.begin(), slots.end(), int(node.first_constant));
  return substitute(pointwise_body(t_, id), map, slots);
}

bool Scheduler::must_store(NodeId id, std::string* why) const {
  if (&t_.op(id) == &assign_op()) return *why = "stored: writes a state", true;
  if (result_of(id) >= 0) return *why = "stored: returned by the step", true;
  if (!settings().fuse) return *why = "stored: WEFT_FUSE=0", true;
  if (settings().check_nan) return *why = "stored: WEFT_CHECK=nan looks at every op", true;
  const bool positional = expr_[id].coordinates() > 0 || uses_op(expr_[id], ExprOp::element);
  for (const NodeId user : users_[id]) {
    if (is_pointwise(user)) {
      if (in_double(user) != in_double(id)) return *why = "stored: read in another precision", true;
      if (positional && t_.shape(user) != t_.shape(id))
        return *why = "stored: its elements are numbered by its own shape", true;
      continue;
    }
    const Op& op = t_.op(user);
    const auto inputs = t_.inputs_of(user);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i] != id) continue;
      const bool prologue = kind_[user] == Kind::structured && i < 32 && (op.prologues >> i & 1) && !positional &&
                            in_double(user) == in_double(id);
      const std::string_view name = kind_[user] == Kind::absorbed ? "a product" : op.name;
      if (!prologue) return *why = fmt::format("stored: {} reads it from memory", name), true;
    }
  }
  return false;
}

// Inline or store: recomputing costs its operations for every reader beyond the first evaluation, and the loads of its own
// operands; storing costs a write and a read for each reader.
void Scheduler::decide(NodeId id) {
  std::string& why = reason_[id];
  if (must_store(id, &why)) {
    stored_[id] = 1;
    return;
  }
  const double n = double(std::max<std::int64_t>(1, t_.shape(id).numel()));
  double evaluations = 0;
  for (const NodeId user : users_[id]) {
    if (is_pointwise(user)) {
      evaluations += std::max(1.0, double(t_.shape(user).numel()) / n);
    } else {
      evaluations += t_.op(user).reuse;
    }
  }
  if (feeds_on_host(id) && users_[id].size() > 1) {
    stored_[id] = 1;
    why = "stored: the kernel computes it whose result nobody else reads";
    return;
  }
  const double readers = double(users_[id].size());
  const double own = price(expr_[id]);
  const auto read = [&](NodeId value) { return kReadPrice * double(size_of(t_.nodes[value].dtype)); };
  double loads = 0;
  for (const NodeId leaf : leaves(expr_[id])) loads += read(leaf) * std::min(1.0, double(t_.shape(leaf).numel()) / n);
  const double recompute = own * (evaluations - 1) + loads * (readers - 1);
  const auto visits = [&](NodeId user) {  // it stores the value as well
    const Op& op = t_.op(user);
    return gpu_ && op.guest_input >= 0 && t_.inputs_of(user)[std::size_t(op.guest_input)] == id;
  };
  const bool hosted = std::any_of(users_[id].begin(), users_[id].end(), visits);
  const double store = read(id) * (hosted ? readers : 1 + readers);
  stored_[id] = recompute > kStoreMargin * store;
  why = fmt::format("{}: {:.0f} readers, {:.0f} evaluations of {:.0f} ops: recomputing costs {:.0f}, storing {:.0f}",
                    stored_[id] ? "stored" : "inlined", readers, evaluations, own, recompute, store);
}

void Scheduler::fuse() {
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!live_[id] || !is_pointwise(id)) continue;
    expr_[id] = fused_expr(id);
    while (cost_of(std::span(&expr_[id], 1)).total() > kKernelOps) {
      NodeId largest = Tape::kNone;
      for (const NodeId input : t_.inputs_of(id))
        if (is_pointwise(input) && !stored_[input] && (largest == Tape::kNone || price(expr_[input]) > price(expr_[largest])))
          largest = input;
      if (largest == Tape::kNone) break;  // one op's own expression
      stored_[largest] = 1;
      reason_[largest] = fmt::format("stored: its reader would exceed {} ops", kKernelOps);
      expr_[id] = fused_expr(id);
    }
    decide(id);
  }
}

NodeId Scheduler::memory_of(NodeId id, bool* through_view) const {
  while (kind_[id] == Kind::view) {
    if (through_view) *through_view = true;
    id = t_.inputs_of(id)[0];
  }
  return id;
}

std::vector<NodeId> Scheduler::leaves(Expr e) const {
  std::vector<NodeId> out;
  for (const Expr x : topological(std::span(&e, 1)))
    if (x.op() == ExprOp::input) out.push_back(NodeId(x.index()));
  return out;
}

template <class F>
void Scheduler::each_leaf(NodeId kernel, F&& f) const {
  if (is_pointwise(kernel)) {
    for (const NodeId leaf : leaves(expr_[kernel])) f(leaf);
    return;
  }
  for (const NodeId input : t_.inputs_of(kernel)) {
    if (input == Tape::kNone) continue;
    if (is_pointwise(input) && !stored_[input])
      for (const NodeId leaf : leaves(expr_[input])) f(leaf);
    else
      f(input);
  }
  if (const auto product = products_.find(kernel); product != products_.end())
    for (const NodeId added : {product->second.bias, product->second.addend})
      if (added != Tape::kNone) f(added);
}

void Scheduler::find_readers() {
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!live_[id] || !(is_root(id) || kind_[id] == Kind::structured)) continue;
    each_leaf(id, [&](NodeId leaf) {
      bool view = false;
      NodeId memory = memory_of(leaf, &view);
      readers_[memory].push_back({id, view});
    });
  }
}

// ---- grouping ---------------------------------------------------------------------------------------------------------------

// `id` may run in the kernel of `group`, which thereby moves to id's place on the tape: nobody may read a member before
// that, and no State that a member reads may be written before that.
bool Scheduler::can_join(const Group& group, NodeId id) const {
  const NodeId first = group.members.front();
  if (group.closed || group.members.size() >= kKernelRoots || t_.shape(first) != t_.shape(id) ||
      in_double(first) != in_double(id))
    return false;
  auto inside = [&](NodeId kernel) {
    return std::find(group.members.begin(), group.members.end(), kernel) != group.members.end();
  };
  int ops = cost_of(std::span(&expr_[id], 1)).total();
  for (const NodeId member : group.members) {
    ops += cost_of(std::span(&expr_[member], 1)).total();
    for (const Reader& reader : readers_[member]) {
      if (reader.kernel == id ? reader.through_view : !inside(reader.kernel) && reader.kernel < id) return false;
    }
    bool hazard = false;
    each_leaf(member, [&](NodeId leaf) { hazard |= overwritten(leaf, id); });
    if (hazard) return false;
  }
  return ops <= kKernelOps;
}

// `leaf` reads a State as it was before a write that comes not after `until`.
bool Scheduler::overwritten(NodeId leaf, NodeId until) const {
  const NodeId memory = memory_of(leaf);
  if (t_.nodes[memory].op != state_op().id) return false;
  const std::int64_t write = assigned_[std::size_t(t_.ints_of(memory)[0])];
  return write >= 0 && memory < write && write <= std::int64_t(until);
}

bool Scheduler::shares_leaf(const Group& group, NodeId id) const {
  std::vector<NodeId> mine;
  each_leaf(id, [&](NodeId leaf) { mine.push_back(leaf); });
  for (const NodeId member : group.members) {
    if (std::find(mine.begin(), mine.end(), member) != mine.end()) return true;
    bool shared = false;
    each_leaf(member, [&](NodeId leaf) {
      shared |= t_.shape(leaf).numel() > 1 && std::find(mine.begin(), mine.end(), leaf) != mine.end();
    });
    if (shared) return true;
  }
  return false;
}

bool Scheduler::is_small(NodeId id) const { return t_.shape(id).numel() <= kSmall; }

// What a kernel reads that makes the value: inputs, and States as they are before the step writes them.
bool Scheduler::there_from_the_start(NodeId id) const {
  bool there = true;
  each_leaf(id, [&](NodeId leaf) {
    const NodeId memory = memory_of(leaf);
    const bool state = t_.nodes[memory].op == state_op().id;
    const std::int64_t write = state ? assigned_[std::size_t(t_.ints_of(memory)[0])] : std::int64_t(-1);
    there &= kind_[memory] == Kind::leaf && leaf == memory && (write < 0 || write > std::int64_t(memory));
  });
  return there;
}

// Small values of one shape share a kernel whatever they read, those of the forward pass and gradients apart.
void Scheduler::merge_small() {
  if (!settings().fuse || settings().check_nan) return;
  const auto is_open = [&](const Group& g) {
    return !g.members.empty() && !g.closed && g.host == Tape::kNone && is_small(g.members.front());
  };
  const auto is_gradient = [&](const Group& g) { return g.members.front() >= t_.first_gradient; };
  const auto ops = [&](const Group& g) {
    int sum = 0;
    for (const NodeId id : g.members) sum += cost_of(std::span(&expr_[id], 1)).total();
    return sum;
  };
  for (std::size_t at = 0; at < groups_.size(); ++at) {
    Group& last = groups_[at];
    if (!is_open(last)) continue;
    last.early = std::all_of(last.members.begin(), last.members.end(), [&](NodeId id) { return there_from_the_start(id); });
    for (std::size_t back = 1; back <= std::min(kGroupWindow, at); ++back) {
      Group& g = groups_[at - back];
      if (!is_open(g) || g.early != last.early || is_gradient(g) != is_gradient(last) ||
          g.members.size() + last.members.size() > kKernelRoots ||
          t_.shape(g.members.front()) != t_.shape(last.members.front()) ||
          in_double(g.members.front()) != in_double(last.members.front()) || ops(g) + ops(last) > kKernelOps ||
          g.members.back() > last.members.front() || (!g.early && !can_join(g, last.members.back())))
        continue;
      for (const NodeId id : last.members) group_of_[id] = int(at - back);
      g.members.insert(g.members.end(), last.members.begin(), last.members.end());
      last.members.clear();
      break;
    }
  }
}

void Scheduler::group() {
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!is_root(id)) continue;
    const bool assign = &t_.op(id) == &assign_op();
    if (settings().fuse && !settings().check_nan && !assign) {
      for (std::size_t back = 0; back < std::min(kGroupWindow, groups_.size()); ++back) {
        Group& g = groups_[groups_.size() - 1 - back];
        if (!shares_leaf(g, id) || !can_join(g, id)) continue;
        g.members.push_back(id);
        group_of_[id] = int(groups_.size() - 1 - back);
        break;
      }
    }
    if (group_of_[id] >= 0) continue;
    group_of_[id] = int(groups_.size());
    groups_.push_back({.members = {id}, .closed = assign});
  }
}

// ---- guests -----------------------------------------------------------------------------------------------------------------

// The value is made of the result of a kernel that could store it instead of that result.
bool Scheduler::feeds_on_host(NodeId id) const {
  if (!gpu_) return false;
  for (const NodeId leaf : leaves(expr_[id]))
    if (kind_[leaf] == Kind::structured && t_.op(leaf).guest_output == 0 && users_[leaf].size() == 1 &&
        t_.shape(leaf) == t_.shape(id) && in_double(leaf) == in_double(id))
      return true;
  return false;
}

// The kernel of `host` computes the group of what it has made, and so earlier: all else that the group reads is there.
bool Scheduler::hosts_after(const Group& group, NodeId host) const {
  if (t_.shape(group.members.front()) != t_.shape(host)) return false;
  bool ready = true;
  for (const NodeId member : group.members)
    each_leaf(member, [&](NodeId leaf) {
      const bool inside = std::find(group.members.begin(), group.members.end(), leaf) != group.members.end();
      if (inside || leaf == host) return;
      const NodeId memory = memory_of(leaf);
      if (kind_[memory] == Kind::leaf) {  // there from the start, but for a State that is written between the two
        const std::int64_t write =
            t_.nodes[memory].op == state_op().id ? assigned_[std::size_t(t_.ints_of(memory)[0])] : std::int64_t(-1);
        ready &= write < 0 || write > std::int64_t(memory) || write < std::int64_t(host);
        return;
      }
      const NodeId there = is_root(memory)                     ? place_of(groups_[std::size_t(group_of_[memory])])
                           : kind_[memory] == Kind::structured ? written_by(memory)
                           : kind_[memory] == Kind::output     ? t_.inputs_of(memory)[0]
                                                               : memory;
      ready &= there < host;
    });
  return ready;
}

// The kernel of `host` computes the group with its input, and so later: nobody reads a member before that, or in that kernel
// from memory, and no State that a member reads is written before.
bool Scheduler::hosts_before(const Group& group, NodeId host, NodeId input) const {
  const auto inputs = t_.inputs_of(host);
  if (group.members.back() > host || t_.shape(input) != t_.shape(group.members.front())) return false;
  for (const NodeId member : group.members) {
    if (std::count(inputs.begin(), inputs.end(), member) != (member == input ? 1 : 0)) return false;
    for (const Reader& reader : readers_[member]) {
      const bool inside = is_root(reader.kernel) && group_of_[reader.kernel] == group_of_[member];
      const NodeId at =
          is_root(reader.kernel) ? place_of(groups_[std::size_t(group_of_[reader.kernel])]) : written_by(reader.kernel);
      if (!inside && (reader.kernel == host ? reader.through_view || member != input : at < host)) return false;
    }
    bool free = true;
    each_leaf(member, [&](NodeId leaf) {
      free &= !overwritten(leaf, host);
      if (member == input) free &= std::find(group.members.begin(), group.members.end(), leaf) == group.members.end();
    });
    if (!free) return false;
  }
  return true;
}

NodeId Scheduler::host_of(const Group& group) const {
  constexpr std::size_t kMostGuests = 4, kMostGuestOps = 64;  // registers: a thread has some dozens of elements
  if (group.closed || group.members.size() > kMostGuests) return Tape::kNone;
  int ops = 0;
  for (const NodeId member : group.members) ops += cost_of(std::span(&expr_[member], 1)).total();
  if (ops > int(kMostGuestOps)) return Tape::kNone;
  NodeId host = Tape::kNone;
  const auto consider = [&](NodeId id, bool possible) {
    if (host == Tape::kNone && possible && guest_group_[id] < 0 && in_double(id) == in_double(group.members.front())) host = id;
  };
  for (const NodeId member : group.members) {
    each_leaf(member, [&](NodeId leaf) {
      const bool made = kind_[leaf] == Kind::structured && t_.op(leaf).guest_output == 0;
      consider(leaf, made && hosts_after(group, leaf));
    });
    for (const NodeId user : users_[member]) {
      const int input = kind_[user] == Kind::structured ? t_.op(user).guest_input : -1;
      consider(user, input >= 0 && t_.inputs_of(user)[std::size_t(input)] == member && hosts_before(group, user, member));
    }
  }
  return host;
}

// Kernels that have what a group is made of in registers compute it too.
void Scheduler::find_hosts() {
  if (!gpu_ || !settings().fuse || settings().check_nan) return;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const NodeId host = host_of(groups_[g]);
    if (host == Tape::kNone) continue;
    groups_[g].host = host;
    guest_group_[host] = int(g);
  }
}

// A State read that is used after the State was written needs a copy made before.
void Scheduler::find_snapshots() {
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (t_.nodes[id].op != state_op().id || !live_[id]) continue;
    const std::int64_t write = assigned_[std::size_t(t_.ints_of(id)[0])];
    if (write < std::int64_t(id)) continue;  // never written, or read after the write
    for (const Reader& r : readers_[id]) {
      const NodeId at = is_pointwise(r.kernel) ? place_of(groups_[std::size_t(group_of_[r.kernel])]) : r.kernel;
      const bool same_kernel = std::int64_t(at) == write;
      // In the writing kernel itself the old value may be read only element by element.
      const bool elementwise = same_kernel && is_pointwise(r.kernel) && !r.through_view && t_.shape(id) == t_.shape(at);
      if (std::int64_t(at) > write || (same_kernel && is_pointwise(r.kernel) && !elementwise)) snapshot_[id] = 1;
    }
  }
}

void Scheduler::place_outputs() {
  for (const NodeId id : written_at_once_) operand_[t_.inputs_of(id)[0]] = state_memory(t_.ints_of(id)[0]);
  for (NodeId id = NodeId(t_.nodes.size()); id-- > 0;) {
    const auto place = t_.op(id).place;
    if (!live_[id] || !place) continue;
    if (!operand_[id]) operand_[id] = new_value(t_.shape(id), t_.nodes[id].dtype, id);
    const auto parts = t_.inputs_of(id);
    for (std::size_t i = 0; i < parts.size(); ++i)
      if (parts[i] != Tape::kNone && std::count(parts.begin(), parts.end(), parts[i]) == 1)
        place_part(parts[i], place(t_, id, int(i), operand_[id]));
  }
}

// `part` is to be written at `place` by its producer, which may lie behind views, if nobody else reads it.
void Scheduler::place_part(NodeId part, Operand place) {
  const auto only_here = [&](NodeId id) { return !operand_[id] && users_[id].size() == 1 && result_of(id) < 0; };
  for (; kind_[part] == Kind::view && t_.op(part).base && only_here(part); part = t_.inputs_of(part)[0]) {
    place = t_.op(part).base(t_, part, place);
    if (!place) return;
  }
  const NodeId producer = kind_[part] == Kind::output ? t_.inputs_of(part)[0] : part;
  const bool writes_rows = is_root(producer) || product_at_.contains(producer) ||
                           (kind_[producer] == Kind::structured && !t_.op(producer).dense_outputs);
  const bool fits = place.rows() || (part == producer && t_.op(producer).strided_output);
  if (writes_rows && only_here(part) && place.dtype == t_.nodes[part].dtype && fits && !t_.op(producer).writes)
    operand_[part] = place;
}

// ---- emission ---------------------------------------------------------------------------------------------------------------

int Scheduler::new_slot(Slot::Kind kind, std::size_t bytes, int index, std::string name) {
  plan_->slots.push_back({kind, bytes, index, -1, -1, 0, std::move(name), {}});
  return int(plan_->slots.size()) - 1;
}

Operand Scheduler::state_memory(std::int64_t position) {
  const StateImpl& impl = *t_.states[std::size_t(position)];
  int& known = state_slot_[std::size_t(position)];
  if (known < 0) known = new_slot(Slot::state, bytes_of(impl.shape, impl.dtype), int(position), impl.name);
  return dense_operand(known, impl.dtype, impl.shape.dims());
}

Operand Scheduler::twin_memory(std::int64_t position) {
  const StateImpl& impl = *t_.states[std::size_t(position)];
  int& known = twin_slot_[std::size_t(position)];
  if (known < 0) known = new_slot(Slot::twin, bytes_of(impl.shape, DType::bf16), int(position), impl.name + ", in bf16");
  return dense_operand(known, DType::bf16, impl.shape.dims());
}

// A Param's twin has its elements in the same places. After a write in this plan it is equal only if the writer writes both.
// Other States, caches for one, change at every step, so a twin would save nothing.
Operand Scheduler::twin_of(const Operand& o, NodeId reader) {
  const Slot slot = plan_->slots[std::size_t(o.slot)];
  const auto position = std::size_t(slot.index);
  if (slot.kind != Slot::state || o.dtype != DType::f32 || !t_.states[position]->parameter) return {};
  if (assigned_[position] >= 0 && assigned_[position] < std::int64_t(reader) && !twin_written_[position]) return {};
  if (twin_reader_[position] == Tape::kNone) twin_reader_[position] = reader;
  Operand twin = o;
  twin.slot = twin_memory(slot.index).slot;
  twin.dtype = DType::bf16;
  return twin;
}

Operand Scheduler::new_value(const Shape& shape, DType dtype, NodeId node) {
  const int slot = new_slot(Slot::arena, bytes_of(shape, dtype), 0, t_.name(node));
  plan_->slots.back().where = t_.where(t_.origins[node].where, -1);
  return dense_operand(slot, dtype, shape.dims());
}

void Scheduler::touch(const Operand& o) {
  if (o) touched_.push_back(o.slot);
}

void Scheduler::emit(std::string name, NodeId node, PlannedKernel k, std::vector<Operand> outputs,
                     std::vector<std::string> reasons) {
  const int index = int(plan_->kernels.size());
  for (const int s : touched_) {
    Slot& slot = plan_->slots[std::size_t(s)];
    if (slot.first < 0) slot.first = index;
    slot.last = std::max(slot.last, index);
    land(s, index);
  }
  if (const auto* call = std::get_if<CollectiveCall>(&k.work)) {
    // States are written in place, by kernels that need not say so.
    const bool own = plan_->slots[std::size_t(call->from_slot)].kind == Slot::arena;
    flights_.push_back({index, call->from_slot, call->to_slot, own ? -1 : index + 1});
  }
  k.record = {std::move(name), t_.name(node), std::move(reasons), node >= t_.first_gradient};
  k.where = t_.where(node);
  k.outputs = std::move(outputs);
  k.writes_state = t_.op(node).writes != nullptr;
  if (t_.op(node).collective && plan_->collective.empty())
    plan_->collective = k.record.where + " " + k.where.substr(0, k.where.find('\n'));
  plan_->kernels.push_back(std::move(k));
}

void Scheduler::emit_pointwise(std::string name, NodeId node, Fused fused, std::vector<Operand> outputs, const Shape& space,
                               bool in_double, std::vector<std::string> reasons) {
  if (gpu_ && space.numel() == 0) return;
  PlannedKernel k;
  if (gpu_) {
    auto kernel = pointwise_cuda(std::move(name), fused, outputs, space.dims(), in_double);
    name = kernel.name;
    k.work = std::make_shared<const CudaKernel>(std::move(kernel));
  } else {
    k.work = pointwise_kernel(std::move(fused), outputs, space.numel(), in_double);
  }
  emit(std::move(name), node, std::move(k), std::move(outputs), std::move(reasons));
}

// A dense copy of strided memory, made here.
Operand Scheduler::copied(const Operand& from, NodeId node, std::optional<DType> dtype) {
  const Shape shape(std::span(from.dims.data(), std::size_t(from.rank)));
  const Operand to = new_value(shape, dtype.value_or(from.dtype), node);
  emit_copy(from, to, node,
            to.dtype == from.dtype ? "copied: its strides cannot be read in place"
                                   : "converted: its reader computes in another type");
  return to;
}

void Scheduler::emit_copy(const Operand& from, const Operand& to, NodeId node, std::string reason) {
  const std::vector<int> outer = std::exchange(touched_, {});
  touch(from);
  touch(to);
  Fused fused;
  fused.roots = {expr::input(0, expr_type(from.dtype))};
  fused.program = Program(fused.roots);
  fused.leaves = {from};
  const Shape shape(std::span(to.dims.data(), std::size_t(to.rank)));
  emit_pointwise("copy", node, std::move(fused), {to}, shape, from.dtype == DType::f64 || to.dtype == DType::f64,
                 {std::move(reason)});
  touched_ = outer;
}

Operand Scheduler::converted(const Operand& from, DType dtype, NodeId input, NodeId reader) {
  if (dtype == DType::bf16)
    if (const Operand twin = twin_of(from, reader)) return twin;
  Operand& copy = converted_[{input, dtype}];
  if (!copy) copy = copied(from, input, dtype);
  return copy;
}

Operand Scheduler::where(NodeId id) {
  if (kind_[id] != Kind::view || resolved_[id]) return operand_[id];
  const NodeId base = t_.inputs_of(id)[0];
  const Operand from = where(base);
  Operand o = t_.op(id).view(t_, id, from);
  if (!o) o = t_.op(id).view(t_, id, copied(from, id));
  resolved_[id] = 1;
  return operand_[id] = o;
}

// Expressions over input(node), slot(constant) become a program over operands broadcast to `space`.
// The skeleton passes the value of `given`.
Fused Scheduler::fused_over(const std::vector<Expr>& roots, const Shape& space, NodeId given) {
  Fused fused;
  fused.values = given == Tape::kNone ? 0 : 1;
  for (const Expr e : topological(roots)) {
    if (e.op() == ExprOp::input && NodeId(e.index()) == given) {
      leaf_of_[given] = expr::input(0, e.type());
    } else if (e.op() == ExprOp::input) {
      const NodeId leaf = NodeId(e.index());
      leaf_of_[leaf] = expr::input(fused.values + int(fused.leaves.size()), e.type());
      fused.leaves.push_back(broadcast_to(where(leaf), space.dims()));
      touch(fused.leaves.back());
    } else if (e.op() == ExprOp::slot || e.op() == ExprOp::uniform) {
      const int count = e.op() == ExprOp::slot ? 1 : 3;
      for (int k = 0; k < count; ++k) {
        constant_of_[std::size_t(e.index() + k)] = int(fused.constants.size());
        fused.constants.push_back(int(e.index()) + k);
      }
    }
  }
  for (const Expr root : roots) fused.roots.push_back(substitute(root, leaf_of_, constant_of_));
  fused.dims.assign(space.dims().begin(), space.dims().end());
  fused.program = Program(fused.roots);
  return fused;
}

// What the members of a group are, in their order; a member that reads another one takes its value from a register. The value
// of member `given` is there already.
std::vector<Expr> Scheduler::roots_of(const Group& group, NodeId given) {
  std::vector<Expr> roots;
  for (const NodeId id : group.members) {
    const Expr root = id == given ? expr::input(int(id), expr_type(t_.nodes[id].dtype)) : substitute(expr_[id], registers_);
    registers_[id] = narrowed(id, root);
    const bool stored_narrow = root.op() == ExprOp::narrow && DType(root.index()) == t_.nodes[id].dtype;
    roots.push_back(stored_narrow ? root.arg(0) : root);
  }
  for (const NodeId id : group.members) registers_[id].reset();
  return roots;
}

std::vector<std::string> Scheduler::reasons_of(const Group& group) const {
  std::vector<std::string> reasons;
  for (const NodeId id : group.members) reasons.push_back(t_.name(id) + ": " + reason_[id]);
  return reasons;
}

std::string Scheduler::names_of(const Group& group) const {
  std::string names;
  for (const NodeId id : group.members) {
    const std::string name(&t_.op(id) == &assign_op() ? "assign" : pointwise_name(t_, id));
    if (names.find(name) == std::string::npos && names.size() < 40) names += "_" + name;
  }
  return names;
}

void Scheduler::emit_group(const Group& group) {
  touched_.clear();
  const NodeId last = group.members.back();
  const Shape space = t_.shape(last);
  Fused fused = fused_over(roots_of(group), space);
  std::vector<Operand> outputs;
  for (const NodeId id : group.members) outputs.push_back(operand_[id]);
  for (const Operand& o : outputs) touch(o);
  const std::string text = [&] {
    std::string s;
    for (const Expr r : fused.roots) s += to_string(r) + ";";
    return s;
  }();
  std::string name = "pointwise_" + names_of(group);  // on a GPU the kernel's text decides about the number
  if (!gpu_) name += fmt::format("__{:06x}", XXH3_64bits(text.data(), text.size()) & 0xffffff);
  bool wide = false;
  for (const NodeId id : group.members) wide |= in_double(id);
  emit_pointwise(std::move(name), last, std::move(fused), std::move(outputs), space, wide, reasons_of(group));
}

Operand Scheduler::memory_for(NodeId id) {
  const Shape shape = t_.shape(id);
  const DType dtype = t_.nodes[id].dtype;
  if (const int r = result_of(id); r >= 0)
    return dense_operand(new_slot(Slot::result, bytes_of(shape, dtype), r, "result"), dtype, shape.dims());
  return &t_.op(id) == &assign_op() ? state_memory(t_.ints_of(id)[0]) : new_value(shape, dtype, id);
}

void Scheduler::emit_structured(NodeId id) {
  touched_.clear();
  const std::size_t first = plan_->kernels.size();
  const Group* guests = guests_of(id);
  if (guests)
    for (const NodeId guest : guests->members) {
      if (!operand_[guest]) operand_[guest] = memory_for(guest);
      each_leaf(guest, [&](NodeId leaf) {  // which may be recorded later
        if (const NodeId memory = memory_of(leaf); kind_[memory] == Kind::leaf) emit_leaf(memory);
      });
    }
  const auto guests_alone = [&](NodeId value) {  // read it, from registers
    return guests && value == id && std::all_of(readers_[id].begin(), readers_[id].end(), [&](const Reader& r) {
             return !r.through_view && is_guest_of(r.kernel, id);
           });
  };
  for (NodeId k = 0; k < t_.nodes[id].outputs; ++k)
    if (const NodeId value = written_by(id) + k; read_[value] && !operand_[value] && !guests_alone(value))
      operand_[value] = new_value(t_.shape(value), t_.nodes[value].dtype, value);
  Lowering lowering(*this, id);
  const Op& op = t_.op(id);
  if (gpu_ && !op.cuda)
    fail(ErrorKind::usage, fmt::format("{}: this op has no GPU kernel", t_.name(id)), {}, "run it with --device cpu");
  (gpu_ ? op.cuda : op.lower)(lowering);
  // Operands asked for at any point stay valid during all of the node's kernels.
  const std::size_t end = plan_->kernels.size();
  if (end == first) return;
  for (const int s : touched_) {
    Slot& slot = plan_->slots[std::size_t(s)];
    slot.first = slot.first < 0 ? int(first) : std::min(slot.first, int(first));
    slot.last = std::max(slot.last, int(end) - 1);
    land(s, int(first));
  }
}

// Only lays out memory for a collective, or casts it.
bool Scheduler::feeds_collective(NodeId id) const {
  const bool alone = is_root(id) && groups_[std::size_t(group_of_[id])].members.size() == 1;
  if (!(t_.op(id).place || alone) || users_[id].size() != 1 || result_of(id) >= 0) return false;
  const NodeId user = users_[id][0];
  return t_.op(user).collective || feeds_collective(user);
}

// As on the tape, but that collectives, and what only lays out memory for them, come as soon as their inputs are there: while
// the ranks exchange gradients, backward goes on.
std::vector<NodeId> Scheduler::emission_order() const {
  std::vector<NodeId> order(t_.nodes.size()), after(t_.nodes.size());  // after: the node behind which it is emitted
  std::iota(order.begin(), order.end(), NodeId(0));
  std::iota(after.begin(), after.end(), NodeId(0));
  bool moved = false;
  for (NodeId id = 0; id < t_.nodes.size(); ++id) {
    if (!live_[id]) continue;
    const bool early = t_.op(id).collective || feeds_collective(id);
    if (is_root(id) && !early) {
      after[id] = place_of(groups_[std::size_t(group_of_[id])]);
    } else if (early || kind_[id] == Kind::view || kind_[id] == Kind::output) {
      NodeId last = 0;
      for (const NodeId input : t_.inputs_of(id))
        if (input != Tape::kNone) last = std::max(last, after[input]);
      after[id] = last;
      moved |= early;
    }
  }
  if (moved) std::stable_sort(order.begin(), order.end(), [&](NodeId a, NodeId b) { return after[a] < after[b]; });
  return order;
}

void Scheduler::emit_leaf(NodeId id) {
  if (operand_[id]) return;
  const Node& node = t_.nodes[id];
  const std::int64_t index = t_.ints_of(id)[0];
  const Shape shape = t_.shape(id);
  operand_[id] =
      node.op == state_op().id
          ? state_memory(index)
          : dense_operand(new_slot(Slot::input, bytes_of(shape, node.dtype), int(index), "input"), node.dtype, shape.dims());
  if (snapshot_[id]) operand_[id] = copied(operand_[id], id);
}

void Scheduler::emit_all() {
  for (const NodeId id : emission_order()) {
    if (!live_[id]) continue;
    switch (kind_[id]) {
      case Kind::leaf:
        emit_leaf(id);
        break;
      case Kind::pointwise: {
        if (!stored_[id]) break;
        const Group& g = groups_[std::size_t(group_of_[id])];
        if (g.host != Tape::kNone) break;  // its kernel was emitted, or will be
        if (!operand_[id]) operand_[id] = memory_for(id);
        if (place_of(g) != id) break;
        for (const NodeId member : g.members) {
          if (!operand_[member]) operand_[member] = memory_for(member);
          if (g.early) each_leaf(member, [&](NodeId leaf) { emit_leaf(leaf); });
        }
        emit_group(g);
        break;
      }
      case Kind::structured:
        if (written_by(id) == id) emit_structured(id);
        break;
      case Kind::absorbed:
        if (const auto product = product_at_.find(id); product != product_at_.end()) emit_structured(product->second);
        break;
      case Kind::view:
      case Kind::output:
        break;
    }
  }
}

// A kernel touches a slot: what is on the way to it has to be there.
void Scheduler::land(int slot, int kernel) {
  for (Flight& f : flights_)
    if ((f.to == slot || f.from == slot) && f.kernel < kernel && (f.join < 0 || kernel < f.join)) f.join = kernel;
}

void Scheduler::assign_memory() {
  // Until a collective is waited for, nothing else has its memory.
  for (const Flight& f : flights_) {
    const int join = f.join < 0 ? int(plan_->kernels.size()) : f.join;
    plan_->kernels[std::size_t(f.kernel)].join = join;
    for (const int s : {f.from, f.to}) plan_->slots[std::size_t(s)].last = std::max(plan_->slots[std::size_t(s)].last, join);
  }
  std::vector<Lifetime> values;
  std::vector<int> which;
  for (std::size_t s = 0; s < plan_->slots.size(); ++s) {
    const Slot& slot = plan_->slots[s];
    if (slot.kind != Slot::arena || slot.first < 0) continue;
    values.push_back({slot.bytes, slot.first, slot.last});
    which.push_back(int(s));
  }
  plan_->arena_bytes = place(values);
  for (std::size_t i = 0; i < values.size(); ++i) plan_->slots[std::size_t(which[i])].offset = values[i].offset;
  for (const NodeId id : results_) plan_->results.push_back({t_.shape(id), t_.nodes[id].dtype});
}

// The copies are a plan of their own: they run when a State was written by something else than its optimizer, not at every
// step.
void Scheduler::plan_twins() {
  for (std::size_t p = 0; p < t_.states.size(); ++p)
    if (assigned_[p] >= 0 && !twin_written_[p] && t_.states[p]->dtype == DType::f32) plan_->outdated.push_back(int(p));
  std::unique_ptr<Plan> step = std::exchange(plan_, std::make_unique<Plan>());
  std::fill(state_slot_.begin(), state_slot_.end(), -1);
  std::fill(twin_slot_.begin(), twin_slot_.end(), -1);
  for (std::size_t p = 0; p < t_.states.size(); ++p)
    if (twin_reader_[p] != Tape::kNone)
      emit_copy(state_memory(std::int64_t(p)), twin_memory(std::int64_t(p)), twin_reader_[p],
                "the State was written without its twin");
  if (!plan_->slots.empty()) step->twins = std::move(plan_);
  plan_ = std::move(step);
}

}  // namespace weft
