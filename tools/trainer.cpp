#include "tools/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "nn/json.h"
#include "nn/safetensors.h"
#include "ops/ops.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kTokenizerFile = "tokenizer.model";

MambaConfig config_of(const TrainOptions& o, std::int64_t vocabulary) {
  return {.vocab = vocabulary, .width = o.width, .layers = o.layers, .state = o.state,
          .activations = o.bf16 ? DType::bf16 : DType::f32};
}

void check_options(const TrainOptions& o) {
  if (o.steps < 1) fail(ErrorKind::usage, "train: at least one step is needed", fmt::format("steps {}", o.steps));
  if (!(o.lr > 0) || !(o.min_lr >= 0) || o.warmup < 0 || !(o.weight_decay >= 0) || !(o.clip >= 0))
    fail(ErrorKind::usage, "train: lr must be positive; min_lr, warmup, weight_decay and clip may not be negative",
         fmt::format("lr {}, min_lr {}, warmup {}, weight_decay {}, clip {}", o.lr, o.min_lr, o.warmup, o.weight_decay,
                     o.clip));
}

Mamba make_model(const MambaConfig& config, Rng& rng) {
  UseRng use(rng);
  Mamba model(config);
  model.initialise();
  return model;
}

json to_json(const TrainOptions& o) {
  return {{"steps", o.steps},   {"batch", o.batch},
          {"length", o.length}, {"width", o.width},
          {"layers", o.layers}, {"state", o.state},
          {"lr", o.lr},         {"min_lr", o.min_lr},
          {"warmup", o.warmup}, {"weight_decay", o.weight_decay},
          {"clip", o.clip},     {"seed", o.seed},
          {"precision", o.bf16 ? "bf16" : "fp32"}};
}

TrainOptions options_from(const json& j) {
  TrainOptions o;
  j.at("steps").get_to(o.steps), j.at("batch").get_to(o.batch), j.at("length").get_to(o.length);
  j.at("width").get_to(o.width), j.at("layers").get_to(o.layers), j.at("state").get_to(o.state);
  j.at("lr").get_to(o.lr), j.at("min_lr").get_to(o.min_lr), j.at("warmup").get_to(o.warmup);
  j.at("weight_decay").get_to(o.weight_decay), j.at("clip").get_to(o.clip), j.at("seed").get_to(o.seed);
  o.bf16 = j.value("precision", "fp32") == "bf16";
  return o;
}

json read_state(const fs::path& folder) {
  const fs::path file = folder / "state.json";
  if (!fs::exists(file))
    fail(ErrorKind::io, "resume: no training state", file.string(), "give a folder that `weft train --out` wrote");
  return read_json(file);
}

// A safetensors file of a checkpoint, which must be of training step `step`.
TensorMap read_part(const fs::path& file, std::int64_t step) {
  std::map<std::string, std::string> metadata;
  TensorMap tensors = read_safetensors(file, &metadata);
  if (metadata["step"] != std::to_string(step))
    fail(ErrorKind::io, "resume: the files of the checkpoint belong to different steps",
         fmt::format("{} is of step {}, state.json of step {}", file.string(), metadata["step"], step),
         "saving was interrupted; use an older copy, or start anew");
  return tensors;
}

}  // namespace

Trainer::Trainer(std::shared_ptr<BatchSource> data, TrainOptions options)
    : Trainer(data, options, config_of(options, data->vocabulary())) {}

Trainer::Trainer(std::shared_ptr<BatchSource> data, TrainOptions options, MambaConfig config)
    : options_((check_options(options), options)),
      rng_(std::make_unique<Rng>(options.seed)),
      data_(std::move(data)),
      model_(make_model(config, *rng_)),
      optimizer_(model_.parameters(),
                 {.lr = options.lr, .weight_decay = options.weight_decay, .clip_norm = options.clip}) {}

void Trainer::set_steps(std::int64_t steps) {
  options_.steps = steps;
  check_options(options_);
}

StepResult Trainer::step() {
  UseRng use(*rng_);
  const TrainOptions& o = options_;
  const WarmupCosine rate(
      {.peak = o.lr, .warmup = o.warmup, .steps = o.steps, .min = std::min(o.min_lr, o.lr), .warmup_offset = 1});
  const std::int64_t done = data_->position();
  optimizer_.set_lr(rate(done));
  const auto record = [&](const Batch& batch) {
    Tensor loss = cross_entropy(model_(batch.inputs), batch.targets);
    backward(loss);
    optimizer_.step();
    return std::pair(loss, optimizer_.grad_norm());
  };
  const auto [loss, norm] = run(record, data_->next());
  const StepResult result{done + 1, loss.item(), norm.item(), optimizer_.lr()};
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    data_->seek(done);
    fail(ErrorKind::training, fmt::format("training: step {} gave a value that is not finite", result.step),
         fmt::format("loss {}, gradient norm {}, learning rate {:.3g}", result.loss, result.grad_norm, result.lr),
         "the weights are those before this step; try a smaller --lr or a longer --warmup, or see WEFT_CHECK=nan");
  }
  return result;
}

