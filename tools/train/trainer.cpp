#include "tools/train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "autograd/settings.h"
#include "jit/file.h"
#include "jit/json.h"
#include "jit/ranks/ranks.h"
#include "models/adapters.h"
#include "models/family.h"
#include "models/scan_patch.h"
#include "nn/safetensors.h"
#include "ops/collective.h"
#include "ops/ops.h"
#include "optim/data_parallel.h"
#include "tools/evaluate/generate.h"
#include "tools/system/environment.h"
#include "tools/system/folder.h"
#include "tools/train/adapt.h"
#include "tools/train/checkpoint.h"
#include "tools/train/checksums.h"
#include "tools/train/choices.h"
#include "tools/version.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kTokenizerFile = "tokenizer.model";
constexpr const char* kState = "state.json";
constexpr const char* kCarried = "carried.safetensors";
constexpr const char* kSampled = "sampled.safetensors";
constexpr int kFormat = 2;  // of state.json
// Of what the model writes to be rejected.
constexpr double kRejectedTemperature = 1;
constexpr std::int64_t kRejectedTopK = 40;

Vocabulary vocabulary_of(const BatchSource& data) {
  Vocabulary v{.size = data.vocabulary()};
  if (const Tokenizer* t = data.tokenizer(); t && t->end_of_text() >= 0) v.eos = t->end_of_text();
  return v;
}

// "auto" becomes what the device in use likes.
TrainOptions resolved(TrainOptions o) {
  o.check();
  if (o.precision == "auto") o.precision = device() == Device::cuda ? "bf16" : "fp32";
  return o;
}

std::unique_ptr<LanguageModel> initialised(const MakeModel& make, const ComputeOptions& how, Rng& rng) {
  UseRng use(rng);
  std::unique_ptr<LanguageModel> model = make(how);
  model->initialise();
  return model;
}

TensorMap states_of(const ModelCache& carried) {
  TensorMap tensors;
  for (const State& s : carried.carried()) {
    const auto dims = s.shape().dims();
    tensors[s.name()] = {s.dtype(), {dims.begin(), dims.end()}, s.bytes()};
  }
  return tensors;
}

// Errors (ErrorKind::io): not the states of this model and batch.
void load_states(const ModelCache& carried, const TensorMap& tensors, const fs::path& file) {
  for (State& s : carried.carried()) {
    const auto found = tensors.find(s.name());
    const auto dims = s.shape().dims();
    if (found == tensors.end() || found->second.dtype != s.dtype() || !std::ranges::equal(found->second.shape, dims))
      fail(ErrorKind::io, "resume: the carried states are not this model's", fmt::format("{}: {}", file.string(), s.name()),
           "use another checkpoint");
    s.set_bytes(found->second.bytes.data());
  }
}

// A safetensors file of a checkpoint, which must be of training step `step`.
TensorMap read_part(const fs::path& file, std::int64_t step) {
  std::map<std::string, std::string> metadata;
  TensorMap tensors = read_safetensors(file, &metadata);
  if (metadata["step"] != std::to_string(step))
    fail(ErrorKind::io, "resume: the files of the checkpoint belong to different steps",
         fmt::format("{} is of step {}, state.json of step {}", file.string(), metadata["step"], step),
         "use another checkpoint");
  return tensors;
}

}  // namespace

Trainer::Trainer(std::shared_ptr<BatchSource> data, TrainOptions options)
    : Trainer(data, resolved(options), [&](const ComputeOptions& how) {
        if (options.from.empty())
          return model_family(options.model).from_options(options.model_options, vocabulary_of(*data), how);
        return load_to_train(options, how);
      }) {
  if (!options_.from.empty()) options_.model = family_of(read_model_config(model_folder(options_.from))).name;
}

Trainer::Trainer(std::shared_ptr<BatchSource> data, TrainOptions options, const MakeModel& make)
    : options_(std::move(options)),
      rng_(std::make_shared<Rng>(options_.seed)),
      data_(std::move(data)),
      model_(initialised(make, compute_options(options_), *rng_)),
      optimizer_(model_->trainable_parameters(), {.lr = options_.lr,
                                                  .weight_decay = options_.weight_decay,
                                                  .clip_norm = options_.clip,
                                                  .on_bad_step = OnBadStep::poll,
                                                  .sharded = options_.zero,
                                                  .sums = {.bf16 = options_.exchange == "bf16"}}) {
  check_flow(*model_, options_.packed, options_.carry_state);
  if (options_.stage == "orpo") {
    pairs_ = std::dynamic_pointer_cast<PairStream>(data_);
    if (!pairs_) fail(ErrorKind::usage, "train: orpo needs pairs", data_->name(), "give a PairStream (tools/data/pairs.h)");
  }
  if (data_->vocabulary() > model_->vocab())
    fail(ErrorKind::usage, "train: the tokenizer is not the model's",
         fmt::format("{} tokens, the model knows {}", data_->vocabulary(), model_->vocab()),
         "use the one that it was made with");
  if (options_.carry_state) carried_ = model_->make_cache(options_.batch);
  share_weights();
}

