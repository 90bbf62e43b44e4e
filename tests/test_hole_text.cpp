// The text that a hole becomes: what stands at which level, the width of addresses, and what may not be in it.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "jit/hole_text.h"

namespace weft {
namespace {

Operand operand(std::vector<std::int64_t> dims, std::vector<std::int64_t> strides, DType dtype = DType::f32) {
  Operand o = dense_operand(1, dtype, dims);
  std::copy(strides.begin(), strides.end(), o.strides.begin());
  return o;
}

Fused over(std::vector<std::int64_t> dims, std::vector<Expr> roots, std::vector<Operand> leaves) {
  Fused fused;
  fused.dims = std::move(dims);
  fused.roots = std::move(roots);
  fused.values = 1;
  fused.leaves = std::move(leaves);
  fused.constants = {7};
  return fused;
}

std::string text_of(const Fused& fused) {
  CudaText text("kernel", false);
  hole_text(text, "score", fused);
  const CudaKernel kernel = text.launch_text("", {1, 1, 1}, {1, 1, 1});
  return kernel.text.substr(kernel.text.find("\nusing real"));  // without the name, which depends on the text
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }
std::string between(const std::string& text, std::string_view from, std::string_view to) {
  const std::size_t begin = text.find(from);
  return begin == std::string::npos ? "" : text.substr(begin, text.find(to, begin) - begin);
}

const Expr v = expr::input(0), outer = expr::input(1), rows = expr::input(2), columns = expr::input(3), both = expr::input(4);

Fused everything(std::int64_t b, std::int64_t t, std::int64_t i) {
  return over({b, t, i}, {v * exp(outer) + tanh(rows) * both + softplus(columns) * expr::slot(0)},
              {operand({b, t, i}, {1, 0, 0}), operand({b, t, i}, {t, 1, 0}), operand({b, t, i}, {0, 0, 1}),
               operand({b, t, i}, {t * i, i, 1}, DType::bf16)});
}

// What depends on fewer coordinates is computed before, at its own level, and handed down.
TEST(HoleText, Levels) {
  const std::string text = text_of(everything(2, 6, 8));
  const std::string outer_part = between(text, "struct score_outer", "struct score_row"),
                    row_part = between(text, "struct score_row", "struct score_column"),
                    column_part = between(text, "struct score_column", "// "), element = between(text, "// ", "\n}\n");
  EXPECT_TRUE(has(outer_part, "exp_of(")) << text;
  EXPECT_TRUE(has(outer_part, "a.score_c0()")) << text;
  EXPECT_TRUE(has(outer_part, "const bf16* p3;")) << "the address of what is read at every element\n" << text;
  EXPECT_TRUE(has(row_part, "tanh_of(")) << text;
  EXPECT_TRUE(has(row_part, "index x3;")) << text;
  EXPECT_TRUE(has(column_part, "softplus_of(")) << text;
  EXPECT_TRUE(has(element, "load_values<V>(o.p3 + (r.x3 + i2), x3)")) << text;
  for (const char* early : {"exp_of", "tanh_of", "softplus_of"}) EXPECT_FALSE(has(element, early)) << early;
}

TEST(HoleText, NoSizesAndNoDivisions) {
  EXPECT_EQ(text_of(everything(2, 6, 8)), text_of(everything(3, 700, 64)));
  const std::string text = text_of(everything(2, 6, 8)), code = between(text, "struct score_outer", "\n\n");
  for (std::size_t at = code.find('/'); at != std::string::npos; at = code.find('/', at + 2))
    ASSERT_EQ(code.substr(at, 2), "//") << "a division: " << code.substr(at - 20, 40);
  EXPECT_FALSE(has(code, "%"));
}

// A broadcast space is no reason for wide addresses; an operand that reaches far has wide ones of its own.
TEST(HoleText, OnlyWhatReachesFarIsWide) {
  const std::int64_t huge = std::int64_t(1) << 31, b = 4, t = huge, i = 8;
  const std::string broadcast =
      text_of(over({b, t, i}, {v + outer + rows}, {operand({b, t, i}, {8, 0, 1}), operand({b, t, i}, {0, 0, 0})}));
  EXPECT_TRUE(has(broadcast, "using index = int;"));
  EXPECT_FALSE(has(broadcast, "i64(i")) << broadcast;
  const std::string far =
      text_of(over({2, 4, 8}, {v + outer + rows}, {operand({2, 4, 8}, {32, 8, 1}), operand({2, 4, 8}, {huge, huge / 2, 1})}));
  EXPECT_TRUE(has(far, "using index = int;"));
  EXPECT_TRUE(has(far, "index(i0) * index(a.score_x0_s0)")) << far;
  EXPECT_TRUE(has(far, "i64(i0) * i64(a.score_x1_s0)")) << far;
  EXPECT_TRUE(has(far, "i64(i1) * i64(a.score_x1_s1)")) << far;
}

TEST(HoleText, TheTransposeWalksTheOtherWay) {
  CudaText text("kernel", false);
  const Fused fused = over({2, 6, 8}, {v + outer}, {operand({2, 6, 8}, {6, 1, 0})});
  hole_text(text, "score", fused, {2, 1});
  const std::string made = text.launch_text("", {1, 1, 1}, {1, 1, 1}).text;
  EXPECT_TRUE(has(made, "load_values<V>(o.p0 + (i1), x0)")) << made;
}

// Conditions are combined without a branch.
TEST(HoleText, LogicDoesNotBranch) {
  const Expr i = expr::index(1), j = expr::index(2);
  const std::string text = text_of(over({2, 6, 8}, {where(j <= i && (i - j < 4 || j < 2), v, Expr(0.0))}, {}));
  const std::string code = between(text, "y0[j]", "}") + between(text, "const bool", "y0[j]");
  EXPECT_TRUE(has(code, " & ") && has(code, " | ")) << text;
  EXPECT_FALSE(has(code, "&&") || has(code, "||")) << text;
}

TEST(HoleText, ACoordinateThatTheSpaceHasNot) { EXPECT_THROW(text_of(over({2, 6}, {v + expr::index(2)}, {})), Error); }

}  // namespace
}  // namespace weft
