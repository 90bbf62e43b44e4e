#include "models/hymba_study_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "jit/error.h"
#include "jit/json.h"
#include "models/config_reader.h"

namespace weft {
namespace {

using nlohmann::json;

constexpr std::array<std::pair<std::string_view, BlockStyle>, 3> kStyles = {
    {{"either_or", BlockStyle::either_or},
     {"parallel_split", BlockStyle::parallel_split},
     {"parallel_average", BlockStyle::parallel_average}}};

// The parts of a layer. A Mamba mixer is a Mamba block without its norm.
template <class Number>
struct StudyCount {
  const HymbaStudyConfig& c;
  Number d = Number(c.width), m = Number(c.mixer_width());

  Number attention(bool own_keys) const {
    const Number groups = Number(c.kv_heads) * m / Number(c.heads);
    return 2 * m * m + (own_keys ? 2 * m * groups : 0);
  }
  Number mamba() const {
    const MambaConfig k = c.mamba();
    const Number i = Number(k.inner_width()), r = Number(k.dt_rank()), n = Number(k.state);
    return 3 * i * m + i * Number(k.conv) + i + i * (r + 2 * n) + r * i + i + i * n + i;
  }
  Number mixer(char kind, bool own_keys) const {
    switch (c.style()) {
      case BlockStyle::either_or:
        return (kind == 'M' ? mamba() : attention(own_keys)) + (c.wrap_projections ? 2 * d * d : 0);
      case BlockStyle::parallel_split:
        return attention(own_keys) + mamba() + 4 * d * m + 1;
      case BlockStyle::parallel_average:
        return attention(own_keys) + mamba();
    }
    return 0;
  }
  Number total(const std::vector<std::int64_t>& producers) const {
    Number sum = (c.tie ? 1 : 2) * Number(c.vocab) * d + Number(c.meta_tokens) * d + d;
    for (std::size_t l = 0; l < c.layer_kinds.size(); ++l)
      sum += mixer(c.layer_kinds[l], producers[l] == std::int64_t(l) || c.keep_consumer_kv) + 3 * d * Number(c.mlp_width()) +
             2 * d;
    return sum;
  }
};

void check_study_sizes(const HymbaStudyConfig& c) {
  check_config_sizes("HymbaStudyConfig",
                     {{"vocab", c.vocab},
                      {"width", c.width},
                      {"layers", c.layers()},
                      {"heads", c.heads},
                      {"kv_heads", c.kv_heads},
                      {"window", c.window},
                      {"state", c.state},
                      {"conv", c.conv},
                      {"expand", c.expand},
                      {"hidden", c.hidden, 0},
                      {"meta_tokens", c.meta_tokens, 0},
                      {"kv_group_max", c.kv_group_max, 0}},
                     {});
  check_config_total("HymbaStudyConfig", c.layers(), StudyCount<double>{c}.total(c.producers()));
}

void check_layers(const HymbaStudyConfig& c) {
  const bool mamba = c.layer_kinds.find('M') != LayerKinds::npos;
  if (c.layer_kinds.find_first_not_of("GLM") != LayerKinds::npos || (mamba && c.style() != BlockStyle::either_or))
    fail(ErrorKind::usage, "HymbaStudyConfig: layer_kinds has other letters than those of the style",
         fmt::format("'{}', block_style {}", c.layer_kinds, c.block_style),
         "G: global attention, L: local attention; in either_or also M: a Mamba mixer instead");
}

void check_study_heads(const HymbaStudyConfig& c) {
  if (c.style() == BlockStyle::parallel_split && c.width % 2 != 0)
    fail(ErrorKind::usage, "HymbaStudyConfig: parallel_split halves the width", fmt::format("width {}", c.width));
  if (c.heads % c.kv_heads != 0 || c.mixer_width() % (2 * c.heads) != 0)
    fail(ErrorKind::usage, "HymbaStudyConfig: the heads do not fit",
         fmt::format("{} heads, {} kv_heads, attention of width {}", c.heads, c.kv_heads, c.mixer_width()),
         "kv_heads divide heads, and a head has an even number of features");
}

}  // namespace

BlockStyle HymbaStudyConfig::style() const {
  for (const auto& [word, style] : kStyles)
    if (word == block_style) return style;
  std::vector<std::string> words;
  for (const auto& style : kStyles) words.emplace_back(style.first);
  fail_unknown("HymbaStudyConfig: unknown block_style", block_style, words);
}

MambaConfig HymbaStudyConfig::mamba() const {
  return {.vocab = vocab,
          .width = mixer_width(),
          .layers = layers(),
          .state = state,
          .conv = conv,
          .expand = expand,
          .rescale_residual = false,
          .dtype = dtype,
          .activations = activations};
}

std::vector<std::int64_t> HymbaStudyConfig::producers() const {
  return kv_producers(layer_kinds, share_kv ? kv_sharing_groups(layer_kinds, kv_group_max) : LayerGroups{});
}

std::int64_t HymbaStudyConfig::parameter_count() const { return StudyCount<std::int64_t>{*this}.total(producers()); }

void HymbaStudyConfig::check() const {
  style();
  check_study_sizes(*this);
  check_layers(*this);
  check_study_heads(*this);
  mamba().check();
  if (!(eps >= 0 && eps < 1 && deviation >= 0 && std::isfinite(deviation) && rope_base > 0 && std::isfinite(rope_base)))
    fail(ErrorKind::usage, "HymbaStudyConfig: 0 <= eps < 1, 0 <= deviation and 0 < rope_base must hold, and all be finite",
         fmt::format("eps {}, deviation {}, rope_base {}", eps, deviation, rope_base));
}

// ---- the models -------------------------------------------------------------------------------------------------------------

HymbaStudyConfig study_model(std::string_view name, bool table) {
  HymbaStudyConfig c{.keep_consumer_kv = table};
  if (name == "hybrid_paper" || (name == "hybrid_50_50" && table)) return c;
  c.block_style = "either_or";
  if (name == "mamba_only") {
    c.layer_kinds = "MMMMMMMMMMMMMMM", c.meta_tokens = 0;
  } else if (name == "transformer_global") {
    c.layer_kinds = "GGGGGGGGGGGGGGG";
  } else if (name == "transformer_local") {
    c.layer_kinds = "LLLLLLLLLLLLLLL";
  } else if (name == "hybrid_50_50") {
    c.layer_kinds = "GMLMLMLGLMLMLMG", c.wrap_projections = false;
  } else {
    const std::vector<std::string> names = {"mamba_only", "transformer_global", "transformer_local", "hybrid_50_50",
                                            "hybrid_paper"};
    fail_unknown("study_model: there is no model", name, names);
  }
  return c;
}

HymbaStudyConfig bench_model() { return {.block_style = "parallel_average", .share_kv = false, .tie = false}; }

// ---- config.json ------------------------------------------------------------------------------------------------------------

HymbaStudyConfig hymba_study_config_from_json(const json& object, std::string_view name) {
  ConfigReader r(object, name);
  r.require("model_type", "hymba_study");
  r.throw_problems();  // another model's keys would all be wrong
  HymbaStudyConfig c;
  const auto word = [&](const std::string& key, std::string& value) {
    const json* j = r.find(key);
    if (j && !j->is_string()) return r.problem("a word is expected", key + " = " + text_of(*j));
    if (j) value = j->get<std::string>();
  };
  r.need({"vocab_size", "hidden_size", "intermediate_size", "layer_kinds", "block_style", "num_attention_heads",
          "num_key_value_heads", "num_memory_tokens", "sliding_window"});
  word("layer_kinds", c.layer_kinds), word("block_style", c.block_style);
  r.read<HymbaStudyConfig>(c, {{"vocab_size", &HymbaStudyConfig::vocab},
                               {"hidden_size", &HymbaStudyConfig::width},
                               {"intermediate_size", &HymbaStudyConfig::hidden},
                               {"num_attention_heads", &HymbaStudyConfig::heads},
                               {"num_key_value_heads", &HymbaStudyConfig::kv_heads},
                               {"num_memory_tokens", &HymbaStudyConfig::meta_tokens},
                               {"sliding_window", &HymbaStudyConfig::window},
                               {"window_inclusive", &HymbaStudyConfig::window_inclusive},
                               {"wrap_projections", &HymbaStudyConfig::wrap_projections},
                               {"share_kv", &HymbaStudyConfig::share_kv},
                               {"kv_group_max", &HymbaStudyConfig::kv_group_max},
                               {"keep_consumer_kv", &HymbaStudyConfig::keep_consumer_kv},
                               {"mamba_d_state", &HymbaStudyConfig::state},
                               {"mamba_d_conv", &HymbaStudyConfig::conv},
                               {"mamba_expand", &HymbaStudyConfig::expand},
                               {"tie_word_embeddings", &HymbaStudyConfig::tie},
                               {"rms_norm_eps", &HymbaStudyConfig::eps},
                               {"rope_theta", &HymbaStudyConfig::rope_base},
                               {"initializer_range", &HymbaStudyConfig::deviation},
                               {"bos_token_id", &HymbaStudyConfig::bos},
                               {"eos_token_id", &HymbaStudyConfig::eos},
                               {"pad_token_id", &HymbaStudyConfig::pad}});
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

json hymba_study_config_to_json(const HymbaStudyConfig& c) {
  return {{"model_type", "hymba_study"},
          {"vocab_size", c.vocab},
          {"hidden_size", c.width},
          {"intermediate_size", c.mlp_width()},
          {"layer_kinds", c.layer_kinds},
          {"block_style", c.block_style},
          {"num_attention_heads", c.heads},
          {"num_key_value_heads", c.kv_heads},
          {"num_memory_tokens", c.meta_tokens},
          {"sliding_window", c.window},
          {"window_inclusive", c.window_inclusive},
          {"wrap_projections", c.wrap_projections},
          {"share_kv", c.share_kv},
          {"kv_group_max", c.kv_group_max},
          {"keep_consumer_kv", c.keep_consumer_kv},
          {"mamba_d_state", c.state},
          {"mamba_d_conv", c.conv},
          {"mamba_expand", c.expand},
          {"tie_word_embeddings", c.tie},
          {"rms_norm_eps", c.eps},
          {"rope_theta", c.rope_base},
          {"initializer_range", c.deviation},
          {"bos_token_id", token_json(c.bos)},
          {"eos_token_id", token_json(c.eos)},
          {"pad_token_id", token_json(c.pad)}};
}

}  // namespace weft
