#include "jit/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <system_error>

#include "jit/error.h"
#include "jit/sizes.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

// Beyond the file size limit write() raises SIGXFSZ, which ends the process; held back, write() returns EFBIG instead.
class HoldSigxfsz {
 public:
  HoldSigxfsz() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &set_, &old_);
  }
  ~HoldSigxfsz() {
    if (sigismember(&old_, SIGXFSZ)) return;
    timespec none{};
    while (sigtimedwait(&set_, nullptr, &none) > 0) {
    }
    pthread_sigmask(SIG_SETMASK, &old_, nullptr);
  }
  HoldSigxfsz(const HoldSigxfsz&) = delete;
  HoldSigxfsz& operator=(const HoldSigxfsz&) = delete;

 private:
  sigset_t set_, old_;
};

// Refuses what cannot be replaced by renaming over it, or must not be: a folder, a device, a pipe.
void check_replaceable(const fs::path& file) {
  struct stat about {};
  if (lstat(file.c_str(), &about) == 0 && !S_ISREG(about.st_mode) && !S_ISLNK(about.st_mode))
    fail(ErrorKind::io, "cannot write " + file.string(), "it is not a regular file", "give the name of a file");
}

// Whether this pipe lies in a folder: those of a shell (`|`, `<(command)`) lie in a file system of their own.
bool has_name(int pipe) {
  struct statfs about {};
  return fstatfs(pipe, &about) == 0 && about.f_type != PIPEFS_MAGIC;
}

}  // namespace

void write_all(int descriptor, std::span<const std::byte> bytes, const fs::path& name) {
  HoldSigxfsz hold;
  while (!bytes.empty()) {
    const auto n = retried([&] { return ::write(descriptor, bytes.data(), std::min<std::size_t>(bytes.size(), 1 << 30)); });
    if (n < 0) fail_errno("cannot write " + name.string(), errno);
    bytes = bytes.subspan(std::size_t(n));
  }
}

void fail_errno(const std::string& what, int number) {
  std::string hint;
  if (number == ENOSPC || number == EDQUOT) hint = "free some space or choose another folder";
  fail(ErrorKind::io, what, std::strerror(number), hint);
}

void sync_folder(const fs::path& folder) {
  const int fd = retried([&] { return open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd < 0 && errno == EACCES) return;  // it may be written, but not read
  if (fd < 0) fail_errno("cannot write " + folder.string(), errno);
  const int error = retried([&] { return fsync(fd); }) == 0 || errno == EINVAL || errno == ENOTSUP ? 0 : errno;
  close(fd);
  if (error) fail_errno("cannot write " + folder.string(), error);
}

FileReader::FileReader(const fs::path& file)
    : name_(file.string()), fd_(retried([&] { return open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); })) {
  if (fd_ < 0) fail_errno("cannot read " + name_, errno);
  struct stat about {};
  if (fstat(fd_, &about) != 0 || S_ISDIR(about.st_mode)) {
    int number = S_ISDIR(about.st_mode) ? EISDIR : errno;
    close(fd_);
    fail_errno("cannot read " + name_, number);
  }
  if (S_ISFIFO(about.st_mode) && has_name(fd_)) {
    close(fd_);
    fail(ErrorKind::io, "cannot read " + name_, "it is a named pipe, which may never have a writer",
         "give a regular file; a shell's <(command) may be read");
  }
  if (!S_ISREG(about.st_mode)) (void)!fcntl(fd_, F_SETFL, 0);  // from here on it waits for what a stream has not said yet
  size_ = S_ISREG(about.st_mode) ? std::size_t(about.st_size) : 0;
}

FileReader::~FileReader() { close(fd_); }

std::size_t FileReader::read(std::span<std::byte> bytes) {
  std::size_t have = 0;
  while (have < bytes.size()) {
    auto n = retried([&] { return ::read(fd_, bytes.data() + have, std::min<std::size_t>(bytes.size() - have, 1 << 30)); });
    if (n < 0) fail_errno("cannot read " + name_, errno);
    if (n == 0) break;
    have += std::size_t(n);
  }
  return have;
}

void FileReader::seek(std::size_t offset) {
  if (lseek(fd_, off_t(offset), SEEK_SET) < 0) fail_errno("cannot read " + name_, errno);
}

fs::path temporary_name(const fs::path& beginning) {
  static std::atomic<unsigned> counter = 0;
  return beginning.string() + fmt::format(".weft-{}-{}.tmp", getpid(), counter++);
}

std::optional<std::string> temporary_of(const fs::path& name) {
  const std::string text = name.filename().string();
  const auto at = std::min(text.rfind(".weft-"), text.size());
  unsigned long process = 0, count = 0;
  if (std::sscanf(text.c_str() + at, ".weft-%lu-%lu.tmp", &process, &count) != 2) return std::nullopt;
  if (text.substr(at) != fmt::format(".weft-{}-{}.tmp", process, count)) return std::nullopt;
  return text.substr(0, at);
}

fs::path link_target(const fs::path& file) {
  std::error_code error;
  fs::path target = file;
  for (int links = 0; links < 40 && fs::is_symlink(target, error); ++links)
    target = target.parent_path() / fs::read_symlink(target, error);
  return target;
}

