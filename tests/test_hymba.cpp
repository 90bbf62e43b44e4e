// Hymba as it was published: sizes, names and configurations, the block against a second implementation, what its layers share,
// caches and generation.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "jit/compiler.h"
#include "tests/expect_error.h"
#include "tests/hybrid_models.h"
#include "tests/temp_folder.h"
#include "tools/cli/command_line.h"

namespace weft {
namespace {

using nlohmann::json;

HymbaConfig published(std::int64_t layers, std::int64_t width, std::int64_t hidden, std::int64_t heads, std::int64_t kv_heads) {
  return {.vocab = 32001, .width = width, .layers = layers, .hidden = hidden, .heads = heads, .kv_heads = kv_heads};
}
HymbaConfig hymba_1_5b() { return published(32, 1600, 5504, 25, 5); }

// ---- sizes ------------------------------------------------------------------------------------------------------------------

TEST(Hymba, ParameterCountsOfThePublishedModels) {
  EXPECT_EQ(published(24, 512, 1664, 8, 4).parameter_count(), 129944064);
  EXPECT_EQ(published(32, 768, 2432, 12, 4).parameter_count(), 353701888);
  EXPECT_EQ(hymba_1_5b().parameter_count(), 1522797824);
}

TEST(Hymba, PresetsAreThePublishedModels) {
  const std::map<std::string, std::int64_t> counts = {{"125m", 129944064}, {"350m", 353701888}, {"1.5b", 1522797824}};
  for (const auto& [name, count] : counts) {
    const TrainOptions o = options_from({{"model", "hymba"}, {"preset", name}});
    const auto size = [&](const char* key) { return std::get<std::int64_t>(o.model_options.at(key)); };
    EXPECT_EQ(o.vocab, 32001);
    const HymbaConfig c{.vocab = o.vocab,
                        .width = size("width"),
                        .layers = size("layers"),
                        .hidden = size("hidden"),
                        .heads = size("heads"),
                        .kv_heads = size("kv_heads"),
                        .meta_tokens = size("meta_tokens"),
                        .window = size("window"),
                        .state = size("state")};
    EXPECT_EQ(c.parameter_count(), count) << name;
    EXPECT_EQ(c.window, 1024);
  }
}

TEST(Hymba, CountsAgreeWithRealModels) {
  HymbaConfig c = tiny_hymba();
  EXPECT_EQ(Hymba(c).parameter_count(), c.parameter_count());
  c.bias = true, c.conv_bias = false, c.tie = false, c.conv = 3, c.rank = 5, c.key_size = 6, c.meta_tokens = 0, c.expand = 3;
  EXPECT_EQ(Hymba(c).parameter_count(), c.parameter_count());
  c.kv_groups = LayerGroups{{1, 2}}, c.hidden = 0, c.heads = 4, c.kv_heads = 2;
  EXPECT_EQ(Hymba(c).parameter_count(), c.parameter_count());
}

// Names and shapes of a checkpoint, by the description of the published one.
std::map<std::string, Shape> published_tensors(const HymbaConfig& c, const std::vector<std::int64_t>& consumers) {
  const std::int64_t d = c.width, i = 2 * d, dk = d / c.heads, dv = i / c.heads, r = c.mamba().dt_rank(), n = c.state;
  std::map<std::string, Shape> tensors = {{"model.embed_tokens.weight", {c.vocab, d}},
                                          {"model.memory_tokens", {c.meta_tokens, d}},
                                          {"model.final_layernorm.weight", {d}}};
  for (std::int64_t l = 0; l < c.layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const bool consumer = std::find(consumers.begin(), consumers.end(), l) != consumers.end();
    const std::map<std::string, Shape> own = {
        {"input_layernorm.weight", {d}},
        {"mamba.in_proj.weight", {d + (consumer ? 0 : c.kv_heads * (dk + dv)) + 2 * i, d}},
        {"mamba.out_proj.weight", {d, i}},
        {"mamba.conv1d.weight", {i, 1, c.conv}},
        {"mamba.conv1d.bias", {i}},
        {"mamba.x_proj.0.weight", {r + 2 * n, i}},
        {"mamba.dt_proj.0.weight", {i, r}},
        {"mamba.dt_proj.0.bias", {i}},
        {"mamba.A_log.0", {i, n}},
        {"mamba.D.0", {i}},
        {"mamba.dt_layernorm.weight", {r}},
        {"mamba.B_layernorm.weight", {n}},
        {"mamba.C_layernorm.weight", {n}},
        {"mamba.pre_avg_layernorm1.weight", {i}},
        {"mamba.pre_avg_layernorm2.weight", {i}},
        {"pre_moe_layernorm.weight", {d}},
        {"moe.experts.0.gate_proj.weight", {c.hidden, d}},
        {"moe.experts.0.up_proj.weight", {c.hidden, d}},
        {"moe.experts.0.down_proj.weight", {d, c.hidden}}};
    for (const auto& [name, shape] : own) tensors.emplace(layer + name, shape);
  }
  return tensors;
}

// S003, published Hymba config. The shapes alone: there is no memory for the values.
TEST(Hymba, The1_5BModelHasTheNamesAndShapesOfItsCheckpoint) {
  const Hymba tiny(tiny_hymba());
  const std::map<std::string, Shape> expected = published_tensors(tiny_hymba(), {2, 5});
  const TensorMap weights = tiny.weights();
  EXPECT_EQ(weights.size(), expected.size());
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(weights.contains(name)) << name;
    EXPECT_EQ(weights.at(name).shape, std::vector<std::int64_t>(shape.begin(), shape.end())) << name;
  }
  std::int64_t elements = 0;
  const auto large = published_tensors(hymba_1_5b(), {2, 4, 6, 8, 10, 12, 14, 17, 18, 20, 22, 24, 26, 28, 30});
  for (const auto& [name, shape] : large) elements += shape.numel();
  EXPECT_EQ(elements, 1522797824);
  EXPECT_EQ(large.at("model.layers.0.mamba.in_proj.weight"), (Shape{1600 + 5 * 64 + 5 * 128 + 6400, 1600}));
  EXPECT_EQ(large.at("model.layers.2.mamba.in_proj.weight"), (Shape{1600 + 6400, 1600}));
}

TEST(Hymba, LayersShareKeysAndValuesAsPublished) {
  const HymbaConfig c = hymba_1_5b();
  LayerGroups groups = published_kv_groups(c.kinds());
  std::erase_if(groups, [](const auto& group) { return group.size() == 1; });
  EXPECT_EQ(groups, (LayerGroups{{1, 2},
                                 {3, 4},
                                 {5, 6},
                                 {7, 8},
                                 {9, 10},
                                 {11, 12},
                                 {13, 14},
                                 {16, 17, 18},
                                 {19, 20},
                                 {21, 22},
                                 {23, 24},
                                 {25, 26},
                                 {27, 28},
                                 {29, 30}}));
  const CacheBytes bytes = cache_bytes(hybrid_sizes(c), 100);
  EXPECT_EQ(bytes.layers, 32);
  EXPECT_EQ(bytes.caches, 17);
}

// 8192 tokens in 16 bits: 47.92 MB of the global layers, 30.97 MB of the local ones.
TEST(Hymba, CachesTakeWhatThePaperSays) {
  HymbaConfig c = hymba_1_5b();
  c.activations = DType::bf16;
  const CacheBytes bytes = cache_bytes(hybrid_sizes(c), 8192);
  const double row = 5 * (64 + 128) * 2, global = 3 * row * (8192 + 128), local = 14 * row * (1024 + 128);
  EXPECT_NEAR(global / 1e6, 47.92, 0.005);
  EXPECT_NEAR(local / 1e6, 30.97, 0.005);
  EXPECT_EQ(bytes.attention, global + local);
  EXPECT_EQ(bytes.attention_global, 32 * row * (8192 + 128));
  EXPECT_EQ(bytes.states, 32 * 3200.0 * (3 * 2 + 16 * 4));
}

TEST(Hymba, InitialValuesAndDecay) {
  const Hymba model(tiny_hymba());
  for (const NamedParam& p : model.named_parameters()) {
    const std::vector<double> values = p.param.to_host<double>();
    const bool matrix = (p.name.ends_with(".weight") && p.name.find("norm") == std::string::npos);
    EXPECT_EQ(p.param.decay(), matrix) << p.name;
    double squares = 0;
    for (const double v : values) squares += v * v / double(values.size());
    if (p.name == "model.memory_tokens") {
      EXPECT_NEAR(std::sqrt(squares), 1, 0.3);
    }
    if (p.name.ends_with("_proj.weight")) {
      EXPECT_NEAR(std::sqrt(squares), 0.2, 0.03) << p.name;
    }
    if (p.name.ends_with("norm.weight")) {
      EXPECT_EQ(values[0], 1) << p.name;
    }
    for (const double v : p.name.ends_with("dt_proj.0.bias") ? values : std::vector<double>{})
      EXPECT_TRUE(std::log1p(std::exp(v)) > 0.999e-3 && std::log1p(std::exp(v)) < 0.1001) << v;
  }
}

// ---- configurations ---------------------------------------------------------------------------------------------------------

const char* const kPublished = R"({"architectures": ["HymbaForCausalLM"], "attention_dropout": 0.0, "attn_hidden_size": -1,
  "attn_implementation": "flex", "attn_implementation_new": "flex", "bos_token_id": 1, "calc_logits_for_entire_prompt": false,
  "conv_dim": {"0": 3200, "1": 3200}, "eos_token_id": 2, "global_attn_idx": [0, 15, 31], "hidden_act": "silu",
  "hidden_size": 1600, "initializer_range": 0.02, "intermediate_size": 5504, "kq_head_dim": -1, "kq_norm": "none",
  "kv_reuse_every_i_layer": -1, "kv_reuse_group": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14],
  [16, 17, 18], [19, 20], [21, 22], [23, 24], [25, 26], [27, 28], [29, 30]], "kv_weight_reuse": false,
  "mamba_conv_bias": true, "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 100, "mamba_expand": 2,
  "mamba_inner_layernorms": true, "mamba_proj_bias": false, "max_position_embeddings": 8192,
  "memory_tokens_interspersed_every": 0, "mlp_hidden_act": "silu", "model_type": "hymba", "num_attention_heads": 25,
  "num_experts": 1, "num_experts_per_tok": 1, "num_hidden_layers": 32, "num_key_value_heads": 5, "num_mamba": 1,
  "num_memory_tokens": 128, "orig_max_position_embeddings": 2048, "output_router_logits": false, "pad_token_id": 0,
  "rms_norm_eps": 1e-06, "rope": true, "rope_theta": 10000.0, "rope_type": "ntk", "router_aux_loss_coef": 0.001,
  "sliding_window": 1024, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": false,
  "use_mamba_kernels": true, "v_head_dim": 128, "vocab_size": 32001})";

