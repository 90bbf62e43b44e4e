// Under what a run computes: recorded with it, because equal bits need equal devices and libraries.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weft {

// Version of weft, device in use, and what `weft doctor` finds of what matters for it, by heading.
nlohmann::json environment();

// Lines about what changes bits and differs from the environment of a checkpoint: "BLAS: A, now B".
std::vector<std::string> changes_since(const nlohmann::json& before);

// Adds one start of a run to RUN/environment.json: its command line, the step it begins behind, and environment().
void record_start(const std::filesystem::path& run, const std::vector<std::string>& command, std::int64_t step);

}  // namespace weft
