#include "jit/affine.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "jit/order.h"

namespace weft {

using Op = ExprOp;

namespace {

Affine combine(const Affine& a, std::int64_t by, const Affine& b) {  // a + by * b
  Affine sum = a;
  sum.constant += by * b.constant;
  for (std::size_t c = 0; c < sum.step.size(); ++c) sum.step[c] += by * b.step[c];
  return sum;
}

std::optional<Affine> combine(std::optional<Affine> a, std::int64_t by, std::optional<Affine> b) {
  return a && b ? std::optional(combine(*a, by, *b)) : std::nullopt;
}

std::array<std::int64_t, kMostCoordinates> extreme(const Affine& a, std::span<const std::int64_t> dims, bool high) {
  std::array<std::int64_t, kMostCoordinates> place{};
  for (std::size_t c = 0; c < dims.size(); ++c) place[c] = a.step[c] != 0 && (a.step[c] > 0) == high ? dims[c] - 1 : 0;
  return place;
}

}  // namespace

std::int64_t Affine::at(std::span<const std::int64_t> place) const {
  std::int64_t value = constant;
  for (std::size_t c = 0; c < place.size(); ++c) value += step[c] * place[c];
  return value;
}
std::array<std::int64_t, kMostCoordinates> Affine::lowest(std::span<const std::int64_t> dims) const {
  return extreme(*this, dims, false);
}
std::array<std::int64_t, kMostCoordinates> Affine::highest(std::span<const std::int64_t> dims) const {
  return extreme(*this, dims, true);
}

std::optional<Affine> affine_of(Expr e) {
  // Steps and sizes beyond this are no walk through memory, and products of two such numbers do not wrap.
  constexpr std::int64_t kLargest = std::int64_t(1) << 31;
  Order order(std::span(&e, 1));
  std::vector<std::optional<Affine>> parts;
  for (const Expr x : order.nodes()) {
    const auto part = [&](int i) { return parts[std::size_t(order.position(x.arg(i)))]; };
    const auto is_literal = [&](int i) { return x.arg(i).op() == Op::literal && std::abs(x.arg(i).index()) < kLargest; };
    std::optional<Affine> made;
    if (x.type() != ExprType::integer) {
    } else if (x.op() == Op::literal) {
      if (std::abs(x.index()) < kLargest) made = Affine{x.index(), {}};
    } else if (x.op() == Op::index) {
      made.emplace().step[std::size_t(x.index())] = 1;
    } else if (x.op() == Op::add || x.op() == Op::sub) {
      made = combine(part(0), x.op() == Op::add ? 1 : -1, part(1));
    } else if (x.op() == Op::neg) {
      made = combine(Affine{}, -1, part(0));
    } else if (x.op() == Op::mul && (is_literal(0) || is_literal(1))) {
      const int factor = is_literal(0) ? 0 : 1;
      made = combine(Affine{}, x.arg(factor).index(), part(1 - factor));
    }
    const auto large = [](std::int64_t n) { return n >= kLargest || n <= -kLargest; };
    if (made && (large(made->constant) || std::any_of(made->step.begin(), made->step.end(), large))) made.reset();
    parts.push_back(made);
  }
  return parts.back();
}

}  // namespace weft
