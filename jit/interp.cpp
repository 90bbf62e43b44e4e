#include "jit/interp.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "jit/block.h"
#include "jit/convert.h"
#include "jit/device_errors.h"
#include "jit/error.h"
#include "jit/order.h"
#include "jit/philox.h"
#include "jit/vmath.h"

#ifdef __clang__  // it warns about every `omp simd` loop around a function that it cannot vectorise
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

namespace weft {

using Op = ExprOp;

// ---- from expressions to instructions ---------------------------------------------------------------------------------------

class Program::Compiler {
 public:
  Compiler(Program& program, std::span<const Expr> roots)
      : program_(program),
        order_(roots),
        register_(order_.size(), -1),
        reads_(order_.size()),
        output_(order_.size(), -1),
        fused_(order_.size(), -1),
        absorbed_(order_.size()) {
    int inputs = input_count(roots);
    program_.input_types_.resize(inputs, ExprType::real);
    program_.used_.resize(inputs);
    last_read_.resize(inputs, -1);
    for (int k = int(roots.size()) - 1; k >= 0; --k) output_[order_.position(roots[k])] = k;
    choose_fusions();
    for (int at = 0; at < order_.size(); ++at) {
      if (!absorbed_[at]) for_operands(at, [&](int from) { ++reads_[from]; });
    }
  }

  void compile(std::span<const Expr> roots) {
    for (int at = 0; at < order_.size(); ++at) {
      if (node(at).arity() == 0 && node(at).op() != Op::load) {
        register_[at] = leaf(node(at));
      } else if (!absorbed_[at]) {
        emit(at);
      }
    }
    for (int k = 0; k < int(roots.size()); ++k) add_output(order_.position(roots[k]), k);
    for (int k = 0; k < program_.outputs(); ++k) find_hazards(k);
  }

 private:
  Expr node(int at) const { return order_.nodes()[at]; }
  int argument(int at, int i) const { return order_.position(node(at).arg(i)); }

  void choose_fusions() {
    std::vector<int> users(order_.size()), selects(order_.size());
    for (int at = 0; at < order_.size(); ++at) {
      for (int i = 0; i < node(at).arity(); ++i) ++users[argument(at, i)];
      if (node(at).op() == Op::select) ++selects[argument(at, 0)];
    }
    auto fuse = [&](int at, int from) { fused_[at] = from, absorbed_[from] = true; };
    for (int at = 0; at < order_.size(); ++at) {
      Expr e = node(at);
      if (e.type() == ExprType::real && (e.op() == Op::add || e.op() == Op::sub)) {
        for (int i = 0; i < 2 && fused_[at] < 0; ++i) {
          int from = argument(at, i);
          if (contraction() && node(from).op() == Op::mul && users[from] == 1 && output_[from] < 0) fuse(at, from);
        }
      } else if (e.op() == Op::select) {
        int from = argument(at, 0);
        Op op = node(from).op();
        bool comparison = op == Op::eq || op == Op::ne || op == Op::lt || op == Op::le;
        if (comparison && users[from] == selects[from] && output_[from] < 0) fuse(at, from);
      }
    }
  }

  // Calls f(position) for every operand of the node's loop, those of the fused operation first.
  template <class F>
  void for_operands(int at, F f) const {
    int fused = fused_[at];
    if (fused >= 0) f(argument(fused, 0)), f(argument(fused, 1));
    for (int i = 0; i < node(at).arity(); ++i) {
      if (argument(at, i) != fused) f(argument(at, i));
    }
  }

  int add_register(Kind kind, ExprType type, int k = 0) {
    program_.registers_.push_back({kind, type, k});
    return int(program_.registers_.size()) - 1;
  }

  int leaf(Expr e) {
    int k = int(e.index());
    if (e.op() == Op::index) {
      program_.bound_indices_.push_back({add_register(Kind::index, ExprType::integer, k), k});
      return program_.bound_indices_.back().r;
    }
    if (e.op() == Op::element) {
      program_.bound_elements_.push_back({add_register(Kind::element, ExprType::integer), 0});
      return program_.bound_elements_.back().r;
    }
    if (e.op() != Op::input) {
      program_.constants_.push_back({add_register(Kind::constant, e.type()), e});
      return program_.constants_.back().out;
    }
    if (program_.used_[k]) fail(ErrorKind::usage, "Program: an input is used with two types", "input " + std::to_string(k));
    program_.used_[k] = true;
    program_.input_types_[k] = e.type();
    program_.bound_inputs_.push_back({add_register(Kind::input, e.type(), k), k});
    return program_.bound_inputs_.back().r;
  }

