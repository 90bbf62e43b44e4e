// The causal convolution on a GPU: which kernel of conv1d.cuh runs, on what.
#include <algorithm>
#include <string>
#include <vector>

#include "jit/hole_text.h"
#include "jit/parallel.h"
#include "ops/cuda.h"
#include "ops/holes.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

enum class Stage { forward, backward, wide_forward, wide_input, wide_partials };  // as in conv1d.cuh

constexpr std::int64_t kLanes = 32, kWarps = 8;  // of a block: along channels, along time

// Every operand that a kernel of the family may have.
struct Conv {
  std::int64_t batches, length, d, width;
  Fused out{}, out_grad{};        // the hole, and its gradient
  std::vector<Operand> out_to{};  // of the roots of out_grad
  Operand x{}, weight{}, bias{}, initial{}, y{}, last{};
  Operand g{}, g_last{}, borders{}, dx{}, d_initial{}, partials{}, e{};

  std::int64_t chunks(std::int64_t steps) const { return std::max<std::int64_t>(1, ceil_div(length, kWarps * steps)); }
};

// Channels of a thread: 16 bytes of the widest operand, and with all taps at most `registers` bytes; 0: not one fits.
int channels_of(const Lowering& l, const Conv& c, std::int64_t registers) {
  std::vector<Operand> operands = {c.x, c.initial, c.y, c.last, c.g, c.g_last, c.dx, c.d_initial, c.bias};
  operands.insert(operands.end(), c.out_to.begin(), c.out_to.end());
  const Fused* const holes[] = {&c.out, &c.out_grad};
  const std::int64_t dims[] = {c.batches, c.length, c.d}, real = l.in_double() ? 8 : 4;
  std::int64_t v = vector_width(dims, holes, operands);
  for (const Operand& o : operands)
    if (o && o.slot != c.bias.slot) v = std::min(v, 16 / std::int64_t(size_of(o.dtype)));
  while (v > 0 && v * c.width * real > registers) v /= 2;
  return int(v);
}

void emit(Lowering& l, const Conv& c, std::string name, Stage stage, int channels, std::int64_t steps) {
  CudaText text = l.text(std::move(name));
  text.define("STAGE", int(stage)).define("W", c.width).define("V", channels).define("STEPS", steps);
  text.rows("x", c.x).pointer("weight", c.weight).pointer("bias", c.bias).rows("initial", c.initial);
  text.rows("y", c.y).rows("last", c.last).rows("g", c.g).rows("g_last", c.g_last).rows("dx", c.dx);
  text.rows("d_initial", c.d_initial).pointer("partials", c.partials).pointer("e", c.e).pointer("borders", c.borders);
  const std::int64_t chunks = c.chunks(steps), blocks = ceil_div(c.d, kLanes * channels);
  text.define("IN_PLACE", c.last && c.last.slot == c.initial.slot);
  text.integer("length", c.length).integer("d", c.d);
  text.integer("chunks", chunks).integer("blocks", blocks);
  text.flops(2.0 * double(c.width * c.batches * c.length * c.d));
  hole_text(text, "out_of", c.out);
  gradients_text(text, "out", c.out_grad, c.out_to, std::vector<Operand>(c.out_to.size()));
  l.emit(text.launch_text(joined_texts({"jit/hole.cuh", "ops/conv1d.cuh"}), {unsigned(c.batches * chunks * blocks), 1, 1},
                          {unsigned(kLanes), unsigned(kWarps), 1}));
}

