// Choosing the next token.
#pragma once

#include <cstdint>
#include <span>

namespace weft {

// An index of `logits`: the largest if temperature is 0 (the first of equals), else drawn from softmax(logits /
// temperature) over the top_k largest and what equals the last of them (all if 0), and of these the most probable ones
// that make up the share top_p (all if 1). `u` in (0, 1) decides. Errors (ErrorKind::training): logits that are not finite.
std::int64_t sample(std::span<const float> logits, double temperature, std::int64_t top_k, double top_p, double u);

}  // namespace weft
