#include "tools/data/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "jit/utf8.h"
#include "tools/system/process.h"

namespace weft {
namespace {

constexpr std::size_t kMaxCharacter = 4;  // bytes, in UTF-8

// Another program may be called bible too.
bool is_king_james(const std::string& text) { return text.starts_with("Ge1:1 In the beginning") && text.size() > 4'000'000; }

// Its size; 0 for a stream. What is compressed, or no text by its first bytes, would be learnt as it lies.
std::size_t check_is_text(const std::filesystem::path& file) {
  FileReader reader(file);
  if (reader.size() == 0) return 0;
  std::string begin(kForeignBytes, '\0');
  begin.resize(reader.read(std::as_writable_bytes(std::span(begin))));
  if (const auto foreign = foreign_format(begin); foreign && !foreign->text) refuse_foreign(file.string(), begin, "a text");
  return reader.size();
}

std::string document_of(std::string_view line, const std::string& name, std::size_t number) {
  nlohmann::json object = parse_json(line, name, number);
  const auto text = object.is_object() ? object.find("text") : object.end();
  if (text == object.end() || !text->is_string())
    fail(ErrorKind::io, name + ": a line without a text", fmt::format("line {}", number),
         R"(each line is an object with a string: {"text": "..."})");
  return std::move(text->get_ref<std::string&>());
}

// The first n bytes of the text, or a few less: no character of UTF-8 is cut. What is no UTF-8 is cut somewhere.
std::string_view first_bytes(std::string_view text, std::size_t n) {
  for (std::size_t i = 1; i < kMaxCharacter && n > 0 && n < text.size() && utf8_continues(text[n]); ++i) --n;
  return text.substr(0, n);
}

}  // namespace

// What is not yet read of a file, or of a text in memory, and in a buffer as much of it as is needed.
class TextReader::Bytes {
 public:
  explicit Bytes(std::shared_ptr<const std::string> text) : text_(std::move(text)) {}
  explicit Bytes(const std::filesystem::path& file) : file_(std::in_place, file) {}

  std::string_view rest() const { return std::string_view(text_ ? *text_ : buffer_).substr(begin_); }
  void drop(std::size_t n) { begin_ += n; }
  bool extend() {  // false: nothing follows
    if (!file_) return false;
    buffer_.erase(0, std::exchange(begin_, 0));
    // Doubling, since whoever looks for the end of a line looks through all of it again.
    const std::size_t have = buffer_.size(), more = std::max(have, kBytesAnywhere);
    buffer_.resize(have + more);
    const std::size_t n = file_->read(std::as_writable_bytes(std::span(buffer_)).subspan(have));
    buffer_.resize(have + n);
    return n > 0;
  }

 private:
  std::shared_ptr<const std::string> text_;
  std::optional<FileReader> file_;
  std::string buffer_;
  std::size_t begin_ = 0;
};

Corpus::Corpus(std::string name, std::string text)
    : name_(std::move(name)), text_(std::make_shared<const std::string>(std::move(text))), size_(text_->size()) {}

bool holds_documents(const std::filesystem::path& file) {
  std::string ending = file.extension().string();
  for (char& c : ending)
    if ('A' <= c && c <= 'Z') c = char(c - 'A' + 'a');
  return ending == ".jsonl" || ending == ".ndjson";
}

Corpus load_corpus(const std::optional<std::filesystem::path>& file) {
  if (!file) {
    std::string text;
    if (const auto bible = find_program("bible", {"/usr/bin", "/usr/games"}))
      text = output_of({.program = *bible, .arguments = {"-f", "Gen1:1-Rev22:21"}}).value_or("");
    if (!is_king_james(text))
      fail(ErrorKind::io, "no text to train on", "the program bible, which prints the default one, is not installed",
           "`apt-get install bible-kjv`, or give a text of your own: `--data FILE`");
    return {"King James Bible", std::move(text)};
  }
  Corpus corpus;
  corpus.name_ = file->string();
  corpus.documents_ = holds_documents(*file);
  corpus.size_ = check_is_text(*file);
  if (corpus.size_ > 0) {
    corpus.file_ = *file;
  } else {  // a stream perhaps, which can be read only once
    corpus.text_ = std::make_shared<const std::string>(read_text(*file));
    corpus.size_ = corpus.text_->size();
  }
  if (corpus.documents_) {
    TextReader reader(corpus);
    for (corpus.size_ = 0; reader.next_document();) corpus.size_ += reader.document_->rest().size();
  }
  if (corpus.size_ == 0) fail(ErrorKind::io, corpus.name_ + " is empty", {}, "give a text file: --data FILE");
  return corpus;
}

std::size_t part_size(std::string_view have, bool whole, Cut cut) {
  const std::size_t all = whole ? have.size() : 0;
  if (cut == Cut::documents) return all;
  // More than a character is left behind the cut: the text may have to end before its last one.
  if (cut == Cut::anywhere) return have.size() > kBytesAnywhere + kMaxCharacter ? kBytesAnywhere : all;
  if (have.size() <= kBytesOfLines) return all;
  std::size_t end = have.substr(0, kBytesOfLines).rfind('\n');
  if (end == have.npos) end = have.find('\n', kBytesOfLines);
  return end == have.npos ? all : end + 1;
}

TextReader::TextReader(const Corpus& corpus) : corpus_(corpus) {
  auto bytes = corpus.text_ ? std::make_unique<Bytes>(corpus.text_) : std::make_unique<Bytes>(corpus.file_);
  if (corpus.documents_)
    document_ = std::make_unique<Bytes>(std::make_shared<const std::string>()), file_ = std::move(bytes);
  else
    document_ = std::move(bytes);
}

TextReader::~TextReader() = default;

// The next line that has a text becomes document_; false: there is none.
bool TextReader::next_document() {
  if (!file_) return false;
  for (;;) {
    std::size_t end;
    while ((end = file_->rest().find('\n')) == std::string_view::npos && file_->extend()) {
    }
    const std::string_view line = file_->rest().substr(0, end);
    if (line.empty() && end == line.npos) return false;
    std::string text;
    ++lines_;
    if (line.find_first_not_of(" \t\r") != line.npos) text = document_of(line, corpus_.name_, lines_);
    file_->drop(end == line.npos ? line.size() : end + 1);
    if (text.empty()) continue;
    document_ = std::make_unique<Bytes>(std::make_shared<const std::string>(std::move(text)));
    return true;
  }
}

std::optional<TextReader::Part> TextReader::next(std::size_t end, Cut cut) {
  document_->drop(std::exchange(given_, 0));
  if (place_.offset >= end) return std::nullopt;
  if (document_->rest().empty() && !document_->extend() && !next_document())
    fail(ErrorKind::io, corpus_.name_ + ": it has become shorter while it was read",
         fmt::format("{} bytes, then {}", corpus_.size_, place_.offset));
  const std::size_t limit = end - place_.offset;
  const auto up_to_end = [&] { return first_bytes(document_->rest(), std::min(limit, document_->rest().size())); };
  for (bool whole = false; (given_ = part_size(up_to_end(), whole, cut)) == 0 && !whole;)
    whole = document_->rest().size() > limit || !document_->extend();
  if (given_ == 0) return std::nullopt;
  const std::string_view have = document_->rest().substr(0, given_);
  const Part part{have, place_, file_ && given_ == document_->rest().size()};
  place_.offset += given_;
  place_.line += std::size_t(std::count(have.begin(), have.end(), '\n'));
  return part;
}

void TextReader::skip(std::size_t end) {
  while (next(end, Cut::anywhere)) {
  }
}

}  // namespace weft
