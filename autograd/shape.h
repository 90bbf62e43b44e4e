// Shapes: at most kMaxRank static sizes, row-major.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>

#include "jit/dtype.h"
#include "jit/rank.h"

namespace weft {

class Shape {
 public:
  Shape() = default;  // a scalar: rank 0, one element
  Shape(std::initializer_list<std::int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const std::int64_t> dims) {
    if (dims.size() > kMaxRank) fail_rank(dims.size());
    rank_ = std::int8_t(dims.size());
    for (std::size_t i = 0; i < dims.size(); ++i) dims_[i] = dims[i];
  }

  // All kMaxRank sizes, those beyond the rank 0: how nodes hold them.
  static Shape from_padded(const std::int64_t* padded, int rank) {
    Shape shape;
    shape.rank_ = std::int8_t(rank);
    std::memcpy(shape.dims_.data(), padded, sizeof shape.dims_);
    return shape;
  }
  const std::int64_t* padded() const { return dims_.data(); }

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[axis(i)]; }  // negative: from the end; an error if there is no such axis
  std::int64_t& operator[](int i) { return dims_[axis(i)]; }
  std::int64_t numel() const {  // an error if it does not fit 64 bits
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i)
      if (__builtin_mul_overflow(n, dims_[i], &n)) [[unlikely]]
        fail_numel();
    return n;
  }
  // What is wrong with it as the shape of a tensor: a negative size, more elements than a tensor can have; or null.
  const char* fault() const {
    std::int64_t n = 1;
    bool negative = false, large = false;
    for (int i = 0; i < rank_; ++i) {
      negative |= dims_[i] < 0;
      large |= __builtin_mul_overflow(n, dims_[i], &n);
    }
    if (!negative && !large && n <= kMostElements) [[likely]]
      return nullptr;
    return negative ? "a size is negative" : "it has too many elements";
  }
  std::span<const std::int64_t> dims() const { return {dims_.data(), std::size_t(rank_)}; }
  const std::int64_t* begin() const { return dims_.data(); }
  const std::int64_t* end() const { return dims_.data() + rank_; }
  void push_back(std::int64_t dim);
  Shape first(int n) const { return Shape(dims().first(count(n))); }
  Shape last(int n) const { return Shape(dims().last(count(n))); }
  bool operator==(const Shape&) const = default;

 private:
  static constexpr std::int64_t kMostElements = std::int64_t(1) << 59;  // their bytes fit 63 bits in every type

  std::size_t axis(int i) const {
    const int from_start = i < 0 ? i + rank_ : i;
    if (from_start < 0 || from_start >= rank_) [[unlikely]]
      fail_axis(i);
    return std::size_t(from_start);
  }
  std::size_t count(int n) const {
    if (n < 0 || n > rank_) [[unlikely]]
      fail_axis(n);
    return std::size_t(n);
  }
  [[noreturn]] static void fail_rank(std::size_t rank);
  [[noreturn]] void fail_axis(int i) const;
  [[noreturn]] void fail_numel() const;
  std::int8_t rank_ = 0;
  std::array<std::int64_t, kMaxRank> dims_{};
};

// The common shape of right-aligned broadcasting; false if there is none.
bool broadcast_shapes(const Shape& a, const Shape& b, Shape* out);
bool broadcasts_to(const Shape& from, const Shape& to);
std::string to_string(const Shape& shape);  // "(8, 512)"
// Of a dense value.
inline std::size_t bytes_of(const Shape& shape, DType dtype) { return std::size_t(shape.numel()) * size_of(dtype); }

}  // namespace weft
