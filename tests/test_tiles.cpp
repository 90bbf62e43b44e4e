// Tiles of attention against masks evaluated place by place.
#include "jit/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "autograd/hole.h"
#include "autograd/lowering.h"
#include "autograd/tensor.h"
#include "jit/interval.h"
#include "tests/expect_error.h"
#include "tests/random_expr.h"

namespace weft {
namespace {

using testing::Evaluator;

const Expr b = expr::index(0), h = expr::index(1), i = expr::index(2), j = expr::index(3);

Expr causal() { return i >= j; }
Expr window(int size, int prefix) { return i >= j && (i - j < size || j < prefix); }

using Visible = std::function<bool(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)>;

Visible evaluated(Expr mask) {
  auto evaluator = std::make_shared<Evaluator<double>>();
  return [=](std::int64_t b0, std::int64_t h0, std::int64_t i0, std::int64_t j0) {
    evaluator->forget();
    evaluator->indices = {b0, h0, i0, j0};
    return (*evaluator)(mask).integer != 0;
  };
}

std::int64_t tiles_of(std::int64_t places, int tile) { return (places + tile - 1) / tile; }

// ---- what must hold of all lists --------------------------------------------------------------------------------------------

// One list read as a kernel reads it: entries[row tile] of one head.
struct Walk {
  std::map<int, std::vector<TileEntry>> entries;
  std::size_t longest = 0;
};

Walk walk(const TileLists& lists, int list, int head) {
  Walk walked;
  std::map<int, std::vector<TileItem>> runs;
  std::int64_t before = std::numeric_limits<std::int64_t>::max();
  for (int z = 0; z < lists.item_count; ++z) {
    const auto item = [&](int u) { return lists.items[std::size_t((list * lists.item_count + z) * lists.heads + u)]; };
    std::int64_t work = 0;
    for (int u = 0; u < lists.heads; ++u) work += item(u).last - item(u).first;
    EXPECT_LE(work, before) << "longest first";
    before = work;
    const TileItem mine = item(head);
    if (mine.tile < 0) {
      EXPECT_EQ(work, 0);
      continue;
    }
    EXPECT_TRUE(runs[mine.tile].empty() || mine.part >= 0) << "a tile has one item or is cut into parts";
    runs[mine.tile].push_back(mine);
    walked.longest = std::max(walked.longest, std::size_t(mine.last - mine.first));
  }
  std::set<int> summed;
  for (int s = 0; s < lists.sum_count; ++s) {
    const TileSum sum = lists.sums[std::size_t(list * lists.sum_count + s)];
    if (sum.tile < 0) continue;
    summed.insert(sum.tile);
    EXPECT_LE(sum.last, lists.part_count);
    std::vector<int> parts;
    for (const TileItem& item : runs[sum.tile]) parts.push_back(item.part);
    std::sort(parts.begin(), parts.end());
    EXPECT_EQ(std::int64_t(parts.size()), sum.last - sum.first);
    for (std::size_t k = 0; k < parts.size(); ++k) EXPECT_EQ(parts[k], sum.first + int(k));
  }
  for (auto& [tile, items] : runs) {
    EXPECT_EQ(items[0].part >= 0, summed.count(tile) == 1);
    std::sort(items.begin(), items.end(), [](auto& x, auto& y) { return x.part < y.part; });
    auto& all = walked.entries[tile];
    for (const TileItem& item : items)
      all.insert(all.end(), lists.entries.begin() + item.first, lists.entries.begin() + item.last);
    for (std::size_t k = 1; k < all.size(); ++k) EXPECT_LT(all[k - 1].tile, all[k].tile) << "each tile once, ascending";
  }
  return walked;
}

// The places of a tile's words, from what an accumulator of mma.sync m16n8 holds: element e of lane l is row l / 4 + 8 (e / 2),
// column 2 (l % 4) + e % 2. A word has the elements of eight accumulators side by side.
std::vector<std::vector<bool>> places_of(const TileLists& lists, const TileOptions& options, std::int32_t bits) {
  std::vector<std::vector<bool>> places(std::size_t(options.rows), std::vector<bool>(std::size_t(options.columns)));
  std::size_t at = std::size_t(bits);
  for (int row = 0; row < options.rows; row += 16)
    for (int column = 0; column < options.columns; column += 64)
      for (int lane = 0; lane < 32; ++lane, ++at)
        for (int n = 0; n < 8; ++n)
          for (int e = 0; e < 4; ++e) {
            const int r = row + lane / 4 + 8 * (e / 2), c = column + 8 * n + 2 * (lane % 4) + e % 2;
            const bool bit = lists.words.at(at) >> (4 * n + e) & 1;
            if (c < options.columns)
              places[std::size_t(r)][std::size_t(c)] = bit;
            else
              EXPECT_FALSE(bit);
          }
  return places;
}

struct Counts {
  std::int64_t full = 0, mixed = 0, skipped = 0, undecided = 0;  // undecided: mixed, but all or no places are visible
};

// No visible place in a skipped tile, no hidden one in a full tile, words equal to the mask, each tile of rows there.
Counts expect_right(const TileLists& lists, const MaskSpace& space, const TileOptions& options, const Visible& visible) {
  Counts counts;
  const bool keys = options.rows_are_keys;
  const std::int64_t rows = keys ? space.keys : space.queries, columns = keys ? space.queries : space.keys;
  const auto seen = [&](std::int64_t at_b, std::int64_t at_h, std::int64_t row, std::int64_t column) {
    return row < rows && column < columns && (keys ? visible(at_b, at_h, column, row) : visible(at_b, at_h, row, column));
  };
  for (std::int64_t head = 0; head < space.heads; ++head) {
    const int list = lists.list(head / lists.heads);
    const Walk walked = walk(lists, list, int(head % lists.heads));
    EXPECT_EQ(std::ssize(walked.entries), tiles_of(rows, options.rows)) << "each tile of rows is somebody's";
    if (options.longest > 0) {
      EXPECT_LE(walked.longest, std::size_t(options.longest));
    }
    for (const auto& [row_tile, entries] : walked.entries) {
      std::map<int, int> bits;
      for (const TileEntry& entry : entries) bits[entry.tile] = entry.bits;
      for (int column_tile = 0; column_tile < tiles_of(columns, options.columns); ++column_tile) {
        const auto entry = bits.find(column_tile);
        std::int64_t count = 0;
        const bool words = entry != bits.end() && entry->second >= 0;
        const auto places = words ? places_of(lists, options, entry->second) : std::vector<std::vector<bool>>();
        for (int r = 0; r < options.rows; ++r)
          for (int c = 0; c < options.columns; ++c)
            for (std::int64_t at_b = 0; at_b < space.batch; ++at_b) {
              const bool is =
                  seen(at_b, head, std::int64_t(row_tile) * options.rows + r, std::int64_t(column_tile) * options.columns + c);
              count += is;
              if (words) {
                EXPECT_EQ(places[std::size_t(r)][std::size_t(c)], is) << row_tile << " " << column_tile;
              }
            }
        const std::int64_t all = std::int64_t(options.rows) * options.columns * space.batch;
        if (entry == bits.end()) {
          EXPECT_EQ(count, 0) << "skipped: tile " << row_tile << " " << column_tile;
          ++counts.skipped;
        } else if (entry->second == kFullTile) {
          EXPECT_EQ(count, all) << "full: tile " << row_tile << " " << column_tile;
          ++counts.full;
        } else {
          EXPECT_EQ(words, !lists.evaluated);
          ++counts.mixed;
          counts.undecided += count == 0 || count == all;
        }
        if (::testing::Test::HasFailure()) return counts;
      }
    }
  }
  return counts;
}

// ---- known masks ------------------------------------------------------------------------------------------------------------

struct KnownMask {
  std::string name;
  Expr mask;
  Visible visible;
};

std::vector<KnownMask> known_masks() {
  return {
      {"causal", causal(), [](auto, auto, auto q, auto k) { return k <= q; }},
      {"window", window(128, 0), [](auto, auto, auto q, auto k) { return k <= q && q - k < 128; }},
      {"odd window", window(100, 0), [](auto, auto, auto q, auto k) { return k <= q && q - k < 100; }},
      {"prefix", window(128, 64), [](auto, auto, auto q, auto k) { return k <= q && (q - k < 128 || k < 64); }},
      {"prefix LM", i >= j || j < 200, [](auto, auto, auto q, auto k) { return k <= q || k < 200; }},
      {"blocks", equal(i / 100, j / 100), [](auto, auto, auto q, auto k) { return q / 100 == k / 100; }},
      {"all", expr::boolean(true), [](auto, auto, auto, auto) { return true; }},
  };
}

class KnownMasks : public ::testing::TestWithParam<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(Tiles, KnownMasks, ::testing::Range(std::size_t(0), known_masks().size()), [](const auto& param) {
  std::string name = known_masks()[param.param].name;
  std::erase(name, ' ');
  return name;
});

TEST_P(KnownMasks, LeaveNoDecidableTileMixedByIntervalsAlone) {
  const KnownMask known = known_masks()[GetParam()];
  const MaskSpace space{1, 1, 1024, 1024};
  for (const bool keys : {false, true}) {
    const TileOptions options{.rows = 64, .columns = 64, .rows_are_keys = keys, .words = false};
    const Counts counts = expect_right(tile_lists(known.mask, space, options), space, options, known.visible);
    EXPECT_EQ(counts.undecided, 0) << known.name;
    EXPECT_EQ(counts.full + counts.mixed + counts.skipped, 256);
  }
}

TEST_P(KnownMasks, HaveWordsOnBothSides) {
  const KnownMask known = known_masks()[GetParam()];
  for (const MaskSpace& space : {MaskSpace{2, 3, 320, 320}, MaskSpace{1, 1, 97, 257}, MaskSpace{1, 2, 257, 97}}) {
    for (const bool keys : {false, true}) {
      TileOptions options{.rows = 64, .columns = 32, .rows_are_keys = keys, .longest = 3};
      if (keys) options.columns = 128;
      const TileLists lists = tile_lists(known.mask, space, options);
      EXPECT_FALSE(lists.evaluated);
      EXPECT_EQ(lists.list_of.size(), 1u) << "the mask does not name the head";
      EXPECT_EQ(expect_right(lists, space, options, known.visible).undecided, 0) << known.name;
    }
  }
}

TEST(Tiles, EqualTilesShareTheirWords) {
  const TileOptions options{.rows = 64, .columns = 64};
  for (const std::int64_t length : {256, 1024, 4096}) {
    const MaskSpace space{1, 1, length, length};
    EXPECT_EQ(tile_lists(causal(), space, options).words.size(), 4u * 32);
    EXPECT_EQ(tile_lists(window(128, 0), space, options).words.size(), 2u * 4 * 32);
  }
}

TEST(Tiles, TheWorkOfAWindowGrowsWithTheLength) {
  for (const std::int64_t length : {1024, 8192, 65536}) {
    const TileLists lists = tile_lists(window(128, 64), {1, 1, length, length}, {.rows = 64, .columns = 64});
    EXPECT_LE(lists.entries.size(), std::size_t(length / 64 * 4));
    EXPECT_LE(lists.words.size(), 4u * 4 * 32);
  }
}

TEST(Tiles, LongRowsOfKeysAreCutWhereTheyAreTheException) {
  const MaskSpace space{1, 1, 8192, 8192};
  const TileOptions options{.rows = 64, .columns = 64, .rows_are_keys = true, .longest = kBalanced};
  EXPECT_EQ(tile_lists(causal(), space, options).part_count, 0);
  const TileLists lists = tile_lists(window(128, 64), space, options);
  EXPECT_EQ(lists.sum_count, 1) << "the first keys alone";
  EXPECT_EQ(lists.sums[0].tile, 0);
  EXPECT_EQ(lists.part_count, 16) << "128 tiles of queries, 8 a run";
  EXPECT_EQ(lists.item_count, 127 + 16);
  const TileLists few = tile_lists(window(1, 64), {1, 1, 1024, 1024}, options);
  EXPECT_EQ(few.part_count, 2) << "16 tiles of queries, where others have one: not less than 8 a run";
}

TEST(Tiles, ARowThatSeesNoKeyHasAnItemWithoutEntries) {
  const MaskSpace space{1, 1, 128, 128};
  const TileOptions options{.rows = 32, .columns = 32};
  const TileLists lists = tile_lists(i >= 64 && i >= j, space, options);
  const Walk walked = walk(lists, 0, 0);
  ASSERT_EQ(walked.entries.size(), 4u);
  EXPECT_TRUE(walked.entries.at(0).empty());
  EXPECT_TRUE(walked.entries.at(1).empty());
  EXPECT_EQ(walked.entries.at(2).size(), 3u);
  EXPECT_EQ(lists.items.back().first, lists.items.back().last);
  const TileLists none = tile_lists(expr::boolean(false), space, options);
  EXPECT_EQ(none.item_count, 4);
  EXPECT_TRUE(none.entries.empty());
}

TEST(Tiles, HeadsOfEqualMasksShareAList) {
  const MaskSpace space{1, 8, 256, 256};
  const TileOptions options{.rows = 64, .columns = 64};
  const Expr mask = i >= j && i - j < where(h / 2 <= 1, Expr(64), Expr(1000));
  const TileLists lists = tile_lists(mask, space, options);
  EXPECT_EQ(lists.lists, 2);
  EXPECT_EQ(lists.list_of, (std::vector<std::int32_t>{0, 0, 0, 0, 1, 1, 1, 1}));
  expect_right(lists, space, options, evaluated(mask));
}

TEST(Tiles, HeadsThatShareKeysAreWalkedByOneItem) {
  const MaskSpace space{1, 6, 128, 128};
  TileOptions options{.rows = 16, .columns = 16, .rows_are_keys = true, .heads = 3, .longest = 3};
  const Expr mask = i >= j && i - j < 16 * (h + 1);
  const TileLists lists = tile_lists(mask, space, options);
  EXPECT_EQ(lists.heads, 3);
  EXPECT_EQ(lists.list_of, (std::vector<std::int32_t>{0, 1}));
  EXPECT_GT(lists.part_count, 0);
  expect_right(lists, space, options, evaluated(mask));
  const Expr shrinking = i >= j && i - j < 16 * (6 - h);
  expect_right(tile_lists(shrinking, space, options), space, options, evaluated(shrinking));
  EXPECT_EQ(tile_lists(causal(), space, options).heads, 1) << "the heads of an item share its entries";
}

TEST(Tiles, WhatTheHostDoesNotKnowIsEvaluatedByTheKernel) {
  const MaskSpace space{2, 2, 128, 128};
  const TileOptions options{.rows = 32, .columns = 32};
  const std::array at{b, i};
  const Expr id = expr::load(0, ExprType::integer, at), limit = expr::slot(0, ExprType::integer);
  for (const Expr mask : {i >= j && equal(id, limit), i >= j && j < limit, i >= j && j <= 16 * b + 40,
                          i >= j && to_real(j) < expr::literal(100.5)}) {
    const TileLists lists = tile_lists(mask, space, options);
    EXPECT_TRUE(lists.evaluated) << to_string(mask);
    EXPECT_TRUE(lists.words.empty());
    EXPECT_EQ(std::count_if(lists.entries.begin(), lists.entries.end(), [](const TileEntry& e) { return e.bits >= 0; }), 0);
    EXPECT_LE(lists.entries.size(), 10u) << "the causal part still holds";
  }
}

TEST(Tiles, ManyMixedTilesAreEvaluatedByTheKernel) {
  const Expr dilated = equal((i - j) / 2 * 2, i - j);
  const TileOptions options{.rows = 16, .columns = 8};
  const TileLists few = tile_lists(dilated, {1, 1, 16 * 64, 8 * 1024}, options);
  EXPECT_FALSE(few.evaluated) << kMostWordTiles << " mixed tiles";
  EXPECT_EQ(few.words.size(), 32u) << "which are all the same";
  const TileLists many = tile_lists(dilated, {1, 1, 16 * 64, 8 * 1024 + 1}, options);
  EXPECT_TRUE(many.evaluated);
  EXPECT_TRUE(many.words.empty());
  EXPECT_EQ(many.entries.size(), 64u * 1025);
}

// ---- guards -----------------------------------------------------------------------------------------------------------------

TEST(Tiles, AVisiblePlaceOutsideIsFound) {
  const MaskSpace space{1, 2, 128, 128};
  const TileOptions options{.rows = 32, .columns = 32};
  const Expr distance = i - j;
  const auto look = [&](Expr mask, int size) {
    return tile_lists(mask, space, options, distance >= 0 && distance < size).outside;
  };
  EXPECT_FALSE(look(causal(), 128)) << "hidden places may be outside";
  EXPECT_FALSE(look(window(64, 0), 64));
  const auto found = look(causal(), 127);
  ASSERT_TRUE(found);
  EXPECT_EQ(*found, (std::array<std::int64_t, 4>{0, 0, 127, 0}));
  ASSERT_TRUE(look(expr::boolean(true), 128));
  const TileLists second = tile_lists(causal(), space, options, h < 1 || distance < 100);
  ASSERT_TRUE(second.outside) << "of a head, though the mask names none";
  EXPECT_EQ((*second.outside)[1], 1);
  EXPECT_EQ((*look(i >= j && (h < 1 || i - j < 10), 127)), (std::array<std::int64_t, 4>{0, 0, 127, 0}));
  EXPECT_EQ((*look(i >= j && (h >= 1 || i - j < 10), 127)), (std::array<std::int64_t, 4>{0, 1, 127, 0}));
}

TEST(Tiles, ATileIsFullOnlyWhereTheGuardHolds) {
  const MaskSpace space{1, 1, 128, 128};
  const TileOptions options{.rows = 32, .columns = 32};
  const auto full = [&](Expr mask, Expr inside) {
    const TileLists lists = tile_lists(mask, space, options, inside);
    return std::count_if(lists.entries.begin(), lists.entries.end(), [](const TileEntry& e) { return e.bits == kFullTile; });
  };
  EXPECT_EQ(full(causal(), expr::boolean(true)), 6);
  EXPECT_EQ(full(causal(), i - j < 128), 6);
  const Expr unknown = expr::slot(0, ExprType::integer);
  EXPECT_EQ(full(causal(), j < unknown), 0) << "nothing is known of the guard";
  EXPECT_EQ(full(causal(), j < 32 || j < unknown), 3) << "it holds in the first column of tiles";
  const TileLists unevaluated =
      tile_lists(expr::boolean(true), space, {.rows = 32, .columns = 32, .words = false}, j < 32 || j < unknown);
  EXPECT_EQ(std::count_if(unevaluated.entries.begin(), unevaluated.entries.end(),
                          [](const TileEntry& e) { return e.bits == kFullTile; }),
            4);
  // What intervals cannot see, evaluation can: this is i >= j.
  const Expr disguised = (i + j) / 2 >= j;
  EXPECT_EQ(full(disguised, expr::boolean(true)), 6);
  EXPECT_EQ(full(causal(), disguised), 6);
  EXPECT_EQ(full(disguised, j < 32 || j < unknown), 3);
}

TEST(Tiles, RefusesWhatIsNoTile) {
  const MaskSpace space{1, 3, 64, 64};
  expect_error(ErrorKind::usage, {"24 x 64"}, [&] { tile_lists(causal(), space, {.rows = 24, .columns = 64}); });
  expect_error(ErrorKind::usage, {"16 x 12"}, [&] { tile_lists(causal(), space, {.rows = 16, .columns = 12}); });
  expect_error(ErrorKind::usage, {"no boolean"}, [&] { tile_lists(i + j, space, {.rows = 16, .columns = 16}); });
  expect_error(ErrorKind::usage, {"3 by 2"}, [&] { tile_lists(causal(), space, {.rows = 16, .columns = 16, .heads = 2}); });
}

// ---- random masks -----------------------------------------------------------------------------------------------------------

// Tensors that a mask captures, as its leaves: seen over the space, some axes with step 0.
struct Captured {
  Operand operand;
  ExprType type;
  std::vector<std::int64_t> values;

