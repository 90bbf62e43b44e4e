#include "tools/train/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <span>
#include <string_view>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "tools/train/events.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kMetrics = "metrics.jsonl";
constexpr const char* kEvents = "events.out.tfevents.weft";

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

bool is_line(const json& line) {
  return line.is_object() && line.contains("step") && line["step"].is_number_integer() && line["step"] >= 0 &&
         line.contains("time") && line["time"].is_number();
}

// A step that no integer of weft holds is no line that was cut when it was written.
bool is_beyond_steps(const json& line) {
  return line.is_object() && line.contains("step") && line["step"].is_number() && line["step"].get<double>() >= 0x1p63;
}

// Every number of a line is a curve, by its name; one that is not finite is none, as in JSON.
std::string event_of(const json& line) {
  std::vector<std::pair<std::string, float>> scalars;
  for (const auto& [key, value] : line.items())
    if (key != "step" && key != "time" && value.is_number() && std::isfinite(value.get<double>()))
      scalars.emplace_back(key, value.get<float>());
  return scalar_event(line["time"], line["step"], scalars);
}

int open_to_append(const fs::path& file) {
  const int descriptor =
      retried([&] { return open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666); });
  if (descriptor < 0) fail_errno("cannot write " + file.string(), errno);
  return descriptor;
}

}  // namespace

Metrics read_metrics(const fs::path& run) {
  const fs::path file = run / kMetrics;
  const std::string text = read_text(file);
  Metrics metrics;
  std::size_t number = 0;
  for (const std::string_view line : lines_of(text)) {
    ++number;
    json object;
    try {
      object = parse_json(line, file.string());
    } catch (const Error&) {
    }
    if (is_beyond_steps(object))
      fail(ErrorKind::io, file.string() + ": a step is beyond 64 bits",
           fmt::format("line {}: {}", number, text_of(object["step"])), "remove the line");
    if (is_line(object))
      metrics.lines.push_back(std::move(object));
    else
      ++metrics.damaged;
  }
  return metrics;
}

MetricsLog::MetricsLog(const fs::path& run, std::int64_t step) {
  std::string text, events = first_event(now());
  if (fs::exists(run / kMetrics))
    for (const json& line : read_metrics(run).lines) {
      if (line["step"] > step) continue;
      text += line.dump() + "\n", events += event_of(line);
      if (line.contains("validation_loss")) validated_ = line["step"];
    }
  write_file(run / kMetrics, std::as_bytes(std::span(text)));
  write_file(run / kEvents, std::as_bytes(std::span(events)));
  lines_ = {run / kMetrics, open_to_append(run / kMetrics)};
  events_ = {run / kEvents, open_to_append(run / kEvents)};
}

MetricsLog::~MetricsLog() {
  close(lines_.descriptor);
  close(events_.descriptor);
}

void MetricsLog::add(json line) {
  line["time"] = now();
  const std::string text = line.dump() + "\n", event = event_of(line);
  write_all(lines_.descriptor, std::as_bytes(std::span(text)), lines_.name);
  write_all(events_.descriptor, std::as_bytes(std::span(event)), events_.name);
  if (line.contains("validation_loss")) validated_ = line["step"];
}

void MetricsLog::sync() {
  for (const File& file : {lines_, events_})
    if (retried([&] { return fsync(file.descriptor); }) != 0) fail_errno("cannot write " + file.name.string(), errno);
}

}  // namespace weft
