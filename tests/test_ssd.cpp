// The scan of Mamba-2: golden values of an independent implementation, the recurrence step by step for every length of chunks,
// edge shapes, large decays, holes, errors; and the gated norm that follows it.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/plan.h"
#include "autograd/run.h"
#include "jit/parallel.h"
#include "ops/ops.h"
#include "tests/expect_error.h"
#include "tests/values.h"

namespace weft {
namespace {

void expect_close(const Values& got, const Values& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double scale = 1;
  for (double e : expected) scale = std::max(scale, std::abs(e));
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance * scale) << what << " at " << i;
}

TEST(Ssd, GoldenG2) {
  const auto from = [](const Values& v, Shape s) { return Tensor::from(v, s); };
  Values a = gen(2, 1.3), step = gen(10, 1.2);
  for (double& v : a) v = -std::exp(v);
  for (double& v : step) v = 0.5 + 0.4 * v;
  for (const std::int64_t chunk : {1, 2, 3, 64, -64}) {
    SCOPED_TRACE(chunk);
    const Tensor x = from(gen(20, 1.1), {1, 5, 2, 2}), dt = from(step, {1, 5, 2}), A = from(a, {2}),
                 B = from(gen(10, 1.4), {1, 5, 1, 2}), C = from(gen(10, 1.5), {1, 5, 1, 2}), D = from(gen(2, 1.6), {2}),
                 g = from(gen(20, 1.7), {1, 5, 2, 2});
    Tensor last;
    const Tensor y = ssd(x, dt, A, B, C, {.D = D, .last = &last, .chunk = std::abs(chunk), .plain = chunk < 0});
    const std::vector<Tensor> d = grad(y, g, {x, dt, A, B, C, D});
    const auto host = [](const Tensor& t) { return t.to_host<double>(); };
    const double tol = 1e-8;
    expect_close(host(y), {2.3469923,   2.27400271,  1.69583701,  1.12524914,  0.29292304, -0.14786156, -0.4103668,
                           -0.69841475, -1.05163606, -1.07128497, -0.73877815, -0.5264052, -0.64809724, -0.15290748,
                           0.22900851,  0.61547892,  0.76041581,  1.00112677,  0.8648633,  0.84525319},
                 tol, "y");
    expect_close(host(last),
                 {-0.00489401, 0.07742991, -0.08278936, -0.00181623, -0.13184715, -0.04828476, -0.17901661, -0.10616095}, tol,
                 "S_T");
    expect_close(host(d[0]), {2.04030238,  1.46391453,  0.51767551,  -0.26735016, -0.49823129, -0.88690939, -1.0102196,
                              -1.10004324, -0.88115881, -0.65575342, -0.22209214, 0.05285009,  0.59750686,  1.00503232,
                              0.91447808,  0.9961597,   1.1041771,   0.97480665,  0.58404269,  0.2911008},
                 tol, "dx");
    expect_close(host(d[1]),
                 {2.29227191, 0.11462337, 0.25762415, 1.29635347, -0.06111039, -0.79751438, 0.3617474, 2.42081697, 4.07099943,
                  1.50599395},
                 tol, "ddt");
    expect_close(host(d[2]), {-0.19866723, -0.14928467}, tol, "dA");
    expect_close(host(d[3]),
                 {1.2494838, 1.11398243, 0.69264782, 0.37680372, 0.75958329, 0.41389332, -0.08951535, -0.11147229, -0.27859182,
                  -0.24783534},
                 tol, "dB");
    expect_close(host(d[4]),
                 {1.52560228, 1.31098668, 0.21443705, -0.03950091, -0.13832784, -0.54946577, -0.10440721, 0.13818578,
                  -0.21879753, 0.01033771},
                 tol, "dC");
    expect_close(host(d[5]), {4.89989659, 3.86647164}, tol, "dD");
  }
}

// ---- the recurrence ---------------------------------------------------------------------------------------------------------

struct Case {
  std::int64_t b, t, h, p, g, n;
};

// Everything the op computes, with gradients of the loss sum(w y) + sum(ws S_T).
struct Results {
  Values y, last, dx, ddt, dA, dB, dC, dD, dbias, dz, d_initial;
};

struct Problem {
  Case c;
  Values x, dt, A, B, C, D, bias, z, initial, w, ws;
  explicit Problem(const Case& k) : c(k) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    const auto draw = [&](std::int64_t n) {
      Values v(static_cast<std::size_t>(n));
      for (double& e : v) e = normal(random);
      return v;
    };
    const std::int64_t rows = c.b * c.t;
    x = draw(rows * c.h * c.p), dt = draw(rows * c.h), A = draw(c.h), B = draw(rows * c.g * c.n), C = draw(rows * c.g * c.n);
    D = draw(c.h), bias = draw(c.h), z = draw(rows * c.h * c.p), initial = draw(c.b * c.h * c.p * c.n);
    w = draw(rows * c.h * c.p), ws = draw(c.b * c.h * c.p * c.n);
    for (double& a : A) a = -std::exp(0.5 * a);
  }
};

