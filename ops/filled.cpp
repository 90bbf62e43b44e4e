#include "ops/filled.h"

#include <fmt/format.h>

#include <span>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/pointwise.h"
#include "jit/diff.h"
#include "ops/check.h"

namespace weft {

void lower_filled(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  Fused fused = l.hole(0, l.shape(0));
  fused.values = 0;  // the value is read like what is captured
  fused.leaves.insert(fused.leaves.begin(), l.view(0));
  l.emit_pointwise("hole", fused, out);
}

Tensor filled(const Op& op, const Hole& hole, const Tensor& value, Site where) {
  if (!hole.filled()) return value;
  return Recorder(op, where).input(value).hole(0, hole, value.shape()).out(value.shape(), value.dtype()).record();
}

// The derivative by the value, or by what a load reads, is the same op with another root, which captures the upstream gradient.
void filled_vjp(Vjp& v) {
  const Op& op = tape().op(v.output().node());
  const Hole hole = v.hole(0);
  const Shape space = v.output().shape();
  Hole gradient = hole;
  gradient.captured.push_back(v.grad());
  std::vector<Expr> place;
  for (int c = 0; c < space.rank(); ++c) place.push_back(expr::index(c));
  const Expr upstream = expr::load(int(hole.captured.size()), ExprType::real, place);
  const auto by = [&](Expr what) -> Tensor {
    const Expr slope = diff(hole.roots[0], upstream, std::span(&what, 1))[0];
    if (is_zero(slope)) return {};
    gradient.roots = {unless_zero(upstream, slope)};
    return filled(op, gradient, v.input(0), v.where());
  };
  if (v.needs(0))
    if (const Tensor d = by(expr::input(0))) v.add(0, d);
  for (const Expr load : topological(hole.roots)) {
    if (load.op() != ExprOp::load || load.type() != ExprType::real) continue;
    const int input = v.hole_input(0, int(load.index()));
    if (!v.needs(input)) continue;
    if (uses_input(load, 0))
      fail_at(v.where(),
              fmt::format("{}: hole '{}' finds an element by its own value, which has no gradient", op.name, op.holes[0].name),
              to_string(load), "detach() the tensor, or compute the value before the op and capture it too");
    if (const Tensor each = by(load))
      v.add(input, convert(adjoint(hole, load, each, space, false, v.where()), v.input(input).dtype(), v.where()));
  }
}

}  // namespace weft
