// softmax, log_softmax and logsumexp of rows (n). KIND: 0, 1, 2.
extern "C" __global__ void __launch_bounds__(BLOCK, 1) KERNEL(PARAMETERS) {
  const index n = index(a.n), rows = index(a.rows);
  const index at = index(blockIdx.x) * ROWS + block_row(), row = at < rows ? at : rows - 1;
  Row x(n, [&](int, index col, real (&v)[V]) { source<V>(a, row, col, v); });
  ExpSum total;
  each_vector(n, [&](int k, index col) { total.add(x.at(k, col)); });
  total.join_row();
  if (at >= rows) return;
  const real shift = total.shift(), lse = shift + log_of(total.sum), scale = real(1) / total.sum;
  if constexpr (KIND == 2) {
    if (lane() == 0) write_real(a.y + y_at(a, row), lse);
  } else {
    each_vector(n, [&](int k, index col) {
      const real(&v)[V] = x.at(k, col);
      real y[V];
#pragma unroll
      for (int j = 0; j < V; ++j) y[j] = KIND == 0 ? exp_of(v[j] - shift) * scale : v[j] - lse;
      store_real<V>(a.y + (y_at(a, row) + col), y);
    });
  }
}
