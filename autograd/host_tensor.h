// Tensors in host memory: what is loaded, saved and checked.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "jit/dtype.h"

namespace weft {

template <class T>
concept HostTensorElement = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, std::int64_t>;

// A tensor in host memory: row-major values of `dtype`.
struct HostTensor {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  std::int64_t numel() const;                                      // an error if it does not fit 64 bits
  bool described() const { return bytes.empty() && numel() > 0; }  // its values have not been read: it has no bytes
  // The values converted to T. A real that is not an integer has no int64 value: an error.
  template <HostTensorElement T>
  std::vector<T> values() const;
  // Reals are rounded to `dtype`; a value that an integer dtype cannot hold is an error; any nonzero is true.
  template <HostTensorElement T>
  static HostTensor from(DType dtype, std::vector<std::int64_t> shape, std::span<const T> values);
};

std::string dims_text(std::span<const std::int64_t> dims);  // "(8, 512)"

using TensorMap = std::map<std::string, HostTensor>;

}  // namespace weft
