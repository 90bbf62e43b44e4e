// The Mamba language model: sizes, configurations, checkpoints, states, golden values.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "jit/json.h"
#include "jit/parallel.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/evaluate/verify.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kGolden = fs::path(WEFT_SOURCE_DIR) / "tests" / "golden";

MambaConfig small() { return {.vocab = 50, .width = 24, .layers = 2, .state = 8}; }

std::vector<std::int64_t> some_ids(std::size_t n, std::int64_t vocab = 50) {
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(std::int64_t((i * 17 + i * i * 5 + 3) % std::size_t(vocab)));
  return ids;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0;
  for (std::size_t i = 0; i < a.size(); ++i) d = std::max(d, std::abs(a[i] - b[i]));
  return d;
}

// ---- sizes ------------------------------------------------------------------------------------------------------------------

TEST(Mamba, ParameterCountsOfThePublishedModels) {
  const struct {
    std::int64_t layers, width, total;
  } models[] = {
      {24, 768, 129135360}, {48, 1024, 371516416}, {48, 1536, 793204224}, {48, 2048, 1372178432}, {64, 2560, 2768345600}};
  for (const auto& m : models) {
    const MambaConfig c{.vocab = 50277, .width = m.width, .layers = m.layers, .vocab_padding = 8};
    EXPECT_EQ(c.parameter_count(), m.total) << m.width;
  }
}

TEST(Mamba, CountsAgreeWithRealModels) {
  MambaConfig c = small();
  EXPECT_EQ(Mamba(c).parameter_count(), c.parameter_count());
  c.bias = true, c.conv_bias = false, c.tie = false, c.conv = 3, c.rank = 5, c.inner = 40, c.vocab_padding = 16;
  EXPECT_EQ(c.rows(), 64);
  EXPECT_EQ(Mamba(c).parameter_count(), c.parameter_count());
}

TEST(Mamba, InitialValuesAndDecay) {
  const Mamba model(small());
  for (const NamedParam& p : model.named_parameters()) {
    const auto values = p.param.to_host<double>();
    double largest = 0;
    for (double v : values) largest = std::max(largest, std::abs(v));
    const bool matrix =
        p.name.ends_with("proj.weight") || p.name.ends_with("conv1d.weight") || p.name.ends_with("embeddings.weight");
    EXPECT_EQ(p.param.decay(), matrix) << p.name;
    if (p.name.ends_with("A_log")) {
      EXPECT_NEAR(values[9], std::log(2), 1e-6);
    }
    if (p.name.ends_with(".D") || p.name.ends_with("norm.weight")) {
      EXPECT_EQ(values[1], 1);
    }
    if (p.name.ends_with("in_proj.weight")) {
      EXPECT_NEAR(largest, 1 / std::sqrt(24.0), 0.01);
    }
    if (p.name.ends_with("out_proj.weight")) {
      EXPECT_NEAR(largest, 1 / std::sqrt(48.0 * 2), 0.01);
    }
    for (double v : p.name.ends_with("dt_proj.bias") ? values : std::vector<double>{})
      EXPECT_TRUE(std::log1p(std::exp(v)) > 0.999e-3 && std::log1p(std::exp(v)) < 0.1001) << v;
  }
}

// ---- configurations ---------------------------------------------------------------------------------------------------------

const char* const kOriginal = R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
  "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8})";
// The published conversions repeat the sizes under both names.
const char* const kPublished =
    R"({"architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536,
  "d_model": 768, "eos_token_id": 0, "expand": 2, "fused_add_norm": true, "hidden_act": "silu", "hidden_size": 768,
  "initializer_range": 0.1, "intermediate_size": 1536, "layer_norm_epsilon": 1e-05, "model_type": "mamba", "n_layer": 24,
  "num_hidden_layers": 24, "pad_token_id": 0, "pad_vocab_size_multiple": 8, "rescale_prenorm_residual": false,
  "residual_in_fp32": true, "rms_norm": true, "ssm_cfg": {}, "state_size": 16, "time_step_floor": 0.0001,
  "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 48,
  "time_step_scale": 1.0, "torch_dtype": "float32", "transformers_version": "4.39.0.dev0", "use_bias": false,
  "use_cache": true, "use_conv_bias": true, "vocab_size": 50280})";

