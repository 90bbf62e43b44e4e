#include "autograd/lowering.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "autograd/schedule.h"
#include "jit/affine.h"
#include "jit/error.h"
#include "jit/interval.h"

namespace weft {

const Node& Lowering::node() const { return scheduler_.t_.nodes[node_]; }
int Lowering::inputs() const { return node().inputs; }
bool Lowering::has(int i) const { return scheduler_.t_.inputs_of(node_)[std::size_t(i)] != Tape::kNone; }
Shape Lowering::shape(int i) const { return scheduler_.t_.shape(scheduler_.t_.inputs_of(node_)[std::size_t(i)]); }
DType Lowering::dtype(int i) const { return scheduler_.t_.nodes[scheduler_.t_.inputs_of(node_)[std::size_t(i)]].dtype; }
std::int64_t Lowering::integer(int j) const { return plain_ints(scheduler_.t_, node_)[std::size_t(j)]; }
int Lowering::integers() const { return int(plain_ints(scheduler_.t_, node_).size()); }
int Lowering::constant(int j) const { return int(node().first_constant) + j; }
bool Lowering::wants(int k) const { return scheduler_.read_[node_ + NodeId(k)]; }
const Target& Lowering::target() const { return scheduler_.target_; }
bool Lowering::in_double() const { return scheduler_.in_double(node_); }

Operand Lowering::view(int i, std::optional<DType> dtype) {
  if (!has(i)) return {};
  return of_node(scheduler_.t_.inputs_of(node_)[std::size_t(i)], dtype);
}

Operand Lowering::of_node(NodeId id, std::optional<DType> dtype) {
  Operand o = scheduler_.where(id);
  if (dtype && dtype != o.dtype) o = scheduler_.converted(o, *dtype, id, node_);
  scheduler_.touch(o);
  return o;
}

Operand Lowering::copied(const Operand& o) {
  const Operand copy = scheduler_.copied(o, node_);
  scheduler_.touch(copy);
  return copy;
}

Operand Lowering::rows(int i, std::optional<DType> dtype) {
  const Operand o = view(i, dtype);
  return !o || o.rows() ? o : copied(o);
}

Operand Lowering::dense(int i, std::optional<DType> dtype) {
  const Operand o = view(i, dtype);
  return !o || o.contiguous() ? o : copied(o);
}

Operand Lowering::sixteens(int i, std::optional<DType> dtype) {
  const Operand o = view(i, dtype);
  return !o || o.sixteens() ? o : copied(o);
}

// What is added to a product was planned to be in memory before it runs; a product without it would be a wrong number.
Operand Lowering::added(NodeId id, std::optional<DType> dtype) {
  const Operand o = of_node(id, dtype);
  if (!o)
    fail(ErrorKind::usage,
         fmt::format("internal error: {} is fused with a value that is not stored", scheduler_.t_.name(node_)),
         fmt::format("{} {}", scheduler_.t_.name(id), to_string(scheduler_.t_.shape(id))),
         "please report it; WEFT_PRODUCTS=none avoids it");
  return o;
}

Epilogue Lowering::epilogue(std::optional<DType> dtype) {
  Epilogue e;
  if (inputs() > 2) e.bias = dense(2, dtype);
  const auto found = scheduler_.products_.find(node_);
  if (found == scheduler_.products_.end()) return e;
  const Scheduler::Product& product = found->second;
  e.activation = product.activation;
  if (product.bias != Tape::kNone) {
    e.bias = added(product.bias, dtype);
    if (!e.bias.contiguous()) e.bias = copied(e.bias);
  }
  if (product.addend != Tape::kNone) {
    e.addend = added(product.addend, dtype);
    if (!e.addend.rows() || e.addend.row_stride() < e.addend.dims[std::size_t(e.addend.rank - 1)]) e.addend = copied(e.addend);
  }
  return e;
}

Fused Lowering::source(int i) {
  Scheduler& s = scheduler_;
  const NodeId input = s.t_.inputs_of(node_)[std::size_t(i)];
  const bool inlined = s.is_pointwise(input) && (!s.stored_[input] || s.is_guest_of(input, node_));
  const Expr e = inlined ? s.narrowed(input, s.expr_[input]) : expr::input(int(input), expr_type(s.t_.nodes[input].dtype));
  return s.fused_over({is_real(s.t_.nodes[input].dtype) ? to_real(e) : e}, s.t_.shape(input));
}

Guests Lowering::guests() {
  Guests out;
  out.fused.values = 1;
  const Scheduler::Group* group = scheduler_.guests_of(node_);
  if (!group) return out;
  const int input = scheduler_.t_.op(node_).guest_input;
  const NodeId given = input < 0 ? node_ : scheduler_.t_.inputs_of(node_)[std::size_t(input)];
  out.fused = scheduler_.fused_over(scheduler_.roots_of(*group, given), scheduler_.t_.shape(given), given);
  for (const NodeId id : group->members) {
    out.to.push_back(scheduler_.operand_[id]);
    scheduler_.touch(out.to.back());
  }
  out.names = "_" + scheduler_.names_of(*group);
  return out;
}

Operand Lowering::output(int k) {
  const Operand o = scheduler_.operand_[scheduler_.written_by(node_) + NodeId(k)];
  scheduler_.touch(o);
  return o;
}

Operand Lowering::scratch(DType dtype, std::span<const std::int64_t> dims) {
  const Operand o = scheduler_.new_value(Shape(dims), dtype, node_);
  scheduler_.touch(o);
  return o;
}

Operand Lowering::state(std::int64_t position) { return scheduler_.state_memory(position); }

Operand Lowering::twin(std::int64_t position) {
  const auto p = std::size_t(position);
  if (scheduler_.twin_slot_[p] < 0 && !scheduler_.t_.states[p]->twin) return {};
  scheduler_.twin_written_[p] = 1;
  return scheduler_.twin_memory(position);
}

bool Lowering::filled(int h) const { return !hole_of(scheduler_.t_, node_, h).roots.empty(); }

namespace {

// The elements of `o` at these subscripts, seen over the space: one step for each coordinate. Nothing if a subscript is no sum
// of steps.
std::optional<Operand> walked(const Operand& o, Expr load, const Shape& space) {
  Operand leaf = o;
  leaf.rank = space.rank();
  leaf.dims = {}, leaf.strides = {};
  for (int c = 0; c < space.rank(); ++c) leaf.dims[std::size_t(c)] = space[c];
  for (int axis = 0; axis < load.arity(); ++axis) {
    const std::optional<Affine> subscript = affine_of(load.arg(axis));
    if (!subscript) return std::nullopt;
    leaf.offset += o.strides[std::size_t(axis)] * subscript->constant;
    for (int c = 0; c < space.rank(); ++c)
      leaf.strides[std::size_t(c)] += o.strides[std::size_t(axis)] * subscript->step[std::size_t(c)];
  }
  return leaf;
}

// A hole over what the node reads: load k is of input inputs[k], slot k constant slots[k].
struct Body {
  std::vector<Expr> roots;
  std::vector<int> inputs, slots;

