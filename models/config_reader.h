// Reads the config.json of a model, key by key. What is wrong is collected, so that finish() can say all of it at once.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "jit/dtype.h"

namespace weft {

inline constexpr double kLargestSize = 1 << 30;  // of one dimension: a product of two has 64 bits

// A key and the field of the configuration that it is read into.
template <class Config>
struct ConfigKey {
  const char* key;
  std::variant<std::int64_t Config::*, double Config::*, bool Config::*, std::optional<std::int64_t> Config::*,
               std::vector<std::int64_t> Config::*>
      field;
};

class ConfigReader {
 public:
  // `name` of the file appears in errors. Errors (ErrorKind::io): not an object.
  ConfigReader(const nlohmann::json& object, std::string_view name);

  // The value of a key that is from now on known; null if it is absent or null.
  const nlohmann::json* find(const std::string& key);

  // Leave the field as it is if the key is absent.
  void read(const std::string& key, std::int64_t& size);
  void read(const std::string& key, double& number);
  void read(const std::string& key, bool& flag);
  void read(const std::string& key, std::optional<std::int64_t>& token);  // an id; negative: none; of a list the first
  void read(const std::string& key, std::vector<std::int64_t>& tokens);   // an id or a list of them; negative: none
  void read_range(const std::string& key, double& low, double& high);     // [low, high]; high may be infinity
  template <class Config>
  void read(Config& config, std::initializer_list<ConfigKey<Config>> keys) {
    for (const ConfigKey<Config>& k : keys) std::visit([&](auto field) { read(k.key, config.*field); }, k.field);
  }
  // The object under a key, which `read_keys(ConfigReader&)` reads; its problems are told with the key.
  template <class F>
  void read_object(const std::string& key, F&& read_keys) {
    const nlohmann::json* object = find(key);
    if (!object) return;
    ConfigReader inner(*object, name_ + ": " + key);
    read_keys(inner);
    inner.note_unknown();
    for (Problem& p : inner.problems_) problems_.push_back({key + ": " + p.what, p.numbers, p.hint});
  }

  void require(const std::string& key, const nlohmann::json& value);  // a key that may have this value only
  void require_any(const std::string& key, const std::vector<nlohmann::json>& values);
  void same(const std::string& key, std::int64_t value);  // a key that repeats what others say
  // Sizes, of which none may be absent; nor null, unless that says something.
  void need(const std::vector<std::string>& keys, bool null_says_something = false);
  void ignore(const std::vector<std::string>& keys);  // keys that say nothing about the mathematics
  // Those that any model of Hugging Face may have. What somebody may have meant to set with them, such as a temperature, is
  // named by finish() in one line; what would change the mathematics is a problem.
  void ignore_common();

  void problem(std::string what, std::string numbers, std::string hint = {});
  bool good() const { return problems_.empty(); }  // so far
  void throw_problems() const;                     // an error (ErrorKind::io) with all problems so far, if there are any
  // Likewise, where keys that nothing has asked for are problems too, unless they are null. If there are none, calls `check`;
  // its error becomes one of this file.
  void finish(const std::function<void()>& check = {});

 private:
  struct Problem {
    std::string what, numbers, hint;
  };
  void note_unknown();        // with suggestions
  void name_ignored() const;  // on stderr

  const nlohmann::json& object_;
  std::string name_;
  std::set<std::string> known_;
  std::vector<std::string> ignored_;  // to be named
  std::vector<Problem> problems_;
};

// What the checks of all families' configurations share. `config` is what messages call it: "MambaConfig". Errors
// (ErrorKind::usage).
inline constexpr std::int64_t kMostLayers = 10000;
struct NamedSize {
  const char* name;
  std::int64_t value;
  std::int64_t least = 1;
};
// Sizes below their least or beyond kLargestSize, all in one.
void check_config_sizes(std::string_view config, std::initializer_list<NamedSize> sizes,
                        std::string hint = "set width, layers and vocab");
void check_config_total(std::string_view config, std::int64_t layers,
                        double parameters);                     // more than kMostLayers, or than 1e12
void check_config_dtype(std::string_view config, DType dtype);  // of parameters: neither f32 nor f64

// How a configuration says which tokens are special: null, an id, or a list of several.
nlohmann::json token_json(std::optional<std::int64_t> token);
nlohmann::json token_json(const std::vector<std::int64_t>& tokens);

}  // namespace weft
