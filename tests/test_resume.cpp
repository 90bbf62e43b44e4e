// The program's training is stopped by signals, kills and errors of the system at every call of a save, and goes on bit for
// bit.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "jit/file.h"
#include "jit/json.h"
#include "jit/parallel.h"
#include "nn/safetensors.h"
#include "tests/peak_memory.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/train/checkpoint.h"
#include "tools/train/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code;  // 128 + the signal, if one ended it
  std::string text;
};

class Resume : public testing::Test {
 protected:
  void SetUp() override {
    const char* program = std::getenv("WEFT_PROGRAM");
    if (!program || !*program) GTEST_SKIP() << "WEFT_PROGRAM is not set";
    program_ = program;
    folder_.write("text.txt", words_text(6000));
  }

  // A run of a tiny model. One thread, and no gnuplot, whose pictures take longer than the training.
  std::string train(const fs::path& run, const std::string& more) const {
    const char* device = std::getenv("WEFT_DEVICE");
    return "'" + program_ + "' train --device " + (device ? device : "cpu") + " --data '" + (folder_ / "text.txt").string() +
           "' --width 16 --layers 1 --state 4 --batch 2 --length 16 --sample 0 --eval-batches 1 --out '" + run.string() + "' " +
           more;
  }
  std::string resume(const fs::path& run) const { return "'" + program_ + "' train --resume '" + run.string() + "'"; }

  static std::vector<std::string> environment() {
    std::vector<std::string> variables = {"PATH=/nowhere", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"};
    for (const char* name : {"HOME", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "WEFT_CACHE"})
      if (const char* value = std::getenv(name)) variables.push_back(std::string(name) + "=" + value);
    return variables;
  }

  // A shell command, its output into a file of its own.
  pid_t start(const std::string& command, const fs::path& output) const {
    std::vector<std::string> variables = environment(), words = {"sh", "-c", "exec " + command};
    std::vector<char*> envp, argv;
    for (std::string& v : variables) envp.push_back(v.data());
    for (std::string& w : words) argv.push_back(w.data());
    envp.push_back(nullptr), argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child = 0;
    EXPECT_EQ(posix_spawn(&child, "/bin/sh", &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    return child;
  }
  Outcome finish(pid_t child, const fs::path& output) const {
    int status = 0;
    waitpid(child, &status, 0);
    return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), read_text(output)};
  }
  Outcome execute(const std::string& command) const {
    static std::atomic<int> counter = 0;
    const fs::path output = folder_ / ("output" + std::to_string(counter++));
    return finish(start(command, output), output);
  }

  static void expect_same(const fs::path& a, const fs::path& b) {
    for (const char* file : {"latest/model.safetensors", "latest/optimizer.safetensors"})
      EXPECT_EQ(read_text(a / file), read_text(b / file)) << b / file;
    const auto losses = [](const fs::path& run) {
      std::string text;
      for (nlohmann::json line : read_metrics(run).lines) {
        line.erase("time"), line.erase("tokens_per_second");
        text += line.dump() + "\n";
      }
      return text;
    };
    EXPECT_TRUE(losses(a) == losses(b)) << b << "\n" << losses(b).substr(0, 2000);
  }

  std::string program_;
  TempFolder folder_;
};
using SlowResume = Resume;

TEST_F(Resume, ASignalFinishesTheStepAndSaves) {
  const fs::path whole = folder_ / "whole", cut = folder_ / "cut";
  const std::string options = "--steps 400 --save-every 100 --eval-every 50";
  ASSERT_EQ(execute(train(whole, options)).code, 0);
  for (const int number : {SIGINT, SIGTERM}) {
    const fs::path output = folder_ / "output";
    const pid_t child = start(number == SIGINT ? train(cut, options) : resume(cut), output);
    while (read_text(output).find("\nstep ") == std::string::npos) usleep(1000);  // it trains
    kill(child, number);
    const Outcome outcome = finish(child, output);
    EXPECT_EQ(outcome.code, 128 + number) << outcome.text;
    EXPECT_NE(outcome.text.find("go on with: weft train --resume"), std::string::npos) << outcome.text;
  }
  const Outcome rest = execute(resume(cut));
  EXPECT_EQ(rest.code, 0) << rest.text;
  EXPECT_NE(rest.text.find("resumed after step"), std::string::npos) << rest.text;
  expect_same(whole, cut);
  const Outcome again = execute(train(cut, options));
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.text.find("holds a run already"), std::string::npos) << again.text;
}

