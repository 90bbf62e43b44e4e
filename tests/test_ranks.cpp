// Several processes that compute together: how they find each other, what ends them all, and that they compute what one does.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "jit/compiler.h"
#include "jit/json.h"
#include "jit/ranks/ranks.h"
#include "models/language_model.h"
#include "ops/collective.h"
#include "optim/adamw.h"
#include "optim/chunks.h"
#include "optim/data_parallel.h"
#include "optim/shards.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/words_text.h"
#include "tools/system/doctor.h"
#include "tools/system/launch.h"
#include "tools/train/checkpoint.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(LinkOfGpus, IsNamedByWhetherItCarriesAtomics) {
  EXPECT_EQ(describe_link(true, true, 0), "NVLink: each reads the other's memory (performance rank 0)");
  EXPECT_EQ(describe_link(true, false, 1), "PCI Express: each reads the other's memory (performance rank 1)");
  EXPECT_EQ(describe_link(false, false, 0), "through the host: neither reads the other's memory");
}

// ---- who is who -------------------------------------------------------------------------------------------------------------

// Variables of a start, and none of another.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, std::string>>& variables) {
    for (const char* name : {"RANK",
                             "WORLD_SIZE",
                             "LOCAL_RANK",
                             "LOCAL_WORLD_SIZE",
                             "MASTER_ADDR",
                             "MASTER_PORT",
                             "WEFT_TOKEN",
                             "SLURM_PROCID",
                             "SLURM_STEP_NUM_TASKS",
                             "SLURM_LOCALID",
                             "SLURM_NNODES",
                             "SLURM_JOB_ID",
                             "SLURM_STEP_ID",
                             "OMPI_COMM_WORLD_RANK",
                             "OMPI_COMM_WORLD_SIZE",
                             "OMPI_COMM_WORLD_LOCAL_RANK",
                             "OMPI_COMM_WORLD_LOCAL_SIZE",
                             "TORCHELASTIC_USE_AGENT_STORE",
                             "WEFT_RANK_LISTENER",
                             "WEFT_RANK_TIMEOUT"}) {
      if (const char* value = std::getenv(name)) before_.emplace_back(name, value);
      names_.emplace_back(name);
      unsetenv(name);
    }
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const std::string& name : names_) unsetenv(name.c_str());
    for (const auto& [name, value] : before_) setenv(name.c_str(), value.c_str(), 1);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::vector<std::string> names_;
  std::vector<std::pair<std::string, std::string>> before_;
};

TEST(RankPlace, OneProcessHasNone) {
  const Environment none({});
  EXPECT_FALSE(rank_place());
  const Environment shell({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}});  // in an allocation
  EXPECT_FALSE(rank_place());
}

TEST(RankPlace, FollowsWhoeverStartedIt) {
  {
    const Environment torch({{"RANK", "3"},
                             {"WORLD_SIZE", "4"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "2"},
                             {"MASTER_ADDR", "node7"},
                             {"MASTER_PORT", "29500"},
                             {"WEFT_TOKEN", "t"}});
    const RankPlace p = *rank_place();
    EXPECT_EQ(std::vector({p.rank, p.size, p.local_rank, p.local_size, p.port}), std::vector({3, 4, 1, 2, 29500}));
    EXPECT_EQ(p.address + " " + p.token, "node7 t");
    setenv("TORCHELASTIC_USE_AGENT_STORE", "True", 1);  // its store has the port
    EXPECT_EQ(rank_place()->port, 29501);
  }
  {
    const Environment mpi({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}});
    EXPECT_EQ(rank_place()->rank, 1);
    EXPECT_EQ(rank_place()->starter, Starter::mpirun);
  }
  {
    const Environment slurm({{"SLURM_PROCID", "1"},
                             {"SLURM_STEP_NUM_TASKS", "2"},
                             {"SLURM_LOCALID", "1"},
                             {"SLURM_JOB_ID", "1000"},
                             {"SLURM_STEP_ID", "1"}});
    EXPECT_EQ(rank_place()->starter, Starter::slurm);
    const int port = rank_place()->port;
    EXPECT_GT(port, 1024);
    setenv("SLURM_STEP_ID", "2", 1);
    EXPECT_NE(rank_place()->port, port);
    setenv("SLURM_NNODES", "2", 1);
    expect_error(ErrorKind::usage, {"several hosts", "MASTER_ADDR"}, [] { rank_place(); });
  }
}

TEST(RankPlace, VariablesThatMakeNoSense) {
  const auto refused = [](const std::vector<std::pair<std::string, std::string>>& variables, std::vector<std::string> words) {
    const Environment set(variables);
    expect_error(ErrorKind::usage, words, [] { rank_place(); });
  };
  refused({{"RANK", "2"}, {"WORLD_SIZE", "2"}}, {"RANK 2, WORLD_SIZE 2", "count from 0"});
  refused({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, {"RANK", "'-1'"});
  refused({{"RANK", "one"}, {"WORLD_SIZE", "2"}}, {"RANK", "'one'"});
  refused({{"RANK", "0"}}, {"RANK is set and WORLD_SIZE is not"});
  refused({{"RANK", "0"}, {"WORLD_SIZE", "0"}}, {"WORLD_SIZE 0"});
  refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}}, {"MASTER_PORT not set"});
  refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "70000"}}, {"MASTER_PORT 70000"});
  refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "29500"}, {"MASTER_ADDR", "10.0.0.1"}}, {"WEFT_TOKEN"});
  refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}},
          {"0 of 2", "1 of 2", "unset"});
}

// ---- rank 0's server --------------------------------------------------------------------------------------------------------

// What a rank says and hears, without what it computes.
struct Client {
  RankChannel channel;
  std::vector<RankMessage> heard;

  Client(const Listener& at, int rank, int size = 2, const std::string& token = "secret")
      : channel(connect_to("127.0.0.1", at.port, seconds(5))) {
    channel.send(RankMessage::hello,
                 nlohmann::json{{"weft", "ranks 1"}, {"rank", rank}, {"size", size}, {"token", token}}.dump());
  }
  // The next message of this kind; a test that waits for one in vain fails.
  std::string wait_for(RankMessage::Kind kind, int limit_ms = 8000) {
    const auto end = std::chrono::steady_clock::now() + milliseconds(limit_ms);
    bool closed = false;
    while (!closed && std::chrono::steady_clock::now() < end)
      if (const auto m = channel.receive(milliseconds(100), closed); m && m->kind == kind) return m->text;
    ADD_FAILURE() << "no message " << char(kind);
    return {};
  }
  void beat(RankBeat::State state, std::uint64_t changes, const std::string& what = "") {
    channel.send(RankMessage::beat, to_text(RankBeat{state, changes, what}));
  }
  void fact(const std::string& name, const std::string& value, bool compare = true) {
    channel.send(RankMessage::fact, nlohmann::json{{"name", name}, {"value", value}, {"compare", compare}}.dump());
  }
};

