// Attention on the CPU: tiles of queries by keys, whose products are the BLAS's. Forward walks the keys of a block of queries
// and keeps a running maximum and sum; backward computes the probabilities of each tile again. Nothing of size tq tk exists.
// What the mask hides in every tile is skipped, and only tiles where it does not hold everywhere ask for each place. Each part
// of the work is one head, in forward of one block of queries, whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "jit/gemm.h"
#include "jit/interval.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "jit/vmath.h"
#include "ops/attention.h"
#include "ops/check.h"

namespace weft {
namespace {

using namespace attention_layout;

constexpr std::int64_t kTileRows = 64, kTileColumns = 128;  // queries and keys
static_assert(kTileColumns <= kBlock, "a hole is evaluated for a row of a tile at once");

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

// ---- what the mask shows ----------------------------------------------------------------------------------------------------

enum class Seen : std::uint8_t { none, some, all };

// For each tile, for all of batch and heads: whether the mask hides all of it, some, or nothing.
class TileMap {
 public:
  TileMap(const std::optional<Fused>& mask, const Shape& scores)
      : scores_(scores),
        rows_(ceil_div(scores[2], kTileRows)),
        columns_(ceil_div(scores[3], kTileColumns)),
        seen_(std::size_t(rows_ * columns_), Seen::all) {
    if (mask && scores.numel() > 0) find(mask->roots[0], 0, rows_, 0, columns_);
  }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  Seen at(std::int64_t row, std::int64_t column) const { return seen_[std::size_t(row * columns_ + column)]; }

 private:
  // A box of tiles that is undecided is cut in two, so that the work follows the borders of the mask.
  void find(Expr mask, std::int64_t row, std::int64_t row_end, std::int64_t column, std::int64_t column_end) {
    const auto axis = [](std::int64_t begin, std::int64_t end) { return Interval{double(begin), double(end - 1)}; };
    const Interval space[] = {axis(0, scores_[0]), axis(0, scores_[1]),
                              axis(row * kTileRows, std::min(row_end * kTileRows, scores_[2])),
                              axis(column * kTileColumns, std::min(column_end * kTileColumns, scores_[3]))};
    const Interval visible = interval_of(mask, space);
    const std::int64_t rows = row_end - row, columns = column_end - column;
    if (visible.always_true() || visible.always_false() || rows * columns == 1) {
      const Seen seen = visible.always_true() ? Seen::all : visible.always_false() ? Seen::none : Seen::some;
      for (std::int64_t r = row; r < row_end; ++r) std::fill_n(seen_.begin() + r * columns_ + column, columns, seen);
    } else if (rows >= columns) {
      find(mask, row, row + rows / 2, column, column_end);
      find(mask, row + rows / 2, row_end, column, column_end);
    } else {
      find(mask, row, row_end, column, column + columns / 2);
      find(mask, row, row_end, column + columns / 2, column_end);
    }
  }

  Shape scores_;
  std::int64_t rows_, columns_;
  std::vector<Seen> seen_;
};

// ---- operands ---------------------------------------------------------------------------------------------------------------

// (b, t, heads, d) as one matrix (t, d) for each head.
struct Heads {
  Operand operand;
  std::int64_t batch = 0, time = 0, head = 0;  // strides

