#include "models/mamba2_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "jit/error.h"
#include "models/config_reader.h"

namespace weft {
namespace {

using nlohmann::json;

// ssm_cfg of the original form: arguments of the mixer.
void read_mixer(ConfigReader& r, Mamba2Config& c) {
  r.read<Mamba2Config>(c, {{"d_state", &Mamba2Config::state},
                           {"d_conv", &Mamba2Config::conv},
                           {"expand", &Mamba2Config::expand},
                           {"headdim", &Mamba2Config::head},
                           {"d_ssm", &Mamba2Config::scanned},
                           {"ngroups", &Mamba2Config::groups},
                           {"D_has_hdim", &Mamba2Config::skip_features},
                           {"norm_before_gate", &Mamba2Config::norm_first},
                           {"dt_min", &Mamba2Config::dt_min},
                           {"dt_max", &Mamba2Config::dt_max},
                           {"dt_init_floor", &Mamba2Config::dt_floor},
                           {"bias", &Mamba2Config::bias},
                           {"conv_bias", &Mamba2Config::conv_bias},
                           {"chunk_size", &Mamba2Config::chunk}});
  r.read_range("A_init_range", c.A_min, c.A_max);
  r.read_range("dt_limit", c.dt_low, c.dt_high);
  r.require("layer", "Mamba2");
  r.require("rmsnorm", true);
  r.ignore({"use_mem_eff_path"});
}

void read_original_form(ConfigReader& r, Mamba2Config& c) {
  r.need({"d_model", "n_layer", "vocab_size", "ssm_cfg"});
  c.vocab_padding = 16;
  r.read<Mamba2Config>(c, {{"d_model", &Mamba2Config::width},
                           {"n_layer", &Mamba2Config::layers},
                           {"vocab_size", &Mamba2Config::vocab},
                           {"pad_vocab_size_multiple", &Mamba2Config::vocab_padding},
                           {"tie_embeddings", &Mamba2Config::tie}});
  r.read_object("ssm_cfg", [&](ConfigReader& mixer) {
    mixer.need({"layer"});
    read_mixer(mixer, c);
  });
}

void read_hugging_face_form(ConfigReader& r, Mamba2Config& c) {
  r.need({"hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel", "num_heads", "head_dim", "n_groups"});
  std::int64_t heads = 0;
  r.read("num_heads", heads);
  r.read<Mamba2Config>(c, {{"hidden_size", &Mamba2Config::width},
                           {"num_hidden_layers", &Mamba2Config::layers},
                           {"vocab_size", &Mamba2Config::vocab},
                           {"state_size", &Mamba2Config::state},
                           {"conv_kernel", &Mamba2Config::conv},
                           {"expand", &Mamba2Config::expand},
                           {"head_dim", &Mamba2Config::head},
                           {"n_groups", &Mamba2Config::groups},
                           {"chunk_size", &Mamba2Config::chunk},
                           {"use_bias", &Mamba2Config::bias},
                           {"use_conv_bias", &Mamba2Config::conv_bias},
                           {"layer_norm_epsilon", &Mamba2Config::eps},
                           {"tie_word_embeddings", &Mamba2Config::tie},
                           {"time_step_min", &Mamba2Config::dt_min},
                           {"time_step_max", &Mamba2Config::dt_max},
                           {"time_step_floor", &Mamba2Config::dt_floor},
                           {"initializer_range", &Mamba2Config::embedding_deviation},
                           {"rescale_prenorm_residual", &Mamba2Config::rescale_residual}});
  r.read_range("time_step_limit", c.dt_low, c.dt_high);
  r.require_any("hidden_act", {"silu", "swish"});
  // norm_before_gate stands as true in published files whose models normalise after the gate: transformers does not read it,
  // nor a rank or scale of the step size. Each group is normalised by itself, as mamba-ssm has it, which made the weights;
  // modules of transformers 5 do so while they train with its kernels, else they take all groups as one.
  r.ignore({"norm_before_gate", "time_step_rank", "time_step_init_scheme", "time_step_scale"});
  if (!r.good()) return;
  const double inner = double(c.expand) * double(c.width);
  if (inner != double(heads) * double(c.head))
    r.problem("the heads do not make up the inner width",
              fmt::format("num_heads = {}, head_dim = {}, expand = {}, hidden_size = {}", heads, c.head, c.expand, c.width),
              "num_heads * head_dim must be expand * hidden_size");
  else
    r.same("intermediate_size", std::int64_t(inner));
}

// JSON has no infinity, and none is needed: 0 and infinity are the default of both forms.
bool limits_steps(const Mamba2Config& c) { return c.dt_low > 0 || std::isfinite(c.dt_high); }
json written_limits(const Mamba2Config& c) { return {c.dt_low, std::min(c.dt_high, std::numeric_limits<double>::max())}; }

template <class Number>  // double where the sizes are not yet known to be possible
Number count_mamba2_parameters(const Mamba2Config& c) {
  const Number d = Number(c.width), i = Number(c.inner_width()), s = Number(c.scanned_width()), h = Number(c.heads()),
               gn = Number(c.groups) * Number(c.state), projected = 2 * i + 2 * gn + h;
  const Number block = d * projected + (s + 2 * gn) * (Number(c.conv) + (c.conv_bias ? 1 : 0)) + 2 * h +
                       (c.skip_features ? s : h) + s + i * d + d + (c.bias ? projected + d : 0);
  return Number(c.layers) * block + (c.tie ? 1 : 2) * Number(c.rows()) * d + d;
}

}  // namespace

std::int64_t Mamba2Config::parameter_count() const { return count_mamba2_parameters<std::int64_t>(*this); }

void Mamba2Config::check() const {
  check_config_sizes("Mamba2Config", {{"vocab", vocab},
                                      {"width", width},
                                      {"layers", layers},
                                      {"state", state},
                                      {"conv", conv},
                                      {"expand", expand},
                                      {"inner", inner, 0},
                                      {"scanned", scanned, 0},
                                      {"head", head},
                                      {"groups", groups},
                                      {"chunk", chunk},
                                      {"vocab_padding", vocab_padding}});
  if (scanned_width() > inner_width() || scanned_width() % head != 0 || heads() % groups != 0)
    fail(ErrorKind::usage, "Mamba2Config: the inner width does not divide into heads, or these into groups",
         fmt::format("inner width {}, {} of it scanned, heads of {}, {} groups", inner_width(), scanned_width(), head, groups),
         "scanned <= inner width; head must divide scanned, groups the number of heads");
  check_config_total("Mamba2Config", layers, count_mamba2_parameters<double>(*this));
  if (!(dt_low >= 0 && dt_low < dt_high))
    fail(ErrorKind::usage, "Mamba2Config: the limits of the step size must hold 0 <= low < high",
         fmt::format("dt_low {}, dt_high {} (time_step_limit, dt_limit)", dt_low, dt_high), "0 and infinity limit nothing");
  if (!(dt_min > 0 && dt_min <= dt_max && dt_floor > 0 && A_min > 0 && A_min <= A_max))
    fail(ErrorKind::usage, "Mamba2Config: 0 < dt_min <= dt_max, 0 < dt_floor and 0 < A_min <= A_max must hold",
         fmt::format("{}, {}, {}; {}, {}", dt_min, dt_max, dt_floor, A_min, A_max), "leave them as they are");
  if (!(eps >= 0 && eps < 1 && embedding_deviation >= 0 && std::isfinite(embedding_deviation + dt_max + A_max)))
    fail(ErrorKind::usage, "Mamba2Config: 0 <= eps < 1 and 0 <= embedding_deviation must hold, and all be finite",
         fmt::format("eps {}, embedding_deviation {}, dt_max {}, A_max {}", eps, embedding_deviation, dt_max, A_max),
         "leave them as they are");
  check_config_dtype("Mamba2Config", dtype);
}

Mamba2Config mamba2_config_from_json(const json& object, std::string_view name) {
  ConfigReader r(object, name);
  r.require("model_type", "mamba2");
  r.throw_problems();  // another model's keys would all be wrong
  r.require("rms_norm", true);
  r.require("d_intermediate", 0);
  r.require("attn_layer_idx", json::array());
  r.require("attn_cfg", json::object());
  Mamba2Config c;
  r.read<Mamba2Config>(c, {{"residual_in_fp32", &Mamba2Config::residual_in_fp32},
                           {"bos_token_id", &Mamba2Config::bos},
                           {"eos_token_id", &Mamba2Config::eos},
                           {"pad_token_id", &Mamba2Config::pad}});
  if (object.contains("d_model") && !object.contains("hidden_size"))
    read_original_form(r, c);
  else
    read_hugging_face_form(r, c);
  r.ignore({"fused_add_norm"});
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

json mamba2_config_to_json(const Mamba2Config& c) {
  if (c.gated_width() || c.skip_features || c.norm_first || c.inner_width() % c.width)
    fail(ErrorKind::usage, "Mamba2Config: the form of Hugging Face has no keys for what this model is",
         fmt::format("scanned {} of {}, skip_features {}, norm_first {}, width {}", c.scanned_width(), c.inner_width(),
                     c.skip_features, c.norm_first, c.width),
         "save it with CheckpointNames::original");
  json form = {
      {"architectures", {"Mamba2ForCausalLM"}},
      {"model_type", "mamba2"},
      {"torch_dtype", c.dtype == DType::f64 ? "float64" : "float32"},  // "dtype" since 4.56, which reads both
      {"vocab_size", c.rows()},
      {"hidden_size", c.width},
      {"num_hidden_layers", c.layers},
      {"state_size", c.state},
      {"conv_kernel", c.conv},
      {"expand", c.inner_width() / c.width},
      {"num_heads", c.heads()},
      {"head_dim", c.head},
      {"n_groups", c.groups},
      {"chunk_size", c.chunk},
      {"use_bias", c.bias},
      {"use_conv_bias", c.conv_bias},
      {"hidden_act", "silu"},
      {"rms_norm", true},
      {"layer_norm_epsilon", c.eps},
      {"residual_in_fp32", c.residual_in_fp32},
      {"tie_word_embeddings", c.tie},
      {"bos_token_id", token_json(c.bos)},  // null too: the format's default is token 0
      {"eos_token_id", token_json(c.eos)},
      {"pad_token_id", token_json(c.pad)},
      {"use_cache", true},
      {"time_step_min", c.dt_min},
      {"time_step_max", c.dt_max},
      {"time_step_floor", c.dt_floor},
      {"initializer_range", c.embedding_deviation},
      {"rescale_prenorm_residual", false}};  // done at initialisation; transformers 5 would do it to weights that it loads
  if (limits_steps(c)) form["time_step_limit"] = written_limits(c);
  return form;
}

json to_original(const Mamba2Config& c) {
  if (c.inner_width() % c.width)
    fail(ErrorKind::usage, "Mamba2Config: the original form needs an inner width that is a multiple of the width",
         fmt::format("{}, {}", c.inner_width(), c.width), "set expand instead of inner");
  json mixer = {{"layer", "Mamba2"},
                {"d_state", c.state},
                {"d_conv", c.conv},
                {"expand", c.inner_width() / c.width},
                {"headdim", c.head},
                {"ngroups", c.groups},
                {"D_has_hdim", c.skip_features},
                {"norm_before_gate", c.norm_first},
                {"bias", c.bias},
                {"conv_bias", c.conv_bias},
                {"chunk_size", c.chunk}};
  if (c.gated_width()) mixer["d_ssm"] = c.scanned_width();
  if (limits_steps(c)) mixer["dt_limit"] = written_limits(c);
  return {{"d_model", c.width},     {"n_layer", c.layers},
          {"vocab_size", c.vocab},  {"ssm_cfg", mixer},
          {"rms_norm", true},       {"residual_in_fp32", c.residual_in_fp32},
          {"fused_add_norm", true}, {"pad_vocab_size_multiple", c.vocab_padding},
          {"tie_embeddings", c.tie}};
}

}  // namespace weft
