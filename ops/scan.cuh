// What the kernels of the selective scan share (ops/scan.cpp has the formulas). Channel-last, serial in time.
//
// A block has CHANNELS channels of one group of one batch element, with all their states: thread slice * CHANNELS + channel
// owns S states of its channel. So neighbouring lanes are neighbouring channels, B and C are broadcast from shared memory, and
// a sum over the states is one value a thread ("part"), added up over the slices in their order.
// What lies outside is zeros: past the end of the sequence Delta = 0 leaves a state as it is.
//
// Facts: N states, S of a thread; CHANNELS, THREADS; CHUNK steps between kept states, ROUND of them with B and C in shared
// memory at a time; V channels and VB states are moved as one vector.

constexpr int SLICES = THREADS / CHANNELS, PADDED = SLICES * S;
// Rows of shared memory that some threads read along channels in vectors: four more elements spread the rows over the banks.
constexpr int ROW = CHANNELS + 4, PART_ROW = THREADS + 4;

// f(i) for every i below COUNT, shared out among the threads.
template <int COUNT, class F>
DEVICE void each(F f) {
#pragma unroll 1
  for (int first = 0; first < COUNT; first += THREADS) {
    const int i = first + int(threadIdx.x);
    if (COUNT % THREADS == 0 || i < COUNT) f(i);
  }
}

// Which part of the work a block has: channels [channel, channel + width) of the tensors, of which `part` is the block of the
// group. Each segment of time is a batch element of its own; in the tensors it is element `b`, from time `t` on.
struct Place {
  index batch, group, part, channel, width, b, t;
};
DEVICE Place place_of(const Args& a) {
  const index parts = index(a.parts), groups = index(a.groups), size = index(a.group_size), block = index(blockIdx.x);
  const index part = block % parts, group = block / parts % groups, first = part * CHANNELS;
  const index batch = block / parts / groups, b = batch / index(a.segments);
  return {batch, group, part, group * size + first, size - first < CHANNELS ? size - first : index(CHANNELS), b,
          (batch - b * index(a.segments)) * index(a.length)};
}

// What a thread owns: states [state, state + S) of a channel, as far as they exist.
struct Owner {
  int channel, slice, state, states;  // channel: of the block; states: how many of the S exist, if any
  index column;                       // the channel of the tensors
};
DEVICE Owner owner_of(const Place& p) {
  const int channel = int(threadIdx.x) % CHANNELS, slice = int(threadIdx.x) / CHANNELS, state = slice * S;
  const int left = N - state < S ? N - state : S;
  return {channel, slice, state, channel < p.width ? left : 0, p.channel + channel};
}
// The owner's states in a row of N, and in rows that lie `stride` apart.
template <class T>
DEVICE void load_owned(const Owner& o, const T* from, index stride, real (&x)[S]) {
#pragma unroll
  for (int j = 0; j < S; ++j) x[j] = j < o.states ? real(read_real(from + (o.state + j) * stride)) : real(0);
}
template <class T>
DEVICE void store_owned(const Owner& o, T* to, index stride, const real (&x)[S]) {
#pragma unroll
  for (int j = 0; j < S; ++j)
    if (j < o.states) write_real(to + (o.state + j) * stride, x[j]);
}

// Of a chunk.
struct alignas(16) Steps {
  real delta[CHUNK][ROW], u[CHUNK][ROW];
};

// Delta and u of a chunk.
DEVICE void stage_steps(const Args& a, const Place& p, index begin, Steps& to) {
  each<CHUNK * (CHANNELS / V)>([&](int i) {
    const int k = i / (CHANNELS / V), c = i % (CHANNELS / V) * V;
    real u[V] = {}, delta[V] = {};
    if (begin + k < index(a.length) && c < p.width) {
      const index row = p.batch * index(a.length) + begin + k, column = p.channel + c;
      real raw[V];
      load_real<V>(a.u + (row * index(a.u_row) + column), u);
      load_real<V>(a.raw + (row * index(a.raw_row) + column), raw);
      delta_of<V>(a, p.b, p.t + begin + k, column, raw, delta);
    }
    store<V>(&to.delta[k][c], delta);
    store<V>(&to.u[k][c], u);
  });
}

// The sum of Delta over a chunk: of the owner's channel.
DEVICE real sum_of_delta(const Owner& o, const Steps& steps) {
  real sum = 0;
#pragma unroll 8
  for (int k = 0; k < CHUNK; ++k) sum += steps.delta[k][o.channel];
  return sum;
}

// B or C of ROUND steps, of which `left` exist.
template <class T>
DEVICE void stage_states(const T* from, index stride, index left, real (&to)[ROUND][PADDED]) {
  each<ROUND * (PADDED / VB)>([&](int i) {
    const int k = i / (PADDED / VB), j = i % (PADDED / VB) * VB;
    real x[VB] = {};
    if (k < left && j < N) load_real<VB>(from + (k * stride + j), x);
    store<VB>(&to[k][j], x);
  });
}
DEVICE void stage_round(const Args& a, const Place& p, index begin, real (&B)[ROUND][PADDED], real (&C)[ROUND][PADDED]) {
  const index left = index(a.length) - begin;
  const index b = p.batch * index(a.B_batch) + begin * index(a.B_time) + p.group * index(a.B_group);
  const index c = p.batch * index(a.C_batch) + begin * index(a.C_time) + p.group * index(a.C_group);
  stage_states(a.B + b, index(a.B_time), left, B);
  stage_states(a.C + c, index(a.C_time), left, C);
}

// COUNT steps, from the chunk's `first`, of the owner's states h; A2 is A log2(e). part[k] receives what they add to s at step
// k, if READ.
template <int COUNT, bool READ>
DEVICE void advance(const Owner& o, const real (&A2)[S], const Steps& steps, int first, const real (*B)[PADDED],
                    const real (*C)[PADDED], real (&h)[S], real (*part)[PART_ROW]) {
#pragma unroll(32 / S < COUNT ? 32 / S : COUNT)
  for (int k = 0; k < COUNT; ++k) {
    const real delta = steps.delta[first + k][o.channel], du = delta * steps.u[first + k][o.channel];
    real b[S], c[S], sum = 0;
    load<S>(&B[k][o.state], b);
    if constexpr (READ) load<S>(&C[k][o.state], c);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      h[j] = exp2_of(delta * A2[j]) * h[j] + du * b[j];
      if constexpr (READ) sum += c[j] * h[j];
    }
    if constexpr (READ) part[k][threadIdx.x] = sum;
  }
}
