// The configuration of a Mamba-1 language model (arXiv:2312.00752), and both forms of its config.json.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "jit/dtype.h"

namespace weft {

struct MambaConfig {
  std::int64_t vocab = 256;
  std::int64_t width = 0;  // d
  std::int64_t layers = 0;
  std::int64_t state = 16;         // n, per channel
  std::int64_t conv = 4;           // w
  std::int64_t expand = 2;         // i = expand d
  std::int64_t inner = 0;          // i; 0: expand d
  std::int64_t rank = 0;           // of the step size; 0: ceil(d / 16)
  std::int64_t vocab_padding = 1;  // the embedding has vocab rounded up to a multiple of this
  bool bias = false;               // of in_proj and out_proj
  bool conv_bias = true;
  bool tie = true;  // the head is the embedding
  bool residual_in_fp32 = true;
  double eps = 1e-5;  // of the norms
  // Only used to draw initial values.
  double dt_min = 1e-3, dt_max = 0.1, dt_scale = 1, dt_floor = 1e-4;
  bool dt_constant = false;      // dt_proj.weight all dt_scale / sqrt(rank) instead of uniform
  bool rescale_residual = true;  // out_proj.weight divided by sqrt(layers)
  double embedding_deviation = 0.02;
  // Ids of special tokens, for generation; nothing: the model has no such token. Any of eos ends a text.
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32;        // of the parameters: f32 or f64
  DType activations = DType::f32;  // bf16: matmul, conv and scan take and give bf16; f64 parameters: f64
  bool recompute = false;          // backward evaluates the blocks again instead of keeping their values

  std::int64_t inner_width() const { return inner ? inner : expand * width; }
  std::int64_t dt_rank() const { return rank ? rank : (width + 15) / 16; }
  std::int64_t rows() const { return (vocab + vocab_padding - 1) / vocab_padding * vocab_padding; }  // of the embedding
  DType compute() const { return dtype == DType::f64 ? DType::f64 : activations; }
  std::int64_t parameter_count() const;  // allocates nothing
  void check() const;                    // an error lists every size that makes no sense; the others can be counted with
};

// Reads Hugging Face or original keys. Errors (ErrorKind::io), all in one: unknown keys (with suggestions), missing sizes,
// wrong types, features that this model lacks. `name` appears in errors.
MambaConfig mamba_config_from_json(const nlohmann::json& json, std::string_view name = "config.json");
nlohmann::json to_hugging_face(const MambaConfig& config);  // as MambaForCausalLM reads it
nlohmann::json to_original(const MambaConfig& config);      // as mamba-ssm reads it

}  // namespace weft
