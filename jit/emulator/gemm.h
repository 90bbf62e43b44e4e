// Products on the emulated device: in the order of its stream, captured and repeated like kernels, their operands
// checked.
#pragma once

#include <cstddef>

#include "jit/driver.h"
#include "jit/gemm_cuda.h"

namespace weft {

void emulated_gemm(const GemmCall& call, std::byte* const* slots, cu::CUstream stream);

}  // namespace weft
