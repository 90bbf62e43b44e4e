#include "tests/op_cases.h"

#include <cmath>
#include <functional>
#include <limits>

#include "autograd/backward.h"
#include "ops/ops.h"

namespace weft {
namespace {

using Values = std::vector<double>;
using Inputs = std::vector<Values>;
using Shapes = std::vector<Shape>;

const Values kSpecial = {0.0, -0.0, 1e-30, -1e-30, 1, -1, 89, -89, 1e4, -1e4, 0.5, -0.5, 2, 20, 20.5};

// ---- pointwise --------------------------------------------------------------------------------------------------------------

// Normal, odd, size-1, scalar and empty shapes of one input within [low, high], then the special points.
std::vector<OpCase> unary_cases(double low, double high, Values extra = {}) {
  std::vector<OpCase> cases;
  for (const auto& [name, shape] : std::vector<std::pair<std::string, Shape>>{
           {"normal", {4, 64}}, {"odd", {3, 7, 5}}, {"long", {1, 519}}, {"one", {1}}, {"scalar", {}}, {"empty", {0, 4}}})
    cases.push_back({name, {{shape, low, high}}});
  Values points = kSpecial;
  points.insert(points.end(), extra.begin(), extra.end());
  cases.push_back({"special", {{Shape{std::int64_t(points.size())}, 0, 0, points}}, false});
  return cases;
}

OpRow unary(std::string name, Tensor (*op)(Arg), double (*f)(double), double low = -3, double high = 3, Values extra = {}) {
  return {std::move(name), [op](const std::vector<Tensor>& in) { return op(in[0]); },
          [f](const Inputs& in, const Shapes&) {
            Values out;
            for (const double x : in[0]) out.push_back(f(x));
            return out;
          },
          unary_cases(low, high, std::move(extra))};
}

// Element i of the result comes from the elements of a and b that broadcasting pairs.
Values broadcast(const Inputs& in, const Shapes& shapes, const std::function<double(double, double)>& f) {
  Shape out;
  broadcast_shapes(shapes[0], shapes[1], &out);
  Values result;
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    std::int64_t at[2] = {0, 0};
    for (int k = 0; k < 2; ++k) {
      std::int64_t rest = i, stride = 1;
      for (int d = 1; d <= out.rank(); ++d) {
        const std::int64_t c = rest % out[-d];
        rest /= out[-d];
        if (d > shapes[std::size_t(k)].rank()) continue;
        if (shapes[std::size_t(k)][-d] != 1) at[k] += c * stride;
        stride *= shapes[std::size_t(k)][-d];
      }
    }
    result.push_back(f(in[0][std::size_t(at[0])], in[1][std::size_t(at[1])]));
  }
  return result;
}

std::vector<OpCase> binary_cases(double low0, double high0, double low1, double high1) {
  std::vector<OpCase> cases;
  struct Pair {
    std::string name;
    Shape a, b;
  };
  for (const auto& [name, a, b] : std::vector<Pair>{{"equal", {4, 64}, {4, 64}},
                                                    {"row", {5, 7}, {7}},
                                                    {"column", {5, 7}, {5, 1}},
                                                    {"both", {3, 1, 5}, {4, 1}},
                                                    {"scalar", {3, 3}, {}},
                                                    {"one", {1}, {1}},
                                                    {"empty", {0, 4}, {4}}})
    cases.push_back({name, {{a, low0, high0}, {b, low1, high1}}});
  Values left, right;
  for (const double x : kSpecial)
    for (const double y : kSpecial) left.push_back(x), right.push_back(y);
  const Shape all{std::int64_t(left.size())};
  cases.push_back({"special", {{all, 0, 0, left}, {all, 0, 0, right}}, false});
  return cases;
}

OpRow binary(std::string name, Tensor (*op)(Arg, Arg), std::function<double(double, double)> f, double low0 = -3,
             double high0 = 3, double low1 = -3, double high1 = 3) {
  return {std::move(name), [op](const std::vector<Tensor>& in) { return op(in[0], in[1]); },
          [f](const Inputs& in, const Shapes& shapes) { return broadcast(in, shapes, f); },
          binary_cases(low0, high0, low1, high1)};
}

OpRow comparison(std::string name, Tensor (*op)(Arg, Arg), std::function<double(double, double)> f) {
  OpRow row = binary(std::move(name), op, std::move(f));
  for (OpCase& c : row.cases) c.gradient = false;
  return row;
}

double sigmoid_of(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
double softplus_of(double x) { return x > 20 ? x + std::exp(-x) : std::log1p(std::exp(x)); }
double gelu_tanh_of(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

void add_pointwise(std::vector<OpRow>& rows) {
  rows.push_back(unary(
      "neg", [](Arg a) { return -a; }, [](double x) { return -x; }));
  rows.push_back(unary("exp", exp, [](double x) { return std::exp(x); }));
  rows.push_back(unary(
      "log", log, [](double x) { return std::log(x); }, 0.1, 4));
  rows.push_back(unary(
      "log1p", log1p, [](double x) { return std::log1p(x); }, -0.9, 4));
  rows.push_back(unary("expm1", expm1, [](double x) { return std::expm1(x); }));
  rows.push_back(unary(
      "sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0.1, 4));
  rows.push_back(unary(
      "rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.1, 4));
  rows.push_back(unary("tanh", tanh, [](double x) { return std::tanh(x); }));
  rows.push_back(unary("sigmoid", sigmoid, sigmoid_of));
  rows.push_back(unary("silu", silu, [](double x) { return x * sigmoid_of(x); }));
  rows.push_back(unary("softplus", softplus, softplus_of));
  rows.push_back(unary(
      "relu", relu, [](double x) { return x > 0 ? x : 0; }, 0.1, 3));
  rows.push_back(unary("gelu", gelu, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2))); }));
  rows.push_back(unary("gelu_tanh", gelu_tanh, gelu_tanh_of));
  rows.push_back(unary("erf", erf, [](double x) { return std::erf(x); }));
  rows.push_back(unary(
      "abs", abs, [](double x) { return std::abs(x); }, 0.1, 3));
  rows.push_back(unary(
      "sign", sign, [](double x) { return double((x > 0) - (x < 0)); }, 0.1, 3));
  rows.push_back(unary("square", square, [](double x) { return x * x; }));
  rows.push_back(unary(
      "floor", floor, [](double x) { return std::floor(x); }, 0.1, 0.9));
  rows.push_back(unary("sin", sin, [](double x) { return std::sin(x); }));
  rows.push_back(unary("cos", cos, [](double x) { return std::cos(x); }));
  rows.push_back(unary(
      "clamp", [](Arg a) { return clamp(a, -1.5, 1.25); }, [](double x) { return std::min(std::max(x, -1.5), 1.25); }, -1, 1,
      {-1.5, 1.25}));
  rows.push_back(unary(
      "add_number", [](Arg a) { return 3.7 + (a + 1.25); }, [](double x) { return x + 1.25 + 3.7; }));
  rows.push_back(unary(
      "numbers", [](Arg a) { return 1.0 - (a * 0.3 - 2) / 7; }, [](double x) { return 1 - (x * 0.3 - 2) / 7; }));
  rows.push_back(unary(
      "reciprocal", [](Arg a) { return 1.0 / a; }, [](double x) { return 1 / x; }, 0.2, 3));
  rows.push_back(unary(
      "pow_number", [](Arg a) { return pow(a, 2.5); }, [](double x) { return std::pow(x, 2.5); }, 0.1, 3));
  rows.push_back(unary(
      "pow_2", [](Arg a) { return pow(a, 2); }, [](double x) { return x * x; }));
  rows.push_back(unary(
      "cast", [](Arg a) { return cast(cast(cast(a, DType::f64), DType::i64), DType::f64); },
      [](double x) { return std::trunc(x); }, 0.1, 0.9));
  rows.push_back(unary(
      "user_defined", [](Arg a) { return pointwise("squared_relu", {a}, [](Expr v) { return square(max(v, 0.f)) * 1.5f; }); },
      [](double x) { return 1.5 * std::pow(std::max(x, 0.), 2); }, 0.1, 3));

  rows.push_back(binary(
      "add", [](Arg a, Arg b) { return a + b; }, [](double a, double b) { return a + b; }));
  rows.push_back(binary(
      "sub", [](Arg a, Arg b) { return a - b; }, [](double a, double b) { return a - b; }));
  rows.push_back(binary(
      "mul", [](Arg a, Arg b) { return a * b; }, [](double a, double b) { return a * b; }));
  rows.push_back(binary(
      "div", [](Arg a, Arg b) { return a / b; }, [](double a, double b) { return a / b; }, -3, 3, 0.3, 3));
  rows.push_back(binary(
      "pow", [](Arg a, Arg b) { return pow(a, b); }, [](double a, double b) { return std::pow(a, b); }, 0.2, 3));
  // The same draws never meet: gradients at ties are defined, not differentiable.
  rows.push_back(binary(
      "min", [](Arg a, Arg b) { return min(a, b); }, [](double a, double b) { return std::min(a, b); }));
  rows.push_back(binary(
      "max", [](Arg a, Arg b) { return max(a, b); }, [](double a, double b) { return std::max(a, b); }));
  rows.push_back(binary(
      "where", [](Arg a, Arg b) { return where(greater(a, 0.25), a * b, log(b)); },
      [](double a, double b) { return a > 0.25 ? a * b : std::log(b); }, -3, 3, 0.3, 3));
  rows.push_back(comparison(
      "equal", [](Arg a, Arg b) { return equal(a, b); }, [](double a, double b) { return a == b; }));
  rows.push_back(comparison(
      "not_equal", [](Arg a, Arg b) { return not_equal(a, b); }, [](double a, double b) { return a != b; }));
  rows.push_back(comparison(
      "less", [](Arg a, Arg b) { return less(a, b); }, [](double a, double b) { return a < b; }));
  rows.push_back(comparison(
      "less_equal", [](Arg a, Arg b) { return less_equal(a, b); }, [](double a, double b) { return a <= b; }));
  rows.push_back(comparison(
      "greater", [](Arg a, Arg b) { return greater(a, b); }, [](double a, double b) { return a > b; }));
  rows.push_back(comparison(
      "greater_equal", [](Arg a, Arg b) { return greater_equal(a, b); }, [](double a, double b) { return a >= b; }));
}

// ---- views ------------------------------------------------------------------------------------------------------------------

OpRow view(std::string name, OpFunction fn, Reference reference, std::vector<std::vector<Shape>> shapes) {
  OpRow row{std::move(name), std::move(fn), std::move(reference), {}, {.copies = true}};
  for (const auto& list : shapes) {
    OpCase c;
    for (const Shape& s : list) c.name += to_string(s), c.inputs.push_back({s});
    row.cases.push_back(c);
  }
  return row;
}

// The value of a view, element by element: index of the source for each element of the result.
Values pick(const Values& x, const Shape& out, const std::function<std::int64_t(const std::vector<std::int64_t>&)>& from) {
  Values result;
  std::vector<std::int64_t> at(std::size_t(out.rank()));
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    std::int64_t rest = i;
    for (int d = out.rank(); d-- > 0;) at[std::size_t(d)] = rest % out[d], rest /= out[d];
    const std::int64_t f = from(at);
    result.push_back(f < 0 ? 0 : x[std::size_t(f)]);
  }
  return result;
}

void add_views(std::vector<OpRow>& rows) {
  const std::vector<std::vector<Shape>> cubes = {{{3, 4, 6}}, {{1, 4, 2}}, {{5, 4, 2}}, {{0, 4, 2}}};
  rows.push_back(view(
      "reshape",
      [](auto& in) {
        return reshape(in[0], {-1, 2});
      },
      [](const Inputs& in, const Shapes&) { return in[0]; }, {{{3, 4, 6}}, {{1, 4, 2}}, {{5, 4, 2}}}));
  rows.push_back(view(
      "reshape_of_permute",
      [](auto& in) {
        return reshape(permute(in[0], {2, 0, 1}), Shape{in[0].dim(2), in[0].dim(0) * in[0].dim(1)});
      },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][2], s[0][0] * s[0][1]}, [&](auto& i) { return i[1] * s[0][2] + i[0]; });
      },
      cubes));
  rows.push_back(view(
      "permute",
      [](auto& in) {
        return permute(in[0], {2, 0, 1});
      },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][2], s[0][0], s[0][1]}, [&](auto& i) { return (i[1] * s[0][1] + i[2]) * s[0][2] + i[0]; });
      },
      cubes));
  rows.push_back(view(
      "transpose", [](auto& in) { return transpose(in[0]) * 2; },
      [](const Inputs& in, const Shapes& s) {
        Values v =
            pick(in[0], Shape{s[0][0], s[0][2], s[0][1]}, [&](auto& i) { return (i[0] * s[0][1] + i[2]) * s[0][2] + i[1]; });
        for (double& x : v) x *= 2;
        return v;
      },
      cubes));
  rows.push_back(view(
      "slice", [](auto& in) { return slice(in[0], 1, 1, 3); },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][0], 2, s[0][2]}, [&](auto& i) { return (i[0] * s[0][1] + i[1] + 1) * s[0][2] + i[2]; });
      },
      cubes));
  rows.push_back(view(
      "overlapping_slices", [](auto& in) { return slice(in[0], 1, 0, 3) * slice(in[0], 1, 1, 4); },
      [](const Inputs& in, const Shapes& s) {
        const Shape out{s[0][0], 3, s[0][2]};
        Values a = pick(in[0], out, [&](auto& i) { return (i[0] * s[0][1] + i[1]) * s[0][2] + i[2]; });
        const Values b = pick(in[0], out, [&](auto& i) { return (i[0] * s[0][1] + i[1] + 1) * s[0][2] + i[2]; });
        for (std::size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
        return a;
      },
      cubes));
  rows.push_back(view(
      "split",
      [](auto& in) {
        const auto parts = split(in[0], {1, 3}, 1);
        return parts[1] * parts[0];
      },
      [](const Inputs& in, const Shapes& s) {
        const Shape out{s[0][0], 3, s[0][2]};
        Values a = pick(in[0], out, [&](auto& i) { return (i[0] * s[0][1] + i[1] + 1) * s[0][2] + i[2]; });
        const Values b = pick(in[0], out, [&](auto& i) { return i[0] * s[0][1] * s[0][2] + i[2]; });
        for (std::size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
        return a;
      },
      cubes));
  rows.push_back(view(
      "expand",
      [](auto& in) {
        return expand(in[0], {5, 3, 4});
      },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{5, 3, 4}, [&](auto& i) { return s[0].rank() == 2 ? i[1] : i[2]; });
      },
      {{{3, 1}}, {{4}}}));
  rows.push_back(view(
      "concat",
      [](auto& in) {
        return concat({in[0], in[1] * 2, in[0]}, 1);
      },
      [](const Inputs& in, const Shapes& s) {
        Values out;
        for (std::int64_t r = 0; r < s[0][0]; ++r)
          for (const int k : {0, 1, 0})
            for (std::int64_t c = 0; c < s[std::size_t(k)][1]; ++c)
              out.push_back(in[std::size_t(k)][std::size_t(r * s[std::size_t(k)][1] + c)] * (k ? 2 : 1));
        return out;
      },
      {{{3, 4}, {3, 5}}, {{1, 1}, {1, 7}}, {{3, 0}, {3, 2}}, {{0, 2}, {0, 2}}}));
  rows.push_back(view(
      "concat_last_placed",
      [](auto& in) {
        return concat({exp(in[0]), in[1] * 2}, -1);
      },
      [](const Inputs& in, const Shapes& s) {
        Values out;
        for (std::int64_t r = 0; r < s[0][0]; ++r) {
          for (std::int64_t c = 0; c < s[0][1]; ++c) out.push_back(std::exp(in[0][std::size_t(r * s[0][1] + c)]));
          for (std::int64_t c = 0; c < s[1][1]; ++c) out.push_back(2 * in[1][std::size_t(r * s[1][1] + c)]);
        }
        return out;
      },
      {{{3, 4}, {3, 5}}, {{300, 3}, {300, 2}}}));
  rows.back().options.copies = false;  // exp
  rows.push_back(view(
      "pad", [](auto& in) { return pad(in[0], 1, 2, 1); },
      [](const Inputs& in, const Shapes& s) {
        return pick(in[0], Shape{s[0][0], s[0][1] + 3},
                    [&](auto& i) { return i[1] < 2 || i[1] >= s[0][1] + 2 ? -1 : i[0] * s[0][1] + i[1] - 2; });
      },
      {{{3, 4}}, {{1, 1}}, {{2, 0}}}));
  rows.push_back(view(
      "pad_value", [](auto& in) { return pad(in[0], 0, 1, 0, 7.5); },
      [](const Inputs& in, const Shapes& s) {
        Values out(std::size_t(s[0][1]), 7.5);
        out.insert(out.end(), in[0].begin(), in[0].end());
        return out;
      },
      {{{3, 4}}, {{0, 4}}}));
}

