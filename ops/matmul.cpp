// Products of matrices. Transposition and the flattening of leading axes are flags of one node, so a layer records one
// node forward and one for each gradient.
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "jit/gemm.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/ops.h"

namespace weft {
namespace {

// ---- kernels ----------------------------------------------------------------------------------------------------------------

GemmInput matrix(const Launch& launch, const Operand& o, std::int64_t row_stride, std::int64_t col_stride) {
  return {launch.view(o).data, o.dtype, row_stride, col_stride};
}

GemmOutput result(const Launch& launch, const Operand& o) { return {launch.view(o).data, o.dtype, o.row_stride()}; }

// Input i (..., w) as a matrix of rows (prod(...), w): strides of rows and columns.
struct Flat {
  Operand operand;
  std::int64_t row_stride, col_stride;
  Flat(Lowering& l, int i) : operand(l.shape(i).rank() == 2 ? l.view(i, operand_type(l)) : l.rows(i, operand_type(l))) {
    row_stride = operand.rank == 2 ? operand.strides[0] : operand.row_stride();
    col_stride = operand.rank == 2 ? operand.strides[1] : 1;
  }
  GemmInput at(const Launch& launch) const { return matrix(launch, operand, row_stride, col_stride); }
};

GemmOptions options_of(const Launch& launch, const Epilogue& epilogue) {
  GemmOptions options;
  options.activation = epilogue.activation;
  if (const Operand& b = epilogue.bias) options.bias = launch.view(b).data, options.bias_dtype = b.dtype;
  if (const Operand& d = epilogue.addend) options.addend = matrix(launch, d, d.row_stride(), 1), options.beta = 1;
  return options;
}

std::int64_t row_count(const Shape& shape) { return shape.first(shape.rank() - 1).numel(); }

// linear: inputs x (..., k), w, bias (n) or absent; ints [t]. x W^T with W (n, k) if t, else x W with W (k, n).
void lower_linear(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const Flat x(l, 0);
  const Operand w = l.view(1, operand_type(l));
  const Epilogue epilogue = l.epilogue();
  const bool transposed = l.integer(0) != 0;
  const std::int64_t m = row_count(l.shape(0)), k = l.shape(0)[-1], n = out.dims[out.rank - 1];
  in_compute_type(l, [&]<class T>(T) {
    l.emit("gemm__linear", [=](const Launch& launch) {
      const GemmInput stored = matrix(launch, w, w.strides[0], w.strides[1]);
      gemm<T>(m, n, k, x.at(launch), transposed ? stored.transposed() : stored, result(launch, out),
              options_of(launch, epilogue));
    });
  });
}

// row_product: a (..., p), b (..., q) -> a^T b (p, q), summed over all leading axes. The gradient of a weight.
void lower_row_product(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const Flat a(l, 0), b(l, 1);
  const Epilogue epilogue = l.epilogue();
  const std::int64_t rows = row_count(l.shape(0)), p = out.dims[0], q = out.dims[1];
  in_compute_type(l, [&]<class T>(T) {
    l.emit("gemm__row_product", [=](const Launch& launch) {
      gemm<T>(p, q, rows, a.at(launch).transposed(), b.at(launch), result(launch, out), options_of(launch, epilogue));
    });
  });
}

// The element offsets of each batch element of `operand` (batch..., r, c), broadcast to the batch axes of `out`.
std::vector<std::int64_t> batch_offsets(const Operand& operand, const Shape& batch) {
  Operand lead = operand;
  lead.rank = operand.rank - 2;
  const Operand wide = broadcast_to(lead, batch.dims());
  std::vector<std::int64_t> offsets(std::size_t(batch.numel()));
  for (std::int64_t e = 0; e < batch.numel(); ++e) {
    std::int64_t rest = e;
    for (int i = wide.rank - 1; i >= 0; rest /= wide.dims[i], --i) offsets[e] += rest % wide.dims[i] * wide.strides[i];
  }
  return offsets;
}

// matmul: inputs a, b; ints [ta, tb]: whether their last two axes are stored swapped.
void lower_matmul(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const DType type = operand_type(l);
  const Operand a = l.view(0, type), b = l.view(1, type);
  const bool ta = l.integer(0) != 0, tb = l.integer(1) != 0;
  const std::int64_t m = out.dims[out.rank - 2], n = out.dims[out.rank - 1];
  const std::int64_t k = a.dims[a.rank - (ta ? 2 : 1)];
  const Shape batch(std::span(out.dims.data(), std::size_t(out.rank - 2)));
  const std::vector<std::int64_t> in_a = batch_offsets(a, batch), in_b = batch_offsets(b, batch);
  std::vector<GemmOffsets> offsets;
  const Epilogue epilogue = l.epilogue();
  const std::int64_t added_rows = epilogue.addend ? epilogue.addend.row_stride() : 0;
  for (std::size_t e = 0; e < in_a.size(); ++e) {
    const std::int64_t row = std::int64_t(e) * m;
    offsets.push_back({in_a[e], in_b[e], row * out.row_stride(), row * added_rows});
  }
  const auto stored = [](const Launch& launch, const Operand& o, bool transposed) {
    const GemmInput x = matrix(launch, o, o.strides[o.rank - 2], o.strides[o.rank - 1]);
    return transposed ? x.transposed() : x;
  };
  in_compute_type(l, [&]<class T>(T) {
    l.emit("gemm__matmul", [=](const Launch& launch) {
      gemm_batched<T>(offsets, m, n, k, stored(launch, a, ta), stored(launch, b, tb), result(launch, out),
                      options_of(launch, epilogue));
    });
  });
}

// ---- ops and gradients ------------------------------------------------------------------------------------------------------

void linear_vjp(Vjp& v);
void row_product_vjp(Vjp& v);
void matmul_vjp(Vjp& v);

const Op& linear_op =
    register_op({.name = "linear", .vjp = linear_vjp, .lower = lower_linear, .cuda = cuda_linear, .product = true});
const Op& row_product_op = register_op(
    {.name = "row_product", .vjp = row_product_vjp, .lower = lower_row_product, .cuda = cuda_row_product, .product = true});
const Op& matmul_op =
    register_op({.name = "matmul", .vjp = matmul_vjp, .lower = lower_matmul, .cuda = cuda_matmul, .product = true});

// x (..., k) times W (n, k)^T or W (k, n), plus bias (n).
Tensor record_linear(const Tensor& x, const Tensor& w, const Tensor& bias, bool transposed, DType dtype, Site where) {
  Shape shape = x.shape();
  shape[-1] = w.shape()[transposed ? 0 : 1];
  const std::int64_t ints[] = {transposed};
  return record(linear_op, {x, w, bias}, {{shape, dtype}}, ints, {}, where);
}

Tensor record_row_product(const Tensor& a, const Tensor& b, DType dtype, Site where) {
  return record(row_product_op, {a, b}, {{Shape{a.shape()[-1], b.shape()[-1]}, dtype}}, {}, {}, where);
}

Tensor record_matmul(const Tensor& a, const Tensor& b, bool ta, bool tb, DType dtype, Site where) {
  const Shape sa = a.shape(), sb = b.shape();
  Shape shape;
  broadcast_shapes(sa.first(sa.rank() - 2), sb.first(sb.rank() - 2), &shape);
  shape.push_back(sa[ta ? -1 : -2]);
  shape.push_back(sb[tb ? -2 : -1]);
  const std::int64_t ints[] = {ta, tb};
  return record(matmul_op, {a, b}, {{shape, dtype}}, ints, {}, where);
}

// y = x W^T + b: dx = g W, dW = g^T x, db = sum of the rows of g. Without the transposition dW = x^T g.
void linear_vjp(Vjp& v) {
  const Tensor g = v.grad();
  const bool transposed = v.integer(0) != 0;
  if (v.needs(0)) v.add(0, record_linear(g, v.input(1), {}, !transposed, v.input(0).dtype(), v.where()));
  if (v.needs(1)) {
    const Tensor x = v.input(0);
    const DType dtype = v.input(1).dtype();
    v.add(1, transposed ? record_row_product(g, x, dtype, v.where()) : record_row_product(x, g, dtype, v.where()));
  }
  if (v.needs(2)) v.add(2, sum_to(g, v.input(2).shape(), v.where()));
}

// C = a^T b: da = b g^T, db = a g.
void row_product_vjp(Vjp& v) {
  const Tensor g = v.grad(), a = v.input(0), b = v.input(1);
  if (v.needs(0)) v.add(0, record_linear(b, g, {}, true, a.dtype(), v.where()));
  if (v.needs(1)) v.add(1, record_linear(a, g, {}, false, b.dtype(), v.where()));
}

// C = A B: dA = g B^T, dB = A^T g; each in the order in which the operand is stored.
void matmul_vjp(Vjp& v) {
  const Tensor g = v.grad(), a = v.input(0), b = v.input(1);
  const bool ta = v.integer(0) != 0, tb = v.integer(1) != 0;
  if (v.needs(0)) {
    const Tensor da =
        ta ? record_matmul(b, g, tb, true, a.dtype(), v.where()) : record_matmul(g, b, false, !tb, a.dtype(), v.where());
    v.add(0, sum_to(da, a.shape(), v.where()));
  }
  if (v.needs(1)) {
    const Tensor db =
        tb ? record_matmul(g, a, true, ta, b.dtype(), v.where()) : record_matmul(a, g, !ta, false, b.dtype(), v.where());
    v.add(1, sum_to(db, b.shape(), v.where()));
  }
}

std::string both(std::string_view a_name, const Shape& a, std::string_view b_name, const Shape& b) {
  return fmt::format("{} {}, {} {}", a_name, to_string(a), b_name, to_string(b));
}

}  // namespace

Tensor matmul(Arg a, Arg b) {
  require_real(a.where(), "matmul", "a", a);
  require_real(a.where(), "matmul", "b", b);
  require_one_precision(a.where(), "matmul", {{"a", a}, {"b", b}});
  const Shape sa = a.shape(), sb = b.shape();
  if (sa.rank() < 2 || sb.rank() < 2)
    fail_at(a.where(), "matmul: operands need at least two axes", both("a", sa, "b", sb),
            "reshape a vector to (1, k) or (k, 1), or use sum(a * b) for an inner product");
  if (sa[-1] != sb[-2])
    fail_at(a.where(), "matmul: inner dimensions differ",
            fmt::format("{}: {} against {}", both("a", sa, "b", sb), sa[-1], sb[-2]),
            sa[-1] == sb[-1] ? "transpose b: matmul(a, transpose(b))" : "transpose an operand, or check the layer's width");
  Shape batch;
  if (!broadcast_shapes(sa.first(sa.rank() - 2), sb.first(sb.rank() - 2), &batch))
    fail_at(a.where(), "matmul: leading axes do not broadcast", both("a", sa, "b", sb),
            "sizes must be equal or 1, aligned from the right");
  const DType dtype = widest(a.dtype(), b.dtype());
  if (sb.rank() == 2 && sa.rank() > 2) return record_linear(a, b, {}, false, dtype, a.where());
  return record_matmul(a, b, false, false, dtype, a.where());
}

Tensor linear(Arg x, Arg weight, Arg bias) {
  require_real(x.where(), "linear", "x", x);
  require_real(x.where(), "linear", "weight", weight);
  const Shape sx = x.shape(), sw = weight.shape();
  if (sw.rank() != 2)
    fail_at(x.where(), "linear: the weight is not a matrix", both("x", sx, "weight", sw), "its shape is (out, in)");
  if (sx.rank() < 1 || sx[-1] != sw[1])
    fail_at(x.where(), "linear: the last axis of x is not the weight's input width",
            fmt::format("{}: {} against {}", both("x", sx, "weight", sw), sx.rank() ? sx[-1] : 1, sw[1]),
            sx.rank() && sx[-1] == sw[0] ? "the weight is (out, in): transpose it, or use matmul" : "check the layer's width");
  if (bias) require_shape(x.where(), "linear", "bias", bias, Shape{sw[0]}, "weight", weight);
  require_one_precision(x.where(), "linear", {{"x", x}, {"weight", weight}, {"bias", bias}});
  return record_linear(x, weight, bias, true, x.dtype(), x.where());
}

}  // namespace weft
