// Elementary functions as inline, branch-free code: a loop over the float ones vectorises (-O3 -fno-math-errno
// -fno-trapping-math; no -ffast-math). Errors are below 2.3 ulp; infinities, NaN and signed zeros are those of <cmath>.
// The double ones are the library's, for gradient checks. tests/test_interp.cpp measures every claim.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

namespace weft::vmath {

namespace detail {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Unsigned, as the bits of a NaN or an infinity may wrap on the way to a result that is not used.
inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float from_bits(std::uint32_t u) { return std::bit_cast<float>(u); }

// The bits of 2^e for the e that takes x / 2^e to [3/4, 3/2), less those of 1; and e itself.
inline std::uint32_t exponent_bits(float x) { return (bits(x) - bits(0.75f)) & 0xff800000u; }
inline float exponent_value(std::uint32_t exponent) { return float(std::int32_t(exponent)) * 0x1p-23f; }

// x = exponent * ln 2 + r with |r| <= ln 2 / 2, for |x| < 2^20.
struct Reduced {
  float r;
  std::int32_t exponent;
};
inline Reduced reduce_ln2(float x) {
  constexpr float kRound = 0x1.8p23f;                            // adding it leaves the nearest integer in the low bits
  constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;  // ln 2; n * kHigh is exact
  float shifted = x * std::numbers::log2e_v<float> + kRound;
  float n = shifted - kRound;
  return {x - n * kHigh - n * kLow, std::int32_t(bits(shifted) - bits(kRound))};
}

inline float power_of_two(std::int32_t n) { return from_bits((std::uint32_t(n) + 127u) << 23); }  // -126 <= n <= 127

// log(1 + m) + i ln 2 for m in [-1/4, 1/2]. Minimax polynomial by N. Juffa.
inline float log1p_reduced(float m, float i) {
  float s = m * m;
  float r = -4.53482792e-2f;
  float t = 1.05469480e-1f;
  r = r * s - 1.32296577e-1f;
  t = t * s + 1.44914404e-1f;
  r = r * s - 1.66415766e-1f;
  t = t * s + 1.99888244e-1f;
  r = r * s - 2.50002027e-1f;
  r = t * m + r;
  r = r * m + 3.33335280e-1f;
  r = r * m - 4.99999970e-1f;
  r = r * s + m;
  return i * std::numbers::ln2_v<float> + r;
}

// log(1 + x) for finite x > -1. 1 + x = 2^e (1 + m) is never rounded: m = 2^-e x + (2^-e - 1).
inline float log1p_finite(float x) {
  std::uint32_t exponent = exponent_bits(1.0f + x);
  float shrunk = from_bits(bits(x) - exponent);          // 2^-e x
  float one = 0.25f * from_bits(bits(4.0f) - exponent);  // 2^-e, also for e = 128
  return log1p_reduced(shrunk + (one - 1.0f), exponent_value(exponent));
}

}  // namespace detail

// A NaN on either side stays, and -0 is less than 0.
template <class T>
T min(T a, T b) {
  return a < b || a != a || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T max(T a, T b) {
  return a > b || a != a || (a == b && !std::signbit(a)) ? a : b;
}

inline float exp(float x) {
  x = x < -104.0f ? -104.0f : x;  // exp(-104) is 0, exp(89) infinite; a NaN passes
  x = x > 89.0f ? 89.0f : x;
  auto [r, exponent] = detail::reduce_ln2(x);
  float p = 1.37805939e-3f;  // N. Juffa's minimax polynomial
  p = p * r + 8.37312452e-3f;
  p = p * r + 4.16695364e-2f;
  p = p * r + 1.66664720e-1f;
  p = p * r + 4.99999851e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  std::int32_t half = exponent >> 1;  // in two steps: n reaches from -150 to 128
  return p * detail::power_of_two(half) * detail::power_of_two(exponent - half);
}

inline float expm1(float x) {
  float clamped = x < -18.0f ? -18.0f : x;  // -1 to the last bit
  clamped = clamped > 89.0f ? 89.0f : clamped;
  auto [r, exponent] = detail::reduce_ln2(clamped);
  float p = 1.98423862e-4f;
  p = p * r + 1.39340147e-3f;
  p = p * r + 8.33332818e-3f;
  p = p * r + 4.16665189e-2f;
  p = p * r + 1.66666672e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r;                                 // e^r - 1
  float scale = detail::power_of_two(exponent - 1);  // half of 2^n, which may overflow
  float y = (scale * p + (scale - 0.5f)) * 2.0f;
  return x == 0.0f ? x : y;
}

inline float log(float x) {
  bool small = x < std::numeric_limits<float>::min();
  float normal = small ? x * 0x1p23f : x;
  std::uint32_t exponent = detail::exponent_bits(normal);
  float m = detail::from_bits(detail::bits(normal) - exponent) - 1.0f;
  float y = detail::log1p_reduced(m, detail::exponent_value(exponent) - (small ? 23.0f : 0.0f));
  y = x < detail::kInf ? y : x;  // infinity and NaN
  y = x == 0.0f ? -detail::kInf : y;
  return x < 0.0f ? detail::kNan : y;
}

inline float log1p(float x) {
  float y = detail::log1p_finite(x);
  y = x != 0.0f && x < detail::kInf ? y : x;  // signed zero, infinity and NaN
  y = x == -1.0f ? -detail::kInf : y;
  return x < -1.0f ? detail::kNan : y;
}

inline float tanh(float x) {
  float s = x * x;
  float p = 1.57394409e-2f;  // |x| < 0.55; N. Juffa
  p = p * s - 5.23025580e-2f;
  p = p * s + 1.33152470e-1f;
  p = p * s - 3.33327681e-1f;
  float t = std::abs(x);
  p = p * s * t + t;
  float q = 1.0f - 2.0f / (exp(2.0f * t) + 1.0f);
  return std::copysign(t < 0.55f ? p : q, x);
}

inline float sigmoid(float x) {
  const float y = 1.0f / (1.0f + exp(-x));
  return y < std::numeric_limits<float>::min() ? 0.0f : y;  // no subnormal number, as on a GPU
}

inline float softplus(float x) { return (x <= 0.0f ? 0.0f : x) + detail::log1p_finite(exp(-std::abs(x))); }

inline float erf(float x) {
  float t = std::abs(x), s = x * x;
  float p = -5.96761703e-4f;  // |x| <= 475/512; both polynomials by N. Juffa
  p = p * s + 4.99119423e-3f;
  p = p * s - 2.67681349e-2f;
  p = p * s + 1.12819925e-1f;
  p = p * s - 3.76125336e-1f;
  p = p * s + 1.28379166e-1f;
  p = p * x + x;
  float c = t > 4.0f ? 4.0f : t;  // erf(4) is 1 to the last bit
  float q = -1.72853470e-5f * c + 3.83197126e-4f;
  float u = -3.88396438e-3f * c + 2.42546219e-2f;
  q = q * (c * c) + u;
  q = q * c - 1.06777877e-1f;
  q = q * c - 6.34846687e-1f;
  q = q * c - 1.28717512e-1f;
  q = std::copysign(1.0f - exp(q * c - c), x);
  return t > 475.0f / 512.0f ? q : p;
}

namespace detail {

// sin(x + quadrant * pi/2), reduced in double: right for |x| <= kMaxAngle, beyond which callers use <cmath>.
inline float sine(float x, std::int64_t quadrant) {
  constexpr double kRound = 0x1.8p52;
  constexpr double kHigh = 0x1.921fb544p0, kLow = 0x1.0b4611a626331p-34;  // pi/2; n * kHigh is exact
  double shifted = double(x) * (2 / std::numbers::pi) + kRound;
  double n = shifted - kRound;
  double r = double(x) - n * kHigh - n * kLow;
  quadrant += std::bit_cast<std::int64_t>(shifted);
  double s = r * r;
  double odd = 2.7557313707070068e-06;
  odd = odd * s - 1.9841269829857950e-04;
  odd = odd * s + 8.3333333332248946e-03;
  odd = odd * s - 1.6666666666666632e-01;
  odd = odd * s * r + r;
  double even = 2.4801587288851704e-05;
  even = even * s - 1.3888888887305641e-03;
  even = even * s + 4.1666666666666019e-02;
  even = even * s - 0.5;
  even = even * s + 1.0;
  double y = quadrant & 1 ? even : odd;
  return float(quadrant & 2 ? -y : y);
}

}  // namespace detail

inline constexpr float kMaxAngle = 0x1p20f;
inline float sin(float x) { return x == 0.0f ? x : detail::sine(x, 0); }
inline float cos(float x) { return detail::sine(x, 1); }

inline float sqrt(float x) { return std::sqrt(x); }
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline float floor(float x) { return std::floor(x); }
inline float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }  // a NaN stays
inline float pow(float x, float y) { return std::pow(x, y); }

inline double exp(double x) { return std::exp(x); }
inline double expm1(double x) { return std::expm1(x); }
inline double log(double x) { return std::log(x); }
inline double log1p(double x) { return std::log1p(x); }
inline double tanh(double x) { return std::tanh(x); }
inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline double softplus(double x) { return (x <= 0.0 ? 0.0 : x) + std::log1p(std::exp(-std::abs(x))); }
inline double erf(double x) { return std::erf(x); }
inline double sin(double x) { return std::sin(x); }
inline double cos(double x) { return std::cos(x); }
inline double sqrt(double x) { return std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline double floor(double x) { return std::floor(x); }
inline double sign(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x; }
inline double pow(double x, double y) { return std::pow(x, y); }

}  // namespace weft::vmath
