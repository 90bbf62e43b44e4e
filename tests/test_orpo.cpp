// ORPO: the loss and its metrics, pairs of files and of texts, and training with both.
#include "models/orpo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "autograd/settings.h"
#include "jit/file.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/train/metrics.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int64_t>;

// ---- the loss ---------------------------------------------------------------------------------------------------------------

double log_odds_of(double l) { return l - std::log(-std::expm1(l)); }
double softplus_of(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// Responses of one token, of two that there are, whose log-probabilities are these: logits (2 n, 1, 2), labels (2 n, 1) of 0.
Tensor logits_with(const std::vector<double>& l, DType dtype = DType::f64) {
  std::vector<double> values;
  for (const double x : l) values.push_back(x), values.push_back(std::log(-std::expm1(x)));
  return cast(Tensor::from(values, {std::int64_t(l.size()), 1, 2}), dtype);
}
Tensor first_labels(std::size_t rows) { return Tensor::from(Ids(rows, 0), {std::int64_t(rows), 1}); }

// (l_w, l_l) -> z, log sigmoid z, lambda L_OR, and its derivatives by l_w and l_l.
TEST(Orpo, GoldenG6) {
  struct Row {
    double chosen, rejected, z, log_sigmoid, loss, by_chosen, by_rejected;
  };
  for (const Row& g : {Row{-1, -2, 1.3132616875, -0.2381830264, 0.0238183026, -0.0335286607, 0.0245114151},
                       Row{-.1, -.1, 0, -0.6931471806, 0.0693147181, -0.5254165972, 0.5254165972},
                       Row{-3, -.5, -3.3816829486, -3.4151082496, 0.34151082496, -0.1017800453, 0.2457947934}}) {
    const auto values = run([&] {
      const OrpoBatch b = orpo(logits_with({g.chosen, g.rejected}), first_labels(2));
      const std::vector<Tensor> d = grad(b.loss - mean(b.nll), {b.chosen, b.rejected});
      return std::vector<Tensor>{orpo_means(b), b.loss, d[0], d[1]};
    });
    const std::vector<double> m = values[0].to_host<double>();
    const OrpoMetrics metrics = OrpoMetrics::from({m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]});
    EXPECT_NEAR(metrics.nll_loss, -g.chosen, 1e-12);
    EXPECT_NEAR(metrics.logps_chosen, g.chosen, 1e-12);
    EXPECT_NEAR(metrics.logps_rejected, g.rejected, 1e-12);
    EXPECT_NEAR(metrics.log_odds_chosen, g.z, 1e-10);
    EXPECT_NEAR(metrics.log_odds_ratio, g.log_sigmoid, 1e-10);
    EXPECT_EQ(metrics.accuracy, g.chosen > g.rejected);
    EXPECT_NEAR(metrics.margin(0.1), 0.1 * (g.chosen - g.rejected), 1e-12);
    EXPECT_NEAR(values[1].item() + g.chosen, g.loss, 1e-10);
    EXPECT_NEAR(values[2].to_host<double>()[0], g.by_chosen, 1e-10);
    EXPECT_NEAR(values[3].to_host<double>()[0], g.by_rejected, 1e-10);
  }
}

// Two pairs of texts of five tokens with padding and, where `response` says so, prompts.
const Ids kLabels = {-100, 3, 1, 0, -100, -100, -100, 2, 6, -100, 4, -100, 5, 2, 1, 0, 0, -100, -100, -100};
const Ids kResponse = {0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0};

std::vector<double> orpo_reference(const std::vector<double>& x, const std::vector<double>& labels, const double* response,
                                   std::int64_t rows, std::int64_t t, std::int64_t v) {
  std::vector<double> l, nll;
  for (std::int64_t r = 0; r < rows; ++r) {
    double all = 0, own = 0, n = 0, n_own = 0;
    for (std::int64_t i = 0; i < t; ++i) {
      const double label = labels[std::size_t(r * t + i)];
      if (label == -100) continue;
      const double* row = &x[std::size_t((r * t + i) * v)];
      double sum = 0;
      for (std::int64_t j = 0; j < v; ++j) sum += std::exp(row[j]);
      const double p = row[std::int64_t(label)] - std::log(sum);
      all += p, n += 1;
      if (!response || response[r * t + i] != 0) own += p, n_own += 1;
    }
    l.push_back(own / n_own), nll.push_back(-all / n);
  }
  double loss = 0;
  for (std::size_t r = 0; r < l.size(); r += 2)
    loss += (nll[r] + 0.25 * softplus_of(log_odds_of(l[r + 1]) - log_odds_of(l[r]))) / (double(l.size()) / 2);
  return {loss};
}

std::vector<double> reals(const Ids& ids) { return {ids.begin(), ids.end()}; }

// Value, gradient by differences in fp64, precisions, and where a GPU is in use, emulated or not, its kernels.
TEST(Orpo, ValueGradientAndDevices) {
  const OpInput logits{{4, 5, 7}}, labels{{4, 5}, 0, 0, reals(kLabels), DType::i64, false},
      response{{4, 5}, 0, 0, reals(kResponse), DType::i64, false};
  check_op([](const std::vector<Tensor>& in) { return orpo(in[0], in[1], {.lambda = 0.25}).loss; },
           [](const auto& in, const auto&) { return orpo_reference(in[0], in[1], nullptr, 4, 5, 7); },
           {{"responses", {logits, labels}}});
  check_op([](const std::vector<Tensor>& in) { return orpo(in[0], in[1], {.lambda = 0.25, .response = in[2]}).loss; },
           [](const auto& in, const auto&) { return orpo_reference(in[0], in[1], in[2].data(), 4, 5, 7); },
           {{"prompts", {logits, labels, response}}});
  check_op([](const std::vector<Tensor>& in) { return log_odds(in[0]); },
           [](const auto& in, const auto&) {
             std::vector<double> out;
             for (const double l : in[0]) out.push_back(log_odds_of(l));
             return out;
           },
           {{"odd", {{{3, 7}, -4, -0.05}}}});
}

Tensor some_logits(Shape shape, DType dtype = DType::f32) {
  return cast(Tensor::from(irregular(shape.numel(), -2, 2), shape), dtype);
}

TEST(Orpo, TheSeedsFormHasElevenTenthsOfTheGradient) {
  const auto gradient = [&](const OrpoOptions& o) {
    const Tensor x = some_logits({4, 5, 7}, DType::f64), labels = Tensor::from(kLabels, {4, 5});
    return run([&] { return grad(orpo(x, labels, o).loss, {x})[0]; }).to_host<double>();
  };
  const auto nll = gradient({.lambda = 0}), seed = gradient({.form = OrpoForm::seed}), paper = gradient({});
  double differs = 0;
  for (std::size_t i = 0; i < nll.size(); ++i) {
    EXPECT_NEAR(seed[i], 1.1 * nll[i], 1e-15);
    differs = std::max(differs, std::abs(paper[i] - seed[i]));
  }
  EXPECT_GT(differs, 1e-3);
}

