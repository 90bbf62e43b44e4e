// softmax, log_softmax and logsumexp of rows (n). KIND: 0, 1, 2.
extern "C" __global__ void __launch_bounds__(BLOCK, 1) KERNEL(PARAMETERS) {
  const index n = index(a.n), rows = index(a.rows);
  const index at = index(blockIdx.x) * ROWS + block_row(), row = at < rows ? at : rows - 1;
  Row x(n, [&](int, index col, real (&v)[V]) { source<V>(a, row, col, v); });
  ExpSum total;
  each_vector(n, [&](int k, index col) { total.add(x.at(k, col)); });
  total.join_row();
  if (at >= rows) return;
  const real shift = total.shift();
  if constexpr (KIND == 2) {
    if (lane() == 0) write_real(a.y + y_at(a, row), shift + log_of(total.sum));
  } else {
    // Of a row with inf there is no distribution: NaN.
    const real sum = total.top == infinity() ? total.top - total.top : total.sum, scale = real(1) / sum, log_sum = log_of(sum);
    each_vector(n, [&](int k, index col) {
      const real(&v)[V] = x.at(k, col);
      real y[V];
#pragma unroll
      for (int j = 0; j < V; ++j) y[j] = KIND == 0 ? exp_of(v[j] - shift) * scale : v[j] - shift - log_sum;
      store_real<V>(a.y + (y_at(a, row) + col), y);
    });
  }
}
