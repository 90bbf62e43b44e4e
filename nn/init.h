// Initial values. An initialiser is a function of the element and of random numbers with the key (seed, full name of the
// parameter, how many of that name came before it), so a value depends neither on the order in which other parameters are made
// nor on the threads that compute it.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "autograd/state.h"

namespace weft {

// The random numbers of one parameter, by element; `number` tells those of one name apart.
class Draws {
 public:
  Draws(std::uint64_t seed, std::string_view name, std::uint64_t number = 0);
  double uniform(std::int64_t element) const;  // in (0, 1)
  double normal(std::int64_t element) const;   // Box-Muller; do not mix with `uniform` of the same parameter

 private:
  std::uint64_t seed_, key_;
};

using Initialiser = std::function<double(const Draws& draws, std::int64_t element)>;

namespace init {
Initialiser constant(double value);
Initialiser uniform(double bound);                 // U(-bound, bound)
Initialiser normal(double deviation);              // N(0, deviation^2)
Initialiser kaiming_uniform(std::int64_t fan_in);  // with a = sqrt 5, the default of Linear and conv: U(+-1/sqrt(fan_in))
// The bias b for which softplus(b) is log-uniform in [low, high], and at least `floor`: the step sizes of Mamba
// (arXiv:2312.00752, section 3.6).
Initialiser dt_bias(double low = 1e-3, double high = 0.1, double floor = 1e-4);
Initialiser s4d_real(std::int64_t state);  // A_log (i, n): ln(n + 1), so that A = -(n + 1) (arXiv:2206.11893)
}  // namespace init

double inverse_softplus(double y);                                        // x with log(1 + e^x) = y, y > 0
double dt_bias_value(double rho, double low, double high, double floor);  // of the draw rho in [0, 1]

// Sets every element of `state` (a real type). Allowed while a step is recorded, as long as no step has used the state.
void initialise(const State& state, const Initialiser& init, std::uint64_t seed, std::string_view name,
                std::uint64_t number = 0, Site where = Site::current());

}  // namespace weft
