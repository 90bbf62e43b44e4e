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

// The gradient of a hole takes the hole's value and an upstream gradient; its first root, the derivative by the value, goes
// back to the skeleton. The others are stored, or summed over the rows. Prints
//   NAME_gradients<V>(a, i0, i1, ..., value, upstream, first, sums, stored = true)
//       stores root r in outputs[r], a tensor over the space, where that is present, and adds those with a sum to `sums`, a
//       ColumnSums (jit/hole.cuh) of summed(sums) values; neither if it is not `stored`
//   NAME_store_sums<COLUMNS>(a, sums, column, to)
//       writes the sums of a column to element `to` of each sums[r]
void gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                    std::span<const Operand> sums);
int summed(std::span<const Operand> sums);  // how many are present
// The same over flat rows, without sums: NAME_gradients<V>(a, row, col, value, upstream, first, stored).
void gradients_of_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs);

// Whether the first root, or one that is stored or summed, needs the hole's value.
bool reads_value(const Fused& fused, std::span<const Operand> outputs, std::span<const Operand> sums);

}  // namespace weft
