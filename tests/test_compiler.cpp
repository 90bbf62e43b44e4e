// Compiling kernel texts, and the disk cache before it. Without NVRTC: skipped with the reason, or, with
// WEFT_REQUIRE_NVRTC=1, a failure.
#include "jit/compiler.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "autograd/settings.h"
#include "jit/cache.h"
#include "jit/cuda_text.h"
#include "jit/driver.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// A cache of its own for each test.
class CacheTest : public testing::Test {
 protected:
  void SetUp() override { use(folder_.path() / "cache"); }
  void TearDown() override { unsetenv("WEFT_CACHE"); }
  void use(const fs::path& path) {
    cache_ = path;
    setenv("WEFT_CACHE", path.c_str(), 1);
  }
  std::vector<fs::path> entries() const {
    std::vector<fs::path> found;
    for (const auto& file : fs::directory_iterator(cache_))
      if (!file.path().has_extension()) found.push_back(file.path());
    return found;
  }
  TempFolder folder_;
  fs::path cache_;
};

class CompilerTest : public CacheTest {
 protected:
  void SetUp() override {
    CacheTest::SetUp();
    const auto missing = missing_library(CudaLibrary::nvrtc);
    if (!missing) return;
    const char* required = std::getenv("WEFT_REQUIRE_NVRTC");
    if (required && std::string_view(required) == "1") FAIL() << "WEFT_REQUIRE_NVRTC=1, but " << *missing;
    GTEST_SKIP() << *missing;
  }
};

std::string scale_text(int factor) {
  return std::string(embedded_text("jit/prelude.cuh")) +
         "extern \"C\" __global__ void __launch_bounds__(256) scale(const float* x, float* y, int n) {\n"
         "  __shared__ float first[8];\n"
         "  int i = blockIdx.x * 256 + threadIdx.x;\n"
         "  if (threadIdx.x < 8) first[threadIdx.x] = x[threadIdx.x];\n"
         "  __syncthreads();\n"
         "  if (i < n) y[i] = " +
         std::to_string(factor) +
         ".0f * x[i] + first[i % 8];\n"
         "}\n";
}

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

const Compiled kSample{.cubin = "machine code",
                       .ptx = "",
                       .log = "log\n",
                       .registers = 24,
                       .spill_bytes = 1,
                       .stack_bytes = 2,
                       .shared_bytes = 3,
                       .constant_bytes = 4,
                       .seconds = 0.5};

// ---- the cache alone --------------------------------------------------------------------------------------------------------

TEST_F(CacheTest, GivesBackWhatWasStored) {
  const std::string key = cache_key("text");
  EXPECT_EQ(key.size(), 32u);
  EXPECT_NE(key, cache_key("text "));
  EXPECT_FALSE(cache_load(key, 0));
  cache_store(key, kSample, 13000, "source");
  const auto entry = cache_load(key, 13000);
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->cubin, kSample.cubin);
  EXPECT_EQ(entry->ptx, "");
  EXPECT_EQ(entry->log, kSample.log);
  EXPECT_EQ(entry->registers, 24);
  EXPECT_EQ(entry->spill_bytes, 1);
  EXPECT_EQ(entry->stack_bytes, 2);
  EXPECT_EQ(entry->shared_bytes, 3);
  EXPECT_EQ(entry->constant_bytes, 4);
  EXPECT_EQ(entry->seconds, 0.5);
  EXPECT_TRUE(entry->cached);
  EXPECT_EQ(contents(cache_ / (key + ".cu")), "source");
}

TEST_F(CacheTest, IgnoresEntriesOfAnotherNvrtcUnlessThereIsNone) {
  const std::string key = cache_key("text");
  cache_store(key, kSample, 12080, "source");
  EXPECT_FALSE(cache_load(key, 13000));
  EXPECT_TRUE(cache_load(key, 0));
}

TEST_F(CacheTest, DropsDamagedEntries) {
  const std::string key = cache_key("text");
  cache_store(key, kSample, 13000, "source");
  const std::string good = contents(cache_ / key);
  std::vector<std::string> damaged = {"", good.substr(0, 20), good.substr(0, good.size() - 1), good + "x"};
  for (std::size_t at = 0; at < good.size(); ++at) {
    damaged.push_back(good);
    damaged.back()[at] ^= 1;
  }
  for (const std::string& bytes : damaged) {
    std::ofstream(cache_ / key, std::ios::binary) << bytes;
    testing::internal::CaptureStderr();
    EXPECT_FALSE(cache_load(key, 13000));
    EXPECT_NE(testing::internal::GetCapturedStderr().find("damaged entry"), std::string::npos);
    EXPECT_FALSE(fs::exists(cache_ / key));
  }
}

