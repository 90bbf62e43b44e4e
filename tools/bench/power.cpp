#include "tools/bench/power.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "autograd/run.h"
#include "jit/gpu.h"
#include "tools/bench/time.h"

namespace weft {
namespace {

// As nvml.h declares them.
using NvmlDevice = struct NvmlDeviceHandle*;
constexpr int kNvmlSuccess = 0;
constexpr int kNvmlClockSm = 1;
constexpr unsigned long long kNvmlPowerCap = 0x4;  // nvmlClocksThrottleReasonSwPowerCap
constexpr const char* kNvmlFile = "libnvidia-ml.so.1";

struct Nvml {
  int (*init)() = nullptr;
  int (*device_by_bus_id)(const char* id, NvmlDevice* device) = nullptr;
  int (*clock)(NvmlDevice device, int type, unsigned* mhz) = nullptr;
  int (*power)(NvmlDevice device, unsigned* milliwatts) = nullptr;
  int (*reasons)(NvmlDevice device, unsigned long long* bits) = nullptr;
  std::string missing;  // "": it is there and has started
};

const Nvml& nvml() {
  static const Nvml loaded = [] {
    Nvml n;
    void* library = dlopen(kNvmlFile, RTLD_NOW | RTLD_LOCAL);  // stays open
    if (!library) {
      n.missing = fmt::format("{} is not there", kNvmlFile);
      return n;
    }
    const auto find = [&]<class F>(F& function, const char* name) {
      function = reinterpret_cast<F>(dlsym(library, name));
      if (!function) n.missing = fmt::format("{} has no {}", kNvmlFile, name);
    };
    find(n.init, "nvmlInit_v2");
    find(n.device_by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2");
    find(n.clock, "nvmlDeviceGetClockInfo");
    find(n.power, "nvmlDeviceGetPowerUsage");
    find(n.reasons, "nvmlDeviceGetCurrentClocksThrottleReasons");
    if (n.missing.empty())
      if (const int error = n.init(); error != kNvmlSuccess) n.missing = fmt::format("NVML does not start: error {}", error);
    return n;
  }();
  return loaded;
}

// The GPU in use; null, and the reason in `missing`, if NVML does not know it.
NvmlDevice device_in_use(std::string& missing) {
  if (!is_gpu(device()) || Gpu::of(device()).emulated()) {
    missing = "the device is no GPU";
    return nullptr;
  }
  NvmlDevice found = nullptr;
  if (missing = nvml().missing; !missing.empty()) return nullptr;
  const std::string id = Gpu::of(device()).bus_id();
  if (const int error = nvml().device_by_bus_id(id.c_str(), &found); error != kNvmlSuccess) {
    missing = fmt::format("NVML does not know the device {}: error {}", id, error);
    return nullptr;
  }
  return found;
}

// What cannot be told is 0.
PowerSample sample_of(NvmlDevice device) {
  const Nvml& n = nvml();
  unsigned mhz = 0, milliwatts = 0;
  unsigned long long bits = 0;
  if (n.clock(device, kNvmlClockSm, &mhz) != kNvmlSuccess) mhz = 0;
  if (n.power(device, &milliwatts) != kNvmlSuccess) milliwatts = 0;
  if (n.reasons(device, &bits) != kNvmlSuccess) bits = 0;
  return {double(mhz), double(milliwatts) / 1e3, (bits & kNvmlPowerCap) != 0};
}

}  // namespace

std::optional<PowerUse> summary(const std::vector<PowerSample>& samples) {
  if (samples.empty()) return {};
  PowerUse use;
  std::vector<double> clocks;
  for (const PowerSample& s : samples) {
    clocks.push_back(s.mhz);
    use.watts += s.watts / double(samples.size());
    use.capped += s.capped ? 1 / double(samples.size()) : 0;
  }
  use.mhz = median(clocks), use.least_mhz = *std::min_element(clocks.begin(), clocks.end());
  return use;
}

struct PowerMeter::Impl {
  explicit Impl(NvmlDevice d) : device(d), thread([this] { watch(); }) {}
  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      done = true;
    }
    signal.notify_one();
    thread.join();
  }

  void watch() {
    std::unique_lock lock(mutex);
    while (!signal.wait_for(lock, std::chrono::milliseconds(100), [this] { return done; }))
      samples.push_back(sample_of(device));
  }

  NvmlDevice device;
  std::mutex mutex = {};
  std::condition_variable signal = {};
  bool done = false;
  std::vector<PowerSample> samples = {};
  std::thread thread;  // last: it uses the others
};

PowerMeter::PowerMeter() {
  std::string missing;
  if (NvmlDevice found = device_in_use(missing)) impl_ = std::make_unique<Impl>(found);
}
PowerMeter::~PowerMeter() = default;

std::optional<PowerUse> PowerMeter::stop() {
  if (!impl_) return {};
  const std::lock_guard lock(impl_->mutex);
  return summary(std::exchange(impl_->samples, {}));
}

std::optional<std::string> PowerMeter::missing() {
  std::string missing;
  if (device_in_use(missing)) return {};
  return missing;
}

}  // namespace weft