// In single precision, against the formulas in double: near p = 1, where 1 - p has no digits left, and near p = 0.
TEST(Orpo, LogOddsKeepTheirDigitsAtBothEnds) {
  std::vector<float> l = {-2e-6f, -1e-5f, -1e-3f, -0.1f, -0.6931472f, -1, -20, -90, -1e4f, -1e30f};
  const Tensor x = Tensor::from(l, {std::int64_t(l.size())});
  const auto both = run([&] {
    const Tensor y = log_odds(x);
    return std::vector<Tensor>{y, grad(sum(y), {x})[0]};
  });
  const std::vector<float> value = both[0].to_host<float>(), slope = both[1].to_host<float>();
  for (std::size_t i = 0; i < l.size(); ++i) {
    const double at = l[i];
    EXPECT_NEAR(value[i], log_odds_of(at), 2e-6 * std::max(1.0, std::abs(log_odds_of(at)))) << at;
    EXPECT_NEAR(slope[i], -1 / std::expm1(at), 2e-5 / -std::expm1(at)) << at;
  }
}

TEST(Orpo, IsFiniteWhereProbabilitiesAreOneAndZero) {
  // Both certain, both impossible, and each way between: 200 apart is exp(-200), which no float holds.
  std::vector<float> logits;
  for (const auto& [chosen, rejected] :
       std::vector<std::pair<float, float>>{{200, 200}, {-200, -200}, {200, -200}, {-200, 200}})
    for (const float x : {chosen, rejected}) logits.push_back(x), logits.push_back(0);
  const Tensor x = Tensor::from(logits, {8, 1, 2});
  const auto out = run([&] {
    const OrpoBatch b = orpo(x, first_labels(8));
    return std::vector<Tensor>{b.odds_ratio, b.loss, grad(b.loss, {x})[0]};
  });
  const std::vector<float> z = out[0].to_host<float>();
  const double most = log_odds_of(-1e-6), least = -200;
  for (const auto& [i, expected] : std::map<std::size_t, double>{{0, 0}, {1, 0}, {2, most - least}, {3, least - most}})
    EXPECT_NEAR(z[i], expected, 1e-3) << i;
  EXPECT_NEAR(out[1].item(), (2 * 200 + 0.1 * (2 * std::log(2.0) + most - least)) / 4, 1e-3);
  for (const float g : out[2].to_host<float>()) EXPECT_TRUE(std::isfinite(g)) << g;
}

TEST(Orpo, PaddingChangesNothing) {
  const std::int64_t v = 7;
  const auto loss_and_gradient = [&](std::int64_t t) {
    const std::vector<double> values = irregular(4 * 5 * v, -2, 2);
    std::vector<float> logits(std::size_t(4 * t * v), 3.5f);
    Ids labels(std::size_t(4 * t), -100);
    for (std::int64_t r = 0; r < 4; ++r)
      for (std::int64_t i = 0; i < 5; ++i) {
        labels[std::size_t(r * t + i)] = kLabels[std::size_t(r * 5 + i)];
        for (std::int64_t j = 0; j < v; ++j)
          logits[std::size_t((r * t + i) * v + j)] = float(values[std::size_t((r * 5 + i) * v + j)]);
      }
    const Tensor x = Tensor::from(logits, {4, t, v}), y = Tensor::from(labels, {4, t});
    const auto out = run([&] {
      const OrpoBatch b = orpo(x, y);
      return std::vector<Tensor>{b.loss, grad(b.loss, {x})[0]};
    });
    return std::pair(out[0].item(), out[1].to_host<float>());
  };
  const auto tight = loss_and_gradient(5), wide = loss_and_gradient(16);
  EXPECT_NEAR(tight.first, wide.first, 1e-6);
  for (std::int64_t r = 0; r < 4; ++r)
    for (std::int64_t i = 0; i < 16 * v; ++i) {
      const float inside = i < 5 * v ? tight.second[std::size_t(r * 5 * v + i)] : 0;
      EXPECT_NEAR(wide.second[std::size_t(r * 16 * v + i)], inside, 1e-7);
    }
}

TEST(Orpo, MetricsHaveTheNamesOfTrl) {
  const OrpoMetrics m = OrpoMetrics::from({1, -1, -2, 0.5, 0.25, 0.75, -0.2, 1.3});
  EXPECT_EQ(OrpoMetrics::from(m.values()).values(), m.values());
  const auto named = m.named(0.1, "eval_");
  const std::map<std::string, double> values(named.begin(), named.end());
  const std::map<std::string, double> expected = {{"eval_nll_loss", 1},
                                                  {"eval_rewards/chosen", -0.1},
                                                  {"eval_rewards/rejected", -0.2},
                                                  {"eval_rewards/accuracies", 0.75},
                                                  {"eval_rewards/margins", 0.1},
                                                  {"eval_logps/chosen", -1},
                                                  {"eval_logps/rejected", -2},
                                                  {"eval_logits/chosen", 0.5},
                                                  {"eval_logits/rejected", 0.25},
                                                  {"eval_log_odds_ratio", -0.2},
                                                  {"eval_log_odds_chosen", 1.3}};
  ASSERT_EQ(values.size(), expected.size());
  for (const auto& [name, value] : expected) EXPECT_NEAR(values.at(name), value, 1e-12) << name;
}

TEST(Orpo, RefusesWhatAreNoPairs) {
  const Tensor labels = Tensor::from(kLabels, {4, 5});
  expect_error(ErrorKind::usage, {"logits must be those of pairs", "(3, 5, 7)", "test_orpo.cpp"}, [&] {
    orpo(some_logits({3, 5, 7}), labels);
  });
  expect_error(ErrorKind::usage, {"labels do not fit logits", "must be (4, 6)"}, [&] { orpo(some_logits({4, 6, 7}), labels); });
  expect_error(ErrorKind::usage, {"response does not fit labels"}, [&] {
    orpo(some_logits({4, 5, 7}), labels, {.response = Tensor::from(Ids(4, 1), {4, 1})});
  });
  expect_error(ErrorKind::usage, {"labels must be integers"}, [&] { orpo(some_logits({4, 5, 7}), some_logits({4, 5})); });
}

// ---- pairs of a file --------------------------------------------------------------------------------------------------------

std::string line(const std::string& prompt, const std::string& chosen, const std::string& rejected) {
  return nlohmann::json({{"prompt", prompt}, {"chosen", chosen}, {"rejected", rejected}}).dump() + "\n";
}

Ids ids_of(const std::string& text) { return Tokenizer::bytes().encode(text); }

