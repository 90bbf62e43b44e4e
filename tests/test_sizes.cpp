// Ops at sizes at which kernels take the ways that the small shapes of other tests leave out: long rows and columns, many equal
// ids, tails behind vectors. The device in use (an emulated or real GPU) against the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "ops/ops.h"
#include "optim/adamw.h"

namespace weft {
namespace {

using Step = std::function<std::vector<Tensor>()>;
using Make = std::function<Step(DType)>;  // makes its inputs on the device in use

Tensor values(const Shape& shape, DType dtype, double phase) {
  std::vector<float> v(std::size_t(shape.numel()));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = float(std::sin(0.37 * double(i + 1) + phase));
  return run([&] { return cast(Tensor::from(v, shape), dtype); });
}
// Every seventh is `ignored`, if that is not 0.
template <class Int = std::int64_t>
Tensor some_ids(std::int64_t n, std::int64_t classes, std::int64_t ignored = 0) {
  std::vector<Int> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = Int(ignored && i % 7 == 3 ? ignored : std::int64_t(i * i % 7919) % classes);
  return Tensor::from(v, {n});
}

std::vector<std::vector<double>> results(const char* on, const Make& make, DType dtype) {
  use_device(on);
  const Step step = make(dtype);
  std::vector<std::vector<double>> all;
  for (const Tensor& t : run(step)) all.push_back(t.to_host<double>());
  return all;
}

void expect_equal_to_cpu(const std::string& what, const Make& make) {
  if (!is_gpu(device())) GTEST_SKIP() << "compares a GPU, emulated or not, with the CPU: WEFT_DEVICE=emu";
  const Device before = device();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    SCOPED_TRACE(what + " in " + std::string(name_of(dtype)));
    const auto got = results(std::string(name_of(before)).c_str(), make, dtype), expected = results("cpu", make, dtype);
    use_device(name_of(before));
    ASSERT_EQ(got.size(), expected.size());
    const double tolerance = dtype == DType::bf16 ? 1.0 / 64 : 1e-4;
    for (std::size_t k = 0; k < got.size(); ++k) {
      ASSERT_EQ(got[k].size(), expected[k].size());
      double scale = 1e-3;
      for (const double e : expected[k]) scale = std::max(scale, std::abs(e));
      for (std::size_t i = 0; i < got[k].size(); ++i)
        ASSERT_NEAR(got[k][i], expected[k][i], tolerance * scale) << "result " << k << " at " << i;
    }
  }
}

TEST(Sizes, LongReductions) {
  for (const Shape& shape : {Shape{3, 5000}, Shape{3000, 24}, Shape{2500, 3}, Shape{2, 4099}})
    expect_equal_to_cpu("a reduction", [shape](DType dtype) -> Step {
      const Tensor x = values(shape, dtype, 1);
      return [=] {
        return std::vector{sum(x, {0}),       sum(x, {1}),     max(x, {0}),     max(x, {1}),      logsumexp(x, {0}),
                           logsumexp(x, {1}), softmax(x, {0}), softmax(x, {1}), sum(exp(x), {1}), sum(x * x, {0})};
      };
    });
}

// Angles that are reduced with more digits of pi than a register has.
TEST(Sizes, AnglesOfManyTurns) {
  expect_equal_to_cpu("sin and cos", [](DType dtype) -> Step {
    const Tensor turns = values({67}, dtype, 1), x = run([&] { return cast(turns * 3e9, dtype); });
    return [=] { return std::vector{sin(x), cos(x)}; };
  });
  expect_equal_to_cpu("their sums", [](DType dtype) -> Step {
    const Tensor turns = values({67}, dtype, 1), x = run([&] { return cast(turns * 3e9, dtype); });
    return [=] { return std::vector{sum(square(sin(x))), sum(square(cos(x)))}; };
  });
}

// Sums of one id that take several blocks, and of many ids in one.
TEST(Sizes, LongEmbeddings) {
  for (const std::int64_t width : {3, 6, 8, 64})
    for (const std::int64_t different : {5, 40})
      expect_equal_to_cpu("an embedding", [=](DType dtype) -> Step {
        const Tensor weight = values({40, width}, dtype, 0), upstream = values({1500, width}, dtype, 2);
        const Tensor ids = different == 5 ? some_ids(1500, 5) : some_ids<std::int32_t>(1500, 40);
        return [=] {
          const Tensor y = embedding(weight, ids);
          return std::vector{y, grad(y, upstream, {weight})[0]};
        };
      });
}

TEST(Sizes, LongRowsOfLogits) {
  for (const std::int64_t classes : {50, 1000, 4001, 8192})
    for (const double smoothing : {0.0, 0.1})
      expect_equal_to_cpu("cross_entropy", [=](DType dtype) -> Step {
        const Tensor logits = values({9, classes}, dtype, 0), labels = some_ids(9, classes, -100);
        return [=] {
          const Tensor loss = cross_entropy(logits, labels, {.label_smoothing = smoothing});
          return std::vector{loss, grad(loss, {logits})[0]};
        };
      });
}

TEST(Sizes, LongConvolutions) {
  for (const Shape& shape : {Shape{2, 300, 64}, Shape{1, 70, 33}, Shape{2, 0, 5}})
    for (const std::int64_t width : {4, 11, 70})
      expect_equal_to_cpu("conv1d", [=](DType dtype) -> Step {
        const std::int64_t d = shape[2];
        const DType weights = dtype == DType::f64 ? dtype : DType::f32;
        const Tensor x = values(shape, dtype, 0), upstream = values(shape, dtype, 1), weight = values({d, width}, weights, 2),
                     bias = values({d}, weights, 3), initial = values({shape[0], width - 1, d}, dtype, 4);
        return [=] {
          Tensor last;
          const Tensor y = conv1d(x, weight, bias, {.silu = true, .initial = initial, .last = &last});
          std::vector<Tensor> all = grad(y, upstream, {x, weight, bias, initial});
          all.push_back(y);
          all.push_back(last);
          return all;
        };
      });
}

TEST(Sizes, UnevenParameters) {
  expect_equal_to_cpu("adamw", [](DType dtype) -> Step {
    std::vector<Param> params;
    for (const Shape& shape : {Shape{3000}, Shape{5}, Shape{1}, Shape{33, 65}, Shape{8192}}) {
      const Tensor initial = values(shape, DType::f32, double(params.size()));
      run([&] { assign(params.emplace_back(shape), initial); });
    }
    AdamW optimizer(params);
    for (int step = 0; step < 2; ++step)
      run([&] {
        Tensor loss;
        for (const Param& p : params) {
          const Tensor part = sum(square(cast(p, dtype)));
          loss = loss ? loss + part : part;
        }
        backward(loss);
        optimizer.step();
      });
    return [params] {
      std::vector<Tensor> all;
      for (const Param& p : params) all.push_back(p * 1.0);
      return all;
    };
  });
}

}  // namespace
}  // namespace weft
