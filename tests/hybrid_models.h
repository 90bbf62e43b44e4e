// Small hybrid models for tests, and what must hold of each of them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/hybrid_reference.h"
#include "tools/weft.h"

namespace weft {

inline constexpr std::int64_t kHybridVocab = 40;

inline bool emulated() { return device() == Device::emu; }  // where models, texts and trainings are small

// Seven layers, of which 1 and 2 share keys and values, and 4 and 5.
inline HymbaConfig tiny_hymba() {
  return {.vocab = kHybridVocab,
          .width = 16,
          .layers = 7,
          .hidden = 24,
          .heads = 2,
          .kv_heads = 1,
          .meta_tokens = 3,
          .window = 5,
          .state = 4,
          .deviation = 0.2};
}

// A model of the study with its layers (the first three where the device is emulated), but narrow.
inline HymbaStudyConfig narrow(HymbaStudyConfig c) {
  if (emulated()) c.layer_kinds = c.layer_kinds.substr(0, 3);
  c.vocab = kHybridVocab, c.width = 16, c.hidden = 24, c.heads = 2, c.kv_heads = 1, c.window = 5, c.state = 4;
  c.meta_tokens = std::min<std::int64_t>(c.meta_tokens, 3), c.deviation = 0.2;
  return c;
}

inline const std::vector<std::string>& study_names() {
  static const std::vector<std::string> names = {"mamba_only", "transformer_global", "transformer_local", "hybrid_50_50",
                                                 "hybrid_paper"};
  return names;
}

// Every hybrid model, narrow, by name; where the device is emulated one of each family.
inline std::vector<std::pair<std::string, std::function<std::unique_ptr<HybridModel>()>>> hybrid_models() {
  std::vector<std::pair<std::string, std::function<std::unique_ptr<HybridModel>()>>> models;
  for (const std::string& name : study_names())
    models.emplace_back(name, [=] { return std::make_unique<HymbaStudy>(narrow(study_model(name))); });
  models.emplace_back("bench", [] { return std::make_unique<HymbaStudy>(narrow(bench_model())); });
  models.emplace_back("hymba", [] { return std::make_unique<Hymba>(tiny_hymba()); });
  if (emulated()) std::erase_if(models, [](const auto& m) { return m.first != "hybrid_paper" && m.first != "hymba"; });
  return models;
}

inline std::vector<std::int64_t> hybrid_ids(std::size_t n) {
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(std::int64_t((i * 17 + i * i * 5 + 3) % std::size_t(kHybridVocab)));
  return ids;
}

inline Tensor row_of(const std::vector<std::int64_t>& ids) { return Tensor::from(ids, {1, std::int64_t(ids.size())}); }

inline std::vector<float> hybrid_logits(LanguageModel& model, const Tensor& ids) {
  return run([&] { return no_grad([&] { return model(ids); }); }).to_host<float>();
}

inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) d = std::max(d, std::abs(a[i] - b[i]));
  return d;
}
inline double largest(const std::vector<double>& a) { return distance(a, std::vector<double>(a.size())); }

// All values of a model but A_log are drawn anew, so that no norm, gate or bias is without effect.
inline void roughen(LanguageModel& model) {
  std::uint64_t stream = 0;
  for (const NamedParam& p : model.named_parameters()) {
    const bool norm = p.name.find("norm") != std::string::npos || p.name.find(".D") != std::string::npos;
    if (p.name.find("A_log") == std::string::npos)
      Param(p.param).set(irregular(p.param.shape().numel(), norm ? 0.5 : -0.5, norm ? 1.5 : 0.5, ++stream));
  }
}

// In fp64 the logits, and the gradients of a loss by every parameter, are those of the second implementation.
inline void expect_as_written_again(LanguageModel& model,
                                    const std::function<Tensor(const reference::Weights&, const Tensor& ids)>& again) {
  roughen(model);
  const std::vector<NamedParam> params = model.named_parameters();
  const Tensor ids = Tensor::from(hybrid_ids(2 * 9), {2, 9});
  const auto [ours, theirs] = run([&] {
    reference::Weights weights;
    std::vector<Arg> reads;
    for (const NamedParam& p : params) weights[p.name] = p.param.read(), reads.emplace_back(weights[p.name]);
    const auto values = [&](const Tensor& logits) {
      std::vector<Tensor> all = grad(cross_entropy(logits, ids), reads, Unused::zeros);
      all.push_back(logits);
      return all;
    };
    std::vector<Tensor> first = values(model(ids));
    return std::pair(first, values(again(weights, ids)));
  });
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const std::vector<double> a = ours[i].to_host<double>(), b = theirs[i].to_host<double>();
    const std::string name = i < params.size() ? params[i].name : "logits";
    EXPECT_LT(distance(a, b), 1e-9 * std::max(largest(b), 1e-3)) << name;
    EXPECT_GT(largest(b), 1e-9) << name << " takes no part";
  }
}

// Logits up to a token do not have a bit of what follows, in a pass and with a cache.
inline void expect_causal(LanguageModel& model) {
  constexpr std::size_t kTokens = 14, kChanged = 8, v = std::size_t(kHybridVocab);
  std::vector<std::int64_t> ids = hybrid_ids(kTokens);
  const std::vector<float> before = hybrid_logits(model, row_of(ids));
  std::vector<std::int64_t> changed = ids;
  changed[kChanged] = (changed[kChanged] + 1) % kHybridVocab;
  const std::vector<float> after = hybrid_logits(model, row_of(changed));
  ASSERT_EQ(before.size(), kTokens * v);  // none for meta tokens
  for (std::size_t t = 0; t < kTokens; ++t)
    EXPECT_EQ(std::equal(before.begin() + t * v, before.begin() + (t + 1) * v, after.begin() + t * v), t < kChanged) << t;

  // With caches: what the second text of a batch becomes changes neither its own past nor anything of the first.
  const auto cache = model.make_cache(2), other = model.make_cache(2);
  for (std::size_t t = 0; t < kTokens; ++t) {
    const auto go = [&](const ModelCache& c, std::int64_t second) {
      const Tensor both = Tensor::from(std::vector{ids[t], second}, {2, 1});
      return run([&] { return t == 0 ? model.prefill(both, c) : model.step(both, c); }).to_host<float>();
    };
    const std::vector<float> as_it_was = go(*cache, ids[t]), made = go(*other, changed[t]);
    EXPECT_TRUE(std::equal(made.begin(), made.begin() + v, as_it_was.begin())) << t;
    EXPECT_EQ(std::equal(made.begin() + v, made.end(), as_it_was.begin() + v), t < kChanged) << t;
  }
}

// What the caches lead to is what the whole text leads to: the most probable token after each of them.
inline void expect_greedy_as_without_caches(LanguageModel& model, std::int64_t tokens) {
  if (emulated()) tokens = std::min<std::int64_t>(tokens, 8);
  const std::vector<std::int64_t> made = generate(model, {7, 8}, {.tokens = tokens, .temperature = 0});
  ASSERT_EQ(made.size(), std::size_t(tokens) + 2);
  const std::vector<float> logits = hybrid_logits(model, row_of(made));
  for (std::size_t t = 1; t + 1 < made.size(); ++t) {
    const auto row = logits.begin() + std::ptrdiff_t(t) * kHybridVocab;
    ASSERT_EQ(std::max_element(row, row + kHybridVocab) - row, made[t + 1]) << "after " << t + 1 << " tokens";
  }
}

}  // namespace weft
