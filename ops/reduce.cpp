// sum, max: one skeleton over the canonical space (outer, reduced, inner). softmax, log_softmax, logsumexp: one skeleton over
// rows. Prologues are fused into both.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "jit/vmath.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "ops/reduce.h"

namespace weft {
namespace {

// The axes as a bit mask; all if none is named.
std::uint32_t axis_mask(const Arg& a, const std::vector<int>& axes, std::string_view op) {
  const int rank = a.shape().rank();
  std::uint32_t mask = 0;
  for (int axis : axes) {
    if (axis < -rank || axis >= rank)
      fail_at(a.where(), fmt::format("{}: no such axis", op), fmt::format("axis {} of {}", axis, to_string(a.shape())),
              "axes count from 0, or from the end with -1");
    const std::uint32_t bit = 1u << (axis < 0 ? axis + rank : axis);
    if (mask & bit)
      fail_at(a.where(), fmt::format("{}: an axis is named twice", op),
              fmt::format("axis {} of {}", axis, to_string(a.shape())), "name every axis once; none means all of them");
    mask |= bit;
  }
  return axes.empty() ? (1u << rank) - 1 : mask;
}

Shape reduced_shape(const Shape& from, std::uint32_t mask, bool keep) {
  Shape out;
  for (int i = 0; i < from.rank(); ++i)
    if (!(mask >> i & 1))
      out.push_back(from[i]);
    else if (keep)
      out.push_back(1);
  return out;
}

// ---- sum and max over axes --------------------------------------------------------------------------------------------------

constexpr int kLanes = 16;  // partial sums kept apart, so that the loop vectorises; the order is fixed

template <class T>
T sum_block(const T* x, int n) {
  T lane[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] += x[i + j];
  for (; i < n; ++i) lane[i % kLanes] += x[i];
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int j = 0; j < w; ++j) lane[j] += lane[j + w];
  return lane[0];
}

template <class T>
T larger(T a, T b) {  // a NaN on either side stays
  return b > a || b != b ? b : a;
}

template <class T>
T max_block(const T* x, std::int64_t n) {
  T lane[kLanes];
  std::fill(lane, lane + kLanes, -std::numeric_limits<T>::infinity());
  for (std::int64_t i = 0; i < n; ++i) lane[i % kLanes] = larger(lane[i % kLanes], x[i]);
  for (int j = 1; j < kLanes; ++j) lane[0] = larger(lane[0], lane[j]);
  return lane[0];
}

// The fold of elements [first, first + n).
template <class T>
T fold_row(ReduceKind kind, Runner<T>& source, std::int64_t first, std::int64_t n) {
  double sum = 0;
  T high = -std::numeric_limits<T>::infinity();
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const int m = int(std::min<std::int64_t>(kBlock, n - i));
    const T* x = source.read(first + i, m);
    if (kind == kReduceSum)
      sum += double(sum_block(x, m));
    else
      high = larger(high, max_block(x, m));
  }
  return kind == kReduceSum ? T(sum) : high;
}

// out[o, i] = fold over r of source[o, r, i]. Long reductions are cut into chunks whose partial results are folded in order.
template <class T>
void reduce_to(const Launch& launch, const Fused& source, ReduceKind kind, ReduceSpace s, const Operand& out) {
  const T start = kind == kReduceSum ? T(0) : -std::numeric_limits<T>::infinity();
  const std::int64_t width = std::min<std::int64_t>(s.inner, kBlock);  // columns of one part
  const std::int64_t columns = (s.inner + width - 1) / std::max<std::int64_t>(width, 1);
  const std::int64_t chunk = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(width, 1));
  const std::int64_t chunks = std::max<std::int64_t>(1, (s.reduced + chunk - 1) / chunk);
  std::vector<T> partial(std::size_t(s.outer * s.inner * chunks), start);
  // Short reductions (rows of a norm, of a bias over a small batch) share a part.
  const std::int64_t tasks = s.outer * columns * chunks;
  const std::int64_t batch = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, width * std::min(chunk, s.reduced)));
  parallel((tasks + batch - 1) / batch, [&](std::int64_t part) {
    Runner<T> runner(launch, source);
    LongSums<T> sums(width);
    for (std::int64_t task = part * batch; task < std::min(tasks, (part + 1) * batch); ++task) {
      const std::int64_t c = task % chunks, column = task / chunks % columns, o = task / chunks / columns;
      const std::int64_t begin = c * chunk, end = std::min(s.reduced, begin + chunk), i = column * width;
      const int n = int(std::min(width, s.inner - i));
      T* total = partial.data() + (c * s.outer + o) * s.inner + i;
      if (s.inner == 1) {
        *total = fold_row(kind, runner, o * s.reduced + begin, end - begin);
        continue;
      }
      for (std::int64_t r = begin; r < end; ++r) {
        const T* x = runner.read((o * s.reduced + r) * s.inner + i, n);
        if (T* sum = kind == kReduceSum ? sums.next() : nullptr)
          for (int k = 0; k < n; ++k) sum[k] += x[k];
        else
          for (int k = 0; k < n; ++k) total[k] = larger(total[k], x[k]);
      }
      if (kind == kReduceSum) sums.move_to(total, n);
    }
  });
  fold_parts(launch, partial.data(), chunks, s.outer * s.inner, out, start,
             [kind](double a, double b) { return kind == kReduceSum ? a + b : larger(a, b); });
}

