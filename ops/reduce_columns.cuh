// Folds over an axis with neighbouring columns behind it. A block: LANES vectors of V columns by STRIPS interleaved strips of a
// part of the reduced axis, which then fold each other pairwise.
extern "C" __global__ void __launch_bounds__(LANES * STRIPS, 1) KERNEL(PARAMETERS) {
  __shared__ real strips[STRIPS][V][LANES];
  const int lane = threadIdx.x % LANES, strip = threadIdx.x / LANES;
  const index tiles = index(a.tiles), task = index(blockIdx.x) / tiles;  // (outer, part)
  const index i = ((index(blockIdx.x) - task * tiles) * LANES + lane) * V;
  const index outer = task / index(a.parts), part = task - outer * index(a.parts);
  const index begin = part * index(a.chunk), limit = begin + index(a.chunk);
  const index end = limit < index(a.reduced) ? limit : index(a.reduced);
  Folded share[V];
  if (i < index(a.inner)) {
    const index sub = i / index(a.columns), col = i - sub * index(a.columns), subs = index(a.inner) / index(a.columns);
    constexpr int FEW = 4;  // rows in flight, folded before they are added to the rest
    for (index first = begin + strip; first < end; first += FEW * STRIPS) {
      real x[FEW][V];
#pragma unroll
      for (int k = 0; k < FEW; ++k) {
        const index r = first + k * STRIPS < end ? first + k * STRIPS : first;
        source<V>(a, (outer * index(a.reduced) + r) * subs + sub, col, x[k]);
      }
#pragma unroll
      for (int j = 0; j < V; ++j) {
#pragma unroll
        for (int k = 1; k < FEW; ++k) x[0][j] = fold(x[0][j], first + k * STRIPS < end ? x[k][j] : nothing());
        share[j].add(x[0][j]);
      }
    }
  }
  real total[V];
#pragma unroll
  for (int j = 0; j < V; ++j) total[j] = share[j].value();
#pragma unroll
  for (int s = STRIPS / 2; s > 0; s /= 2) {
    if (strip >= s && strip < 2 * s) {
#pragma unroll
      for (int j = 0; j < V; ++j) strips[strip][j][lane] = total[j];
    }
    __syncthreads();
    if (strip < s) {
#pragma unroll
      for (int j = 0; j < V; ++j) total[j] = fold(total[j], strips[strip + s][j][lane]);
    }
  }
  if (strip > 0 || i >= index(a.inner)) return;
  const index sub = i / index(a.out_columns), col = i - sub * index(a.out_columns);
  store_real<V>(a.out + (out_at(a, task * (index(a.inner) / index(a.out_columns)) + sub) + col), total);
}
