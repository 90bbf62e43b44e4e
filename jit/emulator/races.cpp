#include "jit/emulator/races.h"

#include <algorithm>
#include <atomic>
#include <bit>

namespace weft::emulator {

SharedRaces::SharedRaces(std::uint32_t bytes, std::uint32_t granule, unsigned warps)
    : granule_shift_(unsigned(std::countr_zero(granule))),
      warps_(warps),
      cells_((bytes >> granule_shift_) + 4),
      known_(warps, Knowledge{}) {
  for (unsigned w = 0; w < warps; ++w) known_[w][w] = 1;
}

// A time later than all is known to all, so that what the block before left in the cells counts as ordered.
void SharedRaces::begin_block() {
  std::uint32_t latest = 0;
  for (unsigned w = 0; w < warps_; ++w) latest = std::max(latest, known_[w][w]);
  if (latest > 0xf0000000u) {
    std::fill(cells_.begin(), cells_.end(), Cell{});
    latest = 0;
  }
  for (unsigned w = 0; w < warps_; ++w) {
    known_[w].fill(latest);
    known_[w][w] = latest + 1;
  }
}

void SharedRaces::arrive(unsigned warp, Knowledge& joined) {
  for (unsigned v = 0; v < warps_; ++v) joined[v] = std::max(joined[v], known_[warp][v]);
  ++known_[warp][warp];
}

void SharedRaces::proceed(unsigned warp, const Knowledge& joined) {
  for (unsigned v = 0; v < warps_; ++v)
    if (v != warp) known_[warp][v] = std::max(known_[warp][v], joined[v]);
}

// Blocks run on several threads of the host: cells are read and written whole, and a lost note loses a report at most.
std::uint64_t note_global(BlockEvents* events, std::uint64_t offset, std::uint32_t bytes, Access access, std::uint32_t launch,
                          std::uint64_t block, bool& same_value_allowed) {
  const std::uint64_t who = std::uint64_t(launch & 0xffffffu) << 40 | (block + 1) << 4;
  const auto conflicts = [&](std::uint64_t event, std::uint64_t mask) {
    return (event & mask) != 0 && (event & ~std::uint64_t{15}) != who && event >> 40 == who >> 40;
  };
  std::uint64_t race = 0;
  same_value_allowed = access == Access::write;
  for (std::uint64_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
    const std::uint64_t mask = bytes >= 4 ? 15u : ((1u << bytes) - 1) << (offset % 4);
    const std::atomic_ref<std::uint64_t> writer(events[word].writer), reader(events[word].reader);
    const std::uint64_t before = writer.load(std::memory_order_relaxed);
    if (conflicts(before, mask)) race = before;
    if (access == Access::read) {
      const std::uint64_t last = reader.load(std::memory_order_relaxed);
      if ((last | mask) != last || (last & ~std::uint64_t{15}) != who)
        reader.store(who | mask | ((last & ~std::uint64_t{15}) == who ? last & 15 : 0), std::memory_order_relaxed);
      continue;
    }
    if (const std::uint64_t last = reader.load(std::memory_order_relaxed); conflicts(last, mask))
      race = last, same_value_allowed = false;
    writer.store(who | mask | ((before & ~std::uint64_t{15}) == who ? before & 15 : 0), std::memory_order_relaxed);
  }
  return race;
}

}  // namespace weft::emulator
