#include "tools/system/environment.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <span>

#include "autograd/run.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "tools/system/doctor.h"
#include "tools/version.h"

namespace weft {

using nlohmann::json;

json environment() {
  json all = {{"weft", kVersion}, {"device", name_of(device())}};
  const auto add = [&](const Findings& findings) {
    for (const auto& [heading, finding] : findings)
      if (!heading.empty()) all[heading] = finding;
  };
  static const Findings host = examine_host();
  add(host);
  if (is_gpu(device())) {  // opens libraries, which are large
    static const Findings gpu = examine_gpu();
    add(gpu);
  }
  return all;
}

std::vector<std::string> changes_since(const json& before) {
  const json now = environment();
  std::vector<std::string> changes;
  for (const auto& [heading, is] : now.items()) {
    const json was = before.value(heading, json("unknown"));
    if (was == is || heading == "threads" || (device() == Device::cuda && heading == "CPU")) continue;
    changes.push_back(fmt::format("{}: {}, now {}", heading, was.dump(), is.dump()));
  }
  return changes;
}

void record_start(const std::filesystem::path& run, const std::vector<std::string>& command, std::int64_t step) {
  const std::filesystem::path file = run / "environment.json";
  const std::string before = std::filesystem::exists(file) ? read_text(file, kMaxJsonBytes) : "[]";
  json starts = json::array();
  try {
    starts = parse_json(before, file.string());
  } catch (const Error&) {  // a record for people: what is damaged is begun anew
  }
  if (!starts.is_array() || step == 0) starts = json::array();
  starts.push_back({{"command", command},
                    {"after_step", step},
                    {"time", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
                    {"environment", environment()}});
  const std::string text = starts.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
  write_file(file, std::as_bytes(std::span(text)));
}

}  // namespace weft
