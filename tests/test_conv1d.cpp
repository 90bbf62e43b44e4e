// The causal convolution: golden values of an independent implementation and a naive reference with all options.
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "ops/ops.h"
#include "tests/values.h"

namespace weft {
namespace {

void expect_near(const Values& got, const Values& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], expected[i], tolerance * std::max(1.0, std::abs(expected[i]))) << what << " at " << i;
}

TEST(Conv1d, GoldenG3) {
  const Tensor x = Tensor::from(swap_last(gen(8, 2.1), 1, 2, 4), {1, 4, 2}), w = Tensor::from(gen(6, 2.2), {2, 3}),
               bias = Tensor::from(gen(2, 2.3), {2}), g = Tensor::from(swap_last(gen(8, 2.4), 1, 2, 4), {1, 4, 2});
  const Tensor out = conv1d(x, w, bias, {.silu = true});
  const std::vector<Tensor> d = grad(out, g, {x, w, bias});
  const auto rows = [](const Tensor& t) { return swap_last(t.to_host<double>(), 1, 4, 2); };
  expect_near(rows(out), {0.20532393, 0.3329542, 0.60592135, 0.44520583, 0.54674441, 1.28538592, 1.93463748, 2.05065972}, 1e-8,
              "out");
  expect_near(rows(d[0]), {-0.21264927, -0.35973402, -0.05620908, 0.09166877, 2.10113042, 2.28201251, 1.70112673, 0.83923208},
              1e-8, "dx");
  expect_near(d[1].to_host<double>(), {-0.36031659, -0.05632583, 0.40596685, 1.57264393, 2.60674487, 3.40025098}, 1e-8, "dw");
  expect_near(d[2].to_host<double>(), {-0.61987644, -3.74515846}, 1e-8, "db");
}

struct Case {
  std::int64_t b, t, d, w;
  bool silu, bias, initial, last;
};
struct Results {
  Values out, last, dx, dw, db, dinitial;
};
struct Problem {
  Values x, w, bias, initial, g, g_last;
  explicit Problem(const Case& c) {
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    const auto draw = [&](std::int64_t n) {
      Values v(static_cast<std::size_t>(n));
      for (double& e : v) e = normal(random);
      return v;
    };
    x = draw(c.b * c.t * c.d), w = draw(c.d * c.w), bias = draw(c.d), initial = draw(c.b * (c.w - 1) * c.d), g = draw(x.size());
    g_last = draw(initial.size());
  }
};

Results naive(const Case& c, const Problem& p) {
  Results r{Values(p.x.size()), Values(p.initial.size()), Values(p.x.size()),
            Values(p.w.size()), Values(p.bias.size()),    Values(p.initial.size())};
  for (std::int64_t b = 0; b < c.b; ++b)
    for (std::int64_t k = 0; k < c.d; ++k) {
      Values line(c.w - 1 + c.t), d_line(line.size());  // initial, then x
      for (std::int64_t s = 0; s < c.w - 1; ++s) line[s] = c.initial ? p.initial[(b * (c.w - 1) + s) * c.d + k] : 0;
      for (std::int64_t t = 0; t < c.t; ++t) line[c.w - 1 + t] = p.x[(b * c.t + t) * c.d + k];
      for (std::int64_t t = 0; t < c.t; ++t) {
        double pre = c.bias ? p.bias[k] : 0;
        for (std::int64_t j = 0; j < c.w; ++j) pre += p.w[k * c.w + j] * line[t + j];
        const double s = 1 / (1 + std::exp(-pre)), g = p.g[(b * c.t + t) * c.d + k];
        r.out[(b * c.t + t) * c.d + k] = c.silu ? pre * s : pre;
        const double e = c.silu ? g * s * (1 + pre * (1 - s)) : g;
        for (std::int64_t j = 0; j < c.w; ++j) r.dw[k * c.w + j] += e * line[t + j], d_line[t + j] += e * p.w[k * c.w + j];
        r.db[k] += e;
      }
      for (std::int64_t s = 0; s < c.w - 1; ++s) {
        r.last[(b * (c.w - 1) + s) * c.d + k] = line[c.t + s];
        if (c.last) d_line[c.t + s] += p.g_last[(b * (c.w - 1) + s) * c.d + k];
      }
      for (std::int64_t s = 0; s < c.w - 1; ++s) r.dinitial[(b * (c.w - 1) + s) * c.d + k] = d_line[s];
      for (std::int64_t t = 0; t < c.t; ++t) r.dx[(b * c.t + t) * c.d + k] = d_line[c.w - 1 + t];
    }
  return r;
}

