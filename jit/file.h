// Files: one read in pieces, one read whole, and one that replaces another only when it is complete. Errors are ErrorKind::io.
#pragma once

#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// Throws "what: <the system's words for errno `number`>".
[[noreturn]] void fail_errno(const std::string& what, int number);

// call() until no signal interrupts it: its result, or -1 with errno.
template <class F>
auto retried(F call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// Writes all of it, on from where the descriptor stands; `name` is for the error. Beyond the file size limit (`ulimit -f`) that
// is an error as on a full disk, and no signal.
void write_all(int descriptor, std::span<const std::byte> bytes, const std::filesystem::path& name);

// Makes the names in a folder outlive a power cut, where the file system can do it.
void sync_folder(const std::filesystem::path& folder);

class FileReader {
 public:
  explicit FileReader(const std::filesystem::path& file);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  std::size_t size() const { return size_; }  // 0 for what is not a regular file
  void seek(std::size_t offset);
  std::size_t read(std::span<std::byte> bytes);  // the count; less than asked for only at the end

 private:
  std::string name_;
  int fd_ = -1;
  std::size_t size_ = 0;
};

// Takes the place of `file` when it is committed: readers see the old file or all of the new one, whoever else writes it. A
// link is replaced, never followed: somebody else may have put it there. What is neither a regular file nor a link nor missing
// is refused.
class AtomicFile {
 public:
  // Without a `mode` it is that of the file that is replaced, or what the umask leaves.
  explicit AtomicFile(const std::filesystem::path& file, std::optional<mode_t> mode = std::nullopt);
  ~AtomicFile();  // without commit() the temporary file is removed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  // Overwrites bytes written before; nothing may follow but commit().
  void rewrite(std::size_t offset, std::span<const std::byte> bytes);
  // Renames, `durable`: so that the file outlives a power cut. If that fails for the folder alone, the file is replaced
  // already.
  void commit(bool durable = true);

 private:
  std::filesystem::path file_, temporary_;
  int fd_ = -1;
  bool done_ = false;
};

// What is being written meanwhile is called BEGINNING.weft-PROCESS-COUNT.tmp: a name of this process, never the same twice.
std::filesystem::path temporary_name(const std::filesystem::path& beginning);
// The file name that a temporary_name() begins with, by which what a killed process left can be told; nothing: it is none.
std::optional<std::string> temporary_of(const std::filesystem::path& name);

// Writes all of `file` at once, by an AtomicFile.
void write_file(const std::filesystem::path& file, std::span<const std::byte> bytes, bool durable = true);

// Where a link that the user named leads to, so that the link stays one when the file is written; `file` itself if it is none.
std::filesystem::path link_target(const std::filesystem::path& file);

// A whole file, or stream such as /dev/stdin, of at most `limit` bytes; of a stream, which may have no end, at most kMaxStream.
inline constexpr std::size_t kNoLimit = std::numeric_limits<std::ptrdiff_t>::max(), kMaxStream = std::size_t(1) << 28;
std::string read_text(const std::filesystem::path& file, std::size_t limit = kNoLimit);

// What often lies where another file should: a pointer of Git LFS, a web page, a pickle, something compressed.
struct ForeignFormat {
  std::string_view what;  // "a zip archive, as torch.save writes"
  std::string_view hint;  // how to come by the file that is wanted
  bool text = false;      // it may be a text that somebody wants to read as one
};
// The format that the first bytes of a file are known by; nothing: another one. kForeignBytes of them are enough.
inline constexpr std::size_t kForeignBytes = 512;
std::optional<ForeignFormat> foreign_format(std::string_view begin);
// An error (ErrorKind::io) that says what `file`, which begins so, is instead of `wanted` ("a safetensors file"), if that is
// known.
void refuse_foreign(const std::string& file, std::string_view begin, std::string_view wanted);

std::vector<std::string_view> lines_of(std::string_view text);  // without their ends; views of the text

}  // namespace weft
