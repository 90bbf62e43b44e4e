// The borders of packed documents on a GPU.
#include "jit/device_errors.h"
#include "jit/parallel.h"
#include "ops/cuda.h"
#include "ops/rows_cuda.h"

namespace weft {

// Input ids (b, t). Output (b, t) i32.
void cuda_segments(Lowering& l) {
  const Operand ids = as_rows(l.view(0)), out = l.output();
  const std::int64_t count = l.shape(0).numel();
  if (count == 0 || !out) return;
  constexpr unsigned kThreads = 256;
  CudaText text = l.text("segments");
  text.define("THREADS", kThreads).define("FALLS", std::int64_t(DeviceError::segment_falls));
  text.strided("ids", ids).pointer("borders", out).integer("count", count).integer("length", l.shape(0)[1]);
  l.emit(text.launch("ops/segments.cuh", {unsigned(ceil_div(count, kThreads)), 1, 1}, {kThreads, 1, 1}));
}

}  // namespace weft
