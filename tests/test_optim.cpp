// AdamW, clipping, schedules.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ranges>

#include "jit/parallel.h"
#include "tests/expect_error.h"
#include "tools/weft.h"

namespace weft {
namespace {

Param make_param(const std::vector<double>& values, DType dtype = DType::f64) {
  Param p({std::int64_t(values.size())}, dtype, "p");
  p.set(values);
  return p;
}

// One step with the gradient `g`.
void step_with(AdamW& opt, Param& p, const std::vector<double>& g) {
  run([&] {
    backward(sum(p.read() * Tensor::from(g, p.shape())));
    opt.step();
  });
}

TEST(AdamW, GoldenG7) {
  Param p = make_param({1});
  p.set_decay(true);
  AdamW opt({p}, {.lr = 1e-2, .betas = {0.9, 0.95}, .eps = 1e-8, .weight_decay = 0.1, .clip_norm = 0});
  const double g[] = {0.1, -0.2, 0.3}, expected[] = {0.989000001, 0.991644740276, 0.987269022964};
  for (int i = 0; i < 3; ++i) {
    step_with(opt, p, {g[i]});
    EXPECT_NEAR(p.to_host<double>()[0], expected[i], 1e-11);
  }
  EXPECT_EQ(opt.step_count(), 3);
  EXPECT_EQ(opt.bad_step(), 0);
}

// Three steps of tensors that are one element, not whole vectors, and several chunks, against the formula in fp64. JOINED: the
// gradients are pieces of one value, not aligned for vectors.
void check_formula(DType dtype, bool joined) {
  SCOPED_TRACE(fmt::format("{}, {}", name_of(dtype), joined ? "joined" : "apart"));
  std::vector<Param> params;
  std::vector<Tensor> g;
  std::vector<std::vector<double>> want, m, v;
  double square_sum = 0;
  for (const std::int64_t n : {1, 6, 17001}) {
    const std::vector<double> start = irregular(n, -1, 1, 1), slope = irregular(n, -1, 1, 2);
    params.emplace_back(Shape{n}, dtype, fmt::format("p{}", n));
    params.back().set(start);
    params.back().set_decay(n != 6);
    g.push_back(cast(Tensor::from(std::vector<float>(slope.begin(), slope.end()), {n}), dtype));
    want.push_back(start), m.emplace_back(n), v.emplace_back(n);
    for (const double x : slope) square_sum += double(float(x)) * double(float(x));
  }
  const double lr = 0.1, decay = 0.2, eps = 1e-3, clip = std::min(1.0, 0.5 / (std::sqrt(square_sum) + 1e-6));
  AdamW opt(params, {.lr = lr, .betas = {0.9, 0.95}, .eps = eps, .weight_decay = decay, .clip_norm = 0.5});
  for (int step = 1; step <= 3; ++step) {
    run([&] {
      if (joined)
        backward(sum(concat({params[0].read(), params[1].read(), params[2].read()}, 0) * concat({g[0], g[1], g[2]}, 0)));
      else
        backward(sum(params[0].read() * g[0]) + sum(params[1].read() * g[1]) + sum(params[2].read() * g[2]));
      opt.step();
    });
    for (std::size_t k = 0; k < 3; ++k) {
      const std::vector<double> slope = g[k].to_host<double>();
      for (std::size_t i = 0; i < slope.size(); ++i) {
        const double x = clip * slope[i];
        m[k][i] = 0.9 * m[k][i] + 0.1 * x, v[k][i] = 0.95 * v[k][i] + 0.05 * x * x;
        want[k][i] *= k == 1 ? 1 : 1 - lr * decay;
        want[k][i] -= lr * m[k][i] / (1 - std::pow(0.9, step)) / (std::sqrt(v[k][i] / (1 - std::pow(0.95, step))) + eps);
      }
    }
  }
  const double tolerance = dtype == DType::f32 ? 2e-6 : 1e-12;
  const TensorMap state = opt.state_dict();
  for (std::size_t k = 0; k < 3; ++k) {
    const std::vector<double> got = params[k].to_host<double>(), first = state.at("m." + params[k].name()).values<double>(),
                              second = state.at("v." + params[k].name()).values<double>();
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[k][i], tolerance) << "tensor " << k << ", element " << i;
      ASSERT_NEAR(first[i], m[k][i], tolerance) << "first moment of tensor " << k << ", element " << i;
      ASSERT_NEAR(second[i], v[k][i], tolerance) << "second moment of tensor " << k << ", element " << i;
    }
  }
}

