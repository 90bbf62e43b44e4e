// The selective scan of 16 states in bf16, backward; ops/scan16.cuh stands before it. Tiles of 16 steps go from right to left,
// in chunks of 8: first the states and decays of a chunk, from the kept state before it, into registers, then the gradient of
// the state, Gamma = e C + carry, back through them. At the top of a tile every thread stages one step of four channels of the
// tile ahead and finishes one of the tile behind, which share a buffer.
//
// A warp has 8 channels, the even or the odd ones of a group ("sub"), with all states. Lane 4 g + q has in x[0], x[1] state g
// of columns 2 q and 2 q + 1, in x[2], x[3] state g + 8; column c is channel 2 c + sub of the group. So a state is an operand,
// as it is, of a sum over channels in TF32, which is what dB and dC are:
//   dC = h e, dB = Gamma (Delta u)     column r has step r, so that eight steps gather in one accumulator; e and Delta u are
//                                      rounded to TF32
//   h = a h + B (Delta u), and Gamma   as in the forward kernel, the other way round
// Sums over states, of Gamma B and of Gamma a h A, are made in fp32 by the lanes of a warp by way of shared memory, four steps
// at a time.
// Facts besides those of scan16.cuh: BLOCKS a multiprocessor; SHARED; NEEDS_S, DELTA_SUMS, OUT_SUMS; ONLY_CARRY: only the
// gradient of the state before the segment is wanted.

constexpr int TILE = 16, THREADS = GROUPS * 64, WARPS = GROUPS * 2;
static_assert(THREADS == TILE * QUADS, "a thread stages one step of four channels");

// Sums over time of the roots of the holes' gradients.
struct DeltaSums : ColumnSums<DELTA_SUMS, 4, THREADS> {};
struct OutSums : ColumnSums<OUT_SUMS, 4, THREADS> {};

// Rows are a few banks apart where lanes walk across them.
struct alignas(16) DeltaOfGroup {
  F2 at[TILE / 2][4][2][2];  // of steps 2 k and 2 k + 1, columns 2 q and 2 q + 1: [k][q][sub][step]
  F4 gap;
};
struct alignas(16) OwnOfGroup {
  F4 at[TILE][9];  // [step][2 q + sub]: {e, e', Delta u, (Delta u)'} of columns 2 q, 2 q + 1; then the sums over states
  F4 gap;
};
struct alignas(16) FactorsOfGroup {
  u32 at[2][8][TILE + 4];  // [sub][column][step], split
  F4 gap;
};
struct alignas(16) Stage {
  DeltaOfGroup delta[GROUPS];
  OwnOfGroup own[GROUPS];
  FactorsOfGroup du[GROUPS], e[GROUPS];
  u32 B[N][TILE + 4], C[N][TILE + 4];  // B / 4 and C / 4, twice
  float plain_B[N][TILE + 4];
  float sums[WARPS][2][N][TILE + 4];   // dC, dB of a warp's channels
  F4 kept_e[THREADS];                  // of a thread's own step and channels
  Words2 u[THREADS], raw[THREADS];
};
struct alignas(16) Shared : DeltaSums, OutSums {
  Stage stage[2];
  Place place;
  F4 parts[WARPS][4][36];  // of sums over states: of four steps, of the lanes
  Words2 u[THREADS], raw[THREADS], g[THREADS], s[THREADS], bc[TILE * 8];  // what has been asked for
  i32 border[has_borders ? THREADS : 4];
  u8 delta[delta_of_staged > 0 ? delta_of_staged * THREADS : 16];
  u8 delta_grad[3][delta_roots_staged > 0 ? delta_roots_staged * THREADS : 16];  // in turn, until a tile is finished
  u8 out[out_roots_staged > 0 ? out_roots_staged * THREADS : 16];
  u32 kept[THREADS][2];
  u32 powers[WARPS][2][8];
  F4 dD[THREADS];
  delta_of_column<4> delta_columns[QUADS];
  delta_roots_column<4> delta_grad_columns[QUADS];
  out_roots_column<4> out_columns[QUADS];
  F4 D[QUADS];
};
static_assert(sizeof(Shared) <= SHARED, "the launch asks for less");

DEVICE u32 transposed(u32 x) {
  u32 y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
DEVICE float factor(float x) {  // of a product with one that is cut
  u32 y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x * CUT));
  return as_float(y);
}

