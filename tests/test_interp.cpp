#include "jit/interp.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "jit/block.h"
#include "jit/error.h"
#include "jit/parallel.h"
#include "jit/philox.h"
#include "jit/vmath.h"
#include "random_expr.h"

namespace weft {
namespace {

using testing::Evaluator;
using testing::RandomDag;
using Int = std::int64_t;
using Bool = std::uint8_t;

// Evaluates one root over columns of reals; the way most tests call a program.
template <class T>
std::vector<T> evaluate(Expr root, const std::vector<std::vector<T>>& columns, std::vector<double> constants = {},
                        Int element = 0) {
  Program program(std::span(&root, 1));
  typename Program::State<T> state(program, constants.data());
  int n = columns.empty() ? kBlock : int(columns[0].size());
  std::vector<T> result(n);
  std::vector<const void*> inputs;
  for (auto& column : columns) inputs.push_back(column.data());
  void* output = result.data();
  state.run(inputs.data(), &output, n, element);
  return result;
}

// ---- programs against the obvious evaluator ---------------------------------------------------------------------------------

View view_of(const void* data, DType dtype, std::initializer_list<std::int64_t> dims,
             std::initializer_list<std::int64_t> strides) {
  View v;
  v.data = static_cast<std::byte*>(const_cast<void*>(data));
  v.dtype = dtype, v.rank = int(dims.size());
  std::copy(dims.begin(), dims.end(), v.dims.begin());
  std::copy(strides.begin(), strides.end(), v.strides.begin());
  return v;
}

// Random DAGs of all types with several roots, over every block size. Where T's own rounding already decides (the plain
// evaluator in T and in a wider type differ), there is nothing to compare.
template <class T, class Wider>
void compare_random_dags(unsigned seed, T tolerance) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-3, 3);
  long compared = 0, total = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<Expr> leaves = {expr::input(0),
                                expr::input(1),
                                expr::input(2, ExprType::integer),
                                expr::input(3, ExprType::boolean),
                                expr::slot(0),
                                expr::slot(1),
                                expr::index(0),
                                expr::index(1),
                                expr::element(),
                                Expr(0.5),
                                Expr(3),
                                expr::boolean(true)};
    RandomDag dag(random, leaves, {{ExprType::real, {5, 4}}, {ExprType::integer, {7}}, {ExprType::boolean, {2, 3}}});
    dag.grow(14);
    std::vector<Expr> roots = {dag.any(), dag.grow(1), dag.any(), dag.any()};
    Program program(roots);
    double constants[] = {uniform(random), uniform(random)};
    std::vector<T> reals(20);
    std::vector<Int> integers(7);
    std::vector<Bool> booleans(6);
    for (T& x : reals) x = T(uniform(random));
    for (Int& x : integers) x = int(random() % 9) - 4;
    for (Bool& x : booleans) x = random() % 2;
    // The first is read transposed.
    const View tables[] = {view_of(reals.data(), sizeof(T) == 8 ? DType::f64 : DType::f32, {5, 4}, {1, 5}),
                           view_of(integers.data(), DType::i64, {7}, {1}),
                           view_of(booleans.data(), DType::boolean, {2, 3}, {3, 1})};
    typename Program::State<T> state(program, constants, tables);
    for (int n : {kBlock, 1 + int(random() % kBlock)}) {
      std::vector<T> a(n), b(n);
      std::vector<Int> i(n);
      std::vector<Bool> c(n);
      for (int j = 0; j < n; ++j)
        a[j] = T(uniform(random)), b[j] = T(uniform(random)), i[j] = int(random() % 9) - 4, c[j] = random() % 2;
      const void* inputs[] = {a.data(), b.data(), i.data(), c.data()};
      std::vector<std::vector<double>> memory(roots.size(), std::vector<double>(n));
      void* outputs[] = {memory[0].data(), memory[1].data(), memory[2].data(), memory[3].data()};
      const Int first = Int(random() % 900), dims[] = {41, 29};  // of the space
      state.run(inputs, outputs, n, first, dims);
      for (int j = 0; j < n; j += 1 + n / 13) {
        auto expected = [&]<class V>(Evaluator<V> evaluator, Expr root) {
          evaluator.inputs = {{V(a[j]), 0}, {V(b[j]), 0}, {0, i[j]}, {0, c[j]}};
          evaluator.slots = {double(T(constants[0])), double(T(constants[1]))};
          evaluator.indices = {(first + j) / dims[1], (first + j) % dims[1]};
          evaluator.element = first + j;
          evaluator.table = [&](std::int64_t k, std::span<const std::int64_t> at) -> testing::Scalar<V> {
            if (k == 0) return {V(reals[at[0] + 5 * at[1]]), 0};
            return {0, k == 1 ? integers[at[0]] : booleans[3 * at[0] + at[1]]};
          };
          return evaluator(root);
        };
        for (std::size_t r = 0; r < roots.size(); ++r) {
          auto narrow = expected(Evaluator<T>(), roots[r]);
          auto wide = expected(Evaluator<Wider>(), roots[r]);
          ++total;
          if (roots[r].type() == ExprType::real) {
            T got = static_cast<T*>(outputs[r])[j], want = T(wide.real), margin = tolerance * (1 + std::abs(want));
            if (std::isnan(wide.real) && std::isnan(narrow.real)) {
              EXPECT_TRUE(std::isnan(got)) << to_string(roots[r]);
            } else if (std::isfinite(want) && std::abs(narrow.real - want) <= margin / 16) {
              EXPECT_NEAR(got, want, margin) << to_string(roots[r]);
            } else {
              continue;
            }
          } else {
            if (narrow.integer != wide.integer) continue;
            Int got =
                roots[r].type() == ExprType::integer ? static_cast<Int*>(outputs[r])[j] : static_cast<Bool*>(outputs[r])[j];
            EXPECT_EQ(got, wide.integer) << to_string(roots[r]);
          }
          ++compared;
        }
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
  EXPECT_GT(compared, total * 8 / 10);
}

TEST(Interp, RandomDagsF32) { compare_random_dags<float, double>(11, 2e-3f); }
TEST(Interp, RandomDagsF64) { compare_random_dags<double, long double>(12, 1e-8); }

// The odometer of coordinates, over every border of a small space.
TEST(Interp, Coordinates) {
  const Expr roots[] = {expr::index(0), expr::index(1), expr::index(2), expr::element()};
  const Program program(roots);
  Program::State<float> state(program, nullptr);
  for (const std::vector<Int>& dims : {std::vector<Int>{7, 3, 5}, {2, 1, 90}, {300, 1, 1}, {1, 200, 1}})
    for (Int first = 0, all = dims[0] * dims[1] * dims[2]; first < all; first += 11) {
      std::vector<std::vector<Int>> out(4, std::vector<Int>(kBlock));
      void* outputs[] = {out[0].data(), out[1].data(), out[2].data(), out[3].data()};
      const int n = int(std::min<Int>(kBlock, all - first));
      state.run(nullptr, outputs, n, first, dims);
      for (int j = 0; j < n; ++j) {
        const Int e = first + j;
        ASSERT_EQ(out[0][j], e / (dims[1] * dims[2])) << first << " + " << j;
        ASSERT_EQ(out[1][j], e / dims[2] % dims[1]) << first << " + " << j;
        ASSERT_EQ(out[2][j], e % dims[2]) << first << " + " << j;
        ASSERT_EQ(out[3][j], e);
      }
    }
  float unused[kBlock];
  void* outputs[] = {unused, unused, unused, unused};
  const Int two[] = {3, 4};
  EXPECT_THROW(state.run(nullptr, outputs, 5, 0, two), Error) << "a coordinate that the space has not";
}

// A subscript outside of its tensor is named.
TEST(Interp, ASubscriptOutside) {
  const Expr subscript[] = {expr::element() - 3}, root = expr::load(0, ExprType::real, subscript);
  const Program program(std::span(&root, 1));
  const float values[4] = {1, 2, 3, 4};
  const View table = view_of(values, DType::f32, {4}, {1});
  Program::State<float> state(program, nullptr, &table);
  float got[kBlock];
  void* outputs[] = {got};
  state.run(nullptr, outputs, 4, 3);
  EXPECT_EQ(std::vector<float>(got, got + 4), (std::vector<float>{1, 2, 3, 4}));
  for (const Int first : {2, 4}) try {
      state.run(nullptr, outputs, 4, first);
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(first == 2 ? "subscript -1 of axis 0" : "subscript 4 of axis 0"), std::string::npos);
    }
}

TEST(Interp, EveryOpOnSpecialValues) {
  std::vector<double> points;
  const double kInf = std::numeric_limits<double>::infinity();
  for (double x : {0.0, 1e-30, 0.3, 1.0, 2.5, 20.0, 89.0, 1e4, kInf}) points.push_back(x), points.push_back(-x);
  points.push_back(std::nan(""));
  std::vector<float> a, b;
  for (double x : points) {
    for (double y : points) a.push_back(float(x)), b.push_back(float(y));
  }
  a.resize(kBlock), b.resize(kBlock);
  auto check = [&](Expr e) {
    std::vector<float> got = evaluate<float>(e, {a, b});
    for (int j = 0; j < kBlock; ++j) {
      Evaluator<double> evaluator;
      evaluator.inputs = {{a[j], 0}, {b[j], 0}};
      float want = float(evaluator(e).real);
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(got[j])) << to_string(e) << " at " << a[j] << ", " << b[j];
      } else if (std::isinf(want)) {
        EXPECT_EQ(got[j], want) << to_string(e) << " at " << a[j] << ", " << b[j];
      } else {
        EXPECT_NEAR(got[j], want, 3e-7 * std::abs(want) + 1e-37) << to_string(e) << " at " << a[j] << ", " << b[j];
      }
    }
  };
  for (ExprOp op : testing::kUnaryReal) check(expr::make(op, expr::input(0)));
  for (ExprOp op : testing::kBinaryReal) check(expr::make(op, expr::input(0), expr::input(1)));
  for (ExprOp op : testing::kComparisons) check(to_real(expr::make(op, expr::input(0), expr::input(1))));
}

