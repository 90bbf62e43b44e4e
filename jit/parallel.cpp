#include "jit/parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <string>

#include "jit/error.h"
#include "jit/sizes.h"
#include "jit/start.h"

namespace weft {
namespace {

// A thread that waits for the others of a loop spins unless told otherwise, which on a busy machine takes the processor from
// the very thread that it waits for. LLVM's OpenMP reads its environment at its first loop, and so finds this; GNU's when it is
// loaded (jit/start.cpp).
[[gnu::constructor]] void wait_passively() {
  put_back_environment();
  if (!std::getenv("KMP_BLOCKTIME") && !std::getenv("KMP_LIBRARY")) setenv("OMP_WAIT_POLICY", "passive", 0);
}

}  // namespace

int threads() { return std::min(omp_get_max_threads(), kMostThreads); }

void set_threads(int n) {
  if (n < 1 || n > kMostThreads)
    fail(ErrorKind::usage, "set_threads: at least one thread is needed, and at most " + std::to_string(kMostThreads),
         "n = " + std::to_string(n));
  omp_set_num_threads(n);
}

void parallel(std::int64_t parts, const std::function<void(std::int64_t)>& f) {
  if (parts <= 1 || threads() == 1 || omp_in_parallel()) {
    for (std::int64_t part = 0; part < parts; ++part) f(part);
    return;
  }
  // An exception must not leave an OpenMP region. Parts not yet begun are skipped once there is one.
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads())
  for (std::int64_t part = 0; part < parts; ++part) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      f(part);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace weft
