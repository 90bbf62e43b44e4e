// Tiles of attention against masks evaluated place by place.
#include "jit/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

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
    if (options.longest > 0) EXPECT_LE(walked.longest, std::size_t(options.longest));
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
              if (words) EXPECT_EQ(places[std::size_t(r)][std::size_t(c)], is) << row_tile << " " << column_tile;
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
  // What intervals cannot see, evaluation can: i * i - j * j >= 0 where i >= j.
  EXPECT_EQ(full(causal(), i * i - j * j >= 0), 6);
}

TEST(Tiles, RefusesWhatIsNoTile) {
  const MaskSpace space{1, 3, 64, 64};
  expect_error(ErrorKind::usage, {"24 x 64"}, [&] { tile_lists(causal(), space, {.rows = 24, .columns = 64}); });
  expect_error(ErrorKind::usage, {"16 x 12"}, [&] { tile_lists(causal(), space, {.rows = 16, .columns = 12}); });
  expect_error(ErrorKind::usage, {"no boolean"}, [&] { tile_lists(i + j, space, {.rows = 16, .columns = 16}); });
  expect_error(ErrorKind::usage, {"3 by 2"}, [&] { tile_lists(causal(), space, {.rows = 16, .columns = 16, .heads = 2}); });
}

}  // namespace
}  // namespace weft
