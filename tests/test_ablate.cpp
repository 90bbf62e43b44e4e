// The study of hybrids: its plan is the one that its description has, a whole one on a tiny scale writes all its files, goes on
// bit for bit where it was stopped, and its report says what the numbers say.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "jit/file.h"
#include "jit/json.h"
#include "models/hymba_study.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/words_text.h"
#include "tools/ablate/document.h"
#include "tools/ablate/findings.h"
#include "tools/ablate/report.h"
#include "tools/ablate/results.h"
#include "tools/ablate/study.h"
#include "tools/train/metrics.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// ---- the plan ---------------------------------------------------------------------------------------------------------------

TEST(S003, TheStudyHasFiveModelsAndTwoStagesWithTheirHyperParameters) {
  const StudyPlan plan = hymba_plan(false);
  ASSERT_EQ(plan.models.size(), 5u);
  ASSERT_EQ(plan.stages.size(), 2u);
  for (std::size_t m = 0; m < 5; ++m) {
    const TrainOptions first = options_of(plan, {m, 0, 1}), second = options_of(plan, {m, 1, 1});
    for (const TrainOptions& o : {first, second}) {
      EXPECT_EQ(o.batch, 16);
      EXPECT_EQ(o.length, 256);
      EXPECT_EQ(o.tokenizer, "unigram");
      EXPECT_EQ(o.vocab, 4000);
      EXPECT_EQ(o.min_lr, 0);
      EXPECT_EQ(o.clip, 1.0);
      EXPECT_EQ(o.precision, "auto");
      EXPECT_EQ(o.eval_batches, 0);
    }
    EXPECT_EQ(first.stage, "pretrain");
    EXPECT_EQ(second.stage, "orpo");
    EXPECT_EQ(second.orpo_form, "paper");
    EXPECT_EQ(first.epochs, 30);
    EXPECT_EQ(first.lr, 3e-4);
    EXPECT_EQ(first.weight_decay, 0.1);
    EXPECT_EQ(first.warmup, 200);
    EXPECT_EQ(second.epochs, 10);
    EXPECT_EQ(second.lr, 1e-4);
    EXPECT_EQ(second.weight_decay, 0.01);
    EXPECT_EQ(second.warmup, 100);
    EXPECT_EQ(second.orpo_lambda, 0.1);
    EXPECT_EQ(second.reject, "sample");
    // Narrow ones are made sooner.
    HymbaStudyConfig wanted = study_model(plan.models[m].name);
    EXPECT_EQ(wanted.width, 512);
    wanted.vocab = 4000, wanted.width = 64;
    ModelOptions narrow = first.model_options;
    narrow["width"] = std::int64_t(64);
    const auto model = model_family("hymba-study").from_options(narrow, {.size = 4000}, {});
    EXPECT_EQ(model->parameter_count(), wanted.parameter_count()) << plan.models[m].name;
    EXPECT_EQ(model->config_json()["layer_kinds"], wanted.layer_kinds);
  }
}

TEST(Ablate, APlanIsReadAsItWasWritten) {
  for (const bool quick : {false, true}) {
    StudyPlan plan = hymba_plan(quick);
    plan.seeds = 3, plan.set = {{"batch", "2"}};
    set_text(plan, "a text", 1000000, 5000);
    const json written = to_json(plan);
    EXPECT_EQ(to_json(plan_from_json(written, "study.json")), written);
    EXPECT_EQ(runs_of(plan).size(), 30u);
    for (const StudyRun& run : runs_of(plan)) options_of(plan, run);
  }
  // An epoch is validated, ten are saved; what the user sets counts.
  StudyPlan plan = hymba_plan(false);
  set_text(plan, "a text", 321985, 40046);
  EXPECT_EQ(options_of(plan, {0, 0, 1}).eval_every, 79);
  EXPECT_EQ(steps_of(plan, {0, 0, 1}, {"nowhere"}), 2359);
  plan.set = {{"steps", "7"}};
  EXPECT_EQ(steps_of(plan, {4, 1, 1}, {"nowhere"}), 7);
  json damaged = to_json(plan);
  damaged["models"][0]["name"] = "../above";
  expect_error(ErrorKind::io, {"study.json", "a model's name"}, [&] { plan_from_json(damaged, "study.json"); });
  damaged.erase("models");
  expect_error(ErrorKind::io, {"study.json", "no study, or a damaged one"}, [&] { plan_from_json(damaged, "study.json"); });
}

