// What the kernels of ssd share (ops/ssd_gpu.h has the formulas); jit/fragments.cuh stands before this. Time is cut into
// chunks of Q steps, and those into segments, which run side by side. A block has up to HEADS rows of a group, a row being PT
// features of one head (a head of more features is several rows that have the same steps). States are (features, N) for each
// row, in fp32 in the accumulators of products of bf16; what lies outside of the tensors is zeros, as a step of 0 leaves a
// state as it is.
//
// Facts: P features of a head, N states; PT, Q; HEADS; WARPS of a block; STAGES of what is copied to shared memory, so that the
// next chunk may be under way; BLOCKS that a multiprocessor must be able to hold. Some kernels share the features of a row
// among WARPS_OF_ROW warps.

constexpr int SLICES = (P + PT - 1) / PT, NT = (N + 15) / 16 * 16, THREADS = 32 * WARPS;
// Elements between rows of tiles in shared memory: an odd number of 16 bytes, so that eight rows that are read at once lie in
// different banks.
constexpr int XP = PT + 8, NP = NT + 8, QP = Q + 8;
// Of each step of a row (the logarithms to base 2): the sum of the logarithms of the decays of its chunk up to it, the step
// size, what is left of the step at the end of the chunk, what is left at the step of what was there before the chunk.
enum StepFact { LOG_DECAY, STEP, TO_END, FROM_START, STEP_FACTS };
constexpr int STEPS = STEP_FACTS * Q;
// The logarithm of a decay goes down to here, where no power of two is more than zero in fp32: a step that decays more leaves
// the sums after it their digits. The first step of a packed document has this one. From ZERO_LOG on a decay is zero.
constexpr float LEAST_LOG = -200, ZERO_LOG = -150;

