#include "jit/device_errors.h"

#include <fmt/format.h>

#include "jit/error.h"

namespace weft {

void throw_device_error(DeviceError code, std::int64_t value, std::int64_t limit, std::int64_t position) {
  constexpr const char* kLost = "; what the step computed is lost: load a checkpoint if it had updated states";
  switch (code) {
    case DeviceError::embedding_id:
      fail(ErrorKind::usage, "embedding: id out of range",
           fmt::format("id {} at element {}, vocabulary {}", value, position, limit),
           fmt::format("ids are in [0, {}); is the vocabulary that of the tokenizer?{}", limit, kLost));
    case DeviceError::cross_entropy_label:
      fail(ErrorKind::usage, "cross_entropy: label out of range",
           fmt::format("label {} at element {}, vocabulary {}", value, position, limit),
           fmt::format("labels are in [0, {}), or ignore_index; is the vocabulary that of the tokenizer?{}", limit, kLost));
    case DeviceError::subscript:
      fail(ErrorKind::usage, "a subscript in a hole is outside of its tensor",
           fmt::format("subscript {} of axis {}, which has {} places", value, position, limit),
           fmt::format("clamp the subscript, or give the tensor more places{}", kLost));
    case DeviceError::segment_falls:
      fail(ErrorKind::usage, "segments: an id is less than the one before it",
           fmt::format("{} after {} at element {}", value, limit, position),
           fmt::format("ids of packed documents rise{}", kLost));
    case DeviceError::none:
      break;
  }
  fail(ErrorKind::device, "a kernel raised an unknown error", fmt::format("code {}, value {}", std::uint64_t(code), value));
}

}  // namespace weft
