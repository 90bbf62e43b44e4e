#include <algorithm>
#include <utility>
#include <vector>

#include "optim/chunks_cuda.h"
#include "optim/cuda.h"
#include "optim/sharded_op.h"

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

void cuda_sharded_squares(Lowering& l) {
  const sharded::NormOperands o = sharded::norm_operands(l);
  std::vector<CudaArg> segments, blocks;
  double bytes = 0;
  for (std::size_t r = 0; r < o.rows.size(); ++r) {
    const auto& row = o.rows[r];
    segments.push_back(address_word(row.part));
    for (const std::int64_t value : {o.sizes[r], std::int64_t(row.part.dtype)}) segments.push_back(integer_word(value));
    bytes += double(row.end - row.begin) * double(size_of(row.part.dtype));
  }
  for (int k = 0; k < 3; ++k) segments.push_back(integer_word(k == 2 ? std::int64_t(DType::f64) : 0));  // empty: its sum is 0
  const auto empty = std::int64_t(o.rows.size());
  for (const Chunk& chunk : cut_into_chunks(o.sizes)) {
    const auto& row = o.rows[std::size_t(chunk.segment)];
    const bool own = chunk.begin >= row.begin && chunk.begin < row.end;
    blocks.push_back(integer_word(own ? std::int64_t(chunk.segment) << 32 | chunk.begin / kChunk : empty << 32));
  }
  if (!blocks.empty()) l.emit(partial_kernel(std::move(segments), std::move(blocks), l.output(), bytes));
}

void cuda_norm_of_squares(Lowering& l) {
  const Operand sums = l.dense(0);
  if (const Operand norm = l.output()) l.emit(total_kernel(sums, sums.numel(), norm));
}

}  // namespace weft
