// Memory of the devices. One reserved range of addresses holds the values of whichever plan runs: addresses never move and
// memory is the largest plan's, not the sum. With WEFT_ARENA=split every value has an allocation of its own, so that address
// checkers see each overrun.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "jit/device.h"

namespace weft {

// Each block of a device an allocation of its own, of its exact size, so that checkers of addresses see an overrun
// (WEFT_ARENA=split); set before a device is used.
bool& split_memory();

inline std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Bytes on a device.
class Memory {
 public:
  // Not initialised. `what` names it in the error when memory is exhausted: on the CPU, when all blocks and arenas together are
  // more than host_memory(), before any memory is taken.
  Memory(Device device, std::size_t bytes, const std::string& what);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  Device device() const { return device_; }
  std::size_t size() const { return bytes_; }
  std::byte* data() const { return data_; }  // an address of the device
  // Between host and device, complete on return.
  void write(const void* from);
  void read(void* to) const;
  void fill(unsigned char value);
  // The bytes on the host: data() itself on the CPU, else a copy made once. For memory that is not written any more.
  const std::byte* host() const;

 private:
  Device device_;
  std::size_t bytes_;
  std::byte* data_;
  mutable std::unique_ptr<std::byte[]> host_;
};

// A reserved range; `grow` makes the first n bytes usable. Throws ErrorKind::device when memory is exhausted.
class Arena {
 public:
  explicit Arena(Device device = Device::cpu) : device_(device) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::byte* base() const { return base_; }
  std::size_t size() const { return size_; }
  void grow(std::size_t bytes);

 private:
  Device device_;
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
};

// One allocation on the CPU with alignment kAlignment; `what` names it in the error.
inline constexpr std::size_t kAlignment = 64;
std::byte* allocate(std::size_t bytes, const std::string& what);
void deallocate(std::byte* memory);

// A value to be placed: alive during kernels [first, last].
struct Lifetime {
  std::size_t bytes;
  int first, last;
  std::size_t offset = 0;  // result
};
// Gives each an offset such that no two that are alive together overlap; returns the total: greedy by size, or of many in the
// order of time. Offsets are multiples of kPlacement: what a GPU's vectors and matrices need.
inline constexpr std::size_t kPlacement = 256;
std::size_t place(std::vector<Lifetime>& values);

}  // namespace weft
