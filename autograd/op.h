// What an op is: a name, a rule for gradients (vjp: appends ordinary nodes) and a rule for kernels (lower). Shapes and dtypes
// are checked by the function that records it (ops/*.cpp), so that an error appears at the call.
#pragma once

#include <functional>
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
#include "jit/cuda_text.h"
#include "jit/device.h"
#include "jit/expr.h"
#include "jit/few.h"
#include "jit/gemm_cuda.h"
#include "jit/skeleton.h"

namespace weft {

class Vjp;
class Lowering;

struct Op {
  std::string_view name;
  void (*vjp)(Vjp&) = nullptr;         // null: no gradient flows through
  void (*lower)(Lowering&) = nullptr;  // null: a pointwise op, a view or a leaf, which the scheduler handles itself
  void (*cuda)(Lowering&) = nullptr;   // the same for a GPU: emits CudaKernels and GemmCalls
  // View ops: the operand of the result in terms of the base's, or an absent operand if strides cannot express it (the
  // scheduler then copies the base to dense memory and asks again).
  Operand (*view)(const Tape&, NodeId, const Operand& base) = nullptr;
  std::span<const HoleSpec> holes = {};
  // Bit i: a pointwise producer of input i may be evaluated inside this kernel (a prologue), `reuse` times an element.
  std::uint32_t prologues = 0;
  int reuse = 1;
  // The op writes States in place, so it is a root of the graph: appends their positions (Tape::states).
  void (*writes)(const Tape&, NodeId, std::vector<std::int32_t>& positions) = nullptr;
  bool dense_outputs = false;  // outputs cannot be slices of a concat (no row stride)
  std::uint16_t id = 0;        // given by register_op
};

const Op& register_op(Op op);  // at static initialisation, once an op
std::span<const Op* const> registered_ops();

// Records `op` on the active tape and returns output 0 (output k: `output_of(first, k)`). Absent tensors are allowed where
// the op expects them.
Tensor record(const Op& op, std::initializer_list<Tensor> inputs, std::initializer_list<Out> outputs,
              std::span<const std::int64_t> ints, std::span<const double> constants, Site where);
Tensor record(const Op& op, std::span<const Tensor> inputs, std::span<const Out> outputs, std::span<const std::int64_t> ints,
              std::span<const double> constants, Site where);
Tensor output_of(const Tensor& first, int k);

// Raises a usage error at `where` with the frames of the active tape.
[[noreturn]] void fail_at(Site where, std::string what, std::string numbers = {}, std::string hint = {});

// -----------------------------------------------------------------------------------------------------------------------------
// Gradient rules.

// What a vjp sees: the node's operands as tensors, the gradients of its outputs, and where to put those of its inputs.
class Vjp {
 public:
  int inputs() const;
  Tensor input(int i) const;  // absent if the operand is
  Tensor output(int k = 0) const;
  Tensor grad(int k = 0) const;             // of output k; absent if nothing depends on it
  bool needs(int i) const;                  // input i is present and wants a gradient
  void add(int i, const Tensor& gradient);  // has the shape of input i
  // The gradient is zero but for [begin, end) of `axis`: disjoint slices of one tensor become a concat, without copies.
  void add_slice(int i, int axis, std::int64_t begin, std::int64_t end, const Tensor& gradient);
  std::int64_t integer(int j) const;  // plain ints, after the holes
  int integers() const;
  double constant(int j) const { return constants()[std::size_t(j)]; }
  std::span<const double> constants() const;  // of the node, all of them; gradient nodes that are given these share them
  Hole hole(int h) const;                     // as it was filled
  int hole_input(int h, int k) const;         // which input captured tensor k of hole h is
  Site where() const;

 private:
  friend struct BackwardPass;
  Vjp(struct BackwardPass& pass, NodeId node) : pass_(pass), node_(node) {}
  struct BackwardPass& pass_;
  NodeId node_;
};

// Ops that gradients are made of, defined in ops/ (the engine needs them by name alone):
// sums `t` over the axes along which `shape` was broadcast to t.shape();
Tensor sum_to(const Tensor& t, const Shape& shape, Site where = Site::current());
// joins the parts, in order, along `axis`, with zeros where a part is absent (its size is then in `sizes`).
Tensor join(std::span<const Tensor> parts, std::span<const std::int64_t> sizes, int axis, Site where);

// -----------------------------------------------------------------------------------------------------------------------------
// Kernels on the CPU.

using Kernel = std::function<void(const Launch&)>;

// What an op's `lower` sees: where operands live, and how to emit kernels. Kernels run in the order they are emitted; each
// is parallel inside (jit/parallel.h), cut by shape alone.
class Lowering {
 public:
  const Node& node() const;
  int inputs() const;
  bool has(int i) const;     // input i is present
  Shape shape(int i) const;  // of input i
  DType dtype(int i) const;
  std::int64_t integer(int j) const;  // plain ints, after the holes
  int integers() const;
  int constant(int j) const;  // position of the node's j-th constant in Launch::constants
  bool wants(int k) const;    // output k is read by somebody

  // Input i in memory, as `dtype` if that is given: itself, a Param's twin, or a dense copy that all readers of the plan share.
  Operand view(int i, std::optional<DType> dtype = {});  // with any strides
  Operand rows(int i,
               std::optional<DType> dtype = {});  // with a contiguous last dim and one row stride (copied if it is not so)
  Operand dense(int i, std::optional<DType> dtype = {});  // dense (copied if it is not so)
  Fused source(int i);                                    // input i as an expression to evaluate: for ops that set `prologues`
  Operand output(int k = 0);                              // absent if nobody reads it; rows() unless op.dense_outputs
  Operand scratch(DType dtype, std::span<const std::int64_t> dims);  // memory for the kernels of this node
  Operand state(std::int64_t position);  // memory of a State the op writes (see Op::writes) or reads in place
  // The bf16 twin of a Param that the op writes, if it has one: the op then writes the rounded values there too. Who does not
  // ask leaves the twin stale, and the next plan that reads it copies.
  Operand twin(std::int64_t position);
  bool filled(int h) const;
  // Leaves broadcast to `space`. A hole that is not filled gives the last of its values.
  Fused hole(int h, const Shape& space);

  // What the kernels are for: an op may have other ones where `target().sm_90a()`.
  const Target& target() const;
  // fp64 if the node or an input of real type is f64, else fp32.
  bool in_double() const;
  // Every operand asked for by this node stays valid during all its kernels.
  void emit(std::string name, Kernel kernel);

  // On a GPU.
  CudaText text(std::string name) const { return {std::move(name), in_double()}; }
  void emit(CudaKernel kernel);
  void emit(std::string name, const GemmCall& call);
  // Sets `to` to `source` evaluated over its dims, by a pointwise kernel.
  void emit_pointwise(std::string name, const Fused& source, const Operand& to);

 private:
  friend class Scheduler;
  Lowering(class Scheduler& scheduler, NodeId node) : scheduler_(scheduler), node_(node) {}
  void emit_planned(std::string name, struct PlannedKernel kernel);
  class Scheduler& scheduler_;
  NodeId node_;
};

}  // namespace weft
