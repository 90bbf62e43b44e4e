// What a step costs on the host besides its kernels.
#pragma once

#include <cstdint>

namespace weft {

struct HostCost {
  int nodes = 0, kernels = 0;
  double record_seconds = 0;  // medians over the runs, of known plans
  double lookup_seconds = 0;
  double total() const { return record_seconds + lookup_seconds; }
};

// A training step (forward, backward, AdamW) of a Mamba with many layers and little work.
HostCost measure_host_cost(std::int64_t layers = 24, int runs = 200);
void bench_host();         // prints it
void bench_interpreter();  // tools/bench/interp.cpp: the blocked interpreter against a plain loop
void bench_emulator();     // tools/bench/emulator.cpp: the emulated device

}  // namespace weft
