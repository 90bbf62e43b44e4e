// dB and dC of the selective scan are sums over channels, of Gamma Delta u and of e h: over those of a block here, half of the
// way on tensor cores, where activations are bf16; over the blocks of a group by ops/sum_of_parts.cuh. For S = 4 states a
// thread and 32 channels, so that a warp is a slice.
//
// The products are made in fp32. As TF32 operands they are cut to 11 bits, so each loses less than 2^-10 of itself; their sums
// are fp32 again. Lane 4 g + t has channel 4 g + t. In m16n8k8 its operands of A are elements of rows g and g + 8 and of
// columns t and t + 4; so where B has a column of ones for the first four columns of A, and another for the last four, D has
// the sums over t in these two. Rows below 8 are e h, the others Gamma Delta u; states j and j + 2 are the halves of A; and two
// steps with four states each share the eight columns of D. What is left are sums over g.
static_assert(S == 4 && SUB == 4 && CHANNELS == 32, "the shape of the matrices");

// d (16 x 8) += A (16 x 8) B (8 x 8)
DEVICE void multiply_add(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

class ChannelSums {
 public:
  // dB, dC: rows of N of the first step; the next ones follow `stride` apart.
  DEVICE ChannelSums(const Owner& o, real* dB, real* dC, index stride) : stride_(stride) {
    const int g = o.channel / 4, column = o.channel % 4 * 2 + g % 2, state = o.state + column % 4;
#pragma unroll
    for (int n = 0; n < 8; ++n) ones_[n] = g == n ? 1.0f : 0.0f;
    to_ = (g & 2 ? dB : dC) + state;
    step_ = g / 4 * 2 + column / 4;
    mine_ = state < N;
  }
  // Step k of the SUB that are held.
  DEVICE void add(index, bool, int k, real e, real du, const real (&h)[S], const real (&gamma)[S]) {
    float(&d)[4] = sums_[k / 2];
    if (k % 2 == 1) d[0] = d[1] = d[2] = d[3] = 0;  // it comes before k - 1
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float* ones = ones_ + k % 2 * 4 + j;
      multiply_add(d, e * h[j], gamma[j] * du, e * h[j + 2], gamma[j + 2] * du, ones[0], ones[2]);
    }
  }
  // They are `step` .. of the sequence, of which `left` exist.
  DEVICE void flush(index step, index left) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = sums_[i / 4][i % 4];
    sum_lanes<8, 8, 4>(x);
    if (mine_ && step_ < left) to_[(step + step_) * stride_] = x[0];
  }

 private:
  float ones_[8], sums_[2][4];  // of steps 0 and 1, of 2 and 3; columns 2 t and 2 t + 1 of rows g, then of rows g + 8
  real* to_;
  index stride_;
  int step_;
  bool mine_;
};