TEST_F(Resume, GoesBackToAnOlderCheckpoint) {
  const fs::path whole = folder_ / "whole", other = folder_ / "other";
  const std::string options = "--steps 30 --save-every 10 --eval-every 5 --keep 0 --accumulate 2 --recompute";
  ASSERT_EQ(execute(train(whole, options)).code, 0);
  ASSERT_EQ(execute(train(other, options)).code, 0);
  const Outcome outcome = execute(resume(other / "checkpoints/step-10"));
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  expect_same(whole, other);
  const fs::path branch = folder_ / "branch";
  const Outcome branched = execute(resume(other / "checkpoints/step-20") + " --out '" + branch.string() + "' --steps 31");
  EXPECT_EQ(branched.code, 0) << branched.text;
  EXPECT_TRUE(fs::exists(branch / "checkpoints/step-31/state.json"));
  EXPECT_FALSE(fs::exists(other / "checkpoints/step-31"));
  const Outcome changed = execute(resume(other) + " --width 32");
  EXPECT_EQ(changed.code, 2);
  EXPECT_NE(changed.text.find("--width cannot change when a run is resumed: the run has 16, given is 32"), std::string::npos)
      << changed.text;
}

TEST_F(Resume, ReportsMemoryAndSpeedAsTheSystemDoes) {
  const char* named = std::getenv("WEFT_DEVICE");
  const std::string device = named ? named : "cpu";
  const int steps = device == "emu" ? 12 : 600;
  const auto now = [] { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); };
  const double begin = now();
  const pid_t child =
      start(train(folder_ / "run", "--eval-every 0 --save-every 0 --steps " + std::to_string(steps)), folder_ / "output");
  const fs::path summary = folder_ / "run/summary.json";
  std::size_t peak = 0;
  while (waitpid(child, nullptr, WNOHANG) == 0) {
    if (!fs::exists(summary)) peak = std::max(peak, peak_of(child));  // what libraries do at the exit, it cannot know
    usleep(500);
  }
  const double wall = now() - begin;
  const nlohmann::json said = read_json(summary);
  SCOPED_TRACE(read_text(folder_ / "output") + said.dump());
  EXPECT_NEAR(double(said.at("host_memory_bytes")), double(peak), 0.03 * double(peak));
  if (device == "cpu")
    EXPECT_EQ(said.at("memory_bytes"), said.at("host_memory_bytes"));
  else
    EXPECT_GT(said.at("memory_bytes"), 0);

  // Training is within the time that the process ran; the times of the lines say how fast it was, but for what a busy machine
  // does between a step's end and its line.
  EXPECT_LT(double(said.at("seconds")), wall);
  std::vector<double> times;
  for (const nlohmann::json& line : read_metrics(folder_ / "run").lines)
    if (line.contains("loss")) times.push_back(line.at("time"));
  ASSERT_EQ(times.size(), std::size_t(steps));
  EXPECT_TRUE(begin < times.front() && times.back() < begin + wall);
  const double speed =
      double(steps - 2) * 32 / (times.back() - times[1]);  // of 2 x 16 tokens; the first two steps plan and compile
  EXPECT_NEAR(double(said.at("tokens_per_second")), speed, 0.2 * speed);
}

TEST_F(SlowResume, KillsAtRandomMoments) {
  const char* device = std::getenv("WEFT_DEVICE");  // a start on a GPU takes longer
  const int wanted = device && std::string_view(device) == "cuda" ? 10 : 30;
  const fs::path whole = folder_ / "whole", output = folder_ / "output";
  const std::string options = "--steps 300 --save-every 7 --eval-every 20";
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(execute(train(whole, options)).code, 0);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::mt19937 random(5);
  int runs = 0, kills = 0;
  while (kills < wanted) {
    const fs::path run = folder_ / ("run" + std::to_string(runs++));
    pid_t child = start(train(run, options), output);
    for (;;) {
      std::this_thread::sleep_for(std::chrono::duration<double>(std::uniform_real_distribution(0.0, seconds)(random)));
      const bool over = waitpid(child, nullptr, WNOHANG) == child;
      if (over || kills == wanted) break;
      kill(child, SIGKILL);
      finish(child, output);
      ++kills;
      child = start(fs::exists(run / "checkpoints") ? resume(run) : train(run, options), output);
    }
    waitpid(child, nullptr, 0);  // an error if it is over already
    ASSERT_NE(read_text(output).find("saved: "), std::string::npos) << read_text(output);
    expect_same(whole, run);
  }
  std::printf("%d kills, %d runs; one takes %.1f s\n", kills, runs, seconds);
}

