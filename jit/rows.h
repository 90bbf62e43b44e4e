// Rows of values in memory as values of the compute type: a pointer into memory where the types agree, else converted.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "jit/convert.h"
#include "jit/dtype.h"
#include "jit/memory.h"
#include "jit/parallel.h"
#include "jit/skeleton.h"

namespace weft {

template <class T>
inline constexpr DType dtype_of = std::is_same_v<T, double> ? DType::f64 : DType::f32;

// n contiguous elements from `offset` on as T: in place, or converted into `buffer` (n).
template <class T>
const T* load_row(const std::byte* data, DType dtype, std::int64_t offset, std::int64_t n, T* buffer) {
  if (dtype == dtype_of<T>) return reinterpret_cast<const T*>(data) + offset;
  visit_dtype(dtype, [&]<class S>(S) {
    const S* from = reinterpret_cast<const S*>(data) + offset;
    for (std::int64_t i = 0; i < n; ++i) buffer[i] = value_as<T>(from[i]);
  });
  return buffer;
}

// Rounds n values to `dtype` at `offset`; nothing to do where they already are there.
template <class T>
void store_row(std::byte* data, DType dtype, std::int64_t offset, std::int64_t n, const T* values) {
  visit_dtype(dtype, [&]<class S>(S) {
    S* to = reinterpret_cast<S*>(data) + offset;
    if (static_cast<const void*>(to) == static_cast<const void*>(values)) return;
    for (std::int64_t i = 0; i < n; ++i) to[i] = value_as<S>(values[i]);
  });
}

// An operand whose last dim is contiguous: `row` is the element at which a row starts.
struct Rows {
  std::byte* data = nullptr;  // null: absent
  DType dtype = DType::f32;
  std::int64_t stride = 0;  // elements between rows, where they walk with one stride

  Rows() = default;
  Rows(const Launch& launch, const Operand& operand) {
    if (!operand) return;
    data = launch.view(operand).data;
    dtype = operand.dtype;
    stride = operand.row_stride();
  }
  explicit operator bool() const { return data != nullptr; }

  // Elements [begin, begin + n) of row r.
  template <class T>
  const T* read(std::int64_t r, std::int64_t begin, std::int64_t n, T* buffer) const {
    return load_row(data, dtype, r * stride + begin, n, buffer);
  }
  // Where to compute them: the memory itself, or `buffer`, which `write` then rounds.
  template <class T>
  T* target(std::int64_t r, std::int64_t begin, T* buffer) const {
    return data && dtype == dtype_of<T> ? reinterpret_cast<T*>(data) + r * stride + begin : buffer;
  }
  template <class T>
  void write(std::int64_t r, std::int64_t begin, std::int64_t n, const T* values) const {
    if (data) store_row(data, dtype, r * stride + begin, n, values);
  }
};

// Rows of an input that may be an expression (a prologue), each evaluated when it is read.
template <class T>
class SourceRows {
 public:
  SourceRows(const Launch& launch, const Fused& fused, std::int64_t width) : width_(width) {
    const bool plain = fused.leaves.size() == 1 && fused.roots.size() == 1 && fused.values == 0 &&
                       fused.roots[0].op() == ExprOp::input && fused.leaves[0].rows() &&
                       (fused.leaves[0].rank == 0 || fused.leaves[0].dims[fused.leaves[0].rank - 1] == width);
    if (plain && is_real(fused.leaves[0].dtype))
      rows_ = Rows(launch, fused.leaves[0]);
    else
      runner_ = std::make_unique<Runner<T>>(launch, fused);
    if (!plain || rows_.dtype != dtype_of<T>) buffer_.resize(width);
  }
  // Row r (width), valid until the next call.
  const T* read(std::int64_t r) {
    if (!runner_) return rows_.template read<T>(r, 0, width_, buffer_.data());
    runner_->read(r * width_, width_, buffer_.data());
    return buffer_.data();
  }

