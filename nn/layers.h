// Layers. Shapes: "..." any leading axes. Every use of a weight is a product of its layer (forward, product, logits), which
// owns what changes the weight: its mask and adapters. weight() is the parameter itself, to be read and set, not to be
// multiplied with.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "nn/adapter.h"
#include "nn/init.h"
#include "nn/module.h"
#include "ops/ops.h"

namespace weft {

// ---- masks ------------------------------------------------------------------------------------------------------------------

struct MaskOptions {
  double temperature = 0.5;
  std::optional<Scalar> temperature_scalar = {};  // takes precedence; shared by masks that are annealed together
  bool hard = true;                               // straight-through
  MaskNoise noise = MaskNoise::gumbel;
  double initial_sparsity = 0.5;  // s0 in (0, 1): logits start at ln((1 - s0) / s0)
};

// A Gumbel-sigmoid mask. Training: a new sample each call; evaluation: 1[logit > 0]. Those of a model are its
// parts<GumbelMask>().
class GumbelMask : public Module {
 public:
  static constexpr bool is_part = true;
  // Errors (ErrorKind::usage): an initial sparsity outside of (0, 1), a temperature that is not positive.
  GumbelMask(Shape weight, DType dtype, MaskOptions options, Site where = Site::current());
  GumbelMask(const GumbelMask&) = default;
  Tensor sample(Site where = Site::current()) const;  // the shape of the weight, values in [0, 1]
  // weight |(1 - mean sigmoid(l)) - target|, a scalar
  Tensor penalty(double weight = 1e-5, double target = 0.3, Site where = Site::current()) const;
  double expected_sparsity() const;  // 1 - mean sigmoid(l); on the host
  double realised_sparsity() const;  // the fraction of zeros in evaluation; on the host
  const Param& logits() const;
  void set_temperature(double temperature, Site where = Site::current());

 private:
  Param logits_;
  std::shared_ptr<MaskOptions> options_;  // shared by copies
};

Tensor mask_penalty(const std::vector<GumbelMask>& masks, double weight = 1e-5, double target = 0.3);  // their sum

// ---- layers -----------------------------------------------------------------------------------------------------------------

// The weight of a layer, with the mask and the adapters that it may have, and its bias, which is not masked. With M the mask, l
// of IA3 and B A of LoRA it computes with diag(l_out) (M (W + scale B A + ...)) diag(l_in) and the bias diag(l_out) b.
class WeightedModule : public Module {
 public:
  static constexpr bool is_part = true;
  WeightedModule() = default;
  WeightedModule(const WeightedModule&) = default;
  const Param& weight() const;
  const Param& bias() const;  // absent if there is none
  // From now on, for all copies of the layer. Errors (ErrorKind::usage): it has a mask already.
  void mask(MaskOptions options, Site where = Site::current());
  const std::optional<GumbelMask>& mask() const { return *mask_; }

  WeightUse use() const { return use_; }
  // Features that the weight takes and gives; of an embedding vocab and width, of a convolution twice its channels.
  std::int64_t inputs() const;
  std::int64_t outputs() const;
  // One adapter more, beside those that there are, for all copies of the layer; it is below the layer as "adapter.NAME". The
  // weight stays trainable or frozen, as it is. Errors (ErrorKind::usage): those of Adapter; there is one of that name.
  Adapter adapt(const std::string& name, const AdapterOptions& options, Site where = Site::current());
  const std::vector<Adapter>& adapters() const { return adapted_->adapters; }
  // Between steps: weight and bias become what they are with the active adapters, none of which acts any more; and again what
  // they were, to the bit, since the host keeps them. Errors (ErrorKind::usage): merged already, or not.
  void merge(Site where = Site::current());
  void unmerge(Site where = Site::current());
  bool merged() const { return adapted_->merged; }

 protected:
  Tensor sampled_mask() const;  // absent if there is none
  Tensor masked(const Tensor& weight, const Tensor& mask) const { return mask ? weight * mask : weight; }
  bool acts(AdapterKind kind) const;  // some adapter of that kind
  template <class F>
  void each_acting(AdapterKind kind, F&& f) const {
    if (merged()) return;
    for (const Adapter& a : adapters())
      if (a.active() && a.options().kind == kind) f(a);
  }
  // By the IA3 that act there, or what is given itself: the last axis, or the first one of a matrix.
  Tensor scaled(Tensor x, bool on_input) const;
  Tensor scaled_rows(const Tensor& matrix, bool on_input) const;

