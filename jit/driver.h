// The CUDA libraries, opened at run time through weft's own declarations: libcuda (the driver), NVRTC (the compiler),
// cuBLASLt and NCCL. One binary runs with and without them. Names, values and layouts are NVIDIA's, so their documentation
// applies; tests/test_driver.cpp compares them with the headers where those are installed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace weft {

namespace cu {

// ---- The driver. ------------------------------------------------------------------------------------------------------------
using CUdeviceptr = std::uint64_t;
using CUdevice = int;
using CUmemGenericAllocationHandle = std::uint64_t;
using CUcontext = struct ContextHandle*;
using CUstream = struct StreamHandle*;
using CUevent = struct EventHandle*;
using CUlibrary = struct LibraryHandle*;
using CUkernel = struct KernelHandle*;
using CUfunction = struct FunctionHandle*;
using CUgraph = struct GraphHandle*;
using CUgraphExec = struct GraphExecHandle*;
using CUgraphNode = struct GraphNodeHandle*;

enum CUresult : int {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NOT_INITIALIZED = 3,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_IMAGE = 200,
  CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  CUDA_ERROR_INVALID_PTX = 218,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_NOT_FOUND = 500,
  CUDA_ERROR_NOT_READY = 600,
  CUDA_ERROR_ILLEGAL_ADDRESS = 700,
  CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
  CUDA_ERROR_LAUNCH_FAILED = 719,
  CUDA_ERROR_NOT_SUPPORTED = 801,
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
  CUDA_ERROR_UNKNOWN = 999,
};

struct CUuuid {
  char bytes[16] = {};
};

enum CUdevice_attribute : int {
  CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
  CU_DEVICE_ATTRIBUTE_WARP_SIZE = 10,
  CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13,  // kHz
  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE = 36,        // kHz
  CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH = 37,  // bits
  CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,            // bytes
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,  // bytes
  CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,     // bytes
  CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
};

enum CUdevice_P2PAttribute : int {
  CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK = 1,
  CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED = 3,
};

enum CUfunction_attribute : int {
  CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
  CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
  CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES = 2,
  CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
  CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
  CU_FUNC_ATTRIBUTE_BINARY_VERSION = 6,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
  CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,  // percent
};

// Flags of cuStreamCreate, cuEventCreate and cuMemHostAlloc.
inline constexpr unsigned CU_STREAM_NON_BLOCKING = 1;
inline constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
inline constexpr unsigned CU_MEMHOSTALLOC_PORTABLE = 1;

enum CUstreamCaptureMode : int {
  CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
  CU_STREAM_CAPTURE_MODE_RELAXED = 2,
};

enum CUmemAllocationType : int { CU_MEM_ALLOCATION_TYPE_PINNED = 1 };
enum CUmemAllocationHandleType : int { CU_MEM_HANDLE_TYPE_NONE = 0 };
enum CUmemLocationType : int { CU_MEM_LOCATION_TYPE_DEVICE = 1 };
enum CUmemAccess_flags : int { CU_MEM_ACCESS_FLAGS_PROT_NONE = 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3 };
enum CUmemAllocationGranularity_flags : int {
  CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0,
  CU_MEM_ALLOC_GRANULARITY_RECOMMENDED = 1,
};

struct CUmemLocation {
  CUmemLocationType type = CU_MEM_LOCATION_TYPE_DEVICE;
  int id = 0;  // of the device
};
struct CUmemAllocationProp {
  CUmemAllocationType type = CU_MEM_ALLOCATION_TYPE_PINNED;
  CUmemAllocationHandleType requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
  CUmemLocation location;
  void* win32HandleMetaData = nullptr;
  struct {
    unsigned char compressionType = 0, gpuDirectRDMACapable = 0;
    unsigned short usage = 0;
    unsigned char reserved[4] = {};
  } allocFlags;
};
struct CUmemAccessDesc {
  CUmemLocation location;
  CUmemAccess_flags flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
};

enum CUlaunchAttributeID : int {
  CU_LAUNCH_ATTRIBUTE_IGNORE = 0,
  CU_LAUNCH_ATTRIBUTE_COOPERATIVE = 2,
  CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
  CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
};
union alignas(8) CUlaunchAttributeValue {
  char pad[64];
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
};
struct CUlaunchAttribute {
  CUlaunchAttributeID id;
  char pad[4];
  CUlaunchAttributeValue value;
};
struct CUlaunchConfig {
  unsigned gridDimX = 1, gridDimY = 1, gridDimZ = 1;
  unsigned blockDimX = 1, blockDimY = 1, blockDimZ = 1;
  unsigned sharedMemBytes = 0;  // dynamic
  CUstream hStream = nullptr;
  CUlaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

// Of cuTensorMapEncodeTiled.
enum CUtensorMapDataType : int {
  CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0,
  CU_TENSOR_MAP_DATA_TYPE_INT32 = 3,
  CU_TENSOR_MAP_DATA_TYPE_INT64 = 5,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT64 = 8,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
};
enum CUtensorMapInterleave : int { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle : int {
  CU_TENSOR_MAP_SWIZZLE_NONE = 0,
  CU_TENSOR_MAP_SWIZZLE_32B = 1,
  CU_TENSOR_MAP_SWIZZLE_64B = 2,
  CU_TENSOR_MAP_SWIZZLE_128B = 3,
};
enum CUtensorMapL2promotion : int { CU_TENSOR_MAP_L2_PROMOTION_NONE = 0, CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill : int { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
struct alignas(64) CUtensorMap {
  std::uint64_t opaque[16] = {};
};

// Options of cuLibraryLoadData; the value of each is a pointer, or a number cast to one.
enum CUjit_option : int {
  CU_JIT_INFO_LOG_BUFFER = 3,
  CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES = 4,
  CU_JIT_ERROR_LOG_BUFFER = 5,
  CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
};
enum CUlibraryOption : int { CU_LIBRARY_HOST_UNIVERSAL_FUNCTION_AND_DATA_TABLE = 0, CU_LIBRARY_BINARY_IS_PRESERVED = 1 };

// ---- NVRTC. -----------------------------------------------------------------------------------------------------------------
using nvrtcProgram = struct ProgramHandle*;
enum nvrtcResult : int {
  NVRTC_SUCCESS = 0,
  NVRTC_ERROR_OUT_OF_MEMORY = 1,
  NVRTC_ERROR_INVALID_OPTION = 5,
  NVRTC_ERROR_COMPILATION = 6,
  NVRTC_ERROR_BUILTIN_OPERATION_FAILURE = 7,
};

// ---- cuBLASLt. --------------------------------------------------------------------------------------------------------------
using cublasLtHandle_t = struct BlasHandle*;
using cublasLtMatmulDesc_t = struct MatmulDescHandle*;
using cublasLtMatrixLayout_t = struct MatrixLayoutHandle*;
using cublasLtMatmulPreference_t = struct MatmulPreferenceHandle*;

enum cublasStatus_t : int {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_NOT_INITIALIZED = 1,
  CUBLAS_STATUS_ALLOC_FAILED = 3,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_ARCH_MISMATCH = 8,
  CUBLAS_STATUS_MAPPING_ERROR = 11,
  CUBLAS_STATUS_EXECUTION_FAILED = 13,
  CUBLAS_STATUS_INTERNAL_ERROR = 14,
  CUBLAS_STATUS_NOT_SUPPORTED = 15,
};
enum cudaDataType_t : int { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum cublasComputeType_t : int {
  CUBLAS_COMPUTE_32F = 68,  // IEEE fp32 for fp32 operands, tensor cores with fp32 sums for bf16
  CUBLAS_COMPUTE_32F_PEDANTIC = 69,
  CUBLAS_COMPUTE_64F = 70,
  CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
};
enum cublasOperation_t : int { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };

enum cublasLtOrder_t : int { CUBLASLT_ORDER_COL = 0, CUBLASLT_ORDER_ROW = 1 };
enum cublasLtMatrixLayoutAttribute_t : int {
  CUBLASLT_MATRIX_LAYOUT_TYPE = 0,
  CUBLASLT_MATRIX_LAYOUT_ORDER = 1,  // cublasLtOrder_t
  CUBLASLT_MATRIX_LAYOUT_ROWS = 2,
  CUBLASLT_MATRIX_LAYOUT_COLS = 3,
  CUBLASLT_MATRIX_LAYOUT_LD = 4,                    // int64: elements between columns (or rows, of row order)
  CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,           // int32
  CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6,  // int64: elements
};
enum cublasLtMatmulDescAttributes_t : int {
  CUBLASLT_MATMUL_DESC_COMPUTE_TYPE = 0,
  CUBLASLT_MATMUL_DESC_SCALE_TYPE = 1,
  CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,
  CUBLASLT_MATMUL_DESC_TRANSA = 3,              // cublasOperation_t
  CUBLASLT_MATMUL_DESC_TRANSB = 4,              // cublasOperation_t
  CUBLASLT_MATMUL_DESC_EPILOGUE = 7,            // cublasLtEpilogue_t
  CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,        // device address; one bias an element of each column of a column-order result
  CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE = 10,  // int64: elements
  CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,     // cudaDataType_t
};
enum cublasLtEpilogue_t : int {
  CUBLASLT_EPILOGUE_DEFAULT = 1,
  CUBLASLT_EPILOGUE_RELU = 2,
  CUBLASLT_EPILOGUE_BIAS = 4,
  CUBLASLT_EPILOGUE_RELU_BIAS = 6,
  CUBLASLT_EPILOGUE_GELU = 32,  // its tanh approximation
  CUBLASLT_EPILOGUE_GELU_BIAS = 36,
  CUBLASLT_EPILOGUE_BGRADA = 256,
  CUBLASLT_EPILOGUE_BGRADB = 512,
};
enum cublasLtMatmulPreferenceAttributes_t : int {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,    // uint64
  CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,  // uint32: sums of cublasLtReductionScheme_t
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,  // uint32
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};
enum cublasLtReductionScheme_t : int {
  CUBLASLT_REDUCTION_SCHEME_NONE = 0,
  CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,  // atomics: not deterministic
  CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2,
  CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4,
  CUBLASLT_REDUCTION_SCHEME_MASK = 7,
};

// Plain data: may be stored in a file and used again by the same version on the same kind of device.
struct cublasLtMatmulAlgo_t {
  std::uint64_t data[8] = {};
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  std::size_t workspaceSize = 0;  // bytes
  cublasStatus_t state = CUBLAS_STATUS_SUCCESS;
  float wavesCount = 0;
  int reserved[4] = {};
};

// ---- NCCL. ------------------------------------------------------------------------------------------------------------------
using ncclComm_t = struct NcclCommHandle*;
struct ncclUniqueId {
  char internal[128] = {};
};
enum ncclResult_t : int { ncclSuccess = 0, ncclUnhandledCudaError = 1, ncclSystemError = 2, ncclInternalError = 3 };
struct ncclSimInfo_t {
  std::size_t size = 24;
  unsigned magic = 0x74685283, version = 0;
  float estimatedTime = -1;  // us
};
enum ncclRedOp_t : int { ncclSum = 0, ncclProd = 1, ncclMax = 2, ncclMin = 3, ncclAvg = 4 };
enum ncclDataType_t : int {
  ncclInt8 = 0,
  ncclUint8 = 1,
  ncclInt32 = 2,
  ncclInt64 = 4,
  ncclFloat16 = 6,
  ncclFloat32 = 7,
  ncclFloat64 = 8,
  ncclBfloat16 = 9,
};

}  // namespace cu

// ---- The tables. One line a function: result, name, parameters. A list serves the table, its loading and its test. ----------
#define WEFT_CUDA_DRIVER(X)                                                                                                   \
  X(CUresult, cuInit, unsigned flags)                                                                                         \
  X(CUresult, cuDriverGetVersion, int* version) /* 12080 is 12.8 */                                                           \
  X(CUresult, cuGetErrorName, CUresult error, const char** text)                                                              \
  X(CUresult, cuGetErrorString, CUresult error, const char** text)                                                            \
  X(CUresult, cuDeviceGetCount, int* count)                                                                                   \
  X(CUresult, cuDeviceGet, CUdevice* device, int ordinal)                                                                     \
  X(CUresult, cuDeviceGetName, char* name, int size, CUdevice device)                                                         \
  X(CUresult, cuDeviceGetPCIBusId, char* id, int size, CUdevice device) /* "0000:1b:00.0" */                                  \
  X(CUresult, cuDeviceGetAttribute, int* value, CUdevice_attribute attribute, CUdevice device)                                \
  X(CUresult, cuDeviceTotalMem, std::size_t* bytes, CUdevice device)                                                          \
  X(CUresult, cuDeviceGetUuid, CUuuid* uuid, CUdevice device)                                                                 \
  X(CUresult, cuDeviceCanAccessPeer, int* can, CUdevice device, CUdevice peer)                                                \
  X(CUresult, cuDeviceGetP2PAttribute, int* value, CUdevice_P2PAttribute attribute, CUdevice device, CUdevice peer)           \
  X(CUresult, cuDevicePrimaryCtxRetain, CUcontext* context, CUdevice device)                                                  \
  X(CUresult, cuDevicePrimaryCtxRelease, CUdevice device)                                                                     \
  X(CUresult, cuCtxSetCurrent, CUcontext context)                                                                             \
  X(CUresult, cuCtxSynchronize, void)                                                                                         \
  X(CUresult, cuMemGetInfo, std::size_t* free, std::size_t* total)                                                            \
  X(CUresult, cuMemAlloc, CUdeviceptr* address, std::size_t bytes)                                                            \
  X(CUresult, cuMemFree, CUdeviceptr address)                                                                                 \
  X(CUresult, cuMemHostAlloc, void** address, std::size_t bytes, unsigned flags)                                              \
  X(CUresult, cuMemFreeHost, void* address)                                                                                   \
  X(CUresult, cuMemcpyHtoD, CUdeviceptr to, const void* from, std::size_t bytes)                                              \
  X(CUresult, cuMemcpyDtoH, void* to, CUdeviceptr from, std::size_t bytes)                                                    \
  X(CUresult, cuMemcpyDtoD, CUdeviceptr to, CUdeviceptr from, std::size_t bytes)                                              \
  X(CUresult, cuMemcpyHtoDAsync, CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream)                        \
  X(CUresult, cuMemcpyDtoHAsync, void* to, CUdeviceptr from, std::size_t bytes, CUstream stream)                              \
  X(CUresult, cuMemcpyDtoDAsync, CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream)                        \
  X(CUresult, cuMemsetD8, CUdeviceptr to, unsigned char value, std::size_t count)                                             \
  X(CUresult, cuMemsetD8Async, CUdeviceptr to, unsigned char value, std::size_t count, CUstream stream)                       \
  X(CUresult, cuMemsetD32Async, CUdeviceptr to, unsigned value, std::size_t count, CUstream stream)                           \
  X(CUresult, cuMemAddressReserve, CUdeviceptr* address, std::size_t bytes, std::size_t alignment, CUdeviceptr wish,          \
    unsigned long long flags)                                                                                                 \
  X(CUresult, cuMemAddressFree, CUdeviceptr address, std::size_t bytes)                                                       \
  X(CUresult, cuMemCreate, CUmemGenericAllocationHandle* memory, std::size_t bytes, const CUmemAllocationProp* properties,    \
    unsigned long long flags)                                                                                                 \
  X(CUresult, cuMemRelease, CUmemGenericAllocationHandle memory)                                                              \
  X(CUresult, cuMemMap, CUdeviceptr address, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle memory,      \
    unsigned long long flags)                                                                                                 \
  X(CUresult, cuMemUnmap, CUdeviceptr address, std::size_t bytes)                                                             \
  X(CUresult, cuMemSetAccess, CUdeviceptr address, std::size_t bytes, const CUmemAccessDesc* access, std::size_t count)       \
  X(CUresult, cuMemGetAllocationGranularity, std::size_t* bytes, const CUmemAllocationProp* properties,                       \
    CUmemAllocationGranularity_flags option)                                                                                  \
  X(CUresult, cuLibraryLoadData, CUlibrary* library, const void* code, CUjit_option* jit_options, void** jit_values,          \
    unsigned jit_count, CUlibraryOption* library_options, void** library_values, unsigned library_count)                      \
  X(CUresult, cuLibraryUnload, CUlibrary library)                                                                             \
  X(CUresult, cuLibraryGetKernel, CUkernel* kernel, CUlibrary library, const char* name)                                      \
  X(CUresult, cuKernelGetFunction, CUfunction* function, CUkernel kernel)                                                     \
  X(CUresult, cuFuncGetAttribute, int* value, CUfunction_attribute attribute, CUfunction function)                            \
  X(CUresult, cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value)                             \
  X(CUresult, cuOccupancyMaxActiveBlocksPerMultiprocessor, int* blocks, CUfunction function, int threads, std::size_t shared) \
  X(CUresult, cuLaunchKernelEx, const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra)           \
  X(CUresult, cuTensorMapEncodeTiled, CUtensorMap* map, CUtensorMapDataType type, unsigned rank, void* address,               \
    const std::uint64_t* dims, const std::uint64_t* strides, const unsigned* box, const unsigned* element_strides,            \
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,                           \
    CUtensorMapFloatOOBfill fill)                                                                                             \
  X(CUresult, cuStreamCreate, CUstream* stream, unsigned flags)                                                               \
  X(CUresult, cuStreamCreateWithPriority, CUstream* stream, unsigned flags, int priority)                                     \
  X(CUresult, cuCtxGetStreamPriorityRange, int* least, int* most)                                                             \
  X(CUresult, cuStreamDestroy, CUstream stream)                                                                               \
  X(CUresult, cuStreamSynchronize, CUstream stream)                                                                           \
  X(CUresult, cuStreamQuery, CUstream stream)                                                                                 \
  X(CUresult, cuStreamWaitEvent, CUstream stream, CUevent event, unsigned flags)                                              \
  X(CUresult, cuStreamBeginCapture, CUstream stream, CUstreamCaptureMode mode)                                                \
  X(CUresult, cuStreamEndCapture, CUstream stream, CUgraph* graph)                                                            \
  X(CUresult, cuGraphInstantiateWithFlags, CUgraphExec* exec, CUgraph graph, unsigned long long flags)                        \
  X(CUresult, cuGraphGetNodes, CUgraph graph, CUgraphNode* nodes, std::size_t* count)                                         \
  X(CUresult, cuGraphUpload, CUgraphExec exec, CUstream stream)                                                               \
  X(CUresult, cuGraphLaunch, CUgraphExec exec, CUstream stream)                                                               \
  X(CUresult, cuGraphExecDestroy, CUgraphExec exec)                                                                           \
  X(CUresult, cuGraphDestroy, CUgraph graph)                                                                                  \
  X(CUresult, cuEventCreate, CUevent* event, unsigned flags)                                                                  \
  X(CUresult, cuEventDestroy, CUevent event)                                                                                  \
  X(CUresult, cuEventRecord, CUevent event, CUstream stream)                                                                  \
  X(CUresult, cuEventQuery, CUevent event)                                                                                    \
  X(CUresult, cuEventSynchronize, CUevent event)                                                                              \
  X(CUresult, cuEventElapsedTime, float* milliseconds, CUevent start, CUevent end)                                            \
  X(CUresult, cuProfilerStart, void)                                                                                          \
  X(CUresult, cuProfilerStop, void)

#define WEFT_NVRTC(X)                                                                                               \
  X(const char*, nvrtcGetErrorString, nvrtcResult result)                                                           \
  X(nvrtcResult, nvrtcVersion, int* major, int* minor)                                                              \
  X(nvrtcResult, nvrtcGetNumSupportedArchs, int* count)                                                             \
  X(nvrtcResult, nvrtcGetSupportedArchs, int* archs) /* 80, 90, 100... */                                           \
  X(nvrtcResult, nvrtcCreateProgram, nvrtcProgram* program, const char* source, const char* name, int header_count, \
    const char* const* headers, const char* const* header_names)                                                    \
  X(nvrtcResult, nvrtcDestroyProgram, nvrtcProgram* program)                                                        \
  X(nvrtcResult, nvrtcCompileProgram, nvrtcProgram program, int option_count, const char* const* options)           \
  X(nvrtcResult, nvrtcGetPTXSize, nvrtcProgram program, std::size_t* bytes)                                         \
  X(nvrtcResult, nvrtcGetPTX, nvrtcProgram program, char* ptx)                                                      \
  X(nvrtcResult, nvrtcGetCUBINSize, nvrtcProgram program, std::size_t* bytes)                                       \
  X(nvrtcResult, nvrtcGetCUBIN, nvrtcProgram program, char* cubin)                                                  \
  X(nvrtcResult, nvrtcGetProgramLogSize, nvrtcProgram program, std::size_t* bytes)                                  \
  X(nvrtcResult, nvrtcGetProgramLog, nvrtcProgram program, char* log)

#define WEFT_CUBLAS_LT(X)                                                                                                      \
  X(const char*, cublasLtGetStatusString, cublasStatus_t status)                                                               \
  X(std::size_t, cublasLtGetVersion, void) /* 120804 is 12.8.4 */                                                              \
  X(cublasStatus_t, cublasLtCreate, cublasLtHandle_t* handle)                                                                  \
  X(cublasStatus_t, cublasLtDestroy, cublasLtHandle_t handle)                                                                  \
  X(cublasStatus_t, cublasLtMatmul, cublasLtHandle_t handle, cublasLtMatmulDesc_t matmul, const void* alpha, const void* a,    \
    cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,          \
    cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,               \
    void* workspace, std::size_t workspace_bytes, CUstream stream)                                                             \
  X(cublasStatus_t, cublasLtMatmulDescCreate, cublasLtMatmulDesc_t* matmul, cublasComputeType_t compute, cudaDataType_t scale) \
  X(cublasStatus_t, cublasLtMatmulDescDestroy, cublasLtMatmulDesc_t matmul)                                                    \
  X(cublasStatus_t, cublasLtMatmulDescSetAttribute, cublasLtMatmulDesc_t matmul, cublasLtMatmulDescAttributes_t attribute,     \
    const void* value, std::size_t bytes)                                                                                      \
  X(cublasStatus_t, cublasLtMatrixLayoutCreate, cublasLtMatrixLayout_t* layout, cudaDataType_t type, std::uint64_t rows,       \
    std::uint64_t cols, std::int64_t ld)                                                                                       \
  X(cublasStatus_t, cublasLtMatrixLayoutDestroy, cublasLtMatrixLayout_t layout)                                                \
  X(cublasStatus_t, cublasLtMatrixLayoutSetAttribute, cublasLtMatrixLayout_t layout,                                           \
    cublasLtMatrixLayoutAttribute_t attribute, const void* value, std::size_t bytes)                                           \
  X(cublasStatus_t, cublasLtMatmulPreferenceCreate, cublasLtMatmulPreference_t* preference)                                    \
  X(cublasStatus_t, cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreference_t preference)                                    \
  X(cublasStatus_t, cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreference_t preference,                               \
    cublasLtMatmulPreferenceAttributes_t attribute, const void* value, std::size_t bytes)                                      \
  X(cublasStatus_t, cublasLtMatmulAlgoCheck, cublasLtHandle_t handle, cublasLtMatmulDesc_t matmul,                             \
    cublasLtMatrixLayout_t a_layout, cublasLtMatrixLayout_t b_layout, cublasLtMatrixLayout_t c_layout,                         \
    cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result)                \
  X(cublasStatus_t, cublasLtMatmulAlgoGetHeuristic, cublasLtHandle_t handle, cublasLtMatmulDesc_t matmul,                      \
    cublasLtMatrixLayout_t a_layout, cublasLtMatrixLayout_t b_layout, cublasLtMatrixLayout_t c_layout,                         \
    cublasLtMatrixLayout_t d_layout, cublasLtMatmulPreference_t preference, int wanted,                                        \
    cublasLtMatmulHeuristicResult_t* results, int* found)

#define WEFT_NCCL(X)                                                                                                     \
  X(ncclResult_t, ncclGetVersion, int* version) /* 22707 is 2.27.7 */                                                    \
  X(ncclResult_t, ncclGetUniqueId, ncclUniqueId* id)                                                                     \
  X(ncclResult_t, ncclCommInitRank, ncclComm_t* comm, int size, ncclUniqueId id, int rank)                               \
  X(const char*, ncclGetErrorString, ncclResult_t result)                                                                \
  X(const char*, ncclGetLastError, ncclComm_t comm)                                                                      \
  X(ncclResult_t, ncclAllReduce, const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t op,     \
    ncclComm_t comm, CUstream stream)                                                                                    \
  X(ncclResult_t, ncclBroadcast, const void* from, void* to, std::size_t count, ncclDataType_t type, int root,           \
    ncclComm_t comm, CUstream stream)                                                                                    \
  X(ncclResult_t, ncclAllGather, const void* from, void* to, std::size_t count, ncclDataType_t type, ncclComm_t comm,    \
    CUstream stream)                                                                                                     \
  X(ncclResult_t, ncclReduceScatter, const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t op, \
    ncclComm_t comm, CUstream stream)
// Of 2.22 and later; null before that.
#define WEFT_NCCL_LATE(X)               \
  X(ncclResult_t, ncclGroupStart, void) \
  X(ncclResult_t, ncclGroupSimulateEnd, ncclSimInfo_t* info)

namespace cu {

#define WEFT_MEMBER(result, name, ...) result (*name)(__VA_ARGS__) = nullptr;
struct Driver {
  WEFT_CUDA_DRIVER(WEFT_MEMBER)
};
struct Nvrtc {
  WEFT_NVRTC(WEFT_MEMBER)
};
struct CublasLt {
  WEFT_CUBLAS_LT(WEFT_MEMBER)
};
struct Nccl {
  WEFT_NCCL(WEFT_MEMBER)
  WEFT_NCCL_LATE(WEFT_MEMBER)
};
#undef WEFT_MEMBER

}  // namespace cu

using cu::CublasLt;
using cu::Driver;
using cu::Nccl;
using cu::Nvrtc;

// The loaded tables; opened at first use, by any thread, and never closed. An Error (device) says what is missing,
// where it was looked for, and the line that installs it.
const Driver& cuda_driver();
const Nvrtc& nvrtc();
const CublasLt& cublas_lt();
const Nccl& nccl();
std::string nccl_version();  // "2.27.7"

enum class CudaLibrary { driver, nvrtc, cublas_lt, nccl };

// The same without throwing: what an Error would say (one line), or nothing if the library is there. This opens it.
std::optional<std::string> missing_library(CudaLibrary library);
// The file that was opened; "" if the library is missing.
std::string library_path(CudaLibrary library);
// The line that installs a library.
std::string install_line(CudaLibrary library);

// The driver is there, starts, and has at least one device; otherwise what is missing, in one line.
std::optional<std::string> missing_cuda_device();
inline bool has_cuda_driver() { return !missing_library(CudaLibrary::driver); }

// Throws an Error (device) that names `what` if a call failed: cuda_check(driver, driver.cuMemAlloc(&p, n),
// "cuMemAlloc").
void cuda_check(const Driver& driver, cu::CUresult result, const char* what);

}  // namespace weft
