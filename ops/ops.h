// Every op, with its formula. Ops check shapes and dtypes at the call (errors are ErrorKind::usage), record a node and return
// at once. Shapes: b batch, t time, d width, i inner width, n state size, w conv width, v vocabulary; "..." any leading axes.
//
// Equal inputs give equal bits on all devices (but for which NaN, and which zero min and max give) in: integers and booleans;
// casts, comparisons, where, min, max, clamp, relu, abs, sign, floor, views, concat, pad, embedding, max over axes; +, -, *, /,
// sqrt and square of reals where one of them is a kernel of its own, for within a kernel a GPU contracts a b + c to one
// operation; uniform, and dropout, which it decides; and, from equal gradients, global_norm and all that AdamW decides and
// updates (optim/). Anything else agrees within rounding: what is summed in another order, matmul, exp and its kin, and so
// normal and gumbel_sigmoid's noise.
#pragma once

#include <optional>
#include <vector>

#include "autograd/op.h"
#include "autograd/tensor.h"
#include "ops/custom.h"

namespace weft {

// ---- pointwise (ops/pointwise.cpp): operands broadcast, right-aligned; the result has the widest dtype ----------------------
//
// A number beside integers is an integer if it is whole: i * 2.0 has i's type, i * 0.5 is real. Quotients, pow and the
// functions of reals are real. Reals that integers or booleans become are f32. Arithmetic with booleans alone is real: b + b is
// f32.

Tensor operator+(Arg a, Arg b);
Tensor operator-(Arg a, Arg b);
Tensor operator*(Arg a, Arg b);
Tensor operator/(Arg a, Arg b);
Tensor operator-(Arg a);
Tensor operator+(Arg a, double b);
Tensor operator-(Arg a, double b);
Tensor operator*(Arg a, double b);
Tensor operator/(Arg a, double b);
Tensor operator+(double a, Arg b);
Tensor operator-(double a, Arg b);
Tensor operator*(double a, Arg b);
Tensor operator/(double a, Arg b);

Tensor equal(Arg a, Arg b);  // boolean results
Tensor not_equal(Arg a, Arg b);
Tensor less(Arg a, Arg b);
Tensor less_equal(Arg a, Arg b);
Tensor greater(Arg a, Arg b);
Tensor greater_equal(Arg a, Arg b);
Tensor equal(Arg a, double b);
Tensor not_equal(Arg a, double b);
Tensor less(Arg a, double b);
Tensor less_equal(Arg a, double b);
Tensor greater(Arg a, double b);
Tensor greater_equal(Arg a, double b);
// a where the condition holds, else b. The arm that is not taken may be inf or NaN and has the gradient 0, as has what it was
// computed from by pointwise ops.
Tensor where(Arg condition, Arg a, Arg b);

Tensor min(Arg a, Arg b);  // a tie splits the gradient in halves; beside a NaN both have all of it
Tensor max(Arg a, Arg b);
Tensor pow(Arg a, Arg b);
Tensor pow(Arg a, double b);
Tensor exp(Arg a);
Tensor log(Arg a);
Tensor log1p(Arg a);
Tensor expm1(Arg a);
Tensor sqrt(Arg a);  // derivative 0 at 0
Tensor rsqrt(Arg a);
Tensor tanh(Arg a);
Tensor sigmoid(Arg a);
Tensor silu(Arg a);      // a sigmoid(a)
Tensor softplus(Arg a);  // log(1 + e^a)
Tensor relu(Arg a);
Tensor gelu(Arg a);       // a Phi(a)
Tensor gelu_tanh(Arg a);  // the tanh approximation
Tensor erf(Arg a);
Tensor abs(Arg a);
Tensor sign(Arg a);
Tensor square(Arg a);
Tensor floor(Arg a);
Tensor sin(Arg a);
Tensor cos(Arg a);
Tensor clamp(Arg a, double low, double high);  // the gradient passes at the bounds, too
// Reals round to nearest even, in a kernel that computes on with the result too; to integers they truncate and saturate, NaN to
// the smallest; integers wrap.
Tensor cast(Arg a, DType dtype);
Tensor detach(Arg a);  // the same value; no gradient flows back

Tensor zeros(Shape shape, DType dtype = DType::f32, Site where = Site::current());
Tensor ones(Shape shape, DType dtype = DType::f32, Site where = Site::current());
Tensor full(Shape shape, double value, DType dtype = DType::f32, Site where = Site::current());
// Uniform in (0, 1) by Philox from the Rng in use; every call site in a module draws its own stream.
Tensor uniform(Shape shape, DType dtype = DType::f32, Site where = Site::current());
Tensor normal(Shape shape, DType dtype = DType::f32, Site where = Site::current());  // Box-Muller

// A user's op: body(x0, x1, ...) on scalars. Gradient, fusion, every device follow. `name` appears in errors and kernels.
// expr::index(k) is where the element stands along axis k of the result. The body cannot index tensors: its tensors are the
// operands. At most 8 operands.
namespace detail {
Tensor record_pointwise(std::string_view name, std::span<const Arg> inputs, Expr body, std::span<const double> constants);
ExprType input_type(const Arg& a);
template <class F, std::size_t... I>
Expr call_body(F& f, const Arg* args, std::index_sequence<I...>) {
  return f(expr::input(int(I), input_type(args[I]))...);
}
[[noreturn]] void fail_pointwise_arity(std::size_t tensors, Site where);
template <std::size_t N, class F>
Expr call_pointwise(F& f, std::span<const Arg> args, Site where) {
  if constexpr (N <= 8) {
    if constexpr (takes<F>(std::make_index_sequence<N>{}))
      if (args.size() == N) return call_body(f, args.data(), std::make_index_sequence<N>{});
    return call_pointwise<N + 1>(f, args, where);
  } else {
    fail_pointwise_arity(args.size(), where);
  }
}
}  // namespace detail
template <class F>
Tensor pointwise(std::string_view name, std::initializer_list<Arg> inputs, F body, Site where = Site::current()) {
  ConstantScope scope;
  const std::span<const Arg> args(inputs.begin(), inputs.size());
  const Expr root = detail::call_pointwise<1>(body, args, where);
  return detail::record_pointwise(name, args, root, scope.values());
}

// ---- views (ops/view.cpp): read-only index maps, no copy where strides can express them; negative axes count from the end

Tensor reshape(Arg a, Shape shape);  // one size may be -1
Tensor permute(Arg a, std::vector<int> axes);
Tensor transpose(Arg a, int axis0 = -1, int axis1 = -2);
Tensor slice(Arg a, int axis, std::int64_t begin, std::int64_t end);
Tensor expand(Arg a, Shape shape);
Tensor concat(std::vector<Arg> parts, int axis, Site where = Site::current());
Tensor pad(Arg a, int axis, std::int64_t before, std::int64_t after, double value = 0);
std::vector<Tensor> split(Arg a, std::vector<std::int64_t> sizes, int axis);

// ---- reductions (ops/reduce.cpp): over the given axes, all if empty; accumulated in fp32 (fp64 for f64), fixed order --------

Tensor sum(Arg a, std::vector<int> axes = {}, bool keep = false);
Tensor mean(Arg a, std::vector<int> axes = {}, bool keep = false);
Tensor max(Arg a, std::vector<int> axes = {}, bool keep = false);  // ties, or NaNs, share the gradient evenly
Tensor logsumexp(Arg a, std::vector<int> axes = {}, bool keep = false);
Tensor softmax(Arg a, std::vector<int> axes = {-1});
Tensor log_softmax(Arg a, std::vector<int> axes = {-1});

// ---- norms (ops/norm.cpp): over the last axis, statistics in fp32 (fp64 for f64) --------------------------------------------

// out(u rsqrt(mean(u^2) + eps) w), u = in(x) (arXiv:1910.07467); weight (n) may be absent. The result has x's type, or `dtype`.
// The holes' coordinates are the axes of x; with gate(z) for one of them this is the gated norm, which is gated after or
// before.
Tensor rms_norm(Arg x, Arg weight, double eps = 1e-5, std::optional<DType> dtype = {}, Hole out = {}, Hole in = {});
// out((x - mean(x)) rsqrt(var(x) + eps) w + b) (arXiv:1607.06450); weight and bias (n) may be absent. The rest is as above.
Tensor layer_norm(Arg x, Arg weight, Arg bias, double eps = 1e-5, std::optional<DType> dtype = {}, Hole out = {});

// ---- matmul (ops/matmul.cpp) ------------------------------------------------------------------------------------------------

// a (..., m, k) b (..., k, n) -> (..., m, n); leading axes broadcast. Transposed operands: pass transpose(x), it costs nothing.
Tensor matmul(Arg a, Arg b);
// x (..., in) weight (out, in) -> (..., out);  y = x W^T + bias; bias (out) may be absent
Tensor linear(Arg x, Arg weight, Arg bias = Tensor{});

// ---- embedding (ops/embedding.cpp) ------------------------------------------------------------------------------------------

// weight (v, d), ids (...) i32 or i64 in [0, v) -> (..., d). The gradient sums rows in a fixed order: deterministic.
Tensor embedding(Arg weight, Arg ids);

// ---- scatter (ops/scatter.cpp) ----------------------------------------------------------------------------------------------

// values real; out (n), of their type: out[e] is the sum of values[p] over the places p, of the same shape, with places[p] = e
// (integers), added in a fixed order: deterministic. A place outside of [0, n) adds to nothing and takes no gradient.
Tensor scatter_sum(Arg values, Arg places, std::int64_t n);

// ---- cross-entropy (ops/cross_entropy.cpp) ----------------------------------------------------------------------------------

enum class Reduction { mean, sum, none };
struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;  // e: targets (1-e) onehot + e / v
  // mean: over the valid labels (0 if there is none); none: one loss for each row, 0 where it is ignored.
  Reduction reduction = Reduction::mean;
};
// logits (..., v), labels (...) integers. Computed in fp32 (fp64 for f64).
Tensor cross_entropy(Arg logits, Arg labels, CrossEntropyOptions options = {});