// What a thread does as one of those that stage and finish.
struct Turns {
  const Args& a;
  Shared& shared;
  const delta_of_outer delta;
  const delta_roots_outer delta_grad;
  const out_roots_outer out;

  DEVICE Turns(const Args& args, const Place& place, Shared& memory)
      : a(args), shared(memory), delta(delta_of_outer_at(args, place.b)), delta_grad(delta_roots_outer_at(args, place.b)),
        out(out_roots_outer_at(args, place.b)) {}

  // A thread's place and its step of four channels: found anew each time, as the chunks in between need all registers.
  struct Unit : Place {
    int thread, quad, step, column;
    DEVICE explicit Unit(const Place& p) : Place(p) {
      asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
      quad = thread % QUADS, step = thread / QUADS, column = channel + quad * 4;
    }
    DEVICE int time(int t) const { return begin + inside(t); }
  };

  // What the columns alone decide, which would take registers.
  DEVICE void store_columns(const Place& p) {
    const Unit m(p);
    if (m.thread == 0) shared.place = p;
    if (m.thread < QUADS) {
      shared.delta_columns[m.thread] = delta_of_column_at<4>(a, delta, m.b, m.column);
      shared.delta_grad_columns[m.thread] = delta_roots_column_at<4>(a, delta_grad, m.b, m.column);
      shared.out_columns[m.thread] = out_roots_column_at<4>(a, out, m.b, m.column);
      real D[4] = {};
      if constexpr (has_D) load_real<4>(a.D + m.column, D);
      shared.D[m.thread] = {D[0], D[1], D[2], D[3]};
    }
    shared.dD[m.thread] = {0, 0, 0, 0};
    shared.DeltaSums::clear(), shared.OutSums::clear();
  }

  DEVICE void fetch(int tile) {
    const Unit m(shared.place);
    const int t = tile * TILE + m.step;
    const index row = m.row(a, t);
    const bool in = tile >= 0 && t < m.length;
    copy_async<8>(shared_address(&shared.u[m.thread]), a.u + (row * index(a.u_row) + m.column), in);
    copy_async<8>(shared_address(&shared.raw[m.thread]), a.raw + (row * index(a.raw_row) + m.column), in);
    if constexpr (has_borders) copy_async<4>(shared_address(&shared.border[m.thread]), a.borders + row, in);
    if constexpr (has_g) copy_async<8>(shared_address(&shared.g[m.thread]), a.g + (row * index(a.g_row) + m.column), in);
    if constexpr (NEEDS_S) copy_async<8>(shared_address(&shared.s[m.thread]), a.s + (row * index(a.s_row) + m.column), in);
    if constexpr (delta_of_staged > 0)
      delta_of_fetch<4, THREADS>(a, delta, delta_of_row_at(a, delta, m.b, m.time(t)), m.column, in,
                                 shared_address(shared.delta));
    if constexpr (delta_roots_staged > 0)
      delta_roots_fetch<4, THREADS>(a, delta_grad, delta_roots_row_at(a, delta_grad, m.b, m.time(t)), m.column, in,
                                    shared_address(shared.delta_grad[(tile + 3) % 3]));
    if constexpr (out_roots_staged > 0)
      out_roots_fetch<4, THREADS>(a, out, out_roots_row_at(a, out, m.b, m.time(t)), m.column, in, shared_address(shared.out));
#pragma unroll
    for (int i = m.thread; i < TILE * 8; i += THREADS) {
      const int time = tile * TILE + (i % (TILE * 4) >> 2), n = (i & 3) * 4;
      copy_async<8>(shared_address(&shared.bc[i]), i < TILE * 4 ? a.B + (m.B_at(a, time) + n) : a.C + (m.C_at(a, time) + n),
                    tile >= 0 && time < m.length);
    }
  }