TEST(MambaConfig, ReadsBothKeySets) {
  for (const char* text : {kOriginal, kPublished}) {
    const MambaConfig c = mamba_config_from_json(json::parse(text));
    EXPECT_EQ(c.parameter_count(), 129135360);
    EXPECT_EQ(c.dt_rank(), 48);
    EXPECT_TRUE(c.tie);
  }
  EXPECT_EQ(mamba_config_from_json(json::parse(kOriginal)).vocab, 50277);
}

TEST(MambaConfig, SurvivesBothForms) {
  MambaConfig c = small();
  c.bias = true, c.tie = false, c.conv = 3, c.rank = 7, c.expand = 3, c.eps = 1e-5;
  for (const json& form : {to_hugging_face(c), to_original(c)}) {
    const MambaConfig r = mamba_config_from_json(form);
    EXPECT_EQ(r.parameter_count(), c.parameter_count());
    EXPECT_EQ(r.conv, 3);
    EXPECT_EQ(r.dt_rank(), 7);
    EXPECT_EQ(r.inner_width(), 72);
    EXPECT_TRUE(r.bias && !r.tie && r.conv_bias);
  }
}

TEST(MambaConfig, UnknownKeysAreListedWithSuggestions) {
  json j = to_hugging_face(small());
  j["state_sise"] = 4, j["hidden_dropout"] = 0.1;
  expect_error(ErrorKind::io, {"unknown keys", "'state_sise'; did you mean 'state_size'?", "'hidden_dropout'"},
               [&] { mamba_config_from_json(j); });
}

TEST(MambaConfig, MissingSizesWrongTypesAndOtherModelsAreErrors) {
  json j = to_hugging_face(small());
  j.erase("state_size"), j.erase("hidden_size");
  expect_error(ErrorKind::io, {"size keys are missing: hidden_size, state_size"}, [&] { mamba_config_from_json(j); });
  expect_error(ErrorKind::io, {"n_layer, vocab_size"}, [&] { mamba_config_from_json(json::parse(R"({"d_model": 8})")); });
  expect_error(ErrorKind::io, {"hidden_size"}, [&] { mamba_config_from_json(json::object()); });
  const auto with = [](const char* key, const json& value, const char* words) {
    json k = to_hugging_face(small());
    k[key] = value;
    expect_error(ErrorKind::io, {words}, [&] { mamba_config_from_json(k); });
  };
  with("hidden_size", "64", "an integer is expected");
  with("hidden_size", -4, "width = -4");
  with("model_type", "mamba2", "no such feature");
  with("hidden_act", "gelu", "only \"silu\" or \"swish\" is supported");
  with("n_layer", 5, "contradict");
  with("d_intermediate", 64, "d_intermediate = 64");
}

TEST(MambaConfig, SpecialTokensGoRoundAndAreOnlyThoseThatTheModelHas) {
  MambaConfig c = small();
  json form = to_hugging_face(c);
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) EXPECT_TRUE(form.at(key).is_null()) << key;
  EXPECT_TRUE(mamba_config_from_json(form).eos.empty());
  c.bos = 1, c.eos = {2};
  const MambaConfig r = mamba_config_from_json(to_hugging_face(c));
  EXPECT_EQ(r.bos, 1);
  EXPECT_EQ(r.eos, (std::vector<std::int64_t>{2}));
  EXPECT_FALSE(r.pad);
  form["eos_token_id"] = {7, 8}, form["pad_token_id"] = -1;
  EXPECT_EQ(mamba_config_from_json(form).eos, (std::vector<std::int64_t>{7, 8}));
  EXPECT_FALSE(mamba_config_from_json(form).pad);
  form["eos_token_id"] = "</s>";
  expect_error(ErrorKind::io, {"a token's id is expected", "</s>"}, [&] { mamba_config_from_json(form); });
}

