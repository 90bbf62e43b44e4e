#include "tools/cli/stop_signal.h"

#include <fcntl.h>
#include <unistd.h>

#include "jit/file.h"

namespace weft {
namespace {

volatile sig_atomic_t received_signal = 0;

// The second of any of these ends the program.
extern "C" void remember(int number) {
  received_signal = number;
  for (const int stop : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    sigaction(stop, nullptr, &now);
    if (now.sa_handler == remember) signal(stop, SIG_DFL);
  }
}

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction action {};
    action.sa_handler = kSignals[i] == SIGPIPE ? SIG_IGN : remember;
    action.sa_flags = SA_RESTART;
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignal::~StopSignal() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

int StopSignal::received() const { return received_signal; }

void prepare_process() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(fd, F_GETFD) < 0) retried([] { return open("/dev/null", O_RDWR); });  // takes the lowest number that is free
  signal(SIGXFSZ, SIG_IGN);
}

}  // namespace weft