// ---- results ----------------------------------------------------------------------------------------------------------------

StageResult stage_result(double loss, double best, double lambda) {
  StageResult r;
  r.loss = loss, r.best_loss = best, r.best_at = 4, r.bits_per_character = loss / std::log(2.0) / 3.4, r.lambda = lambda;
  r.tokens_per_second = 1000, r.seconds = 10, r.memory = 2e9, r.written_per_second = 50, r.parameters = 60'000'000;
  r.kv_reduction = 1.25, r.kv_bytes = 4096, r.kv_bytes_global = 8192, r.window = 256;
  if (lambda > 0) r.accuracy_before = 0.5, r.accuracy = 0.75;
  return r;
}

// Two models; of the first perplexities 100 and 121 after pretraining, of the second one seed alone.
StudyResults two_models() {
  StudyResults s;
  s.plan = hymba_plan(false);
  s.plan.models = {s.plan.models[2], s.plan.models[4]}, s.plan.seeds = 2;
  s.unit = "epochs", s.ends = {30, 40}, s.device = "a device", s.precision = "bf16", s.seconds = 100;
  s.runs = {{{stage_result(std::log(100), std::log(80), 0), stage_result(std::log(90), std::log(88), 0.1)},
             {stage_result(std::log(121), std::log(90), 0), stage_result(std::log(99), std::log(95), 0.1)}},
            {{stage_result(std::log(64), std::log(50), 0), std::nullopt}, {std::nullopt, std::nullopt}}};
  return s;
}

TEST(Ablate, TheTableHasTheColumnsOfTheStudyAndTheirDeviations) {
  StudyResults s = two_models();
  std::istringstream lines(csv_of(s));
  std::string head, first, second;
  std::getline(lines, head), std::getline(lines, first), std::getline(lines, second);
  EXPECT_EQ(head.substr(0, head.find(",pretrain_ppl_sd")),
            "model,pretrain_ppl,orpo_ppl,best_ppl,params_m,kv_reduction,kv_bytes,train_tok_s,infer_tok_s,peak_mem_mb,"
            "train_seconds");
  EXPECT_EQ(first,
            "transformer_local,110.500,94.500,85.000,60.000,1.250,4096,1000,50.0,2000.0,20.0,14.84924,6.36396,7.07107,0.00000,"
            "0.00000,0.00,0.00,0.000,0.000,0.000,2")
      << "the deviation of 100 and 121 is 14.85";
  EXPECT_TRUE(second.starts_with("hybrid_paper,64.000,,50.000,60.000,")) << second;
  EXPECT_TRUE(second.ends_with(",1")) << second;
  s.plan.seeds = 1;
  for (auto& seeds : s.runs) seeds.resize(1);
  const std::string one = csv_of(s);
  EXPECT_EQ(one.find("_sd"), one.npos);
}

