#include "tools/bench/run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "autograd/run.h"
#include "jit/emulator/device.h"
#include "jit/error.h"
#include "jit/gpu.h"
#include "jit/json.h"
#include "jit/print.h"
#include "tools/bench/cases.h"
#include "tools/bench/host.h"
#include "tools/bench/mamba2_block.h"
#include "tools/bench/power.h"
#include "tools/bench/report.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool is_machine_group(const std::string& group) { return group == "interpreter" || group == "emulator" || group == "host"; }
bool prints_itself(const std::string& group) { return is_machine_group(group) || group == "mamba2block"; }

// Ends the process when a row neither finishes nor fails: a kernel that never ends cannot be interrupted.
class Watchdog {
 public:
  Watchdog(double seconds, std::function<void()> last_words)
      : thread_([this, seconds, last_words = std::move(last_words)] {
          std::unique_lock lock(mutex_);
          if (done_signal_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return done_; })) return;
          last_words();
          std::_Exit(1);
        }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    done_signal_.notify_one();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable done_signal_;
  bool done_ = false;
  std::thread thread_;  // last: it uses the others
};

// The device, and the rate of its special-function units: 16 a clock and multiprocessor (compute capability 8 and 9).
void describe_device(BenchReport& report) {
  const std::time_t now = std::time(nullptr);
  if (!is_gpu(device())) {
    report.meta = {{"device", std::string(name_of(device()))}};
  } else {
    const Gpu& gpu = Gpu::of(device());
    const Driver& driver = gpu.emulated() ? emulated_driver() : cuda_driver();
    cu::CUdevice handle = 0;
    cuda_check(driver, driver.cuDeviceGet(&handle, 0), "cuDeviceGet");
    auto attribute = [&](cu::CUdevice_attribute which) {
      int value = 0;
      return driver.cuDeviceGetAttribute(&value, which, handle) == cu::CUDA_SUCCESS ? value : 0;
    };
    const int khz = attribute(cu::CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
    report.meta = {{"device", gpu.name()},
                   {"target", gpu.architecture()},
                   {"sms", gpu.multiprocessors()},
                   {"l2_bytes", attribute(cu::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)},
                   {"memory_gb", std::round(double(gpu.total_memory()) / double(1 << 30) * 10) / 10},
                   {"clock_mhz", khz / 1000}};
    report.ceilings["sfu_gops"] = std::round(double(gpu.multiprocessors()) * 16 * khz / 1e5) / 10;
  }
  char date[16] = {};
  std::strftime(date, sizeof date, "%Y-%m-%d", std::localtime(&now));
  report.meta["when"] = date;
}

class Bench {
 public:
  explicit Bench(const BenchOptions& options) : options_(options), report_(options.json) {
    limits_.budget_ms = options.budget_ms / (options.quick ? 5 : 1);
    limits_.row_s = options.row_timeout;
    limits_.step_s = options.smoke ? 0 : options.step_seconds / (options.quick ? 5 : 1);
    describe_device(report_);
  }

  void run_group(const std::string& group) {
    const auto start = Clock::now();
    if (group == "interpreter")
      bench_interpreter();
    else if (group == "emulator")
      bench_emulator();
    else if (group == "host")
      bench_host();
    else if (group == "mamba2block")
      bench_mamba2_block(options_.smoke);
    else if (group == "ceilings")
      run_ceilings();
    else
      run_cases(group);
    print("# {}: {:.1f} s\n", group, seconds_since(start));
  }

  void finish() {
    report_.save();
    if (!options_.against.empty()) report_.print_against(options_.against);
  }

 private:
  // Absent, with a row that says why, if it fails or comes too late.
  std::optional<Measured> measure(const BenchCase& c) {
    auto note = [&](const std::string& text) {
      RowName name = c.rows.front().name;
      name.phase = "-";
      report_.add_note(name, text);
    };
    if (seconds_since(start_) > options_.deadline) return note("skipped: past the deadline"), std::nullopt;
    if (c.for_gpu && !options_.smoke && !is_gpu(device()))
      return note("skipped: it is for a GPU; --smoke measures a small one"), std::nullopt;
    const double patience = limits_.row_s * 1.5 + 20 + limits_.step_s;
    const Watchdog watchdog(patience, [&] { note(fmt::format("failed: stuck past {:.0f} s; the run ends here", patience)); });
    try {
      return c.measure(limits_);
    } catch (const std::exception& e) {
      const std::string what = e.what();
      note("failed: " + what.substr(0, what.find('\n')));
    }
    return std::nullopt;
  }

  void add(const BenchCase& c, const Measured& measured) {
    for (std::size_t i = 0; i < c.rows.size(); ++i) {
      BenchJson extra = i + 1 == c.rows.size() && measured.extra.is_object() ? measured.extra : BenchJson::object();
      if (!c.rows[i].note.empty()) extra["note"] = c.rows[i].note;
      const bool last = i + 1 == c.rows.size();
      report_.add(c.rows[i].name, measured.ms[i], last ? measured.work.value_or(c.rows[i].work) : c.rows[i].work, extra);
    }
  }

  void run_cases(const std::string& group) {
    if (group == "e2e")
      if (const auto missing = PowerMeter::missing()) print("# clock and power are not measured: {}\n", *missing);
    for (const BenchCase& c : bench_cases(group, options_.smoke))
      if (const auto measured = measure(c)) add(c, *measured);
  }

  // Their own rows have floors too, so all are measured before the first is reported.
  void run_ceilings() {
    std::vector<std::pair<BenchCase, Measured>> done;
    for (const BenchCase& c : bench_cases("ceilings", options_.smoke)) {
      const auto measured = measure(c);
      if (!measured) continue;
      const std::string& op = c.rows[0].name.op;
      const Work& work = c.rows[0].work;
      if (op == "copy") report_.ceilings["copy_gbps"] = std::round(work.bytes / measured->ms[0] / 1e5) / 10;
      if (op == "matmul bf16")
        report_.ceilings["bf16_tflops"] = std::max(1e-3, std::round(work.flops / measured->ms[0] / 1e8) / 10);
      done.emplace_back(c, *measured);
    }
    for (const auto& [c, measured] : done) add(c, measured);
  }

  const BenchOptions& options_;
  BenchReport report_;
  TimeLimits limits_;
  Clock::time_point start_ = Clock::now();
};

// In the order of the list; ceilings first if anything needs them.
std::vector<std::string> chosen_groups(const std::vector<std::string>& words) {
  const std::vector<std::string> all = all_bench_groups();
  std::vector<std::string> wanted;
  for (const std::string& word : words) {
    if (word == "all")
      wanted.insert(wanted.end(), all.begin(), all.end());
    else if (std::find(all.begin(), all.end(), word) != all.end())
      wanted.push_back(word);
    else
      fail(ErrorKind::usage, fmt::format("bench: no group '{}'{}", word, suggestion(word, all)),
           fmt::format("{}", fmt::join(all, ", ")));
  }
  if (words.empty())
    for (const std::string& group : all)
      if (is_machine_group(group) != is_gpu(device()) && group != "mamba2block") wanted.push_back(group);
  // On a CPU whole models are not worth the minutes that the ceilings take there.
  const auto has_floor = [](const std::string& g) {
    return !prints_itself(g) && (is_gpu(device()) || (g != "e2e" && g != "decode"));
  };
  const bool floors = std::any_of(wanted.begin(), wanted.end(), has_floor);
  std::vector<std::string> groups;
  for (const std::string& group : all)
    if (std::find(wanted.begin(), wanted.end(), group) != wanted.end() || (floors && group == "ceilings"))
      groups.push_back(group);
  return groups;
}

void list_rows(const std::vector<std::string>& groups, bool smoke) {
  for (const std::string& group : groups) {
    if (prints_itself(group)) {
      print("{}\n", group);
      continue;
    }
    for (const BenchCase& c : bench_cases(group, smoke))
      for (const BenchRow& row : c.rows)
        print("{:<9} {:<28} {:<22} {:<5} {}\n", group, row.name.op, row.name.shape, row.name.phase, row.name.impl);
  }
}

}  // namespace

std::vector<std::string> all_bench_groups() {
  std::vector<std::string> groups = {"interpreter", "emulator", "host", "mamba2block"};
  groups.insert(groups.end(), bench_groups().begin(), bench_groups().end());
  return groups;
}

void run_bench(const BenchOptions& options) {
  const std::vector<std::string> groups = chosen_groups(options.groups);
  if (options.list) return list_rows(options.groups.empty() ? all_bench_groups() : groups, options.smoke);
  if (device() == Device::emu && !options.smoke)
    fail(ErrorKind::usage, "bench: the emulated device is far too slow for these shapes", {},
         "add --smoke, or use --device cuda");
  for (const std::string& file : options.against) read_json(file);  // minutes before it is needed
  const auto start = Clock::now();
  Bench bench(options);
  for (const std::string& group : groups) bench.run_group(group);
  bench.finish();
  print("# {:.0f} s in all\n", seconds_since(start));
}

}  // namespace weft
