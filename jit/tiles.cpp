#include "jit/tiles.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "jit/error.h"
#include "jit/interp.h"
#include "jit/interval.h"

namespace weft {

using Op = ExprOp;

namespace {

enum class TileKind : std::uint8_t { never, mixed, full };

std::int64_t tiles_of(std::int64_t places, int tile) { return (places + tile - 1) / tile; }

struct Box {  // [first, last) of rows and of columns: of tiles, or of places
  std::int64_t row0, row1, column0, column1;

  std::int64_t rows() const { return row1 - row0; }
  std::int64_t columns() const { return column1 - column0; }
  // Halves of the longer side, the first one before the other: in each row, columns come in their order.
  std::pair<Box, Box> halves() const {
    Box a = *this, b = *this;
    if (rows() >= columns())
      a.row1 = b.row0 = row0 + (rows() + 1) / 2;
    else
      a.column1 = b.column0 = column0 + (columns() + 1) / 2;
    return {a, b};
  }
};

struct GridTile {
  std::int64_t column;
  TileKind kind;
  std::int32_t bits = kEvaluatedTile;
};
using GridRow = std::vector<GridTile>;

bool names(Expr e, int coordinate) {
  const auto nodes = topological(std::span(&e, 1));
  return std::any_of(nodes.begin(), nodes.end(), [&](Expr x) { return x.op() == Op::index && x.index() == coordinate; });
}

// Whether the host can evaluate it: nothing but coordinates and integers, and one value for all of the batch.
bool known_to_host(Expr e) {
  const auto nodes = topological(std::span(&e, 1));
  return !names(e, 0) && std::none_of(nodes.begin(), nodes.end(), [](Expr x) {
    const bool given = x.op() == Op::input || x.op() == Op::slot || x.op() == Op::element || x.op() == Op::load;
    return x.type() == ExprType::real || given;
  });
}

// Mask and guard in the coordinates of rows and columns.
class Mask {
 public:
  Mask(Expr mask, Expr inside, const MaskSpace& space, bool rows_are_keys)
      : space_(space),
        rows_are_keys_(rows_are_keys),
        program_(std::array{given_coordinates(mask), given_coordinates(inside)}),
        state_(program_, nullptr),
        visible_range_(mask),
        inside_range_(inside) {}

  std::int64_t rows() const { return rows_are_keys_ ? space_.keys : space_.queries; }
  std::int64_t columns() const { return rows_are_keys_ ? space_.queries : space_.keys; }

  void take_head(std::int64_t head) { head_ = {double(head), double(head)}; }
  void take_all_heads() { head_ = {0, double(space_.heads - 1)}; }

  struct Classes {
    TileKind visible;
    bool inside;  // certainly, at every place
  };
  Classes operator()(const Box& places) {
    Interval row{double(places.row0), double(places.row1 - 1)}, column{double(places.column0), double(places.column1 - 1)};
    if (rows_are_keys_) std::swap(row, column);
    const Interval bounds[] = {{0, double(space_.batch - 1)}, head_, row, column};
    const Interval visible = visible_range_(bounds);
    if (visible.always_false()) return {TileKind::never, true};
    return {visible.always_true() ? TileKind::full : TileKind::mixed, inside_range_(bounds).always_true()};
  }

  // Of at most kBlock places, row by row; for masks and guards that the host knows.
  struct Values {
    std::array<std::uint8_t, kBlock> visible, inside;
  };
  const Values& evaluate(const Box& places) {
    std::size_t n = 0;
    for (std::int64_t row = places.row0; row < places.row1; ++row)
      for (std::int64_t column = places.column0; column < places.column1; ++column, ++n) rows_[n] = row, columns_[n] = column;
    heads_.fill(std::int64_t(head_.low));
    const void* inputs[] = {heads_.data(), rows_are_keys_ ? columns_.data() : rows_.data(),
                            rows_are_keys_ ? rows_.data() : columns_.data()};
    void* outputs[] = {values_.visible.data(), values_.inside.data()};
    state_.run(inputs, outputs, int(n));
    return values_;
  }

