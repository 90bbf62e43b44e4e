// What a family of language models is to the rest of weft: one that only the tests have goes through everything that the
// program does, in this process; so do the registry, the options and the reader of configurations.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "jit/compiler.h"
#include "jit/file.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/ngram_model.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/cli/command_line.h"
#include "tools/inspect/inspect.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Printed {
  int code;
  std::string out, err;
};

class LanguageModels : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    static const bool once = (add_model_family(ngram_family()), true);
    (void)once;
  }

  // The program with these words, on the device in use.
  Printed weft(const std::string& words, bool computes = true) const {
    std::istringstream stream("weft " + words + (computes ? " --device " + std::string(name_of(device())) : ""));
    std::vector<std::string> all;
    for (std::string word; stream >> word;) all.push_back(word);
    std::vector<char*> argv;
    for (std::string& word : all) argv.push_back(word.data());
    testing::internal::CaptureStdout(), testing::internal::CaptureStderr();
    const int code = run_program(int(argv.size()), argv.data());
    std::fflush(stdout);
    return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
  }

  std::string path(const char* name) const { return (folder_ / name).string(); }
  std::string train(const char* out, const std::string& more) {
    folder_.write("text.txt", words_text(3000));
    return "train --model ngram --data " + path("text.txt") + " --out " + path(out) +
           " --batch 2 --length 16 --warmup 2 --sample 0 --eval-batches 1 --precision fp32 " + more;
  }

  const TempFolder folder_;
};

void expect_in(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words) EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in: " << text;
}
void expect_not_in(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words) EXPECT_EQ(text.find(word), std::string::npos) << "\"" << word << "\" in: " << text;
}

// ---- the program ------------------------------------------------------------------------------------------------------------

// CLI11 writes a default as =16, since 2.4 as [16].
std::string with_equals(const std::string& help) { return std::regex_replace(help, std::regex(R"( \[([^\]\n]*)\] )"), "=$1 "); }

TEST_F(LanguageModels, HelpListsTheOptionsOfTheFamily) {
  Printed mamba = weft("train --help", false), ngram = weft("train --model ngram --help", false);
  for (Printed* p : {&mamba, &ngram}) p->out = with_equals(p->out);
  expect_in(mamba.out, {"Architecture: mamba, ", ", ngram", "--state INT=16", "--width INT=128", "tiny, small (10 M)"});
  expect_not_in(mamba.out, {"--window", "--dropout"});
  expect_in(ngram.out,
            {"--window INT=3", "--width INT=16", "--dropout FLOAT=0", "--skip", "small, or wide (64)", "--steps INT=40"});
  expect_not_in(ngram.out, {"--state", "--layers", "130m"});
  expect_in(weft("train --model=ngram --help", false).out, {"--window"});
  expect_in(weft("completion bash", false).out, {"--window", "--state", "mamba ", " ngram", "tiny small 130m task", " wide"});
}

TEST_F(LanguageModels, HelpSaysWhichFlagsAreOnAndHowToTurnThemOff) {
  expect_in(weft("train --model transformer --help", false).out,
            {"The head is the embedding (=on; --tie=false: off)", "Norms of queries and keys (=off)"});
  expect_in(weft("train --model hymba-study --help", false).out,
            {"(=on; --share-kv=false: off)", "(=on; --wrap-projections=false"});
}

TEST_F(LanguageModels, EvalTakesWindowsThatTheModelCanRead) {
  folder_.write("text.txt", words_text(3000));
  const std::string model = "train --model transformer --context 32 --tie=false --width 16 --layers 1 --heads 2 --data " +
                            path("text.txt") + " --out " + path("run") +
                            " --batch 2 --length 16 --steps 1 --sample 0 --eval-batches 1 --precision fp32";
  ASSERT_EQ(weft(model).code, 0);
  const std::string eval = "eval --precision fp32 --from " + path("run") + " --data " + path("text.txt");
  const Printed own = weft(eval), longer = weft(eval + " --length 33");
  EXPECT_EQ(own.code, 0) << own.err;
  expect_in(own.out, {"in windows of 32 tokens"});
  EXPECT_EQ(longer.code, 2);
  expect_in(longer.err, {"33 tokens, the context is 32"});
}

