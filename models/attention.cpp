#include "models/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numbers>
#include <utility>

#include "autograd/pointwise.h"
#include "autograd/tape.h"
#include "jit/error.h"
#include "ops/ops.h"

namespace weft {

// ---- rotary positions -------------------------------------------------------------------------------------------------------

namespace {

// Beyond the context that the model was trained with.
bool stretched(const RopeOptions& o, std::int64_t length) {
  return o.scaling == RopeScaling::dynamic && o.trained > 0 && length > o.trained;
}

double slowed_by_llama3(const RopeOptions& o, double angle) {
  const double turns = double(o.trained) * angle / (2 * std::numbers::pi);  // in the context it was trained with
  if (turns > o.high) return angle;
  if (turns < o.low) return angle / o.factor;
  const double kept = (turns - o.low) / (o.high - o.low);
  return (1 - kept) * angle / o.factor + kept * angle;
}

}  // namespace

std::vector<double> rope_angles(const RopeOptions& o, std::int64_t key, std::int64_t length) {
  double base = o.base;
  if (stretched(o, length))
    base *= std::pow(o.factor * double(length) / double(o.trained) - (o.factor - 1), double(key) / double(key - 2));
  std::vector<double> angles;
  for (std::int64_t p = 0; p < key / 2; ++p) {
    const double angle = std::pow(base, -2 * double(p) / double(key));
    switch (o.scaling) {
      case RopeScaling::linear:
        angles.push_back(angle / o.factor);
        break;
      case RopeScaling::llama3:
        angles.push_back(slowed_by_llama3(o, angle));
        break;
      case RopeScaling::none:
      case RopeScaling::dynamic:
        angles.push_back(angle);
    }
  }
  return angles;
}

HoleOf<2, 4, 2> RopeTable::rotate() const {
  if (!cos) return {};
  return [&](Expr x, Expr y, Index, Index, Index t, Index p) {
    const Expr c = cos(t, p), s = sin(t, p);
    return Pair{x * c - y * s, y * c + x * s};
  };
}

struct Rope::Impl {
  Impl(RopeOptions o, std::int64_t k, DType d) : options(std::move(o)), key(k), dtype(d) {}

  RopeOptions options;
  std::int64_t key;
  DType dtype;
  struct Made {
    RopeTable table;
    std::int64_t places, length;  // rows; the length whose angles they have, 0: any
  };
  std::mutex mutex = {};       // threads may read one model at the same time
  std::deque<Made> made = {};  // the last used first

