#include <fmt/format.h>

#include <signal.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "autograd/run.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/gpu.h"
#include "jit/json.h"
#include "jit/parallel.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"
#include "models/adapters.h"
#include "tools/cli/commands.h"
#include "tools/cli/progress.h"
#include "tools/cli/stop_signal.h"
#include "tools/data/tasks.h"
#include "tools/system/environment.h"
#include "tools/system/folder.h"
#include "tools/system/launch.h"
#include "tools/train/checkpoint.h"
#include "tools/train/metrics.h"
#include "tools/train/plot.h"
#include "tools/train/trainer.h"
#include "tools/version.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Of several ranks one reads and writes the folder of the run, and speaks.
bool first_rank() {
  const Ranks* ranks = Ranks::joined();
  return !ranks || ranks->rank() == 0;
}
std::string of_first_rank(const std::string& name, const std::string& value) {
  Ranks* ranks = Ranks::joined();
  return ranks ? ranks->share(name, value) : value;
}

// What the command line asks for.
struct Start {
  TrainOptions options;
  fs::path run;                         // empty: nothing is saved
  fs::path checkpoint;                  // to go on from; empty: from the beginning
  std::optional<FolderLock> lock = {};  // on `run`; taken before its checkpoint is chosen, if it has one
};

std::vector<OptionSetting> settings_of(const TrainCommand& c) {
  std::vector<OptionSetting> settings;
  if (!c.config.empty()) settings = settings_from_json(read_json(c.config), c.config);
  for (const std::string& text : c.set) settings.push_back(split_setting(text));
  settings.insert(settings.end(), c.given.begin(), c.given.end());
  return settings;
}

// Into a folder that is new, or empty, or in which a run has begun and has nothing to lose.
void check_unused(const fs::path& run) {
  if (const auto checkpoint = Checkpoints(run).newest())
    fail(ErrorKind::usage, "train: the folder holds a run already", checkpoint->string(),
         fmt::format("go on with it: `weft train --resume {}`; or give another --out", run.string()));
  std::error_code error;
  const bool foreign = fs::is_directory(run) && !is_run(run) && !fs::is_empty(run, error);
  if (error) fail_errno("cannot read " + run.string(), error.value());
  if (foreign) fail(ErrorKind::usage, "train: the folder is not empty, and holds no run", run.string(), "give another --out");
}

// What a run that begins with the model of another takes over from it, unless it is given something else.
std::vector<OptionSetting> inherited(const fs::path& from, bool text) {
  const fs::path folder = model_folder(from);
  if (!fs::exists(folder / "state.json"))
    return {{"model", family_of(read_model_config(folder), (folder / "config.json").string()).name}};
  const TrainOptions saved = read_state(folder).options;
  const nlohmann::json values = to_json(saved);
  std::vector<std::string> names = {"model",  "preset",    "tokenizer", "vocab",    "batch",
                                    "length", "precision", "tf32",      "recompute"};
  for (const ModelOption& option : model_family(saved.model).options) names.emplace_back(option.name);
  if (text) names.emplace_back("data");
  std::vector<OptionSetting> settings;
  for (const std::string& name : names)
    settings.emplace_back(name, values[name].is_string() ? values[name].get<std::string>() : text_of(values[name]));
  return settings;
}

// Errors (ErrorKind::usage): options that the model of the folder has others of.
void check_inherited(const TrainOptions& options, const std::vector<OptionSetting>& from) {
  const nlohmann::json values = to_json(options);
  for (const auto& [name, value] : from) {
    if (name == "batch" || name == "length" || name == "data" || name == "precision" || name == "tf32" || name == "recompute")
      continue;
    const std::string given = values[name].is_string() ? values[name].get<std::string>() : text_of(values[name]);
    if (given != value)
      fail(ErrorKind::usage, fmt::format("train: {} is that of the model of --from", flag_of(name)),
           fmt::format("it has {}, given is {}", value, given), "leave the option out");
  }
}

