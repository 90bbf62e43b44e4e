// RMS norm (arXiv:1910.07467) and layer norm (1607.06450) over the last axis: y = (x - mean) r w + b, mean = 0 in the former.
// The forward kernel keeps each row's mean and r for the backward kernel.
#include <cmath>
#include <optional>
#include <vector>

#include "autograd/backward.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/ops.h"

namespace weft {
namespace {

constexpr std::int64_t kNormPartElements = 32768;  // a part of the rows is about this large
constexpr std::int64_t kMostParts = 64;            // also the number of partial sums of dw and db

std::int64_t row_parts(std::int64_t rows, std::int64_t n) {
  return part_count(rows, std::max<std::int64_t>(1, kNormPartElements / std::max<std::int64_t>(n, 1)), kMostParts);
}

// A vector (n) as T, converted once for a kernel; empty if absent.
template <class T>
std::vector<T> whole(const Launch& launch, const Operand& o, std::int64_t n) {
  std::vector<T> out(o ? n : 0);
  if (!o) return out;
  const View v = launch.view(o);
  const T* from = load_row(v.data, v.dtype, 0, n, out.data());
  if (from != out.data()) std::copy_n(from, n, out.data());
  return out;
}

struct Statistics {
  double mean, r;
};

// Of one row x (n).
template <class T>
Statistics statistics(const T* x, std::int64_t n, double eps, bool centered) {
  T sum = 0;
  if (centered) {
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < n; ++j) sum += x[j];
  }
  const T mean = centered ? sum / T(n) : T(0);
  T square = 0;
#pragma omp simd reduction(+ : square)
  for (std::int64_t j = 0; j < n; ++j) square += (x[j] - mean) * (x[j] - mean);
  return {double(mean), 1 / std::sqrt(double(square) / double(n) + eps)};
}

// Inputs x (..., n), weight (n), bias (n); ints [centered]; constants [eps]. Outputs y (..., n), statistics (rows, 2).
template <class T>
void lower_norm_forward(Lowering& l, std::string name) {
  const Fused source = l.source(0);
  const Operand weight = l.has(1) ? l.dense(1) : Operand{}, bias = l.has(2) ? l.dense(2) : Operand{};
  const Operand out = l.output(0), stats = l.output(1);
  const bool centered = l.integer(0) != 0;
  const int eps = l.constant(0);
  const std::int64_t n = l.shape(0)[-1], rows = l.shape(0).first(l.shape(0).rank() - 1).numel();
  l.emit(std::move(name), [=](const Launch& launch) {
    const std::vector<T> w = whole<T>(launch, weight, n), b = whole<T>(launch, bias, n);
    const Rows to(launch, out), kept(launch, stats);
    const std::int64_t parts = row_parts(rows, n);
    parallel(parts, [&](std::int64_t part) {
      SourceRows<T> from(launch, source, n);
      std::vector<T> buffer(n);
      const Range range = part_of(rows, parts, part);
      for (std::int64_t row = range.begin; row < range.end; ++row) {
        const T* x = from.read(row);
        const Statistics s = statistics(x, n, launch.constants[eps], centered);
        const T mean = T(s.mean), r = T(s.r), both[] = {mean, r};
        kept.write(row, 0, 2, both);
        T* y = to.template target<T>(row, 0, buffer.data());
        if (w.empty())
          for (std::int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * r;
        else
          for (std::int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * r * w[j];
        if (!b.empty())
          for (std::int64_t j = 0; j < n; ++j) y[j] += b[j];
        to.write(row, 0, n, y);
      }
    });
  });
}

// One row of the backward pass: dx = r (g - mean(g) - xh mean(g xh)) with g = dy w and xh = (x - mean) r; adds dy xh to
// dw and dy to db (each n, null if not wanted). All rows are (n).
template <class T>
void backward_row(std::int64_t n, const T* x, const T* dy, const T* w, T mean, T r, bool centered, T* dx, T* dw, T* db) {
  T sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (std::int64_t j = 0; j < n; ++j) {
    const T g = w ? dy[j] * w[j] : dy[j];
    sum += g;
    dot += g * (x[j] - mean);
  }
  const T shift = centered ? sum / T(n) : T(0), slope = dot * r / T(n);
  if (dw)
    for (std::int64_t j = 0; j < n; ++j) dw[j] += dy[j] * (x[j] - mean) * r;
  if (db)
    for (std::int64_t j = 0; j < n; ++j) db[j] += dy[j];
  if (dx)  // last: it may be written over dy's buffer
    for (std::int64_t j = 0; j < n; ++j) dx[j] = r * ((w ? dy[j] * w[j] : dy[j]) - shift - (x[j] - mean) * r * slope);
}

// Inputs x (..., n), dy (..., n), weight (n) or absent, statistics (rows, 2); ints [centered]. Outputs dx, dw, db.
template <class T>
void lower_norm_backward(Lowering& l) {
  const Fused x_source = l.source(0), g_source = l.source(1);
  const Operand weight = l.has(2) ? l.dense(2) : Operand{}, stats = l.rows(3);
  const Operand out = l.output(0), dw = l.output(1), db = l.output(2);
  const bool centered = l.integer(0) != 0;
  const std::int64_t n = l.shape(0)[-1], rows = l.shape(0).first(l.shape(0).rank() - 1).numel();
  const std::int64_t parts = row_parts(rows, n), dims[] = {parts, n};
  const Operand dw_parts = dw ? l.scratch(dtype_of<T>, dims) : Operand{},
                db_parts = db ? l.scratch(dtype_of<T>, dims) : Operand{};
  l.emit("norm_backward", [=](const Launch& launch) {
    const std::vector<T> w = whole<T>(launch, weight, n);
    const Rows to(launch, out), kept(launch, stats);
    parallel(parts, [&](std::int64_t part) {
      SourceRows<T> xs(launch, x_source, n), gs(launch, g_source, n);
      std::vector<T> buffer(n);
      T* dw_part = dw_parts ? launch.pointer<T>(dw_parts) + part * n : nullptr;
      T* db_part = db_parts ? launch.pointer<T>(db_parts) + part * n : nullptr;
      if (dw_part) std::fill_n(dw_part, n, T(0));
      if (db_part) std::fill_n(db_part, n, T(0));
      const Range range = part_of(rows, parts, part);
      for (std::int64_t row = range.begin; row < range.end; ++row) {
        T pair[2];
        const T* s = kept.read(row, 0, 2, pair);
        T* dx = to ? to.template target<T>(row, 0, buffer.data()) : nullptr;
        backward_row(n, xs.read(row), gs.read(row), w.empty() ? nullptr : w.data(), s[0], s[1], centered, dx, dw_part, db_part);
        to.write(row, 0, n, dx);
      }
    });
    fold_parts(launch, launch.pointer<T>(dw_parts), parts, n, dw);
    fold_parts(launch, launch.pointer<T>(db_parts), parts, n, db);
  });
}

void lower_rms_norm(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_norm_forward<T>(l, "rms_norm"); });
}
void lower_layer_norm(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_norm_forward<T>(l, "layer_norm"); });
}
void lower_norm_backward(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_norm_backward<T>(l); });
}

