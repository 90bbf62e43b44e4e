// A kernel as a program of its own.
#include <fmt/format.h>

#include "jit/error.h"
#include "tools/inspect/show.h"

namespace weft {
namespace {

constexpr std::string_view kProgramHead = R"(#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#define CHECK(call)                                                                              \
  do {                                                                                           \
    const cudaError_t error = (call);                                                            \
    if (error != cudaSuccess) std::printf("%s: %s\n", #call, cudaGetErrorString(error)), std::exit(1); \
  } while (false)

namespace host {

char* allocate(std::size_t bytes) {
  char* memory = nullptr;
  CHECK(cudaMalloc(&memory, bytes + 16));
  CHECK(cudaMemset(memory, 0, bytes + 16));
  return memory;
}

// Values in [-1/2, 1/2); integers are 0, which every index allows.
float number(std::size_t i) { return float((i * 2654435761u >> 8) % 65536) / 65536 - 0.5f; }
void set(float& x, std::size_t i) { x = number(i); }
void set(double& x, std::size_t i) { x = number(i); }
void set(kernel::bf16& x, std::size_t i) {
  const float value = number(i);
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  x.bits = static_cast<unsigned short>(bits >> 16);
}
template <class T>
void set(T& x, std::size_t) { x = T(0); }

// Lets `member` point into a slot of memory, filled with values of its type.
template <class P>
void point(P& member, char* slot, std::size_t bytes, std::size_t offset) {
  using T = std::remove_const_t<std::remove_pointer_t<P>>;
  std::vector<T> values(bytes / sizeof(T));
  for (std::size_t i = 0; i < values.size(); ++i) set(values[i], i);
  CHECK(cudaMemcpy(slot, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  member = reinterpret_cast<P>(slot + offset);
}

const kernel::i64* table(const std::vector<kernel::i64>& words) {
  char* memory = allocate(words.size() * sizeof(kernel::i64));
  CHECK(cudaMemcpy(memory, words.data(), words.size() * sizeof(kernel::i64), cudaMemcpyHostToDevice));
  return reinterpret_cast<const kernel::i64*>(memory);
}

}  // namespace host

)";

std::string argument(const KernelView& view, const CudaArg& arg, const CudaParameter& parameter) {
  const CudaKernel& k = *view.kernel;
  switch (arg.kind) {
    case CudaArg::pointer:
      return fmt::format("  host::point(args.{}, slot{}, {}, {});\n", parameter.name, arg.slot, view.slots.at(arg.slot),
                         arg.value);
    case CudaArg::integer:
      return parameter.type.ends_with('*') ? "" : fmt::format("  args.{} = {}ll;\n", parameter.name, arg.value);
    case CudaArg::constants:
      return fmt::format("  host::point(args.{}, host::allocate(8 * kConstants), 8 * kConstants, 0);\n", parameter.name);
    case CudaArg::status:
      return fmt::format("  args.{} = reinterpret_cast<decltype(args.{})>(host::allocate(64));\n", parameter.name,
                         parameter.name);
    case CudaArg::map:  // see to_program
    case CudaArg::table:
      break;
  }
  std::string words;
  for (const CudaArg& w : k.tables.at(std::size_t(arg.value)))
    words += w.kind == CudaArg::pointer ? fmt::format("\n      kernel::i64(slot{} + {}),", w.slot, w.value)
                                        : fmt::format(" {}ll,", w.value);
  return fmt::format("  args.{} = host::table({{{}}});\n", parameter.name, words);
}

}  // namespace

std::string to_program(const KernelView& view, std::string_view target) {
  if (!view.kernel)
    fail(ErrorKind::usage, fmt::format("inspect: {} is a product of cuBLASLt, which has no source", view.name), view.product);
  const CudaKernel& k = *view.kernel;
  if (!k.maps.empty())
    fail(ErrorKind::usage, fmt::format("inspect: {} takes tensor maps, which only the driver makes", view.name), {},
         "look at its --source, --ptx and --sass");
  std::string out = fmt::format(
      "// {}, recorded by {}\n// nvcc -std=c++17 -diag-suppress 128,177 -arch={} -o repro THIS.cu && ./repro\nnamespace kernel "
      "{{\n{}\n}}  // namespace kernel\n\n",
      k.name, view.module, target, complete_text(k));
  out += kProgramHead;
  out += "int main() {\n  [[maybe_unused]] constexpr std::size_t kConstants = 65536;  // more than a step has\n";
  for (const auto& [slot, bytes] : view.slots) out += fmt::format("  char* slot{} = host::allocate({});\n", slot, bytes);
  out += "  kernel::Args args{};\n";
  for (std::size_t i = 0; i < k.args.size(); ++i) out += argument(view, k.args[i], k.parameters[i]);
  out += fmt::format("  const dim3 grid({}, {}, {}), block({}, {}, {});\n", k.grid[0], k.grid[1], k.grid[2], k.block[0],
                     k.block[1], k.block[2]);
  out += fmt::format("  CHECK(cudaFuncSetAttribute(kernel::{}, cudaFuncAttributeMaxDynamicSharedMemorySize, {}));\n", k.name,
                     k.shared);
  out += fmt::format(R"(  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  constexpr int kWarmUp = 3, kLaunches = 20;
  for (int i = 0; i < kWarmUp + kLaunches; ++i) {{
    if (i == kWarmUp) CHECK(cudaEventRecord(begin));
    kernel::{}<<<grid, block, {}>>>(args);
  }}
  CHECK(cudaEventRecord(end));
  CHECK(cudaDeviceSynchronize());
  float milliseconds = 0;
  CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
  const double seconds = milliseconds / 1e3 / kLaunches, bytes = {:.0f};
  std::printf("%.2f us a launch", seconds * 1e6);
  if (bytes > 0) std::printf(", %.0f GB/s", bytes / seconds / 1e9);
  std::printf("\n");
}}
)",
                     k.name, k.shared, k.bytes);
  return out;
}

}  // namespace weft
