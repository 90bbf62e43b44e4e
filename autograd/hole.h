// Holes: the expressions that a user gives to a structured op. Here is a hole as it is filled, how it is recorded as a part of
// a node, and its gradient, the same for every op that has holes.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "autograd/tensor.h"
#include "jit/expr.h"
#include "jit/few.h"
#include "jit/skeleton.h"

namespace weft {

class Vjp;
struct Op;

// What a hole may hold: tensors that it captures, float constants and Scalars, different elements of tensors that it reads. Its
// gradient has a root for each of these elements besides those of its values.
inline constexpr std::size_t kMostCaptured = 8, kMostConstants = 16, kMostLoads = 16, kMostRoots = kMostLoads + 2;

// A hole as a user fills it: expressions of the values that the skeleton passes (inputs 0, 1, ...), the coordinates of the
// hole (index 0, 1, ...) and captured tensors. A captured tensor is indexed, or, in hole(), it is a further input that is
// broadcast to the hole's space.
struct Hole {
  // What is made of a hole, as the adjoint of a load (hole.cpp), holds some tensors and the strides of another besides.
  Few<Expr, kMostRoots> roots;                               // usually one
  Few<Tensor, kMostCaptured + 4> captured;                   // number k of loads, input `values + k` of the roots
  Few<double, kMostConstants + kMostCoordinates> constants;  // slots of the roots
  bool filled() const { return !roots.empty(); }
};

// The results of a hole that gives two.
struct Pair {
  Expr first, second;
};

// While alive, a function that fills a hole may index tensors and use constants and Scalars: what they are is collected.
class HoleScope : public ConstantScope {
 public:
  HoleScope();
  ~HoleScope();
  static HoleScope* innermost();  // null outside of a hole

  int capture(const Tensor& tensor, Site where);                   // its number
  Hole hole(std::initializer_list<Expr> roots, Site where) const;  // an error if it holds more than a hole may

 private:
  std::vector<Tensor> captured_;
  HoleScope* outer_;
};

namespace detail {
template <class F, std::size_t... I>
constexpr bool takes(std::index_sequence<I...>) {  // as many Exprs
  return std::is_invocable_v<F&, decltype((void(I), Expr()))...>;
}
template <class F, std::size_t... I>
Expr call_with_inputs(F& f, [[maybe_unused]] std::span<const int> numbers, std::index_sequence<I...>) {
  return f(expr::input(0), expr::input(1 + numbers[I])...);
}
[[noreturn]] void fail_hole_arity(std::size_t captured, Site where);
// `numbers`: those of the captured tensors, one of which may be given twice.
template <std::size_t N, class F>
Expr call_hole(F& f, std::span<const int> numbers, Site where) {
  if constexpr (N <= 2 * kMostCaptured) {
    if constexpr (takes<F>(std::make_index_sequence<N + 1>{})) {
      if (numbers.size() == N) return call_with_inputs(f, numbers, std::make_index_sequence<N>{});
    }
    return call_hole<N + 1>(f, numbers, where);
  } else {
    fail_hole_arity(numbers.size(), where);
  }
}

// f(values..., coordinates...), or without the coordinates.
template <class Result, class F, std::size_t... V, std::size_t... C>
Result call_body(F& f, std::index_sequence<V...>, std::index_sequence<C...>) {
  if constexpr (takes<F>(std::make_index_sequence<sizeof...(V) + sizeof...(C)>{})) {
    return Result(f(expr::input(int(V))..., expr::index(int(C))...));
  } else if constexpr (takes<F>(std::index_sequence<V...>{})) {
    return Result(f(expr::input(int(V))...));
  } else {  // a function whose body is in error cannot be called either
    static_assert(sizeof(F) == 0,
                  "the function must take the hole's values, or its values and all of its coordinates, as Exprs; if it does, "
                  "the error before this one is the mistake");
    return {};
  }
}
}  // namespace detail

// hole({b}, [](Expr v, Expr b) { return softplus(v + b); }) for a hole that passes one value: captured tensors in the shape of
// the hole's space, or one that broadcasts to it.
template <class F>
Hole hole(std::initializer_list<Arg> captured, F body, Site where = Site::current()) {
  HoleScope scope;
  std::vector<int> numbers;
  for (const Arg& c : captured) numbers.push_back(scope.capture(c.tensor(), c.where()));
  return scope.hole({detail::call_hole<0>(body, numbers, where)}, where);
}

// What an option of an op is filled with: a function of the hole's values, or of its values and all of its coordinates, which
// may index tensors; or a Hole. `[&](Expr v, Index, Index, Index i) { return softplus(v + bias(i)); }`
// - A tensor of any type may be indexed. A subscript outside of it is an error, also in an arm of where() that is not taken:
//   clamp() it.
// - A tensor whose subscripts depend on the hole's own value has no gradient.
// - A Scalar is a constant: Expr(scalar), or to_integer(scalar) for a whole number.
// - The quotient of integers is truncated, and 0 where the divisor is 0.
// - It holds at most 8 tensors, 16 constants and 16 different elements (kMostCaptured, kMostConstants, kMostLoads).
template <int values, int coordinates, int results = 1>
struct HoleOf : Hole {
  HoleOf() = default;
  HoleOf(Hole hole) : Hole(std::move(hole)) {}
  template <class F>
  requires(!std::is_convertible_v<F, Hole>) HoleOf(F body, Site where = Site::current()) {
    HoleScope scope;
    using Result = std::conditional_t<results == 2, Pair, Expr>;
    const Result result =
        detail::call_body<Result>(body, std::make_index_sequence<values>{}, std::make_index_sequence<coordinates>{});
    if constexpr (results == 2)
      Hole::operator=(scope.hole({result.first, result.second}, where));
    else
      Hole::operator=(scope.hole({result}, where));
  }
};

// ---- in a recorded node -----------------------------------------------------------------------------------------------------

using Outs = Few<Out, 2 * kMostLoads + 24>;

// Collects the inputs, ints and constants of an op with holes. Layout: for hole h of op.holes, the ints begin with
// [roots, captured, first_input, first_slot, slots, root ids...]; plain ints are added after all holes.
class Recorder {
 public:
  Recorder(const Op& op, Site where);
  Recorder& input(const Tensor& t);  // may be absent
  // Enforces the contract; `space` has the sizes of the coordinates. In the order of op.holes, an unfilled one too.
  Recorder& hole(int h, const Hole& hole, const Shape& space);
  Recorder& integer(std::int64_t value);
  Recorder& integers(std::span<const int> values);
  Recorder& constant(double value);
  Recorder& out(const Shape& shape, DType dtype);
  Recorder& out(std::span<const Out> outs);
  // `known`: constants of a node on the tape, which this one shares if its own are the same.
  Tensor record(std::span<const double> known = {});

