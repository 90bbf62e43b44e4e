#include "models/adapters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "nn/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char *kConfigFile = "adapter_config.json", *kWeightsFile = "adapter_model.safetensors";
constexpr std::string_view kPeftPrefix = "base_model.model.";

// ---- which layers -----------------------------------------------------------------------------------------------------------

struct NamedLayer {
  std::string path;  // in the model
  WeightedModule layer;
};

std::vector<NamedLayer> weighted_layers(const Module& model) {
  std::vector<NamedLayer> layers;
  const std::size_t skip = model.path().empty() ? 0 : model.path().size() + 1;
  for (const WeightedModule& layer : model.parts<WeightedModule>()) layers.push_back({layer.path().substr(skip), layer});
  return layers;
}

bool is_number(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return '0' <= c && c <= '9'; });
}

// "x_proj.0" of model.layers.2.mamba.x_proj.0
std::string_view leaf_of(std::string_view path) {
  std::size_t dot = path.rfind('.');
  if (dot != path.npos && dot > 0 && is_number(path.substr(dot + 1))) dot = path.rfind('.', dot - 1);
  return dot == path.npos ? path : path.substr(dot + 1);
}

std::string_view without_number(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot != name.npos && is_number(name.substr(dot + 1)) ? name.substr(0, dot) : name;
}

// As PEFT has it: the whole path, or what stands behind a dot in it.
bool ends_with(std::string_view path, std::string_view word) {
  return path.ends_with(word) && (path.size() == word.size() || path[path.size() - word.size() - 1] == '.');
}

struct Group {
  std::string word;
  std::vector<std::string_view> layers;
};
const std::vector<Group>& target_groups() {
  static const std::vector<Group> all = {{"ssm", {"in_proj", "x_proj", "dt_proj", "out_proj", "conv1d"}},
                                         {"attention", {"q_proj", "k_proj", "v_proj", "o_proj"}},
                                         {"mlp", {"gate_proj", "up_proj", "down_proj"}},
                                         {"head", {"lm_head"}}};
  return all;
}

bool is_head(std::string_view path) { return leaf_of(path) == "lm_head"; }

bool can_have(const WeightedModule& layer, AdapterKind kind) {
  return kind == AdapterKind::ia3 || layer.use() != WeightUse::filter;
}

bool meets(const std::string& word, const NamedLayer& l) {
  const std::string_view leaf = without_number(leaf_of(l.path));
  if (word == "all") return l.layer.use() != WeightUse::table && !is_head(l.path);
  if (word == "embedding") return l.layer.use() == WeightUse::table;
  for (const Group& g : target_groups())
    if (word == g.word) return std::ranges::find(g.layers, leaf) != g.layers.end();
  return ends_with(l.path, word) || ends_with(without_number(l.path), word);
}

[[noreturn]] void fail_no_layer(const std::string& word, const std::vector<NamedLayer>& layers) {
  std::vector<std::string> known;
  for (const NamedLayer& l : layers)
    if (std::string leaf(without_number(leaf_of(l.path))); std::ranges::find(known, leaf) == known.end())
      known.push_back(std::move(leaf));
  const std::string there = fmt::format("{}", fmt::join(known, ", "));
  known.insert(known.end(), {"all", "embedding"});
  for (const Group& g : target_groups()) known.push_back(g.word);
  const bool head = word == "head" || word == "lm_head";
  fail(ErrorKind::usage, fmt::format("adapter: no layer is called '{}'{}", word, suggestion(word, known)),
       fmt::format("the model has {}", there),
       head ? "its head is the embedding: take embedding" : "or a group: ssm, attention, mlp, all, embedding, head");
}

template <class T>
bool read_value(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::vector<std::string> split_at(std::string_view text, char at) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(at, begin), text.size());
    std::string_view part = text.substr(begin, end - begin);
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ')) part.remove_suffix(1);
    parts.emplace_back(part);
    begin = end + 1;
  }
  return parts;
}

}  // namespace

