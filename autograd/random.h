// Stateless randomness: Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (seed, site)
// and counter (tick, element). The site is the place of the call in the model, so a value that is computed again draws the same
// numbers again.
#pragma once

#include <cstdint>

#include "autograd/tape.h"

namespace weft {

// A generator: a seed, and a tick that advances once per run that draws. Training and generation have one each.
class Rng {
 public:
  explicit Rng(std::uint64_t seed = 0) : seed_(seed) {}
  std::uint64_t seed() const { return seed_; }
  std::uint64_t tick() const { return tick_; }
  void set(std::uint64_t seed, std::uint64_t tick) { seed_ = seed, tick_ = tick; }

 private:
  std::uint64_t seed_, tick_ = 0;
};

// The generator in use on this thread; the default one has seed 0.
Rng& rng();
void seed(std::uint64_t value);  // of the generator in use; its tick returns to 0

// While alive, `rng` is the generator in use.
class UseRng {
 public:
  explicit UseRng(Rng& rng);
  ~UseRng();
  UseRng(const UseRng&) = delete;
  UseRng& operator=(const UseRng&) = delete;

 private:
  Rng* before_;
};

// Three constants of a node that draws: the raw bits of seed, tick and site (the module path and the ordinal in it).
struct Draw {
  double constants[3];
};
Draw next_draw();

}  // namespace weft
