// The models of the study of hybrids and the benchmarked one: its table, the blocks against a second implementation, and what
// holds of all hybrid models: causality, caches, maps of attention. The suite S003 has the checks that the study names.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/expect_error.h"
#include "tests/hybrid_models.h"
#include "tests/temp_folder.h"

namespace weft {
namespace {

using nlohmann::json;

HymbaStudyConfig of_4000(HymbaStudyConfig c) {
  c.vocab = 4000;
  return c;
}

struct StudyRow {
  const char* name;
  std::int64_t table, plain, shared;  // parameters: as the table counts; without projections around mixers; keys shared
  double reduction;                   // of caches
};
// Shared: a consumer lacks 65536 parameters in parallel_split, 262144 in either_or.
constexpr StudyRow kStudy[] = {{"mamba_only", 82534912, 74670592, 82534912, 1.0},
                               {"transformer_global", 68943360, 61079040, 68943360, 1.0},
                               {"transformer_local", 68943360, 61079040, 68943360 - 7 * 262144, 15 / 8.0},
                               {"hybrid_50_50", 66662415, 66528768, 66528768 - 2 * 262144, 9 / 7.0},
                               {"hybrid_paper", 66662415, 66662415, 66662415 - 393216, 15 / 9.0}};

// ---- the checks that the study names ----------------------------------------------------------------------------------------

TEST(S003, ParameterTableAndKvReduction) {
  for (const StudyRow& row : kStudy) {
    const HymbaStudyConfig table = of_4000(study_model(row.name, true)), own = of_4000(study_model(row.name));
    EXPECT_EQ(table.parameter_count(), row.table) << row.name;
    EXPECT_EQ(own.parameter_count(), row.shared) << row.name;
    EXPECT_EQ(kv_reduction(own.layer_kinds, own.producers()), row.reduction) << row.name;
    HymbaStudyConfig plain = own;
    plain.wrap_projections = false, plain.keep_consumer_kv = true;
    EXPECT_EQ(plain.parameter_count(), row.plain) << row.name;
  }
  const auto reduction = [](const char* name, bool table, std::int64_t most) {
    HymbaStudyConfig c = study_model(name, table);
    c.kv_group_max = most;
    return kv_reduction(c.layer_kinds, c.producers());
  };
  EXPECT_NEAR(reduction("transformer_local", true, 2), 1.88, 0.005);
  EXPECT_NEAR(reduction("hybrid_paper", true, 2), 1.67, 0.005);
  EXPECT_NEAR(reduction("hybrid_50_50", true, 2), 1.67, 0.005);
  EXPECT_NEAR(reduction("hybrid_50_50", false, 2), 1.29, 0.005);
  EXPECT_EQ(reduction("hybrid_paper", false, 0), 3.0);
  EXPECT_EQ(reduction("hybrid_50_50", false, 0), 1.8);
}

TEST(S003, KvSharingGroups) {
  EXPECT_EQ(kv_sharing_groups("GLLLLLLGLLLLLLG"), (LayerGroups{{0}, {1, 2, 3, 4, 5, 6}, {7}, {8, 9, 10, 11, 12, 13}, {14}}));
  EXPECT_EQ(kv_sharing_groups("GMLMLMLGLMLMLMG"), (LayerGroups{{0}, {2, 4, 6}, {7}, {8, 10, 12}, {14}}));
  EXPECT_EQ(kv_sharing_groups("GMLMLMLGLMLMLMG", 2), (LayerGroups{{0}, {2, 4}, {6}, {7}, {8, 10}, {12}, {14}}));
  EXPECT_EQ(kv_sharing_groups("LLLGM"), (LayerGroups{{0, 1, 2}, {3}}));
  EXPECT_EQ(kv_sharing_groups("MMM"), LayerGroups{});
  EXPECT_EQ(kv_sharing_groups(""), LayerGroups{});
}

TEST(S003, Causality) {
  for (const auto& [name, make] : hybrid_models()) {
    SCOPED_TRACE(name);
    expect_causal(*make());
  }
}

TEST(S003, AttentionMaps) {
  for (const bool published : {false, true}) {
    std::unique_ptr<HybridModel> model;
    if (published)
      model = std::make_unique<Hymba>(tiny_hymba());
    else
      model = std::make_unique<HymbaStudy>(narrow(study_model("hybrid_paper")));
    std::vector<std::int64_t> layers = {0, 3, 7, 11, 14};  // global and local ones
    if (published) layers = {0, 2, 3};
    if (emulated()) layers = {0, 1, 2};
    const std::int64_t t = 12, places = 3 + t, h = 2;
    const auto maps = run([&] { return model->attention_maps(row_of(hybrid_ids(std::size_t(t))), layers); });
    ASSERT_EQ(maps.size(), layers.size());
    for (std::size_t m = 0; m < layers.size(); ++m) {
      ASSERT_EQ(maps[m].shape(), (Shape{1, h, places, places}));
      const std::vector<double> p = maps[m].to_host<double>();
      const bool global = model->sizes().kinds[std::size_t(layers[m])] == 'G';
      for (std::int64_t row = 0; row < h * places; ++row) {
        const std::int64_t i = row % places;
        double sum = 0;
        for (std::int64_t j = 0; j < places; ++j) {
          const double value = p[std::size_t(row * places + j)];
          const bool visible = j <= i && (global || i - j < 5 || j < 3);
          EXPECT_EQ(value > 0, visible) << "layer " << layers[m] << ", query " << i << ", key " << j;
          sum += value;
        }
        EXPECT_NEAR(sum, 1, 1e-5);
      }
    }
    expect_error(ErrorKind::usage, {"no such layer", "layer 15"}, [&] {
      run([&] { return model->attention_maps(row_of({1, 2}), {15}); });
    });
  }
  HymbaStudy mamba(narrow(study_model("mamba_only")));
  expect_error(ErrorKind::usage, {"it has no attention", "layer 0"}, [&] {
    run([&] { return mamba.attention_maps(row_of({1, 2}), {0}); });
  });
}

TEST(S003, GenerationIsSeededAndAsWithoutCaches) {
  for (const auto& [name, make] : hybrid_models()) {
    SCOPED_TRACE(name);
    seed(6);
    const auto model = make();
    const GenerateOptions options{.tokens = emulated() ? 8 : 20, .temperature = 0.8, .top_k = 10, .seed = 1};
    GenerateOptions other = options;
    other.seed = 2;
    EXPECT_EQ(generate(*model, {1, 2}, options), generate(*model, {1, 2}, options));
    EXPECT_NE(generate(*model, {1, 2}, options), generate(*model, {1, 2}, other));
    expect_greedy_as_without_caches(*model, 200);
  }
  seed(0);
}

// ---- the blocks -------------------------------------------------------------------------------------------------------------

TEST(HymbaStudy, IsAsWrittenAgain) {
  if (emulated()) GTEST_SKIP() << "the second implementation has thousands of kernels";
  for (const char* style : {"either_or", "parallel_split", "parallel_average"})
    for (const bool wrap : {false, true}) {
      if (wrap && std::string(style) != "either_or") continue;
      SCOPED_TRACE(style);
      HymbaStudyConfig c = narrow({.layer_kinds = std::string(style) == "either_or" ? "GLMLG" : "GLLLG",
                                   .block_style = style,
                                   .wrap_projections = wrap,
                                   .kv_group_max = wrap ? 0 : 2,
                                   .tie = !wrap});
      c.dtype = DType::f64;
      HymbaStudy model(c);
      expect_as_written_again(model,
                              [&](const reference::Weights& w, const Tensor& ids) { return reference::study(c, w, ids); });
    }
}

TEST(HymbaStudy, CountsAgreeWithRealModels) {
  for (const auto& [name, make] : hybrid_models()) {
    const auto model = make();
    if (const auto* study = dynamic_cast<const HymbaStudy*>(model.get())) {
      EXPECT_EQ(study->parameter_count(), study->config().parameter_count()) << name;
    }
  }
  for (const std::string& name : study_names()) {
    HymbaStudyConfig c = narrow(study_model(name, true));
    c.tie = false, c.expand = 3, c.conv = 2;
    EXPECT_EQ(HymbaStudy(c).parameter_count(), c.parameter_count()) << name;
  }
}

TEST(HymbaStudy, TheBenchmarkedModelHas88MillionParameters) {
  EXPECT_EQ(of_4000(bench_model()).parameter_count(), 88547840);
  const TrainOptions o = options_from({{"model", "hymba-study"}, {"preset", "bench"}});
  EXPECT_EQ(std::get<std::string>(o.model_options.at("block_style")), "parallel_average");
  EXPECT_EQ(std::get<bool>(o.model_options.at("tie")), false);
  EXPECT_EQ(std::get<bool>(o.model_options.at("share_kv")), false);
}

TEST(HymbaStudy, PresetsAreTheModelsOfTheStudy) {
  for (const std::string& name : study_names()) {
    const TrainOptions o = options_from({{"model", "hymba-study"}, {"preset", name}});
    const auto get = [&]<class T>(const char* key, T) { return std::get<T>(o.model_options.at(key)); };
    const HymbaStudyConfig c{.vocab = o.vocab,
                             .width = get("width", std::int64_t()),
                             .layer_kinds = get("layer_kinds", std::string()),
                             .block_style = get("block_style", std::string()),
                             .wrap_projections = get("wrap_projections", bool()),
                             .heads = get("heads", std::int64_t()),
                             .kv_heads = get("kv_heads", std::int64_t()),
                             .meta_tokens = get("meta_tokens", std::int64_t()),
                             .window = get("window", std::int64_t())};
    EXPECT_EQ(hymba_study_config_to_json(c), hymba_study_config_to_json(of_4000(study_model(name)))) << name;
    EXPECT_EQ(o.length, 256);
    EXPECT_EQ(o.batch, 16);
  }
}

// A consumer's kept projections are there for the count alone.
TEST(HymbaStudy, KeptProjectionsOfConsumersAreNotRead) {
  HymbaStudyConfig c = narrow(study_model("hybrid_paper", true));
  HymbaStudy model(c);
  const std::vector<float> before = hybrid_logits(model, row_of(hybrid_ids(8)));
  int kept = 0;
  for (NamedParam& p : model.named_parameters())
    if (p.name.starts_with("model.layers.2.attn.k_proj") || p.name.starts_with("model.layers.2.attn.v_proj")) {
      p.param.set(irregular(p.param.shape().numel(), -1, 1)), ++kept;
    }
  EXPECT_EQ(kept, 2);
  EXPECT_EQ(hybrid_logits(model, row_of(hybrid_ids(8))), before);
  c.keep_consumer_kv = false;
  const HymbaStudy without(c);
  EXPECT_EQ(model.flops_per_token(64), without.flops_per_token(64));
}

TEST(HymbaStudy, CountsItsArithmetic) {
  HymbaStudyConfig c = narrow(study_model("transformer_local"));
  c.layer_kinds = "L", c.share_kv = false, c.wrap_projections = false;
  const HymbaStudy local(c);
  c.layer_kinds = "G";
  const HymbaStudy global(c);
  // 20 tokens, 3 meta tokens, window 5: text queries see 3 + min(i + 1, 5) keys, 7.5 on average; in a global layer 13.5.
  const double weights = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24, head = 2 * 40 * 16, places = 23 / 20.0;
  EXPECT_NEAR(local.flops_per_token(20), places * 2 * weights + head + 2 * 7.5 * 2 * 16, 1e-6);
  EXPECT_NEAR(global.flops_per_token(20), places * 2 * weights + head + 2 * 13.5 * 2 * 16, 1e-6);
}

TEST(HymbaStudyConfig, SurvivesItsFile) {
  HymbaStudyConfig c = narrow(study_model("hybrid_50_50"));
  c.window_inclusive = true, c.kv_group_max = 0, c.keep_consumer_kv = true, c.tie = false, c.conv = 3, c.eos = {4};
  const HymbaStudyConfig r = hymba_study_config_from_json(hymba_study_config_to_json(c));
  EXPECT_EQ(hymba_study_config_to_json(r), hymba_study_config_to_json(c));
  EXPECT_EQ(r.parameter_count(), c.parameter_count());
  EXPECT_EQ(r.producers(), c.producers());
}

TEST(HymbaStudyConfig, WhatDoesNotFitIsAnError) {
  const auto wrong = [](const std::vector<std::string>& words, const std::function<void(HymbaStudyConfig&)>& change) {
    HymbaStudyConfig c = narrow(study_model("hybrid_paper"));
    change(c);
    expect_error(ErrorKind::usage, words, [&] { HymbaStudy model(c); });
  };
  wrong({"unknown block_style 'paralel_split'; did you mean 'parallel_split'?"},
        [](HymbaStudyConfig& c) { c.block_style = "paralel_split"; });
  wrong({"layer_kinds has other letters", "'GLM'"}, [](HymbaStudyConfig& c) { c.layer_kinds = "GLM"; });
  wrong({"layer_kinds has other letters", "'GXG'"}, [](HymbaStudyConfig& c) { c.layer_kinds = "GXG"; });
  wrong({"layers = 0"}, [](HymbaStudyConfig& c) { c.layer_kinds = ""; });
  wrong({"heads = 0"}, [](HymbaStudyConfig& c) { c.heads = 0; });
  wrong({"the heads do not fit", "3 heads"}, [](HymbaStudyConfig& c) { c.heads = 3, c.kv_heads = 3; });
  wrong({"the heads do not fit", "4 kv_heads"}, [](HymbaStudyConfig& c) { c.kv_heads = 4; });
  wrong({"halves the width"}, [](HymbaStudyConfig& c) { c.width = 15; });
  wrong({"window = 0"}, [](HymbaStudyConfig& c) { c.window = 0; });
  wrong({"eps nan"}, [](HymbaStudyConfig& c) { c.eps = NAN; });
  expect_error(ErrorKind::usage, {"no model 'hybrid_papr'; did you mean 'hybrid_paper'?"}, [] { study_model("hybrid_papr"); });
  json j = hymba_study_config_to_json(narrow(study_model("hybrid_paper")));
  j["layer_kinds"] = 3;
  expect_error(ErrorKind::io, {"a word is expected", "layer_kinds = 3"}, [&] { hymba_study_config_from_json(j); });
}

// ---- training, checkpoints, caches ------------------------------------------------------------------------------------------

TEST(HymbaStudy, ThirtyStepsLowerTheLoss) {
  for (const auto& [name, make] : hybrid_models()) {
    SCOPED_TRACE(name);
    seed(7);
    const auto model = make();
    AdamW opt(model->parameters(), {.lr = 1e-2});
    const Tensor ids = Tensor::from(hybrid_ids(2 * 17), {2, 17});
    const auto step = [&] {
      const Tensor loss = cross_entropy((*model)(slice(ids, 1, 0, 16)), slice(ids, 1, 1, 17));
      backward(loss);
      opt.step();
      return loss;
    };
    const double first = run(step).item();
    double last = first;
    for (int i = 1; i < (emulated() ? 5 : 30); ++i) last = run(step).item();
    EXPECT_LT(last, emulated() ? first : 0.5 * first);
  }
  seed(0);
}

TEST(HymbaStudy, SavedAndLoadedItIsTheSame) {
  for (const auto& [name, make] : hybrid_models()) {
    const TempFolder folder;
    const auto model = make();
    model->save(folder.path());
    const auto loaded = LanguageModel::load(folder.path());
    EXPECT_EQ(loaded->description(), model->description());
    EXPECT_EQ(hybrid_logits(*loaded, row_of(hybrid_ids(9))), hybrid_logits(*model, row_of(hybrid_ids(9)))) << name;
  }
}

// A text may begin with what a model is asked first.
TEST(HymbaStudy, AFreshModelBeginsWithAPrefill) {
  const HymbaStudyConfig c = narrow(study_model("hybrid_paper"));
  std::vector<float> logits[2];
  for (const bool called : {false, true}) {
    seed(8);
    HymbaStudy model(c);
    if (called) hybrid_logits(model, row_of({1, 2, 3}));
    const auto cache = model.make_cache(1);
    logits[called] = run([&] { return model.prefill(row_of({1, 2, 3}), *cache); }).to_host<float>();
  }
  EXPECT_EQ(logits[0], logits[1]);
  seed(0);
}

// Prompts padded to one length go on as each by itself.
TEST(HymbaStudy, PromptsOfUnequalLengthGoOnAsEachAlone) {
  for (const auto& [name, make] : hybrid_models()) {
    SCOPED_TRACE(name);
    const auto model = make();
    const std::vector<std::int64_t> ids = hybrid_ids(40);
    const std::vector<std::int64_t> lengths = {11, 2};
    std::vector<std::int64_t> padded(ids.begin(), ids.begin() + 22);
    const auto cache = model->make_cache(2);
    std::vector<float> both = run([&] {
                                return model->prefill(Tensor::from(padded, {2, 11}), *cache, Tensor::from(lengths, {2}));
                              }).to_host<float>();
    std::vector<std::unique_ptr<ModelCache>> own;
    for (int row = 0; row < 2; ++row) own.push_back(model->make_cache(1));
    for (int n = 0; n < 8; ++n) {
      const auto next = [&](int row) { return ids[std::size_t(22 + 2 * n + row)]; };
      for (int row = 0; row < 2; ++row) {
        const auto begin = padded.begin() + row * 11;
        const std::vector<std::int64_t> text(begin, begin + lengths[std::size_t(row)]);
        const Tensor in = n == 0 ? row_of(text) : row_of({ids[std::size_t(22 + 2 * (n - 1) + row)]});
        const std::vector<float> alone =
            run([&] {
              return n == 0 ? model->prefill(in, *own[std::size_t(row)]) : model->step(in, *own[std::size_t(row)]);
            }).to_host<float>();
        for (std::size_t v = 0; v < alone.size(); ++v)
          ASSERT_NEAR(both[std::size_t(row) * alone.size() + v], alone[v], 1e-4) << "row " << row << " after " << n;
      }
      const Tensor in = Tensor::from(std::vector{next(0), next(1)}, {2, 1});
      both = run([&] { return model->step(in, *cache); }).to_host<float>();
    }
  }
}

TEST(HymbaStudy, CachesGrowWhileATextGoesOn) {
  HymbaStudy model(narrow(study_model("hybrid_paper")));
  expect_greedy_as_without_caches(model, 300);  // beyond 256 rows
}

TEST(HymbaStudy, CacheBytesAndReductionAreReported) {
  const CacheBytes bytes = cache_bytes(hybrid_sizes(of_4000(study_model("hybrid_paper"))), 256);
  const double row = 4 * (32 + 32) * 4;  // K (dk + dv), fp32
  EXPECT_EQ(bytes.attention, row * (3 * (64 + 256) + 6 * (64 + 128)));
  EXPECT_EQ(bytes.attention_global, row * 15 * (64 + 256));
  EXPECT_EQ(bytes.layers, 15);
  EXPECT_EQ(bytes.caches, 9);
  EXPECT_EQ(bytes.states, 15 * 512.0 * (3 + 16) * 4);
  EXPECT_EQ(cache_bytes(hybrid_sizes(study_model("mamba_only")), 256).caches, 0);
}

}  // namespace
}  // namespace weft
