// Evaluation: scores by hand, windows that overlap, files of tasks, and the sandbox that runs programs.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numbers>

#include "jit/file.h"
#include "jit/json.h"
#include "models/family.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/data/strided.h"
#include "tools/evaluate/benchmarks.h"
#include "tools/evaluate/scores.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int64_t>;

// ---- scores -----------------------------------------------------------------------------------------------------------------

void expect_overlap(const Overlap& o, double precision, double recall, double f1) {
  EXPECT_NEAR(o.precision, precision, 1e-12);
  EXPECT_NEAR(o.recall, recall, 1e-12);
  EXPECT_NEAR(o.f1, f1, 1e-12);
}

TEST(SeedsEvaluate, S002_research_evaluate_rouge) {
  const char *cat = "The cat sat on the mat.", *was = "the cat was on the mat";
  expect_overlap(rouge_n(cat, was, 1), 5.0 / 6, 5.0 / 6, 5.0 / 6);  // all but sat
  expect_overlap(rouge_n(cat, was, 2), 0.6, 0.6, 0.6);              // the cat, on the, the mat
  expect_overlap(rouge_l(cat, was), 5.0 / 6, 5.0 / 6, 5.0 / 6);     // the cat on the mat
  // An n-gram counts as often as both have it: 2 of 4, 2 of 3; 2 (1/2) (2/3) / (7/6).
  expect_overlap(rouge_n("the the the the", "the cat the", 1), 0.5, 2.0 / 3, 4.0 / 7);
  // Lin 2004, section 3.1: two sentences with the same bigrams, of which the first keeps the order.
  const char* gunman = "police killed the gunman";
  EXPECT_NEAR(rouge_l("police kill the gunman", gunman).f1, 0.75, 1e-12);
  EXPECT_NEAR(rouge_l("the gunman kill police", gunman).f1, 0.5, 1e-12);
  EXPECT_EQ(rouge_n("police kill the gunman", gunman, 2).f1, rouge_n("the gunman kill police", gunman, 2).f1);
  // Words of unequal number: 2 of 3, 2 of 5.
  expect_overlap(rouge_l("a c e", "a b c d f"), 2.0 / 3, 0.4, 0.5);
  expect_overlap(rouge_n("a c e", "a b c d f", 2), 0, 0, 0);
  for (const int n : {1, 2}) {
    expect_overlap(rouge_n("", "some words", n), 0, 0, 0);
    expect_overlap(rouge_n("", "", n), 0, 0, 0);
  }
  expect_overlap(rouge_l("", ""), 0, 0, 0);
  EXPECT_EQ(rouge_words("U.S. rates: 3.5% -- \"rising\"\n"), (std::vector<std::string>{"u", "s", "rates", "3", "5", "rising"}));
  EXPECT_EQ(rouge_words("Grüße, Welt"), (std::vector<std::string>{"grüße", "welt"}));
  expect_error(ErrorKind::usage, {"n 0"}, [] { rouge_n("a", "a", 0); });
}

TEST(SeedsEvaluate, S002_research_evaluate_exact_match_and_f1) {
  EXPECT_EQ(normalised_answer("  The Eiffel-Tower,\tin a\nParis!  "), "eiffeltower in paris");
  EXPECT_EQ(normalised_answer("An answer; another theory"), "answer another theory") << "articles are whole words";
  EXPECT_TRUE(exact_match("the Ash.", "Ash"));
  EXPECT_TRUE(exact_match("40,000", "40000"));
  EXPECT_FALSE(exact_match("Ash river", "Ash"));
  expect_overlap(answer_overlap("in the year 1911", "1911"), 1.0 / 3, 1, 0.5);
  expect_overlap(answer_overlap("new york new york", "New York City"), 0.5, 2.0 / 3, 4.0 / 7);
  expect_overlap(answer_overlap("the", ""), 1, 1, 1);  // both are empty
  expect_overlap(answer_overlap("", "Ash"), 0, 0, 0);
  expect_overlap(answer_overlap("yes it is", "yes"), 1.0 / 3, 1, 0.5);
  expect_overlap(hotpot_overlap("yes it is", "yes"), 0, 0, 0);
  expect_overlap(hotpot_overlap("Yes.", "yes"), 1, 1, 1);
  expect_overlap(hotpot_overlap("no", "no man"), 0, 0, 0);
  expect_overlap(hotpot_overlap("in 1911", "1911"), 0.5, 1, 2.0 / 3);
}

