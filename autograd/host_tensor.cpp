#include "autograd/host_tensor.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "jit/error.h"

namespace weft {
namespace {

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, bf16>) {
    return bf16(double(value));
  } else if constexpr (std::is_integral_v<To> && !std::is_same_v<From, To>) {
    // Bounds as reals are exact: -2^(bits-1) and 2^(bits-1).
    constexpr double low = double(std::numeric_limits<To>::min());
    if constexpr (std::is_integral_v<From>) {
      if (!std::in_range<To>(value)) fail(ErrorKind::usage, "value out of range", fmt::format("{}", value));
    } else if (double real = double(value); !(real >= low && real < -low && real == std::trunc(real))) {
      fail(ErrorKind::usage, "not an integer of this type", fmt::format("{}", real));
    }
    return To(value);
  } else {
    return To(value);
  }
}

}  // namespace

std::string dims_text(std::span<const std::int64_t> dims) {
  std::string text = "(";
  for (std::size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + ")";
}

std::int64_t HostTensor::numel() const {
  std::int64_t n = 1;
  for (std::int64_t dim : shape)
    if (dim < 0 || __builtin_mul_overflow(n, dim, &n)) fail(ErrorKind::usage, "not a shape", dims_text(shape));
  return n;
}

template <HostTensorElement T>
std::vector<T> HostTensor::values() const {
  std::vector<T> out(static_cast<std::size_t>(numel()));
  if (bytes.size() != out.size() * size_of(dtype))
    fail(ErrorKind::usage, "tensor has not the bytes of its shape",
         fmt::format("{} {}: {} bytes", name_of(dtype), dims_text(shape), bytes.size()));
  visit_dtype(dtype, [&]<class Stored>(Stored stored) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::memcpy(&stored, bytes.data() + i * sizeof stored, sizeof stored);
      if constexpr (std::is_same_v<Stored, bf16>) {
        out[i] = convert<T>(float(stored));
      } else if constexpr (std::is_same_v<Stored, std::uint8_t>) {
        out[i] = T(stored != 0);
      } else {
        out[i] = convert<T>(stored);
      }
    }
  });
  return out;
}

template <HostTensorElement T>
HostTensor HostTensor::from(DType dtype, std::vector<std::int64_t> shape, std::span<const T> values) {
  HostTensor tensor{dtype, std::move(shape), {}};
  if (tensor.numel() != std::int64_t(values.size()))
    fail(ErrorKind::usage, "tensor has not the values of its shape",
         fmt::format("shape {}, {} values", dims_text(tensor.shape), values.size()));
  tensor.bytes.resize(values.size() * size_of(dtype));
  visit_dtype(dtype, [&]<class Stored>(Stored stored) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      stored = dtype == DType::boolean ? Stored(values[i] != T(0)) : convert<Stored>(values[i]);
      std::memcpy(tensor.bytes.data() + i * sizeof stored, &stored, sizeof stored);
    }
  });
  return tensor;
}

template std::vector<float> HostTensor::values() const;
template std::vector<double> HostTensor::values() const;
template std::vector<std::int64_t> HostTensor::values() const;
template HostTensor HostTensor::from(DType, std::vector<std::int64_t>, std::span<const float>);
template HostTensor HostTensor::from(DType, std::vector<std::int64_t>, std::span<const double>);
template HostTensor HostTensor::from(DType, std::vector<std::int64_t>, std::span<const std::int64_t>);

}  // namespace weft