  void emit(int at) {
    Expr e = node(at);
    Instruction step{e.op(), Op::literal, e.type(), ExprType::real, false, 0, {}, e.index()};
    if (int fused = fused_[at]; fused >= 0) {
      step.fused = node(fused).op();
      step.compared = node(fused).arg(0).type();
      step.reversed = argument(at, 0) != fused;
    } else if (e.op() != Op::select && e.op() != Op::load) {
      step.type = e.arg(0).type();
    }
    int count = 0;
    for_operands(at, [&](int from) {
      step.args[count++] = register_[from];
      if (node(from).op() == Op::input) last_read_[node(from).index()] = int(program_.code_.size());
      // The result may take the place of an operand: a loop reads an element before it writes it.
      if (--reads_[from] == 0 && program_.registers_[register_[from]].kind == Kind::temporary) {
        free_[int(node(from).type())].push_back(register_[from]);
      }
    });
    step.out = register_[at] = output_[at] >= 0 ? add_register(Kind::output, e.type(), output_[at]) : temporary(e.type());
    program_.code_.push_back(step);
  }

  int temporary(ExprType type) {
    auto& free = free_[int(type)];
    if (free.empty()) return add_register(Kind::temporary, type);
    int taken = free.back();
    free.pop_back();
    return taken;
  }

  void add_output(int at, int k) {
    const Register& holder = program_.registers_[register_[at]];
    program_.outputs_.push_back({register_[at], node(at).type()});
    if (holder.kind == Kind::output && holder.k == k) {
      program_.bound_outputs_.push_back({register_[at], k});
    } else {
      program_.copied_outputs_.push_back(k);
      if (holder.kind == Kind::input) last_read_[holder.k] = std::numeric_limits<int>::max();
    }
  }

  // An output may be written in the very loop that reads an input of its size for the last time: element by element.
  void find_hazards(int k) {
    int end = int(program_.code_.size()), source = program_.outputs_[k].source, ready = end;
    bool direct = std::ranges::count(program_.copied_outputs_, k) == 0;
    for (int i = 0; i < end && direct; ++i) {
      if (program_.code_[i].out == source) ready = i;
    }
    for (int i = 0; i < program_.inputs(); ++i) {
      bool same_size = program_.outputs_[k].type == program_.input_types_[i];
      if (last_read_[i] > ready || (last_read_[i] == ready && !same_size)) program_.hazards_.push_back({k, i});
    }
  }

  Program& program_;
  Order order_;
  std::vector<int> register_;   // of each node
  std::vector<int> reads_;      // of each node that are still to come
  std::vector<int> output_;     // the first output that a node is, or -1
  std::vector<int> fused_;      // the argument that is computed in the node's own loop, or -1
  std::vector<bool> absorbed_;  // computed in the loops of its users
  std::vector<int> last_read_;  // of each input: the last instruction that reads it
  std::vector<int> free_[3];    // registers of each type
};

Program::Program(std::span<const Expr> roots) { Compiler(*this, roots).compile(roots); }

// ---- loops ------------------------------------------------------------------------------------------------------------------

namespace {

// (word + 1/2) 2^-32 in T, kept below 1.
template <class T>
T unit_interval(std::uint32_t word) {
  auto centred = std::int32_t(word ^ 0x80000000u);  // signed integers convert in one vector instruction
  auto value = T((double(centred) + (0x1p31 + 0.5)) * 0x1p-32);
  constexpr T kLargest = T(1) - std::numeric_limits<T>::epsilon() / 2;
  return value < kLargest ? value : kLargest;
}

struct Draw {
  std::uint64_t seed, tick, site;
};

template <class T>
void fill_uniform(const Draw& draw, const std::int64_t* elements, int n, T* out) {
  std::uint64_t key = philox_key(draw.seed, draw.site), first = std::uint64_t(elements[0]);
  std::uint64_t scattered = 0;
#pragma omp simd reduction(| : scattered)
  for (int j = 0; j < n; ++j) scattered |= (std::uint64_t(elements[j]) - first) ^ std::uint64_t(j);
  if (scattered) {
    for (int j = 0; j < n; ++j) out[j] = unit_interval<T>(philox(draw.seed, draw.site, draw.tick, elements[j]));
    return;
  }
  constexpr int kGroups = kBlock / 4 + 1;
  std::uint32_t words[4 * kGroups];
  int groups = int((first % 4 + n + 3) / 4);
#pragma omp simd
  for (int g = 0; g < groups; ++g) {
    PhiloxWords group = philox_group(key, draw.tick, first / 4 + g);
    for (int w = 0; w < 4; ++w) words[4 * g + w] = group[w];
  }
  const std::uint32_t* word = words + first % 4;
#pragma omp simd
  for (int j = 0; j < n; ++j) out[j] = unit_interval<T>(word[j]);
}

std::int64_t quotient(std::int64_t a, std::int64_t b) {
  return b == 0 ? 0 : b == -1 ? std::int64_t(0 - std::uint64_t(a)) : a / b;
}

// Runs one instruction. N is int, or a constant for full blocks, whose loops then have no remainder.
template <class T, class N>
class Machine {
 public:
  Machine(void* const* registers, const double* constants, const View* tables, N n)
      : registers_(registers), constants_(constants), tables_(tables), n_(n) {}

