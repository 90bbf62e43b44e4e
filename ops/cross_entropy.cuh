// Loss and log-sum-exp, as a shift and a logarithm, of rows of logits (v), each read once. A row with the ignored label has
// loss 0. SMOOTHED: the target is 1 - e at the label plus e / v everywhere.
extern "C" __global__ void __launch_bounds__(BLOCK, 1) KERNEL(PARAMETERS) {
  const index v = index(a.v), rows = index(a.rows);
  const index at = index(blockIdx.x) * ROWS + block_row(), row = at < rows ? at : rows - 1;
  const i64 label = a.labels[labels_at(a, row)];
  const bool counts = label != a.ignore && label >= 0 && label < a.v;

  ExpSum total;
  real first[1] = {0}, distance = 0;  // distance: sum of first - x, differences that keep their digits for large logits
  RowSum distances;
  if constexpr (SMOOTHED) {
    if (counts) source<1>(a, row, 0, first);
    if (!(abs_of(first[0]) < infinity())) first[0] = 0;
  }
  each_vector(counts ? v : 0, [&](int, index col) {
    real x[V];
    source<V>(a, row, col, x);
    total.add(x);
    if constexpr (SMOOTHED) {
#pragma unroll
      for (int j = 0; j < V; ++j) distances.add(first[0] - x[j]);
    }
  });
  total.join_row();
  if constexpr (SMOOTHED) distance = row_sum(distances.value());
  if (at >= rows || lane() > 0) return;

  real loss = 0, top = 0, log_sum = 0;
  if (counts) {
    top = total.shift(), log_sum = log_of(total.sum);
    real target[1];
    source<1>(a, row, index(label), target);
    real e = 0;
    if constexpr (SMOOTHED) e = a.smoothing();
    loss = log_sum + (real(1) - e) * (top - target[0]);
    if constexpr (SMOOTHED) loss += e / real(v) * (distance + real(v) * (top - first[0]));
  } else if (label != a.ignore) {
    raise(a.status, BAD_LABEL, label, a.v, row);
  }
  if constexpr (has_loss) write_real(a.loss + row, loss);
  if constexpr (has_lse) write_real(a.lse + 2 * row, top), write_real(a.lse + (2 * row + 1), log_sum);
}
