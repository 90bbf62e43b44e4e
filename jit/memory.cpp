#include "jit/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "jit/error.h"
#include "jit/gpu.h"
#include "jit/sizes.h"

namespace weft {
namespace {
constexpr std::size_t kReservedOnGpu = std::size_t(1) << 36;
constexpr std::size_t kMostBytes = std::size_t(1) << 62;  // sums of two do not wrap
constexpr std::size_t kHugePage = std::size_t(1) << 21;

std::size_t addresses_in_use() {  // pages, the first number
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * std::size_t(sysconf(_SC_PAGESIZE));
}

// Addresses of an arena, not memory: 1 TiB, or where they are limited (`ulimit -v`) a quarter of those that are left, so that
// other arenas, the weights and the libraries have room too.
std::size_t reserved_addresses() {
  static const std::size_t bytes = [] {
    rlimit limit{};
    const std::size_t usual = std::size_t(1) << 40;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return usual;
    const std::size_t left = limit.rlim_cur - std::min<std::size_t>(limit.rlim_cur, addresses_in_use());
    return std::min(usual, left / (16 * kHugePage) * 4 * kHugePage);
  }();
  return bytes;
}

// Of all blocks and arenas on the host, which as long as nobody writes into them take no memory: together they must fit.
std::atomic<std::size_t> promised{0};

bool promise(std::size_t bytes) {
  std::size_t before = promised;
  do
    if (before > host_memory() || bytes > host_memory() - before) return false;
  while (!promised.compare_exchange_weak(before, before + bytes));
  return true;
}

std::byte* promised_block(std::size_t bytes, const std::string& what) {
  if (!promise(bytes))
    fail(ErrorKind::device, "memory: out of memory",
         fmt::format("{}: {} bytes, with {} that are in use", what, bytes, promised.load()), "use a smaller model or batch");
  try {
    return allocate(bytes, what);
  } catch (...) {
    promised -= bytes;
    throw;
  }
}

// Sets large blocks to zero without taking memory for them.
void clear(std::byte* data, std::size_t bytes) {
  static const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
  const std::size_t head =
      round_up(std::size_t(reinterpret_cast<std::uintptr_t>(data)), page) - reinterpret_cast<std::uintptr_t>(data);
  const std::size_t pages = bytes < kHugePage ? 0 : (bytes - head) / page * page;
  if (pages == 0 || madvise(data + head, pages, MADV_DONTNEED) != 0) {  // locked memory
    std::memset(data, 0, bytes);
    return;
  }
  std::memset(data, 0, head);
  std::memset(data + head + pages, 0, bytes - head - pages);
}
}  // namespace

bool& split_memory() {
  static bool split = false;
  return split;
}

Memory::Memory(Device device, std::size_t bytes, const std::string& what)
    : device_(device),
      bytes_(bytes),
      data_(is_gpu(device) ? Gpu::of(device).allocate(bytes, what) : promised_block(bytes, what)) {}

Memory::~Memory() {
  if (!is_gpu(device_))
    deallocate(data_), promised -= bytes_;
  else if (Gpu* gpu = Gpu::opened(device_))
    gpu->free(data_);
}

void Memory::write(const void* from) {
  if (bytes_ == 0) return;
  if (is_gpu(device_))
    Gpu::of(device_).write(data_, from, bytes_);
  else
    std::memcpy(data_, from, bytes_);
}

void Memory::read(void* to) const {
  if (bytes_ == 0) return;
  if (is_gpu(device_))
    Gpu::of(device_).read(to, data_, bytes_);
  else
    std::memcpy(to, data_, bytes_);
}

void Memory::fill(unsigned char value) {
  if (bytes_ == 0) return;
  if (is_gpu(device_))
    Gpu::of(device_).fill(data_, value, bytes_);
  else if (value == 0)
    clear(data_, bytes_);
  else
    std::memset(data_, value, bytes_);
}

const std::byte* Memory::host() const {
  if (!is_gpu(device_)) return data_;
  if (!host_) {
    auto copy = std::unique_ptr<std::byte[]>(new std::byte[std::max<std::size_t>(bytes_, 1)]);
    read(copy.get());
    host_ = std::move(copy);
  }
  return host_.get();
}

Arena::~Arena() {
  if (base_ && !is_gpu(device_)) munmap(base_, reserved_addresses()), promised -= size_;
}

void Arena::grow(std::size_t bytes) {
  if (bytes <= size_) return;
  if (is_gpu(device_)) {
    Gpu& gpu = Gpu::of(device_);
    const std::size_t usual = std::max(gpu.total_memory(), kReservedOnGpu);
    // The emulated device's are the host's, and it keeps notes on each byte.
    if (!base_) base_ = gpu.reserve(gpu.emulated() ? std::min(usual, reserved_addresses() / 4) : usual);
    const std::size_t size = round_up(bytes, gpu.granularity());
    gpu.extend(base_, size_, size, "the values of a step");
    size_ = size;
    return;
  }
  if (!base_) {
    void* range = mmap(nullptr, reserved_addresses(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
      fail(ErrorKind::device, "memory: cannot reserve addresses for the values of a step",
           std::to_string(reserved_addresses()) + " bytes", "raise the limit of `ulimit -v`");
    base_ = static_cast<std::byte*>(range);
  }
  const std::size_t size = bytes < kMostBytes ? round_up(bytes, kHugePage) : bytes;
  const bool fits = bytes < kMostBytes && size <= reserved_addresses() && promise(size - size_);
  if (!fits || mprotect(base_ + size_, size - size_, PROT_READ | PROT_WRITE) != 0) {
    if (fits) promised -= size - size_;
    fail(ErrorKind::device, "memory: the step does not fit", std::to_string(bytes) + " bytes",
         "use a smaller batch or length, checkpoint(), or a higher limit of `ulimit -v`");
  }
  madvise(base_ + size_, size - size_, MADV_HUGEPAGE);  // fewer page faults; harmless where unsupported
  size_ = size;
}

std::byte* allocate(std::size_t bytes, const std::string& what) {
  // More than there is would be given too, and the process ended when it is touched.
  const bool possible = bytes <= host_memory();
  void* memory = possible ? std::aligned_alloc(kAlignment, round_up(std::max<std::size_t>(bytes, 1), kAlignment)) : nullptr;
  if (!memory)
    fail(ErrorKind::device, "memory: out of memory", what + ": " + std::to_string(bytes) + " bytes",
         "use a smaller model or batch");
  return static_cast<std::byte*>(memory);
}

void deallocate(std::byte* memory) { std::free(memory); }

namespace {

// Greedy by size: the tightest, in time that is quadratic in the number of values.
std::size_t place_by_size(std::vector<Lifetime>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return values[a].bytes > values[b].bytes; });
  std::size_t total = 0;
  std::vector<std::size_t> placed;  // by offset
  for (const std::size_t i : order) {
    Lifetime& value = values[i];
    std::size_t offset = 0;
    for (const std::size_t j : placed) {
      const Lifetime& other = values[j];
      if (other.last < value.first || value.last < other.first) continue;
      if (offset + value.bytes <= other.offset) break;
      offset = std::max(offset, round_up(other.offset + other.bytes, kPlacement));
    }
    if (value.bytes > kMostBytes || offset > kMostBytes)
      fail(ErrorKind::device, "memory: the step does not fit", "more than 2^62 bytes", "use a smaller batch or length");
    value.offset = offset;
    total = std::max(total, offset + value.bytes);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), i, [&](auto a, auto b) { return values[a].offset < values[b].offset; }),
        i);
  }
  return total;
}

