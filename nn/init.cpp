#include "nn/init.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "autograd/op.h"
#include "jit/convert.h"
#include "jit/interp.h"
#include "jit/parallel.h"

namespace weft {

Draws::Draws(std::uint64_t seed, std::string_view name, std::uint64_t number)
    : seed_(seed), key_(XXH3_64bits_withSeed(name.data(), name.size(), number)) {}

double Draws::uniform(std::int64_t element) const {
  return (double(philox(seed_, key_, 0, std::uint64_t(element))) + 0.5) * 0x1p-32;
}

double Draws::normal(std::int64_t element) const {
  const double radius = std::sqrt(-2 * std::log(uniform(2 * element)));
  return radius * std::cos(2 * std::numbers::pi * uniform(2 * element + 1));
}

namespace init {

Initialiser constant(double value) {
  return [value](const Draws&, std::int64_t) { return value; };
}

Initialiser uniform(double bound) {
  return [bound](const Draws& draws, std::int64_t i) { return bound * (2 * draws.uniform(i) - 1); };
}

Initialiser normal(double deviation) {
  return [deviation](const Draws& draws, std::int64_t i) { return deviation * draws.normal(i); };
}

Initialiser kaiming_uniform(std::int64_t fan_in) { return uniform(1 / std::sqrt(double(std::max<std::int64_t>(fan_in, 1)))); }

Initialiser dt_bias(double low, double high, double floor) {
  return [=](const Draws& draws, std::int64_t i) { return dt_bias_value(draws.uniform(i), low, high, floor); };
}

Initialiser s4d_real(std::int64_t state) {
  if (state < 1) fail(ErrorKind::usage, "init::s4d_real: the state size must be positive", std::to_string(state));
  return [state](const Draws&, std::int64_t i) { return std::log(double(i % state + 1)); };
}

}  // namespace init

double inverse_softplus(double y) { return y + std::log(-std::expm1(-y)); }

double dt_bias_value(double rho, double low, double high, double floor) {
  const double step = std::exp(rho * (std::log(high) - std::log(low)) + std::log(low));
  return inverse_softplus(std::max(step, floor));
}

void initialise(const State& state, const Initialiser& init, std::uint64_t seed, std::string_view name, std::uint64_t number,
                Site where) {
  if (!is_real(state.dtype(where))) fail_at(where, "initialise: only real parameters have random initial values", state.name());
  if (!init) fail_at(where, "initialise: there is no initialiser", state.name(), "init::normal(0.02) is one");
  constexpr std::int64_t kChunk = 1 << 14;
  const Draws draws(seed, name, number);
  const std::int64_t n = state.shape().numel();
  visit_dtype(state.dtype(), [&]<class T>(T) {
    std::vector<T> staged;  // on the CPU the state's own memory serves
    Memory& memory = state.impl()->memory;
    T* values = reinterpret_cast<T*>(memory.data());
    if (is_gpu(memory.device())) staged.resize(std::size_t(n)), values = staged.data();
    parallel((n + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
      const std::int64_t end = std::min(n, (chunk + 1) * kChunk);
      for (std::int64_t i = chunk * kChunk; i < end; ++i) values[i] = value_as<T>(init(draws, i));
    });
    if (!staged.empty()) memory.write(staged.data());
  });
  state.impl()->outdate_twin();
  state.impl()->changes();
}

}  // namespace weft
