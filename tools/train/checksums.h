// Whether files are those that were written: a checkpoint's state.json lists its other files with their sizes and checksums,
// and carries a checksum of itself.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weft {

// {"model.safetensors": {"bytes": n, "xxh3": "32 hexadecimal digits, XXH3-128"}, ...} of every regular file in the folder, and
// in those that it holds ("adapter/adapter_config.json"), but `except`.
nlohmann::json checksums_of(const std::filesystem::path& folder, const std::string& except);

// A line for each file of the list that is missing, has another size or other bytes.
std::vector<std::string> differences(const std::filesystem::path& folder, const nlohmann::json& checksums);

// Adds "checksum", of the object without it. has_seal() is true for what carries one; is_sealed() if it is the right one.
void seal(nlohmann::json& object);
bool has_seal(const nlohmann::json& object);
bool is_sealed(const nlohmann::json& object);

}  // namespace weft