  // Stages tile `ahead` and, if there is one, finishes the tile after the next, which was in its buffer.
  DEVICE void turn(int ahead, bool behind) {
    const Unit m(shared.place);
    Stage& stage = shared.stage[ahead & 1];
    const int t = ahead * TILE + m.step, later = t + 2 * TILE;
    const bool in = ahead >= 0 && t < m.length;
    real u[4], raw[4];
    FactorsOfGroup &du_at = stage.du[m.quad >> 2], &e_at = stage.e[m.quad >> 2];
    F4* const own = &stage.own[m.quad >> 2].at[m.step][2 * (m.quad & 3)];
    F2(&delta_at)[2][2] = stage.delta[m.quad >> 2].at[m.step / 2][m.quad & 3];
    if (behind) {
      const F4 even = own[0], odd = own[1], D = shared.D[m.quad], e = stage.kept_e[m.thread];
      const F2 d02 = delta_at[0][m.step & 1], d13 = delta_at[1][m.step & 1];
      unpack_bf16(stage.u[m.thread], u);
      unpack_bf16(stage.raw[m.thread], raw);
      const real by_b[4] = {even.x, odd.x, even.y, odd.y}, by_a[4] = {even.z, odd.z, even.w, odd.w};
      const real d[4] = {d02.x, d13.x, d02.y, d13.y}, es[4] = {e.x, e.y, e.z, e.w}, Ds[4] = {D.x, D.y, D.z, D.w};
      real du[4], ddelta[4], draw[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        du[j] = (has_borders ? true_step(d[j]) : d[j]) * by_b[j] + Ds[j] * es[j];
        ddelta[j] = u[j] * by_b[j] + float(LN_2) * by_a[j];
      }
      const bool later_in = later < m.length;
      const int at = m.time(later);
      if constexpr (has_du)
        if (later_in) store_real<4>(a.du + (m.row(a, later) * index(a.du_row) + m.column), du);
      delta_gradients_at<4, THREADS>(a, delta_grad, delta_roots_row_at(a, delta_grad, m.b, at),
                                     shared.delta_grad_columns[m.quad], m.b, at, m.column, raw, ddelta, draw,
                                     static_cast<DeltaSums&>(shared), later_in, shared.delta_grad[(ahead + 5) % 3]);
    }
    const int at = m.time(t);
    real d[4], s[4] = {}, upstream[4] = {}, e[4], du[4];
    unpack_bf16(shared.u[m.thread], u);
    unpack_bf16(shared.raw[m.thread], raw);
    if constexpr (has_g) unpack_bf16(shared.g[m.thread], upstream);
    if constexpr (NEEDS_S) unpack_bf16(shared.s[m.thread], s);
    delta_of_staged_at<4, THREADS>(a, delta, delta_of_row_at(a, delta, m.b, at), shared.delta_columns[m.quad], m.b, at,
                                   m.column, raw, d, shared.delta);
    out_gradients_at<4, THREADS>(a, out, out_roots_row_at(a, out, m.b, at), shared.out_columns[m.quad], m.b, at, m.column, s,
                                 upstream, e, static_cast<OutSums&>(shared), in, shared.out);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      d[j] = in ? d[j] : 0.0f;
      e[j] = in ? e[j] : 0.0f;
      du[j] = d[j] * u[j];
      if constexpr (has_borders) d[j] = shared.border[m.thread] ? long_step(d[j]) : d[j];
    }
    delta_at[0][m.step & 1] = {d[0], d[2]};
    delta_at[1][m.step & 1] = {d[1], d[3]};
    own[0] = {factor(e[0]), factor(e[2]), factor(du[0]), factor(du[2])};
    own[1] = {factor(e[1]), factor(e[3]), factor(du[1]), factor(du[3])};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      du_at.at[j & 1][2 * (m.quad & 3) + (j >> 1)][m.step] = split(du[j]);
      e_at.at[j & 1][2 * (m.quad & 3) + (j >> 1)][m.step] = split(e[j]);
    }
    stage.kept_e[m.thread] = {e[0], e[1], e[2], e[3]};
    stage.u[m.thread] = shared.u[m.thread], stage.raw[m.thread] = shared.raw[m.thread];
    if constexpr (has_dD_part) {
      F4& sum = shared.dD[m.thread];
      sum = {sum.x + e[0] * u[0], sum.y + e[1] * u[1], sum.z + e[2] * u[2], sum.w + e[3] * u[3]};
    }
