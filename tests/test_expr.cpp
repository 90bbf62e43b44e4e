#include "jit/expr.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <thread>

#include "jit/affine.h"
#include "jit/diff.h"
#include "jit/error.h"
#include "jit/interval.h"
#include "jit/order.h"
#include "random_expr.h"

namespace weft {
namespace {

using testing::Evaluator;
using testing::RandomDag;

Expr real_input(int k) { return expr::input(k); }
Expr integer_input(int k) { return expr::input(k, ExprType::integer); }
Expr boolean_input(int k) { return expr::input(k, ExprType::boolean); }
const double kInf = std::numeric_limits<double>::infinity();

// Expressions have no ==, which would be taken for equal().
#define EXPECT_SAME(a, b) EXPECT_PRED2(same, a, b)
template <class T>
concept Comparable = requires(T a, T b) {
  a == b;
}
|| requires(T a, T b) { a != b; }
|| requires(T a) { a == 1; };
static_assert(!Comparable<Expr>, "if (t == i) in a hole is decided before the kernel is made");

bool all_same(const std::vector<Expr>& a, const std::vector<Expr>& b) { return std::ranges::equal(a, b, same); }

template <class V = double>
V evaluate(Expr e, std::vector<double> inputs) {
  Evaluator<V> evaluator;
  for (double x : inputs) evaluator.inputs.push_back({V(x), std::abs(x) < 0x1p63 ? std::int64_t(x) : 0});
  return evaluator(e).real;
}

TEST(Expr, EqualExpressionsAreOneNode) {
  Expr x = real_input(0), y = real_input(1);
  EXPECT_SAME(exp(x * y) + x, exp(x * y) + x);
  EXPECT_SAME(x + y, y + x);
  EXPECT_SAME(x * y, y * x);
  EXPECT_SAME(max(x, y), max(y, x));
  EXPECT_SAME(equal(x, y), equal(y, x));
  EXPECT_FALSE(same(x - y, y - x));
  EXPECT_FALSE(same(x < y, y < x));
  EXPECT_FALSE(same(x / y, y / x));
  EXPECT_FALSE(same(real_input(0), integer_input(0)));
  EXPECT_SAME(x > y, y < x);
  EXPECT_SAME(x >= y, y <= x);
}

TEST(Expr, StructuralLiteralsAndSlots) {
  EXPECT_SAME(Expr(), Expr(0.0));
  EXPECT_EQ(Expr().id(), 0u);
  for (double value : {0.0, 1.0, -1.0, 2.0, 0.5}) {
    EXPECT_EQ(Expr(value).op(), ExprOp::literal);
    EXPECT_EQ(Expr(value).value(), value);
  }
  EXPECT_THROW(Expr(3.0), Error);
  EXPECT_THROW(Expr(0.1f), Error);
  ConstantScope outer;
  Expr minus_zero = -0.0;  // not the literal 0
  EXPECT_EQ(minus_zero.op(), ExprOp::slot);
  EXPECT_TRUE(std::signbit(outer.values().at(0)));
  {
    ConstantScope inner;
    EXPECT_SAME(Expr(0.1), expr::slot(0));
    EXPECT_SAME(Expr(0.1), expr::slot(1)) << "each use is a slot of its own";
    EXPECT_EQ(inner.values(), (std::vector{0.1, 0.1}));
  }
  EXPECT_SAME(Expr(7.0), expr::slot(1)) << "back in the outer scope";
  EXPECT_SAME(Expr(0.25f), expr::slot(2));
  EXPECT_EQ(outer.values().size(), 3u);
}

TEST(Expr, ErrorWithoutScopeSaysWhatToDo) {
  try {
    Expr(0.3);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(error.what()).find("0.3"), std::string::npos);
    EXPECT_NE(error.parts().hint.find("ConstantScope"), std::string::npos);
  }
}

TEST(Expr, IntegerLiteralsAreStructureAndExact) {
  std::int64_t big = (1ll << 62) + 1;
  EXPECT_EQ(Expr(big).type(), ExprType::integer);
  EXPECT_EQ(Expr(big).index(), big);
  EXPECT_FALSE(same(Expr(big), Expr(big - 1)));
  EXPECT_EQ((Expr(big) + Expr(std::int64_t{2})).index(), big + 2);
  EXPECT_SAME(Expr(3) * real_input(0), real_input(0) * expr::literal(3));
}

TEST(Expr, FoldsLiterals) {
  auto literal = [](double v) { return expr::literal(v); };
  EXPECT_SAME(literal(3) * literal(7), literal(21));
  EXPECT_EQ(exp(literal(1)).op(), ExprOp::exp) << "another number in fp32 than in fp64";
  EXPECT_EQ((literal(0.1) + literal(1)).op(), ExprOp::add);
  EXPECT_EQ((literal(0x1p127) * literal(2)).op(), ExprOp::mul) << "infinite in fp32";
  EXPECT_SAME(exp(literal(0)), literal(1));
  EXPECT_SAME(pow(literal(2), literal(10)), literal(1024));
  EXPECT_SAME(Expr(7) / Expr(2), Expr(3));
  EXPECT_SAME(Expr(-7) / Expr(2), Expr(-3)) << "truncated";
  EXPECT_SAME(Expr(7) / Expr(0), Expr(0));
  EXPECT_SAME(Expr(std::numeric_limits<std::int64_t>::max()) + Expr(1), Expr(std::numeric_limits<std::int64_t>::min()));
  EXPECT_SAME(Expr(std::numeric_limits<std::int64_t>::min()) / Expr(-1), Expr(std::numeric_limits<std::int64_t>::min()));
  EXPECT_SAME(Expr(3) < Expr(4), expr::boolean(true));
  EXPECT_SAME(Expr(3) <= literal(2.5), expr::boolean(false));
  EXPECT_SAME(to_real(Expr(3)), literal(3));
  EXPECT_SAME(to_integer(literal(-3.75)), Expr(-3));
  EXPECT_SAME(to_real(expr::boolean(true)), literal(1));
  EXPECT_SAME(-Expr(), literal(-0.0));
  EXPECT_FALSE(same(-Expr(), Expr()));
  EXPECT_EQ((literal(1) / Expr()).op(), ExprOp::div) << "a non-finite result stays an operation";
  EXPECT_EQ(log(Expr()).op(), ExprOp::log);
}

TEST(Expr, Simplifies) {
  Expr x = real_input(0), y = real_input(1), i = integer_input(2), c = boolean_input(3);
  for (Expr e : {x - 0.0, x + -Expr(), -Expr() + x, x * 1.0, 1.0 * x, x / 1.0, -(-x), -x * -1.0, max(x, x), pow(x, 1.0),
                 where(c, x, x), where(expr::boolean(true), x, y), where(expr::boolean(false), y, x)}) {
    EXPECT_SAME(e, x) << to_string(e);
  }
  EXPECT_SAME(x + -y, x - y);
  EXPECT_SAME(x - -y, x + y);
  EXPECT_SAME(-x * -y, x * y);
  EXPECT_SAME(x / 2.0, x * 0.5);
  EXPECT_SAME(pow(x, 2.0), x * x);
  EXPECT_SAME(pow(x, 2), x * x);
  EXPECT_SAME(where(!c, x, y), where(c, y, x));
  EXPECT_SAME(!!c, c);
  EXPECT_SAME(c && c, c);
  EXPECT_SAME(c && expr::boolean(true), c);
  EXPECT_SAME(c && expr::boolean(false), expr::boolean(false));
  EXPECT_SAME(c || expr::boolean(false), c);
  EXPECT_SAME(c || expr::boolean(true), expr::boolean(true));
  EXPECT_SAME(i + 0, i);
  EXPECT_SAME(i * 0, Expr(0));
  EXPECT_SAME(i - i, Expr(0));
  EXPECT_SAME(i <= i, expr::boolean(true));
  EXPECT_SAME(!(i < 3), Expr(3) <= i);
  EXPECT_SAME(!equal(x, y), not_equal(x, y));
}

TEST(Expr, KeepsWhatIeeeKeeps) {
  Expr x = real_input(0);
  EXPECT_EQ((x * 0.0).op(), ExprOp::mul) << "x may be infinite";
  EXPECT_EQ((x - x).op(), ExprOp::sub);
  EXPECT_EQ((x / x).op(), ExprOp::div);
  EXPECT_EQ(equal(x, x).op(), ExprOp::eq) << "x may be NaN";
  EXPECT_EQ((!(x < 1.0)).op(), ExprOp::logical_not);
  EXPECT_EQ((x + 0.0).op(), ExprOp::add) << "-0 + 0 is 0";
  EXPECT_EQ((x - -Expr()).op(), ExprOp::sub);
  const Expr masked = where(boolean_input(1), x, 0.0);
  EXPECT_EQ((x * masked).op(), ExprOp::mul) << "the other factor may be infinite";
  EXPECT_EQ((masked / x).op(), ExprOp::div);
  EXPECT_EQ((-masked).op(), ExprOp::neg);
}

TEST(Expr, NarrowsOnce) {
  const Expr x = real_input(0), i = integer_input(1), b = narrow(x, DType::bf16), f = narrow(x, DType::f32);
  EXPECT_EQ(b.op(), ExprOp::narrow);
  EXPECT_EQ(DType(b.index()), DType::bf16);
  EXPECT_SAME(narrow(b, DType::bf16), b);
  EXPECT_SAME(narrow(b, DType::f32), b) << "fp32 holds every bf16";
  EXPECT_FALSE(same(narrow(f, DType::bf16), f));
  EXPECT_SAME(narrow(x, DType::f64), x);
  EXPECT_SAME(narrow(i, DType::i64), i);
  EXPECT_EQ(narrow(i, DType::i32).type(), ExprType::integer);
  EXPECT_SAME(narrow(Expr((std::int64_t(1) << 32) + 5), DType::i32), Expr(5));
  EXPECT_SAME(narrow(expr::literal(1.00390625), DType::bf16), expr::literal(1));
  EXPECT_EQ(to_string(narrow(x + i, DType::bf16)), "bf16(x0 + to_real(x1))");
  std::optional<Expr> inputs[] = {b};
  EXPECT_SAME(substitute(narrow(x, DType::bf16), inputs), b);
}

TEST(Expr, UnlessZero) {
  const Expr g = real_input(0), x = real_input(1);
  EXPECT_SAME(unless_zero(1.0, x), x);
  EXPECT_SAME(unless_zero(Expr(), x), Expr());
  EXPECT_SAME(unless_zero(g, unless_zero(g, x)), unless_zero(g, x));
  EXPECT_SAME(unless_zero(g, Expr()), Expr());
}

TEST(Expr, ConvertsMixedOperands) {
  Expr x = real_input(0), i = integer_input(1), c = boolean_input(2);
  EXPECT_SAME(x + i, x + to_real(i));
  EXPECT_SAME(c * x, to_real(c) * x);
  EXPECT_EQ((c + c).type(), ExprType::real);
  EXPECT_SAME(i + c, i + to_integer(c));
  EXPECT_EQ(max(c, i).type(), ExprType::integer);
  EXPECT_EQ(pow(i, c).type(), ExprType::real);
  EXPECT_EQ((i / 2).type(), ExprType::integer);
  EXPECT_SAME(exp(i), exp(to_real(i)));
  EXPECT_SAME((i && c), not_equal(i, 0) && c);
  EXPECT_EQ(where(c, x, i).type(), ExprType::real);
  EXPECT_SAME((x < i).arg(1), to_real(i));
  EXPECT_EQ(abs(i).type(), ExprType::integer);
  EXPECT_THROW(expr::make(ExprOp::add, x), Error);
  EXPECT_THROW(expr::make(ExprOp::exp, x, x), Error);
}

TEST(Expr, ReluKeepsNan) {
  Expr x = real_input(0);
  EXPECT_TRUE(std::isnan(evaluate(relu(x), {std::nan("")})));
  EXPECT_EQ(evaluate(relu(x), {-3.0}), 0.0);
  EXPECT_EQ(evaluate(relu(x), {3.0}), 3.0);
}

TEST(Expr, ActivationsHaveTheirValues) {
  Expr x = real_input(0);
  for (double v : {-3.0, -0.5, 0.0, 0.7, 4.0}) {
    double phi = 0.5 * std::erfc(-v / std::sqrt(2.0));
    EXPECT_NEAR(evaluate(gelu(x), {v}), v * phi, 1e-15);
    EXPECT_NEAR(evaluate(gelu_tanh(x), {v}), v * phi, 5e-4);
    EXPECT_NEAR(evaluate(silu(x), {v}), v / (1 + std::exp(-v)), 1e-15);
    EXPECT_EQ(evaluate(clamp(x, -1.0, 0.5), {v}), std::clamp(v, -1.0, 0.5));
  }
}

TEST(Expr, SimplificationKeepsTheValue) {
  // The same random expression, once on literals (folded away) and once on inputs, and once rebuilt by substitute.
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(-3, 3);
  for (int round = 0; round < 500; ++round) {
    Expr x = real_input(0), i = integer_input(1);
    Expr e = to_real(RandomDag(random, {x, i, Expr(0.0), Expr(1.0), Expr(2)}).grow(12));
    double value = uniform(random);
    auto integer = std::int64_t(uniform(random));
    std::optional<Expr> literals[] = {expr::literal(value), Expr(integer)};
    Evaluator<double> evaluator;
    evaluator.inputs = {{value, 0}, {0, integer}};
    double expected = evaluator(e).real, folded = evaluator(substitute(e, literals)).real;
    if (!std::isfinite(expected)) continue;
    EXPECT_NEAR(folded, expected, 1e-9 * std::abs(expected)) << to_string(e);
  }
}

TEST(Expr, SubstituteAndReplace) {
  Expr x = real_input(0), y = real_input(1);
  Expr e = exp(x) * expr::slot(0) + expr::index(0) * y;
  std::optional<Expr> inputs[] = {std::nullopt, x + x};
  int slots[] = {5};
  Expr indices[] = {expr::index(1) + 3};
  EXPECT_SAME(substitute(e, inputs, slots, indices), exp(x) * expr::slot(5) + (expr::index(1) + 3) * (x + x));
  EXPECT_SAME(substitute(e, {}), e);
  std::optional<Expr> integer[] = {expr::index(0)};
  EXPECT_SAME(substitute(x, integer), to_real(expr::index(0))) << "an input keeps its type";
  EXPECT_SAME(replace(e, exp(x), y), y * expr::slot(0) + expr::index(0) * y);
  int moved[] = {4, 5, 6}, torn[] = {4, 6, 5};
  EXPECT_SAME(substitute(expr::uniform(0, expr::element()), {}, moved), expr::uniform(4, expr::element()));
  EXPECT_THROW(substitute(expr::uniform(0, expr::element()), {}, torn), Error);
}

static_assert(!std::is_convertible_v<bool, Expr> && !std::is_constructible_v<Expr, bool>,
              "what == of two Exprs gives is not taken for a condition");

TEST(Expr, LoadsAreLeavesOfTheirSubscripts) {
  const Expr i = expr::index(1), subscripts[] = {i + 1, expr::index(0)}, moved[] = {i + 2, expr::index(0)};
  const Expr load = expr::load(2, ExprType::real, subscripts);
  EXPECT_EQ(load.arity(), 2);
  EXPECT_SAME(load.arg(0), i + 1);
  EXPECT_EQ(load.index(), 2);
  EXPECT_EQ(load.coordinates(), 2);
  EXPECT_SAME(load, expr::load(2, ExprType::real, subscripts));
  EXPECT_FALSE(same(load, expr::load(1, ExprType::real, subscripts)));
  EXPECT_FALSE(same(load, expr::load(2, ExprType::real, moved)));
  EXPECT_EQ(to_string(exp(load) + 1), "1 + exp(z2(1 + i1, i0))");
  const Expr roots[] = {exp(load), load};
  EXPECT_EQ(load_count(roots), 3);
  const Expr indices[] = {Expr(4), Expr(5)}, fixed[] = {Expr(6), Expr(4)};
  EXPECT_SAME(substitute(load, {}, {}, indices), expr::load(2, ExprType::real, fixed));
  const Expr real[] = {expr::input(0)};
  EXPECT_THROW(expr::load(0, ExprType::real, real), Error) << "a subscript is an integer";
}

// Two loads of one tensor are two leaves; what reaches a subscript ends there.
TEST(Expr, DerivativesByLoads) {
  const Expr x = expr::input(0), g = expr::input(1), first[] = {expr::index(0)}, second[] = {expr::index(0) + 1},
             third[] = {to_integer(x)};
  const Expr a = expr::load(0, ExprType::real, first), b = expr::load(0, ExprType::real, second),
             c = expr::load(0, ExprType::real, third), wrt[] = {x, a, b, c};
  EXPECT_TRUE(all_same(diff(x * a + exp(b) * c, g, wrt), {g * a, x * g, exp(b) * (c * g), exp(b) * g}));
  const Expr roots[] = {x * a, a}, upstreams[] = {g, expr::input(2)};
  EXPECT_SAME(diff(roots, upstreams, wrt)[1], x * g + expr::input(2)) << "the sum over the roots";
}

// Where an integer expression is a sum of steps, that sum has its values, and over a space the extremes that it says.
TEST(Affine, HasTheValuesOfItsExpression) {
  std::mt19937 random(5);
  int found = 0;
  for (int round = 0; round < 500; ++round) {
    std::vector<Expr> nodes = {expr::index(0), expr::index(1), expr::index(2), Expr(3), Expr(-2)};
    const auto any = [&] { return nodes[random() % nodes.size()]; };
    for (int k = 0; k < 6; ++k) {
      const Expr a = any(), b = any();
      const Expr made[] = {a + b, a - b, -a, a * Expr(int(random() % 5) - 2), a / b, min(a, b)};
      nodes.push_back(made[random() % (round % 2 ? 4 : 6)]);
    }
    const std::optional<Affine> affine = affine_of(nodes.back());
    EXPECT_TRUE(affine || round % 2 == 0) << to_string(nodes.back());
    if (!affine) continue;
    ++found;
    const std::int64_t dims[] = {3, 4, 2};
    std::int64_t low = std::numeric_limits<std::int64_t>::max(), high = std::numeric_limits<std::int64_t>::min();
    for (std::int64_t at = 0; at < 24; ++at) {
      const std::int64_t place[] = {at / 8, at / 2 % 4, at % 2};
      Evaluator<double> evaluator;
      evaluator.indices = {place[0], place[1], place[2]};
      const std::int64_t value = evaluator(nodes.back()).integer;
      ASSERT_EQ(affine->at(place), value) << to_string(nodes.back());
      low = std::min(low, value), high = std::max(high, value);
    }
    const auto lowest = affine->lowest(dims), highest = affine->highest(dims);
    EXPECT_EQ(affine->at(std::span(lowest).first(3)), low) << to_string(nodes.back());
    EXPECT_EQ(affine->at(std::span(highest).first(3)), high) << to_string(nodes.back());
  }
  EXPECT_GT(found, 250);
  EXPECT_FALSE(affine_of(expr::index(0) * expr::index(1)));
  EXPECT_FALSE(affine_of(expr::index(0) + expr::slot(0, ExprType::integer)));
}

TEST(Expr, Questions) {
  Expr x = real_input(0), y = real_input(3);
  Expr roots[] = {exp(x) + y, expr::slot(1) * exp(x)};
  EXPECT_EQ(input_count(roots), 4);
  EXPECT_EQ(slot_count(roots), 2);
  EXPECT_TRUE(uses_input(roots[0], 3));
  EXPECT_FALSE(uses_input(roots[1], 3));
  EXPECT_TRUE(uses_op(roots[1], ExprOp::exp));
  EXPECT_EQ(cost_of(roots).special, 1) << "the shared exp counts once";
  Expr draw[] = {expr::uniform(2, expr::element())};
  EXPECT_EQ(slot_count(draw), 5);
  std::vector<Expr> order = topological(roots);
  EXPECT_EQ(std::set<std::uint32_t>([&] {
              std::set<std::uint32_t> ids;
              for (Expr e : order) ids.insert(e.id());
              return ids;
            }())
                .size(),
            order.size());
  Order positions(roots);
  for (Expr e : order) {
    for (int i = 0; i < e.arity(); ++i) EXPECT_LT(positions.position(e.arg(i)), positions.position(e));
  }
}

TEST(Expr, Text) {
  Expr x = real_input(0), y = real_input(1);
  EXPECT_EQ(to_string(silu(x)), "x0*sigmoid(x0)");
  EXPECT_EQ(to_string((x + y) * x), "x0*(x0 + x1)");
  EXPECT_EQ(to_string(x - (y - x)), "x0 - (x1 - x0)");
  EXPECT_EQ(to_string(where(x < y && !boolean_input(2), -x, 2.0)), "select(x0 < x1 && !x2, -x0, 2)");
  Expr doubling = x + y;
  for (int i = 0; i < 64; ++i) doubling = doubling * doubling;
  EXPECT_LT(to_string(doubling).size(), 3000u);
}

TEST(Expr, DeepChainsDoNotRecurse) {
  Expr e = real_input(0);
  for (int i = 0; i < 200'000; ++i) e = tanh(e + 1.0);
  EXPECT_EQ(topological(std::span(&e, 1)).size(), 400'002u);
  Expr zero[] = {expr::input(0)};
  EXPECT_EQ(diff(e, 1.0, zero).size(), 1u);
}

TEST(Expr, ThreadsAgreeOnIds) {
  constexpr int kThreads = 4, kNodes = 20'000;
  std::vector<std::vector<std::uint32_t>> ids(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&ids, t] {
      for (int i = 0; i < kNodes; ++i) ids[t].push_back((cos(real_input(i % 7)) * Expr(1'000'000 + i)).id());
    });
  }
  for (auto& thread : threads) thread.join();
  for (int t = 1; t < kThreads; ++t) EXPECT_EQ(ids[t], ids[0]);
}

// ---- derivatives ------------------------------------------------------------------------------------------------------------

// Compares diff with central differences in long double at one point; kinks and overflows are left out.
// Returns whether there was something to compare.
bool check_gradient(Expr e, const std::vector<double>& at) {
  std::vector<Expr> wrt;
  for (std::size_t k = 0; k < at.size(); ++k) wrt.push_back(expr::input(int(k)));
  std::vector<Expr> gradient = diff(e, 1.0, wrt);
  bool compared = false;
  if (!(std::abs(evaluate<long double>(e, at)) < 1e6l)) return false;
  for (std::size_t k = 0; k < at.size(); ++k) {
    auto slope = [&](long double h) {
      Evaluator<long double> left, right;
      for (double x : at) left.inputs.push_back({x, 0}), right.inputs.push_back({x, 0});
      left.inputs[k].real -= h, right.inputs[k].real += h;
      return double((right(e).real - left(e).real) / (2 * h));
    };
    double coarse = slope(2e-5l), fine = slope(1e-5l), expected = fine + (fine - coarse) / 3;  // Richardson
    double scale = 1 + std::abs(expected);
    if (!std::isfinite(expected) || std::abs(coarse - fine) > 1e-4 * scale) continue;
    compared = true;
    double got = evaluate<long double>(gradient[k], at);
    EXPECT_NEAR(got, expected, 1e-6 * scale) << "d/dx" << k << " of " << to_string(e) << " at x0 = " << at[0];
  }
  return compared;
}

TEST(Diff, EveryUnaryOp) {
  Expr x = real_input(0);
  for (ExprOp op : testing::kUnaryReal) {
    int compared = 0;
    for (double at : {-3.1, -1.7, -0.6, -0.2, 0.3, 0.9, 1.4, 2.2, 3.7}) {
      compared += check_gradient(expr::make(op, x), {at});
      check_gradient(square(expr::make(op, x)) * x, {at});
    }
    EXPECT_GE(compared, 5) << name_of(op);
  }
}

TEST(Diff, EveryBinaryOp) {
  Expr x = real_input(0), y = real_input(1);
  for (ExprOp op : testing::kBinaryReal) {
    int compared = 0;
    for (double a : {-1.3, 0.4, 2.1}) {
      for (double b : {-2.2, 0.7, 1.9}) {
        compared += check_gradient(expr::make(op, x, y), {a, b});
        check_gradient(expr::make(op, x * y, sin(y)), {a, b});
      }
    }
    EXPECT_GE(compared, 6) << name_of(op);
  }
  for (double a : {-1.0, 2.0}) EXPECT_TRUE(check_gradient(where(x < y, exp(x) * y, sin(y) / x), {a, 0.5}));
}

TEST(Diff, RandomCompositions) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> uniform(-2, 2);
  int compared = 0;
  for (int round = 0; round < 400; ++round) {
    Expr x = real_input(0), y = real_input(1);
    Expr e = to_real(RandomDag(random, {x, y, x * y, sin(x), Expr(1.0), Expr(2)}).grow(10));
    compared += check_gradient(e + x * y, {uniform(random), uniform(random)});
  }
  EXPECT_GT(compared, 250);
}

