// What the system says of a process's memory. (A child's ru_maxrss will not do: it begins with what the parent had.)
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace weft {

inline std::size_t peak_of(pid_t process) {  // bytes that were resident at most so far; 0 once it has ended
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string word; status >> word;)
    if (std::size_t kilobytes = 0; word == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  return 0;
}

// Runs a shell command that is one program, its output into a file; -1: it failed. The program is stopped at its exit to be
// asked, so that its peak is exact however seldom this process is given the processor.
inline std::int64_t peak_memory(const std::string& command, const std::filesystem::path& output) {
  const std::string line = "exec " + command;
  const pid_t child = fork();
  if (child < 0) return -1;
  if (child == 0) {
    const int file = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (file < 0 || dup2(file, 1) < 0 || dup2(file, 2) < 0 || ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) < 0) _exit(127);
    execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
    _exit(127);
  }
  std::size_t peak = 0;
  int status = 0;
  bool first = true;  // the stop at execl
  while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
    const int event = status >> 16, signal = WSTOPSIG(status);
    if (first) ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL);
    if (event == PTRACE_EVENT_EXIT) peak = peak_of(child);
    const bool deliver = event == 0 && signal != SIGTRAP;  // not the stops at execs
    ptrace(PTRACE_CONT, child, nullptr, reinterpret_cast<void*>(deliver ? std::intptr_t(signal) : 0));
    first = false;
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? std::int64_t(peak) : -1;
}

}  // namespace weft