TEST(HymbaConfig, ReadsThePublishedFile) {
  const HymbaConfig c = hymba_config_from_json(json::parse(kPublished));
  EXPECT_EQ(c.parameter_count(), 1522797824);
  EXPECT_EQ(c.kinds(), hymba_1_5b().kinds());
  EXPECT_EQ(c.producers(), hymba_1_5b().producers());
  EXPECT_NEAR(c.rotary_base(), 74534.83, 0.005);
  EXPECT_EQ(c.eos, std::vector<std::int64_t>{2});
  EXPECT_TRUE(c.tie && !c.window_inclusive && c.rope_ntk);
}

TEST(HymbaConfig, SurvivesItsFile) {
  HymbaConfig c = tiny_hymba();
  c.bias = true, c.conv_bias = false, c.tie = false, c.conv = 3, c.rank = 7, c.key_size = 6, c.window_inclusive = true,
  c.pad = 3;
  c.global_layers = std::vector<std::int64_t>{2}, c.kv_groups = LayerGroups{{3, 4, 5}};
  c.rope_ntk = true, c.positions = 64, c.trained_positions = 16;
  const HymbaConfig r = hymba_config_from_json(hymba_config_to_json(c));
  EXPECT_EQ(hymba_config_to_json(r), hymba_config_to_json(c));
  EXPECT_EQ(r.parameter_count(), c.parameter_count());
  EXPECT_EQ(r.kinds(), "LLGLLLL");
  EXPECT_EQ(r.producers(), (std::vector<std::int64_t>{0, 1, 2, 3, 3, 3, 6}));
  EXPECT_EQ(r.rotary_base(), c.rotary_base());
  EXPECT_TRUE(r.window_inclusive && r.bias && !r.tie && !r.conv_bias);
}

