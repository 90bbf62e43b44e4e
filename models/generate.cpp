#include "models/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "autograd/op.h"
#include "autograd/run.h"
#include "jit/error.h"
#include "jit/philox.h"
#include "models/sample.h"

namespace weft {

std::vector<std::int64_t> generate(LanguageModel& model, const std::vector<std::int64_t>& prompt, GenerateOptions o,
                                   const std::function<bool(std::int64_t)>& on_token, Site where) {
  const std::int64_t known = model.vocab(), vocab = o.vocab > 0 ? std::min(o.vocab, known) : known;
  if (prompt.empty()) fail_at(where, "generate: the prompt is empty", {}, "give at least one token");
  for (std::int64_t id : prompt)
    if (id < 0 || id >= known)
      fail_at(where, "generate: a token id is out of range", fmt::format("id {}, vocabulary {}", id, known),
              "use the tokenizer that the model was trained with");
  if (o.tokens < 0 || o.vocab < 0)
    fail_at(where, "generate: a negative number of tokens", fmt::format("tokens {}, vocab {}", o.tokens, o.vocab));
  check_sampling(o.temperature, o.top_k, o.top_p, where);
  const Evaluating scope(model);
  const std::unique_ptr<ModelCache> cache = model.make_cache(1);
  std::vector<std::int64_t> ids = prompt;
  for (std::int64_t n = 0; n < o.tokens; ++n) {
    // Every step but the first records the same nodes: one plan, replayed.
    const Tensor logits = n == 0 ? run([&](const Tensor& x) { return model.prefill(x, *cache); },
                                       Tensor::from(ids, {1, std::int64_t(ids.size())}))
                                 : run([&](const Tensor& x) { return model.step(x, *cache); },
                                       Tensor::from(std::vector<std::int64_t>{ids.back()}, {1, 1}));
    const std::vector<float> values = logits.to_host<float>();  // the embedding's padding is not sampled from
    const double u = (double(philox_group(o.seed, std::uint64_t(n), 0)[0]) + 0.5) * 0x1p-32;
    ids.push_back(sample(std::span(values).first(std::size_t(vocab)), o.temperature, o.top_k, o.top_p, u, where));
    if (on_token && !on_token(ids.back())) break;
  }
  return ids;
}

}  // namespace weft
