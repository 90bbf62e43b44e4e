// Storage types of values. Inside a kernel reals are computed in fp32 (fp64 when an operand is f64); rounding happens at
// stores, and where a program casts.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "jit/error.h"

namespace weft {

enum class DType : std::uint8_t { f32, f64, bf16, i32, i64, boolean };

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::boolean:
      return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f64:
      return "f64";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::boolean:
      return "bool";
  }
  return "?";
}

constexpr bool is_real(DType dtype) { return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16; }
constexpr bool is_integer(DType dtype) { return dtype == DType::i32 || dtype == DType::i64; }

// The wider of two real types (bf16 < f32 < f64); a real wins over an integer, an integer over a boolean.
DType widest(DType a, DType b);

// bf16 is the top half of an fp32; rounding to nearest even, NaN kept quiet.
struct bf16 {
  std::uint16_t bits;
  bf16() = default;
  explicit bf16(float x) {
    auto u = std::bit_cast<std::uint32_t>(x);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? std::uint16_t((u >> 16) | 0x40u)
                                           : std::uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  // Rounded once: first to the fp32 next to zero, whose last bit is set where something was cut off ("round to odd": Boldo and
  // Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Trans. Computers 57, 2008).
  template <std::same_as<double> T>
  explicit bf16(T x) : bf16(to_odd(x)) {}
  operator float() const { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

 private:
  static float to_odd(double x) {
    const auto nearest = float(x);
    if (double(nearest) == x || x != x) return nearest;
    const auto u = std::bit_cast<std::uint32_t>(nearest);
    const bool away = x < 0 ? double(nearest) < x : double(nearest) > x;
    return std::bit_cast<float>((away ? u - 1 : u) | 1u);
  }
};

// Calls f(T{}) with the C++ type of `dtype` (boolean is std::uint8_t).
template <class F>
decltype(auto) visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bf16{});
    case DType::i32:
      return f(std::int32_t{});
    case DType::i64:
      return f(std::int64_t{});
    case DType::boolean:
      return f(std::uint8_t{});
    case DType::f32:
      break;
  }
  return f(float{});
}

// ---- types of values on the host
// ---------------------------------------------------------------------------------------------

// A type that values are given in and read in on the host: float, double, a signed integer of 32 or 64 bits under any of its
// names, bool, or std::uint8_t for booleans, of which every value but 0 is true.
template <class T>
inline constexpr bool is_host_element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bool> ||
                                        std::same_as<T, std::uint8_t> ||
                                        (std::signed_integral<T> && (sizeof(T) == 4 || sizeof(T) == 8) &&
                                         !std::same_as<T, wchar_t>);

namespace detail {
template <class T>
auto stored_element() {
  static_assert(
      is_host_element<T>,
      "the elements on the host are float, double, bool, std::uint8_t (booleans), or signed integers of 32 or 64 bits; "
      "give one of these types, or copy the values into a vector of one");
  if constexpr (std::same_as<T, bool>)
    return std::uint8_t();
  else if constexpr (std::integral<T> && sizeof(T) == 4)
    return std::int32_t();
  else if constexpr (std::integral<T> && sizeof(T) == 8)
    return std::int64_t();
  else
    return T();
}
}  // namespace detail

// Which of the types that tensors are made of T is: functions are compiled for these alone.
template <class T>
using StoredElement = decltype(detail::stored_element<T>());

// The same values; no copy where T is such a type itself.
template <class T>
decltype(auto) stored_elements(const std::vector<T>& values) {
  if constexpr (std::same_as<T, StoredElement<T>>)
    return (values);
  else
    return std::vector<StoredElement<T>>(values.begin(), values.end());
}
template <class T>
std::vector<T> host_elements(std::vector<StoredElement<T>> values) {
  if constexpr (std::same_as<T, StoredElement<T>>)
    return values;
  else
    return std::vector<T>(values.begin(), values.end());
}

}  // namespace weft
