#include "jit/interval.h"

#include <algorithm>
#include <cmath>

#include "jit/op_facts.h"
#include "jit/order.h"

namespace weft {

using Op = ExprOp;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- bounds: numbers, and expressions ---------------------------------------------------------------------------------------
//
// The rules for integers and booleans are written once, over a type of bounds: double, on the host, and Formula, which becomes
// the text of a kernel. A truth is a bound of a boolean: 0 or 1, or a boolean expression.

template <class N>
struct Bounds {
  N low, high;
};

double lesser(double a, double b) { return std::min(a, b); }
double greater(double a, double b) { return std::max(a, b); }
double less(double a, double b) { return a < b; }
double less_equal(double a, double b) { return a <= b; }
double both(double a, double b) { return std::min(a, b); }
double either(double a, double b) { return std::max(a, b); }
double negated(double truth) { return 1 - truth; }
double choose(double truth, double a, double b) { return truth != 0 ? a : b; }
double product(double a, double b) { return a == 0 || b == 0 ? 0 : a * b; }  // a bound of infinity is not a value
double quotient(double a, double b) { return std::trunc(a / b); }            // unused where b is 0
double sign_bound(double a) { return (a > 0) - (a < 0); }
double as_integer(double truth) { return truth; }
double magnitude(double a) { return std::abs(a); }

// An integer or a boolean expression, or an infinity.
struct Formula {
  Expr value{};
  double size = 0;   // no value is larger than that
  int infinite = 0;  // -1 or 1: an infinity of that sign

