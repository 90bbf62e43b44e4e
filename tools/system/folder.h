// Folders that appear complete or not at all. Errors are ErrorKind::io.
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace weft {

void make_folder(const std::filesystem::path& folder);  // and those above it that are missing

// `fill` writes the files into a folder that it is given, which then replaces `folder`. On any error what was there before is
// untouched.
void write_folder(const std::filesystem::path& folder, const std::function<void(const std::filesystem::path&)>& fill);

// What is still being written, or being removed, has this at the end of its name.
inline constexpr std::string_view kUnfinished = ".tmp";
std::filesystem::path unfinished(const std::filesystem::path& name);

void remove_tree(const std::filesystem::path& path);  // a folder with all that is in it, or a file; nothing if it is not there
void rename_or_fail(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace weft
