// Gradients of gradients: every op of the table against finite differences of its first derivative, penalties, products with
// the Hessian, and the errors where a derivative is not defined.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/op.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "nn/layers.h"
#include "ops/ops.h"
#include "optim/adamw.h"
#include "optim/clip.h"
#include "tests/expect_error.h"
#include "tests/op_cases.h"

namespace weft {
namespace {

using Tensors = std::vector<Tensor>;

std::vector<Arg> reals_of(const Tensors& in) {
  std::vector<Arg> out;
  for (const Tensor& t : in)
    if (is_real(t.dtype())) out.emplace_back(t);
  return out;
}

// sum(t * w), w fixed and irregular.
Tensor weighted(const Tensor& t, std::uint64_t stream) {
  const Tensor w = Tensor::from(irregular(t.numel(), 0.5, 1.5, stream), t.shape());
  return sum(cast(t, DType::f64) * w);
}

// A weighted sum of f and of the first derivatives of a function of f, so that what comes from above depends on the inputs,
// too: the gradient of that holds second derivatives.
OpFunction with_derivative(const OpFunction& f) {
  return [f](const Tensors& in) {
    const Tensor value = cast(f(in), DType::f64), y = weighted(value + 0.25 * square(value), 11);
    Tensor total = y;
    std::uint64_t stream = 12;
    for (const Tensor& g : grad(y, reals_of(in), Unused::zeros)) total = total + weighted(g, stream++);
    return total;
  };
}

Tensors inputs_of(const OpCase& c, DType dtype = DType::f64) {
  Tensors out;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    const OpInput& input = c.inputs[i];
    std::vector<double> v = irregular(input.shape.numel(), input.low, input.high, i + 1);
    for (std::size_t k = 0; k < v.size() && !input.values.empty(); ++k) v[k] = input.values[k % input.values.size()];
    if (is_integer(input.integer))
      out.push_back(Tensor::from(std::vector<std::int64_t>(v.begin(), v.end()), input.shape));
    else
      out.push_back(dtype == DType::f64 ? Tensor::from(v, input.shape)
                                        : Tensor::from(std::vector<float>(v.begin(), v.end()), input.shape));
  }
  return out;
}

bool is_empty(const OpCase& c) {
  for (const OpInput& input : c.inputs)
    if (input.shape.numel() == 0) return true;
  return false;
}

// Of ops whose gradient is a kernel without a gradient, what the error says.
std::string refused(const std::string& row) {
  return row.starts_with("scan")                        ? "scan: second derivatives do not go through this op"
         : row == "custom" || row == "custom_of_a_view" ? "squared_relu_grad: a gradient is needed, but this op has none"
                                                        : "";
}

const OpRow& row_named(const std::string& name) {
  for (const OpRow& row : op_rows())
    if (row.name == name) return row;
  throw std::runtime_error("no row " + name);
}

class OnCpu {
 public:
  OnCpu() : before_(device()) { use_device("cpu"); }
  ~OnCpu() { use_device(name_of(before_)); }