AtomicFile::AtomicFile(const fs::path& file, std::optional<mode_t> mode) : file_(file) {
  check_replaceable(file_);
  do {  // a name can be taken by what a killed process of the same number left
    temporary_ = temporary_name(file_.parent_path() / "");
    fd_ = retried([&] { return open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode.value_or(0666)); });
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) fail_errno("cannot write " + file_.string(), errno);
  struct stat old {};
  if (mode)
    (void)!fchmod(fd_, *mode);
  else if (lstat(file_.c_str(), &old) == 0 && S_ISREG(old.st_mode))
    (void)!fchmod(fd_, old.st_mode & 07777);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!done_) unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) { write_all(fd_, bytes, file_); }

void AtomicFile::rewrite(std::size_t offset, std::span<const std::byte> bytes) {
  if (lseek(fd_, off_t(offset), SEEK_SET) < 0) fail_errno("cannot write " + file_.string(), errno);
  write(bytes);
}

void AtomicFile::commit(bool durable) {
  if (durable && retried([&] { return fsync(fd_); }) != 0) fail_errno("cannot write " + file_.string(), errno);
  int closed = close(fd_);
  fd_ = -1;
  if (closed != 0 || ::rename(temporary_.c_str(), file_.c_str()) != 0) fail_errno("cannot write " + file_.string(), errno);
  done_ = true;
  if (durable) sync_folder(file_.has_parent_path() ? file_.parent_path() : fs::path("."));
}

void write_file(const fs::path& file, std::span<const std::byte> bytes, bool durable) {
  AtomicFile out(file);
  out.write(bytes);
  out.commit(durable);
}

std::string read_text(const fs::path& file, std::size_t limit) {
  FileReader reader(file);
  if (reader.size() == 0) limit = std::min(limit, kMaxStream);  // a stream perhaps
  const auto check = [&](std::size_t bytes) {
    if (bytes > limit)
      fail(ErrorKind::io, file.string() + ": too large", fmt::format("limit {} bytes", limit),
           reader.size() == 0 ? "a stream may have no end: write it into a file first" : "");
  };
  check(reader.size());
  check_memory(reader.size(), file.string());
  std::string bytes;
  std::size_t have = 0, room = reader.size();
  do {  // one byte more than expected shows whether the end is there: streams and files of /proc show size 0
    check(have);
    room = std::max(room, 2 * have) + 1;
    bytes.resize(room);
    have += reader.read(std::as_writable_bytes(std::span(bytes)).subspan(have));
  } while (have == room);
  check(have);
  bytes.resize(have);
  return bytes;
}

// ---- other formats ----------------------------------------------------------------------------------------------------------

namespace {

constexpr std::string_view kUnpack = "unpack it first", kSaveAgain = "save the model with save_pretrained of transformers";

struct Signature {
  std::string_view bytes;
  ForeignFormat format;
};
using namespace std::string_view_literals;  // some have a zero byte
constexpr std::array kSignatures = std::to_array<Signature>({
    {"version https://git-lfs"sv,
     {"a pointer of Git LFS, not the file itself", "`git lfs pull` in its folder, or download it again"}},
    {"PK\x03\x04"sv, {"a zip archive, as torch.save and numpy.savez write", kSaveAgain}},
    {"\x80\x02"sv, {"a pickle, which weft does not run", kSaveAgain}},
    {"\x80\x03"sv, {"a pickle, which weft does not run", kSaveAgain}},
    {"\x80\x04\x95"sv, {"a pickle, which weft does not run", kSaveAgain}},
    {"\x80\x05\x95"sv, {"a pickle, which weft does not run", kSaveAgain}},
    {"GGUF\x02\0\0\0"sv, {"a GGUF file of llama.cpp", "give the folder that it was converted from"}},
    {"GGUF\x03\0\0\0"sv, {"a GGUF file of llama.cpp", "give the folder that it was converted from"}},
    {"\x89HDF\r\n"sv, {"an HDF5 file", kSaveAgain}},
    {"\x93NUMPY"sv, {"an array of NumPy", kSaveAgain}},
    {"PAR1\x15"sv, {"a Parquet file", "write its texts as lines of JSON: {\"text\": \"...\"}"}},
    {"\x1f\x8b\x08"sv, {"compressed by gzip", kUnpack}},
    {"\x28\xb5\x2f\xfd"sv, {"compressed by zstd", kUnpack}},
    {"\xfd"
     "7zXZ\0"sv,
     {"compressed by xz", kUnpack}},
    {"BZh91AY&SY"sv, {"compressed by bzip2", kUnpack}},
    {"<!doctype html"sv,
     {"a web page", "on huggingface.co a file's own address has /resolve/ where its page has /blob/", true}},
    {"<html"sv, {"a web page", "on huggingface.co a file's own address has /resolve/ where its page has /blob/", true}},
});

bool begins_with(std::string_view text, std::string_view lower_case) {
  const auto lower = [](char c) { return 'A' <= c && c <= 'Z' ? char(c - 'A' + 'a') : c; };
  return text.size() >= lower_case.size() &&
         std::equal(lower_case.begin(), lower_case.end(), text.begin(), [&](char a, char b) { return a == lower(b); });
}

}  // namespace

std::optional<ForeignFormat> foreign_format(std::string_view begin) {
  const std::string_view text = begin.substr(std::min(begin.find_first_not_of(" \t\r\n"), begin.size()));
  for (const Signature& s : kSignatures)
    if (s.format.text ? begins_with(text, s.bytes) : begin.starts_with(s.bytes)) return s.format;
  return std::nullopt;
}

void refuse_foreign(const std::string& file, std::string_view begin, std::string_view wanted) {
  if (const auto is = foreign_format(begin))
    fail(ErrorKind::io, fmt::format("{}: not {}", file, wanted), fmt::format("it is {}", is->what), std::string(is->hint));
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

}  // namespace weft
