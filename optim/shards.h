// ZeRO-1 (arXiv:1910.02054): each of n ranks keeps the optimizer's state of a part of all elements, and updates those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace weft {

// Tensors lie one behind the other in buckets. A bucket is cut into n parts of the same size, part r is rank r's. A cut goes
// through a tensor only between two of its chunks (optim/chunks.h), so sums over chunks are those of one process.
struct Shards {
  struct Bucket {
    std::int64_t part;   // elements of a part
    std::int64_t first;  // where a rank's part lies in what it keeps
  };
  struct Place {
    int bucket;
    std::int64_t at;  // where the tensor begins in its bucket
  };
  int ranks = 1;
  std::int64_t size = 0;  // elements that a rank keeps
  std::vector<Bucket> buckets;
  std::vector<Place> places;  // by tensor
};

// The size of the next bucket: `most`, but at the end half of what is left, and so less and less: nothing hides what is sent
// last.
std::int64_t bucket_limit(std::int64_t left, std::int64_t most);

// Of tensors with that many elements, which come in this order, about `bucket` elements in one.
Shards cut_into_shards(std::span<const std::int64_t> sizes, std::span<const int> order, int ranks, std::int64_t bucket);

// Elements [begin, end) of a tensor, which lie from `at` on in a part.
struct Shard {
  std::int64_t begin, end, at;
};
// Those in part `rank` of a tensor of n elements that begins at `at` in its bucket; none: begin = end = 0.
Shard shard_of(std::int64_t at, std::int64_t n, std::int64_t part, int rank);

}  // namespace weft
