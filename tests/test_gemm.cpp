// The cut GEMM against three loops: shapes, strides, dtypes, and the same bits for any number of threads.
#include "jit/gemm.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "jit/parallel.h"

namespace weft {
namespace {

// A matrix with gaps between rows and columns, and the GemmInput that reads it.
template <class S>
struct Matrix {
  std::int64_t row_stride, col_stride;
  std::vector<S> values;
  Matrix(std::int64_t rows, std::int64_t columns, std::int64_t rs, std::int64_t cs, int seed)
      : row_stride(rs), col_stride(cs), values(std::size_t(std::max<std::int64_t>(1, rows * rs + columns * cs + 1))) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (S& v : values) v = S(normal(random));
  }
  double at(std::int64_t i, std::int64_t j) const { return double(values[std::size_t(i * row_stride + j * col_stride)]); }
  GemmInput input() const {
    const DType dtype = std::is_same_v<S, double> ? DType::f64 : std::is_same_v<S, bf16> ? DType::bf16 : DType::f32;
    return {reinterpret_cast<const std::byte*>(values.data()), dtype, row_stride, col_stride};
  }
};

template <class A, class B>
std::vector<double> naive(const Matrix<A>& a, const Matrix<B>& b, std::int64_t m, std::int64_t n, std::int64_t k) {
  std::vector<double> c(std::size_t(m * n));
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t p = 0; p < k; ++p)
      for (std::int64_t j = 0; j < n; ++j) c[std::size_t(i * n + j)] += a.at(i, p) * b.at(p, j);
  return c;
}

struct Threads {  // restores the number of threads
  int before = threads();
  ~Threads() { set_threads(before); }
};

struct Sizes {
  std::int64_t m, n, k;
};
const Sizes kSizes[] = {{1, 1, 1},    {1, 7, 5},     {7, 1, 5},      {3, 5, 1},      {17, 33, 9},    {64, 64, 64},
                        {1, 300, 70}, {300, 1, 700}, {129, 257, 65}, {40, 48, 3000}, {300, 500, 70}, {16, 24, 1111}};

// Every combination of transposed, row-major and doubly strided operands.
template <class T, class A, class B>
void check_all(double tolerance) {
  for (const Sizes& s : kSizes)
    for (int kind = 0; kind < 9; ++kind) {
      const int ka = kind % 3, kb = kind / 3;
      const Matrix<A> a(s.m, s.k, ka == 0 ? s.k + 3 : ka == 1 ? 1 : 2 * s.k, ka == 0 ? 1 : ka == 1 ? s.m + 1 : 2, 1);
      const Matrix<B> b(s.k, s.n, kb == 0 ? s.n + 2 : kb == 1 ? 1 : 3 * s.n, kb == 0 ? 1 : kb == 1 ? s.k : 3, 2);
      const std::int64_t ld = s.n + 5;
      std::vector<T> c(std::size_t(s.m * ld), std::numeric_limits<T>::quiet_NaN());
      const GemmOutput out{reinterpret_cast<std::byte*>(c.data()), sizeof(T) == 8 ? DType::f64 : DType::f32, ld};
      gemm<T>(s.m, s.n, s.k, a.input(), b.input(), out);
      const std::vector<double> expected = naive(a, b, s.m, s.n, s.k);
      for (std::int64_t i = 0; i < s.m; ++i)
        for (std::int64_t j = 0; j < ld; ++j) {
          const T got = c[std::size_t(i * ld + j)];
          if (j >= s.n) {
            ASSERT_TRUE(std::isnan(got)) << "wrote between rows";
            continue;
          }
          ASSERT_NEAR(got, expected[std::size_t(i * s.n + j)], tolerance * std::sqrt(double(s.k)) + tolerance)
              << s.m << "x" << s.n << "x" << s.k << " kind " << kind << " at " << i << "," << j;
        }
    }
}

TEST(Gemm, MatchesNaiveF32) { check_all<float, float, float>(1e-5); }
TEST(Gemm, MatchesNaiveF64) { check_all<double, double, double>(1e-13); }
TEST(Gemm, MatchesNaiveMixed) {
  check_all<float, bf16, float>(1e-5);
  check_all<double, float, double>(1e-13);
}

TEST(Gemm, AlphaBetaBias) {
  const std::int64_t m = 37, n = 41;
  for (std::int64_t k : {0, 1, 29, 4096}) {
    const Matrix<double> a(m, k, k, 1, 1), b(k, n, n, 1, 2), old(m, n, n, 1, 3), bias(1, n, n, 1, 4);
    std::vector<double> c(old.values.begin(), old.values.begin() + m * n);
    GemmOptions options{
        .alpha = 0.5, .beta = -2, .bias = reinterpret_cast<const std::byte*>(bias.values.data()), .bias_dtype = DType::f64};
    gemm<double>(m, n, k, a.input(), b.input(), {reinterpret_cast<std::byte*>(c.data()), DType::f64, n}, options);
    const std::vector<double> product = naive(a, b, m, n, k);
    for (std::int64_t i = 0; i < m * n; ++i) {
      const double expected = 0.5 * product[std::size_t(i)] - 2 * old.values[std::size_t(i)] + bias.values[std::size_t(i % n)];
      ASSERT_NEAR(c[std::size_t(i)], expected, 1e-10) << k;
    }
  }
}

