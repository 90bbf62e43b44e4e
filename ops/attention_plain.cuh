// The products of attention without tensor cores, for fp32 and fp64: the same fragments as those of attention_tensor.cuh, made
// by FMAs from shared memory. ops/attention.cuh stands behind this.
constexpr int UNIT = 8;
constexpr bool ASYNC = false, SWIZZLED = false;
template <int LEFT, int N>
DEVICE void finish(real (&)[N][4]) {}
DEVICE void publish() {}

// What is multiplied in fp32 takes so long that the precise form is free.
DEVICE real power_of_two(real x) { return precise_exp2_of(x); }

template <class Own, bool HELD>
class OwnRows {
 public:
  DEVICE OwnRows(const Element* tile, int row) : at_(tile + (row + int(threadIdx.x % 32 / 4)) * Own::PITCH) {}
  DEVICE void hold() {}
  template <class Other, int N>
  DEVICE void times(const Element* other, real (&x)[N][4]) const {
    constexpr int C = 16 / int(sizeof(Element));
    const Element* const from = other + int(threadIdx.x % 4 * 2) * Other::PITCH;
#pragma unroll
    for (int n = 0; n < N; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
#pragma unroll 1
    for (int k = 0; k < Own::WIDTH; k += C) {
      real a[2][C];
      load<C>(at_ + k, a[0]);
      load<C>(at_ + 8 * Own::PITCH + k, a[1]);
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          real b[C];
          load<C>(from + (8 * n + c) * Other::PITCH + k, b);
#pragma unroll
          for (int i = 0; i < C; ++i) x[n][c] += a[0][i] * b[i], x[n][2 + c] += a[1][i] * b[i];
        }
    }
  }

 private:
  const Element* at_;
};

// Weights (16 x 8 N). Those of a row lie in the four lanes that have its accumulators.
template <int N>
class Weights {
 public:
  DEVICE void take(const real (&w)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) weights_[n][i] = w[n][i];
  }
  // acc (16 x 8 M) += these times 8 N rows of `other`, from `feature` on. A tile is summed by itself first, as a long sum of
  // fp32 must be: of GROUP accumulators at a time, so that no register spills.
  template <class Other, int M>
  DEVICE void times(const Element* other, int feature, real (&acc)[M][4]) const {
    constexpr int GROUP = sizeof(real) == 8 ? M : M % 4 == 0 ? 4 : M % 2 == 0 ? 2 : 1;
    const int lane = int(threadIdx.x % 32);
#pragma unroll
    for (int first = 0; first < M; first += GROUP) {
      real part[GROUP][4];
#pragma unroll
      for (int m = 0; m < GROUP; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) part[m][e] = sizeof(real) == 8 ? acc[first + m][e] : real(0);
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll 1
        for (int t = 0; t < 4; ++t) {
          real p[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) p[i] = __shfl_sync(FULL_WARP, weights_[n][i], lane / 4 * 4 + t);
          const Element* const from = other + (8 * n + 2 * t) * Other::PITCH + feature + 8 * first + lane % 4 * 2;
#pragma unroll
          for (int m = 0; m < GROUP; ++m)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              real b[2];
              load<2>(from + c * Other::PITCH + 8 * m, b);
              part[m][0] += p[c] * b[0], part[m][1] += p[c] * b[1];
              part[m][2] += p[2 + c] * b[0], part[m][3] += p[2 + c] * b[1];
            }
        }
#pragma unroll
      for (int m = 0; m < GROUP; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[first + m][e] = sizeof(real) == 8 ? part[m][e] : acc[first + m][e] + part[m][e];
    }
  }

 private:
  real weights_[N][4];
};