  Heads() = default;
  explicit Heads(const Operand& o) : operand(o), batch(o.strides[0]), time(o.strides[1]), head(o.strides[2]) {}
  // Dense, (b, heads, t, d).
  static Heads by_head(const Operand& o) {
    Heads h;
    h.operand = o, h.batch = o.strides[0], h.time = o.strides[2], h.head = o.strides[1];
    return h;
  }
  std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t) const { return b * batch + h * head + t * time; }
  template <class T>
  T* row(const Launch& launch, std::int64_t b, std::int64_t h, std::int64_t t) const {
    return launch.pointer<T>(operand) + offset(b, h, t);
  }
  // From time t on, of what is stored as T.
  template <class T>
  GemmInput matrix(const Launch& launch, std::int64_t b, std::int64_t h, std::int64_t t) const {
    return {reinterpret_cast<const std::byte*>(row<T>(launch, b, h, t)), dtype_of<T>, time, 1};
  }
};

// Input i with rows that are contiguous and do not overlap.
Heads heads_of(Lowering& l, int i) {
  const Operand o = l.view(i);
  const bool in_place = (o.dims[3] == 1 || o.strides[3] == 1) && o.strides[1] >= o.dims[3];
  return Heads(in_place ? o : l.dense(i));
}

// Rotates rows of d features, each a pair of halves or of neighbours.
template <class T>
class Rotation {
 public:
  Rotation(const Launch& launch, const Fused& hole, Pairing pairing)
      : runner_(launch, hole), pairing_(pairing), x_(std::size_t(hole.dims[3])), y_(x_.size()) {}
  // Row `row` of the space (b, heads, t, d/2).
  void turn(std::int64_t row, T* features) {
    const auto pairs = std::int64_t(x_.size());
    const bool halves = pairing_ == Pairing::halves;
    T *x = halves ? features : x_.data(), *y = halves ? features + pairs : y_.data();
    for (std::int64_t p = 0; p < pairs && !halves; ++p) x[p] = features[2 * p], y[p] = features[2 * p + 1];
    for (std::int64_t p = 0; p < pairs; p += kBlock) {
      const void* values[] = {x + p, y + p};
      void* results[] = {x + p, y + p};
      runner_.run(row * pairs + p, int(std::min<std::int64_t>(kBlock, pairs - p)), values, results);
    }
    for (std::int64_t p = 0; p < pairs && !halves; ++p) features[2 * p] = x[p], features[2 * p + 1] = y[p];
  }

 private:
  Runner<T> runner_;
  Pairing pairing_;
  std::vector<T> x_, y_;
};

constexpr std::int64_t kRowsOfPart = 64;  // where rows are independent of each other

// f(row, rotation or null) for each row of (b, heads, t), some to a part.
template <class T, class F>
void each_row(const Launch& launch, std::int64_t rows, const std::optional<Fused>& rotate, Pairing pairing, F f) {
  parallel(ceil_div(rows, kRowsOfPart), [&](std::int64_t part) {
    std::optional<Rotation<T>> rotation;
    if (rotate) rotation.emplace(launch, *rotate, pairing);
    for (std::int64_t r = part * kRowsOfPart; r < std::min(rows, (part + 1) * kRowsOfPart); ++r)
      f(r, rotation ? &*rotation : nullptr);
  });
}

// Input i as T, rotated by hole h if that is filled (-1: never): where it lies, or, if that is something else, made before.
template <class T>
Heads prepared(Lowering& l, int i, int h) {
  const Heads from = heads_of(l, i);
  const Shape s = l.shape(i);
  const bool rotated = h >= 0 && l.filled(h);
  if (!rotated && from.operand.dtype == dtype_of<T>) return from;
  const std::int64_t dims[] = {s[0], s[2], s[1], s[3]};
  const Heads to = Heads::by_head(l.scratch(dtype_of<T>, dims));
  std::optional<Fused> rotate;
  if (rotated) rotate = l.hole(h, Shape{s[0], s[2], s[1], s[3] / 2});
  const auto pairing = Pairing(l.integer(kPairing));
  l.emit(rotated ? "attention__rotate" : "attention__convert", [=](const Launch& launch) {
    const std::byte* data = launch.view(from.operand).data;
    each_row<T>(launch, s[0] * s[1] * s[2], rotate, pairing, [&](std::int64_t row, Rotation<T>* rotation) {
      const std::int64_t t = row % s[1], head = row / s[1] % s[2], b = row / s[1] / s[2];
      T* features = to.row<T>(launch, b, head, t);
      const T* given = load_row(data, from.operand.dtype, from.offset(b, head, t), s[3], features);
      if (given != features) std::copy_n(given, s[3], features);
      if (rotation) rotation->turn(row, features);
    });
  });
  return to;
}

// ---- what forward and backward have in common -------------------------------------------------------------------------------

struct AttentionSizes {
  std::int64_t b, h, g, tq, tk, dk, dv;
  explicit AttentionSizes(const Lowering& l) {
    const Shape q = l.shape(kQ), k = l.shape(kK), v = l.shape(kV);
    b = q[0], tq = q[1], h = q[2], dk = q[3], tk = k[1], g = k[2], dv = v[3];
  }
  Shape scores() const { return {b, h, tq, tk}; }
  std::int64_t group_of(std::int64_t head) const { return head / (h / g); }
};

struct AttentionTask {
  AttentionSizes sizes;
  Heads q, k, v;
  int scale;
  std::optional<Fused> mask, score, weight;
  std::shared_ptr<const TileMap> tiles;
};

std::optional<Fused> filled_hole(Lowering& l, int h, const Shape& space) {
  return l.filled(h) ? std::optional(l.hole(h, space)) : std::nullopt;
}

template <class T>
AttentionTask attention_task(Lowering& l, int mask, int score, int weight, int rotate) {
  const AttentionSizes sizes(l);
  AttentionTask task{.sizes = sizes,
                     .q = prepared<T>(l, kQ, rotate),
                     .k = prepared<T>(l, kK, rotate),
                     .v = prepared<T>(l, kV, -1),
                     .scale = l.constant(kScale),
                     .mask = filled_hole(l, mask, sizes.scores()),
                     .score = filled_hole(l, score, sizes.scores()),
                     .weight = filled_hole(l, weight, sizes.scores()),
                     .tiles = {}};
  task.tiles = std::make_shared<TileMap>(task.mask, sizes.scores());
  return task;
}

// A tile of the scores of one head, and what a thread needs to evaluate holes in it.
template <class T>
class Tile {
 public:
  Tile(const AttentionTask& task, const Launch& launch, std::int64_t b, std::int64_t head)
      : task_(task), launch_(launch), b_(b), head_(head), scale_(launch.constants[task.scale]) {
    if (task.mask) mask_.emplace(launch, *task.mask);
    if (task.score) score_.emplace(launch, *task.score);
    if (task.weight) weight_.emplace(launch, *task.weight);
  }

