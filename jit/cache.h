// Compiled kernels on disk. An entry is two files: <key> holds the machine code, <key>.cu the text it was made from.
//
// The folder is WEFT_CACHE, or $XDG_CACHE_HOME/weft, or ~/.cache/weft. It is private to the user, since code that is
// loaded from it runs: made with mode 0700, and not used if it belongs to somebody else or others may write to it. The same
// holds of each entry (mode 0600), since what others put into the folder once stays when their rights are taken away.
// Processes may share it: an entry is written under a temporary name and renamed. Trouble with it is said once on
// stderr and costs time only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "jit/compiler.h"

namespace weft {

// Key of a text and what it is compiled with: 32 hexadecimal digits.
std::string cache_key(std::string_view text);

// The entry, made by this version of NVRTC, or by any if `nvrtc` is 0. One that is damaged is removed, with a warning.
std::optional<Compiled> cache_load(const std::string& key, int nvrtc);
void cache_store(const std::string& key, const Compiled& compiled, int nvrtc, const std::string& source);

struct CacheState {
  std::string folder;
  std::string problem;  // why it is not used, or ""
  std::int64_t entries = 0, bytes = 0;
};
CacheState cache_state();  // makes nothing

}  // namespace weft
