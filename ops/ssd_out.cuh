// The second kernel of ssd; ops/ssd.cuh stands before it. Each block begins with the state that the segments before its own
// leave, and walks through the chunks of its segment: s^T = (what is left of S) C^T + x^T M^T, where M_ts = C_t B_s (decay from
// s to t) (step s) for s <= t, and D is added to its diagonal.
// Facts besides those of ops/ssd.cuh: D_FEATURES: D is a number for each feature, and not in M; OUT: the out hole is filled, V:
// how many neighbouring features it is given; VS: states of initial and last that are moved at once.

constexpr int RT = PT / 16 / WARPS_OF_ROW;
constexpr int BUFFER = RT * 16 + 4;  // elements between steps of s, so that neither writing nor reading it has conflicts
constexpr int TIMES = OUT && RT * NT > 128 ? 16 : 32;  // steps of s whose sums are in registers: a hole needs some
constexpr int MATRICES = Q / 16 * (Q / 16 + 1) / 2;  // of 16 x 16 of M, from its diagonal to the left
constexpr int AHEAD = RT * NT <= 64 ? 4 : 1;         // segments whose states are read at a time

// What a warp has: features [16 RT part, ...) of row `row` of the block, of which `width` of the row exist.
struct Warp {
  int lane, row, part, slice, width;
  index head;
};
DEVICE Warp this_warp(const Args& a, const Place& p) {
  const int thread = this_thread(), warp = thread / 32, row = warp / WARPS_OF_ROW, slice = slice_of(p, row),
            left = P - slice * PT;
  return {thread % 32,
          row,
          warp % WARPS_OF_ROW,
          slice,
          row < p.live ? (left < PT ? left : PT) : 0,
          head_of(a, p, row < p.live ? row : 0)};
}

// f(row of (b, h, p), state, x, y) for each two neighbouring elements x, y of the warp's state that exist.
template <class F>
DEVICE void each_pair(const Args& a, const Place& p, const Warp& w, State<RT>& state, F f) {
#pragma unroll
  for (int m = 0; m < RT; ++m)
#pragma unroll
    for (int n = 0; n < NT / 8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int feature = (w.part * RT + m) * 16 + 8 * r + w.lane / 4;
        if (feature < w.width && 8 * n < N)
          f((p.batch * a.heads + w.head) * P + w.slice * PT + feature, 8 * n + w.lane % 4 * 2, state.x[m][n / 2][n % 2][2 * r],
            state.x[m][n / 2][n % 2][2 * r + 1]);
      }
}

