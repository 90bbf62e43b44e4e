#include "jit/expr.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <memory>
#include <mutex>
#include <numbers>
#include <utility>

#include "jit/convert.h"
#include "jit/error.h"
#include "jit/op_facts.h"

namespace weft {

using Op = ExprOp;

namespace {

using enum ExprType;

// ---- the pool of nodes ------------------------------------------------------------------------------------------------------

struct Node {  // by default the literal 0
  Op op = Op::literal;
  ExprType type = real;
  std::uint8_t arity = 0;
  std::uint8_t coordinates = 0;  // 1 + the highest index below
  std::uint16_t height = 0;      // above the leaves, saturated
  std::uint32_t args[kMostCoordinates] = {};
  std::int64_t payload = 0;                    // index of a leaf; bits of a real literal; value of another literal
  std::uint64_t hash = 0x2545f4914f6cdd1dull;  // of the structure: independent of ids, so equal in every process

  bool same(const Node& other) const {
    return op == other.op && type == other.type && payload == other.payload && std::ranges::equal(args, other.args);
  }
};

// Nodes live in chunks that never move and an entry of the table is published after its node, so reading a node and
// finding an existing one take no lock; only adding a node does. The pool is static memory: usable before main and
// after.
class Pool {
 public:
  const Node& operator[](std::uint32_t id) const { return chunks_[id / kChunk].load(std::memory_order_acquire)[id % kChunk]; }

  std::uint32_t intern(const Node& node) {
    if (std::uint32_t found = find(*table_.load(std::memory_order_acquire), node); found != kNone) return found;
    std::lock_guard lock(mutex_);
    Table* table = table_.load(std::memory_order_relaxed);
    if (std::uint32_t found = find(*table, node); found != kNone) return found;  // added meanwhile
    if (2 * std::size_t(size_) > table->mask) table = grow(*table);
    std::uint32_t id = append(node);
    insert(*table, node.hash, id);
    return id;
  }

 private:
  using Entry = std::atomic<std::uint64_t>;  // upper half of the hash and id + 1; 0 is free
  static constexpr std::uint32_t kChunk = 1 << 12, kMaxChunks = 1 << 14, kFirstTable = 1 << 14, kNone = ~0u;

  struct Table {  // open addressing
    Entry* entries;
    std::size_t mask;
    const Table* outgrown;  // readers may still walk it; all outgrown ones together are smaller than this
  };

  std::uint32_t find(const Table& table, const Node& node) const {
    for (std::size_t at = node.hash & table.mask;; at = (at + 1) & table.mask) {
      std::uint64_t entry = table.entries[at].load(std::memory_order_acquire);
      if (entry == 0) return kNone;
      auto id = std::uint32_t(entry) - 1;
      if (entry >> 32 == node.hash >> 32 && (*this)[id].same(node)) return id;
    }
  }

  static void insert(Table& table, std::uint64_t hash, std::uint32_t id) {
    std::size_t at = hash & table.mask;
    while (table.entries[at].load(std::memory_order_relaxed) != 0) at = (at + 1) & table.mask;
    table.entries[at].store(hash >> 32 << 32 | (id + 1), std::memory_order_release);
  }

  std::uint32_t append(const Node& node) {
    std::uint32_t id = size_;
    if (id >= kChunk * kMaxChunks) {
      fail(ErrorKind::usage, "expression pool is full", std::to_string(id) + " distinct nodes",
           "an integer in an expression changes every step; make it an input or a Scalar");
    }
    std::atomic<Node*>& chunk = chunks_[id / kChunk];
    if (!chunk.load(std::memory_order_relaxed)) chunk.store(new Node[kChunk], std::memory_order_release);
    chunk.load(std::memory_order_relaxed)[id % kChunk] = node;
    ++size_;
    return id;
  }

  Table* grow(const Table& old) {
    std::size_t size = 2 * (old.mask + 1);
    auto* table = new Table{new Entry[size]{}, size - 1, &old};
    for (std::uint32_t id = 1; id < size_; ++id) insert(*table, (*this)[id].hash, id);
    table_.store(table, std::memory_order_release);
    return table;
  }

