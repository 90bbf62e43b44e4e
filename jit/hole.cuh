// What gradients of holes are summed with.

// Sums over the rows that a block walks, of N values a column. In shared memory, as registers are scarce where gradients are
// made: a thread adds vectors of V columns, always the same ones, to elements of its own.
template <int N, int V, int THREADS>
struct ColumnSums {
  real at[N][THREADS][V];
  DEVICE void clear() {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < V; ++j) at[n][threadIdx.x][j] = 0;
  }
  DEVICE void add(int n, const real (&x)[V]) {
    real sum[V];
    load<V>(at[n][threadIdx.x], sum);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += x[j];
    store<V>(at[n][threadIdx.x], sum);
  }
  // Of a column of the block's COLUMNS, whose vectors are dealt out to the threads in turn; after a barrier.
  template <int COLUMNS>
  DEVICE real total(int n, int column) const {
    real sum = 0;
    for (int thread = column / V; thread < THREADS; thread += COLUMNS / V) sum += at[n][thread][column % V];
    return sum;
  }
};
template <int V, int THREADS>
struct ColumnSums<0, V, THREADS> {
  DEVICE void clear() {}
};
