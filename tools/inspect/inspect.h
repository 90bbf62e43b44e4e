// The kernels of a training step (`weft inspect`): without running it, or timed on a GPU.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "autograd/plan.h"
#include "tools/inspect/kernel_table.h"

namespace weft {

struct InspectOptions {
  std::string target{};                           // "": the GPU's, and sm_90a without one
  std::optional<std::int64_t> batch{}, length{};  // absent: the run's, else 8 and 256
  std::optional<bool> bf16{};                     // activations; parameters stay f32. Absent: as the run, else on
  std::string device = "none";                    // "cuda" or "emu": the step runs there, and its kernels are timed
  bool want_ptx = false;
};

// The launches of a plan for a GPU, in order; `seconds` of each if they were measured.
std::vector<KernelView> views_of(const Plan& plan, const std::vector<double>& seconds = {});

// Compiles what is CUDA text for `target`; errors as `compile` has them. Equal texts are compiled once.
void compile_views(std::vector<KernelView>& views, const std::string& target, bool want_ptx);

// One step (forward, backward, AdamW with clipping) of the model that `path` describes: a config.json, or a folder with one,
// as a run's. Needs neither its weights nor a GPU, but NVRTC. A device that is named becomes the one in use; its absence is an
// Error (device).
KernelTable inspect_training_step(const std::filesystem::path& path, const InspectOptions& options);

}  // namespace weft
