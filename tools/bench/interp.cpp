// The interpreter against the loop one would write by hand, over 16 M floats on one thread: what interpretation costs.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string_view>
#include <vector>

#include "jit/diff.h"
#include "jit/interp.h"
#include "jit/print.h"
#include "jit/vmath.h"

namespace weft {

void bench_interpreter();

namespace {

constexpr std::int64_t kElements = 16 << 20;
constexpr int kRuns = 5;

struct Arrays {
  std::vector<float> x, y, z, out, expected;
  Arrays() : x(kElements), y(kElements), z(kElements), out(kElements), expected(kElements) {
    for (std::int64_t i = 0; i < kElements; ++i) {
      x[i] = float(i % 1999) / 250 - 4, y[i] = float(i % 1013) / 300 - 1.5f, z[i] = 0.01f + float(i % 777) / 500;
    }
  }
};

// The best of some runs, in milliseconds; the first, which also touches the memory, does not count.
template <class F>
double milliseconds(F f) {
  double best = INFINITY;
  for (int run = 0; run <= kRuns; ++run) {
    auto begin = std::chrono::steady_clock::now();
    f();
    std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
    if (run > 0) best = std::min(best, elapsed.count());
  }
  return best;
}

double time_interpreter(Arrays& a, Expr root, const std::vector<double>& constants) {
  Program program(std::span(&root, 1));
  return milliseconds([&] {
    Program::State<float> state(program, constants.data());
    for (std::int64_t first = 0; first < kElements; first += kBlock) {
      const void* inputs[] = {&a.x[first], &a.y[first], &a.z[first]};
      void* output = &a.out[first];
      state.run(inputs, &output, kBlock, first);
    }
  });
}

template <class F>
void by_hand(const float* __restrict x, const float* __restrict y, const float* __restrict z, float* __restrict out, F f) {
  for (std::int64_t i = 0; i < kElements; ++i) out[i] = f(x[i], y[i], z[i], i);
}

// `root` over inputs x, y, z and the linear element against f(x, y, z, element).
template <class F>
void compare(Arrays& a, std::string_view name, Expr root, const ConstantScope& scope, F f) {
  double interpreted = time_interpreter(a, root, scope.values());
  double written = milliseconds([&] { by_hand(a.x.data(), a.y.data(), a.z.data(), a.expected.data(), f); });
  double worst = 0;
  for (std::int64_t i = 0; i < kElements; ++i) {
    worst = std::max(worst, double(std::abs(a.out[i] - a.expected[i]) / (1 + std::abs(a.expected[i]))));
  }
  print("{:<34} {:>9.2f} {:>9.2f} {:>7.2f}{}\n", name, interpreted, written, interpreted / written,
        worst < 1e-5 ? "" : fmt::format("  differs by {:.1e}", worst));
}

}  // namespace

void bench_interpreter() {
  Arrays arrays;
  ConstantScope scope;
  Expr x = expr::input(0), y = expr::input(1), z = expr::input(2);
  auto run = [&](std::string_view name, Expr root, auto f) { compare(arrays, name, root, scope, f); };
  print("{:<34} {:>9} {:>9} {:>7}\n", "16 M floats, one thread", "interp ms", "hand ms", "ratio");
  run("x + y", x + y, [](float a, float b, float, std::int64_t) { return a + b; });
  run("0.9 x + 0.1 y", 0.9 * x + 0.1 * y, [](float a, float b, float, std::int64_t) { return 0.9f * a + 0.1f * b; });
  run("relu(x)^2", square(relu(x)), [](float a, float, float, std::int64_t) {
    float r = a <= 0 ? 0 : a;
    return r * r;
  });
  run("silu(x) y", silu(x) * y, [](float a, float b, float, std::int64_t) { return a * vmath::sigmoid(a) * b; });
  const Expr first[] = {x};
  run("silu'(x) y", diff(silu(x), y, first)[0], [](float a, float b, float, std::int64_t) {
    float s = vmath::sigmoid(a);
    return b * s + b * a * (s * (1 - s));
  });
  run("gelu(x)", gelu(x), [](float a, float, float, std::int64_t) { return 0.5f * a * (1 + vmath::erf(a * 0.70710678f)); });
  run("softplus(x + 0.1) tanh(y)", softplus(x + 0.1) * tanh(y),
      [](float a, float b, float, std::int64_t) { return vmath::softplus(a + 0.1f) * vmath::tanh(b); });
  run("x - 1e-3 (y/(sqrt(z)+1e-8) + 0.1x)", x - 1e-3 * (y / (sqrt(z) + 1e-8) + 0.1 * x),
      [](float a, float b, float c, std::int64_t) { return a - 1e-3f * (b / (std::sqrt(c) + 1e-8f) + 0.1f * a); });
  run("clamp(x y + z, -1, 1) where x < y", where(x < y, clamp(x * y + z, -1.0, 1.0), z),
      [](float a, float b, float c, std::int64_t) {
        float v = a * b + c;
        return a < b ? vmath::min(vmath::max(v, -1.0f), 1.0f) : c;
      });
  run("where(element % 7 < 3, x, y)", where(expr::element() - expr::element() / 7 * 7 < 3, x, y),
      [](float a, float b, float, std::int64_t i) { return i % 7 < 3 ? a : b; });
}

}  // namespace weft
