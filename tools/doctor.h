// What this machine has and what weft uses of it (`weft doctor`).
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace weft {

// Pairs of a heading and a finding, in the order to print.
std::vector<std::pair<std::string, std::string>> examine_machine();

}  // namespace weft
