// Random expressions and a slow, obvious evaluator to compare everything else with.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <unordered_map>
#include <vector>

#include "jit/expr.h"

namespace weft::testing {

inline constexpr ExprOp kUnaryReal[] = {
    ExprOp::neg,     ExprOp::exp,      ExprOp::log, ExprOp::log1p, ExprOp::expm1, ExprOp::sqrt,  ExprOp::rsqrt, ExprOp::tanh,
    ExprOp::sigmoid, ExprOp::softplus, ExprOp::erf, ExprOp::abs,   ExprOp::sign,  ExprOp::floor, ExprOp::sin,   ExprOp::cos};
inline constexpr ExprOp kBinaryReal[] = {ExprOp::add, ExprOp::sub, ExprOp::mul, ExprOp::div,
                                         ExprOp::min, ExprOp::max, ExprOp::pow};
inline constexpr ExprOp kComparisons[] = {ExprOp::eq, ExprOp::ne, ExprOp::lt, ExprOp::le};

// One value of any type; booleans are integers 0 and 1.
template <class V>
struct Scalar {
  V real = 0;
  std::int64_t integer = 0;
};

template <class V>
class Evaluator {
 public:
  std::vector<Scalar<V>> inputs;
  std::vector<double> slots;
  std::vector<std::int64_t> indices;
  std::int64_t element = 0;
  std::function<Scalar<V>(std::int64_t k, std::span<const std::int64_t> subscripts)> table;  // what load k finds

  Scalar<V> operator()(Expr e) {
    auto [place, fresh] = known_.try_emplace(e.id());
    if (!fresh) return place->second;
    Scalar<V> value = compute(e);
    return known_[e.id()] = value;
  }
  void forget() { known_.clear(); }

  static std::int64_t whole(V a) {  // the integer that a real becomes
    if (a >= V(0x1p63)) return std::numeric_limits<std::int64_t>::max();
    return a >= V(-0x1p63) ? std::int64_t(a) : std::numeric_limits<std::int64_t>::min();
  }

 private:
  static V nan_or(bool keep, V a, V b) {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<V>::quiet_NaN() : keep ? a : b;
  }

  Scalar<V> compute(Expr e) {
    using Op = ExprOp;
    auto k = std::size_t(e.index());
    switch (e.op()) {
      case Op::input:
        return inputs[k];
      case Op::literal:
        return {V(e.value()), e.type() == ExprType::real ? 0 : e.index()};
      case Op::slot:
        return {V(slots[k]), Evaluator<double>::whole(slots[k])};
      case Op::index:
        return {0, indices[k]};
      case Op::element:
        return {0, element};
      case Op::load: {
        std::vector<std::int64_t> at;
        for (int i = 0; i < e.arity(); ++i) at.push_back((*this)(e.arg(i)).integer);
        return table(e.index(), at);
      }
      case Op::select:
        return (*this)(e.arg(0)).integer ? (*this)(e.arg(1)) : (*this)(e.arg(2));
      default:
        break;
    }
    Scalar<V> a = (*this)(e.arg(0)), b = e.arity() > 1 ? (*this)(e.arg(1)) : Scalar<V>{};
    if (e.arg(0).type() == ExprType::real) return of_reals(e.op(), a.real, b.real);
    return of_integers(e.op(), a.integer, b.integer);
  }

  static Scalar<V> of_reals(ExprOp op, V a, V b) {
    using Op = ExprOp;
    switch (op) {
      case Op::add:
        return {a + b, 0};
      case Op::sub:
        return {a - b, 0};
      case Op::mul:
        return {a * b, 0};
      case Op::div:
        return {a / b, 0};
      case Op::min:
        return {nan_or(a < b, a, b), 0};
      case Op::max:
        return {nan_or(a > b, a, b), 0};
      case Op::pow:
        return {std::pow(a, b), 0};
      case Op::eq:
        return {0, a == b};
      case Op::ne:
        return {0, a != b};
      case Op::lt:
        return {0, a < b};
      case Op::le:
        return {0, a <= b};
      case Op::neg:
        return {-a, 0};
      case Op::exp:
        return {std::exp(a), 0};
      case Op::log:
        return {std::log(a), 0};
      case Op::log1p:
        return {std::log1p(a), 0};
      case Op::expm1:
        return {std::expm1(a), 0};
      case Op::sqrt:
        return {std::sqrt(a), 0};
      case Op::rsqrt:
        return {1 / std::sqrt(a), 0};
      case Op::tanh:
        return {std::tanh(a), 0};
      case Op::sigmoid:
        return {1 / (1 + std::exp(-a)), 0};
      case Op::softplus:
        return {a > 0 ? a + std::log1p(std::exp(-a)) : std::log1p(std::exp(a)), 0};
      case Op::erf:
        return {std::erf(a), 0};
      case Op::abs:
        return {std::abs(a), 0};
      case Op::sign:
        return {a > 0 ? V(1) : a < 0 ? V(-1) : a, 0};
      case Op::floor:
        return {std::floor(a), 0};
      case Op::sin:
        return {std::sin(a), 0};
      case Op::cos:
        return {std::cos(a), 0};
      case Op::to_integer:
        return {0, whole(a)};
      default:
        throw std::logic_error("op of reals");
    }
  }

