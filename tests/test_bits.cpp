// Which results are equal on all devices, bit for bit, as ops/ops.h promises: on the CPU and, as far as they are there, on the
// emulated device and a GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "jit/driver.h"
#include "tests/values.h"
#include "tools/weft.h"

namespace weft {
namespace {

// f() with each device in use, the CPU first.
template <class F>
void on_every_device(F f) {
  const Device before = device();
  std::vector<std::string> names = {"cpu"};
  if (!missing_library(CudaLibrary::nvrtc)) names.push_back("emu");
  if (!missing_cuda_device()) names.push_back("cuda");
  for (const std::string& name : names) {
    use_device(name);
    f(name);
  }
  use_device(name_of(before));
}

// All NaNs are one, and no zero is another.
bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

void expect_same_everywhere(const std::string& what, const std::function<Tensor()>& f) {
  Values first;
  on_every_device([&](const std::string& name) {
    const Values got = run(f).to_host<double>();
    if (name == "cpu") {
      first = got;
      return;
    }
    ASSERT_EQ(got.size(), first.size());
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_TRUE(same(got[i], first[i])) << fmt::format("{} on {}, element {}: {} for {}", what, name, i, got[i], first[i]);
  });
}

constexpr std::int64_t kCount = 3001;

// Irregular values of all sizes, and special ones.
Tensor reals(std::uint64_t seed, DType dtype) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> special = {0, -0.0, 1, -1, inf, -inf, 1e-45, -1e-40, 3e38, -3e38, 1.17549435e-38, 0.5, 2};
  const std::vector<double> value = irregular(kCount, -1, 1, seed), size = irregular(kCount, -40, 40, seed + 1),
                            pick = irregular(kCount, 0, 4 * double(special.size()), seed + 2);
  std::vector<double> out(kCount);
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = pick[i] < double(special.size()) ? special[std::size_t(pick[i])]
             : i % 2                          ? value[i]
                                              : value[i] * std::exp2(size[i]);
  return cast(Tensor::from(out, {kCount}), dtype);
}
Tensor integers(std::uint64_t seed, double most) {
  const std::vector<double> v = irregular(kCount, -most, most, seed);
  return Tensor::from(std::vector<std::int64_t>(v.begin(), v.end()), {kCount});
}

TEST(EqualBits, OfOneOperationOnReals) {
  using Op = std::function<Tensor(Tensor, Tensor)>;
  const auto without_sign_of_zero = [](Tensor x) { return where(equal(x, 0.0), full(x.shape(), 0, x.dtype()), x); };
  const std::vector<std::pair<const char*, Op>> ops = {
      {"+", [](Tensor a, Tensor b) { return a + b; }},
      {"-", [](Tensor a, Tensor b) { return a - b; }},
      {"*", [](Tensor a, Tensor b) { return a * b; }},
      {"/", [](Tensor a, Tensor b) { return a / b; }},
      {"sqrt", [](Tensor a, Tensor) { return sqrt(a); }},
      {"square", [](Tensor a, Tensor) { return square(a); }},
      {"neg", [](Tensor a, Tensor) { return -a; }},
      {"abs", [](Tensor a, Tensor) { return abs(a); }},
      {"sign", [](Tensor a, Tensor) { return sign(a); }},
      {"floor", [](Tensor a, Tensor) { return floor(a); }},
      {"relu", [](Tensor a, Tensor) { return relu(a); }},
      {"clamp", [](Tensor a, Tensor) { return clamp(a, -0.25, 3); }},
      {"min", [&](Tensor a, Tensor b) { return without_sign_of_zero(min(a, b)); }},
      {"max", [&](Tensor a, Tensor b) { return without_sign_of_zero(max(a, b)); }},
      {"less", [](Tensor a, Tensor b) { return less(a, b); }},
      {"less_equal", [](Tensor a, Tensor b) { return less_equal(a, b); }},
      {"equal", [](Tensor a, Tensor b) { return equal(a, b); }},
      {"where", [](Tensor a, Tensor b) { return where(greater(a, b), a, b); }},
      {"max over an axis", [](Tensor a, Tensor b) { return max(where(less(a, 1e30), a, b), {0}); }},
  };
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const auto& [name, op] : ops)
      expect_same_everywhere(fmt::format("{} of {}", name, name_of(dtype)),
                             [&, op = op] { return op(reals(1, dtype), reals(11, dtype)); });
}

