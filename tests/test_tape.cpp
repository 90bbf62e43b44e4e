// The tape and what runs it: laziness, errors, states, pending gradients, replay, checkpoint, random draws, scheduling.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/context.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "autograd/state.h"
#include "jit/parallel.h"
#include "nn/layers.h"
#include "ops/ops.h"
#include "tests/expect_error.h"

namespace weft {
namespace {

using Floats = std::vector<float>;

Tensor vec(Floats v) {
  const Shape s{std::int64_t(v.size())};
  return Tensor::from(v, s);
}

TEST(Run, ReturnsWhatTheStepReturns) {
  const Tensor x = vec({1, 2, 3});
  const auto [a, rest] = run([&] { return std::pair(x * 2, std::vector<Tensor>{x + 1, x}); });
  EXPECT_EQ(a.to_host<float>(), Floats({2, 4, 6}));
  EXPECT_EQ(rest[0].to_host<float>(), Floats({2, 3, 4}));
  EXPECT_EQ(rest[1].to_host<float>(), Floats({1, 2, 3}));
  run([] {});
}

TEST(Run, OneValueReturnedTwice) {
  const Tensor x = vec({1, 2});
  const auto both = run([&] {
    const Tensor y = x * 3;
    return std::array{y, y};
  });
  EXPECT_EQ(both[0].to_host<float>(), both[1].to_host<float>());
}

TEST(Run, ViewsAndStatesCanBeReturned) {
  State s({2, 3}, DType::f32, "s");
  s.set(Floats{1, 2, 3, 4, 5, 6});
  const auto [t, r] = run([&] { return std::pair(transpose(s), s.read()); });
  EXPECT_EQ(t.to_host<float>(), Floats({1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(r.to_host<float>(), Floats({1, 2, 3, 4, 5, 6}));
}

TEST(Run, DeadHandles) {
  Tensor leaked;
  const Tensor x = vec({1});
  run([&] { leaked = x * 2; });
  expect_error(ErrorKind::usage, {"dead", "return"}, [&] { leaked.item(); });
  expect_error(ErrorKind::usage, {"dead"}, [&] { run([&] { return leaked + x; }); });
}

TEST(Run, ItemInsideAndNesting) {
  const Tensor x = vec({1});
  expect_error(ErrorKind::usage, {"inside run", "test_tape.cpp"}, [&] { run([&] { (x * 2).item(); }); });
  expect_error(ErrorKind::usage, {"inside run"}, [&] { run([&] { run([] {}); }); });
  EXPECT_EQ(run([&] { return x * 2; }).item(), 2);  // the failed recordings left nothing behind
}

TEST(Run, AnExceptionWhileRecordingChangesNothing) {
  Param w({2}, DType::f32, "w");
  Rng r(5);
  const UseRng use(r);
  EXPECT_THROW(run([&] {
                 const Tensor loss = sum(square(w) + uniform({2}));
                 backward(loss);
                 assign(w, w + 1);
                 throw std::runtime_error("user");
               }),
               std::runtime_error);
  EXPECT_FALSE(w.has_gradient());
  EXPECT_EQ(w.to_host<float>(), Floats({0, 0}));
  EXPECT_EQ(r.tick(), 0u);
}

TEST(Run, ReplaysByKeyAndBakesNoFloat) {
  const Tensor x = vec({1, 2});
  for (int i = 0; i < 4; ++i) {
    const Tensor y = run([&] { return x * (0.3 + i) + 7.5 * i; });
    EXPECT_FLOAT_EQ(y.to_host<float>()[1], float(2 * (0.3 + i) + 7.5 * i));
    EXPECT_EQ(last_run().replayed, i > 1);  // i = 0 and 1 differ: 7.5 * 0 is an exact constant
  }
  Scalar s(2);
  auto scaled = [&] { return x * s; };
  run(scaled);
  s.set(9);
  EXPECT_EQ(run(scaled).to_host<float>()[0], 9);
  EXPECT_TRUE(last_run().replayed);
}

TEST(Run, AnIntegerThatChangesEveryStepIsNamed) {
  const Tensor x = Tensor::from(Floats(40, 1.f), {40});
  testing::internal::CaptureStderr();
  for (int i = 0; i < 6; ++i) run([&] { return sum(slice(x, 0, i, i + 3)) * 1.5; });
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("slice"), std::string::npos) << said;
  EXPECT_NE(said.find("test_tape.cpp"), std::string::npos) << said;
  EXPECT_NE(said.find("was 2 and is 3"), std::string::npos) << said;
  testing::internal::CaptureStderr();
  for (int i = 1; i < 6; ++i) run([&] { return sum(slice(x, 0, 0, i)) * 1.5; });  // other shapes: no reproach
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Run, AnotherShapeIsAnotherPlan) {
  auto step = [](const Tensor& x) { return sum(x * 2.5); };
  EXPECT_FLOAT_EQ(float(run(step, vec({1, 2})).item()), 7.5f);
  EXPECT_FLOAT_EQ(float(run(step, vec({1, 2, 3})).item()), 15);
  EXPECT_FALSE(last_run().replayed);
  EXPECT_FLOAT_EQ(float(run(step, vec({3, 2})).item()), 12.5f);
  EXPECT_TRUE(last_run().replayed);
}

TEST(Eager, IntegersWithNumbers) {
  const Tensor ids = Tensor::from(std::vector<std::int64_t>{1, -2}, {2});
  EXPECT_EQ((ids * 3.0).to_host<std::int64_t>(), (std::vector<std::int64_t>{3, -6}));
  EXPECT_EQ((ids * 0.5).to_host<float>(), Floats({0.5, -1}));
  EXPECT_EQ((ids * 0x1p63).to_host<float>(), Floats({0x1p63f, -0x1p64f})) << "no integer of 64 bits";
  EXPECT_TRUE(std::isnan((ids + std::nan("")).to_host<float>()[0]));
}

TEST(Eager, RealsReadAsIntegers) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max(), kMin = std::numeric_limits<std::int64_t>::min();
  const std::vector<std::int64_t> whole{-3, kMax, kMin, kMin};
  const std::vector<double> reals{-3.7, 1e300, -1e300, std::nan("")};
  EXPECT_EQ(Tensor::from(reals, {4}).to_host<std::int64_t>(), whole);
  EXPECT_EQ(cast(Tensor::from(reals, {4}), DType::i64).to_host<std::int64_t>(), whole);
  State s({4}, DType::i64, "s");
  s.set(reals);
  EXPECT_EQ(s.to_host<std::int64_t>(), whole);
}

TEST(Eager, PyTorchStyleLoop) {
  Param w({2}, DType::f32, "w");
  w.set(Floats{3, -1});
  const Tensor x = vec({1, 2});
  const Tensor y = x * w;
  const Tensor loss = sum(square(y));
  EXPECT_EQ(loss.item(), 13);  // printed before backward: the tape is kept
  backward(loss);
  EXPECT_EQ(w.gradient<float>(), Floats({6, -8}));
  EXPECT_EQ(y.to_host<float>(), Floats({3, -2}));
}

TEST(Eager, LongLoopsAreFlushed) {
  Tensor x = vec({0});
  for (int i = 0; i < 10000; ++i) x = x + 1;
  EXPECT_EQ(x.item(), 10000);
}

TEST(Eager, AnEvaluationLoopDoesNotGrow) {
  Param w({2}, DType::f32, "w");
  w.set(Floats{1, 2});
  for (int i = 0; i < 50; ++i) {
    const Tensor loss = sum(w * vec({float(i), 1}));
    EXPECT_EQ(loss.item(), i + 2);
  }
  EXPECT_LT(tapes().pending.nodes.size(), 50u);
}

// A loss that was looked at keeps its history, and would be computed again from what its parameters have become.
TEST(Eager, AValueStaysWhatItWasWhenAStateChanges) {
  Param w({1}, DType::f32, "w");
  const std::vector<float> other = {5};
  const std::vector<std::function<void()>> changes = {
      [&] { w.set(other); },
      [&] { w.set_bytes(other.data()); },
      [&] { initialise(w, init::constant(5), 0, "w"); },
      [&] { assign(w, full({1}, 5)); },
      [&] { run([&] { assign(w, full({1}, 5)); }); },
      [&] { std::thread([&] { w.set(other); }).join(); },
      [&] { std::thread([&] { run([&] { assign(w, full({1}, 5)); }); }).join(); },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    w.set(Floats{3});
    const Tensor loss = sum(square(w));
    EXPECT_EQ(loss.item(), 9);
    changes[i]();
    EXPECT_EQ((loss + 1).item(), 10) << "change " << i;
    EXPECT_EQ(loss.item(), 9) << "change " << i;
    expect_error(ErrorKind::usage, {"does not depend on a trainable parameter", "set since", "at test_tape.cpp:"},
                 [&] { backward(loss); });
    EXPECT_EQ(run([&] { return w * 2; }).item(), 10) << "change " << i;
  }
}

TEST(Eager, AValueKeepsItsHistoryWhileOtherStatesChange) {
  Param w({1}, DType::f32, "w"), other({1}, DType::f32, "other");
  w.set(Floats{3});
  const Tensor loss = sum(square(w));
  EXPECT_EQ(loss.item(), 9);
  other.set(Floats{1});
  run([&] { assign(other, other + w); });
  EXPECT_EQ(other.to_host<float>(), Floats({4}));
  backward(loss);
  EXPECT_EQ(w.gradient<float>(), Floats({6}));
}

// What outputs of several steps of training are printed and added up.
TEST(Eager, OutputsOfATrainingLoopAddUp) {
  Param w({1}, DType::f32, "w");
  double sum_of_values = 0;
  std::vector<Tensor> outputs;
  for (int i = 0; i < 4; ++i) {
    outputs.push_back(square(w + 1));
    sum_of_values += outputs.back().item();
    run([&] { assign(w, w + 1); });
  }
  EXPECT_EQ((outputs[0] + outputs[1] + outputs[2] + outputs[3]).item(), sum_of_values);
}

TEST(Eager, AParamThatDiesIsNoHistory) {
  for (const bool elsewhere : {false, true}) {
    auto w = std::make_unique<Param>(Shape{1000}, DType::f32, "w");
    const Tensor loss = sum(square(*w + 1));
    EXPECT_EQ(loss.item(), 1000);
    run([&] { return *w * 1; });
    elsewhere ? std::thread([&] { w.reset(); }).join() : w.reset();
    const State at_its_place({1000});
    expect_error(ErrorKind::usage, {"does not depend on a trainable parameter"}, [&] { backward(loss); });
    EXPECT_EQ((loss + 1).item(), 1001);
  }
}

// A call of a module is the first that is recorded after a loss has gone.
TEST(Eager, AModuleThatIsCalledAfterwardsHasItsFrame) {
  Linear linear(2, 1);
  linear.parameters();
  { EXPECT_EQ(sum(linear.weight() * 0).item(), 0); }
  expect_error(ErrorKind::usage, {"linear: ", "in the model, called at test_tape.cpp:"}, [&] { linear(vec({1, 2, 3})); });
}

TEST(States, AssignIsSeenByLaterReadsOnly) {
  State s({2}, DType::f32, "s");
  s.set(Floats{1, 2});
  const auto [before, after, late] = run([&] {
    const Tensor old = s.read();
    assign(s, old * 10);
    const Tensor now = s.read();
    return std::tuple(old + 0.5, now + 0.5, old * now);  // `old` is used after the write
  });
  EXPECT_EQ(before.to_host<float>(), Floats({1.5, 2.5}));
  EXPECT_EQ(after.to_host<float>(), Floats({10.5, 20.5}));
  EXPECT_EQ(late.to_host<float>(), Floats({10, 40}));
  EXPECT_EQ(s.to_host<float>(), Floats({10, 20}));
}

TEST(States, AssignFromItsOwnTranspose) {
  State s({2, 2}, DType::f32, "s");
  s.set(Floats{1, 2, 3, 4});
  run([&] { assign(s, transpose(s)); });
  EXPECT_EQ(s.to_host<float>(), Floats({1, 3, 2, 4}));
  assign(s, s + 1);  // outside run: at once
  EXPECT_EQ(s.to_host<float>(), Floats({2, 4, 3, 5}));
}

TEST(States, AssignAtWrapsAndTakesAScalar) {
  State ring({3, 2}, DType::f32, "ring");
  Scalar position(0);
  for (int i = 0; i < 5; ++i) {
    position.set(i);
    run([&] { assign_at(ring, position, full({1, 2}, i + 1)); });
    EXPECT_EQ(last_run().replayed, i > 1) << i;  // 1 is an exact constant, the others are slots
  }
  EXPECT_EQ(ring.to_host<float>(), Floats({4, 4, 5, 5, 3, 3}));
}

TEST(States, AssignAtNeedsARow) {
  State ring({3, 2}, DType::f32, "ring");
  for (const double position : {std::nan(""), 1e300, -1e300, 0.5})
    expect_error(ErrorKind::usage, {"assign_at: the position is no row", "'ring'"}, [&] {
      run([&] { assign_at(ring, Scalar(position), full({1, 2}, 1)); });
    });
}

TEST(States, TwoAssignsAndBadShapes) {
  State s({2}, DType::f32, "cache");
  expect_error(ErrorKind::usage, {"'cache'", "twice"}, [&] {
    run([&] {
      assign(s, s + 1);
      assign(s, s + 2);
    });
  });
  expect_error(ErrorKind::usage, {"'cache'", "(3,)"}, [&] { assign(s, vec({1, 2, 3})); });
  EXPECT_EQ(s.to_host<float>(), Floats({0, 0}));
}

TEST(States, HostAccessInsideRunIsAnError) {
  State s({2}, DType::f32, "s");
  expect_error(ErrorKind::usage, {"'s'", "inside run"}, [&] { run([&] { s.to_host<float>(); }); });
}

TEST(Backward, PendingGradientsAccumulateAcrossRuns) {
  Param w({2}, DType::f32, "w");
  w.set(Floats{1, 2});
  auto step = [&] { backward(sum(square(w) * 1.5)); };
  run(step);
  EXPECT_EQ(w.gradient<float>(), Floats({3, 6}));
  run(step);
  EXPECT_EQ(w.gradient<float>(), Floats({6, 12}));
  run([&] {
    backward(sum(w.read()));  // two in one run
    backward(sum(w.read()));
  });
  EXPECT_EQ(w.gradient<float>(), Floats({8, 14}));
  w.zero_grad();
  EXPECT_FALSE(w.has_gradient());
  run(step);
  EXPECT_EQ(w.gradient<float>(), Floats({3, 6}));
}

TEST(Backward, TakeGradientConsumes) {
  Param w({2}, DType::f32, "w");
  w.set(Floats{1, 2});
  run([&] { backward(sum(w.read())); });
  const Tensor g = run([&] {
    backward(sum(square(w)));
    return take_gradient(w);
  });
  EXPECT_EQ(g.to_host<float>(), Floats({3, 5}));
  EXPECT_FALSE(w.has_gradient());
}

// Kernels compare, select and convert the bytes of booleans as they are.
TEST(Values, BooleansFromTheHostAreZeroOrOne) {
  const std::vector<std::uint8_t> bytes = {0, 1, 2, 255};
  const Tensor m = Tensor::from(bytes, {4}), k = Tensor::from<std::uint8_t>({1, 1, 1, 4}, {4});
  State s({4}, DType::boolean, "s");
  s.set_bytes(bytes.data());
  EXPECT_EQ(s.bytes(), (std::vector{std::byte(0), std::byte(1), std::byte(1), std::byte(1)}));
  for (const Tensor& x : {m, Tensor::from_bytes(bytes.data(), DType::boolean, {4}), s.read()}) {
    const auto got = run([&] {
      return std::vector{cast(x, DType::f32), cast(equal(x, 1.0), DType::f32),
                         pointwise("both", {x, k}, [](Expr a, Expr b) { return where(a && b, 1.f, 0.f); })};
    });
    for (const Tensor& y : got) EXPECT_EQ(y.to_host<float>(), Floats({0, 1, 1, 1}));
  }
}

TEST(Backward, GradOfAnyTensorAndDetach) {
  const Tensor x = vec({1, 2, 3});
  const auto g = run([&] {
    const Tensor y = square(x);
    return grad(sum(y * detach(y)), {x, y, vec({7})}, Unused::zeros);
  });
  EXPECT_EQ(g[0].to_host<float>(), Floats({2, 16, 54}));
  EXPECT_EQ(g[1].to_host<float>(), Floats({1, 4, 9}));
  EXPECT_EQ(g[2].to_host<float>(), Floats({0}));
}

TEST(Backward, GradOfTensorsInAVector) {
  const std::vector<Tensor> in = {vec({1, 2}), vec({3, 4})};
  const auto [of_loss, of_output, listed] = run([&] {
    const Tensor y = in[0] * square(in[1]);
    return std::tuple(grad(sum(y), in), grad(y, vec({1, 10}), in), grad(sum(y), {in[0], in[1]}));
  });
  for (const auto& both : {of_loss, listed}) {
    ASSERT_EQ(both.size(), 2u);
    EXPECT_EQ(both[0].to_host<float>(), Floats({9, 16}));
    EXPECT_EQ(both[1].to_host<float>(), Floats({6, 16}));
  }
  EXPECT_EQ(of_output[0].to_host<float>(), Floats({9, 160}));
  EXPECT_EQ(of_output[1].to_host<float>(), Floats({6, 160}));
  expect_error(ErrorKind::usage, {"does not depend"}, [&] { run([&] { return grad(sum(in[0]), in); }); });
  EXPECT_EQ(run([&] { return grad(sum(in[0]), in, Unused::zeros)[1]; }).to_host<float>(), Floats({0, 0}));
}

TEST(Backward, AParamThatDiesInsideTheStepIsAnError) {
  for (const bool before_backward : {true, false})
    expect_error(ErrorKind::usage, {"destroyed", "alive until run returns"}, [&] {
      run([&] {
        auto w = std::make_unique<Param>(Shape{2}, DType::f32, "w");
        const Tensor loss = sum(square(*w));
        if (before_backward) w.reset();
        backward(loss);
        w.reset();
      });
    });
}

TEST(Backward, NoGradAndFrozen) {
  Param w({2}, DType::f32, "w"), frozen({2}, DType::f32, "frozen");
  frozen.set_trainable(false);
  expect_error(ErrorKind::usage, {"does not depend"}, [&] { run([&] { backward(sum(frozen * 2)); }); });
  expect_error(ErrorKind::usage, {"does not depend"}, [&] { run([&] { backward(no_grad([&] { return sum(w * 2); })); }); });
  run([&] {
    const Tensor scale = no_grad([&] { return w + 3; });
    backward(sum(w * frozen) + sum(w * scale));
  });
  EXPECT_EQ(w.gradient<float>(), Floats({3, 3}));
  EXPECT_FALSE(frozen.has_gradient());
}

TEST(Backward, NoGradHoldsInsideARunAndAfterIt) {
  Param w({2}, DType::f32, "w");
  expect_error(ErrorKind::usage, {"does not depend", "no_grad"},
               [&] { no_grad([&] { run([&] { backward(sum(square(w))); }); }); });
  {
    const NoGrad off;
    run([&] { return w * 2; });
    EXPECT_FALSE((w * 2).requires_grad());
    EXPECT_THROW(run([] { throw std::runtime_error("of the step"); }), std::runtime_error);
    EXPECT_FALSE((w * 2).requires_grad());
  }
  EXPECT_TRUE((w * 2).requires_grad());
}

TEST(Backward, ErrorsNameTheCause) {
  const Tensor x = vec({1, 2});
  Param w({2}, DType::f32, "w");
  expect_error(ErrorKind::usage, {"one real number", "(2,)"}, [&] { run([&] { backward(x * w); }); });
  expect_error(ErrorKind::usage, {"no gradient flows", "no_grad, detach"},
               [&] { run([&] { grad(sum(detach(square(x))), {x}); }); });
  const Tensor ids = Tensor::from(std::vector<std::int64_t>{1, 2}, {2});
  expect_error(ErrorKind::usage, {"grad: the tensor is not real", "i64 (2,)", "at test_tape.cpp:"}, [&] {
    grad(sum(x * ids), {x, ids});
  });
}

TEST(Backward, CheckpointGivesEqualGradientsAndRecomputes) {
  Param w({4, 4}, DType::f32, "w");
  std::vector<float> init;
  for (const double v : irregular(16, -1, 1)) init.push_back(float(v));
  w.set(init);
  const Tensor x = Tensor::from(init, {4, 4});
  Rng r(9);
  const UseRng use(r);
  auto layer = [&](const Tensor& h) { return dropout(tanh(matmul(h, w)), 0.3); };
  std::vector<std::vector<float>> gradients;
  std::vector<int> kernels;
  for (const bool checkpointed : {false, true}) {
    r.set(9, 0);
    w.zero_grad();
    run([&] {
      Tensor h = x;
      for (int i = 0; i < 3; ++i) h = checkpointed ? checkpoint([&] { return layer(layer(h)); }) : layer(layer(h));
      backward(sum(square(h)));
    });
    gradients.push_back(w.gradient<float>());
    kernels.push_back(last_run().kernels);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
  EXPECT_GT(kernels[1], kernels[0]);
}

TEST(Random, SitesTicksAndSeeds) {
  Rng a(1), b(2);
  auto draw = [] { return std::pair(uniform({64}), uniform({64})); };
  const UseRng use(a);
  const auto first = run(draw);
  EXPECT_NE(first.first.to_host<float>(), first.second.to_host<float>());  // another site
  const auto second = run(draw);
  EXPECT_TRUE(last_run().replayed);
  EXPECT_NE(first.first.to_host<float>(), second.first.to_host<float>());  // another tick
  EXPECT_EQ(a.tick(), 2u);
  a.set(1, 0);
  EXPECT_EQ(run(draw).first.to_host<float>(), first.first.to_host<float>());
  const UseRng other(b);
  EXPECT_NE(run(draw).first.to_host<float>(), first.first.to_host<float>());
  EXPECT_EQ(b.tick(), 1u);
}

TEST(Random, Distributions) {
  const auto [u, n, d] = run([] { return std::tuple(uniform({40000}), normal({40000}), dropout(ones({40000}), 0.25)); });
  auto moments = [](const Tensor& t) {
    double m = 0, q = 0;
    for (const float x : t.to_host<float>()) m += x, q += double(x) * x;
    return std::pair(m / double(t.numel()), q / double(t.numel()));
  };
  EXPECT_NEAR(moments(u).first, 0.5, 0.01);
  EXPECT_NEAR(moments(u).second, 1.0 / 3, 0.01);
  EXPECT_NEAR(moments(n).first, 0, 0.02);
  EXPECT_NEAR(moments(n).second, 1, 0.03);
  EXPECT_NEAR(moments(d).first, 1, 0.02);
}

// P(M > 1/2) is 1 - exp(-e^l) for one Gumbel, sigmoid(l) for logistic noise.
TEST(Random, MaskProbabilities) {
  for (const double l : {-1.0, 0.0, 0.7}) {
    const auto [g, s] = run([&] {
      const Tensor logits = full({60000}, l);
      return std::pair(mean(gumbel_sigmoid(logits)), mean(gumbel_sigmoid(logits, {.noise = MaskNoise::logistic})));
    });
    EXPECT_NEAR(g.item(), 1 - std::exp(-std::exp(l)), 0.01);
    EXPECT_NEAR(s.item(), 1 / (1 + std::exp(-l)), 0.01);
  }
}

TEST(Random, HardMasksAreBinaryAndPassTheSoftGradient) {
  Rng r(4);
  const UseRng use(r);
  const Tensor logits = Tensor::from(irregular(50, -2, 2), {50});
  auto masks = [&](bool hard) {
    r.set(4, 0);
    return run([&] {
      const Tensor m = gumbel_sigmoid(logits, {.hard = hard});
      return std::pair(m, grad(sum(m), {logits})[0]);
    });
  };
  const auto soft = masks(false), hard = masks(true);
  EXPECT_EQ(soft.second.to_host<double>(), hard.second.to_host<double>());
  const auto s = soft.first.to_host<double>(), h = hard.first.to_host<double>();
  for (std::size_t i = 0; i < h.size(); ++i) EXPECT_EQ(h[i], s[i] > 0.5 ? 1 : 0);
}

TEST(Schedule, FusesAndSaysWhy) {
  const Tensor x = vec({1, 2, 3});
  run([&] { return tanh(exp(x * 2) + 1.5) * x; });
  EXPECT_EQ(last_run().kernels, 1);
  run([&] {
    const Tensor y = exp(x);
    return sum(y * 2);
  });
  const auto kernels = last_kernels();
  ASSERT_EQ(kernels.size(), 2u);
  EXPECT_EQ(kernels[0].name.substr(0, 10), "reduce_sum");
  settings().fuse = false;
  run([&] { return tanh(exp(x * 2) + 1.5) * x; });
  settings().fuse = true;
  EXPECT_EQ(last_run().kernels, 6);
  bool reason = false;
  for (const auto& k : last_kernels())
    for (const auto& r : k.reasons) reason |= r.find("WEFT_FUSE=0") != std::string::npos;
  EXPECT_TRUE(reason);
}

TEST(Schedule, DeadCodeIsNotRun) {
  const Tensor x = vec({1, 2, 3});
  run([&] {
    for (int i = 0; i < 5; ++i) matmul(reshape(x, {1, 3}), reshape(x, {3, 1}));
    return x * 2;
  });
  EXPECT_EQ(last_run().kernels, 1);
}

TEST(Schedule, LongChainsStayCorrect) {
  const Tensor x = vec({0.1f, 0.2f});
  const Tensor y = run([&] {
    Tensor h = x;
    for (int i = 0; i < 300; ++i) h = tanh(h * 1.01 + 0.001);
    return h;
  });
  double want = 0.2;
  for (int i = 0; i < 300; ++i) want = std::tanh(want * 1.01 + 0.001);
  EXPECT_NEAR(y.to_host<float>()[1], want, 1e-5);
  EXPECT_GT(last_run().kernels, 1);
}

TEST(Schedule, ConcatOfProducedPartsIsNotCopied) {
  const Tensor x = Tensor::from(Floats(12, 1.f), {3, 4});
  run([&] { return concat({exp(x), tanh(x)}, 1); });
  for (const auto& k : last_kernels()) EXPECT_EQ(k.name.find("concat"), std::string::npos) << k.name;
}

TEST(Settings, ValuesLiveInOneArena) {
  const Tensor x = Tensor::from(Floats(4096, 1.f), {64, 64});
  run([&] {
    Tensor h = x;
    for (int i = 0; i < 20; ++i) h = matmul(h, x);
    return sum(h);
  });
  EXPECT_LE(last_run().arena_bytes, 4u * 4096 * 4);
}

TEST(Settings, SplitArenaGivesEqualBits) {
  const Tensor x = Tensor::from(irregular(64, -1, 1), {8, 8});
  auto step = [&] { return softmax(matmul(x, tanh(x)) + x); };
  const auto want = run(step).to_host<double>();
  const bool before = settings().split_arena;
  settings().split_arena = !before;
  const auto got = run(step).to_host<double>();
  settings().split_arena = before;
  EXPECT_EQ(got, want);
}

TEST(Settings, CheckNanNamesTheOp) {
  const auto step = [](const Tensor& x) { return sum(log(x)) * 2; };
  settings().check_nan = true;
  expect_error(ErrorKind::training, {"log", "test_tape.cpp", "non-finite"}, [&] { run(step, vec({-1, 2})); });
  EXPECT_FLOAT_EQ(float(run(step, vec({1, 2})).item()), 2 * std::log(2.f));
  settings().check_nan = false;
}

TEST(Errors, NameShapesAndPlaces) {
  const Tensor a = Tensor::from(Floats(6), {2, 3}), b = Tensor::from(Floats(4), {4});
  expect_error(ErrorKind::usage, {"add", "(2, 3)", "(4,)", "test_tape.cpp"}, [&] { run([&] { return a + b; }); });
  expect_error(ErrorKind::usage, {"reshape", "(2, 3)", "(5,)"}, [&] { reshape(a, {5}); });
  expect_error(ErrorKind::usage, {"slice", "axis 1"}, [&] { slice(a, 1, 2, 5); });
  expect_error(ErrorKind::usage, {"no such axis"}, [&] { sum(a, {2}); });
}

TEST(Errors, FramesLeadToTheUsersLine) {
  Linear layer(3, 2);
  const Tensor wrong = Tensor::from(Floats(4), {1, 4});
  expect_error(ErrorKind::usage, {"linear", "(1, 4)", "test_tape.cpp"}, [&] { run([&] { return layer(wrong); }); });
}

TEST(Tap, GivesInputAndOutput) {
  struct Net : Layer<Net> {
    Linear up{3, 5}, down{5, 2};
    Net() { add("up", up), add("down", down); }
    Tensor forward(const Tensor& x) { return down(tanh(up(x))); }
  } net;
  const Tensor x = Tensor::from(Floats{1, 2, 3}, {1, 3});
  const auto [in, out] = run([&] {
    net(x);
    const Tap t = tap("down");
    return std::pair(t.input, t.output);
  });
  EXPECT_EQ(in.shape(), (Shape{1, 5}));
  EXPECT_EQ(out.shape(), (Shape{1, 2}));
  expect_error(ErrorKind::usage, {"'upp'", "did you mean", "up"}, [&] {
    run([&] {
      net(x);
      tap("upp");
    });
  });
}

TEST(Threads, GiveEqualBits) {
  const Tensor x = Tensor::from(irregular(300 * 70, -1, 1), {300, 70});
  auto step = [&] { return std::pair(sum(matmul(transpose(x), x)), logsumexp(x * 3)); };
  const int before = threads();
  std::vector<std::pair<double, double>> got;
  for (const int n : {1, 2, 3}) {
    set_threads(n);
    const auto r = run(step);
    got.emplace_back(r.first.item(), r.second.item());
  }
  set_threads(before);
  EXPECT_EQ(got[0], got[1]);
  EXPECT_EQ(got[0], got[2]);
}

// Threads that read the same parameters and the same input at the same time, in steps of their own.
TEST(Threads, ReadOneModelAtTheSameTime) {
  const Device before = device();
  use_device("cpu");  // a GPU is for one thread at a time
  Linear first(4, 8), second(8, 1);
  first.parameters(), second.parameters();
  const Tensor x = vec({1, 2, 3, 4});
  const auto step = [&](int more) {
    Tensor y = second(relu(first(x)));
    for (int i = 0; i < more; ++i) y = y + 1;  // recordings differ
    return y;
  };
  const double want = run(step, 0).item();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int more = 0; more < 3; ++more)
    threads.emplace_back([&, more] {
      for (int i = 0; i < 500; ++i) {
        const double got = i % 2 == 0 ? run(step, more).item() : no_grad([&] { return step(more); }).item();
        if (std::abs(got - want - more) > 1e-5) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  use_device(name_of(before));
}

TEST(Threads, AValueThatAnotherOneHasNotComputedIsAnError) {
  const Tensor pending = vec({1, 2}) * 2;
  std::thread([&] {
    const std::vector<std::string> words = {"never computed", "by another thread", "at test_tape.cpp:", "item()"};
    expect_error(ErrorKind::usage, words, [&] { pending + 1; });
    expect_error(ErrorKind::usage, words, [&] { pending.to_host<float>(); });
  }).join();
  EXPECT_EQ(pending.to_host<float>(), Floats({2, 4}));
}

}  // namespace
}  // namespace weft
