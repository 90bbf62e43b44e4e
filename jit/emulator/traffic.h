// What a request of a warp costs the memory of a GPU.
#pragma once

#include <cstdint>

#include "jit/emulator/program.h"

namespace weft::emulator {

inline constexpr unsigned kSector = 32;    // bytes
inline constexpr unsigned kBankRow = 128;  // bytes that all banks of shared memory give at once

// The different sectors of 32 bytes that the lanes touch: an aligned access is within one. Lanes that are not active
// repeat the address of one that is.
unsigned sectors(const std::uint64_t* addresses);

// Passes over the banks of shared memory (EmulatedCounters::shared_wavefronts).
struct Wavefronts {
  unsigned least = 0;  // if no two words shared a bank
  unsigned taken = 0;
};
Wavefronts wavefronts(Mask lanes, const std::uint64_t* addresses, unsigned bytes, bool atomic);

}  // namespace weft::emulator