TEST(HymbaConfig, WhatDoesNotFitIsAnError) {
  const auto with = [](const char* key, const json& value, const std::vector<std::string>& words) {
    json j = hymba_config_to_json(tiny_hymba());
    j["v_head_dim"] = -1, j.erase("layer_type");  // which repeat what others say
    j[key] = value;
    expect_error(ErrorKind::io, words, [&] { hymba_config_from_json(j); });
  };
  with("hiden_size", 4, {"unknown key", "did you mean 'hidden_size'?"});
  with("model_type", "mamba", {"no such feature"});
  with("num_attention_heads", 3, {"the heads do not divide the width", "3 heads"});
  with("num_attention_heads", 0, {"heads = 0"});
  with("num_key_value_heads", 3, {"or the kv_heads the heads"});
  with("kq_head_dim", 5, {"odd number"});
  with("v_head_dim", 8, {"v_head_dim = 8", "= 16"});
  with("rope_type", "yarn", {"this kind of RoPE is unknown", "yarn"});
  with("rope", false, {"only true is supported"});
  with("kq_norm", "rms", {"only \"none\" is supported"});
  with("num_experts", 4, {"only 1 is supported"});
  with("sliding_window", 0, {"window = 0"});
  with("global_attn_idx", 3, {"a list of layers is expected"});
  with("global_attn_idx", {9}, {"a global layer does not exist", "layer 9 of 7"});
  with("kv_reuse_group", {1, 2}, {"a list of lists of layers"});
  with("kv_reuse_group", {{0, 1}}, {"one is global", "[0, 1]", "GLLGLLG"});
  with("kv_reuse_group", {{2, 1}}, {"not in order"});
  with("kv_reuse_group", {{1, 2}, {2}}, {"one is there twice"});
  with("kv_reuse_group", {{5, 9}}, {"no such layer"});
  with("layer_type", {"h", "m"}, {"hybrid layers alone"});
  with("num_hidden_layers", 1 << 20, {"at most 10000 layers"});
  with("hidden_size", std::int64_t(1) << 40, {"no size is so large"});
  json j = hymba_config_to_json(tiny_hymba());
  j.erase("mamba_d_state"), j.erase("num_memory_tokens");
  expect_error(ErrorKind::io, {"size keys are missing: num_memory_tokens, mamba_d_state"}, [&] { hymba_config_from_json(j); });
  HymbaConfig c = tiny_hymba();
  c.eps = NAN;
  expect_error(ErrorKind::usage, {"eps nan"}, [&] { Hymba model(c); });
}

