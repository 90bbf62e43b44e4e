// What the runs of a study have come to, read from their folders: no checkpoints are needed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/ablate/study.h"

namespace weft {

using Points = std::vector<std::pair<double, double>>;

// One run that has been trained and measured.
struct StageResult {
  double loss = 0;                    // of the validation part at its end, nats a token
  double bits_per_character = 0;      // 0: unknown
  double best_loss = 0, best_at = 0;  // the least of its validations, and where: StudyResults::unit
  double tokens_per_second = 0;       // trained, but for the first steps after each start
  double seconds = 0;                 // of training steps
  double memory = 0;                  // bytes, the most
  double written_per_second = 0;      // tokens of one text
  double prompt_seconds = 0;
  double kv_bytes = 0, state_bytes = 0,
         kv_bytes_global = 0;  // of a window: keys and values; states; if all were global and own
  double kv_reduction = 1;     // layers with attention for each set of keys and values
  std::int64_t parameters = 0, window = 0;
  double lambda = 0;                                       // of ORPO; 0: another stage
  double accuracy_before = -1, accuracy = -1, margin = 0;  // of the pairs held out, first and last; -1: there are none
  std::vector<double> gates;
  std::vector<std::pair<std::string, std::string>> samples;  // prompt, text that begins with it
  // Against StudyResults::unit, the stages one after the other.
  Points training, validation, rate, nll, odds, accuracies;
};

// Of the seeds that there are.
struct Spread {
  double mean = 0, deviation = 0;  // deviation: of the sample; 0 for one
  std::int64_t count = 0;
  explicit operator bool() const { return count > 0; }
};
Spread spread_of(const std::vector<double>& values);

struct StudyResults {
  StudyPlan plan;
  std::vector<std::vector<std::vector<std::optional<StageResult>>>> runs;  // [model][seed - 1][stage]
  std::string unit;          // "epochs", or "steps" where there are not two of them
  std::vector<double> ends;  // of the stages, in it
  std::string device, precision;
  double seconds = 0;  // of training steps, of all runs

  // Over the seeds of a model, of those runs that there are.
  Spread of(std::size_t model, std::size_t stage, const std::function<double(const StageResult&)>& value) const;
  Spread over_stages(std::size_t model, const std::function<double(const std::vector<const StageResult*>&)>& value) const;
  const StageResult* first(std::size_t model, std::size_t stage) const;  // of the first seed that there is; null
};
StudyResults read_results(const StudyPlan& plan, const StudyFolder& folder);

// A column of ablation_results.csv.
struct StudyColumn {
  std::string name;
  int digits;  // behind the point
  std::function<Spread(const StudyResults&, std::size_t model)> value;
};
const std::vector<StudyColumn>& study_columns();
const StudyColumn& study_column(const std::string& name);

// A line for each model, means over seeds; where there are several also the deviation of each column. What is not known yet is
// empty.
std::string csv_of(const StudyResults& results);

}  // namespace weft
