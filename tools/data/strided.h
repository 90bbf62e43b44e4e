// Windows of a text that overlap: for texts longer than a model's context.
#pragma once

#include "tools/data/data.h"

namespace weft {

// To validate with: each window begins `stride` tokens after the one before it, and of its targets those count that no window
// before it had. So every token but those of the first window has at least length - stride tokens before it, and is counted
// once.
class StridedWindows : public BatchSource {
 public:
  // Of the validation part, with the text's options. Errors (ErrorKind::usage): a stride that is not in [1, length], or packed
  // documents.
  StridedWindows(TokenStream text, std::int64_t stride);

  std::int64_t validation_batches() const override;
  Batch validation(std::int64_t index) const override;
  std::int64_t vocabulary() const override { return text_.vocabulary(); }
  std::string name() const override { return text_.name(); }
  std::uint64_t hash() const override { return text_.hash(); }
  const Tokenizer* tokenizer() const override { return text_.tokenizer(); }

 protected:
  Batch training(std::int64_t position) const override;

 private:
  std::int64_t windows() const;
  TokenStream text_;
  std::int64_t stride_;
};

}  // namespace weft
