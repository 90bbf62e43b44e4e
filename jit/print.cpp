#include "jit/print.h"

#include <atomic>
#include <cstdio>

#include "jit/utf8.h"

namespace weft {
namespace {

// Of a whole character of UTF-8. U+0080..U+009F are the C1 controls; U+061C, U+200E, U+200F, U+202A..U+202E and U+2066..U+2069
// turn the direction of the text around them; U+2028 and U+2029 are line ends to some terminals.
bool harmful(std::string_view character) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return (byte(0) < 0x20 && character != "\n" && character != "\t") || byte(0) == 0x7f;
  if (character.size() == 2) return (byte(0) == 0xc2 && byte(1) < 0xa0) || character == "\xd8\x9c";
  if (character.size() != 3 || byte(0) != 0xe2) return false;
  const unsigned code = unsigned(byte(1) & 0x3f) << 6 | unsigned(byte(2) & 0x3f);  // above U+2000
  return code == 0x0e || code == 0x0f || (code >= 0x28 && code <= 0x2e) || (code >= 0x66 && code <= 0x69);
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    bool cut = false;
    const std::size_t length = utf8_length(text, cut);
    const std::string_view character = text.substr(0, length ? length : 1);
    if (length && !harmful(character)) {
      out += character;
    } else {
      for (const char c : character) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    text.remove_prefix(character.size());
  }
  return out;
}

namespace {
std::atomic<bool> muted{false};
}

void mute(bool on) { muted = on; }

void put_out(std::string_view text) {
  if (!muted) std::fwrite(text.data(), 1, text.size(), stdout);
}

void put_error(std::string_view text) {
  if (!muted) std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace weft
