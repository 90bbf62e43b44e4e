#include "jit/interval.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "jit/op_facts.h"
#include "jit/order.h"

namespace weft {

using Op = ExprOp;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Interval kBoolean{0, 1}, kUnbounded{};

// Bounds are computed in fp64, values in fp32, in fp64 or by the GPU's approximate functions: wide enough for all.
Interval with_margin(Interval x) {
  constexpr double kRelative = 0x1p-16, kTiny = 0x1p-126;
  return {x.low - std::abs(x.low) * kRelative - kTiny, x.high + std::abs(x.high) * kRelative + kTiny};
}

Interval rounded(Op op, ExprType type, Interval x) {
  if (type == ExprType::real && !facts_of(op).exact) x = with_margin(x);
  if (!(x.low <= x.high)) return kUnbounded;  // a NaN
  if (type != ExprType::integer) return x;
  return std::max(std::abs(x.low), std::abs(x.high)) < 0x1p53 ? x : kUnbounded;  // beyond, bounds round and values wrap
}

Interval hull(std::initializer_list<double> values) { return {std::min(values), std::max(values)}; }
Interval hull(Interval a, Interval b) { return {std::min(a.low, b.low), std::max(a.high, b.high)}; }

bool finite(Interval x) {  // in fp32 too
  constexpr double kLargest = std::numeric_limits<float>::max();
  return x.low >= -kLargest && x.high <= kLargest;
}

double product(double a, double b) { return a == 0 || b == 0 ? 0 : a * b; }  // a bound of infinity is not a value

Interval multiply(Interval a, Interval b) {
  return hull({product(a.low, b.low), product(a.low, b.high), product(a.high, b.low), product(a.high, b.high)});
}

Interval divide(ExprType type, Interval a, Interval b) {
  bool integer = type == ExprType::integer;
  if (std::isinf(a.low) || std::isinf(a.high) || std::isinf(b.low) || std::isinf(b.high)) return kUnbounded;
  if (b.low <= 0 && b.high >= 0) {
    if (!integer) return kUnbounded;
    double largest = std::max(std::abs(a.low), std::abs(a.high));  // x / 0 is 0, else |x / y| <= |x|
    return {-largest, largest};
  }
  Interval q = hull({a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high});
  return integer ? Interval{std::trunc(q.low), std::trunc(q.high)} : q;
}

Interval absolute(Interval a) {
  if (a.low >= 0) return a;
  return {a.high <= 0 ? -a.high : 0, std::max(-a.low, a.high)};
}

Interval equal_to(Interval a, Interval b) {
  if (a.low == a.high && b.low == b.high && a.low == b.low) return {1, 1};
  return a.high < b.low || b.high < a.low ? Interval{0, 0} : kBoolean;
}

// `certain` and `impossible` are what the bounds say about the comparison.
Interval verdict(bool certain, bool impossible) { return certain ? Interval{1, 1} : impossible ? Interval{0, 0} : kBoolean; }

Interval invert(Interval a) { return {1 - a.high, 1 - a.low}; }

Interval binary(Op op, ExprType operands, Interval a, Interval b) {
  switch (op) {
    case Op::add:
      return {a.low + b.low, a.high + b.high};
    case Op::sub:
      return {a.low - b.high, a.high - b.low};
    case Op::mul:
      return multiply(a, b);
    case Op::div:
      return divide(operands, a, b);
    case Op::min:
      return {std::min(a.low, b.low), std::min(a.high, b.high)};
    case Op::max:
      return {std::max(a.low, b.low), std::max(a.high, b.high)};
    case Op::eq:
      return equal_to(a, b);
    case Op::ne:
      return invert(equal_to(a, b));
    case Op::lt:
      return verdict(a.high < b.low, a.low >= b.high);
    case Op::le:
      return verdict(a.high <= b.low, a.low > b.high);
    case Op::logical_and:
      return {std::min(a.low, b.low), std::min(a.high, b.high)};
    case Op::logical_or:
      return {std::max(a.low, b.low), std::max(a.high, b.high)};
    case Op::unless_zero:
      return hull(b, {0, 0});
    default:
      return kUnbounded;  // pow
  }
}

// An increasing function of its argument, or a known range.
Interval unary(Op op, ExprType type, Interval a) {
  auto increasing = [a](auto f) { return Interval{f(a.low), f(a.high)}; };
  auto nonnegative = [a] { return a.low >= 0; };
  switch (op) {
    case Op::neg:
      return {-a.high, -a.low};
    case Op::abs:
      return absolute(a);
    case Op::sign:
      return increasing([](double x) { return double((x > 0) - (x < 0)); });
    case Op::floor:
      return increasing([](double x) { return std::floor(x); });
    case Op::to_integer:
      return increasing([](double x) { return std::trunc(x); });
    case Op::exp:
      return increasing([](double x) { return std::exp(x); });
    case Op::expm1:
      return increasing([](double x) { return std::expm1(x); });
    case Op::log:
      return nonnegative() ? increasing([](double x) { return std::log(x); }) : kUnbounded;
    case Op::log1p:
      return a.low >= -1 ? increasing([](double x) { return std::log1p(x); }) : kUnbounded;
    case Op::sqrt:
      return nonnegative() ? increasing([](double x) { return std::sqrt(x); }) : Interval{0, kInfinity};
    case Op::rsqrt:
      return a.low > 0 ? Interval{1 / std::sqrt(a.high), 1 / std::sqrt(a.low)} : kUnbounded;  // that of -0 is -inf
    case Op::tanh:
      return increasing([](double x) { return std::tanh(x); });
    case Op::sigmoid:
      return increasing([](double x) { return 1 / (1 + std::exp(-x)); });
    case Op::softplus:
      return increasing([](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); });
    case Op::erf:
      return increasing([](double x) { return std::erf(x); });
    case Op::sin:
    case Op::cos:
      return {-1, 1};
    case Op::to_real:
      return a;
    case Op::narrow:
      if (type == ExprType::integer) return a.low >= -0x1p31 && a.high < 0x1p31 ? a : kUnbounded;
      return {a.low - std::abs(a.low) * 0x1p-8, a.high + std::abs(a.high) * 0x1p-8};
    case Op::logical_not:
      return invert(a);
    case Op::uniform:
      return {0, 1};
    default:
      return kUnbounded;
  }
}

}  // namespace

