// Launches: blocks of a grid spread over the threads of the host, the warps of a block taking turns on one of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "jit/emulator/memory.h"
#include "jit/emulator/program.h"
#include "jit/emulator/races.h"
#include "jit/emulator/warp.h"

namespace weft::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  std::uint64_t count() const { return std::uint64_t(x) * y * z; }
};

struct Launch {
  const Program* program = nullptr;
  Dim3 grid, block;
  std::uint32_t dynamic_shared = 0;   // bytes
  std::vector<std::byte> parameters;  // as the kernel sees them
};

// How often an instruction was executed: by warps, and by threads whose predicate held.
struct Executed {
  std::uint64_t warps = 0, threads = 0;
};
struct Counts {
  std::vector<Executed> executed;  // of each instruction of the program
  EmulatedCounters counters;
};

// Runs to the end. What a check finds is an Error (device) that names kernel, line of the PTX, block and thread; what ran
// before it is in `counts` too.
void execute(const Launch& launch, Counts& counts);

// Generic addresses: global memory is the host's, whose addresses are below these windows.
inline constexpr std::uint64_t kWindow = std::uint64_t(1) << 56, kSharedWindow = kWindow, kLocalWindow = 2 * kWindow;

// What a load or store of global memory found last time: most accesses of one instruction hit one allocation.
struct AccessSite {
  std::uint64_t begin = 1, end = 0;
  std::uint8_t* written = nullptr;  // of the address `begin`; null: not tracked
  BlockEvents* events = nullptr;
};

// One block after another, on one thread of the host.
class Block {
 public:
  Block(const Launch& launch, Memory::Snapshot memory, std::uint32_t launch_number);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void run(std::uint64_t index);

  // ---- for instructions -----------------------------------------------------------------------------------------------------
  const Launch& launch;
  std::byte* shared() { return shared_.data(); }
  std::uint8_t* shared_written() { return shared_written_.data(); }
  std::uint32_t shared_bytes() const { return std::uint32_t(shared_.size()); }
  std::byte* local(const Warp& warp, int lane) {
    return local_.data() + (std::size_t(warp.index) * kLanes + unsigned(lane)) * launch.program->local_bytes;
  }
  std::uint32_t launch_number() const { return launch_number_; }
  std::uint64_t linear_index() const { return linear_; }
  std::string block_name(std::uint64_t linear) const;  // "block (3, 0, 0)"
  void trust() { trusted_ = true; }                    // the block orders itself with others
  bool trusted() const { return trusted_; }
  SharedRaces& shared_races() { return shared_races_; }
  AccessSite& site(const Instruction& i) { return sites_[i.target]; }
  const std::vector<Allocation>& allocations() const { return *memory_; }
  // Of all blocks so far.
  Executed* executed() { return counts_.executed.data(); }
  EmulatedCounters& counters() { return counts_.counters; }
  const Counts& counts() const { return counts_; }
  [[noreturn]] void fault(const Warp& warp, const Instruction& i, int lane, const std::string& what,
                          const std::string& numbers = {}, const std::string& hint = {}) const;
  std::string thread_name(unsigned warp, int lane) const;  // "thread (3, 0, 0)"
  // A warp comes to a barrier that `threads` threads wait for (0: all of the block; CUDA lets none end before).
  void arrive(Warp& warp, const Instruction& i, unsigned barrier, unsigned threads, bool waits);
  // bar.red: the votes of all threads at the barrier, by lane of each warp; the result is given when the barrier opens.
  void vote(Warp& warp, unsigned barrier, Mask lanes, Mask votes, std::uint32_t place, int kind);

 private:
  struct Barrier {
    unsigned arrived = 0, expected = 0;  // threads
    Mask warps = 0;                      // that have arrived
    std::vector<unsigned> waiting;       // warps
    SharedRaces::Knowledge joined{};
    unsigned yes = 0, voters = 0;
    struct Result {
      unsigned warp;
      Mask lanes;
      std::uint32_t place;
      int kind;
    };
    std::vector<Result> results;
  };
  void write_constants(bool of_block);
  void open_barriers();
  void open(Barrier& barrier);
  [[noreturn]] void deadlock() const;

  Memory::Snapshot memory_;
  std::vector<std::byte> registers_, shared_, local_;
  std::vector<std::uint8_t> shared_written_;
  SharedRaces shared_races_;
  std::vector<AccessSite> sites_;
  Counts counts_;
  std::vector<Warp> warps_;
  std::vector<Warp::Stop> states_;
  std::array<Barrier, 16> barriers_;
  Dim3 index_;
  std::uint64_t linear_ = 0;
  std::uint32_t launch_number_;
  bool trusted_ = false;
};

}  // namespace weft::emulator
