#include "autograd/shape.h"

#include "jit/error.h"

namespace weft {

void Shape::fail_rank(std::size_t rank) {
  fail(ErrorKind::usage, "shape: too many dimensions", std::to_string(rank) + ", at most " + std::to_string(kMaxRank),
       "merge axes with reshape");
}

void Shape::fail_axis(int i) const {
  fail(ErrorKind::usage, "shape: no such axis", "axis " + std::to_string(i) + " of " + to_string(*this),
       "axes count from 0, or from the end with -1");
}

void Shape::fail_numel() const { fail(ErrorKind::usage, "shape: more elements than 64 bits can count", to_string(*this)); }

void Shape::push_back(std::int64_t dim) {
  if (rank_ == kMaxRank) fail_rank(kMaxRank + 1);
  dims_[rank_++] = dim;
}

bool broadcast_shapes(const Shape& a, const Shape& b, Shape* out) {
  if (a == b) {
    *out = a;
    return true;
  }
  const Shape& longer = a.rank() >= b.rank() ? a : b;
  const Shape& shorter = a.rank() >= b.rank() ? b : a;
  Shape result = longer;
  for (int i = 1; i <= shorter.rank(); ++i) {
    if (longer[-i] == shorter[-i] || shorter[-i] == 1) continue;
    if (longer[-i] != 1) return false;
    result[-i] = shorter[-i];
  }
  *out = result;
  return true;
}

bool broadcasts_to(const Shape& from, const Shape& to) {
  Shape out;
  return broadcast_shapes(from, to, &out) && out == to;
}

std::string to_string(const Shape& shape) {
  std::string s = "(";
  for (int i = 0; i < shape.rank(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.rank() == 1 ? ",)" : ")");
}

}  // namespace weft
