// The launch of kernels over rows (ops/rows.cuh): how many threads a row gets and what they keep in registers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "jit/cuda_text.h"

namespace weft {

struct RowCut {
  int width;         // V: neighbouring columns handled at once
  unsigned threads;  // of a row: a power of two up to a warp, or the block
  unsigned rows;     // of a block
  int held;          // vectors of its row that a thread keeps in registers; 0: the row is read again by every pass
  bool full;         // the threads keep as many columns as a row has: none is asked whether it is inside
};

// Rows of n columns. A thread keeps at most `values` of them (0: the kernel reads a row once, nothing is kept); short rows
// share a block of `block` threads.
RowCut cut_rows(std::int64_t n, int width, int values, unsigned block = 128);

// The vector width over rows of n columns: 16 bytes of the widest operand with rows. Vectors (n) must be aligned to it too.
int row_width(std::int64_t n, std::initializer_list<const Fused*> sources, std::initializer_list<Operand> operands);

// The texts, one after another.
std::string joined_texts(std::initializer_list<std::string_view> files);

// A kernel on `blocks` blocks; the first text is ops/rows.cuh.
CudaKernel launch_rows(CudaText& text, std::initializer_list<std::string_view> files, const RowCut& cut, std::int64_t blocks);

// The operand (...) as (..., 1): each element is a row, so CudaText::strided addresses it by its number.
Operand as_rows(Operand o);

}  // namespace weft
