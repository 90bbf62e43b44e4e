#include "tests/op_cases/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace weft {

Values special_points() { return {0.0, -0.0, 1e-30, -1e-30, 1, -1, 89, -89, 1e4, -1e4, 0.5, -0.5, 2, 20, 20.5}; }

Values grouped(const Values& x, const Shape& shape, std::vector<int> axes, const std::function<Values(const Values&)>& f,
               bool same) {
  if (axes.empty())
    for (int i = 0; i < shape.rank(); ++i) axes.push_back(i);
  std::vector<bool> reduced(std::size_t(shape.rank()));
  for (const int a : axes) reduced[std::size_t(a < 0 ? a + shape.rank() : a)] = true;
  std::int64_t groups = 1;
  for (int i = 0; i < shape.rank(); ++i) groups *= reduced[std::size_t(i)] ? 1 : shape[i];
  std::vector<std::vector<std::size_t>> members(static_cast<std::size_t>(groups));
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    std::int64_t rest = i, group = 0, stride = 1;
    for (int d = shape.rank(); d-- > 0;) {
      if (!reduced[std::size_t(d)]) group += rest % shape[d] * stride, stride *= shape[d];
      rest /= shape[d];
    }
    members[std::size_t(group)].push_back(std::size_t(i));
  }
  Values out(same ? x.size() : std::size_t(groups));
  for (std::size_t g = 0; g < members.size(); ++g) {
    Values v;
    for (const std::size_t i : members[g]) v.push_back(x[i]);
    const Values r = f(v);
    if (same)
      for (std::size_t k = 0; k < r.size(); ++k) out[members[g][k]] = r[k];
    else
      out[g] = r[0];
  }
  return out;
}

double lse_of(const Values& v) {
  double m = -std::numeric_limits<double>::infinity(), s = 0;
  for (const double x : v) m = std::max(m, x);
  for (const double x : v) s += std::exp(x - m);
  return m + std::log(s);
}

}  // namespace weft
