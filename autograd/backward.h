// Gradients: reverse traversal of the tape, appending ordinary nodes to it.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "autograd/op.h"
#include "autograd/state.h"
#include "autograd/tape.h"
#include "autograd/tensor.h"

namespace weft {

// Adds d(loss)/d(p) to the gradient of every trainable Param that `loss` (one element, real) depends on. An optimizer's step
// in the same run consumes it; otherwise it is kept in the Param's gradient State, marked pending, and the next backward adds
// to it.
void backward(Arg loss);

// What the gradient by a tensor is that the value does not depend on.
enum class Unused { error, zeros };

// d(loss)/d(x) for each x, as tensors. Errors (ErrorKind::usage): an x that loss does not depend on; one on which it depends
// through steps alone, as those of sign(), has zeros. Params are passed by their read: grad(loss, {w}).
// They can be differentiated again, by grad or backward and any number of times: a gradient penalty is
// `backward(loss + sum(square(grad(loss, {x})[0])))`. Second derivatives go through every op but scan, whose line the error
// then names, and through custom ops as far as their rules are made of ops. Inside no_grad a gradient is a constant, and so it
// is after detach(). Outside `run` a value that leads to a Param keeps its history as long as it lives, so detach() what a loop
// carries on, and until a State that it was computed from changes; any other is a constant once it has been looked at.
std::vector<Tensor> grad(Arg loss, std::vector<Arg> wrt, Unused unused = Unused::error);
// With an upstream gradient instead of a loss of one element.
std::vector<Tensor> grad(Arg output, Arg upstream, std::vector<Arg> wrt, Unused unused = Unused::error);
// The same of tensors in a vector. (A template: {x, y} is none, and goes to the others.)
std::vector<Arg> args_of(const std::vector<Tensor>& tensors, Site where);
template <std::same_as<std::vector<Tensor>> Tensors>
std::vector<Tensor> grad(Arg loss, const Tensors& wrt, Unused unused = Unused::error) {
  return grad(loss, args_of(wrt, loss.where()), unused);
}
template <std::same_as<std::vector<Tensor>> Tensors>
std::vector<Tensor> grad(Arg output, Arg upstream, const Tensors& wrt, Unused unused = Unused::error) {
  return grad(output, upstream, args_of(wrt, output.where()), unused);
}

// For optimizers: the gradient of `param`, of this recording and of earlier runs together, which the caller thereby consumes;
// absent if there is none. It is a constant for later gradients.
Tensor take_gradient(const Param& param, Site where = Site::current());

// In its place: what an optimizer will take. For what changes gradients between backward and step.
void put_gradient(const Param& param, const Tensor& gradient);

// Adds gradients that nobody consumed to the Params' gradient States; called when a recording ends.
void keep_gradients();

// While alive, recorded nodes require no gradient.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
template <class F>
auto no_grad(F&& f) {
  NoGrad scope;
  return f();
}

// Marks what f records: backward evaluates it again (random draws included) instead of keeping its intermediate values.
class Checkpoint {
 public:
  Checkpoint();
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

 private:
  bool outer_;
};
template <class F>
auto checkpoint(F&& f) {
  Checkpoint scope;
  return f();
}

// The first tensor argument and the first result of the last call of the module at `path` ("layers.23.mixer") in this
// recording. An error names the modules that were called.
struct Tap {
  Tensor input, output;
};
Tap tap(std::string_view path, Site where = Site::current());

// ---- gradient rules ---------------------------------------------------------------------------------------------------------

// What a vjp sees: the node's operands as tensors, the gradients of its outputs, and where to put those of its inputs.
class Vjp {
 public:
  std::string_view name() const;  // of the op
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
  Hole hole(int h) const;                     // as it was filled, with a load for every captured tensor
  const HoleSpec& hole_spec(int h) const;
  int hole_input(int h, int k) const;  // which input captured tensor k of hole h is
  Site where() const;
  // For an op that is itself a gradient: f() computes the outputs again with ops that have rules, and returns them (one that is
  // zero may be absent); what it records is differentiated.
  template <class F>
  void compose(F f) {
    const auto first = NodeId(tape().nodes.size());
    differentiate(first, f());
  }

 private:
  friend struct BackwardPass;
  Vjp(struct BackwardPass& pass, NodeId node) : pass_(pass), node_(node) {}
  void differentiate(NodeId first, const std::vector<Tensor>& outputs);
  struct BackwardPass& pass_;
  NodeId node_;
};

}  // namespace weft
