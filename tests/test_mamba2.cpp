// The Mamba-2 language model: the gated norm, sizes, configurations, checkpoints, the formulas step by step, states, golden
// values. What every family of models does is in test_generate.cpp and test_language_model.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "jit/json.h"
#include "models/mamba2.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tests/values.h"
#include "tools/evaluate/verify.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

Mamba2Config small2() { return {.vocab = 50, .width = 24, .layers = 2, .state = 8, .head = 12}; }

// All that differs from the defaults at once: groups, a gated MLP beside the scan, D for each feature, the gate last, limits.
Mamba2Config unusual() {
  Mamba2Config c = small2();
  c.scanned = 36, c.head = 6, c.groups = 3, c.skip_features = true, c.norm_first = true, c.dt_low = 0.02, c.dt_high = 0.06;
  c.bias = true, c.conv_bias = false, c.tie = false, c.conv = 3;
  return c;
}

std::vector<std::int64_t> ids_of(std::size_t n) {
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(std::int64_t((i * 17 + i * i * 5 + 3) % 50));
  return ids;
}

double farthest(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) d = std::max(d, std::abs(a[i] - b[i]));
  return d;
}

// ---- the gated norm ---------------------------------------------------------------------------------------------------------

TEST(GatedNorm, GoldenG4) {
  GatedNorm norm(4, {.dtype = DType::f64});
  norm.parameters()[0].set(gen(4, 3.3));
  const Tensor x = Tensor::from(gen(8, 3.1), {2, 4}), z = Tensor::from(gen(8, 3.2), {2, 4}),
               dy = Tensor::from(gen(8, 3.4), {2, 4});
  const std::vector<Tensor> d = run([&] {
    const Tensor w = norm.weight().read(), y = norm(x, z);
    std::vector<Tensor> all = grad(y, dy, {x, z, w});
    all.push_back(y);
    return all;
  });
  EXPECT_LT(farthest(d[3].to_host<double>(),
                     {-0.13889808, -0.61154934, -1.13434095, -1.37526589, -0.76045904, -0.91310655, -0.56924132, -0.07475974}),
            1e-8);
  EXPECT_LT(farthest(d[0].to_host<double>(),
                     {-0.07295732, -0.07181507, -0.03425308, 0.09978302, 0.13210914, -0.11470059, -0.07578785, 0.03463391}),
            1e-8);
  EXPECT_LT(farthest(d[1].to_host<double>(),
                     {-0.04246938, -0.03345013, -0.01115977, 0.02666306, 0.04365672, -0.05976058, -0.06338051, 0.05831915}),
            1e-8);
  EXPECT_LT(farthest(d[2].to_host<double>(), {-1.45755085, -1.37563673, -1.336333, -1.35334816}), 1e-8);
}

// Both orders, in one group and in several, with gradients, against the formula made of pointwise ops and means.
TEST(GatedNorm, EqualsItsFormulaInBothOrdersAndInGroups) {
  const std::int64_t b = 2, t = 3, n = 12;
  const Values weight = gen(std::size_t(n), 0.4);
  const Tensor y = Tensor::from(gen(std::size_t(b * t * n), 0.1), {b, t, n}),
               z = Tensor::from(gen(std::size_t(b * t * n), 0.2), {b, t, n}),
               up = Tensor::from(gen(std::size_t(b * t * n), 0.3), {b, t, n});
  for (const bool first : {false, true})
    for (const std::int64_t groups : {1, 3, 12}) {
      SCOPED_TRACE(testing::Message() << "norm first: " << first << ", " << groups << " groups");
      GatedNorm norm(n, {.groups = groups, .norm_first = first, .dtype = DType::f64});
      norm.parameters()[0].set(weight);
      const auto results = [&](bool formula) {
        return run([&] {
          const Tensor w = norm.weight().read();
          Tensor out;
          if (formula) {
            const Tensor v = reshape(first ? y : y * silu(z), {b, t, groups, n / groups});
            const Tensor normal = reshape(v * rsqrt(mean(square(v), {-1}, true) + 1e-5), {b, t, n}) * w;
            out = first ? normal * silu(z) : normal;
          } else {
            out = norm(y, z);
          }
          std::vector<Tensor> all = grad(sum(out * up), {y, z, w});
          all.push_back(out);
          return all;
        });
      };
      const std::vector<Tensor> got = results(false), expected = results(true);
      for (std::size_t i = 0; i < 4; ++i)
        EXPECT_LT(farthest(got[i].to_host<double>(), expected[i].to_host<double>()), 1e-11) << i;
    }
  expect_error(ErrorKind::usage, {"the width does not divide into the groups", "width 12, 5 groups"},
               [] { GatedNorm(12, {.groups = 5}); });
}

