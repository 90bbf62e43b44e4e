// Causal depthwise convolution over time, channel-last, with a hole for its result. Cut into chunks of time and blocks of
// channels; the loops run over neighbouring channels.
#include <optional>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/holes.h"
#include "ops/ops.h"

namespace weft {
namespace {

constexpr std::int64_t kConvTime = 128;      // steps of a chunk
constexpr std::int64_t kConvChannels = 256;  // channels of a block

// Sizes, and the part of (batch, chunk of time, block of channels) with number `index`.
struct ConvGrid {
  std::int64_t b, t, d, w;
  std::int64_t chunks() const { return ceil_div(t, kConvTime); }
  std::int64_t blocks() const { return ceil_div(d, kConvChannels); }
  std::int64_t parts() const { return b * chunks() * blocks(); }
};
struct ConvPart {
  std::int64_t batch, chunk, begin, end, c, n;  // time [begin, end), channels [c, c + n)
  ConvPart(const ConvGrid& grid, std::int64_t index) {
    const std::int64_t block = index % grid.blocks();
    chunk = index / grid.blocks() % grid.chunks();
    batch = index / grid.blocks() / grid.chunks();
    begin = chunk * kConvTime, end = std::min(grid.t, begin + kConvTime);
    c = block * kConvChannels, n = std::min(grid.d - c, kConvChannels);
  }
};

// Pointers to rows of one part (n channels) by time, from `first` on.
template <class T>
class Window {
 public:
  Window(std::int64_t first, std::int64_t count) : first_(first), rows_(std::size_t(count)) {}
  const T*& operator[](std::int64_t t) { return rows_[std::size_t(t - first_)]; }
  const T* const* at(std::int64_t t) const { return rows_.data() + (t - first_); }

 private:
  std::int64_t first_;
  std::vector<const T*> rows_;
};

// The inputs at times [begin - (w-1), end): x (b, t, d), before time 0 `initial` (b, w-1, d) or zeros. `buffer` has
// room for all of them, `zeros` for one.
template <class T>
Window<T> inputs(const ConvGrid& g, const ConvPart& p, std::int64_t end, const Rows& x, const Rows& initial, T* buffer,
                 const T* zeros) {
  const std::int64_t first = p.begin - (g.w - 1);
  Window<T> window(first, end - first);
  for (std::int64_t t = first; t < end; ++t, buffer += p.n)
    window[t] = t >= 0    ? x.read(p.batch * g.t + t, p.c, p.n, buffer)
                : initial ? initial.read(p.batch * (g.w - 1) + t + g.w - 1, p.c, p.n, buffer)
                          : zeros;
  return window;
}

// Where documents begin, (b, t), for the taps of a convolution: nothing is seen over a border.
class Borders {
 public:
  Borders(const Launch& launch, const Operand& borders, const ConvGrid& g)
      : borders_(launch.pointer<std::int32_t>(borders)), t_(g.t), w_(g.w) {}
  explicit operator bool() const { return borders_ != nullptr; }
  // How many steps before t belong to its document, w - 1 at most; the initial state to the first one.
  std::int64_t before(std::int64_t batch, std::int64_t t) const {
    std::int64_t n = 0;
    while (n < w_ - 1 && !cut(batch, t - n)) ++n;
    return n;
  }
  // Likewise how many after it.
  std::int64_t after(std::int64_t batch, std::int64_t t) const {
    std::int64_t n = 0;
    while (n < w_ - 1 && t + n + 1 < t_ && !cut(batch, t + n + 1)) ++n;
    return n;
  }
  // What y_t reads of rows (w), those of another document replaced by zeros; in `line`, where that is needed.
  template <class T>
  const T* const* inputs(std::int64_t batch, std::int64_t t, const T* const* rows, const T* zeros,
                         std::vector<const T*>& line) const {
    const std::int64_t hidden = borders_ ? w_ - 1 - before(batch, t) : 0;
    if (hidden == 0) return rows;
    line.assign(rows, rows + w_);
    std::fill_n(line.begin(), hidden, zeros);
    return line.data();
  }
  // What the gradient of the input at s reads, e_s to e_{s + w - 1}.
  template <class T>
  const T* const* outputs(std::int64_t batch, std::int64_t s, const T* const* rows, const T* zeros,
                          std::vector<const T*>& line) const {
    if (!borders_) return rows;
    const std::int64_t seen = after(batch, s) + 1;
    line.assign(rows, rows + w_);
    std::fill(line.begin() + seen, line.end(), zeros);
    return line.data();
  }
  bool in_last(std::int64_t batch, std::int64_t t) const {  // t >= T - (w - 1): of the document that is the last one
    return !borders_ || t_ == 0 || t + before(batch, t_ - 1) >= t_ - 1;
  }

