// PTX to machine code by the toolkit's program ptxas. Only tests use it: for weft, NVRTC, which has the same assembler, takes
// both steps.
#pragma once

#include <string>
#include <string_view>

namespace weft {

// Whether there is a ptxas in the toolkit that has NVRTC.
bool has_assembler();

// The log, verbose, of assembling `ptx` for a target like "sm_90a". An Error (device) with the log if it fails.
std::string assemble(std::string_view ptx, std::string_view target);

}  // namespace weft
