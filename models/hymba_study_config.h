// The configuration of the study of hybrid models: Mamba, attention, and both in each layer, with meta tokens and shared keys
// and values as in Hymba (arXiv:2411.13676); and the benchmarked model.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "jit/dtype.h"
#include "models/kv_groups.h"
#include "models/mamba_config.h"

namespace weft {

// What a layer does between its first norm and the residual stream.
enum class BlockStyle {
  either_or,         // attention or a Mamba mixer
  parallel_split,    // both, each at half the width between projections; a learned share of each
  parallel_average,  // both, at the full width; their mean
};

struct HymbaStudyConfig {
  std::int64_t vocab = 256;
  std::int64_t width = 512;                    // d
  LayerKinds layer_kinds = "GLLLLLLGLLLLLLG";  // of the attention of each layer; M, in either_or: none
  std::string block_style = "parallel_split";  // BlockStyle
  bool wrap_projections = true;                // either_or: a layer's mixer stands between two more projections d -> d
  std::int64_t heads = 8;
  std::int64_t kv_heads = 4;
  std::int64_t hidden = 0;  // of the MLP; 0: 4 d
  std::int64_t meta_tokens = 64;
  std::int64_t window = 128;      // keys that a query of a local layer sees, with its own, besides the meta tokens
  bool window_inclusive = false;  // and one more
  bool share_kv = true;           // local layers without global ones between them share keys and values,
  std::int64_t kv_group_max = 2;  // at most so many; 0: all of a run
  bool keep_consumer_kv = false;  // those that use another's keep their projections, which nothing reads
  std::int64_t state = 16;        // of the Mamba mixers, as in MambaConfig
  std::int64_t conv = 4;
  std::int64_t expand = 2;
  bool tie = true;  // the head is the embedding
  double eps = 1e-6;
  double rope_base = 1e4;
  double deviation = 0.02;  // of initial values: N(0, deviation^2) in embedding, projections and MLP
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};  // any of them ends a text
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32;        // of the parameters: f32 or f64
  DType activations = DType::f32;  // bf16: what the layers take and give; f64 parameters: f64
  bool recompute = false;          // backward evaluates the blocks again instead of keeping their values

  std::int64_t layers() const { return std::int64_t(layer_kinds.size()); }
  BlockStyle style() const;  // errors: an unknown word
  std::int64_t mixer_width() const { return style() == BlockStyle::parallel_split ? width / 2 : width; }
  std::int64_t mlp_width() const { return hidden ? hidden : 4 * width; }
  DType compute() const { return dtype == DType::f64 ? DType::f64 : activations; }
  MambaConfig mamba() const;  // of the mixers
  std::vector<std::int64_t> producers() const;
  std::int64_t parameter_count() const;  // allocates nothing
  void check() const;                    // an error lists every size that makes no sense; the others can be counted with
};

// The five models of the study, at 15 layers of width 512: "mamba_only", "transformer_global", "transformer_local",
// "hybrid_50_50", "hybrid_paper". `table`: as its table counts them: consumers keep their projections, and hybrid_50_50 is what
// hybrid_paper is; without, keys and values are shared in earnest, and attention stands in every second layer of hybrid_50_50.
// Errors (ErrorKind::usage): no such model.
HymbaStudyConfig study_model(std::string_view name, bool table = false);
HymbaStudyConfig
bench_model();  // 15 layers of width 512, both mixers at full width, whose speed other implementations are known for

HymbaStudyConfig hymba_study_config_from_json(const nlohmann::json& json, std::string_view name = "config.json");
nlohmann::json hymba_study_config_to_json(const HymbaStudyConfig& config);

}  // namespace weft
