// The selective scan: golden values of an independent implementation, a naive reference with all options in fp64, edge shapes,
// strided operands, bf16, and the same bits for any number of threads.
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "jit/parallel.h"
#include "ops/ops.h"
#include "tests/values.h"

namespace weft {
namespace {

void expect_near(const Values& got, const Values& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double scale = 1;
  for (double e : expected) scale = std::max(scale, std::abs(e));
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance * scale) << what << " at " << i;
}

TEST(Scan, GoldenG1) {
  const auto from = [](const Values& v, Shape s) { return Tensor::from(v, s); };
  const Tensor u = from(swap_last(gen(6, .1), 1, 2, 3), {1, 3, 2}), delta = from(swap_last(gen(6, .2), 1, 2, 3), {1, 3, 2});
  Values a = gen(4, .3);
  for (double& x : a) x = -std::exp(x);
  const Tensor A = from(a, {2, 2}), B = from(swap_last(gen(6, .4), 1, 2, 3), {1, 3, 2}),
               C = from(swap_last(gen(6, .5), 1, 2, 3), {1, 3, 2}), D = from(gen(2, .6), {2}),
               z = from(swap_last(gen(6, .7), 1, 2, 3), {1, 3, 2}), bias = from(gen(2, .8), {2}),
               g = from(swap_last(gen(6, .9), 1, 2, 3), {1, 3, 2});
  Tensor last;
  const Tensor out = scan(u, delta, A, B, C, {.D = D, .delta = softplus_bias(bias), .out = gate(z), .last = &last});
  const std::vector<Tensor> d = grad(out, g, {u, delta, A, B, C, D, bias, z});
  const auto rows = [](const Tensor& t) { return swap_last(t.to_host<double>(), 1, 3, 2); };
  const double tol = 1e-8;
  expect_near(rows(out), {0.88988653, 1.89839549, 2.17392565, 2.25230694, 1.26918499, 0.28569115}, tol, "out");
  expect_near(last.to_host<double>(), {1.92370896, 0.95448129, 1.35306633, 0.68040565}, tol, "h_T");
  expect_near(rows(d[0]), {1.90994115, 2.55172565, 2.08020313, 1.55602978, 0.51965679, 0.00836256}, tol, "du");
  expect_near(rows(d[1]), {0.31310438, 0.62842918, 0.5870856, 0.48688663, 0.15034836, 0.00184431}, tol, "ddelta");
  expect_near(d[2].to_host<double>(), {0.05899696, 0.01273766, 0.00172086, 0.00181578}, tol, "dA");
  expect_near(rows(d[3]), {0.99564626, 1.222984, 1.21295287, 1.18030348, 0.90748817, 0.49673918}, tol, "dB");
  expect_near(rows(d[4]), {0.89154227, 1.16719919, 1.23065632, 1.21996689, 0.99624647, 0.61063514}, tol, "dC");
  expect_near(d[5].to_host<double>(), {1.40197968, 0.52055163}, tol, "dD");
  expect_near(d[6].to_host<double>(), {1.52861916, 0.63907931}, tol, "dbias");
  expect_near(rows(d[7]), {1.21858782, 2.42268933, 2.56552118, 2.37040174, 1.04495132, 0.03081217}, tol, "dz");
}

struct Case {
  std::int64_t b, t, i, n, groups;
  bool skip, bias, softplus, gated, initial, last_gradient;
  std::int64_t document = 0;  // steps of each packed document; they begin elsewhere in each row. 0: there is one
  std::int64_t segment(std::int64_t row, std::int64_t at) const { return document ? (at + row) / document : 0; }
  Documents segments() const {
    std::vector<std::int64_t> ids;
    for (std::int64_t k = 0; k < b * t; ++k) ids.push_back(segment(k / t, k % t));
    return document ? Tensor::from(ids, {b, t}) : Tensor{};
  }
};

// Everything the op computes, with gradients of the loss sum(g out) + sum(gh h_T).
struct Results {
  Values out, last, du, ddelta, dA, dB, dC, dD, dbias, dz, dinitial;
  Values dB_terms, dC_terms;  // of the reference: what is summed over channels, without signs
};

struct Problem {
  Case c;
  Values u, delta, A, B, C, D, bias, z, initial, g, gh;
  explicit Problem(const Case& k) : c(k) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    const auto draw = [&](std::int64_t n) {
      Values v(static_cast<std::size_t>(n));
      for (double& x : v) x = normal(random);
      return v;
    };
    const std::int64_t rows = c.b * c.t;
    u = draw(rows * c.i), delta = draw(rows * c.i), A = draw(c.i * c.n), B = draw(rows * c.groups * c.n), C = draw(B.size());
    D = draw(c.i), bias = draw(c.i), z = draw(rows * c.i), initial = draw(c.b * c.i * c.n), g = draw(rows * c.i);
    gh = draw(initial.size());
    for (double& a : A) a = -std::exp(0.5 * a);
    if (!c.softplus)
      for (double& x : delta) x = std::abs(x);
  }
};

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// The recurrence and its gradient step by step, everything materialised.
Results naive(const Problem& p) {
  const Case& c = p.c;
  const std::int64_t T = c.t, I = c.i, N = c.n;
  Results r;
  r.out.resize(p.u.size()), r.du.resize(p.u.size()), r.ddelta.resize(p.u.size()), r.dz.resize(p.u.size());
  r.dA.resize(p.A.size()), r.dB.resize(p.B.size()), r.dC.resize(p.B.size()), r.dD.resize(p.D.size()),
      r.dbias.resize(p.D.size());
  r.dB_terms.resize(p.B.size()), r.dC_terms.resize(p.B.size());
  r.last.resize(p.initial.size()), r.dinitial.resize(p.initial.size());
  for (std::int64_t b = 0; b < c.b; ++b)
    for (std::int64_t i = 0; i < I; ++i) {
      const std::int64_t group = i / (I / c.groups);
      const auto at = [&](std::int64_t t) { return (b * T + t) * I + i; };
      const auto bc = [&](std::int64_t t, std::int64_t n) { return ((b * T + t) * c.groups + group) * N + n; };
      Values h((T + 1) * N), delta(T), e(T);
      const auto decay = [&](std::int64_t t, std::int64_t n) {
        return t > 0 && c.segment(b, t) != c.segment(b, t - 1) ? 0 : std::exp(delta[t] * p.A[i * N + n]);
      };
      for (std::int64_t n = 0; n < N; ++n) h[n] = c.initial ? p.initial[(b * I + i) * N + n] : 0;
      for (std::int64_t t = 0; t < T; ++t) {
        const double raw = p.delta[at(t)] + (c.bias ? p.bias[i] : 0);
        delta[t] = c.softplus ? std::log1p(std::exp(raw)) : raw;
        double s = c.skip ? p.D[i] * p.u[at(t)] : 0;
        for (std::int64_t n = 0; n < N; ++n) {
          h[(t + 1) * N + n] = decay(t, n) * h[t * N + n] + delta[t] * p.B[bc(t, n)] * p.u[at(t)];
          s += p.C[bc(t, n)] * h[(t + 1) * N + n];
        }
        const double q = sigmoid_of(p.z[at(t)]);
        r.out[at(t)] = c.gated ? s * p.z[at(t)] * q : s;
        e[t] = c.gated ? p.g[at(t)] * p.z[at(t)] * q : p.g[at(t)];
        r.dz[at(t)] = p.g[at(t)] * s * q * (1 + p.z[at(t)] * (1 - q));
      }
      Values carry(N);
      for (std::int64_t n = 0; n < N; ++n) {
        r.last[(b * I + i) * N + n] = h[T * N + n];
        carry[n] = c.last_gradient ? p.gh[(b * I + i) * N + n] : 0;
      }
      for (std::int64_t t = T - 1; t >= 0; --t) {
        double gb = 0, gak = 0;
        for (std::int64_t n = 0; n < N; ++n) {
          const double a = decay(t, n), gamma = e[t] * p.C[bc(t, n)] + carry[n];
          gb += gamma * p.B[bc(t, n)];
          gak += gamma * p.A[i * N + n] * a * h[t * N + n];
          r.dA[i * N + n] += gamma * delta[t] * a * h[t * N + n];
          r.dC[bc(t, n)] += e[t] * h[(t + 1) * N + n];
          r.dB[bc(t, n)] += gamma * delta[t] * p.u[at(t)];
          r.dC_terms[bc(t, n)] += std::abs(e[t] * h[(t + 1) * N + n]);
          r.dB_terms[bc(t, n)] += std::abs(gamma * delta[t] * p.u[at(t)]);
          carry[n] = a * gamma;
        }
        r.du[at(t)] = (c.skip ? p.D[i] * e[t] : 0) + delta[t] * gb;
        const double raw = p.delta[at(t)] + (c.bias ? p.bias[i] : 0);
        r.ddelta[at(t)] = (p.u[at(t)] * gb + gak) * (c.softplus ? sigmoid_of(raw) : 1);
        r.dD[i] += e[t] * p.u[at(t)];
        r.dbias[i] += r.ddelta[at(t)];
      }
      for (std::int64_t n = 0; n < N; ++n) r.dinitial[(b * I + i) * N + n] = carry[n];
    }
  return r;
}

