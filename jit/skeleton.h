// Skeletons with holes. A structured kernel is a hand-written loop (CPU) or text (CUDA) with named holes that are filled
// with expressions. Here live the pieces every back end shares: operands in memory slots, expressions fused over operands
// (`Fused`), the contract of a hole, and the CPU's way of evaluating them (`Runner`).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "jit/block.h"
#include "jit/expr.h"
#include "jit/interp.h"

namespace weft {

// Where a value lives: memory slot, element offset, index map. The slot's address is known when the plan runs.
struct Operand {
  int slot = -1;            // -1: absent (an output nobody reads, an optional input not given)
  std::int64_t offset = 0;  // elements
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> dims{};
  std::array<std::int64_t, kMaxRank> strides{};

  explicit operator bool() const { return slot >= 0; }
  std::int64_t numel() const;
  double bytes() const;  // of its distinct elements: what is broadcast is there once
  bool contiguous() const;
  bool rows() const;                // last dim contiguous, the leading ones walk with one row stride
  std::int64_t row_stride() const;  // elements between rows, if rows()
  bool sixteens() const;            // last dim contiguous, every row begins at a multiple of 16 bytes
  Operand transposed() const;       // with its last two axes swapped; rank >= 2, or absent
};

Operand dense_operand(int slot, DType dtype, std::span<const std::int64_t> dims);
// The same memory read with the right-aligned shape `dims`, stride 0 where it broadcasts.
Operand broadcast_to(const Operand& operand, std::span<const std::int64_t> dims);

// One execution of a plan: addresses and constants.
struct Launch {
  std::byte* const* slots = nullptr;
  const double* constants = nullptr;  // the step's constants block
  View view(const Operand& operand) const;
  template <class T>
  T* pointer(const Operand& operand) const {
    return operand ? reinterpret_cast<T*>(slots[operand.slot]) + operand.offset : nullptr;
  }
};

// Expressions evaluated over a space, whose coordinates are index 0, 1, ... Inputs [0, values) of the program are given by the
// skeleton at each element; input values + k is leaves[k]; load k reads tables[k]. Slot j of the program is constant
// constants[j] of the step.
struct Fused {
  Program program;
  std::vector<Expr> roots;  // what the program computes, for the CUDA back end and for people
  int values = 0;
  // Seen over the space: broadcast to it, or with one step for each coordinate, whatever the tensor's own axes are.
  std::vector<Operand> leaves;
  std::vector<Operand> tables;  // with their own axes
  std::vector<int> constants;
  std::vector<std::int64_t> dims;  // of the space
  std::string hole{};              // what it fills, for people: "delta(raw; b, t, i) = softplus(raw + z0(i))"
};

// Evaluates a Fused on one thread. T is the compute type, float or double.
template <class T>
class Runner {
 public:
  Runner(const Launch& launch, const Fused& fused);
  // Elements [first, first + n) of the space in row-major order, n <= kBlock. values[k]: n elements of value k.
  // outputs[k] receives root k. `out` pointers may equal a value pointer.
  void run(std::int64_t first, int n, std::span<const void* const> values, std::span<void* const> outputs);
  // For a Fused without values and with one real root: elements [first, first + n), n <= kBlock; valid until the next call.
  const T* read(std::int64_t first, int n);
  // The same for any n, copied to `out`.
  void read(std::int64_t first, std::int64_t n, T* out);

 private:
  const Fused* fused_;
  std::vector<double> constants_;
  std::vector<View> tables_;
  typename Program::template State<T> state_;
  std::vector<View> leaves_;
  std::vector<std::array<double, kBlock>> buffers_;  // for leaves that need gathering or conversion
  std::vector<const void*> inputs_;
  std::vector<T> result_;
  bool identity_;  // root is leaf 0 itself: no program needed
};

// What remains of the gradient of a load when a kernel has summed it over all that its subscripts do not depend on, besides the
// outer coordinates: one sum; one for each row; for each column; for each difference of row and column, which the subscripts
// then read as a whole.
enum class SumForm : std::uint8_t { none, row, column, difference };
inline constexpr int kSumForms = 4;

// The contract of a hole, enforced when an op with a filled hole is recorded.
struct HoleSpec {
  std::string_view name;             // "delta"
  std::string_view coordinates;      // their names, "b t i"; by convention the last is the column, the one before it the row
  int values;                        // reals that the skeleton passes: 1 for an epilogue, 2 with an upstream gradient
  int results = 1;                   // 0: any number
  ExprType result = ExprType::real;  // of each of them
  // The gradients of captured tensors. `dense`: they may be written over the space and summed afterwards, as the kernel writes
  // as much anyway; else a captured tensor has none. `columns`: what depends on the column alone the kernel sums over the rows.
  bool dense = false, columns = false;
  // Bit f: what has SumForm(f) the kernel sums so. With any bit set, what has another form has no gradient.
  std::uint8_t sums = 0;
  // Which hole of the op, recorded before, says what places are seen. A subscript may leave its tensor at the others, where
  // what is read is arbitrary. -1: all are seen.
  int hidden_by = -1;
  bool draws = false;                       // it may draw numbers, by its coordinates
  std::array<std::string_view, 2> names{};  // of the values, for people: {"raw"}
};

}  // namespace weft
