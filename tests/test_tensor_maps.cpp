// Tensor maps and clusters (sm_90 and later): what the driver is told, how arguments are packed, and, on such a GPU, kernels
// that use them.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "autograd/lowering.h"
#include "autograd/plan.h"
#include "jit/gpu.h"
#include "tests/expect_error.h"
#include "tools/weft.h"

namespace weft {
namespace {

Operand operand(std::vector<std::int64_t> dims, DType dtype = DType::f32) { return dense_operand(3, dtype, dims); }

TEST(TensorMaps, DescribeAnOperandFromTheInnermostAxisOutwards) {
  Operand o = operand({5, 12, 64}, DType::bf16);
  o.offset = 128;
  o.strides[0] = 1024;
  const std::int64_t box[] = {1, 6, 32};
  const TmaMap map = tma_map(o, box, 64);
  EXPECT_EQ(map.slot, 3);
  EXPECT_EQ(map.offset, 256);  // bytes
  EXPECT_EQ(map.dtype, DType::bf16);
  EXPECT_EQ(map.rank, 3);
  EXPECT_EQ(map.dims, (std::array<std::uint64_t, 5>{64, 12, 5}));
  EXPECT_EQ(map.strides, (std::array<std::uint64_t, 4>{128, 2048}));
  EXPECT_EQ(map.box, (std::array<unsigned, 5>{32, 6, 1}));
  EXPECT_EQ(map.swizzle, 64);
}

TEST(TensorMaps, RefuseWhatTheEngineDoesNotTake) {
  const auto refused = [](const Operand& o, std::vector<std::int64_t> box, const std::string& why, int swizzle = 0) {
    expect_error(ErrorKind::usage, {"tensor map", why}, [&] { tma_map(o, box, swizzle); });
  };
  Operand o = operand({8, 16});
  EXPECT_NO_THROW(tma_map(o, std::vector<std::int64_t>{8, 16}));
  refused(o, {8}, "its box as many");
  refused(operand({1, 1, 1, 1, 2, 8}), {1, 1, 1, 1, 2, 8}, "1 to 5 axes");
  refused(o, {8, 3}, "a row of the box must be a multiple of 16 bytes");
  refused(o, {0, 16}, "1 to 256 elements");
  refused(operand({512, 512}), {257, 16}, "1 to 256 elements");
  refused(o, {8, 16}, "a row of the box is longer than the swizzle", 32);
  refused(o, {8, 16}, "0, 32, 64 or 128", 16);
  refused(operand({8, 18}), {8, 16}, "strides must be multiples of 16 bytes");
  o.offset = 2;
  refused(o, {8, 16}, "the first element");
  o = operand({8, 16});
  std::swap(o.strides[0], o.strides[1]);
  refused(o, {8, 16}, "the last axis must be contiguous");
}

// What the driver was asked for.
struct Encoded {
  cu::CUtensorMapDataType type;
  unsigned rank;
  void* address;
  std::vector<std::uint64_t> dims, strides;
  std::vector<unsigned> box, element_strides;
  cu::CUtensorMapSwizzle swizzle;
} encoded;

TEST(TensorMaps, AreEncodedByTheDriver) {
  Driver driver;
  driver.cuTensorMapEncodeTiled = [](cu::CUtensorMap* map, cu::CUtensorMapDataType type, unsigned rank, void* address,
                                     const std::uint64_t* dims, const std::uint64_t* strides, const unsigned* box,
                                     const unsigned* element_strides, cu::CUtensorMapInterleave, cu::CUtensorMapSwizzle swizzle,
                                     cu::CUtensorMapL2promotion, cu::CUtensorMapFloatOOBfill) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(map) % 64, 0u);  // the driver's condition
    encoded = {type,
               rank,
               address,
               {dims, dims + rank},
               {strides, strides + rank - 1},
               {box, box + rank},
               {element_strides, element_strides + rank},
               swizzle};
    map->opaque[15] = 77;
    return cu::CUDA_SUCCESS;
  };
  Operand o = operand({12, 64}, DType::bf16);
  o.offset = 64;
  const std::int64_t box[] = {6, 32};
  std::byte memory[256];
  EXPECT_EQ(encode(driver, tma_map(o, box, 64), memory).opaque[15], 77u);
  EXPECT_EQ(encoded.type, cu::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
  EXPECT_EQ(encoded.rank, 2u);
  EXPECT_EQ(encoded.address, memory + 128);
  EXPECT_EQ(encoded.dims, (std::vector<std::uint64_t>{64, 12}));
  EXPECT_EQ(encoded.strides, std::vector<std::uint64_t>{128});
  EXPECT_EQ(encoded.box, (std::vector<unsigned>{32, 6}));
  EXPECT_EQ(encoded.element_strides, (std::vector<unsigned>{1, 1}));
  EXPECT_EQ(encoded.swizzle, cu::CU_TENSOR_MAP_SWIZZLE_64B);
  const std::pair<DType, cu::CUtensorMapDataType> types[] = {{DType::f32, cu::CU_TENSOR_MAP_DATA_TYPE_FLOAT32},
                                                             {DType::f64, cu::CU_TENSOR_MAP_DATA_TYPE_FLOAT64},
                                                             {DType::i32, cu::CU_TENSOR_MAP_DATA_TYPE_INT32},
                                                             {DType::i64, cu::CU_TENSOR_MAP_DATA_TYPE_INT64},
                                                             {DType::boolean, cu::CU_TENSOR_MAP_DATA_TYPE_UINT8}};
  for (const auto& [dtype, type] : types) {
    encode(driver, tma_map(operand({4, 16}, dtype), std::vector<std::int64_t>{4, 16}), memory);
    EXPECT_EQ(encoded.type, type) << name_of(dtype);
    EXPECT_EQ(encoded.swizzle, cu::CU_TENSOR_MAP_SWIZZLE_NONE);
  }
  driver.cuGetErrorName = [](cu::CUresult, const char** text) { return *text = "REFUSED", cu::CUDA_SUCCESS; };
  driver.cuGetErrorString = driver.cuGetErrorName;
  driver.cuTensorMapEncodeTiled = [](auto...) { return cu::CUDA_ERROR_INVALID_VALUE; };
  expect_error(ErrorKind::device, {"cuTensorMapEncodeTiled"}, [&] {
    encode(driver, tma_map(operand({4, 16}), std::vector<std::int64_t>{4, 16}), memory);
  });
}

// As the compiler lays out the struct.
TEST(TensorMaps, LieInTheArgumentsAsInTheStruct) {
  struct Args {
    std::uint64_t a, b, c;
    cu::CUtensorMap x;
    std::uint64_t d;
    cu::CUtensorMap y, z;
    std::uint64_t e;
  } args{1, 2, 3, {}, 4, {}, {}, 5};
  args.x.opaque[0] = 10, args.y.opaque[0] = 20, args.z.opaque[15] = 30;
  PackedArgs packed;
  for (const std::uint64_t word : {args.a, args.b, args.c}) packed.add(word);
  packed.add(args.x);
  packed.add(args.d);
  packed.add(args.y), packed.add(args.z);
  packed.add(args.e);
  ASSERT_EQ(packed.words().size_bytes(), sizeof args);
  const auto at = [&](std::size_t offset) { return packed.words()[offset / 8]; };
  EXPECT_EQ(at(offsetof(Args, a)), 1u);
  EXPECT_EQ(at(offsetof(Args, c)), 3u);
  EXPECT_EQ(at(offsetof(Args, x)), 10u);
  EXPECT_EQ(at(offsetof(Args, d)), 4u);
  EXPECT_EQ(at(offsetof(Args, y)), 20u);
  EXPECT_EQ(at(offsetof(Args, z) + 120), 30u);
  EXPECT_EQ(at(offsetof(Args, e)), 5u);
  PackedArgs words;
  for (std::uint64_t i = 0; i < 20; ++i) words.add(i);
  for (std::uint64_t i = 0; i < 20; ++i) EXPECT_EQ(words.words()[i], i);
}

// ---- kernels ----------------------------------------------------------------------------------------------------------------

// Blocks of 8 x 16 of x (m, n), each transposed by the threads, after TMA has brought it to shared memory.
constexpr std::string_view kTile = R"(
extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS) {
  __shared__ alignas(128) float tile[R][C];
  __shared__ alignas(8) u64 arrived;
  const unsigned to = unsigned(__cvta_generic_to_shared(tile)), barrier = unsigned(__cvta_generic_to_shared(&arrived));
  const int row = int(blockIdx.y) * R, column = int(blockIdx.x) * C;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(barrier),
                 "r"(unsigned(sizeof tile)) : "memory");
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&a.x_map), "r"(column), "r"(row), "r"(barrier) : "memory");
  }
  __syncthreads();
  unsigned done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }" : "=r"(done)
                 : "r"(barrier) : "memory");
  for (int i = threadIdx.x; i < R * C; i += T) {
    const int r = i / C, c = i % C;
    if (row + r < a.m && column + c < a.n) a.y[i64(column + c) * a.m + row + r] = tile[r][c];
  }
}
)";

