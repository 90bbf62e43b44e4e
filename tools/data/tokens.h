// Sequences of token ids, packed: in memory, or in shard files that are mapped while they are read.
//
// A shard is a header of 64 bytes and then the tokens; all numbers are little-endian:
//
//   0  "WEFTTOKS"
//   8  u32  version, 1
//  12  u32  bytes of a token: 2 or 4
//  16  u64  tokens
//  24  u64  hash of the tokenizer (Tokenizer::hash)
//  32  u64  its vocabulary: every token is below
//  40  u64  XXH3-64 of the tokens' bytes
//  48  u64  0
//  56  u64  XXH3-64 of bytes 0 to 55
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "tools/data/tokenizer.h"

namespace weft {

// Two bytes for each token where the vocabulary allows it, else four.
class PackedTokens {
 public:
  explicit PackedTokens(std::int64_t vocabulary) : width_(vocabulary <= 65536 ? 2 : 4) {}
  void append(std::span<const std::int64_t> ids);
  std::size_t width() const { return width_; }
  std::int64_t size() const { return std::int64_t(bytes_.size() / width_); }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  std::size_t width_;
  std::vector<std::byte> bytes_;
};

class Tokens {
 public:
  Tokens() = default;  // none
  explicit Tokens(PackedTokens tokens);
  // The tokens of several shards, one after the other, made with that tokenizer. Errors (ErrorKind::io): missing, truncated,
  // damaged header, another version or tokenizer. The tokens are not read yet.
  static Tokens open(const std::vector<std::filesystem::path>& shards, const Tokenizer& tokenizer);

  void append(const Tokens& more);  // shares their memory
  std::int64_t size() const { return size_; }
  // Tokens [at, at + out.size()). Errors (ErrorKind::io): one that is not in the vocabulary.
  void copy(std::int64_t at, std::span<std::int64_t> out) const;
  std::uint64_t hash() const;  // of all tokens, as it stands in the headers of shards
  // Reads everything. Errors (ErrorKind::io): tokens other than those written, or not in the vocabulary.
  void verify() const;

 private:
  struct Segment {
    std::shared_ptr<const void> owner;
    const std::byte* bytes;
    std::size_t width;
    std::int64_t begin, size;
    std::uint64_t checksum, vocabulary;
    std::string name;
  };
  std::vector<Segment> segments_;
  std::int64_t size_ = 0;
};

// Writes a shard while its tokens come in. Errors are ErrorKind::io. Without finish() no file appears.
class ShardWriter {
 public:
  ShardWriter(const std::filesystem::path& file, const Tokenizer& tokenizer);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;
  void append(std::span<const std::int64_t> ids);
  std::int64_t size() const;  // tokens
  void finish();

 private:
  struct Impl;
  void flush();
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
