// One digit of a stable radix sort of positions by id, in chunks of positions; a block a chunk, a warp a run of it. SCATTER: 0
// counts each digit in each chunk, 1 places the positions. FIRST: the ids stand in the order of their positions. Ids outside of
// [0, v) come last if it DROPS them; else they are checked, since a step that wants the gradient of an embedding alone has no
// forward kernel that does.
constexpr int WARPS = THREADS / 32;

struct Entry {
  i64 id;
  i32 position;
  int digit;
};
DEVICE Entry entry_at(const Args& a, index i) {
  Entry e;
  e.position = FIRST ? i32(i) : a.positions[i];
  e.id = a.ids[ids_at(a, index(e.position))];
  if (DROPS && (e.id < 0 || e.id > a.v)) e.id = a.v;
  e.digit = int(u64(e.id) >> SHIFT) & (DIGITS - 1);
  return e;
}

// f(i, inside) for each element of this warp's run, 32 at a time: all lanes take part.
template <class F>
DEVICE void each_element(const Args& a, F f) {
  const index run = index(a.chunk) / WARPS, begin = index(blockIdx.x) * index(a.chunk) + index(threadIdx.x / 32) * run;
  for (index i = begin; i < begin + run && i < index(a.count); i += 32) {
    const index at = i + index(threadIdx.x % 32);
    f(at, at < index(a.count));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
  __shared__ i32 next[WARPS][DIGITS];  // elements of each digit in each run; then where the next of them goes
  const int warp = threadIdx.x / 32;
  for (int k = threadIdx.x; k < WARPS * DIGITS; k += THREADS) next[k / DIGITS][k % DIGITS] = 0;
  __syncthreads();
  each_element(a, [&](index i, bool inside) {
    if (!inside) return;
    const Entry e = entry_at(a, i);
    if (FIRST && !SCATTER && !DROPS && (e.id < 0 || e.id >= a.v)) raise(a.status, BAD_ID, e.id, a.v, i);
    atomicAdd(&next[warp][e.digit], 1);
  });
  __syncthreads();

  const int digit = threadIdx.x;  // THREADS == DIGITS
  if constexpr (!SCATTER) {
    i32 total = 0;
    for (int w = 0; w < WARPS; ++w) total += next[w][digit];
    a.counts[i64(blockIdx.x) * DIGITS + digit] = total;
  } else {
    // Before this chunk's elements of a digit: all those of smaller digits, and those of earlier chunks.
    __shared__ i32 sums[DIGITS];
    i32 total = 0, before = 0;
    for (int c = 0; c < int(gridDim.x); ++c) {
      const i32 n = a.counts[i64(c) * DIGITS + digit];
      total += n;
      if (c < int(blockIdx.x)) before += n;
    }
    sums[digit] = total;
    __syncthreads();
    for (int d = 1; d < DIGITS; d *= 2) {
      const i32 lower = digit >= d ? sums[digit - d] : 0;
      __syncthreads();
      sums[digit] += lower;
      __syncthreads();
    }
    i32 start = sums[digit] - total + before;
    for (int w = 0; w < WARPS; ++w) {
      const i32 n = next[w][digit];
      next[w][digit] = start;
      start += n;
    }
    __syncthreads();
    each_element(a, [&](index i, bool inside) {
      const Entry e = inside ? entry_at(a, i) : Entry{0, 0, DIGITS};
      const u32 same = __match_any_sync(FULL_WARP, e.digit), lower = same & ((1u << (threadIdx.x % 32)) - 1);
      const i32 to = inside ? next[warp][e.digit] + __popc(lower) : 0;
      __syncwarp();
      if (inside) {
        a.sorted[to] = e.position;
        if (lower == 0) next[warp][e.digit] += __popc(same);
      }
      __syncwarp();
    });
  }
}
