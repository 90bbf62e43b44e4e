#include <fmt/format.h>

#include <filesystem>

#include "jit/error.h"
#include "jit/print.h"
#include "tools/cli/commands.h"
#include "tools/train/plot.h"

namespace weft {

int cmd_plot(const PlotCommand& c) {
  const std::vector<std::filesystem::path> runs(c.runs.begin(), c.runs.end());
  for (const auto& run : runs)
    if (!std::filesystem::exists(run / "metrics.jsonl"))
      fail(ErrorKind::io, "plot: no metrics", (run / "metrics.jsonl").string(), "give a folder that `weft train --out` wrote");
  const std::filesystem::path name = !c.out.empty()     ? std::filesystem::path(c.out)
                                     : runs.size() == 1 ? runs[0] / "loss"
                                                        : "loss";
  if (!plot_runs(runs, name))
    fail(ErrorKind::io, "plot: gnuplot is not installed", fmt::format("{0}.gp and {0}.dat are written", name.string()),
         "apt-get install gnuplot-nox");
  print("{0}.png\n{0}.svg\n", name.string());
  return 0;
}

}  // namespace weft
