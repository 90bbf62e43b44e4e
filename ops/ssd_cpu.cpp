// The CPU's scan of Mamba-2, in chunks (section 6 of arXiv:2405.21060). Each part of the work is one batch element and some
// heads of one group, which share B, C and their products; it walks over the chunks with the states of its heads. What is
// quadratic in a chunk are small products of matrices, by BLAS. Forward keeps the state at the start of each chunk; backward
// computes the rest of a chunk again, last chunk first. Matrices of pairs of steps have a row for the earlier step, the source.
#include <algorithm>
#include <initializer_list>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/pointwise.h"
#include "jit/gemm.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "jit/vmath.h"
#include "ops/check.h"
#include "ops/ops.h"
#include "ops/ssd.h"

namespace weft {
namespace {

// Inputs x (b, t, h, p), step, a (b, t, h), B, C (b, t, g, n), initial (b, h, p, n), which may be absent; ints [chunk]. Outputs
// s (b, t, h, p), S_T (b, h, p, n), and the states (b, chunks, h, p, n) at the start of each chunk. All of one type.
enum SsdInput { kSsdX, kSsdStep, kSsdA, kSsdB, kSsdC, kSsdInitial, kSsdInputs };
enum SsdOutput { kSsdS, kSsdLast, kSsdKept };
// Of the backward op: inputs as forward's, then the kept states and the gradients of s and S_T, which may be absent; outputs
// are the gradients of forward's inputs, in their order.
enum SsdBackwardInput { kSsdStates = kSsdInputs, kSsdG, kSsdGLast };

constexpr std::int64_t kMostChunk = 256;   // steps: the matrices of a chunk stay in the L2 cache
constexpr std::int64_t kEnoughParts = 32;  // of the work, where there are as many heads

struct SsdGrid {
  std::int64_t b, t, h, p, g, n, q;  // q steps of a chunk
  std::int64_t chunks() const { return ceil_div(t, q); }
  std::int64_t group_size() const { return h / g; }
  // Heads of a part, and the parts of a group.
  std::int64_t together() const {
    return std::clamp<std::int64_t>(b * h / kEnoughParts, 1, std::max<std::int64_t>(group_size(), 1));
  }
  std::int64_t blocks() const { return ceil_div(group_size(), together()); }
  std::int64_t parts() const { return b * g * blocks(); }
  std::int64_t state() const { return p * n; }
};

struct SsdPart {
  std::int64_t batch, group, block, first, heads;  // heads [first, first + heads)
  SsdPart(const SsdGrid& g, std::int64_t index)
      : batch(index / (g.g * g.blocks())), group(index / g.blocks() % g.g), block(index % g.blocks()) {
    const std::int64_t begin = block * g.together();
    first = group * g.group_size() + begin;
    heads = std::min(g.together(), g.group_size() - begin);
  }
  std::int64_t row(const SsdGrid& g) const { return (batch * g.h + first) * g.p; }  // of the first head's state, by features
};

// (b, t, heads or groups, features), the features contiguous, or without these.
template <class T>
struct TimeRows {
  T* data = nullptr;
  std::int64_t batch = 0, time = 0, head = 0;
  TimeRows(const Launch& launch, const Operand& o) {
    if (!o) return;
    data = reinterpret_cast<T*>(launch.view(o).data);
    batch = o.strides[0], time = o.strides[1], head = o.strides[2];
  }
  explicit operator bool() const { return data != nullptr; }
  T* at(std::int64_t b, std::int64_t t, std::int64_t h) const { return data + b * batch + t * time + h * head; }
};

// ---- matrices of a chunk ----------------------------------------------------------------------------------------------------

template <class T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0, columns = 0, stride = 0;
  T* row(std::int64_t i) const { return data + i * stride; }
  operator GemmInput() const { return {reinterpret_cast<const std::byte*>(data), dtype_of<T>, stride, 1}; }
  GemmInput transposed() const { return GemmInput(*this).transposed(); }