TEST(SeedsEvaluate, S002_research_evaluate_pass_at_k) {
  EXPECT_NEAR(pass_at_k(5, 2, 1), 0.4, 1e-12);
  EXPECT_NEAR(pass_at_k(5, 2, 2), 0.7, 1e-12);  // 1 - C(3, 2) / C(5, 2)
  EXPECT_NEAR(pass_at_k(5, 2, 3), 0.9, 1e-12);  // 1 - 1 / 10
  EXPECT_EQ(pass_at_k(5, 2, 4), 1);
  EXPECT_EQ(pass_at_k(1, 0, 1), 0);
  EXPECT_EQ(pass_at_k(1, 1, 1), 1);
  double none = 1;  // none of 10 drawn from 200, one after the other, is among 13
  for (int i = 0; i < 10; ++i) none *= (187.0 - i) / (200.0 - i);
  EXPECT_NEAR(pass_at_k(200, 13, 10), 1 - none, 1e-12);
  EXPECT_GT(pass_at_k(5, 2, 2), 1 - 0.6 * 0.6) << "1 - (1 - c/n)^k is biased";
  for (const auto& [n, c, k] : std::vector<std::array<std::int64_t, 3>>{{5, 6, 1}, {5, -1, 1}, {5, 2, 0}, {5, 2, 6}})
    expect_error(ErrorKind::usage, {"no such draw"}, [&, n = n, c = c, k = k] { pass_at_k(n, c, k); });
}

// ---- perplexity -------------------------------------------------------------------------------------------------------------

// What follows a byte is in a table: logits (256, 256).
class Successor : public LanguageModel {
 public:
  explicit Successor(const std::map<char, char>& next = {}, std::optional<std::int64_t> context = {}) : context_(context) {
    add("table", table_);
    std::vector<float> values(256 * 256, 0);
    for (const auto& [from, to] : next) values[std::size_t(std::uint8_t(from)) * 256 + std::uint8_t(to)] = 9;
    table_.set(values);
  }
  Tensor forward(const Tensor& ids) override { return embedding(table_, ids); }
  std::unique_ptr<ModelCache> make_cache(std::int64_t batch) const override { return std::make_unique<ModelCache>(batch); }
  CacheBytes cache_bytes(std::int64_t) const override { return {}; }
  std::int64_t vocab() const override { return 256; }
  std::optional<std::int64_t> context() const override { return context_; }
  SpecialTokens special_tokens() const override { return {}; }
  std::string description() const override { return "successors"; }
  double flops_per_token(std::int64_t) const override { return 0; }
  nlohmann::json config_json(CheckpointNames) const override { return {}; }
  TensorMap weights(CheckpointNames) const override { return state_dict(); }
  void load_weights(TensorMap tensors) override { load_state_dict(tensors); }

 protected:
  Tensor last_logits(const Tensor& ids, const ModelCache&, CacheUse, const Tensor& lengths) override {
    return last_of(embedding(table_, ids), lengths);
  }

 private:
  std::optional<std::int64_t> context_;
  Param table_{Shape{256, 256}};
};

TokenStream stream(const std::string& text, BatchOptions options) {
  PackedTokens packed(256);
  packed.append(Tokenizer::bytes().encode(text));
  return TokenStream("t", {}, Tokens(std::move(packed)), Tokenizer::bytes(), options);
}