double sigmoid_of(double v) { return 1 / (1 + std::exp(-v)); }

// Step by step, everything materialised: softplus(dt + bias), D, the gate, the initial state.
Results naive(const Problem& k) {
  const Case& c = k.c;
  const std::int64_t T = c.t, H = c.h, P = c.p, N = c.n;
  Results r;
  r.y.resize(k.x.size()), r.dx.resize(k.x.size()), r.dz.resize(k.x.size()), r.ddt.resize(k.dt.size());
  r.dA.resize(k.A.size()), r.dD.resize(k.A.size()), r.dbias.resize(k.A.size());
  r.dB.resize(k.B.size()), r.dC.resize(k.B.size()), r.last.resize(k.initial.size()), r.d_initial.resize(k.initial.size());
  for (std::int64_t b = 0; b < c.b; ++b)
    for (std::int64_t h = 0; h < H; ++h) {
      const std::int64_t group = h / (H / c.g), state = (b * H + h) * P * N;
      const auto of_step = [&](std::int64_t t) { return (b * T + t) * H + h; };
      const auto bc = [&](std::int64_t t, std::int64_t n) { return ((b * T + t) * c.g + group) * N + n; };
      Values s((T + 1) * P * N), dt(T), ds(P * N);
      std::copy_n(k.initial.begin() + state, P * N, s.begin());
      for (std::int64_t t = 0; t < T; ++t) {
        dt[t] = std::log1p(std::exp(k.dt[of_step(t)] + k.bias[h]));
        for (std::int64_t p = 0; p < P; ++p) {
          const std::int64_t at = of_step(t) * P + p;
          double sum = k.D[h] * k.x[at];
          for (std::int64_t n = 0; n < N; ++n) {
            double& next = s[((t + 1) * P + p) * N + n];
            next = std::exp(dt[t] * k.A[h]) * s[(t * P + p) * N + n] + dt[t] * k.x[at] * k.B[bc(t, n)];
            sum += next * k.C[bc(t, n)];
          }
          const double q = sigmoid_of(k.z[at]);
          r.y[at] = sum * k.z[at] * q;
          r.dz[at] = k.w[at] * sum * q * (1 + k.z[at] * (1 - q));
        }
      }
      std::copy_n(s.begin() + T * P * N, P * N, r.last.begin() + state);
      std::copy_n(k.ws.begin() + state, P * N, ds.begin());
      for (std::int64_t t = T - 1; t >= 0; --t) {
        const double decay = std::exp(dt[t] * k.A[h]);
        double d_decay = 0, d_step = 0;
        for (std::int64_t p = 0; p < P; ++p) {
          const std::int64_t at = of_step(t) * P + p;
          const double e = k.w[at] * k.z[at] * sigmoid_of(k.z[at]);
          double d_fed = 0;
          for (std::int64_t n = 0; n < N; ++n) {
            double& d = ds[p * N + n];
            r.dC[bc(t, n)] += e * s[((t + 1) * P + p) * N + n];
            d += e * k.C[bc(t, n)];
            d_fed += d * k.B[bc(t, n)];
            r.dB[bc(t, n)] += d * dt[t] * k.x[at];
            d_decay += d * s[(t * P + p) * N + n];
            d *= decay;
          }
          r.dx[at] = d_fed * dt[t] + k.D[h] * e;
          r.dD[h] += e * k.x[at];
          d_step += d_fed * k.x[at];
        }
        r.dA[h] += d_decay * decay * dt[t];
        r.ddt[of_step(t)] = (d_step + d_decay * decay * k.A[h]) * sigmoid_of(k.dt[of_step(t)] + k.bias[h]);
        r.dbias[h] += r.ddt[of_step(t)];
      }
      std::copy_n(ds.begin(), P * N, r.d_initial.begin() + state);
    }
  return r;
}