std::vector<AdapterTarget> parse_targets(std::string_view text, AdapterKind kind) {
  std::vector<AdapterTarget> targets;
  for (const std::string& item : split_at(text, ',')) {
    const std::vector<std::string> parts = split_at(item, ':');
    AdapterTarget t{parts[0]};
    bool good = !t.word.empty();
    if (kind == AdapterKind::ia3) {
      good &= parts.size() == 1 || (parts.size() == 2 && parts[1] == "in");
      t.on_input = parts.size() == 2;
    } else {
      good &= parts.size() <= 3;
      if (good && parts.size() > 1) good = read_value(parts[1], t.rank.emplace());
      if (good && parts.size() > 2) good = read_value(parts[2], t.alpha.emplace()) && std::isfinite(*t.alpha);
    }
    if (!good)
      fail(ErrorKind::usage, "adapter: this names no target", fmt::format("'{}' in '{}'", item, text),
           kind == AdapterKind::ia3 ? "for instance in_proj,conv1d,out_proj:in, where in scales the input of the layer"
                                    : "for instance in_proj,x_proj:16,dt_proj:4:8, with a rank and alpha of its own");
    targets.push_back(std::move(t));
  }
  return targets;
}

std::string usual_targets(const Module& model) {
  const std::vector<NamedLayer> layers = weighted_layers(model);
  return std::ranges::any_of(layers, [](const NamedLayer& l) { return meets("ssm", l); }) ? "ssm" : "attention";
}

namespace {

// The options of each layer that a target names; nothing: it has none.
std::vector<std::optional<AdapterOptions>> chosen_layers(const std::vector<NamedLayer>& layers, const AdapterOptions& options,
                                                         const std::vector<AdapterTarget>& targets) {
  std::vector<std::optional<AdapterOptions>> chosen(layers.size());
  for (const AdapterTarget& t : targets) {
    std::size_t named = 0, given = 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!meets(t.word, layers[i])) continue;
      ++named;
      if (!can_have(layers[i].layer, options.kind)) continue;
      ++given;
      AdapterOptions& o = chosen[i].emplace(options);
      o.rank = t.rank.value_or(o.rank), o.alpha = t.alpha.value_or(o.alpha), o.on_input = t.on_input;
    }
    if (named == 0) fail_no_layer(t.word, layers);
    if (given == 0)
      fail(ErrorKind::usage, fmt::format("adapter: {} does not act on '{}'", name_of(options.kind), t.word),
           "the channels of a depthwise convolution do not mix", "take IA3 for it");
  }
  return chosen;
}

void check_ranks(const std::vector<NamedLayer>& layers, const std::vector<std::optional<AdapterOptions>>& chosen) {
  std::map<std::string, std::string> problems;  // by kind of layer
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (!chosen[i] || chosen[i]->kind != AdapterKind::lora) continue;
    const WeightedModule& l = layers[i].layer;
    const std::int64_t r = chosen[i]->rank;
    if (r < 1 || r > std::min(l.inputs(), l.outputs()))
      problems.emplace(leaf_of(layers[i].path),
                       fmt::format("rank {} of {} {}", r, layers[i].path, to_string(l.weight().shape())));
  }
  std::string all;
  for (const auto& [leaf, problem] : problems) all += (all.empty() ? "" : ", ") + problem;
  if (!all.empty())
    fail(ErrorKind::usage, "adapter: a rank must lie between 1 and the smaller size of the layer", all,
         "a target may have one of its own: dt_proj:4");
}

}  // namespace

void add_adapter(Module& model, const AdapterOptions& options, const std::vector<AdapterTarget>& targets,
                 const std::string& name) {
  const std::vector<NamedLayer> layers = weighted_layers(model);
  const std::vector<std::optional<AdapterOptions>> chosen = chosen_layers(layers, options, targets);
  check_ranks(layers, chosen);
  model.set_trainable(false);
  for (std::size_t i = 0; i < layers.size(); ++i)
    if (chosen[i]) WeightedModule(layers[i].layer).adapt(name, *chosen[i]);
}

