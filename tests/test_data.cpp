#include "tools/data/data.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "jit/file.h"
#include "jit/utf8.h"
#include "nn/safetensors.h"
#include "tests/expect_error.h"
#include "tests/peak_memory.h"
#include "tests/program.h"
#include "tests/words_text.h"
#include "tools/data/shards.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string read(TextReader& reader, std::size_t end, Cut cut = Cut::anywhere) {
  std::string text;
  while (const auto part = reader.next(end, cut)) text += part->text;
  return text;
}

// The first 9/10, the rest, and both.
struct Parts {
  std::string training, validation, all;
};
Parts parts_of(const Corpus& corpus, Cut cut = Cut::anywhere) {
  TextReader reader(corpus);
  const std::string training = read(reader, corpus.split(), cut), validation = read(reader, corpus.size(), cut);
  return {training, validation, training + validation};
}

std::string numbered(std::size_t n) {
  std::string text(n, '\0');
  for (std::size_t i = 0; i < n; ++i) text[i] = char(std::uint32_t(i) * 2654435761u >> 13);
  return text;
}

struct HostBatch {
  std::vector<std::int64_t> inputs, targets;
  std::int64_t counted, characters, bytes;
  bool operator==(const HostBatch&) const = default;
};

HostBatch on_host(const Batch& b) {
  return {b.inputs.to_host<std::int64_t>(), b.targets.to_host<std::int64_t>(), b.counted, b.characters, b.bytes};
}

TokenStream stream(std::string text, BatchOptions options) {
  return TokenStream(Corpus{"note.txt", std::move(text)}, Tokenizer::bytes(), options);
}

TEST(Data, FileIsReadAsItIs) {
  TempFolder folder;
  std::string bytes = "a\r\n\xff\xfe" + std::string(1, '\0') + "  \n\n";
  Corpus corpus = load_corpus(folder.write("text", bytes));
  EXPECT_EQ(parts_of(corpus).all, bytes);
  EXPECT_EQ(corpus.size(), bytes.size());
  EXPECT_EQ(corpus.name(), (folder / "text").string());
}

TEST(Data, UnusableFiles) {
  TempFolder folder;
  expect_error(ErrorKind::io, {"absent.txt", "No such file"}, [&] { load_corpus(folder / "absent.txt"); });
  expect_error(ErrorKind::io, {"Is a directory"}, [&] { load_corpus(folder.path()); });
  expect_error(ErrorKind::io, {"empty.txt is empty", "--data FILE"}, [&] { load_corpus(folder.write("empty.txt", "")); });
}

TEST(Data, DefaultCorpus) {
  try {
    Corpus corpus = load_corpus();
    const std::string text = parts_of(corpus).all;
    EXPECT_EQ(text.substr(0, 59), "Ge1:1 In the beginning God created the heaven and the earth");
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 31102);  // verses
    EXPECT_EQ(text, parts_of(load_corpus()).all);
  } catch (const Error& error) {
    expect_error(ErrorKind::io, {"apt-get install bible-kjv", "--data FILE"}, [&] { throw error; });
    GTEST_SKIP() << "bible-kjv is not installed";
  }
}

// Another program of this name, or one that fails, is not taken for the text.
TEST(Data, WithoutTheDefaultCorpusBothWaysAreNamed) {
  TempFolder folder;
  std::string old = getenv("PATH");
  for (const char* script : {"#!/bin/sh\necho Usage: bible\n", "#!/bin/sh\nexit 1\n", "#!/bin/sh\ncat\nkill -9 $$\n"}) {
    std::filesystem::permissions(folder.write("bible", script), std::filesystem::perms::owner_all);
    setenv("PATH", (folder.path().string() + ":" + old).c_str(), 1);
    expect_error(ErrorKind::io, {"apt-get install bible-kjv", "--data FILE"}, [] { load_corpus(); });
    setenv("PATH", old.c_str(), 1);
  }
}

