// Tokenizers: exact round trips, decoding while tokens come in, what is refused.
#include "tools/data/tokenizer.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "jit/file.h"
#include "jit/utf8.h"
#include "nn/safetensors.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/data/data.h"
#include "tools/system/apart.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Words of up to four syllables, the same on every machine.
std::string words(std::size_t size) {
  static const char* const kSyllables[] = {"and", "the", "king", "for", "th", "in", "to", "a", "la", "Caf\xc3\xa9", "er", "so"};
  std::mt19937 random(7);
  std::string text;
  while (text.size() < size) {
    for (unsigned n = 1 + random() % 4; n--;) text += kSyllables[std::min(random() % 12, random() % 12)];
    text += random() % 8 ? ' ' : random() % 4 ? '\n' : '\t';
  }
  return text;
}

const Tokenizer& trained() {
  static const Tokenizer tokenizer = Tokenizer::train(words(20000), 400);
  return tokenizer;
}

// The model file of trained().
const std::string& model() {
  static const std::string bytes = [] {
    TempFolder folder;
    trained().save(folder / "m");
    return read_text(folder / "m");
  }();
  return bytes;
}

std::string utf8(char32_t c) {
  std::string s;
  if (c < 0x80) return {char(c)};
  if (c < 0x800)
    s += char(0xc0 | c >> 6);
  else if (c < 0x10000)
    s += char(0xe0 | c >> 12), s += char(0x80 | (c >> 6 & 0x3f));
  else
    s += char(0xf0 | c >> 18), s += char(0x80 | (c >> 12 & 0x3f)), s += char(0x80 | (c >> 6 & 0x3f));
  return s += char(0x80 | (c & 0x3f));
}

TEST(Utf8, ErrorsAreFoundWhereTheyStand) {
  for (char32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xd800 && c < 0xe000) continue;
    const std::string s = utf8(c);
    ASSERT_EQ(utf8_error(s), s.size()) << std::uint32_t(c);
    for (std::size_t n = 1; n < s.size(); ++n) {
      bool cut = false;
      EXPECT_EQ(utf8_length(s.substr(0, n), cut), 0u);
      EXPECT_TRUE(cut);
      EXPECT_EQ(utf8_error("ab" + s.substr(0, n) + "c"), 2u);
    }
  }
  // Overlong forms, surrogates, beyond the end, bytes that begin nothing.
  for (std::string_view bad : {"\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xed\xa0\x80", "\xed\xbf\xbf",
                               "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\x80", "\xff", "\xe2\x28\xa1"}) {
    bool cut = true;
    EXPECT_EQ(utf8_length(bad, cut), 0u);
    EXPECT_FALSE(cut);
  }
}

TEST(Tokenizer, BytesAreTheirOwnIds) {
  const Tokenizer bytes = Tokenizer::bytes();
  std::string text;
  for (int i = 0; i < 256; ++i) text += char(i);
  const auto ids = bytes.encode(text);
  for (int i = 0; i < 256; ++i) EXPECT_EQ(ids[std::size_t(i)], i);
  EXPECT_EQ(bytes.decode(ids), text);
  EXPECT_EQ(bytes.vocabulary(), 256);
  EXPECT_EQ(bytes.name(), "bytes");
  EXPECT_EQ(bytes.separator(), std::vector<std::int64_t>{'\n'});
  EXPECT_EQ(bytes.cut(), Cut::anywhere);
  expect_error(ErrorKind::usage, {"out of range", "id 256"}, [&] { bytes.decode(std::vector<std::int64_t>{256}); });
  expect_error(ErrorKind::usage, {"no model"}, [&] { bytes.save("x"); });
}

