// How well a model predicts.
#pragma once

#include <cstdint>

#include "models/language_model.h"
#include "models/orpo.h"
#include "tools/data/data.h"
#include "tools/data/pairs.h"

namespace weft {

struct Evaluation {
  double nats = 0;              // cross-entropy of all tokens together
  std::int64_t tokens = 0;      // that were predicted
  std::int64_t characters = 0;  // of the text that they stand for; 0 if there is none, or it cannot be told
  std::int64_t bytes = 0;
  std::int64_t right = 0;  // tokens that the model found most probable; if they were counted
  bool causal = true;      // false: the model may have read what it was to predict (ScanMode::tokens), which is no perplexity

  double loss() const { return nats / double(tokens); }  // a token
  double perplexity() const;
  double bits_per_character() const;  // comparable between tokenizers, as perplexity is not
  double bits_per_byte() const;
  double accuracy() const { return double(right) / double(tokens); }
};

// What a model makes of a batch: logits (b, t, v). `carried`: the states of its rows, which go on; without it none does.
Tensor logits_of(LanguageModel& model, const Batch& batch, const ModelCache* carried = nullptr);

// Predictions whose token no other is more probable than; of equal ones the first counts. A scalar, in f32. logits (b, t, v),
// targets (b, t)
Tensor right_answers(const Tensor& logits, const Tensor& targets);

// Over the validation part, or its first `batches` batches (0: all); every token has the same weight. Where the source has a
// part of each batch for each rank, the ranks do it together, and all have the result. `accuracy`: count right answers too,
// which a source that has an accuracy does anyway.
Evaluation evaluate(LanguageModel& model, const BatchSource& source, std::int64_t batches = 0, bool accuracy = false);

// How a model prefers the chosen texts of the pairs held out, or of their first `batches` batches (0: all). Ranks as above.
OrpoMetrics evaluate_pairs(LanguageModel& model, const PairStream& source, std::int64_t batches = 0);

}  // namespace weft