template <class S>
Results weft_results(const Problem& k, std::int64_t chunk, bool plain = false) {
  const Case& c = k.c;
  const auto from = [](const Values& v, Shape s) { return Tensor::from(std::vector<S>(v.begin(), v.end()), s); };
  const Shape rows{c.b, c.t, c.h, c.p}, bc{c.b, c.t, c.g, c.n}, state{c.b, c.h, c.p, c.n};
  const Tensor x = from(k.x, rows), dt = from(k.dt, {c.b, c.t, c.h}), A = from(k.A, {c.h}), B = from(k.B, bc),
               C = from(k.C, bc), D = from(k.D, {c.h}), bias = from(k.bias, {c.h}), z = from(k.z, rows),
               initial = from(k.initial, state), w = from(k.w, rows), ws = from(k.ws, state);
  Tensor last;
  const Tensor y = ssd(
      x, dt, A, B, C,
      {.D = D, .dt = softplus_bias(bias), .out = gate(z), .initial = initial, .last = &last, .chunk = chunk, .plain = plain});
  const std::vector<Tensor> d = grad(sum(y * w) + sum(last * ws), {x, dt, A, B, C, D, bias, z, initial}, Unused::zeros);
  const auto host = [](const Tensor& t) { return t.to_host<double>(); };
  return {host(y),    host(last), host(d[0]), host(d[1]), host(d[2]), host(d[3]),
          host(d[4]), host(d[5]), host(d[6]), host(d[7]), host(d[8])};
}

void compare(const Results& got, const Results& expected, double tolerance) {
  expect_close(got.y, expected.y, tolerance, "y");
  expect_close(got.last, expected.last, tolerance, "last");
  expect_close(got.dx, expected.dx, tolerance, "dx");
  expect_close(got.ddt, expected.ddt, tolerance, "ddt");
  expect_close(got.dA, expected.dA, tolerance, "dA");
  expect_close(got.dB, expected.dB, tolerance, "dB");
  expect_close(got.dC, expected.dC, tolerance, "dC");
  expect_close(got.dD, expected.dD, tolerance, "dD");
  expect_close(got.dbias, expected.dbias, tolerance, "dbias");
  expect_close(got.dz, expected.dz, tolerance, "dz");
  expect_close(got.d_initial, expected.d_initial, tolerance, "d_initial");
}

// The last has several heads in a part of the CPU's work, not all of the same number.
const Case kCases[] = {{2, 37, 4, 3, 2, 5},  {1, 1, 2, 4, 1, 8},  {1, 70, 3, 8, 3, 16},
                       {1, 300, 2, 2, 1, 3}, {2, 16, 2, 1, 1, 1}, {7, 21, 10, 2, 2, 2}};

