#include "tools/ablate/study.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "jit/error.h"
#include "jit/json.h"
#include "tools/train/checkpoint.h"
#include "tools/train/trainer.h"
#include "tools/version.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kPlanFormat = 1;

StudyModel compared(const char* name, const char* title, double least, double most) {
  return {name, title, {{"model", "hymba-study"}, {"preset", name}}, {least, most}};
}

// Seven layers placed as the fifteen are.
void make_small(StudyModel& model) {
  const std::pair<const char*, const char*> kinds[] = {{"mamba_only", "MMMMMMM"},
                                                       {"transformer_global", "GGGGGGG"},
                                                       {"transformer_local", "LLLLLLL"},
                                                       {"hybrid_50_50", "GMLGLMG"},
                                                       {"hybrid_paper", "GLLGLLG"}};
  for (const auto& [name, letters] : kinds)
    if (model.name == name) model.settings.emplace_back("layer_kinds", letters);
  for (const OptionSetting& setting : std::vector<OptionSetting>{{"width", "64"},
                                                                 {"heads", "4"},
                                                                 {"kv_heads", "2"},
                                                                 {"window", "24"},
                                                                 {"vocab", "1000"},
                                                                 {"batch", "8"},
                                                                 {"length", "64"}})
    model.settings.push_back(setting);
  if (model.name != "mamba_only") model.settings.emplace_back("meta_tokens", "16");
}

// Every run of a study is validated once an epoch over the whole validation part, and writes neither samples nor pictures.
const std::vector<OptionSetting> kOfStudies = {{"eval_batches", "0"}, {"keep", "1"}, {"sample", "0"}};

std::vector<OptionSetting> joined(std::vector<OptionSetting> a, const std::vector<OptionSetting>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

json settings_json(const std::vector<OptionSetting>& settings) {
  json list = json::array();
  for (const auto& [name, value] : settings) list.push_back({name, value});
  return list;
}

std::vector<OptionSetting> settings_of(const StudyPlan& plan, const StudyRun& run) {
  std::vector<OptionSetting> all = joined(plan.models[run.model].settings, plan.stages[run.stage].settings);
  all.emplace_back("seed", std::to_string(run.seed));
  return joined(all, plan.set);
}

std::int64_t count_steps(const TrainOptions& o, std::int64_t tokens) {
  if (o.epochs == 0) return o.steps;
  const double step = double(o.batch) * double(o.length) * double(o.accumulate);
  return std::max<std::int64_t>(1, std::int64_t(std::ceil(o.epochs * double(tokens) / step)));
}

}  // namespace

StudyPlan hymba_plan(bool quick) {
  StudyPlan plan;
  plan.quick = quick;
  // What the study's description expects after its two stages: "~15 -> ~12" and so on.
  plan.models = {compared("mamba_only", "Mamba", 65, 70), compared("transformer_global", "Transformer, global", 70, 75),
                 compared("transformer_local", "Transformer, local", 12, 15), compared("hybrid_50_50", "Hybrid, 50/50", 5, 6),
                 compared("hybrid_paper", "Hybrid, paper", 6, 7)};
  if (quick)
    for (StudyModel& model : plan.models) make_small(model);
  plan.stages = {{"pretraining", kOfStudies}, {"orpo", kOfStudies}};
  std::vector<OptionSetting>&first = plan.stages[0].settings, &second = plan.stages[1].settings;
  second = joined(second, {{"stage", "orpo"}, {"reject", "sample"}, {"orpo_lambda", "0.1"}, {"min_lr", "0"}});
  if (quick) {
    first = joined(first, {{"steps", "200"}, {"lr", "3e-3"}, {"warmup", "20"}, {"eval_every", "25"}, {"save_every", "50"}});
    second = joined(second, {{"steps", "50"},
                             {"lr", "1e-3"},
                             {"weight_decay", "0.01"},
                             {"warmup", "10"},
                             {"response", "16"},
                             {"eval_every", "10"},
                             {"save_every", "25"}});
    for (StudyStage& stage : plan.stages) stage.settings.emplace_back("eval_batches", "20");
  } else {  // what the first stage has is in the models' presets
    second =
        joined(second, {{"epochs", "10"}, {"lr", "1e-4"}, {"weight_decay", "0.01"}, {"warmup", "100"}, {"response", "64"}});
  }
  plan.mapped = "hybrid_paper";
  plan.layers = quick ? std::vector<std::int64_t>{0, 1, 3, 5, 6} : std::vector<std::int64_t>{0, 3, 7, 11, 14};
  plan.prompts = {"ROMEO:\n", "To be, or not to be", "KING HENRY:\nMy lord,"};
  return plan;
}

TrainOptions options_of(const StudyPlan& plan, const StudyRun& run) { return options_from(settings_of(plan, run)); }

void set_text(StudyPlan& plan, const std::string& source, std::int64_t training_tokens, std::int64_t validation_tokens) {
  plan.source = source, plan.training_tokens = training_tokens, plan.validation_tokens = validation_tokens;
  for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) {
    TrainOptions o = options_of(plan, {0, stage, 1});
    if (o.epochs == 0) continue;
    o.epochs = 1;
    const std::int64_t epoch = count_steps(o, training_tokens);
    std::vector<OptionSetting>& settings = plan.stages[stage].settings;
    settings.emplace_back("eval_every", std::to_string(epoch)), settings.emplace_back("save_every", std::to_string(10 * epoch));
  }
}