 private:
  Device before_;
};

// f with the same draws in every run.
OpFunction frozen(const OpFunction& f, Rng& rng) {
  return [f, &rng](const Tensors& in) {
    rng.set(3, 5);
    return f(in);
  };
}

class SecondDerivatives : public testing::TestWithParam<int> {};

TEST_P(SecondDerivatives, AreFiniteDifferencesOfTheFirst) {
  const OnCpu cpu;
  const OpRow& row = op_rows()[std::size_t(GetParam())];
  Rng rng(3);
  const UseRng use(rng);
  const OpFunction f = with_derivative(frozen(row.fn, rng));
  for (const OpCase& c : row.cases) {
    if (!c.gradient) continue;
    const Tensors in = inputs_of(c);
    if (!refused(row.name).empty()) {
      if (is_empty(c)) continue;
      expect_error(ErrorKind::usage, {refused(row.name)}, [&] { run([&] { return grad(f(in), reals_of(in)); }); });
    } else {
      try {
        gradcheck(f, in, {.absolute = 2e-6, .relative = 2e-5, .elements = 5});
      } catch (const Error& e) {
        ADD_FAILURE() << c.name << ": " << e.what();
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Table, SecondDerivatives, testing::Range(0, int(op_rows().size())),
                         [](const auto& p) { return op_rows()[std::size_t(p.param)].name; });

TEST(ThirdDerivatives, AreFiniteDifferencesOfTheSecond) {
  const OnCpu cpu;
  for (const char* name :
       {"tanh", "sqrt", "gelu", "div", "pow", "where", "user_defined", "overlapping_slices", "softmax_9", "log_softmax_9",
        "logsumexp_9", "layer_norm", "rms_norm_gated", "linear", "matmul", "cross_entropy_rows"}) {
    const OpRow& row = row_named(name);
    for (const OpCase& c : row.cases) {
      if (!c.gradient || (c.name != "odd" && c.name != "row" && &c != &row.cases[0])) continue;
      try {
        gradcheck(with_derivative(with_derivative(row.fn)), inputs_of(c), {.absolute = 1e-5, .relative = 1e-4, .elements = 3});
      } catch (const Error& e) {
        ADD_FAILURE() << name << ", " << c.name << ": " << e.what();
      }
    }
  }
}

// Where the gradient of an op is a kernel, its own gradient is composed: on a GPU of kernels of that device.
TEST(GradOfGrad, AgreesOnAllDevices) {
  if (!is_gpu(device())) GTEST_SKIP() << "this device is the reference";
  for (const char* name : {"layer_norm_out", "conv1d_out", "cross_entropy_rows", "linear", "embedding", "custom_holes"}) {
    const OpRow& row = row_named(name);
    const Tensors in = inputs_of(row.cases[0], DType::f32);
    const auto gradients = [&] {
      std::vector<std::vector<double>> out;
      for (const Tensor& g : run([&] { return grad(with_derivative(row.fn)(in), reals_of(in), Unused::zeros); }))
        out.push_back(g.to_host<double>());
      return out;
    };
    const auto got = gradients();
    const OnCpu cpu;
    const auto want = gradients();
    for (std::size_t k = 0; k < want.size(); ++k)
      for (std::size_t i = 0; i < want[k].size(); ++i)
        EXPECT_NEAR(got[k][i], want[k][i], 1e-4 * (1 + std::abs(want[k][i])))
            << name << ", gradient " << k << ", element " << i;
  }
}

// ---- polynomials ------------------------------------------------------------------------------------------------------------

Tensor cube(Arg x) { return x * x * x; }

TEST(GradOfGrad, EveryOrderOfAPower) {
  const Tensor x = Tensor::from<double>({2}, {1});
  const auto all = run([&] {
    Tensors out = {pow(x, 5.0)};
    for (int order = 1; order <= 6; ++order) out.push_back(grad(sum(out.back()), {x})[0]);
    return out;
  });
  const double want[] = {32, 80, 160, 240, 240, 120, 0};
  for (int order = 0; order <= 6; ++order) EXPECT_NEAR(all[std::size_t(order)].item(), want[order], 1e-9) << order;
}

TEST(GradOfGrad, APathThroughAGradientCounts) {
  const Tensor x = Tensor::from<float>({2}, {1});
  const Tensor both = run([&] {
    const Tensor y = cube(x), g = grad(sum(y), {x})[0];
    return grad(sum(y + g), {x})[0];
  });
  EXPECT_EQ(both.item(), 24);  // 3 x^2 + 6 x
  Param w({1}, DType::f32, "w");
  w.set(std::vector<float>{2});
  run([&] {
    const Tensor y = cube(w), g = grad(sum(y), {w})[0];
    backward(sum(y + g));
  });
  EXPECT_EQ(w.gradient<float>(), std::vector<float>{24});
}

TEST(GradOfGrad, OutsideRun) {
  Param w({1}, DType::f32, "w");
  w.set(std::vector<float>{2});
  const Tensor y = cube(w.read()), g = grad(sum(y), {w})[0];
  EXPECT_EQ(g.item(), 12);  // the gradient is still differentiable after it was looked at
  backward(sum(y + g));
  EXPECT_EQ(w.gradient<float>(), std::vector<float>{24});
  const Tensor x = Tensor::from<float>({2}, {1});
  const Tensor once = grad(sum(cube(x)), {x})[0];
  EXPECT_EQ(grad(sum(once), {x})[0].item(), 12);
}

TEST(GradOfGrad, DetachAndNoGradMakeAConstant) {
  const Tensor x = Tensor::from<float>({2}, {1});
  const auto got = run([&] {
    const Tensor y = cube(x), total = sum(y), g = grad(total, {x})[0];
    const Tensor constant = no_grad([&] { return grad(total, {x})[0]; });
    return std::pair(grad(sum(y + detach(g)), {x})[0], grad(sum(y + constant), {x})[0]);
  });
  EXPECT_EQ(got.first.item(), 12);
  EXPECT_EQ(got.second.item(), 12);
  expect_error(ErrorKind::usage, {"no gradient flows", "no_grad, detach"}, [&] {
    run([&] {
      const Tensor total = sum(cube(x)), g = no_grad([&] { return grad(total, {x})[0]; });
      grad(sum(g), {x});
    });
  });
}

// A training step does not pay: what backward records is not kept differentiable.
TEST(GradOfGrad, BackwardRecordsConstants) {
  Param w({2, 2}, DType::f32, "w");
  run([&] {
    backward(sum(square(softmax(matmul(w, w)))));
    for (NodeId id = tape().first_gradient; id < tape().nodes.size(); ++id) EXPECT_TRUE(tape().nodes[id].has(Node::stopped));
  });
}

TEST(GradOfGrad, SharesWhatTwoGradientsHaveInCommon) {
  const Tensor x = Tensor::from<double>({0.3, -0.8, 1.1}, {3}), y = Tensor::from<double>({0.5, 0.2, -0.4}, {3});
  gradcheck(
      [](const Tensors& in) {
        const Tensor h = tanh(in[0] * in[1]), a = sum(h * in[0]), b = sum(exp(h));
        const Tensor by_x = grad(a, {in[0]})[0], by_y = grad(b, {in[1]})[0], again = grad(a, {in[0]})[0];
        return sum(by_x * by_y) + sum(grad(sum(by_x * again), {in[1]})[0]);
      },
      {x, y});
}

// Ties of max and min share a gradient that is differentiated as it is.
TEST(GradOfGrad, TiesAreShared) {
  const Tensor x = Tensor::from<double>({3, 1, 3}, {3});
  const auto got = run([&] {
    const Tensor a = cube(x), top = max(a, {0}), each = max(a, cube(x));
    return std::pair(grad(sum(grad(sum(top), {x})[0]), {x})[0], grad(sum(grad(sum(each), {x})[0]), {x})[0]);
  });
  EXPECT_EQ(got.first.to_host<double>(), (std::vector<double>{9, 0, 9}));     // half of 6 x
  EXPECT_EQ(got.second.to_host<double>(), (std::vector<double>{18, 6, 18}));  // 6 x
}

TEST(GradOfGrad, CastsAndBf16) {
  const Tensor x = Tensor::from<float>({0.5f, -1.25f, 2}, {3});
  const auto got = run([&] {
    const Tensor h = cast(x, DType::bf16), g = grad(sum(cast(h * h * h, DType::f32)), {x})[0];
    return std::pair(g, grad(sum(g), {x})[0]);
  });
  EXPECT_EQ(got.second.dtype(), DType::f32);
  const auto second = got.second.to_host<double>();
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(second[i], 6 * x.to_host<double>()[i], 0.1);
}

// One tensor in two places of a gradient that is composed: it takes what comes to both once.
TEST(GradOfGrad, ATensorThatIsGivenTwice) {
  const OnCpu cpu;
  const Tensors in = {Tensor::from(irregular(12, -1, 1, 1), {4, 3}), Tensor::from(irregular(3, 0.5, 1, 2), {3})};
  gradcheck([](const Tensors& t) { return weighted(grad(layer_norm(t[0], t[1], t[1]), t[0], {t[0]})[0], 3); }, in);
  gradcheck([](const Tensors& t) { return weighted(grad(rms_norm(t[0], t[1], 1e-5, {}, gate(t[0])), t[0], {t[0]})[0], 3); },
            in);
}

const CustomOp kSquaredRelu({
    .name = "squared_relu_of_ops",
    .inputs = {{"x"}},
    .outputs = {"y"},
    .integers = {"n"},
    .cuda = R"(
extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * 256 + threadIdx.x;
  if (i >= a.n) return;
  const real x = max_of(real(read_real(a.x + i)), real(0));
  write_real(a.y + i, x * x);
})",
    .launch = [](const CustomCall& c) { return CustomLaunch::of(c.integers[0], 256); },
    .cpu =
        [](CustomData& d) {
          for (std::size_t i = 0; i < d.out[0].size(); ++i) d.out[0][i] = std::pow(std::max(d.in[0][i], 0.0), 2);
        },
    .gradient = [](const CustomGrad& g) { return std::vector{2 * relu(g.input(0)) * g.upstream()}; },
});

TEST(GradOfGrad, CustomOpsWithARuleMadeOfOps) {
  const auto f = [](const Tensors& in) {
    return custom(kSquaredRelu, {in[0]}, {{in[0].shape(), in[0].dtype()}}, {.integers = {in[0].numel()}});
  };
  gradcheck(with_derivative(f), {Tensor::from(irregular(6, -1, 1, 1), {2, 3})});
}

// ---- products with the Hessian ----------------------------------------------------------------------------------------------

Tensor energy(const Tensor& x, const Tensor& w) { return sum(log_softmax(matmul(tanh(matmul(x, w)), transpose(w))) * x); }

TEST(HessianVector, IsTheDifferenceOfGradients) {
  const Tensor w = Tensor::from(irregular(12, -1, 1, 2), {4, 3});
  const std::vector<double> at = irregular(8, -1, 1, 1), v = irregular(8, -1, 1, 3);
  const auto gradient = [&](double step) {
    std::vector<double> moved = at;
    for (std::size_t i = 0; i < moved.size(); ++i) moved[i] += step * v[i];
    const Tensor x = Tensor::from(moved, {2, 4});
    return run([&] { return grad(energy(x, w), {x})[0]; }).to_host<double>();
  };
  const std::vector<double> ahead = gradient(1e-5), behind = gradient(-1e-5);
  const Tensor x = Tensor::from(at, {2, 4}), direction = Tensor::from(v, {2, 4});
  const auto got = run([&] {
    const Tensor g = grad(energy(x, w), {x})[0];
    return std::pair(grad(sum(g * direction), {x})[0], grad(g, direction, {x})[0]);
  });
  for (const Tensor& product : {got.first, got.second}) {
    const std::vector<double> found = product.to_host<double>();
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], (ahead[i] - behind[i]) / 2e-5, 1e-8) << i;
  }
}

