// The processes that compute together: each has a rank, all run the same steps on parts of the same batches.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "jit/device.h"
#include "jit/error.h"
#include "jit/ranks/collectives.h"
#include "jit/ranks/place.h"
#include "jit/ranks/server.h"

namespace weft {

class Ranks {
 public:
  // The group that this process has joined, or null: it is alone.
  static Ranks* joined() { return joined_.load(std::memory_order_acquire); }
  // Joins the ranks that the environment speaks of (see rank_place), once all are there; null if it speaks of none. Called
  // again it changes nothing. Errors: those of rank_place; ErrorKind::io: a port that is taken, rank 0 that is not there;
  // whatever ends all (below).
  static Ranks* join();
  ~Ranks();

  int rank() const { return place_.rank; }
  int size() const { return place_.size; }
  int local_rank() const { return place_.local_rank; }
  Starter starter() const { return place_.starter; }

  // All ranks call these with the same names in the same order. `agree`: an error on every rank if the values differ, which
  // names both; `gather`: the values of all; `share`: that of rank 0.
  void agree(const std::string& name, const std::string& value) { exchange(name, value, true); }
  std::vector<std::string> gather(const std::string& name, const std::string& value) { return exchange(name, value, false); }
  std::string share(const std::string& name, const std::string& value) { return gather(name, value)[0]; }

  // Before a plan with collectives runs. Sent without waiting: ranks that run different plans are ended soon after.
  void step(std::uint64_t plan_hash, std::string_view site);
  // Throws the error that has ended all, if there is one: a rank that failed, died, hung, or ran another step.
  void check();
  // This process ends with this error: so do all. True if it is the first one, which is to be printed.
  bool fail(ErrorKind kind, const ErrorParts& parts);
  // The end without an error: waits until all ranks have come to it. Called at the exit of the program if nobody did.
  void leave();

  // What carries collectives on a device; made at its first use, by all ranks.
  Collectives& collectives(Device device);

 private:
  friend class RankActivity;
  explicit Ranks(RankPlace place);
  std::vector<std::string> exchange(const std::string& name, const std::string& value, bool compare);
  void meet();
  struct Impl;
  static std::atomic<Ranks*> joined_;
  RankPlace place_;
  std::unique_ptr<Impl> impl_;
};

// What this process does while one lives, for the time limits: waiting for others, or busy with something that takes long.
// Costs nothing in a process that is alone. `what` lives as long as the program.
class RankActivity {
 public:
  RankActivity(RankBeat::State state, const char* what);
  ~RankActivity();
  RankActivity(const RankActivity&) = delete;
  RankActivity& operator=(const RankActivity&) = delete;

 private:
  Ranks* ranks_;
  RankBeat::State state_{};
  const char* what_ = "";
};

}  // namespace weft
