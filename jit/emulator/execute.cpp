#include "jit/emulator/execute.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>
#include <utility>

#include "jit/error.h"
#include "jit/parallel.h"

namespace weft::emulator {
namespace {

// Instructions a warp may run before the others have their turn: warps may wait for each other in loops.
constexpr int kTurn = 100'000;

Dim3 position(std::uint64_t linear, Dim3 extent) {
  return {unsigned(linear % extent.x), unsigned(linear / extent.x % extent.y), unsigned(linear / extent.x / extent.y)};
}

// The value of a special register that is the same during a block.
std::uint64_t special(const std::string& name, const Launch& launch, Dim3 index, unsigned warp, int lane) {
  const Dim3 thread = position(std::uint64_t(warp) * kLanes + unsigned(lane), launch.block);
  const auto part = [&](Dim3 v) { return name.back() == 'x' ? v.x : name.back() == 'y' ? v.y : v.z; };
  if (name.starts_with("%tid.")) return part(thread);
  if (name.starts_with("%ntid.")) return part(launch.block);
  if (name.starts_with("%ctaid.") || name.starts_with("%clusterid.")) return part(index);
  if (name.starts_with("%nctaid.") || name.starts_with("%nclusterid.")) return part(launch.grid);
  if (name.starts_with("%cluster_ctaid.") || name == "%cluster_ctarank") return 0;
  if (name.starts_with("%cluster_nctaid.") || name == "%cluster_nctarank") return 1;
  if (name == "%laneid") return unsigned(lane);
  if (name == "%warpid") return warp;
  if (name == "%nwarpid") return (launch.block.count() + kLanes - 1) / kLanes;
  if (name == "%lanemask_eq") return 1u << lane;
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return (2u << lane) - 1;
  if (name == "%lanemask_gt") return ~((2u << lane) - 1);
  if (name == "%lanemask_ge") return ~((1u << lane) - 1);
  if (name == "%dynamic_smem_size") return launch.dynamic_shared;
  if (name == "%total_smem_size") return launch.program->shared_bytes + launch.dynamic_shared;
  if (name == "%smid" || name == "%gridid") return 0;
  if (name == "%nsmid") return 1;
  fail(ErrorKind::device, "emu: a special register that it does not know: " + name, "kernel " + launch.program->name);
}

void add(Counts& sum, const Counts& more) {
  for (std::size_t k = 0; k < sum.executed.size(); ++k) {
    sum.executed[k].warps += more.executed[k].warps;
    sum.executed[k].threads += more.executed[k].threads;
  }
  sum.counters.add(more.counters);
}

unsigned warps_of(const Launch& launch) { return unsigned(launch.block.count() + kLanes - 1) / kLanes; }

}  // namespace

Block::Block(const Launch& what, Memory::Snapshot memory, std::uint32_t launch_number)
    : launch(what),
      memory_(std::move(memory)),
      shared_races_(what.program->shared_bytes + what.dynamic_shared, what.program->shared_granule, warps_of(what)),
      launch_number_(launch_number) {
  const Program& program = *launch.program;
  const unsigned warps = warps_of(launch);
  registers_.resize(program.register_bytes * warps + 64);
  std::byte* aligned = registers_.data() + (64 - std::uint64_t(registers_.data()) % 64) % 64;
  shared_.resize(program.shared_bytes + launch.dynamic_shared);
  shared_written_.resize(shared_.size());
  local_.resize(std::size_t(program.local_bytes) * warps * kLanes);
  sites_.resize(program.access_sites);
  counts_.executed.resize(program.instructions.size());
  warps_.reserve(warps), states_.resize(warps);
  for (unsigned w = 0; w < warps; ++w) warps_.emplace_back(*this, program, w, aligned + program.register_bytes * w);
  write_constants(false);
}

// Numbers and addresses are written once; special registers that depend on the block, before each.
void Block::write_constants(bool of_block) {
  for (const Constant& c : launch.program->constants) {
    const bool changes = c.kind == Constant::special && (c.name.starts_with("%ctaid") || c.name.starts_with("%clusterid"));
    if (changes != of_block) continue;
    for (Warp& warp : warps_)
      for (int lane = 0; lane < kLanes; ++lane) {
        const std::uint64_t value = c.kind == Constant::value        ? c.bits
                                    : c.kind == Constant::parameters ? std::uint64_t(launch.parameters.data()) + c.bits
                                                                     : special(c.name, launch, index_, warp.index, lane);
        if (c.wide)
          warp.words<std::uint64_t>(c.place)[lane] = value;
        else
          warp.words<std::uint32_t>(c.place)[lane] = std::uint32_t(value);
      }
  }
}

void Block::run(std::uint64_t index) {
  index_ = position(index, launch.grid);
  linear_ = index;
  trusted_ = false;
  write_constants(true);
  std::fill(shared_written_.begin(), shared_written_.end(), std::uint8_t{0});
  shared_races_.begin_block();
  for (Barrier& b : barriers_) b = {};
  const auto threads = unsigned(launch.block.count());
  for (Warp& warp : warps_) {
    const unsigned lanes = std::min(threads - warp.index * kLanes, unsigned(kLanes));
    warp.start(lanes == kLanes ? kAllLanes : (Mask{1} << lanes) - 1);
    states_[warp.index] = Warp::Stop::none;
  }
  for (bool living = true; living;) {
    bool moved = false;
    living = false;
    for (Warp& warp : warps_) {
      Warp::Stop& state = states_[warp.index];
      if (state == Warp::Stop::none || state == Warp::Stop::budget) {
        state = Warp::Stop::none;
        const Warp::Stop stop = warp.run(kTurn);
        if (stop != Warp::Stop::barrier) state = stop;  // a barrier that opened at once has set the state
        if (stop == Warp::Stop::end) open_barriers();
        moved = true;
      }
      living = living || state != Warp::Stop::end;
    }
    if (living && !moved) deadlock();
  }
}

void Block::arrive(Warp& warp, const Instruction& i, unsigned number, unsigned threads, bool waits) {
  if (number >= barriers_.size()) fault(warp, i, 0, fmt::format("barrier {} does not exist", number));
  Barrier& b = barriers_[number];
  if (b.arrived > 0 && b.expected != threads)
    fault(warp, i, 0, fmt::format("barrier {}: threads wait for different numbers of threads", number),
          fmt::format("{} and {}", b.expected, threads));
  if (b.warps >> warp.index & 1)
    fault(warp, i, 0, fmt::format("barrier {}: a warp comes again before all others have come", number), {},
          "let it wait for them, or take barriers in turn");
  b.warps |= Mask{1} << warp.index;
  b.expected = threads;
  b.arrived += threads == 0 ? unsigned(std::popcount(warp.living())) : kLanes;
  shared_races_.arrive(warp.index, b.joined);
  if (waits) {
    b.waiting.push_back(warp.index);
    states_[warp.index] = Warp::Stop::barrier;
    warp.stop(Warp::Stop::barrier);
  }
  open_barriers();
}

void Block::vote(Warp& warp, unsigned number, Mask lanes, Mask votes, std::uint32_t place, int kind) {
  Barrier& b = barriers_[number % barriers_.size()];
  b.yes += unsigned(std::popcount(votes & lanes));
  b.voters += unsigned(std::popcount(lanes));
  b.results.push_back({warp.index, lanes, place, kind});
}

void Block::open_barriers() {
  for (Barrier& b : barriers_)
    if (b.arrived > 0 && b.arrived >= (b.expected == 0 ? unsigned(launch.block.count()) : b.expected)) open(b);
}

void Block::open(Barrier& barrier) {
  for (unsigned w : barrier.waiting) {
    states_[w] = Warp::Stop::none;
    shared_races_.proceed(w, barrier.joined);
  }
  for (const Barrier::Result& r : barrier.results) {
    Warp& warp = warps_[r.warp];
    if (r.kind == 0) {  // popc
      for (int lane = 0; lane < kLanes; ++lane)
        if (r.lanes >> lane & 1) warp.words<std::uint32_t>(r.place)[lane] = barrier.yes;
    } else {
      const bool all = r.kind == 1 ? barrier.yes == barrier.voters : barrier.yes > 0;
      Mask& p = warp.predicate(r.place);
      p = (p & ~r.lanes) | (all ? r.lanes : 0);
    }
  }
  barrier = {};
}

void Block::deadlock() const {
  std::string numbers;
  const Warp* stuck = nullptr;
  for (std::size_t n = 0; n < barriers_.size(); ++n) {
    const Barrier& b = barriers_[n];
    if (b.arrived == 0) continue;
    const unsigned expected = b.expected ? b.expected : unsigned(launch.block.count());
    numbers += fmt::format("{}barrier {} has {} of {} threads", numbers.empty() ? "" : "; ", n, b.arrived, expected);
    if (!b.waiting.empty() && !stuck) stuck = &warps_[b.waiting[0]];
  }
  const Warp& warp = stuck ? *stuck : warps_[0];
  fault(warp, launch.program->instructions[warp.pc() - 1], 0, "a barrier that not all threads reach: the block waits for ever",
        numbers, "no __syncthreads() in a branch that some threads do not take");
}

std::string Block::block_name(std::uint64_t linear) const {
  const Dim3 b = position(linear, launch.grid);
  return fmt::format("block ({}, {}, {})", b.x, b.y, b.z);
}

std::string Block::thread_name(unsigned warp, int lane) const {
  const Dim3 t = position(std::uint64_t(warp) * kLanes + unsigned(lane), launch.block);
  return fmt::format("thread ({}, {}, {})", t.x, t.y, t.z);
}

void Block::fault(const Warp& warp, const Instruction& i, int lane, const std::string& what, const std::string& numbers,
                  const std::string& hint) const {
  const PtxInstruction& source = *i.source;
  std::string where = fmt::format("in kernel {}, PTX line {}: {}", launch.program->name, source.line, source.opcode);
  if (source.source_line) where += fmt::format(", source line {}", source.source_line);
  where += "\n" + block_name(linear_) + ", " + thread_name(warp.index, lane);
  throw Error(ErrorKind::device, {"emu: " + what, numbers, where, hint});
}

void execute(const Launch& launch, Counts& counts) {
  counts = {std::vector<Executed>(launch.program->instructions.size()), {}};
  const Memory::Snapshot memory = Memory::instance().snapshot();
  const std::uint64_t blocks = launch.grid.count();
  // Blocks start in order, so one that waits for an earlier block gets what it waits for.
  std::atomic<std::uint64_t> next{0};
  static std::atomic<std::uint32_t> launches{0};
  const std::uint32_t number = ++launches;
  std::mutex mutex;
  const auto workers = std::int64_t(std::min<std::uint64_t>(blocks, std::uint64_t(threads())));
  parallel(workers, [&](std::int64_t) {
    if (next.load() >= blocks) return;
    Block block(launch, memory, number);
    struct AddAtEnd {
      Counts& sum;
      const Counts& more;
      std::mutex& mutex;
      ~AddAtEnd() {
        const std::lock_guard lock(mutex);
        add(sum, more);
      }
    } const add_at_end{counts, block.counts(), mutex};
    for (std::uint64_t n; (n = next.fetch_add(1)) < blocks;) block.run(n);
  });
}

}  // namespace weft::emulator