  std::int64_t at(std::span<const std::int64_t> place) const {
    std::int64_t element = operand.offset;
    for (std::size_t c = 0; c < 4; ++c) element += operand.strides[c] * place[c];
    return values[std::size_t(element)];
  }
};

class RandomMask {
 public:
  MaskSpace space;
  std::vector<Captured> captured;
  std::vector<double> slots;
  Expr mask;

  explicit RandomMask(unsigned seed) : random_(seed) {
    const auto length = [&] { return one_in(4) ? 16 * (1 + below(4)) : 1 + below(60); };
    space = {1 + below(2), 1 + below(3), length(), length()};
    if (one_in(2)) space.keys = space.queries;
    if (!one_in(3)) capture();
    if (!one_in(3)) slots = {double(below(80) - 10), one_in(2) ? double(below(60)) : extreme()};
    mask = boolean(2 + below(4));
    if (one_in(2)) mask = mask && i >= j;
  }

  // Whether each place is visible, evaluated one by one.
  std::vector<bool> evaluated() const {
    Evaluator<double> evaluator;
    evaluator.slots = slots, evaluator.inputs.resize(captured.size());
    std::vector<bool> visible;
    for (std::int64_t b0 = 0; b0 < space.batch; ++b0)
      for (std::int64_t h0 = 0; h0 < space.heads; ++h0)
        for (std::int64_t i0 = 0; i0 < space.queries; ++i0)
          for (std::int64_t j0 = 0; j0 < space.keys; ++j0) {
            evaluator.forget();
            evaluator.indices = {b0, h0, i0, j0};
            for (std::size_t k = 0; k < captured.size(); ++k) evaluator.inputs[k].integer = captured[k].at(evaluator.indices);
            visible.push_back(evaluator(mask).integer != 0);
          }
    return visible;
  }

