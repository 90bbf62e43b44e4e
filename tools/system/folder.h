// Folders that appear complete or not at all. Errors are ErrorKind::io.
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>
#include <utility>

namespace weft {

void make_folder(const std::filesystem::path& folder);  // and those above it that are missing

// `fill` writes the files into a folder that it is given, which then takes the place of `folder`: of one that is missing or
// empty, or `whatever` is there. On any error what was there before is untouched. Meanwhile it has a temporary_name() beside
// `folder`: nothing else that lies there is touched.
enum class Replace { nothing, whatever };
void write_folder(const std::filesystem::path& folder, const std::function<void(const std::filesystem::path&)>& fill,
                  Replace replace = Replace::nothing);

// What is being removed has this at the end of its name.
inline constexpr std::string_view kUnfinished = ".tmp";
std::filesystem::path unfinished(const std::filesystem::path& name);

void remove_tree(const std::filesystem::path& path);  // a folder with all that is in it, or a file; nothing if it is not there
void check_link(const std::filesystem::path& path);   // errors: there is something, and it is no link
void remove_link(const std::filesystem::path& path);  // nothing if it is not there; errors likewise
void rename_or_fail(const std::filesystem::path& from, const std::filesystem::path& to);

// A lock on a folder that one process writes at a time: it ends with the object, or with the process, whatever ends that.
// Readers take none. Its file stays in the folder, or a process that waits for the one file and one that makes another would
// both hold a lock.
class FolderLock {
 public:
  // Makes folder and file if they are missing. Errors (ErrorKind::io): another process holds it; the file cannot be made. Where
  // the file system has no locks it says so on stderr, once, and goes on.
  explicit FolderLock(const std::filesystem::path& folder);
  FolderLock(FolderLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  ~FolderLock();

 private:
  int descriptor_;
};
inline constexpr const char* kLockFile = "weft.lock";

}  // namespace weft
