// Moving blocks of elements between strided memory and the interpreter's registers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "jit/dtype.h"
#include "jit/expr.h"
#include "jit/interp.h"
#include "jit/rank.h"

namespace weft {

// Typed strided memory. Strides count elements; 0 broadcasts.
struct View {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> dims{};
  std::array<std::int64_t, kMaxRank> strides{};

  std::int64_t numel() const;
  bool contiguous() const;  // row-major without gaps (dims of size 1 may have any stride)
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// Elements [first, first + n) of `view` in row-major order as values of type `type` computed in T (see Program):
// a pointer into memory when no conversion or gathering is needed, else `buffer` (room for kBlock doubles), filled.
template <class T>
const void* read_block(const View& view, ExprType type, std::int64_t first, int n, void* buffer);

// Stores n values (of `type`, computed in T) at elements [first, first + n), rounding to the view's dtype.
template <class T>
void write_block(const View& view, ExprType type, std::int64_t first, int n, const void* values);

// The memory of n elements from `first` on, if they can be written in place (contiguous, same type), else null.
template <class T>
void* direct_block(const View& view, ExprType type, std::int64_t first, int n);

// Merges neighbouring dims that can be walked as one; the element order is unchanged.
View collapse(const View& view);

constexpr ExprType expr_type(DType dtype) {
  return is_real(dtype) ? ExprType::real : is_integer(dtype) ? ExprType::integer : ExprType::boolean;
}

}  // namespace weft