TEST(Ssd, EqualsTheRecurrenceWhateverTheChunk) {
  for (const Case& c : kCases) {
    if (device() == Device::emu && c.t > 20) continue;  // which takes minutes
    const Problem k(c);
    const Results expected = naive(k);
    for (const std::int64_t chunk : {1, 2, 16, 64, 256}) {
      SCOPED_TRACE(testing::Message() << "t " << c.t << ", p " << c.p << ", chunk " << chunk);
      for (const bool plain : {false, true}) {
        if (plain && device() != Device::cpu) continue;  // which is no other one there
        compare(weft_results<double>(k, chunk, plain), expected, 1e-11);
        compare(weft_results<float>(k, chunk, plain), expected, 2e-5);
      }
    }
  }
}

TEST(Ssd, EqualBitsForAnyNumberOfThreads) {
  const Problem k({3, 90, 6, 8, 2, 16});
  const int before = threads();
  std::vector<Results> all;
  for (const int n : {1, 2, 3}) {
    set_threads(n);
    all.push_back(weft_results<float>(k, 16));
  }
  set_threads(before);
  for (const Results& r : all) compare(r, all[0], 0);
}

// A plan for a GPU has none of the CPU's loops, wherever it is recorded.
TEST(Ssd, APlanForAGpuHasNoLoops) {
  const auto has = [](const char* name, const Target& target, DType dtype) {
    const auto plan = plan_for(target, [dtype] {
      const auto of = [dtype](Shape shape) { return zeros(shape, dtype); };
      return ssd(of({1, 4, 2, 8}), of({1, 4, 2}), zeros({2}), of({1, 4, 1, 8}), of({1, 4, 1, 8}));
    });
    return std::any_of(plan->kernels.begin(), plan->kernels.end(),
                       [name](const PlannedKernel& k) { return k.record.name == name; });
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    EXPECT_TRUE(has("ssd_forward", Target{}, dtype));
    EXPECT_FALSE(has("ssd_forward", target_for("sm_90a"), dtype));
  }
}

TEST(Ssd, ASkipForEachFeature) {
  const std::int64_t t = 9, h = 3, p = 4;
  const Tensor x = Tensor::from(gen(std::size_t(t * h * p), 1), {1, t, h, p}), dt = zeros({1, t, h}, DType::f64),
               A = Tensor::from(Values{-1, -1, -1}, {h}), B = zeros({1, t, 1, 2}, DType::f64),
               D = Tensor::from(gen(std::size_t(h * p), 2), {h, p}),
               w = Tensor::from(gen(std::size_t(t * h * p), 3), x.shape());
  const Tensor y = ssd(x, dt, A, B, B, {.D = D});  // nothing but D x
  const std::vector<Tensor> d = grad(sum(y * w), {x, D});
  expect_close(y.to_host<double>(), (x * D).to_host<double>(), 1e-15, "y");
  expect_close(d[0].to_host<double>(), (w * D).to_host<double>(), 1e-15, "dx");
  expect_close(d[1].to_host<double>(), sum(w * x, {0, 1}).to_host<double>(), 1e-14, "dD");
}

TEST(Ssd, NoTimeNoBatchNoHeads) {
  for (const Case& c : {Case{2, 0, 4, 3, 2, 5}, Case{0, 5, 2, 3, 1, 2}, Case{2, 5, 0, 3, 1, 2}}) {
    const Problem k(c);
    for (const bool plain : {false, true}) compare(weft_results<double>(k, 4, plain), naive(k), 1e-12);  // the state passes
  }
}