// ---- the mathematics --------------------------------------------------------------------------------------------------------

TEST(Hymba, IsAsWrittenAgain) {
  if (emulated()) GTEST_SKIP() << "the second implementation has thousands of kernels";
  HymbaConfig c = tiny_hymba();
  c.dtype = DType::f64;
  Hymba model(c);
  expect_as_written_again(model, [&](const reference::Weights& w, const Tensor& ids) { return reference::hymba(c, w, ids); });
}

// The gradient of what one layer makes and two read, by differences of the whole loss.
TEST(Hymba, GradientsOfAllThatReadKeysAndValuesAddUp) {
  if (emulated()) GTEST_SKIP() << "48 losses";
  HymbaConfig c = tiny_hymba();
  c.dtype = DType::f64;
  Hymba model(c);
  roughen(model);
  const Tensor ids = row_of(hybrid_ids(12));
  const auto loss = [&] { return run([&] { return cross_entropy(model(ids), ids); }).item(); };
  run([&] { backward(cross_entropy(model(ids), ids)); });
  for (NamedParam& p : model.named_parameters()) {
    if (p.name != "model.layers.1.mamba.in_proj.weight") continue;
    const std::vector<double> gradient = p.param.gradient<double>();
    std::vector<double> values = p.param.to_host<double>();
    for (std::size_t row = 16; row < 16 + 8 + 16; ++row) {  // those of keys and values
      const std::size_t e = row * 16 + row % 16;
      const double kept = values[e], step = 1e-6;
      values[e] = kept + step, p.param.set(values);
      const double above = loss();
      values[e] = kept - step, p.param.set(values);
      EXPECT_NEAR(gradient[e], (above - loss()) / (2 * step), 1e-6 + 1e-5 * std::abs(gradient[e])) << row;
      values[e] = kept, p.param.set(values);
    }
    return;
  }
  ADD_FAILURE() << "there is no such parameter";
}

