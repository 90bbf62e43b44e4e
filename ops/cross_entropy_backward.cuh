// dx = (softmax(x) - (1 - e) onehot(label) - e / v) times the upstream gradient of the row, 0 where the label is ignored.
extern "C" __global__ void __launch_bounds__(BLOCK, 1) KERNEL(PARAMETERS) {
  const index v = index(a.v), row = index(blockIdx.x) * ROWS + block_row();
  if (row >= index(a.rows)) return;
  const i64 label = a.labels[labels_at(a, row)];
  const bool counts = label != a.ignore;  // one outside of the vocabulary is an error of the forward kernel
  real e = 0, even = 0;
  if constexpr (SMOOTHED) e = a.smoothing(), even = e / real(v);
  const real top = a.lse[2 * row], log_sum = a.lse[2 * row + 1];
  const real g = real(a.factor[0]) * real(read_real(a.upstream + (PER_ROW ? row : 0)));
  each_vector(v, [&](int, index col) {
    real x[V], dx[V];
    if (counts) source<V>(a, row, col, x);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const real p = exp_of(x[j] - top - log_sum) - even;
      dx[j] = !counts ? real(0) : col + j == index(label) ? g * p - g * (real(1) - e) : g * p;
    }
    store_real<V>(a.dx + (row * index(a.dx_row) + col), dx);
  });
}
