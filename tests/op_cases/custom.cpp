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
}

}  // namespace weft