  Node first_chunk_[kChunk];  // node 0 is the value of Expr(); it is never looked up
  Entry first_entries_[kFirstTable]{};
  Table first_table_{first_entries_, kFirstTable - 1, nullptr};
  std::atomic<Node*> chunks_[kMaxChunks]{first_chunk_};
  std::atomic<Table*> table_{&first_table_};
  std::uint32_t size_ = 1;
  std::mutex mutex_;
};

constinit Pool pool;

const Node& node(Expr e) { return pool[e.id()]; }

int arity_of(Op op) { return facts_of(op).arity; }

std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
  return hash ^ (hash >> 32);
}

Expr intern(Op op, ExprType type, std::int64_t payload, std::span<const Expr> args) {
  Node made{.op = op, .type = type, .arity = std::uint8_t(args.size()), .payload = payload};
  made.hash = mix(std::uint64_t(op) << 8 | std::uint64_t(type), std::uint64_t(payload));
  if (op == Op::index) made.coordinates = std::uint8_t(payload + 1);
  for (std::size_t i = 0; i < args.size(); ++i) {
    const Node& arg = node(args[i]);
    made.args[i] = args[i].id();
    made.hash = mix(made.hash, arg.hash);
    made.height = std::max(made.height, std::uint16_t(std::min(arg.height + 1, 0xffff)));
    made.coordinates = std::max(made.coordinates, arg.coordinates);
  }
  return Expr::from_id(pool.intern(made));
}
template <class... Args>
Expr intern(Op op, ExprType type, std::int64_t payload, Args... args) {
  const std::array<Expr, sizeof...(args)> list{args...};
  return intern(op, type, payload, std::span<const Expr>(list));
}

// ---- literals ---------------------------------------------------------------------------------------------------------------

Expr real_literal(double value) {
  auto bits = std::bit_cast<std::int64_t>(value);
  return bits == 0 ? Expr() : intern(Op::literal, real, bits);
}
Expr integer_literal(std::int64_t value) { return intern(Op::literal, integer, value); }
Expr boolean_literal(bool value) { return intern(Op::literal, boolean, value); }

bool is_literal(Expr e) { return e.op() == Op::literal; }
bool is_literal(Expr e, double value) { return is_literal(e) && e.value() == value; }  // 0 matches -0

// The same number in fp32 and in fp64, so that what is computed with it here is what a kernel would compute.
bool is_exact(double value) { return double(float(value)) == value && std::isfinite(value); }
bool is_exact(Expr e) { return is_literal(e) && is_exact(e.value()); }

// Converts to `type`; every conversion is explicit in the DAG.
Expr coerce(Expr e, ExprType type) {
  if (e.type() == type) return e;
  switch (type) {
    case real:
      return is_exact(e) ? real_literal(e.value()) : intern(Op::to_real, real, 0, e);
    case integer:
      if (is_literal(e) && e.type() == boolean) return integer_literal(e.index());
      return is_exact(e) ? integer_literal(truncated(e.value())) : intern(Op::to_integer, integer, 0, e);
    case boolean:
      return not_equal(e, e.type() == real ? Expr() : Expr(0));
  }
  return e;
}

// ---- constant folding -------------------------------------------------------------------------------------------------------

// Integers wrap; a quotient is truncated, and is 0 where the divisor is.
std::int64_t fold_integer(Op op, std::int64_t a, std::int64_t b) {
  auto ua = std::uint64_t(a), ub = std::uint64_t(b);
  switch (op) {
    case Op::add:
      return std::int64_t(ua + ub);
    case Op::sub:
      return std::int64_t(ua - ub);
    case Op::mul:
      return std::int64_t(ua * ub);
    case Op::div:
      return b == 0 ? 0 : b == -1 ? std::int64_t(0 - ua) : a / b;
    case Op::min:
      return std::min(a, b);
    case Op::max:
      return std::max(a, b);
    case Op::neg:
      return std::int64_t(0 - ua);
    case Op::abs:
      return a < 0 ? std::int64_t(0 - ua) : a;
    case Op::sign:
      return (a > 0) - (a < 0);
    default:
      return a;
  }
}

template <class T>
bool fold_comparison(Op op, T a, T b) {
  return op == Op::eq ? a == b : op == Op::ne ? a != b : op == Op::lt ? a < b : a <= b;
}

// The operation on literals, where the result is the same in every precision. A non-finite result stays an operation, so that
// texts hold finite constants only.
std::optional<Expr> fold(Op op, ExprType type, Expr a, Expr b = {}) {
  if (type == integer) return integer_literal(fold_integer(op, a.index(), b.index()));
  const auto of_reals = facts_of(op).fold;
  if (!of_reals || !is_exact(a) || !is_exact(b)) return std::nullopt;
  double value = of_reals(a.value(), b.value());
  return is_exact(value) ? std::optional(real_literal(value)) : std::nullopt;
}

// ---- simplification: every rule is exact in IEEE arithmetic, the sign of a zero included, as 1/x tells it -------------------

// An order of nodes by structure (smaller first), in which arguments of commutative operations are kept.
bool before(Expr a, Expr b) {
  const Node &x = node(a), &y = node(b);
  if (x.height != y.height) return x.height < y.height;
  if (x.op != y.op) return x.op < y.op;
  if (x.payload != y.payload) return x.payload < y.payload;
  if (x.hash != y.hash) return x.hash < y.hash;
  return a.id() < b.id();
}

Expr commutative(Op op, ExprType type, Expr a, Expr b) {
  if (before(b, a)) std::swap(a, b);
  return intern(op, type, 0, a, b);
}

// Adding it changes no number: any integer zero, but only -0 among reals, as -0 + 0 is 0.
bool adds_nothing(Expr e) { return is_zero(e) && (e.type() == integer || std::signbit(e.value())); }

Expr make_add(ExprType type, Expr a, Expr b) {
  if (adds_nothing(b)) return a;
  if (adds_nothing(a)) return b;
  if (b.op() == Op::neg) return a - b.arg(0);
  if (a.op() == Op::neg) return b - a.arg(0);
  return commutative(Op::add, type, a, b);
}

Expr make_sub(ExprType type, Expr a, Expr b) {
  if (is_zero(b) && (type == integer || !std::signbit(b.value()))) return a;
  if (b.op() == Op::neg) return a + b.arg(0);
  if (type == integer && same(a, b)) return Expr(0);
  if (type == integer && is_zero(a)) return -b;
  return intern(Op::sub, type, 0, a, b);
}

Expr make_mul(ExprType type, Expr a, Expr b) {
  if (is_literal(a)) std::swap(a, b);
  if (is_literal(b, 1)) return a;
  if (is_literal(b, -1)) return -a;
  if (type == integer && is_zero(b)) return b;
  if (a.op() == Op::neg) return -(a.arg(0) * b);
  if (b.op() == Op::neg) return -(a * b.arg(0));
  return commutative(Op::mul, type, a, b);
}

Expr make_div(ExprType type, Expr a, Expr b) {
  if (is_literal(b, 1)) return a;
  if (type == real) {
    if (is_literal(b, -1)) return -a;
    if (a.op() == Op::neg) return -(a.arg(0) / b);
    if (b.op() == Op::neg) return -(a / b.arg(0));
    // Division by a power of two is a product, exactly.
    if (int exponent; is_literal(b) && std::abs(std::frexp(b.value(), &exponent)) == 0.5 && std::abs(exponent) < 100) {
      return a * real_literal(1 / b.value());
    }
  }
  return intern(Op::div, type, 0, a, b);
}

Expr make_pow(Expr a, Expr b) {
  if (is_zero(b)) return real_literal(1);
  if (is_literal(b, 1)) return a;
  if (is_literal(b, 2)) return a * a;
  if (is_literal(b, -1)) return real_literal(1) / a;
  return intern(Op::pow, real, 0, a, b);
}

Expr make_comparison(Op op, Expr a, Expr b) {
  ExprType type = a.type() == real || b.type() == real ? real : integer;
  a = coerce(a, type), b = coerce(b, type);
  if (is_literal(a) && is_literal(b) && (type == integer || (is_exact(a) && is_exact(b)))) {
    return boolean_literal(type == real ? fold_comparison(op, a.value(), b.value())
                                        : fold_comparison(op, a.index(), b.index()));
  }
  if (type == integer && same(a, b)) return boolean_literal(op == Op::eq || op == Op::le);
  return op == Op::eq || op == Op::ne ? commutative(op, boolean, a, b) : intern(op, boolean, 0, a, b);
}

Expr make_logical(Op op, Expr a, Expr b) {
  a = coerce(a, boolean), b = coerce(b, boolean);
  if (is_literal(a)) std::swap(a, b);
  bool neutral = op == Op::logical_and;
  if (is_literal(b)) return is_literal(b, neutral) ? a : b;
  return same(a, b) ? a : commutative(op, boolean, a, b);
}

Expr make_not(Expr a) {
  a = coerce(a, boolean);
  bool of_integers = a.arity() == 2 && a.arg(0).type() == integer;
  if (is_literal(a)) return boolean_literal(is_zero(a));
  if (a.op() == Op::logical_not) return a.arg(0);
  if (a.op() == Op::eq) return not_equal(a.arg(0), a.arg(1));
  if (a.op() == Op::ne) return equal(a.arg(0), a.arg(1));
  if (a.op() == Op::lt && of_integers) return a.arg(1) <= a.arg(0);  // false for a NaN, so not for reals
  if (a.op() == Op::le && of_integers) return a.arg(1) < a.arg(0);
  return intern(Op::logical_not, boolean, 0, a);
}

Expr make_select(Expr c, Expr a, Expr b) {
  c = coerce(c, boolean);
  ExprType type = a.type() == real || b.type() == real ? real : a.type() == b.type() ? a.type() : integer;
  a = coerce(a, type), b = coerce(b, type);
  if (is_literal(c)) return is_zero(c) ? b : a;
  if (c.op() == Op::logical_not) return where(c.arg(0), b, a);
  if (a.op() == Op::select && same(a.arg(0), c)) a = a.arg(1);
  if (b.op() == Op::select && same(b.arg(0), c)) b = b.arg(2);
  if (same(a, b)) return a;
  if (type == boolean && is_literal(a) && is_literal(b)) return is_zero(b) ? c : !c;
  if (is_zero(b) && a.op() == Op::select && same(a.arg(2), b)) return where(c && a.arg(0), a.arg(1), b);
  return intern(Op::select, type, 0, c, a, b);
}

Expr make_neg(ExprType type, Expr a) {
  if (a.op() == Op::neg) return a.arg(0);
  return intern(Op::neg, type, 0, a);
}

Expr make_unless_zero(Expr g, Expr a) {
  if (is_literal(g)) return is_zero(g) ? Expr() : a;
  if (is_zero(a) || (a.op() == Op::unless_zero && same(a.arg(0), g))) return a;
  return intern(Op::unless_zero, real, 0, g, a);
}

[[noreturn]] void wrong_arity(Op op, int given) {
  fail(ErrorKind::usage, "expr::make: wrong number of arguments",
       std::string(name_of(op)) + " takes " + std::to_string(arity_of(op)) + ", given " + std::to_string(given));
}

thread_local ConstantScope* innermost_scope = nullptr;

Expr constant(double value) {
  for (double structural : {0.0, 1.0, -1.0, 2.0, 0.5}) {
    if (std::bit_cast<std::uint64_t>(value) == std::bit_cast<std::uint64_t>(structural)) return real_literal(value);
  }
  return expr::constant_slot(value, real);
}

}  // namespace