TEST(Data, TrainingWindowsAreConsecutiveBytesOfTheTrainingPart) {
  std::string text = numbered(5000);
  const Corpus corpus{"t", text};
  TokenStream data(corpus, Tokenizer::bytes(), {.batch = 4, .length = 33, .seed = 5});
  const Parts parts = parts_of(corpus);
  EXPECT_EQ(parts.training.size(), 4500u);
  EXPECT_EQ(parts.all, text);
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    const HostBatch batch = on_host(data.next());
    ASSERT_EQ(batch.inputs.size(), 4u * 33);
    ASSERT_EQ(batch.targets.size(), 4u * 33);
    EXPECT_EQ(batch.counted, 4 * 33);
    for (std::size_t row = 0; row < 4; ++row) {
      std::string window;
      for (std::size_t j = 0; j < 33; ++j) window += char(batch.inputs[row * 33 + j]);
      for (std::size_t j = 0; j + 1 < 33; ++j) EXPECT_EQ(batch.targets[row * 33 + j], batch.inputs[row * 33 + j + 1]);
      window += char(batch.targets[row * 33 + 32]);
      EXPECT_NE(parts.training.find(window), std::string::npos);
      seen.insert(window);
    }
  }
  EXPECT_GT(seen.size(), 370u);
  EXPECT_EQ(data.position(), 100);
}

TEST(Data, EveryPlaceIsDrawnAndNoneBeyond) {
  std::string text(40, '\0');
  std::iota(text.begin(), text.end(), '\0');
  TokenStream data = stream(text, {.batch = 8, .length = 32, .seed = 1});  // 36 for training: starts 0..3
  std::array<int, 4> counts{};
  for (int i = 0; i < 500; ++i) {
    const HostBatch batch = on_host(data.next());
    for (std::size_t row = 0; row < 8; ++row) ++counts.at(std::size_t(batch.inputs[row * 32]));
  }
  for (int count : counts) EXPECT_NEAR(count, 1000, 120);
}

TEST(Data, APositionIsAllTheState) {
  BatchOptions options{.batch = 3, .length = 16, .seed = 9};
  TokenStream a = stream(numbered(3000), options), b = stream(numbered(3000), options);
  for (int i = 0; i < 7; ++i) a.next();
  b.seek(a.position());
  for (int i = 0; i < 5; ++i) EXPECT_EQ(on_host(a.next()), on_host(b.next()));
  a.seek(0), b.seek(1);
  EXPECT_NE(on_host(a.next()), on_host(b.next()));
  TokenStream other = stream(numbered(3000), {.batch = 3, .length = 16, .seed = 10});
  a.seek(0);
  EXPECT_NE(on_host(a.next()), on_host(other.next()));
  expect_error(ErrorKind::usage, {"position"}, [&] { a.seek(-1); });
}

TEST(Data, ValidationCoversItsPartOnce) {
  for (std::size_t size : {20u, 400u, 2570u, 2571u, 10000u}) {
    const Corpus corpus{"t", numbered(size)};
    TokenStream data(corpus, Tokenizer::bytes(), {.batch = 4, .length = 16});
    const std::string text = parts_of(corpus).validation;
    std::string inputs, targets;
    std::int64_t counted = 0;
    for (std::int64_t i = 0; i < data.validation_batches(); ++i) {
      const HostBatch batch = on_host(data.validation(i));
      ASSERT_EQ(batch.inputs.size(), 64u);
      ASSERT_EQ(batch.targets.size(), 64u);
      EXPECT_GT(batch.counted, 0);
      counted += batch.counted;
      for (std::size_t j = 0; j < 64; ++j) {
        if (batch.targets[j] == kIgnored) continue;
        inputs += char(batch.inputs[j]);
        targets += char(batch.targets[j]);
      }
      EXPECT_EQ(batch, on_host(data.validation(i)));
    }
    EXPECT_EQ(inputs, text.substr(0, text.size() - 1)) << size;
    EXPECT_EQ(targets, text.substr(1)) << size;
    EXPECT_EQ(counted, std::int64_t(text.size()) - 1);
    expect_error(ErrorKind::usage, {"no such validation batch"}, [&] { data.validation(data.validation_batches()); });
  }
}

