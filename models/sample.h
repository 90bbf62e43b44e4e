// Choosing the next token.
#pragma once

#include <cstdint>
#include <span>

namespace weft {

// An index of `logits`: the largest if temperature is 0 (the first of equals), else drawn from softmax(logits /
// temperature) over the top_k largest (all if 0). `u` in (0, 1) decides.
std::int64_t sample(std::span<const float> logits, double temperature, std::int64_t top_k, double u);

}  // namespace weft