TEST(GatedNorm, SecondDerivativesAreThoseOfDifferences) {
  for (const bool first : {false, true}) {
    GatedNorm norm(6, {.norm_first = first, .dtype = DType::f64});
    const auto slope = [&](double by) {
      Values y = gen(12, 0.2);
      y[4] += by;
      const auto [penalty, second] = run([&] {
        const Tensor in = Tensor::from(y, {2, 6}), z = Tensor::from(gen(12, 0.7), {2, 6});
        const std::vector<Tensor> d = grad(sum(norm(in, z) * Tensor::from(gen(12, 1.1), {2, 6})), {in, z});
        const Tensor both = sum(square(d[0])) + sum(square(d[1]));
        return std::pair(both, grad(both, {in})[0]);
      });
      return std::pair(penalty.item(), second.to_host<double>()[4]);
    };
    EXPECT_NEAR(slope(0).second, (slope(1e-5).first - slope(-1e-5).first) / 2e-5, 1e-6) << first;
  }
}

// ---- sizes ------------------------------------------------------------------------------------------------------------------

TEST(Mamba2, ParameterCountsOfThePublishedModels) {
  const struct {
    std::int64_t layers, width, total;
  } models[] = {
      {24, 768, 128989632}, {48, 1024, 368346624}, {48, 1536, 780161280}, {48, 2048, 1343757312}, {64, 2560, 2702599680}};
  for (const auto& m : models) {
    const Mamba2Config c{.vocab = 50277, .width = m.width, .layers = m.layers, .vocab_padding = 16};
    EXPECT_EQ(c.rows(), 50288);
    EXPECT_EQ(c.parameter_count(), m.total) << m.width;
  }
}

TEST(Mamba2, PresetsHaveTheSizesOfThePaper) {
  const std::map<std::string, std::int64_t> totals = {
      {"130m", 128989632}, {"370m", 368346624}, {"780m", 780161280}, {"1.3b", 1343757312}, {"2.7b", 2702599680}};
  const ModelFamily& family = model_family("mamba2");
  for (const auto& [name, total] : totals) {
    const Preset* preset = family.preset(name);
    ASSERT_TRUE(preset) << name;
    std::map<std::string, std::int64_t> sizes;
    for (const auto& [key, value] : preset->settings)
      if (key == "width" || key == "layers" || key == "state" || key == "head_size") sizes[key] = std::stoll(value);
    const Mamba2Config c{.vocab = 50277,
                         .width = sizes.at("width"),
                         .layers = sizes.at("layers"),
                         .state = sizes.at("state"),
                         .head = sizes.at("head_size"),
                         .vocab_padding = 16};
    EXPECT_EQ(c.parameter_count(), total) << name;
  }
}

TEST(Mamba2, CountsAgreeWithRealModels) {
  for (const Mamba2Config& c : {small2(), unusual()}) EXPECT_EQ(Mamba2(c).parameter_count(), c.parameter_count());
}

