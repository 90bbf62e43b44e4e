// The kernels of attention against sums in double: on the emulated device those for all GPUs, and those of sm_90a where that is
// said; where there is a GPU, its own and those for all.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "autograd/context.h"
#include "autograd/op.h"
#include "autograd/plan.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "jit/driver.h"
#include "jit/emulator/device.h"
#include "tests/expect_error.h"
#include "tests/values.h"
#include "tools/weft.h"

namespace weft {
namespace {

using std::int64_t;

class AttentionKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
    before_ = device();
    use_device("emu");
  }
  void TearDown() override { use_device(name_of(before_)); }

 private:
  Device before_ = Device::cpu;
};

using SlowAttentionKernels = AttentionKernels;

// Kernels of another version than the device's own.
class UseKernels {
 public:
  explicit UseKernels(std::string_view architecture) { settings().kernels = target_for(architecture); }
  UseKernels(const UseKernels&) = delete;
  ~UseKernels() { settings().kernels = before_; }

 private:
  const std::optional<Target> before_ = settings().kernels;
};

struct Case {
  int64_t b = 1, h = 1, g = 1, tq = 16, tk = 16, dk = 16, dv = 16;
  DType dtype = DType::bf16;
};

// What a call does, as expressions and in double.
struct Body {
  AttentionOptions options = {};
  std::function<double(double s, int64_t h, int64_t i, int64_t j)> score = {}, derivative = {};
  std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)> visible = {};
  std::function<double(int64_t b, int64_t h, int64_t i, int64_t j)> weight = {};
  std::function<double(int64_t t, int64_t p)> angle = {};
};

struct Results {
  Values o, lse, dq, dk, dv;
};

Values rotated(const Values& x, const Shape& shape, const Body& body, bool back) {
  if (!body.angle) return x;
  Values out = x;
  const int64_t d = shape[3], pairs = d / 2;
  const bool halves = body.options.pairing == Pairing::halves;
  for (int64_t row = 0; row < shape[0] * shape[1] * shape[2]; ++row)
    for (int64_t p = 0; p < pairs; ++p) {
      const auto first = std::size_t(row * d + (halves ? p : 2 * p)), second = first + std::size_t(halves ? pairs : 1);
      const double a = body.angle(row / shape[2] % shape[1], p) * (back ? -1 : 1);
      out[first] = x[first] * std::cos(a) - x[second] * std::sin(a);
      out[second] = x[first] * std::sin(a) + x[second] * std::cos(a);
    }
  return out;
}

Results reference(const Case& c, const Body& body, const Tensor& q0, const Tensor& k0, const Tensor& v0, const Tensor& g0) {
  const Values q = rotated(q0.to_host<double>(), q0.shape(), body, false), v = v0.to_host<double>(), g = g0.to_host<double>();
  const Values k = rotated(k0.to_host<double>(), k0.shape(), body, false);
  const double scale = body.options.scale == 0 ? 1 / std::sqrt(double(c.dk)) : body.options.scale;
  const auto n = [](int64_t x) { return std::size_t(x); };
  Results r{Values(n(c.b * c.tq * c.h * c.dv)), Values(n(c.b * c.h * c.tq)), Values(q.size()), Values(k.size()),
            Values(v.size())};
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t h = 0; h < c.h; ++h)
      for (int64_t i = 0; i < c.tq; ++i) {
        const int64_t group = h / (c.h / c.g), iq = ((b * c.tq + i) * c.h + h);
        const auto at = [&](int64_t j) { return (b * c.tk + j) * c.g + group; };
        Values s(n(c.tk)), p(n(c.tk)), x(n(c.tk));
        double high = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0;
        for (int64_t j = 0; j < c.tk; ++j) {
          for (int64_t f = 0; f < c.dk; ++f) s[n(j)] += scale * q[n(iq * c.dk + f)] * k[n(at(j) * c.dk + f)];
          x[n(j)] = body.score ? body.score(s[n(j)], h, i, j) : s[n(j)];
          if (body.visible && !body.visible(b, h, i, j)) x[n(j)] = -std::numeric_limits<double>::infinity();
          high = std::max(high, x[n(j)]);
        }
        for (int64_t j = 0; j < c.tk; ++j) sum += p[n(j)] = std::isinf(high) ? 0 : std::exp(x[n(j)] - high);
        r.lse[n((b * c.h + h) * c.tq + i)] = high + std::log(sum);
        for (double& y : p) y = sum > 0 ? y / sum : 0;
        const auto weight = [&](int64_t j) { return body.weight ? body.weight(b, h, i, j) : 1.0; };
        for (int64_t j = 0; j < c.tk; ++j)
          for (int64_t f = 0; f < c.dv; ++f) r.o[n(iq * c.dv + f)] += p[n(j)] * weight(j) * v[n(at(j) * c.dv + f)];
        for (int64_t f = 0; f < c.dv; ++f) delta += r.o[n(iq * c.dv + f)] * g[n(iq * c.dv + f)];
        for (int64_t j = 0; j < c.tk; ++j) {
          if (p[n(j)] == 0) continue;
          double dp = 0;
          for (int64_t f = 0; f < c.dv; ++f) {
            dp += g[n(iq * c.dv + f)] * v[n(at(j) * c.dv + f)];
            r.dv[n(at(j) * c.dv + f)] += p[n(j)] * weight(j) * g[n(iq * c.dv + f)];
          }
          const double ds = p[n(j)] * (weight(j) * dp - delta) * (body.derivative ? body.derivative(s[n(j)], h, i, j) : 1);
          for (int64_t f = 0; f < c.dk; ++f) {
            r.dq[n(iq * c.dk + f)] += scale * ds * k[n(at(j) * c.dk + f)];
            r.dk[n(at(j) * c.dk + f)] += scale * ds * q[n(iq * c.dk + f)];
          }
        }
      }
  r.dq = rotated(r.dq, q0.shape(), body, true), r.dk = rotated(r.dk, k0.shape(), body, true);
  return r;
}