TEST(Diff, Conventions) {
  Expr x = real_input(0), y = real_input(1);
  Expr both[] = {expr::input(0), expr::input(1)};
  auto gradient = [&](Expr e, double a, double b) {
    std::vector<Expr> g = diff(e, 1.0, both);
    return std::pair(evaluate(g[0], {a, b}), evaluate(g[1], {a, b}));
  };
  using Pair = std::pair<double, double>;
  EXPECT_EQ(gradient(sqrt(x), 0, 0), Pair(0, 0));
  EXPECT_EQ(gradient(abs(x), 0, 0), Pair(0, 0));
  EXPECT_EQ(gradient(max(x, y), 3, 3), Pair(0.5, 0.5));
  EXPECT_EQ(gradient(min(x, y), 3, 3), Pair(0.5, 0.5));
  EXPECT_EQ(gradient(min(x, y), 2, 3), Pair(1, 0));
  EXPECT_EQ(gradient(max(x, y), 2, 3), Pair(0, 1));
  EXPECT_EQ(gradient(pow(x, y), 0, 0), Pair(0, 0));
  EXPECT_EQ(gradient(pow(x, y), 0, 2), Pair(0, 0));
  EXPECT_EQ(gradient(pow(x, y), 0, 1), Pair(1, 0));
  EXPECT_EQ(gradient(pow(x, y), 0, 0.5), Pair(kInf, 0));
  EXPECT_EQ(gradient(pow(x, y), 0, -1), Pair(-kInf, -kInf));
  EXPECT_EQ(gradient(pow(x, y), -2, 2).first, -4);
  EXPECT_TRUE(std::isnan(gradient(pow(x, y), -2, 2).second));
  EXPECT_EQ(gradient(max(x, y), std::nan(""), 1), Pair(1, 1)) << "beside a NaN nobody loses";
  EXPECT_EQ(gradient(min(x, y), 1, std::nan("")), Pair(1, 1));
  EXPECT_EQ(gradient(relu(x), 0, 0).first, 0);
  EXPECT_TRUE(all_same(diff(floor(x) + sign(y), 1.0, both), {0.0, 0.0})) << "an exact zero is the literal";
  EXPECT_SAME(diff(x * 3, 1.0, both)[1], Expr());
  EXPECT_SAME(diff(sigmoid(x), y, both)[0], y * (sigmoid(x) * (Expr(1.0) - sigmoid(x))));
  EXPECT_SAME(diff(exp(x), 1.0, both)[0], exp(x));
  EXPECT_SAME(diff(to_real(to_integer(x)), 1.0, both)[0], Expr());
  EXPECT_SAME(diff(where(x > 0.0, x * log(x), 0.0), y, both)[0], where(x > 0.0, y * log(x) + y * x / x, 0.0));
}

