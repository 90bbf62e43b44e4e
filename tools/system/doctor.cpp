#include "tools/system/doctor.h"

#include <cblas.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <fstream>
#include <thread>

#include "autograd/run.h"
#include "jit/cache.h"
#include "jit/compiler.h"
#include "jit/driver.h"
#include "jit/gpu.h"
#include "jit/parallel.h"

namespace weft {
namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name") || line.starts_with("CPU part") || line.starts_with("Model"))
      return line.substr(std::min(line.find(':') + 2, line.size()));
  return "unknown";
}

std::string vector_extensions() {
  std::string text;
#ifdef __AVX2__
  text += " AVX2";
#endif
#ifdef __FMA__
  text += " FMA";
#endif
#ifdef __AVX512F__
  text += " AVX-512";
#endif
#ifdef __ARM_NEON
  text += " NEON";
#endif
#ifdef __ARM_FEATURE_SVE
  text += " SVE";
#endif
  return text.empty() ? " the architecture's baseline" : text;
}

std::string compiler() {
#ifdef __clang__
  return fmt::format("clang {}", __clang_version__);
#else
  return fmt::format("g++ {}", __VERSION__);
#endif
}

// The first of the names that the dynamic loader finds.
std::string find_library(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (dlopen(name, RTLD_LAZY | RTLD_LOCAL)) return std::string("found: ") + name;  // stays open: the program ends soon
  return "not found";
}

// What is missing and the line that installs it.
void report_missing(Findings& findings, const char* heading, CudaLibrary library) {
  findings.emplace_back(heading, *missing_library(library));
  findings.emplace_back("", install_line(library));
}

// A version as CUDA counts: 13000 is 13.0.
std::string dotted(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string describe_device(const Driver& driver, int ordinal) {
  cu::CUdevice device_id = 0;
  char name[256] = "";
  int major = 0, minor = 0;
  std::size_t bytes = 0;
  cuda_check(driver, driver.cuDeviceGet(&device_id, ordinal), "cuDeviceGet");
  cuda_check(driver, driver.cuDeviceGetName(name, sizeof name, device_id), "cuDeviceGetName");
  cuda_check(driver, driver.cuDeviceTotalMem(&bytes, device_id), "cuDeviceTotalMem");
  driver.cuDeviceGetAttribute(&major, cu::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_id);
  driver.cuDeviceGetAttribute(&minor, cu::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_id);
  std::string text = fmt::format("{}, compute capability {}.{}, {:.1f} GiB", name, major, minor, double(bytes) / (1 << 30));
  return text + (major < 8 ? "; weft needs 8.0 or later" : ", kernels for " + target_of(major, minor));
}

int driver_version() {
  int version = 0;
  if (has_cuda_driver()) cuda_driver().cuDriverGetVersion(&version);
  return version;
}

void examine_driver(Findings& findings) {
  if (!has_cuda_driver()) return report_missing(findings, "CUDA driver", CudaLibrary::driver);
  findings.emplace_back("CUDA driver",
                        fmt::format("of CUDA {}: {}", dotted(driver_version()), library_path(CudaLibrary::driver)));
  if (const auto problem = missing_cuda_device()) return void(findings.emplace_back("CUDA devices", *problem));
  int count = 0;
  cuda_driver().cuDeviceGetCount(&count);
  for (int i = 0; i < count; ++i) findings.emplace_back(fmt::format("CUDA device {}", i), describe_device(cuda_driver(), i));
}

// A driver runs the code of later libraries of its own major version alone.
void warn_of_driver(Findings& findings, int major, const char* wheel) {
  const int driver = driver_version() / 1000;
  if (driver != 0 && major > driver)
    findings.emplace_back("",
                          fmt::format("newer than the driver, which may refuse its code: pip install {}-cu{}", wheel, driver));
}

void examine_nvrtc(Findings& findings) {
  if (missing_library(CudaLibrary::nvrtc)) return report_missing(findings, "NVRTC", CudaLibrary::nvrtc);
  findings.emplace_back("NVRTC", fmt::format("{}: {} (the oldest supported is {})", dotted(nvrtc_version()),
                                             library_path(CudaLibrary::nvrtc), dotted(kOldestNvrtc)));
  warn_of_driver(findings, nvrtc_version() / 1000, "nvidia-cuda-nvrtc");
}

void examine_cublas(Findings& findings) {
  if (missing_library(CudaLibrary::cublas_lt)) return report_missing(findings, "cuBLASLt", CudaLibrary::cublas_lt);
  const std::size_t version = cublas_lt().cublasLtGetVersion();  // 120804 is 12.8.4
  findings.emplace_back("cuBLASLt", fmt::format("{}.{}.{}: {} (the oldest supported is 12.0)", version / 10000,
                                                version / 100 % 100, version % 100, library_path(CudaLibrary::cublas_lt)));
  warn_of_driver(findings, int(version / 10000), "nvidia-cublas");
}

// Of the first device, which is the one that is used.
std::string describe_memory() {
  const Gpu& gpu = Gpu::of(Device::cuda);
  return fmt::format("{:.1f} of {:.1f} GiB are in use, by all processes", double(gpu.memory_in_use()) / (1 << 30),
                     double(gpu.total_memory()) / (1 << 30));
}

}  // namespace