TEST(AdamW, MatchesTheFormulaInF32AndF64) {
  for (const DType dtype : {DType::f32, DType::f64})
    for (const bool joined : {false, true}) check_formula(dtype, joined);
}

TEST(GlobalNorm, OfTensorsOfEveryType) {
  std::vector<Tensor> all;
  double sum = 0;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const std::int64_t n : {1, 6, 17001, 0}) {
      all.push_back(cast(Tensor::from(irregular(n, -1, 1, std::uint64_t(n)), {n}), dtype));
      for (const double x : all.back().to_host<double>()) sum += x * x;
    }
  EXPECT_NEAR(run([&] { return global_norm(all); }).item(), std::sqrt(sum), 1e-10);
  // Not aligned for vectors.
  const Tensor x = Tensor::from(std::vector<float>{9, 3, 4, 12, 0, 0, 0}, {7});
  EXPECT_EQ(run([&] { return global_norm(std::vector<Tensor>{slice(x, 0, 1, 7)}); }).item(), 13);
}

TEST(AdamW, VectorsDoNotDecayByDefault) {
  Param vector = make_param({1}), matrix(Shape{1, 1}, DType::f64, "m");
  matrix.set<double>({1});
  EXPECT_FALSE(vector.decay());
  EXPECT_TRUE(matrix.decay());
  AdamW opt({vector, matrix}, {.lr = 0.1, .weight_decay = 0.5});
  run([&] {
    const Tensor zero = Tensor::from(std::vector<double>{0}, {1});
    backward(sum(vector.read() * zero) + sum(matrix.read() * zero));
    opt.step();
  });
  EXPECT_DOUBLE_EQ(vector.to_host<double>()[0], 1);
  EXPECT_DOUBLE_EQ(matrix.to_host<double>()[0], 0.95);
}

TEST(AdamW, ClipsByTheGlobalNorm) {
  Param a = make_param({0, 0}), b = make_param({0});
  AdamW opt({a, b}, {.lr = 1, .weight_decay = 0, .clip_norm = 1});
  const Tensor norm = run([&] {
    backward(sum(a.read() * Tensor::from(std::vector<double>{2, 3}, {2})) + sum(b.read() * 6.0));
    opt.step();
    return opt.grad_norm();
  });
  EXPECT_DOUBLE_EQ(norm.item(), 7);
  // The first step of Adam is lr g / (|g| + eps) whatever the scale; the second moment shows the clipping.
  EXPECT_NEAR(a.to_host<double>()[1], -1, 1e-6);
  struct Both : Layer<Both> {
    Param a, b;
    Both(Param x, Param y) : a(x), b(y) { add("a", a), add("b", b); }
  } both(a, b);
  AdamW named(both.parameters(), {.lr = 1, .weight_decay = 0, .clip_norm = 1});
  run([&] {
    backward(sum(a.read() * Tensor::from(std::vector<double>{2, 3}, {2})) + sum(b.read() * 6.0));
    named.step();
  });
  const auto m = named.state_dict().at("m.a").values<double>(), v = named.state_dict().at("v.b").values<double>();
  EXPECT_NEAR(m[1], 0.1 * 3 / (7 + 1e-6), 1e-12);
  EXPECT_NEAR(v[0], 0.05 * std::pow(6 / (7 + 1e-6), 2), 1e-12);
}

