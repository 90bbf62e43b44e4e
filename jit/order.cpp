#include "jit/order.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "jit/error.h"

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
  switch (args.size()) {
    case 1:
      return e.op() == Op::uniform ? expr::uniform(int(e.index()), args[0]) : expr::make(e.op(), args[0]);
    case 2:
      return expr::make(e.op(), args[0], args[1]);
    case 3:
      return expr::make(e.op(), args[0], args[1], args[2]);
    default:
      return e;
  }
}

// Rebuilds the DAG from the leaves; `rewrite(e, rebuilt)` is another replacement of e, or nullopt.
template <class F>
Expr rebuild(Expr root, F rewrite) {
  Order order(std::span(&root, 1));
  std::vector<Expr> made;
  made.reserve(order.size());
  for (Expr e : order.nodes()) {
    Expr args[3];
    for (int i = 0; i < e.arity(); ++i) args[i] = made[order.position(e.arg(i))];
    Expr rebuilt = remake(e, std::span(args, e.arity()));
    made.push_back(rewrite(e, rebuilt).value_or(rebuilt));
  }
  return made.back();
}

Expr convert(Expr e, ExprType type) {
  return type == ExprType::real ? to_real(e) : type == ExprType::integer ? to_integer(e) : e && expr::boolean(true);
}

}  // namespace

