#include <cmath>
#include <functional>
#include <utility>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {
namespace {

// Normal, odd, size-1, scalar and empty shapes of one input within [low, high], then the special points.
std::vector<OpCase> unary_cases(double low, double high, Values extra = {}) {
  std::vector<OpCase> cases;
  for (const auto& [name, shape] : std::vector<std::pair<std::string, Shape>>{
           {"normal", {4, 64}}, {"odd", {3, 7, 5}}, {"long", {1, 519}}, {"one", {1}}, {"scalar", {}}, {"empty", {0, 4}}})
    cases.push_back({name, {{shape, low, high}}});
  Values points = special_points();
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
  const Values points = special_points();
  for (const double x : points)
    for (const double y : points) left.push_back(x), right.push_back(y);
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

}  // namespace

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

  // Where an element stands in the result, which one operand reads transposed and another broadcasts.
  rows.push_back({"coordinates",
                  [](auto& in) {
                    return pointwise("ramp", {permute(in[0], {0, 2, 1}), in[1]}, [](Expr v, Expr w) {
                      return v + w * (expr::index(0) + 0.5 * expr::index(1) - 0.25 * expr::index(2));
                    });
                  },
                  [](const Inputs& in, const Shapes& shapes) {
                    const Shape s = shapes[0];  // (b, columns, rows)
                    Values out;
                    for (std::int64_t b = 0; b < s[0]; ++b)
                      for (std::int64_t r = 0; r < s[2]; ++r)
                        for (std::int64_t c = 0; c < s[1]; ++c)
                          out.push_back(in[0][std::size_t((b * s[1] + c) * s[2] + r)] +
                                        in[1][std::size_t(r)] * (double(b) + 0.5 * double(r) - 0.25 * double(c)));
                    return out;
                  },
                  {{"normal", {{{2, 8, 3}}, {{3, 1}}}}, {"odd", {{{3, 5, 7}}, {{7, 1}}}}, {"one", {{{1, 1, 1}}, {{1, 1}}}}}});

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
  for (OpInput& i : rows.back().cases.back().inputs) i.differentiable = false;  // at base 0 and below slopes are not finite
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

}  // namespace weft