Hole plain_bias(Arg bias) {
  return hole({bias}, [](Expr v, Expr b) { return v + b; });
}

// The op on tensors of type S; the loss joins what both outputs give.
template <class S>
Results weft_results(const Problem& p) {
  const Case& c = p.c;
  const auto from = [](const Values& v, Shape s) { return Tensor::from(std::vector<S>(v.begin(), v.end()), s); };
  const Shape rows{c.b, c.t, c.i}, bc = c.groups > 1 ? Shape{c.b, c.t, c.groups, c.n} : Shape{c.b, c.t, c.n};
  const Shape state{c.b, c.i, c.n};
  const Tensor u = from(p.u, rows), delta = from(p.delta, rows), A = from(p.A, {c.i, c.n}), B = from(p.B, bc),
               C = from(p.C, bc), D = from(p.D, {c.i}), bias = from(p.bias, {c.i}), z = from(p.z, rows),
               initial = from(p.initial, state), g = from(p.g, rows), gh = from(p.gh, state);
  ScanOptions options;
  Tensor last;
  if (c.skip) options.D = D;
  if (c.softplus)
    options.delta = c.bias ? softplus_bias(bias) : softplus_hole();
  else if (c.bias)
    options.delta = plain_bias(bias);
  if (c.gated) options.out = gate(z);
  if (c.initial) options.initial = initial;
  options.last = &last, options.segments = c.segments();
  const Tensor out = scan(u, delta, A, B, C, options);
  Tensor loss = sum(out * g);
  if (c.last_gradient) loss = loss + sum(last * gh);
  const std::vector<Tensor> d = grad(loss, {u, delta, A, B, C, D, bias, z, initial}, Unused::zeros);
  const auto host = [](const Tensor& t) { return t.to_host<double>(); };
  return {host(out),  host(last), host(d[0]), host(d[1]), host(d[2]), host(d[3]), host(d[4]),
          host(d[5]), host(d[6]), host(d[7]), host(d[8]), {},         {}};
}

void compare(const Results& got, const Results& expected, const Case& c, double tolerance) {
  expect_near(got.out, expected.out, tolerance, "out");
  expect_near(got.last, expected.last, tolerance, "last");
  expect_near(got.du, expected.du, tolerance, "du");
  expect_near(got.ddelta, expected.ddelta, tolerance, "ddelta");
  expect_near(got.dA, expected.dA, tolerance, "dA");
  expect_near(got.dB, expected.dB, tolerance, "dB");
  expect_near(got.dC, expected.dC, tolerance, "dC");
  if (c.skip) expect_near(got.dD, expected.dD, tolerance, "dD");
  if (c.bias) expect_near(got.dbias, expected.dbias, tolerance, "dbias");
  if (c.gated) expect_near(got.dz, expected.dz, tolerance, "dz");
  if (c.initial) expect_near(got.dinitial, expected.dinitial, tolerance, "dinitial");
}

const Case kCases[] = {
    {2, 33, 5, 16, 1, true, true, true, true, true, true},
    {1, 1, 3, 1, 1, false, false, false, false, false, false},
    {2, 31, 6, 2, 2, true, false, true, false, false, true},
    {3, 100, 4, 8, 2, false, true, false, true, true, false},
    {1, 33, 300, 16, 1, true, true, true, true, true, true},
    {2, 32, 40, 17, 2, true, true, true, true, true, true},
    {1, 40, 33, 64, 1, true, false, false, true, false, true},
    {1, 35, 34, 256, 2, true, true, true, true, true, true},
    {1, 35, 3, 128, 1, false, false, false, false, false, false},
    {2, 64, 17, 16, 1, false, true, true, false, true, false},
    {1, 1, 20, 16, 1, true, true, true, true, true, true},
    {1, 65, 600, 4, 2, true, true, true, true, true, true},
    // Long enough to run in segments.
    {1, 512, 3, 4, 1, true, true, true, true, true, true},
    {2, 1024, 3, 2, 1, true, false, false, false, false, false},
    // Packed documents.
    {2, 70, 5, 16, 1, true, true, true, true, true, true, 9},
    {3, 5, 4, 3, 2, false, false, true, false, true, true, 1},
    {1, 512, 3, 4, 1, true, true, true, true, true, true, 100},
};

TEST(Scan, MatchesNaiveF64) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "b " << c.b << " t " << c.t << " i " << c.i << " n " << c.n);
    const Problem p(c);
    compare(weft_results<double>(p), naive(p), c, 1e-11);
  }
}

TEST(Scan, MatchesNaiveF32) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "b " << c.b << " t " << c.t << " i " << c.i << " n " << c.n);
    const Problem p(c);
    compare(weft_results<float>(p), naive(p), c, 3e-5);
  }
}

