#include <limits.h>
#include <unistd.h>

#include <array>
#include <string_view>
#include <vector>

#include "tools/cli/command_line.h"

namespace {

// GNU's OpenMP reads whether its threads spin while they wait (jit/parallel.cpp says why they should not) before any
// constructor of a program runs, and libc's own start drops what is put into the environment before that. So a program that was
// begun without the variable begins again with it, before anything else is done. Where that fails, its threads spin.
void begin_with_passive_waiting(int, char** argv, char** environment) {
  std::vector<char*> variables;
  for (; *environment; ++environment) {
    for (const std::string_view name : {"OMP_WAIT_POLICY=", "GOMP_SPINCOUNT=", "KMP_BLOCKTIME=", "KMP_LIBRARY="})
      if (std::string_view(*environment).starts_with(name)) return;
    variables.push_back(*environment);
  }
  char passive[] = "OMP_WAIT_POLICY=passive";
  variables.insert(variables.end(), {passive, nullptr});
  std::array<char, PATH_MAX> program{};
  if (readlink("/proc/self/exe", program.data(), program.size() - 1) > 0) execve(program.data(), argv, variables.data());
}

[[gnu::section(".preinit_array"), gnu::used]] void (*const before_all)(int, char**, char**) = begin_with_passive_waiting;

}  // namespace

int main(int argc, char** argv) { return weft::run_program(argc, argv); }
