#include "tools/ablate/report.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"
#include "tools/ablate/document.h"
#include "tools/ablate/findings.h"
#include "tools/ablate/pictures.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

void write_text(const fs::path& file, const std::string& text) { write_file(file, std::as_bytes(std::span(text))); }

// Calls f(run, its result) for each that there is.
template <class F>
void each_run(const StudyResults& s, F f) {
  for (std::size_t m = 0; m < s.plan.models.size(); ++m)
    for (std::int64_t seed = 1; seed <= s.plan.seeds; ++seed)
      for (std::size_t stage = 0; stage < s.plan.stages.size(); ++stage)
        if (const auto& r = s.runs[m][std::size_t(seed - 1)][stage]) f(StudyRun{m, stage, seed}, *r);
}

std::string heading_of(const StudyPlan& plan, const StudyRun& run) {
  return fmt::format("{} ({}), seed {}, after {}", plan.models[run.model].title, plan.models[run.model].name, run.seed,
                     plan.stages[run.stage].title());
}

std::string settings_text(const std::vector<OptionSetting>& settings) {
  std::string text;
  for (const auto& [name, value] : settings) text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, value);
  return text;
}

std::string detailed_metrics(const StudyResults& s) {
  const StudyPlan& plan = s.plan;
  std::string text = setting_of(s) + "\n\n";
  for (const StudyStage& stage : plan.stages) text += fmt::format("{}: {}\n", stage.name, settings_text(stage.settings));
  for (const StudyModel& model : plan.models) text += fmt::format("{}: {}\n", model.name, settings_text(model.settings));
  if (!plan.set.empty()) text += fmt::format("all: {}\n", settings_text(plan.set));
  each_run(s, [&](const StudyRun& run, const StageResult& r) {
    text += fmt::format("\n== {} ==\n", heading_of(plan, run));
    const auto line = [&](const char* name, const std::string& value) { text += fmt::format("{:<34}{}\n", name, value); };
    line("validation loss (nats a token)", fmt::format("{:.5f}", r.loss));
    line("validation perplexity", fmt::format("{:.4f}", std::exp(r.loss)));
    if (r.bits_per_character > 0) line("validation, bits per character", fmt::format("{:.4f}", r.bits_per_character));
    line("best validation loss", fmt::format("{:.5f} at {:.2f} {}", r.best_loss, r.best_at, s.unit));
    line("best perplexity", fmt::format("{:.4f}", std::exp(r.best_loss)));
    if (!r.training.empty()) line("last training loss", fmt::format("{:.5f}", r.training.back().second));
    line("training (tokens/s)", fmt::format("{:.0f}", r.tokens_per_second));
    line("training steps (s)", fmt::format("{:.2f}", r.seconds));
    line("inference (tokens/s)", fmt::format("{:.1f}", r.written_per_second));
    line("prompt until first token (s)", fmt::format("{:.4f}", r.prompt_seconds));
    line("parameters (millions)", fmt::format("{:.6f}", double(r.parameters) / 1e6));
    line("KV reduction", fmt::format("{:.3f}", r.kv_reduction));
    line("KV cache (bytes)", fmt::format("{:.0f} of {} tokens; {:.0f} if all layers were global and had their own", r.kv_bytes,
                                         r.window, r.kv_bytes_global));
    line("states (bytes)", fmt::format("{:.0f}", r.state_bytes));
    line("peak memory (MB)", fmt::format("{:.1f}", r.memory / 1e6));
    if (r.accuracy >= 0)
      line("held-out preference accuracy",
           fmt::format("{:.4f}, first {:.4f}; reward margin {:.5f}", r.accuracy, r.accuracy_before, r.margin));
    if (!r.gates.empty()) {
      std::string gates;
      for (const double gate : r.gates) gates += fmt::format("{}{:.4f}", gates.empty() ? "" : " ", gate);
      line("attention's share of each layer", gates);
    }
  });
  return text;
}

std::string samples_text(const StudyResults& s) {
  std::string text = fmt::format("{} tokens each, temperature {:g}, top {}\n", s.plan.tokens, s.plan.temperature, s.plan.top_k);
  each_run(s, [&](const StudyRun& run, const StageResult& r) {
    if (run.seed > 1) return;
    text += fmt::format("\n==== {} ====\n", heading_of(s.plan, run));
    for (const auto& [prompt, sample] : r.samples) text += "\n" + sample + "\n----\n";
  });
  return text;
}

struct Drawn {
  std::string name, caption;
  Picture picture;
};

