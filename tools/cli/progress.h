// One line that says how a run is going: rewritten in place on a terminal, elsewhere printed now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace weft {

class StatusLine {
 public:
  StatusLine();
  bool terminal() const { return terminal_; }
  bool colour() const { return colour_; }
  // On a terminal it takes the place of the one before, though not more often than ten times a second. `always`: at once, and
  // where there is no terminal it is printed. `last`: what comes next stands below it.
  void show(const std::string& line, bool always, bool last = false);
  void note(const std::string& line);  // one that stays

 private:
  void wipe();
  bool terminal_, colour_;
  std::chrono::steady_clock::time_point drawn_;
  bool open_ = false;  // an unfinished line stands on the terminal
};

class Progress {
 public:
  Progress(std::int64_t first, std::int64_t total, std::int64_t tokens_per_step);
  // Call it after each step. Shows the mean loss since the last line that stays, and peak_memory() of the device in use.
  void step(std::int64_t step, double loss, double lr);
  // A line that stays, such as a validation loss. Time until the next step() does not count as training.
  void note(const std::string& line);
  void pause();  // until the next step() time does not count as training

  double tokens_per_second() const;            // over all steps but the first two, in which kernels are planned and compiled
  double last_tokens_per_second() const;       // of the last step
  double seconds() const { return seconds_; }  // in steps

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(std::int64_t step, double lr) const;

  StatusLine line_;
  std::int64_t first_, total_, tokens_per_step_, every_;
  double loss_sum_ = 0;
  std::int64_t losses_ = 0, steps_ = 0, counted_ = 0;
  double seconds_ = 0, counted_seconds_ = 0, last_seconds_ = 0;
  Clock::time_point mark_;
};

// The most bytes that this process has held so far: resident memory of the host; of a GPU, what was allocated there.
std::size_t peak_host_memory();
std::size_t peak_memory();  // of the device in use

std::string format_duration(double seconds);  // "1:05", "2:03:04"

}  // namespace weft
