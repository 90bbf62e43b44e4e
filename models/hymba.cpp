#include "models/hymba.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "models/family.h"
#include "ops/ops.h"

namespace weft {
namespace {

HymbaConfig checked(HymbaConfig config) {
  config.check();
  return config;
}

}  // namespace

HybridSizes hybrid_sizes(const HymbaConfig& c) {
  return {.vocab = c.vocab,
          .width = c.width,
          .meta_tokens = c.meta_tokens,
          .kinds = c.kinds(),
          .producers = c.producers(),
          .attention = {.heads = c.heads,
                        .groups = c.kv_heads,
                        .key = c.key_width(),
                        .value = c.value_width(),
                        .window = c.window + (c.window_inclusive ? 1 : 0),
                        .meta = c.meta_tokens},
          .rope = {.base = c.rotary_base()},
          .mamba = c.mamba(),
          .mamba_beside = true,
          .tie = c.tie,
          .eps = c.eps,
          .deviation = c.deviation,
          .dtype = c.dtype,
          .compute = c.compute(),
          .recompute = c.recompute};
}

namespace {

// Features of in_proj before those of the Mamba heads.
std::int64_t attention_features(const AttentionSizes& s, bool makes_keys) {
  return s.heads * s.key + (makes_keys ? s.groups * (s.key + s.value) : 0);
}

// Part of the last axis, by heads: (b, t, n features) -> (b, t, n, features).
Tensor split_heads(const Tensor& x, std::int64_t begin, std::int64_t n, std::int64_t features) {
  return reshape(slice(x, -1, begin, begin + n * features), {x.dim(0), x.dim(1), n, features});
}

}  // namespace

// ---- block ------------------------------------------------------------------------------------------------------------------

HymbaBlock::HymbaBlock(const HymbaConfig& c, const AttentionSizes& sizes, bool makes_keys)
    : sizes_(sizes),
      makes_keys_(makes_keys),
      input_layernorm_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}),
      mamba_(c.mamba(),
             {.before = attention_features(sizes, makes_keys), .norms = true, .suffix = ".0", .deviation = c.deviation}),
      pre_avg_layernorm1_(c.inner_width(), {.eps = c.eps, .dtype = c.dtype}),
      pre_avg_layernorm2_(c.inner_width(), {.eps = c.eps, .dtype = c.dtype}),
      pre_moe_layernorm_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}),
      mlp_(c.width, c.mlp_width(), {.bias = false, .weight_init = init::normal(c.deviation), .dtype = c.dtype}) {
  add("input_layernorm", input_layernorm_);
  add("mamba", mamba_);
  add("mamba.pre_avg_layernorm1", pre_avg_layernorm1_);
  add("mamba.pre_avg_layernorm2", pre_avg_layernorm2_);
  add("pre_moe_layernorm", pre_moe_layernorm_);
  add("moe.experts.0", mlp_);
}

Tensor HymbaBlock::forward(const Tensor& x, const HybridPass& pass) {
  const Tensor y = x + heads(input_layernorm_(x), pass);
  return y + mlp_(pre_moe_layernorm_(y));
}

Tensor HymbaBlock::heads(const Tensor& x, const HybridPass& pass) {
  const std::int64_t b = x.dim(0), t = x.dim(1), queries = sizes_.heads * sizes_.key, keys = sizes_.groups * sizes_.key;
  const Tensor projected = mamba_.in_proj()(x);
  if (makes_keys_)
    pass.keys =
        keys_values(split_heads(projected, queries, sizes_.groups, sizes_.key),
                    split_heads(projected, queries + keys, sizes_.groups, sizes_.value), sizes_, pass.attention, pass.kv());
  const Tensor seen = attend(split_heads(projected, 0, sizes_.heads, sizes_.key), pass.keys, pass.attention);
  const Tensor scanned = mamba_.heads(projected, pass.mamba(), pass.sequence());  // (b, t, i)
  return mamba_.out_proj()(
      0.5 * (pre_avg_layernorm1_(reshape(seen, {b, t, sizes_.heads * sizes_.value})) + pre_avg_layernorm2_(scanned)));
}

// ---- model ------------------------------------------------------------------------------------------------------------------

Hymba::Hymba(HymbaConfig config) : HybridModel(hybrid_sizes(checked(config))), config_(std::move(config)) {
  blocks_.reserve(std::size_t(config_.layers));
  for (std::int64_t l = 0; l < config_.layers; ++l) {
    blocks_.emplace_back(config_, sizes().attention_of(l), sizes().makes_keys(l));
    add(fmt::format("model.layers.{}", l), blocks_.back());
  }
}

Tensor Hymba::layer(std::int64_t l, const Tensor& x, const HybridPass& pass) { return blocks_[std::size_t(l)](x, pass); }

double Hymba::layer_weights(std::int64_t l) const { return multiplied_weights(blocks_[std::size_t(l)]); }

std::string Hymba::description() const {
  const LayerKinds& kinds = sizes().kinds;
  return fmt::format("Hymba, {} layers, {} of them global, width {}, {} heads, KV reduction {:.2f}, {} parameters",
                     config_.layers, std::count(kinds.begin(), kinds.end(), 'G'), config_.width, config_.heads, kv_reduction(),
                     config_.parameter_count());
}

nlohmann::json Hymba::config_json(CheckpointNames names) const {
  if (names == CheckpointNames::original) fail(ErrorKind::usage, "Hymba: its config.json has one form, that of Hugging Face");
  return hymba_config_to_json(config_);
}

// ---- family -----------------------------------------------------------------------------------------------------------------

ModelFamily hymba_family() {
  ModelFamily family{.name = "hymba", .title = "Hymba", .model_types = {"hymba"}};
  const auto published = [](const char* name, const char* width, const char* layers, const char* hidden, const char* heads,
                            const char* kv_heads) {
    return Preset{name,
                  "",
                  {{"width", width},
                   {"layers", layers},
                   {"hidden", hidden},
                   {"heads", heads},
                   {"kv_heads", kv_heads},
                   {"meta_tokens", "128"},
                   {"window", "1024"},
                   {"tokenizer", "unigram"},
                   {"vocab", "32001"},
                   {"batch", "8"},
                   {"length", "2048"},
                   {"accumulate", "8"},
                   {"lr", "3e-3"},
                   {"warmup", "200"},
                   {"steps", "20000"},
                   {"recompute", "true"}}};
  };
  family.presets = {{"tiny"},
                    published("125m", "512", "24", "1664", "8", "4"),
                    published("350m", "768", "32", "2432", "12", "4"),
                    published("1.5b", "1600", "32", "5504", "25", "5")};
  return make_family<Hymba>(
      std::move(family),
      {{"width", "Width of the model", &HymbaConfig::width, std::int64_t(96)},
       {"layers", "Layers of the model", &HymbaConfig::layers, std::int64_t(5)},
       {"state", "State size of a channel", &HymbaConfig::state, std::int64_t(16)},
       {"hidden", "Hidden width of the MLP; 0: four times the width", &HymbaConfig::hidden, std::int64_t(0)},
       {"heads", "Attention heads", &HymbaConfig::heads, std::int64_t(4)},
       {"kv_heads", "Heads of keys and values", &HymbaConfig::kv_heads, std::int64_t(2)},
       {"meta_tokens", "Learned tokens before every text", &HymbaConfig::meta_tokens, std::int64_t(16)},
       {"window", "Tokens that a local layer sees", &HymbaConfig::window, std::int64_t(32)},
       {"context", "Tokens of the longest text", &HymbaConfig::positions, std::int64_t(8192)}},
      hymba_config_from_json);
}

}  // namespace weft
