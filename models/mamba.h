// Mamba-1 language model (SPEC 1). Shapes: b batch, t time, d width, i inner width, n state size, w conv width, v
// vocabulary.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "models/mamba_config.h"
#include "nn/layers.h"

namespace weft {

// What one layer remembers between steps (SPEC 1.8).
struct MambaLayerCache {
  State conv;  // (b, w-1, i): the last inputs of the convolution; absent if w == 1
  State ssm;   // (b, i, n), f32 (f64)
};

struct MambaCache {
  MambaCache(const MambaConfig& config, std::int64_t batch);
  std::int64_t batch;
  std::vector<MambaLayerCache> layers;
};

enum class CacheUse { none, fill, go_on };  // fill: start at time 0; go_on: start where the cache is. Both leave it at the end.

// x (b, t, d) -> (b, t, d)
class MambaMixer : public Layer<MambaMixer> {
 public:
  explicit MambaMixer(const MambaConfig& config);
  Tensor forward(const Tensor& x, const MambaLayerCache* cache = nullptr, CacheUse use = CacheUse::none);
  Linear& in_proj() { return in_proj_; }
  Conv1d& conv1d() { return conv1d_; }
  Linear& x_proj() { return x_proj_; }
  Linear& dt_proj() { return dt_proj_; }
  Linear& out_proj() { return out_proj_; }

 private:
  std::int64_t inner_, rank_, state_;
  Linear in_proj_;   // d -> 2i: x and z
  Conv1d conv1d_;    // i, w
  Linear x_proj_;    // i -> rank + 2n: step size, B, C
  Linear dt_proj_;   // rank -> i; its bias enters in the scan
  Linear out_proj_;  // i -> d
  Param A_log_;      // (i, n)
  Param D_;          // (i)
};

// x + mixer(norm(x)); the residual stream keeps its dtype.
class MambaBlock : public Layer<MambaBlock> {
 public:
  explicit MambaBlock(const MambaConfig& config);
  Tensor forward(const Tensor& x, const MambaLayerCache* cache = nullptr, CacheUse use = CacheUse::none);
  MambaMixer& mixer() { return mixer_; }

 private:
  RMSNorm norm_;
  MambaMixer mixer_;
};

enum class CheckpointNames { hugging_face, original };

// Before memory is taken for a configuration from a file: an error (io) if it has more than twice the parameters that the
// tensors have.
void check_size(const MambaConfig& config, const TensorMap& tensors);

class Mamba : public Layer<Mamba> {
 public:
  explicit Mamba(MambaConfig config);

  // ids (b, t), integers in [0, v) -> logits (b, t, v)
  Tensor forward(const Tensor& ids);
  // Logits (b, v) after the last of the ids (b, t), t >= 1, which stand at the beginning of a text, or where the cache
  // is.
  Tensor prefill(Arg ids, const MambaCache& cache);
  Tensor step(Arg ids, const MambaCache& cache);

  const MambaConfig& config() const { return config_; }
  MambaBlock& block(std::int64_t layer) { return blocks_.at(std::size_t(layer)); }
  std::vector<GumbelMask> masks();  // of all layers

  // A folder as `save_pretrained` writes it: config.json in either form, model.safetensors or shards, names of either
  // form.
  // `dtype` is that of the weights, f32 or f64; bf16: weights in f32, activations in bf16.
  static Mamba load(const std::filesystem::path& folder, DType dtype = DType::f32);
  void load_weights(TensorMap tensors);  // names of either form; strict
  TensorMap weights(CheckpointNames names = CheckpointNames::hugging_face) const;
  // config.json in the form of the names, model.safetensors or, above `shard_bytes`, shards.
  void save(const std::filesystem::path& folder, CheckpointNames names = CheckpointNames::hugging_face,
            std::size_t shard_bytes = kShardBytes) const;

 private:
  Tensor embed(const Tensor& ids);
  Tensor head(const Tensor& x);  // (..., d) -> (..., v)
  Tensor last_logits(const Tensor& ids, const MambaCache& cache, CacheUse use);

  MambaConfig config_;
  Embedding embeddings_;
  std::vector<MambaBlock> blocks_;
  RMSNorm norm_f_;
  std::optional<Linear> lm_head_;  // absent if tied
};

}  // namespace weft
