// out[id] = the sum of values over the positions of id, which stand together in `sorted`, ascending. The positions are cut
// into chunks. JOIN 0: a block a chunk (blockIdx.x) adds its positions in order; an id within the chunk is finished, of one
// that goes beyond it the sum is kept: in heads if it began before the chunk, else in tails. JOIN 1: the block of the chunk in
// which such an id begins adds its tail and the heads that follow.
DEVICE i64 id_at(const Args& a, index i) { return a.ids[ids_at(a, index(a.sorted[i]))]; }

template <class T>
DEVICE void store_sums(T* to, const LongSum<real> (&sums)[V]) {
  real x[V];
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = sums[j].value();
  store_real<V>(to, x);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
  const index chunk = index(blockIdx.x), begin = chunk * index(a.chunk), count = index(a.count);
  const index end = begin + index(a.chunk) < count ? begin + index(a.chunk) : count;
  const index d = index(a.d), col = (index(blockIdx.y) * THREADS + threadIdx.x) * V;
  if (col >= d) return;
  LongSum<real> sums[V];
  auto put = [&](i64 id) {
    if (id >= 0 && id < a.v) store_sums(a.out + (index(id) * index(a.out_row) + col), sums);
  };

  if constexpr (JOIN) {
    const i64 id = id_at(a, end - 1);
    const bool begins = begin == 0 || id_at(a, begin - 1) != id || id_at(a, begin) != id;
    if (end == count || !begins || id_at(a, end) != id) return;
    real x[V];
    load_real<V>(a.tails + (chunk * d + col), x);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[j].add(x[j]);
    for (index next = chunk + 1, at = end; at < count && id_at(a, at) == id; ++next, at += index(a.chunk)) {
      load_real<V>(a.heads + (next * d + col), x);
#pragma unroll
      for (int j = 0; j < V; ++j) sums[j].add(x[j]);
    }
    put(id);
  } else {
    bool before = begin > 0 && id_at(a, begin - 1) == id_at(a, begin);  // the running id began before the chunk
    i64 id = id_at(a, begin);
    constexpr int AHEAD = 4;  // rows in flight
    for (index i = begin; i < end; i += AHEAD) {
      real x[AHEAD][V];
      i64 ids[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        const index at = i + k < end ? i + k : end - 1;
        ids[k] = id_at(a, at);
        load_real<V>(a.values + (index(a.sorted[at]) * index(a.values_row) + col), x[k]);
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        if (i + k >= end) break;
        if (ids[k] != id) {
          if (before) store_sums(a.heads + (chunk * d + col), sums);
          else put(id);
          before = false, id = ids[k];
#pragma unroll
          for (int j = 0; j < V; ++j) sums[j] = {};
        }
#pragma unroll
        for (int j = 0; j < V; ++j) sums[j].add(x[k][j]);
      }
    }
    if (before) store_sums(a.heads + (chunk * d + col), sums);
    else if (end < count && id_at(a, end) == id) store_sums(a.tails + (chunk * d + col), sums);
    else put(id);
  }
}