template <class S>
Results weft_results(const Case& c, const Problem& p) {
  const auto from = [](const Values& v, Shape s) { return Tensor::from(std::vector<S>(v.begin(), v.end()), s); };
  const Shape rows{c.b, c.t, c.d}, state{c.b, c.w - 1, c.d};
  const Tensor x = from(p.x, rows), w = from(p.w, {c.d, c.w}), bias = from(p.bias, {c.d}), initial = from(p.initial, state);
  Tensor last;
  Conv1dOptions options{.silu = c.silu, .initial = c.initial ? initial : Tensor{}, .last = c.last ? &last : nullptr};
  const Tensor out = conv1d(x, w, c.bias ? bias : Tensor{}, options);
  Tensor loss = sum(out * from(p.g, rows));
  if (c.last) loss = loss + sum(last * from(p.g_last, state));
  const std::vector<Tensor> d = grad(loss, {x, w, bias, initial}, Unused::zeros);
  return {out.to_host<double>(),  c.last ? last.to_host<double>() : Values{},
          d[0].to_host<double>(), d[1].to_host<double>(),
          d[2].to_host<double>(), d[3].to_host<double>()};
}

const Case kCases[] = {{2, 7, 5, 4, true, true, true, true},     {1, 1, 1, 1, true, true, false, false},
                       {2, 300, 3, 4, true, true, true, true},   {1, 129, 300, 3, true, false, false, true},
                       {3, 2, 17, 4, false, true, true, true},   {2, 128, 8, 2, true, true, true, true},
                       {1, 257, 20, 7, true, true, true, true},  {2, 3, 4, 9, false, false, true, true},
                       {1, 1, 33, 4, true, true, true, true},    {0, 4, 3, 4, true, true, true, true},
                       {2, 4, 0, 4, true, true, true, true},     {2, 0, 3, 4, true, true, true, true},
                       {1, 200, 4, 150, true, true, true, true}, {2, 5, 3, 150, true, false, false, false},
                       {2, 5, 6, 1, true, true, true, true}};

void check(const Results& got, const Results& expected, const Case& c, double tolerance) {
  expect_near(got.out, expected.out, tolerance, "out");
  if (c.last) expect_near(got.last, expected.last, tolerance, "last");
  expect_near(got.dx, expected.dx, tolerance, "dx");
  expect_near(got.dw, expected.dw, tolerance, "dw");
  if (c.bias) expect_near(got.db, expected.db, tolerance, "db");
  if (c.initial) expect_near(got.dinitial, expected.dinitial, tolerance, "dinitial");
}

TEST(Conv1d, MatchesNaive) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "b " << c.b << " t " << c.t << " d " << c.d << " w " << c.w);
    const Problem p(c);
    const Results expected = naive(c, p);
    check(weft_results<double>(c, p), expected, c, 1e-11);
    check(weft_results<float>(c, p), expected, c, 1e-4);
  }
}

// One gradient alone, of a loss of one output alone: what nobody wants is not computed.
TEST(Conv1d, OneGradientOfOneOutput) {
  for (const std::int64_t width : {4, 150})
    for (const bool of_last : {false, true}) {
      SCOPED_TRACE(testing::Message() << "width " << width << (of_last ? ", of the last inputs" : ", of the output"));
      const Case c{2, 70, 5, width, true, !of_last, true, of_last};
      Problem p(c);
      if (of_last) std::fill(p.g.begin(), p.g.end(), 0.0);
      const Results expected = naive(c, p);
      const Shape rows{c.b, c.t, c.d}, state{c.b, c.w - 1, c.d};
      const Tensor x = Tensor::from(p.x, rows), w = Tensor::from(p.w, {c.d, c.w}), bias = Tensor::from(p.bias, {c.d}),
                   initial = Tensor::from(p.initial, state);
      const auto gradient = [&](const Tensor& of) {
        Tensor last;
        const Tensor out = conv1d(x, w, c.bias ? bias : Tensor{}, {.silu = true, .initial = initial, .last = &last});
        const Tensor loss = of_last ? sum(last * Tensor::from(p.g_last, state)) : sum(out * Tensor::from(p.g, rows));
        return grad(loss, {of})[0].to_host<double>();
      };
      expect_near(gradient(x), expected.dx, 1e-11, "dx");
      expect_near(gradient(w), expected.dw, 1e-11, "dw");
      expect_near(gradient(initial), expected.dinitial, 1e-11, "dinitial");
      if (c.bias) expect_near(gradient(bias), expected.db, 1e-11, "db");
    }
}

