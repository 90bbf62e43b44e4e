// The configuration of Hymba as it was published (arXiv:2411.13676), and its config.json.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "jit/dtype.h"
#include "models/kv_groups.h"
#include "models/mamba_config.h"

namespace weft {

struct HymbaConfig {
  std::int64_t vocab = 256;
  std::int64_t width = 0;  // d
  std::int64_t layers = 0;
  std::int64_t hidden = 0;    // of the MLP; 0: 4 d
  std::int64_t heads = 8;     // h
  std::int64_t kv_heads = 4;  // g; head h reads keys and values h / (h/g)
  std::int64_t key_size = 0;  // dk, of a head; 0: d / h. A value has dv = i / h
  std::int64_t meta_tokens = 128;
  std::int64_t window = 1024;     // keys that a query of a local layer sees, with its own, besides the meta tokens
  bool window_inclusive = false;  // and one more, as in the released training code
  std::optional<std::vector<std::int64_t>> global_layers = {};  // nothing: the first, the middle and the last
  std::optional<LayerGroups> kv_groups = {};                    // nothing: published_kv_groups
  std::int64_t state = 16;                                      // n, of a channel of the Mamba heads
  std::int64_t conv = 4;                                        // w
  std::int64_t expand = 2;                                      // i = expand d
  std::int64_t rank = 0;                                        // of the step size; 0: ceil(d / 16)
  bool bias = false;                                            // of in_proj and out_proj
  bool conv_bias = true;
  bool tie = true;  // the head is the embedding
  double eps = 1e-6;
  double rope_base = 1e4;
  bool rope_ntk = false;                                    // the base grows with positions / trained_positions
  std::int64_t positions = 8192, trained_positions = 2048;  // tokens of the longest text; of those in training
  double deviation = 0.02;  // of initial values: N(0, deviation^2) in embedding, projections and MLP
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};  // any of them ends a text
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32;        // of the parameters: f32 or f64
  DType activations = DType::f32;  // bf16: what the layers take and give; f64 parameters: f64
  bool recompute = false;          // backward evaluates the blocks again instead of keeping their values

  std::int64_t inner_width() const { return expand * width; }
  std::int64_t key_width() const { return key_size ? key_size : width / heads; }
  std::int64_t value_width() const { return inner_width() / heads; }
  std::int64_t mlp_width() const { return hidden ? hidden : 4 * width; }
  DType compute() const { return dtype == DType::f64 ? DType::f64 : activations; }
  double rotary_base() const;  // with the growth of rope_ntk
  MambaConfig mamba() const;   // of the Mamba heads
  LayerKinds kinds() const;    // G and L
  std::vector<std::int64_t> producers() const;
  std::int64_t parameter_count() const;  // allocates nothing
  void check() const;                    // an error lists every size that makes no sense; the others can be counted with
};

// Errors (ErrorKind::io), all in one: unknown keys (with suggestions), missing sizes, wrong types, features that this model
// lacks. `name` appears in errors.
HymbaConfig hymba_config_from_json(const nlohmann::json& json, std::string_view name = "config.json");
nlohmann::json hymba_config_to_json(const HymbaConfig& config);  // as HymbaForCausalLM reads it

}  // namespace weft
