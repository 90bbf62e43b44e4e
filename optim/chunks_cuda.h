// Lists of tensors as a multi-tensor kernel sees them: a table of segments, a tensor each, and a table that gives every block
// its chunk, so that all blocks have equal work, whatever the shapes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "jit/cuda_text.h"
#include "optim/chunks.h"

namespace weft {

// The address of an operand's first element.
inline CudaArg address_word(const Operand& o) { return {CudaArg::pointer, o.slot, o.offset * std::int64_t(size_of(o.dtype))}; }
inline CudaArg integer_word(std::int64_t value) { return {CudaArg::integer, -1, value}; }

// A word a block: segment << 32 | chunk, which are elements [chunk * CHUNK, (chunk + 1) * CHUNK) as far as there are.
inline std::vector<CudaArg> block_words(std::span<const std::int64_t> sizes) {
  std::vector<CudaArg> words;
  for (const Chunk& chunk : cut_into_chunks(sizes))
    words.push_back(integer_word(std::int64_t(chunk.segment) << 32 | chunk.begin / kChunk));
  return words;
}

// The facts of such a kernel.
inline CudaText& define_chunks(CudaText& text) {
  return text.define("T", kChunkThreads)
      .define("CHUNK", kChunk)
      .define("F32", std::int64_t(DType::f32))
      .define("BF16", std::int64_t(DType::bf16));
}

}  // namespace weft
