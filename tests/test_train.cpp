// Training: checkpoints that go on exactly, threads, values that are not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "jit/parallel.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/progress.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// A text with some structure, the same on every machine.
Corpus corpus() {
  std::string text;
  std::uint32_t state = 1;
  const char* const words[] = {"and ", "the ", "king ", "went ", "forth ", "into ", "a ", "land.\n"};
  while (text.size() < 20000) {
    state = state * 1664525u + 1013904223u;
    text += words[state >> 29];
  }
  return {"words", text};
}

std::shared_ptr<TokenStream> data(const Corpus& text, const TrainOptions& o) {
  return std::make_shared<TokenStream>(text, Tokenizer::bytes(), BatchOptions{.batch = o.batch, .length = o.length, .seed = o.seed});
}

TrainOptions options() {
  return {
      .steps = 20, .batch = 3, .length = 24, .width = 32, .layers = 2, .state = 8, .lr = 5e-3, .warmup = 3, .seed = 7};
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
  EXPECT_EQ(whole.validate().loss, second.validate().loss);
  EXPECT_EQ(whole.sample("the ", 40, 0.8, 0, 1), second.sample("the ", 40, 0.8, 0, 1));
}

TEST(Trainer, LearnsSomething) {
  Trainer trainer(data(corpus(), options()), options());
  const double before = trainer.validate().loss;
  EXPECT_NEAR(before, std::log(256), 0.3);
  train(trainer, 20);
  EXPECT_LT(trainer.validate().loss, before - 1.5);
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

TEST(Trainer, AValueThatIsNotFiniteStopsItWithTheWeightsBefore) {
  Trainer trainer(data(corpus(), options()), options());
  train(trainer, 2);
  Param w = trainer.model().parameters()[0];
  std::vector<float> values = w.to_host<float>();
  values.assign(values.size(), std::nanf(""));
  w.set(values);
  const TensorMap before = trainer.model().state_dict();
  expect_error(ErrorKind::training, {"step 3 gave a value that is not finite"}, [&] { trainer.step(); });
  expect_equal(before, trainer.model().state_dict());
  EXPECT_EQ(trainer.steps_done(), 2);
}

TEST(Trainer, ResumeRefusesWhatDoesNotBelongTogether) {
  const TempFolder folder, other;
  Trainer trainer(data(corpus(), options()), options());
  train(trainer, 1);
  trainer.save(folder.path());
  train(trainer, 1);
  trainer.save(other.path());
  fs::copy_file(other / "model.safetensors", folder / "model.safetensors", fs::copy_options::overwrite_existing);
  expect_error(ErrorKind::io, {"belong to different steps"}, [&] { Trainer::resume(folder.path(), data(corpus(), options())); });
  Corpus another = corpus();
  another.text[5] = '!';
  expect_error(ErrorKind::io, {"not the one that training began with"},
               [&] { Trainer::resume(other.path(), data(another, options())); });
  expect_error(ErrorKind::io, {"no training state"}, [&] { Trainer::resume(folder / "none", data(corpus(), options())); });
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

TEST(Progress, Formats) {
  EXPECT_EQ(format_duration(65.2), "1:05");
  EXPECT_EQ(format_duration(7384), "2:03:04");
  EXPECT_EQ(printable("a\tb\n\x1b[2Jc\x7f"), "a\tb\n\\x1b[2Jc\\x7f");
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
  EXPECT_LT(trainer.validate().loss, entropy * 1.25);
  EXPECT_GT(trainer.validate().loss, entropy * 0.95);
}

}  // namespace
}  // namespace weft