  std::array<std::int64_t, 4> place(std::int64_t row, std::int64_t column) const {
    if (rows_are_keys_) std::swap(row, column);
    return {0, std::int64_t(head_.low), row, column};
  }

 private:
  // Coordinates h, i, j become inputs 0, 1, 2. What the host cannot evaluate is true.
  static Expr given_coordinates(Expr e) {
    if (!known_to_host(e)) return expr::boolean(true);
    const auto input = [](int k) { return expr::input(k, ExprType::integer); };
    return substitute(e, {}, {}, std::array{expr::index(0), input(0), input(1), input(2)});
  }

  MaskSpace space_;
  bool rows_are_keys_;
  Interval head_;
  Program program_;
  Program::State<float> state_;  // no reals in it
  Intervals visible_range_, inside_range_;
  std::array<std::int64_t, kBlock> heads_{}, rows_{}, columns_{};
  Values values_;
};

// ---- words ------------------------------------------------------------------------------------------------------------------

// One tile at a time, evaluated place by place where intervals do not decide.
class Words {
 public:
  Words(Mask& mask, const TileOptions& options, bool check_inside)
      : mask_(mask), options_(options), check_inside_(check_inside), groups_((options.columns + 63) / 64) {
    bits_.resize(std::size_t(options.rows / 16 * groups_ * 32));
  }

  // What the tile turns out to be; a mixed one has words.
  GridTile look(std::int64_t row, std::int64_t column) {
    std::fill(bits_.begin(), bits_.end(), 0u);
    visible_ = 0, all_inside_ = true;
    corner_row_ = row * options_.rows, corner_column_ = column * options_.columns;
    fill({corner_row_, std::min(corner_row_ + options_.rows, mask_.rows()), corner_column_,
          std::min(corner_column_ + options_.columns, mask_.columns())});
    if (visible_ == 0) return {column, TileKind::never};
    if (visible_ == std::int64_t(options_.rows) * options_.columns && all_inside_) return {column, TileKind::full, kFullTile};
    const auto [known, fresh] = places_.try_emplace(bits_, std::int32_t(words_.size()));
    if (fresh) words_.insert(words_.end(), bits_.begin(), bits_.end());
    return {column, TileKind::mixed, known->second};
  }

  std::vector<std::uint32_t> take() && { return std::move(words_); }
  std::optional<std::array<std::int64_t, 4>> outside() const { return outside_; }

 private:
  void fill(const Box& places) {
    const Mask::Classes verdict = mask_(places);
    if (verdict.visible == TileKind::never) return;
    const bool full = verdict.visible == TileKind::full && (verdict.inside || !check_inside_);
    if (!full && places.rows() * places.columns() > kBlock) {
      const auto [first, second] = places.halves();
      return fill(first), fill(second);
    }
    all_inside_ = all_inside_ && (verdict.inside || check_inside_);
    if (!full) return evaluate(places);
    for (std::int64_t row = places.row0; row < places.row1; ++row)
      for (std::int64_t column = places.column0; column < places.column1; ++column) set(row, column);
  }

  void evaluate(const Box& places) {
    const Mask::Values& values = mask_.evaluate(places);
    std::size_t k = 0;
    for (std::int64_t row = places.row0; row < places.row1; ++row) {
      for (std::int64_t column = places.column0; column < places.column1; ++column, ++k) {
        if (!values.visible[k]) continue;
        set(row, column);
        if (check_inside_ && !values.inside[k] && !outside_) outside_ = mask_.place(row, column);
      }
    }
  }

  void set(std::int64_t row, std::int64_t column) {
    const auto r = std::size_t(row - corner_row_), c = std::size_t(column - corner_column_);
    bits_[(r / 16 * std::size_t(groups_) + c / 64) * 32 + r % 8 * 4 + c % 8 / 2] |=
        1u << (c % 64 / 8 * 4 + r % 16 / 8 * 2 + c % 2);
    ++visible_;
  }

