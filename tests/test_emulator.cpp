// The emulated device: kernels as CUDA text, compiled by NVRTC to PTX for each target, run by the PTX interpreter and
// compared with the host.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "expect_error.h"
#include "jit/driver.h"
#include "jit/dtype.h"
#include "jit/emulator/device.h"
#include "jit/parallel.h"
#include "jit/wgmma.h"

namespace weft {
namespace {

using namespace cu;

constexpr std::array kTargets{"compute_80", "compute_90", "compute_120"};

std::string ptx_of(const std::string& text, const std::string& target) {
  const Nvrtc& n = nvrtc();
  nvrtcProgram program = nullptr;
  EXPECT_EQ(n.nvrtcCreateProgram(&program, text.c_str(), "test.cu", 0, nullptr, nullptr), NVRTC_SUCCESS);
  const std::string arch = "--gpu-architecture=" + target;
  const char* options[] = {arch.c_str(), "--std=c++17", "-lineinfo"};
  const nvrtcResult result = n.nvrtcCompileProgram(program, 3, options);
  std::size_t size = 0;
  n.nvrtcGetProgramLogSize(program, &size);
  std::string log(size, '\0');
  n.nvrtcGetProgramLog(program, log.data());
  EXPECT_EQ(result, NVRTC_SUCCESS) << log;
  n.nvrtcGetPTXSize(program, &size);
  std::string ptx(size, '\0');
  n.nvrtcGetPTX(program, ptx.data());
  n.nvrtcDestroyProgram(&program);
  return ptx;
}

const Driver& emu() { return emulated_driver(); }

// Device memory with the values of a vector.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t n) : size_(n) {
    EXPECT_EQ(emu().cuMemAlloc(&address_, std::max<std::size_t>(1, n * sizeof(T))), CUDA_SUCCESS);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    emu().cuMemcpyHtoD(address_, values.data(), size_ * sizeof(T));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { emu().cuMemFree(address_); }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    emu().cuMemcpyDtoH(values.data(), address_, size_ * sizeof(T));
    return values;
  }
  CUdeviceptr address() const { return address_; }

 private:
  CUdeviceptr address_ = 0;
  std::size_t size_;
};

// A compiled kernel `k`, of extern "C".
class Kernel {
 public:
  explicit Kernel(const std::string& text, const std::string& target = "compute_90", bool is_ptx = false) {
    const std::string ptx = is_ptx ? text : ptx_of(text, target);
    EXPECT_EQ(emu().cuLibraryLoadData(&library_, ptx.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0), CUDA_SUCCESS);
    CUkernel kernel = nullptr;
    EXPECT_EQ(emu().cuLibraryGetKernel(&kernel, library_, "k"), CUDA_SUCCESS);
    emu().cuKernelGetFunction(&function_, kernel);
  }
  Kernel(const Kernel&) = delete;
  ~Kernel() { emu().cuLibraryUnload(library_); }

  template <class... Args>
  void operator()(unsigned grid, unsigned block, unsigned shared, Args... args) const {
    launch(grid, block, shared, nullptr, args...);
  }
  template <class... Args>
  void launch(unsigned grid, unsigned block, unsigned shared, CUstream stream, Args... args) const {
    CUlaunchConfig config;
    config.gridDimX = grid, config.blockDimX = block, config.sharedMemBytes = shared, config.hStream = stream;
    void* parameters[] = {static_cast<void*>(&args)..., nullptr};
    EXPECT_EQ(emu().cuLaunchKernelEx(&config, function_, parameters, nullptr), CUDA_SUCCESS);
  }
  CUfunction function() const { return function_; }

 private:
  CUlibrary library_ = nullptr;
  CUfunction function_ = nullptr;
};

bool no_compiler() { return missing_library(CudaLibrary::nvrtc).has_value(); }
#define NEEDS_COMPILER \
  if (no_compiler()) GTEST_SKIP() << *missing_library(CudaLibrary::nvrtc)

template <class T>
std::vector<T> random_values(std::size_t n, double low, double high, unsigned seed = 1) {
  std::mt19937_64 generator(seed);
  std::vector<T> values(n);
  for (T& v : values) v = T(std::uniform_real_distribution<double>(low, high)(generator));
  return values;
}

[[maybe_unused]] std::vector<std::uint32_t> random_words(std::size_t n, unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::vector<std::uint32_t> words(n);
  for (auto& w : words) w = generator();
  return words;
}

// y[i] = f(x[i]) in CUDA text against the host, on all targets.
template <class In, class Out, class F>
void check_map(const std::string& body, const std::vector<In>& x, const std::string& in, const std::string& out, F expected,
               double tolerance = 0) {
  for (const char* target : kTargets) {
    SCOPED_TRACE(std::string(target) + ": " + body);
    const Kernel k("typedef " + in + " In; typedef " + out +
                       " Out; extern \"C\" __global__ void k(const In* xs, Out* ys, int n) {\n"
                       "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return; In x = xs[i]; Out y;\n" +
                       body + "\nys[i] = y; }",
                   target);
    const Buffer<In> from(x);
    const Buffer<Out> to(x.size());
    k(unsigned(x.size() + 63) / 64, 64, 0, from.address(), to.address(), int(x.size()));
    const auto y = to.host();
    for (std::size_t i = 0; i < x.size(); ++i) {
      const Out want = expected(x[i]);
      if constexpr (std::is_floating_point_v<Out>) {
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(y[i])) << i << ": " << double(x[i]);
        } else if (tolerance == 0 || std::isinf(want)) {
          ASSERT_EQ(y[i], want) << i << ": " << double(x[i]);
        } else {
          ASSERT_NEAR(y[i], want, tolerance * std::max(1.0, std::abs(double(want)))) << i << ": " << double(x[i]);
        }
      } else {
        ASSERT_EQ(y[i], want) << i << ": " << x[i];
      }
    }
  }
}

