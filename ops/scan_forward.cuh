// The selective scan, forward; ops/scan.cuh stands before it.

// y of ROUND steps from the parts of s.
DEVICE void finish_round(const Args& a, const Place& p, index begin, const Steps& steps, int first,
                         const real (&part)[ROUND][PART_ROW]) {
  each<ROUND * (CHANNELS / V)>([&](int i) {
    const int k = i / (CHANNELS / V), c = i % (CHANNELS / V) * V;
    if (begin + k >= index(a.length) || c >= p.width) return;
    const index row = p.batch * index(a.length) + begin + k, column = p.channel + c;
    real s[V] = {}, y[V];
#pragma unroll
    for (int slice = 0; slice < SLICES; ++slice) {
      real x[V];
      load<V>(&part[k][slice * CHANNELS + c], x);
#pragma unroll
      for (int j = 0; j < V; ++j) s[j] += x[j];
    }
    if constexpr (has_D) {
      real D[V], u[V];
      load_real<V>(a.D + column, D);
      load<V>(&steps.u[first + k][c], u);
#pragma unroll
      for (int j = 0; j < V; ++j) s[j] += D[j] * u[j];
    }
    out_of<V>(a, p.b, p.t + begin + k, column, s, y);
    store_real<V>(a.y + (row * index(a.y_row) + column), y);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  __shared__ Steps steps;
  __shared__ __align__(16) real B[ROUND][PADDED], C[ROUND][PADDED], part[ROUND][PART_ROW];
  const Place p = place_of(a);
  const Owner o = owner_of(p);
  const index length = index(a.length), chunks = (length + CHUNK - 1) / CHUNK;
  const index state_row = p.batch * index(a.channels) + o.column;
  real A2[S], h[S] = {}, delta_sum = 0;
  load_owned(o, a.A + o.column * index(a.A_row), 1, A2);
#pragma unroll
  for (int j = 0; j < S; ++j) A2[j] *= real(LOG2_E);
  if constexpr (has_initial) load_owned(o, a.initial + state_row * index(a.initial_row), 1, h);
  for (index begin = 0; begin < length; begin += CHUNK) {
    if constexpr (has_kept)
      store_owned(o, a.kept + ((p.batch * chunks + begin / CHUNK) * N * index(a.kept_row) + o.column), index(a.kept_row), h);
    __syncthreads();  // everybody has finished the chunk before
    stage_steps(a, p, begin, steps);
    if constexpr (has_delta_sum) {
      __syncthreads();
      delta_sum += sum_of_delta(o, steps);
    }
    for (int round = 0; round < CHUNK && begin + round < length; round += ROUND) {
      stage_round(a, p, begin + round, B, C);
      __syncthreads();
      advance<ROUND, has_y>(o, A2, steps, round, B, C, h, part);
      __syncthreads();
      if constexpr (has_y) finish_round(a, p, begin + round, steps, round, part);
    }
  }
  if constexpr (has_last) store_owned(o, a.last + state_row * index(a.last_row), 1, h);
  if constexpr (has_delta_sum)
    if (o.slice == 0 && o.channel < p.width) a.delta_sum[state_row] = delta_sum;
}
