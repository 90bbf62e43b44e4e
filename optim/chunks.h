// Cuts a list of tensors into pieces of at most kChunk elements: by shapes alone, so that results depend neither on threads nor
// on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace weft {

inline constexpr std::int64_t kChunk = 8192;     // a power of two, so a chunk of an aligned tensor is aligned
inline constexpr unsigned kChunkThreads = 256;   // of a GPU's block, which has a chunk
inline constexpr unsigned kTotalThreads = 1024;  // of the block that adds what those of all chunks have left

struct Chunk {
  std::int32_t segment;  // which tensor
  std::int64_t begin, end;
};

inline std::vector<Chunk> cut_into_chunks(std::span<const std::int64_t> sizes) {
  std::vector<Chunk> chunks;
  for (std::size_t s = 0; s < sizes.size(); ++s)
    for (std::int64_t at = 0; at < sizes[s]; at += kChunk)
      chunks.push_back({std::int32_t(s), at, std::min(sizes[s], at + kChunk)});
  return chunks;
}

}  // namespace weft
