// Whole models in `weft bench`: training steps (e2e) and decoding.
#pragma once

#include <vector>

#include "tools/bench/cases.h"

namespace weft {

// Forward, backward, clipping and AdamW on random tokens, run after run, as training does.
std::vector<BenchCase> e2e_cases(bool smoke);
// One token more for each of some texts, with the model's cache.
std::vector<BenchCase> decode_cases(bool smoke);

}  // namespace weft