 private:
  bool cut(std::int64_t batch, std::int64_t t) const { return t >= 0 && borders_[batch * t_ + t] != 0; }
  const std::int32_t* borders_;
  std::int64_t t_, w_;
};

// Weight (d, w) of the part's channels as (w, n).
template <class T>
std::vector<T> transposed(const ConvGrid& g, const ConvPart& p, const Rows& weight) {
  std::vector<T> out(std::size_t(g.w * p.n)), buffer(std::size_t(g.w));
  for (std::int64_t c = 0; c < p.n; ++c) {
    const T* row = weight.read(p.c + c, 0, g.w, buffer.data());
    for (std::int64_t j = 0; j < g.w; ++j) out[std::size_t(j * p.n + c)] = row[j];
  }
  return out;
}

// out (n) = start (n, null: 0) + sum over j of w[j] (w, n) * rows[j * step] (n).
template <class T, int W>
void taps_fixed(const T* const* rows, int step, const T* w, const T* start, std::int64_t n, T* out) {
  const T* x[W];
  for (int j = 0; j < W; ++j) x[j] = rows[j * step];
#pragma omp simd
  for (std::int64_t c = 0; c < n; ++c) {
    T sum = start ? start[c] : T(0);
    for (int j = 0; j < W; ++j) sum += w[j * n + c] * x[j][c];
    out[c] = sum;
  }
}
template <class T>
void taps(std::int64_t width, const T* const* rows, int step, const T* w, const T* start, std::int64_t n, T* out) {
  if (width == 2) return taps_fixed<T, 2>(rows, step, w, start, n, out);
  if (width == 3) return taps_fixed<T, 3>(rows, step, w, start, n, out);
  if (width == 4) return taps_fixed<T, 4>(rows, step, w, start, n, out);
  for (std::int64_t c = 0; c < n; ++c) out[c] = start ? start[c] : T(0);
  for (std::int64_t j = 0; j < width; ++j) {
    const T* x = rows[j * step];
#pragma omp simd
    for (std::int64_t c = 0; c < n; ++c) out[c] += w[j * n + c] * x[c];
  }
}

// Inputs x (b, t, d), weight (d, w), bias (d), initial (b, w-1, d), borders (b, t); hole out(pre; b, t, d); ints [last].
// Outputs y (b, t, d) and, if `last`, the last inputs (b, w-1, d).
template <class T>
void lower_conv1d_forward(Lowering& l) {
  const Operand x = l.rows(0), weight = l.dense(1), bias = l.has(2) ? l.dense(2) : Operand{};
  const Operand initial = l.has(3) ? l.rows(3) : Operand{}, cuts = l.has(4) ? l.dense(4) : Operand{}, out = l.output(0);
  const Operand last = l.integer(0) ? l.output(1) : Operand{};
  const ConvGrid grid{x.dims[0], x.dims[1], x.dims[2], weight.dims[1]};
  const bool filled = l.filled(0);
  const Fused hole = l.hole(0, l.shape(0));
  if (out)
    l.emit("conv1d", [=](const Launch& launch) {
      const Rows xs(launch, x), ws(launch, weight), bs(launch, bias), starts(launch, initial), to(launch, out);
      parallel(grid.parts(), [&](std::int64_t index) {
        const ConvPart p(grid, index);
        std::vector<T> buffer(std::size_t((kConvTime + grid.w) * p.n)), zeros(p.n), line(p.n), bias_line(p.n);
        std::vector<const T*> seen;
        const Borders borders(launch, cuts, grid);
        const std::vector<T> w = transposed<T>(grid, p, ws);
        const T* start = bs ? bs.read(0, p.c, p.n, bias_line.data()) : nullptr;
        const Window<T> window = inputs(grid, p, p.end, xs, starts, buffer.data(), zeros.data());
        std::optional<Runner<T>> finish;
        if (filled) finish.emplace(launch, hole);
        for (std::int64_t t = p.begin; t < p.end; ++t) {
          const std::int64_t row = p.batch * grid.t + t;
          T* y = to.target<T>(row, p.c, line.data());
          taps(grid.w, borders.inputs(p.batch, t, window.at(t - grid.w + 1), zeros.data(), seen), 1, w.data(), start, p.n, y);
          if (finish) run_hole(*finish, row * grid.d + p.c, p.n, y);
          to.write(row, p.c, p.n, y);
        }
      });
    });
  if (last)
    l.emit("conv1d__last", [=](const Launch& launch) {
      const Rows xs(launch, x), starts(launch, initial), to(launch, last);
      const Borders borders(launch, cuts, grid);
      std::vector<T> buffer(grid.d), zeros(grid.d);
      for (std::int64_t i = 0; i < grid.b * (grid.w - 1); ++i) {
        const std::int64_t batch = i / (grid.w - 1), t = grid.t + i % (grid.w - 1) - (grid.w - 1);
        to.write(i, 0, grid.d,
                 !borders.in_last(batch, t) ? zeros.data()
                 : t >= 0                   ? xs.read(batch * grid.t + t, 0, grid.d, buffer.data())
                 : starts                   ? starts.read(batch * (grid.w - 1) + t + grid.w - 1, 0, grid.d, buffer.data())
                                            : zeros.data());
      }
    });
}

// The operands of the backward kernel; see lower_conv1d_backward.
struct ConvBackwardTask {
  Operand x, weight, bias, initial, g, g_last, borders, dx, d_initial, partials{};
  ConvGrid grid{};
  bool filled;
  Fused out_grad;                // (pre, g) -> e, ...
  std::vector<Operand> roots{};  // the outputs of its roots, absent where nobody reads them
};

// e_t, the gradient of pre_t, from g_t for times [begin, end) of the part into `e` (rows of n); pre is computed again.
// Gradients of what the hole captures are stored for the part's own times.
template <class T>
void upstream(const ConvBackwardTask& task, const Launch& launch, const ConvPart& p, std::int64_t end, const Window<T>& window,
              const std::vector<T>& w, T* e) {
  const Rows gs(launch, task.g), bs(launch, task.bias), e_root(launch, task.filled ? task.roots[0] : Operand{});
  std::vector<T> pre(p.n), bias_line(p.n), zeros(p.n);
  std::vector<const T*> seen;
  const Borders borders(launch, task.borders, task.grid);
  std::optional<GradientRows<T>> own, behind;
  if (task.filled) {
    const std::vector<Operand> none(task.roots.size());
    own.emplace(launch, task.out_grad, task.roots, none, task.grid.d, p.n);
    behind.emplace(launch, task.out_grad, none, none, task.grid.d, p.n);
  }
  const T* start = bs ? bs.read(0, p.c, p.n, bias_line.data()) : nullptr;
  for (std::int64_t t = p.begin; t < end; ++t, e += p.n) {
    if (!gs) {
      std::fill_n(e, p.n, T(0));
      continue;
    }
    const std::int64_t row = p.batch * task.grid.t + t;
    const T* g = gs.read(row, p.c, p.n, e);
    if (!task.filled) {
      if (g != e) std::copy_n(g, p.n, e);
      continue;
    }
    const T* const* rows = borders.inputs(p.batch, t, window.at(t - task.grid.w + 1), zeros.data(), seen);
    taps(task.grid.w, rows, 1, w.data(), start, p.n, pre.data());
    (t < p.end ? own : behind)->run(row, p.c, p.n, pre.data(), g, e);
    if (t < p.end) e_root.write(row, p.c, p.n, e);
  }
}

// dw (w, n; rows d apart) and behind them db (n) of the part: the sums over its times.
template <class T>
void weight_sums(const ConvGrid& g, const ConvPart& p, const Window<T>& window, const Borders& borders, const T* e, T* dw) {
  LongSums<T> sums(p.n, g.w + 1);
  const std::vector<T> zeros(p.n);
  std::vector<const T*> seen;
  for (std::int64_t t = p.begin; t < p.end; ++t, e += p.n) {
    const T* const* x = borders.inputs(p.batch, t, window.at(t - g.w + 1), zeros.data(), seen);
    T* to = sums.next();
    for (std::int64_t j = 0; j < g.w; ++j, to += p.n) {
      const T* from = x[j];
#pragma omp simd
      for (std::int64_t c = 0; c < p.n; ++c) to[c] += e[c] * from[c];
    }
#pragma omp simd
    for (std::int64_t c = 0; c < p.n; ++c) to[c] += e[c];
  }
  sums.move_to(dw, p.n, g.d);
}

// The gradient of the input at time s, s >= 1 - w: sum over j of w[j] e_{s + w - 1 - j}, plus what came through `last`.
template <class T>
void input_gradient(const ConvBackwardTask& task, const ConvPart& p, std::int64_t s, const T* const* e, const std::vector<T>& w,
                    const Borders& borders, const Rows& g_last, T* buffer, T* out) {
  const ConvGrid& g = task.grid;
  taps(g.w, e + (g.w - 1), -1, w.data(), static_cast<const T*>(nullptr), p.n, out);
  const std::int64_t kept = s - (g.t - (g.w - 1));
  if (!g_last || kept < 0 || !borders.in_last(p.batch, s)) return;
  const T* more = g_last.read(p.batch * (g.w - 1) + kept, p.c, p.n, buffer);
  for (std::int64_t c = 0; c < p.n; ++c) out[c] += more[c];
}

template <class T>
void conv_backward_part(const ConvBackwardTask& task, const Launch& launch, std::int64_t index) {
  const ConvGrid& g = task.grid;
  const ConvPart p(g, index);
  const Rows xs(launch, task.x), ws(launch, task.weight), starts(launch, task.initial), g_last(launch, task.g_last);
  const Rows dx(launch, task.dx), d_initial(launch, task.d_initial);
  const std::int64_t end = std::min(g.t, p.end + g.w - 1), first = p.begin == 0 ? 1 - g.w : p.begin;
  std::vector<T> buffer(std::size_t((kConvTime + 2 * g.w) * p.n)), e(std::size_t((kConvTime + g.w) * p.n)), zeros(p.n),
      line(p.n), line2(p.n);
  std::vector<const T*> seen;
  const Borders borders(launch, task.borders, g);
  const std::vector<T> w = transposed<T>(g, p, ws);
  const Window<T> x = inputs(g, p, end, xs, starts, buffer.data(), zeros.data());
  upstream(task, launch, p, end, x, w, e.data());
  if (task.partials) {
    T* sums = launch.pointer<T>(task.partials) + (p.batch * g.chunks() + p.chunk) * (g.w + 1) * g.d + p.c;
    weight_sums(g, p, x, borders, e.data(), sums);
  }
  Window<T> es(first, p.end + g.w - 1 - first);
  for (std::int64_t t = first; t < p.end + g.w - 1; ++t)
    es[t] = t >= p.begin && t < end ? e.data() + (t - p.begin) * p.n : zeros.data();
  for (std::int64_t s = d_initial ? first : p.begin; s < p.end; ++s) {
    const Rows& to = s < 0 ? d_initial : dx;
    if (!to) continue;
    const std::int64_t row = s < 0 ? p.batch * (g.w - 1) + s + g.w - 1 : p.batch * g.t + s;
    T* out = to.target<T>(row, p.c, line.data());
    const T* const* outputs = borders.outputs(p.batch, s, es.at(s), zeros.data(), seen);
    input_gradient(task, p, s, outputs, w, borders, g_last, line2.data(), out);
    to.write(row, p.c, p.n, out);
  }
}

// With no time steps the state passes through: d_initial = g_last.
template <class T>
void pass_through(const Launch& launch, const ConvBackwardTask& task) {
  const Rows from(launch, task.g_last), to(launch, task.d_initial);
  std::vector<T> line(std::size_t(task.grid.d));
  for (std::int64_t i = 0; to && i < task.grid.b * (task.grid.w - 1); ++i)
    to.write(i, 0, task.grid.d, from ? from.read(i, 0, task.grid.d, line.data()) : line.data());
}

// Inputs x, weight, bias, initial, gradients of y and of the last inputs, borders (each may be absent); hole out_grad(pre, g;
// b, t, d); ints: the output of each of its roots, -1 for none. Outputs dx, dw, db, d_initial, then those of the roots.
template <class T>
void lower_conv1d_backward(Lowering& l) {
  const auto optional = [&](int i) { return l.has(i) ? l.rows(i) : Operand{}; };
  ConvBackwardTask task{.x = l.rows(0),
                        .weight = l.dense(1),
                        .bias = optional(2),
                        .initial = optional(3),
                        .g = optional(4),
                        .g_last = optional(5),
                        .borders = l.has(6) ? l.dense(6) : Operand{},
                        .dx = l.output(0),
                        .d_initial = l.output(3),
                        .filled = l.filled(0),
                        .out_grad = l.hole(0, l.shape(0))};
  if (task.filled) task.roots = root_outputs(l, task.out_grad.roots.size());
  const Operand dw = l.output(1), db = l.output(2);
  const ConvGrid grid{task.x.dims[0], task.x.dims[1], task.x.dims[2], task.weight.dims[1]};
  task.grid = grid;
  const std::int64_t dims[] = {grid.b * grid.chunks(), grid.w + 1, grid.d};
  if (dw || db) task.partials = l.scratch(dtype_of<T>, dims);
  l.emit("conv1d_backward", [=](const Launch& launch) {
    if (grid.t == 0) pass_through<T>(launch, task);
    parallel(grid.parts(), [&](std::int64_t index) { conv_backward_part<T>(task, launch, index); });
    if (!task.partials) return;
    const T* partials = launch.pointer<T>(task.partials);
    const std::int64_t parts = grid.b * grid.chunks(), stride = (grid.w + 1) * grid.d;
    fold_parts(launch, partials, parts, stride, dw.transposed());
    fold_parts(launch, partials + grid.w * grid.d, parts, stride, db);
  });
}

void lower_conv1d(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_conv1d_forward<T>(l); });
}
void lower_conv1d_backward(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_conv1d_backward<T>(l); });
}