namespace {

// "default" of backbone.layers.0.mixer.in_proj.adapter.default
std::string_view name_in(const Adapter& adapter) {
  return std::string_view(adapter.path()).substr(adapter.path().rfind('.') + 1);
}

}  // namespace

void activate_adapters(const Module& model, const std::vector<std::string>& wanted) {
  std::set<std::string, std::less<>> found;
  std::vector<Adapter> all = model.parts<Adapter>();
  for (const Adapter& a : all) found.emplace(name_in(a));
  for (const std::string& name : wanted)
    if (!found.contains(name))
      fail(ErrorKind::usage,
           fmt::format("adapter: there is none called '{}'{}", name,
                       suggestion(name, std::vector<std::string>(found.begin(), found.end()))),
           fmt::format("the model has {}", fmt::join(found, ", ")));
  for (Adapter& a : all) a.activate(std::ranges::find(wanted, name_in(a)) != wanted.end());
}

void merge_adapters(Module& model) {
  for (WeightedModule& layer : model.parts<WeightedModule>())
    if (!layer.adapters().empty()) layer.merge();
}

void unmerge_adapters(Module& model) {
  for (WeightedModule& layer : model.parts<WeightedModule>())
    if (layer.merged()) layer.unmerge();
}

// ---- what there is ----------------------------------------------------------------------------------------------------------

std::string to_text(const AdapterOptions& o) {
  if (o.kind == AdapterKind::ia3) return o.on_input ? "IA3 on inputs" : "IA3";
  std::string text = fmt::format("LoRA, rank {}, alpha {:g}", o.rank, o.alpha);
  if (o.rank_stabilised) text += ", by the root of the rank";
  if (o.dropout > 0) text += fmt::format(", dropout {:g}", o.dropout);
  return text;
}

namespace {

// 1234567 -> "1,234,567"
std::string with_commas(std::int64_t n) {
  std::string text = std::to_string(n);
  for (std::ptrdiff_t at = std::ptrdiff_t(text.size()) - 3; at > 0; at -= 3) text.insert(std::size_t(at), ",");
  return text;
}

}  // namespace

std::vector<AdapterCounts> count_adapters(const Module& model) {
  std::vector<AdapterCounts> counts;
  for (const NamedLayer& l : weighted_layers(model))
    for (const Adapter& a : l.layer.adapters()) {
      const std::string leaf(leaf_of(l.path)), options = to_text(a.options());
      auto row = std::ranges::find_if(counts,
                                      [&](const AdapterCounts& c) { return c.layer == leaf && to_text(c.options) == options; });
      if (row == counts.end()) row = counts.insert(counts.end(), {a.options(), leaf});
      row->modules += 1, row->parameters += a.parameter_count();
    }
  return counts;
}

std::string to_text(const std::vector<AdapterCounts>& counts) {
  std::vector<std::pair<std::string, std::string>> lines;  // by options
  for (const AdapterCounts& c : counts) {
    const std::string options = to_text(c.options);
    auto line = std::ranges::find(lines, options, &std::pair<std::string, std::string>::first);
    if (line == lines.end()) line = lines.insert(lines.end(), {options, ""});
    line->second += fmt::format("{}{} {}", line->second.empty() ? "" : ", ", c.layer, c.modules);
  }
  std::string text;
  for (const auto& [options, layers] : lines) text += fmt::format("{}{}: {} layers", text.empty() ? "" : "; ", options, layers);
  return text;
}

ParameterCounts count_parameters(const Module& model) {
  ParameterCounts counts;
  for (const Param& p : model.parameters()) {
    counts.all += p.shape().numel();
    if (p.trainable()) counts.trainable += p.shape().numel();
  }
  return counts;
}

std::string to_text(const ParameterCounts& c) {
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", with_commas(c.trainable),
                     with_commas(c.all), 100 * double(c.trainable) / double(c.all));
}