  void step(const Program::Instruction& i) const {
    switch (i.op) {
      case Op::add:
        if (i.fused == Op::mul) return map<T, T, T, T>(i, [](T x, T y, T z) { return x * y + z; });
        return modular(i, [](auto a, auto b) { return a + b; });
      case Op::sub:
        if (i.fused != Op::mul) return modular(i, [](auto a, auto b) { return a - b; });
        if (i.reversed) return map<T, T, T, T>(i, [](T x, T y, T z) { return z - x * y; });
        return map<T, T, T, T>(i, [](T x, T y, T z) { return x * y - z; });
      case Op::mul:
        return modular(i, [](auto a, auto b) { return a * b; });
      case Op::div:
        if (i.type == ExprType::integer) return divide(i);
        return map<T, T, T>(i, [](T a, T b) { return a / b; });
      case Op::min:
        if (i.type == ExprType::integer) return map<Int, Int, Int>(i, [](Int a, Int b) { return a < b ? a : b; });
        return map<T, T, T>(i, [](T a, T b) { return vmath::min(a, b); });
      case Op::max:
        if (i.type == ExprType::integer) return map<Int, Int, Int>(i, [](Int a, Int b) { return a > b ? a : b; });
        return map<T, T, T>(i, [](T a, T b) { return vmath::max(a, b); });
      case Op::pow:
        return map<T, T, T>(i, [](T a, T b) { return vmath::pow(a, b); });
      case Op::neg:
        if (i.type == ExprType::integer) return map<Bits, Bits>(i, [](Bits a) { return 0 - a; });
        return real(i, [](T a) { return -a; });
      case Op::abs:
        if (i.type == ExprType::integer) return map<Bits, Int>(i, [](Int a) { return a < 0 ? 0 - Bits(a) : Bits(a); });
        return real(i, [](T a) { return std::abs(a); });
      case Op::sign:
        if (i.type == ExprType::integer) return map<Int, Int>(i, [](Int a) { return Int((a > 0) - (a < 0)); });
        return real(i, [](T a) { return vmath::sign(a); });
      case Op::eq:
      case Op::ne:
      case Op::lt:
      case Op::le:
        return compare(i);
      case Op::logical_and:
        return map<Bool, Bool, Bool>(i, [](Bool a, Bool b) { return Bool(a & b); });
      case Op::logical_or:
        return map<Bool, Bool, Bool>(i, [](Bool a, Bool b) { return Bool(a | b); });
      case Op::logical_not:
        return map<Bool, Bool>(i, [](Bool a) { return Bool(a ^ 1); });
      case Op::select:
        return select(i);
      case Op::to_real:
        return i.type == ExprType::integer ? convert<T, Int>(i) : convert<T, Bool>(i);
      case Op::to_integer:
        if (i.type == ExprType::real) return map<Int, T>(i, [](T a) { return truncated(a); });
        return convert<Int, Bool>(i);
      case Op::narrow:
        return narrow(i);
      case Op::unless_zero:
        return map<T, T, T>(i, [](T g, T x) { return g == 0 ? T(0) : x; });
      case Op::uniform:
        return uniform(i);
      case Op::load:
        return load(i);
      default:
        return function(i);
    }
  }

 private:
  using Int = std::int64_t;
  using Bits = std::uint64_t;  // integers wrap
  using Bool = std::uint8_t;

