#include "tools/bench/cases.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "autograd/backward.h"
#include "autograd/settings.h"
#include "autograd/state.h"
#include "jit/gpu.h"
#include "ops/ops.h"
#include "optim/adamw.h"
#include "optim/clip.h"
#include "tools/bench/models.h"

namespace weft {
namespace {

using Int = std::int64_t;
constexpr DType kActivation = DType::bf16;

std::string by(std::initializer_list<Int> dims) { return fmt::format("{}", fmt::join(dims, "x")); }

// ---- inputs: States, which are on the device and which a plan reads in place ------------------------------------------------

struct Init {
  Shape shape;
  DType dtype = kActivation;
  double scale = 1;  // standard deviation
};

std::vector<State> normal_states(const std::vector<Init>& inits) {
  std::vector<State> states;
  for (const Init& i : inits) states.emplace_back(i.shape, i.dtype, "bench input");
  run([&] {
    for (std::size_t i = 0; i < inits.size(); ++i) assign(states[i], normal(inits[i].shape) * inits[i].scale);
  });
  return states;
}

State constant_state(Shape shape, double value) {
  State s(shape, DType::f32, "bench input");
  run([&] { assign(s, full(shape, value)); });
  return s;
}

// ---- steps ------------------------------------------------------------------------------------------------------------------

Measured of_one(const StepTimes& t) {
  return {{t.first_ms}, {{"wall_ms", std::round(t.wall_ms * 1e4) / 1e4}, {"first_s", std::round(t.first_s * 100) / 100}}};
}

Measured of_two(const StepTimes& t) {
  Measured m = of_one(t);
  m.ms = {t.first_ms, t.second_ms, t.total_ms};
  return m;
}

// What a training row does: the forward pass and, if asked to, its gradients.
using TrainStep = std::function<void(const Keep& keep, bool backward)>;

bool is_backward(const KernelRecord& k) { return k.backward; }

struct TrainWork {
  Work forward, backward;
  std::optional<Work> both = {};  // the sum, unless something is read again
};

// `prepare` makes the inputs and returns the step.
BenchCase train_case(const std::string& group, const std::string& op, const std::string& shape, const TrainWork& work,
                     std::function<TrainStep()> prepare) {
  BenchCase c;
  c.rows = {{{group, op, shape, "fwd"}, work.forward},
            {{group, op, shape, "bwd"}, work.backward},
            {{group, op, shape, "both"}, work.both.value_or(work.forward + work.backward)}};
  c.measure = [prepare = std::move(prepare)](const TimeLimits& limits) {
    const TrainStep step = prepare();
    return of_two(time_step(
        {[&](const Keep& keep) { step(keep, true); }, [&](const Keep& keep) { step(keep, false); }, is_backward}, limits));
  };
  return c;
}

BenchCase forward_case(const RowName& name, const Work& work, std::function<BenchStep()> prepare) {
  return {{{name, work}},
          [prepare = std::move(prepare)](const TimeLimits& limits) { return of_one(time_step({prepare()}, limits)); }};
}

// The usual training step: y, then the gradients of what `wrt` holds.
void differentiate(const Keep& keep, bool backward, const Tensor& y, const State& upstream, const std::vector<Tensor>& wrt) {
  keep(y);
  if (backward) keep(grad(y, upstream, wrt));
}

std::vector<Tensor> values_of(const std::vector<State>& states) {
  std::vector<Tensor> tensors;
  for (const State& s : states) tensors.push_back(s.read());
  return tensors;
}

// ---- ceilings ---------------------------------------------------------------------------------------------------------------

// Bytes are moved by the device's own copy and fill, as the peers' are.
Measured copy_bytes(std::size_t bytes, const TimeLimits& limits) {
  const Memory from(device(), bytes, "the copy's source"), to(device(), bytes, "the copy's target");
  if (!is_gpu(device())) return {{time_launches([&] { std::memcpy(to.data(), from.data(), bytes); }, limits)}};
  return {{time_launches([&] { Gpu::of(device()).copy(to.data(), from.data(), bytes); }, limits)}};
}

Measured fill_bytes(std::size_t bytes, const TimeLimits& limits) {
  const Memory to(device(), bytes, "what is filled");
  if (!is_gpu(device())) return {{time_launches([&] { std::memset(to.data(), 3, bytes); }, limits)}};
  return {{time_launches([&] { Gpu::of(device()).fill(to.data(), 3, bytes); }, limits)}};
}

BenchStep square_matmul(Int m, DType dtype) {
  return [s = normal_states({{{m, m}, dtype}, {{m, m}, dtype}})](const Keep& keep) { keep(matmul(s[0], s[1])); };
}

// fp32 products with tf32 inputs while it lives.
struct Tf32 {
  explicit Tf32(bool on) { set(on); }
  ~Tf32() { set(false); }
  Tf32(const Tf32&) = delete;
  Tf32& operator=(const Tf32&) = delete;
  static void set(bool on) {
    if (is_gpu(device())) Gpu::of(device()).allow_tf32(on);
  }
};

std::vector<BenchCase> ceilings(bool smoke) {
  const std::size_t bytes = std::size_t(1) << (smoke ? 20 : 30);
  const Int m = smoke ? 64 : 8192;
  const std::string size = smoke ? "1 MiB" : "1 GiB", cube = fmt::format("{}^3", m);
  const Work product{.flops = 2 * double(m) * double(m) * double(m)};
  auto row = [&](const char* op, const std::string& shape) { return RowName{"ceilings", op, shape, "-"}; };
  auto matmul_case = [&](const char* op, DType dtype, bool tf32) {
    return BenchCase{{{row(op, cube), product}}, [=](const TimeLimits& limits) {
                       const Tf32 precision(tf32);
                       return of_one(time_step({square_matmul(m, dtype)}, limits));
                     }};
  };
  return {{{{row("copy", size), {.bytes = 2 * double(bytes)}}},
           [=](const TimeLimits& limits) { return copy_bytes(bytes, limits); }},
          {{{row("fill (write only)", size), {.bytes = double(bytes)}}},
           [=](const TimeLimits& limits) { return fill_bytes(bytes, limits); }},
          forward_case(row("sum (read only)", size), {.bytes = double(bytes)},
                       [=] {
                         return [s = normal_states({{{Int(bytes / 4)}, DType::f32}})](const Keep& keep) { keep(sum(s[0])); };
                       }),
          matmul_case("matmul bf16", DType::bf16, false),
          matmul_case("matmul tf32", DType::f32, true),
          matmul_case("matmul fp32", DType::f32, false)};
}

// ---- gemm -------------------------------------------------------------------------------------------------------------------

std::vector<BenchCase> gemm(bool smoke) {
  struct Product {
    Int m, k, n;
    const char* name;
  };
  constexpr Int big = 16384, small = 5120;
  std::vector<Product> products = {
      {big, 768, 3072, "in_proj"},       {big, 1536, 80, "x_proj"},      {big, 48, 1536, "dt_proj"},
      {big, 1536, 768, "out_proj"},      {big, 768, 3352, "m2 in_proj"}, {big, 768, 50280, "lm_head"},
      {small, 512, 2048, "hy in_proj"},  {small, 1024, 64, "hy x_proj"}, {small, 32, 1024, "hy dt_proj"},
      {small, 1024, 512, "hy out_proj"}, {small, 512, 1024, "hy qkv"},   {small, 512, 4096, "hy gate+up"},
      {small, 2048, 512, "hy down"},     {4096, 512, 4000, "hy lm_head"}};
  if (smoke) products = {{32, 16, 24, "tiny"}};
  std::vector<BenchCase> cases;
  for (const auto& [m, k, n, op] : products) {
    const Work work{.bytes = 2 * double(m * k + n * k + m * n), .flops = 2 * double(m) * double(n) * double(k)};
    const Shape x{m, k}, w{n, k}, y{m, n};
    auto add = [&, m = m, k = k, n = n, op = op](const char* phase, const Shape& a, const Shape& b,
                                                 Tensor (*product)(const State&, const State&)) {
      cases.push_back(forward_case({"gemm", op, by({m, k, n}), phase}, work, [=] {
        return [s = normal_states({{a}, {b}}), product](const Keep& keep) { keep(product(s[0], s[1])); };
      }));
    };
    add("fwd", x, w, [](const State& a, const State& b) { return linear(a, b); });
    add("dgrad", y, w, [](const State& a, const State& b) { return matmul(a, b); });
    add("wgrad", y, x, [](const State& a, const State& b) { return matmul(transpose(a), b); });
  }
  return cases;
}

// ---- scan -------------------------------------------------------------------------------------------------------------------

// u, delta, z, B, C bf16; A = -(1, ..., n), D = 1, the bias of softplus -4, in fp32.
TrainStep scan_step(Int b, Int l, Int d, Int n) {
  std::vector<State> s = normal_states({{{b, l, d}}, {{b, l, d}}, {{b, l, d}}, {{b, l, n}}, {{b, l, n}}, {{b, l, d}}});
  const State upstream = s.back();
  s.pop_back();
  std::vector<float> a(std::size_t(d * n));
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = -float(i % std::size_t(n) + 1);
  s.emplace_back(Shape{d, n}, DType::f32, "A").set(a);
  s.push_back(constant_state({d}, 1));
  s.push_back(constant_state({d}, -4));
  return [s, upstream](const Keep& keep, bool backward) {
    const std::vector<Tensor> in = values_of(s);
    enum { u, delta, z, B, C, A, D, bias };
    const Tensor y =
        scan(in[u], in[delta], in[A], in[B], in[C], {.D = in[D], .delta = softplus_bias(in[bias]), .out = gate(in[z])});
    differentiate(keep, backward, y, upstream, in);
  };
}

std::vector<BenchCase> scans(bool smoke) {
  struct Size {
    Int b, l, d, n;
  };
  std::vector<Size> sizes = {
      {8, 2048, 1536, 16}, {8, 2048, 5120, 16}, {1, 65536, 1536, 16}, {16, 320, 1024, 16}, {2, 400, 384, 16}};
  if (smoke) sizes = {{2, 12, 8, 4}};
  std::vector<BenchCase> cases;
  for (const auto& [b, l, d, n] : sizes) {
    const double big = 2 * double(b * l * d), small = 2 * double(b * l * n), exps = double(b * l * d * n);
    const TrainWork work = {{.bytes = 4 * big + 2 * small, .exps = exps}, {.bytes = 7 * big + 4 * small, .exps = exps}};
    cases.push_back(train_case("scan", "selective_scan", by({b, l, d, n}), work,
                               [=, b = b, l = l, d = d, n = n] { return scan_step(b, l, d, n); }));
  }
  return cases;
}

// ---- ssd --------------------------------------------------------------------------------------------------------------------

struct SsdSize {
  Int b, t, h, p, n;
};

// x, dt, B, C bf16; A = -(1, ..., h), D = 1, the bias of softplus -4, in fp32.
TrainStep ssd_step(const SsdSize& z) {
  std::vector<State> s = normal_states(
      {{{z.b, z.t, z.h, z.p}}, {{z.b, z.t, z.h}}, {{z.b, z.t, 1, z.n}}, {{z.b, z.t, 1, z.n}}, {{z.b, z.t, z.h, z.p}}});
  const State upstream = s.back();
  s.pop_back();
  std::vector<float> a(static_cast<std::size_t>(z.h));
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = -float(i + 1);
  s.emplace_back(Shape{z.h}, DType::f32, "A").set(a);
  s.push_back(constant_state({z.h}, 1));
  s.push_back(constant_state({z.h}, -4));
  return [s, upstream](const Keep& keep, bool backward) {
    const std::vector<Tensor> in = values_of(s);
    enum { x, dt, B, C, A, D, bias };
    const Tensor y = ssd(in[x], in[dt], in[A], in[B], in[C], {.D = in[D], .dt = softplus_bias(in[bias])});
    differentiate(keep, backward, y, upstream, in);
  };
}

// Arithmetic is that of chunks of 64, half of which lies after the step that reads.
std::vector<BenchCase> ssds(bool smoke) {
  std::vector<SsdSize> sizes = {{2, 100, 6, 64, 64}, {2, 400, 6, 64, 64}, {2, 800, 6, 64, 64}, {8, 2048, 24, 64, 128}};
  if (smoke) sizes = {{2, 12, 2, 8, 8}};
  std::vector<BenchCase> cases;
  for (const SsdSize& z : sizes) {
    const double steps = double(z.b * z.t), features = double(z.h * z.p), x = 2 * steps * features,
                 dt = 2 * steps * double(z.h), bc = 2 * 2 * steps * double(z.n),
                 flops = 2 * steps * (32 * double(z.n) + features * (32 + 2 * double(z.n)));
    const TrainWork work = {{.bytes = 2 * x + dt + bc, .flops = flops},
                            {.bytes = 3 * x + 2 * dt + 2 * bc, .flops = 2.5 * flops}};
    cases.push_back(
        train_case("ssd", "mamba_chunk_scan_combined", by({z.b, z.t, z.h, z.p, z.n}), work, [z] { return ssd_step(z); }));
  }
  return cases;
}

// ---- conv -------------------------------------------------------------------------------------------------------------------

TrainStep conv_step(Int b, Int l, Int d, Int width) {
  return
      [s = normal_states({{{b, l, d}}, {{d, width}, kActivation, 0.5}, {{d}}, {{b, l, d}}})](const Keep& keep, bool backward) {
        const Tensor x = s[0].read(), w = s[1].read(), bias = s[2].read();
        differentiate(keep, backward, conv1d(x, w, bias, {.silu = true}), s[3], {x, w, bias});
      };
}

std::vector<BenchCase> conv(bool smoke) {
  const Int b = smoke ? 2 : 8, l = smoke ? 16 : 2048;
  std::vector<BenchCase> cases;
  for (const Int d : smoke ? std::vector<Int>{8} : std::vector<Int>{1536, 5120}) {
    const double one = 2 * double(b * l * d);
    cases.push_back(train_case("conv", "causal conv1d+silu", by({b, l, d}) + " cl", {{.bytes = 2 * one}, {.bytes = 3 * one}},
                               [=] { return conv_step(b, l, d, 4); }));
  }
  return cases;
}

// ---- attention --------------------------------------------------------------------------------------------------------------

struct AttentionSize {
  Int b, h, groups, t, d;
};
struct Window {  // of `width` places and the first `meta`; width 0: all before
  Int width, meta;
};

TrainStep attention_step(const AttentionSize& z, const Window& w) {
  const Shape q{z.b, z.t, z.h, z.d}, k{z.b, z.t, z.groups, z.d};
  return [s = normal_states({{q}, {k}, {k}, {q}}), w](const Keep& keep, bool backward) {
    const std::vector<Tensor> in = {s[0].read(), s[1].read(), s[2].read()};
    AttentionOptions options{.causal = true};
    if (w.width) options.mask = [&](Index, Index, Index i, Index j) { return i - j < Index(w.width) || j < Index(w.meta); };
    differentiate(keep, backward, attention(in[0], in[1], in[2], options), s[3], in);
  };
}

std::vector<BenchCase> attentions(bool smoke) {
  std::vector<std::pair<AttentionSize, std::vector<Window>>> sizes;
  const Window small{128, 64}, large{1024, 128};
  for (const Int d : {64, 128}) {
    const bool narrow = d == 64;
    sizes.push_back({{16, 8, 4, 320, d}, narrow ? std::vector<Window>{{}, small} : std::vector<Window>{{}}});
    sizes.push_back({{4, 16, 16, 2048, d}, narrow ? std::vector<Window>{{}, large, small} : std::vector<Window>{{}}});
    sizes.push_back({{4, 16, 4, 4096, d}, {{}, large, small}});
    sizes.push_back({{1, 25, 5, 8192, d}, {{}, large, small}});
  }
  if (smoke) sizes = {{{2, 4, 2, 16, 8}, {{}, {4, 2}}}};
  std::vector<BenchCase> cases;
  for (const auto& [z, windows] : sizes)
    for (const Window& w : windows) {
      double pairs = 0;
      for (Int i = 0; i < z.t; ++i)
        pairs += double(w.width ? std::min(i + 1, w.width) + std::clamp<Int>(i - w.width + 1, 0, w.meta) : i + 1);
      const double queries = 2 * double(z.b * z.h * z.t * z.d), keys = 2 * double(z.b * z.groups * z.t * z.d),
                   flops = 4 * double(z.b * z.h * z.d) * pairs;
      const TrainWork work = {{.bytes = 2 * queries + 2 * keys, .flops = flops},
                              {.bytes = 4 * queries + 4 * keys, .flops = 2.5 * flops}};
      cases.push_back(train_case("attention", w.width ? fmt::format("window {} + meta {}", w.width, w.meta) : "causal",
                                 fmt::format("{},{}/{},{},{}", z.b, z.h, z.groups, z.t, z.d), work,
                                 [z = z, w] { return attention_step(z, w); }));
    }
  return cases;
}

// ---- pointwise --------------------------------------------------------------------------------------------------------------

TrainStep gumbel_given_step(Int n) {
  return
      [s = normal_states({{{n, n}, DType::f32}, {{n, n}, DType::f32}, {{n, n}}, {{n, n}}})](const Keep& keep, bool backward) {
        const Tensor logit = s[0].read(), w = s[2].read();
        differentiate(keep, backward, cast(sigmoid((logit + s[1]) * 2) * w, kActivation), s[3], {logit, w});
      };
}

TrainStep gumbel_drawn_step(Int n) {
  return [s = normal_states({{{n, n}, DType::f32}, {{n, n}}, {{n, n}}})](const Keep& keep, bool backward) {
    const Tensor logit = s[0].read(), w = s[1].read();
    const Tensor mask = gumbel_sigmoid(logit, {.temperature = 0.5, .hard = false, .noise = MaskNoise::logistic});
    differentiate(keep, backward, cast(mask * w, kActivation), s[2], {logit, w});
  };
}

TrainStep norm_step(Int t, Int d) {
  return [s = normal_states({{{t, d}}, {{d}}, {{t, d}}})](const Keep& keep, bool backward) {
    const Tensor x = s[0].read(), w = s[1].read();
    differentiate(keep, backward, rms_norm(x, w), s[2], {x, w});
  };
}

// y = norm(h) and h = x + r itself go on, so the gradient of h comes from both; x and r share it.
TrainStep norm_residual_step(Int t, Int d) {
  return [s = normal_states({{{t, d}}, {{t, d}}, {{d}}, {{t, d}}, {{t, d}}})](const Keep& keep, bool backward) {
    const Tensor w = s[2].read(), h = s[0] + s[1], y = rms_norm(h, w);
    keep({h, y});
    if (!backward) return;
    const std::vector<Tensor> g = grad(y, s[3], {h, w});
    keep({g[0] + s[4], g[1]});
  };
}

// The same where the stream h is fp32, as in training, and the branches r and y are not: products read its gradient in bf16.
TrainStep norm_wide_residual_step(Int t, Int d) {
  constexpr DType wide = DType::f32;
  return
      [s = normal_states({{{t, d}, wide}, {{t, d}}, {{d}, wide}, {{t, d}}, {{t, d}, wide}})](const Keep& keep, bool backward) {
        const Tensor w = s[2].read(), h = s[0] + s[1], y = rms_norm(h, w, 1e-5, kActivation);
        keep({h, y});
        if (!backward) return;
        const std::vector<Tensor> g = grad(y, s[3], {h, w});
        const Tensor dh = g[0] + s[4];
        keep({dh, cast(dh, kActivation), g[1]});
      };
}

TrainStep swiglu_step(Int t, Int d) {
  return [s = normal_states({{{t, d}}, {{t, d}}, {{t, d}}})](const Keep& keep, bool backward) {
    const Tensor g = s[0].read(), u = s[1].read();
    differentiate(keep, backward, silu(g) * u, s[2], {g, u});
  };
}

TrainStep cross_entropy_step(Int t, Int v) {
  State labels({t}, DType::i64, "labels");
  std::vector<Int> ids(std::size_t(t), 0);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = Int(i) * 7919 % v;
  labels.set(ids);
  return [labels, one = constant_state({}, 1), s = normal_states({{{t, v}}})](const Keep& keep, bool backward) {
    const Tensor logits = s[0].read();
    differentiate(keep, backward, cross_entropy(logits, labels), one, {logits});
  };
}

std::vector<BenchCase> pointwise_cases(bool smoke) {
  std::vector<BenchCase> cases;
  auto add = [&](const char* op, Int rows, Int columns, const TrainWork& work, TrainStep (*step)(Int, Int)) {
    cases.push_back(train_case("pointwise", op, by({rows, columns}), work, [=] { return step(rows, columns); }));
  };
  const Int n = smoke ? 16 : 4096, t = smoke ? 8 : 16384, wide = smoke ? 16 : 4096, v = smoke ? 40 : 50280;
  double e = double(n * n);
  add("gumbel-sigmoid*W given", n, n,
      {{.bytes = 12 * e}, {.bytes = 14 * e}, Work{.bytes = 30 * e}},  // the sum is saved, or read again
      [](Int rows, Int) { return gumbel_given_step(rows); });
  add("gumbel-sigmoid*W drawn", n, n, {{.bytes = 8 * e}, {.bytes = 14 * e}},
      [](Int rows, Int) { return gumbel_drawn_step(rows); });
  for (const Int d : smoke ? std::vector<Int>{16} : std::vector<Int>{1024, 4096}) {
    e = double(t * d);
    add("rmsnorm", t, d, {{.bytes = 4 * e}, {.bytes = 6 * e}}, norm_step);
    add("rmsnorm+residual", t, d, {{.bytes = 8 * e}, {.bytes = 8 * e}}, norm_residual_step);
    add("rmsnorm+fp32 residual", t, d, {{.bytes = 12 * e}, {.bytes = 16 * e}}, norm_wide_residual_step);
  }
  e = double(t * wide);
  add("swiglu", t, wide, {{.bytes = 6 * e}, {.bytes = 10 * e}}, swiglu_step);
  e = double(t * v);
  add("cross-entropy", t, v, {{.bytes = 2 * e}, {.bytes = 4 * e}, Work{.bytes = 4 * e}}, cross_entropy_step);
  return cases;
}

// ---- optim ------------------------------------------------------------------------------------------------------------------

std::vector<Shape> shapes_130m(bool smoke) {
  if (smoke) return {{8, 8}, {8, 8}, {8, 8}};
  std::vector<Shape> shapes = {{50280, 768}};
  for (int layer = 0; layer < 24; ++layer)
    shapes.insert(shapes.end(), {{3072, 768}, {768, 1536}, {80, 1536}, {1536, 48}, {1536, 16}, {1536, 4}, {1536}, {768}});
  return shapes;
}

// The update of parameters whose gradients wait in memory, and the norm alone.
TimedStep optimizer_step(const std::vector<Shape>& shapes) {
  std::vector<Init> inits;
  for (const Shape& s : shapes) inits.push_back({s, DType::f32});
  const std::vector<State> gradients = normal_states(inits);
  std::vector<Param> params;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    params.emplace_back(shapes[i], DType::f32, fmt::format("bench {}", i));
    params[i].impl()->gradient = gradients[i].impl();
  }
  run([&] {
    for (const Param& p : params) assign(p, normal(p.shape()));
  });
  auto optimizer = std::make_shared<AdamW>(params, AdamWOptions{.lr = 1e-4, .clip_norm = 1});
  TimedStep timed;
  timed.step = [params, optimizer](const Keep& keep) {
    for (const Param& p : params) p.impl()->pending = true;  // as if an earlier run had left its gradient
    optimizer->step();
    keep(params[0].read());
  };
  timed.first = [gradients](const Keep& keep) { keep(global_norm(values_of(gradients))); };
  timed.second = [](const KernelRecord& k) { return k.where.ends_with("adamw"); };
  return timed;
}

std::vector<BenchCase> optim(bool smoke) {
  const std::vector<Shape> shapes = shapes_130m(smoke);
  const Int n = std::accumulate(shapes.begin(), shapes.end(), Int(0), [](Int sum, const Shape& s) { return sum + s.numel(); });
  const std::string shape = fmt::format("{:.1f}M in {}", double(n) / 1e6, shapes.size());
  auto row = [&](const char* op, double bytes, const char* note) {
    return BenchRow{{"optim", op, shape, "-"}, {.bytes = bytes * double(n)}, note};
  };
  return {{{row("clip_grad_norm_", 12, "the norm; the scale rides in AdamW"), row("AdamW fp32", 28, ""),
            row("clip_grad_norm_ + AdamW fp32", 40, "")},
           [shapes](const TimeLimits& limits) { return of_two(time_step(optimizer_step(shapes), limits)); }}};
}

// ---- overhead ---------------------------------------------------------------------------------------------------------------

// Wall time of an op among many tiny ones, host and device together. f does `ops` of them.
Measured time_an_op(const std::function<void()>& f, int ops) {
  for (int i = 0; i < 2; ++i) time_wall(f);  // plans, compiles; captures
  std::vector<double> us;
  for (int i = 0; i < 7; ++i) us.push_back(time_wall(f) / ops * 1e6);
  std::nth_element(us.begin(), us.begin() + 3, us.end());
  return {{us[3] / 1e3}, {{"us_per_op", std::round(us[3] * 1e3) / 1e3}}};
}

std::vector<State> two_vectors() { return normal_states({{{16}, DType::f32}, {{16}, DType::f32}}); }

Measured add_outside_run(int n) {
  const std::vector<State> s = two_vectors();
  return time_an_op(
      [&] {
        for (int i = 0; i < n; ++i) {
          const Tensor z = s[0] + s[1];
          flush();
        }
      },
      n);
}

Measured add_a_run(int n) {
  const std::vector<State> s = two_vectors();
  auto step = [&] { assign(s[0], s[0] + s[1]); };
  return time_an_op(
      [&] {
        for (int i = 0; i < n; ++i) run(step);
      },
      n);
}

// n dependent kernels in one run, which would be one kernel if they were fused.
Measured add_in_graph(int n) {
  const std::vector<State> s = two_vectors();
  struct Unfused {
    bool before = std::exchange(settings().fuse, false);
    ~Unfused() { settings().fuse = before; }
  } unfused;
  auto step = [&] {
    Tensor z = s[0].read();
    const Tensor y = s[1].read();
    for (int i = 0; i < n; ++i) z = z + y;
    Keep()(z);
  };
  return time_an_op([&] { run(step); }, n);
}

Measured add_chain(int runs) {
  constexpr int kChain = 100;
  const std::vector<State> s = two_vectors();
  auto step = [&] {
    const Tensor x = s[0].read(), y = s[1].read();
    Tensor z = x;
    for (int i = 0; i < kChain; ++i) z = z + y;
    const Tensor loss = sum(z);
    Keep()(loss);
    Keep()(grad(loss, {x}));
  };
  return time_an_op(
      [&] {
        for (int i = 0; i < runs; ++i) run(step);
      },
      runs * kChain);
}

Measured linear_a_run(int n) {
  const std::vector<State> s = normal_states({{{16, 16}, DType::f32}, {{16, 16}, DType::f32}, {{16}, DType::f32}});
  auto step = [&] { Keep()(linear(s[0], s[1], s[2])); };
  return time_an_op(
      [&] {
        for (int i = 0; i < n; ++i) run(step);
      },
      n);
}

std::vector<BenchCase> overhead(bool smoke) {
  const int n = smoke ? 20 : 1000;
  auto row = [](const char* op, const char* impl, const char* phase, const char* peer, const char* note = "") {
    return std::vector<BenchRow>{{{"overhead", op, "16", phase, impl, peer}, {}, note}};
  };
  const char* add = "add, 16 elements";
  return {{row(add, "weft outside run", "fwd", "eager"), [=](const TimeLimits&) { return add_outside_run(n); }},
          {row(add, "weft run", "fwd", "eager", "a run each, in place"), [=](const TimeLimits&) { return add_a_run(n); }},
          {row(add, "weft chain of 100", "both", "eager", "forward + backward per add, fused"),
           [=](const TimeLimits&) { return add_chain(std::max(1, n / 100)); }},
          {row("linear 16x16", "weft run", "fwd", "eager", "a run each"),
           [=](const TimeLimits&) { return linear_a_run(std::max(1, n / 10)); }},
          {row(add, "weft graph replay", "fwd", "CUDA graph", "kernel after kernel, WEFT_FUSE=0"),
           [=](const TimeLimits&) { return add_in_graph(n); }}};
}

}  // namespace

const std::vector<std::string>& bench_groups() {
  static const std::vector<std::string> groups = {"ceilings",  "gemm",  "scan",     "ssd", "conv",  "attention",
                                                  "pointwise", "optim", "overhead", "e2e", "decode"};
  return groups;
}

std::vector<BenchCase> bench_cases(const std::string& group, bool smoke) {
  constexpr std::pair<const char*, std::vector<BenchCase> (*)(bool)> makers[] = {{"ceilings", ceilings},
                                                                                 {"gemm", gemm},
                                                                                 {"scan", scans},
                                                                                 {"ssd", ssds},
                                                                                 {"conv", conv},
                                                                                 {"attention", attentions},
                                                                                 {"pointwise", pointwise_cases},
                                                                                 {"optim", optim},
                                                                                 {"overhead", overhead},
                                                                                 {"e2e", e2e_cases},
                                                                                 {"decode", decode_cases}};
  for (const auto& [name, make] : makers)
    if (group == name) return make(smoke);
  fail(ErrorKind::usage, fmt::format("bench: no group '{}'{}", group, suggestion(group, bench_groups())));
}

}  // namespace weft
