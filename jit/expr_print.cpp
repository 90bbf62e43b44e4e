// Expressions as people read them: "x0*sigmoid(x0)".
#include <fmt/format.h>

#include <optional>
#include <utility>

#include "jit/order.h"

namespace weft {

std::string_view name_of(ExprOp op) {
  static constexpr std::string_view names[] = {"input", "literal", "slot", "index",   "add",        "sub",    "mul",   "div",
                                               "neg",   "min",     "max",  "pow",     "eq",         "ne",     "lt",    "le",
                                               "and",   "or",      "not",  "select",  "exp",        "log",    "log1p", "expm1",
                                               "sqrt",  "rsqrt",   "tanh", "sigmoid", "softplus",   "erf",    "abs",   "sign",
                                               "floor", "sin",     "cos",  "to_real", "to_integer", "uniform"};
  static_assert(std::size(names) == std::size_t(ExprOp::uniform) + 1);
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

std::optional<Infix> infix_of(ExprOp op) {
  switch (op) {
    case ExprOp::logical_or:
      return Infix{" || ", 1};
    case ExprOp::logical_and:
      return Infix{" && ", 2};
    case ExprOp::eq:
      return Infix{" == ", 3};
    case ExprOp::ne:
      return Infix{" != ", 3};
    case ExprOp::lt:
      return Infix{" < ", 4};
    case ExprOp::le:
      return Infix{" <= ", 4};
    case ExprOp::add:
      return Infix{" + ", 5};
    case ExprOp::sub:
      return Infix{" - ", 5};
    case ExprOp::mul:
      return Infix{"*", 6};
    case ExprOp::div:
      return Infix{"/", 6};
    default:
      return std::nullopt;
  }
}

constexpr int kPrefix = 7, kAtom = 8;

Text leaf_text(Expr e) {
  switch (e.op()) {
    case ExprOp::input:
      return {fmt::format("x{}", e.index()), kAtom};
    case ExprOp::slot:
      return {fmt::format("c{}", e.index()), kAtom};
    case ExprOp::index:
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
  if (e.op() == ExprOp::neg) return {fmt::format("-{}", operand(0, kPrefix)), kPrefix};
  if (e.op() == ExprOp::logical_not) return {fmt::format("!{}", operand(0, kPrefix)), kPrefix};
  std::string text(name_of(e.op()));
  text += "(";
  if (e.op() == ExprOp::uniform) text += fmt::format("c{}, ", e.index());
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
