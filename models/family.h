// For the file of a family: a ModelFamily from a configuration struct, its reader and its table of options. The struct has,
// besides the family's own fields,
//   vocab                      tokens that the model knows
//   bos, pad                   std::optional<std::int64_t>
//   eos                        std::vector<std::int64_t>
//   dtype, activations         f32 or f64, of the parameters; bf16: of what the layers take and give
//   recompute                  backward evaluates the blocks again
//   parameter_count()          without taking memory
// and Model has Model::Config and a constructor that takes one and checks it.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "autograd/hole.h"
#include "jit/error.h"
#include "models/language_model.h"

namespace weft {

std::vector<ModelFamily> built_in_families();  // the list, in models/families.cpp

// An option, and the field of the configuration that it sets.
template <class Config>
struct ConfigOption {
  const char* name;
  const char* help;
  std::variant<bool Config::*, std::int64_t Config::*, double Config::*, std::string Config::*> field;
  OptionValue fallback;
};

template <class Config>
using ReadConfig = Config (*)(const nlohmann::json& config, std::string_view file);

template <class Config>
void set_compute(Config& config, const ComputeOptions& how) {
  config.dtype = how.dtype == DType::f64 ? DType::f64 : DType::f32;
  config.activations = how.dtype == DType::bf16 ? DType::bf16 : DType::f32;
  config.recompute = how.recompute;
}

template <class Config>
void set_field(Config& config, const ConfigOption<Config>& option, const OptionValue& value) {
  std::visit(
      [&](auto field) {
        using T = std::remove_cvref_t<decltype(config.*field)>;
        if (const T* same = std::get_if<T>(&value)) {
          config.*field = *same;
        } else {
          fail(ErrorKind::usage, fmt::format("option '{}' is given a value of another type", option.name));
        }
      },
      option.field);
}

// Errors (ErrorKind::usage): an option that is not among the family's.
void check_option_names(const ModelFamily& family, const ModelOptions& given);

template <class Config>
Config config_from_options(const std::vector<ConfigOption<Config>>& table, const ModelOptions& given, const Vocabulary& v) {
  Config config;
  config.vocab = v.size;
  if (v.eos) config.eos = {*v.eos};
  for (const ConfigOption<Config>& option : table) {
    const auto found = given.find(option.name);
    set_field(config, option, found == given.end() ? option.fallback : found->second);
  }
  return config;
}

// `family` comes with names and help; this adds the table of options and how a model is made. A folder's tensors go through the
// model's load_weights without bytes first, so that a folder that does not fit is refused before it is read.
template <class Model>
ModelFamily make_family(ModelFamily family, std::vector<ConfigOption<typename Model::Config>> table,
                        ReadConfig<typename Model::Config> read) {
  using Config = typename Model::Config;
  for (const ConfigOption<Config>& option : table) family.options.push_back({option.name, option.help, option.fallback});
  family.from_json = [read](const nlohmann::json& object, std::string_view file, const ComputeOptions& how,
                            const TensorMap* weights) {
    Config config = read(object, file);
    set_compute(config, how);
    if (weights) check_size(config.parameter_count(), *weights);
    auto model = std::make_unique<Model>(std::move(config));
    if (weights && std::ranges::any_of(*weights, [](const auto& entry) { return entry.second.described(); }))
      model->load_weights(*weights);  // compares shapes
    return model;
  };
  const auto names = std::make_shared<const ModelFamily>(family);
  family.from_options = [table = std::move(table), names](const ModelOptions& given, const Vocabulary& v,
                                                          const ComputeOptions& how) {
    check_option_names(*names, given);
    Config config = config_from_options(table, given, v);
    set_compute(config, how);
    return std::make_unique<Model>(std::move(config));
  };
  return family;
}

// ---- weights ----------------------------------------------------------------------------------------------------------------

// Gives a tensor its other name, if it is there. Errors (ErrorKind::io): it is there under both.
void rename_tensor(TensorMap& tensors, std::string_view from, std::string_view to);
// Of a model whose head is its embedding: what a file has under the name of the head, there or there alone, becomes the
// embedding. Errors (ErrorKind::io): it is there under both names, with other values.
void drop_tied_head(TensorMap& tensors, std::string_view head, std::string_view embedding);

// What forward does first. Errors (ErrorKind::usage): ids are not (b, t), or t is larger than `longest` (nothing: any).
void check_texts(const Tensor& ids, std::optional<std::int64_t> longest, Site where = Site::current());

// LanguageModel::load of a folder that has this family. Errors (ErrorKind::io): it has another.
template <class Model>
Model load_as(const std::filesystem::path& folder, DType dtype, std::string_view title) {
  const auto model = LanguageModel::load(folder, dtype);
  if (const Model* own = dynamic_cast<const Model*>(model.get())) return *own;
  fail(ErrorKind::io, fmt::format("{}: the model is no {}", folder.string(), title), model->description(),
       "LanguageModel::load reads any");
}

// ---- texts of unequal length ------------------------------------------------------------------------------------------------
//
// A batch of them is padded on the right; `ends` (b), integers, is where each ends. What follows in time needs no more: a layer
// that looks back does not see the padding. Absent ends: no text is padded.

Tensor rows_of(const Tensor& x, const Tensor& from);  // x (b, t, d), places (b, n) in each sequence -> (b, n, d)
Tensor last_of(const Tensor& x, const Tensor& ends);  // x (b, t, d) -> (b, d), what stands at the end of each
// x (b, t, d) -> (b, n, d): the last n of each, zeros where it is shorter: what a convolution remembers. Ends are not absent.
Tensor last_inputs(const Tensor& x, std::int64_t n, const Tensor& ends);
// The step size of a scan (ScanOptions::delta) that leaves the state where a text has ended: softplus(raw + bias(i)), 0 after
// it.
HoleOf<1, 3> until(const Tensor& ends, const Tensor& bias);

// ---- what a layer is told of a call -----------------------------------------------------------------------------------------

struct SequencePass {
  CacheUse use = CacheUse::none;
  Tensor ends = {};  // (b): of a fill with texts that are padded on the right, where each ends; absent if none is
  Documents segments = {};
  Tensor continues = {};            // (b): see TextFlow; absent: all rows do
  Tensor order = {}, inverse = {};  // (b, t): the place that a mixer reads at each, and where it has put each; absent: as it is
};
// `pass` with the order of the model's scan patch, if it has one of tokens, for b texts of t. Errors (ErrorKind::usage): then
// the pass may have no cache and no documents.
SequencePass in_scan_order(const LanguageModel& model, SequencePass pass, std::int64_t b, std::int64_t t);
// What a layer begins with: its state of the cache, if the call goes on from there, zeros for rows that do not; else absent.
Tensor begin_with(const State& state, const SequencePass& pass);

// Errors (ErrorKind::usage): the model cannot.
void check_flow(const LanguageModel& model, bool packed, bool carried, Site where = Site::current());

// The cache of this family. Errors (ErrorKind::usage): it is that of another one.
template <class Cache>
const Cache& cache_of(const ModelCache& cache) {
  const Cache* own = dynamic_cast<const Cache*>(&cache);
  if (!own) fail(ErrorKind::usage, "model: the cache belongs to another model", {}, "make one with make_cache of this model");
  return *own;
}

}  // namespace weft
