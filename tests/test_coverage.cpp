// The report on which blocks of kernels have run (tests/coverage.h), and what the emulated device notes for it.
#include <gtest/gtest.h>

#include "jit/emulator/coverage.h"
#include "jit/emulator/ptx.h"
#include "tests/coverage.h"

namespace weft {
namespace {

TEST(Coverage, TextsOfAKernelAreOne) {
  const std::vector<std::string> lines{"scan__sum__000001\t10\t1\tst.f32 bra.uni",
                                       "scan__sum__000001\t20\t0\tshl.b32 ld.f32 mul.f32 ld.f32",
                                       "scan__000002\t12\t0\tst.f32",
                                       "scan__000002\t25\t1\tadd.s64 ld.f64 ex2.f32",
                                       "scan__000002\t30\t0\ttrap",
                                       "scan__000002\t40\t0\tmov.f32 st.v2.f32 ret",
                                       "norm__abcdef\t5\t0\tld.f32",
                                       "norm__abcdef\t5\t1\tld.f32",
                                       "norm__abcdee\t5\t0\tld.f32"};
  const auto exceptions = coverage_exceptions("# a comment\nscan | trap | stops itself\n* | nothing has this | unused\n");
  ASSERT_EQ(exceptions.size(), 2u);
  const CoverageReport report = coverage_report(lines, exceptions);
  ASSERT_EQ(report.kernels.size(), 2u);
  const KernelCoverage& scan = report.kernels.at("scan");
  EXPECT_EQ(scan.texts, 2);
  EXPECT_EQ(scan.all, 6);
  EXPECT_EQ(scan.all_run, 2);
  EXPECT_EQ(scan.blocks, 4);
  EXPECT_EQ(scan.run, 2);
  EXPECT_EQ(scan.excepted, 1);
  EXPECT_DOUBLE_EQ(scan.share(), 2. / 3);
  ASSERT_EQ(scan.missing.size(), 1u);
  EXPECT_EQ(scan.missing[0].text, "scan__000002");
  EXPECT_EQ(scan.missing[0].line, 40);
  EXPECT_EQ(report.kernels.at("norm").share(), 1);
  EXPECT_EQ(report.never, std::vector<std::string>{"norm__abcdee"}) << "its twin ran, it did not";
  EXPECT_FALSE(passes(report, 0.5)) << "one text never ran";
  const std::string text = to_text(report, 0.95);
  for (const char* words :
       {"never run: norm__abcdee", "scan__000002, PTX line 40: mov.f32 st.v2.f32 ret", "less than 95 %", "stops itself"})
    EXPECT_NE(text.find(words), std::string::npos) << text;
}

TEST(Coverage, PassesAtTheLimit) {
  std::vector<std::string> lines;
  for (int n = 0; n < 20; ++n)
    lines.push_back("k__000001\t" + std::to_string(n) + "\t" + (n ? "1" : "0") + "\tld.v" + std::to_string(n));
  EXPECT_TRUE(passes(coverage_report(lines, {}), 0.95));
  EXPECT_FALSE(passes(coverage_report(lines, {}), 0.96));
  EXPECT_FALSE(passes(coverage_report({}, {}), 0.95)) << "nothing at all has run";
}

TEST(Coverage, BasicBlocks) {
  const emulator::Module module = emulator::parse_ptx(R"(.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
  .reg .pred %p<2>;
  .reg .b32 %r<3>;
  mov.u32 %r1, 0;
LOOP:
  add.s32 %r1, %r1, 1;
  setp.lt.s32 %p1, %r1, 10;
  @%p1 bra LOOP;
  mov.u32 %r2, 7;
  bra.uni END;
  trap;
END:
  ret;
}
)");
  const auto program = emulator::decode(module, module.functions.at(0), {});
  std::vector<int> lines;
  for (const std::uint32_t first : emulator::basic_blocks(*program)) lines.push_back(program->instructions[first].source->line);
  EXPECT_EQ(lines, (std::vector<int>{8, 10, 13, 15, 17}));
}

}  // namespace
}  // namespace weft
