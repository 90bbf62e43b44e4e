// What a run has measured: RUN/metrics.jsonl, and the same for TensorBoard.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace weft {

// One object a line, in the order of the steps: "step" and "time" (seconds since 1970), and "loss", "grad_norm", "lr",
// "tokens_per_second" or "validation_loss", "bits_per_character". A number that is not finite is null.
struct Metrics {
  std::vector<nlohmann::json> lines;
  std::int64_t damaged = 0;  // lines that are not such objects, and are left out: a killed process may leave one
};
// Those in a run's folder. Errors (ErrorKind::io): no such file, a step of 2^63 or more.
Metrics read_metrics(const std::filesystem::path& run);

// Appends to both files. Each line is one write, so a killed process leaves whole lines.
class MetricsLog {
 public:
  // Drops what comes after `step`, so that the files are as if training had not been interrupted.
  MetricsLog(const std::filesystem::path& run, std::int64_t step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void add(nlohmann::json line);                         // "time" is added
  void sync();                                           // what was added outlives a power cut
  std::int64_t validated() const { return validated_; }  // the step of the last validation; -1: none yet

 private:
  struct File {
    std::filesystem::path name;
    int descriptor;
  };
  File lines_, events_;
  std::int64_t validated_ = -1;
};

}  // namespace weft
