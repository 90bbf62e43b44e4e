// The op behind AdamW::step, as its kernels on all devices see it.
// Inputs: the norm, then the gradient of each row. Ints: position of the flag, of the moments and of the powers, then of each
// row the param's position, the offset of its moments, whether it decays, and its row of the powers.
// "adamw_sharded" (shards.h): inputs the norm, then parts of the buckets' gradients. Ints: the same positions, then of each row
// the param's position, whether it decays, its row of the powers, the input with its bucket's part, where it begins in the
// bucket, and where the part lies in the rank's moments. Its output, which lies as they do, are the new values.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/lowering.h"

namespace weft::adamw {

inline constexpr std::size_t kStates = 3, kRowInts = 4, kShardInts = 6;

enum Constant { kLr, kBeta1, kBeta2, kEps, kDecay, kClip, kStep, kConstants };

// A row: dense memory of the same number of elements.
struct Segment {
  Operand gradient, param, m, v;
  Operand twin;  // the parameter in bf16, or absent
  Operand part;  // where its new values go instead of `param`, or absent
  bool decay;
  std::int64_t powers;  // its row
};

struct Operands {
  Operand norm, flag;  // scalars
  Operand powers;      // (rows, 2)
  std::vector<Segment> segments;
  std::vector<std::int64_t> sizes;  // elements of each segment
};
Operands operands(Lowering& l);
Operands sharded_operands(Lowering& l);  // of this rank; a row of which it has nothing has no elements

}  // namespace weft::adamw