  // a b, with `inner` columns of a, plus beta times what stands here.
  void product(std::int64_t inner, const GemmInput& a, const GemmInput& b, T beta = 0) const {
    gemm<T>(rows, columns, inner, a, b, {reinterpret_cast<std::byte*>(data), dtype_of<T>, stride}, {.beta = double(beta)});
  }
  void scale(const std::vector<T>& by) const {  // each row
    for (std::int64_t k = 0; k < rows; ++k)
      for (std::int64_t i = 0; i < columns; ++i) row(k)[i] *= by[std::size_t(k)];
  }
  void multiply(const Matrix& by) const {
    for (std::int64_t k = 0; k < rows; ++k)
      for (std::int64_t i = 0; i < columns; ++i) row(k)[i] *= by.row(k)[i];
  }
};

// Memory for a matrix of every chunk, dense.
template <class T>
class MatrixBuffer {
 public:
  explicit MatrixBuffer(std::int64_t elements) : elements_(std::size_t(elements)) {}
  Matrix<T> of(std::int64_t rows, std::int64_t columns) { return {elements_.data(), rows, columns, columns}; }
  T* data() { return elements_.data(); }

 private:
  std::vector<T> elements_;
};

template <class T>
T scalar_product(const T* a, const T* b, std::int64_t n) {
  return T(long_sum<T>(n, [&](std::int64_t i) { return a[i] * b[i]; }));
}

template <class T>
struct SsdSources {
  TimeRows<T> x, step, a, B, C;
};

// What both directions make of a chunk.
template <class T>
class SsdChunk {
 public:
  std::int64_t begin = 0, steps = 0;
  Matrix<T> B, C, pairs;                    // (steps, n); B C^T (steps, steps)
  Matrix<T> fed, decays;                    // step x (steps, p); of the steps after the source up to the target, else 0
  std::vector<T> step, from_start, to_end;  // the decay of all steps up to this one; of those after it

  explicit SsdChunk(const SsdGrid& g)
      : step(std::size_t(g.q)),
        from_start(step.size()),
        to_end(step.size()),
        decay_(step.size()),
        b_(g.q * g.n),
        c_(g.q * g.n),
        pairs_(g.q * g.q),
        fed_(g.q * g.p),
        decays_(g.q * g.q) {}

  // B, C and their products, which all heads of the part share.
  void load_group(const SsdGrid& g, const SsdPart& p, std::int64_t chunk, const SsdSources<T>& from) {
    begin = chunk * g.q, steps = std::min(g.q, g.t - begin);
    B = b_.of(steps, g.n), C = c_.of(steps, g.n), pairs = pairs_.of(steps, steps);
    for (std::int64_t k = 0; k < steps; ++k) {
      std::copy_n(from.B.at(p.batch, begin + k, p.group), g.n, B.row(k));
      std::copy_n(from.C.at(p.batch, begin + k, p.group), g.n, C.row(k));
    }
    pairs.product(g.n, B, C.transposed());
  }

  // Of one head. Decays are products of those between, so that one which cuts the state leaves the others as they are; what
  // would be slow, as denormal numbers are, is nothing.
  void load_head(const SsdGrid& g, const SsdPart& p, std::int64_t head, const SsdSources<T>& from) {
    constexpr T kNothing = T(1e-35);
    fed = fed_.of(steps, g.p), decays = decays_.of(steps, steps);
    for (std::int64_t k = 0; k < steps; ++k) {
      step[std::size_t(k)] = *from.step.at(p.batch, begin + k, head);
      decay_[std::size_t(k)] = vmath::exp(*from.a.at(p.batch, begin + k, head));
      const T *x = from.x.at(p.batch, begin + k, head), by = step[std::size_t(k)];
      T* to = fed.row(k);
      for (std::int64_t i = 0; i < g.p; ++i) to[i] = by * x[i];
    }
    for (std::int64_t s = steps - 1; s >= 0; --s) {
      T* row = decays.row(s);
      std::fill_n(row, s, T(0));
      row[s] = 1;
      if (s + 1 == steps) continue;
      const T *next = decays.row(s + 1), by = decay_[std::size_t(s + 1)];
      for (std::int64_t t = s + 1; t < steps; ++t) row[t] = next[t] * by < kNothing ? T(0) : next[t] * by;
    }
    for (std::int64_t k = 0; k < steps; ++k) {
      from_start[std::size_t(k)] = decay_[0] * decays.row(0)[k];
      to_end[std::size_t(k)] = decays.row(k)[steps - 1];
    }
  }
  T total() const { return from_start[std::size_t(steps - 1)]; }

