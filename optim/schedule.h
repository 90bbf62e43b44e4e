// Learning rates by step s = 0, 1, ...
#pragma once

#include <cstdint>

namespace weft {

struct WarmupCosineOptions {
  double peak = 3e-4;
  std::int64_t warmup = 0;  // steps
  std::int64_t steps = 1;   // in all, warm-up included
  double min = 0;           // from `steps` on
  int warmup_offset = 0;    // 1: the first step has peak / warmup instead of 0
};

// Linear warm-up, peak (s + warmup_offset) / warmup while s < warmup; then half a cosine (arXiv:1608.03983):
// min + (peak - min)/2 (1 + cos(pi min(1, (s - warmup) / (steps - warmup)))).
class WarmupCosine {
 public:
  explicit WarmupCosine(WarmupCosineOptions options);
  double operator()(std::int64_t step) const;

 private:
  WarmupCosineOptions options_;
};

class ConstantRate {
 public:
  explicit ConstantRate(double rate) : rate_(rate) {}
  double operator()(std::int64_t) const { return rate_; }

 private:
  double rate_;
};

}  // namespace weft
