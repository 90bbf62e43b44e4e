// Self-attention as the layers of a decoder have it: rotary positions (arXiv:2104.09864), windows with leading tokens that stay
// visible, and caches of keys and values. Shapes: b batch, t time, h heads of queries, g groups: heads of keys and values, of
// which each serves h/g heads of queries; dk and dv, the sizes of a key and of a value.
//
// A token's place is its position, leading tokens that the model adds included.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/language_model.h"
#include "nn/layers.h"

namespace weft {

// ---- rotary positions -------------------------------------------------------------------------------------------------------

enum class RopeScaling { none, linear, dynamic, llama3 };  // names of Hugging Face

struct RopeOptions {
  double base = 10000;  // pair p of a key's dk features turns by place base^(-2p/dk)
  Pairing pairing = Pairing::halves;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;         // by which the context was extended
  std::int64_t trained = 0;  // dynamic, llama3: the context before
  // llama3: pairs that turn fewer than `low` times in that context are slowed by the factor, those that turn more than `high`
  // times are left, between them by degrees.
  double low = 1, high = 4;
};

// By what each of the key/2 pairs turns from one place to the next in a text of this length, which matters to `dynamic` alone:
// beyond `trained` its base is base ((factor length / trained) - (factor - 1))^(dk/(dk-2)).
std::vector<double> rope_angles(const RopeOptions& options, std::int64_t key, std::int64_t length);

// Cosines and sines of the first places: (places, dk/2), in f32 (f64).
struct RopeTable {
  State cos, sin;
  Pairing pairing = Pairing::halves;
  explicit operator bool() const { return bool(cos); }
  HoleOf<2, 4, 2> rotate() const;  // what attention is given; unfilled without a table
};

// Makes the tables, with room for 256 2^k places, and keeps the last few; copies share them.
class Rope {
 public:
  Rope() = default;  // absent: the layers do not know where a token stands
  // Errors (ErrorKind::usage): an odd number of features, a base or factor that is not positive.
  Rope(RopeOptions options, std::int64_t key, DType dtype);
  RopeTable table(std::int64_t length) const;  // for the places below `length`

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// ---- passes and caches ------------------------------------------------------------------------------------------------------

// 256 2^k >= n: the capacity of what grows with a text, so that a text of n tokens needs O(log n) plans.
std::int64_t capacity_for(std::int64_t n);

struct AttentionSizes {
  std::int64_t heads = 1, groups = 1;  // h, g
  std::int64_t key = 0, value = 0;     // dk, dv
  std::int64_t window = 0;             // tokens that a query sees, its own included; 0: all before it
  std::int64_t meta = 0;               // the first places, which every query after them sees whatever the window
};

// What the layers of a model need to know of one call of it. The call's tokens stand at places [first, first + count).
struct AttentionPass {
  CacheUse use = CacheUse::none;
  std::int64_t first = 0, count = 0;
  RopeTable rope = {};
  Documents segments = {};  // of a pass without a cache: a query sees keys of its own document alone
  // Of a fill with texts that are padded on the right: (b), the place where each ends, padding begins. Absent: none is padded.
  Tensor ends = {};
  // Then a cache has moved the texts, but for the leading tokens, to the right, so that they end at one place: by so much, (b).
  Tensor pads = {};
  Tensor* map = nullptr;      // receives what attend's queries attend to, (b, h, count, places): attention_map
  Tensor cos = {}, sin = {};  // (1 or b, count, 1, dk/2): of these places, where a cache is filled or goes on
};

// Of a model whose own leading places are `meta`: `cache` null for a pass without one. `count` and `ends` include them.
AttentionPass attention_pass(const Rope& rope, std::int64_t count, std::int64_t meta = 0, const ModelCache* cache = nullptr,
                             CacheUse use = CacheUse::none, const Tensor& lengths = {});

// What the queries of one layer, or of several that share them, look at.
struct KeysValues {
  Tensor k, v;             // (b, places, g, dk), (b, places, g, dv)
  bool cached = false;     // k is rotated, and the places are those of a cache; else they are the pass's own, k as it was made
  HoleOf<0, 4> mask = {};  // visible(; b, h, i, j)
};

// Keys, rotated, and values of one layer: the leading tokens for ever, and of the text all, or the last ones that the window
// lets be seen, in a ring. States have a row for each: (rows, b, g, dk), of which the text's are 256 2^k or, if that is less,
// the window. A handle.
class KvCache {
 public:
  KvCache() = default;  // absent
  KvCache(const AttentionSizes& sizes, std::int64_t batch, DType dtype, std::string name);
  explicit operator bool() const { return bool(impl_); }
  // Adds what the pass's tokens have, k (b, t, g, dk), v (b, t, g, dv), and says what its queries look at.
  KeysValues put(const Tensor& k, const Tensor& v, const AttentionPass& pass) const;
  std::int64_t bytes() const;  // of its States

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// The keys and values of a layer's pass, those of its cache included if it has one (absent: a pass without).
KeysValues keys_values(const Tensor& k, const Tensor& v, const AttentionSizes& sizes, const AttentionPass& pass,
                       const KvCache& cache = {});
// q (b, t, h, dk) -> (b, t, h, dv): flash attention over them. Errors (ErrorKind::usage): the pass's rotary table has fewer
// places than it, or is that of other features.
Tensor attend(const Tensor& q, const KeysValues& keys, const AttentionPass& pass);

// Mean number of keys that a query of a text of `length` tokens sees: for counts of operations.
double mean_visible(const AttentionSizes& sizes, std::int64_t length);
// Elements that the cache of a layer holds after so many tokens of a text: rows (dk + dv) g.
double cached_elements(const AttentionSizes& sizes, std::int64_t length);

// ---- the module -------------------------------------------------------------------------------------------------------------

struct SelfAttentionOptions {
  std::int64_t width = 0;  // d
  AttentionSizes sizes = {};
  bool bias = false, out_bias = false;  // of the projections to queries, keys, values; of that of the result
  bool norms = false;                   // RMS norms of each head's query and key, before they are rotated
  double eps = 1e-6;                    // of the norms
  double key_scale = 1;                 // keys are multiplied with it, before they are rotated
  bool keys = true;                     // false: it has no projections to keys and values, and reads those of another layer
  Initialiser weight_init = {};         // default: that of Linear
  DType dtype = DType::f32;             // of the parameters
};

// x (b, t, d) -> (b, t, d). Names of Hugging Face: q_proj, k_proj, v_proj, o_proj, q_norm, k_norm.
class SelfAttention : public Layer<SelfAttention> {
 public:
  explicit SelfAttention(const SelfAttentionOptions& options);
  // `shared` receives the keys and values, or, of a layer without its own, has those that it reads.
  Tensor forward(const Tensor& x, const AttentionPass& pass, const KvCache& cache = {}, KeysValues* shared = nullptr);

 private:
  KeysValues own_keys(const Tensor& x, const AttentionPass& pass, const KvCache& cache);

  AttentionSizes sizes_;
  double key_scale_;
  Linear q_proj_;                          // d -> h dk
  std::optional<Linear> k_proj_, v_proj_;  // d -> g dk, d -> g dv
  Linear o_proj_;                          // h dv -> d
  std::optional<RMSNorm> q_norm_, k_norm_;
};

}  // namespace weft