// What an arm is pulled back through stays behind its condition.
TEST(Diff, ASelectMovesOutward) {
  const Expr x = real_input(0), y = real_input(1), g = real_input(2), c = boolean_input(3), wrt[] = {x, y};
  EXPECT_TRUE(all_same(diff(where(c, x * y, 0.0), g, wrt), {where(c, y * g, 0.0), where(c, x * g, 0.0)}));
  EXPECT_SAME(diff(where(c, -x, 0.0), g, wrt)[0], where(c, -g, 0.0));
  EXPECT_SAME(diff(where(c, 1.0, x / y), g, wrt)[0], where(c, 0.0, g / y));
  EXPECT_SAME(diff(where(c, x, log(x)), g, wrt)[0], where(c, g, g / x)) << "of two that exclude each other one is taken";
  EXPECT_EQ(evaluate(diff(where(x > 0.0, log(x), 0.0), 1.0, wrt)[0], {0.0}), 0.0);
}

// Wherever a value is finite its gradient is, but for a power's: at zeros, tiny, large and branch points.
template <class V>
void expect_finite_gradients() {
  Expr x = real_input(0), y = real_input(1);
  std::vector<Expr> cases = {square(x),
                             silu(x),
                             relu(x),
                             gelu(x),
                             gelu_tanh(x),
                             clamp(x, -1.0, 1.0),
                             sqrt(x * x),
                             sqrt(x * x + y * y),
                             x * sqrt(x),
                             abs(x) * sqrt(abs(y)),
                             where(x > 0.0, x * log(x), 0.0),
                             where(not_equal(y, 0.0), x / y, 0.0),
                             where(x > 0.0, pow(x, y), 0.0),
                             where(abs(x) < 1.0, log1p(x), x),
                             log1p(exp(-abs(x))),
                             where(x <= 0.0, 0.0, rsqrt(x)),
                             max(min(x, y), 0.0),
                             tanh(x) / (abs(y) + 1.0)};
  for (ExprOp op : testing::kUnaryReal) cases.push_back(expr::make(op, x));
  for (ExprOp op : testing::kBinaryReal)
    if (op != ExprOp::pow) cases.push_back(expr::make(op, x, y));
  const double points[] = {0.0, -0.0, 1e-30, -1e-30, 0.5, 1, -1, 2, -2, 89, -89, 1e4, -1e4};
  Expr both[] = {expr::input(0), expr::input(1)};
  for (Expr e : cases) {
    std::vector<Expr> gradient = diff(e, 1.0, both);
    for (double a : points) {
      for (double b : points) {
        if (!std::isfinite(evaluate<V>(e, {a, b}))) continue;
        for (Expr g : gradient) {
          long double exact = evaluate<long double>(g, {a, b});
          if (std::abs(exact) > std::numeric_limits<V>::max()) continue;  // too large for V whatever one does
          EXPECT_TRUE(std::isfinite(evaluate<V>(g, {a, b})))
              << to_string(e) << " at " << a << ", " << b << ": " << to_string(g);
        }
      }
    }
  }
}