Expr substitute(Expr root, std::span<const std::optional<Expr>> inputs, std::span<const int> slots,
                std::span<const Expr> indices) {
  auto slot_of = [&](std::int64_t k) { return k < std::ssize(slots) ? slots[k] : int(k); };
  return rebuild(root, [&](Expr e, Expr rebuilt) -> std::optional<Expr> {
    std::int64_t k = e.index();
    switch (e.op()) {
      case Op::input:
        if (k < std::ssize(inputs) && inputs[k]) return convert(*inputs[k], e.type());
        return e;
      case Op::slot:
        return expr::slot(slot_of(k));
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
  return rebuild(root, [&](Expr e, Expr) { return e == from ? std::optional(to) : std::nullopt; });
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

// Steps of special-function units or their equal in instruction slots; the rest of an op's work counts as simple.
ExprCost cost_of(Op op) {
  switch (op) {
    case Op::input:
    case Op::literal:
    case Op::slot:
    case Op::index:
      return {0, 0};
    case Op::exp:
    case Op::log:
    case Op::sqrt:
    case Op::rsqrt:
    case Op::div:
      return {1, 1};
    case Op::log1p:
    case Op::expm1:
    case Op::tanh:
    case Op::sigmoid:
    case Op::sin:
    case Op::cos:
      return {2, 2};
    case Op::softplus:
    case Op::erf:
      return {4, 2};
    case Op::pow:
      return {4, 3};
    case Op::uniform:
      return {64, 0};  // ten rounds of two wide products and four xors
    default:
      return {1, 0};
  }
}

}  // namespace

ExprCost cost_of(std::span<const Expr> roots) {
  ExprCost sum;
  for (Expr e : topological(roots)) {
    ExprCost cost = cost_of(e.op());
    sum.simple += cost.simple, sum.special += cost.special;
  }
  return sum;
}

int input_count(std::span<const Expr> roots) { return leaf_count(roots, Op::input); }
int slot_count(std::span<const Expr> roots) { return leaf_count(roots, Op::slot); }

bool uses_input(Expr root, int k) {
  return std::ranges::any_of(topological(std::span(&root, 1)), [k](Expr e) { return e.op() == Op::input && e.index() == k; });
}

bool uses_op(Expr root, ExprOp op) {
  return std::ranges::any_of(topological(std::span(&root, 1)), [op](Expr e) { return e.op() == op; });
}

// ---- text -------------------------------------------------------------------------------------------------------------------

std::string_view name_of(ExprOp op) {
  static constexpr std::string_view names[] = {"input", "literal", "slot", "index",   "add",        "sub",    "mul",   "div",
                                               "neg",   "min",     "max",  "pow",     "eq",         "ne",     "lt",    "le",
                                               "and",   "or",      "not",  "select",  "exp",        "log",    "log1p", "expm1",
                                               "sqrt",  "rsqrt",   "tanh", "sigmoid", "softplus",   "erf",    "abs",   "sign",
                                               "floor", "sin",     "cos",  "to_real", "to_integer", "uniform"};
  static_assert(std::size(names) == std::size_t(Op::uniform) + 1);
  return names[std::size_t(op)];
}

namespace {

struct Text {
  std::string text;
  int binding;  // how tightly its outermost operator binds
};

struct Infix {
  std::string_view sign;
  int binding;
};

std::optional<Infix> infix_of(Op op) {
  switch (op) {
    case Op::logical_or:
      return Infix{" || ", 1};
    case Op::logical_and:
      return Infix{" && ", 2};
    case Op::eq:
      return Infix{" == ", 3};
    case Op::ne:
      return Infix{" != ", 3};
    case Op::lt:
      return Infix{" < ", 4};
    case Op::le:
      return Infix{" <= ", 4};
    case Op::add:
      return Infix{" + ", 5};
    case Op::sub:
      return Infix{" - ", 5};
    case Op::mul:
      return Infix{"*", 6};
    case Op::div:
      return Infix{"/", 6};
    default:
      return std::nullopt;
  }
}

constexpr int kPrefix = 7, kAtom = 8;

Text leaf_text(Expr e) {
  switch (e.op()) {
    case Op::input:
      return {fmt::format("x{}", e.index()), kAtom};
    case Op::slot:
      return {fmt::format("c{}", e.index()), kAtom};
    case Op::index:
      return {fmt::format("i{}", e.index()), kAtom};
    default:
      break;
  }
  if (e.type() == ExprType::boolean) return {e.index() ? "true" : "false", kAtom};
  std::string text = e.type() == ExprType::integer ? fmt::format("{}", e.index()) : fmt::format("{}", e.value());
  int binding = text.starts_with('-') ? kPrefix : kAtom;
  return {std::move(text), binding};
}

Text node_text(Expr e, std::span<const Text* const> args) {
  auto operand = [&](int i, int binding) {
    return args[i]->binding < binding ? fmt::format("({})", args[i]->text) : args[i]->text;
  };
  if (e.arity() == 0) return leaf_text(e);
  if (auto infix = infix_of(e.op())) {
    return {operand(0, infix->binding) + std::string(infix->sign) + operand(1, infix->binding + 1), infix->binding};
  }
  if (e.op() == Op::neg) return {fmt::format("-{}", operand(0, kPrefix)), kPrefix};
  if (e.op() == Op::logical_not) return {fmt::format("!{}", operand(0, kPrefix)), kPrefix};
  std::string text(name_of(e.op()));
  text += "(";
  if (e.op() == Op::uniform) text += fmt::format("c{}, ", e.index());
  for (int i = 0; i < e.arity(); ++i) text.append(i ? ", " : "").append(args[i]->text);
  return {text + ")", kAtom};
}

}  // namespace

// A long subexpression that is used twice gets a name, so the text is never much longer than the DAG.
std::string to_string(Expr root) {
  constexpr std::size_t kLong = 24;
  Order order(std::span(&root, 1));
  std::vector<int> uses(order.size());
  for (Expr e : order.nodes()) {
    for (int i = 0; i < e.arity(); ++i) ++uses[order.position(e.arg(i))];
  }
  std::string definitions;
  int names = 0;
  std::vector<Text> texts;
  for (Expr e : order.nodes()) {
    const Text* args[3] = {};
    for (int i = 0; i < e.arity(); ++i) args[i] = &texts[order.position(e.arg(i))];
    Text text = node_text(e, std::span(args, e.arity()));
    if (uses[texts.size()] > 1 && text.text.size() > kLong) {
      definitions += fmt::format("t{} = {}; ", names, text.text);
      text = {fmt::format("t{}", names++), kAtom};
    }
    texts.push_back(std::move(text));
  }
  return definitions + texts.back().text;
}

}  // namespace weft