class PairFiles : public testing::Test {
 protected:
  TokenPairs read(const std::string& text, std::int64_t length = 100) const {
    return TokenPairs(folder_.write("pairs.jsonl", text), Tokenizer::bytes(), length);
  }
  PairStream stream(const std::string& text, BatchOptions options, PairOptions pairs = {}) const {
    return PairStream(folder_.write("pairs.jsonl", text), Tokenizer::bytes(), options, pairs);
  }
  TempFolder folder_;
};

TEST_F(PairFiles, AreRead) {
  const TokenPairs pairs = read(line("2+2=", "4", "five") + "\n \t\r\n" + line("", "yes", "no"));
  ASSERT_EQ(pairs.size(), 2);
  EXPECT_EQ(pairs.cut(), 0);
  EXPECT_EQ(pairs[0].prompt, ids_of("2+2="));
  EXPECT_EQ(pairs[0].chosen, ids_of("4"));
  EXPECT_EQ(pairs[0].rejected, ids_of("five"));
  EXPECT_EQ(pairs.longest(0), 8);
  EXPECT_EQ(pairs[1].prompt, ids_of("\n"));  // the separator: something must predict the first token
  EXPECT_NE(pairs.hash(), read(line("2+2=", "4", "five") + line("", "yes", "nu")).hash());
  EXPECT_NE(pairs.hash(), read(line("2+2=4", "f", "ive") + line("", "yes", "no")).hash());
}

// Of a tokenizer that joins letters the response begins where the texts part, and ends with the end of text.
TEST_F(PairFiles, BeginWhereTheTextsPart) {
  const Tokenizer tokenizer = Tokenizer::train(words_text(20000), 280);
  const fs::path file = folder_.write("pairs.jsonl", line("the king ", "went forth ", "land. went ") + line("a", "nd", "x"));
  const TokenPairs pairs(file, tokenizer, 100);
  for (const std::int64_t i : {0, 1}) {
    const TokenPair p = pairs[i];
    EXPECT_EQ(p.chosen.back(), tokenizer.end_of_text());
    EXPECT_EQ(p.rejected.back(), tokenizer.end_of_text());
    Ids chosen = p.prompt, rejected = p.prompt;
    if (i == 1) chosen.clear(), rejected.clear();  // the prompt is the separator
    chosen.insert(chosen.end(), p.chosen.begin(), p.chosen.end() - 1);
    rejected.insert(rejected.end(), p.rejected.begin(), p.rejected.end() - 1);
    EXPECT_EQ(tokenizer.decode(chosen), i == 0 ? "the king went forth " : "and");
    EXPECT_EQ(tokenizer.decode(rejected), i == 0 ? "the king land. went " : "ax");
  }
  EXPECT_EQ(pairs[1].prompt, tokenizer.separator());
}

TEST_F(PairFiles, TooLongOnesLoseTheBeginningOfThePromptThenTheEndsOfTheResponses) {
  const TokenPairs pairs = read(line("abcdef", "123", "12345") + line("abc", "0123456789", "01234X6789"), 8);
  EXPECT_EQ(pairs.cut(), 2);
  EXPECT_EQ(pairs[0].prompt, ids_of("def"));
  EXPECT_EQ(pairs[0].chosen, ids_of("123"));
  EXPECT_EQ(pairs[0].rejected, ids_of("12345"));
  EXPECT_EQ(pairs[1].prompt, ids_of("c"));
  EXPECT_EQ(pairs[1].chosen, ids_of("0123456"));
  EXPECT_EQ(pairs[1].rejected, ids_of("01234X6"));
}

TEST_F(PairFiles, AllThatIsWrongIsSaidAtOnceWithItsLines) {
  const std::string text = line("a", "b", "c") +                       // 1
                           "{\"prompt\": \"a\", \"chosen\": \"b\"}\n"  // 2
                           "not json\n"                                // 3
                           "[1]\n"                                     // 4
                           "\n" +                                      // 5
                           line("a", "", "c") +                        // 6
                           line("a", "b", "b") +                       // 7
                           "{\"prompt\": 1, \"chosen\": \"b\"}\n"      // 8
                           "{\"prompt\": \"a\"\n" +                    // 9
                           line("a", "b", "") +                        // 10
                           line("a", "0123456789X", "0123456789Y") +   // 11
                           line("a", "same", "same");                  // 12
  expect_error(
      ErrorKind::io,
      {"pairs.jsonl: not all lines are pairs", "lines 2, 8: there is no \"rejected\"", "lines 3, 9: not JSON",
       "line 4: not an object", "line 6: \"chosen\" is empty", "lines 7, 12: \"chosen\" and \"rejected\" are the same\n",
       "line 8: \"prompt\" is no string", "line 10: \"rejected\" is empty",
       "line 11: \"chosen\" and \"rejected\" are the same in the first 9 tokens", "{\"prompt\": \"...\""},
      [&] { read(text, 10); });
  expect_error(ErrorKind::io, {"there are no pairs"}, [&] { read("\n\n"); });
  expect_error(ErrorKind::io, {"gzip"}, [&] { read("\x1f\x8b\x08 and so on"); });
  expect_error(ErrorKind::io, {"a single pair"}, [&] { stream(line("a", "b", "c"), {.batch = 1, .length = 8}); });
  expect_error(ErrorKind::io, {"nowhere.jsonl"}, [&] { TokenPairs("nowhere.jsonl", Tokenizer::bytes(), 8); });
}

std::string numbered(int n, const std::string& end = "") {
  std::string text;
  for (int i = 0; i < n; ++i) text += line("p" + std::to_string(i) + ":", "yes" + end, "n" + std::to_string(i));
  return text;
}

TEST_F(PairFiles, BatchesHaveChosenAndRejectedInTurn) {
  PairStream pairs = stream(line("ab", "cde", "fg") + line("ab", "cde", "fg"), {.batch = 2, .length = 64});
  EXPECT_EQ(pairs.training_pairs(), 1);
  EXPECT_EQ(pairs.held_out_pairs(), 1);
  const Batch b = pairs.next();
  EXPECT_EQ(b.inputs.shape(), Shape({4, 16}));  // the shortest there is
  EXPECT_FALSE(b.response);
  const Ids inputs = b.inputs.to_host<std::int64_t>(), targets = b.targets.to_host<std::int64_t>();
  const auto row = [](const Ids& all, std::int64_t r) { return Ids(all.begin() + r * 16, all.begin() + r * 16 + 6); };
  const std::int64_t no = kIgnored;
  for (const std::int64_t r : {0, 2}) {
    EXPECT_EQ(row(inputs, r), Ids({'a', 'b', 'c', 'd', 'e', 0}));
    EXPECT_EQ(row(targets, r), Ids({no, 'c', 'd', 'e', no, no}));
    EXPECT_EQ(row(inputs, r + 1), Ids({'a', 'b', 'f', 'g', 0, 0}));
    EXPECT_EQ(row(targets, r + 1), Ids({no, 'f', 'g', no, no, no}));
  }
  PairStream with =
      stream(line("ab", "cde", "fg") + line("ab", "cde", "fg"), {.batch = 1, .length = 64}, {.nll_on_prompt = true});
  const Batch p = with.next();
  EXPECT_EQ(row(p.targets.to_host<std::int64_t>(), 0), Ids({'b', 'c', 'd', 'e', no, no}));
  EXPECT_EQ(row(p.response.to_host<std::int64_t>(), 0), Ids({0, 1, 1, 1, 0, 0}));
}

