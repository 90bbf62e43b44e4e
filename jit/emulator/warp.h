// A warp: 32 lanes in lock step, one instruction at a time for all lanes that are at the same place of the program.
//
// Where lanes part, the warp keeps a path for each group and runs the one that is lowest in the program; paths that
// meet become one again. Compilers place the code after a branch behind its arms, so this reconverges where hardware
// does. An instruction that needs all lanes (a barrier, a shuffle) waits until the others have come.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "jit/emulator/program.h"

namespace weft::emulator {

class Block;

struct Path {
  std::uint32_t pc;
  Mask lanes;
};

class Warp {
 public:
  Warp(Block& of, const Program& what, unsigned number, std::byte* registers)
      : block(of), program(what), index(number), registers_(registers) {}

  void start(Mask lanes);  // of a block: at the first instruction
  // Until it waits at a barrier of the block, ends, or has run `budget` instructions.
  enum class Stop : std::uint8_t { none, barrier, end, budget };
  Stop run(int budget);

  template <class W>
  W* words(std::uint32_t place) {
    return reinterpret_cast<W*>(registers_ + place);
  }
  Mask& predicate(std::uint32_t place) { return *words<Mask>(place); }
  // Those of `lanes` for which the guard of the instruction holds.
  Mask guarded(const Instruction& i, Mask lanes) {
    return i.guard ? lanes & (i.guard_negated ? ~predicate(i.guard) : predicate(i.guard)) : lanes;
  }

  // ---- for instructions -----------------------------------------------------------------------------------------------------
  void jump(std::uint32_t target);                      // all active lanes
  void part(std::uint32_t target, Mask lanes);          // `lanes` go there, the other active ones go on
  void part(const std::uint32_t* targets, Mask lanes);  // each of `lanes` to its own target
  void exit(Mask lanes);
  void stop(Stop why) { stop_ = why; }
  // True if all living lanes of `needed` are at this instruction. Otherwise the others are run first, and this one
  // again later.
  bool converge(Mask needed, const Instruction& i);
  Mask active() const { return active_; }
  Mask living() const { return living_; }
  std::uint32_t pc() const { return pc_; }  // of the next instruction

  Block& block;
  const Program& program;
  const unsigned index;  // in the block
  Mask carry = 0;        // the condition code, a bit a lane
  // cp.async: the bytes arrive in shared memory when they are waited for, and no sooner: a missing wait shows.
  struct Copy {
    int lane;
    std::uint32_t group, to, bytes;  // to: in shared memory
    std::uint8_t data[16];
  };
  std::vector<Copy> copies;                        // oldest first
  std::array<std::uint32_t, kLanes> copy_group{};  // of each lane: groups that it has committed

 private:
  void choose();  // the lowest path
  void set_join() { join_ = paths_.empty() ? ~0u : paths_.back().pc; }
  void shelve(Path path);  // into paths_, in order

  std::byte* registers_;
  std::uint32_t pc_ = 0, join_ = ~0u;  // join_: where the active path meets the next one
  Mask active_ = 0, living_ = 0;
  std::vector<Path> paths_;    // besides the active one; the lowest last
  std::vector<Path> waiting_;  // for other lanes of the warp
  Stop stop_ = Stop::none;
};

}  // namespace weft::emulator
