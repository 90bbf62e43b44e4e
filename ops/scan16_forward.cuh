// The selective scan of 16 states in bf16, forward; ops/scan16.cuh stands before it. Two roles: scan warps, and helper warps
// that stage the tiles of TILE steps ahead (Delta, products) and finish those behind (D u, the out hole, stores). They meet at
// named barriers alone, a tile apart, so that neither waits for the latency of the other.
//
// A scan warp has 16 channels by 8 states; two of them, the halves, are a group. Lane 4 g + q has states 2 q and 2 q + 1 (+ 8
// of the upper half) of channels 2 g, in h[0] and h[1], and 2 g + 1. A step:
//   h = exp(Delta A) h + (Delta u) B   is one product of rank 1: each pair of the 8 terms has the two bf16 parts of Delta u
//                                      against B / 4, so that four of them make Delta u B, and no lane needs a zero
//   s = h C                            h is an operand in TF32 as it is; the other one has C of step r in column r and zeros
//                                      beside it, so that eight steps gather in one accumulator
// Facts besides those of scan16.cuh: HELPERS, warps; TILE; BLOCKS a multiprocessor.

constexpr int SCANS = GROUPS * 2, HELPER_THREADS = HELPERS * 32, THREADS = (SCANS + HELPERS) * 32;
constexpr int UNITS = TILE * QUADS / HELPER_THREADS;  // (step, quad) pairs of a helper thread in a tile
// Unit k + PERIOD has the channels of unit k.
constexpr int PERIOD = HELPER_THREADS % QUADS == 0 ? 1 : 2 * HELPER_THREADS % QUADS == 0 ? 2 : 3;
static_assert(TILE * QUADS % HELPER_THREADS == 0 && PERIOD * HELPER_THREADS % QUADS == 0, "helpers share the units");

// Rows are a few banks apart where lanes walk across them.
struct alignas(16) StepsOfGroup {
  F4 at[8][TILE + 1];  // of channels 2 g, 2 g + 1: {Delta, Delta', Delta u, Delta' u'}, the products split
  F4 gap;
};
struct alignas(16) Stage {
  StepsOfGroup steps[GROUPS];
  float y[2][TILE][CHANNELS + 4];  // what the halves add to s
  u32 B[N][TILE + 4];              // B / 4, twice
  u32 C[2][TILE][4];               // as it comes
};
struct alignas(16) Shared {
  Stage stage[2];
  // What the helpers have asked for: of three tiles, as they finish the one and fetch the other.
  Words2 u[3][UNITS][HELPER_THREADS], raw[UNITS][HELPER_THREADS], B[TILE * 4], C[TILE * 4];
  i32 border[UNITS][has_borders ? HELPER_THREADS : 4];
  u8 delta[UNITS][delta_of_staged > 0 ? delta_of_staged * HELPER_THREADS : 16];
  u8 out[3][UNITS][out_of_staged > 0 ? out_of_staged * HELPER_THREADS : 16];
};
static_assert(sizeof(Shared) <= SHARED, "the launch asks for less");
constexpr int FULL = 1, DONE = 3;  // barriers of the two stages

template <int V>
struct Columns {  // what depends on the channels alone
  delta_of_column<V> delta;
  out_of_column<V> out;
  real D[V];
};

struct Helper {
  const Args& a;
  const Place p;
  Shared& shared;
  const int thread;
  const delta_of_outer delta;
  const out_of_outer out;
  Columns<4> columns[PERIOD];

