// Tensors in host memory: what is loaded, saved and checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "jit/dtype.h"

namespace weft {

// A tensor in host memory: row-major values of `dtype`.
struct HostTensor {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  std::int64_t numel() const;  // an error if it does not fit 64 bits
  // The values converted to T (float, double or std::int64_t). A real that is not an integer has no int64 value: an error.
  template <class T>
  std::vector<T> values() const;
  // Reals are rounded to `dtype`; a value that an integer dtype cannot hold is an error; any nonzero is true.
  template <class T>
  static HostTensor from(DType dtype, std::vector<std::int64_t> shape, std::span<const T> values);
};

std::string dims_text(std::span<const std::int64_t> dims);  // "(8, 512)"

using TensorMap = std::map<std::string, HostTensor>;

}  // namespace weft