TEST(Emulator, Pointwise) {
  NEEDS_COMPILER;
  const auto x = random_values<float>(1000, -20, 20);
  check_map<float, float>("y = x * 3.0f + 1.0f;", x, "float", "float", [](float v) { return std::fma(v, 3.0f, 1.0f); });
  check_map<float, float>(
      "y = expf(x);", x, "float", "float", [](float v) { return float(std::exp(double(v))); }, 3e-7);
  check_map<float, float>(
      "y = logf(x);", x, "float", "float", [](float v) { return float(std::log(double(v))); }, 3e-7);
  check_map<float, float>(
      "y = tanhf(x) + sinf(x) + cosf(x * 1000.0f);", x, "float", "float",
      [](float v) { return float(std::tanh(double(v)) + std::sin(double(v)) + std::cos(double(v * 1000.0f))); }, 1e-6);
  check_map<float, float>(
      "y = sqrtf(x) + rsqrtf(x);", x, "float", "float",
      [](float v) { return float(std::sqrt(double(v)) + 1 / std::sqrt(double(v))); }, 1e-6);
  check_map<float, float>(
      "y = erff(x / 7.0f) + powf(fabsf(x), 1.3f) + log1pf(fabsf(x));", x, "float", "float",
      [](float v) {
        return float(std::erf(double(v / 7)) + std::pow(std::abs(double(v)), 1.3f) + std::log1p(std::abs(double(v))));
      },
      2e-6);
}

TEST(Emulator, Doubles) {
  NEEDS_COMPILER;
  const auto x = random_values<double>(500, -20, 20);
  check_map<double, double>("y = x / 3.0 + sqrt(fabs(x));", x, "double", "double",
                            [](double v) { return v / 3 + std::sqrt(std::abs(v)); });
  check_map<double, double>(
      "y = exp(x);", x, "double", "double", [](double v) { return std::exp(v); }, 1e-15);
  check_map<double, double>(
      "y = log(x) + log1p(fabs(x));", x, "double", "double", [](double v) { return std::log(v) + std::log1p(std::abs(v)); },
      1e-14);
  check_map<double, double>(
      "y = pow(fabs(x), 1.7) + tanh(x) + erf(x);", x, "double", "double",
      [](double v) { return std::pow(std::abs(v), 1.7) + std::tanh(v) + std::erf(v); }, 1e-13);
  check_map<double, double>(
      "y = sin(x * 1e7) + cos(x);", x, "double", "double", [](double v) { return std::sin(v * 1e7) + std::cos(v); }, 1e-13);
}

TEST(Emulator, Integers) {
  NEEDS_COMPILER;
  const auto x = random_words(1000);
  check_map<std::uint32_t, std::uint32_t>("y = __popc(x) + __clz(x) * 3 + __brev(x) + __ffs(x);", x, "unsigned", "unsigned",
                                          [](std::uint32_t v) {
                                            std::uint32_t reversed = 0;
                                            for (int k = 0; k < 32; ++k) reversed |= (v >> k & 1) << (31 - k);
                                            return std::uint32_t(std::popcount(v)) + 3 * std::uint32_t(std::countl_zero(v)) +
                                                   reversed + (v ? std::uint32_t(std::countr_zero(v)) + 1 : 0);
                                          });
  check_map<std::uint32_t, std::uint32_t>(
      "y = __umulhi(x, 0xd2511f53u) ^ __funnelshift_l(x, ~x, 7) ^ __byte_perm(x, x * 3, 0x5410);", x, "unsigned", "unsigned",
      [](std::uint32_t v) {
        const std::uint32_t other = v * 3, funnel = ~v << 7 | v >> 25;
        return std::uint32_t(std::uint64_t(v) * 0xd2511f53u >> 32) ^ funnel ^ (other << 16 | (v & 0xffffu));
      });
  check_map<std::uint32_t, std::uint32_t>("int s = int(x); y = unsigned(s / 7 + s % 1000 + (s >> 3) + s / (int(x >> 20) + 1));",
                                          x, "unsigned", "unsigned", [](std::uint32_t v) {
                                            const auto s = std::int32_t(v);
                                            return std::uint32_t(s / 7) + std::uint32_t(s % 1000) + std::uint32_t(s >> 3) +
                                                   std::uint32_t(s / (std::int32_t(v >> 20) + 1));
                                          });
  check_map<std::uint32_t, std::uint64_t>(
      "long long s = (long long)x * 0x123456789abll - 77; y = (unsigned long long)(s / 12345 + (s >> 5) % 77 + "
      "__mul64hi(s, s)) + "
      "__umul64hi((unsigned long long)s, 0x9e3779b97f4a7c15ull);",
      x, "unsigned", "unsigned long long", [](std::uint32_t v) {
        const auto s = std::int64_t(std::uint64_t(v) * 0x123456789abull - 77);
        __extension__ using Wide = __int128;
        __extension__ using UWide = unsigned __int128;
        return std::uint64_t(s / 12345) + std::uint64_t((s >> 5) % 77) + std::uint64_t(Wide(s) * s >> 64) +
               std::uint64_t(UWide(std::uint64_t(s)) * 0x9e3779b97f4a7c15ull >> 64);
      });
  check_map<std::uint32_t, std::uint32_t>(
      "switch (x % 9) { case 0: y = x * 3; break; case 1: y = x ^ 5; break; case 2: y = x >> 3; break; case 3: y = ~x; "
      "break; "
      "case 4: y = x + 17; break; case 5: y = x * x; break; case 6: y = 42; break; default: y = x - 1; }",
      x, "unsigned", "unsigned", [](std::uint32_t v) {
        const std::uint32_t r[] = {v * 3, v ^ 5, v >> 3, ~v, v + 17, v * v, 42, v - 1, v - 1};
        return r[v % 9];
      });
  check_map<std::uint32_t, std::uint32_t>("y = 0; for (unsigned v = x; v != 1 && y < 50; ++y) v = v % 2 ? 3 * v + 1 : v / 2;",
                                          x, "unsigned", "unsigned", [](std::uint32_t v) {
                                            unsigned n = 0;
                                            for (; v != 1 && n < 50; ++n) v = v % 2 ? 3 * v + 1 : v / 2;
                                            return n;
                                          });
}

