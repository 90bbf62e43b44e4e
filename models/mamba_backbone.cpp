#include "models/mamba_backbone.h"

#include <fmt/format.h>

#include <string_view>

namespace weft {
namespace {

constexpr std::string_view kBackboneHead = "lm_head.weight", kEmbeddings = "backbone.embeddings.weight",
                           kOriginalEmbedding = "backbone.embedding.weight";

}  // namespace

TensorMap backbone_weights(TensorMap tensors, CheckpointNames names, bool tied) {
  if (names == CheckpointNames::original) {
    rename_tensor(tensors, kEmbeddings, kOriginalEmbedding);
    if (tied) tensors[std::string(kBackboneHead)] = tensors.at(std::string(kOriginalEmbedding));
  }
  return tensors;
}

// Layers that read the stream have its features as columns, those that write it as rows; what masks and adapters have beside
// them goes with the side that they are on.
StreamLayout backbone_layout(const std::vector<NamedParam>& params, std::int64_t width, std::int64_t layers) {
  StreamLayout layout{.width = width};
  for (std::int64_t l = 0; l < layers; ++l) layout.mixers.push_back(fmt::format("backbone.layers.{}.mixer", l));
  const auto axis_of = [&](std::string_view name, const Shape& shape) {
    const bool mixer = name.find(".mixer.") != name.npos;
    if (!mixer && name.ends_with("norm.weight")) return 0;
    if (name == "backbone.norm_f.weight") return 0;
    const bool table = name.starts_with("backbone.embeddings."),
               reads = name.find(".mixer.in_proj.") != name.npos || name.starts_with("lm_head.");
    const bool writes = name.find(".mixer.out_proj.") != name.npos;
    if (!table && !reads && !writes) return -1;
    if (name.ends_with(".ia3_l")) return shape.numel() == width ? 0 : -1;
    if (name.ends_with(".lora_embedding_B")) return 0;
    if (name.ends_with(".lora_embedding_A") || name.ends_with(reads ? ".lora_B.weight" : ".lora_A.weight")) return -1;
    if (name.ends_with(".bias")) return writes ? 0 : -1;
    return writes ? 0 : 1;
  };
  for (const NamedParam& p : params) {
    const bool norm = p.name.ends_with(".norm.weight");
    if (const int axis = axis_of(p.name, p.param.shape()); axis >= 0)
      layout.axes.push_back({p.param, axis, norm || p.name.find(".mixer.") != p.name.npos});
  }
  return layout;
}

TensorMap own_backbone_weights(TensorMap tensors, bool tied) {
  rename_tensor(tensors, kOriginalEmbedding, kEmbeddings);
  if (tied) drop_tied_head(tensors, kBackboneHead, kEmbeddings);
  return tensors;
}

}  // namespace weft
