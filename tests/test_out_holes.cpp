// Holes for results: what a convolution or a norm evaluates inside equals the same op followed by the expression, value and
// gradients, over the borders of their parts.
#include <cmath>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/run.h"
#include "ops/ops.h"

namespace weft {
namespace {

Tensor draw(const Shape& shape, std::uint64_t stream) { return Tensor::from(irregular(shape.numel(), -2, 2, stream), shape); }

// Both give the same value and the same gradients, in f64.
void expect_same(const std::function<Tensor()>& fused, const std::function<Tensor()>& composed,
                 const std::vector<Tensor>& inputs, const std::string& what) {
  const std::vector<Arg> wrt(inputs.begin(), inputs.end());
  const auto values = [&](const std::function<Tensor()>& op) {
    const std::vector<Tensor> all = run([&] {
      const Tensor y = op();
      std::vector<Tensor> out = grad(y, draw(y.shape(), 99), wrt);
      out.push_back(y);
      return out;
    });
    std::vector<std::vector<double>> host;
    for (const Tensor& t : all) host.push_back(t.to_host<double>());
    return host;
  };
  const auto got = values(fused), expected = values(composed);
  for (std::size_t k = 0; k < got.size(); ++k) {
    ASSERT_EQ(got[k].size(), expected[k].size());
    double largest = 1;
    for (const double x : expected[k]) largest = std::max(largest, std::abs(x));
    for (std::size_t i = 0; i < got[k].size(); ++i)
      ASSERT_NEAR(got[k][i], expected[k][i], 1e-12 * largest)
          << what << ": " << (k < inputs.size() ? "gradient " + std::to_string(k) : "value") << " at " << i;
  }
}

// silu(v) z + s: z has the space's shape, s broadcasts.
Expr body(Expr v, Expr z, Expr s) { return silu(v) * z + s * v; }
Tensor applied(const Tensor& v, const Tensor& z, const Tensor& s) { return silu(v) * z + s * v; }

// Times beyond a chunk of the CPU (128 steps) and of a GPU (256), widths that fit registers and one that does not.
TEST(OutHoles, Conv1d) {
  for (const auto& [t, w] : {std::pair(300, 4), std::pair(129, 2), std::pair(40, 20), std::pair(2, 5), std::pair(257, 1)}) {
    const Shape space{2, t, 5};
    const Tensor x = draw(space, 1), weight = draw({5, w}, 2), bias = draw({5}, 3), z = draw(space, 4), s = draw({t, 1}, 5),
                 initial = draw({2, w - 1, 5}, 6);
    const auto op = [&](const Hole& out) {
      Tensor last;
      const Tensor y = conv1d(x, weight, bias, {.out = out, .initial = initial, .last = &last});
      return std::pair(y, last);
    };
    const auto joined = [](const Tensor& y, const Tensor& last) { return concat({reshape(y, {-1}), reshape(last, {-1})}, 0); };
    expect_same(
        [&] {
          const auto [y, last] = op(hole({z, s}, body));
          return joined(y, last);
        },
        [&] {
          const auto [y, last] = op({});
          return joined(applied(y, z, s), last);
        },
        {x, weight, bias, initial, z, s}, "t " + std::to_string(t) + ", w " + std::to_string(w));
  }
}

// Without a gradient of the result the hole takes no part.
TEST(OutHoles, GradientOfTheLastInputsAlone) {
  const Tensor x = draw({1, 6, 3}, 1), weight = draw({3, 3}, 2), z = draw({1, 6, 3}, 3);
  Tensor last;
  conv1d(x, weight, Tensor{}, {.out = gate(z), .last = &last});
  const std::vector<double> dx = grad(sum(last), {x})[0].to_host<double>();
  for (std::size_t i = 0; i < dx.size(); ++i) EXPECT_EQ(dx[i], i < 12 ? 0 : 1) << i;
}

// Rows that a thread keeps, and longer ones, which it reads again in every pass.
TEST(OutHoles, Norms) {
  for (const auto& [rows, n] : {std::pair(5, 7), std::pair(3, 512), std::pair(2, 13001)}) {
    const Shape space{rows, n};
    const Tensor x = draw(space, 1), weight = draw({n}, 2), bias = draw({n}, 3), z = draw(space, 4), s = draw({rows, 1}, 5);
    expect_same(
        [&] {
          return rms_norm(x, weight, 1e-5, {}, hole({z, s}, body));
        },
        [&] { return applied(rms_norm(x, weight), z, s); }, {x, weight, z, s}, "rms_norm of " + std::to_string(n));
    expect_same(
        [&] {
          return layer_norm(x, weight, bias, 1e-5, {}, hole({z, s}, body));
        },
        [&] { return applied(layer_norm(x, weight, bias), z, s); }, {x, weight, bias, z, s},
        "layer_norm of " + std::to_string(n));
  }
}

TEST(OutHoles, SiluIsAHole) {
  const Tensor x = draw({2, 9, 6}, 1), weight = draw({6, 4}, 2);
  EXPECT_EQ(conv1d(x, weight, Tensor{}, {.silu = true}).to_host<double>(),
            conv1d(x, weight, Tensor{}, {.out = silu_hole()}).to_host<double>());
}

}  // namespace
}  // namespace weft
