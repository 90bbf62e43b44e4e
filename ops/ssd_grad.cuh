// The gradients of ssd from e, that of s; ops/ssd.cuh stands before it. A block walks through the chunks of its segment from
// the last to the first, with dS, the gradient of the state after the chunk. With W_ts = e_t . x_s and L_ts the decay from s to
// t,
//   u_s = sum over t >= s of (C_t . B_s) L_ts e_t + (decay from s to the end) dS B_s;  dx_s = Delta_s u_s + D e_s
//   dB_s = sum over t of W_ts L_ts Delta_s C_t + (what is left of step s at the end) dS^T x_s
//   dC_t = sum over s of W_ts L_ts Delta_s B_s + (decay from the start to t) S^T e_t
//   dc_t = sum over s of M_ts W_ts + off_t - Delta_t (x_t . u_t), where off_t = C_t . (second part of dC_t)
//   dc_q += sum over s of rho_s + (decay of the chunk) <dS, S>, where rho_s = Delta_s x_s . (second part of u_s)
//   da_t = sum of dc from t on, up to a step whose decay is zero, and 0 of such a step
//   dDelta_t = x_t . u_t + A da_t;  dA = sum of Delta_t da_t;  dD = sum of x_t . e_t
// S is the state before the chunk, and q its last step.
// Facts besides those of ops/ssd.cuh: D_FEATURES: D is a number for each feature; OWN_STATE: S has memory of its own, and is
// not where dS was; STAGES: of x and e; VS: states of the last state's gradient and the first's that are moved at once.

constexpr int TIMES = Q / 16, PAIRS = TIMES * (TIMES + 1) / 2;         // tiles of steps; pairs of them, s of `at`, t of `to`
constexpr int TILES = HEADS * PT / 16, STATE_PARTS = WARPS / TILES;    // of features; so many warps share the states of one
constexpr int UNITS = NT / 16;                                         // of 16 states
constexpr int STATE_UNITS = (UNITS + STATE_PARTS - 1) / STATE_PARTS;   // of a warp, in dS
constexpr int SUM_PARTS = WARPS / TIMES, SUM_UNITS = (UNITS + SUM_PARTS - 1) / SUM_PARTS;  // likewise in dB and dC
constexpr int ROW_WARPS = WARPS / HEADS;
constexpr int FEATURE_PARTS = ROW_WARPS / TIMES < PT / 16 ? ROW_WARPS / TIMES : PT / 16;  // likewise of features in dx
constexpr int FEATURE_UNITS = PT / 16 / FEATURE_PARTS;
constexpr int EACH = Q / 32;  // steps of a lane
static_assert(ROW_WARPS >= TIMES && WARPS % TILES == 0 && WARPS % TIMES == 0, "each warp has one part of the work at most");

// Those that the pairs of tiles give are of two chunks by turns.
struct Sums {
  float column[2][HEADS][TIMES][Q];  // of M W over the steps s of a tile
  float direct[2][HEADS][TIMES][Q];  // of M W / Delta over the steps t of a tile
  float rho[HEADS][FEATURE_PARTS][Q];  // of x and the second part of u
  float off[HEADS][SUM_PARTS][Q];
  float states[WARPS];  // <dS, S>
  float skips[WARPS];   // of x . e
};

DEVICE int pair_of(int at, int to) { return to * (to + 1) / 2 + at; }

