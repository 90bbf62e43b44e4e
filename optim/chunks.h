// Cuts a list of tensors into pieces of at most `chunk` elements: by shapes alone, so that results do not depend on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace weft {

struct Chunk {
  std::int32_t segment;  // which tensor
  std::int64_t begin, end;
};

inline std::vector<Chunk> cut_into_chunks(std::span<const std::int64_t> sizes, std::int64_t chunk = 1 << 15) {
  std::vector<Chunk> chunks;
  for (std::size_t s = 0; s < sizes.size(); ++s)
    for (std::int64_t at = 0; at < sizes[s]; at += chunk)
      chunks.push_back({std::int32_t(s), at, std::min(sizes[s], at + chunk)});
  return chunks;
}

}  // namespace weft
