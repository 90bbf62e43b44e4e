#include "tools/system/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <random>
#include <span>
#include <string_view>

#include "jit/error.h"
#include "jit/file.h"
#include "tools/system/folder.h"
#include "tools/system/process.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using SandboxClock = std::chrono::steady_clock;

// ---- in the copy of the process: only calls to the system, since other threads of the original may hold any lock
// --------------

struct Enclosure {
  int input, output, complaint;  // descriptors that the program has as 0, 1, 2
  bool isolated;
  const char *python, *folder;  // folder: where it works if it is not isolated
  char uid_map[64], gid_map[64];
  rlim_t seconds, memory, file_bytes;
};

[[noreturn]] void leave(int descriptor, const char* what) {
  const char* words[] = {"sandbox: ", what, ": ", strerrordesc_np(errno), "\n"};
  for (const char* word : words)
    if (word && write(descriptor, word, std::strlen(word)) < 0) break;
  _exit(125);
}

bool write_small(const char* file, const char* text) {
  const int fd = open(file, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool done = write(fd, text, std::strlen(text)) == ssize_t(std::strlen(text));
  close(fd);
  return done;
}

void set_limit(__rlimit_resource_t what, rlim_t most) {
  const rlimit limit{most, most};
  setrlimit(what, &limit);
}

bool mount_memory(const char* folder, const char* options, unsigned long flags) {
  struct stat about;
  if (stat(folder, &about) != 0) return true;  // there is nothing to hide
  return mount("tmpfs", folder, "tmpfs", MS_NOSUID | flags, options) == 0;
}

// Only these of /dev, by the files that they were before it was hidden.
bool hide_devices() {
  constexpr std::array<const char*, 4> kKept = {"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"};
  std::array<int, kKept.size()> before{};
  for (std::size_t i = 0; i < kKept.size(); ++i) before[i] = open(kKept[i], O_PATH | O_CLOEXEC);
  if (!mount_memory("/dev", "size=64k,mode=755", 0)) return false;
  for (std::size_t i = 0; i < kKept.size(); ++i) {
    if (before[i] < 0) continue;
    char source[64] = "/proc/self/fd/";
    char digits[16];
    int n = 0;
    for (int fd = before[i]; n == 0 || fd > 0; fd /= 10) digits[n++] = char('0' + fd % 10);
    char* to = source + std::strlen(source);
    while (n > 0) *to++ = digits[--n];
    const int file = open(kKept[i], O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    if (file < 0) return false;
    close(file);
    if (mount(source, kKept[i], nullptr, MS_BIND, nullptr) != 0) return false;
    close(before[i]);
  }
  return true;
}

// linux/mount.h, which clashes with sys/mount.h.
struct MountAttributes {
  std::uint64_t set, clear, propagation, userns;
};
constexpr std::uint64_t kReadOnly = 1, kNoSetuid = 2;
constexpr unsigned kRecursive = 0x8000;  // AT_RECURSIVE
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

// Of the copy, which then is alone with the processes that it starts. `said` is told what did not work.
void isolate(const Enclosure& e) {
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) != 0)
    leave(e.complaint, "unshare");
  write_small("/proc/self/setgroups", "deny");
  if (!write_small("/proc/self/uid_map", e.uid_map) || !write_small("/proc/self/gid_map", e.gid_map))
    leave(e.complaint, "uid_map");
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) leave(e.complaint, "mount");
  if (!hide_devices()) leave(e.complaint, "/dev");
  if (!mount_memory("/run", "size=64k,mode=755", MS_NODEV)) leave(e.complaint, "/run");
  const MountAttributes attributes{kReadOnly | kNoSetuid, 0, 0, 0};
  if (syscall(SYS_mount_setattr, -1, "/", kRecursive, &attributes, sizeof attributes) != 0) leave(e.complaint, "mount_setattr");
  if (!mount_memory("/tmp", "size=16m,mode=700", MS_NODEV)) leave(e.complaint, "/tmp");
}

