// What kernels did on the emulated device. The counts follow from text, launch and values alone, never from the threads
// of the host or its speed (kernels whose blocks wait for each other in loops excepted), so they can be held to a
// budget.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

struct EmulatedCounters {
  // Instructions of PTX: the assembler may make several of one, or none.
  enum Class : std::uint8_t {
    integer,     // arithmetic, logic and comparison
    floating,    // of any width
    special,     // roots, reciprocals, divisions and transcendental functions
    conversion,  // cvt
    matrix,      // mma
    global,      // loads, stores and atomics of global memory (and of generic addresses), cp.async
    shared,      // the same of shared memory, ldmatrix and stmatrix
    local,
    exchange,  // shuffles, votes
    barrier,   // barriers, fences, waits for copies
    branch,    // and exits
    other,     // moves, selections, parameters
    classes
  };
  static constexpr std::array<std::string_view, classes> kClassNames{"integer",  "floating", "special", "convert",
                                                                     "matrix",   "global",   "shared",  "local",
                                                                     "exchange", "barrier",  "branch",  "other"};

  std::uint64_t launches = 0;
  // Once for all lanes that are together, whether or not their predicates hold.
  std::array<std::uint64_t, classes> warp_instructions{};
  std::array<std::uint64_t, classes> thread_instructions{};  // of lanes whose predicate holds
  // Bytes that threads ask for; an atomic reads and writes.
  std::uint64_t global_read = 0, global_written = 0, shared_read = 0, shared_written = 0, local_read = 0, local_written = 0;
  std::uint64_t global_requests = 0;  // accesses of a warp
  std::uint64_t global_sectors = 0;   // different sectors of 32 bytes of each: 4 is the least for 32 lanes of 4 bytes
  // Passes over the 32 banks of shared memory, 4 bytes wide: one for each 128 bytes of a request (8 lanes of 16 bytes), and
  // more where lanes of it want different words of one bank (or, with an atomic, the same).
  std::uint64_t shared_wavefronts = 0;
  std::uint64_t bank_conflicts = 0;  // those of them that are more

  std::uint64_t warps() const;  // instructions of all classes
  std::uint64_t threads() const;
  void add(const EmulatedCounters& more);
  bool operator==(const EmulatedCounters&) const = default;
  // Every number with its name: "launches", "thread_instructions.floating", "global_read"...
  std::vector<std::pair<std::string, std::uint64_t>> named() const;
};

}  // namespace weft
