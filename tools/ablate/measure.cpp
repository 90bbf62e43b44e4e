#include "tools/ablate/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "autograd/run.h"
#include "jit/file.h"
#include "jit/json.h"
#include "models/hybrid.h"
#include "nn/safetensors.h"
#include "ops/ops.h"
#include "tools/data/data.h"
#include "tools/evaluate/eval.h"
#include "tools/evaluate/generate.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kTimedTokens = 128;

json validation_of(LanguageModel& model, const TokenStream& text, std::int64_t batches) {
  const Evaluation e = evaluate(model, text, batches);
  return {{"loss", e.loss()}, {"tokens", e.tokens}, {"characters", e.characters}};
}

// The second time everything is compiled and planned.
json inference_of(TextModel& lm, const StudyPlan& plan) {
  const GenerateOptions options{.tokens = kTimedTokens, .temperature = plan.temperature, .top_k = plan.top_k, .seed = 1};
  GeneratedText made;
  for (int i = 0; i < 2; ++i)
    made = generate_text(*lm.model, lm.tokenizer, plan.prompts.at(0), options, [](std::string_view) {});
  return {{"tokens_per_second", made.token_seconds > 0 ? 1 / made.token_seconds : 0},
          {"prompt_seconds", made.prompt_seconds},
          {"prompt_tokens", made.prompt_tokens},
          {"tokens", made.tokens}};
}

json cache_json(const LanguageModel& model, std::int64_t tokens) {
  const CacheBytes bytes = model.cache_bytes(tokens);
  return {{"tokens", tokens},       {"attention", bytes.attention},
          {"states", bytes.states}, {"attention_global", bytes.attention_global},
          {"layers", bytes.layers}, {"caches", bytes.caches}};
}

json samples_of(TextModel& lm, const StudyPlan& plan, std::int64_t seed) {
  json samples = json::array();
  for (const std::string& prompt : plan.prompts) {
    std::string text;
    generate_text(*lm.model, lm.tokenizer, prompt,
                  {.tokens = plan.tokens, .temperature = plan.temperature, .top_k = plan.top_k, .seed = std::uint64_t(seed)},
                  [&](std::string_view part) { text += part; });
    samples.push_back({{"prompt", prompt}, {"text", text}});
  }
  return samples;
}

json gates_of(const LanguageModel& model) {
  json gates = json::array();
  const TensorMap weights = model.weights();
  for (std::size_t layer = 0;; ++layer) {
    if (const auto gate = weights.find(fmt::format("model.layers.{}.gate", layer)); gate != weights.end())
      gates.push_back(1 / (1 + std::exp(-gate->second.values<double>().at(0))));
    else if (!weights.contains(fmt::format("model.layers.{}.norm1.weight", layer)))
      return gates;
  }
}

// How the attention of the text's queries, rows of a map (n, n) behind `meta` places, is divided: meta tokens, the text's first
// token, the query itself, others. The first token's own counts as that of the first token.
std::array<double, 4> shares_of(std::span<const float> map, std::int64_t n, std::int64_t meta) {
  std::array<double, 4> sums{};
  for (std::int64_t i = meta; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) sums[j < meta ? 0 : j == meta ? 1 : j == i ? 2 : 3] += map[std::size_t(i * n + j)];
  for (double& sum : sums) sum /= double(n - meta);
  return sums;
}

// Maps of the first window of the validation part.
json attention_of(HybridModel& model, const TokenStream& text, std::vector<std::int64_t> layers, const fs::path& file) {
  const HybridSizes& sizes = model.sizes();
  std::erase_if(layers, [&](std::int64_t l) { return l >= sizes.layers() || !sizes.has_attention(l); });
  std::vector<std::int64_t> ids(std::size_t(std::min(text.options().length, text.validation_tokens().size())));
  text.validation_tokens().copy(0, ids);
  const Tensor input = Tensor::from(ids, {1, std::int64_t(ids.size())});
  const std::vector<Tensor> maps = run([&] {
    std::vector<Tensor> means;
    for (const Tensor& map : model.attention_maps(input, layers)) means.push_back(mean(cast(map, DType::f32), {0, 1}));
    return means;
  });
  const std::int64_t n = sizes.meta_tokens + std::int64_t(ids.size());
  std::vector<float> all;
  json shares = json::array(), kinds = json::array();
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const std::vector<float> map = maps[m].to_host<float>();
    all.insert(all.end(), map.begin(), map.end());
    shares.push_back(shares_of(map, n, sizes.meta_tokens));
    kinds.push_back(sizes.kinds[std::size_t(layers[m])] == 'G' ? "global" : "local");
  }
  write_safetensors(file, {{"maps", HostTensor::from<float>(DType::f32, {std::int64_t(maps.size()), n, n}, all)}});
  return {{"layers", layers}, {"kinds", kinds}, {"meta", sizes.meta_tokens}, {"shares", shares}};
}

std::int64_t step_of_run(const fs::path& run) { return read_json(run / "config.json").at("steps").get<std::int64_t>(); }

}  // namespace

void measure(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder) {
  const fs::path name = folder.run(plan, run), config = name / "config.json";
  const TrainOptions o = options_from(settings_from_json(read_json(config), config.string()));
  TextModel lm = load_text_model(name, compute_options(o).dtype);
  const TokenStream text = open_data(folder.data(), {}, {.batch = o.batch, .length = o.length});
  json measured = {{"step", o.steps},
                   {"parameters", lm.model->parameter_count()},
                   {"validation", validation_of(*lm.model, text, o.eval_batches)},
                   {"inference", inference_of(lm, plan)},
                   {"cache", cache_json(*lm.model, o.length)},
                   {"samples", samples_of(lm, plan, run.seed)},
                   {"gates", gates_of(*lm.model)}};
  auto* hybrid = dynamic_cast<HybridModel*>(lm.model.get());
  if (hybrid && run.seed == 1 && plan.models[run.model].name == plan.mapped)
    measured["attention"] = attention_of(*hybrid, text, plan.layers, folder.beside(plan, run, ".attention.safetensors"));
  const std::string lines = measured.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
  write_file(folder.beside(plan, run, ".json"), std::as_bytes(std::span(lines)));
}

bool is_measured(const StudyPlan& plan, const StudyRun& run, const StudyFolder& folder) {
  const fs::path file = folder.beside(plan, run, ".json");
  return fs::exists(file) && read_json(file).value("step", std::int64_t(-1)) == step_of_run(folder.run(plan, run));
}

}  // namespace weft