TEST(Hymba, GradientsOfSharedKeysAndValues) {
  const AttentionSizes sizes{.heads = 2, .groups = 1, .key = 4, .value = 6, .window = 3, .meta = 2};
  const Rope rope({}, sizes.key, DType::f64);
  const auto both = [&](const std::vector<Tensor>& x) {  // two layers' queries, the keys and values that they share
    const AttentionPass pass = attention_pass(rope, 7, 2);
    const KeysValues keys = keys_values(x[2], x[3], sizes, pass);
    return attend(x[0], keys, pass) + attend(x[1], keys, pass);
  };
  std::vector<Tensor> inputs;
  for (const Shape& shape : {Shape{1, 7, 2, 4}, Shape{1, 7, 2, 4}, Shape{1, 7, 1, 4}, Shape{1, 7, 1, 6}})
    inputs.push_back(Tensor::from(irregular(shape.numel(), -1, 1, inputs.size()), shape));
  gradcheck(both, inputs);
}

// What a window and the meta tokens hide or show where they reach beyond the text.
TEST(Hymba, WindowsAndMetaTokensMayBeLongerThanTheText) {
  if (emulated()) GTEST_SKIP() << "many models";
  const Tensor ids = row_of(hybrid_ids(6));
  HymbaConfig c = tiny_hymba();
  const auto logits = [&] {
    seed(3);
    Hymba model(c);
    return run([&] { return model(ids); }).to_host<double>();
  };
  c.window = 100;
  const std::vector<double> wide = logits();
  c.window = 9;  // of 3 + 6 places
  EXPECT_EQ(logits(), wide);
  c.window = 2;
  EXPECT_NE(logits(), wide);
  c.kv_groups = LayerGroups{}, c.window = 100;
  const std::vector<double> local = logits();
  c.global_layers = std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6};
  EXPECT_EQ(logits(), local);
  c.global_layers.reset(), c.kv_groups.reset();
  c.window = 2, c.meta_tokens = 20;
  Hymba many(c);
  expect_causal(many);
  expect_greedy_as_without_caches(many, 12);
  c.window = 30, c.meta_tokens = 0;
  Hymba none(c);
  expect_causal(none);
  expect_greedy_as_without_caches(none, 40);
  seed(0);
}

TEST(Hymba, AnInclusiveWindowSeesOneKeyMore) {
  HymbaConfig c = tiny_hymba();
  for (const bool inclusive : {false, true}) {
    c.window_inclusive = inclusive;
    Hymba model(c);
    const Tensor map = run([&] { return model.attention_maps(row_of(hybrid_ids(14)), {1})[0]; });
    const std::vector<float> p = map.to_host<float>();
    std::int64_t seen = 0;
    for (std::int64_t j = 0; j < 17; ++j) seen += p[std::size_t(16 * 17 + j)] > 0;
    EXPECT_EQ(seen, 3 + 5 + (inclusive ? 1 : 0));
    expect_greedy_as_without_caches(model, 30);
  }
}

