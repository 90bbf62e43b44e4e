#include "models/hymba_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "jit/error.h"
#include "jit/json.h"
#include "models/config_reader.h"

namespace weft {
namespace {

using nlohmann::json;

template <class Number>  // double where the sizes are not yet known to be possible
Number count_hymba(const HymbaConfig& c, std::int64_t producers) {
  const Number d = Number(c.width), i = Number(c.inner_width()), r = Number(c.mamba().dt_rank()), n = Number(c.state);
  const Number queries = Number(c.heads * c.key_width()), pairs = Number(c.kv_heads) * Number(c.key_width() + c.value_width());
  const Number projections = d * (queries + 2 * i) + i * d + (c.bias ? queries + 2 * i + d : 0);
  const Number heads = i * Number(c.conv) + (c.conv_bias ? i : 0) + i * (r + 2 * n) + r * i + i + i * n + i + r + 2 * n;
  const Number layer = projections + heads + 2 * i + 2 * d + 3 * d * Number(c.mlp_width());
  return Number(c.layers) * layer + Number(producers) * pairs * (d + (c.bias ? 1 : 0)) + (c.tie ? 1 : 2) * Number(c.vocab) * d +
         Number(c.meta_tokens) * d + d;
}

std::int64_t count_producers(const HymbaConfig& c) {
  const std::vector<std::int64_t> producers = c.producers();
  std::int64_t own = 0;
  for (std::size_t l = 0; l < producers.size(); ++l) own += producers[l] == std::int64_t(l);
  return own;
}

// What must hold before anything is divided or counted.
void check_hymba_sizes(const HymbaConfig& c) {
  check_config_sizes("HymbaConfig", {{"vocab", c.vocab},
                                     {"width", c.width},
                                     {"layers", c.layers},
                                     {"heads", c.heads},
                                     {"kv_heads", c.kv_heads},
                                     {"window", c.window},
                                     {"state", c.state},
                                     {"conv", c.conv},
                                     {"expand", c.expand},
                                     {"positions", c.positions},
                                     {"trained_positions", c.trained_positions},
                                     {"hidden", c.hidden, 0},
                                     {"key_size", c.key_size, 0},
                                     {"meta_tokens", c.meta_tokens, 0},
                                     {"rank", c.rank, 0}});
  check_config_total("HymbaConfig", c.layers, count_hymba<double>(c, c.layers));
}

void check_heads(const HymbaConfig& c) {
  if (c.heads % c.kv_heads != 0 || c.inner_width() % c.heads != 0 || (c.key_size == 0 && c.width % c.heads != 0))
    fail(ErrorKind::usage, "HymbaConfig: the heads do not divide the width, or the kv_heads the heads",
         fmt::format("{} heads, {} kv_heads, width {}, inner width {}", c.heads, c.kv_heads, c.width, c.inner_width()));
  if (c.key_width() % 2 != 0)
    fail(ErrorKind::usage, "HymbaConfig: RoPE rotates pairs of features, and a key has an odd number",
         fmt::format("{} of a head", c.key_width()), "choose heads or key_size so that it is even");
}

}  // namespace

double HymbaConfig::rotary_base() const {
  if (!rope_ntk) return rope_base;
  const double dk = double(key_width()), growth = 2 * double(positions) / double(trained_positions) - 1;
  return rope_base * std::pow(growth, dk / (dk - 2));
}

MambaConfig HymbaConfig::mamba() const {
  return {.vocab = vocab,
          .width = width,
          .layers = layers,
          .state = state,
          .conv = conv,
          .expand = expand,
          .rank = rank,
          .bias = bias,
          .conv_bias = conv_bias,
          .eps = eps,
          .rescale_residual = false,
          .dtype = dtype,
          .activations = activations};
}

LayerKinds HymbaConfig::kinds() const {
  LayerKinds kinds(std::size_t(layers), 'L');
  for (const std::int64_t l : global_layers.value_or(std::vector{std::int64_t(0), (layers - 1) / 2, layers - 1})) {
    if (l < 0 || l >= layers)
      fail(ErrorKind::usage, "HymbaConfig: a global layer does not exist", fmt::format("layer {} of {}", l, layers),
           "layers count from 0");
    kinds[std::size_t(l)] = 'G';
  }
  return kinds;
}

std::vector<std::int64_t> HymbaConfig::producers() const {
  const LayerKinds all = kinds();
  return kv_producers(all, kv_groups ? *kv_groups : published_kv_groups(all));
}

std::int64_t HymbaConfig::parameter_count() const { return count_hymba<std::int64_t>(*this, count_producers(*this)); }

void HymbaConfig::check() const {
  check_hymba_sizes(*this);
  check_heads(*this);
  producers();
  mamba().check();
  const double base = rotary_base();
  if (!(eps >= 0 && eps < 1 && deviation >= 0 && std::isfinite(deviation) && base > 0 && std::isfinite(base)))
    fail(ErrorKind::usage, "HymbaConfig: 0 <= eps < 1, 0 <= deviation and 0 < rope_base must hold, and all be finite",
         fmt::format("eps {}, deviation {}, rope_base {} (with ntk {})", eps, deviation, rope_base, base));
}

// ---- config.json ------------------------------------------------------------------------------------------------------------

namespace {

// Nothing: it is no list of layers.
std::optional<std::vector<std::int64_t>> layers_of(const json& list) {
  if (!list.is_array()) return {};
  std::vector<std::int64_t> layers;
  for (const json& l : list) {
    if (!l.is_number_integer() || std::abs(l.get<double>()) > kLargestSize) return {};
    layers.push_back(l.get<std::int64_t>());
  }
  return layers;
}

void read_global_layers(ConfigReader& r, HymbaConfig& c) {
  const std::string key = "global_attn_idx";
  c.global_layers.emplace();
  const json* list = r.find(key);
  if (!list) return;
  c.global_layers = layers_of(*list);
  if (!c.global_layers) r.problem("a list of layers is expected", key + " = " + text_of(*list));
}

void read_kv_groups(ConfigReader& r, HymbaConfig& c) {
  const std::string key = "kv_reuse_group";
  c.kv_groups.emplace();
  const json* groups = r.find(key);
  if (!groups) return;
  bool good = groups->is_array();
  for (const json& group : good ? *groups : json::array()) {
    const auto layers = layers_of(group);
    good &= layers.has_value();
    c.kv_groups->push_back(layers.value_or(std::vector<std::int64_t>{}));
  }
  if (!good) r.problem("a list of lists of layers is expected", key + " = " + text_of(*groups));
}

void read_rope(ConfigReader& r, HymbaConfig& c) {
  r.require("rope", true);
  const json* type = r.find("rope_type");
  if (type && *type != "ntk" && *type != "default")
    r.problem("this kind of RoPE is unknown", "rope_type = " + text_of(*type), "\"ntk\" and \"default\" are known");
  c.rope_ntk = type && *type == "ntk";
  if (c.rope_ntk) r.need({"max_position_embeddings", "orig_max_position_embeddings"});
  c.trained_positions = c.positions;
  r.read("orig_max_position_embeddings", c.trained_positions);
}

// -1 and absent: as the other sizes say.
void read_optional_size(ConfigReader& r, const std::string& key, std::int64_t& size) {
  r.read(key, size);
  if (size == -1) size = 0;
}

void read_rank(ConfigReader& r, HymbaConfig& c) {
  const json* rank = r.find("mamba_dt_rank");
  if (rank && *rank == "auto") return;
  r.read("mamba_dt_rank", c.rank);
}

// Keys of the released code that may have one value only, or that repeat what others say.
void check_fixed(ConfigReader& r, const HymbaConfig& c) {
  for (const char* key : {"hidden_act", "mlp_hidden_act"}) r.require_any(key, {"silu", "swish"});
  r.require("kq_norm", "none");
  r.require("mamba_inner_layernorms", true);
  r.require("num_experts", 1);
  r.require("num_experts_per_tok", 1);
  r.require("num_mamba", 1);
  r.require("kv_weight_reuse", false);
  r.require("kv_reuse_every_i_layer", -1);
  r.require("memory_tokens_interspersed_every", 0);
  r.require("attention_dropout", 0.0);
  r.require("attn_hidden_size", -1);
  const json* kinds = r.find("layer_type");
  if (kinds && (!kinds->is_array() || std::int64_t(kinds->size()) != c.layers ||
                std::any_of(kinds->begin(), kinds->end(), [](const json& kind) { return kind != "h"; })))
    r.problem("hybrid layers alone, \"h\", are supported, and each is named", "layer_type = " + text_of(*kinds));
  r.ignore({"attn_implementation", "attn_implementation_new", "calc_logits_for_entire_prompt", "conv_dim",
            "output_router_logits", "router_aux_loss_coef", "use_mamba_kernels"});
}

}  // namespace

HymbaConfig hymba_config_from_json(const json& object, std::string_view name) {
  ConfigReader r(object, name);
  r.require("model_type", "hymba");
  r.throw_problems();  // another model's keys would all be wrong
  r.need({"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "num_memory_tokens", "sliding_window", "mamba_d_state", "mamba_d_conv", "mamba_expand"});
  HymbaConfig c;
  r.read<HymbaConfig>(c, {{"vocab_size", &HymbaConfig::vocab},
                          {"hidden_size", &HymbaConfig::width},
                          {"intermediate_size", &HymbaConfig::hidden},
                          {"num_hidden_layers", &HymbaConfig::layers},
                          {"num_attention_heads", &HymbaConfig::heads},
                          {"num_key_value_heads", &HymbaConfig::kv_heads},
                          {"num_memory_tokens", &HymbaConfig::meta_tokens},
                          {"sliding_window", &HymbaConfig::window},
                          {"window_inclusive", &HymbaConfig::window_inclusive},
                          {"mamba_d_state", &HymbaConfig::state},
                          {"mamba_d_conv", &HymbaConfig::conv},
                          {"mamba_expand", &HymbaConfig::expand},
                          {"mamba_conv_bias", &HymbaConfig::conv_bias},
                          {"mamba_proj_bias", &HymbaConfig::bias},
                          {"tie_word_embeddings", &HymbaConfig::tie},
                          {"rms_norm_eps", &HymbaConfig::eps},
                          {"initializer_range", &HymbaConfig::deviation},
                          {"rope_theta", &HymbaConfig::rope_base},
                          {"max_position_embeddings", &HymbaConfig::positions},
                          {"bos_token_id", &HymbaConfig::bos},
                          {"eos_token_id", &HymbaConfig::eos},
                          {"pad_token_id", &HymbaConfig::pad}});
  read_rank(r, c);
  read_optional_size(r, "kq_head_dim", c.key_size);
  read_global_layers(r, c);
  read_kv_groups(r, c);
  read_rope(r, c);
  check_fixed(r, c);
  std::int64_t values = 0;
  read_optional_size(r, "v_head_dim", values);
  if (values && c.heads > 0 && values != c.value_width())
    r.problem("values are as wide as the Mamba heads, so that the two can be averaged",
              fmt::format("v_head_dim = {}, mamba_expand x hidden_size / num_attention_heads = {}", values, c.value_width()));
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

json hymba_config_to_json(const HymbaConfig& c) {
  const LayerKinds kinds = c.kinds();
  std::vector<std::int64_t> global;
  for (std::size_t l = 0; l < kinds.size(); ++l)
    if (kinds[l] == 'G') global.push_back(std::int64_t(l));
  LayerGroups groups = c.kv_groups ? *c.kv_groups : published_kv_groups(kinds);
  std::erase_if(groups, [](const auto& group) { return group.size() < 2; });
  return {{"architectures", {"HymbaForCausalLM"}},
          {"model_type", "hymba"},
          {"torch_dtype", c.dtype == DType::f64 ? "float64" : "float32"},
          {"vocab_size", c.vocab},
          {"hidden_size", c.width},
          {"intermediate_size", c.mlp_width()},
          {"num_hidden_layers", c.layers},
          {"num_attention_heads", c.heads},
          {"num_key_value_heads", c.kv_heads},
          {"kq_head_dim", c.key_width()},
          {"v_head_dim", c.value_width()},
          {"num_memory_tokens", c.meta_tokens},
          {"sliding_window", c.window},
          {"window_inclusive", c.window_inclusive},  // not a key of the released code
          {"global_attn_idx", global},
          {"kv_reuse_group", groups},
          {"layer_type", std::vector<std::string>(std::size_t(c.layers), "h")},
          {"mamba_d_state", c.state},
          {"mamba_d_conv", c.conv},
          {"mamba_expand", c.expand},
          {"mamba_dt_rank", c.mamba().dt_rank()},
          {"mamba_conv_bias", c.conv_bias},
          {"mamba_proj_bias", c.bias},
          {"mamba_inner_layernorms", true},
          {"num_mamba", 1},
          {"num_experts", 1},
          {"num_experts_per_tok", 1},
          {"hidden_act", "silu"},
          {"mlp_hidden_act", "silu"},
          {"kq_norm", "none"},
          {"rms_norm_eps", c.eps},
          {"rope", true},
          {"rope_theta", c.rope_base},
          {"rope_type", c.rope_ntk ? json("ntk") : json(nullptr)},
          {"max_position_embeddings", c.positions},
          {"orig_max_position_embeddings", c.rope_ntk ? c.trained_positions : c.positions},
          {"initializer_range", c.deviation},
          {"tie_word_embeddings", c.tie},
          {"bos_token_id", token_json(c.bos)},
          {"eos_token_id", token_json(c.eos)},
          {"pad_token_id", token_json(c.pad)},
          {"use_cache", true}};
}

}  // namespace weft
