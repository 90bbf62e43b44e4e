#include "jit/gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <unistd.h>

#include "jit/device_errors.h"
#include "jit/emulator/device.h"
#include "jit/emulator/gemm.h"
#include "jit/error.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"

namespace weft {

using namespace cu;

namespace {

constexpr std::size_t kSmallest = 512;                // bytes of the smallest block
constexpr std::size_t kLarge = std::size_t(1) << 20;  // from here on blocks are multiples of it, below powers of two
constexpr std::size_t kAddressUnit = std::size_t(1) << 21;

std::size_t block_size(std::size_t bytes) {
  if (bytes > kLarge) return round_up(bytes, kLarge);
  std::size_t size = kSmallest;
  while (size < bytes) size *= 2;
  return size;
}

CUdeviceptr address(const std::byte* p) { return CUdeviceptr(reinterpret_cast<std::uintptr_t>(p)); }
std::byte* pointer(CUdeviceptr p) { return reinterpret_cast<std::byte*>(std::uintptr_t(p)); }

// Never destroyed: memory of other static objects is given back to them, and at the end the driver goes by itself.
std::array<Gpu*, 3>& gpus() {
  static auto& all = *new std::array<Gpu*, 3>{};
  return all;
}

// Which of the GPUs that CUDA shows is this process's own.
int own_gpu(const Driver& driver) {
  const Ranks* ranks = Ranks::joined();
  int count = 0;
  cuda_check(driver, driver.cuDeviceGetCount(&count), "cuDeviceGetCount");
  if (!ranks || count == 1) return 0;  // if it is shown to other ranks too, NCCL's start tells
  if (ranks->local_rank() >= count)
    fail(ErrorKind::device, fmt::format("rank {} has no GPU", ranks->rank()),
         fmt::format("local rank {}, {} GPUs", ranks->local_rank(), count),
         "start at most as many ranks on a host as it has GPUs");
  return ranks->local_rank();
}

}  // namespace

struct Gpu::Impl {
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUstream stream = nullptr, beside = nullptr;  // beside: of collectives
  std::vector<CUevent> flown;                   // by collective of a capture: it is done
  CUevent ready = nullptr;                      // what it needs is there
  int flights = 0;
  bool overlap = false, behind_kernel = false;  // of a capture: see there; what was launched last is a kernel of ours
  const bool split = split_memory();            // each block an allocation of its own, for checkers of addresses

  std::multimap<std::size_t, std::byte*> free_blocks;  // by size
  std::unordered_map<std::byte*, std::size_t> blocks;  // size of each block in use
  std::size_t held = 0, peak = 0;
  void hold(std::size_t bytes) { peak = std::max(peak, held += bytes); }

  struct Staging {
    std::byte* memory = nullptr;
    std::size_t bytes = 0;
    CUevent sent = nullptr;  // recorded after the copy
    bool in_flight = false;
  };
  std::array<Staging, 4> ring;
  std::size_t next = 0;

  std::unordered_map<std::string, LoadedKernel> kernels;  // by name, which ends in a hash of the text
  GemmWorkspace workspace;
  int major = 0;  // of the compute capability
  CUevent begin = nullptr, end = nullptr;
};

Gpu& Gpu::of(Device device) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Gpu*& gpu = gpus()[std::size_t(device)];
  if (!gpu) gpu = device == Device::emu ? new Gpu(emulated_driver(), true) : new Gpu(cuda_driver(), false);
  return *opened(device);
}

