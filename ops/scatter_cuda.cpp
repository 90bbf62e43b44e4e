// Sums of rows by number on a GPU: the places are sorted by id, so that each row of the result has one owner, which adds its
// rows in order of place.
#include <algorithm>
#include <bit>
#include <string>

#include <fmt/format.h>

#include "jit/device_errors.h"
#include "jit/parallel.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"
#include "ops/scatter.h"

namespace weft {
namespace {

// The places of the ids, sorted by id and among equal ids by place: (count). Ids that are dropped come last.
Operand emit_sort(Lowering& l, const std::string& name, const Operand& ids, std::int64_t v, bool drops) {
  constexpr int kBits = 8, kDigits = 1 << kBits;  // also the threads of a block
  constexpr std::int64_t kMostChunks = 256;       // each block reads the counts of all chunks
  const std::int64_t count = ids.numel();
  // A chunk is a whole number of warps for each warp of the block.
  const std::int64_t chunk = std::max<std::int64_t>(2048, ceil_div(ceil_div(count, kMostChunks), kDigits) * kDigits);
  const std::int64_t chunks = ceil_div(count, chunk), counts_dims[] = {chunks, kDigits}, dims[] = {count};
  const Operand counts = l.scratch(DType::i32, counts_dims);
  const int bits = std::max(1, int(std::bit_width(std::uint64_t(drops ? v : v - 1))));
  Operand sorted;
  for (int shift = 0; shift < bits; shift += kBits) {
    const Operand to = l.scratch(DType::i32, dims);
    for (const bool scatter : {false, true}) {
      CudaText text = l.text(name + (scatter ? "_sort" : "_count"));
      text.define("SCATTER", scatter).define("FIRST", shift == 0).define("SHIFT", shift).define("DIGITS", kDigits);
      text.define("DROPS", drops).define("THREADS", kDigits);
      text.define("BAD_ID", std::int64_t(DeviceError::embedding_id)).strided("ids", ids);
      text.pointer("counts", counts).pointer("sorted", to).pointer("positions", sorted ? sorted : to);
      text.integer("count", count).integer("chunk", chunk).integer("v", v);
      l.emit(text.launch("ops/scatter_sort.cuh", {unsigned(chunks), 1, 1}, {kDigits, 1, 1}));
    }
    sorted = to;
  }
  return sorted;
}

}  // namespace

void emit_scatter_cuda(Lowering& l, std::string name, const RowScatter& s) {
  const Operand ids = as_rows(s.ids);
  const std::int64_t count = ids.numel(), v = s.out.dims[0], d = s.out.dims[1];
  if (v * d == 0) return;
  emit_fill(l, 0, s.out);
  if (count == 0) return;
  const std::string family = name.substr(0, name.find('_'));  // "embedding"
  const Operand sorted = emit_sort(l, family, ids, v, s.drops);
  const std::int64_t chunk = std::max<std::int64_t>(64, ceil_div(count, 1024)), chunks = ceil_div(count, chunk);
  const std::int64_t dims[] = {chunks, d};
  const DType real = l.in_double() ? DType::f64 : DType::f32;
  const Operand heads = l.scratch(real, dims), tails = l.scratch(real, dims);
  const int width = row_width(d, {}, {s.values, s.out});
  const std::int64_t vectors = d / width, threads = std::clamp<std::int64_t>(ceil_div(vectors, 32) * 32, 32, 128);
  for (const bool join : {false, true}) {
    CudaText text = l.text(join ? family + "_join" : name);
    text.define("JOIN", join).define("V", width).define("THREADS", threads).strided("ids", ids).pointer("sorted", sorted);
    text.rows("values", s.values).pointer("heads", heads).pointer("tails", tails).rows("out", s.out);
    text.integer("count", count).integer("chunk", chunk).integer("v", v).integer("d", d);
    text.traffic(join ? heads.bytes() : s.values.bytes() + heads.bytes());
    l.emit(
        text.launch("ops/scatter.cuh", {unsigned(chunks), unsigned(ceil_div(vectors, threads)), 1}, {unsigned(threads), 1, 1}));
  }
}

}  // namespace weft
