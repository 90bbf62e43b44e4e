#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "autograd/run.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/gpu.h"
#include "jit/json.h"
#include "jit/parallel.h"
#include "jit/print.h"
#include "tools/ablate/measure.h"
#include "tools/ablate/report.h"
#include "tools/ablate/study.h"
#include "tools/cli/commands.h"
#include "tools/cli/progress.h"
#include "tools/cli/stop_signal.h"
#include "tools/data/shards.h"
#include "tools/system/folder.h"
#include "tools/system/launch.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using StudyClock = std::chrono::steady_clock;

// ---- the folder of a study --------------------------------------------------------------------------------------------------

void write_plan(const StudyPlan& plan, const StudyFolder& folder) {
  const std::string text = to_json(plan).dump(1) + "\n";
  write_file(folder.plan(), std::as_bytes(std::span(text)));
}

// Those of `names`, in the order of the plan.
void choose_models(StudyPlan& plan, const std::vector<std::string>& names) {
  std::vector<std::string> known;
  for (const StudyModel& m : plan.models) known.push_back(m.name);
  for (const std::string& name : names)
    if (std::find(known.begin(), known.end(), name) == known.end()) fail_unknown("ablate: there is no model", name, known);
  if (!names.empty())
    std::erase_if(plan.models,
                  [&](const StudyModel& m) { return std::find(names.begin(), names.end(), m.name) == names.end(); });
}

std::vector<OptionSetting> settings_in(const std::vector<std::string>& words) {
  std::vector<OptionSetting> settings;
  for (const std::string& word : words) settings.push_back(split_setting(word));
  return settings;
}

StudyPlan begin_study(const AblateCommand& c, const StudyFolder& folder) {
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder.path, none))
    if (entry.path() != folder.data() && entry.path().filename() != "runs")  // of one that was stopped before it had a plan
      fail(ErrorKind::usage, "ablate: the folder is not empty, and holds no study", folder.path.string(), "give another --out");
  StudyPlan plan = hymba_plan(c.quick);
  choose_models(plan, c.models);
  plan.set = settings_in(c.set), plan.seeds = std::max<std::int64_t>(1, c.seeds);
  for (const StudyRun& run : runs_of(plan)) options_of(plan, run);  // mistakes in --set are found before there is anything
  const TrainOptions o = options_of(plan, {});
  const Corpus corpus = load_corpus(c.data.empty() ? std::nullopt : std::optional<fs::path>(c.data));
  remove_tree(folder.data());
  print("making tokens of {}\n", corpus.name());
  const ShardFolder shards =
      ShardFolder::make(folder.data(), corpus, make_tokenizer({o.tokenizer, o.vocab}, corpus), 100'000'000);
  set_text(plan, corpus.name(), shards.training().size(), shards.validation().size());
  write_plan(plan, folder);
  return plan;
}

// What is said again must be as it was said.
StudyPlan go_on_with(const AblateCommand& c, const StudyFolder& folder) {
  StudyPlan plan = plan_from_json(read_json(folder.plan()), folder.plan().string());
  std::vector<std::string> names, differences;
  for (const StudyModel& m : plan.models) names.push_back(m.name);
  StudyPlan wanted = plan;
  choose_models(wanted, c.models);
  if (c.quick && !plan.quick) differences.push_back("--quick: the study is not");
  if (!c.data.empty() && fs::path(c.data).filename() != fs::path(plan.source).filename())
    differences.push_back(fmt::format("--data {}: the study has {}", c.data, plan.source));
  if (wanted.models.size() != plan.models.size())
    differences.push_back(fmt::format("--models: the study has {}", fmt::join(names, ",")));
  if (!c.set.empty() && settings_in(c.set) != plan.set) differences.push_back("--set: the study has other values");
  if (c.seeds != 0 && c.seeds < plan.seeds)
    differences.push_back(fmt::format("--seeds {}: the study has {}", c.seeds, plan.seeds));
  if (!differences.empty())
    fail(ErrorKind::usage, "ablate: the folder holds a study that was begun otherwise",
         fmt::format("{}", fmt::join(differences, "; ")), "leave these options out, or give another --out");
  if (c.seeds > plan.seeds && !c.report_only) plan.seeds = c.seeds, write_plan(plan, folder);
  return plan;
}

// ---- training ---------------------------------------------------------------------------------------------------------------

// The lines that a run adds to its metrics.jsonl, which it writes anew when it starts.
class MetricsTail {
 public:
  explicit MetricsTail(const fs::path& run) : file_(run / "metrics.jsonl") {
    if (struct stat now{}; stat(file_.c_str(), &now) == 0) before_ = now.st_ino;
  }

