#include "tools/bench/models.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "jit/gpu.h"
#include "models/adapters.h"
#include "models/generate.h"
#include "models/hymba_study.h"
#include "models/mamba.h"
#include "models/mamba2.h"
#include "models/transformer.h"
#include "ops/ops.h"
#include "optim/adamw.h"
#include "tools/bench/power.h"

namespace weft {
namespace {

double rounded_to(double value, double unit) { return std::round(value / unit) * unit; }

// Of one layer and one place of a text.
struct LayerCost {
  double weights = 0;  // elements that it is multiplied with
  double values = 0;   // elements that a training step reads or writes outside of the products, at the least
  friend LayerCost operator+(LayerCost a, LayerCost b) { return {a.weights + b.weights, a.values + b.values}; }
};

// A norm with its residual, forward and backward.
LayerCost norm_cost(double d) { return {.values = 8 * d}; }

// conv1d and the scan read and write 2 + 3 and 4 + 7 times the inner width.
LayerCost mamba_cost(const MambaConfig& c) {
  const double d = double(c.width), i = double(c.inner_width()), r = double(c.dt_rank()), n = double(c.state);
  return {.weights = d * 2 * i + i * (r + 2 * n) + r * i + i * d, .values = 16 * i};
}

// And the gated norm 6 times.
LayerCost mamba2_cost(const Mamba2Config& c) {
  const double d = double(c.width), i = double(c.inner_width());
  return {.weights = d * double(c.projected_width()) + i * d, .values = 22 * i};
}

LayerCost attention_cost(double d, const AttentionSizes& a) {
  return {.weights = d * double((a.heads + a.groups) * a.key + (a.heads + a.groups) * a.value)};
}

LayerCost mlp_cost(double d, double hidden) { return {.weights = 3 * d * hidden, .values = 8 * hidden}; }

// Pairs of a query and a key that it sees, in one text of t places.
double visible_pairs(const AttentionSizes& a, std::int64_t t) {
  double pairs = 0;
  for (std::int64_t i = 0; i < t; ++i)
    pairs += double(a.window ? std::min(i + 1, a.window) + std::clamp<std::int64_t>(i - a.window + 1, 0, a.meta) : i + 1);
  return pairs;
}

double attention_flops(const AttentionSizes& a, std::int64_t t) {
  return 2 * double(a.heads * (a.key + a.value)) * visible_pairs(a, t);
}

// A model, how it is trained here, and how long the texts are that it goes on with.
struct BenchModel {
  std::string name;
  std::function<std::unique_ptr<LanguageModel>()> make;
  std::int64_t batch = 8, length = 2048, meta = 0;
  double width = 0, rows = 0;  // of the head
  bool tied = true;            // the embedding is the head, so decoding reads it
  double parameters = 0, layers = 0;
  LayerCost cost = {};
  double attention = 0;      // operations of all layers, of one text, forward
  std::int64_t context = 0;  // of decoding: places that the caches hold; 0: it does not matter
  std::int64_t tokens = 64;  // after each prompt
  bool everywhere = false;   // small enough for a CPU
  double adapted = 0;        // parameters of adapters, which are all that is trained; 0: the model itself is
};

// On a GPU activations are bf16, as in `weft train`.
template <class Model>
std::function<std::unique_ptr<LanguageModel>()> maker(typename Model::Config config) {
  return [config = std::move(config)]() mutable {
    config.activations = is_gpu(device()) ? DType::bf16 : DType::f32;
    return std::make_unique<Model>(config);
  };
}

// SSM-only LoRA of rank 8: in_proj, x_proj, dt_proj and out_proj have it, and nothing else is trained.
BenchModel with_lora(BenchModel m, const MambaConfig& c, std::int64_t rank) {
  const auto make = std::exchange(m.make, {});
  m.make = [=] {
    auto model = make();
    add_adapter(*model, {.rank = rank}, parse_targets("ssm", AdapterKind::lora));
    return model;
  };
  const double d = double(c.width), i = double(c.inner_width()), r = double(c.dt_rank()), n = double(c.state);
  m.name += ", LoRA";
  m.adapted = m.layers * double(rank) * ((d + 2 * i) + (i + r + 2 * n) + (r + i) + (i + d));
  m.parameters += m.adapted;
  return m;
}

// Of a norm and a mixer in each layer.
template <class Model>
BenchModel backbone_model(std::string name, const typename Model::Config& c, LayerCost mixer, std::int64_t batch,
                          std::int64_t length) {
  const double d = double(c.width);
  return {.name = std::move(name),
          .make = maker<Model>(c),
          .batch = batch,
          .length = length,
          .width = d,
          .rows = double(c.rows()),
          .parameters = double(c.parameter_count()),
          .layers = double(c.layers),
          .cost = norm_cost(d) + mixer};
}

// Both mixers stand in every layer.
BenchModel hymba_model(std::string name, const HymbaStudyConfig& c, std::int64_t batch, std::int64_t length) {
  const double d = double(c.width);
  const HybridSizes sizes = hybrid_sizes(c);
  double attention = 0;
  for (std::int64_t l = 0; l < c.layers(); ++l) attention += attention_flops(sizes.attention_of(l), c.meta_tokens + length);
  return {.name = std::move(name),
          .make = maker<HymbaStudy>(c),
          .batch = batch,
          .length = length,
          .meta = c.meta_tokens,
          .width = d,
          .rows = double(c.vocab),
          .tied = c.tie,
          .parameters = double(c.parameter_count()),
          .layers = double(c.layers()),
          .cost = norm_cost(d) + norm_cost(d) + attention_cost(d, sizes.attention) + mlp_cost(d, double(c.mlp_width())) +
                  mamba_cost(c.mamba()),
          .attention = attention};
}

BenchModel transformer_model(std::string name, const TransformerConfig& c, std::int64_t batch, std::int64_t length) {
  const double d = double(c.width);
  double attention = 0;
  for (std::int64_t l = 0; l < c.layers; ++l) attention += attention_flops(c.sizes(l), length);
  return {.name = std::move(name),
          .make = maker<Transformer>(c),
          .batch = batch,
          .length = length,
          .width = d,
          .rows = double(c.vocab),
          .tied = c.tie,
          .parameters = double(c.parameter_count()),
          .layers = double(c.layers),
          .cost = norm_cost(d) + norm_cost(d) + attention_cost(d, c.sizes(0)) + mlp_cost(d, double(c.mlp())),
          .attention = attention};
}

std::vector<BenchModel> bench_models(bool smoke) {
  MambaConfig mamba{.vocab = 50280, .width = 768, .layers = 24}, ten{.vocab = 4000, .width = 384, .layers = 10},
      four{.vocab = 256, .width = 256, .layers = 4};
  Mamba2Config mamba2{.vocab = 50280, .width = 768, .layers = 24};
  HymbaStudyConfig hymba = bench_model();
  hymba.vocab = 4000;
  TransformerConfig transformer{.vocab = 4000, .width = 512, .layers = 15, .heads = 8, .kv_heads = 4, .context = 8192};
  if (smoke) {
    mamba = ten = four = {.vocab = 40, .width = 16, .layers = 2, .state = 4};
    mamba2 = {.vocab = 40, .width = 16, .layers = 1, .state = 8, .head = 8};
    hymba.vocab = 40, hymba.width = 32, hymba.layer_kinds = "GL", hymba.heads = 2, hymba.kv_heads = 1;
    hymba.meta_tokens = 4, hymba.window = 6, hymba.state = 4;
    transformer.vocab = 40, transformer.width = 32, transformer.layers = 1, transformer.heads = 2, transformer.kv_heads = 1;
  }
  const auto sized = [&](std::int64_t n, std::int64_t small) { return smoke ? small : n; };
  const std::int64_t b = sized(8, 2), l = sized(2048, 16), hb = sized(16, 2), hl = sized(256, 16);
  std::vector<BenchModel> models = {backbone_model<Mamba>("Mamba-130M", mamba, mamba_cost(mamba), b, l),
                                    backbone_model<Mamba2>("Mamba2-130M", mamba2, mamba2_cost(mamba2), b, l),
                                    hymba_model("Hymba-style 15x512", hymba, hb, hl),
                                    transformer_model("Transformer 15x512", transformer, hb, hl),
                                    backbone_model<Mamba>("Mamba-10M", ten, mamba_cost(ten), hb, hl),
                                    backbone_model<Mamba>("Mamba 4x256", four, mamba_cost(four), b, hl)};
  models[2].context = models[3].context = sized(1024, 32);
  models[5].everywhere = true;
  models.push_back(with_lora(models[0], mamba, sized(8, 1)));
  for (BenchModel& m : models) m.tokens = sized(64, 5);
  return models;
}

// ---- training steps ---------------------------------------------------------------------------------------------------------

// Products and attention at the rate of matrices, everything else at that of memory, one after the other. AdamW moves 28 bytes
// a parameter, and the norm of the gradients reads 4 more; logits are written, read, and their gradient written. A frozen
// weight is part of two products instead of three, and of no update.
Work step_work(const BenchModel& m) {
  const double tokens = double(m.batch * m.length), places = double(m.batch * (m.meta + m.length));
  const double products = places * m.layers * m.cost.weights + tokens * m.width * m.rows;
  const double trained = m.adapted > 0 ? m.adapted : m.parameters;
  return {.bytes = 2 * (places * m.layers * m.cost.values + 3 * tokens * m.rows) + 32 * trained,
          .flops = (m.adapted > 0 ? 4 * products + 6 * places * m.adapted : 6 * products) + 3.5 * double(m.batch) * m.attention,
          .in_turn = true};
}

Tensor random_ids(std::int64_t batch, std::int64_t length, std::int64_t vocab, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int64_t> ids(std::size_t(batch * length));
  for (std::int64_t& id : ids) id = std::int64_t(random() % std::uint64_t(vocab));
  return Tensor::from(ids, {batch, length});
}

void add_power(BenchJson& extra, const std::optional<PowerUse>& use) {
  if (!use) return;
  extra["clock_mhz"] = use->mhz, extra["least_clock_mhz"] = use->least_mhz;
  extra["power_w"] = rounded_to(use->watts, 1), extra["power_capped"] = rounded_to(use->capped, 0.01);
}

Measured measure_training(const BenchModel& m, const TimeLimits& limits) {
  const auto model = m.make();
  AdamW optimizer(model->trainable_parameters(), {.lr = 3e-4, .weight_decay = 0.1, .clip_norm = 1});
  constexpr unsigned kBatches = 4;
  std::vector<Tensor> inputs, targets;
  for (unsigned i = 0; i < kBatches; ++i) {
    inputs.push_back(random_ids(m.batch, m.length, model->vocab(), 2 * i));
    targets.push_back(random_ids(m.batch, m.length, model->vocab(), 2 * i + 1));
  }
  const auto step = [&](const Tensor& in, const Tensor& out) {
    const Tensor loss = cross_entropy((*model)(in), out);
    backward(loss);
    optimizer.step();
    return loss;
  };
  Tensor loss;
  unsigned steps = 0;
  const auto take = [&](unsigned n) {
    return time_wall([&] {
      for (unsigned end = steps + n; steps < end; ++steps)
        loss = run(step, inputs[steps % kBatches], targets[steps % kBatches]);
    });
  };
  const double first_s = take(1), first_loss = loss.item();
  check_time(first_s, limits);
  take(2);  // a GPU's graph is captured
  const double one_s = take(1);
  check_time(one_s, limits);

  // By the second, so that the clock can sink to what the board can keep up.
  PowerMeter meter;
  const unsigned before = steps, at_once = unsigned(std::clamp(1 / std::max(one_s, 1e-4), 1.0, 1e4));
  double total_s = take(std::min(at_once, unsigned(std::ceil(limits.step_s / std::max(one_s, 1e-4))) + 2)), burst_s = total_s;
  const unsigned burst = steps - before;
  while (total_s < limits.step_s) total_s += take(at_once);
  const double ms = total_s / (steps - before) * 1e3;

  BenchJson extra = {{"tokens_s", std::round(double(m.batch * m.length) / ms * 1e3)}};
  if (is_gpu(device()))  // GiB, as the peers' are
    extra["peak_gb"] = rounded_to(double(Gpu::of(device()).used_memory() + last_run().arena_bytes) / double(1 << 30), 0.01);
  extra["first_s"] = rounded_to(first_s, 0.01), extra["kernels"] = last_run().kernels;
  add_power(extra, meter.stop());
  extra["burst_ms"] = rounded_to(burst_s / burst * 1e3, 1e-4), extra["steps"] = steps - before;
  extra["params_m"] = rounded_to(m.parameters / 1e6, 0.1);
  const double last_loss = loss.item();
  if (!std::isfinite(first_loss) || !std::isfinite(last_loss)) fail(ErrorKind::training, "the loss is not finite");
  extra["note"] = fmt::format("{}, loss {:.3f} -> {:.3f}", is_gpu(device()) ? "bf16" : "fp32", first_loss, last_loss);
  return {.ms = {ms}, .extra = extra};
}

// ---- decoding ---------------------------------------------------------------------------------------------------------------

// Weights are read once for all texts, and their caches; what a recurrence remembers is written too.
Work decode_work(const BenchModel& m, const LanguageModel& model, std::int64_t texts) {
  const DType dtype = is_gpu(device()) ? DType::bf16 : DType::f32;
  const double unused = m.tied ? 0 : m.width * m.rows;
  const CacheBytes cache = model.cache_bytes(std::max<std::int64_t>(m.context - m.meta, 1));
  return {.bytes = (m.parameters - unused) * double(size_of(dtype)) + double(texts) * (cache.attention + 2 * cache.states),
          .flops = double(texts) * model.flops_per_token(1)};
}

// Of a step of `generate`, which fetches the logits and chooses the tokens on the host. ids (texts, t)
double generation_ms(LanguageModel& model, const Tensor& ids, std::int64_t tokens) {
  using Clock = std::chrono::steady_clock;
  const std::vector<std::int64_t> all = ids.to_host<std::int64_t>();
  std::vector<std::vector<std::int64_t>> prompts;
  for (auto at = all.begin(); at != all.end(); at += ids.dim(1)) prompts.emplace_back(at, at + ids.dim(1));
  std::vector<Clock::time_point> times;
  generate_all(model, prompts, {.tokens = tokens, .temperature = 0}, [&](std::size_t text, std::int64_t) {
    if (text == 0) times.push_back(Clock::now());
    return true;
  });
  constexpr std::size_t kWarm = 3;  // the prompt, a new plan, its graph
  if (times.size() <= kWarm) fail(ErrorKind::usage, "bench: too few tokens to time");
  return std::chrono::duration<double>(times.back() - times[kWarm - 1]).count() / double(times.size() - kWarm) * 1e3;
}

Measured measure_decoding(const BenchModel& m, std::int64_t texts, const TimeLimits& limits) {
  constexpr std::int64_t kPrompt = 16;  // where its length does not matter
  const std::int64_t prompt = m.context ? m.context - m.meta - m.tokens : kPrompt;
  const auto model = m.make();
  const Evaluating scope(*model);
  const auto cache = model->make_cache(texts);
  const Tensor ids = random_ids(texts, prompt, model->vocab(), 0), next = random_ids(texts, 1, model->vocab(), 1);
  Tensor logits;
  const auto one = [&] { logits = run([&] { return model->step(next, *cache); }); };
  const auto begin = [&] { logits = run([&] { return model->prefill(ids, *cache); }); };
  const double first_s = time_wall([&] { begin(), one(); });
  check_time(first_s, limits);
  one();  // a GPU's graph is captured
  const int kernels = last_run().kernels;
  std::vector<double> ms;
  for (double spent = 0; spent < limits.budget_ms || ms.size() < 2;) {
    time_wall(begin);
    const double s = time_wall([&] {
      for (std::int64_t i = 0; i < m.tokens; ++i) one();
    });
    ms.push_back(s / double(m.tokens) * 1e3);
    spent += s * 1e3;
    check_time(s, limits);
  }
  for (const float v : logits.to_host<float>())
    if (!std::isfinite(v)) fail(ErrorKind::training, "a logit is not finite");

  BenchJson extra = {{"tokens_s", std::round(double(texts) / median(ms) * 1e3)}};
  extra["wall_ms"] = rounded_to(generation_ms(*model, ids, m.tokens), 1e-4);
  extra["first_s"] = rounded_to(first_s, 0.01), extra["kernels"] = kernels;
  return {.ms = {median(ms)}, .extra = extra, .work = decode_work(m, *model, texts)};
}

BenchCase case_of(const BenchModel& m, const BenchRow& row, std::function<Measured(const TimeLimits&)> measure) {
  return {.rows = {row}, .measure = std::move(measure), .for_gpu = !m.everywhere};
}

}  // namespace

std::vector<BenchCase> e2e_cases(bool smoke) {
  std::vector<BenchCase> cases;
  for (const BenchModel& m : bench_models(smoke)) {
    const std::string shape = fmt::format("{}x{}", m.batch, m.length) + (m.meta ? fmt::format("+{}", m.meta) : "");
    cases.push_back(case_of(m, {{"e2e", m.name, shape, "step"}, step_work(m)},
                            [m](const TimeLimits& limits) { return measure_training(m, limits); }));
  }
  return cases;
}

std::vector<BenchCase> decode_cases(bool smoke) {
  std::vector<BenchCase> cases;
  for (const BenchModel& m : bench_models(smoke))
    for (const std::int64_t texts : smoke ? std::vector<std::int64_t>{1, 3} : std::vector<std::int64_t>{1, 8, 64}) {
      const std::string shape =
          fmt::format("batch {}", texts) + (m.context ? fmt::format(", {} ctx", m.context) : "") + (smoke ? ", tiny" : "");
      if (m.adapted > 0) continue;  // who decodes merges
      cases.push_back(case_of(m, {{"decode", m.name, shape, "step"}, {}},
                              [m, texts](const TimeLimits& limits) { return measure_decoding(m, texts, limits); }));
    }
  return cases;
}

}  // namespace weft