TEST(Diff, FiniteGradientsF64) { expect_finite_gradients<double>(); }
TEST(Diff, FiniteGradientsF32) { expect_finite_gradients<float>(); }

// ---- intervals --------------------------------------------------------------------------------------------------------------

TEST(Interval, ClassifiesTilesOfACausalWindow) {
  Expr i = expr::index(0), j = expr::index(1);
  Expr mask = i >= j && (i - j < 128 || j < 64);
  auto tile = [&](double i0, double j0) {
    Interval ranges[] = {{i0, i0 + 63}, {j0, j0 + 63}};
    return interval_of(mask, ranges);
  };
  EXPECT_TRUE(tile(0, 64).always_false());
  EXPECT_TRUE(tile(640, 128).always_false());
  EXPECT_TRUE(tile(640, 0).always_true());
  EXPECT_TRUE(tile(192, 128).always_true());
  Interval diagonal = tile(128, 128);
  EXPECT_FALSE(diagonal.always_true() || diagonal.always_false());
}

TEST(Interval, Bounds) {
  Expr i = expr::index(0), x = real_input(0);
  Interval range[] = {{-3, 7}};
  auto of = [&](Expr e) { return interval_of(e, range, range); };
  EXPECT_EQ(of(i * i).high, 49);
  EXPECT_EQ(of(i * 2 + 1).low, -5);
  EXPECT_EQ(of(i / 2).low, -1);
  EXPECT_EQ(of(abs(i)).low, 0);
  EXPECT_EQ(of(Expr(100) / i).high, 100);
  EXPECT_TRUE(of(tanh(x) < 2.0).always_true());
  EXPECT_TRUE(of(exp(x) <= 0.0).always_false());
  EXPECT_FALSE(of(log(x) <= log(x) + 1.0).always_true()) << "false for a NaN";
  EXPECT_EQ(interval_of(i, {}).high, kInf);
  EXPECT_EQ(interval_of(boolean_input(0), {}).high, 1);
}

