// Continuing sequences of tokens with a model's caches.
#pragma once

#include <cstddef>
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

// The errors (ErrorKind::usage) that a prompt of `generate` may have, before anything is computed.
void check_prompt(const LanguageModel& model, const std::vector<std::int64_t>& prompt, Site where = Site::current());

// The prompt (at least one id) and what the model appends to it. Equal seeds give equal texts. `on_token` is given each new
// token at once; if it returns false the text ends there. It ends too where it has reached the model's context. Errors
// (ErrorKind::usage): an empty prompt, an id that the model does not know, a prompt longer than the context.
std::vector<std::int64_t> generate(LanguageModel& model, const std::vector<std::int64_t>& prompt, GenerateOptions options = {},
                                   const std::function<bool(std::int64_t)>& on_token = {}, Site where = Site::current());

// Several at once, of any lengths: each becomes what it becomes alone. `on_token` is told the number of the text too.
std::vector<std::vector<std::int64_t>> generate_all(LanguageModel& model, std::vector<std::vector<std::int64_t>> prompts,
                                                    GenerateOptions options = {},
                                                    const std::function<bool(std::size_t, std::int64_t)>& on_token = {},
                                                    Site where = Site::current());

// The `options.tokens` new tokens of each of many texts, whose prompts have one length. They are chosen on the device, each
// text with draws of its own (see sample_rows), and come to the host at the end, so that no step waits for it. Errors
// (ErrorKind::usage): as above, prompts of several lengths, a temperature of 0, a top_p, more tokens than the model's context;
// ErrorKind::training: logits that are not finite.
std::vector<std::vector<std::int64_t>> sample_continuations(LanguageModel& model,
                                                            const std::vector<std::vector<std::int64_t>>& prompts,
                                                            GenerateOptions options, Site where = Site::current());

}  // namespace weft
