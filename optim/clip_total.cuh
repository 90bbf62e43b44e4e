// The norm from `count` sums of squares, added by one block in a fixed order.

extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  __shared__ double shared[32];
  double sum = 0;
  for (i64 i = threadIdx.x; i < a.count; i += T) sum += a.partial[i];
  sum = block_sum<T>(sum, shared);
  if (threadIdx.x == 0) write_real(a.norm, sqrt(sum));
}
