#include "tools/bench/mamba2_block.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/backward.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "jit/print.h"
#include "models/mamba2_block.h"
#include "ops/ops.h"
#include "tools/bench/time.h"

namespace weft {
namespace {

Mamba2BlockOptions block_options(bool say) { return {.width = 192, .state = 64, .say = say}; }

}  // namespace

BlockTiming time_mamba2_block(std::int64_t batch, std::int64_t frames, int runs) {
  BlockTiming row{.batch = batch, .frames = frames};
  seed(1);
  Mamba2Block block(block_options(false));
  const Tensor x = run([&] { return normal({batch, frames, 192}); });
  const auto step = [&] {
    return no_grad([&] {
      const Mamba2Block::Result result = block(x);
      return std::pair(result.output, result.states.ssm);
    });
  };
  const auto measure = [&](ScanPath path, int times) {
    block.use(path);
    const auto [y, state] = run(step);
    std::vector<double> values = y.to_host<double>();
    const std::vector<double> last = state.to_host<double>();
    values.insert(values.end(), last.begin(), last.end());
    const int before = std::max(1, times / 4);
    for (int i = 0; i < before; ++i) run(step);
    const double seconds = time_wall([&] {
      for (int i = 0; i < times; ++i) run(step);
    });
    return std::pair(seconds * 1e3 / times, std::move(values));
  };
  const auto [ms, values] = measure(ScanPath::fast, runs);
  const auto [loop_ms, expected] = measure(ScanPath::sequential, std::max(1, runs / 4));
  row.ms = ms, row.loop_ms = loop_ms;
  for (std::size_t i = 0; i < values.size(); ++i) row.difference = std::max(row.difference, std::abs(values[i] - expected[i]));
  seed(0);
  return row;
}

void bench_mamba2_block(bool smoke) {
  print("{}\n", Mamba2Block(block_options(false)).active_path());
  print("{:>16} {:>10} {:>12} {:>12} {:>9} {:>19}\n", "batch x frames", "ms", "frames/s", "loop ms", "speed-up",
        "largest difference");
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{1, 100}, {1, 400}, {2, 400}, {1, 800}};
  for (const auto& [batch, frames] : shapes) {
    const BlockTiming row = time_mamba2_block(batch, smoke ? frames / 50 : frames, smoke ? 4 : 20);
    print("{:>16} {:>10.3f} {:>12.0f} {:>12.2f} {:>8.1f}x {:>19.1e}\n", fmt::format("{} x {}", batch, row.frames), row.ms,
          row.frames_per_second(), row.loop_ms, row.speed_up(), row.difference);
  }
}

}  // namespace weft
