// TensorBoard's event files. A record is a length, its masked CRC-32C, a protobuf message, and its masked CRC-32C:
// https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/lib/io/record_writer.h, .../util/event.proto
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

std::uint32_t crc32c(std::string_view bytes);

// The record that a file begins with. `time` in seconds since 1970.
std::string first_event(double time);
// The values of one step, by tag.
std::string scalar_event(double time, std::int64_t step, const std::vector<std::pair<std::string, float>>& scalars);

}  // namespace weft