  DEVICE Helper(const Args& args, const Place& place, Shared& memory, int t)
      : a(args), p(place), shared(memory), thread(t), delta(delta_of_outer_at(args, place.b)),
        out(out_of_outer_at(args, place.b)) {
#pragma unroll
    for (int k = 0; k < PERIOD; ++k) {
      const int column = column_of(k);
      columns[k].delta = delta_of_column_at<4>(a, delta, p.b, column);
      columns[k].out = out_of_column_at<4>(a, out, p.b, column);
#pragma unroll
      for (int j = 0; j < 4; ++j) columns[k].D[j] = 0;
      if constexpr (has_D) load_real<4>(a.D + column, columns[k].D);
    }
  }
  DEVICE int step_of(int k) const { return (k * HELPER_THREADS + thread) / QUADS; }
  DEVICE int quad_of(int k) const { return (k * HELPER_THREADS + thread) % QUADS; }
  DEVICE int column_of(int k) const { return p.channel + quad_of(k) * 4; }
  DEVICE int time(int t) const { return p.begin + p.inside(t); }

  DEVICE void fetch(int tile) {
    const int slot = tile % 3;
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
      const int t = tile * TILE + step_of(k), column = column_of(k);
      const index row = p.row(a, t);
      const bool in = t < p.length;
      copy_async<8>(shared_address(&shared.u[slot][k][thread]), a.u + (row * index(a.u_row) + column), in);
      copy_async<8>(shared_address(&shared.raw[k][thread]), a.raw + (row * index(a.raw_row) + column), in);
      if constexpr (has_borders) copy_async<4>(shared_address(&shared.border[k][thread]), a.borders + row, in);
      if constexpr (delta_of_staged > 0)
        delta_of_fetch<4, HELPER_THREADS>(a, delta, delta_of_row_at(a, delta, p.b, time(t)), column, in,
                                          shared_address(shared.delta[k]));
      if constexpr (out_of_staged > 0)
        out_of_fetch<4, HELPER_THREADS>(a, out, out_of_row_at(a, out, p.b, time(t)), column, in,
                                        shared_address(shared.out[slot][k]));
    }
#pragma unroll
    for (int first = 0; first < TILE * 4; first += HELPER_THREADS) {
      const int i = first + thread, t = tile * TILE + (i >> 2), n = (i & 3) * 4;
      if (TILE * 4 % HELPER_THREADS != 0 && i >= TILE * 4) break;
      copy_async<8>(shared_address(&shared.B[i]), a.B + (p.B_at(a, t) + n), t < p.length);
      copy_async<8>(shared_address(&shared.C[i]), a.C + (p.C_at(a, t) + n), t < p.length);
    }
    commit_copies();
  }

  DEVICE void stage(int tile) {
    Stage& to = shared.stage[tile & 1];
    const int slot = tile % 3;
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
      const int step = step_of(k), quad = quad_of(k), t = tile * TILE + step, column = column_of(k);
      real raw[4], u[4], d[4], du[4];
      unpack_bf16(shared.raw[k][thread], raw);
      unpack_bf16(shared.u[slot][k][thread], u);
      delta_of_staged_at<4, HELPER_THREADS>(a, delta, delta_of_row_at(a, delta, p.b, time(t)), columns[k % PERIOD].delta, p.b,
                                            time(t), column, raw, d, shared.delta[k]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        d[j] = t < p.length ? d[j] : 0.0f;
        du[j] = as_float(split(d[j] * u[j]));
        if constexpr (has_borders) d[j] = shared.border[k][thread] ? as_float(LONG_STEP) : d[j];
      }
      F4(&at)[8][TILE + 1] = to.steps[quad >> 2].at;
      at[2 * (quad & 3)][step] = {d[0], d[1], du[0], du[1]};
      at[2 * (quad & 3) + 1][step] = {d[2], d[3], du[2], du[3]};
    }