  std::vector<json> read() {
    std::vector<json> lines;
    struct stat now {};
    if (stat(file_.c_str(), &now) != 0 || now.st_ino == before_) return lines;
    std::ifstream in(file_, std::ios::binary);
    in.seekg(offset_);
    for (std::string line; std::getline(in, line) && !in.eof();) {
      offset_ += std::streamoff(line.size()) + 1;
      const json object = json::parse(line, nullptr, false);
      if (object.is_object() && object.contains("step") && object["step"].is_number_integer()) lines.push_back(object);
    }
    return lines;
  }

 private:
  fs::path file_;
  ino_t before_ = 0;  // of the file of an earlier start
  std::streamoff offset_ = 0;
};

// How far all runs together are, and how long the rest takes: a step of a stage as long as those before it.
class StudyProgress {
 public:
  StudyProgress(const StudyPlan& plan, const StudyFolder& folder) : plan_(plan), folder_(folder), runs_(runs_of(plan)) {
    for (const StudyRun& run : runs_)
      steps_.push_back(steps_of(plan, run, folder)), done_.push_back(trained_steps(folder.run(plan, run)));
  }

  std::size_t runs() const { return runs_.size(); }
  const StudyRun& run(std::size_t r) const { return runs_[r]; }
  std::string name(std::size_t r) const {
    const std::string seed = plan_.seeds > 1 ? fmt::format(", seed {}", runs_[r].seed) : "";
    return fmt::format("{}{}, {}", plan_.models[runs_[r].model].title, seed, plan_.stages[runs_[r].stage].name);
  }
  void note(const std::string& text) { line_.note(text); }

  void begin(std::size_t r) { at_ = r, mark_ = StudyClock::now(), first_ = -1, shown_ = 0, rate_ = 0; }
  // A line of the run's metrics.
  void step(const json& line) {
    if (!line.contains("loss") || !line["loss"].is_number()) return;
    const std::int64_t step = line["step"];
    if (step <= done_[at_]) return;  // of before
    if (first_ < 0) first_ = step - 1, steps_[at_] = std::max(step, steps_of(plan_, runs_[at_], folder_));
    done_[at_] = step;
    const double now = line.value("tokens_per_second", 0.0);
    rate_ = rate_ > 0 ? 0.9 * rate_ + 0.1 * now : now;
    const std::int64_t quarter = 4 * step / steps_[at_];
    line_.show(text(line), quarter > shown_ || step == first_ + 1);
    shown_ = std::max(shown_, quarter);
  }
  void end() {  // of training and measuring
    done_[at_] = steps_[at_];
    const auto [seconds, steps] = spent();
    Spent& all = spent_[runs_[at_].stage];
    all.first += seconds, all.second += steps;
    first_ = -1, at_ = runs_.size();
  }

 private:
  using Spent = std::pair<double, std::int64_t>;  // seconds, steps

  Spent spent() const {  // on the run at hand
    if (at_ == runs_.size() || first_ < 0) return {0, 0};
    return {std::chrono::duration<double>(StudyClock::now() - mark_).count(), done_[at_] - first_};
  }
  double seconds_of_step(std::size_t stage) const {
    Spent own{0, 0}, any{0, 0};
    const auto add = [&](std::size_t of, const Spent& s) {
      any.first += s.first, any.second += s.second;
      if (of == stage) own.first += s.first, own.second += s.second;
    };
    for (const auto& [of, s] : spent_) add(of, s);
    if (at_ < runs_.size()) add(runs_[at_].stage, spent());
    const Spent& known = own.second > 0 ? own : any;
    return known.second > 0 ? known.first / double(known.second) : 0;
  }
  std::string text(const json& line) const {
    double left = 0, done = 0, all = 0;
    for (std::size_t r = 0; r < runs_.size(); ++r) {
      left += double(steps_[r] - done_[r]) * seconds_of_step(runs_[r].stage);
      done += double(done_[r]), all += double(steps_[r]);
    }
    return fmt::format("{} ({} of {}): step {}/{}  loss {:.4f}  lr {:.2e}  {:.0f} tokens/s; study {:.0f} %, {} left", name(at_),
                       at_ + 1, runs_.size(), done_[at_], steps_[at_], line["loss"].get<double>(), line.value("lr", 0.0), rate_,
                       100 * done / all, format_duration(left));
  }

  const StudyPlan& plan_;
  const StudyFolder& folder_;
  const std::vector<StudyRun> runs_;
  std::vector<std::int64_t> steps_, done_;  // of each run
  std::map<std::size_t, Spent> spent_;      // on runs that have ended, by stage
  StatusLine line_;
  std::size_t at_ = std::size_t(-1);
  StudyClock::time_point mark_;
  std::int64_t first_ = -1, shown_ = 0;  // the step that the run at hand went on from; the quarters that were shown
  double rate_ = 0;
};