TEST(MambaConfig, SizesThatNoMachineHoldsAreErrors) {
  for (const char* key :
       {"hidden_size", "vocab_size", "state_size", "conv_kernel", "expand", "intermediate_size", "time_step_rank"}) {
    json j = to_hugging_face(small());
    j[key] = 9223372036854775807;
    expect_error(ErrorKind::io, {"no size is so large", key}, [&] { mamba_config_from_json(j); });
    j[key] = 18446744073709551615u;
    expect_error(ErrorKind::io, {key}, [&] { mamba_config_from_json(j); });
  }
  json j = to_hugging_face(small());
  j["hidden_size"] = j["intermediate_size"] = 1 << 30;
  expect_error(ErrorKind::io, {"at most 10000 layers and 1e+12 parameters"}, [&] { mamba_config_from_json(j); });
  expect_error(ErrorKind::usage, {"20000 layers"}, [] { Mamba({.vocab = 8, .width = 8, .layers = 20000}); });
  expect_error(ErrorKind::usage, {"expand = -1"}, [] { Mamba({.vocab = 8, .width = 8, .layers = 1, .expand = -1}); });
  MambaConfig c = small();
  c.eps = NAN;
  expect_error(ErrorKind::usage, {"eps nan"}, [&] { c.check(); });
}

// ---- checkpoints ------------------------------------------------------------------------------------------------------------

std::vector<double> logits_of(Mamba& model, const std::vector<std::int64_t>& ids) {
  return run([&] { return model(Tensor::from(ids, {1, std::int64_t(ids.size())})); }).to_host<double>();
}

TEST(MambaCheckpoint, BothNameMapsGoRound) {
  const auto ids = some_ids(9);
  for (bool tie : {true, false})
    for (CheckpointNames names : {CheckpointNames::hugging_face, CheckpointNames::original}) {
      const TempFolder folder;
      seed(4);
      MambaConfig config = small();
      config.tie = tie;
      Mamba model(config);
      model.save(folder.path(), names);
      const TensorMap saved = read_safetensors(folder / "model.safetensors");
      const bool original = names == CheckpointNames::original;
      EXPECT_EQ(saved.contains("backbone.embedding.weight"), original);
      EXPECT_EQ(saved.contains("backbone.embeddings.weight"), !original);
      EXPECT_EQ(saved.contains("lm_head.weight"), original || !tie);
      EXPECT_EQ(saved.at("backbone.layers.1.mixer.conv1d.weight").shape, (std::vector<std::int64_t>{48, 1, 4}));
      seed(5);
      Mamba loaded = Mamba::load(folder.path());
      EXPECT_EQ(logits_of(loaded, ids), logits_of(model, ids));
    }
  seed(0);
}