// ---- instructions -----------------------------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
// 16 bytes, or zeros, for which nothing is read.
DEVICE void copy_16(u32 to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>  // groups that may still be under way
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

DEVICE float low_of(u32 x) { return as_float(x << 16); }
DEVICE float high_of(u32 x) { return as_float(x & 0xffff0000u); }
DEVICE u32 scaled(u32 x, float low, float high) { return pack_bf16(low_of(x) * low, high_of(x) * high); }

// Where a lane reads in a tile of bf16 whose rows lie PITCH elements apart, from row 0 and column 0 of 16 x 16 elements; add
// place<PITCH>(row, column). As left operand, rows by rows; transposed, as one whose rows are the columns of the tile; as right
// operand whose columns are the rows of the tile; as one whose columns are those of the tile.
template <int PITCH>
DEVICE u32 place(int row, int column) {
  return u32(row * PITCH + column) * 2;
}
template <int PITCH>
DEVICE u32 left_at(u32 tile, int lane) {
  return tile + place<PITCH>(lane & 15, lane >> 4 << 3);
}
template <int PITCH>
DEVICE u32 left_transposed_at(u32 tile, int lane) {  // load_transposed
  return tile + place<PITCH>((lane >> 4 << 3) + (lane & 7), lane & 8);
}
template <int PITCH>
DEVICE u32 right_of_rows_at(u32 tile, int lane) {  // load_matrices: two fragments, of rows 0 and of rows 8
  return tile + place<PITCH>((lane >> 4 << 3) + (lane & 7), lane & 8);
}
template <int PITCH>
DEVICE u32 right_of_columns_at(u32 tile, int lane) {  // load_transposed: two fragments, of columns 0 and of columns 8
  return tile + place<PITCH>(lane & 15, lane >> 4 << 3);
}

// The number of the thread. What follows from it is computed again at each place that asks, and not kept in registers.
DEVICE int this_thread() {
  u32 thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return int(thread);
}

// ---- what a block has -------------------------------------------------------------------------------------------------------

// Rows [first, first + live) of a group of a batch element, chunks [begin, begin + chunks) of a segment.
struct Place {
  index batch, group, part, first;
  int live;
  index segment, begin;
  int chunks;
};
DEVICE Place place_of(const Args& a, index segment) {
  const index parts = index(a.parts), groups = index(a.groups), block = index(blockIdx.x), rest = block / parts;
  const index part = block - rest * parts, batch = rest / groups, first = part * HEADS, left = index(a.members) - first;
  const index begin = segment * index(a.segment_chunks), chunks = index(a.chunks) - begin;
  return {batch,
          rest - batch * groups,
          part,
          first,
          int(left < HEADS ? left : HEADS),
          segment,
          begin,
          int(chunks < index(a.segment_chunks) ? chunks : index(a.segment_chunks))};
}
DEVICE index head_of(const Args& a, const Place& p, int j) { return p.group * index(a.group_heads) + (p.first + j) / SLICES; }
DEVICE int slice_of(const Place& p, int j) { return SLICES == 1 ? 0 : int((p.first + j) % SLICES); }
// Of all rows of all batch elements.
DEVICE i64 row_of(const Args& a, const Place& p, int j) {
  return (i64(p.batch) * a.groups + p.group) * a.members + p.first + j;
}

// ---- copies to shared memory ------------------------------------------------------------------------------------------------

// A tile of ROWS x WIDTH, of which so many rows and columns exist.
template <int ROWS, int WIDTH>
DEVICE void copy_tile(int thread, u32 to, const bf16* from, index stride, index rows, int columns) {
  constexpr int CHUNKS = WIDTH / 8, PITCH = WIDTH + 8;
  if constexpr (THREADS % CHUNKS == 0) {
    constexpr int STEP = THREADS / CHUNKS;
    const int row = thread / CHUNKS, column = thread % CHUNKS * 8;
    const index left = column < columns ? rows - row : index(0);
    from += row * stride + column, to += place<PITCH>(row, column);
#pragma unroll
    for (int k = 0; k < ROWS; k += STEP) {
      if (ROWS % STEP == 0 || row + k < ROWS) copy_16(to + place<PITCH>(k, 0), from, left > k);
      from += STEP * stride;
    }
  } else {
#pragma unroll
    for (int n = 0; n < ROWS * CHUNKS; n += THREADS) {
      const int at = n + thread, row = at / CHUNKS, column = at % CHUNKS * 8;
      if (ROWS * CHUNKS % THREADS == 0 || at < ROWS * CHUNKS)
        copy_16(to + place<PITCH>(row, column), from + row * stride + column, (row < rows) & (column < columns));
    }
  }
}
// Tiles of Q x PT, for each of the block's rows, of a tensor (b, t, h, p), from step t on.
template <class T>
DEVICE void copy_features(const Args& a, const Place& p, int thread, u32 to, const T* from, i64 batch, i64 time, i64 head,
                          index t) {
#pragma unroll
  for (int j = 0; j < HEADS; ++j) {
    const int slice = slice_of(p, j), width = P - slice * PT < PT ? P - slice * PT : PT;
    const index at = p.batch * index(batch) + t * index(time) + (j < p.live ? head_of(a, p, j) * index(head) + slice * PT : 0);
    copy_tile<Q, PT>(thread, to + place<XP>(j * Q, 0), from + at, index(time), index(a.length) - t, j < p.live ? width : 0);
  }
}
// A tile of Q x N of a tensor (b, t, g, n).
DEVICE void copy_states(const Args& a, const Place& p, int thread, u32 to, const bf16* from, i64 batch, i64 time, i64 group,
                        index t) {
  copy_tile<Q, NT>(thread, to, from + (p.batch * index(batch) + t * index(time) + p.group * index(group)), index(time),
                   index(a.length) - t, N);
}
// C B^T of a chunk: what lies left of the diagonal, and the matrices of 16 x 16 on it.
template <class Arguments>  // which not every kernel has
DEVICE void copy_products(const Arguments& a, const Place& p, int thread, u32 to, index chunk) {
  const bf16* const from = a.products + ((i64(p.batch) * a.groups + p.group) * a.chunks + chunk) * (Q * Q);
#pragma unroll
  for (int n = 0; n < Q * Q / 8; n += THREADS) {
    const int at = n + thread, row = at / (Q / 8), column = at % (Q / 8) * 8;
    if (Q * Q / 8 % THREADS == 0 || at < Q * Q / 8) copy_16(to + place<QP>(row, column), from + at * 8, column < (row | 15));
  }
}
// The steps of a chunk.
DEVICE void copy_steps(const Args& a, const Place& p, int thread, float* to, index chunk) {
#pragma unroll
  for (int n = 0; n < HEADS * STEPS / 4; n += THREADS) {
    const int at = n + thread, j = at / (STEPS / 4), k = at % (STEPS / 4) * 4;
    if (HEADS * STEPS / 4 % THREADS == 0 || at < HEADS * STEPS / 4)
      copy_16(shared_address(to + j * STEPS + k), a.steps + (row_of(a, p, j < p.live ? j : 0) * a.chunks + chunk) * STEPS + k,
              j < p.live);
  }
}

// ---- the state --------------------------------------------------------------------------------------------------------------

// Between kernels a state is rounded: each lane has 16 bytes of 16 x 16 elements.
DEVICE Words4* rounded_at(bf16* state, int tile, int n, int lane) {  // of features 16 tile .., states 16 n ..
  return reinterpret_cast<Words4*>(state) + (tile * (NT / 16) + n) * 32 + lane;
}
DEVICE void decay_and_add(float (&x)[2][4], const Words4& z, float decay) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float(&y)[4] = x[k / 2];
    y[k % 2 * 2] = y[k % 2 * 2] * decay + low_of(z.w[k]), y[k % 2 * 2 + 1] = y[k % 2 * 2 + 1] * decay + high_of(z.w[k]);
  }
}

