// What every generated kernel begins with: types, loads and stores, conversions, reductions, random numbers. No includes, so
// that a kernel compiles in milliseconds.

// A kernel need not use every fact, and a fact may leave a loop without steps.
#pragma nv_diag_suppress 128, 177

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;
using boolean = unsigned char;  // stored; computed as bool

// The top half of an fp32.
struct bf16 {
  u16 bits;
};

#define DEVICE __device__ __forceinline__
#define FULL_WARP 0xffffffffu

struct alignas(8) Words2 {
  u32 w[2];
};
struct alignas(16) Words4 {
  u32 w[4];
};

DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }

DEVICE float float_of(bf16 x) { return as_float(u32(x.bits) << 16); }
// Two floats rounded to bf16, to nearest even; `low` in the low half. NaN stays NaN.
DEVICE u32 pack_bf16(float low, float high) {
  u32 out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
DEVICE bf16 to_bf16(float x) { return bf16{u16(pack_bf16(x, 0.0f))}; }
// Towards zero, and the last bit is set if something was cut off, so that rounding it again to bf16 rounds once.
DEVICE float to_odd(float x) { return x; }
DEVICE float to_odd(double x) {
  const float cut = __double2float_rz(x);
  return double(cut) == x || x != x ? cut : as_float(__float_as_uint(cut) | 1u);
}
DEVICE bf16 to_bf16(double x) { return to_bf16(to_odd(x)); }

// What every kernel begins with (jit/cuda_text.h: launch_text): memory is as the kernels before it in the stream have left
// it, and the next one may come to its own call of this. See Gpu::capture.
DEVICE void follow() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#else  // what stands behind it stays there, so that a text has the same instructions for all
  asm volatile("" ::: "memory");
#endif
}

// ---- loads and stores of V neighbouring elements; V > 1 needs an address aligned to min(16 bytes, V elements)

template <int V, class T>
DEVICE void load(const T* from, T (&x)[V]) {
  constexpr int kBytes = V * int(sizeof(T));
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k) {
      union { Words4 words; T values[16 / sizeof(T)]; } u;
      u.words = reinterpret_cast<const Words4*>(from)[k];
#pragma unroll
      for (int j = 0; j < int(16 / sizeof(T)); ++j) x[k * int(16 / sizeof(T)) + j] = u.values[j];
    }
  } else if constexpr (kBytes == 8) {
    union { Words2 words; T values[V]; } u;
    u.words = *reinterpret_cast<const Words2*>(from);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = u.values[j];
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = from[j];
  }
}
template <int V, class T>
DEVICE void store(T* to, const T (&x)[V]) {
  constexpr int kBytes = V * int(sizeof(T));
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k) {
      union { Words4 words; T values[16 / sizeof(T)]; } u;
#pragma unroll
      for (int j = 0; j < int(16 / sizeof(T)); ++j) u.values[j] = x[k * int(16 / sizeof(T)) + j];
      reinterpret_cast<Words4*>(to)[k] = u.words;
    }
  } else if constexpr (kBytes == 8) {
    union { Words2 words; T values[V]; } u;
#pragma unroll
    for (int j = 0; j < V; ++j) u.values[j] = x[j];
    *reinterpret_cast<Words2*>(to) = u.words;
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = x[j];
  }
}

