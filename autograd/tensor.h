// Tensor: a handle of a lazy value. Handles are two words and free to copy inside `run`. A value exists in memory once a step
// returned it, or, outside `run`, once it was asked for.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <source_location>
#include <string>
#include <type_traits>
#include <vector>

#include "autograd/shape.h"
#include "jit/dtype.h"
#include "jit/expr.h"
#include "jit/memory.h"

namespace weft {

using NodeId = std::uint32_t;
using Site = std::source_location;

namespace detail {
inline constinit thread_local std::uint64_t active_epoch = 0;  // of the tape in use on this thread
}

// A subscript of a tensor that is indexed inside a hole: an integer expression, and the place it was written at.
class Subscript {
 public:
  Subscript(Site where = Site::current()) : where_(where) {}  // absent
  template <class T>
  requires std::is_convertible_v<T, Expr> Subscript(T subscript, Site where = Site::current())
      : expr_(subscript), where_(where) {}
  const std::optional<Expr>& expr() const { return expr_; }
  Site where() const { return where_; }

 private:
  std::optional<Expr> expr_;
  Site where_;
};
using Subscripts = std::array<Subscript, kMostCoordinates>;

// A value that outlives its tape, shared by handles. Before it is computed `memory` is null and `place` says where it is
// pending. Small results of a step share one block.
struct Value {
  // The node that stands for the value on the tape of an epoch, the last that used it: one number, for threads may use a value
  // at the same time.
  class Place {
   public:
    void set(std::uint64_t epoch, NodeId node) { place_.store(epoch << kNodeBits | node, std::memory_order_relaxed); }
    std::optional<NodeId> on(std::uint64_t epoch) const {
      const std::uint64_t both = place_.load(std::memory_order_relaxed);
      if (both >> kNodeBits != epoch) return {};
      return NodeId(both & ((1u << kNodeBits) - 1));
    }

   private:
    static constexpr int kNodeBits = 28;
    std::atomic<std::uint64_t> place_{0};
  };

  std::atomic<int> references{0};
  DType dtype = DType::f32;
  Shape shape;
  std::shared_ptr<Memory> memory;
  std::size_t offset = 0;  // in it
  Place place;
};

class Tensor {
 public:
  Tensor() = default;  // absent: the argument of an optional operand; its value, shape or type is an error
  static Tensor of_node(std::uint64_t epoch, NodeId node) {
    Tensor t;
    t.epoch_ = epoch, t.node_ = node;
    return t;
  }
  static Tensor of_value(Value* value);
  Tensor(const Tensor& other) : epoch_(other.epoch_), node_(other.node_), value_(other.value_) { retain(); }
  Tensor(Tensor&& other) noexcept : epoch_(other.epoch_), node_(other.node_), value_(other.value_) {
    other.value_ = nullptr;
    other.epoch_ = 0;
  }
  Tensor& operator=(Tensor other) noexcept {
    std::swap(epoch_, other.epoch_);
    std::swap(node_, other.node_);
    std::swap(value_, other.value_);
    return *this;
  }
  ~Tensor() {
    if (value_) release();
  }

  // A value from host memory, row-major. T: see is_host_element (jit/dtype.h).
  template <class T>
  static Tensor from(const std::vector<T>& values, Shape shape, Site where = Site::current()) {
    return from_stored(stored_elements(values), shape, where);
  }
  static Tensor from_bytes(const void* bytes, DType dtype, Shape shape, Site where = Site::current());

  explicit operator bool() const { return epoch_ != 0 || value_ != nullptr; }
  Shape shape(Site where = Site::current()) const;
  std::int64_t dim(int i, Site where = Site::current()) const;
  int rank(Site where = Site::current()) const { return shape(where).rank(); }
  std::int64_t numel(Site where = Site::current()) const { return shape(where).numel(); }
  DType dtype(Site where = Site::current()) const;
  bool requires_grad(Site where = Site::current()) const;

  // Inside the function that fills a hole: the element at these subscripts, one for each axis, as an expression of the tensor's
  // type. `bias(h, i - j)`
  Expr operator()(Subscript a = {}, Subscript b = {}, Subscript c = {}, Subscript d = {}, Subscript e = {},
                  Subscript f = {}) const {
    return at({a, b, c, d, e, f});
  }
  Expr at(const Subscripts& subscripts) const;

