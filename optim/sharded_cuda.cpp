#include <algorithm>
#include <utility>
#include <vector>

#include "optim/chunks_cuda.h"
#include "optim/cuda.h"
#include "optim/sharded_op.h"

namespace weft {

void cuda_place_weights(Lowering& l) {
  const sharded::PlaceOperands o = sharded::place_operands(l);
  std::vector<CudaArg> segments, blocks = block_words(o.sizes);
  if (blocks.empty()) return;
  const DType param = o.rows[0].param.dtype;
  double bytes = 0;
  for (std::size_t r = 0; r < o.rows.size(); ++r) {
    const auto& row = o.rows[r];
    segments.push_back(address_word(row.from)), segments.push_back(address_word(row.param));
    segments.push_back(row.twin ? address_word(row.twin) : integer_word(0));
    segments.push_back(integer_word(o.sizes[r]));
    bytes += double(o.sizes[r]) * double(2 * size_of(param) + (row.twin ? 2 : 0));
  }
  const auto grid = unsigned(blocks.size());
  CudaText text("place_weights", param == DType::f64);
  define_chunks(text).type("Param", param).pointer("bad_step", o.flag);
  text.table("segments", std::move(segments)).table("blocks", std::move(blocks)).traffic(bytes).budget(48);
  l.emit(text.launch("optim/place_weights.cuh", {grid, 1, 1}, {kChunkThreads, 1, 1}));
}

}  // namespace weft
