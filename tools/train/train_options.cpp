#include "tools/train/train_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <type_traits>
#include <utility>

#include "jit/error.h"
#include "jit/json.h"
#include "jit/sizes.h"
#include "jit/utf8.h"

namespace weft {
namespace {

using nlohmann::json;

std::string with_underscores(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

template <class T>
bool parse_number(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  if constexpr (std::is_floating_point_v<T>) return std::isfinite(value);
  return true;
}

// What the value had to be, if it is not.
std::string parse(const std::string& text, std::string& value) { return value = text, ""; }
std::string parse(const std::string& text, std::int64_t& value) { return parse_number(text, value) ? "" : "a whole number"; }
std::string parse(const std::string& text, std::uint64_t& value) {
  return parse_number(text, value) ? "" : "a whole number from 0";
}
std::string parse(const std::string& text, double& value) { return parse_number(text, value) ? "" : "a finite number"; }
std::string parse(const std::string& text, bool& value) {
  value = text == "true" || text == "1" || text == "on";
  return value || text == "false" || text == "0" || text == "off" ? "" : "true or false";
}

// The first of the families that has an option of this name; null: none.
const ModelFamily* family_with(const std::string& name) {
  for (const ModelFamily& family : model_families())
    for (const ModelOption& option : family.options)
      if (name == option.name) return &family;
  return nullptr;
}

[[noreturn]] void fail_unknown(const TrainOptions& options, const std::string& given, const std::string& name) {
  const std::string hint = fmt::format("weft train --model {} --help lists all", options.model);
  if (const ModelFamily* other = family_with(name))
    fail(ErrorKind::usage, fmt::format("train: {} has no option {}", model_family(options.model).title, flag_of(name)),
         fmt::format("it is one of --model {}", other->name), hint);
  std::vector<std::string> names;
  each_option(options, [&](const OptionInfo& info, const auto&) { names.push_back(info.name); });
  fail(ErrorKind::usage, fmt::format("train: unknown option '{}'{}", given, suggestion(name, names)), {}, hint);
}

void check_word(const OptionInfo& info, const std::string& text) {
  if (info.words.empty() || std::find(info.words.begin(), info.words.end(), text) != info.words.end()) return;
  fail(ErrorKind::usage, fmt::format("train: {}: unknown word '{}'{}", flag_of(info.name), text, suggestion(text, info.words)),
       {}, fmt::format("use {}", fmt::join(info.words, ", ")));
}

}  // namespace

OptionInfo model_info() {
  std::vector<std::string> names;
  for (const ModelFamily& family : model_families()) names.push_back(family.name);
  return {"model", fmt::format("Architecture: {}", fmt::join(names, ", ")), names, true};
}

OptionInfo preset_info(const TrainOptions& options) {
  OptionInfo info{"preset", "Values that other options begin with: ", {}, true};
  const std::vector<Preset>& own = model_family(options.model).presets;
  for (const Preset& preset : own) {
    info.help += &preset == &own.front() ? "" : &preset == &own.back() ? ", or " : ", ";
    info.help += preset.name + (preset.note.empty() ? "" : " (" + preset.note + ")");
  }
  for (const ModelFamily& family : model_families())
    for (const Preset& preset : family.presets)
      if (std::find(info.words.begin(), info.words.end(), preset.name) == info.words.end()) info.words.push_back(preset.name);
  return info;
}

std::string flag_of(const std::string& name) {
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

void TrainOptions::check() const {
  std::string problems, large;
  const auto add = [](std::string& list, const std::string& problem) { list += (list.empty() ? "" : ", ") + problem; };
  each_option(*this, [&](const OptionInfo& info, const auto& value) {
    using T = std::remove_cvref_t<decltype(value)>;
    if constexpr (std::is_arithmetic_v<T>)
      if (!(double(value) >= 0 && std::isfinite(double(value)))) add(problems, fmt::format("{} {}", flag_of(info.name), value));
    if constexpr (std::is_same_v<T, std::int64_t>)
      if (double(value) > info.most) add(large, fmt::format("{} {}, at most {:.0f}", flag_of(info.name), value, info.most));
  });
  if (!problems.empty()) fail(ErrorKind::usage, "train: must be finite and may not be negative", problems);
  if (!large.empty()) fail(ErrorKind::usage, "train: too large", large, "give a smaller number");
  if (!task.empty() && !data.empty())
    fail(ErrorKind::usage, "train: a task has no text", fmt::format("--task {} --data {}", task, data), "give one of them");
  if (!task.empty() && (packed || carry_state))
    fail(ErrorKind::usage, "train: a task has sequences of its own, no documents and no text to go on in",
         fmt::format("--task {}{}{}", task, packed ? " --packed" : "", carry_state ? " --carry-state" : ""), "leave them out");
  if (stage == "orpo" && (!task.empty() || packed || carry_state))
    fail(ErrorKind::usage, "train: orpo has pairs of texts, each alone",
         fmt::format("--stage orpo{}{}{}", task.empty() ? "" : " --task " + task, packed ? " --packed" : "",
                     carry_state ? " --carry-state" : ""),
         "leave them out");
  if (stage != "orpo" && !pairs.empty())
    fail(ErrorKind::usage, "train: pairs are for orpo", "--pairs " + pairs, "give --stage orpo");
  if (!pairs.empty() && !data.empty())
    fail(ErrorKind::usage, "train: pairs come from a file or are made from a text",
         fmt::format("--pairs {} --data {}", pairs, data), "give one of them");
  checked_product("train: a step, of accumulate x batch x length tokens", {accumulate, batch, length});
  if (steps < 1) fail(ErrorKind::usage, "train: at least one step is needed", fmt::format("steps {}", steps));
  if (accumulate < 1) fail(ErrorKind::usage, "train: a step has at least one batch", fmt::format("accumulate {}", accumulate));
  if (!(lr > 0)) fail(ErrorKind::usage, "train: lr must be positive", fmt::format("lr {}", lr));
  if (!adapter.empty() && from.empty())
    fail(ErrorKind::usage, "train: an adapter needs a trained model", "--adapter " + adapter,
         "give the folder of one: --from FOLDER");
  if (!(adapter_dropout < 1))
    fail(ErrorKind::usage, "train: the dropout must lie in [0, 1)", fmt::format("--adapter-dropout {}", adapter_dropout));
  if (min_lr > lr && min_lr != TrainOptions().min_lr)  // which need not be given for a smaller lr
    fail(ErrorKind::usage, "train: the learning rate at the end is above its peak", fmt::format("min_lr {}, lr {}", min_lr, lr),
         "give a smaller --min-lr, or a larger --lr");
}

void set_option(TrainOptions& options, const OptionSetting& setting) {
  const std::string name = with_underscores(setting.first), text = setting.second;
  if (name == "model" && text != options.model) options.model_options.clear();
  bool known = false;
  each_option(options, [&](const OptionInfo& info, auto& field) {
    if (name != info.name) return;
    known = true;
    check_word(info, text);
    if (const std::string wanted = parse(text, field); !wanted.empty())
      fail(ErrorKind::usage, fmt::format("train: {} must be {}", flag_of(info.name), wanted), "'" + text + "'");
  });
  if (!known) fail_unknown(options, setting.first, name);
  // What comes later counts; in a file they are sorted, and both are in a resolved one.
  if (name == "steps") options.epochs = 0;
}

void check_family(const ModelFamily& family) {
  const std::string who = fmt::format("model family '{}'", family.name);
  TrainOptions options;
  options.model = family.name;
  std::set<std::string_view> names = {"out", "resume", "config", "set", "help"};  // of the command line alone
  each_option(std::as_const(options), [&](const OptionInfo& info, const auto&) {
    if (!names.insert(info.name).second)
      fail(ErrorKind::usage, fmt::format("{}: an option has the name of one of training", who), flag_of(info.name),
           "give the family's option another name");
  });
  for (const Preset& preset : family.presets)
    for (const OptionSetting& setting : preset.settings) try {
        if (setting.first == "model" || setting.first == "preset")
          fail(ErrorKind::usage, fmt::format("train: {} is chosen before the preset", flag_of(setting.first)));
        set_option(options, setting);
      } catch (const Error& e) {
        ErrorParts parts = e.parts();
        parts.what = fmt::format("{}: preset '{}': {}", who, preset.name, parts.what);
        throw Error(e.kind(), parts);
      }
}

OptionSetting split_setting(const std::string& text) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    fail(ErrorKind::usage, "train: --set wants KEY=VALUE", "'" + text + "'", "for instance --set lr=1e-3");
  return {text.substr(0, equals), text.substr(equals + 1)};
}

namespace {

const Preset& preset_of(const TrainOptions& options) {
  const ModelFamily& family = model_family(options.model);
  if (const Preset* preset = family.preset(options.preset)) return *preset;
  std::vector<std::string> names;
  for (const Preset& preset : family.presets) names.push_back(preset.name);
  fail(ErrorKind::usage,
       fmt::format("train: {} has no preset '{}'{}", family.title, options.preset, suggestion(options.preset, names)), {},
       fmt::format("use {}", fmt::join(names, ", ")));
}

}  // namespace

TrainOptions options_from(const std::vector<OptionSetting>& settings) {
  TrainOptions options;
  const auto set_all = [&](std::string_view name) {
    for (const OptionSetting& setting : settings)
      if (setting.first == name) set_option(options, setting);
  };
  set_all("model");
  set_all("task");
  const ModelFamily& family = model_family(options.model);
  check_family(family);
  options.preset = !options.task.empty() && family.preset("task") ? "task" : family.presets.front().name;
  set_all("preset");
  for (const OptionSetting& setting : preset_of(options).settings) set_option(options, setting);
  set_all("stage");
  if (options.stage == "orpo") options.lr = 1e-4, options.min_lr = 0, options.warmup = 100, options.weight_decay = 0.01;
  for (const OptionSetting& setting : settings) set_option(options, setting);
  options.check();
  return options;
}

TrainOptions resumed_options(const TrainOptions& saved, const std::vector<OptionSetting>& settings) {
  TrainOptions options = saved;
  for (const OptionSetting& setting : settings) set_option(options, setting);
  const json before = to_json(saved), after = to_json(options);
  each_option(saved, [&](const OptionInfo& info, const auto&) {
    if (info.fixed && before[info.name] != after[info.name])
      fail(ErrorKind::usage, fmt::format("train: {} cannot change when a run is resumed", flag_of(info.name)),
           fmt::format("the run has {}, given is {}", text_of(before[info.name]), text_of(after[info.name])),
           "leave the option out, or start a new run");
  });
  options.check();
  return options;
}

ComputeOptions compute_options(const TrainOptions& o) {
  return {.dtype = o.precision == "bf16" ? DType::bf16 : DType::f32, .recompute = o.recompute};
}

json to_json(const TrainOptions& options) {
  json object = json::object();
  each_option(options, [&](const OptionInfo& info, const auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>)
      if (utf8_error(value) != value.size())
        fail(ErrorKind::usage, fmt::format("train: {}: no config.json can hold bytes that are not UTF-8", flag_of(info.name)),
             value, "rename the file, or give it a link with another name");
    object[info.name] = value;
  });
  return object;
}

std::vector<OptionSetting> settings_from_json(const json& object, const std::string& name) {
  if (!object.is_object()) fail(ErrorKind::io, name + ": not an object of options");
  std::vector<OptionSetting> settings;
  TrainOptions scratch;
  const auto of_file = [&](const auto& check) {
    try {
      check();
    } catch (const Error& e) {
      throw Error(ErrorKind::io, {name + ": " + e.parts().what, e.parts().numbers, {}, e.parts().hint});
    }
  };
  const auto read = [&](const std::string& key, const json& value) {
    settings.emplace_back(key, value.is_string() ? value.get<std::string>() : text_of(value));
    of_file([&] {
      if (value.is_structured() || value.is_null())
        fail(ErrorKind::usage, fmt::format("train: {} must be a number, a text, true or false", key),
             value.dump().substr(0, 40));
      set_option(scratch, settings.back());
    });
  };
  if (object.contains("model")) read("model", object["model"]);  // it says which others there are
  for (const auto& [key, value] : object.items())
    if (key != "model") read(key, value);
  of_file([&] { scratch.check(); });
  return settings;
}

}  // namespace weft
