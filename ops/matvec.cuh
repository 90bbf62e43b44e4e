// y = activation(x W^T + addend + bias) for M rows x (k) and n rows W (k): W is read once. T neighbouring threads share the
// sums of ROWS rows of W with all rows of x, V elements at a time, each thread STEPS times; so the order of a sum depends on k
// and n alone, not on M.
DEVICE real activated(real x) {
  if constexpr (ACTIVATION == 1) return max_of(x, real(0));
  if constexpr (ACTIVATION == 2)
    return real(0.5) * x * (real(1) + tanh_of(real(0.7978845608028654) * (x + real(0.044715) * x * x * x)));
  return x;
}

extern "C" __global__ void __launch_bounds__(BLOCK) KERNEL(PARAMETERS) {
  constexpr int GROUPS = BLOCK / T, WARPS = T / 32;
  const int lane = int(threadIdx.x) % T, group = int(threadIdx.x) / T;
  const index n = index(a.n), k = index(a.k), first = (index(blockIdx.x) * GROUPS + group) * ROWS;
  real sum[M][ROWS] = {};
  const auto add = [&](index at) {
    real w[ROWS][V];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const index row = first + r < n ? first + r : n - 1;
      load_real<V>(a.w + (row * index(a.w_row) + at), w[r]);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      real x[V];
      load_real<V>(a.x + (m * index(a.x_row) + at), x);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int j = 0; j < V; ++j) sum[m][r] += x[j] * w[r][j];
    }
  };
  // A few steps at once, so that their loads are under way together.
#pragma unroll UNROLL
  for (int step = 0; step < STEPS; ++step)
    if (const index at = (index(step) * T + lane) * V; at < k) add(at);

#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[m][r] = warp_fold<(T < 32 ? T : 32)>(sum[m][r], Sum());
  if constexpr (WARPS > 1) {
    __shared__ real of_warp[BLOCK / 32][M * ROWS];
    if (lane % 32 == 0) {
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) of_warp[threadIdx.x / 32][m * ROWS + r] = sum[m][r];
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        sum[m][r] = real(0);
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum[m][r] += of_warp[group * WARPS + warp][m * ROWS + r];
      }
  }
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const index row = first + r;
      if (lane != (m * ROWS + r) % T || row >= n) continue;
      real y = sum[m][r];
      if constexpr (has_addend) y += real(read_real(a.addend + (m * index(a.addend_row) + row)));
      if constexpr (has_bias) y += real(read_real(a.bias + row));
      write_real(a.y + (m * index(a.y_row) + row), activated(y));
    }
}
