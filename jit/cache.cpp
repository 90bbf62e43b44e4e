#include "jit/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>
#include <span>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr std::array<char, 8> kMagic = {'w', 'e', 'f', 't', 'k', 'r', 'n', '1'};

// What stands before cubin, PTX and log in the file of an entry.
struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint64_t checksum = 0;  // XXH3 of all that follows
  std::uint64_t cubin_bytes = 0, ptx_bytes = 0, log_bytes = 0;
  double seconds = 0;
  std::int32_t nvrtc = 0, registers = 0, spill_bytes = 0, stack_bytes = 0, shared_bytes = 0, constant_bytes = 0;
};
static_assert(sizeof(Header) == 72, "written as it stands: no padding");
constexpr std::size_t kUnsummed = offsetof(Header, cubin_bytes);

constexpr std::uint64_t kMaxEntry = std::uint64_t(1) << 30;  // bytes

void warn_once(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string> said;
  std::lock_guard lock(mutex);
  if (said.insert(text).second) print_error("weft: {}\n", text);
}

fs::path folder() {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value ? value : "");
  };
  if (fs::path own = variable("WEFT_CACHE"); !own.empty()) return own;
  if (fs::path xdg = variable("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "weft";
  fs::path home = variable("HOME");
  return home.empty() ? home : home / ".cache" / "weft";
}

// Why code must not be loaded from what others may have made or changed, or "". Taking their rights away afterwards does not
// help: what they left stays.
std::string distrust(const struct stat& info) {
  if (info.st_uid != geteuid()) return "belongs to another user; delete it";
  if (info.st_mode & (S_IWGRP | S_IWOTH)) return "can be written by others; delete it, and a private one is made";
  return "";
}

std::string distrust_folder(const fs::path& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return std::strerror(errno);
  return S_ISDIR(info.st_mode) ? distrust(info) : "is not a folder";
}

bool trusted(const fs::path& path) {
  const std::string reason = distrust_folder(path);
  if (!reason.empty()) warn_once(fmt::format("kernels are not cached: {}: {}", path.string(), reason));
  return reason.empty();
}

std::uint64_t checksum(std::string_view file) { return XXH3_64bits(file.data() + kUnsummed, file.size() - kUnsummed); }

bool sound(std::string_view file, Header& header) {
  if (file.size() < sizeof header) return false;
  std::memcpy(&header, file.data(), sizeof header);
  const std::uint64_t rest = file.size() - sizeof header;
  for (const std::uint64_t part : {header.cubin_bytes, header.ptx_bytes, header.log_bytes})
    if (part > rest) return false;  // else their sum could wrap
  return header.magic == kMagic && header.checksum == checksum(file) &&
         header.cubin_bytes + header.ptx_bytes + header.log_bytes == rest;
}

// Not durable: an entry that a power cut leaves incomplete is found by its checksum. Private whatever the umask says, or it
// would not be trusted.
bool store(const fs::path& path, std::string_view bytes) {
  try {
    AtomicFile file(path, 0600);
    file.write(std::as_bytes(std::span(bytes)));
    file.commit(false);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// The bytes of an entry. Nothing: it is missing (another process may have removed it), cannot be read, or is not to be trusted.
// What is checked is the opened file, which nobody can exchange; a pipe is not waited for, a link not followed.
std::optional<std::string> load(const fs::path& path) {
  const int fd = retried([&] { return open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC); });
  struct stat info {};
  if (fd < 0 || fstat(fd, &info) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    if (error != ENOENT)
      warn_once(fmt::format("an entry of the kernel cache is not used: {}: {}", path.string(), std::strerror(error)));
    return std::nullopt;
  }
  const std::string reason = S_ISREG(info.st_mode) ? distrust(info) : "is not a file; delete it";
  std::string bytes(reason.empty() && std::uint64_t(info.st_size) <= kMaxEntry ? std::size_t(info.st_size) : 0, '\0');
  std::size_t have = 0;
  while (have < bytes.size()) {
    const auto n = retried([&] { return read(fd, bytes.data() + have, bytes.size() - have); });
    if (n <= 0) break;
    have += std::size_t(n);
  }
  close(fd);
  bytes.resize(have);  // one that has become shorter is damaged
  if (reason.empty()) return bytes;
  warn_once(fmt::format("an entry of the kernel cache is not used: {} {}", path.string(), reason));
  return std::nullopt;
}

bool make_private(const fs::path& path) {
  std::error_code error;
  if (fs::exists(path, error)) return true;
  if (path.has_parent_path()) fs::create_directories(path.parent_path(), error);
  return mkdir(path.c_str(), 0700) == 0 || errno == EEXIST;
}

}  // namespace

std::string cache_key(std::string_view text) {
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::optional<Compiled> cache_load(const std::string& key, int nvrtc) {
  std::error_code error;
  const fs::path path = folder() / key;
  if (!fs::exists(path, error) || !trusted(folder())) return std::nullopt;
  const std::optional<std::string> file = load(path);
  if (!file) return std::nullopt;
  Header header;
  if (!sound(*file, header)) {
    print_error("weft: a damaged entry of the kernel cache is dropped and made again: {}\n", path.string());
    fs::remove(path, error);
    return std::nullopt;
  }
  if (nvrtc != 0 && header.nvrtc != nvrtc) return std::nullopt;
  const std::size_t ptx = sizeof header + header.cubin_bytes, log = ptx + header.ptx_bytes;
  return Compiled{.cubin = file->substr(sizeof header, header.cubin_bytes),
                  .ptx = file->substr(ptx, header.ptx_bytes),
                  .log = file->substr(log),
                  .registers = header.registers,
                  .spill_bytes = header.spill_bytes,
                  .stack_bytes = header.stack_bytes,
                  .shared_bytes = header.shared_bytes,
                  .constant_bytes = header.constant_bytes,
                  .seconds = header.seconds,
                  .cached = true};
}

void cache_store(const std::string& key, const Compiled& compiled, int nvrtc, const std::string& source) {
  const fs::path path = folder();
  if (path.empty()) return warn_once("kernels are not cached: neither WEFT_CACHE nor HOME is set");
  if (!make_private(path)) return warn_once(fmt::format("kernels are not cached: {}: {}", path.string(), std::strerror(errno)));
  if (!trusted(path)) return;
  Header header{.cubin_bytes = compiled.cubin.size(),
                .ptx_bytes = compiled.ptx.size(),
                .log_bytes = compiled.log.size(),
                .seconds = compiled.seconds,
                .nvrtc = nvrtc,
                .registers = compiled.registers,
                .spill_bytes = compiled.spill_bytes,
                .stack_bytes = compiled.stack_bytes,
                .shared_bytes = compiled.shared_bytes,
                .constant_bytes = compiled.constant_bytes};
  std::string file(sizeof header, '\0');
  file += compiled.cubin;
  file += compiled.ptx;
  file += compiled.log;
  std::memcpy(file.data(), &header, sizeof header);
  header.checksum = checksum(file);
  std::memcpy(file.data(), &header, sizeof header);
  if (!store(path / (key + ".cu"), source) || !store(path / key, file))
    warn_once(fmt::format("kernels are not cached: {} cannot be written", path.string()));
}

CacheState cache_state() {
  CacheState state{.folder = folder().string(), .problem = {}};
  std::error_code error;
  if (state.folder.empty()) state.problem = "neither WEFT_CACHE nor HOME is set";
  if (!state.problem.empty() || !fs::exists(state.folder, error)) return state;
  state.problem = distrust_folder(state.folder);
  if (state.problem.empty() && access(state.folder.c_str(), W_OK) != 0) state.problem = "cannot be written";
  for (fs::directory_iterator i(state.folder, error), end; !error && i != end; i.increment(error)) {
    std::error_code gone;  // another process may have renamed it
    const auto bytes = i->file_size(gone);
    if (gone) continue;
    state.bytes += std::int64_t(bytes);
    state.entries += !i->path().has_extension();
  }
  return state;
}

}  // namespace weft
