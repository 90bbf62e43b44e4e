// The plain form of ssd, made of other ops, as section 6 of arXiv:2405.21060 has it: within a chunk of steps one matrix of
// decays and products of C and B; between chunks the states, which decay by whole chunks. Gradients, of any order, are theirs.
#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/pointwise.h"
#include "jit/diff.h"
#include "jit/parallel.h"
#include "ops/check.h"
#include "ops/ops.h"
#include "ops/ssd.h"

namespace weft {
namespace {

// What is recorded while it lives is a part of the op at this place.
class RecordedAt {
 public:
  explicit RecordedAt(Site where) : first_(NodeId(tape().nodes.size())), where_(where) {}
  ~RecordedAt() {
    for (std::size_t id = first_; id < tape().nodes.size(); ++id) tape().origins[id].where = where_;
  }
  RecordedAt(const RecordedAt&) = delete;
  RecordedAt& operator=(const RecordedAt&) = delete;

 private:
  NodeId first_;
  Site where_;
};

// ---- a hole at each place ---------------------------------------------------------------------------------------------------

// Ops of one hole over the shape of input 0, which is its value.
constexpr HoleSpec kStepHoles[] = {kSsdStep}, kOutHoles[] = {kSsdOut};

void lower_filled(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  Fused fused = l.hole(0, l.shape(0));
  fused.values = 0;  // the value is read like what is captured
  fused.leaves.insert(fused.leaves.begin(), l.view(0));
  l.emit_pointwise("ssd_hole", fused, out);
}
void filled_vjp(Vjp& v);
const Op& step_op =
    register_op({.name = "ssd_step", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = kStepHoles});
const Op& out_op =
    register_op({.name = "ssd_out", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = kOutHoles});

Tensor filled(const Op& op, const Hole& hole, const Tensor& value, Site where) {
  if (!hole.filled()) return value;
  return Recorder(op, where).input(value).hole(0, hole, value.shape()).out(value.shape(), value.dtype()).record();
}

// The derivative by the value, or by what a load reads, is the same op with another root, which captures the upstream gradient.
void filled_vjp(Vjp& v) {
  const Op& op = tape().op(v.output().node());
  const Hole hole = v.hole(0);
  const Shape space = v.output().shape();
  Hole gradient = hole;
  gradient.captured.push_back(v.grad());
  std::vector<Expr> place;
  for (int c = 0; c < space.rank(); ++c) place.push_back(expr::index(c));
  const Expr upstream = expr::load(int(hole.captured.size()), ExprType::real, place);
  const auto by = [&](Expr what) -> Tensor {
    const Expr slope = diff(hole.roots[0], upstream, std::span(&what, 1))[0];
    if (is_zero(slope)) return {};
    gradient.roots = {unless_zero(upstream, slope)};
    return filled(op, gradient, v.input(0), v.where());
  };
  if (v.needs(0))
    if (const Tensor d = by(expr::input(0))) v.add(0, d);
  for (const Expr load : topological(hole.roots)) {
    if (load.op() != ExprOp::load || load.type() != ExprType::real) continue;
    const int input = v.hole_input(0, int(load.index()));
    if (!v.needs(input)) continue;
    if (uses_input(load, 0))
      fail_at(v.where(),
              fmt::format("ssd: hole '{}' finds an element by its own value, which has no gradient", op.holes[0].name),
              to_string(load), "detach() the tensor, or compute the value before the op and capture it too");
    if (const Tensor each = by(load))
      v.add(input, convert(adjoint(hole, load, each, space, false, v.where()), v.input(input).dtype(), v.where()));
  }
}

// ---- the scan ---------------------------------------------------------------------------------------------------------------

// 1 where row and column are as asked, else 0.
Tensor matrix_of(std::int64_t n, DType dtype, Expr (*asked)(Expr row, Expr column)) {
  return pointwise("ssd_places", {zeros({n, n}, dtype)},
                   [&](Expr) { return where(asked(expr::index(0), expr::index(1)), Expr(1.0), Expr(0.0)); });
}

// Logarithms a (..., q) of the decay of each step. Sums of neighbours are summed as they are: differences of sums from the
// beginning would lose what follows a step that decays much.
struct Decays {
  Tensor from_start;  // (..., q): of all steps up to this one
  Tensor between;     // (..., q, q), row t, column s: of the steps after s up to t; 0 if s > t
  explicit Decays(const Tensor& a) {
    const std::int64_t q = a.dim(-1);
    Shape row = a.shape();
    row[-1] = 1, row.push_back(q);
    const Tensor reached = matrix_of(q, a.dtype(), [](Expr t, Expr s) { return s <= t; });
    const Tensor steps = reshape(a, row) * reached;
    const Tensor later = matrix_of(q, a.dtype(), [](Expr k, Expr s) { return k > s; });
    between = exp(matmul(steps, later)) * reached;
    total_ = sum(steps, {-1});
    from_start = exp(total_);
  }
  Tensor total() const { return slice(total_, -1, total_.dim(-1) - 1, total_.dim(-1)); }  // (..., 1), a logarithm