TEST(Data, TooShortOrWrongOptions) {
  auto make = [](std::size_t size, BatchOptions options) { stream(std::string(size, 'a'), options).next(); };
  expect_error(ErrorKind::io, {"note.txt: text too short", "90 tokens to train on", "length of 256 needs 257", "--length"},
               [&] { make(100, {.batch = 1, .length = 256}); });
  expect_error(ErrorKind::io, {"text too short"}, [&] { make(284, {.batch = 1, .length = 256}); });
  EXPECT_NO_THROW(make(285, {.batch = 1, .length = 256}));
  for (std::size_t size = 0; size < 20; ++size)
    expect_error(ErrorKind::io, {"text too short"}, [&] { make(size, {.batch = 1, .length = 1}); });
  EXPECT_NO_THROW(make(20, {.batch = 1, .length = 1}));
  expect_error(ErrorKind::usage, {"batch 0"}, [&] { make(1000, {.batch = 0, .length = 8}); });
  expect_error(ErrorKind::usage, {"length -1"}, [&] { make(1000, {.batch = 1, .length = -1}); });
}

// The windows of a run that was saved must be the same in later versions.
TEST(Data, WindowsArePinned) {
  TokenStream data = stream(numbered(5000), {.batch = 2, .length = 4, .seed = 1234});
  EXPECT_EQ(on_host(data.next()).inputs, (std::vector<std::int64_t>{215, 147, 79, 10, 188, 120, 52, 240}));
}

TEST(Data, TheSplitCutsNoCharacter) {
  for (std::size_t shift = 0; shift < 8; ++shift) {
    std::string text(shift, 'a');
    while (text.size() < 200) text += "\xf0\x9f\x98\x80";
    const Parts parts = parts_of({"t", text});
    EXPECT_EQ(utf8_error(parts.training), parts.training.size());
    EXPECT_EQ(utf8_error(parts.validation), parts.validation.size());
    EXPECT_NEAR(double(parts.training.size()), 180, 8);
    EXPECT_EQ(parts.all, text);
  }
  EXPECT_EQ(parts_of({"t", std::string(100, '\x80')}).training.size(), 87u);  // what is no UTF-8 is cut somewhere
}

TEST(Data, BatchesCountCharacters) {
  std::string text;
  while (text.size() < 4000) text += "caf\xc3\xa9 and king ";
  for (const Tokenizer& t : {Tokenizer::bytes(), Tokenizer::train(text, 269)}) {
    TokenStream data(Corpus{"t", text}, t, {.batch = 3, .length = 20});
    const HostBatch b = on_host(data.next());
    const std::string targets = t.decode(b.targets);
    EXPECT_EQ(std::size_t(b.bytes), targets.size());
    EXPECT_EQ(b.characters, std::count_if(targets.begin(), targets.end(), [](char c) { return !utf8_continues(c); }));
    EXPECT_LT(b.characters, b.bytes);
  }
}

// ---- reading in parts -------------------------------------------------------------------------------------------------------

TEST(Data, AFileIsReadInPartsAsAStringIs) {
  TempFolder folder;
  std::string text;
  for (int i = 0; text.size() < 2 * kBytesOfLines + 1000; ++i) text += std::to_string(i) + (i % 7 ? " caf\xc3\xa9 " : "\n");
  const Corpus memory("t", text), file = load_corpus(folder.write("t", text));
  const std::size_t split = parts_of(file).training.size();
  for (const Cut cut : {Cut::anywhere, Cut::lines, Cut::documents}) {
    TextReader a(memory), b(file);
    std::string read;
    for (const std::size_t end : {file.split(), file.size()})
      while (const auto part = a.next(end, cut)) {
        const auto same = b.next(end, cut);
        ASSERT_TRUE(same && same->text == part->text);
        EXPECT_EQ(part->place.offset, read.size());
        EXPECT_EQ(part->place.line, std::size_t(std::count(read.begin(), read.end(), '\n')) + 1);
        EXPECT_EQ(same->place.line, part->place.line);
        EXPECT_FALSE(part->ends_document);
        EXPECT_LE(part->text.size(), cut == Cut::anywhere ? kBytesAnywhere + 4 : cut == Cut::lines ? kBytesOfLines : split);
        read += part->text;
        EXPECT_TRUE(cut != Cut::lines || read.size() == split || read.size() == text.size() || read.back() == '\n');
      }
    EXPECT_TRUE(read == text);
    EXPECT_FALSE(a.next(file.size(), cut) || b.next(file.size(), cut));
  }
}