void conv1d_vjp(Vjp& v);
void conv1d_backward_vjp(Vjp& v);

constexpr HoleSpec kConvHoles[] = {{.name = "out", .coordinates = "b t d", .values = 1, .dense = true, .names = {"pre"}}};
constexpr HoleSpec kConvBackwardHoles[] = {
    {.name = "out_grad", .coordinates = "b t d", .values = 2, .results = 0, .dense = true, .names = {"pre", "g"}}};
// Of one step: the kernel of one block along time, whose threads read all before they write.
bool conv1d_in_place(const Tape& t, NodeId id, int input, int output) {
  const auto inputs = t.inputs_of(id);
  return input == 3 && output == 1 && t.shape(inputs[0])[1] == 1 && t.shape(inputs[1])[1] <= kConv1dInPlace;
}
const Op& conv1d_op = register_op({.name = "conv1d",
                                   .vjp = conv1d_vjp,
                                   .lower = lower_conv1d,
                                   .cuda = cuda_conv1d,
                                   .holes = kConvHoles,
                                   .in_place = conv1d_in_place});
const Op& conv1d_backward_op = register_op({.name = "conv1d_backward",
                                            .vjp = conv1d_backward_vjp,
                                            .lower = lower_conv1d_backward,
                                            .cuda = cuda_conv1d_backward,
                                            .holes = kConvBackwardHoles});

