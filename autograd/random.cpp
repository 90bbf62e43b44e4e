#include "autograd/random.h"

#include <algorithm>
#include <bit>

#include <xxhash.h>

#include "autograd/tape.h"

namespace weft {
namespace {

Rng*& in_use() {
  thread_local Rng own;
  thread_local Rng* rng = &own;
  return rng;
}

}  // namespace

Rng& rng() { return *in_use(); }
void seed(std::uint64_t value) { rng().set(value, 0); }

UseRng::UseRng(Rng& r) : before_(&rng()) { in_use() = &r; }
UseRng::~UseRng() { in_use() = before_; }

Draw next_draw() {
  Tape& t = tape();
  Rng& r = rng();
  if (std::find(t.draws.begin(), t.draws.end(), &r) == t.draws.end()) t.draws.push_back(&r);
  // The site: the module path and the ordinal of the draw in all calls of it, so that a module called twice draws twice.
  std::uint64_t path = 0;
  std::uint32_t ordinal;
  if (t.frame >= 0) {
    const std::string& p = *t.frames[t.frame].path;
    path = XXH3_64bits(p.data(), p.size());
    ordinal = 0;
    for (const Frame& f : t.frames)
      if (f.path == t.frames[t.frame].path) ordinal += f.draws;
    ++t.frames[t.frame].draws;
  } else {
    ordinal = t.root_draws++;
  }
  const std::uint64_t site = XXH3_64bits_withSeed(&ordinal, sizeof ordinal, path);
  return {{std::bit_cast<double>(r.seed()), std::bit_cast<double>(r.tick()), std::bit_cast<double>(site)}};
}

}  // namespace weft
