// The gradients of keys and values whose list was cut: the sums of what its runs have left, in their order. A thread has two
// neighbouring features of a key. ops/attention.cuh stands before it.
extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
  constexpr int WIDTH = (DK + DV) / 2;
  const int at = int(blockIdx.y) * 256 + int(threadIdx.x), row = at / WIDTH, c = at % WIDTH * 2;
  const index b = index(blockIdx.x) / index(a.groups), g = index(blockIdx.x) - b * index(a.groups);
  const Item item = item_at(a.sums, list_at(a.keys_lists, g) * gridDim.z + blockIdx.z);
  const index key = index(item.tile) * OWN + row;
  if (item.tile < 0 || row >= OWN || key >= index(a.tk)) return;
  real sum[2] = {};
  for (int part = item.first; part < item.last; ++part) {
    real x[2];
    load<2>(a.parts + ((i64(part) * gridDim.x + blockIdx.x) * OWN + row) * (DK + DV) + c, x);
    sum[0] += x[0], sum[1] += x[1];
  }
  if (c < DK)
    store_real<2>(a.dk + (i64(b) * a.dk_batch + i64(g) * a.dk_head + i64(key) * a.dk_time + c), sum);
  else
    store_real<2>(a.dv + (i64(b) * a.dv_batch + i64(g) * a.dv_head + i64(key) * a.dv_time + c - DK), sum);
}
