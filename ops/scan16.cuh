// What the kernels of the selective scan with 16 states in bf16 share (ops/scan.cpp has the formulas). Channel-last, serial in
// time, the states in the accumulators of m16n8k8; a block has GROUPS groups of 16 channels of one batch element.
//
// Between forward and backward stands the state after every eighth step, in 16 bits: of each batch element, chunk and group
// KEPT_WORDS words, of the even and then the odd channels, of states below and from 8 on ("half"), of lanes 4 g + q with states
// 2 q and 2 q + 1 of the g-th channel, as whole numbers u: (u - 2^15) times what belongs to channel and half, whose largest
// state has one from 2^14 on. That lies within 2^-16 of the largest, which is finer than fp16 where it matters. Then, of each
// half, words with the power of two of that of channels 2 g and 2 g + 1, as bf16; it is infinite where a state is not finite.
//
// What lies outside is zeros: past the end of the sequence Delta = 0 leaves a state as it is. Where a packed document begins,
// the state decays over a step so long that nothing of it remains; Delta u is as it is.

constexpr int N = 16, CHUNK = 8, CHANNELS = GROUPS * 16, QUADS = GROUPS * 4;  // QUADS: of channels, moved as one vector
constexpr int KEPT_WORDS = 144;

struct alignas(8) F2 {
  float x, y;
};
struct alignas(16) F4 {
  float x, y, z, w;
};
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
// Numbers of 16 bits, as the lowest digits of 2^23 + 2^15 and them.
constexpr float KEPT_ZERO = 8421376.0f, KEPT_FULL = 1.0f - 0x1p-15f;  // FULL: so that the largest is not rounded up to 2^15
DEVICE u32 kept_words(float low, float high, float scale) {
  return __byte_perm(bits_of(__fmaf_rn(low, scale, KEPT_ZERO)), bits_of(__fmaf_rn(high, scale, KEPT_ZERO)), 0x5410);
}
DEVICE float kept_low(u32 x, float scale) { return (as_float(__byte_perm(x, 0x4b000000u, 0x7610)) - KEPT_ZERO) * scale; }
DEVICE float kept_high(u32 x, float scale) { return (as_float(__byte_perm(x, 0x4b000000u, 0x7632)) - KEPT_ZERO) * scale; }
DEVICE u32 larger_of_pairs(u32 x, u32 y) {  // of bf16; a NaN stays
  u32 z;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));
  return z;
}
DEVICE void unpack_bf16(Words2 from, real (&x)[4]) {
  x[0] = as_float(from.w[0] << 16), x[1] = as_float(from.w[0] & 0xffff0000u);
  x[2] = as_float(from.w[1] << 16), x[3] = as_float(from.w[1] & 0xffff0000u);
}
// x as bf16 parts, the larger one in the low half: a product with a number of 8 bits is then exact to 2^-16 of itself.
DEVICE u32 split(float x) {
  const float high = as_float(bits_of(x) & 0xffff0000u);
  return pack_bf16(high, x - high);
}
DEVICE u32 twice(float x) { return __byte_perm(bits_of(x), 0, 0x3232); }  // a bf16 number in both halves

// d (16 x 8) = a (16 x 8) b (8 x 8) + c, of bf16.
DEVICE void multiply8(float (&d)[4], u32 a0, u32 a1, u32 b, float c0, float c1, float c2, float c3) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
}
// d (16 x 8) += a (16 x 8) b (8 x 8), of fp32 that are cut to TF32; a as an accumulator is, columns 2 q and 2 q + 1 of it
// against rows q and q + 4 of b.
DEVICE void add_over_columns(float (&d)[4], const float (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(bits_of(a[0])), "r"(bits_of(a[2])), "r"(bits_of(a[1])), "r"(bits_of(a[3])), "r"(b0), "r"(b1));
}
// What is cut off a number to make it TF32 is on the average 2^-11 / (2 ln 2) of it, by which the sum is made larger.
constexpr float CUT = 1.0f + 0.000352f;
// Masks of a lane: whether column (or row) r of an operand is its own, which is lane / 4.
struct Own {
  u32 pair[4], odd;
  DEVICE explicit Own(int g) : odd((g & 1) ? 0xffffffffu : 0u) {
#pragma unroll
    for (int j = 0; j < 4; ++j) pair[j] = (g >> 1) == j ? 0xffffffffu : 0u;
  }
  DEVICE u32 operator()(int r, u32 x) const { return x & pair[r >> 1] & ((r & 1) ? odd : ~odd); }
};

// A long step that has the true one, but for its last digits, as its own last ones.
constexpr u32 LONG_STEP = 0x70000000u;  // 2^97
DEVICE float long_step(float delta) { return as_float(LONG_STEP + (bits_of(delta) >> 4)); }
DEVICE float true_step(float delta) {
  return bits_of(delta) < LONG_STEP ? delta : as_float((bits_of(delta) - LONG_STEP) << 4);
}

// Which part of the work a block has: channels [channel, channel + CHANNELS) of batch element b, and `length` steps from
// `begin` on, one of the segments of a.span steps that run side by side. `states` counts batch elements and their segments.
struct Place {
  int b, group, channel, begin, length, states;
  DEVICE index row(const Args& a, int t) const { return index(b) * index(a.length) + (begin + t); }
  DEVICE int inside(int t) const { return t < 0 ? 0 : t < length ? t : length - 1; }  // holes know places of the sequence alone
  // Where B or C of a step begin.
  DEVICE index B_at(const Args& a, int t) const {
    return index(b) * index(a.B_batch) + index(begin + t) * index(a.B_time) + index(group) * index(a.B_group);
  }
  DEVICE index C_at(const Args& a, int t) const {
    return index(b) * index(a.C_batch) + index(begin + t) * index(a.C_time) + index(group) * index(a.C_group);
  }
};
DEVICE Place place_of(const Args& a) {
  const int blocks = int(a.channels) / CHANNELS, states = int(blockIdx.x) / blocks;
  const int channel = (int(blockIdx.x) - states * blocks) * CHANNELS, b = states / int(a.segments);
  const int begin = (states - b * int(a.segments)) * int(a.span), left = int(a.length) - begin;
  return {b, channel / int(a.group_size), channel, begin, left < int(a.span) ? left : int(a.span), states};
}
