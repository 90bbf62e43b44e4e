// The kernels of ssd on the emulated device, or on a GPU if that is the device in use, against the plain form in double on the
// CPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/context.h"
#include "autograd/op.h"
#include "autograd/plan.h"
#include "autograd/run.h"
#include "jit/compiler.h"
#include "jit/driver.h"
#include "jit/emulator/device.h"
#include "ops/ops.h"
#include "tests/values.h"

namespace weft {
namespace {

using std::int64_t;

class SsdKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
    before_ = device();
    use_device(gpu());
  }
  void TearDown() override { use_device(name_of(before_)); }
  std::string_view gpu() const { return before_ == Device::cuda ? "cuda" : "emu"; }
  void check(const struct Case& c, bool gradients = true);

 private:
  Device before_ = Device::cpu;
};

using SlowSsdKernels = SsdKernels;

enum class Skip { none, head, features };
struct Case {
  int64_t b = 1, t = 64, h = 1, p = 16, g = 1, n = 16;
  Skip skip = Skip::none;
  bool step = true, gate = false, initial = false, last = false;  // holes dt and out; states
  bool views = false;                                             // operands are slices of one tensor
  bool idle = false;                                              // every third step has size 0
  double low = -2, high = 1;                                      // of dt
  std::vector<int64_t> documents = {};                            // lengths of those that are packed in the first row
};

// Ids of packed documents; each row has them in another order.
Tensor segments_of(const Case& c) {
  std::vector<int64_t> ids;
  for (int64_t r = 0, d = int64_t(c.documents.size()); r < c.b; ++r)
    for (int64_t k = 0; k < d; ++k) ids.insert(ids.end(), std::size_t(c.documents[std::size_t((k + r) % d)]), k);
  return Tensor::from(ids, {c.b, c.t});
}

Values drawn(int64_t n, unsigned seed, double low, double high) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(low, high);
  Values x(static_cast<std::size_t>(n));
  for (double& value : x) value = uniform(random);
  return x;
}
// What bf16 holds, in the type.
Tensor operand(const Shape& shape, unsigned seed, DType dtype, double low = -1.7, double high = 1.7) {
  const Tensor rounded = cast(Tensor::from(drawn(shape.numel(), seed, low, high), shape), DType::bf16);
  return cast(Tensor::from(rounded.to_host<double>(), shape), dtype);
}

