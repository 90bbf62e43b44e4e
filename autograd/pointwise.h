// The op of all pointwise computation: its ints are [Expr id, name id], its inputs broadcast to its shape. One op, so one
// gradient rule (jit/diff) and one way to fuse.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "autograd/op.h"
#include "autograd/tape.h"
#include "jit/expr.h"

namespace weft {

// Of one node: a user's has up to 8, and each derivative of it two more.
inline constexpr std::size_t kMostOperands = 32;

const Op& pointwise_op();
const Op& output_op();  // a further output of the node before
const Op& input_op();   // a value from outside; ints: position in Tape::bound
const Op& state_op();   // reads a State; ints: position in Tape::states

Expr pointwise_body(const Tape& tape, NodeId id);
std::string_view pointwise_name(const Tape& tape, NodeId id);

// `x` in the kind of a tensor of this type, but not yet narrowed to it: reals are truncated to integers and saturate.
Expr stored_as(DType to, Expr x);

// Names are kept for the life of the process; a node holds the number.
std::int64_t name_id(std::string_view name);

// Records body(inputs) of the given shape and dtype.
Tensor record_body(std::int64_t name, Expr body, std::span<const Tensor> inputs, std::span<const double> constants,
                   const Shape& shape, DType dtype, Site where);

// What several parts of the engine need before ops/ exists.
Tensor add(const Tensor& a, const Tensor& b, Site where);  // equal shapes
// A conversion is rounded where it is stored, not in a kernel that computes with it; a cast is always rounded.
Tensor convert(const Tensor& a, DType dtype, Site where);  // a itself if it has the dtype
Tensor copy(const Tensor& a, DType dtype, Site where);     // a node of its own: results and assigns are written by it
Tensor cast(const Tensor& a, DType dtype, Site where);     // a itself if it has the dtype
Tensor constant(double value, const Shape& shape, DType dtype, Site where);

// The gradient of the pointwise node `id` by its k-th input, given the nodes of its inputs, its value and its upstream
// gradient; kNone if it is zero. Has the node's shape and the input's dtype.
NodeId pointwise_gradient(Tape& tape, NodeId id, int k, std::span<const NodeId> inputs, NodeId output, NodeId upstream);

}  // namespace weft