TEST(Interp, SineOfLargeAngles) {
  std::vector<float> x = {1e5f, -3e6f, 1e10f, 3e38f, 0.5f};
  std::vector<float> s = evaluate<float>(sin(expr::input(0)), {x}), c = evaluate<float>(cos(expr::input(0)), {x});
  for (std::size_t j = 0; j < x.size(); ++j) {
    EXPECT_NEAR(s[j], std::sin(double(x[j])), 1e-6);
    EXPECT_NEAR(c[j], std::cos(double(x[j])), 1e-6);
  }
}

TEST(Interp, RootsThatAreLeavesOrEqual) {
  Expr x = expr::input(0), i = expr::element();
  Expr roots[] = {x, x * x, expr::slot(0), x * x, i, expr::boolean(true), Expr(5), expr::slot(0)};
  Program program(roots);
  EXPECT_EQ(program.inputs(), 1);
  EXPECT_EQ(program.outputs(), 8);
  EXPECT_EQ(program.output_type(4), ExprType::integer);
  double constant = 0.25;
  Program::State<double> state(program, &constant);
  std::vector<double> column(7), f0(7), f1(7), f2(7), f3(7), f7(7);
  std::iota(column.begin(), column.end(), 1.0);
  std::vector<Int> f4(7), f6(7);
  std::vector<Bool> f5(7);
  const void* input = column.data();
  void* outputs[] = {f0.data(), f1.data(), f2.data(), f3.data(), f4.data(), f5.data(), f6.data(), f7.data()};
  state.run(&input, outputs, 7, 100);
  EXPECT_EQ(f0, column);
  EXPECT_EQ(f1, f3);
  EXPECT_EQ(f1[6], 49);
  EXPECT_EQ(f2, std::vector(7, 0.25));
  EXPECT_EQ(f2, f7);
  EXPECT_EQ(f4[6], 106);
  EXPECT_EQ(f5, std::vector<Bool>(7, 1));
  EXPECT_EQ(f6, std::vector<Int>(7, 5));
}

