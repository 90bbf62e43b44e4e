#include <algorithm>

#include "autograd/run.h"
#include "jit/error.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"
#include "tools/bench/collectives.h"
#include "tools/cli/commands.h"
#include "tools/system/launch.h"

namespace weft {

int cmd_bench(const BenchCommand& c) {
  const auto& groups = c.bench.groups;
  if (std::find(groups.begin(), groups.end(), "collectives") != groups.end()) {
    if (groups.size() > 1)
      fail(ErrorKind::usage, "bench: collectives are measured alone", {}, "weft bench collectives --gpus N");
    if (c.gpus > 0 && !rank_place()) return launch_on_gpus(int(c.gpus), c.words);
    Ranks* const ranks = Ranks::join();
    if (ranks && ranks->rank() > 0) mute(true);
    use_device(c.device);
    bench_collectives(c.bench.json, c.bench.smoke);
    if (ranks) ranks->leave();
    return 0;
  }
  if (c.gpus > 0) fail(ErrorKind::usage, "bench: --gpus is of collectives", {}, "weft bench collectives --gpus N");
  use_device(c.device);
  run_bench(c.bench);
  return 0;
}

}  // namespace weft
