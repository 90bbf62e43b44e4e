// Copies a chunk of one parameter a block from a bucket, and its bf16 twin with it, unless a step was bad. Blocks and segments
// as in chunks_cuda.h; a segment is {from, param, the twin or null, elements}.

template <int V>
DEVICE void place(const Param* from, Param* p, bf16* twin, i64 i) {
  real x[V];
  load_real<V>(from + i, x);
  store_real<V>(p + i, x);
  if (twin) store_real<V>(twin + i, x);
}

extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  if (*a.bad_step != 0) return;
  const u64 block = u64(a.blocks[blockIdx.x]);
  const i64* segment = a.segments + 4 * (block >> 32);
  const i64 begin = i64(u32(block)) * CHUNK, n = min_of(segment[3] - begin, i64(CHUNK));
  const Param* from = reinterpret_cast<const Param*>(segment[0]) + begin;
  Param* p = reinterpret_cast<Param*>(segment[1]) + begin;
  bf16* twin = segment[2] ? reinterpret_cast<bf16*>(segment[2]) + begin : nullptr;
  const i64 whole = n / 4 * 4;  // both begin at multiples of 16 bytes (optim/shards.cpp)
  for (i64 i = 4 * threadIdx.x; i < whole; i += 4 * T) place<4>(from, p, twin, i);
  if (whole + threadIdx.x < n) place<1>(from, p, twin, whole + threadIdx.x);
}