// Of the four lanes of a row: the sum of x[lane & 1].
DEVICE float quad_sum(const float (&x)[2], int lane) {
  const bool odd = lane & 1;
  const float y = (odd ? x[1] : x[0]) + __shfl_xor_sync(FULL_WARP, odd ? x[0] : x[1], 1);
  return y + __shfl_xor_sync(FULL_WARP, y, 2);
}
// Stores it, as the sum of row lane / 4, and of that row + 8.
DEVICE void store_quad_sum(const float (&x)[2], int lane, float* to) {
  const float sum = quad_sum(x, lane);
  if ((lane & 2) == 0) to[8 * (lane & 1) + lane / 4] = sum;
}
// Of x[2 k + i], columns 2 q + i of matrix k of the lanes 4 g + q, the sums over g.
DEVICE void store_column_sums(const float (&x)[4], int lane, float* to) {
  const bool second = lane & 16, odd = lane & 8;
  float y[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    y[i] = (second ? x[2 + i] : x[i]) + __shfl_xor_sync(FULL_WARP, second ? x[i] : x[2 + i], 16);
  float sum = (odd ? y[1] : y[0]) + __shfl_xor_sync(FULL_WARP, odd ? y[0] : y[1], 8);
  sum += __shfl_xor_sync(FULL_WARP, sum, 4);
  if ((lane & 4) == 0) to[(second ? 8 : 0) + lane % 4 * 2 + (odd ? 1 : 0)] = sum;
}
// Elements (columns 2 t, 2 t + 1 of two matrices of eight columns) of the lanes t of a row as four neighbours each: of the
// first matrix if t is even, else of the second.
DEVICE Words2 four_neighbours(u32 first, u32 second, int lane) {
  const bool odd = lane & 1;
  const u32 other = __shfl_xor_sync(FULL_WARP, odd ? first : second, 1);
  return {{odd ? other : first, odd ? second : other}};
}
DEVICE int four_neighbours_column(int lane) { return (lane & 1) * 8 + (lane & 2) * 2; }

// Where the state of a row lies in shared memory as ssd_out has kept it: matrices of 8 x 8. The lane's place as right operand
// whose columns are its states; add matrices_of(feature, state).
DEVICE u32 kept_at(u32 state, int lane) { return state + ((lane >> 3 & 1) * (NT / 8) + (lane >> 4)) * 128 + (lane & 7) * 16; }
DEVICE u32 matrices_of(int feature, int state) { return u32(feature / 8 * (NT / 8) + state / 8) * 128; }

// A warp's part of dS: states 16 (part + STATE_PARTS n) .. of 16 features of row `row`, tile `tile` of all rows.
struct Owned {
  int lane, tile, part, row, feature;  // feature: of the row, the lane's first
};
DEVICE Owned this_owned() {
  const int thread = this_thread(), warp = thread / 32, tile = warp / STATE_PARTS;
  return {thread % 32, tile, warp % STATE_PARTS, tile / (PT / 16), tile % (PT / 16) * 16 + thread % 32 / 4};
}
// f(row of (b, h, p), state, x, y) for each two neighbouring elements of it that exist.
template <class F>
DEVICE void each_pair(const Args& a, const Place& p, float (&dS)[STATE_UNITS][2][4], F f) {
  const Owned o = this_owned();
  if (o.row >= p.live) return;
  const i64 first = (p.batch * a.heads + head_of(a, p, o.row)) * P;
  const int slice = slice_of(p, o.row) * PT;
#pragma unroll
  for (int n = 0; n < STATE_UNITS; ++n)
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int feature = slice + o.feature + 8 * r, column = 16 * (o.part + STATE_PARTS * n) + 8 * k + o.lane % 4 * 2;
        if (o.feature + 8 * r < PT && feature < P && column < N)
          f(first + feature, column, dS[n][k][2 * r], dS[n][k][2 * r + 1]);
      }
}