bool is_zero(Expr e) { return is_literal(e, 0); }

// ---- Expr -------------------------------------------------------------------------------------------------------------------

Expr::Expr(double value) : Expr(constant(value)) {}
Expr::Expr(int value) : Expr(integer_literal(value)) {}
Expr::Expr(std::int64_t value) : Expr(integer_literal(value)) {}

ExprOp Expr::op() const { return node(*this).op; }
ExprType Expr::type() const { return node(*this).type; }
std::uint64_t Expr::hash() const { return node(*this).hash; }
Expr Expr::arg(int i) const { return from_id(node(*this).args[i]); }
int Expr::arity() const { return node(*this).arity; }
int Expr::coordinates() const { return node(*this).coordinates; }
std::int64_t Expr::index() const { return node(*this).payload; }
double Expr::value() const {
  const Node& n = node(*this);
  return n.type == real ? std::bit_cast<double>(n.payload) : double(n.payload);
}

ConstantScope::ConstantScope() : outer_(std::exchange(innermost_scope, this)) {}
ConstantScope::~ConstantScope() { innermost_scope = outer_; }
int ConstantScope::add(double value) {
  values_.push_back(value);
  return int(values_.size()) - 1;
}

namespace expr {

Expr input(int k, ExprType type) { return intern(Op::input, type, k); }
Expr literal(double value) { return real_literal(value); }
Expr boolean(bool value) { return boolean_literal(value); }
Expr slot(int k, ExprType type) { return intern(Op::slot, type, k); }
Expr element() { return intern(Op::element, integer, 0); }
Expr index(int k) {
  if (k < 0 || k > 254)
    fail(ErrorKind::usage, "expr::index: no such coordinate", std::to_string(k), "coordinates are numbered from 0");
  return intern(Op::index, integer, k);
}
Expr constant_slot(double value, ExprType type) {
  if (!innermost_scope) {
    fail(ErrorKind::usage, "a float constant in an expression outside of an op", "constant " + std::to_string(value),
         "build the expression inside the function given to the op, or create a weft::ConstantScope first "
         "(0, 1, -1, 2 and 0.5 may stand anywhere)");
  }
  return slot(innermost_scope->add(value), type);
}
Expr uniform(int first_slot, Expr element) { return intern(Op::uniform, real, first_slot, coerce(element, integer)); }
Expr load(int k, ExprType type, std::span<const Expr> subscripts) {
  for (const Expr s : subscripts)
    if (s.type() != integer)
      fail(ErrorKind::usage, s.type() == real ? "a subscript is real" : "a subscript is boolean", to_string(s),
           "to_integer() it");
  if (subscripts.size() > kMostCoordinates)
    fail(ErrorKind::usage, "a tensor is indexed with too many subscripts", std::to_string(subscripts.size()));
  return intern(Op::load, type, k, subscripts);
}

Expr make(Op op, Expr a) {
  if (arity_of(op) != 1 || op == Op::uniform || op == Op::narrow) wrong_arity(op, 1);
  if (op == Op::logical_not) return make_not(a);
  if (op == Op::to_real) return coerce(a, real);
  if (op == Op::to_integer) return coerce(a, integer);
  bool keeps_integers = op == Op::neg || op == Op::abs || op == Op::sign || op == Op::floor;
  ExprType type = keeps_integers && a.type() == integer ? integer : real;
  a = coerce(a, type);
  if (is_literal(a)) {
    if (auto folded = fold(op, type, a)) return *folded;
  }
  if (op == Op::neg) return make_neg(type, a);
  if (op == Op::floor && (type == integer || a.op() == Op::floor)) return a;
  if (op == Op::abs && (a.op() == Op::abs || a.op() == Op::neg)) return a.op() == Op::neg ? abs(a.arg(0)) : a;
  return intern(op, type, 0, a);
}

Expr make(Op op, Expr a, Expr b) {
  if (arity_of(op) != 2) wrong_arity(op, 2);
  if (op == Op::logical_and || op == Op::logical_or) return make_logical(op, a, b);
  if (op == Op::eq || op == Op::ne || op == Op::lt || op == Op::le) return make_comparison(op, a, b);
  // A boolean beside an integer is one; two booleans are reals.
  const bool whole = a.type() != real && b.type() != real && (a.type() == integer || b.type() == integer);
  ExprType type = whole && op != Op::pow && op != Op::unless_zero ? integer : real;
  a = coerce(a, type), b = coerce(b, type);
  if (op == Op::unless_zero) return make_unless_zero(a, b);
  if (is_literal(a) && is_literal(b)) {
    if (auto folded = fold(op, type, a, b)) return *folded;
  }
  switch (op) {
    case Op::add:
      return make_add(type, a, b);
    case Op::sub:
      return make_sub(type, a, b);
    case Op::mul:
      return make_mul(type, a, b);
    case Op::div:
      return make_div(type, a, b);
    case Op::pow:
      return make_pow(a, b);
    default:
      return same(a, b) ? a : commutative(op, type, a, b);  // min, max
  }
}

Expr make(Op op, Expr a, Expr b, Expr c) {
  if (op != Op::select) wrong_arity(op, 3);
  return make_select(a, b, c);
}

}  // namespace expr

