// What this machine has and what weft uses of it (`weft doctor`).
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace weft {

// Pairs of a heading and a finding, in the order to print.
using Findings = std::vector<std::pair<std::string, std::string>>;

Findings examine_host();     // processor, compiler, threads, BLAS
Findings examine_gpu();      // driver, devices and CUDA libraries; opens them
Findings examine_machine();  // everything
// Between two GPUs: whether each reads the other's memory, and with atomics; the driver's rank of such links, 0 the fastest.
std::string describe_link(bool peers, bool atomics, int rank);

}  // namespace weft
