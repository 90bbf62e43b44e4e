// What the scheduler makes of a recording: versions for a target, what products take over, where values are written, and a hash
// that is the same in every process.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "autograd/context.h"
#include "autograd/lowering.h"
#include "autograd/settings.h"
#include "jit/driver.h"
#include "jit/memory.h"
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

// ---- what makes every step a new plan ---------------------------------------------------------------------------------------

std::string notice(const std::function<Tensor(int)>& step, int steps = 4) {
  testing::internal::CaptureStderr();
  for (int k = 0; k < steps; ++k) run([&] { return step(k); });
  return testing::internal::GetCapturedStderr();
}

TEST(Notice, NamesTheIntegerThatChanges) {
  const Tensor x = wave({9, 4});
  const int line = __LINE__ + 1;
  const std::string said = notice([&](int k) { return sum(slice(x, 0, k, k + 3), {0}); });
  for (const std::string& part :
       {std::string("an integer changes every step"), std::string(" was 2 and is 3"), "test_plans.cpp:" + std::to_string(line)})
    EXPECT_NE(said.find(part), std::string::npos) << part << " in: " << said;
}

// Numbers of expressions mean nothing to anybody.
TEST(Notice, SaysThatAnExpressionChanges) {
  const Tensor x = wave({9, 4}), u = wave({2, 5, 4}), A = wave({4, 3}), B = wave({2, 5, 3});
  const auto hole = [&](int n) {
    return ScanOptions{.out = [n](Expr v, Index, Index t, Index) { return v * to_real(t + (7 + n)); }};
  };
  const auto shifted = [&](int n) {
    return pointwise("shifted", {x}, [n](Expr v) { return v * to_real(expr::element() + (7 + n)); });
  };
  for (const std::string& said : {notice(shifted, 10), notice([&](int k) { return scan(u, u, A, B, B, hole(k)); }, 10)}) {
    EXPECT_NE(said.find("an expression changes every step"), std::string::npos) << said;
    EXPECT_NE(said.find("test_plans.cpp:"), std::string::npos) << said;
    EXPECT_EQ(said.find("its integer"), std::string::npos) << said;
  }
  EXPECT_EQ(notice([&](int k) { return x + (3.5 + k); }), "");
}

// 0, 1, 2, -1 and 1/2 are part of an expression, which makes six plans of it, but no more.
TEST(Notice, DoesNotMindARealConstantThatTakesEveryForm) {
  const Tensor x = wave({9, 4}), u = wave({2, 5, 4}), A = wave({4, 3}), B = wave({2, 5, 3});
  const double numbers[] = {0, 1, 2, 0.5, -1, 3, 0, 2, 1, 7, 0.5, -1, 4};
  const auto hole = [&](double c) { return ScanOptions{.out = [c](Expr v, Index, Index, Index) { return v + float(c); }}; };
  EXPECT_EQ(notice([&](int k) { return x * numbers[k]; }, 13), "");
  EXPECT_EQ(notice([&](int k) { return x * k; }, 13), "");
  EXPECT_EQ(notice([&](int k) { return scan(u, u, A, B, B, hole(numbers[k])); }, 13), "");
}

// ---- how many plans are kept, and how long they take ------------------------------------------------------------------------

TEST(PlanCache, IsLimitedByItsMemory) {
  const std::size_t before = settings().plan_bytes;
  PlanCache& plans = context().plans;
  plans.clear();
  const Tensor x = wave({4});
  const auto chain = [&](int n) {
    return run([&] {
      Tensor y = x;
      for (int i = 0; i < n; ++i) y = sum(exp(y), {0}, true) + x;
      return y;
    });
  };
  for (int n = 1; n <= 100; ++n) chain(n);
  EXPECT_EQ(plans.size(), 100u);  // small ones, all kept
  const std::size_t all = plans.bytes();
  EXPECT_GT(all, 100 * sizeof(Plan));
  settings().plan_bytes = all / 4;
  chain(101);
  EXPECT_LE(plans.bytes(), all / 4);
  EXPECT_LT(plans.size(), 60u);
  EXPECT_GE(plans.size(), 2u);
  chain(100);  // the most recent ones are those that stay
  EXPECT_TRUE(last_run().replayed);
  chain(1);
  EXPECT_FALSE(last_run().replayed);
  settings().plan_bytes = 0;
  chain(3);
  EXPECT_EQ(plans.size(), 1u);
  chain(3);
  EXPECT_TRUE(last_run().replayed);
  settings().plan_bytes = before;
}