  Param weight_, bias_;
  WeightUse use_ = WeightUse::product;

 private:
  struct Adapted {
    std::vector<Adapter> adapters;
    bool merged = false;
    std::vector<std::byte> weight, bias;  // before they were merged
  };
  std::shared_ptr<std::optional<GumbelMask>> mask_ = std::make_shared<std::optional<GumbelMask>>();
  std::shared_ptr<Adapted> adapted_ = std::make_shared<Adapted>();
};

struct LinearOptions {
  bool bias = true;
  Initialiser weight_init = {};  // default: U(+-1/sqrt(in))
  Initialiser bias_init = {};    // default: U(+-1/sqrt(in))
  DType dtype = DType::f32;
};

// y = x W^T + bias; weight (out, in), bias (out).
class Linear : public Layer<Linear, WeightedModule> {
 public:
  Linear(std::int64_t in, std::int64_t out, LinearOptions options = {}, Site where = Site::current());
  // (..., in) -> (..., out), in x's dtype: product(x) + shift().
  Tensor forward(const Tensor& x);
  // The two for a caller that adds the bias elsewhere, as a scan does: product(x) is x W^T; shift() (out), absent if there is
  // no bias.
  Tensor product(Arg x) const;
  Tensor shift() const;

 private:
  Tensor computed(const Arg& x, bool with_bias) const;
};

struct Conv1dLayerOptions {
  bool bias = true;
  DType dtype = DType::f32;
};

// Causal depthwise convolution over time: weight (d, w), in files (d, 1, w); bias (d).
class Conv1d : public Layer<Conv1d, WeightedModule> {
 public:
  Conv1d(std::int64_t channels, std::int64_t width, Conv1dLayerOptions options = {}, Site where = Site::current());
  Tensor forward(const Tensor& x, Conv1dOptions options = {});  // (b, t, d) -> (b, t, d)
  using Layer::operator();
  // conv(x, {.silu = true}): braces alone have no type.
  Tensor operator()(Arg x, Conv1dOptions options) { return Layer::operator()(x, std::move(options)); }
};

struct EmbeddingOptions {
  double deviation = 0.02;  // rows start as N(0, deviation^2)
  DType dtype = DType::f32;
};

// weight (vocab, width); ids (...) in [0, vocab) -> (..., width).
class Embedding : public Layer<Embedding, WeightedModule> {
 public:
  Embedding(std::int64_t vocab, std::int64_t width, EmbeddingOptions options = {}, Site where = Site::current());
  Tensor forward(const Tensor& ids);
  // x (..., width) -> (..., vocab), x W^T: the head of a model that ties it to the embedding. A masked weight is two in a step
  // then: the mask is drawn for each product, so forward and logits use different samples.
  Tensor logits(Arg x) const;
};

// The layer with a mask on its weight.
template <std::derived_from<WeightedModule> M>
M masked(M layer, MaskOptions options = {}, Site where = Site::current()) {
  layer.mask(std::move(options), where);
  return layer;
}

struct NormOptions {
  double eps = 1e-5;
  DType dtype = DType::f32;
  std::optional<DType> output = {};  // of the result; x's type if not given
};

// x rsqrt(mean(x^2) + eps) w over the last axis; weight (width) starts at 1.
class RMSNorm : public Layer<RMSNorm> {
 public:
  explicit RMSNorm(std::int64_t width, NormOptions options = {}, Site where = Site::current());
  Tensor forward(const Tensor& x);  // (..., width) -> (..., width)
  const Param& weight() const { return weight_; }

 private:
  Param weight_;
  double eps_;
  std::optional<DType> output_;
};

// (x - mean) rsqrt(var + eps) w + bias over the last axis; weight, bias (width) start at 1 and 0.
class LayerNorm : public Layer<LayerNorm> {
 public:
  explicit LayerNorm(std::int64_t width, NormOptions options = {}, Site where = Site::current());
  Tensor forward(const Tensor& x);

 private:
  Param weight_, bias_;
  double eps_;
  std::optional<DType> output_;
};

// x / (1 - p) with probability 1 - p, else 0, in training; x in evaluation.
class Dropout : public Layer<Dropout> {
 public:
  explicit Dropout(double p, Site where = Site::current());
  Tensor forward(const Tensor& x);

 private:
  double p_;
};

}  // namespace weft