double error_of(const Values& got, const Values& right) {
  double difference = 0, size = 0;
  EXPECT_EQ(got.size(), right.size());
  for (std::size_t i = 0; i < right.size(); ++i)
    difference += (got[i] - right[i]) * (got[i] - right[i]), size += right[i] * right[i];
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

struct Result {
  std::string name;
  Values values;
};

// Everything a call gives, with the gradients of everything, on the device in use; `wide` is the type of the step's parameters.
std::vector<Result> results(const Case& c, DType dtype, DType wide, bool gradients) {
  const Shape xs{c.b, c.t, c.h, c.p}, bs{c.b, c.t, c.g, c.n}, ds{c.b, c.t, c.h}, ss{c.b, c.h, c.p, c.n};
  Tensor x, dt, B, C, z;
  if (c.views) {
    const int64_t inner = c.h * c.p, states = c.g * c.n;
    const Tensor whole = operand({c.b, c.t, 2 * inner + 2 * states + c.h}, 1, dtype);
    int64_t at = 0;
    const auto part = [&](int64_t size, const Shape& shape) {
      const int64_t from = at;
      at += size;
      return reshape(slice(whole, -1, from, at), shape);
    };
    z = part(inner, xs), x = part(inner, xs), B = part(states, bs), C = part(states, bs), dt = part(c.h, ds);
  } else {
    x = operand(xs, 1, dtype), dt = operand(ds, 2, dtype, c.step ? c.low : 0.01, c.high);
    if (c.idle) {
      Values kept(static_cast<std::size_t>(ds.numel()));
      for (std::size_t i = 0; i < kept.size(); ++i) kept[i] = i % 3 != 0;
      dt = dt * cast(Tensor::from(kept, ds), dtype);
    }
    B = operand(bs, 3, dtype), C = operand(bs, 4, dtype), z = operand(xs, 5, dtype);
  }
  const Tensor A = operand({c.h}, 6, wide, -1.5, -0.05), bias = operand({c.h}, 7, wide, -1, 1),
               D = operand(c.skip == Skip::features ? Shape{c.h, c.p} : Shape{c.h}, 8, wide), initial = operand(ss, 9, wide),
               g = operand(xs, 10, dtype), gs = operand(ss, 11, wide);
  SsdOptions options;
  std::vector<std::pair<std::string, Tensor>> inputs = {{"x", x}, {"dt", dt}, {"A", A}, {"B", B}, {"C", C}};
  if (c.skip != Skip::none) options.D = D, inputs.emplace_back("D", D);
  if (c.step) options.dt = softplus_bias(bias), inputs.emplace_back("bias", bias);
  if (c.gate) options.out = gate(z), inputs.emplace_back("z", z);
  if (c.initial) options.initial = initial, inputs.emplace_back("initial", initial);
  if (!c.documents.empty()) options.segments = segments_of(c);
  Tensor last;
  options.last = &last;
  const Tensor y = ssd(x, dt, A, B, C, options);
  if (!gradients) return {{"y", y.to_host<double>()}, {"last", last.to_host<double>()}};
  const auto line = [&](const Tensor& t) { return reshape(cast(t, last.dtype()), {-1}); };
  Tensor flat = line(y), upstream = line(g);
  if (c.last) flat = concat({flat, line(last)}, 0), upstream = concat({upstream, line(gs)}, 0);
  std::vector<Arg> wrt;
  for (const auto& [name, tensor] : inputs) wrt.emplace_back(tensor);
  const std::vector<Tensor> d = grad(flat, upstream, wrt);
  std::vector<Result> out = {{"y", y.to_host<double>()}, {"last", last.to_host<double>()}};
  for (std::size_t k = 0; k < d.size(); ++k) out.push_back({"d" + inputs[k].first, d[k].to_host<double>()});
  return out;
}

std::string name_of(const Case& c) {
  return fmt::format("{} x {} x {} x {}, {} groups, {} states, skip {}{}{}{}{}{}{}", c.b, c.t, c.h, c.p, c.g, c.n, int(c.skip),
                     c.step ? ", step" : "", c.gate ? ", gate" : "", c.initial ? ", initial" : "", c.last ? ", last" : "",
                     c.views ? ", views" : "", c.documents.empty() ? "" : ", packed");
}

void SsdKernels::check(const Case& c, bool gradients) {
  SCOPED_TRACE(name_of(c));
  use_device("cpu");
  const std::vector<Result> right = results(c, DType::f64, DType::f64, gradients);
  use_device(gpu());
  const std::vector<Result> got = results(c, DType::bf16, DType::f32, gradients);
  ASSERT_EQ(got.size(), right.size());
  for (std::size_t k = 0; k < right.size(); ++k)  // dA and dbias are sums that cancel
    EXPECT_LT(error_of(got[k].values, right[k].values), right[k].name == "dA" || right[k].name == "dbias" ? 5e-2 : 8e-3)
        << right[k].name;
}

TEST_F(SsdKernels, OneChunk) { check({.t = 64}); }
TEST_F(SsdKernels, RaggedTails) {
  for (const int64_t t : {1, 7, 63, 65, 130}) check({.b = 2, .t = t, .h = 2, .initial = true, .last = true});
}
TEST_F(SsdKernels, SizesOfHeads) {
  for (const auto& [p, n] : {std::pair{8, 8}, {24, 40}, {32, 16}, {72, 24}, {16, 136}})
    check({.t = 70, .h = 2, .p = p, .n = n, .skip = Skip::head, .initial = true, .last = true});
}
TEST_F(SlowSsdKernels, SizesOfHeads) {
  for (const auto& [p, n] : {std::pair{64, 128}, {64, 64}, {128, 32}, {256, 8}, {40, 256}, {8, 256}})
    check({.t = 140, .h = 2, .p = p, .n = n, .skip = Skip::head, .initial = true, .last = true});
}
TEST_F(SlowSsdKernels, AGateOfLargeStates) { check({.t = 70, .h = 2, .p = 64, .n = 128, .skip = Skip::head, .gate = true}); }
TEST_F(SsdKernels, Groups) {
  for (const int64_t h : {2, 6, 10}) check({.b = 2, .t = 70, .h = h, .g = 2, .skip = Skip::head});
  check({.t = 70, .h = 3, .g = 3, .last = true});
}
TEST_F(SsdKernels, SkipOfFeatures) { check({.t = 70, .h = 3, .p = 40, .skip = Skip::features, .initial = true}); }
TEST_F(SsdKernels, Holes) {
  check({.t = 70, .h = 2, .step = false, .gate = true});
  check({.t = 70, .h = 2, .skip = Skip::head, .gate = true, .initial = true, .last = true});
}
TEST_F(SsdKernels, ViewsOfOneProjection) {
  check({.b = 2, .t = 70, .h = 8, .p = 16, .g = 2, .n = 16, .skip = Skip::head, .gate = true, .views = true});
  check({.b = 2, .t = 70, .h = 3, .p = 8, .n = 16, .gate = true, .views = true});  // rows that are not at multiples of 16 bytes
}
TEST_F(SlowSsdKernels, ManySegments) {
  check({.t = 1100, .h = 1, .p = 8, .n = 8, .skip = Skip::head, .initial = true, .last = true, .low = -7, .high = -3});
  check({.b = 70, .t = 200, .h = 8, .p = 8, .n = 8}, false);  // so many blocks that there is one
}

// A step of size 0 leaves the state as it is, and has a gradient.
TEST_F(SsdKernels, StepsOfSizeZero) { check({.t = 70, .h = 2, .step = false, .idle = true}); }
// Steps that decay all before them leave the decays of others their digits.
TEST_F(SsdKernels, LargeSteps) { check({.t = 130, .h = 2, .last = true, .low = -4, .high = 3e4}); }

TEST_F(SsdKernels, PackedDocuments) {  // borders where chunks begin, one after the other, in steps of size 0
  check({.b = 2,
         .t = 150,
         .h = 2,
         .skip = Skip::head,
         .gate = true,
         .initial = true,
         .last = true,
         .documents = {64, 30, 1, 1, 54}});
  check({.t = 70, .n = 136, .last = true, .documents = {32, 6, 1, 31}});
  check({.t = 40, .step = false, .idle = true, .documents = {9, 21, 10}});
}
TEST_F(SlowSsdKernels, PackedDocuments) {
  check({.t = 1100, .p = 8, .n = 8, .initial = true, .last = true, .low = -7, .high = -3, .documents = {500, 90, 510}});
  check({.b = 3,
         .t = 330,
         .h = 3,
         .p = 64,
         .n = 128,
         .skip = Skip::head,
         .gate = true,
         .initial = true,
         .last = true,
         .documents = {120, 2, 1, 207}});
  check({.b = 2, .t = 128, .documents = std::vector<int64_t>(128, 1)});
}

// What a document holds changes no bit of the values and gradients of another.
TEST_F(SsdKernels, NothingCrossesABorder) {
  const int64_t t = 100, p = 16, n = 16;
  const auto both = [&](int64_t border, int64_t begin, int64_t end) {  // with x, B and C of some steps larger
    Values by(static_cast<std::size_t>(t), 1.0);
    std::fill(by.begin() + begin, by.begin() + end, 1024.0);  // so that roundings of theirs would be seen
    const Tensor factor = cast(Tensor::from(by, {1, t, 1, 1}), DType::bf16);
    const Tensor x = operand({1, t, 1, p}, 1, DType::bf16) * factor, B = operand({1, t, 1, n}, 2, DType::bf16) * factor,
                 C = operand({1, t, 1, n}, 3, DType::bf16) * factor, dt = operand({1, t, 1}, 4, DType::bf16, 0.01, 0.3),
                 A = operand({1}, 5, DType::f32, -1, -0.5), g = operand({1, t, 1, p}, 6, DType::bf16);
    Values ids(static_cast<std::size_t>(t), 0.0);
    std::fill(ids.begin() + border, ids.end(), 1.0);
    const Tensor y = ssd(x, dt, A, B, C, {.segments = cast(Tensor::from(ids, {1, t}), DType::i64)});
    std::vector<Tensor> all = grad(y, g, {x, dt, B, C});
    all.push_back(y);
    std::vector<Values> first, second;
    for (const Tensor& of : all) {
      const Values values = of.to_host<double>();
      const auto middle = values.begin() + std::ptrdiff_t(values.size()) / t * border;
      first.emplace_back(values.begin(), middle), second.emplace_back(middle, values.end());
    }
    return std::pair{first, second};
  };
  for (const int64_t border : {70, 71}) {  // the first and the second of a lane's steps
    const auto as_drawn = both(border, 0, 0), one = both(border, 0, border), other = both(border, border, t);
    EXPECT_NE(as_drawn.first, one.first);
    EXPECT_EQ(as_drawn.second, one.second);
    EXPECT_NE(as_drawn.second, other.second);
    EXPECT_EQ(as_drawn.first, other.first);
  }
}

TEST_F(SsdKernels, OnlyTheLastStateHasAGradient) {
  std::vector<Values> all[2];
  for (const bool kernels : {false, true}) {
    use_device(kernels ? gpu() : "cpu");
    const DType dtype = kernels ? DType::bf16 : DType::f64, wide = kernels ? DType::f32 : DType::f64;
    const Tensor x = operand({1, 70, 2, 16}, 1, dtype), dt = operand({1, 70, 2}, 2, dtype, 0.01, 0.2),
                 A = operand({2}, 3, wide, -1, -0.1), B = operand({1, 70, 1, 16}, 4, dtype),
                 C = operand({1, 70, 1, 16}, 5, dtype), g = operand({1, 2, 16, 16}, 6, wide);
    const Tensor z = operand({1, 70, 2, 16}, 7, dtype);
    Tensor last;
    ssd(x, dt, A, B, C, {.out = gate(z), .last = &last});
    for (const Tensor& d : grad(last, g, {x, dt, A, B, C, z}, Unused::zeros)) all[kernels].push_back(d.to_host<double>());
  }
  for (std::size_t k = 0; k < 6; ++k) EXPECT_LT(error_of(all[1][k], all[0][k]), 8e-3) << k;
}

TEST_F(SsdKernels, ResultsAreEqualFromRunToRun) {
  const Case c{.b = 2, .t = 150, .h = 3, .p = 24, .n = 24, .skip = Skip::head, .gate = true, .initial = true, .last = true};
  const std::vector<Result> one = results(c, DType::bf16, DType::f32, true), two = results(c, DType::bf16, DType::f32, true);
  for (std::size_t k = 0; k < one.size(); ++k) EXPECT_EQ(one[k].values, two[k].values) << one[k].name;
}

TEST_F(SsdKernels, SecondDerivatives) {
  std::vector<Values> all[2];
  for (const bool kernels : {false, true}) {
    use_device(kernels ? gpu() : "cpu");
    const DType dtype = kernels ? DType::bf16 : DType::f64, wide = kernels ? DType::f32 : DType::f64;
    const Tensor x = operand({1, 20, 2, 8}, 1, dtype), dt = operand({1, 20, 2}, 2, dtype, -3, 0),
                 A = operand({2}, 3, wide, -1, -0.1), B = operand({1, 20, 1, 8}, 4, dtype),
                 z = operand({1, 20, 2, 8}, 5, dtype), g = operand({1, 20, 2, 8}, 6, dtype), bias = operand({2}, 7, wide),
                 D = operand({2}, 8, wide), initial = operand({1, 2, 8, 8}, 9, wide);
    Tensor last;
    const Tensor C = B * 0.5;  // which depends on B: its gradient by B is not a part of that of the scan
    const Tensor s =
        ssd(x, dt, A, B, C, {.D = D, .dt = softplus_bias(bias), .out = gate(z), .initial = initial, .last = &last});
    const std::vector<Tensor> first = grad(sum(cast(s * g, wide)) + sum(square(last)) * 0.1, {x, A, B, bias, z, initial});
    Tensor penalty;
    for (const Tensor& d : first) penalty = penalty ? penalty + sum(square(cast(d, wide))) : sum(square(cast(d, wide)));
    for (const Tensor& d : grad(penalty, {x, dt, A, B, z, g, bias, D, initial}, Unused::zeros))
      all[kernels].push_back(d.to_host<double>());
  }
  for (std::size_t k = 0; k < all[0].size(); ++k) EXPECT_LT(error_of(all[1][k], all[0][k]), 8e-3) << k;
}

// For what every GPU has, and for what sm_90 has besides: shared memory for more rows at a time. A batch that fills it has
// blocks of 16 warps, which for heads of 64 features need all of the 128 registers a thread may have: a few are spilled.
TEST_F(SlowSsdKernels, CompileWithFewSpills) {
  use_device(gpu());  // where they are recorded
  for (const auto& [p, n] : {std::pair{64, 128}, {64, 64}, {32, 32}, {128, 16}, {64, 256}})
    for (const char* architecture : {"sm_80", "sm_90a", "sm_100", "sm_120"}) {
      const std::string_view planned = std::string_view(architecture) == "sm_120" ? "sm_80" : architecture;
      const Tensor x = operand({9, 512, 8, p}, 1, DType::bf16), B = operand({9, 512, 1, n}, 2, DType::bf16),
                   dt = operand({9, 512, 8}, 3, DType::bf16, 0, 1), A = operand({8}, 4, DType::f32, -1, 0),
                   D = operand({8}, 5, DType::f32), initial = operand({9, 8, p, n}, 6, DType::f32);
      const auto plan = plan_for(target_for(planned), [&] {
        Tensor last;
        const Tensor y =
            ssd(x, dt, A, B, B, {.D = D, .dt = softplus_bias(D), .out = gate(x), .initial = initial, .last = &last});
        return grad(sum(y) + sum(last), {x, dt, A, B, D, initial});
      });
      int kernels = 0;
      for (const PlannedKernel& k : plan->kernels) {
        const auto* cuda = std::get_if<CudaKernelPointer>(&k.work);
        if (!cuda || !(*cuda)->name.starts_with("ssd_")) continue;
        const Compiled c = compile((*cuda)->name, complete_text(**cuda), architecture);
        SCOPED_TRACE(fmt::format("{} for {}, {} features, {} states: {} registers of {} threads, {} bytes of shared memory",
                                 (*cuda)->name, architecture, p, n, c.registers, (*cuda)->block[0], (*cuda)->shared));
        fmt::print("{:22} {:7} {:3} x {:3}: {:3} registers, {:3} threads, {:6} bytes, {} spilled\n", (*cuda)->name,
                   architecture, p, n, c.registers, (*cuda)->block[0], (*cuda)->shared, c.spill_bytes);
        EXPECT_LE(c.spill_bytes, p == 64 && n <= 128 ? 80 : 0);
        EXPECT_LE(unsigned(c.registers) * (*cuda)->block[0], 65536u);
        EXPECT_LE((*cuda)->shared, planned == "sm_80" ? 99u * 1024 : 227u * 1024);
        kernels += (*cuda)->shared > 0;
      }
      EXPECT_EQ(kernels, 4);
    }
}

// Of heads, groups and states that lie side by side, as a convolution leaves them.
TEST_F(SsdKernels, GradientsOfSlicesAreWrittenWhereTheyBelong) {
  std::string names;
  const Tensor whole = operand({2, 70, 2 * 16 + 2 * 8}, 1, DType::bf16), dt = operand({2, 70, 2}, 2, DType::bf16, 0, 1),
               A = operand({2}, 3, DType::f32, -1, 0);
  const auto plan = plan_for(kEmulatedTarget, [&] {
    const Tensor x = reshape(slice(whole, -1, 0, 32), {2, 70, 2, 16}), B = reshape(slice(whole, -1, 32, 40), {2, 70, 1, 8}),
                 C = reshape(slice(whole, -1, 40, 48), {2, 70, 1, 8});
    return grad(sum(ssd(x, dt, A, B, C)), {whole});
  });
  for (const PlannedKernel& k : plan->kernels) names += k.record.name + " ";
  EXPECT_NE(names.find("ssd_grad"), std::string::npos);
  EXPECT_EQ(names.find("concat_copy"), std::string::npos) << names;
}

TEST_F(SsdKernels, ArePlannedWhereTheyFit) {
  const auto kernels = [&](DType dtype, int64_t p, int64_t n) {
    std::string names;
    const Tensor x = operand({1, 130, 2, p}, 1, dtype), B = operand({1, 130, 1, n}, 2, dtype),
                 dt = operand({1, 130, 2}, 3, dtype, 0, 1), A = operand({2}, 4, DType::f32, -1, 0);
    const auto plan = plan_for(kEmulatedTarget, [&] { return grad(sum(ssd(x, dt, A, B, B)), {x}); });
    for (const PlannedKernel& k : plan->kernels) names += k.record.name + " ";
    return names;
  };
  for (const char* name : {"ssd_state", "ssd_out", "ssd_dstate", "ssd_grad"}) {
    EXPECT_NE(kernels(DType::bf16, 16, 8).find(name), std::string::npos) << name;
    EXPECT_EQ(kernels(DType::f32, 16, 8).find(name), std::string::npos) << name;
    EXPECT_EQ(kernels(DType::bf16, 12, 8).find(name), std::string::npos) << name;
    EXPECT_EQ(kernels(DType::bf16, 16, 264).find(name), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace weft
