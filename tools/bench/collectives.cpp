#include "tools/bench/collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "autograd/run.h"
#include "jit/file.h"
#include "jit/gpu.h"
#include "jit/memory.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"

namespace weft {
namespace {

// Seconds of one of `repeats` calls behind each other, after one that is not counted.
double time_collective(const CollectiveCall& call, Collectives& by, std::byte* const* slots, int repeats) {
  const auto go = [&](int times) {
    for (int k = 0; k < times; ++k) {
      if (is_gpu(device()))
        Gpu::of(device()).collective(call, slots, by);
      else
        by.run(call, slots[0], slots[1], nullptr);
    }
  };
  go(1);
  if (is_gpu(device())) return Gpu::of(device()).timed([&] { go(repeats); }) / repeats;
  const auto start = std::chrono::steady_clock::now();
  go(repeats);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

}  // namespace

void bench_collectives(const std::string& file, bool smoke) {
  Ranks* const ranks = Ranks::joined();
  if (!ranks)
    fail(ErrorKind::usage, "bench: collectives need ranks", {},
         "weft bench collectives --gpus N, or mpirun -n N weft bench collectives --device cpu");
  Collectives& by = ranks->collectives(device());
  const std::int64_t most = smoke ? 1 << 14 : is_gpu(device()) ? std::int64_t(1) << 28 : std::int64_t(1) << 24;  // bytes
  const auto n = std::int64_t(ranks->size());
  Memory from(device(), std::size_t(most * n), "what is sent"), to(device(), std::size_t(most * n), "what is received");
  from.fill(0), to.fill(0);
  std::byte* const slots[] = {from.data(), to.data()};
  print("# {} ranks over {}\n{:<15} {:>12} {:>11} {:>9} {:>9} {:>12}\n", n, by.name(), "", "bytes", "us", "GB/s", "bus GB/s",
        "NCCL's us");
  nlohmann::json rows = nlohmann::json::array();
  for (const CollectiveKind kind :
       {CollectiveKind::all_reduce, CollectiveKind::broadcast, CollectiveKind::all_gather, CollectiveKind::reduce_scatter})
    for (std::int64_t bytes = 1 << 10; bytes <= most; bytes *= 4) {
      CollectiveCall call;
      call.kind = kind, call.ranks = int(n), call.from_slot = 0, call.to_slot = 1;
      call.count = bytes / 4 / (kind == CollectiveKind::all_gather || kind == CollectiveKind::reduce_scatter ? n : 1);
      if (call.count == 0) continue;
      const int repeats = smoke ? 2 : bytes < (1 << 20) ? 50 : 20;
      const double seconds = time_collective(call, by, slots, repeats), expected = by.expected_seconds(call);
      const double whole = double(std::max(call.from_bytes(), call.to_bytes()));
      print("{:<15} {:>12.0f} {:>11.1f} {:>9.2f} {:>9.2f} {:>12}\n", name_of(kind), whole, seconds * 1e6, whole / seconds / 1e9,
            call.bus_bytes() / seconds / 1e9, expected > 0 ? fmt::format("{:.1f}", expected * 1e6) : "-");
      rows.push_back({{"collective", name_of(kind)},
                      {"bytes", whole},
                      {"ranks", n},
                      {"us", seconds * 1e6},
                      {"bus_gbps", call.bus_bytes() / seconds / 1e9},
                      {"expected_us", expected * 1e6}});
    }
  if (file.empty() || ranks->rank() != 0) return;
  const std::string text = nlohmann::json{{"over", by.name()}, {"rows", std::move(rows)}}.dump(1) + "\n";
  write_file(file, std::as_bytes(std::span(text)));
}

}  // namespace weft
