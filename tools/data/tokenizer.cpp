#include "tools/data/tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"
#include "jit/utf8.h"
#include "tools/system/apart.h"

namespace weft {
namespace {

namespace sp = sentencepiece;

constexpr std::size_t kMaxModelBytes = 64 << 20, kMaxPieces = 1 << 20, kMaxPieceBytes = 1024;
// Bytes of a line that a tokenizer is made from; longer ones are cut. Its sums over a whole line lose their precision in long
// ones, until it gives up.
constexpr std::size_t kMaxSentence = 4096;
// Where there are no spaces, no word comes again, and each round of SentencePiece goes through the whole text, at each place
// through all pieces that begin there: its time grows as n^1.4, and shorter lines save none of it. So a byte of a word that is
// longer than any of a language with spaces counts as 16, and the time is bounded: 2 MB of DNA take 90 s, of Chinese 15.
constexpr std::size_t kLongWord = 64, kCostOfLongWords = 16;
constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, which stands for a space in pieces

// ---- The model file, a protocol buffer message. SentencePiece trusts what is in it, so everything that its code relies on
// is checked before.

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  fail(ErrorKind::io, name + ": not a tokenizer that can be used", why,
       "give a SentencePiece model, unigram or BPE, that was trained with normalization_rule_name=identity");
}

struct Field {
  std::uint64_t number = 0;
  int wire = 0;  // 0: varint, 1: 8 bytes, 2: bytes with their length, 5: 4 bytes
  std::uint64_t value = 0;
  std::string_view bytes;
};

class Message {  // reads the fields of one message
 public:
  Message(std::string_view rest, const std::string& name) : rest_(rest), name_(name) {}

  std::optional<Field> next() {
    if (rest_.empty()) return std::nullopt;
    Field field;
    const std::uint64_t tag = varint();
    field.number = tag >> 3, field.wire = int(tag & 7);
    if (field.number == 0) refuse(name_, "damaged: a field has the number 0");
    if (field.wire == 0)
      field.value = varint();
    else if (field.wire == 1)
      field.bytes = take(8);
    else if (field.wire == 2)
      field.bytes = take(varint());
    else if (field.wire == 5)
      field.bytes = take(4);
    else
      refuse(name_, fmt::format("damaged: a field of kind {}", field.wire));
    return field;
  }

  // The field's content, if it is of the kind that it must have.
  std::string_view bytes(const Field& field) const { return expect(field, 2), field.bytes; }
  std::uint64_t integer(const Field& field) const { return expect(field, 0), field.value; }
  float real(const Field& field) const {
    expect(field, 5);
    float value;
    std::memcpy(&value, field.bytes.data(), sizeof value);
    return value;
  }