TrainOptions new_options(const std::vector<OptionSetting>& given) {
  std::string from, stage;
  bool pairs = false;
  for (const auto& [name, value] : given) {
    if (name == "from") from = value;
    if (name == "stage") stage = value;
    if (name == "pairs") pairs = !value.empty();
  }
  if (from.empty() && stage == "orpo")
    fail(ErrorKind::usage, "train: orpo begins with a model that has been trained", {}, "give its folder: --from RUN");
  if (from.empty()) return options_from(given);
  if (!fs::exists(from)) fail(ErrorKind::io, "train: no such folder", from, "give one with a model: --from RUN");
  const std::vector<OptionSetting> taken = inherited(from, !pairs);
  std::vector<OptionSetting> all = taken;
  all.insert(all.end(), given.begin(), given.end());
  TrainOptions options = options_from(all);
  check_inherited(options, taken);
  return options;
}

Start new_start(const TrainCommand& c) {
  Start start{new_options(settings_of(c)), c.out, {}};
  if (!c.out.empty() && first_rank()) check_unused(c.out);
  return start;
}

Start resumed_start(const TrainCommand& c) {
  if (!fs::exists(c.resume))
    fail(ErrorKind::io, "resume: no such folder", c.resume, "give a folder that `weft train --out` wrote");
  const auto run = run_of(c.resume);
  Start start{.options = {}, .run = c.out.empty() ? run.value_or("") : fs::path(c.out), .checkpoint = {}};
  if (first_rank()) {
    if (!c.out.empty() && !(run && fs::exists(c.out) && fs::equivalent(c.out, *run)))
      check_unused(c.out);
    else if (run)
      start.lock.emplace(*run);
    start.checkpoint = model_folder(c.resume);
  }
  start.checkpoint = of_first_rank("the checkpoint", start.checkpoint.string());
  if (run && start.checkpoint == c.resume &&
      !fs::exists(start.checkpoint / "state.json")) {  // stopped before the first checkpoint
    const fs::path config = *run / "config.json";
    start.options = resumed_options(options_from(settings_from_json(read_json(config), config.string())), settings_of(c));
    start.checkpoint.clear();
    return start;
  }
  start.options = resumed_options(read_state(start.checkpoint).options, settings_of(c));
  return start;
}

std::shared_ptr<BatchSource> batches(const Start& start) {
  const TrainOptions& o = start.options;
  const Ranks* ranks = Ranks::joined();
  const BatchOptions options{.batch = o.batch,
                             .length = o.length,
                             .seed = o.seed,
                             .packed = o.packed,
                             .carry = o.carry_state,
                             .part = ranks ? ranks->rank() : 0,
                             .parts = ranks ? ranks->size() : 1};
  if (!o.task.empty()) return make_task(o.task, options, o.memorize);
  TokenizerChoice choice{o.tokenizer, o.vocab};
  const fs::path model = !start.checkpoint.empty() ? start.checkpoint : o.from.empty() ? fs::path() : model_folder(o.from);
  if (const fs::path saved = model / "tokenizer.model"; !model.empty())
    choice.name = fs::exists(saved) ? saved.string() : "bytes";
  const bool prefer = o.stage == "orpo";
  const PairOptions pairs{.reject = reject_of(o.reject),
                          .response = o.response,
                          .refresh = o.refresh * o.accumulate,
                          .nll_on_prompt = o.nll_on_prompt};
  if (prefer && !o.pairs.empty())
    return std::make_shared<PairStream>(
        fs::path(o.pairs), choice.name == "bytes" ? Tokenizer::bytes() : Tokenizer::load(choice.name), options, pairs);
  const auto text = std::make_shared<TokenStream>(
      open_data(o.data.empty() ? std::nullopt : std::optional<fs::path>(o.data), choice, options));
  if (!model.empty() && choice.name != "bytes" && text->tokenizer()->hash() != Tokenizer::load(choice.name).hash())
    fail(ErrorKind::io, "train: the shards are of another tokenizer than the model", text->name(), "give the text itself");
  if (prefer) return std::make_shared<PairStream>(text, pairs);
  return text;
}

