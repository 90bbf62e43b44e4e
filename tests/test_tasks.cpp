// The synthetic tasks: what the batches hold, and that a model learns one.
#include "tools/data/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/expect_error.h"
#include "tools/weft.h"

namespace weft {
namespace {

struct Sequences {
  std::vector<std::int64_t> inputs, targets;
};

Sequences on_host(const Batch& b) { return {b.inputs.to_host<std::int64_t>(), b.targets.to_host<std::int64_t>()}; }

TEST(Tasks, SelectiveCopyingAsksForTheTokensInTheirOrder) {
  TaskBatches task(SelectiveCopying{}, {.batch = 5, .length = 50, .seed = 3});
  EXPECT_EQ(task.vocabulary(), 16);
  std::map<std::int64_t, int> tokens, places;
  for (int i = 0; i < 40; ++i) {
    const Batch batch = task.next();
    EXPECT_EQ(batch.counted, 5 * 16);
    EXPECT_EQ(batch.characters, 0);
    const Sequences s = on_host(batch);
    for (std::size_t row = 0; row < 5; ++row) {
      std::vector<std::int64_t> seen, answers;
      for (std::size_t j = 0; j < 50; ++j) {
        const std::int64_t in = s.inputs[row * 50 + j], out = s.targets[row * 50 + j];
        if (j < 34) {
          EXPECT_EQ(out, kIgnored);
          EXPECT_TRUE(in >= 0 && in < 15) << in;
          if (in) seen.push_back(in), ++tokens[in], ++places[std::int64_t(j)];
        } else {
          EXPECT_EQ(in, 15);
          answers.push_back(out);
        }
      }
      EXPECT_EQ(seen.size(), 16u);
      EXPECT_EQ(seen, answers);
    }
  }
  EXPECT_EQ(tokens.size(), 14u);  // 200 rows x 16 tokens: each of 14 about 229 times, each of 34 places about 94 times
  for (const auto& [token, n] : tokens) EXPECT_NEAR(n, 229, 65) << token;
  EXPECT_EQ(places.size(), 34u);
  for (const auto& [place, n] : places) EXPECT_NEAR(n, 94, 35) << place;
}

TEST(Tasks, InductionAsksForWhatFollowedTheSpecialToken) {
  TaskBatches task(InductionHeads{}, {.batch = 8, .length = 12, .seed = 4});
  std::map<std::int64_t, int> answers, places;
  for (int i = 0; i < 100; ++i) {
    const Batch batch = task.next();
    EXPECT_EQ(batch.counted, 8);
    const Sequences s = on_host(batch);
    for (std::size_t row = 0; row < 8; ++row) {
      const auto begin = s.inputs.begin() + std::ptrdiff_t(row * 12), end = begin + 12;
      EXPECT_EQ(std::count(begin, end, 15), 2);
      EXPECT_EQ(*(end - 1), 15);
      const auto place = std::find(begin, end, 15);
      EXPECT_EQ(s.targets[row * 12 + 11], *(place + 1));
      EXPECT_EQ(
          std::count(s.targets.begin() + std::ptrdiff_t(row * 12), s.targets.begin() + std::ptrdiff_t(row * 12 + 12), kIgnored),
          11);
      ++answers[*(place + 1)], ++places[place - begin];
    }
  }
  EXPECT_EQ(answers.size(), 15u);
  EXPECT_EQ(places.size(), 10u);  // 800 rows: about 53 and 80 times
  for (const auto& [answer, n] : answers) EXPECT_NEAR(n, 53, 35) << answer;
  for (const auto& [place, n] : places) EXPECT_NEAR(n, 80, 40) << place;
}

TEST(Tasks, APositionIsAllTheState) {
  for (const std::string& name : task_names()) {
    const BatchOptions options{.batch = 3, .length = 40, .seed = 9};
    const auto a = make_task(name, options), b = make_task(name, options);
    for (int i = 0; i < 7; ++i) a->next();
    b->seek(7);
    EXPECT_EQ(on_host(a->next()).inputs, on_host(b->next()).inputs);
    a->seek(0);
    const auto first = on_host(a->next()).inputs, valid = on_host(a->validation(0)).inputs;
    EXPECT_NE(first, on_host(a->next()).inputs);
    EXPECT_NE(first, valid);
    EXPECT_EQ(valid, on_host(b->validation(0)).inputs);
    EXPECT_NE(first, on_host(make_task(name, {.batch = 3, .length = 40, .seed = 10})->next()).inputs);
    EXPECT_EQ(a->hash(), b->hash());
    EXPECT_TRUE(a->has_accuracy());
    expect_error(ErrorKind::usage, {"no such validation batch"}, [&] { a->validation(a->validation_batches()); });
  }
}

TEST(Tasks, WhatLeavesNoRoom) {
  expect_error(ErrorKind::usage, {"selective copying", "length 31, 16 tokens", "twice --memorize"},
               [] { make_task("selective-copying", {.batch = 1, .length = 31}); });
  expect_error(ErrorKind::usage, {"induction", "length 2"}, [] { make_task("induction", {.batch = 1, .length = 2}); });
  expect_error(ErrorKind::usage, {"no task 'inducton'; did you mean 'induction'?"}, [] { make_task("inducton", {}); });
  EXPECT_NO_THROW(make_task("selective-copying", {.batch = 1, .length = 32})->next());
  EXPECT_EQ(make_task("selective-copying", {.batch = 2, .length = 31}, 5)->next().counted, 2 * 5);
  for (const std::int64_t memorize : {std::int64_t(0), std::int64_t(1) << 62})
    expect_error(ErrorKind::usage, {"selective copying"},
                 [&] { make_task("selective-copying", {.batch = 1, .length = 31}, memorize); });
  EXPECT_NO_THROW(make_task("induction", {.batch = 1, .length = 3})->next());
}

// A model that answers at random is right once in 15 times.
TEST(SlowTasks, InductionIsLearnt) {
  TrainOptions o;
  o.steps = 140, o.batch = 64, o.length = 16, o.model_options = {{"width", 32}, {"layers", 2}}, o.lr = 1e-2, o.warmup = 20;
  Trainer trainer(make_task("induction", {.batch = o.batch, .length = o.length, .seed = o.seed}), o);
  EXPECT_LT(trainer.validate().accuracy(), 0.2);
  for (int i = 0; i < o.steps; ++i) trainer.step();
  EXPECT_GT(trainer.validate().accuracy(), 0.95);
}

}  // namespace
}  // namespace weft
