// cvt: between integers, floats, and packed 16-bit floats.
#include <algorithm>
#include <utility>

#include "jit/emulator/lanes.h"

namespace weft::emulator {
namespace {

// Bits of Instruction::mode.
enum Flag : std::uint8_t { rounding_bits = 3, saturate = 4, flush_small = 8, whole = 16, relu = 32 };

template <class T>
inline constexpr bool is_real = !std::is_integral_v<T>;

template <class T>
T rounded_whole(T x, Rounding mode) {
  switch (mode) {
    case Rounding::nearest:
      return std::nearbyint(x);
    case Rounding::zero:
      return std::trunc(x);
    case Rounding::down:
      return std::floor(x);
    case Rounding::up:
      return std::ceil(x);
  }
  return x;
}

// Out of range becomes the nearest value; what a NaN becomes depends on the types (PTX, cvt).
template <class D, class S>
D integer_of(S x) {
  constexpr bool wide = sizeof(S) == 8 || sizeof(D) == 8;
  if (x != x) return wide ? D(std::uint64_t(1) << (8 * sizeof(D) - 1)) : D(0);
  if (x >= std::ldexp(S(1), 8 * sizeof(D) - std::is_signed_v<D>)) return std::numeric_limits<D>::max();
  if (x <= S(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
  return D(x);
}

template <class D>
D real_of(double x, Rounding mode) {
  switch (mode) {
    case Rounding::nearest:
      return round_as<D>(x);
    case Rounding::zero:
      return round_as<D, Rounding::zero>(x);
    case Rounding::down:
      return round_as<D, Rounding::down>(x);
    case Rounding::up:
      return round_as<D, Rounding::up>(x);
  }
  return round_as<D>(x);
}
// An integer of 64 bits is not exact as a double; to fp32 it must be rounded once.
template <class D, class S>
D real_of_integer(S x, Rounding mode) {
  if constexpr (std::is_same_v<D, float> || std::is_same_v<D, double>)
    if (mode == Rounding::nearest) return D(x);
  if (sizeof(S) < 8 || mode == Rounding::nearest) return real_of<D>(double(x), mode);
  // Directed: step from the nearest double towards the wanted side.
  double near = double(x);
  const auto above = static_cast<long double>(near) - static_cast<long double>(x);
  if (above > 0 && (mode == Rounding::down || (mode == Rounding::zero && x > 0))) near = std::nextafter(near, -INFINITY);
  if (above < 0 && (mode == Rounding::up || (mode == Rounding::zero && std::is_signed_v<S> && x < S(0))))
    near = std::nextafter(near, INFINITY);
  return real_of<D>(near, mode);
}

template <class D, class S>
D converted(S x, std::uint8_t mode) {
  const auto rounding = Rounding(mode & rounding_bits);
  if constexpr (!is_real<D> && !is_real<S>) {
    if (mode & saturate) {
      if (std::cmp_less(x, std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
      if (std::cmp_greater(x, std::numeric_limits<D>::max())) return std::numeric_limits<D>::max();
    }
    return D(x);
  } else if constexpr (!is_real<S>) {
    return real_of_integer<D>(x, rounding);
  } else {
    auto v = to_float(x);
    if constexpr (std::is_same_v<S, float>)
      if (mode & flush_small) v = flush(v);
    if constexpr (!is_real<D>) {
      return integer_of<D>(rounded_whole(v, rounding));
    } else {
      if (mode & whole) v = rounded_whole(v, rounding);
      if (mode & saturate) v = v > 0 ? std::min(v, decltype(v)(1)) : 0;
      if (mode & relu) v = v > 0 || v != v ? v : 0;
      if constexpr (std::is_same_v<D, double>) {
        return double(v);
      } else if constexpr (std::is_same_v<D, float>) {
        float r = float(v);
        if (std::is_same_v<S, double> && rounding != Rounding::nearest) r = real_of<float>(double(v), rounding);
        return mode & flush_small ? flush(r) : r;
      } else {
        return rounding == Rounding::nearest && std::is_same_v<S, float> ? from_float<D>(float(v))
                                                                         : real_of<D>(double(v), rounding);
      }
    }
  }
}

// A narrow integer fills its register: sign and zero extended.
template <class D>
using Stored =
    std::conditional_t<is_real<D> || (sizeof(D) >= 4), D, std::conditional_t<std::is_signed_v<D>, std::int32_t, std::uint32_t>>;

template <class D, class S>
void convert(Warp& w, const Instruction& i, Mask lanes) {
  const Source<S> a(w, i.a);
  if (i.mode == 0) {  // apart: this one is worth vector code
    write<Stored<D>>(w, i.d, lanes, [&](int l) { return Stored<D>(converted<D>(a[l], 0)); });
  } else {
    write<Stored<D>>(w, i.d, lanes, [&](int l) { return Stored<D>(converted<D>(a[l], i.mode)); });
  }
}
// d = {a, b}: a in the upper half.
template <class D>
void convert_pair(Warp& w, const Instruction& i, Mask lanes) {
  const Source<float> a(w, i.a), b(w, i.b);
  if (i.mode == 0) {
    write<Pair<D>>(w, i.d, lanes, [&](int l) { return Pair<D>{from_float<D>(b[l]), from_float<D>(a[l])}; });
  } else {
    write<Pair<D>>(w, i.d, lanes, [&](int l) { return Pair<D>{converted<D>(b[l], i.mode), converted<D>(a[l], i.mode)}; });
  }
}
// Ten bits of fraction: to nearest (rna: ties away from zero; rn: to even), or toward zero.
void convert_tf32(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint32_t> a(w, i.a);
  write<std::uint32_t>(w, i.d, lanes, [&](int l) {
    const std::uint32_t x = a[l];
    if ((x & 0x7f800000u) == 0x7f800000u) return x & 0x007fffffu ? 0x7fffffffu : x;
    const std::uint32_t half = i.mode == 0 ? 0x1000u : i.mode == 1 ? 0x0fffu + (x >> 13 & 1u) : 0u;
    return (x + half) & ~0x1fffu;
  });
}

template <class D, class F>
Handler with_source(Type source, F f) {
  switch (source) {
    case Type::u8:
    case Type::b8:
      return f.template operator()<D, std::uint8_t>();
    case Type::s8:
      return f.template operator()<D, std::int8_t>();
    case Type::u16:
      return f.template operator()<D, std::uint16_t>();
    case Type::s16:
      return f.template operator()<D, std::int16_t>();
    case Type::u32:
      return f.template operator()<D, std::uint32_t>();
    case Type::s32:
      return f.template operator()<D, std::int32_t>();
    case Type::u64:
      return f.template operator()<D, std::uint64_t>();
    case Type::s64:
      return f.template operator()<D, std::int64_t>();
    case Type::f16:
      return f.template operator()<D, Half>();
    case Type::bf16:
      return f.template operator()<D, Brain>();
    case Type::f32:
      return f.template operator()<D, float>();
    case Type::f64:
      return f.template operator()<D, double>();
    default:
      return nullptr;
  }
}
Handler conversion(Type to, Type from) {
  const auto f = []<class D, class S>() -> Handler { return convert<D, S>; };
  switch (to) {
    case Type::u8:
    case Type::b8:
      return with_source<std::uint8_t>(from, f);
    case Type::s8:
      return with_source<std::int8_t>(from, f);
    case Type::u16:
      return with_source<std::uint16_t>(from, f);
    case Type::s16:
      return with_source<std::int16_t>(from, f);
    case Type::u32:
      return with_source<std::uint32_t>(from, f);
    case Type::s32:
      return with_source<std::int32_t>(from, f);
    case Type::u64:
      return with_source<std::uint64_t>(from, f);
    case Type::s64:
      return with_source<std::int64_t>(from, f);
    case Type::f16:
      return with_source<Half>(from, f);
    case Type::bf16:
      return with_source<Brain>(from, f);
    case Type::f32:
      return with_source<float>(from, f);
    case Type::f64:
      return with_source<double>(from, f);
    default:
      return nullptr;
  }
}

}  // namespace

bool decode_convert(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  if (p.words[0] != "cvt" || p.has("pack")) return false;
  Type to = Type::none, from = Type::none;
  for (std::string_view word : p.words)
    if (Type t = type_named(word); t != Type::none) to = from, from = t;
  const bool whole_number = p.has("rni") || p.has("rzi") || p.has("rmi") || p.has("rpi");
  const int rounding = p.has("rz") || p.has("rzi") ? 1 : p.has("rm") || p.has("rmi") ? 2 : p.has("rp") || p.has("rpi") ? 3 : 0;
  i.mode = std::uint8_t(rounding | (p.has("sat") ? saturate : 0) | (p.has("ftz") ? flush_small : 0) |
                        (whole_number && is_float(to) ? whole : 0) | (p.has("relu") ? relu : 0));
  i.a = decoder.source(p.operands.at(1), lane_bits(from));
  if (to == Type::tf32) {
    i.mode = p.has("rna") ? 0 : p.has("rn") ? 1 : 2;
    i.run = p.has("relu") || p.has("satfinite") ? nullptr : convert_tf32;
  } else if (to == Type::bf16x2 || to == Type::f16x2) {
    if (from != Type::f32 || p.operands.size() != 3 || p.has("satfinite")) return false;
    i.run = to == Type::bf16x2 ? convert_pair<Brain> : convert_pair<Half>;
    i.b = decoder.place(p.operands[2], 32);
  } else if (!p.has("satfinite")) {
    i.run = conversion(to, from);
  }
  if (i.run) i.d = decoder.destination(p.operands.at(0), lane_bits(to), is_signed(to));
  return i.run;
}

}  // namespace weft::emulator
