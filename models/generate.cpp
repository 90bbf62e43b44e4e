#include "models/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "autograd/op.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "jit/error.h"
#include "jit/philox.h"
#include "models/sample.h"
#include "ops/ops.h"

namespace weft {
namespace {

using Ids = std::vector<std::int64_t>;

void check_options(const GenerateOptions& o, Site where) {
  if (o.tokens < 0 || o.vocab < 0)
    fail_at(where, "generate: a negative number of tokens", fmt::format("tokens {}, vocab {}", o.tokens, o.vocab));
  check_sampling(o.temperature, o.top_k, o.top_p, where);
}

// Logits (b, v) after texts that are padded on the right to one length.
Tensor logits_after(LanguageModel& model, const std::vector<Ids>& texts, const ModelCache& cache) {
  Ids lengths;
  for (const Ids& text : texts) lengths.push_back(std::int64_t(text.size()));
  const auto b = std::int64_t(texts.size());
  const auto [shortest, longest] = std::minmax_element(lengths.begin(), lengths.end());
  Ids all;
  for (const Ids& text : texts) {
    all.insert(all.end(), text.begin(), text.end());
    all.resize(all.size() + std::size_t(*longest) - text.size());
  }
  const Tensor ids = Tensor::from(all, {b, *longest});
  if (*shortest == *longest) return run([&] { return model.prefill(ids, cache); });
  const Tensor ends = Tensor::from(lengths, {b});
  return run([&] { return model.prefill(ids, cache, ends); });
}

// Logits (b, v) after the last token of each text. Every step records the same nodes: one plan, replayed, until a cache grows.
Tensor logits_of_next(LanguageModel& model, const std::vector<Ids>& texts, const ModelCache& cache) {
  Ids last;
  for (const Ids& text : texts) last.push_back(text.back());
  const Tensor ids = Tensor::from(last, {std::int64_t(last.size()), 1});
  return run([&] { return model.step(ids, cache); });
}

}  // namespace

void check_prompt(const LanguageModel& model, const std::vector<std::int64_t>& prompt, Site where) {
  if (prompt.empty()) fail_at(where, "generate: the prompt is empty", {}, "give at least one token");
  for (std::int64_t id : prompt)
    if (id < 0 || id >= model.vocab())
      fail_at(where, "generate: a token id is out of range", fmt::format("id {}, vocabulary {}", id, model.vocab()),
              "use the tokenizer that the model was trained with");
  if (model.context() && std::int64_t(prompt.size()) > *model.context())
    fail_at(where, "generate: the prompt is longer than the model's context",
            fmt::format("{} tokens, the context is {}", prompt.size(), *model.context()), "give its last part");
}

std::vector<Ids> generate_all(LanguageModel& model, std::vector<Ids> texts, GenerateOptions o,
                              const std::function<bool(std::size_t, std::int64_t)>& on_token, Site where) {
  for (const Ids& prompt : texts) check_prompt(model, prompt, where);
  check_options(o, where);
  if (texts.empty()) return texts;
  const Evaluating scope(model);
  const std::unique_ptr<ModelCache> cache = model.make_cache(std::int64_t(texts.size()));
  const auto known = std::size_t(o.vocab > 0 ? std::min(o.vocab, model.vocab()) : model.vocab());
  const auto full = [&](const Ids& text) { return model.context() && std::int64_t(text.size()) >= *model.context(); };
  std::vector<bool> ended(texts.size());  // the cache goes on with such a text too, which nobody sees
  for (std::int64_t n = 0; n < o.tokens; ++n) {
    for (std::size_t i = 0; i < texts.size(); ++i) ended[i] = ended[i] || full(texts[i]);
    if (std::find(ended.begin(), ended.end(), false) == ended.end()) break;
    const Tensor logits = n == 0 ? logits_after(model, texts, *cache) : logits_of_next(model, texts, *cache);
    const std::vector<float> values = logits.to_host<float>();
    const std::size_t row = values.size() / texts.size();
    const double u = (double(philox_group(o.seed, std::uint64_t(n), 0)[0]) + 0.5) * 0x1p-32;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (ended[i]) continue;
      // The embedding's padding is not sampled from.
      const std::span<const float> of_text = std::span(values).subspan(i * row, known);
      texts[i].push_back(sample(of_text, o.temperature, o.top_k, o.top_p, u, where));
      ended[i] = on_token && !on_token(i, texts[i].back());
    }
  }
  return texts;
}

Ids generate(LanguageModel& model, const Ids& prompt, GenerateOptions o, const std::function<bool(std::int64_t)>& on_token,
             Site where) {
  const auto each = [&](std::size_t, std::int64_t id) { return !on_token || on_token(id); };
  return generate_all(model, {prompt}, o, each, where)[0];
}

std::vector<Ids> sample_continuations(LanguageModel& model, const std::vector<Ids>& prompts, GenerateOptions o, Site where) {
  for (const Ids& prompt : prompts) check_prompt(model, prompt, where);
  check_options(o, where);
  if (prompts.empty()) return {};
  const auto b = std::int64_t(prompts.size()), length = std::int64_t(prompts[0].size());
  if (std::ranges::any_of(prompts, [&](const Ids& p) { return std::int64_t(p.size()) != length; }) || o.top_p < 1)
    fail_at(where, "generate: many texts are sampled after prompts of one length, without a top_p", {}, "use generate_all");
  if (model.context() && length + o.tokens > *model.context() + 1)
    fail_at(where, "generate: the texts outgrow the model's context",
            fmt::format("{} + {} tokens, the context is {}", length, o.tokens, *model.context()), "give fewer tokens");
  const Evaluating scope(model);
  Rng draws(o.seed);
  const UseRng use(draws);
  const std::unique_ptr<ModelCache> cache = model.make_cache(b);
  const std::int64_t known = o.vocab > 0 ? std::min(o.vocab, model.vocab()) : model.vocab();
  const auto next = [&](const Tensor& logits) {  // (b, v) -> (b, 1); the embedding's padding is not sampled from
    return reshape(sample_rows(slice(logits, 1, 0, known), o.temperature, o.top_k), {b, 1});
  };
  Ids all;
  for (const Ids& prompt : prompts) all.insert(all.end(), prompt.begin(), prompt.end());
  const Tensor begin = Tensor::from(all, {b, length});
  std::vector<Tensor> made;
  for (std::int64_t n = 0; n < o.tokens; ++n)
    made.push_back(n == 0 ? run([&] { return next(model.prefill(begin, *cache)); })
                          : run([&] { return next(model.step(made.back(), *cache)); }));
  std::vector<Ids> texts(prompts.size());
  for (const Tensor& ids : made) {
    const Ids column = ids.to_host<std::int64_t>();
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (column[i] >= known)
        throw Error(ErrorKind::training, {"generate: the model's logits are not finite",
                                          fmt::format("of text {}", i),
                                          {},
                                          "the weights may be damaged; see `WEFT_CHECK=nan`"});
      texts[i].push_back(column[i]);
    }
  }
  return texts;
}

}  // namespace weft
