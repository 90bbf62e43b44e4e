// Races: two accesses of which one writes, by threads that nothing orders in between.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "jit/emulator/program.h"

namespace weft::emulator {

enum class Access : std::uint8_t { read, write, update };  // update: both, and atomic

// Shared memory of a block. Each warp has a clock, which barriers and __syncwarp advance, and knows up to which time of
// every other warp its own accesses are ordered after (a vector clock); every few bytes remember who wrote and read them last,
// and when.
class SharedRaces {
 public:
  // A thread and the time and instruction of its access; 0: nobody.
  using Event = std::uint64_t;
  static constexpr int kLaneBits = 5, kWarpBits = 5, kClockBits = 32;
  static int lane(Event e) { return int(e & 31u); }
  static unsigned warp(Event e) { return unsigned(e >> kLaneBits & 31u); }
  static std::uint64_t instruction(Event e) { return e >> (kLaneBits + kWarpBits + 2 + kClockBits); }

  SharedRaces(std::uint32_t bytes, std::uint32_t granule, unsigned warps);
  void begin_block();  // everything before is long ago
  void sync_warp(unsigned warp) { ++known_[warp][warp]; }

  // Barriers: a warp that arrives adds what it knows to `joined`; one that goes on takes it over.
  using Knowledge = std::array<std::uint32_t, 32>;
  void arrive(unsigned warp, Knowledge& joined);
  void proceed(unsigned warp, const Knowledge& joined);

  // Notes an access to [address, address + bytes). Returns an earlier one that is not ordered before it, or 0. A write
  // that meets only writes sets `same_value_allowed`: writing what is there already is no fault.
  Event note(unsigned warp, int lane, std::uint32_t instruction, std::uint32_t address, std::uint32_t bytes, Access access,
             bool& same_value_allowed);

 private:
  static constexpr Event kMany = 1u << 10, kAtomic = 1u << 11;  // several lanes of the warp; an atomic update
  struct Cell {
    Event writer = 0;
    std::array<Event, 2> readers{};
  };
  static std::uint32_t clock(Event e) { return std::uint32_t(e >> (kLaneBits + kWarpBits + 2)); }
  bool ordered(Event e, unsigned warp, Event who) const {
    return clock(e) < known_[warp][SharedRaces::warp(e)] + (SharedRaces::warp(e) != warp) || (e & 0x7ffu) == who;
  }
  // Of unordered readers two are kept, of different warps; a third adds little.
  void note_reader(Cell& cell, unsigned w, Event who, Event event) {
    for (Event& reader : cell.readers) {
      if (warp(reader) == w && reader && clock(reader) == known_[w][w]) {
        if ((reader & 0x7ffu) != who) reader |= kMany;
        return;
      }
      if (ordered(reader, w, who)) {
        reader = event;
        return;
      }
    }
  }

  unsigned granule_shift_, warps_;
  std::vector<Cell> cells_;
  std::vector<Knowledge> known_;  // [w][v]: the time of v that w comes after; [w][w]: its own clock
};

inline SharedRaces::Event SharedRaces::note(unsigned w, int l, std::uint32_t instruction, std::uint32_t address,
                                            std::uint32_t bytes, Access access, bool& same_value_allowed) {
  const Event who = Event(w) << kLaneBits | unsigned(l);
  const Event event = who | Event(known_[w][w]) << 12 | Event(instruction) << 44 | (access == Access::update ? kAtomic : 0);
  Event race = 0;
  same_value_allowed = access == Access::write;
  const std::uint32_t last = (address + bytes - 1) >> granule_shift_;
  for (std::uint32_t at = address >> granule_shift_; at <= last; ++at) {
    Cell& cell = cells_[at];
    const bool both_atomic = access == Access::update && (cell.writer & kAtomic);
    if (!ordered(cell.writer, w, who) && !both_atomic) race = cell.writer;
    if (access == Access::read) {
      note_reader(cell, w, who, event);
      continue;
    }
    for (const Event reader : cell.readers)
      if (!ordered(reader, w, who)) race = reader, same_value_allowed = false;
    cell.writer = event;
  }
  return race;
}

// Global memory: of each four bytes, the block of the running launch that wrote them last and one that read them.
// Blocks are not ordered, unless they say so: one that has executed an atomic, a fence or a volatile access is believed
// from then on.
struct BlockEvents {
  std::uint64_t writer = 0, reader = 0;  // launch, block, and which of the four bytes; 0: nobody
};
// Notes an access of a block; returns the event of another block of the launch that conflicts, or 0.
std::uint64_t note_global(BlockEvents* events, std::uint64_t offset, std::uint32_t bytes, Access access, std::uint32_t launch,
                          std::uint64_t block, bool& same_value_allowed);
// The same for the `words` words of a warp that accesses neighbouring ones, if no other block conflicts; otherwise nothing
// is noted and the result is false. What is read is copied first, so that it can be looked at as vectors: an event that
// another thread writes at this moment is missed, and with it a report at most.
template <std::size_t words>
bool note_global_words(BlockEvents* events, Access access, std::uint32_t launch, std::uint64_t block) {
  const std::uint64_t who = std::uint64_t(launch & 0xffffffu) << 40 | (block + 1) << 4 | 15;
  std::array<BlockEvents, words> before;
  std::memcpy(before.data(), events, sizeof before);
  const auto foreign = [&](std::uint64_t event) {
    return std::uint64_t((event >> 40 == who >> 40) & (event >> 4 != who >> 4));
  };
  std::uint64_t bad = 0;
  if (access == Access::read) {
    for (const BlockEvents& e : before) bad |= foreign(e.writer);
  } else {
    for (const BlockEvents& e : before) bad |= foreign(e.writer) | foreign(e.reader);
  }
  if (bad) return false;
  for (std::size_t n = 0; n < words; ++n)
    std::atomic_ref<std::uint64_t>(access == Access::read ? events[n].reader : events[n].writer)
        .store(who, std::memory_order_relaxed);
  return true;
}
inline std::uint64_t block_of(std::uint64_t event) { return (event >> 4 & 0xfffffffffu) - 1; }

}  // namespace weft::emulator