TEST(Hymba, MetaTokensAreLearnedButNotScored) {
  Hymba model(tiny_hymba());
  const Tensor ids = Tensor::from(hybrid_ids(10), {2, 5});
  const Tensor logits = run([&] {
    Tensor made = model(ids);
    backward(cross_entropy(made, ids));
    return made;
  });
  EXPECT_EQ(logits.shape(), (Shape{2, 5, kHybridVocab}));
  for (const NamedParam& p : model.named_parameters())
    if (p.name == "model.memory_tokens") {
      EXPECT_GT(largest(p.param.gradient<double>()), 1e-6);
    }
}

TEST(Hymba, RecomputingBlocksChangesNoGradient) {
  HymbaConfig c = tiny_hymba();
  std::vector<std::vector<double>> gradients[2];
  for (const bool recompute : {false, true}) {
    seed(5);
    c.recompute = recompute;
    Hymba model(c);
    const Tensor ids = row_of(hybrid_ids(11));
    run([&] { backward(cross_entropy(model(ids), ids)); });
    for (const NamedParam& p : model.named_parameters()) gradients[recompute].push_back(p.param.gradient<double>());
  }
  for (std::size_t i = 0; i < gradients[0].size(); ++i)
    EXPECT_LT(distance(gradients[0][i], gradients[1][i]), 1e-6 * std::max(largest(gradients[0][i]), 1e-3));
  seed(0);
}

TEST(Hymba, Bf16ActivationsStayClose) {
  HymbaConfig c = tiny_hymba();
  std::vector<double> logits[2];
  for (const bool rounded : {false, true}) {
    seed(5);
    c.activations = rounded ? DType::bf16 : DType::f32;
    Hymba model(c);
    logits[rounded] = run([&] { return model(row_of(hybrid_ids(20))); }).to_host<double>();
  }
  EXPECT_LT(distance(logits[0], logits[1]), 4e-2 * largest(logits[0]));
  EXPECT_NE(logits[0], logits[1]);
  seed(0);
}

// ---- checkpoints and generation ---------------------------------------------------------------------------------------------

TEST(Hymba, SavedAndLoadedItIsTheSame) {
  for (const bool tie : {true, false}) {
    const TempFolder folder;
    HymbaConfig c = tiny_hymba();
    c.tie = tie;
    seed(4);
    Hymba model(c);
    model.save(folder.path());
    EXPECT_EQ(read_safetensors(folder / "model.safetensors").contains("lm_head.weight"), !tie);
    seed(5);
    const auto loaded = LanguageModel::load(folder.path());
    EXPECT_EQ(loaded->description(), model.description());
    EXPECT_EQ(hybrid_logits(*loaded, row_of(hybrid_ids(9))), hybrid_logits(model, row_of(hybrid_ids(9))));
  }
  seed(0);
}

TEST(Hymba, LoadingIsStrict) {
  const TempFolder folder;
  Hymba model(tiny_hymba());
  model.save(folder.path());
  TensorMap tensors = model.weights();
  tensors["model.layers.0.mamba.D.0"].shape = {4, 8};
  tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");  // a copy of the tied head is no problem
  tensors["model.layers.2.mamba.k_proj.weight"] = tensors.at("model.final_layernorm.weight");
  tensors.erase("model.memory_tokens");
  write_safetensors(folder / "model.safetensors", tensors);
  expect_error(ErrorKind::io,
               {"3 problems", "shape of model.layers.0.mamba.D.0", "missing: model.memory_tokens (3, 16)",
                "unexpected: model.layers.2.mamba.k_proj.weight"},
               [&] { LanguageModel::load(folder.path()); });
  expect_error(ErrorKind::usage, {"one form"}, [&] { model.save(folder.path(), CheckpointNames::original); });
}

TEST(Hymba, ATextBeyondTheContextIsAnError) {
  HymbaConfig c = tiny_hymba();
  c.positions = 8;
  Hymba model(c);
  expect_error(ErrorKind::usage, {"longer than the model's context", "the context is 8"},
               [&] { generate(model, hybrid_ids(9), {.tokens = 1}); });
}

// ---- the program ------------------------------------------------------------------------------------------------------------

struct Printed {
  int code;
  std::string out, err;
};

