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

namespace {

// ---- an expression at each place --------------------------------------------------------------------------------------------

// Holes without values: what a skeleton would pass is captured too. Of two the first says which places are seen.
constexpr HoleSpec kVisible = {
    .name = "mask", .coordinates = "b h i j", .values = 0, .result = ExprType::boolean, .dense = true};
constexpr HoleSpec kMask[] = {kVisible};
constexpr HoleSpec kScore[] = {kVisible,
                               {.name = "score", .coordinates = "b h i j", .values = 0, .dense = true, .hidden_by = 0}};
constexpr HoleSpec kWeight[] = {kVisible,
                                {.name = "weight", .coordinates = "b h i j", .values = 0, .dense = true, .hidden_by = 0}};
constexpr HoleSpec kRotate[] = {{.name = "rotate", .coordinates = "b h t p", .values = 0, .dense = true}};

struct Each {
  std::string_view name;
  std::span<const HoleSpec> holes;  // the last is evaluated
};
constexpr Each kMaskEach{"attention_mask", kMask}, kScoreEach{"attention_score", kScore},
    kWeightEach{"attention_weight", kWeight}, kRotateEach{"attention_rotate", kRotate};

template <const Each& kind>
void lower_each(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const Shape space(std::span(out.dims.data(), std::size_t(out.rank)));
  l.emit_pointwise(std::string(kind.name), l.hole(int(kind.holes.size()) - 1, space), out);
}

void each_vjp(Vjp& v);
template <const Each& kind>
const Op& register_each() {
  const bool real = kind.holes.back().result == ExprType::real;
  return register_op({.name = kind.name,
                      .vjp = real ? each_vjp : nullptr,
                      .lower = lower_each<kind>,
                      .cuda = lower_each<kind>,
                      .holes = kind.holes});
}
const Op& mask_each = register_each<kMaskEach>();
const Op& score_each = register_each<kScoreEach>();
const Op& weight_each = register_each<kWeightEach>();
const Op& rotate_each = register_each<kRotateEach>();

Tensor record_each(const Op& op, const Hole& mask, const Hole& hole, const Shape& space, DType dtype, Site where) {
  Recorder r(op, where);
  if (op.holes.size() == 2) r.hole(0, mask, space);
  return r.hole(int(op.holes.size()) - 1, hole, space).out(space, dtype).record();
}

Expr load_at_place(int tensor, const Shape& space) {
  std::vector<Expr> place;
  for (int c = 0; c < space.rank(); ++c) place.push_back(expr::index(c));
  return expr::load(tensor, ExprType::real, place);
}

// The derivative by a load is an expression at each place again, which captures the upstream gradient. Where that is 0 it is 0,
// as in a pointwise op: what hides a place hides its slopes.
void each_vjp(Vjp& v) {
  const Op& op = tape().op(v.output().node());
  const int last = int(op.holes.size()) - 1;
  const Hole hole = v.hole(last), mask = last > 0 ? v.hole(0) : Hole{};
  const Shape space = v.output().shape();
  Hole gradient = hole;
  gradient.captured.push_back(v.grad());
  const Expr upstream = load_at_place(int(hole.captured.size()), space);
  for (const Expr load : topological(hole.roots)) {
    if (load.op() != ExprOp::load || load.type() != ExprType::real) continue;
    const int input = v.hole_input(last, int(load.index()));
    if (!v.needs(input)) continue;
    const Expr slope = diff(hole.roots[0], upstream, std::span(&load, 1))[0];
    if (is_zero(slope)) continue;
    gradient.roots = {unless_zero(upstream, slope)};
    const Tensor each = record_each(op, mask, gradient, space, v.output().dtype(), v.where());
    v.add(input, convert(adjoint(hole, load, each, space, mask.filled(), v.where()), v.input(input).dtype(), v.where()));
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
    const Tensor part = record_each(rotate_each, {}, hole, space, call.real(), call.where);
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

namespace {

struct Probabilities {
  Tensor p;        // (b, h, tq, tk)
  Tensor visible;  // booleans; absent if all places are
};

Probabilities probabilities(const AttentionCall& call) {
  const Site where = call.where;
  const Tensor q = by_group(call, rotated(call, call.q)), k = rotated(call, call.k);
  Tensor s = by_head(call, matmul(Arg(q, where), transpose(Arg(k, where))));
  s = Arg(s, where) * call.scale;
  const Shape space = s.shape();
  if (call.score.filled()) {
    const Expr value = load_at_place(int(call.score.captured.size()), space);
    s = record_each(score_each, call.mask, with_values(call.score, 0, {&s, 1}, {&value, 1}), space, call.real(), where);
  }
  Tensor visible;
  if (call.mask.filled()) {
    visible = record_each(mask_each, {}, call.mask, space, DType::boolean, where);
    s = weft::where(Arg(visible, where), Arg(s, where), full({}, -std::numeric_limits<double>::infinity(), s.dtype(), where));
  }
  if (space[3] == 0) return {s, visible};
  // The shift is 0 where nothing is seen, and the sum 1, so that the row is 0.
  const Tensor high = detach(max(Arg(s, where), {-1}, true)), zero = full({}, 0, s.dtype(), where);
  const Tensor nothing = equal(Arg(high, where), -std::numeric_limits<double>::infinity());
  const Tensor e = exp(Arg(Arg(s, where) - weft::where(nothing, zero, high), where));
  const Tensor total = sum(Arg(e, where), {-1}, true);
  return {Arg(e, where) / weft::where(nothing, full({}, 1, s.dtype(), where), total), visible};
}

}  // namespace

Tensor plain_probabilities(const AttentionCall& call) { return probabilities(call).p; }

Tensor plain_attention(const AttentionCall& call) {
  const Site where = call.where;
  auto [p, visible] = probabilities(call);
  if (call.weight.filled()) {
    const Tensor weight = record_each(weight_each, call.mask, call.weight, p.shape(), p.dtype(), where);
    p = Arg(p, where) * (visible ? weft::where(visible, weight, full({}, 0, p.dtype(), where)) : weight);
  }
  const Tensor v = permute(Arg(convert(call.v, call.real(), where), where), {0, 2, 1, 3});
  const Tensor o = by_head(call, matmul(Arg(by_group(call, p), where), Arg(v, where)));
  return convert(permute(Arg(o, where), {0, 2, 1, 3}), call.q.dtype(), where);
}

}  // namespace weft
