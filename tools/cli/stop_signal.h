#pragma once

#include <signal.h>

namespace weft {

// While one is alive, the first SIGINT or SIGTERM is only remembered, so that a step can be finished and saved; the second ends
// the program at once.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  int received() const;  // 0: none

 private:
  struct sigaction interrupt_, terminate_;  // the handlers before
};

}  // namespace weft
