#include "models/hybrid.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "autograd/backward.h"
#include "models/family.h"
#include "ops/ops.h"

namespace weft {

AttentionSizes HybridSizes::attention_of(std::int64_t layer) const {
  AttentionSizes of = attention;
  if (kinds[std::size_t(layer)] == 'G') of.window = 0;
  return of;
}

HybridCache::HybridCache(const HybridSizes& s, std::int64_t b) : ModelCache(b) {
  for (std::int64_t l = 0; l < s.layers(); ++l) {
    const std::string name = fmt::format("model.layers.{}", l);
    HybridLayerCache layer;
    if (s.has_mamba(l) && s.mamba2) layer.mamba2.emplace(*s.mamba2, b, name + ".mamba");
    if (s.has_mamba(l) && !s.mamba2) layer.mamba.emplace(s.mamba, b, name + ".mamba");
    if (s.makes_keys(l)) layer.kv = KvCache(s.attention_of(l), b, s.compute, name + ".attention");
    layers.push_back(std::move(layer));
  }
}

namespace {

// Elements that a layer's convolution, and its scan, remember.
double conv_elements(const HybridSizes& s) {
  return s.mamba2 ? double(s.mamba2->conv - 1) * double(s.mamba2->conv_width())
                  : double(s.mamba.conv - 1) * double(s.mamba.inner_width());
}
double state_elements(const HybridSizes& s) {
  return s.mamba2 ? double(s.mamba2->scanned_width()) * double(s.mamba2->state)
                  : double(s.mamba.inner_width()) * double(s.mamba.state);
}

}  // namespace

CacheBytes cache_bytes(const HybridSizes& s, std::int64_t length) {
  const double unit = double(size_of(s.compute));
  CacheBytes bytes;
  for (std::int64_t l = 0; l < s.layers(); ++l) {
    if (s.has_mamba(l)) bytes.states += conv_elements(s) * unit + state_elements(s) * double(size_of(s.dtype));
    if (!s.has_attention(l)) continue;
    AttentionSizes global = s.attention;
    global.window = 0;
    bytes.attention_global += cached_elements(global, length) * unit;
    bytes.layers += 1;
    if (!s.makes_keys(l)) continue;
    bytes.attention += cached_elements(s.attention_of(l), length) * unit;
    bytes.caches += 1;
  }
  return bytes;
}

double multiplied_weights(const Module& layer) {
  double elements = 0;
  for (const WeightedModule& part : layer.parts<WeightedModule>()) elements += double(part.weight().shape().numel());
  return elements;
}

// ---- model ------------------------------------------------------------------------------------------------------------------

HybridModel::HybridModel(HybridSizes sizes)
    : sizes_(std::move(sizes)),
      rope_(sizes_.rope, sizes_.attention.key, sizes_.dtype),
      embed_tokens_(sizes_.vocab, sizes_.width, {.deviation = sizes_.deviation, .dtype = sizes_.dtype}),
      final_layernorm_(sizes_.width, {.eps = sizes_.eps, .dtype = sizes_.dtype, .output = sizes_.compute}) {
  add("model.embed_tokens", embed_tokens_);
  if (sizes_.meta_tokens > 0) {
    memory_tokens_ = Param({sizes_.meta_tokens, sizes_.width}, sizes_.dtype);
    memory_tokens_.set_decay(false);
    add("model.memory_tokens", memory_tokens_, init::normal(1));
  }
  add("model.final_layernorm", final_layernorm_);
  if (sizes_.tie) return;
  lm_head_.emplace(sizes_.width, sizes_.vocab,
                   LinearOptions{.bias = false, .weight_init = init::normal(sizes_.deviation), .dtype = sizes_.dtype});
  add("lm_head", *lm_head_);
}

// The residual stream is in the parameters' type.
Tensor HybridModel::embed(const Tensor& ids, bool from_the_start) {
  Tensor tokens = embed_tokens_(ids);
  if (sizes_.pad) tokens = where(equal(reshape(ids, {ids.dim(0), ids.dim(1), 1}), double(*sizes_.pad)), detach(tokens), tokens);
  const Tensor x = sizes_.embedding_scale == 1 ? tokens : tokens * sizes_.embedding_scale;
  if (!from_the_start || !memory_tokens_) return x;
  return concat({expand(memory_tokens_.read(), {ids.dim(0), sizes_.meta_tokens, sizes_.width}), x}, 1);
}

Tensor HybridModel::layers(Tensor x, AttentionPass& pass, const HybridCache* cache, std::vector<Tensor>* maps) {
  std::vector<KeysValues> keys(std::size_t(sizes_.layers()));
  for (std::int64_t l = 0; l < sizes_.layers(); ++l) {
    const HybridPass of_layer{pass, cache ? &cache->layers[std::size_t(l)] : nullptr,
                              keys[std::size_t(sizes_.producers[std::size_t(l)])]};
    pass.map = maps ? &(*maps)[std::size_t(l)] : nullptr;
    x = sizes_.recompute && !cache ? checkpoint([&] { return layer(l, x, of_layer); }) : layer(l, x, of_layer);
  }
  return final_layernorm_(x);
}

Tensor HybridModel::head(const Tensor& x) {
  const Tensor logits = lm_head_ ? (*lm_head_)(x) : embed_tokens_.logits(x);
  return sizes_.logit_scale == 1 ? logits : logits * sizes_.logit_scale;
}

Tensor HybridModel::forward_in(const Tensor& ids, const TextFlow& flow) {
  check_texts(ids, context());
  const std::int64_t m = sizes_.meta_tokens, t = m + ids.dim(1);
  AttentionPass pass = attention_pass(rope_, t, m);
  pass.segments = flow.segments;
  return head(slice(layers(embed(ids, true), pass, nullptr), 1, m, t));
}

std::vector<Tensor> HybridModel::attention_maps(const Tensor& ids, const std::vector<std::int64_t>& wanted, Site where) {
  for (const std::int64_t l : wanted)
    if (l < 0 || l >= sizes_.layers() || !sizes_.has_attention(l))
      fail_at(where, "attention_maps: there is no such layer, or it has no attention",
              fmt::format("layer {}, layers {}", l, sizes_.kinds), "layers count from 0; G and L have attention");
  check_texts(ids, context(), where);
  NoGrad scope;
  std::vector<Tensor> all(std::size_t(sizes_.layers())), maps;
  AttentionPass pass = attention_pass(rope_, sizes_.meta_tokens + ids.dim(1), sizes_.meta_tokens);
  layers(embed(ids, true), pass, nullptr, &all);
  for (const std::int64_t l : wanted) maps.push_back(all[std::size_t(l)]);
  return maps;
}

std::unique_ptr<ModelCache> HybridModel::make_cache(std::int64_t batch) const {
  return std::make_unique<HybridCache>(sizes_, batch);
}

Tensor HybridModel::last_logits(const Tensor& ids, const ModelCache& any, CacheUse use, const Tensor& lengths) {
  const auto& cache = cache_of<HybridCache>(any);
  if (std::int64_t(cache.layers.size()) != sizes_.layers())
    fail(ErrorKind::usage, "model: the cache belongs to another model",
         fmt::format("{} layers, the model has {}", cache.layers.size(), sizes_.layers()));
  const bool fill = use == CacheUse::fill;
  const std::int64_t t = ids.dim(1) + (fill ? sizes_.meta_tokens : 0);
  AttentionPass pass = attention_pass(rope_, t, sizes_.meta_tokens, &cache, use, lengths);
  const Tensor x = layers(embed(ids, fill), pass, &cache);
  return head(last_of(x, pass.ends));
}

// Of all places, the meta tokens' too, a token of the text has its share.
double HybridModel::flops_per_token(std::int64_t length) const {
  const double places = double(sizes_.meta_tokens + length) / double(length);
  const double of_state = sizes_.mamba2 ? 5 : 7;
  double flops = 2 * double(sizes_.vocab) * double(sizes_.width);
  for (std::int64_t l = 0; l < sizes_.layers(); ++l) {
    flops += places * 2 * layer_weights(l);
    if (sizes_.has_mamba(l)) flops += places * of_state * state_elements(sizes_);
    if (!sizes_.has_attention(l)) continue;
    const AttentionSizes a = sizes_.attention_of(l);
    flops += 2 * mean_visible(a, length) * double(a.heads * (a.key + a.value));
  }
  return flops;
}

// ---- weights ----------------------------------------------------------------------------------------------------------------

TensorMap HybridModel::weights(CheckpointNames names) const {
  if (names == CheckpointNames::original) fail(ErrorKind::usage, "model: it has no other names than those of Hugging Face");
  return state_dict();
}

void HybridModel::load_weights(TensorMap tensors) {
  if (sizes_.tie) drop_tied_head(tensors, "lm_head.weight", "model.embed_tokens.weight");
  load_state_dict(tensors);
}

}  // namespace weft