 private:
  Tensor total_;
};

struct PlainScan {
  std::int64_t b, t, h, p, g, n, q, c;  // q steps of each of c chunks
  DType real;

  explicit PlainScan(const SsdCall& call)
      : b(call.x.dim(0)),
        t(call.x.dim(1)),
        h(call.x.dim(2)),
        p(call.x.dim(3)),
        g(call.B.dim(2)),
        n(call.B.dim(3)),
        q(std::clamp<std::int64_t>(call.chunk, 1, std::max<std::int64_t>(t, 1))),
        c(ceil_div(t, q)),
        real(call.real()) {}

  // x (b, t, g ...) as (b c, g, heads, q, features). After the end are zeros: a step size of 0 leaves the state as it is.
  Tensor chunks(const Tensor& x, std::int64_t heads, std::int64_t features) const {
    return permute(reshape(pad(x, 1, 0, c * q - t), {b * c, q, g, heads, features}), {0, 2, 3, 1, 4});
  }
  // A number for each chunk and head, or features of that: (b c, g, h/g, ...) to (b, h, c, size).
  Tensor in_time(const Tensor& x, std::int64_t size) const { return permute(reshape(x, {b, c, h, size}), {0, 2, 1, 3}); }

  // The state before each chunk, and the last one, (b, h, c + 1, p n), from what each chunk adds and the logarithms of its
  // decay.
  Tensor states(const Tensor& initial, const Tensor& added, const Tensor& totals) const {
    const Tensor later = in_time(added, p * n);
    const Tensor all = initial ? concat({reshape(initial, {b, h, 1, p * n}), later}, 2) : pad(later, 2, 1, 0);
    return matmul(Decays(pad(reshape(in_time(totals, 1), {b, h, c}), 2, 1, 0)).between, all);
  }

  // s (b, t, h, p) without D, and the last state, from real operands.
  SsdResult run(const Tensor& x, const Tensor& step, const Tensor& A, const Tensor& B, const Tensor& C,
                const Tensor& initial) const {
    const std::int64_t r = h / g;
    const Tensor dt = chunks(step, r, 1), Bs = chunks(B, 1, n), Cs = chunks(C, 1, n);
    const Shape one_each{b * c, g, r, q};
    const Decays decays(reshape(dt, one_each) * reshape(A, {g, r, 1}));
    const Tensor fed = chunks(x, r, p) * dt;
    const Tensor within = matmul(matmul(Cs, transpose(Bs)) * decays.between, fed);
    const Tensor to_end = transpose(slice(decays.between, -2, q - 1, q));
    const Tensor s = states(initial, matmul(transpose(fed * to_end), Bs), decays.total());
    const Tensor before = reshape(permute(slice(s, 2, 0, c), {0, 2, 1, 3}), {b * c, g, r, p, n});
    const Tensor from_before = matmul(Cs, transpose(before)) * reshape(decays.from_start, {b * c, g, r, q, 1});
    const Tensor y = reshape(permute(within + from_before, {0, 3, 1, 2, 4}), {b, c * q, h, p});
    return {slice(y, 1, 0, t), reshape(slice(s, 2, c, c + 1), {b, h, p, n})};
  }
};

}  // namespace

SsdResult plain_ssd(const SsdCall& call) {
  const RecordedAt here(call.where);
  const PlainScan scan(call);
  const auto real = [&](const Tensor& x) { return x ? convert(x, scan.real, call.where) : x; };
  const Tensor x = real(call.x), D = real(call.D);
  SsdResult result = scan.run(x, filled(step_op, call.step, real(call.dt), call.where), real(call.A), real(call.B),
                              real(call.C), real(call.initial));
  if (D) result.y = result.y + x * (D.shape().rank() == 1 ? reshape(D, {scan.h, 1}) : D);
  result.y = convert(filled(out_op, call.out, result.y, call.where), call.x.dtype(), call.where);
  return result;
}

}  // namespace weft
