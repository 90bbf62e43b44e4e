#include "autograd/op.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

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

Tensor output_of(const Tensor& first, int k, Site where) {
  const NodeId id = first.node(where);
  if (const int outputs = tape().nodes[id].outputs; k < 0 || k >= outputs)
    fail_at(where, "output_of: the op has no such output", fmt::format("output {} of {}", k, outputs), "outputs count from 0");
  return handle(id + NodeId(k));
}

void fail_at(Site where, std::string what, std::string numbers, std::string hint) {
  const Tape& t = tape();
  throw Error(ErrorKind::usage, {std::move(what), std::move(numbers), t.where(where, t.frame), std::move(hint)});
}

void check_shape(const Shape& shape, Site where) {
  if (const char* fault = shape.fault())
    fail_at(where, fmt::format("shape: {}", fault), to_string(shape), "give sizes of 0 or more, at most 2^59 elements in all");
}

}  // namespace weft
