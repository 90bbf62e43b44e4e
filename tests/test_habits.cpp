// Programs written from the habits of PyTorch: what they do works, or is an error that says what to do.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/context.h"
#include "jit/parallel.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tools/weft.h"

namespace weft {
namespace {

// ---- outside run: values that were looked at --------------------------------------------------------------------------------

struct Regression {
  Linear layer{4, 4};
  AdamW optimizer{layer.parameters(), {}};
  const Tensor x = ones({2, 4});
  Tensor loss() { return mean(square(layer(x) - 1.f)); }
  std::vector<float> weights() const { return layer.weight().to_host<float>(); }
};

// As one recording does it.
std::vector<float> trained_in_run(int steps) {
  seed(1);
  Regression r;
  for (int i = 0; i < steps; ++i)
    run([&] {
      backward(r.loss());
      r.optimizer.step();
    });
  return r.weights();
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6) << i;
}

TEST(Habits, TheLossIsReadInAFunctionAndTheStepIsOutsideOfIt) {
  seed(1);
  Regression r;
  const auto forward_and_backward = [&] {
    const Tensor loss = r.loss();
    const double value = loss.item();
    backward(loss);
    return value;
  };
  double last = 1e9;
  for (int i = 0; i < 3; ++i) {
    const double value = forward_and_backward();
    r.optimizer.step();
    EXPECT_LT(value, last);
    last = value;
  }
  expect_near(r.weights(), trained_in_run(3));
}

TEST(Habits, GradientsOutliveTheLossThatWasRead) {
  seed(1);
  Regression r;
  {
    const Tensor loss = r.loss();
    loss.item();
    backward(loss);
  }
  exp(r.x);  // something else is recorded
  EXPECT_TRUE(std::abs(r.layer.weight().gradient<float>()[0]) > 0);
  Tensor g;
  {
    Tensor w = Arg(r.layer.weight()).tensor();
    const Tensor loss = sum(square(w));
    loss.item();
    g = grad(loss, {w})[0];
  }
  const Tensor twice = g + g;
  const std::vector<float> weights = r.weights(), values = twice.to_host<float>();
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_FLOAT_EQ(values[i], 4 * weights[i]);
}

TEST(Habits, WhatWasRecordedBesideALossThatWasReadIsNotForgotten) {
  seed(1);
  Regression r;
  Tensor other;
  State counter({1}, DType::f32, "counter");
  {
    const Tensor loss = r.loss();
    loss.item();
    other = exp(r.x);
  }
  const Tensor sum_of = other + 1.f;
  EXPECT_FLOAT_EQ(sum_of.to_host<float>()[0], std::exp(1.f) + 1);
}

TEST(Habits, AnEagerLoopThatReadsWhatItCarriesComputesEachStepOnce) {
  seed(1);
  Linear layer(8, 8);
  const auto node_count = [&](int steps) {
    Tensor h = ones({1, 8});
    int nodes = 0;
    for (int i = 0; i < steps; ++i) {
      h = tanh(layer(h));
      h.to_host<float>();
      nodes = last_run().nodes;
    }
    EXPECT_TRUE(last_run().replayed);
    return nodes;
  };
  EXPECT_EQ(node_count(5), node_count(50));
}

TEST(Habits, SuchALoopHasTheValuesAndGradientsOfARecording) {
  constexpr int kSteps = 12;
  seed(1);
  Linear layer(8, 8);
  const auto loop = [&](bool look) {
    Tensor h = ones({1, 8});
    for (int i = 0; i < kSteps; ++i) {
      const Tensor inner = layer(h);
      h = tanh(inner) * 0.9f + h * 0.3f;
      if (look && i % 2) h.to_host<float>();
      if (look && i == 5) inner.to_host<float>();
    }
    return h;
  };
  const Tensor expected = run([&] {
    const Tensor h = loop(false);
    backward(sum(h));
    return h;
  });
  const std::vector<float> gradient = layer.weight().gradient<float>();
  for (Param p : layer.parameters()) p.zero_grad();
  const Tensor h = loop(true);
  expect_near(h.to_host<float>(), expected.to_host<float>());
  backward(sum(h));
  expect_near(layer.weight().gradient<float>(), gradient);
}

TEST(Habits, AnOpOfSeveralOutputsIsComputedAgainAsAWhole) {
  seed(1);
  Param w(Shape{1, 5, 4});
  w.set(std::vector<float>(20, 0.1f));
  const Tensor A = -ones({4, 3}), n = ones({1, 5, 3});
  const auto both = [&](bool look) {
    Tensor last;
    ScanOptions options;
    options.last = &last;
    const Tensor y = scan(w, ones({1, 5, 4}), A, n, n, options);
    if (look) last.to_host<float>();
    const Tensor total = sum(last) + sum(y);
    return std::pair(total, last);
  };
  const Tensor expected = run([&] {
    backward(both(false).first);
    return both(false).first;
  });
  const std::vector<float> gradient = w.gradient<float>();
  w.zero_grad();
  const auto [total, last] = both(true);
  EXPECT_NEAR(total.item(), expected.item(), 1e-5);
  backward(total);
  expect_near(w.gradient<float>(), gradient);
}

TEST(Habits, AParamThatIsSetBetweenReadsIsReadAnew) {
  Param w(Shape{2});
  w.set(std::vector<float>{1, 2});
  const Tensor kept = w * 1.f;
  EXPECT_EQ(kept.to_host<float>(), (std::vector<float>{1, 2}));
  w.set(std::vector<float>{5, 6});
  EXPECT_EQ((w * 1.f).to_host<float>(), (std::vector<float>{5, 6}));
  EXPECT_EQ(kept.to_host<float>(), (std::vector<float>{1, 2}));
}

TEST(Habits, AReadOfAnEagerLoopEvaluatesOneStep) {
  seed(1);
  Linear layer(8, 8);
  Tensor h = ones({1, 8});
  std::map<int, int> nodes;
  for (int i = 0; i <= 1000; ++i) {
    h = tanh(layer(h));
    h.to_host<float>();
    if (i == 10 || i == 1000) nodes[i] = last_run().nodes;
  }
  EXPECT_GT(nodes[10], 0);
  EXPECT_EQ(nodes[10], nodes[1000]);
}

// ---- what a step returns, and takes -----------------------------------------------------------------------------------------

struct Parts {
  Tensor loss;
  std::vector<Tensor> hidden;
  int count = 0;
  std::string name;
};
struct Nested {
  Parts parts;
  std::optional<Tensor> extra;
  std::map<std::string, Tensor> by_name;
};

TEST(Habits, AStepReturnsAStructAMapOrAnOptional) {
  const Tensor x = ones({2});
  const Parts parts = run([&] { return Parts{x * 2.f, {x + 1.f, x + 2.f}, 7, "seven"}; });
  EXPECT_EQ(parts.loss.to_host<float>()[0], 2);
  EXPECT_EQ(parts.hidden[1].to_host<float>()[0], 3);
  EXPECT_EQ(parts.count, 7);
  EXPECT_EQ(parts.name, "seven");
  const auto by_name = run([&] { return std::map<std::string, Tensor>{{"a", x + 3.f}, {"b", x + 4.f}}; });
  EXPECT_EQ(by_name.at("b").to_host<float>()[0], 5);
  for (const bool there : {false, true}) {
    const auto maybe = run([&] { return there ? std::optional<Tensor>(x + 5.f) : std::nullopt; });
    ASSERT_EQ(maybe.has_value(), there);
    if (there) {
      EXPECT_EQ(maybe->to_host<float>()[0], 6);
    }
  }
  const Nested nested = run([&] { return Nested{{x, {}, 1, ""}, x * 3.f, {{"c", x * 4.f}}}; });
  EXPECT_EQ(nested.extra->to_host<float>()[0], 3);
  EXPECT_EQ(nested.by_name.at("c").to_host<float>()[0], 4);
  const auto [loss, accuracy] = run([&] { return std::pair(x * 5.f, 0.5); });
  EXPECT_EQ(loss.to_host<float>()[0], 5);
  EXPECT_EQ(accuracy, 0.5);
  EXPECT_EQ(run([&] { return 3; }), 3);
}

struct One {
  Tensor a;
};
struct Eight {
  Tensor a;
  int b, c, d, e, f, g;
  Tensor h;
};
static_assert(detail::count_fields<One>() == 1 && detail::count_fields<Eight>() == 8 && detail::count_fields<Parts>() == 4 &&
              detail::count_fields<Nested>() == 3);

TEST(Habits, AStructMayHaveOneToEightMembers) {
  const Tensor x = ones({2});
  EXPECT_EQ(run([&] { return One{x + 1.f}; }).a.to_host<float>()[0], 2);
  const Eight eight = run([&] { return Eight{x, 1, 2, 3, 4, 5, 6, x + 2.f}; });
  EXPECT_EQ(eight.h.to_host<float>()[0], 3);
  EXPECT_EQ(eight.g, 6);
}

TEST(Habits, AStepTakesUpToAnyNumberOfArguments) {
  const Tensor x = ones({1});
  EXPECT_EQ(run([](const Tensor& a) { return a; }, x).item(), 1);
  EXPECT_EQ(run([](const Tensor& a, float k) { return a * k; }, x, 2.f).item(), 2);
  EXPECT_EQ(
      run([](const Tensor& a, float k, float l, float m, float n) { return a * k * l * m * n; }, x, 2.f, 2.f, 2.f, 2.f).item(),
      16);
}

// ---- the types of the host's values -----------------------------------------------------------------------------------------

static_assert(is_host_element<float> && is_host_element<double> && is_host_element<int> && is_host_element<long> &&
              is_host_element<long long> && is_host_element<bool> && is_host_element<std::uint8_t>);
static_assert(!is_host_element<unsigned> && !is_host_element<short> && !is_host_element<char> &&
              !is_host_element<long double> && !is_host_element<std::uint64_t> && !is_host_element<wchar_t>);

template <class T>
void expect_round_trip(DType dtype) {
  const std::vector<T> values{T(0), T(1), T(1), T(0)};
  const Tensor tensor = Tensor::from(values, {2, 2});
  EXPECT_EQ(tensor.dtype(), dtype);
  EXPECT_EQ(tensor.to_host<T>(), values);
  EXPECT_EQ(tensor.to_host<bool>(), (std::vector<bool>{false, true, true, false}));
  EXPECT_EQ(tensor.to_host<int>(), (std::vector<int>{0, 1, 1, 0}));
  EXPECT_EQ(tensor.to_host<long long>(), (std::vector<long long>{0, 1, 1, 0}));
  State state({2, 2}, dtype, "state");
  state.set(values);
  EXPECT_EQ(state.to_host<T>(), values);
  EXPECT_EQ(state.to_host<bool>(), (std::vector<bool>{false, true, true, false}));
}

TEST(Habits, EveryNameOfATypeOfElementsWorks) {
  expect_round_trip<float>(DType::f32);
  expect_round_trip<double>(DType::f64);
  expect_round_trip<int>(DType::i32);
  expect_round_trip<long>(DType::i64);
  expect_round_trip<long long>(DType::i64);
  expect_round_trip<bool>(DType::boolean);
  expect_round_trip<std::uint8_t>(DType::boolean);
  EXPECT_EQ(Tensor::from<bool>({true, false}, {2}).to_host<float>(), (std::vector<float>{1, 0}));
  EXPECT_EQ(Tensor::from<float>({2.9f, -2.9f, 1e30f}, {3}).to_host<int>(), (std::vector<int>{2, -2, 2147483647}));
  Param w(Shape{2});
  EXPECT_EQ(w.gradient<double>(), (std::vector<double>{0, 0}));
  EXPECT_EQ(w.gradient<int>(), (std::vector<int>{0, 0}));
}

TEST(Habits, AnArgumentTellsItsShape) {
  const auto last = [](Arg x) { return std::pair(x.numel(), x.dim(-1) * x.rank()); };
  EXPECT_EQ(last(ones({3, 4})), (std::pair<std::int64_t, std::int64_t>(12, 8)));
}

// ---- threads that wait ------------------------------------------------------------------------------------------------------

using HabitsOfTheProgram = ProgramTest;

TEST_F(HabitsOfTheProgram, ThreadsWaitPassivelyUnlessTheUserSaysOtherwise) {
  // OpenMP says what it has read, GNU's when it is loaded. That one calls the policy passive too where it has read none, and
  // then spins for some milliseconds: only the count tells. LLVM's writes no blanks.
  const auto said = [&](const std::string& environment) {
    const std::string command = " OMP_DISPLAY_ENV=verbose WEFT_DEVICE=cpu weft bench host --smoke";
    std::string text = shell("env -u OMP_WAIT_POLICY " + environment + command).text;
    std::erase(text, ' ');
    return text;
  };
  const std::string by_default = said("");
  EXPECT_NE(by_default.find("OMP_WAIT_POLICY='PASSIVE'"), std::string::npos) << by_default;
  const bool gnu = by_default.find("GOMP_") != std::string::npos;
  EXPECT_EQ(by_default.find("GOMP_SPINCOUNT='0'") != std::string::npos, gnu) << by_default;
  EXPECT_NE(said("OMP_WAIT_POLICY=active").find("OMP_WAIT_POLICY='ACTIVE'"), std::string::npos);
}

// The tests are such a program: weft is linked into it. GNU's OpenMP reads its environment before any of its code runs, in
// which a variable's place is taken meanwhile (jit/start.cpp).
TEST_F(HabitsOfTheProgram, ThreadsOfOthersThatUseTheLibraryWaitPassivelyToo) {
  if (const char* child = std::getenv("WEFT_TEST_CHILD")) {
    EXPECT_STREQ(std::getenv("PWD"), child);
    EXPECT_STREQ(std::getenv("SHLVL"), "=3=");
    EXPECT_STREQ(std::getenv("HOME"), "");
    parallel(2, [](std::int64_t) {});  // LLVM's OpenMP says what it does when it is used
    return;
  }
  std::error_code error;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe", error).string();
  const auto said = [&](const std::string& environment) {
    const Outcome outcome =
        shell("env -i PATH=\"$PATH\" WEFT_PROGRAM=\"$WEFT_PROGRAM\" HOME= SHLVL==3= PWD=/here WEFT_TEST_CHILD=/here " +
              environment + " OMP_DISPLAY_ENV=verbose '" + self + "' --gtest_filter='HabitsOfTheProgram.*TheLibrary*'");
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    std::string text = outcome.text;
    std::erase(text, ' ');
    return text;
  };
  for (const char* environment : {"", "LD_BIND_NOW=1"}) {
    const std::string by_default = said(environment);
    EXPECT_NE(by_default.find("OMP_WAIT_POLICY='PASSIVE'"), std::string::npos) << by_default;
    const bool gnu = by_default.find("GOMP_") != std::string::npos;
    EXPECT_EQ(by_default.find("GOMP_SPINCOUNT='0'") != std::string::npos, gnu) << by_default;
  }
  EXPECT_NE(said("OMP_WAIT_POLICY=active").find("OMP_WAIT_POLICY='ACTIVE'"), std::string::npos);
}

}  // namespace
}  // namespace weft