TEST_F(PairFiles, ABatchIsAsLongAsItsLongestRowNeeds) {
  std::string text = numbered(10);
  text += line("p", std::string(40, 'x'), "no");  // held out
  PairStream pairs = stream(text, {.batch = 2, .length = 128});
  EXPECT_EQ(pairs.held_out_pairs(), 1);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(pairs.next().inputs.dim(1), 16);
  EXPECT_EQ(pairs.held_out(0).inputs.dim(1), 64);
}

// The parts of several processes are the rows of the whole batch, of one length, whoever has the longest.
TEST_F(PairFiles, EachEpochHasEveryPairOnceInPartsToo) {
  const std::string text = numbered(39) + line("pX:", std::string(50, 'y'), "nX") + numbered(3);  // 4 held out
  PairStream whole = stream(text, {.batch = 4, .length = 64, .seed = 5});
  ASSERT_EQ(whole.training_pairs(), 39);
  PairStream parts[] = {stream(text, {.batch = 4, .length = 64, .seed = 5, .part = 0, .parts = 2}),
                        stream(text, {.batch = 4, .length = 64, .seed = 5, .part = 1, .parts = 2})};
  std::vector<std::string> prompts;
  for (int i = 0; i < 39; ++i) {
    const Batch batch = whole.next();
    const Ids rows = batch.inputs.to_host<std::int64_t>();
    const std::int64_t length = batch.inputs.dim(1);
    Ids joined;
    for (PairStream& part : parts)
      for (const std::int64_t id : part.next().inputs.to_host<std::int64_t>()) joined.push_back(id);
    EXPECT_EQ(joined, rows);
    for (std::int64_t r = 0; r < 8; r += 2)
      prompts.push_back(Tokenizer::bytes().decode(std::span(rows).subspan(std::size_t(r * length), 4)));
  }
  std::set<std::vector<std::string>> orders;
  for (int epoch = 0; epoch < 4; ++epoch) {
    const std::vector<std::string> own(prompts.begin() + epoch * 39, prompts.begin() + (epoch + 1) * 39);
    EXPECT_EQ(std::set<std::string>(own.begin(), own.end()).size(), 39u) << epoch;
    orders.insert(own);
  }
  EXPECT_EQ(orders.size(), 4u);
}

TEST_F(PairFiles, ValidationHasTheChosenTexts) {
  const PairStream pairs = stream(numbered(40, "!"), {.batch = 3, .length = 16});
  EXPECT_EQ(pairs.held_out_pairs(), 4);
  EXPECT_EQ(pairs.validation_batches(), 2);
  EXPECT_EQ(pairs.held_out_pairs(0), 3);
  EXPECT_EQ(pairs.held_out_pairs(1), 1);
  const Batch b = pairs.validation(1);
  EXPECT_EQ(b.counted, 4);
  EXPECT_EQ(b.characters, 4);
  const Ids inputs = b.inputs.to_host<std::int64_t>(), targets = b.targets.to_host<std::int64_t>();
  EXPECT_EQ(Tokenizer::bytes().decode(std::span(inputs).first(8)), "p39:yes!");
  EXPECT_EQ(Ids(targets.begin() + 3, targets.begin() + 7), ids_of("yes!"));
  EXPECT_EQ(std::ranges::count(targets, kIgnored), 3 * 16 - 4);
  const Batch filled = pairs.held_out(1);
  EXPECT_EQ(filled.inputs.dim(0), 6);
  const Ids rest = filled.targets.to_host<std::int64_t>();
  EXPECT_EQ(std::count_if(rest.begin(), rest.end(), [](std::int64_t x) { return x != kIgnored; }), 4 + 3);
}

// ---- pairs of a text --------------------------------------------------------------------------------------------------------

constexpr std::int64_t kLength = 24, kResponseTokens = 8;

std::shared_ptr<TokenStream> text_of(std::size_t size, BatchOptions o = {.batch = 4, .length = kLength, .seed = 3}) {
  return std::make_shared<TokenStream>(Corpus("words", words_text(size)), Tokenizer::bytes(), o);
}

struct SplitRow {
  Ids prompt, response;
};
std::vector<SplitRow> split_rows(const Batch& b, std::int64_t response = kResponseTokens) {
  const Ids all = b.inputs.to_host<std::int64_t>();
  std::vector<SplitRow> rows;
  for (std::int64_t r = 0; r < b.inputs.dim(0); ++r) {
    const auto begin = all.begin() + r * kLength, middle = begin + kLength - response;
    rows.push_back({{begin, middle}, {middle, begin + kLength}});
  }
  return rows;
}

TEST(Pairs, AreMadeOfATextInFourWays) {
  const std::string text = words_text(20000);
  for (const std::string& word : reject_words()) {
    if (word == "sample") continue;
    SCOPED_TRACE(word);
    PairStream pairs(text_of(20000), {.reject = reject_of(word), .response = kResponseTokens});
    EXPECT_EQ(pairs.training_pairs(), 18000 / kLength);
    EXPECT_EQ(pairs.held_out_pairs(), 2000 / kLength);
    int differ = 0;
    for (int i = 0; i < 20; ++i) {
      const std::vector<SplitRow> rows = split_rows(pairs.next());
      for (std::size_t k = 0; k < rows.size(); k += 2) {
        const Ids &chosen = rows[k].response, &rejected = rows[k + 1].response;
        EXPECT_EQ(rows[k].prompt, rows[k + 1].prompt);
        const std::string window = Tokenizer::bytes().decode(rows[k].prompt) + Tokenizer::bytes().decode(chosen);
        EXPECT_NE(text.find(window), std::string::npos) << window;
        EXPECT_NE(chosen, rejected);
        int places = 0;
        for (std::size_t j = 0; j < chosen.size(); ++j) places += chosen[j] != rejected[j];
        EXPECT_TRUE(word != "corrupt" || places == 2) << places;  // 30 % of 8
        EXPECT_TRUE(word != "shuffle" || std::ranges::is_permutation(chosen, rejected));
        EXPECT_TRUE(word != "swap" || text.find(Tokenizer::bytes().decode(rejected)) != std::string::npos);
        differ += places;
      }
    }
    EXPECT_GT(differ, 80 * 2 - 1);
  }
}

