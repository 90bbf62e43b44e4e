// Texts to train on, as bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct Corpus {
  std::string name;  // the file, or what the default is
  std::string text;
};

// The bytes of `file`; without one, the King James text as Debian's package bible-kjv prints it: one verse a line, each
// behind its reference ("Ge1:1 In the beginning ..."). Errors are ErrorKind::io: missing, empty, neither there.
Corpus load_corpus(const std::optional<std::filesystem::path>& file = std::nullopt);

// Windows of bytes from a text: the first 9/10 for training, the rest for validation.
class ByteBatches {
 public:
  static constexpr std::int64_t kVocabulary = 256;
  static constexpr std::int64_t kIgnored = -100;  // the target of padding, as cross_entropy ignores it

  struct Options {
    std::int64_t batch = 8;
    std::int64_t length = 256;
    std::uint64_t seed = 0;
  };

  struct Batch {
    std::vector<std::int64_t> inputs;   // (batch, length)
    std::vector<std::int64_t> targets;  // (batch, length): the byte that follows each input
    std::int64_t counted = 0;           // targets that are not kIgnored
  };

  // Errors: ErrorKind::usage for batch or length below 1, ErrorKind::io for a text too short for one window.
  ByteBatches(Corpus corpus, Options options);

  // The training batch at position(): windows at random places, a function of (text, options, position) alone. next()
  // goes on to the following position; seek() to any, which is all there is to save and restore.
  Batch next();
  std::int64_t position() const { return position_; }
  void seek(std::int64_t position);

  // Batches that cover the validation part once, window after window in the order of the text. The last is filled up
  // with ignored targets, so all have the same shape; a mean over batches must weigh each by `counted`.
  std::int64_t validation_batches() const;
  Batch validation(std::int64_t index) const;

  const Options& options() const { return options_; }
  const std::string& name() const { return corpus_.name; }
  std::string_view training_text() const { return std::string_view(corpus_.text).substr(0, split_); }
  std::string_view validation_text() const { return std::string_view(corpus_.text).substr(split_); }

 private:
  void fill_row(Batch& batch, std::int64_t row, std::string_view window) const;
  Batch empty_batch() const;

  Corpus corpus_;
  Options options_;
  std::size_t split_ = 0;
  std::int64_t position_ = 0;
};

}  // namespace weft
