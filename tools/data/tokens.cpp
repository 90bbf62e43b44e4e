#include "tools/data/tokens.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/sizes.h"

namespace weft {

namespace fs = std::filesystem;

// At the front of a shard.
struct ShardHeader {
  std::array<char, 8> magic = {'W', 'E', 'F', 'T', 'T', 'O', 'K', 'S'};
  std::uint32_t version = 2;
  std::uint32_t width = 2;
  std::uint64_t count = 0;
  std::uint64_t tokenizer = 0;
  std::uint64_t vocabulary = 0;
  std::uint64_t checksum = 0;
  std::uint64_t blocks = 0;
  std::uint64_t own = 0;

  std::uint64_t own_checksum() const { return XXH3_64bits(this, offsetof(ShardHeader, own)); }
};
static_assert(sizeof(ShardHeader) == 64);

namespace {

static_assert(std::endian::native == std::endian::little);

// Small, since all of it is read for one window; large beside the 8 bytes of its checksum.
constexpr std::size_t kTokenBlock = 16 << 10;
std::size_t blocks_of(std::size_t bytes) { return (bytes + kTokenBlock - 1) / kTokenBlock; }

[[noreturn]] void damaged(const std::string& name, const std::string& why) {
  fail(ErrorKind::io, name + ": not a usable token shard", why, "make it again with `weft data make`");
}

ShardHeader read_header(FileReader& reader, const std::string& name, const Tokenizer& tokenizer) {
  ShardHeader header;
  const ShardHeader expected;
  if (reader.read(std::as_writable_bytes(std::span(&header, 1))) < sizeof header) damaged(name, "truncated");
  if (header.magic != expected.magic) damaged(name, "it does not begin with WEFTTOKS");
  if (header.version != 1 && header.version != expected.version)
    damaged(name, fmt::format("version {}; this weft reads versions 1 and 2", header.version));
  if (header.own != header.own_checksum()) damaged(name, "the header is damaged");
  if ((header.width != 2 && header.width != 4) || (header.version == 1 && header.blocks))
    damaged(name, "the header makes no sense");
  if (header.count > std::uint64_t(std::numeric_limits<std::int64_t>::max()) / 16)
    damaged(name, fmt::format("{} tokens", header.count));
  const std::uint64_t bytes = header.count * header.width, blocks = header.version == 1 ? 0 : blocks_of(bytes);
  if (reader.size() != sizeof header + bytes + blocks * sizeof(std::uint64_t))
    damaged(name, fmt::format("{} bytes for {} tokens of {} bytes", reader.size(), header.count, header.width));
  if (header.tokenizer != tokenizer.hash() || header.vocabulary != std::uint64_t(tokenizer.vocabulary()))
    damaged(name, "it was made with another tokenizer than the one given");
  return header;
}

// The checksums of the blocks, which stand behind the tokens.
std::vector<std::uint64_t> read_blocks(FileReader& reader, const std::string& name, const ShardHeader& header) {
  std::vector<std::uint64_t> sums(header.version == 1 ? 0 : blocks_of(header.count * header.width));
  if (sums.empty()) return sums;
  reader.seek(sizeof header + header.count * header.width);
  const auto bytes = std::as_writable_bytes(std::span(sums));
  if (reader.read(bytes) < bytes.size() || XXH3_64bits(bytes.data(), bytes.size()) != header.blocks)
    damaged(name, "its checksums are damaged");
  return sums;
}

std::uint64_t token_at(const std::byte* bytes, std::size_t width, std::int64_t i) {
  std::uint32_t token = 0;
  std::memcpy(&token, bytes + std::size_t(i) * width, width);
  return token;
}

}  // namespace

void PackedTokens::append(std::span<const std::int64_t> ids) {
  const std::size_t needed = used_ + ids.size() * width_;
  if (needed > room_) {
    constexpr std::size_t kLeast = 1 << 16;
    const std::size_t room = std::max(needed + needed / 8, kLeast);
    check_memory(needed, "the tokens of a text");
    auto* grown = static_cast<std::byte*>(std::realloc(bytes_.get(), room));  // moves pages, not bytes, where there are many
    if (!grown) throw std::bad_alloc();
    (void)bytes_.release();
    bytes_.reset(grown);
    room_ = room;
  }
  std::byte* at = bytes_.get() + used_;
  for (const std::int64_t id : ids) {
    const auto token = std::uint32_t(id);
    std::memcpy(at, &token, width_);
    at += width_;
  }
  used_ = needed;
}

void PackedTokens::drop(std::size_t bytes) {
  if (bytes == 0) return;
  std::memmove(bytes_.get(), bytes_.get() + bytes, used_ - bytes);
  used_ -= bytes;
}

Tokens::Tokens(PackedTokens tokens) : size_(tokens.size()) {
  const auto memory = std::make_shared<const PackedTokens>(std::move(tokens));
  const std::span<const std::byte> bytes = memory->bytes();
  segments_.push_back({memory,
                       {},
                       {},
                       memory->width(),
                       0,
                       size_,
                       XXH3_64bits(bytes.data(), bytes.size()),
                       std::numeric_limits<std::uint64_t>::max()});
}

Tokens Tokens::open(const std::vector<fs::path>& shards, const Tokenizer& tokenizer) {
  Tokens all;
  for (const fs::path& file : shards) {
    FileReader reader(file);
    const ShardHeader header = read_header(reader, file.string(), tokenizer);
    auto blocks = std::make_shared<const std::vector<std::uint64_t>>(read_blocks(reader, file.string(), header));
    all.segments_.push_back({{},
                             fs::absolute(file),
                             std::move(blocks),
                             header.width,
                             all.size_,
                             std::int64_t(header.count),
                             header.checksum,
                             header.vocabulary});
    all.size_ += std::int64_t(header.count);
  }
  return all;
}

void Tokens::append(const Tokens& more) {
  for (Segment segment : more.segments_) {
    segment.begin = size_;
    size_ += segment.size;
    segments_.push_back(std::move(segment));
  }
}

void Tokens::copy(std::int64_t at, std::span<std::int64_t> out) const {
  if (at < 0 || std::int64_t(out.size()) > size_ || at > size_ - std::int64_t(out.size()))
    fail(ErrorKind::usage, "tokens: out of range", fmt::format("{} from {}, of {}", out.size(), at, size_));
  auto segment = std::upper_bound(segments_.begin(), segments_.end(), at,
                                  [](std::int64_t place, const Segment& s) { return place < s.begin + s.size; });
  std::vector<std::byte> buffer;
  for (; !out.empty(); ++segment) {
    const std::size_t n = std::min(out.size(), std::size_t(segment->begin + segment->size - at));
    const auto bytes = segment->read(std::size_t(at - segment->begin) * segment->width, n * segment->width, buffer);
    for (std::size_t i = 0; i < n; ++i) out[i] = std::int64_t(token_at(bytes.data(), segment->width, std::int64_t(i)));
    for (std::size_t i = 0; i < n; ++i)
      if (std::uint64_t(out[i]) >= segment->vocabulary)
        damaged(segment->file.string(), fmt::format("token {} of a vocabulary of {}", out[i], segment->vocabulary));
    at += std::int64_t(n);
    out = out.subspan(n);
  }
}

std::span<const std::byte> Tokens::Segment::read(std::size_t at, std::size_t n, std::vector<std::byte>& buffer) const {
  if (memory) return memory->bytes().subspan(at, n);
  // Whole blocks, or without checksums what is asked for.
  const std::size_t first = blocks->empty() ? at : at / kTokenBlock * kTokenBlock;
  const std::size_t last = blocks->empty() ? at + n : std::min(blocks_of(at + n) * kTokenBlock, bytes());
  buffer.resize(last - first);
  FileReader reader(file);
  reader.seek(sizeof(ShardHeader) + first);
  if (reader.read(buffer) < buffer.size()) damaged(file.string(), "it has become shorter while it was read");
  for (std::size_t block = first; block < last && !blocks->empty(); block += kTokenBlock) {
    const auto bytes = std::span(buffer).subspan(block - first).first(std::min(kTokenBlock, last - block));
    if (XXH3_64bits(bytes.data(), bytes.size()) != (*blocks)[block / kTokenBlock])
      damaged(file.string(), fmt::format("the tokens are not those that were written: bytes {} to {}",
                                         sizeof(ShardHeader) + block, sizeof(ShardHeader) + block + bytes.size()));
  }
  return std::span(buffer).subspan(at - first, n);
}

std::uint64_t Tokens::hash() const {
  std::vector<std::uint64_t> checksums;
  for (const Segment& s : segments_) checksums.push_back(s.checksum);
  return XXH3_64bits(checksums.data(), checksums.size() * sizeof(std::uint64_t));
}

void Tokens::verify() const {
  constexpr std::size_t kAtOnce = 64 * kTokenBlock;
  std::vector<std::byte> buffer;
  for (const Segment& s : segments_) {
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> sum(XXH3_createState(), XXH3_freeState);
    XXH3_64bits_reset(sum.get());
    for (std::size_t at = 0; at < s.bytes(); at += kAtOnce) {
      const auto bytes = s.read(at, std::min(kAtOnce, s.bytes() - at), buffer);
      XXH3_64bits_update(sum.get(), bytes.data(), bytes.size());
      for (std::size_t i = 0; i < bytes.size() / s.width; ++i)
        if (const std::uint64_t token = token_at(bytes.data(), s.width, std::int64_t(i)); token >= s.vocabulary)
          damaged(s.file.string(), fmt::format("token {} of a vocabulary of {}", token, s.vocabulary));
    }
    if (XXH3_64bits_digest(sum.get()) != s.checksum) damaged(s.file.string(), "the tokens are not those that were written");
  }
}

struct ShardWriter::Impl {
  AtomicFile file;
  ShardHeader header;
  PackedTokens waiting;               // to be written
  std::vector<std::uint64_t> blocks;  // checksums of what is written
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> checksum{XXH3_createState(), XXH3_freeState};
};

ShardWriter::ShardWriter(const fs::path& file, const Tokenizer& tokenizer)
    : impl_(new Impl{.file = AtomicFile(file), .header = {}, .waiting = PackedTokens(tokenizer.vocabulary()), .blocks = {}}) {
  ShardHeader& header = impl_->header;
  header.width = std::uint32_t(impl_->waiting.width());
  header.tokenizer = tokenizer.hash();
  header.vocabulary = std::uint64_t(tokenizer.vocabulary());
  XXH3_64bits_reset(impl_->checksum.get());
  impl_->file.write(std::as_bytes(std::span(&header, 1)));  // finish() writes it again
}

ShardWriter::~ShardWriter() = default;

std::int64_t ShardWriter::size() const { return std::int64_t(impl_->header.count); }

void ShardWriter::append(std::span<const std::int64_t> ids) {
  constexpr std::size_t kWaiting = 64 * kTokenBlock;
  impl_->waiting.append(ids);
  impl_->header.count += ids.size();
  if (const std::size_t have = impl_->waiting.bytes().size(); have >= kWaiting) flush(have / kTokenBlock * kTokenBlock);
}

// Whole blocks, but for the last one.
void ShardWriter::flush(std::size_t n) {
  const std::span<const std::byte> bytes = impl_->waiting.bytes().first(n);
  XXH3_64bits_update(impl_->checksum.get(), bytes.data(), bytes.size());
  for (std::size_t at = 0; at < n; at += kTokenBlock)
    impl_->blocks.push_back(XXH3_64bits(bytes.data() + at, std::min(kTokenBlock, n - at)));
  impl_->file.write(bytes);
  impl_->waiting.drop(n);
}

void ShardWriter::finish() {
  flush(impl_->waiting.bytes().size());
  const auto sums = std::as_bytes(std::span(impl_->blocks));
  impl_->file.write(sums);
  ShardHeader& header = impl_->header;
  header.checksum = XXH3_64bits_digest(impl_->checksum.get());
  header.blocks = XXH3_64bits(sums.data(), sums.size());
  header.own = header.own_checksum();
  impl_->file.rewrite(0, std::as_bytes(std::span(&header, 1)));
  impl_->file.commit();
}

}  // namespace weft
