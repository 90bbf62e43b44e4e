#include "tools/bench/host.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "jit/print.h"
#include "models/language_model.h"
#include "ops/ops.h"
#include "optim/adamw.h"
#include "tools/bench/time.h"

namespace weft {

HostCost measure_host_cost(std::int64_t layers, int runs) {
  constexpr std::int64_t kBatch = 1, kLength = 8;
  const auto model = model_family("mamba").from_options({{"width", 16}, {"layers", layers}, {"state", 4}}, {.size = 64}, {});
  AdamW optimizer(model->parameters());
  const std::vector<std::int64_t> ids(kBatch * kLength, 1);
  const Tensor inputs = Tensor::from(ids, {kBatch, kLength}), targets = Tensor::from(ids, {kBatch, kLength});
  const auto step = [&] {
    Tensor loss = cross_entropy((*model)(inputs), targets);
    backward(loss);
    optimizer.step();
    return loss;
  };
  std::vector<double> record, lookup;
  for (int i = 0; i < runs + 3; ++i) {
    run(step);
    if (i < 3 || !last_run().replayed) continue;
    record.push_back(last_run().record_seconds);
    lookup.push_back(last_run().lookup_seconds);
  }
  if (record.empty()) fail(ErrorKind::usage, "bench: the step was planned anew every time");
  return {last_run().nodes, last_run().kernels, median(record), median(lookup)};
}

void bench_host() {
  const HostCost cost = measure_host_cost();
  print("host time of a replayed training step, Mamba with 24 layers: {} nodes, {} kernels\n", cost.nodes, cost.kernels);
  print("  recording {:.1f} us, key and lookup {:.1f} us, together {:.1f} us\n", cost.record_seconds * 1e6,
        cost.lookup_seconds * 1e6, cost.total() * 1e6);
}

}  // namespace weft
