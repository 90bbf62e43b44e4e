// Text to token ids and back: one token for each byte, or the pieces of a SentencePiece model (arXiv:1808.06226).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/data/corpus.h"

namespace weft {

// A handle: copies share the model.
class Tokenizer {
 public:
  Tokenizer(const Tokenizer&) = default;  // a handle, to be moved too: what was moved from is the same tokenizer
  Tokenizer& operator=(const Tokenizer&) = default;
  static Tokenizer bytes();  // ids are the bytes; any text

  // A SentencePiece model, unigram or BPE, without normalisation rules. Of one that loses something a line says so. Errors
  // (ErrorKind::io): missing, not such a model, damaged.
  static Tokenizer load(const std::filesystem::path& file);
  static Tokenizer from_model(std::string serialized, const std::string& name);  // what a model file holds

  // A unigram model (arXiv:1804.10959) of the pieces that make up the corpus, up to byte `end`, best; it gives every text back
  // exactly. Of a longer text it sees `training_bytes`, lines drawn from all of it; a byte of words of more than 64 counts as
  // 16 of them, because texts without spaces take that much longer. Errors: ErrorKind::io for a text that is not UTF-8, empty,
  // or too short for so many pieces, and for all that SentencePiece ends with; ErrorKind::usage for fewer pieces than the
  // characters of the text and the 256 bytes take.
  static constexpr std::size_t kTrainingBytes = 32 << 20;
  static Tokenizer train(const Corpus& corpus, std::size_t end, std::int64_t vocabulary,
                         std::size_t training_bytes = kTrainingBytes);
  static Tokenizer train(std::string_view text, std::int64_t vocabulary, const std::string& name = "text");

  std::int64_t vocabulary() const;  // ids are in [0, vocabulary())
  const std::string& name() const;  // "bytes", "unigram", "bpe"
  bool is_bytes() const { return name() == "bytes"; }
  std::uint64_t hash() const;  // equal for equal tokenizers

  // Errors (ErrorKind::io): not UTF-8, which only `bytes` accepts. They name the text and the place in it; `begin` is where a
  // part begins.
  std::vector<std::int64_t> encode(std::string_view text, const std::string& name = "text", TextPlace begin = {}) const;
  Cut cut() const;  // where a text may be cut and encoded in parts

  // Errors (ErrorKind::usage): an id out of range.
  std::string decode(std::span<const std::int64_t> ids) const;
  // What one id stands for, which may be a part of a character; "" for a control token.
  std::string_view piece(std::int64_t id) const;
  std::int64_t characters(std::int64_t id) const;  // the number of characters that begin in piece(id)

  // What of a text does not come back, "" if all of it does: "characters that are no piece of it". The pieces then do not say
  // how many characters a text has.
  const std::string& loses() const;
  bool strips_space() const;                    // decoding drops the space that encoding puts before a text
  std::int64_t end_of_text() const;             // the id of </s>; -1 if there is none
  std::vector<std::int64_t> separator() const;  // between documents: </s>, or a new line if there is none

  // Writes the model to be loaded again. Not for `bytes`.
  void save(const std::filesystem::path& file) const;

 private:
  struct Model;
  explicit Tokenizer(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  std::shared_ptr<const Model> model_;
};

// Decodes ids as they come in: text is returned as soon as its last character is complete. Joined, the texts are decode(ids);
// bytes that are not UTF-8 pass through.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}
  std::string put(std::int64_t id);
  std::string finish();  // what is left: the beginning of a character

 private:
  Tokenizer tokenizer_;
  std::string held_;
  bool begun_ = false;
};

}  // namespace weft