// Device and threads as the options say; then the options that depend on them or on the data.
void use_options(TrainOptions& o) {
  use_device(o.device);
  o.device = name_of(device());
  if (is_gpu(device())) Gpu::of(device()).allow_tf32(o.tf32);
  if (o.threads > 0) set_threads(int(o.threads));
  for (std::string* path : {&o.data, &o.from, &o.pairs})
    if (!path->empty()) *path = fs::absolute(*path).lexically_normal().string();
}

// Of an epoch; nothing: the data has no end.
std::optional<double> steps_of_an_epoch(const TrainOptions& o, const BatchSource& data) {
  const double rows = double(o.batch) * double(o.accumulate);
  if (const auto* pairs = dynamic_cast<const PairStream*>(&data)) return double(pairs->training_pairs()) / rows;
  if (const auto* text = dynamic_cast<const TokenStream*>(&data))
    return double(text->training_tokens().size()) / (rows * double(o.length));
  return std::nullopt;
}

void count_steps(TrainOptions& o, const BatchSource& data) {
  if (o.epochs == 0) return;
  const std::optional<double> epoch = steps_of_an_epoch(o, data);
  if (!epoch) fail(ErrorKind::usage, "train: this data has no end, so there are no epochs", data.name(), "give --steps");
  const double steps = std::ceil(o.epochs * *epoch);
  if (!(steps <= kMostSteps))
    fail(ErrorKind::usage, "train: so many epochs have more steps than can be counted", fmt::format("--epochs {}", o.epochs),
         "give --steps");
  o.steps = std::max<std::int64_t>(1, std::int64_t(steps));
}

// What is sampled at a time is written down, so that a run that goes on for longer samples as before.
void count_refresh(TrainOptions& o, PairStream& pairs) {
  if (o.refresh == 0) o.refresh = std::min(std::int64_t(std::ceil(*steps_of_an_epoch(o, pairs))), o.steps);
  pairs.set_refresh(o.refresh * o.accumulate);
}

// All ranks do the same to the same data.
void compare_ranks(const TrainOptions& options, const BatchSource& data, const fs::path& checkpoint) {
  Ranks* ranks = Ranks::joined();
  if (!ranks) return;
  ranks->agree("the version of weft", kVersion);
  const auto all = ranks->gather("the options", to_json(options).dump());
  const nlohmann::json ours = nlohmann::json::parse(all[0]);
  for (std::size_t r = 1; r < all.size(); ++r) {
    const nlohmann::json theirs = nlohmann::json::parse(all[r]);
    for (const auto& [name, value] : ours.items())
      if (theirs.value(name, nlohmann::json()) != value)
        fail(ErrorKind::usage, fmt::format("the ranks differ in {}", flag_of(name)),
             fmt::format("rank 0 has {}, rank {} has {}", text_of(value), r, text_of(theirs.value(name, nlohmann::json()))),
             "start all ranks alike");
  }
  ranks->agree("the data", fmt::format("{:016x} ({})", data.hash(), data.name()));
  const fs::path state = checkpoint / "state.json";
  ranks->agree("the checkpoint", checkpoint.empty() ? "" : read_json(state).dump());
}

Trainer make_trainer(Start& start) {
  const auto data = [&] {
    const RankActivity reading(RankBeat::busy, "reading the data");
    return batches(start);
  }();
  count_steps(start.options, *data);
  if (auto* pairs = dynamic_cast<PairStream*>(data.get())) count_refresh(start.options, *pairs);
  compare_ranks(start.options, *data, start.checkpoint);
  if (start.checkpoint.empty()) return Trainer(data, start.options);
  Trainer trainer = Trainer::resume(start.checkpoint, data, start.options);
  for (const std::string& change : changes_since(read_state(start.checkpoint).environment))
    print_error("weft: the checkpoint was made under other circumstances, so bits may differ: {}\n", change);
  return trainer;
}

