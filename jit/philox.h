// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <array>
#include <cstdint>

namespace weft {

using PhiloxWords = std::array<std::uint32_t, 4>;

// The block function as published; branch-free, so a loop over counters vectorises.
constexpr PhiloxWords philox_block(PhiloxWords counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    std::uint64_t a = 0xd2511f53ull * counter[0], b = 0xcd9e8d57ull * counter[2];
    counter = {std::uint32_t(b >> 32) ^ counter[1] ^ key0, std::uint32_t(b), std::uint32_t(a >> 32) ^ counter[3] ^ key1,
               std::uint32_t(a)};
    key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;
  }
  return counter;
}

// The 64-bit key of a draw, low word first: the seed with the site (a hash or a small number) spread over all bits.
constexpr std::uint64_t philox_key(std::uint64_t seed, std::uint64_t site) { return seed + 0x9e3779b97f4a7c15ull * site; }

// The four words of elements 4 * group .. 4 * group + 3.
constexpr PhiloxWords philox_group(std::uint64_t key, std::uint64_t tick, std::uint64_t group) {
  PhiloxWords counter = {std::uint32_t(group), std::uint32_t(group >> 32), std::uint32_t(tick), std::uint32_t(tick >> 32)};
  return philox_block(counter, std::uint32_t(key), std::uint32_t(key >> 32));
}

}  // namespace weft