[[noreturn]] void become_program(const Enclosure& e) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (e.isolated && mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) leave(e.complaint, "/proc");
  if (chdir(e.isolated ? "/tmp" : e.folder) != 0) leave(e.complaint, "its folder");
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  set_limit(RLIMIT_CPU, e.seconds);
  set_limit(RLIMIT_AS, e.memory);
  set_limit(RLIMIT_FSIZE, e.file_bytes);
  set_limit(RLIMIT_CORE, 0);
  set_limit(RLIMIT_NOFILE, 64);
  if (e.isolated) set_limit(RLIMIT_NPROC, 64);
  dup2(e.input, 0), dup2(e.output, 1), dup2(e.complaint, 2);
  syscall(SYS_close_range, 3u, ~0u, 0u);
  const char* arguments[] = {e.python, "-I", "-B", "-", nullptr};
  const char* environment[] = {"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "PYTHONHASHSEED=0", nullptr};
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve(e.python, const_cast<char**>(arguments), const_cast<char**>(environment));
  leave(2, "python3");
}

// A group of its own, so that what is not isolated can be killed with what it started.
[[noreturn]] void enclose(const Enclosure& e) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (!e.isolated) become_program(e);
  isolate(e);
  const pid_t child = fork();  // the first process of its namespace: with it all others end
  if (child < 0) leave(e.complaint, "fork");
  if (child == 0) become_program(e);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) _exit(128 + WTERMSIG(status));
  _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 125);
}

// ---- outside of it ----------------------------------------------------------------------------------------------------------

class OwnedDescriptor {
 public:
  explicit OwnedDescriptor(int fd) : fd_(fd) {
    if (fd < 0) fail_errno("cannot start a program", errno);
  }
  ~OwnedDescriptor() { close(fd_); }
  OwnedDescriptor(const OwnedDescriptor&) = delete;
  OwnedDescriptor& operator=(const OwnedDescriptor&) = delete;
  operator int() const { return fd_; }

 private:
  int fd_;
};

// In memory, with a size that the program's limit of files bounds.
std::string text_in(int file) {
  std::string text(std::size_t(std::max<off_t>(lseek(file, 0, SEEK_END), 0)), '\0');
  const ssize_t n = pread(file, text.data(), text.size(), 0);
  text.resize(std::size_t(std::max<ssize_t>(n, 0)));
  return text;
}

std::string_view final_line(std::string_view text) {
  text = text.substr(0, text.find_last_not_of(" \r\n") + 1);
  return text.substr(text.rfind('\n') + 1);
}

// The status of wait, or nothing if it was killed at the end of its time.
std::optional<int> status_by(pid_t child, SandboxClock::time_point end) {
  int status = 0;
  for (;;) {
    if (retried([&] { return waitpid(child, &status, WNOHANG); }) == child) break;
    if (SandboxClock::now() >= end) {
      kill(-child, SIGKILL);
      kill(child, SIGKILL);
      retried([&] { return waitpid(child, &status, 0); });
      return std::nullopt;
    }
    usleep(2000);
  }
  kill(-child, SIGKILL);  // what it has left behind, if it was not isolated
  return status;
}

struct Ended {
  std::optional<int> status;
  std::string output, complaint;
};