TEST(AdamW, ANonFiniteGradientStopsUpdatesUntilCleared) {
  Param p = make_param({1, 2}, DType::f32);
  AdamW opt({p}, {.lr = 0.1, .weight_decay = 0, .on_bad_step = OnBadStep::poll});
  const double inf = std::numeric_limits<double>::infinity();
  step_with(opt, p, {1, 1});
  const auto good = p.to_host<float>();
  const auto gradient = [&](double g) {
    run([&] {
      backward(sum(p.read() * Tensor::from(std::vector<float>{float(g), 1}, {2})));
      opt.step();
    });
  };
  gradient(std::nan(""));
  EXPECT_EQ(opt.bad_step(), 2);
  gradient(1);
  gradient(inf);
  EXPECT_EQ(opt.bad_step(), 2) << "the first bad step is kept";
  EXPECT_EQ(p.to_host<float>(), good) << "the weights are those before the bad step";
  opt.clear_bad_step();
  gradient(1);
  EXPECT_NE(p.to_host<float>(), good);
  EXPECT_EQ(opt.bad_step(), 0);
  EXPECT_EQ(opt.step_count(), 5);
}

// ---- bad steps in a program that does not ask for them: every public call that can know of one ------------------------------

struct BadSteps : testing::Test {
  Param p = make_param({1, 2}, DType::f32);
  std::vector<float> good;  // before the bad step

  Tensor loss(float slope) { return sum(p.read() * Tensor::from(std::vector<float>{slope, 1}, {2})); }
  Tensor step(AdamW& opt, float slope) {
    return run([&] {
      Tensor l = loss(slope);
      backward(l);
      opt.step();
      return l;
    });
  }
  // Steps until it is told of, on a GPU some later.
  void bad_step(AdamW& opt, float value) {
    step(opt, 1).item();
    good = p.to_host<float>();
    step(opt, value);
    for (int i = 0; i < 100; ++i) step(opt, 1).item();
  }
  const std::vector<std::string> words = {"AdamW",
                                          "gradient norm of step 2 is not finite",
                                          "the parameters are those after step 1",
                                          "test_optim.cpp",
                                          "WEFT_CHECK=nan",
                                          "clear_bad_step()"};
};

TEST_F(BadSteps, AreThrownByTheFirstRunThatKnows) {
  for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    AdamW opt({p}, {.lr = 0.1, .weight_decay = 0});
    expect_error(ErrorKind::training, words, [&] { bad_step(opt, value); });
    EXPECT_EQ(p.to_host<float>(), good) << "the weights are those before the bad step";
    step(opt, 1).item();  // said once
    EXPECT_EQ(p.to_host<float>(), good);
    EXPECT_EQ(opt.bad_step(), 2);
    opt.clear_bad_step();
    step(opt, 1).item();
    EXPECT_NE(p.to_host<float>(), good);
    const std::int64_t next = opt.step_count() + 1;
    expect_error(ErrorKind::training, {fmt::format("gradient norm of step {}", next)}, [&] {
      step(opt, value);
      for (int i = 0; i < 100; ++i) step(opt, 1).item();
    });
  }
}

TEST_F(BadSteps, AreThrownByAFetchedValue) {
  AdamW opt({p}, {.lr = 0.1, .weight_decay = 0});
  Tensor later;
  step(opt, 1).item();
  expect_error(ErrorKind::training, {"step 2 is not finite"}, [&] { (later = step(opt, std::nanf(""))).item(); });
}

TEST_F(BadSteps, AreThrownOutsideRun) {
  AdamW opt({p}, {.lr = 0.1, .weight_decay = 0});
  const auto eager = [&](float slope) {
    backward(loss(slope));
    opt.step();
  };
  eager(1);
  expect_error(ErrorKind::training, words, [&] {
    eager(std::nanf(""));
    for (int i = 0; i < 100; ++i) eager(1), p.to_host<float>();
  });
}

