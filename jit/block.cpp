#include "jit/block.h"

#include <algorithm>
#include <type_traits>

#include "jit/convert.h"

namespace weft {
namespace {

// f(T{}) with the register type of `type`.
template <class T, class F>
decltype(auto) visit_register(ExprType type, F&& f) {
  switch (type) {
    case ExprType::integer:
      return f(std::int64_t{});
    case ExprType::boolean:
      return f(std::uint8_t{});
    case ExprType::real:
      break;
  }
  return f(T{});
}

// Walks a range of elements in row-major order, one run along the innermost dim at a time.
class Walk {
 public:
  Walk(const View& view, std::int64_t first, int n) : view_(view), inner_(std::max(view.rank - 1, 0)), left_(n) {
    for (int d = view.rank - 1; d >= 0; --d) {
      at_[d] = first % view.dims[d], first /= view.dims[d];
      offset_ += at_[d] * view.strides[d];
    }
    measure();
  }

  bool done() const { return left_ == 0; }
  std::int64_t offset() const { return offset_; }
  std::int64_t stride() const { return view_.strides[inner_]; }
  int count() const { return count_; }

  void next() {
    left_ -= count_;
    offset_ -= at_[inner_] * view_.strides[inner_], at_[inner_] = 0;  // to the start of the next row
    for (int d = inner_ - 1; d >= 0; --d) {
      offset_ += view_.strides[d];
      if (++at_[d] < view_.dims[d]) break;
      offset_ -= at_[d] * view_.strides[d], at_[d] = 0;
    }
    measure();
  }

 private:
  void measure() { count_ = view_.rank == 0 ? left_ : int(std::min<std::int64_t>(left_, view_.dims[inner_] - at_[inner_])); }

  const View& view_;
  std::array<std::int64_t, kMaxRank> at_{};
  std::int64_t offset_ = 0;
  int inner_, left_, count_ = 0;
};

template <class To, class From>
void gather(To* to, const From* from, std::int64_t stride, int n) {
  if (stride == 1) {
#pragma omp simd
    for (int j = 0; j < n; ++j) to[j] = value_as<To>(from[j]);
  } else if (stride == 0) {
    std::fill_n(to, n, value_as<To>(*from));
  } else {
    for (int j = 0; j < n; ++j) to[j] = value_as<To>(from[j * stride]);
  }
}

template <class To, class From>
void scatter(To* to, const From* from, std::int64_t stride, int n) {
  if (stride == 1) {
#pragma omp simd
    for (int j = 0; j < n; ++j) to[j] = value_as<To>(from[j]);
  } else {
    for (int j = 0; j < n; ++j) to[j * stride] = value_as<To>(from[j]);
  }
}

// Where elements [first, first + n) lie, if they are neighbours in memory.
template <class S>
S* in_one_piece(const View& view, std::int64_t first, int n) {
  if (view.contiguous()) return view.as<S>() + first;
  Walk walk(view, first, n);
  return walk.stride() == 1 && walk.count() == n ? view.as<S>() + walk.offset() : nullptr;
}

}  // namespace

std::int64_t View::numel() const {
  std::int64_t count = 1;
  for (int d = 0; d < rank; ++d) count *= dims[d];
  return count;
}

bool View::contiguous() const {
  std::int64_t expected = 1;
  for (int d = rank - 1; d >= 0; --d) {
    if (dims[d] != 1 && strides[d] != expected) return false;
    expected *= dims[d];
  }
  return true;
}

template <class T>
const void* read_block(const View& view, ExprType type, std::int64_t first, int n, void* buffer) {
  return visit_register<T>(type, [&]<class R>(R) -> const void* {
    return visit_dtype(view.dtype, [&]<class S>(S) -> const void* {
      if (S* piece = in_one_piece<S>(view, first, n)) {
        if constexpr (std::is_same_v<R, S>) return piece;
        gather(static_cast<R*>(buffer), piece, 1, n);
        return buffer;
      }
      auto* to = static_cast<R*>(buffer);
      for (Walk walk(view, first, n); !walk.done(); to += walk.count(), walk.next()) {
        gather(to, view.as<S>() + walk.offset(), walk.stride(), walk.count());
      }
      return buffer;
    });
  });
}

template <class T>
void write_block(const View& view, ExprType type, std::int64_t first, int n, const void* values) {
  visit_register<T>(type, [&]<class R>(R) {
    visit_dtype(view.dtype, [&]<class S>(S) {
      auto* from = static_cast<const R*>(values);
      if (S* piece = in_one_piece<S>(view, first, n)) {
        if (static_cast<const void*>(piece) != values) scatter(piece, from, 1, n);
        return;
      }
      for (Walk walk(view, first, n); !walk.done(); from += walk.count(), walk.next()) {
        scatter(view.as<S>() + walk.offset(), from, walk.stride(), walk.count());
      }
    });
  });
}

template <class T>
void* direct_block(const View& view, ExprType type, std::int64_t first, int n) {
  return visit_register<T>(type, [&]<class R>(R) {
    return visit_dtype(view.dtype, [&]<class S>(S) -> void* {
      if constexpr (!std::is_same_v<R, S>) return nullptr;
      return in_one_piece<S>(view, first, n);
    });
  });
}

View collapse(const View& view) {
  View merged = view;
  merged.rank = 0, merged.dims = {}, merged.strides = {};
  for (int d = 0; d < view.rank; ++d) {
    if (view.dims[d] == 1) continue;
    int last = merged.rank - 1;
    if (last >= 0 && merged.strides[last] == view.strides[d] * view.dims[d]) {
      merged.dims[last] *= view.dims[d], merged.strides[last] = view.strides[d];
    } else {
      merged.dims[merged.rank] = view.dims[d], merged.strides[merged.rank++] = view.strides[d];
    }
  }
  return merged;
}

template const void* read_block<float>(const View&, ExprType, std::int64_t, int, void*);
template const void* read_block<double>(const View&, ExprType, std::int64_t, int, void*);
template void write_block<float>(const View&, ExprType, std::int64_t, int, const void*);
template void write_block<double>(const View&, ExprType, std::int64_t, int, const void*);
template void* direct_block<float>(const View&, ExprType, std::int64_t, int);
template void* direct_block<double>(const View&, ExprType, std::int64_t, int);

}  // namespace weft
