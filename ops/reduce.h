// What the reductions of the CPU and of the GPU share.
#pragma once

#include <cstdint>

#include "autograd/op.h"
#include "autograd/shape.h"

namespace weft {

enum ReduceKind : std::int64_t { kReduceSum, kReduceMax };
enum RowKind : std::int64_t { kSoftmax, kLogSoftmax, kLogsumexp };

// The canonical space of a reduction: out[o, i] = fold over r of source[o, r, i].
struct ReduceSpace {
  std::int64_t outer, reduced, inner;
};

// Orders the axes of `shape`, and of the leaves that span it, as outer, reduced, inner. Kept axes behind the last reduced
// one are inner, so elements of the result stay in order and reads follow memory.
ReduceSpace canonical(Fused& source, Shape& shape, std::uint32_t mask);

// On a GPU: out = fold of `source` over the canonical space; `shape` is that of the source. (ops/reduce_cuda.cpp)
void emit_reduce(Lowering& l, ReduceKind kind, Fused source, const Shape& shape, ReduceSpace space, const Operand& out);
// out (n) = the sum of partial sums (parts, n), in order.
void emit_sum_of_parts(Lowering& l, const Operand& partials, const Operand& out);
// Fills `to` with a literal.
void emit_fill(Lowering& l, double value, const Operand& to);

}  // namespace weft
