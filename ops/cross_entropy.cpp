// Cross-entropy over the last axis, its reduction and its gradient, each in one pass over the logits. With n valid labels y,
//   loss = -(1/n) sum log softmax(x)[y],   dx = (softmax(x) - onehot(y)) / n in their rows, 0 in the others.
#include <cmath>
#include <limits>
#include <vector>

#include "autograd/backward.h"
#include "autograd/pointwise.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "jit/vmath.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/labels.h"
#include "ops/ops.h"

namespace weft {
namespace {

constexpr std::int64_t kPartElements = 1 << 16;

// What both kernels know: ints [reduction, ignore_index, smoothed]; constants [smoothing].
struct Task {
  Fused logits;    // (..., v)
  Operand labels;  // (...)
  Shape shape;     // of the labels
  std::int64_t rows, v, parts, ignore;
  Reduction reduction;
  bool smoothed;
  int smoothing;
  explicit Task(Lowering& l)
      : logits(l.source(0)),
        labels(l.view(1)),
        shape(l.shape(1)),
        rows(shape.numel()),
        v(l.shape(0)[-1]),
        parts(part_count(rows, std::max<std::int64_t>(1, kPartElements / std::max<std::int64_t>(v, 1)), 1024)),
        ignore(l.integer(1)),
        reduction(Reduction(l.integer(0))),
        smoothed(l.integer(2) != 0),
        smoothing(l.constant(0)) {}
  double smooth(const Launch& launch) const { return smoothed ? launch.constants[smoothing] : 0; }
};

// log(sum(exp(x))) of a row x (v), as top + log_sum: loss and gradient keep their digits however large the logits are.
template <class T>
struct LogSumExp {
  T top, log_sum;
};
template <class T>
LogSumExp<T> log_sum_exp(const T* x, std::int64_t v) {
  T top = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < v; ++j) top = x[j] > top ? x[j] : top;
  if (!(std::abs(top) < std::numeric_limits<T>::infinity())) top = 0;  // the sum is then 0, infinite or NaN, as it should be
  return {top, std::log(T(long_sum<T>(v, [&](std::int64_t j) { return vmath::exp(x[j] - top); })))};
}

// Inputs logits, labels. Outputs loss () or, unreduced, the labels' shape; log-sum-exp (rows, 2) as a pair; the factor of
// the gradient (), 1 / valid labels for the mean.
template <class T>
void lower_cross_entropy_forward(Lowering& l) {
  const Task task(l);
  const Operand out = l.output(0), kept = l.output(1), factor = l.output(2);
  const std::int64_t dims[] = {task.rows};
  const Operand losses = l.scratch(dtype_of<T>, dims);
  l.emit("cross_entropy", [=](const Launch& launch) {
    const std::vector<std::int64_t> labels = read_labels(launch, task.labels);
    check_labels("cross_entropy", "label", labels, task.shape, task.v, &task.ignore);
    const T e = T(task.smooth(launch));
    T* loss = launch.pointer<T>(losses);
    T* lse = launch.pointer<T>(kept);
    parallel(task.parts, [&](std::int64_t part) {
      SourceRows<T> logits(launch, task.logits, task.v);
      const Range range = part_of(task.rows, task.parts, part);
      for (std::int64_t r = range.begin; r < range.end; ++r) {
        LogSumExp<T> sum{0, 0};
        loss[r] = 0;
        if (labels[r] != task.ignore) {
          const T* x = logits.read(r);
          sum = log_sum_exp(x, task.v);
          loss[r] = sum.log_sum + (1 - e) * (sum.top - x[labels[r]]);
          if (task.smoothed)
            loss[r] += T(double(e) / double(task.v) * long_sum<T>(task.v, [&](std::int64_t j) { return sum.top - x[j]; }));
        }
        if (lse) lse[2 * r] = sum.top, lse[2 * r + 1] = sum.log_sum;
      }
    });
    std::int64_t valid = 0;
    double total = 0;
    for (std::int64_t r = 0; r < task.rows; ++r) valid += labels[r] != task.ignore, total += loss[r];
    const double scale = task.reduction != Reduction::mean ? 1 : valid ? 1 / double(valid) : 0;
    const T mean = T(total * scale), scaled = T(scale);
    if (task.reduction == Reduction::none)
      Rows(launch, out).write(0, 0, task.rows, loss);
    else
      Rows(launch, out).write(0, 0, 1, &mean);
    Rows(launch, factor).write(0, 0, 1, &scaled);
  });
}

// Inputs logits, labels, upstream gradient () or one a row, log-sum-exp (rows, 2), factor (). Output (..., v):
// (softmax - (1 - e) onehot - e / v) times the row's upstream gradient, 0 where ignored.
template <class T>
void lower_cross_entropy_backward(Lowering& l) {
  const Task task(l);
  const Operand out = l.output(), upstream = l.dense(2), kept = l.dense(3), factor = l.dense(4);
  if (!out) return;
  l.emit("cross_entropy_backward", [=](const Launch& launch) {
    const std::vector<std::int64_t> labels = read_labels(launch, task.labels);
    const T e = T(task.smooth(launch)), even = e / T(std::max<std::int64_t>(task.v, 1));
    const Rows to(launch, out), ups(launch, upstream), lses(launch, kept), factors(launch, factor);
    T one;
    const T scale = *factors.read(0, 0, 1, &one);
    parallel(task.parts, [&](std::int64_t part) {
      SourceRows<T> logits(launch, task.logits, task.v);
      std::vector<T> buffer(task.v);
      const Range range = part_of(task.rows, task.parts, part);
      for (std::int64_t r = range.begin; r < range.end; ++r) {
        T* dx = to.template target<T>(r, 0, buffer.data());
        if (labels[r] == task.ignore) {
          std::fill_n(dx, task.v, T(0));
        } else {
          const T* x = logits.read(r);
          T a[2], b;
          const T* lse = lses.read(r, 0, 2, a);
          const T g = scale * *ups.read(0, task.reduction == Reduction::none ? r : 0, 1, &b);
          for (std::int64_t j = 0; j < task.v; ++j) dx[j] = g * (vmath::exp(x[j] - lse[0] - lse[1]) - even);
          dx[labels[r]] -= g * (1 - e);
        }
        to.write(r, 0, task.v, dx);
      }
    });
  });
}

void lower_cross_entropy(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_cross_entropy_forward<T>(l); });
}
void lower_cross_entropy_backward(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_cross_entropy_backward<T>(l); });
}

