// Who draws which numbers: modules of one structure, threads, seeds, and the device that main chooses.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tools/weft.h"

namespace weft {
namespace {

using Values = std::vector<float>;

struct Critic : Layer<Critic> {
  Linear up{3, 4}, down{4, 1};
  Critic() { add("up", up), add("down", down); }
  Tensor forward(const Tensor& x) { return down(relu(up(x))); }
};

Values values(const Module& module) {
  Values all;
  for (const Param& p : module.parameters())
    for (float v : p.to_host<float>()) all.push_back(v);
  return all;
}

Values noise() {
  return run([] { return normal({8}); }).to_host<float>();
}

Values in_thread(const std::function<Values()>& f) {
  Values result;
  std::thread([&] { result = f(); }).join();
  return result;
}

TEST(Seeds, ModulesOfOneStructureStartDifferently) {
  const auto twins = [] {
    seed(5);
    const Critic a, b;
    return std::pair{values(a), values(b)};  // in this order
  };
  const auto [a, b] = twins();
  EXPECT_NE(a, b);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NE(a[i], b[i]) << i;
  EXPECT_EQ(twins(), std::pair(a, b)) << "the same program draws the same";
  seed(5);
  std::vector<Critic> ensemble(5);
  EXPECT_EQ(values(ensemble[0]), a) << "the first is what a single one is";
  EXPECT_EQ(values(ensemble[1]), b);
  for (int i = 2; i < 5; ++i)
    for (int j = 0; j < i; ++j) EXPECT_NE(values(ensemble[std::size_t(i)]), values(ensemble[std::size_t(j)]));
  EXPECT_NE(Linear(2, 2).weight().to_host<float>(), Linear(2, 2).weight().to_host<float>());
  seed(0);
}

TEST(Seeds, BeginAgainOutsideRunWhateverIsPendingOrKept) {
  const auto draw = [] { return uniform({8}).to_host<float>(); };
  const auto check = [&] {
    Dropout dropout(0.5);
    seed(5);
    const Values first = draw();
    const Tensor pending = normal({3});
    seed(5);
    EXPECT_EQ(pending.to_host<float>().size(), 3u);
    EXPECT_EQ(draw(), first) << "what was pending has drawn before";
    seed(5);
    const Tensor one = uniform({8});
    seed(5);
    const Tensor other = uniform({8});
    EXPECT_EQ(one.to_host<float>(), first);
    EXPECT_EQ(other.to_host<float>(), first);
    const Param w({8});
    const Tensor kept = dropout((w + 1.0) * uniform({8})), again = dropout(w + 1.0);  // may be differentiated yet
    const Values values = kept.to_host<float>();
    EXPECT_NE(again.to_host<float>(), values);
    seed(5);
    EXPECT_EQ(draw(), first);
    const auto draw_in_a_module = [&] {
      seed(5);
      return dropout((w + 1.0) * uniform({8})).to_host<float>();
    };
    EXPECT_EQ(draw_in_a_module(), draw_in_a_module());
    EXPECT_EQ(kept.to_host<float>(), values);
  };
  check();
  std::thread(check).join();
  seed(0);
}

TEST(Seeds, TheFirstOfANameDependsOnSeedAndNameAlone) {
  seed(5);
  Param expected(Shape{4, 3});
  initialise(expected, init::kaiming_uniform(3), 5, "up.weight");
  EXPECT_EQ(Critic().parameters()[0].to_host<float>(), expected.to_host<float>());
  initialise(expected, init::kaiming_uniform(3), 5, "up.weight", 1);
  EXPECT_EQ(Critic().parameters()[0].to_host<float>(), expected.to_host<float>());
  seed(0);
}

TEST(Seeds, ALaterSeedDoesNotChangeWhatWasMadeBefore) {
  seed(5);
  const Critic a, b;
  seed(6);
  const Critic c;
  const Values first = values(a), second = values(b), third = values(c);
  seed(5);
  EXPECT_EQ(values(Critic()), first);
  EXPECT_EQ(values(Critic()), second);
  seed(6);
  EXPECT_EQ(values(Critic()), third);
  seed(0);
}

TEST(Seeds, WhatIsDrawnAfterwardsDoesNotDependOnLoading) {
  seed(5);
  const Critic saved;
  const TensorMap tensors = saved.state_dict();
  const Values next = values(Critic());
  seed(5);
  Critic resumed;
  resumed.load_state_dict(tensors);
  EXPECT_EQ(values(resumed), values(saved));
  EXPECT_EQ(values(Critic()), next);
  seed(0);
}

TEST(Seeds, ThreadsDrawDifferentNumbersAndTheSameAgain) {
  const auto three = [](std::uint64_t value) {
    seed(value);
    std::vector<Values> all = {noise()};
    for (int i = 0; i < 2; ++i) all.push_back(in_thread(noise));
    return all;
  };
  const std::vector<Values> five = three(5), six = three(6);
  EXPECT_NE(five[0], five[1]);
  EXPECT_NE(five[0], five[2]);
  EXPECT_NE(five[1], five[2]);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NE(five[i], six[i]) << "the seed of main reaches thread " << i;
  EXPECT_EQ(three(5), five);
  seed(0);
}

TEST(Seeds, ThreadsThatRunAlreadyTakeTheSeedOfMainUnlessTheyHaveOne) {
  const auto steps = [](bool own) {  // what the thread draws before and after main's second seed
    Values before, after;
    seed(1);
    std::atomic<int> turn{0};
    std::thread thread([&] {
      if (own) seed(9);
      before = noise();
      turn = 1;
      while (turn != 2) std::this_thread::yield();
      after = noise();
    });
    while (turn != 1) std::this_thread::yield();
    seed(2);
    turn = 2;
    thread.join();
    return std::pair(before, after);
  };
  seed(2);
  const Values of_two = in_thread(noise);
  EXPECT_EQ(steps(false).second, of_two);
  const auto [before, after] = steps(true);
  seed(9);
  EXPECT_EQ(before, noise());
  EXPECT_EQ(after, noise()) << "it goes on";
  seed(0);
}

TEST(Seeds, ModulesOfThreadsStartDifferently) {
  const auto all = [] {
    seed(5);
    const Values here = values(Critic());
    return std::vector{here, in_thread([] { return values(Critic()); }), in_thread([] { return values(Critic()); })};
  };
  const std::vector<Values> drawn = all();
  EXPECT_NE(drawn[0], drawn[1]);
  EXPECT_NE(drawn[0], drawn[2]);
  EXPECT_NE(drawn[1], drawn[2]);
  EXPECT_EQ(all(), drawn);
  seed(0);
}

TEST(Seeds, AGeneratorInUseIsNotTouchedByOthers) {
  Rng own(3);
  Values first;
  {
    const UseRng use(own);
    first = noise();
    seed(3);  // of the generator in use
    EXPECT_EQ(noise(), first);
  }
  seed(8);
  const Values other = noise();
  EXPECT_EQ(own.seed(), 3u);
  EXPECT_EQ(own.tick(), 1u);
  seed(8);
  EXPECT_EQ(noise(), other);
  seed(0);
}

TEST(Seeds, AGeneratorMayGoBeforeItsRunCommits) {
  const auto of = [](std::uint64_t value) {
    return run([&] {
             Rng once(value);
             const UseRng use(once);
             return uniform({8});
           })
        .to_host<double>();
  };
  EXPECT_EQ(of(3), of(3));
  EXPECT_NE(of(3), of(4));
  Rng kept(3);
  Rng copy = kept;
  run([&] {
    const UseRng use(kept);
    return uniform({8});
  });
  EXPECT_EQ(kept.tick(), 1u);
  EXPECT_EQ(copy.tick(), 0u) << "a copy goes its own way";
  copy = kept;
  EXPECT_EQ(copy.tick(), 1u);
}

TEST(Devices, TheDeviceOfMainReachesThreads) {
  const Device before = device();
  const auto there = [] {
    Device d{};
    std::thread([&] { d = device(); }).join();
    return d;
  };
  use_device("emu");
  EXPECT_EQ(there(), Device::emu);
  Device own{};
  std::thread([&] {
    use_device("cpu");
    own = device();
  }).join();
  EXPECT_EQ(own, Device::cpu);
  EXPECT_EQ(device(), Device::emu) << "a thread chooses for itself";
  use_device("cpu");
  EXPECT_EQ(there(), Device::cpu);
  use_device(name_of(before));
}

}  // namespace
}  // namespace weft