TEST_F(BadSteps, OfTwoOptimizersEachIsTold) {
  Param q = make_param({3}, DType::f32);
  AdamW a({p}, {.lr = 0.1, .weight_decay = 0}), b({q}, {.lr = 0.1, .weight_decay = 0});
  const auto both = [&](float slope) {
    return run([&] {
      Tensor l = loss(slope) + sum(q.read() * slope);
      backward(l);
      a.step(), b.step();
      return l;
    });
  };
  int told = 0;
  both(1).item();
  for (const float slope : {std::nanf(""), 1.f, 1.f, 1.f, 1.f}) {
    try {
      both(slope).item();
    } catch (const Error& e) {
      EXPECT_EQ(int(e.kind()), int(ErrorKind::training));
      ++told;
    }
  }
  EXPECT_EQ(told, 2);
}

TEST_F(BadSteps, AreALineOrNothingOnDemand) {
  testing::internal::CaptureStderr();
  AdamW warns({p}, {.lr = 0.1, .weight_decay = 0, .on_bad_step = OnBadStep::warn});
  bad_step(warns, std::nanf(""));
  const std::string text = testing::internal::GetCapturedStderr();
  for (const std::string& word : words) EXPECT_NE(text.find(word), std::string::npos) << text;
  EXPECT_EQ(text.find("AdamW"), text.rfind("AdamW")) << "once";
  testing::internal::CaptureStderr();
  AdamW polled({p}, {.lr = 0.1, .weight_decay = 0, .on_bad_step = OnBadStep::poll});
  bad_step(polled, std::nanf(""));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(polled.bad_step(), 2);
}

TEST_F(BadSteps, OfACheckpointAreTold) {
  AdamW polled({p}, {.lr = 0.1, .weight_decay = 0, .on_bad_step = OnBadStep::poll}), opt({p}, {.lr = 0.1, .weight_decay = 0});
  bad_step(polled, std::nanf(""));
  opt.load_state_dict(polled.state_dict());
  expect_error(ErrorKind::training, {"step 2 is not finite"}, [&] {
    for (int i = 0; i < 100; ++i) step(opt, 1).item();
  });
}

TEST_F(BadSteps, OfAnOptimizerThatHasGoneAreForgotten) {
  {
    AdamW gone({p}, {.lr = 0.1, .weight_decay = 0});
    try {
      run([&] { backward(loss(std::nanf(""))), gone.step(); });
    } catch (const Error&) {  // on the CPU at once
    }
  }
  AdamW opt({p}, {.lr = 0.1, .weight_decay = 0});
  EXPECT_NO_THROW(for (int i = 0; i < 3; ++i) step(opt, 1).item());
}

// ---- the number of updates is the parameter's own ---------------------------------------------------------------------------

// The first update of a parameter moves it by lr g / (|g| + eps), whatever the others have done and whatever was left out.
TEST(AdamW, CountsTheUpdatesOfEachParameter) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    Param always = make_param({1}, dtype), late = make_param({1}, dtype), after = make_param({1}, dtype);
    AdamW opt({always, late, after}, {.lr = 0.01, .weight_decay = 0, .clip_norm = 0, .on_bad_step = OnBadStep::poll});
    const auto update = [&](std::initializer_list<Param> params, double slope) {
      run([&] {
        Tensor loss;
        for (const Param& p : params) {
          const Tensor part = sum(p.read() * cast(Tensor::from(std::vector<double>{slope}, {1}), dtype));
          loss = loss ? loss + part : part;
        }
        backward(loss);
        opt.step();
      });
    };
    update({always}, 1);
    update({always, late}, 1);
    const double tolerance = dtype == DType::f32 ? 1e-7 : 1e-9;
    EXPECT_NEAR(late.to_host<double>()[0], 0.99, tolerance) << "its first gradient comes at step 2";
    update({always, late, after}, std::nan(""));
    opt.clear_bad_step();
    update({always, late, after}, 1);
    EXPECT_NEAR(always.to_host<double>()[0], 0.97, 3 * tolerance);
    EXPECT_NEAR(late.to_host<double>()[0], 0.98, 2 * tolerance) << "a step that is left out does not count";
    EXPECT_NEAR(after.to_host<double>()[0], 0.99, tolerance) << "nor before the first update";
    EXPECT_EQ(opt.step_count(), 4);
  }
}

