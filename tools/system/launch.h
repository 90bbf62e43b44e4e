// This program started again, with other words, in processes of their own.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace weft {

// Runs the program `count` times with these words (the first is its name), each with RANK, WORLD_SIZE, LOCAL_RANK, a token and
// a place to meet, and waits for all. SIGINT, SIGTERM and SIGHUP are passed on to them. When one fails the others, which hear
// of it themselves, are killed if they have not ended soon. Returns 0, or the exit code of the first that failed; 3 if a signal
// ended it.
int launch_ranks(int count, const std::vector<std::string>& words);

// The same, each with a GPU. Errors (ErrorKind::device): there is none, or there are fewer.
int launch_on_gpus(int count, const std::vector<std::string>& words);

// This program with other words (the first is its name), what it prints going to a file. Signals of the terminal do not reach
// it; when this process goes away it gets SIGTERM.
class Child {
 public:
  Child(const std::vector<std::string>& words, const std::filesystem::path& output);
  ~Child();  // if it has not ended, it is killed
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  std::optional<int> ended();  // its exit code, or 128 + the signal that ended it; nothing: it runs
  void send(int signal);

 private:
  pid_t pid_;
  std::optional<int> code_;
};

}  // namespace weft