class RankServers : public testing::Test {
 protected:
  const Listener listener_ = listen_at("127.0.0.1", 0);
  void serve(RankLimits limits = {}) { server_ = std::make_unique<RankServer>(listener_, 2, "secret", limits); }
  // Both hear of the same end, in which all these words are.
  static void expect_end(Client& a, Client& b, int rank, const std::vector<std::string>& words) {
    for (Client* c : {&a, &b}) {
      const RankEnd end = end_from(c->wait_for(RankMessage::end));
      EXPECT_EQ(end.rank, rank);
      const std::string text = Error(end.kind, end.parts).what();
      for (const std::string& word : words)
        EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in " << text;
    }
  }
  std::unique_ptr<RankServer> server_;
};

TEST_F(RankServers, AllJoinCompareAndLeave) {
  serve();
  {
    Client a(listener_, 0), b(listener_, 1);
    a.wait_for(RankMessage::welcome), b.wait_for(RankMessage::welcome);
    a.fact("the data", "x"), b.fact("the data", "x");
    EXPECT_EQ(a.wait_for(RankMessage::answer), R"(["x","x"])");
    EXPECT_EQ(b.wait_for(RankMessage::answer), R"(["x","x"])");
    a.fact("the GPU", "1", false), b.fact("the GPU", "2", false);
    EXPECT_EQ(b.wait_for(RankMessage::answer), R"(["1","2"])");
    for (int step = 1; step < 4; ++step)
      for (Client* c : {&b, &a}) c->channel.send(RankMessage::step, to_text(StepMark{std::uint64_t(step), 7, "here"}));
    a.channel.send(RankMessage::bye, ""), b.channel.send(RankMessage::bye, "");
    a.wait_for(RankMessage::bye), b.wait_for(RankMessage::bye);
  }
  server_.reset();  // ends by itself
}

TEST_F(RankServers, DifferentFactsNameTheRankAndBothValues) {
  serve();
  Client a(listener_, 0), b(listener_, 1);
  a.fact("the data", "one text"), b.fact("the data", "another");
  expect_end(a, b, -1, {"the ranks differ in the data", "rank 0 has one text", "rank 1 has another"});
}

TEST_F(RankServers, DifferentStepsNameBothCallSites) {
  serve();
  Client a(listener_, 0), b(listener_, 1);
  b.channel.send(RankMessage::step, to_text(StepMark{1, 7, "all_reduce at a.cpp:5"}));
  a.channel.send(RankMessage::step, to_text(StepMark{1, 7, "all_reduce at a.cpp:5"}));
  b.channel.send(RankMessage::step, to_text(StepMark{2, 8, "all_reduce at b.cpp:6"}));
  a.channel.send(RankMessage::step, to_text(StepMark{2, 9, "all_reduce at c.cpp:7"}));
  expect_end(a, b, -1, {"different steps", "step 2", "rank 0: all_reduce at c.cpp:7", "rank 1: all_reduce at b.cpp:6"});
}

TEST_F(RankServers, WrongTokenOtherSizeAndSecondJoin) {
  serve();
  Client a(listener_, 0), b(listener_, 1, 2, "guess");
  expect_end(a, b, -1, {"rank 1 came with another token"});
  server_.reset();
  const Listener second = listen_at("127.0.0.1", 0);
  RankServer other(second, 2, "secret", {});
  Client c(second, 0), d(second, 1, 3);
  expect_end(c, d, -1, {"do not agree how many", "rank 1 of 3"});
  const Listener third = listen_at("127.0.0.1", 0);
  RankServer twice(third, 2, "secret", {});
  Client e(third, 1), f(third, 1);
  expect_end(e, f, -1, {"rank 1 has joined twice"});
}

TEST_F(RankServers, ADeadRankAndItsLastWork) {
  serve();
  Client a(listener_, 0);
  auto b = std::make_unique<Client>(listener_, 1);
  b->wait_for(RankMessage::welcome);
  b->beat(RankBeat::waiting, 3, "all_reduce");
  std::this_thread::sleep_for(milliseconds(50));
  b.reset();
  const RankEnd end = end_from(a.wait_for(RankMessage::end));
  EXPECT_EQ(end.parts.what, "rank 1 has died");
  EXPECT_NE(end.parts.numbers.find("all_reduce"), std::string::npos);
}

TEST_F(RankServers, TheFirstErrorIsTold) {
  serve();
  Client a(listener_, 0), b(listener_, 1);
  b.wait_for(RankMessage::welcome);
  b.channel.send(RankMessage::failed, to_text(RankEnd{1, ErrorKind::io, {"no such file", "x", "", ""}}));
  expect_end(a, b, 1, {"no such file: x"});
}

TEST_F(RankServers, ARankThatHangsOrIsSilent) {
  serve({seconds(5), seconds(2), seconds(5)});
  Client a(listener_, 0), b(listener_, 1);
  a.wait_for(RankMessage::welcome);
  for (int k = 0; k < 40; ++k) {  // both are heard of, and nothing changes
    a.beat(RankBeat::waiting, 5, "all_reduce"), b.beat(RankBeat::host, 9);
    std::this_thread::sleep_for(milliseconds(100));
  }
  expect_end(a, b, -1, {"rank 1 hangs", "rank 0 waits: all_reduce", "WEFT_RANK_TIMEOUT"});
  const Listener second = listen_at("127.0.0.1", 0);
  RankServer other(second, 2, "secret", {seconds(5), seconds(20), seconds(2)});
  Client c(second, 0), d(second, 1);
  c.wait_for(RankMessage::welcome);
  for (int k = 0; k < 30; ++k) c.beat(RankBeat::busy, 1, "saving"), std::this_thread::sleep_for(milliseconds(100));
  expect_end(c, d, -1, {"rank 1 is silent"});
}

TEST_F(RankServers, ARankThatNeverComes) {
  serve({seconds(1), seconds(2), seconds(5)});
  Client a(listener_, 0);
  const RankEnd end = end_from(a.wait_for(RankMessage::end));
  EXPECT_EQ(end.parts.what, "not all ranks have joined");
  EXPECT_NE(end.parts.numbers.find(": 1"), std::string::npos) << end.parts.numbers;
}