TEST(AdamW, GradientsAccumulateOverRunsAndWithinOne) {
  std::vector<std::vector<double>> results;
  for (int form = 0; form < 3; ++form) {
    Param p = make_param({1, -2, 3});
    AdamW opt({p}, {.lr = 0.1});
    const auto a = [&] { return sum(square(p.read())); };
    const auto b = [&] { return sum(p.read() * Tensor::from(std::vector<double>{1, 2, 3}, {3})); };
    if (form == 0) run([&] { backward(a() + b()), opt.step(); });
    if (form == 1) run([&] { backward(a()), backward(b()), opt.step(); });
    if (form == 2) {
      run([&] { backward(a()); });
      EXPECT_TRUE(p.has_gradient());
      run([&] { backward(b()), opt.step(); });
      EXPECT_FALSE(p.has_gradient());
    }
    results.push_back(p.to_host<double>());
  }
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(results[0][i], results[1][i], 1e-14);
    EXPECT_NEAR(results[0][i], results[2][i], 1e-14);
  }
}

TEST(AdamW, ZeroGradForgets) {
  Param p = make_param({1});
  AdamW opt({p}, {.lr = 0.1, .weight_decay = 0});
  run([&] { backward(sum(p.read() * 5.0)); });
  EXPECT_EQ(p.gradient<double>()[0], 5);
  opt.zero_grad();
  EXPECT_FALSE(p.has_gradient());
  step_with(opt, p, {1});
  EXPECT_NEAR(p.to_host<double>()[0], 0.9, 1e-7);
}

TEST(AdamW, FrozenParamsStayAndNoGradientIsAnError) {
  Param frozen = make_param({1}), free = make_param({1});
  frozen.set_trainable(false);
  AdamW opt({frozen, free}, {.lr = 0.1});
  run([&] {
    backward(sum(frozen.read() * free.read()));
    opt.step();
  });
  EXPECT_EQ(frozen.to_host<double>()[0], 1);
  EXPECT_NE(free.to_host<double>()[0], 1);
  expect_error(ErrorKind::usage, {"AdamW: no parameter has a gradient", "test_optim.cpp"}, [&] { run([&] { opt.step(); }); });
  EXPECT_EQ(opt.step_count(), 1) << "a recording that failed has no effect";
}

TEST(AdamW, WorksOutsideRun) {
  Param p = make_param({1});
  AdamW opt({p}, {.lr = 0.1, .weight_decay = 0});
  Tensor loss = sum(p.read() * 3.0);
  backward(loss);
  opt.step();
  EXPECT_NEAR(p.to_host<double>()[0], 0.9, 1e-7);
  EXPECT_EQ(opt.step_count(), 1);
}

TEST(AdamW, ALearningRateThatChangesReplays) {
  Param p = make_param({1, 2});
  AdamW opt({p});
  for (int i = 0; i < 4; ++i) {
    opt.set_lr(0.1 / (i + 1));
    run([&] {
      backward(sum(square(p.read())));
      opt.step();
    });
    EXPECT_EQ(last_run().replayed, i > 0) << i;
  }
}

TEST(AdamW, RefusesNumbersThatNoKernelCanUse) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  Param p = make_param({1, 2});
  AdamW opt({p}, {.lr = 0.5});
  for (const double rate : {nan, inf, -inf, -1e-3, 1e39})
    for (const bool later : {true, false})
      expect_error(ErrorKind::usage, {"AdamW: the learning rate", fmt::format("{}", rate), "at test_optim.cpp:"},
                   [&] { later ? opt.set_lr(rate) : (void)AdamW({p}, {.lr = rate}); });
  EXPECT_EQ(opt.lr(), 0.5);
  opt.set_lr(0);
  for (const double number : {nan, inf, -1.0})
    for (const AdamWOptions& options : {AdamWOptions{.eps = number}, AdamWOptions{.weight_decay = number}})
      expect_error(ErrorKind::usage, {"eps and weight_decay", "at test_optim.cpp:"}, [&] { AdamW({p}, options); });
}

