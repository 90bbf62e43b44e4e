// Decoder-only Transformer: RMS norms before attention and the MLP, rotary positions, grouped queries, SwiGLU
// (arXiv:2302.13971, 2305.13245, 2002.05202). Shapes: b batch, t time, d width, f hidden width of the MLP, v vocabulary.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/attention.h"
#include "models/language_model.h"
#include "models/transformer_config.h"
#include "nn/layers.h"

namespace weft {

// down(silu(s gate x) up x), s the scale of the gate; x (b, t, d) -> (b, t, d). Names: gate_proj, up_proj, down_proj.
class GatedMlp : public Layer<GatedMlp> {
 public:
  GatedMlp(std::int64_t width, std::int64_t hidden, LinearOptions options, double gate_scale = 1);
  Tensor forward(const Tensor& x);

 private:
  double gate_scale_;
  Linear gate_proj_, up_proj_;  // d -> f
  Linear down_proj_;            // f -> d
};

struct TransformerCache : ModelCache {
  TransformerCache(const TransformerConfig& config, std::int64_t batch);
  std::vector<KvCache> layers;
};

// x + attention(norm(x)), then x + mlp(norm(x)); the residual stream keeps its dtype.
class TransformerBlock : public Layer<TransformerBlock> {
 public:
  TransformerBlock(const TransformerConfig& config, std::int64_t layer);
  Tensor forward(const Tensor& x, const AttentionPass& pass, const KvCache& cache = {});

 private:
  RMSNorm input_layernorm_;
  SelfAttention self_attn_;
  RMSNorm post_attention_layernorm_;
  GatedMlp mlp_;
};

class Transformer : public LanguageModel {
 public:
  using Config = TransformerConfig;
  explicit Transformer(TransformerConfig config);
  Transformer(const Transformer&) = default;  // a handle, to be moved too: what was moved from keeps its blocks

  Tensor forward(const Tensor& ids) override { return forward_in(ids, {}); }
  std::string cannot_pack() const override {
    return config_.rope.scaling == RopeScaling::dynamic ? "its rotary positions depend on the length of the whole" : "";
  }
  std::unique_ptr<ModelCache> make_cache(std::int64_t batch) const override;
  CacheBytes cache_bytes(std::int64_t length) const override;

  // The attention of these layers to all that they see: (b, h, t, t) for each. Rows sum to 1; what is not seen is 0. Errors
  // (ErrorKind::usage): no such layer.
  std::vector<Tensor> attention_maps(const Tensor& ids, const std::vector<std::int64_t>& layers, Site where = Site::current());

  const TransformerConfig& config() const { return config_; }

  std::int64_t vocab() const override { return config_.vocab; }
  // Dynamic scaling turns all keys anew with every token beyond the context: a cache, which keeps them, ends there.
  std::optional<std::int64_t> context() const override {
    return config_.rope.scaling == RopeScaling::dynamic ? config_.context : config_.longest();
  }
  SpecialTokens special_tokens() const override { return {config_.bos, config_.eos, config_.pad}; }
  std::string description() const override;
  double flops_per_token(std::int64_t length) const override;

  static Transformer load(const std::filesystem::path& folder, DType dtype = DType::f32);  // as LanguageModel::load
  nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const override;
  TensorMap weights(CheckpointNames names = CheckpointNames::hugging_face) const override;
  void load_weights(TensorMap tensors) override;

 protected:
  Tensor last_logits(const Tensor& ids, const ModelCache& cache, CacheUse use, const Tensor& lengths) override;
  Tensor forward_in(const Tensor& ids, const TextFlow& flow) override;

 private:
  Tensor embed(const Tensor& ids);
  Tensor head(const Tensor& x);  // (..., d) -> (..., v)

  TransformerConfig config_;
  Rope rope_;
  Embedding embed_tokens_;
  std::vector<TransformerBlock> blocks_;
  RMSNorm norm_;
  std::optional<Linear> lm_head_;  // absent if tied
};

ModelFamily transformer_family();

}  // namespace weft