TEST(Data, ALineMayBeLongerThanAPart) {
  TempFolder folder;
  const std::string text = "a\n" + std::string(kBytesOfLines + 5, 'x') + "\nb\n";
  TextReader reader(load_corpus(folder.write("t", text)));
  EXPECT_EQ(reader.next(text.size(), Cut::lines)->text, "a\n");
  EXPECT_EQ(reader.next(text.size(), Cut::lines)->text.size(), kBytesOfLines + 6);
  EXPECT_EQ(reader.next(text.size(), Cut::lines)->text, "b\n");
}

TEST(Data, ACharacterIsNotCutAtTheEndOfAPart) {  // wherever parts end
  for (std::size_t size = kBytesAnywhere - 2; size < kBytesAnywhere + 12; ++size) {
    std::string text(size, 'a');
    text += "\xf0\x9f\x98\x80 b";
    for (std::size_t end = size; end <= size + 4; ++end) {
      TextReader reader(Corpus("t", text));
      const std::string front = read(reader, end), back = read(reader, text.size());
      EXPECT_EQ(front.size(), end == size + 4 ? end : size);
      EXPECT_TRUE(front + back == text);
    }
  }
}

TEST(Data, ATextThatChangesWhileItIsRead) {
  TempFolder folder;
  for (const char* name : {"t", "t.jsonl"}) {
    const Corpus corpus = load_corpus(folder.write(name, R"({"text": "a text"})"
                                                         "\n"));
    folder.write(name, "");
    TextReader reader(corpus);
    expect_error(ErrorKind::io, {name, "shorter while it was read"}, [&] { reader.next(corpus.size(), Cut::lines); });
  }
}