// A system call of the program's main thread: the n-th of its name.
struct Call {
  std::string name;
  int n;
  std::string line;
};

// Those that touch the run's folder. Of the writes that follow one another into one file only the first and last.
std::vector<Call> calls_of(const fs::path& log, const std::string& folder) {
  std::istringstream lines(read_text(log));
  std::map<std::string, int> counts;
  std::vector<Call> calls;
  for (std::string line; std::getline(lines, line);) {
    const auto open = line.find('(');
    if (open == std::string::npos) continue;
    const std::string name = line.substr(0, open);
    const int n = ++counts[name];
    if (line.find(folder) == std::string::npos) continue;
    const auto file = [](const std::string& l) { return l.substr(0, l.find('>')); };
    const std::size_t have = calls.size();
    if (name == "write" && have >= 2 && file(calls[have - 1].line) == file(line) && file(calls[have - 2].line) == file(line))
      calls.pop_back();
    calls.push_back({name, n, line});
  }
  return calls;
}

TEST_F(SlowResume, AFaultAtAnySystemCallOfASave) {
  const std::string strace = "/usr/bin/strace",
                    calls = "mkdir,openat,write,fsync,fchmod,rename,renameat2,symlink,unlink,unlinkat,rmdir";
  if (!fs::exists(strace) || execute(strace + " -o /dev/null /bin/true").code != 0)
    GTEST_SKIP() << "strace is missing or may not trace";
  const std::string options = "--steps 2 --save-every 1 --keep 1 --eval-every 0";
  const fs::path whole = folder_ / "whole", log = folder_ / "log";
  ASSERT_EQ(execute(strace + " -y -o '" + log.string() + "' -e trace=" + calls + " " + train(whole, options)).code, 0);
  const std::vector<Call> all = calls_of(log, whole.string());
  std::set<std::string> names;
  for (const Call& call : all) names.insert(call.name);
  for (const char* name : {"mkdir", "openat", "write", "fsync", "rename", "symlink", "unlinkat"})
    EXPECT_TRUE(names.contains(name)) << name;
  ASSERT_GT(all.size(), 100u);

  enum Fault { kKill, kError, kInterrupted, kFaults };
  std::atomic<int> killed = 0, refused = 0, retried = 0;
  parallel(std::int64_t(kFaults * all.size()), [&](std::int64_t i) {
    const Call& call = all[std::size_t(i / kFaults)];
    const fs::path run = folder_ / ("run" + std::to_string(i));
    const bool output = call.line.starts_with("write(1<"), kill = i % kFaults == kKill,
               interrupted = i % kFaults == kInterrupted;
    if (interrupted && (output || (call.name != "write" && call.name != "fsync"))) return;  // others do not wait
    const std::string fault = kill                   ? "signal=KILL"
                              : interrupted          ? "error=EINTR"
                              : call.name == "write" ? "error=ENOSPC"
                                                     : "error=EIO";
    const Outcome hurt = execute(strace + " -o /dev/null -e trace=" + call.name + " -e inject=" + call.name + ":" + fault +
                                 ":when=" + std::to_string(call.n) + " " + train(run, options));
    if (interrupted) {
      EXPECT_EQ(hurt.code, 0) << call.line << "\n" << hurt.text;
      if (hurt.code == 0) expect_same(whole, run);
      ++retried;
      return void(fs::remove_all(run));
    }
    // No error is passed over; one of the picture is no reason for the run to fail.
    const auto said = [&](const char* text) { return hurt.text.find(text) != std::string::npos; };
    const bool picture = said("no picture of the curve: cannot ");
    EXPECT_EQ(hurt.code, kill ? 128 + SIGKILL : picture ? 0 : 4) << call.line << "\n" << hurt.text;
    EXPECT_EQ(!kill, picture || said(output ? "weft: the output cannot be written" : "weft: cannot")) << call.line << "\n"
                                                                                                      << hurt.text;
    ++(kill ? killed : refused);
    const Outcome rest = execute(fs::exists(run / "checkpoints") ? resume(run) : train(run, options));
    EXPECT_EQ(rest.code, 0) << fault << " at " << call.line << "\n" << rest.text;
    if (rest.code == 0) expect_same(whole, run);
    fs::remove_all(run);
  });
  std::printf("%zu calls: %d kills, %d errors, %d interruptions\n", all.size(), killed.load(), refused.load(), retried.load());
}

}  // namespace
}  // namespace weft