Validation Trainer::validate(std::int64_t batches) {
  const Evaluating scope(model_);
  const std::int64_t all = data_->validation_batches();
  const auto record = [&](const Batch& batch) {
    return no_grad([&] { return cross_entropy(model_(batch.inputs), batch.targets, {.reduction = Reduction::sum}); });
  };
  Validation result;
  for (std::int64_t b = 0; b < (batches > 0 ? std::min(batches, all) : all); ++b) {
    const Batch batch = data_->validation(b);
    result.loss += run(record, batch).item();
    result.tokens += batch.counted, result.characters += batch.characters;
  }
  result.loss /= double(result.tokens);
  return result;
}

std::string Trainer::sample(const std::string& prompt, std::int64_t tokens, double temperature, std::int64_t top_k,
                            std::uint64_t seed) {
  const Tokenizer& tokenizer = *data_->tokenizer();
  return tokenizer.decode(generate(model_, tokenizer.encode(prompt.empty() ? "\n" : prompt),
                                   {.tokens = tokens, .temperature = temperature, .top_k = top_k, .seed = seed}));
}

void Trainer::save(const fs::path& folder) const {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail(ErrorKind::io, "save: the folder cannot be made", folder.string() + ": " + error.message());
  const std::string step = std::to_string(steps_done());
  json state = {{"format", 1},
                {"step", steps_done()},
                {"rng", {{"seed", rng_->seed()}, {"tick", rng_->tick()}}},
                {"data", {{"name", data_->name()}, {"hash", fmt::format("{:016x}", data_->hash())}}},
                {"options", to_json(options_)}};
  const std::string config = to_hugging_face(model_.config()).dump(2) + "\n", text = state.dump(2) + "\n";
  write_safetensors(folder / "model.safetensors", model_.weights(), {{"format", "pt"}, {"step", step}});
  write_safetensors(folder / "optimizer.safetensors", optimizer_.state_dict(), {{"step", step}});
  if (const Tokenizer* t = data_->tokenizer(); t && !t->is_bytes()) t->save(folder / kTokenizerFile);
  write_file(folder / "config.json", std::as_bytes(std::span(config)));
  write_file(folder / "state.json", std::as_bytes(std::span(text)));
}

Trainer Trainer::resume(const fs::path& folder, std::shared_ptr<BatchSource> data) {
  const json state = read_state(folder);
  const std::string config_file = (folder / "config.json").string();
  TrainOptions options;
  std::int64_t step = 0;
  std::uint64_t seed = 0, tick = 0;
  std::string hash;
  try {
    if (state.at("format") != 1)
      fail(ErrorKind::io, "resume: state.json is of another version of weft", state.at("format").dump());
    options = options_from(state.at("options"));
    state.at("step").get_to(step);
    state.at("rng").at("seed").get_to(seed), state.at("rng").at("tick").get_to(tick);
    state.at("data").at("hash").get_to(hash);
  } catch (const json::exception& e) {
    fail(ErrorKind::io, "resume: state.json is damaged", e.what());
  }
  MambaConfig config = mamba_config_from_json(read_json(config_file), config_file);
  config.activations = options.bf16 ? DType::bf16 : DType::f32;
  Trainer trainer(data, options, config);
  if (hash != fmt::format("{:016x}", data->hash()))
    fail(ErrorKind::io, "resume: the text is not the one that training began with", data->name(),
         "give the same file with --data");
  trainer.model_.load_weights(read_part(folder / "model.safetensors", step));
  trainer.optimizer_.load_state_dict(read_part(folder / "optimizer.safetensors", step));
  trainer.data_->seek(step);
  trainer.rng_->set(seed, tick);
  return trainer;
}

std::optional<fs::path> saved_data_file(const fs::path& folder) {
  const json state = read_state(folder);
  const auto data = state.find("data");
  if (data == state.end() || !data->is_object() || !data->contains("name") || !(*data)["name"].is_string())
    fail(ErrorKind::io, "resume: state.json is damaged", "data.name");
  const std::string name = (*data)["name"];
  return fs::exists(name) ? std::optional<fs::path>(name) : std::nullopt;
}

Tokenizer saved_tokenizer(const fs::path& folder) {
  return fs::exists(folder / kTokenizerFile) ? Tokenizer::load(folder / kTokenizerFile) : Tokenizer::bytes();
}

std::optional<TrainOptions> saved_options(const fs::path& folder) {
  if (!fs::exists(folder / "state.json")) return std::nullopt;
  try {
    return options_from(read_state(folder).at("options"));
  } catch (const json::exception& e) {
    fail(ErrorKind::io, "resume: state.json is damaged", e.what());
  }
}

}  // namespace weft