TEST(Scan, NoTime) {  // the state passes through
  const Problem p({2, 0, 3, 4, 1, true, true, true, true, true, true});
  const Results got = weft_results<double>(p), expected = naive(p);
  EXPECT_TRUE(got.out.empty());
  compare(got, expected, p.c, 0);
}

TEST(Scan, EmptyBatchAndChannels) {
  for (const Case& c :
       {Case{0, 5, 3, 4, 1, true, true, true, true, true, true}, Case{2, 5, 0, 4, 1, true, true, true, true, true, true},
        Case{2, 5, 3, 0, 1, true, true, true, true, true, true}}) {
    const Problem p(c);
    compare(weft_results<double>(p), naive(p), c, 1e-12);
  }
}

TEST(Scan, SameBitsForAnyThreads) {
  const int before = threads();
  const Problem p({3, 70, 300, 16, 1, true, true, true, true, true, true});
  std::vector<Results> results;
  for (int count : {1, 2, 3}) {
    set_threads(count);
    results.push_back(weft_results<float>(p));
  }
  set_threads(before);
  for (const Results& r : results) {
    EXPECT_EQ(r.out, results[0].out);
    EXPECT_EQ(r.dA, results[0].dA);
    EXPECT_EQ(r.dB, results[0].dB);
    EXPECT_EQ(r.dC, results[0].dC);
    EXPECT_EQ(r.dbias, results[0].dbias);
    EXPECT_EQ(r.du, results[0].du);
  }
}

// One channel with one state and constant operands: the value of the last step and the gradients of all steps by A and Delta.
struct Decays {
  double y, dA;
  Values ddelta;
};
Decays decays_of(float A, float delta, std::int64_t t, bool right) {
  const float u = 0.37f, B = 0.3f, C = 0.7f;
  if (!right) {
    const auto line = [&](float x) { return Tensor::from(std::vector<float>(std::size_t(t), x), {1, t, 1}); };
    const Tensor deltas = line(delta), a = Tensor::from(std::vector<float>{A}, {1, 1});
    const Tensor y = scan(line(u), deltas, a, line(B), line(C));
    const std::vector<Tensor> d = grad(sum(slice(y, 1, t - 1, t)), {a, deltas});
    return {y.to_host<double>().back(), d[0].item(), d[1].to_host<double>()};
  }
  // y = sum over k of C exp(A Delta (t - 1 - k)) Delta B u, each Delta by itself.
  const double decay = std::exp(double(A) * double(delta)), in = double(delta) * double(B) * double(u);
  Decays out{0, 0, Values(std::size_t(t))};
  double power = 1;  // decay^(t - 1 - k)
  Values h(std::size_t(t + 1));
  for (std::int64_t k = 0; k < t; ++k) h[std::size_t(k + 1)] = decay * h[std::size_t(k)] + in;
  out.y = double(C) * h[std::size_t(t)];
  for (std::int64_t k = t - 1; k >= 0; --k, power *= decay) {
    const double through = double(C) * power * decay * h[std::size_t(k)];
    out.dA += double(delta) * through;
    out.ddelta[std::size_t(k)] = double(C) * power * double(B) * double(u) + double(A) * through;
  }
  return out;
}

// Of states that decay within a step almost nothing is left, and of that the gradients are made.
TEST(Scan, GradientsOfDecaysThatLeaveAlmostNothing) {
  for (const auto& [A, delta] : {std::pair{-16.0f, 2.0f}, {-30.0f, 1.0f}, {-1.0f, 30.0f}, {-7.5f, 2.0f}, {-0.5f, 0.1f}}) {
    SCOPED_TRACE(testing::Message() << "A " << A << ", Delta " << delta);
    const Decays got = decays_of(A, delta, 8, false), right = decays_of(A, delta, 8, true);
    EXPECT_NEAR(got.y, right.y, 1e-6 * right.y);
    EXPECT_NEAR(got.dA, right.dA, 2e-5 * right.dA);  // an exponent of -32 is rounded by 2^-20
    for (std::size_t k = 0; k < 8; ++k)
      EXPECT_NEAR(got.ddelta[k], right.ddelta[k], 2e-5 * std::abs(right.ddelta[k]) + 1e-37) << k;
  }
}

TEST(Scan, DecaysOfAnySize) {
  for (const float A : {-1e15f, -1e20f, -1e38f}) {
    SCOPED_TRACE(A);
    const Decays got = decays_of(A, 2, 8, false);
    EXPECT_NEAR(got.y, 0.1554, 1e-6);
    EXPECT_EQ(got.dA, 0);
    for (std::size_t k = 0; k < 8; ++k) EXPECT_NEAR(got.ddelta[k], k == 7 ? 0.0777 : 0, 1e-6) << k;
  }
  const Decays got = decays_of(-16, 1e15f, 8, false);
  EXPECT_NEAR(got.y, 0.0777e15, 1e9);
  EXPECT_EQ(got.dA, 0);
  EXPECT_NEAR(got.ddelta[7], 0.0777, 1e-6);
}

// Operands that are slices of a projection give the same values as dense ones, as in a model.
TEST(Scan, StridedOperands) {
  const std::int64_t b = 2, t = 37, i = 24, n = 16;
  const Tensor xz = Tensor::from(gen(std::size_t(b * t * 2 * i), 1), {b, t, 2 * i});
  const Tensor q = Tensor::from(gen(std::size_t(b * t * (3 + 2 * n)), 2), {b, t, 3 + 2 * n});
  const Tensor A = Tensor::from(Values(std::size_t(i * n), -0.7), {i, n}), bias = Tensor::from(gen(i, 3), {i});
  const auto dense = [](const Tensor& x) { return Tensor::from(x.to_host<double>(), x.shape()); };
  const auto pieces = [&](bool copies) {
    const Tensor parts[] = {slice(xz, -1, 0, i), slice(xz, -1, i, 2 * i), slice(q, -1, 3, 3 + n),
                            slice(q, -1, 3 + n, 3 + 2 * n)};
    std::vector<Tensor> out;
    for (const Tensor& x : parts) out.push_back(copies ? dense(x) : x);
    const Tensor o = scan(out[0], out[0], A, out[2], out[3], {.delta = softplus_bias(bias), .out = gate(out[1])});
    const std::vector<Tensor> d = grad(sum(o * o), {out[0], out[1], out[2], out[3]});
    std::vector<Values> values = {o.to_host<double>()};
    for (const Tensor& x : d) values.push_back(x.to_host<double>());
    return values;
  };
  EXPECT_EQ(pieces(false), pieces(true));
}