// The upstream gradient is a function of what is differentiated, and so is the vector.
TEST(HessianVector, TheUpstreamGradientIsDifferentiatedToo) {
  const Tensor x = Tensor::from(irregular(6, -1, 1, 1), {2, 3}), w = Tensor::from(irregular(9, -1, 1, 2), {3, 3});
  gradcheck(
      [](const Tensors& in) {
        const Tensor y = tanh(matmul(in[0], in[1])), up = exp(in[0]) * y;
        return sum(square(grad(y, up, {in[0]})[0]));
      },
      {x, w});
  gradcheck(
      [](const Tensors& in) {
        const Tensor g = grad(energy(in[0], in[1]), {in[0]})[0];
        return sum(square(grad(sum(g * g), {in[0]})[0]));
      },
      {x, w});
}

// ---- gradient penalties -----------------------------------------------------------------------------------------------------

struct Critic {
  Param up{{5, 3}, DType::f64, "up"}, bias{{5}, DType::f64, "bias"}, gain{{5}, DType::f64, "gain"},
      down{{1, 5}, DType::f64, "down"};
  Tensor x = Tensor::from(irregular(12, -1, 1, 5), {4, 3});
  std::vector<Param> all{up, bias, gain, down};

  Critic() {
    for (std::size_t k = 0; k < all.size(); ++k) all[k].set(irregular(all[k].shape().numel(), -0.8, 0.9, k + 1));
  }
  Tensor operator()(const Tensor& in) const { return linear(layer_norm(silu(linear(in, up, bias)), gain, Tensor{}), down); }
  // The loss of a critic whose gradient by its input is to have length one.
  Tensor loss(const std::function<Tensor(const Tensor&)>& critic) const {
    const Tensor y = critic(x), g = grad(sum(y), {x})[0];
    return mean(y) + 10.0 * mean(square(sqrt(sum(square(g), {-1})) - 1.0));
  }
};

