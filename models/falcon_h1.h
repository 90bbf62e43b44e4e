// Falcon-H1 (arXiv:2507.22448): in each layer attention and Mamba-2 read one norm, and what they give is added. Shapes: b
// batch, t time, d width.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/falcon_h1_config.h"
#include "models/hybrid.h"

namespace weft {

// x + mamba(norm(x)) + attention(norm(x)), then x + mlp(norm(x)), each with its multipliers; the residual stream keeps its
// dtype.
class FalconH1Block : public Layer<FalconH1Block> {
 public:
  FalconH1Block(const FalconH1Config& config, const AttentionSizes& sizes);
  Tensor forward(const Tensor& x, const HybridPass& pass);

 private:
  double attention_in_, attention_out_, mamba_out_, down_;
  RMSNorm input_layernorm_;
  Mamba2Mixer mamba_;
  SelfAttention self_attn_;
  RMSNorm pre_ff_layernorm_;
  GatedMlp feed_forward_;
};

HybridSizes hybrid_sizes(const FalconH1Config& config);

class FalconH1 : public HybridModel {
 public:
  using Config = FalconH1Config;
  explicit FalconH1(FalconH1Config config);
  FalconH1(const FalconH1&) = default;

  const FalconH1Config& config() const { return config_; }
  std::optional<std::int64_t> context() const override;
  SpecialTokens special_tokens() const override { return {config_.bos, config_.eos, config_.pad}; }
  std::string description() const override;
  nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const override;

 protected:
  Tensor layer(std::int64_t l, const Tensor& x, const HybridPass& pass) override;
  double layer_weights(std::int64_t l) const override;

 private:
  FalconH1Config config_;
  std::vector<FalconH1Block> blocks_;
};

ModelFamily falcon_h1_family();

}  // namespace weft
