// Choosing the next token.
#pragma once

#include <cstdint>
#include <span>

#include "autograd/tensor.h"

namespace weft {

// An index of `logits`: the largest if temperature is 0 (the first of equals), else drawn from softmax(logits /
// temperature) over the top_k largest and what equals the last of them (all if 0), and of these the most probable ones
// that make up the share top_p (all if 1). `u` in (0, 1) decides. Errors: those of check_sampling, and (ErrorKind::training)
// logits that are NaN or inf; -inf rules a token out.
std::int64_t sample(std::span<const float> logits, double temperature, std::int64_t top_k, double top_p, double u,
                    Site where = Site::current());

// The same for the rows of logits (b, v), on the device: (b) i64, drawn from the Rng in use. The temperature is above 0, and
// there is no top_p. What lies within 1e-6 of the last of the top_k is its equal, and what is 30 below the largest at
// temperature 1 is none of them. A row with a NaN or inf gives v. No gradient.
Tensor sample_rows(Arg logits, double temperature, std::int64_t top_k);

// Errors (ErrorKind::usage): a temperature that is negative or no number, a negative top_k, a top_p that is not in (0, 1].
void check_sampling(double temperature, std::int64_t top_k, double top_p, Site where = Site::current());

}  // namespace weft
