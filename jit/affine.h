// Integer expressions taken apart as constant + sum of step[c] * index(c): a tensor that is indexed by these is walked with one
// step for each coordinate.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "jit/expr.h"

namespace weft {

struct Affine {
  std::int64_t constant = 0;
  std::array<std::int64_t, kMostCoordinates> step{};

  // At a place of a space; its smallest or largest value over the whole of a space, and where it has it.
  std::int64_t at(std::span<const std::int64_t> place) const;
  std::array<std::int64_t, kMostCoordinates> lowest(std::span<const std::int64_t> dims) const;
  std::array<std::int64_t, kMostCoordinates> highest(std::span<const std::int64_t> dims) const;
};

// Nothing if e is not of that form, with literal steps.
std::optional<Affine> affine_of(Expr e);

}  // namespace weft
