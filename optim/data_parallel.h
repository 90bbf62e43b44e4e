// Data-parallel training: each rank has the gradients of its part of a batch, and the optimizer needs their sums.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "autograd/state.h"

namespace weft {

struct SumOptions {
  std::size_t bucket_bytes = std::size_t(25) << 20;
  // Gradients in f32 are rounded to bf16, summed and given to the optimizer so: half the traffic, and of each rank's gradient
  // 8 bits of the mantissa.
  bool bf16 = false;
};

// Between backward() and an optimizer's step(), in one recording: replaces the gradient of each param by its sum over all
// ranks, pending gradients of earlier runs included, and returns the sums of `values` beside them (losses, counts: f32 or f64
// as the params are, any shapes). They travel in buckets of about `bucket_bytes` (see bucket_limit), laid out by the producers
// of the gradients and sent as soon as they are full, so that backward goes on meanwhile. In a process that has joined no ranks
// it changes nothing. An optimizer whose state is sharded (AdamWOptions::sharded) sums by itself: it is called without params
// then.
std::vector<Tensor> sum_gradients(std::span<const Param> params, std::span<const Tensor> values = {}, SumOptions options = {},
                                  Site where = Site::current());

// Makes the States of all ranks those of rank 0. At once, between steps.
void broadcast_states(std::span<const State> states);

}  // namespace weft
