// The ops of a sharded update (optim/shards.h) besides the update itself.
#pragma once

#include <cstdint>
#include <span>

#include "autograd/state.h"
#include "autograd/tensor.h"

namespace weft {

// Element `at` of a bucket is the first of the tensor.
struct PlacedTensor {
  Tensor tensor;
  std::int64_t at;
};
struct PlacedParam {
  Param param;
  std::int64_t at;
};

// A bucket: (size), zeros between the tensors.
Tensor laid_out(std::span<const PlacedTensor> tensors, std::int64_t size, Site where);

// A gradient: element `at` of the bucket whose part is parts[part] is the first of its n.
struct NormRow {
  int part;
  std::int64_t at, n;
};
// global_norm (optim/clip.h) of gradients of which each rank has a part; the same bits, if the gradients have. Not
// differentiable.
Tensor sharded_norm(std::span<const Tensor> parts, std::span<const NormRow> rows, Site where);

// Writes the params, and their twins, from a bucket that has them all, unless `bad_step` is not 0. The caller marks them as
// assigned.
void place_weights(const State& bad_step, const Tensor& bucket, std::span<const PlacedParam> params, Site where);

}  // namespace weft
