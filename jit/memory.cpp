#include "jit/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "jit/error.h"
#include "jit/gpu.h"

namespace weft {
namespace {
constexpr std::size_t kReserved = std::size_t(1) << 40;  // addresses, not memory
constexpr std::size_t kReservedOnGpu = std::size_t(1) << 36;
}  // namespace

bool& split_memory() {
  static bool split = false;
  return split;
}

Memory::Memory(Device device, std::size_t bytes, const std::string& what)
    : device_(device), bytes_(bytes), data_(is_gpu(device) ? Gpu::of(device).allocate(bytes, what) : allocate(bytes, what)) {}

Memory::~Memory() {
  if (!is_gpu(device_))
    deallocate(data_);
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
  if (base_ && !is_gpu(device_)) munmap(base_, kReserved);
}

void Arena::grow(std::size_t bytes) {
  if (bytes <= size_) return;
  if (is_gpu(device_)) {
    Gpu& gpu = Gpu::of(device_);
    if (!base_) base_ = gpu.reserve(std::max(gpu.total_memory(), kReservedOnGpu));
    const std::size_t size = round_up(bytes, gpu.granularity());
    gpu.extend(base_, size_, size, "the values of a step");
    size_ = size;
    return;
  }
  if (!base_) {
    void* range = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
      fail(ErrorKind::device, "memory: cannot reserve addresses for the arena", "1 TiB", "raise the limit of `ulimit -v`");
    base_ = static_cast<std::byte*>(range);
  }
  const std::size_t size = round_up(bytes, std::size_t(1) << 21);
  if (size > kReserved || mprotect(base_ + size_, size - size_, PROT_READ | PROT_WRITE) != 0)
    fail(ErrorKind::device, "memory: the step does not fit", std::to_string(bytes) + " bytes",
         "use a smaller batch or length, or checkpoint()");
  madvise(base_ + size_, size - size_, MADV_HUGEPAGE);  // fewer page faults; harmless where unsupported
  size_ = size;
}

std::byte* allocate(std::size_t bytes, const std::string& what) {
  void* memory = std::aligned_alloc(kAlignment, round_up(std::max<std::size_t>(bytes, 1), kAlignment));
  if (!memory)
    fail(ErrorKind::device, "memory: out of memory", what + ": " + std::to_string(bytes) + " bytes",
         "use a smaller model or batch");
  return static_cast<std::byte*>(memory);
}

void deallocate(std::byte* memory) { std::free(memory); }

std::size_t place(std::vector<Lifetime>& values) {
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
    value.offset = offset;
    total = std::max(total, offset + value.bytes);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), i, [&](auto a, auto b) { return values[a].offset < values[b].offset; }),
        i);
  }
  return total;
}

}  // namespace weft
