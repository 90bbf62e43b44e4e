// Random numbers for data: a function of a key and two counters alone.
#pragma once

#include <cstdint>

#include "jit/philox.h"

namespace weft {

class DataDraws {
 public:
  DataDraws(std::uint64_t key, std::int64_t a, std::int64_t b = 0) : key_(key), a_(std::uint64_t(a)), b_(std::uint64_t(b)) {}
  std::int64_t below(std::int64_t n) {  // uniform in [0, n), n up to 2^32
    if (used_ % 4 == 0) words_ = philox_group(key_, a_, b_ << 32 | used_ / 4);
    return std::int64_t(std::uint64_t(words_[used_++ % 4]) * std::uint64_t(n) >> 32);
  }

 private:
  std::uint64_t key_, a_, b_, used_ = 0;
  PhiloxWords words_{};
};

}  // namespace weft