bool& contraction() {
  static bool on = true;
  return on;
}

using expr::make;

Expr operator+(Expr a, Expr b) { return make(Op::add, a, b); }
Expr operator-(Expr a, Expr b) { return make(Op::sub, a, b); }
Expr operator*(Expr a, Expr b) { return make(Op::mul, a, b); }
Expr operator/(Expr a, Expr b) { return make(Op::div, a, b); }
Expr operator-(Expr a) { return make(Op::neg, a); }
Expr operator<(Expr a, Expr b) { return make(Op::lt, a, b); }
Expr operator<=(Expr a, Expr b) { return make(Op::le, a, b); }
Expr operator>(Expr a, Expr b) { return make(Op::lt, b, a); }
Expr operator>=(Expr a, Expr b) { return make(Op::le, b, a); }
Expr equal(Expr a, Expr b) { return make(Op::eq, a, b); }
Expr not_equal(Expr a, Expr b) { return make(Op::ne, a, b); }
Expr operator&&(Expr a, Expr b) { return make(Op::logical_and, a, b); }
Expr operator||(Expr a, Expr b) { return make(Op::logical_or, a, b); }
Expr operator!(Expr a) { return make(Op::logical_not, a); }
Expr where(Expr c, Expr a, Expr b) { return make(Op::select, c, a, b); }
Expr min(Expr a, Expr b) { return make(Op::min, a, b); }
Expr max(Expr a, Expr b) { return make(Op::max, a, b); }
Expr pow(Expr a, Expr b) { return make(Op::pow, a, b); }
Expr exp(Expr a) { return make(Op::exp, a); }
Expr log(Expr a) { return make(Op::log, a); }
Expr log1p(Expr a) { return make(Op::log1p, a); }
Expr expm1(Expr a) { return make(Op::expm1, a); }
Expr sqrt(Expr a) { return make(Op::sqrt, a); }
Expr rsqrt(Expr a) { return make(Op::rsqrt, a); }
Expr tanh(Expr a) { return make(Op::tanh, a); }
Expr sigmoid(Expr a) { return make(Op::sigmoid, a); }
Expr softplus(Expr a) { return make(Op::softplus, a); }
Expr erf(Expr a) { return make(Op::erf, a); }
Expr abs(Expr a) { return make(Op::abs, a); }
Expr sign(Expr a) { return make(Op::sign, a); }
Expr floor(Expr a) { return make(Op::floor, a); }
Expr sin(Expr a) { return make(Op::sin, a); }
Expr cos(Expr a) { return make(Op::cos, a); }
Expr to_real(Expr a) { return make(Op::to_real, a); }
Expr to_integer(Expr a) { return make(Op::to_integer, a); }

