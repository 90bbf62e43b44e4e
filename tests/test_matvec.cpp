// Products with few rows, as decoding has them: the kernel of ops/matvec.cuh against plain sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "autograd/settings.h"
#include "tools/weft.h"

namespace weft {
namespace {

class Matvec : public testing::Test {
 protected:
  Matvec() : before_(settings().device) {
    if (!is_gpu(device())) use_device("emu");
  }
  ~Matvec() override { use_device(before_ == Device::cuda ? "cuda" : before_ == Device::emu ? "emu" : "cpu"); }

  static std::vector<float> numbers(std::int64_t n, int seed) {
    std::vector<float> x(std::size_t(n), 0.0f);
    for (std::int64_t i = 0; i < n; ++i) x[std::size_t(i)] = float((i * 7919 + seed * 104729) % 257 - 128) / 128;
    return x;
  }
  static bool ran_matvec() {
    for (const KernelRecord& k : last_kernels())
      if (k.name.starts_with("matvec")) return true;
    return false;
  }

 private:
  Device before_;
};

// Sizes that fill threads and warps and that do not; rows of W in vectors of 16 bytes, of fewer, and of single elements.
TEST_F(Matvec, IsTheProduct) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const auto& [m, n, k] : std::vector<std::array<std::int64_t, 3>>{
             {1, 1, 1}, {1, 5, 7}, {2, 33, 48}, {3, 80, 1536}, {1, 768, 96}, {8, 40, 264}, {5, 17, 2050}, {4, 3000, 8}}) {
      const Tensor x = cast(Tensor::from(numbers(m * k, 1), {m, k}), dtype),
                   w = cast(Tensor::from(numbers(n * k, 2), {n, k}), dtype), b = cast(Tensor::from(numbers(n, 3), {n}), dtype);
      const std::vector<double> y = run([&] { return cast(linear(x, w, b), DType::f64); }).to_host<double>();
      EXPECT_TRUE(ran_matvec());
      const auto xs = x.to_host<double>(), ws = w.to_host<double>(), bs = b.to_host<double>();
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = bs[std::size_t(j)], size = std::abs(sum);
          for (std::int64_t c = 0; c < k; ++c) {
            const double product = xs[std::size_t(i * k + c)] * ws[std::size_t(j * k + c)];
            sum += product, size += std::abs(product);
          }
          const double near = dtype == DType::bf16  ? 0.004 * std::abs(sum) + 1e-5 * size
                              : dtype == DType::f32 ? 1e-6 * size
                                                    : 1e-15 * size;
          ASSERT_NEAR(y[std::size_t(i * n + j)], sum, near) << m << " " << n << " " << k << " at " << i << ", " << j;
        }
    }
}

// A text's logits do not depend on what else is in the batch.
TEST_F(Matvec, ARowIsTheSameAloneAndAmongOthers) {
  constexpr std::int64_t k = 520, n = 300;
  const std::vector<float> rows = numbers(8 * k, 4);
  const Tensor w = cast(Tensor::from(numbers(n * k, 5), {n, k}), DType::bf16);
  const auto product = [&](std::int64_t first, std::int64_t count) {
    const Tensor x = Tensor::from(std::vector<float>(rows.begin() + first * k, rows.begin() + (first + count) * k), {count, k});
    return run([&] { return cast(linear(cast(x, DType::bf16), w), DType::f32); }).to_host<float>();
  };
  const std::vector<float> all = product(0, 8);
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 1}, {7, 1}, {2, 3}, {1, 7}}) {
    const std::vector<float> some = product(first, count);
    EXPECT_TRUE(ran_matvec());
    EXPECT_EQ(some, std::vector<float>(all.begin() + first * n, all.begin() + (first + count) * n)) << first << ", " << count;
  }
}

// Operands in the middle of others, where vectors of 16 bytes cannot be read; and what is left to the library.
TEST_F(Matvec, ReadsViews) {
  const Tensor x = Tensor::from(numbers(3 * 40, 6), {3, 40}), w = Tensor::from(numbers(50 * 60, 7), {50, 60});
  const auto both = [&](std::int64_t at, std::int64_t k, bool transposed) {
    const auto a = [&] { return slice(x, 1, at, at + k); };
    const auto b = [&] { return transposed ? transpose(slice(w, 0, at, at + k)) : slice(w, 1, at, at + k); };
    const std::vector<double> y = run([&] { return linear(a(), b()); }).to_host<double>();
    EXPECT_EQ(ran_matvec(), !transposed);
    const std::vector<double> plain = run([&] { return sum(reshape(a(), {3, 1, k}) * b(), {2}); }).to_host<double>();
    ASSERT_EQ(y.size(), plain.size());
    for (std::size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], plain[i], 1e-5) << at << ", " << k << ": " << i;
  };
  both(0, 40, false), both(1, 32, false), both(2, 7, false), both(4, 16, false), both(3, 20, true);
}

// What a step of a recurrence leaves is written over what it has read, unless somebody else reads that later.
TEST_F(Matvec, AStepWritesItsStatesInPlace) {
  const std::int64_t b = 2, d = 36, taps = 4;
  const State state({b, taps - 1, d}, DType::f32, "inputs");
  const Tensor w = Tensor::from(numbers(d * taps, 8), {d, taps});
  for (const bool read_later : {false, true}) {
    const std::vector<float> begin = numbers(b * (taps - 1) * d, 9);
    assign(state, Tensor::from(begin, {b, taps - 1, d}));
    const Tensor x = Tensor::from(numbers(b * d, 10), {b, 1, d});
    const std::vector<Tensor> got = run([&] {
      const Tensor before = state.read();
      Tensor last;
      const Tensor y = conv1d(x, w, Tensor{}, {.initial = before, .last = &last});
      assign(state, last);
      return std::vector<Tensor>{y, read_later ? before * 2.0 : y * 2.0};
    });
    int assigns = 0;
    for (const KernelRecord& k : last_kernels()) assigns += k.name.find("assign") != std::string::npos;
    EXPECT_EQ(assigns, int(read_later));
    std::vector<float> after, xs = x.to_host<float>();
    for (std::int64_t i = 0; i < b; ++i) {
      const auto row = begin.begin() + i * (taps - 1) * d;
      after.insert(after.end(), row + d, row + (taps - 1) * d);
      after.insert(after.end(), xs.begin() + i * d, xs.begin() + (i + 1) * d);
    }
    EXPECT_EQ(state.to_host<float>(), after) << read_later;
    if (read_later) {
      const std::vector<float> doubled = got[1].to_host<float>();
      for (std::size_t i = 0; i < begin.size(); ++i) ASSERT_EQ(doubled[i], 2 * begin[i]) << i;
    }
  }
}

}  // namespace
}  // namespace weft
