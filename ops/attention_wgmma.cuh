// The products of attention by wgmma, for sm_90a: bf16 by bf16, added up in fp32; ops/attention.cuh stands behind this. A block
// is one warpgroup, whose accumulators lie as those of mma.sync. Products run on while the warps do something else: what begins
// one says so, and its result, the registers and the tiles that it reads may be touched after finish() alone.
constexpr int UNIT = 16;
constexpr bool ASYNC = true, SWIZZLED = true;
DEVICE real power_of_two(real x) { return exp2_of(x); }

// Orders the registers that a product reads before it.
template <int N, int M>
DEVICE void settle(real (&x)[N][M]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int m = 0; m < M; ++m) asm volatile("" : "+f"(x[n][m])::"memory");
}
DEVICE void begin_product() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void end_product() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all products but the last LEFT; x is a result.
template <int LEFT, int N>
DEVICE void finish(real (&x)[N][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
  settle(x);
}
// What this thread has copied or stored becomes visible to products, after the next barrier.
DEVICE void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A tile (Tile in ops/attention.cuh) from its first row on as wgmma takes it: blocks of 64 features, swizzled by 128 bytes,
// `block` bytes apart, in which groups of eight rows are 1024 bytes apart. Whether a row is one of the matrix or one of its
// transpose, the product says. Its units are 16 bytes.
DEVICE u64 descriptor(const Element* tile, int block) {
  const u32 address = u32(__cvta_generic_to_shared(tile));
  return u64((address & 0x3ffff) >> 4) | u64(block >> 4) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}
// Units from the start of a tile to 16 features from `feature` on.
template <class Tile>
DEVICE constexpr int units_to(int feature) { return (feature / 64 * Tile::BLOCK + feature % 64 * 2) >> 4; }

// The block's rows of a tile in shared memory, as left operand of products.
template <class Own, bool HELD>
class OwnRows {
 public:
  DEVICE OwnRows(const Element* tile, int) : rows_(descriptor(tile, Own::BLOCK)) {}
  DEVICE void hold() {}
  // Begins x (64 x 8 N) = these rows times the 8 N rows of `other`.
  template <class Other, int N>
  DEVICE void times(const Element* other, real (&x)[N][4]) const {
    const u64 columns = descriptor(other, Other::BLOCK);
    begin_product();
    Wgmma<8 * N>::multiply(x, rows_, columns);
#pragma unroll
    for (int k = 16; k < Own::WIDTH; k += 16)
      Wgmma<8 * N>::multiply_add(x, rows_ + units_to<Own>(k), columns + units_to<Other>(k));
    end_product();
  }

 private:
  u64 rows_;
};

// Weights (64 x 8 N), rounded to bf16.
template <int N>
class Weights {
 public:
  DEVICE void take(const real (&w)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) words_[k][i] = pack_bf16(w[2 * k + i / 2][i % 2 * 2], w[2 * k + i / 2][i % 2 * 2 + 1]);
  }
  // Begins acc (64 x 8 M) += these times the 8 N rows of `other`.
  template <class Other, int M>
  DEVICE void times(const Element* other, int, real (&acc)[M][4]) {
    const u64 rows = descriptor(other, Other::BLOCK);
#pragma unroll
    for (int k = 0; k < N / 2; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(words_[k][i])::"memory");
    settle(acc);
    begin_product();
#pragma unroll
    for (int k = 0; k < N / 2; ++k) Wgmma<8 * M>::weigh(acc, words_[k], rows + (k * 16 * 128 >> 4));
    end_product();
  }

 private:
  u32 words_[N / 2][4];
};