 private:
  std::vector<T> decay_;
  MatrixBuffer<T> b_, c_, pairs_, fed_, decays_;
};

// ---- forward ----------------------------------------------------------------------------------------------------------------

struct SsdTask {
  SsdGrid grid;
  Operand x, step, a, B, C;
  explicit SsdTask(Lowering& l) {
    const Shape sx = l.shape(kSsdX), sb = l.shape(kSsdB);
    grid = {sx[0], sx[1], sx[2], sx[3], sb[2], sb[3], std::min(l.integer(0), std::max<std::int64_t>(sx[1], 1))};
    const auto rows = [&](int i) {
      const Operand o = l.view(i);
      return o.dims[3] == 1 || o.strides[3] == 1 ? o : l.dense(i);
    };
    x = rows(kSsdX), step = l.view(kSsdStep), a = l.view(kSsdA), B = rows(kSsdB), C = rows(kSsdC);
  }
  template <class T>
  SsdSources<T> sources(const Launch& launch) const {
    return {{launch, x}, {launch, step}, {launch, a}, {launch, B}, {launch, C}};
  }
};

struct SsdOutputs {
  Operand s, last, kept;
};

template <class T>
void ssd_forward_part(const SsdTask& task, const Launch& launch, const Operand& initial, const SsdOutputs& outputs,
                      std::int64_t index) {
  const SsdGrid& g = task.grid;
  const SsdPart part(g, index);
  const SsdSources<T> from = task.sources<T>(launch);
  const TimeRows<T> to(launch, outputs.s);
  const Rows last(launch, outputs.last), kept(launch, outputs.kept);
  const std::int64_t rows = part.heads * g.p;  // of the states (rows, n)
  std::vector<T> states(std::size_t(rows * g.n));
  if (initial) std::copy_n(launch.pointer<T>(initial) + part.row(g) * g.n, rows * g.n, states.data());
  SsdChunk<T> chunk(g);
  MatrixBuffer<T> weights(g.q * g.q), sums(g.q * g.p);
  for (std::int64_t c = 0; c < g.chunks(); ++c) {
    chunk.load_group(g, part, c, from);
    const std::int64_t q = chunk.steps;
    for (std::int64_t r = 0; r < rows; ++r)
      kept.write((part.batch * g.chunks() + c) * g.h * g.p + part.first * g.p + r, 0, g.n, states.data() + r * g.n);
    for (std::int64_t k = 0; k < part.heads; ++k) {
      chunk.load_head(g, part, part.first + k, from);
      const Matrix<T> state{states.data() + k * g.state(), g.p, g.n, g.n};
      if (to) {
        const Matrix<T> s = sums.of(q, g.p), within = weights.of(q, q);
        s.product(g.n, chunk.C, state.transposed());
        s.scale(chunk.from_start);
        std::copy_n(chunk.decays.data, q * q, within.data);
        within.multiply(chunk.pairs);
        s.product(q, within.transposed(), chunk.fed, 1);
        for (std::int64_t r = 0; r < q; ++r) std::copy_n(s.row(r), g.p, to.at(part.batch, chunk.begin + r, part.first + k));
      }
      chunk.fed.scale(chunk.to_end);
      state.product(q, chunk.fed.transposed(), chunk.B, chunk.total());
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) last.write(part.row(g) + r, 0, g.n, states.data() + r * g.n);
}

template <class T>
void lower_ssd_forward(Lowering& l) {
  const SsdTask task(l);
  const Operand initial = l.has(kSsdInitial) ? l.dense(kSsdInitial) : Operand{};
  const SsdOutputs outputs{l.output(kSsdS), l.output(kSsdLast), l.output(kSsdKept)};
  l.emit("ssd_forward", [=](const Launch& launch) {
    parallel(task.grid.parts(), [&](std::int64_t index) { ssd_forward_part<T>(task, launch, initial, outputs, index); });
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

struct SsdBackwardTask : SsdTask {
  using SsdTask::SsdTask;
  Operand states, g, g_last, dx, dstep, da, d_initial;
  Operand dB, dC;  // partial sums, (blocks of a group, b, t, groups, n)
};

// The gradients of the logarithms of the decays: each is the sum of those of all paths that cross its step, with what they
// carry. A path goes from its source to its target in the chunk, crossing the steps after the source; from before the chunk to
// a target; from a source to the end; or all through. Sums alone: a difference of two would leave digits of other paths where a
// decay cuts them all.
template <class T>
void decay_gradients(const Matrix<T>& within, const std::vector<T>& from_before, const std::vector<T>& to_end, T through,
                     std::vector<T>& crossing, T* da, std::int64_t stride) {
  const std::int64_t q = within.rows;
  std::copy_n(from_before.begin(), q, crossing.begin());  // of each target: the paths to it that cross step t
  T leaving = through;
  for (std::int64_t t = 0; t < q; ++t) {
    da[t * stride] = leaving + T(long_sum<T>(q - t, [&](std::int64_t k) { return crossing[std::size_t(t + k)]; }));
    const T* row = within.row(t);
    for (std::int64_t k = t + 1; k < q; ++k) crossing[std::size_t(k)] += row[k];
    leaving += to_end[std::size_t(t)];
  }
}

// Buffers of a part.
template <class T>
struct SsdBackwardScratch {
  MatrixBuffer<T> dy, d_fed, d_pairs, weights, by_state, d_states;
  std::vector<T> from_before, to_end, crossing;
  SsdBackwardScratch(const SsdGrid& g, const SsdPart& part)
      : dy(g.q * g.p),
        d_fed(g.q * g.p),
        d_pairs(g.q * g.q),
        weights(g.q * g.q),
        by_state(g.q * std::max(g.n, g.p)),
        d_states(part.heads * g.state()),
        from_before(std::size_t(g.q)),
        to_end(std::size_t(g.q)),
        crossing(std::size_t(g.q)) {}
};

// Head k of the part. dB and dC, rows of the chunk's steps, are written by the first head and added to by the others; the
// gradient dS of the state after the chunk becomes that of the state before it.
template <class T>
void retreat_head(const SsdBackwardTask& task, const Launch& launch, const SsdPart& part, std::int64_t k,
                  const SsdSources<T>& from, SsdChunk<T>& chunk, const Matrix<T>& dB, const Matrix<T>& dC, const T* kept,
                  SsdBackwardScratch<T>& x) {
  const SsdGrid& g = task.grid;
  const std::int64_t q = chunk.steps, head = part.first + k;
  const TimeRows<T> gs(launch, task.g), dx(launch, task.dx), dstep(launch, task.dstep), da(launch, task.da);
  chunk.load_head(g, part, head, from);
  const Matrix<T> dy = x.dy.of(q, g.p), d_fed = x.d_fed.of(q, g.p), d_pairs = x.d_pairs.of(q, q), weights = x.weights.of(q, q);
  const Matrix<T> by_p = x.by_state.of(q, g.p), by_n = x.by_state.of(q, g.n);
  const Matrix<T> dS{x.d_states.data() + k * g.state(), g.p, g.n, g.n};
  const Matrix<T> before{const_cast<T*>(kept) + k * g.state(), g.p, g.n, g.n};
  for (std::int64_t r = 0; r < q; ++r) {
    if (gs)
      std::copy_n(gs.at(part.batch, chunk.begin + r, head), g.p, dy.row(r));
    else
      std::fill_n(dy.row(r), g.p, T(0));
  }
  // Within the chunk.
  d_pairs.product(g.p, chunk.fed, dy.transposed());
  d_pairs.multiply(chunk.decays);
  dB.product(q, d_pairs, chunk.C, k > 0);
  dC.product(q, d_pairs.transposed(), chunk.B, k > 0);
  d_pairs.multiply(chunk.pairs);  // now the gradients of the logarithms of the decays
  std::copy_n(chunk.decays.data, q * q, weights.data);
  weights.multiply(chunk.pairs);
  d_fed.product(q, weights, dy);
  // To the end.
  by_p.product(g.n, chunk.B, dS.transposed());
  by_p.scale(chunk.to_end);
  for (std::int64_t r = 0; r < q; ++r) {
    const T* more = by_p.row(r);
    x.to_end[std::size_t(r)] = scalar_product(more, chunk.fed.row(r), g.p);
    for (std::int64_t i = 0; i < g.p; ++i) d_fed.row(r)[i] += more[i];
  }
  chunk.fed.scale(chunk.to_end);
  dB.product(g.p, chunk.fed, dS, 1);
  // From before.
  dy.scale(chunk.from_start);
  by_n.product(g.p, dy, before);
  for (std::int64_t r = 0; r < q; ++r) {
    const T* more = by_n.row(r);
    x.from_before[std::size_t(r)] = scalar_product(more, chunk.C.row(r), g.n);
    for (std::int64_t i = 0; i < g.n; ++i) dC.row(r)[i] += more[i];
  }
  const T through = chunk.total() * scalar_product(dS.data, before.data, g.state());
  dS.product(q, dy.transposed(), chunk.C, chunk.total());

  if (da) decay_gradients(d_pairs, x.from_before, x.to_end, through, x.crossing, da.at(part.batch, chunk.begin, head), da.time);
  for (std::int64_t r = 0; r < q; ++r) {
    const T *row = d_fed.row(r), by = chunk.step[std::size_t(r)];
    if (dstep)
      *dstep.at(part.batch, chunk.begin + r, head) =
          scalar_product(row, static_cast<const T*>(from.x.at(part.batch, chunk.begin + r, head)), g.p);
    if (!dx) continue;
    T* to = dx.at(part.batch, chunk.begin + r, head);
    for (std::int64_t i = 0; i < g.p; ++i) to[i] = by * row[i];
  }
}

template <class T>
void ssd_backward_part(const SsdBackwardTask& task, const Launch& launch, std::int64_t index) {
  const SsdGrid& g = task.grid;
  const SsdPart part(g, index);
  const SsdSources<T> from = task.sources<T>(launch);
  SsdBackwardScratch<T> x(g, part);
  SsdChunk<T> chunk(g);
  const std::int64_t rows = part.heads * g.p;
  if (task.g_last) std::copy_n(launch.pointer<T>(task.g_last) + part.row(g) * g.n, rows * g.n, x.d_states.data());
  for (std::int64_t c = g.chunks() - 1; c >= 0; --c) {
    chunk.load_group(g, part, c, from);
    const std::int64_t stride = g.g * g.n, first = ((part.block * g.b + part.batch) * g.t + chunk.begin) * stride;
    const auto sums = [&](const Operand& o) {
      return Matrix<T>{launch.pointer<T>(o) + first + part.group * g.n, chunk.steps, g.n, stride};
    };
    const T* kept = launch.pointer<T>(task.states) + ((part.batch * g.chunks() + c) * g.h + part.first) * g.state();
    for (std::int64_t k = 0; k < part.heads; ++k)
      retreat_head(task, launch, part, k, from, chunk, sums(task.dB), sums(task.dC), kept, x);
  }
  const Rows d_initial(launch, task.d_initial);
  for (std::int64_t r = 0; r < rows; ++r) d_initial.write(part.row(g) + r, 0, g.n, x.d_states.data() + r * g.n);
}

template <class T>
void lower_ssd_backward(Lowering& l) {
  SsdBackwardTask task(l);
  const SsdGrid& g = task.grid;
  task.states = l.dense(kSsdStates);
  if (l.has(kSsdG)) {
    task.g = l.view(kSsdG);
    if (task.g.dims[3] != 1 && task.g.strides[3] != 1) task.g = l.dense(kSsdG);
  }
  if (l.has(kSsdGLast)) task.g_last = l.dense(kSsdGLast);
  task.dx = l.output(kSsdX), task.dstep = l.output(kSsdStep), task.da = l.output(kSsdA), task.d_initial = l.output(kSsdInitial);
  const Operand dB = l.output(kSsdB), dC = l.output(kSsdC);
  const std::int64_t rows = g.b * g.t * g.g * g.n, blocks = g.blocks(), dims[] = {blocks, rows};
  task.dB = l.scratch(dtype_of<T>, dims), task.dC = l.scratch(dtype_of<T>, dims);
  l.emit("ssd_backward", [=](const Launch& launch) {
    parallel(task.grid.parts(), [&](std::int64_t index) { ssd_backward_part<T>(task, launch, index); });
    fold_parts(launch, launch.pointer<T>(task.dB), blocks, rows, dB);
    fold_parts(launch, launch.pointer<T>(task.dC), blocks, rows, dC);
  });
}

// ---- ops and gradients ------------------------------------------------------------------------------------------------------

void lower_ssd(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_ssd_forward<T>(l); });
}
void lower_ssd_gradient(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_ssd_backward<T>(l); });
}
void ssd_vjp(Vjp& v);
void ssd_backward_vjp(Vjp& v);
const Op& ssd_op = register_op({.name = "ssd", .vjp = ssd_vjp, .lower = lower_ssd});
const Op& ssd_backward_op = register_op({.name = "ssd_backward", .vjp = ssd_backward_vjp, .lower = lower_ssd_gradient});

void ssd_vjp(Vjp& v) {
  const DType real = v.input(kSsdX).dtype();
  std::vector<Tensor> in;
  Outs outs;
  for (int i = 0; i < kSsdInputs; ++i) {
    in.push_back(v.input(i));
    outs.push_back({i == kSsdInitial ? v.output(kSsdLast).shape() : in.back().shape(), real});
  }
  for (const Tensor& t : {v.output(kSsdKept), v.grad(kSsdS), v.grad(kSsdLast)}) in.push_back(t);
  const std::int64_t chunk[] = {v.integer(0)};
  const Tensor dx = record(ssd_backward_op, in, outs, chunk, {}, v.where());
  for (int i = 0; i < kSsdInputs; ++i)
    if (v.needs(i)) v.add(i, i == 0 ? dx : output_of(dx, i));
}

// By the plain form, whose gradients are recorded, from operands that do not depend on each other.
void ssd_backward_vjp(Vjp& v) {
  v.compose([&] {
    Tensor in[kSsdInputs], loss;
    std::vector<Arg> present;
    for (int i = 0; i < kSsdInputs; ++i) {
      if (!v.input(i)) continue;
      in[i] = pointwise("ssd_operand", {Arg(v.input(i), v.where())}, [](Expr e) { return e; });
      present.emplace_back(in[i], v.where());
    }
    const SsdResult plain = plain_ssd_scan({.x = in[kSsdX],
                                            .step = in[kSsdStep],
                                            .a = in[kSsdA],
                                            .B = in[kSsdB],
                                            .C = in[kSsdC],
                                            .initial = in[kSsdInitial],
                                            .chunk = v.integer(0),
                                            .where = v.where()});
    const auto add = [&](const Tensor& y, const Tensor& g) {
      if (g) loss = loss ? loss + sum(y * g) : sum(y * g);
    };
    add(plain.y, v.input(kSsdG)), add(plain.last, v.input(kSsdGLast));
    return grad(Arg(loss, v.where()), std::move(present), Unused::zeros);  // initial is the last
  });
}

}  // namespace

SsdResult cpu_ssd_scan(const SsdScan& scan) {
  const Shape x = scan.x.shape(), state{x[0], x[2], x[3], scan.B.dim(3)};
  const DType real = scan.x.dtype();
  const std::int64_t chunk[] = {std::clamp<std::int64_t>(scan.chunk, 1, kMostChunk)};
  const Tensor inputs[] = {scan.x, scan.step, scan.a, scan.B, scan.C, scan.initial};
  const Out outs[] = {{x, real}, {state, real}, {Shape{x[0], ceil_div(x[1], chunk[0]), x[2], x[3], state[3]}, real}};
  const Tensor s = record(ssd_op, inputs, outs, chunk, {}, scan.where);
  return {s, output_of(s, kSsdLast)};
}

}  // namespace weft
