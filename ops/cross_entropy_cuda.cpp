// Cross-entropy on a GPU.
#include "jit/device_errors.h"
#include "jit/hole_text.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

// What the kernels know: ints [reduction, ignore_index, smoothed]; constants [smoothing].
struct Task {
  Fused logits;    // (..., v)
  Operand labels;  // (..., 1)
  std::int64_t rows, v;
  Reduction reduction;

  explicit Task(Lowering& l)
      : logits(l.source(0)),
        labels(as_rows(l.view(1))),
        rows(l.shape(1).numel()),
        v(l.shape(0)[-1]),
        reduction(Reduction(l.integer(0))) {}

  CudaText text(Lowering& l, std::string name) const {
    CudaText text = l.text(std::move(name));
    text.define("SMOOTHED", l.integer(2)).define("BAD_LABEL", std::int64_t(DeviceError::cross_entropy_label));
    fused_rows(text, "source", logits, l.shape(0).dims());
    text.strided("labels", labels).constant("smoothing", l.constant(0));
    text.integer("rows", rows).integer("v", v).integer("ignore", l.integer(1));
    return text;
  }
};

}  // namespace

// Inputs logits, labels. Outputs loss () or, unreduced, the labels' shape; log-sum-exp (rows, 2); the factor of the gradient
// ().
void cuda_cross_entropy(Lowering& l) {
  const Task task(l);
  const Operand out = l.output(0), lse = l.output(1), factor = l.output(2);
  const bool per_row = task.reduction == Reduction::none;
  const std::int64_t dims[] = {task.rows};
  const Operand loss = per_row ? out : l.scratch(l.in_double() ? DType::f64 : DType::f32, dims);
  if (task.rows > 0) {
    const RowCut cut = cut_rows(task.v, row_width(task.v, {&task.logits}, {}), 0);
    CudaText text = task.text(l, "cross_entropy");
    text.pointer("loss", loss).pointer("lse", lse);
    l.emit(launch_rows(text, {"ops/rows.cuh", "ops/cross_entropy.cuh"}, cut, (task.rows + cut.rows - 1) / cut.rows));
  }
  if (per_row) {
    if (factor) emit_fill(l, 1, factor);
    return;
  }
  constexpr unsigned kThreads = 1024;
  CudaText text = l.text("cross_entropy_mean");
  text.define("MEAN", task.reduction == Reduction::mean).define("THREADS", kThreads).strided("labels", task.labels);
  text.pointer("loss", loss).pointer("out", out).pointer("factor", factor).integer("rows", task.rows);
  text.integer("ignore", l.integer(1));
  l.emit(text.launch("ops/cross_entropy_mean.cuh", {1, 1, 1}, {kThreads, 1, 1}));
}

// Inputs logits, labels, upstream gradient () or one a row, log-sum-exp (rows, 2), factor (). Output (..., v).
void cuda_cross_entropy_backward(Lowering& l) {
  const Task task(l);
  const Operand out = l.output(), upstream = l.dense(2), lse = l.dense(3), factor = l.dense(4);
  if (task.rows * task.v == 0) return;
  const RowCut cut = cut_rows(task.v, row_width(task.v, {&task.logits}, {out}), 0);
  CudaText text = task.text(l, "cross_entropy_backward");
  text.define("PER_ROW", task.reduction == Reduction::none).pointer("upstream", upstream).pointer("lse", lse);
  text.pointer("factor", factor).rows("dx", out);
  l.emit(launch_rows(text, {"ops/rows.cuh", "ops/cross_entropy_backward.cuh"}, cut, (task.rows + cut.rows - 1) / cut.rows));
}

}  // namespace weft