// Each block of a cluster of two writes what the other one has read: pairs of 32 elements change places.
constexpr std::string_view kCluster = R"(
extern "C" __global__ void __launch_bounds__(32) KERNEL(PARAMETERS) {
  __shared__ float mine[32];
  const int i = int(blockIdx.x) * 32 + threadIdx.x;
  unsigned rank, from;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  mine[threadIdx.x] = a.x[i];
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(from)
               : "r"(unsigned(__cvta_generic_to_shared(&mine[threadIdx.x]))), "r"(rank ^ 1));
  float other;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(other) : "r"(from) : "memory");
  a.y[i] = other;
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");  // the other one reads mine
}
)";

void needs_sm_90(const Lowering& l) {
  if (l.target().capability < 90) fail(ErrorKind::usage, "this test's kernel is for sm_90");
}

void cuda_tile(Lowering& l) {
  constexpr std::int64_t kRows = 8, kColumns = 16;
  constexpr unsigned kThreads = 64;
  needs_sm_90(l);
  const Operand x = l.dense(0), y = l.output();
  const std::int64_t box[] = {kRows, kColumns}, m = x.dims[0], n = x.dims[1];
  CudaText text = l.text("tma_transpose");
  text.define("R", kRows).define("C", kColumns).define("T", kThreads).tma_map("x_map", x, box);
  text.pointer("y", y).integer("m", m).integer("n", n);
  l.emit(text.launch_text(kTile, {unsigned((n + kColumns - 1) / kColumns), unsigned((m + kRows - 1) / kRows), 1},
                          {kThreads, 1, 1}));
}
void cuda_cluster(Lowering& l) {
  needs_sm_90(l);
  const Operand x = l.dense(0), y = l.output();
  CudaText text = l.text("cluster_exchange");
  text.pointer("x", x).pointer("y", y).cluster(2);
  l.emit(text.launch_text(kCluster, {unsigned(x.numel() / 32), 1, 1}, {32, 1, 1}));
}
void no_cpu(Lowering&) { fail(ErrorKind::usage, "this test's kernel is for a GPU"); }

