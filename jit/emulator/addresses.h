// The addresses of a memory instruction, checked: one host pointer a lane.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "jit/emulator/execute.h"

namespace weft::emulator {

// A bit of Instruction::mode: a volatile, relaxed, acquire or release access, by which blocks order themselves.
inline constexpr std::uint8_t kStrong = 2;

struct Pointers {
  std::array<std::byte*, kLanes> at;  // lanes that are not active repeat one that is
  bool dense = false;                 // lane l has at[0] + l * bytes, all lanes active
  // Lanes that write what another thread has just written: a race unless they write the same.
  Mask rewriting = 0;
  bool global = false;
  std::array<std::uint64_t, kLanes> rewritten;  // by whom: an event of SharedRaces, or of BlockEvents if global
};

// Checks bounds, alignment and initialisation of `bytes` bytes a lane, and notes the access. `space` is shared, local,
// or else generic (global addresses are generic ones). `counted`: it is a request of its own.
Pointers resolve(Warp& warp, const Instruction& i, Mask lanes, Space space, const std::uint64_t* addresses, unsigned bytes,
                 Access access, bool counted = true);

// Counts a request to shared memory.
void count_shared(Warp& warp, Mask lanes, const std::uint64_t* addresses, unsigned bytes, Access access);

// If a lane is `rewriting` and `value` is not what is there: the fault of a race.
void check_rewriting(Warp& warp, const Instruction& i, const Pointers& p, int lane, std::size_t offset, const void* value,
                     std::size_t bytes);

// Addresses of an instruction: the base register's (64-bit lanes if `wide`) plus the offset.
inline void addresses_of(Warp& warp, std::uint32_t place, bool wide, std::int64_t offset, std::uint64_t* addresses) {
  if (wide) {
    const auto* base = warp.words<std::uint64_t>(place);
    for (int l = 0; l < kLanes; ++l) addresses[l] = base[l] + std::uint64_t(offset);
  } else {
    const auto* base = warp.words<std::uint32_t>(place);
    for (int l = 0; l < kLanes; ++l) addresses[l] = std::uint32_t(base[l] + std::uint32_t(offset));
  }
}

}  // namespace weft::emulator