 private:
  void expect(const Field& field, int wire) const {
    if (field.wire != wire) refuse(name_, fmt::format("damaged: field {} is of kind {}", field.number, field.wire));
  }
  std::string_view take(std::uint64_t n) {
    if (n > rest_.size()) refuse(name_, "truncated");
    const std::string_view bytes = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return bytes;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= std::uint64_t(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    refuse(name_, "damaged: a number without end");
  }

  std::string_view rest_;
  const std::string& name_;
};

enum class PieceType { normal = 1, unknown, control, user_defined, unused, byte };
enum class ModelType { unigram = 1, bpe };

struct ModelFile {  // what weft must know of it; the defaults are the format's
  struct Piece {
    std::string text;
    PieceType type = PieceType::normal;
  };
  std::vector<Piece> pieces;
  std::uint64_t type = 1;
  bool byte_fallback = false, dummy_prefix = true, squeeze = true, suffix = false;
};

ModelFile::Piece read_piece(std::string_view bytes, std::size_t id, const std::string& name) {
  ModelFile::Piece piece;
  Message message(bytes, name);
  while (const auto field = message.next()) {
    if (field->number == 1) piece.text = message.bytes(*field);
    if (field->number == 2 && !std::isfinite(message.real(*field))) refuse(name, fmt::format("piece {} has no score", id));
    if (field->number == 3) {
      const std::uint64_t type = message.integer(*field);
      if (type < 1 || type > 6) refuse(name, fmt::format("piece {} is of an unknown type {}", id, type));
      piece.type = PieceType(type);
    }
  }
  if (piece.text.empty() || piece.text.size() > kMaxPieceBytes || piece.text.find('\0') != std::string::npos ||
      utf8_error(piece.text) != piece.text.size())
    refuse(name, fmt::format("piece {} is empty, not UTF-8, or longer than {} bytes", id, kMaxPieceBytes));
  return piece;
}

void read_normalizer(std::string_view bytes, ModelFile& model, const std::string& name) {
  Message message(bytes, name);
  while (const auto field = message.next()) {
    if (field->number == 2 && !message.bytes(*field).empty()) refuse(name, "it has rules that change the text");
    if (field->number == 3) model.dummy_prefix = message.integer(*field);
    if (field->number == 4) model.squeeze = message.integer(*field);
    if (field->number == 5 && !message.integer(*field)) refuse(name, "it does not mark spaces");
  }
}

ModelFile read_model(std::string_view bytes, const std::string& name) {
  ModelFile model;
  if (bytes.size() > kMaxModelBytes) refuse(name, fmt::format("{} bytes; at most {} are read", bytes.size(), kMaxModelBytes));
  Message message(bytes, name);
  while (const auto field = message.next()) {
    if (field->number == 1) {
      if (model.pieces.size() == kMaxPieces) refuse(name, fmt::format("more than {} pieces", kMaxPieces));
      model.pieces.push_back(read_piece(message.bytes(*field), model.pieces.size(), name));
    } else if (field->number == 2) {
      Message trainer(message.bytes(*field), name);
      while (const auto option = trainer.next()) {
        if (option->number == 3) model.type = trainer.integer(*option);
        if (option->number == 24) model.suffix = trainer.integer(*option);
        if (option->number == 35) model.byte_fallback = trainer.integer(*option);
      }
    } else if (field->number == 3) {
      read_normalizer(message.bytes(*field), model, name);
    } else if (field->number == 5) {  // its denormalizer
      ModelFile ignored;
      read_normalizer(message.bytes(*field), ignored, name);
    } else if (field->number != 4) {  // 4: its own tests
      refuse(name, fmt::format("unknown field {}", field->number));
    }
  }
  if (model.pieces.empty()) refuse(name, "it has no pieces");
  if (model.type != 1 && model.type != 2) refuse(name, "it is neither unigram nor BPE");
  if (model.suffix) refuse(name, "it marks spaces behind words");
  return model;
}

// The value of "<0x41>".
unsigned char byte_value(const std::string& piece, const std::string& name) {
  const auto digit = [&](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>' || digit(piece[3]) < 0 || digit(piece[4]) < 0)
    refuse(name, fmt::format("the piece '{}' names no byte", piece));
  return static_cast<unsigned char>(digit(piece[3]) * 16 + digit(piece[4]));
}

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

std::string decoded(const ModelFile::Piece& piece, const std::string& name) {
  switch (piece.type) {
    case PieceType::control:
      return {};
    case PieceType::unknown:
      return " \xe2\x81\x87 ";  // as SentencePiece writes it: U+2047
    case PieceType::byte:
      return {char(byte_value(piece.text, name))};
    default:
      return replace_all(piece.text, kSpace, " ");
  }
}

// ---- SentencePiece ----------------------------------------------------------------------------------------------------------

void quiet() {  // it logs to stderr; nothing else sets the level in an installed library
  static std::once_flag once;
  std::call_once(once, [] {
    std::string unused;
    (void)sp::SentencePieceTrainer::Train(std::unordered_map<std::string, std::string>{{"minloglevel", "4"}}, nullptr, &unused);
  });
}

void check_text(std::string_view text, const std::string& name, TextPlace begin) {
  const std::size_t bad = utf8_error(text);
  if (bad == text.size()) return;
  fail(ErrorKind::io, name + ": not UTF-8",
       fmt::format("byte {:#04x} at offset {}, line {}", static_cast<unsigned char>(text[bad]), begin.offset + bad,
                   begin.line + std::size_t(std::count(text.begin(), text.begin() + std::ptrdiff_t(bad), '\n'))),
       "convert it with iconv, or give --tokenizer bytes, which takes any file");
}

// Lines of a corpus up to byte `end`: this share of them, drawn from everywhere.
class Lines : public sp::SentenceIterator {
 public:
  Lines(const Corpus& corpus, std::size_t end, double share) : reader_(corpus), end_(end), share_(share) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sp::util::Status status() const override { return {}; }
  void Next() override {
    do done_ = !next_line();
    while (!done_ && !is_drawn(number_++));
  }

 private:
  bool is_drawn(std::uint64_t number) const { return std::ldexp(double(XXH3_64bits(&number, sizeof number)), -64) <= share_; }
  bool next_line() {
    if (rest_.empty()) {
      const auto part = reader_.next(end_, Cut::lines);
      if (!part) return false;
      rest_ = part->text;
      check_text(rest_, reader_.corpus().name(), part->place);
    }
    std::size_t end = std::min(rest_.find('\n'), rest_.size()), next = std::min(end + 1, rest_.size());
    if (end > kMaxSentence) {
      const std::size_t space = rest_.rfind(' ', kMaxSentence);
      end = space != rest_.npos && space > kMaxSentence / 2 ? space : kMaxSentence;  // between words, if there are any
      while (utf8_continues(rest_[end])) --end;
      next = end;
    }
    line_ = rest_.substr(0, end);
    rest_.remove_prefix(next);
    return true;
  }

  TextReader reader_;
  std::size_t end_;
  double share_;
  std::uint64_t number_ = 0;  // of the line
  std::string_view rest_;
  std::string line_;
  bool done_ = false;
};

// Which of its lines cost as much as `most` bytes of short words.
double affordable_share(const Corpus& corpus, std::size_t end, std::size_t most) {
  if (end <= most / kCostOfLongWords) return 1;
  double cost = 0;
  for (Lines lines(corpus, end, 1); !lines.done(); lines.Next()) {
    cost += double(lines.value().size());
    for (std::string_view rest = lines.value(); !rest.empty();) {
      const std::size_t word = std::min(rest.find(' '), rest.size());
      if (word > kLongWord) cost += double((kCostOfLongWords - 1) * word);
      rest.remove_prefix(std::min(word + 1, rest.size()));
    }
  }
  return std::min(1.0, double(most) / cost);
}

// The model's file. SentencePiece ends its process where it meets what it did not expect, so it has one of its own.
std::string train_apart(const Corpus& corpus, std::size_t end, double share, std::int64_t vocabulary) {
  const Apart made = run_apart([&] {
    Lines lines(corpus, end, share);
    std::string serialized;
    // The defaults lose new lines and rare characters, and the vocabulary would depend on the number of threads.
    const sp::util::Status status = sp::SentencePieceTrainer::Train(
        std::unordered_map<std::string, std::string>{{"model_type", "unigram"},
                                                     {"vocab_size", std::to_string(vocabulary)},
                                                     {"normalization_rule_name", "identity"},
                                                     {"remove_extra_whitespaces", "false"},
                                                     {"add_dummy_prefix", "false"},
                                                     {"character_coverage", "1.0"},
                                                     {"byte_fallback", "true"},
                                                     {"num_threads", "1"},
                                                     {"hard_vocab_limit", "false"},
                                                     {"max_sentence_length", std::to_string(kMaxSentence)},
                                                     {"minloglevel", "4"}},
        &lines, &serialized);
    if (!status.ok()) throw std::runtime_error(status.message());
    return serialized;
  });
  if (!made.result) fail(ErrorKind::io, corpus.name() + ": no tokenizer can be made from this text", made.complaint);
  return *made.result;
}

// What a vocabulary must have room for: every character (a zero byte is none), every byte, and <unk>, <s>, </s>; nothing if
// all lines are empty.
std::optional<std::int64_t> least_vocabulary(Lines&& lines) {
  std::unordered_set<std::string> characters;
  bool cut = false, empty = true;
  for (; !lines.done(); lines.Next()) {
    for (std::string_view rest = lines.value(); !rest.empty(); empty = false) {
      const std::size_t length = utf8_length(rest, cut);
      if (rest[0]) characters.emplace(rest.substr(0, length));
      rest.remove_prefix(length);
    }
  }
  if (empty) return std::nullopt;
  return std::int64_t(characters.size()) + 256 + 3;
}

}  // namespace

struct Tokenizer::Model {
  std::string name, loses;
  std::uint64_t hash = 0;
  std::vector<std::string> pieces;
  std::vector<std::int32_t> characters;
  std::int64_t end_of_text = -1;
  bool dummy_prefix = false;           // a space before the text, which decoding takes away
  bool knows_space = false;            // as a piece of its own
  std::vector<std::int64_t> byte_ids;  // of each byte value, where encoding keeps every text; else empty
  std::string serialized;
  std::unique_ptr<sp::SentencePieceProcessor> processor;

