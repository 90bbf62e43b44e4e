// Training: checkpoints that go on exactly, threads, values that are not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "jit/json.h"
#include "jit/parallel.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/cli/progress.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

Corpus corpus() { return {"words", words_text(20000)}; }

std::shared_ptr<TokenStream> data(const Corpus& text, const TrainOptions& o) {
  return std::make_shared<TokenStream>(text, Tokenizer::bytes(),
                                       BatchOptions{.batch = o.batch, .length = o.length, .seed = o.seed});
}

TrainOptions options() {
  TrainOptions o;
  o.steps = 20, o.batch = 3, o.length = 24, o.lr = 5e-3, o.warmup = 3, o.seed = 7;
  o.model_options = {{"width", 32}, {"layers", 2}, {"state", 8}};
  return o;
}

std::vector<double> train(Trainer& trainer, int steps) {
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) losses.push_back(trainer.step().loss);
  return losses;
}

void expect_equal(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_EQ(tensor.bytes, b.at(name).bytes) << name;
}

TEST(Trainer, SavedReloadedAndContinuedEqualsUninterrupted) {
  const TempFolder folder;
  Trainer whole(data(corpus(), options()), options()), first(data(corpus(), options()), options());
  const std::vector<double> losses = train(whole, 20);
  train(first, 10);
  first.save(folder.path());
  Trainer second = Trainer::resume(folder.path(), data(corpus(), options()));
  EXPECT_EQ(second.steps_done(), 10);
  const std::vector<double> rest = train(second, 10);
  EXPECT_EQ(std::vector<double>(losses.begin() + 10, losses.end()), rest);
  expect_equal(whole.model().state_dict(), second.model().state_dict());
  expect_equal(whole.optimizer().state_dict(), second.optimizer().state_dict());
  EXPECT_EQ(whole.validate().loss(), second.validate().loss());
  EXPECT_EQ(whole.sample("the ", 40, 0.8, 0, 1), second.sample("the ", 40, 0.8, 0, 1));
}

TEST(Trainer, LearnsSomething) {
  Trainer trainer(data(corpus(), options()), options());
  const double before = trainer.validate().loss();
  EXPECT_NEAR(before, std::log(256), 0.3);
  train(trainer, 20);
  EXPECT_LT(trainer.validate().loss(), before - 1.5);
}

TEST(Trainer, ThreadsDoNotChangeABit) {
  const int before = threads();
  std::vector<std::vector<double>> losses;
  for (int n : {1, 2, 3}) {
    set_threads(n);
    Trainer trainer(data(corpus(), options()), options());
    losses.push_back(train(trainer, 5));
  }
  set_threads(before);
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(losses[0], losses[2]);
}

// One value of a weight is not finite.
void spoil(Trainer& trainer, float value) {
  Param w = trainer.model().parameters()[0];
  std::vector<float> values = w.to_host<float>();
  values.assign(values.size(), value);
  w.set(values);
}

TEST(Trainer, AValueThatIsNotFiniteStopsItWithTheWeightsBefore) {
  for (const int accumulate : {1, 2}) {
    TrainOptions o = options();
    o.accumulate = accumulate;
    Trainer trainer(data(corpus(), o), o);
    train(trainer, 2);
    spoil(trainer, 1e30f);  // finite: it is an op that overflows
    const TensorMap before = trainer.model().state_dict();
    // Where it overflows depends on how a device sums: in the model, or first behind it.
    expect_error(ErrorKind::training,
                 {"step 3 gave a value that is not finite", "made a non-finite value", "of kernel",
                  device() == Device::cpu ? "called at mamba_backbone.h" : " at ", "--skip-bad-steps"},
                 [&] { trainer.step(); });
    expect_equal(before, trainer.model().state_dict());
    EXPECT_EQ(trainer.steps_done(), 2);
    EXPECT_EQ(trainer.data().position(), 2 * accumulate);
  }
}

TEST(Trainer, LeavesOutAsManyBadStepsAsItMay) {
  TrainOptions o = options();
  o.skip_bad_steps = 2;
  Trainer trainer(data(corpus(), o), o);
  train(trainer, 2);
  const std::vector<float> good = trainer.model().parameters()[0].to_host<float>();
  spoil(trainer, std::nanf(""));
  const TensorMap before = trainer.model().state_dict();
  EXPECT_TRUE(trainer.step().skipped);
  expect_equal(before, trainer.model().state_dict());
  trainer.model().parameters()[0].set(good);
  const StepResult next = trainer.step();
  EXPECT_FALSE(next.skipped);
  EXPECT_EQ(next.step, 4);
  spoil(trainer, std::nanf(""));
  EXPECT_TRUE(trainer.step().skipped);
  expect_error(ErrorKind::training, {"step 6"}, [&] { trainer.step(); });
}

