#include "jit/emulator/counters.h"

#include <numeric>

namespace weft {
namespace {

// The numbers that are not of a class, in the order of their declaration.
template <class C, class F>
void each_sum(C& c, F f) {
  f("launches", c.launches);
  f("global_read", c.global_read), f("global_written", c.global_written);
  f("shared_read", c.shared_read), f("shared_written", c.shared_written);
  f("local_read", c.local_read), f("local_written", c.local_written);
  f("global_requests", c.global_requests), f("global_sectors", c.global_sectors);
  f("shared_wavefronts", c.shared_wavefronts), f("bank_conflicts", c.bank_conflicts);
}

}  // namespace

std::uint64_t EmulatedCounters::warps() const {
  return std::accumulate(warp_instructions.begin(), warp_instructions.end(), std::uint64_t{0});
}
std::uint64_t EmulatedCounters::threads() const {
  return std::accumulate(thread_instructions.begin(), thread_instructions.end(), std::uint64_t{0});
}

void EmulatedCounters::add(const EmulatedCounters& more) {
  std::vector<std::uint64_t> sums;
  each_sum(more, [&](const char*, std::uint64_t n) { sums.push_back(n); });
  std::size_t k = 0;
  each_sum(*this, [&](const char*, std::uint64_t& n) { n += sums[k++]; });
  for (std::size_t c = 0; c < classes; ++c) {
    warp_instructions[c] += more.warp_instructions[c];
    thread_instructions[c] += more.thread_instructions[c];
  }
}

std::vector<std::pair<std::string, std::uint64_t>> EmulatedCounters::named() const {
  std::vector<std::pair<std::string, std::uint64_t>> all;
  each_sum(*this, [&](const char* name, std::uint64_t n) { all.emplace_back(name, n); });
  for (std::size_t c = 0; c < classes; ++c) {
    all.emplace_back("warp_instructions." + std::string(kClassNames[c]), warp_instructions[c]);
    all.emplace_back("thread_instructions." + std::string(kClassNames[c]), thread_instructions[c]);
  }
  return all;
}

}  // namespace weft