void Trainer::share_weights() {
  const std::vector<Param> params = model_->parameters();
  broadcast_states(std::vector<State>(params.begin(), params.end()));
}

// Gradients of all batches but the last stay pending, so memory is that of one batch and the sum of the gradients. The loss is
// the mean over all ranks.
Trainer::Computed Trainer::compute(bool stop) {
  const std::int64_t batches = options_.accumulate;
  const Ranks* ranks = Ranks::joined();
  const double share = ranks ? 1.0 / ranks->size() : 1;
  const OrpoOptions preference = {.lambda = options_.orpo_lambda,
                                  .form = options_.orpo_form == "seed" ? OrpoForm::seed : OrpoForm::paper};
  const auto forward = [&](const Batch& batch) {  // the loss; of pairs their metrics, too
    const Tensor logits = logits_of(*model_, batch, carried_.get());
    std::vector<Tensor> values;
    if (pairs_) {
      const OrpoBatch pairs = orpo(logits, batch.targets, {preference.lambda, preference.form, batch.response});
      values = {pairs.loss, orpo_means(pairs)};
    } else {
      values = {cross_entropy(logits, batch.targets)};
    }
    for (Tensor& value : values)
      if (share != 1) value = value * share;
    backward(batches == 1 ? values[0] : values[0] * (1.0 / double(batches)));
    return values;
  };
  std::vector<std::vector<Tensor>> before;
  for (std::int64_t i = 1; i < batches; ++i)
    before.push_back(run(
        [&](const Batch& batch) {
          std::vector<Tensor> values = forward(batch);
          for (Tensor& value : values) value = all_reduce(value);
          return values;
        },
        data_->next()));
  const std::vector<Param> params = ranks && !options_.zero ? model_->trainable_parameters() : std::vector<Param>();
  const Scalar wish(stop);
  const auto update = [&](const Batch& batch) {
    std::vector<Tensor> values = forward(batch);
    if (ranks) values.push_back(Arg(wish));
    values = sum_gradients(params, values, {.bf16 = options_.exchange == "bf16"});
    optimizer_.step();
    values.push_back(optimizer_.grad_norm());
    return values;
  };
  const std::vector<Tensor> last = run(update, data_->next());
  before.push_back(last);
  Computed computed{0, last.back().item(), ranks ? last[last.size() - 2].item() > 0 : stop, {}};
  OrpoMetrics::Values means{};
  for (const std::vector<Tensor>& values : before) {
    computed.loss += values[0].item() / double(batches);
    if (!pairs_) continue;
    const std::vector<double> own = values[1].to_host<double>();
    for (std::size_t k = 0; k < means.size(); ++k) means[k] += own[k] / double(batches);
  }
  if (pairs_) computed.preferences = OrpoMetrics::from(means);
  return computed;
}

