// The selective scan, backward; ops/scan.cuh stands before it. Chunks go from right to left; of each
//   1. the states run from the kept one to the last, every SUB-th is saved, and s is read out where the out hole's gradient
//      needs it (advance_chunk),
//   2. the out hole's gradient gives e = d loss / d s (stage_e),
//   3. SUB steps at a time, last first, decays and states are computed again into registers, and Gamma = e C + carry, the
//      gradient of the state, runs back through them (retreat),
//   4. what is elementwise is finished: du, and the delta hole's gradient (finish_chunk).
// Facts besides those of scan.cuh: SUB; NEEDS_S; SUMS: dB or dC is wanted; STEPS: du, dD or a gradient of Delta is;
// DELTA_SUMS, OUT_SUMS: how many roots of the holes' gradients are summed over time, as the gradients of A and D are: in parts
// of STRETCH steps; SHARED: bytes of shared memory.

// Sums over time of the roots of the holes' gradients.
struct DeltaSums : ColumnSums<DELTA_SUMS, V, THREADS> {};
struct OutSums : ColumnSums<OUT_SUMS, V, THREADS> {};
static_assert(STRETCH % CHUNK == 0, "parts of sums end with a chunk");
static_assert(THREADS % (CHANNELS / V) == 0, "a thread comes with the same channels at every step");

struct alignas(16) Shared : DeltaSums, OutSums {
  Steps steps;            // Delta becomes its gradient
  real e[CHUNK][ROW];     // s, then e, then du
  real B[ROUND][PADDED], C[ROUND][PADDED];
  real saved[CHUNK / SUB - 1][S][THREADS];
  real part[2][SUB][PART_ROW];
  real dD[THREADS];  // sums over the steps that a thread finishes: in registers they would spill
};
static_assert(sizeof(Shared) == SHARED, "the launch asks for another size");

// What a thread carries from chunk to chunk, of its states and of its channel.
struct Carried {
  real A2[S], carry[S], dA[S] = {};  // A log2(e); a Gamma of the step after
  real D = 0;
};

DEVICE void stage_round_at(const Args& a, const Place& p, index begin, Shared& shared) {
  __syncthreads();
  stage_round(a, p, begin, shared.B, shared.C);
  __syncthreads();
}
DEVICE real sum_slices(const real (&part)[PART_ROW], const Owner& o) {
  real sum = 0;
#pragma unroll
  for (int slice = 0; slice < SLICES; ++slice) sum += part[slice * CHANNELS + o.channel];
  return sum;
}

// 1. From the states h at the start of the chunk.
DEVICE void advance_chunk(const Args& a, const Place& p, const Owner& o, index begin, const Carried& x, real (&h)[S],
                          Shared& shared) {
  for (int first = 0; first < CHUNK; first += SUB) {
    if constexpr (ROUND < CHUNK) stage_round_at(a, p, begin + first, shared);
    if (first > 0) {
#pragma unroll
      for (int j = 0; j < S; ++j) shared.saved[first / SUB - 1][j][threadIdx.x] = h[j];
    }
    if (!NEEDS_S && first + SUB == CHUNK) break;
    const int at = first % ROUND, turn = first / SUB % 2;
    advance<SUB, NEEDS_S>(o, x.A2, shared.steps, first, shared.B + at, shared.C + at, h, shared.part[turn]);
    if constexpr (NEEDS_S) {
      __syncthreads();  // the next steps write to the other half of `part`
      each<SUB * CHANNELS>([&](int i) {
        const int k = i / CHANNELS;
        shared.e[first + k][o.channel] = sum_slices(shared.part[turn][k], o) + x.D * shared.steps.u[first + k][o.channel];
      });
    }
  }
}

// 2. Zero outside the tensors.
DEVICE void stage_e(const Args& a, const Place& p, index begin, Shared& shared) {
  each<CHUNK * (CHANNELS / V)>([&](int i) {
    const int k = i / (CHANNELS / V), c = i % (CHANNELS / V) * V;
    real e[V] = {};
    if (begin + k < index(a.length) && c < p.width) {
      const index row = p.batch * index(a.length) + begin + k, column = p.channel + c;
      real s[V] = {}, upstream[V] = {};
      if constexpr (NEEDS_S) load<V>(&shared.e[k][c], s);
      if constexpr (has_g) load_real<V>(a.g + (row * index(a.g_row) + column), upstream);
      out_gradients<V>(a, p.b, p.t + begin + k, column, s, upstream, e, static_cast<OutSums&>(shared));
    }
    store<V>(&shared.e[k][c], e);
  });
}

