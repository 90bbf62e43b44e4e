// The selective scan of Mamba (arXiv:2312.00752), channel-last. Each part of the work is one batch element and one block
// of channels, walked in chunks of time; the inner loops run over the channels of the block, so they vectorise for
// every state size, and nothing of size (b, t, i, n) exists. Forward keeps the state at the start of each chunk;
// backward computes the states of a chunk again, last chunk first.
#include <algorithm>
#include <bit>
#include <numbers>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "jit/vmath.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/filled.h"
#include "ops/ops.h"
#include "ops/scan.h"

namespace weft {
namespace {

using namespace scan_layout;

constexpr std::int64_t kBlockStates = 2048;  // of a block of channels: with A and the carried gradient they fit in L1
constexpr std::int64_t kMostState = 256;     // n

// Sizes; a block of channels lies inside one group.
struct Grid {
  std::int64_t b, t, i, n, groups;
  std::int64_t chunks() const { return ceil_div(t, kTime); }
  std::int64_t width() const {  // channels of a block
    const std::int64_t width = std::min<std::int64_t>(kBlockStates / std::max<std::int64_t>(n, 1), kBlock);
    return std::max<std::int64_t>(width / 16 * 16, 16);
  }
  std::int64_t group_size() const { return groups ? i / groups : 0; }
  std::int64_t blocks_of_group() const { return ceil_div(group_size(), width()); }
  std::int64_t blocks() const { return groups * blocks_of_group(); }
  std::int64_t parts() const { return b * blocks(); }
};

struct Part {
  std::int64_t batch, block, group, c, w;  // channels [c, c + w)
  Part(const Grid& g, std::int64_t index) : batch(index / g.blocks()), block(index % g.blocks()) {
    group = block / g.blocks_of_group();
    const std::int64_t first = block % g.blocks_of_group() * g.width();
    c = group * g.group_size() + first;
    w = std::min(g.width(), g.group_size() - first);
  }
};

// What forward and backward have in common.
struct ScanTask {
  Grid grid;
  Operand u, raw, A, D, borders;
  GroupRows B, C;
  Fused delta, out;  // holes
  bool has_delta = false, has_out = false;
  int root_count = 1;  // of the out hole in backward
};

// One chunk of one part: operands as T. Buffers belong to the thread.
template <class T>
struct Chunk {
  std::int64_t begin, end;
  std::vector<const T*> u, raw, B, C;  // rows (w) and (n) of each step
  std::vector<T> u_buffer, raw_buffer, b_buffer, c_buffer;
  std::vector<T> delta, du;    // (kTime, w): Delta, a long step where a document begins, and Delta u
  std::vector<const T*> step;  // (w) of each step: Delta as it is
  std::vector<T> step_buffer;

  explicit Chunk(const Grid& g)
      : begin(0),
        end(0),
        u(kTime),
        raw(kTime),
        B(kTime),
        C(kTime),
        u_buffer(kTime * g.width()),
        raw_buffer(u_buffer.size()),
        b_buffer(kTime * g.n),
        c_buffer(b_buffer.size()),
        delta(u_buffer.size()),
        du(u_buffer.size()),
        step(kTime) {}

  void load(const ScanTask& task, const Launch& launch, const Part& p, std::int64_t chunk, std::int64_t following,
            Runner<T>* hole) {
    const Grid& g = task.grid;
    const Rows us(launch, task.u), raws(launch, task.raw);
    prefetch(us, g, p, following);
    prefetch(raws, g, p, following);
    begin = chunk * kTime, end = std::min(g.t, begin + kTime);
    const Rows bs(launch, task.B.operand), cs(launch, task.C.operand);
    const std::int32_t* const borders = task.borders ? launch.pointer<std::int32_t>(task.borders) : nullptr;
    const auto vector = [&](const Rows& x, const GroupRows& at, std::int64_t t, T* buffer) {
      return load_row(x.data, x.dtype, p.batch * at.batch + t * at.time + p.group * at.group, g.n, buffer);
    };
    for (std::int64_t t = begin, k = 0; t < end; ++t, ++k) {
      const std::int64_t row = p.batch * g.t + t;
      u[k] = us.read(row, p.c, p.w, u_buffer.data() + k * p.w);
      raw[k] = raws.read(row, p.c, p.w, raw_buffer.data() + k * p.w);
      B[k] = vector(bs, task.B, t, b_buffer.data() + k * g.n);
      C[k] = vector(cs, task.C, t, c_buffer.data() + k * g.n);
      T* d = delta.data() + k * p.w;
      if (hole) {
        const void* value = raw[k];
        void* result = d;
        hole->run(row * g.i + p.c, int(p.w), std::span(&value, 1), std::span(&result, 1));
      } else {
        std::copy_n(raw[k], p.w, d);
      }
      for (std::int64_t c = 0; c < p.w; ++c) du[k * p.w + c] = d[c] * u[k][c];
      step[k] = d;
      if (borders && borders[row]) {
        if (step_buffer.empty()) step_buffer.resize(delta.size());
        step[k] = std::copy_n(d, p.w, step_buffer.data() + k * p.w) - p.w;
        std::fill_n(d, p.w, T(kLongStep));
      }
    }
  }
  std::int64_t steps() const { return end - begin; }

