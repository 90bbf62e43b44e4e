// Embedding on a GPU.
#include "jit/device_errors.h"
#include "ops/cuda.h"
#include "ops/rows_cuda.h"
#include "ops/scatter.h"

namespace weft {

// Inputs weight (v, d), ids (...). Output (..., d) in the weight's dtype.
void cuda_embedding(Lowering& l) {
  const Operand weight = l.rows(0), ids = as_rows(l.view(1)), out = l.output();
  const std::int64_t count = l.shape(1).numel(), d = l.shape(0)[1];
  if (count * d == 0) return;
  constexpr unsigned kThreads = 256;
  const int width = row_width(d, {}, {weight, out});
  const std::int64_t vectors = count * (d / width);
  CudaText text = l.text("embedding");
  text.define("V", width).define("THREADS", kThreads).define("BAD_ID", std::int64_t(DeviceError::embedding_id));
  text.type("Item", weight.dtype).rows("weight", weight).strided("ids", ids).rows("out", out);
  text.integer("vectors", vectors).integer("columns", d / width).integer("v", l.shape(0)[0]).traffic(2 * out.bytes());
  l.emit(text.launch("ops/embedding.cuh", {unsigned((vectors + kThreads - 1) / kThreads), 1, 1}, {kThreads, 1, 1}));
}

// Inputs ids (...), g (..., d). Output (v, d): zero where an id does not occur.
void cuda_embedding_backward(Lowering& l) {
  emit_scatter_cuda(l, "embedding_backward", {l.view(0), l.rows(1), l.output(), false});
}

}  // namespace weft
