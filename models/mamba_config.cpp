#include "models/mamba_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "jit/error.h"

namespace weft {
namespace {

using nlohmann::json;

// Keys that say nothing about the mathematics.
const std::vector<std::string> kIgnoredKeys = {"architectures",
                                               "dtype",
                                               "torch_dtype",
                                               "transformers_version",
                                               "use_cache",
                                               "use_mambapy",
                                               "use_associative_scan",
                                               "model_type",
                                               "_name_or_path",
                                               "_attn_implementation_autoset",
                                               "fused_add_norm",
                                               "return_dict",
                                               "output_hidden_states",
                                               "output_attentions",
                                               "auto_map",
                                               "task_specific_params",
                                               "problem_type",
                                               "id2label",
                                               "label2id",
                                               "is_decoder",
                                               "is_encoder_decoder",
                                               "gradient_checkpointing",
                                               "n_positions",
                                               "type_vocab_size",
                                               "chunk_size_feed_forward",
                                               "pruned_heads",
                                               "tie_encoder_decoder",
                                               "use_bfloat16",
                                               "torchscript"};

constexpr double kLargestSize = 1 << 30;  // of one dimension: a product of two has 64 bits
constexpr double kMostParameters = 1e12;
constexpr std::int64_t kMostLayers = 10000;

// One JSON object, read key by key; every key asked for is known, every other one is an error at the end.
class ConfigReader {
 public:
  ConfigReader(const json& object, std::string name) : object_(object), name_(std::move(name)) {
    if (!object_.is_object()) bad("is not a JSON object", {});
  }