Expr narrow(Expr a, DType to) {
  if (to == DType::boolean) return coerce(a, boolean);
  a = coerce(a, is_real(to) ? real : integer);
  if (to == DType::f64 || to == DType::i64) return a;
  if (a.op() == Op::narrow && size_of(DType(a.index())) <= size_of(to)) return a;
  if (is_literal(a) && a.type() == integer) return integer_literal(std::int32_t(a.index()));
  if (is_exact(a)) {
    const double value = to == DType::bf16 ? double(bf16(a.value())) : a.value();
    if (std::isfinite(value)) return real_literal(value);
  }
  return intern(Op::narrow, a.type(), std::int64_t(to), a);
}
Expr unless_zero(Expr g, Expr a) { return make(Op::unless_zero, g, a); }

Expr square(Expr a) { return a * a; }
Expr silu(Expr a) { return a * sigmoid(a); }
Expr relu(Expr a) {  // this way round a NaN stays one
  const Expr zero = a.type() == ExprType::integer ? Expr(0) : Expr();
  return where(a <= zero, zero, a);
}
Expr gelu(Expr a) { return Expr(0.5) * a * (Expr(1.0) + erf(a * expr::literal(std::numbers::sqrt2 / 2))); }
Expr gelu_tanh(Expr a) {
  // Beyond 10 tanh is 1, and the slope of the cube would be infinite before the cube is.
  const Expr x = clamp(a, expr::literal(-10), expr::literal(10));
  const Expr inner = expr::literal(std::sqrt(2 / std::numbers::pi)) * (x + expr::literal(0.044715) * x * x * x);
  return Expr(0.5) * a * (Expr(1.0) + tanh(inner));
}
Expr clamp(Expr a, Expr low, Expr high) {
  for (const Expr e : {a, low, high})
    if (e.type() != ExprType::integer) return where(a < low, low, where(a > high, high, a));
  return min(max(a, low), high);  // whose bounds are known where a subscript is checked
}

}  // namespace weft