// Of the steps s of tile `at` and t of tile `to`: M and W L Delta, transposed, as matrices of 8 x 8 in the order of a left
// operand, to `matrix` (16 bytes a lane) and `weight` (one matrix after the other); and the sums of M W.
DEVICE void weigh_tiles(u32 x, u32 e, u32 products, Words4* matrix, u32 weight, const float* steps, float* column,
                        float* direct, int at, int to, float& skip_sum) {
  const int lane = this_thread() % 32;
  float w[2][4] = {};
#pragma unroll
  for (int q = 0; q < PT / 16; ++q) {
    u32 f[4], g[4];
    load_matrices(left_at<XP>(x, lane) + place<XP>(16 * at, 16 * q), f);
    load_matrices(right_of_rows_at<XP>(e, lane) + place<XP>(16 * to, 16 * q), g);
    multiply_add(w[0], f, g[0], g[1]), multiply_add(w[1], f, g[2], g[3]);
  }
  u32 c[4];
  load_transposed(left_transposed_at<QP>(products, lane) + place<QP>(16 * to, 16 * at), c);
  const float* const of_s = steps + LOG_DECAY * Q + 16 * at + lane / 4;
  const float log_s[2] = {of_s[0], of_s[8]}, step[2] = {of_s[(STEP - LOG_DECAY) * Q], of_s[(STEP - LOG_DECAY) * Q + 8]};
  float columns[4] = {}, rows[2] = {};
  Words4 matrices;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float log_t[2];
    load<2>(steps + LOG_DECAY * Q + 16 * to + 8 * k + lane % 4 * 2, log_t);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float product[2] = {low_of(c[2 * k + r]), high_of(c[2 * k + r])};
      float m[2], g[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float decay = exp2_of(log_t[i] - log_s[r]);
        const int behind = 8 * k + lane % 4 * 2 + i - (8 * r + lane / 4);
        if (to == at && behind < 0) decay = 0.0f;
        if (to == at && behind == 0) skip_sum += w[k][2 * r + i];
        m[i] = product[i] * decay;
        const float both = w[k][2 * r + i] * m[i];
        rows[r] += both;
        columns[2 * k + i] += both * step[r];
        g[i] = w[k][2 * r + i] * (decay * step[r]);
      }
      matrices.w[2 * k + r] = pack_bf16(m[0], m[1]);
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(weight + (2 * k + r) * 128 + lane * 4), "r"(pack_bf16(g[0], g[1]))
                   : "memory");
    }
  }
  matrix[lane] = matrices;
  store_quad_sum(rows, lane, direct + to * Q + 16 * at);
  store_column_sums(columns, lane, column + at * Q + 16 * to);
}

// Of 16 steps s of row j, the warp's features: u and dx.
DEVICE void features_of_steps(const Args& a, const Place& p, index t0, u32 x, u32 e, u32 b, u32 d_state, const Words4* matrices,
                              const float* steps, Sums& sums, int j, int at, int part) {
  const int lane = this_thread() % 32, first = part * FEATURE_UNITS * 16;
  float u[2 * FEATURE_UNITS][4] = {};
#pragma unroll
  for (int n = 0; n < NT; n += 16) {
    u32 f[4];
    load_matrices(left_at<NP>(b, lane) + place<NP>(16 * at, n), f);
#pragma unroll
    for (int q = 0; q < FEATURE_UNITS; ++q) {
      u32 g[4];
      load_matrices(right_of_rows_at<NP>(d_state, lane) + place<NP>(first + 16 * q, n), g);
      multiply_add(u[2 * q], f, g[0], g[1]), multiply_add(u[2 * q + 1], f, g[2], g[3]);
    }
  }
  const float* const of_s = steps + LOG_DECAY * Q + 16 * at + lane / 4;
  const float last = steps[LOG_DECAY * Q + Q - 1], left[2] = {exp2_of(last - of_s[0]), exp2_of(last - of_s[8])};
  const float step[2] = {of_s[(STEP - LOG_DECAY) * Q], of_s[(STEP - LOG_DECAY) * Q + 8]};
  float rho[2] = {};
#pragma unroll
  for (int q = 0; q < FEATURE_UNITS; ++q) {
    u32 f[4];
    load_matrices(left_at<XP>(x, lane) + place<XP>(16 * at, first + 16 * q), f);
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float(&v)[4] = u[2 * q + k];
        v[2 * r] *= left[r], v[2 * r + 1] *= left[r];
        rho[r] += v[2 * r] * low_of(f[2 * k + r]) + v[2 * r + 1] * high_of(f[2 * k + r]);
      }
  }
  store_quad_sum(rho, lane, sums.rho[j][part] + 16 * at);
