// Expr: the one scalar IR. An interned (hash-consed) DAG; equal expressions have equal ids, so comparing (same()) and hashing
// are integer operations. Thread-safe: one pool for the process, nodes are never freed or moved.
//
// Values are reals (fp32 or fp64, decided by the kernel), integers (64-bit) or booleans. A float constant other than 0, +-1, 2
// and 1/2 is never part of an expression: it becomes a *slot* of the step's constants block, so a kernel's text and a
// plan's key do not depend on it.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "jit/dtype.h"

namespace weft {

inline constexpr int kMostCoordinates = 6;  // of a hole's space, and subscripts of a tensor

enum class ExprType : std::uint8_t { real, integer, boolean };

enum class ExprOp : std::uint8_t {
  // leaves; `index` of the node says which
  input,    // k-th operand of the kernel or hole
  literal,  // structural constant `value`, identical in every use (table ops only)
  slot,     // k-th constant of the node: a real, or an integer
  index,    // k-th coordinate of the hole; in a pointwise kernel, of the element in the result (integer)
  // real or integer arithmetic. min and max keep a NaN of either side; integers wrap, and their quotient is truncated,
  // and 0 where the divisor is 0
  add,
  sub,
  mul,
  div,
  neg,
  min,
  max,
  pow,
  // comparisons and logic: boolean
  eq,
  ne,
  lt,
  le,
  logical_and,
  logical_or,
  logical_not,
  // select(c, a, b)
  select,
  // real functions
  exp,
  log,
  log1p,
  expm1,
  sqrt,
  rsqrt,
  tanh,
  sigmoid,
  softplus,
  erf,
  abs,
  sign,
  floor,
  sin,
  cos,
  // conversions; to_integer truncates and saturates, NaN becomes the smallest integer (as cvt.rzi.s64 does)
  to_real,
  to_integer,
  // what is left of it in a tensor of the type DType(index): a real is rounded to bf16 or f32, an integer wraps to i32
  narrow,
  // unless_zero(g, x): x, or 0 where g is 0. What a pointwise op passes on of a gradient g, of which x is a multiple
  unless_zero,
  // Philox uniform in (0, 1): uniform(slot k, element): the raw bits of slots k, k+1, k+2 hold seed, tick and site
  uniform,
  element,  // a leaf: the number of the element in the result of a pointwise kernel, row-major (integer)
  load,     // an element of the k-th tensor that a hole captures; an argument, an integer, for each of its axes
};

class Expr {
 public:
  Expr() = default;  // the literal 0
  // A constant: 0, +-1, 2, 1/2 are literals; any other becomes a slot of the innermost ConstantScope (an error without one).
  Expr(double value);
  Expr(float value) : Expr(double(value)) {}
  Expr(int value);           // an integer literal (structure)
  Expr(std::int64_t value);  // an integer literal (structure)
  // What C++ has decided is no expression. (A template, so that nothing converts to bool for it.)
  template <std::same_as<bool> T>
  Expr(T) = delete;

  ExprOp op() const;
  ExprType type() const;
  Expr arg(int i) const;  // i in [0, arity())
  int arity() const;
  std::int64_t index() const;  // of input, slot, index, uniform, load, narrow; the value of an integer or boolean literal
  double value() const;        // of literal
  int coordinates() const;     // 1 + the highest index that it reads, 0 if none
  std::uint32_t id() const { return id_; }
  std::uint64_t hash() const;  // of the structure: equal in every process
  static Expr from_id(std::uint32_t id) {
    Expr e;
    e.id_ = id;
    return e;
  }
  bool operator==(const Expr&) const = delete;  // equal(a, b) makes an expression, same(a, b) asks for identity

 private:
  std::uint32_t id_ = 0;
};

inline bool same(Expr a, Expr b) { return a.id() == b.id(); }  // the same expression, not the same value

using Index = Expr;  // an integer expression; the name used in signatures of score and mask holes

// While alive, collects the float constants that Exprs of this thread are made of. Scopes nest; the innermost collects.
class ConstantScope {
 public:
  ConstantScope();
  ~ConstantScope();
  ConstantScope(const ConstantScope&) = delete;
  ConstantScope& operator=(const ConstantScope&) = delete;
  const std::vector<double>& values() const { return values_; }
  int add(double value);

