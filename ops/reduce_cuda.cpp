// Reductions and softmax on a GPU.
#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "jit/hole_text.h"
#include "jit/parallel.h"
#include "ops/cuda.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

constexpr std::int64_t kSplitRows = 2048;   // so many rows of columns are folded in parts
constexpr std::int64_t kManyBlocks = 1024;  // fill every GPU; a constant, so that results do not depend on its size

DType compute_type(const Lowering& l) { return l.in_double() ? DType::f64 : DType::f32; }

Fused fused_of(const Operand& o) {
  Fused fused;
  fused.roots = {expr::input(0)};
  fused.program = Program(fused.roots);
  fused.leaves = {o};
  return fused;
}

// Without axes of size 1; at least one axis stays.
Operand squeezed(const Operand& o) {
  Operand out = o;
  out.rank = 0;
  out.dims = {}, out.strides = {};
  for (int i = 0; i < o.rank; ++i) {
    if (o.dims[std::size_t(i)] == 1) continue;
    out.dims[std::size_t(out.rank)] = o.dims[std::size_t(i)];
    out.strides[std::size_t(out.rank++)] = o.strides[std::size_t(i)];
  }
  if (out.rank == 0) out.dims[std::size_t(out.rank++)] = 1;
  return out;
}

// The source over fewer axes: without those of size 1, and the last ones, of together `columns` elements, merged as far as
// every leaf walks them as one. Returns the length of the last axis.
std::int64_t merge_columns(Fused& source, const Shape& shape, std::int64_t columns) {
  for (Operand& leaf : source.leaves) {
    leaf = broadcast_to(leaf, shape.dims());
    Operand kept = leaf;
    kept.rank = 0;
    for (int i = 0; i < leaf.rank; ++i) {
      if (shape[i] == 1) continue;
      kept.dims[std::size_t(kept.rank)] = leaf.dims[std::size_t(i)];
      kept.strides[std::size_t(kept.rank++)] = leaf.strides[std::size_t(i)];
    }
    leaf = kept;
  }
  std::int64_t last = 1;
  int axes = 0;  // merged
  for (int i = shape.rank() - 1; i >= 0 && last < columns; --i) {
    if (shape[i] == 1) continue;
    const bool merges = axes == 0 || std::all_of(source.leaves.begin(), source.leaves.end(), [&](const Operand& o) {
                          const auto k = std::size_t(o.rank - 1);
                          return o.strides[k - 1] == o.strides[k] * o.dims[k];
                        });
    if (!merges) break;
    last *= shape[i];
    if (axes++ == 0) continue;
    for (Operand& o : source.leaves) {
      const auto k = std::size_t(--o.rank);
      o.dims[k - 1] = last;
      o.strides[k - 1] = o.strides[k];
    }
  }
  return last;
}

const char* name_of(ReduceKind kind) { return kind == kReduceSum ? "reduce_sum" : "reduce_max"; }

std::int64_t up_to_multiple(std::int64_t n, std::int64_t of) { return (n + of - 1) / of * of; }

// Few long rows are cut into parts, whose results are folded by a second kernel.
void emit_row_reduce(Lowering& l, ReduceKind kind, Fused source, const Shape& shape, ReduceSpace s, const Operand& out) {
  const std::int64_t columns = merge_columns(source, shape, s.reduced);
  const int width = row_width(columns, {&source}, {});
  const RowCut cut = cut_rows(s.reduced, width, 0);
  std::int64_t parts = 1, chunk = s.reduced;
  if (s.reduced >= 32768) {
    parts = std::clamp<std::int64_t>(kManyBlocks / s.outer, 1, s.reduced / 8192);
    chunk = up_to_multiple((s.reduced + parts - 1) / parts, std::int64_t(cut.threads) * width);
    parts = (s.reduced + chunk - 1) / chunk;
  }
  const std::int64_t dims[] = {s.outer, parts};
  const Operand partial = parts > 1 ? l.scratch(compute_type(l), dims) : Operand{}, to = parts > 1 ? partial : out;
  CudaText text = l.text(name_of(kind));
  text.define("KIND", kind).define("WHOLE", columns == s.reduced).elements(shape.numel());
  fused_rows(text, "source", source, Shape{s.outer * s.reduced / columns, columns}.dims());
  text.strided("out", as_rows(squeezed(to)));
  text.integer("tasks", s.outer * parts).integer("parts", parts).integer("chunk", chunk);
  text.integer("reduced", s.reduced).integer("columns", columns);
  l.emit(launch_rows(text, {"ops/rows.cuh", "ops/reduce.cuh", "ops/reduce_rows.cuh"}, cut,
                     (s.outer * parts + cut.rows - 1) / cut.rows));
  if (parts > 1) emit_reduce(l, kind, fused_of(partial), Shape{s.outer, parts}, {s.outer, parts, 1}, out);
}