Ended run_enclosed(const std::string& program, const SandboxOptions& o, const std::string& python, const std::string& folder) {
  const OwnedDescriptor input(memfd_create("weft", MFD_CLOEXEC)), output(memfd_create("weft", MFD_CLOEXEC)),
      complaint(memfd_create("weft", MFD_CLOEXEC));
  write_all(input, std::as_bytes(std::span(program)), "a program");
  lseek(input, 0, SEEK_SET);
  Enclosure e{.input = input,
              .output = output,
              .complaint = complaint,
              .isolated = !o.without_isolation,
              .python = python.c_str(),
              .folder = folder.c_str(),
              .uid_map = {},
              .gid_map = {},
              .seconds = rlim_t(o.seconds) + 1,
              .memory = o.memory,
              .file_bytes = o.file_bytes};
  // Somebody who is nobody, so that the program has no capabilities in its own namespaces either.
  *fmt::format_to_n(e.uid_map, sizeof e.uid_map - 1, "65534 {} 1", geteuid()).out = '\0';
  *fmt::format_to_n(e.gid_map, sizeof e.gid_map - 1, "65534 {} 1", getegid()).out = '\0';
  const auto end =
      SandboxClock::now() + std::chrono::duration_cast<SandboxClock::duration>(std::chrono::duration<double>(o.seconds));
  const pid_t child = fork();
  if (child < 0) fail_errno("cannot start a program", errno);
  if (child == 0) enclose(e);
  const std::optional<int> status = status_by(child, end);
  return {status, text_in(output), text_in(complaint)};
}

std::string python_of(const SandboxOptions& o) {
  if (!o.python.empty()) return o.python.string();
  if (access("/usr/bin/python3", X_OK) == 0) return "/usr/bin/python3";
  if (const auto found = find_program("python3")) return found->string();
  fail(ErrorKind::io, "sandbox: there is no python3", {}, "apt-get install python3");
}

// Empty, and gone with the object.
class OwnFolder {
 public:
  OwnFolder() : name_((fs::temp_directory_path() / "weft-XXXXXX").string()) {
    if (!mkdtemp(name_.data())) fail_errno("cannot make a folder for a program", errno);
  }
  ~OwnFolder() {
    std::error_code ignored;
    fs::remove_all(name_, ignored);
  }
  OwnFolder(const OwnFolder&) = delete;
  OwnFolder& operator=(const OwnFolder&) = delete;
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

}  // namespace

std::optional<std::string> no_isolation() {
  static const std::optional<std::string> reason = []() -> std::optional<std::string> {
    const Ended ended = run_enclosed("", {.seconds = 10}, "/bin/true", "/");
    if (ended.status && WIFEXITED(*ended.status) && WEXITSTATUS(*ended.status) == 0) return std::nullopt;
    const std::string line(final_line(ended.complaint));
    return line.empty() ? "it does not start a program" : line;
  }();
  return reason;
}

SandboxResult run_python(const std::string& program, const SandboxOptions& o) {
  const std::string python = python_of(o);
  if (!o.without_isolation)
    if (const auto reason = no_isolation())
      fail(ErrorKind::device, "sandbox: this machine does not let a program be isolated", *reason,
           "allow user namespaces; or run it unprotected, where it may do no harm (--unsafe)");
  std::optional<OwnFolder> folder;
  if (o.without_isolation) folder.emplace();
  std::random_device random;
  const std::string mark = fmt::format("{:08x}{:08x}", random(), random());  // said at the end, which early exits do not reach
  const SandboxClock::time_point start = SandboxClock::now();
  const Ended ended =
      run_enclosed(fmt::format("{}\nprint('\\n{}', flush=True)\n", program, mark), o, python, folder ? folder->name() : "/");
  SandboxResult result;
  result.seconds = std::chrono::duration<double>(SandboxClock::now() - start).count();
  if (!ended.status) {
    result.end = SandboxResult::timed_out, result.complaint = fmt::format("killed after {} s", o.seconds);
  } else if (WIFEXITED(*ended.status) && WEXITSTATUS(*ended.status) == 0 && final_line(ended.output) == mark) {
    result.end = SandboxResult::passed;
  } else if (result.complaint = std::string(final_line(ended.complaint)).substr(0, 500); result.complaint.empty()) {
    const int status = *ended.status, code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.complaint = code > 128 && code < 128 + 65 ? fmt::format("ended by signal {} ({})", code - 128, strsignal(code - 128))
                       : code == 0                   ? "it left before its end"
                                                     : fmt::format("ended with {}", code);
  }
  return result;
}

}  // namespace weft