TEST(Pairs, ThoseHeldOutDoNotDependOnTheSeed) {
  const auto held_out = [](std::uint64_t seed) {
    const PairStream pairs(text_of(20000, {.batch = 4, .length = kLength, .seed = seed}), {.reject = Reject::corrupt});
    return pairs.held_out(2).inputs.to_host<std::int64_t>();
  };
  EXPECT_EQ(held_out(1), held_out(2));
  const auto training = [](std::uint64_t seed) {
    PairStream pairs(text_of(20000, {.batch = 4, .length = kLength, .seed = seed}), {.reject = Reject::corrupt});
    return pairs.next().inputs.to_host<std::int64_t>();
  };
  EXPECT_NE(training(1), training(2));
}

TEST(Pairs, AnEpochMakesOthersOfTheSameTexts) {
  PairStream pairs(text_of(6000), {.reject = Reject::corrupt, .response = kResponseTokens});
  ASSERT_EQ(pairs.training_pairs(), 225);
  std::map<Ids, std::set<Ids>> rejected;  // by the chosen text
  for (int i = 0; i < 225; ++i)           // four epochs
    for (const std::vector<SplitRow> rows = split_rows(pairs.next()); const std::size_t k : {0, 2, 4, 6}) {
      Ids chosen = rows[k].prompt;
      chosen.insert(chosen.end(), rows[k].response.begin(), rows[k].response.end());
      rejected[chosen].insert(rows[k + 1].response);
    }
  EXPECT_EQ(rejected.size(), 225u);
  const auto several = std::ranges::count_if(rejected, [](const auto& entry) { return entry.second.size() > 2; });
  EXPECT_GT(several, 200);
}

TEST(Pairs, RefuseWhatLeavesNoRoom) {
  const auto make = [](std::size_t size, PairOptions o, BatchOptions b = {.batch = 4, .length = kLength}) {
    return [=] { PairStream(text_of(size, b), o); };
  };
  expect_error(ErrorKind::usage, {"the response leaves no prompt", "response 24, length 24"},
               make(20000, {.response = kLength}));
  expect_error(ErrorKind::io, {"text too short", "22 to validate with"}, make(226, {}));
  expect_error(ErrorKind::usage, {"each text stands alone", "--carry-state"},
               make(20000, {}, {.batch = 4, .length = kLength, .carry = true}));
  expect_error(ErrorKind::usage, {"called 'corupt'; did you mean 'corrupt'?"}, [] { reject_of("corupt"); });
  PairStream pairs(text_of(20000), {.reject = Reject::sample});
  expect_error(ErrorKind::usage, {"have not been sampled"}, [&] { pairs.next(); });
  expect_error(ErrorKind::usage, {"have not been sampled"}, [&] { pairs.held_out(0); });
}

// What is sampled: at least 512 texts at a time, of one length; each call draws by a seed of its own; once a round.
TEST(Pairs, SampleInLargeBatchesOnceARound) {
  PairStream pairs(text_of(40000), {.reject = Reject::sample, .response = kResponseTokens});
  std::vector<std::size_t> calls;
  std::set<std::uint64_t> seeds;
  const auto write = [&](const PairStream::Texts& prompts, std::int64_t tokens, std::uint64_t seed) {
    EXPECT_EQ(tokens, kResponseTokens);
    calls.push_back(prompts.size()), seeds.insert(seed);
    PairStream::Texts texts;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(prompts[i].size(), std::size_t(kLength - kResponseTokens));
      texts.emplace_back(std::size_t(tokens), std::int64_t((seed + i) % 251));
    }
    return texts;
  };
  EXPECT_TRUE(pairs.must_sample());
  EXPECT_EQ(pairs.sample(write), pairs.held_out_pairs() + 1500);  // an epoch
  EXPECT_EQ(calls, (std::vector<std::size_t>{166, 750, 750}));
  EXPECT_EQ(pairs.sample(write), 0);
  const auto first = split_rows(pairs.next());
  EXPECT_NE(first[1].response, first[3].response);
  pairs.seek(374);
  EXPECT_FALSE(pairs.must_sample());
  pairs.seek(375);
  EXPECT_TRUE(pairs.must_sample());
  EXPECT_EQ(pairs.sample(write), 1500);
  EXPECT_EQ(seeds.size(), calls.size());
  const Batch before = pairs.next(), held_out = pairs.held_out(1);
  // They come back from a checkpoint.
  PairStream again(text_of(40000), {.reject = Reject::sample, .response = kResponseTokens});
  EXPECT_TRUE(again.sampled().empty());
  again.set_sampled(pairs.sampled());
  again.seek(375);
  EXPECT_FALSE(again.must_sample());
  EXPECT_EQ(again.next().inputs.to_host<std::int64_t>(), before.inputs.to_host<std::int64_t>());
  EXPECT_EQ(again.held_out(1).inputs.to_host<std::int64_t>(), held_out.inputs.to_host<std::int64_t>());
  TensorMap damaged = pairs.sampled();
  damaged["training"] = HostTensor::from<std::int64_t>(DType::i32, {1500, 8}, Ids(12000, 256));
  expect_error(ErrorKind::io, {"not those of these pairs", "token 256"}, [&] { again.set_sampled(damaged); });
  damaged.erase("first"), damaged["training"] = pairs.sampled().at("training");
  expect_error(ErrorKind::io, {"not those of these pairs", "first"}, [&] { again.set_sampled(damaged); });
  // A short round still has 512 texts.
  PairStream shorter(text_of(40000), {.reject = Reject::sample, .response = kResponseTokens, .refresh = 1});
  shorter.sample(write);
  shorter.seek(127);
  EXPECT_FALSE(shorter.must_sample());
  shorter.seek(128);
  EXPECT_TRUE(shorter.must_sample());
  expect_error(ErrorKind::usage, {"another length", "7 tokens, not 8"}, [&] {
    shorter.sample([](const PairStream::Texts& prompts, std::int64_t, std::uint64_t) {
      return PairStream::Texts(prompts.size(), Ids(7, 0));
    });
  });
}

// ---- training ---------------------------------------------------------------------------------------------------------------

TrainOptions tiny(const std::string& reject) {
  TrainOptions o;
  o.steps = 8, o.batch = 4, o.length = kLength, o.lr = 5e-3, o.warmup = 3, o.seed = 7;
  o.model_options = {{"width", 16}, {"layers", 1}, {"state", 4}};
  o.stage = "orpo", o.reject = reject;
  return o;
}

