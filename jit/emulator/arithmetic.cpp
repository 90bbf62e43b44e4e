// Arithmetic, logic, comparison and selection.
#include <algorithm>
#include <cfenv>
#include <type_traits>

#include "jit/emulator/lanes.h"

namespace weft::emulator {
namespace {

template <class T>
inline constexpr bool is_packed = false;
template <class H>
inline constexpr bool is_packed<Pair<H>> = true;
template <class T>
inline constexpr bool is_small_float = std::is_same_v<T, Half> || std::is_same_v<T, Brain>;
template <class T>
using Unsigned =
    std::conditional_t<sizeof(T) == 8, std::uint64_t, std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;

// f on packed values is f on each half; f on 16-bit floats is f on floats, rounded.
template <class F, class T, class... More>
T lifted(T a, More... more) {
  if constexpr (is_packed<T>) {
    return {lifted<F>(a.low, more.low...), lifted<F>(a.high, more.high...)};
  } else if constexpr (is_small_float<T>) {
    return from_float<T>(F{}(to_float(a), to_float(more)...));
  } else {
    return F{}(a, more...);
  }
}

template <class F>
concept Costly = F::costly;

template <class F, class T>
void unary(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a);
  write<T, Costly<F>>(w, i.d, lanes, [&](int l) { return lifted<F>(a[l]); });
}
template <class F, class T>
void binary(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b);
  write<T, Costly<F>>(w, i.d, lanes, [&](int l) { return lifted<F>(a[l], b[l]); });
}
template <class F, class T>
void ternary(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b), c(w, i.c);
  write<T, Costly<F>>(w, i.d, lanes, [&](int l) { return lifted<F>(a[l], b[l], c[l]); });
}

// Runs the wrapped handler under another rounding direction of the host. Called through a pointer: the compiler knows
// nothing of rounding and must not move the arithmetic out.
void rounded(Warp& w, const Instruction& i, Mask lanes) {
  std::fesetround(i.mode == 1 ? FE_TOWARDZERO : i.mode == 2 ? FE_DOWNWARD : FE_UPWARD);
  i.inner(w, i, lanes);
  std::fesetround(FE_TONEAREST);
}

// ---- functions. Integers wrap, so signed ones are computed as unsigned. -----------------------------------------------------

template <class T, class F>
T wrapping(T a, T b, F f) {
  if constexpr (std::is_integral_v<T>) {
    return T(f(Unsigned<T>(a), Unsigned<T>(b)));
  } else {
    return f(a, b);
  }
}
struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return wrapping(a, b, [](auto x, auto y) { return x + y; });
  }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const {
    return wrapping(a, b, [](auto x, auto y) { return x - y; });
  }
};
struct Multiply {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T> && sizeof(T) == 2) {
      return T(std::uint32_t(std::uint16_t(a)) * std::uint16_t(b));
    } else {
      return wrapping(a, b, [](auto x, auto y) { return x * y; });
    }
  }
};
struct MultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    if constexpr (std::is_integral_v<T>) {
      return Add{}(Multiply{}(a, b), c);
    } else {
      return std::fma(a, b, c);
    }
  }
};
template <class T>
T high_product(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    __extension__ using Long = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T(Long(a) * Long(b) >> 64);
  } else {
    using Long = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
    return T(Long(a) * Long(b) >> (8 * sizeof(T)));
  }
}
struct MultiplyHigh {
  template <class T>
  T operator()(T a, T b) const {
    return high_product(a, b);
  }
};
struct MultiplyHighAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add{}(high_product(a, b), c);
  }
};
struct Multiply24 {
  template <class T>
  T operator()(T a, T b) const {
    return T(std::uint32_t(T(std::uint32_t(a) << 8) >> 8) * std::uint32_t(T(std::uint32_t(b) << 8) >> 8));
  }
};
struct Divide {
  static constexpr bool costly = true;
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return T(-1);
      if constexpr (std::is_signed_v<T>)
        if (b == T(-1)) return T(0 - Unsigned<T>(a));
      return T(a / b);
    } else {
      return a / b;
    }
  }
};
struct Remainder {
  static constexpr bool costly = true;
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>)
      if (b == T(-1)) return 0;
    return T(a % b);
  }
};
template <bool want_less, bool keep_nan>
struct Extreme {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      const T ordered = a == b ? ((std::signbit(a) == want_less) ? a : b) : (a < b) == want_less ? a : b;
      if constexpr (keep_nan) return a != a ? a : b != b ? b : ordered;
      return a != a ? b : b != b ? a : ordered;
    } else {
      return (a < b) == want_less ? a : b;
    }
  }
  template <class T>
  T operator()(T a, T b, T c) const {
    return (*this)((*this)(a, b), c);
  }
};
struct Negate {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_integral_v<T>)
      return T(0 - Unsigned<T>(a));
    else
      return -a;
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_integral_v<T>)
      return a < 0 ? T(0 - Unsigned<T>(a)) : a;
    else
      return std::abs(a);
  }
};
struct CopySign {  // copysign d, a, b: the sign of a, the size of b
  template <class T>
  T operator()(T a, T b) const {
    return std::copysign(b, a);
  }
};
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  T operator()(T a) const {
    return T(~a);
  }
};
struct Same {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};
struct CountBits {
  template <class T>
  std::uint32_t operator()(T a) const {
    return std::uint32_t(std::popcount(Unsigned<T>(a)));
  }
};
struct LeadingZeros {
  template <class T>
  std::uint32_t operator()(T a) const {
    return std::uint32_t(std::countl_zero(Unsigned<T>(a)));
  }
};
struct ReverseBits {
  template <class T>
  T operator()(T a) const {
    Unsigned<T> from = Unsigned<T>(a), to = 0;
    for (unsigned k = 0; k < 8 * sizeof(T); ++k) to = Unsigned<T>(to << 1 | (from >> k & 1));
    return T(to);
  }
};
// The position of the highest bit that differs from the sign; all ones if there is none.
template <bool as_shift>
struct FindBit {
  template <class T>
  std::uint32_t operator()(T a) const {
    const auto u = Unsigned<T>(std::is_signed_v<T> && a < 0 ? ~a : a);
    if (u == 0) return ~0u;
    const auto zeros = std::uint32_t(std::countl_zero(u));
    return as_shift ? zeros : std::uint32_t(8 * sizeof(T)) - 1 - zeros;
  }
};