TEST(MambaCheckpoint, LargeModelsAreSavedAndLoadedAsShards) {
  const TempFolder folder;
  Mamba model(small());
  const auto save = [&](std::size_t limit) { model.save(folder.path(), CheckpointNames::hugging_face, limit); };
  save(10'000);
  EXPECT_FALSE(fs::exists(folder / "model.safetensors"));
  const json index = read_json(folder / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 4 * model.parameter_count());
  EXPECT_EQ(index["weight_map"].size(), model.state_dict().size());
  EXPECT_EQ(index["weight_map"]["backbone.embeddings.weight"], "model-00001-of-00006.safetensors");
  for (const auto& [name, shard] : index["weight_map"].items())
    EXPECT_LT(fs::file_size(folder / shard.get<std::string>()), 12'000u) << "but for a tensor that is larger by itself";
  Mamba loaded = Mamba::load(folder.path());
  EXPECT_EQ(logits_of(loaded, some_ids(9)), logits_of(model, some_ids(9)));
  save(1'000'000);  // the other form replaces the first
  EXPECT_TRUE(fs::exists(folder / "model.safetensors") && !fs::exists(folder / "model.safetensors.index.json"));
  Mamba::load(folder.path());
  save(10'000);
  EXPECT_FALSE(fs::exists(folder / "model.safetensors"));
  Mamba::load(folder.path());
}

TEST(MambaCheckpoint, AllThatDoesNotFitIsListedAtOnce) {
  const TempFolder folder;
  Mamba(small()).save(folder.path());
  TensorMap tensors = read_safetensors(folder / "model.safetensors");
  tensors["backbone.layers.0.mixer.D"].shape = {6, 8};
  tensors["extra"] = tensors.at("backbone.norm_f.weight");
  tensors.erase("backbone.layers.1.norm.weight");
  write_safetensors(folder / "model.safetensors", tensors);
  expect_error(ErrorKind::io,
               {"3 problems", "shape of backbone.layers.0.mixer.D: the file has (6, 8), the model (48,)",
                "missing: backbone.layers.1.norm.weight (24,)", "unexpected: extra (24,)"},
               [&] { Mamba::load(folder.path()); });
}

TEST(MambaCheckpoint, NothingIsAllocatedForAConfigurationFarFromTheFile) {
  const TempFolder folder;
  Mamba(small()).save(folder.path());
  json config = read_json(folder / "config.json");
  config["vocab_size"] = 1'000'000'000;
  folder.write("config.json", config.dump());
  expect_error(ErrorKind::io, {"the configuration is that of another model", "240000", "elements"},
               [&] { Mamba::load(folder.path()); });
}

TEST(MambaCheckpoint, AFolderWithAPickleAloneSaysSo) {
  const TempFolder folder;
  folder.write("config.json", to_hugging_face(small()).dump());
  folder.write("pytorch_model.bin", "PK");
  expect_error(ErrorKind::io, {"no model in", "pytorch_model.bin is a pickle", "save_pretrained"},
               [&] { Mamba::load(folder.path()); });
}

TEST(MambaCheckpoint, ATiedHeadThatDiffersIsAnError) {
  Mamba model(small());
  TensorMap tensors = model.weights(CheckpointNames::original);
  tensors["lm_head.weight"].bytes[3] ^= std::byte(1);
  expect_error(ErrorKind::io, {"the head differs from the embedding"}, [&] { model.load_weights(tensors); });
}

// ---- the mathematics --------------------------------------------------------------------------------------------------------

// One sequence on the host in double, step by step, from the weights by name.
std::vector<double> reference_logits(const Mamba& model, const std::vector<std::int64_t>& ids) {
  const MambaConfig& c = model.config();
  std::map<std::string, std::vector<double>> w;
  for (const auto& [name, tensor] : model.state_dict()) w[name] = tensor.values<double>();
  const auto d = std::size_t(c.width), inner = std::size_t(c.inner_width()), n = std::size_t(c.state),
             width = std::size_t(c.conv), rank = std::size_t(c.dt_rank()), rows = std::size_t(c.rows());
  const auto product = [](const std::vector<double>& weight, const double* x, std::size_t out, std::size_t in) {
    std::vector<double> y(out);
    for (std::size_t o = 0; o < out; ++o)
      for (std::size_t i = 0; i < in; ++i) y[o] += weight[o * in + i] * x[i];
    return y;
  };
  const auto norm = [&](std::vector<double> x, const std::vector<double>& weight) {
    double square = 0;
    for (double v : x) square += v * v / double(d);
    for (std::size_t i = 0; i < d; ++i) x[i] *= weight[i] / std::sqrt(square + c.eps);
    return x;
  };
  const auto silu_of = [](double v) { return v / (1 + std::exp(-v)); };
  std::vector<std::vector<double>> conv(std::size_t(c.layers), std::vector<double>(inner * width)),
      ssm(std::size_t(c.layers), std::vector<double>(inner * n));
  std::vector<double> logits;
  for (std::int64_t id : ids) {
    const auto& table = w.at("backbone.embeddings.weight");
    std::vector<double> x(table.begin() + id * c.width, table.begin() + (id + 1) * c.width);
    for (std::size_t l = 0; l < std::size_t(c.layers); ++l) {
      const std::string base = "backbone.layers." + std::to_string(l), m = base + ".mixer.";
      auto xz = product(w[m + "in_proj.weight"], norm(x, w[base + ".norm.weight"]).data(), 2 * inner, d);
      if (c.bias)
        for (std::size_t i = 0; i < 2 * inner; ++i) xz[i] += w[m + "in_proj.bias"][i];
      std::vector<double> u(inner), o(inner);
      for (std::size_t i = 0; i < inner; ++i) {
        double* past = &conv[l][i * width];
        for (std::size_t j = 0; j + 1 < width; ++j) past[j] = past[j + 1];
        past[width - 1] = xz[i];
        double pre = c.conv_bias ? w[m + "conv1d.bias"][i] : 0;
        for (std::size_t j = 0; j < width; ++j) pre += past[j] * w[m + "conv1d.weight"][i * width + j];
        u[i] = silu_of(pre);
      }
      const auto q = product(w[m + "x_proj.weight"], u.data(), rank + 2 * n, inner);
      const auto delta = product(w[m + "dt_proj.weight"], q.data(), inner, rank);
      for (std::size_t i = 0; i < inner; ++i) {
        const double step = std::log1p(std::exp(delta[i] + w[m + "dt_proj.bias"][i]));
        double s = w[m + "D"][i] * u[i];
        for (std::size_t k = 0; k < n; ++k) {
          double& h = ssm[l][i * n + k];
          h = std::exp(-step * std::exp(w[m + "A_log"][i * n + k])) * h + step * q[rank + k] * u[i];
          s += q[rank + n + k] * h;
        }
        o[i] = s * silu_of(xz[inner + i]);
      }
      const auto y = product(w[m + "out_proj.weight"], o.data(), d, inner);
      for (std::size_t i = 0; i < d; ++i) x[i] += y[i] + (c.bias ? w[m + "out_proj.bias"][i] : 0);
    }
    const auto head = product(c.tie ? table : w["lm_head.weight"], norm(x, w["backbone.norm_f.weight"]).data(), rows, d);
    logits.insert(logits.end(), head.begin(), head.end());
  }
  return logits;
}

TEST(Mamba, EqualsTheStepwiseFormulasInDouble) {
  for (std::int64_t width : {1, 2, 4, 5})
    for (bool plain : {true, false}) {
      MambaConfig c = small();
      c.conv = width, c.dtype = DType::f64, c.embedding_deviation = 0.5;
      if (!plain) c.bias = true, c.conv_bias = false, c.tie = false, c.rank = 3;
      Mamba model(c);
      const auto ids = some_ids(11);
      EXPECT_LT(largest_difference(logits_of(model, ids), reference_logits(model, ids)), 1e-11) << width << plain;
    }
}

TEST(Mamba, PrefillThenStepsEqualsPrefill) {
  for (std::int64_t width : {4, 1, 3}) {
    MambaConfig c = small();
    c.conv = width, c.embedding_deviation = 0.5;
    Mamba model(c);
    constexpr std::int64_t kLength = 7;
    const auto ids = some_ids(2 * kLength);
    const auto part = [&](std::int64_t from, std::int64_t to) {
      std::vector<std::int64_t> values;
      for (std::int64_t b = 0; b < 2; ++b)
        values.insert(values.end(), ids.begin() + b * kLength + from, ids.begin() + b * kLength + to);
      return Tensor::from(values, {2, to - from});
    };
    const auto all = run([&] { return slice(model(part(0, kLength)), 1, kLength - 1, kLength); }).to_host<double>();
    const MambaCache cache(c, 2);
    const auto at_once = run([&] { return model.prefill(part(0, kLength), cache); }).to_host<double>();
    EXPECT_LT(largest_difference(all, at_once), 1e-5);
    for (std::int64_t k = 1; k < kLength; ++k) {
      std::vector<double> logits;
      run([&] { return model.prefill(part(0, kLength - k), cache); });
      for (std::int64_t t = kLength - k; t < kLength; ++t)
        logits = run([&] { return model.step(part(t, t + 1), cache); }).to_host<double>();
      EXPECT_LT(largest_difference(logits, at_once), 1e-5) << "k = " << k << ", conv width " << width;
    }
    run([&] { return model.prefill(part(0, 3), cache); });  // several tokens a step
    EXPECT_LT(largest_difference(run([&] { return model.step(part(3, kLength), cache); }).to_host<double>(), at_once), 1e-5);
  }
}

TEST(Mamba, IsCausalAndItsRowsIndependent) {
  Mamba model(small());
  auto ids = some_ids(12);
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

TEST(Mamba, MasksOfTheMixerLearn) {
  seed(3);
  Mamba model(small());
  for (std::int64_t l = 0; l < 2; ++l) {
    model.block(l).mixer().in_proj().mask({});
    model.block(l).mixer().conv1d().mask({});
    model.block(l).mixer().out_proj().mask({});
  }
  const std::vector<GumbelMask> masks = model.parts<GumbelMask>();
  EXPECT_EQ(masks.size(), 6u);
  AdamW opt(model.parameters(), {.lr = 1e-2});
  const auto ids = some_ids(32);
  const Tensor inputs = Tensor::from(ids, {2, 16});
  const double before = masks[0].expected_sparsity();
  double loss = 0;
  for (int i = 0; i < 5; ++i)
    loss = run([&] {
             Tensor l = cross_entropy(model(inputs), inputs) + mask_penalty(masks, 1.0, 0.3);
             backward(l);
             opt.step();
             return l;
           }).item();
  EXPECT_TRUE(std::isfinite(loss));
  EXPECT_LT(masks[0].expected_sparsity(), before);  // from 0.5 towards 0.3
  EXPECT_TRUE(model.state_dict().contains("backbone.layers.0.mixer.in_proj.mask.logits"));
  model.train(false);
  EXPECT_EQ(logits_of(model, ids), logits_of(model, ids));
}

// Masks on all weights, of the tied embedding and the step size too, do what zeros in the weights do.
TEST(Mamba, NoUseOfAWeightMissesItsMask) {
  seed(3);
  Mamba model(small());
  TensorMap weights = model.state_dict();
  model.train(false);
  for (WeightedModule& layer : model.parts<WeightedModule>()) {
    layer.mask({});
    std::vector<double> w = layer.weight().to_host<double>(), l(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) l[i] = i % 3 ? 1 : -1, w[i] *= i % 3 ? 1 : 0;
    Param(layer.mask()->logits()).set(l);
    HostTensor& t = weights.at(layer.path() + ".weight");
    t = HostTensor::from<double>(t.dtype, t.shape, w);
  }
  EXPECT_EQ(model.parts<GumbelMask>().size(), 11u);
  Mamba zeroed(small());
  zeroed.load_state_dict(weights);
  EXPECT_LT(largest_difference(logits_of(model, some_ids(9)), logits_of(zeroed, some_ids(9))), 1e-6);
}

TEST(Mamba, Bf16ActivationsStayClose) {
  MambaConfig c = small();
  c.embedding_deviation = 0.5;
  seed(2);
  Mamba exact(c);
  c.activations = DType::bf16;
  seed(2);
  Mamba rounded(c);
  const auto ids = some_ids(20);
  const auto a = logits_of(exact, ids), b = logits_of(rounded, ids);
  double scale = 0;
  for (double v : a) scale = std::max(scale, std::abs(v));
  EXPECT_LT(largest_difference(a, b), 2e-2 * scale);
  EXPECT_NE(a, b);
  seed(0);
}

TEST(Mamba, ThreadsDoNotChangeABit) {
  const int before = threads();
  std::vector<TensorMap> weights;
  for (int n : {1, 2, 3}) {
    set_threads(n);
    seed(0);
    Mamba model({.vocab = 61, .width = 48, .layers = 2, .state = 16});
    AdamW opt(model.parameters());
    const Tensor inputs = Tensor::from(some_ids(3 * 70, 61), {3, 70});
    for (int i = 0; i < 3; ++i)
      run([&] {
        backward(cross_entropy(model(inputs), inputs));
        opt.step();
      });
    weights.push_back(model.state_dict());
  }
  set_threads(before);
  for (const auto& [name, tensor] : weights[0]) {
    EXPECT_EQ(tensor.bytes, weights[1].at(name).bytes) << name;
    EXPECT_EQ(tensor.bytes, weights[2].at(name).bytes) << name;
  }
}

class MambaGolden : public testing::TestWithParam<std::pair<const char*, DType>> {};

TEST_P(MambaGolden, Agrees) {
  const auto [folder, dtype] = GetParam();
  const std::vector<VerifyRow> rows = verify_model(kGolden / folder, dtype);
  EXPECT_GT(rows.size(), 25u);
  for (const VerifyRow& row : rows) EXPECT_TRUE(row.passed()) << row.what << ": " << row.error << " " << row.unit;
}

INSTANTIATE_TEST_SUITE_P(Folders, MambaGolden,
                         testing::Values(std::pair{"mamba", DType::f32}, std::pair{"mamba_bias", DType::f32},
                                         std::pair{"mamba", DType::f64}, std::pair{"mamba_bias", DType::f64}));

}  // namespace
}  // namespace weft
