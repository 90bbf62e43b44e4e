// Interval arithmetic on expressions: from ranges of the indices and inputs to a range of the value. Used on subscripts, to
// tell which need a check, and on masks, to tell tiles that are always false or always true.
//
// A range holds every value that the expression can take, whatever its other leaves (slots, loads, draws) are; what nothing is
// known about is unbounded, or [0, 1] for a boolean. Integers that might wrap are unbounded, and a comparison of reals one of
// which might be a NaN says nothing that a NaN would make wrong.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

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

// The same for one expression and many boxes of its coordinates: the expression is taken apart once.
class Intervals {
 public:
  explicit Intervals(Expr root);
  Interval operator()(std::span<const Interval> indices, std::span<const Interval> inputs = {});

 private:
  struct Step {  // a node; arguments are places of earlier steps
    Expr node;
    ExprOp op;
    ExprType type, operands;  // of the node and of its first argument
    int arity;
    std::int64_t leaf;  // which index or input
    int args[3];
    Interval known;  // of a leaf that is neither
  };
  void step(const Step& s, std::span<const Interval> indices, std::span<const Interval> inputs, std::size_t at);

  std::vector<Step> steps_;
  std::vector<Interval> ranges_;
  std::vector<char> maybe_nan_;  // no interval holds a NaN, so what a comparison with one says is decided apart
};

// An interval whose bounds are expressions of what a kernel knows when it runs. A bound that is absent is infinite.
struct SymbolicInterval {
  std::optional<Expr> low, high;
  double largest = 0x1p63;  // no bound that is there is larger in size
};

// Whether a boolean expression is false, or true, everywhere.
struct Verdict {
  Expr never, always;
};
// By the same rules, as expressions: of slots and of the bounds that `bounds(e)` gives of an index, input or load; those of a
// boolean are whether it is certainly true, and whether it can be. Reals say nothing, nor does arithmetic on integers that
// might leave 64 bits; slots that enter it are compared with 2^53.
Verdict verdict_of(Expr root, const std::function<SymbolicInterval(Expr leaf)>& bounds);

}  // namespace weft
