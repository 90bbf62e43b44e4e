#include "jit/ranks/ranks.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "jit/print.h"
#include "jit/ranks/mpi.h"

namespace weft {

std::atomic<Ranks*> Ranks::joined_{nullptr};

namespace {

using RankClock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGrace{3};  // for the main thread to end by itself, once all is to end

std::string random_word() {
  std::random_device device;
  std::string word;
  for (int k = 0; k < 4; ++k) word += fmt::format("{:08x}", device());
  return word;
}

}  // namespace

struct Ranks::Impl {
  RankLimits limits = rank_limits();
  std::unique_ptr<RankServer> server;  // of rank 0
  std::unique_ptr<RankChannel> channel;
  std::thread listener;

  std::mutex mutex;  // of what follows
  std::condition_variable changed;
  bool welcome = false, farewell = false;
  std::optional<RankEnd> end;
  RankClock::time_point ended_at;
  std::deque<std::string> answers;

  std::atomic<bool> ended{false}, leaving{false}, exiting{false};
  std::atomic<char> state{char(RankBeat::host)};
  std::atomic<std::uint64_t> changes{0};
  std::atomic<const char*> what{""};
  std::uint64_t steps = 0;
  std::array<std::unique_ptr<Collectives>, 3> collectives;

  void finish(const RankEnd& why) {
    const std::lock_guard lock(mutex);
    if (end) return;
    end = why;
    ended_at = RankClock::now();
    ended = true;
    changed.notify_all();
  }

  void take(const RankMessage& message) {
    if (message.kind == RankMessage::end) return finish(end_from(message.text));
    const std::lock_guard lock(mutex);
    if (message.kind == RankMessage::welcome) welcome = true;
    if (message.kind == RankMessage::bye) farewell = true;
    if (message.kind == RankMessage::answer) answers.push_back(message.text);
    changed.notify_all();
  }

  // Rank 0 and its server are gone. The lowest of those who are left says so.
  void lose(int rank, std::string what_happened, std::string numbers) {
    if (leaving || ended) return;
    RankEnd why{-1, ErrorKind::device, {std::move(what_happened), std::move(numbers), {}, "the last checkpoint is complete"}};
    if (rank == 1) mute(false), print_error("weft: {}\n", Error(why.kind, why.parts).what());
    finish(why);
  }

