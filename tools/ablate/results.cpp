#include "tools/ablate/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>

#include "jit/error.h"
#include "jit/json.h"
#include "tools/train/metrics.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kFirstSteps = 5;    // after a start, which are not counted in tokens/s
constexpr std::size_t kCurvePoints = 120;  // of a training curve: means of as many stretches

bool has_number(const json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number();
}

Points thinned(const Points& points) {
  if (points.size() <= kCurvePoints) return points;
  Points thin;
  for (std::size_t k = 0; k < kCurvePoints; ++k) {
    const std::size_t begin = k * points.size() / kCurvePoints, end = (k + 1) * points.size() / kCurvePoints;
    double x = 0, y = 0;
    for (std::size_t i = begin; i < end; ++i) x += points[i].first, y += points[i].second;
    thin.emplace_back(x / double(end - begin), y / double(end - begin));
  }
  return thin;
}

// The steps after which the run was started.
std::set<std::int64_t> starts_of(const fs::path& run) {
  std::set<std::int64_t> starts;
  if (!fs::exists(run / "environment.json")) return starts;
  for (const json& start : read_json(run / "environment.json"))
    if (start.contains("after_step")) starts.insert(start["after_step"].get<std::int64_t>());
  return starts;
}

struct Scale {
  double start, per_step;  // of a stage, in StudyResults::unit
  double at(std::int64_t step) const { return start + double(step) * per_step; }
};

void read_curves(StageResult& r, const fs::path& run, const TrainOptions& o, const Scale& scale) {
  const double tokens = double(o.batch) * double(o.length) * double(o.accumulate) * (r.lambda > 0 ? 2 : 1);
  const std::set<std::int64_t> starts = starts_of(run);
  double warm_seconds = 0, warm_tokens = 0;
  r.best_loss = std::numeric_limits<double>::infinity();
  for (const json& line : read_metrics(run).lines) {
    const std::int64_t step = line["step"];
    const double x = scale.at(step);
    const auto add = [&](const char* key, Points& points, double factor = 1) {
      if (has_number(line, key)) points.emplace_back(x, factor * line[key].get<double>());
    };
    add("loss", r.training), add("lr", r.rate), add("nll_loss", r.nll), add("log_odds_ratio", r.odds, -r.lambda);
    add("eval_rewards/accuracies", r.accuracies);
    add("validation_loss", r.validation);
    if (has_number(line, "validation_loss") && line["validation_loss"] < r.best_loss)
      r.best_loss = line["validation_loss"], r.best_at = x;
    if (has_number(line, "eval_rewards/margins")) r.margin = line["eval_rewards/margins"];
    if (!has_number(line, "tokens_per_second") || line["tokens_per_second"] <= 0) continue;
    const double took = tokens / line["tokens_per_second"].get<double>();
    r.seconds += took;
    const auto start = starts.lower_bound(step);  // the one before it is the last that is below the step
    const std::int64_t since = start == starts.begin() ? step : step - *std::prev(start);
    if (since > kFirstSteps) warm_seconds += took, warm_tokens += tokens;
  }
  if (r.best_loss == std::numeric_limits<double>::infinity()) r.best_loss = r.loss, r.best_at = scale.at(o.steps);
  if (!r.accuracies.empty()) r.accuracy_before = r.accuracies.front().second, r.accuracy = r.accuracies.back().second;
  if (warm_seconds > 0) r.tokens_per_second = warm_tokens / warm_seconds;
  r.training = thinned(r.training), r.nll = thinned(r.nll), r.odds = thinned(r.odds);
}

