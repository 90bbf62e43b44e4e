// Interval arithmetic on expressions: from ranges of the indices and inputs to a range of the value. Used on subscripts, to
// tell which need a check, and on masks, to tell tiles that are always false or always true.
#pragma once

#include <limits>
#include <span>

#include "jit/expr.h"

namespace weft {

struct Interval {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool always_true() const { return low >= 1; }  // of a boolean
  bool always_false() const { return high <= 0; }
};

// `indices[k]` and `inputs[k]` bound index k and input k; what is missing is unbounded. Booleans are 0 and 1.
Interval interval_of(Expr root, std::span<const Interval> indices, std::span<const Interval> inputs = {});

}  // namespace weft
