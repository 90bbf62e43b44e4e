#include "models/transformer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "models/family.h"
#include "ops/ops.h"

namespace weft {
namespace {

TransformerConfig checked(TransformerConfig config) {
  config.check();
  return config;
}

LinearOptions linear_options(const TransformerConfig& c, bool bias) {
  return {.bias = bias, .weight_init = init::normal(c.deviation), .bias_init = init::constant(0), .dtype = c.dtype};
}

NormOptions norm_options(const TransformerConfig& c) { return {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}; }

}  // namespace

// ---- block ------------------------------------------------------------------------------------------------------------------

GatedMlp::GatedMlp(std::int64_t width, std::int64_t hidden, LinearOptions options, double gate_scale)
    : gate_scale_(gate_scale),
      gate_proj_(width, hidden, options),
      up_proj_(width, hidden, options),
      down_proj_(hidden, width, options) {
  add("gate_proj", gate_proj_);
  add("up_proj", up_proj_);
  add("down_proj", down_proj_);
}

Tensor GatedMlp::forward(const Tensor& x) {
  const Tensor gate = gate_proj_(x);
  return down_proj_(silu(gate_scale_ == 1 ? gate : gate * gate_scale_) * up_proj_(x));
}

TransformerCache::TransformerCache(const TransformerConfig& c, std::int64_t b) : ModelCache(b) {
  for (std::int64_t l = 0; l < c.layers; ++l)
    layers.emplace_back(c.sizes(l), b, c.compute(), fmt::format("model.layers.{}.self_attn", l));
}

TransformerBlock::TransformerBlock(const TransformerConfig& c, std::int64_t layer)
    : input_layernorm_(c.width, norm_options(c)),
      self_attn_({.width = c.width,
                  .sizes = c.sizes(layer),
                  .bias = c.qkv_bias,
                  .out_bias = c.out_bias,
                  .norms = c.qk_norm,
                  .eps = c.eps,
                  .weight_init = init::normal(c.deviation),
                  .dtype = c.dtype}),
      post_attention_layernorm_(c.width, norm_options(c)),
      mlp_(c.width, c.mlp(), linear_options(c, c.mlp_bias)) {
  add("input_layernorm", input_layernorm_);
  add("self_attn", self_attn_);
  add("post_attention_layernorm", post_attention_layernorm_);
  add("mlp", mlp_);
}

Tensor TransformerBlock::forward(const Tensor& x, const AttentionPass& pass, const KvCache& cache) {
  const Tensor y = x + self_attn_(input_layernorm_(x), pass, cache);
  return y + mlp_(post_attention_layernorm_(y));
}

// ---- model ------------------------------------------------------------------------------------------------------------------

Transformer::Transformer(TransformerConfig config)
    : config_(checked(std::move(config))),
      rope_(config_.rope, config_.head_size(), config_.dtype),
      embed_tokens_(config_.vocab, config_.width, {.deviation = config_.deviation, .dtype = config_.dtype}),
      norm_(config_.width, norm_options(config_)) {
  add("model.embed_tokens", embed_tokens_);
  blocks_.reserve(std::size_t(config_.layers));
  for (std::int64_t l = 0; l < config_.layers; ++l) {
    blocks_.emplace_back(config_, l);
    add(fmt::format("model.layers.{}", l), blocks_.back());
  }
  add("model.norm", norm_);
  if (config_.tie) return;
  lm_head_.emplace(config_.width, config_.vocab, linear_options(config_, false));
  add("lm_head", *lm_head_);
}

Tensor Transformer::head(const Tensor& x) {
  const Tensor h = norm_(x);
  return lm_head_ ? (*lm_head_)(h) : embed_tokens_.logits(h);
}

Tensor Transformer::forward_in(const Tensor& ids, const TextFlow& flow) {
  check_texts(ids, config_.longest());
  AttentionPass pass = attention_pass(rope_, ids.dim(1));
  pass.segments = flow.segments;
  Tensor x = embed_tokens_(ids);
  for (TransformerBlock& block : blocks_) x = config_.recompute ? checkpoint([&] { return block(x, pass); }) : block(x, pass);
  return head(x);
}

std::vector<Tensor> Transformer::attention_maps(const Tensor& ids, const std::vector<std::int64_t>& wanted, Site where) {
  for (const std::int64_t l : wanted)
    if (l < 0 || l >= config_.layers)
      fail_at(where, "attention_maps: there is no such layer", fmt::format("layer {}, {} layers", l, config_.layers),
              "layers count from 0");
  check_texts(ids, config_.longest(), where);
  NoGrad scope;
  std::vector<Tensor> all(blocks_.size()), maps;
  AttentionPass pass = attention_pass(rope_, ids.dim(1));
  Tensor x = embed_tokens_(ids);
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    pass.map = &all[l];
    x = blocks_[l](x, pass);
  }
  for (const std::int64_t l : wanted) maps.push_back(all[std::size_t(l)]);
  return maps;
}

std::unique_ptr<ModelCache> Transformer::make_cache(std::int64_t batch) const {
  return std::make_unique<TransformerCache>(config_, batch);
}

CacheBytes Transformer::cache_bytes(std::int64_t length) const {
  CacheBytes all{.layers = config_.layers, .caches = config_.layers};
  for (std::int64_t l = 0; l < config_.layers; ++l) {
    AttentionSizes sizes = config_.sizes(l);
    all.attention += cached_elements(sizes, length) * double(size_of(config_.compute()));
    sizes.window = 0;
    all.attention_global += cached_elements(sizes, length) * double(size_of(config_.compute()));
  }
  return all;
}