TEST(Data, BytesThatAreNoTextAreFoundWhereTheyStand) {
  TempFolder folder;
  std::string text;
  while (text.size() < kBytesOfLines + 100) text += "and the king\n";
  const Corpus large = load_corpus(folder.write("large", text + "\xff\n")),
               small = load_corpus(folder.write("small", text.substr(0, 1300) + "\xff\n"));
  const std::string place = "offset " + std::to_string(text.size()) + ", line " + std::to_string(text.size() / 13 + 1);
  expect_error(ErrorKind::io, {"large: not UTF-8", "byte 0xff", place}, [&] { Tokenizer::train(large, large.size(), 270); });
  const Tokenizer t = Tokenizer::train(text.substr(0, 10'000), 270);
  expect_error(ErrorKind::io, {"part: not UTF-8", "offset 102, line 8"},
               [&] { t.encode("a\n\xff", "part", {.offset = 100, .line = 7}); });
  expect_error(ErrorKind::io, {"small: not UTF-8", "offset 1300, line 101"}, [&] { TokenStream(small, t, {}); });
  expect_error(ErrorKind::io, {"offset 1300, line 101"}, [&] { ShardFolder::make(folder / "shards", small, t, 1000); });
  EXPECT_FALSE(fs::exists(folder / "shards") || fs::exists(folder / "shards.tmp"));
}

// ---- documents --------------------------------------------------------------------------------------------------------------

TEST(Data, LinesOfJsonAreKnownByEveryNameThatTheyHave) {
  TempFolder folder;
  for (const char* name : {"d.jsonl", "d.JSONL", "d.ndjson", "d.Ndjson"})
    EXPECT_EQ(load_corpus(folder.write(name, "{\"text\": \"one\"}\n")).size(), 3u) << name;
  EXPECT_EQ(load_corpus(folder.write("d.txt", "{\"text\": \"one\"}\n")).size(), 16u);
}

TEST(Data, WhatIsCompressedOrNoTextIsRefused) {
  TempFolder folder;
  const std::pair<std::string, const char*> files[] = {{std::string("\x1f\x8b\x08\0\0\0\0\0", 8), "compressed by gzip"},
                                                       {"\x28\xb5\x2f\xfd....", "compressed by zstd"},
                                                       {std::string("\xfd"
                                                                    "7zXZ\0",
                                                                    6),
                                                        "compressed by xz"},
                                                       {"BZh91AY&SY", "compressed by bzip2"},
                                                       {"PK\x03\x04", "a zip archive"},
                                                       {"PAR1\x15", "a Parquet file"}};
  for (const auto& file : files)
    for (const char* name : {"t.txt", "t.jsonl", "t.txt.gz"})
      expect_error(ErrorKind::io, {name, "not a text", file.second, "hint: "},
                   [&] { load_corpus(folder.write(name, file.first)); });
}

using DataProgram = ProgramTest;

// Names of files may have any bytes.
TEST_F(DataProgram, BytesThatAreNotUtf8InNames) {
  ASSERT_EQ(shell("yes 'the cat sat on the mat' | head -100 > t.txt; cp t.txt \"$(printf 'b\\377.txt')\"").code, 0);
  const std::string name = "\"$(printf 'b\\377.txt')\"", out = "\"$(printf 'o\\377')\"";
  const std::string train =
      "weft train --device cpu --width 16 --layers 1 --batch 2 --length 16 --steps 1 --sample 0 --eval-batches 1 ";
  expect_words(shell(train + "--data " + name), 0, {"step 1"});
  expect_words(shell(train + "--out run --data " + name), 2,
               {"--data", "no config.json can hold bytes that are not UTF-8", "hint: "});
  EXPECT_FALSE(fs::exists(folder_ / "run"));
  expect_words(shell(train + "--data t.txt --out " + out + " && weft train --resume " + out + " --steps 2"), 0,
               {"resumed after step 1"});
  expect_words(shell("weft generate --from " + out + " --tokens 2 --prompt " + name), 0, {"then 2 tokens"});
  expect_words(shell("weft eval --from " + out + " --data " + name), 0, {"bits per character"});
  expect_words(shell("weft inspect " + out + " --arch sm_80 --json j.json"), 0, {});
  expect_words(shell("weft data make --out shards --data " + name + " && weft data check shards"), 0, {});
  expect_words(shell(train + "--data t.txt --tokenizer " + name), 4, {"not a tokenizer"});
  expect_words(shell("weft verify " + name), 4, {});
}

TEST(Data, LinesOfJsonAreDocuments) {
  TempFolder folder;
  const fs::path file = folder.write("d.jsonl", R"({"text": "one\ntwo", "id": 7})"
                                                "\r\n\n"
                                                R"({"text": ""})"
                                                "\n"
                                                R"({"text": "caf\u00e9"})");
  const Corpus corpus = load_corpus(file);
  EXPECT_EQ(corpus.size(), 12u);
  const auto decoded = [](TextReader& reader, std::size_t end) {
    std::string text;
    for_each_block(reader, end, Tokenizer::bytes(), [&](auto block) { text += Tokenizer::bytes().decode(block); });
    return text;
  };
  TextReader whole(corpus), cut(corpus);
  EXPECT_EQ(decoded(whole, 12), "one\ntwo\ncaf\xc3\xa9\n");
  // Cut inside a document, the separator stays behind its end; a character is not cut.
  EXPECT_EQ(decoded(cut, 3), "one");
  EXPECT_EQ(decoded(cut, 7), "\ntwo\n");
  EXPECT_EQ(decoded(cut, 11), "caf");
  EXPECT_EQ(decoded(cut, 12), "\xc3\xa9\n");
}

TEST(Data, DocumentsEndWithTheTokenizersMark) {
  TempFolder folder;
  std::string lines;
  for (int i = 0; i < 300; ++i)
    lines += R"({"text": "and the king went forth into the land"})"
             "\n";
  const Corpus corpus = load_corpus(folder.write("d.jsonl", lines));
  const Tokenizer t = make_tokenizer({.name = "unigram", .vocabulary = 276}, corpus);
  const TokenStream data(corpus, t, {.batch = 2, .length = 16});
  std::vector<std::int64_t> ids(std::size_t(data.training_tokens().size()));
  data.training_tokens().copy(0, ids);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), t.end_of_text()), 270);
}

