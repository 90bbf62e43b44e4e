// A folder of tokens, made from a text once and then read without it:
//
//   DIR/data.json              what the folder holds
//   DIR/tokenizer.model        the SentencePiece model; none: bytes
//   DIR/training-00000.tokens  the tokens of the first 9/10 of the text, in shards (tools/data/tokens.h)
//   DIR/validation-00000.tokens
#pragma once

#include <filesystem>
#include <string>

#include "tools/data/tokens.h"

namespace weft {

class ShardFolder {
 public:
  // Errors (ErrorKind::io): not such a folder, one that is not complete, shards that do not belong to it.
  explicit ShardFolder(std::filesystem::path folder);

  // Writes one, shards of at most `shard_tokens`; on an error there is none. Errors (ErrorKind::io): the folder is there and
  // not empty, the text is not UTF-8, the disk is full.
  static ShardFolder make(const std::filesystem::path& folder, const Corpus& corpus, const Tokenizer& tokenizer,
                          std::int64_t shard_tokens);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const Tokens& training() const { return training_; }
  const Tokens& validation() const { return validation_; }
  const std::string& source() const { return source_; }  // the text's name
  std::int64_t shards() const { return shards_; }
  void verify() const;  // reads everything; errors as of Tokens::verify

 private:
  std::string source_;
  Tokenizer tokenizer_;
  Tokens training_, validation_;
  std::int64_t shards_ = 0;
};

}  // namespace weft
