// The decoder-only Transformer: sizes, configurations, rotary positions, checkpoints, golden values. What every family of
// models has in common, caches and generation, is in test_generate.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/evaluate/verify.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kReferences = fs::path(WEFT_SOURCE_DIR) / "tests" / "golden";

TransformerConfig little() {
  return {.vocab = 50, .width = 24, .layers = 2, .heads = 4, .kv_heads = 2, .head = 8, .hidden = 40, .deviation = 0.3};
}

std::vector<std::int64_t> tokens(std::size_t n) {
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(std::int64_t((i * 17 + i * i * 5 + 3) % 50));
  return ids;
}

std::vector<double> logits_for(Transformer& model, const std::vector<std::int64_t>& ids) {
  return run([&] { return model(Tensor::from(ids, {1, std::int64_t(ids.size())})); }).to_host<double>();
}

double farthest(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) d = std::max(d, std::abs(a[i] - b[i]));
  return d;
}

// ---- sizes ------------------------------------------------------------------------------------------------------------------

TEST(Transformer, ParameterCountsOfPublishedModels) {
  const TransformerConfig llama2{.vocab = 32000, .width = 4096, .layers = 32, .heads = 32, .kv_heads = 32, .hidden = 11008};
  const TransformerConfig llama3{.vocab = 128256, .width = 4096, .layers = 32, .heads = 32, .kv_heads = 8, .hidden = 14336};
  const TransformerConfig mistral{
      .vocab = 32000, .width = 4096, .layers = 32, .heads = 32, .kv_heads = 8, .hidden = 14336, .window = 4096};
  const TransformerConfig qwen2{
      .vocab = 151936, .width = 896, .layers = 24, .heads = 14, .kv_heads = 2, .hidden = 4864, .qkv_bias = true, .tie = true};
  const TransformerConfig qwen3{.vocab = 151936,
                                .width = 1024,
                                .layers = 28,
                                .heads = 16,
                                .kv_heads = 8,
                                .head = 128,
                                .hidden = 3072,
                                .qk_norm = true,
                                .tie = true};
  EXPECT_EQ(llama2.parameter_count(), 6738415616);
  EXPECT_EQ(llama3.parameter_count(), 8030261248);
  EXPECT_EQ(mistral.parameter_count(), 7241732096);
  EXPECT_EQ(qwen2.parameter_count(), 494032768);
  EXPECT_EQ(qwen3.parameter_count(), 596049920);
}

// The model of the recorded comparisons, as its parts add up.
TEST(Transformer, TheBenchPresetHasItsSize) {
  const ModelFamily& family = model_family("transformer");
  TransformerConfig c{.vocab = 4000, .width = 512, .layers = 15, .heads = 8, .kv_heads = 4, .hidden = 2048};
  EXPECT_EQ(c.parameter_count(), 2 * 4000 * 512 + 15 * (512 * (512 + 2 * 256) + 512 * 512 + 3 * 512 * 2048 + 2 * 512) + 512);
  ASSERT_NE(family.preset("bench"), nullptr);
  ModelOptions options;
  for (const auto& [name, value] : family.preset("bench")->settings)
    for (const ModelOption& o : family.options)
      if (name == o.name)
        options[name] =
            std::holds_alternative<bool>(o.fallback) ? OptionValue(value == "true") : OptionValue(std::stoll(value));
  EXPECT_EQ(family.from_options(options, {.size = 4000}, {})->parameter_count(), c.parameter_count());
}

TEST(Transformer, CountsAgreeWithRealModels) {
  TransformerConfig c = little();
  EXPECT_EQ(Transformer(c).parameter_count(), c.parameter_count());
  c.tie = c.qkv_bias = c.out_bias = c.mlp_bias = c.qk_norm = true;
  EXPECT_EQ(Transformer(c).parameter_count(), c.parameter_count());
  const TransformerConfig plain{.vocab = 50, .width = 24, .layers = 1, .heads = 3};
  EXPECT_EQ(Transformer(plain).parameter_count(), plain.parameter_count());
}