void check_bf16(std::int64_t n) {
  SCOPED_TRACE(n);
  const Problem p({2, 40, 20, n, 1, true, true, true, true, false, false});
  const Results expected = naive(p);
  const auto half = [](const Values& v, Shape s) { return cast(Tensor::from(v, s), DType::bf16); };
  const auto single = [](const Values& v, Shape s) { return cast(Tensor::from(v, s), DType::f32); };
  const Shape rows{2, 40, 20};
  const Tensor u = half(p.u, rows), delta = half(p.delta, rows), z = half(p.z, rows), B = half(p.B, {2, 40, n}),
               C = half(p.C, {2, 40, n}), A = single(p.A, {20, n}), D = single(p.D, {20}), bias = single(p.bias, {20});
  const Tensor out = scan(u, delta, A, B, C, {.D = D, .delta = softplus_bias(bias), .out = gate(z)});
  EXPECT_EQ(out.dtype(), DType::bf16);
  const std::vector<Tensor> d = grad(out, half(p.g, rows), {u, delta, A, B, C, D, bias, z});
  EXPECT_EQ(d[0].dtype(), DType::bf16);
  EXPECT_EQ(d[2].dtype(), DType::f32);
  EXPECT_EQ(d[5].dtype(), DType::f32);
  expect_near(out.to_host<double>(), expected.out, 2e-2, "out");
  const Values* wanted[] = {&expected.du, &expected.ddelta, &expected.dA,    &expected.dB,
                            &expected.dC, &expected.dD,     &expected.dbias, &expected.dz};
  const char* names[] = {"du", "ddelta", "dA", "dB", "dC", "dD", "dbias", "dz"};
  for (std::size_t k = 0; k < 8; ++k) expect_near(d[k].to_host<double>(), *wanted[k], 2e-2, names[k]);
}
TEST(Scan, Bf16Storage) {
  for (const std::int64_t n : {16, 14}) check_bf16(n);
}

// A problem as mamba_ssm's tests/ops/test_selective_scan.py draws it, with values that have the types of the operands.
Problem mamba_problem(const Case& c) {
  Problem p(c);
  std::mt19937 random(11);
  std::uniform_real_distribution<double> half(0, 0.5);
  for (double& x : p.delta) x = half(random);
  for (double& x : p.bias) x = half(random);
  for (double& x : p.A) x = -half(random);
  for (Values* v : {&p.u, &p.delta, &p.B, &p.C, &p.z, &p.g})
    for (double& x : *v) x = double(float(bf16(float(x))));
  for (Values* v : {&p.A, &p.D, &p.bias})
    for (double& x : *v) x = double(float(x));
  return p;
}

// The scan of mamba_problem, in bf16 but for B and C of type `states`: out, then the gradients of u, delta, A, B, C, D, bias,
// z.
std::vector<Tensor> mamba_results(const Problem& p, DType states) {
  const Case& c = p.c;
  const auto as = [](DType type, const Values& v, Shape s) { return cast(Tensor::from(v, s), type); };
  const Shape rows{c.b, c.t, c.i}, bc = c.groups > 1 ? Shape{c.b, c.t, c.groups, c.n} : Shape{c.b, c.t, c.n};
  const Tensor u = as(DType::bf16, p.u, rows), delta = as(DType::bf16, p.delta, rows), z = as(DType::bf16, p.z, rows),
               B = as(states, p.B, bc), C = as(states, p.C, bc), A = as(DType::f32, p.A, {c.i, c.n}),
               D = as(DType::f32, p.D, {c.i}), bias = as(DType::f32, p.bias, {c.i});
  const Tensor out = scan(u, delta, A, B, C, {.D = D, .delta = softplus_bias(bias), .out = gate(z)});
  std::vector<Tensor> all = grad(out, as(out.dtype(), p.g, rows), {u, delta, A, B, C, D, bias, z});
  all.insert(all.begin(), out);
  return all;
}

const Case kMambaCases[] = {
    {2, 128, 4, 8, 1, true, true, true, true, false, false},    {2, 256, 4, 8, 2, true, true, true, true, false, false},
    {1, 257, 128, 16, 1, true, true, true, true, false, false}, {1, 64, 130, 16, 2, true, true, true, true, false, false},
    {1, 70, 96, 13, 1, true, true, true, true, false, false},   {1, 33, 37, 4, 1, true, true, true, true, false, false},
    {2, 70, 64, 16, 2, true, true, true, true, false, false},   {1, 300, 96, 16, 1, true, true, true, true, false, false},
};

// mamba_ssm allows atol + rtol |x| with 5e-2 and 3e-2 in bf16, and the weights' gradients the same where there is a gate.
TEST(Scan, Bf16GradientsAreWithinTheToleranceOfMamba) {
  for (const Case& c : kMambaCases) {
    SCOPED_TRACE(testing::Message() << "b " << c.b << " t " << c.t << " i " << c.i << " n " << c.n << " groups " << c.groups);
    const Problem p = mamba_problem(c);
    const Results want = naive(p);
    const std::vector<Tensor> got = mamba_results(p, DType::bf16);
    const Values* wanted[] = {&want.out, &want.du, &want.ddelta, &want.dA, &want.dB, &want.dC, &want.dD, &want.dbias, &want.dz};
    const char* names[] = {"out", "du", "ddelta", "dA", "dB", "dC", "dD", "dbias", "dz"};
    for (std::size_t k = 0; k < got.size(); ++k) {
      const Values x = got[k].to_host<double>();
      double worst = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double y = float(bf16(float((*wanted[k])[i])));
        worst = std::max(worst, std::abs(x[i] - y) / (5e-2 + 3e-2 * std::abs(y) + std::ldexp(std::abs(y), -7)));
      }
      EXPECT_LE(worst, 1) << names[k] << ", as a share of what is allowed";
    }
  }
}

// What is summed over channels is exact to 2^-10 of each product, as ops.h says, also on tensor cores.
TEST(Scan, Bf16SumsOverChannelsCutProductsToTf32AtMost) {
  for (const Case& c : kMambaCases) {
    SCOPED_TRACE(testing::Message() << "b " << c.b << " t " << c.t << " i " << c.i << " n " << c.n << " groups " << c.groups);
    const Problem p = mamba_problem(c);
    const Results want = naive(p);
    const std::vector<Tensor> got = mamba_results(p, DType::f32);
    for (const auto& [name, k, exact, terms] :
         {std::tuple("dB", 4, &want.dB, &want.dB_terms), std::tuple("dC", 5, &want.dC, &want.dC_terms)}) {
      ASSERT_EQ(got[std::size_t(k)].dtype(), DType::f32);
      const Values x = got[std::size_t(k)].to_host<double>();
      for (std::size_t i = 0; i < x.size(); ++i)
        ASSERT_NEAR(x[i], (*exact)[i], (0x1p-10 + 1e-5) * (*terms)[i]) << name << " at " << i;
    }
  }
}

// ---- the kernels for 16 states in bf16 --------------------------------------------------------------------------------------

// |x - right| / |right|, without what the rounding of the right values to bf16, where x is that, is of it.
double relative_error(const Tensor& x, const Values& right) {
  const Values values = x.to_host<double>();
  double error = 0, rounding = 0, size = 0;
  for (std::size_t i = 0; i < right.size(); ++i) {
    const double wanted = right[i], rounded = double(float(bf16(float(wanted))));
    error += (values[i] - wanted) * (values[i] - wanted), size += wanted * wanted;
    if (x.dtype() == DType::bf16) rounding += (rounded - wanted) * (rounded - wanted);
  }
  return std::sqrt(std::max(error - rounding, 0.0) / std::max(size, 1e-300));
}