TEST(Emulator, Conversions) {
  NEEDS_COMPILER;
  auto x = random_values<double>(500, -300, 300);
  x.insert(x.end(), {1e30, -1e30, 0.5, -0.5, 1.5, 2.5, -0.0, INFINITY, -INFINITY, NAN, 1e-40, 3e9, 1e19});
  check_map<double, std::int64_t>(
      "y = (long long)x + __double2int_rn(x) + __double2int_ru(x);", std::vector(x.begin(), x.begin() + 500), "double",
      "long long", [](double v) { return std::int64_t(v) + std::int64_t(std::nearbyint(v)) + std::int64_t(std::ceil(v)); });
  check_map<double, std::int32_t>("y = (int)x;", x, "double", "int", [](double v) {
    return std::isnan(v) ? INT32_MIN : v >= 2147483647.0 ? INT32_MAX : v <= -2147483648.0 ? INT32_MIN : std::int32_t(v);
  });
  check_map<double, std::uint32_t>("y = (unsigned)(float)x;", x, "double", "unsigned", [](double v) {
    return std::isnan(v) || v <= 0 ? 0u : v >= 4294967295.0 ? ~0u : std::uint32_t(float(v));
  });
  check_map<double, float>("y = (float)x;", x, "double", "float", [](double v) { return float(v); });
  check_map<double, float>("y = floorf((float)x) + ceilf((float)x) + truncf((float)x) + rintf((float)x);", x, "double", "float",
                           [](double v) {
                             const auto f = float(v);
                             return std::floor(f) + std::ceil(f) + std::trunc(f) + std::nearbyint(f);
                           });
  check_map<double, std::uint16_t>(
      "unsigned r; asm(\"cvt.rn.bf16x2.f32 %0, %1, %2;\" : \"=r\"(r) : \"f\"((float)x), \"f\"(1.0f)); y = (unsigned "
      "short)(r >> 16);",
      std::vector(x.begin(), x.end() - 4), "double", "unsigned short",
      [](double v) { return std::isnan(v) ? std::uint16_t{0x7fff} : bf16(float(v)).bits; });
  auto large = x;
  large.insert(large.end(), {1e300, -1e300});
  check_map<double, float>("y = __double2float_rz(x);", large, "double", "float", [](double v) {
    const auto f = float(v);
    return std::isfinite(v) && std::abs(double(f)) > std::abs(v) ? std::nextafter(f, 0.0f) : f;
  });
  // Half precision there and back is exact for what a half holds.
  std::vector<std::uint32_t> halves(65536);
  std::iota(halves.begin(), halves.end(), 0u);
  check_map<std::uint32_t, std::uint32_t>(
      "unsigned short h = (unsigned short)x, r; float f; asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(f) : \"h\"(h));"
      "asm(\"cvt.rn.f16.f32 %0, %1;\" : \"=h\"(r) : \"f\"(f)); y = r;",
      halves, "unsigned", "unsigned", [](std::uint32_t h) { return (h & 0x7c00u) == 0x7c00u && (h & 0x3ffu) ? 0x7fffu : h; });
}

// Sums of 16-bit floats, packed, by the hardware's instructions.
TEST(Emulator, PackedArithmetic) {
  NEEDS_COMPILER;
  const auto x = random_words(300, 7);
  const auto finite = [](std::uint32_t v) { return (v & 0xbfffbfffu) | 0x20002000u; };
  std::vector<std::uint32_t> values;
  for (auto v : x) values.push_back(finite(v) & 0xbfffbfffu);
  check_map<std::uint32_t, std::uint32_t>("asm(\"fma.rn.bf16x2 %0, %1, %2, %1;\" : \"=r\"(y) : \"r\"(x), \"r\"(0x40003f80u));",
                                          values, "unsigned", "unsigned", [](std::uint32_t v) {
                                            const auto half = [](std::uint32_t bits) {
                                              return std::bit_cast<float>(bits << 16);
                                            };
                                            return std::uint32_t(bf16(half(v & 0xffffu) * 1.0f + half(v & 0xffffu)).bits) |
                                                   std::uint32_t(bf16(half(v >> 16) * 2.0f + half(v >> 16)).bits) << 16;
                                          });
}

// Sums of a block through shared memory, shuffles and barriers; a loop of another length in each thread.
TEST(Emulator, BlocksAndWarps) {
  NEEDS_COMPILER;
  const std::string text = R"(
    extern "C" __global__ void __launch_bounds__(256) k(const float* x, float* sums, int* votes, int n) {
      __shared__ float part[8];
      extern __shared__ float rows[];
      float sum = 0;
      for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) sum += x[i];
      rows[threadIdx.x ^ 1] = sum;
      __syncthreads();
      sum = rows[threadIdx.x];
      for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
      if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
      __syncthreads();
      if (threadIdx.x < 32) {
        sum = threadIdx.x < 8 ? part[threadIdx.x] : 0;
        for (int d = 4; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
      }
      int odd = 0;
      for (int k = 0; k < int(threadIdx.x % 5); ++k) odd += k * k;
      int count = __syncthreads_count(odd > 1), all = __syncthreads_and(odd >= 0), any = __syncthreads_or(odd > 100);
      unsigned ballot = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0), match = __match_any_sync(0xffffffffu, threadIdx.x % 4);
      int scan = threadIdx.x % 32;
      for (int d = 1; d < 32; d *= 2) { int v = __shfl_up_sync(0xffffffffu, scan, d); if (threadIdx.x % 32 >= d) scan += v; }
      int reduced = __reduce_add_sync(0xffffffffu, threadIdx.x % 32);
      if (blockIdx.x == 0) votes[threadIdx.x] = count + 1000 * all + 10000 * any + (__popc(ballot) << 16) + (__popc(match) << 24) + 7 * scan + 3 * reduced;
    })";
  const auto x = random_values<float>(10'000, -1, 1);
  for (const char* target : kTargets) {
    const Kernel k(text, target);
    const Buffer<float> from(x), sums(7);
    const Buffer<int> votes(256);
    k(7, 256, 1024, from.address(), sums.address(), votes.address(), int(x.size()));
    const auto parts = sums.host();
    EXPECT_NEAR(std::accumulate(parts.begin(), parts.end(), 0.0), std::accumulate(x.begin(), x.end(), 0.0), 1e-3);
    const auto v = votes.host();
    for (int t = 0; t < 256; ++t) {
      int odd = 0, count = 0, ballot = 0;
      for (int u = 0; u < 256; ++u) {
        odd = 0;
        for (int j = 0; j < u % 5; ++j) odd += j * j;
        count += odd > 1;
      }
      const int warp = t / 32 * 32, lane = t % 32;
      for (int u = warp; u < warp + 32; ++u) ballot += u % 3 == 0;
      ASSERT_EQ(v[std::size_t(t)], count + 1000 + (ballot << 16) + (8 << 24) + 7 * (lane * (lane + 1) / 2) + 3 * 496) << t;
    }
  }
}

