// Values on the host in double, and what golden vectors are computed from.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace weft {

using Values = std::vector<double>;

// The inputs of golden vectors: sin(0.37 (i + 1) + k) for i in [0, n).
inline Values gen(std::size_t n, double k) {
  Values v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = std::sin(0.37 * double(i + 1) + k);
  return v;
}

// (b, c, t) to (b, t, c), or back with the sizes swapped.
inline Values swap_last(const Values& v, std::int64_t b, std::int64_t c, std::int64_t t) {
  Values out(v.size());
  for (std::int64_t i = 0; i < b; ++i)
    for (std::int64_t j = 0; j < c; ++j)
      for (std::int64_t k = 0; k < t; ++k) out[(i * t + k) * c + j] = v[(i * c + j) * t + k];
  return out;
}

}  // namespace weft