// ints: kind, mask of the reduced axes.
void lower_reduce(Lowering& l) {
  const auto kind = ReduceKind(l.integer(0));
  Fused source = l.source(0);
  Shape shape = l.shape(0);
  const ReduceSpace space = canonical(source, shape, std::uint32_t(l.integer(1)));
  const Operand out = l.output();
  const bool wide = l.in_double();
  l.emit(kind == kReduceSum ? "reduce_sum" : "reduce_max", [=, source = std::move(source)](const Launch& launch) {
    wide ? reduce_to<double>(launch, source, kind, space, out) : reduce_to<float>(launch, source, kind, space, out);
  });
}

// bf16 as fp32: what a rule computes in several steps is rounded to bf16 once, at its end.
Tensor widened(const Tensor& t, Site where) { return t.dtype() == DType::bf16 ? cast(Arg(t, where), DType::f32) : t; }

// The gradient, given or seen with the reduced axes kept as size 1.
Tensor with_axes(const Tensor& t, const Shape& from, std::uint32_t mask, Site where) {
  return reshape(Arg(t, where), reduced_shape(from, mask, true));
}

void reduce_vjp(Vjp& v) {
  const Tensor x = v.input(0);
  const Shape shape = x.shape();
  const auto mask = std::uint32_t(v.integer(1));
  const Tensor g = with_axes(v.grad(), shape, mask, v.where());
  if (v.integer(0) == kReduceSum) {
    v.add(0, expand(g, shape));
    return;
  }
  // Ties share the gradient evenly, as NaNs do.
  const DType real = compute_dtype(x);
  const Tensor hit = pointwise("is_max", {Arg(x, v.where()), Arg(with_axes(v.output(), shape, mask, v.where()), v.where())},
                               [](Expr e, Expr high) { return equal(e, high) || not_equal(e, e); });
  const Tensor weight = cast(hit, real);
  std::vector<int> axes;
  for (int i = 0; i < shape.rank(); ++i)
    if (mask >> i & 1) axes.push_back(i);
  v.add(0, where(hit, weight * (widened(g, v.where()) / sum(weight, axes, true)), constant(0, Shape{}, real, v.where())));
}

const Op& reduce_op =
    register_op({.name = "reduce", .vjp = reduce_vjp, .lower = lower_reduce, .cuda = cuda_reduce, .prologues = 1});

Tensor reduce(const Arg& a, ReduceKind kind, std::uint32_t mask, bool keep, std::string_view name) {
  if (!is_real(a.dtype()))
    fail_at(a.where(), fmt::format("{}: the tensor is not real", name), std::string(name_of(a.dtype())), "cast it first");
  const std::int64_t ints[] = {kind, mask};
  return record(reduce_op, {a.tensor()}, {{reduced_shape(a.shape(), mask, keep), a.dtype()}}, ints, {}, a.where());
}

std::int64_t reduced_size(const Shape& shape, std::uint32_t mask) {
  std::int64_t n = 1;
  for (int i = 0; i < shape.rank(); ++i)
    if (mask >> i & 1) n *= shape[i];
  return n;
}

// ---- softmax and its relatives over the last axis ---------------------------------------------------------------------------

