// What `weft inspect` shows: machine code read from cubins, tables, programs, and the kernels of a training step. What needs
// NVRTC is skipped where it is missing; with WEFT_REQUIRE_NVRTC=1 that is a failure.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "autograd/run.h"
#include "autograd/settings.h"
#include "jit/compiler.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/peak_memory.h"
#include "tests/temp_folder.h"
#include "tools/inspect/inspect.h"
#include "tools/inspect/kernel_table.h"
#include "tools/inspect/sass.h"
#include "tools/inspect/show.h"

namespace weft {
namespace {

const char* const kTargets[] = {"sm_80", "sm_90a", "sm_100", "sm_120"};
const std::filesystem::path kModel = std::filesystem::path(WEFT_SOURCE_DIR) / "tests/golden/mamba";

struct WithNvrtc : testing::Test {
  void SetUp() override {
    if (nvrtc_version() > 0) return;
    const char* required = std::getenv("WEFT_REQUIRE_NVRTC");
    if (required && std::string_view(required) == "1") FAIL() << "WEFT_REQUIRE_NVRTC=1, but there is no NVRTC";
    GTEST_SKIP() << "there is no NVRTC";
  }
};

// y[i] += the sum over k of exp(x[k]) x[i] + k, after a short loop that is not the hot one.
CudaKernel loop_kernel() {
  CudaText text("loop", false);
  text.pointer("x", dense_operand(3, DType::f32, Shape{64}.dims()))
      .pointer("y", dense_operand(5, DType::f32, Shape{64}.dims()));
  text.integer("n", 64);
  return text.launch_text(R"(
extern "C" __global__ void __launch_bounds__(64) KERNEL(PARAMETERS) {
  __shared__ float shared[64];
  const int i = threadIdx.x;
#pragma unroll 1
  for (int k = i; k < int(a.n); k += 64) shared[k] = a.x[k];
  __syncthreads();
  float sum = a.y[i];
#pragma unroll 1
  for (int k = 0; k < int(a.n); ++k) sum = sum * shared[k] + __expf(shared[k]);
  a.y[i] = sum;
}
)",
                          {1, 1, 1}, {64, 1, 1});
}

KernelView view_of(std::string name, std::string module, double bytes) {
  CudaKernel kernel;
  kernel.name = std::move(name);
  kernel.bytes = bytes;
  KernelView v{.name = kernel.name,
               .module = std::move(module),
               .where = "at /home/me/model.cpp:7\nin m, called at main.cpp:3",
               .reasons = {}};
  v.bytes = bytes;
  v.kernel = std::make_shared<const CudaKernel>(std::move(kernel));
  return v;
}

TEST(Inspect, AKernelMovesEachOperandOnceUnlessItSaysOtherwise) {
  EXPECT_EQ(loop_kernel().bytes, 2 * 64 * 4);
  const auto bytes = [](auto&& describe) {
    CudaText text("moves", false);
    describe(text);
    return text.launch_text("", {1, 1, 1}, {1, 1, 1}).bytes;
  };
  const Operand row = dense_operand(1, DType::bf16, Shape{64}.dims());
  EXPECT_EQ(bytes([&](CudaText& t) { t.pointer("x", broadcast_to(row, Shape{32, 64}.dims())).pointer("absent", {}); }), 64 * 2);
  EXPECT_EQ(bytes([&](CudaText& t) { t.pointer("table", row).traffic(10); }), 10);
}

TEST(Inspect, TableGathersLaunchesOfOneText) {
  std::vector<KernelView> launches{view_of("small__1", "a", 10), view_of("large__2", "b", 40), view_of("small__1", "c", 10)};
  const KernelTable plain = kernel_table("step", "sm_90a", launches);
  ASSERT_EQ(plain.kernels.size(), 2u);
  EXPECT_EQ(plain.kernels[0].name, "large__2");
  EXPECT_EQ(plain.kernels[1].launches, 2);
  EXPECT_EQ(plain.kernels[1].bytes, 20);
  EXPECT_EQ(plain.order, (std::vector<int>{1, 0, 1}));
  const std::string text = to_text(plain);
  EXPECT_NE(text.find("me/model.cpp:7"), std::string::npos) << text;
  EXPECT_EQ(text.find("roof"), std::string::npos) << text;
  expect_error(ErrorKind::usage, {"needs the times of a GPU"}, [&] { to_trace(plain); });
  expect_error(ErrorKind::usage, {"did you mean 'small__1'"}, [&] { kernel_named(plain, "smal__1"); });
  EXPECT_EQ(kernel_named(plain, "lar").name, "large__2");
  expect_error(ErrorKind::usage, {"several kernels begin"}, [&] { kernel_named(plain, ""); });
}

TEST(Inspect, MeasuredTimes) {
  std::vector<KernelView> launches{view_of("a__1", "forward", 3e9), view_of("b__2", "backward", 1e9)};
  launches[0].seconds = 2e-3, launches[1].seconds = 1e-3, launches[1].backward = true;
  KernelTable table = kernel_table("step", "sm_90a", launches);
  table.peak_bytes = 3e12;
  EXPECT_NE(to_text(table).find("50%"), std::string::npos) << to_text(table);
  EXPECT_NEAR(to_json(table).at("kernels").at(0).at("roofline").get<double>(), 0.5, 1e-12);
  KernelView product = launches[0];
  product.kernel = nullptr, product.bytes = 1, product.flops = 1e12;
  table = kernel_table("step", "sm_90a", {product});
  table.peak_bytes = 3e12, table.peak_flops = 5e14;
  EXPECT_NEAR(to_json(table).at("kernels").at(0).at("roofline").get<double>(), 1, 1e-12);  // limited by arithmetic
  const auto events = nlohmann::json::parse(to_trace(kernel_table("step", "sm_90a", launches))).at("traceEvents");
  ASSERT_EQ(events.size(), 2u);
  EXPECT_NEAR(events[1].at("ts").get<double>(), 2000, 1e-9);
  EXPECT_EQ(events[1].at("cat"), "backward");
}

TEST(Inspect, ProfileSumsKernelsOfAKindBesideTheirFloors) {
  std::vector<KernelView> launches{view_of("norm__add__1", "a", 3e9), view_of("norm__2", "b", 1e9),
                                   view_of("scan__3", "c", 3e9)};
  const std::string plain = to_profile(kernel_table("step", "sm_90a", launches));
  EXPECT_LT(plain.find("norm"), plain.find("scan")) << plain;
  EXPECT_EQ(plain.find("ms"), std::string::npos) << plain;
  launches[0].seconds = launches[1].seconds = 2e-3, launches[2].seconds = 8e-3;
  KernelTable table = kernel_table("step", "sm_90a", launches);
  table.peak_bytes = 1e12, table.step_seconds = 14e-3;
  const std::string text = to_profile(table);
  EXPECT_LT(text.find("scan"), text.find("norm")) << text;
  EXPECT_NE(text.find("norm       2    3.7G             4.000     4.000  100%\n"), std::string::npos) << text;
  EXPECT_NE(
      text.find("a step takes 14.000 ms, 2.000 ms more than its kernels one by one with cold caches; 50 % of it is the floor"),
      std::string::npos)
      << text;
}

TEST(Inspect, HtmlEscapes) {
  const KernelTable table = kernel_table("a < b & \"c\"", "sm_80", {view_of("k__1", "<script>", 1)});
  const std::string html = to_html(table);
  EXPECT_NE(html.find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
  EXPECT_EQ(html.find("<script>"), std::string::npos);
}

TEST(Inspect, LineDifference) {
  EXPECT_EQ(line_difference("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
  EXPECT_EQ(line_difference("", "a\n"), "+ a\n");
  EXPECT_EQ(line_difference("a\n", ""), "- a\n");
}

TEST(Inspect, WhatIsNoCubin) {
  expect_error(ErrorKind::io, {"this is not a cubin"}, [] { read_sass(""); });
  expect_error(ErrorKind::io, {"this is not a cubin", "no ELF header"}, [] { read_sass(std::string(500, 'x')); });
}

struct Sass : WithNvrtc {};
TEST_F(Sass, ReadsEveryTarget) {
  const CudaKernel kernel = loop_kernel();
  for (const char* target : kTargets) {
    SCOPED_TRACE(target);
    const Compiled compiled = compile(kernel.name, complete_text(kernel), target);
    const std::vector<SassKernel> kernels = read_sass(compiled.cubin);
    ASSERT_EQ(kernels.size(), 1u);
    const SassKernel& k = kernels[0];
    EXPECT_EQ(k.name, kernel.name);
    EXPECT_EQ("sm_" + std::to_string(k.architecture), std::string(target).substr(0, target[3] == '9' ? 5 : 6));
    EXPECT_EQ(k.registers, compiled.registers);
    EXPECT_EQ(k.stack_bytes, 0);
    EXPECT_GE(k.shared_bytes, 256);
    ASSERT_EQ(k.loops.size(), 2u);
    const SassLoop* hot = k.hottest();
    ASSERT_NE(hot, nullptr);
    EXPECT_EQ(hot->counts.mufu, 1);
    EXPECT_EQ(hot->counts.fma, 1);
    EXPECT_EQ(hot->counts.shared, 1);
    EXPECT_EQ(hot->counts.loads + hot->counts.stores, 0);
    EXPECT_EQ(k.counts.loads, 2);
    EXPECT_EQ(k.counts.stores, 1);
    EXPECT_EQ(k.counts.local, 0);
    for (const auto& [name, n] : k.counts.histogram) EXPECT_FALSE(name.starts_with("0x")) << name;
    for (const std::size_t end : {std::size_t(70), compiled.cubin.size() / 2})
      EXPECT_THROW(read_sass(std::string_view(compiled.cubin).substr(0, end)), Error) << end;
  }
}

TEST_F(Sass, ProgramCompiles) {
  const char* nvcc = "/usr/local/cuda/bin/nvcc";
  if (!std::filesystem::exists(nvcc)) nvcc = "/usr/local/cuda-13.0/bin/nvcc";
  if (!std::filesystem::exists(nvcc)) GTEST_SKIP() << "there is no nvcc";
  KernelView view{.name = "loop", .module = "test", .where = {}, .reasons = {}};
  view.kernel = std::make_shared<const CudaKernel>(loop_kernel());
  view.slots = {{3, 256}, {5, 256}};
  const TempFolder folder;
  const auto file = folder.write("repro.cu", to_program(view, "sm_90a"));
  const std::string command = std::string(nvcc) + " -std=c++17 -diag-suppress 128,177 -arch=sm_90a -c -o '" +
                              (folder / "repro.o").string() + "' '" + file.string() + "'";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

struct InspectStep : WithNvrtc {};
TEST_F(InspectStep, NamesWhatATrainingStepLaunches) {
  const KernelTable table =
      inspect_training_step(kModel, {.target = "sm_90a", .batch = 2, .length = 32, .bf16 = true, .want_ptx = false});
  const KernelView& conv = kernel_named(table, "conv1d");  // not conv1d_backward__..., conv1d_sum__...
  EXPECT_TRUE(conv.name.starts_with("conv1d__")) << conv.name;
  EXPECT_EQ(conv.launches, 2);  // layers
  EXPECT_NE(conv.module.find("conv1d"), std::string::npos);
  EXPECT_GT(conv.compiled.registers, 0);
  EXPECT_GT(conv.bytes, 0);
  for (const CudaArg& a : conv.kernel->args) EXPECT_TRUE(a.kind != CudaArg::pointer || conv.slots.at(a.slot) > 0);
  EXPECT_NE(to_why(conv).find("called at"), std::string::npos) << to_why(conv);
  const std::string silu = "out(pre; b, t, d) = pre*sigmoid(pre)", softplus = "delta(raw; b, t, i) = softplus(raw + z0(i))";
  EXPECT_EQ(conv.kernel->holes, std::vector{silu});
  EXPECT_NE(to_why(conv).find("hole " + silu), std::string::npos) << to_why(conv);
  EXPECT_NE(to_html(table).find("hole " + silu), std::string::npos);
  EXPECT_EQ(kernel_named(table, "scan_forward").kernel->holes.at(0), softplus);
  EXPECT_NE(to_json(table).dump().find(softplus), std::string::npos);
  EXPECT_EQ(to_json(table).at("kernels").size(), table.kernels.size());
  for (const KernelView& k : table.kernels) {
    if (!k.kernel) continue;
    EXPECT_EQ(k.kernel->parameters.size(), k.kernel->args.size()) << k.name;
    EXPECT_NE(to_program(k, "sm_90a").find("kernel::" + k.name + "<<<"), std::string::npos);
  }
  expect_error(ErrorKind::io, {"there is no model here", "/nowhere"}, [] { inspect_training_step("/nowhere", {}); });
}

// 8 TiB of ids, that is, and a thousand times that in logits; then a third of a gigabyte of weights, and more for their
// optimizer.
TEST_F(InspectStep, NeedsNoMemoryForWhatIsOnlyShown) {
  const KernelTable table = inspect_training_step(kModel, {.target = "sm_80", .batch = 1 << 20, .length = 1 << 20});
  EXPECT_NE(table.title.find("1048576 x 1048576 tokens"), std::string::npos) << table.title;
  EXPECT_GT(table.kernels.size(), 10u);
  const Device own = device();
  expect_error(ErrorKind::device, {"memory: more than this machine has", "a batch of (1048576, 1048576)"},
               [] { inspect_training_step(kModel, {.batch = 1 << 20, .length = 1 << 20, .device = "emu"}); });
  use_device(name_of(own));
  const TempFolder folder;
  nlohmann::json config = read_json(kModel / "config.json");
  config["vocab_size"] = 80'000'000 / config["hidden_size"].get<int>();
  folder.write("config.json", config.dump());
  std::ofstream reset("/proc/self/clear_refs");
  if (!(reset << "5" << std::flush)) GTEST_SKIP() << "the peak of memory cannot be set back";
  if (device() == Device::emu) GTEST_SKIP() << "the emulated device's memory is this machine's";
  const std::size_t before = peak_of(getpid());
  inspect_training_step(folder / "config.json", {.target = "sm_80", .batch = 1, .length = 16});
  EXPECT_LT(peak_of(getpid()), before + (std::size_t(150) << 20));
}

TEST_F(InspectStep, TimesEveryLaunchAndTracesTheStep) {
  if (settings().split_arena)
    GTEST_SKIP() << "WEFT_ARENA=split gives values no lasting address, so launches cannot be repeated";
  const TempFolder folder;
  nlohmann::json config = read_json(kModel / "config.json");
  config.update(
      {{"hidden_size", 16}, {"intermediate_size", 32}, {"num_hidden_layers", 1}, {"state_size", 4}, {"time_step_rank", 1}});
  folder.write("config.json", config.dump());
  nlohmann::json run{{"steps", 1},  {"batch", 2}, {"length", 8}, {"width", 16},
                     {"layers", 1}, {"state", 4}, {"lr", 1e-3},  {"min_lr", 0}};
  run.update({{"warmup", 0}, {"weight_decay", 0}, {"clip", 1}, {"seed", 1}, {"precision", "fp32"}});
  const nlohmann::json state{{"format", 2},       {"step", 1},
                             {"bad_steps", 0},    {"rng", {{"seed", 1}, {"tick", 1}}},
                             {"environment", {}}, {"data", {{"name", "text"}, {"hash", ""}, {"position", 1}}},
                             {"options", run}};
  folder.write("state.json", state.dump());
  const Device before = device();
  const KernelTable table = inspect_training_step(folder.path(), {.length = 12, .device = "emu"});
  use_device(name_of(before));
  EXPECT_NE(table.title.find("2 x 12 tokens, fp32"), std::string::npos) << table.title;  // the run's, but for the length given
  EXPECT_NE(table.timing.find("this host's"), std::string::npos) << table.timing;
  EXPECT_EQ(table.peak_bytes, 0);
  ASSERT_EQ(table.seconds.size(), table.order.size());
  for (const double seconds : table.seconds) EXPECT_GT(seconds, 0);
  const KernelView& product = kernel_named(table, "gemm__linear__24x64x16");
  EXPECT_EQ(product.flops, 2. * 24 * 64 * 16 * product.launches);
  EXPECT_GT(product.seconds, 0);
  // Counters, of every kernel that has a text; the same the next time.
  for (const KernelView& k : table.kernels) {
    ASSERT_EQ(k.counters.has_value(), k.kernel != nullptr) << k.name;
    if (!k.counters) continue;
    EXPECT_EQ(k.counters->launches, std::uint64_t(k.launches)) << k.name;
    EXPECT_GT(k.counters->threads(), 0u);
    EXPECT_GT(k.counters->global_sectors, 0u);
  }
  const KernelTable again = inspect_training_step(folder.path(), {.length = 12, .device = "emu"});
  use_device(name_of(before));
  const KernelView& conv = kernel_named(table, "conv1d");
  EXPECT_EQ(kernel_named(again, "conv1d").counters, conv.counters);
  EXPECT_NE(to_text(table).find("banks"), std::string::npos);
  EXPECT_NE(to_why(conv).find("requests of warps"), std::string::npos) << to_why(conv);
  for (const auto& k : to_json(table).at("kernels"))
    EXPECT_TRUE(k.contains("product") || k.at("counters").at("global_sectors") > 0) << k.at("name");
  // What is launched is what a plan without a device shows.
  const KernelTable plain = inspect_training_step(folder.path(), {.length = 12});
  ASSERT_EQ(plain.order.size(), table.order.size());
  for (std::size_t i = 0; i < plain.order.size(); ++i)
    EXPECT_EQ(plain.kernels[std::size_t(plain.order[i])].name, table.kernels[std::size_t(table.order[i])].name) << i;
  const auto events = nlohmann::json::parse(to_trace(table)).at("traceEvents");
  ASSERT_EQ(events.size(), table.order.size());
  EXPECT_EQ(events.back().at("cat"), "backward");
}

TEST(Inspect, TextFitsATerminal) {
  KernelView view = view_of(std::string(31, 'k'), "backbone.layers.10.mixer.conv1d: conv1d_backward", 1e9);
  view.seconds = 1e-3, view.flops = 1e9, view.compiled.registers = 100;
  KernelTable table = kernel_table("step", "sm_90a", {view});
  table.peak_bytes = 3e12;
  const std::string text = to_text(table);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 120u) << text;
  EXPECT_NE(text.find("mixer.conv1d "), std::string::npos) << text;
}

struct SlowInspect : WithNvrtc {};
TEST_F(SlowInspect, NoKernelOfATrainingStepSpills) {
  for (const char* target : kTargets)
    for (const bool bf16 : {false, true})
      for (const KernelView& k :
           inspect_training_step(kModel, {.target = target, .batch = 2, .length = 32, .bf16 = bf16, .want_ptx = false})
               .kernels) {
        if (!k.kernel) continue;
        SCOPED_TRACE(k.name + " for " + target);
        EXPECT_EQ(k.compiled.spill_bytes, 0);
        EXPECT_TRUE(k.kernel->registers == 0 || k.compiled.registers <= k.kernel->registers) << k.compiled.registers;
        EXPECT_EQ(read_sass(k.compiled.cubin).at(0).counts.local, 0);
      }
}

}  // namespace
}  // namespace weft
