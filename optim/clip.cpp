#include "optim/clip.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "jit/parallel.h"
#include "jit/ranks/ranks.h"
#include "ops/collective.h"
#include "ops/ops.h"
#include "optim/chunks.h"
#include "optim/cuda.h"
#include "optim/sharded.h"
#include "optim/sharded_op.h"
#include "optim/shards.h"

namespace weft {

// Inputs: the parts. Ints: of each row the input, where it begins in its bucket, and its elements.
sharded::NormOperands sharded::norm_operands(Lowering& l) {
  NormOperands o;
  for (int i = 0; i < l.integers(); i += 3) {
    Operand part = l.dense(int(l.integer(i)));
    const std::int64_t n = l.integer(i + 2);
    const Shard own = shard_of(l.integer(i + 1), n, part.numel(), Ranks::joined()->rank());
    part.offset += own.at - own.begin;  // where its first element would be
    o.rows.push_back({part, own.begin, own.end});
    o.sizes.push_back(n);
  }
  return o;
}

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

// Of a chunk, whatever its type.
double sum_of_squares(const Launch& launch, const Operand& g, const Chunk& chunk) {
  double sum = 0;
  visit_dtype(g.dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, bf16>)
      sum = sum_of_squares(launch.pointer<T>(g) + chunk.begin, chunk.end - chunk.begin);
  });
  return sum;
}

// From the sums of all chunks, in a fixed order.
void write_norm(const Launch& launch, const double* sums, std::int64_t count, const Operand& out) {
  double threads[kTotalThreads] = {};
  for (std::int64_t c = 0; c < count; ++c) threads[std::size_t(c) % kTotalThreads] += sums[c];
  const double total = block_sum(threads);
  if (out.dtype == DType::f64) {
    *launch.pointer<double>(out) = std::sqrt(total);
  } else {
    *launch.pointer<float>(out) = float(std::sqrt(total));
  }
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
      sums[c] = sum_of_squares(launch, gradients[std::size_t(chunks[std::size_t(c)].segment)], chunks[std::size_t(c)]);
    });
    write_norm(launch, sums, std::int64_t(chunks.size()), out);
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

// The sums of all chunks, those of other ranks 0.
void lower_sharded_squares(Lowering& l) {
  const sharded::NormOperands o = sharded::norm_operands(l);
  const std::vector<Chunk> chunks = cut_into_chunks(o.sizes);
  l.emit("sharded_squares", [=, out = l.output()](const Launch& launch) {
    double* sums = launch.pointer<double>(out);
    parallel(std::int64_t(chunks.size()), [&](std::int64_t c) {
      const Chunk& chunk = chunks[std::size_t(c)];
      const auto& row = o.rows[std::size_t(chunk.segment)];
      const bool own = chunk.begin >= row.begin && chunk.begin < row.end;
      sums[c] = own ? sum_of_squares(launch, row.part, chunk) : 0;
    });
  });
}

void lower_norm_of_squares(Lowering& l) {
  const Operand sums = l.dense(0), out = l.output();
  if (!out) return;
  l.emit("norm_of_squares", [=](const Launch& launch) { write_norm(launch, launch.pointer<double>(sums), sums.numel(), out); });
}

const Op& sharded_squares_op = register_op(
    {.name = "sharded_squares", .lower = lower_sharded_squares, .cuda = cuda_sharded_squares, .dense_outputs = true});
const Op& norm_of_squares_op =
    register_op({.name = "norm_of_squares", .lower = lower_norm_of_squares, .cuda = cuda_norm_of_squares});

}  // namespace

Tensor sharded_norm(std::span<const Tensor> parts, std::span<const NormRow> rows, Site where) {
  std::vector<std::int64_t> ints, sizes;
  for (const NormRow& row : rows) {
    ints.insert(ints.end(), {row.part, row.at, row.n});
    sizes.push_back(row.n);
  }
  const Out squares{Shape{std::int64_t(cut_into_chunks(sizes).size())}, DType::f64};
  const Out norm{Shape{}, parts[0].dtype() == DType::f64 ? DType::f64 : DType::f32};
  const Tensor own = record(sharded_squares_op, parts, std::span(&squares, 1), ints, {}, where);
  const Tensor all = all_reduce(Arg(own, where));  // what is added to a sum is 0
  return record(norm_of_squares_op, std::span(&all, 1), std::span(&norm, 1), {}, {}, where);
}

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
