#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "jit/error.h"

namespace weft {

WarmupCosine::WarmupCosine(WarmupCosineOptions options) : options_(options) {
  if (options_.warmup < 0 || options_.steps < 1)
    fail(ErrorKind::usage, "WarmupCosine: warmup may not be negative and steps must be positive",
         "warmup " + std::to_string(options_.warmup) + ", steps " + std::to_string(options_.steps));
}

double WarmupCosine::operator()(std::int64_t s) const {
  const WarmupCosineOptions& o = options_;
  if (s < o.warmup) return o.peak * double(s + o.warmup_offset) / double(o.warmup);
  const double length = double(std::max<std::int64_t>(o.steps - o.warmup, 1));
  const double part = std::min(1.0, double(s - o.warmup) / length);
  return o.min + (o.peak - o.min) / 2 * (1 + std::cos(std::numbers::pi * part));
}

}  // namespace weft
