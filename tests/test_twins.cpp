// bf16 twins: a product in bf16 reads a weight rounded, and the rounded copy follows every write of the weight. On the CPU, and
// where NVRTC is, on the emulated device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "autograd/settings.h"
#include "jit/driver.h"
#include "tools/weft.h"

namespace weft {
namespace {

constexpr std::int64_t kIn = 26, kOut = 15, kRows = 8;  // a weight that is not a whole number of vectors

std::vector<float> wave(std::int64_t n, double step) {
  std::vector<float> values(std::size_t(n), 0.f);
  for (std::int64_t i = 0; i < n; ++i) values[std::size_t(i)] = float(std::sin(step * double(i + 1)));
  return values;
}

std::vector<float> rounded(std::vector<float> values) {
  for (float& x : values) x = float(bf16(x));
  return values;
}

std::vector<float> twin_of(const State& state) {
  const auto& twin = state.impl()->twin;
  if (!twin) return {};
  std::vector<bf16> values(std::size_t(state.shape().numel()));
  twin->memory.read(values.data());
  return {values.begin(), values.end()};
}

bool is_fresh(const State& state) { return state.impl()->twin && !state.impl()->twin->stale; }

// A layer y = x W^T + b with bf16 activations.
struct Model {
  Param w{{kOut, kIn}, DType::f32, "w"}, b{{kOut}, DType::f32, "b"};
  AdamW opt{{w, b}, {.lr = 1e-2, .weight_decay = 0.1, .clip_norm = 1, .on_bad_step = OnBadStep::poll}};
  Tensor x = Tensor::from(wave(kRows * kIn, 0.7), {kRows, kIn});

  Model() {
    w.set(wave(kOut * kIn, 0.3));
    b.set(wave(kOut, 0.9));
  }
  Tensor output() const { return cast(linear(cast(x, DType::bf16), w.read(), b.read()), DType::f32); }
  // What `output` is with weights that are rounded by an op.
  Tensor with_rounded_weights() const {
    return cast(linear(cast(x, DType::bf16), cast(cast(w.read(), DType::bf16), DType::f32), b.read()), DType::f32);
  }
  Tensor evaluate() const {
    return run([&] { return no_grad([&] { return output(); }); });
  }
  void train(int steps) {
    for (int i = 0; i < steps; ++i)
      run([&] {
        backward(mean(square(output())));
        opt.step();
      });
  }
  void accumulate() {
    run([&] { backward(mean(square(output()))); });
  }
  void expect_equal(const std::string& after) const {
    SCOPED_TRACE(after);
    const std::vector<float> y = evaluate().to_host<float>();
    EXPECT_TRUE(is_fresh(w));
    EXPECT_EQ(twin_of(w), rounded(w.to_host<float>()));
    EXPECT_EQ(y, run([&] { return with_rounded_weights(); }).to_host<float>());
  }
};

class Twins : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string_view(GetParam()) == "emu")
      if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
    before_ = device();
    use_device(GetParam());
  }
  void TearDown() override { use_device(name_of(before_)); }

 private:
  Device before_ = device();
};

TEST_P(Twins, FollowTheOptimizerWithoutCopies) {
  Model m;
  m.train(1);
  const std::vector<float> first = twin_of(m.w);
  for (int step = 0; step < 3; ++step) {
    m.train(1);
    EXPECT_TRUE(is_fresh(m.w)) << "the update wrote it";
    EXPECT_EQ(twin_of(m.w), rounded(m.w.to_host<float>()));
    for (const KernelRecord& k : last_kernels()) EXPECT_EQ(k.name.find("copy__"), std::string::npos) << k.name;
  }
  EXPECT_NE(twin_of(m.w), first);
  m.expect_equal("training");
}

TEST_P(Twins, FollowEveryOtherWrite) {
  Model m;
  m.expect_equal("set");
  run([&] { assign(m.w, m.w.read() * 1.01); });
  EXPECT_FALSE(is_fresh(m.w));
  m.expect_equal("assign");
  assign(m.w, m.w.read() + 0.1);
  m.expect_equal("assign outside run");
  run([&] { assign_at(m.w, Scalar(3), Tensor::from(wave(2 * kIn, 0.2), {2, kIn})); });
  m.expect_equal("assign_at");
  m.w.set(wave(kOut * kIn, 0.4));
  m.expect_equal("set again");
  const std::vector<float> other = wave(kOut * kIn, 0.5);
  m.w.set_bytes(other.data());
  m.expect_equal("loading");
  initialise(m.w, init::normal(1), 3, "w");
  m.expect_equal("initialising");
}

