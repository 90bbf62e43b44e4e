// Texts, which can be read from the front any number of times. A file is never held in memory as a whole.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace weft {

class Corpus {
 public:
  Corpus(std::string name, std::string text);

  const std::string& name() const { return name_; }         // the file, or the name of the default text
  std::size_t size() const { return size_; }                // bytes of its text, all documents together
  std::size_t split() const { return size_ - size_ / 10; }  // the first 9/10 are trained on

 private:
  friend class TextReader;
  friend Corpus load_corpus(const std::optional<std::filesystem::path>& file);
  Corpus() = default;

  std::string name_;
  std::filesystem::path file_;  // or, if that is empty:
  std::shared_ptr<const std::string> text_;
  bool documents_ = false;  // lines of JSON
  std::size_t size_ = 0;
};

// Whether its name, .jsonl or .ndjson, says that each line is an object of JSON.
bool holds_documents(const std::filesystem::path& file);

// A text file, or the documents of a .jsonl or .ndjson file: each line is an object whose string "text" is one. Without a file,
// the King James Bible as Debian's package bible-kjv prints it: one verse a line, each after its reference ("Ge1:1 In the
// beginning ..."). Errors are ErrorKind::io: missing, empty, compressed or no text at all (with what it is), not JSON (with the
// line), no such package.
Corpus load_corpus(const std::optional<std::filesystem::path>& file = std::nullopt);

// Where a text may be cut into parts that are tokenized one by one. SentencePiece sums scores in single precision over a whole
// part, so the size of the parts decides between pieces that are almost equally good: changing kBytesOfLines changes the
// tokens.
enum class Cut { anywhere, lines, documents };
inline constexpr std::size_t kBytesAnywhere = 256 << 10, kBytesOfLines = 4 << 20;

// How many bytes to cut off the front of `have`: about as many as the constants say, more where no cut is allowed. 0: where
// that is can only be told with more of the text than `have`, which is not the `whole` of it.
std::size_t part_size(std::string_view have, bool whole, Cut cut);

struct TextPlace {  // in a text, for errors
  std::size_t offset = 0, line = 1;
};

class TextReader {
 public:
  explicit TextReader(const Corpus& corpus);
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;
  const Corpus& corpus() const { return corpus_; }

  struct Part {
    std::string_view text;  // until the next call
    TextPlace place;
    bool ends_document;
  };
  // The next part, of one document. It does not go beyond byte `end` of the text, nor into a character of UTF-8 that does.
  // Nothing: all up to there has been given. Errors (ErrorKind::io): the file has changed, lines that are not documents.
  std::optional<Part> next(std::size_t end, Cut cut);
  void skip(std::size_t end);

 private:
  friend Corpus load_corpus(const std::optional<std::filesystem::path>& file);
  class Bytes;
  bool next_document();

  const Corpus corpus_;
  std::unique_ptr<Bytes> file_, document_;  // file_: lines of JSON only
  std::size_t lines_ = 0;                   // of file_, so far
  std::size_t given_ = 0;                   // bytes of the last part
  TextPlace place_;
};

}  // namespace weft
