// Work in a process of its own.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace weft {

struct Apart {
  std::optional<std::string> result;
  std::string complaint;  // if there is none: the exception, the last line on stderr, or how the process ended
};
// What `work` returns, where a library may end the process or crash it: it runs in a copy of this one, which nothing else of it
// outlives. It starts no threads, and uses no GPU.
Apart run_apart(const std::function<std::string()>& work);

}  // namespace weft
