// Threads. Work is cut by shape alone, never by the number of threads, so results do not depend on it.
#pragma once

#include <cstdint>
#include <functional>

namespace weft {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }  // a >= 0, b > 0

int threads();            // OpenMP's maximum, OMP_NUM_THREADS
void set_threads(int n);  // n >= 1

// f(part) for part in [0, parts), on all threads, in unspecified order; the first exception is rethrown.
// Serial when parts == 1 or when already inside a parallel region.
void parallel(std::int64_t parts, const std::function<void(std::int64_t)>& f);

}  // namespace weft