// ---- dropout and masks (ops/gumbel.cpp) -------------------------------------------------------------------------------------

Tensor dropout(Arg x, double p, bool training = true);  // x / (1-p) with probability 1-p, else 0
enum class MaskNoise { gumbel, logistic };
struct GumbelOptions {
  double temperature = 0.5;                       // tau; may change every step
  std::optional<Scalar> temperature_scalar = {};  // takes precedence
  bool hard = true;                               // straight-through: 1[M > 1/2] forward, the soft M backward
  MaskNoise noise = MaskNoise::gumbel;
  bool training = true;  // false: 1[logit > 0], no noise
};
Tensor gumbel_sigmoid(Arg logits, GumbelOptions options = {});  // M = sigmoid((l + g) / tau)

// ---- documents packed one after the other (ops/segments.cpp) ----------------------------------------------------------------

// ids (b, t), integers: which document of its row each place belongs to. They do not fall along t; where they rise a document
// begins, and conv1d, scan and ssd start anew, so that each document has the values, gradients and last states that it has
// alone. An id that falls is an error when the kernel runs, like a wrong id of an embedding. The initial state belongs to the
// first document of its row, the last one to the last. One Documents serves all ops of a model.
struct Documents {
  Tensor ids, borders;  // borders (b, t) i32: 1 where a document begins after another one
  Documents() = default;
  Documents(const Tensor& of, Site where = Site::current());
  explicit operator bool() const { return bool(ids); }
};

