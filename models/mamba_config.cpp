#include "models/mamba_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "jit/error.h"
#include "models/config_reader.h"

namespace weft {
namespace {

using nlohmann::json;

// The rank of the step size: "auto" or an integer.
void read_rank(ConfigReader& r, const std::string& key, std::int64_t& rank) {
  const json* j = r.find(key);
  if (j && *j == "auto") {
    rank = 0;
  } else {
    r.read(key, rank);
  }
}

// "random" or "constant".
void read_dt_init(ConfigReader& r, const std::string& key, bool& constant) {
  const json* j = r.find(key);
  if (!j) return;
  if (*j != "random" && *j != "constant") r.problem("\"random\" or \"constant\" is expected", key + " = " + j->dump());
  constant = *j == "constant";
}

// ssm_cfg of the original form: arguments of the mixer.
void read_ssm(ConfigReader& r, MambaConfig& c) {
  r.read<MambaConfig>(c, {{"d_state", &MambaConfig::state},
                          {"d_conv", &MambaConfig::conv},
                          {"expand", &MambaConfig::expand},
                          {"dt_min", &MambaConfig::dt_min},
                          {"dt_max", &MambaConfig::dt_max},
                          {"dt_scale", &MambaConfig::dt_scale},
                          {"dt_init_floor", &MambaConfig::dt_floor},
                          {"bias", &MambaConfig::bias},
                          {"conv_bias", &MambaConfig::conv_bias}});
  read_rank(r, "dt_rank", c.rank);
  read_dt_init(r, "dt_init", c.dt_constant);
  r.require("layer", "Mamba1");
  r.ignore({"use_fast_path"});
}

void read_original(ConfigReader& r, MambaConfig& c) {
  r.need({"d_model", "n_layer", "vocab_size"});
  c.vocab_padding = 8;
  r.read<MambaConfig>(c, {{"d_model", &MambaConfig::width},
                          {"n_layer", &MambaConfig::layers},
                          {"vocab_size", &MambaConfig::vocab},
                          {"pad_vocab_size_multiple", &MambaConfig::vocab_padding},
                          {"tie_embeddings", &MambaConfig::tie}});
  r.read_object("ssm_cfg", [&](ConfigReader& ssm) { read_ssm(ssm, c); });
}

// Published files repeat sizes under the original names.
void check_repeated(ConfigReader& r, const MambaConfig& c) {
  r.ignore({"d_model", "n_layer", "d_inner", "ssm_cfg", "pad_vocab_size_multiple", "tie_embeddings"});
  if (!r.good()) return;
  r.same("d_model", c.width);
  r.same("n_layer", c.layers);
  r.same("d_inner", c.inner_width());
  MambaConfig repeated = c;
  r.read_object("ssm_cfg", [&](ConfigReader& ssm) { read_ssm(ssm, repeated); });
  if (repeated.state != c.state || repeated.conv != c.conv || repeated.expand != c.expand)
    r.problem("ssm_cfg contradicts the other keys", r.find("ssm_cfg")->dump());
}

void read_hugging_face(ConfigReader& r, MambaConfig& c) {
  std::vector<std::string> sizes = {"hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel"};
  if (!r.find("intermediate_size")) sizes.push_back("expand");
  r.need(sizes);
  r.read<MambaConfig>(c, {{"hidden_size", &MambaConfig::width},
                          {"num_hidden_layers", &MambaConfig::layers},
                          {"vocab_size", &MambaConfig::vocab},
                          {"state_size", &MambaConfig::state},
                          {"conv_kernel", &MambaConfig::conv},
                          {"expand", &MambaConfig::expand},
                          {"intermediate_size", &MambaConfig::inner},
                          {"use_bias", &MambaConfig::bias},
                          {"use_conv_bias", &MambaConfig::conv_bias},
                          {"layer_norm_epsilon", &MambaConfig::eps},
                          {"tie_word_embeddings", &MambaConfig::tie},
                          {"time_step_min", &MambaConfig::dt_min},
                          {"time_step_max", &MambaConfig::dt_max},
                          {"time_step_scale", &MambaConfig::dt_scale},
                          {"time_step_floor", &MambaConfig::dt_floor},
                          {"initializer_range", &MambaConfig::embedding_deviation},
                          {"rescale_prenorm_residual", &MambaConfig::rescale_residual}});
  read_rank(r, "time_step_rank", c.rank);
  read_dt_init(r, "time_step_init_scheme", c.dt_constant);
  for (const char* key : {"hidden_act", "activation_function"})
    r.require_any(key, {"silu", "swish"});                                       // two names of one function
  r.require("time_step_limit", {0.0, std::numeric_limits<double>::infinity()});  // of the step size: none
  check_repeated(r, c);
}

template <class Number>  // double where the sizes are not yet known to be possible
Number count_parameters(const MambaConfig& c) {
  const Number d = Number(c.width), i = Number(c.inner_width()), r = Number(c.dt_rank()), n = Number(c.state);
  const Number block = 2 * i * d + i * Number(c.conv) + (c.conv_bias ? i : 0) + i * (r + 2 * n) + r * i + i + i * n + i +
                       i * d + d + (c.bias ? 2 * i + d : 0);
  return Number(c.layers) * block + (c.tie ? 1 : 2) * Number(c.rows()) * d + d;
}

}  // namespace

std::int64_t MambaConfig::parameter_count() const { return count_parameters<std::int64_t>(*this); }

void MambaConfig::check() const {
  check_config_sizes("MambaConfig", {{"vocab", vocab},
                                     {"width", width},
                                     {"layers", layers},
                                     {"state", state},
                                     {"conv", conv},
                                     {"expand", expand},
                                     {"inner", inner, 0},
                                     {"rank", rank, 0},
                                     {"vocab_padding", vocab_padding}});
  check_config_total("MambaConfig", layers, count_parameters<double>(*this));
  if (state > 256) fail(ErrorKind::usage, "MambaConfig: a state of at most 256 is supported", fmt::format("{}", state));
  if (!(dt_min > 0 && dt_min <= dt_max && dt_floor > 0))
    fail(ErrorKind::usage, "MambaConfig: 0 < dt_min <= dt_max and 0 < dt_floor must hold",
         fmt::format("{}, {}, {}", dt_min, dt_max, dt_floor));
  if (!(eps >= 0 && eps < 1 && embedding_deviation >= 0 && std::isfinite(embedding_deviation + dt_max + dt_scale)))
    fail(ErrorKind::usage, "MambaConfig: 0 <= eps < 1 and 0 <= embedding_deviation must hold, and all be finite",
         fmt::format("eps {}, embedding_deviation {}, dt_max {}, dt_scale {}", eps, embedding_deviation, dt_max, dt_scale));
  check_config_dtype("MambaConfig", dtype);
}

MambaConfig mamba_config_from_json(const json& object, std::string_view name) {
  ConfigReader r(object, name);
  r.require("model_type", "mamba");
  r.throw_problems();  // another model's keys would all be wrong
  r.require("rms_norm", true);
  r.require("d_intermediate", 0);
  r.require("attn_layer_idx", json::array());
  r.require("attn_cfg", json::object());
  MambaConfig c;
  r.read<MambaConfig>(c, {{"residual_in_fp32", &MambaConfig::residual_in_fp32},
                          {"bos_token_id", &MambaConfig::bos},
                          {"eos_token_id", &MambaConfig::eos},
                          {"pad_token_id", &MambaConfig::pad}});
  if (object.contains("hidden_size") || object.contains("num_hidden_layers") || !object.contains("d_model")) {
    read_hugging_face(r, c);
  } else {
    read_original(r, c);
  }
  r.ignore({"use_mambapy", "use_associative_scan", "fused_add_norm"});
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

json to_hugging_face(const MambaConfig& c) {
  return {{"architectures", {"MambaForCausalLM"}},
          {"model_type", "mamba"},
          {"torch_dtype", c.dtype == DType::f64 ? "float64" : "float32"},  // "dtype" since 4.56, which reads both
          {"vocab_size", c.rows()},
          {"hidden_size", c.width},
          {"num_hidden_layers", c.layers},
          {"state_size", c.state},
          {"conv_kernel", c.conv},
          {"expand", c.inner ? std::max<std::int64_t>(c.inner / c.width, 1) : c.expand},
          {"intermediate_size", c.inner_width()},
          {"time_step_rank", c.dt_rank()},
          {"use_bias", c.bias},
          {"use_conv_bias", c.conv_bias},
          {"hidden_act", "silu"},
          {"layer_norm_epsilon", c.eps},
          {"residual_in_fp32", c.residual_in_fp32},
          {"tie_word_embeddings", c.tie},
          {"bos_token_id", token_json(c.bos)},  // null too: the format's default is token 0
          {"eos_token_id", token_json(c.eos)},
          {"pad_token_id", token_json(c.pad)},
          {"use_cache", true},
          {"time_step_min", c.dt_min},
          {"time_step_max", c.dt_max},
          {"time_step_scale", c.dt_scale},
          {"time_step_floor", c.dt_floor},
          {"time_step_init_scheme", c.dt_constant ? "constant" : "random"},
          {"initializer_range", c.embedding_deviation},
          {"rescale_prenorm_residual", false}};  // done at initialisation; transformers 5 would do it to weights that it loads
}

json to_original(const MambaConfig& c) {
  if (c.inner_width() % c.width)
    fail(ErrorKind::usage, "MambaConfig: the original form needs an inner width that is a multiple of the width",
         fmt::format("{}, {}", c.inner_width(), c.width));
  return {{"d_model", c.width},
          {"n_layer", c.layers},
          {"vocab_size", c.vocab},
          {"ssm_cfg",
           {{"d_state", c.state},
            {"d_conv", c.conv},
            {"expand", c.inner_width() / c.width},
            {"dt_rank", c.dt_rank()},
            {"bias", c.bias},
            {"conv_bias", c.conv_bias}}},
          {"rms_norm", true},
          {"residual_in_fp32", c.residual_in_fp32},
          {"fused_add_norm", true},
          {"pad_vocab_size_multiple", c.vocab_padding},
          {"tie_embeddings", c.tie}};
}

}  // namespace weft
