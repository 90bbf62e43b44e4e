// Products as a GPU gets them: the emulation against three loops, and, where there is a GPU, cuBLASLt against the emulation.
#include "jit/gemm_cuda.h"

#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "jit/driver.h"

namespace weft {
namespace {

struct Case {
  std::int64_t m, n, k, batch;
  bool a_by_columns, b_by_columns, bias;
  std::int64_t gap;  // elements between rows (or columns) and before the first: leading dimensions and offsets that are odd
  DType in, out;
  double beta = 0;  // 0: no addend
  Activation activation = Activation::none;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const DType types[][2] = {
      {DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}, {DType::f64, DType::f64}};
  const std::int64_t sizes[][4] = {{1, 1, 1, 1},   {1, 7, 5, 1},    {7, 1, 5, 2},
                                   {33, 17, 9, 3}, {64, 48, 40, 1}, {16, 24, 3000, 1}};
  int number = 0;
  for (const auto& type : types)
    for (const auto& s : sizes)
      for (int layout = 0; layout < 4; ++layout, ++number)
        all.push_back({s[0], s[1], s[2], s[3], layout % 2 == 1, layout / 2 == 1, s[3] == 1 && number % 5 < 2, number % 3,
                       type[0], type[1]});
  for (const auto& type : types)  // whatever an epilogue can be
    for (const double beta : {0.0, 1.0, -0.5})
      for (const bool bias : {false, true})
        for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu_tanh})
          for (const std::int64_t batch : {1, 3})
            if (type[0] != DType::f64 || activation == Activation::none)
              all.push_back({24, 40, 48, batch, false, true, bias, 8, type[0], type[1], beta, activation});
  return all;
}

// The call of a case on the slots 0 (a), 1 (b), 2 (c), 3 (bias), 4 (addend), and the elements of each.
struct Product {
  GemmCall call;
  std::int64_t elements[5] = {};

  explicit Product(const Case& c) {
    const auto operand = [&](int slot, DType dtype, std::int64_t rows, std::int64_t columns, bool by_columns) {
      GemmOperand o{slot, c.gap, dtype};
      const std::int64_t ld = (by_columns ? rows : columns) + c.gap;
      (by_columns ? o.col_stride : o.row_stride) = ld;
      if (by_columns) o.row_stride = 1;
      o.batch_stride = ld * (by_columns ? columns : rows);
      elements[slot] = c.gap + c.batch * o.batch_stride;
      return o;
    };
    // A single row or column is always given by rows.
    call = {c.m,
            c.n,
            c.k,
            c.batch,
            operand(0, c.in, c.m, c.k, c.a_by_columns && c.m > 1),
            operand(1, c.in, c.k, c.n, c.b_by_columns && c.k > 1),
            operand(2, c.out, c.m, c.n, false),
            {}};
    elements[3] = c.n + c.gap;
    if (c.bias) call.bias = {3, c.gap, c.out};
    if (c.beta != 0) call.addend = operand(4, c.out, c.m, c.n + 8, false), call.beta = c.beta;  // longer rows than C's
    call.activation = c.activation;
  }
  DType dtype(int slot) const { return slot < 2 ? call.a.dtype : call.c.dtype; }
};

using Memory = std::vector<std::vector<std::byte>>;

std::vector<std::byte*> addresses(Memory& memory) {
  std::vector<std::byte*> out;
  for (auto& m : memory) out.push_back(m.data());
  return out;
}

Memory random_memory(const Product& p) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  Memory memory(5);
  for (int s = 0; s < 5; ++s) {
    std::vector<std::byte>& bytes = memory[std::size_t(s)];
    bytes.resize(std::size_t(p.elements[s]) * size_of(p.dtype(s)));
    visit_dtype(p.dtype(s), [&]<class T>(T) {
      for (std::int64_t i = 0; i < p.elements[s]; ++i) reinterpret_cast<T*>(bytes.data())[i] = T(float(normal(random)));
    });
  }
  return memory;
}

double at(const Memory& memory, const GemmOperand& o, std::int64_t e, std::int64_t i, std::int64_t j) {
  return visit_dtype(o.dtype, [&]<class T>(T) {
    const auto* data = reinterpret_cast<const T*>(memory[std::size_t(o.slot)].data());
    return double(data[o.offset + e * o.batch_stride + i * o.row_stride + j * o.col_stride]);
  });
}

// Tensor cores cut what they add to a sum in fp32.
double tolerance(const GemmCall& call) {
  const double one = call.c.dtype == DType::f64    ? 1e-13
                     : call.c.dtype == DType::bf16 ? 8e-3
                     : call.a.dtype == DType::bf16 ? 1e-5
                                                   : 1e-6;
  return one * std::sqrt(double(call.k)) * 4;
}

double activated(Activation activation, double x) {
  if (activation == Activation::relu) return x <= 0 ? 0 : x;
  if (activation == Activation::gelu_tanh) return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  return x;
}

TEST(GemmCuda, TheEmulationIsTheProduct) {
  for (const Case& c : cases()) {
    const Product p(c);
    Memory memory = random_memory(p);
    emulate_gemm(p.call, addresses(memory).data());
    for (std::int64_t e = 0; e < c.batch; ++e)
      for (std::int64_t i = 0; i < c.m; ++i)
        for (std::int64_t j = 0; j < c.n; ++j) {
          double expected = c.bias ? at(memory, p.call.bias, 0, 0, j) : 0;
          for (std::int64_t l = 0; l < c.k; ++l) expected += at(memory, p.call.a, e, i, l) * at(memory, p.call.b, e, l, j);
          if (p.call.addend) expected += c.beta * at(memory, p.call.addend, e, i, j);
          ASSERT_NEAR(at(memory, p.call.c, e, i, j), activated(c.activation, expected), tolerance(p.call))
              << to_string(p.call) << " at " << i << ", " << j;
        }
  }
}

