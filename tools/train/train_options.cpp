#include "tools/train/train_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "jit/error.h"

namespace weft {
namespace {

using nlohmann::json;

// Sizes that belong together. 130m is the smallest model of the Mamba paper, with its learning rate and length.
const std::map<std::string, std::vector<OptionSetting>> kPresets = {{"tiny", {}},
                                                                    {"small",
                                                                     {{"width", "384"},
                                                                      {"layers", "10"},
                                                                      {"batch", "16"},
                                                                      {"length", "256"},
                                                                      {"lr", "2e-3"},
                                                                      {"warmup", "100"},
                                                                      {"tokenizer", "unigram"}}},
                                                                    {"130m",
                                                                     {{"width", "768"},
                                                                      {"layers", "24"},
                                                                      {"batch", "8"},
                                                                      {"length", "2048"},
                                                                      {"accumulate", "8"},
                                                                      {"lr", "3e-3"},
                                                                      {"warmup", "500"},
                                                                      {"steps", "20000"},
                                                                      {"tokenizer", "unigram"},
                                                                      {"vocab", "32000"},
                                                                      {"recompute", "true"}}},
                                                                    {"task",
                                                                     {{"width", "64"},
                                                                      {"layers", "2"},
                                                                      {"batch", "64"},
                                                                      {"length", "64"},
                                                                      {"lr", "1e-2"},
                                                                      {"steps", "600"},
                                                                      {"eval_every", "100"}}}};

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
std::string parse(const std::string& text, double& value) { return parse_number(text, value) ? "" : "a number"; }
std::string parse(const std::string& text, bool& value) {
  value = text == "true" || text == "1" || text == "on";
  return value || text == "false" || text == "0" || text == "off" ? "" : "true or false";
}

std::vector<std::string> all_names() {
  std::vector<std::string> names;
  const TrainOptions defaults;
  each_option(defaults, [&](const OptionInfo& info, const auto&) { names.push_back(info.name); });
  return names;
}

[[noreturn]] void fail_unknown(const std::string& name) {
  fail(ErrorKind::usage, fmt::format("train: unknown option '{}'{}", name, suggestion(with_underscores(name), all_names())), {},
       "weft train --help lists all");
}

void check_word(const OptionInfo& info, const std::string& text) {
  if (info.words.empty() || std::find(info.words.begin(), info.words.end(), text) != info.words.end()) return;
  fail(ErrorKind::usage, fmt::format("train: {}: unknown word '{}'{}", flag_of(info.name), text, suggestion(text, info.words)),
       {}, fmt::format("use {}", fmt::join(info.words, ", ")));
}

}  // namespace

std::string flag_of(const std::string& name) {
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

void TrainOptions::check() const {
  std::string problems;
  each_option(*this, [&](const OptionInfo& info, const auto& value) {
    if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(value)>>)
      if (double(value) < 0) problems += fmt::format("{}{} {}", problems.empty() ? "" : ", ", flag_of(info.name), value);
  });
  if (!problems.empty()) fail(ErrorKind::usage, "train: may not be negative", problems);
  if (steps < 1) fail(ErrorKind::usage, "train: at least one step is needed", fmt::format("steps {}", steps));
  if (accumulate < 1) fail(ErrorKind::usage, "train: a step has at least one batch", fmt::format("accumulate {}", accumulate));
  if (!(lr > 0)) fail(ErrorKind::usage, "train: lr must be positive", fmt::format("lr {}", lr));
}

void set_option(TrainOptions& options, const OptionSetting& setting) {
  const std::string name = with_underscores(setting.first), text = setting.second;
  bool known = false;
  each_option(options, [&](const OptionInfo& info, auto& field) {
    if (name != info.name) return;
    known = true;
    check_word(info, text);
    if (const std::string wanted = parse(text, field); !wanted.empty())
      fail(ErrorKind::usage, fmt::format("train: {} must be {}", flag_of(info.name), wanted), "'" + text + "'");
  });
  if (!known) fail_unknown(name);
  if (name == "steps")
    options.epochs = 0;  // what comes later counts; in a file they are sorted, and both are in a resolved one
}

OptionSetting split_setting(const std::string& text) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    fail(ErrorKind::usage, "train: --set wants KEY=VALUE", "'" + text + "'", "for instance --set lr=1e-3");
  return {text.substr(0, equals), text.substr(equals + 1)};
}

TrainOptions options_from(const std::vector<OptionSetting>& settings) {
  TrainOptions options;
  for (const OptionSetting& setting : settings)
    if (setting.first == "task" && !setting.second.empty()) options.preset = "task";
  for (const OptionSetting& setting : settings)
    if (setting.first == "preset") set_option(options, setting);
  for (const OptionSetting& setting : kPresets.at(options.preset)) set_option(options, setting);
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
           fmt::format("the run has {}, given is {}", before[info.name].dump(), after[info.name].dump()),
           "leave the option out, or start a new run");
  });
  options.check();
  return options;
}

json to_json(const TrainOptions& options) {
  json object = json::object();
  each_option(options, [&](const OptionInfo& info, const auto& value) { object[info.name] = value; });
  return object;
}

std::vector<OptionSetting> settings_from_json(const json& object, const std::string& name) {
  if (!object.is_object()) fail(ErrorKind::io, name + ": not an object of options");
  std::vector<OptionSetting> settings;
  TrainOptions scratch;
  for (const auto& [key, value] : object.items()) {
    settings.emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
    try {
      if (value.is_structured() || value.is_null())
        fail(ErrorKind::usage, fmt::format("train: {} must be a number, a text, true or false", key),
             value.dump().substr(0, 40));
      set_option(scratch, settings.back());
    } catch (const Error& e) {
      throw Error(ErrorKind::io, {name + ": " + e.parts().what, e.parts().numbers, {}, e.parts().hint});
    }
  }
  return settings;
}

}  // namespace weft
