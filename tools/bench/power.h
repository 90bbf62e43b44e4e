// The clock and the power of the GPU while something runs, as NVML says, the management library that comes with the driver. It
// is opened at run time; where it is missing nothing is measured.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace weft {

struct PowerSample {
  double mhz = 0;       // clock of the multiprocessors
  double watts = 0;     // of the whole board
  bool capped = false;  // the clock is held back by the limit of the power
};

struct PowerUse {
  double mhz = 0, least_mhz = 0;  // median, and the lowest
  double watts = 0;               // mean
  double capped = 0;              // share of the samples
};
std::optional<PowerUse> summary(const std::vector<PowerSample>& samples);  // nothing: there are none

// Takes a sample ten times a second on a thread of its own while it lives.
class PowerMeter {
 public:
  PowerMeter();  // of the GPU in use
  ~PowerMeter();
  PowerMeter(const PowerMeter&) = delete;
  PowerMeter& operator=(const PowerMeter&) = delete;
  std::optional<PowerUse> stop();  // since it was made, or since the last stop

  // Why there are no samples of the device in use, in one line; nothing: there are.
  static std::optional<std::string> missing();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;  // null: there is nothing to ask
};

}  // namespace weft