// What comes to the port may be anything.
TEST_F(RankServers, StrangersAreNoHarm) {
  serve();
  std::vector<std::unique_ptr<RankChannel>> strangers;
  for (const char* hello : {"", "[1]", "{", "null", R"({"weft": 3})", R"({"weft": ["ranks 1"], "rank": {}})"}) {
    strangers.push_back(std::make_unique<RankChannel>(connect_to("127.0.0.1", listener_.port, seconds(5))));
    strangers.back()->send(RankMessage::hello, hello);
  }
  RankChannel late(connect_to("127.0.0.1", listener_.port, seconds(5)));
  Client a(listener_, 0), b(listener_, 1);
  a.wait_for(RankMessage::welcome), b.wait_for(RankMessage::welcome);
  // Not even one that knows how ranks speak, once all have joined.
  late.send(RankMessage::hello, R"({"weft": "ranks 1", "rank": 1, "size": 2, "token": "guess"})");
  bool closed = false;
  const auto answer = late.receive(seconds(5), closed);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->kind, RankMessage::end);
  EXPECT_NE(answer->text.find("another token"), std::string::npos) << answer->text;
  for (const char* fact : {"[]", "3", R"({"name": 1, "value": {}, "compare": "yes"})"}) {
    for (Client* c : {&a, &b}) c->channel.send(RankMessage::fact, fact);
    a.wait_for(RankMessage::answer), b.wait_for(RankMessage::answer);
  }
  a.fact("the data", "x"), b.fact("the data", "x");
  EXPECT_EQ(a.wait_for(RankMessage::answer), R"(["x","x"])");
  const RankEnd end = end_from(R"({"rank": "one", "kind": [], "what": 5})");
  EXPECT_EQ(end.rank, -1);
  EXPECT_EQ(end.kind, ErrorKind::device);
}

// Whoever comes when all is over hears why.
TEST_F(RankServers, ALateRankHearsOfTheEnd) {
  serve();
  Client b(listener_, 1, 2, "guess");
  b.wait_for(RankMessage::end);
  Client a(listener_, 0);
  EXPECT_EQ(end_from(a.wait_for(RankMessage::end)).kind, ErrorKind::usage);
}

TEST_F(RankServers, ATakenPort) {
  expect_error(ErrorKind::io, {"cannot listen", std::to_string(listener_.port), "MASTER_PORT"},
               [&] { listen_at("127.0.0.1", listener_.port); });
  serve({seconds(1), seconds(2), seconds(5)});
}

// ---- a group of one ---------------------------------------------------------------------------------------------------------

class GroupOfOne : public testing::Test {
 protected:
  GroupOfOne() : set_({{"RANK", "0"}, {"WORLD_SIZE", "1"}}), group_(Ranks::join()) { EXPECT_TRUE(group_); }
  ~GroupOfOne() override {
    if (Ranks* ranks = Ranks::joined()) ranks->leave();
  }
  Environment set_;
  std::unique_ptr<Ranks> group_;  // a process keeps its own until it ends; here one follows the other
};

TEST_F(GroupOfOne, CollectivesAreNodesOfThePlan) {
  const Tensor x = Tensor::from<float>({1, 2, 3, 4, 5, 6}, {3, 2});
  const auto values = run([&] {
    return std::vector{all_reduce(x * 2.0), broadcast_from(x), all_gather(x), reduce_scatter(x)};
  });
  EXPECT_EQ(values[0].to_host<float>(), std::vector<float>({2, 4, 6, 8, 10, 12}));
  for (int k = 1; k < 4; ++k) EXPECT_EQ(values[std::size_t(k)].to_host<float>(), x.to_host<float>()) << k;
  std::vector<std::string> names;
  for (const KernelRecord& k : last_kernels()) names.push_back(k.name);
  for (const char* name : {"all_reduce", "broadcast", "all_gather", "reduce_scatter"})
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
}

TEST_F(GroupOfOne, GradientsGoThrough) {
  const Tensor x = Tensor::from<double>({1, 2, 3, 4}, {4});
  const auto g = run([&] {
    const Tensor a = x * 1.0;
    return grad(sum(square(all_reduce(a))) + sum(square(broadcast_from(a))) + sum(square(all_gather(a))) +
                    sum(square(reduce_scatter(a))),
                {a});
  });
  EXPECT_EQ(g[0].to_host<double>(), std::vector<double>({8, 16, 24, 32}));
}

TEST_F(GroupOfOne, BadInput) {
  expect_error(ErrorKind::usage, {"all_gather", "no first axis"}, [] { all_gather(Tensor::from<float>({1}, {})); });
  expect_error(ErrorKind::usage, {"no such rank", "1 of 1"}, [] { broadcast_from(Tensor::from<float>({1}, {1}), 1); });
  expect_error(ErrorKind::usage, {"sum of booleans"}, [] { all_reduce(Tensor::from<bool>({true}, {1})); });
}

// Gradients are the same bits, in buckets of any size, and pending ones are in them.
TEST_F(GroupOfOne, SummedGradientsAreThose) {
  seed(3);
  std::vector<Param> params = {Param({5, 3}), Param({7}), Param({2, 2})};
  for (Param& p : params) p.set(std::vector<float>(std::size_t(p.shape().numel()), 0.5f));
  const auto step = [&](std::size_t bucket) {
    for (Param& p : params) p.zero_grad();
    const auto loss = [&] { return sum(square(params[0].read())) + sum(exp(params[1].read())) + sum(params[2].read() * 3.0); };
    run([&] { backward(loss()); });  // stays pending
    return run([&] {
      backward(loss());
      std::vector<Tensor> out;
      out = bucket ? sum_gradients(params, std::vector{loss()}, {.bucket_bytes = bucket}) : std::vector{loss()};
      for (const Param& p : params) out.push_back(take_gradient(p));
      return out;
    });
  };
  const auto expected = step(0);
  for (const std::size_t bucket : {std::size_t(1), std::size_t(64), std::size_t(1) << 20}) {
    const auto got = step(bucket);
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t k = 0; k < got.size(); ++k) EXPECT_EQ(got[k].to_host<float>(), expected[k].to_host<float>()) << k;
  }
}

// ---- a part of the optimizer's state for each rank
// ----------------------------------------------------------------------------