TEST_F(CacheTest, IsPrivate) {
  cache_store(cache_key("a"), kSample, 13000, "source");
  struct stat info;
  ASSERT_EQ(stat(cache_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  ASSERT_EQ(chmod(cache_.c_str(), 0777), 0);
  testing::internal::CaptureStderr();
  EXPECT_FALSE(cache_load(cache_key("a"), 13000));
  cache_store(cache_key("b"), kSample, 13000, "source");
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(entries().size(), 1u);
  EXPECT_NE(said.find("can be written by others"), std::string::npos) << said;
  EXPECT_EQ(said.find("not cached"), said.rfind("not cached")) << "said more than once: " << said;
  EXPECT_NE(cache_state().problem.find("can be written by others"), std::string::npos);
}

// What others put into a cache that was open to them stays there when their rights are taken away.
TEST_F(CacheTest, EntriesOfOthersAreNotLoaded) {
  const std::string key = cache_key("a");
  const auto refused = [&](const std::string& why) {
    testing::internal::CaptureStderr();
    EXPECT_FALSE(cache_load(key, 13000));
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find(why), std::string::npos) << said;
    EXPECT_NE(said.find("delete it"), std::string::npos) << said;
  };
  const mode_t before = umask(0);
  cache_store(key, kSample, 13000, "source");
  umask(before);
  struct stat info;
  ASSERT_EQ(stat((cache_ / key).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u) << "whatever the umask leaves";
  for (const mode_t mode : {0620, 0602}) {
    ASSERT_EQ(chmod((cache_ / key).c_str(), mode), 0);
    refused("can be written by others");
    use(cache_.string() + "/.");  // another text, so it is said again
  }
  cache_store(key, kSample, 13000, "source");  // made anew, it is private
  EXPECT_TRUE(cache_load(key, 13000));
  if (geteuid() == 0) {
    ASSERT_EQ(chown((cache_ / key).c_str(), 12345, 12345), 0);
    refused("belongs to another user");
  }
}

TEST_F(CacheTest, WhatIsNoFileIsNotReadAndNotWaitedFor) {
  const std::string pipe = cache_key("pipe"), nested = cache_key("folder"), link = cache_key("link"), real = cache_key("real");
  cache_store(real, kSample, 13000, "source");
  ASSERT_EQ(mkfifo((cache_ / pipe).c_str(), 0600), 0);
  fs::create_directory(cache_ / nested);
  fs::create_symlink(cache_ / real, cache_ / link);
  testing::internal::CaptureStderr();
  for (const std::string& key : {pipe, nested, link}) EXPECT_FALSE(cache_load(key, 13000));
  for (const std::string& key : {pipe, nested, link}) cache_store(key, kSample, 13000, "source");
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("is not a file"), std::string::npos) << said;
  EXPECT_TRUE(cache_load(link, 13000)) << "a link is replaced";
  EXPECT_FALSE(fs::is_symlink(cache_ / link));
}

TEST_F(CacheTest, LengthsWhoseSumWrapsAreDamage) {
  const std::string key = cache_key("text");
  cache_store(key, kSample, 13000, "source");
  std::string bytes = contents(cache_ / key);
  constexpr std::size_t kChecksum = 8, kLengths = 16;  // where they stand
  std::uint64_t lengths[3];
  std::memcpy(lengths, bytes.data() + kLengths, sizeof lengths);
  lengths[0] += std::uint64_t(1) << 63, lengths[1] += std::uint64_t(1) << 63;
  std::memcpy(bytes.data() + kLengths, lengths, sizeof lengths);
  const std::uint64_t sum = XXH3_64bits(bytes.data() + kLengths, bytes.size() - kLengths);
  std::memcpy(bytes.data() + kChecksum, &sum, sizeof sum);
  std::ofstream(cache_ / key, std::ios::binary) << bytes;
  testing::internal::CaptureStderr();
  EXPECT_FALSE(cache_load(key, 13000));
  EXPECT_NE(testing::internal::GetCapturedStderr().find("damaged entry"), std::string::npos);
}

TEST_F(CacheTest, AFolderThatCannotBeMadeCostsAWarning) {
  use(folder_.write("file", "") / "cache");
  testing::internal::CaptureStderr();
  cache_store(cache_key("a"), kSample, 13000, "source");
  cache_store(cache_key("b"), kSample, 13000, "source");
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("not cached"), std::string::npos);
  EXPECT_EQ(said.find("not cached"), said.rfind("not cached")) << said;
  EXPECT_FALSE(cache_load(cache_key("a"), 13000));
}

