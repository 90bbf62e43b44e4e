// The sums of `parts` arrays of `count` partial sums each, in a fixed order: the first `split` elements are those of `first`,
// the others those of `second`. A block: LANES vectors of V elements by STRIPS strips. Strip s adds parts s, s + STRIPS, ...
// in this order, FEW at a time; then the strips are added, in order or, PAIRWISE, as a tree.
extern "C" __global__ void __launch_bounds__(LANES * STRIPS) KERNEL(PARAMETERS) {
  const int lane = threadIdx.x % LANES, strip = threadIdx.x / LANES;
  const index i = (index(blockIdx.x) * LANES + lane) * V;
  const bool live = i < index(a.count);
  LongSum<real> share[V];
  if (live) {
    constexpr int FEW = 8;  // parts that are under way together, and are added before they go into a long sum
    index part = strip;
    for (; part + (FEW - 1) * STRIPS < index(a.parts); part += FEW * STRIPS) {
      real few[V] = {};
#pragma unroll
      for (int k = 0; k < FEW; ++k) {
        real x[V];
        load_real<V>(a.from + ((part + k * STRIPS) * index(a.stride) + i), x);
#pragma unroll
        for (int j = 0; j < V; ++j) few[j] += x[j];
      }
#pragma unroll
      for (int j = 0; j < V; ++j) share[j].add(few[j]);
    }
    for (; part < index(a.parts); part += STRIPS) {
      real x[V];
      load_real<V>(a.from + (part * index(a.stride) + i), x);
#pragma unroll
      for (int j = 0; j < V; ++j) share[j].add(x[j]);
    }
  }
  real sum[V];
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = share[j].value();
  if constexpr (STRIPS > 1) {
    __shared__ real sums[STRIPS][V][LANES];
    // In each round strips [begin, end) are added to strip 0, or each of them to the one `begin` before it.
#pragma unroll
    for (int begin = PAIRWISE ? STRIPS / 2 : 1, end = STRIPS; begin > 0; end = begin, begin /= 2) {
      if (strip >= begin && strip < end) {
#pragma unroll
        for (int j = 0; j < V; ++j) sums[strip][j][lane] = sum[j];
      }
      __syncthreads();
      if (strip < begin) {
#pragma unroll
        for (int k = begin; k < end; k += begin)
#pragma unroll
          for (int j = 0; j < V; ++j) sum[j] += sums[strip + k][j][lane];
      }
    }
    if (strip > 0) return;
  }
  if (!live) return;
  if (has_second && i >= index(a.split)) {
    const index at = i - index(a.split), row = at / index(a.second_columns);
    store_real<V>(a.second + (row * index(a.second_row) + (at - row * index(a.second_columns)) * index(a.second_col)), sum);
  } else {
    const index row = i / index(a.first_columns);
    store_real<V>(a.first + (row * index(a.first_row) + (i - row * index(a.first_columns)) * index(a.first_col)), sum);
  }
}