// Each element belongs to one rank, tensors do not overlap, and a chunk is never cut.
TEST(ShardsOfMoments, EachElementHasOneRank) {
  const std::vector<std::int64_t> sizes = {7, 8192, 3, 20000, 1, 8191, 16384, 9, 0, 4, 100000, 8193};
  std::vector<int> order(sizes.size());
  for (std::size_t k = 0; k < order.size(); ++k) order[k] = int(order.size() - 1 - k);
  for (const std::int64_t bucket : {1, 30000, 1 << 20})
    for (const int ranks : {1, 2, 3, 4, 8}) {
      const Shards shards = cut_into_shards(sizes, order, ranks, bucket);
      std::int64_t size = 0;
      for (const Shards::Bucket& b : shards.buckets) {
        EXPECT_EQ(b.first, size);
        EXPECT_EQ(b.part % kChunk, 0);
        size += b.part;
      }
      EXPECT_EQ(shards.size, size);
      std::vector<std::vector<int>> kept(std::size_t(ranks), std::vector<int>(std::size_t(shards.size)));
      for (std::size_t t = 0; t < sizes.size(); ++t) {
        const auto [bucket_of, at] = shards.places[t];
        const auto [part, first] = shards.buckets[std::size_t(bucket_of)];
        std::int64_t next = 0;  // ranks follow each other
        for (int r = 0; r < ranks; ++r) {
          const Shard s = shard_of(at, sizes[t], part, r);
          if (s.begin == s.end) continue;
          EXPECT_EQ(s.begin, next);
          EXPECT_TRUE(s.end == sizes[t] || s.end % kChunk == 0) << t;
          EXPECT_EQ(s.at % 4, 0);
          next = s.end;
          for (std::int64_t i = s.at; i < s.at + s.end - s.begin; ++i) ++kept[std::size_t(r)][std::size_t(first + i)];
        }
        EXPECT_EQ(next, sizes[t]) << t;
      }
      for (const auto& of_rank : kept)
        for (const int tensors : of_rank) ASSERT_LE(tensors, 1);
    }
}

// The same steps by an optimizer with all of its state and by one that is sharded: parameters, norms and moments have the same
// bits. Each rank scales its gradients.
void expect_equal_updates(int rank, bool one_without_gradient, bool bf16 = false) {
  const std::vector<std::int64_t> sizes = {20000, 5, 8192, 3, 30000};
  const auto params = [&] {
    std::vector<Param> all;
    for (std::size_t k = 0; k < sizes.size(); ++k) {
      all.emplace_back(Shape{sizes[k]}, DType::f32, "p" + std::to_string(k));
      std::vector<float> values(static_cast<std::size_t>(sizes[k]));
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * float((i * 37 + k) % 101) - 0.5f;
      all.back().set(values);
    }
    all[2].set_decay(false);
    all[3].set_trainable(false);
    all.emplace_back(Shape{3, 5}, DType::f32, "matrix");  // which a product reads in bf16
    all.back().set(std::vector<float>(15, 0.3f));
    return all;
  };
  std::vector<Param> a = params(), b = params();
  const AdamWOptions options = {.lr = 0.01, .clip_norm = 0.5, .on_bad_step = OnBadStep::poll};
  AdamWOptions cut = options;
  cut.sharded = true, cut.sums = {.bucket_bytes = 4 * 30000, .bf16 = bf16};
  AdamW whole(a, options), sharded(b, cut);
  const Tensor x = Tensor::from(std::vector<float>(10, 0.7f), {2, 5});
  const double weight = 1.25 + rank;  // 1 and 2 would be structure, which all ranks have alike
  const auto loss = [&](const std::vector<Param>& p, int step, double factor) {
    Tensor sum_of = sum(exp(p[0].read())) + sum(square(p[1].read())) * 3.0 + sum(square(p[4].read()) * p[4].read()) +
                    sum(square(cast(linear(cast(x, DType::bf16), p[5].read()), DType::f32)));
    if (!one_without_gradient || step != 1) sum_of = sum_of + sum(sin(p[2].read()));
    return sum_of * (weight * factor);
  };
  for (int step = 0; step < 4; ++step) {
    const double factor = step == 2 ? std::numeric_limits<double>::infinity() : 1;  // a step that is left out
    const Tensor norm = run([&] {
      backward(loss(a, step, factor));
      sum_gradients(a, {}, {.bf16 = bf16});
      whole.step();
      return whole.grad_norm();
    });
    const Tensor norm_of_parts = run([&] {
      backward(loss(b, step, factor));
      sharded.step();
      return sharded.grad_norm();
    });
    if (step == 2) {
      EXPECT_EQ(whole.bad_step(), 3);
      EXPECT_EQ(sharded.bad_step(), 3);
      whole.clear_bad_step(), sharded.clear_bad_step();
    } else {
      EXPECT_EQ(norm.item(), norm_of_parts.item()) << step;
    }
    for (std::size_t k = 0; k < a.size(); ++k) EXPECT_EQ(a[k].to_host<float>(), b[k].to_host<float>()) << step << " " << k;
    if (step != 0) continue;
    const TensorMap saved = whole.state_dict(), of_parts = sharded.state_dict();
    if (rank == 0) {
      ASSERT_EQ(saved.size(), of_parts.size());
      for (const auto& [name, tensor] : saved) EXPECT_EQ(tensor.bytes, of_parts.at(name).bytes) << name;
    } else {
      EXPECT_TRUE(of_parts.empty());
    }
    sharded.load_state_dict(saved);  // each takes its part
  }
  EXPECT_EQ(sharded.step_count(), 4);
}

// Gradients travel while backward goes on, rounded before or not.
TEST_F(GroupOfOne, ExchangesAreAsEarlyAsTheirGradients) {
  std::vector<Param> params;
  for (int k = 0; k < 6; ++k) {
    params.emplace_back(Shape{8, 8});
    params.back().set(std::vector<float>(64, 0.1f));
  }
  const Tensor x = Tensor::from(std::vector<float>(32, 0.5f), {4, 8});
  for (const bool bf16 : {false, true}) {
    AdamW optimizer(params);
    run([&] {
      Tensor h = x;
      for (const Param& p : params) h = tanh(matmul(h, p.read()));
      backward(sum(h));
      sum_gradients(params, {}, {.bucket_bytes = 1, .bf16 = bf16});
      optimizer.step();
    });
    int exchanges = 0, between = 0, behind = 0;  // kernels of backward, between the first exchange and the last
    for (const KernelRecord& k : last_kernels()) {
      if (k.name == "all_reduce")
        ++exchanges, between = behind;
      else if (exchanges > 0 && k.name.find("cast") == std::string::npos && k.name.find("concat") == std::string::npos)
        ++behind;
    }
    EXPECT_EQ(exchanges, 6) << bf16;
    EXPECT_GE(between, 5) << bf16;
  }
}

TEST(Buckets, GetSmallAtTheEnd) {
  EXPECT_EQ(bucket_limit(1000, 100), 100);
  EXPECT_EQ(bucket_limit(150, 100), 75);
  EXPECT_EQ(bucket_limit(8, 100), 12);
}

