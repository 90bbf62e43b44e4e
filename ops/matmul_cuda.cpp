// Products of matrices on a GPU: calls of cuBLASLt, whose operands have one dtype and contiguous rows or columns; a kernel of
// our own for a matrix and a few rows, which is as long as reading the matrix.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "jit/parallel.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

// ---- operands in place ------------------------------------------------------------------------------------------------------

struct Axis {
  std::int64_t size, stride;
};

// A matrix with these axes, or an absent one if it cannot be read in place: neither rows nor columns are contiguous, or they
// overlap. The stride of an axis of size 1 does not matter.
GemmOperand matrix(const Operand& o, const Axis& rows, const Axis& columns) {
  GemmOperand g{o.slot, o.offset, o.dtype};
  if ((columns.size == 1 || columns.stride == 1) && (rows.size == 1 || rows.stride >= columns.size)) {
    g.row_stride = rows.size == 1 ? columns.size : rows.stride;
    g.col_stride = 1;
    return g;
  }
  if ((rows.size == 1 || rows.stride == 1) && (columns.size == 1 || columns.stride >= rows.size)) {
    g.row_stride = 1;
    g.col_stride = columns.size == 1 ? rows.size : columns.stride;
    return g;
  }
  return {};
}

// The leading axes of `o` as one, if they walk with one stride.
std::optional<Axis> leading_axis(const Operand& o) {
  Axis all{1, 0};
  for (int i = o.rank - 2; i >= 0; --i) {
    if (o.dims[i] == 1) continue;
    if (all.size == 1) all.stride = o.strides[i];
    if (o.strides[i] != all.stride * all.size) return {};
    all.size *= o.dims[i];
  }
  return all;
}

// (..., width) as a matrix of rows, or its transpose.
GemmOperand flat(const Operand& o, bool transposed) {
  const std::optional<Axis> rows = leading_axis(o);
  if (!rows) return {};
  const Axis columns{o.dims[o.rank - 1], o.strides[o.rank - 1]};
  return transposed ? matrix(o, columns, *rows) : matrix(o, *rows, columns);
}

// The first matrix of (batch..., r, c), or its transpose.
GemmOperand last_two(const Operand& o, bool transposed) {
  const Axis r{o.dims[o.rank - 2], o.strides[o.rank - 2]}, c{o.dims[o.rank - 1], o.strides[o.rank - 1]};
  return transposed ? matrix(o, c, r) : matrix(o, r, c);
}

// Input i in memory that `form` can describe, a dense copy if need be.
Operand readable(Lowering& l, int i, DType dtype, GemmOperand (*form)(const Operand&, bool)) {
  const Operand o = l.view(i, dtype);
  return form(o, false) ? o : l.dense(i, dtype);
}

// ---- results ----------------------------------------------------------------------------------------------------------------

// Memory for a product of two matrices of `type`: the output, or, where cuBLASLt does not write its dtype, scratch from which
// `finish` rounds it.
Operand product_memory(Lowering& l, DType type, const Operand& out) {
  const DType written = type == DType::bf16 && out.dtype == DType::bf16 ? DType::bf16 : type == DType::f64 ? type : DType::f32;
  return written == out.dtype ? out : l.scratch(written, std::span(out.dims.data(), std::size_t(out.rank)));
}

void finish(Lowering& l, const Operand& product, const Operand& out) {
  if (product.slot != out.slot) l.emit_pointwise("gemm_round", copy_of(product, out), out);
}

GemmOperand result(const Operand& o) { return {o.slot, o.offset, o.dtype, o.row_stride(), 1}; }

// The library adds operands of the result's dtype. Rounding a bias to bf16 costs no more than rounding the sum does.
Epilogue add_epilogue(Lowering& l, const Operand& y, GemmCall& call) {
  const Epilogue epilogue = l.epilogue(y.dtype);
  call.activation = epilogue.activation;
  if (const Operand& bias = epilogue.bias) call.bias = {bias.slot, bias.offset, bias.dtype};
  if (epilogue.addend) call.addend = result(epilogue.addend);
  return epilogue;
}

// ---- kernels ----------------------------------------------------------------------------------------------------------------

// The kernel for so many rows of x, and W with contiguous rows: what decoding does.
constexpr std::int64_t kFewRows = 8;

void emit_matvec(Lowering& l, const Operand& w, DType type, const Operand& y) {
  constexpr std::int64_t kBlock = 256, kWanted = 132 * 512;  // threads, of the grid
  const std::int64_t n = y.dims[y.rank - 1], m = y.numel() / n, k = l.shape(0)[-1];
  const Operand x = l.rows(0, type);
  const Epilogue epilogue = l.epilogue();
  const std::int64_t width = row_width(k, {}, {x, w}), vectors = ceil_div(k, width);
  // Three vectors of a row of W or so for each thread, less where there are few rows.
  std::int64_t threads = 1;
  while (threads < kBlock && threads < vectors && (4 * threads < vectors || n * threads < kWanted)) threads *= 2;
  std::int64_t rows = 1;
  while (rows < 4 && m * rows < 8 && n * threads >= 8 * kWanted * rows) rows *= 2;
  const std::int64_t steps = ceil_div(vectors, threads);
  CudaText text = l.text("matvec");
  text.define("M", m).define("T", threads).define("ROWS", rows).define("V", width).define("BLOCK", kBlock);
  text.define("STEPS", steps).define("UNROLL", std::min<std::int64_t>(steps, m > 2 ? 2 : 4));
  text.define("ACTIVATION", std::int64_t(epilogue.activation));
  text.rows("x", x).rows("w", w).pointer("bias", epilogue.bias).rows("addend", epilogue.addend).rows("y", y);
  text.integer("n", n).integer("k", k).flops(2.0 * double(m) * double(n) * double(k));
  l.emit(text.launch("ops/matvec.cuh", {unsigned(ceil_div(n, kBlock / threads * rows)), 1, 1}, {unsigned(kBlock), 1, 1}));
}

