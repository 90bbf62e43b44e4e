// JSON from untrusted files: size, depth and duplicate keys are checked; bare Infinity and NaN, which Hugging Face
// configs contain, are accepted.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace weft {

inline constexpr std::size_t kMaxJsonBytes = 100'000'000;  // also the safetensors format's limit for its header
inline constexpr std::size_t kMaxJsonDepth = 64;

// `name` appears in errors, which are ErrorKind::io with line and column (in bytes, from 1). `line` is that of the text's
// beginning in its file.
nlohmann::json parse_json(std::string_view text, std::string_view name, std::size_t line = 1);
nlohmann::json read_json(const std::filesystem::path& file);

}  // namespace weft
