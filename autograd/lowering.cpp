#include "autograd/lowering.h"

#include <fmt/format.h>

#include "autograd/schedule.h"

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

Epilogue Lowering::epilogue(std::optional<DType> dtype) {
  Epilogue e;
  if (inputs() > 2) e.bias = dense(2, dtype);
  const auto found = scheduler_.products_.find(node_);
  if (found == scheduler_.products_.end()) return e;
  const Scheduler::Product& product = found->second;
  e.activation = product.activation;
  if (product.bias != Tape::kNone) {
    e.bias = of_node(product.bias, dtype);
    if (!e.bias.contiguous()) e.bias = copied(e.bias);
  }
  if (product.addend != Tape::kNone) {
    e.addend = of_node(product.addend, dtype);
    if (!e.addend.rows() || e.addend.row_stride() < e.addend.dims[std::size_t(e.addend.rank - 1)]) e.addend = copied(e.addend);
  }
  return e;
}

Fused Lowering::source(int i) {
  Scheduler& s = scheduler_;
  const NodeId input = s.t_.inputs_of(node_)[std::size_t(i)];
  const bool inlined = s.is_pointwise(input) && !s.stored_[input];
  const Expr e = inlined ? s.expr_[input] : expr::input(int(input), expr_type(s.t_.nodes[input].dtype));
  return s.fused_over({is_real(s.t_.nodes[input].dtype) ? to_real(e) : e}, s.t_.shape(input));
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

Fused Lowering::hole(int h, const Shape& space) {
  const HoleView view = hole_of(scheduler_.t_, node_, h);
  const int values = scheduler_.t_.op(node_).holes[std::size_t(h)].values;
  Fused fused;
  fused.values = values;
  fused.roots.assign(view.roots.begin(), view.roots.end());
  if (fused.roots.empty()) fused.roots = {expr::input(values - 1)};
  for (int k = 0; k < view.captured; ++k) {
    fused.leaves.push_back(broadcast_to(this->view(view.first_input + k), space.dims()));
  }
  if (input_count(fused.roots) > values + view.captured)
    fail(ErrorKind::usage,
         fmt::format("{}: hole '{}' reads an input that it was not given", scheduler_.t_.op(node_).name,
                     scheduler_.t_.op(node_).holes[std::size_t(h)].name),
         fmt::format("input {} of {}", input_count(fused.roots) - 1, values + view.captured));
  for (int k = 0; k < view.slots; ++k) fused.constants.push_back(constant(view.first_slot + k));
  fused.program = Program(fused.roots);
  return fused;
}

void Lowering::emit_planned(std::string name, PlannedKernel kernel) {
  std::vector<Operand> outputs;
  for (int k = 0; k < node().outputs; ++k)
    if (const Operand o = scheduler_.operand_[scheduler_.written_by(node_) + NodeId(k)]) outputs.push_back(o);
  const auto product = scheduler_.products_.find(node_);
  scheduler_.emit(std::move(name), node_, std::move(kernel), std::move(outputs),
                  product == scheduler_.products_.end() ? std::vector<std::string>{} : product->second.reasons);
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

void Lowering::emit_pointwise(std::string name, const Fused& source, const Operand& to) {
  const Shape space(std::span(to.dims.data(), std::size_t(to.rank)));
  scheduler_.emit_pointwise(std::move(name), node_, source, {to}, space, in_double(), {});
}

}  // namespace weft