// What the run said last on its way out.
std::string complaint_in(const fs::path& log) {
  const std::string text = read_text(log);
  const std::size_t at = text.rfind("\nweft: ");
  return at != text.npos              ? text.substr(at + 1)
         : text.starts_with("weft: ") ? text
                                      : text.substr(text.size() - std::min<std::size_t>(text.size(), 400));
}

[[noreturn]] void fail_run(const std::string& name, int code, const fs::path& log) {
  ErrorKind kind = ErrorKind::training;
  for (const ErrorKind k : {ErrorKind::usage, ErrorKind::device, ErrorKind::io})
    if (exit_code(k) == code) kind = k;
  fail(kind, fmt::format("ablate: {}: weft train ended with {}", name, code), complaint_in(log),
       fmt::format("all of what it said is in {}; the same command goes on from there", log.string()));
}

// 0, or the signal that stopped it.
int train(StudyProgress& progress, std::size_t r, const StudyPlan& plan, const StudyFolder& folder, const StopSignal& stop) {
  const StudyRun& run = progress.run(r);
  const fs::path name = folder.run(plan, run), log = folder.beside(plan, run, ".log");
  make_folder(name.parent_path());
  progress.begin(r);
  MetricsTail tail(name);
  Child child(words_of(plan, run, folder, std::string(name_of(device()))), log);
  for (bool told = false;;) {
    const std::optional<int> code = child.ended();  // before the last look at what it wrote
    for (const json& line : tail.read()) progress.step(line);
    if (code && *code != 0 && !(told && *code == 128 + stop.received())) fail_run(progress.name(r), *code, log);
    if (code) return told ? stop.received() : 0;
    if (stop.received() && !std::exchange(told, true)) child.send(stop.received());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

std::string result_of(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder) {
  const json measured = read_json(folder.beside(plan, run, ".json")),
             summary = read_json(folder.run(plan, run) / "summary.json");
  const double loss = measured.at("validation").at("loss"), characters = measured.at("validation").at("characters");
  std::string text = fmt::format("validation loss {:.4f}, perplexity {:.2f}", loss, std::exp(loss));
  if (characters > 0)
    text += fmt::format(", {:.3f} bits per character",
                        loss * measured.at("validation").at("tokens").get<double>() / characters / std::log(2.0));
  return text + fmt::format("; {:.0f} tokens/s trained, {:.0f} written; {:.0f} MB", summary.value("tokens_per_second", 0.0),
                            measured.at("inference").at("tokens_per_second").get<double>(),
                            summary.value("memory_bytes", 0.0) / 1e6);
}

int train_all(const StudyPlan& plan, const StudyFolder& folder) {
  const StopSignal stop;
  StudyProgress progress(plan, folder);
  const std::string where = is_gpu(device()) ? Gpu::of(device()).name() : fmt::format("{} threads", threads());
  progress.note(fmt::format("study: {} models, {} stages, seeds: {}; {}, {} tokens to train on, {} to validate with; {} ({})",
                            plan.models.size(), plan.stages.size(), plan.seeds, plan.source, plan.training_tokens,
                            plan.validation_tokens, name_of(device()), where));
  for (std::size_t r = 0; r < progress.runs() && !stop.received(); ++r) {
    const StudyRun& run = progress.run(r);
    progress.begin(r);
    if (!is_trained(folder.run(plan, run)) && train(progress, r, plan, folder, stop) != 0) {
      progress.note("stopped in " + progress.name(r));
      break;
    }
    if (!is_measured(plan, run, folder)) {
      measure(plan, run, folder);
      progress.note(progress.name(r) + ": " + result_of(plan, run, folder));
    }
    progress.end();
  }
  if (!stop.received()) return 0;
  progress.note("go on with: weft ablate hymba --out " + folder.path.string());
  return 128 + stop.received();
}

}  // namespace

int cmd_ablate(const AblateCommand& c) {
  const StudyFolder folder{c.out};
  if (c.report_only && !fs::exists(folder.plan()))
    fail(ErrorKind::io, "ablate: there is no study", folder.plan().string(), "give the --out of one");
  std::optional<FolderLock> lock;
  if (!c.report_only) {
    use_device(c.device);
    if (fs::exists(folder.path) && !fs::is_directory(folder.path))
      fail(ErrorKind::io, folder.path.string() + ": not a folder", {}, "give another --out");
    if (fs::exists(folder.plan())) lock.emplace(folder.path / "runs");
  }
  const bool begun = fs::exists(folder.plan());
  const StudyPlan plan = begun ? go_on_with(c, folder) : begin_study(c, folder);
  if (!c.report_only) {
    if (!lock) lock.emplace(folder.path / "runs");
    if (const int code = train_all(plan, folder)) return code;
  }
  for (const std::string& line : report(plan, folder)) print("{}\n", line);
  return 0;
}

}  // namespace weft
