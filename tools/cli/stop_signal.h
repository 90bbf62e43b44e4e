#pragma once

#include <signal.h>

#include <array>

namespace weft {

// While one is alive, the first SIGINT, SIGTERM or SIGHUP is only remembered, so that a step can be finished and saved; the
// second ends the program at once. Those that were ignored before (nohup) stay ignored. So is SIGXCPU (`ulimit -t`), which
// comes again every second until the hard limit kills. SIGPIPE is ignored meanwhile: a reader of the output that goes away (`|
// head`) ends what is printed, not what is computed.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  int received() const;  // 0: none

 private:
  static constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGPIPE};
  std::array<struct sigaction, kSignals.size()> before_;
};

// What a program does first. A closed stdin, stdout or stderr becomes /dev/null, or the next file that is opened would take its
// number, and get what is printed. A file size limit (`ulimit -f`) becomes an error of write(), as a full disk is, instead of a
// signal.
void prepare_process();

}  // namespace weft
