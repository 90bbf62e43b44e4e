// The configuration of a decoder-only Transformer, and the config.json of the kinds that Hugging Face has: Llama, Mistral,
// Qwen2 and Qwen3, which differ in their biases, windows and norms.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/attention.h"

namespace weft {

struct TransformerConfig {
  std::int64_t vocab = 256;
  std::int64_t width = 0;  // d
  std::int64_t layers = 0;
  std::int64_t heads = 1;           // h, of queries
  std::int64_t kv_heads = 0;        // g, of keys and values; 0: as many as of queries
  std::int64_t head = 0;            // features of a head; 0: d / h
  std::int64_t hidden = 0;          // f, of the MLP; 0: 4 d
  std::int64_t window = 0;          // tokens that a query of a windowed layer sees, its own included
  std::vector<bool> windowed = {};  // which layers; empty: all if there is a window
  std::int64_t context = 8192;      // tokens of the longest text, before a scaling of the positions extends it
  RopeOptions rope = {};
  bool qkv_bias = false, out_bias = false;  // of attention
  bool mlp_bias = false;
  bool qk_norm = false;     // RMS norms of each head's query and key
  bool tie = false;         // the head is the embedding
  double eps = 1e-6;        // of the norms
  double deviation = 0.02;  // weights start as N(0, deviation^2)
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};  // any of them ends a text
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32;        // of the parameters: f32 or f64
  DType activations = DType::f32;  // bf16: products and attention take and give bf16; the residual stream is in f32
  bool recompute = false;

  std::int64_t groups() const { return kv_heads ? kv_heads : heads; }
  std::int64_t head_size() const { return head ? head : width / heads; }
  std::int64_t mlp() const { return hidden ? hidden : 4 * width; }
  std::int64_t window_of(std::int64_t layer) const;  // 0: it sees all that is before
  AttentionSizes sizes(std::int64_t layer) const;
  std::int64_t longest() const;  // tokens of the longest text
  DType compute() const { return dtype == DType::f64 ? DType::f64 : activations; }
  std::int64_t parameter_count() const;
  void check() const;  // an error lists every size that makes no sense; the others can be counted with
};

// Errors (ErrorKind::io), all in one: unknown keys (with suggestions), missing sizes, wrong types, features that this model
// lacks. `name` appears in errors.
// The keys of rotary positions, for families that have them: both forms, that of transformers 5 and the one before it.
// `context`: tokens of the longest text that the model was trained with.
class ConfigReader;
void read_rope(ConfigReader& reader, RopeOptions& rope, std::int64_t context);
void write_rope(nlohmann::json& json, const RopeOptions& rope);

TransformerConfig transformer_config_from_json(const nlohmann::json& json, std::string_view name = "config.json");
// As the kind of Hugging Face reads it that has these features. Errors (ErrorKind::usage): none has.
nlohmann::json transformer_config_to_json(const TransformerConfig& config);

}  // namespace weft