void conv1d_vjp(Vjp& v) {
  const Tensor x = v.input(0), weight = v.input(1), bias = v.input(2), initial = v.input(3);
  const Shape sx = x.shape(), sw = weight.shape();
  const Shape state{sx[0], sw[1] - 1, sx[2]};
  Outs outs = {{sx, x.dtype()},
               {sw, weight.dtype()},
               {Shape{sw[0]}, bias ? bias.dtype() : weight.dtype()},
               {state, initial ? initial.dtype() : x.dtype()}};
  // Without a gradient of y the hole takes no part.
  const HoleInVjp out(v, 0, v.grad(0) ? v.hole(0) : Hole{}, sx, sum_dtype(v), -1, outs);
  Recorder r(conv1d_backward_op, v.where());
  r.input(x).input(weight).input(bias).input(initial).input(v.grad(0)).input(v.integer(0) ? v.grad(1) : Tensor{});
  r.input(v.input(4));
  r.hole(0, out.gradient, sx).integers(out.outputs).out(outs);
  const Tensor dx = r.record(v.constants());
  for (int i = 0; i < 4; ++i)
    if (v.needs(i)) v.add(i, i == 0 ? dx : output_of(dx, i));
  out.add(v, 0, dx);
}

// Of the inputs 0, 1, ... w - 1 steps before each time, 1 where nothing lies between, (b, t, 1); borders (b, t).
std::vector<Tensor> seen_before(const Tensor& borders, std::int64_t width, DType dtype) {
  const std::int64_t b = borders.dim(0), t = borders.dim(1);
  const Tensor inside = cast(pointwise("inside", {borders}, [](Expr border) { return Expr(1) - border; }), dtype);
  std::vector<Tensor> seen = {ones({b, t, 1}, dtype)};
  for (std::int64_t k = 1; k < width; ++k)
    seen.push_back(seen.back() * reshape(slice(pad(inside, 1, k - 1, 0, 1), 1, 0, t), {b, t, 1}));
  return seen;
}