TEST(PlanCache, ItsLimitIsSetByTheEnvironment) {
  setenv("WEFT_PLANS", "3", 1);
  EXPECT_EQ(read_settings().plan_bytes, std::size_t(3) << 20);
  setenv("WEFT_PLANS", "much", 1);
  expect_error(ErrorKind::usage, {"WEFT_PLANS: unknown word 'much'"}, [] { read_settings(); });
  unsetenv("WEFT_PLANS");
  EXPECT_EQ(read_settings().plan_bytes, std::size_t(256) << 20);
}

// Of an unrolled network, by the second: eight times the nodes take eight times as long, and not sixty-four times.
TEST(SlowPlans, TakeTimeThatIsLinearInTheirNodes) {
  Param w(Shape{8, 8});
  const auto seconds = [&](int steps) {
    run([&] {
      Tensor h = ones({1, 8});
      for (int i = 0; i < steps; ++i) h = tanh(matmul(h, w)) + h * 0.5f;
      const Tensor loss = sum(h);
      backward(loss);
      return loss;
    });
    w.zero_grad();
    EXPECT_FALSE(last_run().replayed);
    return last_run().plan_seconds;
  };
  seconds(500);
  const double few = std::min(seconds(1001), seconds(1002)), many = std::min(seconds(8001), seconds(8002));
  EXPECT_LT(many, 16 * few);
}

// Many values are placed in the order of time.
TEST(Placement, OfManyValuesOverlapsNone) {
  for (const int n : {10, 100, 5000}) {
    std::vector<Lifetime> values;
    std::uint64_t random = 1;
    const auto next = [&random](std::uint64_t below) {
      random = random * 6364136223846793005u + 1442695040888963407u;  // Knuth's
      return (random >> 33) % below;
    };
    for (int i = 0; i < n; ++i) {
      const int first = int(next(std::uint64_t(n)));
      values.push_back({std::size_t(next(3000)), first, first + int(next(20))});
    }
    const std::size_t total = place(values);
    std::size_t most = 0;
    for (int k = 0; k < n + 20; ++k) {
      std::size_t alive = 0;
      std::vector<const Lifetime*> at;
      for (const Lifetime& v : values)
        if (v.first <= k && k <= v.last && v.bytes > 0) at.push_back(&v), alive += v.bytes;
      most = std::max(most, alive);
      std::sort(at.begin(), at.end(), [](auto a, auto b) { return a->offset < b->offset; });
      for (std::size_t i = 0; i + 1 < at.size(); ++i) ASSERT_LE(at[i]->offset + at[i]->bytes, at[i + 1]->offset) << n;
      if (!at.empty()) {
        ASSERT_LE(at.back()->offset + at.back()->bytes, total);
      }
    }
    for (const Lifetime& v : values) EXPECT_EQ(v.offset % kPlacement, 0u);
    EXPECT_LT(total, 2 * most + 20 * kPlacement) << n;
  }
}

// ---- products ---------------------------------------------------------------------------------------------------------------

class Products : public testing::Test {
 protected:
  Products() { settings().products = weft::Products::all; }
  ~Products() override { settings().products = weft::Products::sums; }

