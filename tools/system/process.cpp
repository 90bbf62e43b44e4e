#include "tools/system/process.h"

#include <array>
#include <cstdio>

namespace weft {

std::string output_of(const std::string& command) {
  std::FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return {};
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), n);
  return pclose(pipe) == 0 ? text : std::string();
}

}  // namespace weft
