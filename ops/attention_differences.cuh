// Sums over the places with one difference of query and key: of what the blocks of tiles of OWN queries have left
// (b, h, tiles, width), in the order of the tiles. Element d of a tile is element d + OWN tile of the result (b, h, count).
extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
  const index head = index(blockIdx.x), b = head / index(a.heads), h = head - b * index(a.heads);
  const index at = index(blockIdx.y) * 256 + index(threadIdx.x), width = index(a.width);
  if (at >= index(a.count)) return;
  real sum = 0;
  for (index tile = 0; tile < index(a.tiles); ++tile) {
    const index d = at - tile * OWN;
    if (d >= 0 && d < width) sum += a.from[(i64(head) * a.tiles + tile) * a.width + d];
  }
  a.to[b * a.to_batch + h * a.to_head + at] = sum;
}
