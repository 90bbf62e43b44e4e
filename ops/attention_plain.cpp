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
constexpr HoleSpec kVisibleSpec = {
    .name = "mask", .coordinates = "b h i j", .values = 0, .result = ExprType::boolean, .dense = true};
constexpr HoleSpec kMaskHoles[] = {kVisibleSpec};
constexpr HoleSpec kScoreHoles[] = {
    kVisibleSpec, {.name = "score", .coordinates = "b h i j", .values = 0, .dense = true, .hidden_by = 0, .draws = true}};
constexpr HoleSpec kRotateHoles[] = {{.name = "rotate", .coordinates = "b h t p", .values = 0, .dense = true}};

struct Each {
  std::string_view name;
  std::span<const HoleSpec> holes;  // the last is evaluated
};
constexpr Each kMaskEach{"attention_mask", kMaskHoles}, kScoreEach{"attention_score", kScoreHoles},
    kRotateEach{"attention_rotate", kRotateHoles};

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
const Op& score_each = register_each<kScoreEach>();  // and weights
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

// (b, t, heads, d) to (b, heads, t, d), or back.
Tensor swapped(const Tensor& x, Site where) { return permute(Arg(x, where), {0, 2, 1, 3}); }

// The pairs of features of x (b, heads, t, d) as the hole turns them.
Tensor rotated(const AttentionCall& call, const Hole& rotate, const Tensor& x) {
  if (!rotate.filled()) return x;
  const Shape shape = x.shape();
  const std::int64_t pairs = shape[3] / 2;
  const Shape space{shape[0], shape[1], shape[2], pairs};
  const bool halves = call.pairing == Pairing::halves;
  const auto feature = [&](int k) {
    const Expr p = expr::index(3);
    const Expr at[] = {expr::index(0), expr::index(1), expr::index(2), halves ? p + Expr(k * pairs) : p * Expr(2) + Expr(k)};
    return expr::load(int(rotate.captured.size()), ExprType::real, at);
  };
  const Expr values[] = {feature(0), feature(1)};
  std::vector<Arg> parts;
  for (int k = 0; k < 2; ++k) {
    const Tensor part = record_each(rotate_each, {}, with_values(rotate, k, {&x, 1}, values), space, call.real(), call.where);
    parts.emplace_back(halves ? part : reshape(Arg(part, call.where), Shape{space[0], space[1], space[2], pairs, 1}),
                       call.where);
  }
  const Tensor joined = concat(parts, halves ? 3 : 4, call.where);
  return halves ? joined : reshape(Arg(joined, call.where), shape);
}

// The heads of a group as one matrix: (b, h, t, d) to (b, g, h/g t, d), and back.
Tensor by_group(const AttentionCall& call, const Tensor& x) {
  const Shape s = x.shape();
  const std::int64_t groups = call.k.dim(2);
  return reshape(Arg(x, call.where), Shape{s[0], groups, s[1] / groups * s[2], s[3]});
}
Tensor by_head(const AttentionCall& call, const Tensor& x) {
  const Shape q = call.q.shape();
  return reshape(Arg(x, call.where), Shape{q[0], q[2], q[1], x.dim(3)});
}

Tensor product(const AttentionCall& call, const Tensor& a, const Tensor& b) {
  return matmul(Arg(a, call.where), Arg(b, call.where));
}
Tensor flipped(const AttentionCall& call, const Tensor& a) { return transpose(Arg(a, call.where)); }

// x, or 0 where nothing is seen.
Tensor shown(const AttentionCall& call, const Tensor& visible, const Tensor& x) {
  return visible ? where(Arg(visible, call.where), Arg(x, call.where), full({}, 0, x.dtype(), call.where)) : x;
}

// A hole of score's kind at each place, or of its gradient's.
Tensor each_score(const AttentionCall& call, const Hole& hole, int root, std::initializer_list<Tensor> values) {
  const Shape space = values.begin()->shape();
  std::vector<Expr> loads;
  for (std::size_t k = 0; k < values.size(); ++k) loads.push_back(load_at_place(int(hole.captured.size() + k), space));
  return record_each(score_each, call.mask, with_values(hole, root, std::span(values.begin(), values.size()), loads), space,
                     call.real(), call.where);
}

// Everything up to the probabilities. Scores are (b, h, tq, tk).
struct Plain {
  Tensor q, k;     // rotated, (b, h, tq, dk) and (b, g, tk, dk)
  Tensor s;        // what goes into the score
  Tensor visible;  // booleans; absent if all places are seen
  Tensor p;
  Tensor weight;  // absent if it is 1; 0 where nothing is seen