// ---- writing ----------------------------------------------------------------------------------------------------------------

namespace {

struct Adapted {
  std::string path;
  const Adapter* adapter;
};

// What names exactly these of all layers: a kind of layer if all of it is meant, else whole paths. One for each of `paths`.
std::vector<std::string> exact_names(const std::vector<std::string>& paths, const std::vector<std::string>& all) {
  std::vector<std::string> result;
  for (const std::string& path : paths) {
    const std::string leaf(leaf_of(path));
    const bool whole = std::ranges::all_of(all, [&](const std::string& other) {
      return !ends_with(other, leaf) || std::ranges::find(paths, other) != paths.end();
    });
    result.push_back(whole ? leaf : path);
  }
  return result;
}

json as_set(const std::vector<std::string>& names) { return std::set<std::string>(names.begin(), names.end()); }

// The value that most have, and under "pattern" those of the others by name.
template <class T>
void write_pattern(json& config, const char* key, const char* pattern, const std::vector<std::string>& paths,
                   const std::vector<T>& values) {
  std::map<T, std::size_t> counts;
  for (const T& v : values) ++counts[v];
  const T usual = std::ranges::max_element(counts, {}, [](const auto& c) { return c.second; })->first;
  config[key] = usual;
  json others = json::object();
  for (const auto& [value, count] : counts) {
    if (value == usual) continue;
    std::vector<std::string> with;
    for (std::size_t i = 0; i < paths.size(); ++i)
      if (values[i] == value) with.push_back(paths[i]);
    for (const std::string& name : exact_names(with, paths)) others[name] = value;
  }
  config[pattern] = others;
}

json file_config(const std::vector<Adapted>& adapted, const std::vector<std::string>& all, const std::string& base) {
  std::vector<std::string> paths, on_input, on_output;
  for (const Adapted& a : adapted) {
    paths.push_back(a.path);
    (a.adapter->options().on_input ? on_input : on_output).push_back(a.path);
  }
  const AdapterOptions& first = adapted[0].adapter->options();
  json config = {{"base_model_name_or_path", base.empty() ? json() : json(base)},
                 {"task_type", "CAUSAL_LM"},
                 {"inference_mode", true},
                 {"fan_in_fan_out", false},
                 {"modules_to_save", nullptr},
                 {"revision", nullptr}};
  if (first.kind == AdapterKind::ia3) {
    std::vector<std::string> inputs = exact_names(on_input, all), targets = exact_names(on_output, all);
    targets.insert(targets.end(), inputs.begin(), inputs.end());
    config.update({{"peft_type", "IA3"},
                   {"init_ia3_weights", true},
                   {"target_modules", as_set(targets)},
                   {"feedforward_modules", as_set(inputs)}});
    return config;
  }
  std::vector<std::int64_t> ranks;
  std::vector<double> alphas;
  for (const Adapted& a : adapted) {
    ranks.push_back(a.adapter->options().rank), alphas.push_back(a.adapter->options().alpha);
    if (a.adapter->options().dropout != first.dropout || a.adapter->options().rank_stabilised != first.rank_stabilised)
      fail(ErrorKind::usage, "adapter: its file can have one dropout and one way of scaling",
           fmt::format("{} and {} differ", adapted[0].path, a.path));
  }
  config.update({{"peft_type", "LORA"},
                 {"lora_dropout", first.dropout},
                 {"use_rslora", first.rank_stabilised},
                 {"use_dora", false},
                 {"bias", "none"},
                 {"init_lora_weights", true},
                 {"target_modules", as_set(exact_names(paths, all))}});
  write_pattern(config, "r", "rank_pattern", paths, ranks);
  write_pattern(config, "lora_alpha", "alpha_pattern", paths, alphas);
  return config;
}

}  // namespace