TEST(Data, LinesThatAreNoDocuments) {
  TempFolder folder;
  const auto load = [&](const std::string& lines) { return [&folder, lines] { load_corpus(folder.write("d.jsonl", lines)); }; };
  const std::string good = R"({"text": "a"})"
                           "\n";
  expect_error(ErrorKind::io, {"d.jsonl: not valid JSON", "line 3, column"}, load(good + "\n{\"text\": \"a\n"));
  expect_error(ErrorKind::io, {"a line without a text", "line 2", R"({"text": "..."})"}, load(good + R"({"txt": "a"})"));
  expect_error(ErrorKind::io, {"a line without a text", "line 2"}, load(good + R"({"text": 3})"));
  expect_error(ErrorKind::io, {"a line without a text", "line 1"}, load("[]"));
  expect_error(ErrorKind::io, {"line 1", "levels"}, load(R"({"text": )" + std::string(100, '[')));
  expect_error(ErrorKind::io, {"line 2", "UTF-8"}, load(good + "{\"text\": \"\xff\"}"));
  expect_error(ErrorKind::io, {"is empty"},
               load("\n\n"
                    R"({"text": ""})"));
}

// ---- shards -----------------------------------------------------------------------------------------------------------------

// What the program needs for files of 32 MB, beyond what it needs for tiny ones: itself, its libraries, the stacks of threads.
class LargeFiles : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
#ifdef WEFT_SANITIZED
    GTEST_SKIP() << "AddressSanitizer keeps memory that was freed";
#endif
    if (!IsSkipped() && peak_memory("true", folder_ / "output") <= 0) GTEST_SKIP() << "processes may not be traced here";
  }
  static constexpr std::size_t kSize = 32'000'000;
  static constexpr std::size_t kTiny = 4000;
  fs::path lines(std::size_t size) const {
    const std::string line = nlohmann::json{{"text", words_text(kTiny)}}.dump() + "\n";
    std::string all;
    do all += line;
    while (all.size() < size);
    return folder_.write(fmt::format("{}.jsonl", size), all);
  }
  fs::path text(std::size_t size) const { return folder_.write(fmt::format("{}.txt", size), words_text(size)); }
  std::int64_t peak(const std::string& command) const {
    const std::string weft = std::getenv("WEFT_PROGRAM");
    const std::int64_t bytes = peak_memory("'" + weft + "' " + command, folder_ / "output");
    EXPECT_GT(bytes, 0) << command << "\n" << read_text(folder_ / "output");
    return bytes;
  }
  void expect_growth(const std::string& tiny, const std::string& large, std::size_t most) const {
    const std::int64_t base = peak(tiny), all = peak(large);
    EXPECT_LT(all - base, std::int64_t(most)) << large << "\n" << read_text(folder_ / "output");
    std::printf("%.1f MB and %.1f MB: weft %s\n", double(base) / 1e6, double(all - base) / 1e6, large.substr(0, 12).c_str());
  }
  std::string make(const fs::path& file) const {
    return "data make --data '" + file.string() + "' --out '" + file.string() + ".shards' ";
  }
};
using SlowLargeFiles = LargeFiles;

TEST_F(LargeFiles, DocumentsAreReadOneByOne) { expect_growth(make(lines(kTiny)), make(lines(kSize)), kSize / 6); }