Tensor Transformer::last_logits(const Tensor& ids, const ModelCache& any, CacheUse use, const Tensor& lengths) {
  const auto& cache = cache_of<TransformerCache>(any);
  if (std::int64_t(cache.layers.size()) != config_.layers)
    fail(ErrorKind::usage, "Transformer: the cache belongs to another model",
         fmt::format("{} layers, the model has {}", cache.layers.size(), config_.layers));
  const AttentionPass pass = attention_pass(rope_, ids.dim(1), 0, &cache, use, lengths);
  Tensor x = embed_tokens_(ids);
  for (std::size_t l = 0; l < blocks_.size(); ++l) x = blocks_[l](x, pass, cache.layers[l]);
  return head(last_of(x, lengths));
}

std::string Transformer::description() const {
  const std::int64_t groups = config_.groups();
  std::string heads = fmt::format("{} heads", config_.heads);
  if (groups < config_.heads) heads += groups == 1 ? " in 1 group" : fmt::format(" in {} groups", groups);
  if (config_.window > 0) heads += fmt::format(", window {}", config_.window);
  return fmt::format("Transformer, {} layers, width {}, {}, {} parameters", config_.layers, config_.width, heads,
                     config_.parameter_count());
}

double Transformer::flops_per_token(std::int64_t length) const {
  const double d = double(config_.width), head = double(config_.head_size()), h = double(config_.heads),
               g = double(config_.groups()), f = double(config_.mlp());
  double all = 2 * double(config_.vocab) * d;
  for (std::int64_t l = 0; l < config_.layers; ++l)
    all += 2 * d * (h + 2 * g) * head + 2 * h * head * d + 6 * d * f + 4 * mean_visible(config_.sizes(l), length) * h * head;
  return all;
}

// ---- checkpoints ------------------------------------------------------------------------------------------------------------

namespace {

constexpr std::string_view kLmHead = "lm_head.weight", kTokens = "model.embed_tokens.weight";

void refuse_original(CheckpointNames names) {
  if (names == CheckpointNames::original)
    fail(ErrorKind::usage, "Transformer: there is no original form", {}, "its names are those of Hugging Face");
}

}  // namespace

nlohmann::json Transformer::config_json(CheckpointNames names) const {
  refuse_original(names);
  return transformer_config_to_json(config_);
}

TensorMap Transformer::weights(CheckpointNames names) const {
  refuse_original(names);
  return state_dict();
}

// Old files have the angles of the positions too, which the configuration gives.
void Transformer::load_weights(TensorMap tensors) {
  std::erase_if(tensors, [](const auto& entry) { return entry.first.ends_with(".rotary_emb.inv_freq"); });
  if (config_.tie) drop_tied_head(tensors, kLmHead, kTokens);
  load_state_dict(tensors);
}

Transformer Transformer::load(const std::filesystem::path& folder, DType dtype) {
  return load_as<Transformer>(folder, dtype, "Transformer");
}

// ---- family -----------------------------------------------------------------------------------------------------------------

// bench is the model of the recorded comparisons: 15 layers of 512 with a head of its own.
ModelFamily transformer_family() {
  ModelFamily family{.name = "transformer", .title = "The Transformer", .model_types = {"llama", "mistral", "qwen2", "qwen3"}};
  family.presets = {{"tiny"},
                    {"small",
                     "11 M",
                     {{"width", "384"},
                      {"layers", "6"},
                      {"heads", "6"},
                      {"kv_heads", "2"},
                      {"hidden", "1024"},
                      {"batch", "16"},
                      {"length", "256"},
                      {"lr", "1e-3"},
                      {"warmup", "100"},
                      {"tokenizer", "unigram"}}},
                    {"bench",
                     "61 M",
                     {{"width", "512"},
                      {"layers", "15"},
                      {"heads", "8"},
                      {"kv_heads", "4"},
                      {"hidden", "2048"},
                      {"tie", "false"},
                      {"batch", "16"},
                      {"length", "256"},
                      {"lr", "3e-4"},
                      {"warmup", "200"},
                      {"tokenizer", "unigram"},
                      {"vocab", "4000"}}},
                    {"task",
                     "with --task",
                     {{"width", "64"},
                      {"layers", "2"},
                      {"heads", "4"},
                      {"batch", "64"},
                      {"length", "64"},
                      {"lr", "3e-3"},
                      {"steps", "600"},
                      {"eval_every", "100"}}}};
  return make_family<Transformer>(
      std::move(family),
      {{"width", "Width of the model", &TransformerConfig::width, std::int64_t(128)},
       {"layers", "Layers of the model", &TransformerConfig::layers, std::int64_t(4)},
       {"heads", "Heads of attention", &TransformerConfig::heads, std::int64_t(4)},
       {"kv_heads", "Heads of keys and values, each for several of attention; 0: as many", &TransformerConfig::kv_heads,
        std::int64_t(0)},
       {"head", "Features of a head; 0: width / heads", &TransformerConfig::head, std::int64_t(0)},
       {"hidden", "Hidden width of the MLPs; 0: 4 width", &TransformerConfig::hidden, std::int64_t(0)},
       {"window", "Tokens that attention sees; 0: all before", &TransformerConfig::window, std::int64_t(0)},
       {"context", "Tokens of the longest text", &TransformerConfig::context, std::int64_t(8192)},
       {"qk_norm", "Norms of queries and keys", &TransformerConfig::qk_norm, false},
       {"tie", "The head is the embedding", &TransformerConfig::tie, true}},
      transformer_config_from_json);
}

}  // namespace weft
