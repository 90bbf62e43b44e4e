#include "models/config_reader.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "jit/error.h"
#include "jit/json.h"

namespace weft {

using nlohmann::json;

ConfigReader::ConfigReader(const json& object, std::string_view name) : object_(object), name_(name) {
  if (!object_.is_object()) fail(ErrorKind::io, name_ + ": is not a JSON object");
}

void ConfigReader::problem(std::string what, std::string numbers, std::string hint) {
  problems_.push_back({std::move(what), std::move(numbers), std::move(hint)});
}

const json* ConfigReader::find(const std::string& key) {
  known_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void ConfigReader::read(const std::string& key, std::int64_t& size) {
  const json* j = find(key);
  if (!j) return;
  if (!j->is_number_integer()) return problem("an integer is expected", key + " = " + text_of(*j));
  if (std::abs(j->get<double>()) > kLargestSize) return problem("no size is so large", key + " = " + text_of(*j));
  size = j->get<std::int64_t>();
}

void ConfigReader::read(const std::string& key, double& number) {
  const json* j = find(key);
  if (!j) return;
  if (!j->is_number() || std::isnan(j->get<double>())) return problem("a number is expected", key + " = " + text_of(*j));
  number = j->get<double>();
}

void ConfigReader::read(const std::string& key, bool& flag) {
  const json* j = find(key);
  if (!j) return;
  if (!j->is_boolean()) return problem("true or false is expected", key + " = " + text_of(*j));
  flag = j->get<bool>();
}

void ConfigReader::read(const std::string& key, std::optional<std::int64_t>& token) {
  const json* j = find(key);
  if (j && j->is_array() && !j->empty()) j = &j->front();  // several tokens may end a text
  if (!j) return;
  if (!j->is_number_integer()) return problem("a token's id is expected", key + " = " + text_of(*j));
  if (const auto id = j->get<std::int64_t>(); id >= 0) token = id;
}

void ConfigReader::require(const std::string& key, const json& value) {
  const json* j = find(key);
  if (j && *j != value)
    problem("this model has no such feature", fmt::format("{} = {}; only {} is supported", key, text_of(*j), text_of(value)));
}

void ConfigReader::same(const std::string& key, std::int64_t value) {
  std::int64_t other = value;
  read(key, other);
  if (other != value) problem("two keys contradict each other", fmt::format("{} = {}, elsewhere {}", key, other, value));
}

void ConfigReader::need(const std::vector<std::string>& keys) {
  std::string missing;
  for (const std::string& key : keys)
    if (!object_.contains(key)) missing += (missing.empty() ? "" : ", ") + key;
  if (!missing.empty())
    problem("size keys are missing", missing, "the defaults of the format fit no published model, so weft assumes none");
}

void ConfigReader::ignore(const std::vector<std::string>& keys) { known_.insert(keys.begin(), keys.end()); }

void ConfigReader::ignore_common() {
  ignore({"architectures",
          "model_type",
          "dtype",
          "torch_dtype",
          "transformers_version",
          "use_cache",
          "_name_or_path",
          "_attn_implementation_autoset",
          "return_dict",
          "output_hidden_states",
          "output_attentions",
          "auto_map",
          "task_specific_params",
          "problem_type",
          "id2label",
          "label2id",
          "is_decoder",
          "is_encoder_decoder",
          "gradient_checkpointing",
          "n_positions",
          "type_vocab_size",
          "chunk_size_feed_forward",
          "pruned_heads",
          "tie_encoder_decoder",
          "use_bfloat16",
          "torchscript"});
}

void ConfigReader::note_unknown() {
  const std::vector<std::string> words(known_.begin(), known_.end());
  std::string unknown;
  int count = 0;
  for (const auto& [key, value] : object_.items())
    if (!known_.contains(key)) ++count, unknown += (count > 1 ? ", " : "") + fmt::format("'{}'{}", key, suggestion(key, words));
  if (count)
    problem(count == 1 ? "unknown key" : "unknown keys", unknown,
            "what weft does not know may change the model; remove what does not");
}

void ConfigReader::throw_problems() const {
  if (problems_.empty()) return;
  const Problem& first = problems_.front();
  if (problems_.size() == 1) fail(ErrorKind::io, fmt::format("{}: {}", name_, first.what), first.numbers, first.hint);
  std::string list, hint;
  for (const Problem& p : problems_) {
    list += fmt::format("{}{}: {}", list.empty() ? "" : "\n  ", p.what, p.numbers);
    if (!p.hint.empty() && hint.find(p.hint) == std::string::npos) hint += (hint.empty() ? "" : "; ") + p.hint;
  }
  fail(ErrorKind::io, fmt::format("{}: {} problems", name_, problems_.size()), "\n  " + list, hint);
}

void ConfigReader::finish(const std::function<void()>& check) {
  note_unknown();
  throw_problems();
  if (!check) return;
  try {
    check();
  } catch (const Error& e) {
    fail(ErrorKind::io, fmt::format("{}: the configuration makes no sense", name_), e.parts().numbers, e.parts().what);
  }
}

}  // namespace weft