  Formula(Expr e, double largest) : value(e), size(largest) {}
  explicit Formula(int n) : value(n), size(std::abs(n)) {}
  static Formula infinity(int sign) {
    Formula s(0);
    s.infinite = sign, s.size = kInfinity;
    return s;
  }
  static Formula truth(Expr e) { return {e, 1}; }
};

Formula operator-(Formula a) {
  if (a.infinite != 0) return Formula::infinity(-a.infinite);
  return {-a.value, a.size};
}
Formula operator+(Formula a, Formula b) {
  if (a.infinite != 0 || b.infinite != 0) return a.infinite != 0 ? a : b;
  return {a.value + b.value, a.size + b.size};
}
Formula operator-(Formula a, Formula b) { return a + -b; }

Formula lesser(Formula a, Formula b) {
  if (a.infinite != 0 || b.infinite != 0) return a.infinite < 0 || b.infinite > 0 ? a : b;
  const bool truths = a.value.type() == ExprType::boolean;
  return {truths ? a.value && b.value : min(a.value, b.value), std::max(a.size, b.size)};
}
Formula greater(Formula a, Formula b) {
  if (a.infinite != 0 || b.infinite != 0) return a.infinite > 0 || b.infinite < 0 ? a : b;
  const bool truths = a.value.type() == ExprType::boolean;
  return {truths ? a.value || b.value : max(a.value, b.value), std::max(a.size, b.size)};
}
Formula less(Formula a, Formula b) {
  if (a.infinite != 0 || b.infinite != 0) return Formula::truth(expr::boolean(a.infinite < b.infinite));
  return Formula::truth(a.value < b.value);
}
Formula less_equal(Formula a, Formula b) {
  if (a.infinite != 0 || b.infinite != 0) return Formula::truth(expr::boolean(a.infinite <= b.infinite));
  return Formula::truth(a.value <= b.value);
}
Formula both(Formula a, Formula b) { return Formula::truth(a.value && b.value); }
Formula either(Formula a, Formula b) { return Formula::truth(a.value || b.value); }
Formula negated(Formula truth) { return Formula::truth(!truth.value); }
// Of two bounds of the same side an infinite one is the wider.
Formula choose(Formula truth, Formula a, Formula b) {
  if (truth.value.op() == Op::literal) return is_zero(truth.value) ? b : a;
  if (a.infinite != 0 || b.infinite != 0) return a.infinite != 0 ? a : b;
  return {where(truth.value, a.value, b.value), std::max(a.size, b.size)};
}
Formula product(Formula a, Formula b) { return {a.value * b.value, a.size * b.size}; }
Formula quotient(Formula a, Formula b) { return {a.value / b.value, a.size}; }
Formula sign_bound(Formula a) { return a.infinite != 0 ? Formula(a.infinite) : Formula(sign(a.value), 1); }
Formula as_integer(Formula truth) { return {to_integer(truth.value), truth.size}; }
double magnitude(Formula a) { return a.size; }

template <class N>
Bounds<N> unknown(ExprType type) {
  if constexpr (std::same_as<N, double>) {
    return type == ExprType::boolean ? Bounds<N>{0, 1} : Bounds<N>{-kInfinity, kInfinity};
  } else {
    if (type == ExprType::boolean) return {Formula::truth(expr::boolean(false)), Formula::truth(expr::boolean(true))};
    return {Formula::infinity(-1), Formula::infinity(1)};
  }
}

// ---- the rules --------------------------------------------------------------------------------------------------------------

// The size from which on bounds are no longer exact, or values may wrap.
template <class N>
constexpr double kTooLarge = std::same_as<N, double> ? 0x1p53 : 0x1p62;

template <class N>
double magnitude(Bounds<N> a) {
  return std::max(magnitude(a.low), magnitude(a.high));
}

template <class N>
Bounds<N> hull(N a, N b, N c, N d) {
  return {lesser(lesser(a, b), lesser(c, d)), greater(greater(a, b), greater(c, d))};
}

template <class N>
Bounds<N> absolute(Bounds<N> a) {
  return {greater(greater(a.low, -a.high), N(0)), greater(-a.low, a.high)};
}

template <class N>
Bounds<N> multiply(Bounds<N> a, Bounds<N> b) {
  return hull(product(a.low, b.low), product(a.low, b.high), product(a.high, b.low), product(a.high, b.high));
}

// Of integers: truncated. x / 0 is 0, else |x / y| <= |x|.
template <class N>
Bounds<N> divide(Bounds<N> a, Bounds<N> b) {
  const N largest = absolute(a).high, apart = either(less(N(0), b.low), less(b.high, N(0)));
  const Bounds<N> q = hull(quotient(a.low, b.low), quotient(a.low, b.high), quotient(a.high, b.low), quotient(a.high, b.high));
  return {choose(apart, q.low, -largest), choose(apart, q.high, largest)};
}

template <class N>
Bounds<N> equal_to(Bounds<N> a, Bounds<N> b) {
  return {both(less_equal(a.high, b.low), less_equal(b.high, a.low)),
          both(less_equal(a.low, b.high), less_equal(b.low, a.high))};
}

template <class N>
Bounds<N> invert(Bounds<N> a) {
  return {negated(a.high), negated(a.low)};
}

template <class N>
Bounds<N> select(Bounds<N> c, Bounds<N> a, Bounds<N> b) {
  return {choose(c.low, a.low, choose(c.high, lesser(a.low, b.low), b.low)),
          choose(c.low, a.high, choose(c.high, greater(a.high, b.high), b.high))};
}

bool may_wrap(Op op) {
  return op == Op::add || op == Op::sub || op == Op::mul || op == Op::div || op == Op::neg || op == Op::abs;
}

// A node of integers and booleans; on the host also one of reals, where the rule is the same. `operands`: the type of its first
// argument. Nothing: there is no such rule.
template <class N>
std::optional<Bounds<N>> bounds_of(Op op, ExprType operands, const Bounds<N>& a, const Bounds<N>& b, const Bounds<N>& c) {
  switch (op) {
    case Op::add:
      return Bounds<N>{a.low + b.low, a.high + b.high};
    case Op::sub:
      return Bounds<N>{a.low - b.high, a.high - b.low};
    case Op::mul:
      return multiply(a, b);
    case Op::div:
      if (operands == ExprType::real) return {};
      return divide(a, b);
    case Op::neg:
      return Bounds<N>{-a.high, -a.low};
    case Op::abs:
      return absolute(a);
    case Op::sign:
      return Bounds<N>{sign_bound(a.low), sign_bound(a.high)};
    case Op::min:
      return Bounds<N>{lesser(a.low, b.low), lesser(a.high, b.high)};
    case Op::max:
      return Bounds<N>{greater(a.low, b.low), greater(a.high, b.high)};
    case Op::eq:
      return equal_to(a, b);
    case Op::ne:
      return invert(equal_to(a, b));
    case Op::lt:
      return Bounds<N>{less(a.high, b.low), less(a.low, b.high)};
    case Op::le:
      return Bounds<N>{less_equal(a.high, b.low), less_equal(a.low, b.high)};
    case Op::logical_and:
      return Bounds<N>{both(a.low, b.low), both(a.high, b.high)};
    case Op::logical_or:
      return Bounds<N>{either(a.low, b.low), either(a.high, b.high)};
    case Op::logical_not:
      return invert(a);
    case Op::select:
      return select(a, b, c);
    case Op::to_integer:
      if (operands == ExprType::real) return {};
      return operands == ExprType::boolean ? Bounds<N>{as_integer(a.low), as_integer(a.high)} : a;
    case Op::narrow:  // to i32
      if (operands != ExprType::integer) return {};
      if (magnitude(a) < 0x1p31) return a;
      return Bounds<N>{N(std::numeric_limits<std::int32_t>::min()), N(std::numeric_limits<std::int32_t>::max())};
    default:
      return {};
  }
}

// The same for integers and booleans, with what may wrap unbounded. Arguments that the node has not are 0.
template <class N>
std::optional<Bounds<N>> whole_bounds_of(Op op, ExprType operands, const Bounds<N>& a, const Bounds<N>& b, const Bounds<N>& c) {
  if (operands != ExprType::integer || !may_wrap(op)) return bounds_of(op, operands, a, b, c);
  if (std::isinf(magnitude(a)) || std::isinf(magnitude(b))) return unknown<N>(ExprType::integer);
  const auto made = bounds_of(op, operands, a, b, c);
  return magnitude(*made) < kTooLarge<N> ? made : unknown<N>(ExprType::integer);
}

// ---- reals, on the host -----------------------------------------------------------------------------------------------------

using Numbers = Bounds<double>;
constexpr Numbers kUnbounded{-kInfinity, kInfinity};

bool finite(Numbers x) {  // in fp32 too
  constexpr double kLargest = std::numeric_limits<float>::max();
  return x.low >= -kLargest && x.high <= kLargest;
}

// Bounds are computed in fp64, values in fp32, in fp64 or by the GPU's approximate functions: wide enough for all.
Numbers with_margin(Numbers x) {
  constexpr double kRelative = 0x1p-16, kTiny = 0x1p-126;
  return {x.low - std::abs(x.low) * kRelative - kTiny, x.high + std::abs(x.high) * kRelative + kTiny};
}

Numbers rounded(Op op, Numbers x) {
  if (!facts_of(op).exact) x = with_margin(x);
  return x.low <= x.high ? x : kUnbounded;  // a NaN
}

Numbers divide_reals(Numbers a, Numbers b) {
  if (std::isinf(magnitude(a)) || std::isinf(magnitude(b)) || (b.low <= 0 && b.high >= 0)) return kUnbounded;
  return hull(a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high);
}

// Of a real: an increasing function of its argument, or a known range.
Numbers real_bounds_of(Op op, Numbers a, Numbers b) {
  auto increasing = [a](auto f) { return Numbers{f(a.low), f(a.high)}; };
  auto nonnegative = [a] { return a.low >= 0; };
  switch (op) {
    case Op::div:
      return divide_reals(a, b);
    case Op::unless_zero:
      return {std::min(b.low, 0.0), std::max(b.high, 0.0)};
    case Op::floor:
      return increasing([](double x) { return std::floor(x); });
    case Op::exp:
      return increasing([](double x) { return std::exp(x); });
    case Op::expm1:
      return increasing([](double x) { return std::expm1(x); });
    case Op::log:
      return nonnegative() ? increasing([](double x) { return std::log(x); }) : kUnbounded;
    case Op::log1p:
      return a.low >= -1 ? increasing([](double x) { return std::log1p(x); }) : kUnbounded;
    case Op::sqrt:
      return nonnegative() ? increasing([](double x) { return std::sqrt(x); }) : Numbers{0, kInfinity};
    case Op::rsqrt:
      return a.low > 0 ? Numbers{1 / std::sqrt(a.high), 1 / std::sqrt(a.low)} : kUnbounded;  // that of -0 is -inf
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
      return {a.low - std::abs(a.low) * 0x1p-8, a.high + std::abs(a.high) * 0x1p-8};
    case Op::uniform:
      return {0, 1};
    default:
      return kUnbounded;  // pow
  }
}

// The integer that a real becomes.
Numbers truncated(Numbers a, bool maybe_nan) {
  const Numbers x{std::trunc(a.low), std::trunc(a.high)};
  return !maybe_nan && magnitude(x) < kTooLarge<double> ? x : kUnbounded;
}

Interval literal_range(Expr literal) {
  const double value = literal.value();
  if (literal.type() == ExprType::real) {
    const bool exact = double(float(value)) == value;  // fp32 rounds the others
    const Numbers x = rounded(exact ? Op::neg : Op::add, {value, value});
    return {x.low, x.high};
  }
  return std::abs(value) < kTooLarge<double> ? Interval{value, value} : Interval{};
}

}  // namespace

