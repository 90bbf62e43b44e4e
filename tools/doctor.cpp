#include "tools/doctor.h"

#include <cblas.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "autograd/run.h"
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

std::string cache_folder() {
  if (const char* own = std::getenv("WEFT_CACHE"); own && *own) return std::string(own) + " (WEFT_CACHE)";
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg && *xdg) return std::string(xdg) + "/weft";
  const char* home = std::getenv("HOME");
  return std::string(home && *home ? home : ".") + "/.cache/weft";
}

// The first of the names that the dynamic loader finds.
std::string find_library(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (dlopen(name, RTLD_LAZY | RTLD_LOCAL)) return std::string("found: ") + name;  // stays open: the program ends soon
  return "not found";
}

}  // namespace

std::vector<std::pair<std::string, std::string>> examine_machine() {
  return {{"CPU", fmt::format("{}, {} hardware threads", cpu_name(), std::thread::hardware_concurrency())},
          {"built with", fmt::format("{}, for{}", compiler(), vector_extensions())},
          {"threads", fmt::format("{} (OMP_NUM_THREADS)", threads())},
          {"BLAS", fmt::format("{}, core {}", openblas_get_config(), openblas_get_corename())},
          {"device in use", device()},
          {"devices of this version", "cpu only; it does not use a GPU even where the libraries below are found"},
          {"CUDA driver", find_library({"libcuda.so.1"})},
          {"NVRTC", find_library({"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"})},
          {"cuBLASLt", find_library({"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"})},
          {"NCCL", find_library({"libnccl.so.2"})},
          {"kernel cache", cache_folder() + " (not used by the cpu device)"}};
}

}  // namespace weft
