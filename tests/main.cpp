// Runs the tests of one file (--file=test_x.cpp), and of those the suites of one speed (--speed=quick|slow|deep): the names of
// slow suites begin with Slow, those of suites for .ci/deep alone with Deep. --coverage=FOLDER joins what
// WEFT_EMU_COVERAGE=FOLDER has left; --mutants lists the mutants of tests/mutate.h, --mutant=N plants one; --fingerprints reads
// names of compiled files and tells which are the same code.
#include <gtest/gtest.h>

#include <charconv>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>

#include "jit/cuda_text.h"
#include "tests/coverage.h"
#include "tests/mutate.h"

namespace {

// A line each: number, file, line, description, separated by tabs.
void list_mutants() {
  std::size_t number = 0;
  for (const weft::Mutant& m : weft::drawn_mutants())
    std::printf("%zu\t%s\t%d\t%s\n", number++, m.file.c_str(), m.line, describe(weft::embedded_text(m.file), m).c_str());
}

bool plant(std::string_view number) {
  std::size_t n = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), n);
  if (error != std::errc() || end != number.data() + number.size() || n >= weft::drawn_mutants().size()) return false;
  weft::plant(weft::drawn_mutants()[n]);
  return true;
}

// A line for each file of the standard input: the hash of its PTX, which begins after a header, and the file.
void list_fingerprints() {
  for (std::string file; std::getline(std::cin, file);) {
    std::ifstream in(file, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const std::size_t begin = std::min(text.find(".version"), text.size());
    std::printf("%016zx\t%s\n", std::hash<std::string>()(weft::canonical_ptx(std::string_view(text).substr(begin))),
                file.c_str());
  }
}

std::string_view speed_of(std::string_view suite) {  // "SlowX", or "Instance/SlowX" of a TEST_P
  suite.remove_prefix(suite.find('/') + 1);
  return suite.starts_with("Slow") ? "slow" : suite.starts_with("Deep") ? "deep" : "quick";
}

// "" when the file has no tests at all.
std::string filter_for(std::string_view file, std::string_view speed) {
  std::string filter;
  bool known = false;
  const auto& all = *testing::UnitTest::GetInstance();
  for (int s = 0; s < all.total_test_suite_count(); ++s) {
    const auto& suite = *all.GetTestSuite(s);
    const bool right_speed = speed.empty() || speed_of(suite.name()) == speed;
    for (int t = 0; t < suite.total_test_count(); ++t) {
      const auto& test = *suite.GetTestInfo(t);
      if (!std::string_view(test.file()).ends_with(file)) continue;
      known = true;
      if (right_speed) filter.append(suite.name()).append(".").append(test.name()).append(":");
    }
  }
  return !known ? "" : filter.empty() ? "-*" : filter;
}

}  // namespace

int main(int argc, char** argv) {
  std::string file, speed;
  bool chosen = false;
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    std::string_view word = argv[i];
    if (word == "--mutants") {
      list_mutants();
      return 0;
    }
    if (word == "--fingerprints") {
      list_fingerprints();
      return 0;
    }
    if (word.starts_with("--mutant=") && plant(word.substr(9))) continue;
    if (word.starts_with("--file=")) {
      file = "/" + std::string(word.substr(7));
    } else if (word == "--speed=quick" || word == "--speed=slow" || word == "--speed=deep") {
      speed = word.substr(8);
    } else if (word.starts_with("--coverage=")) {
      return weft::report_coverage(std::string(word.substr(11)));
    } else {
      std::fprintf(
          stderr,
          "unknown argument %s (known: --file=NAME.cpp, --speed=quick|slow|deep, --coverage=FOLDER, --mutants, --mutant=N, "
          "--fingerprints, --gtest_...)\n",
          argv[i]);
      return 2;
    }
    chosen = true;
  }
  if (chosen) {
    std::string filter = filter_for(file, speed);
    if (filter.empty()) {
      std::fprintf(stderr, "no test in %s\n", file.c_str());
      return 1;
    }
    testing::GTEST_FLAG(filter) = filter;
  }
  return RUN_ALL_TESTS();
}
