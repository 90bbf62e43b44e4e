// Where kernels run and values live, and what kernels may be made of.
#pragma once

#include <cstdint>
#include <string_view>

namespace weft {

// `emu` is the CUDA path on weft's own interpreter of PTX.
enum class Device : std::uint8_t { cpu, cuda, emu };
std::string_view name_of(Device device);
inline bool is_gpu(Device device) { return device != Device::cpu; }

// What a plan is made for. Every GPU kernel has a version for sm_80, which later architectures run too; it may have another
// one beside it where a later architecture has better instructions.
struct Target {
  Device device = Device::cpu;
  int capability = 0;  // 10 * major + minor of the architecture that kernels may use; 0 on the CPU
  bool exact = false;  // and what this architecture alone has: sm_90a, which has wgmma

  bool sm_90a() const { return capability == 90 && exact; }
  bool operator==(const Target&) const = default;
};

// Of a GPU for which kernels are compiled so: "sm_90a", "sm_90", "compute_90". An Error (usage) if this names no architecture
// from sm_80 on.
Target target_for(std::string_view architecture);
// The emulated GPU takes what is there for sm_80, whichever architecture it is compiled for.
inline constexpr Target kEmulatedTarget{Device::emu, 80, false};

}  // namespace weft
