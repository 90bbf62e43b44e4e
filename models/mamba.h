// Mamba-1 language model (arXiv:2312.00752). Shapes: b batch, t time, d width, i inner width, n state size, w conv width, v
// vocabulary.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "models/mamba_backbone.h"
#include "models/mamba_config.h"
#include "nn/layers.h"

namespace weft {

// What one layer remembers between steps.
struct MambaLayerCache {
  MambaLayerCache(const MambaConfig& config, std::int64_t batch, const std::string& name);  // that of the mixer
  State conv;  // (b, w-1, i): the last inputs of the convolution; absent if w == 1
  State ssm;   // (b, i, n), f32 (f64)
};

// In what a mixer may differ from that of Mamba, for models that have its heads beside others.
struct MambaMixerOptions {
  std::int64_t before = 0;  // features that in_proj gives before x and z
  bool norms = false;       // RMSNorm of the step size's rank, B and C before use
  std::string suffix = "";  // of the names x_proj, dt_proj, A_log and D
  double deviation = 0;     // > 0: in_proj, x_proj and out_proj begin with N(0, deviation^2)
};

// x (b, t, d) -> (b, t, d)
class MambaMixer : public Layer<MambaMixer> {
 public:
  using Config = MambaConfig;
  using Cache = MambaLayerCache;
  explicit MambaMixer(const MambaConfig& config, const MambaMixerOptions& options = {});
  Tensor forward(const Tensor& x, const MambaLayerCache* cache = nullptr, const SequencePass& pass = {});
  // What is between the projections: the last 2i features that in_proj gives, x and z -> (b, t, i) for out_proj.
  Tensor heads(const Tensor& projected, const MambaLayerCache* cache, const SequencePass& pass);
  Linear& in_proj() { return in_proj_; }
  Conv1d& conv1d() { return conv1d_; }
  Linear& x_proj() { return x_proj_; }
  Linear& dt_proj() { return dt_proj_; }
  Linear& out_proj() { return out_proj_; }

 private:
  struct Norms {
    RMSNorm dt, B, C;  // rank, n, n
  };

  std::int64_t inner_, rank_, state_;
  Linear in_proj_;   // d -> 2i: x and z
  Conv1d conv1d_;    // i, w
  Linear x_proj_;    // i -> rank + 2n: step size, B, C
  Linear dt_proj_;   // rank -> i; its bias enters in the scan
  Linear out_proj_;  // i -> d
  Param A_log_;      // (i, n)
  Param D_;          // (i)
  std::optional<Norms> norms_;
};

using MambaCache = BackboneCache<MambaMixer>;
using MambaBlock = BackboneBlock<MambaMixer>;

class Mamba : public Backbone<MambaMixer> {
 public:
  explicit Mamba(MambaConfig config);
  Mamba(const Mamba&) = default;  // a handle, to be moved too: what was moved from keeps its blocks

  CacheBytes cache_bytes(std::int64_t length) const override;
  std::string description() const override;
  double flops_per_token(std::int64_t length) const override;
  static Mamba load(const std::filesystem::path& folder, DType dtype = DType::f32);  // as LanguageModel::load
  nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const override;
};

ModelFamily mamba_family();

}  // namespace weft