TEST_F(CacheTest, AFolderOfAnotherUserIsNotUsed) {
  if (geteuid() == 0) {
    fs::create_directory(cache_);
    ASSERT_EQ(chown(cache_.c_str(), 12345, 12345), 0);
  } else {
    use("/usr");
  }
  testing::internal::CaptureStderr();
  cache_store(cache_key("a"), kSample, 13000, "source");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("belongs to another user"), std::string::npos);
  EXPECT_FALSE(fs::exists(cache_ / cache_key("a")));
}

TEST_F(CacheTest, AFolderThatCannotBeWrittenIsStillRead) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  cache_store(cache_key("a"), kSample, 13000, "source");
  ASSERT_EQ(chmod(cache_.c_str(), 0500), 0);
  testing::internal::CaptureStderr();
  cache_store(cache_key("b"), kSample, 13000, "source");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("cannot be written"), std::string::npos);
  EXPECT_TRUE(cache_load(cache_key("a"), 13000));
  chmod(cache_.c_str(), 0700);
}

TEST_F(CacheTest, ProcessesShareIt) {
  const std::string key = cache_key("shared");
  Compiled large = kSample;
  large.cubin.assign(1 << 20, 'x');
  std::vector<pid_t> writers;
  for (int w = 0; w < 4; ++w) {
    writers.push_back(fork());
    ASSERT_GE(writers.back(), 0);
    if (writers.back() != 0) continue;
    for (int i = 0; i < 20; ++i) cache_store(key, large, 13000, "source");
    _exit(0);
  }
  testing::internal::CaptureStderr();
  while (!writers.empty()) {
    const auto entry = cache_load(key, 13000);
    EXPECT_TRUE(!entry || entry->cubin == large.cubin);
    std::erase_if(writers, [](pid_t writer) { return waitpid(writer, nullptr, WNOHANG) == writer; });
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "half an entry was read";
  EXPECT_EQ(std::distance(fs::directory_iterator(cache_), {}), 2) << "temporary files are left";
}

TEST_F(CacheTest, StateCountsEntriesAndBytes) {
  EXPECT_EQ(cache_state().entries, 0);
  EXPECT_EQ(cache_state().problem, "");
  cache_store(cache_key("a"), kSample, 13000, "source");
  cache_store(cache_key("b"), kSample, 13000, "source");
  const CacheState state = cache_state();
  EXPECT_EQ(state.folder, cache_.string());
  EXPECT_EQ(state.entries, 2);
  EXPECT_EQ(state.bytes, std::int64_t(2 * (fs::file_size(entries()[0]) + 6)));
}

// ---- the compiler -----------------------------------------------------------------------------------------------------------

TEST_F(CompilerTest, CompilesForEveryTarget) {
  std::vector<CompileJob> jobs;
  for (const char* target : {"sm_80", "sm_90a", "sm_100", "sm_120"}) jobs.push_back({"scale", scale_text(3), target});
  if (nvrtc_version() < 12080) jobs.resize(2);
  int calls = 0, of = 0;
  const auto compiled = compile_all(jobs, [&](int done, int all) {
    EXPECT_EQ(done, ++calls);
    of = all;
  });
  EXPECT_EQ(calls, int(jobs.size()));
  EXPECT_EQ(of, int(jobs.size()));
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    SCOPED_TRACE(jobs[j].target + "\n" + compiled[j].log);
    EXPECT_EQ(compiled[j].cubin.substr(1, 3), "ELF");
    EXPECT_EQ(compiled[j].ptx, "");
    EXPECT_GT(compiled[j].registers, 4);
    EXPECT_LT(compiled[j].registers, 64);
    EXPECT_EQ(compiled[j].shared_bytes % 1024, 32);  // later devices reserve 1024 bytes
    EXPECT_EQ(compiled[j].spill_bytes, 0);
    EXPECT_EQ(compiled[j].stack_bytes, 0);
    EXPECT_GT(compiled[j].constant_bytes, 20);
    EXPECT_GT(compiled[j].seconds, 0);
    EXPECT_FALSE(compiled[j].cached);
    EXPECT_EQ(compiled[j].log.find("Compile time"), std::string::npos);
  }
}

