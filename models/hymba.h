// Hymba as it was published (arXiv:2411.13676): in each layer attention heads and Mamba heads read one projection, and the mean
// of what they give, each normalised, is projected back. Shapes: b batch, t time, d width, h heads, g heads of keys and values,
// i inner width, v vocabulary.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "models/hybrid.h"
#include "models/hymba_config.h"

namespace weft {

// x + heads(norm(x)), then x + mlp(norm(x)); the residual stream keeps its dtype.
class HymbaBlock : public Layer<HymbaBlock> {
 public:
  HymbaBlock(const HymbaConfig& config, const AttentionSizes& sizes, bool makes_keys);
  Tensor forward(const Tensor& x, const HybridPass& pass);
  MambaMixer& mamba() { return mamba_; }

 private:
  Tensor heads(const Tensor& x, const HybridPass& pass);

  AttentionSizes sizes_;
  bool makes_keys_;
  RMSNorm input_layernorm_;
  MambaMixer mamba_;                                 // in_proj: h dk for queries, g dk for keys, g dv for values, 2i
  RMSNorm pre_avg_layernorm1_, pre_avg_layernorm2_;  // (i): of the attention heads and of the Mamba heads
  RMSNorm pre_moe_layernorm_;
  GatedMlp mlp_;
};

HybridSizes hybrid_sizes(const HymbaConfig& config);

class Hymba : public HybridModel {
 public:
  using Config = HymbaConfig;
  explicit Hymba(HymbaConfig config);
  Hymba(const Hymba&) = default;

  const HymbaConfig& config() const { return config_; }
  std::optional<std::int64_t> context() const override { return config_.positions; }
  SpecialTokens special_tokens() const override { return {config_.bos, config_.eos, config_.pad}; }
  std::string description() const override;
  nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const override;

 protected:
  Tensor layer(std::int64_t l, const Tensor& x, const HybridPass& pass) override;
  double layer_weights(std::int64_t l) const override;

 private:
  HymbaConfig config_;
  std::vector<HymbaBlock> blocks_;
};

ModelFamily hymba_family();

}  // namespace weft
