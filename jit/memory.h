// Memory on the CPU device. One reserved range of addresses holds the values of whichever plan runs: addresses never move and
// memory is the largest plan's, not the sum. With WEFT_ARENA=split every value has an allocation of its own, so that address
// checkers see each overrun.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace weft {

// A reserved range; `grow` makes the first n bytes usable. Throws ErrorKind::device when memory is exhausted.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::byte* base() const { return base_; }
  std::size_t size() const { return size_; }
  void grow(std::size_t bytes);

 private:
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
};

// One allocation with alignment kAlignment; `what` names it in the error.
inline constexpr std::size_t kAlignment = 64;
std::byte* allocate(std::size_t bytes, const std::string& what);
void deallocate(std::byte* memory);

// A value to be placed: alive during kernels [first, last].
struct Lifetime {
  std::size_t bytes;
  int first, last;
  std::size_t offset = 0;  // result
};
// Gives each an offset such that no two that are alive together overlap; returns the total. Greedy by size.
std::size_t place(std::vector<Lifetime>& values);

}  // namespace weft