json to_json(const StudyPlan& plan) {
  json models = json::array(), stages = json::array();
  for (const StudyModel& m : plan.models)
    models.push_back({{"name", m.name},
                      {"title", m.title},
                      {"settings", settings_json(m.settings)},
                      {"expected", {m.expected[0], m.expected[1]}}});
  for (const StudyStage& s : plan.stages) stages.push_back({{"name", s.name}, {"settings", settings_json(s.settings)}});
  return {{"format", kPlanFormat},
          {"weft", kVersion},
          {"quick", plan.quick},
          {"seeds", plan.seeds},
          {"models", models},
          {"stages", stages},
          {"set", settings_json(plan.set)},
          {"mapped", plan.mapped},
          {"layers", plan.layers},
          {"prompts", plan.prompts},
          {"tokens", plan.tokens},
          {"temperature", plan.temperature},
          {"top_k", plan.top_k},
          {"source", plan.source},
          {"training_tokens", plan.training_tokens},
          {"validation_tokens", plan.validation_tokens}};
}

StudyPlan plan_from_json(const json& j, const std::string& file) {
  StudyPlan plan;
  try {
    if (j.at("format") != kPlanFormat)
      fail(ErrorKind::io, "ablate: the study is of another version of weft",
           fmt::format("{}: format {}, this is weft {} with format {}", file, j.at("format").dump(), kVersion, kPlanFormat),
           "give another --out");
    j.at("quick").get_to(plan.quick), plan.seeds = integer_at<std::int64_t>(j, "seeds", file);
    for (const json& m : j.at("models"))
      plan.models.push_back({m.at("name"),
                             m.at("title"),
                             m.at("settings").get<std::vector<OptionSetting>>(),
                             {m.at("expected").at(0), m.at("expected").at(1)}});
    for (const json& s : j.at("stages"))
      plan.stages.push_back({s.at("name"), s.at("settings").get<std::vector<OptionSetting>>()});
    j.at("set").get_to(plan.set), j.at("mapped").get_to(plan.mapped), j.at("layers").get_to(plan.layers);
    j.at("prompts").get_to(plan.prompts), plan.tokens = integer_at<std::int64_t>(j, "tokens", file);
    j.at("temperature").get_to(plan.temperature), plan.top_k = integer_at<std::int64_t>(j, "top_k", file);
    j.at("source").get_to(plan.source);
    plan.training_tokens = integer_at<std::int64_t>(j, "training_tokens", file);
    plan.validation_tokens = integer_at<std::int64_t>(j, "validation_tokens", file);
  } catch (const json::exception& e) {
    fail(ErrorKind::io, "ablate: this is no study, or a damaged one", file + ": " + reason_of(e), "give another --out");
  }
  // Names become those of folders.
  const auto plain = [](const std::string& name) {
    return !name.empty() && name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == name.npos;
  };
  for (const StudyModel& m : plan.models)
    if (!plain(m.name)) fail(ErrorKind::io, "ablate: a model's name has other characters than a-z, 0-9 and _", file);
  for (const StudyStage& s : plan.stages)
    if (!plain(s.name)) fail(ErrorKind::io, "ablate: a stage's name has other characters than a-z, 0-9 and _", file);
  return plan;
}

std::vector<StudyRun> runs_of(const StudyPlan& plan) {
  std::vector<StudyRun> runs;
  for (std::int64_t seed = 1; seed <= plan.seeds; ++seed)
    for (std::size_t model = 0; model < plan.models.size(); ++model)
      for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) runs.push_back({model, stage, seed});
  return runs;
}

fs::path StudyFolder::run(const StudyPlan& plan, const StudyRun& run) const {
  return path / "runs" / plan.models[run.model].name / fmt::format("seed-{}", run.seed) / plan.stages[run.stage].name;
}

fs::path StudyFolder::beside(const StudyPlan& plan, const StudyRun& r, const std::string& ending) const {
  return run(plan, r).string() + ending;
}

std::vector<std::string> words_of(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder,
                                  const std::string& device) {
  const fs::path name = folder.run(plan, run);
  const bool begun = is_run(name) && fs::is_directory(name / "checkpoints");
  std::vector<std::string> words = {"weft", "train", begun ? "--resume" : "--out", name.string()};
  const auto set = [&](const std::string& key, const std::string& value) {
    words.insert(words.end(), {"--set", key + "=" + value});
  };
  if (begun) {
    set("data", folder.data().string());  // the folder may have been moved
  } else {
    for (const auto& [key, value] : settings_of(plan, run)) set(key, value);
    set("data", folder.data().string());
    if (run.stage > 0) set("from", fs::absolute(folder.run(plan, {run.model, run.stage - 1, run.seed})).string());
  }
  set("device", device);
  return words;
}

std::int64_t steps_of(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder) {
  if (const fs::path config = folder.run(plan, run) / "config.json"; fs::exists(config))
    if (const json options = read_json(config); options.contains("steps") && options["steps"].is_number_integer())
      return std::max<std::int64_t>(1, options["steps"].get<std::int64_t>());
  return count_steps(options_of(plan, run), plan.training_tokens);
}

std::int64_t trained_steps(const fs::path& run) {
  const auto newest = Checkpoints(run).newest();
  return newest ? read_state(*newest).step : 0;
}

bool is_trained(const fs::path& run) {
  if (!fs::exists(run / "summary.json") || !fs::exists(run / "config.json")) return false;
  const json summary = read_json(run / "summary.json"), config = read_json(run / "config.json");
  return summary.value("step", json()) == config.value("steps", json(-1)) && summary["step"] == trained_steps(run);
}

}  // namespace weft