void print_pairs(const PairStream& pairs, const TrainOptions& o) {
  std::string made = fmt::format("responses of {} tokens after {}, rejected: {}", pairs.pair_options().response,
                                 o.length - pairs.pair_options().response, o.reject);
  if (o.reject == "sample") made += fmt::format(", anew every {} steps", o.refresh);
  if (const TokenPairs* file = pairs.file())
    made = fmt::format("{} of {} longer than {} tokens and cut", file->cut(), file->size(), o.length);
  print("pairs: {} to train on, {} held out; {}\n", pairs.training_pairs(), pairs.held_out_pairs(), made);
}

void print_start(Trainer& trainer) {
  const TrainOptions& o = trainer.options();
  const BatchSource& data = trainer.data();
  if (const Tokenizer* tokenizer = data.tokenizer())
    print("text: {}, tokens: {} ({}), 9/10 to train on\n", data.name(), tokenizer->name(), data.vocabulary());
  else
    print("task: {}, vocabulary {}\n", data.name(), data.vocabulary());
  if (const auto* pairs = dynamic_cast<const PairStream*>(&data)) print_pairs(*pairs, o);
  print("model: {}\n", trainer.model().description());
  if (const std::vector<AdapterCounts> adapters = count_adapters(trainer.model()); !adapters.empty())
    print("adapter: {}\n{}\n", to_text(adapters), to_text(count_parameters(trainer.model())));
  const std::string where = is_gpu(device()) ? Gpu::of(device()).name() : fmt::format("{} threads", threads());
  const std::string accumulated = o.accumulate > 1 ? fmt::format("{} x ", o.accumulate) : "";
  print("device: {} ({}), {}; {} steps of {}{} x {} tokens\n", name_of(device()), where, o.precision, o.steps, accumulated,
        o.batch, o.length);
  if (Ranks* ranks = Ranks::joined())
    print("ranks: {}, each with {} of the {} windows of a batch, over {}\n", ranks->size(), o.batch / ranks->size(), o.batch,
          ranks->collectives(device()).name());
  if (const double moments = double(trainer.optimizer().moment_bytes()); Ranks::joined())
    print("optimizer: {:.1f} MB of moments a rank{}\n", moments / 1e6,
          o.zero ? ", which are a part of all" : "; --zero divides them among the ranks");
  if (trainer.steps_done()) print("resumed after step {}\n", trainer.steps_done());
  std::fflush(stdout);
}

// One start of a run, to its end or until it is stopped.
class Session {
 public:
  Session(Trainer& trainer, Start& start, const std::vector<std::string>& command)
      : trainer_(trainer),
        o_(trainer.options()),
        run_(start.run),
        lock_(std::move(start.lock)),
        progress_(trainer.steps_done(), o_.steps, trainer.tokens_per_step()) {
    saved_ = trainer.steps_done();
    if (!run_.empty()) open_folder(command);
  }

  int train() {
    const StopSignal stop;
    if (o_.stage == "orpo" && trainer_.steps_done() == 0 && !validated()) validate();  // what is to become better
    bool stopping = false;                                                             // all ranks at the same step
    while (trainer_.steps_done() < o_.steps && !(Ranks::joined() ? stopping : stop.received() != 0)) {
      stopping = step(stop.received() != 0);
      if (trainer_.steps_done() == o_.steps) break;
      if (due(o_.eval_every)) validate();
      if (due(o_.save_every)) save();
    }
    if (!Ranks::joined()) stopping = stop.received() != 0;
    if (!stopping && !validated()) validate();
    save();
    finish();
    if (!stopping) return 0;
    progress_.note(fmt::format("stopped after step {}", trainer_.steps_done()));
    if (!run_.empty()) progress_.note("go on with: weft train --resume " + run_.string());
    return 128 + (stop.received() ? stop.received() : SIGTERM);  // of another rank
  }

