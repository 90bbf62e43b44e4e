// out[id] = the sum of values over the positions of id, which stand together in `sorted`, ascending. The positions are cut
// into chunks. JOIN 0: a block a chunk (blockIdx.x) adds its positions in order; an id within the chunk is finished, of one
// that goes beyond it the sum is kept: in heads if it began before the chunk, else in tails. JOIN 1: the block of the chunk in
// which such an id begins adds its tail and the heads that follow.
DEVICE i64 id_at(const Args& a, index i) { return a.ids[ids_at(a, index(a.sorted[i]))]; }

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
  const index chunk = index(blockIdx.x), begin = chunk * index(a.chunk), count = index(a.count);
  const index end = begin + index(a.chunk) < count ? begin + index(a.chunk) : count;
  const index d = index(a.d), col = (index(blockIdx.y) * THREADS + threadIdx.x) * V;
  if (col >= d) return;
  real sum[V];
  auto put = [&](i64 id) {
    if (id >= 0 && id < a.v) store_real<V>(a.out + (index(id) * index(a.out_row) + col), sum);
  };

  if constexpr (JOIN) {
    const i64 id = id_at(a, end - 1);
    const bool begins = begin == 0 || id_at(a, begin - 1) != id || id_at(a, begin) != id;
    if (end == count || !begins || id_at(a, end) != id) return;
    load_real<V>(a.tails + (chunk * d + col), sum);
    for (index next = chunk + 1, at = end; at < count && id_at(a, at) == id; ++next, at += index(a.chunk)) {
      real x[V];
      load_real<V>(a.heads + (next * d + col), x);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += x[j];
    }
    put(id);
  } else {
    bool before = begin > 0 && id_at(a, begin - 1) == id_at(a, begin);  // the running id began before the chunk
    i64 id = id_at(a, begin);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = 0;
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
          if (before) store_real<V>(a.heads + (chunk * d + col), sum);
          else put(id);
          before = false, id = ids[k];
#pragma unroll
          for (int j = 0; j < V; ++j) sum[j] = 0;
        }
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += x[k][j];
      }
    }
    if (before) store_real<V>(a.heads + (chunk * d + col), sum);
    else if (end < count && id_at(a, end) == id) store_real<V>(a.tails + (chunk * d + col), sum);
    else put(id);
  }
}