TEST(Trainer, AccumulatedBatchesAreOneLargerBatch) {
  TrainOptions o = options();
  o.accumulate = 2;
  Trainer two(data(corpus(), o), o), one(data(corpus(), options()), options());
  const TensorMap before = one.model().state_dict();
  const double first = one.step().loss;
  one.model().load_state_dict(before);
  const double second = one.step().loss;
  const StepResult both = two.step();
  EXPECT_DOUBLE_EQ(both.loss, (first + second) / 2);
  EXPECT_EQ(two.data().position(), 2);
  // The same four windows as one batch.
  std::vector<std::int64_t> inputs, targets;
  auto source = data(corpus(), options());
  for (int i = 0; i < 2; ++i) {
    const Batch batch = source->next();
    for (const auto id : batch.inputs.to_host<std::int64_t>()) inputs.push_back(id);
    for (const auto id : batch.targets.to_host<std::int64_t>()) targets.push_back(id);
  }
  one.model().load_state_dict(before);
  AdamW optimizer(one.model().parameters());
  const Shape shape{2 * o.batch, o.length};
  const auto norm = run([&] {
    backward(cross_entropy(one.model()(Tensor::from(inputs, shape)), Tensor::from(targets, shape)));
    optimizer.step();
    return optimizer.grad_norm();
  });
  EXPECT_NEAR(both.grad_norm, norm.item(), 1e-5 * norm.item());
}

TEST(Trainer, RecomputedBlocksGiveTheSame) {
  TrainOptions o = options();
  Trainer kept(data(corpus(), o), o);
  o.recompute = true;
  Trainer recomputed(data(corpus(), o), o);
  const std::vector<double> a = train(kept, 5), b = train(recomputed, 5);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5);
}

TEST(Trainer, ResumeRefusesWhatDoesNotBelongTogether) {
  const TempFolder folder, other;
  Trainer trainer(data(corpus(), options()), options());
  train(trainer, 1);
  trainer.save(folder.path());
  train(trainer, 1);
  trainer.save(other.path());
  fs::copy_file(other / "model.safetensors", folder / "model.safetensors", fs::copy_options::overwrite_existing);
  expect_error(ErrorKind::io, {"the checkpoint is damaged", "model.safetensors: the bytes are not those that were written"},
               [&] { Trainer::resume(folder.path(), data(corpus(), options())); });
  nlohmann::json without_checksums = read_json(folder / "state.json");
  without_checksums.erase("files"), without_checksums.erase("checksum");
  folder.write("state.json", without_checksums.dump());
  expect_error(ErrorKind::io, {"belong to different steps"},
               [&] { Trainer::resume(folder.path(), data(corpus(), options())); });
  const Corpus another("words", "!" + words_text(20000));
  expect_error(ErrorKind::io, {"not the one that training began with"},
               [&] { Trainer::resume(other.path(), data(another, options())); });
  expect_error(ErrorKind::io, {"no training state"}, [&] { Trainer::resume(folder / "none", data(corpus(), options())); });
  nlohmann::json state = read_json(other / "state.json");
  state["step"] = 1e300;
  other.write("state.json", state.dump());
  expect_error(ErrorKind::io, {"state.json", "\"step\" is not a whole number", "1e+300"},
               [&] { Trainer::resume(other.path(), data(corpus(), options())); });
  state["format"] = 1;
  other.write("state.json", state.dump());
  expect_error(ErrorKind::io, {"another version of weft", "format 1", "go on with the version that wrote it"},
               [&] { Trainer::resume(other.path(), data(corpus(), options())); });
  fs::resize_file(other / "state.json", 30);
  expect_error(ErrorKind::io, {"state.json"}, [&] { Trainer::resume(other.path(), data(corpus(), options())); });
}

TEST(Trainer, TheModelOfACheckpointLoadsByItself) {
  const TempFolder folder;
  Trainer trainer(data(corpus(), options()), options());
  train(trainer, 1);
  trainer.save(folder.path());
  expect_equal(Mamba::load(folder.path()).state_dict(), trainer.model().state_dict());
}

// So that what loads the folder elsewhere stops there too.
TEST(Trainer, ACheckpointNamesTheTokenizersEndOfText) {
  const TempFolder folder;
  const Tokenizer pieces = Tokenizer::train(words_text(5000), 275);
  for (const Tokenizer& t : {pieces, Tokenizer::bytes()}) {
    const TrainOptions o = options();
    Trainer(std::make_shared<TokenStream>(corpus(), t, BatchOptions{.batch = o.batch, .length = o.length}), o)
        .save(folder.path());
    EXPECT_EQ(read_json(folder / "config.json").at("eos_token_id"),
              t.is_bytes() ? nlohmann::json(nullptr) : nlohmann::json(t.end_of_text()));
    EXPECT_EQ(Mamba::load(folder.path()).config().eos,
              t.is_bytes() ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{t.end_of_text()});
  }
}

TEST(Progress, Formats) {
  EXPECT_EQ(format_duration(65.2), "1:05");
  EXPECT_EQ(format_duration(7384), "2:03:04");
  EXPECT_EQ(format_duration(1e300), format_duration(1e16)) << "longer than can be counted";
}

// Words drawn from eight carry 3 bits each: ln 8 nats over 4.625 bytes. A model gets near that and, unless it sees the future,
// not below.
TEST(SlowTrainer, ReachesTheEntropyOfTheTextAndNoLess) {
  TrainOptions o = options();
  o.steps = 400;
  o.batch = 8;
  o.length = 64;
  Trainer trainer(data(corpus(), o), o);
  train(trainer, 400);
  const double entropy = std::log(8) / 4.625;
  EXPECT_LT(trainer.validate().loss(), entropy * 1.25);
  EXPECT_GT(trainer.validate().loss(), entropy * 0.95);
}

}  // namespace
}  // namespace weft
