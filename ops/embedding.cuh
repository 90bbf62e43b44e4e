// out[i] = weight[ids[i]], a vector of V columns a thread.
extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= a.vectors) return;
  const index row = index(i) / index(a.columns), col = (index(i) - row * index(a.columns)) * V;
  const i64 id = a.ids[ids_at(a, row)];
  if (id < 0 || id >= a.v) {
    if (col == 0) raise(a.status, BAD_ID, id, a.v, row);
    return;
  }
  Item x[V];
  load<V>(a.weight + (index(id) * index(a.weight_row) + col), x);
  store<V>(a.out + (row * index(a.out_row) + col), x);
}
