// The configuration of a Mamba-2 language model (arXiv:2405.21060), and both forms of its config.json.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>

#include "jit/dtype.h"

namespace weft {

struct Mamba2Config {
  std::int64_t vocab = 256;
  std::int64_t width = 0;  // d
  std::int64_t layers = 0;
  std::int64_t state = 128;        // n, per feature of a head
  std::int64_t conv = 4;           // w
  std::int64_t expand = 2;         // i = expand d
  std::int64_t inner = 0;          // i; 0: expand d
  std::int64_t scanned = 0;        // s: so many of the inner features are scanned, the others are a gated MLP; 0: all
  std::int64_t head = 64;          // p, features of a head
  std::int64_t groups = 1;         // g: heads of a group share B and C, and its features are normalised together
  std::int64_t chunk = 256;        // what the file says; results do not depend on it
  std::int64_t vocab_padding = 1;  // the embedding has vocab rounded up to a multiple of this
  bool bias = false;               // of in_proj and out_proj
  bool conv_bias = true;
  bool tie = true;  // the head is the embedding
  bool residual_in_fp32 = true;
  bool skip_features = false;                                            // D is (s) instead of (h)
  bool norm_first = false;                                               // norm(y) silu(z) instead of norm(y silu(z))
  double eps = 1e-5;                                                     // of the norms
  double dt_low = 0, dt_high = std::numeric_limits<double>::infinity();  // what step sizes are clamped to
  // Only used to draw initial values.
  double dt_min = 1e-3, dt_max = 0.1, dt_floor = 1e-4;
  double A_min = 1, A_max = 16;  // -A is uniform between them
  bool rescale_residual = true;  // out_proj.weight divided by sqrt(layers)
  double embedding_deviation = 0.02;
  // Ids of special tokens, for generation; nothing: the model has no such token.
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};  // any of them ends a text
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32;        // of the parameters: f32 or f64
  DType activations = DType::f32;  // bf16: matmul, conv and ssd take and give bf16; f64 parameters: f64
  bool recompute = false;          // backward evaluates the blocks again instead of keeping their values

  std::int64_t inner_width() const { return inner ? inner : expand * width; }
  std::int64_t scanned_width() const { return scanned ? scanned : inner_width(); }
  std::int64_t gated_width() const { return inner_width() - scanned_width(); }  // of the MLP beside
  std::int64_t heads() const { return scanned_width() / head; }                 // h
  std::int64_t conv_width() const { return scanned_width() + 2 * groups * state; }
  std::int64_t projected_width() const { return 2 * inner_width() + 2 * groups * state + heads(); }  // of in_proj
  std::int64_t rows() const { return (vocab + vocab_padding - 1) / vocab_padding * vocab_padding; }  // of the embedding
  DType compute() const { return dtype == DType::f64 ? DType::f64 : activations; }
  std::int64_t parameter_count() const;  // allocates nothing
  void check() const;                    // an error lists every size that makes no sense; the others can be counted with
};

// Reads Hugging Face or original keys. Errors (ErrorKind::io), all in one: unknown keys (with suggestions), missing sizes,
// wrong types, features that this model lacks. `name` appears in errors.
Mamba2Config mamba2_config_from_json(const nlohmann::json& json, std::string_view name = "config.json");
// As Mamba2ForCausalLM reads it. Errors (ErrorKind::usage): it has no key for `scanned`, `skip_features` or `norm_first`.
nlohmann::json mamba2_config_to_json(const Mamba2Config& config);
nlohmann::json to_original(const Mamba2Config& config);  // as mamba-ssm reads it

}  // namespace weft
