// What the CPU's and the GPU's selective scan have in common: the numbering of operands, the chunk, and rows of B and C.
#pragma once

#include <cstdint>

#include "autograd/lowering.h"
#include "jit/parallel.h"

namespace weft::scan_layout {

constexpr std::int64_t kTime = 32;  // steps of a chunk: a state is kept for each

// A scan in bf16 with 16 states has kernels of its own on a GPU (ops/scan16.cuh), which keep a state for each eighth step, of
// whole tiles, in 16 bits: words (b, chunks, i / 16, kKeptWords) of i32. The CPU lays its states into the same memory.
constexpr std::int64_t kStates16 = 16, kChunk16 = 8, kTile16 = 32, kKeptWords = 144;
inline std::int64_t chunks16(std::int64_t t) { return ceil_div(t, kTile16) * (kTile16 / kChunk16); }

// Inputs u, delta (b, t, i), A (i, n), B, C (b, t, n) or (b, t, g, n), D (i), initial (b, i, n), borders (b, t) i32, 1 where
// the state is cut, then what the holes capture. Outputs y (b, t, i), h_T (b, i, n), states (b, chunks, n, i) at the start of
// each chunk; of the kernels for 16 states also s (b, t, i), what the out hole is given. Plain ints: whether it is for those.
enum Input { kU, kDelta, kA, kB, kC, kD, kInitial, kBorders, kFixed };  // those before the borders have gradients
enum Output { kY, kLast, kKept, kS };

// Of the backward op. Inputs as forward's, then states, the gradients of y and of h_T (each may be absent), s where the kernels
// for 16 states need it, then what the holes capture. Outputs du, draw (b, t, i), dA, dB, dC, dD, d_initial; then the gradients
// of captured tensors, over the space (b, t, i) or summed over its rows (i). Holes: delta(raw); delta_grad(raw, dDelta) ->
// draw, ...; out_grad(s, do) -> e,
// ... Plain ints: for each root of delta_grad its output over the space, or -1 for none, then for each the output of its sum;
// likewise of out_grad.
enum BackwardInput { kStates = kFixed, kG, kGLast, kSValue };
enum BackwardOutput { kDu, kDraw, kDA, kDB, kDC, kDD, kDInitial };

// B or C, (b, t, n) or (b, t, g, n): rows of n with a stride for each leading axis.
struct GroupRows {
  Operand operand;
  std::int64_t batch = 0, time = 0, group = 0;
  GroupRows() = default;
  explicit GroupRows(const Operand& o) : operand(o), batch(o.strides[0]), time(o.strides[1]) {
    if (o.rank == 4) group = o.strides[2];
  }
};
inline GroupRows group_rows(Lowering& l, int i) {
  const Operand o = l.view(i);
  return GroupRows(o.dims[o.rank - 1] == 1 || o.strides[o.rank - 1] == 1 ? o : l.dense(i));
}

// Where a document begins the state decays over a step so long that nothing of it remains; what the step feeds is that of its
// true size.
constexpr double kLongStep = 0x1p100;

// Whether the kernels for 16 states take a scan: of `u`, `delta`, `B` and `C` in bf16 (ops/scan16_cuda.cpp).
bool takes_scan16(const Shape& u, std::int64_t states, std::int64_t groups);
void cuda_scan16(Lowering& l);
void cuda_scan16_backward(Lowering& l);

}  // namespace weft::scan_layout
