#include "jit/diff.h"

#include <algorithm>
#include <numbers>

#include "jit/order.h"

namespace weft {

using Op = ExprOp;

namespace {

// x^y by x. At x = 0 the power has a finite slope, or none, which counts as 0, unless y >= 1.
Expr pow_by_base(Expr x, Expr y, Expr g) {
  Expr slope = y * pow(x, y - Expr(1.0));
  return g * where(equal(x, Expr()) && y < Expr(1.0), Expr(), slope);
}

// g times the derivative of the node y = op(a, ...) by its k-th argument. Where y appears in its own derivative the
// kernel computes it once; g is multiplied in first where a power of y alone could overflow.
Expr pull_back(Expr y, int k, Expr g) {
  static const Expr one = 1.0, half = 0.5;
  Expr a = y.arg(0), b = y.arity() > 1 ? y.arg(1) : Expr();
  switch (y.op()) {
    case Op::add:
      return g;
    case Op::sub:
      return k == 0 ? g : -g;
    case Op::mul:
      return is_zero(y.arg(1 - k)) ? Expr() : g * y.arg(1 - k);
    case Op::div:
      return k == 0 ? g / b : -(g / b * y);
    case Op::neg:
      return -g;
    case Op::min:
    case Op::max: {
      Expr wins = (y.op() == Op::min) == (k == 0) ? a < b : b < a;
      return where(wins, g, where(equal(a, b), half * g, Expr()));
    }
    case Op::pow:
      return k == 0 ? pow_by_base(a, b, g) : g * where(a > Expr(), y * log(a), Expr());
    case Op::select:
      return k == 1 ? where(a, g, Expr()) : where(a, Expr(), g);
    case Op::exp:
      return g * y;
    case Op::log:
      return g / a;
    case Op::log1p:
      return g / (one + a);
    case Op::expm1:
      return g * (y + one);
    case Op::sqrt:
      return where(equal(y, Expr()), Expr(), half * g / y);
    case Op::rsqrt:
      return -(half * g * y * y * y);
    case Op::tanh:
      return g * (one - y * y);
    case Op::sigmoid:
      return g * (y * (one - y));
    case Op::softplus:
      return g * sigmoid(a);
    case Op::erf:
      return g * (expr::literal(2 * std::numbers::inv_sqrtpi) * exp(-(a * a)));
    case Op::abs:
      return g * sign(a);
    case Op::sin:
      return g * cos(a);
    case Op::cos:
      return -(g * sin(a));
    default:
      return {};  // comparisons, logic, sign, floor, conversions, uniform, loads by their subscripts
  }
}

// Which nodes are reals that some leaf of `wrt` flows into through reals.
std::vector<bool> depends_on(const Order& order, std::span<const Expr> wrt) {
  std::vector<bool> depends(order.size());
  for (int at = 0; at < order.size(); ++at) {
    Expr e = order.nodes()[at];
    if (e.type() != ExprType::real) continue;
    depends[at] = std::ranges::any_of(wrt, [&](Expr leaf) { return same(leaf, e); });
    for (int k = 0; k < e.arity(); ++k) depends[at] = depends[at] || depends[order.position(e.arg(k))];
  }
  return depends;
}

}  // namespace

std::vector<Expr> diff(std::span<const Expr> roots, std::span<const Expr> upstreams, std::span<const Expr> wrt) {
  Order order(roots);
  std::vector<bool> wanted = depends_on(order, wrt);
  std::vector<Expr> adjoint(order.size());  // Expr() is the exact zero: nothing has arrived
  for (std::size_t r = 0; r < roots.size(); ++r) {
    Expr& arrived = adjoint[order.position(roots[r])];
    if (roots[r].type() == ExprType::real) arrived = arrived + upstreams[r];
  }
  std::vector<Expr> result(wrt.size());
  for (int at = order.size() - 1; at >= 0; --at) {
    Expr y = order.nodes()[at], g = adjoint[at];
    if (is_zero(g) || !wanted[at]) continue;
    for (std::size_t i = 0; i < wrt.size(); ++i) {
      if (same(y, wrt[i])) result[i] = g;
    }
    for (int k = 0; k < y.arity(); ++k) {
      int from = order.position(y.arg(k));
      if (wanted[from]) adjoint[from] = adjoint[from] + pull_back(y, k, g);
    }
  }
  return result;
}

}  // namespace weft
