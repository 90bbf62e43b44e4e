// Ops that all ranks do together (jit/ranks/ranks.h): every rank records the same ones in the same order, on tensors of the
// same shapes. In a process that has joined no ranks they are those of a group of one: the value itself. With n ranks and x_r
// the value of rank r:
#pragma once

#include "autograd/tensor.h"

namespace weft {

// sum_r x_r, on every rank. Its gradient is all_reduce of the gradient: that of the sum of all ranks' losses.
Tensor all_reduce(Arg x);
// x_root, on every rank. Its gradient is, on rank `root`, the sum of the gradients; zero elsewhere.
Tensor broadcast_from(Arg x, int root = 0);
// x_0, x_1, ... joined along their first axis (d, ...) -> (n d, ...).
Tensor all_gather(Arg x);
// Of sum_r x_r, the part of this rank along the first axis: (n d, ...) -> (d, ...).
Tensor reduce_scatter(Arg x);

}  // namespace weft
