// Embedding on a GPU. The gradient sorts the positions by id, so that each row of the table has one owner that adds its
// occurrences in order of position.
#include <algorithm>
#include <bit>

#include "jit/device_errors.h"
#include "ops/cuda.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

// The positions of `ids` (..., 1), sorted by id and among equal ids by position: (count).
Operand emit_sort(Lowering& l, const Operand& ids, std::int64_t count, std::int64_t v) {
  constexpr int kBits = 8, kDigits = 1 << kBits;  // also the threads of a block
  constexpr std::int64_t kMostChunks = 256;       // each block reads the counts of all chunks
  // A chunk is a whole number of warps for each warp of the block.
  const std::int64_t chunk =
      std::max<std::int64_t>(2048, ((count + kMostChunks - 1) / kMostChunks + kDigits - 1) / kDigits * kDigits);
  const std::int64_t chunks = (count + chunk - 1) / chunk, counts_dims[] = {chunks, kDigits}, dims[] = {count};
  const Operand counts = l.scratch(DType::i32, counts_dims);
  const int bits = std::max(1, int(std::bit_width(std::uint64_t(v - 1))));
  Operand sorted;
  for (int shift = 0; shift < bits; shift += kBits) {
    const Operand to = l.scratch(DType::i32, dims);
    for (const bool scatter : {false, true}) {
      CudaText text = l.text(scatter ? "embedding_sort" : "embedding_count");
      text.define("SCATTER", scatter).define("FIRST", shift == 0).define("SHIFT", shift).define("DIGITS", kDigits);
      text.define("THREADS", kDigits)
          .define("BAD_ID", std::int64_t(DeviceError::embedding_id))
          .strided("ids", ids)
          .pointer("counts", counts)
          .pointer("sorted", to);
      text.pointer("positions", sorted ? sorted : to).integer("count", count).integer("chunk", chunk).integer("v", v);
      text.traffic(bytes_of({}, {ids, scatter ? to : Operand{}}));
      l.emit(text.launch("ops/embedding_sort.cuh", {unsigned(chunks), 1, 1}, {kDigits, 1, 1}));
    }
    sorted = to;
  }
  return sorted;
}

}  // namespace

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
  text.integer("vectors", vectors).integer("columns", d / width).integer("v", l.shape(0)[0]).traffic(2 * bytes_of({}, {out}));
  l.emit(text.launch("ops/embedding.cuh", {unsigned((vectors + kThreads - 1) / kThreads), 1, 1}, {kThreads, 1, 1}));
}

// Inputs ids (...), g (..., d). Output (v, d): zero where an id does not occur.
void cuda_embedding_backward(Lowering& l) {
  const Operand ids = as_rows(l.view(0)), g = l.rows(1), out = l.output();
  const std::int64_t count = l.shape(0).numel(), v = out.dims[0], d = out.dims[1];
  if (v * d == 0) return;
  emit_fill(l, 0, out);
  if (count == 0) return;
  const Operand sorted = emit_sort(l, ids, count, v);
  const std::int64_t chunk = std::max<std::int64_t>(64, (count + 1023) / 1024), chunks = (count + chunk - 1) / chunk;
  const std::int64_t dims[] = {chunks, d};
  const DType real = l.in_double() ? DType::f64 : DType::f32;
  const Operand heads = l.scratch(real, dims), tails = l.scratch(real, dims);
  const int width = row_width(d, {}, {g, out});
  const std::int64_t vectors = d / width, threads = std::clamp<std::int64_t>((vectors + 31) / 32 * 32, 32, 128);
  for (const bool join : {false, true}) {
    CudaText text = l.text(join ? "embedding_join" : "embedding_backward");
    text.define("JOIN", join).define("V", width).define("THREADS", threads).strided("ids", ids).pointer("sorted", sorted);
    text.rows("g", g).pointer("heads", heads).pointer("tails", tails).rows("dw", out);
    text.integer("count", count).integer("chunk", chunk).integer("v", v).integer("d", d);
    text.traffic(join ? bytes_of({}, {heads}) : bytes_of({}, {g, heads}));
    l.emit(text.launch("ops/embedding_backward.cuh", {unsigned(chunks), unsigned((vectors + threads - 1) / threads), 1},
                       {unsigned(threads), 1, 1}));
  }
}

}  // namespace weft