// ---- approximations: the host's function, rounded to fp32 -------------------------------------------------------------------

struct Exp2 {
  static constexpr bool costly = true;
  float operator()(float x) const { return std::exp2(x); }
};
struct Log2 {
  static constexpr bool costly = true;
  float operator()(float x) const { return std::log2(x); }
};
struct Sine {
  static constexpr bool costly = true;
  float operator()(float x) const { return std::sin(x); }
};
struct Cosine {
  static constexpr bool costly = true;
  float operator()(float x) const { return std::cos(x); }
};
struct Tanh {
  static constexpr bool costly = true;
  float operator()(float x) const { return std::tanh(x); }
};
template <class T>
T high_half(T x) {  // rcp.approx.ftz.f64 and its like give the upper word only
  if constexpr (std::is_same_v<T, double>) return std::bit_cast<double>(std::bit_cast<std::uint64_t>(x) & 0xffffffff00000000u);
  return x;
}
template <bool approximate>
struct Reciprocal {
  template <class T>
  T operator()(T x) const {
    return approximate ? high_half(T(1) / x) : T(1) / x;
  }
};
struct SquareRoot {
  template <class T>
  T operator()(T x) const {
    return std::sqrt(x);
  }
};
template <bool approximate>
struct ReciprocalRoot {
  template <class T>
  T operator()(T x) const {
    const T r = T(1.0 / std::sqrt(double(x)));
    return approximate ? high_half(r) : r;
  }
};

template <class F>
struct Flushed {
  static constexpr bool costly = Costly<F>;
  template <class... T>
  auto operator()(T... x) const {
    if constexpr ((std::is_same_v<T, float> && ...)) {
      return flush(F{}(flush(x)...));
    } else {
      return F{}(x...);
    }
  }
};
template <class F>
struct Saturated {  // NaN becomes 0
  static constexpr bool costly = Costly<F>;
  template <class T, class... More>
  T operator()(T a, More... more) const {
    const T x = F{}(a, more...);
    return x > T(0) ? std::min(x, T(1)) : T(0);
  }
};
template <class F>
struct Relu {
  template <class T, class... More>
  T operator()(T a, More... more) const {
    const T x = F{}(a, more...);
    return x > T(0) || x != x ? x : T(0);
  }
};
template <class F>
struct OfSizes {  // .xorsign.abs
  template <class T>
  T operator()(T a, T b) const {
    return std::copysign(F{}(std::abs(a), std::abs(b)), std::signbit(a) != std::signbit(b) ? T(-1) : T(1));
  }
};

// ---- choice of a handler ----------------------------------------------------------------------------------------------------