// Every rule of integers and booleans over all small intervals, against all values in them: on the host the bounds are those
// of the values, but for quotients, where they may be wider; as expressions they say the same of comparisons with each number.
struct WholeRule {
  std::string name;
  std::function<Expr(Expr x, Expr y)> make;
  bool tight = true;
};
const WholeRule kWholeRules[] = {
    {"add", [](Expr x, Expr y) { return x + y; }},
    {"sub", [](Expr x, Expr y) { return x - y; }},
    {"mul", [](Expr x, Expr y) { return x * y; }},
    {"div", [](Expr x, Expr y) { return x / y; }, false},
    {"neg", [](Expr x, Expr) { return -x; }},
    {"abs", [](Expr x, Expr) { return abs(x); }},
    {"sign", [](Expr x, Expr) { return sign(x); }},
    {"min", [](Expr x, Expr y) { return min(x, y); }},
    {"max", [](Expr x, Expr y) { return max(x, y); }},
    {"narrow", [](Expr x, Expr) { return narrow(x, DType::i32); }},
    {"eq", [](Expr x, Expr y) { return to_integer(equal(x, y)); }},
    {"ne", [](Expr x, Expr y) { return to_integer(not_equal(x, y)); }},
    {"lt", [](Expr x, Expr y) { return to_integer(x < y); }},
    {"le", [](Expr x, Expr y) { return to_integer(x <= y); }},
    {"and", [](Expr x, Expr y) { return to_integer(x <= 0 && y <= 1); }},
    {"or", [](Expr x, Expr y) { return to_integer(x <= 0 || y <= 1); }},
    {"not", [](Expr x, Expr y) { return to_integer(!(x <= 0 || y <= 1)); }},
    {"select", [](Expr x, Expr y) { return where(y <= 0, x, Expr(7)); }},
};