TEST(Mamba2, InitialValuesAndDecay) {
  const Mamba2 model(small2());
  std::size_t seen = 0;
  for (const NamedParam& p : model.named_parameters()) {
    const Values values = p.param.to_host<double>();
    const auto within = [&](double low, double high) {
      ++seen;
      for (double v : values) EXPECT_TRUE(v > low && v < high) << p.name << " " << v;
    };
    const bool matrix =
        p.name.ends_with("proj.weight") || p.name.ends_with("conv1d.weight") || p.name.ends_with("embeddings.weight");
    EXPECT_EQ(p.param.decay(), matrix) << p.name;
    if (p.name.ends_with("A_log")) within(0, std::log(16.0));
    if (p.name.ends_with(".D") || p.name.ends_with("norm.weight") || p.name.ends_with("norm_f.weight")) within(0.999, 1.001);
    if (p.name.ends_with("in_proj.weight")) within(-1 / std::sqrt(24.0), 1 / std::sqrt(24.0));
    if (p.name.ends_with("out_proj.weight")) within(-1 / std::sqrt(48.0 * 2), 1 / std::sqrt(48.0 * 2));
    if (p.name.ends_with("dt_bias")) within(std::log(std::expm1(0.999e-3)), std::log(std::expm1(0.1001)));
  }
  EXPECT_EQ(seen, 2u * 7 + 1);
}

// ---- configurations ---------------------------------------------------------------------------------------------------------

const char* const kOriginal2 = R"({"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277,
  "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": true,
  "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": true})";
const char* const kPublished2 = R"({"architectures": ["Mamba2ForCausalLM"], "bos_token_id": 0, "chunk_size": 256,
  "conv_kernel": 4, "eos_token_id": 0, "expand": 2, "head_dim": 64, "hidden_act": "silu", "hidden_size": 768,
  "initializer_range": 0.1, "layer_norm_epsilon": 1e-05, "model_type": "mamba2", "n_groups": 1, "norm_before_gate": true,
  "num_heads": 24, "num_hidden_layers": 24, "pad_token_id": 0, "rescale_prenorm_residual": false, "residual_in_fp32": true,
  "rms_norm": true, "state_size": 128, "tie_word_embeddings": true, "time_step_floor": 0.0001,
  "time_step_limit": [0.0, Infinity], "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 48,
  "transformers_version": "4.44.0", "use_bias": false, "use_cache": true, "use_conv_bias": true, "vocab_size": 50288})";

TEST(Mamba2Config, ReadsBothKeySets) {
  for (const char* text : {kOriginal2, kPublished2}) {
    const Mamba2Config c = mamba2_config_from_json(parse_json(text, "config.json"));
    EXPECT_EQ(c.parameter_count(), 128989632);
    EXPECT_EQ(c.heads(), 24);
    EXPECT_FALSE(c.norm_first);  // whatever transformers writes: it does not read it
    EXPECT_TRUE(std::isinf(c.dt_high));
    EXPECT_EQ(family_of(parse_json(text, "config.json")).name, "mamba2");
  }
}

TEST(Mamba2Config, SurvivesBothForms) {
  Mamba2Config c = unusual();
  const Mamba2Config original = mamba2_config_from_json(json::parse(to_original(c).dump()));
  expect_error(ErrorKind::usage, {"has no keys", "scanned 36 of 48", "CheckpointNames::original"},
               [&] { mamba2_config_to_json(c); });
  c.scanned = 0, c.skip_features = c.norm_first = false, c.eps = 1e-6, c.head = 16;
  const Mamba2Config published = mamba2_config_from_json(json::parse(mamba2_config_to_json(c).dump()));
  EXPECT_EQ(published.eps, 1e-6);
  EXPECT_EQ(published.heads(), 3);
  EXPECT_TRUE(original.skip_features && original.norm_first);
  EXPECT_EQ(original.scanned_width(), 36);
  EXPECT_EQ(original.parameter_count(), unusual().parameter_count());
  EXPECT_EQ(published.parameter_count(), c.parameter_count());
  for (const Mamba2Config& r : {original, published}) {
    EXPECT_EQ(r.conv, 3);
    EXPECT_EQ(r.groups, 3);
    EXPECT_EQ(r.dt_low, 0.02);
    EXPECT_EQ(r.dt_high, 0.06);
    EXPECT_TRUE(r.bias && !r.tie && !r.conv_bias);
  }
  c.dt_high = INFINITY;  // which JSON cannot say
  EXPECT_GT(mamba2_config_from_json(json::parse(mamba2_config_to_json(c).dump())).dt_high, 1e300);
}