TEST(Emulator, Atomics) {
  NEEDS_COMPILER;
  const std::string text = R"(
    extern "C" __global__ void k(int* a, float* f, double* d, unsigned long long* c) {
      __shared__ int s;
      if (threadIdx.x == 0) s = 0;
      __syncthreads();
      atomicAdd(&s, int(threadIdx.x));
      __syncthreads();
      if (threadIdx.x == 0) atomicAdd(a, s);
      atomicMax(a + 1, int(blockIdx.x * blockDim.x + threadIdx.x));
      atomicMin(a + 2, -int(threadIdx.x));
      atomicXor(a + 3, 1 << (threadIdx.x % 31));
      atomicAdd(f, 0.5f);
      atomicAdd(d, 0.25);
      atomicInc((unsigned*)a + 4, 9);
      atomicCAS(c, 0ull, 1ull + threadIdx.x);
      atomicExch(a + 5, 7);
    })";
  for (const char* target : kTargets) {
    const Kernel k(text, target);
    const Buffer<int> a(std::vector<int>(6, 0));
    const Buffer<float> f(std::vector<float>{1});
    const Buffer<double> d(std::vector<double>{1});
    const Buffer<std::uint64_t> c(std::vector<std::uint64_t>{0});
    k(10, 100, 0, a.address(), f.address(), d.address(), c.address());
    EXPECT_EQ(a.host(), (std::vector<int>{49500, 999, -99, 0, 0, 7}));
    EXPECT_EQ(f.host()[0], 501);
    EXPECT_EQ(d.host()[0], 251);
    EXPECT_NE(c.host()[0], 0u);
  }
}

// A product of 16 x 16 and 16 x 8 by ldmatrix and mma, its operands brought by cp.async.
TEST(Emulator, MatrixInstructions) {
  NEEDS_COMPILER;
  const std::string text = R"(
    typedef unsigned u32; typedef unsigned short u16;
    extern "C" __global__ void k(const u16* a, const u16* b, float* c) {  // a: 16 x 16, b: 16 x 8, row-major
      __shared__ __align__(16) u16 as[256], bs[128];
      int t = threadIdx.x;
      u32 at = (u32)__cvta_generic_to_shared(as), bt = (u32)__cvta_generic_to_shared(bs);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(at + 16 * t), "l"(a + 8 * t) : "memory");
      if (t < 16) asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(bt + 16 * t), "l"(b + 8 * t) : "memory");
      asm volatile("cp.async.commit_group;" ::: "memory");
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      __syncthreads();
      u32 ra[4], rb[2];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(at + 32 * (t % 16) + 16 * (t / 16)));
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(rb[0]), "=r"(rb[1]) : "r"(bt + 16 * (t % 16)));
      float d[4] = {1, 1, 1, 1};
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
      for (int j = 0; j < 4; ++j) c[(t / 4 + 8 * (j / 2)) * 8 + t % 4 * 2 + j % 2] = d[j];
    })";
  const auto x = random_values<float>(256, -1, 1), y = random_values<float>(128, -1, 1, 2);
  std::vector<std::uint16_t> a, b;
  for (float v : x) a.push_back(bf16(v).bits);
  for (float v : y) b.push_back(bf16(v).bits);
  const auto value = [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); };
  for (const char* target : kTargets) {
    const Kernel k(text, target);
    const Buffer<std::uint16_t> from(a), by(b);
    const Buffer<float> to(128);
    k(1, 32, 0, from.address(), by.address(), to.address());
    const auto c = to.host();
    for (std::size_t i = 0; i < 16; ++i)
      for (std::size_t j = 0; j < 8; ++j) {
        double sum = 1;
        for (std::size_t n = 0; n < 16; ++n) sum += double(value(a[i * 16 + n])) * double(value(b[n * 8 + j]));
        EXPECT_NEAR(c[i * 8 + j], sum, 1e-5);
      }
  }
}