// As reals: memory of any real type.
template <int V, class R>
DEVICE void load_real(const float* from, R (&x)[V]) {
  float t[V];
  load<V>(from, t);
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = R(t[j]);
}
template <int V, class R>
DEVICE void load_real(const double* from, R (&x)[V]) {
  double t[V];
  load<V>(from, t);
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = R(t[j]);
}
template <int V, class R>
DEVICE void load_real(const bf16* from, R (&x)[V]) {
  if constexpr (V % 2 == 0) {
    u32 t[V / 2];
    load<V / 2>(reinterpret_cast<const u32*>(from), t);
#pragma unroll
    for (int j = 0; j < V / 2; ++j) {
      x[2 * j] = R(as_float(t[j] << 16));
      x[2 * j + 1] = R(as_float(t[j] & 0xffff0000u));
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = R(float_of(from[j]));
  }
}
template <int V, class R>
DEVICE void store_real(float* to, const R (&x)[V]) {
  float t[V];
#pragma unroll
  for (int j = 0; j < V; ++j) t[j] = float(x[j]);
  store<V>(to, t);
}
template <int V, class R>
DEVICE void store_real(double* to, const R (&x)[V]) {
  double t[V];
#pragma unroll
  for (int j = 0; j < V; ++j) t[j] = double(x[j]);
  store<V>(to, t);
}
template <int V, class R>
DEVICE void store_real(bf16* to, const R (&x)[V]) {
  if constexpr (V % 2 == 0) {
    u32 t[V / 2];
#pragma unroll
    for (int j = 0; j < V / 2; ++j) t[j] = pack_bf16(to_odd(x[2 * j]), to_odd(x[2 * j + 1]));
    store<V / 2>(reinterpret_cast<u32*>(to), t);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = to_bf16(x[j]);
  }
}
// One element as a type that expressions compute with.
DEVICE float value_at(const float* p) { return *p; }
DEVICE double value_at(const double* p) { return *p; }
DEVICE float value_at(const bf16* p) { return float_of(*p); }
DEVICE i64 value_at(const i32* p) { return *p; }
DEVICE i64 value_at(const i64* p) { return *p; }
DEVICE bool value_at(const boolean* p) { return *p != 0; }
DEVICE float read_real(const float* p) { return *p; }
DEVICE double read_real(const double* p) { return *p; }
DEVICE float read_real(const bf16* p) { return float_of(*p); }
DEVICE void write_real(float* p, double x) { *p = float(x); }
DEVICE void write_real(double* p, double x) { *p = x; }
DEVICE void write_real(float* p, float x) { *p = x; }
DEVICE void write_real(double* p, float x) { *p = x; }
DEVICE void write_real(bf16* p, float x) { *p = to_bf16(x); }
DEVICE void write_real(bf16* p, double x) { *p = to_bf16(x); }

// As the types that expressions compute with: real, i64, bool.
template <int V, class T, class R>
DEVICE void load_values(const T* from, R (&x)[V]) { load_real<V>(from, x); }
template <int V>
DEVICE void load_values(const i32* from, i64 (&x)[V]) {
  i32 t[V];
  load<V>(from, t);
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = t[j];
}
template <int V>
DEVICE void load_values(const i64* from, i64 (&x)[V]) { load<V>(from, x); }
template <int V>
DEVICE void load_values(const boolean* from, bool (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = from[j] != 0;
}
template <int V, class T, class R>
DEVICE void store_values(T* to, const R (&x)[V]) { store_real<V>(to, x); }
template <int V>
DEVICE void store_values(i32* to, const i64 (&x)[V]) {
  i32 t[V];
#pragma unroll
  for (int j = 0; j < V; ++j) t[j] = i32(x[j]);
  store<V>(to, t);
}
template <int V>
DEVICE void store_values(i64* to, const i64 (&x)[V]) { store<V>(to, x); }
template <int V>
DEVICE void store_values(boolean* to, const bool (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = x[j];
}

// ---- scalar functions of expressions, for float and double; min and max keep a NaN of either side, and -0 is less than 0 ----

DEVICE float min_of(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
DEVICE float max_of(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
DEVICE bool is_negative(double x) { return __double_as_longlong(x) < 0; }
DEVICE double min_of(double a, double b) { return (a < b) | (a != a) | ((a == b) & is_negative(a)) ? a : b; }
DEVICE double max_of(double a, double b) { return (a > b) | (a != a) | ((a == b) & !is_negative(a)) ? a : b; }
DEVICE i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
DEVICE i64 max_of(i64 a, i64 b) { return a > b ? a : b; }
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }  // never part of an FMA
DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
DEVICE i64 quotient(i64 a, i64 b) { return b == 0 ? 0 : b == -1 ? i64(0 - u64(a)) : a / b; }

DEVICE float exp_of(float x) { return expf(x); }
DEVICE double exp_of(double x) { return exp(x); }
DEVICE float log_of(float x) { return logf(x); }
DEVICE double log_of(double x) { return log(x); }
DEVICE float log1p_of(float x) { return log1pf(x); }
DEVICE double log1p_of(double x) { return log1p(x); }
DEVICE float expm1_of(float x) { return expm1f(x); }
DEVICE double expm1_of(double x) { return expm1(x); }
DEVICE float sqrt_of(float x) { return sqrtf(x); }
DEVICE double sqrt_of(double x) { return sqrt(x); }
DEVICE float rsqrt_of(float x) { return 1.0f / sqrtf(x); }
DEVICE double rsqrt_of(double x) { return 1.0 / sqrt(x); }
DEVICE float tanh_of(float x) { return tanhf(x); }
DEVICE double tanh_of(double x) { return tanh(x); }
DEVICE float erf_of(float x) { return erff(x); }
DEVICE double erf_of(double x) { return erf(x); }
DEVICE float pow_of(float x, float y) { return powf(x, y); }
DEVICE double pow_of(double x, double y) { return pow(x, y); }
DEVICE float sin_of(float x) { return sinf(x); }
DEVICE double sin_of(double x) { return sin(x); }
DEVICE float cos_of(float x) { return cosf(x); }
DEVICE double cos_of(double x) { return cos(x); }
DEVICE float floor_of(float x) { return floorf(x); }
DEVICE double floor_of(double x) { return floor(x); }
DEVICE float abs_of(float x) { return fabsf(x); }
DEVICE double abs_of(double x) { return fabs(x); }
DEVICE i64 abs_of(i64 x) { return x < 0 ? i64(0 - u64(x)) : x; }
DEVICE i64 sign_of(i64 x) { return i64(x > 0) - i64(x < 0); }
template <class R>
DEVICE R sign_of(R x) { return x > R(0) ? R(1) : x < R(0) ? R(-1) : x; }
constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;
// One instruction; relative error 2^-22, 0 below 2^-126.
DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE double exp2_of(double x) { return exp2(x); }
// Within 2^-23.5, and right in the mean, where the instruction's results tend to be below the right ones; 0 below 2^-126.
DEVICE float precise_exp2_of(float x) {
  const float in_range = x < -150.f ? -150.f : x > 128.f ? 128.f : x, n = rintf(in_range), f = in_range - n;
  float p = 0.000154614449f;  // interpolates at the Chebyshev points of [-1/2, 1/2]
  p = fmaf(p, f, 0.0013400428f);
  p = fmaf(p, f, 0.00961805694f);
  p = fmaf(p, f, 0.0555032715f);
  p = fmaf(p, f, 0.240226507f);
  p = fmaf(p, f, 0.693147182f);
  p = fmaf(p, f, 1.f);
  return n < -126.f ? 0.f : p * __int_as_float((int(n) + 127) << 23);
}
DEVICE double precise_exp2_of(double x) { return exp2(x); }
// Within 1 ulp; 0 where that would be a subnormal number.
DEVICE float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEVICE double reciprocal(double x) { return 1.0 / x; }
// log(1 + e) for e in [0, 1]: 2 atanh(s) with s = e / (2 + e); atanh(s) / s as a polynomial of s^2 in [0, 1/9], within 8e-9.
DEVICE float log1p_unit(float e) {
  const float s = e * reciprocal(2.0f + e), q = s * s;
  return 2.0f * s * (1.0f + q * (0.333331608f + q * (0.200122976f + q * (0.139825789f + q * 0.140788892f))));
}
DEVICE double log1p_unit(double e) { return log1p(e); }
template <class R>
DEVICE R sigmoid_of(R x) { return reciprocal(R(1) + exp2_of(R(-LOG2_E) * x)); }  // 0 where e^-x is infinite
template <class R>
DEVICE R softplus_of(R x) { return max_of(x, R(0)) + log1p_unit(exp_of(-abs_of(x))); }
// Truncates and saturates; NaN becomes the smallest integer.
template <class R>
DEVICE i64 integer_of(R x) {
  if (x != x) return i64(0x8000000000000000ull);
  if (x >= R(9223372036854775808.0)) return i64(0x7fffffffffffffffull);
  if (x <= R(-9223372036854775808.0)) return i64(0x8000000000000000ull);
  return i64(x);
}

// What is left in a tensor of the type.
template <class R>
DEVICE R narrow_bf16(R x) { return R(float_of(to_bf16(x))); }
template <class R>
DEVICE R narrow_f32(R x) { return R(float(x)); }
DEVICE i64 narrow_i32(i64 x) { return i32(x); }
template <class R>
DEVICE R unless_zero(R g, R x) { return g == R(0) ? R(0) : x; }

// ---- Philox-4x32-10 (jit/philox.h), the same bits on every device -----------------------------------------------------------

struct Philox4 {
  u32 word[4];
};
DEVICE Philox4 philox_block(u32 c0, u32 c1, u32 c2, u32 c3, u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 a = __umulhi(0xd2511f53u, c0), a_low = 0xd2511f53u * c0;
    const u32 b = __umulhi(0xcd9e8d57u, c2), b_low = 0xcd9e8d57u * c2;
    c0 = b ^ c1 ^ key0, c1 = b_low, c2 = a ^ c3 ^ key1, c3 = a_low;
    key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}
DEVICE u64 bits_of(double x) { return u64(__double_as_longlong(x)); }
// The words of elements 4 * group ...; seed, tick and site are the bits of three constants.
DEVICE Philox4 philox_group(const double* constants, u64 group) {
  const u64 key = bits_of(constants[0]) + 0x9e3779b97f4a7c15ull * bits_of(constants[2]), tick = bits_of(constants[1]);
  return philox_block(u32(group), u32(group >> 32), u32(tick), u32(tick >> 32), u32(key), u32(key >> 32));
}
// (word + 1/2) 2^-32 rounded into (0, 1).
DEVICE void uniform_from(u32 word, float& x) {
  const float u = float((double(word) + 0.5) * 2.3283064365386963e-10);
  x = u < 1.0f ? u : 0.99999994f;
}
DEVICE void uniform_from(u32 word, double& x) { x = (double(word) + 0.5) * 2.3283064365386963e-10; }
template <class R>
DEVICE R uniform_at(const double* constants, i64 element) {
  const Philox4 p = philox_group(constants, u64(element) / 4);
  R x;
  const u32 k = u32(element) % 4;
  uniform_from(k == 0 ? p.word[0] : k == 1 ? p.word[1] : k == 2 ? p.word[2] : p.word[3], x);
  return x;
}
// Of V neighbouring elements, the first divisible by V.
template <int V, class R>
DEVICE void uniforms(const double* constants, i64 element, R (&x)[V]) {
  if constexpr (V % 4 == 0) {
#pragma unroll
    for (int k = 0; k < V / 4; ++k) {
      const Philox4 p = philox_group(constants, u64(element) / 4 + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) uniform_from(p.word[j], x[4 * k + j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = uniform_at<R>(constants, element + j);
  }
}

// ---- reductions: the order is fixed, so results are equal from run to run ---------------------------------------------------

// How two values are joined.
struct Sum {
  template <class R>
  DEVICE R operator()(R x, R y) const { return x + y; }
};
struct Max {  // keeps a NaN of either side
  template <class R>
  DEVICE R operator()(R x, R y) const { return max_of(x, y); }
};

// A sum of many terms: `low` is what the roundings of `high` have lost (Neumaier's sum, 1974), so that the error does not grow
// with their number. What is infinite or NaN stays so.
template <class R>
struct LongSum {
  R high = R(0), low = R(0);

  DEVICE void add(R x) {
    const R sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }
  DEVICE R value() const { return low - low == R(0) ? high + low : high; }
};

// Of WIDTH neighbouring lanes, known to all of them. Every lane of the warp must take part.
template <int WIDTH = 32, class R, class Fold>
DEVICE R warp_fold(R x, Fold fold) {
#pragma unroll
  for (int d = WIDTH / 2; d > 0; d /= 2) x = fold(x, __shfl_xor_sync(FULL_WARP, x, d));
  return x;
}
// Of all threads of a block of T threads, known to all of them; folding with `nothing` changes nothing. `shared` has 32
// elements and may be used again after the next barrier.
template <int T, class R, class Fold>
DEVICE R block_fold(R x, R nothing, Fold fold, R* shared) {
  x = warp_fold(x, fold);
  if constexpr (T > 32) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < T / 32 ? shared[threadIdx.x % 32] : nothing;
    x = warp_fold(x, fold);
    __syncthreads();
  }
  return x;
}
template <int T, class R>
DEVICE R block_sum(R x, R* shared) { return block_fold<T>(x, R(0), Sum(), shared); }

// ---- errors that only the device can see: the first one is kept and reported by the host ------------------------------------

// status: {code, value, limit, position}. Codes are those of jit/device_errors.h; position is an element of the tensor.
DEVICE void raise(u64* status, u64 code, i64 value, i64 limit, i64 position) {
  if (atomicCAS(status, 0ull, code) == 0ull) status[1] = u64(value), status[2] = u64(limit), status[3] = u64(position);
}
// A kernel has left something for the host to look at, which is no error of the device: the host, which never waits for it,
// sees that a count has grown (watch in autograd/run.h). For one thread of a kernel.
DEVICE void notify(u64* status) {
  volatile u64* const notices = status + 4;
  *notices = *notices + 1;
}
constexpr u64 BAD_SUBSCRIPT = 3;
// How far a subscript leads along an axis. Outside of the tensor, which is an error, it stays at the start.
DEVICE i64 step_to(u64* status, i64 subscript, i64 size, i64 stride, int axis) {
  const bool inside = u64(subscript) < u64(size);
  if (!inside) raise(status, BAD_SUBSCRIPT, subscript, size, axis);
  return inside ? subscript * stride : 0;
}