TEST(Transformer, CountsItsArithmetic) {
  TransformerConfig c = little();
  const double products = 2 * (2.0 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 40) * 2 + 2 * 50 * 24;  // q and o, k and v, the MLP; head
  EXPECT_DOUBLE_EQ(Transformer(c).flops_per_token(10), products + 2 * 4 * 5.5 * 4 * 8);
  c.window = 4;  // 1, 2, 3, then 4 keys
  EXPECT_DOUBLE_EQ(Transformer(c).flops_per_token(10), products + 2 * 4 * 3.4 * 4 * 8);
  EXPECT_DOUBLE_EQ(mean_visible({.window = 128, .meta = 64}, 256), 160.25);
  EXPECT_DOUBLE_EQ(mean_visible({.meta = 64}, 256), 192.5);
}

TEST(Transformer, CacheBytesOfAWindowAreThoseOfTheWindow) {
  TransformerConfig c = little();
  c.window = 100, c.windowed = {false, true};
  const CacheBytes bytes = Transformer(c).cache_bytes(300);
  EXPECT_EQ(bytes.attention, (300 + 100) * 2 * (8 + 8) * 4);
  EXPECT_EQ(bytes.attention_global, 2 * 300 * 2 * (8 + 8) * 4);
  EXPECT_EQ(bytes.states, 0);
  EXPECT_EQ(bytes.layers, 2);
  EXPECT_NE(to_text(bytes, 300).find("51.2 kB in 2 caches of 2 layers, 1.50 times less"), std::string::npos)
      << to_text(bytes, 300);
  // Hymba-1.5B after 8192 tokens, in two bytes each: what its published 79 MB are made of.
  const AttentionSizes global{.groups = 5, .key = 64, .value = 128, .meta = 128},
      local{.groups = 5, .key = 64, .value = 128, .window = 1024, .meta = 128};
  EXPECT_NEAR(2 * 3 * cached_elements(global, 8192) * 1e-6, 47.92, 0.01);
  EXPECT_NEAR(2 * 14 * cached_elements(local, 8192) * 1e-6, 30.97, 0.01);
}

TEST(Transformer, InitialValuesAndDecay) {
  TransformerConfig c = little();
  c.deviation = 0.02, c.qkv_bias = c.qk_norm = true;
  for (const NamedParam& p : Transformer(c).named_parameters()) {
    const bool matrix = p.param.shape().rank() == 2;
    EXPECT_EQ(p.param.decay(), matrix) << p.name;
    double square = 0;
    const auto values = p.param.to_host<double>();
    for (double v : values) square += v * v / double(values.size());
    if (matrix) {
      EXPECT_NEAR(std::sqrt(square), 0.02, 0.003) << p.name;
    }
    if (p.name.ends_with("bias")) {
      EXPECT_EQ(square, 0) << p.name;
    }
    if (p.name.ends_with("norm.weight")) {
      EXPECT_EQ(values[1], 1) << p.name;
    }
  }
}

// ---- rotary positions -------------------------------------------------------------------------------------------------------

TEST(Rope, AnglesOfTheScalings) {
  const std::vector<double> plain = rope_angles({}, 64, 10);
  EXPECT_EQ(plain.size(), 32u);
  EXPECT_DOUBLE_EQ(plain[0], 1);
  EXPECT_DOUBLE_EQ(plain[16], 0.01);
  EXPECT_DOUBLE_EQ(rope_angles({.scaling = RopeScaling::linear, .factor = 4}, 64, 10)[16], 0.0025);
  const RopeOptions dynamic{.scaling = RopeScaling::dynamic, .factor = 2, .trained = 2048};
  EXPECT_EQ(rope_angles(dynamic, 64, 2048), plain);
  EXPECT_NEAR(rope_angles(dynamic, 64, 8192)[16] * rope_angles(dynamic, 64, 8192)[16], 1 / 74534.83, 1e-11);
}

// Values of Llama 3.1 by the published formula, in double.
// A table for fewer places, or for keys of another size, whose pairs would turn by other angles.
TEST(Rope, ATableThatDoesNotFitIsAnError) {
  const Rope rope({}, 16, DType::f32);
  const auto attended = [&](std::int64_t t, std::int64_t features, const RopeTable& table) {
    const Tensor x = zeros({1, t, 1, features});
    return run([&] {
      AttentionPass pass{.count = t, .rope = table};
      return attend(x, {.k = x, .v = x}, pass);
    });
  };
  EXPECT_EQ(attended(300, 16, rope.table(300)).shape(), (Shape{1, 300, 1, 16}));
  expect_error(ErrorKind::usage,
               {"the table of rotary positions does not fit", "256 places of 16 features; the pass has 300 of 16"},
               [&] { attended(300, 16, Rope({}, 16, DType::f32).table(200)); });
  for (const std::int64_t features : {8, 32})
    expect_error(ErrorKind::usage, {"the table of rotary positions does not fit"},
                 [&] { attended(5, features, rope.table(5)); });
}

