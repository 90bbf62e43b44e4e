// The op behind AdamW::step, as its kernels on all devices see it.
// Inputs: the norm, then the gradient of each row. Ints: position of the flag, of the moments and of the powers, then of each
// row the param's position, the offset of its moments, whether it decays, and its row of the powers.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/lowering.h"

namespace weft::adamw {

inline constexpr std::size_t kStates = 3, kRowInts = 4;

enum Constant { kLr, kBeta1, kBeta2, kEps, kDecay, kClip, kStep, kConstants };

// A row: dense memory of the same number of elements.
struct Segment {
  Operand gradient, param, m, v;
  Operand twin;  // the parameter in bf16, or absent
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

}  // namespace weft::adamw
