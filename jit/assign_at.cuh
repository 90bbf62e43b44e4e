// Rows of a dense value (rows, columns) into a ring of `capacity` rows, from row `constants[position]` on.

extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * T + threadIdx.x;
  if (i >= a.vectors) return;
  const i64 row = i / a.columns, column = i - row * a.columns;  // columns: vectors of V elements
  i64 at = (i64(a.constants[a.position]) + row) % a.capacity;
  if (at < 0) at += a.capacity;
  Element x[V];
  load<V>(a.value + i * V, x);
  store<V>(a.state + (at * a.columns + column) * V, x);
}
