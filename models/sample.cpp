#include "models/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "jit/error.h"
#include "ops/ops.h"

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

void check_sampling(double temperature, std::int64_t top_k, double top_p, Site where) {
  if (!(temperature >= 0 && std::isfinite(temperature)))
    fail_at(where, "sample: the temperature must be a number of 0 or more", fmt::format("temperature {}", temperature),
            "0 takes the most probable token, 1 the model's own distribution");
  if (top_k < 0)
    fail_at(where, "sample: top-k may not be negative", fmt::format("top-k {}", top_k), "0 samples among all tokens");
  if (!(top_p > 0 && top_p <= 1))
    fail_at(where, "sample: top-p must lie in (0, 1]", fmt::format("top-p {}", top_p), "1 samples among all tokens");
}

std::int64_t sample(std::span<const float> logits, double temperature, std::int64_t top_k, double top_p, double u, Site where) {
  if (logits.empty()) fail_at(where, "sample: there are no logits");
  check_sampling(temperature, top_k, top_p, where);
  if (!(u > 0 && u < 1))
    fail_at(where, "sample: the number that decides must lie in (0, 1)", fmt::format("u {}", u), "draw it uniformly");
  const auto highest = std::max_element(logits.begin(), logits.end());
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < INFINITY); });
  if (bad != logits.end() || !std::isfinite(*highest)) {
    const auto shown = bad != logits.end() ? bad : highest;
    throw Error(ErrorKind::training, {"sample: the model's logits are not finite",
                                      fmt::format("that of token {} is {}", shown - logits.begin(), *shown),
                                      tape().where(where, -1), "the weights may be damaged; see `WEFT_CHECK=nan`"});
  }
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

namespace {

constexpr double kReach = 30;  // e^-30 is never drawn
constexpr int kHalvings = 25;  // of it: 1e-6

// (b, 1): of each row a value that top_k elements of it, and no more but equals, are not below.
Tensor least_of(const Tensor& x, const Tensor& most, std::int64_t top_k) {
  Tensor low = most - kReach, high = most;
  for (int i = 0; i < kHalvings; ++i) {
    const Tensor middle = (low + high) * 0.5;
    const Tensor enough = greater_equal(sum(cast(greater_equal(x, middle), DType::f32), {1}, true), double(top_k));
    low = where(enough, middle, low), high = where(enough, high, middle);
  }
  return low;
}

}  // namespace

// The largest of logits with Gumbel noise is drawn from their softmax (Gumbel 1954; arXiv:1611.01144).
Tensor sample_rows(Arg logits, double temperature, std::int64_t top_k) {
  check_sampling(temperature, top_k, 1, logits.where());
  if (temperature == 0 || logits.rank() != 2)
    fail_at(logits.where(), "sample_rows: rows of logits (b, v) are drawn from, at a temperature above 0",
            fmt::format("logits of rank {}, temperature {}", logits.rank(), temperature));
  return no_grad([&] {
    const std::int64_t v = logits.dim(1);
    const Tensor x = cast(logits, DType::f32) * (1 / temperature), most = max(x, {1}, true);
    const Tensor least = top_k > 0 && top_k < v ? least_of(x, most, top_k) : most - kReach;
    const Tensor noisy = pointwise("gumbel", {x, least, uniform({x.dim(0), v})}, [](Expr value, Expr bound, Expr u) {
      return where(value >= bound, value - log(-log(u)), -std::numeric_limits<double>::infinity());
    });
    // The first of the largest: minus the largest of minus their numbers. NaN is not among them.
    const Tensor first = pointwise("first_of_largest", {noisy, max(noisy, {1}, true)}, [v](Expr value, Expr largest) {
      return where(value >= largest && abs(largest) < std::numeric_limits<double>::infinity(), -to_real(expr::index(1)),
                   -double(v));
    });
    return cast(-max(first, {1}), DType::i64);
  });
}

}  // namespace weft
