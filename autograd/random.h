// Stateless randomness: Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (seed, site)
// and counter (tick, element). The site is the place of the call in the model, so a value that is computed again draws the same
// numbers again.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "autograd/tape.h"

namespace weft {

// Counts the parameters of each full name that are given values under one seed: the first has number 0.
class NameCounts {
 public:
  std::uint64_t next(const std::string& name) {
    const std::lock_guard lock(mutex_);
    return counts_[name]++;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, std::uint64_t> counts_;
};

// A generator: a seed, and a tick that advances once per run that draws. Training and generation have one each.
class Rng {
 public:
  explicit Rng(std::uint64_t seed = 0) { set(seed, 0); }
  Rng(const Rng& other) : seed_(other.seed_), names_(other.names_) { *tick_ = other.tick(); }
  Rng& operator=(const Rng& other) {
    seed_ = other.seed_, *tick_ = other.tick(), names_ = other.names_;
    return *this;
  }
  std::uint64_t seed() const { return seed_; }
  std::uint64_t tick() const { return *tick_; }
  void set(std::uint64_t seed, std::uint64_t tick) {
    seed_ = seed, *tick_ = tick;
    names_ = std::make_shared<NameCounts>();
  }
  // What advances when a run that drew commits, also if the generator has gone by then.
  const std::shared_ptr<std::uint64_t>& ticker() const { return tick_; }
  // Of the parameters made from now until the next set(); they keep it.
  const std::shared_ptr<NameCounts>& names() const { return names_; }

 private:
  std::uint64_t seed_ = 0;
  std::shared_ptr<std::uint64_t> tick_ = std::make_shared<std::uint64_t>(0);  // its own
  std::shared_ptr<NameCounts> names_;
};

// The generator in use on this thread. Unless the program says otherwise it is the thread's own, whose seed is that of the
// process, at first 0, on the main thread, and one that follows from it and the thread's number on the others: threads draw
// different numbers. They are numbered by their first draw or parameter since the process has its seed; a thread that must
// draw the same again, whatever the others do first, calls seed() or has an Rng.
Rng& rng();
// Of the generator in use, whose tick returns to 0 and whose draws and parameters count from 0: what is recorded next on this
// thread is the same every time, also outside `run`, where what is pending runs first. On the main thread, with no UseRng, it
// is the seed of the process, which reaches all threads that have not called it; on another thread it is that thread's alone.
void seed(std::uint64_t value);

// While alive, `rng` is the generator in use.
class UseRng {
 public:
  explicit UseRng(Rng& rng);
  ~UseRng();
  UseRng(const UseRng&) = delete;
  UseRng& operator=(const UseRng&) = delete;

 private:
  Rng* before_;
};

// While one lives, on this thread, a batch is cut along its first axis: what is recorded are the rows from `first` on of all.
// Draws whose first axis has `rows` elements, and those of attention, are then the numbers of these rows in the whole batch, so
// that the noise of a row does not depend on how many processes there are.
class BatchRows {
 public:
  BatchRows(std::int64_t first, std::int64_t rows);
  ~BatchRows();
  BatchRows(const BatchRows&) = delete;
  BatchRows& operator=(const BatchRows&) = delete;

  static const BatchRows* in_use();  // null: a batch is whole
  std::int64_t first() const { return first_; }
  std::int64_t rows() const { return rows_; }

 private:
  std::int64_t first_, rows_;
  const BatchRows* before_;
};

// Three constants of a node that draws: the raw bits of seed, tick and site (the module path and the ordinal in it).
struct Draw {
  double constants[3];
};
Draw next_draw();

}  // namespace weft
