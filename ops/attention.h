// What the parts of the attention op have in common: a call as it is recorded, the numbering of operands, the plain form.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/hole.h"
#include "autograd/lowering.h"
#include "autograd/tensor.h"
#include "ops/ops.h"

namespace weft {

// A call of attention: checked, with everything that hides keys joined to one mask.
struct AttentionCall {
  Tensor q, k, v;  // v may be absent: attention_map
  double scale;
  Hole mask, score, weight, rotate;
  Pairing pairing;
  Site where;
  DType real() const;  // what is computed in: fp64 if q or what a hole captures is f64, else fp32
};

namespace attention_layout {

// Of the node "attention". b batch, h heads of q, g groups (h divisible by g: head n reads group n / (h/g)), tq, tk times.
// Inputs q (b, tq, h, dk), k (b, tk, g, dk), v (b, tk, g, dv), each f64, f32 or bf16; then what the holes capture. Outputs
// o (b, tq, h, dv) in q's type, and lse (b, h, tq), fp32 (fp64): the logarithm of the sum of exp(s) over the visible keys,
// -inf where there are none, for which o is 0. Constant 0 is the scale; plain int 0 the Pairing.
//
//   s_ij = score(scale rotate(q)_i . rotate(k)_j)
//   P_ij = visible_ij ? exp(s_ij - lse_i) : 0
//   o_i = sum_j weight_ij P_ij v_j
enum Input { kQ, kK, kV, kTensors };
enum Output { kO, kLse };
enum Constant { kScale };
enum Integer { kPairing, kFirstSum };
// mask(; b, h, i, j) -> boolean; score(s; b, h, i, j); weight(; b, h, i, j); rotate(x, y; b, h, t, p), two roots, over
// (b, h, tq, dk/2) for q and (b, g, tk, dk/2) for k. Lowering::hole gives score and weight with subscripts that are 0 where a
// place is hidden and they could be outside, so they may be evaluated anywhere in the space; what they give at a hidden place,
// NaN too, must not be used.
enum HoleNumber { kMask, kScore, kWeight, kRotate };

// Of the node "attention_backward". Inputs as forward's, then o, lse, and the gradient of o, (b, tq, h, dv) of any real type;
// then what the holes capture. Outputs dq, dk, dv, in the shapes and types of q, k, v; then sums of roots of score_grad, fp32
// (fp64). The plain ints from kFirstSum on list these: four for each root r, one for each SumForm (jit/skeleton.h), the output
// or -1. They are (b, h, 1, 1), (b, h, tq, 1), (b, h, 1, tk) and (b, h, tq + tk - 1), in which element i - j + tk - 1 is the
// sum over the places with this i - j. Hidden places add nothing, whatever the root is there. Constant 0 and int 0 are
// forward's.
//
//   delta_i = do_i . o_i
//   dP_ij = weight_ij do_i . v_j
//   g_ij = visible_ij ? P_ij (dP_ij - delta_i) : 0
//   ds_ij = visible_ij ? score_grad(s_ij, g_ij) : 0       its root 0; s_ij is here what goes into score. Without a score: g_ij
//   dv_j = sum_i weight_ij P_ij do_i
//   dq_i = rotate_grad(scale sum_j ds_ij rotate(k)_j)
//   dk_j = rotate_grad(scale sum_i ds_ij rotate(q)_i)
//
// summed over the heads of a group in dk and dv. A row whose lse is -inf has P = 0.
enum BackwardInput { kOut = kTensors, kLogSum, kGradient, kBackwardTensors };
enum BackwardOutput { kDq, kDk, kDv, kSums };
// score_grad(s, g; b, h, i, j) -> ds, further roots; filled if score is. rotate_grad(gx, gy; b, h, t, p) -> two roots, the
// spaces as in rotate.
enum BackwardHole { kBackwardMask, kBackwardScore, kScoreGrad, kBackwardWeight, kBackwardRotate, kRotateGrad };

}  // namespace attention_layout

// On the CPU (attention_cpu.cpp).
void lower_attention(Lowering& l);
void lower_attention_backward(Lowering& l);

// ---- the plain form, of other ops, with T^2 memory (attention_plain.cpp) ----------------------------------------------------

// (b, h, tq, tk): softmax of the scores over the visible keys; a row without any is 0.
Tensor plain_probabilities(const AttentionCall& call);
Tensor plain_attention(const AttentionCall& call);

// What attention_backward computes, from the gradient of o.
struct PlainGradients {
  Tensor dq, dk, dv;
  std::vector<Tensor> roots;  // of score_grad, (b, h, tq, tk), 0 where nothing is seen
};
PlainGradients plain_gradients(const AttentionCall& call, const Hole& score_grad, const Hole& rotate_grad,
                               const Tensor& upstream);
Tensor sum_in_form(const Tensor& root, SumForm form, Site where);  // as attention_backward sums a root

}  // namespace weft
