// Norms, cross-entropy and embedding against naive references: statistics and gradients in every dtype, ignored labels,
// label smoothing, extreme logits, bad labels, repeated ids, and the same bits for any number of threads.
#include <cmath>
#include <limits>
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

using Values = std::vector<double>;

Values draw(std::int64_t n, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Values v(static_cast<std::size_t>(n));
  for (double& x : v) x = normal(random);
  return v;
}

void expect_near(const Values& got, const Values& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], expected[i], tolerance * std::max(1.0, std::abs(expected[i]))) << what << " at " << i;
}

template <class S>
Tensor from(const Values& v, Shape s) {
  return Tensor::from(std::vector<S>(v.begin(), v.end()), s);
}

struct Norm {
  Values y, dx, dw, db;
};

// x rsqrt(mean(x^2) + eps) w + b and its gradient; centered: the layer norm, of x - mean(x).
Norm naive_norm(const Values& x, const Values& w, const Values& b, const Values& dy, bool centered, double eps) {
  const std::size_t n = w.size();
  Norm r{Values(x.size()), Values(x.size()), Values(n), Values(n)};
  for (std::size_t row = 0; row * n < x.size(); ++row) {
    const double* v = x.data() + row * n;
    double mean = 0, square = 0, g_mean = 0, g_dot = 0;
    for (std::size_t j = 0; j < n; ++j) mean += centered ? v[j] / double(n) : 0;
    for (std::size_t j = 0; j < n; ++j) square += (v[j] - mean) * (v[j] - mean) / double(n);
    const double s = 1 / std::sqrt(square + eps);
    for (std::size_t j = 0; j < n; ++j) {
      const double xh = (v[j] - mean) * s, g = dy[row * n + j] * w[j];
      r.y[row * n + j] = xh * w[j] + b[j];
      r.dw[j] += dy[row * n + j] * xh;
      r.db[j] += dy[row * n + j];
      g_mean += centered ? g / double(n) : 0;
      g_dot += g * xh / double(n);
    }
    for (std::size_t j = 0; j < n; ++j) r.dx[row * n + j] = s * (dy[row * n + j] * w[j] - g_mean - (v[j] - mean) * s * g_dot);
  }
  return r;
}

template <class S>
void check_norms(double tolerance) {
  for (const auto& [rows, n] : std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {3, 5}, {700, 96}, {40, 1023}})
    for (const bool centered : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << n << (centered ? " centered" : ""));
      const Values x = draw(rows * n, 1), w = draw(n, 2), b = centered ? draw(n, 3) : Values(std::size_t(n)),
                   dy = draw(rows * n, 4);
      const Norm expected = naive_norm(x, w, b, dy, centered, 0.01);
      const Tensor tx = from<S>(x, {rows, n}), tw = from<S>(w, {n}), tb = from<S>(b, {n});
      const Tensor y = centered ? layer_norm(tx, tw, tb, 0.01) : rms_norm(tx, tw, 0.01);
      const std::vector<Tensor> d = grad(y, from<S>(dy, {rows, n}), {tx, tw, tb}, Unused::zeros);
      expect_near(y.to_host<double>(), expected.y, tolerance, "y");
      expect_near(d[0].to_host<double>(), expected.dx, tolerance, "dx");
      expect_near(d[1].to_host<double>(), expected.dw, tolerance, "dw");
      if (centered) expect_near(d[2].to_host<double>(), expected.db, tolerance, "db");
    }
}
TEST(Norm, MatchesNaiveF64) { check_norms<double>(1e-11); }
TEST(Norm, MatchesNaiveF32) { check_norms<float>(1e-4); }

TEST(Norm, EpsIsNotNegative) {
  const Tensor x = ones({2, 4});
  for (const double eps : {std::nan(""), -1e-5, double(INFINITY)}) {
    expect_error(ErrorKind::usage, {"rms_norm: eps is", "at test_norm_ce.cpp:"}, [&] { rms_norm(x, Tensor{}, eps); });
    expect_error(ErrorKind::usage, {"layer_norm: eps is", "at test_norm_ce.cpp:"},
                 [&] { layer_norm(x, Tensor{}, Tensor{}, eps); });
  }
}

