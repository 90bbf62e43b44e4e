// A study compares models: each is trained in stages, for one seed or several, by `weft train`, and then measured. Its folder:
//
//   DIR/study.json             what is trained and how: StudyPlan
//   DIR/data                   shards of tokens (tools/data/shards.h): the study needs its text once
//   DIR/runs/MODEL/seed-N/STAGE        the run, as `weft train --out` makes it
//   DIR/runs/MODEL/seed-N/STAGE.log    what it printed
//   DIR/runs/MODEL/seed-N/STAGE.json   what was measured afterwards (tools/ablate/measure.h)
//   DIR/runs/MODEL/seed-N/STAGE.attention.safetensors
//   DIR/ablation_results.csv, ...      what is drawn and written from these (tools/ablate/report.h)
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tools/train/train_options.h"

namespace weft {

struct StudyModel {
  std::string name;   // "hybrid_paper"
  std::string title;  // for people: "Hybrid (paper)"
  std::vector<OptionSetting> settings;
  double expected[2] = {0, 0};  // the least and the largest perplexity that the study's first description expects; 0: none
};

// The first one starts with new weights, each other one with those at the end of the one before it.
struct StudyStage {
  std::string name;  // "pretraining", "orpo"
  std::vector<OptionSetting> settings;
  std::string title() const { return name == "orpo" ? "ORPO" : name; }  // for people
};

struct StudyPlan {
  bool quick = false;
  std::int64_t seeds = 1;  // 1, 2, ...
  std::vector<StudyModel> models;
  std::vector<StudyStage> stages;
  std::vector<OptionSetting> set;    // of the user's, for every run
  std::string mapped;                // the model whose attention is drawn,
  std::vector<std::int64_t> layers;  // in these layers
  std::vector<std::string> prompts;  // of the samples
  std::int64_t tokens = 100;         // of a sample
  double temperature = 0.8;
  std::int64_t top_k = 40;
  // Of the text, once it is known:
  std::string source;  // its name
  std::int64_t training_tokens = 0, validation_tokens = 0;
};

struct StudyRun {
  std::size_t model = 0, stage = 0;  // of the plan
  std::int64_t seed = 1;
};

// The five models of the study of Hymba (models/hymba_study_config.h) with its hyper-parameters, or, `quick`, small ones with
// seven layers and few steps.
StudyPlan hymba_plan(bool quick);

// What depends on the text: stages that count epochs are validated after each of them, and saved after ten.
void set_text(StudyPlan& plan, const std::string& source, std::int64_t training_tokens, std::int64_t validation_tokens);

// The options that a run begins with, but for the folder with the model that it begins with.
TrainOptions options_of(const StudyPlan& plan, const StudyRun& run);

nlohmann::json to_json(const StudyPlan& plan);
StudyPlan plan_from_json(const nlohmann::json& json, const std::string& file);  // errors (ErrorKind::io): not one

std::vector<StudyRun> runs_of(const StudyPlan& plan);  // in the order in which they are trained

struct StudyFolder {
  std::filesystem::path path;
  std::filesystem::path plan() const { return path / "study.json"; }
  std::filesystem::path data() const { return path / "data"; }
  std::filesystem::path run(const StudyPlan& plan, const StudyRun& run) const;
  // Beside the folder of the run: STAGE.log for ".log".
  std::filesystem::path beside(const StudyPlan& plan, const StudyRun& run, const std::string& ending) const;
};

// The words of `weft` that begin the run, or go on with it if it has begun. `device` is one of --device.
std::vector<std::string> words_of(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder,
                                  const std::string& device);
// The step that the run ends with, so far as it is known before it has begun.
std::int64_t steps_of(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder);
std::int64_t trained_steps(const std::filesystem::path& run);  // of its newest checkpoint
// To its end, with that checkpoint.
bool is_trained(const std::filesystem::path& run);

}  // namespace weft
