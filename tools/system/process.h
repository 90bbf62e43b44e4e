// Running other programs: never through a shell, and never for longer than they may take.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// An executable file of this name in a folder of PATH, or else in one of `more`. Entries of PATH that are empty or relative are
// passed over: what lies in the folder one happens to stand in must not run.
std::optional<std::filesystem::path> find_program(std::string_view name, const std::vector<std::filesystem::path>& more = {});

struct Process {
  std::filesystem::path program;
  std::vector<std::string> arguments = {};
  std::string input = {};             // its standard input
  std::filesystem::path folder = {};  // where it works; empty: here
  double seconds = 60;                // then it is killed, with the processes that it started
  bool complains = false;             // its stderr is ours, instead of nowhere
};
// What it prints on its standard output; nothing if it cannot be started, fails, or takes too long.
std::optional<std::string> output_of(const Process& process);

}  // namespace weft