// A slice of a projection, as in a model: the same bits as of a dense copy; causal and independent of the batch.
TEST(Conv1d, StridedInput) {
  const Tensor xz = Tensor::from(gen(2 * 9 * 12, 1), {2, 9, 12}), w = Tensor::from(gen(20, 2), {5, 4});
  const Tensor x = slice(xz, -1, 4, 9), dense = Tensor::from(x.to_host<double>(), x.shape());
  EXPECT_EQ(conv1d(x, w).to_host<double>(), conv1d(dense, w).to_host<double>());
  const Values whole = conv1d(x, w).to_host<double>(), part = conv1d(slice(slice(x, 0, 1, 2), 1, 0, 6), w).to_host<double>();
  EXPECT_EQ(part, Values(whole.begin() + 9 * 5, whole.begin() + 15 * 5));
}

// Short, and so long that runs have steps inside.
TEST(Conv1d, Bf16Storage) {
  for (const Case& c : {Case{2, 20, 6, 4, true, true, false, false}, Case{2, 300, 64, 4, true, true, true, true},
                        Case{1, 300, 40, 4, true, true, false, true}, Case{1, 300, 40, 3, false, true, true, false}}) {
    SCOPED_TRACE(testing::Message() << "t " << c.t << " d " << c.d << " w " << c.w);
    const Problem p(c);
    const Results expected = naive(c, p);
    const Shape rows{c.b, c.t, c.d}, state{c.b, c.w - 1, c.d};
    const Tensor x = cast(Tensor::from(p.x, rows), DType::bf16), w = cast(Tensor::from(p.w, {c.d, c.w}), DType::f32),
                 initial = cast(Tensor::from(p.initial, state), DType::bf16);
    Tensor last;
    const Tensor out = conv1d(x, w, cast(Tensor::from(p.bias, {c.d}), DType::f32),
                              {.silu = c.silu, .initial = c.initial ? initial : Tensor{}, .last = c.last ? &last : nullptr});
    Tensor loss = sum(out * Tensor::from(p.g, rows));
    if (c.last) loss = loss + sum(last * Tensor::from(p.g_last, state));
    const std::vector<Tensor> d = grad(loss, {x, w, initial}, Unused::zeros);
    EXPECT_EQ(out.dtype(), DType::bf16);
    EXPECT_EQ(d[0].dtype(), DType::bf16);
    EXPECT_EQ(d[1].dtype(), DType::f32);
    const auto near = [](const Values& a, const Values& b, double of_sum = 1) {
      for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.03 * of_sum * std::max(2.0, std::abs(b[i])));
    };
    near(out.to_host<double>(), expected.out);
    near(d[0].to_host<double>(), expected.dx);
    near(d[1].to_host<double>(), expected.dw, std::sqrt(double(c.b * c.t) / 40));
    if (c.initial) near(d[2].to_host<double>(), expected.dinitial);
  }
}

