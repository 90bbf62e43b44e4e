#include "tools/system/folder.h"

#include <fcntl.h>
#include <stdio.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "jit/file.h"

namespace weft {

namespace fs = std::filesystem;

fs::path unfinished(const fs::path& name) { return name.string() + std::string(kUnfinished); }

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_errno("cannot remove " + path.string(), error.value());
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  if (rename(from.c_str(), to.c_str()) != 0) fail_errno("cannot write " + to.string(), errno);
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail_errno("cannot make the folder " + folder.string(), error.value());
}

void write_folder(const fs::path& folder, const std::function<void(const fs::path&)>& fill) {
  const fs::path name = fs::absolute(folder).lexically_normal(), clean = name.has_filename() ? name : name.parent_path();
  const fs::path temporary = unfinished(clean);
  make_folder(clean.parent_path());
  remove_tree(temporary);
  try {
    make_folder(temporary);
    fill(temporary);
    sync_folder(temporary);
    if (rename(temporary.c_str(), clean.c_str()) != 0) {
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

}  // namespace weft
