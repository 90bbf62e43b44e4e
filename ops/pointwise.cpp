#include "autograd/pointwise.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "autograd/backward.h"
#include "autograd/random.h"
#include "ops/ops.h"

namespace weft {
namespace {

Shape broadcast_all(std::string_view name, std::span<const Arg> args) {
  Shape shape = args.empty() ? Shape{} : args[0].shape();
  for (std::size_t i = 1; i < args.size(); ++i)
    if (!broadcast_shapes(shape, args[i].shape(), &shape)) {
      std::string shapes;
      for (const Arg& a : args) shapes += (shapes.empty() ? "" : " and ") + to_string(a.shape());
      fail_at(args[0].where(), fmt::format("{}: the shapes do not broadcast", name), shapes,
              "sizes must be equal or 1, aligned from the right; use reshape to insert axes of size 1");
    }
  return shape;
}

// Reals widen to the widest real operand; without a real operand arithmetic stays integer.
DType result_dtype(Expr body, std::span<const Arg> args) {
  if (body.type() == ExprType::boolean) return DType::boolean;
  DType d = DType::boolean;
  for (const Arg& a : args)
    if (expr_type(a.dtype()) == body.type()) d = d == DType::boolean ? a.dtype() : widest(d, a.dtype());
  if (d != DType::boolean) return d;
  return body.type() == ExprType::integer ? DType::i64 : DType::f32;
}

Tensor apply(std::int64_t name, Expr body, std::initializer_list<Arg> list, std::span<const double> constants = {}) {
  const std::span<const Arg> args(list.begin(), list.size());
  std::array<Tensor, 4> inputs;
  for (std::size_t i = 0; i < args.size(); ++i) inputs[i] = args[i].tensor();
  const Shape shape = args.size() == 1 ? args[0].shape() : broadcast_all("pointwise", args);
  return record_body(name, body, {inputs.data(), args.size()}, constants, shape, result_dtype(body, args), args[0].where());
}

bool is_whole(double x) { return std::abs(x) < 0x1p63 && x == std::trunc(x); }

void check_drawn(std::string_view op, DType dtype, Site where) {
  if (!is_real(dtype)) fail_at(where, fmt::format("{}: the dtype is not real", op), std::string(name_of(dtype)));
}

// The rows of the pointwise table. Each holds, for every combination of operand types, the interned body, so that recording
// builds no expression.
struct Unary {
  Expr (*f)(Expr);
  std::array<Expr, 3> body;  // by ExprType of the operand
  std::int64_t name;
  Unary(std::string_view n, Expr (*function)(Expr)) : f(function), name(name_id(n)) {
    for (const ExprType t : {ExprType::real, ExprType::integer, ExprType::boolean}) body[int(t)] = f(expr::input(0, t));
  }
  Tensor operator()(const Arg& a) const { return apply(name, body[int(expr_type(a.dtype()))], {a}); }
};

struct Binary {
  Expr (*f)(Expr, Expr);
  std::array<std::array<Expr, 3>, 3> body;
  std::array<std::array<Expr, 3>, 2> with_number;  // number on the right [0], on the left [1]
  std::int64_t name;
  std::string_view text;

