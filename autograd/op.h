// What an op is: a name, a rule for gradients (vjp: appends ordinary nodes, autograd/backward.h) and a rule for kernels (lower,
// autograd/lowering.h). Shapes and dtypes are checked by the function that records it (ops/*.cpp), so that an error appears at
// the call.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/hole.h"
#include "autograd/tape.h"
#include "autograd/tensor.h"
#include "jit/skeleton.h"

namespace weft {

class Vjp;
class Lowering;

struct Op {
  std::string_view name;
  void (*vjp)(Vjp&) = nullptr;         // null: a gradient that is needed through it is an error
  void (*lower)(Lowering&) = nullptr;  // null: a pointwise op, a view or a leaf, which the scheduler handles itself
  void (*cuda)(Lowering&) = nullptr;   // the same for a GPU: emits CudaKernels and GemmCalls
  // View ops: the operand of the result in terms of the base's, or an absent operand if strides cannot express it (the
  // scheduler then copies the base to dense memory and asks again).
  Operand (*view)(const Tape&, NodeId, const Operand& base) = nullptr;
  // The other way round: the operand of a base whose view is `result`, or an absent one.
  Operand (*base)(const Tape&, NodeId, const Operand& result) = nullptr;
  std::span<const HoleSpec> holes = {};
  // Bit i: a pointwise producer of input i may be evaluated inside this kernel (a prologue), `reuse` times for each element.
  std::uint32_t prologues = 0;
  int reuse = 1;
  // On a GPU: the input, a prologue, or the output of which a kernel has every element in registers once. Pointwise values that
  // are made of it and stored may be computed there too (Lowering::guests). -1: none; one of them at most.
  int guest_input = -1, guest_output = -1;
  // The op writes States in place, so it is a root of the graph: appends their positions (Tape::states).
  void (*writes)(const Tape&, NodeId, std::vector<std::int32_t>& positions) = nullptr;
  // Ops that put their inputs side by side: the place of input i in the output, where its producer may write it.
  Operand (*place)(const Tape&, NodeId, int i, const Operand& output) = nullptr;
  // Whether output `output` may have the memory of input `input` on a GPU: what is read of it was read before that is written.
  bool (*in_place)(const Tape&, NodeId, int input, int output) = nullptr;
  // The output is the product of the first two inputs, plus the third, a bias, if it is present: more may be fused into it
  // (Lowering::epilogue).
  bool product = false;
  // Ints that name things of this process (an Expr, something that a user registered) differ from process to process; this is a
  // hash of all the plain ints that does not. Without it they count as they are.
  std::uint64_t (*identity)(const Tape&, NodeId) = nullptr;
  // All ranks do it together, so in the same order; it is done as soon as its inputs are there.
  bool collective = false;
  bool dense_outputs = false;   // outputs cannot be slices of such an op's output (no row stride)
  bool strided_output = false;  // output 0 may be any slice, and not only one with a row stride
  std::uint16_t id = 0;         // given by register_op
};

const Op& register_op(Op op);  // at static initialisation, once for each op
std::span<const Op* const> registered_ops();

// Records `op` on the active tape and returns output 0 (output k: `output_of(first, k)`). Absent tensors are allowed where
// the op expects them.
Tensor record(const Op& op, std::initializer_list<Tensor> inputs, std::initializer_list<Out> outputs,
              std::span<const std::int64_t> ints, std::span<const double> constants, Site where);
Tensor record(const Op& op, std::span<const Tensor> inputs, std::span<const Out> outputs, std::span<const std::int64_t> ints,
              std::span<const double> constants, Site where);
Tensor output_of(const Tensor& first, int k, Site where = Site::current());

// Raises a usage error at `where` with the frames of the active tape.
[[noreturn]] void fail_at(Site where, std::string what, std::string numbers = {}, std::string hint = {});

// An error unless it is the shape of a tensor: no negative size, and no more elements than can be counted. Recorded outputs
// are checked.
void check_shape(const Shape& shape, Site where);

}  // namespace weft
