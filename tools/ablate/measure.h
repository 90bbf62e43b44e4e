// What is measured of a model of a study when its run has ended.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "tools/ablate/study.h"

namespace weft {

// Writes STAGE.json beside the run, and of the model whose attention is drawn STAGE.attention.safetensors, on the device in
// use:
//
//   "step", "parameters"
//   "validation"   {"loss", "tokens", "characters"}: of the validation part, as the run's own validations
//   "inference"    {"tokens_per_second", "prompt_seconds", "prompt_tokens", "tokens"}: of one text with caches, compilation
//   apart "cache"        {"tokens", "attention", "states", "attention_global" (bytes), "layers", "caches"} after a window of
//   tokens "samples"      [{"prompt", "text"}] "gates"        the share of attention in each layer that has both "attention"
//   {"layers", "kinds", "meta", "shares" [[meta tokens, first token of the text, itself, others]]}: of the queries
//                  of a validation window, means over heads; the maps (layers, places, places) are in the other file
void measure(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder);

// It was, after this step of the run.
bool is_measured(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder);

}  // namespace weft