Tensor operand(const Shape& shape, unsigned seed, DType dtype) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Values x(std::size_t(shape.numel()));
  for (double& value : x) value = normal(random);
  return cast(Tensor::from(x, shape), dtype);
}

// Relative error in the sense of L2; places that are not finite must agree.
double error_of(const Values& got, const Values& right) {
  double difference = 0, size = 0;
  EXPECT_EQ(got.size(), right.size());
  for (std::size_t i = 0; i < right.size(); ++i) {
    if (!std::isfinite(right[i])) {
      EXPECT_EQ(got[i], right[i]) << i;
      continue;
    }
    difference += (got[i] - right[i]) * (got[i] - right[i]), size += right[i] * right[i];
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

Results run(const Case& c, const Body& body, Results* right = nullptr) {
  const Tensor q = operand({c.b, c.tq, c.h, c.dk}, 1, c.dtype), k = operand({c.b, c.tk, c.g, c.dk}, 2, c.dtype);
  const Tensor v = operand({c.b, c.tk, c.g, c.dv}, 3, c.dtype), g = operand({c.b, c.tq, c.h, c.dv}, 4, c.dtype);
  if (right) *right = reference(c, body, q, k, v, g);
  const Tensor o = attention(q, k, v, body.options), lse = output_of(o, 1);
  const std::vector<Tensor> d = grad(o, g, {q, k, v});
  return {o.to_host<double>(), lse.to_host<double>(), d[0].to_host<double>(), d[1].to_host<double>(), d[2].to_host<double>()};
}

void check(const Case& c, const Body& body) {
  SCOPED_TRACE(fmt::format("batch {}, heads {} / {}, queries {}, keys {}, features {}, {}, {}", c.b, c.h, c.g, c.tq, c.tk, c.dk,
                           c.dv, name_of(c.dtype)));
  Results right;
  const Results got = run(c, body, &right);
  const double tolerance = c.dtype == DType::f64 ? 1e-12 : c.dtype == DType::f32 ? 5e-6 : 8e-3;
  EXPECT_LT(error_of(got.o, right.o), tolerance);
  // Rotated features are rounded to bf16 again, others enter the products as they are.
  const bool rounded = c.dtype == DType::bf16 && body.angle;
  EXPECT_LT(error_of(got.lse, right.lse), c.dtype == DType::f64 ? 1e-12 : rounded ? 1e-3 : 2e-6);
  EXPECT_LT(error_of(got.dq, right.dq), tolerance * 2);
  EXPECT_LT(error_of(got.dk, right.dk), tolerance * 2);
  EXPECT_LT(error_of(got.dv, right.dv), tolerance * 2);
}

// A mask as an expression and as a function.
template <class F>
Body masked(F visible) {
  Body body;
  body.options.mask = [=](Index b, Index h, Index i, Index j) { return visible(b, h, i, j); };
  return body;
}
Body causal(int64_t offset = 0) {
  Body body = masked([=](Index, Index, Index i, Index j) { return j <= i + Expr(offset); });
  body.visible = [=](int64_t, int64_t, int64_t i, int64_t j) { return j <= i + offset; };
  return body;
}
Body window(int64_t width, int64_t meta) {
  Body body = masked([=](Index, Index, Index i, Index j) { return j <= i && (i - j < Expr(width) || j < Expr(meta)); });
  body.visible = [=](int64_t, int64_t, int64_t i, int64_t j) { return j <= i && (i - j < width || j < meta); };
  return body;
}

// 30 tanh(s / 30) - slope(h) (i - j), with the slopes in a tensor.
Body capped(int64_t heads, bool with_mask) {
  Body body = with_mask ? causal(1) : Body{};
  Values slopes;
  for (int64_t h = 0; h < heads; ++h) slopes.push_back(double(h + 1) / 64);
  const Tensor t = cast(Tensor::from(slopes, {heads}), DType::f32);
  const auto score = [=](Expr s, Index, Index h, Index i, Index j) { return 3 * tanh(s / 3) - t(h) * to_real(i - j); };
  body.options.score = score;
  body.score = [=](double s, int64_t h, int64_t i, int64_t j) {
    return 3 * std::tanh(s / 3) - slopes[std::size_t(h)] * double(i - j);
  };
  body.derivative = [](double s, int64_t, int64_t, int64_t) { return 1 - std::tanh(s / 3) * std::tanh(s / 3); };
  return body;
}

constexpr DType kTypes[] = {DType::bf16, DType::f32, DType::f64};

TEST_F(AttentionKernels, WithoutAMask) {
  for (const DType dtype : kTypes) check({2, 2, 1, 37, 50, 32, 16, dtype}, {});
}
TEST_F(AttentionKernels, Causal) {
  check({2, 4, 2, 97, 97, 64, 64}, causal());
  for (const DType dtype : {DType::f32, DType::f64}) check({1, 2, 1, 37, 50, 24, 16, dtype}, causal(13));
}
TEST_F(AttentionKernels, Scales) {
  for (const double scale : {-0.7, 0.01, 3.0})
    for (const DType dtype : kTypes) {
      Body body = causal(3);
      body.options.scale = scale;
      check({1, 1, 1, 70, 90, 16, 16, dtype}, body);
    }
}
TEST_F(AttentionKernels, OneQuery) {
  for (const DType dtype : kTypes) check({2, 2, 1, 1, 70, 16, 24, dtype}, causal(69)), check({1, 1, 1, 1, 1, 8, 8, dtype}, {});
}
// More queries than keys: the first see nothing, which gives 0 and no gradient.
TEST_F(AttentionKernels, RowsThatSeeNothing) {
  for (const DType dtype : kTypes) check({1, 2, 2, 90, 65, 16, 16, dtype}, causal(-25));
  Body nothing = masked([](Index, Index, Index i, Index j) { return i < Expr(0) && j < Expr(0); });
  nothing.visible = [](int64_t, int64_t, int64_t, int64_t) { return false; };
  check({1, 2, 1, 70, 65, 16, 16}, nothing);
}
TEST_F(AttentionKernels, WindowAndMeta) {
  check({1, 2, 1, 200, 200, 16, 16}, window(40, 9));
  check({1, 1, 1, 150, 150, 16, 16, DType::f32}, window(200, 300));  // wider than the sequence
}
// Above 384 places the two kinds of blocks have launches of their own.
TEST_F(AttentionKernels, TwoLaunches) {
  check({1, 2, 1, 400, 400, 16, 16}, causal());
  check({1, 1, 1, 390, 40, 16, 72}, {});
  check({1, 1, 1, 390, 40, 16, 48, DType::f32}, {});
  check({1, 1, 1, 390, 20, 8, 24, DType::f64}, {});
}
// The keys that all see have a list that is cut, with partial sums.
TEST_F(AttentionKernels, ListsThatAreCut) {
  check({2, 2, 1, 700, 700, 8, 8}, window(16, 3));
  check({1, 1, 1, 450, 450, 8, 8, DType::f32}, window(16, 3));
}
TEST_F(SlowAttentionKernels, ListsThatAreCut) {
  for (const DType dtype : {DType::f32, DType::f64}) check({2, 2, 1, 1100, 1100, 8, 8, dtype}, window(16, 3));
}
TEST_F(AttentionKernels, SizesOfHeads) {
  for (const auto& [dk, dv] : {std::pair{8, 8}, {16, 40}, {72, 24}, {64, 128}, {256, 256}})
    for (const DType dtype : kTypes) check({1, 2, 1, 21, 35, dk, dv, dtype}, causal(14));
}
TEST_F(SlowAttentionKernels, SizesOfHeads) {
  for (const auto& [dk, dv] : {std::pair{32, 32}, {128, 64}, {128, 128}, {96, 192}, {8, 256}})
    for (const DType dtype : kTypes) check({1, 2, 1, 70, 97, dk, dv, dtype}, causal(27));
}
// Each head its own window: lists of its own, and in the blocks that own keys entries of its own.
TEST_F(AttentionKernels, AMaskOfTheHead) {
  Body body = masked([](Index, Index h, Index i, Index j) { return j <= i && i - j < 20 + h * 40; });
  body.visible = [](int64_t, int64_t h, int64_t i, int64_t j) { return j <= i && i - j < 20 + h * 40; };
  check({2, 4, 2, 150, 150, 16, 16}, body);
  check({1, 4, 2, 420, 420, 16, 16, DType::f32}, body);
}
// Scalars and tensors in the mask: it is evaluated in the kernel.
Body packed(int64_t batch, int64_t length) {
  std::vector<int64_t> ids;
  for (int64_t t = 0; t < batch * length; ++t) ids.push_back(t / 37);
  const Tensor segments = Tensor::from(ids, {batch, length});
  Body body = masked([=](Index b, Index, Index i, Index j) { return j <= i && equal(segments(b, i), segments(b, j)); });
  const auto id = [=](int64_t b, int64_t t) { return (b * length + t) / 37; };
  body.visible = [=](int64_t b, int64_t, int64_t i, int64_t j) { return j <= i && id(b, i) == id(b, j); };
  return body;
}
TEST_F(AttentionKernels, EvaluatedMasks) {
  for (const DType dtype : kTypes) check({2, 2, 1, 100, 100, 16, 16, dtype}, packed(2, 100));
}
TEST_F(AttentionKernels, Score) {
  for (const DType dtype : kTypes) {
    check({1, 4, 2, 70, 71, 16, 16, dtype}, capped(4, true));
    check({1, 4, 2, 40, 33, 16, 16, dtype}, capped(4, false));
  }
}
// Scores that grow along the keys: what was added up of every tile is multiplied to refer to the maximum of the next one.
TEST_F(AttentionKernels, MaximaThatMove) {
  Body body;
  body.options.score = [](Expr s, Index, Index, Index, Index j) { return s + to_real(j) * 0.1875; };
  body.score = [](double s, int64_t, int64_t, int64_t j) { return s + double(j) * 0.1875; };
  for (const char* architecture : {"sm_80", "sm_90a"}) {
    const UseKernels kernels(architecture);
    check({1, 2, 1, 20, 250, 16, 16}, body);
  }
  check({1, 1, 1, 20, 250, 16, 16, DType::f32}, body);
}
Body weighted(bool hidden) {
  Body body = hidden ? causal(2) : Body{};
  body.options.weight = [](Index, Index h, Index i, Index j) { return to_real(j + 2 * i + h) / 50; };
  body.weight = [](int64_t, int64_t h, int64_t i, int64_t j) { return double(j + 2 * i + h) / 50; };
  return body;
}
TEST_F(AttentionKernels, Weight) {
  for (const bool hidden : {false, true}) {
    const Body body = weighted(hidden);
    for (const DType dtype : kTypes) check({1, 2, 1, 37, 50, 16, 16, dtype}, body);
  }
}
Body rotating(Pairing pairing) {
  Body body = causal(3);
  // So large that they are reduced with care, and exact in fp32.
  const auto angle = [](Index t, Index p) { return to_real(t * (p + 1) * 1500); };
  body.angle = [](int64_t t, int64_t p) { return double(t * (p + 1) * 1500); };
  body.options.pairing = pairing;
  body.options.rotate = [=](Expr x, Expr y, Index, Index, Index t, Index p) {
    const Expr c = cos(angle(t, p)), s = sin(angle(t, p));
    return Pair{x * c - y * s, x * s + y * c};
  };
  return body;
}
TEST_F(AttentionKernels, Rotation) {
  for (const Pairing pairing : {Pairing::halves, Pairing::neighbours}) {
    const Body body = rotating(pairing);
    for (const DType dtype : kTypes) check({2, 4, 2, 37, 40, 16, 16, dtype}, body);
    check({1, 1, 1, 20, 390, 16, 16}, body);
  }
}
// Gradients of what the score captures, which the kernels sum over what its subscripts do not depend on: as the CPU has them.
void check_captured(std::string_view on, int64_t queries, int64_t keys, DType dtype, int64_t dk = 16, int64_t dv = 24) {
  SCOPED_TRACE(fmt::format("{} queries, {} keys, features {}, {}, {}", queries, keys, dk, dv, name_of(dtype)));
  const auto run_on = [&](std::string_view name) {
    use_device(name);
    const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
    const Tensor q = operand({2, queries, 4, dk}, 1, dtype), k = operand({2, keys, 2, dk}, 2, dtype);
    const Tensor v = operand({2, keys, 2, dv}, 3, dtype), g = operand({2, queries, 4, dv}, 4, dtype);
    const Tensor bias = operand({4, 70}, 5, wide), near = operand({queries}, 6, wide), slopes = operand({4}, 7, wide);
    const Tensor gain = operand({2, queries}, 8, wide), key_bias = operand({4, keys}, 9, wide);
    const Tensor o = attention(
        q, k, v,
        {.score = [&](Expr s, Index b, Index h, Index i,
                      Index j) { return tanh(s * gain(b, i)) + bias(h, i - j) + near(i - j) * slopes(h) + key_bias(h, j); },
         .mask = [](Index, Index, Index i, Index j) { return i >= j && i - j < 70; }});
    std::vector<Values> out;
    for (const Tensor& d : grad(o, g, {q, k, v, bias, near, slopes, gain, key_bias})) out.push_back(d.to_host<double>());
    out.push_back(o.to_host<double>());
    return out;
  };
  const std::vector<Values> right = run_on("cpu"), got = run_on(on);
  for (std::size_t k = 0; k < right.size(); ++k)
    EXPECT_LT(error_of(got[k], right[k]), dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 5e-6 : 1e-2) << k;
}
TEST_F(AttentionKernels, GradientsOfCapturedTensors) {
  for (const auto& [tq, tk] : {std::pair<int64_t, int64_t>{70, 90}, {390, 40}, {5, 3}})
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) check_captured("emu", tq, tk, dtype);
}
// Dropped probabilities are drawn by their place: the same on the CPU, and again in the backward pass.
void check_dropped(std::string_view on, int64_t length, DType dtype, int64_t d) {
  const auto run_on = [&](std::string_view name) {
    use_device(name);
    Rng frozen(3);
    const UseRng use(frozen);
    const Tensor q = operand({2, length, 2, d}, 1, dtype), k = operand({2, length, 1, d}, 2, dtype);
    const Tensor v = operand({2, length, 1, d}, 3, dtype), g = operand({2, length, 2, d}, 4, dtype);
    const Tensor o = attention(q, k, v, {.causal = true, .weight = dropped(0.4)});
    std::vector<Tensor> results = grad(o, g, {q, k, v});
    results.push_back(o);
    std::vector<Values> out;
    for (const Tensor& r : results) out.push_back(r.to_host<double>());
    return out;
  };
  const std::vector<Values> right = run_on("cpu"), got = run_on(on);
  for (std::size_t k = 0; k < right.size(); ++k) EXPECT_LT(error_of(got[k], right[k]), dtype == DType::f32 ? 5e-6 : 1e-2) << k;
}
TEST_F(AttentionKernels, Dropped) { check_dropped("emu", 70, DType::f32, 16); }
// A text holds no size of the batch or of time.
// Dense ones too, which are not read where they lie if 16 bytes of them cannot be.
TEST_F(AttentionKernels, OperandsThatBeginAnywhere) {
  for (const DType dtype : kTypes) {
    const Tensor line = operand({1000}, 1, dtype);
    const Values values = line.to_host<double>();
    const auto results = [&](bool in_line) {
      const auto part = [&](int64_t begin, const Shape& shape) {
        const int64_t end = begin + shape.numel();
        if (in_line) return reshape(slice(line, 0, begin, end), shape);
        return cast(Tensor::from(Values(values.begin() + begin, values.begin() + end), shape), dtype);
      };
      const Tensor q = part(3, {1, 5, 2, 16}), k = part(163, {1, 7, 1, 16}), v = part(281, {1, 7, 1, 24});
      const Tensor o = attention(q, k, v, {.causal = true});
      std::vector<Tensor> out = grad(o, part(451, {1, 5, 2, 24}), {q, k, v});
      out.push_back(o);
      return weft::run([&] { return out; });
    };
    const std::vector<Tensor> got = results(true), right = results(false);
    for (std::size_t n = 0; n < got.size(); ++n) EXPECT_EQ(got[n].to_host<double>(), right[n].to_host<double>()) << n;
  }
}

TEST_F(AttentionKernels, TextsOfOtherSizes) {
  const auto texts_of = [](int64_t b, int64_t tq, int64_t tk) {
    const Tensor q = operand({b, tq, 4, 16}, 1, DType::bf16), k = operand({b, tk, 2, 16}, 2, DType::bf16);
    const Tensor v = operand({b, tk, 2, 16}, 3, DType::bf16);
    const auto plan = plan_for(target_for("sm_80"), [&] {
      const Tensor o = attention(q, k, v,
                                 {.score = [](Expr s) { return tanh(s); },
                                  .mask = [](Index, Index, Index i, Index j) { return j <= i && (i - j < 16 || j < 3); }});
      return grad(sum(o), {q, k, v});
    });
    std::vector<std::string> texts;
    for (const PlannedKernel& kernel : plan->kernels)
      if (const auto* cuda = std::get_if<CudaKernelPointer>(&kernel.work))
        if ((*cuda)->name.starts_with("attention")) texts.push_back((*cuda)->text);
    return texts;
  };
  const std::vector<std::string> two = texts_of(2, 900, 900), one = texts_of(1, 1500, 1600), few = texts_of(3, 60, 70);
  EXPECT_EQ(two.size(), 4u);  // forward, queries, keys, sums of parts
  EXPECT_EQ(two, one);
  EXPECT_EQ(two[0], few[0]);
}

// Documents and windows that the kernel alone knows: tiles of which nothing is visible cost no products.
TEST_F(AttentionKernels, TilesThatTheKernelPassesOver) {
  const auto products = [](const AttentionOptions& options, int64_t length) {
    const Tensor q = operand({1, length, 2, 16}, 1, DType::bf16), k = operand({1, length, 1, 16}, 2, DType::bf16);
    const Tensor v = operand({1, length, 1, 16}, 3, DType::bf16), g = operand({1, length, 2, 16}, 4, DType::bf16);
    for (const Tensor& t : {q, k, v, g}) t.to_host<double>();
    reset_emulated_counters();
    weft::run([&] { return grad(attention(q, k, v, options), g, {q, k, v}); });
    std::uint64_t count = 0;
    for (const auto& [name, counters] : emulated_counters())
      for (const auto& [counter, value] : counters.named())
        if (name.starts_with("attention") && std::string_view(counter) == "warp_instructions.matrix") count += value;
    return count;
  };
  const int64_t length = 384;
  std::vector<int64_t> ids;
  for (int64_t t = 0; t < length; ++t) ids.push_back(7 - t / 128);
  const Tensor segments = Tensor::from(ids, {1, length});
  const auto windowed = [](int64_t width) {
    const Scalar window{double(width)};
    return AttentionOptions{.mask = [&](Index, Index, Index i, Index j) { return j <= i && i - j < to_integer(window); }};
  };
  for (const char* architecture : {"sm_80", "sm_90a"}) {
    SCOPED_TRACE(architecture);
    const UseKernels kernels(architecture);
    const std::uint64_t all = products({}, length), triangle = products({.causal = true}, length);  // 36 and 21 pairs of tiles
    const std::uint64_t pair = (all - triangle) / 15;
    EXPECT_EQ(pair * 15, all - triangle);
    EXPECT_GT(pair, 0u);
    EXPECT_EQ(products({.segments = segments}, length), all - 24 * pair);
    EXPECT_EQ(products({.causal = true, .segments = segments}, length), triangle - 12 * pair);
    EXPECT_EQ(products(windowed(64), length), triangle - 10 * pair);
    EXPECT_EQ(products(windowed(1000), length), triangle);
  }
}
void check_equal_bits(const Case& c, const Body& body) {
  const Results first = run(c, body), second = run(c, body);
  EXPECT_EQ(first.o, second.o);
  EXPECT_EQ(first.lse, second.lse);
  EXPECT_EQ(first.dq, second.dq);
  EXPECT_EQ(first.dk, second.dk);
  EXPECT_EQ(first.dv, second.dv);
}
TEST_F(AttentionKernels, EqualBits) { check_equal_bits({1, 4, 2, 200, 200, 32, 32}, window(40, 9)); }

// ---- other versions of the kernels ------------------------------------------------------------------------------------------

// Whether planning for the device in use gives kernels of wgmma.
bool by_wgmma(int64_t dk, int64_t dv, bool holes = false) {
  const Tensor q = operand({1, 20, 1, dk}, 1, DType::bf16), v = operand({1, 20, 1, dv}, 2, DType::bf16);
  const AttentionOptions options = holes ? capped(1, true).options : AttentionOptions{.causal = true};
  const auto plan = plan_for(target(), [&] { return grad(sum(attention(q, q, v, options)), {q, v}); });
  int all = 0, products = 0;
  for (const PlannedKernel& kernel : plan->kernels)
    if (const auto* cuda = std::get_if<CudaKernelPointer>(&kernel.work))
      if ((*cuda)->name.starts_with("attention_backward") || (*cuda)->name.starts_with("attention__"))
        ++all, products += (*cuda)->text.find("Wgmma<") != std::string::npos;
  EXPECT_EQ(all, 2);
  EXPECT_TRUE(products == 0 || products == all) << products;
  return products > 0;
}

TEST_F(AttentionKernels, VersionsOfTheTarget) {
  {
    const UseKernels all("sm_80");
    EXPECT_FALSE(by_wgmma(64, 64));
  }
  const UseKernels hopper("sm_90a");
  for (const bool holes : {false, true}) {
    EXPECT_TRUE(by_wgmma(64, 64, holes));
    EXPECT_TRUE(by_wgmma(128, 128, holes));
    EXPECT_TRUE(by_wgmma(8, 40, holes));
    EXPECT_FALSE(by_wgmma(256, 256, holes));
  }
}
TEST_F(AttentionKernels, OfHopper) {
  const UseKernels hopper("sm_90a");
  check({2, 2, 1, 37, 50, 32, 16}, {});
  check({1, 4, 2, 97, 97, 64, 64}, causal());
  check({2, 2, 1, 100, 100, 16, 16}, packed(2, 100));
  check({1, 2, 1, 400, 400, 16, 16}, window(40, 9));
}
TEST_F(SlowAttentionKernels, OfHopper) {
  const UseKernels hopper("sm_90a");
  for (const auto& [dk, dv] : {std::pair{8, 8}, {16, 40}, {72, 24}, {64, 128}, {96, 96}, {128, 128}, {8, 248}})
    check({1, 2, 1, 70, 97, dk, dv}, causal(27));
  for (const double scale : {-0.7, 3.0}) {
    Body body = causal(3);
    body.options.scale = scale;
    check({1, 1, 1, 70, 90, 16, 16}, body);
  }
  check({1, 2, 2, 90, 65, 16, 16}, causal(-25));
  check({1, 2, 1, 700, 700, 8, 8}, window(16, 3));
  check({1, 2, 1, 390, 40, 64, 64}, {});
  check({1, 4, 2, 70, 71, 16, 16}, capped(4, true));
  check({1, 2, 1, 70, 71, 128, 128}, capped(2, true));
  for (const bool hidden : {false, true}) check({1, 2, 1, 37, 50, 16, 16}, weighted(hidden));
  check({1, 2, 1, 37, 50, 64, 136}, weighted(true));
  check({2, 4, 2, 37, 40, 16, 16}, rotating(Pairing::halves));
  check_captured("emu", 70, 90, DType::bf16);
  check_captured("emu", 390, 40, DType::bf16);
  check_dropped("emu", 70, DType::bf16, 16);
  check_equal_bits({1, 4, 2, 200, 200, 32, 32}, window(40, 9));
}

// Where there is a GPU: its own kernels, and those for all GPUs.
class SlowAttentionOnAGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto missing = missing_cuda_device()) GTEST_SKIP() << *missing;
    before_ = device();
    use_device("cuda");
  }
  void TearDown() override { use_device(name_of(before_)); }
  // Calls f for each version.
  template <class F>
  void with_each_version(F f) {
    f();
    if (!target().sm_90a()) return;
    SCOPED_TRACE("kernels for all GPUs");
    const UseKernels all("sm_80");
    f();
  }

 private:
  Device before_ = Device::cpu;
};

