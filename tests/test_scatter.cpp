// scatter_sum against a map in double: repeated, missing and outside places, any shape, the gradient, and the same bits from
// run to run and for any number of threads.
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "jit/parallel.h"
#include "ops/ops.h"
#include "tests/expect_error.h"

namespace weft {
namespace {

using Places = std::vector<std::int64_t>;

std::vector<double> draw(std::size_t n, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> v(n);
  for (double& x : v) x = normal(random);
  return v;
}

// `count` places in [low, high).
Places places_in(std::size_t count, std::int64_t low, std::int64_t high, int seed) {
  std::mt19937 random(seed);
  Places v(count);
  for (auto& p : v) p = low + std::int64_t(random() % std::uint64_t(high - low));
  return v;
}

std::vector<double> sums(const std::vector<double>& values, const Places& places, std::int64_t n) {
  std::map<std::int64_t, double> total;
  for (std::size_t p = 0; p < places.size(); ++p) total[places[p]] += values[p];
  std::vector<double> out;
  for (std::int64_t e = 0; e < n; ++e) out.push_back(total.contains(e) ? total[e] : 0);
  return out;
}

void expect_sums(const std::vector<double>& values, const Places& places, std::int64_t n) {
  const Shape shape{std::int64_t(values.size())};
  const std::vector<double> expected = sums(values, places, n);
  const Tensor at = Tensor::from(places, shape);
  const std::vector<double> wide = scatter_sum(Tensor::from(values, shape), at, n).to_host<double>();
  ASSERT_EQ(wide.size(), std::size_t(n));
  for (std::size_t e = 0; e < wide.size(); ++e) ASSERT_NEAR(wide[e], expected[e], 1e-12) << e;
  const std::vector<float> narrow(values.begin(), values.end());
  const std::vector<float> sum = scatter_sum(Tensor::from(narrow, shape), at, n).to_host<float>();
  for (std::size_t e = 0; e < sum.size(); ++e) ASSERT_NEAR(sum[e], expected[e], 1e-4 * std::max(1.0, std::abs(expected[e])));
}

TEST(Scatter, MatchesAMap) {
  expect_sums(draw(1, 1), {0}, 1);
  expect_sums(draw(7, 2), {4, 0, 4, 2, 2, 4, 0}, 6);
  expect_sums(draw(1000, 3), places_in(1000, 0, 31, 4), 37);      // 31 to 36 are named by nobody
  expect_sums(draw(700, 5), places_in(700, -40, 340, 6), 300);    // two digits of the sort
  expect_sums(draw(5000, 7), places_in(5000, 255, 257, 8), 256);  // outside is the next number
  expect_sums(draw(300, 9), Places(300, 1), 3);                   // one owner adds over many chunks
  expect_sums(draw(300, 10), Places(300, 3), 3);                  // all outside
}

TEST(Scatter, FarOutside) {
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min(), kMost = std::numeric_limits<std::int64_t>::max();
  expect_sums({1, 2, 4, 8, 16, 32, 64, 128}, {kLeast, 0, kMost, -1, 2, 1ll << 32, 0, 3}, 3);
}

TEST(Scatter, Empty) {
  expect_sums({}, {}, 4);
  expect_sums(draw(5, 1), {0, 1, 2, 3, 4}, 0);
  const Tensor x = zeros({0, 2});
  EXPECT_EQ(grad(sum(scatter_sum(x, zeros({0, 2}, DType::i64), 4)), {x})[0].shape(), (Shape{0, 2}));
}

TEST(Scatter, AnyShapeAndView) {
  const std::vector<double> values = draw(12, 1);
  const Places at = places_in(12, -2, 7, 2);
  const Tensor x = Tensor::from(values, {3, 4}), p = Tensor::from(at, {3, 4});
  const std::vector<double> expected = sums(values, at, 5);
  EXPECT_EQ(scatter_sum(x, p, 5).to_host<double>(), expected);
  EXPECT_EQ(scatter_sum(transpose(transpose(x)), p, 5).to_host<double>(), expected);
  std::vector<double> moved;
  Places moved_at;
  for (std::size_t c = 0; c < 4; ++c)
    for (std::size_t r = 0; r < 3; ++r) moved.push_back(values[4 * r + c]), moved_at.push_back(at[4 * r + c]);
  EXPECT_EQ(scatter_sum(transpose(x), transpose(p), 5).to_host<double>(), sums(moved, moved_at, 5));
  // Broadcast values: a histogram.
  const Tensor counts = scatter_sum(expand(ones({1}), {12}), cast(reshape(p, {12}), DType::i32), 5);
  EXPECT_EQ(counts.to_host<float>(), ([&] {
              const std::vector<double> n = sums(std::vector<double>(12, 1), at, 5);
              return std::vector<float>(n.begin(), n.end());
            }()));
}

// Long enough for sums that go on from chunk to chunk.
TEST(Scatter, NarrowAndBroadcastPlaces) {
  const std::vector<double> values = draw(700, 1);
  const Places at = places_in(700, -1, 5, 2);
  const Tensor x = Tensor::from(values, {700});
  const auto expect = [&](const Tensor& places, const Places& same, std::int64_t n) {
    const std::vector<double> found = scatter_sum(x, places, n).to_host<double>(), expected = sums(values, same, n);
    for (std::size_t e = 0; e < found.size(); ++e) EXPECT_NEAR(found[e], expected[e], 1e-11) << e;
  };
  expect(cast(Tensor::from(at, {700}), DType::i32), at, 4);
  expect(expand(Tensor::from(Places{1}, {1}), {700}), Places(700, 1), 3);
}

// dvalues[p] = g[places[p]], 0 outside.
TEST(Scatter, GradientGathers) {
  const Places at{3, -1, 0, 7, 3, 2, 99, 6};
  const std::vector<double> g = draw(7, 3);
  const Tensor x = Tensor::from(draw(8, 4), {2, 4}), p = Tensor::from(at, {2, 4});
  const std::vector<double> found = grad(scatter_sum(x, p, 7), Tensor::from(g, {7}), {x})[0].to_host<double>();
  for (std::size_t i = 0; i < at.size(); ++i) EXPECT_EQ(found[i], at[i] >= 0 && at[i] < 7 ? g[std::size_t(at[i])] : 0) << i;
  const Tensor none = Tensor::from(at, {2, 4});
  EXPECT_EQ(grad(sum(scatter_sum(x, none, 0)), {x})[0].to_host<double>(), std::vector<double>(8));
}

TEST(Scatter, SameBitsForAnyThreadsAndRun) {
  const std::size_t count = 20000;
  const std::vector<double> values = draw(count, 1);
  const Tensor x = Tensor::from(std::vector<float>(values.begin(), values.end()), {std::int64_t(count)});
  const Tensor p = Tensor::from(places_in(count, -5, 3000, 2), {std::int64_t(count)});
  const int before = threads();
  std::vector<float> first;
  for (const int n : {1, 8, 1, 8}) {
    set_threads(n);
    const std::vector<float> sum = run([&] { return scatter_sum(x, p, 2900); }).to_host<float>();
    if (first.empty()) first = sum;
    EXPECT_EQ(sum, first) << n;
  }
  set_threads(before);
}

TEST(Scatter, Mistakes) {
  const Tensor x = zeros({3, 2}), p = zeros({3, 2}, DType::i64);
  expect_error(ErrorKind::usage, {"scatter_sum: places do not fit the values", "(3, 2)", "(3,)", "test_scatter.cpp"},
               [&] { scatter_sum(x, zeros({3}, DType::i64), 4); });
  expect_error(ErrorKind::usage, {"scatter_sum: places must be integers", "f32"}, [&] { scatter_sum(x, x, 4); });
  expect_error(ErrorKind::usage, {"scatter_sum: values is not real", "i64"}, [&] { scatter_sum(p, p, 4); });
  expect_error(ErrorKind::usage, {"scatter_sum: a negative number of sums", "-1"}, [&] { scatter_sum(x, p, -1); });
}

}  // namespace
}  // namespace weft