// A step that decays everything before it leaves the decays of the steps after it as they are.
TEST(Ssd, DecaysAfterALargeOneAreExact) {
  const std::int64_t t = 24;
  std::vector<float> steps(std::size_t(t), 0.25f);
  steps[10] = 1e8f;
  const auto line = [&](float v, Shape s) { return Tensor::from(std::vector<float>(std::size_t(s.numel()), v), s); };
  std::vector<Values> all;
  Values slopes;
  for (const std::int64_t chunk : {1, 5, 24, -5}) {
    const Tensor dt = Tensor::from(steps, {1, t, 1}), A = line(-0.5f, {1});
    const Tensor y = ssd(line(1, {1, t, 1, 1}), dt, A, line(1, {1, t, 1, 1}), line(1, {1, t, 1, 1}),
                         {.chunk = std::abs(chunk), .plain = chunk < 0});
    // What follows the large step reads its input alone, whose decay has no part in it.
    const std::vector<Tensor> d = grad(sum(slice(y, 1, 0, 10)) + sum(slice(y, 1, 11, t)) * 1e-8, {A});
    slopes.push_back(d[0].item());
    all.push_back(y.to_host<double>());
  }
  double s = 0, by_A = 0, slope = 0;
  for (std::int64_t k = 0; k < t; ++k) {
    const double step = double(steps[std::size_t(k)]), decay = std::exp(-0.5 * step);
    by_A = decay * by_A + decay * step * s;
    s = decay * s + step;
    if (k != 10) slope += k < 10 ? by_A : by_A * 1e-8;
    for (const Values& y : all) EXPECT_NEAR(y[std::size_t(k)], s, 1e-6 * s) << k;
  }
  for (const double d : slopes) EXPECT_NEAR(d, slope, 1e-5 * std::abs(slope));
}

TEST(Ssd, OperandsMayBeViewsOfOneProjection) {
  const std::int64_t b = 2, t = 19, h = 4, p = 3, g = 2, n = 5, inner = h * p, width = 2 * inner + 2 * g * n + h;
  const Tensor whole = Tensor::from(gen(std::size_t(b * t * width), 1), {b, t, width});
  const Tensor A = Tensor::from(Values{-0.7, -0.2, -1.5, -0.01}, {h});
  const auto dense = [](const Tensor& v) { return Tensor::from(v.to_host<double>(), v.shape()); };
  const auto result = [&](bool copies) {
    std::int64_t at = 0;
    const auto part = [&](std::int64_t size, Shape shape) {
      const Tensor v = reshape(slice(whole, -1, at, at + size), shape);
      at += size;
      return copies ? dense(v) : v;
    };
    const Tensor z = part(inner, {b, t, h, p}), x = part(inner, {b, t, h, p}), B = part(g * n, {b, t, g, n}),
                 C = part(g * n, {b, t, g, n}), dt = part(h, {b, t, h});
    const Tensor y = ssd(x, dt, A, B, C, {.dt = softplus_hole(), .out = gate(z), .chunk = 8});
    std::vector<Tensor> all = grad(sum(y * y), {x, dt, B, C, z});
    all.push_back(y);
    return all;
  };
  const std::vector<Tensor> got = result(false), expected = result(true);
  for (std::size_t i = 0; i < got.size(); ++i)
    expect_close(got[i].to_host<double>(), expected[i].to_host<double>(), 1e-12, std::to_string(i));
}

TEST(Ssd, Bf16StaysCloseAndKeepsItsStateInF32) {
  const Problem k({2, 50, 2, 8, 1, 16});
  const auto from = [](const Values& v, Shape s) { return Tensor::from(std::vector<float>(v.begin(), v.end()), s); };
  const auto result = [&](DType dtype) {
    const auto as = [&](const Values& v, Shape s) { return cast(from(v, s), dtype); };
    Tensor last;
    const Tensor y = ssd(as(k.x, {2, 50, 2, 8}), as(k.dt, {2, 50, 2}), from(k.A, {2}), as(k.B, {2, 50, 1, 16}),
                         as(k.C, {2, 50, 1, 16}), {.D = from(k.D, {2}), .dt = softplus_bias(from(k.bias, {2})), .last = &last});
    EXPECT_EQ(y.dtype(), dtype);
    EXPECT_EQ(last.dtype(), DType::f32);
    return std::pair{y.to_host<double>(), last.to_host<double>()};
  };
  const auto [y, last] = result(DType::bf16);
  const auto [exact_y, exact_last] = result(DType::f32);
  expect_close(y, exact_y, 2e-2, "y");
  expect_close(last, exact_last, 2e-2, "last");
}

