// The models of the study of hybrids, and the benchmarked one: attention, a Mamba mixer, or both beside each other. Shapes: b
// batch, t time, d width.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/hybrid.h"
#include "models/hymba_study_config.h"

namespace weft {

// x + mixed(norm1(x)), then x + mlp(norm2(x)); the residual stream keeps its dtype. By style, with n = norm1(x) and a learned
// share s = sigmoid(gate):
//   either_or         proj_x(mixer(to_x(n))), mixer: attention or Mamba; without the projections if they are not wanted
//   parallel_split    s proj_attn(attn(to_attn(n))) + (1 - s) proj_mamba(mamba(to_mamba(n)))
//   parallel_average  (attn(n) + mamba(n)) / 2
class StudyBlock : public Layer<StudyBlock> {
 public:
  StudyBlock(const HymbaStudyConfig& config, const HybridSizes& sizes, std::int64_t layer);
  Tensor forward(const Tensor& x, const HybridPass& pass);
  double multiplied() const;  // elements of the weights that a token is multiplied with

 private:
  void add_attention(const HymbaStudyConfig& config, const HybridSizes& sizes, std::int64_t layer);
  Tensor mixed(const Tensor& x, const HybridPass& pass);
  Tensor attended(const Tensor& x, const HybridPass& pass);
  Tensor scanned(const Tensor& x, const HybridPass& pass);

  BlockStyle style_;
  RMSNorm norm1_, norm2_;
  std::optional<SelfAttention> attn_;
  std::optional<MambaMixer> mamba_;
  std::optional<Linear> to_x_, proj_x_;                                // d -> d
  std::optional<Linear> to_attn_, proj_attn_, to_mamba_, proj_mamba_;  // d -> d/2, d/2 -> d
  std::optional<Linear> kept_k_proj_, kept_v_proj_;                    // of a consumer, which nothing reads
  Param gate_;                                                         // (1)
  GatedMlp mlp_;
};

HybridSizes hybrid_sizes(const HymbaStudyConfig& config);

class HymbaStudy : public HybridModel {
 public:
  using Config = HymbaStudyConfig;
  explicit HymbaStudy(HymbaStudyConfig config);
  HymbaStudy(const HymbaStudy&) = default;

  const HymbaStudyConfig& config() const { return config_; }
  SpecialTokens special_tokens() const override { return {config_.bos, config_.eos, config_.pad}; }
  std::string description() const override;
  nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const override;

 protected:
  Tensor layer(std::int64_t l, const Tensor& x, const HybridPass& pass) override;
  double layer_weights(std::int64_t l) const override;

 private:
  HymbaStudyConfig config_;
  std::vector<StudyBlock> blocks_;
};

ModelFamily hymba_study_family();

}  // namespace weft
