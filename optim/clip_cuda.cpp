#include <algorithm>
#include <utility>
#include <vector>

#include "optim/chunks_cuda.h"
#include "optim/cuda.h"

namespace weft {
namespace {

CudaKernel partial_kernel(std::vector<CudaArg> segments, std::vector<CudaArg> blocks, const Operand& partial, double bytes) {
  const auto grid = unsigned(blocks.size());
  CudaText text("global_norm", true);
  define_chunks(text).pointer("partial", partial).table("segments", std::move(segments)).table("blocks", std::move(blocks));
  return text.traffic(bytes).budget(48).launch("optim/clip.cuh", {grid, 1, 1}, {kChunkThreads, 1, 1});
}

CudaKernel total_kernel(const Operand& partial, std::int64_t count, const Operand& norm) {
  CudaText text("global_norm_total", true);
  text.define("T", kTotalThreads).pointer("partial", partial).integer("count", count).pointer("norm", norm);
  return text.launch("optim/clip_total.cuh", {1, 1, 1}, {kTotalThreads, 1, 1});
}

}  // namespace

void cuda_global_norm(Lowering& l) {
  const Operand norm = l.output();
  if (!norm) return;
  std::vector<CudaArg> segments;
  std::vector<std::int64_t> sizes;
  double bytes = 0;
  for (int i = 0; i < l.inputs(); ++i) {
    if (!l.has(i)) continue;
    const Operand g = l.dense(i);
    sizes.push_back(g.numel());
    segments.push_back(address_word(g));
    segments.push_back(integer_word(g.numel()));
    segments.push_back(integer_word(std::int64_t(g.dtype)));
    bytes += g.bytes();
  }
  std::vector<CudaArg> blocks = block_words(sizes);
  const auto count = std::int64_t(blocks.size()), memory = std::max<std::int64_t>(count, 1);
  const Operand partial = l.scratch(DType::f64, std::span(&memory, 1));
  if (count > 0) l.emit(partial_kernel(std::move(segments), std::move(blocks), partial, bytes));
  l.emit(total_kernel(partial, count, norm));
}

}  // namespace weft
