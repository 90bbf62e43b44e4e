// Shell commands in a folder; `weft` is the program that WEFT_PROGRAM names.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/temp_folder.h"

namespace weft {

struct Outcome {
  int code;          // -1: ended by a signal
  std::string text;  // stdout and stderr
};

inline Outcome shell(const std::string& command, const std::filesystem::path& folder) {
  const std::string bin = std::filesystem::path(std::getenv("WEFT_PROGRAM")).parent_path().string();
  // A mistake that is not seen becomes a long run of the program.
  const std::string script =
      "PATH='" + bin + "':$PATH; weft() { timeout 100 weft \"$@\"; }; cd '" + folder.string() + "' || exit 99; " + command;
  std::FILE* pipe = ::popen(("{ " + script + "\n} 2>&1 </dev/null").c_str(), "r");
  Outcome outcome{-1, {}};
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) outcome.text.append(buffer, n);
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
  return outcome;
}

// A test in a folder of its own.
class ProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* program = std::getenv("WEFT_PROGRAM");
    if (!program || !*program) GTEST_SKIP() << "WEFT_PROGRAM is not set";
  }
  Outcome shell(const std::string& command) const { return weft::shell(command, folder_.path()); }
  const TempFolder folder_;
};

inline void expect_words(const Outcome& outcome, int code, const std::vector<std::string>& words) {
  EXPECT_EQ(outcome.code, code) << outcome.text;
  for (const std::string& word : words)
    EXPECT_NE(outcome.text.find(word), std::string::npos) << "no \"" << word << "\" in: " << outcome.text;
}

}  // namespace weft
