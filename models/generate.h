// Continuing a sequence of tokens with a model's caches.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "models/language_model.h"

namespace weft {

struct GenerateOptions {
  std::int64_t tokens = 100;  // to append
  double temperature = 1;     // 0: the most probable token
  std::int64_t top_k = 0;     // sample among the k most probable; 0: all
  double top_p = 1;           // sample among the most probable that make up this share; 1: all
  std::uint64_t seed = 0;
  std::int64_t vocab = 0;  // sample among the first ones only; 0: the model's vocabulary
};

// The prompt (at least one id) and what the model appends to it. Equal seeds give equal texts. `on_token` is given each new
// token at once; if it returns false the text ends there.
std::vector<std::int64_t> generate(LanguageModel& model, const std::vector<std::int64_t>& prompt, GenerateOptions options = {},
                                   const std::function<bool(std::int64_t)>& on_token = {}, Site where = Site::current());

}  // namespace weft