#pragma unroll 1
  for (int to = at; to < TIMES; ++to) {
    const Words4 m = matrices[pair_of(at, to) * 32 + lane];
#pragma unroll
    for (int q = 0; q < FEATURE_UNITS; ++q) {
      u32 g[4];
      load_transposed(right_of_columns_at<XP>(e, lane) + place<XP>(16 * to, first + 16 * q), g);
      multiply_add(u[2 * q], m.w, g[0], g[1]), multiply_add(u[2 * q + 1], m.w, g[2], g[3]);
    }
  }
  if constexpr (has_dx) {
    if (j >= p.live) return;
    const index head = head_of(a, p, j);
    const int slice = slice_of(p, j) * PT;
    const float skip = has_D && !D_FEATURES ? float(read_real(a.D + head)) : 0.0f;
    const index t = t0 + 16 * at + lane / 4;
    const int column = slice + first + four_neighbours_column(lane);
    bf16* const to = a.dx + (p.batch * index(a.dx_batch) + t * index(a.dx_time) + head * index(a.dx_head) + column);
#pragma unroll
    for (int q = 0; q < FEATURE_UNITS; ++q) {
      u32 ef[4];
      load_matrices(left_at<XP>(e, lane) + place<XP>(16 * at, first + 16 * q), ef);
      float skips[2][2] = {{skip, skip}, {skip, skip}};
      if constexpr (has_D && D_FEATURES)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int feature = slice + first + 16 * q + 8 * (k / 2) + lane % 4 * 2 + k % 2;
          skips[k / 2][k % 2] = feature < P ? float(read_real(a.D + (head * P + feature))) : 0.0f;
        }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        u32 pair[2];
#pragma unroll
        for (int k = 0; k < 2; ++k)
          pair[k] = pack_bf16(step[r] * u[2 * q + k][2 * r] + skips[k][0] * low_of(ef[2 * k + r]),
                              step[r] * u[2 * q + k][2 * r + 1] + skips[k][1] * high_of(ef[2 * k + r]));
        const Words2 four = four_neighbours(pair[0], pair[1], lane);
        if (t + 8 * r < index(a.length) && (P % PT == 0 || column + 16 * q < P))
          *reinterpret_cast<Words2*>(to + (8 * r * index(a.dx_time) + 16 * q)) = four;
      }
    }
  }
}

// Of 16 steps, rows of dB or, if C, of dC, the warp's units of states, summed over the block's rows. `rows`, `states`: x and
// dS, or e and S; `others`: C, or B.
template <bool OF_C>
DEVICE void states_of_steps(const Args& a, const Place& p, index t0, u32 rows, u32 states, u32 weights, u32 others, u32 c,
                            const float* steps, Sums& sums) {
  const int thread = this_thread(), lane = thread % 32, at = thread / 32 / SUM_PARTS, part = thread / 32 % SUM_PARTS;
  float g[SUM_UNITS][2][4] = {};
#pragma unroll
  for (int j = 0; j < HEADS; ++j) {
    float of_row[SUM_UNITS][2][4] = {};
#pragma unroll
    for (int q = 0; q < PT / 16; ++q) {
      u32 f[4];
      load_matrices(left_at<XP>(rows, lane) + place<XP>(j * Q + 16 * at, 16 * q), f);
#pragma unroll
      for (int n = 0; n < SUM_UNITS; ++n) {
        const int unit = part + SUM_PARTS * n;
        if (UNITS % SUM_PARTS != 0 && unit >= UNITS) break;
        u32 v[4];
        load_transposed(OF_C ? kept_at(states, lane) + matrices_of(j * PT + 16 * q, 16 * unit)
                             : right_of_columns_at<NP>(states, lane) + place<NP>(j * PT + 16 * q, 16 * unit),
                        v);
        multiply_add(of_row[n][0], f, v[0], v[1]), multiply_add(of_row[n][1], f, v[2], v[3]);
      }
    }
    const float* const factor = steps + j * STEPS + (OF_C ? FROM_START : TO_END) * Q + 16 * at + lane / 4;
    const float w[2] = {factor[0], factor[8]};
    float off[2] = {};
#pragma unroll
    for (int n = 0; n < SUM_UNITS; ++n) {
      const int unit = part + SUM_PARTS * n;
      if (UNITS % SUM_PARTS != 0 && unit >= UNITS) break;
      u32 v[4];
      if constexpr (OF_C) load_matrices(left_at<NP>(c, lane) + place<NP>(16 * at, 16 * unit), v);
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float x = of_row[n][k][2 * r] * w[r], y = of_row[n][k][2 * r + 1] * w[r];
          g[n][k][2 * r] += x, g[n][k][2 * r + 1] += y;
          if constexpr (OF_C) off[r] += x * low_of(v[2 * k + r]) + y * high_of(v[2 * k + r]);
        }
    }
    if constexpr (OF_C) store_quad_sum(off, lane, sums.off[j][part] + 16 * at);
  }
  // Rows t of the weights are columns of what is stored.
  const u32 place_of_lane = OF_C ? (lane >> 3 & 1) * 256 + (lane >> 4) * 128 + (lane & 7) * 16 : lane * 16;