TEST(SeedsEvaluate, S002_research_evaluate_perplexity) {
  Successor even;  // every byte is as likely as any other
  const Evaluation e = evaluate(even, stream("some text of bytes\0\0", {.batch = 2, .length = 4}), 0, true);
  EXPECT_EQ(e.tokens, 17);
  EXPECT_NEAR(e.perplexity(), 256, 1e-3);
  EXPECT_NEAR(e.bits_per_character(), 8, 1e-5);
  // "abab...a" after a table that knows that b follows a, but not what follows b: half of the tokens at ln(1 + 255 e^-9), half
  // at ln 256. In windows of 4 and one of 2 the mean of the windows is the same only by weight.
  Successor half(std::map<char, char>{{'a', 'b'}});
  const Evaluation h = evaluate(half, stream("abababa", {.batch = 1, .length = 4}), 0, true);
  const double known = std::log1p(255 * std::exp(-9.0)), nats = 3 * known + 3 * std::log(256.0);
  EXPECT_EQ(h.tokens, 6);
  EXPECT_NEAR(h.nats, nats, 1e-4);
  EXPECT_NEAR(h.perplexity(), std::exp(nats / 6), 1e-3);
  EXPECT_EQ(h.right, 3);
  const Evaluation odd = evaluate(half, stream("ababab", {.batch = 1, .length = 4}), 0, true);  // windows of 4 and of 1
  EXPECT_NEAR(odd.loss(), (3 * known + 2 * std::log(256.0)) / 5, 1e-5) << "not the mean of two windows";
  EXPECT_NEAR(odd.accuracy(), 0.6, 1e-12);
  EXPECT_NEAR(odd.bits_per_character(), odd.loss() / std::numbers::ln2, 1e-12);
}

TEST(Evaluate, RightAnswersAreThoseOfTheHost) {
  const float nan = std::nanf("");
  const std::vector<float> logits = {1, 5, 3, 0, 2, 2, 2, 2, -1, -1, -3, -1, nan, 1, 0, 0, 7, nan, 0, 0, 1, 2, 3, 4};
  const auto right = [&](const Ids& targets) {
    const Tensor l = Tensor::from(logits, {2, 3, 4}), t = Tensor::from(targets, {2, 3});
    return run([&] { return right_answers(l, t); }).item();
  };
  EXPECT_EQ(right({1, kIgnored, kIgnored, kIgnored, kIgnored, kIgnored}), 1);
  EXPECT_EQ(right({0, kIgnored, kIgnored, kIgnored, kIgnored, kIgnored}), 0);
  EXPECT_EQ(right({kIgnored, 0, 0, kIgnored, kIgnored, 3}), 3) << "the first of equals";
  EXPECT_EQ(right({kIgnored, 1, 1, kIgnored, kIgnored, 2}), 0);
  EXPECT_EQ(right({kIgnored, kIgnored, kIgnored, 1, 0, kIgnored}), 0) << "beside a NaN nothing is right";
}

TEST(StridedWindows, CountEachTokenOnceWithAllThatStandsBeforeItInItsWindow) {
  seed(3);
  Mamba model({.vocab = 256, .width = 16, .layers = 1, .state = 4});
  const std::string text = words_text(60).substr(0, 60);
  const Ids ids = Tokenizer::bytes().encode(text);
  for (const std::int64_t length : {16, 64, 59})
    for (const std::int64_t stride : {1, 5, 16}) {
      if (stride > length) continue;
      const TokenStream whole = stream(text, {.batch = 3, .length = std::min<std::int64_t>(length, 59)});
      const Evaluation e = evaluate(model, StridedWindows(whole, stride), 0, true);
      EXPECT_EQ(e.tokens, 59);
      EXPECT_EQ(e.characters, 59);
      double nats = 0;
      std::int64_t right = 0;
      const Evaluating scope(model);
      for (std::int64_t p = 1, n = whole.options().length; p < 60; ++p) {
        const std::int64_t window = p <= n ? 0 : (p - n + stride - 1) / stride, begin = window * stride;
        const Ids before(ids.begin() + begin, ids.begin() + p);
        const auto logits = run([&] {
                              return no_grad([&] { return model(Tensor::from(before, {1, p - begin})); });
                            }).to_host<double>();
        const auto last = logits.end() - 256;
        double sum = 0;
        for (auto l = last; l != logits.end(); ++l) sum += std::exp(*l);
        nats += std::log(sum) - last[ids[std::size_t(p)]];
        right += std::max_element(last, logits.end()) - last == ids[std::size_t(p)];
      }
      EXPECT_NEAR(e.nats, nats, 1e-3) << length << " " << stride;
      EXPECT_EQ(e.right, right);
    }
  const TokenStream whole = stream(text, {.batch = 3, .length = 16});
  const Evaluation plain = evaluate(model, whole), same = evaluate(model, StridedWindows(whole, 16));
  EXPECT_EQ(plain.nats, same.nats) << "without an overlap";
  EXPECT_EQ(plain.bytes, same.bytes);
  for (const std::int64_t bad : {0, 17})
    expect_error(ErrorKind::usage, {"would leave tokens out", "length 16"}, [&] { StridedWindows(whole, bad); });
  expect_error(ErrorKind::usage, {"for evaluation"}, [&] { StridedWindows(whole, 4).next(); });
  seed(0);
}

