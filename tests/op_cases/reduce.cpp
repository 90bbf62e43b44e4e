#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {
namespace {

void add_reduction(std::vector<OpRow>& rows, const std::string& name, std::vector<int> axes, bool keep, bool same, bool empty,
                   Tensor (*op)(const Tensor&, const std::vector<int>&, bool), std::function<Values(const Values&)> f) {
  OpRow row{name,
            [=](const std::vector<Tensor>& in) { return op(in[0], axes, keep); },
            [=](const Inputs& in, const Shapes& s) { return grouped(in[0], s[0], axes, f, same); },
            {}};
  std::vector<Shape> shapes = {{3, 5, 7}, {2, 1, 300}, {1, 1, 1}, {4, 33, 2}};
  if (!same) shapes.push_back({130, 2, 140});  // several chunks; too long for differences of a softmax
  if (empty) shapes.push_back({3, 0, 2});
  for (const Shape& s : shapes) row.cases.push_back({to_string(s), {{s}}});
  row.options.f32 = 1e-4;
  row.options.copies = name.starts_with("max");
  rows.push_back(row);
}

}  // namespace

void add_reductions(std::vector<OpRow>& rows) {
  const std::vector<std::vector<int>> axis_sets = {{}, {-1}, {0}, {1}, {0, 1}, {0, 2}, {1, 2}};
  for (const auto& axes : axis_sets) {
    std::string tag = axes.empty() ? "_all" : "";
    for (const int a : axes) tag += "_" + std::to_string(a < 0 ? 9 : a);
    add_reduction(
        rows, "sum" + tag, axes, false, false, true,
        [](const Tensor& x, const std::vector<int>& a, bool k) { return sum(x, a, k); },
        [](const Values& v) {
          double s = 0;
          for (const double x : v) s += x;
          return Values{s};
        });
    add_reduction(
        rows, "logsumexp" + tag, axes, false, false, false,
        [](const Tensor& x, const std::vector<int>& a, bool k) { return logsumexp(x, a, k); },
        [](const Values& v) { return Values{lse_of(v)}; });
    add_reduction(
        rows, "softmax" + tag, axes, false, true, true,
        [](const Tensor& x, const std::vector<int>& a, bool) { return softmax(x * 2, a); },
        [](const Values& v) {
          Values y;
          for (const double x : v) y.push_back(2 * x);
          const double lse = lse_of(y);
          for (double& x : y) x = std::exp(x - lse);
          return y;
        });
    // The others are kernels of the same two kinds: all, the last, and first and last axis.
    if (!axes.empty() && axes != std::vector{-1} && axes != std::vector{0, 2}) continue;
    add_reduction(
        rows, "mean_of_square" + tag, axes, true, false, false,
        [](const Tensor& x, const std::vector<int>& a, bool k) { return mean(square(x), a, k); },
        [](const Values& v) {
          double s = 0;
          for (const double x : v) s += x * x;
          return Values{s / double(v.size())};
        });
    add_reduction(
        rows, "max" + tag, axes, false, false, false,
        [](const Tensor& x, const std::vector<int>& a, bool k) { return max(x, a, k); },
        [](const Values& v) { return Values{*std::max_element(v.begin(), v.end())}; });
    add_reduction(
        rows, "log_softmax" + tag, axes, false, true, true,
        [](const Tensor& x, const std::vector<int>& a, bool) { return log_softmax(x, a); },
        [](const Values& v) {
          Values y = v;
          const double lse = lse_of(v);
          for (double& x : y) x -= lse;
          return y;
        });
  }
  OpRow ties{"max_ties",
             [](auto& in) { return max(in[0], {-1}); },
             nullptr,
             {{"ties", {{Shape{2, 4}, 0, 0, {1, 1, 0, 1, 5, 5, 5, 5}}}, false}}};
  rows.push_back(ties);
}

}  // namespace weft
