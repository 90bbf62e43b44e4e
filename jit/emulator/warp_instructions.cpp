// What concerns several lanes: branches, barriers, shuffles, votes.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>

#include "jit/emulator/execute.h"
#include "jit/emulator/lanes.h"

namespace weft::emulator {
namespace {

// ---- branches ---------------------------------------------------------------------------------------------------------------

void branch(Warp& w, const Instruction& i, Mask lanes) { w.part(i.target, lanes); }

// brx.idx: each lane to the label that it names.
void branch_indexed(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint32_t> index(w, i.a);
  std::uint32_t targets[kLanes];
  for (Mask left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    if (index[lane] >= i.count)
      w.block.fault(w, i, lane, "an indexed branch out of its table", fmt::format("{} of {}", index[lane], i.count));
    targets[lane] = w.program.lists[i.list + index[lane]];
  }
  w.part(targets, lanes);
}
void leave(Warp& w, const Instruction&, Mask lanes) { w.exit(lanes); }
void trap(Warp& w, const Instruction& i, Mask lanes) {
  w.block.fault(w, i, std::countr_zero(lanes), "the kernel stopped itself (trap)");
}
void nothing(Warp&, const Instruction&, Mask) {}

// ---- barriers ---------------------------------------------------------------------------------------------------------------

// The lanes that execute an instruction for all of `needed`; 0 if some have yet to come.
Mask together(Warp& w, const Instruction& i, Mask needed) {
  if (!w.converge(needed, i)) return 0;
  return w.guarded(i, w.active());
}

std::uint32_t uniform(Warp& w, std::uint32_t place, Mask lanes) {
  return w.words<std::uint32_t>(place)[std::countr_zero(lanes)];
}

enum class Reduce : std::uint8_t { count, all, any };

// Number in a, threads in b (0: all); bit 0 of mode: waits; for bar.red, the vote in c and the result in d.
void barrier(Warp& w, const Instruction& i, Mask) {
  const Mask lanes = together(w, i, kAllLanes);
  if (!lanes) return;
  if (lanes != w.living())
    w.block.fault(w, i, std::countr_zero(w.living() & ~lanes), "a barrier that only a part of a warp executes",
                  fmt::format("lanes {:#x} of {:#x}", lanes, w.living()),
                  "no __syncthreads() in a branch that some threads do not take");
  const unsigned number = uniform(w, i.a, lanes), threads = i.b ? uniform(w, i.b, lanes) : 0;
  if (i.d) {
    const Mask votes = i.mode & 2 ? ~w.predicate(i.c) : w.predicate(i.c);
    w.block.vote(w, number, lanes, votes, i.d, i.count);
  }
  w.block.arrive(w, i, number, threads, i.mode & 1);
}
void barrier_warp(Warp& w, const Instruction& i, Mask lanes) {
  if (together(w, i, uniform(w, i.a, lanes))) w.block.shared_races().sync_warp(w.index);
}

// ---- exchange between lanes -------------------------------------------------------------------------------------------------

// As `together`, for the lanes of the member mask in `place`; each executing lane must be a member.
Mask members_together(Warp& w, const Instruction& i, std::uint32_t place, Mask lanes) {
  const Mask members = uniform(w, place, lanes);
  const Mask now = together(w, i, members);
  if (const Mask strangers = now & ~members)
    w.block.fault(w, i, std::countr_zero(strangers), "a lane executes a warp instruction whose member mask lacks it",
                  fmt::format("mask {:#010x}", members));
  return now;
}

enum class Shuffle : std::uint8_t { up, down, butterfly, index };

// shfl.sync d|p, a, b, c, members: lists[list] = members, lists[list + 1] = p
template <Shuffle how>
void shuffle(Warp& w, const Instruction& i, Mask lanes) {
  lanes = members_together(w, i, w.program.lists[i.list], lanes);
  if (!lanes) return;
  const Source<std::uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  std::uint32_t from[kLanes];
  Mask in_range = 0, bad = 0;
  for (int l = 0; l < kLanes; ++l) {
    const int segment = int(c[l] >> 8 & 31u), clamp = int(c[l] & 31u), step = int(b[l] & 31u);
    const int highest = (l & segment) | (clamp & ~segment), lowest = l & segment;
    int source = how == Shuffle::up          ? l - step
                 : how == Shuffle::down      ? l + step
                 : how == Shuffle::butterfly ? l ^ step
                                             : lowest | (step & ~segment);
    const bool valid = how == Shuffle::up ? source >= highest : source <= highest;
    if (!valid) source = l;
    in_range |= Mask(valid) << l;
    from[l] = std::uint32_t(source);
    bad |= Mask(!(lanes >> source & 1)) << l;
  }
  if (bad & lanes) {
    const int lane = std::countr_zero(bad & lanes);
    w.block.fault(w, i, lane, "a shuffle from a lane that does not execute it",
                  fmt::format("lane {} reads lane {}", lane, from[lane]));
  }
  std::uint32_t values[kLanes];
  for (int l = 0; l < kLanes; ++l) values[l] = a[l];
  if (i.d) write<std::uint32_t>(w, i.d, lanes, [&](int l) { return values[from[l]]; });
  if (const std::uint32_t p = w.program.lists[i.list + 1]) write_predicate(w, p, lanes, in_range);
}

enum class Vote : std::uint8_t { all, any, uniform, ballot };

// vote.sync d, p, members; bit 0 of mode: p is negated
template <Vote how>
void vote(Warp& w, const Instruction& i, Mask lanes) {
  lanes = members_together(w, i, i.b, lanes);
  if (!lanes) return;
  const Mask yes = (i.mode & 1 ? ~w.predicate(i.a) : w.predicate(i.a)) & lanes;
  if constexpr (how == Vote::ballot) {
    write<std::uint32_t>(w, i.d, lanes, [&](int) { return yes; });
  } else {
    const bool result = how == Vote::all ? yes == lanes : how == Vote::any ? yes != 0 : yes == 0 || yes == lanes;
    write_predicate(w, i.d, lanes, result ? kAllLanes : 0);
  }
}
template <class T, bool all>
void match(Warp& w, const Instruction& i, Mask lanes) {
  lanes = members_together(w, i, i.b, lanes);
  if (!lanes) return;
  const Source<T> a(w, i.a);
  std::uint32_t result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = lanes & gather_bits([&](int k) { return a[k] == a[l]; });
  const bool equal = result[std::countr_zero(lanes)] == lanes;
  if (i.d) write<std::uint32_t>(w, i.d, lanes, [&](int l) { return all ? (equal ? lanes : 0) : result[l]; });
  if (all && i.c) write_predicate(w, i.c, lanes, equal ? kAllLanes : 0);
}
template <class T>
void reduce(Warp& w, const Instruction& i, Mask lanes) {  // redux.sync
  lanes = members_together(w, i, i.b, lanes);
  if (!lanes) return;
  const Source<T> a(w, i.a);
  T total = a[std::countr_zero(lanes)];
  for (Mask left = lanes & (lanes - 1); left; left &= left - 1) {
    const T x = a[std::countr_zero(left)];
    const auto u = std::uint32_t(total), v = std::uint32_t(x);
    switch (i.mode) {
      case 0:
        total = T(u + v);
        break;
      case 1:
        total = std::min(total, x);
        break;
      case 2:
        total = std::max(total, x);
        break;
      case 3:
        total = T(u & v);
        break;
      case 4:
        total = T(u | v);
        break;
      default:
        total = T(u ^ v);
        break;
    }
  }
  write<T>(w, i.d, lanes, [&](int) { return total; });
}
void elect(Warp& w, const Instruction& i, Mask lanes) {
  lanes = members_together(w, i, i.b, lanes);
  if (!lanes) return;
  const int leader = std::countr_zero(lanes);
  if (i.d) write<std::uint32_t>(w, i.d, lanes, [&](int) { return std::uint32_t(leader); });
  write_predicate(w, i.c, lanes, Mask{1} << leader);
}
void active_mask(Warp& w, const Instruction& i, Mask lanes) {
  write<std::uint32_t>(w, i.d, lanes, [&](int) { return lanes; });
}

template <class T>
void clock(Warp& w, const Instruction& i, Mask lanes) {
  const auto now = std::uint64_t(std::chrono::steady_clock::now().time_since_epoch().count());
  write<T>(w, i.d, lanes, [&](int) { return T(now); });
}

// ---- decoding ---------------------------------------------------------------------------------------------------------------

bool decode_branch(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  if (p.words[0] == "bra") {
    i.run = branch;
    decoder.branch_to(p.operands.at(0).index);
    return true;
  }
  const auto& tables = decoder.function().branch_tables;
  const auto table = tables.find(p.operands.at(1).name);
  if (table == tables.end() || table->second.size() > 255) return false;
  i.count = std::uint8_t(table->second.size());
  i.list = decoder.labels(table->second);
  i.a = decoder.place(p.operands[0], 32);
  i.run = branch_indexed;
  return true;
}

bool decode_barrier(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  if (p.has("warp")) {
    i.run = barrier_warp, i.a = decoder.place(p.operands.at(0), 32);
    return true;
  }
  if (p.has("cluster")) return false;
  std::size_t next = 0;
  const std::size_t votes = p.has("red") ? 1 : 0;
  i.run = barrier, i.mode = !p.has("arrive");
  if (votes) {
    const Reduce how = p.has("popc") ? Reduce::count : p.has("and") ? Reduce::all : Reduce::any;
    i.count = std::uint8_t(how), i.d = decoder.place(p.operands.at(next++), how == Reduce::count ? 32 : 1);
    i.c = decoder.place(p.operands.back(), 1);
    if (p.operands.back().negated) i.mode |= 2;
  }
  i.a = decoder.place(p.operands.at(next++), 32);
  if (p.operands.size() > next + votes) i.b = decoder.place(p.operands[next], 32);
  return true;
}

bool decode_shuffle(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  if (!p.has("sync")) return false;
  const Operand& to = p.operands.at(0);
  const bool both = to.kind == Operand::list;
  const Operand& value = both ? to.parts.at(0) : to;
  i.d = value.kind == Operand::nothing ? 0 : decoder.place(value, 32);
  i.a = decoder.place(p.operands.at(1), 32), i.b = decoder.place(p.operands.at(2), 32),
  i.c = decoder.place(p.operands.at(3), 32);
  i.list = decoder.list({decoder.place(p.operands.at(4), 32), both ? decoder.place(to.parts.at(1), 1) : 0});
  i.run = p.has("up")     ? shuffle<Shuffle::up>
          : p.has("down") ? shuffle<Shuffle::down>
          : p.has("bfly") ? shuffle<Shuffle::butterfly>
                          : shuffle<Shuffle::index>;
  return true;
}

bool decode_vote(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  if (!p.has("sync")) return false;
  i.run = p.has("ballot") ? vote<Vote::ballot>
          : p.has("all")  ? vote<Vote::all>
          : p.has("any")  ? vote<Vote::any>
                          : vote<Vote::uniform>;
  i.d = decoder.place(p.operands.at(0), p.has("ballot") ? 32 : 1), i.a = decoder.place(p.operands.at(1), 1);
  i.mode = p.operands[1].negated, i.b = decoder.place(p.operands.at(2), 32);
  return true;
}

bool decode_match(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const bool all = p.has("all"), wide = p.has("b64");
  const Operand& to = p.operands.at(0);
  const bool both = to.kind == Operand::list;
  const Operand& value = both ? to.parts.at(0) : to;
  i.run = wide ? (all ? match<std::uint64_t, true> : match<std::uint64_t, false>)
               : (all ? match<std::uint32_t, true> : match<std::uint32_t, false>);
  i.d = value.kind == Operand::nothing ? 0 : decoder.place(value, 32);
  if (both) i.c = decoder.place(to.parts.at(1), 1);
  i.a = decoder.place(p.operands.at(1), wide ? 64 : 32), i.b = decoder.place(p.operands.at(2), 32);
  return true;
}

bool decode_reduce(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  constexpr std::string_view names[] = {"add", "min", "max", "and", "or", "xor"};
  const Type type = p.type();
  if (is_float(type)) return false;
  i.mode = std::uint8_t(std::find(names, names + 6, p.words.at(2)) - names);
  i.run = is_signed(type) ? reduce<std::int32_t> : reduce<std::uint32_t>;
  i.d = decoder.place(p.operands.at(0), 32), i.a = decoder.place(p.operands.at(1), 32),
  i.b = decoder.place(p.operands.at(2), 32);
  return i.mode < 6;
}

}  // namespace

bool decode_warp(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const std::string_view op = p.words[0];
  if (op == "bra" || op == "brx") return decode_branch(p, decoder, i);
  if (op == "bar" || op == "barrier") return decode_barrier(p, decoder, i);
  if (op == "shfl") return decode_shuffle(p, decoder, i);
  if (op == "vote") return decode_vote(p, decoder, i);
  if (op == "match") return decode_match(p, decoder, i);
  if (op == "redux") return decode_reduce(p, decoder, i);
  if (op == "exit") {
    i.run = leave;
  } else if (op == "trap") {
    i.run = trap;
  } else if (op == "brkpt" || op == "pmevent" || op == "setmaxnreg") {
    i.run = nothing;
  } else if (op == "activemask") {
    i.run = active_mask, i.d = decoder.place(p.operands.at(0), 32);
  } else if (op == "elect") {
    const Operand& to = p.operands.at(0);
    i.run = elect, i.d = to.parts.at(0).kind == Operand::nothing ? 0 : decoder.place(to.parts[0], 32);
    i.c = decoder.place(to.parts.at(1), 1), i.b = decoder.place(p.operands.at(1), 32);
  } else if (op == "mov" && p.operands.at(1).kind == Operand::special &&
             (p.operands[1].name.starts_with("%clock") || p.operands[1].name.starts_with("%globaltimer"))) {
    const bool wide = bits_of(p.type()) == 64;
    i.run = wide ? clock<std::uint64_t> : clock<std::uint32_t>;
    i.d = decoder.place(p.operands[0], wide ? 64 : 32);
  }
  return i.run;
}

}  // namespace weft::emulator
