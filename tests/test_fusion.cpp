// A rewrite changes no result: programs with fusion and without it, and on every device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "autograd/backward.h"
#include "autograd/host_tensor.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "autograd/state.h"
#include "autograd/tape.h"
#include "jit/driver.h"
#include "ops/ops.h"
#include "tests/random_expr.h"

namespace weft {
namespace {

using Doubles = std::vector<double>;
constexpr double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();

class OnSettings {
 public:
  OnSettings(bool fuse, bool contract) {
    settings().fuse = fuse;
    contraction() = contract;
  }
  ~OnSettings() {
    settings().fuse = fuse_;
    contraction() = contract_;
  }
  OnSettings(const OnSettings&) = delete;
  OnSettings& operator=(const OnSettings&) = delete;

 private:
  bool fuse_ = settings().fuse, contract_ = contraction();
};

class OnDevice {
 public:
  explicit OnDevice(Device d) { use_device(name_of(d)); }
  ~OnDevice() { use_device(name_of(before_)); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  Device before_ = device();
};

// Those beside the CPU.
std::vector<Device> gpus() {
  std::vector<Device> out;
  if (!missing_library(CudaLibrary::nvrtc)) out.push_back(Device::emu);
  if (!missing_cuda_device()) out.push_back(Device::cuda);
  return out;
}

Tensor reals(const Doubles& values, DType dtype = DType::f32) {
  const Shape shape{std::int64_t(values.size())};
  return dtype == DType::f64 ? Tensor::from(values, shape)
                             : Tensor::from(std::vector<float>(values.begin(), values.end()), shape);
}
Tensor integers(const std::vector<std::int64_t>& values) { return Tensor::from(values, Shape{std::int64_t(values.size())}); }
Tensor booleans(const std::vector<std::uint8_t>& values) { return Tensor::from(values, Shape{std::int64_t(values.size())}); }

void expect_equal(const Tensor& got, const Doubles& want, const std::string& what) {
  const Doubles values = got.to_host<double>();
  ASSERT_EQ(values.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_TRUE(values[i] == want[i] || (std::isnan(values[i]) && std::isnan(want[i])))
        << what << ", element " << i << ": " << values[i] << " for " << want[i];
}

// f() with every op in a kernel of its own, and fused.
template <class F>
void both_ways(F f) {
  for (const bool fuse : {false, true}) {
    const OnSettings use(fuse, true);
    SCOPED_TRACE(fuse ? "fused" : "unfused");
    f();
  }
}

// ---- kinds ------------------------------------------------------------------------------------------------------------------

TEST(Fusion, ACastIsAlwaysARounding) {
  const double third = 1 / 3.0;
  both_ways([&] {
    const Tensor x = reals({1.00390625, 3.4e38, -3.4e38, 1.01171875, kNan}), wide = reals({1e300, third, 1e-300}, DType::f64);
    const auto bf16_and_back = [](const Tensor& t) { return cast(cast(t, DType::bf16), t.dtype()); };
    const auto [there, straight, fp32, once] = run([&] {
      return std::array{bf16_and_back(x), x + detach(bf16_and_back(x) - x), cast(cast(wide, DType::f32), DType::f64) * 1.0,
                        bf16_and_back(wide) * 1.0};
    });
    expect_equal(there, {1, kInf, -kInf, 1.015625, kNan}, "f32 to bf16 and back");
    expect_equal(straight, {1, kInf, -kInf, 1.015625, kNan}, "straight through");
    expect_equal(fp32, {kInf, double(float(third)), 0}, "f64 to f32 and back");
    expect_equal(once, {kInf, 0.333984375, 0}, "f64 to bf16 and back");
    const Tensor upstream = reals({1.00390625, 1, 1, 3.4e38, 2});
    expect_equal(run([&] { return grad(bf16_and_back(x), upstream, {x})[0]; }), {1, 1, 1, kInf, 2}, "the gradient");
  });
}

// Sums of i32 wrap, whether they are stored or not.
TEST(Fusion, IntegersOf32BitsWrap) {
  both_ways([] {
    const Tensor a = Tensor::from(std::vector<std::int32_t>{2'000'000'000, -7}, {2});
    const auto [sum, test] = run([&] { return std::pair(cast(a + a, DType::f32), less(a * 2, 0.0)); });
    expect_equal(sum, {-294967296, -14}, "a + a");
    expect_equal(test, {1, 1}, "2 a < 0");
  });
}

TEST(Fusion, ProductsAndSumsAreThoseOfIeee) {
  both_ways([] {
    const Tensor minus = reals({-1, 2, -0.0}), infinite = reals({kInf, kInf, kInf}), condition = booleans({0, 1, 1});
    const auto results = run([&] {
      const Tensor masked = where(condition, minus, zeros({3}));
      return std::vector{relu(minus) * infinite,
                         infinite * masked,
                         masked / zeros({3}),
                         exp(1.0 / (minus + zeros({3}))),  // -0 + 0 is 0
                         exp(1.0 / (minus - zeros({3}))),
                         exp(1.0 / -where(condition, zeros({3}), minus)),
                         exp(1.0 / max(minus, zeros({3}))),
                         exp(1.0 / min(zeros({3}), minus))};
    });
    const Doubles want[] = {{kNan, kInf, kNan},
                            {kNan, kInf, kNan},
                            {kNan, kInf, kNan},
                            {double(float(std::exp(-1.0))), double(std::exp(0.5f)), kInf},
                            {double(float(std::exp(-1.0))), double(std::exp(0.5f)), 0},
                            {double(std::exp(1.0f)), 0, 0},
                            {kInf, double(std::exp(0.5f)), kInf},
                            {double(float(std::exp(-1.0))), kInf, 0}};
    for (std::size_t k = 0; k < std::size(want); ++k) {
      const Doubles got = results[k].to_host<double>();
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_TRUE(std::isnan(want[k][i]) ? std::isnan(got[i]) : got[i] == want[k][i] || std::abs(got[i] - want[k][i]) < 1e-6)
            << k << ", element " << i << ": " << got[i] << " for " << want[k][i];
    }
  });
}

// What fp64 has and fp32 has not is not computed before the precision is known.
TEST(Fusion, LiteralsAreFoldedInEveryPrecisionOrNot) {
  both_ways([] {
    const auto tower = [](DType dtype) {
      return 1.0 / exp(exp(ones({1}, dtype) + 1 + 1 + 1 + 1));  // e^(e^5) is 2.8e64
    };
    const auto [narrow, wide] = run([&] { return std::pair(tower(DType::f32), tower(DType::f64)); });
    EXPECT_EQ(narrow.item(), 0);
    EXPECT_GT(wide.item(), 0);
  });
}

TEST(Fusion, TheGradientOfAnArmThatIsNotTakenIsZero) {
  both_ways([] {
    const Tensor zero = reals({0}), x = reals({0, -1, 2, kNan}), y = reals({0, kInf, 0.5, kNan});
    const Tensor positive = booleans({0, 0, 1, 0}), never = booleans({0, 0, 0}), once = booleans({0, 1, 0});
    const auto gradients = [](auto f, const std::vector<Arg>& wrt) {
      return run([&] {
        const Tensor value = f();
        return grad(value, ones(value.shape()), wrt);
      });
    };
    const Doubles none = {0, 0, 0, 0};
    expect_equal(gradients([&] { return where(positive, log(x), zeros({})); }, {x})[0], {0, 0, 0.5, 0}, "log");
    expect_equal(gradients([&] { return where(never, log(zero), zeros({})); }, {zero})[0], {0}, "a broadcast log");
    expect_equal(gradients([&] { return where(once, log(zero), zeros({})); }, {zero})[0], {kInf}, "where it is taken once");
    const auto products = gradients([&] { return where(positive, x * y, zeros({})); }, {x, y});
    expect_equal(products[0], {0, 0, 0.5, 0}, "x y by x");
    expect_equal(products[1], {0, 0, 2, 0}, "x y by y");
    const auto quotients = gradients([&] { return where(positive, x / y, zeros({})); }, {x, y});
    expect_equal(quotients[0], {0, 0, 2, 0}, "x / y by x");
    expect_equal(quotients[1], {0, 0, -8, 0}, "x / y by y");
    const auto powers = gradients([&] { return where(positive, pow(x, y), zeros({})) * 0.0; }, {x, y});
    for (const Tensor& g : powers) expect_equal(g, none, "a power");
    const auto inside = [&] {
      return pointwise("inside", {x, y}, [](Expr a, Expr b) { return where(a > 0.0, log(a) * rsqrt(a), b * 0.0); });
    };
    EXPECT_TRUE(std::isfinite(gradients(inside, {x})[0].to_host<double>()[0])) << "in one op";
    // What is taken has its slope, finite or not.
    expect_equal(gradients([&] { return log(x); }, {x})[0], {kInf, -1, 0.5, kNan}, "log everywhere");
  });
}

// A gradient of 0 is passed on as 0, but by that gradient itself there is a slope: second derivatives go through it.
TEST(Fusion, AGradientOfZeroHasASlope) {
  both_ways([] {
    const Tensor x = reals({3, 3, 3}), w = reals({2, 2, kInf}), g = reals({0, 1, 0}), h = reals({5, 5, 0});
    const auto [by_gradient, by_factor] = run([&] {
      Tape& t = tape();
      const auto differentiate = [&](NodeId id, const Tensor& by, const Tensor& upstream) {
        const std::vector<NodeId> inputs(t.inputs_of(id).begin(), t.inputs_of(id).end());
        const auto k = int(std::find(inputs.begin(), inputs.end(), by.node()) - inputs.begin());
        return pointwise_gradient(t, id, k, inputs, id, upstream.node());
      };
      const NodeId first = differentiate((x * w).node(), x, g);  // g w, or 0
      return std::pair(handle(differentiate(first, g, h)), handle(differentiate(first, w, h)));
    });
    expect_equal(by_gradient, {10, 10, 0}, "by the gradient");
    expect_equal(by_factor, {0, 5, 0}, "by the factor");
  });
}

// As PyTorch decides.
TEST(Fusion, SlopesAtTheEdges) {
  both_ways([] {
    const Doubles bases = {0, 0, 0, 0, 0, -2, -2, 2}, exponents = {0.5, -1, 0, 1, 2, 2, 0, 3};
    const Tensor base = reals(bases, DType::f64), exponent = reals(exponents, DType::f64);
    const auto of = [](Tensor (*f)(Arg, Arg), const Tensor& a, const Tensor& b) {
      return run([&] { return grad(f(a, b), ones(a.shape(), a.dtype()), {a, b}); });
    };
    const auto power = of(pow, base, exponent);
    expect_equal(power[0], {kInf, -kInf, 0, 1, 0, -4, 0, 12}, "pow by its base");
    expect_equal(power[1], {0, -kInf, 0, 0, 0, kNan, kNan, 8 * std::log(2.0)}, "pow by its exponent");
    const Tensor a = reals({kNan, 1, 2, 3, 3}), b = reals({1, kNan, 2, 1, 4});
    for (const auto& extreme : {of(max, a, b), of(min, a, b)})
      for (const Tensor& g : extreme) {
        const Doubles values = g.to_host<double>();
        EXPECT_EQ(Doubles(values.begin(), values.begin() + 3), Doubles({1, 1, 0.5})) << "all of it beside a NaN, half at a tie";
      }
    expect_equal(of(max, a, b)[0], {1, 1, 0.5, 1, 0}, "max");
    expect_equal(of(min, a, b)[0], {1, 1, 0.5, 0, 1}, "min");
    expect_equal(run([&] { return grad(sum(max(a, {0})), {a})[0]; }), {1, 0, 0, 0, 0}, "max over an axis, of a NaN");
    const Tensor nans = reals({kNan, 1, kNan});
    expect_equal(run([&] { return grad(max(nans, {0}), {nans})[0]; }), {0.5, 0, 0.5}, "NaNs share it");
    const Tensor ends = reals({-3, -2, 0, 5, 7});
    expect_equal(run([&] { return grad(sum(clamp(ends, -2, 5)), {ends})[0]; }), {0, 1, 1, 1, 0}, "clamp at its bounds");
    const Tensor large = reals({1e30, -1e30, 1e13, -20, 20});
    expect_equal(run([&] { return gelu_tanh(large); }), {double(1e30f), 0, double(1e13f), 0, 20}, "gelu_tanh");
    expect_equal(run([&] { return grad(sum(gelu_tanh(large)), {large})[0]; }), {1, 0, 1, 0, 1}, "gelu_tanh far out");
    const auto quotient = [](Arg n, Arg d) { return n / d; };
    expect_equal(of(quotient, reals({0, 3}), reals({1e-40, 2}))[1], {0, -0.75}, "0 / 1e-40 by the divisor");
  });
}

TEST(Conversions, ToIntegersSaturate) {
  constexpr double kMost = 2147483647, kLeast = -2147483648;
  both_ways([] {
    for (const DType from : {DType::f32, DType::f64}) {
      const Tensor x = reals({1e19, -1e19, 3e9, -3e9, 2.75, -2.75, kNan, kInf}, from);
      const auto [narrow, wide] =
          run([&] { return std::pair(cast(cast(x, DType::i32), DType::f64), cast(cast(x, DType::i64), DType::f64)); });
      expect_equal(narrow, {kMost, kLeast, kMost, kLeast, 2, -2, kLeast, kMost}, "to i32");
      expect_equal(wide,
                   {0x1p63, -0x1p63, double(from == DType::f32 ? float(3e9) : 3e9),
                    from == DType::f32 ? -double(float(3e9)) : -3e9, 2, -2, -0x1p63, 0x1p63},
                   "to i64");
    }
    expect_equal(run([] { return full({1}, 1e19, DType::i32); }), {kMost}, "a constant");
    expect_equal(run([] { return cast(integers({(std::int64_t(1) << 32) + 5}), DType::i32); }), {5}, "i64 to i32 wraps");
    State state({2}, DType::i32, "state");
    run([&] { assign(state, reals({1e19, -7.5})); });
    expect_equal(run([&] { return state.read(); }), {kMost, -7}, "a State");
  });
}

// Just above the middle of two bf16: by way of fp32, which is that middle, it would go to the even one.
TEST(Conversions, Fp64ToBf16RoundsOnce) {
  const double above = 1 + 0x1p-8 + 0x1p-40, below = 1 + 0x1p-7 + 0x1p-8 - 0x1p-40, most = 0x1.ffp127;
  const Doubles x = {above, -above, below, most * (1 - 0x1p-50), most, 0x1p-133 * (1.5 + 0x1p-45), kNan};
  const Doubles want = {1 + 0x1p-7, -1 - 0x1p-7, 1 + 0x1p-7, 0x1.fep127, kInf, 0x1p-132, kNan};
  both_ways([&] {
    const Tensor wide = reals(x, DType::f64);
    expect_equal(run([&] { return cast(wide, DType::bf16); }), want, "a cast");
    State state({std::int64_t(x.size())}, DType::bf16, "state");
    run([&] { assign(state, wide); });
    expect_equal(run([&] { return state.read(); }), want, "a State");
  });
  const HostTensor host = HostTensor::from<double>(DType::bf16, {std::int64_t(x.size())}, x);
  const std::vector<double> values = host.values<double>();
  for (std::size_t i = 0; i + 1 < x.size(); ++i) EXPECT_EQ(values[i], want[i]) << "on the host, element " << i;
}

TEST(Conversions, UniformsLieBetweenZeroAndOneInEveryType) {
  both_ways([] {
    for (const DType dtype : {DType::bf16, DType::f32, DType::f64}) {
      const Doubles values = run([&] { return uniform({200'000}, dtype); }).to_host<double>();
      const auto [least, most] = std::minmax_element(values.begin(), values.end());
      EXPECT_GT(*least, 0) << name_of(dtype);
      EXPECT_LT(*most, 1) << name_of(dtype);
      EXPECT_NEAR(std::accumulate(values.begin(), values.end(), 0.0) / double(values.size()), 0.5, 3e-3) << name_of(dtype);
    }
  });
}

TEST(Integers, BesideConstantsThatNoneOfThemHolds) {
  both_ways([] {
    const Tensor x = integers({1, 7, -3});
    for (const double large : {1e19, 1e30, kInf}) {
      const auto results = run([&] {
        return std::vector{less(x, large),  greater_equal(x, large), equal(x, large),
                           less(x, -large), greater(x, -large),      not_equal(x, large)};
      });
      const Doubles want = {1, 0, 0, 0, 1, 1};
      for (std::size_t k = 0; k < want.size(); ++k)
        expect_equal(results[k], Doubles(3, want[k]), "comparison " + std::to_string(k));
      const auto [sum, difference, product] = run([&] { return std::tuple(x + large, large - x, x * large); });
      const double single = double(float(large));
      expect_equal(sum, {single, single, single}, "a sum");
      expect_equal(difference, {single, single, single}, "a difference");
      expect_equal(product, {single, double(7 * float(large)), -double(3 * float(large))}, "a product");
    }
    expect_equal(run([&] { return less(x, kNan); }), {0, 0, 0}, "a NaN");
    constexpr std::int64_t kLarge = std::int64_t(1) << 62, kOdd = (1 << 24) + 1;  // fp32 does not hold the odd one
    EXPECT_EQ(run([&] { return x + double(kLarge); }).to_host<std::int64_t>(),
              (std::vector{kLarge + 1, kLarge + 7, kLarge - 3}));
    for (const DType dtype : {DType::i32, DType::i64})
      EXPECT_EQ(run([&] { return full({1}, double(kOdd), dtype); }).to_host<std::int64_t>(), std::vector{kOdd});
  });
}

TEST(Integers, ThatAreCutOffStayIntegers) {
  constexpr std::int64_t kOdd = (std::int64_t(1) << 40) + 1;  // fp32 does not hold it
  const Tensor x = integers({kOdd, -3});
  both_ways([&] {
    const auto [positive, bounded, between] = run([&] { return std::tuple(relu(x), clamp(x, -2, 1e13), clamp(x, -2.5, 7)); });
    EXPECT_EQ(positive.to_host<std::int64_t>(), (std::vector<std::int64_t>{kOdd, 0}));
    EXPECT_EQ(bounded.to_host<std::int64_t>(), (std::vector<std::int64_t>{kOdd, -2}));
    EXPECT_EQ(between.dtype(), DType::f32) << "a bound is not whole";
    expect_equal(between, {7, -2.5}, "between reals");
  });
}

TEST(Integers, BesideBooleansStayIntegers) {
  const Tensor x = integers({3, -4}), flag = booleans({1, 0}), narrow = Tensor::from(std::vector<std::int32_t>{3, -4}, {2});
  both_ways([&] {
    const auto [sum, product, least, small] = run([&] { return std::tuple(x + flag, flag * x, min(flag, x), narrow - flag); });
    EXPECT_EQ(sum.dtype(), DType::i64);
    EXPECT_EQ(small.dtype(), DType::i32);
    expect_equal(sum, {4, -4}, "a sum");
    expect_equal(product, {3, 0}, "a product");
    expect_equal(least, {1, -4}, "the least");
    expect_equal(small, {2, -4}, "of i32");
    EXPECT_EQ(run([&] { return x / flag; }).dtype(), DType::f32) << "a quotient is real";
  });
}

// ---- random programs --------------------------------------------------------------------------------------------------------

constexpr std::int64_t kRows = 3, kColumns = 5;

// A program of ops on a matrix, a row, a column and a scalar, and its gradient. It depends on the seed alone.
class RandomProgram {
 public:
  // `exact`: only of ops whose results are rounded correctly on every device.
  RandomProgram(std::uint64_t seed, DType dtype, bool exact = false) : random_(seed), dtype_(dtype), exact_(exact) {
    for (const Shape& shape : {Shape{kRows, kColumns}, Shape{kRows, kColumns}, Shape{kColumns}, Shape{kRows, 1}, Shape{}})
      inputs_.push_back(input(shape));
    upstream_ = input({kRows, kColumns});
    structure_ = random_();
  }

  // The value and its gradients by all inputs.
  std::vector<Tensor> operator()() {
    random_.seed(structure_);
    nodes_ = inputs_;
    const int steps = 3 + below(12);
    for (int i = 0; i < steps; ++i) nodes_.push_back(step());
    const Tensor y = expand(nodes_.back(), {kRows, kColumns});
    std::vector<Tensor> out = {y};
    for (const Tensor& g : grad(y, upstream_, std::vector<Arg>(inputs_.begin(), inputs_.end()), Unused::zeros))
      out.push_back(g);
    return out;
  }

 private:
  int below(int n) { return int(random_() % std::uint64_t(n)); }

  // Ordinary numbers and special ones.
  Tensor input(const Shape& shape) {
    const bool wide = dtype_ == DType::f64;
    const double largest = wide ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    const Doubles special = {0,    -0.0,  1,      -1,   2,     0.5, kInf, -kInf, kNan, largest, -largest, wide ? 1e-310 : 1e-40,
                             1e30, 1e-30, -1e-20, 88.5, -88.5, 104, -104, 3,     -2,   1e10};
    Doubles values(std::size_t(shape.numel()));
    for (double& v : values)
      v = below(6) ? std::uniform_real_distribution<double>(-3, 3)(random_) : special[std::size_t(below(int(special.size())))];
    if (wide) return Tensor::from(values, shape);
    return Tensor::from(std::vector<float>(values.begin(), values.end()), shape);
  }

  Tensor any() { return nodes_[std::size_t(below(int(nodes_.size())))]; }
  Tensor condition() {
    const Tensor a = any(), b = any();
    switch (below(5)) {
      case 0:
        return less(a, b);
      case 1:
        return less_equal(a, 0.0);
      case 2:
        return greater(a, 0.3);
      case 3:
        return equal(a, b);
      default:
        return not_equal(a, 0.0);
    }
  }

  Tensor step() {
    switch (below(20)) {
      case 0:
        return where(condition(), any(), any());
      case 1:
        return where(condition(), unary(any()), zeros({}, dtype_));  // an arm to be kept out of the gradient
      case 2:
        return relu(any()) * any();
      case 3: {
        const DType other = dtype_ == DType::f64 ? DType::f32 : DType::bf16;
        return cast(cast(any(), other), dtype_);
      }
      case 4: {
        const Tensor x = any();
        return x + detach(cast(cast(x, DType::bf16), dtype_) - x);
      }
      case 5:
        return cast(cast(clamp(any(), -1e6, 1e6), DType::i32) * cast(clamp(any(), -1e6, 1e6), DType::i32), dtype_);
      case 6:
        return number(any());
      case 7:
        return pointwise("inner", {any(), any()}, [](Expr a, Expr b) { return where(a > b, sqrt(a) / b, 0.0) + a; });
      case 8:
        return below(2) ? min(any(), any()) : max(any(), any());
      case 9:
        return below(2) || exact_ ? any() / any() : pow(any(), any());
      case 10:
      case 11:
      case 12:
        return any() * any();
      case 13:
      case 14:
        return any() + any();
      case 15:
        return any() - any();
      default:
        return unary(any());
    }
  }

  Tensor number(const Tensor& x) {
    const double numbers[] = {0, 1, -1, 2, 0.5, 0.3, -7, 1e20};
    const double n = numbers[below(8)];
    switch (below(7)) {
      case 0:
        return x + n;
      case 1:
        return n - x;
      case 2:
        return x * n;
      case 3:
        return x / n;
      case 4:
        return n / x;
      case 5:
        return exact_ ? x - n : pow(x, n);
      default:
        return x * full({}, n, dtype_);
    }
  }

  Tensor unary(const Tensor& x) {
    static constexpr Tensor (*exact[])(Arg) = {relu, square, sqrt, abs, sign, floor};
    if (exact_) return exact[below(int(std::size(exact)))](x);
    static constexpr Tensor (*ops[])(Arg) = {silu, relu, gelu, gelu_tanh, square};
    const int k = below(int(std::size(testing::kUnaryReal)) + int(std::size(ops)));
    if (k < int(std::size(ops))) return ops[k](x);
    const ExprOp op = testing::kUnaryReal[std::size_t(k) - std::size(ops)];
    return pointwise("op", {x}, [op](Expr v) { return expr::make(op, v); });
  }

  std::mt19937_64 random_;
  const DType dtype_;
  const bool exact_;
  std::uint64_t structure_ = 0;
  std::vector<Tensor> inputs_, nodes_;
  Tensor upstream_;
};

enum class Class : int { finite, infinite, nan };
Class class_of(double x) { return std::isnan(x) ? Class::nan : std::isinf(x) ? Class::infinite : Class::finite; }

struct Found {
  int kernels = 0;
  std::vector<Doubles> values;   // of each result
  std::vector<Doubles> largest;  // by result and element: of the finite values that stand at its place in any real node
};

// Each place of the matrix is an element of each tensor.
std::size_t element_at(const Shape& shape, std::int64_t row, std::int64_t column) {
  const std::int64_t rows = shape.rank() > 1 ? shape[0] : 1, columns = shape.rank() > 0 ? shape[-1] : 1;
  return std::size_t((rows > 1 ? row : 0) * columns + (columns > 1 ? column : 0));
}

Found evaluate(RandomProgram& program, bool fuse, bool contract, bool intermediates = false) {
  const OnSettings use(fuse, contract);
  std::size_t results = 0;
  std::vector<Tensor> all = run([&] {
    std::vector<Tensor> out = program();
    results = out.size();
    for (NodeId id = 0; intermediates && id < tape().nodes.size(); ++id)
      if (is_real(tape().nodes[id].dtype) && broadcasts_to(tape().shape(id), {kRows, kColumns})) out.push_back(handle(id));
    return out;
  });
  Found found;
  found.kernels = last_run().kernels;
  std::vector<Doubles> values;
  for (const Tensor& t : all) values.push_back(t.to_host<double>());
  Doubles at_place(kRows * kColumns);
  for (std::int64_t place = 0; place < kRows * kColumns; ++place)
    for (std::size_t k = 0; k < all.size(); ++k)
      if (const double v = std::abs(values[k][element_at(all[k].shape(), place / kColumns, place % kColumns)]);
          std::isfinite(v))
        at_place[std::size_t(place)] = std::max(at_place[std::size_t(place)], v);
  for (std::size_t k = 0; k < results; ++k) {
    found.values.push_back(values[k]);
    found.largest.emplace_back(values[k].size());
    for (std::int64_t place = 0; place < kRows * kColumns; ++place) {
      double& largest = found.largest[k][element_at(all[k].shape(), place / kColumns, place % kColumns)];
      largest = std::max(largest, at_place[std::size_t(place)]);
    }
  }
  return found;
}

// In class, and within 4 units in the last place of the largest intermediate; where not, says where.
std::string difference(const Found& a, const Found& b, DType dtype) {
  const double ulp = dtype == DType::f64 ? 0x1p-52 : 0x1p-23;
  for (std::size_t k = 0; k < a.values.size(); ++k)
    for (std::size_t i = 0; i < a.values[k].size(); ++i) {
      const double x = a.values[k][i], y = b.values[k][i];
      if (class_of(x) == class_of(y) && (!std::isfinite(x) || std::abs(x - y) <= 4 * ulp * a.largest[k][i])) continue;
      return (k ? "gradient " + std::to_string(k - 1) : "the value") + ", element " + std::to_string(i) + ": " +
             std::to_string(x) + " against " + std::to_string(y);
    }
  return {};
}

struct Counts {
  int contracted = 0;          // programs that differ by contraction alone
  int apart = 0, fused = 0;    // kernels
  double finite = 0, all = 0;  // results
};

Counts compare(int before, int programs, DType dtype) {
  Counts counts;
  for (int seed = before + 1; seed <= before + programs; ++seed) {
    RandomProgram program(std::uint64_t(seed), dtype);
    const Found apart = evaluate(program, false, true, true);
    for (const Doubles& values : apart.values)
      for (const double v : values) counts.finite += std::isfinite(v) && v != 0, ++counts.all;
    const Found fused = evaluate(program, true, true);
    counts.apart += apart.kernels, counts.fused += fused.kernels;
    if (difference(apart, fused, dtype).empty()) continue;
    ++counts.contracted;
    const std::string without = difference(evaluate(program, false, false, true), evaluate(program, true, false), dtype);
    EXPECT_EQ(without, "") << "seed " << seed << ", " << name_of(dtype);
  }
  return counts;
}

// Without FMAs fused and unfused agree; with them all but a few do.
void compare(int before, int programs) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Counts counts = compare(before, programs, dtype);
    ::testing::Test::RecordProperty("contracted_" + std::string(name_of(dtype)), counts.contracted);
    EXPECT_LT(counts.contracted, programs / 20 + 1);
    EXPECT_GT(counts.finite, counts.all / 4) << "too little of it says something";
    EXPECT_LT(2 * counts.fused, counts.apart) << "too little is fused";
  }
}

// Without contraction programs of exact ops have equal classes on all devices; sums over axes may differ in the last bits.
void compare_devices(int programs) {
  const std::vector<Device> others = gpus();
  if (others.empty()) GTEST_SKIP() << *missing_library(CudaLibrary::nvrtc);
  for (const DType dtype : {DType::f32, DType::f64})
    for (int seed = 1; seed <= programs; ++seed) {
      RandomProgram program(std::uint64_t(seed), dtype, true);
      const auto on = [&](Device d, bool fuse) {
        const OnDevice use(d);
        return evaluate(program, fuse, false, d == Device::cpu);
      };
      const Found want = on(Device::cpu, false);
      for (const Device d : others)
        EXPECT_EQ(difference(want, on(d, true), dtype), "") << name_of(d) << ", seed " << seed << ", " << name_of(dtype);
    }
}

// Every function and its slope at the points where it may leave the finite numbers.
void compare_functions() {
  const Doubles points = {0,     -0.0, 1,  -1,  0.5,  2,     -2,  1e-40, -1e-40, 1e-20, 1e20,
                          -1e20, 3e38, 60, -60, 87.5, -87.5, 120, -120,  kInf,   -kInf, kNan};
  Doubles left, right;
  for (const double a : points)
    for (const double b : points) left.push_back(a), right.push_back(b);
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor x = reals(left, dtype), y = reals(right, dtype);
    const auto results = [&](Device d) {
      const OnDevice use(d);
      std::vector<Doubles> out;
      for (const Tensor& t : run([&] {
             std::vector<Tensor> all;
             const auto add = [&](const Tensor& value) {
               all.push_back(value);
               for (const Tensor& g : grad(value, ones(value.shape(), dtype), {x, y}, Unused::zeros)) all.push_back(g);
             };
             for (const ExprOp op : testing::kUnaryReal) add(pointwise("op", {x}, [op](Expr v) { return expr::make(op, v); }));
             for (const ExprOp op : testing::kBinaryReal)
               add(pointwise("op", {x, y}, [op](Expr a, Expr b) { return expr::make(op, a, b); }));
             return all;
           }))
        out.push_back(t.to_host<double>());
      return out;
    };
    const std::vector<Doubles> want = results(Device::cpu);
    for (const Device d : gpus()) {
      const std::vector<Doubles> got = results(d);
      for (std::size_t k = 0; k < want.size(); ++k)
        for (std::size_t i = 0; i < left.size(); ++i)
          EXPECT_EQ(class_of(got[k][i]), class_of(want[k][i]))
              << name_of(d) << ", " << name_of(dtype) << ", op " << k / 3 << (k % 3 ? ", a gradient" : "") << " at " << left[i]
              << ", " << right[i] << ": " << got[k][i] << " for " << want[k][i];
    }
  }
}

TEST(Fusion, RandomProgramsAgree) { compare(0, 100); }
// In fp32 and as many in fp64. In parts, which several processes can share (GTEST_TOTAL_SHARDS): on a GPU it is all compiling.
class SlowFusion : public ::testing::TestWithParam<int> {};
TEST_P(SlowFusion, RandomProgramsAgree) { compare(500 * GetParam(), 500); }
INSTANTIATE_TEST_SUITE_P(, SlowFusion, ::testing::Range(0, 10));

TEST(Fusion, DevicesAgreeInClass) { compare_devices(5); }
TEST(SlowFusionDevices, DevicesAgreeInClass) {
  compare_functions();
  compare_devices(200);
}

}  // namespace
}  // namespace weft
