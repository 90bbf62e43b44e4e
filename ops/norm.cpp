// RMS norm (arXiv:1910.07467) and layer norm (1607.06450) over the last axis: y = out((x - mean) r w + b) with a hole for the
// result; mean = 0 in the former, where x may be what another hole makes of the input. The forward kernel keeps each row's mean
// and r for the backward kernel.
#include <cmath>
#include <optional>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/holes.h"
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
  const T mean = centered ? T(long_sum<T>(n, [&](std::int64_t j) { return x[j]; }) / double(n)) : T(0);
  const double square = long_sum<T>(n, [&](std::int64_t j) { return (x[j] - mean) * (x[j] - mean); });
  return {double(mean), 1 / std::sqrt(square / double(n) + eps)};
}

// y (n) = (x - mean) r w + b of one row; w and b may be empty.
template <class T>
void normalize(const T* x, T mean, T r, const std::vector<T>& w, const std::vector<T>& b, std::int64_t n, T* y) {
  if (w.empty())
    for (std::int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * r;
  else
    for (std::int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * r * w[j];
  if (!b.empty())
    for (std::int64_t j = 0; j < n; ++j) y[j] += b[j];
}

// Rows of x: of the input, or what the hole `in` makes of them.
template <class T>
class NormRows {
 public:
  NormRows(const Launch& launch, const Fused& source, const Fused* in, std::int64_t n)
      : from_(launch, source, n), n_(n), made_(in ? std::size_t(n) : 0) {
    if (in) in_.emplace(launch, *in);
  }
  // Row r, valid until the next call; `given` is what the input has there.
  const T* read(std::int64_t r, const T** given = nullptr) {
    const T* x = from_.read(r);
    if (given) *given = x;
    if (!in_) return x;
    std::copy_n(x, n_, made_.data());
    run_hole(*in_, r * n_, n_, made_.data());
    return made_.data();
  }

 private:
  SourceRows<T> from_;
  std::int64_t n_;
  std::vector<T> made_;
  std::optional<Runner<T>> in_;
};

// Inputs x (..., n), weight (n), bias (n); holes out(y; the axes of x), in(x; the axes of x), of an RMS norm; ints [centered];
// constants [eps]. Outputs y (..., n), statistics (rows, 2).
template <class T>
void lower_norm_forward(Lowering& l, std::string name) {
  const Fused source = l.source(0);
  const Operand weight = l.has(1) ? l.dense(1) : Operand{}, bias = l.has(2) ? l.dense(2) : Operand{};
  const Operand out = l.output(0), stats = l.output(1);
  const bool centered = l.integer(0) != 0, filled = l.filled(0), given = l.filled(1);
  const Fused hole = l.hole(0, l.shape(0)), in = l.hole(1, l.shape(0));
  const int eps = l.constant(0);
  const std::int64_t n = l.shape(0)[-1], rows = l.shape(0).first(l.shape(0).rank() - 1).numel();
  l.emit(std::move(name), [=](const Launch& launch) {
    const std::vector<T> w = whole<T>(launch, weight, n), b = whole<T>(launch, bias, n);
    const Rows to(launch, out), kept(launch, stats);
    const std::int64_t parts = row_parts(rows, n);
    parallel(parts, [&](std::int64_t part) {
      NormRows<T> from(launch, source, given ? &in : nullptr, n);
      std::vector<T> buffer(n);
      std::optional<Runner<T>> finish;
      if (filled) finish.emplace(launch, hole);
      const Range range = part_of(rows, parts, part);
      for (std::int64_t row = range.begin; row < range.end; ++row) {
        const T* x = from.read(row);
        const Statistics s = statistics(x, n, launch.constants[eps], centered);
        const T mean = T(s.mean), r = T(s.r), both[] = {mean, r};
        kept.write(row, 0, 2, both);
        T* y = to.template target<T>(row, 0, buffer.data());
        normalize(x, mean, r, w, b, n, y);
        if (finish) run_hole(*finish, row * n, n, y);
        to.write(row, 0, n, y);
      }
    });
  });
}

// One row of the backward pass: dx = r (g - mean(g) - xh mean(g xh)) with g = dy w and xh = (x - mean) r; adds dy xh to
// dw and dy to db (each n, null if not wanted). All rows are (n).
template <class T>
void backward_row(std::int64_t n, const T* x, const T* dy, const T* w, T mean, T r, bool centered, T* dx, T* dw, T* db) {
  const auto g = [&](std::int64_t j) { return w ? dy[j] * w[j] : dy[j]; };
  const T shift = centered ? T(long_sum<T>(n, g) / double(n)) : T(0);
  const T slope = T(long_sum<T>(n, [&](std::int64_t j) { return g(j) * (x[j] - mean); }) * double(r) / double(n));
  if (dw)
    for (std::int64_t j = 0; j < n; ++j) dw[j] += dy[j] * (x[j] - mean) * r;
  if (db)
    for (std::int64_t j = 0; j < n; ++j) db[j] += dy[j];
  if (dx)  // last: it may be written over dy's buffer
    for (std::int64_t j = 0; j < n; ++j) dx[j] = r * (g(j) - shift - (x[j] - mean) * r * slope);
}

// The gradient before a hole of one row, from that behind it.
template <class T>
class HoleRows {
 public:
  HoleRows(const Launch& launch, const Fused& gradient, std::span<const Operand> roots, std::int64_t n)
      : first_(launch, roots[0]),
        rows_(launch, gradient, roots, std::vector<Operand>(roots.size()), n, std::min<std::int64_t>(n, kBlock)),
        e_(n) {}
  // y, dy (n) -> dy before the hole, valid until the next call.
  const T* run(std::int64_t row, std::int64_t n, const T* y, const T* dy) {
    for (std::int64_t j = 0; j < n; j += kBlock)
      rows_.run(row, j, std::min<std::int64_t>(kBlock, n - j), y + j, dy + j, e_.data() + j);
    first_.write(row, 0, n, e_.data());
    return e_.data();
  }

 private:
  Rows first_;
  GradientRows<T> rows_;
  std::vector<T> e_;
};

// Inputs x (..., n), dy (..., n), weight (n) and bias (n) or absent, statistics (rows, 2); holes, all over the axes of x,
// out_grad(y, dy), in(x), in_grad(x, dx); ints [centered, then the output of each root of out_grad, of in_grad, -1 for none];
// constants [eps], which the statistics know. Outputs dx, dw, db, then those of the roots.
template <class T>
void lower_norm_backward(Lowering& l) {
  const Fused x_source = l.source(0), g_source = l.source(1), hole = l.hole(0, l.shape(0)), in = l.hole(1, l.shape(0));
  const Fused in_hole = l.hole(2, l.shape(0));
  const Operand weight = l.dense(2), bias = l.dense(3), stats = l.rows(4);
  const bool filled = l.filled(0), given = l.filled(1);
  const std::vector<Operand> roots = filled ? root_outputs(l, hole.roots.size(), 1) : std::vector<Operand>();
  const std::vector<Operand> in_roots =
      given ? root_outputs(l, in_hole.roots.size(), 1 + int(roots.size())) : std::vector<Operand>();
  const Operand out = l.output(0), dw = l.output(1), db = l.output(2);
  const bool centered = l.integer(0) != 0;
  const std::int64_t n = l.shape(0)[-1], rows = l.shape(0).first(l.shape(0).rank() - 1).numel();
  const std::int64_t parts = row_parts(rows, n), dims[] = {parts, n};
  const Operand dw_parts = dw ? l.scratch(dtype_of<T>, dims) : Operand{},
                db_parts = db ? l.scratch(dtype_of<T>, dims) : Operand{};
  l.emit("norm_backward", [=](const Launch& launch) {
    const std::vector<T> w = whole<T>(launch, weight, n), b = whole<T>(launch, bias, n);
    const Rows to(launch, out), kept(launch, stats);
    parallel(parts, [&](std::int64_t part) {
      NormRows<T> xs(launch, x_source, given ? &in : nullptr, n);
      SourceRows<T> gs(launch, g_source, n);
      std::vector<T> buffer(n), y(n);
      std::optional<HoleRows<T>> before, before_in;
      if (filled) before.emplace(launch, hole, roots, n);
      if (given) before_in.emplace(launch, in_hole, in_roots, n);
      std::optional<LongSums<T>> dw_sums, db_sums;
      if (dw_parts) dw_sums.emplace(n);
      if (db_parts) db_sums.emplace(n);
      const Range range = part_of(rows, parts, part);
      for (std::int64_t row = range.begin; row < range.end; ++row) {
        T pair[2];
        const T* s = kept.read(row, 0, 2, pair);
        T* dx = given ? buffer.data() : to ? to.template target<T>(row, 0, buffer.data()) : nullptr;
        const T *from = nullptr, *x = xs.read(row, &from), *dy = gs.read(row);
        if (before) {
          normalize(x, s[0], s[1], w, b, n, y.data());
          dy = before->run(row, n, y.data(), dy);
        }
        backward_row(n, x, dy, w.empty() ? nullptr : w.data(), s[0], s[1], centered, dx, dw_sums ? dw_sums->next() : nullptr,
                     db_sums ? db_sums->next() : nullptr);
        if (before_in)
          before_in->run(row, n, from, dx);
        else
          to.write(row, 0, n, dx);
      }
      if (dw_sums) dw_sums->move_to(launch.pointer<T>(dw_parts) + part * n, n);
      if (db_sums) db_sums->move_to(launch.pointer<T>(db_parts) + part * n, n);
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
void norm_backward_vjp(Vjp& v);

constexpr HoleSpec kNormHoles[] = {{.name = "out", .coordinates = "i j k l m n", .values = 1, .dense = true, .names = {"y"}},
                                   {.name = "in", .coordinates = "i j k l m n", .values = 1, .dense = true, .names = {"x"}}};
constexpr HoleSpec kNormBackwardHoles[] = {
    {.name = "out_grad", .coordinates = "i j k l m n", .values = 2, .results = 0, .dense = true, .names = {"y", "g"}},
    {.name = "in", .coordinates = "i j k l m n", .values = 1, .dense = true, .names = {"x"}},
    {.name = "in_grad", .coordinates = "i j k l m n", .values = 2, .results = 0, .dense = true, .names = {"x", "g"}}};
const Op& rms_norm_op = register_op({.name = "rms_norm",
                                     .vjp = norm_vjp,
                                     .lower = lower_rms_norm,
                                     .cuda = cuda_norm,
                                     .holes = kNormHoles,
                                     .prologues = 0b1,
                                     .guest_input = 0});
const Op& layer_norm_op = register_op({.name = "layer_norm",
                                       .vjp = norm_vjp,
                                       .lower = lower_layer_norm,
                                       .cuda = cuda_norm,
                                       .holes = kNormHoles,
                                       .prologues = 0b1,
                                       .guest_input = 0});
const Op& norm_backward_op = register_op({.name = "norm_backward",
                                          .vjp = norm_backward_vjp,
                                          .lower = lower_norm_backward,
                                          .cuda = cuda_norm_backward,
                                          .holes = kNormBackwardHoles,
                                          .prologues = 0b11,
                                          .guest_output = 0});

void norm_vjp(Vjp& v) {
  const Tensor g = v.grad(), x = v.input(0), weight = v.input(1), bias = v.input(2);
  if (!g) return;
  const Shape vector{x.shape()[-1]};
  const DType real = sum_dtype(v);
  Outs outs = {{x.shape(), x.dtype()}, {vector, weight ? weight.dtype() : real}, {vector, bias ? bias.dtype() : real}};
  const HoleInVjp out(v, 0, v.hole(0), x.shape(), real, -1, outs), in(v, 1, v.hole(1), x.shape(), real, 0, outs);
  Recorder r(norm_backward_op, v.where());
  r.input(x).input(g).input(weight).input(out.gradient.filled() ? bias : Tensor{}).input(v.output(1));
  r.constant(v.constant(0)).hole(0, out.gradient, x.shape()).hole(1, v.hole(1), x.shape()).hole(2, in.gradient, x.shape());
  r.integer(v.integer(0)).integers(out.outputs).integers(in.outputs).out(outs);
  const Tensor dx = r.record(v.constants());
  for (int i = 0; i < 3; ++i)
    if (v.needs(i)) v.add(i, i == 0 ? dx : output_of(dx, i));
  out.add(v, 0, dx);
  in.add(v, 1, dx);
}

// As backward_row, the statistics being functions of x.
void norm_backward_vjp(Vjp& v) {
  v.compose([&] {
    const Tensor given = real_input(v, 0), dy = real_input(v, 1), w = real_input(v, 2), b = real_input(v, 3);
    const bool made = !v.hole(1).roots.empty();
    const Tensor x = made ? root_of(v, 1, 0, {given}, given.shape(), sum_dtype(v)) : given;
    const bool centered = v.integer(0) != 0;
    const Shape vector{x.dim(-1)};
    const auto row_mean = [](const Tensor& t) { return mean(t, {-1}, true); };
    const Tensor shifted = centered ? x - row_mean(x) : x;
    const Tensor r = rsqrt(row_mean(square(shifted)) + v.constant(0)), xh = shifted * r;
    Tensor y = w ? xh * w : xh;
    if (b) y = y + b;
    std::vector<Tensor> outputs(3);
    const Tensor e = compose_hole(v, y, dy, 1, outputs), g = w ? e * w : e;
    const Tensor rest = g - xh * row_mean(g * xh);
    const Tensor dx = r * (centered ? rest - row_mean(g) : rest);
    outputs[0] = compose_hole(v, given, dx, 1 + int(v.hole(0).roots.size()), outputs, 2);
    outputs[1] = sum_to(e * xh, vector, v.where());
    outputs[2] = sum_to(e, vector, v.where());
    return outputs;
  });
}

Tensor record_norm(const Op& op, bool centered, const Arg& x, const Arg& weight, const Arg& bias, double eps,
                   std::optional<DType> dtype, const Hole& out, const Hole& in) {
  const Site where = x.where();
  require_real(where, op.name, "x", x);
  const Shape shape = x.shape();
  if (shape.rank() < 1)
    fail_at(where, fmt::format("{}: x has no axis to normalise", op.name), fmt::format("x {}", to_string(shape)),
            "reshape it to (1, n)");
  if (!(eps >= 0 && std::isfinite(eps)))
    fail_at(where, fmt::format("{}: eps is {}", op.name, eps), {}, "give a finite number that is not negative, such as 1e-5");
  const Shape vector{shape[-1]};
  if (weight) require_shape(where, op.name, "weight", weight, vector, "x", x);
  if (bias) require_shape(where, op.name, "bias", bias, vector, "x", x);
  require_one_precision(where, op.name, {{"x", x}, {"weight", weight}, {"bias", bias}});
  const Shape stats{shape.first(shape.rank() - 1).numel(), 2};
  DType real = compute_dtype(x.tensor(), weight.tensor(), bias.tensor());
  for (const Hole* hole : {&out, &in})
    for (const Tensor& c : hole->captured) real = widest(real, compute_dtype(c));
  Recorder r(op, where);
  r.input(x).input(weight).input(bias).constant(eps).hole(0, out, shape).hole(1, in, shape).integer(centered);
  return r.out(shape, dtype.value_or(x.dtype())).out(stats, real).record();
}

}  // namespace

Tensor rms_norm(Arg x, Arg weight, double eps, std::optional<DType> dtype, Hole out, Hole in) {
  return record_norm(rms_norm_op, false, x, weight, Tensor{}, eps, dtype, out, in);
}
Tensor layer_norm(Arg x, Arg weight, Arg bias, double eps, std::optional<DType> dtype, Hole out) {
  return record_norm(layer_norm_op, true, x, weight, bias, eps, dtype, out, {});
}

}  // namespace weft
