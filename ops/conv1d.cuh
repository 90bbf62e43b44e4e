// The causal depthwise convolution and its gradient. A thread owns V neighbouring channels and slides over STEPS steps of time
// with the last W values in registers; a block is 32 lanes of channels by WARPS runs of time. Widths that do not fit
// registers (WIDE_*) read memory for every tap.
//
// Facts: W (taps), V, STEPS (of a thread), STAGE. Holes: y = out_of(pre); out_gradients gives e, the gradient of pre, from pre
// and that of y. Arguments: length (of time), d, chunks (blocks along time), blocks (along channels); x, y, g, dx and e
// (b, t, d), initial, last, g_last and d_initial (b, w-1, d), weight (d, w), bias (d), partials (b * chunks, w + 1, d): of the
// transposed gradient of the weight, then of that of the bias; borders (b, t), 1 where a document begins.

enum Stage { FORWARD, BACKWARD, WIDE_FORWARD, WIDE_INPUT, WIDE_PARTIALS };  // as in conv1d_cuda.cpp
constexpr int LANES = 32, WARPS = 8, CHANNELS = LANES * V;
constexpr int AHEAD = 16 / sizeof(real);  // steps whose loads are under way together
// Blocks of a multiprocessor; without a number ptxas spills doubles, and borders beside many taps, to fit one more.
constexpr int BLOCKS = sizeof(real) == 8 || (has_borders && W > 8) ? 1 : 0;

// What a thread works on: channels [c, c + V) where live, time [begin, end) of one batch.
struct Part {
  index batch, chunk, c, begin, end;
  bool live;
  DEVICE explicit Part(const Args& a) {
    const index block = index(blockIdx.x), rest = block / index(a.blocks);
    c = (block % index(a.blocks)) * CHANNELS + index(threadIdx.x) * V;
    live = c < index(a.d);
    chunk = rest % index(a.chunks), batch = rest / index(a.chunks);
    begin = (chunk * WARPS + index(threadIdx.y)) * STEPS;
    const index length = index(a.length);
    begin = begin < length ? begin : length;
    end = begin + STEPS < length ? begin + STEPS : length;
  }
};

template <int N>
DEVICE void clear(real (&x)[N]) {
#pragma unroll
  for (int v = 0; v < N; ++v) x[v] = 0;
}

// The inputs at time t >= 0; zeros after the end.
DEVICE void read_x(const Args& a, index batch, index t, index c, real (&x)[V]) {
  if (t < index(a.length))
    load_real<V>(a.x + ((batch * index(a.length) + t) * index(a.x_row) + c), x);
  else
    clear(x);
}
// The same at any time: before 0 the initial state, or zeros.
DEVICE void read_input(const Args& a, index batch, index t, index c, real (&x)[V]) {
  if (t >= 0)
    read_x(a, batch, t, c, x);
  else if (has_initial)
    load_real<V>(a.initial + ((batch * (W - 1) + t + (W - 1)) * index(a.initial_row) + c), x);
  else
    clear(x);
}
// Whether a document begins at t: its taps see nothing that is older.
DEVICE bool border_at(const Args& a, index batch, index t) {
  if constexpr (has_borders) return t >= 0 && t < index(a.length) && a.borders[batch * index(a.length) + t] != 0;
  return false;
}
// Whether the input at s, one of the last W - 1, is of the last document.
DEVICE bool in_last(const Args& a, index batch, index s) {
  if constexpr (has_borders)
    for (index t = s + 1; t < index(a.length); ++t)
      if (border_at(a, batch, t)) return false;
  return true;
}
// V neighbouring elements as they come from memory: in registers that are not looked at before they are needed.
template <class T>
struct Packed {
  T x[V];
  DEVICE void read(const T* from) { load<V>(from, x); }
  DEVICE void clear() {
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = 0;
  }
  DEVICE real value(int v) const { return real(x[v]); }
};
template <>
struct Packed<bf16> {
  u32 x[(V + 1) / 2];
  template <int N = V>  // so that of the two one alone is compiled
  DEVICE void read(const bf16* from) {
    if constexpr (N == 1)
      x[0] = from->bits;
    else
      load<N / 2>(reinterpret_cast<const u32*>(from), x);
  }
  DEVICE void clear() {
#pragma unroll
    for (int v = 0; v < (V + 1) / 2; ++v) x[v] = 0;
  }
  DEVICE real value(int v) const { return real(as_float(v % 2 == 0 ? x[v / 2] << 16 : x[v / 2] & 0xffff0000u)); }
};
// The next AHEAD rows of a tensor (b, t, d) from the first step of a run on, on their way from memory; zeros from `end` on.
template <class T>
struct Rows {
  Packed<T> row[AHEAD];
  const T* from;  // of the row that is asked for next
  i64 stride;
  DEVICE Rows(const T* tensor, i64 row_stride, const Part& p, index length)
      : from(tensor + ((p.batch * length + p.begin) * index(row_stride) + p.c)), stride(row_stride) {}
  // Asks for the row at time t in the place of row k.
  DEVICE void fetch(int k, index t, index end) {
    if (t < end)
      row[k].read(from);
    else
      row[k].clear();
    from += stride;
  }
  DEVICE void fetch_all(index t, index end) {
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) fetch(k, t + k, end);
  }
  // Row k, and asks for the one at time t in its place.
  DEVICE void next(int k, index t, index end, real (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = row[k].value(v);
    fetch(k, t, end);
  }
};
template <class T>
DEVICE Rows<T> rows_of(const T* tensor, i64 row_stride, const Part& p, index length) {
  return Rows<T>(tensor, row_stride, p, length);
}