TEST(Mamba2Config, WhatMakesNoSenseIsNamed) {
  const auto with = [](const char* key, const json& value, std::vector<std::string> words) {
    json k = mamba2_config_to_json(small2());
    k[key] = value;
    SCOPED_TRACE(key);
    expect_error(ErrorKind::io, words, [&] { mamba2_config_from_json(k); });
  };
  with("time_step_limit", {0.5, 0.1}, {"limits of the step size", "dt_low 0.5, dt_high 0.1"});
  with("time_step_limit", {-1, 0.1}, {"limits of the step size"});
  with("time_step_limit", json::array({0.5}), {"two numbers are expected", "time_step_limit = [0.5]"});
  with("time_step_limit", {0, {{"__float__", "NaN"}}}, {"two numbers are expected"});
  with("num_heads", 5, {"the heads do not make up the inner width", "num_heads = 5, head_dim = 12"});
  with("n_groups", 3, {"heads of 12, 3 groups"});
  with("chunk_size", 0, {"chunk = 0"});
  with("state_size", -1, {"state = -1"});
  with("state_size", "8", {"an integer is expected"});
  with("model_type", "mamba", {"no such feature"});
  with("rms_norm", false, {"only true is supported"});
  with("hidden_act", "gelu", {"only \"silu\" or \"swish\" is supported"});
  with("intermediate_size", 64, {"contradict"});
  with("state_sise", 4, {"'state_sise'; did you mean 'state_size'?"});
  json j = mamba2_config_to_json(small2());
  j.erase("state_size"), j.erase("num_heads");
  expect_error(ErrorKind::io, {"size keys are missing: state_size, num_heads"}, [&] { mamba2_config_from_json(j); });
  json original = to_original(small2());
  original["ssm_cfg"]["rmsnorm"] = false;
  expect_error(ErrorKind::io, {"ssm_cfg", "rmsnorm = false"}, [&] { mamba2_config_from_json(original); });
  original["ssm_cfg"] = {{"layer", "Mamba1"}};
  expect_error(ErrorKind::io, {"layer = \"Mamba1\""}, [&] { mamba2_config_from_json(original); });
  expect_error(ErrorKind::usage, {"20000 layers"}, [] { Mamba2({.vocab = 8, .width = 32, .layers = 20000}); });
  expect_error(ErrorKind::usage, {"heads of 64"}, [] { Mamba2({.vocab = 8, .width = 24, .layers = 1}); });
}

// ---- checkpoints ------------------------------------------------------------------------------------------------------------

Values logits_of(LanguageModel& model, const std::vector<std::int64_t>& ids) {
  return run([&] { return model(Tensor::from(ids, {1, std::int64_t(ids.size())})); }).to_host<double>();
}

TEST(Mamba2Checkpoint, BothNameMapsGoRound) {
  const auto ids = ids_of(9);
  for (const Mamba2Config& config : {small2(), unusual()})
    for (CheckpointNames names : {CheckpointNames::hugging_face, CheckpointNames::original}) {
      const bool original = names == CheckpointNames::original;
      if (!original && config.norm_first) continue;
      const TempFolder folder;
      seed(4);
      Mamba2 model(config);
      model.save(folder.path(), names);
      const TensorMap saved = read_safetensors(folder / "model.safetensors");
      EXPECT_EQ(saved.contains("backbone.embedding.weight"), original);
      EXPECT_EQ(saved.contains("backbone.embeddings.weight"), !original);
      EXPECT_EQ(saved.contains("lm_head.weight"), original || !config.tie);
      for (const char* name : {"in_proj.weight", "conv1d.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight"})
        EXPECT_TRUE(saved.contains(std::string("backbone.layers.1.mixer.") + name)) << name;
      EXPECT_EQ(saved.at("backbone.layers.1.mixer.conv1d.weight").shape,
                (std::vector<std::int64_t>{config.conv_width(), 1, config.conv}));
      seed(5);
      Mamba2 loaded = Mamba2::load(folder.path());
      EXPECT_EQ(logits_of(loaded, ids), logits_of(model, ids));
    }
  seed(0);
}