// ---- conv1d (ops/conv1d.cpp): causal, depthwise, channel-last ---------------------------------------------------------------

struct Conv1dOptions {
  bool silu = false;        // short for .out = silu_hole()
  HoleOf<1, 3> out = {};    // y = out(pre; b, t, d): silu_hole(), gate(z)
  Tensor initial = {};      // (b, w-1, d): inputs before time 0 (zeros if absent)
  Tensor* last = nullptr;   // receives the last w-1 inputs (b, w-1, d), with gradient
  Documents segments = {};  // an input of another document than y_t's is read as 0, so in `last`
};
// x (b, t, d) weight (d, w) bias (d, may be absent) -> (b, t, d);  pre_t = bias + sum_j w[j] x_{t-(w-1)+j}, y_t = out(pre_t)
Tensor conv1d(Arg x, Arg weight, Arg bias = Tensor{}, Conv1dOptions options = {});

// ---- selective scan (ops/scan.cpp, arXiv:2312.00752): channel-last ----------------------------------------------------------

// What a function that fills delta or out may do is listed at HoleOf (autograd/hole.h).
struct ScanOptions {
  Tensor D = {};            // (i): skip, s += D u
  HoleOf<1, 3> delta = {};  // Delta = delta(raw; b, t, i): softplus_bias(bias)
  HoleOf<1, 3> out = {};    // o = out(s; b, t, i): gate(z)
  Tensor initial = {};      // (b, i, n) h before time 0
  Tensor* last = nullptr;   // receives h_T (b, i, n) in fp32 (fp64), with gradient
  Documents segments = {};  // h_{t-1} is 0 where a document begins
};
// u, delta (b, t, i); A (i, n) < 0; B, C (b, t, n) or (b, t, g, n) with i divisible by g, channel c uses group c / (i/g).
// h_t = exp(Delta A) h_{t-1} + Delta B u;  s_t = C h_t (+ D u);  result (b, t, i). n <= 256. State in fp32 (fp64). With u in
// bf16 a GPU may sum the gradients of B and C over channels from products in TF32, which lose less than 2^-10 each. Where u,
// delta, B and C are bf16, n = 16 and 32 divides i/g, it makes s and the other gradients from products of bf16 numbers as well,
// and keeps states for the gradient in fp16, scaled alike for 16 channels. The gradient has no gradient: a second derivative is
// an error.
Tensor scan(Arg u, Arg delta, Arg A, Arg B, Arg C, ScanOptions options = {});
Hole softplus_bias(Arg bias);  // v -> softplus(v + bias)
Hole softplus_hole();          // v -> softplus(v)
Hole silu_hole();              // v -> silu(v)
Hole gate(Arg z);              // s -> s silu(z)