TEST(Interval, EveryRuleOfIntegersOverAllSmallIntervals) {
  constexpr int kLow = -2, kHigh = 3;
  const Expr x = integer_input(0), y = integer_input(1);
  for (const WholeRule& rule : kWholeRules) {
    const Expr e = rule.make(x, y);
    Intervals intervals(e);
    for (int a = kLow; a <= kHigh; ++a)
      for (int b = a; b <= kHigh; ++b)
        for (int c = kLow; c <= kHigh; ++c)
          for (int d = c; d <= kHigh; ++d) {
            const Interval inputs[] = {{double(a), double(b)}, {double(c), double(d)}};
            std::int64_t low = std::numeric_limits<std::int64_t>::max(), high = std::numeric_limits<std::int64_t>::min();
            Evaluator<double> evaluator;
            for (int p = a; p <= b; ++p)
              for (int q = c; q <= d; ++q) {
                evaluator.inputs = {{0, p}, {0, q}}, evaluator.forget();
                low = std::min(low, evaluator(e).integer), high = std::max(high, evaluator(e).integer);
              }
            const Interval found = intervals({}, inputs);
            SCOPED_TRACE(rule.name + " of " + std::to_string(a) + " to " + std::to_string(b) + " and " + std::to_string(c) +
                         " to " + std::to_string(d));
            ASSERT_LE(found.low, double(low));
            ASSERT_GE(found.high, double(high));
            if (rule.tight) {
              ASSERT_TRUE(found.low == double(low) && found.high == double(high));
            }
            const auto bounds = [&](Expr leaf) {
              return leaf.index() == 0 ? SymbolicInterval{Expr(a), Expr(b), 3} : SymbolicInterval{Expr(c), Expr(d), 3};
            };
            for (int limit = -7; limit <= 9; ++limit) {
              const Verdict below = verdict_of(e <= limit, bounds);
              ASSERT_TRUE(same(below.never, expr::boolean(found.low > limit))) << to_string(below.never);
              ASSERT_TRUE(same(below.always, expr::boolean(found.high <= limit))) << to_string(below.always);
            }
          }
  }
}

