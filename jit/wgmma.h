// wgmma, the products of a warpgroup on the tensor cores of sm_90a, as CUDA text.
#pragma once

#include <span>
#include <string>

namespace weft {

// For each width N of these (multiples of 8 from 8 to 256; one may stand there twice) a struct Wgmma<N>, for bf16 added up in
// fp32. In it x is 64 x N, spread over the warpgroup as accumulators of mma.sync m16n8 are over a warp of 16 rows; a and b in
// shared memory are named by matrix descriptors (PTX ISA, "asynchronous warpgroup level matrix instructions").
//   multiply(x, a, b)      x = a b^T       a 64 x 16, b N x 16, features next to each other
//   multiply_add(x, a, b)  x += a b^T
//   weigh(x, w, b)         x += w b        w 64 x 16 in registers as mma.sync's left operand, b 16 x N, columns next to each
//   other
// They only begin the product: fences, commits and waits are the caller's.
std::string wgmma_text(std::span<const int> widths);

}  // namespace weft
