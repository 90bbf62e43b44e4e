// Each folder includes only what stands to its left in the design: jit, autograd, ops, nn, models, tools; optim is on
// ops.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace {

namespace fs = std::filesystem;

const fs::path kSource = WEFT_SOURCE_DIR;
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"jit", {"jit"}},
    {"autograd", {"jit", "autograd"}},
    {"ops", {"jit", "autograd", "ops"}},
    {"nn", {"jit", "autograd", "ops", "nn"}},
    {"optim", {"jit", "autograd", "ops", "optim"}},
    {"models", {"jit", "autograd", "ops", "nn", "models"}},
    {"tools", {"jit", "autograd", "ops", "nn", "optim", "models", "tools"}},
};

template <class F>  // f(relative path, line number, line)
void for_each_line(const fs::path& folder, F f) {
  for (const auto& item : fs::recursive_directory_iterator(kSource / folder)) {
    if (!item.is_regular_file()) continue;
    std::ifstream in(item.path());
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) f(fs::relative(item.path(), kSource), number, line);
  }
}

TEST(IncludeOrder, FoldersIncludeOnlyWhatStandsToTheirLeft) {
  const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  int files = 0;
  for (const auto& rule : kMayInclude) {  // no structured binding: clang 16 cannot capture one under OpenMP
    const std::string& folder = rule.first;
    [[maybe_unused]] const std::set<std::string>& allowed = rule.second;
    for_each_line(folder, [&](const fs::path& file, int number, const std::string& line) {
      files += number == 1;
      std::smatch match;
      if (line.find("include") == std::string::npos || !std::regex_match(line, match, include)) return;
      std::string name = match[2], first = name.substr(0, name.find('/'));
      auto where = file.string() + ":" + std::to_string(number) + ": " + line;
      if (match[1] == "\"") {
        EXPECT_TRUE(name.find('/') != std::string::npos) << where << "\nname it from the top folder on";
        EXPECT_TRUE(allowed.contains(first)) << where << "\n" << folder << " may not include " << first;
        EXPECT_TRUE(fs::exists(kSource / name)) << where;
      } else {
        EXPECT_FALSE(kMayInclude.contains(first) || first == "weft" || first == "tests") << where << "\nuse quotes";
      }
    });
  }
  EXPECT_GT(files, 10);
}

TEST(IncludeOrder, HeadersAreGuarded) {
  for (const auto& rule : kMayInclude) {  // no structured binding: clang 16 cannot capture one under OpenMP
    const std::string& folder = rule.first;
    [[maybe_unused]] const std::set<std::string>& allowed = rule.second;
    for (const auto& item : fs::recursive_directory_iterator(kSource / folder)) {
      if (item.path().extension() != ".h") continue;
      std::ifstream in(item.path());
      std::string text(std::istreambuf_iterator<char>(in), {});
      EXPECT_NE(text.find("#pragma once"), std::string::npos) << item.path();
    }
  }
}

// A reader of the repository has its files, so comments give the formula or the paper, not a document that is elsewhere.
TEST(IncludeOrder, CommentsCiteNothingThatIsNotHere) {
  for (const auto& rule : kMayInclude) {  // no structured binding: clang 16 cannot capture one under OpenMP
    const std::string& folder = rule.first;
    for_each_line(folder, [](const fs::path& file, int number, const std::string& line) {
      for (const char* document : {"SPEC", "DESIGN", "HOLES", "KERNELS"})
        EXPECT_EQ(line.find(document), std::string::npos) << file << ":" << number << ": " << line;
    });
  }
}

// The product stands alone: what lies beside the repository is for its tests at most.
TEST(IncludeOrder, NothingRefersToFilesOutside) {
  for (const auto& rule : kMayInclude) {  // no structured binding: clang 16 cannot capture one under OpenMP
    const std::string& folder = rule.first;
    [[maybe_unused]] const std::set<std::string>& allowed = rule.second;
    for_each_line(folder, [](const fs::path& file, int number, const std::string& line) {
      EXPECT_EQ(line.find("shared/"), std::string::npos) << file << ":" << number << ": " << line;
    });
  }
  for (const char* name : {"CMakeLists.txt", "README.md"}) {
    std::ifstream in(kSource / name);
    for (std::string line; std::getline(in, line);)
      EXPECT_EQ(line.find("../shared"), std::string::npos) << name << ": " << line;
  }
}

}  // namespace
