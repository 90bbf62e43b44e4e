#include "jit/order.h"

#include <algorithm>
#include <utility>

#include "jit/error.h"
#include "jit/op_facts.h"

namespace weft {

using Op = ExprOp;

// ---- Order ------------------------------------------------------------------------------------------------------------------

Order::Order(std::span<const Expr> roots) {
  resize(5);
  std::vector<std::pair<Expr, int>> path;  // nodes being visited and their next argument
  for (Expr root : roots) {
    if (!contains(root)) path.emplace_back(root, 0);
    while (!path.empty()) {
      auto& [e, next] = path.back();
      if (next < e.arity()) {
        Expr arg = e.arg(next++);
        if (!contains(arg)) path.emplace_back(arg, 0);
      } else {
        append(e);
        path.pop_back();
      }
    }
  }
}

void Order::append(Expr e) {
  if (2 * nodes_.size() >= keys_.size()) resize(33 - shift_);
  std::size_t at = find(e);
  keys_[at] = e.id(), positions_[at] = size();
  nodes_.push_back(e);
}

void Order::resize(int bits) {
  shift_ = 32 - bits;
  keys_.assign(std::size_t(1) << bits, 0);
  positions_.assign(keys_.size(), -1);
  for (int i = 0; i < size(); ++i) {
    std::size_t at = find(nodes_[i]);
    keys_[at] = nodes_[i].id(), positions_[at] = i;
  }
}

std::vector<Expr> topological(std::span<const Expr> roots) { return Order(roots).take(); }

// ---- rewriting --------------------------------------------------------------------------------------------------------------

namespace {

// Interns `e` again on other arguments, simplifying.
Expr remake(Expr e, std::span<const Expr> args) {
  if (e.op() == Op::load) return expr::load(int(e.index()), e.type(), args);
  switch (args.size()) {
    case 1:
      return e.op() == Op::uniform  ? expr::uniform(int(e.index()), args[0])
             : e.op() == Op::narrow ? narrow(args[0], DType(e.index()))
                                    : expr::make(e.op(), args[0]);
    case 2:
      return expr::make(e.op(), args[0], args[1]);
    case 3:
      return expr::make(e.op(), args[0], args[1], args[2]);
    default:
      return e;
  }
}

Expr convert(Expr e, ExprType type) {
  return type == ExprType::real ? to_real(e) : type == ExprType::integer ? to_integer(e) : e && expr::boolean(true);
}

}  // namespace

Expr rewrite(Expr root, const std::function<std::optional<Expr>(Expr, Expr)>& rewrite) {
  Order order(std::span(&root, 1));
  std::vector<Expr> made;
  made.reserve(order.size());
  for (Expr e : order.nodes()) {
    Expr args[kMostCoordinates];
    for (int i = 0; i < e.arity(); ++i) args[i] = made[order.position(e.arg(i))];
    Expr rebuilt = remake(e, std::span(args, e.arity()));
    made.push_back(rewrite(e, rebuilt).value_or(rebuilt));
  }
  return made.back();
}

Expr substitute(Expr root, std::span<const std::optional<Expr>> inputs, std::span<const int> slots,
                std::span<const Expr> indices) {
  auto slot_of = [&](std::int64_t k) { return k < std::ssize(slots) ? slots[k] : int(k); };
  return rewrite(root, [&](Expr e, Expr rebuilt) -> std::optional<Expr> {
    std::int64_t k = e.index();
    switch (e.op()) {
      case Op::input:
        if (k < std::ssize(inputs) && inputs[k]) return convert(*inputs[k], e.type());
        return e;
      case Op::slot:
        return expr::slot(slot_of(k), e.type());
      case Op::index:
        return k < std::ssize(indices) ? convert(indices[k], ExprType::integer) : e;
      case Op::uniform:
        if (slot_of(k + 1) != slot_of(k) + 1 || slot_of(k + 2) != slot_of(k) + 2) {
          fail(ErrorKind::usage, "substitute: the three slots of a uniform must stay neighbours");
        }
        return expr::uniform(slot_of(k), rebuilt.arg(0));
      default:
        return std::nullopt;
    }
  });
}

Expr replace(Expr root, Expr from, Expr to) {
  return rewrite(root, [&](Expr e, Expr) { return same(e, from) ? std::optional(to) : std::nullopt; });
}

// ---- questions --------------------------------------------------------------------------------------------------------------

namespace {

int leaf_count(std::span<const Expr> roots, Op op) {
  std::int64_t count = 0;
  for (Expr e : topological(roots)) {
    if (e.op() == op) count = std::max(count, e.index() + 1);
    if (e.op() == Op::uniform && op == Op::slot) count = std::max(count, e.index() + 3);
  }
  return int(count);
}

}  // namespace

ExprCost cost_of(std::span<const Expr> roots) {
  ExprCost sum;
  for (Expr e : topological(roots)) {
    ExprCost cost = facts_of(e.op()).cost;
    sum.simple += cost.simple, sum.special += cost.special;
  }
  return sum;
}

int input_count(std::span<const Expr> roots) { return leaf_count(roots, Op::input); }
int slot_count(std::span<const Expr> roots) { return leaf_count(roots, Op::slot); }
int load_count(std::span<const Expr> roots) { return leaf_count(roots, Op::load); }

bool uses_input(Expr root, int k) {
  return std::ranges::any_of(topological(std::span(&root, 1)), [k](Expr e) { return e.op() == Op::input && e.index() == k; });
}

bool uses_op(Expr root, ExprOp op) {
  return std::ranges::any_of(topological(std::span(&root, 1)), [op](Expr e) { return e.op() == op; });
}

}  // namespace weft