// ---- state space duality (ops/ssd.cpp, arXiv:2405.21060): the scan of Mamba-2, channel-last ---------------------------------

// What a function that fills dt or out may do is listed at HoleOf (autograd/hole.h).
struct SsdOptions {
  Tensor D = {};            // (h) or (h, p): skip, s += D x
  HoleOf<1, 3> dt = {};     // Delta = dt(raw; b, t, h): softplus_bias(bias)
  HoleOf<1, 4> out = {};    // y = out(s; b, t, h, p): gate(z)
  Tensor initial = {};      // (b, h, p, n) S before time 0
  Tensor* last = nullptr;   // receives S_T (b, h, p, n) in fp32 (fp64), with gradient
  Documents segments = {};  // S_{t-1} is 0 where a document begins
  std::int64_t chunk = 64;  // steps that are computed together; results do not depend on it, but for their rounding
  bool plain = false;       // by other ops, where there are kernels too
};
// x (b, t, h, p); dt (b, t, h); A (h) < 0; B, C (b, t, g, n) with h divisible by g, head k uses group k / (h/g).
// S_t = exp(Delta A) S_{t-1} + Delta x_t B_t^T;  s_t = S_t C_t (+ D x_t);  result (b, t, h, p), in x's type. S is a matrix
// (p, n) for each head, in fp32 (fp64). Delta = 0 leaves it as it is. Any number of steps, 0 too.
Tensor ssd(Arg x, Arg dt, Arg A, Arg B, Arg C, SsdOptions options = {});

// ---- attention (ops/attention.cpp, arXiv:2205.14135): channel-last ----------------------------------------------------------

enum class Pairing { halves, neighbours };  // feature pairs of rotate: (p, p + dk/2), or (2p, 2p + 1)
// What a function that fills a hole may do is listed at HoleOf (autograd/hole.h). i, j and t are places in q and k as given.
struct AttentionOptions {
  double scale = 0;             // 0: 1 / sqrt(dk)
  bool causal = false;          // query i sees keys j <= i + (tk - tq); joined to the mask by &&
  Tensor segments = {};         // (b, t) integers, tq == tk: only keys of the same segment are visible
  HoleOf<1, 4> score = {};      // s -> score(s; b, h, i, j), real; s is scaled already
  HoleOf<0, 4> mask = {};       // visible(; b, h, i, j), boolean
  HoleOf<0, 4> weight = {};     // factor of the probabilities, after the normaliser: dropped(0.1)
  HoleOf<2, 4, 2> rotate = {};  // (x, y; b, h, t, p) -> Pair: applied to pairs of features of q and of k (RoPE)
  Pairing pairing = Pairing::halves;
};
// q (b, tq, h, dk), k (b, tk, g, dk), v (b, tk, g, dv), h divisible by g: head h reads group h / (h/g). -> (b, tq, h, dv), in
// q's type. o_i = sum over j of weight softmax_j(score(scale q_i . k_j)) v_j, over the keys that query i sees; computed in fp32
// (fp64). A row that sees no key gives 0 and no gradient. In rotate, which must be linear, h is a head of q, or a group of k.
// - Where the mask hides a place, what score and weight are there, inf or NaN too, has no effect, and subscripts may leave
// their
//   tensors. At a place that is seen that is an error: when the kernel runs, if there is a mask.
// - A tensor that score captures has a gradient if its subscripts depend, besides b and h, on i alone, on j alone, on i - j, or
//   on none of them, as in bias(h, min(i - j, 127)); any other is refused, as are all of mask, weight and rotate.
Tensor attention(Arg q, Arg k, Arg v, AttentionOptions options = {});
// A weight: 0 with probability p, else 1 / (1 - p); drawn from the Rng in use, by the place.
Hole dropped(double p, Site where = Site::current());
// The probabilities (b, h, tq, tk), before `weight`, in fp32 (fp64): for people who look at them, T^2 memory.
Tensor attention_map(Arg q, Arg k, AttentionOptions options = {});

// ---- a user's own kernel (ops/custom.h) -------------------------------------------------------------------------------------
//
// custom(op, {inputs...}, {outputs...}, values): CUDA text with names for its operands, a CPU function, a gradient.

// ---- control of the tape (autograd/backward.h) has backward, grad, no_grad, checkpoint, tap ---------------------------------

}  // namespace weft
