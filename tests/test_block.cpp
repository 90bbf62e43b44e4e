#include "jit/block.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace weft {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean};
constexpr ExprType kExprTypes[] = {ExprType::real, ExprType::integer, ExprType::boolean};

struct Storage {
  std::vector<std::byte> bytes;
  View view;
};

// A view of a random part of random memory: permuted, strided, reversed or broadcast dims, with an offset.
Storage random_view(std::mt19937& random, DType dtype, bool writable) {
  auto below = [&](int n) { return int(random() % unsigned(n)); };
  Storage s;
  View& v = s.view;
  v.dtype = dtype, v.rank = below(5);
  std::int64_t extent = 1, offset = 0;
  for (int d : [&] {
         std::vector<int> order(v.rank);
         for (int i = 0; i < v.rank; ++i) order[i] = i;
         if (below(2))
           std::shuffle(order.begin(), order.end(), random);
         else
           std::reverse(order.begin(), order.end());
         return order;
       }()) {
    v.dims[d] = 1 + below(d + 1 == v.rank ? 40 : 9);
    v.strides[d] = extent;
    if (!writable && below(4) == 0)
      v.strides[d] = 0;
    else
      extent *= v.dims[d] * (below(3) == 0 ? 2 : 1);
    if (below(5) == 0) offset += v.strides[d] * (v.dims[d] - 1), v.strides[d] = -v.strides[d];
  }
  offset += 3;
  s.bytes.resize((extent * 2 + 8) * size_of(dtype));
  visit_dtype(dtype, [&]<class S>(S) {
    auto* values = reinterpret_cast<S*>(s.bytes.data());
    for (std::size_t i = 0; i < s.bytes.size() / sizeof(S); ++i) {
      float x = float(below(4000) - 2000) / 64;
      values[i] = dtype == DType::boolean ? S(below(2)) : S(x);
    }
    v.data = s.bytes.data() + offset * sizeof(S);
  });
  return s;
}

std::int64_t offset_of(const View& v, std::int64_t element) {
  std::int64_t offset = 0;
  for (int d = v.rank - 1; d >= 0; --d) offset += element % v.dims[d] * v.strides[d], element /= v.dims[d];
  return offset;
}

double value_at(const View& v, std::int64_t element) {
  return visit_dtype(v.dtype, [&]<class S>(S) { return double(v.as<S>()[offset_of(v, element)]); });
}

double as_type(ExprType type, double x) {
  return type == ExprType::real ? x : type == ExprType::integer ? std::trunc(x) : x != 0;
}

template <class T>
double register_value(ExprType type, const void* values, int j) {
  return type == ExprType::real      ? double(static_cast<const T*>(values)[j])
         : type == ExprType::integer ? double(static_cast<const std::int64_t*>(values)[j])
                                     : double(static_cast<const std::uint8_t*>(values)[j]);
}

template <class T>
void check_reads(unsigned seed) {
  std::mt19937 random(seed);
  double buffer[kBlock];
  for (int round = 0; round < 2000; ++round) {
    Storage s = random_view(random, kTypes[round % 6], false);
    View v = round % 2 ? collapse(s.view) : s.view;
    ASSERT_EQ(v.numel(), s.view.numel());
    ExprType type = kExprTypes[random() % 3];
    std::int64_t first = std::int64_t(random() % std::uint64_t(v.numel()));
    int n = int(1 + random() % std::uint64_t(std::min<std::int64_t>(kBlock, v.numel() - first)));
    const void* block = read_block<T>(v, type, first, n, buffer);
    for (int j = 0; j < n; ++j) {
      ASSERT_EQ(register_value<T>(type, block, j), as_type(type, value_at(s.view, first + j)))
          << name_of(v.dtype) << " rank " << v.rank << " element " << first + j;
    }
  }
}

TEST(Block, ReadsAnyViewF32) { check_reads<float>(1); }
TEST(Block, ReadsAnyViewF64) { check_reads<double>(2); }