  Mask& mask_;
  const TileOptions& options_;
  bool check_inside_;  // the host can evaluate it
  int groups_;
  std::int64_t corner_row_ = 0, corner_column_ = 0, visible_ = 0;
  bool all_inside_ = true;
  std::vector<std::uint32_t> bits_, words_;
  std::map<std::vector<std::uint32_t>, std::int32_t> places_;
  std::optional<std::array<std::int64_t, 4>> outside_;
};

// ---- classes ----------------------------------------------------------------------------------------------------------------

// All tiles of one head, or of all of them, from large boxes down.
class Grid {
 public:
  Grid(Mask& mask, const TileOptions& options)
      : mask_(mask), options_(options), rows_(std::size_t(tiles_of(mask.rows(), options.rows))) {
    const std::int64_t columns = tiles_of(mask.columns(), options.columns);
    if (!rows_.empty() && columns > 0) classify({0, std::ssize(rows_), 0, columns});
  }

  std::int64_t mixed() const { return mixed_; }
  std::vector<GridRow> take() && { return std::move(rows_); }

 private:
  void classify(const Box& tiles) {
    const auto [visible, inside] =
        mask_({tiles.row0 * options_.rows, std::min(tiles.row1 * options_.rows, mask_.rows()), tiles.column0 * options_.columns,
               std::min(tiles.column1 * options_.columns, mask_.columns())});
    if (visible == TileKind::never) return;
    const bool one = tiles.rows() == 1 && tiles.columns() == 1;
    if ((visible == TileKind::full && inside) || one) {
      add(tiles, inside ? visible : TileKind::mixed);
    } else {
      const auto [first, second] = tiles.halves();
      classify(first), classify(second);
    }
  }

  void add(const Box& tiles, TileKind kind) {
    for (std::int64_t row = tiles.row0; row < tiles.row1; ++row) {
      for (std::int64_t column = tiles.column0; column < tiles.column1; ++column) {
        const bool whole = (row + 1) * options_.rows <= mask_.rows() && (column + 1) * options_.columns <= mask_.columns();
        const bool full = kind == TileKind::full && whole;
        rows_[std::size_t(row)].push_back(full ? GridTile{column, kind, kFullTile} : GridTile{column, TileKind::mixed});
        mixed_ += !full;
      }
    }
  }

  Mask& mask_;
  const TileOptions& options_;
  std::vector<GridRow> rows_;
  std::int64_t mixed_ = 0;
};

// ---- lists ------------------------------------------------------------------------------------------------------------------

// The list of one block of heads: heads[u][row]. Entries are numbered from 0.
struct List {
  std::vector<std::vector<TileItem>> items;  // one for each head
  std::vector<TileEntry> entries;
  std::vector<TileSum> sums;
  int parts = 0;

