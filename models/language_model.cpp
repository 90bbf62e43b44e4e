#include "models/language_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "models/adapters.h"
#include "models/family.h"
#include "models/scan_patch.h"
#include "ops/ops.h"

namespace weft {

using nlohmann::json;

// ---- models -----------------------------------------------------------------------------------------------------------------

namespace {

void check_ids(const Arg& ids, const ModelCache& cache) {
  const Shape shape = ids.shape();
  if (shape.rank() != 2 || shape[0] != cache.batch || shape[1] < 1)
    fail_at(ids.where(), "model: ids must be (batch of the cache, at least one)",
            fmt::format("ids {}, cache batch {}", to_string(shape), cache.batch),
            "make_cache(n) makes a cache for n sequences");
}

void check_lengths(const Arg& ids, const Tensor& lengths) {
  if (is_integer(lengths.dtype()) && lengths.shape() == Shape{ids.shape()[0]}) return;
  fail_at(
      ids.where(), "model: lengths must be one integer for each sequence",
      fmt::format("lengths {} of {}, ids {}", to_string(lengths.shape()), name_of(lengths.dtype()), to_string(ids.shape())));
}

// The lengths, or, for one that no text of t tokens has, a place that nothing is at: reading what stands there is an error,
// which the run finds, since only it knows the numbers.
Tensor lengths_up_to(const Tensor& lengths, std::int64_t t) {
  constexpr std::int64_t kNowhere = -(std::int64_t(1) << 40);
  const auto known = [&](Expr n) { return where(n >= Expr(1) && n <= Expr(t), n, Expr(kNowhere)); };
  return pointwise("lengths", {lengths.dtype() == DType::i64 ? lengths : cast(lengths, DType::i64)}, known);
}

}  // namespace

ModelCache::ModelCache(std::int64_t sequences) : batch(sequences), pads_({sequences}, DType::i64, "cache.pads") {}

Tensor ModelCache::pads() const { return progress_->padded ? pads_.read() : Tensor{}; }

std::string to_text(const CacheBytes& c, std::int64_t length) {
  const auto size = [](double bytes) {
    return bytes < 1e6 ? fmt::format("{:.1f} kB", bytes / 1e3) : fmt::format("{:.2f} MB", bytes / 1e6);
  };
  std::string text = fmt::format("cache of {} tokens: {}", length, size(c.attention + c.states));
  if (c.layers > 0)
    text += fmt::format("; keys and values {} in {} caches of {} layers", size(c.attention), c.caches, c.layers);
  if (c.attention < c.attention_global)
    text += fmt::format(", {:.2f} times less than with the whole text in every layer", c.attention_global / c.attention);
  if (c.layers > 0 && c.states > 0) text += fmt::format("; states {}", size(c.states));
  return text;
}

void check_flow(const LanguageModel& model, bool packed, bool carried, Site where) {
  const std::string pack = packed ? model.cannot_pack() : "", carry = carried ? model.cannot_carry() : "";
  if (!pack.empty())
    fail_at(where, "model: packed documents would see each other", fmt::format("{}: {}", model.description(), pack),
            "train it without --packed, or take a Mamba, Mamba-2 or Transformer");
  if (!carry.empty())
    fail_at(where, "model: it carries no states from batch to batch", fmt::format("{}: {}", model.description(), carry),
            "train it without --carry-state, or take a Mamba or Mamba-2");
}

Tensor LanguageModel::flow(Arg ids, const TextFlow& flow) {
  check_flow(*this, bool(flow.segments), flow.carried != nullptr, ids.where());
  if (flow.carried) check_ids(ids, *flow.carried);
  if (flow.continues &&
      (!flow.carried || !is_integer(flow.continues.dtype()) || flow.continues.shape() != ids.shape().first(1)))
    fail_at(ids.where(), "model: whether rows go on must be one integer for each, with carried states",
            fmt::format("{} {}, ids {}", name_of(flow.continues.dtype()), to_string(flow.continues.shape()),
                        to_string(ids.shape())));
  CallFrame frame(*this, ids.where(), ids.tensor());
  const Tensor logits = flow.segments || flow.carried ? forward_in(ids.tensor(), flow) : forward(ids.tensor());
  frame.close(logits);
  return logits;
}

Tensor LanguageModel::forward_in(const Tensor& ids, const TextFlow&) { return forward(ids); }

// A cache knows how far it is from the runs that have been executed, so it takes part in a run once.
Tensor LanguageModel::go(const Arg& ids, const ModelCache& cache, CacheUse use, const Tensor& lengths) {
  check_ids(ids, cache);
  if (lengths) check_lengths(ids, lengths);
  const auto progress = cache.progress_;
  if (recording() && progress->epoch == tape().epoch)
    fail_at(ids.where(), "model: the cache is used twice in one run", {}, "one prefill or step in a run");
  const std::int64_t before = use == CacheUse::fill ? 0 : progress->tokens, t = ids.shape()[1], after = before + t;
  const bool padded = use == CacheUse::fill ? bool(lengths) : progress->padded;
  if (context() && after > *context() && !(use == CacheUse::go_on && padded))  // of the texts themselves, the caller knows
    fail_at(ids.where(), "model: the text is longer than the model's context",
            fmt::format("{} tokens, the context is {}", after, *context()), "give fewer tokens");
  NoGrad scope;
  CallFrame frame(*this, ids.where(), ids.tensor());  // errors name the caller's line
  progress->epoch = tape().epoch;
  const Tensor known = lengths ? lengths_up_to(lengths, t) : Tensor();
  if (known) assign(cache.pads_, pointwise("pads", {known}, [&](Expr n) { return Expr(t) - n; }));
  const Tensor logits = last_logits(ids.tensor(), cache, use, known);
  frame.close(logits);
  on_commit([=] { progress->tokens = after, progress->padded = padded; });
  if (!recording()) flush();
  return logits;
}

Tensor LanguageModel::prefill(Arg ids, const ModelCache& cache, const Tensor& lengths) {
  return go(ids, cache, CacheUse::fill, lengths);
}
Tensor LanguageModel::step(Arg ids, const ModelCache& cache) { return go(ids, cache, CacheUse::go_on, {}); }

json read_model_config(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  const fs::path file = folder / "config.json", adapter = folder / "adapter_config.json";
  if (!fs::exists(file) && fs::exists(adapter)) {
    const json about = read_json(adapter);
    const auto text = [&](const char* key) {
      return about.is_object() && about.contains(key) && about[key].is_string() ? about[key].dump() : "an unknown one";
    };
    fail(ErrorKind::io, folder.string() + ": an adapter, not a model",
         fmt::format("peft_type {}, of the model {}", text("peft_type"), text("base_model_name_or_path")),
         "give the model, and this folder with --adapter; or put it into the model's folder, as adapter/");
  }
  json config = read_json(file);
  if (fs::exists(folder / "generation_config.json") && config.is_object()) {
    const json generation = read_json(folder / "generation_config.json");
    for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"})
      if (generation.is_object() && generation.contains(key) && !generation[key].is_null()) config[key] = generation[key];
  }
  return config;
}

std::unique_ptr<LanguageModel> LanguageModel::load(const std::filesystem::path& folder, DType dtype) {
  return load(folder, ComputeOptions{.dtype = dtype});
}

std::unique_ptr<LanguageModel> LanguageModel::load(const std::filesystem::path& folder, const ComputeOptions& how) {
  const std::string file = (folder / "config.json").string();
  const json config = read_model_config(folder);
  const ModelFamily& family = family_of(config, file);
  const TensorMap described = describe_safetensors_folder(folder);
  auto model = family.from_json(config, file, how, &described);
  model->load_weights(read_safetensors_folder(folder));
  if (std::filesystem::exists(folder / kAdapterFolder)) load_adapter(*model, folder / kAdapterFolder);
  load_scan_patch(*model, folder);
  return model;
}

void LanguageModel::save(const std::filesystem::path& folder, CheckpointNames names, std::size_t shard_bytes) const {
  std::filesystem::create_directories(folder);
  const std::string text = config_json(names).dump(2) + "\n";
  write_safetensors_folder(folder, weights(names), {{"format", "pt"}}, shard_bytes);
  write_file(folder / "config.json", std::as_bytes(std::span(text)));
  save_scan_patch(*this, folder);
  for (const WeightedModule& layer : parts<WeightedModule>())
    if (!layer.adapters().empty() && !layer.merged()) return save_adapter(*this, folder / kAdapterFolder);
}

void check_size(std::int64_t parameters, const TensorMap& tensors) {
  std::int64_t there = 0;
  for (const auto& [name, tensor] : tensors) there += tensor.numel();
  if (parameters / 2 > there)
    fail(ErrorKind::io, "load: the configuration is that of another model",
         fmt::format("it has {} parameters, the tensors {} elements", parameters, there),
         "compare the sizes in config.json with the shapes of the tensors");
}

// ---- families ---------------------------------------------------------------------------------------------------------------

namespace {

bool has_type(const ModelFamily& family, const std::string& type) {
  return std::find(family.model_types.begin(), family.model_types.end(), type) != family.model_types.end();
}

// What is written on a command line: letters, digits and, inside, `others`.
void check_word(const std::string& who, std::string_view what, std::string_view word, std::string_view others) {
  const auto plain = [](char c) { return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9'); };
  const auto good = [&](char c) { return plain(c) || others.find(c) != others.npos; };
  if (!word.empty() && plain(word.front()) && std::all_of(word.begin(), word.end(), good)) return;
  fail(ErrorKind::usage, fmt::format("{}: {} is no name", who, what), fmt::format("'{}'", word),
       fmt::format("a letter or digit, then letters, digits and any of {}", others));
}

// What must hold of a family by itself.
void check_complete(const ModelFamily& family) {
  const std::string who = "model family '" + family.name + "'";
  check_word(who, "its name", family.name, "_-.");
  if (family.title.empty()) fail(ErrorKind::usage, who + " has no title", {}, "messages call it by that, as \"Mamba\"");
  if (family.model_types.empty() && !family.recognises)
    fail(ErrorKind::usage, who + " reads no model_type", {}, "name that of its config.json, or set recognises");
  for (const std::string& type : family.model_types)
    if (type.empty()) fail(ErrorKind::usage, who + ": a model_type is empty");
  if (!family.from_json || !family.from_options)
    fail(ErrorKind::usage, fmt::format("{} has no {}", who, family.from_json ? "from_options" : "from_json"), {},
         "make_family (models/family.h) makes both from a table of options");
  if (family.presets.empty()) fail(ErrorKind::usage, who + " has no preset", {}, "the first one is the default");
  std::set<std::string_view> presets, options;
  for (const Preset& preset : family.presets) {
    check_word(who, "that of a preset", preset.name, "_-.");
    if (!presets.insert(preset.name).second) fail(ErrorKind::usage, who + " has two presets of one name", preset.name);
  }
  for (const ModelOption& option : family.options) {
    check_word(who, "that of an option", option.name, "_");
    if (!options.insert(option.name).second) fail(ErrorKind::usage, who + " has two options of one name", option.name);
  }
}

void check_new(const ModelFamily& family, const std::deque<ModelFamily>& there) {
  check_complete(family);
  const std::string who = "model family '" + family.name + "'";
  for (const ModelFamily& other : there) {
    if (other.name == family.name) fail(ErrorKind::usage, who + " is there already");
    for (const std::string& type : family.model_types)
      if (has_type(other, type)) fail(ErrorKind::usage, who + ": another family reads this model_type", type);
    for (const ModelOption& a : family.options)
      for (const ModelOption& b : other.options)
        if (std::string_view(a.name) == b.name && a.fallback.index() != b.fallback.index())
          fail(ErrorKind::usage, fmt::format("{}: an option has another type in '{}'", who, other.name), a.name);
  }
}

std::deque<ModelFamily>& registry() {
  static std::deque<ModelFamily> families = [] {
    std::deque<ModelFamily> all;
    for (ModelFamily& family : built_in_families()) {
      check_new(family, all);
      all.push_back(std::move(family));
    }
    return all;
  }();
  return families;
}

template <class F>
std::vector<std::string> all_of(F&& strings) {
  std::vector<std::string> all;
  for (const ModelFamily& family : registry())
    for (const std::string& s : strings(family)) all.push_back(s);
  return all;
}

}  // namespace

const std::deque<ModelFamily>& model_families() { return registry(); }

void add_model_family(ModelFamily family) {
  check_new(family, registry());
  registry().push_back(std::move(family));
}

const ModelFamily& model_family(std::string_view name) {
  for (const ModelFamily& family : registry())
    if (family.name == name) return family;
  const std::vector<std::string> names = all_of([](const ModelFamily& f) { return std::vector{f.name}; });
  fail_unknown("there is no model family", name, names);
}

const ModelFamily& family_of(const json& config, std::string_view file) {
  const auto type = config.is_object() ? config.find("model_type") : config.end();
  if (type == config.end() || type->is_null()) {
    for (const ModelFamily& family : registry())
      if (family.recognises && family.recognises(config)) return family;
    return registry().front();
  }
  if (type->is_string())
    for (const ModelFamily& family : registry())
      if (has_type(family, type->get<std::string>())) return family;
  std::vector<std::string> types = all_of([](const ModelFamily& f) { return f.model_types; });
  for (std::string& t : types) t = '"' + t + '"';
  fail(ErrorKind::io, fmt::format("{}: this kind of model is unknown", file),
       fmt::format("model_type = {}; only {} {} supported", type->dump(), fmt::join(types, ", "),
                   types.size() == 1 ? "is" : "are"));
}

const Preset* ModelFamily::preset(const std::string& wanted) const {
  const auto found = std::find_if(presets.begin(), presets.end(), [&](const Preset& p) { return p.name == wanted; });
  return found == presets.end() ? nullptr : &*found;
}

// ---- for the files of the families ------------------------------------------------------------------------------------------

void check_option_names(const ModelFamily& family, const ModelOptions& given) {
  std::vector<std::string> names;
  for (const ModelOption& option : family.options) names.push_back(option.name);
  for (const auto& [name, value] : given)
    if (std::find(names.begin(), names.end(), name) == names.end())
      fail(ErrorKind::usage, fmt::format("{} has no option '{}'{}", family.title, name, suggestion(name, names)), {},
           fmt::format("its options are {}", fmt::join(names, ", ")));
}

void check_texts(const Tensor& ids, std::optional<std::int64_t> longest, Site where) {
  const Shape shape = ids.shape();
  if (shape.rank() != 2)
    fail_at(where, "model: the ids are not (batch, time)", fmt::format("ids {}", to_string(shape)),
            "a single text is a batch of one: reshape it to (1, time)");
  if (longest && shape[1] > *longest)
    fail_at(where, "model: the texts are longer than the model's context",
            fmt::format("{} tokens, the context is {}", shape[1], *longest),
            "give shorter ones (--length), or make a model with a larger context (--context)");
}

// ---- texts of unequal length

// One outside of its sequence must not be its neighbour's: it is an error, as an id that the table has not.
Tensor rows_of(const Tensor& x, const Tensor& from) {
  const std::int64_t b = x.dim(0), t = x.dim(1);
  const Tensor all = pointwise("rows", {from}, [&](Expr row) {
    return where(row >= Expr(0) && row < Expr(t), expr::index(0) * Expr(t) + row, Expr(-1));
  });
  return embedding(reshape(x, {b * t, x.dim(2)}), all);
}

SequencePass in_scan_order(const LanguageModel& model, SequencePass pass, std::int64_t b, std::int64_t t) {
  const ScanPatch* patch = model.scan_patch();
  if (!patch || patch->mode != ScanMode::tokens) return pass;
  if (pass.use != CacheUse::none || pass.segments)
    fail(ErrorKind::usage, "model: its mixers read tokens in another order, which takes the whole text at once",
         pass.segments ? "packed documents" : "a cache, which takes one token after the other, would compute something else",
         "remove_scan_patch(model) first (weft scan-order remove)");
  const auto rows = [&](const std::vector<std::int64_t>& order) {
    std::vector<std::int64_t> all;
    for (std::int64_t i = 0; i < b; ++i) all.insert(all.end(), order.begin(), order.end());
    return Tensor::from(all, {b, t});
  };
  const std::vector<std::int64_t> order = token_order(patch->order, t);
  pass.order = rows(order), pass.inverse = rows(inverse_of(order));
  return pass;
}

Tensor begin_with(const State& state, const SequencePass& pass) {
  if (pass.use != CacheUse::go_on && pass.use != CacheUse::carry) return {};
  const Tensor before = state.read();
  if (!pass.continues) return before;
  std::vector<std::int64_t> sizes(std::size_t(before.shape().rank()), 1);
  sizes[0] = before.dim(0);
  const Tensor on = reshape(pass.continues, Shape(std::span<const std::int64_t>(sizes)));
  return pointwise("begin_with", {before, on}, [](Expr s, Expr go) { return where(not_equal(go, Expr(0)), s, Expr(0)); });
}

Tensor last_of(const Tensor& x, const Tensor& ends) {
  const std::int64_t b = x.dim(0), t = x.dim(1), d = x.dim(2);
  if (!ends) return reshape(slice(x, 1, t - 1, t), {b, d});
  const Tensor last = pointwise("last", {reshape(ends, {b, 1})}, [](Expr end) { return end - Expr(1); });
  return reshape(rows_of(x, last), {b, d});
}

Tensor last_inputs(const Tensor& x, std::int64_t n, const Tensor& ends) {
  const std::int64_t b = x.dim(0);
  // Row `end` of what begins with n zeros is n before the end.
  const Tensor from =
      pointwise("last_inputs", {expand(reshape(ends, {b, 1}), {b, n})}, [](Expr end) { return end + expr::index(1); });
  return rows_of(pad(x, 1, n, 0), from);
}

HoleOf<1, 3> until(const Tensor& ends, const Tensor& bias) {
  return [&](Expr raw, Index b, Index t, Index i) { return where(t < ends(b), softplus(raw + bias(i)), Expr(0)); };
}

void rename_tensor(TensorMap& tensors, std::string_view from, std::string_view to) {
  auto node = tensors.extract(std::string(from));
  if (node.empty()) return;
  node.key() = to;
  if (!tensors.insert(std::move(node)).inserted)
    fail(ErrorKind::io, "load: a tensor is there under both of its names", fmt::format("{} and {}", from, to));
}

namespace {

bool equal_values(const HostTensor& a, const HostTensor& b) {
  if (a.shape != b.shape) return false;
  if (a.described() || b.described()) return true;  // as far as is known
  if (a.dtype == b.dtype) return a.bytes == b.bytes;
  const std::vector<double> x = a.values<double>(), y = b.values<double>();  // which hold those of all types of weights
  return std::equal(x.begin(), x.end(), y.begin(),
                    [](double p, double q) { return p == q || (std::isnan(p) && std::isnan(q)); });
}

}  // namespace

void drop_tied_head(TensorMap& tensors, std::string_view head, std::string_view embedding) {
  const auto copy = tensors.find(std::string(head)), original = tensors.find(std::string(embedding));
  if (copy == tensors.end()) return;
  if (original == tensors.end()) return rename_tensor(tensors, head, embedding);  // either name may be the one that is saved
  if (!equal_values(copy->second, original->second))
    fail(ErrorKind::io, "load: the head differs from the embedding, but the configuration ties them", std::string(head),
         "set tie_word_embeddings (tie_embeddings) to false");
  tensors.erase(copy);
}

}  // namespace weft