TEST(Ablate, WordsAreMadeFromTheNumbers) {
  StudyResults s = two_models();
  const auto all = [&] {
    std::string text = setting_of(s);
    for (const std::string& line : findings_of(s)) text += "\n" + line;
    const Expectations e = expectations_of(s);
    for (const std::string& line : e.surprises) text += "\nsurprise: " + line;
    for (const std::string& line : e.confirmed) text += "\nexpected: " + line;
    return text;
  };
  const auto has = [](const std::string& text, const std::string& words) { return text.find(words) != text.npos; };
  const std::string text = all();
  for (const char* words :
       {"Hybrid, paper predicts the validation part best: perplexity 50.0", "Then come Transformer, local 85.0 ± 7.07",
        "70.0 % behind, which is more than twice the deviation", "best after 4.00 of 30.0 epochs", "1.28 to 1.30 times as high",
        "ORPO changes perplexity, against the end of pretraining, by -14.1 %", "50.0 % before ORPO, and in 75.0 % at its end",
        "2.00 times smaller",
        "surprise: The description expects other perplexities: measured are Hybrid, paper 50.0 for 6.00 to 7.00",
        "bits per character, less than any model", "41.2 % less", "surprise: ORPO is expected to improve",
        "surprise: Forty to sixty minutes of an A100 are expected; the training steps took 1 min 40 s here."})
    EXPECT_TRUE(has(text, words)) << words << "\n" << text;
  // Numbers as they are expected make other words.
  for (auto& stages : s.runs[0])
    stages = {stage_result(std::log(13), std::log(13), 0), stage_result(std::log(12.6), std::log(12.6), 0.1)};
  s.runs[1][0][0] = stage_result(std::log(6), std::log(6), 0);
  s.seconds = 3000;
  const std::string other = all();
  EXPECT_FALSE(has(other, "expects other perplexities")) << other;
  EXPECT_TRUE(has(other, "expected: Hybrids are expected to be far better")) << other;
  EXPECT_TRUE(has(other, "expected: ORPO is expected to improve")) << other;
  EXPECT_TRUE(has(other, "could be trained longer")) << other;
  s.plan.quick = true;
  EXPECT_TRUE(has(all(), "quick form")) << all();
  EXPECT_FALSE(has(all(), "surprise:")) << "of small models nothing is expected";
}

TEST(Ablate, AReportIsMarkdownAndHtml) {
  Document d;
  d.heading(2, "a_b <c>");
  d.table({"model", "x"}, {{"a|b", "1"}});
  d.code("```\n<x> *y*");
  d.list({"one & two"});
  EXPECT_EQ(d.markdown(),
            "## a\\_b &lt;c>\n\n| model | x |\n| --- | ---: |\n| a\\|b | 1 |\n\n````\n```\n<x> *y*\n````\n\n- one & two\n\n");
  const std::string html = d.html("t");
  for (const char* part : {"<h2>a_b &lt;c&gt;</h2>", "<td>a|b</td>", "<pre>```\n&lt;x&gt; *y*</pre>", "<li>one &amp; two</li>"})
    EXPECT_NE(html.find(part), html.npos) << html;
}

// ---- whole studies ----------------------------------------------------------------------------------------------------------

class AblateProgram : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    const char* device = std::getenv("WEFT_DEVICE");
    if (device && std::string(device) == "emu") GTEST_SKIP() << "whole studies are too slow";
    folder_.write("text.txt", words_text(20000));
  }
  // A shell's function `study DIR [OPTION...]`: two models of three layers, a few steps of each stage, no pictures.
  static std::string study(int steps) {
    const char* device = std::getenv("WEFT_DEVICE");
    return "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1; study() { out=$1; shift; weft ablate hymba --quick --data "
           "text.txt "
           "--models mamba_only,hybrid_paper --out $out --device " +
           std::string(device ? device : "cpu") +
           " --set tokenizer=bytes --set width=16 --set heads=2 --set kv_heads=1 --set state=4 --set layer_kinds=GLG "
           "--set batch=2 --set length=16 --set response=8 --set warmup=2 --set eval_every=5 --set eval_batches=1 --set "
           "steps=" +
           std::to_string(steps) + " \"$@\"; }; ";
  }
  // Without gnuplot, and in the place of the shell, so that signals reach it.
  static constexpr const char* kBare = "weft() { PATH=/nowhere exec \"$WEFT_PROGRAM\" \"$@\"; }; ";
  fs::path run(const char* study, const char* model, const char* stage) const {
    return folder_ / (std::string(study) + "/runs/" + model + "/seed-1/" + stage);
  }
};
using SlowAblate = AblateProgram;

