// Tiles of attention: which pairs of a tile of queries and a tile of keys a kernel visits, made from the mask by interval
// arithmetic. A tile of which no place is visible is not in a list, a full one needs no test, the others are mixed.
//
// A mask is a boolean expression of index 0, 1, 2, 3: batch, head, query, key (b, h, i, j). What the host does not know (slots,
// captured tensors) may have any value: such a tile is mixed, and a list holds every tile that may have a visible place.
//
// A kernel *owns* tiles of one side, the rows, and walks the tiles of the other side, the columns. Rows are queries in the
// forward pass and for dQ, keys for dK and dV.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "jit/cuda_text.h"
#include "jit/expr.h"
#include "jit/skeleton.h"

namespace weft {

struct MaskSpace {
  std::int64_t batch, heads, queries, keys;
};

// What a kernel reads: arrays of these (int4, int2, int4).

// A piece of work: the columns of one tile of rows, or a run of them.
struct TileItem {
  std::int32_t tile;         // of rows; -1: no work
  std::int32_t first, last;  // its entries are [first, last); none: no place of the rows is visible
  std::int32_t part;         // which of the partial sums it writes; -1: it has all columns of the tile
};

struct TileEntry {
  std::int32_t tile;  // of columns, ascending within an item
  std::int32_t bits;  // kFullTile, kEvaluatedTile, or the place in `words` where the tile's words begin
};
constexpr std::int32_t kFullTile = -1;       // every place of it is visible and inside of the space
constexpr std::int32_t kEvaluatedTile = -2;  // the kernel evaluates the mask, the edges of the space as well

// The partial sums that belong to one tile of rows, to be added in ascending order.
struct TileSum {
  std::int32_t tile;  // of rows; -1: none
  std::int32_t first, last;
  std::int32_t unused = 0;
};

struct TileOptions {
  int rows, columns;           // places of a tile; with words, rows are a multiple of 16 and columns of 8
  bool rows_are_keys = false;  // else queries
  int heads = 1;               // that an item of a kernel walks one after the other: those that share keys, for dK and dV
  int longest = 0;             // entries of an item, beyond which a tile is cut into runs. 0: never; kBalanced: see below
  bool words = true;           // else every mixed tile is evaluated
};
// A tile is cut where it has more than twice the average, and more than 8 entries: the keys that every query sees, of a mask
// whose other keys few queries see. A causal mask is not cut.
constexpr int kBalanced = -1;

struct TileLists {
  // Blocks of heads, each of `heads` neighbours: list_of[block]. A mask that does not name the head has one list for all, and
  // list_of one element; `heads` is then 1, as an item's heads share its entries. Lists that are equal are there once.
  std::vector<std::int32_t> list_of;
  int lists = 0, heads = 1;
  int item_count = 0, sum_count = 0, part_count = 0;  // the most of any list
  std::vector<TileItem> items;                        // (lists, item_count, heads), those with most entries first
  std::vector<TileEntry> entries;
  std::vector<TileSum> sums;  // (lists, sum_count)
  // Of mixed tiles, in the order of the accumulators of mma.sync m16n8 and of wgmma. The word of 16 rows and 64 columns that
  // lane l of a warp reads, where row and column are those of the tile:
  //   words[bits + (row / 16 * groups + column / 64) * 32 + l]     groups = ceil(columns / 64)
  //   l = row % 8 * 4 + column % 8 / 2
  //   bit column % 64 / 8 * 4 + row % 16 / 8 * 2 + column % 2
  // So bit 4 n + e belongs to element e of the n-th of the accumulators: rows l / 4 (e < 2) and l / 4 + 8, columns 8 n +
  // 2 (l % 4) + e % 2. Places outside of the space are 0. Equal tiles share their words.
  std::vector<std::uint32_t> words;
  bool evaluated = false;  // mixed tiles are kEvaluatedTile
  // The first place (b, h, i, j) that is visible and where `inside` is false, if the host could look.
  std::optional<std::array<std::int64_t, 4>> outside;

  std::int32_t list(std::int64_t block) const { return list_of[list_of.size() == 1 ? 0 : std::size_t(block)]; }
};

// The lists of a mask. It has words if it holds coordinates and integers alone and does not name the batch, and at most
// kMostWordTiles tiles are mixed. `inside` is what must be so at every visible place (that subscripts lie inside of their
// tensors): a full tile needs it everywhere.
TileLists tile_lists(Expr mask, const MaskSpace& space, const TileOptions& options, Expr inside = expr::boolean(true));
constexpr std::int64_t kMostWordTiles = 65536;

// ---- what only the kernel knows ---------------------------------------------------------------------------------------------

// The smallest and the largest value that a captured tensor has in a tile, at the places inside of the space.
struct TileRange {
  int leaf;        // of the mask, integers or booleans that depend on one of query and key
  int coordinate;  // which: 2 or 3
  int tile;        // places
};

// The class of a pair of tiles when the kernel runs, for masks that read Scalars or captured tensors. Both roots are booleans
// over index 0, 1, 2, 3: batch, head, tile of queries, tile of keys. Slots and inputs are those of the mask, of which there are
// `inputs`; input inputs + 2 r and the next are smallest and largest of ranges[r], as integers. A tile of which neither is true
// is mixed. The edges of the space are not looked at: a tile that reaches over them is not full.
struct TileClass {
  Expr never, always;
  int inputs = 0;
  std::vector<TileRange> ranges;
};
// `mask`: a hole over the space (b, h, i, j) without values. `queries`, `keys`: places of a tile. `inside` as in tile_lists,
// with the leaves of the mask.
TileClass tile_class(const Fused& mask, int queries, int keys, Expr inside = expr::boolean(true));
// Makes a range of `leaf`, over the space of the mask: `to` is dense, i64, of the shape ranges_dims(...), (b, h, tiles, 2),
// smallest before largest; an axis that the leaf does not depend on has size 1.
std::array<std::int64_t, 4> ranges_dims(const Operand& leaf, const TileRange& range);
void make_ranges(const Launch& launch, const Operand& leaf, const TileRange& range, const Operand& to);
CudaKernel ranges_cuda(const Operand& leaf, const TileRange& range, const Operand& to);
// The class as a hole over the space (b, h, tiles of queries, tiles of keys) with the roots never and always, by these ranges.
Fused tile_class_hole(const TileClass& kind, const Fused& mask, int queries, int keys, std::span<const Operand> ranges);

}  // namespace weft
