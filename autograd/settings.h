// Switches read from the environment once, and changed by tests.
//   WEFT_DEVICE=cpu,cuda,emu   where what a program does not say runs
//   WEFT_FUSE=0           every op its own kernel
//   WEFT_FMA=0            no x*y + z with one rounding: with WEFT_FUSE=0 and without it the same bits (jit/expr.h: contraction)
//   WEFT_GRAPH=0          on a GPU every kernel is launched by itself, every time
//   WEFT_FOLLOW=0         on a GPU a kernel of a graph is launched when the one before it has ended, not beside its last blocks
//   WEFT_TARGET=sm_80,sm_90a   which version of a kernel a GPU takes where it has several: with sm_80 those for all, also where
//                         there is one for it alone; on the emulated device, which takes those otherwise, sm_90a
//   WEFT_OVERLAP=0        on GPUs of several ranks what they exchange stops the kernels meanwhile, for measurements
//   WEFT_ARENA=split      every value its own allocation, freed when its life ends
//   WEFT_TUNE=1           products take the fastest of cuBLASLt's first proposals, by timing, instead of the first
//                         (jit/gemm_cuda.h); two runs may then choose differently, unless the second reads what the first
//                         kept (tools/train/choices.h)
//   WEFT_PRODUCTS=sums,all,none   what a product of matrices takes over of what follows it: sums with a tensor of its own type,
//                         also biases, activations and sums of a wider type, or nothing
//   WEFT_PLANS=256        megabytes of plans that are kept to be run again, the most recent ones
//   WEFT_CHECK=nan        names the first op that makes a non-finite value
//   WEFT_LOG=plan,why,kernels,cache,source   what to print on stderr; the last two are the compiler's (jit/compiler.h)
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "jit/device.h"

namespace weft {

enum class Products : std::uint8_t { none, sums, all };

struct Settings {
  Device device = Device::cpu;
  bool fuse = true;
  Products products = Products::sums;
  bool graph = true;
  bool follow = true;
  bool overlap = true;
  bool split_arena = false;
  bool check_nan = false;
  bool log_plan = false, log_why = false, log_kernels = false;
  std::size_t plan_bytes = std::size_t(256) << 20;
  std::optional<Target> kernels;  // its device is not looked at
};

// Unknown words in a variable are a usage error with a suggestion.
Settings& settings();
Settings read_settings();  // from the environment, afresh

// What is said there with seed() and use_device() holds for all threads that do not say otherwise.
bool on_main_thread();

}  // namespace weft
