// What the system says of a process's memory. (A child's ru_maxrss will not do: it begins with what the parent had.)
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
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

// Runs a shell command that is one program, its output into a file; -1: it failed.
inline std::int64_t peak_memory(const std::string& command, const std::filesystem::path& output) {
  std::string words[] = {"sh", "-c", "exec " + command};
  char* const argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t child = 0;
  const int error = posix_spawn(&child, "/bin/sh", &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error) return -1;
  std::size_t peak = 0;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    peak = std::max(peak, peak_of(child));
    usleep(500);
  }
  return status == 0 ? std::int64_t(peak) : -1;
}

}  // namespace weft