// s = a b^T and o = 1 + bf16(s) v by wgmma, from tiles of 128-byte rows whose chunks are swizzled.
TEST(Emulator, WarpgroupProducts) {
  NEEDS_COMPILER;
  const std::string text = R"(
    #define DEVICE __device__ __forceinline__
    typedef unsigned u32; typedef unsigned short u16; typedef unsigned long long u64; typedef float real;
  )" + wgmma_text(std::array{16, 72}) +
                           R"(
    DEVICE u64 descriptor(const u16* tile, int block) {
      return u64((u32)__cvta_generic_to_shared(tile) >> 4) | u64(block >> 4) << 16 | u64(64) << 32 | u64(1) << 62;
    }
    DEVICE void copy(u16* tile, int block, const u16* from, int rows, int columns) {
      for (int i = threadIdx.x; i < rows * columns; i += 128) {
        int row = i / columns, column = i % columns;
        tile[column / 64 * block / 2 + row * 64 + ((column / 8 % 8) ^ (row % 8)) * 8 + column % 8] = from[i];
      }
    }
    extern "C" __global__ void k(const u16* a, const u16* b, const u16* v, float* s, float* o) {  // 64 x 32, 16 x 32, 16 x 72
      extern __shared__ __align__(1024) u16 at[];
      u16 *bt = at + 64 * 64, *vt = bt + 16 * 64;
      copy(at, 0, a, 64, 32), copy(bt, 0, b, 16, 32), copy(vt, 2048, v, 16, 72);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
      float x[2][4], y[9][4];
      u32 w[4];
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
      Wgmma<16>::multiply(x, descriptor(at, 0), descriptor(bt, 0));
      Wgmma<16>::multiply_add(x, descriptor(at, 0) + 2, descriptor(bt, 0) + 2);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      for (int i = 0; i < 4; ++i)
        asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w[i]) : "f"(x[i / 2][i % 2 * 2 + 1]), "f"(x[i / 2][i % 2 * 2]));
      for (int n = 0; n < 9; ++n)
        for (int e = 0; e < 4; ++e) y[n][e] = 1;
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
      Wgmma<72>::weigh(y, w, descriptor(vt, 2048));
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
      for (int e = 0; e < 4; ++e) {
        for (int n = 0; n < 2; ++n) s[(row + 8 * (e / 2)) * 16 + 8 * n + column + e % 2] = x[n][e];
        for (int n = 0; n < 9; ++n) o[(row + 8 * (e / 2)) * 72 + 8 * n + column + e % 2] = y[n][e];
      }
    })";
  const auto rounded = [](std::size_t n, unsigned seed) {
    std::vector<std::uint16_t> bits;
    for (float x : random_values<float>(n, -1, 1, seed)) bits.push_back(bf16(x).bits);
    return bits;
  };
  const auto value = [](std::uint16_t bits) { return double(std::bit_cast<float>(std::uint32_t(bits) << 16)); };
  const auto a = rounded(64 * 32, 1), b = rounded(16 * 32, 2), v = rounded(16 * 72, 3);
  const Kernel k(text, "compute_90a");
  const Buffer<std::uint16_t> a_at(a), b_at(b), v_at(v);
  const Buffer<float> s_at(64 * 16), o_at(64 * 72);
  constexpr unsigned kShared = 64 * 128 + 16 * 128 + 2 * 16 * 128;
  k(1, 128, kShared, a_at.address(), b_at.address(), v_at.address(), s_at.address(), o_at.address());
  const auto s = s_at.host(), o = o_at.host();
  for (std::size_t i = 0; i < 64; ++i) {
    for (std::size_t j = 0; j < 16; ++j) {
      double sum = 0;
      for (std::size_t n = 0; n < 32; ++n) sum += value(a[i * 32 + n]) * value(b[j * 32 + n]);
      EXPECT_NEAR(s[i * 16 + j], sum, 1e-5) << i << ", " << j;
    }
    for (std::size_t j = 0; j < 72; ++j) {
      double sum = 1;
      for (std::size_t n = 0; n < 16; ++n) sum += value(bf16(s[i * 16 + n]).bits) * value(v[n * 72 + j]);
      EXPECT_NEAR(o[i * 72 + j], sum, 1e-5) << i << ", " << j;
    }
  }
  const Kernel other(std::string(text).replace(text.find("u64(1) << 62"), 12, "u64(2) << 62"), "compute_90a");
  expect_error(ErrorKind::device, {"a matrix of another layout"},
               [&] { other(1, 128, kShared, a_at.address(), b_at.address(), v_at.address(), s_at.address(), o_at.address()); });
}

TEST(Emulator, TransposesMatrices) {
  NEEDS_COMPILER;
  const Kernel k(R"(extern "C" __global__ void k(const unsigned* x, unsigned* y) {
    unsigned d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(x[threadIdx.x]));
    y[threadIdx.x] = d;
  })");
  std::vector<std::uint32_t> x(32);
  const auto number = [](std::size_t row, std::size_t column) { return std::uint32_t(1000 * row + 7 * column + 3); };
  for (std::size_t row = 0; row < 8; ++row)
    for (std::size_t column = 0; column < 8; column += 2)
      x[4 * row + column / 2] = number(row, column) | number(row, column + 1) << 16;
  const Buffer<std::uint32_t> from(x), to(32);
  k(1, 32, 0, from.address(), to.address());
  const auto y = to.host();
  for (std::size_t row = 0; row < 8; ++row)
    for (std::size_t column = 0; column < 8; column += 2)
      EXPECT_EQ(y[4 * row + column / 2], number(column, row) | number(column + 1, row) << 16) << row << ", " << column;
}

// ---- the driver -------------------------------------------------------------------------------------------------------------

TEST(Emulator, Graphs) {
  NEEDS_COMPILER;
  const Kernel k("extern \"C\" __global__ void k(int* x, int by) { x[threadIdx.x] += by; }");
  const Buffer<int> x(std::vector<int>(32, 1));
  CUstream stream = nullptr;
  emu().cuStreamCreate(&stream, 0);
  EXPECT_EQ(emu().cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), CUDA_SUCCESS);
  k.launch(1, 32, 0, stream, x.address(), 2);
  k.launch(1, 32, 0, stream, x.address(), 3);
  CUgraph graph = nullptr;
  EXPECT_EQ(emu().cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
  EXPECT_EQ(x.host(), std::vector<int>(32, 1)) << "nothing runs while captured";
  CUgraphExec exec = nullptr;
  emu().cuGraphInstantiateWithFlags(&exec, graph, 0);
  emu().cuGraphLaunch(exec, stream);
  emu().cuGraphLaunch(exec, stream);
  EXPECT_EQ(x.host(), std::vector<int>(32, 11));
  emu().cuGraphExecDestroy(exec), emu().cuGraphDestroy(graph), emu().cuStreamDestroy(stream);
}

TEST(Emulator, ReservedAddresses) {
  CUdeviceptr base = 0;
  constexpr std::size_t kPiece = std::size_t(2) << 20;
  ASSERT_EQ(emu().cuMemAddressReserve(&base, 64 * kPiece, 0, 0, 0), CUDA_SUCCESS);
  CUmemGenericAllocationHandle memory = 0;
  const CUmemAllocationProp properties;
  for (std::size_t n = 0; n < 2; ++n) {
    emu().cuMemCreate(&memory, kPiece, &properties, 0);
    EXPECT_EQ(emu().cuMemMap(base + n * kPiece, kPiece, 0, memory, 0), CUDA_SUCCESS);
  }
  EXPECT_EQ(emu().cuMemsetD8(base + kPiece - 8, 7, 16), CUDA_SUCCESS);
  expect_error(ErrorKind::device, {"out of bounds"}, [&] { emu().cuMemsetD8(base + 2 * kPiece - 8, 7, 16); });
  emu().cuMemUnmap(base, kPiece);
  expect_error(ErrorKind::device, {"out of bounds"}, [&] { emu().cuMemsetD8(base, 7, 16); });
  emu().cuMemUnmap(base + kPiece, kPiece), emu().cuMemAddressFree(base, 64 * kPiece);
}

// ---- what it must find; each planted fault has a twin without it ------------------------------------------------------------