TEST(Rope, OptionsThatMakeNoSenseAreErrors) {
  for (const RopeOptions& o : {RopeOptions{.base = 0}, RopeOptions{.base = NAN}, RopeOptions{.factor = -1}})
    expect_error(ErrorKind::usage, {"Rope: an even number of features, and a base and a factor above 0"},
                 [&] { Rope(o, 16, DType::f32); });
  expect_error(ErrorKind::usage, {"15 features"}, [] { Rope({}, 15, DType::f32); });
}

TEST(Rope, Llama3SlowsTheSlowPairs) {
  const RopeOptions o{.base = 5e5, .scaling = RopeScaling::llama3, .factor = 8, .trained = 8192, .low = 1, .high = 4};
  const std::vector<double> angles = rope_angles(o, 128, 100);
  const std::pair<int, double> expected[] = {{0, 1.0},
                                             {28, 0.0032114459947525913},
                                             {29, 0.002166570763503359},
                                             {32, 0.0005248461609929547},
                                             {34, 0.00017850781276799638},
                                             {35, 9.556212353964683e-05},
                                             {63, 3.068925988914511e-07}};
  for (const auto& [p, angle] : expected) EXPECT_NEAR(angles[std::size_t(p)] / angle, 1, 1e-12) << p;
}

// ---- configurations ---------------------------------------------------------------------------------------------------------

json llama_json() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": [2, 3], "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
    "intermediate_size": 64, "max_position_embeddings": 128, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": null, "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0", "use_cache": true, "vocab_size": 100})");
}

json qwen_json(const char* type) {
  json j = llama_json();
  j["model_type"] = type;
  j["head_dim"] = 8;
  for (const char* key : {"mlp_bias", "pretraining_tp", "attention_bias"}) j.erase(key);
  j.update({{"use_sliding_window", false}, {"sliding_window", 16}, {"max_window_layers", 1}});
  return j;
}

TEST(TransformerConfig, ReadsTheKinds) {
  const TransformerConfig llama = transformer_config_from_json(llama_json());
  EXPECT_EQ(llama.heads, 4);
  EXPECT_EQ(llama.groups(), 2);
  EXPECT_EQ(llama.head_size(), 8);
  EXPECT_EQ(llama.rope.base, 500000);
  EXPECT_EQ(llama.eos, (std::vector<std::int64_t>{2, 3}));
  EXPECT_FALSE(llama.qkv_bias || llama.qk_norm || llama.window);
  json biased = llama_json();
  biased["attention_bias"] = biased["mlp_bias"] = true;
  const TransformerConfig all = transformer_config_from_json(biased);
  EXPECT_TRUE(all.qkv_bias && all.out_bias && all.mlp_bias);

  json mistral = qwen_json("mistral");
  for (const char* key : {"use_sliding_window", "max_window_layers"}) mistral.erase(key);
  EXPECT_EQ(transformer_config_from_json(mistral).window, 16);
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(transformer_config_from_json(mistral).window, 0);

  const TransformerConfig qwen2 = transformer_config_from_json(qwen_json("qwen2"));
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.out_bias && !qwen2.qk_norm);
  const TransformerConfig qwen3 = transformer_config_from_json(qwen_json("qwen3"));
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.qkv_bias);
  EXPECT_EQ(qwen3.window, 0);  // use_sliding_window is false
}

TEST(TransformerConfig, LayersOfQwenHaveWindowsFromOneOnOrByName) {
  json j = qwen_json("qwen3");
  j["use_sliding_window"] = true;
  const TransformerConfig from_one = transformer_config_from_json(j);
  EXPECT_EQ(from_one.window_of(0), 0);
  EXPECT_EQ(from_one.window_of(1), 16);
  j["layer_types"] = {"sliding_attention", "full_attention"};
  const TransformerConfig named = transformer_config_from_json(j);
  EXPECT_EQ(named.window_of(0), 16);
  EXPECT_EQ(named.window_of(1), 0);
  j["layer_types"] = {"sliding_attention"};
  expect_error(ErrorKind::io, {"layer_types has another number of layers", "1, elsewhere 2"},
               [&] { transformer_config_from_json(j); });
  j["layer_types"] = {"sliding_attention", "chunked_attention"};
  expect_error(ErrorKind::io, {"no such layer", "chunked_attention"}, [&] { transformer_config_from_json(j); });
  j["layer_types"] = {"sliding_attention", "full_attention"}, j["use_sliding_window"] = false;
  expect_error(ErrorKind::io, {"layers have a window, but its size is not given"}, [&] { transformer_config_from_json(j); });
}