// 3. Steps [first, first + SUB) of the chunk at `begin`, with the states `start` before them.
DEVICE void retreat(const Owner& o, index begin, index length, int first, real (&start)[S], Carried& x, ChannelSums& sums,
                    Shared& shared) {
  const int at = first % ROUND;
  real decay[SUB][S], h[SUB][S];
#pragma unroll
  for (int k = 0; k < SUB; ++k) {
    const real delta = shared.steps.delta[first + k][o.channel], du = delta * shared.steps.u[first + k][o.channel];
    const real (&before)[S] = k > 0 ? h[k - 1] : start;
    real b[S];
    load<S>(&shared.B[at + k][o.state], b);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      decay[k][j] = exp2_of(delta * x.A2[j]);
      h[k][j] = decay[k][j] * before[j] + du * b[j];
    }
  }
#pragma unroll
  for (int k = SUB - 1; k >= 0; --k) {
    const real delta = shared.steps.delta[first + k][o.channel], u = shared.steps.u[first + k][o.channel];
    const real e = shared.e[first + k][o.channel], (&before)[S] = k > 0 ? h[k - 1] : start;
    real b[S], c[S], gamma[S], by_b = 0, by_a = 0;  // sums of Gamma B and of Gamma a h A2
    load<S>(&shared.B[at + k][o.state], b);
    load<S>(&shared.C[at + k][o.state], c);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      gamma[j] = e * c[j] + x.carry[j];
      by_b += gamma[j] * b[j];
      x.carry[j] = decay[k][j] * gamma[j];
      const real product = x.carry[j] * before[j];
      by_a += product * x.A2[j];
      x.dA[j] += product * delta;
    }
    if constexpr (STEPS) {
      shared.part[0][k][threadIdx.x] = by_b;
      shared.part[1][k][threadIdx.x] = by_a;
    }
    if constexpr (SUMS) {
      const index now = begin + first + k;
      sums.add(now, now < length, k, e, delta * u, h[k], gamma);
    }
  }
  if constexpr (SUMS) sums.flush(begin + first, length - begin - first);
}

// du and the gradient of Delta of those steps, in place.
DEVICE void sum_steps(const Owner& o, int first, const Carried& x, Shared& shared) {
  each<SUB * CHANNELS>([&](int i) {  // i % CHANNELS is the owner's channel
    const int k = i / CHANNELS;
    const real by_b = sum_slices(shared.part[0][k], o), by_a = sum_slices(shared.part[1][k], o);
    real& delta = shared.steps.delta[first + k][o.channel];
    real& e = shared.e[first + k][o.channel];
    const real u = shared.steps.u[first + k][o.channel];
    if constexpr (has_dD_part) shared.dD[threadIdx.x] += e * u;
    e = delta * by_b + x.D * e;
    delta = u * by_b + real(LN_2) * by_a;
  });
}

// 4.
DEVICE void finish_chunk(const Args& a, const Place& p, index begin, Shared& shared) {
  each<CHUNK * (CHANNELS / V)>([&](int i) {
    const int k = i / (CHANNELS / V), c = i % (CHANNELS / V) * V;
    if (begin + k >= index(a.length) || c >= p.width) return;
    const index row = p.batch * index(a.length) + begin + k, column = p.channel + c;
    real du[V], raw[V], ddelta[V], draw[V];
    load<V>(&shared.e[k][c], du);
    if constexpr (has_du) store_real<V>(a.du + (row * index(a.du_row) + column), du);
    load<V>(&shared.steps.delta[k][c], ddelta);
    load_real<V>(a.raw + (row * index(a.raw_row) + column), raw);
    delta_gradients<V>(a, p.b, p.t + begin + k, column, raw, ddelta, draw, static_cast<DeltaSums&>(shared));
  });
}