// Everything that a scan of a problem whose values are of the types of its operands has: y, h_T, then the gradients of u,
// delta, A, B, C, D, bias, z, initial.
std::vector<Tensor> results16(const Problem& p) {
  const Case& c = p.c;
  const auto as = [](DType type, const Values& v, Shape s) { return cast(Tensor::from(v, s), type); };
  const Shape rows{c.b, c.t, c.i}, bc = c.groups > 1 ? Shape{c.b, c.t, c.groups, c.n} : Shape{c.b, c.t, c.n};
  const Shape state{c.b, c.i, c.n};
  const Tensor u = as(DType::bf16, p.u, rows), delta = as(DType::bf16, p.delta, rows), z = as(DType::bf16, p.z, rows),
               B = as(DType::bf16, p.B, bc), C = as(DType::bf16, p.C, bc), A = as(DType::f32, p.A, {c.i, c.n}),
               D = as(DType::f32, p.D, {c.i}), bias = as(DType::f32, p.bias, {c.i}), initial = as(DType::f32, p.initial, state),
               g = as(DType::bf16, p.g, rows), gh = as(DType::f32, p.gh, state);
  return run([&] {
    Tensor last;
    ScanOptions options{
        .D = c.skip ? D : Tensor{}, .initial = c.initial ? initial : Tensor{}, .last = &last, .segments = c.segments()};
    if (c.softplus)
      options.delta = c.bias ? softplus_bias(bias) : softplus_hole();
    else if (c.bias)
      options.delta = plain_bias(bias);
    if (c.gated) options.out = gate(z);
    const Tensor out = scan(u, delta, A, B, C, options);
    Tensor loss = sum(cast(out, DType::f32) * cast(g, DType::f32));
    if (c.last_gradient) loss = loss + sum(last * gh);
    std::vector<Tensor> all = grad(loss, {u, delta, A, B, C, D, bias, z, initial}, Unused::zeros);
    all.insert(all.begin(), {out, last});
    return all;
  });
}
Problem problem16(const Case& c) {
  Problem p = mamba_problem(c);
  for (Values* v : {&p.initial, &p.gh})
    for (double& x : *v) x = double(float(x));
  return p;
}

const char* const kNames16[] = {"y", "last", "du", "ddelta", "dA", "dB", "dC", "dD", "dbias", "dz", "dinitial"};
std::vector<const Values*> all_of(const Results& r) {
  return {&r.out, &r.last, &r.du, &r.ddelta, &r.dA, &r.dB, &r.dC, &r.dD, &r.dbias, &r.dz, &r.dinitial};
}
void expect_all_near(const std::vector<Tensor>& got, const Results& want, const Case& c) {
  // y, dB and dC are sums of products in TF32, and s, as the gradient of z reads it, is in bf16.
  const double most[] = {5e-4, 1e-4, 4e-4, 4e-4, 2e-4, 6e-4, 6e-4, 1e-5, 3e-4, 4e-3, 1e-4};
  const bool there[] = {true, true, true, true, true, true, true, c.skip, c.bias, c.gated, c.initial};
  for (std::size_t k = 0; k < got.size(); ++k) {
    if (!there[k]) continue;
    EXPECT_LE(relative_error(got[k], *all_of(want)[k]), most[k]) << kNames16[k];
  }
}

TEST(Scan16, MatchesNaive) {
  for (const Case& c :
       {Case{1, 1, 32, 16, 1, true, true, true, true, true, true}, Case{2, 33, 64, 16, 2, true, true, true, true, true, true},
        Case{1, 16, 32, 16, 1, false, false, true, false, false, false},
        Case{2, 45, 32, 16, 1, false, true, false, false, true, false}}) {
    SCOPED_TRACE(testing::Message() << "b " << c.b << " t " << c.t << " i " << c.i << " groups " << c.groups);
    const Problem p = problem16(c);
    expect_all_near(results16(p), naive(p), c);
  }
}

// Time is cut, forward at 256 and 512, backward at multiples of 64; with groups and states at both ends.
TEST(Scan16, SegmentsOfTime) {
  const Problem p = problem16({1, 547, 64, 16, 2, true, true, true, true, true, true});
  expect_all_near(results16(p), naive(p), p.c);
}

// Time is cut as above, and where documents begin: at a tile, in one, at each step.
TEST(Scan16, PackedDocuments) {
  for (const Case& c : {Case{2, 70, 64, 16, 2, true, true, true, true, true, true, 32},
                        Case{1, 547, 32, 16, 1, true, true, true, true, true, true, 91},
                        Case{2, 35, 32, 16, 1, false, false, true, false, true, true, 1}}) {
    SCOPED_TRACE(testing::Message() << "t " << c.t << ", documents of " << c.document);
    const Problem p = problem16(c);
    expect_all_near(results16(p), naive(p), c);
  }
}

TEST(Scan16, SameBitsEveryTime) {
  const Problem p = problem16({1, 300, 64, 16, 1, true, true, true, true, true, true});
  const std::vector<Tensor> first = results16(p), again = results16(p);
  for (std::size_t k = 0; k < first.size(); ++k)
    EXPECT_EQ(first[k].to_host<double>(), again[k].to_host<double>()) << kNames16[k];
}

// Without decay states grow to 1e6, and gradients may be as small as those of a mean over many tokens: neither may leave the
// range of what is kept and summed.
TEST(Scan16, StatesAndGradientsOfAnySize) {
  for (const auto& [states, gradients] : {std::pair{1e6, 1.0}, {1e6, 1e-9}, {1e-6, 1e6}}) {
    SCOPED_TRACE(testing::Message() << "states of " << states << ", gradients of " << gradients);
    Problem p = problem16({1, 200, 64, 16, 1, false, false, false, true, false, false});
    for (double& a : p.A) a *= 0x1p-10;
    for (double& x : p.delta) x = 1;
    const auto scale = [](Values& v, double by) {
      for (double& x : v) x = double(float(bf16(float(x * by))));
    };
    for (double& x : p.B) x = std::abs(x);
    for (double& x : p.u) x = std::abs(x);
    scale(p.u, states / 100), scale(p.g, gradients);
    // Channels of a group may differ by far.
    for (std::size_t k = 0; k < p.u.size(); ++k)
      if (k % 64 % 5 == 2) p.u[k] = double(float(bf16(float(p.u[k] * 1e-4))));
    const Results want = naive(p);
    double largest = 0;
    for (const double x : want.last) largest = std::max(largest, std::abs(x));
    EXPECT_GE(largest, states);
    const std::vector<Tensor> got = results16(p);
    EXPECT_LE(relative_error(got[5], want.dB), 6e-4);
    EXPECT_LE(relative_error(got[6], want.dC), 6e-4);
    EXPECT_LE(relative_error(got[4], want.dA), 2e-4);
    EXPECT_LE(relative_error(got[2], want.du), 4e-4);
    // Of the small channels too.
    const Values dA = got[4].to_host<double>();
    double error = 0, size = 0;
    for (std::size_t k = 2 * 16; k < 3 * 16; ++k) error += std::pow(dA[k] - want.dA[k], 2), size += std::pow(want.dA[k], 2);
    EXPECT_LE(std::sqrt(error / size), 2e-4);
  }
}