// A block of a fold over `reduced` rows of `vectors` vectors each, `outer` times: threads along a row, and interleaved strips
// of rows, whose results are folded pairwise. At least four rows a strip; a block reads at least 8 vectors of a row.
struct ColumnCut {
  std::int64_t lanes, strips;
  ColumnCut(std::int64_t outer, std::int64_t reduced, std::int64_t vectors) {
    strips = std::int64_t(std::bit_floor(std::uint64_t(std::clamp<std::int64_t>(reduced / 4, 1, 8))));
    lanes = std::min<std::int64_t>(256 / strips, std::int64_t(std::bit_ceil(std::uint64_t(vectors))));
    if (reduced >= kSplitRows)
      strips = 256 / lanes;
    else
      while (lanes > 8 && strips * 8 <= reduced && outer * ceil_div(vectors, lanes) < 128) lanes /= 2, strips *= 2;
  }
};

void emit_column_reduce(Lowering& l, ReduceKind kind, Fused source, const Shape& shape, ReduceSpace s, const Operand& result) {
  const std::int64_t columns = merge_columns(source, shape, s.inner);
  const Operand out = squeezed(result);
  const int width = std::min(row_width(columns, {&source}, {}), row_width(out.dims[std::size_t(out.rank - 1)], {}, {out}));
  const ColumnCut cut(s.outer, s.reduced, s.inner / width);
  const std::int64_t tiles = ceil_div(s.inner / width, cut.lanes);
  const std::int64_t most =
      s.reduced >= kSplitRows ? std::clamp<std::int64_t>(kManyBlocks / (s.outer * tiles), 1, s.reduced / 128) : 1;
  const std::int64_t chunk = (s.reduced + most - 1) / most, parts = (s.reduced + chunk - 1) / chunk;
  const std::int64_t dims[] = {s.outer, parts, s.inner};
  const Operand partial = parts > 1 ? l.scratch(compute_type(l), dims) : Operand{}, to = parts > 1 ? partial : out;
  CudaText text = l.text(name_of(kind));
  text.define("KIND", kind).define("V", width).define("LANES", cut.lanes).define("STRIPS", cut.strips);
  fused_rows(text, "source", source, Shape{s.outer * s.reduced * (s.inner / columns), columns}.dims());
  text.elements(shape.numel()).strided("out", to);
  text.integer("out_columns", to.dims[std::size_t(to.rank - 1)]).integer("tiles", tiles).integer("parts", parts);
  text.integer("chunk", chunk).integer("reduced", s.reduced).integer("inner", s.inner).integer("columns", columns);
  const std::string body = joined_texts({"ops/reduce.cuh", "ops/reduce_columns.cuh"});
  l.emit(text.launch_text(body, {unsigned(s.outer * parts * tiles), 1, 1}, {unsigned(cut.lanes * cut.strips), 1, 1}));
  if (parts > 1) emit_reduce(l, kind, fused_of(partial), Shape(dims), {s.outer, parts, s.inner}, result);
}

}  // namespace

void emit_fill(Lowering& l, double value, const Operand& to) {
  Fused fused;
  fused.roots = {expr::literal(value)};
  fused.program = Program(fused.roots);
  l.emit_pointwise("fill", fused, to);
}