// The sums over stretch `part` of the block's time, which ends here; they begin again from zero.
DEVICE void store_sums(const Args& a, const Place& p, const Owner& o, index part, Carried& x, Shared& shared) {
  const index row = (p.batch * index(a.stretches) + part) * index(a.channels) + o.column;
  if constexpr (has_dA_part) store_owned(o, a.dA_part + row * N, 1, x.dA);
#pragma unroll
  for (int j = 0; j < S; ++j) x.dA[j] = 0;
  if constexpr (has_dD_part || DELTA_SUMS + OUT_SUMS > 0) {
    __syncthreads();
    if (o.slice == 0 && o.channel < p.width) {
      if constexpr (DELTA_SUMS + OUT_SUMS > 0) {
        delta_store_sums<CHANNELS>(a, static_cast<const DeltaSums&>(shared), o.channel, row);
        out_store_sums<CHANNELS>(a, static_cast<const OutSums&>(shared), o.channel, row);
      }
      if constexpr (has_dD_part) {
        real sum = 0;
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) sum += shared.dD[slice * CHANNELS + o.channel];
        a.dD_part[row] = sum;
      }
    }
    __syncthreads();
    shared.dD[threadIdx.x] = 0;
    shared.DeltaSums::clear(), shared.OutSums::clear();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(PARAMETERS) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Place p = place_of(a);
  const Owner o = owner_of(p);
  const index length = index(a.length), chunks = (length + CHUNK - 1) / CHUNK;
  const index state_row = p.batch * index(a.channels) + o.column;
  Carried x;
  load_owned(o, a.A + o.column * index(a.A_row), 1, x.A2);
#pragma unroll
  for (int j = 0; j < S; ++j) x.A2[j] *= real(LOG2_E), x.carry[j] = 0;
  if constexpr (has_g_last) load_owned(o, a.g_last + state_row * index(a.g_last_row), 1, x.carry);
  if constexpr (has_D) x.D = o.channel < p.width ? real(read_real(a.D + o.column)) : real(0);
  // Partial sums (parts, b, t, groups, n) of the blocks of a group.
  const index row = ((p.part * index(a.batch) + p.batch) * length * index(a.groups) + p.group) * N;
  real *const dB = reinterpret_cast<real*>(a.dB_part) + row, *const dC = reinterpret_cast<real*>(a.dC_part) + row;
  ChannelSums sums(o, dB, dC, index(a.groups) * N);
  real delta_sum = 0;
  shared.dD[threadIdx.x] = 0;
  shared.DeltaSums::clear(), shared.OutSums::clear();
  for (index chunk = chunks - 1; chunk >= 0; --chunk) {
    const index begin = chunk * CHUNK;
    const auto* const kept = a.kept + ((p.batch * chunks + chunk) * N * index(a.kept_row) + o.column);
    real h[S];
    load_owned(o, kept, index(a.kept_row), h);
    __syncthreads();  // everybody has finished the chunk after this
    stage_steps(a, p, begin, shared.steps);
    if constexpr (ROUND == CHUNK) stage_round(a, p, begin, shared.B, shared.C);
    __syncthreads();
    if constexpr (has_delta_sum) delta_sum += sum_of_delta(o, shared.steps);
    advance_chunk(a, p, o, begin, x, h, shared);
    __syncthreads();
    stage_e(a, p, begin, shared);
    __syncthreads();
    for (int first = CHUNK - SUB; first >= 0; first -= SUB) {
      if constexpr (ROUND < CHUNK) stage_round_at(a, p, begin + first, shared);
      if (first > 0) {
#pragma unroll
        for (int j = 0; j < S; ++j) h[j] = shared.saved[first / SUB - 1][j][threadIdx.x];
      } else {
        load_owned(o, kept, index(a.kept_row), h);
      }
      retreat(o, begin, length, first, h, x, sums, shared);
      if constexpr (STEPS) {
        __syncthreads();
        sum_steps(o, first, x, shared);
        __syncthreads();
      }
    }
    if constexpr (STEPS) finish_chunk(a, p, begin, shared);
    if (begin % STRETCH == 0) store_sums(a, p, o, begin / STRETCH, x, shared);
  }
  if constexpr (has_d_initial) store_owned(o, a.d_initial + state_row * index(a.d_initial_row), 1, x.carry);
  if constexpr (has_delta_sum)
    if (o.slice == 0 && o.channel < p.width) a.delta_sum[state_row] = delta_sum;
}