  void listen(int rank) {
    auto beaten = RankClock::now(), heard = beaten;
    for (;;) {
      bool closed = false;
      const auto message = channel->receive(std::chrono::milliseconds(500), closed);
      const auto now = RankClock::now();
      if (message) heard = now, take(*message);
      if (closed) lose(rank, "rank 0 has died", "its connection is closed");
      if (!message && now - heard > limits.silence + std::chrono::seconds(2))
        lose(rank, "rank 0 is silent", fmt::format("for {} s", limits.silence.count() + 2));
      {
        const std::lock_guard lock(mutex);
        if (farewell) return;
        // The main thread may wait for a rank that is gone.
        if (end && !exiting && now - ended_at > kGrace) _exit(exit_code(end->kind));
        if (end && exiting) return;
      }
      if (closed) std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (now - beaten > std::chrono::seconds(1)) {
        beaten = now;
        channel->send(RankMessage::beat, to_text(RankBeat{RankBeat::State(state.load()), changes.load(), what.load()}));
      }
    }
  }
};

Ranks::Ranks(RankPlace place) : place_(std::move(place)), impl_(std::make_unique<Impl>()) {}

Ranks::~Ranks() {
  impl_->exiting = true;
  if (impl_->listener.joinable()) impl_->listener.join();
}

void Ranks::meet() {
  Impl& i = *impl_;
  std::optional<Listener> listener;
  if (place_.starter == Starter::mpirun) {
    // Rank 0 takes any port, and says over MPI which.
    Mpi& mpi = open_mpi(place_.rank, place_.size);
    if (place_.local_size == place_.size) place_.address = "127.0.0.1";
    std::string meeting;
    if (place_.rank == 0) {
      place_.token = random_word();
      listener = listen_at(place_.address, 0);
      meeting = nlohmann::json{{"address", place_.address}, {"port", listener->port}, {"token", place_.token}}.dump();
    }
    const nlohmann::json said = nlohmann::json::parse(mpi.broadcast_text(meeting));
    place_.address = said.at("address"), place_.port = said.at("port"), place_.token = said.at("token");
  } else if (place_.rank == 0) {
    listener = place_.listener >= 0 ? Listener{place_.listener, place_.port} : listen_at(place_.address, place_.port);
    place_.port = listener->port;
  }
  if (listener) i.server = std::make_unique<RankServer>(*listener, place_.size, place_.token, i.limits);
  i.channel = std::make_unique<RankChannel>(connect_to(place_.address, place_.port, i.limits.join));
  const nlohmann::json hello = {{"weft", "ranks 1"}, {"rank", place_.rank}, {"size", place_.size}, {"token", place_.token}};
  i.channel->send(RankMessage::hello, hello.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  i.listener = std::thread([this] { impl_->listen(place_.rank); });
  std::unique_lock lock(i.mutex);
  i.changed.wait(lock, [&] { return i.welcome || i.end; });
  lock.unlock();
  check();
}

Ranks* Ranks::join() {
  if (Ranks* ranks = joined()) return ranks;
  const auto place = rank_place();
  if (!place) return nullptr;
  static Ranks* of_process;  // which frees it by ending: whoever has asked for it may still use it when it has left
  auto* const ranks = of_process = new Ranks(*place);
  joined_ = ranks;
  ranks->meet();
  std::atexit([] {
    if (Ranks* r = joined()) r->leave();
  });
  return ranks;
}

std::vector<std::string> Ranks::exchange(const std::string& name, const std::string& value, bool compare) {
  check();
  Impl& i = *impl_;
  const RankActivity waiting(RankBeat::waiting, "the ranks compare what they have");
  const nlohmann::json fact = {{"name", name}, {"value", value}, {"compare", compare}};
  i.channel->send(RankMessage::fact, fact.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  std::unique_lock lock(i.mutex);
  i.changed.wait(lock, [&] { return !i.answers.empty() || i.end; });
  if (i.answers.empty()) {
    lock.unlock();
    check();
  }
  const std::string answer = std::move(i.answers.front());
  i.answers.pop_front();
  return nlohmann::json::parse(answer).get<std::vector<std::string>>();
}

void Ranks::step(std::uint64_t plan_hash, std::string_view site) {
  check();
  impl_->changes.fetch_add(1, std::memory_order_relaxed);
  impl_->channel->send(RankMessage::step, to_text(StepMark{++impl_->steps, plan_hash, std::string(site)}));
}

void Ranks::check() {
  Impl& i = *impl_;
  if (!i.ended.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(i.mutex);
  ErrorParts parts = i.end->parts;
  if (i.end->rank >= 0 && i.end->rank != place_.rank) parts.what = fmt::format("rank {}: {}", i.end->rank, parts.what);
  throw Error(i.end->kind, parts);
}

bool Ranks::fail(ErrorKind kind, const ErrorParts& parts) {
  Impl& i = *impl_;
  bool first = true;
  {
    std::unique_lock lock(i.mutex);
    if (!i.end && i.channel) {
      lock.unlock();
      i.channel->send(RankMessage::failed, to_text(RankEnd{place_.rank, kind, parts}));
      lock.lock();
      i.changed.wait_for(lock, kGrace, [&] { return i.end.has_value(); });
    }
    if (i.end) first = i.end->rank == place_.rank;
  }
  i.finish({place_.rank, kind, parts});  // also where rank 0 did not answer
  return first;
}

void Ranks::leave() {
  Impl& i = *impl_;
  if (!i.leaving.exchange(true) && !i.ended) {
    i.channel->send(RankMessage::bye, "");
    std::unique_lock lock(i.mutex);
    i.changed.wait(lock, [&] { return i.farewell || i.end; });
  }
  i.exiting = true;
  if (i.listener.joinable()) i.listener.join();
  i.channel.reset();  // or the server would wait for this rank
  i.server.reset();
  const bool orderly = i.farewell;
  joined_ = nullptr;
  if (orderly && place_.starter == Starter::mpirun) close_mpi();
}

Collectives& Ranks::collectives(Device device) {
  std::unique_ptr<Collectives>& made = impl_->collectives[std::size_t(device)];
  if (!made) made = make_collectives(*this, device);
  return *made;
}

// ---- what this process does -------------------------------------------------------------------------------------------------

RankActivity::RankActivity(RankBeat::State state, const char* what) : ranks_(Ranks::joined()) {
  if (!ranks_) return;
  Ranks::Impl& i = *ranks_->impl_;
  what_ = i.what.exchange(what);
  state_ = RankBeat::State(i.state.exchange(char(state)));
  ++i.changes;
}

RankActivity::~RankActivity() {
  if (!ranks_) return;
  Ranks::Impl& i = *ranks_->impl_;
  i.what = what_, i.state = char(state_);
  ++i.changes;
}

}  // namespace weft
