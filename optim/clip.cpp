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

constexpr int kLanes = 8;  // partial sums, so that the loop vectorises in a fixed order

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] += double(x[i + k]) * double(x[i + k]);
  double total = 0;
  for (; i < n; ++i) total += double(x[i]) * double(x[i]);
  for (double lane : lanes) total += lane;
  return total;
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
    double total = 0;
    for (std::size_t c = 0; c < chunks.size(); ++c) total += sums[c];
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
