#include "models/falcon_h1_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "jit/error.h"
#include "models/config_reader.h"

namespace weft {
namespace {

using nlohmann::json;

template <class Number>  // double where the sizes are not yet known to be possible
Number count_mamba_heads(const FalconH1Config& c, const Mamba2Config& m) {
  const Number d = Number(c.width), i = Number(m.inner_width()), h = Number(m.heads()),
               mixed = i + 2 * Number(m.groups) * Number(m.state);
  return d * (i + mixed + h) + mixed * (Number(m.conv) + (m.conv_bias ? 1 : 0)) + 3 * h + (c.gated_norm ? i : 0) + i * d;
}

// A list of as many numbers.
void read_numbers(ConfigReader& r, const std::string& key, std::span<double> to) {
  const json* j = r.find(key);
  if (!j) return;
  const auto is_number = [](const json& x) { return x.is_number(); };
  if (!j->is_array() || j->size() != to.size() || !std::all_of(j->begin(), j->end(), is_number))
    return r.problem(fmt::format("a list of {} numbers is expected", to.size()), fmt::format("{} = {}", key, j->dump()));
  for (std::size_t k = 0; k < to.size(); ++k) to[k] = (*j)[k].get<double>();
}

}  // namespace

TransformerConfig FalconH1Config::transformer() const {
  return {.vocab = vocab,
          .width = width,
          .layers = layers,
          .heads = heads,
          .kv_heads = kv_heads,
          .head = head,
          .hidden = hidden,
          .context = context,
          .rope = rope,
          .tie = tie,
          .eps = eps,
          .deviation = deviation,
          .dtype = dtype,
          .activations = activations};
}

Mamba2Config FalconH1Config::mamba() const {
  return {.vocab = vocab,
          .width = width,
          .layers = layers,
          .state = state,
          .conv = conv,
          .inner = inner,
          .head = head_size,
          .groups = groups,
          .conv_bias = conv_bias,
          .norm_first = norm_first,
          .eps = eps,
          .dt_low = dt_low,
          .dt_high = dt_high,
          .dtype = dtype,
          .activations = activations};
}

std::int64_t FalconH1Config::parameter_count() const {
  return transformer().parameter_count() + layers * count_mamba_heads<std::int64_t>(*this, mamba());
}

void FalconH1Config::check() const {
  transformer().check();
  mamba().check();
  check_config_total("FalconH1Config", layers,
                     double(transformer().parameter_count()) + double(layers) * count_mamba_heads<double>(*this, mamba()));
  std::vector<double> scales = {embedding_scale, logit_scale, attention_in, attention_out, key_scale,
                                mamba_in,        mamba_out,   gate_scale,   down_scale};
  scales.insert(scales.end(), mamba_scales.begin(), mamba_scales.end());
  if (!std::all_of(scales.begin(), scales.end(), [](double s) { return std::isfinite(s); }))
    fail(ErrorKind::usage, "FalconH1Config: a multiplier is not finite", {}, "1 multiplies nothing");
}

// ---- config.json ------------------------------------------------------------------------------------------------------------

FalconH1Config falcon_h1_config_from_json(const json& object, std::string_view name) {
  using Config = FalconH1Config;
  ConfigReader r(object, name);
  r.require("model_type", "falcon_h1");
  r.throw_problems();  // another model's keys would all be wrong
  Config c;
  r.need({"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
          "max_position_embeddings", "mamba_d_state", "mamba_d_head", "mamba_n_heads", "mamba_n_groups"});
  std::int64_t expand = 2, mamba_heads = 0;
  r.read("mamba_expand", expand);
  r.read("mamba_n_heads", mamba_heads);
  r.read<Config>(c, {{"vocab_size", &Config::vocab},
                     {"hidden_size", &Config::width},
                     {"num_hidden_layers", &Config::layers},
                     {"num_attention_heads", &Config::heads},
                     {"num_key_value_heads", &Config::kv_heads},
                     {"head_dim", &Config::head},
                     {"intermediate_size", &Config::hidden},
                     {"max_position_embeddings", &Config::context},
                     {"mamba_d_ssm", &Config::inner},
                     {"mamba_d_state", &Config::state},
                     {"mamba_d_conv", &Config::conv},
                     {"mamba_d_head", &Config::head_size},
                     {"mamba_n_groups", &Config::groups},
                     {"mamba_conv_bias", &Config::conv_bias},
                     {"mamba_rms_norm", &Config::gated_norm},
                     {"mamba_norm_before_gate", &Config::norm_first},
                     {"embedding_multiplier", &Config::embedding_scale},
                     {"lm_head_multiplier", &Config::logit_scale},
                     {"attention_in_multiplier", &Config::attention_in},
                     {"attention_out_multiplier", &Config::attention_out},
                     {"key_multiplier", &Config::key_scale},
                     {"ssm_in_multiplier", &Config::mamba_in},
                     {"ssm_out_multiplier", &Config::mamba_out},
                     {"tie_word_embeddings", &Config::tie},
                     {"rms_norm_eps", &Config::eps},
                     {"initializer_range", &Config::deviation},
                     {"bos_token_id", &Config::bos},
                     {"eos_token_id", &Config::eos},
                     {"pad_token_id", &Config::pad}});
  std::array<double, 2> mlp = {c.gate_scale, c.down_scale};
  read_numbers(r, "mlp_multipliers", mlp);
  c.gate_scale = mlp[0], c.down_scale = mlp[1];
  read_numbers(r, "ssm_multipliers", c.mamba_scales);
  r.read_range("time_step_limit", c.dt_low, c.dt_high);
  read_rope(r, c.rope, c.context);
  r.require_any("hidden_act", {"silu", "swish"});
  for (const char* key : {"attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"}) r.require(key, false);
  r.require("mamba_use_mlp", true);
  r.require("attention_dropout", 0.0);
  r.require("attn_layer_indices", nullptr);
  // What the first values of a model are drawn with, how it is computed, and what other keys already say.
  r.ignore({"mamba_chunk_size", "num_logits_to_keep", "mlp_expansion_factor", "time_step_rank", "time_step_min",
            "time_step_max", "time_step_floor"});
  if (c.inner == 0 && c.width > 0 && double(c.width) * double(expand) < kLargestSize) c.inner = expand * c.width;
  if (r.good() && double(mamba_heads) * double(c.head_size) != double(c.inner))
    r.problem("the Mamba heads do not make up their width",
              fmt::format("mamba_n_heads = {}, mamba_d_head = {}, mamba_d_ssm = {}", mamba_heads, c.head_size, c.inner),
              "mamba_n_heads * mamba_d_head must be mamba_d_ssm");
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

json falcon_h1_config_to_json(const FalconH1Config& c) {
  const TransformerConfig t = c.transformer();
  const Mamba2Config m = c.mamba();
  json j = {{"architectures", {"FalconH1ForCausalLM"}},
            {"model_type", "falcon_h1"},
            {"torch_dtype", c.dtype == DType::f64 ? "float64" : "float32"},  // "dtype" since 4.56, which reads both
            {"vocab_size", c.vocab},
            {"hidden_size", c.width},
            {"num_hidden_layers", c.layers},
            {"num_attention_heads", c.heads},
            {"num_key_value_heads", t.groups()},
            {"head_dim", t.head_size()},
            {"intermediate_size", t.mlp()},
            {"max_position_embeddings", c.context},
            {"mamba_d_ssm", m.inner_width()},
            {"mamba_d_state", c.state},
            {"mamba_d_conv", c.conv},
            {"mamba_d_head", c.head_size},
            {"mamba_n_heads", m.heads()},
            {"mamba_n_groups", c.groups},
            {"mamba_conv_bias", c.conv_bias},
            {"mamba_rms_norm", c.gated_norm},
            {"mamba_norm_before_gate", c.norm_first},
            {"embedding_multiplier", c.embedding_scale},
            {"lm_head_multiplier", c.logit_scale},
            {"attention_in_multiplier", c.attention_in},
            {"attention_out_multiplier", c.attention_out},
            {"key_multiplier", c.key_scale},
            {"ssm_in_multiplier", c.mamba_in},
            {"ssm_out_multiplier", c.mamba_out},
            {"ssm_multipliers", c.mamba_scales},
            {"mlp_multipliers", {c.gate_scale, c.down_scale}},
            {"hidden_act", "silu"},
            {"attention_bias", false},
            {"attention_dropout", 0.0},
            {"mlp_bias", false},
            {"projectors_bias", false},
            {"mamba_proj_bias", false},
            {"tie_word_embeddings", c.tie},
            {"rms_norm_eps", c.eps},
            {"initializer_range", c.deviation},
            {"bos_token_id", token_json(c.bos)},
            {"eos_token_id", token_json(c.eos)},
            {"pad_token_id", token_json(c.pad)},
            {"use_cache", true}};
  if (c.dt_low > 0 || std::isfinite(c.dt_high))  // JSON has no infinity
    j["time_step_limit"] = {c.dt_low, std::min(c.dt_high, std::numeric_limits<double>::max())};
  write_rope(j, c.rope);
  return j;
}

}  // namespace weft