template <class T>
void check_writes(unsigned seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    Storage s = random_view(random, kTypes[round % 6], true);
    const View& v = s.view;
    ExprType type = kExprTypes[random() % 3];
    std::int64_t first = std::int64_t(random() % std::uint64_t(v.numel()));
    int n = int(1 + random() % std::uint64_t(std::min<std::int64_t>(kBlock, v.numel() - first)));
    alignas(8) std::byte values[kBlock * 8];
    for (int j = 0; j < n; ++j) {
      double x = (int(random() % 4000) - 2000) / 64.0;
      if (type == ExprType::real) reinterpret_cast<T*>(values)[j] = T(x);
      if (type == ExprType::integer) reinterpret_cast<std::int64_t*>(values)[j] = std::int64_t(x);
      if (type == ExprType::boolean) reinterpret_cast<std::uint8_t*>(values)[j] = x > 0;
    }
    std::vector<std::byte> before = s.bytes;
    write_block<T>(v, type, first, n, values);
    for (int j = 0; j < n; ++j) {
      double x = register_value<T>(type, values, j);
      double want =
          is_real(v.dtype) ? double(v.dtype == DType::bf16 ? float(bf16(float(x))) : x) : as_type(expr_type(v.dtype), x);
      ASSERT_EQ(value_at(v, first + j), want) << name_of(v.dtype);
      // Put the old bytes back: in the end nothing but the elements may have changed.
      std::size_t at = v.data - s.bytes.data() + offset_of(v, first + j) * size_of(v.dtype);
      std::copy_n(before.begin() + at, size_of(v.dtype), s.bytes.begin() + at);
    }
    ASSERT_EQ(s.bytes, before);
  }
}

TEST(Block, WritesAnyViewF32) { check_writes<float>(3); }
TEST(Block, WritesAnyViewF64) { check_writes<double>(4); }

TEST(Block, ContiguousMemoryIsUsedInPlace) {
  std::vector<float> memory(4 * 300);
  View whole{reinterpret_cast<std::byte*>(memory.data()), DType::f32, 2, {4, 300}, {300, 1}};
  View columns{reinterpret_cast<std::byte*>(memory.data()), DType::f32, 2, {4, 200}, {300, 1}};
  View transposed{reinterpret_cast<std::byte*>(memory.data()), DType::f32, 2, {300, 4}, {1, 300}};
  double buffer[kBlock];
  EXPECT_EQ(read_block<float>(whole, ExprType::real, 250, 100, buffer), &memory[250]);
  EXPECT_EQ(read_block<float>(columns, ExprType::real, 410, 100, buffer), &memory[610]) << "inside one row";
  EXPECT_EQ(read_block<float>(columns, ExprType::real, 150, 100, buffer), buffer) << "across rows";
  EXPECT_EQ(read_block<double>(whole, ExprType::real, 0, 100, buffer), buffer);
  EXPECT_EQ(direct_block<float>(whole, ExprType::real, 250, 100), &memory[250]);
  EXPECT_EQ(direct_block<float>(columns, ExprType::real, 150, 100), nullptr);
  EXPECT_EQ(direct_block<float>(transposed, ExprType::real, 0, 100), nullptr);
  EXPECT_EQ(direct_block<float>(whole, ExprType::integer, 0, 100), nullptr);
  EXPECT_EQ(direct_block<double>(whole, ExprType::real, 0, 100), nullptr);
}

TEST(Block, CollapseMergesWhatCanBeWalkedAsOne) {
  View v{nullptr, DType::f32, 5, {2, 1, 3, 4, 5}, {60, 7, 20, 5, 1}};
  View c = collapse(v);
  EXPECT_EQ(c.rank, 1);
  EXPECT_EQ(c.dims[0], 120);
  View broadcast{nullptr, DType::f32, 3, {8, 3, 4}, {4, 0, 1}};
  EXPECT_EQ(collapse(broadcast).rank, 3);
  View zeros{nullptr, DType::f32, 2, {3, 4}, {0, 0}};
  EXPECT_EQ(collapse(zeros).rank, 1);
  EXPECT_EQ(collapse(View{}).rank, 0);
  EXPECT_EQ(View{}.numel(), 1);
  EXPECT_TRUE((View{nullptr, DType::f32, 2, {1, 5}, {99, 1}}.contiguous()));
}

TEST(Block, ConversionsAtTheEdges) {
  float reals[] = {1e30f, -1e30f, std::nanf(""), 2.9f, -2.9f};
  View v{reinterpret_cast<std::byte*>(reals), DType::f32, 1, {5}, {1}};
  double buffer[kBlock];
  auto* integers = static_cast<const std::int64_t*>(read_block<float>(v, ExprType::integer, 0, 5, buffer));
  EXPECT_EQ(integers[0], std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(integers[1], std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(integers[2], std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(integers[3], 2);
  EXPECT_EQ(integers[4], -2);
  float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isnan(float(bf16(nan))));
  EXPECT_EQ(float(bf16(inf)), inf);
  EXPECT_EQ(float(bf16(1.00390625f)), 1.0f) << "a tie goes to even";
  EXPECT_EQ(float(bf16(1.01171875f)), 1.015625f);
  EXPECT_EQ(widest(DType::bf16, DType::i64), DType::bf16);
  EXPECT_EQ(widest(DType::f64, DType::f32), DType::f64);
  EXPECT_EQ(widest(DType::boolean, DType::i32), DType::i32);
}

}  // namespace
}  // namespace weft