  Fused fused() const {
    Fused f;
    f.roots = {mask};
    for (const Captured& c : captured) f.leaves.push_back(c.operand);
    f.dims = {space.batch, space.heads, space.queries, space.keys};
    return f;
  }

 private:
  int below(int n) { return int(random_() % unsigned(n)); }
  bool one_in(int n) { return below(n) == 0; }
  Expr any_of(std::initializer_list<Expr> list) { return list.begin()[below(int(list.size()))]; }
  double extreme() { return std::array{1e30, -1e30, 0x1p62, -0x1p62, 0x1p53 + 2, 3e9}[std::size_t(below(6))]; }

  void capture() {
    const std::int64_t sizes[] = {space.batch, space.heads, space.queries, space.keys};
    const auto add = [&](ExprType type, DType dtype, std::vector<int> axes, auto value) {
      Captured c{{}, type, {}};
      c.operand = {.slot = int(captured.size()), .dtype = dtype, .rank = 4};
      std::int64_t count = 1;
      std::copy(std::begin(sizes), std::end(sizes), c.operand.dims.begin());
      for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis)
        c.operand.strides[std::size_t(*axis)] = count, count *= sizes[*axis];
      for (std::int64_t k = 0; k < count; ++k) c.values.push_back(value(k));
      captured.push_back(std::move(c));
    };
    const bool sorted = one_in(2), wild = one_in(8);
    const auto id = [&](std::int64_t k) {
      return wild && one_in(4) ? std::int64_t(random_()) << (20 + below(12)) : sorted ? k / 13 : below(4);
    };
    const DType dtype = one_in(2) ? DType::i32 : DType::i64;
    const auto small = [&](std::int64_t k) { return dtype == DType::i32 ? std::int64_t(std::int32_t(id(k))) : id(k); };
    add(ExprType::integer, dtype, {0, 2}, small);
    add(ExprType::integer, dtype, {0, 3}, small);
    if (space.queries == space.keys) captured[1].values = captured[0].values;
    add(ExprType::integer, DType::i64, {0}, [&](std::int64_t) { return below(70); });
    add(ExprType::boolean, DType::boolean, {1, 3}, [&](std::int64_t k) { return sorted ? k % 41 < 25 : !one_in(9); });
    add(ExprType::integer, DType::i32, {2, 3}, [&](std::int64_t) { return below(5); });
  }
  Expr leaf(std::size_t k) { return expr::input(int(k), captured[k].type); }