  template <class R>
  R* at(int r) const {
    return static_cast<R*>(registers_[r]);
  }

  // An output may lie on an operand, element on element; `simd` says that nothing else overlaps.
  template <class R, class A, class F>
  void map(const Program::Instruction& i, F f) const {
    R* out = at<R>(i.out);
    const A* a = at<A>(i.args[0]);
#pragma omp simd
    for (int j = 0; j < n_; ++j) out[j] = f(a[j]);
  }
  template <class R, class A, class B, class F>
  void map(const Program::Instruction& i, F f) const {
    R* out = at<R>(i.out);
    const A* a = at<A>(i.args[0]);
    const B* b = at<B>(i.args[1]);
#pragma omp simd
    for (int j = 0; j < n_; ++j) out[j] = f(a[j], b[j]);
  }
  template <class R, class A, class B, class C, class F>
  void map(const Program::Instruction& i, F f) const {
    R* out = at<R>(i.out);
    const A* a = at<A>(i.args[0]);
    const B* b = at<B>(i.args[1]);
    const C* c = at<C>(i.args[2]);
#pragma omp simd
    for (int j = 0; j < n_; ++j) out[j] = f(a[j], b[j], c[j]);
  }
  template <class A, class R, class F>
  void map_select(const Program::Instruction& i, F f) const {
    R* out = at<R>(i.out);
    const A *a = at<A>(i.args[0]), *b = at<A>(i.args[1]);
    const R *yes = at<R>(i.args[2]), *no = at<R>(i.args[3]);
#pragma omp simd
    for (int j = 0; j < n_; ++j) {
      R taken = yes[j], otherwise = no[j];
      out[j] = f(a[j], b[j]) ? taken : otherwise;
    }
  }

  // Quotients of small integers, which indices are, by way of double: exact, and it vectorises.
  void divide(const Program::Instruction& i) const {
    const Int *a = at<Int>(i.args[0]), *b = at<Int>(i.args[1]);
    constexpr Bits kLimit = 1 << 30;
    Bits large = 0;
#pragma omp simd reduction(| : large)
    for (int j = 0; j < n_; ++j) large |= ((Bits(a[j]) + kLimit) | (Bits(b[j]) + kLimit)) >> 31;
    if (large) return map<Int, Int, Int>(i, quotient);
    map<Int, Int, Int>(i, [](Int x, Int y) {
      auto dividend = std::int32_t(y == 0 ? 0 : x), divisor = std::int32_t(y == 0 ? 1 : y);
      return Int(std::int32_t(double(dividend) / double(divisor)));
    });
  }

  template <class F>
  void modular(const Program::Instruction& i, F f) const {
    i.type == ExprType::integer ? map<Bits, Bits, Bits>(i, f) : map<T, T, T>(i, f);
  }
  template <class F>
  void real(const Program::Instruction& i, F f) const {
    map<T, T>(i, f);
  }

  template <class R, class A>
  void convert(const Program::Instruction& i) const {
    map<R, A>(i, [](A a) { return R(a); });
  }

  // Calls f with the comparison as a function object.
  template <class F>
  static void with_comparison(Op op, F f) {
    switch (op) {
      case Op::eq:
        return f([](auto a, auto b) { return a == b; });
      case Op::ne:
        return f([](auto a, auto b) { return a != b; });
      case Op::lt:
        return f([](auto a, auto b) { return a < b; });
      default:
        return f([](auto a, auto b) { return a <= b; });
    }
  }

  void compare(const Program::Instruction& i) const {
    with_comparison(
        i.op, [&](auto holds) { i.type == ExprType::integer ? map<Bool, Int, Int>(i, holds) : map<Bool, T, T>(i, holds); });
  }

  void select(const Program::Instruction& i) const {
    i.type == ExprType::real ? select_of<T>(i) : i.type == ExprType::integer ? select_of<Int>(i) : select_of<Bool>(i);
  }

  template <class R>
  void select_of(const Program::Instruction& i) const {
    if (i.fused == Op::literal) return map<R, Bool, R, R>(i, [](Bool c, R a, R b) { return c ? a : b; });
    with_comparison(i.fused, [&](auto holds) {
      i.compared == ExprType::integer ? map_select<Int, R>(i, holds) : map_select<T, R>(i, holds);
    });
  }

