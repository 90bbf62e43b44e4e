// What a step costs on the host, apart from its kernels.
#pragma once

#include <cstdint>

namespace weft {

struct HostCost {
  int nodes = 0, kernels = 0;
  double record_seconds = 0;  // medians over the runs of a plan that is known
  double lookup_seconds = 0;
  double total() const { return record_seconds + lookup_seconds; }
};

// Of a training step (forward, backward, AdamW) of a Mamba with many layers and little work in each.
HostCost measure_host_cost(std::int64_t layers = 24, int runs = 200);
void bench_host();         // measures and prints it
void bench_interpreter();  // tools/bench/interp.cpp: the blocked interpreter against a plain loop
void bench_emulator();     // tools/bench/emulator.cpp: the emulated device

}  // namespace weft
