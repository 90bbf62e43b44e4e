// to = from[0] + from[1] + ... in this order: `parts` partial sums of `count` elements each, V of them a thread.
extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
  const i64 first = (i64(blockIdx.x) * 256 + threadIdx.x) * V;
  if (first >= a.count) return;
  const index at = index(first), row = at / index(a.columns), column = at % index(a.columns);
  real sum[V] = {};
#pragma unroll 4
  for (index part = 0; part < index(a.parts); ++part) {
    real x[V];
    load<V>(a.from + (part * index(a.count) + at), x);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += x[j];
  }
  store_real<V>(a.to + (row * index(a.to_row) + column), sum);
}
