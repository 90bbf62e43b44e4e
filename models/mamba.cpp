#include "models/mamba.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "models/family.h"
#include "ops/ops.h"

namespace weft {
namespace {

Initialiser divided(std::int64_t fan_in, double by) { return init::uniform(1 / (std::sqrt(double(fan_in)) * by)); }

Initialiser normal(const MambaMixerOptions& o) { return o.deviation > 0 ? init::normal(o.deviation) : Initialiser{}; }

Param fixed_decay(Shape shape, DType dtype, bool decay) {
  Param p(shape, dtype);
  p.set_decay(decay);
  return p;
}

}  // namespace

// ---- mixer ------------------------------------------------------------------------------------------------------------------

MambaLayerCache::MambaLayerCache(const MambaConfig& c, std::int64_t b, const std::string& name)
    : ssm({b, c.inner_width(), c.state}, c.dtype, name + ".ssm_state") {
  if (c.conv > 1) conv = State({b, c.conv - 1, c.inner_width()}, c.compute(), name + ".conv_state");
}

MambaMixer::MambaMixer(const MambaConfig& c, const MambaMixerOptions& o)
    : inner_(c.inner_width()),
      rank_(c.dt_rank()),
      state_(c.state),
      in_proj_(c.width, o.before + 2 * inner_,
               {.bias = c.bias, .weight_init = normal(o), .bias_init = init::constant(0), .dtype = c.dtype}),
      conv1d_(inner_, c.conv, {.bias = c.conv_bias, .dtype = c.dtype}),
      x_proj_(inner_, rank_ + 2 * state_, {.bias = false, .weight_init = normal(o), .dtype = c.dtype}),
      dt_proj_(rank_, inner_,
               {.weight_init = c.dt_constant ? init::constant(c.dt_scale / std::sqrt(double(rank_)))
                                             : init::uniform(c.dt_scale / std::sqrt(double(rank_))),
                .bias_init = init::dt_bias(c.dt_min, c.dt_max, c.dt_floor),
                .dtype = c.dtype}),
      out_proj_(
          inner_, c.width,
          {.bias = c.bias,
           .weight_init = o.deviation > 0 ? normal(o) : divided(inner_, c.rescale_residual ? std::sqrt(double(c.layers)) : 1),
           .bias_init = init::constant(0),
           .dtype = c.dtype}),
      A_log_(fixed_decay({inner_, state_}, c.dtype, false)),
      D_(fixed_decay({inner_}, c.dtype, false)) {
  add("A_log" + o.suffix, A_log_, init::s4d_real(state_));
  add("D" + o.suffix, D_, init::constant(1));
  add("in_proj", in_proj_);
  add("conv1d", conv1d_);
  add("x_proj" + o.suffix, x_proj_);
  add("dt_proj" + o.suffix, dt_proj_);
  add("out_proj", out_proj_);
  if (!o.norms) return;
  const NormOptions norm{.eps = c.eps, .dtype = c.dtype};
  norms_.emplace(Norms{RMSNorm(rank_, norm), RMSNorm(state_, norm), RMSNorm(state_, norm)});
  add("dt_layernorm", norms_->dt);
  add("B_layernorm", norms_->B);
  add("C_layernorm", norms_->C);
}

Tensor MambaMixer::forward(const Tensor& x, const MambaLayerCache* cache, const SequencePass& pass) {
  return out_proj_(heads(in_proj_(x), cache, pass));
}

Tensor MambaMixer::heads(const Tensor& projected, const MambaLayerCache* cache, const SequencePass& pass) {
  const Tensor& ends = pass.ends;
  const std::int64_t end = projected.dim(-1);
  const Tensor z = slice(projected, -1, end - inner_, end), v = slice(projected, -1, end - 2 * inner_, end - inner_);

  Tensor conv_state, ssm_state;
  Conv1dOptions conv{.silu = true, .segments = pass.segments};
  if (cache && cache->conv) conv.initial = begin_with(cache->conv, pass), conv.last = &conv_state;
  const Tensor u = conv1d_(v, conv);  // (b, t, i)
  if (conv_state && ends) conv_state = last_inputs(v, cache->conv.shape()[1], ends);

  const Tensor q = x_proj_(u);  // (b, t, rank + 2n)
  Tensor r = slice(q, -1, 0, rank_), B = slice(q, -1, rank_, rank_ + state_),
         C = slice(q, -1, rank_ + state_, rank_ + 2 * state_);
  if (norms_) r = norms_->dt(r), B = norms_->B(B), C = norms_->C(C);
  const Tensor delta = dt_proj_.product(r);
  const Tensor D = D_.read(), bias = dt_proj_.shift();
  ScanOptions options{.D = D, .delta = softplus_bias(bias), .out = gate(z), .segments = pass.segments};
  if (ends) options.delta = until(ends, bias);
  if (cache) options.initial = begin_with(cache->ssm, pass), options.last = &ssm_state;
  const Tensor o = scan(u, delta, -exp(A_log_), B, C, options);

  if (conv_state) assign(cache->conv, conv_state);
  if (ssm_state) assign(cache->ssm, ssm_state);
  return o;
}

// ---- model ------------------------------------------------------------------------------------------------------------------

Mamba::Mamba(MambaConfig config) : Backbone("Mamba", std::move(config)) {}

// The same whatever the length.
CacheBytes Mamba::cache_bytes(std::int64_t) const {
  const double conv = double(config_.conv - 1) * double(size_of(config_.compute())),
               ssm = double(config_.state) * double(size_of(config_.dtype));
  return {.states = double(config_.layers) * double(config_.inner_width()) * (conv + ssm)};
}

std::string Mamba::description() const {
  return fmt::format("Mamba, {} layers, width {}, state {}, {} parameters", config_.layers, config_.width, config_.state,
                     config_.parameter_count());
}

// Of a state element: exp(Delta A) and its product, the product with h, that of Delta u with B and its sum, and that with C.
double Mamba::flops_per_token(std::int64_t) const {
  const double d = double(config_.width), i = double(config_.inner_width()), n = double(config_.state),
               r = double(config_.dt_rank());
  const double weights = 2 * i * d + i * double(config_.conv) + i * (r + 2 * n) + r * i + i * d;
  return double(config_.layers) * (2 * weights + 7 * i * n) + 2 * double(config_.rows()) * d;
}

nlohmann::json Mamba::config_json(CheckpointNames names) const {
  return names == CheckpointNames::original ? to_original(config_) : to_hugging_face(config_);
}

Mamba Mamba::load(const std::filesystem::path& folder, DType dtype) { return load_as<Mamba>(folder, dtype, "Mamba"); }

// ---- family -----------------------------------------------------------------------------------------------------------------

// 130m is the smallest model of the Mamba paper, with its learning rate and length.
ModelFamily mamba_family() {
  ModelFamily family{.name = "mamba", .title = "Mamba", .model_types = {"mamba"}};
  family.presets = {{"tiny"},
                    {"small",
                     "10 M",
                     {{"width", "384"},
                      {"layers", "10"},
                      {"batch", "16"},
                      {"length", "256"},
                      {"lr", "2e-3"},
                      {"warmup", "100"},
                      {"tokenizer", "unigram"}}},
                    {"130m",
                     "",
                     {{"width", "768"},
                      {"layers", "24"},
                      {"batch", "8"},
                      {"length", "2048"},
                      {"accumulate", "8"},
                      {"lr", "3e-3"},
                      {"warmup", "500"},
                      {"steps", "20000"},
                      {"tokenizer", "unigram"},
                      {"vocab", "32000"},
                      {"recompute", "true"}}},
                    {"task",
                     "with --task",
                     {{"width", "64"},
                      {"layers", "2"},
                      {"batch", "64"},
                      {"length", "64"},
                      {"lr", "1e-2"},
                      {"steps", "600"},
                      {"eval_every", "100"}}}};
  return make_family<Mamba>(std::move(family),
                            {{"width", "Width of the model", &MambaConfig::width, std::int64_t(128)},
                             {"layers", "Layers of the model", &MambaConfig::layers, std::int64_t(4)},
                             {"state", "State size of a channel", &MambaConfig::state, std::int64_t(16)}},
                            mamba_config_from_json);
}

}  // namespace weft
