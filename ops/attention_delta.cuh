// delta (b, h, tq): the sum of dO O over the features of a head. Eight lanes have a row.
extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
  constexpr int CHUNK = 16 / int(sizeof(Element)), LANES = 8;
  const i64 row = (i64(blockIdx.x) * 256 + threadIdx.x) / LANES;
  const int lane = int(threadIdx.x) % LANES;
  real sum = 0;
  if (row < a.rows) {
    const i64 head = row / a.tq, i = row - head * a.tq, b = head / a.heads, h = head - b * a.heads;
    const Element* const o = a.o + (b * a.o_batch + h * a.o_head + i * a.o_time);
    const Element* const g = a.g + (b * a.g_batch + h * a.g_head + i * a.g_time);
    for (int c = lane * CHUNK; c < DV; c += LANES * CHUNK) {
      real x[CHUNK], y[CHUNK];
      load_real<CHUNK>(o + c, x);
      load_real<CHUNK>(g + c, y);
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) sum += x[k] * y[k];
    }
  }
  sum = warp_fold<LANES>(sum, Sum());
  if (row < a.rows && lane == 0) a.delta[row] = sum;
}
