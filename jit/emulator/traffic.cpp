#include "jit/emulator/traffic.h"

#include <algorithm>
#include <bit>

namespace weft::emulator {
namespace {

constexpr unsigned kBanks = 32, kBankBytes = kBankRow / kBanks;

// The words that a group of lanes wants of each bank; a word that several want counts once, unless each must have its turn.
class Banks {
 public:
  void want(std::uint32_t word, bool own_turn) {
    const unsigned bank = word % kBanks;
    for (unsigned n = 0; n < count_[bank] && !own_turn; ++n)
      if (words_[bank][n] == word) return;
    words_[bank][count_[bank]++] = word;
  }
  unsigned most() const { return *std::max_element(count_, count_ + kBanks); }

 private:
  std::uint32_t words_[kBanks][kLanes];  // a group moves 128 bytes: at most 32 words in all
  std::uint8_t count_[kBanks] = {};
};

}  // namespace

unsigned sectors(const std::uint64_t* addresses) {
  std::uint64_t at[kLanes], low = addresses[0] / kSector, high = low, bits = 0;
  for (int l = 0; l < kLanes; ++l) at[l] = addresses[l] / kSector, low = std::min(low, at[l]), high = std::max(high, at[l]);
  if (high - low < 64) {
    for (const std::uint64_t sector : at) bits |= std::uint64_t{1} << (sector - low);
    return unsigned(std::popcount(bits));
  }
  std::sort(at, at + kLanes);
  return unsigned(std::unique(at, at + kLanes) - at);
}

Wavefronts wavefronts(Mask lanes, const std::uint64_t* addresses, unsigned bytes, bool atomic) {
  Wavefronts sum;
  const unsigned group = std::min(unsigned(kLanes), kBankRow / bytes);  // lanes that are served together
  for (unsigned first = 0; first < kLanes; first += group) {
    const Mask here = group == kLanes ? lanes : lanes >> first & ((Mask{1} << group) - 1);
    if (!here) continue;
    Banks banks;
    for (Mask left = here; left; left &= left - 1) {
      const std::uint64_t address = addresses[first + unsigned(std::countr_zero(left))];
      for (unsigned b = 0; b < bytes; b += kBankBytes) banks.want(std::uint32_t((address + b) / kBankBytes), atomic);
    }
    ++sum.least, sum.taken += banks.most();
  }
  return sum;
}

}  // namespace weft::emulator