TEST(EqualBits, OfCastsAndIntegers) {
  const std::vector<DType> all = {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::boolean};
  for (const DType from : all)
    for (const DType to : all)
      expect_same_everywhere(fmt::format("{} to {}", name_of(from), name_of(to)), [&] {
        const Tensor x = is_real(from) ? clamp(reals(1, from), -1e9, 1e9) : cast(integers(1, 1e9), from);
        return cast(x, to);
      });
  const auto a = [] { return integers(2, 4e18); };
  const auto b = [] { return integers(3, 100); };
  expect_same_everywhere("integers", [&] { return concat({a() + b(), a() - b(), a() * b(), max(a(), b()), abs(a())}, 0); });
}

TEST(EqualBits, OfViewsAndLookups) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    expect_same_everywhere("views", [&] {
      const Tensor x = reshape(slice(reals(1, dtype), 0, 1, 3001), {30, 100});
      return concat({transpose(x), pad(expand(slice(x, 0, 2, 3), {100, 100}), 1, 3, 4, 1)}, 1);
    });
    expect_same_everywhere("embedding", [&] {
      return embedding(reshape(slice(reals(1, dtype), 0, 1, 3001), {100, 30}), abs(integers(4, 99.9)));
    });
  }
}

TEST(EqualBits, OfUniformsAndWhatTheyDecide) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const auto draws = [&](auto f) {
      return [f] {
        Rng rng(3);
        const UseRng use(rng);
        return f();
      };
    };
    expect_same_everywhere("uniform", draws([&] { return uniform({kCount}, dtype); }));
    expect_same_everywhere("dropout", draws([&] { return dropout(reals(1, dtype), 0.3); }));
  }
}

TEST(EqualBits, OfTheNormOfGradients) {
  for (const bool doubles : {false, true})
    expect_same_everywhere("global_norm", [&] {
      std::vector<Tensor> all;
      for (const std::int64_t n : {1, 6, 17001, 70000, 0}) {
        all.push_back(cast(Tensor::from(irregular(n, -1, 1, std::uint64_t(n)), {n}), doubles ? DType::f64 : DType::f32));
        all.push_back(cast(Tensor::from(irregular(n, -1, 1, std::uint64_t(n) + 1), {n}), DType::bf16));
      }
      all.push_back(slice(all[4], 0, 3, 16000));  // not aligned for vectors
      return global_norm(all);
    });
}

// Steps of tensors that are one element, not whole vectors, and several chunks, some without a gradient, one left out; JOINED:
// the gradients are pieces of one value, not aligned for vectors. All that the optimizer has afterwards, the parameters and the
// norms.
TensorMap trained(DType dtype, bool joined, double clip) {
  const std::vector<std::int64_t> sizes = {1, 6, 17001, 30};
  std::vector<Param> params;
  for (const std::int64_t n : sizes) {
    params.emplace_back(Shape{n}, dtype, fmt::format("p{}", n));
    params.back().set(irregular(n, -1, 1, std::uint64_t(n)));
    params.back().set_decay(n != 6);
  }
  AdamW opt(params, {.lr = 0.07, .weight_decay = 0.3, .clip_norm = clip, .on_bad_step = OnBadStep::poll});
  TensorMap out;
  for (int step = 0; step < 7; ++step) {
    opt.set_lr(0.07 / (step + 1));
    const Tensor norm = run([&] {
      std::vector<Arg> values, gradients;
      for (std::size_t k = step % 2; k < params.size(); ++k) {
        values.emplace_back(params[k].read());
        std::vector<double> g = irregular(sizes[k], -1, 1, std::uint64_t(100 * step) + k);
        if (step == 4) g[0] = std::nan("");
        gradients.emplace_back(cast(Tensor::from(g, {sizes[k]}), dtype));
      }
      if (joined)
        backward(sum(concat(values, 0) * concat(gradients, 0)));
      else
        for (std::size_t k = 0; k < values.size(); ++k) backward(sum(values[k] * gradients[k]));
      opt.step();
      return opt.grad_norm();
    });
    out[fmt::format("norm {}", step)] = HostTensor::from<double>(DType::f64, {1}, norm.to_host<double>());
    opt.clear_bad_step();
  }
  for (const Param& p : params) out[p.name()] = {dtype, {p.shape().numel()}, p.bytes()};
  out.merge(opt.state_dict());
  return out;
}

TEST(EqualBits, OfUpdates) {
  for (const DType dtype : {DType::f32, DType::f64})
    for (const bool joined : {false, true})
      for (const double clip : {0.0, 0.5}) {
        TensorMap first;
        on_every_device([&](const std::string& name) {
          const TensorMap got = trained(dtype, joined, clip);
          if (name == "cpu") first = got;
          for (const auto& [tensor, values] : first) {
            if (tensor == "norm 4") continue;  // a NaN
            EXPECT_EQ(values.bytes, got.at(tensor).bytes) << tensor << " of " << name_of(dtype) << " on " << name;
          }
        });
      }
}

}  // namespace
}  // namespace weft