  void function(const Program::Instruction& i) const {
    switch (i.op) {
      case Op::exp:
        return real(i, [](T a) { return vmath::exp(a); });
      case Op::log:
        return real(i, [](T a) { return vmath::log(a); });
      case Op::log1p:
        return real(i, [](T a) { return vmath::log1p(a); });
      case Op::expm1:
        return real(i, [](T a) { return vmath::expm1(a); });
      case Op::sqrt:
        return real(i, [](T a) { return vmath::sqrt(a); });
      case Op::rsqrt:
        return real(i, [](T a) { return vmath::rsqrt(a); });
      case Op::tanh:
        return real(i, [](T a) { return vmath::tanh(a); });
      case Op::sigmoid:
        return real(i, [](T a) { return vmath::sigmoid(a); });
      case Op::softplus:
        return real(i, [](T a) { return vmath::softplus(a); });
      case Op::erf:
        return real(i, [](T a) { return vmath::erf(a); });
      case Op::floor:
        return real(i, [](T a) { return vmath::floor(a); });
      case Op::sin:
        return angle(
            i, [](T a) { return vmath::sin(a); }, [](T a) { return std::sin(a); });
      case Op::cos:
        return angle(
            i, [](T a) { return vmath::cos(a); }, [](T a) { return std::cos(a); });
      default:
        break;
    }
  }

  template <class F, class G>
  void angle(const Program::Instruction& i, F fast, G exact) const {
    const T* a = at<T>(i.args[0]);
    bool large = false;
    for (int j = 0; j < n_; ++j) large |= std::abs(a[j]) > T(vmath::kMaxAngle);
    large ? real(i, exact) : real(i, fast);
  }

  void narrow(const Program::Instruction& i) const {
    if (i.type == ExprType::integer) return map<Int, Int>(i, [](Int a) { return Int(std::int32_t(a)); });
    if (DType(i.index) == DType::f32) return real(i, [](T a) { return T(float(a)); });
    real(i, [](T a) { return T(float(bf16(a))); });
  }

  void uniform(const Program::Instruction& i) const {
    auto bits = [&](int k) { return std::bit_cast<std::uint64_t>(constants_[i.index + k]); };
    fill_uniform({bits(0), bits(1), bits(2)}, at<Int>(i.args[0]), n_, at<T>(i.out));
  }

  void load(const Program::Instruction& i) const {
    const View& table = tables_[i.index];
    Int offsets[kBlock] = {};
    for (int axis = 0; axis < table.rank; ++axis) {
      const Int *subscript = at<Int>(i.args[axis]), size = table.dims[axis], stride = table.strides[axis];
      int inside = 0;  // how many are, from the first on
      while (inside < n_ && Bits(subscript[inside]) < Bits(size)) ++inside;
      if (inside < n_) throw_device_error(DeviceError::subscript, subscript[inside], size, axis);
      for (int j = 0; j < n_; ++j) offsets[j] += subscript[j] * stride;
    }
    visit_dtype(table.dtype, [&]<class S>(S) {
      const S* from = table.as<S>();
      const auto take = [&]<class R>(R* to) {
        for (int j = 0; j < n_; ++j) to[j] = value_as<R>(from[offsets[j]]);
      };
      i.type == ExprType::real      ? take(at<T>(i.out))
      : i.type == ExprType::integer ? take(at<Int>(i.out))
                                    : take(at<Bool>(i.out));
    });
  }