// Each rank writes its part of the texts, and hears of the others'.
void Trainer::sample_rejected(For use) {
  if (!pairs_ || !pairs_->must_sample()) return;
  const auto began = std::chrono::steady_clock::now();
  const RankActivity sampling(RankBeat::busy, "sampling rejected texts");
  Ranks* const ranks = Ranks::joined();
  const PairStream::Write write = [&](const PairStream::Texts& prompts, std::int64_t tokens, std::uint64_t seed) {
    const std::int64_t parts = ranks ? ranks->size() : 1, n = std::int64_t(prompts.size()) / parts;
    const std::int64_t first = ranks ? ranks->rank() * n : 0;
    std::optional<BatchRows> rows;
    if (ranks) rows.emplace(first, n);
    const PairStream::Texts texts = sample_continuations(*model_, {prompts.begin() + first, prompts.begin() + first + n},
                                                         {.tokens = tokens,
                                                          .temperature = kRejectedTemperature,
                                                          .top_k = kRejectedTopK,
                                                          .seed = seed,
                                                          .vocab = data_->vocabulary()});
    if (!ranks) return texts;
    PairStream::Texts all;
    for (const std::string& part : ranks->gather("rejected texts", json(texts).dump()))
      for (auto& text : json::parse(part).get<PairStream::Texts>()) all.push_back(std::move(text));
    return all;
  };
  sampled_.count += use == For::step ? pairs_->sample(write) : pairs_->sample_held_out(write);
  sampled_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

OrpoMetrics Trainer::validate_pairs(std::int64_t batches) {
  if (!pairs_)
    fail(ErrorKind::usage, "train: there are no pairs to validate with", options_.stage, "they are of the stage orpo");
  sample_rejected(For::validation);
  return evaluate_pairs(*model_, *pairs_, batches);
}

StepResult Trainer::step(bool stop) {
  sample_rejected(For::step);
  UseRng use(*rng_);
  const BatchOptions& cut = data_->options();
  std::optional<BatchRows> rows;
  const std::int64_t texts = pairs_ ? 2 : 1;  // a row of the batch
  if (cut.parts > 1) rows.emplace(texts * cut.first_row(), texts * cut.rows());
  const TrainOptions& o = options_;
  const WarmupCosine rate(
      {.peak = o.lr, .warmup = o.warmup, .steps = o.steps, .min = std::min(o.min_lr, o.lr), .warmup_offset = 1});
  optimizer_.set_lr(rate(step_));
  const std::int64_t position = data_->position();
  const std::uint64_t tick = rng_->tick();
  const Computed c = compute(stop);
  StepResult result{step_ + 1,    c.loss, c.norm, optimizer_.lr(), c.stop, !std::isfinite(c.loss) || !std::isfinite(c.norm),
                    c.preferences};
  if (result.skipped) {
    if (bad_steps_ == o.skip_bad_steps) explain(result, position, tick);
    ++bad_steps_;
    optimizer_.clear_bad_step();
    forget();
  }
  ++step_;
  if (step_ == 1 && !result.skipped) check_adapters_learn(*model_);
  return result;
}

// After a step that was not finite, whose states are not either.
void Trainer::forget() {
  if (!carried_) return;
  for (State& state : carried_->carried()) {
    const std::vector<std::byte> zeros(std::size_t(state.shape().numel()) * size_of(state.dtype()));
    state.set_bytes(zeros.data());
  }
}

void Trainer::explain(const StepResult& result, std::int64_t position, std::uint64_t tick) {
  std::string what = fmt::format("training: step {} gave a value that is not finite", result.step), where;
  std::string numbers =
      fmt::format("loss {}, gradient norm {}, learning rate {:.3g}", result.loss, result.grad_norm, result.lr);
  data_->seek(position);
  rng_->set(rng_->seed(), tick);
  forget();
  const bool before = std::exchange(settings().check_nan, true);
  try {
    compute(false);  // the optimizer updates nothing until its flag is cleared
  } catch (const Error& e) {
    numbers += "\n  " + e.parts().what + ": " + e.parts().numbers, where = e.parts().where;
  }
  settings().check_nan = before;
  optimizer_.zero_grad();
  data_->seek(position);
  throw Error(ErrorKind::training,
              {what, numbers, where,
               "the weights are those before this step; try a smaller --lr or a longer --warmup, or leave such "
               "steps out: --skip-bad-steps N"});
}

std::string Trainer::sample(const std::string& prompt, std::int64_t tokens, double temperature, std::int64_t top_k,
                            std::uint64_t seed) {
  std::string text;
  generate_text(*model_, *data_->tokenizer(), prompt,
                {.tokens = tokens, .temperature = temperature, .top_k = top_k, .seed = seed},
                [&](std::string_view part) { text += part; });
  return text;
}

void Trainer::assist_save() const {
  if (options_.zero) optimizer_.state_dict();
}

void Trainer::save(const fs::path& folder) const {
  const bool again = fs::exists(folder / kState);  // over a checkpoint, but over nothing else
  write_folder(
      folder, [&](const fs::path& to) { write_files(to); }, again ? Replace::whatever : Replace::nothing);
}

void Trainer::write_files(const fs::path& folder) const {
  const std::string step = std::to_string(step_);
  json state = {
      {"format", kFormat},
      {"step", step_},
      {"bad_steps", bad_steps_},
      {"rng", {{"seed", rng_->seed()}, {"tick", rng_->tick()}}},
      {"data", {{"name", data_->name()}, {"hash", fmt::format("{:016x}", data_->hash())}, {"position", data_->position()}}},
      {"options", to_json(options_)},
      {"environment", environment()}};
  const std::string config = model_->config_json().dump(2) + "\n";
  write_safetensors(folder / "model.safetensors", model_->weights(), {{"format", "pt"}, {"step", step}});
  write_safetensors(folder / "optimizer.safetensors", optimizer_.state_dict(), {{"step", step}});
  if (carried_) write_safetensors(folder / kCarried, states_of(*carried_), {{"step", step}});
  if (pairs_)
    if (const TensorMap sampled = pairs_->sampled(); !sampled.empty())
      write_safetensors(folder / kSampled, sampled, {{"step", step}});
  if (!model_->parts<Adapter>().empty()) save_adapter(*model_, folder / kAdapterFolder, options_.from);
  if (const Tokenizer* t = data_->tokenizer(); t && !t->is_bytes()) t->save(folder / kTokenizerFile);
  save_choices(folder / "choices.json");
  write_file(folder / "config.json", std::as_bytes(std::span(config)));
  save_scan_patch(*model_, folder);
  state["files"] = checksums_of(folder, kState);
  // As it will be read: text that is no UTF-8 is replaced before it is summed.
  state = json::parse(state.dump(-1, ' ', false, json::error_handler_t::replace));
  seal(state);
  const std::string text = state.dump(2) + "\n";
  write_file(folder / kState, std::as_bytes(std::span(text)));
}

void check_files(const fs::path& folder, const SavedState& state) {
  std::string all;
  for (const std::string& line : differences(folder, state.files)) all += (all.empty() ? "" : "\n  ") + line;
  if (!all.empty())
    fail(ErrorKind::io, "the checkpoint is damaged: " + folder.string(), all, "use another checkpoint, or a copy of this one");
}

Trainer Trainer::resume(const fs::path& folder, std::shared_ptr<BatchSource> data) {
  return resume(folder, std::move(data), read_state(folder).options);
}

Trainer Trainer::resume(const fs::path& folder, std::shared_ptr<BatchSource> data, const TrainOptions& options) {
  const SavedState state = read_state(folder);
  check_files(folder, state);  // first, so that no part is taken for what it is not
  load_choices(folder / "choices.json");
  const fs::path file = folder / "config.json";
  const json config = read_json(file);
  TensorMap weights = read_part(folder / "model.safetensors", state.step);
  Trainer trainer(data, resolved(options), [&](const ComputeOptions& how) {
    auto model = family_of(config, file.string()).from_json(config, file.string(), how, &weights);
    if (fs::exists(folder / kAdapterFolder)) load_adapter(*model, folder / kAdapterFolder);
    return model;
  });
  if (state.data_hash != fmt::format("{:016x}", data->hash()))
    fail(ErrorKind::io, "resume: the text is not the one that training began with", data->name(),
         "give the same file with --data");
  trainer.model_->load_weights(std::move(weights));
  load_scan_patch(*trainer.model_, folder);
  trainer.optimizer_.load_state_dict(read_part(folder / "optimizer.safetensors", state.step));
  if (trainer.carried_) load_states(*trainer.carried_, read_part(folder / kCarried, state.step), folder / kCarried);
  if (trainer.pairs_ && fs::exists(folder / kSampled)) trainer.pairs_->set_sampled(read_part(folder / kSampled, state.step));
  trainer.data_->seek(state.position);
  trainer.rng_->set(state.seed, state.tick);
  trainer.step_ = state.step, trainer.bad_steps_ = state.bad_steps;
  trainer.share_weights();
  return trainer;
}

SavedState read_state(const fs::path& folder) {
  const fs::path file = folder / kState;
  if (!fs::exists(file))
    fail(ErrorKind::io, "resume: no training state", file.string(), "give a folder that `weft train --out` wrote");
  const json saved = read_json(file);
  SavedState state;
  try {
    if (saved.at("format") != kFormat)
      fail(ErrorKind::io, "resume: the checkpoint is of another version of weft",
           fmt::format("{}: format {}, this is weft {} with format {}", file.string(), saved.at("format").dump(), kVersion,
                       kFormat),
           "go on with the version that wrote it; its model.safetensors can be read by any");
    const auto read = [&]<class T>(const json& object, const char* key, T& value) {
      value = integer_at<T>(object, key, file.string());
    };
    read(saved, "step", state.step), read(saved, "bad_steps", state.bad_steps);
    read(saved.at("rng"), "seed", state.seed), read(saved.at("rng"), "tick", state.tick);
    read(saved.at("data"), "position", state.position), saved.at("data").at("hash").get_to(state.data_hash);
    state.options = options_from(settings_from_json(saved.at("options"), file.string()));
    state.environment = saved.at("environment");
    state.files = saved.value("files", json::object());
    if (has_seal(saved) && !is_sealed(saved))
      fail(ErrorKind::io, "resume: state.json is not what was written", file.string(), "use another checkpoint");
  } catch (const json::exception& e) {
    fail(ErrorKind::io, "resume: state.json is damaged", file.string() + ": " + reason_of(e), "use another checkpoint");
  }
  return state;
}

}  // namespace weft
