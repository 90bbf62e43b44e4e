// `weft bench`: the rows are those of other implementations' figures, the JSON has their form, and what is timed is the op.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "autograd/settings.h"
#include "jit/gpu.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/bench/cases.h"
#include "tools/bench/power.h"
#include "tools/bench/run.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string without_layout(std::string shape) {
  if (shape.ends_with(" cl") || shape.ends_with(" cf")) shape.resize(shape.size() - 3);
  return shape;
}

std::string row_name(const nlohmann::json& row) {
  auto text = [&](const char* key) { return row.at(key).get<std::string>(); };
  return text("group") + " | " + text("op") + " | " + without_layout(text("shape")) + " | " + text("phase");
}

std::set<std::string> peer_rows() {
  const fs::path file = fs::path(WEFT_SOURCE_DIR) / "../shared/bench/peers-h200.json";
  std::set<std::string> names;
  if (!fs::exists(file)) return names;
  const nlohmann::json peers = read_json(file);
  for (const auto& row : peers.at("rows")) names.insert(row_name(row));
  return names;
}

std::set<std::string> own_rows() {
  std::set<std::string> names;
  for (const std::string& group : bench_groups())
    for (const BenchCase& c : bench_cases(group, false))
      for (const BenchRow& row : c.rows)
        names.insert(
            row_name({{"group", row.name.group}, {"op", row.name.op}, {"shape", row.name.shape}, {"phase", row.name.phase}}));
  return names;
}

// A residual stream of another type, whole models that nobody else was measured with, and decoding of more than one text.
bool without_peer(const std::string& name) {
  const bool decode = name.starts_with("decode");
  return name.find("fp32 residual") != name.npos || name.find("Mamba-10M") != name.npos ||
         name.find("Mamba 4x256") != name.npos || name.find(", LoRA") != name.npos ||
         (decode && (name.find("Transformer") != name.npos || name.find("| batch 1") == name.npos));
}

TEST(Bench, RowsAreNamedAsThePeersAre) {
  const std::set<std::string> peers = peer_rows(), own = own_rows();
  if (peers.empty()) GTEST_SKIP() << "../shared/bench/peers-h200.json is not there";
  for (const std::string& name : own) {
    const bool sum = name.find("clip_grad_norm_ + AdamW") != std::string::npos;  // compared with two rows
    EXPECT_TRUE(sum || without_peer(name) || peers.count(name)) << "no peer has: " << name;
    EXPECT_FALSE(without_peer(name) && peers.count(name)) << "a peer has: " << name;
  }
  const std::set<std::string> groups(bench_groups().begin(), bench_groups().end());
  for (const std::string& name : peers)
    EXPECT_TRUE(!groups.count(name.substr(0, name.find(' '))) || own.count(name)) << "not measured: " << name;
}

// Kernels are launched again after their run, which needs addresses that last.
bool can_time_kernels() { return !is_gpu(device()) || !settings().split_arena; }

// Tiny shapes on the device of the suite: every row has a time, and the keys that follow from it.
TEST(Bench, SmokeRunWritesEveryRow) {
  if (!can_time_kernels()) GTEST_SKIP() << "WEFT_ARENA=split";
  const TempFolder folder;
  const fs::path json = folder / "bench.json";
  BenchOptions options{.groups = bench_groups(), .json = json.string(), .budget_ms = 1, .smoke = true};
  run_bench(options);
  const nlohmann::json out = read_json(json);
  EXPECT_TRUE(out.at("meta").contains("device") && out.at("meta").contains("when"));
  EXPECT_GT(out.at("ceilings").at("copy_gbps"), 0);
  EXPECT_GT(out.at("ceilings").at("bf16_tflops"), 0);
  std::size_t expected = 0;
  for (const std::string& group : bench_groups())
    for (const BenchCase& c : bench_cases(group, true)) expected += c.rows.size();
  EXPECT_EQ(out.at("rows").size(), expected);
  for (const auto& row : out.at("rows")) {
    SCOPED_TRACE(row.dump());
    ASSERT_TRUE(row.contains("ms")) << row_name(row);
    EXPECT_TRUE(row.at("impl").get<std::string>().starts_with("weft"));
    EXPECT_GE(row.at("ms"), 0);
    const std::string group = row.at("group"), phase = row.at("phase");
    if (group == "overhead") {
      EXPECT_TRUE(row.contains("us_per_op"));
      continue;
    }
    for (const char* key : {"floor_ms", "bound", "x_floor"}) EXPECT_TRUE(row.contains(key)) << key;
    if (group == "e2e" || group == "decode") {
      EXPECT_GT(row.at("tokens_s"), 0);
      EXPECT_GT(row.at("kernels"), 0);
      EXPECT_EQ(row.contains("peak_gb"), group == "e2e" && is_gpu(device()));
    }
    EXPECT_TRUE(phase != "both" || (row.contains("wall_ms") && row.contains("first_s")));
  }

  options.groups = {"conv"};  // merged: the other rows stay
  run_bench(options);
  EXPECT_EQ(read_json(json).at("rows").size(), expected);
}

TEST(Bench, FloorsAreThoseOfThePeers) {
  const TempFolder folder;
  const fs::path json = folder / "bench.json";
  BenchReport report(json);
  report.ceilings = {{"copy_gbps", 4252.8}, {"bf16_tflops", 791.0}, {"sfu_gops", 4181.8}};
  const BenchCase scan = bench_cases("scan", false).front();
  report.add(scan.rows[0].name, 0.44901, scan.rows[0].work);
  report.save();
  const nlohmann::json row = read_json(json).at("rows").at(0);
  EXPECT_EQ(row.at("shape"), "8x2048x1536x16");  // the row of mamba_ssm in peers-h200.json
  EXPECT_DOUBLE_EQ(row.at("floor_ms"), 0.04759);
  EXPECT_DOUBLE_EQ(row.at("x_floor"), 9.44);
  EXPECT_DOUBLE_EQ(row.at("sfu_ms"), 0.09629);
  EXPECT_EQ(row.at("bound"), "memory");
}

