// Expressions as people read them: "x0*sigmoid(x0)".
#include <fmt/format.h>

#include <utility>

#include "jit/op_facts.h"
#include "jit/order.h"

namespace weft {

std::string_view name_of(ExprOp op) { return facts_of(op).name; }

namespace {

struct Text {
  std::string text;
  int binding;  // how tightly its outermost operator binds
};

constexpr int kPrefix = 7, kAtom = 8;

Text leaf_text(Expr e) {
  switch (e.op()) {
    case ExprOp::input:
      return {fmt::format("x{}", e.index()), kAtom};
    case ExprOp::slot:
      return {fmt::format("c{}", e.index()), kAtom};
    case ExprOp::index:
      return {fmt::format("i{}", e.index()), kAtom};
    case ExprOp::element:
      return {"element", kAtom};
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
  const OpFacts& facts = facts_of(e.op());
  const std::string sign(facts.sign);
  if (!sign.empty() && e.arity() == 1) return {sign + operand(0, facts.binding), facts.binding};
  if (!sign.empty()) return {operand(0, facts.binding) + sign + operand(1, facts.binding + 1), facts.binding};
  std::string text = e.op() == ExprOp::load ? fmt::format("z{}", e.index()) : std::string(facts.name);
  if (e.op() == ExprOp::narrow) text = name_of(DType(e.index()));
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
    const Text* args[kMostCoordinates] = {};
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