#pragma unroll
    for (int i = m.thread; i < TILE * 8; i += THREADS) {
      const int time = i % (TILE * 4) >> 2, quarter = i & 3;
      real x[4];
      unpack_bf16(shared.bc[i], x);
      u32(&to)[N][TILE + 4] = i < TILE * 4 ? stage.B : stage.C;
#pragma unroll
      for (int j = 0; j < 4; ++j) to[quarter * 4 + j][time] = twice(0.25f * x[j]);
      if (i < TILE * 4) {
#pragma unroll
        for (int j = 0; j < 4; ++j) stage.plain_B[quarter * 4 + j][time] = x[j];
      }
    }
  }

  // dB and dC of a tile, over the block's channels, into partial sums.
  DEVICE void sum_channels(int tile) {
    if constexpr (has_dB_part) {
      const Unit m(shared.place);
#pragma unroll
      for (int i = m.thread; i < TILE * 8; i += THREADS) {
        const int which = i >> 6, four = i >> 4 & 3, n = i & 15, t = tile * TILE + four * 4;
        const Stage& stage = shared.stage[tile & 1];
        real sum[4] = {};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
          real x[4];
          load<4>(&stage.sums[w][which][n][four * 4], x);
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[j] += x[j];
        }
        const int groups = int(a.groups), part = (m.channel - m.group * int(a.group_size)) / CHANNELS;
        const index row = (index(part) * index(a.batch) * index(a.length) + m.row(a, t)) * groups + m.group;
        real* const to = (which ? a.dB_part : a.dC_part) + (row * N + n);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (t + j < m.length) to[index(j * groups) * N] = sum[j];
      }
    }
  }

  DEVICE void store_sums() {
    const Unit m(shared.place);
    if (m.thread < CHANNELS) {
      const index to = index(m.states) * index(a.channels) + m.channel + m.thread;
      if constexpr (DELTA_SUMS > 0) delta_store_sums<CHANNELS>(a, static_cast<const DeltaSums&>(shared), m.thread, to);
      if constexpr (OUT_SUMS > 0) out_store_sums<CHANNELS>(a, static_cast<const OutSums&>(shared), m.thread, to);
      if constexpr (has_dD_part) {
        real sum = 0;
        for (int k = 0; k < TILE; ++k) sum += reinterpret_cast<const real*>(&shared.dD[k * QUADS])[m.thread];
        a.dD_part[to] = sum;
      }
    }
  }
};

// What a lane carries from chunk to chunk of its states: A log2(e), a Gamma of the step after, the gradient of A.
struct Carried {
  float A2[4], carry[4], dA[4];
  Own own;
};