// The addend has a place, a type and rows of its own; activations are applied once, after all parts of the sum.
TEST(Gemm, AddendAndActivation) {
  const std::int64_t m = 37, n = 41;
  for (const std::int64_t k : {0, 1, 29, 4096})
    for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu_tanh}) {
      const Matrix<float> a(m, k, k, 1, 1), b(k, n, n, 1, 2), bias(1, n, n, 1, 4);
      const Matrix<bf16> addend(m, n, n + 3, 1, 3);
      std::vector<float> c(std::size_t(m * n), std::numeric_limits<float>::quiet_NaN());
      GemmOptions options{.alpha = 0.05, .beta = 2, .addend = addend.input()};
      options.bias = reinterpret_cast<const std::byte*>(bias.values.data());
      options.activation = activation;
      gemm<float>(m, n, k, a.input(), b.input(), {reinterpret_cast<std::byte*>(c.data()), DType::f32, n}, options);
      const std::vector<double> product = naive(a, b, m, n, k);
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
          double x = 0.05 * product[std::size_t(i * n + j)] + 2 * addend.at(i, j) + double(bias.values[std::size_t(j)]);
          if (activation == Activation::relu) x = std::max(x, 0.0);
          if (activation == Activation::gelu_tanh) x *= 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
          ASSERT_NEAR(c[std::size_t(i * n + j)], x, 1e-4) << k << " " << name_of(activation);
        }
    }
}

TEST(Gemm, EmptyAndZeroDepth) {
  std::vector<float> c(12, 3.0f);
  const GemmOutput out{reinterpret_cast<std::byte*>(c.data()), DType::f32, 4};
  const GemmInput none{nullptr, DType::f32, 0, 1};
  gemm<float>(0, 4, 5, none, none, out);
  gemm<float>(3, 0, 5, none, none, out);
  for (float v : c) ASSERT_EQ(v, 3.0f);
  gemm<float>(3, 4, 0, none, none, out);
  for (float v : c) ASSERT_EQ(v, 0.0f);
}

TEST(Gemm, RoundsOnceToBf16) {
  const std::int64_t m = 150, n = 170, k = 2048;
  const Matrix<bf16> a(m, k, k, 1, 1), b(k, n, 1, k, 2);
  std::vector<float> full(std::size_t(m * n));
  std::vector<bf16> half(std::size_t(m * n));
  gemm<float>(m, n, k, a.input(), b.input(), {reinterpret_cast<std::byte*>(full.data()), DType::f32, n});
  gemm<float>(m, n, k, a.input(), b.input(), {reinterpret_cast<std::byte*>(half.data()), DType::bf16, n});
  for (std::size_t i = 0; i < full.size(); ++i) ASSERT_EQ(half[i].bits, bf16(full[i]).bits);
}

TEST(Gemm, SameBitsForAnyThreads) {
  Threads restore;
  for (const Sizes& s : {Sizes{500, 300, 200}, Sizes{48, 64, 5000}, Sizes{1, 3000, 900}, Sizes{700, 1, 900}}) {
    const Matrix<float> a(s.m, s.k, s.k, 1, 1), b(s.k, s.n, s.n, 1, 2);
    std::vector<std::vector<float>> results;
    for (int count : {1, 2, 3}) {
      set_threads(count);
      std::vector<float> c(std::size_t(s.m * s.n));
      gemm<float>(s.m, s.n, s.k, a.input(), b.input(), {reinterpret_cast<std::byte*>(c.data()), DType::f32, s.n});
      results.push_back(std::move(c));
    }
    ASSERT_EQ(results[0], results[1]);
    ASSERT_EQ(results[0], results[2]);
  }
}

TEST(Gemm, Batched) {
  for (const Sizes& s : {Sizes{5, 7, 3}, Sizes{33, 20, 1500}, Sizes{200, 260, 70}}) {
    const std::int64_t count = 6;
    const Matrix<float> a(count * s.m, s.k, s.k, 1, 1), b(2 * s.k, s.n, s.n, 1, 2);
    std::vector<float> c(std::size_t(count * s.m * s.n));
    std::vector<GemmOffsets> batch;
    for (std::int64_t e = 0; e < count; ++e) batch.push_back({e * s.m * s.k, e % 2 * s.k * s.n, e * s.m * s.n});
    gemm_batched<float>(batch, s.m, s.n, s.k, a.input(), b.input(), {reinterpret_cast<std::byte*>(c.data()), DType::f32, s.n});
    for (std::int64_t e = 0; e < count; ++e)
      for (std::int64_t i = 0; i < s.m; ++i)
        for (std::int64_t j = 0; j < s.n; ++j) {
          double expected = 0;
          for (std::int64_t p = 0; p < s.k; ++p) expected += a.at(e * s.m + i, p) * b.at(e % 2 * s.k + p, j);
          ASSERT_NEAR(c[std::size_t((e * s.m + i) * s.n + j)], expected, 1e-5 * std::sqrt(double(s.k)) + 1e-5);
        }
  }
}

}  // namespace
}  // namespace weft