  std::vector<std::int32_t> key() const {  // equal lists have equal keys
    std::vector<std::int32_t> all;
    for (const auto& item : items)
      for (const TileItem& i : item) all.insert(all.end(), {i.tile, i.first, i.last, i.part});
    for (const TileEntry& e : entries) all.insert(all.end(), {e.tile, e.bits});
    return all;
  }
};

int longest_run(const TileOptions& options, std::span<const std::vector<GridRow>> heads) {
  if (options.longest != kBalanced) return options.longest;
  std::size_t entries = 0, rows = 0;
  for (const auto& head : heads)
    for (const GridRow& row : head) entries += row.size(), ++rows;
  return int(std::max<std::size_t>(8, rows == 0 ? 0 : (2 * entries + rows - 1) / rows));
}

// Run k of n of one tile of rows.
TileItem add_run(List& list, const GridRow& row, std::int64_t tile, std::size_t k, std::size_t n, std::int32_t part) {
  const auto first = std::int32_t(list.entries.size());
  for (std::size_t at = row.size() * k / n; at < row.size() * (k + 1) / n; ++at)
    list.entries.push_back({std::int32_t(row[at].column), row[at].bits});
  return {std::int32_t(tile), first, std::int32_t(list.entries.size()), part};
}

List make_list(const TileOptions& options, std::span<const std::vector<GridRow>> heads) {
  List list;
  const int most = longest_run(options, heads);
  for (std::size_t row = 0; row < heads[0].size(); ++row) {
    std::size_t entries = 0;
    for (const auto& head : heads) entries = std::max(entries, head[row].size());
    const std::size_t runs = most <= 0 || entries == 0 ? 1 : (entries + std::size_t(most) - 1) / std::size_t(most);
    if (runs > 1) list.sums.push_back({std::int32_t(row), list.parts, list.parts + int(runs)});
    for (std::size_t k = 0; k < runs; ++k) {
      const std::int32_t part = runs > 1 ? list.parts++ : -1;
      auto& item = list.items.emplace_back();
      for (const auto& head : heads) item.push_back(add_run(list, head[row], std::int64_t(row), k, runs, part));
    }
  }
  const auto work = [](const std::vector<TileItem>& item) {
    std::int64_t n = 0;
    for (const TileItem& i : item) n += i.last - i.first;
    return n;
  };
  std::stable_sort(list.items.begin(), list.items.end(), [&](const auto& a, const auto& b) { return work(a) > work(b); });
  return list;
}

// Places distinct lists one after the other, filled up to the same number of items.
void join(TileLists& to, std::span<const List> lists) {
  to.lists = int(lists.size());
  for (const List& list : lists) {
    to.item_count = std::max(to.item_count, int(list.items.size()));
    to.sum_count = std::max(to.sum_count, int(list.sums.size()));
    to.part_count = std::max(to.part_count, list.parts);
  }
  for (const List& list : lists) {
    const auto base = std::int32_t(to.entries.size());
    to.entries.insert(to.entries.end(), list.entries.begin(), list.entries.end());
    for (const auto& item : list.items)
      for (const TileItem& i : item) to.items.push_back({i.tile, base + i.first, base + i.last, i.part});
    const std::size_t absent = (std::size_t(to.item_count) - list.items.size()) * std::size_t(to.heads);
    to.items.insert(to.items.end(), absent, TileItem{-1, base, base, -1});
    to.sums.insert(to.sums.end(), list.sums.begin(), list.sums.end());
    to.sums.insert(to.sums.end(), std::size_t(to.sum_count) - list.sums.size(), TileSum{-1, 0, 0});
  }
}

void check(Expr mask, const MaskSpace& space, const TileOptions& options) {
  if (mask.type() != ExprType::boolean) fail(ErrorKind::usage, "tile_lists: the mask is no boolean", to_string(mask));
  if (options.rows <= 0 || options.columns <= 0 || (options.words && (options.rows % 16 != 0 || options.columns % 8 != 0)))
    fail(ErrorKind::usage, "tile_lists: no such tile", std::to_string(options.rows) + " x " + std::to_string(options.columns));
  if (options.heads <= 0 || space.heads % options.heads != 0)
    fail(ErrorKind::usage, "tile_lists: heads do not divide",
         std::to_string(space.heads) + " by " + std::to_string(options.heads));
}

}  // namespace

TileLists tile_lists(Expr mask, const MaskSpace& space, const TileOptions& options, Expr inside) {
  check(mask, space, options);
  Mask both(mask, inside, space, options.rows_are_keys);
  const bool by_head = names(mask, 1) || names(inside, 1);
  const auto take = [&](std::int64_t head) { by_head ? both.take_head(head) : both.take_all_heads(); };

  std::vector<std::vector<GridRow>> heads;
  std::int64_t mixed = 0;
  for (std::int64_t head = 0; head < (by_head ? space.heads : 1); ++head) {
    take(head);
    Grid grid(both, options);
    mixed += grid.mixed();
    heads.push_back(std::move(grid).take());
  }

  TileLists made;
  made.evaluated = !options.words || !known_to_host(mask) || mixed > kMostWordTiles;
  if (!made.evaluated) {
    Words words(both, options, known_to_host(inside));
    for (std::size_t head = 0; head < heads.size(); ++head) {
      take(std::int64_t(head));
      for (std::size_t row = 0; row < heads[head].size(); ++row) {
        for (GridTile& tile : heads[head][row])
          if (tile.kind == TileKind::mixed) tile = words.look(std::int64_t(row), tile.column);
        std::erase_if(heads[head][row], [](const GridTile& tile) { return tile.kind == TileKind::never; });
      }
    }
    made.outside = words.outside();
    made.words = std::move(words).take();
  }

  made.heads = by_head ? options.heads : 1;
  std::vector<List> lists;
  std::map<std::vector<std::int32_t>, std::int32_t> known;
  for (std::size_t first = 0; first < heads.size(); first += std::size_t(made.heads)) {
    List list = make_list(options, std::span(heads).subspan(first, std::size_t(made.heads)));
    const auto [at, fresh] = known.try_emplace(list.key(), std::int32_t(lists.size()));
    if (fresh) lists.push_back(std::move(list));
    made.list_of.push_back(at->second);
  }
  join(made, lists);
  return made;
}

// ---- what only the kernel knows ---------------------------------------------------------------------------------------------

namespace {

// Which coordinates a leaf depends on: bit c for coordinate c.
unsigned footprint(const Operand& leaf) {
  unsigned set = 0;
  for (int c = 0; c < leaf.rank; ++c) set |= unsigned(leaf.dims[std::size_t(c)] > 1 && leaf.strides[std::size_t(c)] != 0) << c;
  return set;
}

// Bounds of the leaves of a mask in a pair of tiles.
class LeafBounds {
 public:
  LeafBounds(const Fused& mask, std::array<int, 2> tiles, TileClass& to) : mask_(mask), tiles_(tiles), to_(to) {}

