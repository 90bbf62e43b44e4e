#include "models/transformer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "jit/error.h"
#include "jit/json.h"
#include "models/config_reader.h"

namespace weft {
namespace {

using nlohmann::json;
using Config = TransformerConfig;

constexpr std::int64_t kMostHeadSize = 1024;

// ---- rotary positions

const std::pair<const char*, RopeScaling> kScalings[] = {{"default", RopeScaling::none},
                                                         {"linear", RopeScaling::linear},
                                                         {"dynamic", RopeScaling::dynamic},
                                                         {"llama3", RopeScaling::llama3}};

// The kind and its numbers: rope_scaling, or rope_parameters, which has the base too.
void read_scaling(ConfigReader& r, RopeOptions& rope, std::int64_t context) {
  const json* type = r.find("rope_type");
  const json* older = r.find("type");  // the name before transformers 4.43
  if (!type) type = older;
  const auto found =
      std::find_if(std::begin(kScalings), std::end(kScalings), [&](const auto& s) { return type && *type == s.first; });
  if (type && found == std::end(kScalings)) {
    r.problem("a scaling of positions that is not known", "rope_type = " + text_of(*type),
              "\"default\", \"linear\", \"dynamic\" and \"llama3\" are");
    r.ignore({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "short_factor", "long_factor",
              "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "truncate"});
    return;
  }
  if (type) rope.scaling = found->second;
  r.read("rope_theta", rope.base);
  r.require("partial_rotary_factor", 1.0);
  if (rope.scaling == RopeScaling::none) return;
  r.need({"factor"});
  r.read("factor", rope.factor);
  rope.trained = context;
  if (rope.scaling != RopeScaling::llama3) return r.ignore({"original_max_position_embeddings"});
  r.need({"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
  r.read("low_freq_factor", rope.low);
  r.read("high_freq_factor", rope.high);
  r.read("original_max_position_embeddings", rope.trained);
}

bool same_scaling(const RopeOptions& a, const RopeOptions& b) {
  return a.scaling == b.scaling && a.factor == b.factor && a.trained == b.trained && a.low == b.low && a.high == b.high;
}

}  // namespace

// transformers 5 has rope_parameters, the versions before it rope_theta and rope_scaling. A file may have both forms, which say
// the same: who edits one of them would otherwise change nothing.
void read_rope(ConfigReader& r, RopeOptions& rope, std::int64_t context) {
  r.require("partial_rotary_factor", 1.0);
  RopeOptions before = rope;
  const bool theta = r.find("rope_theta"), scaling = r.find("rope_scaling"), parameters = r.find("rope_parameters");
  r.read("rope_theta", before.base);
  r.read_object("rope_scaling", [&](ConfigReader& inner) { read_scaling(inner, before, context); });
  RopeOptions now = rope;
  now.base = before.base;
  r.read_object("rope_parameters", [&](ConfigReader& inner) { read_scaling(inner, now, context); });
  if (parameters && ((theta && now.base != before.base) || (scaling && !same_scaling(now, before))))
    r.problem("two keys contradict each other", "rope_parameters says something else than rope_theta or rope_scaling",
              "keep rope_parameters, which transformers 5 reads, or the other two");
  rope = parameters ? now : before;
}

void write_rope(json& j, const RopeOptions& rope) {
  j["rope_theta"] = rope.base;
  const auto found =
      std::find_if(std::begin(kScalings), std::end(kScalings), [&](const auto& s) { return s.second == rope.scaling; });
  json scaling = {{"rope_type", found->first}};
  if (rope.scaling != RopeScaling::none) scaling["factor"] = rope.factor;
  if (rope.scaling == RopeScaling::llama3) {
    scaling["low_freq_factor"] = rope.low, scaling["high_freq_factor"] = rope.high;
    scaling["original_max_position_embeddings"] = rope.trained;
  }
  j["rope_scaling"] = rope.scaling == RopeScaling::none ? json(nullptr) : scaling;
  scaling["rope_theta"] = rope.base;
  j["rope_parameters"] = scaling;
}

namespace {

// ---- what the kinds differ in

// Layers with a window: all of Mistral; of Qwen those that layer_types names, or from max_window_layers on.
void read_layer_types(ConfigReader& r, Config& c, std::int64_t first_windowed) {
  const json* types = r.find("layer_types");
  const auto layers = std::size_t(std::clamp<std::int64_t>(c.layers, 0, kMostLayers));
  std::vector<bool> windowed;
  if (!types) {
    for (std::size_t l = 0; l < layers; ++l) windowed.push_back(c.window > 0 && std::int64_t(l) >= first_windowed);
  } else {
    if (!types->is_array()) return r.problem("a list is expected", "layer_types = " + text_of(*types));
    for (const json& type : *types) {
      if (type != "full_attention" && type != "sliding_attention")
        return r.problem("this model has no such layer", "layer_types: " + text_of(type),
                         "\"full_attention\" and \"sliding_attention\" are known");
      windowed.push_back(type == "sliding_attention");
    }
    if (windowed.size() != layers)
      return r.problem("layer_types has another number of layers", fmt::format("{}, elsewhere {}", windowed.size(), layers));
  }
  const bool any = std::find(windowed.begin(), windowed.end(), true) != windowed.end();
  if (any && c.window == 0)
    r.problem("layers have a window, but its size is not given", "layer_types", "sliding_window, and use_sliding_window: true");
  if (!any) c.window = 0;
  const bool all = std::find(windowed.begin(), windowed.end(), false) == windowed.end();
  if (any && !all) c.windowed = windowed;
}

void read_window(ConfigReader& r, Config& c, const std::string& type) {
  const bool qwen = type == "qwen2" || type == "qwen3";
  if (type == "mistral") r.need({"sliding_window"}, true);
  r.read("sliding_window", c.window);
  bool use = !qwen;
  if (qwen) r.read("use_sliding_window", use);
  if (!use) c.window = 0;
  std::int64_t first = qwen ? c.layers : 0;
  if (qwen) {
    if (use && !r.find("layer_types")) r.need({"max_window_layers"});
    r.read("max_window_layers", first);
  }
  read_layer_types(r, c, first);
}

void read_kind(ConfigReader& r, Config& c, const std::string& type) {
  if (type == "qwen2") c.qkv_bias = true;
  if (type == "qwen3") c.qk_norm = true;
  if (type == "llama" || type == "qwen3") {
    bool bias = false;
    r.read("attention_bias", bias);
    c.qkv_bias = c.out_bias = bias;
  }
  if (type == "llama") {
    r.read("mlp_bias", c.mlp_bias);
    r.ignore({"pretraining_tp"});
  } else {
    r.need({"num_key_value_heads"}, true);  // the formats' own defaults fit no small model
  }
  if (type == "qwen3") r.need({"head_dim"}, true);
  if (type != "llama") read_window(r, c, type);
}

// ---- sizes

template <class Number>  // double where the sizes are not yet known to be possible
Number count_parameters(const Config& c) {
  const auto of = [](std::int64_t n) { return Number(n); };
  const Number d = of(c.width), f = of(c.mlp()), q = of(c.heads) * of(c.head_size()), kv = of(c.groups()) * of(c.head_size());
  Number layer = d * q + 2 * d * kv + q * d + 3 * d * f + 2 * d;
  if (c.qkv_bias) layer += q + 2 * kv;
  if (c.out_bias) layer += d;
  if (c.mlp_bias) layer += 2 * f + d;
  if (c.qk_norm) layer += 2 * of(c.head_size());
  return of(c.layers) * layer + of(c.tie ? 1 : 2) * of(c.vocab) * d + d;
}

// llama3 writes the extended context itself.
bool extends_context(const RopeOptions& rope) {
  return rope.scaling == RopeScaling::linear || rope.scaling == RopeScaling::dynamic;
}

void check_rope(const RopeOptions& rope, std::int64_t head, std::int64_t context) {
  const auto finite = [](double x) { return std::isfinite(x) && x > 0; };
  if (!finite(rope.base) || !finite(rope.factor) || !finite(rope.low) || !(rope.high > rope.low) || !std::isfinite(rope.high))
    fail(ErrorKind::usage, "TransformerConfig: the numbers of the rotary positions make no sense",
         fmt::format("base {}, factor {}, low {}, high {}", rope.base, rope.factor, rope.low, rope.high),
         "all are positive, and low is below high");
  if ((rope.scaling == RopeScaling::dynamic || rope.scaling == RopeScaling::llama3) && rope.trained < 1)
    fail(ErrorKind::usage, "TransformerConfig: the scaling of the positions needs the context that the model was trained with",
         fmt::format("rope.trained {}", rope.trained), "set rope.trained (original_max_position_embeddings)");
  if (extends_context(rope) && double(context) * rope.factor > kLargestSize)
    fail(ErrorKind::usage, "TransformerConfig: the scaled context is larger than 2^30 tokens",
         fmt::format("context {}, factor {}", context, rope.factor));
  if (head % 2 != 0 || (rope.scaling == RopeScaling::dynamic && head < 4))
    fail(ErrorKind::usage, "TransformerConfig: the features of a head are rotated in pairs, so their number is even",
         fmt::format("a head of {}", head), "choose width / heads, or head, even");
}

}  // namespace

std::int64_t TransformerConfig::window_of(std::int64_t layer) const {
  return windowed.empty() || windowed[std::size_t(layer)] ? window : 0;
}

std::int64_t TransformerConfig::longest() const {
  return extends_context(rope) ? std::int64_t(double(context) * std::max(rope.factor, 1.0)) : context;
}

AttentionSizes TransformerConfig::sizes(std::int64_t layer) const {
  return {.heads = heads, .groups = groups(), .key = head_size(), .value = head_size(), .window = window_of(layer)};
}

std::int64_t TransformerConfig::parameter_count() const { return count_parameters<std::int64_t>(*this); }

void TransformerConfig::check() const {
  check_config_sizes("TransformerConfig",
                     {{"vocab", vocab},
                      {"width", width},
                      {"layers", layers},
                      {"heads", heads},
                      {"kv_heads", kv_heads, 0},
                      {"head", head, 0},
                      {"hidden", hidden, 0},
                      {"window", window, 0},
                      {"context", context}},
                     "set width, layers, heads and vocab");
  if (head == 0 && width % heads != 0)
    fail(ErrorKind::usage, "TransformerConfig: the width does not divide into the heads",
         fmt::format("width {}, {} heads", width, heads), "choose a number of heads that divides it, or the size of a head");
  if (heads % groups() != 0)
    fail(ErrorKind::usage, "TransformerConfig: the heads do not divide into the heads of keys and values",
         fmt::format("{} heads, {} of keys and values", heads, groups()), "each of these serves the same number of heads");
  if (head_size() > kMostHeadSize)
    fail(ErrorKind::usage, fmt::format("TransformerConfig: a head of at most {} features is supported", kMostHeadSize),
         fmt::format("{}", head_size()), "more heads");
  check_rope(rope, head_size(), context);
  check_config_total("TransformerConfig", layers, count_parameters<double>(*this));
  if (!windowed.empty() && std::int64_t(windowed.size()) != layers)
    fail(ErrorKind::usage, "TransformerConfig: windowed has not one entry for each layer",
         fmt::format("{} entries, {} layers", windowed.size(), layers), "leave it empty for a window in all layers");
  if (!(eps >= 0 && eps < 1 && deviation >= 0 && std::isfinite(deviation)))
    fail(ErrorKind::usage, "TransformerConfig: 0 <= eps < 1 and 0 <= deviation must hold, and both be finite",
         fmt::format("eps {}, deviation {}", eps, deviation));
  check_config_dtype("TransformerConfig", dtype);
}

// ---- config.json ------------------------------------------------------------------------------------------------------------

TransformerConfig transformer_config_from_json(const json& object, std::string_view name) {
  ConfigReader r(object, name);
  const json* given = r.find("model_type");
  const std::string type = given && given->is_string() ? given->get<std::string>() : "llama";
  Config c;
  r.need({"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size",
          "max_position_embeddings"});
  r.read<Config>(c, {{"hidden_size", &Config::width},
                     {"num_hidden_layers", &Config::layers},
                     {"vocab_size", &Config::vocab},
                     {"num_attention_heads", &Config::heads},
                     {"num_key_value_heads", &Config::kv_heads},
                     {"head_dim", &Config::head},
                     {"intermediate_size", &Config::hidden},
                     {"max_position_embeddings", &Config::context},
                     {"rms_norm_eps", &Config::eps},
                     {"initializer_range", &Config::deviation},
                     {"tie_word_embeddings", &Config::tie},
                     {"bos_token_id", &Config::bos},
                     {"eos_token_id", &Config::eos},
                     {"pad_token_id", &Config::pad}});
  read_kind(r, c, type);
  read_rope(r, c.rope, c.context);
  const json* act = r.find("hidden_act");
  if (act && *act != "silu" && *act != "swish")
    r.problem("this model has no such feature", "hidden_act = " + text_of(*act), "only \"silu\" is supported");
  r.require("attention_dropout", 0.0);
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

namespace {

// The kind that has these features.
std::string kind_of(const Config& c) {
  if (c.qk_norm && !c.mlp_bias && c.qkv_bias == c.out_bias) return "qwen3";
  if (c.qkv_bias && !c.out_bias && !c.qk_norm && !c.mlp_bias) return "qwen2";
  if (!c.qk_norm && c.qkv_bias == c.out_bias && c.window == 0) return "llama";
  if (!c.qk_norm && !c.qkv_bias && !c.out_bias && !c.mlp_bias && c.windowed.empty()) return "mistral";
  fail(ErrorKind::usage, "TransformerConfig: no kind of Hugging Face has these features",
       fmt::format("qk_norm {}, qkv_bias {}, out_bias {}, mlp_bias {}, window {} {}", c.qk_norm, c.qkv_bias, c.out_bias,
                   c.mlp_bias, c.window, c.windowed.empty() ? "in all layers" : "in some"),
       "those of Llama, Mistral, Qwen2 or Qwen3 together can be written");
}

const char* class_of(const std::string& kind) {
  if (kind == "qwen3") return "Qwen3ForCausalLM";
  if (kind == "qwen2") return "Qwen2ForCausalLM";
  return kind == "mistral" ? "MistralForCausalLM" : "LlamaForCausalLM";
}

void write_window(json& j, const Config& c, const std::string& kind) {
  if (kind == "llama") return;
  j["sliding_window"] = c.window > 0 ? json(c.window) : json(nullptr);
  if (kind == "mistral") return;
  j["use_sliding_window"] = c.window > 0;
  std::vector<std::string> types;
  for (std::int64_t l = 0; l < c.layers; ++l) types.push_back(c.window_of(l) > 0 ? "sliding_attention" : "full_attention");
  j["layer_types"] = types;
  const auto first = std::find(types.begin(), types.end(), "sliding_attention");
  j["max_window_layers"] = first - types.begin();
}

}  // namespace

json transformer_config_to_json(const Config& c) {
  const std::string kind = kind_of(c);
  json j = {{"architectures", {class_of(kind)}},
            {"model_type", kind},
            {"torch_dtype", c.dtype == DType::f64 ? "float64" : "float32"},  // "dtype" since 4.56, which reads both
            {"vocab_size", c.vocab},
            {"hidden_size", c.width},
            {"num_hidden_layers", c.layers},
            {"num_attention_heads", c.heads},
            {"num_key_value_heads", c.groups()},
            {"head_dim", c.head_size()},
            {"intermediate_size", c.mlp()},
            {"max_position_embeddings", c.context},
            {"hidden_act", "silu"},
            {"rms_norm_eps", c.eps},
            {"initializer_range", c.deviation},
            {"tie_word_embeddings", c.tie},
            {"attention_dropout", 0.0},
            {"bos_token_id", token_json(c.bos)},
            {"eos_token_id", token_json(c.eos)},
            {"pad_token_id", token_json(c.pad)},
            {"use_cache", true}};
  if (kind == "llama" || kind == "qwen3") j["attention_bias"] = c.qkv_bias;
  if (kind == "llama") j["mlp_bias"] = c.mlp_bias;
  write_window(j, c, kind);
  write_rope(j, c.rope);
  return j;
}

}  // namespace weft
