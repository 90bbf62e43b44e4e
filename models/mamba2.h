// Mamba-2 language model (arXiv:2405.21060). Shapes: b batch, t time, d width, i inner width, s its scanned part, of h heads of
// p features, g groups, n state size, w conv width, v vocabulary.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "models/mamba2_config.h"
#include "models/mamba_backbone.h"
#include "nn/layers.h"

namespace weft {

// What one layer remembers between steps.
struct Mamba2LayerCache {
  Mamba2LayerCache(const Mamba2Config& config, std::int64_t batch, const std::string& name);  // that of the mixer
  State conv;  // (b, w-1, s + 2gn): the last inputs of the convolution; absent if w == 1
  State ssm;   // (b, h, p, n), f32 (f64)
};

struct GatedNormOptions {
  std::int64_t groups = 1;  // of neighbouring features, each normalised by itself
  bool norm_first = false;  // norm(y) silu(z) instead of norm(y silu(z))
  double eps = 1e-5;
  DType dtype = DType::f32;
  std::optional<DType> output = {};  // of the result; y's type if not given
};

// RMSNorm with a gate; weight (width) starts at 1. y, z (..., width) -> (..., width)
class GatedNorm : public Layer<GatedNorm> {
 public:
  // Errors (ErrorKind::usage): the width does not divide into the groups.
  explicit GatedNorm(std::int64_t width, const GatedNormOptions& options = {}, Site where = Site::current());
  Tensor forward(const Tensor& y, const Tensor& z);
  const Param& weight() const { return weight_; }

 private:
  Param weight_;
  GatedNormOptions options_;
};

// What a mixer begins with, and what it leaves.
struct Mamba2States {
  Tensor conv = {};  // (b, w-1, s + 2gn): the last inputs of the convolution; absent: zeros
  Tensor ssm = {};   // (b, h, p, n), f32 (f64); absent: zeros
};

// How the states are scanned: by the kernels of ssd where there are any, by its plain form, or step by step, which knows
// neither padding nor packed documents.
enum class ScanPath { fast, plain, sequential };

// In what a mixer may differ from that of Mamba-2, for models that have its heads beside others.
struct Mamba2MixerOptions {
  bool norm = true;                                // false: y silu(z) instead of the gated norm
  std::array<double, 5> scales = {1, 1, 1, 1, 1};  // of what in_proj gives: z, x, B, C and the step size
  double deviation = 0;                            // > 0: in_proj and out_proj begin with N(0, deviation^2)
};

// x (b, t, d) -> (b, t, d)
class Mamba2Mixer : public Layer<Mamba2Mixer> {
 public:
  using Config = Mamba2Config;
  using Cache = Mamba2LayerCache;
  explicit Mamba2Mixer(const Mamba2Config& config, const Mamba2MixerOptions& options = {});
  Tensor forward(const Tensor& x, const Mamba2LayerCache* cache = nullptr, const SequencePass& pass = {});
  // The same from `states`, which become those after the last step, with gradients.
  Tensor forward(const Tensor& x, Mamba2States& states, ScanPath path, const SequencePass& pass = {});
  Linear& in_proj() { return in_proj_; }
  Conv1d& conv1d() { return conv1d_; }
  GatedNorm& norm() { return *norm_; }  // which it has
  Linear& out_proj() { return out_proj_; }

 private:
  // Convolution and scan: xBC (b, t, s + 2gn), dt (b, t, h) -> (b, t, s). Absent states: those at the end are not wanted.
  Tensor scanned(const Tensor& xBC, const Tensor& dt, Mamba2States* states, ScanPath path, const SequencePass& pass);
  Tensor mixed(const Tensor& x, Mamba2States* states, ScanPath path, const SequencePass& pass);
  HoleOf<1, 3> step_size(const Tensor& bias, const Tensor& ends) const;
  Tensor scaled(const Tensor& projected) const;

  Mamba2Config config_;
  std::array<double, 5> scales_;
  Linear in_proj_;                 // d -> 2(i - s) + 2s + 2gn + h: both parts of the gated MLP, z, x, B, C, dt
  Conv1d conv1d_;                  // s + 2gn, w
  std::optional<GatedNorm> norm_;  // s
  Linear out_proj_;                // i -> d
  Param dt_bias_;                  // (h)
  Param A_log_;                    // (h)
  Param D_;                        // (h), or (s)
};

using Mamba2Cache = BackboneCache<Mamba2Mixer>;

class Mamba2 : public Backbone<Mamba2Mixer> {
 public:
  explicit Mamba2(Mamba2Config config);
  Mamba2(const Mamba2&) = default;  // a handle, to be moved too: what was moved from keeps its blocks

  CacheBytes cache_bytes(std::int64_t length) const override;
  std::string description() const override;
  double flops_per_token(std::int64_t length) const override;
  static Mamba2 load(const std::filesystem::path& folder, DType dtype = DType::f32);  // as LanguageModel::load
  nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const override;
};

ModelFamily mamba2_family();

}  // namespace weft
