#include "optim/clip.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "jit/parallel.h"
#include "ops/ops.h"
#include "optim/chunks.h"
#include "optim/cuda.h"

namespace weft {
namespace {

// The sums of a GPU's block, in its order: a thread has four, of every fourth element of its vectors, and then the block folds
// those of its threads, warp by warp (block_sum of jit/prelude.cuh).
double fold(double* x) {  // of a warp
  for (int d = 16; d > 0; d /= 2)
    for (int i = 0; i < d; ++i) x[i] += x[i + d];
  return x[0];
}
double block_sum(std::span<double> threads) {
  double warps[32] = {};
  for (std::size_t w = 0; 32 * w < threads.size(); ++w) warps[w] = fold(&threads[32 * w]);
  return fold(warps);
}

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  constexpr std::int64_t kWidth = 4 * kChunkThreads;
  double sums[kWidth] = {};
  for (std::int64_t i = 0; i < n; i += kWidth) {
    const std::int64_t count = std::min(kWidth, n - i);
#pragma omp simd
    for (std::int64_t j = 0; j < count; ++j) sums[j] += double(x[i + j]) * double(x[i + j]);
  }
  for (std::size_t t = 0; t < kChunkThreads; ++t)
    sums[t] = (sums[4 * t] + sums[4 * t + 1]) + (sums[4 * t + 2] + sums[4 * t + 3]);
  return block_sum(std::span(sums).first(kChunkThreads));
}

void lower_global_norm(Lowering& l) {
  std::vector<Operand> gradients;
  std::vector<std::int64_t> sizes;
  for (int i = 0; i < l.inputs(); ++i) {
    if (!l.has(i)) continue;
    gradients.push_back(l.dense(i));
    sizes.push_back(gradients.back().numel());
  }
  const std::vector<Chunk> chunks = cut_into_chunks(sizes);
  const std::int64_t parts = std::max<std::int64_t>(std::int64_t(chunks.size()), 1);
  const Operand partial = l.scratch(DType::f64, std::span(&parts, 1)), out = l.output();
  l.emit("global_norm", [=](const Launch& launch) {
    double* sums = launch.pointer<double>(partial);
    parallel(std::int64_t(chunks.size()), [&](std::int64_t c) {
      const Chunk& chunk = chunks[c];
      const Operand& g = gradients[chunk.segment];
      visit_dtype(g.dtype, [&]<class T>(T) {
        if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, bf16>)
          sums[c] = sum_of_squares(launch.pointer<T>(g) + chunk.begin, chunk.end - chunk.begin);
      });
    });
    double threads[kTotalThreads] = {};
    for (std::size_t c = 0; c < chunks.size(); ++c) threads[c % kTotalThreads] += sums[c];
    const double total = block_sum(threads);
    if (out.dtype == DType::f64) {
      *launch.pointer<double>(out) = std::sqrt(total);
    } else {
      *launch.pointer<float>(out) = float(std::sqrt(total));
    }
  });
}

// d||g|| / dg = g / ||g||; 0 at 0, as of sqrt.
void global_norm_vjp(Vjp& v) {
  const Tensor norm = v.output(), zero = constant(0, Shape{}, norm.dtype(), v.where());
  const Tensor scale = where(equal(norm, zero), zero, v.grad() / norm);
  for (int i = 0; i < v.inputs(); ++i)
    if (v.needs(i)) v.add(i, v.input(i) * scale);
}
const Op& global_norm_op =
    register_op({.name = "global_norm", .vjp = global_norm_vjp, .lower = lower_global_norm, .cuda = cuda_global_norm});

}  // namespace

Tensor global_norm(std::span<const Tensor> gradients, Site where) {
  Out out;
  bool any = false;
  for (const Tensor& g : gradients) {
    if (!g) continue;
    any = true;
    if (!is_real(g.dtype())) fail_at(where, "global_norm: a gradient must be real", std::string(name_of(g.dtype())));
    if (g.dtype() == DType::f64) out.dtype = DType::f64;
  }
  if (!any) fail_at(where, "global_norm: there is no gradient", {}, "call backward first");
  return record(global_norm_op, gradients, std::span(&out, 1), {}, {}, where);
}

}  // namespace weft