std::vector<Drawn> pictures_of(const StudyResults& s, const StudyFolder& folder) {
  std::vector<Drawn> all;
  if (s.seconds == 0) return all;
  const std::string results = "ablation_results", stages = "training_stages_comparison";
  all.push_back({results, "The models side by side", results_picture(s, results)});
  all.push_back({stages, "Both stages", stages_picture(s, stages)});
  for (std::size_t m = 0; m < s.plan.models.size(); ++m)
    for (std::size_t stage = 0; stage < s.plan.stages.size() && s.plan.models[m].name == s.plan.mapped; ++stage) {
      const StudyRun run{m, stage, 1};
      const fs::path maps = folder.beside(s.plan, run, ".attention.safetensors");
      if (!s.runs[m][0][stage] || !fs::exists(maps)) continue;
      const std::string name = "hymba_attention_" + s.plan.stages[stage].name;
      const std::string caption = fmt::format("Attention of {} after {}: a window of the validation part, mean over heads",
                                              s.plan.models[m].title, s.plan.stages[stage].title());
      all.push_back({name, caption, attention_picture(folder.beside(s.plan, run, ".json"), maps, caption, name)});
    }
  return all;
}

Document report_of(const StudyResults& s, const std::vector<Drawn>& pictures) {
  Document d;
  d.heading(1, "Mamba, attention, and both: a study");
  d.paragraph(setting_of(s));
  d.heading(2, "Result");
  const std::vector<std::string> findings = findings_of(s);
  d.paragraph(findings[0]);
  std::vector<std::string> head = {
      "model",        "perplexity, best",  "after pretraining", "after ORPO", "parameters, M", "KV reduction",
      "KV cache, kB", "trained, tokens/s", "written, tokens/s", "peak, MB",   "training, s"};
  const std::pair<const char*, double> columns[] = {
      {"best_ppl", 1},    {"pretrain_ppl", 1}, {"orpo_ppl", 1},    {"params_m", 1},    {"kv_reduction", 1},
      {"kv_bytes", 1e-3}, {"train_tok_s", 1},  {"infer_tok_s", 1}, {"peak_mem_mb", 1}, {"train_seconds", 1}};
  std::vector<std::vector<std::string>> rows;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    auto& row = rows.emplace_back(std::vector{s.plan.models[m].title});
    for (const auto& [name, factor] : columns) {
      const Spread v = study_column(name).value(s, m);
      const int digits = v.mean * factor >= 1000 ? 0 : v.mean * factor >= 100 ? 1 : 2;
      row.push_back(!v ? ""
                       : fmt::format("{:.{}f}", v.mean * factor, digits) +
                             (v.deviation > 0 ? fmt::format(" ± {:.{}f}", v.deviation * factor, digits) : ""));
    }
  }
  d.table(head, rows);
  for (std::size_t i = 1; i < findings.size(); ++i) d.paragraph(findings[i]);
  const Expectations e = expectations_of(s);
  if (!e.surprises.empty()) d.heading(2, "What surprised"), d.list(e.surprises);
  if (!e.confirmed.empty()) d.heading(2, "As expected"), d.list(e.confirmed);
  if (!pictures.empty()) d.heading(2, "Pictures");
  for (const Drawn& drawn : pictures) d.picture(drawn.name + ".png", drawn.caption);
  d.heading(2, "Samples");
  d.paragraph("The first text of each model after each stage; generation_samples.txt has all.");
  each_run(s, [&](const StudyRun& run, const StageResult& r) {
    if (run.seed > 1 || r.samples.empty()) return;
    d.heading(3, heading_of(s.plan, run));
    d.code(r.samples.front().second);
  });
  d.heading(2, "Files");
  d.list({"ablation_results.csv: the table", "detailed_metrics.txt: all that was measured of each run, and the settings",
          "generation_samples.txt", "*.gp, *.dat: scripts and data of the pictures",
          "runs/MODEL/seed-N/STAGE: the runs, for weft generate, eval, plot and inspect"});
  return d;
}

}  // namespace

std::vector<std::string> report(const StudyPlan& plan, const StudyFolder& folder) {
  const StudyResults s = read_results(plan, folder);
  write_text(folder.path / "ablation_results.csv", csv_of(s));
  write_text(folder.path / "detailed_metrics.txt", detailed_metrics(s));
  write_text(folder.path / "generation_samples.txt", samples_text(s));
  const std::vector<Drawn> pictures = pictures_of(s, folder);
  std::string problem;
  for (const Drawn& drawn : pictures) try {
      if (!draw(drawn.picture, folder.path / drawn.name)) problem = "gnuplot is not installed";
    } catch (const Error& e) {
      problem = e.parts().what + ": " + e.parts().numbers;
    }
  const Document document = report_of(s, pictures);
  write_text(folder.path / "REPORT.md", document.markdown());
  write_text(folder.path / "report.html", document.html("Mamba, attention, and both: a study"));
  std::vector<std::string> lines = {
      fmt::format("written to {}: REPORT.md, report.html, ablation_results.csv, detailed_metrics.txt, generation_samples.txt",
                  folder.path.string())};
  if (!problem.empty())
    lines.push_back(
        fmt::format("no pictures, only their data and scripts: {}; afterwards: weft ablate hymba --report-only --out {}",
                    problem, folder.path.string()));
  else
    for (const Drawn& drawn : pictures) lines.push_back((folder.path / (drawn.name + ".png")).string());
  return lines;
}

}  // namespace weft
