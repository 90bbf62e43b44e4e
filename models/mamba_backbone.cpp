#include "models/mamba_backbone.h"

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

TensorMap own_backbone_weights(TensorMap tensors, bool tied) {
  rename_tensor(tensors, kOriginalEmbedding, kEmbeddings);
  if (tied) drop_tied_head(tensors, kBackboneHead, kEmbeddings);
  return tensors;
}

}  // namespace weft
