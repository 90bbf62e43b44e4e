// The options of a training run: one table of names, fields and help, with those of the model's family in it, gives the command
// line, --set, --config, config.json and what a checkpoint records.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "jit/sizes.h"
#include "models/language_model.h"

namespace weft {

// The defaults (preset "tiny") give readable text in a minute or two on two slow cores.
struct TrainOptions {
  std::string preset = "tiny";  // of the family
  std::int64_t steps = 800;
  double epochs = 0;            // > 0: as many steps as it takes to see the training part that many times
  std::int64_t batch = 8;       // windows a batch
  std::int64_t length = 128;    // tokens a window
  std::int64_t accumulate = 1;  // batches a step
  bool packed = false;          // documents do not see each other
  bool carry_state = false;     // a window goes on from the state at the end of the one before it
  std::string model = model_families().front().name;
  ModelOptions model_options = {};  // of its family; those that are absent have their defaults
  double lr = 4e-3;                 // at its peak
  double min_lr = 1e-5;             // at the end; that default becomes lr where it is larger
  std::int64_t warmup = 50;         // steps
  double weight_decay = 0.1;
  double clip = 1.0;
  std::uint64_t seed = 1;
  std::string data = "";            // a file; empty: the King James Bible
  std::string task = "";            // instead of data
  std::int64_t memorize = 4;        // tokens, in selective-copying
  std::string tokenizer = "bytes";  // "unigram", or a model file
  std::int64_t vocab = 4000;        // pieces of "unigram"
  std::string device = "auto";
  std::string precision = "auto";   // of activations; weights, residual stream and optimizer stay fp32. auto: bf16 on a GPU
  bool tf32 = false;                // products of fp32 on tensor cores
  bool recompute = false;           // blocks in backward, instead of keeping their values
  bool zero = false;                // of several ranks each keeps a part of the optimizer's state
  std::string exchange = "fp32";    // what ranks sum gradients in
  std::int64_t threads = 0;         // 0: as OMP_NUM_THREADS or the machine says
  std::int64_t eval_every = 500;    // steps; 0: at the end only
  std::int64_t eval_batches = 100;  // of the validation part; 0: all
  std::int64_t save_every = 500;    // steps; 0: at the end only
  std::int64_t keep = 2;            // checkpoints; 0: all
  std::int64_t skip_bad_steps = 0;  // steps whose loss or gradient may fail to be finite
  std::string prompt = "\n";
  std::int64_t sample = 500;  // tokens; 0: none
  double temperature = 0.7;
  std::int64_t top_k = 0;
  // What is trained: "pretrain" predicts the text; "orpo" prefers one of two (models/orpo.h), of data that is a PairStream.
  std::string stage = "pretrain";
  std::string from = "";   // a run, checkpoint or folder with the model to begin with; empty: a new one of the options
  std::string pairs = "";  // a file of pairs; empty: they are made from the text
  std::string reject = "corrupt";
  std::int64_t response = 0;  // tokens of a text's true and of its rejected continuation; 0: half of the length
  std::int64_t refresh = 0;   // steps between samplings of rejected texts; 0: an epoch, or all if they are fewer
  double orpo_lambda = 0.1;
  std::string orpo_form = "paper";
  bool nll_on_prompt = false;
  std::string adapter = "";  // "lora", "ia3": of the model of `from`, which is frozen; empty: the model itself is trained
  std::string targets = "";  // of the adapter (models/adapters.h); empty: usual_targets
  std::int64_t rank = 8;     // of LoRA
  double alpha = 16;
  double adapter_dropout = 0;