TEST_F(SlowLargeFiles, ATextIsReadInParts) { expect_growth(make(text(kTiny)), make(text(kSize)), kSize / 6); }

TEST_F(SlowLargeFiles, TrainingHoldsTheTokensAlone) {
  constexpr std::size_t kTokens = 2 * kSize;  // of two bytes
  const auto train = [](const fs::path& file) {
    return "train --device cpu --steps 1 --width 8 --layers 1 --state 2 --batch 1 --length 8 --eval-batches 1 --sample 0 "
           "--data '" +
           file.string() + "'";
  };
  expect_growth(train(lines(kTiny)), train(lines(kSize)), 5 * kTokens / 4);
}

TEST_F(SlowLargeFiles, DocumentsAreEncodedOneByOne) {
  Tokenizer::train(words_text(kTiny), 275).save(folder_ / "model");
  const std::string with = "--tokenizer '" + (folder_ / "model").string() + "'";
  expect_growth(make(lines(kTiny)) + with, make(lines(kSize)) + with, kSize / 6);
}

TEST(Data, ShardsHoldWhatTheTextGives) {
  TempFolder folder;
  std::string text;
  for (std::uint32_t i = 0, x = 1; i < 2000; ++i)
    text += std::to_string((x = x * 1664525u + 1013904223u) >> 22) + (i % 9 ? " " : "\n");
  const Corpus corpus{"t", text};
  for (const Tokenizer& t : {Tokenizer::bytes(), Tokenizer::train(corpus, corpus.split(), 300)}) {
    const BatchOptions options{.batch = 3, .length = 40, .seed = 2};
    TokenStream direct(corpus, t, options);
    for (std::int64_t size : {std::int64_t(100), direct.training_tokens().size(), std::int64_t(1) << 40}) {
      const fs::path to = folder / (t.name() + std::to_string(size));
      const ShardFolder made = ShardFolder::make(to, corpus, t, size);
      made.verify();
      EXPECT_EQ(made.shards(),
                (direct.training_tokens().size() + size - 1) / size + (direct.validation_tokens().size() + size - 1) / size);
      TokenStream shards = open_data(to, {.name = "nothing"}, options);  // they have their own tokenizer
      EXPECT_EQ(shards.tokenizer()->hash(), t.hash());
      direct.seek(0);
      for (int i = 0; i < 20; ++i) ASSERT_EQ(on_host(shards.next()), on_host(direct.next()));
      for (std::int64_t i = 0; i < direct.validation_batches(); ++i)
        EXPECT_EQ(on_host(shards.validation(i)), on_host(direct.validation(i)));
    }
  }
  expect_error(ErrorKind::io, {"not empty"}, [&] { ShardFolder::make(folder / "bytes100", corpus, Tokenizer::bytes(), 100); });
  expect_error(ErrorKind::usage, {"--shard-tokens 0"}, [&] { ShardFolder::make(folder / "x", corpus, Tokenizer::bytes(), 0); });
  expect_error(ErrorKind::io, {"not a folder of tokens", "data.json"}, [&] { ShardFolder(folder.path()); });
  folder.write("data.json", R"({"format": 1})");
  expect_error(ErrorKind::io, {"data.json: damaged: key 'source' not found"}, [&] { ShardFolder(folder.path()); });
}

TEST(Data, AWideVocabularyTakesFourBytes) {
  for (const auto& [vocabulary, width] : {std::pair(65536, 2u), std::pair(65537, 4u)}) {
    PackedTokens packed(vocabulary);
    packed.append(std::vector<std::int64_t>{7, 0, 65535, 3});
    EXPECT_EQ(packed.bytes().size(), 4 * width);
    packed.drop(width);
    const Tokens tokens(std::move(packed));
    std::vector<std::int64_t> ids(2);
    tokens.copy(1, ids);
    EXPECT_EQ(ids, (std::vector<std::int64_t>{65535, 3}));
    EXPECT_THROW(tokens.copy(2, ids), Error);
    EXPECT_THROW(tokens.copy(std::numeric_limits<std::int64_t>::max(), ids), Error);
  }
}