TEST(AdamW, TwoStepsInOneRunAreAnError) {
  Param p = make_param({1, 2});
  AdamW opt({p});
  expect_error(ErrorKind::usage, {"AdamW: the second step()", "at test_optim.cpp:", "accumulate"}, [&] {
    run([&] {
      backward(sum(square(p)));
      opt.step();
      backward(sum(square(p)));
      opt.step();
    });
  });
  EXPECT_EQ(opt.step_count(), 0);
}

TEST(AdamW, RefusesAStateThatNoTrainingLeaves) {
  Param p = make_param({1, 2});
  AdamW opt({p});
  step_with(opt, p, {1, 1});
  const std::vector<std::byte> powers = opt.state_dict().at("powers.p").bytes;
  const auto with = [&](const char* name, DType dtype, std::vector<std::int64_t> shape, const auto& values) {
    TensorMap state = opt.state_dict();
    state.at(name) = HostTensor::from<std::ranges::range_value_t<decltype(values)>>(dtype, std::move(shape), values);
    return state;
  };
  for (const double power : {std::nan(""), -0.5, 1.5})
    expect_error(ErrorKind::io, {"a power of a beta", fmt::format("{}", power), "nothing was loaded"}, [&] {
      opt.load_state_dict(with("powers.p", DType::f64, {2}, std::vector<double>{0.9, power}));
    });
  expect_error(ErrorKind::io, {"step is negative: -5", "nothing was loaded"},
               [&] { opt.load_state_dict(with("step", DType::i64, {}, std::vector<std::int64_t>{-5})); });
  EXPECT_EQ(opt.step_count(), 1);
  EXPECT_EQ(opt.state_dict().at("powers.p").bytes, powers);
}

struct Pair : Layer<Pair> {
  Param w{Shape{40, 3000}}, b{Shape{3000}};
  Pair() { add("w", w, init::normal(1)), add("b", b, init::normal(1)); }
  Tensor loss() { return sum(square(w.read() * b.read())); }
};

TEST(AdamW, CheckpointsGoOnExactly) {
  const auto train = [](Pair& pair, AdamW& opt, int steps) {
    for (int i = 0; i < steps; ++i) run([&] { backward(pair.loss()), opt.step(); });
  };
  Pair whole, first, second;
  first.load_state_dict(whole.state_dict());
  AdamW a(whole.parameters()), b(first.parameters()), c(second.parameters());
  train(whole, a, 6);
  train(first, b, 3);
  second.load_state_dict(first.state_dict());
  c.load_state_dict(b.state_dict());
  EXPECT_EQ(c.step_count(), 3);
  train(second, c, 3);
  EXPECT_EQ(whole.state_dict().at("w").bytes, second.state_dict().at("w").bytes);
  EXPECT_EQ(a.state_dict().at("v.w").bytes, c.state_dict().at("v.w").bytes);
  for (const char* name : {"m.w", "powers.w", "step", "bad_step"}) {
    TensorMap damaged = b.state_dict();
    damaged.erase(name);
    expect_error(ErrorKind::io, {"AdamW: the saved state does not fit", std::string("missing: ") + name},
                 [&] { c.load_state_dict(damaged); });
  }
}