TEST_F(LanguageModels, AnUnknownFamilyHasNoHelp) {
  for (const char* words : {"train --model mambo --help", "train --help --model=mambo", "train --model mambo"}) {
    const Printed got = weft(words, false);
    EXPECT_EQ(got.code, 2) << words;
    EXPECT_EQ(got.out, "") << words;
    expect_in(got.err, {"train: --model: unknown word 'mambo'; did you mean 'mamba'?", "use mamba, ", ", ngram"});
  }
  EXPECT_EQ(weft("doctor", false).code, 0);
}

TEST_F(LanguageModels, AnOptionThatTheFamilyLacksIsAnErrorThatSaysSo) {
  const Printed a = weft("train --model ngram --state 4"), b = weft("train --window 4"),
                c = weft("train --model ngram --preset 130m");
  EXPECT_EQ(a.code, 2);
  expect_in(a.err, {"The n-gram model has no option --state", "one of --model mamba", "weft train --model ngram --help"});
  EXPECT_EQ(b.code, 2);
  expect_in(b.err, {"Mamba has no option --window", "one of --model "});
  EXPECT_EQ(c.code, 2);
  expect_in(c.err, {"The n-gram model has no preset '130m'", "use small, wide"});
  expect_in(weft("train --model ngram --widow 4").err, {"unknown option '--widow'; did you mean '--window'?"});
  expect_in(weft("train --model ngram --window -1").err, {"may not be negative", "--window -1"});
  expect_in(weft(train("one", "--window 1")).err, {"NgramConfig: sizes must be positive", "window 1"});
}

TEST_F(LanguageModels, AFamilyOfOneFileTrainsAndResumesToTheBit) {
  const Printed whole = weft(train("whole", "--preset wide --steps 6 --save-every 3 --dropout 0.2 --skip"));
  ASSERT_EQ(whole.code, 0) << whole.err;
  expect_in(whole.out, {"model: n-gram, window 3, width 64, 20736 parameters"});
  const json options = read_json(folder_ / "whole/config.json");
  EXPECT_EQ(options.at("model"), "ngram");
  EXPECT_EQ(options.at("window"), 3);
  EXPECT_EQ(options.at("dropout"), 0.2);
  EXPECT_EQ(options.at("skip"), true);
  EXPECT_FALSE(options.contains("state"));
  EXPECT_EQ(read_json(folder_ / "whole/latest/config.json").at("model_type"), "ngram");

  const Printed resumed = weft("train --resume " + path("whole/checkpoints/step-3") + " --out " + path("resumed"));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  expect_in(resumed.out, {"resumed after step 3"});
  for (const char* file : {"model.safetensors", "optimizer.safetensors"})
    EXPECT_EQ(read_text(folder_ / "whole/latest" / file), read_text(folder_ / "resumed/latest" / file)) << file;
  const Printed again = weft(train("again", "--config " + path("whole/config.json") + " --save-every 0 --window 4"));
  ASSERT_EQ(again.code, 0) << again.err;
  expect_in(again.out, {"window 4, width 64"});
  const Printed changed = weft("train --resume " + path("whole") + " --window 4");
  EXPECT_EQ(changed.code, 2);
  expect_in(changed.err, {"--window cannot change when a run is resumed", "the run has 3, given is 4"});
}

