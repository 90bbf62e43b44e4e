// A user's kernel, y = scale max(x, 0)^2; its gradient is another one.
#include <algorithm>
#include <cmath>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {
namespace {

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

// y = after(2 before(x)) for x (rows, columns); the value that `after` is given is an output too.
const CustomOp kHoles({
    .name = "two_holes",
    .inputs = {{.name = "x", .rank = 2}},
    .outputs = {"y", "middle"},
    .integers = {"rows", "columns"},
    .holes = {{"before", 1}, {"after"}},
    .cuda = R"(
extern "C" __global__ void __launch_bounds__(128) KERNEL(PARAMETERS) {
  const i64 i = i64(blockIdx.x) * 128 + threadIdx.x;
  if (i >= a.rows * a.columns) return;
  const index row = index(i / a.columns), col = index(i % a.columns);
  real value[1] = {read_real(a.x + i)}, result[1];
  before<1>(a, row, col, value, result);
  value[0] = 2 * result[0];
  after<1>(a, row, col, value, result);
  write_real(a.y + i, result[0]);
  write_real(a.middle + i, value[0]);
})",
    .launch = [](const CustomCall& c) { return CustomLaunch::of(c.integers[0] * c.integers[1], 128); },
    .cpu =
        [](CustomData& d) {
          for (std::size_t i = 0; i < d.in[0].size(); ++i) {
            const auto element = std::int64_t(i);
            d.out[1][i] = 2 * d.holes[0](element, d.in[0][i]);
            d.out[0][i] = d.holes[1](element, d.out[1][i]);
          }
        },
    .gradient = [](const CustomGrad& g) -> std::vector<Tensor> {
      const Tensor middle = g.upstream(1) + g.before_hole(1, g.output(1), g.upstream());
      return {g.before_hole(0, g.input(0), 2 * middle)};
    },
});

Tensor squared_relu(const Tensor& x, double scale) {
  return custom(kSquaredRelu, {x}, {{x.shape(), x.dtype()}}, {.facts = {128}, .integers = {x.numel()}, .constants = {scale}});
}

}  // namespace

void add_custom_kernels(std::vector<OpRow>& rows) {
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
  rows.push_back({"custom_holes",
                  [](auto& in) {
                    const Hole before = hole({in[1]}, [](Expr v, Expr b) { return v + b; });
                    const Hole after = hole({in[2], in[1]}, [](Expr v, Expr z, Expr b) { return 1.5f * v * silu(z) - b * b; });
                    return custom(kHoles, {in[0]}, {{in[0].shape(), in[0].dtype()}, {in[0].shape(), in[0].dtype()}},
                                  {.integers = {in[0].shape()[0], in[0].shape()[1]}, .holes = {before, after}});
                  },
                  [](const Inputs& in, const Shapes& s) {
                    Values out;
                    for (std::size_t i = 0; i < in[0].size(); ++i) {
                      const double b = in[1][i % std::size_t(s[0][1])], z = in[2][i];
                      out.push_back(1.5 * 2 * (in[0][i] + b) * z / (1 + std::exp(-z)) - b * b);
                    }
                    return out;
                  },
                  {{"normal", {{{4, 64}}, {{64}}, {{4, 64}}}},
                   {"odd", {{{3, 7}}, {{7}}, {{3, 7}}}},
                   {"empty", {{{0, 4}}, {{4}}, {{0, 4}}}}}});
  rows.push_back({"custom_holes_empty",
                  [](auto& in) {
                    return custom(kHoles, {in[0]}, {{in[0].shape(), in[0].dtype()}, {in[0].shape(), in[0].dtype()}},
                                  {.integers = {in[0].shape()[0], in[0].shape()[1]}, .holes = {Hole{}, Hole{}}});
                  },
                  [](const Inputs& in, const Shapes&) {
                    Values out;
                    for (const double x : in[0]) out.push_back(2 * x);
                    return out;
                  },
                  {{"odd", {{{5, 3}}}}}});
}

}  // namespace weft
