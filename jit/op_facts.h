// The table of scalar operations: what every pass over expressions needs to know about each of them. A new operation is a row
// here, its loop in interp.cpp and, if it has one, its derivative in diff.cpp.
#pragma once

#include <string_view>

#include "jit/expr.h"

namespace weft {

struct OpFacts {
  ExprOp op;
  int arity;              // -1: a load has an argument for each axis of its tensor
  std::string_view name;  // "exp"
  // Steps of special-function units or their equal in instruction slots; the rest of an operation's work counts as simple.
  ExprCost cost;
  // The real result is not rounded, so that its bounds need no margin.
  bool exact;
  // In texts for people: an operator between its arguments, and how tightly it binds; empty: a function of its name.
  std::string_view sign;
  int binding;
  // In CUDA: an operator, or a function of jit/prelude.cuh; for integers another one, empty where the same serves. What has
  // neither is written by hand.
  std::string_view cuda, cuda_integer;
  double (*fold)(double, double);  // of reals; null: the operation is never folded
};

const OpFacts& facts_of(ExprOp op);

}  // namespace weft