void emit_reduce(Lowering& l, ReduceKind kind, Fused source, const Shape& shape, ReduceSpace space, const Operand& out) {
  if (space.outer * space.inner == 0) return;
  if (space.reduced == 0) return emit_fill(l, kind == kReduceSum ? 0 : -std::numeric_limits<double>::infinity(), out);
  (space.inner == 1 ? emit_row_reduce : emit_column_reduce)(l, kind, std::move(source), shape, space, out);
}

void emit_sum_of_parts(Lowering& l, std::string name, const Operand& partials, SumOrder order, Operand first, Operand second) {
  if (!first) std::swap(first, second);
  const std::int64_t split = first ? first.numel() : 0, count = split + (second ? second.numel() : 0);
  if (count == 0) return;
  const std::int64_t parts = partials.dims[0], dims[] = {parts, partials.strides[0]};
  int width = int(16 / size_of(partials.dtype));
  for (const Operand& to : {first, second}) {
    if (!to) continue;
    Operand from = dense_operand(partials.slot, partials.dtype, dims);
    from.offset = partials.offset;
    const Operand operands[] = {from, to};
    width = std::min(width, vector_width(std::span(to.dims.data(), std::size_t(to.rank)), operands));
    if (!to.rows()) width = 1;
  }
  const ColumnCut tree(1, parts, split / width);
  const std::int64_t strips = order == kTree ? tree.strips : std::int64_t(order),
                     lanes = order == kTree ? tree.lanes : 256 / strips;
  CudaText text = l.text(std::move(name));
  text.define("V", width).define("LANES", lanes).define("STRIPS", strips).define("PAIRWISE", order == kTree);
  text.pointer("from", partials).integer("parts", parts).integer("stride", dims[1]);
  text.integer("count", count).integer("split", split);
  for (const auto& [which, to] : {std::pair("first", &first), std::pair("second", &second)}) {
    const auto last = std::size_t(std::max(to->rank - 1, 0));
    const bool rows = !*to || to->rows();
    text.pointer(which, *to).integer(fmt::format("{}_columns", which), to->rank ? to->dims[last] : 1);
    text.integer(fmt::format("{}_row", which), !*to ? 0 : rows ? to->row_stride() : to->strides[last - 1]);
    text.integer(fmt::format("{}_col", which), rows ? 1 : to->strides[last]);
  }
  const std::int64_t blocks = ceil_div(count / width, lanes);
  l.emit(text.launch("ops/sum_of_parts.cuh", {unsigned(blocks), 1, 1}, {unsigned(lanes * strips), 1, 1}));
}

// ints: kind, mask of the reduced axes.
void cuda_reduce(Lowering& l) {
  Fused source = l.source(0);
  Shape shape = l.shape(0);
  const ReduceSpace space = canonical(source, shape, std::uint32_t(l.integer(1)));
  emit_reduce(l, ReduceKind(l.integer(0)), std::move(source), shape, space, l.output());
}

// ints: kind.
void cuda_row_function(Lowering& l) {
  static constexpr const char* kNames[] = {"softmax", "log_softmax", "logsumexp"};
  const auto kind = RowKind(l.integer(0));
  const Shape shape = l.shape(0);
  const std::int64_t n = shape[-1], rows = shape.first(shape.rank() - 1).numel();
  const Operand out = l.output();
  if (out.numel() == 0) return;
  const Fused source = l.source(0);
  const int width = kind == kLogsumexp ? row_width(n, {&source}, {}) : row_width(n, {&source}, {out});
  const RowCut cut = cut_rows(n, width, kind == kLogsumexp ? 0 : l.in_double() ? 16 : 32);
  CudaText text = l.text(kNames[kind]);
  fused_rows(text, "source", source, shape.dims());
  text.define("KIND", kind).strided("y", kind == kLogsumexp ? as_rows(out) : out);
  text.integer("n", n).integer("rows", rows);
  l.emit(launch_rows(text, {"ops/rows.cuh", "ops/softmax.cuh"}, cut, (rows + cut.rows - 1) / cut.rows));
}

}  // namespace weft