template <class T>
void softmax_rows(const Launch& launch, const Fused& source, RowKind kind, std::int64_t rows, std::int64_t n,
                  const Operand& out) {
  const std::int64_t batch = std::max<std::int64_t>(1, 8192 / std::max<std::int64_t>(n, 1));
  parallel((rows + batch - 1) / batch, [&](std::int64_t part) {
    Runner<T> runner(launch, source);
    const View view = launch.view(out);
    std::vector<T> x(static_cast<std::size_t>(n)), e(static_cast<std::size_t>(n));
    for (std::int64_t row = part * batch; row < std::min(rows, (part + 1) * batch); ++row) {
      runner.read(row * n, n, x.data());
      T high = max_block(x.data(), n);
      // A row of -inf: exp gives 0, not NaN. An infinite one makes the sum infinite, and of a distribution NaN.
      if (std::isinf(high) && (high < 0 || kind == kLogsumexp)) high = 0;
      for (std::int64_t i = 0; i < n; ++i) e[std::size_t(i)] = vmath::exp(x[std::size_t(i)] - high);
      const T total = T(long_sum<T>(n, [&](std::int64_t i) { return e[std::size_t(i)]; })), log_total = std::log(total);
      if (kind == kLogsumexp) {
        const T lse = high + log_total;
        write_block<T>(view, ExprType::real, row, 1, &lse);
        continue;
      }
      for (std::int64_t i = 0; i < n; ++i)
        e[std::size_t(i)] = kind == kSoftmax ? e[std::size_t(i)] / total : x[std::size_t(i)] - high - log_total;
      for (std::int64_t i = 0; i < n; i += kBlock)
        write_block<T>(view, ExprType::real, row * n + i, int(std::min<std::int64_t>(kBlock, n - i)), e.data() + i);
    }
  });
}

void lower_softmax(Lowering& l) {
  const Shape shape = l.shape(0);
  const auto kind = RowKind(l.integer(0));
  const std::int64_t n = shape[-1], rows = shape.first(shape.rank() - 1).numel();
  Fused source = l.source(0);
  const Operand out = l.output();
  const bool wide = l.in_double();
  static constexpr const char* kNames[] = {"softmax", "log_softmax", "logsumexp"};
  l.emit(kNames[kind], [=, source = std::move(source)](const Launch& launch) {
    if (rows == 0) return;
    wide ? softmax_rows<double>(launch, source, kind, rows, n, out) : softmax_rows<float>(launch, source, kind, rows, n, out);
  });
}

Tensor softmax_last(const Arg& a, RowKind kind);

void softmax_vjp(Vjp& v) {
  const Site where = v.where();
  const Tensor y = widened(v.output(), where), g = widened(v.grad(), where);
  switch (RowKind(v.integer(0))) {
    case kSoftmax:
      return v.add(0, y * (g - sum(g * y, {-1}, true)));
    case kLogSoftmax:
      return v.add(0, g - exp(y) * sum(g, {-1}, true));
    case kLogsumexp: {  // not exp(x - y): of large x, y has lost the digits of the logarithm
      Shape column = g.shape();
      column.push_back(1);
      return v.add(0, reshape(g, column) * softmax_last(Arg(widened(v.input(0), where), where), kSoftmax));
    }
  }
}

const Op& softmax_op =
    register_op({.name = "softmax", .vjp = softmax_vjp, .lower = lower_softmax, .cuda = cuda_row_function, .prologues = 1});

Tensor softmax_last(const Arg& a, RowKind kind) {
  const std::int64_t ints[] = {kind};
  const Shape shape = kind == kLogsumexp ? a.shape().first(a.shape().rank() - 1) : a.shape();
  return record(softmax_op, {a.tensor()}, {{shape, a.dtype()}}, ints, {}, a.where());
}

