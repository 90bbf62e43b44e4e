#include "autograd/run.h"
#include "tools/cli/commands.h"

namespace weft {

int cmd_bench(const BenchCommand& c) {
  use_device(c.device);
  run_bench(c.bench);
  return 0;
}

}  // namespace weft
