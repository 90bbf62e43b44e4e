// What structured ops with holes have in common.
#pragma once

#include <vector>

#include "autograd/backward.h"
#include "autograd/lowering.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"

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

// What the rule of a backward op begins with that composes its outputs again: input i in the type of sums, and the gradient
// before the hole, as in the kernel; the outputs of the hole's roots are put into `outputs`. The values are what went into the
// hole, and the gradient of what came out.
inline Tensor real_input(const Vjp& v, int i) {
  const Tensor t = v.input(i);
  return t ? convert(t, sum_dtype(v), v.where()) : t;
}
inline Tensor compose_hole(const Vjp& v, const Tensor& value, const Tensor& gradient, int first, std::vector<Tensor>& outputs,
                           int h = 0) {
  const auto roots = int(v.hole(h).roots.size());
  if (roots == 0) return gradient;
  Tensor before;
  for (int r = 0; r < roots; ++r) {
    const std::int64_t k = v.integer(first + r);
    if (r > 0 && (k < 0 || !v.grad(int(k)))) continue;
    const Tensor root = root_of(v, h, r, {value, gradient}, value.shape(), sum_dtype(v));
    if (r == 0) before = root;
    if (k >= std::int64_t(outputs.size())) outputs.resize(std::size_t(k) + 1);
    if (k >= 0) outputs[std::size_t(k)] = root;
  }
  return before;
}

}  // namespace weft
