// What the scheduler makes of a recording: versions for a target, and where values are written.
#include <gtest/gtest.h>

#include <algorithm>
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
  for (const char* other : {"sm_80", "sm_90", "compute_90", "sm_100a", "sm_120a"}) EXPECT_FALSE(target_for(other).sm_90a()) << other;
  for (const char* wrong : {"", "90", "sm_", "sm_75", "sm_90x", "sm_90af", "cpu"})
    expect_error(ErrorKind::usage, {"no architecture", wrong}, [&] { target_for(wrong); });
}

// An op that copies its input, with a kernel for sm_90a and one for everything else.
void lower_versions(Lowering& l) {
  const Operand x = l.dense(0), y = l.output();
  l.emit("versions_cpu", [=](const Launch& launch) {
    std::copy_n(launch.pointer<const float>(x), y.numel(), launch.pointer<float>(y));
  });
}
void cuda_versions(Lowering& l) {
  const Operand x = l.dense(0), y = l.output();
  CudaText text = l.text(l.target().sm_90a() ? "versions_sm_90a" : "versions_sm_80");
  text.pointer("x", x).pointer("y", y).integer("n", y.numel());
  l.emit(text.launch_text("extern \"C\" __global__ void __launch_bounds__(32) KERNEL(PARAMETERS) {\n"
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
  const std::string expected = device() == Device::cpu                            ? "versions_cpu"
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

}  // namespace
}  // namespace weft
