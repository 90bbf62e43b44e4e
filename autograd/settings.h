// Switches read from the environment once, and changed by tests.
//   WEFT_FUSE=0           every op its own kernel
//   WEFT_ARENA=split      every value its own allocation, freed when its life ends
//   WEFT_CHECK=nan        names the first op that makes a non-finite value
//   WEFT_LOG=plan,why,kernels   what to print on stderr
#pragma once

#include <string_view>

namespace weft {

struct Settings {
  bool fuse = true;
  bool split_arena = false;
  bool check_nan = false;
  bool log_plan = false, log_why = false, log_kernels = false;
};

// Unknown words in a variable are a usage error with a suggestion.
Settings& settings();
Settings read_settings();  // from the environment, afresh

}  // namespace weft
