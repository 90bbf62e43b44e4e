// CUDA kernels as text. A kernel is a hand-written skeleton (a .cuh file of ops/ or jit/, embedded in the library) behind a
// generated head: the compute type, static facts, the struct of arguments, and the functions that its holes are filled with.
//
// What a skeleton sees, besides jit/prelude.cuh:
//   real                    float, or double where an operand is f64: everything is computed in it
//   index                   int, or i64 where an operand reaches 2^31 elements or more
//   KERNEL                  the name of the function: extern "C" __global__ void __launch_bounds__(T) KERNEL(PARAMETERS)
//   PARAMETERS              const __grid_constant__ Args a
//   a.x, has_x              a pointer argument, and whether it is present (constexpr bool)
//   a.n                     an integer argument (i64 in memory)
//   a.eps()                 a constant of the step, as real
//   N                       a fact (constexpr int)
//   f<V>(a, row, col, x)    expressions over flat rows (hole_text.h): V neighbouring elements of row `row`, from `col` on, to x
//   f<V>(a, b, t, i, v, y)  a hole, at V neighbouring places of its space
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "jit/skeleton.h"

namespace weft {

// What a kernel is launched with, in the order of the struct `Args`: 8 bytes each, but for a tensor map.
struct CudaArg {
  enum Kind : std::uint8_t {
    pointer,    // address of slot `slot` plus `value` bytes
    integer,    // `value`
    constants,  // address of the step's constants block
    status,     // address of the device's status words (see raise in prelude.cuh)
    table,      // address of tables[value] in device memory
    map,        // maps[value], encoded: 128 bytes at a multiple of 64
  } kind = integer;
  int slot = -1;
  std::int64_t value = 0;
};

// How the struct `Args` declares an argument: {"const bf16*", "x"}.
struct CudaParameter {
  std::string type, name;
};

// A tensor whose boxes the copy engine of sm_90 and later (TMA) moves: what cuTensorMapEncodeTiled is given. Axes from the
// innermost outwards, which is contiguous.
struct TmaMap {
  int slot = -1;
  std::int64_t offset = 0;  // bytes
  DType dtype = DType::f32;
  int rank = 0;                            // 1 to 5
  std::array<std::uint64_t, 5> dims{};     // elements
  std::array<std::uint64_t, 4> strides{};  // bytes between elements of axis 1 and so on
  std::array<unsigned, 5> box{};           // elements that one instruction moves
  int swizzle = 0;                         // bytes of a row of the box in shared memory that are permuted: 0, 32, 64 or 128
};
// Of an operand and a box of its axes, outermost first as the operand's. An Error (usage) says what the engine does not take.
TmaMap tma_map(const Operand& operand, std::span<const std::int64_t> box, int swizzle = 0);

// A kernel that can be compiled (text) and launched (the rest).
struct CudaKernel {
  std::string name;  // of the __global__ function: "rms_norm__3f9c1a"
  std::string text;  // complete, but for the prelude, which every kernel begins with
  std::vector<CudaArg> args;
  std::vector<CudaParameter> parameters;     // of args, one by one
  std::vector<std::string> holes;            // what fills them: "delta(raw; b, t, i) = softplus(raw + x1)"
  std::vector<std::vector<CudaArg>> tables;  // words of tables: pointers and integers
  std::vector<TmaMap> maps;                  // sm_90 and later
  std::array<unsigned, 3> grid{1, 1, 1}, block{1, 1, 1};
  std::array<unsigned, 3> cluster{1, 1, 1};  // blocks that share their memory, sm_90 and later; each divides the grid's
  unsigned shared = 0;                       // bytes of dynamic shared memory
  bool follows = false;                      // it may be launched before the kernel in front of it has ended
  int registers = 0;                         // the most that a thread is expected to need; 0: no budget
  double bytes = 0;                          // read and written, at least: for rooflines; 0: unknown
  double flops = 0;
};

class CudaText {
 public:
  CudaText(std::string name, bool in_double);

