// What a model is trained on: the tokens of texts, and how they are cut into batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tensor.h"
#include "tools/data/corpus.h"
#include "tools/data/tokenizer.h"
#include "tools/data/tokens.h"

namespace weft {

struct TokenizerChoice {
  std::string name = "bytes";      // "bytes"; "unigram", made from the training part; or the file of a SentencePiece model
  std::int64_t vocabulary = 4000;  // pieces of "unigram"
};
Tokenizer make_tokenizer(const TokenizerChoice& choice, const Corpus& corpus);

// The tokens of what comes next, up to byte `end` of the text, in blocks; each document that ends there is followed by the
// tokenizer's separator.
void for_each_block(TextReader& text, std::size_t end, const Tokenizer& tokenizer,
                    const std::function<void(std::span<const std::int64_t>)>& f);

inline constexpr std::int64_t kIgnored = -100;  // the target where nothing is to be predicted: cross_entropy ignores it

struct Batch {
  Tensor inputs;                // (rows, length) of i64
  Tensor targets;               // (rows, length) of i64: what is to be predicted at each input
  Tensor segments = {};         // (rows, length) of i64: of documents that do not see each other; absent: all is one
  Tensor response = {};         // (rows, length) of i64, of pairs (tools/data/pairs.h): 1 where the target is a response's
  Tensor continues = {};        // (rows) of i64, where rows go on from those of the batch before: 0, this one begins anew
  std::int64_t counted = 0;     // targets that are not kIgnored
  std::int64_t characters = 0;  // of the text that the counted targets stand for; 0 if there is none or some was lost
  std::int64_t bytes = 0;       // likewise
};

// Adds to `batch` what is counted of targets `ids`, which follow `before` in a text.
void count_targets(Batch& batch, const Tokenizer& tokenizer, std::int64_t before, std::span<const std::int64_t> ids);

struct BatchOptions {
  std::int64_t batch = 8;
  std::int64_t length = 256;
  std::uint64_t seed = 0;
  bool packed = false;  // batches have segments: a document begins with the end of text before it
  bool carry = false;   // each row goes on where it ended in the batch before, from one end of the text to the other
  // Of several processes each has its part of every batch: rows [part, part + 1) * batch / parts.
  std::int64_t part = 0, parts = 1;

  std::int64_t rows() const { return batch / parts; }
  std::int64_t first_row() const { return part * rows(); }
};

// An endless stream of batches to train on, and some to validate with. All have the same shape, but for pairs.
class BatchSource {
 public:
  virtual ~BatchSource() = default;

  // The training batch at position(): a function of the data, the options and the position alone. next() goes on to the
  // following position, seek() to any; the position is all there is to save and restore. Errors (ErrorKind::io): segments that
  // fall along a row.
  Batch next();
  std::int64_t position() const { return position_; }
  void seek(std::int64_t position);

  // A mean over batches must weigh each by `counted`.
  virtual std::int64_t validation_batches() const = 0;
  virtual Batch validation(std::int64_t index) const = 0;

  virtual std::int64_t vocabulary() const = 0;
  virtual std::string name() const = 0;
  virtual std::uint64_t hash() const = 0;                         // of the data: training can go on only with the same
  virtual const Tokenizer* tokenizer() const { return nullptr; }  // null: there is no text
  virtual bool has_accuracy() const { return false; }             // a task: what counts is the share of right answers
  const BatchOptions& options() const { return options_; }

 protected:
  // Errors: batch or length below 1, or beyond memory; a batch that cannot be cut into the parts.
  explicit BatchSource(BatchOptions options);
  BatchSource(const BatchSource&) = default;
  BatchSource& operator=(const BatchSource&) = default;
  virtual Batch training(std::int64_t position) const = 0;

 private:
  BatchOptions options_;
  std::int64_t position_ = 0;
};

// Windows of a text's tokens; the targets are the tokens that follow. Training takes windows at random places, or, with
// options.carry, cuts the text into a stretch for each row and walks along; validation one window after another, so that its
// part of the text is covered once; the last batch is filled up with kIgnored.
class TokenStream : public BatchSource {
 public:
  // Errors: ErrorKind::io for a text too short for one window, or that the tokenizer does not take; ErrorKind::usage for
  // options.packed with a tokenizer that has no end of text.
  TokenStream(const Corpus& corpus, Tokenizer tokenizer, BatchOptions options);
  TokenStream(const std::filesystem::path& file, Tokenizer tokenizer, BatchOptions options);
  // Without training tokens it can only validate.
  TokenStream(std::string name, Tokens training, Tokens validation, Tokenizer tokenizer, BatchOptions options);

  std::int64_t validation_batches() const override;
  Batch validation(std::int64_t index) const override;
  std::int64_t vocabulary() const override { return tokenizer_.vocabulary(); }
  std::string name() const override { return name_; }
  std::uint64_t hash() const override;
  const Tokenizer* tokenizer() const override { return &tokenizer_; }
  const Tokens& training_tokens() const { return training_; }
  const Tokens& validation_tokens() const { return validation_; }

 protected:
  Batch training(std::int64_t position) const override;

 private:
  void check_length() const;
  Batch along(std::int64_t position) const;
  Batch windows(const Tokens& tokens, const std::vector<std::int64_t>& places) const;
  std::string name_;
  Tokenizer tokenizer_;
  Tokens training_, validation_;
};

// What --data names: a folder of shards (tools/data/shards.h), which has its own tokenizer, or a corpus, which is given one.
TokenStream open_data(const std::optional<std::filesystem::path>& data, const TokenizerChoice& choice, BatchOptions options);
// Likewise, to validate with "all" of it, or its "training" or "validation" part. Errors (ErrorKind::io): shards of another
// tokenizer.
TokenStream open_to_evaluate(const std::filesystem::path& data, const std::string& part, const Tokenizer& tokenizer,
                             BatchOptions options);

}  // namespace weft
