#include "ops/rows_cuda.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace weft {

RowCut cut_rows(std::int64_t n, int width, int values, unsigned block) {
  constexpr unsigned kMostThreads = 512;
  constexpr std::int64_t kStreamed = 8;  // vectors a thread should at least read of a row that is not kept
  const std::int64_t vectors = std::max<std::int64_t>(1, (n + width - 1) / width);
  const std::int64_t share = values > 0 ? std::max(1, values / width) : kStreamed;
  unsigned threads = unsigned(std::bit_ceil(std::uint64_t(std::min<std::int64_t>(vectors, 32))));
  if (vectors > 32 * share) threads = 128;
  while (threads >= 128 && threads < kMostThreads && vectors > threads * share) threads *= 2;
  const std::int64_t held = (vectors + threads - 1) / threads;
  const bool keeps = values > 0 && held <= share;
  return {width, threads, threads <= 32 ? block / threads : 1, keeps ? int(held) : 0, keeps && held * threads * width == n};
}

int row_width(std::int64_t n, std::initializer_list<const Fused*> sources, std::initializer_list<Operand> operands) {
  std::size_t widest = 2;
  auto look = [&](const Operand& o) {
    if (o && o.rank > 1) widest = std::max(widest, size_of(o.dtype));
  };
  for (const Fused* f : sources)
    for (const Operand& leaf : f->leaves) look(leaf);
  for (const Operand& o : operands) look(o);
  const std::int64_t dims[] = {n};
  return std::min(vector_width(dims, std::span(sources.begin(), sources.size()), std::span(operands.begin(), operands.size())),
                  int(16 / widest));
}

std::string joined_texts(std::initializer_list<std::string_view> files) {
  std::string all;
  for (const std::string_view file : files) all += embedded_text(file);
  return all;
}

CudaKernel launch_rows(CudaText& text, std::initializer_list<std::string_view> files, const RowCut& cut, std::int64_t blocks) {
  text.define("V", cut.width)
      .define("THREADS", cut.threads)
      .define("ROWS", cut.rows)
      .define("HELD", cut.held)
      .define("FULL", cut.full);
  return text.launch_text(joined_texts(files), {unsigned(blocks), 1, 1}, {cut.threads * cut.rows, 1, 1});
}

Operand as_rows(Operand o) {
  o.dims[std::size_t(o.rank)] = 1;
  o.strides[std::size_t(o.rank++)] = 1;
  return o;
}

}  // namespace weft