  // Errors (ErrorKind::usage): numbers that make no sense or are out of range, a task and a text.
  void check() const;
};

struct OptionInfo {
  const char* name;  // "weight_decay"; --weight-decay on the command line
  std::string help;
  std::vector<std::string> words = {};  // the only values, if there are any
  bool fixed = false;                   // resuming cannot change it
  double most = 0x1p53;                 // of whole numbers that count something: every sum and product of some fits 63 bits
};
inline constexpr double kMostSteps = 0x1p40;

OptionInfo model_info();                              // of --model: the families
OptionInfo preset_info(const TrainOptions& options);  // of --preset: the help has those of the family, the words all

// Calls f(info, field) for every option, those of the model's family with it, in the order of --help. Options: TrainOptions,
// const or not.
template <class Options, class F>
void each_option(Options& o, F&& f) {
  static_assert(std::is_same_v<std::remove_const_t<Options>, TrainOptions>);
  f(model_info(), o.model);
  f(preset_info(o), o.preset);
  f(OptionInfo{"data", "Text, .jsonl file of documents, or folder of shards; none: the King James Bible"}, o.data);
  f(OptionInfo{"task",
               "Instead of a text, a task of the Mamba paper: selective-copying or induction",
               {"", "selective-copying", "induction"},
               true},
    o.task);
  f(OptionInfo{"memorize", "Tokens to remember in selective-copying; 16 in the paper", {}, true, 0x1p30}, o.memorize);
  f(OptionInfo{"tokenizer", "bytes, unigram (made from the text), or a SentencePiece model", {}, true}, o.tokenizer);
  f(OptionInfo{"vocab", "Pieces of a unigram tokenizer", {}, true, 0x1p30}, o.vocab);
  for (const ModelOption& option : model_family(o.model).options) {
    const OptionInfo info{option.name, option.help, {}, true};
    if constexpr (std::is_const_v<Options>) {
      const auto given = o.model_options.find(option.name);
      std::visit([&](const auto& value) { f(info, value); }, given == o.model_options.end() ? option.fallback : given->second);
    } else {
      std::visit([&](auto& value) { f(info, value); }, o.model_options.try_emplace(option.name, option.fallback).first->second);
    }
  }
  f(OptionInfo{"steps", "Steps in all", {}, false, kMostSteps}, o.steps);
  f(OptionInfo{"epochs", "Instead of --steps: times the training part is seen"}, o.epochs);
  f(OptionInfo{"batch", "Windows of text a batch", {}, true, 0x1p30}, o.batch);
  f(OptionInfo{"length", "Tokens a window", {}, true, 0x1p30}, o.length);
  f(OptionInfo{"packed", "Documents do not see each other: each starts anew at the end of text before it", {}, true}, o.packed);
  f(OptionInfo{"carry_state",
               "A window goes on from the states at the end of the one before it in the text, without gradients into it",
               {},
               true},
    o.carry_state);
  f(OptionInfo{"accumulate", "Batches a step, whose gradients are averaged", {}, true, 0x1p20}, o.accumulate);
  f(OptionInfo{"lr", "Learning rate after the warm-up; a cosine takes it to --min-lr"}, o.lr);
  f(OptionInfo{"min_lr", "Learning rate at the end"}, o.min_lr);
  f(OptionInfo{"warmup", "Steps of linear warm-up"}, o.warmup);
  f(OptionInfo{"weight_decay", "Weight decay of AdamW"}, o.weight_decay);
  f(OptionInfo{"clip", "Largest norm of the gradient; 0: no clipping"}, o.clip);
  f(OptionInfo{"seed", "Seed of the weights, the batches and the sample", {}, true}, o.seed);
  f(OptionInfo{"device",
               "Where to compute: auto (cuda if there is a GPU), cpu, cuda, emu (CUDA kernels interpreted)",
               {"auto", "cpu", "cuda", "emu"}},
    o.device);
  f(
      OptionInfo{
          "precision", "Activations: fp32, bf16, or auto (bf16 on a GPU); weights stay fp32", {"auto", "fp32", "bf16"}, true},
      o.precision);
  f(OptionInfo{"tf32", "Let products of fp32 round their operands to tf32 on a GPU", {}, true}, o.tf32);
  f(OptionInfo{"recompute", "Compute blocks again in backward, which needs less memory"}, o.recompute);
  f(OptionInfo{"zero", "Of several ranks each keeps a part of the optimizer's state (ZeRO-1)"}, o.zero);
  f(OptionInfo{"exchange", "What several ranks sum their gradients in: fp32, or bf16, which is half as much", {"fp32", "bf16"}},
    o.exchange);
  f(OptionInfo{"threads", "Threads; 0: as many as OMP_NUM_THREADS or the machine says", {}, false, kMostThreads}, o.threads);
  f(OptionInfo{"eval_every", "Steps between validations; 0: at the end only"}, o.eval_every);
  f(OptionInfo{"eval_batches", "Batches of a validation; 0: the whole validation part"}, o.eval_batches);
  f(OptionInfo{"save_every", "Steps between checkpoints; 0: at the end only"}, o.save_every);
  f(OptionInfo{"keep", "Checkpoints to keep, the newest; 0: all"}, o.keep);
  f(OptionInfo{"skip_bad_steps", "Steps that may fail with a value that is not finite, and are left out"}, o.skip_bad_steps);
  f(OptionInfo{"prompt", "What the sample at the end begins with"}, o.prompt);
  f(OptionInfo{"sample", "Tokens of the sample at the end; 0: none", {}, false, 0x1p40}, o.sample);
  f(OptionInfo{"temperature", "Temperature of the sample; 0: always the most probable token"}, o.temperature);
  f(OptionInfo{"top_k", "Sample among the k most probable tokens; 0: all"}, o.top_k);
  f(OptionInfo{"stage",
               "pretrain: predict the text; orpo: prefer one of two texts (then --lr 1e-4 --min-lr 0 --warmup 100 "
               "--weight-decay 0.01 unless given)",
               {"pretrain", "orpo"},
               true},
    o.stage);
  f(
      OptionInfo{
          "from", "Run, checkpoint or folder whose model to begin with; of a run its text, sizes and tokenizer, too", {}, true},
      o.from);
  f(OptionInfo{"pairs",
               R"(For orpo, a .jsonl file of {"prompt", "chosen", "rejected"}; none: pairs are made from the text)",
               {},
               true},
    o.pairs);
  f(OptionInfo{"reject",
               "For orpo, what stands against a text's true continuation: its tokens in random order (shuffle), with 30 % of "
               "them replaced (corrupt), that of another place (swap), or what the model writes (sample)",
               {"shuffle", "corrupt", "swap", "sample"},
               true},
    o.reject);
  f(OptionInfo{"response", "For orpo, tokens of a continuation; 0: half of --length", {}, true, 0x1p30}, o.response);
  f(OptionInfo{"refresh",
               "For --reject sample, steps between samplings; 0: as many as it takes to see every pair, at most --steps",
               {},
               true,
               kMostSteps},
    o.refresh);
  f(OptionInfo{"orpo_lambda", "Weight of the preference in the loss; 0: the chosen texts alone"}, o.orpo_lambda);
  f(OptionInfo{"orpo_form",
               "paper, or seed: the loss of the chosen texts times 1 + --orpo-lambda, which prefers nothing",
               {"paper", "seed"},
               true},
    o.orpo_form);
  f(OptionInfo{"nll_on_prompt", "For orpo, predict the prompts, too, not only the chosen responses", {}, true},
    o.nll_on_prompt);
  f(OptionInfo{"adapter",
               "Train an adapter of the model of --from, which stays as it is: lora or ia3; none: the model itself",
               {"", "lora", "ia3"},
               true},
    o.adapter);
  f(
      OptionInfo{
          "targets",
          "Layers with adapters: names as in_proj, or ssm, attention, mlp, all, embedding, head, with commas; x_proj:16:32 "
          "with rank and alpha of its own; of ia3 out_proj:in scales the input. None: ssm, or attention where that is none",
          {},
          true},
      o.targets);
  f(OptionInfo{"rank", "Rank of LoRA", {}, true, 0x1p30}, o.rank);
  f(OptionInfo{"alpha", "LoRA is multiplied with alpha / rank", {}, true}, o.alpha);
  f(OptionInfo{"adapter_dropout", "Dropout of LoRA's inputs", {}, true}, o.adapter_dropout);
}

std::string flag_of(const std::string& name);  // "--weight-decay"

// Errors (ErrorKind::usage): an option of the family has the name of one of training, a preset sets what is no option or a
// value that it cannot have. options_from and the command line check the families that they meet.
void check_family(const ModelFamily& family);

// A name and a value as text: "lr", "1e-3". Names may be written with - or _.
using OptionSetting = std::pair<std::string, std::string>;

// Errors (ErrorKind::usage): no such option (with a suggestion), one that the model lacks, not a value of its kind.
void set_option(TrainOptions& options, const OptionSetting& setting);
OptionSetting split_setting(const std::string& text);  // "lr=1e-3"

// The defaults of the last model among the settings, changed by the last preset among them (without one, the family's for a
// task, or its first one), by what the stage "orpo" begins with, then by the settings in their order.
TrainOptions options_from(const std::vector<OptionSetting>& settings);
// `saved`, changed by the settings. Errors (ErrorKind::usage): one that must stay as it is.
TrainOptions resumed_options(const TrainOptions& saved, const std::vector<OptionSetting>& settings);

ComputeOptions compute_options(const TrainOptions& options);  // precision: fp32 or bf16, not auto

nlohmann::json to_json(const TrainOptions& options);  // errors (ErrorKind::usage): a text that is not UTF-8
// The settings in a JSON object with one key for each option; `name` of the file appears in errors, which are ErrorKind::io.
std::vector<OptionSetting> settings_from_json(const nlohmann::json& json, const std::string& name);

}  // namespace weft
