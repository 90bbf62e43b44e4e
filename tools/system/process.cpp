#include "tools/system/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <span>

#include "jit/file.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  void reset(int fd = -1) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_;
};

// In memory, so that whoever reads it cannot make the writer wait.
bool hold(Descriptor& file, const std::string& text) {
  file.reset(memfd_create("weft", MFD_CLOEXEC));
  if (file.get() < 0) return false;
  write_all(file.get(), std::as_bytes(std::span(text)), "the input of a program");
  return lseek(file.get(), 0, SEEK_SET) == 0;
}

// A process group of its own, so that all of it can be killed, with the signals as they are by default.
pid_t spawn(const Process& process, int input, int output) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  if (!process.complains) posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  if (!process.folder.empty()) posix_spawn_file_actions_addchdir_np(&actions, process.folder.c_str());
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t all, none;
  sigfillset(&all), sigemptyset(&none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  std::vector<std::string> words = process.arguments;
  words.insert(words.begin(), process.program.string());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  const int error = posix_spawn(&child, process.program.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return error == 0 ? child : -1;
}

// More than a picture, a disassembly or a list of symbols ever has.
constexpr std::size_t kMostOutput = std::size_t(256) << 20;

// All that comes before the end; false: it has not come to an end by then, or is more than anybody asked for.
bool read_until(int fd, Clock::time_point end, std::string& text) {
  std::array<char, 1 << 16> buffer;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd ready{fd, POLLIN, 0};
    if (left <= 0 || retried([&] { return poll(&ready, 1, int(left)); }) <= 0) return false;
    const auto n = retried([&] { return read(fd, buffer.data(), buffer.size()); });
    if (n <= 0) return n == 0;
    text.append(buffer.data(), std::size_t(n));
    if (text.size() > kMostOutput) return false;
  }
}

// Whether it has ended without an error by then. One that closed its output may still go on.
bool succeeds(pid_t child, Clock::time_point end) {
  int status = 0;
  for (;;) {
    const pid_t done = retried([&] { return waitpid(child, &status, WNOHANG); });
    if (done == child) return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (done < 0 || Clock::now() >= end) break;
    usleep(2000);
  }
  kill(-child, SIGKILL);
  retried([&] { return waitpid(child, &status, 0); });
  return false;
}

}  // namespace

std::optional<fs::path> find_program(std::string_view name, const std::vector<fs::path>& more) {
  std::vector<fs::path> folders;
  const char* path = std::getenv("PATH");
  for (std::string_view rest = path ? path : ""; !rest.empty();) {
    const auto end = std::min(rest.find(':'), rest.size());
    folders.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  folders.insert(folders.end(), more.begin(), more.end());
  for (const fs::path& folder : folders)
    if (std::error_code error;
        folder.is_absolute() && fs::is_regular_file(folder / name, error) && access((folder / name).c_str(), X_OK) == 0)
      return folder / name;
  return std::nullopt;
}

std::optional<std::string> output_of(const Process& process) {
  Descriptor input, from, to;
  int ends[2];
  if (!hold(input, process.input) || pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  from.reset(ends[0]), to.reset(ends[1]);
  const pid_t child = spawn(process, input.get(), to.get());
  to.reset();
  if (child < 0) return std::nullopt;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(process.seconds));
  std::string text;
  const bool whole = read_until(from.get(), end, text);
  if (!succeeds(child, whole ? end : Clock::now()) || !whole) return std::nullopt;
  return text;
}

}  // namespace weft