DEVICE void read_gradient(const Args& a, index batch, index t, index c, real (&g)[V]) {
  if (has_g && t < index(a.length))
    load_real<V>(a.g + ((batch * index(a.length) + t) * index(a.g_row) + c), g);
  else
    clear(g);
}
// Adds what came through the last inputs, those at times [length - (W-1), length), to the gradient of the input at `s`.
DEVICE void add_last(const Args& a, index batch, index s, index c, real (&dx)[V]) {
  const index kept = s - (index(a.length) - (W - 1));
  if (!has_g_last || kept < 0 || !in_last(a, batch, s)) return;
  real more[V];
  load_real<V>(a.g_last + ((batch * (W - 1) + kept) * index(a.g_last_row) + c), more);
#pragma unroll
  for (int v = 0; v < V; ++v) dx[v] += more[v];
}
// The gradient of the input at time s, which before time 0 is that of the initial state. INSIDE: it is not before.
template <bool INSIDE = false>
DEVICE void write_input_gradient(const Args& a, index batch, index s, index c, const real (&dx)[V]) {
  if (has_dx && (INSIDE || s >= 0)) store_real<V>(a.dx + ((batch * index(a.length) + s) * index(a.dx_row) + c), dx);
  if (has_d_initial && !INSIDE && s < 0)
    store_real<V>(a.d_initial + ((batch * (W - 1) + s + (W - 1)) * index(a.d_initial_row) + c), dx);
}

// The block's weights (W, CHANNELS) and bias (CHANNELS) through shared memory, as rows of channels.
struct Taps {
  real w[W][V], bias[V];
  DEVICE void read(const Args& a, const Part& p, real* shared) {
    const int thread = threadIdx.y * LANES + threadIdx.x;
    const index first = p.c - index(threadIdx.x) * V;
    for (int i = thread; i < W * CHANNELS; i += LANES * WARPS) {
      const index c = first + i / W;
      shared[i % W * CHANNELS + i / W] = c < index(a.d) ? real(read_real(a.weight + (first * W + i))) : real(0);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < W; ++j) load<V>(shared + j * CHANNELS + threadIdx.x * V, w[j]);
    clear(bias);
    if (has_bias && p.live) load_real<V>(a.bias + p.c, bias);
  }
  // bias + sum over j of w[j] x[j]
  DEVICE void apply(const real (&x)[W][V], real (&out)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out[v] = bias[v];
#pragma unroll
      for (int j = 0; j < W; ++j) out[v] += w[j][v] * x[j][v];
    }
  }
};