// ---- reductions -------------------------------------------------------------------------------------------------------------

// Folds groups of elements that agree in the kept axes; `f` gets each group in order and gives one value (a reduction) or as
// many as the group has (softmax).
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

// ---- a user's kernel: y = scale max(x, 0)^2, its gradient another one -------------------------------------------------------

const CustomOp kSquaredReluGrad({
    .name = "squared_relu_grad",
    .inputs = {{"x"}, {"dy"}},
    .outputs = {"dx"},
    .facts = {"THREADS"},
    .integers = {"n"},
    .constants = {"scale"},
    .cuda = R"(
extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= a.n) return;
  const real x = read_real(a.x + i), dy = read_real(a.dy + i);
  write_real(a.dx + i, real(2) * a.scale() * max_of(x, real(0)) * dy);
})",
    .launch = [](const CustomCall& c) { return CustomLaunch::of(c.integers[0], unsigned(c.facts[0])); },
    .cpu =
        [](CustomData& d) {
          for (std::size_t i = 0; i < d.out[0].size(); ++i)
            d.out[0][i] = 2 * d.constants[0] * std::max(d.in[0][i], 0.0) * d.in[1][i];
        },
});

const CustomOp kSquaredRelu({
    .name = "squared_relu",
    .inputs = {{"x"}},
    .outputs = {"y"},
    .facts = {"THREADS"},
    .integers = {"n"},
    .constants = {"scale"},
    .cuda = R"(
extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= a.n) return;
  const real x = max_of(real(read_real(a.x + i)), real(0));
  write_real(a.y + i, a.scale() * x * x);
})",
    .launch = [](const CustomCall& c) { return CustomLaunch::of(c.integers[0], unsigned(c.facts[0])); },
    .cpu =
        [](CustomData& d) {
          for (std::size_t i = 0; i < d.out[0].size(); ++i)
            d.out[0][i] = d.constants[0] * std::pow(std::max(d.in[0][i], 0.0), 2);
        },
    .gradient =
        [](const CustomGrad& g) {
          const Tensor x = g.input(0);
          return std::vector{custom(kSquaredReluGrad, {x, g.upstream()}, {{x.shape(), x.dtype()}}, g.values())};
        },
});