TEST_F(CompilerTest, ASecondTimeComesFromTheCache) {
  const Compiled cold = compile("scale", scale_text(3), "sm_80");
  const Compiled warm = compile("scale", scale_text(3), "sm_80");
  EXPECT_FALSE(cold.cached);
  EXPECT_TRUE(warm.cached);
  EXPECT_EQ(warm.cubin, cold.cubin);
  EXPECT_EQ(warm.log, cold.log);
  EXPECT_EQ(warm.registers, cold.registers);
  EXPECT_EQ(warm.seconds, cold.seconds);
  EXPECT_FALSE(compile("scale", scale_text(4), "sm_80").cached);
  EXPECT_FALSE(compile("scale", scale_text(3), "sm_90a").cached);
  EXPECT_EQ(entries().size(), 3u);
  EXPECT_EQ(contents(entries()[0].string() + ".cu").substr(0, 20), scale_text(3).substr(0, 20));
}

TEST_F(CompilerTest, TheSameTextGivesTheSameBytes) {
  const Compiled one = compile("scale", scale_text(3), "sm_90a", true);
  use(folder_.path() / "another");
  const Compiled two = compile("scale", scale_text(3), "sm_90a", true);
  EXPECT_FALSE(two.cached);
  EXPECT_EQ(one.cubin, two.cubin);
  EXPECT_EQ(one.ptx, two.ptx);
  EXPECT_EQ(one.log, two.log);
}

TEST_F(CompilerTest, PtxWhereItIsWanted) {
  const Compiled alone = compile("scale", scale_text(3), "compute_80");
  EXPECT_EQ(alone.cubin, "");
  EXPECT_NE(alone.ptx.find(".target sm_80"), std::string::npos);
  EXPECT_NE(alone.ptx.find(".entry scale("), std::string::npos);
  compile("scale", scale_text(3), "sm_80");
  const Compiled both = compile("scale", scale_text(3), "sm_80", true);
  EXPECT_FALSE(both.cached) << "the entry has no PTX";
  EXPECT_NE(both.ptx.find(".entry scale("), std::string::npos);
  EXPECT_TRUE(compile("scale", scale_text(3), "sm_80", true).cached);
  EXPECT_TRUE(compile("scale", scale_text(3), "sm_80").cached);
}

TEST_F(CompilerTest, EqualJobsAreCompiledOnce) {
  std::vector<CompileJob> jobs;
  for (int j = 0; j < 6; ++j) jobs.push_back({"scale", scale_text(j % 2), "sm_80"});
  int compilations = 0;
  const auto compiled = compile_all(jobs, [&](int, int) { ++compilations; });
  EXPECT_EQ(compilations, 2);
  for (std::size_t j = 0; j < jobs.size(); ++j) EXPECT_EQ(compiled[j].cubin, compiled[j % 2].cubin);
  EXPECT_NE(compiled[0].cubin, compiled[1].cubin);
  compile_all(jobs, [&](int, int) { ADD_FAILURE() << "nothing is cold"; });
}

TEST_F(CompilerTest, ADamagedEntryIsMadeAgain) {
  const Compiled good = compile("scale", scale_text(3), "sm_80");
  fs::resize_file(entries()[0], 100);
  testing::internal::CaptureStderr();
  const Compiled again = compile("scale", scale_text(3), "sm_80");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("damaged entry"), std::string::npos);
  EXPECT_FALSE(again.cached);
  EXPECT_EQ(again.cubin, good.cubin);
  EXPECT_TRUE(compile("scale", scale_text(3), "sm_80").cached);
}