TEST(Norm, WithoutWeight) {
  const Values x = draw(60, 1), dy = draw(60, 2), one(12, 1.0), none(12, 0.0);
  const Norm expected = naive_norm(x, one, none, dy, true, 1e-5);
  const Tensor t = from<double>(x, {5, 12}), y = layer_norm(t, Tensor{}, Tensor{});
  const Tensor d = grad(y, from<double>(dy, {5, 12}), {t})[0];
  expect_near(y.to_host<double>(), expected.y, 1e-12, "y");
  expect_near(d.to_host<double>(), expected.dx, 1e-12, "dx");
}

TEST(Norm, Bf16AndSlices) {
  const Values x = draw(4 * 40, 1), w = draw(20, 2);
  const Tensor wide = from<float>(x, {4, 40}), weight = from<float>(w, {20}), part = slice(wide, -1, 7, 27);
  const Tensor dense = Tensor::from(part.to_host<float>(), {4, 20});
  EXPECT_EQ(rms_norm(part, weight).to_host<double>(), rms_norm(dense, weight).to_host<double>());
  const Tensor half = rms_norm(cast(dense, DType::bf16), weight);
  EXPECT_EQ(half.dtype(), DType::bf16);
  expect_near(half.to_host<double>(), rms_norm(dense, weight).to_host<double>(), 2e-2, "bf16");
}

TEST(Norm, SameBitsForAnyThreads) {
  const int before = threads();
  const Tensor x = from<float>(draw(3000 * 64, 1), {3000, 64}), w = from<float>(draw(64, 2), {64});
  std::vector<std::vector<double>> results;
  for (int count : {1, 2, 3}) {
    set_threads(count);
    const Tensor y = layer_norm(x, w, w);
    results.push_back(grad(sum(y * y * y), {w})[0].to_host<double>());
  }
  set_threads(before);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

// ---- cross-entropy ----------------------------------------------------------------------------------------------------------

struct Loss {
  double total = 0;
  Values rows, d;
};

Loss naive_loss(const Values& logits, const std::vector<std::int64_t>& labels, std::int64_t v, std::int64_t ignore, double e,
                Reduction reduction, const Values& upstream) {
  Loss r{0, Values(labels.size()), Values(logits.size())};
  std::int64_t valid = 0;
  for (std::int64_t label : labels) valid += label != ignore;
  const double scale = reduction != Reduction::mean ? 1 : valid ? 1 / double(valid) : 0;
  for (std::size_t row = 0; row < labels.size(); ++row) {
    if (labels[row] == ignore) continue;
    const double* x = logits.data() + row * std::size_t(v);
    double top = x[0], sum = 0;
    for (std::int64_t j = 0; j < v; ++j) top = std::max(top, x[j]);
    for (std::int64_t j = 0; j < v; ++j) sum += std::exp(x[j] - top);
    for (std::int64_t j = 0; j < v; ++j) {
      const double target = (j == labels[row] ? 1 - e : 0) + e / double(v), log_p = x[j] - top - std::log(sum);
      if (target != 0) r.rows[row] -= target * log_p;
      r.d[row * std::size_t(v) + std::size_t(j)] =
          (std::exp(log_p) - target) * (reduction == Reduction::none ? upstream[row] : scale * upstream[0]);
    }
    r.total += scale * r.rows[row];
  }
  return r;
}

template <class S>
void check_loss(double tolerance) {
  for (const std::int64_t v : {1, 7, 300, 5000})
    for (const double e : {0.0, 0.2})
      for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
        SCOPED_TRACE(testing::Message() << "vocabulary " << v << " smoothing " << e << " reduction " << int(reduction));
        const Values logits = draw(6 * v, 1), upstream = reduction == Reduction::none ? draw(6, 2) : Values{1.7};
        const std::vector<std::int64_t> labels = {0, v - 1, -5, v / 2, -5, v / 3};
        const Loss expected = naive_loss(logits, labels, v, -5, e, reduction, upstream);
        const Tensor x = from<S>(logits, {2, 3, v});
        const Tensor loss =
            cross_entropy(x, Tensor::from(labels, {2, 3}), {.ignore_index = -5, .label_smoothing = e, .reduction = reduction});
        const Tensor d = grad(loss, from<S>(upstream, loss.shape()), {x})[0];
        expect_near(loss.to_host<double>(), reduction == Reduction::none ? expected.rows : Values{expected.total}, tolerance,
                    "loss");
        expect_near(d.to_host<double>(), expected.d, tolerance, "gradient");
      }
}
TEST(CrossEntropy, MatchesNaiveF64) { check_loss<double>(1e-12); }
TEST(CrossEntropy, MatchesNaiveF32) { check_loss<float>(3e-5); }