TEST_P(Twins, AreAsOldAsTheReadInTheStep) {
  Model m;
  const auto plain = m.evaluate().to_host<float>();
  const auto [before, after] = run([&] {
    const Tensor old = m.output();
    assign(m.w, m.w.read() * 2.0);
    return std::pair(old, m.output());
  });
  EXPECT_EQ(before.to_host<float>(), plain);
  EXPECT_EQ(after.to_host<float>(), m.evaluate().to_host<float>());
  EXPECT_NE(after.to_host<float>(), plain);
  // An optimizer that steps before the layer is used: the twin that it writes is read in the same step.
  for (int i = 0; i < 2; ++i) {
    m.accumulate();
    const Tensor late = run([&] {
      m.opt.step();
      return m.output();
    });
    EXPECT_EQ(late.to_host<float>(), m.evaluate().to_host<float>());
  }
}

TEST_P(Twins, AreSharedByPlans) {
  Model m, alone;
  for (int i = 0; i < 3; ++i) {
    m.train(1);
    m.evaluate();
    m.accumulate();
    m.opt.zero_grad();
    alone.train(1);
  }
  EXPECT_EQ(m.w.to_host<float>(), alone.w.to_host<float>());
  // An update in a step of its own.
  for (int i = 0; i < 2; ++i) {
    m.accumulate();
    run([&] { m.opt.step(); });
    EXPECT_TRUE(is_fresh(m.w));
    m.expect_equal("an update alone");
  }
}

TEST_P(Twins, StayWithFrozenWeightsAndSkippedUpdates) {
  Model m;
  m.w.set_trainable(false);
  m.train(2);
  EXPECT_TRUE(is_fresh(m.w));
  EXPECT_EQ(twin_of(m.w), rounded(wave(kOut * kIn, 0.3)));
  m.w.set_trainable(true);
  m.train(1);
  const std::vector<float> good = twin_of(m.w);
  m.x = Tensor::from(std::vector<float>(kRows * kIn, std::numeric_limits<float>::infinity()), {kRows, kIn});
  m.train(1);
  EXPECT_NE(m.opt.bad_step(), 0);
  EXPECT_EQ(twin_of(m.w), good);
  EXPECT_EQ(good, rounded(m.w.to_host<float>()));
}

TEST_P(Twins, GoOnAfterLoading) {
  Model whole, first, second;
  whole.train(4);
  first.train(2);
  second.train(1);  // it has a twin, of other values
  second.w.set_bytes(first.w.bytes().data());
  second.b.set_bytes(first.b.bytes().data());
  second.opt.load_state_dict(first.opt.state_dict());
  second.train(2);
  EXPECT_EQ(second.w.to_host<float>(), whole.w.to_host<float>());
  second.expect_equal("loading and training");
}

TEST_P(Twins, AreTheSameWithEverySwitch) {
  const auto weights = [] {
    Model m;
    m.train(3);
    m.expect_equal("training");
    return m.w.to_host<float>();
  };
  const Settings before = settings();
  const std::vector<float> expected = weights();
  const std::vector<std::pair<std::string, std::function<void(Settings&)>>> cases = {
      {"WEFT_GRAPH=0", [](Settings& s) { s.graph = false; }},
      {"WEFT_FOLLOW=0", [](Settings& s) { s.follow = false; }},
      {"WEFT_ARENA=split", [](Settings& s) { s.split_arena = true; }},
      {"WEFT_CHECK=nan", [](Settings& s) { s.check_nan = true; }}};
  for (const auto& [name, change] : cases) {
    change(settings());
    EXPECT_EQ(weights(), expected) << name;
    settings() = before;
  }
  settings().fuse = false;
  const std::vector<float> plain = weights();
  settings() = before;
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(plain[i], expected[i], 2e-2) << "WEFT_FUSE=0";
}

TEST_P(Twins, AreMadeOfWhatProductsInBf16Read) {
  Model m;
  run([&] { return linear(m.x, m.w.read(), m.b.read()); });
  EXPECT_FALSE(m.w.impl()->twin) << "a product in f32";
  Param mask({kOut, kIn}, DType::f32, "mask");
  run([&] { return linear(cast(m.x, DType::bf16), m.w.read() * mask.read()); });
  EXPECT_FALSE(m.w.impl()->twin || mask.impl()->twin) << "what is multiplied is no State";
  const State cache({kOut, kIn}, DType::f32, "cache");
  run([&] { return linear(cast(m.x, DType::bf16), cache.read()); });
  EXPECT_FALSE(cache.impl()->twin) << "no Param";
  m.train(1);
  EXPECT_TRUE(m.w.impl()->twin);
}

INSTANTIATE_TEST_SUITE_P(On, Twins, testing::Values("cpu", "emu"), [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace weft