TEST(GradientPenalty, GivesTheWeightsTheirGradients) {
  Critic c;
  const std::function<Tensor(const Tensor&)> critics[] = {
      [&](const Tensor& in) { return c(in); },
      [&](const Tensor& in) { return checkpoint([&] { return c(in); }); },
  };
  for (const auto& critic : critics) {
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second time as it is remembered
      for (Param& p : c.all) p.zero_grad();
      run([&] { backward(c.loss(critic)); });
      for (Param& p : c.all) {
        const std::vector<double> found = p.gradient<double>(), at = p.to_host<double>();
        for (std::size_t i = 0; i < at.size(); ++i) {
          double side[2];
          for (const int s : {0, 1}) {
            std::vector<double> moved = at;
            moved[i] += s ? -1e-6 : 1e-6;
            p.set(moved);
            side[s] = run([&] { return c.loss(critic); }).item();
          }
          p.set(at);
          EXPECT_NEAR(found[i], (side[0] - side[1]) / 2e-6, 1e-6 * (1 + std::abs(found[i]))) << p.name() << " " << i;
        }
      }
    }
  }
}

// grad() inside of a checkpointed range: both are evaluated again.
TEST(GradientPenalty, InsideOfACheckpoint) {
  const Tensor x = Tensor::from(irregular(6, -1, 1, 1), {2, 3}), w = Tensor::from(irregular(9, -1, 1, 2), {3, 3});
  std::vector<std::vector<double>> got;
  for (const bool checkpointed : {false, true}) {
    const auto penalty = [&] {
      const Tensor h = tanh(matmul(x, w)), g = grad(sum(h * detach(h) * h), {x})[0];
      return sum(square(g)) + sum(h);
    };
    const auto d = run([&] { return grad(checkpointed ? checkpoint(penalty) : penalty(), {x, w}); });
    got.push_back(d[0].to_host<double>());
    got.push_back(d[1].to_host<double>());
  }
  EXPECT_EQ(got[0], got[2]);
  EXPECT_EQ(got[1], got[3]);
}