  SymbolicInterval operator()(Expr leaf) {
    if (leaf.op() == Op::index) return of_coordinate(int(leaf.index()));
    if (leaf.op() != Op::input) return {};
    const Operand& operand = mask_.leaves[std::size_t(leaf.index())];
    const double largest = leaf.type() == ExprType::boolean ? 1 : size_of(operand.dtype) <= 4 ? 0x1p31 : 0x1p63;
    switch (footprint(operand) >> 2) {
      case 0:
        return {leaf, leaf, largest};
      case 1:
      case 2:
        return in_tile(leaf, footprint(operand) >> 2 == 1 ? 2 : 3, largest);
      default:
        return {};
    }
  }

 private:
  static constexpr double kLargestSize = 0x1p40;  // of a tensor

  SymbolicInterval of_coordinate(int c) const {
    if (c < 2) return {expr::index(c), expr::index(c), kLargestSize};
    const int places = tiles_[std::size_t(c - 2)];
    const Expr first = expr::index(c) * places;
    return {first, first + (places - 1), kLargestSize};
  }

  SymbolicInterval in_tile(Expr leaf, int coordinate, double largest) {
    const auto known = [&](const TileRange& r) { return r.leaf == leaf.index(); };
    auto at = std::find_if(to_.ranges.begin(), to_.ranges.end(), known);
    if (at == to_.ranges.end())
      at = to_.ranges.insert(at, {int(leaf.index()), coordinate, tiles_[std::size_t(coordinate - 2)]});
    const int first = to_.inputs + 2 * int(at - to_.ranges.begin());
    const Expr low = expr::input(first, ExprType::integer), high = expr::input(first + 1, ExprType::integer);
    if (leaf.type() == ExprType::boolean) return {not_equal(low, 0), not_equal(high, 0), largest};
    return {low, high, largest};
  }

