#include "optim/shards.h"

#include <algorithm>

#include "jit/parallel.h"
#include "optim/chunks.h"

namespace weft {
namespace {

constexpr std::int64_t kUnit = 4;  // elements: tensors begin where a GPU's vectors may

std::int64_t rounded(std::int64_t n, std::int64_t unit) { return ceil_div(n, unit) * unit; }

// Where a tensor of n elements goes behind `at`. A multiple of kChunk, where a cut may be, lies between two of its chunks.
std::int64_t next_place(std::int64_t at, std::int64_t n) {
  at = rounded(at, kUnit);
  return at % kChunk + n > kChunk ? rounded(at, kChunk) : at;
}

}  // namespace

std::int64_t bucket_limit(std::int64_t left, std::int64_t most) { return std::min(most, std::max(left / 2, most / 8)); }

Shards cut_into_shards(std::span<const std::int64_t> sizes, std::span<const int> order, int ranks, std::int64_t bucket) {
  Shards shards{.ranks = ranks, .size = 0, .buckets = {}, .places = std::vector<Shards::Place>(sizes.size())};
  std::int64_t left = 0;
  for (const int t : order) left += sizes[std::size_t(t)];
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    std::int64_t elements = 0;
    const std::int64_t limit = bucket_limit(left, bucket);
    for (; end < order.size() && (end == begin || elements < limit); ++end) elements += sizes[std::size_t(order[end])];
    left -= elements;
    // Whole chunks first, then the largest: this leaves few gaps, which have to be filled.
    std::vector<int> members(order.begin() + std::ptrdiff_t(begin), order.begin() + std::ptrdiff_t(end));
    const auto rank_of = [&](int t) { return std::pair(sizes[std::size_t(t)] % kChunk != 0, -sizes[std::size_t(t)]); };
    std::stable_sort(members.begin(), members.end(), [&](int a, int b) { return rank_of(a) < rank_of(b); });
    std::int64_t at = 0;
    for (const int t : members) {
      const std::int64_t n = sizes[std::size_t(t)], place = next_place(at, n);
      shards.places[std::size_t(t)] = {int(shards.buckets.size()), place};
      at = place + n;
    }
    const std::int64_t part = rounded(ceil_div(at, ranks), kChunk);
    shards.buckets.push_back({part, shards.size});
    shards.size += part;
  }
  return shards;
}

Shard shard_of(std::int64_t at, std::int64_t n, std::int64_t part, int rank) {
  const std::int64_t first = part * rank, begin = std::max(first, at), end = std::min(first + part, at + n);
  if (begin >= end) return {0, 0, 0};
  return {begin - at, end - at, begin - first};
}

}  // namespace weft
