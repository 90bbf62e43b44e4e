// What is known of the kernels of a step: where each was recorded and why it is as it is, its text, launch and resources.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "jit/compiler.h"
#include "jit/cuda_text.h"
#include "jit/emulator/counters.h"

namespace weft {

// One launch; in a KernelTable all launches of one text.
struct KernelView {
  std::string name;                            // "conv1d__a84cb8"; of a product of cuBLASLt "gemm__linear__2048x512x64"
  std::string module;                          // module path and op: "layers.0.mixer: conv1d"
  std::string where;                           // call site, then a line a frame outward
  std::vector<std::string> reasons;            // decisions of the scheduler, a line each
  bool backward = false;                       // a gradient's or an update's
  std::shared_ptr<const CudaKernel> kernel{};  // null: a product
  std::string product{};                       // "(512, 768) bf16 * (768, 1024) bf16 -> f32"
  double bytes = 0, flops = 0;                 // of all launches; 0: unknown
  double seconds = 0;                          // on the GPU, of all launches; 0: not measured
  int launches = 1;                            // a step
  std::map<int, std::size_t> slots{};          // bytes of the memory slots that the (first) launch is given
  Compiled compiled{};                         // of a product nothing
  std::optional<EmulatedCounters> counters{};  // of all launches, on the emulated device
};

struct KernelTable {
  std::string title;                // what was inspected
  std::string target;               // "sm_90a"
  std::vector<KernelView> kernels;  // by time if it was measured, else by bytes; most first
  std::vector<int> order;           // of a step's launches, as positions in `kernels`
  std::vector<double> seconds;      // of each launch, if they were measured
  std::string timing{};             // how they were measured
  std::string cache{};              // what generation of a text of the same length remembers
  double peak_bytes = 0;            // a second that the GPU's memory can give; 0: unknown
  double peak_flops = 0;            // a second that products can reach; 0: unknown
  double step_seconds = 0;          // of a whole step, launched as in training; 0: not measured
};

// Gathers a step's launches, in their order, to a table.
KernelTable kernel_table(std::string title, std::string target, const std::vector<KernelView>& launches);

// The kernel with this name, or the only one whose name begins so, whole words ("conv1d" of "conv1d__a84cb8") before
// parts of one ("conv1d_backward__..."). An Error (usage) names what is close.
const KernelView& kernel_named(const KernelTable& table, std::string_view name);

}  // namespace weft