 private:
  bool validated() const {  // as when it was stopped behind its last save
    const bool known = metrics_ && metrics_->validated() == trainer_.steps_done();
    return of_first_rank("whether it was validated", known ? "yes" : "no") == "yes";
  }

  bool due(std::int64_t every) const { return every > 0 && trainer_.steps_done() % every == 0; }

  void open_folder(const std::vector<std::string>& command) {
    const std::string options = to_json(o_).dump(2) + "\n";
    if (!lock_) {
      check_unused(run_);
      lock_.emplace(run_);
      check_unused(run_);  // whoever held it before may have trained
    }
    write_file(run_ / "config.json", std::as_bytes(std::span(options)));
    record_start(run_, command, trainer_.steps_done());
    make_folder(run_ / "checkpoints");  // from here on it can be resumed
    if (trainer_.steps_done() == 0 || fs::exists(Checkpoints(run_).of_step(trainer_.steps_done())))
      Checkpoints(run_).rewind(trainer_.steps_done());
    else
      saved_ = -1;  // what is gone on from lies in another folder
    metrics_.emplace(run_, trainer_.steps_done());
  }

  bool step(bool stop) {
    const StepResult r = trainer_.step(stop);
    progress_.step(r.step, r.loss, r.lr);
    if (r.skipped)
      progress_.note(
          fmt::format("step {}: left out, a value was not finite (loss {}, gradient norm {})", r.step, r.loss, r.grad_norm));
    nlohmann::json line = {{"step", r.step},
                           {"loss", r.loss},
                           {"grad_norm", r.grad_norm},
                           {"lr", r.lr},
                           {"tokens_per_second", std::round(progress_.last_tokens_per_second())}};
    if (r.preferences) add(line, *r.preferences, "");
    note_sampled(r.step - 1);
    if (metrics_) metrics_->add(line);
    return r.stop;
  }

  void add(nlohmann::json& line, const OrpoMetrics& preferences, std::string_view prefix) const {
    for (const auto& [name, value] : preferences.named(o_.orpo_lambda, prefix)) line[name] = value;
  }

  void note_sampled(std::int64_t step) {
    const RejectedTexts& all = trainer_.sampled();
    if (all.count > noted_.count)
      progress_.note(fmt::format("step {}: {} rejected texts sampled in {:.1f} s", step, all.count - noted_.count,
                                 all.seconds - noted_.seconds));
    noted_ = all;
  }

  void validate() {
    const Evaluation v = trainer_.validate(o_.eval_batches);
    nlohmann::json line = {{"step", trainer_.steps_done()}, {"validation_loss", v.loss()}};
    std::string more = fmt::format("{} tokens", v.tokens);
    if (trainer_.data().has_accuracy()) {
      line["accuracy"] = v.accuracy();
      more = fmt::format("accuracy {:.2f} % ({} answers)", 100 * v.accuracy(), v.tokens);
    } else if (v.characters > 0) {
      line["bits_per_character"] = v.bits_per_character();
      more = fmt::format("{:.3f} bits per character ({} tokens)", v.bits_per_character(), v.tokens);
    }
    progress_.note(fmt::format("step {}: validation loss {:.4f}, {}", trainer_.steps_done(), v.loss(), more));
    if (o_.stage == "orpo") {
      const OrpoMetrics p = trainer_.validate_pairs(o_.eval_batches);
      note_sampled(trainer_.steps_done());
      add(line, p, "eval_");
      progress_.note(fmt::format("step {}: of the pairs held out {:.1f} % preferred, log-odds {:+.4f}, margin {:+.5f}",
                                 trainer_.steps_done(), 100 * p.accuracy, p.log_odds_chosen, p.margin(o_.orpo_lambda)));
    }
    if (metrics_) metrics_->add(line);
  }

