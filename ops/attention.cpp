// Attention (arXiv:2205.14135), channel-last, with holes for the score, the mask, a weight and a rotation: its checks, how it
// is recorded, and its gradient.
#include "ops/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "autograd/backward.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "jit/diff.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/holes.h"

namespace weft {
namespace {

using namespace attention_layout;

// ---- the ops ----------------------------------------------------------------------------------------------------------------

constexpr std::uint8_t kEverySum = (1 << kSumForms) - 1;
constexpr HoleSpec kMaskSpec = {.name = "mask", .coordinates = "b h i j", .values = 0, .result = ExprType::boolean};
constexpr HoleSpec kScoreSpec = {
    .name = "score", .coordinates = "b h i j", .values = 1, .sums = kEverySum, .hidden_by = kMask, .names = {"s"}};
constexpr HoleSpec kScoreGradSpec = {.name = "score_grad",
                                     .coordinates = "b h i j",
                                     .values = 2,
                                     .results = 0,
                                     .sums = kEverySum,
                                     .hidden_by = kMask,
                                     .names = {"s", "g"}};
constexpr HoleSpec kWeightSpec = {.name = "weight", .coordinates = "b h i j", .values = 0, .hidden_by = kMask, .draws = true};
constexpr HoleSpec kRotateSpec = {.name = "rotate", .coordinates = "b h t p", .values = 2, .results = 2, .names = {"x", "y"}};
constexpr HoleSpec kRotateGradSpec = {
    .name = "rotate_grad", .coordinates = "b h t p", .values = 2, .results = 2, .names = {"gx", "gy"}};
constexpr HoleSpec kAttentionHoles[] = {kMaskSpec, kScoreSpec, kWeightSpec, kRotateSpec};
constexpr HoleSpec kAttentionBackwardHoles[] = {kMaskSpec,   kScoreSpec,  kScoreGradSpec,
                                                kWeightSpec, kRotateSpec, kRotateGradSpec};

void attention_vjp(Vjp& v);
void attention_backward_vjp(Vjp& v);
const Op& attention_op = register_op(
    {.name = "attention", .vjp = attention_vjp, .lower = lower_attention, .cuda = cuda_attention, .holes = kAttentionHoles});
const Op& attention_backward_op = register_op({.name = "attention_backward",
                                               .vjp = attention_backward_vjp,
                                               .lower = lower_attention_backward,
                                               .cuda = cuda_attention_backward,
                                               .holes = kAttentionBackwardHoles});

// The transpose of a rotation, (gx, gy) -> (dx, dy). An error if the rotation is not linear.
Hole transposed(const Hole& rotate, Site where) {
  if (!rotate.filled()) return {};
  thread_local std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<Expr>> known;
  const auto [found, added] = known.try_emplace({rotate.roots[0].id(), rotate.roots[1].id()});
  if (added) {
    const Expr values[] = {expr::input(0), expr::input(1)}, upstreams[] = {expr::input(2), expr::input(3)};
    found->second = diff(std::span(rotate.roots.data(), 2), upstreams, values);
  }
  Hole out = rotate;
  out.roots.clear();
  for (const Expr root : found->second) {
    if (uses_input(root, 0) || uses_input(root, 1))
      fail_at(where, "attention: the rotation is not linear", to_string(root),
              "rotate gives sums of multiples of its two values; compute anything else before the op");
    const std::optional<Expr> upstreams[] = {std::nullopt, std::nullopt, expr::input(0), expr::input(1)};
    out.roots.push_back(substitute(root, upstreams));
  }
  return out;
}

// The space of score, mask and weight, and one in which the pairs of features of q and of k lie.
Shape scores_of(const Tensor& q, const Tensor& k) { return {q.dim(0), q.dim(2), q.dim(1), k.dim(1)}; }
Shape pairs_of(const Tensor& q, const Tensor& k) { return {q.dim(0), q.dim(2), std::max(q.dim(1), k.dim(1)), q.dim(3) / 2}; }

// The same as the contract says where it is known before that a gradient will be wanted.
void refuse_gradients(const Vjp& v, int h) {
  const Hole hole = v.hole(h);
  for (std::size_t k = 0; k < hole.captured.size(); ++k)
    if (v.needs(v.hole_input(h, int(k))))
      fail_at(v.where(), fmt::format("attention: the {} gives no gradient to what it captures", v.hole_spec(h).name),
              fmt::format("captured {}, {}", k, to_string(hole.captured[k].shape())), "detach() it");
}

void attention_vjp(Vjp& v) {
  for (const int h : {kMask, kWeight, kRotate}) refuse_gradients(v, h);
  const Tensor q = v.input(kQ), k = v.input(kK), value = v.input(kV), lse = v.output(kLse);
  const Shape scores = scores_of(q, k), pairs = pairs_of(q, k);
  Outs outs = {{q.shape(), q.dtype()}, {k.shape(), k.dtype()}, {value.shape(), value.dtype()}};
  const HoleInVjp score(v, kScore, v.hole(kScore), scores, lse.dtype(), -1, outs);
  Recorder r(attention_backward_op, v.where());
  r.constant(v.constant(kScale));
  r.input(q).input(k).input(value).input(v.output(kO)).input(lse).input(v.grad(kO));
  r.hole(kBackwardMask, v.hole(kMask), scores).hole(kBackwardScore, v.hole(kScore), scores);
  r.hole(kScoreGrad, score.gradient, scores).hole(kBackwardWeight, v.hole(kWeight), scores);
  r.hole(kBackwardRotate, v.hole(kRotate), pairs).hole(kRotateGrad, transposed(v.hole(kRotate), v.where()), pairs);
  r.integer(v.integer(kPairing));
  for (const std::array<int, kSumForms>& outputs : score.forms) r.integers(outputs);
  const Tensor dq = r.out(outs).record();
  for (int i = 0; i < kTensors; ++i)
    if (v.needs(i)) v.add(i, i == 0 ? dq : output_of(dq, i));
  score.add(v, kScore, dq);
}

// By the plain form, from q, k, v and the gradient of o: what o and the sums are of these is derived with the rest.
void attention_backward_vjp(Vjp& v) {
  v.compose([&] {
    const AttentionCall call{.q = real_input(v, kQ),
                             .k = real_input(v, kK),
                             .v = real_input(v, kV),
                             .scale = v.constant(kScale),
                             .mask = v.hole(kBackwardMask),
                             .score = v.hole(kBackwardScore),
                             .weight = v.hole(kBackwardWeight),
                             .rotate = v.hole(kBackwardRotate),
                             .pairing = Pairing(v.integer(kPairing)),
                             .where = v.where()};
    const PlainGradients g = plain_gradients(call, v.hole(kScoreGrad), v.hole(kRotateGrad), real_input(v, kGradient));
    std::vector<Tensor> outputs = {g.dq, g.dk, g.dv};
    for (std::size_t at = 0; at < g.roots.size() * kSumForms; ++at) {
      const std::int64_t k = v.integer(kFirstSum + int(at));
      if (k < 0) continue;
      outputs.resize(std::max(outputs.size(), std::size_t(k) + 1));
      if (v.grad(int(k))) outputs[std::size_t(k)] = sum_in_form(g.roots[at / kSumForms], SumForm(at % kSumForms), v.where());
    }
    return outputs;
  });
}

// ---- a call -----------------------------------------------------------------------------------------------------------------

// Everything that hides keys as one mask.
Hole joined_mask(const AttentionOptions& o, std::int64_t tq, std::int64_t tk) {
  Hole mask = o.mask;
  if (mask.filled() && mask.roots[0].type() != ExprType::boolean) return mask;  // which is refused when it is recorded
  const Expr b = expr::index(0), i = expr::index(2), j = expr::index(3);
  const auto join = [&](Expr visible) {
    if (mask.filled())
      mask.roots[0] = visible && mask.roots[0];
    else
      mask.roots.push_back(visible);
  };
  if (o.segments) {
    const auto segment = [&](Expr t) {
      const Expr subscripts[] = {b, t};
      return expr::load(int(mask.captured.size()), ExprType::integer, subscripts);
    };
    join(equal(segment(i), segment(j)));
    mask.captured.push_back(o.segments);
  }
  if (o.causal) join(j <= i + Expr(tk - tq));
  return mask;
}

void check_heads(Site where, const Arg& q, const Arg& k) {
  require_real(where, "attention", "q", q);
  require_real(where, "attention", "k", k);
  const Shape sq = q.shape(), sk = k.shape();
  const std::string shapes = fmt::format("q {}, k {}", to_string(sq), to_string(sk));
  if (sq.rank() != 4 || sk.rank() != 4)
    fail_at(where, "attention: q and k are not (batch, time, heads, features)", shapes, "reshape them");
  if (sq[0] != sk[0])
    fail_at(where, "attention: q and k have different batches", shapes, "every element of the batch has queries and keys");
  if (sq[3] != sk[3] || sq[3] < 1)
    fail_at(where, "attention: the features of q and k do not fit", shapes, "both have the same number, at least 1");
  if (sq[2] < 1 || sk[2] < 1) fail_at(where, "attention: there are no heads", shapes, "give q and k at least one");
  if (sq[2] % sk[2] != 0)
    fail_at(where, "attention: the heads of q do not divide into the groups of k",
            fmt::format("{} heads, {} groups", sq[2], sk[2]), "every group of keys serves the same number of heads");
}

void check_values(Site where, const Arg& q, const Arg& k, const Tensor& v) {
  require_real(where, "attention", "v", v);
  const Shape sk = k.shape(), sv = v.shape();
  if (sv.rank() != 4 || sv[0] != sk[0] || sv[1] != sk[1] || sv[2] != sk[2])
    fail_at(where, "attention: v does not fit k", fmt::format("v {}, k {}", to_string(sv), to_string(sk)),
            "v is (batch, time, groups, features of values), the first three as in k");
  require_one_precision(where, "attention", {{"q", q}, {"k", k}, {"v", v}});
}

void check_options(Site where, const Shape& sq, const Shape& sk, const AttentionOptions& o) {
  if (!std::isfinite(o.scale))
    fail_at(where, "attention: the scale is not finite", fmt::format("{}", o.scale), "0 stands for 1 / sqrt(features)");
  if (o.segments) {
    require_integer(where, "attention", "segments", o.segments);
    const Shape ss = o.segments.shape();
    if (sq[1] != sk[1] || ss != Shape{sq[0], sq[1]})
      fail_at(where, "attention: segments do not fit q and k",
              fmt::format("segments {}, q {}, k {}", to_string(ss), to_string(sq), to_string(sk)),
              "segments are (batch, time), of queries and keys alike; else compare two tensors in the mask");
  }
  if (o.rotate.filled() && sq[3] % 2 != 0)
    fail_at(where, "attention: an odd number of features cannot be rotated in pairs", fmt::format("{} features", sq[3]),
            "rotate a slice of q and k before the op");
}

AttentionCall checked(const Arg& q, const Arg& k, const Tensor& v, const AttentionOptions& o) {
  const Site where = q.where();
  check_heads(where, q, k);
  if (v)
    check_values(where, q, k, v);
  else
    require_one_precision(where, "attention", {{"q", q}, {"k", k}});
  const Shape sq = q.shape(), sk = k.shape();
  check_options(where, sq, sk, o);
  return {.q = q,
          .k = k,
          .v = v,
          .scale = o.scale == 0 ? 1 / std::sqrt(double(sq[3])) : o.scale,
          .mask = joined_mask(o, sq[1], sk[1]),
          .score = o.score,
          .weight = o.weight,
          .rotate = o.rotate,
          .pairing = o.pairing,
          .where = where};
}

// Refuses what the contracts of the holes do not allow, on every device alike.
Recorder recorder_of(const AttentionCall& call) {
  transposed(call.rotate, call.where);
  const Shape scores = scores_of(call.q, call.k);
  Recorder r(attention_op, call.where);
  r.constant(call.scale).input(call.q).input(call.k).input(call.v);
  r.hole(kMask, call.mask, scores).hole(kScore, call.score, scores).hole(kWeight, call.weight, scores);
  r.hole(kRotate, call.rotate, pairs_of(call.q, call.k));
  return r;
}

// Where the kernels of a GPU do not take the sizes of a head, the plain form is recorded.
bool has_kernels(const AttentionCall& call) {
  return device() == Device::cpu || cuda_attention_takes(call.q.shape()[3], call.v.shape()[3]);
}

}  // namespace

DType AttentionCall::real() const {
  bool wide = q.dtype() == DType::f64;
  for (const Hole* hole : {&mask, &score, &weight, &rotate})
    for (const Tensor& t : hole->captured) wide |= t && t.dtype() == DType::f64;
  return wide ? DType::f64 : DType::f32;
}

Tensor attention(Arg q, Arg k, Arg v, AttentionOptions options) {
  require_real(q.where(), "attention", "v", v);
  const AttentionCall call = checked(q, k, v, options);
  Recorder r = recorder_of(call);
  if (!has_kernels(call)) return plain_attention(call);
  const Shape sq = q.shape();
  r.integer(int(call.pairing)).out(Shape{sq[0], sq[1], sq[2], v.shape()[3]}, q.dtype());
  return r.out(scores_of(q, k).first(3), call.real()).record();
}

Hole dropped(double p, Site where) {
  if (!(p >= 0 && p <= 1)) fail_at(where, "dropped: p is not a probability", fmt::format("{}", p), "give a number in [0, 1]");
  if (p == 0) return {};
  // Four places, two by two, share a draw, and no number depends on a size.
  const auto body_from = [](const Expr& first) {  // of the batch
    const Expr b = first, h = expr::index(1), i = expr::index(2), j = expr::index(3);
    const Expr most_heads = 1 << 10, most_pairs = 1 << 20;
    const Expr four = ((b * most_heads + h) * most_pairs + i / 2) * most_pairs + j / 2;
    const Expr place = four * 4 + (i - i / 2 * 2) * 2 + (j - j / 2 * 2);
    return weft::where(expr::uniform(0, place) < expr::slot(3), expr::literal(0), expr::slot(4));
  };
  static const Expr body = body_from(expr::index(0)), of_rows = body_from(expr::index(0) + expr::slot(5, ExprType::integer));
  const BatchRows* cut = BatchRows::in_use();
  const Draw draw = next_draw();
  Hole hole;
  hole.roots = {cut ? of_rows : body};
  hole.constants.append(draw.constants);
  hole.constants.push_back(p);
  hole.constants.push_back(p < 1 ? 1 / (1 - p) : 0);
  if (cut) hole.constants.push_back(double(cut->first()));
  return hole;
}

Tensor attention_map(Arg q, Arg k, AttentionOptions options) {
  const AttentionCall call = checked(q, k, {}, options);
  recorder_of(call);
  return plain_probabilities(call);
}

}  // namespace weft
