// Ops with a user's CUDA text: several outputs, optional inputs, mistakes. The op itself is in the table of ops.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "autograd/backward.h"
#include "autograd/plan.h"
#include "autograd/settings.h"
#include "jit/compiler.h"
#include "jit/driver.h"
#include "ops/ops.h"
#include "tests/expect_error.h"

namespace weft {
namespace {

// sums (rows) and differences (rows) of the two halves of each row of x (rows, 2 half), the first shifted by `shift` (half).
const CustomOp kHalves({
    .name = "halves",
    .inputs = {{.name = "x", .rank = 2}, {.name = "shift", .rank = 1, .optional = true}},
    .outputs = {"sums", "differences"},
    .integers = {"rows", "half"},
    .cuda = R"(
extern "C" __global__ void __launch_bounds__(64) KERNEL(PARAMETERS) {
  const index row = index(blockIdx.x) * 64 + index(threadIdx.x), half = index(a.half);
  if (row >= index(a.rows)) return;
  real first = 0, second = 0;
  for (index j = 0; j < half; ++j) {
    first += read_real(a.x + (row * 2 * half + j));
    second += read_real(a.x + (row * 2 * half + half + j));
    if (has_shift) first += read_real(a.shift + j);
  }
  write_real(a.sums + row, first + second);
  write_real(a.differences + row, first - second);
})",
    .launch = [](const CustomCall& c) { return CustomLaunch::of(c.integers[0], 64); },
    .cpu =
        [](CustomData& d) {
          const std::size_t half = std::size_t(d.integers[1]);
          for (std::size_t r = 0; r < d.out[0].size(); ++r)
            for (std::size_t j = 0; j < half; ++j) {
              const double first = d.in[0][2 * half * r + j] + (d.in[1].empty() ? 0 : d.in[1][j]),
                           second = d.in[0][2 * half * r + half + j];
              d.out[0][r] += first + second, d.out[1][r] += first - second;
            }
        },
});

std::pair<Tensor, Tensor> halves(Arg x, Arg shift) {
  const std::int64_t rows = x.shape()[0], half = x.shape()[1] / 2;
  const Tensor sums = custom(kHalves, {x, shift}, {{{rows}, x.dtype()}, {{rows}, x.dtype()}}, {.integers = {rows, half}});
  return {sums, output_of(sums, 1)};
}

// Random numbers of the words 0 and 2^32 - 1, which a draw meets once in four milliards.
const CustomOp kExtremes({
    .name = "extremes",
    .inputs = {{.name = "x", .rank = 1}},
    .outputs = {"y"},
    .integers = {},
    .cuda = R"(
extern "C" __global__ void __launch_bounds__(32) KERNEL(PARAMETERS) {
  real u;
  uniform_from(threadIdx.x % 2 ? 0xffffffffu : 0u, u);
  if (threadIdx.x < 2) write_real(a.y + threadIdx.x, u);
})",
    .launch = [](const CustomCall&) { return CustomLaunch::of(32, 32); },
    .cpu =
        [](CustomData& d) {
          d.out[0] = {0x1p-33, 1 - 0x1p-24};
        },
});

TEST(Custom, UniformNumbersLieInside) {
  const Tensor x = zeros({2});
  const std::vector<float> u = run([&] { return custom(kExtremes, {x}, {{{2}, DType::f32}}); }).to_host<float>();
  EXPECT_GT(u[0], 0);
  EXPECT_LT(u[1], 1);
  EXPECT_GT(u[1], 0.9999999);
}

TEST(Custom, SeveralOutputsAndOptionalInputs) {
  const Tensor x = Tensor::from<float>({1, 2, 3, 4, 5, 6, 7, 8}, {2, 4}), shift = Tensor::from<float>({10, 0}, {2});
  const auto [sums, differences] = run([&] { return halves(x, Tensor{}); });
  EXPECT_EQ(sums.to_host<float>(), (std::vector<float>{10, 26}));
  EXPECT_EQ(differences.to_host<float>(), (std::vector<float>{-4, -4}));
  const Tensor second = run([&] { return halves(x, shift).second; });  // nobody reads the first output
  EXPECT_EQ(second.to_host<float>(), (std::vector<float>{6, 6}));
}