// Of gradients in bf16 the optimizer makes what it makes of the same numbers in f32.
TEST_F(GroupOfOne, GradientsInBf16) {
  const auto updated = [](bool bf16) {
    Param p({40});
    p.set(std::vector<float>(40, 1.f));
    std::vector<float> slopes(40);
    for (std::size_t i = 0; i < slopes.size(); ++i) slopes[i] = float(i) * (bf16 ? 1.001f : 1.f);  // rounded it is i
    const Tensor slope = Tensor::from(slopes, {40});
    AdamW optimizer({p});
    run([&] {
      backward(sum(p.read() * slope));
      sum_gradients(std::vector{p}, {}, {.bf16 = bf16});
      optimizer.step();
    });
    return p.to_host<float>();
  };
  EXPECT_EQ(updated(true), updated(false));
}

TEST(AdamW, TakesGradientsInBf16AtAnyPlace) {
  const auto updated = [](bool shifted) {
    std::vector<Param> params = {Param({3000}), Param({40, 33})};
    params[0].set(std::vector<float>(3000, 0.1f));
    params[1].set(std::vector<float>(1320, 0.2f));
    const Tensor x = Tensor::from(std::vector<float>(66, 0.7f), {2, 33});
    AdamW optimizer(params);
    run([&] {
      backward(sum(exp(params[0].read())) + sum(square(cast(linear(cast(x, DType::bf16), params[1].read()), DType::f32))));
      for (const Param& p : params) {
        const std::int64_t n = p.shape().numel();
        Tensor g = cast(reshape(take_gradient(p), {n}), DType::bf16);
        if (shifted) g = slice(pad(g, 0, 1, 0), 0, 1, n + 1);
        put_gradient(p, reshape(g, p.shape()));
      }
      optimizer.step();
    });
    return std::vector{params[0].to_host<float>(), params[1].to_host<float>()};
  };
  EXPECT_EQ(updated(true), updated(false));
}

TEST_F(GroupOfOne, AShardedUpdateHasTheSameBits) {
  expect_equal_updates(0, false);
  expect_equal_updates(0, true);
  expect_equal_updates(0, false, true);
}

TEST_F(GroupOfOne, AShardedUpdateOnTheEmulatedDevice) {
  if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
  const Device before = device();
  use_device("emu");
  expect_equal_updates(0, true);
  expect_equal_updates(0, false, true);
  use_device(std::string(name_of(before)));
}

// ---- noise ------------------------------------------------------------------------------------------------------------------

TEST(BatchRows, DrawsAreThoseOfTheWholeBatch) {
  const auto drawn = [](std::int64_t rows) {
    seed(5);
    return run([&] {
      const Tensor q = ones({rows, 1, 6, 8}, DType::f32), v = ones({rows, 1, 6, 8}, DType::f32);
      return std::vector{uniform({rows, 3}), normal({rows, 2}), uniform({7}), dropout(ones({rows, 5}, DType::f32), 0.5),
                         attention(q, q, v, {.weight = dropped(0.5)})};
    });
  };
  const auto whole = drawn(4);
  for (const std::int64_t first : {0, 2}) {
    const BatchRows cut(first, 2);
    const auto part = drawn(2);
    for (std::size_t k = 0; k < part.size(); ++k) {
      const auto all = whole[k].to_host<float>(), mine = part[k].to_host<float>();
      const std::size_t at = k == 2 ? 0 : std::size_t(first) * all.size() / 4;  // what is no batch is the same everywhere
      ASSERT_EQ(mine.size(), k == 2 ? all.size() : all.size() / 2);
      for (std::size_t i = 0; i < mine.size(); ++i) EXPECT_EQ(mine[i], all[at + i]) << k << " " << i;
    }
  }
  EXPECT_EQ(drawn(4)[0].to_host<float>(), whole[0].to_host<float>());
}

// ---- under mpirun: run by the suites below ----------------------------------------------------------------------------------

class UnderMpi : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::getenv("OMPI_COMM_WORLD_SIZE")) GTEST_SKIP() << "not started by mpirun";
    ranks_ = Ranks::join();
  }
  Ranks* ranks_ = nullptr;
};

TEST_F(UnderMpi, CollectivesComputeWhatTheySay) {
  const int n = ranks_->size(), r = ranks_->rank();
  for (const std::int64_t rows : {std::int64_t(1), std::int64_t(5), std::int64_t(20000)}) {  // small, and in parts
    std::vector<float> mine(std::size_t(rows * n * 2));
    for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = float(i % 1000) * 0.25f + float(r);
    const Tensor x = Tensor::from(mine, {rows * n, 2});
    const auto out = run([&] {
      return std::vector{all_reduce(x), broadcast_from(x, n - 1), all_gather(x), reduce_scatter(x)};
    });
    const auto sum = out[0].to_host<float>(), from_last = out[1].to_host<float>(), all = out[2].to_host<float>(),
               part = out[3].to_host<float>();
    ASSERT_EQ(all.size(), mine.size() * std::size_t(n));
    ASSERT_EQ(part.size(), mine.size() / std::size_t(n));
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const float base = float(i % 1000) * 0.25f, whole = base * float(n) + float(n * (n - 1) / 2);
      ASSERT_EQ(sum[i], whole) << i;
      ASSERT_EQ(from_last[i], base + float(n - 1)) << i;
      for (int k = 0; k < n; ++k) ASSERT_EQ(all[std::size_t(k) * mine.size() + i], base + float(k)) << i;
      const std::size_t first = std::size_t(r) * part.size();
      if (i >= first && i < first + part.size()) {
        ASSERT_EQ(part[i - first], whole) << i;
      }
    }
  }
}

TEST_F(UnderMpi, GradientsGoToTheRanks) {
  const int n = ranks_->size(), r = ranks_->rank();
  const Tensor x = Tensor::from<double>({1.0 + r, 2.0}, {2});
  const Tensor mine = Tensor::from<double>({10.0 * (r + 1)}, {1});
  const auto g = run([&] {
    const Tensor a = x * 1.0;
    return std::vector{grad(sum(all_reduce(a)) * mine, {a})[0], grad(sum(broadcast_from(a, 1)) * mine, {a})[0],
                       grad(sum(all_gather(a)) * mine, {a})[0]};
  });
  const double all = 10.0 * n * (n + 1) / 2;  // each rank's loss weighs 10 (r + 1)
  EXPECT_EQ(g[0].to_host<double>(), std::vector<double>({all, all}));
  EXPECT_EQ(g[1].to_host<double>(), std::vector<double>(2, r == 1 ? all : 0));
  EXPECT_EQ(g[2].to_host<double>(), std::vector<double>({all, all}));
}

