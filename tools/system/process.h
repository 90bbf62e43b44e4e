// Running other programs.
#pragma once

#include <string>

namespace weft {

// What a shell command prints on its standard output; "" if it fails.
std::string output_of(const std::string& command);

}  // namespace weft
