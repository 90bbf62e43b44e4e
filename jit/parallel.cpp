#include "jit/parallel.h"

#include <omp.h>

#include <atomic>
#include <exception>
#include <string>

#include "jit/error.h"

namespace weft {

int threads() { return omp_get_max_threads(); }

void set_threads(int n) {
  if (n < 1) fail(ErrorKind::usage, "set_threads: at least one thread is needed", "n = " + std::to_string(n));
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
#pragma omp parallel for schedule(dynamic, 1)
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