  // The one element of a tensor of one element. Outside `run` this runs what is pending; inside it is an error.
  double item(Site where = Site::current()) const;
  // All elements, row-major, converted to T (see is_host_element, jit/dtype.h): reals are truncated to integers.
  template <class T>
  std::vector<T> to_host(Site where = Site::current()) const {
    return host_elements<T>(to_stored<StoredElement<T>>(where));
  }
  // The raw memory, row-major in dtype(), valid while a handle of the value lives.
  const std::byte* bytes(Site where = Site::current()) const;

  // For the tape.
  bool dead() const { return !value_ && epoch_ != 0 && epoch_ != detail::active_epoch; }
  // On the active tape; imports a returned value; an error if dead.
  NodeId node(Site where = Site::current()) const {
    return epoch_ == detail::active_epoch && !value_ && epoch_ != 0 ? node_ : resolve(where);
  }
  Value* value() const { return value_; }
  std::uint64_t epoch() const { return epoch_; }
  NodeId raw_node() const { return node_; }

 private:
  void retain() {
    if (value_) value_->references.fetch_add(1, std::memory_order_relaxed);
  }
  void release();
  NodeId resolve(Site where) const;
  template <class T>  // of these types alone
  static Tensor from_stored(const std::vector<T>& values, Shape shape, Site where);
  template <class T>
  std::vector<T> to_stored(Site where) const;
  std::uint64_t epoch_ = 0;
  NodeId node_ = 0;
  Value* value_ = nullptr;
};

class State;
class Scalar;

// A tensor argument with the place it was written at: the converting constructor captures the caller's line, so that an
// error names a line of the user's file.
class Arg {
 public:
  Arg(const Tensor& tensor, Site where = Site::current()) : tensor_(tensor), where_(where) { check(); }
  Arg(Tensor&& tensor, Site where = Site::current()) : tensor_(std::move(tensor)), where_(where) { check(); }
  Arg(const State& state, Site where = Site::current());    // reads the state (a Param: its fp32 master)
  Arg(const Scalar& scalar, Site where = Site::current());  // an fp32 scalar that may change every step at no cost
  explicit operator bool() const { return bool(tensor_); }
  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }
  Site where() const { return where_; }
  Shape shape() const { return tensor_.shape(where_); }
  std::int64_t dim(int i) const { return tensor_.dim(i, where_); }
  int rank() const { return tensor_.rank(where_); }
  std::int64_t numel() const { return tensor_.numel(where_); }
  DType dtype() const { return tensor_.dtype(where_); }
  Expr operator()(Subscript a = {}, Subscript b = {}, Subscript c = {}, Subscript d = {}, Subscript e = {},
                  Subscript f = {}) const {
    return tensor_.at({a, b, c, d, e, f});
  }

 private:
  void check() const {  // a dead handle is reported here, where the caller's line is known
    if (tensor_.dead()) tensor_.node(where_);
  }
  Tensor tensor_;
  Site where_;
};

// A number that may change from step to step without a new plan. A plain float mostly needs none: it is a constant that is sent
// with the step. But 0, 1, -1, 2 and 1/2 are part of the expression, which simplifies with them, so a float that becomes one of
// them makes a new plan: use a Scalar for one that does so again and again, and for numbers that steer structure on the device:
// positions, lengths, temperatures set from outside the step. In a hole, Expr(scalar) is a constant of the kernel, and
// to_integer(scalar) a whole one, read exactly.
class Scalar {
 public:
  explicit Scalar(double value = 0) : value_(std::make_shared<double>(value)) {}
  Scalar(const Scalar&) = default;  // a handle, to be moved too: what was moved from is the same number
  Scalar& operator=(const Scalar&) = default;
  void set(double value) { *value_ = value; }
  double value() const { return *value_; }
  explicit operator Expr() const { return expr::constant_slot(value(), ExprType::real); }

 private:
  std::shared_ptr<double> value_;
};

inline Expr to_integer(const Scalar& scalar) { return expr::constant_slot(scalar.value(), ExprType::integer); }

}  // namespace weft
