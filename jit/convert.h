// What a value is as a value of another type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include "jit/dtype.h"

namespace weft {

// An integer for a real: truncates; saturates, and takes NaN to the smallest, as the GPU's cvt.rzi.s64 does.
template <class Integer = std::int64_t, class T>
Integer truncated(T x) {
  constexpr auto kLeast = std::numeric_limits<Integer>::min(), kLargest = std::numeric_limits<Integer>::max();
  return x >= -T(kLeast) ? kLargest : x >= T(kLeast) ? Integer(x) : kLeast;
}

// A value of one storage or register type as another: reals are rounded once; to integers they are truncated and saturate;
// integers wrap; what is not zero is true.
template <class To, class From>
To value_as(From from) {
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (std::is_same_v<From, bf16>) {
    return value_as<To>(float(from));
  } else if constexpr (std::is_same_v<To, bf16>) {
    return bf16(std::conditional_t<std::is_same_v<From, float>, float, double>(from));
  } else if constexpr (std::is_same_v<To, std::uint8_t>) {
    return from != From(0);
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    return truncated<To>(from);
  } else {
    return To(from);
  }
}

// Booleans from outside, where any byte that is not zero is true; kernels take it for granted that true is 1.
inline void normalise_booleans(std::span<std::byte> bytes) {
  for (std::byte& b : bytes) b = std::byte(b != std::byte(0));
}

}  // namespace weft
