// What rank 0 does for all: it lets the ranks join, compares what they send, and ends all when one of them fails, goes away,
// hangs or runs another step.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "jit/error.h"
#include "jit/ranks/channel.h"

namespace weft {

// What a rank says of itself every second.
struct RankBeat {
  enum State : char {
    host = 'h',     // computes on the host
    waiting = 'w',  // for the other ranks, or for its GPU, which may wait for them
    busy = 'b',     // with something that takes long and is its own: compiling, saving
  } state = host;
  std::uint64_t changes = 0;  // how often it has gone from one thing to another
  std::string what;           // "all_reduce"
};
std::string to_text(const RankBeat& beat);
RankBeat beat_from(std::string_view text);

// A step with collectives, in the order in which a rank runs them.
struct StepMark {
  std::uint64_t number = 0, hash = 0;
  std::string site;  // of its first collective
};
std::string to_text(const StepMark& mark);
StepMark mark_from(std::string_view text);

// The first error of all ranks.
struct RankEnd {
  int rank = -1;  // whose it is, who also prints it; -1: found by rank 0's server, which has printed it
  ErrorKind kind = ErrorKind::device;
  ErrorParts parts;
};
std::string to_text(const RankEnd& end);
RankEnd end_from(std::string_view text);

struct RankLimits {
  std::chrono::seconds join{180};    // until all have joined
  std::chrono::seconds hang{45};     // that others wait for a rank which does nothing
  std::chrono::seconds silence{20};  // without a beat
};
RankLimits rank_limits();  // `hang` is WEFT_RANK_TIMEOUT, and the others follow from it

class RankServer {
 public:
  // Serves `size` ranks on `listener` in a thread of its own.
  RankServer(Listener listener, int size, std::string token, RankLimits limits);
  ~RankServer();  // waits for the thread, which ends when all ranks have left or have been told that all ends

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