// A sum over no elements: the bias, or 0.
void emit_empty(Lowering& l, const Operand& bias, const Operand& out) {
  l.emit_pointwise("gemm_empty", bias ? copy_of(bias, out) : zeros(out.dtype), out);
}

}  // namespace

void cuda_linear(Lowering& l) {
  const Operand out = l.output();
  if (!out || out.numel() == 0) return;
  GemmCall call;
  call.n = out.dims[out.rank - 1], call.m = out.numel() / call.n, call.k = l.shape(0)[-1];
  if (call.k == 0) return emit_empty(l, l.has(2) ? l.view(2) : Operand{}, out);
  const DType type = operand_type(l);
  if (call.m <= kFewRows && l.integer(0) != 0)
    if (const Operand w = l.view(1, type); w.strides[1] == 1 || call.k == 1) return emit_matvec(l, w, type, out);
  const Operand y = product_memory(l, type, out);
  call.a = flat(readable(l, 0, type, flat), false);
  call.b = flat(readable(l, 1, type, flat), l.integer(0) != 0);
  call.c = result(y);
  add_epilogue(l, y, call);
  l.emit("gemm__linear", call);
  finish(l, y, out);
}

void cuda_row_product(Lowering& l) {
  const Operand out = l.output();
  if (!out || out.numel() == 0) return;
  GemmCall call;
  call.m = out.dims[0], call.n = out.dims[1], call.k = l.shape(0).numel() / call.m;
  if (call.k == 0) return emit_empty(l, {}, out);
  const DType type = operand_type(l);
  const Operand w = product_memory(l, type, out);
  call.a = flat(readable(l, 0, type, flat), true);
  call.b = flat(readable(l, 1, type, flat), false);
  call.c = result(w);
  add_epilogue(l, w, call);
  l.emit("gemm__row_product", call);
  finish(l, w, out);
}

namespace {

struct BatchAxis {
  std::int64_t size, a, b, c, addend;  // strides of the operands
};

// The batch axes, neighbours merged where all operands walk them as one.
std::vector<BatchAxis> batch_axes(const Operand& a, const Operand& b, const Operand& c, const Operand& addend) {
  const std::span batch(c.dims.data(), std::size_t(c.rank - 2));
  const auto leading = [&](Operand o) { return o.rank -= 2, broadcast_to(o, batch); };
  const Operand in_a = leading(a), in_b = leading(b);
  std::vector<BatchAxis> axes;
  for (int i = c.rank - 3; i >= 0; --i) {
    const BatchAxis axis{c.dims[i], in_a.strides[i], in_b.strides[i], c.strides[i], addend.strides[i]};
    if (axis.size == 1) continue;
    if (!axes.empty()) {
      BatchAxis& inner = axes.back();
      if (axis.a == inner.a * inner.size && axis.b == inner.b * inner.size && axis.c == inner.c * inner.size &&
          axis.addend == inner.addend * inner.size) {
        inner.size *= axis.size;
        continue;
      }
    }
    axes.push_back(axis);
  }
  return axes;
}

// `call` for each element of the batch: cuBLASLt walks the longest axis, the others become calls of their own.
void emit_batch(Lowering& l, GemmCall call, std::vector<BatchAxis> axes) {
  if (!axes.empty()) {
    const auto longest = std::max_element(axes.begin(), axes.end(), [](auto& x, auto& y) { return x.size < y.size; });
    call.batch = longest->size;
    call.a.batch_stride = longest->a, call.b.batch_stride = longest->b, call.c.batch_stride = longest->c;
    call.addend.batch_stride = longest->addend;
    axes.erase(longest);
  }
  std::int64_t calls = 1;
  for (const BatchAxis& axis : axes) calls *= axis.size;
  for (std::int64_t e = 0; e < calls; ++e) {
    GemmCall one = call;
    std::int64_t rest = e;
    for (const BatchAxis& axis : axes) {
      const std::int64_t at = rest % axis.size;
      rest /= axis.size;
      one.a.offset += at * axis.a, one.b.offset += at * axis.b, one.c.offset += at * axis.c;
      one.addend.offset += at * axis.addend;
    }
    l.emit("gemm__matmul", one);
  }
}

}  // namespace

void cuda_matmul(Lowering& l) {
  const Operand out = l.output();
  if (!out || out.numel() == 0) return;
  const bool ta = l.integer(0) != 0, tb = l.integer(1) != 0;
  GemmCall call;
  call.m = out.dims[out.rank - 2], call.n = out.dims[out.rank - 1], call.k = l.shape(0)[ta ? -2 : -1];
  if (call.k == 0) return emit_empty(l, {}, out);
  const DType type = operand_type(l);
  const Operand c = product_memory(l, type, out);
  const Operand a = readable(l, 0, type, last_two), b = readable(l, 1, type, last_two);
  call.a = last_two(a, ta), call.b = last_two(b, tb), call.c = last_two(c, false);
  const Epilogue epilogue = add_epilogue(l, c, call);
  emit_batch(l, call, batch_axes(a, b, c, epilogue.addend));
  finish(l, c, out);
}

}  // namespace weft
