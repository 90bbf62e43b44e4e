#include <fmt/format.h>

#include <filesystem>

#include "jit/error.h"
#include "jit/print.h"
#include "tools/cli/commands.h"
#include "tools/train/checkpoint.h"
#include "tools/train/trainer.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Whether it is as it was written.
bool check_checkpoint(const fs::path& folder) {
  try {
    const SavedState state = read_state(folder);
    check_files(folder, state);
    print("{}: {}\n", folder.string(),
          state.files.empty() ? "no checksums: an older weft wrote it" : "every byte is as it was written");
    return true;
  } catch (const Error& e) {
    print("{}: damaged\n  {}\n", folder.string(), e.what());
    return false;
  }
}

}  // namespace

int cmd_check(const CheckCommand& c) {
  const fs::path folder = c.folder;
  if (fs::exists(folder / "data.json")) {
    DataCommand shards;
    shards.folder = c.folder;
    return cmd_data_check(shards);
  }
  const bool one = fs::exists(folder / "state.json");
  const std::vector<fs::path> all = one ? std::vector{folder} : Checkpoints(folder).all();
  if (all.empty())
    fail(ErrorKind::io, "check: there is nothing to check", folder.string(),
         "give a run or checkpoint that `weft train --out` wrote, or a folder of `weft data make`");
  std::size_t damaged = 0;
  for (const fs::path& checkpoint : all)
    damaged += !check_checkpoint(checkpoint) && fs::exists(checkpoint);  // a run that trains removes old ones
  if (damaged) fail(ErrorKind::io, "check: damaged checkpoints", fmt::format("{} of {}", damaged, all.size()));
  return 0;
}

}  // namespace weft