  // Arguments. An absent operand is a null pointer; `has_NAME` tells.
  CudaText& pointer(std::string_view name, const Operand& operand);
  CudaText& rows(std::string_view name, const Operand& operand);  // and NAME_row: elements between its rows
  CudaText& integer(std::string_view name, std::int64_t value);
  CudaText& constant(std::string_view name, int position);             // in Launch::constants: a.NAME()
  CudaText& table(std::string_view name, std::vector<CudaArg> words);  // const i64* NAME
  // TmaMap NAME: &a.NAME is what the copy engine takes.
  CudaText& tma_map(std::string_view name, const Operand& operand, std::span<const std::int64_t> box, int swizzle = 0);
  // Facts that are part of the text.
  CudaText& define(std::string_view name, std::int64_t value);      // constexpr int
  CudaText& type(std::string_view name, DType dtype);               // using NAME = bf16;
  CudaText& source(std::string_view name, const Operand& operand);  // const T* NAME, whose reader minds how far it reaches
  CudaText& elements(std::int64_t n);                               // numbers of the kernel's own go up to n
  CudaText& hole(std::string description) { return kernel_.holes.push_back(std::move(description)), *this; }
  CudaText& function(std::string_view text);  // stands between the arguments and the skeleton
  // A pointer argument NAME and a function NAME_at(a, row): the element where row `row` of `operand` begins, whatever its
  // leading strides.
  CudaText& strided(std::string_view name, const Operand& operand);
  // The text of the element where row `row` of the operand begins, empty for 0; adds the strides as arguments. With several
  // leading axes that do not walk as one, the row is taken apart by divisions.
  std::string row_offset(std::string_view name, const Operand& operand);
  CudaText& cluster(unsigned x, unsigned y = 1, unsigned z = 1) { return kernel_.cluster = {x, y, z}, *this; }
  CudaText& budget(int registers) { return kernel_.registers = registers, *this; }
  CudaText& flops(double flops) { return kernel_.flops = flops, *this; }
  // Bytes read and written, where they are not those of all operands, each counted once.
  CudaText& traffic(double bytes) { return kernel_.bytes = bytes, *this; }

  // The skeleton, and the shape of the launch. `file` is a path in the source tree: "ops/norm.cuh".
  CudaKernel launch(std::string_view file, std::array<unsigned, 3> grid, std::array<unsigned, 3> block, unsigned shared = 0);
  // The same with a text at hand. The kernel's body will begin with `follow()` of the prelude.
  CudaKernel launch_text(std::string_view body, std::array<unsigned, 3> grid, std::array<unsigned, 3> block,
                         unsigned shared = 0);

 private:
  void note(const Operand& operand);  // that the kernel reads or writes: bytes, and the width of indices
  void member(std::string_view type, std::string_view name, CudaArg arg);

  CudaKernel kernel_;
  std::string members_, facts_, functions_;
  bool in_double_, wide_ = false;  // wide: 64-bit indices
  double moved_ = 0;               // bytes of the operands
};

constexpr std::int64_t kMostNarrow = (std::int64_t(1) << 31) - 1024;  // what an `int` may number; a vector may follow
std::int64_t reach_of(const Operand& operand);                        // elements between the first and the last of the operand

// The leading axes of an operand as pairs (size, stride), innermost first, neighbours merged; the stride of the last.
struct Axis {
  std::int64_t size, stride;
};
std::vector<Axis> leading_axes(const Operand& operand);
std::int64_t last_stride(const Operand& operand);

// The largest V of 8, 4, 2, 1 such that V neighbouring columns of every operand over the space `dims` can be read as aligned
// vectors (or are broadcast along the columns), and V divides the columns.
int vector_width(std::span<const std::int64_t> dims, std::span<const Operand> operands);
int vector_width(std::span<const std::int64_t> dims, std::span<const Fused* const> sources, std::span<const Operand> operands);

// The pointwise kernel: `fused` over the space `dims`, root k stored to outputs[k].
CudaKernel pointwise_cuda(std::string name, const Fused& fused, std::span<const Operand> outputs,
                          std::span<const std::int64_t> dims, bool in_double);

std::string_view cuda_type(DType dtype);     // "bf16"
std::string_view value_type(ExprType type);  // "real", "i64", "bool"

// An embedded file: "jit/prelude.cuh", "ops/norm.cuh". An internal error if there is none.
std::string_view embedded_text(std::string_view file);

// All of them, in a table that CMake generates from the .cuh files. Tests replace a text before kernels are made of it.
struct EmbeddedText {
  std::string_view file, text;
};
std::span<EmbeddedText> embedded_texts();

// What NVRTC is given: prelude and kernel.
std::string complete_text(const CudaKernel& kernel);

}  // namespace weft
