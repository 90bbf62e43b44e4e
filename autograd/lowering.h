// What an op's rule for kernels sees.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/op.h"
#include "autograd/tape.h"
#include "jit/cuda_text.h"
#include "jit/device.h"
#include "jit/gemm_cuda.h"
#include "jit/ranks/collectives.h"
#include "jit/skeleton.h"

namespace weft {

using Kernel = std::function<void(const Launch&)>;

// What happens to the sums of a product before they are stored (jit/gemm.h): added, then activated. Operands absent or with
// contiguous columns.
struct Epilogue {
  Operand bias;    // (n), dense
  Operand addend;  // of the output's shape, in rows
  Activation activation = Activation::none;
};

// Pointwise values that a kernel computes of a value that it has in registers: roots over that value, and where each is stored.
struct Guests {
  Fused fused;
  std::vector<Operand> to;  // in rows
  std::string names;        // "__add_cast"
};

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
  // With a contiguous last dim and one row stride (copied if it is not so).
  Operand rows(int i, std::optional<DType> dtype = {});
  Operand dense(int i, std::optional<DType> dtype = {});  // dense (copied if it is not so)
  // For kernels that move 16 bytes of the last dim at once: Operand::sixteens() (copied if it is not so, dense or not).
  Operand sixteens(int i, std::optional<DType> dtype = {});
  // Of a product (Op::product): its own bias, and what the scheduler has fused into it. Both operands as `dtype` if that is
  // given.
  Epilogue epilogue(std::optional<DType> dtype = {});
  Fused source(int i);  // input i as an expression to evaluate: for ops that set `prologues`
  // What this node's kernel computes and stores besides, of op.guest_input, which is not rounded yet, or op.guest_output.
  // Without roots where there is nothing.
  Guests guests();
  Operand output(int k = 0);  // absent if nobody reads it; rows() but for op.strided_output; dense if op.dense_outputs
  Operand scratch(DType dtype, std::span<const std::int64_t> dims);  // memory for the kernels of this node
  Operand state(std::int64_t position);  // memory of a State the op writes (see Op::writes) or reads in place
  // The bf16 twin of a Param that the op writes, if it has one: the op then writes the rounded values there too. An op that
  // does not ask leaves the twin stale, and the next plan that reads it copies.
  Operand twin(std::int64_t position);
  bool filled(int h) const;
  // Over `space`, the sizes of the hole's coordinates. A hole that is not filled gives the last of its values.
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
  void emit(std::string name, const CollectiveCall& call);
  // Sets `to` to `source` evaluated over its dims, by a pointwise kernel.
  void emit_pointwise(std::string name, const Fused& source, const Operand& to);

 private:
  friend class Scheduler;
  Lowering(class Scheduler& scheduler, NodeId node) : scheduler_(scheduler), node_(node) {}
  Operand of_node(NodeId id, std::optional<DType> dtype);
  Operand added(NodeId id, std::optional<DType> dtype);
  Operand copied(const Operand& o);
  void emit_planned(std::string name, struct PlannedKernel kernel);
  class Scheduler& scheduler_;
  NodeId node_;
};

}  // namespace weft
