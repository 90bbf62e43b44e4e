#include "autograd/op.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "autograd/context.h"
#include "autograd/pointwise.h"

namespace weft {
namespace {

std::deque<Op>& storage() {
  static std::deque<Op> ops;
  return ops;
}

}  // namespace

const Op& register_op(Op op) {
  std::deque<Op>& ops = storage();
  if (ops.size() == std::size(detail::op_table)) fail(ErrorKind::usage, "register_op: too many ops", std::string(op.name));
  op.id = std::uint16_t(ops.size());
  ops.push_back(op);
  return *(detail::op_table[op.id] = &ops.back());
}

std::span<const Op* const> registered_ops() { return {detail::op_table, storage().size()}; }

Tensor record(const Op& op, std::span<const Tensor> inputs, std::span<const Out> outputs, std::span<const std::int64_t> ints,
              std::span<const double> constants, Site where) {
  before_record();
  Tape& t = tape();
  constexpr std::size_t kFew = 16;
  NodeId few[kFew];
  std::vector<NodeId> many(inputs.size() > kFew ? inputs.size() : 0);
  NodeId* ids = many.empty() ? few : many.data();
  for (std::size_t i = 0; i < inputs.size(); ++i) ids[i] = inputs[i] ? inputs[i].node(where) : Tape::kNone;
  return handle(t.record(op, {ids, inputs.size()}, outputs, ints, constants, where));
}

Tensor record(const Op& op, std::initializer_list<Tensor> inputs, std::initializer_list<Out> outputs,
              std::span<const std::int64_t> ints, std::span<const double> constants, Site where) {
  return record(op, std::span(inputs.begin(), inputs.size()), std::span(outputs.begin(), outputs.size()), ints, constants,
                where);
}

Tensor output_of(const Tensor& first, int k) { return handle(first.node() + NodeId(k)); }

void fail_at(Site where, std::string what, std::string numbers, std::string hint) {
  const Tape& t = tape();
  throw Error(ErrorKind::usage, {std::move(what), std::move(numbers), t.where(where, t.frame), std::move(hint)});
}

// ---- holes ------------------------------------------------------------------------------------------------------------------
// Ints of a hole: [roots, captured, first_input, first_slot, slots, root ids...].

namespace {
constexpr int kHoleHeader = 5;

// Where the ints of hole h begin; h == number of holes gives the first plain int.
std::size_t hole_begin(std::span<const std::int64_t> ints, int h) {
  std::size_t at = 0;
  for (; h > 0; --h) at += kHoleHeader + std::size_t(ints[at]);
  return at;
}

}  // namespace

Recorder::Recorder(const Op& op, Site where) : op_(op), where_(where) { before_record(); }

Recorder& Recorder::input(const Tensor& t) {
  inputs_.push_back(t ? t.node(where_) : Tape::kNone);
  return *this;
}

Recorder& Recorder::hole(int h, const Hole& filled, const Shape& space) {
  const HoleSpec& spec = op_.holes[h];
  if (h != holes_++) fail_at(where_, fmt::format("{}: holes must be recorded in order", op_.name), std::string(spec.name));
  for (std::size_t k = 0; k < filled.captured.size(); ++k) {
    const Tensor& c = filled.captured[k];
    if (!c)
      fail_at(where_, fmt::format("{}: hole '{}' captures an absent tensor", op_.name, spec.name),
              fmt::format("captured {}", k));
    if (!broadcasts_to(c.shape(), space))
      fail_at(where_, fmt::format("{}: a tensor captured by hole '{}' does not broadcast to its space", op_.name, spec.name),
              fmt::format("captured {} is {}, the space {} is {}", k, to_string(c.shape()), spec.space, to_string(space)),
              "give it the shape of the space, or one that broadcasts to it");
    if (!spec.gradients && c.requires_grad())
      fail_at(where_, fmt::format("{}: hole '{}' gives no gradient to what it captures", op_.name, spec.name),
              fmt::format("captured {} requires a gradient", k), "detach() it, or apply the function outside the op");
  }
  for (const std::size_t header :
       {filled.roots.size(), filled.captured.size(), inputs_.size(), constants_.size(), filled.constants.size()})
    ints_.push_back(std::int64_t(header));
  for (const Expr root : filled.roots) ints_.push_back(root.id());
  for (const Tensor& c : filled.captured) input(c);
  for (const double c : filled.constants) constants_.push_back(c);
  return *this;
}

Recorder& Recorder::integer(std::int64_t value) {
  ints_.push_back(value);
  return *this;
}

Recorder& Recorder::constant(double value) {
  constants_.push_back(value);
  return *this;
}

Recorder& Recorder::out(const Shape& shape, DType dtype) {
  outs_.push_back({shape, dtype});
  return *this;
}

Tensor Recorder::record() { return handle(tape().record(op_, inputs_, outs_, ints_, constants_, where_)); }

// ---- holes of a recorded node -----------------------------------------------------------------------------------------------

HoleView hole_of(const Tape& tape, NodeId id, int h) {
  const auto ints = tape.ints_of(id).subspan(hole_begin(tape.ints_of(id), h));
  HoleView view;
  for (std::int64_t r = 0; r < ints[0]; ++r) view.roots.push_back(Expr::from_id(std::uint32_t(ints[kHoleHeader + r])));
  view.captured = int(ints[1]);
  view.first_input = int(ints[2]);
  view.first_slot = int(ints[3]);
  view.slots = int(ints[4]);
  return view;
}

std::span<const std::int64_t> plain_ints(const Tape& tape, NodeId id) {
  const auto ints = tape.ints_of(id);
  const std::size_t holes = tape.op(id).holes.size();
  return holes == 0 ? ints : ints.subspan(hole_begin(ints, int(holes)));
}

}  // namespace weft