// The gradient of a width whose taps do not fit registers: e, the gradient before the hole, goes through memory.
void emit_wide_backward(Lowering& l, const Conv& c, std::int64_t steps) {
  const std::int64_t dims[] = {c.batches, c.length, c.d};
  Conv upstream = c, input = c, sums = c;
  upstream.e = input.e = sums.e = l.scratch(l.in_double() ? DType::f64 : DType::f32, dims);
  upstream.dx = upstream.d_initial = upstream.partials = upstream.g_last = {};
  input.x = input.initial = input.bias = input.g = input.partials = {};
  sums.weight = sums.bias = sums.g = sums.g_last = sums.dx = sums.d_initial = {};
  for (Conv* rest : {&input, &sums}) rest->out_grad = passed_on(2, l.shape(0)), rest->out_to = {Operand{}};
  emit(l, upstream, "conv1d_wide_upstream", Stage::wide_forward, 1, steps);
  if (c.dx || c.d_initial) emit(l, input, "conv1d_wide_input", Stage::wide_input, 1, steps);
  if (c.partials) emit(l, sums, "conv1d_wide_sums", Stage::wide_partials, 1, steps);
}

}  // namespace

// Inputs x (b, t, d), weight (d, w), bias (d), initial (b, w-1, d), borders (b, t); hole out(pre; b, t, d); ints [last].
// Outputs y (b, t, d) and, if `last`, the last inputs (b, w-1, d).
void cuda_conv1d(Lowering& l) {
  const Shape sx = l.shape(0);
  Conv c{.batches = sx[0],
         .length = sx[1],
         .d = sx[2],
         .width = l.shape(1)[1],
         .out = l.hole(0, sx),
         .out_grad = passed_on(2, sx),
         .out_to = {Operand{}}};
  c.x = l.rows(0), c.weight = l.dense(1), c.bias = l.dense(2), c.initial = l.rows(3), c.borders = l.dense(4);
  c.y = l.output(0);
  if (l.integer(0)) c.last = l.output(1);
  if (c.batches == 0 || c.d == 0) return;
  // A run of 16 steps reads W - 1 rows twice and leaves enough threads for a short sequence.
  const int channels = channels_of(l, c, 128);
  emit(l, c, "conv1d", channels ? Stage::forward : Stage::wide_forward, std::max(channels, 1), 16);
}

// Inputs x, weight, bias, initial, gradients of y and of the last inputs, borders (each may be absent); hole out_grad(pre, g;
// b, t, d); ints: the output of each of its roots, -1 for none. Outputs dx, dw, db, d_initial, then those of the roots.
void cuda_conv1d_backward(Lowering& l) {
  const Shape sx = l.shape(0);
  Conv c{.batches = sx[0],
         .length = sx[1],
         .d = sx[2],
         .width = l.shape(1)[1],
         .out = passed_on(1, sx),
         .out_grad = l.hole(0, sx)};
  c.out_to = l.filled(0) ? root_outputs(l, c.out_grad.roots.size()) : std::vector<Operand>(1);
  c.x = l.rows(0), c.weight = l.dense(1), c.bias = l.dense(2), c.initial = l.rows(3), c.g_last = l.rows(5),
  c.borders = l.dense(6);
  if (c.length > 0) c.g = l.rows(4);
  c.dx = l.output(0), c.d_initial = l.output(3);
  const Operand dw = l.output(1), db = l.output(2);
  if (c.d == 0) return;
  constexpr std::int64_t kSteps = 32;  // fewer partial sums than of 16, and fewer steps computed twice
  const std::int64_t dims[] = {c.batches * c.chunks(kSteps), c.width + 1, c.d};
  if (dw || db) c.partials = l.scratch(l.in_double() ? DType::f64 : DType::f32, dims);
  if (c.batches > 0) {
    // Half the taps of the forward kernel: a thread also has the gradients of W steps and the sums.
    if (const int channels = channels_of(l, c, 64))
      emit(l, c, "conv1d_backward", Stage::backward, channels, kSteps);
    else
      emit_wide_backward(l, c, kSteps);
  }
  Operand sums = c.partials;  // those of dw, transposed, then those of db
  if (!dw) sums.offset += c.width * c.d;
  emit_sum_of_parts(l, "conv1d_sum", sums, kEightStrips, dw.transposed(), db);
}

}  // namespace weft
