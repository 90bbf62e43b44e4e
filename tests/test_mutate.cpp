// The rules that make mutants, and the lists of the mutation test.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "jit/cuda_text.h"
#include "tests/mutate.h"

namespace weft {
namespace {

// The mutated lines of a text, by rule.
std::vector<std::string> lines_of(const std::string& text, const std::string& rule) {
  std::vector<std::string> lines;
  for (const Mutant& m : mutants_of("t", text))
    if (m.rule == rule) lines.push_back(describe(text, m).substr(("t: " + rule + ": ").size()));
  return lines;
}
using Lines = std::vector<std::string>;

TEST(Mutate, EachRule) {
  EXPECT_EQ(lines_of("a;\n__syncthreads();  // why\n__syncwarp();", "barrier"),
            (Lines{"a; ;  // why", "__syncthreads();  // why ;"}));
  EXPECT_EQ(lines_of("while (i < n) f<int>(i << 1);", "less"), (Lines{"while (i <= n) f<int>(i << 1);"}));
  EXPECT_EQ(lines_of("const int n = a.b < c ? a.b : index(c), m = d < e ? d : e - 1;", "less"),
            (Lines{"const int n = a.b < c ? a.b : index(c), m = d <= e ? d : e - 1;"}));
  EXPECT_EQ(lines_of("x[i + 1] = i + 1.0f + 10 + 1u;", "plus_one"), (Lines{"x[i + 0] = i + 1.0f + 10 + 1u;"}));
  EXPECT_EQ(
      lines_of("for (int i = 0; i < n; i += 4 * T, j -= s) {}", "stride"),
      (Lines{"for (int i = 0; i < n; i += 2 * (4 * T), j -= s) {}", "for (int i = 0; i < n; i += 4 * T, j -= 2 * (s)) {}"}));
  EXPECT_EQ(lines_of("f(const T* x, index stride) { x[index(a.x_row) * r + stride * k]; }", "stride"),
            (Lines{"f(const T* x, index stride) { x[index(2 * a.x_row) * r + stride * k]; }",
                   "f(const T* x, index stride) { x[index(a.x_row) * r + 2 * stride * k]; }"}));
  EXPECT_EQ(lines_of("if (i < n && (a || b)) y = f(x >= 0 ? x : 0);\nif constexpr (N > 1) g();", "mask"),
            (Lines{"if (true && (a || b)) y = f(x >= 0 ? x : 0);", "if (i < n && true) y = f(x >= 0 ? x : 0);",
                   "if (i < n && (a || b)) y = f(true ? x : 0);"}));
  EXPECT_EQ(lines_of("const bool live = row < rows && on;", "mask"),
            (Lines{"const bool live = true && on;", "const bool live = row < rows && true;"}));
  EXPECT_EQ(lines_of("DEVICE void f(int a, int b) { g<2, 3>(a, b + h(1, 2)); }", "swap"),
            (Lines{"DEVICE void f(int a, int b) { g<2, 3>(b + h(1, 2), a); }",
                   "DEVICE void f(int a, int b) { g<2, 3>(a, b + h(2, 1)); }"}));
}

TEST(Mutate, TheSamePtx) {
  const char* text =
      ".entry f__12ab34(\n.param .u64 f__12ab34_param_0)\n{\n.reg .f32 %f<3>;\n.loc 1 2 3\nadd.f32 %f1, %f2, %f1;  // "
      "why\n$L__BB0_1:\nbra $L__BB0_1;\n}\n.file \"x\"";
  EXPECT_EQ(
      canonical_ptx(text),
      canonical_ptx(
          ".entry f__777777(\n.param .u64 f__777777_param_0)\n{\n\nadd.f32 %f7, %f1, %f7;\n$L__BB0_9:\nbra $L__BB0_9;\n}\n"));
  EXPECT_NE(
      canonical_ptx(text),
      canonical_ptx(
          ".entry f__12ab34(\n.param .u64 f__12ab34_param_0)\n{\nadd.f32 %f1, %f2, %f2;\n$L__BB0_1:\nbra $L__BB0_1;\n}\n"));
}

TEST(Mutate, OnlyCodeIsMutated) {
  EXPECT_TRUE(mutants_of("t", "// if (a < b) f(c, d);\n#define X(a, b) a < b + 1\nasm(\"a < b, c;\");\n").empty());
}

TEST(Mutate, TheDrawIsFixedAndComplete) {
  std::size_t all = 0;
  for (const EmbeddedText& e : embedded_texts()) all += mutants_of(e.file, e.text).size();
  EXPECT_EQ(drawn_mutants().size(), all);
  EXPECT_GT(all, 500u);
  const Mutant& first = drawn_mutants()[0];
  const std::string_view text = embedded_text(first.file);
  EXPECT_NE(mutated(text, first), text);
}

TEST(Mutate, EveryTextHasTestsAndEverySurvivorExists) {
  std::set<std::string> known, tested;
  for (const Mutant& m : drawn_mutants()) known.insert(describe(embedded_text(m.file), m));
  std::ifstream filters(WEFT_SOURCE_DIR "/tests/mutate_filters.txt"), survivors(WEFT_SOURCE_DIR "/tests/mutate_survivors.txt");
  ASSERT_TRUE(filters && survivors);
  for (std::string line; std::getline(filters, line);) tested.insert(line.substr(0, line.find(' ')));
  for (const Mutant& m : drawn_mutants())
    EXPECT_TRUE(tested.count(m.file)) << m.file << " has no line in tests/mutate_filters.txt";
  for (std::string line; std::getline(survivors, line);) {
    if (line.starts_with("#")) continue;
    EXPECT_TRUE(known.count(line)) << "tests/mutate_survivors.txt: no such mutant: " << line;
    ASSERT_TRUE(std::getline(survivors, line) && line.starts_with("    ")) << "a reason must follow: " << line;
  }
}

}  // namespace
}  // namespace weft
