#include "models/config_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "jit/error.h"
#include "jit/json.h"
#include "jit/print.h"

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

void ConfigReader::read(const std::string& key, std::vector<std::int64_t>& tokens) {
  const json* j = find(key);
  if (!j) return;
  tokens.clear();
  for (const json& one : j->is_array() ? *j : json::array({*j})) {
    if (!one.is_number_integer()) return problem("a token's id is expected", key + " = " + text_of(*j));
    if (const auto id = one.get<std::int64_t>(); id >= 0 && std::ranges::find(tokens, id) == tokens.end()) tokens.push_back(id);
  }
}

void ConfigReader::require(const std::string& key, const json& value) { require_any(key, {value}); }

void ConfigReader::require_any(const std::string& key, const std::vector<json>& values) {
  const json* j = find(key);
  if (!j || std::ranges::find(values, *j) != values.end()) return;
  std::string texts;
  for (const json& value : values) texts += (texts.empty() ? "" : " or ") + text_of(value);
  problem("this model has no such feature", fmt::format("{} = {}; only {} is supported", key, text_of(*j), texts));
}

void ConfigReader::same(const std::string& key, std::int64_t value) {
  std::int64_t other = value;
  read(key, other);
  if (other != value) problem("two keys contradict each other", fmt::format("{} = {}, elsewhere {}", key, other, value));
}

void ConfigReader::need(const std::vector<std::string>& keys, bool null_says_something) {
  std::string missing;
  for (const std::string& key : keys)
    if (null_says_something ? !object_.contains(key) : !find(key)) missing += (missing.empty() ? "" : ", ") + key;
  if (!missing.empty())
    problem("size keys are missing", missing, "the defaults of the format fit no published model, so weft assumes none");
}

void ConfigReader::ignore(const std::vector<std::string>& keys) { known_.insert(keys.begin(), keys.end()); }

namespace {

// A number, or infinity as transformers 5 writes it.
std::optional<double> number_of(const json& value) {
  if (value.is_number()) return value.get<double>();
  if (value.is_object() && value.size() == 1 && value.contains("__float__") && value["__float__"] == "Infinity")
    return std::numeric_limits<double>::infinity();
  return {};
}

}  // namespace

void ConfigReader::read_range(const std::string& key, double& low, double& high) {
  const json* j = find(key);
  if (!j) return;
  const bool two = j->is_array() && j->size() == 2;
  const std::optional<double> a = two ? number_of((*j)[0]) : std::nullopt, b = two ? number_of((*j)[1]) : std::nullopt;
  if (a && b)
    low = *a, high = *b;
  else
    problem("two numbers are expected, the least and the largest", fmt::format("{} = {}", key, j->dump()));
}

void ConfigReader::ignore_common() {
  ignore({"architectures",
          "model_type",
          "dtype",
          "torch_dtype",
          "transformers_version",
          "use_cache",
          "_name_or_path",
          "_commit_hash",
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
          "gradient_checkpointing",
          "n_positions",
          "type_vocab_size",
          "chunk_size_feed_forward",
          "tie_encoder_decoder",
          "use_bfloat16",
          "torchscript"});
  require("is_encoder_decoder", false);
  require("add_cross_attention", false);
  require_any("pruned_heads", {json::object(), json::array()});
  if (const json* how = find("quantization_config"))
    problem("the weights are quantized, which weft does not read", "quantization_config = " + text_of(*how).substr(0, 200),
            "dequantize() of transformers, then save_pretrained");
  // What generate() and training of transformers read there, and what names other files.
  for (const char* key : {"max_length",
                          "min_length",
                          "max_new_tokens",
                          "do_sample",
                          "early_stopping",
                          "num_beams",
                          "num_beam_groups",
                          "diversity_penalty",
                          "temperature",
                          "top_k",
                          "top_p",
                          "typical_p",
                          "min_p",
                          "repetition_penalty",
                          "length_penalty",
                          "no_repeat_ngram_size",
                          "encoder_no_repeat_ngram_size",
                          "bad_words_ids",
                          "num_return_sequences",
                          "output_scores",
                          "return_dict_in_generate",
                          "forced_bos_token_id",
                          "forced_eos_token_id",
                          "remove_invalid_values",
                          "exponential_decay_length_penalty",
                          "suppress_tokens",
                          "begin_suppress_tokens",
                          "finetuning_task",
                          "tokenizer_class",
                          "prefix",
                          "sep_token_id",
                          "decoder_start_token_id",
                          "cross_attention_hidden_size",
                          "tf_legacy_loss",
                          "loss_type",
                          "base_model_tp_plan",
                          "attn_implementation",
                          "_attn_implementation",
                          "_attn_implementation_internal",
                          "use_return_dict",
                          "custom_pipelines",
                          "unsloth_version",
                          "unsloth_fixed",
                          "max_position_embeddings",
                          "model_max_length"}) {
    if (known_.insert(key).second && find(key)) ignored_.push_back(key);
  }
}

void ConfigReader::name_ignored() const {
  if (ignored_.empty()) return;
  print_error("weft: {}: left out, for it changes nothing here: {}\n", name_, fmt::join(ignored_, ", "));
}

void ConfigReader::note_unknown() {
  const std::vector<std::string> words(known_.begin(), known_.end());
  std::string unknown;
  int count = 0;
  for (const auto& [key, value] : object_.items()) {
    if (known_.contains(key)) continue;
    if (value.is_null())  // its default, which is what there is without it
      ignored_.push_back(json(key).dump(-1, ' ', true));
    else
      ++count, unknown += (count > 1 ? ", " : "") + fmt::format("'{}'{}", key, suggestion(key, words));
  }
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
  name_ignored();
  if (!check) return;
  try {
    check();
  } catch (const Error& e) {
    fail(ErrorKind::io, fmt::format("{}: the configuration makes no sense", name_), e.parts().numbers, e.parts().what);
  }
}

void check_config_sizes(std::string_view config, std::initializer_list<NamedSize> sizes, std::string hint) {
  std::string problems;
  for (const NamedSize& s : sizes)
    if (s.value < s.least || double(s.value) > kLargestSize)
      problems += fmt::format("{}{} = {}", problems.empty() ? "" : ", ", s.name, s.value);
  if (!problems.empty())
    fail(ErrorKind::usage, fmt::format("{}: sizes must be positive and at most 2^30", config), problems, std::move(hint));
}

void check_config_total(std::string_view config, std::int64_t layers, double parameters) {
  constexpr double kMostParameters = 1e12;
  if (layers > kMostLayers || parameters > kMostParameters)
    fail(ErrorKind::usage,
         fmt::format("{}: at most {} layers and {:g} parameters are supported", config, kMostLayers, kMostParameters),
         fmt::format("{} layers, {:g} parameters", layers, parameters), "smaller sizes");
}

void check_config_dtype(std::string_view config, DType dtype) {
  if (dtype != DType::f32 && dtype != DType::f64)
    fail(ErrorKind::usage, fmt::format("{}: parameters are f32 or f64", config), std::string(name_of(dtype)),
         "for bf16 activations set .activations");
}

json token_json(std::optional<std::int64_t> token) { return token ? json(*token) : json(nullptr); }
json token_json(const std::vector<std::int64_t>& tokens) {
  return tokens.empty() ? json(nullptr) : tokens.size() == 1 ? json(tokens[0]) : json(tokens);
}

}  // namespace weft