// ---- on the host ------------------------------------------------------------------------------------------------------------

Intervals::Intervals(Expr root) {
  Order order(std::span(&root, 1));
  for (const Expr e : order.nodes()) {
    const int arity = e.op() == Op::load ? 0 : e.arity();
    Step s{e, e.op(), e.type(), arity > 0 ? e.arg(0).type() : e.type(), arity, e.index(), {}, {}};
    for (int i = 0; i < arity; ++i) s.args[i] = order.position(e.arg(i));
    const Numbers nothing = unknown<double>(e.type());
    s.known = e.op() == Op::literal ? literal_range(e) : Interval{nothing.low, nothing.high};
    if (e.op() == Op::element) s.known.low = 0;
    steps_.push_back(s);
  }
  ranges_.resize(steps_.size()), maybe_nan_.resize(steps_.size());
}

void Intervals::step(const Step& s, std::span<const Interval> indices, std::span<const Interval> inputs, std::size_t at) {
  Numbers args[3] = {}, result;
  bool nan = false;
  for (int i = 0; i < s.arity; ++i) {
    const Interval& from = ranges_[std::size_t(s.args[i])];
    args[i] = {from.low, from.high}, nan = nan || maybe_nan_[std::size_t(s.args[i])];
  }
  if (s.arity == 0) {
    const auto bounds = s.op == Op::index ? indices : inputs;
    const bool given = (s.op == Op::index || s.op == Op::input) && s.leaf < std::ssize(bounds);
    const Interval& range = given ? bounds[std::size_t(s.leaf)] : s.known;
    result = {range.low, range.high};
  } else if (s.type == ExprType::real) {
    const auto same = bounds_of(s.op, s.operands, args[0], args[1], args[2]);
    result = same ? *same : real_bounds_of(s.op, args[0], args[1]);
    if (s.op != Op::select) result = rounded(s.op, result);
  } else if (s.op == Op::to_integer && s.operands == ExprType::real) {
    result = truncated(args[0], nan);
  } else {
    result = whole_bounds_of(s.op, s.operands, args[0], args[1], args[2]).value_or(unknown<double>(s.type));
    if (nan && s.op == Op::ne) result.high = 1;
    if (nan && (s.op == Op::eq || s.op == Op::lt || s.op == Op::le)) result.low = 0;
  }
  ranges_[at] = {result.low, result.high};
  maybe_nan_[at] = s.type == ExprType::real && (nan || !finite(result));
}