  // Moves to a tile; false if nothing of it is seen.
  bool move(std::int64_t tile_row, std::int64_t tile_column) {
    const AttentionSizes& s = task_.sizes;
    const Seen seen = task_.tiles->at(tile_row, tile_column);
    if (seen == Seen::none) return false;
    i = tile_row * kTileRows, j = tile_column * kTileColumns;
    rows = std::min(kTileRows, s.tq - i), columns = std::min(kTileColumns, s.tk - j);
    partial_ = seen == Seen::some;
    return !partial_ || look();
  }

  // Element of (b, h, tq, tk) at which a row of the tile begins.
  std::int64_t first(std::int64_t row) const {
    return ((b_ * task_.sizes.h + head_) * task_.sizes.tq + i + row) * task_.sizes.tk + j;
  }
  // Of the places of a row; null if all are seen.
  const std::uint8_t* visible(std::int64_t row) const { return partial_ ? visible_ + row * kTileColumns : nullptr; }

  // The products of queries and keys, scaled: (rows, kTileColumns).
  void products(T* s) const {
    const GemmInput q = task_.q.matrix<T>(launch_, b_, head_, i);
    const GemmInput k = task_.k.matrix<T>(launch_, b_, task_.sizes.group_of(head_), j);
    gemm<T>(rows, columns, task_.sizes.dk, q, k.transposed(), output(s), {.alpha = scale_});
  }
  // A row of them becomes scores, -inf where nothing is seen.
  void scores(std::int64_t row, T* s) {
    if (score_) run_hole(*score_, first(row), columns, s);
    hide(row, s, kNothing<T>);
  }
  // A row of values is multiplied with the weights; hidden places become 0.
  void weigh(std::int64_t row, T* p) {
    if (!weight_) return;
    const T* w = weight_->read(first(row), int(columns));
    for (std::int64_t c = 0; c < columns; ++c) p[c] *= w[c];
    hide(row, p, T(0));
  }
  // Hidden places of a row become x.
  void hide(std::int64_t row, T* values, T x) const {
    if (!partial_) return;
    const std::uint8_t* seen = visible(row);
    for (std::int64_t c = 0; c < columns; ++c) values[c] = seen[c] ? values[c] : x;
  }
  double scale() const { return scale_; }
  static GemmOutput output(T* tile) { return {reinterpret_cast<std::byte*>(tile), dtype_of<T>, kTileColumns}; }
  static GemmInput input(const T* tile) { return {reinterpret_cast<const std::byte*>(tile), dtype_of<T>, kTileColumns, 1}; }