void norm_vjp(Vjp& v);

const Op& rms_norm_op =
    register_op({.name = "rms_norm", .vjp = norm_vjp, .lower = lower_rms_norm, .cuda = cuda_norm, .prologues = 0b1});
const Op& layer_norm_op =
    register_op({.name = "layer_norm", .vjp = norm_vjp, .lower = lower_layer_norm, .cuda = cuda_norm, .prologues = 0b1});
const Op& norm_backward_op =
    register_op({.name = "norm_backward", .lower = lower_norm_backward, .cuda = cuda_norm_backward, .prologues = 0b11});

void norm_vjp(Vjp& v) {
  const Tensor g = v.grad(), x = v.input(0), weight = v.input(1);
  if (!g) return;
  const Shape vector{x.shape()[-1]};
  const std::int64_t ints[] = {v.integer(0)};
  const DType real = compute_dtype(x, weight, g);
  const DType dw_type = weight ? weight.dtype() : real, db_type = v.input(2) ? v.input(2).dtype() : real;
  const Tensor dx = record(norm_backward_op, {x, g, weight, v.output(1)},
                           {{x.shape(), x.dtype()}, {vector, dw_type}, {vector, db_type}}, ints, {}, v.where());
  if (v.needs(0)) v.add(0, dx);
  if (v.needs(1)) v.add(1, output_of(dx, 1));
  if (v.needs(2)) v.add(2, output_of(dx, 2));
}

Tensor record_norm(const Op& op, bool centered, const Arg& x, const Arg& weight, const Arg& bias, double eps,
                   std::optional<DType> dtype) {
  const Site where = x.where();
  require_real(where, op.name, "x", x);
  const Shape shape = x.shape();
  if (shape.rank() < 1)
    fail_at(where, fmt::format("{}: x has no axis to normalise", op.name), fmt::format("x {}", to_string(shape)),
            "reshape it to (1, n)");
  const Shape vector{shape[-1]};
  if (weight) require_shape(where, op.name, "weight", weight, vector, "x", x);
  if (bias) require_shape(where, op.name, "bias", bias, vector, "x", x);
  const Shape stats{shape.first(shape.rank() - 1).numel(), 2};
  const std::int64_t ints[] = {centered};
  const double constants[] = {eps};
  return record(op, {x, weight, bias},
                {{shape, dtype.value_or(x.dtype())}, {stats, compute_dtype(x.tensor(), weight.tensor(), bias.tensor())}}, ints,
                constants, where);
}

}  // namespace

Tensor rms_norm(Arg x, Arg weight, double eps, std::optional<DType> dtype) {
  return record_norm(rms_norm_op, false, x, weight, Tensor{}, eps, dtype);
}
Tensor layer_norm(Arg x, Arg weight, Arg bias, double eps, std::optional<DType> dtype) {
  return record_norm(layer_norm_op, true, x, weight, bias, eps, dtype);
}

}  // namespace weft
