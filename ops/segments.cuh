// borders[i] = 1 where an id is not that of the place before, in rows of `length`.
extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= a.count) return;
  const i64 id = a.ids[ids_at(a, index(i))], before = i % a.length == 0 ? id : i64(a.ids[ids_at(a, index(i - 1))]);
  if (id < before) raise(a.status, FALLS, id, before, i);
  a.borders[i] = id != before;
}