TEST_F(CompilerTest, AMistakeShowsTheLog) {
  const std::string text = "extern \"C\" __global__ void broken(float* y) {\n  float x = 1.0f;\n  y[0] = x + nothing;\n}\n";
  expect_error(ErrorKind::device,
               {"kernel broken does not compile for sm_80", "broken.cu(3): error", "identifier \"nothing\" is undefined",
                "      2    float x = 1.0f;\n>     3    y[0] = x + nothing;\n      4  }"},
               [&] { compile("broken", text, "sm_80"); });
  EXPECT_FALSE(fs::exists(cache_));
  expect_error(ErrorKind::device, {"kernel scale does not compile for sm_7"}, [] { compile("scale", scale_text(1), "sm_7"); });
}

TEST_F(CompilerTest, SpillsAreCounted) {
  const std::string text =
      "extern \"C\" __global__ void __maxnreg__(16) spill(const float* x, float* y) {\n"
      "  float v[48], s = 0;\n"
      "#pragma unroll\n"
      "  for (int i = 0; i < 48; ++i) v[i] = x[i * 64 + threadIdx.x];\n"
      "  __syncthreads();\n"
      "#pragma unroll\n"
      "  for (int i = 0; i < 48; ++i) s = s * v[47 - i] + v[i];\n"
      "  y[threadIdx.x] = s;\n"
      "}\n";
  if (nvrtc_version() < 12040) GTEST_SKIP() << "NVRTC does not know __maxnreg__";
  const Compiled compiled = compile("spill", text, "sm_80");
  EXPECT_LE(compiled.registers, 24) << compiled.log;
  EXPECT_GT(compiled.spill_bytes, 0) << compiled.log;
  EXPECT_GT(compiled.stack_bytes, 0) << compiled.log;
}

TEST_F(CompilerTest, LogsOnDemand) {
  compiler_log() = {.cache = true, .source = true};
  testing::internal::CaptureStderr();
  compile("scale", scale_text(3), "sm_80");
  compile("scale", scale_text(3), "sm_80");
  const std::string said = testing::internal::GetCapturedStderr();
  compiler_log() = {};
  for (const char* words :
       {"cache miss  scale for sm_80", "---- scale for sm_80", "3.0f * x[i]", "compiled    scale", "cache hit   scale"})
    EXPECT_NE(said.find(words), std::string::npos) << words << " in\n" << said;
}

TEST(CompilerLogTest, IsSetByWEFT_LOG) {
  setenv("WEFT_LOG", "cache,source", 1);
  read_settings();
  EXPECT_TRUE(compiler_log().cache && compiler_log().source);
  unsetenv("WEFT_LOG");
  read_settings();
  EXPECT_FALSE(compiler_log().cache || compiler_log().source);
}

TEST_F(CompilerTest, TheTargetOfADeviceIsKnownToNvrtc) {
  EXPECT_EQ(target_of(8, 0), "sm_80");
  EXPECT_EQ(target_of(9, 0), "sm_90a");
  testing::internal::CaptureStderr();
  const std::string future = target_of(99, 0);
  target_of(99, 0);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_TRUE(future.starts_with("compute_")) << future;
  EXPECT_NE(said.find("older than the device"), std::string::npos);
  EXPECT_EQ(said.find("older"), said.rfind("older")) << said;
}

TEST(TargetTest, IsExactOrTheNearest) {
  const std::vector<int> old = {75, 80, 86, 89, 90}, recent = {75, 80, 86, 89, 90, 100, 103, 120};
  EXPECT_EQ(target_among(8, 0, recent), "sm_80");
  EXPECT_EQ(target_among(8, 9, recent), "sm_89");
  EXPECT_EQ(target_among(9, 0, old), "sm_90a");
  EXPECT_EQ(target_among(10, 0, recent), "sm_100a");
  EXPECT_EQ(target_among(12, 0, recent), "sm_120a");
  EXPECT_EQ(target_among(12, 1, recent), "sm_120");
  EXPECT_EQ(target_among(8, 7, recent), "sm_86");
  EXPECT_EQ(target_among(10, 0, old), "compute_90");
  EXPECT_EQ(target_among(13, 0, recent), "compute_120");
  expect_error(ErrorKind::device, {"7.5", "8.0 or later"}, [&] { target_among(7, 5, recent); });
  expect_error(ErrorKind::device, {"no architecture", "90, 100"}, [&] { target_among(8, 0, std::vector<int>{90, 100}); });
}

}  // namespace
}  // namespace weft