Tensor squared_relu(const Tensor& x, double scale) {
  return custom(kSquaredRelu, {x}, {{x.shape(), x.dtype()}}, {.facts = {128}, .integers = {x.numel()}, .constants = {scale}});
}

// ---- structured ops: values are pinned by their own tests; here gradients, odd shapes, determinism --------------------------

void add_structured(std::vector<OpRow>& rows) {
  rows.push_back({"rms_norm",
                  [](auto& in) { return rms_norm(in[0], in[1]); },
                  [](const Inputs& in, const Shapes& s) {
                    return grouped(
                        in[0], s[0], {-1},
                        [&](const Values& v) {
                          double q = 0;
                          for (const double x : v) q += x * x / double(v.size());
                          Values y;
                          for (std::size_t i = 0; i < v.size(); ++i) y.push_back(v[i] / std::sqrt(q + 1e-5) * in[1][i]);
                          return y;
                        },
                        true);
                  },
                  {{"normal", {{{4, 64}}, {{64}}}},
                   {"odd", {{{3, 5, 7}}, {{7}}}},
                   {"one", {{{1, 1}}, {{1}}}},
                   {"wide", {{{2, 300}}, {{300}}}},
                   {"empty", {{{0, 8}}, {{8}}}},
                   {"zeros", {{{2, 4}, 0, 0, {0}}, {{4}}}, false}}});
  rows.push_back(
      {"rms_norm_prologue", [](auto& in) { return rms_norm(in[0] + in[1], Tensor{}); }, nullptr, {{"odd", {{{3, 7}}, {{7}}}}}});
  rows.push_back(
      {"layer_norm",
       [](auto& in) { return layer_norm(in[0], in[1], in[2]); },
       [](const Inputs& in, const Shapes& s) {
         return grouped(
             in[0], s[0], {-1},
             [&](const Values& v) {
               double m = 0, q = 0;
               for (const double x : v) m += x / double(v.size());
               for (const double x : v) q += (x - m) * (x - m) / double(v.size());
               Values y;
               for (std::size_t i = 0; i < v.size(); ++i) y.push_back((v[i] - m) / std::sqrt(q + 1e-5) * in[1][i] + in[2][i]);
               return y;
             },
             true);
       },
       {{"normal", {{{4, 64}}, {{64}}, {{64}}}}, {"odd", {{{3, 5, 7}}, {{7}}, {{7}}}}, {"empty", {{{0, 8}}, {{8}}, {{8}}}}}});
  auto product = [](const Inputs& in, const Shapes& s) {  // (..., m, k) (..., k, n), equal batches or one of b
    const std::int64_t m = s[0][-2], k = s[0][-1], n = s[1][-1], batch = s[0].numel() / std::max<std::int64_t>(1, m * k);
    Values out;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (std::int64_t c = 0; c < k; ++c)
            sum += in[0][std::size_t((b * m + i) * k + c)] * in[1][std::size_t(((s[1].rank() > 2 ? b : 0) * k + c) * n + j)];
          out.push_back(sum);
        }
    return out;
  };
  rows.push_back({"matmul",
                  [](auto& in) { return matmul(in[0], in[1]); },
                  product,
                  {{"normal", {{{16, 32}}, {{32, 24}}}},
                   {"odd", {{{5, 7}}, {{7, 3}}}},
                   {"one", {{{1, 1}}, {{1, 1}}}},
                   {"batched", {{{3, 4, 5}}, {{3, 5, 2}}}},
                   {"broadcast", {{{3, 4, 5}}, {{5, 2}}}},
                   {"no_rows", {{{0, 5}}, {{5, 2}}}}},
                  {.f32 = 1e-4}});
  rows.push_back({"matmul_inner_0",
                  [](auto& in) { return matmul(in[0], in[1]); },
                  [](const Inputs&, const Shapes& s) { return Values(std::size_t(s[0][0] * s[1][1]), 0.0); },
                  {{"k0", {{{3, 0}}, {{0, 4}}}}}});
  rows.push_back({"matmul_transposed",
                  [](auto& in) { return matmul(transpose(in[0]), transpose(in[1])); },
                  nullptr,
                  {{"odd", {{{7, 5}}, {{3, 7}}}}, {"batched", {{{2, 7, 5}}, {{2, 3, 7}}}}}});
  rows.push_back({"matmul_sliced",
                  [](auto& in) { return matmul(slice(in[0], 1, 1, 4), slice(in[1], 0, 2, 5)); },
                  nullptr,
                  {{"odd", {{{7, 5}}, {{6, 3}}}}}});
  rows.push_back({"linear",
                  [](auto& in) { return linear(in[0], in[1], in[2]); },
                  [](const Inputs& in, const Shapes& s) {
                    const std::int64_t k = s[0][-1], n = s[1][0], m = s[0].numel() / std::max<std::int64_t>(1, k);
                    Values out;
                    for (std::int64_t i = 0; i < m; ++i)
                      for (std::int64_t j = 0; j < n; ++j) {
                        double sum = in[2][std::size_t(j)];
                        for (std::int64_t c = 0; c < k; ++c)
                          sum += in[0][std::size_t(i * k + c)] * in[1][std::size_t(j * k + c)];
                        out.push_back(sum);
                      }
                    return out;
                  },
                  {{"normal", {{{2, 8, 16}}, {{24, 16}}, {{24}}}},
                   {"odd", {{{3, 5}}, {{7, 5}}, {{7}}}},
                   {"vector", {{{5}}, {{7, 5}}, {{7}}}},
                   {"empty", {{{0, 5}}, {{7, 5}}, {{7}}}}},
                  {.f32 = 1e-4}});
  rows.push_back({"embedding",
                  [](auto& in) { return embedding(in[0], in[1]); },
                  [](const Inputs& in, const Shapes& s) {
                    Values out;
                    for (const double id : in[1])
                      for (std::int64_t c = 0; c < s[0][1]; ++c)
                        out.push_back(in[0][std::size_t(std::int64_t(id) * s[0][1] + c)]);
                    return out;
                  },
                  {{"normal", {{{11, 6}}, {{4, 9}, 0, 11, {}, DType::i64}}},
                   {"i32", {{{5, 3}}, {{7}, 0, 5, {}, DType::i32}}},
                   {"one", {{{1, 1}}, {{1}, 0, 1, {}, DType::i64}}},
                   {"empty", {{{5, 3}}, {{0}, 0, 1, {}, DType::i64}}},
                   {"ids_of_two_digits", {{{600, 2}}, {{90}, 0, 600, {}, DType::i64}}},  // of the sort by id on a GPU
                   {"an_id_over_four_chunks", {{{3, 2}}, {{250}, 0, 0, {1}, DType::i64}}},
                   {"an_id_over_whole_chunks", {{{3, 2}}, {{192}, 0, 0, {1}, DType::i64}}}},
                  {.copies = true}});
  auto ce = [](auto& in) { return cross_entropy(in[0], in[1]); };
  rows.push_back({"cross_entropy",
                  ce,
                  [](const Inputs& in, const Shapes& s) {
                    double loss = 0, n = 0;
                    for (std::size_t r = 0; r < in[1].size(); ++r) {
                      if (in[1][r] == -100) continue;
                      const auto row = in[0].begin() + std::ptrdiff_t(r) * s[0][-1];
                      loss += lse_of({row, row + s[0][-1]}) - row[std::ptrdiff_t(in[1][r])];
                      n += 1;
                    }
                    return Values{n > 0 ? loss / n : 0};
                  },
                  {{"normal", {{{4, 8, 11}}, {{4, 8}, 0, 11, {}, DType::i64}}},
                   {"ignored", {{{5, 7}}, {{5}, 0, 0, {3, -100, 6, -100, 0}, DType::i64}}},
                   {"all_ignored", {{{3, 7}}, {{3}, 0, 0, {-100}, DType::i64}}},
                   {"one", {{{1, 1}}, {{1}, 0, 1, {}, DType::i32}}},
                   {"wide", {{{3, 700}}, {{3}, 0, 700, {}, DType::i64}}},
                   {"no_rows", {{{0, 7}}, {{0}, 0, 1, {}, DType::i64}}}}});
  rows.push_back({"cross_entropy_rows",
                  [](auto& in) {
                    return cross_entropy(in[0] * 1.5, in[1],
                                         {.ignore_index = 2, .label_smoothing = 0.1, .reduction = Reduction::none});
                  },
                  nullptr,
                  {{"odd", {{{3, 5, 7}}, {{3, 5}, 0, 7, {}, DType::i64}}}}});
  rows.push_back({"cross_entropy_sum",
                  [](auto& in) { return cross_entropy(in[0], in[1], {.reduction = Reduction::sum}); },
                  nullptr,
                  {{"odd", {{{5, 7}}, {{5}, 0, 7, {}, DType::i64}}}}});
  // A width is a text of its own, which takes long to compile: the widths with silu alone.
  const std::vector<OpCase> conv_cases = {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{6}}}},
                                          {"wide_kernel", {{{2, 4, 3}}, {{3, 7}}, {{3}}}},
                                          {"one_step", {{{2, 1, 300}}, {{300, 4}}, {{300}}}},
                                          {"no_batch", {{{0, 5, 3}}, {{3, 4}}, {{3}}}}};
  rows.push_back({"conv1d", [](auto& in) { return conv1d(in[0], in[1], in[2]); }, nullptr, conv_cases});
  rows.push_back({"conv1d_silu", [](auto& in) { return conv1d(in[0], in[1], in[2], {.silu = true}); }, nullptr, conv_cases});
  for (const OpCase& c : {OpCase{"width_1", {{{2, 3, 4}}, {{4, 1}}, {{4}}}}, OpCase{"width_2", {{{2, 7, 5}}, {{5, 2}}, {{5}}}},
                          OpCase{"width_3", {{{1, 5, 3}}, {{3, 3}}, {{3}}}}, OpCase{"empty", {{{2, 0, 3}}, {{3, 4}}, {{3}}}}})
    rows.back().cases.push_back(c);
  rows.push_back({"conv1d_states",
                  [](auto& in) {
                    Tensor last;
                    const Tensor y = conv1d(in[0], in[1], Tensor{}, {.silu = true, .initial = in[2], .last = &last});
                    return concat({reshape(y, {-1}), reshape(last, {-1})}, 0);
                  },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{6, 4}}, {{2, 3, 6}}}},
                   {"short", {{{2, 2, 3}}, {{3, 4}}, {{2, 3, 3}}}},
                   {"one_step", {{{1, 1, 5}}, {{5, 3}}, {{1, 2, 5}}}}}});
  // Cases with the same sizes of channels and states share their kernels' texts, which take long to compile; test_scan has more
  // sizes.
  rows.push_back({"scan",
                  [](auto& in) { return scan(in[0], in[1], -exp(in[2]), in[3], in[4]); },
                  nullptr,
                  {{"normal", {{{2, 9, 6}}, {{2, 9, 6}, 0.01, 1}, {{6, 16}, -1, 1}, {{2, 9, 16}}, {{2, 9, 16}}}},
                   {"odd_state", {{{1, 33, 3}}, {{1, 33, 3}, 0.01, 1}, {{3, 5}, -1, 1}, {{1, 33, 5}}, {{1, 33, 5}}}},
                   {"groups", {{{2, 5, 6}}, {{2, 5, 6}, 0.01, 1}, {{6, 5}, -1, 1}, {{2, 5, 2, 5}}, {{2, 5, 2, 5}}}},
                   {"one_state", {{{1, 4, 2}}, {{1, 4, 2}, 0.01, 1}, {{2, 1}, -1, 1}, {{1, 4, 1}}, {{1, 4, 1}}}},
                   {"one_step", {{{2, 1, 3}}, {{2, 1, 3}, 0.01, 1}, {{3, 5}, -1, 1}, {{2, 1, 5}}, {{2, 1, 5}}}},
                   {"long", {{{1, 150, 3}}, {{1, 150, 3}, 0.01, 0.5}, {{3, 5}, -1, 1}, {{1, 150, 5}}, {{1, 150, 5}}}},
                   {"no_time", {{{2, 0, 3}}, {{2, 0, 3}}, {{3, 5}}, {{2, 0, 5}}, {{2, 0, 5}}}}}});
  rows.push_back(
      {"scan_everything",
       [](auto& in) {
         Tensor last;
         const Tensor o =
             scan(in[0], in[1], -exp(in[2]), in[3], in[4],
                  {.D = in[5], .delta = softplus_bias(in[6]), .out = gate(in[7]), .initial = in[8], .last = &last});
         return concat({reshape(cast(o, last.dtype()), {-1}), reshape(last, {-1})}, 0);
       },
       nullptr,
       {{"normal",
         {{{2, 9, 6}}, {{2, 9, 6}}, {{6, 16}, -1, 1}, {{2, 9, 16}}, {{2, 9, 16}}, {{6}}, {{6}}, {{2, 9, 6}}, {{2, 6, 16}}}},
        {"odd",
         {{{1, 37, 3}}, {{1, 37, 3}}, {{3, 5}, -1, 1}, {{1, 37, 5}}, {{1, 37, 5}}, {{3}}, {{3}}, {{1, 37, 3}}, {{1, 3, 5}}}}}});
  rows.push_back({"scan_user_holes",
                  [](auto& in) {
                    return scan(in[0], in[1], -exp(in[2]), in[3], in[4],
                                {.delta = hole({in[5]}, [](Expr v, Expr s) { return exp(v * s) * 0.1f; }),
                                 .out = hole({in[6], in[0]}, [](Expr v, Expr a, Expr b) { return tanh(v) * a + b; })});
                  },
                  nullptr,
                  {{"odd", {{{2, 7, 5}}, {{2, 7, 5}}, {{5, 4}, -1, 1}, {{2, 7, 4}}, {{2, 7, 4}}, {{7, 1}}, {{5}}}}}});
  rows.push_back({"custom",
                  [](auto& in) { return squared_relu(in[0], 1.5); },
                  [](const Inputs& in, const Shapes&) {
                    Values out;
                    for (const double x : in[0]) out.push_back(x > 0 ? 1.5 * x * x : 0);
                    return out;
                  },
                  {{"normal", {{{4, 64}}}}, {"odd", {{{3, 7, 5}}}}, {"one", {{{1}}}}, {"empty", {{{0, 4}}}}}});
  rows.push_back({"custom_of_a_view",
                  [](auto& in) { return squared_relu(transpose(slice(in[0], 1, 1, 4)), 2); },
                  nullptr,
                  {{"odd", {{{5, 7}}}}}});
  rows.push_back({"dropout",
                  [](auto& in) { return dropout(in[0], 0.4); },
                  nullptr,
                  {{"normal", {{{40, 7}}}}, {"odd", {{{9, 7}}}}, {"one", {{{1}}}}, {"empty", {{{0}}}}}});
  for (const MaskNoise noise : {MaskNoise::gumbel, MaskNoise::logistic}) {
    const std::string tag = noise == MaskNoise::gumbel ? "_gumbel" : "_logistic";
    rows.push_back({"mask_soft" + tag,
                    [=](auto& in) { return gumbel_sigmoid(in[0], {.temperature = 0.8, .hard = false, .noise = noise}); },
                    nullptr,
                    {{"normal", {{{20, 7}}}}, {"special", {{{15}, 0, 0, kSpecial}}, false}}});
    rows.push_back(
        {"mask_scalar" + tag,
         [=](auto& in) { return gumbel_sigmoid(in[0], {.temperature_scalar = Scalar(0.7), .hard = false, .noise = noise}); },
         nullptr,
         {{"normal", {{{20, 7}}}}}});
    rows.push_back({"mask_hard" + tag,
                    [=](auto& in) { return gumbel_sigmoid(in[0], {.noise = noise}); },
                    nullptr,
                    {{"normal", {{{20, 7}}}, false}}});
  }
  rows.push_back({"mask_eval",
                  [](auto& in) { return gumbel_sigmoid(in[0], {.training = false}); },
                  [](const Inputs& in, const Shapes&) {
                    Values out;
                    for (const double x : in[0]) out.push_back(x > 0);
                    return out;
                  },
                  {{"normal", {{{20, 7}}}, false}}});
  rows.push_back({"normal_numbers",
                  [](auto& in) { return in[0] * normal(in[0].shape(), in[0].dtype()); },
                  nullptr,
                  {{"normal", {{{20, 7}}}}, {"odd", {{{9, 7}}}}}});
}

}  // namespace

const std::vector<OpRow>& op_rows() {
  static const std::vector<OpRow> rows = [] {
    std::vector<OpRow> r;
    add_pointwise(r);
    add_views(r);
    add_reductions(r);
    add_structured(r);
    return r;
  }();
  return rows;
}

}  // namespace weft