// What a range holds is evaluated again, but it is one value for whoever asks for a gradient by it.
TEST(GradientPenalty, ByATensorInsideOfACheckpoint) {
  const Tensor x = Tensor::from<double>({0.3, -0.6}, {2});
  for (const bool checkpointed : {false, true}) {
    const auto got = run([&] {
      Tensor h;
      const auto f = [&] { return cube(h = tanh(x)); };
      const Tensor y = checkpointed ? checkpoint(f) : f(), g = grad(sum(y), {x})[0];  // 3 h^2 (1 - h^2)
      return std::pair(h, grad(sum(y + g), {h})[0]);
    });
    const auto h = got.first.to_host<double>(), d = got.second.to_host<double>();
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_NEAR(d[i], 3 * h[i] * h[i] + 6 * h[i] - 12 * h[i] * h[i] * h[i], 1e-12) << checkpointed;
  }
}

// What a range records under no_grad stays constant when it is evaluated again.
TEST(GradientPenalty, DetachInACheckpointStaysConstant) {
  const Tensor x = Tensor::from<float>({2}, {1});
  for (const bool checkpointed : {false, true}) {
    const auto f = [&] { return x * x * detach(x); };
    const Tensor second = run([&] {
      const Tensor g = grad(sum(checkpointed ? checkpoint(f) : f()), {x})[0];
      return grad(sum(g), {x})[0];
    });
    EXPECT_EQ(second.item(), 4);  // of 2 x c
  }
}