TEST_F(LanguageModels, ARunOfItIsEvaluatedContinuedAndInspected) {
  ASSERT_EQ(weft(train("run", "--steps 30 --lr 0.02")).code, 0);
  const std::string from = " --from " + path("run") + " --precision fp32";
  const Printed eval = weft("eval --data " + path("text.txt") + " --length 16" + from);
  EXPECT_EQ(eval.code, 0) << eval.err;
  const auto at = eval.out.find("loss ");
  ASSERT_NE(at, std::string::npos) << eval.out;
  EXPECT_LT(std::stod(eval.out.substr(at + 5)), 4.5);  // from ln 256 = 5.5
  const Printed made = weft("generate --tokens 30 --temperature 0 --prompt the" + from);
  EXPECT_EQ(made.code, 0) << made.err;
  expect_in(made.out, {"the"});
  expect_in(made.err, {"then 30 tokens", "cache of 33 tokens: 0.1 kB"});
  // Several prompts: each as it is alone.
  folder_.write("prompts.txt", "a\n\nking\n");
  const std::string greedy = "generate --tokens 6 --temperature 0 --batch 2" + from;
  const Printed together = weft(greedy + " --prompt the --prompt-file " + path("prompts.txt"));
  EXPECT_EQ(together.code, 0) << together.err;
  std::string alone;
  for (const char* prompt : {"the", "a", "king"})
    alone += (alone.empty() ? "" : "---\n") + weft(greedy + " --prompt " + prompt).out;
  EXPECT_EQ(together.out, alone);
  for (const char* name : {"prompts.jsonl", "prompts.NDJSON"}) {
    folder_.write(name, "{\"text\": \"a\"}\n\n{\"id\": 3, \"text\": \"king\"}");
    EXPECT_EQ(weft(greedy + " --prompt the --prompt-file " + path(name)).out, alone) << name;
  }
  expect_in(together.err, {"prompt: 4 tokens", "then 12 tokens", "of each of 2 texts", "prompt: 4 tokens", "then 6 tokens"});
  EXPECT_EQ(weft(greedy + " --prompt - --prompt -").code, 2);
  if (nvrtc_version() == 0) return;
  const Printed kernels = weft("inspect " + path("run") + " --arch sm_80", false);
  EXPECT_EQ(kernels.code, 0) << kernels.err;
  expect_in(kernels.out, {"cache of 16 tokens: 0.1 kB", "n-gram, window 3, width 16", "2 x 16 tokens, fp32, sm_80",
                          "conv1d_backward", "ngram_model.h"});
}

TEST_F(LanguageModels, ATransformerGoesThroughTheWholeProgram) {
  folder_.write("text.txt", words_text(3000));
  const std::string run = path("decoder");
  const Printed trained = weft("train --model transformer --data " + path("text.txt") + " --out " + run +
                               " --width 32 --layers 2 --kv-heads 2 --window 8 --batch 2 --length 16 --steps 20 --lr 0.01"
                               " --warmup 2 --sample 0 --eval-batches 1 --precision fp32");
  ASSERT_EQ(trained.code, 0) << trained.err;
  expect_in(trained.out, {"model: Transformer, 2 layers, width 32, 4 heads in 2 groups, window 8"});
  EXPECT_EQ(read_json(fs::path(run) / "latest/config.json").at("model_type"), "mistral");
  const std::string from = " --from " + run + " --precision fp32";
  const Printed eval = weft("eval --data " + path("text.txt") + " --length 16" + from);
  EXPECT_EQ(eval.code, 0) << eval.err;
  const Printed made = weft("generate --tokens 30 --temperature 0 --prompt the" + from);
  EXPECT_EQ(made.code, 0) << made.err;
  // 2 layers of 8 places of keys and values of 2 heads of 8 numbers, of 33 places.
  expect_in(made.err, {"then 30 tokens", "keys and values 2.0 kB in 2 caches of 2 layers, 4.12 times less"});
  const Printed kernels = weft("inspect " + run + " --arch sm_80", false);
  if (nvrtc_version() != 0) expect_in(kernels.out, {"Transformer, 2 layers", "cache of 16 tokens: 2.0 kB"});
  expect_in(weft("train --model transformer --heads 3 --data " + path("text.txt") + " --out " + path("no")).err,
            {"the width does not divide into the heads", "width 128, 3 heads"});
  expect_in(
      weft("train --model transformer --context 8 --data " + path("text.txt") + " --length 16 --batch 2 --out " + path("no"))
          .err,
      {"longer than the model's context", "16 tokens, the context is 8"});
}