void read_measured(StageResult& r, const json& m) {
  const json &validation = m.at("validation"), &inference = m.at("inference"), &cache = m.at("cache");
  validation.at("loss").get_to(r.loss);
  if (const double characters = validation.at("characters"); characters > 0)
    r.bits_per_character = r.loss * validation.at("tokens").get<double>() / characters / std::numbers::ln2;
  inference.at("tokens_per_second").get_to(r.written_per_second), inference.at("prompt_seconds").get_to(r.prompt_seconds);
  cache.at("attention").get_to(r.kv_bytes), cache.at("states").get_to(r.state_bytes);
  cache.at("attention_global").get_to(r.kv_bytes_global), cache.at("tokens").get_to(r.window);
  if (const double caches = cache.at("caches"); caches > 0) r.kv_reduction = cache.at("layers").get<double>() / caches;
  m.at("parameters").get_to(r.parameters), m.at("gates").get_to(r.gates);
  for (const json& s : m.at("samples")) r.samples.emplace_back(s.at("prompt"), s.at("text"));
}

// Nothing: it is not there yet.
std::optional<StageResult> read_run(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder,
                                    const TrainOptions& o, const Scale& scale) {
  const fs::path name = folder.run(plan, run), file = folder.beside(plan, run, ".json");
  if (!fs::exists(file) || !fs::exists(name / "metrics.jsonl")) return std::nullopt;
  StageResult r;
  r.lambda = o.stage == "orpo" ? o.orpo_lambda : 0;
  try {
    read_measured(r, read_json(file));
    if (fs::exists(name / "summary.json")) r.memory = read_json(name / "summary.json").value("memory_bytes", 0.0);
  } catch (const json::exception& e) {
    fail(ErrorKind::io, "ablate: what was measured is damaged", file.string() + ": " + reason_of(e),
         "remove the file, and start the study again");
  }
  read_curves(r, name, o, scale);
  return r;
}

}  // namespace

Spread spread_of(const std::vector<double>& values) {
  Spread s{.count = std::int64_t(values.size())};
  for (const double v : values) s.mean += v / double(values.size());
  if (values.size() < 2) return s;
  for (const double v : values) s.deviation += (v - s.mean) * (v - s.mean) / double(values.size() - 1);
  s.deviation = std::sqrt(s.deviation);
  return s;
}

Spread StudyResults::of(std::size_t model, std::size_t stage, const std::function<double(const StageResult&)>& value) const {
  std::vector<double> values;
  for (const auto& stages : runs[model])
    if (stages[stage]) values.push_back(value(*stages[stage]));
  return spread_of(values);
}

Spread StudyResults::over_stages(std::size_t model,
                                 const std::function<double(const std::vector<const StageResult*>&)>& value) const {
  std::vector<double> values;
  for (const auto& stages : runs[model]) {
    std::vector<const StageResult*> there;
    for (const auto& r : stages)
      if (r) there.push_back(&*r);
    if (!there.empty()) values.push_back(value(there));
  }
  return spread_of(values);
}

const StageResult* StudyResults::first(std::size_t model, std::size_t stage) const {
  for (const auto& stages : runs[model])
    if (stages[stage]) return &*stages[stage];
  return nullptr;
}

StudyResults read_results(const StudyPlan& plan, const StudyFolder& folder) {
  StudyResults results;
  results.plan = plan;
  std::vector<double> epoch_steps, steps;  // of the stages
  for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) {
    const TrainOptions o = options_of(plan, {0, stage, 1});
    steps.push_back(double(steps_of(plan, {0, stage, 1}, folder)));
    epoch_steps.push_back(double(plan.training_tokens) / (double(o.batch) * double(o.length) * double(o.accumulate)));
  }
  const bool epochs = steps[0] / epoch_steps[0] >= 2;
  results.unit = epochs ? "epochs" : "steps";
  std::vector<Scale> scales;
  double end = 0;
  for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) {
    scales.push_back({end, epochs ? 1 / epoch_steps[stage] : 1});
    results.ends.push_back(end = scales.back().at(std::int64_t(steps[stage])));
  }
  for (std::size_t model = 0; model < plan.models.size(); ++model) {
    auto& seeds = results.runs.emplace_back();
    for (std::int64_t seed = 1; seed <= plan.seeds; ++seed) {
      auto& stages = seeds.emplace_back();
      for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) {
        const StudyRun run{model, stage, seed};
        TrainOptions o = options_of(plan, run);
        o.steps = steps_of(plan, run, folder);
        stages.push_back(read_run(plan, run, folder, o, scales[stage]));
        if (!stages.back()) continue;
        results.seconds += stages.back()->seconds;
        const json starts = read_json(folder.run(plan, run) / "environment.json");
        if (results.device.empty() && !starts.empty()) {
          const json environment = starts.back().value("environment", json::object());
          const std::string device = environment.value("device", "?");
          for (const auto& [heading, value] : environment.items())
            if (value.is_string() && heading == (device == "cuda" ? "CUDA device 0" : "CPU"))
              results.device = value.get<std::string>().substr(0, value.get<std::string>().find(','));
          if (results.device.empty()) results.device = device;
        }
        if (results.precision.empty())
          results.precision = read_json(folder.run(plan, run) / "config.json").value("precision", "?");
      }
    }
  }
  return results;
}