// ---- files ------------------------------------------------------------------------------------------------------------------

TEST(Benchmarks, FilesHaveTheFormatsOfTheBenchmarks) {
  const TempFolder folder;
  const auto file = [&](const std::string& name, const std::string& text) { return folder.write(name, text); };
  const auto summaries = read_summaries(file("s.jsonl",
                                             "{\"article\": \"a\", \"highlights\": \"b\", \"id\": \"x\"}\n\n"
                                             "{\"article\": \"c\", \"highlights\": \"d\"}"));
  ASSERT_EQ(summaries.size(), 2u);
  EXPECT_EQ(summaries[1].article + summaries[1].highlights, "cd");
  const char* original = R"([{"_id": "1", "answer": "yes", "question": "q?", "supporting_facts": [["T", 0]],
                              "context": [["T", ["One.", " Two."]], ["U", ["Three."]]], "type": "comparison", "level": "hard"}])";
  const auto questions = read_questions(file("h.json", original));
  ASSERT_EQ(questions.size(), 1u);
  EXPECT_EQ(questions[0].context, "T: One. Two.\nU: Three.\n");
  EXPECT_EQ(questions[0].question + questions[0].answer, "q?yes");
  const auto columns = read_questions(file("h.jsonl",
                                           "{\"question\": \"q\", \"answer\": \"a\", \"context\": {\"title\": [\"T\", \"U\"], "
                                           "\"sentences\": [[\"One.\", \" Two.\"], [\"Three.\"]]}}\n"));
  ASSERT_EQ(columns.size(), 1u);
  EXPECT_EQ(columns[0].context, questions[0].context);
}

TEST(Benchmarks, AllLinesThatAreNoTasksAreNamedAtOnce) {
  const TempFolder folder;
  const auto refuse = [&](const std::string& text, const std::vector<std::string>& words, auto read) {
    const fs::path file = folder.write("t.jsonl", text);
    expect_error(ErrorKind::io, words, [&] { read(file); });
  };
  refuse(
      "{\"task_id\": \"a\", \"prompt\": \"p\", \"test\": \"t\", \"entry_point\": \"f\"}\n{\"task_id\": \"b\"}\n\n{\"prompt\": "
      "3,\n[1]\n",
      {"t.jsonl: not the tasks", "5 problems", "line 2: 'prompt' is missing", "line 2: 'test' is missing",
       "line 2: 'entry_point' is missing", "line 4: not JSON", "line 5: no object"},
      read_programs);
  refuse("{\"article\": 1, \"highlights\": \"x\"}\n", {"1 problems", "line 1: 'article' is no text"}, read_summaries);
  refuse("[{\"question\": \"q\", \"answer\": \"a\"}, {\"question\": \"q\", \"answer\": \"a\", \"context\": [3]}]",
         {"item 0: 'context' is missing", "item 1: 'context' is no list of titles and sentences"}, read_questions);
  refuse("\n\n", {"there are no tasks"}, read_summaries);
  refuse("[]", {"there are no tasks"}, read_questions);
  refuse("\x1f\x8b\x08 compressed", {"t.jsonl"}, read_programs);
  std::string many;
  for (int i = 0; i < 60; ++i) many += "{}\n";
  refuse(many, {"120 problems", "line 25: 'highlights' is missing", "... and 70 more"}, read_summaries);
  expect_error(ErrorKind::io, {"none.jsonl"}, [&] { read_summaries(folder / "none.jsonl"); });
  expect_error(ErrorKind::usage, {"no task 'wikitex'; did you mean 'wikitext'?"}, [] { benchmark("wikitex"); });
}

