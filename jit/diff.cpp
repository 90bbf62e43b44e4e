#include "jit/diff.h"

#include <algorithm>
#include <numbers>

#include "jit/order.h"

namespace weft {

using Op = ExprOp;

namespace {

bool is_masked(Expr e) {  // a real select with a zero arm
  return e.op() == Op::select && e.type() == ExprType::real && (is_zero(e.arg(1)) || is_zero(e.arg(2)));
}

// The sum of what arrives at a node; the literal 0 is that nothing has. Of two that exclude each other one is taken.
Expr sum_of(Expr a, Expr b) {
  if (is_zero(a) || is_zero(b)) return is_zero(a) ? b : a;
  if (is_masked(a) && is_masked(b) && same(a.arg(0), b.arg(0)))
    return where(a.arg(0), sum_of(a.arg(1), b.arg(1)), sum_of(a.arg(2), b.arg(2)));
  return a + b;
}

// g times the derivative of the node y = op(a, ...) by its k-th argument. Where y appears in its own derivative the
// kernel computes it once; g is multiplied in first where a power of y alone could overflow.
Expr pull_back(Expr y, int k, Expr g) {
  static const Expr one = 1.0, half = 0.5;
  if (is_masked(g)) {  // what is not taken stays 0, whatever the slope is there
    return is_zero(g.arg(2)) ? where(g.arg(0), pull_back(y, k, g.arg(1)), Expr())
                             : where(g.arg(0), Expr(), pull_back(y, k, g.arg(2)));
  }
  Expr a = y.arg(0), b = y.arity() > 1 ? y.arg(1) : Expr();
  switch (y.op()) {
    case Op::add:
      return g;
    case Op::sub:
      return k == 0 ? g : -g;
    case Op::mul:
      return is_zero(y.arg(1 - k)) ? Expr() : g * y.arg(1 - k);
    case Op::div:
      return k == 0 ? g / b : -(g * (y / b));
    case Op::neg:
      return -g;
    case Op::min:
    case Op::max: {  // beside a NaN nobody loses
      Expr loses = (y.op() == Op::min) == (k == 0) ? b < a : a < b;
      return where(loses, Expr(), where(equal(a, b), half * g, g));
    }
    case Op::pow:
      return k == 0 ? where(equal(b, Expr()), Expr(), g * (b * pow(a, b - one)))
                    : where(equal(a, Expr()) && Expr() <= b, Expr(), g * (y * log(a)));
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
    case Op::narrow:
      return g;
    case Op::unless_zero:  // a multiple of its first argument, which reaches it by the second
      return k == 0 ? Expr() : g;
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
    if (roots[r].type() == ExprType::real) arrived = sum_of(arrived, upstreams[r]);
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
      if (wanted[from]) adjoint[from] = sum_of(adjoint[from], pull_back(y, k, g));
    }
  }
  return result;
}

}  // namespace weft