Tensor transposed_by_tma(const Tensor& x) {
  static const Op& op = register_op({.name = "test_tile", .lower = no_cpu, .cuda = cuda_tile, .dense_outputs = true});
  return record(op, {x}, {{Shape{x.dim(1), x.dim(0)}, DType::f32}}, {}, {}, Site::current());
}
Tensor exchanged(const Tensor& x) {
  static const Op& op = register_op({.name = "test_cluster", .lower = no_cpu, .cuda = cuda_cluster, .dense_outputs = true});
  return record(op, {x}, {{x.shape(), DType::f32}}, {}, {}, Site::current());
}

Tensor ramp(const Shape& shape) {
  std::vector<float> values(std::size_t(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(i);
  return Tensor::from(values, shape);
}

const CudaKernel& kernel_of(const Plan& plan) { return *std::get<CudaKernelPointer>(plan.kernels.at(0).work); }

TEST(TensorMaps, StandInThePlan) {
  const Tensor x = ramp({20, 36});
  const auto plan = plan_for(target_for("sm_90a"), [&] { return transposed_by_tma(x); });
  const CudaKernel& k = kernel_of(*plan);
  ASSERT_EQ(k.maps.size(), 1u);
  EXPECT_EQ(k.maps[0].dims[0], 36u);
  EXPECT_EQ(std::count_if(k.args.begin(), k.args.end(), [](const CudaArg& a) { return a.kind == CudaArg::map; }), 1);
  EXPECT_EQ(kernel_of(*plan_for(target_for("sm_90a"), [&] { return exchanged(ramp({64})); })).cluster,
            (std::array<unsigned, 3>{2, 1, 1}));
}

TEST(TensorMaps, TheirKernelsCompile) {
  if (const auto missing = missing_library(CudaLibrary::nvrtc)) GTEST_SKIP() << *missing;
  const auto tile = plan_for(target_for("sm_90a"), [] { return transposed_by_tma(ramp({20, 36})); });
  const auto cluster = plan_for(target_for("sm_90a"), [] { return exchanged(ramp({64})); });
  for (const Plan* plan : {tile.get(), cluster.get()}) {
    const Compiled compiled = compile(kernel_of(*plan).name, complete_text(kernel_of(*plan)), "sm_90a");
    EXPECT_FALSE(compiled.cubin.empty());
    EXPECT_EQ(compiled.spill_bytes, 0);
  }
}

// On a GPU that has them: launched one by one, then in a graph.
class TensorMapsOnGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto missing = missing_cuda_device()) GTEST_SKIP() << *missing;
    use_device("cuda");
    if (target().capability < 90) GTEST_SKIP() << Gpu::of(Device::cuda).name() << " has neither TMA nor clusters";
  }
  void TearDown() override { use_device(name_of(before_)); }
  const Device before_ = device();
};

TEST_F(TensorMapsOnGpu, ATileIsLoaded) {
  const Tensor x = ramp({20, 36});  // the last boxes reach over both ends
  const std::vector<float> expected = run([&] { return transpose(x); }).to_host<float>();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run([&] { return transposed_by_tma(x); }).to_host<float>(), expected) << i;
}

TEST_F(TensorMapsOnGpu, AClusterSharesItsMemory) {
  const Tensor x = ramp({256});
  std::vector<float> expected(256);
  for (std::size_t i = 0; i < 256; ++i) expected[i] = float(i ^ 32);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run([&] { return exchanged(x); }).to_host<float>(), expected) << i;
}

}  // namespace
}  // namespace weft