// ---- the mathematics --------------------------------------------------------------------------------------------------------

// One sequence on the host in double, step by step, from the weights by name.
Values stepwise_logits(const Mamba2& model, const std::vector<std::int64_t>& ids) {
  const Mamba2Config& c = model.config();
  std::map<std::string, Values> w;
  for (const auto& [name, tensor] : model.state_dict()) w[name] = tensor.values<double>();
  const auto d = std::size_t(c.width), inner = std::size_t(c.inner_width()), s = std::size_t(c.scanned_width()),
             n = std::size_t(c.state), p = std::size_t(c.head), heads = s / p, groups = std::size_t(c.groups),
             gated = inner - s, width = std::size_t(c.conv), channels = s + 2 * groups * n, rows = std::size_t(c.rows());
  const auto product = [&](const std::string& name, const Values& x, std::size_t out) {
    Values y(out);
    for (std::size_t o = 0; o < out; ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += w.at(name + ".weight")[o * x.size() + i] * x[i];
    if (w.contains(name + ".bias"))
      for (std::size_t o = 0; o < out; ++o) y[o] += w.at(name + ".bias")[o];
    return y;
  };
  const auto norm = [&](Values x, const Values& weight, std::size_t size) {
    for (std::size_t first = 0; first < x.size(); first += size) {
      double square = 0;
      for (std::size_t i = first; i < first + size; ++i) square += x[i] * x[i] / double(size);
      for (std::size_t i = first; i < first + size; ++i) x[i] *= weight[i] / std::sqrt(square + c.eps);
    }
    return x;
  };
  const auto silu_of = [](double v) { return v / (1 + std::exp(-v)); };
  std::vector<Values> conv(std::size_t(c.layers), Values(channels * width)), ssm(std::size_t(c.layers), Values(s * n));
  Values logits;
  for (std::int64_t id : ids) {
    const Values& table = w.at("backbone.embeddings.weight");
    Values x(table.begin() + id * c.width, table.begin() + (id + 1) * c.width);
    for (std::size_t l = 0; l < std::size_t(c.layers); ++l) {
      const std::string base = "backbone.layers." + std::to_string(l), m = base + ".mixer.";
      const Values q = product(m + "in_proj", norm(x, w[base + ".norm.weight"], d), 2 * gated + s + channels + heads);
      const double *z = q.data() + 2 * gated, *fresh = z + s, *raw = fresh + channels;
      Values u(channels), y(s);
      for (std::size_t i = 0; i < channels; ++i) {
        double* past = &conv[l][i * width];
        for (std::size_t j = 0; j + 1 < width; ++j) past[j] = past[j + 1];
        past[width - 1] = fresh[i];
        double pre = c.conv_bias ? w[m + "conv1d.bias"][i] : 0;
        for (std::size_t j = 0; j < width; ++j) pre += past[j] * w[m + "conv1d.weight"][i * width + j];
        u[i] = silu_of(pre);
      }
      for (std::size_t i = 0; i < s; ++i) {
        const std::size_t h = i / p, g = h / (heads / groups);
        const double step = std::clamp(std::log1p(std::exp(raw[h] + w[m + "dt_bias"][h])), c.dt_low, c.dt_high);
        y[i] = w[m + "D"][c.skip_features ? i : h] * u[i];
        for (std::size_t k = 0; k < n; ++k) {
          double& state = ssm[l][i * n + k];
          state = std::exp(-step * std::exp(w[m + "A_log"][h])) * state + step * u[i] * u[s + g * n + k];
          y[i] += u[s + groups * n + g * n + k] * state;
        }
        if (!c.norm_first) y[i] *= silu_of(z[i]);
      }
      y = norm(y, w[m + "norm.weight"], s / groups);
      Values both(inner);
      for (std::size_t i = 0; i < gated; ++i) both[i] = silu_of(q[i]) * q[gated + i];
      for (std::size_t i = 0; i < s; ++i) both[gated + i] = c.norm_first ? y[i] * silu_of(z[i]) : y[i];
      const Values out = product(m + "out_proj", both, d);
      for (std::size_t i = 0; i < d; ++i) x[i] += out[i];
    }
    const Values head = product(c.tie ? "backbone.embeddings" : "lm_head", norm(x, w["backbone.norm_f.weight"], d), rows);
    logits.insert(logits.end(), head.begin(), head.end());
  }
  return logits;
}

TEST(Mamba2, EqualsTheStepwiseFormulasInDouble) {
  for (std::int64_t width : {1, 2, 4})
    for (bool plain : {true, false}) {
      Mamba2Config c = plain ? small2() : unusual();
      c.conv = width, c.dtype = DType::f64, c.embedding_deviation = 0.5;
      if (!plain) c.norm_first = width != 2;
      Mamba2 model(c);
      const auto ids = ids_of(11);
      EXPECT_LT(farthest(logits_of(model, ids), stepwise_logits(model, ids)), 1e-11) << width << plain;
    }
}

TEST(Mamba2, PrefillThenStepsEqualsPrefill) {
  for (bool plain : {true, false}) {
    Mamba2Config c = plain ? small2() : unusual();
    c.embedding_deviation = 0.5;
    Mamba2 model(c);
    constexpr std::int64_t kLength = 7;
    const auto ids = ids_of(2 * kLength);
    const auto part = [&](std::int64_t from, std::int64_t to) {
      std::vector<std::int64_t> values;
      for (std::int64_t b = 0; b < 2; ++b)
        values.insert(values.end(), ids.begin() + b * kLength + from, ids.begin() + b * kLength + to);
      return Tensor::from(values, {2, to - from});
    };
    const auto all = run([&] { return slice(model(part(0, kLength)), 1, kLength - 1, kLength); }).to_host<double>();
    const Mamba2Cache cache(c, 2);
    const auto at_once = run([&] { return model.prefill(part(0, kLength), cache); }).to_host<double>();
    EXPECT_LT(farthest(all, at_once), 1e-5);
    for (std::int64_t k = 1; k < kLength; ++k) {
      Values logits;
      run([&] { return model.prefill(part(0, kLength - k), cache); });
      for (std::int64_t t = kLength - k; t < kLength; ++t)
        logits = run([&] { return model.step(part(t, t + 1), cache); }).to_host<double>();
      EXPECT_LT(farthest(logits, at_once), 1e-5) << "k = " << k;
    }
    run([&] { return model.prefill(part(0, 3), cache); });  // several tokens a step
    EXPECT_LT(farthest(run([&] { return model.step(part(3, kLength), cache); }).to_host<double>(), at_once), 1e-5);
  }
}

// Limits of the step size keep their meaning where texts have ended: their state stays, though the least step is not 0.
TEST(Mamba2, TextsOfUnequalLengthAreAsAlone) {
  for (bool plain : {true, false}) {
    Mamba2Config c = plain ? small2() : unusual();
    c.embedding_deviation = 0.5;
    Mamba2 model(c);
    const std::vector<std::vector<std::int64_t>> texts = {{3, 14, 15, 9, 26}, {27, 1}};
    const Mamba2Cache cache(c, 2);
    const Tensor padded = Tensor::from(std::vector<std::int64_t>{3, 14, 15, 9, 26, 27, 1, 0, 0, 0}, {2, 5});
    const Tensor lengths = Tensor::from(std::vector<std::int64_t>{5, 2}, {2});
    const Values first = run([&] { return model.prefill(padded, cache, lengths); }).to_host<double>();
    const Values second = run([&] {
                            return model.step(Tensor::from(std::vector<std::int64_t>{7, 7}, {2, 1}), cache);
                          }).to_host<double>();
    const std::size_t rows = first.size() / 2;
    for (std::size_t b = 0; b < 2; ++b) {
      auto text = texts[b];
      const auto last = [&] {
        const Values logits = logits_of(model, text);
        return Values(logits.end() - std::ptrdiff_t(rows), logits.end());
      };
      const auto row = [&](const Values& of) {
        return Values(of.begin() + std::ptrdiff_t(b * rows), of.begin() + std::ptrdiff_t((b + 1) * rows));
      };
      EXPECT_LT(farthest(row(first), last()), 1e-5) << b;
      text.push_back(7);
      EXPECT_LT(farthest(row(second), last()), 1e-5) << b;
    }
  }
}

TEST(Mamba2, IsCausalAndItsRowsIndependent) {
  Mamba2 model(small2());
  auto ids = ids_of(12);
  const auto logits = [&] { return run([&] { return model(Tensor::from(ids, {2, 6})); }).to_host<float>(); };
  const auto before = logits();
  ids[4] = (ids[4] + 1) % 50;
  const auto after = logits();
  for (std::size_t i = 0; i < before.size(); ++i) {
    const std::size_t t = i / 50;
    if (t < 4 || t >= 6) {
      EXPECT_EQ(before[i], after[i]) << t;
    }
  }
  EXPECT_NE(before, after);
}

TEST(Mamba2, Bf16ActivationsStayClose) {
  Mamba2Config c = small2();
  c.embedding_deviation = 0.5;
  seed(2);
  Mamba2 exact(c);
  c.activations = DType::bf16;
  seed(2);
  Mamba2 rounded(c);
  const auto ids = ids_of(20);
  const Values a = logits_of(exact, ids), b = logits_of(rounded, ids);
  double scale = 0;
  for (double v : a) scale = std::max(scale, std::abs(v));
  EXPECT_LT(farthest(a, b), 2e-2 * scale);
  EXPECT_NE(a, b);
  seed(0);
}

TEST(Mamba2, RecomputingBlocksChangesNoGradient) {
  std::vector<Values> gradients;
  for (bool recompute : {false, true}) {
    seed(6);
    Mamba2Config c = small2();
    c.recompute = recompute;
    Mamba2 model(c);
    const Tensor ids = Tensor::from(ids_of(12), {2, 6});
    AdamW opt(model.parameters());
    run([&] {
      backward(cross_entropy(model(ids), ids));
      opt.step();
    });
    Values all;
    for (const Param& p : model.parameters())
      for (double v : p.to_host<double>()) all.push_back(v);
    gradients.push_back(all);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
  seed(0);
}

TEST(Mamba2, CountsItsArithmeticAndItsCache) {
  const Mamba2 model(small2());
  // in_proj 24 x (48 + 64 + 4), conv 64 x 4, out_proj 48 x 24, states 48 x 8, head 50 x 24
  EXPECT_EQ(model.flops_per_token(9), 2 * (2 * (24 * 116 + 64 * 4 + 48 * 24) + 5 * 48 * 8) + 2 * 50 * 24);
  EXPECT_EQ(model.cache_bytes(9).states, 2 * 4 * (3 * 64 + 48 * 8));
}

class Mamba2Golden : public testing::TestWithParam<DType> {};

TEST_P(Mamba2Golden, Agrees) {
  const fs::path folder = fs::path(WEFT_SOURCE_DIR) / "tests" / "golden" / "mamba2";
  const std::vector<VerifyRow> rows = verify_model(folder, GetParam());
  EXPECT_GT(rows.size(), 25u);
  for (const VerifyRow& row : rows) EXPECT_TRUE(row.passed()) << row.what << ": " << row.error << " " << row.unit;
}

INSTANTIATE_TEST_SUITE_P(Types, Mamba2Golden, testing::Values(DType::f32, DType::f64));

}  // namespace
}  // namespace weft
