// The configuration of Falcon-H1 (arXiv:2507.22448), and its config.json: Mamba-2 and attention beside each other in every
// layer, with a fixed multiplier at most places where something is projected.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "jit/dtype.h"
#include "models/mamba2_config.h"
#include "models/transformer_config.h"

namespace weft {

struct FalconH1Config {
  std::int64_t vocab = 256;
  std::int64_t width = 0;  // d
  std::int64_t layers = 0;
  std::int64_t heads = 1;     // of attention
  std::int64_t kv_heads = 0;  // of keys and values; 0: as many as of queries
  std::int64_t head = 0;      // features of a head of attention; 0: d / heads
  std::int64_t hidden = 0;    // of the MLP; 0: 4 d
  std::int64_t context = 8192;
  RopeOptions rope = {};
  std::int64_t inner = 0;       // i, of the Mamba heads; 0: 2 d
  std::int64_t state = 128;     // n, of a feature
  std::int64_t conv = 4;        // w
  std::int64_t head_size = 64;  // p, features of a Mamba head
  std::int64_t groups = 1;      // of Mamba heads that share B and C
  bool conv_bias = true;
  bool gated_norm = false;                                               // of the Mamba heads; else y silu(z)
  bool norm_first = true;                                                // norm(y) silu(z) instead of norm(y silu(z))
  double dt_low = 0, dt_high = std::numeric_limits<double>::infinity();  // what step sizes are clamped to
  double embedding_scale = 1, logit_scale = 1;
  double attention_in = 1, attention_out = 1, key_scale = 1;
  double mamba_in = 1, mamba_out = 1;
  std::array<double, 5> mamba_scales = {1, 1, 1, 1, 1};  // of z, x, B, C and the step size
  double gate_scale = 1, down_scale = 1;                 // of the MLP
  bool tie = false;                                      // the head is the embedding
  double eps = 1e-5;                                     // of the norms
  double deviation = 0.02;                               // of initial values: N(0, deviation^2)
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};  // any of them ends a text
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32;        // of the parameters: f32 or f64
  DType activations = DType::f32;  // bf16: what the layers take and give; f64 parameters: f64
  bool recompute = false;          // backward evaluates the blocks again instead of keeping their values

  DType compute() const { return dtype == DType::f64 ? DType::f64 : activations; }
  TransformerConfig transformer() const;  // of everything but the Mamba heads
  Mamba2Config mamba() const;             // of these
  std::int64_t parameter_count() const;   // allocates nothing
  void check() const;                     // an error lists every size that makes no sense; the others can be counted with
};

// Errors (ErrorKind::io), all in one: unknown keys (with suggestions), missing sizes, wrong types, features that this model
// lacks. `name` appears in errors.
FalconH1Config falcon_h1_config_from_json(const nlohmann::json& json, std::string_view name = "config.json");
nlohmann::json falcon_h1_config_to_json(const FalconH1Config& config);  // as FalconH1ForCausalLM reads it

}  // namespace weft
