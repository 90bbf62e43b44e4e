// The products of attention without tensor cores, for fp32 and fp64: the same fragments as those of attention_tensor.cuh, made
// by FMAs from shared memory. ops/attention.cuh stands behind this.
constexpr int UNIT = 8;

template <int DIM, int PITCH, bool HELD>
class OwnRows {
 public:
  DEVICE OwnRows(const Element* tile, int row) : at_(tile + (row + int(threadIdx.x) % 32 / 4) * PITCH) {}
  DEVICE void hold() {}
  template <int N>
  DEVICE void times(const Element* other, real (&x)[N][4]) const {
    constexpr int C = 16 / int(sizeof(Element));
    const Element* const from = other + int(threadIdx.x) % 4 * 2 * PITCH;
#pragma unroll
    for (int n = 0; n < N; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
#pragma unroll 1
    for (int k = 0; k < DIM; k += C) {
      real a[2][C];
      load<C>(at_ + k, a[0]);
      load<C>(at_ + 8 * PITCH + k, a[1]);
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          real b[C];
          load<C>(from + (8 * n + c) * PITCH + k, b);
#pragma unroll
          for (int i = 0; i < C; ++i) x[n][c] += a[0][i] * b[i], x[n][2 + c] += a[1][i] * b[i];
        }
    }
  }

 private:
  const Element* at_;
};

// The weights of a row lie in the four lanes that have its accumulators.
template <int PITCH, int N, int M>
DEVICE void add_weighted(const real (&w)[N][4], const Element* other, real (&acc)[M][4]) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll 1
    for (int t = 0; t < 4; ++t) {
      real p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] = __shfl_sync(FULL_WARP, w[n][i], lane / 4 * 4 + t);
      const Element* const from = other + (8 * n + 2 * t) * PITCH + lane % 4 * 2;
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          real b[2];
          load<2>(from + c * PITCH + 8 * m, b);
          acc[m][0] += p[c] * b[0], acc[m][1] += p[c] * b[1];
          acc[m][2] += p[2 + c] * b[0], acc[m][3] += p[2 + c] * b[1];
        }
    }
}