const std::vector<StudyColumn>& study_columns() {
  using Runs = std::vector<const StageResult*>;
  const auto of_stage = [](std::size_t stage, double (*value)(const StageResult&)) {
    return
        [=](const StudyResults& s, std::size_t m) { return stage < s.plan.stages.size() ? s.of(m, stage, value) : Spread(); };
  };
  const auto over = [](double (*value)(const Runs&)) {
    return [=](const StudyResults& s, std::size_t m) { return s.over_stages(m, value); };
  };
  static const std::vector<StudyColumn> columns = {
      {"pretrain_ppl", 3, of_stage(0, [](const StageResult& r) { return std::exp(r.loss); })},
      {"orpo_ppl", 3, of_stage(1, [](const StageResult& r) { return std::exp(r.loss); })},
      {"best_ppl", 3, over([](const Runs& runs) {
         double best = runs[0]->best_loss;
         for (const StageResult* r : runs) best = std::min(best, r->best_loss);
         return std::exp(best);
       })},
      {"params_m", 3, over([](const Runs& runs) { return double(runs[0]->parameters) / 1e6; })},
      {"kv_reduction", 3, over([](const Runs& runs) { return runs[0]->kv_reduction; })},
      {"kv_bytes", 0, over([](const Runs& runs) { return runs[0]->kv_bytes; })},
      {"train_tok_s", 0, of_stage(0, [](const StageResult& r) { return r.tokens_per_second; })},
      {"infer_tok_s", 1, over([](const Runs& runs) { return runs.back()->written_per_second; })},
      {"peak_mem_mb", 1, over([](const Runs& runs) {
         double most = 0;
         for (const StageResult* r : runs) most = std::max(most, r->memory);
         return most / 1e6;
       })},
      {"train_seconds", 1, over([](const Runs& runs) {
         double sum = 0;
         for (const StageResult* r : runs) sum += r->seconds;
         return sum;
       })}};
  return columns;
}

const StudyColumn& study_column(const std::string& name) {
  for (const StudyColumn& c : study_columns())
    if (c.name == name) return c;
  fail(ErrorKind::usage, "ablate: no such column: " + name);
}

std::string csv_of(const StudyResults& s) {
  const bool several = s.plan.seeds > 1;
  std::string text = "model";
  for (const StudyColumn& c : study_columns()) text += "," + c.name;
  if (several)
    for (const StudyColumn& c : study_columns()) text += "," + c.name + "_sd";
  if (several) text += ",seeds";
  text += "\n";
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    text += s.plan.models[m].name;
    std::string deviations;
    std::int64_t seeds = 0;
    for (const StudyColumn& c : study_columns()) {
      const Spread v = c.value(s, m);
      text += v ? fmt::format(",{:.{}f}", v.mean, c.digits) : ",";
      deviations += v ? fmt::format(",{:.{}f}", v.deviation, c.digits + 2) : ",";
      seeds = std::max(seeds, v.count);
    }
    if (several) text += deviations + fmt::format(",{}", seeds);
    text += "\n";
  }
  return text;
}

}  // namespace weft