template <class F, int operands, class T>
Handler of() {
  if constexpr (operands == 1)
    return unary<F, T>;
  else if constexpr (operands == 2)
    return binary<F, T>;
  else
    return ternary<F, T>;
}
template <class F, int operands>
Handler integer(Type type) {
  return with_integer(type, []<class T>() { return of<F, operands, T>(); });
}
// What PTX has of an operation besides f32 and f64, as a sum: the 16-bit types; .sat; .relu, of 16-bit types.
enum Forms { kNoMore = 0, kHalf = 1, kSat = 2, kRelu = 4 };
template <class F, int operands, int forms>
Handler real_f(const PtxInstruction& p, Type type) {
  const bool flushed = p.has("ftz"), saturated = p.has("sat");
  const bool half = type != Type::f32 && type != Type::f64;
  if ((saturated && !(forms & kSat)) || (p.has("relu") && !(half && (forms & kRelu)))) return nullptr;
  if (type == Type::f64) return saturated ? nullptr : of<F, operands, double>();
  if (type == Type::f32) {
    if constexpr (forms & kSat)
      if (saturated) return flushed ? of<Saturated<Flushed<F>>, operands, float>() : of<Saturated<F>, operands, float>();
    return flushed ? of<Flushed<F>, operands, float>() : of<F, operands, float>();
  }
  if constexpr (forms & kHalf)
    return with_half(type, [&]<class T>() -> Handler {
      if constexpr (forms & kRelu)
        if (p.has("relu")) return of<Relu<F>, operands, T>();
      if constexpr (forms & kSat)
        if (saturated) return of<Saturated<F>, operands, T>();
      return of<F, operands, T>();
    });
  return nullptr;
}
template <class F>
Handler float_only(const PtxInstruction& p) {
  return p.has("ftz") ? of<Flushed<F>, 1, float>() : of<F, 1, float>();
}
template <class F, int operands, int forms>
Handler number(const PtxInstruction& p, Type type) {
  return is_float(type) ? real_f<F, operands, forms>(p, type) : integer<F, operands>(type);
}
template <bool less>
Handler extreme(const PtxInstruction& p, Type type) {
  const bool three = p.operands.size() == 4;
  if (!is_float(type)) {
    if (p.has("relu")) return nullptr;
    return integer<Extreme<less, false>, 2>(type);
  }
  if (p.has("xorsign")) return p.has("NaN") ? nullptr : real_f<OfSizes<Extreme<less, false>>, 2, kHalf>(p, type);
  if (three)
    return p.has("NaN") ? real_f<Extreme<less, true>, 3, kNoMore>(p, type) : real_f<Extreme<less, false>, 3, kNoMore>(p, type);
  return p.has("NaN") ? real_f<Extreme<less, true>, 2, kHalf>(p, type) : real_f<Extreme<less, false>, 2, kHalf>(p, type);
}

// ---- instructions that are not of one type ----------------------------------------------------------------------------------

template <class D, class T>
void multiply_wide(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b);
  using U = std::make_unsigned_t<D>;
  write<D>(w, i.d, lanes, [&](int l) { return D(U(D(a[l])) * U(D(b[l]))); });
}
template <class D, class T>
void multiply_add_wide(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b);
  const Source<D> c(w, i.c);
  using U = std::make_unsigned_t<D>;
  write<D>(w, i.d, lanes, [&](int l) { return D(U(D(a[l])) * U(D(b[l])) + U(c[l])); });
}
template <class F, class T>
void count(Warp& w, const Instruction& i, Mask lanes) {  // a 32-bit result of any type
  const Source<T> a(w, i.a);
  write<std::uint32_t>(w, i.d, lanes, [&](int l) { return F{}(a[l]); });
}
template <class F>
Handler counting(Type type) {
  return with_integer(type, []<class T>() -> Handler { return count<F, T>; });
}