TEST(Interval, WhatMayWrapIsUnbounded) {
  const Expr x = integer_input(0), y = integer_input(1);
  constexpr double kLarge = 0x1p52;
  const auto of = [&](Expr e, Interval of_x, Interval of_y) {
    const Interval inputs[] = {of_x, of_y};
    return interval_of(e, {}, inputs);
  };
  for (const double sign : {1.0, -1.0}) {
    const Interval large = {std::min(sign * kLarge, 0.0), std::max(sign * kLarge, 0.0)},
                   beyond = {large.low * 4, large.high * 4};
    for (const Expr e : {x + y, x - (-y), x * y}) EXPECT_EQ(of(e, large, large).high, kInf) << to_string(e);
    for (const Expr e : {x + y, x - y, x * y, x / y, -x, abs(x)}) {
      EXPECT_EQ(of(e, {}, {1, 2}).high, kInf) << to_string(e);
      EXPECT_EQ(of(e, beyond, {1, 2}).high, kInf) << to_string(e);
    }
    EXPECT_LT(of(x + y, large, {0, 1}).high, kInf);
    EXPECT_EQ(of(min(x, y), {}, {0, 5}).high, 5) << "one side is known";
    EXPECT_EQ(of(max(x, y), {}, {0, 5}).low, 0);
    EXPECT_TRUE(of(min(x, y) <= 5, {}, {0, 5}).always_true());
    EXPECT_FALSE(of(min(x, y) + 1 <= 6, {}, {0, 5}).always_true()) << "the smallest integer less one";
    EXPECT_EQ(of(narrow(x, DType::i32), beyond, {}).high, 0x1p31 - 1);
    EXPECT_EQ(of(narrow(x, DType::i32), beyond, {}).low, -0x1p31);
    EXPECT_EQ(of(narrow(x, DType::i32), {0, 5}, {}).high, 5);
  }
}

TEST(Interval, WhatARealSaturatesToIsInside) {
  const Interval large[] = {{0x1p100, 0x1p101}};
  EXPECT_LE(interval_of(to_integer(real_input(0)), {}, large).low, 0x1p63);
}