// The program with these words, on the device in use.
Printed run_weft(const std::string& words, bool computes = true) {
  std::istringstream stream("weft " + words + (computes ? " --device " + std::string(name_of(device())) : ""));
  std::vector<std::string> all;
  for (std::string word; stream >> word;) all.push_back(word);
  std::vector<char*> argv;
  for (std::string& word : all) argv.push_back(word.data());
  testing::internal::CaptureStdout(), testing::internal::CaptureStderr();
  const int code = run_program(int(argv.size()), argv.data());
  std::fflush(stdout);
  return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

void expect_printed(const Printed& printed, const std::string& out, const std::string& err = "") {
  EXPECT_EQ(printed.code, 0) << printed.err;
  EXPECT_NE(printed.out.find(out), std::string::npos) << printed.out;
  EXPECT_NE(printed.err.find(err), std::string::npos) << printed.err;
}

TEST(Hymba, BothFamiliesGoThroughTheWholeProgram) {
  if (emulated()) GTEST_SKIP() << "two trainings of many layers";
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "the cat sat on the mat, the dog on the log. ";
  const std::string data = " --data " + folder.write("text.txt", text).string();
  const std::string sizes =
      " --batch 2 --length 16 --warmup 2 --steps 4 --sample 0 --eval-batches 1 --precision fp32 --width 16 --state 4 --heads 2 "
      "--kv-heads 1 --meta-tokens 3 --window 5 --hidden 24";
  for (const auto& [family, layers, reduction] :
       {std::tuple{"hymba", "--layers 7", "1.40"}, std::tuple{"hymba-study", "--layer-kinds GLLG", "1.33"}}) {
    const std::string run_folder = (folder / family).string();
    expect_printed(run_weft(fmt::format("train --model {} {} --out {}", family, layers, run_folder) + sizes + data),
                   fmt::format("KV reduction {}", reduction));
    const std::string from = " --from " + run_folder + " --precision fp32";
    expect_printed(run_weft("eval --length 16" + from + data), "loss ");
    expect_printed(run_weft("generate --tokens 8 --temperature 0 --prompt the" + from), "the", "cache of 11 tokens");
    if (nvrtc_version() == 0) continue;
    expect_printed(run_weft("inspect " + run_folder + " --arch sm_80", false), "2 x 16 tokens, fp32, sm_80");
  }
}

// Against logits of the second implementation and what is most probable by them.
TEST(Hymba, VerifiesAgainstAnotherImplementation) {
  if (emulated()) GTEST_SKIP() << "the second implementation has thousands of kernels";
  const TempFolder folder;
  HymbaConfig c = tiny_hymba();
  seed(9);
  Hymba(c).save(folder.path());
  c.dtype = DType::f64;
  Hymba exact(c);
  exact.load_weights(read_safetensors(folder / "model.safetensors"));
  const auto logits = [&](const std::vector<std::int64_t>& ids) {
    return run([&] {
             return no_grad([&] {
               reference::Weights weights;
               for (const NamedParam& p : exact.named_parameters()) weights[p.name] = p.param.read();
               return reference::hymba(c, weights, row_of(ids));
             });
           })
        .to_host<double>();
  };
  const std::vector<std::int64_t> ids = hybrid_ids(12);
  std::vector<std::int64_t> greedy(ids.begin(), ids.begin() + 8);  // as `weft verify` has it
  while (greedy.size() < 16) {
    const std::vector<double> all = logits(greedy);
    greedy.push_back(std::max_element(all.end() - kHybridVocab, all.end()) - (all.end() - kHybridVocab));
  }
  TensorMap tensors;
  tensors["input_ids"] = HostTensor::from(DType::i64, {1, 12}, std::span<const std::int64_t>(ids));
  tensors["greedy"] = HostTensor::from(DType::i64, {1, 16}, std::span<const std::int64_t>(greedy));
  const std::vector<double> values = logits(ids);
  tensors["logits"] = HostTensor::from(DType::f32, {1, 12, kHybridVocab}, std::span<const double>(values));
  write_safetensors(folder / "reference.safetensors", tensors);
  expect_printed(run_weft("verify " + folder.path().string()), "all 2 checks passed");
  seed(0);
}

}  // namespace
}  // namespace weft
