// Attention (arXiv:2205.14135), channel-last, with holes for the score, the mask, a weight and a rotation.
#include "ops/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "ops/check.h"
#include "ops/ops.h"

namespace weft {
namespace {

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
  const auto shapes = [&] { return fmt::format("q {}, k {}", to_string(sq), to_string(sk)); };
  if (sq.rank() != 4 || sk.rank() != 4)
    fail_at(where, "attention: q and k are not (batch, time, heads, features)", shapes(), "reshape them");
  if (sq[0] != sk[0]) fail_at(where, "attention: q and k have different batches", shapes());
  if (sq[3] != sk[3] || sq[3] < 1)
    fail_at(where, "attention: the features of q and k do not fit", shapes(), "both have the same number, at least 1");
  if (sq[2] < 1 || sk[2] < 1) fail_at(where, "attention: there are no heads", shapes(), "give q and k at least one");
  if (sq[2] % sk[2] != 0)
    fail_at(where, "attention: the heads of q do not divide into the groups of k",
            fmt::format("{} heads, {} groups", sq[2], sk[2]), "every group of keys serves the same number of heads");
}

void check_values(Site where, const Arg& q, const Arg& k, const Arg& v) {
  require_real(where, "attention", "v", v);
  const Shape sk = k.shape(), sv = v.shape();
  if (sv.rank() != 4 || sv[0] != sk[0] || sv[1] != sk[1] || sv[2] != sk[2])
    fail_at(where, "attention: v does not fit k", fmt::format("v {}, k {}", to_string(sv), to_string(sk)),
            "v is (batch, time, groups, features of values), the first three as in k");
  require_one_precision(where, "attention", {{"q", q}, {"k", k}, {"v", v}});
}

AttentionCall checked(const Arg& q, const Arg& k, const Tensor& v, const AttentionOptions& o) {
  const Site where = q.where();
  check_heads(where, q, k);
  if (v)
    check_values(where, q, k, Arg(v, where));
  else
    require_one_precision(where, "attention", {{"q", q}, {"k", k}});
  const Shape sq = q.shape(), sk = k.shape();
  if (!std::isfinite(o.scale)) fail_at(where, "attention: the scale is not finite", fmt::format("{}", o.scale));
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
  return {q,         k,
          v,         o.scale == 0 ? 1 / std::sqrt(double(sq[3])) : o.scale,
          o.score,   joined_mask(o, sq[1], sk[1]),
          o.weight,  o.rotate,
          o.pairing, where};
}

}  // namespace

DType AttentionCall::real() const { return compute_dtype(q); }

Tensor attention(Arg q, Arg k, Arg v, AttentionOptions options) {
  require_real(q.where(), "attention", "v", v);
  return plain_attention(checked(q, k, v, options));
}

Tensor attention_map(Arg q, Arg k, AttentionOptions options) { return plain_probabilities(checked(q, k, {}, options)); }

}  // namespace weft
