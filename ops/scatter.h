// Sums of rows by number, which are the gradients of lookups: what embedding's gradient and scatter_sum share.
#pragma once

#include <cstdint>
#include <string>

#include "autograd/op.h"

namespace weft {

// out[e] = the sum of the rows values[p] at the places p with ids[p] = e, added by the owner of e in ascending order of p
// (on a GPU in chunks of places, whose sums are then added in order). Rows of `out` that no place names are 0.
struct RowScatter {
  Operand ids;     // (...) integers, any strides; fewer than kMaxRank axes
  Operand values;  // (..., d), rows
  Operand out;     // (v, d), rows
  bool drops;      // an id outside of [0, v) adds to nothing, else it is the error of embedding
};
void emit_scatter(Lowering& l, std::string name, const RowScatter& s);       // on the CPU (ops/scatter.cpp)
void emit_scatter_cuda(Lowering& l, std::string name, const RowScatter& s);  // on a GPU (ops/scatter_cuda.cpp)

}  // namespace weft
