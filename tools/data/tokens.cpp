#include "tools/data/tokens.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>

#include "jit/error.h"
#include "jit/file.h"

namespace weft {

namespace fs = std::filesystem;

// At the front of a shard.
struct ShardHeader {
  std::array<char, 8> magic = {'W', 'E', 'F', 'T', 'T', 'O', 'K', 'S'};
  std::uint32_t version = 1;
  std::uint32_t width = 2;
  std::uint64_t count = 0;
  std::uint64_t tokenizer = 0;
  std::uint64_t vocabulary = 0;
  std::uint64_t checksum = 0;
  std::uint64_t zero = 0;
  std::uint64_t own = 0;

  std::uint64_t own_checksum() const { return XXH3_64bits(this, offsetof(ShardHeader, own)); }
};
static_assert(sizeof(ShardHeader) == 64);

namespace {

static_assert(std::endian::native == std::endian::little);

[[noreturn]] void damaged(const std::string& name, const std::string& why) {
  fail(ErrorKind::io, name + ": not a usable token shard", why, "make it again with `weft data make`");
}

ShardHeader read_header(const fs::path& file, const Tokenizer& tokenizer) {
  FileReader reader(file);
  ShardHeader header;
  const ShardHeader expected;
  const std::string name = file.string();
  if (reader.read(std::as_writable_bytes(std::span(&header, 1))) < sizeof header) damaged(name, "truncated");
  if (header.magic != expected.magic) damaged(name, "it does not begin with WEFTTOKS");
  if (header.version != expected.version) damaged(name, fmt::format("version {}; this weft reads version 1", header.version));
  if (header.own != header.own_checksum()) damaged(name, "the header is damaged");
  if ((header.width != 2 && header.width != 4) || header.zero) damaged(name, "the header makes no sense");
  if (header.count > std::uint64_t(std::numeric_limits<std::int64_t>::max()) / 8 ||
      reader.size() != sizeof header + header.count * header.width)
    damaged(name, fmt::format("{} bytes for {} tokens of {} bytes", reader.size(), header.count, header.width));
  if (header.tokenizer != tokenizer.hash() || header.vocabulary != std::uint64_t(tokenizer.vocabulary()))
    damaged(name, "it was made with another tokenizer than the one given");
  return header;
}

std::shared_ptr<const std::byte> map_file(const fs::path& file, std::size_t size) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("cannot read " + file.string(), errno);
  void* at = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int number = errno;
  close(fd);
  if (at == MAP_FAILED) fail_errno("cannot map " + file.string(), number);
  return {static_cast<const std::byte*>(at), [size](const std::byte* p) { munmap(const_cast<std::byte*>(p), size); }};
}

std::uint64_t token_at(const std::byte* bytes, std::size_t width, std::int64_t i) {
  std::uint32_t token = 0;
  std::memcpy(&token, bytes + std::size_t(i) * width, width);
  return token;
}

}  // namespace

void PackedTokens::append(std::span<const std::int64_t> ids) {
  const std::size_t at = bytes_.size();
  bytes_.resize(at + ids.size() * width_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto token = std::uint32_t(ids[i]);
    std::memcpy(bytes_.data() + at + i * width_, &token, width_);
  }
}

Tokens::Tokens(PackedTokens tokens) : size_(tokens.size()) {
  const auto owner = std::make_shared<const PackedTokens>(std::move(tokens));
  const std::vector<std::byte>& bytes = owner->bytes();
  segments_.push_back({owner, bytes.data(), owner->width(), 0, size_, XXH3_64bits(bytes.data(), bytes.size()),
                       std::numeric_limits<std::uint64_t>::max(), "tokens"});
}

Tokens Tokens::open(const std::vector<fs::path>& shards, const Tokenizer& tokenizer) {
  Tokens all;
  for (const fs::path& file : shards) {
    const ShardHeader header = read_header(file, tokenizer);
    const auto owner = map_file(file, sizeof header + header.count * header.width);
    all.segments_.push_back({owner, owner.get() + sizeof header, header.width, all.size_, std::int64_t(header.count),
                             header.checksum, header.vocabulary, file.string()});
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
  if (at < 0 || at + std::int64_t(out.size()) > size_)
    fail(ErrorKind::usage, "tokens: out of range", fmt::format("{} from {}, of {}", out.size(), at, size_));
  auto segment = std::upper_bound(segments_.begin(), segments_.end(), at,
                                  [](std::int64_t place, const Segment& s) { return place < s.begin + s.size; });
  for (std::int64_t& id : out) {
    while (at == segment->begin + segment->size) ++segment;
    const std::uint64_t token = token_at(segment->bytes, segment->width, at++ - segment->begin);
    if (token >= segment->vocabulary)
      damaged(segment->name, fmt::format("token {} of a vocabulary of {}", token, segment->vocabulary));
    id = std::int64_t(token);
  }
}

std::uint64_t Tokens::hash() const {
  std::vector<std::uint64_t> checksums;
  for (const Segment& s : segments_) checksums.push_back(s.checksum);
  return XXH3_64bits(checksums.data(), checksums.size() * sizeof(std::uint64_t));
}

void Tokens::verify() const {
  for (const Segment& s : segments_) {
    if (XXH3_64bits(s.bytes, std::size_t(s.size) * s.width) != s.checksum)
      damaged(s.name, "the tokens are not those that were written");
    for (std::int64_t i = 0; i < s.size; ++i)
      if (const std::uint64_t token = token_at(s.bytes, s.width, i); token >= s.vocabulary)
        damaged(s.name, fmt::format("token {} of a vocabulary of {}", token, s.vocabulary));
  }
}

struct ShardWriter::Impl {
  AtomicFile file;
  ShardHeader header;
  PackedTokens waiting;  // to be written
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> checksum{XXH3_createState(), XXH3_freeState};
};

ShardWriter::ShardWriter(const fs::path& file, const Tokenizer& tokenizer)
    : impl_(new Impl{.file = AtomicFile(file), .header = {}, .waiting = PackedTokens(tokenizer.vocabulary())}) {
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
  constexpr std::size_t kWaiting = 1 << 20;
  impl_->waiting.append(ids);
  impl_->header.count += ids.size();
  if (impl_->waiting.bytes().size() >= kWaiting) flush();
}

void ShardWriter::flush() {
  const std::vector<std::byte>& bytes = impl_->waiting.bytes();
  XXH3_64bits_update(impl_->checksum.get(), bytes.data(), bytes.size());
  impl_->file.write(bytes);
  impl_->waiting.clear();
}

void ShardWriter::finish() {
  flush();
  ShardHeader& header = impl_->header;
  header.checksum = XXH3_64bits_digest(impl_->checksum.get());
  header.own = header.own_checksum();
  impl_->file.rewrite(0, std::as_bytes(std::span(&header, 1)));
  impl_->file.commit();
}

}  // namespace weft
