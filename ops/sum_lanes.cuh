// Leaves in x[0 .. max(COUNT / LANES, 1)) of a lane the sums of x[k COUNT / LANES ...] over LANES lanes that lie STRIDE apart,
// of which it is the k-th.
template <int COUNT, int LANES, int STRIDE = 1>
DEVICE void sum_lanes(real (&x)[COUNT]) {
  int count = COUNT;
#pragma unroll
  for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
    if (count == 1) {
      x[0] += __shfl_xor_sync(FULL_WARP, x[0], lanes * STRIDE);
      continue;
    }
    count /= 2;
    const bool upper = threadIdx.x & (lanes * STRIDE);
#pragma unroll
    for (int k = 0; k < COUNT / 2; ++k) {
      if (k >= count) break;
      const real give = upper ? x[k] : x[k + count], keep = upper ? x[k + count] : x[k];
      x[k] = keep + __shfl_xor_sync(FULL_WARP, give, lanes * STRIDE);
    }
  }
}