// The kernel fails with these words; its twin does not.
void planted(const std::string& bad, const std::string& good, const std::vector<std::string>& words, unsigned grid = 2,
             unsigned block = 64) {
  const Buffer<int> x(std::vector<int>(128, 1)), y(128), other(128);
  const auto text = [](const std::string& body) {
    return "extern \"C\" __global__ void k(const int* x, int* y, int n) { int t = threadIdx.x, i = blockIdx.x * "
           "blockDim.x + t;\n" +
           body + "\n}";
  };
  const Kernel right(text(good)), wrong(text(bad));
  right(grid, block, 0, x.address(), other.address(), 128);
  std::vector<std::string> all = words;
  all.insert(all.end(), {"kernel k", "PTX line", "source line"});
  expect_error(ErrorKind::device, all, [&] { wrong(grid, block, 0, x.address(), y.address(), 128); });
}

TEST(Emulator, FindsOutOfBounds) {
  NEEDS_COMPILER;
  planted("y[i] = x[i + 1];", "y[i] = x[i];",
          {"read of 4 bytes out of bounds", "0 bytes past the end of allocation", "block (1, 0, 0), thread (63, 0, 0)"});
  planted("y[i + 1] = i;", "y[i] = i;", {"write of 4 bytes out of bounds", "st.global"});
  planted("y[i] = x[i - 1];", "y[i] = i > 0 ? x[i - 1] : 0;", {"out of bounds", "4 bytes before"});
  planted("__shared__ int s[64]; s[t + n / 128] = t; __syncthreads(); y[i] = s[63 - t];",
          "__shared__ int s[64]; s[t] = t; __syncthreads(); y[i] = s[63 - t];", {"out of bounds of shared memory"});
}

TEST(Emulator, FindsMisalignedAddresses) {
  NEEDS_COMPILER;
  planted("int2 v = *(const int2*)(x + t / 2 * 2 + n % 2 + 1); y[i] = v.x + v.y;",
          "int2 v = *(const int2*)(x + t / 2 * 2); y[i] = v.x + v.y;", {"misaligned"});
}

TEST(Emulator, FindsUnwrittenMemory) {
  NEEDS_COMPILER;
  planted("y[i] = y[i] + 1;", "y[i] = 0; y[i] = y[i] + x[i];", {"read of global memory that nobody has written"});
  planted("__shared__ int s[64]; if (t != 5) s[t] = t; __syncthreads(); y[i] = s[63 - t];",
          "__shared__ int s[64]; s[t] = t; __syncthreads(); y[i] = s[63 - t];",
          {"read of shared memory that nobody has written", "thread (58, 0, 0)"});
}

TEST(Emulator, FindsDivergentBarriers) {
  NEEDS_COMPILER;
  planted("if (t < 40) __syncthreads(); y[i] = t;", "if (t < n) __syncthreads(); y[i] = t;", {"barrier"});
  planted("if (t < 32) __syncthreads(); else { y[i] = 1; asm volatile(\"bar.sync 1;\"); } y[i] = t;",
          "__syncthreads(); y[i] = t;", {"barrier"});
}

TEST(Emulator, FindsShufflesOfInactiveLanes) {
  NEEDS_COMPILER;
  planted("int v = t; if (t % 32 < 16) v = __shfl_xor_sync(0x0000ffffu, v, 16); y[i] = v;",
          "int v = t; if (t % 32 < 16) v = __shfl_xor_sync(0x0000ffffu, v, 8); y[i] = v;",
          {"a shuffle from a lane that does not execute it"});
}

TEST(Emulator, NamesWhatItDoesNotKnow) {
  const std::string ptx =
      ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n  tcgen05.fence::after_thread_sync;\n  "
      "ret;\n}\n";
  expect_error(ErrorKind::device, {"tcgen05.fence::after_thread_sync", "kernel k", "PTX line 6"},
               [&] { const Kernel k(ptx, "", true); });
  expect_error(ErrorKind::device, {"line 2"}, [&] { const Kernel k(".version 8.0\n.nonsense 3\n", "", true); });
}

TEST(Emulator, FindsRacesInSharedMemory) {
  NEEDS_COMPILER;
  // A missing barrier, between warps and within one; a barrier too few in a loop; two writers.
  planted("__shared__ int s[64]; s[t] = t; y[i] = s[t ^ 32 * (n / 128)];",
          "__shared__ int s[64]; s[t] = t; __syncthreads(); y[i] = s[t ^ 32];", {"of shared memory"});
  planted("__shared__ int s[64]; s[t] = 0; __syncthreads(); s[t] = t; y[i] = s[63 - t];",
          "__shared__ int s[64]; s[t] = 0; __syncthreads(); s[t] = t; __syncthreads(); y[i] = s[63 - t];",
          {"a race in shared memory", "the other is thread ("});
  planted("__shared__ int s[64]; s[t] = t; int v = s[t ^ 1]; y[i] = v;",
          "__shared__ int s[64]; s[t] = t; __syncwarp(); int v = s[t ^ 1]; y[i] = v;",
          {"a race in shared memory", "__syncwarp()"});
  planted(
      "__shared__ int s[64]; int v = 0; for (int j = 0; j < 4; ++j) { s[t] = j; __syncthreads(); v += s[63 - t]; } "
      "y[i] = v;",
      "__shared__ int s[64]; int v = 0; for (int j = 0; j < 4; ++j) { s[t] = j; __syncthreads(); v += s[63 - t]; "
      "__syncthreads(); } y[i] = v;",
      {"a race in shared memory"});
  planted("__shared__ int s; s = t; __syncthreads(); y[i] = s;", "__shared__ int s; s = n; __syncthreads(); y[i] = s;",
          {"a race in shared memory"});
  planted("__shared__ short s[64]; s[t | 1] = t; __syncthreads(); y[i] = s[t | 1];",
          "__shared__ short s[64]; s[t] = t; __syncthreads(); y[i] = s[t];", {"a race in shared memory"});
}