Interval Intervals::operator()(std::span<const Interval> indices, std::span<const Interval> inputs) {
  for (std::size_t at = 0; at < steps_.size(); ++at) step(steps_[at], indices, inputs, at);
  return ranges_.back();
}

Interval interval_of(Expr root, std::span<const Interval> indices, std::span<const Interval> inputs) {
  return Intervals(root)(indices, inputs);
}

// ---- as expressions ---------------------------------------------------------------------------------------------------------

namespace {

Bounds<Formula> given_bounds(const SymbolicInterval& given, ExprType type) {
  Bounds<Formula> range = unknown<Formula>(type);
  if (given.low) range.low = {*given.low, given.largest};
  if (given.high) range.high = {*given.high, given.largest};
  return range;
}

// Of each node, whether an integer made of it may wrap.
std::vector<char> enters_arithmetic(const Order& order) {
  std::vector<char> enters(std::size_t(order.size()));
  for (int at = order.size() - 1; at >= 0; --at) {
    const Expr e = order.nodes()[std::size_t(at)];
    const bool passes = e.op() == Op::min || e.op() == Op::max || e.op() == Op::select;
    for (int i = 0; i < e.arity(); ++i)
      if (may_wrap(e.op()) || (passes && enters[std::size_t(at)])) enters[std::size_t(order.position(e.arg(i)))] = true;
  }
  return enters;
}

}  // namespace

Verdict verdict_of(Expr root, const std::function<SymbolicInterval(Expr leaf)>& bounds) {
  constexpr std::int64_t kLargest = std::int64_t(1) << 53;
  Order order(std::span(&root, 1));
  const std::vector<char> enters = enters_arithmetic(order);
  Expr known = expr::boolean(true);
  const auto slot_range = [&](Expr slot, bool in_arithmetic) {
    if (in_arithmetic) known = known && -kLargest <= slot && slot <= kLargest;
    return SymbolicInterval{slot, slot, in_arithmetic ? double(kLargest) : 0x1p63};
  };
  std::vector<Bounds<Formula>> ranges;
  for (const Expr e : order.nodes()) {
    Bounds<Formula> range = unknown<Formula>(e.type());
    const Bounds<Formula> zero{Formula(0), Formula(0)};
    const auto arg = [&](int i) { return i < e.arity() ? ranges[std::size_t(order.position(e.arg(i)))] : zero; };
    const bool leaf = e.arity() == 0 || e.op() == Op::load;
    const bool of_reals = e.type() == ExprType::real || (!leaf && e.arg(0).type() == ExprType::real);
    if (e.op() == Op::literal && !of_reals)
      range = {Formula(e, std::abs(e.value())), Formula(e, std::abs(e.value()))};
    else if (e.op() == Op::slot && !of_reals)
      range = given_bounds(slot_range(e, enters[ranges.size()]), e.type());
    else if (leaf && e.op() != Op::element && !of_reals)
      range = given_bounds(bounds(e), e.type());
    else if (!of_reals)
      range = whole_bounds_of(e.op(), e.arg(0).type(), arg(0), arg(1), arg(2)).value_or(range);
    ranges.push_back(range);
  }
  return {known && !ranges.back().high.value, known && ranges.back().low.value};
}

}  // namespace weft
