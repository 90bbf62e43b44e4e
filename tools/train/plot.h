// Loss curves of runs, drawn by gnuplot.
#pragma once

#include <filesystem>
#include <vector>

namespace weft {

// Training and validation losses of the runs' metrics.jsonl, in one picture: NAME.dat, NAME.gp, and from them NAME.png and
// NAME.svg. False if there is no gnuplot: then only the first two are written. Errors: ErrorKind::io for a run without metrics,
// a gnuplot that fails or takes more than a minute a picture; ErrorKind::usage for a name that gnuplot cannot be told.
bool plot_runs(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& name);

}  // namespace weft
