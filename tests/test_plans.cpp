// What the scheduler makes of a recording: versions for a target, what products take over, where values are written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "autograd/lowering.h"
#include "autograd/plan.h"
#include "autograd/settings.h"
#include "jit/driver.h"
#include "tests/expect_error.h"
#include "tools/weft.h"

namespace weft {
namespace {

const Target kSm80 = target_for("sm_80"), kSm90a = target_for("sm_90a");

Tensor wave(const Shape& shape, double step = 0.7) {
  std::vector<float> values(std::size_t(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(std::sin(step * double(i + 1)));
  return Tensor::from(values, shape);
}

std::vector<std::string> names_of(const Plan& plan) {
  std::vector<std::string> names;
  for (const PlannedKernel& k : plan.kernels) names.push_back(k.record.name);
  return names;
}

int count(const std::vector<std::string>& names, std::string_view begin) {
  return int(std::count_if(names.begin(), names.end(), [&](const std::string& n) { return n.starts_with(begin); }));
}

std::vector<std::string> last_names() {
  std::vector<std::string> names;
  for (const KernelRecord& k : last_kernels()) names.push_back(k.name);
  return names;
}

// ---- targets ----------------------------------------------------------------------------------------------------------------

TEST(Targets, AreNamedAsTheCompilerNamesThem) {
  EXPECT_EQ(target_for("sm_80"), (Target{Device::cuda, 80, false}));
  EXPECT_EQ(target_for("compute_90"), (Target{Device::cuda, 90, false}));
  EXPECT_EQ(target_for("sm_120a"), (Target{Device::cuda, 120, true}));
  EXPECT_TRUE(kSm90a.sm_90a());
  for (const char* other : {"sm_80", "sm_90", "compute_90", "sm_100a", "sm_120a"})
    EXPECT_FALSE(target_for(other).sm_90a()) << other;
  for (const char* wrong : {"", "90", "sm_", "sm_75", "sm_90x", "sm_90af", "cpu"})
    expect_error(ErrorKind::usage, {"no architecture", wrong}, [&] { target_for(wrong); });
}

// An op that copies its input, with a kernel for sm_90a and one for everything else.
void lower_versions(Lowering& l) {
  const Operand x = l.dense(0), y = l.output();
  l.emit("versions_cpu",
         [=](const Launch& launch) { std::copy_n(launch.pointer<const float>(x), y.numel(), launch.pointer<float>(y)); });
}
void cuda_versions(Lowering& l) {
  const Operand x = l.dense(0), y = l.output();
  CudaText text = l.text(l.target().sm_90a() ? "versions_sm_90a" : "versions_sm_80");
  text.pointer("x", x).pointer("y", y).integer("n", y.numel());
  l.emit(
      text.launch_text("extern \"C\" __global__ void __launch_bounds__(32) KERNEL(PARAMETERS) {\n"
                       "  for (i64 i = threadIdx.x; i < a.n; i += 32) a.y[i] = a.x[i];\n}\n",
                       {1, 1, 1}, {32, 1, 1}));
}
Tensor versions(const Tensor& x) {
  static const Op& op =
      register_op({.name = "test_versions", .lower = lower_versions, .cuda = cuda_versions, .dense_outputs = true});
  return record(op, {x}, {{x.shape(), DType::f32}}, {}, {}, Site::current());
}

TEST(Targets, EachGetsItsVersion) {
  const Tensor x = wave({5, 7});
  const auto step = [&] { return versions(x); };
  const auto version = [&](const Target& target) { return names_of(*plan_for(target, step)).at(0); };
  EXPECT_TRUE(version(kSm90a).starts_with("versions_sm_90a__"));
  for (const char* other : {"sm_80", "sm_90", "compute_90", "sm_100a", "sm_120a"})
    EXPECT_TRUE(version(target_for(other)).starts_with("versions_sm_80__")) << other;
  EXPECT_TRUE(version(kEmulatedTarget).starts_with("versions_sm_80__"));
  EXPECT_EQ(version(Target{}), "versions_cpu");
}

// Whatever the emulated device is compiled for.
TEST(Targets, TheDeviceInUseHasOne) {
  const Tensor x = wave({5, 7});
  const Tensor y = run([&] { return versions(x); });
  EXPECT_EQ(y.to_host<float>(), x.to_host<float>());
  EXPECT_EQ(target().device, device());
  const std::string expected = device() == Device::cpu                         ? "versions_cpu"
                               : device() == Device::cuda && target().sm_90a() ? "versions_sm_90a__"
                                                                               : "versions_sm_80__";
  EXPECT_TRUE(last_names().at(0).starts_with(expected)) << last_names().at(0);
}

// ---- output placement -------------------------------------------------------------------------------------------------------

TEST(Placement, ThePartsOfAConcatAreWrittenInPlace) {
  const Tensor x = wave({6, 4}), w = wave({8, 4}, 0.3);
  const auto step = [&] { return concat({exp(x), linear(x, w)}, 1); };
  const Tensor y = run(step);
  EXPECT_EQ(count(last_names(), "concat"), 0);
  settings().fuse = false;
  const std::vector<float> plain = run(step).to_host<float>();
  settings().fuse = true;
  EXPECT_EQ(y.to_host<float>(), plain);
}

TEST(Placement, SeesThroughReshapes) {
  const Tensor x = wave({6, 4}), w = wave({8, 4}, 0.3);
  const auto step = [&] { return concat({reshape(exp(x), {2, 3, 4}), reshape(reshape(linear(x, w), {48}), {4, 3, 4})}, 0); };
  const Tensor y = run(step);
  EXPECT_EQ(count(last_names(), "concat"), 0);
  std::vector<float> expected = run([&] { return exp(x); }).to_host<float>();
  const std::vector<float> product = run([&] { return linear(x, w); }).to_host<float>();
  expected.insert(expected.end(), product.begin(), product.end());
  EXPECT_EQ(y.to_host<float>(), expected);
}

// Another reader, rows that are no stretch of memory, a view that is no reshape: copied.
TEST(Placement, CopiesWhatCannotBeWrittenInPlace) {
  const Tensor x = wave({6, 4});
  run([&] {
    const Tensor e = exp(x);
    return std::pair(concat({reshape(e, {24}), reshape(cos(x), {24})}, 0), matmul(e, transpose(e)));
  });
  EXPECT_EQ(count(last_names(), "concat"), 1);
  run([&] { return concat({reshape(exp(x), {2, 12}), wave({2, 3})}, 1); });  // rows of 4 of exp would lie 15 apart in pairs
  EXPECT_EQ(count(last_names(), "concat"), 2);
  run([&] { return concat({transpose(exp(x)), transpose(cos(x))}, 0); });
  EXPECT_EQ(count(last_names(), "concat"), 2);
}

// ---- products ---------------------------------------------------------------------------------------------------------------

class Products : public testing::Test {
 protected:
  Products() { settings().fuse_products = true; }
  ~Products() override { settings().fuse_products = false; }

  // A product reads what `step` makes. Its values with products fused are near those of the plan without, which has `saved`
  // more kernels.
  void check(const std::function<Tensor()>& step, int saved, double near = 1e-5) {
    const auto read = [&] {
      const Tensor v = step();
      return cast(matmul(v, cast(wave({v.dim(-1), 8}, 0.5), v.dtype())), DType::f32);
    };
    settings().fuse_products = false;
    const std::vector<double> plain = run(read).to_host<double>();
    const int kernels = last_run().kernels;
    EXPECT_EQ(reasons(), "");
    settings().fuse_products = true;
    const std::vector<double> fused = run(read).to_host<double>();
    EXPECT_EQ(kernels - last_run().kernels, saved);
    ASSERT_EQ(fused.size(), plain.size());
    double largest = 0;
    for (const double v : plain) largest = std::max(largest, std::abs(v));
    for (std::size_t k = 0; k < plain.size(); ++k) ASSERT_NEAR(fused[k], plain[k], near * largest) << k;
  }
  // Those of the products of the last plan.
  static std::string reasons() {
    std::string all;
    for (const KernelRecord& k : last_kernels())
      if (k.name.starts_with("gemm"))
        for (const std::string& r : k.reasons) all += r + "\n";
    return all;
  }
  void expect_reason(const std::string& why, const std::function<Tensor()>& step) {
    run(step);
    EXPECT_NE(reasons().find(why), std::string::npos) << "no \"" << why << "\" in\n" << reasons();
  }
  const Tensor x = wave({6, 16}), w = wave({24, 16}, 0.3), b = wave({24}, 0.9), y = wave({6, 24}, 0.2);
};

TEST_F(Products, TakeOverSumsAndAnActivation) {
  run([&] { return gelu_tanh(y + (linear(x, w) + b)); });
  EXPECT_EQ(reasons(), "fused: add\nfused: add\nfused: gelu_tanh\nnot fused: cast comes after the activation\n");
  EXPECT_EQ(last_run().kernels, 2);  // and the copy that the step returns
}

TEST_F(Products, AgreeWithWhatTheyReplace) {
  const Tensor many = wave({3, 6, 16}), right = wave({16, 24}, 0.4), added = wave({3, 6, 24}, 0.6);
  for (const DType t : {DType::f32, DType::bf16}) {
    const double near = t == DType::f32 ? 1e-5 : 6e-2;
    const Tensor xt = run([&] { return cast(x, t); }), bt = run([&] { return cast(b, t); }),
                 yt = run([&] { return cast(y, t); }), manyt = run([&] { return cast(many, t); }),
                 rightt = run([&] { return cast(right, t); }), addedt = run([&] { return cast(added, t); }),
                 wt = run([&] { return cast(w, t); });
    check([&] { return relu(linear(xt, w, b)); }, 1, near);
    check([&] { return gelu_tanh(linear(xt, w) + bt); }, 1, near);
    check([&] { return yt + linear(xt, w, b); }, 1, near);
    check([&] { return relu(matmul(manyt, rightt) + addedt); }, 1, near);
    check([&] { return matmul(manyt, expand(rightt, {3, 16, 24})) + addedt; }, 1, near);
    check([&] { return matmul(rightt, transpose(rightt)) + slice(wt, 0, 0, 16); }, 1, near);
    check([&] { return matmul(rightt, transpose(rightt)) + transpose(slice(wt, 0, 8, 24)); }, 0, near);  // copied to rows
    check([&] { return grad(sum(linear(xt, wt) * yt), {wt})[0] + wt; }, 1, near);                        // a row product
  }
}

TEST_F(Products, SayWhatHinders) {
  State s({6, 16}, DType::f32, "s"), t({6, 24}, DType::f32, "t");
  expect_reason("not fused: linear has 2 readers", [&] {
    const Tensor v = linear(x, w);
    return matmul(relu(v), transpose(v));
  });
  expect_reason("not fused: the library has no silu", [&] { return silu(linear(x, w)); });
  expect_reason("not fused: softmax reads it", [&] { return softmax(linear(x, w), {-1}); });
  expect_reason("not fused: add has another shape", [&] { return linear(x, w) + wave({2, 6, 24}); });
  expect_reason("not fused: neither a bias nor one tensor of its shape is added", [&] { return linear(x, w, b) + b; });
  expect_reason("not fused: neither a bias nor one tensor of its shape is added", [&] { return linear(x, w) + y + y * 2; });
  expect_reason("not fused: what is added has another dtype than the sum", [&] { return linear(x, w) + cast(y, DType::bf16); });
  expect_reason("not fused: the library has no activation in fp64",
                [&] { return relu(linear(cast(x, DType::f64), cast(w, DType::f64))); });
  if (!is_gpu(device()))  // where it is no product at all
    expect_reason("not fused: the product is a sum over nothing", [&] { return linear(zeros({6, 0}), zeros({24, 0})) + y; });
  expect_reason("not fused: a factor is a State that is written before add", [&] {
    const Tensor v = linear(s, w);
    assign(s, x);
    return v + y;
  });
  expect_reason("not fused: what is added is a State that is written before", [&] {
    const Tensor old = t.read(), v = linear(x, w);
    assign(t, y);
    return v + old;
  });
}

// A State's value as it was before the write, fused or not.
TEST_F(Products, ReadStatesBeforeTheyAreWritten) {
  for (const bool fuse : {false, true}) {
    settings().fuse_products = fuse;
    State s({6, 24}, DType::f32, "s");
    s.set(y.to_host<float>());
    const auto [v, expected] = run([&] {
      const Tensor old = s.read(), product = linear(x, w), both = product + old;
      assign(s, both * 2);
      return std::pair(both, linear(x, w) * 1 + y * 1);
    });
    const std::vector<float> values = v.to_host<float>(), wanted = expected.to_host<float>(), written = s.to_host<float>();
    for (std::size_t k = 0; k < values.size(); ++k) {
      ASSERT_NEAR(values[k], wanted[k], 1e-5) << fuse;
      ASSERT_NEAR(written[k], 2 * wanted[k], 2e-5) << fuse;
    }
  }
}

TEST_F(Products, AreWrittenIntoAConcat) {
  const auto step = [&] { return concat({relu(linear(x, w, b)), exp(y)}, 1); };
  const std::vector<float> fused = run(step).to_host<float>();
  EXPECT_EQ(count(last_names(), "concat"), 0);
  settings().fuse_products = false;
  EXPECT_EQ(fused, run(step).to_host<float>());
}

}  // namespace
}  // namespace weft
