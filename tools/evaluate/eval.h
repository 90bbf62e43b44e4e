// How well a model predicts.
#pragma once

#include <cstdint>

#include "models/language_model.h"
#include "tools/data/data.h"

namespace weft {

struct Evaluation {
  double nats = 0;              // cross-entropy of all tokens together
  std::int64_t tokens = 0;      // predicted ones
  std::int64_t characters = 0;  // and bytes that they stand for; 0 if there is no text
  std::int64_t bytes = 0;
  std::int64_t right = 0;  // tokens whose prediction was the most probable one; only of a source that has an accuracy

  double loss() const { return nats / double(tokens); }  // a token
  double perplexity() const;
  double bits_per_character() const;  // comparable between tokenizers, as perplexity is not
  double bits_per_byte() const;
  double accuracy() const { return double(right) / double(tokens); }
};

// Over the validation part, or its first `batches` batches (all: 0), every token weighing the same.
Evaluation evaluate(LanguageModel& model, const BatchSource& source, std::int64_t batches = 0);

}  // namespace weft
