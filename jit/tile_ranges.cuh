// The smallest and the largest value of a tensor of integers or booleans in each tile of one axis of a mask (jit/tiles.h). A
// warp has a tile; `to` is (batch, heads, tiles, 2).

extern "C" __global__ void __launch_bounds__(32 * WARPS) KERNEL(PARAMETERS) {
  const i64 n = i64(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (n >= a.count) return;
  const i64 row = n / a.tiles, first = (n - row * a.tiles) * a.tile, b = row / a.heads, h = row - b * a.heads;
  const Element* const x = a.x + (b * a.batch_step + h * a.head_step);
  const i64 end = first + a.tile < a.places ? first + a.tile : a.places;
  i64 low = i64(value_at(x + first * a.step)), high = low;
  for (i64 at = first + threadIdx.x % 32; at < end; at += 32) {
    const i64 value = i64(value_at(x + at * a.step));
    low = min_of(low, value), high = max_of(high, value);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    low = min_of(low, i64(__shfl_xor_sync(FULL_WARP, low, d)));
    high = max_of(high, i64(__shfl_xor_sync(FULL_WARP, high, d)));
  }
  if (threadIdx.x % 32 == 0) a.to[2 * n] = low, a.to[2 * n + 1] = high;
}
