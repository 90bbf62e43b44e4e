// Falcon-H1: sizes, its configuration, caches, golden values. What every family has in common is in test_generate.cpp.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/hybrid_models.h"
#include "tests/temp_folder.h"
#include "tools/evaluate/verify.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kFalcon = fs::path(WEFT_SOURCE_DIR) / "tests" / "golden" / "falcon_h1";

FalconH1Config tiny_falcon() {
  return {.vocab = kHybridVocab,
          .width = 16,
          .layers = 2,
          .heads = 2,
          .kv_heads = 1,
          .hidden = 24,
          .inner = 24,
          .state = 4,
          .head_size = 8,
          .gated_norm = true,
          .embedding_scale = 1.5,
          .logit_scale = 0.7,
          .attention_in = 0.9,
          .attention_out = 1.2,
          .key_scale = 0.8,
          .mamba_in = 1.1,
          .mamba_out = 0.6,
          .mamba_scales = {0.9, 1.1, 0.8, 1.2, 0.7},
          .gate_scale = 1.3,
          .down_scale = 0.9,
          .deviation = 0.2};
}

TEST(FalconH1, CountsItsParameters) {
  // The smallest of the published models, as its parts add up.
  const FalconH1Config half{.vocab = 32784,
                            .width = 1024,
                            .layers = 36,
                            .heads = 8,
                            .kv_heads = 2,
                            .head = 64,
                            .hidden = 2048,
                            .inner = 1536,
                            .state = 128,
                            .head_size = 64};
  EXPECT_EQ(half.parameter_count(), 521411104);
  for (const bool norm : {false, true})
    for (const bool tie : {false, true}) {
      FalconH1Config c = tiny_falcon();
      c.gated_norm = norm, c.tie = tie;
      FalconH1 model(c);
      EXPECT_EQ(model.parameter_count(), c.parameter_count());
    }
}

TEST(FalconH1, CachesBytesOfBothMixers) {
  const FalconH1 model(tiny_falcon());
  const CacheBytes bytes = model.cache_bytes(10);
  EXPECT_EQ(bytes.states, 2 * 4 * (3 * (24 + 2 * 4) + 24 * 4));  // of a convolution of width 4, and of 24 features
  EXPECT_EQ(bytes.attention, 2 * 4 * 10 * 2 * 8);
  EXPECT_EQ(bytes.layers, 2);
}

TEST(FalconH1, CausalityAndCaches) {
  seed(3);
  FalconH1 model(tiny_falcon());
  expect_causal(model);
  expect_greedy_as_without_caches(model, 200);
  const std::vector<Tensor> maps = run([&] { return model.attention_maps(row_of(hybrid_ids(6)), {1}); });
  EXPECT_EQ(maps[0].shape(), (Shape{1, 2, 6, 6}));
}

TEST(FalconH1, EveryMultiplierTakesPart) {
  seed(3);
  const auto logits = [](const FalconH1Config& c) {
    seed(3);
    FalconH1 model(c);
    roughen(model);
    return hybrid_logits(model, row_of(hybrid_ids(8)));
  };
  const std::vector<float> before = logits(tiny_falcon());
  using Config = FalconH1Config;
  for (double Config::*scale :
       {&Config::embedding_scale, &Config::logit_scale, &Config::attention_in, &Config::attention_out, &Config::key_scale,
        &Config::mamba_in, &Config::mamba_out, &Config::gate_scale, &Config::down_scale}) {
    Config c = tiny_falcon();
    c.*scale *= 1.5;
    EXPECT_NE(logits(c), before);
  }
  for (std::size_t k = 0; k < 5; ++k) {
    Config c = tiny_falcon();
    c.mamba_scales[k] *= 1.5;
    EXPECT_NE(logits(c), before) << k;
  }
}

// ---- config.json ------------------------------------------------------------------------------------------------------------

TEST(FalconH1, WhatIsWrittenIsReadAgain) {
  for (const bool limits : {false, true}) {
    FalconH1Config c = tiny_falcon();
    c.rope.base = 1e11, c.eos = {2, 3}, c.bos = 1, c.norm_first = false;
    if (limits) c.dt_low = 0.001, c.dt_high = 0.1;
    const json written = falcon_h1_config_to_json(c);
    const FalconH1Config read = falcon_h1_config_from_json(written);
    EXPECT_EQ(falcon_h1_config_to_json(read), written);
    EXPECT_EQ(read.mamba_scales, c.mamba_scales);
    EXPECT_EQ(read.dt_high, c.dt_high);
    EXPECT_EQ(read.down_scale, c.down_scale);
    EXPECT_EQ(family_of(written).name, "falcon-h1");
  }
}

TEST(FalconH1, RefusesWhatItDoesNotKnow) {
  const auto refused = [](const char* key, const json& value, const std::string& problem) {
    SCOPED_TRACE(key);
    json j = falcon_h1_config_to_json(tiny_falcon());
    j[key] = value;
    expect_error(ErrorKind::io, {"config.json", problem}, [&] { falcon_h1_config_from_json(j); });
  };
  for (const char* key : {"attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"})
    refused(key, true, "no such feature");
  refused("mamba_n_heads", 4, "the Mamba heads do not make up their width");
  refused("ssm_multipliers", {1, 2}, "a list of 5 numbers is expected");
  refused("mlp_multipliers", {1, "two"}, "a list of 2 numbers is expected");
  refused("mamba_d_stat", 3, "did you mean 'mamba_d_state'?");
  refused("attn_layer_indices", {1}, "no such feature");
  refused("rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}, "not known");
  refused("mamba_n_groups", 2, "the configuration makes no sense");       // 3 heads
  refused("num_key_value_heads", 3, "the configuration makes no sense");  // 2 heads
}

TEST(FalconH1, MultipliersAreNumbers) {
  FalconH1Config c = tiny_falcon();
  c.mamba_scales[2] = NAN;
  expect_error(ErrorKind::usage, {"a multiplier is not finite"}, [&] { FalconH1 model(c); });
}

// ---- golden values ----------------------------------------------------------------------------------------------------------

class FalconH1Golden : public testing::TestWithParam<DType> {};

TEST_P(FalconH1Golden, Agrees) {
  if (!fs::exists(kFalcon)) GTEST_SKIP() << kFalcon << " is not there";
  if (GetParam() == DType::f64 && device() != Device::cpu) GTEST_SKIP() << "fp64";
  const std::vector<VerifyRow> rows = verify_model(kFalcon, GetParam());
  EXPECT_GT(rows.size(), 20u);
  for (const VerifyRow& row : rows) EXPECT_TRUE(row.passed()) << row.what << ": " << row.error << " " << row.unit;
}

INSTANTIATE_TEST_SUITE_P(Types, FalconH1Golden, testing::Values(DType::f32, DType::f64),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace weft
