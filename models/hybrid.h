// Language models whose layers have attention, Mamba heads or both, with learned meta tokens before every text, and keys and
// values that layers share (arXiv:2411.13676): what Hymba and the models of the study have in common. Shapes: b batch, t time,
// m meta tokens, d width, v vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/attention.h"
#include "models/family.h"
#include "models/kv_groups.h"
#include "models/mamba.h"
#include "models/mamba2.h"
#include "models/transformer.h"
#include "nn/layers.h"

namespace weft {

struct HybridSizes {
  std::int64_t vocab = 0, width = 0, meta_tokens = 0;
  LayerKinds kinds = {};
  std::vector<std::int64_t> producers = {};  // for each layer the one whose keys and values it uses
  AttentionSizes attention = {};             // of a local layer
  RopeOptions rope = {};
  MambaConfig mamba = {};
  std::optional<Mamba2Config> mamba2 = {};  // its heads instead
  bool mamba_beside = false;                // layers with attention have Mamba heads too
  bool tie = true;
  double embedding_scale = 1, logit_scale = 1;
  std::optional<std::int64_t> pad = {};  // a token whose embedding is not trained by its use, as padding_idx of PyTorch
  double eps = 1e-6, deviation = 0.02;
  DType dtype = DType::f32, compute = DType::f32;
  bool recompute = false;

  std::int64_t layers() const { return std::int64_t(kinds.size()); }
  bool has_attention(std::int64_t layer) const { return kinds[std::size_t(layer)] != 'M'; }
  bool has_mamba(std::int64_t layer) const { return mamba_beside || !has_attention(layer); }
  bool makes_keys(std::int64_t layer) const { return has_attention(layer) && producers[std::size_t(layer)] == layer; }
  AttentionSizes attention_of(std::int64_t layer) const;  // without the window, if it is global
};

// What one layer remembers between steps.
struct HybridLayerCache {
  std::optional<MambaLayerCache> mamba;    // nothing: it has no Mamba heads
  std::optional<Mamba2LayerCache> mamba2;  // likewise
  KvCache kv;                              // absent: it has no keys and values of its own
};

struct HybridCache : ModelCache {
  HybridCache(const HybridSizes& sizes, std::int64_t batch);
  std::vector<HybridLayerCache> layers;
};

// A layer's part in a call of its model.
struct HybridPass {
  const AttentionPass& attention;
  const HybridLayerCache* cache;  // null: a pass without
  KeysValues& keys;               // of its group: set by the layer that makes them, read by those after it

  const MambaLayerCache* mamba() const { return cache && cache->mamba ? &*cache->mamba : nullptr; }
  SequencePass sequence() const { return {.use = attention.use, .ends = attention.ends, .segments = attention.segments}; }
  const Mamba2LayerCache* mamba2() const { return cache && cache->mamba2 ? &*cache->mamba2 : nullptr; }
  KvCache kv() const { return cache ? cache->kv : KvCache(); }
};

// What a cache holds for one sequence of so many tokens.
CacheBytes cache_bytes(const HybridSizes& sizes, std::int64_t length);

double multiplied_weights(const Module& layer);  // elements of the weights of its Linears and convolutions

// A family derives from it, adds its layers, named model.layers.0 and so on, and says what each does.
class HybridModel : public LanguageModel {
 public:
  HybridModel(const HybridModel&) = default;

  Tensor forward(const Tensor& ids) override { return forward_in(ids, {}); }
  std::string cannot_pack() const override {
    return sizes_.meta_tokens > 0 ? "its meta tokens stand before a row, not before each document" : "";
  }
  std::unique_ptr<ModelCache> make_cache(std::int64_t batch) const override;
  CacheBytes cache_bytes(std::int64_t length) const override { return weft::cache_bytes(sizes_, length); }
  std::int64_t vocab() const override { return sizes_.vocab; }
  double flops_per_token(std::int64_t length) const override;
  TensorMap weights(CheckpointNames names = CheckpointNames::hugging_face) const override;
  void load_weights(TensorMap tensors) override;

  // The attention of these layers to all that they see, meta tokens first: (b, h, m + t, m + t) for each. Rows sum to 1; what
  // is not seen is 0. Errors (ErrorKind::usage): no such layer, or one without attention.
  std::vector<Tensor> attention_maps(const Tensor& ids, const std::vector<std::int64_t>& layers, Site where = Site::current());
  double kv_reduction() const { return weft::kv_reduction(sizes_.kinds, sizes_.producers); }
  const HybridSizes& sizes() const { return sizes_; }

 protected:
  explicit HybridModel(HybridSizes sizes);
  virtual Tensor layer(std::int64_t l, const Tensor& x, const HybridPass& pass) = 0;  // (b, t, d) -> (b, t, d)
  virtual double layer_weights(std::int64_t l) const = 0;  // elements that a token is multiplied with
  Tensor last_logits(const Tensor& ids, const ModelCache& cache, CacheUse use, const Tensor& lengths) override;
  Tensor forward_in(const Tensor& ids, const TextFlow& flow) override;

 private:
  Tensor embed(const Tensor& ids, bool from_the_start);
  // `maps` receives the attention of each layer.
  Tensor layers(Tensor x, AttentionPass& pass, const HybridCache* cache, std::vector<Tensor>* maps = nullptr);
  Tensor head(const Tensor& x);  // (..., d), normalised -> (..., v)

  HybridSizes sizes_;
  Rope rope_;
  Embedding embed_tokens_;
  Param memory_tokens_;  // (m, d); absent if there are none
  RMSNorm final_layernorm_;
  std::optional<Linear> lm_head_;  // absent if tied
};

}  // namespace weft
