// Folds rows of `reduced` neighbouring elements, in `parts` parts each. Rows of the source are shorter where its leaves do not
// walk the reduced axes as one: WHOLE tells that they do.
extern "C" __global__ void __launch_bounds__(BLOCK, 1) KERNEL(PARAMETERS) {
  const index at = index(blockIdx.x) * ROWS + block_row(), tasks = index(a.tasks);
  const index task = at < tasks ? at : tasks - 1;
  const index row = task / index(a.parts), part = task - row * index(a.parts);
  const index begin = part * index(a.chunk), left = index(a.reduced) - begin;
  const index count = left < index(a.chunk) ? left : index(a.chunk);
  Folded share;
  each_vector(count, [&](int, index i) {
    real x[V];
    if constexpr (WHOLE) {
      source<V>(a, row, begin + i, x);
    } else {
      const index element = row * index(a.reduced) + begin + i, r = element / index(a.columns);
      source<V>(a, r, element - r * index(a.columns), x);
    }
#pragma unroll
    for (int j = 1; j < V; ++j) x[0] = fold(x[0], x[j]);
    share.add(x[0]);
  });
  const real total = row_fold(share.value(), nothing(), fold);
  if (at < tasks && lane() == 0) write_real(a.out + out_at(a, task), total);
}
