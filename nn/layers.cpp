#include "nn/layers.h"

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"

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

Tensor WeightedModule::sampled_mask() const { return mask() ? mask()->sample() : Tensor(); }

void WeightedModule::mask(MaskOptions options, Site where) {
  if (*mask_)
    fail_at(where, "mask: the layer has a mask already", fmt::format("'{}', weight {}", path(), to_string(weight_.shape())),
            "copies of a layer share its mask: mask it once; mask() is the one that it has");
  GumbelMask fresh(weight_.shape(), weight_.dtype(), std::move(options), where);
  add("mask", fresh);
  mask_->emplace(fresh);
}

std::int64_t WeightedModule::inputs() const { return weight_.shape()[use_ == WeightUse::product ? 1 : 0]; }
std::int64_t WeightedModule::outputs() const { return weight_.shape()[use_ == WeightUse::table ? 1 : 0]; }

Adapter WeightedModule::adapt(const std::string& name, const AdapterOptions& options, Site where) {
  if (merged())
    fail_at(where, "adapter: the layer's adapters are merged into its weight", fmt::format("'{}'", path()),
            "unmerge them first");
  Adapter fresh(use_, inputs(), outputs(), weight_.dtype(), options, where);
  if (!training()) fresh.train(false);
  add_apart("adapter." + name, fresh, where);
  return adapted_->adapters.emplace_back(fresh);
}

bool WeightedModule::acts(AdapterKind kind) const {
  bool some = false;
  each_acting(kind, [&](const Adapter&) { some = true; });
  return some;
}

Tensor WeightedModule::scaled(Tensor x, bool on_input) const {
  each_acting(AdapterKind::ia3, [&](const Adapter& a) {
    if (a.options().on_input == on_input) x = a.scaled(x);
  });
  return x;
}

Tensor WeightedModule::scaled_rows(const Tensor& matrix, bool on_input) const {
  return acts(AdapterKind::ia3) ? transpose(scaled(transpose(matrix), on_input)) : matrix;
}

void WeightedModule::merge(Site where) {
  if (merged()) fail_at(where, "adapter: the layer's adapters are merged already", fmt::format("'{}'", path()));
  initialise();
  if (!acts(AdapterKind::lora) && !acts(AdapterKind::ia3)) return;
  Adapted& before = *adapted_;
  before.weight = weight_.bytes();
  if (bias_) before.bias = bias_.bytes();
  const NoGrad off;
  run([&] {
    Tensor w = weight_.read();
    each_acting(AdapterKind::lora, [&](const Adapter& a) { w = w + a.dense(); });
    if (use_ == WeightUse::table)
      w = scaled(w, false);
    else if (use_ == WeightUse::filter)
      w = scaled_rows(scaled_rows(w, false), true);
    else
      w = scaled(scaled_rows(w, false), true);
    assign(weight_, w);
    if (bias_) assign(bias_, scaled(bias_.read(), false));
  });
  before.merged = true;
}

void WeightedModule::unmerge(Site where) {
  if (!merged()) fail_at(where, "adapter: the layer's adapters are not merged", fmt::format("'{}'", path()));
  weight_.set_bytes(adapted_->weight.data());
  if (bias_) bias_.set_bytes(adapted_->bias.data());
  adapted_->weight.clear(), adapted_->bias.clear();
  adapted_->merged = false;
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
Tensor Linear::computed(const Arg& x, bool with_bias) const {
  const Tensor w = weight_.read(), kept = sampled_mask(), weight = masked(w, kept);
  const Tensor bias = with_bias && bias_ ? bias_.read() : Tensor();
  const Arg in(scaled(x.tensor(), true), x.where());
  Tensor y = linear(in, weight, bias);
  each_acting(AdapterKind::lora, [&](const Adapter& a) { y = y + a.low_rank(in.tensor(), kept); });
  return scaled(y, false);
}
Tensor Linear::forward(const Tensor& x) { return computed(x, true); }
Tensor Linear::product(Arg x) const { return initialise(), computed(x, false); }
Tensor Linear::shift() const { return bias_ ? scaled(bias().read(), false) : Tensor{}; }

Conv1d::Conv1d(std::int64_t channels, std::int64_t width, Conv1dLayerOptions options, Site where) {
  check_sizes("Conv1d", {channels, width}, where);
  use_ = WeightUse::filter;
  weight_ = parameter({channels, width}, options.dtype, true, where);
  add("weight", weight_, init::kaiming_uniform(width), Shape{channels, 1, width});
  if (!options.bias) return;
  bias_ = parameter({channels}, options.dtype, false, where);
  add("bias", bias_, init::kaiming_uniform(width));
}

Tensor Conv1d::forward(const Tensor& x, Conv1dOptions options) {
  const Tensor w = weight_.read(), kept = sampled_mask(), weight = scaled_rows(scaled_rows(masked(w, kept), false), true);
  return conv1d(x, weight, bias_ ? scaled(bias_.read(), false) : Tensor{}, std::move(options));
}

Embedding::Embedding(std::int64_t vocab, std::int64_t width, EmbeddingOptions options, Site where) {
  check_sizes("Embedding", {vocab, width}, where);
  use_ = WeightUse::table;
  weight_ = parameter({vocab, width}, options.dtype, true, where);
  add("weight", weight_, init::normal(options.deviation));
}

Tensor Embedding::forward(const Tensor& ids) {
  const Tensor w = weight_.read(), kept = sampled_mask();
  Tensor rows = embedding(masked(w, kept), ids);
  each_acting(AdapterKind::lora, [&](const Adapter& a) { rows = rows + a.rows(ids, kept); });
  return scaled(rows, false);
}

Tensor Embedding::logits(Arg x) const {
  initialise();
  const Tensor w = weight_.read(), kept = sampled_mask();
  const Arg in(scaled(x.tensor(), false), x.where());
  Tensor y = linear(in, masked(w, kept));
  each_acting(AdapterKind::lora, [&](const Adapter& a) { y = y + a.logits(in.tensor(), kept); });
  return y;
}

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