// In the order of time: each takes the smallest gap that it fits into, and gives it back when its life ends.
class Gaps {
 public:
  std::size_t take(std::size_t bytes) {
    const auto gap = by_size_.lower_bound({bytes, 0});
    if (gap == by_size_.end()) {  // at the end, from where the last gap begins if it reaches there
      const auto last = by_offset_.empty() ? by_offset_.end() : std::prev(by_offset_.end());
      const bool open = last != by_offset_.end() && last->first + last->second == end_;
      const std::size_t offset = open ? last->first : end_;
      if (open) remove(last);
      end_ = offset + bytes;
      return offset;
    }
    const auto [size, offset] = *gap;
    remove(by_offset_.find(offset));
    if (size > bytes) add(offset + bytes, size - bytes);
    return offset;
  }
  void give(std::size_t offset, std::size_t bytes) {
    if (bytes == 0) return;
    const auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.end() && next->first == offset + bytes) bytes += next->second, remove(next);
    const auto after = by_offset_.lower_bound(offset);
    if (after != by_offset_.begin())
      if (const auto before = std::prev(after); before->first + before->second == offset)
        offset = before->first, bytes += before->second, remove(before);
    add(offset, bytes);
  }
  std::size_t end() const { return end_; }

 private:
  using Place = std::map<std::size_t, std::size_t>::iterator;
  void add(std::size_t offset, std::size_t size) { by_offset_.emplace(offset, size), by_size_.emplace(size, offset); }
  void remove(Place gap) { by_size_.erase({gap->second, gap->first}), by_offset_.erase(gap); }

  std::map<std::size_t, std::size_t> by_offset_;           // sizes
  std::set<std::pair<std::size_t, std::size_t>> by_size_;  // and offsets
  std::size_t end_ = 0;
};

std::size_t place_in_time(std::vector<Lifetime>& values) {
  std::vector<std::size_t> begins(values.size());
  std::iota(begins.begin(), begins.end(), std::size_t(0));
  std::vector<std::size_t> ends = begins;
  const auto earlier = [&](auto moment) {
    return [&values, moment](auto a, auto b) { return values[a].*moment < values[b].*moment; };
  };
  std::stable_sort(begins.begin(), begins.end(), earlier(&Lifetime::first));
  std::stable_sort(ends.begin(), ends.end(), earlier(&Lifetime::last));
  Gaps gaps;
  const auto size = [&](std::size_t i) { return round_up(values[i].bytes, kPlacement); };
  auto over = ends.begin();
  for (const std::size_t i : begins) {
    for (; over != ends.end() && values[*over].last < values[i].first; ++over) gaps.give(values[*over].offset, size(*over));
    values[i].offset = gaps.take(size(i));
  }
  return gaps.end();
}

}  // namespace

std::size_t place(std::vector<Lifetime>& values) {
  constexpr std::size_t kMany = 4096;  // from where the time that it takes counts for more than a few bytes
  return values.size() < kMany ? place_by_size(values) : place_in_time(values);
}

}  // namespace weft
