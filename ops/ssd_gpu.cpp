// ssd on a GPU: how it is recorded, and its gradients.
#include "ops/ssd_gpu.h"

#include <vector>

#include "autograd/backward.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "ops/check.h"
#include "ops/ops.h"

namespace weft {
namespace ssd_layout {
namespace {

constexpr HoleSpec kHoles[] = {kSsdStep, kSsdOut};
constexpr HoleSpec kBackwardHoles[] = {
    kSsdStep,
    {.name = "dt_grad", .coordinates = "b t h", .values = 2, .results = 0, .dense = true, .names = {"raw", "g"}},
    {.name = "out_grad", .coordinates = "b t h p", .values = 2, .results = 0, .dense = true, .names = {"s", "g"}}};

[[noreturn]] void recorded_for_a_gpu(Lowering&) {
  fail(ErrorKind::usage, "ssd: it was recorded for a GPU, whose kernels the CPU has not", {}, "call it again on this device");
}
void ssd_chunks_vjp(Vjp& v);
void ssd_chunks_backward_vjp(Vjp& v);
const Op& ssd_chunks_op = register_op({.name = "ssd_chunks",
                                       .vjp = ssd_chunks_vjp,
                                       .lower = recorded_for_a_gpu,
                                       .cuda = cuda_ssd,
                                       .holes = kHoles,
                                       .strided_output = true});
const Op& ssd_chunks_backward_op = register_op({.name = "ssd_chunks_backward",
                                                .vjp = ssd_chunks_backward_vjp,
                                                .lower = recorded_for_a_gpu,
                                                .cuda = cuda_ssd_backward,
                                                .holes = kBackwardHoles,
                                                .strided_output = true});

void ssd_chunks_vjp(Vjp& v) {
  Tensor in[kFixed];
  for (int i = 0; i < kFixed; ++i) in[i] = v.input(i);
  const Shape x = in[kX].shape(), dt = in[kDt].shape(), b = in[kB].shape();
  constexpr DType real = DType::f32;
  Outs outs = {{x, in[kX].dtype()},
               {dt, in[kDt].dtype()},
               {in[kA].shape(), in[kA].dtype()},
               {b, in[kB].dtype()},
               {b, in[kC].dtype()},
               {in[kD] ? in[kD].shape() : Shape{x[2]}, in[kD] ? in[kD].dtype() : real},
               {Shape{x[0], x[2], x[3], b[3]}, in[kInitial] ? in[kInitial].dtype() : real}};
  const HoleInVjp step(v, kStepHole, v.hole(kStepHole), dt, real, kDraw, outs);
  const Hole filled = v.grad(kY) ? v.hole(kOutHole) : Hole{};  // else nothing comes back through it
  const HoleInVjp out(v, kOutHole, filled, x, real, -1, outs);
  Recorder r(ssd_chunks_backward_op, v.where());
  for (const Tensor& t : in) r.input(t);
  r.input(v.output(kSteps)).input(v.output(kProducts)).input(v.output(kKept));
  r.input(out.gradient.filled() ? v.output(kS) : Tensor{}).input(v.grad(kY)).input(v.grad(kLast));
  r.hole(kStepAgain, v.hole(kStepHole), dt).hole(kStepGrad, step.gradient, dt).hole(kOutGrad, out.gradient, x);
  r.integers(step.outputs).integers(out.outputs);
  const Tensor dx = r.out(outs).record();
  constexpr int kOutputOf[] = {kDx, kDraw, kDA, kDB, kDC, kDD, kDInitial};
  for (int i = 0; i < kBorders; ++i)
    if (v.needs(i)) v.add(i, i == kX ? dx : output_of(dx, kOutputOf[i]));
  step.add(v, kStepHole, dx);
  out.add(v, kOutHole, dx);
}

// The plain form of the scan again, and its gradient, which is differentiated.
void ssd_chunks_backward_vjp(Vjp& v) {
  v.compose([&] {
    const Site where = v.where();
    constexpr DType real = DType::f32;
    const auto as_real = [&](int i) {
      const Tensor t = v.input(i);
      return t ? convert(t, real, where) : t;
    };
    // Nodes of their own: what one operand is of another has no part in their gradients.
    const auto alone = [&](const Tensor& t) { return t ? copy(t, real, where) : t; };
    const auto root = [&](int h, int r, std::initializer_list<Tensor> values) {
      return root_of(v, h, r, values, values.begin()->shape(), real);
    };
    const auto filled = [&](int h) { return v.hole(h).filled(); };
    const auto flat = [&](const Tensor& x, const Tensor& y) {
      return concat({reshape(Arg(x, where), {-1}), reshape(Arg(y, where), {-1})}, 0);
    };
    const auto or_zeros = [&](const Tensor& t, const Tensor& like) { return t ? t : constant(0, like.shape(), real, where); };

    const Tensor raw = as_real(kDt);
    Tensor in[kBorders];
    for (int i = 0; i < kBorders; ++i) in[i] = alone(i == kDt && filled(kStepAgain) ? root(kStepAgain, 0, {raw}) : v.input(i));
    const SsdResult again = plain_ssd({.x = in[kX],
                                       .dt = in[kDt],
                                       .A = in[kA],
                                       .B = in[kB],
                                       .C = in[kC],
                                       .D = in[kD],
                                       .initial = in[kInitial],
                                       .borders = v.input(kBorders),
                                       .step = {},
                                       .out = {},
                                       .chunk = 64,
                                       .where = where});
    const Tensor s = again.y, g = or_zeros(as_real(kGradient), s), g_last = or_zeros(as_real(kLastGradient), again.last);
    const Tensor e = filled(kOutGrad) ? root(kOutGrad, 0, {s, g}) : g;
    std::vector<Arg> wrt;
    for (const Tensor& t : in)
      if (t) wrt.emplace_back(t, where);
    const std::vector<Tensor> d = grad(Arg(flat(s, again.last), where), Arg(flat(e, g_last), where), wrt, Unused::zeros);
    std::vector<Tensor> outputs(kDInitial + 1);
    constexpr int kOutputOf[] = {kDx, kDraw, kDA, kDB, kDC, kDD, kDInitial};
    for (int i = 0, k = 0; i < kBorders; ++i)
      if (in[i]) outputs[std::size_t(kOutputOf[i])] = d[std::size_t(k++)];
    const Tensor d_step = outputs[kDraw];
    int at = 0;
    const auto roots = [&](int h, const Tensor& value, const Tensor& upstream) {
      for (int r = 0, n = int(v.hole(h).roots.size()); r < n; ++r, ++at) {
        const std::int64_t k = v.integer(at);
        if (k < 0 || !v.grad(int(k))) continue;
        outputs.resize(std::max(outputs.size(), std::size_t(k) + 1));
        outputs[std::size_t(k)] = root(h, r, {value, upstream});
      }
    };
    roots(kStepGrad, raw, d_step), roots(kOutGrad, s, g);
    return outputs;
  });
}

}  // namespace
}  // namespace ssd_layout

bool gpu_ssd_fits(std::int64_t p, std::int64_t n) {
  const auto fits = [](std::int64_t size) { return size >= 8 && size <= 256 && size % 8 == 0; };
  return fits(p) && fits(n);
}

bool gpu_ssd_takes(const SsdCall& call) {
  const Shape x = call.x.shape(), b = call.B.shape();
  if (call.plain || !is_gpu(recorded_target().device)) return false;
  if (call.real() != DType::f32 || x.numel() == 0 || !gpu_ssd_fits(x[3], b[3])) return false;
  for (const Tensor* t : {&call.x, &call.B, &call.C})
    if (t->dtype() != DType::bf16) return false;
  return true;
}

SsdResult gpu_ssd(const SsdCall& call) {
  using ssd_layout::kStepFacts;
  const Shape x = call.x.shape(), b = call.B.shape();
  const ssd_layout::SsdCut cut(x[3], b[3]);
  const std::int64_t rows = x[0] * x[2] * cut.slices(), chunks = cut.chunks(x[1]);
  Recorder r(ssd_layout::ssd_chunks_op, call.where);
  r.input(call.x).input(call.dt).input(call.A).input(call.B).input(call.C).input(call.D);
  r.input(call.initial).input(call.borders);
  r.hole(ssd_layout::kStepHole, call.step, x.first(3)).hole(ssd_layout::kOutHole, call.out, x);
  r.out(x, DType::bf16).out(Shape{x[0], x[2], x[3], b[3]}, DType::f32);
  r.out(Shape{rows, chunks, kStepFacts * cut.q}, DType::f32).out(Shape{x[0], b[2], chunks, cut.q * cut.q}, DType::bf16);
  r.out(Shape{rows, chunks, cut.pt * cut.padded()}, DType::bf16).out(x, DType::bf16);
  const Tensor y = r.record();
  return {y, output_of(y, ssd_layout::kLast)};
}

}  // namespace weft
