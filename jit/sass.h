// Reads machine code: a cubin is an ELF file with a section of 16-byte instructions a kernel. What people ask of a kernel (how
// many registers, which instructions, what the hot loop does) is found here without NVIDIA's tools, for sm_80 and later.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

struct SassKernel {
  std::string name;
  int architecture = 0;  // 90: sm_90 or sm_90a
  int registers = 0;     // a thread
  int stack_bytes = 0;   // a thread
  int shared_bytes = 0;  // a block, static, with the 1024 that sm_90 and later reserve
  SassCounts counts{};
  std::vector<SassLoop> loops{};  // in the order of their begins
  // The loop where most time is probably spent: each level of nesting counts as much as four times the instructions.
  const SassLoop* hottest() const;
};

// The kernels of a cubin. An Error (io) if it is not one.
std::vector<SassKernel> read_cubin(std::string_view cubin);
// Bytes of the largest section whose name begins with `prefix`, such as ".nv.constant0", the bank with the parameters; 0
// without one. An Error (io) if it is not a cubin.
std::uint64_t largest_section(std::string_view cubin, std::string_view prefix);

// The mnemonic of an instruction by its first word: "FFMA"; "0x1ff" if it is not known.
std::string sass_mnemonic(std::uint64_t word);

// The disassembly by nvdisasm or cuobjdump; empty if neither is on PATH, in CUDA_HOME or in /usr/local/cuda*.
std::optional<std::string> disassemble(std::string_view cubin);
// What to install for `disassemble`.
std::string_view disassembler_hint();

}  // namespace weft