std::shared_ptr<PairStream> pairs_for(const TrainOptions& o, std::size_t size = 8000) {
  return std::make_shared<PairStream>(text_of(size, {.batch = o.batch, .length = o.length, .seed = o.seed}),
                                      PairOptions{.reject = reject_of(o.reject), .response = kResponseTokens, .refresh = 1});
}

void expect_equal(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_EQ(tensor.bytes, b.at(name).bytes) << name;
}

// In the middle of what was sampled, too, after which more is.
TEST(OrpoTraining, SavedReloadedAndContinuedEqualsUninterrupted) {
  for (const std::string word : {"corrupt", "sample"}) {
    SCOPED_TRACE(word);
    if (word == "sample" && device() == Device::emu) continue;  // thousands of tokens
    const TempFolder folder;
    TrainOptions o = tiny(word);
    if (word == "sample") o.batch = 256;  // what is sampled serves two steps
    Trainer whole(pairs_for(o), o), first(pairs_for(o), o);
    std::vector<OrpoMetrics::Values> all, rest;
    for (int i = 0; i < 8; ++i) all.push_back(whole.step().preferences->values());
    const OrpoMetrics before = first.validate_pairs(4);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(first.step().preferences->values(), all[std::size_t(i)]);
    first.save(folder.path());
    EXPECT_EQ(fs::exists(folder / "sampled.safetensors"), word == "sample");
    Trainer second = Trainer::resume(folder.path(), pairs_for(o));
    EXPECT_EQ(second.steps_done(), 5);
    for (int i = 5; i < 8; ++i) rest.push_back(second.step().preferences->values());
    EXPECT_EQ(second.sampled().count, word == "sample" ? 512 : 0);  // of the last two steps
    EXPECT_EQ(rest, std::vector<OrpoMetrics::Values>(all.begin() + 5, all.end()));
    expect_equal(whole.model().state_dict(), second.model().state_dict());
    expect_equal(whole.optimizer().state_dict(), second.optimizer().state_dict());
    EXPECT_EQ(whole.validate_pairs(4).values(), second.validate_pairs(4).values());
    EXPECT_NE(whole.validate_pairs(4).values(), before.values());
    EXPECT_EQ(whole.validate().loss(), second.validate().loss());
    if (word == "sample") {
      EXPECT_EQ(whole.sampled().count, 4 * 512 + 8000 / 10 / kLength);
      EXPECT_GT(whole.sampled().seconds, 0);
    }
  }
}

TEST(OrpoTraining, AccumulatedBatchesAreOneLargerBatch) {
  TrainOptions large = tiny("corrupt"), small = large;
  small.batch = 2, small.accumulate = 2;
  Trainer a(pairs_for(large), large), b(pairs_for(small), small);
  for (int i = 0; i < 3; ++i) {
    const StepResult x = a.step(), y = b.step();
    EXPECT_NEAR(x.loss, y.loss, 1e-5);
    EXPECT_NEAR(x.grad_norm, y.grad_norm, 1e-4 * x.grad_norm);
    EXPECT_NEAR(x.preferences->log_odds_chosen, y.preferences->log_odds_chosen, 1e-4);
  }
}

// What a step says is what its batch gives.
TEST(OrpoTraining, AStepsMetricsAreItsBatchs) {
  const TrainOptions o = tiny("shuffle");
  Trainer trainer(pairs_for(o), o);
  const auto same = pairs_for(o);
  const Batch batch = same->next();
  const std::vector<double> l = [&] {
    const Evaluating scope(trainer.model());
    return run([&] { return no_grad([&] { return orpo_means(orpo(logits_of(trainer.model(), batch), batch.targets)); }); })
        .to_host<double>();
  }();
  const OrpoMetrics m = *trainer.step().preferences;
  for (std::size_t k = 0; k < l.size(); ++k) EXPECT_NEAR(m.values()[k], l[k], 1e-5) << k;
  EXPECT_NEAR(m.nll_loss, -m.logps_chosen, 1e-6);
  EXPECT_NEAR(m.nll_loss, std::log(256), 0.3);  // it has not learnt anything yet
}

// Each family's own model, and each model of the study.
TEST(OrpoTraining, WorksForEveryFamily) {
  std::vector<std::pair<std::string, ModelOptions>> models;
  for (const ModelFamily& family : model_families()) {
    ModelOptions sizes;
    for (const ModelOption& option : family.options)
      for (const auto& [name, size] :
           std::map<std::string, std::int64_t>{{"width", 32}, {"layers", 2}, {"heads", 4}, {"kv_heads", 2}, {"state", 8}})
        if (name == option.name) sizes[name] = size;
    models.emplace_back(family.name, sizes);
  }
  for (const auto& [name, sizes] : models) {
    SCOPED_TRACE(name);
    TrainOptions o = tiny(device() == Device::emu ? "corrupt" : "sample");
    o.model = name, o.model_options = sizes;
    Trainer trainer(pairs_for(o), o);
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(std::isfinite(trainer.step().loss));
    const OrpoMetrics m = trainer.validate_pairs(2);
    for (const double value : m.values()) EXPECT_TRUE(std::isfinite(value));
  }
}

TEST(OrpoTraining, RefusesWhatHasNoPairs) {
  const TrainOptions o = tiny("corrupt");
  expect_error(ErrorKind::usage, {"orpo needs pairs", "words"}, [&] { Trainer(text_of(8000), o); });
  TrainOptions pretrain = o;
  pretrain.stage = "pretrain";
  Trainer trainer(text_of(8000), pretrain);
  expect_error(ErrorKind::usage, {"there are no pairs to validate with"}, [&] { trainer.validate_pairs(); });
  EXPECT_FALSE(trainer.step().preferences);
  for (const auto& refused : std::vector<std::pair<std::vector<OptionSetting>, std::string>>{
           {{{"stage", "orpo"}, {"task", "induction"}}, "orpo has pairs of texts"},
           {{{"stage", "orpo"}, {"packed", "true"}}, "orpo has pairs of texts"},
           {{{"pairs", "x.jsonl"}}, "pairs are for orpo"},
           {{{"stage", "orpo"}, {"pairs", "x.jsonl"}, {"data", "y.txt"}}, "give one of them"},
           {{{"stage", "orpo"}, {"reject", "corupt"}}, "did you mean 'corrupt'"},
           {{{"orpo_lambda", "-1"}}, "--orpo-lambda -1"}})
    expect_error(ErrorKind::usage, {refused.second}, [&] { options_from(refused.first); });
}

// ---- the study of S003 ------------------------------------------------------------------------------------------------------

