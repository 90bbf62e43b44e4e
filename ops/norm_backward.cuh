// dx = r (g - mean(g) - xh mean(g xh)) with g = dy w and xh = (x - mean) r; mean(g) is left out unless CENTERED. dy is the
// gradient of xh w + b, which the hole makes of that value and the gradient of the result; of dx the hole `in`, whose result x
// is, makes what is stored (IN: it is filled; NEEDS_DX: dx is wanted). Blocks stride over the rows; each writes its sums of
// dy xh and dy as row blockIdx.x of dw and db (gridDim.x, n). GUESTS: values made of dx are stored besides it, or
// instead. RESIDENT: blocks that a multiprocessor should hold.
constexpr int PLACES = HELD > 0 ? HELD : 1;

// Sums of columns over the rows of a block: a thread keeps those of its vectors in registers; where rows are too long for that
// they stand in the result, still written by their thread alone.
struct ColumnSums {
  real held[PLACES][V];

  DEVICE ColumnSums() {
#pragma unroll
    for (int k = 0; k < PLACES; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) held[k][j] = 0;
  }
  template <class T>
  DEVICE void add(int k, index col, const real (&x)[V], T* result, bool first) {
    if constexpr (HELD == 0) {
      if (first) {
#pragma unroll
        for (int j = 0; j < V; ++j) held[0][j] = 0;
      } else {
        load_real<V>(result + col, held[0]);
      }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) held[k][j] += x[j];
    if constexpr (HELD == 0) store_real<V>(result + col, held[0]);
  }
  // Where several rows share the block, their sums are added in order.
  template <class T>
  DEVICE void finish(index n, T* result) {
    if constexpr (ROWS > 1) {
      __shared__ real all[ROWS][PLACES][V][THREADS];
#pragma unroll
      for (int k = 0; k < PLACES; ++k)
#pragma unroll
        for (int j = 0; j < V; ++j) all[block_row()][k][j][lane()] = held[k][j];
      __syncthreads();
      for (index col = threadIdx.x; col < n; col += BLOCK) {
        const int vector = int(col) / V;
        LongSum<real> sum;
        for (int row = 0; row < ROWS; ++row) sum.add(all[row][vector / THREADS][int(col) % V][vector % THREADS]);
        write_real(result + col, sum.value());
      }
      __syncthreads();
    } else if constexpr (HELD > 0) {
      each_vector(n, [&](int k, index col) { store_real<V>(result + col, held[k]); });
    }
  }
};

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT) KERNEL(PARAMETERS) {
  const index n = index(a.n), rows = index(a.rows);
  auto* dw = a.dw + i64(blockIdx.x) * n;
  auto* db = a.db + i64(blockIdx.x) * n;
  const real share = real(1) / real(n);  // of a column in a mean
  ColumnSums dw_sums, db_sums;
  bool first = true;
  for (i64 base = i64(blockIdx.x) * ROWS; base < rows; base += i64(gridDim.x) * ROWS, first = false) {
    const bool live = base + block_row() < rows;
    const index row = live ? index(base) + block_row() : rows - 1;
    const real mean = CENTERED ? real(read_real(a.stats + row * index(a.stats_row))) : real(0);
    const real r = read_real(a.stats + (row * index(a.stats_row) + 1));
    Row x(n, [&](int, index col, real (&v)[V]) { norm_input(a, row, col, v); });
    Row dy(n, [&](int k, index col, real (&v)[V]) {
      const real(&xs)[V] = x.at(k, col);
      real value[V], g[V];
      norm_value(a, col, xs, mean, r, value);
      gradient<V>(a, row, col, g);
      out_gradients<V>(a, row, col, value, g, v, live);
    });
    real sum = 0, dot = 0;
    if constexpr (NEEDS_DX) {
      RowSum sums, dots;
      each_vector(n, [&](int k, index col) {
        const real(&xs)[V] = x.at(k, col);
        const real(&gs)[V] = dy.at(k, col);
        real w[V];
        if constexpr (has_weight) load_real<V>(a.weight + col, w);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const real g = has_weight ? gs[j] * w[j] : gs[j];
          sums.add(g);
          dots.add(g * (xs[j] - mean));
        }
      });
      sum = CENTERED ? row_sum(sums.value()) : real(0);
      dot = row_sum(dots.value());
    }
    if (!live) continue;
    const real shift = sum * share, slope = dot * r * share;
    constexpr bool later = GUESTS && HELD > 0;  // stored after the last read
    Guest<V> guests[later ? PLACES : 1];
    real made[later && has_dx && !IN ? PLACES : 1][V];
    each_vector(n, [&](int k, index col) {
      const real(&xs)[V] = x.at(k, col);
      const real(&gs)[V] = dy.at(k, col);
      real w[V], dx[V], dwx[V];
      if constexpr (has_weight && NEEDS_DX) load_real<V>(a.weight + col, w);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const real xh = (xs[j] - mean) * r;
        dx[j] = r * ((has_weight ? gs[j] * w[j] : gs[j]) - shift - xh * slope);
        dwx[j] = gs[j] * xh;
      }
      if constexpr (IN) {
        real given[V], stored[V];
        source<V>(a, row, col, given);
        in_gradients<V>(a, row, col, given, dx, stored, true);
        if constexpr (GUESTS) guests[later ? k : 0].make(a, row, col, stored);
      } else if constexpr (later && has_dx) {
#pragma unroll
        for (int j = 0; j < V; ++j) made[k][j] = dx[j];
      } else if constexpr (has_dx) {
        store_real<V>(a.dx + (row * index(a.dx_row) + col), dx);
      }
      if constexpr (GUESTS && !IN) guests[later ? k : 0].make(a, row, col, dx);
      if constexpr (GUESTS && !later) guests[0].store(a, row, col);
      if constexpr (has_dw) dw_sums.add(k, col, dwx, dw, first);
      if constexpr (has_db) db_sums.add(k, col, gs, db, first);
    });
    if constexpr (later)
      each_vector(n, [&](int k, index col) {
        if constexpr (has_dx && !IN) store_real<V>(a.dx + (row * index(a.dx_row) + col), made[k]);
        guests[k].store(a, row, col);
      });
  }
  if constexpr (has_dw) dw_sums.finish(n, dw);
  if constexpr (has_db) db_sums.finish(n, db);
}