// The floors of whole steps too: products and attention, then everything else.
TEST(Bench, FloorsOfStepsAreThoseOfThePeers) {
  const TempFolder folder;
  const fs::path json = folder / "bench.json";
  BenchReport report(json);
  report.ceilings = {{"copy_gbps", 4252.8}, {"bf16_tflops", 791.0}};
  for (const BenchCase& c : bench_cases("e2e", false)) report.add(c.rows[0].name, 100, c.rows[0].work);
  report.save();
  const std::map<std::string, double> peers = {
      {"Mamba-130M", 23.733}, {"Mamba2-130M", 25.493}, {"Hymba-style 15x512", 5.59}, {"Transformer 15x512", 3.173}};
  std::size_t found = 0;
  const nlohmann::json out = read_json(json);
  for (const auto& row : out.at("rows")) {
    const auto peer = peers.find(row.at("op"));
    if (peer == peers.end()) continue;
    ++found;
    EXPECT_NEAR(row.at("floor_ms"), peer->second, 0.01 * peer->second) << row.dump();
  }
  EXPECT_EQ(found, peers.size());
}

TEST(Bench, WholeModelsNeedAGpu) {
  if (is_gpu(device())) GTEST_SKIP() << "there is one";
  for (const char* group : {"e2e", "decode"})
    for (const BenchCase& c : bench_cases(group, false))
      EXPECT_EQ(c.for_gpu, c.rows[0].name.op != "Mamba 4x256") << c.rows[0].name.op;
}

TEST(Bench, PowerIsSummarised) {
  EXPECT_FALSE(summary({}));
  const auto use = summary({{1980, 300, false}, {1500, 690, true}, {1400, 690, true}, {1600, 640, false}});
  ASSERT_TRUE(use);
  EXPECT_EQ(use->mhz, 1600);
  EXPECT_EQ(use->least_mhz, 1400);
  EXPECT_EQ(use->watts, 580);
  EXPECT_EQ(use->capped, 0.5);
  if (is_gpu(device()) && !Gpu::of(device()).emulated()) return;
  EXPECT_TRUE(PowerMeter::missing());
  PowerMeter meter;
  EXPECT_FALSE(meter.stop());
}

// Figures of several files count together, and a file that is not there is told of before anything is measured.
TEST(Bench, PeersOfSeveralFiles) {
  const TempFolder folder;
  const auto peers = [&](const char* name, const char* impl, double ms) {
    const fs::path file = folder / name;
    std::ofstream(file) << R"({"rows": [{"group": "e2e", "op": "A", "shape": "1x1", "phase": "step", "impl": ")" << impl
                        << R"(", "ms": )" << ms << "}]}";
    return file.string();
  };
  const std::vector<std::string> files = {peers("a.json", "slow", 5), peers("b.json", "fast", 2)};
  BenchReport report("");
  report.add({"e2e", "A", "1x1", "step"}, 1, {});
  testing::internal::CaptureStdout();
  report.print_against(files);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_NE(text.find("fast"), text.npos) << text;
  EXPECT_EQ(text.find("slow"), text.npos) << text;
  expect_error(ErrorKind::io, {"nowhere.json"},
               [] { run_bench({.groups = {"scan"}, .against = {"nowhere.json"}, .smoke = true}); });
}

// What is kept costs no kernel of its own, separates forward from backward, and stays out of the values' way.
TEST(Bench, KeptValuesCostNoKernel) {
  const Tensor x = Tensor::from(std::vector<float>(64, 0.5f), {8, 8});
  const State upstream({8, 8});
  run([&] {
    const Keep keep;
    const Tensor y = silu(x * 3);
    keep(y);
    keep(grad(y, upstream, {x}));
  });
  const std::vector<KernelRecord> kernels = last_kernels();
  ASSERT_EQ(kernels.size(), 2u);
  EXPECT_FALSE(kernels[0].backward);
  EXPECT_TRUE(kernels[1].backward);
}

TEST(Bench, AFailureIsARowAndTheRunGoesOn) {
  if (!can_time_kernels()) GTEST_SKIP() << "WEFT_ARENA=split";
  const TempFolder folder;
  const fs::path json = folder / "bench.json";
  run_bench({.groups = {"conv", "scan"}, .json = json.string(), .budget_ms = 1, .row_timeout = 0, .smoke = true});
  bool conv = false, scan = false;
  const nlohmann::json out = read_json(json);
  for (const auto& row : out.at("rows")) {
    if (!row.contains("note")) continue;
    EXPECT_NE(row.at("note").get<std::string>().find("failed: over 0 s"), std::string::npos) << row.dump();
    conv |= row.at("group") == "conv", scan |= row.at("group") == "scan";
  }
  EXPECT_TRUE(conv && scan);
}

TEST(Bench, ValuesThatAreNotFiniteAreAnError) {
  const State x({4});
  EXPECT_NO_THROW(check_step([&](const Keep& keep) { keep(x.read() + 1); }));
  expect_error(ErrorKind::training, {"not finite"}, [&] { check_step([&](const Keep& keep) { keep(1 / x.read()); }); });
}

TEST(Bench, MisspeltGroupsAreUsageErrors) {
  expect_error(ErrorKind::usage, {"scan"}, [] { run_bench({.groups = {"scna"}}); });
}

}  // namespace
}  // namespace weft
