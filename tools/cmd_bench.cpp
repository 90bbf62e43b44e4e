#include "autograd/run.h"
#include "tools/bench_host.h"
#include "tools/commands.h"

namespace weft {

int cmd_bench(const BenchCommand& c) {
  use_device(c.device);
  if (c.what != "host") bench_interpreter();
  if (c.what != "interpreter") bench_host();
  return 0;
}

}  // namespace weft
