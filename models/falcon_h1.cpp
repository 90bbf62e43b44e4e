#include "models/falcon_h1.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>

#include "models/family.h"
#include "ops/ops.h"

namespace weft {
namespace {

FalconH1Config checked(FalconH1Config config) {
  config.check();
  return config;
}

Tensor times(double scale, const Tensor& x) { return scale == 1 ? x : x * scale; }

// What the mixer's input is multiplied with multiplies all that its projection gives.
std::array<double, 5> projected_scales(const FalconH1Config& c) {
  std::array<double, 5> scales = c.mamba_scales;
  for (double& s : scales) s *= c.mamba_in;
  return scales;
}

}  // namespace

HybridSizes hybrid_sizes(const FalconH1Config& c) {
  std::vector<std::int64_t> own(std::size_t(c.layers), 0);
  std::iota(own.begin(), own.end(), std::int64_t(0));
  return {.vocab = c.vocab,
          .width = c.width,
          .kinds = LayerKinds(std::size_t(c.layers), 'G'),
          .producers = own,
          .attention = c.transformer().sizes(0),
          .rope = c.rope,
          .mamba2 = c.mamba(),
          .mamba_beside = true,
          .tie = c.tie,
          .embedding_scale = c.embedding_scale,
          .logit_scale = c.logit_scale,
          .pad = c.pad,
          .eps = c.eps,
          .deviation = c.deviation,
          .dtype = c.dtype,
          .compute = c.compute(),
          .recompute = c.recompute};
}

// ---- block ------------------------------------------------------------------------------------------------------------------

FalconH1Block::FalconH1Block(const FalconH1Config& c, const AttentionSizes& sizes)
    : attention_in_(c.attention_in),
      attention_out_(c.attention_out),
      mamba_out_(c.mamba_out),
      down_(c.down_scale),
      input_layernorm_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}),
      mamba_(c.mamba(), {.norm = c.gated_norm, .scales = projected_scales(c), .deviation = c.deviation}),
      self_attn_({.width = c.width,
                  .sizes = sizes,
                  .key_scale = c.key_scale,
                  .weight_init = init::normal(c.deviation),
                  .dtype = c.dtype}),
      pre_ff_layernorm_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}),
      feed_forward_(c.width, c.transformer().mlp(), {.bias = false, .weight_init = init::normal(c.deviation), .dtype = c.dtype},
                    c.gate_scale) {
  add("input_layernorm", input_layernorm_);
  add("mamba", mamba_);
  add("self_attn", self_attn_);
  add("pre_ff_layernorm", pre_ff_layernorm_);
  add("feed_forward", feed_forward_);
}

Tensor FalconH1Block::forward(const Tensor& x, const HybridPass& pass) {
  const AttentionPass& of = pass.attention;
  const Tensor n = input_layernorm_(x);
  const Tensor scanned = times(mamba_out_, mamba_(n, pass.mamba2(), pass.sequence()));
  const Tensor seen = times(attention_out_, self_attn_(times(attention_in_, n), of, pass.kv()));
  const Tensor y = x + (scanned + seen);
  return y + times(down_, feed_forward_(pre_ff_layernorm_(y)));
}

// ---- model ------------------------------------------------------------------------------------------------------------------

FalconH1::FalconH1(FalconH1Config config) : HybridModel(hybrid_sizes(checked(config))), config_(std::move(config)) {
  blocks_.reserve(std::size_t(config_.layers));
  for (std::int64_t l = 0; l < config_.layers; ++l) {
    blocks_.emplace_back(config_, sizes().attention_of(l));
    add(fmt::format("model.layers.{}", l), blocks_.back());
  }
}

// As a Transformer's.
std::optional<std::int64_t> FalconH1::context() const {
  return config_.rope.scaling == RopeScaling::dynamic ? config_.context : config_.transformer().longest();
}

Tensor FalconH1::layer(std::int64_t l, const Tensor& x, const HybridPass& pass) { return blocks_[std::size_t(l)](x, pass); }

double FalconH1::layer_weights(std::int64_t l) const { return multiplied_weights(blocks_[std::size_t(l)]); }

std::string FalconH1::description() const {
  return fmt::format("Falcon-H1, {} layers, width {}, {} heads, {} Mamba heads, state {}, {} parameters", config_.layers,
                     config_.width, config_.heads, config_.mamba().heads(), config_.state, config_.parameter_count());
}

nlohmann::json FalconH1::config_json(CheckpointNames names) const {
  if (names == CheckpointNames::original)
    fail(ErrorKind::usage, "Falcon-H1: its config.json has one form, that of Hugging Face");
  return falcon_h1_config_to_json(config_);
}

// ---- family -----------------------------------------------------------------------------------------------------------------

ModelFamily falcon_h1_family() {
  using Config = FalconH1Config;
  ModelFamily family{.name = "falcon-h1", .title = "Falcon-H1", .model_types = {"falcon_h1"}};
  family.presets = {{"tiny"}};
  return make_family<FalconH1>(
      std::move(family),
      {{"width", "Width of the model", &Config::width, std::int64_t(96)},
       {"layers", "Layers of the model", &Config::layers, std::int64_t(4)},
       {"heads", "Heads of attention", &Config::heads, std::int64_t(4)},
       {"kv_heads", "Heads of keys and values, each for several of attention; 0: as many", &Config::kv_heads, std::int64_t(2)},
       {"head", "Features of a head; 0: width / heads", &Config::head, std::int64_t(0)},
       {"hidden", "Hidden width of the MLPs; 0: 4 width", &Config::hidden, std::int64_t(0)},
       {"state", "State size of a feature of the Mamba heads", &Config::state, std::int64_t(32)},
       {"head_size", "Features of a Mamba head", &Config::head_size, std::int64_t(32)},
       {"groups", "Groups of Mamba heads that share B and C", &Config::groups, std::int64_t(1)},
       {"context", "Tokens of the longest text", &Config::context, std::int64_t(8192)},
       {"tie", "The head is the embedding", &Config::tie, true}},
      falcon_h1_config_from_json);
}

}  // namespace weft