TEST(Benchmarks, AFolderHasFilesByTheirNames) {
  const TempFolder folder;
  EXPECT_FALSE(benchmark_file(folder.path(), Benchmark::humaneval));
  folder.write("HumanEval.jsonl", ""), folder.write("wiki.test.tokens", "");
  EXPECT_EQ(benchmark_file(folder.path(), Benchmark::humaneval), folder / "HumanEval.jsonl");
  EXPECT_EQ(benchmark_file(folder.path(), Benchmark::wikitext), folder / "wiki.test.tokens");
  EXPECT_FALSE(benchmark_file(folder.path(), Benchmark::cnn_dm));
}

// ---- tasks, with a model that always says 42 --------------------------------------------------------------------------------

TextModel forty_two(std::optional<std::int64_t> context = {}) {
  const std::map<char, char> next = {{':', ' '}, {' ', '4'}, {'4', '2'}, {'2', '\n'}, {'\n', '#'}, {'#', '4'}};
  return {std::make_unique<Successor>(next, context), Tokenizer::bytes()};
}

std::map<std::string, double> scores_of(const BenchmarkResult& result) { return {result.scores.begin(), result.scores.end()}; }

TEST(Benchmarks, SummariesAndAnswersAreWhatTheModelMakes) {
  const TempFolder folder;
  TextModel lm = forty_two();
  const fs::path questions = folder.write("q.jsonl",
                                          "{\"question\": \"q\", \"answer\": \"The 42.\", \"context\": \"c\"}\n"
                                          "{\"question\": \"q\", \"answer\": \"42 or 43\", \"context\": \"c\"}\n"
                                          "{\"question\": \"q\", \"answer\": \"no\", \"context\": \"c\"}\n");
  const BenchmarkResult answers = run_benchmark(lm, Benchmark::hotpotqa, questions, {.batch = 2});
  EXPECT_EQ(answers.examples, 3);
  EXPECT_FALSE(answers.bundled);
  EXPECT_NEAR(scores_of(answers).at("exact match"), 1.0 / 3, 1e-12);
  EXPECT_NEAR(scores_of(answers).at("f1"), (1 + 0.5 + 0) / 3, 1e-12) << "42 of 42 or 43: P 1, R 1/3";
  EXPECT_EQ(run_benchmark(lm, Benchmark::hotpotqa, questions, {.examples = 1}).scores[0].second, 1);

  const fs::path articles = folder.write("s.jsonl", "{\"article\": \"a b c\", \"highlights\": \"42 is it\"}\n");
  const BenchmarkResult summary = run_benchmark(lm, Benchmark::cnn_dm, articles, {.tokens = 3});
  EXPECT_NEAR(scores_of(summary).at("rouge-1 f1"), 0.5, 1e-12) << "P 1, R 1/3";
  EXPECT_NEAR(scores_of(summary).at("rouge-2 f1"), 0, 1e-12);
  EXPECT_NEAR(scores_of(summary).at("rouge-l f1"), 0.5, 1e-12);
  expect_error(ErrorKind::usage, {"no room for a prompt"},
               [&] { run_benchmark(lm, Benchmark::cnn_dm, articles, {.length = 8}); });
  TextModel narrow = forty_two(40);
  EXPECT_NEAR(scores_of(run_benchmark(narrow, Benchmark::hotpotqa, questions, {.tokens = 4})).at("f1"), 0.5, 1e-12)
      << "the context of the question is cut to what the model takes";
}

TEST(Benchmarks, StandInsSayThatTheyAreNone) {
  TextModel lm = forty_two(128);
  for (const Benchmark what : {Benchmark::wikitext, Benchmark::cnn_dm, Benchmark::hotpotqa}) {
    const BenchmarkResult result = run_benchmark(lm, what, {}, {.stride = 32});
    EXPECT_TRUE(result.bundled);
    EXPECT_NE(to_text(result).find("a stand-in that is part of weft, not the benchmark"), std::string::npos) << to_text(result);
    EXPECT_EQ(to_json(result)["bundled"], true);
    EXPECT_GE(result.examples, 3);
    for (const auto& [name, value] : result.scores) {
      EXPECT_TRUE(std::isfinite(value)) << name;
      EXPECT_GE(value, 0);
    }
  }
  const BenchmarkResult text = run_benchmark(lm, Benchmark::wikitext, {}, {.stride = 32});
  EXPECT_EQ(text.examples, std::int64_t(bundled_text().size()) - 1) << "all of a text that is longer than the context";
  EXPECT_GT(scores_of(text).at("perplexity"), 256);
  EXPECT_NE(to_text(text).find("worse than guessing"), std::string::npos) << to_text(text);
  EXPECT_NE(to_text(text).find("windows of 128 tokens, stride 32"), std::string::npos) << to_text(text);
}