// Chunk c of a tile, with the states `start` before it.
DEVICE void chunk_back(Stage& stage, F4 (&parts)[4][36], int c, int warp, int lane, const float (&start)[4], Carried& x) {
  const int g = lane >> 2, q = lane & 3, group = warp >> 1, sub = warp & 1;
  const F2(*const deltas)[4][2][2] = &stage.delta[group].at[c * CHUNK / 2];
  const u32* const du = &stage.du[group].at[sub][g][c * CHUNK];
  const u32* const es = &stage.e[group].at[sub][g][c * CHUNK];
  F4(&own_of_group)[TILE][9] = stage.own[group].at;
  float decay[CHUNK][4], h[CHUNK][4];
  F2 d[2];
  u32 b0[4], b1[4], factors[4];
#pragma unroll
  for (int r = 0; r < CHUNK; ++r) {
    if (r % 4 == 0) {
      load<4>(&stage.B[g][c * CHUNK + r], b0);
      load<4>(&stage.B[g + 8][c * CHUNK + r], b1);
      load<4>(du + r, factors);
    }
    if (r % 2 == 0) load<2>(deltas[r / 2][q][sub], d);
    const F2 now = d[r % 2];
    const float* const before = r > 0 ? h[r - 1] : start;
#pragma unroll
    for (int i = 0; i < 4; ++i) decay[r][i] = exp2_of((i % 2 ? now.y : now.x) * x.A2[i]);
    multiply8(h[r], b0[r % 4], b1[r % 4], factors[r % 4], decay[r][0] * before[0], decay[r][1] * before[1],
              decay[r][2] * before[2], decay[r][3] * before[3]);
  }
  __syncwarp();  // keeps the compiler from mixing the passes, for which registers do not suffice
  const F4 mine = own_of_group[c * CHUNK + g][2 * q + sub];
  float dC[4] = {}, dB[4] = {}, plain0[2], plain1[2];
  u32 c0[2], c1[2];
#pragma unroll
  for (int r = CHUNK - 1; r >= 0; --r) {
    if (r % 4 == 3) load<4>(es + r - 3, factors);
    if (r % 2 == 1) {
      load<2>(&stage.C[g][c * CHUNK + r - 1], c0);
      load<2>(&stage.C[g + 8][c * CHUNK + r - 1], c1);
      load<2>(deltas[r / 2][q][sub], d);
      load<2>(&stage.plain_B[g][c * CHUNK + r - 1], plain0);
      load<2>(&stage.plain_B[g + 8][c * CHUNK + r - 1], plain1);
    }
    const F2 now = d[r % 2];
    const float* const before = r > 0 ? h[r - 1] : start;
    float(&gamma)[4] = x.carry;
    multiply8(gamma, c0[r % 2], c1[r % 2], factors[r % 4], gamma[0], gamma[1], gamma[2], gamma[3]);
    const float by_b0 = gamma[0] * plain0[r % 2] + gamma[2] * plain1[r % 2],
                by_b1 = gamma[1] * plain0[r % 2] + gamma[3] * plain1[r % 2];
    add_over_columns(dC, h[r], x.own(r, bits_of(mine.x)), x.own(r, bits_of(mine.y)));
    add_over_columns(dB, gamma, x.own(r, bits_of(mine.z)), x.own(r, bits_of(mine.w)));
    float product[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      gamma[i] *= decay[r][i];
      product[i] = gamma[i] * before[i];
      x.dA[i] += product[i] * (i % 2 ? now.y : now.x);
    }
    parts[r % 4][lane] = {by_b0, by_b1, product[0] * x.A2[0] + product[2] * x.A2[2],
                          product[1] * x.A2[1] + product[3] * x.A2[3]};
    if (r % 4 == 0) {
      __syncwarp();
      const int step = lane >> 3, at = lane & 7;  // 2 q and which of the two sums
      F2 sum = {0, 0};
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const F2 part = reinterpret_cast<const F2*>(parts[step] + 4 * k)[at];
        sum.x += part.x, sum.y += part.y;
      }
      reinterpret_cast<F2*>(&own_of_group[c * CHUNK + r + step][(at >> 1) * 2 + sub])[at & 1] = sum;
      __syncwarp();
    }
  }
  float(&to)[2][N][TILE + 4] = stage.sums[warp];
  *reinterpret_cast<F2*>(&to[0][g][c * CHUNK + 2 * q]) = {dC[0], dC[1]};
  *reinterpret_cast<F2*>(&to[0][g + 8][c * CHUNK + 2 * q]) = {dC[2], dC[3]};
  *reinterpret_cast<F2*>(&to[1][g][c * CHUNK + 2 * q]) = {dB[0], dB[1]};
  *reinterpret_cast<F2*>(&to[1][g + 8][c * CHUNK + 2 * q]) = {dB[2], dB[3]};
}