// As wide and as long as a model, where a block has the most channels; the emulated device would take too long.
TEST(SlowScan16, AModelsSize) {
  if (device() != Device::cuda) GTEST_SKIP() << "takes a GPU";
  const Problem p = problem16({8, 2048, 1536, 16, 1, true, true, true, true, false, false});
  expect_all_near(results16(p), naive(p), p.c);
}

// Operands and captured tensors that are slices at odd places, and a hole that reads places, several tensors and a Scalar.
TEST(Scan16, HolesAndSlices) {
  const std::int64_t b = 2, t = 21, i = 32, n = 16;
  const auto half = [](std::size_t count, int seed, Shape s) { return cast(Tensor::from(gen(count, seed), s), DType::bf16); };
  const Tensor wide = half(std::size_t(b * t * 101), 1, {b, t, 101}), q = half(std::size_t(b * t * 35), 2, {b, t, 35}),
               A = cast(Tensor::from(Values(std::size_t(i * n), -0.7), {i, n}), DType::f32),
               f = cast(Tensor::from(gen(std::size_t(b * t * i), 3), {b, t, i}), DType::f32),
               line = cast(Tensor::from(gen(std::size_t(t + i), 4), {t + i}), DType::f32),
               g = half(std::size_t(b * t * i), 5, {b, t, i});
  Scalar scale;
  scale.set(0.75);
  const auto pieces = [&](bool wide_types) {
    const DType type = wide_types ? DType::f64 : DType::bf16, full = wide_types ? DType::f64 : DType::f32;
    const Tensor x = cast(wide, type), states = cast(q, type), a = cast(A, full), fs = cast(f, full), l = cast(line, full);
    const Tensor u = slice(x, -1, 1, 1 + i), raw = slice(x, -1, 33, 33 + i), z = slice(x, -1, 68, 68 + i),
                 B = slice(states, -1, 3, 3 + n), C = slice(states, -1, 19, 19 + n);
    const Tensor o = scan(
        u, raw, a, B, C,
        {.delta = hole({fs}, [](Expr v, Expr by) { return softplus(v + by); }), .out = [&](Expr s, Index e, Index at, Index c) {
           return s * z(e, at, c) * Expr(scale) + fs(e, at, c) * l(at - c + 31);
         }});
    const Tensor loss = sum(cast(o, full) * cast(g, full));
    std::vector<Tensor> all = grad(loss, {wide, q, A, f, line});
    all.insert(all.begin(), o);
    return all;
  };
  const std::vector<Tensor> got = run([&] { return pieces(false); }), want = run([&] { return pieces(true); });
  const char* const names[] = {"o", "x", "B and C", "A", "f", "line"};
  for (std::size_t k = 0; k < got.size(); ++k) {
    // The right gradients of bf16 tensors are themselves rounded.
    EXPECT_LE(relative_error(got[k], want[k].to_host<double>()), 6e-3) << names[k];
  }
}

// A hole of the user's own, whose captured tensors have gradients of several shapes.
TEST(Scan, OwnHole) {
  const std::int64_t b = 2, t = 9, i = 3, n = 2;
  const Shape rows{b, t, i};
  const Tensor u = Tensor::from(gen(54, 1), rows), raw = Tensor::from(gen(54, 2), rows),
               A = Tensor::from(Values(6, -0.5), {i, n}), B = Tensor::from(gen(36, 3), {b, t, n}),
               C = Tensor::from(gen(36, 4), {b, t, n}), scale = Tensor::from(gen(3, 5), {i}),
               shift = Tensor::from(gen(54, 6), rows), per_time = Tensor::from(gen(9, 7), {t, 1});
  const auto holed =
      scan(u, raw, A, B, C,
           {.out = hole({scale, shift, per_time}, [](Expr s, Expr a, Expr c, Expr p) { return tanh(s * a) + c - p * 3.5; })});
  const auto outside = tanh(scan(u, raw, A, B, C) * scale) + shift - per_time * 3.5;
  const std::vector<Arg> wrt = {u, raw, A, B, C, scale, shift, per_time};
  const std::vector<Tensor> d = grad(sum(holed * shift), wrt), e = grad(sum(outside * shift), wrt);
  expect_near(holed.to_host<double>(), outside.to_host<double>(), 1e-12, "out");
  for (std::size_t k = 0; k < d.size(); ++k)
    expect_near(d[k].to_host<double>(), e[k].to_host<double>(), 1e-12, std::to_string(k));
}

// ---- holes that read coordinates and index tensors, against the same values computed before the scan ------------------------

struct Small {
  std::int64_t b = 2, t = 5, i = 6, n = 2;
  Shape rows{b, t, i};
  Tensor u = Tensor::from(gen(60, 1), rows), raw = Tensor::from(gen(60, 2), rows), A = Tensor::from(Values(12, -0.5), {i, n}),
         B = Tensor::from(gen(20, 3), {b, t, n}), C = Tensor::from(gen(20, 4), {b, t, n});

  // The scan whose Delta is raw + add(b, t, i), by the hole and without it.
  void expect_added(const HoleOf<1, 3>& delta, const std::function<double(std::int64_t, std::int64_t, std::int64_t)>& add,
                    const std::string& what) const {
    Values values = gen(60, 2);
    for (std::int64_t at = 0; at < 60; ++at) values[std::size_t(at)] += add(at / (t * i), at / i % t, at % i);
    const Tensor holed = scan(u, raw, A, B, C, {.delta = delta}), plain = scan(u, Tensor::from(values, rows), A, B, C);
    expect_near(holed.to_host<double>(), plain.to_host<double>(), 1e-12, what);
    const Tensor after = scan(u, raw, A, B, C, {.out = delta});
    Values expected = scan(u, raw, A, B, C).to_host<double>();
    for (std::int64_t at = 0; at < 60; ++at) expected[std::size_t(at)] += add(at / (t * i), at / i % t, at % i);
    expect_near(after.to_host<double>(), expected, 1e-12, what + ", out");
  }
};

Tensor line_of(const Small& s) { return Tensor::from(gen(std::size_t(s.t), 9), {s.t, 1}); }

TEST(Scan, HolesKnowTheirCoordinates) {
  const Small s;
  for (int k = 0; k < 3; ++k)
    s.expect_added(
        hole({}, [k](Expr v) { return v + 0.25 * expr::index(k); }),
        [k](auto b, auto t, auto i) { return 0.25 * double(k == 0   ? b
                                                           : k == 1 ? t
                                                                    : i); }, "coordinate " + std::to_string(k));
  s.expect_added([](Expr v, Index b, Index t, Index i) { return v + where(t - 2 * i < b, 0.125, 0.5); },
                 [](auto b, auto t, auto i) { return t - 2 * i < b ? 0.125 : 0.5; }, "a condition on all three");
}