TEST(Interp, OutputsMayLieOnInputs) {
  Expr x = expr::input(0), y = expr::input(1);
  auto run = [](std::vector<Expr> roots, std::vector<int> placed) {  // output k lies on input placed[k]
    Program program(roots);
    Program::State<float> state(program, nullptr);
    std::vector<std::vector<float>> columns(2, std::vector<float>(kBlock));
    for (int j = 0; j < kBlock; ++j) columns[0][j] = float(j), columns[1][j] = float(1000 + j);
    const void* inputs[] = {columns[0].data(), columns[1].data()};
    std::vector<void*> outputs;
    for (int k : placed) outputs.push_back(columns[k].data());
    state.run(inputs, outputs.data(), kBlock);
    return std::pair(columns[0][3], columns[1][3]);
  };
  using Pair = std::pair<float, float>;
  EXPECT_EQ(run({y, x}, {0, 1}), Pair(1003, 3)) << "a swap";
  EXPECT_EQ(run({x, y}, {0, 1}), Pair(3, 1003));
  EXPECT_EQ(run({x + y, x - y}, {0, 1}), Pair(1006, -1000));
  EXPECT_EQ(run({x + y, x}, {0, 1}), Pair(1006, 3));
  EXPECT_EQ(run({x, x * y}, {1, 0}), Pair(3009, 3));
  EXPECT_EQ(run({x * 2.0, exp(x * 2.0) * 0.0 + x}, {0, 1}).second, 3);
}