TEST_F(UnderMpi, AShardedUpdateHasTheSameBits) {
  expect_equal_updates(ranks_->rank(), false);
  expect_equal_updates(ranks_->rank(), true);
  expect_equal_updates(ranks_->rank(), true, true);
}

// Losses of 20 steps in fp64 into WEFT_TEST_LOSSES, by rank 0.
TEST_F(UnderMpi, TrainsInDoublePrecision) {
  const std::int64_t rows = 8 / ranks_->size(), first = rows * ranks_->rank();
  const auto model =
      model_family("mamba").from_options({{"width", std::int64_t(16)}, {"layers", std::int64_t(2)}, {"state", std::int64_t(4)}},
                                         {.size = 11}, {.dtype = DType::f64});
  seed(4);
  model->initialise();
  AdamW optimizer(model->parameters());
  const std::vector<Param> params = model->parameters();
  std::ofstream out;
  if (ranks_->rank() == 0) out.open(std::getenv("WEFT_TEST_LOSSES"));
  out.precision(17);
  for (int step = 0; step < 20; ++step) {
    std::vector<std::int64_t> inputs, targets;
    for (std::int64_t row = first; row < first + rows; ++row)
      for (int t = 0; t < 12; ++t) {
        inputs.push_back((row * 5 + t * t + step) % 11);
        targets.push_back((row * 5 + (t + 1) * (t + 1) + step) % 11);
      }
    const Tensor ids = Tensor::from(inputs, {rows, 12}), wanted = Tensor::from(targets, {rows, 12});
    const Tensor loss = run([&] {
      const Tensor own = cross_entropy((*model)(ids), wanted) * (1.0 / ranks_->size());
      backward(own);
      const Tensor total = sum_gradients(params, std::vector{own}, {.bucket_bytes = 4096})[0];
      optimizer.step();
      return total;
    });
    if (out.is_open())
      out << loss.item() << "\n";
    else
      loss.item();
  }
}

// Rank 1 records another step.
TEST_F(UnderMpi, RunsAnotherStep) {
  const Tensor x = Tensor::from<float>({1, 2, 3}, {3});
  for (int step = 0; step < 3; ++step)
    run([&] { return all_reduce(step == 2 && ranks_->rank() == 1 ? sqrt(x) : exp(x)); }).to_host<float>();
}

// ---- started by weft --------------------------------------------------------------------------------------------------------

// What the ranks do that the tests below start.
class UnderLauncher : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::getenv("WEFT_TEST_LAUNCHED")) GTEST_SKIP() << "not started by launch_ranks";
    ranks_ = Ranks::join();
    ASSERT_NE(ranks_, nullptr);
  }
  Ranks* ranks_ = nullptr;
};

TEST_F(UnderLauncher, Meet) {
  ranks_->agree("the weather", "fine");
  EXPECT_EQ(ranks_->gather("the rank", std::to_string(ranks_->rank())), std::vector<std::string>({"0", "1", "2"}));
  EXPECT_EQ(ranks_->share("a word", ranks_->rank() == 0 ? "first" : "other"), "first");
  EXPECT_EQ(ranks_->local_rank(), ranks_->rank());
  ranks_->leave();
}

TEST_F(UnderLauncher, OneIsKilled) {
  ranks_->agree("the weather", "fine");
  if (ranks_->rank() == 1) raise(SIGKILL);
  expect_error(ErrorKind::device, {"rank 1 has died"}, [&] { ranks_->agree("the end", "never"); });
}

TEST_F(UnderLauncher, TheyDiffer) {
  const std::string own = std::to_string(ranks_->rank());
  expect_error(ErrorKind::usage, {"differ in the number", "rank 0 has 0, rank 1 has 1"},
               [&] { ranks_->agree("the number", own); });
}

class Launcher : public testing::Test {
 protected:
  Launcher() : none_({}) {
    setenv("WEFT_TEST_LAUNCHED", "1", 1);
    for (const char* name : {"GTEST_TOTAL_SHARDS", "GTEST_SHARD_INDEX"})
      unsetenv(name);  // the ranks' one test is each of theirs
  }
  ~Launcher() override { unsetenv("WEFT_TEST_LAUNCHED"); }
  static int launch(const std::string& test) { return launch_ranks(3, {"weft_tests", "--gtest_filter=UnderLauncher." + test}); }
  const Environment none_;
};

TEST_F(Launcher, StartsRanksThatMeet) { EXPECT_EQ(launch("Meet"), 0); }
TEST_F(Launcher, TellsThatOneWasKilled) { EXPECT_EQ(launch("OneIsKilled"), 3); }
TEST_F(Launcher, RanksThatDifferAllHearOfIt) { EXPECT_EQ(launch("TheyDiffer"), 0); }

// ---- programs ---------------------------------------------------------------------------------------------------------------

class SlowRanks : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    if (IsSkipped()) return;
    if (weft::shell("command -v mpirun", folder_.path()).code != 0)
      GTEST_SKIP() << "mpirun is missing: apt-get install openmpi-bin libopenmpi3";
    folder_.write("text.txt", words_text(6000));
  }
  // Few processors are enough: who waits sleeps.
  static std::string mpirun(int ranks) {
    return "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 timeout 200 "
           "mpirun --oversubscribe --bind-to none -n " +
           std::to_string(ranks) + " ";
  }
  static std::string tests(const std::string& filter) {
    return "'" + fs::read_symlink("/proc/self/exe").string() + "' --gtest_color=no --gtest_filter='" + filter + "'";
  }
  static std::string train_on(const std::string& device, const std::string& more) {
    const auto unless_given = [&](const std::string& name, const std::string& value) {
      return more.find(name) == std::string::npos ? name + " " + value + " " : "";
    };
    return "weft-program train --device " + device +
           " --data text.txt --layers 1 --state 4 --length 16 --sample 0 --eval-batches 2 " + unless_given("--width", "16") +
           unless_given("--batch", "4") + unless_given("--steps", "20") + more;
  }
  static std::string train(const std::string& more) { return train_on("cpu", more); }
  // Other programs of this machine are left alone: the name of the folder is in no other command line.
  std::string own_run() const { return (folder_ / "run").string(); }
  std::string newest_rank() const {
    return "$(for p in $(pgrep -f -- " + own_run() + "); do [ \"$(cat /proc/$p/comm)\" = weft ] && echo $p; done | tail -n 1)";
  }
  Outcome run_all(int ranks, std::string words) const {
    const std::string name = "weft-program", program = std::getenv("WEFT_PROGRAM");
    for (std::size_t at; (at = words.find(name)) != std::string::npos;) words.replace(at, name.size(), program);
    return shell((ranks > 0 ? mpirun(ranks) : "OMP_NUM_THREADS=1 ") + words);
  }
  std::vector<double> losses(const std::string& run, const char* key = "loss") const {
    std::vector<double> out;
    std::ifstream in(folder_ / run / "metrics.jsonl");
    for (std::string line; std::getline(in, line);)
      if (const auto j = nlohmann::json::parse(line); j.contains(key)) out.push_back(j.at(key));
    return out;
  }
  void expect_close(const std::vector<double>& a, const std::vector<double>& b, double tolerance, std::size_t count) const {
    ASSERT_EQ(a.size(), count);
    ASSERT_EQ(b.size(), count);
    for (std::size_t k = 0; k < count; ++k) EXPECT_NEAR(a[k], b[k], tolerance * std::abs(b[k])) << k;
  }
};

