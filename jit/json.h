// JSON from untrusted files: size, depth and duplicate keys are checked; bare Infinity and NaN, which Hugging Face
// configs contain, are accepted.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace weft {

inline constexpr std::size_t kMaxJsonBytes = 100'000'000;  // also the safetensors format's limit for its header
inline constexpr std::size_t kMaxJsonDepth = 64;

// `name` appears in errors, which are ErrorKind::io with line and column (in bytes, from 1). `line` is that of the text's
// beginning in its file.
nlohmann::json parse_json(std::string_view text, std::string_view name, std::size_t line = 1);
nlohmann::json read_json(const std::filesystem::path& file);
// As it is read: a NaN or Infinity too, which dump() makes null. Bytes of strings that are not UTF-8, for which dump() throws,
// become U+FFFD: names of files may have any.
std::string text_of(const nlohmann::json& value, int indent = -1);

// What is wrong, in its words, without the name that the library has for the kind of error.
// `error` is a nlohmann::json::exception.
std::string reason_of(const std::exception& error);

// The integer under a key of the object in `file`; what is none, or is beyond T, is ErrorKind::io. (nlohmann's get<T>()
// converts any number, and of 1e300 that is undefined.) A missing key is nlohmann::json::out_of_range.
template <std::integral T>  // std::int64_t, std::uint64_t
T integer_at(const nlohmann::json& object, const char* key, std::string_view file);

}  // namespace weft
