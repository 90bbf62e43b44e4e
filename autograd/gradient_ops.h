// What gradients are made of besides pointwise ops. autograd/ uses nothing else from ops/, which defines these, so a program
// links both.
#pragma once

#include <cstdint>
#include <span>

#include "autograd/shape.h"
#include "autograd/tensor.h"

namespace weft {

// Sums `t` over the axes along which `shape` was broadcast to t.shape(); ops/reduce.cpp.
Tensor sum_to(const Tensor& t, const Shape& shape, Site where = Site::current());
// Adds values[p] to element places[p] of n, those outside of [0, n) to nothing; ops/scatter.cpp.
Tensor scatter_sum(Arg values, Arg places, std::int64_t n);
// Rows of a table by id; ops/embedding.cpp.
Tensor embedding(Arg weight, Arg ids);
// The same elements in another shape; ops/view.cpp.
Tensor reshape(Arg a, Shape shape);
// Repeated along axes of size 1 and new ones on the left, without a copy; ops/view.cpp.
Tensor expand(Arg a, Shape shape);
// Joins the parts, in order, along `axis`, with zeros where a part is absent (its size is then in `sizes`); ops/view.cpp.
Tensor join(std::span<const Tensor> parts, std::span<const std::int64_t> sizes, int axis, Site where);

}  // namespace weft
