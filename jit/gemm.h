// GEMM on the CPU: OpenBLAS through CBLAS, cut into parts that depend on the shape alone and computed with one library
// thread each. So results are bit-equal for any number of threads, at full speed on all of them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "jit/dtype.h"
#include "jit/skeleton.h"

namespace weft {

// A matrix read with any strides (elements). It is used in place when its dtype is the compute type and one of the
// strides is 1; else panels of it are converted.
struct GemmInput {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t row_stride = 0, col_stride = 1;
  GemmInput transposed() const { return {data, dtype, col_stride, row_stride}; }
};

struct GemmOutput {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t row_stride = 0;  // columns are contiguous
};

// What each element of a result goes through before it is rounded.
enum class Activation : std::uint8_t { none, relu, gelu_tanh };
std::string_view name_of(Activation activation);

// What is computed besides the product: C = activation(alpha A B + beta D + bias). With k = 0 the product is 0.
struct GemmOptions {
  double alpha = 1, beta = 0;       // with beta = 0 D is not read
  GemmInput addend = {};            // D (m, n), with contiguous columns; without data it is C
  const std::byte* bias = nullptr;  // (n), dense: added to every row
  DType bias_dtype = DType::f32;
  Activation activation = Activation::none;
};

// A (m, k) B (k, n) -> C (m, n), computed in T (float or double); a bf16 C is rounded once.
template <class T>
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const GemmInput& a, const GemmInput& b, const GemmOutput& c,
          const GemmOptions& options = {});

// One product for each batch element, whose operands begin at these element offsets from a, b, c and the addend. The elements
// of c must not overlap.
struct GemmOffsets {
  std::int64_t a, b, c, addend = 0;
};
template <class T>
void gemm_batched(std::span<const GemmOffsets> batch, std::int64_t m, std::int64_t n, std::int64_t k, const GemmInput& a,
                  const GemmInput& b, const GemmOutput& c, const GemmOptions& options = {});

}  // namespace weft
