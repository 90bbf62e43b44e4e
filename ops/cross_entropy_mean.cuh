// The sum of the losses times the factor of the gradient: 1, or, for the MEAN, 1 / labels that count. One block.
extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
  __shared__ double shared[32];
  const index rows = index(a.rows);
  double total = 0, valid = 0;
  for (index row = threadIdx.x; row < rows; row += THREADS) {
    total += double(a.loss[row]);
    if constexpr (MEAN) valid += i64(a.labels[labels_at(a, row)]) != a.ignore ? 1.0 : 0.0;
  }
  total = block_sum<THREADS>(total, shared);
  if constexpr (MEAN) valid = block_sum<THREADS>(valid, shared);
  if (threadIdx.x > 0) return;
  const double factor = !MEAN ? 1.0 : valid > 0 ? 1.0 / valid : 0.0;
  if constexpr (has_out) write_real(a.out, total * factor);
  if constexpr (has_factor) write_real(a.factor, factor);
}