void cross_entropy_vjp(Vjp& v);
void cross_entropy_backward_vjp(Vjp& v);

const Op& cross_entropy_op = register_op({.name = "cross_entropy",
                                          .vjp = cross_entropy_vjp,
                                          .lower = lower_cross_entropy,
                                          .cuda = cuda_cross_entropy,
                                          .prologues = 0b1,
                                          .dense_outputs = true});
const Op& cross_entropy_backward_op = register_op({.name = "cross_entropy_backward",
                                                   .vjp = cross_entropy_backward_vjp,
                                                   .lower = lower_cross_entropy_backward,
                                                   .cuda = cuda_cross_entropy_backward,
                                                   .prologues = 0b1});

void cross_entropy_vjp(Vjp& v) {
  const Tensor g = v.grad(), logits = v.input(0);
  if (!g || !v.needs(0)) return;
  const std::int64_t ints[] = {v.integer(0), v.integer(1), v.integer(2)};
  v.add(0, record(cross_entropy_backward_op, {logits, v.input(1), g, v.output(1), v.output(2)},
                  {{logits.shape(), logits.dtype()}}, ints, v.constants(), v.where()));
}

void cross_entropy_backward_vjp(Vjp& v) {
  v.compose([&] {
    const Tensor logits = v.input(0), labels = v.input(1), upstream = v.input(2) * v.input(4);
    Shape column = labels.shape();
    column.push_back(1);
    const int classes = logits.rank() - 1;
    const std::int64_t ignore = v.integer(1);
    const double e = v.integer(2) ? v.constant(0) : 0, even = e / double(logits.dim(classes));
    const Tensor scale = Reduction(v.integer(0)) == Reduction::none ? reshape(upstream, column) : upstream;
    const Tensor p = softmax(convert(logits, upstream.dtype(), v.where()));
    return std::vector{pointwise("cross_entropy_grad", {p, reshape(labels, column), scale}, [&](Expr q, Expr label, Expr g) {
      const Expr target = even + where(equal(label, expr::index(classes)), 1 - e, 0.0);
      return where(equal(label, ignore), 0.0, g * (q - target));
    })};
  });
}

}  // namespace

Tensor cross_entropy(Arg logits, Arg labels, CrossEntropyOptions options) {
  const Site where = logits.where();
  require_real(where, "cross_entropy", "logits", logits);
  require_integer(where, "cross_entropy", "labels", labels);
  const Shape shape = logits.shape(), rows = labels.shape();
  if (shape.rank() < 1 || shape.first(shape.rank() - 1) != rows)
    fail_at(where, "cross_entropy: labels do not fit the logits",
            fmt::format("logits {}, labels {}", to_string(shape), to_string(rows)),
            "labels have the shape of the logits without the last axis");
  if (!(options.label_smoothing >= 0 && options.label_smoothing < 1))
    fail_at(where, "cross_entropy: label smoothing is not in [0, 1)", fmt::format("{}", options.label_smoothing));
  const DType real = compute_dtype(logits.tensor());
  const std::int64_t ints[] = {std::int64_t(options.reduction), options.ignore_index, options.label_smoothing != 0};
  const double constants[] = {options.label_smoothing};
  return record(
      cross_entropy_op, {logits, labels},
      {{options.reduction == Reduction::none ? rows : Shape{}, real}, {Shape{rows.numel(), 2}, real}, {Shape{}, real}}, ints,
      constants, where);
}

}  // namespace weft
