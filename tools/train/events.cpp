#include "tools/train/events.h"

#include <array>
#include <cstring>

namespace weft {
namespace {

template <class T>
void put_raw(std::string& out, T value) {  // little-endian, as the machine is
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

// Protobuf: a key is field << 3 | wire type; numbers are varints.
enum Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(char(value | 0x80));
  out.push_back(char(value));
}
void put_key(std::string& out, int field, Wire wire) { put_varint(out, std::uint64_t(field << 3 | wire)); }
void put_bytes(std::string& out, int field, std::string_view value) {
  put_key(out, field, Wire::bytes);
  put_varint(out, value.size());
  out += value;
}

std::uint32_t masked_crc(std::string_view text) {
  const std::uint32_t crc = crc32c(text);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

std::string record(std::string_view message) {
  std::string out;
  put_raw(out, std::uint64_t(message.size()));
  put_raw(out, masked_crc(out));
  out += message;
  put_raw(out, masked_crc(message));
  return out;
}

// Event: 1 wall_time, 2 step, 3 file_version, 5 summary.
std::string event(double time) {
  std::string out;
  put_key(out, 1, Wire::fixed64);
  put_raw(out, time);
  return out;
}

constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);  // Castagnoli's polynomial, reflected
    table[i] = crc;
  }
  return table;
}();

}  // namespace

std::uint32_t crc32c(std::string_view text) {
  std::uint32_t crc = ~0u;
  for (const char c : text) crc = crc >> 8 ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 255];
  return ~crc;
}

std::string first_event(double time) {
  std::string out = event(time);
  put_bytes(out, 3, "brain.Event:2");
  return record(out);
}

std::string scalar_event(double time, std::int64_t step, const std::vector<std::pair<std::string, float>>& scalars) {
  std::string summary;  // Summary: 1 value, repeated; Value: 1 tag, 2 simple_value
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_key(value, 2, Wire::fixed32);
    put_raw(value, number);
    put_bytes(summary, 1, value);
  }
  std::string out = event(time);
  put_key(out, 2, Wire::varint);
  put_varint(out, std::uint64_t(step));
  put_bytes(out, 5, summary);
  return record(out);
}

}  // namespace weft