// pre and the gradients as sums over the taps, each a slice of the inputs from time 1 - w on.
void conv1d_backward_vjp(Vjp& v) {
  v.compose([&] {
    const Tensor x = real_input(v, 0), w = real_input(v, 1), initial = real_input(v, 3);
    const Tensor dy = real_input(v, 4), d_last = real_input(v, 5);
    const std::int64_t t = x.dim(1), d = x.dim(2), width = w.dim(1);
    const Tensor parts[] = {initial, x};
    const std::int64_t sizes[] = {width - 1, t};
    const Tensor all = join(parts, sizes, 1, v.where());
    const std::vector<Tensor> seen = v.input(6) ? seen_before(v.input(6), width, sum_dtype(v)) : std::vector<Tensor>();
    const auto visible = [&](const Tensor& x_or_e, std::int64_t j) {
      return seen.empty() ? x_or_e : x_or_e * seen[std::size_t(width - 1 - j)];
    };
    const auto inputs_of = [&](std::int64_t j) { return visible(slice(all, 1, j, j + t), j); };
    const auto weight_of = [&](std::int64_t j) { return reshape(slice(w, 1, j, j + 1), Shape{d}); };
    Tensor d_all;
    if (d_last && seen.size() > 1 && t > 0) {
      std::vector<Arg> kept;  // what lies 0, 1, ... w - 2 steps before the end
      for (std::int64_t k = width - 2; k >= 0; --k) kept.emplace_back(slice(seen[std::size_t(k)], 1, t - 1, t));
      d_all = pad(d_last * concat(std::move(kept), 1), 1, t, 0);
    } else if (d_last) {
      d_all = pad(d_last, 1, t, 0);
    }
    std::vector<Tensor> outputs(4);
    if (dy) {
      Tensor pre = real_input(v, 2);
      for (std::int64_t j = 0; j < width; ++j) pre = pre ? pre + inputs_of(j) * weight_of(j) : inputs_of(j) * weight_of(j);
      const Tensor e = compose_hole(v, pre, dy, 0, outputs);
      std::vector<Arg> dw;
      for (std::int64_t j = 0; j < width; ++j) {
        dw.emplace_back(reshape(sum(e * inputs_of(j), {0, 1}), Shape{d, 1}));
        const Tensor through = pad(visible(e, j) * weight_of(j), 1, j, width - 1 - j);
        d_all = d_all ? d_all + through : through;
      }
      outputs[1] = concat(std::move(dw), 1);
      outputs[2] = sum(e, {0, 1});
    }
    outputs[0] = slice(d_all, 1, width - 1, width - 1 + t);
    outputs[3] = slice(d_all, 1, 0, width - 1);
    return outputs;
  });
}

}  // namespace