  const Fused& mask_;
  std::array<int, 2> tiles_;
  TileClass& to_;
};

}  // namespace

TileClass tile_class(const Fused& mask, int queries, int keys, Expr inside) {
  TileClass made;
  made.inputs = int(mask.leaves.size());
  LeafBounds bounds(mask, {queries, keys}, made);
  const Verdict visible = verdict_of(mask.roots[0], std::ref(bounds));
  made.never = visible.never;
  made.always = visible.always && verdict_of(inside, std::ref(bounds)).always;
  return made;
}

std::array<std::int64_t, 4> ranges_dims(const Operand& leaf, const TileRange& range) {
  const auto size = [&](std::size_t c) { return footprint(leaf) >> c & 1 ? leaf.dims[c] : 1; };
  return {size(0), size(1), tiles_of(leaf.dims[std::size_t(range.coordinate)], range.tile), 2};
}

void make_ranges(const Launch& launch, const Operand& leaf, const TileRange& range, const Operand& to) {
  const std::size_t axis = std::size_t(range.coordinate);
  std::int64_t* next = launch.pointer<std::int64_t>(to);
  const auto add_row = [&](const auto* values) {
    for (std::int64_t first = 0; first < leaf.dims[axis]; first += range.tile, next += 2) {
      const std::int64_t end = std::min(first + range.tile, leaf.dims[axis]);
      next[0] = next[1] = std::int64_t(values[first * leaf.strides[axis]]);
      for (std::int64_t at = first; at < end; ++at) {
        const auto value = std::int64_t(values[at * leaf.strides[axis]]);
        next[0] = std::min(next[0], value), next[1] = std::max(next[1], value);
      }
    }
  };
  visit_dtype(leaf.dtype, [&]<class T>(T) {
    if constexpr (std::integral<T>)
      for (std::int64_t b = 0; b < to.dims[0]; ++b)
        for (std::int64_t h = 0; h < to.dims[1]; ++h)
          add_row(launch.pointer<const T>(leaf) + b * leaf.strides[0] + h * leaf.strides[1]);
  });
}

CudaKernel ranges_cuda(const Operand& leaf, const TileRange& range, const Operand& to) {
  constexpr unsigned kWarps = 4;
  const std::size_t axis = std::size_t(range.coordinate);
  const std::int64_t count = to.dims[0] * to.dims[1] * to.dims[2];
  CudaText text("tile_ranges", false);
  text.define("WARPS", kWarps).type("Element", leaf.dtype).source("x", leaf).pointer("to", to);
  text.integer("count", count).integer("tiles", to.dims[2]).integer("heads", to.dims[1]);
  text.integer("batch_step", leaf.strides[0]).integer("head_step", leaf.strides[1]).integer("step", leaf.strides[axis]);
  text.integer("tile", range.tile).integer("places", leaf.dims[axis]);
  return text.launch("jit/tile_ranges.cuh", {unsigned((count + kWarps - 1) / kWarps), 1, 1}, {32 * kWarps, 1, 1});
}

Fused tile_class_hole(const TileClass& kind, const Fused& mask, int queries, int keys, std::span<const Operand> ranges) {
  Fused made;
  made.roots = {kind.never, kind.always};
  made.constants = mask.constants, made.tables = mask.tables, made.dims = mask.dims;
  made.dims[2] = tiles_of(mask.dims[2], queries), made.dims[3] = tiles_of(mask.dims[3], keys);
  const auto over_tiles = [&](Operand leaf) {
    std::copy(made.dims.begin(), made.dims.end(), leaf.dims.begin());
    leaf.rank = int(made.dims.size());
    return leaf;
  };
  for (const Operand& leaf : mask.leaves) made.leaves.push_back(over_tiles(leaf));
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    Operand leaf = ranges[r];
    for (std::size_t c = 0; c < 2; ++c)
      if (leaf.dims[c] == 1) leaf.strides[c] = 0;
    const std::int64_t tile = leaf.strides[2], largest = leaf.strides[3];
    leaf.strides[2] = kind.ranges[r].coordinate == 2 ? tile : 0;
    leaf.strides[3] = kind.ranges[r].coordinate == 3 ? tile : 0;
    made.leaves.push_back(over_tiles(leaf));
    leaf.offset += largest;
    made.leaves.push_back(over_tiles(leaf));
  }
  made.program = Program(made.roots);
  return made;
}

}  // namespace weft
