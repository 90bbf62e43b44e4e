#include "tools/data.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "jit/error.h"
#include "jit/philox.h"
#include "nn/safetensors.h"

namespace weft {
namespace {

// What a shell command prints, or "" when it fails.
std::string output_of(const char* command) {
  std::FILE* pipe = popen(command, "r");
  if (!pipe) return {};
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), n);
  return pclose(pipe) == 0 ? text : std::string();
}

// Another program may be called bible too.
bool is_king_james(const std::string& text) {
  return text.starts_with("Ge1:1 In the beginning") && text.size() > 4'000'000;
}

}  // namespace

Corpus load_corpus(const std::optional<std::filesystem::path>& file) {
  if (file) {
    Corpus corpus{file->string(), read_text(*file)};
    if (corpus.text.empty()) fail(ErrorKind::io, corpus.name + " is empty", {}, "give a text file: --data FILE");
    return corpus;
  }
  std::string text = output_of("PATH=\"$PATH:/usr/bin:/usr/games\" bible -f 'Gen1:1-Rev22:21' </dev/null 2>/dev/null");
  if (!is_king_james(text))
    fail(ErrorKind::io, "no text to train on", "the program bible, which prints the default one, is not installed",
         "`apt-get install bible-kjv`, or give a text of your own: `--data FILE`");
  return {"King James Bible", std::move(text)};
}

ByteBatches::ByteBatches(Corpus corpus, Options options) : corpus_(std::move(corpus)), options_(options) {
  if (options_.batch < 1 || options_.length < 1)
    fail(ErrorKind::usage, "batch and length must be at least 1",
         fmt::format("batch {}, length {}", options_.batch, options_.length));
  split_ = corpus_.text.size() - corpus_.text.size() / 10;
  std::size_t window = std::size_t(options_.length) + 1;
  if (split_ < window || corpus_.text.size() - split_ < 2)
    fail(ErrorKind::io, corpus_.name + ": text too short",
         fmt::format("{} bytes; a length of {} needs {}", corpus_.text.size(), options_.length,
                     std::max<std::size_t>(window + (window - 1) / 9, 20)),
         "give a longer text or a smaller --length");
}

ByteBatches::Batch ByteBatches::empty_batch() const {
  auto n = std::size_t(options_.batch * options_.length);
  return {std::vector<std::int64_t>(n, 0), std::vector<std::int64_t>(n, kIgnored), 0};
}

void ByteBatches::fill_row(Batch& batch, std::int64_t row, std::string_view window) const {
  auto at = std::size_t(row * options_.length);
  for (std::size_t i = 0; i + 1 < window.size(); ++i) {
    batch.inputs[at + i] = static_cast<unsigned char>(window[i]);
    batch.targets[at + i] = static_cast<unsigned char>(window[i + 1]);
  }
  batch.counted += std::int64_t(window.size()) - 1;
}

ByteBatches::Batch ByteBatches::next() {
  Batch batch = empty_batch();
  std::string_view text = training_text();
  auto length = std::size_t(options_.length);
  std::uint64_t places = text.size() - length;
  for (std::int64_t row = 0; row < options_.batch; ++row) {
    auto words = philox_group(options_.seed, std::uint64_t(position_), std::uint64_t(row));
    __extension__ using Wide = unsigned __int128;  // 64 random bits times places / 2^64: uniform without a visible bias
    auto place = std::uint64_t((Wide(words[0] | std::uint64_t(words[1]) << 32) * places) >> 64);
    fill_row(batch, row, text.substr(place, length + 1));
  }
  ++position_;
  return batch;
}

void ByteBatches::seek(std::int64_t position) {
  if (position < 0) fail(ErrorKind::usage, "a position is at least 0", fmt::format("{}", position));
  position_ = position;
}

std::int64_t ByteBatches::validation_batches() const {
  auto targets = std::int64_t(validation_text().size()) - 1, batch = options_.batch * options_.length;
  return (targets + batch - 1) / batch;
}

ByteBatches::Batch ByteBatches::validation(std::int64_t index) const {
  if (index < 0 || index >= validation_batches())
    fail(ErrorKind::usage, "no such validation batch", fmt::format("{} of {}", index, validation_batches()));
  Batch batch = empty_batch();
  std::string_view text = validation_text();
  auto length = std::size_t(options_.length);
  for (std::int64_t row = 0; row < options_.batch; ++row) {
    std::size_t place = std::size_t(index * options_.batch + row) * length;
    if (place + 1 >= text.size()) break;
    fill_row(batch, row, text.substr(place, length + 1));
  }
  return batch;
}

}  // namespace weft
