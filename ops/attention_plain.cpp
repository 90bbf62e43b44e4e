// The plain form of attention, made of other ops: scores as one tensor of (b, h, tq, tk). Holes become ops of their own, which
// evaluate an expression at each place of a space; their gradients are such ops again.
#include <array>
#include <limits>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/pointwise.h"
#include "jit/diff.h"
#include "ops/attention.h"
#include "ops/check.h"

namespace weft {

Tensor adjoint(const Hole& hole, Expr load, const Tensor& each, const Shape& space, Site where);  // autograd/hole.cpp

namespace {

// ---- an expression at each place --------------------------------------------------------------------------------------------

// A hole without values: what a skeleton would pass is captured too.
constexpr HoleSpec kScore[] = {{.name = "score", .coordinates = "b h i j", .values = 0, .dense = true}};
constexpr HoleSpec kMask[] = {
    {.name = "mask", .coordinates = "b h i j", .values = 0, .result = ExprType::boolean, .dense = true}};
constexpr HoleSpec kWeight[] = {{.name = "weight", .coordinates = "b h i j", .values = 0, .dense = true}};
constexpr HoleSpec kRotate[] = {{.name = "rotate", .coordinates = "b h t p", .values = 0, .dense = true}};

template <const std::string_view& name>
void lower_each(Lowering& l) {
  if (const Operand out = l.output())
    l.emit_pointwise(std::string(name), l.hole(0, Shape(std::span(out.dims.data(), std::size_t(out.rank)))), out);
}

void each_vjp(Vjp& v);
template <const std::string_view& name>
const Op& register_each(std::span<const HoleSpec> hole) {
  const bool real = hole[0].result == ExprType::real;
  return register_op(
      {.name = name, .vjp = real ? each_vjp : nullptr, .lower = lower_each<name>, .cuda = lower_each<name>, .holes = hole});
}
constexpr std::string_view kScoreName = "attention_score", kMaskName = "attention_mask", kWeightName = "attention_weight",
                           kRotateName = "attention_rotate";
const Op& score_each = register_each<kScoreName>(kScore);
const Op& mask_each = register_each<kMaskName>(kMask);
const Op& weight_each = register_each<kWeightName>(kWeight);
const Op& rotate_each = register_each<kRotateName>(kRotate);

Tensor record_each(const Op& op, const Hole& hole, const Shape& space, DType dtype, Site where) {
  Recorder r(op, where);
  return r.hole(0, hole, space).out(space, dtype).record();
}

Expr load_at_place(int tensor, const Shape& space) {
  std::vector<Expr> place;
  for (int c = 0; c < space.rank(); ++c) place.push_back(expr::index(c));
  return expr::load(tensor, ExprType::real, place);
}

// The derivative by a load is an expression at each place again, which captures the upstream gradient. Where that is 0 it is 0,
// as in a pointwise op: what hides a place hides its slopes.
void each_vjp(Vjp& v) {
  const Hole hole = v.hole(0);
  const Shape space = v.output().shape();
  Hole gradient = hole;
  gradient.captured.push_back(v.grad());
  const Expr upstream = load_at_place(int(hole.captured.size()), space);
  for (const Expr load : topological(hole.roots)) {
    if (load.op() != ExprOp::load || load.type() != ExprType::real) continue;
    const int input = v.hole_input(0, int(load.index()));
    if (!v.needs(input)) continue;
    const Expr slope = diff(hole.roots[0], upstream, std::span(&load, 1))[0];
    if (is_zero(slope)) continue;
    gradient.roots = {unless_zero(upstream, slope)};
    const Op& op = tape().op(v.output().node());
    const Tensor each = record_each(op, gradient, space, v.output().dtype(), v.where());
    const Tensor sum = adjoint(hole, load, each, space, v.where());
    v.add(input, convert(sum, v.input(input).dtype(), v.where()));
  }
}

// ---- the parts of attention -------------------------------------------------------------------------------------------------

// The hole with its values, if it has any, read from these tensors at these subscripts.
Hole with_values(const Hole& hole, int root, std::span<const Tensor> from, std::span<const Expr> values) {
  Hole out = hole;
  std::vector<std::optional<Expr>> inputs(values.begin(), values.end());
  out.roots = {substitute(hole.roots[std::size_t(root)], inputs)};
  for (const Tensor& t : from) out.captured.push_back(t);
  return out;
}

// x (b, t, heads, d) -> (b, heads, t, d), its pairs of features rotated.
Tensor rotated(const AttentionCall& call, const Tensor& x) {
  const Tensor by_head = permute(Arg(convert(x, call.real(), call.where), call.where), {0, 2, 1, 3});
  if (!call.rotate.filled()) return by_head;
  const Shape shape = by_head.shape();
  const std::int64_t pairs = shape[3] / 2;
  const Shape space{shape[0], shape[1], shape[2], pairs};
  const bool halves = call.pairing == Pairing::halves;
  const auto feature = [&](int k) {
    const Expr p = expr::index(3);
    const Expr at[] = {expr::index(0), expr::index(1), expr::index(2), halves ? p + Expr(k * pairs) : p * Expr(2) + Expr(k)};
    return expr::load(int(call.rotate.captured.size()), ExprType::real, at);
  };
  const Expr values[] = {feature(0), feature(1)};
  std::vector<Arg> parts;
  for (int k = 0; k < 2; ++k) {
    const Hole hole = with_values(call.rotate, k, {&by_head, 1}, values);
    const Tensor part = record_each(rotate_each, hole, space, call.real(), call.where);
    parts.emplace_back(halves ? part : reshape(Arg(part, call.where), Shape{space[0], space[1], space[2], pairs, 1}),
                       call.where);
  }
  const Tensor joined = concat(parts, halves ? 3 : 4, call.where);
  return halves ? joined : reshape(Arg(joined, call.where), shape);
}

// The heads of a group as one matrix: (b, h, t, d) -> (b, g, h/g t, d), and back.
Tensor by_group(const AttentionCall& call, const Tensor& x) {
  const Shape s = x.shape();
  const std::int64_t groups = call.k.shape()[2];
  return reshape(Arg(x, call.where), Shape{s[0], groups, s[1] / groups * s[2], s[3]});
}
Tensor by_head(const AttentionCall& call, const Tensor& x) {
  const Shape q = call.q.shape();
  return reshape(Arg(x, call.where), Shape{q[0], q[2], q[1], x.shape()[3]});
}

}  // namespace

Tensor plain_probabilities(const AttentionCall& call) {
  const Site where = call.where;
  const auto product = [&](const Tensor& a, const Tensor& b) { return matmul(Arg(a, where), Arg(b, where)); };
  const Tensor q = rotated(call, call.q), k = rotated(call, call.k);
  Tensor s = by_head(call, product(by_group(call, q), transpose(Arg(k, where))));
  s = Arg(s, where) * call.scale;
  const Shape space = s.shape();
  if (call.score.filled()) {
    const Expr value = load_at_place(int(call.score.captured.size()), space);
    s = record_each(score_each, with_values(call.score, 0, {&s, 1}, {&value, 1}), space, call.real(), where);
  }
  if (call.mask.filled()) {
    const Tensor visible = record_each(mask_each, call.mask, space, DType::boolean, where);
    s = weft::where(Arg(visible, where), Arg(s, where), full({}, -std::numeric_limits<double>::infinity(), s.dtype(), where));
  }
  if (space[3] == 0) return s;
  // The shift is 0 where nothing is seen, and the sum 1, so that the row is 0.
  const auto minus_infinity = [&](const Tensor& x) { return equal(Arg(x, where), -std::numeric_limits<double>::infinity()); };
  const Tensor high = detach(max(Arg(s, where), {-1}, true)), zero = full({}, 0, s.dtype(), where);
  const Tensor shift = weft::where(minus_infinity(high), zero, high);
  const Tensor e = exp(Arg(Arg(s, where) - shift, where)), total = sum(Arg(e, where), {-1}, true);
  return Arg(e, where) / weft::where(equal(Arg(total, where), 0.0), full({}, 1, s.dtype(), where), total);
}

Tensor plain_attention(const AttentionCall& call) {
  const Site where = call.where;
  Tensor p = plain_probabilities(call);
  if (call.weight.filled()) p = Arg(p, where) * record_each(weight_each, call.weight, p.shape(), p.dtype(), where);
  const Tensor v = permute(Arg(convert(call.v, call.real(), where), where), {0, 2, 1, 3});
  const Tensor o = by_head(call, matmul(Arg(by_group(call, p), where), Arg(v, where)));
  return convert(permute(Arg(o, where), {0, 2, 1, 3}), call.q.dtype(), where);
}

}  // namespace weft
