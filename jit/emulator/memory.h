// The memory of the emulated device: host memory whose addresses are the device's, with a registry of what is
// allocated. Each allocation has a shadow byte a byte, not 0 once it has been written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "jit/emulator/races.h"

namespace weft::emulator {

struct Allocation {
  std::uint64_t begin = 0, end = 0;  // addresses
  std::uint8_t* written = nullptr;   // a byte a byte; null: everything counts as written (memory of the host)
  BlockEvents* events = nullptr;     // of each four bytes; null with `written`
  std::string name;                  // for errors; "" is "allocation"
};

class Memory {
 public:
  static Memory& instance();

  std::uint64_t allocate(std::size_t bytes);  // zeroed by nobody: its bytes are garbage on purpose
  void release(std::uint64_t address);
  // Addresses without memory, and memory for a part of them (cuMemAddressReserve, cuMemMap).
  std::uint64_t reserve(std::size_t bytes, std::size_t alignment);
  void release_reserved(std::uint64_t address, std::size_t bytes);
  void map(std::uint64_t address, std::size_t bytes);
  void unmap(std::uint64_t address, std::size_t bytes);
  // Memory of somebody else, readable by kernels: page-locked host memory, tables of a module.
  void add(std::uint64_t begin, std::size_t bytes, std::string name);
  void remove(std::uint64_t begin);
  void name(std::uint64_t address, std::string name);  // of the allocation that begins there

  // Copies and fills tell what they wrote.
  void mark_written(std::uint64_t begin, std::size_t bytes);
  void copy_written(std::uint64_t to, std::uint64_t from, std::size_t bytes);  // as far as the source was written
  std::uint64_t first_unwritten(std::uint64_t begin, std::size_t bytes);       // 0: all are written

  // The allocations in order of address, as of now; kernels use a snapshot, so launching does not lock.
  using Snapshot = std::shared_ptr<const std::vector<Allocation>>;
  Snapshot snapshot();
  std::size_t used();

 private:
  void insert(Allocation allocation);
  std::mutex mutex_;
  std::map<std::uint64_t, Allocation> allocations_;  // by begin
  struct Range {
    std::uint64_t begin, end;
    std::uint8_t* written;
    BlockEvents* events;
  };
  std::map<std::uint64_t, Range> owned_, reserved_;  // by begin
  Snapshot snapshot_;                                // null: out of date
};

// The allocation of the snapshot that holds the address, or null.
const Allocation* find(const std::vector<Allocation>& allocations, std::uint64_t address);
// "7 bytes past the end of allocation 0x7f.. of 1024 bytes"
std::string describe(const std::vector<Allocation>& allocations, std::uint64_t address);

}  // namespace weft::emulator
