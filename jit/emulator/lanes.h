// Values in lanes: the types of PTX in C++, and the loops over the lanes of a warp. Loops run over all lanes, so that
// they become vector code; results of lanes that are not active are dropped.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "jit/emulator/program.h"
#include "jit/emulator/warp.h"

namespace weft::emulator {

// ---- 16-bit floats, computed in fp32 ----------------------------------------------------------------------------------------

struct Half {
  std::uint16_t bits;
};
struct Brain {  // bf16
  std::uint16_t bits;
};
template <class H>
struct Pair {  // packed; `low` in the low half
  H low, high;
};

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline float to_float(Brain x) { return std::bit_cast<float>(std::uint32_t(x.bits) << 16); }
inline float to_float(Half x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, fraction = x.bits & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return std::copysign(float(fraction) * 0x1p-24f, std::bit_cast<float>(sign));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

enum class Rounding : std::uint8_t { nearest, zero, down, up };

// The value with `digits` significant bits (of a type whose smallest step is `step`) next to x.
template <Rounding mode>
double round_to(double x, int digits, double step) {
  if (!(std::abs(x) <= std::numeric_limits<double>::max()) || x == 0) return x;
  const double unit = std::max(std::ldexp(1.0, std::ilogb(x) + 1 - digits), step), scaled = x / unit;
  const double whole = mode == Rounding::nearest ? std::nearbyint(scaled)
                       : mode == Rounding::zero  ? std::trunc(scaled)
                       : mode == Rounding::down  ? std::floor(scaled)
                                                 : std::ceil(scaled);
  return whole * unit;
}

// What a finite number of the sign of x becomes that is too large: the largest number where the rounding is towards zero.
template <Rounding mode>
bool stays_finite(double x) {
  return std::isfinite(x) && (mode == Rounding::zero || (mode == Rounding::down && x > 0) || (mode == Rounding::up && x < 0));
}

template <class To, Rounding mode = Rounding::nearest>
To round_as(double x) {
  if constexpr (std::is_same_v<To, double>) {
    return x;
  } else if constexpr (std::is_same_v<To, float>) {
    constexpr double kLargest = std::numeric_limits<float>::max();
    if (std::abs(x) > kLargest && stays_finite<mode>(x)) return float(std::copysign(kLargest, x));
    return float(mode == Rounding::nearest ? x : round_to<mode>(x, 24, 0x1p-149));
  } else if constexpr (std::is_same_v<To, Brain>) {
    if (std::isnan(x)) return {0x7fff};
    constexpr double kLargest = 0x1.fep127;
    const double r =
        std::abs(x) > kLargest && stays_finite<mode>(x) ? std::copysign(kLargest, x) : round_to<mode>(x, 8, 0x1p-133);
    return {std::uint16_t(std::bit_cast<std::uint32_t>(float(r)) >> 16)};
  } else {
    static_assert(std::is_same_v<To, Half>);
    if (std::isnan(x)) return {0x7fff};
    const double r = round_to<mode>(x, 11, 0x1p-24), size = std::abs(r);
    const auto sign = std::uint16_t(std::signbit(x) ? 0x8000 : 0);
    if (size > 65504.0) {
      return {std::uint16_t(sign | (stays_finite<mode>(x) ? 0x7bff : 0x7c00))};
    }
    if (size < 0x1p-14) return {std::uint16_t(sign | std::uint16_t(size * 0x1p24))};
    const int exponent = std::ilogb(size);
    return {std::uint16_t(sign | (exponent + 15) << 10 | std::uint16_t((std::ldexp(size, -exponent) - 1) * 1024))};
  }
}
// The common case, fast: fp32 to bf16, to nearest even.
inline Brain brain_of(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  return {std::uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, Brain>) {
    return brain_of(x);
  } else {
    return round_as<T>(double(x));
  }
}

inline float flush(float x) { return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

// ---- registers --------------------------------------------------------------------------------------------------------------

template <class T>
using Word = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

template <class T>
T value_of(Word<T> word) {
  if constexpr (sizeof(T) == 8 || sizeof(T) == 4) {
    return std::bit_cast<T>(word);
  } else if constexpr (sizeof(T) == 2) {
    return std::bit_cast<T>(std::uint16_t(word));
  } else {
    return std::bit_cast<T>(std::uint8_t(word));
  }
}
template <class T>
Word<T> word_of(T value) {
  if constexpr (sizeof(T) == 8 || sizeof(T) == 4) {
    return std::bit_cast<Word<T>>(value);
  } else if constexpr (sizeof(T) == 2) {
    return std::bit_cast<std::uint16_t>(value);
  } else {
    return std::bit_cast<std::uint8_t>(value);
  }
}

// One value a lane, of a register.
template <class T>
struct Source {
  const Word<T>* words;
  Source(Warp& warp, std::uint32_t place) : words(warp.words<Word<T>>(place)) {}
  T operator[](int lane) const { return value_of<T>(words[lane]); }
};

// Not inlined: hundreds of instructions would have this loop.
template <class W>
[[gnu::noinline]] inline void write_some(W* to, const W* result, Mask lanes) {
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = lanes >> lane & 1 ? result[lane] : to[lane];
}

// register `place` = f(lane) in the active lanes. `costly`: f is called for these alone.
template <class T, bool costly = false, class F>
inline void write(Warp& warp, std::uint32_t place, Mask lanes, F f) {
  Word<T>* to = warp.words<Word<T>>(place);
  Word<T> result[kLanes];  // apart from the operands, so that the loop needs no check of overlap
  if constexpr (costly) {
    if (lanes != kAllLanes) {
      for (Mask left = lanes; left; left &= left - 1) to[std::countr_zero(left)] = word_of<T>(f(std::countr_zero(left)));
      return;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = word_of<T>(f(lane));
  if (lanes == kAllLanes) {
    std::memcpy(to, result, sizeof result);
  } else {
    write_some(to, result, lanes);
  }
}

// A predicate = f(lane) in the active lanes.
template <class F>
inline Mask gather_bits(F f) {
  Mask bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= Mask(bool(f(lane))) << lane;
  return bits;
}
inline void write_predicate(Warp& warp, std::uint32_t place, Mask lanes, Mask value) {
  Mask& p = warp.predicate(place);
  p = (p & ~lanes) | (value & lanes);
}

// ---- calls f.template operator()<T>() with the C++ type of a PTX type; Result{} for others ----------------------------------

template <class F>
Handler with_integer(Type type, F f) {
  switch (type) {
    case Type::b16:
    case Type::u16:
      return f.template operator()<std::uint16_t>();
    case Type::b32:
    case Type::u32:
      return f.template operator()<std::uint32_t>();
    case Type::b64:
    case Type::u64:
      return f.template operator()<std::uint64_t>();
    case Type::s16:
      return f.template operator()<std::int16_t>();
    case Type::s32:
      return f.template operator()<std::int32_t>();
    case Type::s64:
      return f.template operator()<std::int64_t>();
    default:
      return nullptr;
  }
}
template <class F>
Handler with_half(Type type, F f) {
  switch (type) {
    case Type::f16:
      return f.template operator()<Half>();
    case Type::bf16:
      return f.template operator()<Brain>();
    case Type::f16x2:
      return f.template operator()<Pair<Half>>();
    case Type::bf16x2:
      return f.template operator()<Pair<Brain>>();
    default:
      return nullptr;
  }
}
// Bits a lane of a register that holds the type: 1, 32 or 64.
inline int lane_bits(Type type) { return type == Type::pred ? 1 : bits_of(type) == 64 ? 64 : 32; }

}  // namespace weft::emulator
