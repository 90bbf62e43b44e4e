// Reads a cubin, the machine code that NVRTC and ptxas make: an ELF file with a section of instructions for each kernel. The
// resources of a kernel stand in it too, so NVIDIA's tools are not needed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct CubinKernel {
  std::string name;
  int architecture = 0;     // 90: sm_90 or sm_90a
  int registers = 0;        // a thread
  int stack_bytes = 0;      // a thread
  int shared_bytes = 0;     // a block, static, with the 1024 that sm_90 and later reserve
  std::string_view code{};  // its instructions: a part of the cubin
};

// The kernels of a cubin, sorted by name. An Error (io) if it is not one.
std::vector<CubinKernel> read_cubin(std::string_view cubin);

// Bytes of the largest section whose name begins with `prefix`, such as ".nv.constant0", the bank with the parameters; 0
// without one. An Error (io) if it is not a cubin.
std::uint64_t largest_section(std::string_view cubin, std::string_view prefix);

}  // namespace weft