// ---- programs ---------------------------------------------------------------------------------------------------------------

class Sandbox : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists("/usr/bin/python3")) GTEST_SKIP() << "no python3";
    if (const auto reason = no_isolation()) GTEST_SKIP() << "no isolation: " << *reason;
  }
  SandboxResult run(const std::string& program, double seconds = 20) { return run_python(program, {.seconds = seconds}); }
};

TEST_F(Sandbox, TellsWhatAProgramDid) {
  EXPECT_EQ(run("x = 1\nassert x == 1\n").end, SandboxResult::passed);
  EXPECT_EQ(run("x = 1\nassert x == 1\n").complaint, "");
  const SandboxResult wrong = run("assert 1 == 2, 'not so'\n");
  EXPECT_EQ(wrong.end, SandboxResult::failed);
  EXPECT_EQ(wrong.complaint, "AssertionError: not so");
  EXPECT_NE(run("def f(:\n").complaint.find("SyntaxError"), std::string::npos);
  for (const char* early : {"import sys\nsys.exit(0)\n", "import os\nos._exit(0)\n"}) {
    EXPECT_EQ(run(early).end, SandboxResult::failed) << "an early exit is no success";
    EXPECT_EQ(run(early).complaint, "it left before its end");
  }
  EXPECT_EQ(run("input()\n").complaint, "EOFError: EOF when reading a line");
  EXPECT_EQ(run("print('x' * 100)\n").end, SandboxResult::passed);
}

TEST_F(Sandbox, EndsWhatDoesNotEnd) {
  for (const char* endless : {"while True: pass\n", "import time\ntime.sleep(1000)\n",
                              "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass\n",
                              "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(1000)\n"}) {
    const SandboxResult result = run(endless, 1.5);
    EXPECT_EQ(result.end, SandboxResult::timed_out) << endless << result.complaint;
    EXPECT_LT(result.seconds, 15);
  }
  EXPECT_EQ(run("x = 'x' * (2 << 30)\n").complaint, "MemoryError");
}

// What it leaves running ends with it.
TEST_F(Sandbox, NothingOutlivesIt) {
  const std::string mark = "weft-sandbox-" + std::to_string(getpid());
  EXPECT_EQ(run("import os\nif os.fork() == 0:\n    os.setsid()\n    os.execv('/bin/sh', ['" + mark +
                "', '-c', 'sleep 977'])\n"
                "import time\ntime.sleep(0.3)\n")
                .end,
            SandboxResult::passed);
  for (const auto& entry : fs::directory_iterator("/proc")) {
    std::ifstream words(entry.path() / "cmdline");
    std::string line;
    if (words) std::getline(words, line);
    EXPECT_EQ(line.find(mark), line.npos) << entry.path();
  }
}