  void* const* registers_;
  const double* constants_;
  const View* tables_;
  N n_;
};

// f(T*) for a register of `type`.
template <class T, class F>
void visit(ExprType type, void* data, F f) {
  if (type == ExprType::real) f(static_cast<T*>(data));
  if (type == ExprType::integer) f(static_cast<std::int64_t*>(data));
  if (type == ExprType::boolean) f(static_cast<std::uint8_t*>(data));
}

template <class T>
std::size_t element_size(ExprType type) {
  return type == ExprType::real ? sizeof(T) : type == ExprType::integer ? sizeof(std::int64_t) : 1;
}

}  // namespace

std::uint32_t philox(std::uint64_t seed, std::uint64_t site, std::uint64_t tick, std::uint64_t element) {
  return philox_group(philox_key(seed, site), tick, element / 4)[element % 4];
}

// ---- State ------------------------------------------------------------------------------------------------------------------

template <class T>
Program::State<T>::State(const Program& program, const double* constants, const View* tables)
    : program_(&program), constants_(constants), tables_(tables), registers_(program.registers_.size()) {
  constexpr std::size_t kLine = 64;
  std::size_t bytes = kLine;
  for (const Register& r : program.registers_) bytes += kBlock * element_size<T>(r.type);
  for (const Output& output : program.outputs_) bytes += kBlock * element_size<T>(output.type);
  storage_ = std::make_unique<std::byte[]>(bytes);
  auto address = reinterpret_cast<std::uintptr_t>(storage_.get());
  std::byte* next = storage_.get() + (kLine - address % kLine) % kLine;
  auto take = [&](ExprType type) { return std::exchange(next, next + kBlock * element_size<T>(type)); };
  for (std::size_t r = 0; r < registers_.size(); ++r) {
    Kind kind = program.registers_[r].kind;
    if (kind != Kind::input && kind != Kind::output) registers_[r] = take(program.registers_[r].type);
  }
  for (const Output& output : program.outputs_) staging_.push_back(take(output.type));
  for (const Constant& constant : program.constants_) {
    Expr leaf = constant.leaf;
    visit<T>(leaf.type(), registers_[constant.out], [&]<class R>(R* values) {
      R value = leaf.op() == Op::slot           ? value_as<R>(constants[leaf.index()])
                : leaf.type() == ExprType::real ? R(leaf.value())
                                                : R(leaf.index());
      std::fill_n(values, kBlock, value);
    });
  }
}

// Points the registers of inputs and outputs at the caller's memory. An output that lies on an input which is read
// later goes to the side first.
template <class T>
void Program::State<T>::bind(const void* const* inputs, void* const* outputs) {
  const Program& p = *program_;
  targets_.assign(outputs, outputs + p.outputs());
  for (auto [output, input] : p.hazards_) {
    if (inputs[input] == outputs[output]) targets_[output] = staging_[output];
  }
  for (auto [r, k] : p.bound_inputs_) registers_[r] = const_cast<void*>(inputs[k]);  // no instruction writes it
  for (auto [r, k] : p.bound_outputs_) registers_[r] = targets_[k];
}

// The coordinates of elements [first, first + n): one division by each size, then along the rows.
template <class T>
void Program::State<T>::fill_coordinates(int n, std::int64_t first, std::span<const std::int64_t> dims) {
  const Program& p = *program_;
  for (auto [r, unused] : p.bound_elements_)
    std::iota(static_cast<std::int64_t*>(registers_[r]), static_cast<std::int64_t*>(registers_[r]) + n, first);
  if (p.bound_indices_.empty()) return;
  const int last = int(dims.size()) - 1;
  std::int64_t at[kMostCoordinates] = {};
  for (int d = last; d >= 0; --d) at[d] = first % dims[d], first /= dims[d];
  for (int done = 0, count; done < n; done += count) {
    count = last < 0 ? n : int(std::min<std::int64_t>(n - done, dims[last] - at[last]));
    for (auto [r, k] : p.bound_indices_) {
      if (k > last)
        fail(ErrorKind::usage, "Program: an expression reads a coordinate that it has not", "index " + std::to_string(k));
      auto* values = static_cast<std::int64_t*>(registers_[r]) + done;
      k == last ? std::iota(values, values + count, at[k]) : void(std::fill_n(values, count, at[k]));
    }
    if (last < 0) break;
    at[last] += count;
    for (int d = last; d > 0 && at[d] == dims[d]; --d) at[d] = 0, ++at[d - 1];
  }
}

template <class T>
void Program::State<T>::copy(int output, void* to, const void* from, int n) const {
  if (to != from) std::memcpy(to, from, n * element_size<T>(program_->outputs_[output].type));
}

template <class T>
void Program::State<T>::run(const void* const* inputs, void* const* outputs, int n, std::int64_t first,
                            std::span<const std::int64_t> dims) {
  bind(inputs, outputs);
  fill_coordinates(n, first, dims);
  auto execute = [&](auto count) {
    Machine<T, decltype(count)> machine(registers_.data(), constants_, tables_, count);
    for (const Instruction& instruction : program_->code_) machine.step(instruction);
  };
  n == kBlock ? execute(std::integral_constant<int, kBlock>{}) : execute(n);
  for (int k : program_->copied_outputs_) copy(k, targets_[k], registers_[program_->outputs_[k].source], n);
  for (auto [output, input] : program_->hazards_) copy(output, outputs[output], targets_[output], n);
}

template class Program::State<float>;
template class Program::State<double>;

}  // namespace weft