TEST(GradientPenalty, OfTheGlobalNorm) {
  const Tensor x = Tensor::from(irregular(6, -1, 1, 1), {2, 3}), w = Tensor::from(irregular(9, -1, 1, 2), {3, 3});
  gradcheck([](const Tensors& in) { return global_norm(grad(sum(tanh(matmul(in[0], in[1]))), {in[0], in[1]})); }, {x, w});
  const Tensor zero = Tensor::from<double>({0, 0}, {2});
  EXPECT_EQ(run([&] { return grad(global_norm(Tensors{zero}), {zero})[0]; }).to_host<double>(), (std::vector<double>{0, 0}));
}

// A penalty that asks for a small gradient makes it small.
TEST(GradientPenalty, Trains) {
  struct Net : Layer<Net> {
    Linear up{3, 16}, down{16, 1};
    Net() { add("up", up), add("down", down); }
    Tensor forward(const Tensor& x) { return down(tanh(up(x))); }
  } net;
  const std::vector<double> numbers = irregular(24, -1, 1, 4);
  const Tensor x = Tensor::from(std::vector<float>(numbers.begin(), numbers.end()), {8, 3});
  AdamW opt(net.parameters(), {.weight_decay = 0});
  opt.set_lr(0.02);
  const auto step = [&] {
    const Tensor y = net(x), g = grad(sum(y), {x})[0], penalty = mean(square(g));
    backward(mean(square(y - 1.0)) + penalty);
    opt.step();
    return penalty;
  };
  const double before = run(step).item();
  double after = 0;
  for (int i = 0; i < 150; ++i) after = run(step).item();
  EXPECT_LT(after, 0.01 * before);
  EXPECT_TRUE(last_run().replayed);
}

// ---- holes ------------------------------------------------------------------------------------------------------------------

TEST(GradOfGrad, HolesThatIndex) {
  const OnCpu cpu;
  const Tensors in = {Tensor::from(irregular(12, -1, 1, 1), {1, 4, 3}), Tensor::from(irregular(6, -1, 1, 2), {3, 2}),
                      Tensor::from(irregular(6, -1, 1, 3), {2, 3}), Tensor::from(irregular(3, -1, 1, 4), {3})};
  const Tensor rows = Tensor::from<std::int64_t>({1, 0, 0, 1}, {4});
  gradcheck(with_derivative([&](const Tensors& t) {
              const Tensor &table = t[2], &gain = t[3];
              return conv1d(t[0], t[1], Tensor{}, {.out = [&](Expr s, Index, Index time, Index d) {
                              return tanh(s * gain(d)) * table(rows(time), 2 - d) + 0.3f * table(0, d);
                            }});
            }),
            in);
  expect_error(ErrorKind::usage,
               {"conv1d_backward: second derivatives do not go through hole 'out_grad'", "found by the hole's own value",
                "test_second_derivatives.cpp"},
               [&] {
                 run([&] {
                   const Tensor table = detach(in[3]);
                   const auto f = with_derivative([&](const Tensors& t) {
                     return conv1d(t[0], t[1], Tensor{}, {.out = [&](Expr s, Index, Index, Index) {
                                     return s * s * table(clamp(to_integer(s), 0, 2));
                                   }});
                   });
                   return grad(f({in[0], in[1]}), {in[0]});
                 });
               });
}

