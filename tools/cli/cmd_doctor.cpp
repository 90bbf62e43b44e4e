#include <fmt/format.h>

#include <algorithm>

#include "jit/print.h"
#include "tools/cli/commands.h"
#include "tools/system/doctor.h"

namespace weft {

int cmd_doctor() {
  const auto findings = examine_machine();
  std::size_t width = 0;
  for (const auto& [heading, finding] : findings) width = std::max(width, heading.size());
  for (const auto& [heading, finding] : findings) print("{:<{}}  {}\n", heading, width, finding);
  return 0;
}

}  // namespace weft