template <class T>
void shift_left(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a);
  const Source<std::uint32_t> b(w, i.b);
  write<T>(w, i.d, lanes,
           [&](int l) { return b[l] < 8 * sizeof(T) ? T(Unsigned<T>(a[l]) << (b[l] % (8 * sizeof(T)))) : T(0); });
}
template <class T>
void shift_right(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a);
  const Source<std::uint32_t> b(w, i.b);
  constexpr std::uint32_t bits = 8 * sizeof(T);
  write<T>(w, i.d, lanes, [&](int l) {
    if constexpr (std::is_signed_v<T>)
      return T(a[l] >> std::min(b[l], bits - 1));
    else
      return b[l] < bits ? T(a[l] >> (b[l] % bits)) : T(0);
  });
}
// shf: 32 bits of the pair (b, a), shifted.
template <bool left, bool wrap>
void funnel_shift(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  write<std::uint32_t>(w, i.d, lanes, [&](int l) {
    const std::uint64_t both = std::uint64_t(b[l]) << 32 | a[l];
    const std::uint32_t n = wrap ? c[l] & 31u : std::min(c[l], 32u);
    return std::uint32_t(left ? both >> (32 - n) : both >> n);
  });
}
template <class T>
void extract_bits(Warp& w, const Instruction& i, Mask lanes) {  // bfe
  const Source<T> a(w, i.a);
  const Source<std::uint32_t> b(w, i.b), c(w, i.c);
  constexpr unsigned bits = 8 * sizeof(T);
  write<T>(w, i.d, lanes, [&](int l) {
    using U = Unsigned<T>;
    const unsigned from = b[l] & 255u, n = c[l] & 255u;
    if (n == 0) return T(0);
    const unsigned top = std::min(from + n - 1, bits - 1);
    const bool sign = std::is_signed_v<T> && (U(a[l]) >> top & 1);
    U field = from < bits ? U(a[l]) >> from : U(0);
    const unsigned kept = from < bits ? top - from + 1 : 0;
    if (kept < bits) field &= (U(1) << kept) - 1;
    if (sign && kept < bits) field |= ~U(0) << kept;
    return T(field);
  });
}
template <class T>
void insert_bits(Warp& w, const Instruction& i, Mask lanes) {  // bfi d, a, b, from, n: a into b
  const Source<T> a(w, i.a), b(w, i.b);
  const Source<std::uint32_t> c(w, i.c), e(w, w.program.lists[i.list]);
  constexpr unsigned bits = 8 * sizeof(T);
  write<T>(w, i.d, lanes, [&](int l) {
    const unsigned from = c[l] & 255u, n = e[l] & 255u;
    if (from >= bits || n == 0) return b[l];
    const T field = T((n >= bits ? ~T(0) : T((T(1) << n) - 1)) << from);
    return T((b[l] & ~field) | (T(a[l] << from) & field));
  });
}
void permute_bytes(Warp& w, const Instruction& i, Mask lanes) {  // prmt
  const Source<std::uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  write<std::uint32_t>(w, i.d, lanes, [&](int l) {
    const std::uint64_t both = std::uint64_t(b[l]) << 32 | a[l];
    std::uint32_t result = 0;
    for (int k = 0; k < 4; ++k) {
      const std::uint32_t select = c[l] >> (4 * k);
      std::uint32_t byte = std::uint32_t(both >> (8 * (select & 7u))) & 255u;
      if (select & 8u) byte = byte & 128u ? 255u : 0u;
      result |= byte << (8 * k);
    }
    return result;
  });
}
void permute_bytes_by_rule(Warp& w, const Instruction& i, Mask lanes) {  // prmt.f4e, b4e, rc8, ecl, ecr, rc16
  const Source<std::uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  write<std::uint32_t>(w, i.d, lanes, [&](int l) {
    const std::uint64_t both = std::uint64_t(b[l]) << 32 | a[l];
    const unsigned n = c[l] & 3u;
    std::uint32_t result = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned from = i.mode == 1   ? n + k
                            : i.mode == 2 ? (n + 8 - k) & 7u
                            : i.mode == 3 ? n
                            : i.mode == 4 ? std::max(n, k)
                            : i.mode == 5 ? std::min(n, k)
                                          : 2 * (n & 1u) + (k & 1u);
      result |= (std::uint32_t(both >> (8 * from)) & 255u) << (8 * k);
    }
    return result;
  });
}
void logic3(Warp& w, const Instruction& i, Mask lanes) {  // lop3: bit (a, b, c) of the table
  const Source<std::uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  const unsigned table = i.mode;
  write<std::uint32_t>(w, i.d, lanes, [&](int l) {
    std::uint32_t result = 0;
    for (unsigned k = 0; k < 8; ++k)
      if (table >> k & 1) result |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    return result;
  });
}

// ---- the condition code: add.cc, addc, sub.cc, subc, mad.cc, madc -----------------------------------------------------------

struct Carry {
  enum : std::uint8_t { in = 1, out = 2, subtract = 4, product = 8, high = 16 };
};
template <class T>
void with_carry(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b), c(w, i.c);
  T result[kLanes];
  Mask carry = 0;
  for (int l = 0; l < kLanes; ++l) {
    T x = a[l], y = b[l];
    if (i.mode & Carry::product) x = i.mode & Carry::high ? high_product(x, y) : T(x * y), y = c[l];
    const bool in = (i.mode & Carry::in) && (w.carry >> l & 1);
    const T sum = i.mode & Carry::subtract ? T(x - y - T(in)) : T(x + y + T(in));
    const bool out = i.mode & Carry::subtract ? x < y || (x == y && in) : sum < x || (sum == x && in && y == T(-1));
    result[l] = sum;
    carry |= Mask(out) << l;
  }
  write<T>(w, i.d, lanes, [&](int l) { return result[l]; });
  if (i.mode & Carry::out) w.carry = (w.carry & ~lanes) | (carry & lanes);
}

// ---- comparison -------------------------------------------------------------------------------------------------------------

enum class Compare : std::uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <Compare how, class T>
bool compare(T a, T b) {
  if constexpr (is_small_float<T>) {
    return compare<how>(to_float(a), to_float(b));
  } else {
    switch (how) {
      case Compare::eq:
        return a == b;
      case Compare::ne:
        return !(a != a) && !(b != b) && a != b;
      case Compare::lt:
        return a < b;
      case Compare::le:
        return a <= b;
      case Compare::gt:
        return a > b;
      case Compare::ge:
        return a >= b;
      case Compare::equ:
        return !(a < b) && !(a > b);
      case Compare::neu:
        return a != b;
      case Compare::ltu:
        return !(a >= b);
      case Compare::leu:
        return !(a > b);
      case Compare::gtu:
        return !(a <= b);
      case Compare::geu:
        return !(a < b);
      case Compare::num:
        return a == a && b == b;
      case Compare::nan:
        return a != a || b != b;
    }
    return false;
  }
}

enum class Combine : std::uint8_t { none, conjunction, disjunction, exclusive };

Mask predicate_source(Warp& w, std::uint32_t place, bool negated) { return negated ? ~w.predicate(place) : w.predicate(place); }

