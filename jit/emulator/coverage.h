// Which basic blocks of the PTX of generated kernels have run: with WEFT_EMU_COVERAGE=folder, each process writes a file
// there when it ends. Generated kernels have a hash of their text in their name, so files of several processes can be joined;
// other kernels are left out.
#pragma once

#include "jit/emulator/execute.h"

namespace weft::emulator {

// The first instruction of each basic block, in order.
std::vector<std::uint32_t> basic_blocks(const Program& program);

// A kernel that is loaded and may run; and what a launch of it has executed.
void cover_loaded(const Program& program);
void cover_executed(const Program& program, const std::vector<Executed>& executed);

}  // namespace weft::emulator