 private:
  std::vector<double> values_;
  ConstantScope* outer_;
};

namespace expr {
Expr input(int k, ExprType type = ExprType::real);
Expr literal(double value);
Expr boolean(bool value);
Expr slot(int k, ExprType type = ExprType::real);
Expr index(int k);  // an op refuses one that its space has not
Expr element();
Expr constant_slot(double value, ExprType type);  // a slot of the innermost ConstantScope, whatever the value is
Expr uniform(int first_slot, Expr element);
Expr load(int k, ExprType type, std::span<const Expr> subscripts);
// Interns op(args) after constant folding and local simplification; operands are converted to a common type.
Expr make(ExprOp op, Expr a);
Expr make(ExprOp op, Expr a, Expr b);
Expr make(ExprOp op, Expr a, Expr b, Expr c);
}  // namespace expr

Expr operator+(Expr a, Expr b);
Expr operator-(Expr a, Expr b);
Expr operator*(Expr a, Expr b);
Expr operator/(Expr a, Expr b);
Expr operator-(Expr a);
Expr operator<(Expr a, Expr b);
Expr operator<=(Expr a, Expr b);
Expr operator>(Expr a, Expr b);
Expr operator>=(Expr a, Expr b);
Expr equal(Expr a, Expr b);
Expr not_equal(Expr a, Expr b);
Expr operator&&(Expr a, Expr b);
Expr operator||(Expr a, Expr b);
Expr operator!(Expr a);
Expr where(Expr c, Expr a, Expr b);
Expr min(Expr a, Expr b);
Expr max(Expr a, Expr b);
Expr pow(Expr a, Expr b);
Expr exp(Expr a);
Expr log(Expr a);
Expr log1p(Expr a);
Expr expm1(Expr a);
Expr sqrt(Expr a);
Expr rsqrt(Expr a);
Expr tanh(Expr a);
Expr sigmoid(Expr a);
Expr softplus(Expr a);
Expr erf(Expr a);
Expr abs(Expr a);
Expr sign(Expr a);
Expr floor(Expr a);
Expr sin(Expr a);
Expr cos(Expr a);
Expr to_real(Expr a);
Expr to_integer(Expr a);
Expr narrow(Expr a, DType to);  // f64, i64 and boolean hold any value of their kind
Expr unless_zero(Expr g, Expr a);
Expr square(Expr a);
Expr silu(Expr a);                        // a sigmoid(a)
Expr relu(Expr a);                        // max(a, 0), with derivative 0 at 0
Expr gelu(Expr a);                        // a Phi(a), by erf
Expr gelu_tanh(Expr a);                   // the tanh approximation
Expr clamp(Expr a, Expr low, Expr high);  // its derivative at the bounds is 1

// Whether a kernel may compute x*y + z with one rounding, an FMA (WEFT_FMA=0: it may not). It is the one rewrite that changes
// results: the last bits, and where a product alone overflows or cancels.
bool& contraction();

// What an evaluation costs, in scalar operations: `simple` (one FMA-class instruction) and `special` (exp, log, ...).
struct ExprCost {
  int simple = 0;
  int special = 0;
  int total() const { return simple + special; }
};
ExprCost cost_of(std::span<const Expr> roots);  // every shared node counted once

// All distinct nodes below `roots`, arguments before users.
std::vector<Expr> topological(std::span<const Expr> roots);

// Replaces leaves. `inputs[k]` stands for input k (a missing or nullopt entry keeps it); slot k becomes slot slots[k]
// (kept where `slots` is empty); index k becomes indices[k] (kept where empty).
Expr substitute(Expr root, std::span<const std::optional<Expr>> inputs, std::span<const int> slots = {},
                std::span<const Expr> indices = {});

// Builds the expression again from its leaves: `rewrite(e, rebuilt)`, where `rebuilt` is e over what became of its arguments,
// is what stands for e, or nullopt for `rebuilt`.
Expr rewrite(Expr root, const std::function<std::optional<Expr>(Expr e, Expr rebuilt)>& rewrite);

// Replaces every occurrence of the node `from` by `to`.
Expr replace(Expr root, Expr from, Expr to);

int input_count(std::span<const Expr> roots);  // 1 + the highest input used, 0 if none
int slot_count(std::span<const Expr> roots);   // likewise for slots (a uniform uses three)
int load_count(std::span<const Expr> roots);   // likewise for the tensors of loads
bool is_zero(Expr e);                          // a literal, 0 or -0
bool uses_input(Expr root, int k);
bool uses_op(Expr root, ExprOp op);
std::string_view name_of(ExprOp op);
std::string to_string(Expr root);  // "x0*sigmoid(x0)", for people

}  // namespace weft
