// `weft bench collectives`: how fast the ranks exchange memory.
#pragma once

#include <string>

namespace weft {

// Of the ranks that this process has joined, or of a group of one, on the device in use: all_reduce, broadcast, all_gather and
// reduce_scatter of sizes from a kilobyte on. Prints, on rank 0, the time of each, the bytes of the result a second, the bytes
// that a link carries a second (the "bus bandwidth" of nccl-tests, which does not depend on the number of ranks), and what NCCL
// itself expects. `file`: for the figures, "": none.
void bench_collectives(const std::string& file, bool smoke);

}  // namespace weft
