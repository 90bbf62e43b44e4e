#include "jit/emulator/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "jit/error.h"

namespace weft::emulator {
namespace {

constexpr std::size_t kPage = 4096, kGuard = 4096;

std::size_t pages(std::size_t bytes) { return (std::max<std::size_t>(bytes, 1) + kPage - 1) / kPage * kPage; }

// Backed by memory only where touched.
void* lazy_pages(std::size_t bytes, int protection) {
  void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail(ErrorKind::device, "emu: out of memory", fmt::format("{} bytes", bytes));
  return p;
}

// Shadow memory: what was written, and by which blocks.
constexpr std::size_t shadow_bytes(std::size_t bytes) { return bytes + bytes / 4 * sizeof(BlockEvents); }
std::uint8_t* shadow_of(std::size_t bytes) {
  return static_cast<std::uint8_t*>(lazy_pages(shadow_bytes(bytes), PROT_READ | PROT_WRITE));
}
BlockEvents* events_of(std::uint8_t* shadow, std::size_t bytes) { return reinterpret_cast<BlockEvents*>(shadow + bytes); }

}  // namespace

Memory& Memory::instance() {
  static Memory memory;
  return memory;
}

void Memory::insert(Allocation allocation) {
  allocations_[allocation.begin] = std::move(allocation);
  snapshot_.reset();
}

// An own mapping, with a page before and behind that belongs to nobody: host code that runs over the end crashes at
// once.
std::uint64_t Memory::allocate(std::size_t bytes) {
  const std::size_t size = pages(bytes);
  auto* base = static_cast<std::byte*>(lazy_pages(size + 2 * kGuard, PROT_NONE)) + kGuard;
  mprotect(base, size, PROT_READ | PROT_WRITE);
  std::uint8_t* shadow = shadow_of(size);
  const auto begin = std::uint64_t(base);
  std::lock_guard lock(mutex_);
  owned_[begin] = {begin, begin + size, shadow, events_of(shadow, size)};
  insert({begin, begin + bytes, shadow, events_of(shadow, size), {}});
  return begin;
}

void Memory::release(std::uint64_t address) {
  std::lock_guard lock(mutex_);
  auto found = owned_.find(address);
  if (found == owned_.end()) fail(ErrorKind::device, "emu: this address was not allocated", fmt::format("{:#x}", address));
  const Range range = found->second;
  munmap(reinterpret_cast<void*>(range.begin - kGuard), range.end - range.begin + 2 * kGuard);
  munmap(range.written, shadow_bytes(range.end - range.begin));
  owned_.erase(found);
  allocations_.erase(address);
  snapshot_.reset();
}

std::uint64_t Memory::reserve(std::size_t bytes, std::size_t alignment) {
  alignment = std::max(alignment, kPage);
  const auto raw = std::uint64_t(lazy_pages(bytes + alignment, PROT_NONE));
  const std::uint64_t begin = (raw + alignment - 1) / alignment * alignment;
  if (begin > raw) munmap(reinterpret_cast<void*>(raw), begin - raw);
  if (raw + alignment > begin) munmap(reinterpret_cast<void*>(begin + bytes), raw + alignment - begin);
  std::uint8_t* shadow = shadow_of(bytes);
  std::lock_guard lock(mutex_);
  reserved_[begin] = {begin, begin + bytes, shadow, events_of(shadow, bytes)};
  return begin;
}

void Memory::release_reserved(std::uint64_t address, std::size_t bytes) {
  std::lock_guard lock(mutex_);
  auto found = reserved_.find(address);
  if (found == reserved_.end()) fail(ErrorKind::device, "emu: this address was not reserved", fmt::format("{:#x}", address));
  munmap(reinterpret_cast<void*>(address), bytes);
  munmap(found->second.written, shadow_bytes(bytes));
  reserved_.erase(found);
}

void Memory::map(std::uint64_t address, std::size_t bytes) {
  std::lock_guard lock(mutex_);
  auto next = reserved_.upper_bound(address);
  if (next == reserved_.begin() || std::prev(next)->second.end < address + bytes)
    fail(ErrorKind::device, "emu: mapping outside of reserved addresses", fmt::format("{:#x}, {} bytes", address, bytes));
  const Range& range = std::prev(next)->second;
  mprotect(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE);
  Allocation mapped{
      address, address + bytes, range.written + (address - range.begin), range.events + (address - range.begin) / 4, {}};
  // Pieces that touch are one, so that an access may cross from one to the next.
  auto after = allocations_.lower_bound(address);
  if (after != allocations_.begin()) {
    auto before = std::prev(after);
    if (before->second.end == address && before->first >= range.begin) {
      before->second.end = mapped.end;
      snapshot_.reset();
      return;
    }
  }
  insert(std::move(mapped));
}

void Memory::unmap(std::uint64_t address, std::size_t bytes) {
  std::lock_guard lock(mutex_);
  auto next = allocations_.upper_bound(address);
  if (next == allocations_.begin()) fail(ErrorKind::device, "emu: nothing is mapped here", fmt::format("{:#x}", address));
  Allocation whole = std::prev(next)->second;
  if (whole.end < address + bytes)
    fail(ErrorKind::device, "emu: more is unmapped than was mapped", fmt::format("{} bytes", bytes));
  allocations_.erase(whole.begin);
  if (whole.begin < address) allocations_[whole.begin] = {whole.begin, address, whole.written, whole.events, whole.name};
  if (whole.end > address + bytes)
    allocations_[address + bytes] = {address + bytes, whole.end, whole.written + (address + bytes - whole.begin),
                                     whole.events + (address + bytes - whole.begin) / 4, whole.name};
  snapshot_.reset();
  void* p = reinterpret_cast<void*>(address);
  madvise(p, bytes, MADV_DONTNEED);
  mprotect(p, bytes, PROT_NONE);
  std::memset(whole.written + (address - whole.begin), 0, bytes);
}

void Memory::add(std::uint64_t begin, std::size_t bytes, std::string name) {
  std::lock_guard lock(mutex_);
  insert({begin, begin + bytes, nullptr, nullptr, std::move(name)});
}

void Memory::remove(std::uint64_t begin) {
  std::lock_guard lock(mutex_);
  allocations_.erase(begin);
  snapshot_.reset();
}

void Memory::name(std::uint64_t address, std::string name) {
  std::lock_guard lock(mutex_);
  if (auto found = allocations_.find(address); found != allocations_.end()) {
    found->second.name = std::move(name);
    snapshot_.reset();
  }
}

void Memory::mark_written(std::uint64_t begin, std::size_t bytes) {
  const Snapshot all = snapshot();
  if (const Allocation* a = find(*all, begin); a && a->written)
    std::memset(a->written + (begin - a->begin), 0xff, std::min<std::size_t>(bytes, a->end - begin));
}

void Memory::copy_written(std::uint64_t to, std::uint64_t from, std::size_t bytes) {
  const Snapshot all = snapshot();
  const Allocation *source = find(*all, from), *destination = find(*all, to);
  if (!source || !source->written || !destination || !destination->written) return mark_written(to, bytes);
  std::memmove(destination->written + (to - destination->begin), source->written + (from - source->begin), bytes);
}

std::uint64_t Memory::first_unwritten(std::uint64_t begin, std::size_t bytes) {
  const Snapshot all = snapshot();
  const Allocation* a = find(*all, begin);
  if (!a || !a->written) return 0;
  const void* zero = std::memchr(a->written + (begin - a->begin), 0, bytes);
  return zero ? begin + std::uint64_t(static_cast<const std::uint8_t*>(zero) - (a->written + (begin - a->begin))) : 0;
}

Memory::Snapshot Memory::snapshot() {
  std::lock_guard lock(mutex_);
  if (!snapshot_) {
    auto all = std::make_shared<std::vector<Allocation>>();
    all->reserve(allocations_.size());
    for (const auto& [begin, allocation] : allocations_) all->push_back(allocation);
    snapshot_ = std::move(all);
  }
  return snapshot_;
}

std::size_t Memory::used() {
  std::lock_guard lock(mutex_);
  std::size_t sum = 0;
  for (const auto& [begin, a] : allocations_) sum += a.written ? a.end - a.begin : 0;
  return sum;
}

const Allocation* find(const std::vector<Allocation>& allocations, std::uint64_t address) {
  auto after = std::upper_bound(allocations.begin(), allocations.end(), address,
                                [](std::uint64_t at, const Allocation& a) { return at < a.begin; });
  if (after == allocations.begin() || std::prev(after)->end <= address) return nullptr;
  return &*std::prev(after);
}

std::string describe(const std::vector<Allocation>& allocations, std::uint64_t address) {
  const auto text = [](const Allocation& a) {
    return fmt::format("{} {:#x} of {} bytes", a.name.empty() ? "allocation" : a.name, a.begin, a.end - a.begin);
  };
  auto after = std::upper_bound(allocations.begin(), allocations.end(), address,
                                [](std::uint64_t at, const Allocation& a) { return at < a.begin; });
  const Allocation* before = after == allocations.begin() ? nullptr : &*std::prev(after);
  if (before && address < before->end) return fmt::format("byte {} of {}", address - before->begin, text(*before));
  const bool nearer_behind = after != allocations.end() && (!before || after->begin - address < address - before->end);
  if (nearer_behind) return fmt::format("{} bytes before {}", after->begin - address, text(*after));
  if (before) return fmt::format("{} bytes past the end of {}", address - before->end, text(*before));
  return "nothing is allocated";
}

}  // namespace weft::emulator