// Warp 0 fills the halves of a buffer in turn for warp 1. Barriers h + 1: half h is full; h + 3: it may be filled again.
TEST(Emulator, NamedBarriers) {
  NEEDS_COMPILER;
  const auto text = [](const std::string& full, const std::string& free) {
    return R"(__shared__ int s[2][32]; const int lane = t % 32; int v = 0;
      for (int k = 0; k < 6; ++k) {
        const int h = k % 2;
        if (t < 32) {
          if (k >= 2) asm volatile("bar.sync %0, 64;" :: "r"(h + 3) : "memory");
          s[h][lane] = 100 * k + lane + n;
          )" +
           full + R"(
        } else {
          asm volatile("bar.sync %0, 64;" :: "r"(h + 1) : "memory");
          v += s[h][31 - lane];
          )" +
           free + R"(
        }
      }
      y[i] = v;)";
  };
  const std::string full = "asm volatile(\"bar.arrive %0, 64;\" :: \"r\"(h + 1) : \"memory\");",
                    free = "if (k < 4) asm volatile(\"bar.arrive %0, 64;\" :: \"r\"(h + 3) : \"memory\");";
  const std::string early = "if (k < 4) asm volatile(\"bar.arrive %0, 64;\" :: \"r\"(h + 3) : \"memory\"); v += s[h][lane];";
  planted(text(full, early), text(full, free), {"a race in shared memory"});
  planted(text(full, "if (k < 3) " + free), text(full, free), {"barrier 4 has 32 of 64 threads"});
  planted(text(full + full, free), text(full, free), {"barrier 1: a warp comes again"});
}

TEST(Emulator, FindsRacesBetweenBlocks) {
  NEEDS_COMPILER;
  planted("y[t] = i;", "y[i] = i;", {"a race in global memory", "the other is block (", "allocation"});
  planted("y[i] = i; __syncthreads(); y[i] += y[127 - i];", "y[i] = i; __syncthreads(); y[i] += y[i];", {"global memory"});
  planted("((char*)y)[t] = i;", "((char*)y)[i] = i;", {"a race"});
  // The last block to come reads what the others wrote.
  const Kernel k(R"(extern "C" __global__ void k(int* parts, int* count, int* sum) {
    __shared__ bool last;
    if (threadIdx.x == 0) { parts[blockIdx.x] = blockIdx.x; __threadfence(); last = atomicAdd(count, 1) == gridDim.x - 1; }
    __syncthreads();
    if (last && threadIdx.x == 0) { int s = 0; for (int b = 0; b < gridDim.x; ++b) s += ((volatile int*)parts)[b]; *sum = s; }
  })");
  const Buffer<int> parts(20), count(std::vector<int>{0}), sum(1);
  k(20, 64, 0, parts.address(), count.address(), sum.address());
  EXPECT_EQ(sum.host()[0], 190);
}

TEST(Emulator, FindsCopiesThatNobodyWaitsFor) {
  NEEDS_COMPILER;
  const std::string start =
      "__shared__ int s[64]; asm volatile(\"cp.async.ca.shared.global [%0], [%1], 4; cp.async.commit_group;\" :: "
      "\"r\"((unsigned)__cvta_generic_to_shared(s + t)), \"l\"(x + i) : \"memory\");";
  planted(start + "__syncthreads(); y[i] = s[63 - t];",
          start + "asm volatile(\"cp.async.wait_group 0;\" ::: \"memory\"); __syncthreads(); y[i] = s[63 - t];",
          {"read of shared memory that nobody has written"});
}

// ---- counters, against numbers found by hand --------------------------------------------------------------------------------

EmulatedCounters counted(const Kernel& k, const auto& launch) {
  reset_emulated_counters();
  launch(k);
  const auto all = emulated_counters();
  EXPECT_EQ(all.size(), 1u);
  return all.at("k");
}

TEST(Emulator, CountsInstructions) {
  const Kernel k(R"(.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
  .reg .pred %p<3>;
  .reg .b32 %r<5>;
  .reg .b64 %rd<5>;
  .reg .f32 %f<4>;
  ld.param.u64 %rd1, [p];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, 0;
LOOP:
  add.s32 %r2, %r2, 1;
  setp.lt.s32 %p1, %r2, 10;
  @%p1 bra LOOP;
  setp.lt.u32 %p2, %r1, 8;
  @%p2 add.s32 %r2, %r2, 1;
  cvt.rn.f32.s32 %f1, %r2;
  ex2.approx.f32 %f2, %f1;
  @%p2 bra SKIP;
  add.f32 %f2, %f2, %f1;
SKIP:
  shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;
  bar.sync 0;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd2, %rd3;
  st.global.f32 [%rd4], %f2;
  ret;
}
)",
                 "", true);
  const Buffer<float> y(64);
  const EmulatedCounters c = counted(k, [&](const Kernel& kernel) {
    for (int i = 0; i < 3; ++i) kernel(1, 40, 0, y.address());
  });
  // 3 launches of a block: a warp with all lanes, of which 8 branch to SKIP, and a warp with 8 lanes.
  using Counters = EmulatedCounters;
  const auto expect = [&](Counters::Class kind, std::uint64_t warps, std::uint64_t threads) {
    EXPECT_EQ(c.warp_instructions[kind], 3 * warps) << Counters::kClassNames[kind];
    EXPECT_EQ(c.thread_instructions[kind], 3 * threads) << Counters::kClassNames[kind];
  };
  EXPECT_EQ(c.launches, 3u);
  expect(Counters::integer, 2 * (2 * 10 + 2 + 2), 40 * (2 * 10 + 1 + 2) + 8);
  expect(Counters::floating, 2, 32);
  expect(Counters::special, 2, 40);
  expect(Counters::conversion, 2, 40);
  expect(Counters::exchange, 2, 40);
  expect(Counters::barrier, 2, 40);
  expect(Counters::branch, 2 * (10 + 1 + 1), 40 * 9 + 8 + 40);
  expect(Counters::global, 2, 40);
  expect(Counters::other, 2 * 4, 40 * 4);
  expect(Counters::shared, 0, 0);
  EXPECT_EQ(c.global_written, 3 * 40 * 4u);
  EXPECT_EQ(c.global_read, 0u);
  EXPECT_EQ(c.global_requests, 3 * 2u);
  EXPECT_EQ(c.global_sectors, 3 * (4 + 1u));
}

