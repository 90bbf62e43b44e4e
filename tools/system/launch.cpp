#include "tools/system/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string_view>
#include <thread>

#include "jit/driver.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"
#include "jit/ranks/channel.h"

namespace weft {
namespace {

using LaunchClock = std::chrono::steady_clock;

constexpr std::array kPassedOn = {SIGINT, SIGTERM, SIGHUP};
constexpr std::chrono::seconds kFarewell{15};  // for the others, once one has failed

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (std::string& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// This process's variables but those named, and the ones given.
std::vector<std::string> with_variables(const std::vector<std::pair<std::string, std::string>>& own) {
  std::vector<std::string> all;
  for (char** v = environ; *v; ++v) {
    const std::string_view text = *v, name = text.substr(0, text.find('='));
    if (std::none_of(own.begin(), own.end(), [&](const auto& o) { return o.first == name; })) all.emplace_back(text);
  }
  for (const auto& [name, value] : own) all.push_back(name + "=" + value);
  return all;
}

struct Launched {
  pid_t pid = -1;
  bool ended = false;
};

std::string own_program() {
  std::array<char, PATH_MAX> program{};
  if (readlink("/proc/self/exe", program.data(), program.size() - 1) <= 0)
    fail(ErrorKind::io, "cannot find this program's own file", std::strerror(errno));
  return program.data();
}

// `output`: a descriptor that becomes its stdout and stderr; -1: these are ours. `hidden`: one that it is not to have.
pid_t start_program(const std::string& program, std::vector<std::string> words, std::vector<std::string> variables, int output,
                    int hidden) {
  const std::vector<char*> argv = pointers(words), envp = pointers(variables);
  sigset_t none;
  sigemptyset(&none);
  const pid_t parent = getpid(), pid = fork();
  if (pid != 0) return pid;
  // Until the program begins anew, only calls that may follow a fork.
  setpgid(0, 0);                     // what a terminal sends comes once, passed on
  prctl(PR_SET_PDEATHSIG, SIGTERM);  // without whoever waits for it, it ends
  if (getppid() != parent) _exit(3);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (hidden >= 0) close(hidden);
  if (output >= 0) dup2(output, STDOUT_FILENO), dup2(output, STDERR_FILENO);
  execve(program.c_str(), argv.data(), envp.data());
  _exit(127);
}

pid_t start(int rank, int count, const Listener& listener, const std::string& token, std::vector<std::string> words,
            const std::string& program) {
  std::vector<std::pair<std::string, std::string>> own = {{"RANK", std::to_string(rank)},
                                                          {"WORLD_SIZE", std::to_string(count)},
                                                          {"LOCAL_RANK", std::to_string(rank)},
                                                          {"LOCAL_WORLD_SIZE", std::to_string(count)},
                                                          {"MASTER_ADDR", "127.0.0.1"},
                                                          {"MASTER_PORT", std::to_string(listener.port)},
                                                          {"WEFT_TOKEN", token}};
  if (rank == 0) own.emplace_back("WEFT_RANK_LISTENER", std::to_string(listener.fd));
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency() / unsigned(count));
  if (!std::getenv("OMP_NUM_THREADS")) own.emplace_back("OMP_NUM_THREADS", std::to_string(threads));
  return start_program(program, std::move(words), with_variables(own), -1, rank == 0 ? -1 : listener.fd);
}

}  // namespace

int launch_ranks(int count, const std::vector<std::string>& words) {
  const std::string program = own_program();
  const Listener listener = listen_at("127.0.0.1", 0, true);
  std::random_device device;
  const std::string token = fmt::format("{:08x}{:08x}{:08x}{:08x}", device(), device(), device(), device());
  sigset_t passed, before;
  sigemptyset(&passed);
  for (const int number : kPassedOn) sigaddset(&passed, number);
  sigaddset(&passed, SIGCHLD);
  sigprocmask(SIG_BLOCK, &passed, &before);
  std::vector<Launched> all;
  for (int rank = 0; rank < count; ++rank) all.push_back({start(rank, count, listener, token, words, program)});
  close(listener.fd);
  int code = 0, left = count;
  LaunchClock::time_point failed_at;
  const auto to_all = [&](int number) {
    for (const Launched& child : all)
      if (!child.ended && child.pid > 0) kill(child.pid, number);
  };
  while (left > 0) {
    const timespec second{1, 0};
    if (const int number = sigtimedwait(&passed, nullptr, &second); number > 0 && number != SIGCHLD) to_all(number);
    for (int rank = 0; rank < count; ++rank) {
      Launched& child = all[std::size_t(rank)];
      int status = 0;
      if (child.ended || waitpid(child.pid, &status, WNOHANG) == 0) continue;
      child.ended = true, --left;
      const int own = WIFEXITED(status) ? WEXITSTATUS(status) : exit_code(ErrorKind::device);
      if (WIFSIGNALED(status))
        print_error("weft: rank {} was ended by signal {} ({})\n", rank, WTERMSIG(status), strsignal(WTERMSIG(status)));
      if (own != 0 && code == 0) code = own, failed_at = LaunchClock::now();
    }
    if (code != 0 && LaunchClock::now() - failed_at > kFarewell) to_all(SIGKILL);
  }
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return code;
}

int launch_on_gpus(int count, const std::vector<std::string>& words) {
  if (const auto missing = missing_cuda_device())
    fail(ErrorKind::device, "--gpus: no GPU can be used", *missing, "leave the option out; on CPUs: mpirun -n N weft ...");
  int found = 0;
  cuda_check(cuda_driver(), cuda_driver().cuDeviceGetCount(&found), "cuDeviceGetCount");
  if (count > found)
    fail(ErrorKind::device, "there are fewer GPUs than ranks", fmt::format("--gpus {}, found {}", count, found));
  return launch_ranks(count, words);
}

Child::Child(const std::vector<std::string>& words, const std::filesystem::path& output) {
  const int file = retried([&] { return open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666); });
  if (file < 0) fail_errno("cannot write " + output.string(), errno);
  pid_ = start_program(own_program(), words, with_variables({}), file, -1);
  const int error = errno;
  close(file);
  if (pid_ < 0) fail_errno("cannot start a process", error);
}

Child::~Child() {
  if (ended()) return;
  kill(pid_, SIGKILL);
  retried([&] { return waitpid(pid_, nullptr, 0); });
}

std::optional<int> Child::ended() {
  int status = 0;
  if (code_ || retried([&] { return waitpid(pid_, &status, WNOHANG); }) != pid_) return code_;
  return code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void Child::send(int signal) {
  if (!ended()) kill(pid_, signal);
}

}  // namespace weft