constexpr std::pair<int64_t, int64_t> kHeads[] = {{64, 64}, {64, 128}, {128, 128}, {96, 96},   {8, 8},
                                                  {16, 40}, {128, 64}, {72, 24},   {136, 120}, {256, 256}};

TEST_F(SlowAttentionOnAGpu, TakesItsVersion) {
  EXPECT_EQ(by_wgmma(64, 64), target().sm_90a());
  const UseKernels all("sm_80");
  EXPECT_FALSE(by_wgmma(64, 64));
}
TEST_F(SlowAttentionOnAGpu, Lengths) {
  with_each_version([] {
    for (const auto& [dk, dv] : kHeads)
      for (const int64_t t : {1, 63, 97, 257, 320}) check({2, 4, 2, t, t, dk, dv}, causal());
    for (const auto& [dk, dv] : {std::pair{64, 64}, {128, 128}}) {
      check({1, 4, 2, 1025, 1025, dk, dv}, causal());
      check({1, 3, 1, 257, 1025, dk, dv}, causal(768));
      check({1, 2, 2, 449, 130, dk, dv}, causal(-100));
      check({2, 2, 1, 449, 450, dk, dv}, {});
    }
  });
}
TEST_F(SlowAttentionOnAGpu, WindowsAndMeta) {
  with_each_version([] {
    for (const auto& [dk, dv] : kHeads)
      for (const int64_t t : {97, 320, 700}) check({1, 4, 2, t, t, dk, dv}, window(t / 3, 9));
    check({1, 2, 1, 1025, 1025, 64, 64}, window(64, 70));
  });
}
TEST_F(SlowAttentionOnAGpu, Holes) {
  with_each_version([] {
    for (const auto& [dk, dv] : {std::pair{64, 64}, {64, 128}, {128, 128}, {16, 40}})
      for (const int64_t t : {97, 450}) {
        check({2, 4, 2, t, t, dk, dv}, packed(2, t));
        for (const bool hidden : {false, true}) {
          check({1, 4, 2, t, t, dk, dv}, capped(4, hidden));
          check({1, 4, 2, t, t, dk, dv}, weighted(hidden));
        }
        for (const Pairing pairing : {Pairing::halves, Pairing::neighbours}) check({1, 4, 2, t, t, dk, dv}, rotating(pairing));
        check_captured("cuda", t, t + 20, DType::bf16, dk, dv);
      }
    for (const double scale : {-0.7, 0.01, 3.0}) {
      Body body = causal(3);
      body.options.scale = scale;
      check({1, 2, 1, 200, 250, 64, 64}, body);
    }
    check_dropped("cuda", 450, DType::bf16, 64);
  });
}
TEST_F(SlowAttentionOnAGpu, EqualBits) {
  with_each_version([] {
    for (const auto& [dk, dv] : {std::pair{64, 64}, {128, 128}})
      for (const int64_t t : {320, 2000}) {
        check_equal_bits({4, 4, 2, t, t, dk, dv}, causal());
        check_equal_bits({4, 4, 2, t, t, dk, dv}, window(128, 64));
        check_equal_bits({2, 4, 2, t, t, dk, dv}, capped(4, true));
      }
  });
}

}  // namespace
}  // namespace weft