TEST(Ssd, GradientsOfSecondOrderAreThoseOfDifferences) {
  const Problem k({1, 5, 2, 2, 1, 3});
  bool plain = false;
  const auto slope = [&](double at) {
    Values step = k.dt;
    step[3] += at;
    const Tensor x = Tensor::from(k.x, {1, 5, 2, 2}), dt = Tensor::from(step, {1, 5, 2}), A = Tensor::from(k.A, {2}),
                 B = Tensor::from(k.B, {1, 5, 1, 3}), C = Tensor::from(k.C, {1, 5, 1, 3}), bias = Tensor::from(k.bias, {2});
    const Tensor y = ssd(x, dt, A, B, C, {.dt = softplus_bias(bias), .out = silu_hole(), .chunk = 2, .plain = plain});
    const std::vector<Tensor> d = grad(sum(y), {A, bias});
    const Tensor penalty = sum(square(d[0])) + sum(square(d[1])), by_dt = grad(penalty, {dt})[0];
    return std::pair{penalty.item(), by_dt.to_host<double>()[3]};
  };
  const double step = 1e-5;
  for (plain = false;; plain = true) {
    EXPECT_NEAR(slope(0).second, (slope(step).first - slope(-step).first) / (2 * step), 1e-6);
    if (plain) break;
  }
}

// ---- mistakes ---------------------------------------------------------------------------------------------------------------

TEST(Ssd, MistakesAreNamedWithTheirSizes) {
  const auto real = [](Shape s) { return zeros(s); };
  const Tensor x = real({2, 5, 4, 3}), dt = real({2, 5, 4}), A = real({4}), B = real({2, 5, 2, 8}), C = B;
  const auto refused = [](std::vector<std::string> words, auto call) { expect_error(ErrorKind::usage, words, call); };
  refused({"ssd: x is not (batch, time, heads, features)", "(2, 5, 4)"}, [&] { ssd(dt, dt, A, B, C); });
  refused({"ssd: dt does not fit x", "dt must be (2, 5, 4)"}, [&] { ssd(x, real({2, 5, 3}), A, B, C); });
  refused({"ssd: A does not fit x", "A must be (4,)"}, [&] { ssd(x, dt, real({4, 8}), B, C); });
  refused({"ssd: B does not fit x", "B (2, 6, 2, 8)", "(batch, time, groups, states)"}, [&] {
    ssd(x, dt, A, real({2, 6, 2, 8}), C);
  });
  refused({"ssd: the heads do not divide into the groups", "4 heads, 3 groups"}, [&] {
    ssd(x, dt, A, real({2, 5, 3, 8}), real({2, 5, 3, 8}));
  });
  refused({"ssd: C does not fit B", "C (2, 5, 2, 4)"}, [&] { ssd(x, dt, A, B, real({2, 5, 2, 4})); });
  refused({"ssd: D does not fit x", "D (3,)", "(4, 3)"}, [&] { ssd(x, dt, A, B, C, {.D = real({3})}); });
  refused({"ssd: initial does not fit x", "initial (3, 4, 3, 8)", "initial must be (2, 4, 3, 8)"}, [&] {
    ssd(x, dt, A, B, C, {.initial = real({3, 4, 3, 8})});
  });
  refused({"ssd: a chunk has at least one step", "chunk 0"}, [&] { ssd(x, dt, A, B, C, {.chunk = 0}); });
  refused({"ssd: some operands are f64 and some are not"}, [&] { ssd(x, dt, zeros({4}, DType::f64), B, C); });
  refused({"ssd: dt is not real"}, [&] { ssd(x, zeros({2, 5, 4}, DType::i32), A, B, C); });
  // Errors name the line of the program, not one of the op's own.
  refused({"test_ssd.cpp"}, [&] { ssd(x, real({2, 5, 3}), A, B, C); });
}

}  // namespace
}  // namespace weft
