// Hybrid models written a second time, from ops that are easy to read, in fp64: a mean of squares for each norm, a product for
// each head, a step of the recurrence after the other. Shapes: b batch, t places, meta tokens included, i inner width.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "autograd/check.h"
#include "models/hymba.h"
#include "models/hymba_study.h"
#include "ops/ops.h"

namespace weft::reference {

using Weights = std::map<std::string, Tensor>;  // by the names of the model

inline Tensor part(const Tensor& x, std::int64_t begin, std::int64_t size) { return slice(x, -1, begin, begin + size); }
inline Tensor product(const Tensor& x, const Tensor& w) { return matmul(x, transpose(w)); }
inline Tensor norm(const Tensor& x, const Tensor& w, double eps) { return x / sqrt(mean(square(x), {-1}, true) + eps) * w; }
inline Tensor mlp(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down) {
  const Tensor g = product(x, gate);
  return product(g * sigmoid(g) * product(x, up), down);
}

// x (b, t, dk), one head: feature pair p of place t turns by t base^(-2p/dk).
inline Tensor turned(const Tensor& x, double base, Pairing pairing) {
  const std::int64_t t = x.dim(1), dk = x.dim(2), half = dk / 2;
  std::vector<double> cosines, sines;
  for (std::int64_t place = 0; place < t; ++place)
    for (std::int64_t p = 0; p < half; ++p) {
      const double angle = double(place) * std::pow(base, -2 * double(p) / double(dk));
      cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
    }
  const Tensor c = Tensor::from(cosines, {1, t, half}), s = Tensor::from(sines, {1, t, half});
  if (pairing == Pairing::halves) {
    const Tensor a = part(x, 0, half), b = part(x, half, half);
    return concat({a * c - b * s, a * s + b * c}, 2);
  }
  std::vector<Arg> features;
  for (std::int64_t p = 0; p < half; ++p) {
    const Tensor a = part(x, 2 * p, 1), b = part(x, 2 * p + 1, 1), cp = part(c, p, 1), sp = part(s, p, 1);
    features.emplace_back(a * cp - b * sp), features.emplace_back(a * sp + b * cp);
  }
  return concat(features, 2);
}

// 0 where query i sees key j: those up to i, the last `window` of them (0: all) and the first `meta`; else minus infinity.
inline Tensor hidden(std::int64_t t, std::int64_t window, std::int64_t meta) {
  std::vector<double> bias;
  for (std::int64_t i = 0; i < t; ++i)
    for (std::int64_t j = 0; j < t; ++j) bias.push_back(j <= i && (window == 0 || i - j < window || j < meta) ? 0 : -INFINITY);
  return Tensor::from(bias, {t, t});
}

struct Sizes {
  AttentionSizes attention;  // of this layer
  double rope_base;
  Pairing pairing;
};

// q (b, t, h dk), k (b, t, g dk), v (b, t, g dv) -> (b, t, h dv), head by head.
inline Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Sizes& sizes) {
  const AttentionSizes& a = sizes.attention;
  const Tensor bias = hidden(q.dim(1), a.window, a.meta);
  std::vector<Arg> heads;
  for (std::int64_t h = 0; h < a.heads; ++h) {
    const std::int64_t g = h / (a.heads / a.groups);
    const Tensor qh = turned(part(q, h * a.key, a.key), sizes.rope_base, sizes.pairing),
                 kh = turned(part(k, g * a.key, a.key), sizes.rope_base, sizes.pairing);
    const Tensor p = softmax(matmul(qh, transpose(kh)) / std::sqrt(double(a.key)) + bias);
    heads.emplace_back(matmul(p, part(v, g * a.value, a.value)));
  }
  return concat(heads, 2);
}

// x (b, t, i), weight (i, w): place t has the last w inputs, the newest with the last column.
inline Tensor convolution(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const std::int64_t t = x.dim(1), w = weight.dim(1);
  Tensor y = bias;
  for (std::int64_t j = 0; j < w; ++j)
    y = y + reshape(part(weight, j, 1), {x.dim(2)}) * slice(pad(x, 1, w - 1 - j, 0), 1, 0, t);
  return y * sigmoid(y);
}