// The same, without states: only Gamma goes back.
DEVICE void chunk_carry(const Stage& stage, int c, int warp, int lane, Carried& x, F2& delta_sum) {
  const int g = lane >> 2, q = lane & 3, group = warp >> 1, sub = warp & 1;
#pragma unroll
  for (int r = CHUNK - 1; r >= 0; --r) {
    const int step = c * CHUNK + r;
    const F2 d = stage.delta[group].at[step / 2][q][sub][step % 2];
    multiply8(x.carry, stage.C[g][step], stage.C[g + 8][step], stage.e[group].at[sub][g][step], x.carry[0], x.carry[1],
              x.carry[2], x.carry[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) x.carry[i] *= exp2_of((i % 2 ? d.y : d.x) * x.A2[i]);
    delta_sum.x += d.x, delta_sum.y += d.y;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Place p = place_of(a);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane >> 2, q = lane & 3;
  const int tiles = (p.length + TILE - 1) / TILE;
  Turns turns(a, p, shared);
  Carried x{{}, {}, {}, Own(g)};
  const int channel = p.channel + (warp >> 1) * 16 + 4 * q + (warp & 1);  // of x[0]; of x[1] it is two more
  const index states = index(p.states) * index(a.channels) + channel;  // the row of those of `channel`
  const auto column = [&](int i) { return 2 * (i & 1); };
  const auto state = [&](int i) { return g + 8 * (i >> 1); };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x.A2[i] = float(LOG2_E) * read_real(a.A + (index(channel + column(i)) * index(a.A_row) + state(i)));
    x.carry[i] = x.dA[i] = 0;
    if constexpr (has_g_last)
      x.carry[i] = read_real(a.g_last + ((states + column(i)) * index(a.g_last_row) + state(i)));
  }

  // The kept state before chunk k of the segment; before the first one of the sequence it is `initial`.
  const int kept_step = int(a.channels) / 16 * KEPT_WORDS;
  const int of_group = (p.channel / 16 + (warp >> 1)) * KEPT_WORDS;
  const i32* const kept = reinterpret_cast<const i32*>(a.kept) +
                          (index(p.b * int(a.chunks) + p.begin / CHUNK) * kept_step + of_group);
  const auto fetch_kept = [&](int k) {
    const i32* const from = kept + index(k - 1) * kept_step;
    const bool in = p.begin > 0 ? k >= 0 : k > 0;
    copy_async<4>(shared_address(&shared.kept[threadIdx.x][0]), from + ((warp & 1) * 64 + lane), in);
    copy_async<4>(shared_address(&shared.kept[threadIdx.x][1]), from + ((warp & 1) * 64 + 32 + lane), in);
    if (lane < 4) copy_async<16>(shared_address(&shared.powers[warp][lane >> 1][lane % 2 * 4]), from + (128 + lane * 4), in);
    commit_copies();
  };
  const auto take_kept = [&](int k, float (&h)[4]) {
    __syncwarp();  // the powers are another lane's
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 x = transposed(shared.kept[threadIdx.x][half]);
      const auto scale = [&](int c) {
        return as_float(__byte_perm(shared.powers[warp][half][c], 0, (warp & 1) ? 0x3244 : 0x1044)) * (0x1p-14f / KEPT_FULL);
      };
      h[2 * half] = kept_low(x, scale(2 * q)), h[2 * half + 1] = kept_high(x, scale(2 * q + 1));
    }
    if constexpr (has_initial) {
      if (k == 0 && p.begin == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          h[i] = read_real(a.initial +
                           ((index(p.b) * index(a.channels) + channel + column(i)) * index(a.initial_row) + state(i)));
      }
    }
    __syncwarp();
  };

  turns.store_columns(p);
  __syncthreads();
  turns.fetch(tiles - 1);
  commit_copies();
  wait_for_copies<0>();
  turns.turn(tiles - 1, false);
  turns.fetch(tiles - 2);
  commit_copies();
  if constexpr (!ONLY_CARRY) fetch_kept(2 * tiles - 1);
  __syncthreads();
  F2 delta_sum = {0, 0};
#pragma unroll 1
  for (int tile = tiles - 1; tile >= 0; --tile) {
    Stage& stage = shared.stage[tile & 1];
    float h[4];
    wait_for_copies<0>();  // asked for half a tile ago at least
    turns.turn(tile - 1, !ONLY_CARRY && tile + 1 < tiles);
    if constexpr (!ONLY_CARRY) {
      take_kept(2 * tile + 1, h);
      fetch_kept(2 * tile);
    }
    turns.fetch(tile - 2);
    commit_copies();
    __syncwarp();
    if constexpr (ONLY_CARRY) {
      chunk_carry(stage, 1, warp, lane, x, delta_sum);
      chunk_carry(stage, 0, warp, lane, x, delta_sum);
    } else {
      chunk_back(stage, shared.parts[warp], 1, warp, lane, h, x);
      wait_for_copies<1>();
      take_kept(2 * tile, h);
      fetch_kept(2 * tile - 1);
      if (tile + 1 < tiles) turns.sum_channels(tile + 1);
      __syncwarp();
      chunk_back(stage, shared.parts[warp], 0, warp, lane, h, x);
    }
    __syncthreads();
  }
  wait_for_copies<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (has_dA_part) a.dA_part[(states + column(i)) * N + state(i)] = x.dA[i];
    if constexpr (has_d_initial)
      write_real(a.d_initial + ((states + column(i)) * index(a.d_initial_row) + state(i)), x.carry[i]);
  }
  if constexpr (has_delta_sum)
    if (g == 0) a.delta_sum[states] = delta_sum.x, a.delta_sum[states + 2] = delta_sum.y;
  if constexpr (!ONLY_CARRY) {
    turns.turn(-2, true);
    turns.sum_channels(0);
    __syncthreads();
    turns.store_sums();
  }
}
