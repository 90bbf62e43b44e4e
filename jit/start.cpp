#include "jit/start.h"

#include <sys/resource.h>

#include <array>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <string_view>

namespace weft {

// A shared library can have no .preinit_array: a program that is linked with that one is started with the variables, or has
// this file among its own, as weft's has (CMakeLists.txt).
#ifdef weft_EXPORTS

void put_back_environment() {}

#else

namespace {

std::array<char*, 2> borrowed{};  // entries whose places are taken

bool is(const char* entry, std::string_view name) {
  const std::string_view text = entry;
  return text.starts_with(name) && text.substr(name.size()).starts_with('=');
}

bool has(char** environment, std::initializer_list<std::string_view> names) {
  for (; *environment; ++environment)
    for (const std::string_view name : names)
      if (is(*environment, name)) return true;
  return false;
}

void put(char** environment, char* added) {
  for (const std::string_view name : {"_", "OLDPWD", "SHLVL", "PWD", "LOGNAME", "USER", "MAIL", "SHELL", "HOSTNAME",
                                      "INVOCATION_ID", "JOURNAL_STREAM", "TERM", "HOME"})
    for (char** entry = environment; *entry; ++entry)
      if (is(*entry, name)) {
        borrowed[borrowed[0] ? 1 : 0] = *entry;
        *entry = added;
        return;
      }
}

bool is_limited(decltype(RLIMIT_DATA) resource) {
  rlimit limit{};
  return getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

// GNU's OpenMP reads whether its threads spin while they wait (jit/parallel.cpp says why they should not) when it is loaded,
// and OpenBLAS how many threads to start, which weft does not use, and which end the process where its memory is limited and
// they find no room. Both is before any constructor of a program, and libc's own start drops what is put into the environment
// before that. But libc hands on the array of the environment that is there already when this is called. That has no room for
// more, so variables that no library cares about lend their places until the libraries have read it. Where there are none,
// threads spin.
void fill_environment(int, char**, char** environment) {
  static char passive[] = "OMP_WAIT_POLICY=passive", single[] = "OPENBLAS_NUM_THREADS=1";
  if ((is_limited(RLIMIT_DATA) || is_limited(RLIMIT_AS)) && !has(environment, {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS"}))
    put(environment, single);
  if (!has(environment, {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"})) put(environment, passive);
}

[[gnu::section(".preinit_array"), gnu::used]] void (*const before_all)(int, char**, char**) = fill_environment;

[[gnu::constructor(101)]] void first_of_the_program() { put_back_environment(); }

}  // namespace

void put_back_environment() {
  for (char*& entry : borrowed) {
    if (!entry) continue;
    const std::string_view text = entry;
    const std::size_t equals = text.find('=');
    setenv(std::string(text.substr(0, equals)).c_str(), entry + equals + 1, 0);
    entry = nullptr;
  }
}

#endif

}  // namespace weft
