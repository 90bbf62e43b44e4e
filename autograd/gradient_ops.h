// Ops that gradients are made of, besides pointwise ones. All that autograd/ needs of ops/, which defines them: a program links
// both.
#pragma once

#include <cstdint>
#include <span>

#include "autograd/shape.h"
#include "autograd/tensor.h"

namespace weft {

// Sums `t` over the axes along which `shape` was broadcast to t.shape(); ops/reduce.cpp.
Tensor sum_to(const Tensor& t, const Shape& shape, Site where = Site::current());
// Joins the parts, in order, along `axis`, with zeros where a part is absent (its size is then in `sizes`); ops/view.cpp.
Tensor join(std::span<const Tensor> parts, std::span<const std::int64_t> sizes, int axis, Site where);

}  // namespace weft