TEST_F(SlowRanks, CollectivesOfTwoAndFour) {
  for (const int n : {2, 4})
    expect_words(run_all(n, tests("UnderMpi.Coll*:UnderMpi.Grad*:UnderMpi.AShard*")), 0, {"PASSED  ] 3 tests"});
}

TEST_F(SlowRanks, LossesDoNotDependOnTheNumberOfRanksInDouble) {
  std::map<int, std::vector<double>> all;
  for (const int n : {1, 2, 4}) {
    const std::string file = (folder_ / ("losses" + std::to_string(n))).string();
    expect_words(run_all(n, "-x WEFT_TEST_LOSSES='" + file + "' " + tests("UnderMpi.TrainsInDouble*")), 0, {"PASSED"});
    std::ifstream in(file);
    for (double loss; in >> loss;) all[n].push_back(loss);
  }
  for (const int n : {2, 4}) expect_close(all[n], all[1], 1e-10, 20);
  EXPECT_LT(all[1].back(), all[1].front());
}

TEST_F(SlowRanks, TrainingDoesNotDependOnTheNumberOfRanks) {
  expect_words(run_all(0, train("--out one")), 0, {"validation loss"});
  expect_words(run_all(2, train("--out two")), 0, {"ranks: 2, each with 2 of the 4 windows", "Open MPI"});
  expect_words(run_all(2, train("--out again")), 0, {});
  expect_words(run_all(4, train("--out four")), 0, {});
  EXPECT_EQ(losses("two"), losses("again"));  // bit for bit
  for (const char* run : {"two", "four"}) {
    expect_close(losses(run), losses("one"), 1e-5, 20);
    expect_close(losses(run, "validation_loss"), losses("one", "validation_loss"), 1e-5, 1);
  }
  const auto weights = [&](const std::string& run) {
    return shell("sha256sum < " + run + "/checkpoints/step-20/model.safetensors").text;
  };
  EXPECT_EQ(weights("two"), weights("again"));
}

// Rejected texts too, of which each rank writes its part.
TEST_F(SlowRanks, OrpoDoesNotDependOnTheNumberOfRanks) {
  expect_words(run_all(0, train("--out one")), 0, {});
  const auto prefer = [](const std::string& out) {
    return "weft-program train --device cpu --stage orpo --from one --reject sample --response 4 --steps 6 --lr 1e-2 --warmup "
           "1 "
           "--sample 0 --eval-batches 2 --out " +
           out;
  };
  expect_words(run_all(0, prefer("alone")), 0, {"of the pairs held out"});
  expect_words(run_all(2, prefer("two")), 0, {"ranks: 2, each with 2 of the 4 windows", "of the pairs held out"});
  for (const char* key : {"loss", "log_odds_chosen", "rewards/accuracies", "logits/rejected"})
    expect_close(losses("two", key), losses("alone", key), 1e-4, 6);
  for (const char* key : {"validation_loss", "eval_log_odds_chosen", "eval_rewards/accuracies"})
    expect_close(losses("two", key), losses("alone", key), 1e-4, 2);
  EXPECT_EQ(shell("cmp alone/latest/sampled.safetensors two/latest/sampled.safetensors").code, 0);
}

TEST_F(SlowRanks, GoesOnWithAnotherNumberOfRanks) {
  expect_words(run_all(0, train("--out whole")), 0, {});
  expect_words(run_all(2, train("--steps 10 --out run")), 0, {});
  expect_words(run_all(0, "weft-program train --resume run --steps 15"), 0, {"resumed after step 10"});
  expect_words(run_all(2, "weft-program train --resume run --steps 20"), 0, {"resumed after step 15"});
  // The schedule's end moved twice: only where it was the same are the losses.
  const auto a = losses("run"), b = losses("whole");
  ASSERT_EQ(a.size(), 20u);
  for (int k = 0; k < 10; ++k) EXPECT_NEAR(a[std::size_t(k)], b[std::size_t(k)], 1e-3 * b[std::size_t(k)]) << k;
}

// Each rank with a part of the optimizer's state: the bits are those without, and a checkpoint is that of one process, which
// goes on with any number of ranks, sharded or not.
TEST_F(SlowRanks, ShardedStateChangesNoBit) {
  const std::string more = " --width 64 --save-every 10 --keep 0 --accumulate 2";  // several chunks
  expect_words(run_all(2, train("--out plain" + more)), 0, {"--zero divides them"});
  expect_words(run_all(2, train("--zero --out zero" + more)), 0, {"which are a part of all", "memory of each rank"});
  EXPECT_EQ(losses("plain"), losses("zero"));
  for (const char* step : {"step-10", "step-20"})
    for (const char* file : {"model.safetensors", "optimizer.safetensors"})
      expect_words(shell("cmp plain/checkpoints/" + std::string(step) + "/" + file + " zero/checkpoints/" + step + "/" + file),
                   0, {});
  EXPECT_EQ(nlohmann::json::parse(std::ifstream(folder_ / "zero/summary.json")).at("memory_bytes_of_ranks").size(), 2u);
  // From the middle, where each start does it in another way.
  const auto resumed = [&](int ranks, const std::string& words) {
    expect_words(run_all(ranks, "weft-program train --resume run " + words), 0, {"resumed after"});
  };
  expect_words(run_all(2, train("--zero --width 64 --save-every 5 --out run --steps 5")), 0, {});
  resumed(0, "--steps 10");
  resumed(2, "--steps 15");
  resumed(4, "--zero=false --steps 20");
  resumed(2, "--zero --steps 25");
  expect_words(run_all(0, train("--width 64 --save-every 5 --out one --steps 5")), 0, {});
  for (const char* steps : {"10", "15", "20", "25"})
    expect_words(run_all(0, std::string("weft-program train --resume one --steps ") + steps), 0, {});
  expect_close(losses("run"), losses("one"), 1e-5, 25);
}