// Brings the axes to the end and makes them one; undoes it on the result (all of a; for logsumexp the kept axes are in order).
Tensor over_axes(const Arg& a, const std::vector<int>& axes, RowKind kind, std::string_view name) {
  if (!is_real(a.dtype())) fail_at(a.where(), fmt::format("{}: the tensor is not real", name), std::string(name_of(a.dtype())));
  const Shape shape = a.shape();
  const std::uint32_t mask = axis_mask(a, axes, name);
  if (mask == 0) return softmax_last(Arg(reshape(a, Shape{1}), a.where()), kind);
  const int rank = shape.rank();
  if (mask == 1u << (rank - 1)) return softmax_last(a, kind);
  std::vector<int> order;
  for (const bool wanted : {false, true})
    for (int i = 0; i < rank; ++i)
      if (bool(mask >> i & 1) == wanted) order.push_back(i);
  Shape rows = reduced_shape(shape, mask, false);
  rows.push_back(reduced_size(shape, mask));
  const Tensor moved = permute(a, order);
  const Tensor y = softmax_last(Arg(reshape(Arg(moved, a.where()), rows), a.where()), kind);
  if (kind == kLogsumexp) return y;
  std::vector<int> inverse(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) inverse[std::size_t(order[i])] = int(i);
  return permute(reshape(y, moved.shape()), inverse);
}

}  // namespace

ReduceSpace canonical(Fused& source, Shape& shape, std::uint32_t mask) {
  const Shape before = shape;
  const int rank = before.rank();
  int behind = rank;  // axes from here on are inner
  while (behind > 0 && !(mask >> (behind - 1) & 1 && before[behind - 1] != 1)) --behind;
  ReduceSpace space{1, 1, 1};
  std::vector<int> order;
  auto take = [&](bool reduced, int from, int to, std::int64_t& size) {
    for (int i = from; i < to; ++i)
      if (bool(mask >> i & 1) == reduced) order.push_back(i), size *= before[i];
  };
  take(false, 0, behind, space.outer);
  take(true, 0, rank, space.reduced);
  take(false, behind, rank, space.inner);
  for (int i = 0; i < rank; ++i) shape[i] = before[order[std::size_t(i)]];
  for (Operand& leaf : source.leaves) {
    const Operand old = leaf;
    for (std::size_t i = 0; i < order.size(); ++i) {
      leaf.dims[i] = old.dims[std::size_t(order[i])];
      leaf.strides[i] = old.strides[std::size_t(order[i])];
    }
  }
  return space;
}

Tensor sum_to(const Tensor& t, const Shape& shape, Site where) {
  const Shape from = t.shape();
  if (from == shape) return t;
  const int lead = from.rank() - shape.rank();
  std::uint32_t mask = 0;
  for (int i = 0; i < from.rank(); ++i)
    if (i < lead || (shape[i - lead] == 1 && from[i] != 1)) mask |= 1u << i;
  const std::int64_t ints[] = {kReduceSum, mask};
  return record(reduce_op, {t}, {{shape, t.dtype()}}, ints, {}, where);
}

Tensor sum(Arg a, std::vector<int> axes, bool keep) { return reduce(a, kReduceSum, axis_mask(a, axes, "sum"), keep, "sum"); }

Tensor mean(Arg a, std::vector<int> axes, bool keep) {
  const std::uint32_t mask = axis_mask(a, axes, "mean");
  const Tensor total = reduce(Arg(widened(a.tensor(), a.where()), a.where()), kReduceSum, mask, keep, "mean");
  return cast(Arg(Arg(total, a.where()) / double(reduced_size(a.shape(), mask)), a.where()), a.dtype());
}

Tensor max(Arg a, std::vector<int> axes, bool keep) {
  const std::uint32_t mask = axis_mask(a, axes, "max");
  if (reduced_size(a.shape(), mask) == 0 && a.shape().numel() == 0 && reduced_shape(a.shape(), mask, false).numel() > 0)
    fail_at(a.where(), "max: the maximum of no elements", to_string(a.shape()), "reduce over axes that are not empty");
  return reduce(a, kReduceMax, mask, keep, "max");
}

Tensor logsumexp(Arg a, std::vector<int> axes, bool keep) {
  const Tensor y = over_axes(a, axes, kLogsumexp, "logsumexp");
  return keep ? reshape(y, reduced_shape(a.shape(), axis_mask(a, axes, "logsumexp"), true))
              : reshape(y, reduced_shape(a.shape(), axis_mask(a, axes, "logsumexp"), false));
}

Tensor softmax(Arg a, std::vector<int> axes) { return reshape(over_axes(a, axes, kSoftmax, "softmax"), a.shape()); }
Tensor log_softmax(Arg a, std::vector<int> axes) { return reshape(over_axes(a, axes, kLogSoftmax, "log_softmax"), a.shape()); }

}  // namespace weft