// setp d|list[0], a, b, c: `mode` holds how c joins, bit 7 whether c is negated, bit 6 whether there is a second
// result.
void store_comparison(Warp& w, const Instruction& i, Mask lanes, Mask result) {
  Mask inverse = ~result;
  if (const auto how = Combine(i.mode & 3); how != Combine::none) {
    const Mask c = predicate_source(w, i.c, i.mode & 128);
    const auto join = [&](Mask m) { return how == Combine::conjunction ? m & c : how == Combine::disjunction ? m | c : m ^ c; };
    result = join(result), inverse = join(inverse);
  }
  if (i.d) write_predicate(w, i.d, lanes, result);
  if (i.mode & 64) write_predicate(w, w.program.lists[i.list], lanes, inverse);
}
template <Compare how, class T>
void set_predicate(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b);
  store_comparison(w, i, lanes, gather_bits([&](int l) { return compare<how>(a[l], b[l]); }));
}
template <Compare how, class T>
void set_number(Warp& w, const Instruction& i, Mask lanes) {  // set.eq.u32.f32: all ones, or 1.0 for a float result
  const Source<T> a(w, i.a), b(w, i.b);
  const std::uint32_t yes = i.bytes ? 0x3f800000u : ~0u;
  write<std::uint32_t>(w, i.d, lanes, [&](int l) { return compare<how>(a[l], b[l]) ? yes : 0u; });
}
template <Compare how, bool to_predicate, bool of_integers = false>
Handler comparing(Type type) {
  const auto handler = []<class T>() -> Handler {
    if constexpr (to_predicate)
      return set_predicate<how, T>;
    else
      return set_number<how, T>;
  };
  switch (type) {
    case Type::f32:
      return handler.template operator()<float>();
    case Type::f64:
      return handler.template operator()<double>();
    case Type::f16:
      return handler.template operator()<Half>();
    case Type::bf16:
      return handler.template operator()<Brain>();
    default:
      if constexpr (of_integers) return with_integer(type, handler);
      return nullptr;
  }
}
template <bool to_predicate>
Handler comparison(const PtxInstruction& p, Type type) {
  const auto word = p.words.at(1);
  if (word == "eq") return comparing<Compare::eq, to_predicate, true>(type);
  if (word == "ne") return comparing<Compare::ne, to_predicate, true>(type);
  if (word == "lt" || word == "lo") return comparing<Compare::lt, to_predicate, true>(type);
  if (word == "le" || word == "ls") return comparing<Compare::le, to_predicate, true>(type);
  if (word == "gt" || word == "hi") return comparing<Compare::gt, to_predicate, true>(type);
  if (word == "ge" || word == "hs") return comparing<Compare::ge, to_predicate, true>(type);
  if (word == "equ") return comparing<Compare::equ, to_predicate>(type);
  if (word == "neu") return comparing<Compare::neu, to_predicate>(type);
  if (word == "ltu") return comparing<Compare::ltu, to_predicate>(type);
  if (word == "leu") return comparing<Compare::leu, to_predicate>(type);
  if (word == "gtu") return comparing<Compare::gtu, to_predicate>(type);
  if (word == "geu") return comparing<Compare::geu, to_predicate>(type);
  if (word == "num") return comparing<Compare::num, to_predicate>(type);
  if (word == "nan") return comparing<Compare::nan, to_predicate>(type);
  return nullptr;
}
void test_class(Warp& w, const Instruction& i, Mask lanes) {  // testp
  const bool wide = i.bytes == 8;
  write_predicate(w, i.d, lanes, gather_bits([&](int l) {
                    const double x = wide ? Source<double>(w, i.a)[l] : double(Source<float>(w, i.a)[l]);
                    const double smallest =
                        wide ? std::numeric_limits<double>::min() : double(std::numeric_limits<float>::min());
                    switch (i.mode) {
                      case 0:
                        return std::isfinite(x);
                      case 1:
                        return std::isinf(x);
                      case 2:
                        return !std::isnan(x);
                      case 3:
                        return std::isnan(x);
                      case 4:
                        return std::isfinite(x) && std::abs(x) >= smallest;
                      default:
                        return std::abs(x) < smallest;  // a zero is subnormal, says PTX
                    }
                  }));
}

// ---- predicates and selection -----------------------------------------------------------------------------------------------

template <class F>
void predicates(Warp& w, const Instruction& i, Mask lanes) {
  write_predicate(w, i.d, lanes, F{}(predicate_source(w, i.a, i.mode & 1), predicate_source(w, i.b, i.mode & 2)));
}
void not_predicate(Warp& w, const Instruction& i, Mask lanes) {
  write_predicate(w, i.d, lanes, ~predicate_source(w, i.a, i.mode & 1));
}
void move_predicate(Warp& w, const Instruction& i, Mask lanes) {
  write_predicate(w, i.d, lanes, predicate_source(w, i.a, i.mode & 1));
}