  std::int64_t i = 0, j = 0, rows = 0, columns = 0;

 private:
  // Evaluates the mask at each place; false if nothing is seen. Where everything is, the tile is like any other.
  bool look() {
    std::int64_t seen = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      std::uint8_t* to = visible_ + row * kTileColumns;
      void* result = to;
      mask_->run(first(row), int(columns), {}, std::span(&result, 1));
      for (std::int64_t c = 0; c < columns; ++c) seen += to[c];
    }
    partial_ = seen < rows * columns;
    return seen > 0;
  }

  const AttentionTask& task_;
  const Launch& launch_;
  std::int64_t b_, head_;
  double scale_;
  std::optional<Runner<T>> mask_, score_, weight_;
  bool partial_ = false;
  std::uint8_t visible_[kTileRows * kTileColumns];
};

// ---- forward ----------------------------------------------------------------------------------------------------------------

// What a block of queries carries from one block of keys to the next.
template <class T>
struct Running {
  std::vector<T> high;        // the largest score yet
  std::vector<double> total;  // of exp(score - high)
  std::vector<T> out;         // (rows, dv): the sum of exp(score - high) weight v
  Running(std::int64_t rows, std::int64_t dv)
      : high(std::size_t(rows), kNothing<T>), total(std::size_t(rows)), out(std::size_t(rows * dv)) {}
};

// Of `first` and n values, in lanes, so that the loop vectorises. What a NaN does to it does not matter: the row's sum is one.
template <class T>
T largest(T first, std::int64_t n, const T* x) {
  constexpr int kBeside = 16;
  T lane[kBeside];
  std::fill_n(lane, kBeside, first);
  std::int64_t i = 0;
  for (; i + kBeside <= n; i += kBeside)
    for (int l = 0; l < kBeside; ++l) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
  for (; i < n; ++i) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  return *std::max_element(lane, lane + kBeside);
}

// exp(score - high) of a row in place of the scores, and what that changes in what was carried.
template <class T>
void exponentials(Running<T>& r, std::int64_t row, std::int64_t columns, std::int64_t dv, T* s) {
  const T high = largest(r.high[std::size_t(row)], columns, s);
  const T shift = high == kNothing<T> ? T(0) : high;  // nothing seen yet: exp gives 0, not NaN
  for (std::int64_t c = 0; c < columns; ++c) s[c] = vmath::exp(s[c] - shift);
  const T factor = vmath::exp(r.high[std::size_t(row)] - shift);
  r.high[std::size_t(row)] = high;
  double& total = r.total[std::size_t(row)];
  total = total * double(factor) + long_sum<T>(columns, [&](std::int64_t c) { return s[c]; });
  T* out = r.out.data() + row * dv;
  for (std::int64_t c = 0; c < dv; ++c) out[c] *= factor;
}

template <class T>
void forward_block(const AttentionTask& task, const Launch& launch, const Rows& o, const Rows& lse, std::int64_t index) {
  const AttentionSizes& z = task.sizes;
  const std::int64_t blocks = task.tiles->rows(), block = index % blocks, head = index / blocks % z.h, b = index / blocks / z.h;
  const std::int64_t begin = block * kTileRows, rows = std::min(kTileRows, z.tq - begin);
  Tile<T> tile(task, launch, b, head);
  Running<T> running(rows, z.dv);
  std::vector<T> s(std::size_t(kTileRows * kTileColumns));
  const GemmOutput out{reinterpret_cast<std::byte*>(running.out.data()), dtype_of<T>, z.dv};
  for (std::int64_t column = 0; column < task.tiles->columns(); ++column) {
    if (!tile.move(block, column)) continue;
    tile.products(s.data());
    for (std::int64_t row = 0; row < rows; ++row) {
      T* line = s.data() + row * kTileColumns;
      tile.scores(row, line);
      exponentials(running, row, tile.columns, z.dv, line);
      tile.weigh(row, line);
    }
    gemm<T>(rows, z.dv, tile.columns, Tile<T>::input(s.data()), task.v.matrix<T>(launch, b, z.group_of(head), tile.j), out,
            {.beta = 1});
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const double total = running.total[std::size_t(row)];
    T* line = running.out.data() + row * z.dv;
    for (std::int64_t c = 0; c < z.dv; ++c) line[c] = total == 0 ? T(0) : T(line[c] / total);
    o.write(((b * z.tq) + begin + row) * z.h + head, 0, z.dv, line);
    const T sum = total == 0 ? kNothing<T> : T(double(running.high[std::size_t(row)]) + std::log(total));
    lse.write(b * z.h + head, begin + row, 1, &sum);
  }
}

