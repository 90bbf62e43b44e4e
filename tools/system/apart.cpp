#include "tools/system/apart.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string_view>

#include "jit/file.h"

namespace weft {
namespace {

class Pipe {
 public:
  Pipe() {
    if (pipe2(ends_, O_CLOEXEC) != 0) fail_errno("cannot start a process", errno);
  }
  ~Pipe() { close_end(0), close_end(1); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int end(int i) const { return ends_[i]; }
  void close_end(int i) {
    if (ends_[i] >= 0) close(ends_[i]);
    ends_[i] = -1;
  }
  // What is there now; false at the end.
  bool read_some(std::string& text) const {
    std::array<char, 1 << 16> buffer;
    const ssize_t n = read(ends_[0], buffer.data(), buffer.size());
    if (n > 0) text.append(buffer.data(), std::size_t(n));
    return n > 0 || (n < 0 && errno == EINTR);
  }

 private:
  int ends_[2] = {-1, -1};
};

bool write_whole(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    text.remove_prefix(std::size_t(n));
  }
  return true;
}

// In the copy: it leaves by _exit, which writes nothing that the original has still to write.
[[noreturn]] void work_and_leave(const std::function<std::string()>& work, int result, int complaint) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(complaint, STDERR_FILENO);
  try {
    _exit(write_whole(result, work()) ? 0 : 1);
  } catch (const std::exception& e) {
    write_whole(complaint, e.what());
  } catch (...) {
  }
  _exit(1);
}

std::string last_line(std::string_view text) {
  text = text.substr(0, text.find_last_not_of(" \n") + 1);
  return std::string(text.substr(text.rfind('\n') + 1).substr(0, 500));
}

}  // namespace

Apart run_apart(const std::function<std::string()>& work) {
  Pipe result, complaint;
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) fail_errno("cannot start a process", errno);
  if (child == 0) work_and_leave(work, result.end(1), complaint.end(1));
  result.close_end(1), complaint.close_end(1);
  std::string made, said;
  std::array<pollfd, 2> open{pollfd{result.end(0), POLLIN, 0}, pollfd{complaint.end(0), POLLIN, 0}};
  while (open[0].fd >= 0 || open[1].fd >= 0) {
    if (poll(open.data(), open.size(), -1) < 0) continue;  // a signal: its handler has been called
    if (open[0].revents && !result.read_some(made)) open[0].fd = -1;
    if (open[1].revents && !complaint.read_some(said)) open[1].fd = -1;
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {std::move(made), {}};
  std::string line = last_line(said);
  if (line.empty())
    line = WIFSIGNALED(status) ? fmt::format("ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))
                               : fmt::format("ended with {}", WEXITSTATUS(status));
  return {std::nullopt, std::move(line)};
}

}  // namespace weft