// Stage 2 begins with the weights of stage 1, at a schedule of its own: lr, warm-up and decay as SPEC 4.2 has them.
TEST(S003, StageTwoStartsFromStageOneWeights) {
  const TempFolder folder;
  TrainOptions one = tiny("corrupt");
  one.stage = "pretrain";
  Trainer first(text_of(8000), one);
  for (int i = 0; i < 4; ++i) first.step();
  first.save(folder.path());
  TrainOptions two = options_from({{"stage", "orpo"}});
  EXPECT_EQ(two.lr, 1e-4);
  EXPECT_EQ(two.min_lr, 0);
  EXPECT_EQ(two.warmup, 100);
  EXPECT_EQ(two.weight_decay, 0.01);
  EXPECT_EQ(two.orpo_lambda, 0.1);
  EXPECT_EQ(two.clip, 1);
  two.batch = 4, two.length = kLength, two.steps = 300, two.from = folder.path().string();
  Trainer second(pairs_for(two), two);
  EXPECT_EQ(second.options().model, "mamba");
  expect_equal(second.model().state_dict(), first.model().state_dict());
  for (const auto& [name, moment] : second.optimizer().state_dict())
    EXPECT_TRUE(!name.starts_with("m.") || std::ranges::all_of(moment.bytes, [](std::byte b) { return b == std::byte(0); }));
  for (int s = 0; s < 3; ++s) EXPECT_NEAR(second.step().lr, 1e-4 * (s + 1) / 100, 1e-12);
  const WarmupCosine rate({.peak = 1e-4, .warmup = 100, .steps = 300, .min = 0, .warmup_offset = 1});
  EXPECT_NEAR(rate(200), 0.5e-4, 1e-10);
  EXPECT_NEAR(rate(300), 0, 1e-15);
}

// With the paper's form the model comes to prefer the true one of texts held out, and by more than with as many steps of the
// loss of the chosen texts alone, which are what the seed's form comes to.
TEST(S003, OrpoRaisesThePreferenceOfPairsHeldOut) {
  if (device() == Device::emu) GTEST_SKIP() << "hundreds of steps";
  const TempFolder folder;
  TrainOptions o = tiny("swap");
  o.steps = 60, o.batch = 8, o.warmup = 5;
  o.model_options = {{"width", 32}, {"layers", 2}, {"state", 8}};
  o.stage = "pretrain";
  Trainer base(text_of(20000, {.batch = o.batch, .length = kLength, .seed = o.seed}), o);
  while (base.steps_done() < 30) base.step();
  base.save(folder.path());
  o.stage = "orpo", o.from = folder.path().string(), o.lr = 3e-3, o.steps = 100;
  const auto gained = [&](double lambda, const std::string& form) {
    o.orpo_lambda = lambda, o.orpo_form = form;
    Trainer trainer(pairs_for(o, 20000), o);
    const OrpoMetrics before = trainer.validate_pairs();
    while (trainer.steps_done() < o.steps) trainer.step();
    const OrpoMetrics after = trainer.validate_pairs();
    return std::pair(after.accuracy - before.accuracy, after.log_odds_chosen - before.log_odds_chosen);
  };
  const auto paper = gained(1, "paper"), seed = gained(1, "seed"), alone = gained(0, "paper");
  EXPECT_GT(paper.first, 0.01);
  EXPECT_GT(paper.second, alone.second + 0.1);
  EXPECT_GT(paper.second, seed.second + 0.1);
}

// ---- what it is worth -------------------------------------------------------------------------------------------------------

double variable(const char* name, double otherwise) {
  const char* value = std::getenv(name);
  return value ? std::strtod(value, nullptr) : otherwise;
}

struct Outcomes {  // of one way to make rejected texts
  double before = 0, perplexity_before = 0;
  std::vector<double> paper, alone, perplexity;  // by seed: shares preferred after it, with and without the preference's loss
};

// The first bytes of a file, or of the King James Bible.
Corpus first_of(const char* file, std::size_t bytes) {
  const Corpus all = load_corpus(file ? std::optional<fs::path>(file) : std::nullopt);
  TextReader reader(all);
  std::string text;
  while (const auto part = reader.next(std::min(bytes, all.size()), Cut::anywhere)) text += part->text;
  return {all.name(), text};
}

// A model of a text, then three seeds of ORPO and of as many steps of the loss of the chosen texts alone. On a GPU, where it
// takes minutes, a larger model: WEFT_DEVICE=cuda weft_tests --gtest_filter='SlowOrpo*'. WEFT_ORPO_DATA is another text, and
// WEFT_ORPO_PRETRAIN, WEFT_ORPO_STEPS, WEFT_ORPO_RATE and WEFT_ORPO_LAMBDA are other numbers.
TEST(SlowOrpo, RaisesThePreferenceBeyondTheSeedsAndTheChosenTextsAlone) {
  if (device() == Device::emu) GTEST_SKIP() << "hundreds of steps";
  const bool large = device() == Device::cuda;
  const Corpus corpus = first_of(std::getenv("WEFT_ORPO_DATA"), large ? 8 << 20 : 1 << 20);
  const Tokenizer tokenizer = Tokenizer::train(corpus, corpus.split(), large ? 4000 : 1000);
  TrainOptions o;
  o.batch = 32, o.length = large ? 128 : 32;
  o.steps = std::int64_t(variable("WEFT_ORPO_PRETRAIN", large ? 1500 : 300)), o.warmup = 20;
  o.model_options = {{"width", std::int64_t(large ? 384 : 64)}, {"layers", std::int64_t(large ? 6 : 2)}};
  o.lr = large ? 2e-3 : 5e-3;
  const auto text = [&] {
    return std::make_shared<TokenStream>(corpus, tokenizer, BatchOptions{.batch = o.batch, .length = o.length, .seed = o.seed});
  };
  const TempFolder folder;
  Trainer base(text(), o);
  while (base.steps_done() < o.steps) base.step();
  base.save(folder.path());

  o.stage = "orpo", o.from = folder.path().string(), o.weight_decay = 0.01, o.min_lr = 0;
  o.steps = std::int64_t(variable("WEFT_ORPO_STEPS", large ? 400 : 100));
  o.lr = variable("WEFT_ORPO_RATE", large ? 3e-4 : 1e-3);
  const double lambda = variable("WEFT_ORPO_LAMBDA", 1);
  for (const std::string reject : {"sample", "corrupt"}) {
    Outcomes all;
    for (const std::uint64_t number : {1, 2, 3})
      for (const bool preference : {true, false}) {
        o.seed = number, o.orpo_lambda = preference ? lambda : 0;
        // Of texts of a few tokens one is replaced, which not every model notices.
        const PairOptions pairs{
            .reject = reject_of(reject), .response = reject == "sample" ? o.length / 2 : 3, .nll_on_prompt = true};
        Trainer trainer(std::make_shared<PairStream>(text(), pairs), o);
        all.before = trainer.validate_pairs().accuracy, all.perplexity_before = trainer.validate(40).perplexity();
        while (trainer.steps_done() < o.steps) trainer.step();
        (preference ? all.paper : all.alone).push_back(trainer.validate_pairs().accuracy);
        if (preference) all.perplexity.push_back(trainer.validate(40).perplexity());
      }
    const auto [least, most] = std::ranges::minmax(all.paper);
    fmt::print(
        "{}: of {} pairs held out {:.1f} % preferred before; after {} steps of ORPO (lambda {}) {:.1f}, {:.1f}, {:.1f} %, of "
        "the chosen texts alone {:.1f}, {:.1f}, {:.1f} %; perplexity {:.3f} before, {:.3f}, {:.3f}, {:.3f} after\n",
        reject, PairStream::kHeldOut, 100 * all.before, o.steps, lambda, 100 * all.paper[0], 100 * all.paper[1],
        100 * all.paper[2], 100 * all.alone[0], 100 * all.alone[1], 100 * all.alone[2], all.perplexity_before,
        all.perplexity[0], all.perplexity[1], all.perplexity[2]);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_GT(all.paper[i] - all.before, most - least) << reject;
      EXPECT_GT(all.paper[i], all.alone[i]) << reject;
      EXPECT_LT(all.perplexity[i], 1.03 * all.perplexity_before) << reject;
    }
  }
}