// Gradients in bf16 are an option, which costs digits.
TEST_F(SlowRanks, GradientsInBf16) {
  expect_words(run_all(2, train("--out whole")), 0, {});
  expect_words(run_all(2, train("--exchange bf16 --out rounded")), 0, {});
  expect_words(run_all(2, train("--exchange bf16 --zero --out zero")), 0, {});
  EXPECT_EQ(losses("rounded"), losses("zero"));
  EXPECT_NE(losses("rounded"), losses("whole"));
  expect_close(losses("rounded"), losses("whole"), 2e-3, 20);
}

TEST_F(SlowRanks, EvaluatesAsOneProcess) {
  expect_words(run_all(0, train("--out run")), 0, {});
  const std::string words = "weft-program eval --from run --device cpu --data text.txt --part all --batch 4 --length 16";
  const Outcome one = run_all(0, words);
  expect_words(one, 0, {"loss", "perplexity"});
  for (const int n : {2, 4}) EXPECT_EQ(run_all(n, words).text, one.text) << n;
  // A batch that cannot be cut in two is made larger: it is not the user's business.
  EXPECT_EQ(run_all(2, "weft-program eval --from run --device cpu --data text.txt --part all --batch 3 --length 16").text,
            one.text);
}

TEST_F(SlowRanks, BenchOfCollectives) {
  expect_words(run_all(2, "weft-program bench collectives --device cpu --smoke --json rows.json"), 0,
               {"2 ranks over Open MPI", "all_reduce", "reduce_scatter"});
  const auto rows = nlohmann::json::parse(std::ifstream(folder_ / "rows.json")).at("rows");
  ASSERT_FALSE(rows.empty());
  for (const auto& row : rows) {
    EXPECT_EQ(row.at("ranks"), 2);
    EXPECT_GT(row.at("us"), 0);
    EXPECT_GT(row.at("bus_gbps"), 0);
  }
  expect_words(run_all(0, "weft-program bench collectives --device cpu --smoke"), 2, {"collectives need ranks"});
}

// It is alone with what is wrong, so it says so, though it is not rank 0.
TEST_F(SlowRanks, ARankThatDoesNotKnowItsPlaceSaysSo) {
  expect_words(run_all(0, "RANK=2 WORLD_SIZE=2 " + train("--out run")), 2, {"RANK 2, WORLD_SIZE 2", "ranks count from 0"});
}

TEST_F(SlowRanks, AnotherStepEndsAll) {
  const Outcome o = run_all(2, tests("UnderMpi.RunsAnother*"));
  EXPECT_NE(o.code, 0);
  for (const char* word : {"the ranks run different steps", "rank 0: all_reduce", "rank 1: all_reduce", "test_ranks.cpp"})
    EXPECT_NE(o.text.find(word), std::string::npos) << word << "\n" << o.text;
}

TEST_F(SlowRanks, OptionsThatDifferAndBatchesThatCannotBeCut) {
  const Outcome differ = run_all(0, mpirun(1) + train("--seed 1") + " : -n 1 " + train("--seed 2"));
  EXPECT_NE(differ.code, 0);
  for (const char* word : {"the ranks differ in --seed", "rank 0 has 1, rank 1 has 2"})
    EXPECT_NE(differ.text.find(word), std::string::npos) << word << "\n" << differ.text;
  const Outcome cut = run_all(2, train("--batch 3"));
  EXPECT_NE(cut.code, 0);
  EXPECT_NE(cut.text.find("batch 3, 2 ranks"), std::string::npos) << cut.text;
  EXPECT_EQ(cut.text.find("batch 3, 2 ranks"), cut.text.rfind("batch 3, 2 ranks")) << "said twice: " << cut.text;
}

// A rank that is killed ends the other, and the run goes on from its last checkpoint.
TEST_F(SlowRanks, AKilledRankEndsAll) {
  const Outcome o =
      run_all(0, "sh -c '" + mpirun(2) + train("--steps 100000 --save-every 50 --eval-every 0 --out " + own_run()) +
                     " & for i in $(seq 100); do sleep 0.2; [ -e run/checkpoints/step-50 ] && break; done; "
                     "kill -9 " +
                     newest_rank() + "; wait $!; echo code $?'");
  EXPECT_NE(o.text.find("code "), std::string::npos) << o.text;
  EXPECT_EQ(o.text.find("code 0"), std::string::npos) << o.text;
  EXPECT_NE(o.text.find("has died"), std::string::npos) << o.text;
  expect_words(shell("weft check run"), 0, {});
}

// A rank that stands still is noticed.
TEST_F(SlowRanks, AStoppedRankEndsAll) {
  const Outcome o = run_all(0, "sh -c 'export WEFT_RANK_TIMEOUT=4; " + mpirun(2) + "-x WEFT_RANK_TIMEOUT " +
                                   train("--steps 100000 --save-every 50 --eval-every 0 --out " + own_run()) +
                                   " & for i in $(seq 100); do sleep 0.2; [ -e run/checkpoints/step-50 ] && break; done; "
                                   "p=" +
                                   newest_rank() + "; kill -STOP $p; sleep 12; kill -9 $p; wait $!; echo code $?'");
  EXPECT_NE(o.text.find("is silent"), std::string::npos) << o.text;
  EXPECT_EQ(o.text.find("code 0"), std::string::npos) << o.text;
}

// The same code on the emulated device: its kernels, its graph, its memory.
TEST_F(SlowRanks, TheEmulatedDevice) {
  if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
  const std::string words = train_on("emu", "--steps 4");
  expect_words(run_all(0, words + " --out one"), 0, {});
  expect_words(run_all(2, words + " --out two"), 0, {"ranks: 2"});
  expect_close(losses("two"), losses("one"), 1e-5, 4);
  expect_words(run_all(2, train_on("emu", "--steps 4 --width 64 --out wide")), 0, {});
  expect_words(run_all(2, train_on("emu", "--steps 4 --width 64 --zero --out zero")), 0, {"a part of all"});
  EXPECT_EQ(losses("zero"), losses("wide"));
  // Whoever is to time algorithms asks rank 0, though this device has none to choose.
  expect_words(run_all(2, "-x WEFT_TUNE=1 " + train_on("emu", "--steps 4 --width 64 --out tuned")), 0, {});
  EXPECT_EQ(losses("tuned"), losses("wide"));
}

}  // namespace
}  // namespace weft
