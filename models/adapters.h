// Adapters of a whole model: which of its layers have one (nn/adapter.h), and their files, which are those of PEFT
// (adapter_config.json, adapter_model.safetensors).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nn/layers.h"

namespace weft {

// Layers by the end of their name: "in_proj" is backbone.layers.0.mixer.in_proj and all its like, "layers.0.mixer.in_proj" one.
// A number at the end of a name may be left out (x_proj.0). Or a group of them:
//   ssm        in_proj, x_proj, dt_proj, out_proj; for IA3 conv1d too
//   attention  q_proj, k_proj, v_proj, o_proj
//   mlp        gate_proj, up_proj, down_proj
//   all        every layer but embedding and head
//   embedding, head
struct AdapterTarget {
  std::string word;
  std::optional<std::int64_t> rank = {};  // of LoRA, where it is not that of the others
  std::optional<double> alpha = {};
  bool on_input = false;  // of IA3
};

// "in_proj,x_proj:16,dt_proj:4:8": with rank and alpha of LoRA; "in_proj,out_proj:in": IA3 on the input. Errors
// (ErrorKind::usage): no such form, a rank or alpha that is no number.
std::vector<AdapterTarget> parse_targets(std::string_view text, AdapterKind kind);
// "ssm" for a model that has such layers, else "attention".
std::string usual_targets(const Module& model);

// Gives the layers that the targets name an adapter called `name`; where several name one, the last says how. Everything else
// is frozen, other adapters too. Their first values are drawn by the seed in use. Errors (ErrorKind::usage): a target that
// names no layer, with what there is; one of which none can have it; a rank below 1, or above the size of a layer.
inline constexpr const char* kAdapter = "default";
void add_adapter(Module& model, const AdapterOptions& options, const std::vector<AdapterTarget>& targets,
                 const std::string& name = kAdapter);
void activate_adapters(const Module& model, const std::vector<std::string>& names);  // these act, all others do not

// WeightedModule::merge and unmerge of all layers that have adapters.
void merge_adapters(Module& model);
void unmerge_adapters(Module& model);

// ---- what there is ----------------------------------------------------------------------------------------------------------

struct AdapterCounts {
  AdapterOptions options;
  std::string layer;  // "in_proj"
  std::int64_t modules = 0, parameters = 0;
};
// A row for each kind of layer that has adapters, and for each of its options.
std::vector<AdapterCounts> count_adapters(const Module& model);
std::string to_text(const AdapterOptions& options);             // "LoRA, rank 8, alpha 16"
std::string to_text(const std::vector<AdapterCounts>& counts);  // "LoRA, rank 8, alpha 16: in_proj 24, out_proj 24 layers"

struct ParameterCounts {
  std::int64_t trainable = 0, all = 0;  // with those of adapters
};
ParameterCounts count_parameters(const Module& model);
std::string to_text(const ParameterCounts& counts);  // as PEFT prints them

// ---- files ------------------------------------------------------------------------------------------------------------------

// `base`: the model that it belongs to, as the file names it. An embedding that is the head as well has its adapter in both
// places, as when PEFT merges one. Errors (ErrorKind::usage): there is no such adapter.
void save_adapter(const Module& model, const std::filesystem::path& folder, const std::string& base = {},
                  const std::string& name = kAdapter);
// One adapter more, which acts; everything else is frozen. It is on the layers that the file has tensors for. Errors
// (ErrorKind::io): not an adapter of this model, with all names and shapes that do not fit; forms of LoRA that weft lacks;
// files that are missing, damaged or truncated.
void load_adapter(Module& model, const std::filesystem::path& folder, const std::string& name = kAdapter);

// The folder of an adapter that `folder` is, or that the folder of a model has in it ("adapter"); nothing: there is none.
std::optional<std::filesystem::path> adapter_in(const std::filesystem::path& folder);
inline constexpr const char* kAdapterFolder = "adapter";

}  // namespace weft