// h_t = exp(delta A) h_(t-1) + delta B u, s_t = C h_t + D u, gated by z.
inline Tensor scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, const Tensor& D,
                   const Tensor& z) {
  const std::int64_t b = u.dim(0), t = u.dim(1), i = u.dim(2), n = A.dim(1);
  const auto at = [&](const Tensor& x, std::int64_t place, Shape shape) {
    return reshape(slice(x, 1, place, place + 1), shape);
  };
  Tensor h = zeros({b, i, n}, DType::f64);
  std::vector<Arg> results;
  for (std::int64_t place = 0; place < t; ++place) {
    const Tensor d = at(delta, place, {b, i, 1}), x = at(u, place, {b, i, 1});
    h = exp(d * A) * h + d * x * at(B, place, {b, 1, n});
    results.emplace_back(reshape(sum(h * at(C, place, {b, 1, n}), {-1}) + D * at(u, place, {b, i}), {b, 1, i}));
  }
  return concat(results, 1) * z * sigmoid(z);
}

// What stands between the projections of Mamba heads: x and z (b, t, i) -> (b, t, i). `prefix` and `suffix` of the names;
// eps >= 0: with the norms of the rank, B and C.
inline Tensor mamba_heads(const Weights& w, const std::string& prefix, const std::string& suffix, const Tensor& x,
                          const Tensor& z, double eps = -1) {
  const Tensor A = -exp(w.at(prefix + "A_log" + suffix));
  const Tensor rank_weight = w.at(prefix + "dt_proj" + suffix + ".weight");
  const std::int64_t n = A.dim(1), r = rank_weight.dim(1);
  const Tensor u = convolution(x, w.at(prefix + "conv1d.weight"), w.at(prefix + "conv1d.bias"));
  const Tensor q = product(u, w.at(prefix + "x_proj" + suffix + ".weight"));
  Tensor rank = part(q, 0, r), B = part(q, r, n), C = part(q, r + n, n);
  if (eps >= 0) {
    rank = norm(rank, w.at(prefix + "dt_layernorm.weight"), eps);
    B = norm(B, w.at(prefix + "B_layernorm.weight"), eps);
    C = norm(C, w.at(prefix + "C_layernorm.weight"), eps);
  }
  const Tensor delta = log(1 + exp(product(rank, rank_weight) + w.at(prefix + "dt_proj" + suffix + ".bias")));
  return scan(u, delta, A, B, C, w.at(prefix + "D" + suffix), z);
}

// Embedded ids with the meta tokens before them.
inline Tensor embedded(const Weights& w, const Tensor& ids, std::int64_t meta) {
  const Tensor table = w.at("model.embed_tokens.weight"), x = embedding(table, ids);
  if (meta == 0) return x;
  return concat({expand(w.at("model.memory_tokens"), {ids.dim(0), meta, table.dim(1)}), x}, 1);
}

inline Tensor logits(const Weights& w, const Tensor& x, std::int64_t meta, double eps) {
  const auto head = w.find("lm_head.weight");
  const Tensor text = slice(norm(x, w.at("model.final_layernorm.weight"), eps), 1, meta, x.dim(1));
  return product(text, head == w.end() ? w.at("model.embed_tokens.weight") : head->second);
}

struct Kv {
  Tensor k, v;
};

