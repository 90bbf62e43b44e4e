// The completion scripts that the program prints, run by a shell.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "tests/program.h"

namespace weft {
namespace {

class Completion : public ProgramTest {
 protected:
  // What bash offers for the last of the words, sorted.
  std::vector<std::string> offers(const std::string& words) {
    const Outcome outcome = shell("bash -c 'source <(weft completion bash); COMP_WORDS=(" + words +
                                  "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _weft; printf \"%s\\n\" \"${COMPREPLY[@]}\"'");
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    std::istringstream lines(outcome.text);
    std::vector<std::string> found;
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) found.push_back(line);
    std::sort(found.begin(), found.end());
    return found;
  }
};

using Words = std::vector<std::string>;

TEST_F(Completion, OfBash) {
  if (shell("bash --version").code != 0) GTEST_SKIP() << "no bash";
  std::filesystem::create_directory(folder_ / "run one");
  folder_.write("run.txt", "");
  EXPECT_EQ(offers("weft tr"), Words{"train"});
  EXPECT_EQ(offers("weft --ver"), Words{"--version"});
  EXPECT_GE(offers("weft \"\"").size(), 7u);
  EXPECT_EQ(offers("weft train --prec"), Words{"--precision"});
  EXPECT_EQ(offers("weft train --precision \"\""), (Words{"auto", "bf16", "fp32"}));
  EXPECT_EQ(offers("weft train --steps 3 --device cu"), Words{"cuda"});
  EXPECT_EQ(offers("weft train --device = e"), Words{"emu"}) << "how bash cuts --device=e";
  EXPECT_EQ(offers("weft train --device ="), (Words{"auto", "cpu", "cuda", "emu"}));
  EXPECT_EQ(offers("weft train --steps \"\""), Words{}) << "a number";
  EXPECT_EQ(offers("weft train --tf32 --widt"), Words{"--width"}) << "a flag takes no value";
  EXPECT_EQ(offers("weft train --data run"), (Words{"run one", "run.txt"}));
  EXPECT_EQ(offers("weft train --out run"), Words{"run one"}) << "folders alone";
  EXPECT_EQ(offers("weft verify ru"), Words{"run one"}) << "what stands without an option's name";
  EXPECT_EQ(offers("weft completion z"), Words{"zsh"});
  EXPECT_EQ(offers("weft bench interp"), Words{"interpreter"});
  EXPECT_EQ(offers("weft data \"\""), (Words{"check", "make"}));
  EXPECT_EQ(offers("weft data make --shard"), Words{"--shard-tokens"});
  EXPECT_EQ(offers("weft generate --precision b"), Words{"bf16"});
}

TEST_F(Completion, OfZshHasEveryCommandAndIsItsSyntax) {
  const Outcome script = shell("weft completion zsh");
  expect_words(script, 0, {"#compdef weft", "'train:", "'--device=[", ":(auto cpu cuda emu)'", "_files -/"});
  folder_.write("_weft", script.text);
  if (shell("zsh --version").code != 0) GTEST_SKIP() << "no zsh to check the syntax with";
  expect_words(shell("zsh -n _weft"), 0, {});
}

}  // namespace
}  // namespace weft