TEST(Interp, FusedPairs) {
  Expr a = expr::input(0), b = expr::input(1), c = expr::input(2);
  std::vector<std::vector<double>> columns = {{2, -3, 5}, {7, 0.5, -1}, {1, 4, 9}};
  auto check = [&](Expr e, auto f) {
    auto got = evaluate<double>(e, columns);
    for (int j = 0; j < 3; ++j) EXPECT_EQ(got[j], f(columns[0][j], columns[1][j], columns[2][j])) << to_string(e);
  };
  check(a * b + c, [](double x, double y, double z) { return x * y + z; });
  check(c + b * a, [](double x, double y, double z) { return x * y + z; });
  check(a * b - c, [](double x, double y, double z) { return x * y - z; });
  check(c - a * b, [](double x, double y, double z) { return z - x * y; });
  check(a * b - b * c, [](double x, double y, double z) { return x * y - y * z; });
  check(a * b + a * b * c, [](double x, double y, double z) { return x * y + x * y * z; });
  check(where(a < b, a, c), [](double x, double y, double z) { return x < y ? x : z; });
  check(where(a < b, a, c) * where(a < b, c, b), [](double x, double y, double z) { return x < y ? x * z : z * y; });
  check(to_real(where(a <= b, 3, 4)), [](double x, double y, double) { return x <= y ? 3 : 4; });
  check(to_real(where(a <= b, b < c, c < b)), [](double x, double y, double z) { return x <= y ? y < z : z < y; });
  check(to_real(a < b) + where(a < b, c, b), [](double x, double y, double z) { return (x < y) + (x < y ? z : y); });
}

TEST(Interp, NarrowsAndKeepsZeros) {
  const Expr x = expr::input(0), y = expr::input(1);
  using Floats = std::vector<float>;
  using Doubles = std::vector<double>;
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(evaluate<float>(narrow(x, DType::bf16), {Floats{1.00390625f, 1.01171875f, -3.4e38f, 1e-40f}}),
            (Floats{1, 1.015625f, -inf, float(bf16(1e-40f))}));
  EXPECT_EQ(evaluate<double>(narrow(x, DType::bf16), {Doubles{1 + 0x1p-8, 1 + 0x1p-8 + 0x1p-40, 1e300}}),
            (Doubles{1, 1 + 0x1p-7, double(inf)}));
  EXPECT_EQ(evaluate<double>(narrow(x, DType::f32), {Doubles{0.1, 1e300}}), (Doubles{double(0.1f), double(inf)}));
  EXPECT_EQ(evaluate<double>(to_real(narrow(to_integer(x), DType::i32)), {Doubles{4294967301.0, 2147483648.0, -1}}),
            (Doubles{5, -2147483648.0, -1}));
  EXPECT_EQ(evaluate<float>(unless_zero(x, y), {Floats{0, -0.0f, 2}, Floats{inf, std::nanf(""), inf}}), (Floats{0, 0, inf}));
  for (const Expr e : {min(x, y), min(y, x)}) EXPECT_TRUE(std::signbit(evaluate<float>(e, {Floats{0}, Floats{-0.0f}})[0]));
  for (const Expr e : {max(x, y), max(y, x)}) EXPECT_FALSE(std::signbit(evaluate<float>(e, {Floats{0}, Floats{-0.0f}})[0]));
}

