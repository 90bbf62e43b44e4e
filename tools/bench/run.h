// `weft bench`: measures groups of ops and writes the figures.
#pragma once

#include <string>
#include <vector>

namespace weft {

struct BenchOptions {
  std::vector<std::string> groups = {};  // none: on a GPU those that measure kernels, else "interpreter", "emulator" and "host"
  std::string json = {};                 // where the figures go, "": nowhere; an existing file is merged into
  std::vector<std::string> against = {};  // JSON files of peers to compare with
  double budget_ms = 300;                 // for timing one row
  double step_seconds = 30;               // for timing one training step of a whole model
  double row_timeout = 120;               // s, after which a row is abandoned
  double deadline = 1e9;                  // s, after which no further row is started
  bool quick = false;                     // fewer repeats: a fifth of both
  bool smoke = false;                     // tiny shapes, to check the benchmark itself
  bool list = false;                      // print the rows without measuring
};

// "interpreter", "emulator", "host" (tools/bench/host.h), "mamba2block" (tools/bench/mamba2_block.h) and those of
// tools/bench/cases.h.
std::vector<std::string> all_bench_groups();

// On the device in use. A row that fails becomes a row that says so. Errors: unknown groups (usage), files (io).
void run_bench(const BenchOptions& options);

}  // namespace weft
