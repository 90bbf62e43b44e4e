// A language model as training, evaluation, generation and the tools know it, and the registry of their families. A family is
// its own files (models/family.h helps to write them) and one line in models/families.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "nn/module.h"
#include "ops/ops.h"

namespace weft {

// ---- models -----------------------------------------------------------------------------------------------------------------

// fill: start at time 0; go_on: start where the cache is; carry: likewise, but with gradients, and rows may begin anew. All
// leave it at the end.
enum class CacheUse { none, fill, go_on, carry };

// What a model remembers of each sequence between steps: States, which a step's run writes. Each family has its own.
class ModelCache {
 public:
  explicit ModelCache(std::int64_t sequences);
  virtual ~ModelCache() = default;
  const std::int64_t batch;
  std::int64_t tokens() const { return progress_->tokens; }  // that it has seen of each sequence, with padding
  Tensor pads() const;  // (b) integers: how many of these are padding; absent if no sequence has any
  virtual std::vector<State> carried() const { return {}; }  // what is carried from batch to batch, for checkpoints

 private:
  friend class LanguageModel;
  struct Progress {
    std::int64_t tokens = 0;
    bool padded = false;
    std::uint64_t epoch = 0;  // of the recording that it was last used in
  };
  std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();  // as of the runs that have been executed
  State pads_;                                                         // (b)
};

// What a cache holds for one sequence.
struct CacheBytes {
  double attention = 0;         // keys and values
  double states = 0;            // of convolutions and recurrences, whatever the length
  double attention_global = 0;  // keys and values if every layer of attention had a cache of its own, of the whole text
  std::int64_t layers = 0;      // of attention
  std::int64_t caches = 0;      // that they have: fewer, where layers share one
};
std::string to_text(const CacheBytes& bytes, std::int64_t length);  // for people: "cache of 256 tokens: 1.05 MB, ..."

enum class CheckpointNames { hugging_face, original };  // whose names of weights and keys of config.json

struct SpecialTokens {
  std::optional<std::int64_t> bos = {};  // nothing: the model has no such token
  std::vector<std::int64_t> eos = {};    // any of them ends a text
  std::optional<std::int64_t> pad = {};

  bool ends(std::int64_t id) const { return std::find(eos.begin(), eos.end(), id) != eos.end(); }
};

// How the rows of a batch, b texts of t tokens, hang together and with those of the batch before.
struct TextFlow {
  Documents segments = {};              // documents packed one after the other in each row, which do not see each other
  const ModelCache* carried = nullptr;  // the states at the end of the batch before, which become those at the end of this one
  Tensor continues = {};                // (b) integers, 0: this row begins a text, not where the carried states are
};

// How a model computes, which its config.json does not say.
struct ComputeOptions {
  DType dtype = DType::f32;  // f32; f64; or bf16: activations in bf16, weights in f32
  bool recompute = false;    // backward evaluates the blocks again instead of keeping their values
};

struct ScanPatch;  // models/scan_patch.h

// For scan orders: where the features of the residual stream lie.
struct StreamLayout {
  struct Axis {
    Param param;
    int axis;     // of the parameter, along which there is an element for each feature
    bool mixers;  // it belongs to a mixer or to the norm before it
  };
  std::int64_t width = 0;
  std::vector<std::string> mixers = {};  // paths of the modules that read the stream, after a norm; none: it takes no order
  std::vector<Axis> axes = {};
};

// Shapes: b batch, t time, v rows of the head: the vocabulary, possibly padded.
class LanguageModel : public Layer<LanguageModel> {
 public:
  // ids (b, t), integers in [0, vocab) -> logits (b, t, v)
  virtual Tensor forward(const Tensor& ids) = 0;
  // The same for texts that hang together as `flow` says. No gradient goes back into the batch before. Errors
  // (ErrorKind::usage): the model has no such layers (can_flow), or the cache is another one's.
  Tensor flow(Arg ids, const TextFlow& flow);
  // What the family takes part in, and of what it cannot the reason: "packed documents", "carried states".
  virtual std::string cannot_pack() const { return "its family does not know of them"; }
  virtual std::string cannot_carry() const { return "its family has no states of one size"; }

  virtual std::unique_ptr<ModelCache> make_cache(std::int64_t batch) const = 0;
  // Logits (b, v) after the last of the ids (b, t), t >= 1, which stand at the beginning of a text, or where the cache is. No
  // gradients; once in a run. `lengths` (b), integers from 1 to t: of texts that are padded on the right to one length, with
  // any ids; the result and the cache are those of the texts alone. Errors (ErrorKind::usage): another batch than the cache's,
  // the cache of another model, more tokens than the model's context.
  Tensor prefill(Arg ids, const ModelCache& cache, const Tensor& lengths = {});
  Tensor step(Arg ids, const ModelCache& cache);
  virtual CacheBytes cache_bytes(std::int64_t length) const = 0;  // after so many tokens

  // The order in which its mixers read; null: as things stand. Changed by apply_scan_patch and remove_scan_patch.
  const ScanPatch* scan_patch() const { return scan_patch_->get(); }
  virtual StreamLayout stream_layout() const { return {}; }

  virtual std::int64_t vocab() const = 0;                             // token ids are below it
  virtual std::optional<std::int64_t> context() const { return {}; }  // tokens of the longest text; nothing: any
  virtual SpecialTokens special_tokens() const = 0;
  virtual std::string description() const = 0;  // "Mamba, 4 layers, width 128, state 16, 499328 parameters"
  // Of forward, as a mean over a sequence of `length` tokens: a multiply-add is 2, an exp 1; norms and activations are left
  // out. A training step has about three times as many.
  virtual double flops_per_token(std::int64_t length) const = 0;