  Expr integer(int depth) {
    if (depth <= 0) {
      if (!captured.empty() && one_in(4)) return leaf(std::array{0, 1, 2, 4}[std::size_t(below(4))]);
      if (!slots.empty() && one_in(5)) return expr::slot(below(2), ExprType::integer);
      return any_of({i, j, i - j, h, b, Expr(below(70)), Expr(below(8) - 4), i - j, i, j});
    }
    const Expr x = integer(depth - 1), y = integer(depth - 1 - below(2));
    switch (below(14)) {
      case 0:
        return x / (below(9) - 2);
      case 1:
        return x / y;
      case 2:
        return x * (below(9) - 4);
      case 3:
        return x * y;
      case 4:
        return min(x, y);
      case 5:
        return max(x, y);
      case 6:
        return abs(x);
      case 7:
        return sign(x);
      case 8:
        return -x;
      case 9:
        return where(boolean(depth - 1), x, y);
      case 10:
        return to_integer(boolean(depth - 1)) + x;
      case 11:
        return one_in(2) ? narrow(x * 5, DType::i32) : clamp(x, below(10), 10 + below(40));
      case 12:
        return x - y;
      default:
        return x + y;
    }
  }

  Expr known_shape() {
    const Expr limit = !slots.empty() && one_in(2) ? expr::slot(0, ExprType::integer) : Expr(below(60));
    switch (below(captured.empty() ? 4 : 7)) {
      case 0:
        return i - j < limit;
      case 1:
        return j < limit;
      case 2:
        return equal(i / (1 + below(20)), j / (1 + below(20)));
      case 3:
        return i - j < 16 * (h + 1);
      case 4:
        return equal(leaf(0), leaf(1));
      case 5:
        return j < leaf(2);
      default:
        return leaf(3);
    }
  }