TEST(Data, DamagedShardsAreRefused) {
  TempFolder folder;
  const Corpus corpus{"t", std::string(2000, 'a')};
  ShardFolder::make(folder / "d", corpus, Tokenizer::bytes(), 1000);
  const fs::path file = folder / "d" / "training-00001.tokens";
  const std::string good = read_text(file);
  const auto with = [&](std::string bytes) {
    return [&folder, file, bytes] {
      std::ofstream(file, std::ios::binary) << bytes;
      ShardFolder(folder / "d").verify();
    };
  };
  const auto changed = [&](std::size_t at, char to) {
    std::string bytes = good;
    bytes[at] = to;
    return bytes;
  };
  EXPECT_NO_THROW(with(good)());
  expect_error(ErrorKind::io, {"training-00001.tokens", "truncated"}, with(good.substr(0, 63)));
  expect_error(ErrorKind::io, {"1670 bytes for 800 tokens"}, with(good.substr(0, good.size() - 2)));
  expect_error(ErrorKind::io, {"WEFTTOKS"}, with(changed(0, 'X')));
  expect_error(ErrorKind::io, {"version 3"}, with(changed(8, 3)));
  expect_error(ErrorKind::io, {"header is damaged"}, with(changed(24, char(good[24] + 1))));
  expect_error(ErrorKind::io, {"not those that were written"}, with(changed(100, 1)));
  expect_error(ErrorKind::io, {"checksums are damaged"}, with(changed(good.size() - 1, char(good.back() + 1))));
  fs::remove(file);
  expect_error(ErrorKind::io, {"training-00001.tokens", "No such file"}, [&] { ShardFolder(folder / "d"); });
  with(good)();
  ShardFolder::make(folder / "e", corpus, Tokenizer::bytes(), 900);
  fs::copy_file(folder / "e" / "training-00001.tokens", file, fs::copy_options::overwrite_existing);
  expect_error(ErrorKind::io, {"not those that belong together", "1900 tokens"}, [&] { ShardFolder(folder / "d"); });
}

// Whatever the files hold, they are refused, or read without a token beyond the vocabulary.
TEST(Data, MutatedShardsDoNotCrash) {
  TempFolder folder;
  std::string text;
  for (int i = 0; i < 600; ++i) text += char('a' + i * 7 % 26);
  ShardFolder::make(folder / "d", {"t", text}, Tokenizer::bytes(), 1000);
  std::mt19937 random(3);
  int read = 0;
  for (const char* name : {"training-00000.tokens", "validation-00000.tokens", "data.json"}) {
    const std::string good = read_text(folder / "d" / name);
    for (int i = 0; i < 700; ++i) {
      std::string bytes = good;
      for (unsigned n = 1 + random() % 3; n--;) {
        const std::size_t at = random() % 3 ? random() % std::min<std::size_t>(bytes.size(), 70) : random() % bytes.size();
        switch (random() % 4) {
          case 0:
            bytes[at] = char(random());
            break;
          case 1:
            bytes.erase(at, 1 + random() % 8);
            break;
          case 2:
            bytes.insert(at, std::string(1 + random() % 9, char(random())));
            break;
          default:
            bytes.resize(std::max<std::size_t>(at, 1));
        }
        if (bytes.empty()) bytes = "x";
      }
      std::ofstream(folder / "d" / name, std::ios::binary) << bytes;
      try {
        TokenStream data = open_data(folder / "d", {}, {.batch = 2, .length = 30});
        for (std::int64_t id : on_host(data.next()).inputs) EXPECT_LT(id, 256);
        ++read;
        ShardFolder(folder / "d").verify();
      } catch (const Error& error) {
        EXPECT_EQ(int(error.kind()), int(ErrorKind::io)) << error.what();
      }
    }
    std::ofstream(folder / "d" / name, std::ios::binary) << good;
  }
  EXPECT_GT(read, 20);
}

}  // namespace
}  // namespace weft
