#include "autograd/pointwise.h"

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "autograd/tensor.h"
#include "jit/convert.h"
#include "jit/diff.h"
#include "jit/few.h"

namespace weft {
namespace {

struct Names {
  std::mutex mutex;
  std::deque<std::string> list;
  std::unordered_map<std::string_view, std::int64_t> ids;
};
Names& names() {
  static Names n;
  return n;
}

// d(body)/d(input k) with its operands made dense: the inputs of the gradient node are uses[i] of [inputs..., upstream,
// output]. Its slots are those of the node that is differentiated.
struct Derivative {
  Expr body;
  bool zero = false, identity = false;
  int inputs = 0;  // of the node that was differentiated
  std::vector<int> uses;
};

// Renumbers the inputs of `body` to those it uses.
Derivative compact(Expr body) {
  Derivative d;
  const auto nodes = topological(std::span(&body, 1));
  for (const Expr e : nodes)
    if (e.op() == ExprOp::input) d.uses.push_back(int(e.index()));
  std::sort(d.uses.begin(), d.uses.end());
  std::vector<std::optional<Expr>> inputs(d.uses.empty() ? 0 : std::size_t(d.uses.back()) + 1);
  for (const Expr e : nodes)
    if (e.op() == ExprOp::input) {
      const auto at = std::lower_bound(d.uses.begin(), d.uses.end(), int(e.index())) - d.uses.begin();
      inputs[std::size_t(e.index())] = expr::input(int(at), e.type());
    }
  d.body = substitute(body, inputs);
  return d;
}

// A gradient that a pointwise op passes on is unless_zero(g, x) of the gradient g that arrived, of which x is a multiple: 0 is
// passed on as 0, whatever the slope is, so an arm that is not taken has the gradient 0 through any kernels. Not needed where x
// has no slope that could be inf or NaN.
bool keeps_zero(Expr x, Expr g) {
  switch (x.op()) {
    case ExprOp::neg:
    case ExprOp::narrow:
      return keeps_zero(x.arg(0), g);
    case ExprOp::add:
    case ExprOp::sub:
      return keeps_zero(x.arg(0), g) && keeps_zero(x.arg(1), g);
    case ExprOp::select:
    case ExprOp::mul: {
      const Expr a = x.arg(x.arity() - 2), b = x.arg(x.arity() - 1);
      const bool product = x.op() == ExprOp::mul;
      return (keeps_zero(a, g) || (product && a.op() == ExprOp::literal)) &&
             (keeps_zero(b, g) || (product && b.op() == ExprOp::literal));
    }
    default:
      return same(x, g) || is_zero(x);
  }
}

// That of the gradient unless_zero(g, x) is a multiple of g too, unless it is the derivative by g.
Expr derivative(Expr body, Expr leaf, Expr upstream) {
  if (body.op() != ExprOp::unless_zero) return diff(body, upstream, std::span(&leaf, 1))[0];
  const Expr d = derivative(body.arg(1), leaf, upstream);
  return same(body.arg(0), leaf) ? d : unless_zero(body.arg(0), d);
}

const Derivative& derivative(Expr body, int k, int inputs) {
  // By expression, then input.
  thread_local std::vector<std::unique_ptr<std::array<std::unique_ptr<Derivative>, kMostOperands>>> cache;
  if (body.id() >= cache.size()) cache.resize(body.id() + 1);
  auto& of_body = cache[body.id()];
  if (!of_body) of_body = std::make_unique<std::array<std::unique_ptr<Derivative>, kMostOperands>>();
  std::unique_ptr<Derivative>& known = (*of_body)[std::size_t(k)];
  if (known && known->inputs == inputs) return *known;
  const Expr upstream = expr::input(inputs);
  const Expr leaf = expr::input(k);
  Expr g = derivative(body, leaf, upstream);
  if (!keeps_zero(g, upstream)) g = unless_zero(upstream, g);
  // A function of the node's own value reads that value; the scheduler decides whether to store or recompute it.
  if (body.arity() > 0) g = replace(g, body, expr::input(inputs + 1));
  known = std::make_unique<Derivative>(compact(g));
  known->inputs = inputs;
  known->zero = same(g, expr::literal(0));
  known->identity = same(g, upstream);
  return *known;
}

// "silu" -> "silu_grad", looked up once a name.
std::int64_t gradient_name(std::int64_t name) {
  thread_local std::vector<std::int64_t> cache;
  if (std::size_t(name) >= cache.size()) cache.resize(std::size_t(name) + 1, -1);
  if (cache[std::size_t(name)] < 0) cache[std::size_t(name)] = name_id(names().list[std::size_t(name)] + "_grad");
  return cache[std::size_t(name)];
}

Tensor record_cast(const Tensor& a, Expr body, DType dtype, Site where) {
  static const std::int64_t name = name_id("cast");
  return record_body(name, body, {&a, 1}, {}, a.shape(), dtype, where);
}

}  // namespace

Expr stored_as(DType to, Expr x) {
  if (is_real(to)) return to_real(x);
  if (to == DType::boolean) return narrow(x, to);
  const Expr whole = to_integer(x);
  if (to == DType::i64 || x.type() != ExprType::real) return whole;
  using Limits = std::numeric_limits<std::int32_t>;
  return clamp(whole, Expr(Limits::min()), Expr(Limits::max()));
}

const Op& pointwise_op() {
  static const Op& op =
      register_op({.name = "pointwise", .identity = [](const Tape& t, NodeId id) {
                     return pointwise_body(t, id).hash() ^ std::hash<std::string_view>()(pointwise_name(t, id));
                   }});
  return op;
}
const Op& output_op() {
  static const Op& op = register_op({.name = "output"});
  return op;
}
const Op& input_op() {
  static const Op& op = register_op({.name = "input"});
  return op;
}
const Op& state_op() {
  static const Op& op = register_op({.name = "state"});
  return op;
}

Expr pointwise_body(const Tape& t, NodeId id) { return Expr::from_id(std::uint32_t(t.ints_of(id)[0])); }
std::string_view pointwise_name(const Tape& t, NodeId id) { return names().list[std::size_t(t.ints_of(id)[1])]; }

std::int64_t name_id(std::string_view name) {
  Names& n = names();
  const std::lock_guard lock(n.mutex);
  if (const auto it = n.ids.find(name); it != n.ids.end()) return it->second;
  n.list.emplace_back(name);
  return n.ids[n.list.back()] = std::int64_t(n.list.size()) - 1;
}

Tensor record_body(std::int64_t name, Expr body, std::span<const Tensor> inputs, std::span<const double> constants,
                   const Shape& shape, DType dtype, Site where) {
  const std::int64_t ints[] = {body.id(), name};
  const Out out{shape, dtype};
  return record(pointwise_op(), inputs, std::span(&out, 1), ints, constants, where);
}

Tensor add(const Tensor& a, const Tensor& b, Site where) {
  static const Expr body = expr::input(0) + expr::input(1);
  static const std::int64_t name = name_id("add");
  const Tensor operands[] = {a, b};
  return record_body(name, body, operands, {}, a.shape(), a.dtype(), where);
}

Tensor convert(const Tensor& a, DType dtype, Site where) { return a.dtype() == dtype ? a : copy(a, dtype, where); }

Tensor copy(const Tensor& a, DType dtype, Site where) {
  return record_cast(a, stored_as(dtype, expr::input(0, expr_type(a.dtype()))), dtype, where);
}

Tensor cast(const Tensor& a, DType dtype, Site where) {
  if (a.dtype() == dtype) return a;
  const Expr body = stored_as(dtype, expr::input(0, expr_type(a.dtype())));
  return record_cast(a, dtype == DType::bf16 ? narrow(body, dtype) : body, dtype, where);  // others: Scheduler::narrowed
}

Tensor constant(double value, const Shape& shape, DType dtype, Site where) {
  static const std::int64_t name = name_id("constant");
  // A slot of the type of the result: 2^24 + 1 is a number of fp64, not of fp32.
  if (dtype == DType::i32) value = value_as<std::int32_t>(value);
  Expr body = expr::slot(0, is_integer(dtype) ? ExprType::integer : ExprType::real);
  for (const double exact : {0.0, 1.0}) body = value == exact ? expr::literal(exact) : body;
  body = stored_as(dtype, body);
  return record_body(name, body, {}, std::span(&value, body.op() == ExprOp::literal ? 0 : 1), shape, dtype, where);
}

NodeId pointwise_gradient(Tape& t, NodeId id, int k, std::span<const NodeId> inputs, NodeId output, NodeId upstream) {
  const DType dtype = t.nodes[inputs[k]].dtype;
  if (!is_real(dtype)) return Tape::kNone;
  const Derivative& d = derivative(pointwise_body(t, id), k, int(inputs.size()));
  if (d.zero) return Tape::kNone;
  if (d.identity) {  // that of a cast is the cast back
    const ExprOp op = pointwise_body(t, id).op();
    const bool of_cast = op == ExprOp::input || op == ExprOp::narrow;
    const Tensor g = handle(upstream);
    const Site where = t.origins[id].where;
    return (of_cast ? cast(g, dtype, where) : convert(g, dtype, where)).node();
  }
  Few<NodeId, kMostOperands> operands;
  for (const int use : d.uses) {
    const auto u = std::size_t(use);
    operands.push_back(u < inputs.size() ? inputs[u] : u == inputs.size() ? upstream : output);
  }
  const Node& node = t.nodes[id];
  const std::span<const double> constants(t.constants.data() + node.first_constant, node.constants);
  const std::int64_t ints[] = {d.body.id(), gradient_name(t.ints_of(id)[1])};
  const Out out{t.shape(id), dtype};
  return t.record(pointwise_op(), operands, {&out, 1}, ints, constants, t.origins[id].where);
}

}  // namespace weft
