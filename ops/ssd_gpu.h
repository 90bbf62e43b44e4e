// ssd on a GPU, in kernels of its own: bf16 products on tensor cores, in chunks of steps.
//
// With a_t = Delta_t A, c_t the sum of a over the steps of a chunk up to t, q its last step, S- the state before it:
//   M_ts = (C_t . B_s) e^{c_t - c_s} Delta_s for s <= t, else 0
//   s_t = sum over s of M_ts x_s + e^{c_t} S- C_t + D x_t
//   S = e^{c_q} S- + sum over s of e^{c_q - c_s} Delta_s x_s B_s^T
// The gradients are in ops/ssd_grad.cuh.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "autograd/lowering.h"
#include "jit/parallel.h"
#include "ops/ssd.h"

namespace weft {

// Whether the kernels take heads of p features with n states: multiples of 8 up to 256.
bool gpu_ssd_fits(std::int64_t p, std::int64_t n);
// Whether the kernels take a call: of such sizes; x, B and C are bf16 and nothing is f64; there are steps, heads and batch
// elements.
bool gpu_ssd_takes(const SsdCall& call);
// With gradients of any order. It is recorded as the op "ssd_chunks".
SsdResult gpu_ssd(const SsdCall& call);

namespace ssd_layout {

// How the work is cut, by the sizes of a head alone. A row is what a warp or several of a block work at: PT features of a head.
struct SsdCut {
  int p, n;       // features of a head, states
  int q, pt;      // steps of a chunk, features of a row (facts of ops/ssd.cuh)
  int row_warps;  // that share a row in ssd_state, ssd_out and ssd_dstate

  SsdCut(std::int64_t features, std::int64_t states)
      : p(int(features)),
        n(int(states)),
        q(n > 128 ? 32 : 64),
        pt(std::clamp(int(std::bit_ceil(unsigned(p))), 16, n > 128 ? 32 : 64)),
        row_warps(pt / 16) {}

  int padded() const { return (n + 15) / 16 * 16; }
  int slices() const { return int(ceil_div(p, pt)); }  // rows of a head
  std::int64_t chunks(std::int64_t length) const { return ceil_div(length, q); }
};
constexpr int kStepFacts = 4;  // STEP_FACTS of ops/ssd.cuh

// Of the node "ssd_chunks". Inputs x (b, t, h, p), dt (b, t, h), A (h), B, C (b, t, g, n), D (h) or (h, p), initial (b, h, p,
// n), borders (b, t) i32; then what the holes dt and out capture. Outputs y (b, t, h, p) in x's type; the last state (b, h, p,
// n) in fp32; then what the gradient needs: facts of the steps (rows, chunks, kStepFacts q) in fp32, C B^T (b, g, chunks, q q)
// in bf16, the states before the chunks (rows, chunks, pt padded n) in bf16, and s, which goes into the out hole, (b, t, h, p)
// in bf16.
enum Input { kX, kDt, kA, kB, kC, kD, kInitial, kBorders, kFixed };  // those before the borders have gradients
enum Output { kY, kLast, kSteps, kProducts, kKept, kS };
enum HoleNumber { kStepHole, kOutHole };

// Of "ssd_chunks_backward". Inputs as forward's, then the last four of its outputs (s only if the out hole is filled), then the
// gradients of y and of the last state, of which one may be absent; then what the holes capture. Outputs dx, draw, dA, dB, dC,
// dD, d_initial; then those of the roots of the holes' gradients, over (b, t, h) and (b, t, h, p). Holes dt(raw), for second
// derivatives alone; dt_grad(raw, g) -> draw, ...; out_grad(s, g) -> e, .... Plain ints: for each root of dt_grad its output,
// or -1; likewise of out_grad.
enum BackwardInput { kInSteps = kFixed, kInProducts, kInKept, kInS, kGradient, kLastGradient };
enum BackwardOutput { kDx, kDraw, kDA, kDB, kDC, kDD, kDInitial };
enum BackwardHole { kStepAgain, kStepGrad, kOutGrad };

// ops/ssd_gpu_cuda.cpp
void cuda_ssd(Lowering& l);
void cuda_ssd_backward(Lowering& l);

}  // namespace ssd_layout

}  // namespace weft
