#include "tools/train/checkpoint.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <system_error>
#include <vector>

#include "jit/error.h"
#include "jit/file.h"
#include "tools/system/folder.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPrefix = "step-";

// The N of "step-N".
std::optional<std::int64_t> step_of(const fs::path& name) {
  const std::string text = name.filename().string();
  std::int64_t step = 0;
  if (!text.starts_with(kPrefix)) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data() + kPrefix.size(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return step;
}

std::vector<fs::path> entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) names.push_back(entry.path());
  if (error && error != std::errc::no_such_file_or_directory) fail_errno("cannot read " + folder.string(), error.value());
  return names;
}

// Ascending.
std::vector<std::int64_t> steps_in(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  for (const fs::path& name : entries(folder))
    if (const auto step = step_of(name)) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

// What a killed process has left in a folder of the run: exactly these names.
void remove_leftovers(const fs::path& folder) {
  for (const fs::path& name : entries(folder)) {
    const auto written = temporary_of(name);
    if ((written && (written->empty() || step_of(*written))) || (step_of(name.stem()) && name.extension() == kUnfinished))
      remove_tree(name);
  }
}

// Under its name a checkpoint is whole, so it loses the name first.
void remove_checkpoint(const fs::path& folder) {
  const fs::path gone = unfinished(folder);
  remove_tree(gone);
  rename_or_fail(folder, gone);
  remove_tree(gone);
}

}  // namespace

fs::path Checkpoints::of_step(std::int64_t step) const { return folder() / fmt::format("{}{}", kPrefix, step); }

std::vector<fs::path> Checkpoints::all() const {
  std::vector<fs::path> folders;
  for (const std::int64_t step : steps_in(folder())) folders.push_back(of_step(step));
  return folders;
}

std::optional<fs::path> Checkpoints::newest() const {
  const std::vector<std::int64_t> steps = steps_in(folder());
  if (steps.empty()) return std::nullopt;
  std::error_code error;
  const fs::path latest = fs::read_symlink(run_ / "latest", error);
  const auto named = error ? std::nullopt : step_of(latest);
  // A link may be missing behind the first checkpoint, and dangling where somebody removed folders.
  return of_step(named && std::binary_search(steps.begin(), steps.end(), *named) ? *named : steps.back());
}

void Checkpoints::point_to(std::int64_t step) const {
  const fs::path latest = run_ / "latest", temporary = temporary_name(run_ / "");
  const fs::path target = fs::path("checkpoints") / of_step(step).filename();
  check_link(latest);
  if (symlink(target.c_str(), temporary.c_str()) != 0) fail_errno("cannot write " + latest.string(), errno);
  rename_or_fail(temporary, latest);
  sync_folder(run_);
}

void Checkpoints::write(std::int64_t step, std::int64_t keep, const std::function<void(const fs::path&)>& fill) const {
  write_folder(of_step(step), fill, Replace::whatever);
  point_to(step);
  if (keep == 0) return;
  const std::vector<std::int64_t> steps = steps_in(folder());
  for (std::size_t i = 0; i + std::size_t(keep) < steps.size(); ++i) remove_checkpoint(of_step(steps[i]));
}

void Checkpoints::rewind(std::int64_t step) const {
  if (step > 0)
    point_to(step);
  else
    remove_link(run_ / "latest");
  for (const std::int64_t newer : steps_in(folder()))
    if (newer > step) remove_checkpoint(of_step(newer));
  remove_leftovers(folder());
  for (const fs::path& name : entries(run_))
    if (temporary_of(name) == "") remove_tree(name);
}

fs::path model_folder(const fs::path& path) {
  if (fs::exists(path) && !fs::is_directory(path))
    fail(ErrorKind::io, path.string() + ": not a folder", {},
         "give the folder that `weft train --out` wrote, or one with a config.json and a model.safetensors");
  std::error_code error;
  if (const fs::path real = fs::canonical(path, error); !error && fs::is_symlink(path) && step_of(real)) return real;
  return Checkpoints(path).newest().value_or(path);
}

bool superseded(const fs::path& path, const fs::path& folder) {
  return (!fs::exists(folder) || fs::is_symlink(folder)) && model_folder(path) != folder;
}

bool is_run(const fs::path& folder) {
  return fs::exists(folder / kLockFile) || (fs::exists(folder / "config.json") && fs::is_directory(folder / "checkpoints"));
}

std::optional<fs::path> run_of(const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);  // through RUN/latest too
  if (error) return std::nullopt;
  if (fs::exists(real / "checkpoints")) return path;
  if (step_of(real) && real.parent_path().filename() == "checkpoints") return real.parent_path().parent_path();
  return std::nullopt;
}

}  // namespace weft