template <class T>
void select(Warp& w, const Instruction& i, Mask lanes) {
  const Source<T> a(w, i.a), b(w, i.b);
  const Mask p = predicate_source(w, i.c, i.mode & 1);
  write<T>(w, i.d, lanes, [&](int l) { return p >> l & 1 ? a[l] : b[l]; });
}
template <class T, class C>
void select_by_sign(Warp& w, const Instruction& i, Mask lanes) {  // slct
  const Source<T> a(w, i.a), b(w, i.b);
  const Source<C> c(w, i.c);
  write<T>(w, i.d, lanes, [&](int l) { return c[l] >= C(0) ? a[l] : b[l]; });
}

// ---- mov --------------------------------------------------------------------------------------------------------------------

// One register to several: mov.b64 {%r1, %r2}, %rd1.
template <class Whole, class Part>
void unpack(Warp& w, const Instruction& i, Mask lanes) {
  const Source<Whole> a(w, i.a);
  Whole whole[kLanes];
  for (int l = 0; l < kLanes; ++l) whole[l] = a[l];
  for (unsigned k = 0; k < i.count; ++k)
    if (const std::uint32_t to = w.program.lists[i.list + k])
      write<Part>(w, to, lanes, [&](int l) { return Part(whole[l] >> (8 * sizeof(Part) * k)); });
}
template <class Whole, class Part>
void pack(Warp& w, const Instruction& i, Mask lanes) {
  Whole whole[kLanes] = {};
  for (unsigned k = 0; k < i.count; ++k) {
    const Source<Part> a(w, w.program.lists[i.list + k]);
    for (int l = 0; l < kLanes; ++l) whole[l] = Whole(whole[l] | Whole(Whole(a[l]) << (8 * sizeof(Part) * k)));
  }
  write<Whole>(w, i.d, lanes, [&](int l) { return whole[l]; });
}
template <bool packing>
Handler packing_handler(int whole_bits, std::size_t parts) {
  const auto pick = []<class Whole, class Part>() -> Handler {
    if constexpr (packing)
      return pack<Whole, Part>;
    else
      return unpack<Whole, Part>;
  };
  if (whole_bits == 64 && parts == 2) return pick.template operator()<std::uint64_t, std::uint32_t>();
  if (whole_bits == 64 && parts == 4) return pick.template operator()<std::uint64_t, std::uint16_t>();
  if (whole_bits == 32 && parts == 2) return pick.template operator()<std::uint32_t, std::uint16_t>();
  if (whole_bits == 32 && parts == 4) return pick.template operator()<std::uint32_t, std::uint8_t>();
  if (whole_bits == 16 && parts == 2) return pick.template operator()<std::uint16_t, std::uint8_t>();
  return nullptr;
}

Handler decode_move(const PtxInstruction& p, Type type, Decoder& decoder, Instruction& i) {
  const Operand &to = p.operands.at(0), &from = p.operands.at(1);
  const int bits = lane_bits(type);
  if (type == Type::pred) {
    i.d = decoder.place(to, 1), i.a = decoder.place(from, 1), i.mode = from.negated;
    return move_predicate;
  }
  const bool packing = from.kind == Operand::list;
  if (packing || to.kind == Operand::list) {
    const std::vector<Operand>& parts = packing ? from.parts : to.parts;
    const int part_bits = bits_of(type) / int(parts.size());
    std::vector<std::uint32_t> places;
    for (const Operand& part : parts)
      places.push_back(part.kind == Operand::nothing ? 0 : decoder.place(part, part_bits == 64 ? 64 : 32));
    i.count = std::uint8_t(parts.size());
    i.list = decoder.list(places);
    if (packing)
      i.d = decoder.place(to, bits);
    else
      i.a = decoder.place(from, bits);
    if (type == Type::b128) return nullptr;
    return packing ? packing_handler<true>(bits_of(type), parts.size()) : packing_handler<false>(bits_of(type), parts.size());
  }
  i.d = decoder.place(to, bits), i.a = decoder.place(from, bits);
  return bits == 64 ? unary<Same, std::uint64_t> : unary<Same, std::uint32_t>;
}

int rounding_mode(const PtxInstruction& p) { return p.has("rz") ? 1 : p.has("rm") ? 2 : p.has("rp") ? 3 : 0; }

