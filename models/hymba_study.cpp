#include "models/hymba_study.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "models/family.h"
#include "ops/ops.h"

namespace weft {
namespace {

HymbaStudyConfig checked(HymbaStudyConfig config) {
  config.check();
  return config;
}

LinearOptions study_linear(const HymbaStudyConfig& c) {
  return {.bias = false, .weight_init = init::normal(c.deviation), .dtype = c.dtype};
}

}  // namespace

HybridSizes hybrid_sizes(const HymbaStudyConfig& c) {
  const std::int64_t head = c.mixer_width() / c.heads;
  return {.vocab = c.vocab,
          .width = c.width,
          .meta_tokens = c.meta_tokens,
          .kinds = c.layer_kinds,
          .producers = c.producers(),
          .attention = {.heads = c.heads,
                        .groups = c.kv_heads,
                        .key = head,
                        .value = head,
                        .window = c.window + (c.window_inclusive ? 1 : 0),
                        .meta = c.meta_tokens},
          .rope = {.base = c.rope_base, .pairing = Pairing::neighbours},
          .mamba = c.mamba(),
          .mamba_beside = c.style() != BlockStyle::either_or,
          .tie = c.tie,
          .eps = c.eps,
          .deviation = c.deviation,
          .dtype = c.dtype,
          .compute = c.compute(),
          .recompute = c.recompute};
}

// ---- block ------------------------------------------------------------------------------------------------------------------

StudyBlock::StudyBlock(const HymbaStudyConfig& c, const HybridSizes& sizes, std::int64_t l)
    : style_(c.style()),
      norm1_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}),
      norm2_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}),
      mlp_(c.width, c.mlp_width(), study_linear(c)) {
  const bool split = style_ == BlockStyle::parallel_split, wrap = style_ == BlockStyle::either_or && c.wrap_projections;
  const std::int64_t d = c.width, m = c.mixer_width();
  const auto projection = [&](const char* name, std::optional<Linear>& linear, std::int64_t in, std::int64_t out) {
    add(name, linear.emplace(in, out, study_linear(c)));
  };
  add("norm1", norm1_);
  if (wrap) projection("to_x", to_x_, d, d);
  if (split) projection("to_attn", to_attn_, d, m), projection("to_mamba", to_mamba_, d, m);
  if (sizes.has_attention(l)) add_attention(c, sizes, l);
  if (sizes.has_mamba(l)) add("mamba", mamba_.emplace(c.mamba(), MambaMixerOptions{.deviation = c.deviation}));
  if (wrap) projection("proj_x", proj_x_, d, d);
  if (split) {
    projection("proj_attn", proj_attn_, m, d), projection("proj_mamba", proj_mamba_, m, d);
    gate_ = Param({1}, c.dtype);
    gate_.set_decay(false);
    add("gate", gate_, init::constant(0.5));
  }
  add("norm2", norm2_);
  add("mlp", mlp_);
}

void StudyBlock::add_attention(const HymbaStudyConfig& c, const HybridSizes& sizes, std::int64_t l) {
  const AttentionSizes of = sizes.attention_of(l);
  const std::int64_t m = c.mixer_width();
  const bool own = sizes.makes_keys(l);
  add("attn", attn_.emplace(SelfAttentionOptions{
                  .width = m, .sizes = of, .keys = own, .weight_init = init::normal(c.deviation), .dtype = c.dtype}));
  if (own || !c.keep_consumer_kv) return;
  add("attn.k_proj", kept_k_proj_.emplace(m, of.groups * of.key, study_linear(c)));
  add("attn.v_proj", kept_v_proj_.emplace(m, of.groups * of.value, study_linear(c)));
}

double StudyBlock::multiplied() const {
  return multiplied_weights(*this) - (kept_k_proj_ ? 2 * double(kept_k_proj_->weight().shape().numel()) : 0);
}

Tensor StudyBlock::forward(const Tensor& x, const HybridPass& pass) {
  const Tensor y = x + mixed(norm1_(x), pass);
  return y + mlp_(norm2_(y));
}

Tensor StudyBlock::mixed(const Tensor& n, const HybridPass& pass) {
  switch (style_) {
    case BlockStyle::either_or: {
      const Tensor in = to_x_ ? (*to_x_)(n) : n;
      const Tensor out = attn_ ? attended(in, pass) : scanned(in, pass);
      return proj_x_ ? (*proj_x_)(out) : out;
    }
    case BlockStyle::parallel_split: {
      const Tensor a = (*proj_attn_)(attended((*to_attn_)(n), pass)), m = (*proj_mamba_)(scanned((*to_mamba_)(n), pass));
      const Tensor share = sigmoid(gate_);
      return share * a + (1 - share) * m;
    }
    case BlockStyle::parallel_average: {
      const Tensor a = attended(n, pass);
      return 0.5 * (a + scanned(n, pass));
    }
  }
  return n;
}