TEST(Custom, AConstantThatChangesKeepsThePlan) {
  const CustomOp scaled({.name = "scaled",
                         .inputs = {{"x"}},
                         .outputs = {"y"},
                         .constants = {"s"},
                         .cuda = "extern \"C\" __global__ void KERNEL(PARAMETERS) { write_real(a.y, a.s() * read_real(a.x)); }",
                         .launch = [](const CustomCall&) { return CustomLaunch{}; },
                         .cpu = [](CustomData& d) { d.out[0][0] = d.constants[0] * d.in[0][0]; }});
  const Tensor x = Tensor::from<float>({3}, {1});
  for (const double s : {2.0, 5.0}) {
    const Tensor y = run([&] { return custom(scaled, {x}, {{{1}, DType::f32}}, {.constants = {s}}); });
    EXPECT_EQ(y.item(), 3 * s);
    EXPECT_EQ(last_run().replayed, s == 5.0);
  }
}

TEST(Custom, Mistakes) {
  const Tensor x = Tensor::from<float>({1, 2, 3, 4}, {1, 4});
  const auto call = [&](const Tensor& a, const Tensor& b, std::vector<Out> outputs, std::vector<std::int64_t> integers) {
    run([&] { return custom(kHalves, {a, b}, outputs, {.integers = integers}); });
  };
  const std::vector<Out> two = {{{1}, DType::f32}, {{1}, DType::f32}};
  expect_error(ErrorKind::usage, {"halves: input 'x' must be real", "i64 (1, 4)", "cast()"}, [&] {
    call(Tensor::from<std::int64_t>({1, 2, 3, 4}, {1, 4}), {}, two, {1, 2});
  });
  expect_error(ErrorKind::usage, {"halves: input 'x' must be real", "absent"}, [&] { call({}, {}, two, {1, 2}); });
  expect_error(ErrorKind::usage, {"halves: input 'shift' must have 1 axes", "f32 (1, 4)"}, [&] { call(x, x, two, {1, 2}); });
  expect_error(ErrorKind::usage, {"halves: the number of outputs", "1 given, 2 wanted"}, [&] {
    call(x, {}, {two[0]}, {1, 2});
  });
  expect_error(ErrorKind::usage, {"halves: the number of integers", "0 given, 2 wanted"}, [&] { call(x, {}, two, {}); });
  expect_error(ErrorKind::usage, {"halves: a gradient is needed, but this op has none", "test_custom.cpp"}, [&] {
    run([&] {
      const Tensor input = x * 1.0;
      return grad(sum(halves(input, Tensor{}).first), {input})[0];
    });
  });
  expect_error(ErrorKind::usage, {"'two words' cannot be a name"},
               [] { CustomOp({.name = "two words", .inputs = {}, .outputs = {"y"}, .cuda = "", .launch = {}}); });
  expect_error(ErrorKind::usage, {"empty: the op has no kernel"},
               [] { CustomOp({.name = "empty", .inputs = {}, .outputs = {"y"}, .cuda = "", .launch = {}}); });
}

TEST(Custom, MistakesWithHoles) {
  const auto launch = [](const CustomCall&) { return CustomLaunch{}; };
  expect_error(ErrorKind::usage, {"far: hole 'f' has no space", "output 1 of 1"}, [&] {
    CustomOp({.name = "far", .inputs = {}, .outputs = {"y"}, .holes = {{"f", 1}}, .cuda = "-", .launch = launch});
  });
  expect_error(ErrorKind::usage, {"many: too many holes", "5 of at most 4"}, [&] {
    CustomOp({.name = "many",
              .inputs = {},
              .outputs = {"y"},
              .holes = {{"a"}, {"b"}, {"c"}, {"d"}, {"e"}},
              .cuda = "-",
              .launch = launch});
  });
  const CustomOp op({.name = "one",
                     .inputs = {{"x"}},
                     .outputs = {"y"},
                     .holes = {{"f"}},
                     .cuda = "-",
                     .launch = launch,
                     .gradient = [](const CustomGrad& g) { return std::vector{g.upstream()}; }});
  const Tensor x = ones({2});
  expect_error(ErrorKind::usage, {"one: the number of holes", "0 given, 1 wanted"}, [&] {
    custom(op, {x}, {{{2}, DType::f32}});
  });
  expect_error(ErrorKind::usage, {"one: a tensor that hole 'f' captures needs a gradient", "captured 0", "before_hole()"}, [&] {
    run([&] {
      const Tensor z = x * 1.0;
      return grad(sum(custom(op, {x}, {{{2}, DType::f32}}, {.holes = {gate(z)}})), {z})[0];
    });
  });
}

TEST(Custom, AGradientOfTheWrongShape) {
  const CustomOp op({.name = "wrong",
                     .inputs = {{"x"}},
                     .outputs = {"y"},
                     .cuda = "-",
                     .launch = [](const CustomCall&) { return CustomLaunch{}; },
                     .gradient = [](const CustomGrad& g) { return std::vector{sum(g.upstream())}; }});
  expect_error(ErrorKind::usage, {"wrong: the gradient of 'x' has another shape than it", "() for (2,)"}, [&] {
    run([&] {
      const Tensor x = ones({2}) * 1.0;
      return grad(sum(custom(op, {x}, {{{2}, DType::f32}})), {x})[0];
    });
  });
}