template <class T>
void lower_forward(Lowering& l) {
  const AttentionTask task = attention_task<T>(l, kMask, kScore, kWeight, kRotate);
  const Operand o = l.output(kO), lse = l.output(kLse);
  l.emit("attention", [=](const Launch& launch) {
    const Rows to(launch, o), sums(launch, lse);
    parallel(task.sizes.b * task.sizes.h * task.tiles->rows(),
             [&](std::int64_t index) { forward_block<T>(task, launch, to, sums, index); });
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

// The sums of one root over the places of a head.
class RootSums {
 public:
  // Outputs by SumForm, absent where nobody reads one.
  RootSums(std::span<const Operand> outputs, const AttentionSizes& z) {
    const std::int64_t sizes[kSumForms] = {1, z.tq, z.tk, std::max<std::int64_t>(z.tq + z.tk - 1, 0)};
    for (std::size_t f = 0; f < kSumForms; ++f)
      if (outputs[f]) sums_[f].resize(std::size_t(sizes[f]));
    last_column_ = z.tk - 1;
  }
  bool wanted() const {
    return std::any_of(std::begin(sums_), std::end(sums_), [](const auto& sum) { return !sum.empty(); });
  }
  // A row of the root at the places (i, j + c), hidden ones 0.
  template <class T>
  void add(std::int64_t i, std::int64_t j, std::int64_t columns, const T* root) {
    if (auto& one = of(SumForm::none), &row = of(SumForm::row); !one.empty() || !row.empty()) {
      const double sum = long_sum<T>(columns, [&](std::int64_t c) { return root[c]; });
      if (!one.empty()) one[0] += sum;
      if (!row.empty()) row[std::size_t(i)] += sum;
    }
    if (auto& column = of(SumForm::column); !column.empty())
      for (std::int64_t c = 0; c < columns; ++c) column[std::size_t(j + c)] += double(root[c]);
    if (auto& difference = of(SumForm::difference); !difference.empty())
      for (std::int64_t c = 0; c < columns; ++c) difference[std::size_t(i - j - c + last_column_)] += double(root[c]);
  }
  // Of head number `head` of all.
  void store(const Launch& launch, std::span<const Operand> outputs, std::int64_t head) const {
    for (std::size_t f = 0; f < kSumForms; ++f) {
      const Rows to(launch, outputs[f]);
      const auto n = std::int64_t(sums_[f].size());
      if (SumForm(f) != SumForm::row) {
        to.write(head, 0, n, sums_[f].data());
        continue;
      }
      for (std::int64_t i = 0; i < n; ++i) to.write(head * n + i, 0, 1, sums_[f].data() + i);
    }
  }

 private:
  std::vector<double>& of(SumForm form) { return sums_[std::size_t(form)]; }
  std::vector<double> sums_[kSumForms];
  std::int64_t last_column_;
};

using FormOutputs = std::array<Operand, kSumForms>;

struct AttentionBackwardTask : AttentionTask {
  Heads o{}, gradient{};  // as T
  Operand lse{};
  std::optional<Fused> score_grad{};
  std::vector<FormOutputs> roots{};
  Heads dq{}, dk{}, dv{};  // (b, h, t, d) as T, of each head alone, not yet rotated back
};

// The buffers of one head.
template <class T>
struct HeadScratch {
  std::vector<T> lse, delta;          // (tq); a row that sees nothing has the lse +inf
  std::vector<T> raw, p, g;           // (kTileRows, kTileColumns)
  std::vector<std::vector<T>> roots;  // rows of score_grad's
  std::vector<RootSums> sums;
  HeadScratch(const AttentionBackwardTask& task)
      : lse(std::size_t(task.sizes.tq)),
        delta(lse.size()),
        raw(std::size_t(kTileRows * kTileColumns)),
        p(raw.size()),
        g(raw.size()),
        roots(task.roots.size(), std::vector<T>(kTileColumns)) {
    for (const FormOutputs& outputs : task.roots) sums.emplace_back(outputs, task.sizes);
  }
};

template <class T>
void load_rows_of_head(const AttentionBackwardTask& task, const Launch& launch, std::int64_t b, std::int64_t head,
                       HeadScratch<T>& x) {
  const AttentionSizes& z = task.sizes;
  const Rows lse(launch, task.lse);
  const T* sums = lse.read(b * z.h + head, 0, z.tq, x.lse.data());
  for (std::int64_t i = 0; i < z.tq; ++i) {
    x.lse[std::size_t(i)] = sums[i] == kNothing<T> ? -kNothing<T> : sums[i];
    const T *o = task.o.row<T>(launch, b, head, i), *g = task.gradient.row<T>(launch, b, head, i);
    x.delta[std::size_t(i)] = T(long_sum<T>(z.dv, [&](std::int64_t c) { return o[c] * g[c]; }));
  }
}

// A row of the tile: from the scaled products in `raw` and do . v in `g` to weight P in `p` and ds in `g`.
template <class T>
void backward_row(Tile<T>& tile, std::int64_t row, Runner<T>* score_grad, HeadScratch<T>& x) {
  const std::int64_t n = tile.columns, i = tile.i + row;
  T *raw = x.raw.data() + row * kTileColumns, *p = x.p.data() + row * kTileColumns, *g = x.g.data() + row * kTileColumns;
  std::copy_n(raw, n, p);
  tile.scores(row, p);
  const T lse = x.lse[std::size_t(i)], delta = x.delta[std::size_t(i)];
  for (std::int64_t c = 0; c < n; ++c) p[c] = vmath::exp(p[c] - lse);
  tile.weigh(row, g);
  for (std::int64_t c = 0; c < n; ++c) g[c] = p[c] * (g[c] - delta);
  tile.hide(row, g, T(0));
  tile.weigh(row, p);
  if (!score_grad) return;
  const void* values[] = {raw, g};
  void* results[kMostRoots];
  for (std::size_t r = 0; r < x.roots.size(); ++r) results[r] = r == 0 ? g : x.roots[r].data();
  score_grad->run(tile.first(row), int(n), values, std::span(results, x.roots.size()));
  for (std::size_t r = 0; r < x.roots.size(); ++r) {
    T* root = static_cast<T*>(results[r]);
    tile.hide(row, root, T(0));
    if (x.sums[r].wanted()) x.sums[r].add(i, tile.j, n, root);
  }
}

// The gradients of one head.
template <class T>
void backward_head(const AttentionBackwardTask& task, const Launch& launch, std::int64_t index) {
  const AttentionSizes& z = task.sizes;
  const std::int64_t b = index / z.h, head = index % z.h, group = z.group_of(head);
  Tile<T> tile(task, launch, b, head);
  HeadScratch<T> x(task);
  load_rows_of_head(task, launch, b, head, x);
  std::optional<Runner<T>> score_grad;
  if (task.score_grad) score_grad.emplace(launch, *task.score_grad);
  const auto output = [&](const Heads& to, std::int64_t t) {
    return GemmOutput{reinterpret_cast<std::byte*>(to.row<T>(launch, b, head, t)), dtype_of<T>, to.time};
  };
  std::fill_n(task.dq.row<T>(launch, b, head, 0), z.tq * z.dk, T(0));
  std::fill_n(task.dk.row<T>(launch, b, head, 0), z.tk * z.dk, T(0));
  std::fill_n(task.dv.row<T>(launch, b, head, 0), z.tk * z.dv, T(0));
  for (std::int64_t column = 0; column < task.tiles->columns(); ++column)
    for (std::int64_t row = 0; row < task.tiles->rows(); ++row) {
      if (!tile.move(row, column)) continue;
      const GemmInput gradient = task.gradient.matrix<T>(launch, b, head, tile.i);
      tile.products(x.raw.data());
      gemm<T>(tile.rows, tile.columns, z.dv, gradient, task.v.matrix<T>(launch, b, group, tile.j).transposed(),
              Tile<T>::output(x.g.data()));
      for (std::int64_t r = 0; r < tile.rows; ++r) backward_row(tile, r, score_grad ? &*score_grad : nullptr, x);
      const GemmInput p = Tile<T>::input(x.p.data()), ds = Tile<T>::input(x.g.data());
      const GemmOptions scaled{.alpha = tile.scale(), .beta = 1};
      gemm<T>(tile.columns, z.dv, tile.rows, p.transposed(), gradient, output(task.dv, tile.j), {.beta = 1});
      gemm<T>(tile.rows, z.dk, tile.columns, ds, task.k.matrix<T>(launch, b, group, tile.j), output(task.dq, tile.i), scaled);
      gemm<T>(tile.columns, z.dk, tile.rows, ds.transposed(), task.q.matrix<T>(launch, b, head, tile.i),
              output(task.dk, tile.j), scaled);
    }
  for (std::size_t r = 0; r < task.roots.size(); ++r) x.sums[r].store(launch, task.roots[r], index);
}

// Output k, (b, t, heads, d), from the gradients of each head, of which some are one group: added in order, and rotated back.
template <class T>
void emit_gradient(Lowering& l, int k, const Heads& from, std::int64_t heads, int rotate) {
  const Operand out = l.output(k);
  if (!out) return;
  const std::int64_t t = out.dims[1], outputs = out.dims[2], d = out.dims[3], members = heads / outputs;
  std::optional<Fused> hole;
  if (rotate >= 0) hole = filled_hole(l, rotate, Shape{out.dims[0], outputs, t, d / 2});
  const std::int64_t rows = out.dims[0] * outputs * t;
  const auto pairing = Pairing(l.integer(kPairing));
  l.emit("attention_backward__store", [=](const Launch& launch) {
    const Rows to(launch, out);
    each_row<T>(launch, rows, hole, pairing, [&](std::int64_t row, Rotation<T>* rotation) {
      const std::int64_t b = row / t / outputs, head = row / t % outputs, time = row % t;
      std::vector<T> sum(from.row<T>(launch, b, head * members, time), from.row<T>(launch, b, head * members, time) + d);
      for (std::int64_t m = 1; m < members; ++m) {
        const T* more = from.row<T>(launch, b, head * members + m, time);
        for (std::int64_t c = 0; c < d; ++c) sum[std::size_t(c)] += more[c];
      }
      if (rotation) rotation->turn(row, sum.data());
      to.write((b * t + time) * outputs + head, 0, d, sum.data());
    });
  });
}

template <class T>
void lower_backward(Lowering& l) {
  AttentionBackwardTask task{attention_task<T>(l, kBackwardMask, kBackwardScore, kBackwardWeight, kBackwardRotate)};
  const AttentionSizes& z = task.sizes;
  task.o = prepared<T>(l, kOut, -1), task.gradient = prepared<T>(l, kGradient, -1);
  task.lse = l.rows(kLogSum);
  task.score_grad = filled_hole(l, kScoreGrad, z.scores());
  const std::size_t roots = task.score_grad ? task.score_grad->roots.size() : 0;
  for (std::size_t r = 0; r < roots; ++r) {
    FormOutputs& outputs = task.roots.emplace_back();
    for (std::size_t f = 0; f < kSumForms; ++f)
      if (const std::int64_t k = l.integer(kFirstSum + int(r * kSumForms + f)); k >= 0) outputs[f] = l.output(int(k));
  }
  const auto scratch = [&](std::int64_t t, std::int64_t d) {
    const std::int64_t dims[] = {z.b, z.h, t, d};
    return Heads::by_head(l.scratch(dtype_of<T>, dims));
  };
  task.dq = scratch(z.tq, z.dk), task.dk = scratch(z.tk, z.dk), task.dv = scratch(z.tk, z.dv);
  l.emit("attention_backward", [=](const Launch& launch) {
    parallel(task.sizes.b * task.sizes.h, [&](std::int64_t index) { backward_head<T>(task, launch, index); });
  });
  emit_gradient<T>(l, kDq, task.dq, z.h, kRotateGrad);
  emit_gradient<T>(l, kDk, task.dk, z.h, kRotateGrad);
  emit_gradient<T>(l, kDv, task.dv, z.h, -1);
}

}  // namespace

void lower_attention(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_forward<T>(l); });
}
void lower_attention_backward(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_backward<T>(l); });
}

}  // namespace weft