#pragma unroll 1
  for (int i = OF_C ? 0 : at; i < (OF_C ? at + 1 : TIMES); ++i)
#pragma unroll
    for (int j = 0; j < HEADS; ++j) {
      u32 f[4];
      const u32 from = weights + (j * PAIRS + (OF_C ? pair_of(i, at) : pair_of(at, i))) * 512 + place_of_lane;
      if constexpr (OF_C)
        load_transposed(from, f);
      else
        load_matrices(from, f);
#pragma unroll
      for (int n = 0; n < SUM_UNITS; ++n) {
        const int unit = part + SUM_PARTS * n;
        if (UNITS % SUM_PARTS != 0 && unit >= UNITS) break;
        u32 v[4];
        load_transposed(right_of_columns_at<NP>(others, lane) + place<NP>(16 * i, 16 * unit), v);
        multiply_add(g[n][0], f, v[0], v[1]), multiply_add(g[n][1], f, v[2], v[3]);
      }
    }
  const index t = t0 + 16 * at + lane / 4;
  const int column = 16 * part + four_neighbours_column(lane);
  const i64 row = (i64((2 * p.part + OF_C) * index(a.batch) + p.batch) * a.length + t) * a.groups + p.group;
  bf16* const to = a.state_parts + (row * N + column);
#pragma unroll
  for (int n = 0; n < SUM_UNITS; ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Words2 four =
          four_neighbours(pack_bf16(g[n][0][2 * r], g[n][0][2 * r + 1]), pack_bf16(g[n][1][2 * r], g[n][1][2 * r + 1]), lane);
      if (t + 8 * r < index(a.length) && (N % (16 * SUM_PARTS) == 0 || column + 16 * SUM_PARTS * n < N))
        *reinterpret_cast<Words2*>(to + (8 * r * index(a.groups) * N + 16 * SUM_PARTS * n)) = four;
    }
}

// The gradients of the steps of row j, by one warp.
DEVICE void finish_steps(const Args& a, const Place& p, int k, const float* steps, const Sums& sums, int j, float& rate_sum) {
  const int lane = this_thread() % 32;
  const index head = head_of(a, p, j), t0 = (p.begin + k) * Q;
  float dc[EACH], direct[EACH], step[EACH], rho = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int t = EACH * lane + i;
    step[i] = steps[STEP * Q + t];
    float of_state = 0;
#pragma unroll
    for (int part = 0; part < FEATURE_PARTS; ++part) of_state += sums.rho[j][part][t];
    rho += step[i] * of_state, direct[i] = of_state;
#pragma unroll
    for (int tile = 0; tile < TIMES; ++tile)
      if (16 * tile + 15 >= t) direct[i] += sums.direct[k % 2][j][tile][t];
    float v = -step[i] * direct[i];
#pragma unroll
    for (int part = 0; part < SUM_PARTS; ++part) v += sums.off[j][part][t];
#pragma unroll
    for (int tile = 0; tile < TIMES; ++tile)
      if (16 * tile <= t) v += sums.column[k % 2][j][tile][t];
    dc[i] = v;
  }
  rho = warp_fold(rho, Sum());
  float state = 0;