TEST(Scan, HolesIndexTensors) {
  const Small s;
  const Values w = gen(12, 5);
  const Tensor line = Tensor::from(w, {12}), plane = Tensor::from(w, {4, 3}),
               ids = Tensor::from(std::vector<std::int64_t>{3, 0, 11, 7, 7, 2}, {6});
  Param param({12}, DType::f64);
  param.set(w);
  const auto at = [&](std::int64_t k) { return w[std::size_t(k)]; };
  s.expect_added([&](Expr v, Index, Index, Index i) { return v + line(i); }, [&](auto, auto, auto i) { return at(i); },
                 "column");
  s.expect_added([&](Expr v, Index b, Index t, Index) { return v + plane(t - t, b); },
                 [&](auto b, auto, auto) { return at(b); }, "an outer coordinate");
  s.expect_added([&](Expr v, Index, Index t, Index) { return v + line(2 * t + 1); },
                 [&](auto, auto t, auto) { return at(2 * t + 1); }, "every other row");
  s.expect_added([&](Expr v, Index, Index t, Index i) { return v + line(t - i + 5); },
                 [&](auto, auto t, auto i) { return at(t - i + 5); }, "a difference");
  s.expect_added([&](Expr v, Index, Index, Index i) { return v + line(11 - 2 * i); },
                 [&](auto, auto, auto i) { return at(11 - 2 * i); }, "backwards");
  s.expect_added([&](Expr v, Index b, Index t, Index i) { return v + param(4 * b + t) * line(i); },
                 [&](auto b, auto t, auto i) { return at(4 * b + t) * at(i); }, "a Param, and a product of two levels");
  s.expect_added([&](Expr v, Index, Index t, Index i) { return v + plane(t * i / 7, min(i, 2)); },
                 [&](auto, auto t, auto i) { return at(t * i / 7 * 3 + std::min<std::int64_t>(i, 2)); },
                 "quotients and bounds");
  const std::int64_t numbers[] = {3, 0, 11, 7, 7, 2};
  s.expect_added([&](Expr v, Index, Index, Index i) { return v + line(ids(i)); },
                 [&](auto, auto, auto i) { return at(numbers[i]); }, "by another tensor");
  s.expect_added(
      hole({line_of(s)}, [&](Expr v, Expr z) { return v + z * line(expr::index(2)); }),
      [&](auto, auto t, auto i) { return gen(5, 9)[std::size_t(t)] * at(i); }, "with one that broadcasts");
}

TEST(Scan, AHoleCapturesATensorTwice) {
  const Small s;
  const Values w = gen(6, 5), x = gen(6, 7);
  const Tensor first = Tensor::from(w, {6}), other = Tensor::from(x, {6});
  const auto at = [&](const Values& of, std::int64_t i) { return of[std::size_t(i)]; };
  s.expect_added(
      hole({first, first, other}, [](Expr v, Expr a, Expr b, Expr c) { return v + a - 3 * b + 7 * c; }),
      [&](auto, auto, auto i) { return 7 * at(x, i) - 2 * at(w, i); }, "twice, then another");
  s.expect_added(
      hole({first, other, first}, [&](Expr v, Expr a, Expr b, Expr c) { return v + a * b + c + other(5 - expr::index(2)); }),
      [&](auto, auto, auto i) { return at(w, i) * at(x, i) + at(w, i) + at(x, 5 - i); }, "and indexed");
}

// ---- the gradient of an indexed tensor, against the plain form: its elements looked up, then added ------------------------

using Place = std::function<std::int64_t(std::int64_t b, std::int64_t t, std::int64_t i)>;

// v + bias[...], where `element` is the row-major number of the element at a place.
void expect_gathered(const Shape& shape, const std::function<HoleOf<1, 3>(const Tensor& bias)>& hole, const Place& element,
                     const std::string& what) {
  const Small s;
  std::vector<std::int64_t> numbers;
  for (std::int64_t at = 0; at < 60; ++at) numbers.push_back(element(at / (s.t * s.i), at / s.i % s.t, at % s.i));
  const Tensor ids = Tensor::from(numbers, s.rows), bias = Tensor::from(gen(std::size_t(shape.numel()), 5), shape),
               g = Tensor::from(gen(60, 6), s.rows);
  for (const bool out : {false, true}) {
    const auto holed = [&] {
      ScanOptions options{.D = {}, .delta = softplus_hole()};
      (out ? options.out : options.delta) = hole(bias);
      return grad(scan(s.u, s.raw, s.A, s.B, s.C, options), g, {s.u, s.raw, bias});
    };
    const auto plain = [&] {
      const Tensor each = reshape(embedding(reshape(bias, {-1, 1}), ids), s.rows);
      const Tensor y = out ? scan(s.u, softplus(s.raw), s.A, s.B, s.C) + each : scan(s.u, s.raw + each, s.A, s.B, s.C);
      return grad(y, g, {s.u, s.raw, bias});
    };
    const std::vector<Tensor> got = run(holed), again = run(holed), expected = run(plain);
    for (std::size_t k = 0; k < 3; ++k) {
      const std::string which = what + (out ? ", out, " : ", delta, ") + std::to_string(k);
      expect_near(got[k].to_host<double>(), expected[k].to_host<double>(), 1e-12, which);
      EXPECT_EQ(got[k].to_host<double>(), again[k].to_host<double>()) << which;
    }
  }
}

TEST(Scan, AHoleWithAGatheredBiasAndItsGradient) {
  const auto both = [](std::int64_t t, std::int64_t i) { return t * 6 + i; };
  expect_gathered(
      {6}, [](const Tensor& z) { return [&](Expr v, Index, Index, Index i) { return v + z(i); }; },
      [](auto, auto, auto i) { return i; }, "column");
  expect_gathered(
      {2, 1}, [](const Tensor& z) { return [&](Expr v, Index b, Index, Index) { return v + z(b, 0); }; },
      [](auto b, auto, auto) { return b; }, "outer");
  expect_gathered(
      {5}, [](const Tensor& z) { return [&](Expr v, Index, Index t, Index) { return v + z(t); }; },
      [](auto, auto t, auto) { return t; }, "row");
  expect_gathered(
      {5, 6}, [](const Tensor& z) { return [&](Expr v, Index, Index t, Index i) { return v + z(t, i); }; },
      [&](auto, auto t, auto i) { return both(t, i); }, "both");
  expect_gathered(
      {6, 5}, [](const Tensor& z) { return [&](Expr v, Index, Index t, Index i) { return v + z(i, t); }; },
      [](auto, auto t, auto i) { return i * 5 + t; }, "transposed");
  expect_gathered(
      {10}, [](const Tensor& z) { return [&](Expr v, Index, Index t, Index i) { return v + z(t - i + 5); }; },
      [](auto, auto t, auto i) { return t - i + 5; }, "difference");
  expect_gathered(
      {1}, [](const Tensor& z) { return [&](Expr v, Index, Index, Index) { return v + z(0); }; },
      [](auto, auto, auto) { return 0; }, "none");
  expect_gathered(
      {3}, [](const Tensor& z) { return [&](Expr v, Index, Index, Index i) { return v + z(i / 2); }; },
      [](auto, auto, auto i) { return i / 2; }, "a quotient of the column");
  expect_gathered(
      {4, 3}, [](const Tensor& z) { return [&](Expr v, Index b, Index t, Index i) { return v + z(min(t, 3), (b + i) / 3); }; },
      [](auto b, auto t, auto i) { return std::min<std::int64_t>(t, 3) * 3 + (b + i) / 3; }, "buckets");
  const Tensor table = Tensor::from(std::vector<std::int64_t>{3, 0, 3, 1, 0}, {5});
  const std::int64_t numbers[] = {3, 0, 3, 1, 0};
  expect_gathered(
      {4}, [&](const Tensor& z) { return [&](Expr v, Index, Index t, Index) { return v + z(table(t)); }; },
      [&](auto, auto t, auto) { return numbers[t]; }, "by another tensor");
}

