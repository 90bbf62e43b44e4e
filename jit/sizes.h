// Sizes that come from outside: products that are checked, and memory that is asked for before it is taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace weft {

// The product of sizes that are not negative; nothing of it is computed modulo 2^64. `what` names it in the error:
// checked_product("a batch", {batch, length}). Errors (ErrorKind::usage): a negative size, 2^63 or more.
std::int64_t checked_product(const std::string& what, std::initializer_list<std::int64_t> sizes);

// So many may call the BLAS at once: its buffers are counted.
inline constexpr int kMostThreads = 256;

// What this process can hold at most: the machine's memory with its swap, or less where a control group or a limit of the
// process (`ulimit -v`, `ulimit -d`) says so.
std::size_t host_memory();

// Errors (ErrorKind::device): more than host_memory(). So that what cannot fit is refused, instead of the system ending this or
// another process when the pages are touched.
void check_memory(std::size_t bytes, const std::string& what);

}  // namespace weft