  // Errors (ErrorKind::usage): this model has no such form.
  virtual nlohmann::json config_json(CheckpointNames names = CheckpointNames::hugging_face) const = 0;
  virtual TensorMap weights(CheckpointNames names = CheckpointNames::hugging_face) const = 0;
  virtual void load_weights(TensorMap tensors) = 0;  // names of either form; strict, as load_state_dict

  // A folder as `save_pretrained` writes it: config.json of any family, in either form, model.safetensors or shards; and the
  // adapter in it, if it has one (models/adapters.h). `dtype` is that of the weights, f32 or f64; bf16: weights in f32,
  // activations in bf16.
  static std::unique_ptr<LanguageModel> load(const std::filesystem::path& folder, DType dtype = DType::f32);
  static std::unique_ptr<LanguageModel> load(const std::filesystem::path& folder, const ComputeOptions& how);
  // config.json in the form of the names, model.safetensors or, above `shard_bytes`, shards; and the adapter "default" in a
  // folder of its own, if there is one that is not merged.
  void save(const std::filesystem::path& folder, CheckpointNames names = CheckpointNames::hugging_face,
            std::size_t shard_bytes = kShardBytes) const;

 protected:
  // Of flow, where this family can. Not called for an empty one.
  virtual Tensor forward_in(const Tensor& ids, const TextFlow& flow);
  // Of prefill and step. `lengths`: of prefill, absent if no text is padded; last_of, last_inputs (models/family.h) serve.
  virtual Tensor last_logits(const Tensor& ids, const ModelCache& cache, CacheUse use, const Tensor& lengths) = 0;

 private:
  friend struct ScanPatches;
  Tensor go(const Arg& ids, const ModelCache& cache, CacheUse use, const Tensor& lengths);
  std::shared_ptr<std::shared_ptr<const ScanPatch>> scan_patch_ = std::make_shared<std::shared_ptr<const ScanPatch>>();
};

// ---- families ---------------------------------------------------------------------------------------------------------------

// The tokens that a new model is to know.
struct Vocabulary {
  std::int64_t size = 256;
  std::optional<std::int64_t> eos = {};
};

// An option of `weft train --model FAMILY`, such as a size. Negative numbers are refused.
using OptionValue = std::variant<bool, std::int64_t, double, std::string>;
struct ModelOption {
  const char* name;      // "width"; --width on the command line
  const char* help;      // "Width of the model"
  OptionValue fallback;  // its type is that of the option
};
using ModelOptions = std::map<std::string, OptionValue>;  // by name; an absent one has its default

// Values that the options of a run begin with, the family's own and those of training.
struct Preset {
  std::string name;
  std::string note = {};  // for help: "10 M"
  std::vector<std::pair<std::string, std::string>> settings = {};
};

struct ModelFamily {
  std::string name;                      // of --model: "mamba"
  std::string title;                     // "Mamba"
  std::vector<std::string> model_types;  // of the config.json that it reads
  // Whether a config.json without a model_type is of this family. The first that says so reads it, and if none does the default
  // family, which needs not say it.
  std::function<bool(const nlohmann::json&)> recognises = {};
  std::vector<Preset> presets = {};  // the first one is the default; "task", if there is one, is that of --task
  std::vector<ModelOption> options = {};

  // A model with values to be drawn, or for `weights` to be loaded: before it takes memory, their number is compared with its
  // own (check_size). They may have no bytes yet, of a folder whose values are read when the model is there. Errors
  // (ErrorKind::io): everything that is wrong in the configuration, which comes from `file`.
  std::function<std::unique_ptr<LanguageModel>(const nlohmann::json& config, std::string_view file, const ComputeOptions& how,
                                               const TensorMap* weights)>
      from_json = {};
  // Errors (ErrorKind::usage): an option that the family lacks or of another type, sizes that make no sense.
  std::function<std::unique_ptr<LanguageModel>(const ModelOptions& options, const Vocabulary& vocabulary,
                                               const ComputeOptions& how)>
      from_options = {};

  const Preset* preset(const std::string& name) const;  // null: there is none
};

// They live as long as the process.
const std::deque<ModelFamily>& model_families();         // the first one is the default
const ModelFamily& model_family(std::string_view name);  // errors (ErrorKind::usage): none of that name
// The one that reads this config.json. Errors (ErrorKind::io): an unknown model_type.
const ModelFamily& family_of(const nlohmann::json& config, std::string_view file = "config.json");
// One more in this program, from now on. Errors (ErrorKind::usage): a name or model_type that there is already, no preset, no
// from_json or from_options, a name that cannot be written on a command line, an option that has another type in another
// family. Whether options and presets go with those of training is checked when these are read (tools/train/train_options.h).
void add_model_family(ModelFamily family);

// The config.json of a folder. Of special tokens it says what generation_config.json does, if there is one, as transformers has
// it. Errors (ErrorKind::io): there is none, with what lies there instead, not JSON.
nlohmann::json read_model_config(const std::filesystem::path& folder);

// For a configuration from a file: an error (ErrorKind::io) if it has more than twice the parameters that the tensors have.
void check_size(std::int64_t parameters, const TensorMap& tensors);

}  // namespace weft