TEST(Tokenizer, EveryTextComesBackExactly) {
  const Tokenizer& t = trained();
  EXPECT_EQ(t.vocabulary(), 400);
  EXPECT_EQ(t.name(), "unigram");
  EXPECT_EQ(t.cut(), Cut::lines);
  std::string planes;
  for (char32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 251)
    if (c < 0xd800 || c >= 0xe000) planes += utf8(c);
  std::string line(400'000, 'x');
  for (std::size_t i = 0; i < line.size(); i += 7) line[i] = " theking"[i % 8];
  for (const std::string& text :
       {words(30000), std::string(), std::string("a"), std::string("\n"), std::string("\n\n\n"), std::string("a\r\nb\r\n\r\n"),
        std::string("\t\ttab\t"), std::string("  two  spaces  "), std::string("zero\0byte", 9), planes, line,
        std::string("a \xe2\x96\x81 b\xe2\x96\x81\xe2\x96\x81"), std::string("<0x0A> <s> </s> <unk> \xe2\x81\x87"),
        std::string("\xef\xbb\xbf"
                    "bom"),
        std::string(10'000, ' ')}) {
    const auto ids = t.encode(text);
    EXPECT_EQ(t.decode(ids), text) << text.substr(0, 60);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 0) << "<unk> in " << text.substr(0, 60);
    std::int64_t characters = 0, bytes = 0;
    for (std::int64_t id : ids) characters += t.characters(id), bytes += std::int64_t(t.piece(id).size());
    EXPECT_EQ(std::size_t(bytes), text.size());
    EXPECT_EQ(characters, std::count_if(text.begin(), text.end(), [](char c) { return !utf8_continues(c); }));
  }
  EXPECT_LT(t.encode(words(30000)).size(), 12000u);  // and it is shorter
}

// Of a text beyond the limit lines from everywhere are seen, in whatever order its lines come.
TEST(Tokenizer, IsMadeOfAShareOfALargeText) {
  std::string text;
  for (int i = 0; i < 4000; ++i) text += i % 10 == 9 ? "the king went forth\n" : "xyxy xyxy xyxy xyxy\n";
  const Corpus corpus("t", text);
  const auto knows = [](const Tokenizer& t, char c) {
    for (std::int64_t id = 0; id < t.vocabulary(); ++id)
      if (t.piece(id) == std::string(1, c) && id > 258) return true;  // 0 to 2 are <unk>, <s>, </s>; then the bytes
    return false;
  };
  const Tokenizer all = Tokenizer::train(corpus, corpus.size(), 276),
                  few = Tokenizer::train(corpus, corpus.size(), 276, text.size() / 10);
  const Tokenizer front = Tokenizer::train(corpus, 100, 263);
  EXPECT_TRUE(knows(all, 'k') && knows(all, 'x'));
  EXPECT_TRUE(knows(few, 'k') && knows(few, 'x'));
  EXPECT_NE(few.hash(), all.hash());
  EXPECT_TRUE(knows(front, 'x') && !knows(front, 'k'));
  for (const Tokenizer& t : {all, few, front}) EXPECT_EQ(t.decode(t.encode(text)), text);
}

TEST(Tokenizer, SavedAndLoadedItIsTheSame) {
  TempFolder folder;
  trained().save(folder / "tokenizer.model");
  const Tokenizer loaded = Tokenizer::load(folder / "tokenizer.model"), again = Tokenizer::train(words(20000), 400);
  const std::string text = words(5000);
  for (const Tokenizer& other : {loaded, again}) {
    EXPECT_EQ(other.hash(), trained().hash());
    EXPECT_EQ(other.encode(text), trained().encode(text));
  }
  EXPECT_NE(trained().hash(), Tokenizer::bytes().hash());
  EXPECT_NE(trained().hash(), Tokenizer::train(words(20000), 399).hash());
  EXPECT_EQ(loaded.end_of_text(), 2);
  EXPECT_EQ(loaded.separator(), std::vector<std::int64_t>{2});
  EXPECT_EQ(loaded.piece(2), "");
}

TEST(Tokenizer, AStreamGivesWholeCharacters) {
  const std::string text = "Caf\xc3\xa9 \xf0\x9f\x98\x80 king\n";
  for (const Tokenizer& t : {trained(), Tokenizer::bytes()}) {
    StreamDecoder decoder(t);
    std::string joined;
    for (std::int64_t id : t.encode(text)) {
      const std::string part = decoder.put(id);
      EXPECT_EQ(utf8_error(part), part.size());
      joined += part;
    }
    EXPECT_EQ(joined, text);
    EXPECT_EQ(decoder.finish(), "");
  }
  // What is no UTF-8 passes; only what may become a character is held back.
  StreamDecoder decoder(Tokenizer::bytes());
  EXPECT_EQ(decoder.put(0xff), "\xff");
  EXPECT_EQ(decoder.put(0xf0), "");
  EXPECT_EQ(decoder.put(0x9f), "");
  EXPECT_EQ(decoder.put('a'),
            "\xf0\x9f"
            "a");
  EXPECT_EQ(decoder.put(0xc3), "");
  EXPECT_EQ(decoder.finish(), "\xc3");
}

TEST(Tokenizer, MadeOfATextWithoutSpacesItKeepsThem) {
  const Tokenizer t = Tokenizer::train("theking\nwentforth\n", 270);
  for (const char* text : {"the king", " ", "a \xe2\x96\x81 b", "  the  "}) EXPECT_EQ(t.decode(t.encode(text)), text);
}

TEST(Tokenizer, TextsThatMakeNone) {
  const auto train = [](std::string text, std::int64_t vocabulary) {
    return [=] { Tokenizer::train(text, vocabulary, "note.txt"); };
  };
  expect_error(ErrorKind::io, {"note.txt: no text"}, train("", 300));
  expect_error(ErrorKind::io, {"note.txt: no text"}, train("\n\n", 300));
  expect_error(ErrorKind::io, {"note.txt: not UTF-8", "0xff", "offset 4, line 2", "--tokenizer bytes"},
               train("abc\n\xff", 300));
  expect_error(ErrorKind::usage, {"a vocabulary of 260 is too small", "262 to"}, train("abc\n", 260));
  expect_error(ErrorKind::usage, {"too large"}, train("abc\n", 10'000'000));
  expect_error(ErrorKind::io, {"note.txt: too short for a vocabulary of 4000", "pieces", "--vocab"}, train(words(2000), 4000));
  EXPECT_EQ(Tokenizer::train(std::string("a\0b\n", 4), 261).vocabulary(), 261);
  expect_error(ErrorKind::io, {"text: not UTF-8"}, [] { trained().encode("a\xc3"); });
}

// ---- model files ------------------------------------------------------------------------------------------------------------

// Wire format of protocol buffers.
std::string varint(std::uint64_t v) {
  std::string s;
  for (; v > 127; v >>= 7) s += char(v | 128);
  return s += char(v);
}
std::string field(int number, const std::string& bytes) {
  return varint(std::uint64_t(number) << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string field(int number, std::uint64_t value) { return varint(std::uint64_t(number) << 3) + varint(value); }
std::string piece(const std::string& text, float score = -1, int type = 1) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &score, 4);
  return field(1, field(1, text) + varint(2 << 3 | 5) + bytes + field(3, std::uint64_t(type)));
}

TEST(Tokenizer, AModelOfAnotherKind) {
  const std::string pieces = piece("<unk>", 0, 2) + piece("</s>", 0, 3) + piece("\xe2\x96\x81") + piece("a") + piece("b") +
                             piece(
                                 "\xe2\x96\x81"
                                 "ab");
  // As Llama's: a space is put before the text, and taken away.
  const Tokenizer t = Tokenizer::from_model(pieces + field(2, field(3, 1)) + field(3, field(4, 0)), "m");
  EXPECT_EQ(t.encode("ab a"), (std::vector<std::int64_t>{5, 2, 3}));
  EXPECT_EQ(t.decode(t.encode("ab a")), "ab a");
  EXPECT_EQ(t.decode(t.encode("  a")), "  a");
  EXPECT_EQ(t.decode(t.encode("x")), " \xe2\x81\x87 ");  // without byte pieces this is lost
  EXPECT_EQ(t.end_of_text(), 1);
  EXPECT_EQ(t.cut(), Cut::documents);
  const Tokenizer bpe = Tokenizer::from_model(pieces + field(2, field(3, 2)) + field(3, field(3, 0)), "m");
  EXPECT_EQ(bpe.name(), "bpe");
  EXPECT_EQ(bpe.decode(bpe.encode("ab a")), "ab a");
}

std::string byte_pieces() {
  std::string pieces;
  for (int b = 0; b < 256; ++b) pieces += piece(fmt::format("<0x{:02X}>", b), 0, 6);
  return pieces;
}

TEST(Tokenizer, WhatLosesTextIsSaidWhenItIsLoaded) {
  const std::string few = piece("<unk>", 0, 2) + piece("</s>", 0, 3) + piece("\xe2\x96\x81") + piece("a") + piece("b");
  const std::string fallback = field(2, field(3, 1) + field(35, 1)), no_fallback = field(2, field(3, 1));
  const std::string keeps = field(3, field(3, 0) + field(4, 0)), prefix = field(3, field(3, 1) + field(4, 0)),
                    squeezes = field(3, field(3, 0) + field(4, 1));
  const TempFolder folder;
  const auto said = [&](const std::string& bytes, const std::string& loses) {
    testing::internal::CaptureStderr();
    const Tokenizer t = Tokenizer::load(folder.write("t.model", bytes));
    const std::string text = testing::internal::GetCapturedStderr();
    EXPECT_EQ(t.loses(), loses);
    EXPECT_EQ(text.empty(), loses.empty()) << text;
    if (!loses.empty()) {
      EXPECT_NE(text.find("t.model: this tokenizer loses " + loses), std::string::npos) << text;
    }
    return t;
  };
  EXPECT_EQ(trained().loses(), "");
  EXPECT_EQ(Tokenizer::bytes().loses(), "");
  said(few + byte_pieces() + fallback + keeps, "");
  const Tokenizer llama = said(few + byte_pieces() + fallback + prefix, "");
  for (const char* text : {"a", " a", "a  b", "x\ny", "", "  "}) EXPECT_EQ(llama.decode(llama.encode(text)), text);
  said(few + no_fallback + keeps, "characters that are no piece of it");
  said(few + byte_pieces() + fallback + squeezes, "spaces where several stand together");
  said(few + no_fallback + squeezes, "characters that are no piece of it, and spaces where several stand together");
}

// Of a text that does not come back nothing is said per character.
TEST(Tokenizer, CharactersAreThoseOfTheTextOrAreNotCounted) {
  const std::string few = piece("<unk>", 0, 2) + piece("</s>", 0, 3) + piece("\xe2\x96\x81") + piece("a") + piece("b") +
                          piece(
                              "\xe2\x96\x81"
                              "ab");
  const TempFolder folder;
  const auto counted = [&](const std::string& rest, const std::string& lines) {
    const Tokenizer t = Tokenizer::from_model(few + rest, "m");
    const fs::path file = folder.write("t.jsonl", lines);
    const Batch batch = open_to_evaluate(file, "all", t, {.batch = 1, .length = 100}).validation(0);
    return std::pair(batch.characters, batch.bytes);
  };
  // Targets are all tokens but the first. Three texts: "a", then "ab a" and "b\u00e9", before which a space is put.
  const std::string llama = byte_pieces() + field(2, field(3, 1) + field(35, 1)) + field(3, field(3, 1) + field(4, 0));
  const std::string lines = "{\"text\": \"a\"}\n{\"text\": \"ab a\"}\n{\"text\": \"b\u00e9\"}\n";
  EXPECT_EQ(counted(llama, lines), (std::pair<std::int64_t, std::int64_t>(1 + 4 + 2, 1 + 4 + 3)));
  const std::string loses = field(2, field(3, 1)) + field(3, field(3, 0) + field(4, 0));
  EXPECT_EQ(counted(loses, lines), (std::pair<std::int64_t, std::int64_t>(0, 0)));
}

// A library that ends the process ends a process of its own.
TEST(Apart, EveryEndOfTheWorkIsAnAnswer) {
  EXPECT_EQ(run_apart([] { return std::string(3'000'000, 'x'); }).result, std::string(3'000'000, 'x'));
  EXPECT_EQ(run_apart([] { return std::string(); }).result, "");
  const auto complaint = [](std::function<std::string()> work) {
    const Apart apart = run_apart(work);
    EXPECT_FALSE(apart.result);
    return apart.complaint;
  };
  EXPECT_EQ(complaint([]() -> std::string { throw std::runtime_error("first\nwhy"); }), "why");
  EXPECT_EQ(complaint([]() -> std::string { std::exit(255); }), "ended with 255");
  EXPECT_EQ(complaint([]() -> std::string {
              std::fputs("LOG(FATAL) something failed\n", stderr);
              std::exit(255);
            }),
            "LOG(FATAL) something failed");
  EXPECT_NE(complaint([]() -> std::string {
              std::raise(SIGKILL);
              return "";
            }).find("signal 9"),
            std::string::npos);
}

TEST(Tokenizer, ModelsThatAreRefused) {
  const std::string unk = piece("<unk>", 0, 2), good = unk + piece("a");
  EXPECT_NO_THROW(Tokenizer::from_model(good, "m"));
  const std::map<std::string, std::string> bad = {
      {"it has no pieces", ""},
      {"truncated", good.substr(0, good.size() - 1)},
      {"piece 2 is empty", good + piece("")},
      {"piece 2 is", good + piece("\xff")},
      {"piece 2 is ", good + piece(std::string("a\0", 2))},
      {"longer than 1024", good + piece(std::string(1025, 'a'))},
      {"piece 2 has no score", good + piece("b", std::nanf(""))},
      {"unknown type 7", good + piece("b", 0, 7)},
      {"names no byte", good + piece("<0x4>", 0, 6) + field(2, field(35, 1))},
      {"names no byte ", good + piece("<0xag>", 0, 6)},
      {"rules that change the text", good + field(3, field(2, "rules"))},
      {"rules that change the text ", good + field(5, field(2, "rules"))},
      {"does not mark spaces", good + field(3, field(5, 0))},
      {"neither unigram nor BPE", good + field(2, field(3, 3))},
      {"marks spaces behind words", good + field(2, field(24, 1))},
      {"unknown field 77", good + field(77, 1)},
      {"field 1 is of kind 0", good + field(1, 1)},
      {"a field has the number 0", good + std::string(2, '\0')},
      {"a number without end", good + std::string(11, '\xff')},
      {"already defined", good + piece("a")},  // SentencePiece's own words
      {"unk", piece("a")},
  };
  for (const auto& model : bad) {
    const std::string word = model.first.substr(0, model.first.find_last_not_of(' ') + 1);
    expect_error(ErrorKind::io, {"m: not a tokenizer that can be used", word, "SentencePiece"},
                 [&] { Tokenizer::from_model(model.second, "m"); });
  }
  TempFolder folder;
  expect_error(ErrorKind::io, {"absent.model", "No such file"}, [&] { Tokenizer::load(folder / "absent.model"); });
  expect_error(ErrorKind::io, {"not a tokenizer"}, [&] { Tokenizer::load(folder.write("t.model", "anything")); });
}

// Whatever the file holds, it is refused or it encodes and decodes.
TEST(Tokenizer, DamagedFilesDoNotCrash) {
  std::mt19937 random(1);
  const std::string text = "and the king\n went \xf0\x9f\x98\x80 forth \t";
  int loaded = 0;
  for (int i = 0; i < 10'000; ++i) {
    std::string bytes = model();
    for (unsigned n = 1 + random() % 3; n--;) {
      const std::size_t at = random() % bytes.size();
      switch (random() % 5) {
        case 0:
          bytes[at] = char(random());
          break;
        case 1:
          bytes[at] = char(bytes[at] ^ 1 << random() % 8);
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 3:
          bytes.insert(at, bytes.substr(random() % bytes.size(), 1 + random() % 20));
          break;
        default:
          bytes.resize(std::max<std::size_t>(at, 1));
      }
    }
    try {
      const Tokenizer t = Tokenizer::from_model(bytes, "mutated");
      ++loaded;
      t.decode(t.encode(text));
    } catch (const Error& error) {
      EXPECT_EQ(int(error.kind()), int(ErrorKind::io)) << error.what();
    }
  }
  EXPECT_GT(loaded, 200);  // the mutations reach what comes after reading
}

TEST(SlowTokenizer, ALineOf400kBytesIsLearntFrom) {
  std::string line = words(400'000);
  std::replace(line.begin(), line.end(), '\n', ' ');
  const Tokenizer t = Tokenizer::train(line, 400);
  EXPECT_EQ(t.decode(t.encode(line)), line);
}

// Lines without spaces: letters of DNA, Chinese characters, base64.
std::string long_line(const std::string& kind, std::size_t size) {
  std::mt19937 random(5);
  std::string line;
  while (line.size() < size) {
    if (kind == "DNA") line += "ACGT"[random() % 4];
    if (kind == "CJK") line += utf8(char32_t(0x4e00 + std::min(random() % 800, random() % 800)));
    if (kind == "base64") line += "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[random() % 64];
  }
  return line;
}

TEST(SlowTokenizer, LongLinesAreLearntFromInTimeThatIsBounded) {
  for (const char* kind : {"DNA", "CJK", "base64"}) {
    const auto seconds = [&](std::size_t size) {
      const std::string line = long_line(kind, size);
      const auto begin = std::chrono::steady_clock::now();
      const Tokenizer t = Tokenizer::train(Corpus(kind, line), size, 1200, 16 * 200'000);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      EXPECT_EQ(t.decode(t.encode(line)), line);
      return took;
    };
    const double few = seconds(200'000);
    EXPECT_LT(seconds(1'600'000), 3 * few + 2) << kind;
  }
}

TEST(SlowTokenizer, TinyShakespeare) {
  const fs::path file = fs::path(WEFT_SOURCE_DIR) / "../shared/data/tinyshakespeare.txt";
  if (!fs::exists(file)) GTEST_SKIP() << file << " is not there";
  const std::string text = read_text(file);
  const Tokenizer t = Tokenizer::train(text, 4000);
  EXPECT_EQ(t.vocabulary(), 4000);
  const auto ids = t.encode(text);
  EXPECT_EQ(ids.size(), 360'027u);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 0);
  EXPECT_EQ(t.decode(ids), text);
}

}  // namespace
}  // namespace weft
