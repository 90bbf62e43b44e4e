// Sampling, generation with caches, models with their tokenizers, evaluation.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numbers>
#include <set>
#include <thread>

#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/data/shards.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

MambaConfig small(std::int64_t vocab) { return {.vocab = vocab, .width = 24, .layers = 2, .state = 8}; }

std::string words(std::size_t size) {
  static const char* const kWords[] = {"and ", "the ", "king ", "went ", "forth ", "into ", "a ", "land.\n"};
  std::string text;
  for (std::uint32_t state = 1; text.size() < size;) text += kWords[(state = state * 1664525u + 1013904223u) >> 29];
  return text;
}

TEST(Sample, FollowsTheDistribution) {
  const std::vector<float> logits = {0, float(std::log(2.0)), float(std::log(5.0)), -100};
  int counts[4] = {};
  for (int i = 0; i < 8000; ++i) ++counts[sample(logits, 1, 0, 1, (i + 0.5) / 8000)];
  EXPECT_NEAR(counts[0], 1000, 2);
  EXPECT_NEAR(counts[1], 2000, 2);
  EXPECT_NEAR(counts[2], 5000, 2);
  EXPECT_EQ(sample(logits, 0, 0, 1, 0.9), 2);
}

TEST(Sample, TopKKeepsTheLargestAndTheirEquals) {
  const auto seen = [](std::vector<float> logits, std::int64_t k, double p) {
    std::vector<int> counts(logits.size());
    for (int i = 0; i < 1000; ++i) ++counts[std::size_t(sample(logits, 1, k, p, (i + 0.5) / 1000))];
    std::vector<int> who;
    for (std::size_t i = 0; i < counts.size(); ++i)
      if (counts[i]) who.push_back(int(i));
    return who;
  };
  const std::vector<float> shares = {float(std::log(0.1)), float(std::log(0.4)), float(std::log(0.3)), float(std::log(0.2))};
  EXPECT_EQ(seen(shares, 2, 1), (std::vector<int>{1, 2}));
  EXPECT_EQ(seen(shares, 9, 1), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(seen({1, 1, 1, 0}, 2, 1), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(seen(shares, 0, 0.39), (std::vector<int>{1}));  // enough of them to reach the share
  EXPECT_EQ(seen(shares, 0, 0.41), (std::vector<int>{1, 2}));
  EXPECT_EQ(seen(shares, 0, 0.71), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(seen(shares, 0, 1e-9), (std::vector<int>{1}));
  EXPECT_EQ(seen(shares, 2, 0.5), (std::vector<int>{1}));  // of the two that top-k left, with 4/7
  EXPECT_EQ(seen(shares, 2, 0.6), (std::vector<int>{1, 2}));
}

TEST(Sample, RefusesWhatMakesNoSense) {
  const std::vector<float> logits = {0, 1};
  expect_error(ErrorKind::usage, {"no logits"}, [] { sample({}, 1, 0, 1, 0.5); });
  expect_error(ErrorKind::usage, {"temperature -1"}, [&] { sample(logits, -1, 0, 1, 0.5); });
  expect_error(ErrorKind::usage, {"top-k -1"}, [&] { sample(logits, 1, -1, 1, 0.5); });
  expect_error(ErrorKind::usage, {"top-p 0"}, [&] { sample(logits, 1, 0, 0, 0.5); });
  const double nan = std::nan("");
  for (const double bad : {nan, double(INFINITY)})
    expect_error(ErrorKind::usage, {"temperature", "at test_generate.cpp:"}, [&] { sample(logits, bad, 0, 1, 0.5); });
  for (const double bad : {nan, -0.5, 1.5, double(INFINITY)})
    expect_error(ErrorKind::usage, {"top-p", "at test_generate.cpp:"}, [&] { sample(logits, 1, 0, bad, 0.5); });
  for (const double bad : {nan, 0.0, 1.0, -1.0})
    expect_error(ErrorKind::usage, {"must lie in (0, 1)", "at test_generate.cpp:"}, [&] { sample(logits, 1, 0, 1, bad); });
  for (float bad : {std::nanf(""), INFINITY})
    for (double temperature : {0.0, 1.0})
      expect_error(ErrorKind::training, {"not finite"}, [&] { sample(std::vector<float>{0, bad, 1}, temperature, 0, 1, 0.5); });
  EXPECT_EQ(sample(std::vector<float>{-INFINITY, 1}, 1, 0, 1, 1e-9), 1);  // a token that is ruled out
}

// On the device, a row each: as often as their probabilities say, and none but the top-k and their equals.
TEST(Sample, RowsFollowTheDistribution) {
  const std::int64_t rows = 4000;
  const std::vector<double> shares = {0.1, 0.2, 0.45, 0.05, 0.2};
  std::vector<float> logits;
  for (std::int64_t r = 0; r < rows; ++r)
    for (const double p : shares) logits.push_back(float(std::log(p) + double(r % 7)));
  const Tensor x = Tensor::from(logits, {rows, 5});
  const auto counts = [&](double temperature, std::int64_t top_k, std::uint64_t number) {
    Rng own(number);
    const UseRng use(own);
    std::vector<int> n(5);
    for (const std::int64_t id : run([&] { return sample_rows(x, temperature, top_k); }).to_host<std::int64_t>())
      ++n.at(std::size_t(id));
    return n;
  };
  const auto all = counts(1, 0, 1), sharp = counts(0.5, 0, 1), two = counts(1, 2, 1), one = counts(1, 1, 1);
  double sum = 0;
  for (const double p : shares) sum += p * p;
  for (std::size_t i = 0; i < 5; ++i) {
    const double p = shares[i], q = p * p / sum, n = double(rows);
    EXPECT_NEAR(all[i], n * p, 4 * std::sqrt(n * p)) << i;
    EXPECT_NEAR(sharp[i], n * q, 4 * std::sqrt(n * q)) << i;
  }
  EXPECT_NEAR(two[1], 4000 * 0.2 / 0.85, 100);  // the second is as large as the last: both are kept
  EXPECT_NEAR(two[4], 4000 * 0.2 / 0.85, 100);
  EXPECT_EQ(two[0] + two[3], 0);
  EXPECT_EQ(one[2], rows);
  EXPECT_EQ(all, counts(1, 0, 1));
  EXPECT_NE(all, counts(1, 0, 2));
  const Tensor bad = Tensor::from(std::vector<float>{0, NAN, 1, INFINITY, 0, 1, 0, -INFINITY, 0}, {3, 3});
  const std::vector<std::int64_t> drawn = run([&] { return sample_rows(bad, 1, 2); }).to_host<std::int64_t>();
  EXPECT_EQ(drawn[0], 3);
  EXPECT_EQ(drawn[1], 3);
  EXPECT_NE(drawn[2], 1);
  expect_error(ErrorKind::usage, {"at a temperature above 0"}, [&] { sample_rows(x, 0, 2); });
}

// At the most probable token alone both ways agree, with caches and all.
TEST(Generate, ManyTextsOnTheDeviceAreThoseOfTheHost) {
  seed(3);
  Mamba model(small(50));
  const std::vector<std::vector<std::int64_t>> prompts = {{1, 2, 3}, {7, 8, 9}, {4, 4, 4}, {30, 20, 10}};
  const auto host = generate_all(model, prompts, {.tokens = 6, .temperature = 0});
  const auto own = sample_continuations(model, prompts, {.tokens = 6, .top_k = 1});
  ASSERT_EQ(own.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(own[i], std::vector<std::int64_t>(host[i].begin() + 3, host[i].end())) << i;
  const auto draw = [&](std::uint64_t s) { return sample_continuations(model, prompts, {.tokens = 6, .seed = s}); };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
  for (const auto& text : sample_continuations(model, prompts, {.tokens = 20, .vocab = 5}))
    EXPECT_LT(*std::ranges::max_element(text), 5);
  expect_error(ErrorKind::usage, {"prompts of one length"}, [&] { sample_continuations(model, {{1}, {1, 2}}, {.tokens = 1}); });
  expect_error(ErrorKind::usage, {"at a temperature above 0"},
               [&] { sample_continuations(model, prompts, {.tokens = 1, .temperature = 0}); });
}

TEST(Generate, IsSeededAndChecksItsPrompt) {
  Mamba model(small(50));
  const std::vector<std::int64_t> prompt = {1, 2, 3};
  const auto a = generate(model, prompt, {.tokens = 20, .seed = 1}), b = generate(model, prompt, {.tokens = 20, .seed = 1}),
             c = generate(model, prompt, {.tokens = 20, .seed = 2});
  EXPECT_EQ(a.size(), 23u);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_EQ(generate(model, prompt, {.tokens = 9, .temperature = 0}),
            generate(model, prompt, {.tokens = 9, .temperature = 1, .top_k = 1, .seed = 7}));
  for (std::int64_t id : generate(model, prompt, {.tokens = 30, .seed = 1, .vocab = 5})) EXPECT_LT(id, 5);
  EXPECT_THROW(generate(model, {}, {}), Error);
  EXPECT_TRUE(model.training());
}

TEST(Generate, WithCachesIsAsWithout) {
  seed(5);
  Mamba model(small(50));
  const std::vector<std::int64_t> made = generate(model, {7, 8}, {.tokens = 12, .temperature = 0});
  std::vector<std::int64_t> ids = {7, 8};
  while (ids.size() < made.size()) {
    const auto logits = run([&] {
                          return no_grad([&] { return model(Tensor::from(ids, {1, std::int64_t(ids.size())})); });
                        }).to_host<float>();
    ids.push_back(std::max_element(logits.end() - 50, logits.end()) - (logits.end() - 50));
  }
  EXPECT_EQ(made, ids);
}

TEST(Generate, StepsAreOnePlanAndEndWhenAsked) {
  Mamba model(small(50));
  int n = 0, replayed = 0;
  std::vector<std::int64_t> seen;
  const auto ids = generate(model, {1}, {.tokens = 30}, [&](std::int64_t id) {
    replayed += last_run().replayed;
    seen.push_back(id);
    return ++n < 10;
  });
  EXPECT_EQ(n, 10);
  EXPECT_EQ(std::vector<std::int64_t>(ids.begin() + 1, ids.end()), seen);
  EXPECT_GE(replayed, 8);  // all but the prompt and the first step
}

TEST(Generate, ATextIsWrittenAsItComes) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  Mamba model(small(256));
  std::string joined;
  int parts = 0;
  const std::string prompt = "caf\xc3\xa9 ";
  const GeneratedText made = generate_text(model, tokenizer, prompt, {.tokens = 300, .seed = 2}, [&](std::string_view part) {
    joined += part;
    ++parts;
  });
  EXPECT_GT(parts, 200);
  const auto ids = generate(model, tokenizer.encode(prompt), {.tokens = 300, .seed = 2});
  EXPECT_EQ(joined, tokenizer.decode(ids));
  EXPECT_EQ(made.prompt_tokens, 6);
  EXPECT_EQ(made.tokens, 300);
  EXPECT_GT(made.prompt_seconds, 0);
  EXPECT_GT(made.token_seconds, 0);
  EXPECT_FALSE(made.ended);
  std::string started;
  generate_text(model, tokenizer, "", {.tokens = 0}, [&](std::string_view part) { started += part; });
  EXPECT_EQ(started, "\n");
}

TEST(Generate, TheModelEndsTheText) {
  const Tokenizer tokenizer = Tokenizer::train(words(5000), 275);
  Mamba model(small(275));
  const GeneratedText made = generate_text(model, tokenizer, "the", {.tokens = 5000, .seed = 1}, [](std::string_view) {});
  EXPECT_TRUE(made.ended);  // untrained, each token is as likely as another
  EXPECT_LT(made.tokens, 5000);
  // Without </s>, by the token that its configuration names.
  MambaConfig config = small(256);
  config.eos = {'e'};
  Mamba bytes(config);
  std::string text;
  EXPECT_TRUE(generate_text(bytes, Tokenizer::bytes(), "the", {.tokens = 5000, .seed = 1}, [&](std::string_view part) {
                text += part;
              }).ended);
  EXPECT_EQ(text.find('e', 3), text.size() - 1);
}

TEST(Generate, AModelComesWithItsTokenizer) {
  const TempFolder folder;
  Mamba(small(256)).save(folder / "bytes");
  EXPECT_TRUE(load_text_model(folder / "bytes").tokenizer.is_bytes());
  Mamba(small(275)).save(folder / "pieces");
  expect_error(ErrorKind::io, {"pieces: there is no tokenizer", "knows 275 tokens", "tokenizer.model"},
               [&] { load_text_model(folder / "pieces"); });
  const Tokenizer tokenizer = Tokenizer::train(words(5000), 275);
  tokenizer.save(folder / "pieces" / "tokenizer.model");
  EXPECT_EQ(load_text_model(folder / "pieces").tokenizer.hash(), tokenizer.hash());
  Mamba(small(260)).save(folder / "few");
  tokenizer.save(folder / "few" / "tokenizer.model");
  expect_error(ErrorKind::io, {"the tokenizer is not the model's", "275 tokens, the model knows 260"},
               [&] { load_text_model(folder / "few"); });
  expect_error(ErrorKind::io, {"there is no model", "weft train --out"}, [&] { load_text_model(folder / "none"); });
}

// ---- what holds for every family --------------------------------------------------------------------------------------------

// A model of a family, small, whose next token depends on all that it sees.
struct Example {
  std::string name;
  std::shared_ptr<LanguageModel> model;
};

void stir(LanguageModel& model) {
  for (const NamedParam& p : model.named_parameters()) {
    if (p.param.shape().rank() < 2 || p.name.ends_with("A_log")) continue;
    std::vector<double> values = p.param.to_host<double>();
    double square = 0;
    for (double v : values) square += v * v / double(values.size());
    const double wanted = 1.3 / std::sqrt(double(p.param.shape()[-1]));
    for (double& v : values) v *= wanted / std::sqrt(square);
    Param(p.param).set(values);
  }
}

// Each family as its options say by themselves, and with windows that texts outgrow.
std::vector<Example> examples() {
  std::vector<Example> all;
  for (const ModelFamily& family : model_families()) {
    ModelOptions sizes;
    bool window = false;
    for (const ModelOption& option : family.options) {
      const std::string name = option.name;
      if (name == "width") sizes[name] = std::int64_t(32);
      if (name == "layers") sizes[name] = std::int64_t(3);
      if (name == "heads") sizes[name] = std::int64_t(4);
      if (name == "kv_heads") sizes[name] = std::int64_t(2);
      window |= name == "window";
    }
    const auto add = [&](const std::string& name, const ModelOptions& options) {
      seed(11);
      all.push_back({name, family.from_options(options, {.size = 50}, {})});
      stir(*all.back().model);
    };
    add(family.name, sizes);
    if (!window) continue;
    sizes["window"] = std::int64_t(5);
    add(family.name + " with a window", sizes);
  }
  seed(0);
  return all;
}

using Ids = std::vector<std::int64_t>;

Ids some_text(std::size_t n, std::size_t start = 0) {
  Ids ids;
  for (std::size_t i = start; i < start + n; ++i) ids.push_back(std::int64_t((i * 17 + i * i * 5 + 3) % 50));
  return ids;
}

Tensor one_text(const Ids& ids) { return Tensor::from(ids, {1, std::int64_t(ids.size())}); }

std::vector<float> all_logits(LanguageModel& model, const Ids& ids) {
  return run([&] { return no_grad([&] { return model(one_text(ids)); }); }).to_host<float>();
}

// The most probable token after each.
Ids best_after(const std::vector<float>& logits, std::size_t texts) {
  const std::size_t row = logits.size() / texts;
  Ids best;
  for (std::size_t t = 0; t < texts; ++t) {
    const auto begin = logits.begin() + std::ptrdiff_t(t * row);
    best.push_back(std::max_element(begin, begin + 50) - begin);
  }
  return best;
}

double farthest(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0, largest = 1;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    d = std::max(d, std::abs(double(a[i]) - double(b[i])));
    largest = std::max(largest, std::abs(double(b[i])));
  }
  return d / largest;
}

// Greedy tokens of 200 steps are those that one pass over the whole text finds most probable, each after what is before it.
TEST(EveryFamily, GreedyTokensWithACacheAreThoseWithout) {
  const std::int64_t n = device() == Device::emu ? 12 : 200;
  for (const Example& e : examples()) {
    SCOPED_TRACE(e.name);
    const Ids made = generate(*e.model, some_text(9), {.tokens = n, .temperature = 0});
    ASSERT_EQ(made.size(), std::size_t(9 + n));
    const Ids best = best_after(all_logits(*e.model, made), made.size());
    EXPECT_EQ(Ids(made.begin() + 9, made.end()), Ids(best.begin() + 8, best.end() - 1));
    EXPECT_GT(std::set<std::int64_t>(made.begin() + 9, made.end()).size(), 3u) << "a text that says little";
  }
}

TEST(EveryFamily, PromptsOfUnequalLengthBecomeWhatTheyBecomeAlone) {
  std::vector<Ids> prompts;
  for (std::size_t n : {3, 14, 1, 9, 14}) prompts.push_back(some_text(n, n));
  for (const Example& e : examples())
    for (const GenerateOptions& o : {GenerateOptions{.tokens = 20, .temperature = 0},
                                     GenerateOptions{.tokens = 20, .temperature = 0.9, .top_k = 20, .top_p = 0.9, .seed = 3}}) {
      SCOPED_TRACE(e.name);
      const std::vector<Ids> together = generate_all(*e.model, prompts, o);
      for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(together[i], generate(*e.model, prompts[i], o)) << i;
    }
}

TEST(EveryFamily, LogitsOfPaddedPromptsAreThoseOfTheTextsAlone) {
  const std::vector<Ids> texts = {some_text(7), some_text(2, 3), some_text(12, 5)};
  Ids padded;
  for (const Ids& text : texts) {
    padded.insert(padded.end(), text.begin(), text.end());
    padded.resize(padded.size() + 12 - text.size(), 49);  // padding that is a token
  }
  for (const Example& e : examples()) {
    SCOPED_TRACE(e.name);
    const auto cache = e.model->make_cache(3), alone = e.model->make_cache(1);
    const Tensor ids = Tensor::from(padded, {3, 12}), lengths = Tensor::from(Ids{7, 2, 12}, {3});
    auto together = run([&] { return e.model->prefill(ids, *cache, lengths); }).to_host<float>();
    const auto row = [&](std::size_t i) {
      const std::size_t v = together.size() / 3;
      return std::vector<float>(together.begin() + std::ptrdiff_t(i * v), together.begin() + std::ptrdiff_t((i + 1) * v));
    };
    std::vector<std::vector<float>> next;
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_LT(farthest(row(i), run([&] { return e.model->prefill(one_text(texts[i]), *alone); }).to_host<float>()), 5e-5);
      next.push_back(run([&] { return e.model->step(one_text({7}), *alone); }).to_host<float>());
    }
    together = run([&] { return e.model->step(Tensor::from(Ids{7, 7, 7}, {3, 1}), *cache); }).to_host<float>();
    for (std::size_t i = 0; i < 3; ++i) EXPECT_LT(farthest(row(i), next[i]), 5e-5) << i;
  }
}

// Any cut of a text into a prompt and steps, of one token or several, ends with the same logits.
TEST(EveryFamily, PrefillThenStepsIsPrefill) {
  const Ids text = some_text(17);
  const auto part = [&](std::size_t from, std::size_t to) {
    return one_text(Ids(text.begin() + std::ptrdiff_t(from), text.begin() + std::ptrdiff_t(to)));
  };
  for (const Example& e : examples()) {
    const auto cache = e.model->make_cache(1);
    const auto after = [&](const std::vector<std::size_t>& cuts) {
      std::vector<float> logits = run([&] { return e.model->prefill(part(0, cuts[0]), *cache); }).to_host<float>();
      for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
        logits = run([&] { return e.model->step(part(cuts[i], cuts[i + 1]), *cache); }).to_host<float>();
      return logits;
    };
    const auto whole = after({17});
    const std::vector<std::vector<std::size_t>> ways = {
        {16, 17},        {1, 17},           {3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}, {1, 3, 9, 10, 16, 17},
        {6, 13, 14, 17}, {6, 9, 11, 14, 17}};
    for (std::size_t i = 0; i < ways.size(); ++i) EXPECT_LT(farthest(after(ways[i]), whole), 5e-5) << e.name << ", way " << i;
    EXPECT_EQ(cache->tokens(), 17);
  }
}

// A token changes no bit of what the model says before it, in a pass and with a cache.
TEST(EveryFamily, IsCausal) {
  Ids text = some_text(14), other = text;
  for (std::size_t t = 8; t < other.size(); ++t) other[t] = (other[t] + 1 + std::int64_t(t)) % 50;
  for (const Example& e : examples()) {
    SCOPED_TRACE(e.name);
    const auto a = all_logits(*e.model, text), b = all_logits(*e.model, other);
    const std::size_t row = a.size() / text.size();
    for (std::size_t t = 0; t < text.size(); ++t) {
      const auto at = [&](const std::vector<float>& v) {
        return std::vector<float>(v.begin() + std::ptrdiff_t(t * row), v.begin() + std::ptrdiff_t((t + 1) * row));
      };
      EXPECT_EQ(at(a) == at(b), t < 8) << t;
    }
    const auto cached = [&](const Ids& ids) {
      const auto cache = e.model->make_cache(1);
      std::vector<std::vector<float>> logits;
      logits.push_back(run([&] { return e.model->prefill(one_text({ids[0], ids[1], ids[2]}), *cache); }).to_host<float>());
      for (std::size_t t = 3; t < ids.size(); ++t)
        logits.push_back(run([&] { return e.model->step(one_text({ids[t]}), *cache); }).to_host<float>());
      return logits;
    };
    const auto c = cached(text), d = cached(other);
    for (std::size_t t = 2; t < text.size(); ++t) EXPECT_EQ(c[t - 2] == d[t - 2], t < 8) << t;
  }
}

TEST(EveryFamily, TextsOfUnequalLengthAreEvaluatedAsAlone) {
  const std::vector<Ids> texts = {some_text(8), some_text(3, 2), some_text(13, 4)};
  const auto nats = [](LanguageModel& model, const Ids& inputs, const Ids& targets, const Shape& shape) {
    return run([&] {
             return no_grad([&] {
               return cross_entropy(model(Tensor::from(inputs, shape)), Tensor::from(targets, shape),
                                    {.reduction = Reduction::sum});
             });
           })
        .item();
  };
  Ids inputs, targets;
  for (const Ids& text : texts)
    for (std::size_t t = 0; t < 12; ++t) {
      inputs.push_back(t + 1 < text.size() ? text[t] : 49);
      targets.push_back(t + 1 < text.size() ? text[t + 1] : kIgnored);
    }
  for (const Example& e : examples()) {
    const Evaluating scope(*e.model);
    double alone = 0;
    for (const Ids& text : texts)
      alone += nats(*e.model, Ids(text.begin(), text.end() - 1), Ids(text.begin() + 1, text.end()),
                    {1, std::int64_t(text.size()) - 1});
    EXPECT_NEAR(nats(*e.model, inputs, targets, {3, 12}), alone, 1e-5 * alone) << e.name;
  }
}

TEST(EveryFamily, ABatchIsOnePlanToo) {
  for (const Example& e : examples()) {
    int replayed = 0;
    generate_all(*e.model, {some_text(3), some_text(8)}, {.tokens = 20}, [&](std::size_t, std::int64_t) {
      replayed += last_run().replayed;
      return true;
    });
    EXPECT_GE(replayed, 2 * 18) << e.name;  // all but the prompts and the first step
  }
}

TEST(EveryFamily, SaysWhatItsCacheTakes) {
  for (const Example& e : examples()) {
    const CacheBytes few = e.model->cache_bytes(10), many = e.model->cache_bytes(1000);
    EXPECT_GT(few.attention + few.states, 0) << e.name;
    EXPECT_EQ(few.states, many.states) << e.name;
    EXPECT_LE(many.attention, many.attention_global) << e.name;
    EXPECT_EQ(few.layers > 0, few.attention > 0) << e.name;
  }
}

// ---- caches of keys and values ----------------------------------------------------------------------------------------------

TransformerConfig decoder(std::int64_t window = 0) {
  return {.vocab = 50, .width = 32, .layers = 2, .heads = 4, .kv_heads = 2, .hidden = 48, .window = window};
}

// 256 rows, then 512, then 1024: O(log n) plans.
TEST(KvCaches, AnOutgrownCacheGoesOn) {
  if (device() == Device::emu) GTEST_SKIP() << "700 steps";
  for (std::int64_t window : {0, 300}) {
    seed(11);
    Transformer model(decoder(window));
    stir(model);
    std::vector<std::int64_t> fresh;  // steps that were planned
    std::int64_t step = 0;
    const Ids made = generate(model, some_text(9), {.tokens = 700, .temperature = 0}, [&](std::int64_t) {
      if (!last_run().replayed) fresh.push_back(step);
      return ++step > 0;
    });
    const Ids best = best_after(all_logits(model, made), made.size());
    EXPECT_EQ(Ids(made.begin() + 9, made.end()), Ids(best.begin() + 8, best.end() - 1)) << window;
    EXPECT_LE(fresh.size(), 2 + 3 * 2u) << window;  // the prompt, a step; where it grows two steps, tables of positions too
    EXPECT_GE(fresh.size(), 4u) << window;
  }
  seed(0);
}

TEST(KvCaches, StatesHaveTheirCapacity) {
  const auto bytes = [](std::int64_t window, std::int64_t prompt, std::int64_t steps) {
    const Transformer model(decoder(window));
    const TransformerCache cache(decoder(window), 1);
    Transformer copy(model);
    EXPECT_EQ(cache.layers[0].bytes(), 0);
    run([&] { return copy.prefill(one_text(some_text(std::size_t(prompt))), cache); });
    for (std::int64_t i = 0; i < steps; ++i) run([&] { return copy.step(one_text({1}), cache); });
    return cache.layers[0].bytes() / (2 * 2 * 8 * 4);  // rows
  };
  EXPECT_EQ(bytes(0, 9, 1), 256);
  EXPECT_EQ(bytes(0, 256, 0), 256);
  EXPECT_EQ(bytes(0, 256, 1), 512);
  EXPECT_EQ(bytes(7, 9, 3), 7);
  EXPECT_EQ(bytes(300, 9, 3), 256);
  EXPECT_EQ(bytes(300, 257, 0), 300);
  EXPECT_EQ(bytes(300, 256, 1), 300);
}

// Steps of several tokens through the end of a cache, and around a ring.
TEST(KvCaches, LongStepsGrowAndWrap) {
  if (device() == Device::emu) GTEST_SKIP() << "texts of 320 tokens";
  const Ids text = some_text(320);
  for (std::int64_t window : {0, 260, 40}) {
    seed(11);
    Transformer model(decoder(window));
    stir(model);
    const auto expected = all_logits(model, text);
    const std::size_t row = expected.size() / text.size();
    const TransformerCache cache(decoder(window), 1);
    std::size_t at = 0;
    for (std::size_t end : {30, 31, 100, 250, 290, 291, 310, 312, 320}) {
      const Tensor ids = one_text(Ids(text.begin() + std::ptrdiff_t(at), text.begin() + std::ptrdiff_t(end)));
      const auto logits = run([&] { return at == 0 ? model.prefill(ids, cache) : model.step(ids, cache); }).to_host<float>();
      const auto begin = expected.begin() + std::ptrdiff_t((end - 1) * row);
      EXPECT_LT(farthest(logits, {begin, begin + std::ptrdiff_t(row)}), 1e-4) << window << ", " << end;
      at = end;
    }
  }
  seed(0);
}

TEST(KvCaches, ACacheIsUsedAgainForAnotherText) {
  Transformer model(decoder(6));
  stir(model);
  const TransformerCache cache(decoder(6), 1);
  run([&] { return model.prefill(one_text(some_text(20)), cache); });
  run([&] { return model.step(one_text({3}), cache); });
  run([&] { return model.prefill(one_text({1, 2}), cache); });
  const auto after = run([&] { return model.step(one_text({3}), cache); }).to_host<float>();
  const auto all = all_logits(model, {1, 2, 3});
  EXPECT_LT(farthest(after, {all.end() - 50, all.end()}), 5e-5);
}

TEST(EveryFamily, IdsThatAreNoBatchOfTextsAreRefused) {
  for (const Example& e : examples()) {
    SCOPED_TRACE(e.name);
    expect_error(ErrorKind::usage, {"the ids are not (batch, time)", "ids (3,)", "test_generate.cpp:", "reshape"},
                 [&] { (*e.model)(Tensor::from(some_text(3), {3})); });
  }
}

TEST(EveryFamily, ATextBeyondTheContextIsAnError) {
  for (const ModelFamily& family : model_families()) {
    const bool bounded =
        std::ranges::any_of(family.options, [](const ModelOption& o) { return o.name == std::string("context"); });
    if (!bounded) continue;
    SCOPED_TRACE(family.name);
    const auto model = family.from_options({{"context", std::int64_t(8)}}, {.size = 50}, {});
    EXPECT_EQ(model->context(), 8);
    all_logits(*model, some_text(8));
    expect_error(ErrorKind::usage, {"longer than the model's context", "9 tokens, the context is 8", "test_generate.cpp:"},
                 [&] { all_logits(*model, some_text(9)); });
  }
}

// A length of 0, or one beyond the ids, would have a text end in its neighbour or among the meta tokens.
TEST(EveryFamily, LengthsThatNoTextHasAreAnError) {
  for (const Example& e : examples()) {
    const auto prefill = [&](const Ids& lengths) {
      const auto cache = e.model->make_cache(2);
      const Tensor ids = Tensor::from(some_text(6), {2, 3}), ends = Tensor::from(lengths, {2});
      run([&] { return e.model->prefill(ids, *cache, ends); }).to_host<float>();
    };
    prefill({3, 1});
    for (const Ids& lengths : {Ids{0, 2}, Ids{2, 4}, Ids{-1, 3}, Ids{100, 1}}) {
      SCOPED_TRACE(fmt::format("{}: {}, {}", e.name, lengths[0], lengths[1]));
      expect_error(ErrorKind::usage, {"out of range", "test_generate.cpp:"}, [&] { prefill(lengths); });
    }
  }
}

TEST(EveryFamily, ErrorsOfAPrefillNameTheLineThatCalledIt) {
  for (const Example& e : examples()) {
    SCOPED_TRACE(e.name);
    const auto cache = e.model->make_cache(1);
    expect_error(ErrorKind::usage, {"id 50", "in the model, called at test_generate.cpp:"}, [&] {
      run([&] { return e.model->prefill(one_text({1, 50}), *cache); }).to_host<float>();
    });
  }
}

// Each length needs a table of angles that another thread may be making.
TEST(EveryFamily, ThreadsReadOneModelAtTheSameTime) {
  if (device() != Device::cpu) GTEST_SKIP() << "a GPU is for one thread at a time";
  for (const Example& e : examples()) {
    SCOPED_TRACE(e.name);
    const std::vector<float> want = all_logits(*e.model, some_text(2));
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (std::size_t first = 0; first < 3; ++first)
      threads.emplace_back([&, first] {
        for (std::size_t i = 0; i < 2; ++i) {
          const std::vector<float> made = all_logits(*e.model, some_text(2 + (first + i) % 3 * 256));
          if (farthest({made.begin(), made.begin() + 100}, want) > 2e-5) ++wrong;
        }
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
  }
}

TEST(KvCaches, ACacheOfAnotherModelIsRefused) {
  TransformerConfig c = decoder();
  Transformer model(c);
  c.kv_heads = c.heads;
  Transformer other(c);
  expect_error(ErrorKind::usage, {"the cache belongs to another model", "make_cache"}, [&] {
    run([&] { return model.prefill(one_text({1, 2}), *other.make_cache(1)); });
  });
}

TEST(KvCaches, WhatMakesNoSenseIsRefused) {
  TransformerConfig c = decoder();
  c.context = 8;
  Transformer model(c);
  const auto cache = model.make_cache(1);
  expect_error(ErrorKind::usage, {"the cache is empty", "prefill"},
               [&] { run([&] { return model.step(one_text({1}), *cache); }); });
  expect_error(ErrorKind::usage, {"longer than the model's context", "9 tokens, the context is 8", "test_generate.cpp:"},
               [&] { run([&] { return model.prefill(one_text(some_text(9)), *cache); }); });
  run([&] { return model.prefill(one_text(some_text(7)), *cache); });
  run([&] { return model.step(one_text({1}), *cache); });
  expect_error(ErrorKind::usage, {"longer than the model's context", "9 tokens"},
               [&] { run([&] { return model.step(one_text({1}), *cache); }); });
  expect_error(ErrorKind::usage, {"the cache is used twice in one run"}, [&] {
    run([&] {
      model.prefill(one_text({1}), *cache);
      return model.step(one_text({1}), *cache);
    });
  });
  const auto lengths = [&](const Tensor& n) {
    return [&model, &cache, n] { run([&] { return model.prefill(one_text({1, 2}), *cache, n); }); };
  };
  expect_error(ErrorKind::usage, {"lengths must be one integer for each sequence", "lengths (2,)"},
               lengths(Tensor::from(Ids{1, 1}, {2})));
  expect_error(ErrorKind::usage, {"lengths must be one integer for each sequence", "f32"},
               lengths(Tensor::from(std::vector<float>{1}, {1})));
  expect_error(ErrorKind::usage, {"the prompt is longer than the model's context", "9 tokens, the context is 8"},
               [&] { generate(model, some_text(9)); });
  c.vocab = 256;
  Transformer of_bytes(c);
  std::string written;  // nothing, not even the prompt that fits
  expect_error(ErrorKind::usage, {"the prompt is longer than the model's context", "9 tokens, the context is 8"}, [&] {
    generate_texts(of_bytes, Tokenizer::bytes(), {"fits", "fits not."}, {},
                   [&](std::size_t, std::string_view t) { written += t; });
  });
  EXPECT_EQ(written, "");
  expect_error(ErrorKind::usage, {"id 50, vocabulary 50"}, [&] { generate(model, {50}); });
  expect_error(ErrorKind::usage, {"the prompt is empty"}, [&] { generate_all(model, {{1}, {}}); });
}

TEST(Generate, TheContextEndsATextAndNotTheOthers) {
  TransformerConfig c = decoder();
  c.context = 12;
  seed(11);
  Transformer model(c);
  stir(model);
  const std::vector<Ids> made =
      generate_all(model, {some_text(9), some_text(3), some_text(12)}, {.tokens = 6, .temperature = 0});
  EXPECT_EQ(made[0].size(), 12u);
  EXPECT_EQ(made[1].size(), 9u);
  EXPECT_EQ(made[2].size(), 12u);
  EXPECT_EQ(made[1], generate(model, some_text(3), {.tokens = 6, .temperature = 0}));
  seed(0);
}

TEST(Generate, SeveralTextsAreWrittenWhole) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  Mamba model(small(256));
  const std::vector<std::string> prompts = {"caf\xc3\xa9 ", "", "the king"};
  std::vector<std::string> together(3);
  const auto made = generate_texts(model, tokenizer, prompts, {.tokens = 40, .seed = 2},
                                   [&](std::size_t i, std::string_view part) { together[i] += part; });
  for (std::size_t i = 0; i < 3; ++i) {
    std::string alone;
    generate_text(model, tokenizer, prompts[i], {.tokens = 40, .seed = 2}, [&](std::string_view part) { alone += part; });
    EXPECT_EQ(together[i], alone);
    EXPECT_EQ(made[i].tokens, 40);
    EXPECT_FALSE(made[i].full);
  }
}

// ---- evaluation -------------------------------------------------------------------------------------------------------------

TEST(Evaluate, WeighsEveryTokenAlike) {
  const TempFolder folder;
  Mamba model(small(256));
  const std::string text = words(777);
  const fs::path file = folder.write("t.txt", text);
  const Evaluation e = evaluate(model, open_to_evaluate(file, "all", Tokenizer::bytes(), {.batch = 3, .length = 50}));
  EXPECT_EQ(e.tokens, std::int64_t(text.size()) - 1);
  EXPECT_EQ(e.characters, e.tokens);
  // The same by hand: windows of 50 targets, one after the other.
  double nats = 0;
  for (std::size_t at = 0; at + 1 < text.size(); at += 50) {
    const std::string window = text.substr(at, 51);
    std::vector<std::int64_t> inputs(window.begin(), window.end() - 1), targets(window.begin() + 1, window.end());
    const std::int64_t n = std::int64_t(inputs.size());
    nats += run([&] {
              return no_grad([&] {
                return cross_entropy(model(Tensor::from(inputs, {1, n})), Tensor::from(targets, {1, n}),
                                     {.reduction = Reduction::sum});
              });
            }).item();
  }
  EXPECT_NEAR(e.nats, nats, 1e-3);
  EXPECT_DOUBLE_EQ(e.perplexity(), std::exp(e.nats / double(e.tokens)));
  EXPECT_DOUBLE_EQ(e.bits_per_byte(), e.nats / std::numbers::ln2 / double(text.size() - 1));
  EXPECT_TRUE(model.training());
}

TEST(Evaluate, PartsAndSourcesOfOneTextAgree) {
  const TempFolder folder;
  const std::string text = words(3000) + "caf\xc3\xa9 \xf0\x9f\x98\x80 king.\n";
  const fs::path file = folder.write("t.txt", text);
  const Tokenizer tokenizer = Tokenizer::train(text, 280);
  Mamba model(small(280));
  const BatchOptions options{.batch = 2, .length = 32};
  const auto of = [&](const fs::path& data, const char* part) {
    return evaluate(model, open_to_evaluate(data, part, tokenizer, options));
  };
  const Evaluation all = of(file, "all"), training = of(file, "training"), validation = of(file, "validation");
  const Evaluation trained = evaluate(model, TokenStream(file, tokenizer, options));
  EXPECT_EQ(validation.nats, trained.nats);  // what `weft train` reports
  EXPECT_LT(validation.tokens * 5, training.tokens);
  EXPECT_EQ(all.bytes - all.characters, 1 + 3);
  EXPECT_LT(all.tokens, all.bytes);
  EXPECT_GT(all.bits_per_character(), all.bits_per_byte());
  ShardFolder::make(folder / "shards", load_corpus(file), tokenizer, 100);
  EXPECT_EQ(of(folder / "shards", "validation").nats, validation.nats);
  EXPECT_EQ(of(folder / "shards", "training").nats, training.nats);
  expect_error(ErrorKind::io, {"not the model's", "unigram (280)", "bytes (256)"},
               [&] { open_to_evaluate(folder / "shards", "all", Tokenizer::bytes(), options); });
}

TEST(Evaluate, AShortText) {
  const TempFolder folder;
  Mamba model(small(256));
  const auto open = [&](const std::string& text) {
    return open_to_evaluate(folder.write("t", text), "all", Tokenizer::bytes(), {.batch = 8, .length = 512});
  };
  EXPECT_EQ(evaluate(model, open("ab")).tokens, 1);
  EXPECT_EQ(open("abc").options().length, 2);  // and no larger than it needs to be
  EXPECT_EQ(open("abc").options().batch, 1);
  expect_error(ErrorKind::io, {"text too short", "tokens: 1"}, [&] { open("a"); });
  expect_error(ErrorKind::io, {"is empty"}, [&] { open(""); });
}

}  // namespace
}  // namespace weft