  Expr boolean(int depth) {
    if (depth <= 0) return known_shape();
    switch (below(10)) {
      case 0:
        return integer(depth - 1) < integer(depth - 1);
      case 1:
        return integer(depth - 1) <= integer(depth - 1);
      case 2:
        return equal(integer(depth - 1), integer(depth - 1));
      case 3:
        return not_equal(integer(depth - 1), integer(depth - 1));
      case 4:
      case 5:
        return boolean(depth - 1) && boolean(depth - 2);
      case 6:
      case 7:
        return boolean(depth - 1) || boolean(depth - 2);
      case 8:
        return one_in(3) ? to_real(integer(depth - 1)) * Expr(0.5) <= to_real(i) : !boolean(depth - 1);
      default:
        return where(boolean(depth - 2), boolean(depth - 1), boolean(depth - 2));
    }
  }

  std::mt19937 random_;
};

struct Decided {
  std::int64_t tiles = 0, decided = 0, decidable = 0;
};

// The class of each pair of tiles as a kernel finds it: never and always, by the smallest and largest values of the leaves.
void expect_right_class(const RandomMask& m, int queries, int keys, const Visible& visible, Decided& count) {
  const Fused mask = m.fused();
  const TileClass kind = tile_class(mask, queries, keys);
  Evaluator<double> evaluator;
  evaluator.slots = m.slots, evaluator.inputs.resize(std::size_t(kind.inputs) + 2 * kind.ranges.size());
  for (std::int64_t b0 = 0; b0 < m.space.batch; ++b0)
    for (std::int64_t h0 = 0; h0 < m.space.heads; ++h0)
      for (std::int64_t ti = 0; ti < tiles_of(m.space.queries, queries); ++ti)
        for (std::int64_t tj = 0; tj < tiles_of(m.space.keys, keys); ++tj) {
          const std::int64_t i0 = ti * queries, i1 = std::min(i0 + queries, m.space.queries);
          const std::int64_t j0 = tj * keys, j1 = std::min(j0 + keys, m.space.keys);
          for (std::size_t k = 0; k < m.captured.size(); ++k)
            evaluator.inputs[k].integer = m.captured[k].at(std::array{b0, h0, i0, j0});
          for (std::size_t r = 0; r < kind.ranges.size(); ++r) {
            const bool of_queries = kind.ranges[r].coordinate == 2;
            EXPECT_EQ(kind.ranges[r].tile, of_queries ? queries : keys);
            std::int64_t low = std::numeric_limits<std::int64_t>::max(), high = std::numeric_limits<std::int64_t>::min();
            for (std::int64_t at = of_queries ? i0 : j0; at < (of_queries ? i1 : j1); ++at) {
              const std::int64_t x =
                  m.captured[std::size_t(kind.ranges[r].leaf)].at(std::array{b0, h0, of_queries ? at : 0, of_queries ? 0 : at});
              low = std::min(low, x), high = std::max(high, x);
            }
            const std::size_t first = std::size_t(kind.inputs) + 2 * r;
            evaluator.inputs[first].integer = low, evaluator.inputs[first + 1].integer = high;
          }
          evaluator.indices = {b0, h0, ti, tj};
          evaluator.forget();
          const bool never = evaluator(kind.never).integer != 0, always = evaluator(kind.always).integer != 0;
          std::int64_t seen = 0;
          for (std::int64_t i1st = i0; i1st < i1; ++i1st)
            for (std::int64_t j1st = j0; j1st < j1; ++j1st) seen += visible(b0, h0, i1st, j1st);
          const std::int64_t all = (i1 - i0) * (j1 - j0);
          ASSERT_TRUE(!never || seen == 0) << to_string(m.mask) << " at " << b0 << " " << h0 << " " << ti << " " << tj;
          ASSERT_TRUE(!always || seen == all) << to_string(m.mask) << " at " << b0 << " " << h0 << " " << ti << " " << tj;
          ++count.tiles, count.decided += never || always, count.decidable += seen == 0 || seen == all;
        }
}

void expect_right_lists(const RandomMask& m, const TileOptions& options, const Visible& visible) {
  const TileLists lists = tile_lists(m.mask, m.space, options);
  expect_right(lists, m.space, options, visible);
}

void check_random_mask(unsigned seed, Decided& count) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const RandomMask m(seed);
  const std::vector<bool> places = m.evaluated();
  const Visible visible = [&](std::int64_t b0, std::int64_t h0, std::int64_t i0, std::int64_t j0) {
    return places[std::size_t(((b0 * m.space.heads + h0) * m.space.queries + i0) * m.space.keys + j0)];
  };
  const int sizes[] = {8, 16, 24, 32, 64, 96};
  const int rows = sizes[1 + 2 * (seed % 2)], columns = sizes[seed / 2 % 6];
  const int share = m.space.heads % 2 == 0 && seed % 3 == 0 ? 2 : 1, longest = int(seed % 4);
  for (const bool keys : {false, true})
    for (const bool words : {true, false})
      expect_right_lists(m, {rows, columns, keys, share, longest == 3 ? kBalanced : longest, words}, visible);
  expect_right_class(m, sizes[seed % 3], sizes[seed / 3 % 4], visible, count);
}

