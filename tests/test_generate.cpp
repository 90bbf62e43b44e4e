// Sampling, generation with caches, models with their tokenizers, evaluation.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

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
  config.eos = 'e';
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