// A warp's RT * 16 features of the state of its row: x[m][n] has features 16 m .. of the warp's, states 16 n ...
template <int RT>
struct State {
  float x[RT][NT / 16][2][4] = {};

  // S = (decay of the chunk) S + sum over s of (FACT of step s) x_s B_s^T. `tile` and `b` are the lane's places in the tiles of
  // x, transposed from the warp's features on, and of B. With the gradient of s for x, and C for B, it is a step back of the
  // gradient of S.
  template <StepFact FACT>
  DEVICE void advance(u32 tile, u32 b, const float* steps, int lane) {
    const float decay = steps[FROM_START * Q + Q - 1];
#pragma unroll
    for (int m = 0; m < RT; ++m)
#pragma unroll
      for (int n = 0; n < NT / 16; ++n)
#pragma unroll
        for (int k = 0; k < 8; ++k) x[m][n][k / 4][k % 4] *= decay;
#pragma unroll
    for (int k = 0; k < Q; k += 16) {
      float w[2], v[2];
      load<2>(steps + FACT * Q + k + 2 * (lane % 4), w);
      load<2>(steps + FACT * Q + k + 8 + 2 * (lane % 4), v);
      u32 f[RT][4];
#pragma unroll
      for (int m = 0; m < RT; ++m) {
        load_transposed(tile + place<XP>(k, 16 * m), f[m]);
        f[m][0] = scaled(f[m][0], w[0], w[1]), f[m][1] = scaled(f[m][1], w[0], w[1]);
        f[m][2] = scaled(f[m][2], v[0], v[1]), f[m][3] = scaled(f[m][3], v[0], v[1]);
      }
#pragma unroll
      for (int n = 0; n < NT / 16; ++n) {
        u32 g[4];
        load_transposed(b + place<NP>(k, 16 * n), g);
#pragma unroll
        for (int m = 0; m < RT; ++m) multiply_add(x[m][n][0], f[m], g[0], g[1]), multiply_add(x[m][n][1], f[m], g[2], g[3]);
      }
    }
  }

  // `part`: of the warps of the row.
  DEVICE void store_rounded(bf16* state, int part, int lane) const {
#pragma unroll
    for (int m = 0; m < RT; ++m)
#pragma unroll
      for (int n = 0; n < NT / 16; ++n) {
        const float(&y)[2][4] = x[m][n];
        *rounded_at(state, part * RT + m, n, lane) = {pack_bf16(y[0][0], y[0][1]), pack_bf16(y[0][2], y[0][3]),
                                                      pack_bf16(y[1][0], y[1][1]), pack_bf16(y[1][2], y[1][3])};
      }
  }
};
// Two states of memory of any real type, VS of which can be moved at once.
template <int VS, class T>
DEVICE void load_pair(const T* from, float& x, float& y) {
  float v[2];
#pragma unroll
  for (int k = 0; k < 2; k += VS) {
    float w[VS];
    load_real<VS>(from + k, w);
#pragma unroll
    for (int j = 0; j < VS; ++j) v[k + j] = w[j];
  }
  x = v[0], y = v[1];
}
template <int VS, class T>
DEVICE void store_pair(T* to, float x, float y) {
  const float v[2] = {x, y};
#pragma unroll
  for (int k = 0; k < 2; k += VS) {
    float w[VS];
#pragma unroll
    for (int j = 0; j < VS; ++j) w[j] = v[k + j];
    store_real<VS>(to + k, w);
  }
}