 private:
  const Op& op_;
  Site where_;
  // The gradient of attention has the most holes, six.
  Few<NodeId, 6 * kMostCaptured + 24> inputs_;
  Few<std::int64_t, 8 * kMostRoots + 24> ints_;
  Few<double, 6 * kMostConstants + 16> constants_;
  Outs outs_;
  int holes_ = 0;
};

// A hole of a recorded node: its roots, in which every captured tensor is a load, and where captured inputs and slots begin
// among the node's.
struct HoleView {
  Few<Expr, kMostRoots> roots;
  int captured = 0, first_input = 0, first_slot = 0, slots = 0;
};
HoleView hole_of(const Tape& tape, NodeId id, int h);
// For people: "delta(raw; b, t, i) = softplus(raw + z0(i))", where z0, z1, ... are what is captured; the space has `rank` axes.
std::string describe_hole(const HoleSpec& spec, std::span<const Expr> roots, int rank);
std::span<const std::int64_t> plain_ints(const Tape& tape, NodeId id);  // those after the holes

// ---- gradients --------------------------------------------------------------------------------------------------------------

// A hole of the node that a gradient rule differentiates: its derivative, and where each root of that is stored.
struct HoleInVjp {
  // (values..., upstreams...) -> the derivatives by the values, then a distinct root for each of the loads whose gradient is
  // wanted; captures what the hole captures. Unfilled if the hole is.
  Hole gradient;
  Few<int, kMostRoots> outputs;  // of root r over the hole's space, -1: none
  Few<int, kMostRoots> sums;     // of the sum of root r over all coordinates but the last, -1: none
  // Of what the kernel sums otherwise: of root r in SumForm(f), -1: none. They are over (outer..., 1, 1), (outer..., rows, 1),
  // (outer..., 1, columns) and (outer..., rows + columns - 1), in which element d has the difference d - (columns - 1).
  Few<std::array<int, kSumForms>, kMostRoots> forms;

  // Appends to `outs` the outputs that the gradients of loads need; `first` is the output of root 0, -1 if it has none. `real`
  // is the type of sums, and of what is summed afterwards.
  HoleInVjp(Vjp& v, int h, const Hole& filled, const Shape& space, DType real, int first, Outs& outs);
  // Gives the captured tensors their gradients; `first_output` is output 0 of the recorded gradient node.
  void add(Vjp& v, int h, const Tensor& first_output) const;

 private:
  struct Load {
    Expr load;
    int root;
    bool column;  // its subscripts depend on the last coordinate alone, over which the kernel sums the root
    std::optional<SumForm> form;
  };
  Few<Load, kMostLoads> loads_;
  Shape space_;
  bool hidden_ = false;  // some places may not be seen
};

// The gradient of the tensor that `load`, of a hole over `space`, reads, from that of the load at each place, or from its sums
// over coordinates that the subscripts do not depend on, as axes of size 1. `hidden`: where a subscript leaves the tensor the
// place is not seen, and its gradient 0.
Tensor adjoint(const Hole& hole, Expr load, const Tensor& each, const Shape& space, bool hidden, Site where);

// For a rule that is made of other ops: root r of hole h of the node as a tensor of the hole's shape `space`, from the values
// that the kernel passes to the hole.
Tensor root_of(const Vjp& v, int h, int r, std::initializer_list<Tensor> values, const Shape& space, DType dtype);

}  // namespace weft