  void save() {
    const bool unsaved = !run_.empty() && saved_ != trainer_.steps_done();
    if (of_first_rank("whether it is to be saved", unsaved ? "yes" : "no") != "yes") return;
    if (!first_rank()) return trainer_.assist_save();
    const RankActivity saving(RankBeat::busy, "saving a checkpoint");
    metrics_->sync();
    Checkpoints(run_).write(trainer_.steps_done(), o_.keep, [&](const fs::path& folder) { trainer_.write_files(folder); });
    saved_ = trainer_.steps_done();
    progress_.pause();
  }

  void finish() {
    const std::size_t memory = peak_memory(), host = peak_host_memory();
    const std::string more = is_gpu(device()) ? fmt::format(" of the device, {:.1f} MB of the host", double(host) / 1e6) : "";
    progress_.note(
        fmt::format("peak memory: {:.1f} MB{}; {:.0f} tokens/s", double(memory) / 1e6, more, progress_.tokens_per_second()));
    std::vector<std::size_t> all;  // of each rank
    if (Ranks* ranks = Ranks::joined()) {
      std::string text;
      for (const std::string& bytes : ranks->gather("the memory", std::to_string(memory))) {
        all.push_back(std::stoull(bytes));
        text += fmt::format("{}{:.1f}", text.empty() ? "" : ", ", double(all.back()) / 1e6);
      }
      progress_.note(fmt::format("memory of each rank: {} MB", text));
    }
    if (noted_.count > 0) progress_.note(fmt::format("sampling rejected texts: {:.1f} s in all", noted_.seconds));
    if (run_.empty()) return;
    nlohmann::json summary = {{"step", trainer_.steps_done()},
                              {"memory_bytes", memory},
                              {"host_memory_bytes", host},
                              {"tokens_per_second", std::round(progress_.tokens_per_second())},
                              {"seconds", progress_.seconds()}};
    if (!all.empty()) summary["memory_bytes_of_ranks"] = all;
    if (o_.stage == "orpo") summary["sampling_seconds"] = noted_.seconds;
    const std::string text = summary.dump(2) + "\n";
    write_file(run_ / "summary.json", std::as_bytes(std::span(text)));
    progress_.note("saved: " + run_.string());
    if (trainer_.steps_done() > 0) plot();
  }

  // What happens to a picture is no reason for a run to fail.
  void plot() {
    const std::string afterwards = fmt::format("; afterwards: weft plot {}", run_.string());
    try {
      if (!plot_runs({run_}, run_ / "loss")) progress_.note("no picture of the curve: gnuplot is not installed" + afterwards);
    } catch (const Error& e) {
      progress_.note(fmt::format("no picture of the curve: {}: {}{}", e.parts().what, e.parts().numbers, afterwards));
    }
  }

  Trainer& trainer_;
  const TrainOptions& o_;
  fs::path run_;
  std::optional<FolderLock> lock_;
  Progress progress_;
  std::optional<MetricsLog> metrics_;
  std::int64_t saved_;  // the step of the newest checkpoint
  RejectedTexts noted_;
};

}  // namespace

int cmd_train(const TrainCommand& c) {
  if (c.gpus > 0 && !rank_place()) return launch_on_gpus(int(c.gpus), c.words);
  Ranks* const ranks = Ranks::join();
  if (!first_rank()) mute(true);
  Start start = c.resume.empty() ? new_start(c) : resumed_start(c);
  use_options(start.options);
  Trainer trainer = make_trainer(start);
  if (!first_rank()) start.run.clear();
  print_start(trainer);
  int code = Session(trainer, start, c.words).train();
  const TrainOptions& o = trainer.options();
  if (code == 0 && o.sample > 0 && trainer.data().tokenizer() && first_rank())
    print("sample (temperature {:g}):\n{}\n", o.temperature,
          trainer.sample(o.prompt, o.sample, o.temperature, o.top_k, o.seed));
  if (ranks) ranks->leave();
  return code;
}

}  // namespace weft
