#include "tools/data.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <set>
#include <string>

#include "tests/expect_error.h"
#include "tests/temp_folder.h"

namespace weft {
namespace {

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
  EXPECT_EQ(corpus.text, bytes);
  EXPECT_EQ(corpus.name, (folder / "text").string());
}

TEST(Data, UnusableFiles) {
  TempFolder folder;
  expect_error(ErrorKind::io, {"absent.txt", "No such file"}, [&] { load_corpus(folder / "absent.txt"); });
  expect_error(ErrorKind::io, {"Is a directory"}, [&] { load_corpus(folder.path()); });
  expect_error(ErrorKind::io, {"empty.txt is empty", "--data FILE"},
               [&] { load_corpus(folder.write("empty.txt", "")); });
}

TEST(Data, DefaultCorpus) {
  try {
    Corpus corpus = load_corpus();
    EXPECT_EQ(corpus.text.substr(0, 59), "Ge1:1 In the beginning God created the heaven and the earth");
    EXPECT_EQ(std::count(corpus.text.begin(), corpus.text.end(), '\n'), 31102);  // verses
    EXPECT_EQ(corpus.text, load_corpus().text);
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
  EXPECT_EQ(corpus.training().size(), 4500u);
  EXPECT_EQ(std::string(corpus.training()) + std::string(corpus.validation()), text);
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
      EXPECT_NE(corpus.training().find(window), std::string::npos);
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
    const std::string_view text = corpus.validation();
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
  auto make = [](std::size_t size, BatchOptions options) {
    stream(std::string(size, 'a'), options).next();
  };
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

}  // namespace
}  // namespace weft