// Copies of memory on the device, in its primary context.
class OnDevice {
 public:
  OnDevice() : driver_(cuda_driver()) {
    cu::CUcontext context = nullptr;
    cuda_check(driver_, driver_.cuInit(0), "cuInit");
    cuda_check(driver_, driver_.cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    cuda_check(driver_, driver_.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    workspace = {allocate(gemm_workspace_bytes(9)), gemm_workspace_bytes(9)};
  }
  ~OnDevice() {
    for (const cu::CUdeviceptr p : memory_) driver_.cuMemFree(p);
    driver_.cuDevicePrimaryCtxRelease(0);
  }
  cu::CUdeviceptr allocate(std::size_t bytes) {
    cu::CUdeviceptr p = 0;
    cuda_check(driver_, driver_.cuMemAlloc(&p, bytes), "cuMemAlloc");
    memory_.push_back(p);
    return p;
  }
  // Runs the product on copies of `memory`, and returns what is in C's slot then.
  std::vector<std::byte> run(const GemmCall& call, const Memory& memory, bool tf32) {
    std::vector<std::byte*> slots;
    for (const auto& m : memory) {
      slots.push_back(nullptr);
      if (m.empty()) continue;  // an operand that is absent
      slots.back() = reinterpret_cast<std::byte*>(allocate(m.size()));
      cuda_check(driver_, driver_.cuMemcpyHtoD(cu::CUdeviceptr(slots.back()), m.data(), m.size()), "cuMemcpyHtoD");
    }
    prepare_gemm(call, nullptr, workspace, tf32);
    launch_gemm(call, slots.data(), nullptr, workspace, tf32);
    std::vector<std::byte> c(memory[2].size());
    cuda_check(driver_, driver_.cuMemcpyDtoH(c.data(), cu::CUdeviceptr(slots[2]), c.size()), "cuMemcpyDtoH");
    return c;
  }
  GemmWorkspace workspace;

 private:
  const Driver& driver_;
  std::vector<cu::CUdeviceptr> memory_;
};

TEST(GemmCuda, TheDeviceAgreesWithTheEmulation) {
  if (const auto missing = missing_cuda_device()) GTEST_SKIP() << *missing;
  if (const auto missing = missing_library(CudaLibrary::cublas_lt)) GTEST_SKIP() << *missing;
  OnDevice device;
  for (const bool tf32 : {false, true})
    for (const Case& c : cases()) {
      const Product p(c);
      Memory expected = random_memory(p), got = expected;
      got[2] = device.run(p.call, expected, tf32);
      EXPECT_EQ(got[2], device.run(p.call, expected, tf32)) << to_string(p.call) << ": another result the second time";
      emulate_gemm(p.call, addresses(expected).data());
      const double near = tf32 && c.in == DType::f32 ? 4e-3 * std::sqrt(double(c.k)) : tolerance(p.call);
      for (std::int64_t e = 0; e < c.batch; ++e)
        for (std::int64_t i = 0; i < c.m; ++i)
          for (std::int64_t j = 0; j < c.n; ++j)
            ASSERT_NEAR(at(got, p.call.c, e, i, j), at(expected, p.call.c, e, i, j), near)
                << to_string(p.call) << " at " << i << ", " << j;
    }
}

// A product whose addend is C itself: a sum that grows in place.
TEST(GemmCuda, TheAddendMayBeTheResult) {
  Product p({16, 24, 32, 1, false, false, false, 0, DType::f32, DType::f32, 1});
  p.call.addend = p.call.c;
  Memory memory = random_memory(p);
  const Memory before = memory;
  emulate_gemm(p.call, addresses(memory).data());
  for (std::int64_t i = 0; i < 16; ++i)
    for (std::int64_t j = 0; j < 24; ++j) {
      double expected = at(before, p.call.c, 0, i, j);
      for (std::int64_t l = 0; l < 32; ++l) expected += at(before, p.call.a, 0, i, l) * at(before, p.call.b, 0, l, j);
      ASSERT_NEAR(at(memory, p.call.c, 0, i, j), expected, tolerance(p.call));
    }
  if (missing_cuda_device() || missing_library(CudaLibrary::cublas_lt)) return;
  OnDevice device;
  Memory got = before;
  got[2] = device.run(p.call, before, false);
  for (std::int64_t i = 0; i < 16; ++i)
    for (std::int64_t j = 0; j < 24; ++j)
      ASSERT_NEAR(at(got, p.call.c, 0, i, j), at(memory, p.call.c, 0, i, j), tolerance(p.call));
}

// A NaN stays one, as it does in weft's own kernels.
TEST(GemmCuda, ActivationsKeepNan) {
  for (const Activation activation : {Activation::relu, Activation::gelu_tanh}) {
    const Product p({16, 24, 32, 1, false, false, false, 0, DType::f32, DType::f32, 0, activation});
    Memory memory = random_memory(p);
    reinterpret_cast<float*>(memory[0].data())[0] = std::nanf("");
    const Memory before = memory;
    emulate_gemm(p.call, addresses(memory).data());
    EXPECT_TRUE(std::isnan(at(memory, p.call.c, 0, 0, 3))) << to_string(p.call);
    EXPECT_FALSE(std::isnan(at(memory, p.call.c, 0, 1, 3))) << to_string(p.call);
    if (missing_cuda_device() || missing_library(CudaLibrary::cublas_lt)) continue;
    OnDevice device;
    Memory got = before;
    got[2] = device.run(p.call, before, false);
    EXPECT_TRUE(std::isnan(at(got, p.call.c, 0, 0, 3))) << to_string(p.call);
  }
}

}  // namespace
}  // namespace weft