void check_random_masks(unsigned first, unsigned last) {
  Decided count;
  for (unsigned seed = first; seed < last; ++seed) {
    check_random_mask(seed, count);
    if (::testing::Test::HasFailure()) break;
  }
  EXPECT_GT(count.decided, count.decidable / 2) << "of " << count.tiles << " tiles: classes that say something";
  ::testing::Test::RecordProperty("tiles", std::to_string(count.tiles));
  ::testing::Test::RecordProperty("decided", std::to_string(count.decided));
  ::testing::Test::RecordProperty("decidable", std::to_string(count.decidable));
}

TEST(RandomMasks, AgreeWithTheMaskAtEachPlace) { check_random_masks(0, 200); }
TEST(DeepRandomMasks, AgreeWithTheMaskAtEachPlace) { check_random_masks(200, 10200); }

TEST(TileClasses, AScalarDecidesWhatTheIntegerWould) {
  constexpr int kTile = 64;
  const auto mask = [](Expr limit) { return i >= j && (i - j < limit || j < 64); };
  Fused with_scalar;
  with_scalar.roots = {mask(expr::slot(0, ExprType::integer))}, with_scalar.dims = {1, 1, 1024, 1024};
  const TileClass kind = tile_class(with_scalar, kTile, kTile);
  const Expr both[] = {kind.never, kind.always};
  EXPECT_LE(cost_of(both).total(), 24) << to_string(kind.never) << "\n" << to_string(kind.always);
  Evaluator<double> evaluator;
  for (const int limit : {-3, 0, 1, 100, 128, 5000}) {
    Intervals host(mask(limit));
    for (std::int64_t ti = 0; ti < 16; ++ti)
      for (std::int64_t tj = 0; tj < 16; ++tj) {
        evaluator.forget();
        evaluator.slots = {double(limit)}, evaluator.indices = {0, 0, ti, tj};
        const double i0 = double(ti * kTile), j0 = double(tj * kTile);
        const Interval range =
            host(std::array{Interval{0, 0}, Interval{0, 0}, Interval{i0, i0 + kTile - 1}, Interval{j0, j0 + kTile - 1}});
        ASSERT_EQ(evaluator(kind.never).integer != 0, range.always_false()) << limit << " " << ti << " " << tj;
        ASSERT_EQ(evaluator(kind.always).integer != 0, range.always_true()) << limit << " " << ti << " " << tj;
      }
  }
}