TEST(Emulator, CountsSectors) {
  NEEDS_COMPILER;
  const Kernel k(R"(
    extern "C" __global__ void k(const char* x, int* y, long long stride, int bytes) {
      const char* from = x + threadIdx.x * stride;
      int4 v4 = bytes == 16 ? *(const int4*)from : int4{};
      int v = bytes == 16 ? v4.x + v4.y + v4.z + v4.w : bytes == 4 ? *(const int*)from : *from;
      if (v == 12345) *y = v;
    })");
  const Buffer<int> x(std::vector<int>(16384, 1)), y(1);
  const auto sectors = [&](long long stride, int bytes, int offset = 0, unsigned threads = 32) {
    const EmulatedCounters c =
        counted(k, [&](const Kernel& kernel) { kernel(1, threads, 0, x.address() + offset, y.address(), stride, bytes); });
    EXPECT_EQ(c.global_requests, (threads + 31) / 32);
    EXPECT_EQ(c.global_read, std::uint64_t(bytes) * threads);
    return c.global_sectors;
  };
  EXPECT_EQ(sectors(4, 4), 4u);
  EXPECT_EQ(sectors(4, 4, 16), 5u) << "not at the beginning of a sector";
  EXPECT_EQ(sectors(8, 4), 8u);
  EXPECT_EQ(sectors(32, 4), 32u) << "a sector each";
  EXPECT_EQ(sectors(2048, 4), 32u) << "a sector each, far apart";
  EXPECT_EQ(sectors(0, 4), 1u) << "all the same";
  EXPECT_EQ(sectors(16, 16), 16u);
  EXPECT_EQ(sectors(1, 1), 1u);
  EXPECT_EQ(sectors(-4, 4, 31 * 4), 4u) << "backwards";
  EXPECT_EQ(sectors(4, 4, 0, 40), 5u) << "a warp of 32 lanes and one of 8";
}

TEST(Emulator, CountsBankConflicts) {
  NEEDS_COMPILER;
  const Kernel k(R"(
    extern "C" __global__ void k(int* y, int stride, int bytes) {
      __shared__ __align__(16) int s[1056];
      for (int j = threadIdx.x; j < 1056; j += 32) s[j] = 1;
      __syncthreads();
      const int* from = s + threadIdx.x * stride;
      int4 v4 = bytes == 16 ? *(const int4*)from : int4{};
      int2 v2 = bytes == 8 ? *(const int2*)from : int2{};
      int v = bytes == 16 ? v4.x + v4.y + v4.z + v4.w : bytes == 8 ? v2.x + v2.y : bytes == 4 ? *from : bytes == 1 ? ((const char*)s)[threadIdx.x * stride] : atomicAdd(s + threadIdx.x * stride, 1);
      if (v == 12345) *y = v;
    })");
  const Buffer<int> y(1);
  // Passes, and those that conflicts have caused, of one read; 33 writes come before it.
  const auto passes = [&](int stride, int bytes) {
    const EmulatedCounters c = counted(k, [&](const Kernel& kernel) { kernel(1, 32, 0, y.address(), stride, bytes); });
    EXPECT_EQ(c.shared_read, 32u * unsigned(bytes ? bytes : 4));
    EXPECT_EQ(c.shared_written, 4 * (1056u + (bytes ? 0 : 32)));
    return std::pair(c.shared_wavefronts - 33, c.bank_conflicts);
  };
  using Passes = std::pair<std::uint64_t, std::uint64_t>;
  EXPECT_EQ(passes(1, 4), Passes(1, 0));
  EXPECT_EQ(passes(2, 4), Passes(2, 1)) << "two lanes a bank";
  EXPECT_EQ(passes(32, 4), Passes(32, 31)) << "a column of 32 words a row";
  EXPECT_EQ(passes(33, 4), Passes(1, 0)) << "the same, padded";
  EXPECT_EQ(passes(0, 4), Passes(1, 0)) << "one word for all";
  EXPECT_EQ(passes(1, 1), Passes(1, 0));
  EXPECT_EQ(passes(2, 8), Passes(2, 0)) << "a half of the warp at a time";
  EXPECT_EQ(passes(4, 8), Passes(4, 2));
  EXPECT_EQ(passes(4, 16), Passes(4, 0)) << "a quarter at a time";
  EXPECT_EQ(passes(8, 16), Passes(8, 4));
  EXPECT_EQ(passes(32, 16), Passes(32, 28));
  EXPECT_EQ(passes(1, 0), Passes(1, 0)) << "atomics";
  EXPECT_EQ(passes(0, 0), Passes(32, 31)) << "atomics of one word, one after the other";
}

TEST(Emulator, CountsUpToAnError) {
  NEEDS_COMPILER;
  const Kernel k("extern \"C\" __global__ void k(int* y, int n) { y[threadIdx.x] = 1; y[threadIdx.x + n] = 2; }");
  const Buffer<int> y(32);
  const EmulatedCounters c = counted(k, [&](const Kernel& kernel) {
    expect_error(ErrorKind::device, {"out of bounds"}, [&] { kernel(1, 32, 0, y.address(), 32); });
  });
  EXPECT_EQ(c.launches, 1u);
  EXPECT_EQ(c.global_written, 32 * 4u);
}

// Divergence, shuffles that wait for lanes, local memory, and blocks on several threads: the same numbers every time.
TEST(Emulator, CountsRepeat) {
  NEEDS_COMPILER;
  const Kernel k(R"(
    extern "C" __global__ void k(int* y, int n) {
      int t = threadIdx.x, local[8], sum = 0;
      for (int j = 0; j < 8; ++j) local[(j + n) % 8] = t * j;
      for (int j = 0; j < t % 7; ++j) sum += local[(j * n) % 8];
      if (t % 32 < 13) sum += __shfl_xor_sync(0x1fff, sum, t % 32 < 12 ? 1 : 0); else sum -= 1;
      sum += __reduce_add_sync(0xffffffffu, sum);
      atomicAdd(y + sum % 64u, 1);
    })");
  const Buffer<int> y(std::vector<int>(64, 0));
  const int before = threads();
  std::vector<EmulatedCounters> all;
  for (int n : {1, 4, 1}) {
    set_threads(n);
    all.push_back(counted(k, [&](const Kernel& kernel) { kernel(50, 96, 0, y.address(), 3); }));
  }
  set_threads(before);
  EXPECT_EQ(all[0], all[1]);
  EXPECT_EQ(all[0], all[2]);
  EXPECT_EQ(all[0].local_written, 50 * 96 * 8 * 4u);
  EXPECT_EQ(all[0].thread_instructions[EmulatedCounters::exchange], 50 * 3 * (13 + 32u));
  EXPECT_EQ(all[0].warp_instructions[EmulatedCounters::exchange], 50 * 3 * 2u);
  EXPECT_EQ(all[0].global_read, 50 * 96 * 4u);
}

}  // namespace
}  // namespace weft