void save_adapter(const Module& model, const fs::path& folder, const std::string& base, const std::string& name) {
  const std::vector<NamedLayer> layers = weighted_layers(model);
  std::vector<Adapted> adapted;
  std::vector<std::string> all;
  for (const NamedLayer& l : layers) {
    all.push_back(l.path);
    for (const Adapter& a : l.layer.adapters())
      if (name_in(a) == name) adapted.push_back({l.path, &a});
  }
  if (adapted.empty()) fail(ErrorKind::usage, fmt::format("adapter: there is none called '{}' to be saved", name));
  for (const Adapted& a : adapted)
    if (a.adapter->options().kind != adapted[0].adapter->options().kind)
      fail(ErrorKind::usage, "adapter: its file can be of one kind", fmt::format("{} and {}", adapted[0].path, a.path));
  TensorMap tensors;
  for (const Adapted& a : adapted)
    for (auto& [own, tensor] : a.adapter->state_dict()) tensors[fmt::format("{}{}.{}", kPeftPrefix, a.path, own)] = tensor;
  const std::string config = file_config(adapted, all, base).dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  fs::create_directories(folder);
  write_safetensors(folder / kWeightsFile, tensors, {{"format", "pt"}});
  write_file(folder / kConfigFile, std::as_bytes(std::span(config)));
  sync_folder(folder);
}

// ---- reading ----------------------------------------------------------------------------------------------------------------

namespace {

struct AdapterFile {
  std::string config_name, weights_name;
  json config;
  TensorMap tensors;

  explicit AdapterFile(const fs::path& folder)
      : config_name((folder / kConfigFile).string()),
        weights_name((folder / kWeightsFile).string()),
        config(read_json(folder / kConfigFile)) {
    if (!config.is_object()) damaged("it is no object");
    for (const char* key : {"adapter_model.bin", "adapter_model.pt"})
      if (!fs::exists(folder / kWeightsFile) && fs::exists(folder / key))
        fail(ErrorKind::io, weights_name + ": missing", fmt::format("there is {}, a pickle", key),
             "save_pretrained(folder, safe_serialization=True) of PEFT writes safetensors");
    tensors = read_safetensors(folder / kWeightsFile);
  }