// One `step` for all parameters, as states were once saved.
TEST(AdamW, LoadsAStateWithoutPowers) {
  Pair whole, second;
  AdamW a(whole.parameters()), b(second.parameters());
  const auto train = [](Pair& pair, AdamW& opt) { run([&] { backward(pair.loss()), opt.step(); }); };
  for (int i = 0; i < 3; ++i) train(whole, a);
  TensorMap state = a.state_dict();
  EXPECT_EQ(std::erase_if(state, [](const auto& t) { return t.first.starts_with("powers."); }), 2u);
  second.load_state_dict(whole.state_dict());
  b.load_state_dict(state);
  EXPECT_EQ(b.step_count(), 3);
  train(whole, a), train(second, b);
  EXPECT_EQ(whole.state_dict().at("w").bytes, second.state_dict().at("w").bytes);
  EXPECT_EQ(a.state_dict().at("powers.b").bytes, b.state_dict().at("powers.b").bytes);
}

// Checkpoints of parameters that have been updated unequally often, and after a step that was left out.
TEST(AdamW, CheckpointsKeepTheNumbersOfUpdates) {
  const auto train = [](Pair& pair, AdamW& opt, int first, int last) {
    for (int i = first; i < last; ++i) {
      run([&] {
        backward(i % 2 == 0 ? sum(square(pair.w.read())) : i == 3 ? pair.loss() * std::nan("") : pair.loss());
        opt.step();
      });
      opt.clear_bad_step();
    }
  };
  const AdamWOptions options = {.on_bad_step = OnBadStep::poll};
  Pair whole, first, second;
  first.load_state_dict(whole.state_dict());
  AdamW a(whole.parameters(), options), b(first.parameters(), options), c(second.parameters(), options);
  train(whole, a, 0, 8);
  train(first, b, 0, 4);
  second.load_state_dict(first.state_dict());
  c.load_state_dict(b.state_dict());
  train(second, c, 4, 8);
  EXPECT_EQ(c.step_count(), 8);
  for (const auto& [name, tensor] : a.state_dict()) EXPECT_EQ(tensor.bytes, c.state_dict().at(name).bytes) << name;
  EXPECT_EQ(whole.state_dict().at("b").bytes, second.state_dict().at("b").bytes);
  const auto powers = a.state_dict().at("powers.b").values<double>();
  EXPECT_DOUBLE_EQ(powers[0], std::pow(0.9, 3));
  EXPECT_DOUBLE_EQ(powers[1], std::pow(0.95, 3));
}

TEST(AdamW, ThreadsDoNotChangeABit) {
  const int before = threads();
  std::vector<std::vector<float>> values;
  for (int n : {1, 2, 3}) {
    set_threads(n);
    seed(0);
    Pair pair;
    AdamW opt(pair.parameters(), {.clip_norm = 1});
    for (int i = 0; i < 3; ++i) run([&] { backward(pair.loss()), opt.step(); });
    values.push_back(pair.w.to_host<float>());
  }
  set_threads(before);
  EXPECT_EQ(values[0], values[1]);
  EXPECT_EQ(values[0], values[2]);
}

TEST(Schedule, GoldenG8) {
  const WarmupCosine lr({.peak = 3e-4, .warmup = 200, .steps = 2200});
  const std::pair<int, double> golden[] = {
      {0, 0},         {1, 1.5e-6},         {100, 1.5e-4}, {199, 2.985e-4}, {200, 3e-4}, {700, 2.5606601718e-4},
      {1200, 1.5e-4}, {2199, 1.85055e-10}, {2200, 0},     {9999, 0}};
  for (const auto& [s, value] : golden) EXPECT_NEAR(lr(s), value, std::max(1e-15, 1e-6 * value)) << s;
  EXPECT_DOUBLE_EQ(WarmupCosine({.peak = 1, .warmup = 10, .steps = 20, .warmup_offset = 1})(0), 0.1);
  EXPECT_DOUBLE_EQ(WarmupCosine({.peak = 1, .warmup = 10, .steps = 20, .min = 0.1})(50), 0.1);
  EXPECT_DOUBLE_EQ(ConstantRate(0.5)(123), 0.5);
}

}  // namespace
}  // namespace weft