#pragma unroll
  for (int warp = 0; warp < ROW_WARPS; ++warp) state += sums.states[j * ROW_WARPS + warp];
  if (lane == 31) dc[EACH - 1] += rho + steps[FROM_START * Q + Q - 1] * state;
  // The sums over the steps from each on, which end before a step that decays all: so nothing of a document after it, not
  // even what rounding leaves of a sum that is zero, is in them.
  const float* const log_decay = steps + LOG_DECAY * Q + EACH * lane;
  bool zero[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i)
    zero[i] = log_decay[i] - (EACH * lane + i > 0 ? log_decay[i - 1] : 0.0f) < ZERO_LOG;
  const bool ends = __shfl_down_sync(FULL_WARP, zero[0], 1) || lane == 31;
  float from = 0;
  bool closed = ends;
#pragma unroll
  for (int i = EACH - 1; i >= 0; --i) {
    from += dc[i];
    if (i > 0 && zero[i]) from = 0, closed = true;
  }
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float other = __shfl_down_sync(FULL_WARP, from, d);
    const bool other_closed = __shfl_down_sync(FULL_WARP, closed, d);
    if (!closed) from += other, closed = other_closed;
  }
  float after = __shfl_down_sync(FULL_WARP, from, 1);
  if (ends) after = 0;
  const float rate = float(read_real(a.A + head));
