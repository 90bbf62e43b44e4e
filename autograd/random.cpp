#include "autograd/random.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>

#include "autograd/run.h"
#include "autograd/settings.h"
#include "autograd/tape.h"

namespace weft {
namespace {

// The seed of the process.
struct ProcessSeed {
  std::mutex mutex;
  std::uint64_t seed = 0;
  std::uint64_t threads = 0;            // that have a number
  std::atomic<std::uint64_t> calls{1};  // of seed() on the main thread
};
ProcessSeed& process_seed() {
  static ProcessSeed s;
  return s;
}

struct Generators {
  Rng own;
  Rng* in_use = &own;
  std::uint64_t call = 0;  // of ProcessSeed::calls, which `own` follows; kOwnSeed: none
};
constexpr std::uint64_t kOwnSeed = ~std::uint64_t(0);

Generators& generators() {
  thread_local Generators g;
  return g;
}

void follow_process(Generators& g) {
  ProcessSeed& process = process_seed();
  const std::lock_guard lock(process.mutex);
  const std::uint64_t number = on_main_thread() ? 0 : ++process.threads;
  g.own.set(number == 0 ? process.seed : XXH3_64bits_withSeed(&number, sizeof number, process.seed), 0);
  g.call = process.calls;
}

}  // namespace

Rng& rng() {
  Generators& g = generators();
  if (g.in_use == &g.own && g.call != kOwnSeed && g.call != process_seed().calls.load(std::memory_order_relaxed)) [[unlikely]]
    follow_process(g);
  return *g.in_use;
}

void seed(std::uint64_t value) {
  if (!recording()) flush();  // what is pending has drawn already, and its end is not to count as a run with this seed
  Tape& t = tape();
  t.root_draws = 0;
  for (Frame& f : t.frames) f.draws = 0;
  Generators& g = generators();
  if (g.in_use == &g.own && on_main_thread()) {
    ProcessSeed& process = process_seed();
    const std::lock_guard lock(process.mutex);
    process.seed = value;
    process.threads = 0;
    ++process.calls;
    return;
  }
  g.in_use->set(value, 0);
  if (g.in_use == &g.own) g.call = kOwnSeed;
}

UseRng::UseRng(Rng& r) : before_(&rng()) { generators().in_use = &r; }
UseRng::~UseRng() { generators().in_use = before_; }

namespace {
thread_local const BatchRows* batch_rows = nullptr;
}

BatchRows::BatchRows(std::int64_t first, std::int64_t rows) : first_(first), rows_(rows), before_(batch_rows) {
  batch_rows = this;
}
BatchRows::~BatchRows() { batch_rows = before_; }
const BatchRows* BatchRows::in_use() { return batch_rows; }

Draw next_draw() {
  Tape& t = tape();
  const Rng& r = rng();
  if (std::find(t.draws.begin(), t.draws.end(), r.ticker()) == t.draws.end()) t.draws.push_back(r.ticker());
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
