// The products of attention on tensor cores: bf16 by bf16, added up in fp32. Fragments as PTX defines them for
// mma.sync.m16n8k16. jit/fragments.cuh stands before this, ops/attention.cuh behind it.
constexpr int UNIT = 16;
constexpr bool ASYNC = false, SWIZZLED = true;
template <int LEFT, int N>
DEVICE void finish(real (&)[N][4]) {}
DEVICE void publish() {}

DEVICE real power_of_two(real x) { return exp2_of(x); }

DEVICE u32 address_of(const Element* at) { return u32(__cvta_generic_to_shared(at)); }
// From a place in one of the first 16 features of a tile to that `columns`, a multiple of 16, behind it: in a swizzled tile the
// chunks of a row are reached by xor.
template <class Tile>
DEVICE u32 columns_on(u32 at, int columns) {
  return (at ^ u32(columns % 64 * 2)) + u32(columns / 64 * Tile::BLOCK);
}

// The warp's 16 rows of a tile in shared memory, as left operand of products. HELD: in registers, from hold() on.
template <class Own, bool HELD>
class OwnRows {
 public:
  DEVICE OwnRows(const Element* tile, int row) {
    const int lane = int(threadIdx.x % 32);
    at_ = address_of(tile + Own::at(row + lane % 16, lane / 16 * 8));
  }
  DEVICE void hold() {
    if constexpr (HELD) {
#pragma unroll
      for (int k = 0; k < Own::WIDTH / 16; ++k) load_matrices(columns_on<Own>(at_, 16 * k), held_[k]);
    }
  }
  // x (16 x 8 N) = these rows times 8 N rows of `other`.
  template <class Other, int N>
  DEVICE void times(const Element* other, real (&x)[N][4]) const {
    const int lane = int(threadIdx.x % 32);
    const u32 from = address_of(other + Other::at(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8));
#pragma unroll
    for (int n = 0; n < N; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < Own::WIDTH / 16; ++k) {
      u32 a[4];
      if constexpr (HELD) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = held_[k][i];
      } else {
        load_matrices(columns_on<Own>(at_, 16 * k), a);
      }
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        u32 b[4];
        load_matrices(columns_on<Other>(from, 16 * k) + n * 8 * 128, b);
        multiply_add(x[n], a, b[0], b[1]);
        multiply_add(x[n + 1], a, b[2], b[3]);
      }
    }
  }

 private:
  u32 at_, held_[HELD ? Own::WIDTH / 16 : 1][4];
};

// Weights (16 x 8 N), rounded to bf16.
template <int N>
class Weights {
 public:
  DEVICE void take(const real (&w)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) words_[k][i] = pack_bf16(w[2 * k + i / 2][i % 2 * 2], w[2 * k + i / 2][i % 2 * 2 + 1]);
  }
  // acc (16 x 8 M) += these times 8 N rows of `other`, from `feature` on.
  template <class Other, int M>
  DEVICE void times(const Element* other, int feature, real (&acc)[M][4]) const {
    const int lane = int(threadIdx.x % 32);
    const int row = lane % 16, column = lane / 16 * 8 + feature;
    const u32 from = address_of(other + Other::at(row, column));
#pragma unroll
    for (int k = 0; k < N / 2; ++k)
#pragma unroll
      for (int m = 0; m < M; m += 2) {
        u32 b[4];
        const u32 at = SLICES == 1 ? columns_on<Other>(from, 8 * m) : address_of(other + Other::at(row, column + 8 * m));
        load_transposed(at + k * 16 * 128, b);
        multiply_add(acc[m], words_[k], b[0], b[1]);
        multiply_add(acc[m + 1], words_[k], b[2], b[3]);
      }
  }

 private:
  u32 words_[N / 2][4];
};