  [[noreturn]] void damaged(const std::string& why) const {
    fail(ErrorKind::io, config_name + ": not the configuration of an adapter", why);
  }
  const json* find(const char* key) const {
    const auto found = config.find(key);
    return found == config.end() || found->is_null() ? nullptr : &*found;
  }
  double number(const char* key, double fallback) const {
    const json* value = find(key);
    if (!value) return fallback;
    if (!value->is_number() || !std::isfinite(value->get<double>())) damaged(fmt::format("{} = {}", key, text_of(*value)));
    return value->get<double>();
  }
  bool flag(const char* key) const {
    const json* value = find(key);
    if (value && !value->is_boolean()) damaged(fmt::format("{} = {}", key, text_of(*value)));
    return value && value->get<bool>();
  }
  std::vector<std::string> words(const char* key) const {  // none of a regular expression
    const json* value = find(key);
    if (!value || value->is_string()) return {};
    if (!value->is_array()) damaged(fmt::format("{} = {}", key, text_of(*value)));
    std::vector<std::string> all;
    for (const json& word : *value) {
      if (!word.is_string()) damaged(fmt::format("{} = {}", key, text_of(*value)));
      all.push_back(word.get<std::string>());
    }
    return all;
  }
  AdapterKind kind() const {
    const json* type = find("peft_type");
    if (type && *type == "LORA") return AdapterKind::lora;
    if (type && *type == "IA3") return AdapterKind::ia3;
    fail(ErrorKind::io, config_name + ": another kind of adapter",
         fmt::format("peft_type = {}; \"LORA\" and \"IA3\" are supported", type ? text_of(*type) : "none"));
  }
  // What changes the mathematics and is not there.
  void check_form() const {
    std::vector<std::string> others;
    for (const char* key : {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "alora_invocation_tokens",
                            "trainable_token_indices", "target_parameters", "modules_to_save", "arrow_config"})
      if (const json* value = find(key); value && *value != json(false) && !(value->is_structured() && value->empty()))
        others.push_back(fmt::format("{} = {}", key, text_of(*value)));
    if (const json* bias = find("bias"); bias && *bias != "none") others.push_back("bias = " + text_of(*bias));
    if (const json* init = find("init_lora_weights"); init && init->is_string())
      for (const char* changed : {"pissa", "olora", "corda", "loftq", "lora_ga"})  // weights of the base differ
        if (init->get<std::string>().starts_with(changed)) others.push_back("init_lora_weights = " + text_of(*init));
    if (!others.empty())
      fail(ErrorKind::io, config_name + ": a form of adapter that weft does not have",
           fmt::format("{}", fmt::join(others, ", ")));
  }
  std::optional<double> alpha_of(const std::string& path) const {
    const json* pattern = find("alpha_pattern");
    if (!pattern) return {};
    if (!pattern->is_object()) damaged("alpha_pattern = " + text_of(*pattern));
    for (const auto& [word, value] : pattern->items())
      if (ends_with(path, word)) {
        if (!value.is_number()) damaged("alpha_pattern = " + text_of(*pattern));
        return value.get<double>();
      }
    return {};
  }
};

// A layer that the file has tensors for.
struct Found {
  WeightedModule layer;
  AdapterOptions options;
  TensorMap tensors;  // by the adapter's own names
};

std::string shape_line(const std::string& name, const HostTensor& t, const Shape& wanted) {
  return fmt::format("shape of {}: the file has {}, the model {}", name, dims_text(t.shape), to_string(wanted));
}

// What is wrong with the tensors of one layer, whose options they say.
void read_layer(const AdapterFile& file, const std::string& path, Found& f, std::vector<std::string>& problems) {
  const WeightedModule& l = f.layer;
  AdapterOptions& o = f.options;
  const std::string before = std::string(kPeftPrefix) + path + ".";
  const auto expect = [&](const std::string& own, const Shape& shape) {
    const auto found = f.tensors.find(own);
    if (found == f.tensors.end())
      problems.push_back(fmt::format("missing: {}{} {}", before, own, to_string(shape)));
    else if (!std::ranges::equal(found->second.shape, shape.dims()) || !is_real(found->second.dtype))
      problems.push_back(shape_line(before + own, found->second, shape));
  };
  std::set<std::string> known;
  if (o.kind == AdapterKind::lora) {
    const bool table = l.use() == WeightUse::table;
    const std::string a = table ? "lora_embedding_A" : "lora_A.weight", b = table ? "lora_embedding_B" : "lora_B.weight";
    known = {a, b};
    const auto found = f.tensors.find(a);
    o.rank = found != f.tensors.end() && found->second.shape.size() == 2 ? found->second.shape[0]
                                                                         : std::int64_t(file.number("r", 8));
    o.alpha = file.alpha_of(path).value_or(file.number("lora_alpha", 8));
    if (!can_have(l, o.kind)) {
      problems.push_back(fmt::format("{}{}: LoRA does not act on a depthwise convolution", before, a));
    } else if (o.rank < 1) {
      problems.push_back(fmt::format("{}{}: rank {}", before, a, o.rank));
    } else {
      expect(a, {o.rank, l.inputs()}), expect(b, {l.outputs(), o.rank});
    }
  } else {
    known = {"ia3_l"};
    const auto found = f.tensors.find("ia3_l");
    const std::vector<std::string> inputs = file.words("feedforward_modules");
    o.on_input = std::ranges::any_of(inputs, [&](const std::string& word) { return ends_with(path, word); });
    if (found != f.tensors.end() && found->second.shape.size() == 2 && found->second.numel() > 1)
      o.on_input = found->second.shape[0] == 1;  // the shape says it, whatever form the list has
    if (l.use() == WeightUse::filter)
      expect("ia3_l", {1, l.outputs(), 1});
    else
      expect("ia3_l", o.on_input ? Shape{1, l.inputs()} : Shape{l.outputs(), 1});
    if (l.use() == WeightUse::table && o.on_input) problems.push_back(before + "ia3_l: on the input of an embedding");
  }
  for (const auto& [own, tensor] : f.tensors)
    if (!known.contains(own)) problems.push_back(fmt::format("unexpected: {}{} {}", before, own, dims_text(tensor.shape)));
}

// The path of a tensor's layer, and its name there: ("backbone.layers.0.mixer.in_proj", "lora_A.weight").
std::pair<std::string, std::string> split_name(const std::string& name) {
  if (!name.starts_with(kPeftPrefix)) return {};
  const std::string rest = name.substr(kPeftPrefix.size());
  for (const char* own : {".lora_", ".ia3_l"})
    if (const std::size_t at = rest.find(own); at != rest.npos) return {rest.substr(0, at), rest.substr(at + 1)};
  return {};
}

std::map<std::string, Found> find_layers(const Module& model, AdapterFile& file, const AdapterOptions& options) {
  std::map<std::string, Found> found;
  std::vector<std::string> problems;
  std::map<std::string, WeightedModule> layers;
  for (const NamedLayer& l : weighted_layers(model)) layers.emplace(l.path, l.layer);
  for (auto& [name, tensor] : file.tensors) {
    const auto [path, own] = split_name(name);
    const auto layer = layers.find(path);
    if (layer == layers.end())
      problems.push_back(
          fmt::format("unexpected: {} {}{}", name, dims_text(tensor.shape), path.empty() ? "" : ", no such layer"));
    else
      found.try_emplace(path, Found{layer->second, options, {}}).first->second.tensors[own] = std::move(tensor);
  }
  for (auto& [path, f] : found) read_layer(file, path, f, problems);
  if (!file.find("layers_to_transform"))
    for (const std::string& word : file.words("target_modules")) {
      bool named = false;
      for (const auto& [path, layer] : layers) {
        if (!ends_with(path, word)) continue;
        named = true;
        if (!found.contains(path)) problems.push_back(fmt::format("missing: the tensors of {}, a target", path));
      }
      if (!named) problems.push_back(fmt::format("target_modules: the model has no '{}'", word));
    }
  if (found.empty() && problems.empty()) problems.push_back("it has no tensors");
  if (problems.empty()) return found;
  constexpr std::size_t kShown = 20;
  std::string list;
  for (std::size_t i = 0; i < std::min(kShown, problems.size()); ++i) list += "\n  " + problems[i];
  if (problems.size() > kShown) list += fmt::format("\n  ... and {} more", problems.size() - kShown);
  const json* base = file.find("base_model_name_or_path");
  fail(ErrorKind::io, "adapter: it does not fit the model",
       fmt::format("{}: {} problems{}", file.weights_name, problems.size(), list),
       base ? fmt::format("it was made for {}; nothing was loaded", text_of(*base)) : "nothing was loaded");
}

}  // namespace

void load_adapter(Module& model, const fs::path& folder, const std::string& name) {
  AdapterFile file(folder);
  const AdapterOptions options{
      .kind = file.kind(), .rank_stabilised = file.flag("use_rslora"), .dropout = file.number("lora_dropout", 0)};
  file.check_form();
  if (!(options.dropout >= 0 && options.dropout < 1)) file.damaged(fmt::format("lora_dropout = {}", options.dropout));
  const std::map<std::string, Found> found = find_layers(model, file, options);
  model.set_trainable(false);
  for (const auto& [path, f] : found) WeightedModule(f.layer).adapt(name, f.options).load_state_dict(f.tensors);
}

std::optional<fs::path> adapter_in(const fs::path& folder) {
  if (fs::exists(folder / kConfigFile)) return folder;
  if (fs::exists(folder / kAdapterFolder / kConfigFile)) return folder / kAdapterFolder;
  return std::nullopt;
}

}  // namespace weft