  Binary(std::string_view n, Expr (*function)(Expr, Expr)) : f(function), name(name_id(n)), text(n) {
    for (int i = 0; i < 3; ++i) {
      const Expr a = expr::input(0, ExprType(i));
      for (int j = 0; j < 3; ++j) body[i][j] = f(a, expr::input(1, ExprType(j)));
      with_number[0][i] = f(a, expr::slot(0));
      with_number[1][i] = f(expr::slot(0), a);
    }
  }
  Tensor operator()(const Arg& a, const Arg& b) const {
    const Expr e = body[int(expr_type(a.dtype()))][int(expr_type(b.dtype()))];
    const Arg args[] = {a, b};
    const Tensor inputs[] = {a.tensor(), b.tensor()};
    return record_body(name, e, inputs, {}, broadcast_all(text, args), result_dtype(e, args), a.where());
  }
  // Exact numbers are part of the structure (and fold); others are slots.
  Tensor operator()(const Arg& a, double b, bool left = false) const {
    const ExprType type = expr_type(a.dtype());
    const bool whole = type == ExprType::integer && is_whole(b);
    for (const double exact : {0.0, 1.0, -1.0, 2.0, 0.5}) {
      if (b != exact && !whole) continue;
      const Expr x = expr::input(0, type), c = whole ? Expr(std::int64_t(b)) : expr::literal(exact);
      return apply(name, left ? f(c, x) : f(x, c), {a});
    }
    return apply(name, with_number[left][int(type)], {a}, {&b, 1});
  }
};

Expr add_(Expr a, Expr b) { return a + b; }
Expr sub_(Expr a, Expr b) { return a - b; }
Expr mul_(Expr a, Expr b) { return a * b; }
Expr div_(Expr a, Expr b) { return to_real(a) / to_real(b); }
Expr neg_(Expr a) { return -a; }
Expr less_(Expr a, Expr b) { return a < b; }
Expr less_equal_(Expr a, Expr b) { return a <= b; }
Expr greater_(Expr a, Expr b) { return a > b; }
Expr greater_equal_(Expr a, Expr b) { return a >= b; }

const Binary kAdd("add", add_), kSub("sub", sub_), kMul("mul", mul_), kDiv("div", div_), kMin("min", weft::min),
    kMax("max", weft::max), kPow("pow", weft::pow), kEqual("equal", weft::equal), kNotEqual("not_equal", weft::not_equal),
    kLess("less", less_), kLessEqual("less_equal", less_equal_), kGreater("greater", greater_),
    kGreaterEqual("greater_equal", greater_equal_);
const Unary kNeg("neg", neg_), kExp("exp", weft::exp), kLog("log", weft::log), kLog1p("log1p", weft::log1p),
    kExpm1("expm1", weft::expm1), kSqrt("sqrt", weft::sqrt), kRsqrt("rsqrt", weft::rsqrt), kTanh("tanh", weft::tanh),
    kSigmoid("sigmoid", weft::sigmoid), kSilu("silu", weft::silu), kSoftplus("softplus", weft::softplus),
    kRelu("relu", weft::relu), kGelu("gelu", weft::gelu), kGeluTanh("gelu_tanh", weft::gelu_tanh), kErf("erf", weft::erf),
    kAbs("abs", weft::abs), kSign("sign", weft::sign), kSquare("square", weft::square), kFloor("floor", weft::floor),
    kSin("sin", weft::sin), kCos("cos", weft::cos);

}  // namespace

namespace detail {

void fail_pointwise_arity(std::size_t tensors, Site where) {
  fail_at(where, "pointwise: the function does not take one Expr for each tensor", fmt::format("{} tensors", tensors),
          "declare as many Expr parameters as there are tensors (at most 8)");
}

ExprType input_type(const Arg& a) { return expr_type(a.dtype()); }

Tensor record_pointwise(std::string_view name, std::span<const Arg> args, Expr body, std::span<const double> constants) {
  const Shape shape = broadcast_all(name, args);
  if (body.coordinates() > shape.rank())
    fail_at(args[0].where(), fmt::format("{}: index {} does not exist", name, body.coordinates() - 1),
            fmt::format("the result is {}", to_string(shape)), "coordinates are those of the result: one for each of its axes");
  std::array<Tensor, 8> inputs;
  for (std::size_t i = 0; i < args.size(); ++i) inputs[i] = args[i].tensor();
  return record_body(name_id(name), body, {inputs.data(), args.size()}, constants, shape, result_dtype(body, args),
                     args[0].where());
}

}  // namespace detail

Tensor operator+(Arg a, Arg b) { return kAdd(a, b); }
Tensor operator-(Arg a, Arg b) { return kSub(a, b); }
Tensor operator*(Arg a, Arg b) { return kMul(a, b); }
Tensor operator/(Arg a, Arg b) { return kDiv(a, b); }
Tensor operator-(Arg a) { return kNeg(a); }
Tensor operator+(Arg a, double b) { return kAdd(a, b); }
Tensor operator-(Arg a, double b) { return kSub(a, b); }
Tensor operator*(Arg a, double b) { return kMul(a, b); }
Tensor operator/(Arg a, double b) { return kDiv(a, b); }
Tensor operator+(double a, Arg b) { return kAdd(b, a, true); }
Tensor operator-(double a, Arg b) { return kSub(b, a, true); }
Tensor operator*(double a, Arg b) { return kMul(b, a, true); }
Tensor operator/(double a, Arg b) { return kDiv(b, a, true); }

Tensor equal(Arg a, Arg b) { return kEqual(a, b); }
Tensor not_equal(Arg a, Arg b) { return kNotEqual(a, b); }
Tensor less(Arg a, Arg b) { return kLess(a, b); }
Tensor less_equal(Arg a, Arg b) { return kLessEqual(a, b); }
Tensor greater(Arg a, Arg b) { return kGreater(a, b); }
Tensor greater_equal(Arg a, Arg b) { return kGreaterEqual(a, b); }
Tensor equal(Arg a, double b) { return kEqual(a, b); }
Tensor not_equal(Arg a, double b) { return kNotEqual(a, b); }
Tensor less(Arg a, double b) { return kLess(a, b); }
Tensor less_equal(Arg a, double b) { return kLessEqual(a, b); }
Tensor greater(Arg a, double b) { return kGreater(a, b); }
Tensor greater_equal(Arg a, double b) { return kGreaterEqual(a, b); }

Tensor where(Arg condition, Arg a, Arg b) {
  const Arg args[] = {condition, a, b};
  const Expr c = expr::input(0, expr_type(condition.dtype()));
  const Expr test =
      c.type() == ExprType::boolean ? c : not_equal(c, c.type() == ExprType::integer ? Expr(0) : expr::literal(0));
  const Expr body = where(test, expr::input(1, expr_type(a.dtype())), expr::input(2, expr_type(b.dtype())));
  static const std::int64_t name = name_id("where");
  const Tensor inputs[] = {condition.tensor(), a.tensor(), b.tensor()};
  return record_body(name, body, inputs, {}, broadcast_all("where", args), result_dtype(body, {args + 1, 2}),
                     condition.where());
}

Tensor min(Arg a, Arg b) { return kMin(a, b); }
Tensor max(Arg a, Arg b) { return kMax(a, b); }
Tensor pow(Arg a, Arg b) { return kPow(a, b); }
Tensor pow(Arg a, double b) { return kPow(a, b); }
Tensor exp(Arg a) { return kExp(a); }
Tensor log(Arg a) { return kLog(a); }
Tensor log1p(Arg a) { return kLog1p(a); }
Tensor expm1(Arg a) { return kExpm1(a); }
Tensor sqrt(Arg a) { return kSqrt(a); }
Tensor rsqrt(Arg a) { return kRsqrt(a); }
Tensor tanh(Arg a) { return kTanh(a); }
Tensor sigmoid(Arg a) { return kSigmoid(a); }
Tensor silu(Arg a) { return kSilu(a); }
Tensor softplus(Arg a) { return kSoftplus(a); }
Tensor relu(Arg a) { return kRelu(a); }
Tensor gelu(Arg a) { return kGelu(a); }
Tensor gelu_tanh(Arg a) { return kGeluTanh(a); }
Tensor erf(Arg a) { return kErf(a); }
Tensor abs(Arg a) { return kAbs(a); }
Tensor sign(Arg a) { return kSign(a); }
Tensor square(Arg a) { return kSquare(a); }
Tensor floor(Arg a) { return kFloor(a); }
Tensor sin(Arg a) { return kSin(a); }
Tensor cos(Arg a) { return kCos(a); }

Tensor clamp(Arg a, double low, double high) {
  static const Expr body = weft::clamp(expr::input(0), expr::slot(0), expr::slot(1));
  static const std::int64_t name = name_id("clamp");
  if (!(low <= high)) fail_at(a.where(), "clamp: the bounds are out of order", fmt::format("[{}, {}]", low, high));
  if (expr_type(a.dtype()) == ExprType::integer && is_whole(low) && is_whole(high))
    return apply(name, weft::clamp(expr::input(0, ExprType::integer), std::int64_t(low), std::int64_t(high)), {a});
  const double bounds[] = {low, high};
  return apply(name, body, {a}, bounds);
}

Tensor cast(Arg a, DType dtype) { return cast(a.tensor(), dtype, a.where()); }

Tensor detach(Arg a) {
  const NoGrad off;
  return copy(a.tensor(), a.dtype(), a.where());
}

Tensor zeros(Shape shape, DType dtype, Site where) { return constant(0, shape, dtype, where); }
Tensor ones(Shape shape, DType dtype, Site where) { return constant(1, shape, dtype, where); }
Tensor full(Shape shape, double value, DType dtype, Site where) { return constant(value, shape, dtype, where); }

Tensor uniform(Shape shape, DType dtype, Site where) {
  static const Expr draw = expr::uniform(0, expr::element()), in_bf16 = min(draw, expr::literal(1 - 0x1p-8));
  static const Expr of_rows = expr::uniform(0, expr::element() + expr::slot(3, ExprType::integer)),
                    rows_in_bf16 = min(of_rows, expr::literal(1 - 0x1p-8));
  static const std::int64_t name = name_id("uniform");
  check_drawn("uniform", dtype, where);
  if (const BatchRows* cut = BatchRows::in_use(); cut && shape.rank() > 0 && shape[0] == cut->rows()) {
    const Draw d = next_draw();
    const double constants[] = {d.constants[0], d.constants[1], d.constants[2],
                                double(cut->first() * (shape.numel() / std::max<std::int64_t>(shape[0], 1)))};
    return record_body(name, dtype == DType::bf16 ? rows_in_bf16 : of_rows, {}, constants, shape, dtype, where);
  }
  // The last fp32 below 1 would be rounded to 1.
  return record_body(name, dtype == DType::bf16 ? in_bf16 : draw, {}, next_draw().constants, shape, dtype, where);
}

// Box-Muller: sqrt(-2 ln u1) cos(2 pi u2).
Tensor normal(Shape shape, DType dtype, Site where) {
  static const Expr body =
      sqrt(expr::literal(-2) * log(expr::input(0))) * cos(expr::literal(6.283185307179586) * expr::input(1));
  static const std::int64_t name = name_id("normal");
  check_drawn("normal", dtype, where);
  const Tensor inputs[] = {uniform(shape, dtype, where), uniform(shape, dtype, where)};
  return record_body(name, body, inputs, {}, shape, dtype, where);
}

}  // namespace weft