  explicit Plain(const AttentionCall& call) {
    const Site where = call.where;
    const auto prepared = [&](const Tensor& x) {
      return rotated(call, call.rotate, swapped(convert(x, call.real(), where), where));
    };
    q = prepared(call.q), k = prepared(call.k);
    s = Arg(by_head(call, product(call, by_group(call, q), flipped(call, k))), where) * call.scale;
    if (call.mask.filled()) visible = record_each(mask_each, {}, call.mask, s.shape(), DType::boolean, where);
    p = softmax_of(call, call.score.filled() ? each_score(call, call.score, 0, {s}) : s);
    if (call.weight.filled())
      weight = shown(call, visible, record_each(score_each, call.mask, call.weight, s.shape(), call.real(), where));
  }
  Tensor weighted(const AttentionCall& call, const Tensor& x) const {
    return weight ? Arg(x, call.where) * Arg(weight, call.where) : x;
  }

 private:
  // Of a row that sees nothing, 0: its shift is 0 and its sum 1.
  Tensor softmax_of(const AttentionCall& call, const Tensor& scores) const {
    const Site where = call.where;
    const auto number = [&](double x) { return full({}, x, scores.dtype(), where); };
    constexpr double kLow = -std::numeric_limits<double>::infinity();
    const Tensor x = visible ? weft::where(Arg(visible, where), Arg(scores, where), number(kLow)) : scores;
    if (x.dim(3) == 0) return x;
    const Tensor high = detach(max(Arg(x, where), {-1}, true)), nothing = equal(Arg(high, where), kLow);
    const Tensor e = exp(Arg(Arg(x, where) - weft::where(nothing, number(0), high), where));
    return Arg(e, where) / weft::where(nothing, number(1), sum(Arg(e, where), {-1}, true));
  }
};

}  // namespace

Tensor plain_probabilities(const AttentionCall& call) { return Plain(call).p; }

Tensor plain_attention(const AttentionCall& call) {
  const Plain plain(call);
  const Tensor v = swapped(convert(call.v, call.real(), call.where), call.where);
  const Tensor o = by_head(call, product(call, by_group(call, plain.weighted(call, plain.p)), v));
  return convert(swapped(o, call.where), call.q.dtype(), call.where);
}

PlainGradients plain_gradients(const AttentionCall& call, const Hole& score_grad, const Hole& rotate_grad,
                               const Tensor& upstream) {
  const Site where = call.where;
  const Plain plain(call);
  const Tensor v = swapped(convert(call.v, call.real(), where), where);
  const Tensor g = by_group(call, swapped(convert(upstream, call.real(), where), where));
  const Tensor dp = plain.weighted(call, by_head(call, product(call, g, flipped(call, v))));
  const Tensor delta = sum(Arg(plain.p, where) * Arg(dp, where), {-1}, true);
  const Tensor through = Arg(plain.p, where) * Arg(Arg(dp, where) - Arg(delta, where), where);
  PlainGradients out;
  for (std::size_t r = 0; r < score_grad.roots.size(); ++r)
    out.roots.push_back(shown(call, plain.visible, each_score(call, score_grad, int(r), {plain.s, through})));
  const Tensor ds = by_group(call, Arg(out.roots.empty() ? through : out.roots[0], where) * call.scale);
  const auto back = [&](const Tensor& x) { return swapped(rotated(call, rotate_grad, x), where); };
  out.dq = back(by_head(call, product(call, ds, plain.k)));
  out.dk = back(product(call, flipped(call, ds), by_group(call, plain.q)));
  out.dv = swapped(product(call, flipped(call, by_group(call, plain.weighted(call, plain.p))), g), where);
  return out;
}

Tensor sum_in_form(const Tensor& root, SumForm form, Site where) {
  const Shape s = root.shape();
  switch (form) {
    case SumForm::none:
      return sum(Arg(root, where), {2, 3}, true);
    case SumForm::row:
      return sum(Arg(root, where), {3}, true);
    case SumForm::column:
      return sum(Arg(root, where), {2}, true);
    case SumForm::difference:
      break;
  }
  const std::int64_t n = std::max<std::int64_t>(s[2] + s[3] - 1, 0);
  const Tensor places = pointwise(
      "differences", {zeros(s, DType::i64, where)},
      [&](Expr) {
        const auto c = [](int k) { return expr::index(k); };
        return (c(0) * Expr(s[1]) + c(1)) * Expr(n) + c(2) - c(3) + Expr(s[3] - 1);
      },
      where);
  const Shape line{s.numel()};
  const Tensor sums =
      scatter_sum(Arg(reshape(Arg(root, where), line), where), reshape(Arg(places, where), line), s[0] * s[1] * n);
  return reshape(Arg(sums, where), Shape{s[0], s[1], n});
}

}  // namespace weft
