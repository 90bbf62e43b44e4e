// What structured ops with holes have in common.
#pragma once

#include <vector>

#include "autograd/backward.h"
#include "autograd/lowering.h"
#include "autograd/op.h"

namespace weft {

// The type of gradients that are summed afterwards: fp64 if an input is f64, else fp32.
inline DType sum_dtype(const Vjp& v) {
  for (int i = 0; i < v.inputs(); ++i)
    if (const Tensor t = v.input(i); t && t.dtype() == DType::f64) return DType::f64;
  return DType::f32;
}

// What an empty hole over `space` is in a text: the last of its values.
inline Fused passed_on(int values, const Shape& space) {
  Fused fused;
  fused.values = values;
  fused.roots = {expr::input(values - 1)};
  fused.dims.assign(space.dims().begin(), space.dims().end());
  return fused;
}

// Of a backward op: the outputs of the roots of its hole, absent where nobody reads one. Its plain ints from `first` on are
// HoleInVjp::outputs.
inline std::vector<Operand> root_outputs(Lowering& l, std::size_t roots, int first = 0) {
  std::vector<Operand> outputs(roots);
  for (std::size_t r = 0; r < roots; ++r)
    if (const std::int64_t k = l.integer(first + int(r)); k >= 0) outputs[r] = l.output(int(k));
  return outputs;
}

}  // namespace weft
