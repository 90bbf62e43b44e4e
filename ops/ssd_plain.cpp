// The plain form of ssd, made of other ops, as section 6 of arXiv:2405.21060 has it: within a chunk of steps one matrix of
// decays and products of C and B; between chunks the states, which decay by whole chunks. Gradients, of any order, are theirs.
#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "jit/diff.h"
#include "jit/parallel.h"
#include "ops/check.h"
#include "ops/filled.h"
#include "ops/ops.h"
#include "ops/ssd.h"

namespace weft {
namespace {

// Ops of one hole over the shape of input 0, which is its value.
constexpr HoleSpec kStepHoles[] = {kSsdStep}, kOutHoles[] = {kSsdOut};
const Op& step_op =
    register_op({.name = "ssd_step", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = kStepHoles});
const Op& out_op =
    register_op({.name = "ssd_out", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = kOutHoles});

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

  explicit PlainScan(const SsdScan& scan)
      : b(scan.x.dim(0)),
        t(scan.x.dim(1)),
        h(scan.x.dim(2)),
        p(scan.x.dim(3)),
        g(scan.B.dim(2)),
        n(scan.B.dim(3)),
        q(std::clamp<std::int64_t>(scan.chunk, 1, std::max<std::int64_t>(t, 1))),
        c(ceil_div(t, q)) {}

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

  SsdResult run(const SsdScan& scan) const {
    const std::int64_t r = h / g;
    const Tensor dt = chunks(scan.step, r, 1), Bs = chunks(scan.B, 1, n), Cs = chunks(scan.C, 1, n);
    const Decays decays(reshape(chunks(scan.a, r, 1), {b * c, g, r, q}));
    const Tensor fed = chunks(scan.x, r, p) * dt;
    const Tensor within = matmul(matmul(Cs, transpose(Bs)) * decays.between, fed);
    const Tensor to_end = transpose(slice(decays.between, -2, q - 1, q));
    const Tensor s = states(scan.initial, matmul(transpose(fed * to_end), Bs), decays.total());
    const Tensor before = reshape(permute(slice(s, 2, 0, c), {0, 2, 1, 3}), {b * c, g, r, p, n});
    const Tensor from_before = matmul(Cs, transpose(before)) * reshape(decays.from_start, {b * c, g, r, q, 1});
    const Tensor y = reshape(permute(within + from_before, {0, 3, 1, 2, 4}), {b, c * q, h, p});
    return {slice(y, 1, 0, t), reshape(slice(s, 2, c, c + 1), {b, h, p, n})};
  }
};

}  // namespace

SsdResult plain_ssd_scan(const SsdScan& scan) { return PlainScan(scan).run(scan); }

SsdResult plain_ssd(const SsdCall& call) {
  const RecordedAt here(call.where);
  const DType dtype = call.real();
  const auto real = [&](const Tensor& x) { return x ? convert(x, dtype, call.where) : x; };
  const Tensor x = real(call.x), step = filled(step_op, call.step, real(call.dt), call.where);
  Tensor a = step * real(call.A);
  if (call.borders) {
    const Tensor cut = reshape(call.borders, {x.dim(0), x.dim(1), 1});
    a = pointwise("ssd_cut", {cut, a},
                  [](Expr border, Expr decay) { return where(not_equal(border, Expr(0)), Expr(-1e30), decay); });
  }
  const SsdScan scan{.x = x,
                     .step = step,
                     .a = a,
                     .B = real(call.B),
                     .C = real(call.C),
                     .initial = real(call.initial),
                     .chunk = call.chunk,
                     .where = call.where};
  const bool kernels = !call.plain && recorded_target().device == Device::cpu;
  SsdResult result = kernels ? cpu_ssd_scan(scan) : plain_ssd_scan(scan);
  if (const Tensor D = real(call.D)) result.y = result.y + x * (D.shape().rank() == 1 ? reshape(D, {x.dim(2), 1}) : D);
  result.y = convert(filled(out_op, call.out, result.y, call.where), call.x.dtype(), call.where);
  return result;
}

}  // namespace weft
