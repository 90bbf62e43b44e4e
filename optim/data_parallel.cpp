#include "optim/data_parallel.h"

#include <algorithm>
#include <cstdint>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/run.h"
#include "jit/ranks/ranks.h"
#include "ops/collective.h"
#include "ops/ops.h"

namespace weft {
namespace {

// One of a bucket's tensors, flat, and where it goes.
struct Traveller {
  const Param* param;  // null: a value
  std::size_t value;
  Tensor tensor;
};

// The parts of a bucket begin where a GPU's vectors may.
constexpr std::int64_t kBucketUnit = 4;  // elements

std::vector<Tensor> sum_bucket(std::span<const Traveller> bucket, Site where) {
  std::vector<Tensor> parts;
  std::vector<std::int64_t> sizes, places;
  std::int64_t at = 0;
  for (const Traveller& t : bucket) {
    const std::int64_t n = t.tensor.numel(), gap = (kBucketUnit - n % kBucketUnit) % kBucketUnit;
    places.push_back(at);
    parts.push_back(reshape(t.tensor, {n}));
    sizes.push_back(n);
    if (gap) parts.emplace_back(), sizes.push_back(gap);
    at += n + gap;
  }
  const Tensor sums = all_reduce(join(parts, sizes, 0, where));
  std::vector<Tensor> out;
  for (std::size_t k = 0; k < bucket.size(); ++k) {
    const Tensor& before = bucket[k].tensor;
    out.push_back(reshape(slice(sums, 0, places[k], places[k] + before.numel()), before.shape()));
  }
  return out;
}

}  // namespace

std::vector<Tensor> sum_gradients(std::span<const Param> params, std::span<const Tensor> values, std::size_t bucket_bytes,
                                  Site where) {
  std::vector<Tensor> sums(values.begin(), values.end());
  if (!Ranks::joined()) return sums;
  const NoGrad off;
  std::vector<Traveller> all;
  for (const Param& p : params)
    if (const Tensor g = take_gradient(p, where)) all.push_back({&p, 0, g});
  // In the order in which backward makes them, which is that of the tape.
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.tensor.node() < b.tensor.node(); });
  std::vector<Traveller> own;
  for (std::size_t k = 0; k < values.size(); ++k) own.push_back({nullptr, k, values[k]});
  all.insert(all.begin(), own.begin(), own.end());
  for (std::size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    const DType dtype = all[begin].tensor.dtype();
    std::size_t bytes = 0;
    for (; end < all.size() && all[end].tensor.dtype() == dtype && (end == begin || bytes < bucket_bytes); ++end)
      bytes += std::size_t(all[end].tensor.numel()) * size_of(dtype);
    const std::vector<Tensor> out = sum_bucket(std::span(all).subspan(begin, end - begin), where);
    for (std::size_t k = begin; k < end; ++k) {
      if (all[k].param)
        put_gradient(*all[k].param, out[k - begin]);
      else
        sums[all[k].value] = out[k - begin];
    }
  }
  return sums;
}

void broadcast_states(std::span<const State> states) {
  if (!Ranks::joined()) return;
  run([&] {
    const NoGrad off;
    for (const State& s : states) assign(s, broadcast_from(s));
  });
}

}  // namespace weft
