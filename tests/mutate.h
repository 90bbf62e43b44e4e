// Mutants of the kernel texts: a mutant is one small mistake in one embedded text, made by rule. tests/mutate_test.sh plants
// them one at a time and counts how many the tests catch on the emulated device.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct Mutant {
  std::string file;              // "ops/scan.cuh"
  std::string rule;              // barrier, less, plus_one, stride, mask or swap
  int line = 0;                  // of the file, from 1
  std::size_t at = 0, size = 0;  // what is replaced
  std::string replacement;
};

// All mutants of a text, in its order:
//   barrier    __syncthreads() and __syncwarp() are dropped
//   less       a < b becomes a <= b, but not in a < b ? a : b, which is the same
//   plus_one   a + 1 becomes a + 0
//   stride     the step of a loop, or the distance of rows, is doubled
//   mask       a condition of `if` or `?:`, or a bool that is computed, becomes true; of a conjunction, each part
//   swap       two neighbouring arguments of a call change places, unless the function is symmetric
std::vector<Mutant> mutants_of(std::string_view file, std::string_view text);

// The mutants of all embedded texts, in the order of a hash of their descriptions: a fixed draw.
const std::vector<Mutant>& drawn_mutants();

std::string mutated(std::string_view text, const Mutant& m);
// "ops/scan.cuh: mask: const int k = true ? 1 : 0;", the line as it becomes: what the list of survivors names it by, which
// holds while other lines change.
std::string describe(std::string_view text, const Mutant& m);

// A PTX text without what changes no instruction: comments, places in the source, names of the kernel, and which of their
// numbers registers and labels have. Equal for two texts: they are the same code.
std::string canonical_ptx(std::string_view ptx);

// From now on kernels are made of the mutated text.
void plant(const Mutant& m);

}  // namespace weft
