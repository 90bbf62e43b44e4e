// Loss curves of runs, drawn by gnuplot.
#pragma once

#include <filesystem>
#include <vector>

namespace weft {

// Training and validation losses of the runs' metrics.jsonl, in one picture: NAME.dat, NAME.gp, and from them NAME.png and
// NAME.svg. False if there is no gnuplot: then only the first two are written. Errors (ErrorKind::io): a run without metrics.
bool plot_runs(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& name);

}  // namespace weft
