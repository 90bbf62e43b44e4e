// What kernels over rows share. Facts: V neighbouring columns are handled at once; THREADS work on a row: a power of two up to
// a warp, or the whole block; ROWS rows a block; HELD vectors of its row are kept by a thread, 0 where rows are too long; FULL:
// those of all threads are a row, so that a thread's reads need no branches and are under way together.
constexpr int BLOCK = THREADS * ROWS;
constexpr int AHEAD = sizeof(real) == 4 ? 4 : 1;  // vectors in flight where a row is streamed

DEVICE int lane() { return threadIdx.x % THREADS; }       // of the row
DEVICE int block_row() { return threadIdx.x / THREADS; }  // of the block

// Of the THREADS of a row, known to all of them. Every thread of the block must take part.
template <class Fold>
DEVICE real row_fold(real x, real nothing, Fold fold) {
  if constexpr (THREADS > 32) {
    __shared__ real shared[32];
    return block_fold<THREADS>(x, nothing, fold, shared);
  } else {
    return warp_fold<THREADS>(x, fold);
  }
}
DEVICE real row_sum(real x) { return row_fold(x, real(0), Sum()); }
DEVICE real row_max(real x) { return row_fold(x, -infinity(), Max()); }

// A thread's share of a sum over a row: a long one where rows are streamed, which have any length.
struct RowSum : LongSum<real> {
  DEVICE void add(real x) {
    if constexpr (HELD > 0)
      high += x;
    else
      LongSum<real>::add(x);
  }
};

// f(k, col) for each vector of this thread in a row of n columns; k is its place in registers.
template <class F>
DEVICE void each_vector(index n, F f) {
  if constexpr (HELD > 0) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      const index col = (k * THREADS + lane()) * V;
      if (FULL || col < n) f(k, col);
    }
  } else {
#pragma unroll AHEAD
    for (index col = lane() * V; col < n; col += THREADS * V) f(0, col);
  }
}

// A row as its threads see it: read(k, col, x) is called once a vector where a thread can keep its share, else in every pass.
template <class Read>
struct Row {
  Read read;
  real held[HELD > 0 ? HELD : 1][V];

  DEVICE Row(index n, Read r) : read(r) {
    if constexpr (HELD > 0) each_vector(n, [&](int k, index col) { read(k, col, held[k]); });
  }
  DEVICE real (&at(int k, index col))[V] {
    if constexpr (HELD == 0) read(k, col, held[0]);
    return held[k];
  }
};

// The sum of exp(x - shift) of a row in one pass. The shift is the largest x so far, or 0 where that is infinite, so that a row
// of -inf sums to 0 and one with inf to inf; any NaN makes the sum NaN.
struct ExpSum {
  real top = -infinity(), sum = 0;  // sum: after join_row
  RowSum share;

  DEVICE real shift() const { return abs_of(top) < infinity() ? top : real(0); }
  DEVICE void raise_to(real high) {
    const real before = shift();
    top = high;
    if (share.high == real(0)) return;
    const real factor = exp_of(before - shift());
    share.high *= factor, share.low *= factor;
  }
  DEVICE void add(const real (&x)[V]) {
    real high = top;
#pragma unroll
    for (int j = 0; j < V; ++j) high = x[j] > high ? x[j] : high;
    if (high > top) raise_to(high);
    const real s = shift();
    real few = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) few += exp_of(x[j] - s);
    share.add(few);
  }
  DEVICE void join_row() {  // the same in all threads of the row
    raise_to(row_max(top));
    sum = row_sum(share.value());
  }
};
