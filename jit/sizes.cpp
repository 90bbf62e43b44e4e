#include "jit/sizes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>

#include "jit/error.h"

namespace weft {
namespace {

constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

// MemTotal and SwapTotal of /proc/meminfo; unlimited where there is none.
std::size_t machine_memory() {
  std::ifstream info("/proc/meminfo");
  std::size_t sum = 0;
  for (std::string word; info >> word;)
    if (std::size_t kilobytes = 0; (word == "MemTotal:" || word == "SwapTotal:") && info >> kilobytes) sum += kilobytes * 1024;
  return sum ? sum : kUnlimited;
}

// Of the control group, as a container sees its own: version 2, then version 1. "max" is no number.
std::size_t group_memory() {
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"})
    if (std::size_t bytes = 0; std::ifstream(file) >> bytes && bytes > 0) return bytes;
  return kUnlimited;
}

std::size_t process_limits() {  // what cannot be asked stays unlimited
  rlimit addresses{RLIM_INFINITY, RLIM_INFINITY}, data = addresses;
  getrlimit(RLIMIT_AS, &addresses);
  getrlimit(RLIMIT_DATA, &data);
  static_assert(RLIM_INFINITY == kUnlimited);
  return std::min(addresses.rlim_cur, data.rlim_cur);
}

}  // namespace

std::int64_t checked_product(const std::string& what, std::initializer_list<std::int64_t> sizes) {
  std::int64_t product = 1;
  for (const std::int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(product, size, &product))
      fail(ErrorKind::usage, what + (size < 0 ? ": a size is negative" : ": more than 64 bits can count"),
           fmt::format("{}", fmt::join(sizes, " x ")), "use smaller sizes");
  return product;
}

std::size_t host_memory() {
  static const std::size_t installed = std::min(machine_memory(), group_memory());
  return std::min(installed, process_limits());
}

void check_memory(std::size_t bytes, const std::string& what) {
  const std::size_t most = host_memory();
  if (bytes > most)
    fail(ErrorKind::device, "memory: more than this machine has", fmt::format("{}: {} bytes of {}", what, bytes, most),
         "use a smaller --batch, --length or --width");
}

}  // namespace weft