// The last W rows of a sequence, the newest in row W - 1.
DEVICE void slide(real (&window)[W][V], const real (&next)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int j = 0; j + 1 < W; ++j) window[j][v] = window[j + 1][v];
    window[W - 1][v] = next[v];
  }
}

// Nothing of what came before is seen any more.
DEVICE void forget(real (&window)[W][V]) {
#pragma unroll
  for (int j = 0; j < W; ++j) clear(window[j]);
}

// The inputs before the first step, as they are before the next one comes.
DEVICE void read_window(const Args& a, const Part& p, real (&window)[W][V]) {
#pragma unroll
  for (int j = 1; j < W; ++j) {
    if (border_at(a, p.batch, p.begin - W + j)) forget(window);
    read_input(a, p.batch, p.begin - W + j, p.c, window[j]);
  }
}

// The last W - 1 inputs, by the block that has the end of the time.
DEVICE void write_last(const Args& a, const Part& p) {
  if (p.chunk + 1 < index(a.chunks)) return;
  if constexpr (IN_PLACE) {  // there is one block along time, and a warp for each of these inputs
    real x[V];
    const index i = index(threadIdx.y);
    const bool mine = p.live && i < W - 1;
    if (mine) read_input(a, p.batch, index(a.length) - (W - 1) + i, p.c, x);
    if (mine && !in_last(a, p.batch, index(a.length) - (W - 1) + i)) clear(x);
    __syncthreads();  // all have read the initial inputs
    if (mine) store_real<V>(a.last + ((p.batch * (W - 1) + i) * index(a.last_row) + p.c), x);
    return;
  }
  for (index i = index(threadIdx.y); i < W - 1; i += WARPS) {
    real x[V];
    read_input(a, p.batch, index(a.length) - (W - 1) + i, p.c, x);
    if (!in_last(a, p.batch, index(a.length) - (W - 1) + i)) clear(x);
    store_real<V>(a.last + ((p.batch * (W - 1) + i) * index(a.last_row) + p.c), x);
  }
}

DEVICE void forward(const Args& a) {
  __shared__ alignas(16) real shared[W * CHANNELS];
  const Part p(a);
  const index length = index(a.length);
  auto xs = rows_of(a.x, a.x_row, p, length);
  if (p.live) xs.fetch_all(p.begin, p.end);  // under way while the taps come
  Taps taps;
  taps.read(a, p, shared);
  if (!IN_PLACE && !p.live) return;
  if (has_last && !IN_PLACE) write_last(a, p);
  real x[W][V];
  if (has_y && p.live) read_window(a, p, x);
  if (has_last && IN_PLACE) write_last(a, p);
  if (!has_y || !p.live) return;
  for (index t = p.begin; t < p.end; t += AHEAD) {
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      real newest[V], pre[V], y[V];
      if (has_borders && border_at(a, p.batch, t + k)) forget(x);
      xs.next(k, t + k + AHEAD, p.end, newest);
      slide(x, newest);
      taps.apply(x, pre);
      out_of<V>(a, p.batch, t + k < p.end ? t + k : p.end - 1, p.c, pre, y);  // never outside
      if (t + k < p.end) store_real<V>(a.y + ((p.batch * length + t + k) * index(a.y_row) + p.c), y);
    }
  }
}

// Gradients of weight and bias: the sums of the block's runs, added in order, to partials.
DEVICE void write_partials(const Args& a, const Part& p, const real (&dw)[W + 1][V], real* shared) {
  constexpr int COUNT = (W + 1) * CHANNELS;
#pragma unroll
  for (int j = 0; j <= W; ++j) store<V>(shared + threadIdx.y * COUNT + j * CHANNELS + threadIdx.x * V, dw[j]);
  __syncthreads();
  const index first = p.c - index(threadIdx.x) * V, part = p.batch * index(a.chunks) + p.chunk;
  for (int i = threadIdx.y * LANES + threadIdx.x; i < COUNT; i += LANES * WARPS) {
    real sum = 0;
#pragma unroll
    for (int k = 0; k < WARPS; ++k) sum += shared[k * COUNT + i];
    const index c = first + i % CHANNELS;
    if (c < index(a.d)) a.partials[(part * (W + 1) + i / CHANNELS) * index(a.d) + c] = sum;
  }
}