TEST(TileClasses, ArithmeticOnIntegersOf64BitsSaysNothing) {
  const auto says_something = [](DType dtype, std::array<std::int64_t, 4> strides, Expr mask) {
    Fused f;
    f.roots = {mask}, f.dims = {2, 1, 64, 64};
    f.leaves = {{.slot = 0, .dtype = dtype, .rank = 4, .dims = {2, 1, 64, 64}}};
    std::copy(strides.begin(), strides.end(), f.leaves[0].strides.begin());
    const TileClass kind = tile_class(f, 16, 16);
    return kind.never.op() != ExprOp::literal || kind.always.op() != ExprOp::literal;
  };
  const Expr x = expr::input(0, ExprType::integer);
  for (const std::array<std::int64_t, 4> strides : {std::array<std::int64_t, 4>{1, 0, 0, 0}, {64, 0, 1, 0}, {64, 0, 0, 1}}) {
    EXPECT_TRUE(says_something(DType::i32, strides, j < x + 1));
    EXPECT_FALSE(says_something(DType::i64, strides, j < x + 1)) << "it may wrap";
    EXPECT_TRUE(says_something(DType::i64, strides, j < x));
    EXPECT_FALSE(says_something(DType::i32, strides, j < x * x * x));
  }
  EXPECT_FALSE(says_something(DType::i32, {0, 0, 64, 1}, j < x)) << "it depends on both";
}

// ---- classes made by a kernel -----------------------------------------------------------------------------------------------

constexpr int kQueries = 16, kKeys = 8;
constexpr HoleSpec kMask[] = {{.name = "mask", .coordinates = "b h i j", .values = 0, .result = ExprType::boolean}};

template <bool gpu>
void lower_classes(Lowering& l) {
  const Shape space{l.integer(0), l.integer(1), l.integer(2), l.integer(3)};
  const Fused mask = l.hole(0, space);
  const TileClass kind = tile_class(mask, kQueries, kKeys);
  std::vector<Operand> ranges;
  for (const TileRange& range : kind.ranges) {
    const Operand leaf = mask.leaves[std::size_t(range.leaf)], to = l.scratch(DType::i64, ranges_dims(leaf, range));
    if (gpu)
      l.emit(ranges_cuda(leaf, range, to));
    else
      l.emit("tile_ranges", [=](const Launch& launch) { make_ranges(launch, leaf, range, to); });
    ranges.push_back(to);
  }
  const Fused both = tile_class_hole(kind, mask, kQueries, kKeys, ranges);
  for (int k = 0; k < 2; ++k) {
    Fused one = both;
    one.roots = {both.roots[std::size_t(k)]}, one.program = Program(one.roots);
    l.emit_pointwise(k == 0 ? "never" : "always", one, l.output(k));
  }
}

