#include "jit/ranks/server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "jit/print.h"

namespace weft {
namespace {

using nlohmann::json;
using ServerClock = std::chrono::steady_clock;

// What a peer has sent may be anything.
json parsed(std::string_view text) {
  json value = json::parse(text, nullptr, false);
  return value.is_object() ? value : json::object();
}
std::string text_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}
int number_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<int>() : -1;
}

std::string dumped(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

double seconds_between(ServerClock::time_point a, ServerClock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

}  // namespace

std::string to_text(const RankBeat& beat) { return fmt::format("{} {} {}", char(beat.state), beat.changes, beat.what); }

RankBeat beat_from(std::string_view text) {
  RankBeat beat;
  int used = 0;
  unsigned long long changes = 0;
  char state = 'h';
  const std::string copy(text);
  if (std::sscanf(copy.c_str(), "%c %llu %n", &state, &changes, &used) == 2) beat.what = copy.substr(std::size_t(used));
  beat.state = RankBeat::State(state), beat.changes = changes;
  return beat;
}

std::string to_text(const StepMark& mark) { return fmt::format("{} {:016x} {}", mark.number, mark.hash, mark.site); }

StepMark mark_from(std::string_view text) {
  StepMark mark;
  int used = 0;
  unsigned long long number = 0, hash = 0;
  const std::string copy(text);
  if (std::sscanf(copy.c_str(), "%llu %llx %n", &number, &hash, &used) == 2) mark.site = copy.substr(std::size_t(used));
  mark.number = number, mark.hash = hash;
  return mark;
}

std::string to_text(const RankEnd& end) {
  return dumped({{"rank", end.rank},
                 {"kind", int(end.kind)},
                 {"what", end.parts.what},
                 {"numbers", end.parts.numbers},
                 {"where", end.parts.where},
                 {"hint", end.parts.hint}});
}

RankEnd end_from(std::string_view text) {
  const json end = parsed(text);
  const int kind = number_in(end, "kind");
  return {number_in(end, "rank"),
          kind < 0 ? ErrorKind::device : ErrorKind(kind),
          {text_in(end, "what"), text_in(end, "numbers"), text_in(end, "where"), text_in(end, "hint")}};
}

RankLimits rank_limits() {
  RankLimits limits;
  if (const char* text = std::getenv("WEFT_RANK_TIMEOUT")) {
    char* end = nullptr;
    const double seconds = std::strtod(text, &end);
    if (!(seconds >= 1 && seconds <= 1e6) || *end)
      fail(ErrorKind::usage, "WEFT_RANK_TIMEOUT is no number of seconds from 1", fmt::format("'{}'", text));
    limits.hang = std::chrono::seconds(std::int64_t(seconds));
    limits.join = 4 * limits.hang;
    limits.silence = std::min(limits.silence, std::max(limits.hang, std::chrono::seconds(3)));
  }
  return limits;
}

// ---- the server -------------------------------------------------------------------------------------------------------------

struct RankServer::Impl {
  struct Fact {
    std::string name, value;
    bool compare = false;
  };
  struct Rank {
    std::unique_ptr<RankChannel> channel;
    bool left = false;
    RankBeat beat;
    ServerClock::time_point heard, changed;
    std::deque<Fact> facts;
  };
  struct Step {
    StepMark mark;
    int rank, seen;
  };

  Listener listener;
  std::string token;
  RankLimits limits;
  std::vector<Rank> ranks;
  std::vector<std::unique_ptr<RankChannel>> strangers;  // connected, and not yet known
  std::deque<Step> steps;                               // that not all ranks have begun; the numbers follow each other
  ServerClock::time_point begun = ServerClock::now(), ended_at;
  int refused = 0;
  bool ended = false;
  std::string end_text;  // for those who come afterwards
  std::thread thread;

  Impl(Listener l, int size, std::string t, RankLimits lim)
      : listener(l), token(std::move(t)), limits(lim), ranks(std::size_t(size)) {}

  bool all_joined() const {
    return std::all_of(ranks.begin(), ranks.end(), [](const Rank& r) { return r.channel != nullptr; });
  }
  bool all_left() const {
    return std::all_of(ranks.begin(), ranks.end(), [](const Rank& r) { return r.left; });
  }

  void end(const RankEnd& why) {
    if (std::exchange(ended, true)) return;
    ended_at = ServerClock::now();
    end_text = to_text(why);
    if (why.rank < 0) print_error("weft: {}\n", Error(why.kind, why.parts).what());
    for (const Rank& r : ranks)
      if (r.channel) r.channel->send(RankMessage::end, end_text);
    for (const auto& stranger : strangers) stranger->send(RankMessage::end, end_text);
  }
  void end(std::string what, std::string numbers, std::string hint = {}, ErrorKind kind = ErrorKind::device) {
    end({-1, kind, {std::move(what), std::move(numbers), {}, std::move(hint)}});
  }

  void accept_more() {
    const int fd = accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    strangers.push_back(std::make_unique<RankChannel>(fd));
    if (ended) strangers.back()->send(RankMessage::end, end_text);
  }

  // True: `from` has been taken, or is to be closed.
  bool introduce(std::unique_ptr<RankChannel>& from) {
    bool closed = false;
    const auto message = from->receive(std::chrono::milliseconds(0), closed);
    if (!message) return closed;
    const json hello = message->kind == RankMessage::hello ? parsed(message->text) : json::object();
    if (text_in(hello, "weft") != "ranks 1") return ++refused, true;
    const int rank = number_in(hello, "rank"), size = number_in(hello, "size"), ours = int(ranks.size());
    const auto refuse = [&](std::string what, std::string numbers, std::string hint) {
      end(std::move(what), std::move(numbers), std::move(hint), ErrorKind::usage);
      return false;  // it stays a stranger, and has been told
    };
    if (text_in(hello, "token") != token && all_joined()) {  // whoever it is, those who compute go on
      const ErrorParts parts{"all ranks have joined, and this one has another token", {}, {}, "set another MASTER_PORT"};
      from->send(RankMessage::end, to_text(RankEnd{-1, ErrorKind::usage, parts}));
      return true;
    }
    if (text_in(hello, "token") != token)
      return refuse(fmt::format("rank {} came with another token than rank 0 has", rank), {},
                    "set WEFT_TOKEN to the same word on every rank");
    if (size != ours || rank < 0 || rank >= ours)
      return refuse("the ranks do not agree how many they are", fmt::format("rank {} of {} came to {} ranks", rank, size, ours),
                    "set the same WORLD_SIZE on every rank");
    Rank& r = ranks[std::size_t(rank)];
    if (r.channel)
      return refuse(fmt::format("rank {} has joined twice", rank), {},
                    "start each rank once; is another run using MASTER_PORT?");
    r.channel = std::move(from);
    r.heard = r.changed = ServerClock::now();
    if (!all_joined()) return true;
    for (Rank& each : ranks) {
      each.heard = each.changed = ServerClock::now();
      each.channel->send(RankMessage::welcome, "");
    }
    close(std::exchange(listener.fd, -1));
    return true;
  }

  void compare_step(int rank, const StepMark& mark) {
    for (auto step = steps.begin(); step != steps.end(); ++step) {
      if (step->mark.number != mark.number) continue;
      if (step->mark.hash != mark.hash) {
        const bool first = step->rank < rank;
        const auto line = [&](int r, const StepMark& m) { return fmt::format("\n  rank {}: {}", r, m.site); };
        end("the ranks run different steps",
            fmt::format("step {}{}{}", mark.number, first ? line(step->rank, step->mark) : line(rank, mark),
                        first ? line(rank, mark) : line(step->rank, step->mark)),
            "every rank must record the same ops on tensors of the same shapes");
      }
      if (++step->seen == int(ranks.size())) steps.erase(step);
      return;
    }
    if (ranks.size() > 1) steps.push_back({mark, rank, 1});
  }

  // The first facts of all ranks, when all have sent one.
  void compare_facts() {
    while (std::all_of(ranks.begin(), ranks.end(), [](const Rank& r) { return !r.facts.empty(); })) {
      const Fact ours = ranks[0].facts.front();
      for (std::size_t r = 0; r < ranks.size(); ++r) {
        const Fact& theirs = ranks[r].facts.front();
        if (theirs.name != ours.name)
          end("the ranks do different things", fmt::format("rank 0: {}, rank {}: {}", ours.name, r, theirs.name));
        else if (ours.compare && theirs.value != ours.value)
          end(fmt::format("the ranks differ in {}", ours.name),
              fmt::format("rank 0 has {}, rank {} has {}", ours.value, r, theirs.value), "start all ranks alike",
              ErrorKind::usage);
      }
      json values = json::array();
      for (Rank& r : ranks) {
        values.push_back(std::move(r.facts.front().value));
        r.facts.pop_front();
      }
      for (const Rank& r : ranks)
        if (!ended) r.channel->send(RankMessage::answer, dumped(values));
    }
  }

  void take(int rank, const RankMessage& message) {
    Rank& r = ranks[std::size_t(rank)];
    r.heard = ServerClock::now();
    switch (message.kind) {
      case RankMessage::beat: {
        const RankBeat beat = beat_from(message.text);
        if (beat.changes != r.beat.changes) r.changed = r.heard;
        r.beat = beat;
        break;
      }
      case RankMessage::step:
        r.changed = r.heard;
        compare_step(rank, mark_from(message.text));
        break;
      case RankMessage::fact: {
        const json fact = parsed(message.text);
        const auto compare = fact.find("compare");
        r.changed = r.heard;
        r.facts.push_back({text_in(fact, "name"), text_in(fact, "value"), compare != fact.end() && *compare == true});
        compare_facts();
        break;
      }
      case RankMessage::failed: {
        RankEnd why = end_from(message.text);
        why.rank = rank;
        end(why);
        break;
      }
      case RankMessage::bye:
        r.left = true;
        if (all_left())
          for (Rank& each : ranks) each.channel->send(RankMessage::bye, "");
        break;
      default:
        break;
    }
  }

  void listen_to(int rank) {
    Rank& r = ranks[std::size_t(rank)];
    bool closed = false;
    while (const auto message = r.channel->receive(std::chrono::milliseconds(0), closed)) take(rank, *message);
    if (!closed || r.left || ended) return;
    end(fmt::format("rank {} has died", rank), r.beat.what.empty() ? "" : fmt::format("its last work: {}", r.beat.what),
        "the last checkpoint is complete; was the process killed, or out of memory?");
  }

  // What no message says: that there is none, or nothing happens.
  void look_at_clock() {
    const auto now = ServerClock::now();
    const auto seconds = [](auto limit) { return double(limit.count()); };
    if (!all_joined()) {
      if (seconds_between(begun, now) < seconds(limits.join)) return;
      std::string missing;
      for (std::size_t r = 0; r < ranks.size(); ++r)
        if (!ranks[r].channel) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
      return end("not all ranks have joined",
                 fmt::format("missing after {:.0f} s: {}{}", seconds_between(begun, now), missing,
                             refused ? fmt::format("; {} connections were none of weft's", refused) : ""),
                 "do they run, and can they reach MASTER_ADDR:MASTER_PORT?");
    }
    const double hang = seconds(limits.hang);
    double most_waiting = 0, least_waiting = 1e300;
    int waits = -1, hangs = -1;
    for (std::size_t k = 0; k < ranks.size(); ++k) {
      const Rank& r = ranks[k];
      if (r.left) continue;
      const double silent = seconds_between(r.heard, now), age = seconds_between(r.changed, now);
      if (silent > seconds(limits.silence))
        return end(fmt::format("rank {} is silent", k), fmt::format("nothing heard for {:.0f} s", silent),
                   "is the process stopped, or its host gone?");
      constexpr double kBusy = 40;  // times as long as doing nothing
      if (r.beat.state == RankBeat::busy && age > kBusy * hang)
        return end(fmt::format("rank {} does not come to an end", k), fmt::format("{} for {:.0f} s", r.beat.what, age),
                   "WEFT_RANK_TIMEOUT=SECONDS allows more");
      const bool waiting = r.beat.state == RankBeat::waiting;
      if (waiting && age > most_waiting) most_waiting = age, waits = int(k);
      least_waiting = std::min(least_waiting, waiting ? age : 0);
      if (r.beat.state == RankBeat::host && age > hang && hangs < 0) hangs = int(k);
    }
    if (hangs >= 0 && most_waiting > hang)
      return end(
          fmt::format("rank {} hangs", hangs),
          fmt::format("no progress for {:.0f} s, while rank {} waits: {}",
                      seconds_between(ranks[std::size_t(hangs)].changed, now), waits, ranks[std::size_t(waits)].beat.what),
          "WEFT_RANK_TIMEOUT=SECONDS allows more");
    constexpr double kAll = 10;  // times: all wait, perhaps for long kernels
    if (waits >= 0 && least_waiting > kAll * hang && least_waiting < 1e299)
      end("no rank goes on",
          fmt::format("all have waited for {:.0f} s: {}", least_waiting, ranks[std::size_t(waits)].beat.what),
          "WEFT_RANK_TIMEOUT=SECONDS allows more");
  }

  void serve() {
    auto beaten = ServerClock::now();
    while (!all_left()) {
      constexpr double kFarewell = 10;  // for those who still send
      if (ended && seconds_between(ended_at, ServerClock::now()) > kFarewell) return;
      std::vector<pollfd> fds;
      if (listener.fd >= 0) fds.push_back({listener.fd, POLLIN, 0});
      for (const auto& s : strangers) fds.push_back({s->fd(), POLLIN, 0});
      bool any = false;
      for (const Rank& r : ranks)
        if (r.channel && !r.left && !(ended && gone(r))) fds.push_back({r.channel->fd(), POLLIN, 0}), any = true;
      constexpr double kLate = 2;  // for those who come now, and are to hear why
      if (ended && !any && (all_joined() || seconds_between(ended_at, ServerClock::now()) > kLate)) return;
      poll(fds.data(), nfds_t(fds.size()), 500);
      if (listener.fd >= 0 && (fds[0].revents & POLLIN)) accept_more();
      std::erase_if(strangers, [&](auto& s) { return introduce(s) || !s; });
      for (std::size_t k = 0; k < ranks.size(); ++k)
        if (ranks[k].channel && !ranks[k].left) listen_to(int(k));
      if (!ended) look_at_clock();
      if (const auto now = ServerClock::now(); seconds_between(beaten, now) > 1) {
        beaten = now;
        for (const Rank& r : ranks)
          if (r.channel && !r.left) r.channel->send(RankMessage::beat, "");
      }
    }
  }

  static bool gone(const Rank& r) {
    char byte;
    return recv(r.channel->fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
  }
};

RankServer::RankServer(Listener listener, int size, std::string token, RankLimits limits)
    : impl_(std::make_unique<Impl>(listener, size, std::move(token), limits)) {
  impl_->thread = std::thread([impl = impl_.get()] { impl->serve(); });
}

RankServer::~RankServer() {
  impl_->thread.join();
  if (impl_->listener.fd >= 0) close(impl_->listener.fd);
}

}  // namespace weft
