#include "jit/device.h"

#include <charconv>
#include <string>

#include "jit/error.h"

namespace weft {

std::string_view name_of(Device device) { return device == Device::cpu ? "cpu" : device == Device::cuda ? "cuda" : "emu"; }

Target target_for(std::string_view architecture) {
  const std::string_view number = architecture.substr(architecture.find('_') + 1);
  int capability = 0;
  const char* end = std::from_chars(number.data(), number.data() + number.size(), capability).ptr;
  const std::string_view rest(end, std::size_t(number.data() + number.size() - end));
  const bool named = architecture.starts_with("sm_") || architecture.starts_with("compute_");
  if (!named || capability < 80 || (!rest.empty() && rest != "a"))
    fail(ErrorKind::usage, "no architecture: '" + std::string(architecture) + "'", {}, "name it as NVRTC does: sm_80, sm_90a");
  return {Device::cuda, capability, rest == "a"};
}

}  // namespace weft