TEST_F(LanguageModels, VerifyReadsWhateverTheConfigurationNames) {
  seed(3);
  Ngram model({.vocab = 40, .width = 8, .window = 3, .skip = true});
  model.save(folder_.path());
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < 24; ++i) ids.push_back(i * i * 7 % 40);
  const auto tensor = [](const std::vector<std::int64_t>& values, std::vector<std::int64_t> shape) {
    return HostTensor::from(DType::i64, std::move(shape), std::span(values));
  };
  const auto reals = [](const std::vector<float>& values) {
    return HostTensor::from(DType::f32, {2, 12, 40}, std::span(values));
  };
  TensorMap reference;
  reference["input_ids"] = tensor(ids, {2, 12});
  const std::vector<float> logits = run([&] { return model(Tensor::from(ids, {2, 12})); }).to_host<float>();
  reference["logits"] = reals(logits);
  // Without caches: the prompt is the first 8 of the first row.
  std::vector<std::int64_t> greedy(ids.begin(), ids.begin() + 8);
  while (greedy.size() < 16) {
    const auto next = run([&] { return model(Tensor::from(greedy, {1, std::int64_t(greedy.size())})); }).to_host<float>();
    greedy.push_back(std::max_element(next.end() - 40, next.end()) - (next.end() - 40));
  }
  reference["greedy"] = tensor(greedy, {1, 16});
  write_safetensors(folder_ / "reference.safetensors", reference);
  const Printed good = weft("verify " + folder_.path().string());
  EXPECT_EQ(good.code, 0) << good.out;
  expect_in(good.out, {"greedy continuation, 8 tokens", "all 2 checks passed"});
  reference["logits"] = reals(std::vector<float>(logits.size(), 0.f));
  write_safetensors(folder_ / "reference.safetensors", reference);
  EXPECT_EQ(weft("verify " + folder_.path().string()).code, 1);
}

// ---- the interface ----------------------------------------------------------------------------------------------------------

TEST_F(LanguageModels, AModelIsLoadedWithoutItsFamilyBeingNamed) {
  Ngram({.vocab = 40, .width = 8}).save(folder_ / "ngram");
  Mamba({.vocab = 40, .width = 8, .layers = 1, .state = 2}).save(folder_ / "mamba");
  Mamba({.vocab = 40, .width = 8, .layers = 1, .state = 2}).save(folder_ / "original", CheckpointNames::original);
  EXPECT_EQ(LanguageModel::load(folder_ / "ngram")->description(), "n-gram, window 4, width 8, 424 parameters");
  for (const char* name : {"mamba", "original"}) {
    const auto model = LanguageModel::load(folder_ / name, DType::f64);
    EXPECT_EQ(model->description(), Mamba::load(folder_ / name).description());
    EXPECT_EQ(model->parameters()[0].dtype(), DType::f64);
  }
  expect_error(ErrorKind::io, {"the model is no Mamba", "n-gram, window 4"}, [&] { Mamba::load(folder_ / "ngram"); });
  json config = read_json(folder_ / "ngram/config.json");
  config.erase("model_type");
  folder_.write("ngram/config.json", config.dump());
  EXPECT_EQ(LanguageModel::load(folder_ / "ngram")->vocab(), 40);
  config["model_type"] = "llamo";
  folder_.write("ngram/config.json", config.dump());
  expect_error(ErrorKind::io, {"model_type = \"llamo\"; only \"mamba\", ", ", \"ngram\" are supported"},
               [&] { LanguageModel::load(folder_ / "ngram"); });
}

TEST_F(LanguageModels, CachesAndFormsBelongToTheirFamily) {
  Mamba mamba({.vocab = 40, .width = 8, .layers = 1, .state = 2});
  Ngram ngram({.vocab = 40, .width = 8});
  const auto ids = [](std::int64_t batch) { return Tensor::from(std::vector<std::int64_t>(std::size_t(batch)), {batch, 1}); };
  const auto wrong = [&](LanguageModel& model, const LanguageModel& other) {
    const auto cache = other.make_cache(1);
    expect_error(ErrorKind::usage, {"the cache belongs to another model"},
                 [&] { run([&] { return model.prefill(ids(1), *cache); }); });
  };
  wrong(mamba, ngram), wrong(ngram, mamba);
  const auto cache = ngram.make_cache(2);
  expect_error(ErrorKind::usage,
               {"ids must be (batch of the cache, at least one)", "ids (3, 1), cache batch 2",
                "test_language_model.cpp:", "make_cache(n)"},
               [&] { run([&] { return ngram.step(ids(3), *cache); }); });
  expect_error(ErrorKind::usage, {"no original form"}, [&] { ngram.save(folder_.path(), CheckpointNames::original); });
}

