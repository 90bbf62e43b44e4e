// Sequences of token ids, packed: in memory, or in shard files of which only what is asked for is read.
//
// A shard is a header of 64 bytes, the tokens, and a checksum of each 16 KiB of them; all numbers are little-endian:
//
//   0  "WEFTTOKS"
//   8  u32  version, 2; version 1 has no checksums behind its tokens
//  12  u32  bytes of a token: 2 or 4
//  16  u64  tokens
//  24  u64  hash of the tokenizer (Tokenizer::hash)
//  32  u64  its vocabulary: every token is below
//  40  u64  XXH3-64 of the tokens' bytes
//  48  u64  XXH3-64 of the checksums behind them; version 1: 0
//  56  u64  XXH3-64 of bytes 0 to 55
//  64       the tokens; then a u64 for each 16 KiB of their bytes, the last of which may be fewer: its XXH3-64
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "tools/data/tokenizer.h"

namespace weft {

// Two bytes for each token where the vocabulary allows it, else four. Their memory grows without being copied.
class PackedTokens {
 public:
  explicit PackedTokens(std::int64_t vocabulary) : width_(vocabulary <= 65536 ? 2 : 4) {}
  void append(std::span<const std::int64_t> ids);
  std::size_t width() const { return width_; }
  std::int64_t size() const { return std::int64_t(used_ / width_); }
  std::span<const std::byte> bytes() const { return {bytes_.get(), used_}; }
  void drop(std::size_t bytes);  // the first ones

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::size_t width_, used_ = 0, room_ = 0;  // the last two in bytes
  std::unique_ptr<std::byte, Free> bytes_;
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
  // Tokens [at, at + out.size()). What is read of a shard is compared with its checksums each time. Errors (ErrorKind::io):
  // bytes other than those written, a shard that has become shorter, a token that is not in the vocabulary.
  void copy(std::int64_t at, std::span<std::int64_t> out) const;
  std::uint64_t hash() const;  // of all tokens, as it stands in the headers of shards
  // Reads everything. Errors (ErrorKind::io): tokens other than those written, or not in the vocabulary.
  void verify() const;

 private:
  struct Segment {
    std::shared_ptr<const PackedTokens> memory;                // or, if there is none,
    std::filesystem::path file;                                // a shard,
    std::shared_ptr<const std::vector<std::uint64_t>> blocks;  // with these checksums; version 1: none
    std::size_t width;
    std::int64_t begin, size;
    std::uint64_t checksum, vocabulary;

    std::size_t bytes() const { return std::size_t(size) * width; }
    // Bytes [at, at + n) of the tokens; `buffer` may be used to hold them.
    std::span<const std::byte> read(std::size_t at, std::size_t n, std::vector<std::byte>& buffer) const;
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
  void flush(std::size_t bytes);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