  RopeTable make(std::int64_t places, std::int64_t length) const {
    const std::vector<double> angles = rope_angles(options, key, length);
    const auto half = std::int64_t(angles.size());
    const auto filled = [&](const char* name, double (*f)(double)) {
      const State state({places, half}, dtype, name);
      initialise(
          state, [&](const Draws&, std::int64_t e) { return f(double(e / half) * angles[std::size_t(e % half)]); }, 0, name);
      return state;
    };
    return {filled("rope.cos", [](double a) { return std::cos(a); }), filled("rope.sin", [](double a) { return std::sin(a); }),
            options.pairing};
  }
};

Rope::Rope(RopeOptions options, std::int64_t key, DType dtype) {
  const auto positive = [](double x) { return x > 0 && std::isfinite(x); };
  if (key < 2 || key % 2 != 0 || !positive(options.base) || !positive(options.factor))
    fail(ErrorKind::usage, "Rope: an even number of features, and a base and a factor above 0, are needed",
         fmt::format("{} features, base {}, factor {}", key, options.base, options.factor));
  impl_ = std::make_shared<Impl>(std::move(options), key, dtype == DType::f64 ? DType::f64 : DType::f32);
}

RopeTable Rope::table(std::int64_t length) const {
  if (!impl_) return {};
  constexpr std::size_t kKept = 8;
  const std::lock_guard lock(impl_->mutex);
  std::deque<Impl::Made>& made = impl_->made;
  const std::int64_t angles_of = stretched(impl_->options, length) ? length : 0;
  const auto fits = [&](const Impl::Made& m) { return m.length == angles_of && m.places >= length; };
  const auto found = std::find_if(made.begin(), made.end(), fits);
  if (found == made.end()) {
    const std::int64_t places = capacity_for(length);
    made.push_front({impl_->make(places, length), places, angles_of});
    if (made.size() > kKept) {
      on_commit([last = made.back().table] {});  // the recording may read it
      made.pop_back();
    }
  } else {
    std::rotate(made.begin(), found, found + 1);
  }
  return made.front().table;
}

// ---- passes -----------------------------------------------------------------------------------------------------------------

std::int64_t capacity_for(std::int64_t n) {
  std::int64_t capacity = 256;
  while (capacity < n) capacity *= 2;
  return capacity;
}

namespace {

// Places (1 or b, count) of a pass that goes on: a text that is shorter than others begins later in the cache.
Tensor places_of(const AttentionPass& pass) {
  const Scalar first{double(pass.first)};
  const Tensor row = zeros({1, pass.count}, DType::i64);
  if (!pass.pads) return pointwise("places", {row}, [&](Expr zero) { return to_integer(first) + expr::index(1) + zero; });
  return pointwise("places", {row, reshape(pass.pads, {pass.pads.dim(0), 1})},
                   [&](Expr, Expr pad) { return to_integer(first) + expr::index(1) - pad; });
}

// Rows of a table (places, dk/2) for the tokens of a pass: (1 or b, count, 1, dk/2).
void set_angles(AttentionPass& pass) {
  const std::int64_t half = pass.rope.cos.shape()[1];
  if (pass.use == CacheUse::fill) {
    const auto begin = [&](const State& table) {
      return reshape(slice(table.read(), 0, 0, pass.count), {1, pass.count, 1, half});
    };
    pass.cos = begin(pass.rope.cos), pass.sin = begin(pass.rope.sin);
  } else {
    const Tensor places = places_of(pass);
    const auto at_places = [&](const State& table) {
      return reshape(embedding(table, places), {places.dim(0), pass.count, 1, half});
    };
    pass.cos = at_places(pass.rope.cos), pass.sin = at_places(pass.rope.sin);
  }
}

// x (b, t, n, dk), rotated as the pass's places say.
Tensor rotated(const Tensor& x, const AttentionPass& pass) {
  if (!pass.cos) return x;
  const std::int64_t half = x.dim(3) / 2, b = pass.cos.dim(0), t = x.dim(1);
  const bool halves = pass.rope.pairing == Pairing::halves;
  const int axis = halves ? 3 : 4;  // along which the two features of a pair lie
  const Tensor pairs = reshape(x, halves ? Shape{x.dim(0), t, x.dim(2), 2, half} : Shape{x.dim(0), t, x.dim(2), half, 2});
  const auto of_pairs = [&](const Tensor& table) {
    return reshape(table, halves ? Shape{b, t, 1, 1, half} : Shape{b, t, 1, half, 1});
  };
  const Tensor first = slice(pairs, axis, 0, 1), second = slice(pairs, axis, 1, 2);
  const Tensor c = of_pairs(pass.cos), s = of_pairs(pass.sin);
  const Tensor turned = concat({first * c - second * s, second * c + first * s}, axis);
  return convert(reshape(turned, x.shape()), x.dtype(), Site::current());
}

}  // namespace

AttentionPass attention_pass(const Rope& rope, std::int64_t count, std::int64_t meta, const ModelCache* cache, CacheUse use,
                             const Tensor& lengths) {
  AttentionPass pass{.use = use, .count = count};
  if (use == CacheUse::go_on) pass.first = meta + cache->tokens(), pass.pads = cache->pads();
  if (lengths) {
    pass.ends = pointwise("ends", {lengths}, [&](Expr n) { return n + Expr(meta); });
    pass.pads = pointwise("pads", {pass.ends}, [&](Expr end) { return Expr(count) - end; });
  }
  pass.rope = rope.table(pass.first + count);
  if (use != CacheUse::none && pass.rope) set_angles(pass);
  return pass;
}

// ---- caches -----------------------------------------------------------------------------------------------------------------

struct KvCache::Impl : std::enable_shared_from_this<Impl> {
  Impl(const AttentionSizes& s, std::int64_t b, DType d, std::string n) : sizes(s), batch(b), dtype(d), name(std::move(n)) {}

  AttentionSizes sizes;
  std::int64_t batch;
  DType dtype;
  std::string name;
  State k, v;  // (rows, b, g, dk), (rows, b, g, dv): the leading tokens and then `text` rows; absent when empty

  std::int64_t text() const { return k ? k.shape()[0] - sizes.meta : 0; }
  std::int64_t rows_for(std::int64_t tokens) const {
    const std::int64_t all = std::max(text(), capacity_for(tokens));
    return sizes.window > 0 ? std::min(all, sizes.window) : all;
  }
  bool ring() const { return sizes.window > 0 && text() == sizes.window; }