// With e_t, the gradient of pre_t: that of the input at s is the sum over j of w[j] e_{s + W - 1 - j}, so it is complete W - 1
// steps later; dw[j] is the sum over t of e_t x_{t - (W - 1) + j}. Of the e's, s sees those up to the next border.
struct Run {
  real x[W][V], e[W][V], dw[W + 1][V];
  unsigned begins = 0;  // bit i: a border at the time of e[i]
  index first, last;    // dx of times [first, last - (W - 1)) is this run's
  index end;            // of what it reads: `last`, or that of the time

  // The steps from t on, with the inputs and the gradients of the result there. INSIDE: all are this run's, and so are those
  // W - 1 before them.
  template <bool INSIDE, class X, class G>
  DEVICE void steps(const Args& a, const Part& p, const Taps& taps, index t, X& xs, G& gs) {
    constexpr int NEWEST = W < 32 ? W - 1 : 0;  // more do not come here
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      real newest[V], g[V], pre[V], et[V], dx[V];
      ColumnSums<0, V, 1> none;
      const bool border = border_at(a, p.batch, t + k), own = INSIDE || t + k < p.end;
      const bool inside = has_g && (INSIDE || t + k < index(a.length));
      if (has_borders && border) forget(x);
      xs.next(k, t + k + AHEAD, end, newest);
      gs.next(k, t + k + AHEAD, has_g ? end : 0, g);
      slide(x, newest);
      taps.apply(x, pre);
      if constexpr (has_g)  // what is stored besides belongs to the run of this step
        out_gradients<V>(a, p.batch, inside ? t + k : p.begin, p.c, pre, g, et, none, own);
#pragma unroll
      for (int v = 0; v < V; ++v) et[v] = inside ? et[v] : real(0);
      slide(e, et);
      begins = begins >> 1 | unsigned(border) << NEWEST;
      clear(dx);
#pragma unroll
      for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const unsigned between = W < 32 ? (2u << (NEWEST - (W < 32 ? j : 0))) - 2 : 0;  // the times after s up to this e's
          if (!has_borders || (begins & between) == 0) dx[v] += taps.w[j][v] * e[W - 1 - j][v];
          if (has_partials && own) dw[j][v] += e[W - 1][v] * x[j][v];
        }
        if (has_partials && own) dw[W][v] += e[W - 1][v];
      }
      const index s = t + k - (W - 1);
      if (!INSIDE && (s < first || t + k >= last)) continue;
      add_last(a, p.batch, s, p.c, dx);
      write_input_gradient<INSIDE>(a, p.batch, s, p.c, dx);
    }
  }
};

DEVICE void backward(const Args& a) {
  __shared__ alignas(16) real shared[has_partials ? WARPS * (W + 1) * CHANNELS : W * CHANNELS];
  const Part p(a);
  Run run;
#pragma unroll
  for (int j = 0; j < W; ++j) clear(run.e[j]), clear(run.dw[j]);
  clear(run.dw[W]);
  // The first run also has the initial state; a run without steps has nothing.
  run.first = p.begin > 0 ? p.begin : index(1 - W);
  run.last = p.live && (p.begin < p.end || (p.begin == 0 && threadIdx.y == 0)) ? p.end + (W - 1) : p.begin;
  const index length = index(a.length), whole = p.begin + (W - 1);
  run.end = run.last < length ? run.last : length;
  auto xs = rows_of(a.x, a.x_row, p, length);
  auto gs = rows_of(a.g, a.g_row, p, length);
  if (p.live) xs.fetch_all(p.begin, run.end), gs.fetch_all(p.begin, has_g ? run.end : 0);  // under way while the taps come
  Taps taps;
  taps.read(a, p, shared);
  if (p.live) read_window(a, p, run.x);
  for (index t = p.begin; t < run.last; t += AHEAD) {
    if (t >= whole && t + AHEAD <= p.end)
      run.steps<true>(a, p, taps, t, xs, gs);
    else
      run.steps<false>(a, p, taps, t, xs, gs);
  }
  if constexpr (has_partials) {
    __syncthreads();  // the weights have been read
    write_partials(a, p, run.dw, shared);
  }
}