#pragma unroll
    for (int first = 0; first < TILE * 4; first += HELPER_THREADS) {
      const int i = first + thread, step = i >> 2, quarter = i & 3;
      if (TILE * 4 % HELPER_THREADS != 0 && i >= TILE * 4) break;
      real b[4];
      unpack_bf16(shared.B[i], b);
#pragma unroll
      for (int j = 0; j < 4; ++j) to.B[quarter * 4 + j][step] = twice(0.25f * b[j]);
      *reinterpret_cast<Words2*>(&to.C[quarter >> 1][step][(quarter & 1) * 2]) = shared.C[i];
    }
  }

  DEVICE void finish(int tile) {
    const Stage& from = shared.stage[tile & 1];
    const int slot = tile % 3;
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
      const int step = step_of(k), quad = quad_of(k), t = tile * TILE + step, column = column_of(k);
      const index row = p.row(a, t);
      real x0[4], x1[4], u[4], s[4], y[4];
      load<4>(&from.y[0][step][quad * 4], x0);
      load<4>(&from.y[1][step][quad * 4], x1);
      unpack_bf16(shared.u[slot][k][thread], u);
#pragma unroll
      for (int j = 0; j < 4; ++j) s[j] = CUT * (x0[j] + x1[j]) + columns[k % PERIOD].D[j] * u[j];
      out_of_staged_at<4, HELPER_THREADS>(a, out, out_of_row_at(a, out, p.b, time(t)), columns[k % PERIOD].out, p.b, time(t),
                                          column, s, y, shared.out[slot][k]);
      if (t < p.length) {
        if constexpr (has_y) store_real<4>(a.y + (row * index(a.y_row) + column), y);
        if constexpr (has_s) store_real<4>(a.s + (row * index(a.s_row) + column), s);
      }
    }
  }

  DEVICE void run() {
    const int tiles = (p.length + TILE - 1) / TILE;
    fetch(0);
    wait_for_copies<0>();
    stage_shared(0);
    fetch(1);
    if (tiles > 1) {
      wait_for_copies<0>();
      stage_shared(1);
      fetch(2);
    }
    for (int tile = 0; tile < tiles; ++tile) {
      barrier_sync(DONE + (tile & 1));
      finish(tile);
      if (tile + 2 < tiles) {
        wait_for_copies<0>();
        stage_shared(tile + 2);
        fetch(tile + 3);
      }
    }
    wait_for_copies<0>();
  }
  static DEVICE void barrier_sync(int number) { asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(THREADS) : "memory"); }
  static DEVICE void barrier_arrive(int number) { asm volatile("bar.arrive %0, %1;" ::"r"(number), "n"(THREADS) : "memory"); }

 private:
  // B and C are read by other threads than those that asked for them.
  DEVICE void stage_shared(int tile) {
    stage(tile);
    barrier_arrive(FULL + (tile & 1));
  }
};

