#include "models/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "jit/error.h"

namespace weft {
namespace {

// The indices of the k largest and of all that equal the last of them, largest first.
std::vector<std::int64_t> largest(std::span<const float> logits, std::size_t k) {
  const auto at = [&](std::int64_t i) { return logits[std::size_t(i)]; };
  const auto before = [&](std::int64_t a, std::int64_t b) { return at(a) != at(b) ? at(a) > at(b) : a < b; };
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::int64_t(0));
  if (k < order.size()) {
    std::nth_element(order.begin(), order.begin() + std::ptrdiff_t(k - 1), order.end(), before);
    const float last = at(order[k - 1]);
    order.erase(std::partition(order.begin(), order.end(), [&](std::int64_t i) { return at(i) >= last; }), order.end());
  }
  std::sort(order.begin(), order.end(), before);
  return order;
}

}  // namespace

std::int64_t sample(std::span<const float> logits, double temperature, std::int64_t top_k, double top_p, double u) {
  if (logits.empty()) fail(ErrorKind::usage, "sample: there are no logits");
  if (temperature < 0 || top_k < 0 || !(top_p > 0))
    fail(ErrorKind::usage, "sample: temperature and top-k may not be negative, top-p must be positive",
         fmt::format("temperature {}, top-k {}, top-p {}", temperature, top_k, top_p));
  const auto highest = std::max_element(logits.begin(), logits.end());
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return x < INFINITY; }) || !std::isfinite(*highest))
    fail(ErrorKind::training, "sample: the model's logits are not finite", {},
         "the weights may be damaged; see `WEFT_CHECK=nan`");
  if (temperature == 0) return highest - logits.begin();
  const bool some = (top_k > 0 && std::size_t(top_k) < logits.size()) || top_p < 1;
  std::vector<std::int64_t> order;  // without a choice to be made, the indices as they are
  if (some) order = largest(logits, top_k > 0 ? std::size_t(top_k) : logits.size());
  std::vector<double> weights(some ? order.size() : logits.size());
  for (std::size_t j = 0; j < weights.size(); ++j)
    weights[j] = std::exp((double(logits[some ? std::size_t(order[j]) : j]) - double(*highest)) / temperature);
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (top_p < 1) {
    double share = 0;
    std::size_t n = 0;
    while (n < weights.size() && share < top_p * total) share += weights[n++];
    weights.resize(n), total = share;
  }
  double left = u * total;
  for (std::size_t j = 0; j + 1 < weights.size(); ++j)
    if ((left -= weights[j]) < 0) return some ? order[j] : std::int64_t(j);
  return some ? order[weights.size() - 1] : std::int64_t(weights.size()) - 1;
}

}  // namespace weft