TEST_F(Sandbox, WritesNothingOutside) {
  const TempFolder folder("/var/tmp");  // a program sees another /tmp
  const std::string file = folder.write("kept.txt", "as it was").string(), made = (folder / "made.txt").string();
  const auto fails = [&](const std::string& statement, const std::string& words) {
    const SandboxResult result = run("import os, shutil, socket, subprocess\n" + statement + "\n");
    EXPECT_EQ(result.end, SandboxResult::failed) << statement;
    EXPECT_NE(result.complaint.find(words), std::string::npos) << statement << ": " << result.complaint;
  };
  fails("open('" + made + "', 'w')", "Read-only file system");
  fails("open('" + file + "', 'a')", "Read-only file system");
  fails("os.remove('" + file + "')", "Read-only file system");
  fails("os.chmod('" + file + "', 0)", "Read-only file system");
  fails("os.truncate('" + file + "', 0)", "Read-only file system");
  fails("shutil.rmtree('" + folder.path().string() + "')", "Read-only file system");
  fails("subprocess.check_call(['/bin/mount', '-o', 'remount,rw', '/'])", "returned non-zero exit status");
  fails("os.kill(" + std::to_string(getpid()) + ", 9)", "No such process");
  fails("socket.create_connection(('1.1.1.1', 53), 2)", "unreachable");
  fails("open('/dev/kmsg', 'w').write('x')", "");
  fails("assert 'HOME' not in os.environ or os.environ['HOME'] == '/tmp', os.environ\nassert os.path.exists('/dev/mem')",
        "AssertionError");
  EXPECT_TRUE(fs::exists(file));
  EXPECT_FALSE(fs::exists(made));
  EXPECT_EQ(read_text(file), "as it was");

  const SandboxResult own =
      run("import os\nassert os.listdir('.') == [], os.listdir('.')\nopen('mine.txt', 'w').write('x')\n"
          "assert open('mine.txt').read() == 'x'\nopen('/dev/null', 'w').write('x')\n"
          "assert len(os.urandom(4)) == 4\nassert os.getpid() == 1\n");
  EXPECT_EQ(own.end, SandboxResult::passed) << own.complaint;
  EXPECT_EQ(run("import os\nassert os.listdir('/tmp') == []\n").end, SandboxResult::passed) << "empty each time";
  const SandboxResult large = run("f = open('large', 'wb')\nf.write(b'x' * (5 << 20))\nf.flush()\n");
  EXPECT_EQ(large.end, SandboxResult::failed) << large.complaint;
}

TEST(SandboxWithout, IsolationHasItsOwnFolderAndTimeLimit) {
  if (!fs::exists("/usr/bin/python3")) GTEST_SKIP() << "no python3";
  const SandboxOptions bare{.seconds = 20, .without_isolation = true};
  const SandboxResult result = run_python("import os\nassert os.listdir('.') == []\nopen('left.txt', 'w').write('x')\n", bare);
  EXPECT_EQ(result.end, SandboxResult::passed) << result.complaint;
  EXPECT_EQ(run_python("while True: pass\n", {.seconds = 1, .without_isolation = true}).end, SandboxResult::timed_out);
  expect_error(ErrorKind::io, {"python"}, [] {
    const SandboxResult none = run_python("", {.without_isolation = true, .python = "/nowhere/python3"});
    fail(ErrorKind::io, none.complaint);  // what the program that is not there said
  });
}

TEST(Benchmarks, FunctionsEndWhereTheirBodiesDo) {
  EXPECT_EQ(function_body("    return 1\n\n    # more\nprint(2)\n"), "    return 1\n\n    # more\n");
  EXPECT_EQ(function_body("42\nx = 1"), "42\n");
  EXPECT_EQ(function_body(""), "");
}

TEST(SeedsEvaluate, S002_research_evaluate_humaneval) {
  if (!fs::exists("/usr/bin/python3") || no_isolation()) GTEST_SKIP() << "no sandbox";
  const TempFolder folder;
  TextModel lm = forty_two();
  std::string lines;
  for (const char* wanted : {"42", "43"})
    lines += nlohmann::json({{"task_id", wanted},
                             {"prompt", "def answer():\n    return "},
                             {"test", std::string("def check(candidate):\n    assert candidate() == ") + wanted},
                             {"entry_point", "answer"},
                             {"canonical_solution", wanted}})
                 .dump() +
             "\n";
  const fs::path file = folder.write("HumanEval.jsonl", lines);
  const BenchmarkResult result = run_benchmark(lm, Benchmark::humaneval, file, {.sandbox = {.seconds = 20}});
  EXPECT_EQ(scores_of(result).at("pass@1"), 0.5) << to_text(result);
  EXPECT_NE(to_text(result).find("1 failed: AssertionError"), std::string::npos) << to_text(result);
  const BenchmarkResult two =
      run_benchmark(lm, Benchmark::humaneval, file, {.samples = 2, .k = {1, 2}, .sandbox = {.seconds = 20}});
  EXPECT_EQ(scores_of(two).at("pass@2"), 0.5);
  expect_error(ErrorKind::usage, {"at least k samples", "k 2, 1 samples"},
               [&] { run_benchmark(lm, Benchmark::humaneval, file, {.k = {2}}); });
  // The stand-ins can be solved: each by a program that is.
  const std::map<std::string, std::string> solutions = {
      {"weft/0", "    return a + b\n"},
      {"weft/1", "    return max(values)\n"},
      {"weft/2", "    return text == text[::-1]\n"},
      {"weft/3", "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"},
      {"weft/4", "    return sum(c in 'aeiou' for c in text.lower())\n"}};
  for (const ProgramTask& task : bundled_programs())
    for (const bool solved : {true, false}) {
      const std::string body = solved ? solutions.at(task.id) : "    return None\n";
      const SandboxResult ran =
          run_python(task.prompt + body + "\n" + task.test + "\ncheck(" + task.entry_point + ")\n", {.seconds = 20});
      EXPECT_EQ(ran.end == SandboxResult::passed, solved) << task.id << ": " << ran.complaint;
    }
}