  explicit Body(const HoleView& view) : roots(view.roots.begin(), view.roots.end()) {
    for (int k = 0; k < view.captured; ++k) inputs.push_back(view.first_input + k);
    for (int k = 0; k < view.slots; ++k) slots.push_back(view.first_slot + k);
  }

  // The root of another hole, in the numbers of this one.
  Expr join(const HoleView& other) {
    const auto loads = int(inputs.size()), constants = int(slots.size());
    const Body theirs(other);
    inputs.insert(inputs.end(), theirs.inputs.begin(), theirs.inputs.end());
    slots.insert(slots.end(), theirs.slots.begin(), theirs.slots.end());
    return rewrite(theirs.roots[0], [&](Expr e, Expr rebuilt) -> std::optional<Expr> {
      if (e.op() == ExprOp::slot) return expr::slot(int(e.index()) + constants, e.type());
      if (e.op() != ExprOp::load) return std::nullopt;
      return with_table(rebuilt, int(e.index()) + loads);
    });
  }

  static Expr with_table(Expr load, int table) {
    std::vector<Expr> subscripts;
    for (int axis = 0; axis < load.arity(); ++axis) subscripts.push_back(load.arg(axis));
    return expr::load(table, load.type(), subscripts);
  }
};

// A load whose subscripts are 0 where they could be outside and the place is not seen.
Expr guarded(Expr load, Expr seen, const Shape& shape, std::span<const Interval> space) {
  std::vector<Expr> subscripts;
  for (int axis = 0; axis < load.arity(); ++axis) {
    const Expr subscript = load.arg(axis);
    const Interval range = interval_of(subscript, space);
    const bool inside = range.low >= 0 && range.high < double(shape[axis]);
    subscripts.push_back(inside ? subscript : where(seen, subscript, Expr(0)));
  }
  return expr::load(int(load.index()), load.type(), subscripts);
}

}  // namespace

// Captured tensors that are walked become leaves, in the order in which they are captured; the others stay loads.
Fused Lowering::hole(int h, const Shape& space) {
  const HoleView view = hole_of(scheduler_.t_, node_, h);
  const HoleSpec& spec = scheduler_.t_.op(node_).holes[std::size_t(h)];
  Body body(view);
  Fused fused;
  fused.values = spec.values;
  fused.dims.assign(space.dims().begin(), space.dims().end());
  if (body.roots.empty()) body.roots = {expr::input(fused.values - 1)};
  if (spec.hidden_by >= 0 && filled(spec.hidden_by)) {
    std::vector<Interval> bounds;
    for (const std::int64_t size : space.dims()) bounds.push_back({0, double(size - 1)});
    const Expr seen = body.join(hole_of(scheduler_.t_, node_, spec.hidden_by));
    for (Expr& root : body.roots)
      root = rewrite(root, [&](Expr e, Expr rebuilt) -> std::optional<Expr> {
        if (e.op() != ExprOp::load) return std::nullopt;
        return guarded(rebuilt, seen, shape(body.inputs[std::size_t(e.index())]), bounds);
      });
  }
  std::vector<Expr> loads;
  for (const Expr e : topological(body.roots))
    if (e.op() == ExprOp::load) loads.push_back(e);
  std::stable_sort(loads.begin(), loads.end(), [](Expr a, Expr b) { return a.index() < b.index(); });
  std::unordered_map<std::uint32_t, Expr> leaves;
  std::vector<int> tables(body.inputs.size(), -1);
  for (const Expr load : loads) {
    const Operand o = this->view(body.inputs[std::size_t(load.index())]);
    if (const auto leaf = walked(o, load, space)) {
      leaves[load.id()] = expr::input(fused.values + int(fused.leaves.size()), load.type());
      fused.leaves.push_back(*leaf);
    } else if (tables[std::size_t(load.index())] < 0) {
      tables[std::size_t(load.index())] = int(fused.tables.size());
      fused.tables.push_back(o);
    }
  }
  for (const Expr root : body.roots)
    fused.roots.push_back(rewrite(root, [&](Expr e, Expr rebuilt) -> std::optional<Expr> {
      if (e.op() != ExprOp::load) return std::nullopt;
      if (const auto leaf = leaves.find(e.id()); leaf != leaves.end()) return leaf->second;
      return Body::with_table(rebuilt, tables[std::size_t(e.index())]);
    }));
  for (const int slot : body.slots) fused.constants.push_back(constant(slot));
  fused.program = Program(fused.roots);
  if (!view.roots.empty()) fused.hole = describe_hole(spec, view.roots, space.rank());
  return fused;
}

void Lowering::emit_planned(std::string name, PlannedKernel kernel) {
  std::vector<Operand> outputs;
  for (int k = 0; k < node().outputs; ++k)
    if (const Operand o = scheduler_.operand_[scheduler_.written_by(node_) + NodeId(k)]) outputs.push_back(o);
  std::vector<std::string> reasons;
  if (const auto product = scheduler_.products_.find(node_); product != scheduler_.products_.end())
    reasons = product->second.reasons;
  if (const Scheduler::Group* guests = scheduler_.guests_of(node_)) {
    for (const NodeId id : guests->members) outputs.push_back(scheduler_.operand_[id]);
    for (const std::string& reason : scheduler_.reasons_of(*guests)) reasons.push_back("fused: " + reason);
  }
  scheduler_.emit(std::move(name), node_, std::move(kernel), std::move(outputs), std::move(reasons));
}

void Lowering::emit(std::string name, Kernel kernel) {
  PlannedKernel k;
  k.work = std::move(kernel);
  emit_planned(std::move(name), std::move(k));
}

void Lowering::emit(CudaKernel kernel) {
  PlannedKernel k;
  std::string name = kernel.name;
  k.work = std::make_shared<const CudaKernel>(std::move(kernel));
  emit_planned(std::move(name), std::move(k));
}

void Lowering::emit(std::string name, const GemmCall& call) {
  PlannedKernel k;
  k.work = call;
  emit_planned(std::move(name), std::move(k));
}

void Lowering::emit(std::string name, const CollectiveCall& call) {
  PlannedKernel k;
  k.work = call;
  emit_planned(std::move(name), std::move(k));
}

void Lowering::emit_pointwise(std::string name, const Fused& source, const Operand& to) {
  const Shape space(std::span(to.dims.data(), std::size_t(to.rank)));
  scheduler_.emit_pointwise(std::move(name), node_, source, {to}, space, in_double(), {});
}

}  // namespace weft
