// Sums of squares, in fp64: of each chunk of each gradient one, added by clip_total.cuh. Blocks and segments as in
// chunks_cuda.h; a segment is {gradient, elements, dtype}. The order depends on places in the tensor alone, not on whether they
// can be loaded as vectors, and is the CPU's too (clip.cpp).

template <class G>
DEVICE double sum_of_squares(const G* x, i64 n) {
  const bool vectors = u64(x) % (4 * sizeof(G)) == 0;
  double sums[4] = {};
  for (i64 i = 4 * threadIdx.x; i < n; i += 4 * T) {
    double v[4];
    if (vectors && i + 4 <= n) {
      load_real<4>(x + i, v);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = i + j < n ? double(read_real(x + i + j)) : 0.0;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if constexpr (sizeof(G) == 8)
        sums[j] = __dadd_rn(sums[j], product(v[j], v[j]));
      else
        sums[j] += v[j] * v[j];  // the product is exact, fused or not
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  __shared__ double shared[32];
  const u64 block = u64(a.blocks[blockIdx.x]);
  const i64* segment = a.segments + 3 * (block >> 32);
  const i64 begin = i64(u32(block)) * CHUNK, n = min_of(segment[1] - begin, i64(CHUNK));
  const i64 x = segment[0];
  double sum;
  switch (segment[2]) {
    case F32: sum = sum_of_squares(reinterpret_cast<const float*>(x) + begin, n); break;
    case BF16: sum = sum_of_squares(reinterpret_cast<const bf16*>(x) + begin, n); break;
    default: sum = sum_of_squares(reinterpret_cast<const double*>(x) + begin, n);
  }
  sum = block_sum<T>(sum, shared);
  if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}