  const json* find(const std::string& key) {
    known_.insert(key);
    auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  void read(const std::string& key, std::int64_t& value) {
    const json* j = find(key);
    if (!j) return;
    if (!j->is_number_integer()) bad("an integer is expected", key + " = " + j->dump());
    value = j->get<std::int64_t>();
    if (std::abs(j->get<double>()) > kLargestSize) bad("no size is so large", key + " = " + j->dump());
  }
  void read(const std::string& key, double& value) {
    const json* j = find(key);
    if (!j) return;
    if (!j->is_number()) bad("a number is expected", key + " = " + j->dump());
    value = j->get<double>();
  }
  void read(const std::string& key, bool& value) {
    const json* j = find(key);
    if (!j) return;
    if (!j->is_boolean()) bad("true or false is expected", key + " = " + j->dump());
    value = j->get<bool>();
  }
  // A token's id; null or negative: none. Of a list (several tokens may end a text) the first.
  void read(const std::string& key, std::optional<std::int64_t>& value) {
    const json* j = find(key);
    if (j && j->is_array() && !j->empty()) j = &j->front();
    if (!j) return;
    if (!j->is_number_integer()) bad("a token's id is expected", key + " = " + j->dump());
    if (const auto id = j->get<std::int64_t>(); id >= 0) value = id;
  }
  // The rank of the step size: "auto" or an integer.
  void read_rank(const std::string& key, std::int64_t& value) {
    const json* j = find(key);
    if (j && *j == "auto") {
      value = 0;
    } else {
      read(key, value);
    }
  }
  // A key that may have one value only.
  void require(const std::string& key, const json& value) {
    const json* j = find(key);
    if (j && *j != value)
      bad("this model has no such feature", fmt::format("{} = {}; only {} is supported", key, j->dump(), value.dump()));
  }
  // A key that repeats another one.
  void same(const std::string& key, std::int64_t value) {
    std::int64_t other = value;
    read(key, other);
    if (other != value) bad("two keys contradict each other", fmt::format("{} = {}, elsewhere {}", key, other, value));
  }
  void ignore(const std::vector<std::string>& keys) { known_.insert(keys.begin(), keys.end()); }

  void need(const std::vector<std::string>& keys) const {
    std::string missing;
    for (const std::string& key : keys)
      if (!object_.contains(key)) missing += (missing.empty() ? "" : ", ") + key;
    if (!missing.empty())
      bad("size keys are missing", missing, "the defaults of the format fit no published model, so weft assumes none");
  }

  void reject_unknown() const {
    const std::vector<std::string> words(known_.begin(), known_.end());
    std::string unknown;
    int count = 0;
    for (const auto& [key, value] : object_.items())
      if (!known_.contains(key))
        ++count, unknown += (count > 1 ? ", " : "") + fmt::format("'{}'{}", key, suggestion(key, words));
    if (count)
      bad(count == 1 ? "unknown key" : "unknown keys", unknown,
          "what weft does not know may change the model; remove what does not");
  }

  [[noreturn]] void bad(const std::string& what, const std::string& numbers, std::string hint = {}) const {
    fail(ErrorKind::io, fmt::format("{}: {}", name_, what), numbers, std::move(hint));
  }

 private:
  const json& object_;
  std::string name_;
  std::set<std::string> known_;
};

// `key` = "random" or "constant".
void read_dt_init(ConfigReader& r, const std::string& key, bool& constant) {
  const json* j = r.find(key);
  if (!j) return;
  if (*j != "random" && *j != "constant") r.bad("\"random\" or \"constant\" is expected", key + " = " + j->dump());
  constant = *j == "constant";
}

// ssm_cfg of the original form: arguments of the mixer.
void read_ssm(const json& object, const std::string& name, MambaConfig& c) {
  ConfigReader r(object, name);
  r.read("d_state", c.state);
  r.read("d_conv", c.conv);
  r.read("expand", c.expand);
  r.read_rank("dt_rank", c.rank);
  r.read("dt_min", c.dt_min);
  r.read("dt_max", c.dt_max);
  r.read("dt_scale", c.dt_scale);
  r.read("dt_init_floor", c.dt_floor);
  read_dt_init(r, "dt_init", c.dt_constant);
  r.read("bias", c.bias);
  r.read("conv_bias", c.conv_bias);
  r.require("layer", "Mamba1");
  r.ignore({"use_fast_path"});
  r.reject_unknown();
}

void read_original(ConfigReader& r, const std::string& name, MambaConfig& c) {
  r.need({"d_model", "n_layer", "vocab_size"});
  c.vocab_padding = 8;
  r.read("d_model", c.width);
  r.read("n_layer", c.layers);
  r.read("vocab_size", c.vocab);
  r.read("pad_vocab_size_multiple", c.vocab_padding);
  r.read("tie_embeddings", c.tie);
  if (const json* ssm = r.find("ssm_cfg")) read_ssm(*ssm, name + ": ssm_cfg", c);
}

void read_hugging_face(ConfigReader& r, MambaConfig& c) {
  std::vector<std::string> sizes = {"hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel"};
  if (!r.find("intermediate_size")) sizes.push_back("expand");
  r.need(sizes);
  r.read("hidden_size", c.width);
  r.read("num_hidden_layers", c.layers);
  r.read("vocab_size", c.vocab);
  r.read("state_size", c.state);
  r.read("conv_kernel", c.conv);
  r.read("expand", c.expand);
  r.read("intermediate_size", c.inner);
  r.read_rank("time_step_rank", c.rank);
  r.read("use_bias", c.bias);
  r.read("use_conv_bias", c.conv_bias);
  r.read("layer_norm_epsilon", c.eps);
  r.read("tie_word_embeddings", c.tie);
  r.read("time_step_min", c.dt_min);
  r.read("time_step_max", c.dt_max);
  r.read("time_step_scale", c.dt_scale);
  r.read("time_step_floor", c.dt_floor);
  read_dt_init(r, "time_step_init_scheme", c.dt_constant);
  r.read("initializer_range", c.embedding_deviation);
  r.read("rescale_prenorm_residual", c.rescale_residual);
  r.require("hidden_act", "silu");
  r.require("activation_function", "silu");
  // Published files repeat sizes under the original names.
  r.same("d_model", c.width);
  r.same("n_layer", c.layers);
  r.same("d_inner", c.inner_width());
  if (const json* ssm = r.find("ssm_cfg")) {
    MambaConfig repeated = c;
    read_ssm(*ssm, "ssm_cfg", repeated);
    if (repeated.state != c.state || repeated.conv != c.conv || repeated.expand != c.expand)
      r.bad("ssm_cfg contradicts the other keys", ssm->dump());
  }
  r.ignore({"pad_vocab_size_multiple", "tie_embeddings"});
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
  std::string problems;
  const auto positive = [&](const char* name, std::int64_t value, std::int64_t least = 1) {
    if (value < least || double(value) > kLargestSize)
      problems += fmt::format("{}{} = {}", problems.empty() ? "" : ", ", name, value);
  };
  positive("vocab", vocab), positive("width", width), positive("layers", layers), positive("state", state);
  positive("conv", conv), positive("expand", expand), positive("inner", inner, 0), positive("rank", rank, 0);
  positive("vocab_padding", vocab_padding);
  if (!problems.empty())
    fail(ErrorKind::usage, "MambaConfig: sizes must be positive and at most 2^30", problems, "set width, layers and vocab");
  if (layers > kMostLayers || count_parameters<double>(*this) > kMostParameters)
    fail(ErrorKind::usage,
         fmt::format("MambaConfig: at most {} layers and {:g} parameters are supported", kMostLayers, kMostParameters),
         fmt::format("{} layers, {:g} parameters", layers, count_parameters<double>(*this)), "smaller sizes");
  if (state > 256) fail(ErrorKind::usage, "MambaConfig: a state of at most 256 is supported", fmt::format("{}", state));
  if (!(dt_min > 0 && dt_min <= dt_max && dt_floor > 0))
    fail(ErrorKind::usage, "MambaConfig: 0 < dt_min <= dt_max and 0 < dt_floor must hold",
         fmt::format("{}, {}, {}", dt_min, dt_max, dt_floor));
  if (!(eps >= 0 && eps < 1 && embedding_deviation >= 0 && std::isfinite(embedding_deviation + dt_max + dt_scale)))
    fail(ErrorKind::usage, "MambaConfig: 0 <= eps < 1 and 0 <= embedding_deviation must hold, and all be finite",
         fmt::format("eps {}, embedding_deviation {}, dt_max {}, dt_scale {}", eps, embedding_deviation, dt_max, dt_scale));
  if (dtype != DType::f32 && dtype != DType::f64)
    fail(ErrorKind::usage, "MambaConfig: parameters are f32 or f64", std::string(name_of(dtype)),
         "for bf16 activations set .activations");
}

MambaConfig mamba_config_from_json(const json& object, std::string_view name) {
  ConfigReader r(object, std::string(name));
  const bool hugging_face =
      object.contains("hidden_size") || object.contains("num_hidden_layers") || !object.contains("d_model");
  r.require("model_type", "mamba");
  r.require("rms_norm", true);
  r.require("d_intermediate", 0);
  r.require("attn_layer_idx", json::array());
  r.require("attn_cfg", json::object());
  MambaConfig c;
  r.read("residual_in_fp32", c.residual_in_fp32);
  r.read("bos_token_id", c.bos);
  r.read("eos_token_id", c.eos);
  r.read("pad_token_id", c.pad);
  if (hugging_face) {
    read_hugging_face(r, c);
  } else {
    read_original(r, std::string(name), c);
  }
  r.ignore(kIgnoredKeys);
  r.reject_unknown();
  try {
    c.check();
  } catch (const Error& e) {
    r.bad("the configuration makes no sense", e.parts().numbers, e.parts().what);
  }
  return c;
}

json to_hugging_face(const MambaConfig& c) {
  const auto id = [](const std::optional<std::int64_t>& token) { return token ? json(*token) : json(nullptr); };
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
          {"bos_token_id", id(c.bos)},  // null too: the format's default is token 0
          {"eos_token_id", id(c.eos)},
          {"pad_token_id", id(c.pad)},
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