TEST_F(AblateProgram, WritesItsFilesAndOnlyDrawsAgainWhenItIsComplete) {
  const Outcome outcome = shell(study(8) + "study one");
  expect_words(outcome, 0,
               {"study: 2 models, 2 stages, seeds: 1; text.txt", "Mamba, pretraining (1 of 4): step 1/8",
                "Hybrid, paper, orpo (4 of 4): step 8/8", "Hybrid, paper, orpo: validation loss", "written to one: REPORT.md"});
  for (const char* file :
       {"ablation_results.csv", "generation_samples.txt", "detailed_metrics.txt", "REPORT.md", "report.html",
        "ablation_results.gp", "training_stages_comparison.gp", "hymba_attention_pretraining.gp", "hymba_attention_orpo.gp"})
    EXPECT_GT(fs::file_size(folder_ / (std::string("one/") + file)), 100u) << file;
  const bool gnuplot = shell("command -v gnuplot").code == 0;
  for (const char* file :
       {"ablation_results", "training_stages_comparison", "hymba_attention_pretraining", "hymba_attention_orpo"})
    EXPECT_EQ(fs::exists(folder_ / (std::string("one/") + file + ".png")), gnuplot) << file;
  EXPECT_EQ(outcome.text.find("no pictures") == std::string::npos, gnuplot);

  // Runs are ordinary ones, with the schedule of the study; the second stage begins with the weights of the first.
  const Metrics metrics = read_metrics(run("one", "hybrid_paper", "pretraining"));
  int steps = 0;
  for (const json& line : metrics.lines) {
    if (!line.contains("lr")) continue;
    const int s = line["step"].get<int>() - 1;
    const double wanted = s < 2 ? 3e-3 * (s + 1) / 2 : 3e-3 / 2 * (1 + std::cos(M_PI * (s - 2) / 6.0));
    EXPECT_NEAR(line["lr"].get<double>(), wanted, 1e-9) << "step " << s;
    ++steps;
  }
  EXPECT_EQ(steps, 8);
  EXPECT_EQ(read_json(run("one", "hybrid_paper", "orpo") / "config.json")["from"],
            run("one", "hybrid_paper", "pretraining").string());
  expect_words(shell("weft check one/runs/hybrid_paper/seed-1/orpo"), 0, {});
  const json measured = read_json(run("one", "hybrid_paper", "orpo.json"));
  EXPECT_EQ(measured["samples"].size(), 3u);
  for (const json& shares : measured["attention"]["shares"]) {
    double sum = 0;
    for (const json& share : shares) sum += share.get<double>();
    EXPECT_NEAR(sum, 1, 1e-4);
  }

  // Complete: nothing is trained; without checkpoints: only the report.
  const std::string csv = read_text(folder_ / "one/ablation_results.csv");
  const Outcome again = shell(R"sh(
    rm one/ablation_results.csv one/runs/*/seed-1/*/latest; rm -r one/runs/*/seed-1/*/checkpoints
    PATH=/nowhere "$WEFT_PROGRAM" ablate hymba --report-only --out one)sh");
  expect_words(again, 0, {"no pictures, only their data and scripts: gnuplot is not installed", "--report-only --out one"});
  EXPECT_EQ(read_text(folder_ / "one/ablation_results.csv"), csv);
}

// What must be equal of two studies: weights, losses, samples, and of the table what is no time or memory.
std::string essence(const fs::path& study) {
  std::string text = read_text(study / "generation_samples.txt");
  for (const char* model : {"mamba_only", "hybrid_paper"})
    for (const char* stage : {"pretraining", "orpo"}) {
      const fs::path run = study / "runs" / model / "seed-1" / stage;
      for (const char* file : {"latest/model.safetensors", "latest/optimizer.safetensors"}) text += read_text(run / file);
      for (json line : read_metrics(run).lines) line.erase("time"), line.erase("tokens_per_second"), text += line.dump() + "\n";
      json measured = read_json(run.string() + ".json");
      measured.erase("inference");
      text += measured.dump();
    }
  return text;
}