Tensor StudyBlock::attended(const Tensor& x, const HybridPass& pass) {
  return (*attn_)(x, pass.attention, pass.kv(), &pass.keys);
}

Tensor StudyBlock::scanned(const Tensor& x, const HybridPass& pass) { return (*mamba_)(x, pass.mamba(), pass.sequence()); }

// ---- model ------------------------------------------------------------------------------------------------------------------

HymbaStudy::HymbaStudy(HymbaStudyConfig config) : HybridModel(hybrid_sizes(checked(config))), config_(std::move(config)) {
  blocks_.reserve(std::size_t(config_.layers()));
  for (std::int64_t l = 0; l < config_.layers(); ++l) {
    blocks_.emplace_back(config_, sizes(), l);
    add(fmt::format("model.layers.{}", l), blocks_.back());
  }
}

Tensor HymbaStudy::layer(std::int64_t l, const Tensor& x, const HybridPass& pass) { return blocks_[std::size_t(l)](x, pass); }

double HymbaStudy::layer_weights(std::int64_t l) const { return blocks_[std::size_t(l)].multiplied(); }

std::string HymbaStudy::description() const {
  return fmt::format("Hymba study, {}, layers {}, width {}, KV reduction {:.2f}, {} parameters", config_.block_style,
                     config_.layer_kinds, config_.width, kv_reduction(), config_.parameter_count());
}

nlohmann::json HymbaStudy::config_json(CheckpointNames names) const {
  if (names == CheckpointNames::original) fail(ErrorKind::usage, "Hymba study: its config.json has one form");
  return hymba_study_config_to_json(config_);
}

// ---- family -----------------------------------------------------------------------------------------------------------------

namespace {

// A model of the study with its first stage of training, on a text of about a million characters.
Preset study_preset(const std::string& name) {
  const HymbaStudyConfig c = study_model(name);
  const auto word = [](bool on) { return std::string(on ? "true" : "false"); };
  return {name,
          "",
          {{"width", std::to_string(c.width)},
           {"layer_kinds", c.layer_kinds},
           {"block_style", c.block_style},
           {"wrap_projections", word(c.wrap_projections)},
           {"heads", std::to_string(c.heads)},
           {"kv_heads", std::to_string(c.kv_heads)},
           {"meta_tokens", std::to_string(c.meta_tokens)},
           {"window", std::to_string(c.window)},
           {"epochs", "30"},
           {"batch", "16"},
           {"length", "256"},
           {"tokenizer", "unigram"},
           {"vocab", "4000"},
           {"lr", "3e-4"},
           {"min_lr", "0"},
           {"warmup", "200"}}};
}

Preset bench_preset() {
  Preset preset = study_preset("hybrid_paper");
  preset.name = "bench", preset.note = "the benchmarked one";
  preset.settings.insert(preset.settings.end(), {{"block_style", "parallel_average"}, {"share_kv", "false"}, {"tie", "false"}});
  return preset;
}

}  // namespace

ModelFamily hymba_study_family() {
  using Config = HymbaStudyConfig;
  ModelFamily family{.name = "hymba-study", .title = "The Hymba study", .model_types = {"hymba_study"}};
  family.presets = {{"tiny"}};
  for (const char* name : {"hybrid_paper", "hybrid_50_50", "transformer_local", "transformer_global", "mamba_only"})
    family.presets.push_back(study_preset(name));
  family.presets.push_back(bench_preset());
  return make_family<HymbaStudy>(
      std::move(family),
      {{"width", "Width of the model", &Config::width, std::int64_t(96)},
       {"layer_kinds", "A letter a layer: G global or L local attention, M Mamba alone", &Config::layer_kinds,
        std::string("GLLLG")},
       {"block_style", "either_or, parallel_split or parallel_average", &Config::block_style, std::string("parallel_split")},
       {"wrap_projections", "Two more projections around each mixer of either_or", &Config::wrap_projections, true},
       {"state", "State size of a channel", &Config::state, std::int64_t(16)},
       {"hidden", "Hidden width of the MLP; 0: four times the width", &Config::hidden, std::int64_t(0)},
       {"heads", "Attention heads", &Config::heads, std::int64_t(4)},
       {"kv_heads", "Heads of keys and values", &Config::kv_heads, std::int64_t(2)},
       {"meta_tokens", "Learned tokens before every text", &Config::meta_tokens, std::int64_t(16)},
       {"window", "Tokens that a local layer sees", &Config::window, std::int64_t(32)},
       {"share_kv", "Neighbouring local layers share keys and values", &Config::share_kv, true},
       {"kv_group_max", "At most so many; 0: any number", &Config::kv_group_max, std::int64_t(2)},
       {"keep_consumer_kv", "Layers that use another's keys keep their own, unread", &Config::keep_consumer_kv, false},
       {"tie", "The head is the embedding", &Config::tie, true}},
      hymba_study_config_from_json);
}

}  // namespace weft
