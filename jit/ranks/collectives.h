// What the ranks compute together: sums and copies of memory that each of them has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "jit/device.h"
#include "jit/driver.h"
#include "jit/dtype.h"

namespace weft {

class Ranks;

enum class CollectiveKind : std::uint8_t { all_reduce, broadcast, all_gather, reduce_scatter };
std::string_view name_of(CollectiveKind kind);

// One of them in a plan. With n ranks the memory is
//   all_reduce      count -> count: the sum of all
//   broadcast       count -> count: that of `root`
//   all_gather      count -> n count: those of all, in their order
//   reduce_scatter  n count -> count: of the sum, the part of each
// in dense elements; from and to are the same memory or do not overlap.
struct CollectiveCall {
  CollectiveKind kind = CollectiveKind::all_reduce;
  DType dtype = DType::f32;
  std::int64_t count = 0;
  int root = 0, ranks = 1;
  int from_slot = -1, to_slot = -1;
  std::int64_t from_offset = 0, to_offset = 0;  // elements

  std::size_t from_bytes() const;
  std::size_t to_bytes() const;
  // That a link carries, by the ring algorithm: what "bus bandwidth" counts.
  double bus_bytes() const;
};
std::string to_string(const CollectiveCall& call);  // "all_reduce of 1048576 f32 over 2 ranks"

// Carries them, in one order on all ranks. Sums are made in one order too: equal input gives equal bits, on all ranks.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual std::string name() const = 0;  // "NCCL 2.27.7"
  // On a GPU in the order of the stream, and part of the graph that is captured; on the host at once.
  virtual void run(const CollectiveCall& call, const std::byte* from, std::byte* to, cu::CUstream stream) = 0;
  virtual double expected_seconds(const CollectiveCall&) { return 0; }  // as the library estimates; 0: it does not say
};

// NCCL between GPUs; between CPUs and emulated GPUs Open MPI, or nothing for a group of one. Errors (ErrorKind::device,
// usage): the library is missing, processes on CPUs that mpirun did not start.
std::unique_ptr<Collectives> make_collectives(Ranks& ranks, Device device);

}  // namespace weft
