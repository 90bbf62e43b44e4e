#include "tools/system/folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"

namespace weft {

namespace fs = std::filesystem;

fs::path unfinished(const fs::path& name) { return name.string() + std::string(kUnfinished); }

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_errno("cannot remove " + path.string(), error.value());
}

void check_link(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::symlink_status(path, error).type();
  if (type != fs::file_type::not_found && type != fs::file_type::symlink)
    fail(ErrorKind::io, "cannot replace " + path.string(), "it is not the link that weft makes there",
         "move it away, or give another folder");
}

void remove_link(const fs::path& path) {
  check_link(path);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) fail_errno("cannot remove " + path.string(), errno);
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  if (rename(from.c_str(), to.c_str()) != 0) fail_errno("cannot write " + to.string(), errno);
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail_errno("cannot make the folder " + folder.string(), error.value());
}

void write_folder(const fs::path& folder, const std::function<void(const fs::path&)>& fill, Replace replace) {
  const fs::path name = fs::absolute(folder).lexically_normal(), clean = name.has_filename() ? name : name.parent_path();
  make_folder(clean.parent_path());
  fs::path temporary;
  int made = 0;
  do temporary = temporary_name(clean);
  while ((made = mkdir(temporary.c_str(), 0777)) != 0 && errno == EEXIST);
  if (made != 0) fail_errno("cannot make the folder " + clean.string(), errno);
  try {
    fill(temporary);
    sync_folder(temporary);
    if (rename(temporary.c_str(), clean.c_str()) != 0) {
      if ((errno == ENOTEMPTY || errno == EEXIST) && replace == Replace::nothing)
        fail(ErrorKind::io, "cannot write " + clean.string(), "the folder is not empty", "give the name of a new one");
      // A folder with files cannot be renamed over, but two can change places.
      if ((errno != ENOTEMPTY && errno != EEXIST) ||
          renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, clean.c_str(), RENAME_EXCHANGE) != 0)
        fail_errno("cannot write " + clean.string(), errno);
      remove_tree(temporary);
    }
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_folder(clean.parent_path());
}

FolderLock::FolderLock(const fs::path& folder) {
  make_folder(folder);
  const fs::path file = folder / kLockFile;
  descriptor_ = retried([&] { return open(file.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666); });
  if (descriptor_ < 0) fail_errno("cannot write " + file.string(), errno);
  if (retried([&] { return flock(descriptor_, LOCK_EX | LOCK_NB); }) == 0) return;
  if (errno == EWOULDBLOCK) {
    close(std::exchange(descriptor_, -1));
    fail(ErrorKind::io, "another process writes this folder", folder.string(),
         "wait until it has ended, or give another --out");
  }
  print_error("weft: {}: its file system has no locks ({}): see that no other process writes it meanwhile\n", folder.string(),
              std::strerror(errno));
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace weft
