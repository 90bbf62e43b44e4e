// A family of language models of the tests, all of it in this file: what follows a token depends on the last few ones, through
// a causal convolution of their embeddings and a layer. A program has it after add_model_family(ngram_family()).
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "models/config_reader.h"
#include "models/family.h"
#include "nn/layers.h"

namespace weft {

struct NgramConfig {
  std::int64_t vocab = 256;
  std::int64_t width = 0;  // d
  std::int64_t window = 4;
  double dropout = 0;
  bool skip = false;  // adds the embedding to what the layer makes of it
  std::optional<std::int64_t> bos = {};
  std::vector<std::int64_t> eos = {};
  std::optional<std::int64_t> pad = {};
  DType dtype = DType::f32, activations = DType::f32;
  bool recompute = false;

  std::int64_t parameter_count() const { return vocab * width + width * window + width * width + width; }
  void check() const {
    if (vocab < 1 || width < 1 || window < 2)
      fail(ErrorKind::usage, "NgramConfig: sizes must be positive",
           fmt::format("vocab {}, width {}, window {}", vocab, width, window));
  }
};

inline NgramConfig ngram_config_from_json(const nlohmann::json& json, std::string_view file) {
  ConfigReader r(json, file);
  NgramConfig c;
  r.need({"vocab_size", "hidden_size", "window"});
  r.read<NgramConfig>(c, {{"vocab_size", &NgramConfig::vocab},
                          {"hidden_size", &NgramConfig::width},
                          {"window", &NgramConfig::window},
                          {"dropout", &NgramConfig::dropout},
                          {"skip", &NgramConfig::skip},
                          {"bos_token_id", &NgramConfig::bos},
                          {"eos_token_id", &NgramConfig::eos},
                          {"pad_token_id", &NgramConfig::pad}});
  r.ignore_common();
  r.finish([&] { c.check(); });
  return c;
}

struct NgramCache : ModelCache {
  NgramCache(const NgramConfig& c, std::int64_t sequences)
      : ModelCache(sequences), last({sequences, c.window - 1, c.width}, c.dtype, "conv.last") {}
  State last;  // (b, window-1, d): embeddings of the last tokens
};

class Ngram : public LanguageModel {
 public:
  using Config = NgramConfig;
  explicit Ngram(NgramConfig config)
      : config_((config.check(), std::move(config))),
        embedding_(config_.vocab, config_.width, {.deviation = 0.1, .dtype = config_.dtype}),
        conv_(config_.width, config_.window, {.bias = false, .dtype = config_.dtype}),
        hidden_(config_.width, config_.width, {.dtype = config_.dtype}),
        dropout_(config_.dropout) {
    add("embedding", embedding_), add("conv", conv_), add("hidden", hidden_), add("dropout", dropout_);
  }

  Tensor forward(const Tensor& ids) override {
    check_texts(ids, context());
    const Tensor x = embedding_(ids);
    return head(x, conv_(x));
  }
  std::unique_ptr<ModelCache> make_cache(std::int64_t batch) const override {
    return std::make_unique<NgramCache>(config_, batch);
  }

  CacheBytes cache_bytes(std::int64_t) const override {
    return {.states = double((config_.window - 1) * config_.width) * double(size_of(config_.dtype))};
  }

  std::int64_t vocab() const override { return config_.vocab; }
  SpecialTokens special_tokens() const override { return {config_.bos, config_.eos, config_.pad}; }
  std::string description() const override {
    return fmt::format("n-gram, window {}, width {}, {} parameters", config_.window, config_.width, config_.parameter_count());
  }
  double flops_per_token(std::int64_t) const override { return 2 * double(config_.parameter_count() - config_.width); }

  nlohmann::json config_json(CheckpointNames names) const override {
    if (names == CheckpointNames::original) fail(ErrorKind::usage, "n-gram: there is no original form");
    nlohmann::json json = {{"model_type", "ngram"},    {"vocab_size", config_.vocab}, {"hidden_size", config_.width},
                           {"window", config_.window}, {"dropout", config_.dropout},  {"skip", config_.skip}};
    if (!config_.eos.empty()) json["eos_token_id"] = config_.eos;
    return json;
  }
  TensorMap weights(CheckpointNames) const override {
    TensorMap tensors = state_dict();
    rename_tensor(tensors, "embedding.weight", "tokens.weight");
    return tensors;
  }
  void load_weights(TensorMap tensors) override {
    rename_tensor(tensors, "tokens.weight", "embedding.weight");
    load_state_dict(tensors);
  }

 protected:
  Tensor last_logits(const Tensor& ids, const ModelCache& any, CacheUse use, const Tensor& lengths) override {
    const auto& cache = cache_of<NgramCache>(any);
    const Tensor x = embedding_(ids);
    Tensor last;
    Conv1dOptions options{.last = &last};
    if (use == CacheUse::go_on) options.initial = cache.last.read();
    const Tensor y = conv_(x, options);
    assign(cache.last, lengths ? last_inputs(x, config_.window - 1, lengths) : last);
    return head(last_of(x, lengths), last_of(y, lengths));
  }

 private:
  Tensor head(const Tensor& x, const Tensor& y) {
    const Tensor h = dropout_(silu(hidden_(y)));
    return embedding_.logits(config_.skip ? h + x : h);
  }

  NgramConfig config_;
  Embedding embedding_;  // and head
  Conv1d conv_;
  Linear hidden_;
  Dropout dropout_;
};

inline ModelFamily ngram_family() {
  ModelFamily family{.name = "ngram", .title = "The n-gram model", .model_types = {"ngram"}};
  family.recognises = [](const nlohmann::json& config) { return config.contains("window"); };
  family.presets = {{"small", "", {{"steps", "40"}, {"batch", "4"}}}, {"wide", "64", {{"width", "64"}}}};
  return make_family<Ngram>(std::move(family),
                            {{"width", "Width of an embedding", &NgramConfig::width, std::int64_t(16)},
                             {"window", "Tokens that the next one depends on", &NgramConfig::window, std::int64_t(3)},
                             {"dropout", "Share of what the layer makes that is dropped", &NgramConfig::dropout, 0.0},
                             {"skip", "Add the embedding to what the layer makes", &NgramConfig::skip, false}},
                            ngram_config_from_json);
}

}  // namespace weft