// M of a row and chunk, shared out among its warps, each matrix as right operand: 16 bytes a lane. `products` is the lane's
// place in C B^T.
DEVICE void make_matrices(u32 products, const float* steps, float skip, int part, int lane, Words4* to) {
#pragma unroll
  for (int first = 0; first < MATRICES; first += WARPS_OF_ROW) {
    const int at = first + part;
    if (MATRICES % WARPS_OF_ROW != 0 && at >= MATRICES) break;
    int row = 0;
#pragma unroll
    for (int r = 1; r < Q / 16; ++r) row += at >= r * (r + 1) / 2;
    const int column = at - row * (row + 1) / 2;
    Words4 out;
    load_matrices(products + place<QP>(16 * row, 16 * column), out.w);
    float log_t[2], log_s[2][2], step[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      log_t[i] = steps[LOG_DECAY * Q + 16 * row + 8 * i + lane / 4];
      load<2>(steps + LOG_DECAY * Q + 16 * column + 8 * i + lane % 4 * 2, log_s[i]);
      load<2>(steps + STEP * Q + 16 * column + 8 * i + lane % 4 * 2, step[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // eight times i / 2 from row, i % 2 from column on
      float v[2] = {low_of(out.w[i]), high_of(out.w[i])};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        v[e] *= exp2_of(log_t[i / 2] - log_s[i % 2][e]) * step[i % 2][e];
        const int behind = 8 * (i / 2) + lane / 4 - (8 * (i % 2) + lane % 4 * 2 + e);
        if (row == column) v[e] = behind > 0 ? v[e] : behind == 0 ? v[e] + skip : 0.0f;
      }
      out.w[i] = pack_bf16(v[0], v[1]);
    }
    to[at * 32 + lane] = out;
  }
}

// A number that stays in a register, to which constants are added where memory is addressed: the compiler would else make each
// address from the lane again.
DEVICE u32 held(u32 x) {
  asm("" : "+r"(x));
  return x;
}
// Of the warps of a row.
DEVICE void row_barrier(int row) {
  if constexpr (WARPS_OF_ROW == 1)
    __syncwarp();
  else
    asm volatile("bar.sync %0, %1;" ::"r"(row + 1), "n"(32 * WARPS_OF_ROW) : "memory");
}

// y of 8 features from s.
DEVICE void finish(const Args& a, index b, index t, index h, index p, real (&s)[8]) {
  if constexpr (OUT) {
#pragma unroll
    for (int k = 0; k < 8; k += V) {
      real v[V], y[V];
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = s[k + j];
      out_of<V>(a, b, t, h, p + k, v, y);
#pragma unroll
      for (int j = 0; j < V; ++j) s[k + j] = y[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  float *const steps = reinterpret_cast<float*>(memory), *const buffers = steps + STAGES * HEADS * STEPS;
  const u32 xs = shared_address(buffers + WARPS * 16 * BUFFER), bs = xs + STAGES * HEADS * place<XP>(Q, 0),
            cs = bs + STAGES * place<NP>(Q, 0), products = cs + STAGES * place<NP>(Q, 0);
  Words4* const matrices = reinterpret_cast<Words4*>(memory + (products - shared_address(memory)) + STAGES * place<QP>(Q, 0));
  const Place p = place_of(a, index(a.segments) - 1 - index(blockIdx.y));  // the last ones, which add up most, first
  const auto copy = [&](int k) {
    if (k < p.chunks) {
      const int stage = k % STAGES, thread = this_thread();
      const index t = (p.begin + k) * Q;
      copy_features(a, p, thread, xs + stage * HEADS * place<XP>(Q, 0), a.x, a.x_batch, a.x_time, a.x_head, t);
      copy_states(a, p, thread, bs + stage * place<NP>(Q, 0), a.B, a.B_batch, a.B_time, a.B_group, t);
      copy_states(a, p, thread, cs + stage * place<NP>(Q, 0), a.C, a.C_batch, a.C_time, a.C_group, t);
      copy_products(a, p, thread, products + stage * place<QP>(Q, 0), p.begin + k);
      copy_steps(a, p, thread, steps + stage * HEADS * STEPS, p.begin + k);
    }
    commit_copies();
  };
  copy(0);

  State<RT> state;
  {
    const Warp w = this_warp(a, p);
    if constexpr (has_initial)
      each_pair(a, p, w, state, [&](i64 row, int column, float& x, float& y) {
        load_pair<VS>(a.initial + (row * a.initial_row + column), x, y);
      });
    if (w.row < p.live)
#pragma unroll(AHEAD)
      for (index r = 0; r < p.segment; ++r) {
        const i64 from = row_of(a, p, w.row) * a.segments + r;
        const float decay = exp2_of(a.decays[from]);
#pragma unroll
        for (int m = 0; m < RT; ++m)
#pragma unroll
          for (int n = 0; n < NT / 16; ++n)
            decay_and_add(state.x[m][n], *rounded_at(a.added + from * (PT * NT), w.part * RT + m, n, w.lane), decay);
      }
  }
#pragma unroll 1
  for (int k = 0; k < p.chunks; ++k) {
    if (STAGES == 1 && k > 0) {
      __syncthreads();
      copy(k);
    }
    wait_for_copies<0>();
    __syncthreads();
    if (STAGES == 2) copy(k + 1);
    const auto [lane, row, part, slice, width, head] = this_warp(a, p);
    const int stage = k % STAGES;
    const float skip = has_D && !D_FEATURES ? float(read_real(a.D + head)) : 0.0f;
    float* const buffer = buffers + (row * WARPS_OF_ROW + part) * 16 * BUFFER;
    const u32 x = held(left_transposed_at<XP>(xs, lane) + place<XP>((stage * HEADS + row) * Q, part * RT * 16));
    const u32 c = held(right_of_rows_at<NP>(cs, lane) + stage * place<NP>(Q, 0));
    const float* const facts = steps + (stage * HEADS + row) * STEPS;
    make_matrices(right_of_rows_at<QP>(products, lane) + stage * place<QP>(Q, 0), facts, skip, part, lane,
                  matrices + row * MATRICES * 32);
    u32* to = nullptr;
    if constexpr (has_kept)
      to = reinterpret_cast<u32*>(a.kept) + (row_of(a, p, row) * a.chunks + p.begin + k) * (PT * NT / 2) + lane;
#pragma unroll
    for (int first = 0; first < Q; first += TIMES) {
      float s[RT][TIMES / 8][4] = {};
#pragma unroll
      for (int n = 0; n < NT / 16; ++n) {
        u32 f[RT][4];
#pragma unroll
        for (int m = 0; m < RT; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) f[m][i] = pack_bf16(state.x[m][n][i / 2][i % 2 * 2], state.x[m][n][i / 2][i % 2 * 2 + 1]);
        if (has_kept && first == 0 && row < p.live) {
#pragma unroll
          for (int m = 0; m < RT; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) to[(((part * RT + m) * 2 + i % 2) * (NT / 8) + 2 * n + i / 2) * 32] = f[m][i];
        }
#pragma unroll
        for (int t = 0; t < TIMES / 8; t += 2) {
          u32 g[4];
          load_matrices(c + place<NP>(first + 8 * t, 16 * n), g);
#pragma unroll
          for (int m = 0; m < RT; ++m) multiply_add(s[m][t], f[m], g[0], g[1]), multiply_add(s[m][t + 1], f[m], g[2], g[3]);
        }
      }
      if (first == 0) row_barrier(row);  // M is there
#pragma unroll
      for (int t = 0; t < TIMES / 8; ++t) {
        float left[2];
        load<2>(facts + FROM_START * Q + first + 8 * t + lane % 4 * 2, left);
#pragma unroll
        for (int m = 0; m < RT; ++m) s[m][t][0] *= left[0], s[m][t][1] *= left[1], s[m][t][2] *= left[0], s[m][t][3] *= left[1];
      }
#pragma unroll
      for (int from = 0; from < first + TIMES; from += 16) {
        u32 f[RT][4];
#pragma unroll
        for (int m = 0; m < RT; ++m) load_transposed(x + place<XP>(from, 16 * m), f[m]);
#pragma unroll
        for (int t = 0; t < TIMES; t += 16) {
          if (from > first + t) continue;
          const int at = (first + t) / 16;
          const Words4 g = matrices[(row * MATRICES + at * (at + 1) / 2 + from / 16) * 32 + lane];
#pragma unroll
          for (int m = 0; m < RT; ++m)
            multiply_add(s[m][t / 8], f[m], g.w[0], g.w[1]), multiply_add(s[m][t / 8 + 1], f[m], g.w[2], g.w[3]);
        }
      }
      // By way of the warp's own buffer, so that a lane has neighbouring features.
#pragma unroll
      for (int half = 0; half < TIMES / 16; ++half) {
        __syncwarp();
#pragma unroll
        for (int m = 0; m < RT; ++m)
#pragma unroll
          for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              buffer[(8 * t + lane % 4 * 2 + e % 2) * BUFFER + 16 * m + 8 * (e / 2) + lane / 4] = s[m][2 * half + t][e];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < RT; ++i) {
          const int at = lane + 32 * i, time = at / (2 * RT), local = at % (2 * RT) * 8, feature = part * RT * 16 + local;
          const int step = first + 16 * half + time;
          const index t = (p.begin + k) * Q + step;
          if (t >= index(a.length) || feature >= width) continue;
          real v[8];
          load<8>(buffer + time * BUFFER + local, v);
          const index at_feature = slice * PT + feature;
          if constexpr (has_D && D_FEATURES) {
            real d[8], u[8];
            load_real<8>(reinterpret_cast<const bf16*>(memory + (xs - shared_address(memory)) +
                                                       place<XP>((stage * HEADS + row) * Q + step, feature)),
                         u);
#pragma unroll
            for (int j = 0; j < 8; ++j) d[j] = real(read_real(a.D + (head * P + at_feature + j))), v[j] += d[j] * u[j];
          }
          if constexpr (has_s)
            store_real<8>(a.s + (p.batch * index(a.s_batch) + t * index(a.s_time) + head * index(a.s_head) + at_feature), v);
          finish(a, p.batch, t, head, at_feature, v);
          if constexpr (has_y)
            store_real<8>(a.y + (p.batch * index(a.y_batch) + t * index(a.y_time) + head * index(a.y_head) + at_feature), v);
        }
      }
    }
    state.advance<TO_END>(x, held(right_of_columns_at<NP>(bs, lane) + stage * place<NP>(Q, 0)), facts, lane);
  }
  if constexpr (has_last)
    if (p.segment + 1 == index(a.segments))
      each_pair(a, p, this_warp(a, p), state,
                [&](i64 row, int column, float& x, float& y) { store_pair<VS>(a.last + (row * a.last_row + column), x, y); });
}
