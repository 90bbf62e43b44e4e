// Mamba2Block, what the BSMamba2 speed guide asks for: shapes, paths that say which they are and agree, gradients, the
// benchmark.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "models/mamba2_block.h"
#include "ops/ops.h"
#include "tests/expect_error.h"
#include "tests/values.h"
#include "tools/bench/mamba2_block.h"
#include "tools/bench/run.h"

namespace weft {
namespace {

Tensor frames(std::int64_t b, std::int64_t t, std::int64_t d) {
  const Values v = gen(std::size_t(b * t * d), 0.3);
  return Tensor::from(std::vector<float>(v.begin(), v.end()), {b, t, d});
}

struct Outcome {
  Values y, state, dx;
};
Outcome outcome(Mamba2Block& block, const Tensor& x) {
  const auto [y, state, dx] = run([&] {
    const Mamba2Block::Result r = block(x);
    return std::tuple(r.output, r.states.ssm, grad(sum(square(r.output)) + sum(square(r.states.ssm)), {x})[0]);
  });
  return {y.to_host<double>(), state.to_host<double>(), dx.to_host<double>()};
}

double difference(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(a[i] - b[i])), largest = std::max(largest, std::abs(b[i]));
  return most / largest;
}

// Seed 001: (2, 400, 192) -> output and final state, d_state 64.
TEST(Mamba2Block, Seed001ShapesOfOutputAndState) {
  seed(1);
  Mamba2Block block({.width = 192, .state = 64, .say = false});
  const bool whole = device() == Device::cpu;
  const std::int64_t t = whole ? 400 : 7;
  const auto [y, state] = run([&] {
    const Mamba2Block::Result r = block(frames(2, t, 192));
    return std::pair(r.output, r.states.ssm);
  });
  EXPECT_EQ(y.shape(), (Shape{2, t, 192}));
  EXPECT_EQ(state.shape(), (Shape{2, 6, 64, 64}));
  for (double v : y.to_host<double>()) ASSERT_TRUE(std::isfinite(v));
  EXPECT_EQ(block.config().heads(), 6);
  seed(0);
}

// Seed 001: the path is chosen by itself and said, and the plain one can be forced.
TEST(Mamba2Block, Seed001SaysWhichPathIsActive) {
  testing::internal::CaptureStderr();
  const Mamba2Block chosen({.width = 32, .state = 16, .head = 16});
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said, chosen.active_path() + "\n");
  if (device() == Device::cpu) {
    EXPECT_EQ(chosen.path(), ScanPath::fast);
    EXPECT_NE(said.find("Mamba2Block: fast path, the kernels of ssd on cpu"), std::string::npos) << said;
  }
  testing::internal::CaptureStderr();
  const Mamba2Block forced({.width = 32, .state = 16, .head = 16, .plain = true});
  EXPECT_NE(testing::internal::GetCapturedStderr().find("Mamba2Block: plain path"), std::string::npos);
  EXPECT_EQ(forced.path(), ScanPath::plain);
  EXPECT_NE(forced.active_path().find("as asked for"), std::string::npos);
  testing::internal::CaptureStderr();
  const Mamba2Block silent({.width = 32, .state = 16, .head = 16, .say = false});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

// Seed 001: all paths agree within 1e-4 of the largest, gradients included.
TEST(Mamba2Block, Seed001PathsAgree) {
  seed(1);
  Mamba2Block block({.width = 24, .state = 16, .head = 12, .groups = 2, .say = false});
  const Tensor x = frames(2, device() == Device::cpu ? 90 : 9, 24);
  const Outcome fast = outcome(block, x);
  for (const ScanPath path : {ScanPath::plain, ScanPath::sequential}) {
    block.use(path);
    const Outcome other = outcome(block, x);
    EXPECT_LT(difference(fast.y, other.y), 1e-5);
    EXPECT_LT(difference(fast.state, other.state), 1e-5);
    EXPECT_LT(difference(fast.dx, other.dx), 1e-4);
  }
  seed(0);
}

TEST(Mamba2Block, GoesOnFromItsStates) {
  seed(1);
  Mamba2Block block({.width = 16, .state = 8, .head = 8, .say = false});
  const Tensor x = frames(1, 11, 16);
  const Values whole = outcome(block, x).y;
  const Tensor rest = run([&] {
    const Mamba2Block::Result first = block(slice(x, 1, 0, 4));
    return block(slice(x, 1, 4, 11), first.states).output;
  });
  EXPECT_LT(difference(rest.to_host<double>(), Values(whole.begin() + 4 * 16, whole.end())), 1e-5);
  seed(0);
}

TEST(Mamba2Block, Seed001GradientsAreThoseOfDifferences) {
  seed(1);
  Mamba2Block block({.width = 8, .state = 4, .head = 4, .say = false, .dtype = DType::f64});
  const auto loss = [&](const Values& v) {
    const Tensor x = Tensor::from(v, {1, 5, 8});
    const auto [value, dx] = run([&] {
      const Mamba2Block::Result r = block(x);
      const Tensor total = sum(square(r.output)) + sum(square(r.states.ssm)) + sum(r.states.conv);
      return std::pair(total, grad(total, {x})[0]);
    });
    return std::pair(value.item(), dx.to_host<double>());
  };
  const Values v = gen(40, 0.1);
  const Values dx = loss(v).second;
  for (std::size_t i = 0; i < v.size(); i += 7) {
    Values up = v, down = v;
    up[i] += 1e-6, down[i] -= 1e-6;
    EXPECT_NEAR(dx[i], (loss(up).first - loss(down).first) / 2e-6, 1e-6) << i;
  }
  seed(0);
}

TEST(Mamba2Block, Mistakes) {
  expect_error(ErrorKind::usage, {"Mamba2Block: it needs a width"}, [] { Mamba2Block({}); });
  expect_error(ErrorKind::usage, {"the inner width does not divide into heads", "inner width 40", "heads of 64"},
               [] { Mamba2Block({.width = 20}); });
  Mamba2Block block({.width = 16, .state = 8, .head = 8, .say = false});
  expect_error(ErrorKind::usage, {"Mamba2Block: x is not (batch, time, width)", "(2, 3, 8)", "test_mamba2_block.cpp"}, [&] {
    block(zeros({2, 3, 8}));
  });
  expect_error(ErrorKind::usage, {"ssd: initial does not fit x", "(3, 4, 8, 8)", "(2, 4, 8, 8)"}, [&] {
    block(zeros({2, 3, 16}), {.ssm = zeros({3, 4, 8, 8})});
  });
}

// Seed 001: at least five times as fast as a loop over the frames.
TEST(SlowMamba2Block, Seed001IsFiveTimesAsFastAsALoopAt400Frames) {
  if (device() == Device::emu) GTEST_SKIP() << "it measures nothing there";
  const BlockTiming row = time_mamba2_block(1, 400, 8);
  EXPECT_GE(row.speed_up(), 5) << row.ms << " ms against " << row.loop_ms;
  EXPECT_LT(row.difference, 1e-4);
  EXPECT_NEAR(row.frames_per_second(), 400 / row.ms * 1e3, 1);
}

TEST(Mamba2Block, Seed001BenchmarkPrintsItsTable) {
  testing::internal::CaptureStdout();
  run_bench({.groups = {"mamba2block"}, .smoke = true});
  const std::string text = testing::internal::GetCapturedStdout();
  for (const char* part : {"Mamba2Block: ", "path", "frames/s", "loop ms", "speed-up", "largest difference", "2 x 8", "1 x 16"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  testing::internal::CaptureStdout();
  run_bench({.groups = {"mamba2block"}, .list = true});
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "mamba2block\n");
}

}  // namespace
}  // namespace weft
