// What a thread runs plans with.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "autograd/plan.h"
#include "autograd/run.h"
#include "autograd/settings.h"

namespace weft {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Watched {
  std::weak_ptr<const Look> look;
  Device device;
  std::uint64_t seen;  // Gpu::notices() when it was looked at last
};

struct Context {
  std::optional<Device> device;     // its own; without one, that of the process
  std::optional<Target> recording;  // see recorded_target
  PlanCache plans;
  const Plan* last_plan = nullptr;  // owned by `plans`, where it is the most recent
  RunStats stats;
  std::vector<Watched> watched;
};

inline Context& context() {  // of this thread
  thread_local Context c;
  return c;
}

}  // namespace weft