// Instructions d = f(a, b, c), all of one type.
Handler plain(const PtxInstruction& p, Type type) {
  const std::string_view op = p.words[0];
  if (op == "add") return number<Add, 2, kHalf | kSat>(p, type);
  if (op == "sub") return number<Subtract, 2, kHalf | kSat>(p, type);
  if (op == "mul") return p.has("hi") ? integer<MultiplyHigh, 2>(type) : number<Multiply, 2, kHalf | kSat>(p, type);
  if (op == "mul24") return p.has("lo") && (type == Type::u32 || type == Type::s32) ? integer<Multiply24, 2>(type) : nullptr;
  if (op == "mad")
    return p.has("hi") ? integer<MultiplyHighAdd, 3>(type) : number<MultiplyAdd, 3, kHalf | kSat | kRelu>(p, type);
  if (op == "fma") return is_float(type) ? real_f<MultiplyAdd, 3, kHalf | kSat | kRelu>(p, type) : nullptr;
  if (op == "div") return number<Divide, 2, kNoMore>(p, type);
  if (op == "rem") return integer<Remainder, 2>(type);
  if (op == "min") return extreme<true>(p, type);
  if (op == "max") return extreme<false>(p, type);
  if (op == "neg") return number<Negate, 1, kHalf>(p, type);
  if (op == "abs") return number<Absolute, 1, kHalf>(p, type);
  if (op == "copysign") return is_float(type) ? real_f<CopySign, 2, kNoMore>(p, type) : nullptr;
  if (op == "and") return integer<And, 2>(type);
  if (op == "or") return integer<Or, 2>(type);
  if (op == "xor") return integer<Xor, 2>(type);
  if (op == "not") return integer<Not, 1>(type);
  if (op == "brev") return integer<ReverseBits, 1>(type);
  if (op == "sqrt") return is_float(type) ? real_f<SquareRoot, 1, kNoMore>(p, type) : nullptr;
  if (op == "rcp")
    return p.has("approx") ? real_f<Reciprocal<true>, 1, kNoMore>(p, type) : real_f<Reciprocal<false>, 1, kNoMore>(p, type);
  if (op == "rsqrt")
    return p.has("approx") ? real_f<ReciprocalRoot<true>, 1, kNoMore>(p, type)
                           : real_f<ReciprocalRoot<false>, 1, kNoMore>(p, type);
  if (type != Type::f32 && (op == "tanh" || op == "ex2"))
    return with_half(type, [&]<class T>() { return op == "tanh" ? of<Tanh, 1, T>() : of<Exp2, 1, T>(); });
  if (type != Type::f32) return nullptr;
  if (op == "ex2") return float_only<Exp2>(p);
  if (op == "lg2") return float_only<Log2>(p);
  if (op == "sin") return float_only<Sine>(p);
  if (op == "cos") return float_only<Cosine>(p);
  if (op == "tanh") return float_only<Tanh>(p);
  return nullptr;
}

Handler shift(const PtxInstruction& p, Type type) {
  if (p.words[0] == "shl") return with_integer(type, []<class T>() -> Handler { return shift_left<T>; });
  return with_integer(type, []<class T>() -> Handler { return shift_right<T>; });
}

Handler wide_product(const PtxInstruction& p, Type type) {
  const bool add = p.words[0] == "mad";
  switch (type) {
    case Type::u16:
      return add ? multiply_add_wide<std::uint32_t, std::uint16_t> : multiply_wide<std::uint32_t, std::uint16_t>;
    case Type::s16:
      return add ? multiply_add_wide<std::int32_t, std::int16_t> : multiply_wide<std::int32_t, std::int16_t>;
    case Type::u32:
      return add ? multiply_add_wide<std::uint64_t, std::uint32_t> : multiply_wide<std::uint64_t, std::uint32_t>;
    case Type::s32:
      return add ? multiply_add_wide<std::int64_t, std::int32_t> : multiply_wide<std::int64_t, std::int32_t>;
    default:
      return nullptr;
  }
}

Handler carrying(const PtxInstruction& p, Type type, Instruction& i) {
  const std::string_view op = p.words[0];
  i.mode = std::uint8_t((op.ends_with('c') ? Carry::in : 0) | (p.has("cc") ? Carry::out : 0) |
                        (op.starts_with("sub") ? Carry::subtract : 0) | (op.starts_with("mad") ? Carry::product : 0) |
                        (p.has("hi") ? Carry::high : 0));
  if (type == Type::s32 && p.has("hi")) return with_carry<std::int32_t>;
  return lane_bits(type) == 64 ? with_carry<std::uint64_t> : with_carry<std::uint32_t>;
}

bool decode_predicates(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const std::string_view op = p.words[0];
  i.run = op == "and"   ? predicates<And>
          : op == "or"  ? predicates<Or>
          : op == "xor" ? predicates<Xor>
          : op == "not" ? not_predicate
                        : nullptr;
  if (!i.run) return false;
  i.d = decoder.place(p.operands.at(0), 1), i.a = decoder.place(p.operands.at(1), 1);
  i.mode = p.operands[1].negated;
  if (op != "not") i.b = decoder.place(p.operands.at(2), 1), i.mode |= std::uint8_t(2 * p.operands[2].negated);
  return true;
}

bool decode_setp(const PtxInstruction& p, Type type, Decoder& decoder, Instruction& i) {
  i.run = comparison<true>(p, type);
  const Operand& to = p.operands.at(0);
  const Operand& first = to.kind == Operand::list ? to.parts.at(0) : to;
  i.d = first.kind == Operand::nothing ? 0 : decoder.place(first, 1);
  i.a = decoder.place(p.operands.at(1), lane_bits(type)), i.b = decoder.place(p.operands.at(2), lane_bits(type));
  if (to.kind == Operand::list && to.parts.at(1).kind != Operand::nothing)
    i.mode |= 64, i.list = decoder.list({decoder.place(to.parts[1], 1)});
  if (p.operands.size() > 3) {
    i.c = decoder.place(p.operands[3], 1);
    i.mode |= std::uint8_t(p.has("and") ? Combine::conjunction : p.has("or") ? Combine::disjunction : Combine::exclusive);
    if (p.operands[3].negated) i.mode |= 128;
  }
  return i.run;
}

}  // namespace