TEST(Interp, IntegerDivision) {
  constexpr Int kMin = std::numeric_limits<Int>::min(), kMax = std::numeric_limits<Int>::max();
  Expr quotient = expr::input(0, ExprType::integer) / expr::input(1, ExprType::integer);
  Program program(std::span(&quotient, 1));
  Program::State<float> state(program, nullptr);
  auto check = [&](const std::vector<Int>& values) {
    for (Int divisor : values) {
      std::vector<Int> divisors(values.size(), divisor), got(values.size());
      const void* inputs[] = {values.data(), divisors.data()};
      void* output = got.data();
      state.run(inputs, &output, int(values.size()));
      for (std::size_t j = 0; j < values.size(); ++j) {
        Int want = divisor == 0 ? 0 : values[j] == kMin && divisor == -1 ? kMin : values[j] / divisor;
        EXPECT_EQ(got[j], want) << values[j] << " / " << divisor;
      }
    }
  };
  check({0, 1, -1, 7, -7, 1000, (1 << 30) - 1, -(1 << 30)});
  for (Int edge : {1ll << 30, 1ll << 31, 1ll << 32}) check({edge, -1, 1, 0}), check({-edge, -1, 1, 0}), check({edge - 1, -1});
  check({0, 1, -1, 7, -7, 0x80000000, -0x80000000ll, kMin, kMax, (1ll << 53) + 1});
}

TEST(Interp, AnInputHasOneType) {
  Expr roots[] = {expr::input(0) + 1.0, expr::input(0, ExprType::integer) + 1};
  EXPECT_THROW(Program{roots}, Error);
}

// ---- random numbers ---------------------------------------------------------------------------------------------------------

