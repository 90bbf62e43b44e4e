// Expressions over memory as CUDA functions: what the holes of a skeleton are filled with, and their gradients.
//
// What a function computes is split by what it depends on, so that a skeleton may compute each part where it walks:
//   outer     the coordinates but the last two, and constants: once a block or thread
//   row       and the row: once a row that a thread holds
//   column    and the column, but not the row: once for V neighbouring columns
//   element   the rest, and what is passed in
// By convention the column is the last coordinate, whose neighbours are neighbours in memory, and the row the one before it. An
// address is a 64-bit pointer from the outer coordinates and an offset from row and column: products with the strides, never a
// division.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "jit/cuda_text.h"

namespace weft {

// A space that a kernel walks in flat rows: the function
//   NAME<V>(a, row, col, [const real (&value)[V],...] real (&root)[V], ...)
// of V neighbouring elements of row `row` of the space `dims`, from column `col` on. V > 1 needs vector_width() >= V and a
// column that V divides. Roots that are integers or booleans have arrays of i64 and bool. Leading axes that a leaf does not
// walk as one cost divisions, once a row.
void fused_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const std::int64_t> dims);

// Which coordinates a skeleton walks as rows and as columns; the second pass of a kernel may walk the transpose.
struct HoleAxes {
  int row, column;
};

// A space whose coordinates i0, i1, ... the skeleton knows (those of fused.dims). Prints
//   NAME_outer NAME_outer_at(a, i0, ...)                             of all coordinates but row and column
//   NAME_row NAME_row_at(a, outer, i0, ..., row)
//   NAME_column<V> NAME_column_at<V>(a, outer, i0, ..., column)
//   NAME<V>(a, outer, row part, column part, i0, i1, ..., [values], roots)
//   NAME<V>(a, i0, i1, ..., [values], roots)                         all of it
void hole_text(CudaText& text, std::string_view name, const Fused& fused, HoleAxes axes);
void hole_text(CudaText& text, std::string_view name, const Fused& fused);  // the last two
// The same, and in two parts, so that memory is asked for long before it is needed: what depends on row and column and lies
// along the columns in bf16 or f32 is copied to shared memory by the one, as long as there is not too much of it, and read from
// there by the other. A thread has
// NAME_staged bytes of the block's NAME_staged * THREADS, which begin at a multiple of 16. Also prints
//   NAME_fetch<V, THREADS>(a, outer, row part, column, in, to)       begins copies (cp.async) to the shared address `to`; zeros
//                                                                    unless `in`
//   NAME_staged_at<V, THREADS>(a, outer, row part, column part, i0, ..., [values], roots, from)
// for V of at most 4 and jit/copy_async.cuh before them.
void staged_hole_text(CudaText& text, std::string_view name, const Fused& fused, int width);
// Of a thread: NAME_staged, at most 32; and sizeof(NAME_column<width>), for an fp32 `real`.
struct StagedBytes {
  std::int64_t staged, columns;
};
StagedBytes staged_bytes(const Fused& fused, int width);

// The gradient of a hole takes the hole's value and an upstream gradient; its first root, the derivative by the value, goes
// back to the skeleton. The others are stored, or summed over the rows. Prints
//   NAME_gradients<V>(a, i0, i1, ..., value, upstream, first, sums, stored = true)
//       stores root r in outputs[r], a tensor over the space, where that is present, and adds those with a sum to `sums`, a
//       ColumnSums (jit/hole.cuh) of summed(sums) values; neither if it is not `stored`
//   NAME_store_sums<COLUMNS>(a, sums, column, to)
//       writes the sums of a column to element `to` of each sums[r]
void gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                    std::span<const Operand> sums);
// The same, in parts: those of staged_hole_text(NAME_roots), and
//   NAME_gradients_at<V, THREADS>(a, outer, row part, column part, i0, ..., value, upstream, first, sums, stored, from)
void staged_gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                           std::span<const Operand> sums, int width);
int summed(std::span<const Operand> sums);  // how many are present
// The same over flat rows, without sums: NAME_gradients<V>(a, row, col, value, upstream, first, stored).
void gradients_of_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs);

// Roots over one value, over flat rows, in two steps, so that all of a thread's reads may come before its first store:
//   NAME<V> g; g.make(a, row, col, value); g.store(a, row, col)
// outputs[r], in rows, is where root r is stored.
void guests_of_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs);

// Whether the first root, or one that is stored or summed, needs the hole's value.
bool reads_value(const Fused& fused, std::span<const Operand> outputs, std::span<const Operand> sums);

}  // namespace weft