struct Classes {
  std::vector<std::int64_t> never, always;
};
Classes classes_of(const HoleOf<0, 4>& mask, const MaskSpace& space) {
  static const Op& op =
      register_op({.name = "test_tile_class", .lower = lower_classes<false>, .cuda = lower_classes<true>, .holes = kMask});
  const Shape tiles{space.batch, space.heads, tiles_of(space.queries, kQueries), tiles_of(space.keys, kKeys)};
  Recorder r(op, Site::current());
  r.hole(0, mask, Shape{space.batch, space.heads, space.queries, space.keys});
  r.integer(space.batch).integer(space.heads).integer(space.queries).integer(space.keys);
  const Tensor never = r.out(tiles, DType::boolean).out(tiles, DType::boolean).record(), always = output_of(never, 1);
  return {never.to_host<std::int64_t>(), always.to_host<std::int64_t>()};
}

// How many tiles are decided; none of them wrongly.
int decided(const Classes& classes, const MaskSpace& space, const Visible& visible) {
  int count = 0;
  std::size_t at = 0;
  for (std::int64_t b0 = 0; b0 < space.batch; ++b0)
    for (std::int64_t h0 = 0; h0 < space.heads; ++h0)
      for (std::int64_t i0 = 0; i0 < space.queries; i0 += kQueries)
        for (std::int64_t j0 = 0; j0 < space.keys; j0 += kKeys, ++at) {
          bool some = false, all = true;
          for (std::int64_t q = i0; q < std::min(i0 + kQueries, space.queries); ++q)
            for (std::int64_t k = j0; k < std::min(j0 + kKeys, space.keys); ++k)
              some = some || visible(b0, h0, q, k), all = all && visible(b0, h0, q, k);
          EXPECT_FALSE(classes.never[at] && some) << b0 << " " << h0 << " " << i0 << " " << j0;
          EXPECT_FALSE(classes.always[at] && !all) << b0 << " " << h0 << " " << i0 << " " << j0;
          count += classes.never[at] || classes.always[at];
        }
  EXPECT_EQ(at, classes.never.size());
  return count;
}

TEST(TileClasses, OfSegments) {
  const MaskSpace space{2, 2, 40, 40};
  for (const bool wide : {false, true}) {
    std::vector<std::int64_t> ids;
    for (std::int64_t k = 0; k < 2 * 40; ++k) ids.push_back((k < 40 ? k / 16 : k / 9) - 3);
    const Tensor segment =
        wide ? Tensor::from(ids, {2, 40}) : Tensor::from(std::vector<std::int32_t>(ids.begin(), ids.end()), {2, 40});
    const Classes classes =
        classes_of([&](Index b0, Index, Index q, Index k) { return q >= k && equal(segment(b0, q), segment(b0, k)); }, space);
    const Visible visible = [&](auto b0, auto, auto q, auto k) {
      return k <= q && ids[std::size_t(b0 * 40 + q)] == ids[std::size_t(b0 * 40 + k)];
    };
    EXPECT_EQ(decided(classes, space, visible), 2 * (10 + 9)) << "of 15 of each head";
  }
}

TEST(TileClasses, OfLengthsFlagsAndScalars) {
  const MaskSpace space{2, 3, 33, 50};
  const std::vector<std::int32_t> lengths = {50, 20};
  std::vector<std::uint8_t> flags;
  for (int k = 0; k < 3 * 50; ++k) flags.push_back(k / 10 % 2 == 0);
  const Tensor length = Tensor::from(lengths, {2});
  const Classes by_length = classes_of([&](Index b0, Index, Index, Index k) { return k < length(b0); }, space);
  EXPECT_EQ(decided(by_length, space, [&](auto b0, auto, auto, auto k) { return k < lengths[std::size_t(b0)]; }),
            3 * 3 * (6 + 6));
  const Tensor flag = Tensor::from_bytes(flags.data(), DType::boolean, {3, 50});
  const Classes by_flag = classes_of([&](Index, Index h0, Index, Index k) { return flag(h0, k); }, space);
  EXPECT_EQ(decided(by_flag, space, [&](auto, auto h0, auto, auto k) { return flags[std::size_t(h0 * 50 + k)] != 0; }),
            2 * 3 * 3 * 4);
  Scalar window(7);
  for (const double size : {7.0, 0.0, 1e6, 1e30, -5.0}) {
    window.set(size);
    const Classes classes =
        classes_of([&](Index, Index, Index q, Index k) { return q >= k && (q - k < to_integer(window) || k < 8); }, space);
    const int count =
        decided(classes, space, [&](auto, auto, auto q, auto k) { return k <= q && (double(q - k) < size || k < 8); });
    EXPECT_GE(count, 2 * 3 * 12) << size;
  }
}

}  // namespace
}  // namespace weft
