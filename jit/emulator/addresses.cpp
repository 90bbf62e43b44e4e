#include "jit/emulator/addresses.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "jit/emulator/traffic.h"

namespace weft::emulator {
namespace {

// The first active lane for which f holds, or -1.
template <class F>
int first_lane(Mask lanes, F f) {
  for (Mask left = lanes; left; left &= left - 1)
    if (const int lane = std::countr_zero(left); f(lane)) return lane;
  return -1;
}

bool all_set(const std::uint8_t* bytes, std::size_t n) {
  std::uint8_t all = 0xff;
  for (std::size_t k = 0; k < n; ++k) all &= bytes[k];
  return all == 0xff;
}

struct Span {
  std::uint64_t low, high;  // of the first bytes
  std::uint64_t mixed;      // or of all addresses
};
Span span_of(const std::uint64_t* a) {
  std::uint64_t low = a[0], high = a[0], mixed = 0;
  for (int l = 0; l < kLanes; ++l) low = std::min(low, a[l]), high = std::max(high, a[l]), mixed |= a[l];
  return {low, high, mixed};
}

const char* verb(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "write" : "atomic update";
}

[[noreturn]] void shared_race(Warp& w, const Instruction& i, int lane, SharedRaces::Event other) {
  const PtxInstruction& before = *w.program.instructions[SharedRaces::instruction(other)].source;
  std::string who =
      fmt::format("the other is {}, PTX line {}: {}", w.block.thread_name(SharedRaces::warp(other), SharedRaces::lane(other)),
                  before.line, before.opcode);
  if (before.source_line) who += fmt::format(", source line {}", before.source_line);
  w.block.fault(w, i, lane, "a race in shared memory: two threads access it and no barrier is between them", who,
                SharedRaces::warp(other) == w.index ? "__syncwarp() or __syncthreads() between the two"
                                                    : "__syncthreads() between the two");
}

[[noreturn]] void global_race(Warp& w, const Instruction& i, int lane, std::uint64_t address, std::uint64_t other) {
  w.block.fault(w, i, lane, "a race in global memory: two blocks of a launch access it and one writes",
                fmt::format("the other is {}; address {:#x}: {}", w.block.block_name(block_of(other)), address,
                            describe(w.block.allocations(), address)),
                "blocks run in any order: use two kernels, or atomics");
}

void check_aligned(const Warp& w, const Instruction& i, Mask lanes, const std::uint64_t* a, const Span& span, unsigned bytes) {
  if ((span.mixed & (bytes - 1)) == 0) return;
  const int lane = first_lane(lanes, [&](int l) { return a[l] & (bytes - 1); });
  w.block.fault(w, i, lane, "a misaligned address", fmt::format("address {:#x}, an access of {} bytes", a[lane], bytes));
}

[[noreturn]] void not_written(const Warp& w, const Instruction& i, int lane, const char* space, std::uint64_t address,
                              const std::string& owner) {
  w.block.fault(w, i, lane, fmt::format("read of {} memory that nobody has written", space),
                fmt::format("address {:#x}: {}", address, owner));
}

void note_block(Warp& w, const Instruction& i, int lane, const AccessSite& site, std::uint64_t address, unsigned bytes,
                Access access, Pointers& p) {
  bool same_value_allowed = false;
  Block& block = w.block;
  const std::uint64_t other = note_global(site.events, address - site.begin, bytes, access, block.launch_number(),
                                          block.linear_index(), same_value_allowed);
  if (!other || block.trusted()) return;
  if (!same_value_allowed) global_race(w, i, lane, address, other);
  p.rewriting |= Mask{1} << lane, p.global = true;
  p.rewritten[std::size_t(lane)] = other;
}

// Each lane by itself: allocations may differ.
void check_global_lanes(Warp& w, const Instruction& i, Mask lanes, const std::uint64_t* a, unsigned bytes, Access access,
                        Pointers& p) {
  const auto& all = w.block.allocations();
  const std::uint64_t parameters = std::uint64_t(w.block.launch.parameters.data());
  const std::uint64_t parameters_end = parameters + w.block.launch.parameters.size();
  for (Mask left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    AccessSite site;
    if (a[lane] >= parameters && a[lane] + bytes <= parameters_end && access == Access::read) {
      site = {parameters, parameters_end, nullptr, nullptr};
    } else if (const Allocation* found = find(all, a[lane]); found && a[lane] + bytes <= found->end) {
      site = {found->begin, found->end, found->written, found->events};
    } else {
      w.block.fault(w, i, lane, fmt::format("{} of {} bytes out of bounds", verb(access), bytes),
                    fmt::format("address {:#x}: {}", a[lane], describe(all, a[lane] + (found ? bytes - 1 : 0))));
    }
    if (site.written) {
      std::uint8_t* written = site.written + (a[lane] - site.begin);
      if (access == Access::write)
        std::memset(written, 0xff, bytes);
      else if (!all_set(written, bytes))
        not_written(w, i, lane, "global", a[lane], describe(all, a[lane]));
      note_block(w, i, lane, site, a[lane], bytes, access, p);
    }
    w.block.site(i) = site;
  }
}

void check_global(Warp& w, const Instruction& i, Mask lanes, const std::uint64_t* a, const Span& span, bool dense,
                  unsigned bytes, Access access, Pointers& p) {
  const AccessSite& site = w.block.site(i);
  if (span.low < site.begin || span.high + bytes > site.end) return check_global_lanes(w, i, lanes, a, bytes, access, p);
  if (!site.written) return;
  const auto shadow = [&](std::uint64_t address) { return site.written + (address - site.begin); };
  if (access == Access::write) {
    if (dense) {
      std::memset(shadow(span.low), 0xff, kLanes * bytes);
    } else {
      for (Mask left = lanes; left; left &= left - 1) std::memset(shadow(a[std::countr_zero(left)]), 0xff, bytes);
    }
  } else if (span.high - span.low > kLanes * bytes || !all_set(shadow(span.low), span.high - span.low + bytes)) {
    const int lane = first_lane(lanes, [&](int l) { return !all_set(shadow(a[l]), bytes); });
    if (lane >= 0) not_written(w, i, lane, "global", a[lane], describe(w.block.allocations(), a[lane]));
  }
  if (w.block.launch.grid.count() == 1) return;
  if (dense && bytes % 4 == 0) {
    BlockEvents* events = site.events + (span.low - site.begin) / 4;
    bool noted = true;
    for (unsigned n = 0; n < bytes / 4 && noted; ++n)
      noted = note_global_words<kLanes>(events + n * kLanes, access, w.block.launch_number(), w.block.linear_index());
    if (noted) return;
  }
  for (Mask left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    note_block(w, i, lane, site, a[lane], bytes, access, p);
  }
}

void check_shared(Warp& w, const Instruction& i, Mask lanes, const std::uint64_t* a, const Span& span, bool dense,
                  unsigned bytes, Access access, Pointers& p) {
  Block& block = w.block;
  if (span.high + bytes > block.shared_bytes() || span.high + bytes < bytes) {
    const int lane = first_lane(lanes, [&](int l) { return a[l] + bytes > block.shared_bytes() || a[l] + bytes < bytes; });
    block.fault(w, i, lane, fmt::format("{} of {} bytes out of bounds of shared memory", verb(access), bytes),
                fmt::format("address {:#x}; the block has {} bytes", a[lane], block.shared_bytes()));
  }
  std::uint8_t* written = block.shared_written();
  if (access == Access::write && dense) {
    std::memset(written + span.low, 0xff, kLanes * bytes);
  } else if (access == Access::write) {
    for (Mask left = lanes; left; left &= left - 1) std::memset(written + a[std::countr_zero(left)], 0xff, bytes);
  } else if (!dense || !all_set(written + span.low, kLanes * bytes)) {
    const int lane = first_lane(lanes, [&](int l) { return !all_set(written + a[l], bytes); });
    if (lane >= 0) not_written(w, i, lane, "shared", a[lane], "shared memory");
  }
  const auto number = std::uint32_t(&i - w.program.instructions.data());
  for (Mask left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    bool same_value_allowed = false;
    const auto other =
        block.shared_races().note(w.index, lane, number, std::uint32_t(a[lane]), bytes, access, same_value_allowed);
    if (!other) continue;
    if (!same_value_allowed) shared_race(w, i, lane, other);
    p.rewriting |= Mask{1} << lane;
    p.rewritten[std::size_t(lane)] = other;
  }
}

void count_bytes(Access access, std::uint64_t bytes, std::uint64_t& read, std::uint64_t& written) {
  if (access != Access::write) read += bytes;
  if (access != Access::read) written += bytes;
}

void count_global(Warp& w, Mask lanes, const std::uint64_t* a, bool dense, unsigned bytes, Access access) {
  const Launch& launch = w.block.launch;
  if (a[0] - std::uint64_t(launch.parameters.data()) < launch.parameters.size()) return;
  EmulatedCounters& c = w.block.counters();
  count_bytes(access, bytes * unsigned(std::popcount(lanes)), c.global_read, c.global_written);
  ++c.global_requests;
  c.global_sectors += dense ? (a[0] + kLanes * bytes - 1) / kSector - a[0] / kSector + 1 : sectors(a);
}

// Neighbouring words of shared memory: no bank twice.
void count_dense(Warp& w, unsigned bytes, Access access) {
  EmulatedCounters& c = w.block.counters();
  count_bytes(access, bytes * kLanes, c.shared_read, c.shared_written);
  c.shared_wavefronts += std::max(1u, bytes * kLanes / kBankRow);
}

void merge_rewriting(Pointers& p, const Pointers& more) {
  for (Mask left = more.rewriting; left; left &= left - 1)
    p.rewritten[std::size_t(std::countr_zero(left))] = more.rewritten[std::size_t(std::countr_zero(left))];
  p.rewriting |= more.rewriting, p.global |= more.global;
}

void check_local(Warp& w, const Instruction& i, Mask lanes, const std::uint64_t* a, const Span& span, unsigned bytes,
                 Access access) {
  const std::uint32_t size = w.program.local_bytes;
  if (span.high + bytes <= size && span.high + bytes >= bytes) return;
  const int lane = first_lane(lanes, [&](int l) { return a[l] + bytes > size || a[l] + bytes < bytes; });
  w.block.fault(w, i, lane, fmt::format("{} of {} bytes out of bounds of local memory", verb(access), bytes),
                fmt::format("address {:#x}; a thread has {} bytes", a[lane], size));
}

}  // namespace

void count_shared(Warp& w, Mask lanes, const std::uint64_t* a, unsigned bytes, Access access) {
  EmulatedCounters& c = w.block.counters();
  count_bytes(access, bytes * unsigned(std::popcount(lanes)), c.shared_read, c.shared_written);
  const Wavefronts passes = wavefronts(lanes, a, bytes, access == Access::update);
  c.shared_wavefronts += passes.taken, c.bank_conflicts += passes.taken - passes.least;
}

void check_rewriting(Warp& w, const Instruction& i, const Pointers& p, int lane, std::size_t offset, const void* value,
                     std::size_t bytes) {
  if (!(p.rewriting >> lane & 1) || std::memcmp(p.at[std::size_t(lane)] + offset, value, bytes) == 0) return;
  const std::uint64_t other = p.rewritten[std::size_t(lane)];
  if (p.global) global_race(w, i, lane, std::uint64_t(p.at[std::size_t(lane)]), other);
  shared_race(w, i, lane, other);
}

Pointers resolve(Warp& w, const Instruction& i, Mask lanes, Space space, const std::uint64_t* addresses, unsigned bytes,
                 Access access, bool counted) {
  std::uint64_t a[kLanes];
  const std::uint64_t some = addresses[std::countr_zero(lanes)];
  for (int l = 0; l < kLanes; ++l) a[l] = lanes >> l & 1 ? addresses[l] : some;
  if (space == Space::generic && some >= kWindow) {
    // All lanes of one space, or one by one.
    const std::uint64_t window = some / kWindow * kWindow;
    const Mask same = [&] {
      Mask m = 0;
      for (int l = 0; l < kLanes; ++l) m |= Mask(a[l] / kWindow * kWindow == window) << l;
      return m & lanes;
    }();
    space = window == kSharedWindow ? Space::shared : Space::local;
    if (window > kLocalWindow) space = Space::generic;  // out of bounds, as it will be found
    if (same != lanes) {
      Pointers mixed = resolve(w, i, same, Space::generic, addresses, bytes, access, counted);
      const Pointers rest = resolve(w, i, lanes & ~same, Space::generic, addresses, bytes, access, counted);
      for (int l = 0; l < kLanes; ++l)
        if (!(same >> l & 1)) mixed.at[l] = rest.at[l];
      mixed.dense = false;
      merge_rewriting(mixed, rest);
      return mixed;
    }
    if (space != Space::generic)
      for (std::uint64_t& address : a) address -= window;
  }
  Span span = span_of(a);
  if (space == Space::generic && some < kWindow && span.high >= kWindow) {
    Mask low = 0;
    for (int l = 0; l < kLanes; ++l) low |= Mask(a[l] < kWindow) << l;
    Pointers mixed = resolve(w, i, lanes & low, Space::generic, addresses, bytes, access, counted);
    const Pointers rest = resolve(w, i, lanes & ~low, Space::generic, addresses, bytes, access, counted);
    for (int l = 0; l < kLanes; ++l)
      if (!(low >> l & 1)) mixed.at[l] = rest.at[l];
    mixed.dense = false;
    merge_rewriting(mixed, rest);
    return mixed;
  }
  check_aligned(w, i, lanes, a, span, bytes);
  Pointers p;
  bool dense = lanes == kAllLanes;
  for (int l = 0; l < kLanes; ++l) dense &= a[l] == a[0] + unsigned(l) * bytes;
  p.dense = dense && space != Space::local;
  if (space == Space::shared) {
    check_shared(w, i, lanes, a, span, dense, bytes, access, p);
    if (counted && dense)
      count_dense(w, bytes, access);
    else if (counted)
      count_shared(w, lanes, a, bytes, access);
    for (int l = 0; l < kLanes; ++l) p.at[l] = w.block.shared() + a[l];
  } else if (space == Space::local) {
    check_local(w, i, lanes, a, span, bytes, access);
    EmulatedCounters& c = w.block.counters();
    count_bytes(access, bytes * unsigned(std::popcount(lanes)), c.local_read, c.local_written);
    for (int l = 0; l < kLanes; ++l) p.at[l] = w.block.local(w, l) + a[l];
  } else {
    if (access == Access::update || (i.mode & kStrong)) w.block.trust();
    check_global(w, i, lanes, a, span, dense, bytes, access, p);
    count_global(w, lanes, a, dense, bytes, access);
    for (int l = 0; l < kLanes; ++l) p.at[l] = reinterpret_cast<std::byte*>(a[l]);
  }
  return p;
}

}  // namespace weft::emulator
