// What the parts of the attention op have in common.
#pragma once

#include <cstdint>

#include "autograd/hole.h"
#include "autograd/tensor.h"
#include "ops/ops.h"

namespace weft {

// A call of attention as it is recorded: checked, with everything that hides keys joined to one mask.
struct AttentionCall {
  Tensor q, k, v;  // v may be absent: attention_map
  double scale;
  Hole score, mask, weight, rotate;
  Pairing pairing;
  Site where;
  DType real() const;  // what is computed in: fp64 if q is f64, else fp32
};

// ---- the plain form, of other ops, with T^2 memory (attention_plain.cpp) ----------------------------------------------------

// (b, h, tq, tk): softmax of the scores over the visible keys; a row without any is 0.
Tensor plain_probabilities(const AttentionCall& call);
Tensor plain_attention(const AttentionCall& call);

}  // namespace weft
