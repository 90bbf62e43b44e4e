// The first kernel of ssd; ops/ssd.cuh stands before it. Of each row and chunk: the steps. Of each chunk of a group: C B^T, by
// one of the blocks that have it. Of each segment but the last: what it adds to the state, and its decay.

constexpr int EACH = Q / 32;  // steps of a lane
constexpr int RT = PT / 16 / WARPS_OF_ROW;

// What is read of a lane's steps.
struct Read {
  real raw[EACH] = {};
  bool border[EACH] = {};  // a document begins
};
DEVICE void read_steps(const Args& a, const Place& p, int j, index t, int lane, Read& to) {
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const index at = t + EACH * lane + i;
    to.raw[i] = 0;
    if (at < index(a.length) && j < p.live) {
      to.raw[i] = real(read_real(a.dt + (p.batch * a.dt_batch + at * a.dt_time + head_of(a, p, j) * a.dt_head)));
      if constexpr (has_borders) to.border[i] = a.borders[p.batch * a.length + at] != 0;
    }
  }
}
// The steps of row j of the chunk at step t, to shared and to global memory.
DEVICE void make_steps(const Args& a, const Place& p, int j, index t, int lane, const Read& read, float* to) {
  const bool live = j < p.live;
  const index head = head_of(a, p, live ? j : 0);
  const float rate = live ? float(read_real(a.A + head)) * float(LOG2_E) : 0.0f;
  float size[EACH], log_decay[EACH], sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const index at = t + EACH * lane + i;
    const real v[1] = {read.raw[i]};
    real step[1] = {0};
    if (at < index(a.length) && live) step_of<1>(a, p.batch, at, head, v, step);
    size[i] = float(step[0]);
    sum += read.border[i] ? LEAST_LOG : max_of(size[i] * rate, LEAST_LOG);
    log_decay[i] = sum;
  }
  float before = sum;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float other = __shfl_up_sync(FULL_WARP, before, d);
    if (lane >= d) before += other;
  }
  before -= sum;
  const float all = __shfl_sync(FULL_WARP, before + sum, 31);
  float facts[STEP_FACTS][EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const float log = before + log_decay[i];
    facts[LOG_DECAY][i] = log, facts[STEP][i] = size[i];
    facts[TO_END][i] = size[i] * exp2_of(all - log), facts[FROM_START][i] = exp2_of(log);
  }
#pragma unroll
  for (int f = 0; f < STEP_FACTS; ++f) {
    store<EACH>(to + f * Q + EACH * lane, facts[f]);
    if (live) store<EACH>(a.steps + (row_of(a, p, j) * a.chunks + t / Q) * STEPS + f * Q + EACH * lane, facts[f]);
  }
}

// C B^T of a chunk from tiles in shared memory, matrices of 16 x 16 shared out among the warps.
DEVICE void store_products(const Args& a, const Place& p, u32 c, u32 b, index chunk, int warp, int lane) {
  constexpr int TILES = Q / 16 * (Q / 16 + 1) / 2;
  bf16* const to = a.products + ((i64(p.batch) * a.groups + p.group) * a.chunks + chunk) * (Q * Q);
#pragma unroll 1
  for (int tile = warp; tile < TILES; tile += WARPS) {
    int row = 0;
    while ((row + 1) * (row + 2) / 2 <= tile) ++row;
    const int column = tile - row * (row + 1) / 2;
    const u32 left = left_at<NP>(c, lane) + place<NP>(16 * row, 0),
              right = right_of_rows_at<NP>(b, lane) + place<NP>(16 * column, 0);
    float x[2][4] = {};
#pragma unroll
    for (int n = 0; n < NT; n += 16) {
      u32 f[4], g[4];
      load_matrices(left + place<NP>(0, n), f);
      load_matrices(right + place<NP>(0, n), g);
      multiply_add(x[0], f, g[0], g[1]), multiply_add(x[1], f, g[2], g[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const real pair[2] = {x[n][2 * r], x[n][2 * r + 1]};
        store_real<2>(to + (16 * row + 8 * r + lane / 4) * Q + 16 * column + 8 * n + lane % 4 * 2, pair);
      }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  float* const steps = reinterpret_cast<float*>(memory);  // of FEW chunks: a warp makes those of one, with its row
  constexpr int FEW = WARPS_OF_ROW;
  const u32 xs = shared_address(steps + FEW * HEADS * STEPS), bs = xs + STAGES * HEADS * place<XP>(Q, 0),
            cs = bs + STAGES * place<NP>(Q, 0);
  const Place p = place_of(a, index(blockIdx.y));
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, row = warp / WARPS_OF_ROW, part = warp % WARPS_OF_ROW;
  const bool adds = p.segment + 1 < index(a.segments);
  const auto copy = [&](int k) {
    if (k < p.chunks) {
      const int stage = k % STAGES, thread = this_thread();
      const index t = (p.begin + k) * Q;
      if (adds) copy_features(a, p, thread, xs + stage * HEADS * place<XP>(Q, 0), a.x, a.x_batch, a.x_time, a.x_head, t);
      copy_states(a, p, thread, bs + stage * place<NP>(Q, 0), a.B, a.B_batch, a.B_time, a.B_group, t);
    }
    commit_copies();
  };
  copy(0);
  State<RT> state;
  Read read;
  float total = 0;
  const auto read_few = [&](int k) {
    if (k + part < p.chunks) read_steps(a, p, row, (p.begin + k + part) * Q, lane, read);
  };
  const auto make_few = [&](int k) {
    if (k + part < p.chunks) make_steps(a, p, row, (p.begin + k + part) * Q, lane, read, steps + (part * HEADS + row) * STEPS);
  };
  read_few(0);
  make_few(0);
#pragma unroll 1
  for (int k = 0; k < p.chunks; ++k) {
    if (STAGES == 1 && k > 0) {
      __syncthreads();
      copy(k);
    }
    wait_for_copies<0>();
    __syncthreads();
    if (k > 0 && k % FEW == 0) {
      make_few(k);
      __syncthreads();
    }
    const bool has_products = (p.begin + k) % index(a.parts) == p.part;
    if (has_products) {
      copy_states(a, p, this_thread(), cs, a.C, a.C_batch, a.C_time, a.C_group, (p.begin + k) * Q);
      commit_copies();
    }
    if (STAGES == 2) copy(k + 1);
    if ((k + 1) % FEW == 0) read_few(k + 1);
    const u32 b = bs + k % STAGES * place<NP>(Q, 0);
    const float* const facts = steps + (k % FEW * HEADS + row) * STEPS;
    total += facts[LOG_DECAY * Q + Q - 1];
    if (adds)
      state.advance<TO_END>(left_transposed_at<XP>(xs, lane) + place<XP>((k % STAGES * HEADS + row) * Q, part * RT * 16),
                            right_of_columns_at<NP>(b, lane), facts, lane);
    if (has_products) {
      wait_for_copies<STAGES - 1>();
      __syncthreads();
      store_products(a, p, cs, b, p.begin + k, warp, lane);
    }
  }
  if (!adds) return;
  if (row >= p.live) return;
  const i64 to = row_of(a, p, row) * a.segments + p.segment;
  state.store_rounded(a.added + to * (PT * NT), part, lane);
  if (part == 0 && lane == 0) a.decays[to] = total;
}