TEST(Interval, WhatMayWrapSaysNothingAsAnExpression) {
  const Expr x = integer_input(0), y = integer_input(1), slot = expr::slot(0, ExprType::integer);
  const auto decided = [&](Expr e, double largest_x, double largest_y) {
    const Verdict v = verdict_of(e, [&](Expr leaf) {
      const double largest = leaf.index() == 0 ? largest_x : largest_y;
      return SymbolicInterval{leaf, leaf, largest};
    });
    return v.never.op() != ExprOp::literal || v.always.op() != ExprOp::literal;
  };
  for (const Expr e : {x + y, x - y, x * y, x / y, -x, abs(x)}) {
    EXPECT_TRUE(decided(e <= 5, 0x1p30, 0x1p30)) << to_string(e);
    EXPECT_FALSE(decided(e <= 5, 0x1p63, 0x1p30)) << to_string(e);
  }
  EXPECT_FALSE(decided(x + y <= 5, 0x1p30, 0x1p63));
  EXPECT_FALSE(decided(x * y <= 5, 0x1p32, 0x1p32));
  EXPECT_TRUE(decided(min(x, y) <= 5, 0x1p63, 0x1p63)) << "nothing wraps";
  EXPECT_FALSE(decided(narrow(x, DType::i32) <= 5, 0x1p32, 1));
  EXPECT_FALSE(decided(expr::element() <= 5, 1, 1));
  EXPECT_FALSE(decided(to_real(x) <= to_real(y), 1, 1)) << "reals";

  // A slot says all about itself; where it enters arithmetic, only as long as it is below 2^53 in size.
  Evaluator<double> evaluator;
  const auto certain = [&](Expr e, double value) {
    const Verdict v = verdict_of(e, [](Expr) { return SymbolicInterval{Expr(3), Expr(4), 4}; });
    evaluator.slots = {value}, evaluator.forget();
    const bool never = evaluator(v.never).integer != 0, always = evaluator(v.always).integer != 0;
    EXPECT_FALSE(never && always);
    return never ? "never" : always ? "always" : "mixed";
  };
  EXPECT_STREQ(certain(x < slot, 1e30), "always");
  EXPECT_STREQ(certain(x < slot, -1e30), "never");
  EXPECT_STREQ(certain(x < slot, 4), "mixed");
  EXPECT_STREQ(certain(x < slot + 1, 10), "always");
  EXPECT_STREQ(certain(x < slot + 1, -10), "never");
  EXPECT_STREQ(certain(x < slot + 1, 0x1p53), "always");
  EXPECT_STREQ(certain(x < slot + 1, 1e30), "mixed");
  EXPECT_STREQ(certain(x < slot - 1, -1e30), "mixed");
  EXPECT_STREQ(certain(x < min(slot, 1000) - 1, -1e30), "mixed") << "through a minimum";
  EXPECT_STREQ(certain(x < where(slot < 0, slot, Expr(0)) - 1, -1e30), "mixed") << "through a choice";
  EXPECT_STREQ(certain(x < min(slot, 1000) - 1, -10), "never");
}

TEST(Interval, AComparisonWithANanIsNotDecidedByBounds) {
  const Expr one = expr::literal(1), infinity = expr::literal(kInf);
  const Expr nan = log(real_input(0)), clamped = min(max(nan, one), one);  // a NaN passes through both
  const Interval inputs[] = {{-2, -1}};
  const auto of = [&](Expr e) { return interval_of(e, {}, inputs); };
  for (const Expr e : {nan <= infinity, -infinity <= nan, clamped < expr::literal(2), clamped <= one, equal(clamped, one)})
    EXPECT_FALSE(of(e).always_true()) << to_string(e);
  EXPECT_FALSE(of(not_equal(clamped, one)).always_false());
  EXPECT_EQ(of(to_integer(clamped)).low, -kInf) << "it becomes the smallest integer";
}

TEST(Interval, IsSoundOnRandomExpressions) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(-4, 4);
  int narrow = 0;
  for (int round = 0; round < 1500; ++round) {
    std::vector<Expr> leaves = {expr::index(0), expr::index(1), real_input(0), boolean_input(1), Expr(2), Expr(0.5)};
    Expr e = RandomDag(random, leaves).grow(10);
    auto span = [&](bool integer) {
      double a = float(uniform(random)), b = float(uniform(random)) * (random() % 3);  // fp32 holds the bounds
      if (integer) a = std::round(a * 4), b = std::round(b * 4);
      return Interval{std::min(a, b), std::max(a, b)};
    };
    Interval indices[] = {span(true), span(true)}, inputs[] = {span(false), {0, 1}};
    Interval range = interval_of(e, indices, inputs);
    narrow += range.high - range.low < kInf && range.high > range.low;
    for (int sample = 0; sample < 40; ++sample) {
      auto inside = [&](Interval r) {
        return std::uniform_real_distribution<double>(r.low, std::nextafter(r.high, kInf))(random);
      };
      auto whole = [&](Interval r) {
        return std::uniform_int_distribution<std::int64_t>(std::int64_t(r.low), std::int64_t(r.high))(random);
      };
      auto check = [&]<class V>(Evaluator<V> evaluator) {
        evaluator.inputs = {{V(inside(inputs[0])), 0}, {0, std::int64_t(random() % 2)}};
        evaluator.indices = {whole(indices[0]), whole(indices[1])};
        if (sample == 0) evaluator.inputs[0].real = V(inputs[0].low), evaluator.indices[0] = std::int64_t(indices[0].high);
        auto value = evaluator(e);
        double v = e.type() == ExprType::real ? double(value.real) : double(value.integer);
        if (std::isnan(v)) return;
        ASSERT_LE(range.low, v) << to_string(e);
        if (std::isinf(v) && range.high > std::numeric_limits<V>::max()) return;  // overflow beyond a finite bound
        ASSERT_GE(range.high, v) << to_string(e);
      };
      check(Evaluator<double>());
      check(Evaluator<float>());
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(narrow, 400) << "bounds that say something";
}

// ---- errors -----------------------------------------------------------------------------------------------------------------

TEST(Error, SuggestsTheClosestWord) {
  std::vector<std::string> known = {"kernels", "why", "source", "cache", "plan"};
  EXPECT_EQ(suggestion("kernel", known), "; did you mean 'kernels'?");
  EXPECT_EQ(suggestion("sorce", known), "; did you mean 'source'?");
  EXPECT_EQ(suggestion("zebra", known), "");
}

TEST(Error, HasFourParts) {
  Error error(ErrorKind::io, {"file is short", "3 of 8 bytes", "at a.cpp:1\nin up, called at b.cpp:2", "fetch it again"});
  EXPECT_STREQ(error.what(), "file is short: 3 of 8 bytes\n  at a.cpp:1\n  in up, called at b.cpp:2\n  hint: fetch it again");
  EXPECT_EQ(exit_code(error.kind()), 4);
}

}  // namespace
}  // namespace weft
