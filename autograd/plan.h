// Plans: what a recording becomes once it has been scheduled. A plan is found again by the bytes of the recording (its key),
// so a step that is recorded again runs at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "autograd/lowering.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "autograd/tape.h"
#include "jit/memory.h"
#include "jit/ranks/collectives.h"

namespace weft {

using CudaKernelPointer = std::shared_ptr<const CudaKernel>;

struct PlannedKernel {
  // A function on the CPU; on a GPU a kernel, a product of cuBLASLt or a collective of NCCL. What depends on the kind visits it
  // (by_kind), so that the compiler names the places which a new kind concerns.
  std::variant<Kernel, CudaKernelPointer, GemmCall, CollectiveCall> work;
  KernelRecord record;
  std::string where;             // call site and frames, for errors
  std::vector<Operand> outputs;  // what WEFT_CHECK=nan looks at
  bool writes_state = false;
  // Of a collective: the first later kernel that touches what it reads or writes; on a GPU it runs beside those before that.
  int join = -1;
};

// std::visit(by_kind{[](const Kernel&) {...}, ...}, kernel.work)
template <class... F>
struct by_kind : F... {
  using F::operator()...;
};
template <class... F>
by_kind(F...) -> by_kind<F...>;

// A memory slot: where its bytes come from.
struct Slot {
  enum Kind : std::uint8_t { arena, state, twin, input, result } kind = arena;
  std::size_t bytes = 0;
  int index = 0;              // of Tape::states (state, twin), Tape::bound or the results
  int first = -1, last = -1;  // kernels between which an arena value lives
  std::size_t offset = 0;     // in the arena
  std::string name;           // "layers.0.mixer: matmul"
  std::string where;          // its call site
};

class GpuPlan;

struct Plan {
  Plan();
  ~Plan();
  std::vector<PlannedKernel> kernels;
  std::vector<Slot> slots;
  std::vector<Out> results;  // what the step returns
  // Copies that make the twins which the plan reads equal to their States: run before it when one is stale.
  std::unique_ptr<Plan> twins;
  std::vector<int> written;   // States, by their position, that it writes
  std::vector<int> outdated;  // States, by their position, that it writes without writing their twins
  std::uint64_t hash = 0;     // plan_hash of what it was made from
  std::string collective;     // the first op of it that all ranks do together, with its place; empty: there is none
  std::size_t arena_bytes = 0;
  std::vector<std::byte*> addresses;  // of each slot
  std::vector<int> moving;            // slots bound at every run: inputs and results
  std::unique_ptr<GpuPlan> gpu;       // on a GPU: how it is launched
  std::size_t bytes() const;          // that it takes itself, about; not its values
};

// A hash of all that a plan depends on which is equal in two processes that record the same step, whatever they have recorded
// before: ops and Expressions count by what they are, States by their names, shapes and the order in which the step meets them.
// (Keys of PlanCache are valid in one process, but compared in no time.)
std::uint64_t plan_hash(const Tape& tape, const std::vector<NodeId>& results, const Target& target);

// Finds or makes the plan of `tape`, executes it and returns the results' values.
std::vector<Tensor> execute(Tape& tape, const std::vector<NodeId>& results);

// WEFT_ARENA=split: values with an allocation of their own, made before their first kernel and freed after their last.
class SplitMemory {
 public:
  SplitMemory(Plan& plan, Device device) : plan_(plan), device_(device), values_(plan.slots.size()) {}
  ~SplitMemory();
  void before(int kernel);
  void after(int kernel);

 private:
  void drop(std::size_t slot);
  Plan& plan_;
  Device device_;
  std::vector<std::unique_ptr<Memory>> values_;  // by slot
};

// The error of a kernel, with its place if it has none and what else there is to say.
Error at_kernel(const PlannedKernel& kernel, const Error& error, std::string_view more = {});

// An error naming the kernel's op if one of its outputs holds a non-finite value.
void check_finite(const Plan& plan, const PlannedKernel& kernel, Device where);

class PlanCache {
 public:
  // The plan with this key, or null. Keys are compared by all their bytes.
  Plan* find(const Tape& tape, const std::vector<NodeId>& results);
  Plan* insert(const Tape& tape, const std::vector<NodeId>& results, std::unique_ptr<Plan> plan);
  std::size_t size() const { return entries_.size(); }
  std::size_t bytes() const { return bytes_; }
  void clear();
  Arena& io() { return io_[std::size_t(device())]; }
  Arena& arena() { return arenas_[std::size_t(device())]; }

 private:
  struct Key {
    std::vector<Node> nodes;
    std::vector<NodeId> inputs, results;
    std::vector<std::int64_t> ints;
    std::vector<std::uint64_t> states;
    std::uint8_t switches;
    Target target;
    bool matches(const Tape& tape, const std::vector<NodeId>& wanted) const;
    std::size_t bytes() const;
  };
  struct Entry {
    std::uint64_t hash;
    Key key;
    std::unique_ptr<Plan> plan;
    std::size_t bytes;  // of both
  };
  void drop_last();
  void note_miss(const Tape& tape);  // names an integer that changes every step

  std::list<Entry> entries_;  // most recent first; the last ones go when all have more than Settings::plan_bytes
  std::size_t bytes_ = 0;     // of all
  std::unordered_multimap<std::uint64_t, std::list<Entry>::iterator> index_;
  Arena io_[3] = {Arena(Device::cpu), Arena(Device::cuda), Arena(Device::emu)};
  Arena arenas_[3] = {Arena(Device::cpu), Arena(Device::cuda), Arena(Device::emu)};
  std::uint64_t hash_ = 0;                 // of the last find
  std::vector<std::int64_t> missed_ints_;  // of the last miss
  std::vector<Node> missed_nodes_;
  std::size_t missed_at_ = 0;
  int misses_ = 0;
};

}  // namespace weft