// README's example: rows of 128 elements backwards, in turn through the same shared memory, with `barrier` at the end of a
// turn.
CustomOp reversing(const std::string& barrier) {
  return CustomOp({.name = "reversed",
                   .inputs = {{.name = "x", .rank = 2}},
                   .outputs = {"y"},
                   .integers = {"rows"},
                   .cuda = R"(
extern "C" __global__ void __launch_bounds__(128) KERNEL(PARAMETERS) {
  __shared__ real row[128];
  const int i = threadIdx.x;
  for (i64 r = 0; r < a.rows; ++r) {
    row[i] = read_real(a.x + r * 128 + i);
    __syncthreads();
    write_real(a.y + r * 128 + i, row[127 - i]);
    )" + barrier + "\n  }\n}",
                   .launch = [](const CustomCall&) { return CustomLaunch::of(128, 128); }});
}

// What is checked of weft's own kernels is checked of a user's.
TEST(Custom, AMissingBarrierIsReported) {
  if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
  const std::string before(name_of(device()));
  use_device("emu");
  const auto reversed = [](const CustomOp& op) {
    std::vector<float> x(256);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(i);
    return run([&] {
             return custom(op, {Tensor::from(x, {2, 128})}, {{{2, 128}, DType::f32}}, {.integers = {2}});
           })
        .to_host<float>();
  };
  const CustomOp racy = reversing(""), right = reversing("__syncthreads();");
  expect_error(
      ErrorKind::device,
      {"a race in shared memory", "kernel reversed__", "source line", "the other is thread (", "custom at test_custom.cpp"},
      [&] { reversed(racy); });
  const std::vector<float> y = reversed(right);
  use_device(before);
  EXPECT_EQ(y[0], 127);
  EXPECT_EQ(y[255], 128);
}

// Elements [shift, shift + 5) of x into elements [place, place + 5) of y, which both have five.
TEST(Custom, RunningOverAnEndIsReported) {
  if (device() != Device::emu || !settings().split_arena) GTEST_SKIP() << "needs WEFT_DEVICE=emu and WEFT_ARENA=split";
  const CustomOp op({.name = "moved",
                     .inputs = {{.name = "x", .rank = 1}},
                     .outputs = {"y"},
                     .integers = {"shift", "place"},
                     .cuda = R"(
extern "C" __global__ void __launch_bounds__(32) KERNEL(PARAMETERS) {
  if (threadIdx.x < 5) write_real(a.y + (a.place + threadIdx.x), read_real(a.x + (a.shift + threadIdx.x)));
})",
                     .launch = [](const CustomCall&) { return CustomLaunch::of(32, 32); }});
  const Tensor x = Tensor::from<float>({1, 2, 3, 4, 5}, {5});
  const auto moved = [&](std::int64_t shift, std::int64_t place) {
    return run([&] { return custom(op, {x}, {{{5}, DType::f32}}, {.integers = {shift, place}}); }).to_host<float>();
  };
  EXPECT_EQ(moved(0, 0), (std::vector<float>{1, 2, 3, 4, 5}));
  expect_error(ErrorKind::device, {"read of 4 bytes out of bounds", "0 bytes past the end of input 0", "of 20 bytes"},
               [&] { moved(1, 0); });
  expect_error(ErrorKind::device, {"write of 4 bytes out of bounds", "0 bytes past the end of custom", "of 20 bytes"},
               [&] { moved(0, 1); });
}

TEST(Custom, AMistakeInTheTextShowsItsLines) {
  if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
  const CustomOp op(
      {.name = "typo",
       .inputs = {{"x"}},
       .outputs = {"y"},
       .cuda = "extern \"C\" __global__ void KERNEL(PARAMETERS) {\n  const real x = read_real(a.x);\n  write_real(a.y, xx);\n}",
       .launch = [](const CustomCall&) { return CustomLaunch{}; }});
  const auto plan = plan_for(target_for("sm_90a"), [&] { return custom(op, {ones({1})}, {{{1}, DType::f32}}); });
  expect_error(ErrorKind::device,
               {"kernel typo__", "typo(3): error", "identifier \"xx\" is undefined", ">     3    write_real(a.y, xx);",
                "      1  extern"},
               [&] {
                 for (const PlannedKernel& k : plan->kernels)
                   if (const auto* cuda = std::get_if<CudaKernelPointer>(&k.work))
                     compile((*cuda)->name, complete_text(**cuda), "sm_90a");
               });
}

}  // namespace
}  // namespace weft
