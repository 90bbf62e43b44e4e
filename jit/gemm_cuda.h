// GEMM on a GPU: cuBLASLt, with plans, workspace and choices of weft's own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "jit/dtype.h"
#include "jit/gemm.h"

namespace weft {

namespace cu {  // see jit/driver.h
using CUdeviceptr = std::uint64_t;
using CUstream = struct StreamHandle*;
}  // namespace cu

// A row-major matrix in a memory slot; of a batch, the first. With a col_stride of 1 its rows are contiguous and row_stride
// is at least the number of columns; otherwise row_stride is 1 and col_stride at least the number of rows.
struct GemmOperand {
  int slot = -1;            // -1: absent
  std::int64_t offset = 0;  // elements
  DType dtype = DType::f32;
  std::int64_t row_stride = 0, col_stride = 1, batch_stride = 0;

  explicit operator bool() const { return slot >= 0; }
};

// C (m, n) = activation(A (m, k) B (k, n) + beta D (m, n) + bias (n)), for each element of the batch; m, n, k, batch > 0. A and
// B have one dtype; C has contiguous rows and is f64 if they are, f32 if they are, and f32 or bf16 if they are bf16; D, which
// may be C, is like it, and the bias, dense, has its dtype. Computed in fp32 (bf16 and, if allowed, tf32 inputs on tensor
// cores), or fp64 if they are f64, where the library has no activation.
struct GemmCall {
  std::int64_t m = 0, n = 0, k = 0, batch = 1;
  GemmOperand a, b, c, bias = {}, addend = {};
  double beta = 1;  // of the addend, if there is one
  Activation activation = Activation::none;

  double flops() const { return 2.0 * double(m) * double(n) * double(k) * double(batch); }
};

// "8 x (512, 768) bf16 * (768, 1024) bf16 -> f32": for errors and for people.
std::string to_string(const GemmCall& call);

// Device memory for partial sums. Products that share it must run one after another: on one stream.
struct GemmWorkspace {
  cu::CUdeviceptr address = 0;
  std::size_t bytes = 0;
};
// What a device of this compute capability should be given.
constexpr std::size_t gemm_workspace_bytes(int major) { return std::size_t(major >= 9 ? 32 : 4) << 20; }

// The algorithm of each product that was prepared, by a text with all that the choice depends on: cuBLASLt's plain data, good
// for one version of the library and one kind of device.
using GemmChoices = std::map<std::string, std::array<std::uint64_t, 8>>;
GemmChoices gemm_choices();
// Products that are prepared from now on take these where the library still accepts them.
void use_gemm_choices(const GemmChoices& choices);
// For products without a choice: whether the library's first proposals are timed, on memory of their own, or its first is
// taken. Off at first: two runs that time may choose differently, and so differ in the last bits.
void tune_gemms(bool on);
bool tunes_gemms();
// Choices as text, a line each, for other processes. Errors (ErrorKind::io): a line that is no choice.
std::string to_text(const GemmChoices& choices);
GemmChoices gemm_choices_from(std::string_view text);
std::size_t gemm_library_version();  // 120804 is 12.8.4

// Everything of a launch that must not happen while a graph is captured: loads the library, chooses the algorithm. Needs the
// device's context to be current. `tf32`: fp32 operands may be rounded to tf32. Errors (device): the library is missing, or
// has no algorithm for the product.
void prepare_gemm(const GemmCall& call, cu::CUstream stream, const GemmWorkspace& workspace, bool tf32);
// Enqueues the product; `slots` are device addresses, those of the slots aligned to kAlignment. Prepares it if nobody has.
void launch_gemm(const GemmCall& call, std::byte* const* slots, cu::CUstream stream, const GemmWorkspace& workspace, bool tf32);

// The same product on host memory: for the emulated device.
void emulate_gemm(const GemmCall& call, std::byte* const* slots);

}  // namespace weft