// ---- the program ------------------------------------------------------------------------------------------------------------

class EvaluateProgram : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    if (IsSkipped()) return;
    Mamba({.vocab = 256, .width = 16, .layers = 1, .state = 4}).save(folder_ / "model");
    folder_.write("text.txt", words_text(700));
  }
};

TEST_F(EvaluateProgram, OfATextAndOfTasks) {
  const Outcome plain = shell("weft eval --device cpu --from model --data text.txt --length 64");
  expect_words(plain, 0, {"in windows of 64 tokens\n", "perplexity", "bits per character", "accuracy"});
  const Outcome strided = shell("weft eval --device cpu --from model --data text.txt --length 64 --stride 16");
  expect_words(strided, 0, {"in windows of 64 tokens, stride 16\n"});
  EXPECT_EQ(plain.text.substr(0, plain.text.find(" tokens")), strided.text.substr(0, strided.text.find(" tokens")));
  expect_words(
      shell("weft eval --device cpu --from model --task wikitext,hotpotqa,cnn_dm --tokens 4 --length 256 --json scores.json"),
      0, {"wikitext: ", "hotpotqa: 4 examples, a stand-in", "rouge-l f1"});
  const nlohmann::json json = read_json(folder_ / "scores.json");
  ASSERT_EQ(json.size(), 3u);
  EXPECT_EQ(json[1]["task"], "hotpotqa");
  EXPECT_TRUE(json[1]["bundled"].get<bool>());
  folder_.write("wiki.test.tokens", words_text(300));
  expect_words(shell("weft eval --device cpu --from model --task all --tokens 2 --length 256 --seconds 20 --data ."), 0,
               {"./wiki.test.tokens", "humaneval: ", "cnn_dm: 3 examples, a stand-in"});
}

TEST_F(EvaluateProgram, Mistakes) {
  folder_.write("bad.jsonl", "{\"article\": \"a\"}\n{\"highlights\": 1, \"article\": \"b\"}\n");
  const struct {
    const char* command;
    int code;
    std::vector<std::string> words;
  } rows[] = {
      {"weft eval --from model", 2, {"nothing to evaluate", "--task"}},
      {"weft eval --from model --task wikitex", 2, {"unknown word 'wikitex'", "did you mean 'wikitext'?"}},
      {"weft eval --from model --task cnn_dm --device cpu --data bad.jsonl",
       4,
       {"2 problems", "line 1: 'highlights' is missing", "line 2: 'highlights' is no text"}},
      {"weft eval --from model --task cnn_dm,hotpotqa --data bad.jsonl", 2, {"one file for several tasks"}},
      {"weft eval --from model --task humaneval --k 3 --device cpu", 2, {"at least k samples"}},
      {"weft eval --from model --data text.txt --stride 0", 2, {"--stride", "below 1"}},
      {"weft eval --from model --task cnn_dm --length 20 --device cpu", 2, {"no room for a prompt"}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.command);
    expect_words(shell(row.command), row.code, row.words);
  }
}

}  // namespace
}  // namespace weft
