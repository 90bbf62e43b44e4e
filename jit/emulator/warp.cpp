#include "jit/emulator/warp.h"

#include <algorithm>
#include <bit>

#include "jit/emulator/execute.h"

namespace weft::emulator {

void Warp::start(Mask lanes) {
  pc_ = 0, active_ = living_ = lanes, carry = 0;
  paths_.clear(), waiting_.clear(), copies.clear();
  copy_group.fill(0);
  join_ = ~0u;
}

Warp::Stop Warp::run(int budget) {
  stop_ = Stop::none;
  const Instruction* program_begin = program.instructions.data();
  Executed* executed = block.executed();
  while (stop_ == Stop::none) {
    if (pc_ == join_) {
      active_ |= paths_.back().lanes;
      paths_.pop_back();
      set_join();
    }
    Executed& count = executed[pc_];
    const Instruction& i = program_begin[pc_++];
    const Mask lanes = guarded(i, active_);
    ++count.warps, count.threads += unsigned(std::popcount(lanes));
    if (lanes) i.run(*this, i, lanes);
    if (--budget == 0 && stop_ == Stop::none) stop_ = Stop::budget;
  }
  return stop_;
}

void Warp::shelve(Path path) {
  for (Path& p : paths_)
    if (p.pc == path.pc) {
      p.lanes |= path.lanes;
      return;
    }
  auto at = std::find_if(paths_.begin(), paths_.end(), [&](const Path& p) { return p.pc < path.pc; });
  paths_.insert(at, path);
}

void Warp::choose() {
  pc_ = paths_.back().pc, active_ = paths_.back().lanes;
  paths_.pop_back();
  set_join();
}

void Warp::jump(std::uint32_t target) {
  pc_ = target;
  if (target <= join_) return;
  shelve({pc_, active_});
  choose();
}

void Warp::part(std::uint32_t target, Mask lanes) {
  if (lanes == active_) return jump(target);
  shelve({target, lanes});
  shelve({pc_, active_ & ~lanes});
  choose();
}

void Warp::part(const std::uint32_t* targets, Mask lanes) {
  if (const Mask others = active_ & ~lanes) shelve({pc_, others});
  while (lanes) {
    const std::uint32_t target = targets[std::countr_zero(lanes)];
    Mask same = 0;
    for (Mask left = lanes; left; left &= left - 1)
      if (const int lane = std::countr_zero(left); targets[lane] == target) same |= Mask{1} << lane;
    shelve({target, same});
    lanes &= ~same;
  }
  choose();
}

void Warp::exit(Mask lanes) {
  living_ &= ~lanes;
  active_ &= ~lanes;
  if (active_) return;
  if (paths_.empty() && !waiting_.empty()) paths_.swap(waiting_);  // they look again who is missing
  std::sort(paths_.begin(), paths_.end(), [](const Path& a, const Path& b) { return a.pc > b.pc; });
  if (paths_.empty()) {
    stop_ = Stop::end;
  } else {
    choose();
  }
}

bool Warp::converge(Mask needed, const Instruction& i) {
  const std::uint32_t here = pc_ - 1;
  Executed& count = block.executed()[here];  // as if all lanes had come together
  for (auto path = waiting_.begin(); path != waiting_.end(); ++path)
    if (path->pc == here) {
      active_ |= path->lanes;
      count.threads += unsigned(std::popcount(guarded(i, path->lanes)));
      waiting_.erase(path);
      break;
    }
  needed &= living_;
  if ((needed & ~active_) == 0) return true;
  if (paths_.empty()) {
    // Nobody is left to come: the missing lanes wait elsewhere.
    const Mask missing = needed & ~active_;
    std::string where;
    for (const Path& p : waiting_)
      if (p.lanes & missing) where = "line " + std::to_string(program.instructions[p.pc].source->line);
    block.fault(*this, i, std::countr_zero(missing), "the lanes of a warp wait for each other at different places",
                "this thread waits at " + where, "let all threads of the warp reach the same barrier or shuffle");
  }
  --count.warps, count.threads -= unsigned(std::popcount(guarded(i, active_)));
  waiting_.push_back({here, active_});
  choose();
  return false;
}

}  // namespace weft::emulator