// ---- the program ------------------------------------------------------------------------------------------------------------

using OrpoProgram = ProgramTest;

std::vector<nlohmann::json> lines_without_times(const fs::path& run) {
  std::vector<nlohmann::json> lines = read_metrics(run).lines;
  for (nlohmann::json& l : lines) l.erase("time"), l.erase("tokens_per_second");
  return lines;
}

TEST_F(OrpoProgram, TrainsAfterPretrainingAndGoesOnBitForBit) {
  const char* const device = std::getenv("WEFT_DEVICE");
  const std::string on = std::string("OMP_NUM_THREADS=1 weft train --device ") + (device ? device : "cpu") + " ";
  folder_.write("text.txt", words_text(6000));
  expect_words(shell(on + "--data text.txt --width 16 --layers 1 --state 4 --batch 4 --length 16 --steps 20 --sample 0 "
                          "--eval-batches 1 --out one"),
               0, {});
  const std::string two = on +
                          "--stage orpo --from one --reject sample --steps 8 --save-every 3 --keep 0 --eval-every 4 --sample 0 "
                          "--lr 1e-3 --warmup 2 --eval-batches 2 ";
  const Outcome whole = shell(two + "--out whole");
  expect_words(whole, 0,
               {"pairs: 337 to train on, 37 held out; responses of 8 tokens after 8, rejected: sample", "width 16",
                "rejected texts sampled in", "step 0: of the pairs held out", "step 8: of the pairs held out", "% preferred",
                "sampling rejected texts: "});
  const nlohmann::json config = read_json(folder_ / "whole/config.json");
  EXPECT_EQ(config.at("width"), 16);
  EXPECT_EQ(config.at("data"), (folder_ / "text.txt").string());
  EXPECT_EQ(config.at("refresh"), 8);
  expect_words(shell(two + "--out part && rm -r part/checkpoints/step-6 part/checkpoints/step-8 && "
                           "weft train --resume part"),
               0, {"resumed after step 3"});
  EXPECT_EQ(lines_without_times(folder_ / "part"), lines_without_times(folder_ / "whole"));
  for (const char* file : {"latest/model.safetensors", "latest/optimizer.safetensors", "latest/sampled.safetensors"})
    EXPECT_EQ(read_text(folder_ / "part" / file), read_text(folder_ / "whole" / file)) << file;
  expect_words(shell("weft check whole"), 0, {});
  const std::vector<nlohmann::json> lines = lines_without_times(folder_ / "whole");
  ASSERT_EQ(lines.size(), 8u + 3u);
  EXPECT_EQ(lines[0].at("step"), 0);
  for (const char* key : {"validation_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_logps/chosen",
                          "eval_log_odds_ratio", "eval_nll_loss"})
    EXPECT_TRUE(lines[0].contains(key)) << key;
  for (const char* key :
       {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
        "logits/chosen", "logits/rejected", "nll_loss", "log_odds_ratio", "log_odds_chosen"})
    EXPECT_TRUE(lines[1].contains(key)) << key;
  EXPECT_GT(read_json(folder_ / "whole/summary.json").at("sampling_seconds"), 0);
}

TEST_F(OrpoProgram, TakesAFileOfPairs) {
  folder_.write("text.txt", words_text(6000));
  folder_.write("pairs.jsonl", numbered(30));
  expect_words(shell("weft train --device cpu --data text.txt --width 16 --layers 1 --state 4 --batch 4 --length 16 --steps 5 "
                     "--sample 0 --eval-batches 1 --out one"),
               0, {});
  const std::string two = "weft train --device cpu --stage orpo --from one --sample 0 ";
  expect_words(shell(two + "--pairs pairs.jsonl --epochs 2 --orpo-form seed --nll-on-prompt --out two"), 0,
               {"pairs: 27 to train on, 3 held out; 0 of 30 longer than 16 tokens and cut", "14 steps of 4 x 16 tokens"});
  expect_words(shell("weft generate --device cpu --from two --tokens 5"), 0, {});
  // Bad input.
  expect_words(shell("weft train --stage orpo --steps 3"), 2, {"orpo begins with a model that has been trained", "--from RUN"});
  expect_words(shell(two + "--width 32"), 2, {"--width is that of the model of --from", "it has 16, given is 32"});
  expect_words(shell(two + "--pairs pairs.jsonl --data text.txt"), 2, {"give one of them"});
  expect_words(shell("weft train --stage orpo --from nowhere"), 4, {"no such folder", "nowhere"});
  folder_.write("bad.jsonl", line("a", "b", "b") + "{}\n" + line("a", "c", "c"));
  expect_words(shell(two + "--pairs bad.jsonl"), 4,
               {"lines 1, 3: \"chosen\" and \"rejected\" are the same", "line 2: there is no"});
  expect_words(shell("weft train --resume two --reject swap"), 2, {"--reject cannot change"});
}

TEST_F(OrpoProgram, BeginsWithAFolderThatIsNoRun) {
  folder_.write("text.txt", words_text(6000));
  Mamba({.vocab = 256, .width = 16, .layers = 1, .state = 4}).save(folder_ / "model");
  expect_words(shell("weft train --device cpu --stage orpo --from model --data text.txt --reject shuffle --steps 2 --batch 2 "
                     "--length 16 --sample 0 --out two"),
               0, {"width 16", "rejected: shuffle"});
  expect_words(shell("weft train --device cpu --from model --data text.txt --steps 2 --batch 2 --length 16 --sample 0"), 0,
               {"width 16", "2 steps"});
}

}  // namespace
}  // namespace weft
