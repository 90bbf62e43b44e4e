// Pointwise values that the kernels of others compute (Op::guest_input, guest_output): on a GPU, so here on the emulated one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "autograd/state.h"
#include "jit/driver.h"
#include "ops/ops.h"

namespace weft {
namespace {

Tensor wave(const Shape& shape, double step, DType dtype = DType::f32) {
  std::vector<double> values(std::size_t(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(step * double(i + 1));
  const Tensor all = Tensor::from(values, shape);
  return run([&] { return cast(all, dtype); });
}

class Guests : public testing::Test {
 protected:
  void SetUp() override {
    if (is_gpu(before_)) return;
    if (missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << "no NVRTC";
    use_device("emu");
  }
  ~Guests() override {
    settings().fuse = true;
    use_device(name_of(before_));
  }

  using Step = std::function<std::vector<Tensor>()>;
  // The results with every op in a kernel of its own are those of the fused plan, whose kernels, but for copies of results,
  // begin as `names`.
  static void check(const Step& step, const std::vector<std::string>& names, double near = 1e-5) {
    std::vector<std::string> ran;
    const std::vector<std::vector<double>> fused = values_of(step, &ran);
    std::erase_if(ran, [](const std::string& n) { return n.starts_with("pointwise__cast__"); });
    for (std::string& name : ran)
      if (name.starts_with("matvec__")) name = "gemm__linear";  // the product of few rows
    ASSERT_EQ(ran.size(), names.size()) << testing::PrintToString(ran);
    for (std::size_t k = 0; k < names.size(); ++k)
      EXPECT_TRUE(ran[k] == names[k] || ran[k].starts_with(names[k] + "__")) << ran[k];
    settings().fuse = false;
    const std::vector<std::vector<double>> plain = values_of(step);
    settings().fuse = true;
    for (std::size_t r = 0; r < plain.size(); ++r) {
      ASSERT_EQ(fused[r].size(), plain[r].size());
      double largest = 0;
      for (const double v : plain[r]) largest = std::max(largest, std::abs(v));
      for (std::size_t i = 0; i < plain[r].size(); ++i) ASSERT_NEAR(fused[r][i], plain[r][i], near * largest) << r << ", " << i;
    }
  }

 private:
  static std::vector<std::vector<double>> values_of(const Step& step, std::vector<std::string>* ran = nullptr) {
    std::vector<std::vector<double>> values;
    const std::vector<Tensor> results = run(step);
    if (ran)
      for (const KernelRecord& k : last_kernels()) ran->push_back(k.name);
    for (const Tensor& t : results) values.push_back(t.to_host<double>());
    return values;
  }
  Device before_ = device();
};

// A residual stream of either type: h = x + r goes on beside its norm, and back through both.
TEST_F(Guests, ANormStoresTheSumThatItReadsAndItsGradientTheSumThatGoesBack) {
  // Short rows, rows that a warp holds exactly, others, rows of a block, and those that nobody holds.
  for (const std::int64_t n : {7, 96, 256, 768, 1000, 1024, 1536, 9000})
    for (const DType stream : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(testing::Message() << n << " " << name_of(stream));
      const Tensor x = wave({5, n}, 0.3, stream), r = wave({5, n}, 0.7, DType::bf16), w = wave({n}, 0.11),
                   v = wave({3, n}, 0.2, stream), g = wave({5, n}, 0.9, DType::bf16), back = wave({5, n}, 0.5, stream);
      const double near = 2e-2;
      check(  // a product reads the sum from memory
          [&] {
            const Tensor h = x + r, y = rms_norm(h, w, 1e-5, DType::bf16);
            return std::vector{y, linear(h, v)};
          },
          {"rms_norm__add", "gemm__linear"}, near);
      check(
          [&] {
            const Tensor h = x * 1.f, y = rms_norm(h, w, 1e-5, DType::bf16), dh = grad(y, g, {h})[0] + back;
            return std::vector{dh, cast(dh * 2.f, DType::bf16)};
          },
          {"rms_norm", "norm_backward__add_cast"}, near);
    }
}

TEST_F(Guests, OfLayerNormHolesAndDoubles) {
  for (const DType type : {DType::f32, DType::f64}) {
    const Tensor x = wave({3, 4, 64}, 0.3, type), r = wave({3, 4, 64}, 0.7, type), w = wave({64}, 0.11, type),
                 b = wave({64}, 0.2, type), z = wave({3, 4, 64}, 0.4, type), g = wave({3, 4, 64}, 0.9, type);
    check(
        [&] {
          const Tensor h = x + r, y = layer_norm(h, w, b);
          const std::vector<Tensor> d = grad(y, g, {h, w, b});
          return std::vector{h, y, d[0] * r, d[1], d[2]};
        },
        {"layer_norm__add", "norm_backward__cast", "norm_sum", "norm_sum"});
    check(
        [&] {
          const Tensor h = x + r, y = rms_norm(h, w, 1e-5, {}, {}, gate(z));
          const std::vector<Tensor> d = grad(y, g, {h, z});
          return std::vector{h, y, d[0] * r, d[1]};
        },
        {"rms_norm__add", "norm_backward__cast"});
  }
}

// What else reads a result keeps it in memory, beside what is made of it.
TEST_F(Guests, DoNotHideAResultFromOthers) {
  const Tensor x = wave({6, 32}, 0.3), g = wave({6, 32}, 0.9), w = wave({8, 32}, 0.2);
  check(
      [&] {
        const Tensor h = x * 1.f, d = grad(rms_norm(h, Tensor{}), g, {h})[0];
        return std::vector{exp(d), linear(d, w)};
      },
      {"rms_norm", "norm_backward__cast", "gemm__linear"});
}

// A group runs where its host does, so nobody reads it before, and all that it reads is there.
TEST_F(Guests, ComeOnlyWhereTheOrderAllowsIt) {
  const Tensor x = wave({6, 32}, 0.3), g = wave({6, 32}, 0.9), w = wave({8, 32}, 0.2), more = wave({2, 6, 32}, 0.6);
  check(  // the product reads the sum before the norm does
      [&] {
        const Tensor h = x + g, p = linear(h, w);
        return std::vector{h, p, rms_norm(h, Tensor{})};
      },
      {"pointwise__add", "gemm__linear", "rms_norm"});
  check(  // made of what comes after the gradient
      [&] {
        const Tensor h = x * 1.f, d = grad(rms_norm(h, Tensor{}), g, {h})[0];
        return std::vector{d * softmax(g, {-1})};
      },
      {"rms_norm", "norm_backward", "softmax"});
  check(  // of another shape
      [&] {
        const Tensor h = x * 1.f, d = grad(rms_norm(h, Tensor{}), g, {h})[0];
        return std::vector{d + more};
      },
      {"rms_norm", "norm_backward"});
}

// A State is read as it was recorded, before or after its write, wherever the kernel is.
TEST_F(Guests, ReadStatesAsTheyWere) {
  const Tensor x = wave({6, 32}, 0.3), g = wave({6, 32}, 0.9);
  State s({6, 32}, DType::f32, "s");
  for (const bool before : {true, false}) {
    SCOPED_TRACE(before);
    const auto step = [&] {
      const Tensor h = x * 1.f, d = grad(rms_norm(h, Tensor{}), g, {h})[0];
      const Tensor old = before ? s.read() : Tensor{};
      assign(s, x * 3.f);
      return std::vector{d + (before ? old : s.read())};
    };
    std::vector<float> values[2];
    for (const bool fuse : {true, false}) {
      settings().fuse = fuse;
      s.set(std::vector<float>(6 * 32, 0.25f));
      values[fuse] = run(step)[0].to_host<float>();
    }
    settings().fuse = true;
    for (std::size_t i = 0; i < values[0].size(); ++i) ASSERT_NEAR(values[0][i], values[1][i], 1e-5) << i;
  }
  const auto late = [&] {  // the sum is made of what the State was, and its norm comes after the write
    const Tensor h = x + s.read();
    assign(s, x * 3.f);
    return std::vector{h, rms_norm(h, Tensor{})};
  };
  for (const bool fuse : {true, false}) {
    settings().fuse = fuse;
    s.set(std::vector<float>(6 * 32, 0.25f));
    const std::vector<float> h = run(late)[0].to_host<float>();
    const std::vector<float> xs = x.to_host<float>();
    for (std::size_t i = 0; i < h.size(); ++i) ASSERT_FLOAT_EQ(h[i], xs[i] + 0.25f) << fuse;
  }
}

}  // namespace
}  // namespace weft