  static Scalar<V> of_integers(ExprOp op, std::int64_t a, std::int64_t b) {
    using Op = ExprOp;
    auto wrap = [](std::uint64_t x) { return Scalar<V>{0, std::int64_t(x)}; };
    auto ua = std::uint64_t(a), ub = std::uint64_t(b);
    switch (op) {
      case Op::add:
        return wrap(ua + ub);
      case Op::sub:
        return wrap(ua - ub);
      case Op::mul:
        return wrap(ua * ub);
      case Op::div:
        return b == 0 ? wrap(0) : b == -1 ? wrap(0 - ua) : Scalar<V>{0, a / b};
      case Op::min:
        return {0, a < b ? a : b};
      case Op::max:
        return {0, a > b ? a : b};
      case Op::neg:
        return wrap(0 - ua);
      case Op::abs:
        return wrap(a < 0 ? 0 - ua : ua);
      case Op::sign:
        return {0, a > 0 ? 1 : a < 0 ? -1 : 0};
      case Op::eq:
        return {0, a == b};
      case Op::ne:
        return {0, a != b};
      case Op::lt:
        return {0, a < b};
      case Op::le:
        return {0, a <= b};
      case Op::logical_and:
        return {0, a && b};
      case Op::logical_or:
        return {0, a || b};
      case Op::logical_not:
        return {0, !a};
      case Op::to_real:
        return {V(a), 0};
      case Op::narrow:
        return {0, std::int32_t(a)};
      case Op::to_integer:
        return {0, a};
      default:
        throw std::logic_error("op of integers");
    }
  }

  std::unordered_map<std::uint32_t, Scalar<V>> known_;
};

// A tensor that random expressions may load from.
struct Table {
  ExprType type;
  std::vector<std::int64_t> dims;
};

// Grows a random DAG from given leaves.
class RandomDag {
 public:
  RandomDag(std::mt19937& random, std::vector<Expr> leaves, std::vector<Table> tables = {})
      : random_(random), nodes_(std::move(leaves)), tables_(std::move(tables)) {}

  Expr grow(int steps) {
    for (int i = 0; i < steps; ++i) nodes_.push_back(step());
    return nodes_.back();
  }
  Expr any() { return nodes_[below(int(nodes_.size()))]; }

 private:
  int below(int n) { return std::uniform_int_distribution(0, n - 1)(random_); }
  template <std::size_t N>
  ExprOp pick(const ExprOp (&ops)[N]) {
    return ops[below(N)];
  }

  Expr of(ExprType type) {
    for (int tries = 0; tries < 50; ++tries) {
      if (Expr e = any(); e.type() == type) return e;
    }
    Expr e = any();
    return type == ExprType::real ? to_real(e) : type == ExprType::integer ? to_integer(e) : not_equal(e, any());
  }

  // At any integers, brought into the tensor.
  Expr load() {
    const int k = below(int(tables_.size()));
    std::vector<Expr> subscripts;
    for (const std::int64_t size : tables_[std::size_t(k)].dims)
      subscripts.push_back(clamp(of(ExprType::integer), 0, size - 1));
    return expr::load(k, tables_[std::size_t(k)].type, subscripts);
  }

  Expr step() {
    if (!tables_.empty() && below(6) == 0) return load();
    switch (below(12)) {
      case 0:
        return where(of(ExprType::boolean), any(), any());
      case 1:
        return expr::make(pick(kComparisons), any(), any());
      case 2:
        return below(2) ? of(ExprType::boolean) && of(ExprType::boolean) : !of(ExprType::boolean);
      case 3:
        return of(ExprType::boolean) || any() < any();
      case 4:
        return expr::make(kBinaryReal[below(6)], of(ExprType::integer), of(ExprType::integer));
      case 5:
        return below(4) ? to_real(any()) : to_integer(any());
      case 6:
      case 7:
      case 8:
        return expr::make(pick(kUnaryReal), any());
      default:
        return expr::make(pick(kBinaryReal), of(ExprType::real), any());
    }
  }

  std::mt19937& random_;
  std::vector<Expr> nodes_;
  std::vector<Table> tables_;
};

}  // namespace weft::testing
