// What the reductions of the CPU and of the GPU share.
#pragma once

#include <cstdint>
#include <string>

#include "autograd/lowering.h"
#include "autograd/shape.h"

namespace weft {

enum ReduceKind : std::int64_t { kReduceSum, kReduceMax };
enum RowKind : std::int64_t { kSoftmax, kLogSoftmax, kLogsumexp };

// The canonical space of a reduction: out[o, i] = fold over r of source[o, r, i].
struct ReduceSpace {
  std::int64_t outer, reduced, inner;
};

// Orders the axes of `shape`, and of the leaves that span it, as outer, reduced, inner. Kept axes after the last reduced
// one are inner, so elements of the result stay in order and reads follow memory.
ReduceSpace canonical(Fused& source, Shape& shape, std::uint32_t mask);

// On a GPU: out = fold of `source` over the canonical space; `shape` is that of the source. (ops/reduce_cuda.cpp)
void emit_reduce(Lowering& l, ReduceKind kind, Fused source, const Shape& shape, ReduceSpace space, const Operand& out);
// How partial sums are added: strip s of `strips`, a power of two, adds parts s, s + strips, ... in this order, then the strips
// are added in order; kTree: pairwise, as many strips as fill a GPU.
enum SumOrder : int { kInOrder = 1, kEightStrips = 8, kTree = 0 };
// On a GPU: the sums over the first axis of `partials` (parts, ...), dense, whose other axes are the elements of `first` and
// then those of `second`, if it is present; `second` may be all there is. Both are rows or a transposed matrix.
void emit_sum_of_parts(Lowering& l, std::string name, const Operand& partials, SumOrder order, Operand first,
                       Operand second = {});
// Fills `to` with a literal.
void emit_fill(Lowering& l, double value, const Operand& to);

}  // namespace weft