// Hymba as it was published: ids (b, text) -> (b, text, v).
inline Tensor hymba(const HymbaConfig& c, const Weights& w, const Tensor& ids) {
  const std::int64_t dk = c.width / c.heads, i = c.expand * c.width, dv = i / c.heads, q = c.heads * dk, k = c.kv_heads * dk,
                     v = c.kv_heads * dv;
  const std::vector<std::int64_t> producers = c.producers();
  std::vector<Kv> made(producers.size());
  Tensor x = embedded(w, ids, c.meta_tokens);
  for (std::int64_t l = 0; l < c.layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".", mamba = layer + "mamba.";
    const auto& weight = [&](const std::string& name) -> const Tensor& { return w.at(layer + name + ".weight"); };
    const Tensor p = product(norm(x, weight("input_layernorm"), c.eps), weight("mamba.in_proj"));
    const bool own = producers[std::size_t(l)] == l;
    const std::int64_t heads = q + (own ? k + v : 0);
    if (own) made[std::size_t(l)] = {part(p, q, k), part(p, q + k, v)};
    const Kv& kv = made[std::size_t(producers[std::size_t(l)])];
    const bool global = l == 0 || l == (c.layers - 1) / 2 || l == c.layers - 1;
    const Sizes sizes{{.heads = c.heads,
                       .groups = c.kv_heads,
                       .key = dk,
                       .value = dv,
                       .window = global ? 0 : c.window,
                       .meta = c.meta_tokens},
                      c.rope_base,
                      Pairing::halves};
    const Tensor seen = attention(part(p, 0, q), kv.k, kv.v, sizes);
    const Tensor scanned = mamba_heads(w, mamba, ".0", part(p, heads, i), part(p, heads + i, i), c.eps);
    x = x + product((norm(seen, weight("mamba.pre_avg_layernorm1"), c.eps) +
                     norm(scanned, weight("mamba.pre_avg_layernorm2"), c.eps)) /
                        2,
                    weight("mamba.out_proj"));
    x = x + mlp(norm(x, weight("pre_moe_layernorm"), c.eps), weight("moe.experts.0.gate_proj"), weight("moe.experts.0.up_proj"),
                weight("moe.experts.0.down_proj"));
  }
  return logits(w, x, c.meta_tokens, c.eps);
}

// The models of the study: ids (b, text) -> (b, text, v).
inline Tensor study(const HymbaStudyConfig& c, const Weights& w, const Tensor& ids) {
  const std::vector<std::int64_t> producers = c.producers();
  std::vector<Kv> made(producers.size());
  Tensor x = embedded(w, ids, c.meta_tokens);
  for (std::size_t l = 0; l < producers.size(); ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const auto weight = [&](const std::string& name) { return w.at(layer + name + ".weight"); };
    const auto attended = [&](const Tensor& in) {
      const std::int64_t head = in.dim(2) / c.heads;
      if (producers[l] == std::int64_t(l)) made[l] = {product(in, weight("attn.k_proj")), product(in, weight("attn.v_proj"))};
      const Kv& kv = made[std::size_t(producers[l])];
      const Sizes sizes{{.heads = c.heads,
                         .groups = c.kv_heads,
                         .key = head,
                         .value = head,
                         .window = c.layer_kinds[l] == 'G' ? 0 : c.window,
                         .meta = c.meta_tokens},
                        c.rope_base,
                        Pairing::neighbours};
      return product(attention(product(in, weight("attn.q_proj")), kv.k, kv.v, sizes), weight("attn.o_proj"));
    };
    const auto scanned = [&](const Tensor& in) {
      const Tensor xz = product(in, weight("mamba.in_proj"));
      const std::int64_t i = xz.dim(2) / 2;
      return product(mamba_heads(w, layer + "mamba.", "", part(xz, 0, i), part(xz, i, i)), weight("mamba.out_proj"));
    };
    const Tensor n = norm(x, weight("norm1"), c.eps);
    if (c.block_style == "either_or") {
      const Tensor in = c.wrap_projections ? product(n, weight("to_x")) : n;
      const Tensor out = c.layer_kinds[l] == 'M' ? scanned(in) : attended(in);
      x = x + (c.wrap_projections ? product(out, weight("proj_x")) : out);
    } else if (c.block_style == "parallel_split") {
      const Tensor share = 1 / (1 + exp(-w.at(layer + "gate")));
      x = x + share * product(attended(product(n, weight("to_attn"))), weight("proj_attn")) +
          (1 - share) * product(scanned(product(n, weight("to_mamba"))), weight("proj_mamba"));
    } else {
      x = x + (attended(n) + scanned(n)) / 2;
    }
    x = x + mlp(norm(x, weight("norm2"), c.eps), weight("mlp.gate_proj"), weight("mlp.up_proj"), weight("mlp.down_proj"));
  }
  return logits(w, x, c.meta_tokens, c.eps);
}

}  // namespace weft::reference