  // Asks for rows of `x` of a chunk that is loaded next: rows lie pages apart, where the hardware does not look ahead.
  static void prefetch(const Rows& x, const Grid& g, const Part& p, std::int64_t chunk) {
    if (!x || chunk < 0) return;
    const std::int64_t size = std::int64_t(size_of(x.dtype)), bytes = p.w * size;
    for (std::int64_t t = chunk * kTime; t < std::min(g.t, (chunk + 1) * kTime); ++t) {
      const std::byte* row = x.data + ((p.batch * g.t + t) * x.stride + p.c) * size;
      for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
  }
};

// A (i, n) of the part's channels as (n, w).
template <class T>
std::vector<T> transposed(const Launch& launch, const Operand& a, const Part& p, std::int64_t n) {
  const Rows rows(launch, a);
  std::vector<T> out(std::size_t(n * p.w)), buffer(static_cast<std::size_t>(n));
  for (std::int64_t c = 0; c < p.w; ++c) {
    const T* row = rows.read(p.c + c, 0, n, buffer.data());
    for (std::int64_t j = 0; j < n; ++j) out[std::size_t(j * p.w + c)] = row[j];
  }
  return out;
}

// ---- inner loops: w channels, n states, matrices (n, w); U states at a time share the loads of a channel --------------------

// exp in 15 instructions, against vmath's 21: 0 below e^-87.7 and infinite above e^88.3.
inline float fast_exp(float x) {
  constexpr float kRound = 0x1.8p23f, kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;  // as in vmath::exp
  constexpr std::uint32_t kZero = std::bit_cast<std::uint32_t>(kRound);
  x = x < -88.0f ? -88.0f : x;  // the exponent lies in [-127, 128], the bits of 0 and of infinity; a NaN passes
  x = x > 88.9f ? 88.9f : x;
  const float shifted = x * std::numbers::log2e_v<float> + kRound, n = shifted - kRound;
  const float r = x - n * kHigh - n * kLow;
  float p = 1.37805939e-3f;
  p = p * r + 8.37312452e-3f;
  p = p * r + 4.16695364e-2f;
  p = p * r + 1.66664720e-1f;
  p = p * r + 4.99999851e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) - (kZero - 127);
  return p * std::bit_cast<float>(exponent << 23);
}
inline double fast_exp(double x) { return vmath::exp(x); }

// h = exp(Delta A) h + Delta u B;  s += C h.
template <class T, int U>
void advance(std::int64_t w, std::int64_t n, const T* delta, const T* du, const T* B, const T* C, const T* A, T* h, T* s) {
  for (std::int64_t j = 0; j < n; j += U) {
    const T *a = A + j * w, *b = B + j, *c = C + j;
    T* x = h + j * w;
#pragma omp simd
    for (std::int64_t k = 0; k < w; ++k) {
      T sum = s[k];
      for (int q = 0; q < U; ++q) {
        const T next = fast_exp(delta[k] * a[q * w + k]) * x[q * w + k] + du[k] * b[q];
        x[q * w + k] = next;
        sum += c[q] * next;
      }
      s[k] = sum;
    }
  }
}

// The same, keeping exp(Delta A) in `decay` and the new state in `next`.
template <class T, int U>
void advance_keeping(std::int64_t w, std::int64_t n, const T* delta, const T* du, const T* B, const T* C, const T* A,
                     const T* h, T* decay, T* next, T* s) {
  for (std::int64_t j = 0; j < n; j += U) {
    const T *a = A + j * w, *b = B + j, *c = C + j, *x = h + j * w;
    T *keep = decay + j * w, *y = next + j * w;
#pragma omp simd
    for (std::int64_t k = 0; k < w; ++k) {
      T sum = s[k];
      for (int q = 0; q < U; ++q) {
        const T e = fast_exp(delta[k] * a[q * w + k]);
        const T v = e * x[q * w + k] + du[k] * b[q];
        keep[q * w + k] = e;
        y[q * w + k] = v;
        sum += c[q] * v;
      }
      s[k] = sum;
    }
  }
}

// One step back. `carry` holds a_{t+1} Gamma_{t+1} and receives a_t Gamma_t. With Gamma = e C + carry and
// kappa = a h_{t-1}, which h - Delta u B is too, but for its digits:  gb += Gamma B, gak += Gamma A kappa (w);
// dA += Gamma Delta kappa (n, w);  dB = sum of Gamma Delta u, dC = sum of e h over the channels (n).
template <class T, int U>
void retreat(std::int64_t w, std::int64_t n, const T* delta, const T* du, const T* e, const T* B, const T* C, const T* A,
             const T* decay, const T* before, const T* h, T* carry, T* gb, T* gak, T* dA, T* dB, T* dC) {
  for (std::int64_t j = 0; j < n; j += U) {
    const T *a = A + j * w, *b = B + j, *c = C + j, *x = h + j * w, *y = before + j * w, *f = decay + j * w;
    T *g = carry + j * w, *da = dA + j * w;
    T db0 = 0, db1 = 0, db2 = 0, db3 = 0, dc0 = 0, dc1 = 0, dc2 = 0, dc3 = 0;
#pragma omp simd reduction(+ : db0, db1, db2, db3, dc0, dc1, dc2, dc3)
    for (std::int64_t k = 0; k < w; ++k) {
      T sum_b = gb[k], sum_a = gak[k];
      const auto state = [&](int q, T& db, T& dc) {
        const T gamma = e[k] * c[q] + g[q * w + k], next = f[q * w + k] * gamma, product = next * y[q * w + k];
        dc += e[k] * x[q * w + k];
        db += gamma * du[k];
        sum_b += gamma * b[q];
        sum_a += product * a[q * w + k];
        da[q * w + k] += product * delta[k];
        g[q * w + k] = next;
      };
      state(0, db0, dc0);
      if constexpr (U > 1) state(1, db1, dc1);
      if constexpr (U > 2) state(2, db2, dc2), state(3, db3, dc3);
      gb[k] = sum_b;
      gak[k] = sum_a;
    }
    const T db[] = {db0, db1, db2, db3}, dc[] = {dc0, dc1, dc2, dc3};
    for (int q = 0; q < U; ++q) dB[j + q] = db[q], dC[j + q] = dc[q];
  }
}

// Calls f with the largest unrolling that divides n.
template <class F>
void unrolled(std::int64_t n, F&& f) {
  if (n % 4 == 0)
    f(std::integral_constant<int, 4>{});
  else if (n % 2 == 0)
    f(std::integral_constant<int, 2>{});
  else
    f(std::integral_constant<int, 1>{});
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

// h (n, w) of a part from or to the (b, i, n) operand.
template <class T>
void load_state(const Rows& from, const Grid& g, const Part& p, T* h) {
  std::vector<T> buffer(static_cast<std::size_t>(g.n));
  for (std::int64_t c = 0; c < p.w; ++c) {
    const T* row = from ? from.read(p.batch * g.i + p.c + c, 0, g.n, buffer.data()) : nullptr;
    for (std::int64_t j = 0; j < g.n; ++j) h[j * p.w + c] = row ? row[j] : T(0);
  }
}
template <class T>
void store_state(const Rows& to, const Grid& g, const Part& p, const T* h) {
  if (!to) return;
  std::vector<T> row(static_cast<std::size_t>(g.n));
  for (std::int64_t c = 0; c < p.w; ++c) {
    for (std::int64_t j = 0; j < g.n; ++j) row[std::size_t(j)] = h[j * p.w + c];
    to.write(p.batch * g.i + p.c + c, 0, g.n, row.data());
  }
}

template <class T>
struct ForwardOutputs {
  Rows y, last, states, s;
};

// s (steps, w) of the chunk becomes y: adds D u and evaluates the out hole.
template <class T>
void finish_rows(const ScanTask& task, const Part& p, const Chunk<T>& chunk, const T* D, Runner<T>* hole,
                 const ForwardOutputs<T>& outputs, T* s) {
  const Rows& y = outputs.y;
  for (std::int64_t k = 0; k < chunk.steps(); ++k, s += p.w) {
    const std::int64_t row = p.batch * task.grid.t + chunk.begin + k;
    if (D)
      for (std::int64_t c = 0; c < p.w; ++c) s[c] += D[c] * chunk.u[std::size_t(k)][c];
    outputs.s.write(row, p.c, p.w, static_cast<const T*>(s));
    if (!y) continue;
    if (hole) {
      const void* value = s;
      void* result = y.target<T>(row, p.c, s);
      hole->run(row * task.grid.i + p.c, int(p.w), std::span(&value, 1), std::span(&result, 1));
      y.write(row, p.c, p.w, static_cast<const T*>(result));
    } else {
      y.write(row, p.c, p.w, s);
    }
  }
}

template <class T>
void forward_part(const ScanTask& task, const Launch& launch, const Rows& initial, const ForwardOutputs<T>& outputs,
                  std::int64_t index) {
  const Grid& g = task.grid;
  const Part p(g, index);
  const std::vector<T> A = transposed<T>(launch, task.A, p, g.n);
  std::vector<T> h(A.size()), s(std::size_t(kTime * p.w)), d_buffer(std::size_t(p.w));
  const T* D = task.D ? Rows(launch, task.D).read(0, p.c, p.w, d_buffer.data()) : nullptr;
  load_state(initial, g, p, h.data());
  std::unique_ptr<Runner<T>> delta, out;
  if (task.has_delta) delta = std::make_unique<Runner<T>>(launch, task.delta);
  if (task.has_out) out = std::make_unique<Runner<T>>(launch, task.out);
  Chunk<T> chunk(g);
  for (std::int64_t q = 0; q < g.chunks(); ++q) {
    chunk.load(task, launch, p, q, q + 1, delta.get());
    if (outputs.states)
      for (std::int64_t j = 0; j < g.n; ++j)
        outputs.states.write((p.batch * g.chunks() + q) * g.n + j, p.c, p.w, h.data() + j * p.w);
    std::fill(s.begin(), s.end(), T(0));
    unrolled(g.n, [&]<int U>(std::integral_constant<int, U>) {
      for (std::int64_t k = 0; k < chunk.steps(); ++k)
        advance<T, U>(p.w, g.n, chunk.delta.data() + k * p.w, chunk.du.data() + k * p.w, chunk.B[k], chunk.C[k], A.data(),
                      h.data(), s.data() + k * p.w);
    });
    if (outputs.y || outputs.s) finish_rows(task, p, chunk, D, out.get(), outputs, s.data());
  }
  store_state(outputs.last, g, p, h.data());
}

Grid grid_of(const Lowering& l) {
  const Shape u = l.shape(kU), b = l.shape(kB);
  return {u[0], u[1], u[2], l.shape(kA)[1], b.rank() == 4 ? b[2] : 1};
}

ScanTask task_of(Lowering& l) {
  ScanTask task;
  task.grid = grid_of(l);
  task.u = l.rows(kU);
  task.raw = l.rows(kDelta);
  task.A = l.rows(kA);
  task.D = l.has(kD) ? l.dense(kD) : Operand{};
  task.borders = l.has(kBorders) ? l.dense(kBorders) : Operand{};
  task.B = group_rows(l, kB);
  task.C = group_rows(l, kC);
  task.has_delta = l.filled(0);
  if (task.has_delta) task.delta = l.hole(0, l.shape(kU));
  return task;
}

// The states that are kept, (b, chunks, n, i); in the memory of those that the kernels for 16 states keep.
Operand states_of(const Grid& g, const Operand& kept) {
  if (kept.dtype != DType::i32) return kept;
  const std::int64_t dims[] = {g.b, g.chunks(), g.n, g.i};
  Operand states = dense_operand(kept.slot, DType::f32, dims);
  states.offset = kept.offset;
  return states;
}

template <class T>
void lower_scan_forward(Lowering& l) {
  ScanTask task = task_of(l);
  task.has_out = l.filled(1);
  if (task.has_out) task.out = l.hole(1, l.shape(kU));
  const Operand initial = l.has(kInitial) ? l.rows(kInitial) : Operand{};
  const Operand y = l.output(kY), last = l.output(kLast), states = states_of(task.grid, l.output(kKept)),
                value = l.integer(0) != 0 ? l.output(kS) : Operand{};
  l.emit("scan_forward", [=](const Launch& launch) {
    const ForwardOutputs<T> outputs{Rows(launch, y), Rows(launch, last), Rows(launch, states), Rows(launch, value)};
    const Rows start(launch, initial);
    parallel(task.grid.parts(), [&](std::int64_t index) { forward_part<T>(task, launch, start, outputs, index); });
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

// Where the roots of a hole's gradient go: over the space, and summed over the rows by way of parts, one for each batch
// element. Absent where nobody reads it. The first root also goes back to the kernel.
struct RootOutputs {
  std::vector<Operand> each, parts, sums;  // (b, t, i); (b, i); (i)
  Operand first() const { return each.empty() ? Operand{} : each[0]; }

  // What computes them for the channels of p, and, after its last row, their sums.
  template <class T>
  std::unique_ptr<GradientRows<T>> rows(const Launch& launch, const Fused& hole, const Grid& g, const Part& p) const {
    return std::make_unique<GradientRows<T>>(launch, hole, each, parts, g.i, p.w);
  }
  template <class T>
  void store_sums(const Launch& launch, const Grid& g, const Part& p, GradientRows<T>& from) const {
    for (std::size_t r = 0; r < parts.size(); ++r)
      if (parts[r]) from.store_sum(r, launch.pointer<T>(parts[r]) + p.batch * g.i + p.c);
  }
};

struct ScanBackwardTask : ScanTask {
  Operand states, g, g_last;
  Fused delta_grad, out_grad;
  bool has_delta_grad = false, has_out_grad = false;
  RootOutputs delta_roots, out_roots;
  Operand du, d_initial;
  Operand dB, dC, dA, dD;  // partial sums: (blocks of a group, b, t, groups, n), (b, i, n), (b, i)
};

// Buffers of one thread for one part.
template <class T>
struct BackwardScratch {
  struct Decay;
  struct States;
  T *decay, *states;             // (kTime, n, w)
  std::vector<T> A, first;       // (n, w)
  std::vector<T> s, e, gb, gak;  // (kTime, w)
  std::vector<T> carry;          // (n, w)
  LongSums<T> dA, dD;            // (n, w); (w)
  BackwardScratch(const Grid& g, const Part& p)
      : decay(thread_scratch<T, Decay>(std::size_t(kTime * g.n * p.w))),
        states(thread_scratch<T, States>(std::size_t(kTime * g.n * p.w))),
        first(std::size_t(g.n * p.w)),
        s(std::size_t(kTime * p.w)),
        e(s.size()),
        gb(s.size()),
        gak(s.size()),
        carry(first.size()),
        dA(p.w, g.n),
        dD(p.w) {}
};

// The states and decays of the chunk, s without and then with D u, and from it e = d loss / d s.
template <class T>
void recompute(const ScanBackwardTask& task, const Launch& launch, const Part& p, std::int64_t q, const Chunk<T>& chunk,
               const T* D, GradientRows<T>* out_grad, BackwardScratch<T>& x) {
  const Grid& g = task.grid;
  const Rows kept(launch, task.states), gs(launch, task.g), e_root(launch, task.out_roots.first());
  const std::int64_t size = g.n * p.w;
  for (std::int64_t j = 0; j < g.n; ++j) {
    T* to = x.first.data() + j * p.w;
    const T* from = kept.read((p.batch * g.chunks() + q) * g.n + j, p.c, p.w, to);
    if (from != to) std::copy_n(from, p.w, to);
  }
  std::fill(x.s.begin(), x.s.end(), T(0));
  unrolled(g.n, [&]<int U>(std::integral_constant<int, U>) {
    for (std::int64_t k = 0; k < chunk.steps(); ++k)
      advance_keeping<T, U>(p.w, g.n, chunk.delta.data() + k * p.w, chunk.du.data() + k * p.w, chunk.B[k], chunk.C[k],
                            x.A.data(), k ? x.states + (k - 1) * size : x.first.data(), x.decay + k * size, x.states + k * size,
                            x.s.data() + k * p.w);
  });
  for (std::int64_t k = 0; k < chunk.steps(); ++k) {
    const std::int64_t row = p.batch * g.t + chunk.begin + k;
    T *e = x.e.data() + k * p.w, *s = x.s.data() + k * p.w;
    const T* up = gs ? gs.read(row, p.c, p.w, e) : nullptr;
    if (!up)
      std::fill_n(e, p.w, T(0));
    else if (up != e)
      std::copy_n(up, p.w, e);
    if (!out_grad) continue;
    if (D)
      for (std::int64_t c = 0; c < p.w; ++c) s[c] += D[c] * chunk.u[std::size_t(k)][c];
    out_grad->run(row, p.c, p.w, s, e, e);
    e_root.write(row, p.c, p.w, e);
  }
}

// The gradients of the chunk, last step first; dB and dC into their partial sums.
template <class T>
void retreat_chunk(const ScanBackwardTask& task, const Launch& launch, const Part& p, const Chunk<T>& chunk, const T* D,
                   GradientRows<T>* delta_grad, BackwardScratch<T>& x) {
  const Grid& g = task.grid;
  const Rows du(launch, task.du), draw(launch, task.delta_roots.first());
  const std::int64_t size = g.n * p.w, step = g.groups * g.n, block = p.block % g.blocks_of_group();
  const std::int64_t sums = ((block * g.b + p.batch) * g.t + chunk.begin) * step + p.group * g.n;
  T *dB = launch.pointer<T>(task.dB) + sums, *dC = launch.pointer<T>(task.dC) + sums;
  std::fill(x.gb.begin(), x.gb.end(), T(0));
  std::fill(x.gak.begin(), x.gak.end(), T(0));
  unrolled(g.n, [&]<int U>(std::integral_constant<int, U>) {
    for (std::int64_t k = chunk.steps() - 1; k >= 0; --k) {
      const std::int64_t at = k * p.w;
      retreat<T, U>(p.w, g.n, chunk.delta.data() + at, chunk.du.data() + at, x.e.data() + at, chunk.B[k], chunk.C[k],
                    x.A.data(), x.decay + k * size, k ? x.states + (k - 1) * size : x.first.data(), x.states + k * size,
                    x.carry.data(), x.gb.data() + at, x.gak.data() + at, x.dA.next(), dB + k * step, dC + k * step);
    }
  });
  for (std::int64_t k = 0; k < chunk.steps(); ++k) {
    const std::int64_t row = p.batch * g.t + chunk.begin + k;
    const T *u = chunk.u[std::size_t(k)], *e = x.e.data() + k * p.w, *delta = chunk.step[std::size_t(k)];
    T *gb = x.gb.data() + k * p.w, *gak = x.gak.data() + k * p.w, *dD = x.dD.next();  // gb, gak become du, dDelta
    for (std::int64_t c = 0; c < p.w; ++c) {
      gak[c] += u[c] * gb[c];
      gb[c] = delta[c] * gb[c] + (D ? D[c] * e[c] : T(0));
      dD[c] += e[c] * u[c];
    }
    du.write(row, p.c, p.w, gb);
    if (delta_grad) delta_grad->run(row, p.c, p.w, chunk.raw[std::size_t(k)], gak, gak);
    draw.write(row, p.c, p.w, gak);
  }
}

template <class T>
void backward_part(const ScanBackwardTask& task, const Launch& launch, std::int64_t index) {
  const Grid& g = task.grid;
  const Part p(g, index);
  BackwardScratch<T> x(g, p);
  x.A = transposed<T>(launch, task.A, p, g.n);
  std::vector<T> d_buffer(std::size_t(p.w));
  const T* D = task.D ? Rows(launch, task.D).read(0, p.c, p.w, d_buffer.data()) : nullptr;
  std::unique_ptr<Runner<T>> delta;
  std::unique_ptr<GradientRows<T>> delta_grad, out_grad;
  if (task.has_delta) delta = std::make_unique<Runner<T>>(launch, task.delta);
  if (task.has_delta_grad) delta_grad = task.delta_roots.rows<T>(launch, task.delta_grad, g, p);
  if (task.has_out_grad) out_grad = task.out_roots.rows<T>(launch, task.out_grad, g, p);
  load_state(Rows(launch, task.g_last), g, p, x.carry.data());
  Chunk<T> chunk(g);
  for (std::int64_t q = g.chunks() - 1; q >= 0; --q) {
    chunk.load(task, launch, p, q, q - 1, delta.get());
    Chunk<T>::prefetch(Rows(launch, task.g), g, p, q - 1);
    recompute(task, launch, p, q, chunk, D, out_grad.get(), x);
    retreat_chunk(task, launch, p, chunk, D, delta_grad.get(), x);
  }
  if (delta_grad) task.delta_roots.store_sums(launch, g, p, *delta_grad);
  if (out_grad) task.out_roots.store_sums(launch, g, p, *out_grad);
  store_state(Rows(launch, task.d_initial), g, p, x.carry.data());
  T* dA = launch.pointer<T>(task.dA) + (p.batch * g.i + p.c) * g.n;
  x.dA.move_to(x.first.data(), p.w, p.w);
  for (std::int64_t c = 0; c < p.w; ++c)
    for (std::int64_t j = 0; j < g.n; ++j) dA[c * g.n + j] = x.first[std::size_t(j * p.w + c)];
  x.dD.move_to(launch.pointer<T>(task.dD) + p.batch * g.i + p.c, p.w);
}

template <class T>
void lower_scan_backward(Lowering& l) {
  ScanBackwardTask task;
  static_cast<ScanTask&>(task) = task_of(l);
  const Grid& g = task.grid;
  const auto optional = [&](int i) { return l.has(i) ? l.rows(i) : Operand{}; };
  task.states = states_of(g, l.rows(kStates)), task.g = optional(kG), task.g_last = optional(kGLast);
  task.has_delta_grad = l.filled(1), task.has_out_grad = l.filled(2);
  if (task.has_delta_grad) task.delta_grad = l.hole(1, l.shape(kU));
  if (task.has_out_grad) task.out_grad = l.hole(2, l.shape(kU));
  task.du = l.output(kDu), task.d_initial = l.output(kDInitial);
  const Operand dA = l.output(kDA), dB = l.output(kDB), dC = l.output(kDC), dD = l.output(kDD);
  const auto scratch = [&](std::initializer_list<std::int64_t> dims) {
    return l.scratch(dtype_of<T>, std::span(dims.begin(), dims.size()));
  };
  const std::int64_t blocks = g.blocks_of_group(), rows = g.b * g.t * g.groups * g.n;
  task.dB = scratch({blocks, rows}), task.dC = scratch({blocks, rows});
  const auto root_outputs = [&](const Fused& hole, bool filled, int first) {
    RootOutputs to;
    for (int r = 0, roots = filled ? int(hole.roots.size()) : 0; r < roots; ++r) {
      const auto output = [&](std::int64_t k) { return k < 0 ? Operand{} : l.output(int(k)); };
      to.each.push_back(output(l.integer(first + r)));
      to.sums.push_back(output(l.integer(first + roots + r)));
      to.parts.push_back(to.sums.back() ? scratch({g.b, g.i}) : Operand{});
    }
    return to;
  };
  task.delta_roots = root_outputs(task.delta_grad, task.has_delta_grad, 0);
  task.out_roots = root_outputs(task.out_grad, task.has_out_grad, 2 * int(task.delta_roots.each.size()));
  if (!task.has_delta_grad) task.delta_roots.each = {l.output(kDraw)};
  task.dA = scratch({g.b, g.i * g.n}), task.dD = scratch({g.b, g.i});
  l.emit("scan_backward", [=](const Launch& launch) {
    parallel(task.grid.parts(), [&](std::int64_t index) { backward_part<T>(task, launch, index); });
    fold_parts(launch, launch.pointer<T>(task.dA), task.grid.b, task.grid.i * task.grid.n, dA);
    fold_parts(launch, launch.pointer<T>(task.dD), task.grid.b, task.grid.i, dD);
    fold_parts(launch, launch.pointer<T>(task.dB), blocks, rows, dB);
    fold_parts(launch, launch.pointer<T>(task.dC), blocks, rows, dC);
    for (const RootOutputs* to : {&task.delta_roots, &task.out_roots})
      for (std::size_t r = 0; r < to->sums.size(); ++r)
        fold_parts(launch, launch.pointer<T>(to->parts[r]), task.grid.b, task.grid.i, to->sums[r]);
  });
}

// ---- ops and gradients ------------------------------------------------------------------------------------------------------

void lower_scan(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_scan_forward<T>(l); });
}
void lower_scan_backward(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_scan_backward<T>(l); });
}
void scan_vjp(Vjp& v);

constexpr HoleSpec kHoles[] = {
    {.name = "delta", .coordinates = "b t i", .values = 1, .dense = true, .columns = true, .names = {"raw"}},
    {.name = "out", .coordinates = "b t i", .values = 1, .dense = true, .columns = true, .names = {"s"}}};
constexpr HoleSpec kBackwardHoles[] = {
    {.name = "delta", .coordinates = "b t i", .values = 1, .dense = true, .names = {"raw"}},
    {.name = "delta_grad", .coordinates = "b t i", .values = 2, .results = 0, .dense = true, .names = {"raw", "g"}},
    {.name = "out_grad", .coordinates = "b t i", .values = 2, .results = 0, .dense = true, .names = {"s", "g"}}};
// Where time is not cut, as one step is not, a thread reads what it has of the first state before it writes the last one there.
bool scan_in_place(const Tape& t, NodeId id, int input, int output) {
  return input == kInitial && output == kLast && t.shape(t.inputs_of(id)[kU])[1] == 1;
}
const Op& scan_op = register_op(
    {.name = "scan", .vjp = scan_vjp, .lower = lower_scan, .cuda = cuda_scan, .holes = kHoles, .in_place = scan_in_place});
const Op& scan_backward_op =
    register_op({.name = "scan_backward", .lower = lower_scan_backward, .cuda = cuda_scan_backward, .holes = kBackwardHoles});

DType state_dtype(const Tensor& u, const ScanOptions& o, const Tensor& delta, const Tensor& A, const Tensor& B,
                  const Tensor& C) {
  DType dtype = compute_dtype(u, delta, A, B, C, o.D, o.initial);
  for (const Hole* hole : std::initializer_list<const Hole*>{&o.delta, &o.out})
    for (const Tensor& t : hole->captured)
      if (compute_dtype(t) == DType::f64) dtype = DType::f64;
  return dtype;
}

// Whether a hole's gradient needs the value that it was given.
bool reads_value(const Hole& gradient) {
  const std::vector<Expr> all = topological(gradient.roots);
  return std::any_of(all.begin(), all.end(), [](Expr e) { return e.op() == ExprOp::input && e.index() == 0; });
}

void scan_vjp(Vjp& v) {
  Tensor in[kFixed];
  for (int i = 0; i < kFixed; ++i) in[i] = v.input(i);
  const Shape space = in[kU].shape(), sa = in[kA].shape();
  const DType real = v.output(kLast).dtype();
  Outs outs = {{space, in[kU].dtype()},
               {space, in[kDelta].dtype()},
               {sa, in[kA].dtype()},
               {in[kB].shape(), in[kB].dtype()},
               {in[kC].shape(), in[kC].dtype()},
               {Shape{space[2]}, in[kD] ? in[kD].dtype() : real},
               {Shape{space[0], sa[0], sa[1]}, in[kInitial] ? in[kInitial].dtype() : real}};
  const Hole filled = v.hole(0);
  const HoleInVjp delta(v, 0, filled, space, real, kDraw, outs), out(v, 1, v.hole(1), space, real, -1, outs);
  Recorder r(scan_backward_op, v.where());
  for (int i = 0; i < kInitial; ++i) r.input(in[i]);
  const bool for16 = v.integer(0) != 0, reads_s = for16 && reads_value(out.gradient);
  r.input(for16 ? in[kInitial] : Tensor{})
      .input(in[kBorders])
      .input(v.output(kKept))
      .input(v.grad(0))
      .input(v.grad(1))
      .input(reads_s ? v.output(kS) : Tensor{});
  r.hole(0, filled, space).hole(1, delta.gradient, space).hole(2, out.gradient, space);
  for (const HoleInVjp* hole : {&delta, &out}) r.integers(hole->outputs).integers(hole->sums);
  r.out(outs);
  const Tensor du = r.record();
  constexpr int kOutputOf[] = {kDu, kDraw, kDA, kDB, kDC, kDD, kDInitial};
  for (int i = 0; i < kBorders; ++i)
    if (v.needs(i)) v.add(i, i == kU ? du : output_of(du, kOutputOf[i]));
  delta.add(v, 0, du);
  out.add(v, 1, du);
}

void check_scan(Site where, const Arg& u, const Arg& delta, const Arg& A, const Arg& B, const Arg& C, const ScanOptions& o) {
  require_real(where, "scan", "u", u);
  const Shape su = u.shape();
  if (su.rank() != 3)
    fail_at(where, "scan: u is not (batch, time, channels)", fmt::format("u {}", to_string(su)), "reshape it");
  require_shape(where, "scan", "delta", delta, su, "u", u);
  require_real(where, "scan", "A", A);
  const Shape sa = A.shape();
  if (sa.rank() != 2 || sa[0] != su[2] || sa[1] > kMostState)
    fail_at(where, "scan: A does not fit u", fmt::format("A {}, u {}", to_string(sa), to_string(su)),
            fmt::format("A is (channels, states) with at most {} states", kMostState));
  require_real(where, "scan", "B", B);
  const Shape sb = B.shape();
  const bool grouped = sb.rank() == 4;
  if ((sb.rank() != 3 && !grouped) || sb[0] != su[0] || sb[1] != su[1] || sb[-1] != sa[1])
    fail_at(where, "scan: B does not fit u and A", fmt::format("B {}, u {}, A {}", to_string(sb), to_string(su), to_string(sa)),
            "B is (batch, time, states) or (batch, time, groups, states)");
  if (grouped && (sb[2] < 1 || su[2] % sb[2] != 0))
    fail_at(where, "scan: the channels do not divide into the groups", fmt::format("{} channels, {} groups", su[2], sb[2]),
            "every group has the same number of channels");
  require_shape(where, "scan", "C", C, sb, "B", B);
  if (o.D) require_shape(where, "scan", "D", o.D, Shape{su[2]}, "u", u);
  if (o.initial) require_shape(where, "scan", "initial", o.initial, Shape{su[0], su[2], sa[1]}, "u", u);
  require_segments(where, "scan", o.segments, su);
  require_one_precision(where, "scan",
                        {{"u", u}, {"delta", delta}, {"A", A}, {"B", B}, {"C", C}, {"D", o.D}, {"initial", o.initial}});
}

// ---- packed documents, for kernels that know of none ------------------------------------------------------------------------

const Op& delta_op =
    register_op({.name = "scan_delta", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = {kHoles, 1}});
const Op& out_op =
    register_op({.name = "scan_out", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = {kHoles + 1, 1}});

// Where a document begins, the step is so long that nothing of the state remains, and what it feeds is made as much smaller: by
// a power of two, which takes no digits. D and the out hole see u as it is.
Tensor packed_scan(const Arg& u, const Arg& delta, const Arg& A, const Arg& B, const Arg& C, const ScanOptions& o, DType real) {
  const Site where = u.where();
  const Shape space = u.shape();
  const Tensor borders = reshape(o.segments.borders, {space[0], space[1], 1});
  const Tensor step = filled(delta_op, o.delta, convert(delta, real, where), where);
  const Tensor fed = pointwise("scan_fed", {convert(u, real, where), step, borders}, [](Expr input, Expr of, Expr border) {
    return weft::where(not_equal(border, Expr(0)), input * (of * Expr(1 / kLongStep)), input);
  });
  const Hole cut =
      hole({borders}, [](Expr of, Expr border) { return weft::where(not_equal(border, Expr(0)), Expr(kLongStep), of); });
  Tensor s = scan(convert(fed, u.dtype(), where), step, A, B, C, {.delta = cut, .initial = o.initial, .last = o.last});
  if (o.D) s = convert(s, real, where) + convert(o.D, real, where) * convert(u, real, where);
  return convert(filled(out_op, o.out, convert(s, real, where), where), u.dtype(), where);
}

}  // namespace

Tensor scan(Arg u, Arg delta, Arg A, Arg B, Arg C, ScanOptions options) {
  check_scan(u.where(), u, delta, A, B, C, options);
  const Shape su = u.shape(), sa = A.shape();
  const DType real = state_dtype(u, options, delta, A, B, C);
  const Shape sb = B.shape();
  const bool bf16s = u.dtype() == DType::bf16 && delta.dtype() == DType::bf16 && B.dtype() == DType::bf16 &&
                     C.dtype() == DType::bf16 && real == DType::f32;
  const bool for16 = bf16s && takes_scan16(su, sa[1], sb.rank() == 4 ? sb[2] : 1);
  if (options.segments && !for16 && recorded_target().device != Device::cpu)
    return packed_scan(u, delta, A, B, C, options, real);
  Recorder r(scan_op, u.where());
  r.input(u).input(delta).input(A).input(B).input(C).input(options.D).input(options.initial).input(options.segments.borders);
  r.hole(0, options.delta, su).hole(1, options.out, su);
  r.integer(for16).out(su, u.dtype()).out(Shape{su[0], sa[0], sa[1]}, real);
  if (for16)
    r.out(Shape{su[0], chunks16(su[1]), sa[0] / 16, kKeptWords}, DType::i32).out(su, DType::bf16);
  else
    r.out(Shape{su[0], ceil_div(su[1], kTime), sa[1], sa[0]}, real);
  const Tensor y = r.record();
  if (options.last) *options.last = output_of(y, 1);
  return y;
}

Hole softplus_bias(Arg bias) {
  static const Expr body = softplus(expr::input(0) + expr::input(1));
  return {{body}, {bias.tensor()}, {}};
}

Hole softplus_hole() {
  static const Expr body = softplus(expr::input(0));
  return {{body}, {}, {}};
}

Hole gate(Arg z) {
  static const Expr body = expr::input(0) * silu(expr::input(1));
  return {{body}, {z.tensor()}, {}};
}

}  // namespace weft