TEST(TransformerConfig, ReadsTheScalingsOfBothForms) {
  json j = llama_json();
  j["rope_scaling"] = {{"factor", 8.0},
                       {"high_freq_factor", 4.0},
                       {"low_freq_factor", 1.0},
                       {"original_max_position_embeddings", 8192},
                       {"rope_type", "llama3"}};
  const RopeOptions llama3 = transformer_config_from_json(j).rope;
  EXPECT_EQ(llama3.scaling, RopeScaling::llama3);
  EXPECT_EQ(llama3.trained, 8192);
  EXPECT_EQ(llama3.base, 500000);
  j["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  const TransformerConfig linear = transformer_config_from_json(j);
  EXPECT_EQ(linear.rope.scaling, RopeScaling::linear);
  EXPECT_EQ(linear.longest(), 512);
  j.erase("rope_scaling"), j.erase("rope_theta");
  j["rope_parameters"] = {{"rope_type", "dynamic"}, {"factor", 2.0}, {"rope_theta", 1234.0}};
  const RopeOptions dynamic = transformer_config_from_json(j).rope;
  EXPECT_EQ(dynamic.scaling, RopeScaling::dynamic);
  EXPECT_EQ(dynamic.trained, 128);
  EXPECT_EQ(dynamic.base, 1234);
}

// A file that weft writes has both forms: who edits one of them must not change nothing.
TEST(TransformerConfig, FormsOfTheRotaryPositionsThatContradictEachOtherAreRefused) {
  TransformerConfig c = little();
  for (const RopeScaling scaling : {RopeScaling::none, RopeScaling::linear, RopeScaling::dynamic, RopeScaling::llama3}) {
    c.rope = {.scaling = scaling, .factor = 2, .trained = 8192};
    if (scaling == RopeScaling::none || scaling == RopeScaling::linear) c.rope.trained = 0, c.rope.factor = 1;
    const json written = transformer_config_to_json(c);
    EXPECT_EQ(transformer_config_from_json(written).rope.scaling, scaling);
    std::vector<json> edited(2, written);
    edited[0]["rope_theta"] = 5e5;
    edited[1]["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 3.0}};
    for (const json& j : edited)
      expect_error(ErrorKind::io, {"two keys contradict each other", "rope_parameters", "rope_theta or rope_scaling"},
                   [&] { transformer_config_from_json(j); });
  }
}

TEST(TransformerConfig, ASizeThatIsNullIsMissing) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size",
                          "max_position_embeddings"}) {
    json j = transformer_config_to_json(little());
    j[key] = nullptr;
    expect_error(ErrorKind::io, {"size keys are missing", key}, [&] { transformer_config_from_json(j); });
  }
  json j = transformer_config_to_json(little());  // null says: as many as heads, width / heads
  j["num_key_value_heads"] = nullptr, j["head_dim"] = nullptr;
  EXPECT_EQ(transformer_config_from_json(j).groups(), 4);
  EXPECT_EQ(transformer_config_from_json(j).head_size(), 6);
}

