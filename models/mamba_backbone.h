// What Mamba and Mamba-2 have in common: an embedding, blocks x + mixer(norm(x)), a norm and a head, and caches of which each
// layer's has a size that does not grow. A mixer names its Config, which has rows(), compute() and the fields of MambaConfig
// that are used here, and the Cache of one layer. Shapes: b batch, t time, d width, v vocabulary.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "autograd/backward.h"
#include "models/family.h"
#include "nn/layers.h"
#include "ops/ops.h"

namespace weft {

template <class Mixer>
struct BackboneCache : ModelCache {
  BackboneCache(const typename Mixer::Config& c, std::int64_t b) : ModelCache(b) {
    for (std::int64_t l = 0; l < c.layers; ++l) layers.emplace_back(c, b, fmt::format("backbone.layers.{}.mixer", l));
  }
  std::vector<State> carried() const override {
    std::vector<State> states;
    for (const typename Mixer::Cache& layer : layers)
      for (const State& state : {layer.conv, layer.ssm})
        if (state) states.push_back(state);
    return states;
  }
  std::vector<typename Mixer::Cache> layers;
};

// x + mixer(norm(x)); the residual stream keeps its dtype. x (b, t, d) -> (b, t, d)
template <class Mixer>
class BackboneBlock : public Layer<BackboneBlock<Mixer>> {
 public:
  explicit BackboneBlock(const typename Mixer::Config& c)
      : norm_(c.width, {.eps = c.eps, .dtype = c.dtype, .output = c.compute()}), mixer_(c) {
    this->add("norm", norm_);
    this->add("mixer", mixer_);
  }
  Tensor forward(const Tensor& x, const typename Mixer::Cache* cache = nullptr, const SequencePass& pass = {}) {
    if (!pass.order) return x + mixer_(norm_(x), cache, pass);
    return x + rows_of(mixer_(rows_of(norm_(x), pass.order), cache, pass), pass.inverse);
  }
  Mixer& mixer() { return mixer_; }

 private:
  RMSNorm norm_;
  Mixer mixer_;
};

// Both forms of checkpoints; the original calls the embedding otherwise, and repeats a tied one as the head.
TensorMap backbone_weights(TensorMap tensors, CheckpointNames names, bool tied);  // as a file of this form has them
TensorMap own_backbone_weights(TensorMap tensors, bool tied);                     // from a file of either form

StreamLayout backbone_layout(const std::vector<NamedParam>& params, std::int64_t width, std::int64_t layers);

template <class Mixer>
class Backbone : public LanguageModel {
 public:
  using Config = typename Mixer::Config;

  Tensor forward(const Tensor& ids) override { return forward_in(ids, {}); }
  std::string cannot_pack() const override { return {}; }
  std::string cannot_carry() const override { return {}; }
  std::unique_ptr<ModelCache> make_cache(std::int64_t batch) const override {
    return std::make_unique<BackboneCache<Mixer>>(config_, batch);
  }

  const Config& config() const { return config_; }
  BackboneBlock<Mixer>& block(std::int64_t layer, Site where = Site::current()) {
    if (layer < 0 || layer >= config_.layers)
      fail_at(where, fmt::format("{}: there is no such layer", name_),
              fmt::format("layer {}, the model has {}", layer, config_.layers), "layers count from 0");
    return blocks_[std::size_t(layer)];
  }

  std::int64_t vocab() const override { return config_.vocab; }
  SpecialTokens special_tokens() const override { return {config_.bos, config_.eos, config_.pad}; }
  TensorMap weights(CheckpointNames names = CheckpointNames::hugging_face) const override {
    return backbone_weights(state_dict(), names, config_.tie);
  }
  StreamLayout stream_layout() const override { return backbone_layout(named_parameters(), config_.width, config_.layers); }
  void load_weights(TensorMap tensors) override { load_state_dict(own_backbone_weights(std::move(tensors), config_.tie)); }

 protected:
  // `name`, for errors, lives as long as the process.
  Backbone(const char* name, Config config)
      : config_((config.check(), std::move(config))),
        name_(name),
        embeddings_(config_.rows(), config_.width, {.deviation = config_.embedding_deviation, .dtype = config_.dtype}),
        norm_f_(config_.width, {.eps = config_.eps, .dtype = config_.dtype, .output = config_.compute()}) {
    add("backbone.embeddings", embeddings_);
    blocks_.reserve(std::size_t(config_.layers));
    for (std::int64_t l = 0; l < config_.layers; ++l) {
      blocks_.emplace_back(config_);
      add(fmt::format("backbone.layers.{}", l), blocks_.back());
    }
    add("backbone.norm_f", norm_f_);
    if (config_.tie) return;
    lm_head_.emplace(config_.width, config_.rows(), LinearOptions{.bias = false, .dtype = config_.dtype});
    add("lm_head", *lm_head_);
  }

  Tensor last_logits(const Tensor& ids, const ModelCache& any, CacheUse use, const Tensor& lengths) override {
    const BackboneCache<Mixer>& cache = own_cache(any);
    const SequencePass pass = in_scan_order(*this, {.use = use, .ends = lengths}, ids.dim(0), ids.dim(1));
    Tensor x = embed(ids);
    for (std::size_t l = 0; l < blocks_.size(); ++l) x = blocks_[l](x, &cache.layers[l], pass);
    return head(last_of(x, lengths));
  }
  Tensor forward_in(const Tensor& ids, const TextFlow& flow) override {
    check_texts(ids, context());
    const BackboneCache<Mixer>* cache = flow.carried ? &own_cache(*flow.carried) : nullptr;
    const SequencePass pass = in_scan_order(
        *this, {.use = cache ? CacheUse::carry : CacheUse::none, .segments = flow.segments, .continues = flow.continues},
        ids.dim(0), ids.dim(1));
    Tensor x = embed(ids);
    for (std::size_t l = 0; l < blocks_.size(); ++l) {
      const auto block = [&] { return blocks_[l](x, cache ? &cache->layers[l] : nullptr, pass); };
      x = config_.recompute ? checkpoint(block) : block();
    }
    return head(x);
  }

  Config config_;

 private:
  using Block = BackboneBlock<Mixer>;

  const BackboneCache<Mixer>& own_cache(const ModelCache& any) const {
    const auto& cache = cache_of<BackboneCache<Mixer>>(any);
    if (std::int64_t(cache.layers.size()) != config_.layers)
      fail(ErrorKind::usage, fmt::format("{}: the cache belongs to another model", name_),
           fmt::format("{} layers, the model has {}", cache.layers.size(), config_.layers),
           "make one with make_cache of this model");
    return cache;
  }
  Tensor embed(const Tensor& ids) {
    const Tensor x = embeddings_(ids);
    return config_.residual_in_fp32 || x.dtype() == config_.compute() ? x : cast(x, config_.compute());
  }
  Tensor head(const Tensor& x) {  // (..., d) -> (..., v)
    const Tensor h = norm_f_(x);
    return lm_head_ ? (*lm_head_)(h) : embeddings_.logits(h);
  }

  const char* name_;
  Embedding embeddings_;
  std::vector<Block> blocks_;
  RMSNorm norm_f_;
  std::optional<Linear> lm_head_;  // absent if tied
};

}  // namespace weft