Interval interval_of(Expr root, std::span<const Interval> indices, std::span<const Interval> inputs) {
  auto leaf_range = [&](Expr leaf) {
    auto bounds = leaf.op() == Op::index ? indices : leaf.op() == Op::input ? inputs : std::span<const Interval>();
    if (leaf.op() == Op::element) return Interval{0, kUnbounded.high};
    if (leaf.op() == Op::literal) {
      bool exact = double(float(leaf.value())) == leaf.value();  // fp32 rounds the others
      return rounded(exact ? Op::neg : Op::add, leaf.type(), {leaf.value(), leaf.value()});
    }
    if (leaf.index() < std::ssize(bounds)) return bounds[leaf.index()];
    return leaf.type() == ExprType::boolean ? kBoolean : kUnbounded;
  };
  Order order(std::span(&root, 1));
  std::vector<Interval> range;
  std::vector<bool> maybe_nan;  // no interval holds a NaN, so what a comparison with one says is decided here
  for (Expr e : order.nodes()) {
    Interval args[kMostCoordinates];
    bool nan = false;
    for (int i = 0; i < e.arity(); ++i) {
      int from = order.position(e.arg(i));
      args[i] = range[from], nan = nan || maybe_nan[from];
    }
    Interval result = leaf_range(e);
    if (e.op() == Op::select) {
      result = args[0].always_true() ? args[1] : args[0].always_false() ? args[2] : hull(args[1], args[2]);
    } else if (e.arity() > 0 && e.op() != Op::load) {
      result = e.arity() == 2 ? binary(e.op(), e.arg(0).type(), args[0], args[1]) : unary(e.op(), e.type(), args[0]);
      result = rounded(e.op(), e.type(), result);
      if (nan && e.op() == Op::to_integer) result = kUnbounded;
      if (nan && e.op() == Op::ne) result.high = 1;
      if (nan && (e.op() == Op::eq || e.op() == Op::lt || e.op() == Op::le)) result.low = 0;
    }
    range.push_back(result);
    maybe_nan.push_back(e.type() == ExprType::real && (nan || !finite(result)));
  }
  return range.back();
}

}  // namespace weft
