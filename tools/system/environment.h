// What a run computes with: recorded beside it, because equal bits take equal devices and libraries.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weft {

// The version of weft, the device in use, and what `weft doctor` finds out that matters for it, by heading.
nlohmann::json environment();

// A line for each difference from the environment of a checkpoint that may change bits: "BLAS: A, now B".
std::vector<std::string> changes_since(const nlohmann::json& before);

// Adds a start of a run to RUN/environment.json: its command line, the step after which it begins, and environment().
void record_start(const std::filesystem::path& run, const std::vector<std::string>& command, std::int64_t step);

}  // namespace weft
