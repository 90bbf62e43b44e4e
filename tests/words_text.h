// A text with some structure, the same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace weft {

inline std::string words_text(std::size_t at_least) {
  std::string text;
  std::uint32_t state = 1;
  const char* const words[] = {"and ", "the ", "king ", "went ", "forth ", "into ", "a ", "land.\n"};
  while (text.size() < at_least) {
    state = state * 1664525u + 1013904223u;
    text += words[state >> 29];
  }
  return text;
}

}  // namespace weft