TEST(TransformerConfig, RefusesWhatItDoesNotKnow) {
  const auto refused = [](const std::vector<std::string>& words, const json& changes) {
    json j = llama_json();
    j.update(changes);
    expect_error(ErrorKind::io, words, [&] { transformer_config_from_json(j); });
  };
  refused({"a scaling of positions that is not known", "rope_type = \"yarn\"", "\"linear\""},
          {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", 32.0}}}});
  refused({"a scaling of positions that is not known", "\"longrope\""},
          {{"rope_parameters", {{"rope_type", "longrope"}, {"short_factor", {1.0}}, {"rope_theta", 1e4}}}});
  refused({"size keys are missing", "factor"}, {{"rope_scaling", {{"type", "linear"}}}});
  refused({"partial_rotary_factor = 0.5"}, {{"partial_rotary_factor", 0.5}});
  refused({"hidden_act = \"gelu\"", "\"silu\""}, {{"hidden_act", "gelu"}});
  refused({"attention_dropout = 0.1"}, {{"attention_dropout", 0.1}});
  refused(
      {
          "unknown key",
          "num_expert",
      },
      {{"num_expert", 8}});
  refused({"unknown key", "sliding_window"}, {{"sliding_window", 8}});
  refused({"the width does not divide into the heads", "width 32, 5 heads"}, {{"num_attention_heads", 5}});
  refused({"heads = 0"}, {{"num_attention_heads", 0}});
  refused({"4 heads, 3 of keys and values"}, {{"num_key_value_heads", 3}});
  refused({"rotated in pairs", "a head of 7"}, {{"head_dim", 7}});
  refused({"base 0"}, {{"rope_theta", 0.0}});
  json bare = llama_json();
  bare.erase("max_position_embeddings");
  expect_error(ErrorKind::io, {"size keys are missing: max_position_embeddings"}, [&] { transformer_config_from_json(bare); });
}

TEST(TransformerConfig, WhatIsWrittenIsReadAgain) {
  const auto same = [](const TransformerConfig& c, const char* kind) {
    const json j = transformer_config_to_json(c);
    EXPECT_EQ(j.at("model_type"), kind);
    EXPECT_EQ(transformer_config_to_json(transformer_config_from_json(j)), j);
  };
  TransformerConfig c = little();
  same(c, "llama");
  c.qkv_bias = c.out_bias = c.mlp_bias = c.tie = true, c.eos = {3};
  c.rope = {.base = 77, .scaling = RopeScaling::llama3, .factor = 2, .trained = 64, .low = 1, .high = 3};
  same(c, "llama");
  c = little(), c.window = 9, c.rope.scaling = RopeScaling::linear, c.rope.factor = 2;
  same(c, "mistral");
  c = little(), c.qkv_bias = true, c.window = 9, c.windowed = {true, false};
  same(c, "qwen2");
  c = little(), c.qk_norm = true, c.window = 9;
  same(c, "qwen3");
  c.mlp_bias = true;
  expect_error(ErrorKind::usage, {"no kind of Hugging Face has these features", "qk_norm true"},
               [&] { transformer_config_to_json(c); });
}

TEST(TransformerConfig, SizesThatMakeNoSense) {
  const auto refused = [](const std::vector<std::string>& words, TransformerConfig c) {
    expect_error(ErrorKind::usage, words, [&] { Transformer{c}; });
  };
  refused({"vocab = 0", "width = 0", "layers = 0"}, {.vocab = 0});
  TransformerConfig c = little();
  c.heads = 0;
  refused({"heads = 0"}, c);
  c = little(), c.head = 0, c.heads = 5;
  refused({"the width does not divide into the heads", "width 24, 5 heads"}, c);
  c = little(), c.kv_heads = 3;
  refused({"4 heads, 3 of keys and values"}, c);
  c = little(), c.windowed = {true}, c.window = 3;
  refused({"1 entries, 2 layers"}, c);
  c = little(), c.context = 0;
  refused({"context = 0"}, c);
  c = little(), c.layers = 20000;
  refused({"20000 layers"}, c);
  for (const RopeScaling scaling : {RopeScaling::dynamic, RopeScaling::llama3}) {
    c = little(), c.rope = {.scaling = scaling, .factor = 2};
    refused({"needs the context that the model was trained with", "rope.trained 0"}, c);
  }
  for (const RopeScaling scaling : {RopeScaling::linear, RopeScaling::dynamic}) {
    c = little(), c.rope = {.scaling = scaling, .factor = 1e30, .trained = 64};
    refused({"the scaled context is larger than 2^30", "factor 1e+30"}, c);
  }
}

// ---- the mathematics --------------------------------------------------------------------------------------------------------

// One text on the host in double, from the weights by name: every query looks at every key.
class PlainTransformer {
 public:
  explicit PlainTransformer(const Transformer& model) : c_(model.config()) {
    for (const auto& [name, tensor] : model.state_dict()) w_[name] = tensor.values<double>();
  }

  std::vector<double> logits(const std::vector<std::int64_t>& ids) const {
    std::vector<Row> x;
    const Row& table = w_.at("model.embed_tokens.weight");
    for (std::int64_t id : ids) x.emplace_back(table.begin() + id * c_.width, table.begin() + (id + 1) * c_.width);
    for (std::int64_t l = 0; l < c_.layers; ++l) {
      const std::string layer = "model.layers." + std::to_string(l) + ".";
      std::vector<Row> h = x;
      for (Row& r : h) r = normed(r, layer + "input_layernorm.weight");
      const std::vector<Row> a = attention_of(h, layer + "self_attn.", l);
      for (std::size_t t = 0; t < x.size(); ++t) add(x[t], a[t]);
      for (Row& r : x) add(r, mlp_of(normed(r, layer + "post_attention_layernorm.weight"), layer + "mlp."));
    }
    Row all;
    for (const Row& r : x) {
      const Row y = product(normed(r, "model.norm.weight"), c_.tie ? "model.embed_tokens" : "lm_head");
      all.insert(all.end(), y.begin(), y.end());
    }
    return all;
  }

 private:
  using Row = std::vector<double>;

  static void add(Row& x, const Row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  Row normed(const Row& x, const std::string& name) const {
    double square = 0;
    for (double v : x) square += v * v / double(x.size());
    Row y = x;
    for (std::size_t i = 0; i < y.size(); ++i) y[i] *= w_.at(name)[i] / std::sqrt(square + c_.eps);
    return y;
  }
  Row product(const Row& x, const std::string& name) const {
    const Row& weight = w_.at(name + ".weight");
    const std::size_t out = weight.size() / x.size();
    Row y(out);
    if (const auto bias = w_.find(name + ".bias"); bias != w_.end()) y = bias->second;
    for (std::size_t o = 0; o < out; ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
    return y;
  }
  Row mlp_of(const Row& x, const std::string& name) const {
    Row gate = product(x, name + "gate_proj");
    const Row up = product(x, name + "up_proj");
    for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
    return product(gate, name + "down_proj");
  }
  // The heads of one token, normed and rotated.
  std::vector<Row> heads_of(const Row& all, std::size_t place, const std::string& norm) const {
    const auto n = std::size_t(c_.head_size());
    std::vector<Row> heads;
    for (std::size_t begin = 0; begin < all.size(); begin += n) {
      Row h(all.begin() + std::ptrdiff_t(begin), all.begin() + std::ptrdiff_t(begin + n));
      if (c_.qk_norm) h = normed(h, norm + ".weight");
      const bool halves = c_.rope.pairing == Pairing::halves;
      for (std::size_t p = 0; p < n / 2; ++p) {
        const double angle = double(place) * std::pow(c_.rope.base, -2 * double(p) / double(n));
        double &a = h[halves ? p : 2 * p], &b = h[halves ? p + n / 2 : 2 * p + 1];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle), a = turned;
      }
      heads.push_back(h);
    }
    return heads;
  }
  std::vector<Row> attention_of(const std::vector<Row>& x, const std::string& name, std::int64_t layer) const {
    const auto n = std::size_t(c_.head_size()), share = std::size_t(c_.heads / c_.groups());
    const std::int64_t window = c_.window_of(layer);
    std::vector<std::vector<Row>> q, k;
    std::vector<Row> v, results;
    for (std::size_t t = 0; t < x.size(); ++t) {
      q.push_back(heads_of(product(x[t], name + "q_proj"), t, name + "q_norm"));
      k.push_back(heads_of(product(x[t], name + "k_proj"), t, name + "k_norm"));
      v.push_back(product(x[t], name + "v_proj"));
      Row all;
      for (std::size_t h = 0; h < q[t].size(); ++h) {
        Row y(n);
        double total = 0;
        for (std::size_t s = 0; s <= t; ++s) {
          if (window > 0 && std::int64_t(t - s) >= window) continue;
          double score = 0;
          for (std::size_t i = 0; i < n; ++i) score += q[t][h][i] * k[s][h / share][i] / std::sqrt(double(n));
          total += std::exp(score);
          for (std::size_t i = 0; i < n; ++i) y[i] += std::exp(score) * v[s][h / share * n + i];
        }
        for (double value : y) all.push_back(value / total);
      }
      results.push_back(product(all, name + "o_proj"));
    }
    return results;
  }

  TransformerConfig c_;
  std::map<std::string, Row> w_;
};

TEST(Transformer, EqualsThePlainFormulasInDouble) {
  if (device() != Device::cpu) GTEST_SKIP() << "fp64";
  TransformerConfig c = little();
  c.dtype = DType::f64;
  std::vector<TransformerConfig> all(5, c);
  all[1].window = 3, all[1].windowed = {true, false}, all[1].kv_heads = 1;
  all[2].qkv_bias = all[2].out_bias = all[2].mlp_bias = all[2].tie = true;
  all[3].qk_norm = true, all[3].window = 5, all[3].kv_heads = 4;
  all[4].rope = {.base = 100, .pairing = Pairing::neighbours};
  for (std::size_t i = 0; i < all.size(); ++i) {
    Transformer model(all[i]);
    for (const NamedParam& p : model.named_parameters()) {  // biases and norms that are not what they begin with
      std::vector<double> values = p.param.to_host<double>();
      for (std::size_t e = 0; e < values.size(); ++e) values[e] += p.param.shape().rank() == 1 ? 0.1 * std::sin(double(e)) : 0;
      Param(p.param).set(values);
    }
    const auto ids = tokens(11);
    EXPECT_LT(farthest(logits_for(model, ids), PlainTransformer(model).logits(ids)), 1e-10) << i;
  }
}

TEST(Transformer, AttentionMaps) {
  TransformerConfig config = little();
  config.layers = 3, config.window = 5, config.windowed = {true, false, true};
  Transformer model(config);
  constexpr std::int64_t kTokens = 9, kHeads = 4;
  const auto maps = run([&] { return model.attention_maps(Tensor::from(tokens(kTokens), {1, kTokens}), {2, 1}); });
  ASSERT_EQ(maps.size(), 2u);
  for (std::size_t m = 0; m < maps.size(); ++m) {
    ASSERT_EQ(maps[m].shape(), (Shape{1, kHeads, kTokens, kTokens}));
    const std::vector<double> p = maps[m].to_host<double>();
    for (std::int64_t row = 0; row < kHeads * kTokens; ++row) {
      const std::int64_t i = row % kTokens;
      double sum = 0;
      for (std::int64_t j = 0; j < kTokens; ++j) {
        const double value = p[std::size_t(row * kTokens + j)];
        EXPECT_EQ(value > 0, j <= i && (m == 1 || i - j < 5)) << m << ": " << i << ", " << j;
        sum += value;
      }
      EXPECT_NEAR(sum, 1, 1e-5);
    }
  }
  for (const std::int64_t layer : {std::int64_t(-1), std::int64_t(3)})
    expect_error(ErrorKind::usage, {"there is no such layer", "3 layers", "at test_transformer.cpp:"}, [&] {
      run([&] { return model.attention_maps(Tensor::from(tokens(2), {1, 2}), {layer}); });
    });
}

TEST(Transformer, AWindowLargerThanTheTextSeesAll) {
  TransformerConfig c = little();
  Transformer model(c);
  c.window = 100;
  Transformer windowed(c);
  windowed.load_weights(model.weights());
  EXPECT_EQ(logits_for(model, tokens(9)), logits_for(windowed, tokens(9)));
  c.window = 3;
  Transformer narrow(c);
  narrow.load_weights(model.weights());
  EXPECT_GT(farthest(logits_for(model, tokens(9)), logits_for(narrow, tokens(9))), 1e-3);
}

TEST(Transformer, RecomputingChangesNoBit) {
  TransformerConfig c = little();
  std::vector<TensorMap> weights;
  for (bool recompute : {false, true}) {
    seed(0);
    c.recompute = recompute;
    Transformer model(c);
    AdamW opt(model.parameters());
    const Tensor inputs = Tensor::from(tokens(24), {2, 12});
    for (int i = 0; i < 2; ++i)
      run([&] {
        backward(cross_entropy(model(inputs), inputs));
        opt.step();
      });
    weights.push_back(model.state_dict());
  }
  for (const auto& [name, tensor] : weights[0]) EXPECT_EQ(tensor.bytes, weights[1].at(name).bytes) << name;
}

TEST(Transformer, Bf16ActivationsStayClose) {
  TransformerConfig c = little();
  seed(2);
  Transformer exact(c);
  c.activations = DType::bf16;
  seed(2);
  Transformer rounded(c);
  const auto a = logits_for(exact, tokens(20)), b = logits_for(rounded, tokens(20));
  double scale = 0;
  for (double v : a) scale = std::max(scale, std::abs(v));
  EXPECT_LT(farthest(a, b), 4e-2 * scale);
  EXPECT_NE(a, b);
  // Generation, whose caches are in bf16 then, ends too.
  EXPECT_EQ(generate(rounded, tokens(5), {.tokens = 8, .temperature = 0}).size(), 13u);
  seed(0);
}

// Beyond the context that the model was trained with all positions turn more slowly; a cache ends there.
TEST(Transformer, DynamicScalingStretchesLongTexts) {
  TransformerConfig c = little();
  c.context = 16;
  Transformer model(c);
  c.rope = {.scaling = RopeScaling::dynamic, .factor = 2, .trained = 16};
  Transformer dynamic(c);
  dynamic.load_weights(model.weights());
  EXPECT_EQ(logits_for(model, tokens(16)), logits_for(dynamic, tokens(16)));
  TransformerConfig stretched = c;
  stretched.context = 32;
  stretched.rope = {.base = 1e4 * std::pow(2.0 * 24 / 16 - 1, 8.0 / 6)};
  Transformer by_hand(stretched);
  by_hand.load_weights(model.weights());
  EXPECT_LT(farthest(logits_for(dynamic, tokens(24)), logits_for(by_hand, tokens(24))), 1e-5);
  expect_error(ErrorKind::usage, {"longer than the model's context", "33 tokens, the context is 32"},
               [&] { logits_for(dynamic, tokens(33)); });
  EXPECT_EQ(generate(dynamic, tokens(10), {.tokens = 20, .temperature = 0}).size(), 16u);
}

// ---- checkpoints ------------------------------------------------------------------------------------------------------------

TEST(TransformerCheckpoint, GoesRound) {
  for (bool tie : {true, false}) {
    const TempFolder folder;
    TransformerConfig c = little();
    c.tie = tie, c.qk_norm = !tie, c.window = 5;
    seed(4);
    Transformer model(c);
    model.save(folder.path());
    const TensorMap saved = read_safetensors(folder / "model.safetensors");
    EXPECT_EQ(saved.contains("lm_head.weight"), !tie);
    EXPECT_EQ(saved.at("model.layers.1.self_attn.k_proj.weight").shape, (std::vector<std::int64_t>{16, 24}));
    seed(5);
    Transformer loaded = Transformer::load(folder.path());
    EXPECT_EQ(logits_for(loaded, tokens(9)), logits_for(model, tokens(9)));
    expect_error(ErrorKind::usage, {"no original form"}, [&] { model.save(folder.path(), CheckpointNames::original); });
  }
  seed(0);
}

TEST(TransformerCheckpoint, FilesOfOldVersionsHaveTheAnglesToo) {
  Transformer model(little());
  TensorMap tensors = model.weights();
  const std::vector<float> angles(4);
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = HostTensor::from(DType::f32, {4}, std::span(angles));
  model.load_weights(tensors);
  tensors["model.layers.0.self_attn.sinks"] = tensors.at("model.norm.weight");
  expect_error(ErrorKind::io, {"unexpected: model.layers.0.self_attn.sinks"}, [&] { model.load_weights(tensors); });
}

// ---- golden values ----------------------------------------------------------------------------------------------------------

class TransformerGolden : public testing::TestWithParam<std::pair<const char*, DType>> {};

TEST_P(TransformerGolden, Agrees) {
  const auto [name, dtype] = GetParam();
  const fs::path folder = kReferences / name;
  if (!fs::exists(folder)) GTEST_SKIP() << folder << " is not there";
  if (dtype == DType::f64 && device() != Device::cpu) GTEST_SKIP() << "fp64";
  const std::vector<VerifyRow> rows = verify_model(folder, dtype);
  EXPECT_GT(rows.size(), 20u);
  for (const VerifyRow& row : rows) EXPECT_TRUE(row.passed()) << row.what << ": " << row.error << " " << row.unit;
}

INSTANTIATE_TEST_SUITE_P(Folders, TransformerGolden,
                         testing::Values(std::pair{"llama", DType::f32}, std::pair{"mistral_swa", DType::f32},
                                         std::pair{"qwen3", DType::f32}, std::pair{"llama", DType::f64},
                                         std::pair{"mistral_swa", DType::f64}, std::pair{"qwen3", DType::f64}),
                         [](const auto& named) {
                           return std::string(named.param.first) + "_" + std::string(name_of(named.param.second));
                         });

}  // namespace
}  // namespace weft
