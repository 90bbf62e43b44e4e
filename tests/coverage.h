// Which basic blocks of the generated kernels the suite has run on the emulated device (jit/emulator/coverage.h).
//
// A kernel here is what its texts have in common: "conv1d" of "conv1d__3f9c1a". Its texts differ in types, sizes and in
// what was fused; so many blocks belong to one text alone. A block counts as run if its like ran in any text of the kernel: one
// with the same accesses to memory, barriers, exchanges, matrix instructions and conditional branches, in the same order, each
// named once, doubles as floats. (Arithmetic, which fusion and compiler vary, is checked by values.) Every text must have run.
// The share of all blocks of all texts is told too, but not held to anything.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// Blocks that tests cannot reach, or need not, by what they hold.
struct CoverageException {
  std::string kernel;   // "" for all
  std::string opcodes;  // neighbouring opcodes that they have: "trap"
  std::string reason;
};

struct KernelCoverage {
  int texts = 0, all = 0, all_run = 0;    // all: blocks of all texts
  int blocks = 0, run = 0, excepted = 0;  // blocks that are not alike
  struct Missing {
    std::string text, opcodes;
    int line = 0;  // of the text's PTX
  };
  std::vector<Missing> missing;
  double share() const { return blocks == excepted ? 1 : double(run) / (blocks - excepted); }
};

struct CoverageReport {
  std::map<std::string, KernelCoverage> kernels;
  std::vector<std::string> never;       // texts that were loaded and did not run
  std::map<std::string, int> excepted;  // blocks by reason
};

// `lines`: of the files of WEFT_EMU_COVERAGE, in any order.
CoverageReport coverage_report(const std::vector<std::string>& lines, const std::vector<CoverageException>& exceptions);
// Lines "KERNEL or * | opcodes | reason"; # begins a comment.
std::vector<CoverageException> coverage_exceptions(const std::string& text);
std::string to_text(const CoverageReport& report, double least);
bool passes(const CoverageReport& report, double least);

// Prints the report of a folder. 0: every kernel has at least 95 % of its blocks run.
int report_coverage(const std::string& folder);

}  // namespace weft
