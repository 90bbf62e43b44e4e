#include "optim/data_parallel.h"

#include <algorithm>
#include <cstdint>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/run.h"
#include "jit/ranks/ranks.h"
#include "ops/collective.h"
#include "ops/ops.h"
#include "optim/shards.h"

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

std::vector<Tensor> sum_bucket(std::span<const Traveller> bucket, bool bf16, Site where) {
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
  Tensor all = join(parts, sizes, 0, where);
  if (bf16) all = cast(Arg(all, where), DType::bf16);
  const Tensor sums = all_reduce(Arg(all, where));
  std::vector<Tensor> out;
  for (std::size_t k = 0; k < bucket.size(); ++k) {
    const Tensor& before = bucket[k].tensor;
    out.push_back(reshape(slice(sums, 0, places[k], places[k] + before.numel()), before.shape()));
  }
  return out;
}

}  // namespace

std::vector<Tensor> sum_gradients(std::span<const Param> params, std::span<const Tensor> values, SumOptions options,
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
  const auto bytes_of_one = [&](const Traveller& t) { return t.tensor.numel() * std::int64_t(size_of(t.tensor.dtype())); };
  const auto as_bf16 = [&](const Traveller& t) { return options.bf16 && t.param && t.tensor.dtype() == DType::f32; };
  std::int64_t left = 0;
  for (const Traveller& t : all) left += bytes_of_one(t);
  for (std::size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    const DType dtype = all[begin].tensor.dtype();
    const bool bf16 = as_bf16(all[begin]);
    const std::int64_t limit = bucket_limit(left, std::int64_t(options.bucket_bytes));
    std::int64_t bytes = 0;
    for (; end < all.size() && all[end].tensor.dtype() == dtype && as_bf16(all[end]) == bf16 && (end == begin || bytes < limit);
         ++end)
      bytes += bytes_of_one(all[end]);
    left -= bytes;
    const std::vector<Tensor> out = sum_bucket(std::span(all).subspan(begin, end - begin), bf16, where);
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