TEST_F(AblateProgram, GoesOnBitForBitWhereItWasStopped) {
  ASSERT_EQ(shell(study(60) + kBare + "study whole").code, 0);
  // In the middle of the second model's first stage, and of its second.
  const Outcome cut = shell(study(60) + kBare + R"sh(
    at() { while [ "$(wc -l <$1/metrics.jsonl 2>/dev/null || echo 0)" -lt 4 ]; do sleep 0.01; done; kill -TERM $!; wait $!; echo "code $?";
}
    study cut & at cut/runs/hybrid_paper/seed-1/pretraining
    study cut & at cut/runs/hybrid_paper/seed-1/orpo
    weft ablate hymba --out cut --device ${WEFT_DEVICE:-cpu})sh");
  expect_words(cut, 0,
               {"code 143", "stopped in Hybrid, paper, pretraining", "stopped in Hybrid, paper, orpo",
                "go on with: weft ablate hymba --out cut"});
  EXPECT_TRUE(essence(folder_ / "whole") == essence(folder_ / "cut"));
}

TEST_F(SlowAblate, GoesOnAfterAKillAndWithMoreSeeds) {
  ASSERT_EQ(shell(study(60) + kBare + "study whole").code, 0);
  const Outcome cut = shell(study(60) + kBare + R"sh(
    study cut & while [ ! -s cut/runs/hybrid_paper/seed-1/pretraining/metrics.jsonl ]; do sleep 0.01; done; kill -KILL $!; wait $!
    for i in $(seq 100); do (weft ablate hymba --out cut --device ${WEFT_DEVICE:-cpu}) && break; sleep 0.1; done)sh");
  ASSERT_EQ(cut.code, 0) << cut.text;
  EXPECT_TRUE(essence(folder_ / "whole") == essence(folder_ / "cut"));
  expect_words(shell(study(60) + "study cut --seeds 2"), 0, {"seeds: 2", "Mamba, seed 2, pretraining (5 of 8): step 1/60"});
  const std::string csv = read_text(folder_ / "cut/ablation_results.csv");
  EXPECT_NE(csv.find("best_ppl_sd"), csv.npos);
  EXPECT_TRUE(essence(folder_ / "whole") == essence(folder_ / "cut")) << "the first seed stays as it is";
}

TEST_F(AblateProgram, SaysWhatIsWrong) {
  expect_words(shell("weft ablate hymba --data text.txt --models hybrid_papers --device cpu"), 2,
               {"no model 'hybrid_papers'; did you mean 'hybrid_paper'?"});
  expect_words(shell("weft ablate hymba --data text.txt --set batchs=3 --device cpu"), 2, {"batchs", "did you mean 'batch'"});
  expect_words(shell("weft ablate hymba --data none.txt --out new --device cpu"), 4, {"none.txt"});
  expect_words(shell("mkdir full; touch full/file; weft ablate hymba --data text.txt --out full --device cpu"), 2,
               {"is not empty, and holds no study"});
  expect_words(shell("weft ablate hymba --report-only --out new"), 4, {"there is no study", "new/study.json"});
  expect_words(shell("weft ablate"), 2, {"a subcommand is needed", "hymba"});
  // A run that fails says why, and where its words are. The text is too short for such windows.
  const Outcome failed = shell(study(4) + "study bad --set length=30000");
  expect_words(failed, 4, {"ablate: Mamba, pretraining: weft train ended with 4", "text too short", "pretraining.log"});
  expect_words(shell(study(4) + "study bad --set length=16 --seeds 2"), 2,
               {"was begun otherwise", "--set: the study has other values"});
}

}  // namespace
}  // namespace weft
