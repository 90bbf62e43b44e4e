// weft's declarations of the CUDA libraries against NVIDIA's headers, and what is said about libraries that are
// missing.
#include "jit/driver.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <link.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <type_traits>

#include "tests/expect_error.h"
#include "tests/temp_folder.h"

#if __has_include(<cuda.h>) && __has_include(<cudaProfiler.h>) && __has_include(<nvrtc.h>) && __has_include(<cublasLt.h>)
#define WEFT_HAS_CUDA_HEADERS
#endif

#ifdef WEFT_HAS_CUDA_HEADERS

// clang-format off
#define ENUMERATORS(X) \
  X(CUDA_SUCCESS) X(CUDA_ERROR_INVALID_VALUE) X(CUDA_ERROR_OUT_OF_MEMORY) X(CUDA_ERROR_NOT_INITIALIZED) \
  X(CUDA_ERROR_NO_DEVICE) X(CUDA_ERROR_INVALID_DEVICE) X(CUDA_ERROR_INVALID_IMAGE) X(CUDA_ERROR_NO_BINARY_FOR_GPU) \
  X(CUDA_ERROR_INVALID_PTX) X(CUDA_ERROR_INVALID_HANDLE) X(CUDA_ERROR_NOT_FOUND) X(CUDA_ERROR_NOT_READY) \
  X(CUDA_ERROR_ILLEGAL_ADDRESS) X(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES) X(CUDA_ERROR_LAUNCH_FAILED) \
  X(CUDA_ERROR_NOT_SUPPORTED) X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) X(CUDA_ERROR_UNKNOWN) \
  X(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK) X(CU_DEVICE_ATTRIBUTE_WARP_SIZE) X(CU_DEVICE_ATTRIBUTE_CLOCK_RATE) \
  X(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) X(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE) \
  X(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH) X(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) \
  X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) \
  X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) \
  X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) \
  X(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) X(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) \
  X(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) X(CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES) \
  X(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES) X(CU_FUNC_ATTRIBUTE_NUM_REGS) X(CU_FUNC_ATTRIBUTE_BINARY_VERSION) \
  X(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) X(CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) \
  X(CU_STREAM_NON_BLOCKING) X(CU_EVENT_DISABLE_TIMING) X(CU_MEMHOSTALLOC_PORTABLE) X(CU_STREAM_CAPTURE_MODE_GLOBAL) \
  X(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) X(CU_STREAM_CAPTURE_MODE_RELAXED) X(CU_MEM_ALLOC_GRANULARITY_MINIMUM) \
  X(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) X(CU_LAUNCH_ATTRIBUTE_IGNORE) X(CU_LAUNCH_ATTRIBUTE_COOPERATIVE) \
  X(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) X(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) \
  X(CU_JIT_INFO_LOG_BUFFER) X(CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES) X(CU_JIT_ERROR_LOG_BUFFER) \
  X(CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) X(CU_LIBRARY_HOST_UNIVERSAL_FUNCTION_AND_DATA_TABLE) \
  X(CU_LIBRARY_BINARY_IS_PRESERVED) X(NVRTC_SUCCESS) X(NVRTC_ERROR_OUT_OF_MEMORY) X(NVRTC_ERROR_INVALID_OPTION) \
  X(NVRTC_ERROR_COMPILATION) X(NVRTC_ERROR_BUILTIN_OPERATION_FAILURE) X(CUBLAS_STATUS_SUCCESS) \
  X(CUBLAS_STATUS_NOT_INITIALIZED) X(CUBLAS_STATUS_ALLOC_FAILED) X(CUBLAS_STATUS_INVALID_VALUE) \
  X(CUBLAS_STATUS_ARCH_MISMATCH) X(CUBLAS_STATUS_MAPPING_ERROR) X(CUBLAS_STATUS_EXECUTION_FAILED) \
  X(CUBLAS_STATUS_INTERNAL_ERROR) X(CUBLAS_STATUS_NOT_SUPPORTED) X(CUBLAS_COMPUTE_32F) \
  X(CUBLAS_COMPUTE_32F_PEDANTIC) X(CUBLAS_COMPUTE_64F) X(CUBLAS_COMPUTE_32F_FAST_TF32) \
  X(CUBLASLT_MATRIX_LAYOUT_TYPE) X(CUBLASLT_MATRIX_LAYOUT_ORDER) X(CUBLASLT_MATRIX_LAYOUT_ROWS) \
  X(CUBLASLT_MATRIX_LAYOUT_COLS) X(CUBLASLT_MATRIX_LAYOUT_LD) X(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) \
  X(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) X(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE) \
  X(CUBLASLT_MATMUL_DESC_SCALE_TYPE) X(CUBLASLT_MATMUL_DESC_POINTER_MODE) X(CUBLASLT_MATMUL_DESC_TRANSA) \
  X(CUBLASLT_MATMUL_DESC_TRANSB) X(CUBLASLT_MATMUL_DESC_EPILOGUE) X(CUBLASLT_MATMUL_DESC_BIAS_POINTER) \
  X(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE) X(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE) X(CUBLASLT_EPILOGUE_DEFAULT) \
  X(CUBLASLT_EPILOGUE_RELU) X(CUBLASLT_EPILOGUE_RELU_BIAS) X(CUBLASLT_EPILOGUE_GELU) X(CUBLASLT_EPILOGUE_GELU_BIAS) \
  X(CUBLASLT_EPILOGUE_BIAS) X(CUBLASLT_EPILOGUE_BGRADA) X(CUBLASLT_EPILOGUE_BGRADB) \
  X(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) X(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) \
  X(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES) X(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES) \
  X(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES) X(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES) \
  X(CUBLASLT_REDUCTION_SCHEME_NONE) X(CUBLASLT_REDUCTION_SCHEME_INPLACE) X(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) \
  X(CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE) X(CUBLASLT_REDUCTION_SCHEME_MASK) X(CU_MEM_ALLOCATION_TYPE_PINNED) \
  X(CU_MEM_HANDLE_TYPE_NONE) X(CU_MEM_LOCATION_TYPE_DEVICE) X(CU_MEM_ACCESS_FLAGS_PROT_NONE) \
  X(CU_MEM_ACCESS_FLAGS_PROT_READWRITE) X(CUDA_R_32F) X(CUDA_R_64F) X(CUDA_R_16F) X(CUDA_R_16BF) X(CUBLAS_OP_N) \
  X(CUBLAS_OP_T) X(CUBLASLT_ORDER_COL) X(CUBLASLT_ORDER_ROW) X(CU_TENSOR_MAP_DATA_TYPE_UINT8) \
  X(CU_TENSOR_MAP_DATA_TYPE_INT32) X(CU_TENSOR_MAP_DATA_TYPE_INT64) X(CU_TENSOR_MAP_DATA_TYPE_FLOAT32) \
  X(CU_TENSOR_MAP_DATA_TYPE_FLOAT64) X(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) X(CU_TENSOR_MAP_INTERLEAVE_NONE) \
  X(CU_TENSOR_MAP_SWIZZLE_NONE) X(CU_TENSOR_MAP_SWIZZLE_32B) X(CU_TENSOR_MAP_SWIZZLE_64B) \
  X(CU_TENSOR_MAP_SWIZZLE_128B) X(CU_TENSOR_MAP_L2_PROMOTION_NONE) X(CU_TENSOR_MAP_L2_PROMOTION_L2_128B) \
  X(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
// clang-format on

// What weft declares, under names of its own: NVIDIA's headers define macros of the names themselves (cuMemAlloc is
// cuMemAlloc_v2).
namespace ours {
using namespace weft::cu;
#define VALUE(name) constexpr long name##_value = long(name);
ENUMERATORS(VALUE)
#undef VALUE
#define TYPE(table, name) using name##_type = decltype(table::name);
#define DRIVER_TYPE(result, name, ...) TYPE(Driver, name)
#define NVRTC_TYPE(result, name, ...) TYPE(Nvrtc, name)
#define CUBLAS_TYPE(result, name, ...) TYPE(CublasLt, name)
WEFT_CUDA_DRIVER(DRIVER_TYPE)
WEFT_NVRTC(NVRTC_TYPE)
WEFT_CUBLAS_LT(CUBLAS_TYPE)
}  // namespace ours

#include <cublasLt.h>
#include <cuda.h>
#include <cudaProfiler.h>
#include <nvrtc.h>

namespace {

#define SAME_VALUE(name) static_assert(ours::name##_value == long(name), #name);
ENUMERATORS(SAME_VALUE)

// A type as it is passed: enums are ints, integers have a size and a sign, what is behind a pointer to a struct is
// compared by itself below.
template <class T>
struct Passed {
  using type = std::conditional_t<std::is_class_v<T> || std::is_union_v<T>, void, T>;
};
template <class T>
requires std::is_enum_v<T>
struct Passed<T> {
  static_assert(sizeof(T) == sizeof(int));
  using type = int;
};
template <class T>
requires(std::is_integral_v<T> && sizeof(T) == 8) struct Passed<T> {
  using type = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
};
template <class T>
struct Passed<const T> {
  using type = const typename Passed<T>::type;
};
template <class T>
struct Passed<T*> {
  using type = typename Passed<T>::type*;
};
template <class R, class... A>
struct Passed<R (*)(A...)> {
  using type = typename Passed<R>::type (*)(typename Passed<A>::type...);
};

#define SAME_FUNCTION(result, name, ...) \
  static_assert(std::is_same_v<Passed<ours::name##_type>::type, Passed<decltype(&::name)>::type>, #name);
WEFT_CUDA_DRIVER(SAME_FUNCTION)
WEFT_NVRTC(SAME_FUNCTION)
WEFT_CUBLAS_LT(SAME_FUNCTION)

#define SAME_SIZE(type) \
  static_assert(sizeof(weft::cu::type) == sizeof(::type) && alignof(weft::cu::type) == alignof(::type), #type);
#define SAME_PLACE(type, member) \
  static_assert(offsetof(weft::cu::type, member) == offsetof(::type, member), #type "::" #member);
SAME_SIZE(CUdeviceptr)
SAME_SIZE(CUdevice)
SAME_SIZE(CUmemLocation)
SAME_PLACE(CUmemLocation, type)
SAME_PLACE(CUmemLocation, id)
SAME_SIZE(CUmemAllocationProp)
SAME_PLACE(CUmemAllocationProp, type)
SAME_PLACE(CUmemAllocationProp, requestedHandleTypes)
SAME_PLACE(CUmemAllocationProp, location)
SAME_PLACE(CUmemAllocationProp, win32HandleMetaData)
SAME_PLACE(CUmemAllocationProp, allocFlags.compressionType)
SAME_PLACE(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable)
SAME_PLACE(CUmemAllocationProp, allocFlags.usage)
SAME_SIZE(CUmemAccessDesc)
SAME_PLACE(CUmemAccessDesc, location)
SAME_PLACE(CUmemAccessDesc, flags)
SAME_SIZE(CUlaunchAttributeValue)
SAME_PLACE(CUlaunchAttributeValue, clusterDim.z)
SAME_SIZE(CUlaunchAttribute)
SAME_PLACE(CUlaunchAttribute, id)
SAME_PLACE(CUlaunchAttribute, value)
SAME_SIZE(CUlaunchConfig)
SAME_PLACE(CUlaunchConfig, gridDimX)
SAME_PLACE(CUlaunchConfig, gridDimY)
SAME_PLACE(CUlaunchConfig, gridDimZ)
SAME_PLACE(CUlaunchConfig, blockDimX)
SAME_PLACE(CUlaunchConfig, blockDimY)
SAME_PLACE(CUlaunchConfig, blockDimZ)
SAME_PLACE(CUlaunchConfig, sharedMemBytes)
SAME_PLACE(CUlaunchConfig, hStream)
SAME_PLACE(CUlaunchConfig, attrs)
SAME_PLACE(CUlaunchConfig, numAttrs)
// Its functions want 64; headers from CUDA 13 on declare 128.
static_assert(sizeof(weft::cu::CUtensorMap) == sizeof(::CUtensorMap) && alignof(weft::cu::CUtensorMap) == 64);
SAME_SIZE(cublasLtMatmulAlgo_t)
SAME_SIZE(cublasLtMatmulHeuristicResult_t)
SAME_PLACE(cublasLtMatmulHeuristicResult_t, algo)
SAME_PLACE(cublasLtMatmulHeuristicResult_t, workspaceSize)
SAME_PLACE(cublasLtMatmulHeuristicResult_t, state)
SAME_PLACE(cublasLtMatmulHeuristicResult_t, wavesCount)

}  // namespace

#endif  // WEFT_HAS_CUDA_HEADERS

namespace weft {
namespace {

TEST(DriverHeaders, AgreeWithOurDeclarations) {
#ifndef WEFT_HAS_CUDA_HEADERS
  GTEST_SKIP() << "compiled without cuda.h, cudaProfiler.h, nvrtc.h and cublasLt.h";
#endif
}

// The program in a process of its own, since a library is looked for once.
class Doctor : public testing::Test {
 protected:
  void SetUp() override {
    const char* program = std::getenv("WEFT_PROGRAM");
    if (!program || !*program) GTEST_SKIP() << "WEFT_PROGRAM is not set";
    program_ = program;
  }
  std::string with_libraries_in(const std::string& folders) const {
    const std::string command = "WEFT_CUDA_LIB_DIR='" + folders + "' '" + program_ + "' doctor 2>&1 </dev/null";
    std::FILE* pipe = popen(command.c_str(), "r");
    std::string text;
    char buffer[4096];
    while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) text.append(buffer, n);
    EXPECT_EQ(pclose(pipe), 0) << text;
    return text;
  }
  static void expect_words(const std::string& text, std::initializer_list<std::string> words) {
    for (const std::string& word : words) EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in\n" << text;
  }
  std::string program_;
  TempFolder folder_;
};

TEST_F(Doctor, SaysWhatIsMissingAndWhereItWasLookedFor) {
  const std::string at = folder_.path().string();
  expect_words(with_libraries_in(at + ":/nowhere"),
               {"NVRTC is missing: no libnvrtc.so.13 or libnvrtc.so.12 in WEFT_CUDA_LIB_DIR (" + at + ":/nowhere)",
                "pip install nvidia-cuda-nvrtc", "cuBLASLt is missing: no libcublasLt.so.13", "pip install nvidia-cublas"});
}

TEST_F(Doctor, SaysWhyALibraryCannotBeOpened) {
  folder_.write("libnvrtc.so.13", "not a library");
  expect_words(with_libraries_in(folder_.path().string()), {"NVRTC is missing", "libnvrtc.so.13: ", "cuBLASLt is missing"});
}

TEST_F(Doctor, RefusesLibrariesThatAreTooOld) {
  link_map* library = nullptr;  // some library that is not NVIDIA's
  void* const math = dlopen("libm.so.6", RTLD_LAZY);
  ASSERT_TRUE(math && dlinfo(math, RTLD_DI_LINKMAP, &library) == 0);
  for (const char* name : {"libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.12"})
    std::filesystem::create_symlink(library->l_name, folder_ / name);
  expect_words(with_libraries_in(folder_.path().string()), {"the CUDA driver is too old", "cuGetProcAddress_v2",
                                                            "NVRTC is too old", "nvrtcVersion, nvrtc", "cuBLASLt is too old"});
}

TEST(Driver, WhatIsThereHasAPathAndWhatIsMissingThrows) {
  for (CudaLibrary library : {CudaLibrary::driver, CudaLibrary::nvrtc, CudaLibrary::cublas_lt}) {
    const auto missing = missing_library(library);
    EXPECT_EQ(missing.has_value(), library_path(library).empty());
    EXPECT_FALSE(install_line(library).empty());
    auto open = [&] {
      if (library == CudaLibrary::driver) cuda_driver();
      if (library == CudaLibrary::nvrtc) nvrtc();
      if (library == CudaLibrary::cublas_lt) cublas_lt();
    };
    if (missing)
      expect_error(ErrorKind::device, {*missing, install_line(library), "WEFT_CUDA_LIB_DIR"}, open);
    else
      EXPECT_NO_THROW(open());
  }
}

}  // namespace
}  // namespace weft
