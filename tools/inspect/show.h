// The forms in which `weft inspect` shows kernels.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "tools/inspect/kernel_table.h"

namespace weft {

std::string to_text(const KernelTable& table);  // for a terminal, 120 columns wide if names allow
// Launches, bytes and times by kind of kernel, beside what they would take at the device's peaks, and what the step takes
// besides.
std::string to_profile(const KernelTable& table);
nlohmann::json to_json(const KernelTable& table);
std::string to_html(const KernelTable& table);          // complete in itself
std::string to_trace(const KernelTable& table);         // Chrome and Perfetto; needs `seconds`
std::string to_why(const KernelView& view);             // call site and decisions
std::string to_text(const EmulatedCounters& counters);  // some lines, without what is zero
// A program for nvcc that launches the kernel on made-up values, with the arguments of the (first) launch, and times it.
std::string to_program(const KernelView& view, std::string_view target);
// The lines of two texts, those of one alone marked with - and +.
std::string line_difference(std::string_view a, std::string_view b);

}  // namespace weft