Hole silu_hole() {
  static const Expr body = silu(expr::input(0));
  return {{body}, {}, {}};
}

Tensor conv1d(Arg x, Arg weight, Arg bias, Conv1dOptions options) {
  const Site where = x.where();
  require_real(where, "conv1d", "x", x);
  require_real(where, "conv1d", "weight", weight);
  const Shape sx = x.shape(), sw = weight.shape();
  if (sx.rank() != 3 || sw.rank() != 2 || sx[2] != sw[0] || sw[1] < 1)
    fail_at(where, "conv1d: x and the weight do not fit", fmt::format("x {}, weight {}", to_string(sx), to_string(sw)),
            "x is (batch, time, channels), the weight (channels, width) with width >= 1");
  if (bias) require_shape(where, "conv1d", "bias", bias, Shape{sx[2]}, "weight", weight);
  const Shape state{sx[0], sw[1] - 1, sx[2]};
  if (options.initial) require_shape(where, "conv1d", "initial", options.initial, state, "x", x);
  require_one_precision(where, "conv1d", {{"x", x}, {"weight", weight}, {"bias", bias}, {"initial", options.initial}});
  require_segments(where, "conv1d", options.segments, sx);
  if (options.silu && options.out.filled())
    fail_at(where, "conv1d: SiLU and a function for the result", "silu is what .out = silu_hole() says",
            "give one of them; the function may call silu()");
  Recorder r(conv1d_op, where);
  r.input(x)
      .input(weight)
      .input(bias)
      .input(options.initial)
      .input(options.segments.borders)
      .hole(0, options.silu ? silu_hole() : Hole(options.out), sx);
  r.integer(options.last != nullptr).out(sx, x.dtype());
  if (options.last) r.out(state, x.dtype());
  const Tensor y = r.record();
  if (options.last) *options.last = output_of(y, 1);
  return y;
}

}  // namespace weft
