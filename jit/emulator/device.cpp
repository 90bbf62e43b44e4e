#include "jit/emulator/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "jit/emulator/coverage.h"
#include "jit/emulator/execute.h"
#include "jit/emulator/memory.h"
#include "jit/emulator/program.h"
#include "jit/emulator/ptx.h"
#include "jit/error.h"

namespace weft {
namespace cu {

// What the opaque handles point to.
struct FunctionHandle {
  LibraryHandle* library = nullptr;
  const emulator::Function* function = nullptr;
  std::unique_ptr<emulator::Program> program;
  unsigned dynamic_shared_limit = 0;  // bytes, beyond which a launch is refused; 0: 48 KB in all
};
struct LibraryHandle : std::enable_shared_from_this<LibraryHandle> {
  emulator::Module module;
  emulator::Symbols symbols;  // addresses of its variables
  std::map<std::string, FunctionHandle, std::less<>> functions;
  ~LibraryHandle() {
    for (const auto& [name, address] : symbols) emulator::Memory::instance().release(address);
  }
};
struct GraphHandle {
  std::vector<std::function<void()>> work;
};
struct GraphExecHandle {
  std::vector<std::function<void()>> work;
};
struct StreamHandle {
  std::unique_ptr<GraphHandle> capture;  // set while capturing
};
struct EventHandle {
  bool recorded = false;
  std::chrono::steady_clock::time_point time;
};

}  // namespace cu

namespace {

using namespace cu;
using emulator::Memory;

constexpr std::size_t kTotalMemory = std::size_t(16) << 30, kGranularity = std::size_t(2) << 20;
constexpr int kMaxThreads = 1024, kDefaultShared = 48 << 10;

// A library that is still referred to by graphs outlives cuLibraryUnload. Never destroyed: the memory that libraries give back
// might be gone before them.
struct Libraries {
  std::mutex mutex;
  std::map<LibraryHandle*, std::shared_ptr<LibraryHandle>> all;
};
Libraries& libraries() {
  static Libraries& libraries = *new Libraries;
  return libraries;
}

int shared_limit() {  // bytes a block can have, as on the real devices
  const int target = emulated_target();
  return target == 80 ? 163 << 10 : target >= 120 || target == 86 || target == 89 ? 99 << 10 : 227 << 10;
}

int attribute(CUdevice_attribute which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      return kMaxThreads;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return emulator::kLanes;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1'500'000;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return 16;  // few: kernels whose grid follows from it stay cheap
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return 2'000'000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return 512;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      return 32 << 20;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return emulated_target() / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return emulated_target() % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return shared_limit() + 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return shared_limit();
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      return 1;
  }
  return 0;
}

// Now, or when the graph is launched.
CUresult submit(CUstream stream, std::function<void()> work) {
  if (stream && stream->capture) {
    stream->capture->work.push_back(std::move(work));
  } else {
    work();
  }
  return CUDA_SUCCESS;
}

// ---- memory -----------------------------------------------------------------------------------------------------------------

void check_range(CUdeviceptr address, std::size_t bytes, const char* what) {
  if (bytes == 0) return;
  const auto all = Memory::instance().snapshot();
  const emulator::Allocation* a = find(*all, address);
  if (!a || address + bytes > a->end)
    fail(ErrorKind::device, fmt::format("emu: {} of {} bytes out of bounds", what, bytes),
         fmt::format("address {:#x}: {}", address, describe(*all, a ? a->end : address)));
}
std::byte* host(CUdeviceptr address) { return reinterpret_cast<std::byte*>(address); }

void copy_to_device(CUdeviceptr to, const void* from, std::size_t bytes) {
  check_range(to, bytes, "a copy to the device");
  if (bytes) std::memcpy(host(to), from, bytes);
  Memory::instance().mark_written(to, bytes);
}
void copy_to_host(void* to, CUdeviceptr from, std::size_t bytes) {
  check_range(from, bytes, "a copy to the host");
  if (bytes) std::memcpy(to, host(from), bytes);
}
void copy_on_device(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
  check_range(from, bytes, "a copy on the device, its source,");
  check_range(to, bytes, "a copy on the device, its destination,");
  if (bytes) std::memmove(host(to), host(from), bytes);
  Memory::instance().copy_written(to, from, bytes);
}
template <class T>
void fill(CUdeviceptr to, T value, std::size_t count) {
  check_range(to, count * sizeof(T), "a fill");
  std::fill_n(reinterpret_cast<T*>(host(to)), count, value);
  Memory::instance().mark_written(to, count * sizeof(T));
}

void fill_memory_functions(Driver& d) {
  d.cuMemGetInfo = [](std::size_t* free, std::size_t* total) {
    *total = kTotalMemory, *free = kTotalMemory - std::min(kTotalMemory, Memory::instance().used());
    return CUDA_SUCCESS;
  };
  d.cuMemAlloc = [](CUdeviceptr* address, std::size_t bytes) {
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (Memory::instance().used() + bytes > kTotalMemory) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = Memory::instance().allocate(bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemFree = [](CUdeviceptr address) {
    if (address) Memory::instance().release(address);
    return CUDA_SUCCESS;
  };
  d.cuMemHostAlloc = [](void** address, std::size_t bytes, unsigned) {
    *address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*address) return CUDA_ERROR_OUT_OF_MEMORY;
    Memory::instance().add(CUdeviceptr(*address), bytes, "page-locked host memory");
    return CUDA_SUCCESS;
  };
  d.cuMemFreeHost = [](void* address) {
    Memory::instance().remove(CUdeviceptr(address));
    std::free(address);
    return CUDA_SUCCESS;
  };
  d.cuMemcpyHtoD = [](CUdeviceptr to, const void* from, std::size_t bytes) {
    copy_to_device(to, from, bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemcpyDtoH = [](void* to, CUdeviceptr from, std::size_t bytes) {
    copy_to_host(to, from, bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemcpyDtoD = [](CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
    copy_on_device(to, from, bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemcpyHtoDAsync = [](CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    return submit(stream, [=] { copy_to_device(to, from, bytes); });
  };
  d.cuMemcpyDtoHAsync = [](void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return submit(stream, [=] { copy_to_host(to, from, bytes); });
  };
  d.cuMemcpyDtoDAsync = [](CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return submit(stream, [=] { copy_on_device(to, from, bytes); });
  };
  d.cuMemsetD8 = [](CUdeviceptr to, unsigned char value, std::size_t count) {
    fill(to, value, count);
    return CUDA_SUCCESS;
  };
  d.cuMemsetD8Async = [](CUdeviceptr to, unsigned char value, std::size_t count, CUstream stream) {
    return submit(stream, [=] { fill(to, value, count); });
  };
  d.cuMemsetD32Async = [](CUdeviceptr to, unsigned value, std::size_t count, CUstream stream) {
    return submit(stream, [=] { fill(to, value, count); });
  };
}

// Address ranges are the host's; a handle of memory is its size, since a mapping creates the pages.
void fill_mapping_functions(Driver& d) {
  d.cuMemAddressReserve = [](CUdeviceptr* address, std::size_t bytes, std::size_t alignment, CUdeviceptr, unsigned long long) {
    if (bytes == 0 || bytes % kGranularity) return CUDA_ERROR_INVALID_VALUE;
    *address = Memory::instance().reserve(bytes, std::max(alignment, kGranularity));
    return CUDA_SUCCESS;
  };
  d.cuMemAddressFree = [](CUdeviceptr address, std::size_t bytes) {
    Memory::instance().release_reserved(address, bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemCreate = [](CUmemGenericAllocationHandle* memory, std::size_t bytes, const CUmemAllocationProp*, unsigned long long) {
    if (bytes == 0 || bytes % kGranularity) return CUDA_ERROR_INVALID_VALUE;
    if (Memory::instance().used() + bytes > kTotalMemory) return CUDA_ERROR_OUT_OF_MEMORY;
    *memory = bytes;
    return CUDA_SUCCESS;
  };
  d.cuMemRelease = [](CUmemGenericAllocationHandle) { return CUDA_SUCCESS; };
  d.cuMemMap = [](CUdeviceptr address, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle memory,
                  unsigned long long) {
    if (offset != 0 || bytes > memory) return CUDA_ERROR_INVALID_VALUE;
    Memory::instance().map(address, bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemUnmap = [](CUdeviceptr address, std::size_t bytes) {
    Memory::instance().unmap(address, bytes);
    return CUDA_SUCCESS;
  };
  d.cuMemSetAccess = [](CUdeviceptr, std::size_t, const CUmemAccessDesc*, std::size_t) { return CUDA_SUCCESS; };
  d.cuMemGetAllocationGranularity = [](std::size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
    *bytes = kGranularity;
    return CUDA_SUCCESS;
  };
}

// ---- code -------------------------------------------------------------------------------------------------------------------

void add_names(const emulator::Operand& operand, std::set<std::string_view>& names) {
  if (operand.kind == emulator::Operand::symbol) names.insert(operand.name);
  for (const emulator::Operand& part : operand.parts) add_names(part, names);
}
// What the functions of a module refer to. Every constant of a text is a variable, but hardly one is used, and an allocation
// for each would exhaust the mappings that a process may have.
std::set<std::string_view> names_in(const emulator::Module& module) {
  std::set<std::string_view> names;
  for (const emulator::Function& f : module.functions)
    for (const emulator::PtxInstruction& instruction : f.body)
      for (const emulator::Operand& operand : instruction.operands) add_names(operand, names);
  return names;
}

CUresult load_library(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned, CUlibraryOption*, void**,
                      unsigned) {
  const auto* text = static_cast<const char*>(code);
  if (std::memcmp(text, "\177ELF", 4) == 0) return CUDA_ERROR_NO_BINARY_FOR_GPU;  // machine code: it runs PTX alone
  auto owner = std::make_shared<LibraryHandle>();
  owner->module = emulator::parse_ptx(text);
  const std::set<std::string_view> names = names_in(owner->module);
  for (const emulator::Variable& v : owner->module.variables) {
    if (v.space == emulator::Space::shared || v.size == 0 || !names.count(v.name)) continue;
    const CUdeviceptr address = Memory::instance().allocate(v.size);
    owner->symbols[v.name] = address;
    fill<std::uint8_t>(address, 0, v.size);
    if (!v.initial.empty()) copy_to_device(address, v.initial.data(), std::min<std::size_t>(v.initial.size(), v.size));
    Memory::instance().name(address, v.name);
  }
  for (const emulator::Function& f : owner->module.functions)
    if (f.entry) {
      cu::FunctionHandle& handle = owner->functions[f.name];
      handle = {owner.get(), &f, emulator::decode(owner->module, f, owner->symbols), 0};
      emulator::cover_loaded(*handle.program);
    }
  *library = owner.get();
  std::lock_guard lock(libraries().mutex);
  libraries().all[owner.get()] = owner;
  return CUDA_SUCCESS;
}

CUresult get_function_attribute(int* value, CUfunction_attribute which, CUfunction f) {
  const emulator::Program& program = *f->program;
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = f->function->max_threads ? f->function->max_threads : kMaxThreads;
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = int(program.shared_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      *value = int(program.local_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      *value = emulated_target();
      break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = int(f->dynamic_shared_limit);
      break;
    default:
      *value = 0;  // registers are the assembler's
  }
  return CUDA_SUCCESS;
}

struct Totals {
  std::mutex mutex;
  std::map<std::string, EmulatedCounters> by_name;
};
Totals& totals() {
  static Totals totals;
  return totals;
}

// Notes what a launch did, also when a check ends it.
struct Noted {
  const emulator::Program& program;
  emulator::Counts counts{};
  ~Noted() {
    EmulatedCounters& c = counts.counters;
    c.launches = 1;
    for (std::size_t k = 0; k < counts.executed.size(); ++k)
      if (const auto kind = program.instructions[k].kind; kind != EmulatedCounters::classes) {
        c.warp_instructions[kind] += counts.executed[k].warps;
        c.thread_instructions[kind] += counts.executed[k].threads;
      }
    const std::lock_guard lock(totals().mutex);
    totals().by_name[program.name].add(c);
    emulator::cover_executed(program, counts.executed);
  }
};

CUresult launch_kernel(const CUlaunchConfig* config, CUfunction f, void** parameters, void** extra) {
  const emulator::Program& program = *f->program;
  emulator::Launch launch;
  launch.program = &program;
  launch.grid = {config->gridDimX, config->gridDimY, config->gridDimZ};
  launch.block = {config->blockDimX, config->blockDimY, config->blockDimZ};
  launch.dynamic_shared = config->sharedMemBytes;
  const auto refuse = [&](const std::string& why) {
    fail(ErrorKind::device, "emu: a launch that a device refuses: " + why,
         fmt::format("kernel {}, grid ({}, {}, {}), block ({}, {}, {}), {} bytes of shared memory", program.name, launch.grid.x,
                     launch.grid.y, launch.grid.z, launch.block.x, launch.block.y, launch.block.z, launch.dynamic_shared));
  };
  if (extra) refuse("arguments in a buffer");
  if (launch.grid.count() == 0 || launch.block.count() == 0) refuse("nothing to run");
  if (launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) refuse("the grid is too large");
  const int max_threads = f->function->max_threads ? f->function->max_threads : kMaxThreads;
  if (launch.block.count() > std::uint64_t(max_threads) || launch.block.z > 64)
    refuse(fmt::format("blocks have at most {} threads", max_threads));
  const std::uint64_t shared = std::uint64_t(program.shared_bytes) + launch.dynamic_shared;
  if (shared > std::uint64_t(shared_limit()) || (shared > kDefaultShared && launch.dynamic_shared > f->dynamic_shared_limit))
    refuse("too much shared memory (above 48 KB the function's limit must be raised)");
  for (unsigned k = 0; k < config->numAttrs; ++k)
    if (const auto& a = config->attrs[k]; a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      if (a.value.clusterDim.x * a.value.clusterDim.y * a.value.clusterDim.z > 1) refuse("clusters are not emulated");
  launch.parameters.resize(program.parameter_bytes);
  for (std::size_t k = 0; k < program.parameters.size(); ++k)
    std::memcpy(launch.parameters.data() + program.parameters[k].first, parameters[k], program.parameters[k].second);
  return submit(config->hStream, [launch = std::move(launch), keep = f->library->shared_from_this()] {
    Noted noted{*launch.program};
    emulator::execute(launch, noted.counts);
  });
}

void fill_code_functions(Driver& d) {
  d.cuLibraryLoadData = load_library;
  d.cuLibraryUnload = [](CUlibrary library) {
    std::lock_guard lock(libraries().mutex);
    return libraries().all.erase(library) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
  };
  d.cuLibraryGetKernel = [](CUkernel* kernel, CUlibrary library, const char* name) {
    auto found = library->functions.find(name);
    if (found == library->functions.end()) return CUDA_ERROR_NOT_FOUND;
    *kernel = reinterpret_cast<CUkernel>(&found->second);
    return CUDA_SUCCESS;
  };
  d.cuKernelGetFunction = [](CUfunction* function, CUkernel kernel) {
    *function = reinterpret_cast<CUfunction>(kernel);
    return CUDA_SUCCESS;
  };
  d.cuFuncGetAttribute = get_function_attribute;
  d.cuFuncSetAttribute = [](CUfunction f, CUfunction_attribute which, int value) {
    if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
      if (value < 0 || value + int(f->program->shared_bytes) > shared_limit()) return CUDA_ERROR_INVALID_VALUE;
      f->dynamic_shared_limit = unsigned(value);
    }
    return CUDA_SUCCESS;
  };
  d.cuOccupancyMaxActiveBlocksPerMultiprocessor = [](int* blocks, CUfunction f, int threads, std::size_t shared) {
    const std::size_t each = f->program->shared_bytes + shared + 1024;
    *blocks = int(std::min<std::size_t>(std::size_t(2048 / std::max(threads, 1)), std::size_t(shared_limit() + 1024) / each));
    return CUDA_SUCCESS;
  };
  d.cuLaunchKernelEx = launch_kernel;
  d.cuTensorMapEncodeTiled = [](auto...) -> CUresult {
    fail(ErrorKind::device, "emu: tensor maps are not emulated", {}, "give the op a version for sm_80");
  };
}

// ---- streams, graphs, events ------------------------------------------------------------------------------------------------

void fill_stream_functions(Driver& d) {
  d.cuStreamCreate = [](CUstream* stream, unsigned) {
    *stream = new StreamHandle;
    return CUDA_SUCCESS;
  };
  d.cuStreamCreateWithPriority = [](CUstream* stream, unsigned, int) {
    *stream = new StreamHandle;
    return CUDA_SUCCESS;
  };
  d.cuCtxGetStreamPriorityRange = [](int* least, int* most) {
    *least = *most = 0;
    return CUDA_SUCCESS;
  };
  d.cuStreamDestroy = [](CUstream stream) {
    delete stream;
    return CUDA_SUCCESS;
  };
  d.cuStreamSynchronize = [](CUstream stream) {
    return stream && stream->capture ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
  };
  d.cuStreamQuery = d.cuStreamSynchronize;
  d.cuStreamWaitEvent = [](CUstream, CUevent, unsigned) { return CUDA_SUCCESS; };
  d.cuStreamBeginCapture = [](CUstream stream, CUstreamCaptureMode) {
    if (!stream || stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = std::make_unique<GraphHandle>();
    return CUDA_SUCCESS;
  };
  d.cuStreamEndCapture = [](CUstream stream, CUgraph* graph) {
    if (!stream || !stream->capture) return CUDA_ERROR_INVALID_VALUE;
    *graph = stream->capture.release();
    return CUDA_SUCCESS;
  };
  d.cuGraphInstantiateWithFlags = [](CUgraphExec* exec, CUgraph graph, unsigned long long) {
    *exec = new GraphExecHandle{graph->work};
    return CUDA_SUCCESS;
  };
  d.cuGraphGetNodes = [](CUgraph graph, CUgraphNode* nodes, std::size_t* count) {
    if (nodes)
      std::fill_n(nodes, *count, nullptr);
    else
      *count = graph->work.size();
    return CUDA_SUCCESS;
  };
  d.cuGraphUpload = [](CUgraphExec, CUstream) { return CUDA_SUCCESS; };
  d.cuGraphLaunch = [](CUgraphExec exec, CUstream stream) {
    for (const auto& work : exec->work) submit(stream, work);
    return CUDA_SUCCESS;
  };
  d.cuGraphExecDestroy = [](CUgraphExec exec) {
    delete exec;
    return CUDA_SUCCESS;
  };
  d.cuGraphDestroy = [](CUgraph graph) {
    delete graph;
    return CUDA_SUCCESS;
  };
  d.cuEventCreate = [](CUevent* event, unsigned) {
    *event = new EventHandle;
    return CUDA_SUCCESS;
  };
  d.cuEventDestroy = [](CUevent event) {
    delete event;
    return CUDA_SUCCESS;
  };
  d.cuEventRecord = [](CUevent event, CUstream stream) {
    return submit(stream, [event] { event->recorded = true, event->time = std::chrono::steady_clock::now(); });
  };
  d.cuEventQuery = [](CUevent) { return CUDA_SUCCESS; };
  d.cuEventSynchronize = [](CUevent) { return CUDA_SUCCESS; };
  d.cuEventElapsedTime = [](float* milliseconds, CUevent start, CUevent end) {
    if (!start->recorded || !end->recorded) return CUDA_ERROR_INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return CUDA_SUCCESS;
  };
  d.cuProfilerStart = [] { return CUDA_SUCCESS; };
  d.cuProfilerStop = [] { return CUDA_SUCCESS; };
}

void fill_device_functions(Driver& d) {
  d.cuInit = [](unsigned) { return CUDA_SUCCESS; };
  d.cuDriverGetVersion = [](int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
  };
  d.cuGetErrorName = [](CUresult, const char** text) {
    *text = "CUDA_ERROR (emu)";
    return CUDA_SUCCESS;
  };
  d.cuGetErrorString = [](CUresult error, const char** text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY                ? "out of memory"
            : error == CUDA_ERROR_INVALID_VALUE              ? "invalid value"
            : error == CUDA_ERROR_NOT_FOUND                  ? "not found"
            : error == CUDA_ERROR_NO_BINARY_FOR_GPU          ? "emu runs PTX, not machine code"
            : error == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED ? "not allowed while a stream is captured"
                                                             : "an error of the emulated device";
    return CUDA_SUCCESS;
  };
  d.cuDeviceGetCount = [](int* count) {
    *count = 1;
    return CUDA_SUCCESS;
  };
  d.cuDeviceGet = [](CUdevice* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
  };
  d.cuDeviceGetName = [](char* name, int size, CUdevice) {
    fmt::format_to_n(name, size - 1, "weft emulator sm_{}{}", emulated_target(), '\0');
    return CUDA_SUCCESS;
  };
  d.cuDeviceGetAttribute = [](int* value, CUdevice_attribute which, CUdevice) {
    *value = attribute(which);
    return CUDA_SUCCESS;
  };
  d.cuDeviceTotalMem = [](std::size_t* bytes, CUdevice) {
    *bytes = kTotalMemory;
    return CUDA_SUCCESS;
  };
  d.cuDeviceGetUuid = [](CUuuid* uuid, CUdevice) {
    *uuid = {};
    return CUDA_SUCCESS;
  };
  d.cuDeviceCanAccessPeer = [](int* can, CUdevice, CUdevice) {
    *can = 0;
    return CUDA_SUCCESS;
  };
  d.cuDeviceGetP2PAttribute = [](int* value, CUdevice_P2PAttribute, CUdevice, CUdevice) {
    *value = 0;
    return CUDA_SUCCESS;
  };
  d.cuDevicePrimaryCtxRetain = [](CUcontext* context, CUdevice) {
    *context = nullptr;
    return CUDA_SUCCESS;
  };
  d.cuDevicePrimaryCtxRelease = [](CUdevice) { return CUDA_SUCCESS; };
  d.cuCtxSetCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  d.cuCtxSynchronize = [] { return CUDA_SUCCESS; };
}

}  // namespace

const Driver& emulated_driver() {
  static const Driver driver = [] {
    Driver d;
    fill_device_functions(d);
    fill_memory_functions(d);
    fill_mapping_functions(d);
    fill_code_functions(d);
    fill_stream_functions(d);
    return d;
  }();
  return driver;
}

int emulated_target() {
  static const int target = [] {
    const char* text = std::getenv("WEFT_EMU_TARGET");
    if (!text || !*text) return 90;
    const std::string_view word(text);
    const int number = word.starts_with("sm_") ? std::atoi(text + 3) : 0;
    if (number < 80 || number > 129)
      fail(ErrorKind::usage, "WEFT_EMU_TARGET: not a target: " + std::string(word), {}, "such as sm_80, sm_90 or sm_120");
    return number;
  }();
  return target;
}

std::map<std::string, EmulatedCounters> emulated_counters() {
  const std::lock_guard lock(totals().mutex);
  return totals().by_name;
}
void reset_emulated_counters() {
  const std::lock_guard lock(totals().mutex);
  totals().by_name.clear();
}

void emulated_work(CUstream stream, std::function<void()> work) { submit(stream, std::move(work)); }

void emulated_write(const void* begin, std::size_t bytes) {
  check_range(CUdeviceptr(begin), bytes, "a write");
  Memory::instance().mark_written(CUdeviceptr(begin), bytes);
}

void emulated_read(const void* begin, std::size_t bytes, const std::string& what) {
  check_range(CUdeviceptr(begin), bytes, "a read");
  if (const auto bad = Memory::instance().first_unwritten(CUdeviceptr(begin), bytes))
    fail(ErrorKind::device, "emu: " + what + " reads memory that nobody has written",
         fmt::format("address {:#x}: {}", bad, describe(*Memory::instance().snapshot(), bad)));
}

void name_emulated(CUdeviceptr address, const std::string& name) { Memory::instance().name(address, name); }

}  // namespace weft
