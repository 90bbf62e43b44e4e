// Sums are right however long they are, and what is made of them: every op that adds many terms against the same sum in double;
// distributions of large logits; results in bf16, which are rounded once. On the device in use.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "jit/dtype.h"
#include "ops/ops.h"
#include "optim/clip.h"
#include "tests/values.h"

namespace weft {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// In (0, 1), or all of them 0.1, whose roundings all go the same way.
std::vector<float> terms(std::int64_t n, bool equal, int seed = 1) {
  std::vector<float> v(std::size_t(n), 0.1f);
  std::uint32_t state = std::uint32_t(seed) * 2654435761u;
  for (float& x : v) {
    state = state * 1664525u + 1013904223u;
    if (!equal) x = float(state >> 8) * 0x1p-24f;
  }
  return v;
}

Tensor tensor(const std::vector<float>& v, Shape shape) { return Tensor::from(v, shape); }
Tensor like(const Tensor& x, float value) {
  return tensor(std::vector<float>(std::size_t(x.shape().numel()), value), x.shape());
}

// How many terms are added where the device in use is emulated, and where it is not.
std::int64_t length(std::int64_t emulated, std::int64_t real) { return device() == Device::emu ? emulated : real; }

// Each sum within `units` of 2^-24 of the sum of its terms' magnitudes: the rounding of the result is one, and sums of 16 terms
// in fp32, which PyTorch's are made of too, are off by up to three.
void expect_sums(const Tensor& got, const Values& expected, const Values& magnitude, const std::string& what,
                 double units = 4) {
  const Values values = got.to_host<double>();
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (std::size_t i = 0; i < values.size(); ++i)
    EXPECT_NEAR(values[i], expected[i], units * 0x1p-24 * magnitude[i]) << what << " at " << i;
}

// The sums over the rows of x (rows, n) times y, of the same shape.
Values column_sums(const std::vector<float>& x, const std::vector<float>& y, std::size_t n) {
  Values sums(n);
  for (std::size_t i = 0; i < x.size(); ++i) sums[i % n] += double(x[i]) * double(y[i]);
  return sums;
}
Values column_sums(const std::vector<float>& x, std::size_t n) { return column_sums(x, std::vector<float>(x.size(), 1), n); }

class LongSums : public testing::TestWithParam<bool> {  // whether the terms are equal
 protected:
  const bool equal = GetParam();
};

TEST_P(LongSums, OfRowsAndColumns) {
  const auto check = [&](std::int64_t outer, std::int64_t rows, std::int64_t n) {
    const std::vector<float> v = terms(outer * rows * n, equal);
    Values expected;
    for (std::int64_t o = 0; o < outer; ++o)
      for (const double s : column_sums({v.begin() + o * rows * n, v.begin() + (o + 1) * rows * n}, std::size_t(n)))
        expected.push_back(s);
    expect_sums(sum(tensor(v, {outer, rows, n}), {1}), expected, expected, to_string(Shape{outer, rows, n}));
  };
  check(1, 1000, 5);
  check(1, length(100'000, 10'000'000), 1);
  check(1, length(20'000, 1'000'000), 8);
  check(3, length(3'000, 100'000), 1);
  check(2, length(3'000, 100'000), 3);
  check(1, 17, 300);
}

TEST_P(LongSums, OfASquaredRow) {  // longer than threads hold
  const std::int64_t n = length(70'000, 10'000'000);
  const std::vector<float> v = terms(n, equal);
  double square = 0, mean = 0, variance = 0;
  for (const float x : v) square += double(x) * double(x) / double(n), mean += double(x) / double(n);
  for (const float x : v) variance += (double(x) - mean) * (double(x) - mean) / double(n);
  const Tensor x = tensor(v, {1, n});
  const auto expect_first = [&](const Tensor& y, double expected) {
    EXPECT_NEAR(slice(y, 1, 0, 1).to_host<double>()[0], expected, 2e-7 * std::abs(expected) + 5e-7);
  };
  expect_first(rms_norm(x, Tensor{}, 0), double(v[0]) / std::sqrt(square));
  expect_first(layer_norm(x, Tensor{}, Tensor{}, 1e-3), (double(v[0]) - mean) / std::sqrt(variance + 1e-3));
  // The gradient of rms_norm is r (g - xh mean(g xh)).
  const std::vector<float> g = terms(n, equal, 2);
  double dot = 0;
  for (std::size_t i = 0; i < v.size(); ++i) dot += double(g[i]) * double(v[i]) / double(n);
  const double r = 1 / std::sqrt(square);
  const Tensor dx = grad(rms_norm(x, Tensor{}, 0), tensor(g, {1, n}), {x})[0];
  EXPECT_NEAR(slice(dx, 1, 0, 1).to_host<double>()[0], r * (double(g[0]) - double(v[0]) * r * r * dot), 1e-6);
}

TEST_P(LongSums, OfTheGradientsOfANorm) {
  const std::int64_t rows = length(8192, 65536), n = 4;
  const std::vector<float> v = terms(rows * n, false), g = terms(rows * n, equal, 2);
  const Tensor x = tensor(v, {rows, n}), w = tensor({1, 1, 1, 1}, {n});
  const Tensor y = rms_norm(x, w, 0.01), dw = grad(y, tensor(g, {rows, n}), {w})[0];
  const std::vector<float> of_y = y.to_host<float>();
  expect_sums(dw, column_sums(g, of_y, n), column_sums(g, of_y, n), "weight");
  const Tensor zero = like(w, 0.0f), db = grad(layer_norm(x, w, zero, 0.01), tensor(g, {rows, n}), {zero})[0];
  expect_sums(db, column_sums(g, n), column_sums(g, n), "bias");
}

TEST_P(LongSums, OfRowsOfATable) {
  const std::int64_t count = length(20'000, 1'000'000), d = 3;
  std::vector<std::int64_t> ids(std::size_t(count), 1);
  for (std::size_t i = 0; i < ids.size(); i += 1000) ids[i] = 4;
  const std::vector<float> g = terms(count * d, equal);
  Values expected(6 * d);
  for (std::size_t i = 0; i < g.size(); ++i) expected[std::size_t(ids[i / d] * d) + i % d] += double(g[i]);
  const Tensor table = tensor(std::vector<float>(6 * d), {6, d}), places = Tensor::from(ids, {count});
  expect_sums(grad(embedding(table, places), tensor(g, {count, d}), {table})[0], expected, expected, "embedding");
  const std::vector<float> values(g.begin(), g.begin() + count);
  Values sums(6);
  for (std::size_t i = 0; i < values.size(); ++i) sums[std::size_t(ids[i])] += double(values[i]);
  expect_sums(scatter_sum(tensor(values, {count}), places, 6), sums, sums, "scatter_sum");
}

TEST_P(LongSums, OfAConvolution) {
  for (const std::int64_t w : {4, 40}) {  // wide taps have a kernel of their own
    const std::int64_t t = length(3000, 65536), d = 2;
    const std::vector<float> x = terms(t * d, equal), g = terms(t * d, equal, 2);
    const Tensor weight = tensor(terms(d * w, false, 3), {d, w}), bias = tensor({0.5f, 0.25f}, {d});
    const std::vector<Tensor> grads = grad(conv1d(tensor(x, {1, t, d}), weight, bias), tensor(g, {1, t, d}), {weight, bias});
    Values dw(std::size_t(d * w));
    for (std::int64_t s = 0; s < t; ++s)
      for (std::int64_t j = std::max<std::int64_t>(0, w - 1 - s); j < w; ++j)
        for (std::int64_t c = 0; c < d; ++c)
          dw[std::size_t(c * w + j)] += double(g[std::size_t(s * d + c)]) * double(x[std::size_t((s - w + 1 + j) * d + c)]);
    expect_sums(grads[0], dw, dw, "weight", 8);  // on a GPU a thread adds 32 steps
    expect_sums(grads[1], column_sums(g, d), column_sums(g, d), "bias", 8);
  }
}

// With A = 0 the state is the sum of what came in, and dA of the last step's gradient is the sum of Delta times the states.
TEST_P(LongSums, OfAScan) {
  const std::int64_t t = length(1024, 1 << 20), i = 1, n = 1;
  const std::vector<float> u = terms(t, equal), g = terms(t, equal, 2);
  const Tensor us = tensor(u, {1, t, i}), delta = like(us, 1.0f), A = tensor({-1.0f}, {i, n}),
               B = tensor(std::vector<float>(std::size_t(t), 1.0f), {1, t, n}), D = tensor({0.0f}, {i}),
               bias = tensor({0.0f}, {i});
  const Tensor y = scan(us, delta, A, B, B, {.D = D, .delta = hole({bias}, [](Expr v, Expr b) { return v + b; })});
  const std::vector<Tensor> grads = grad(y, tensor(g, {1, t, i}), {A, D, bias});
  double dA = 0, dD = 0, ddelta = 0, carry = 0;
  Values h(std::size_t(t + 1));
  const double a = std::exp(-1.0);
  for (std::int64_t k = 0; k < t; ++k) h[std::size_t(k + 1)] = a * h[std::size_t(k)] + double(u[std::size_t(k)]);
  for (std::int64_t k = t - 1; k >= 0; --k) {
    const double gamma = double(g[std::size_t(k)]) + carry;
    dA += gamma * a * h[std::size_t(k)];
    dD += double(g[std::size_t(k)]) * double(u[std::size_t(k)]);
    ddelta += gamma * (double(u[std::size_t(k)]) - a * h[std::size_t(k)]);
    carry = a * gamma;
  }
  // A thread of a GPU adds up to 128 terms before it keeps what they lost: of one channel with one state all of them.
  expect_sums(grads[0], {dA}, {dA}, "A", is_gpu(device()) ? 24 : 8);  // exp(-1) is rounded, in every term
  expect_sums(grads[1], {dD}, {dD}, "D", 16);
  expect_sums(grads[2], {ddelta}, {2 * dA}, "bias", 16);
}

// What blocks of channels have summed, each for its own, is added by a kernel that takes a few at a time.
TEST_P(LongSums, OverManyChannels) {
  const std::int64_t t = 2, i = length(700, 5120), n = 2;
  const std::vector<float> u = terms(t * i, equal), g = terms(t * i, equal, 2);
  const Tensor us = tensor(u, {1, t, i}), A = tensor(std::vector<float>(std::size_t(i * n), -1.0f), {i, n}),
               B = tensor(std::vector<float>(std::size_t(t * n), 1.0f), {1, t, n}), C = like(B, 0.5f);
  const std::vector<Tensor> grads = grad(scan(us, like(us, 1.0f), A, B, C), tensor(g, {1, t, i}), {B, C});
  Values dB(std::size_t(t * n)), dC(std::size_t(t * n));
  const double a = std::exp(-1.0);
  for (std::int64_t c = 0; c < i; ++c) {
    const double u0 = u[std::size_t(c)], u1 = u[std::size_t(i + c)], g0 = g[std::size_t(c)], g1 = g[std::size_t(i + c)];
    for (std::size_t k = 0; k < 2; ++k) {
      dB[k] += 0.5 * (g0 + a * g1) * u0, dB[2 + k] += 0.5 * g1 * u1;
      dC[k] += g0 * u0, dC[2 + k] += g1 * (a * u0 + u1);
    }
  }
  expect_sums(grads[0], dB, dB, "B", 16);  // the channels of a block are added in fp32
  expect_sums(grads[1], dC, dC, "C", 16);
}

TEST_P(LongSums, OfExponentials) {
  const std::int64_t n = length(40'000, 1'000'000);
  const std::vector<float> v = terms(n, equal);
  double total = 0, distance = 0;
  for (const float x : v) total += std::exp(double(x)), distance += double(x);
  const Tensor x = tensor(v, {1, n});
  const double lse = std::log(total), first = double(v[0]);
  EXPECT_NEAR(logsumexp(x).item(), lse, 1e-7 * lse);
  const auto first_of = [](const Tensor& y) { return slice(y, 1, 0, 1).to_host<double>()[0]; };
  EXPECT_NEAR(first_of(softmax(x)), std::exp(first) / total, 4e-7 * std::exp(first) / total);
  EXPECT_NEAR(first_of(log_softmax(x)), first - lse, 2e-7 * lse);
  const Tensor label = Tensor::from(std::vector<std::int64_t>{0}, {1});
  EXPECT_NEAR(cross_entropy(x, label).item(), lse - first, 2e-7 * lse);
  EXPECT_NEAR(cross_entropy(x, label, {.label_smoothing = 0.5}).item(), lse - 0.5 * first - 0.5 * distance / double(n),
              2e-7 * lse);
}

TEST_P(LongSums, OfLossesAndOfANorm) {
  const std::int64_t rows = length(20'000, 1'000'000);
  const std::vector<float> v = terms(rows, equal);
  double loss = 0, squares = 0;
  std::vector<float> logits;
  for (const float x : v) {
    logits.insert(logits.end(), {x, 0.0f});
    loss += std::log1p(std::exp(-double(x)));
    squares += double(x) * double(x);
  }
  const Tensor labels = Tensor::from(std::vector<std::int64_t>(std::size_t(rows), 0), {rows});
  EXPECT_NEAR(cross_entropy(tensor(logits, {rows, 2}), labels).item(), loss / double(rows), 1e-7);
  const Tensor gradients[] = {tensor(v, {rows})};
  EXPECT_NEAR(global_norm(gradients).item(), std::sqrt(squares), 1e-7 * std::sqrt(squares));
}
INSTANTIATE_TEST_SUITE_P(Terms, LongSums, testing::Bool(), [](const auto& p) { return p.param ? "Equal" : "Irregular"; });

TEST(Folds, AreInfiniteWhereATermIs) {
  const double inf = double(kInf), nan = std::numeric_limits<double>::quiet_NaN();
  const auto check = [&](std::int64_t n, std::initializer_list<float> special, double expected) {
    std::vector<float> v = terms(n, false);
    std::copy(special.begin(), special.end(), v.begin() + n / 2);
    const std::string what = fmt::format("{} terms, {} expected", n, expected);
    for (const Tensor& total : {sum(tensor(v, {1, n}), {1}), sum(tensor(v, {n, 1}), {0})}) {
      const double got = total.to_host<double>()[0];
      EXPECT_TRUE(std::isnan(expected) ? std::isnan(got) : got == expected) << what << ": " << got;
    }
  };
  for (const std::int64_t n : {7, 1000, 20'000}) {
    check(n, {kInf}, inf);
    check(n, {-kInf, -kInf}, -inf);
    check(n, {kInf, -kInf}, nan);
    check(n, {float(nan)}, nan);
  }
}

TEST(Folds, OfTheLargestInALongRowOfNegativeNumbers) {
  for (const std::int64_t n : {33, 1000, 20'000}) {
    std::vector<float> v = terms(n, false);
    for (float& x : v) x -= 2;
    const double expected = double(*std::max_element(v.begin(), v.end()));
    EXPECT_EQ(max(tensor(v, {1, n}), {1}).to_host<double>()[0], expected) << n;
    EXPECT_EQ(max(tensor(v, {n, 1}), {0}).to_host<double>()[0], expected) << n;
  }
}

// ---- large logits -----------------------------------------------------------------------------------------------------------

void expect_close(const Tensor& got, const Values& expected, double relative, const std::string& what) {
  const Values values = got.to_host<double>();
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(expected[i]))
      EXPECT_NEAR(values[i], expected[i], relative * std::abs(expected[i])) << what << " at " << i;
    else
      EXPECT_TRUE(std::isnan(expected[i]) ? std::isnan(values[i]) : values[i] == expected[i])
          << what << " at " << i << ": " << values[i] << " for " << expected[i];
  }
}

TEST(LargeLogits, KeepTheDigitsOfTheirDifferences) {
  for (const double offset : {0.0, 1e4, -1e4, 1e6}) {
    SCOPED_TRACE(offset);
    std::vector<float> v;
    Values expected;
    for (const double x : {0.0, 0.5, -2.0, 1.0, -30.0, 0.25}) v.push_back(float(x + offset)), expected.push_back(x);
    double total = 0;
    for (const double x : expected) total += std::exp(x);
    for (double& x : expected) x -= std::log(total);
    Values p = expected, dx;
    for (double& x : p) x = std::exp(x);
    const Tensor x = tensor(v, {1, 6}), label = Tensor::from(std::vector<std::int64_t>{2}, {1});
    expect_close(log_softmax(x), expected, 4e-7, "log_softmax");
    expect_close(softmax(x), p, 2e-6, "softmax");
    for (std::size_t i = 0; i < p.size(); ++i) dx.push_back(p[i] - (i == 2));
    expect_close(grad(cross_entropy(x, label), {x})[0], dx, 2e-6, "gradient of cross_entropy");
    expect_close(grad(sum(logsumexp(x, {-1})), {x})[0], p, 2e-6, "gradient of logsumexp");
    EXPECT_NEAR(cross_entropy(x, label).item(), -expected[2], 4e-7 * -expected[2]);
  }
  const double half = std::log(0.5);
  expect_close(log_softmax(tensor({1e38f, 1e38f}, {1, 2})), {half, half}, 1e-6, "log_softmax of 1e38");
}

TEST(LargeLogits, MayBeInfinite) {
  const double inf = double(kInf), nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = tensor({kInf, 1, -kInf, -kInf, kInf, -kInf, kInf, kInf, float(nan), kInf}, {5, 2});
  expect_close(logsumexp(x, {-1}), {inf, -inf, inf, inf, nan}, 0, "logsumexp");
  expect_close(softmax(x), Values(10, nan), 0, "softmax");
  expect_close(log_softmax(x), Values(10, nan), 0, "log_softmax");
  const Tensor one = Tensor::from(std::vector<std::int64_t>{1, 1, 1, 1, 1}, {5});
  expect_close(cross_entropy(x, one, {.reduction = Reduction::none}), {inf, nan, inf, nan, nan}, 0, "cross_entropy");
}

// ---- bf16: rounded once, at the end -----------------------------------------------------------------------------------------

Tensor half(const std::vector<float>& v, Shape shape) { return cast(tensor(v, shape), DType::bf16); }
double rounded(double x) { return double(float(bf16(float(x)))); }

TEST(Bf16, MeansAreRoundedOnce) {
  EXPECT_EQ(mean(half(std::vector<float>(257, 1.0f), {257})).item(), 1);
  for (const std::int64_t n : {3, 7, 100, 1000}) {
    const std::vector<float> v = half(terms(n, false, int(n)), {n}).to_host<float>();
    double total = 0;
    for (const float x : v) total += double(x);
    EXPECT_EQ(mean(half(v, {n})).item(), rounded(total / double(n))) << n;
    EXPECT_EQ(mean(half(v, {n, 1}), {0}).item(), rounded(total / double(n))) << n;
  }
  const Tensor x = half(std::vector<float>(257, 1.0f), {257});
  EXPECT_EQ(grad(mean(x), {x})[0].to_host<double>()[0], rounded(1.0 / 257));
}

TEST(Bf16, TiesOfAMaximumShareTheGradient) {
  for (const std::int64_t n : {3, 257, 1000}) {
    const Tensor x = half(std::vector<float>(std::size_t(n), 1.0f), {n});
    EXPECT_EQ(grad(max(x), {x})[0].to_host<double>()[0], rounded(1 / double(n))) << n;
  }
}

TEST(Bf16, GradientsOfDistributionsAreRoundedOnce) {
  const std::int64_t n = 600;
  const std::vector<float> v = half(terms(n, false, 1), {n}).to_host<float>(),
                           g = half(terms(n, false, 2), {n}).to_host<float>();
  const Tensor x = half(v, {1, n}), up = half(g, {1, n});
  const auto check = [&](const Tensor& y, const std::function<double(double, double, double)>& gradient, bool log) {
    const std::vector<float> values = y.to_host<float>();
    double dot = 0;
    for (std::size_t i = 0; i < g.size(); ++i) dot += double(g[i]) * (log ? 1 : double(values[i]));
    const Values dx = grad(log ? log_softmax(x) : softmax(x), up, {x})[0].to_host<double>();
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double expected = gradient(double(values[i]), double(g[i]), dot);
      EXPECT_NEAR(dx[i], expected, std::ldexp(1.01, std::ilogb(expected) - 8)) << i;
    }
  };
  check(
      softmax(x), [](double y, double up_y, double dot) { return y * (up_y - dot); }, false);
  check(
      log_softmax(x), [](double y, double up_y, double dot) { return up_y - std::exp(y) * dot; }, true);
}

}  // namespace
}  // namespace weft
