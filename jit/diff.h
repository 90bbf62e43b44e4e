// Symbolic reverse-mode derivatives of scalar expressions.
#pragma once

#include <span>
#include <vector>

#include "jit/expr.h"

namespace weft {

// The sum over r of d(upstreams[r] * roots[r])/d(leaf) for each leaf in `wrt`, an input or a load (whose subscripts are
// integers and end the recursion); exact zero is the literal 0. Rules are written in terms of a node's arguments and of the
// node itself (sigmoid: y(1-y)). Conventions: sqrt'(0) = 0, abs'(0) = 0, min and max split a tie in halves,
// floor/sign/comparisons/to_integer have derivative 0; pow has inf or NaN where calculus has, as at base 0 with an exponent
// below 1, but 0 by the base where the exponent is 0, and by the exponent at base 0 where it is not negative. A select of
// the body moves outward through the slopes, so an arm that is not taken may be inf or NaN.
std::vector<Expr> diff(std::span<const Expr> roots, std::span<const Expr> upstreams, std::span<const Expr> wrt);
inline std::vector<Expr> diff(Expr root, Expr upstream, std::span<const Expr> wrt) {
  return diff(std::span(&root, 1), std::span(&upstream, 1), wrt);
}

}  // namespace weft
