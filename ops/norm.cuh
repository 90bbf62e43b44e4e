// y = out((x - mean) r w + b) over rows (n), x = in(source), r = 1 / sqrt(mean of (x - mean)^2 + eps); CENTERED: the mean is
// the row's, else 0. GUESTS: values made of `source` are stored besides (IN: the hole `in` is filled).
extern "C" __global__ void __launch_bounds__(BLOCK, 1) KERNEL(PARAMETERS) {
  const index n = index(a.n), rows = index(a.rows);
  const index at = index(blockIdx.x) * ROWS + block_row(), row = at < rows ? at : rows - 1;
  Row x(n, [&](int, index col, real (&v)[V]) { norm_input(a, row, col, v); });
  real mean = 0;
  RowSum square;
  if constexpr (CENTERED) {
    RowSum sum;
    each_vector(n, [&](int k, index col) {
      const real(&v)[V] = x.at(k, col);
#pragma unroll
      for (int j = 0; j < V; ++j) sum.add(v[j]);
    });
    mean = row_sum(sum.value()) / real(n);
  }
  each_vector(n, [&](int k, index col) {
    const real(&v)[V] = x.at(k, col);
#pragma unroll
    for (int j = 0; j < V; ++j) square.add((v[j] - mean) * (v[j] - mean));
  });
  const real r = rsqrt_of(row_sum(square.value()) / real(n) + a.eps());
  if (at >= rows) return;
  if constexpr (GUESTS)
    each_vector(n, [&](int k, index col) {
      Guest<V> guest;
      if constexpr (IN) {
        real given[V];
        source<V>(a, row, col, given);
        guest.make(a, row, col, given);
      } else {
        guest.make(a, row, col, x.at(k, col));
      }
      guest.store(a, row, col);
    });
  if (has_stats && lane() == 0) {
    write_real(a.stats + row * index(a.stats_row), mean);
    write_real(a.stats + (row * index(a.stats_row) + 1), r);
  }
  if constexpr (has_y) {
    each_vector(n, [&](int k, index col) {
      const real(&v)[V] = x.at(k, col);
      real y[V], result[V];
      norm_value(a, col, v, mean, r, y);
      out_of<V>(a, row, col, y, result);
      store_real<V>(a.y + (row * index(a.y_row) + col), result);
    });
  }
}