// The loop of a scan warp.
DEVICE void scan(const Args& a, const Place& p, Shared& shared, int warp, int lane) {
  const int g = lane >> 2, q = lane & 3, group = warp >> 1, half = warp & 1;
  const int tiles = (p.length + TILE - 1) / TILE;
  const int channel = p.channel + group * 16 + 2 * g, state = half * 8 + 2 * q;
  const index states = index(p.states) * index(a.channels) + channel;  // the row of those of `channel`
  float A2[4], h[4] = {}, ended[4], delta_sum[2] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    A2[i] = float(LOG2_E) * read_real(a.A + (index(channel + (i >> 1)) * index(a.A_row) + state + (i & 1)));
    if constexpr (has_initial)
      h[i] = read_real(a.initial + ((states + (i >> 1)) * index(a.initial_row) + state + (i & 1)));
  }
  const Own own(g);
  i32* kept = nullptr;
  const int kept_step = int(a.channels) / 16 * KEPT_WORDS;
  if constexpr (has_kept)
    kept = reinterpret_cast<i32*>(a.kept) +
           (index(p.b * int(a.chunks) + p.begin / CHUNK) * kept_step + (p.channel / 16 + group) * KEPT_WORDS);
  const auto keep = [&](const float (&x)[4], int chunk) {
    if constexpr (has_kept) {
      // The largest of the half's states, of both channels; at least 2^-100.
      u32 most = __byte_perm(bits_of(max_of(abs_of(x[0]), abs_of(x[1]))), bits_of(max_of(abs_of(x[2]), abs_of(x[3]))), 0x7632);
      most = larger_of_pairs(most, __shfl_xor_sync(FULL_WARP, most, 1));
      most = larger_of_pairs(most, __shfl_xor_sync(FULL_WARP, most, 2));
      most = larger_of_pairs(most, 0x0d800d80u) & 0x7f807f80u;
      const auto scale = [](u32 power) { return as_float((268u << 23) - power) * KEPT_FULL; };  // 2^14 / 2^e
      const float even = scale(most << 16), odd = scale(most & 0xffff0000u);
      i32* const to = kept + index(chunk) * kept_step;
      to[half * 32 + lane] = i32(kept_words(x[0], x[1], even));
      to[64 + half * 32 + lane] = i32(kept_words(x[2], x[3], odd));
      if (q == 0) to[128 + half * 8 + g] = i32(most);
    }
  };
  for (int tile = 0; tile < tiles; ++tile) {
    Helper::barrier_sync(FULL + (tile & 1));
    Stage& stage = shared.stage[tile & 1];
    const F4* const steps = stage.steps[group].at[g];
    const u32* const B = stage.B[half * 8 + g];
    float y[4] = {}, before[4];  // s of the chunk, and of the one before
    u32 C0 = 0, C1 = 0;
    F4 v[2][4];
    u32 b[2][4];
    // Operands of the next four steps are loaded while the present four run.
    const auto prefetch = [&](int four) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[four & 1][i] = steps[four * 4 + i];
      load<4>(B + four * 4, b[four & 1]);
    };
    const auto store_y = [&](int chunk, const float (&x)[4]) {
      float* const to = &stage.y[half][chunk * CHUNK + 2 * q][group * 16 + 2 * g];
      *reinterpret_cast<F2*>(to) = {x[0], x[2]};
      *reinterpret_cast<F2*>(to + CHANNELS + 4) = {x[1], x[3]};
    };
    prefetch(0);
#pragma unroll
    for (int four = 0; four < TILE / 4; ++four) {
      const int now = four & 1, chunk = four >> 1;
      if (four + 1 < TILE / 4) prefetch(four + 1);
      if (now == 0) {
        const u32 C = stage.C[half][chunk * CHUNK + g][q];
        C0 = C << 16, C1 = C & 0xffff0000u;
#pragma unroll
        for (int i = 0; i < 4; ++i) before[i] = y[i], y[i] = 0;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = now * 4 + i;
        const F4 x = v[now][i];
        float decay[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) decay[e] = exp2_of((e < 2 ? x.x : x.y) * A2[e]);
        multiply8(h, bits_of(x.z), bits_of(x.w), b[now][i], decay[0] * h[0], decay[1] * h[1], decay[2] * h[2], decay[3] * h[3]);
        if constexpr (has_delta_sum) delta_sum[0] += x.x, delta_sum[1] += x.y;
        add_over_columns(y, h, own(r, C0), own(r, C1));
        // What the chunk before has left is stored when nothing has to wait for it.
        if (r == 1 && chunk > 0) {
          store_y(chunk - 1, before);
          keep(ended, tile * (TILE / CHUNK) + chunk - 1);
        }
        if (r == CHUNK - 1) {
#pragma unroll
          for (int e = 0; e < 4; ++e) ended[e] = h[e];
        }
      }
    }
    store_y(TILE / CHUNK - 1, y);
    keep(ended, (tile + 1) * (TILE / CHUNK) - 1);
    Helper::barrier_arrive(DONE + (tile & 1));
  }
  if constexpr (has_last) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      write_real(a.last + ((states + (i >> 1)) * index(a.last_row) + state + (i & 1)), h[i]);
  }
  if constexpr (has_delta_sum)
    if (half == 0 && q == 0) a.delta_sum[states] = delta_sum[0], a.delta_sum[states + 1] = delta_sum[1];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Place p = place_of(a);
  const int thread = int(threadIdx.x);
  if (thread < HELPER_THREADS)
    Helper(a, p, shared, thread).run();
  else
    scan(a, p, shared, thread / 32 - HELPERS, thread % 32);
}