// Documents side by side, in runs that have steps inside, are as each alone.
TEST(Conv1d, LongDocuments) {
  constexpr std::int64_t t = 300, d = 40, borders[] = {0, 100, 131, 257, t};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const std::int64_t width : {4, 3}) {
      SCOPED_TRACE(testing::Message() << name_of(dtype) << " w " << width);
      const Case c{1, t, d, width, true, true, false, false};
      const Problem p(c);
      std::vector<std::int64_t> ids;
      for (int k = 0; k < 4; ++k) ids.insert(ids.end(), std::size_t(borders[k + 1] - borders[k]), k);
      const Tensor x = cast(Tensor::from(p.x, {1, t, d}), dtype), w = Tensor::from(p.w, {d, width}),
                   g = cast(Tensor::from(p.g, {1, t, d}), dtype);
      const auto gradients = [&](const Tensor& rows, const Tensor& upstream, const Conv1dOptions& options) {
        const Tensor weight = cast(w, dtype == DType::f64 ? DType::f64 : DType::f32);
        const Tensor out = conv1d(rows, weight, Tensor{}, options);
        std::vector<Tensor> all = grad(out, upstream, {rows, weight});
        all.push_back(out);
        return all;
      };
      const std::vector<Tensor> packed = gradients(x, g, {.silu = true, .segments = Tensor::from(ids, {1, t})});
      Values dx, dw(std::size_t(d * width), 0.0), out;
      for (int k = 0; k < 4; ++k) {
        const auto part = [&](const Tensor& of) {
          return Tensor::from(slice(of, 1, borders[k], borders[k + 1]).to_host<double>(), {1, borders[k + 1] - borders[k], d});
        };
        const std::vector<Tensor> alone = gradients(cast(part(x), dtype), cast(part(g), dtype), {.silu = true});
        for (const double v : alone[0].to_host<double>()) dx.push_back(v);
        for (const double v : alone[2].to_host<double>()) out.push_back(v);
        const Values of_w = alone[1].to_host<double>();
        for (std::size_t i = 0; i < dw.size(); ++i) dw[i] += of_w[i];
      }
      const double near = dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 1e-5 : 1e-2;
      expect_near(packed[2].to_host<double>(), out, near, "out");
      expect_near(packed[0].to_host<double>(), dx, near, "dx");
      expect_near(packed[1].to_host<double>(), dw, dtype == DType::f64 ? 1e-11 : 2e-4, "dw");
    }
}

// A hole that reads another tensor, in runs that have steps inside, for widths that are read in vectors and one by one.
TEST(Conv1d, LongAndGated) {
  for (const std::int64_t d : {5, 40})
    for (const bool ends : {false, true}) {
      SCOPED_TRACE(testing::Message() << "d " << d << (ends ? ", with first and last inputs" : ""));
      const Case c{2, 300, d, 4, false, true, true, true};
      const Problem p(c);
      const Shape rows{c.b, c.t, c.d}, state{c.b, c.w - 1, c.d};
      const auto half = [&](const Values& v, const Shape& shape) { return cast(Tensor::from(v, shape), DType::bf16); };
      const Tensor x = half(p.x, rows), z = half(p.g, rows), initial = half(p.initial, state), g = half(p.x, rows),
                   w = cast(Tensor::from(p.w, {c.d, c.w}), DType::f32), bias = cast(Tensor::from(p.bias, {c.d}), DType::f32);
      const auto gradients = [&](const auto& gated) {
        Tensor last;
        Tensor loss = sum(cast(gated(ends ? &last : nullptr) * g, DType::f32));
        if (ends) loss = loss + sum(cast(last * initial, DType::f32));
        return grad(loss, {x, w, bias, z, initial}, Unused::zeros);
      };
      const std::vector<Tensor> fused = gradients([&](Tensor* last) {
        return conv1d(x, w, bias, {.out = gate(z), .initial = ends ? initial : Tensor{}, .last = last});
      });
      const std::vector<Tensor> plain = gradients(
          [&](Tensor* last) { return conv1d(x, w, bias, {.initial = ends ? initial : Tensor{}, .last = last}) * silu(z); });
      for (std::size_t i = 0; i < fused.size(); ++i) {
        const Values a = fused[i].to_host<double>(), b = plain[i].to_host<double>();
        double largest = 1;
        for (const double v : b) largest = std::max(largest, std::abs(v));
        for (std::size_t k = 0; k < b.size(); ++k) ASSERT_NEAR(a[k], b[k], 0.03 * largest) << i << " at " << k;
      }
    }
}

TEST(Conv1d, Errors) {
  EXPECT_THROW(conv1d(zeros({2, 5}), zeros({5, 4})), Error);
  EXPECT_THROW(conv1d(zeros({2, 5, 3}), zeros({4, 4})), Error);
  EXPECT_THROW(conv1d(zeros({2, 5, 3}), zeros({3, 4}), zeros({4})), Error);
  EXPECT_THROW(conv1d(zeros({2, 5, 3}), zeros({3, 4}), Tensor{}, {.initial = zeros({2, 4, 3})}), Error);
}

}  // namespace
}  // namespace weft