 private:
  std::int64_t width_;
  Rows rows_;
  std::unique_ptr<Runner<T>> runner_;
  std::vector<T> buffer_;
};

// y (n) becomes what a hole makes of it; it begins at element `first` of the hole's space.
template <class T>
void run_hole(Runner<T>& hole, std::int64_t first, std::int64_t n, T* y) {
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const void* value = y + i;
    void* result = y + i;
    hole.run(first + i, int(std::min<std::int64_t>(kBlock, n - i)), std::span(&value, 1), std::span(&result, 1));
  }
}

// Long sums: a few terms are added in T, by loops that vectorise, and what they give in double, so that the error does not grow
// with the number of terms.

// The sum of f(i) over i < n, in an order that does not depend on the compiler's vectors.
template <class T, class F>
double long_sum(std::int64_t n, F&& f) {
  constexpr int kBeside = 16, kFew = 8;  // sums beside each other, and the terms of each in T
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBeside * kFew) {
    const std::int64_t end = std::min<std::int64_t>(n, begin + kBeside * kFew);
    T few[kBeside] = {};
    std::int64_t i = begin;
    for (; i + kBeside <= end; i += kBeside) {
#pragma omp simd
      for (int j = 0; j < kBeside; ++j) few[j] += f(i + j);
    }
    for (int j = 0; i < end; ++i, ++j) few[j] += f(i);
    for (const T sum : few) total += double(sum);
  }
  return total;
}

// Sums of `rows` by n values each, every one of many terms.
template <class T>
class LongSums {
 public:
  explicit LongSums(std::int64_t n, std::int64_t rows = 1) : n_(n), few_(std::size_t(n * rows)), total_(few_.size()) {}
  // Where to add one term to each of the sums: (rows, n).
  T* next() {
    constexpr int kFew = 16;
    if (terms_++ == kFew) {
      for (std::size_t i = 0; i < few_.size(); ++i) total_[i] += double(few_[i]), few_[i] = 0;
      terms_ = 1;
    }
    return few_.data();
  }
  // Stores the first n sums of each row, in rows that lie `stride` apart, and begins again from zero.
  void move_to(T* to, std::int64_t n, std::int64_t stride = 0) {
    for (std::size_t first = 0; first < few_.size(); first += std::size_t(n_), to += stride) {
      T* few = few_.data() + first;
      double* total = total_.data() + first;
      for (std::int64_t i = 0; i < n; ++i) to[i] = T(total[i] + double(few[i])), total[i] = 0, few[i] = 0;
    }
    terms_ = 0;
  }

 private:
  std::int64_t n_;
  int terms_ = 0;  // in few_
  std::vector<T> few_;
  std::vector<double> total_;
};

// The gradient of a hole on rows: root 0, the derivative by the hole's value, goes back to the skeleton, the others are stored.
template <class T>
class GradientRows {
 public:
  // `outputs[r]` receives root r, if it is present and r > 0. Where summed[r] is present, root r is also added up over the
  // calls, which then are for the same columns. Rows of the space have `columns`; a call has at most `most` of them.
  GradientRows(const Launch& launch, const Fused& fused, std::span<const Operand> outputs, std::span<const Operand> summed,
               std::int64_t columns, std::int64_t most)
      : runner_(launch, fused),
        columns_(columns),
        lines_(outputs.size(), std::vector<T>(std::size_t(most))),
        results_(outputs.size()),
        sums_(outputs.size()) {
    for (const Operand& o : outputs) outputs_.emplace_back(launch, o);
    for (std::size_t r = 0; r < summed.size(); ++r)
      if (summed[r]) sums_[r].emplace(most);
  }
  // Columns [begin, begin + n) of row `row`; `first`, which may be `upstream` or `value`, receives root 0.
  void run(std::int64_t row, std::int64_t begin, std::int64_t n, const T* value, const T* upstream, T* first) {
    const void* values[] = {value, upstream};
    results_[0] = first;
    for (std::size_t r = 1; r < outputs_.size(); ++r) results_[r] = outputs_[r].target<T>(row, begin, lines_[r].data());
    runner_.run(row * columns_ + begin, int(n), values, results_);
    for (std::size_t r = 0; r < outputs_.size(); ++r) {
      const T* root = static_cast<const T*>(results_[r]);
      if (r > 0) outputs_[r].write(row, begin, n, root);
      if (!sums_[r]) continue;
      T* sum = sums_[r]->next();
      for (std::int64_t c = 0; c < n; ++c) sum[c] += root[c];
    }
  }
  // The sum (most) of root r over the calls; r is one of those summed.
  void store_sum(std::size_t r, T* to) { sums_[r]->move_to(to, std::int64_t(lines_[r].size())); }