// Two loads of one tensor, and a tensor that is an input of the op too.
TEST(Scan, GradientsOfTensorsThatAreReadTwice) {
  const Small s;
  const Tensor z = Tensor::from(gen(6, 5), {6}), g = Tensor::from(gen(60, 6), s.rows);
  const auto backwards = [&] {
    std::vector<std::int64_t> order;
    for (std::int64_t i = 6; i-- > 0;) order.push_back(i);
    return reshape(embedding(reshape(z, {6, 1}), Tensor::from(order, {6})), {6});
  };
  const Tensor holed = scan(s.u, s.raw, s.A, s.B, s.C,
                            {.delta = [&](Expr v, Index b, Index t, Index i) { return v + z(i) * z(5 - i) + s.u(b, t, i); }});
  const Tensor plain = scan(s.u, s.raw + z * backwards() + s.u, s.A, s.B, s.C);
  const std::vector<Tensor> d = grad(holed, g, {s.u, z}), e = grad(plain, g, {s.u, z});
  expect_near(holed.to_host<double>(), plain.to_host<double>(), 1e-12, "value");
  for (std::size_t k = 0; k < 2; ++k) expect_near(d[k].to_host<double>(), e[k].to_host<double>(), 1e-12, std::to_string(k));
}

// Both holes hold the most tensors, constants and elements that they may, and so do their gradients.
TEST(Scan, AHoleHoldsAsMuchAsItMay) {
  const Small s;
  std::vector<Tensor> z;
  for (std::size_t k = 0; k < kMostCaptured; ++k) z.push_back(Tensor::from(gen(7, 20 + k), {7}));
  const auto body = [&](Expr v, Index, Index, Index i) {
    for (int k = 0; k < int(z.size()); ++k) {
      const Tensor& x = z[std::size_t(k)];
      v = v + 0.01 * (k + 3) * x(i) * (0.01 * (k + 30) * x(i + 1));
    }
    return v;
  };
  Tensor added = zeros({6}, DType::f64);
  for (int k = 0; k < int(z.size()); ++k) {
    const Tensor& x = z[std::size_t(k)];
    added = added + 0.01 * (k + 3) * slice(x, 0, 0, 6) * (0.01 * (k + 30) * slice(x, 0, 1, 7));
  }
  const Tensor holed = scan(s.u, s.raw, s.A, s.B, s.C, {.delta = body, .out = body}),
               plain = scan(s.u, s.raw + added, s.A, s.B, s.C) + added, g = Tensor::from(gen(60, 6), s.rows);
  const std::vector<Arg> wrt(z.begin(), z.end());
  const std::vector<Tensor> d = grad(holed, g, wrt), e = grad(plain, g, wrt);
  expect_near(holed.to_host<double>(), plain.to_host<double>(), 1e-12, "value");
  for (std::size_t k = 0; k < d.size(); ++k)
    expect_near(d[k].to_host<double>(), e[k].to_host<double>(), 1e-12, std::to_string(k));
}

// The same of a tensor of four axes, whose places are numbered, among constants.
TEST(Scan, AHoleOfConstantsReadsATensorOfFourAxes) {
  const Small s;
  const Tensor z = Tensor::from(gen(60, 5), {2, 5, 1, 6}), g = Tensor::from(gen(60, 6), s.rows);
  const Tensor holed = scan(s.u, s.raw, s.A, s.B, s.C, {.out = [&](Expr v, Index b, Index t, Index i) {
                              for (int k = 0; k < int(kMostConstants); ++k) v = v * (0.91 + 0.02 * k);
                              return v * z(b, t, 0, 5 - i);
                            }});
  const Tensor dz = grad(holed, g, {z})[0];
  double factor = 1;
  for (int k = 0; k < int(kMostConstants); ++k) factor *= 0.91 + 0.02 * k;
  const Values values = scan(s.u, s.raw, s.A, s.B, s.C).to_host<double>(), upstream = gen(60, 6);
  Values expected(60);
  for (std::size_t at = 0; at < 60; ++at) expected[at - at % 6 + 5 - at % 6] = factor * values[at] * upstream[at];
  expect_near(dz.to_host<double>(), expected, 1e-12, "gradient");
}

// A Scalar is a constant of the kernel: it changes every step, in one plan.
TEST(Scan, HolesReadScalars) {
  const Small s;
  Scalar scale, shift;
  const auto step = [&] {
    return scan(s.u, s.raw, s.A, s.B, s.C,
                {.out = [&](Expr v, Index, Index t, Index) { return where(t < to_integer(shift), v * Expr(scale), v); }});
  };
  const Values plain = scan(s.u, s.raw, s.A, s.B, s.C).to_host<double>();
  for (int k = 0; k < 6; ++k) {
    scale.set(k == 0 ? 0.0 : k == 1 ? 1.0 : 0.37 * k);
    shift.set(k % 5 + (k == 4 ? 0.75 : 0));
    const Values got = run(step).to_host<double>();
    Values expected = plain;
    for (std::size_t at = 0; at < expected.size(); ++at)
      if (std::int64_t(at) / s.i % s.t < std::int64_t(shift.value())) expected[at] *= scale.value();
    expect_near(got, expected, 1e-12, std::to_string(k));
    EXPECT_EQ(last_run().replayed, k > 0) << k;
  }
}

TEST(Scan, Errors) {
  const Tensor u = zeros({2, 5, 4}), A = zeros({4, 3}), B = zeros({2, 5, 3});
  EXPECT_THROW(scan(u, zeros({2, 5, 3}), A, B, B), Error);
  EXPECT_THROW(scan(u, u, zeros({5, 3}), B, B), Error);
  EXPECT_THROW(scan(u, u, A, zeros({2, 5, 2}), B), Error);
  EXPECT_THROW(scan(u, u, A, zeros({2, 5, 3, 3}), zeros({2, 5, 3, 3})), Error);
  EXPECT_THROW(scan(u, u, A, B, B, {.D = zeros({3})}), Error);
  EXPECT_THROW(scan(u, u, A, B, B, {.out = gate(zeros({2, 5, 3}))}), Error);
  try {
    scan(u, u, A, B, zeros({2, 4, 3}));
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("(2, 4, 3)"), std::string::npos) << text;
    EXPECT_NE(text.find("test_scan.cpp"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace weft
