#include "nn/layers.h"

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <utility>

namespace weft {
namespace {

void check_sizes(const char* layer, std::initializer_list<std::int64_t> sizes, Site where) {
  std::string text;
  bool good = true;
  for (std::int64_t n : sizes) text += (text.empty() ? "" : ", ") + std::to_string(n), good &= n > 0;
  if (!good) fail_at(where, std::string(layer) + ": sizes must be positive", text);
}

Param parameter(Shape shape, DType dtype, bool decay, Site where) {
  Param p(shape, dtype, "param", where);
  p.set_decay(decay);
  return p;
}

}  // namespace

// ---- masks ------------------------------------------------------------------------------------------------------------------

GumbelMask::GumbelMask(Shape weight, DType dtype, MaskOptions options, Site where)
    : logits_(parameter(weight, dtype, false, where)), options_(std::make_shared<MaskOptions>(std::move(options))) {
  const double s0 = options_->initial_sparsity;
  if (!(s0 > 0 && s0 < 1))
    fail_at(where, "mask: initial_sparsity must lie between 0 and 1, both exclusive", fmt::format("initial_sparsity {}", s0),
            "the logits start at ln((1 - s) / s), which is finite only there; to begin nearly dense, take 0.01");
  set_temperature(options_->temperature, where);
  add("logits", logits_, init::constant(std::log((1 - s0) / s0)));
}

void GumbelMask::set_temperature(double temperature, Site where) {
  if (!(temperature > 0 && std::isfinite(temperature)))
    fail_at(where, "mask: the temperature must be positive", fmt::format("temperature {}", temperature),
            "for a mask of zeros and ones, set .hard");
  options_->temperature = temperature;
}

const Param& GumbelMask::logits() const { return initialise(), logits_; }

Tensor GumbelMask::sample(Site where) const {
  return gumbel_sigmoid(Arg(logits(), where), {.temperature = options_->temperature,
                                               .temperature_scalar = options_->temperature_scalar,
                                               .hard = options_->hard,
                                               .noise = options_->noise,
                                               .training = training()});
}

Tensor GumbelMask::penalty(double weight, double target, Site where) const {
  return abs((1.0 - target) - mean(sigmoid(Arg(logits(), where)))) * weight;
}

double GumbelMask::expected_sparsity() const {
  double on = 0;
  for (double l : logits().to_host<double>()) on += 1 / (1 + std::exp(-l));
  return 1 - on / double(logits_.shape().numel());
}

double GumbelMask::realised_sparsity() const {
  std::int64_t zeros = 0;
  for (double l : logits().to_host<double>()) zeros += !(l > 0);
  return double(zeros) / double(logits_.shape().numel());
}

Tensor mask_penalty(const std::vector<GumbelMask>& masks, double weight, double target) {
  Tensor total;
  for (const GumbelMask& mask : masks) {
    Tensor one = mask.penalty(weight, target);
    total = total ? total + one : one;
  }
  return total ? total : zeros({});
}

// ---- layers with a weight ---------------------------------------------------------------------------------------------------

const Param& WeightedModule::weight() const { return initialise(), weight_; }
const Param& WeightedModule::bias() const { return initialise(), bias_; }

Tensor WeightedModule::masked_weight() const {
  const Tensor w = weight_.read();
  return mask() ? w * mask()->sample() : w;
}

void WeightedModule::mask(MaskOptions options, Site where) {
  if (*mask_)
    fail_at(where, "mask: the layer has a mask already", fmt::format("'{}', weight {}", path(), to_string(weight_.shape())),
            "copies of a layer share its mask: mask it once; mask() is the one that it has");
  GumbelMask fresh(weight_.shape(), weight_.dtype(), std::move(options), where);
  add("mask", fresh);
  mask_->emplace(fresh);
}

Linear::Linear(std::int64_t in, std::int64_t out, LinearOptions options, Site where) {
  check_sizes("Linear", {in, out}, where);
  weight_ = parameter({out, in}, options.dtype, true, where);
  add("weight", weight_, options.weight_init ? options.weight_init : init::kaiming_uniform(in));
  if (!options.bias) return;
  bias_ = parameter({out}, options.dtype, false, where);
  add("bias", bias_, options.bias_init ? options.bias_init : init::kaiming_uniform(in));
}

// Parameters are read in one order, whatever that of a compiler is for arguments: so they draw the same values.
Tensor Linear::forward(const Tensor& x) {
  const Tensor weight = masked_weight();
  return linear(x, weight, shift());
}
Tensor Linear::product(Arg x) const { return initialise(), linear(x, masked_weight()); }
Tensor Linear::shift() const { return bias_ ? bias().read() : Tensor{}; }

Conv1d::Conv1d(std::int64_t channels, std::int64_t width, Conv1dLayerOptions options, Site where) {
  check_sizes("Conv1d", {channels, width}, where);
  weight_ = parameter({channels, width}, options.dtype, true, where);
  add("weight", weight_, init::kaiming_uniform(width), Shape{channels, 1, width});
  if (!options.bias) return;
  bias_ = parameter({channels}, options.dtype, false, where);
  add("bias", bias_, init::kaiming_uniform(width));
}

Tensor Conv1d::forward(const Tensor& x, Conv1dOptions options) {
  const Tensor weight = masked_weight();
  return conv1d(x, weight, bias_ ? bias_.read() : Tensor{}, std::move(options));
}

Embedding::Embedding(std::int64_t vocab, std::int64_t width, EmbeddingOptions options, Site where) {
  check_sizes("Embedding", {vocab, width}, where);
  weight_ = parameter({vocab, width}, options.dtype, true, where);
  add("weight", weight_, init::normal(options.deviation));
}

Tensor Embedding::forward(const Tensor& ids) { return embedding(masked_weight(), ids); }
Tensor Embedding::logits(Arg x) const { return initialise(), linear(x, masked_weight()); }

// ---- the others -------------------------------------------------------------------------------------------------------------

RMSNorm::RMSNorm(std::int64_t width, NormOptions options, Site where) : eps_(options.eps), output_(options.output) {
  check_sizes("RMSNorm", {width}, where);
  weight_ = parameter({width}, options.dtype, false, where);
  add("weight", weight_, init::constant(1));
}

Tensor RMSNorm::forward(const Tensor& x) { return rms_norm(x, weight_, eps_, output_); }

LayerNorm::LayerNorm(std::int64_t width, NormOptions options, Site where) : eps_(options.eps), output_(options.output) {
  check_sizes("LayerNorm", {width}, where);
  weight_ = parameter({width}, options.dtype, false, where);
  bias_ = parameter({width}, options.dtype, false, where);
  add("weight", weight_, init::constant(1));
  add("bias", bias_, init::constant(0));
}

Tensor LayerNorm::forward(const Tensor& x) { return layer_norm(x, weight_, bias_, eps_, output_); }

Dropout::Dropout(double p, Site where) : p_(p) {
  if (!(p >= 0 && p < 1)) fail_at(where, "Dropout: p must lie in [0, 1)", fmt::format("p {}", p));
}

Tensor Dropout::forward(const Tensor& x) { return dropout(x, p_, training()); }

}  // namespace weft
