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
  Shape(const std::int64_t* padded, int rank) : rank_(std::int8_t(rank)) { std::memcpy(dims_.data(), padded, sizeof dims_); }
  const std::int64_t* padded() const { return dims_.data(); }

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[i < 0 ? i + rank_ : i]; }  // negative: from the end
  std::int64_t& operator[](int i) { return dims_[i < 0 ? i + rank_ : i]; }
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  std::span<const std::int64_t> dims() const { return {dims_.data(), std::size_t(rank_)}; }
  const std::int64_t* begin() const { return dims_.data(); }
  const std::int64_t* end() const { return dims_.data() + rank_; }
  void push_back(std::int64_t dim);
  Shape first(int n) const { return Shape(dims().first(n)); }
  Shape last(int n) const { return Shape(dims().last(n)); }
  bool operator==(const Shape&) const = default;

 private:
  [[noreturn]] static void fail_rank(std::size_t rank);
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