 private:
  Runner<T> runner_;
  std::int64_t columns_;
  std::vector<Rows> outputs_;
  std::vector<std::vector<T>> lines_;  // a row of each root that is not computed in place
  std::vector<void*> results_;
  std::vector<std::optional<LongSums<T>>> sums_;
};

// Memory of this thread that lasts until the same thread asks for `Tag` again. Contents are arbitrary.
template <class T, class Tag>
T* thread_scratch(std::size_t count) {
  struct Free {
    void operator()(std::byte* memory) const { deallocate(memory); }
  };
  thread_local std::unique_ptr<std::byte, Free> memory;
  thread_local std::size_t size = 0;
  if (count > size) {
    memory.reset();
    memory.reset(allocate(count * sizeof(T), "a kernel's scratch"));
    size = count;
  }
  return reinterpret_cast<T*>(memory.get());
}

// How many parts of about `grain` units to cut `n` units into: by shape alone, at most `most`.
inline std::int64_t part_count(std::int64_t n, std::int64_t grain, std::int64_t most = 256) {
  return std::clamp<std::int64_t>((n + grain - 1) / std::max<std::int64_t>(grain, 1), n > 0 ? 1 : 0, most);
}

// Part p of [0, n) cut evenly into `parts`.
struct Range {
  std::int64_t begin, end;
};
inline Range part_of(std::int64_t n, std::int64_t parts, std::int64_t p) { return {n * p / parts, n * (p + 1) / parts}; }

// total (n) is folded with `count` arrays of n elements, `stride` apart, one after the other: results of parts are joined in
// this order whoever computed them.
template <class T, class To, class Fold = std::plus<To>>
void fold_parts(const T* parts, std::int64_t count, std::int64_t stride, std::int64_t n, To* total, Fold fold = {}) {
  for (std::int64_t p = 0; p < count; ++p, parts += stride)
    for (std::int64_t i = 0; i < n; ++i) total[i] = fold(total[i], To(parts[i]));
}

// `to`, if it is present, becomes `start` folded, in double, with `count` arrays of its size, `stride` apart.
template <class T, class Fold = std::plus<double>>
void fold_parts(const Launch& launch, const T* parts, std::int64_t count, std::int64_t stride, const Operand& to,
                double start = 0, Fold fold = {}) {
  if (!to) return;
  const View view = launch.view(to);
  const std::int64_t blocks = ceil_div(to.numel(), kBlock);
  const std::int64_t tasks = part_count(blocks, std::max<std::int64_t>(1, 64 / std::max<std::int64_t>(count, 1)));
  parallel(tasks, [&](std::int64_t task) {
    double total[kBlock];
    const Range range = part_of(blocks, tasks, task);
    for (std::int64_t i = range.begin * kBlock; i < std::min(range.end * kBlock, to.numel()); i += kBlock) {
      const auto n = std::min<std::int64_t>(kBlock, to.numel() - i);
      std::fill_n(total, n, start);
      fold_parts(parts + i, count, stride, n, total, fold);
      write_block<double>(view, ExprType::real, i, int(n), total);
    }
  });
}

}  // namespace weft
