// What the reference values of several families are made with.
#pragma once

#include <functional>
#include <vector>

#include "tests/op_cases.h"

namespace weft {

using Values = std::vector<double>;
using Inputs = std::vector<Values>;
using Shapes = std::vector<Shape>;

Values special_points();  // signed zeros, and where functions of one number bend, overflow or round

// Folds the groups of elements of x that agree in all axes but `axes` (empty: all axes are folded). `f` gets each group in
// order and gives one value (a reduction) or, when `same`, as many as the group has (softmax).
Values grouped(const Values& x, const Shape& shape, std::vector<int> axes, const std::function<Values(const Values&)>& f,
               bool same);

double lse_of(const Values& v);  // log sum exp

}  // namespace weft