TEST_F(LanguageModels, TheRegistryRefusesWhatWouldBeTwoThings) {
  ModelFamily twice = ngram_family();
  expect_error(ErrorKind::usage, {"'ngram' is there already"}, [&] { add_model_family(twice); });
  twice.name = "other";
  expect_error(ErrorKind::usage, {"another family reads this model_type", "ngram"}, [&] { add_model_family(twice); });
  twice.model_types = {};
  twice.options.push_back({"layers", "Not a number", OptionValue("many")});
  expect_error(ErrorKind::usage, {"an option has another type in 'mamba'", "layers"}, [&] { add_model_family(twice); });
  twice.presets.clear();
  expect_error(ErrorKind::usage, {"has no preset"}, [&] { add_model_family(twice); });
  expect_error(ErrorKind::usage, {"no model family 'mambo'; did you mean 'mamba'?"}, [] { model_family("mambo"); });
  const auto make = [](const ModelOptions& options) { return [=] { model_family("mamba").from_options(options, {}, {}); }; };
  expect_error(ErrorKind::usage, {"Mamba has no option 'widht'; did you mean 'width'?"}, make({{"widht", 3}}));
  expect_error(ErrorKind::usage, {"option 'width' is given a value of another type"}, make({{"width", "wide"}}));
}

TEST_F(LanguageModels, TheRegistryRefusesWhatIsIncomplete) {
  const std::size_t families = model_families().size();
  const auto refused = [](const std::vector<std::string>& words, const std::function<void(ModelFamily&)>& change) {
    ModelFamily family = ngram_family();
    family.name = "other", family.model_types = {"other"};
    change(family);
    expect_error(ErrorKind::usage, words, [&] { add_model_family(family); });
  };
  refused({"its name is no name", "''"}, [](ModelFamily& f) { f.name = ""; });
  refused({"its name is no name", "'my model'"}, [](ModelFamily& f) { f.name = "my model"; });
  refused({"its name is no name", "'--model'"}, [](ModelFamily& f) { f.name = "--model"; });
  refused({"'other' has no title"}, [](ModelFamily& f) { f.title = ""; });
  refused({"a model_type is empty"}, [](ModelFamily& f) { f.model_types.push_back(""); });
  refused({"reads no model_type"}, [](ModelFamily& f) { f.model_types = {}, f.recognises = {}; });
  refused({"has no from_json", "make_family"}, [](ModelFamily& f) { f.from_json = {}; });
  refused({"has no from_options"}, [](ModelFamily& f) { f.from_options = {}; });
  refused({"that of a preset is no name", "'a b'"}, [](ModelFamily& f) { f.presets.push_back({"a b"}); });
  refused({"two presets of one name", "small"}, [](ModelFamily& f) { f.presets.push_back({"small"}); });
  refused({"that of an option is no name", "'big-width'"}, [](ModelFamily& f) { f.options.push_back({"big-width", "", 1.0}); });
  refused({"two options of one name", "width"}, [](ModelFamily& f) { f.options.push_back({"width", "", std::int64_t(1)}); });
  EXPECT_EQ(model_families().size(), families);
}

// Each in a process of its own, in which the program is refused too.
TEST_F(LanguageModels, WhatDoesNotGoWithTheOptionsOfTrainingIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto refused = [](const std::string& words, const std::function<void(ModelFamily&)>& change) {
    const auto child = [&] {
      ModelFamily family = ngram_family();
      family.name = "other", family.model_types = {"other"};
      change(family);
      add_model_family(std::move(family));
      int code = 0;
      try {
        options_from({{"model", "other"}});
      } catch (const Error& e) {
        char program[] = "weft", command[] = "doctor";
        char* argv[] = {program, command};
        if (std::string(e.what()).find(words) != std::string::npos) code = run_program(2, argv);
      }
      std::fflush(stderr);
      std::_Exit(code);  // the threads that std::exit waits for are the parent's
    };
    EXPECT_EXIT(child(), testing::ExitedWithCode(exit_code(ErrorKind::usage)), words);
  };
  refused("an option has the name of one of training", [](ModelFamily& f) { f.options.push_back({"lr", "", 3.0}); });
  refused("an option has the name of one of training", [](ModelFamily& f) { f.options.push_back({"out", "", 3.0}); });
  refused("preset 'wide': train: unknown option 'widht'; did you mean 'width'", [](ModelFamily& f) {
    f.presets[1].settings = {{"widht", "3"}};
  });
  refused("preset 'wide': train: --width must be a whole number", [](ModelFamily& f) {
    f.presets[1].settings = {{"width", "many"}};
  });
  refused("preset 'wide': train: --model is chosen before the preset", [](ModelFamily& f) {
    f.presets[1].settings = {{"model", "mamba"}};
  });
}

