// Holes: the expressions that a user gives to a structured op. Here is a hole as it is filled, how it is recorded as a part of
// a node, and its gradient, the same for every op that has holes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "autograd/tape.h"
#include "autograd/tensor.h"
#include "jit/expr.h"
#include "jit/few.h"

namespace weft {

class Vjp;
struct HoleSpec;
struct Op;

// A hole as a user fills it: expressions of the values that the skeleton passes (inputs 0, 1, ...), the coordinates of the
// hole (index 0, 1, ...) and captured tensors. A captured tensor is indexed, or, in hole(), it is a further input that is
// broadcast to the hole's space.
struct Hole {
  Few<Expr, 10> roots;        // usually one
  Few<Tensor, 8> captured;    // number k of loads, input `values + k` of the roots
  Few<double, 16> constants;  // slots of the roots
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

  int capture(const Tensor& tensor, Site where);  // its number
  Hole hole(std::initializer_list<Expr> roots) const;

 private:
  Few<Tensor, 8> captured_;
  HoleScope* outer_;
};

namespace detail {
template <class F, std::size_t... I>
constexpr bool takes(std::index_sequence<I...>) {  // as many Exprs
  return std::is_invocable_v<F&, decltype((void(I), Expr()))...>;
}
template <class F, std::size_t... I>
Expr call_with_inputs(F& f, std::index_sequence<I...>) {
  return f(expr::input(int(I))...);
}
template <std::size_t N, class F>
Expr call_hole(F& f, std::size_t captured) {
  if constexpr (N <= 8) {
    if constexpr (takes<F>(std::make_index_sequence<N>{})) {
      if (captured + 1 == N) return call_with_inputs(f, std::make_index_sequence<N>{});
    }
    return call_hole<N + 1>(f, captured);
  } else {
    fail(ErrorKind::usage, "hole: the function does not take one value and each captured tensor",
         std::to_string(captured) + " captured", "declare one Expr parameter for the value and one a captured tensor");
  }
}

// f(values..., coordinates...), or without the coordinates.
template <class F, std::size_t... V, std::size_t... C>
auto call_body(F& f, std::index_sequence<V...>, std::index_sequence<C...>) {
  if constexpr (takes<F>(std::make_index_sequence<sizeof...(V) + sizeof...(C)>{})) {
    return f(expr::input(int(V))..., expr::index(int(C))...);
  } else {
    static_assert(takes<F>(std::index_sequence<V...>{}),
                  "the function takes the hole's values, or its values and all of its coordinates, as Exprs");
    return f(expr::input(int(V))...);
  }
}
}  // namespace detail

// hole({b}, [](Expr v, Expr b) { return softplus(v + b); }) for a hole that passes one value: captured tensors in the shape of
// the hole's space, or one that broadcasts to it.
template <class F>
Hole hole(std::initializer_list<Arg> captured, F body) {
  HoleScope scope;
  for (const Arg& c : captured) scope.capture(c.tensor(), c.where());
  return scope.hole({detail::call_hole<1>(body, captured.size())});
}

// What an option of an op is filled with: a function of the hole's values, or of its values and all of its coordinates, which
// may index tensors; or a Hole. `[&](Expr v, Index, Index, Index i) { return softplus(v + bias(i)); }`
template <int values, int coordinates, int results = 1>
struct HoleOf : Hole {
  HoleOf() = default;
  HoleOf(Hole hole) : Hole(std::move(hole)) {}
  template <class F>
  requires(!std::is_convertible_v<F, Hole>) HoleOf(F body) {
    HoleScope scope;
    const auto result = detail::call_body(body, std::make_index_sequence<values>{}, std::make_index_sequence<coordinates>{});
    if constexpr (results == 2)
      Hole::operator=(scope.hole({result.first, result.second}));
    else
      Hole::operator=(scope.hole({Expr(result)}));
  }
};

// ---- in a recorded node -----------------------------------------------------------------------------------------------------

// Collects the inputs, ints and constants of an op with holes. Layout: for hole h of op.holes, the ints begin with
// [roots, captured, first_input, first_slot, slots, root ids...]; plain ints are added after all holes.
class Recorder {
 public:
  Recorder(const Op& op, Site where);
  Recorder& input(const Tensor& t);  // may be absent
  // Enforces the contract; `space` has the sizes of the coordinates. In the order of op.holes, an unfilled one too.
  Recorder& hole(int h, const Hole& hole, const Shape& space);
  Recorder& integer(std::int64_t value);
  Recorder& constant(double value);
  Recorder& out(const Shape& shape, DType dtype);
  Tensor record();

 private:
  const Op& op_;
  Site where_;
  Few<NodeId, 32> inputs_;
  Few<std::int64_t, 64> ints_;
  Few<double, 32> constants_;
  Few<Out, 24> outs_;
  int holes_ = 0;
};

// A hole of a recorded node: its roots, in which every captured tensor is a load, and where captured inputs and slots begin
// among the node's.
struct HoleView {
  Few<Expr, 10> roots;
  int captured = 0, first_input = 0, first_slot = 0, slots = 0;
};
HoleView hole_of(const Tape& tape, NodeId id, int h);
// For people: "delta(raw; b, t, i) = softplus(raw + z0(i))", where z0, z1, ... are what is captured; the space has `rank` axes.
std::string describe_hole(const HoleSpec& spec, std::span<const Expr> roots, int rank);
std::span<const std::int64_t> plain_ints(const Tape& tape, NodeId id);  // those after the holes

// ---- gradients --------------------------------------------------------------------------------------------------------------

using Outs = Few<Out, 24>;

// A hole of the node that a gradient rule differentiates: its derivative, and where each root of that is stored.
struct HoleInVjp {
  // (values..., upstreams...) -> the derivatives by the values, then a distinct root for each of the loads whose gradient is
  // wanted; captures what the hole captures. Unfilled if the hole is.
  Hole gradient;
  Few<int, 10> outputs;  // of root r over the hole's space, -1: none
  Few<int, 10> sums;     // of the sum of root r over all coordinates but the last, -1: none

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
  };
  Few<Load, 8> loads_;
  Shape space_;
};

}  // namespace weft