std::string Gpu::uuid() const {
  CUuuid uuid;
  cuda_check(driver_, driver_.cuDeviceGetUuid(&uuid, impl_->device), "cuDeviceGetUuid");
  std::string text = "GPU-";
  for (const char c : uuid.bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

// A thread's calls of the driver need its own current context.
Gpu* Gpu::opened(Device device) {
  thread_local std::array<bool, 3> current{};
  Gpu* gpu = gpus()[std::size_t(device)];
  if (gpu && !std::exchange(current[std::size_t(device)], true))
    cuda_check(gpu->driver_, gpu->driver_.cuCtxSetCurrent(gpu->impl_->context), "cuCtxSetCurrent");
  return gpu;
}

Gpu::Gpu(const Driver& driver, bool emulated) : driver_(driver), emulated_(emulated), impl_(std::make_unique<Impl>()) {
  if (!emulated)
    if (const auto missing = missing_cuda_device())
      fail(ErrorKind::device, "cuda: no GPU can be used", *missing, "use --device cpu");
  Impl& i = *impl_;
  cuda_check(driver_, driver_.cuInit(0), "cuInit");
  cuda_check(driver_, driver_.cuDeviceGet(&i.device, emulated ? 0 : own_gpu(driver_)), "cuDeviceGet");
  char text[256] = {};
  cuda_check(driver_, driver_.cuDeviceGetName(text, sizeof text, i.device), "cuDeviceGetName");
  name_ = text;
  auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    cuda_check(driver_, driver_.cuDeviceGetAttribute(&value, which, i.device), "cuDeviceGetAttribute");
    return value;
  };
  i.major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  architecture_ = target_of(i.major, attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
  target_ = emulated ? kEmulatedTarget : target_for(architecture_);
  if (emulated && architecture_.starts_with("sm_")) architecture_ = "compute_" + architecture_.substr(3);  // to interpret PTX
  multiprocessors_ = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  cuda_check(driver_, driver_.cuDeviceTotalMem(&total_memory_, i.device), "cuDeviceTotalMem");
  cuda_check(driver_, driver_.cuDevicePrimaryCtxRetain(&i.context, i.device), "cuDevicePrimaryCtxRetain");
  cuda_check(driver_, driver_.cuCtxSetCurrent(i.context), "cuCtxSetCurrent");  // for the calls below
  cuda_check(driver_, driver_.cuStreamCreate(&i.stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  for (Impl::Staging& s : i.ring) cuda_check(driver_, driver_.cuEventCreate(&s.sent, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  cuda_check(driver_, driver_.cuEventCreate(&i.begin, 0), "cuEventCreate");
  cuda_check(driver_, driver_.cuEventCreate(&i.end, 0), "cuEventCreate");
  CUmemAllocationProp properties;
  properties.location.id = i.device;
  cuda_check(driver_, driver_.cuMemGetAllocationGranularity(&granularity_, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
             "cuMemGetAllocationGranularity");
  void* status = nullptr;  // pinned host memory: kernels write it when something is wrong, the host reads it for nothing
  cuda_check(driver_, driver_.cuMemHostAlloc(&status, (kNotices + 1) * sizeof(std::uint64_t), CU_MEMHOSTALLOC_PORTABLE),
             "cuMemHostAlloc");
  status_ = static_cast<std::uint64_t*>(status);
  std::fill_n(status_, kNotices + 1, std::uint64_t(0));
}

Gpu::~Gpu() = default;

// ---- memory -----------------------------------------------------------------------------------------------------------------

std::size_t Gpu::memory_in_use() const {
  std::size_t left = 0, total = 0;
  cuda_check(driver_, driver_.cuMemGetInfo(&left, &total), "cuMemGetInfo");
  return total - left;
}

std::size_t Gpu::held_memory() const { return impl_->held; }
std::size_t Gpu::peak_memory() const { return impl_->peak; }

std::size_t Gpu::used_memory() const {
  std::size_t bytes = 0;
  for (const auto& [block, size] : impl_->blocks) bytes += size;
  return bytes;
}

std::string Gpu::bus_id() const {
  if (emulated_) return "";
  char id[32] = {};
  cuda_check(driver_, driver_.cuDeviceGetPCIBusId(id, sizeof id, impl_->device), "cuDeviceGetPCIBusId");
  return id;
}

void Gpu::fail_memory(const std::string& what, std::size_t bytes) const {
  std::size_t left = 0, total = 0;
  driver_.cuMemGetInfo(&left, &total);
  fail(ErrorKind::device, fmt::format("{}: out of device memory", name_),
       fmt::format("{}: {:.1f} MB more wanted, {:.1f} MB free of {:.1f}", what, double(bytes) / 1e6, double(left) / 1e6,
                   double(total) / 1e6),
       "use a smaller model, batch or length, or checkpoint()");
}

std::byte* Gpu::allocate(std::size_t bytes, const std::string& what) {
  Impl& i = *impl_;
  const std::size_t size = i.split ? std::max<std::size_t>(bytes, 1) : block_size(bytes);
  if (const auto kept = i.free_blocks.find(size); kept != i.free_blocks.end()) {
    std::byte* block = kept->second;
    i.free_blocks.erase(kept);
    i.blocks.emplace(block, size);
    return block;
  }
  CUdeviceptr block = 0;
  CUresult result = driver_.cuMemAlloc(&block, size);
  if (result == CUDA_ERROR_OUT_OF_MEMORY && !i.free_blocks.empty()) {
    synchronize();
    for (const auto& [kept_size, kept] : i.free_blocks) driver_.cuMemFree(address(kept)), i.held -= kept_size;
    i.free_blocks.clear();
    result = driver_.cuMemAlloc(&block, size);
  }
  if (result == CUDA_ERROR_OUT_OF_MEMORY) fail_memory(what, bytes);
  cuda_check(driver_, result, "cuMemAlloc");
  i.hold(size);
  if (emulated_) name_emulated(block, what);
  i.blocks.emplace(pointer(block), size);
  return pointer(block);
}

void Gpu::free(std::byte* memory) {
  Impl& i = *impl_;
  const auto block = i.blocks.find(memory);
  if (block == i.blocks.end()) return;
  if (i.split)
    driver_.cuStreamSynchronize(i.stream), driver_.cuMemFree(address(memory)), i.held -= block->second;
  else
    i.free_blocks.emplace(block->second, memory);  // what is still running on it comes before its next use in the stream
  i.blocks.erase(block);
}

std::byte* Gpu::reserve(std::size_t bytes) {
  CUdeviceptr base = 0;
  cuda_check(driver_, driver_.cuMemAddressReserve(&base, round_up(bytes, std::max(granularity_, kAddressUnit)), 0, 0, 0),
             "cuMemAddressReserve");
  return pointer(base);
}

void Gpu::extend(std::byte* base, std::size_t from, std::size_t to, const std::string& what) {
  CUmemAllocationProp properties;
  properties.location.id = impl_->device;
  CUmemGenericAllocationHandle memory = 0;
  CUresult result = driver_.cuMemCreate(&memory, to - from, &properties, 0);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) fail_memory(what, to - from);
  cuda_check(driver_, result, "cuMemCreate");
  cuda_check(driver_, driver_.cuMemMap(address(base + from), to - from, 0, memory, 0), "cuMemMap");
  CUmemAccessDesc access;
  access.location.id = impl_->device;
  cuda_check(driver_, driver_.cuMemSetAccess(address(base + from), to - from, &access, 1), "cuMemSetAccess");
  cuda_check(driver_, driver_.cuMemRelease(memory), "cuMemRelease");  // stays while it is mapped
  impl_->hold(to - from);
}

std::byte* Gpu::stage(std::size_t bytes) {
  Impl::Staging& s = impl_->ring[impl_->next];
  if (s.in_flight) cuda_check(driver_, driver_.cuEventSynchronize(s.sent), "cuEventSynchronize");
  s.in_flight = false;
  if (s.bytes < bytes) {
    if (s.memory) driver_.cuMemFreeHost(s.memory);
    void* memory = nullptr;
    s.bytes = std::max(round_up(bytes, 4096), 2 * s.bytes);
    cuda_check(driver_, driver_.cuMemHostAlloc(&memory, s.bytes, CU_MEMHOSTALLOC_PORTABLE), "cuMemHostAlloc");
    s.memory = static_cast<std::byte*>(memory);
  }
  return s.memory;
}

void Gpu::send_staged(std::byte* to, std::size_t bytes) {
  Impl::Staging& s = impl_->ring[impl_->next];
  cuda_check(driver_, driver_.cuMemcpyHtoDAsync(address(to), s.memory, bytes, impl_->stream), "cuMemcpyHtoDAsync");
  cuda_check(driver_, driver_.cuEventRecord(s.sent, impl_->stream), "cuEventRecord");
  s.in_flight = true;
  impl_->next = (impl_->next + 1) % impl_->ring.size();
}

void Gpu::write(std::byte* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  cuda_check(driver_, driver_.cuMemcpyHtoDAsync(address(to), from, bytes, impl_->stream), "cuMemcpyHtoDAsync");
  synchronize();
}

void Gpu::read(void* to, const std::byte* from, std::size_t bytes) {
  if (bytes) cuda_check(driver_, driver_.cuMemcpyDtoHAsync(to, address(from), bytes, impl_->stream), "cuMemcpyDtoHAsync");
  synchronize();
}

void Gpu::copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (bytes)
    cuda_check(driver_, driver_.cuMemcpyDtoDAsync(address(to), address(from), bytes, impl_->stream), "cuMemcpyDtoDAsync");
}

void Gpu::fill(std::byte* to, unsigned char value, std::size_t bytes) {
  if (bytes) cuda_check(driver_, driver_.cuMemsetD8Async(address(to), value, bytes, impl_->stream), "cuMemsetD8Async");
}

void Gpu::synchronize() {
  const RankActivity waiting(RankBeat::waiting, "kernels on the GPU");
  cuda_check(driver_, driver_.cuStreamSynchronize(impl_->stream), "a kernel of this or an earlier step");
  if (status_[0] == 0) return;
  std::array<std::int64_t, kStatusWords> raised;
  std::copy_n(status_, kStatusWords, raised.begin());
  std::fill_n(status_, kStatusWords, std::uint64_t(0));
  throw_device_error(DeviceError(raised[0]), raised[1], raised[2], raised[3]);
}

std::uint64_t Gpu::notices() const { return std::atomic_ref(status_[kNotices]).load(std::memory_order_relaxed); }

// ---- kernels ----------------------------------------------------------------------------------------------------------------

void Gpu::prepare(std::span<const CudaKernel* const> kernels) {
  constexpr unsigned kFree = 48 * 1024;  // more dynamic shared memory must be asked for, and not while a graph is captured
  load_new(kernels);
  for (const CudaKernel* k : kernels) {
    LoadedKernel& loaded = impl_->kernels[k->name];
    if (k->shared <= std::max(loaded.shared, kFree)) continue;
    cuda_check(driver_,
               driver_.cuFuncSetAttribute(loaded.function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, int(k->shared)),
               k->name.c_str());
    loaded.shared = k->shared;
  }
}

// Compiles the cold ones in parallel.
void Gpu::load_new(std::span<const CudaKernel* const> kernels) {
  Impl& i = *impl_;
  std::vector<CompileJob> jobs;
  std::vector<const CudaKernel*> cold;
  for (const CudaKernel* k : kernels) {
    if (!i.kernels.emplace(k->name, LoadedKernel{}).second) continue;
    cold.push_back(k);
    jobs.push_back({k->name, complete_text(*k), architecture_});
  }
  if (cold.empty()) return;
  const RankActivity compiling(RankBeat::busy, "compiling kernels");
  // A line while it takes long, on a terminal.
  const bool terminal = isatty(STDERR_FILENO);
  const auto progress = [&](int done, int of) {
    if (terminal) put_error(fmt::format("\rweft: compiling kernels, {} of {}{}", done, of, done == of ? "\r\033[K" : ""));
  };
  try {
    std::vector<Compiled> compiled = compile_all(jobs, progress);
    for (std::size_t k = 0; k < cold.size(); ++k) load(*cold[k], std::move(compiled[k]));
  } catch (...) {
    for (const CudaKernel* k : cold)
      if (!i.kernels[k->name].function) i.kernels.erase(k->name);
    throw;
  }
}

void Gpu::load(const CudaKernel& kernel, Compiled compiled) {
  CUlibrary library = nullptr;
  const std::string& code = compiled.cubin.empty() ? compiled.ptx : compiled.cubin;
  cuda_check(driver_, driver_.cuLibraryLoadData(&library, code.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
             ("loading " + kernel.name).c_str());
  CUkernel handle = nullptr;
  cuda_check(driver_, driver_.cuLibraryGetKernel(&handle, library, kernel.name.c_str()), kernel.name.c_str());
  LoadedKernel& loaded = impl_->kernels[kernel.name];
  cuda_check(driver_, driver_.cuKernelGetFunction(&loaded.function, handle), kernel.name.c_str());
  compiled.cubin.clear();
  compiled.ptx.clear();
  loaded.compiled = std::move(compiled);
}

const LoadedKernel& Gpu::loaded(const CudaKernel& kernel) const { return impl_->kernels.at(kernel.name); }

void PackedArgs::align() {
  constexpr std::size_t kUnit = alignof(CUtensorMap) / sizeof(std::uint64_t);
  words_.resize(round_up(used_, kUnit));
}

void PackedArgs::add(std::uint64_t word) {
  if (used_++ == words_.size()) align();
  words_[used_ - 1] = word;
}

void PackedArgs::add(const CUtensorMap& map) {
  used_ = words_.size() + std::size(map.opaque);
  words_.insert(words_.end(), std::begin(map.opaque), std::end(map.opaque));
}

CUtensorMap encode(const Driver& driver, const TmaMap& map, const std::byte* slot) {
  const CUtensorMapDataType type = map.dtype == DType::f32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                   : map.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : map.dtype == DType::f64  ? CU_TENSOR_MAP_DATA_TYPE_FLOAT64
                                   : map.dtype == DType::i32  ? CU_TENSOR_MAP_DATA_TYPE_INT32
                                   : map.dtype == DType::i64  ? CU_TENSOR_MAP_DATA_TYPE_INT64
                                                              : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const CUtensorMapSwizzle swizzle = map.swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : map.swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : map.swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                         : CU_TENSOR_MAP_SWIZZLE_NONE;
  const std::array<unsigned, 5> every{1, 1, 1, 1, 1};  // element of the box
  CUtensorMap encoded;
  cuda_check(driver,
             driver.cuTensorMapEncodeTiled(&encoded, type, unsigned(map.rank), const_cast<std::byte*>(slot + map.offset),
                                           map.dims.data(), map.strides.data(), map.box.data(), every.data(),
                                           CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
             "cuTensorMapEncodeTiled");
  return encoded;
}

void Gpu::launch(const CudaKernel& kernel, const LoadedKernel& loaded, const PackedArgs& args) {
  CUlaunchConfig config;
  config.gridDimX = kernel.grid[0], config.gridDimY = kernel.grid[1], config.gridDimZ = kernel.grid[2];
  config.blockDimX = kernel.block[0], config.blockDimY = kernel.block[1], config.blockDimZ = kernel.block[2];
  config.sharedMemBytes = kernel.shared;
  config.hStream = impl_->stream;
  std::array<CUlaunchAttribute, 2> attributes{};
  config.attrs = attributes.data();
  const auto attribute = [&](CUlaunchAttributeID id) -> CUlaunchAttributeValue& {
    CUlaunchAttribute& next = attributes[config.numAttrs++];
    next.id = id;
    return next.value;
  };
  if (kernel.cluster != std::array{1u, 1u, 1u})
    attribute(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION).clusterDim = {kernel.cluster[0], kernel.cluster[1], kernel.cluster[2]};
  if (impl_->overlap && impl_->behind_kernel && kernel.follows)
    attribute(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION).programmaticStreamSerializationAllowed = 1;
  impl_->behind_kernel = true;
  void* parameters[] = {const_cast<std::uint64_t*>(args.words().data())};  // one parameter: the struct of arguments
  cuda_check(driver_, driver_.cuLaunchKernelEx(&config, loaded.function, parameters, nullptr), kernel.name.c_str());
}

void Gpu::prepare_gemm(const GemmCall& call) {
  if (emulated_) return;
  GemmWorkspace& w = impl_->workspace;
  if (w.bytes == 0) {
    const std::size_t bytes = gemm_workspace_bytes(impl_->major);
    w.address = address(allocate(bytes, "the workspace of matrix products"));
    w.bytes = bytes;
  }
  weft::prepare_gemm(call, impl_->stream, w, tf32_);
}

void Gpu::gemm(const GemmCall& call, std::byte* const* slots) {
  impl_->behind_kernel = false;
  if (emulated_) return emulated_gemm(call, slots, impl_->stream);
  launch_gemm(call, slots, impl_->stream, impl_->workspace, tf32_);
}

void Gpu::collective(const CollectiveCall& call, std::byte* const* slots, Collectives& by) {
  impl_->behind_kernel = false;
  const auto at = [&](int slot, std::int64_t offset) { return slots[slot] + offset * std::int64_t(size_of(call.dtype)); };
  by.run(call, at(call.from_slot, call.from_offset), at(call.to_slot, call.to_offset), impl_->stream);
}

int Gpu::collective_beside(const CollectiveCall& call, std::byte* const* slots, Collectives& by) {
  Impl& i = *impl_;
  i.behind_kernel = false;
  const int number = i.flights++;
  if (emulated_) return collective(call, slots, by), number;
  if (!i.beside) {
    int least = 0, most = 0;
    cuda_check(driver_, driver_.cuCtxGetStreamPriorityRange(&least, &most), "cuCtxGetStreamPriorityRange");
    // Before kernels that wait in the other stream: who is slow here keeps all ranks waiting.
    cuda_check(driver_, driver_.cuStreamCreateWithPriority(&i.beside, CU_STREAM_NON_BLOCKING, most),
               "cuStreamCreateWithPriority");
    cuda_check(driver_, driver_.cuEventCreate(&i.ready, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  }
  if (i.flown.size() <= std::size_t(number)) {
    i.flown.resize(std::size_t(number) + 1);
    cuda_check(driver_, driver_.cuEventCreate(&i.flown.back(), CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  }
  cuda_check(driver_, driver_.cuEventRecord(i.ready, i.stream), "cuEventRecord");
  cuda_check(driver_, driver_.cuStreamWaitEvent(i.beside, i.ready, 0), "cuStreamWaitEvent");
  const auto at = [&](int slot, std::int64_t offset) { return slots[slot] + offset * std::int64_t(size_of(call.dtype)); };
  by.run(call, at(call.from_slot, call.from_offset), at(call.to_slot, call.to_offset), i.beside);
  cuda_check(driver_, driver_.cuEventRecord(i.flown[std::size_t(number)], i.beside), "cuEventRecord");
  return number;
}

void Gpu::wait_for(int collective) {
  if (emulated_) return;
  impl_->behind_kernel = false;
  cuda_check(driver_, driver_.cuStreamWaitEvent(impl_->stream, impl_->flown[std::size_t(collective)], 0), "cuStreamWaitEvent");
}

void Gpu::capture(Graph& graph, bool overlap, const std::function<void()>& f) {
  Impl& i = *impl_;
  i.flights = 0;
  int version = 0;
  cuda_check(driver_, driver_.cuDriverGetVersion(&version), "cuDriverGetVersion");
  i.overlap = overlap && !emulated_ && i.major >= 9 && version >= 12040;
  i.behind_kernel = false;
  CUgraph recorded = nullptr;
  cuda_check(driver_, driver_.cuStreamBeginCapture(i.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
  try {
    f();
    i.overlap = false;
  } catch (...) {
    i.overlap = false;
    driver_.cuStreamEndCapture(i.stream, &recorded);
    if (recorded) driver_.cuGraphDestroy(recorded);
    throw;
  }
  cuda_check(driver_, driver_.cuStreamEndCapture(i.stream, &recorded), "cuStreamEndCapture");
  graph.driver_ = &driver_;
  driver_.cuGraphGetNodes(recorded, nullptr, &graph.nodes_);
  const CUresult result = driver_.cuGraphInstantiateWithFlags(&graph.exec_, recorded, 0);
  driver_.cuGraphDestroy(recorded);
  cuda_check(driver_, result, "cuGraphInstantiateWithFlags");
}

void Gpu::launch(const Graph& graph) {
  cuda_check(driver_, driver_.cuGraphLaunch(graph.exec_, impl_->stream), "cuGraphLaunch");
}

Graph::~Graph() {
  if (exec_) driver_->cuGraphExecDestroy(exec_);
}

double Gpu::timed(const std::function<void()>& f) {
  Impl& i = *impl_;
  cuda_check(driver_, driver_.cuEventRecord(i.begin, i.stream), "cuEventRecord");
  f();
  cuda_check(driver_, driver_.cuEventRecord(i.end, i.stream), "cuEventRecord");
  synchronize();
  float milliseconds = 0;
  cuda_check(driver_, driver_.cuEventElapsedTime(&milliseconds, i.begin, i.end), "cuEventElapsedTime");
  return double(milliseconds) * 1e-3;
}

}  // namespace weft