bool decode_arithmetic(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const std::string_view op = p.words[0];
  const Type type = p.type();
  const int bits = lane_bits(type);
  const auto places = [&](int d, int a, int b = 0, int c = 0) {
    i.d = decoder.place(p.operands.at(0), d), i.a = decoder.place(p.operands.at(1), a);
    if (b) i.b = decoder.place(p.operands.at(2), b);
    if (c) i.c = decoder.place(p.operands.at(3), c);
  };
  if (op == "mov") {
    i.run = decode_move(p, type, decoder, i);
    return i.run;
  }
  if (type == Type::pred) return decode_predicates(p, decoder, i);
  if (op == "setp") return decode_setp(p, type, decoder, i);
  if (op == "set") {
    i.run = p.operands.size() == 3 ? comparison<false>(p, type) : nullptr;
    i.bytes = p.words.at(2) == "f32";
    places(32, bits, bits);
  } else if (op == "testp") {
    constexpr std::string_view kinds[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    i.run = test_class, i.bytes = std::uint8_t(bits / 8);
    i.mode = std::uint8_t(std::find(kinds, kinds + 6, p.words.at(1)) - kinds);
    places(1, bits);
  } else if (op == "selp") {
    i.run = bits == 64 ? select<std::uint64_t> : select<std::uint32_t>;
    i.mode = p.operands.at(3).negated;
    places(bits, bits, bits, 1);
  } else if (op == "slct") {
    const int wide = lane_bits(type_named(p.words.at(1) == "ftz" ? p.words.at(2) : p.words.at(1)));
    i.run = wide == 64
                ? (type == Type::f32 ? select_by_sign<std::uint64_t, float> : select_by_sign<std::uint64_t, std::int32_t>)
                : (type == Type::f32 ? select_by_sign<std::uint32_t, float> : select_by_sign<std::uint32_t, std::int32_t>);
    places(wide, wide, wide, 32);
  } else if (op == "shl" || op == "shr") {
    i.run = shift(p, type);
    places(bits, bits, 32);
  } else if (op == "shf") {
    i.run = p.has("l") ? (p.has("wrap") ? funnel_shift<true, true> : funnel_shift<true, false>)
                       : (p.has("wrap") ? funnel_shift<false, true> : funnel_shift<false, false>);
    places(32, 32, 32, 32);
  } else if (op == "bfe") {
    i.run = with_integer(type, []<class T>() -> Handler { return extract_bits<T>; });
    places(bits, bits, 32, 32);
  } else if (op == "bfi") {
    i.run = bits == 64 ? insert_bits<std::uint64_t> : insert_bits<std::uint32_t>;
    places(bits, bits, bits, 32);
    i.list = decoder.list({decoder.place(p.operands.at(4), 32)});
  } else if (op == "prmt") {
    constexpr std::string_view rules[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    i.mode = std::uint8_t(1 + (std::find(rules, rules + 6, p.words.back()) - rules));
    i.run = i.mode == 7 ? permute_bytes : permute_bytes_by_rule;
    places(32, 32, 32, 32);
  } else if (op == "lop3") {
    i.run = p.operands.size() == 5 ? logic3 : nullptr;
    i.mode = std::uint8_t(p.operands.at(4).bits);
    places(32, 32, 32, 32);
  } else if (op == "popc" || op == "clz" || op == "bfind") {
    i.run = op == "popc"        ? counting<CountBits>(type)
            : op == "clz"       ? counting<LeadingZeros>(type)
            : p.has("shiftamt") ? counting<FindBit<true>>(type)
                                : counting<FindBit<false>>(type);
    places(32, bits);
  } else if ((op == "mul" || op == "mad") && p.has("wide")) {
    i.run = wide_product(p, type);
    const int wide = bits_of(type) == 32 ? 64 : 32;
    places(wide, bits, bits, op == "mad" ? wide : 0);
  } else if (p.has("cc") || op == "addc" || op == "subc" || op == "madc") {
    i.run = carrying(p, type, i);
    places(bits, bits, bits, op.starts_with("mad") ? bits : 0);
  } else if (Handler handler = plain(p, type)) {
    i.run = handler;
    const auto n = p.operands.size();
    places(bits, bits, n > 2 ? bits : 0, n > 3 ? bits : 0);
    if (int mode = rounding_mode(p); mode != 0 && is_float(type) && bits_of(type) != 16)
      i.mode = std::uint8_t(mode), i.inner = i.run, i.run = rounded;
  }
  return i.run;
}

}  // namespace weft::emulator
