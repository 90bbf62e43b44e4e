#include "models/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "jit/error.h"

namespace weft {

std::int64_t sample(std::span<const float> logits, double temperature, std::int64_t top_k, double u) {
  if (logits.empty()) fail(ErrorKind::usage, "sample: there are no logits");
  if (temperature <= 0) return std::max_element(logits.begin(), logits.end()) - logits.begin();
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::int64_t(0));
  const std::size_t k = top_k > 0 ? std::min(std::size_t(top_k), order.size()) : order.size();
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(k), order.end(), [&](std::int64_t a, std::int64_t b) {
    return logits[std::size_t(a)] != logits[std::size_t(b)] ? logits[std::size_t(a)] > logits[std::size_t(b)] : a < b;
  });
  std::vector<double> weights(k);
  for (std::size_t j = 0; j < k; ++j)
    weights[j] =
        std::exp((double(logits[std::size_t(order[j])]) - double(logits[std::size_t(order[0])])) / temperature);
  double left = u * std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t j = 0; j < k; ++j)
    if ((left -= weights[j]) < 0) return order[j];
  return order[k - 1];
}

}  // namespace weft