  // A product reads what `step` makes. Its values with products fused are near those of the plan without, which has `saved`
  // more kernels.
  void check(const std::function<Tensor()>& step, int saved, double near = 1e-5) {
    const auto read = [&] {
      const Tensor v = step();
      return cast(matmul(v, cast(wave({v.dim(-1), 8}, 0.5), v.dtype())), DType::f32);
    };
    settings().products = weft::Products::none;
    const std::vector<double> plain = run(read).to_host<double>();
    const int kernels = last_run().kernels;
    EXPECT_EQ(reasons(), "");
    settings().products = weft::Products::all;
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
      if (k.name.starts_with("gemm") || k.name.starts_with("matvec"))
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
  State s({6, 16}, DType::f32, "s"), t({6, 24}, DType::f32, "t"), bias({24}, DType::f32, "bias");
  expect_reason("not fused: linear has 2 readers", [&] {
    const Tensor v = linear(x, w);
    return matmul(relu(v), transpose(v));
  });
  expect_reason("not fused: the library has no silu", [&] { return silu(linear(x, w)); });
  expect_reason("not fused: softmax reads it", [&] { return softmax(linear(x, w), {-1}); });
  expect_reason("not fused: add has another shape", [&] { return linear(x, w) + wave({2, 6, 24}); });
  expect_reason("not fused: add reads it twice", [&] {
    const Tensor v = linear(x, w);
    return v + v;
  });
  expect_reason("not fused: neither a bias nor one tensor of its shape is added", [&] { return linear(x, w, b) + b; });
  expect_reason("not fused: neither a bias nor one tensor of its shape is added", [&] { return linear(x, w) + y + y * 2; });
  expect_reason("not fused: what is added has another dtype than the sum", [&] { return linear(x, w) + cast(y, DType::bf16); });
  expect_reason("not fused: the library has no activation in fp64",
                [&] { return relu(linear(cast(x, DType::f64), cast(w, DType::f64))); });
  if (!is_gpu(device()))  // where it is no product at all
    expect_reason("not fused: the product is a sum over nothing", [&] { return linear(zeros({6, 0}), zeros({24, 0})) + y; });
  expect_reason("not fused: it reads a State that is written before add", [&] {
    const Tensor v = linear(s, w);
    assign(s, x);
    return v + y;
  });
  expect_reason("fused: add\nnot fused: it reads a State that is written before relu", [&] {
    const Tensor v = linear(x, w) + t;
    assign(t, y);
    return relu(v);
  });
  expect_reason("not fused: it reads a State that is written before relu", [&] {
    const Tensor v = linear(x, w, bias);
    assign(bias, b);
    return relu(v);
  });
  expect_reason("not fused: what is added is a State that is written before", [&] {
    const Tensor old = t.read(), v = linear(x, w);
    assign(t, y);
    return v + old;
  });
}

// Unless more is asked for: sums of the product's own type that somebody reads from memory anyway, with what is there already.
TEST_F(Products, TakeOverSumsThatWouldBeStored) {
  settings().products = weft::Products::sums;
  const Tensor square = wave({24, 24}, 0.4), wide = wave({6, 24}, 0.8);
  const auto read = [&](const Tensor& v) { return linear(v, square); };
  expect_reason("fused: add\nnot fused: linear reads it", [&] { return read(linear(x, w) + y); });
  expect_reason("not fused: add costs nothing where it is read", [&] { return rms_norm(linear(x, w) + y, Tensor{}); });
  expect_reason("not fused: WEFT_PRODUCTS=all would try relu", [&] { return read(relu(linear(x, w))); });
  expect_reason("exp would have to be stored", [&] { return read(linear(x, w) + exp(y)); });
  expect_reason("not fused: neither a bias nor one tensor", [&] { return read(linear(x, w) + b); });
  expect_reason("not fused: add has another type",
                [&] { return read(linear(cast(x, DType::bf16), cast(w, DType::bf16)) + wide); });
  const auto two = [&] {  // the one that comes last takes the other, whose operands are free by then
    const Tensor first = linear(x, w), second = linear(y, square);
    return read(first + second);
  };
  expect_reason("waits for linear", two);
  expect_reason("fused: add", two);
}

// Both operands of a sum are the product itself, or what it has become, or views of it.
TEST_F(Products, AreAddedToThemselves) {
  const auto twice = [](const Tensor& v) { return v + v; };
  check([&] { return twice(linear(x, w)); }, 0);
  check([&] { return relu(twice(linear(x, w, b))); }, 0);
  check([&] { return twice(linear(x, w) + b); }, 0);
  check([&] { return twice(linear(x, w, b) + y) + y; }, 0);
  check([&] { return twice(reshape(linear(x, w), {24, 6})); }, 0);
  check(
      [&] {
        const Tensor v = linear(x, w);
        return v + reshape(reshape(v, {144}), {6, 24});
      },
      0);
  check(
      [&] {
        const Tensor v = linear(w, slice(w, 0, 0, 24));
        return v + transpose(v);
      },
      0);
  const Tensor row = wave({1, 16}), narrow = wave({1, 16}, 0.3);  // of one element, which might be a bias too
  check([&] { return twice(linear(row, narrow)); }, 0);
}

// A State's value as it was before the write, fused or not.
TEST_F(Products, ReadStatesBeforeTheyAreWritten) {
  for (const bool fuse : {false, true}) {
    settings().products = fuse ? weft::Products::all : weft::Products::none;
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
  settings().products = weft::Products::none;
  EXPECT_EQ(fused, run(step).to_host<float>());
}

// ---- a hash for every process -----------------------------------------------------------------------------------------------

CustomOp twice(const char* factor) {
  return CustomOp({.name = "twice",
                   .inputs = {{"x"}},
                   .outputs = {"y"},
                   .integers = {"n"},
                   .cuda = std::string("extern \"C\" __global__ void KERNEL(PARAMETERS) { write_real(a.y, ") + factor + "); }",
                   .launch = [](const CustomCall& call) { return CustomLaunch::of(call.integers[0], 64); },
                   .gradient = [](const CustomGrad& g) { return std::vector{g.upstream() * 2}; }});
}

// A step with expressions, holes, states, draws and a user's op.
struct HashedStep {
  std::int64_t width;
  const CustomOp op;
  Linear layer{width, 8};
  Param A{{8, 4}, DType::f32, "A"};
  AdamW opt{{A}, {.lr = 1e-3, .clip_norm = 1}};
  const Tensor x = wave({2, 5, width}), bc = wave({2, 5, 4}),
               ids = Tensor::from(std::vector<std::int64_t>{1, 2, 0, 3, 1, 0, 2, 7, 5, 4}, {10});

  HashedStep(std::int64_t n = 6, const char* factor = "2 * x") : width(n), op(twice(factor)) {}
  Tensor operator()() {
    const Tensor u = layer(x), doubled = custom(op, {u}, {{u.shape(), u.dtype()}}, {.integers = {u.numel()}});
    const Tensor h = scan(u, doubled, -exp(A), bc, bc, {.delta = softplus_hole(), .out = gate(u)});
    Tensor loss = cross_entropy(reshape(dropout(h, 0.1) * 0.3, {10, 8}), ids);
    backward(loss);
    opt.step();
    return loss;
  }
};

std::uint64_t hash_of(HashedStep&& step, const Target& target = kSm80) {
  return plan_for(target, [&] { return step(); })->hash;
}

TEST(PlanHash, IsOfWhatThePlanDependsOn) {
  const std::uint64_t hash = hash_of({});
  EXPECT_EQ(hash, hash_of({}));  // other States, another user's op, equal in all that counts
  EXPECT_NE(hash, hash_of(HashedStep(7)));
  EXPECT_NE(hash, hash_of(HashedStep(6, "3 * x")));
  EXPECT_NE(hash, hash_of({}, kSm90a));
  const Tensor x = wave({4});
  const auto of = [](auto step) { return plan_for(kSm80, step)->hash; };
  EXPECT_EQ(of([&] { return x * 3; }), of([&] { return x * 5; }));  // a constant is no structure
  EXPECT_NE(of([&] { return x * 3; }), of([&] { return x + 3; }));
  EXPECT_NE(of([&] { return x * 3; }), of([&] { return x * 2; }));
  EXPECT_NE(of([&] { return sin(x); }), of([&] { return cos(x); }));
}

// This program again, which records other things first, in another order.
TEST(PlanHash, IsTheSameInAnotherProcess) {
  if (std::getenv("WEFT_TEST_PRINT_HASH")) {
    const Tensor x = wave({3, 4});
    twice("5 * x");
    State before({3}, DType::f32, "before");
    run([&] {
      return std::pair(tanh(cos(x) * 0.7) + cross_entropy(x, Tensor::from(std::vector<std::int64_t>{0, 1, 2}, {3})),
                       softmax(x, {-1}));
    });
    std::printf("\nhash %016llx\n", static_cast<unsigned long long>(hash_of({})));
    return;
  }
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command = "env -u GTEST_TOTAL_SHARDS -u GTEST_SHARD_INDEX WEFT_TEST_PRINT_HASH=1 '" + program +
                              "' --gtest_filter=PlanHash.IsTheSameInAnotherProcess 2>&1 </dev/null";
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string text;
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) text.append(buffer, n);
  ASSERT_EQ(pclose(pipe), 0) << text;
  char expected[32];
  std::snprintf(expected, sizeof expected, "hash %016llx", static_cast<unsigned long long>(hash_of({})));
  EXPECT_NE(text.find(expected), std::string::npos) << expected << " against\n" << text;
}

}  // namespace
}  // namespace weft