  void fill(const Tensor& keys, const Tensor& values, const AttentionPass& pass);
  KeysValues append(const Tensor& keys, const Tensor& values, const AttentionPass& pass);
  KeysValues rebuild(const Tensor& keys, const Tensor& values, const AttentionPass& pass);
  std::pair<State, State> states(std::int64_t rows);
};

namespace {

// Time first, as the rows of a State are: (b, t, g, n) <-> (t, b, g, n).
Tensor swapped(const Tensor& x) { return permute(x, {1, 0, 2, 3}); }

Expr modulo(Expr x, std::int64_t n) { return x - x / Expr(n) * Expr(n); }  // of x >= 0

// The token of the text (place - meta) that text row `row` of a ring has when `newest` is in; negative: none yet.
Expr token_in(Expr row, Expr newest, std::int64_t rows) { return newest - modulo(newest - row + Expr(rows), rows); }

// Rows of `table` (n, ...), (rows...) -> (rows..., the rest).
Tensor gather(const Tensor& table, const Tensor& rows) {
  Shape shape = rows.shape();
  std::int64_t width = 1;
  for (int axis = 1; axis < table.rank(); ++axis) shape.push_back(table.dim(axis)), width *= table.dim(axis);
  return reshape(embedding(reshape(table, {table.dim(0), width}), rows), shape);
}

}  // namespace

KvCache::KvCache(const AttentionSizes& sizes, std::int64_t batch, DType dtype, std::string name)
    : impl_(std::make_shared<Impl>(sizes, batch, dtype, std::move(name))) {}

std::int64_t KvCache::bytes() const {
  const auto of = [](const State& s) { return s ? s.shape().numel() * std::int64_t(size_of(s.dtype())) : 0; };
  return impl_ ? of(impl_->k) + of(impl_->v) : 0;
}

// Those of a cache that has room for so many rows of the text: its own, or larger ones, which it has once the pass has run.
std::pair<State, State> KvCache::Impl::states(std::int64_t rows) {
  if (k && rows == text()) return {k, v};
  const auto make = [&](std::int64_t size, const char* what) {
    return State({sizes.meta + rows, batch, sizes.groups, size}, dtype, name + what);
  };
  const std::pair<State, State> larger{make(sizes.key, ".keys"), make(sizes.value, ".values")};
  on_commit([self = shared_from_this(), larger] { self->k = larger.first, self->v = larger.second; });
  return larger;
}

// Row r of a State is what the pass has at place r, of a ring at the last one that is in row r.
void KvCache::Impl::fill(const Tensor& keys, const Tensor& values, const AttentionPass& pass) {
  const std::int64_t places = pass.count, meta = sizes.meta, tokens = places - meta, rows = rows_for(tokens);
  const auto place_of = [&](Expr row, Expr pad) {
    const Expr text = row - Expr(meta), token = tokens > rows ? token_in(text, Expr(tokens - 1), rows) : text;
    const Expr own = min(max(token - pad, Expr(0)), Expr(tokens - 1));  // rows that nothing is in yet have what there is
    return where(row < Expr(meta), row, own + Expr(meta));
  };
  const auto source = [&](Expr pad) { return expr::index(1) * Expr(places) + place_of(expr::index(0), pad); };
  const Tensor space = zeros({meta + rows, batch}, DType::i64);
  const Tensor pads = pass.pads ? reshape(pass.pads, {1, batch}) : zeros({1, batch}, DType::i64);
  const Tensor from = pointwise("cache_rows", {space, pads}, [&](Expr, Expr pad) { return source(pad); });
  const auto moved = [&](const Tensor& x) {  // (b, places, g, n) -> (rows, b, g, n)
    return gather(reshape(x, {batch * places, x.dim(2), x.dim(3)}), from);
  };
  const auto [to_k, to_v] = states(rows);
  assign(to_k, moved(keys));
  assign(to_v, moved(values));
}

// The new rows go where they belong; then the queries look at the States as they are. What is not seen is what has not been
// written yet, and what stands before a text that is shorter than others.
KeysValues KvCache::Impl::append(const Tensor& keys, const Tensor& values, const AttentionPass& pass) {
  const std::int64_t meta = sizes.meta, rows = text(), token = pass.first - meta;
  const Scalar row{double(meta + token % rows)}, first{double(token)};
  assign_at(k, row, swapped(keys));
  assign_at(v, row, swapped(values));
  const auto visible = [&](Index b, Index, Index i, Index j) {
    const Expr query = to_integer(first) + i;
    const Expr stored = ring() ? token_in(j - Expr(meta), query, rows) : j - Expr(meta);
    Expr seen = stored <= query && stored >= (pass.pads ? pass.pads(b) : Expr(0));
    return meta > 0 ? seen || j < Expr(meta) : seen;
  };
  return {.k = swapped(k.read()), .v = swapped(v.read()), .cached = true, .mask = visible};
}

// Where the States must grow, or a ring would lose what the first of several queries see: these look at the old rows and the
// new ones behind them, of which the rows that are to stay become the States' or larger ones'.
KeysValues KvCache::Impl::rebuild(const Tensor& keys, const Tensor& values, const AttentionPass& pass) {
  const std::int64_t meta = sizes.meta, old = text(), count = pass.count, token = pass.first - meta,
                     rows = rows_for(token + count);
  const Scalar first{double(token)};
  const Tensor all_k = concat({k, swapped(keys)}, 0), all_v = concat({v, swapped(values)}, 0);
  const auto place_of = [&](Expr row) {
    const Expr start = to_integer(first), stored = max(token_in(row - Expr(meta), start + Expr(count - 1), rows), Expr(0));
    const Expr text = where(stored < start, modulo(stored, old), stored - start + Expr(old));
    return where(row < Expr(meta), row, text + Expr(meta));
  };
  const Tensor from =
      pointwise("cache_rows", {zeros({meta + rows}, DType::i64)}, [&](Expr) { return place_of(expr::index(0)); });
  const auto [to_k, to_v] = states(rows);
  assign(to_k, gather(all_k, from));
  assign(to_v, gather(all_v, from));

  const auto visible = [&](Index b, Index, Index i, Index j) {
    const Expr start = to_integer(first), query = start + i, row = j - Expr(meta);
    const Expr stored = where(row < Expr(old), token_in(row, start - Expr(1), old), start + row - Expr(old));
    Expr seen = stored <= query && stored >= (pass.pads ? pass.pads(b) : Expr(0));
    if (sizes.window > 0) seen = seen && query - stored < Expr(sizes.window);
    return meta > 0 ? seen || j < Expr(meta) : seen;
  };
  return {.k = swapped(all_k), .v = swapped(all_v), .cached = true, .mask = visible};
}

KeysValues KvCache::put(const Tensor& k, const Tensor& v, const AttentionPass& pass) const {
  Impl& cache = *impl_;
  const AttentionSizes& s = cache.sizes;
  if (k.dim(2) != s.groups || k.dim(3) != s.key || v.dim(3) != s.value)
    fail(ErrorKind::usage, "model: the cache belongs to another model",
         fmt::format("keys {}, values {}; the cache has {} groups of {} and {} features", to_string(k.shape()),
                     to_string(v.shape()), s.groups, s.key, s.value),
         "make one with make_cache of this model");
  const Tensor keys = convert(rotated(k, pass), cache.dtype, Site::current());
  const Tensor values = convert(v, cache.dtype, Site::current());
  if (pass.use == CacheUse::fill) {
    cache.fill(keys, values, pass);
    return keys_values(k, v, cache.sizes, pass);
  }
  if (!cache.k)
    fail(ErrorKind::usage, "model: the cache is empty", cache.name, "begin a text with prefill, then go on with step");
  const std::int64_t after = pass.first + pass.count - cache.sizes.meta;
  const bool fits = after <= cache.text() || (cache.ring() && pass.count == 1);
  return fits ? cache.append(keys, values, pass) : cache.rebuild(keys, values, pass);
}

KeysValues keys_values(const Tensor& k, const Tensor& v, const AttentionSizes& sizes, const AttentionPass& pass,
                       const KvCache& cache) {
  if (cache) return cache.put(k, v, pass);
  KeysValues all{.k = k, .v = v};
  const std::int64_t window = sizes.window, meta = sizes.meta;
  if (window > 0 && window < pass.count)
    all.mask = [&](Index, Index, Index i, Index j) {
      const Expr near = i - j < Expr(window);
      return meta > 0 ? near || j < Expr(meta) : near;
    };
  return all;
}

namespace {

// A table of other sizes would turn by other angles than those of the place.
void check_table(const Tensor& q, const AttentionPass& pass) {
  if (!pass.rope) return;
  const Shape table = pass.rope.cos.shape();
  const std::int64_t places = std::max(pass.first + pass.count, pass.first + q.dim(1));
  if (table[0] < places || 2 * table[1] != q.dim(3))
    fail(ErrorKind::usage, "attention: the table of rotary positions does not fit",
         fmt::format("it has {} places of {} features; the pass has {} of {}", table[0], 2 * table[1], places, q.dim(3)),
         "Rope(options, features of a head, type).table(places) makes one that does");
}

}  // namespace

Tensor attend(const Tensor& q, const KeysValues& keys, const AttentionPass& pass) {
  check_table(q, pass);
  AttentionOptions options{.causal = !keys.cached, .mask = keys.mask, .pairing = pass.rope.pairing};
  if (!keys.cached) options.rotate = pass.rope.rotate(), options.segments = pass.segments.ids;
  const Tensor queries = keys.cached ? rotated(q, pass) : q;
  if (pass.map) *pass.map = attention_map(queries, keys.k, options);
  return attention(queries, keys.k, keys.v, options);
}

double mean_visible(const AttentionSizes& sizes, std::int64_t length) {
  const double t = double(length), w = double(sizes.window > 0 ? std::min(sizes.window, length) : length);
  return double(sizes.meta) + (w * (w + 1) / 2 + (t - w) * w) / t;
}

double cached_elements(const AttentionSizes& sizes, std::int64_t length) {
  const std::int64_t text = sizes.window > 0 ? std::min(sizes.window, length) : length;
  return double(sizes.meta + text) * double((sizes.key + sizes.value) * sizes.groups);
}

// ---- the module -------------------------------------------------------------------------------------------------------------

SelfAttention::SelfAttention(const SelfAttentionOptions& o)
    : sizes_(o.sizes),
      key_scale_(o.key_scale),
      q_proj_(o.width, o.sizes.heads * o.sizes.key,
              {.bias = o.bias, .weight_init = o.weight_init, .bias_init = init::constant(0), .dtype = o.dtype}),
      o_proj_(o.sizes.heads * o.sizes.value, o.width,
              {.bias = o.out_bias, .weight_init = o.weight_init, .bias_init = init::constant(0), .dtype = o.dtype}) {
  const LinearOptions linear{.bias = o.bias, .weight_init = o.weight_init, .bias_init = init::constant(0), .dtype = o.dtype};
  add("q_proj", q_proj_);
  if (o.keys) {
    k_proj_.emplace(o.width, sizes_.groups * sizes_.key, linear);
    v_proj_.emplace(o.width, sizes_.groups * sizes_.value, linear);
    add("k_proj", *k_proj_);
    add("v_proj", *v_proj_);
  }
  add("o_proj", o_proj_);
  if (!o.norms) return;
  const NormOptions norm{.eps = o.eps, .dtype = o.dtype};
  q_norm_.emplace(sizes_.key, norm);
  add("q_norm", *q_norm_);
  if (!o.keys) return;
  k_norm_.emplace(sizes_.key, norm);
  add("k_norm", *k_norm_);
}

KeysValues SelfAttention::own_keys(const Tensor& x, const AttentionPass& pass, const KvCache& cache) {
  const std::int64_t b = x.dim(0), t = x.dim(1);
  const Tensor projected = reshape((*k_proj_)(x), {b, t, sizes_.groups, sizes_.key});
  const Tensor k = k_norm_ ? (*k_norm_)(projected) : projected;
  const Tensor v = reshape((*v_proj_)(x), {b, t, sizes_.groups, sizes_.value});
  return keys_values(key_scale_ == 1 ? k : k * key_scale_, v, sizes_, pass, cache);
}

Tensor SelfAttention::forward(const Tensor& x, const AttentionPass& pass, const KvCache& cache, KeysValues* shared) {
  const std::int64_t b = x.dim(0), t = x.dim(1);
  const Tensor heads = reshape(q_proj_(x), {b, t, sizes_.heads, sizes_.key});
  const Tensor q = q_norm_ ? (*q_norm_)(heads) : heads;
  if (!k_proj_) return o_proj_(reshape(attend(q, *shared, pass), {b, t, sizes_.heads * sizes_.value}));
  const KeysValues keys = own_keys(x, pass, cache);
  if (shared) *shared = keys;
  return o_proj_(reshape(attend(q, keys, pass), {b, t, sizes_.heads * sizes_.value}));
}

}  // namespace weft