TEST_F(LanguageModels, NoFamilyHasAnOptionOfTraining) {
  for (const ModelFamily& family : model_families()) {
    std::set<std::string> names;
    const TrainOptions options = options_from({{"model", family.name}});
    each_option(options,
                [&](const OptionInfo& info, const auto&) { EXPECT_TRUE(names.insert(info.name).second) << info.name; });
    for (const ModelOption& option : family.options) EXPECT_TRUE(names.contains(option.name));
    for (const Preset& preset : family.presets)
      EXPECT_EQ(options_from({{"model", family.name}, {"preset", preset.name}}).preset, preset.name);
  }
}

// Of a training step's products: forward, and the gradients of both factors.
TEST_F(LanguageModels, CountsItsArithmetic) {
  if (nvrtc_version() == 0) GTEST_SKIP() << "there is no NVRTC";
  const Mamba mamba({.vocab = 64, .width = 32, .layers = 2, .state = 4});
  const Ngram ngram({.vocab = 64, .width = 32});
  const auto products = [&](const LanguageModel& model) {
    model.save(folder_.path());
    double flops = 0;
    for (const KernelView& k : inspect_training_step(folder_.path(), {.batch = 2, .length = 16}).kernels)
      if (!k.kernel) flops += k.flops;
    return flops / (2 * 16 * 3);
  };
  const MambaConfig& c = mamba.config();
  const double inner = double(c.inner_width()),
               others = double(c.layers) * inner * (2.0 * double(c.conv) + 7.0 * double(c.state));
  EXPECT_EQ(mamba.flops_per_token(16), products(mamba) + others);
  EXPECT_EQ(ngram.flops_per_token(16), products(ngram) + 2 * 32 * 4);
}

// ---- configurations ---------------------------------------------------------------------------------------------------------

TEST(ConfigReader, SaysAllThatIsWrongAtOnce) {
  const json text =
      json::parse(R"({"vocab_size": "many", "hidden_size": 8, "skipp": true, "dropout": true, "eos_token_id": "e"})");
  expect_error(ErrorKind::io,
               {"my.json: 5 problems", "size keys are missing: window", "an integer is expected: vocab_size = \"many\"",
                "a number is expected: dropout = true", "a token's id is expected: eos_token_id = \"e\"",
                "unknown key: 'skipp'; did you mean 'skip'?", "weft assumes none; what weft does not know"},
               [&] { ngram_config_from_json(text, "my.json"); });
  const json one = json::parse(R"({"vocab_size": 4, "hidden_size": 8, "window": 2, "skip": 1})");
  expect_error(ErrorKind::io, {"my.json: true or false is expected: skip = 1"},
               [&] { ngram_config_from_json(one, "my.json"); });
  const json none = json::parse(R"({"vocab_size": 4, "hidden_size": 0, "window": 2})");
  expect_error(ErrorKind::io, {"my.json: the configuration makes no sense", "width 0"},
               [&] { ngram_config_from_json(none, "my.json"); });
}

TEST(ConfigReader, ProblemsOfAnObjectNameIt) {
  const json text = json::parse(
      R"({"d_model": 8, "n_layer": 1, "vocab_size": 4, "ssm_cfg": {"d_state": 2.5, "layer": "Mamba2", "dconv": 3}})");
  expect_error(ErrorKind::io,
               {"3 problems", "ssm_cfg: an integer is expected: d_state = 2.5",
                "ssm_cfg: this model has no such feature: layer", "ssm_cfg: unknown key: 'dconv'; did you mean 'd_conv'?"},
               [&] { mamba_config_from_json(text); });
}

}  // namespace
}  // namespace weft
