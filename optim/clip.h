// The global norm of gradients.
#pragma once

#include <span>

#include "autograd/tensor.h"

namespace weft {

// sqrt(sum over all tensors of ||g||^2): a scalar, f32 (f64 if a tensor is); accumulated in fp64 in an order that
// is the same on all devices, as are the bits. Absent tensors are skipped. Its gradient is 0 where it is 0.
Tensor global_norm(std::span<const Tensor> gradients, Site where = Site::current());

}  // namespace weft