// ---- what has no derivative -------------------------------------------------------------------------------------------------

struct Scanned {
  Param u{{1, 4, 3}, DType::f32, "u"};
  Tensor A = Tensor::from<float>({-1, -2, -3, -1, -2, -3}, {3, 2}), B = Tensor::from(std::vector<float>(8, 0.5f), {1, 4, 2});
  Scanned() { u.set(std::vector<float>(12, 0.7f)); }
};

TEST(Undefined, TheErrorNamesTheOpAndItsLine) {
  Scanned s;
  int line = 0;
  const auto scanned = [&](const Tensor& u) {
    line = __LINE__ + 1;
    return sum(square(scan(u, softplus(u), s.A, s.B, s.B)));
  };
  const auto words = [&] {
    return std::vector<std::string>{"scan: second derivatives do not go through this op", "(1, 4, 3)",
                                    "at test_second_derivatives.cpp:" + std::to_string(line), "detach() its gradient"};
  };
  const auto expect = [&](const std::function<void(const Tensor& u, const Tensor& g)>& use) {
    run([&] { scanned(s.u.read()); });  // sets the line
    expect_error(ErrorKind::usage, words(), [&] {
      run([&] {
        const Tensor u = s.u.read();
        use(u, grad(scanned(u), {u})[0]);
      });
    });
  };
  expect([](const Tensor& u, const Tensor& g) { grad(sum(g), {u}); });
  expect([](const Tensor&, const Tensor& g) { backward(sum(square(g))); });
  // Where a part of the paths is defined.
  expect([](const Tensor& u, const Tensor& g) { grad(sum(u * u + g), {u}); });
  expect([&](const Tensor& u, const Tensor& g) { backward(scanned(u) + 0.1 * sum(square(g))); });
  // Outside run, after which the tape is as good as before.
  const Tensor u = s.u.read(), g = grad(scanned(u), {u})[0];
  expect_error(ErrorKind::usage, words(), [&] { grad(sum(u * g), {u}); });
  EXPECT_EQ(grad(sum(u * u), {u})[0].to_host<float>(), std::vector<float>(12, 1.4f));
}

TEST(Undefined, WhatDoesNotReachItIsNoError) {
  Scanned s;
  run([&] {
    const Tensor u = s.u.read(), y = scan(u, softplus(u), s.A, s.B, s.B), g = grad(sum(y), {u})[0];
    const Tensor rows = cast(clamp(g, 0, 1), DType::i64);  // an integer: no gradient goes further
    backward(sum(y * detach(g)) + sum(where(greater(g, 0.0), u, u * u)) + sum(u * cast(rows, DType::f32)));
  });
  for (const float g : s.u.gradient<float>()) EXPECT_TRUE(std::isfinite(g));
}

TEST(Undefined, InAModuleTheErrorNamesIt) {
  struct Mixer : Layer<Mixer> {
    Tensor A = Tensor::from<float>({-1, -2, -3, -1, -2, -3}, {3, 2}), B = Tensor::from(std::vector<float>(8, 0.5f), {1, 4, 2});
    Tensor forward(const Tensor& u) { return scan(u, softplus(u), A, B, B); }
  };
  struct Net : Layer<Net> {
    Mixer mixer;
    Net() { add("mixer", mixer); }
    Tensor forward(const Tensor& u) { return tanh(mixer(u)); }
  } net;
  const Tensor x = Tensor::from(std::vector<float>(12, 0.7f), {1, 4, 3});
  expect_error(ErrorKind::usage, {"scan: second derivatives", "in mixer, called at test_second_derivatives.cpp"}, [&] {
    run([&] {
      const Tensor y = net(x);
      grad(sum(y) + sum(grad(sum(y), {x})[0]), {x});
    });
  });
}

}  // namespace
}  // namespace weft