  void finish() {
    hash = XXH3_64bits_withSeed(serialized.data(), serialized.size(), std::uint64_t(pieces.size()));
    for (const std::string& piece : pieces)
      characters.push_back(std::int32_t(std::count_if(piece.begin(), piece.end(), [](char c) { return !utf8_continues(c); })));
  }

  void encode(std::string_view text, std::vector<std::int64_t>& ids) const {
    std::vector<int> found;
    const sp::util::Status status = processor->Encode(text, &found);
    if (!status.ok()) fail(ErrorKind::io, "tokenizer: a text cannot be encoded", status.message());
    ids.insert(ids.end(), found.begin(), found.end());
  }
};

Tokenizer Tokenizer::bytes() {
  static const std::shared_ptr<const Model> shared = [] {
    auto model = std::make_shared<Model>();
    model->name = "bytes";
    for (int b = 0; b < 256; ++b) model->pieces.emplace_back(1, char(b));
    model->finish();
    return model;
  }();
  return Tokenizer(shared);
}

Tokenizer Tokenizer::from_model(std::string serialized, const std::string& name) {
  quiet();
  const ModelFile file = read_model(serialized, name);
  auto model = std::make_shared<Model>();
  model->name = file.type == 1 ? "unigram" : "bpe";
  model->dummy_prefix = file.dummy_prefix;
  std::vector<std::int64_t> byte_ids(256, -1);
  for (std::size_t id = 0; id < file.pieces.size(); ++id) {
    model->pieces.push_back(decoded(file.pieces[id], name));
    if (file.pieces[id].type == PieceType::byte) byte_ids[byte_value(file.pieces[id].text, name)] = std::int64_t(id);
    if (file.pieces[id].text == kSpace) model->knows_space = true;
    if (file.pieces[id].type == PieceType::control && file.pieces[id].text == "</s>") model->end_of_text = std::int64_t(id);
  }
  model->processor = std::make_unique<sp::SentencePieceProcessor>();
  try {
    const sp::util::Status status = model->processor->LoadFromSerializedProto(serialized);
    if (!status.ok()) refuse(name, status.message());
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    refuse(name, e.what());
  }
  if (std::size_t(model->processor->GetPieceSize()) != file.pieces.size()) refuse(name, "damaged: pieces are missing");
  const bool all_bytes = std::find(byte_ids.begin(), byte_ids.end(), -1) == byte_ids.end();
  const bool keeps_characters = file.byte_fallback && all_bytes;
  if (keeps_characters && !file.dummy_prefix && !file.squeeze) model->byte_ids = std::move(byte_ids);
  if (!keeps_characters) model->loses = "characters that are no piece of it";
  if (file.squeeze) model->loses += (keeps_characters ? "" : ", and ") + std::string("spaces where several stand together");
  model->serialized = std::move(serialized);
  model->finish();
  return Tokenizer(std::move(model));
}

Tokenizer Tokenizer::load(const std::filesystem::path& file) {
  const std::string bytes = read_text(file, kMaxModelBytes);
  refuse_foreign(file.string(), bytes, "a SentencePiece model");
  Tokenizer tokenizer = from_model(bytes, file.string());
  if (!tokenizer.loses().empty())
    print_error("weft: {}: this tokenizer loses {}, so nothing is said per character or byte\n", file.string(),
                tokenizer.loses());
  return tokenizer;
}

Tokenizer Tokenizer::train(std::string_view text, std::int64_t vocabulary, const std::string& name) {
  return train(Corpus(name, std::string(text)), text.size(), vocabulary);
}

Tokenizer Tokenizer::train(const Corpus& corpus, std::size_t end, std::int64_t vocabulary, std::size_t training_bytes) {
  quiet();
  const std::string& name = corpus.name();
  const double share = affordable_share(corpus, end, training_bytes);
  const auto needed = least_vocabulary(Lines(corpus, end, share));
  if (!needed) fail(ErrorKind::io, name + ": no text to make a tokenizer from");
  const std::int64_t least = *needed;
  if (vocabulary < least || vocabulary > std::int64_t(kMaxPieces))
    fail(ErrorKind::usage,
         fmt::format("{}: a vocabulary of {} is too {}", name, vocabulary, vocabulary < least ? "small" : "large"),
         fmt::format("every byte and every character of the text must be in it: {} to {}", least, kMaxPieces),
         "give another --vocab");
  Tokenizer tokenizer = from_model(train_apart(corpus, end, share, vocabulary), name);
  if (tokenizer.vocabulary() < vocabulary)
    fail(ErrorKind::io, fmt::format("{}: too short for a vocabulary of {}", name, vocabulary),
         fmt::format("{} bytes give {} pieces", end, tokenizer.vocabulary()),
         fmt::format("give a longer text, --vocab {}, or --tokenizer bytes", tokenizer.vocabulary()));
  return tokenizer;
}

std::int64_t Tokenizer::vocabulary() const { return std::int64_t(model_->pieces.size()); }
const std::string& Tokenizer::name() const { return model_->name; }
std::uint64_t Tokenizer::hash() const { return model_->hash; }
const std::string& Tokenizer::loses() const { return model_->loses; }
bool Tokenizer::strips_space() const { return model_->dummy_prefix; }
std::int64_t Tokenizer::end_of_text() const { return model_->end_of_text; }

Cut Tokenizer::cut() const {
  if (is_bytes()) return Cut::anywhere;
  // No piece goes across the end of a line; a dummy prefix begins every part.
  return model_->dummy_prefix ? Cut::documents : Cut::lines;
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, const std::string& name, TextPlace begin) const {
  std::vector<std::int64_t> ids;
  if (is_bytes()) {
    ids.resize(text.size());
    std::transform(text.begin(), text.end(), ids.begin(), [](char c) { return std::int64_t(static_cast<unsigned char>(c)); });
    return ids;
  }
  check_text(text, name, begin);
  while (!text.empty()) {  // in parts: SentencePiece needs some dozens of bytes for each
    std::string_view block = text.substr(0, part_size(text, true, cut()));
    text.remove_prefix(block.size());
    // A U+2581 of the text would become a space, and a space that is no piece become U+2581: they are given as their bytes.
    while (!model_->byte_ids.empty()) {
      const std::size_t mark = std::min(block.find(kSpace), model_->knows_space ? block.npos : block.find(' '));
      if (mark == block.npos) break;
      model_->encode(block.substr(0, mark), ids);
      const std::string_view bytes = block.substr(mark, block[mark] == ' ' ? 1 : kSpace.size());
      for (char c : bytes) ids.push_back(model_->byte_ids[static_cast<unsigned char>(c)]);
      block.remove_prefix(mark + bytes.size());
    }
    model_->encode(block, ids);
  }
  return ids;
}

std::string_view Tokenizer::piece(std::int64_t id) const {
  if (id < 0 || id >= vocabulary())
    fail(ErrorKind::usage, "tokenizer: a token id is out of range", fmt::format("id {}, vocabulary {}", id, vocabulary()));
  return model_->pieces[std::size_t(id)];
}

std::int64_t Tokenizer::characters(std::int64_t id) const { return piece(id), model_->characters[std::size_t(id)]; }

std::string Tokenizer::decode(std::span<const std::int64_t> ids) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (std::int64_t id : ids) text += decoder.put(id);
  return text + decoder.finish();
}

std::vector<std::int64_t> Tokenizer::separator() const {
  if (end_of_text() >= 0) return {end_of_text()};
  return encode("\n");
}

void Tokenizer::save(const std::filesystem::path& file) const {
  if (is_bytes()) fail(ErrorKind::usage, "tokenizer: there is no model of single bytes to save");
  write_file(file, std::as_bytes(std::span(model_->serialized)));
}

std::string StreamDecoder::put(std::int64_t id) {
  std::string_view piece = tokenizer_.piece(id);
  if (!begun_ && !piece.empty()) {
    begun_ = true;
    if (tokenizer_.strips_space() && piece.starts_with(' ')) piece.remove_prefix(1);
  }
  held_ += piece;
  // Complete characters, and bytes that cannot become one.
  std::size_t at = 0;
  bool cut = false;
  while (at < held_.size()) {
    const std::size_t length = utf8_length(std::string_view(held_).substr(at), cut);
    if (cut) break;
    at += std::max<std::size_t>(length, 1);
  }
  std::string text = held_.substr(0, at);
  held_.erase(0, at);
  return text;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

}  // namespace weft