// NVLink carries atomics, PCI Express does not.
std::string describe_link(bool peers, bool atomics, int rank) {
  if (!peers) return "through the host: neither reads the other's memory";
  return fmt::format("{}: each reads the other's memory (performance rank {})", atomics ? "NVLink" : "PCI Express", rank);
}

namespace {

// What several processes would compute together with.
void examine_ranks(Findings& findings) {
  if (missing_library(CudaLibrary::nccl))
    report_missing(findings, "NCCL", CudaLibrary::nccl);
  else
    findings.emplace_back("NCCL", fmt::format("{}: {}", nccl_version(), library_path(CudaLibrary::nccl)));
  findings.emplace_back("Open MPI", find_library({"libmpi.so.40"}));
  if (missing_cuda_device()) return;
  const Driver& driver = cuda_driver();
  int count = 0;
  driver.cuDeviceGetCount(&count);
  for (int i = 0; i < count; ++i)
    for (int k = i + 1; k < count; ++k) {
      int there = 0, back = 0, rank = 0, atomics = 0;
      driver.cuDeviceCanAccessPeer(&there, i, k);
      driver.cuDeviceCanAccessPeer(&back, k, i);
      driver.cuDeviceGetP2PAttribute(&rank, cu::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK, i, k);
      driver.cuDeviceGetP2PAttribute(&atomics, cu::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED, i, k);
      findings.emplace_back(fmt::format("devices {} and {}", i, k), describe_link(there && back, atomics != 0, rank));
    }
}

std::string describe_cache() {
  const CacheState state = cache_state();
  if (!state.problem.empty()) return fmt::format("not used: {} {}", state.folder, state.problem);
  return fmt::format("{}: {} kernels, {:.1f} MB", state.folder, state.entries, double(state.bytes) / 1e6);
}

}  // namespace

Findings examine_host() {
  return {{"CPU", fmt::format("{}, {} hardware threads", cpu_name(), std::thread::hardware_concurrency())},
          {"built with", fmt::format("{}, for{}", compiler(), vector_extensions())},
          {"threads", fmt::format("{} (OMP_NUM_THREADS)", threads())},
          {"BLAS", fmt::format("{}, core {}", openblas_get_config(), openblas_get_corename())}};
}

Findings examine_gpu() {
  Findings findings;
  examine_driver(findings);
  examine_nvrtc(findings);
  examine_cublas(findings);
  return findings;
}

Findings examine_machine() {
  Findings findings = examine_host();
  findings.emplace_back("device in use", name_of(device()));
  findings.emplace_back("devices of this version", "cpu, cuda, emu (the CUDA kernels on an interpreter, without a GPU)");
  for (auto& finding : examine_gpu()) findings.push_back(std::move(finding));
  if (!missing_cuda_device()) findings.emplace_back("memory of device 0", describe_memory());
  examine_ranks(findings);
  findings.emplace_back("kernel cache", describe_cache());
  return findings;
}

}  // namespace weft
