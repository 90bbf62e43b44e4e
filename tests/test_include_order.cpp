// Each folder includes only what stands to its left in the design: jit, autograd, ops, nn, models, tools; optim is on ops.
// Within a folder headers have an order too: none includes itself by way of others.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

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

// What each header includes of weft's own.
std::map<std::string, std::set<std::string>> headers() {
  const std::regex include(R"re(^\s*#\s*include\s*"([^"]+)".*)re");
  std::map<std::string, std::set<std::string>> found;
  for (const auto& rule : kMayInclude)
    for_each_line(rule.first, [&](const fs::path& file, int, const std::string& line) {
      if (file.extension() != ".h") return;
      std::set<std::string>& included = found[file.generic_string()];
      std::smatch match;
      if (line.find("include") != std::string::npos && std::regex_match(line, match, include)) included.insert(match[1]);
    });
  return found;
}

TEST(IncludeOrder, HeadersHaveNoCycle) {
  const auto all = headers();
  EXPECT_GT(all.size(), 50u);
  std::set<std::string> done;
  std::vector<std::string> path;
  const std::function<void(const std::string&)> visit = [&](const std::string& header) {
    if (done.contains(header)) return;
    if (const auto again = std::find(path.begin(), path.end(), header); again != path.end()) {
      std::string circle = header;
      while (path.back() != header) circle += " <- " + path.back(), path.pop_back();
      FAIL() << circle << " <- " << header;
    }
    path.push_back(header);
    if (const auto included = all.find(header); included != all.end())
      for (const std::string& next : included->second) {
        visit(next);
        if (testing::Test::HasFatalFailure()) return;
      }
    path.pop_back();
    done.insert(header);
  };
  for (const auto& header : all) {
    path.clear();
    visit(header.first);
  }
}

// Recording does not know of plans and of what runs them: neither do the headers of what records, nor those of ops.
TEST(IncludeOrder, RecordingNeedsTheTapeAlone) {
  const auto all = headers();
  const std::set<std::string> later = {"autograd/plan.h", "autograd/gpu_plan.h", "autograd/schedule.h", "autograd/context.h",
                                       "autograd/run.h"};
  for (const std::string& header : later) EXPECT_TRUE(all.contains(header)) << header;
  for (const char* root : {"autograd/tape.h", "autograd/state.h", "autograd/random.h", "autograd/pointwise.h",
                           "autograd/backward.h", "autograd/lowering.h", "ops/ops.h", "ops/cuda.h", "ops/custom.h"}) {
    std::vector<std::string> todo = {root};
    std::set<std::string> seen;
    while (!todo.empty()) {
      const std::string header = todo.back();
      todo.pop_back();
      if (!seen.insert(header).second) continue;
      EXPECT_FALSE(later.contains(header)) << root << " includes " << header;
      if (const auto included = all.find(header); included != all.end())
        todo.insert(todo.end(), included->second.begin(), included->second.end());
    }
    EXPECT_GT(seen.size(), 3u) << root;
  }
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
