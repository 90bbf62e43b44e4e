// Reads machine code, of sm_80 and later: which instructions a kernel has and what its hot loop does, found without NVIDIA's
// tools. An instruction takes 16 bytes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "jit/cubin.h"

namespace weft {

struct SassCounts {
  int instructions = 0;                  // without padding
  int mufu = 0;                          // exp2, reciprocal, square root, ...: a quarter of the rate of FMA or less
  int fma = 0;                           // fp32 and fp64 multiply-adds
  int tensor = 0;                        // matrix instructions of a warp or warp group
  int loads = 0, stores = 0;             // of global memory; an atomic stores
  int shared = 0;                        // loads, stores and atomics of shared memory
  int local = 0;                         // loads and stores of local memory: spills, or arrays that are indexed
  std::map<std::string, int> histogram;  // by mnemonic: "FFMA"; an unknown opcode is "0x1ff"
};

// A loop: instructions from the target of a backward branch to the branch.
struct SassLoop {
  std::int64_t begin = 0, end = 0;  // bytes from the kernel's begin, [begin, end)
  int depth = 1;                    // 1: in no other loop
  SassCounts counts{};
};

struct SassKernel : CubinKernel {
  SassCounts counts{};
  std::vector<SassLoop> loops{};  // in the order of their begins
  // The loop where most time is probably spent: each level of nesting counts as much as four times the instructions.
  const SassLoop* hottest() const;
};

// The kernels of a cubin, which must outlive them. An Error (io) if it is not one.
std::vector<SassKernel> read_sass(std::string_view cubin);

// The disassembly by nvdisasm or cuobjdump; empty if neither is on PATH, in CUDA_HOME or in /usr/local/cuda*.
std::optional<std::string> disassemble(std::string_view cubin);
// What to install for `disassemble`.
std::string_view disassembler_hint();

}  // namespace weft