TEST(Philox, KnownAnswers) {  // Random123, kat_vectors: philox4x32-10
  EXPECT_EQ(philox_block({}, 0, 0), (PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  std::uint32_t ones = ~0u;
  EXPECT_EQ(philox_block({ones, ones, ones, ones}, ones, ones), (PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox_block({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
            (PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  EXPECT_EQ(philox(0, 0, 0, 0), 0x6627e8d5u);
  EXPECT_EQ(philox(0, 0, 0, 3), 0x9b00dbd8u);
}

template <class T>
void check_uniform() {
  double constants[] = {std::bit_cast<double>(std::uint64_t{42}), std::bit_cast<double>(std::uint64_t{7}),
                        std::bit_cast<double>(std::uint64_t{0xdeadbeef12345})};
  std::vector<double> slots(constants, constants + 3);
  auto expected = [](Int element) {
    T u = T((double(philox(42, 0xdeadbeef12345, 7, element)) + 0.5) * 0x1p-32);
    return u < 1 ? u : std::nextafter(T(1), T(0));
  };
  for (Int first : {Int{0}, Int{1}, Int{3}, Int{1} << 40}) {
    auto got = evaluate<T>(expr::uniform(0, expr::element()), {}, slots, first);
    auto reversed = evaluate<T>(expr::uniform(0, Expr(1000) - expr::element()), {}, slots, first);
    for (int j = 0; j < kBlock; ++j) {
      ASSERT_EQ(got[j], expected(first + j));
      ASSERT_EQ(reversed[j], expected(1000 - first - j));
      ASSERT_TRUE(got[j] > 0 && got[j] < 1);
    }
  }
  double mean = 0;
  for (Int first = 0; first < 1 << 18; first += kBlock) {
    for (T u : evaluate<T>(expr::uniform(0, expr::element()), {}, slots, first)) mean += double(u) / (1 << 18);
  }
  EXPECT_NEAR(mean, 0.5, 0.003);
}

TEST(Interp, UniformF32) { check_uniform<float>(); }
TEST(Interp, UniformF64) { check_uniform<double>(); }

// ---- elementary functions ---------------------------------------------------------------------------------------------------

struct Accuracy {
  double ulps = 0;
  float at = 0;
};

// The largest error over every 4001st float in [low, high], special values included.
template <class F, class G>
Accuracy sweep(F f, G exact, float low, float high) {
  Accuracy worst;
  for (std::uint64_t u = 0; u < 1ull << 32; u += 4001) {
    float x = std::bit_cast<float>(std::uint32_t(u));
    if (std::isnan(x) ? high < std::numeric_limits<float>::infinity() : x < low || x > high) continue;
    double want = exact(double(x)), got = f(x), ulps;
    if (std::isnan(want) || std::abs(want) > std::numeric_limits<float>::max()) {
      bool right = std::isnan(want) ? std::isnan(got) : got == double(float(want)) || std::abs(got) > 3.4028e38;
      ulps = right ? 0 : 1e9;
    } else if (std::abs(want) < 1e-37) {
      ulps = std::abs(got - want) < 1e-37 && std::signbit(got) == std::signbit(want) ? 0 : 1e9;
    } else {
      int exponent;
      std::frexp(want, &exponent);
      ulps = std::abs(got - want) / std::ldexp(1.0, exponent - 24);
    }
    if (!(ulps <= worst.ulps)) worst = {ulps, x};
  }
  return worst;
}

TEST(Vmath, IsAccurate) {
  auto check = [](const char* name, auto f, auto exact, double limit, float range = HUGE_VALF) {
    Accuracy worst = sweep(f, exact, -range, range);
    EXPECT_LE(worst.ulps, limit) << name << " at " << worst.at;
  };
  using D = double;
  check(
      "exp", [](float x) { return vmath::exp(x); }, [](D x) { return std::exp(x); }, 1.2);
  check(
      "expm1", [](float x) { return vmath::expm1(x); }, [](D x) { return std::expm1(x); }, 1.6);
  check(
      "log", [](float x) { return vmath::log(x); }, [](D x) { return std::log(x); }, 1.4);
  check(
      "log1p", [](float x) { return vmath::log1p(x); }, [](D x) { return std::log1p(x); }, 1.4);
  check(
      "tanh", [](float x) { return vmath::tanh(x); }, [](D x) { return std::tanh(x); }, 1.9);
  check(
      "sigmoid", [](float x) { return vmath::sigmoid(x); }, [](D x) { return 1 / (1 + std::exp(-x)); }, 2.3);
  check(
      "softplus", [](float x) { return vmath::softplus(x); },
      [](D x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }, 1.9);
  check(
      "erf", [](float x) { return vmath::erf(x); }, [](D x) { return std::erf(x); }, 1.2);
  check(
      "rsqrt", [](float x) { return vmath::rsqrt(x); }, [](D x) { return 1 / std::sqrt(x); }, 1.6);
  check(
      "sin", [](float x) { return vmath::sin(x); }, [](D x) { return std::sin(x); }, 1.0, vmath::kMaxAngle);
  check(
      "cos", [](float x) { return vmath::cos(x); }, [](D x) { return std::cos(x); }, 1.0, vmath::kMaxAngle);
}

// ---- threads ----------------------------------------------------------------------------------------------------------------

TEST(Parallel, RunsEveryPartOnceAndRethrows) {
  std::vector<int> seen(1000);
  parallel(1000, [&](Int part) { ++seen[part]; });
  EXPECT_EQ(seen, std::vector(1000, 1));
  EXPECT_THROW(parallel(100,
                        [](Int part) {
                          if (part == 37) fail(ErrorKind::training, "no");
                        }),
               Error);
  parallel(0, [](Int) { FAIL(); });
  std::vector<int> nested(16);
  parallel(4, [&](Int outer) { parallel(4, [&](Int inner) { ++nested[outer * 4 + inner]; }); });
  EXPECT_EQ(nested, std::vector(16, 1));
  EXPECT_THROW(set_threads(0), Error);
}

}  // namespace
}  // namespace weft
