// The scan of Mamba-2 (state space duality, arXiv:2405.21060): its checks and how it is recorded.
#include "ops/ssd.h"

#include <fmt/format.h>

#include "autograd/run.h"
#include "ops/check.h"
#include "ops/ops.h"
#include "ops/ssd_gpu.h"

namespace weft {
namespace {

void check_groups(Site where, const Arg& x, const Arg& B, const Arg& C) {
  const Shape sx = x.shape();
  require_real(where, "ssd", "B", B);
  const Shape sb = B.shape();
  if (sb.rank() != 4 || sb[0] != sx[0] || sb[1] != sx[1])
    fail_at(where, "ssd: B does not fit x", fmt::format("B {}, x {}", to_string(sb), to_string(sx)),
            "B is (batch, time, groups, states), the first two as in x");
  if (sb[2] < 1 || sx[2] % sb[2] != 0)
    fail_at(where, "ssd: the heads do not divide into the groups", fmt::format("{} heads, {} groups", sx[2], sb[2]),
            "every group has the same number of heads");
  require_shape(where, "ssd", "C", C, sb, "B", B);
}

void check_ssd(Site where, const Arg& x, const Arg& dt, const Arg& A, const Arg& B, const Arg& C, const SsdOptions& o) {
  require_real(where, "ssd", "x", x);
  const Shape sx = x.shape();
  if (sx.rank() != 4)
    fail_at(where, "ssd: x is not (batch, time, heads, features)", fmt::format("x {}", to_string(sx)), "reshape it");
  require_shape(where, "ssd", "dt", dt, sx.first(3), "x", x);
  require_shape(where, "ssd", "A", A, Shape{sx[2]}, "x", x);
  check_groups(where, x, B, C);
  if (o.D) {
    require_real(where, "ssd", "D", o.D);
    if (o.D.shape() != Shape{sx[2]} && o.D.shape() != Shape{sx[2], sx[3]})
      fail_at(where, "ssd: D does not fit x", fmt::format("D {}, x {}", to_string(o.D.shape()), to_string(sx)),
              fmt::format("D is {}, a number for each head, or {}", to_string(Shape{sx[2]}), to_string(Shape{sx[2], sx[3]})));
  }
  if (o.initial) require_shape(where, "ssd", "initial", o.initial, Shape{sx[0], sx[2], sx[3], B.shape()[3]}, "x", x);
  require_segments(where, "ssd", o.segments, sx);
  if (o.chunk < 1)
    fail_at(where, "ssd: a chunk has at least one step", fmt::format("chunk {}", o.chunk),
            "the result does not depend on it: leave it out");
  require_one_precision(where, "ssd", {{"x", x}, {"dt", dt}, {"A", A}, {"B", B}, {"C", C}, {"D", o.D}, {"initial", o.initial}});
}

}  // namespace

DType SsdCall::real() const {
  DType dtype = compute_dtype(x, dt, A, B, C, D, initial);
  for (const Hole* hole : {&step, &out})
    for (const Tensor& t : hole->captured) dtype = widest(dtype, compute_dtype(t));
  return dtype;
}

bool ssd_has_kernels(std::int64_t p, std::int64_t n, DType dtype) {
  return recorded_target().device == Device::cpu || (dtype == DType::bf16 && gpu_ssd_fits(p, n));
}

Tensor ssd(Arg x, Arg dt, Arg A, Arg B, Arg C, SsdOptions options) {
  check_ssd(x.where(), x, dt, A, B, C, options);
  const SsdCall call{.x = x,
                     .dt = dt,
                     .A = A,
                     .B = B,
                     .C = C,
                     .D = options.D,
                     .initial = options.initial,
                     .borders = options.segments.borders,
                     .step = options.dt,
                     .out = options.out,
                     .chunk = options.chunk,
                     .plain = options.plain,
                     .where = x.where()};
  const SsdResult result = gpu_ssd_takes(call) ? gpu_ssd(call) : plain_ssd(call);
  if (options.last) *options.last = result.last;
  return result.y;
}

}  // namespace weft
