// UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace weft {

// The length in bytes of the character that `text` begins with; 0 if it does not begin with one. If `text` ends inside the
// character, `cut` is true and the result is 0.
std::size_t utf8_length(std::string_view text, bool& cut);

// The position of the first byte that belongs to no character; text.size() if there is none.
std::size_t utf8_error(std::string_view text);

// In text that is UTF-8, each character has exactly one byte for which this is false.
constexpr bool utf8_continues(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

}  // namespace weft