// ---- wide: V is 1 -----------------------------------------------------------------------------------------------------------

// How many steps before t belong to its document.
DEVICE index before(const Args& a, index batch, index t) {
  index n = 0;
  while (n < W - 1 && !border_at(a, batch, t - n)) ++n;
  return n;
}

// y, or for the gradient e.
DEVICE void wide_forward(const Args& a) {
  const Part p(a);
  if (!p.live) return;
  if (has_last) write_last(a, p);
  for (index t = p.begin; t < p.end; ++t) {
    real pre[V] = {has_bias ? real(read_real(a.bias + p.c)) : real(0)}, x[V], g[V], result[V] = {};
    for (index j = has_borders ? W - 1 - before(a, p.batch, t) : index(0); j < W; ++j) {
      read_input(a, p.batch, t - (W - 1) + j, p.c, x);
      pre[0] += real(read_real(a.weight + (p.c * W + j))) * x[0];
    }
    const index row = p.batch * index(a.length) + t;
    if constexpr (has_y) {
      out_of<V>(a, p.batch, t, p.c, pre, result);
      write_real(a.y + (row * index(a.y_row) + p.c), result[0]);
    }
    if constexpr (has_e) {
      read_gradient(a, p.batch, t, p.c, g);
      ColumnSums<0, V, 1> none;
      if constexpr (has_g) out_gradients<V>(a, p.batch, t, p.c, pre, g, result, none);
      a.e[row * index(a.d) + p.c] = result[0];
    }
  }
}

DEVICE void wide_input_gradient(const Args& a) {
  const Part p(a);
  const bool whole = p.begin == 0 && threadIdx.y == 0;  // has the initial state too
  if (!p.live) return;
  for (index s = whole ? index(1 - W) : p.begin; s < p.end; ++s) {
    real dx[V] = {};
    index seen = W;  // times from s on
    if constexpr (has_borders)
      for (seen = 1; seen < W && !border_at(a, p.batch, s + seen);) ++seen;
    for (index j = W - seen; j < W; ++j) {
      const index t = s + (W - 1) - j;
      if (t >= 0 && t < index(a.length))
        dx[0] += real(read_real(a.weight + (p.c * W + j))) * a.e[(p.batch * index(a.length) + t) * index(a.d) + p.c];
    }
    add_last(a, p.batch, s, p.c, dx);
    write_input_gradient(a, p.batch, s, p.c, dx);
  }
}

// Sums over the block's chunk of time, a thread a tap and channel.
DEVICE void wide_partials(const Args& a) {
  const Part p(a);
  if (!p.live) return;
  const index length = index(a.length), begin = p.chunk * (WARPS * STEPS);
  const index end = begin + WARPS * STEPS < length ? begin + WARPS * STEPS : length;
  for (index j = index(threadIdx.y); j <= W; j += WARPS) {
    LongSum<real> sum;
#pragma unroll 1
    for (index t = begin; t < end; ++t) {
      real x[V] = {1};
      if (j < W) read_input(a, p.batch, t - (W - 1) + j, p.c, x);
      if (has_borders && j < W && W - 1 - j > before(a, p.batch, t)) x[0] = 0;
      sum.add(a.e[(p.batch * length + t) * index(a.d) + p.c] * x[0]);
    }
    a.partials[((p.batch * index(a.chunks) + p.chunk) * (W + 1) + j) * index(a.d) + p.c] = sum.value();
  }
}

extern "C" __global__ void __launch_bounds__(LANES * WARPS, BLOCKS) KERNEL(PARAMETERS) {
  if constexpr (STAGE == FORWARD) forward(a);
  if constexpr (STAGE == BACKWARD) backward(a);
  if constexpr (STAGE == WIDE_FORWARD) wide_forward(a);
  if constexpr (STAGE == WIDE_INPUT) wide_input_gradient(a);
  if constexpr (STAGE == WIDE_PARTIALS) wide_partials(a);
}