#pragma unroll
  for (int i = EACH - 1; i >= 0; --i) {
    const index t = t0 + EACH * lane + i;
    after += dc[i];
    const float da = zero[i] ? 0.0f : after;
    if (zero[i]) after = 0;
    rate_sum += step[i] * da;
    if (t < index(a.length))
      a.dsteps[(slice_of(p, j) * (a.batch * a.heads) + p.batch * a.heads + head) * a.length + t] = direct[i] + rate * da;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  float* const steps = reinterpret_cast<float*>(memory);  // of two chunks
  Sums& sums = *reinterpret_cast<Sums*>(steps + 2 * HEADS * STEPS);
  static_assert(sizeof(Sums) % 16 == 0, "tiles follow");
  const u32 xs = shared_address(&sums + 1), es = xs + STAGES * HEADS * place<XP>(Q, 0),
            bs = es + STAGES * HEADS * place<XP>(Q, 0), cs = bs + place<NP>(Q, 0), products = cs + place<NP>(Q, 0),
            matrices = products + STAGES * place<QP>(Q, 0), weights = matrices + HEADS * PAIRS * 512,
            d_states = weights + HEADS * PAIRS * 512,
            states = OWN_STATE ? d_states + HEADS * place<NP>(PT, 0) : d_states;
  const Place p = place_of(a, index(blockIdx.y));
  // These have STAGES, the others are copied when nobody reads those of the chunk after it any more.
  const auto copy_early = [&](int k) {
    const int stage = k % STAGES, thread = this_thread();
    const index t = (p.begin + k) * Q;
    copy_features(a, p, thread, xs + stage * HEADS * place<XP>(Q, 0), a.x, a.x_batch, a.x_time, a.x_head, t);
    copy_features(a, p, thread, es + stage * HEADS * place<XP>(Q, 0), a.e, a.e_batch, a.e_time, a.e_head, t);
    copy_products(a, p, thread, products + stage * place<QP>(Q, 0), p.begin + k);
    copy_steps(a, p, thread, steps + k % 2 * HEADS * STEPS, p.begin + k);
    commit_copies();
  };
  const auto copy_kept = [&](int k) {
    const int thread = this_thread();
    constexpr int CHUNKS = PT * NT / 8;
#pragma unroll
    for (int j = 0; j < HEADS; ++j) {
      const bf16* const from = a.kept + (row_of(a, p, j < p.live ? j : 0) * a.chunks + p.begin + k) * (PT * NT);
#pragma unroll
      for (int n = 0; n < CHUNKS; n += THREADS)
        if (CHUNKS % THREADS == 0 || n + thread < CHUNKS)
          copy_16(states + (j * CHUNKS + n + thread) * 16, from + (n + thread) * 8, j < p.live);
    }
  };
  copy_early(p.chunks - 1);

  float dS[STATE_UNITS][2][4] = {};
  if constexpr (has_g_last)
    each_pair(a, p, dS,
              [&](i64 row, int column, float& x, float& y) { load_pair<VS>(a.g_last + (row * a.g_last_row + column), x, y); });
  if (const Owned o = this_owned(); o.row < p.live)
#pragma unroll 4
    for (index r = index(a.segments) - 1; r > p.segment; --r) {
      const i64 from = row_of(a, p, o.row) * a.segments + r;
      const float decay = exp2_of(a.decays[from]);
#pragma unroll
      for (int n = 0; n < STATE_UNITS; ++n) {
        const int unit = o.part + STATE_PARTS * n;
        if (unit < UNITS)
          decay_and_add(dS[n], *rounded_at(a.added + from * (PT * NT), o.tile % (PT / 16), unit, o.lane), decay);
      }
    }

  float rate_sum = 0, skip_sum = 0;
  // By the last warp of a row, which has fewer pairs of tiles than others.
  const auto finish = [&](int k) {
    if (const int warp = this_thread() / 32, j = warp / ROW_WARPS; warp % ROW_WARPS == ROW_WARPS - 1 && j < p.live)
      finish_steps(a, p, k, steps + (k % 2 * HEADS + j) * STEPS, sums, j, rate_sum);
  };
  wait_for_copies<0>();
  __syncthreads();
#pragma unroll 1
  for (int k = p.chunks - 1; k >= 0; --k) {
    const index t0 = (p.begin + k) * Q;
    const u32 x = xs + k % STAGES * HEADS * place<XP>(Q, 0), e = es + k % STAGES * HEADS * place<XP>(Q, 0);
    const float* const facts = steps + k % 2 * HEADS * STEPS;
    copy_states(a, p, this_thread(), bs, a.B, a.B_batch, a.B_time, a.B_group, t0);
    copy_states(a, p, this_thread(), cs, a.C, a.C_batch, a.C_time, a.C_group, t0);
    if constexpr (OWN_STATE) copy_kept(k);
    commit_copies();
    {
      const int warp = this_thread() / 32, j = warp / ROW_WARPS;
#pragma unroll 1
      for (int pair = warp % ROW_WARPS; pair < PAIRS; pair += ROW_WARPS) {
        int to = 0;
#pragma unroll
        for (int i = 1; i < TIMES; ++i) to += pair >= pair_of(0, i);
        const int tile = j * PAIRS + pair;
        weigh_tiles(x + j * place<XP>(Q, 0), e + j * place<XP>(Q, 0), products + k % STAGES * place<QP>(Q, 0),
                    reinterpret_cast<Words4*>(memory + (matrices - shared_address(memory))) + tile * 32, weights + tile * 512,
                    facts + j * STEPS, sums.column[k % 2][j][0], sums.direct[k % 2][j][0], pair - pair_of(0, to), to, skip_sum);
      }
    }
    {
      const Owned o = this_owned();
      const u32 to = d_states + place<NP>(16 * o.tile + o.lane / 4, 16 * o.part + o.lane % 4 * 2);
#pragma unroll
      for (int n = 0; n < STATE_UNITS; ++n) {
        if (UNITS % STATE_PARTS != 0 && o.part + STATE_PARTS * n >= UNITS) break;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + place<NP>(8 * (i % 2), 16 * STATE_PARTS * n + 8 * (i / 2))),
                       "r"(pack_bf16(dS[n][i / 2][i % 2 * 2], dS[n][i / 2][i % 2 * 2 + 1]))
                       : "memory");
      }
    }
    if (k + 1 < p.chunks) finish(k + 1);
    wait_for_copies<0>();
    __syncthreads();
    if (STAGES == 2 && k > 0) copy_early(k - 1);
    {
      const int warp = this_thread() / 32, j = warp / ROW_WARPS, at = warp % ROW_WARPS / FEATURE_PARTS;
      if (at < TIMES)
        features_of_steps(a, p, t0, x + j * place<XP>(Q, 0), e + j * place<XP>(Q, 0), bs, d_states + j * place<NP>(PT, 0),
                          reinterpret_cast<const Words4*>(memory + (matrices - shared_address(memory))) + j * PAIRS * 32,
                          facts + j * STEPS, sums, j, at, warp % FEATURE_PARTS);
    }
    states_of_steps<false>(a, p, t0, x, d_states, weights, cs, cs, facts, sums);
    if constexpr (!OWN_STATE) {
      __syncthreads();
      copy_kept(k);
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
    }
    {
      const Owned o = this_owned();
      const u32 from = states + matrices_of(16 * o.tile, 16 * o.part) + o.lane * 4;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < STATE_UNITS; ++n) {
        if (UNITS % STATE_PARTS != 0 && o.part + STATE_PARTS * n >= UNITS) break;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          u32 pair;
          asm volatile("ld.shared.b32 %0, [%1];"
                       : "=r"(pair)
                       : "r"(from + matrices_of(8 * (i % 2), 16 * STATE_PARTS * n + 8 * (i / 2)))
                       : "memory");
          sum += dS[n][i / 2][i % 2 * 2] * low_of(pair) + dS[n][i / 2][i % 2 * 2 + 1] * high_of(pair);
        }
      }
      sum = warp_fold(sum, Sum());
      if (o.lane == 0) sums.states[this_thread() / 32] = sum;
    }
    states_of_steps<true>(a, p, t0, e, states, weights, bs, cs, facts, sums);
    {
      const Owned o = this_owned();
      const float* const of_row = facts + o.row * STEPS;
      const float decay = of_row[FROM_START * Q + Q - 1];
#pragma unroll
      for (int n = 0; n < STATE_UNITS; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) dS[n][i / 4][i % 4] *= decay;
#pragma unroll
      for (int t = 0; t < Q; t += 16) {
        float w[2], v[2];
        load<2>(of_row + FROM_START * Q + t + 2 * (o.lane % 4), w);
        load<2>(of_row + FROM_START * Q + t + 8 + 2 * (o.lane % 4), v);
        u32 f[4];
        load_transposed(left_transposed_at<XP>(e, o.lane) + place<XP>(o.row * Q + t, o.tile % (PT / 16) * 16), f);
        f[0] = scaled(f[0], w[0], w[1]), f[1] = scaled(f[1], w[0], w[1]);
        f[2] = scaled(f[2], v[0], v[1]), f[3] = scaled(f[3], v[0], v[1]);
#pragma unroll
        for (int n = 0; n < STATE_UNITS; ++n) {
          const int unit = o.part + STATE_PARTS * n;
          if (UNITS % STATE_PARTS != 0 && unit >= UNITS) break;
          u32 g[4];
          load_transposed(right_of_columns_at<NP>(cs, o.lane) + place<NP>(t, 16 * unit), g);
          multiply_add(dS[n][0], f, g[0], g[1]), multiply_add(dS[n][1], f, g[2], g[3]);
        }
      }
    }
    if (STAGES == 1 && k > 0) {
      __syncthreads();
      copy_early(k - 1);
    }
    wait_for_copies<0>();
    __syncthreads();
  }
  finish(0);
  if constexpr (has_d_initial)
    if (p.segment == 0)
      each_pair(a, p, dS, [&](i64 row, int column, float& x, float& y) {
        store_pair<VS>(a.d_initial + (row * a.d_initial_row + column), x, y);
      });
  // Parts of dA and dD: (b, segment, slice, 2, h).
  const int thread = this_thread(), warp = thread / 32;
  rate_sum = warp_fold(rate_sum, Sum()), skip_sum = warp_fold(skip_sum, Sum());
  if (thread % 32 == 0) sums.skips[warp] = skip_sum;
  __syncthreads();
  if (const int j = warp / ROW_WARPS; thread % 32 == 0 && warp % ROW_WARPS == ROW_WARPS - 1 && j < p.live) {
    const i64 to = ((p.batch * a.segments + p.segment) * SLICES + slice_of(p, j)) * 2 * a.heads + head_of(a, p, j);
    float skips = 0;
#pragma unroll
    for (int k = 0; k < ROW_WARPS; ++k) skips += sums.skips[j * ROW_WARPS + k];
    a.head_parts[to] = rate_sum, a.head_parts[to + a.heads] = skips;
  }
}
