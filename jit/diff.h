// Symbolic reverse-mode derivatives of scalar expressions.
#pragma once

#include <span>
#include <vector>

#include "jit/expr.h"

namespace weft {

// d(upstream * root)/d(input k) for each k in `wrt`; exact zero is the literal 0. Rules are written in terms of a node's
// arguments and of the node itself (sigmoid: y(1-y)). Conventions: sqrt'(0) = 0, abs'(0) = 0, min and max split a tie in
// halves, floor/sign/comparisons/to_integer have derivative 0, pow's derivative by its exponent is 0 where base <= 0.
// A select with a zero arm moves outward through products, so an arm that is not taken may be inf or NaN.
std::vector<Expr> diff(Expr root, Expr upstream, std::span<const int> wrt);

}  // namespace weft
