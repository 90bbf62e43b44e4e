// How fast the emulated device runs simple kernels, with all its checks: instructions of threads a second of one core.
#include <fmt/format.h>

#include <ctime>
#include <string>
#include <vector>

#include "jit/compiler.h"
#include "jit/emulator/device.h"
#include "jit/parallel.h"
#include "jit/print.h"
#include "tools/bench/host.h"

namespace weft {
namespace {

using namespace cu;

constexpr unsigned kThreads = 1 << 18, kBlock = 256;

struct Case {
  const char* name;
  const char* body;  // of a kernel of x, y and z, with the index i of the thread in blocks of 256
};
constexpr Case kCases[] = {
    {"element-wise: z = 3 x + y", "z[i] = 3 * x[i] + y[i];"},
    {"element-wise, vectors of 4",
     "if (4 * i < n) { float4 a = ((const float4*)x)[i], b = ((const float4*)y)[i]; a.x += b.x, a.y += b.y, a.z += b.z, "
     "a.w += b.w; ((float4*)z)[i] = a; }"},
    {"element-wise: exp", "z[i] = expf(x[i]);"},
    {"arithmetic alone",
     "float v = x[i]; for (int j = 0; j < 64; ++j) { v = v * 1.01f + 0.5f; v = v * 0.9f - 0.5f; } z[i] = v;"},
    {"shared memory and barriers",
     "__shared__ float s[256]; float v = x[i]; for (int j = 0; j < 16; ++j) { s[threadIdx.x] = v; __syncthreads(); "
     "v += s[threadIdx.x ^ j]; __syncthreads(); } z[i] = v;"},
};

void measure(const Case& c) {
  const Driver& emu = emulated_driver();
  const std::string text = fmt::format(
      "extern \"C\" __global__ void __launch_bounds__(256) k(const float* x, const float* y, float* z, int n) {{\n"
      "  int i = blockIdx.x * 256 + threadIdx.x;\n{}\n}}\n",
      c.body);
  const std::string ptx = compile("emulator benchmark", text, "compute_90").ptx;
  CUlibrary library = nullptr;
  CUkernel kernel = nullptr;
  CUlaunchConfig config;
  CUdeviceptr memory[3];
  cuda_check(emu, emu.cuLibraryLoadData(&library, ptx.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0), "loading");
  cuda_check(emu, emu.cuLibraryGetKernel(&kernel, library, "k"), "the kernel");
  CUfunction function = nullptr;
  cuda_check(emu, emu.cuKernelGetFunction(&function, kernel), "the function");
  const std::vector<float> values(kThreads, 0.5f);
  for (CUdeviceptr& m : memory) {
    cuda_check(emu, emu.cuMemAlloc(&m, kThreads * sizeof(float)), "cuMemAlloc");
    cuda_check(emu, emu.cuMemcpyHtoD(m, values.data(), kThreads * sizeof(float)), "cuMemcpyHtoD");
  }
  config.gridDimX = kThreads / kBlock, config.blockDimX = kBlock;
  int n = kThreads;
  void* arguments[] = {&memory[0], &memory[1], &memory[2], &n};
  double best = 0;
  for (int run = 0; run < 6; ++run) {  // the first touches the memory
    reset_emulated_counters();
    const std::clock_t begin = std::clock();
    cuda_check(emu, emu.cuLaunchKernelEx(&config, function, arguments, nullptr), "a launch");
    const double seconds = double(std::clock() - begin) / CLOCKS_PER_SEC;
    best = std::max(best, double(emulated_counters().at("k").threads()) / seconds);
  }
  for (const CUdeviceptr m : memory) emu.cuMemFree(m);
  emu.cuLibraryUnload(library);
  print("{:28} {:7.0f} M instructions/s\n", c.name, best / 1e6);
}

}  // namespace

void bench_emulator() {
  if (nvrtc_version() == 0) {
    print("skipped: there is no NVRTC\n");
    return;
  }
  const int before = threads();
  set_threads(1);
  for (const Case& c : kCases) measure(c);
  set_threads(before);
}

}  // namespace weft