TEST(CrossEntropy, NoValidLabel) {
  const Tensor x = from<float>(draw(12, 1), {3, 4}), labels = Tensor::from(std::vector<std::int32_t>(3, -100), {3});
  const Tensor loss = cross_entropy(x, labels), d = grad(loss, {x})[0];
  EXPECT_EQ(loss.item(), 0);
  EXPECT_EQ(d.to_host<double>(), Values(12));
}

TEST(CrossEntropy, MaskedAndHugeLogits) {  // a masked column has probability 0; large values do not overflow
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor x = from<float>({1e4, -inf, 1e4 - 1, -inf, 3e38, -3e38}, {2, 3});
  const Tensor loss = cross_entropy(x, Tensor::from(std::vector<std::int64_t>{2, 1}, {2}), {.reduction = Reduction::none});
  const Tensor d = grad(loss, from<float>({1, 1}, {2}), {x})[0];
  const double p = 1 / (1 + std::exp(-1.0));
  expect_near(loss.to_host<double>(), {1 + std::log1p(std::exp(-1.0)), 0}, 1e-5, "loss");
  expect_near(d.to_host<double>(), {p, 0, -p, 0, 0, 0}, 1e-3, "gradient");  // the spacing of fp32 at 1e4
}

// Label smoothing adds differences of logits, which keep their digits however large the logits are.
TEST(CrossEntropy, SmoothingOfLargeLogits) {
  const std::int64_t rows = 3, v = 40;
  Values x = draw(rows * v, 3);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < v; ++j) x[std::size_t(r * v + j)] = float(x[std::size_t(r * v + j)] + 4096.0 * double(r + 1));
  Values want;
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = 0, mean = 0;
    for (std::int64_t j = 0; j < v; ++j) {
      const double d = x[std::size_t(r * v + j)] - x[std::size_t(r * v)];
      sum += std::exp(d), mean += d / double(v);
    }
    const double label = x[std::size_t(r * v + r)] - x[std::size_t(r * v)];
    want.push_back(std::log(sum) - 0.5 * label - 0.5 * mean);
  }
  const Tensor loss = cross_entropy(from<float>(x, {rows, v}), Tensor::from(std::vector<std::int64_t>{0, 1, 2}, {rows}),
                                    {.label_smoothing = 0.5, .reduction = Reduction::none});
  expect_near(loss.to_host<double>(), want, 2e-6, "loss");
}

TEST(CrossEntropy, MeanOfManyRows) {
  const std::int64_t rows = 2500, v = 3;
  const Values x = draw(rows * v, 9);
  std::vector<std::int64_t> labels(rows);
  double sum = 0, n = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    labels[std::size_t(r)] = r % 7 == 0 ? -100 : r % v;
    if (labels[std::size_t(r)] < 0) continue;
    double total = 0;
    for (std::int64_t j = 0; j < v; ++j) total += std::exp(x[std::size_t(r * v + j)]);
    sum += std::log(total) - x[std::size_t(r * v + r % v)], n += 1;
  }
  EXPECT_NEAR(cross_entropy(from<double>(x, {rows, v}), Tensor::from(labels, {rows})).item(), sum / n, 1e-12);
}

TEST(CrossEntropy, Prologue) {  // an expression of the logits, and logits that are a slice
  const Tensor x = from<double>(draw(5 * 9, 1), {5, 9}), labels = Tensor::from(std::vector<std::int64_t>{0, 1, 2, 3, 4}, {5});
  const Tensor scaled = x * 3.3, copy = Tensor::from(scaled.to_host<double>(), {5, 9});
  EXPECT_EQ(cross_entropy(x * 3.3, labels).item(), cross_entropy(copy, labels).item());
  const Tensor part = slice(x, -1, 2, 8), dense = Tensor::from(part.to_host<double>(), {5, 6});
  EXPECT_EQ(cross_entropy(part, labels).item(), cross_entropy(dense, labels).item());
}

