// What kernels can raise (`raise` in prelude.cuh): codes of the first status word; value, limit and position are the next
// three.
#pragma once

#include <cstdint>

namespace weft {

enum class DeviceError : std::uint64_t {
  none = 0,
  embedding_id = 1,
  cross_entropy_label = 2,
  subscript = 3,
  segment_falls = 4
};

// Throws the error of a raised status.
[[noreturn]] void throw_device_error(DeviceError code, std::int64_t value, std::int64_t limit, std::int64_t position);
inline constexpr int kStatusWords = 4;
inline constexpr int kNotices = kStatusWords;  // the word behind them counts the calls of `notify` (prelude.cuh)

}  // namespace weft