TEST(Norm, AnEpsThatIsNoSmallNumberIsAnError) {
  const Tensor x = ones({2, 4});
  for (const double eps : {-1e-5, std::nan(""), double(INFINITY)}) {
    expect_error(ErrorKind::usage, {"rms_norm: eps is", "at test_norm_ce.cpp:"}, [&] { rms_norm(x, Tensor{}, eps); });
    expect_error(ErrorKind::usage, {"layer_norm: eps"}, [&] { layer_norm(x, Tensor{}, Tensor{}, eps); });
  }
  rms_norm(x, Tensor{}, 0);
}

TEST(CrossEntropy, BadLabels) {
  for (const int bad : {5, 7, -1}) {
    const Tensor x = zeros({2, 3, 5});
    const Tensor labels = Tensor::from(std::vector<std::int64_t>{0, 1, 2, 3, bad, 4}, {2, 3});
    try {
      cross_entropy(x, labels).item();
      FAIL();
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      const std::string place = is_gpu(device()) ? "at element 4" : "at position (1, 1)";
      EXPECT_NE(text.find("label " + std::to_string(bad) + " " + place), std::string::npos) << text;
      EXPECT_NE(text.find("vocabulary 5"), std::string::npos) << text;
    }
  }
  EXPECT_THROW(cross_entropy(zeros({2, 3, 5}), zeros({2, 3})), Error);
  EXPECT_THROW(cross_entropy(zeros({2, 3, 5}), zeros({2, 4}, DType::i64)), Error);
}

// ---- embedding --------------------------------------------------------------------------------------------------------------

TEST(Embedding, RepeatedIds) {
  const std::int64_t v = 50, d = 7, n = 400;
  const Values table = draw(v * d, 1), g = draw(n * d, 2);
  std::mt19937 random(5);
  std::vector<std::int64_t> ids(n);
  for (auto& id : ids) id = std::int64_t(random() % 30);  // ids of 30 and more do not occur
  Values y(g.size()), dw(table.size());
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < d; ++j) {
      y[std::size_t(i * d + j)] = table[std::size_t(ids[std::size_t(i)] * d + j)];
      dw[std::size_t(ids[std::size_t(i)] * d + j)] += g[std::size_t(i * d + j)];
    }
  const Tensor w = from<double>(table, {v, d}), out = embedding(w, Tensor::from(ids, {20, 20}));
  const Tensor gradient = grad(out, from<double>(g, {20, 20, d}), {w})[0];
  EXPECT_EQ(out.to_host<double>(), y);
  const std::vector<double> found = gradient.to_host<double>();
  for (std::size_t i = 0; i < dw.size(); ++i) EXPECT_NEAR(found[i], dw[i], 1e-14 * 400) << i;
}

TEST(Embedding, BadIds) {
  const Tensor w = zeros({10, 4});
  try {
    embedding(w, Tensor::from(std::vector<std::int32_t>{1, 2, 3, 12}, {2, 2})).to_host<float>();
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(text.find(is_gpu(device()) ? "id 12 at element 3" : "id 12 at position (1, 1)"), std::string::npos) << text;
    EXPECT_NE(text.find("vocabulary 10"), std::string::npos) << text;
  }
  EXPECT_THROW(embedding(zeros({10, 4}), zeros({3})), Error);
}

// A step that wants the gradient alone finds wrong ids too, and writes nothing outside its table: at once, and when it is
// replayed, where a GPU knows the error only at the end.
TEST(Embedding, BadIdsOfAGradient) {
  const Tensor w = zeros({10, 4});
  const auto gradient = [&](std::int64_t id) {
    const Tensor ids = Tensor::from(std::vector<std::int64_t>{1, id, 3, id}, {4});
    return run([&] { return grad(embedding(w, ids), ones({4, 4}), {w})[0]; }).to_host<float>();
  };
  for (const bool replayed : {false, true})
    for (const std::int64_t bad : {10, -1}) {
      if (replayed) gradient(2), gradient(2);
      try {
        gradient(bad);
        FAIL();
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::usage) << error.what();
      }
    }
}

}  // namespace
}  // namespace weft
