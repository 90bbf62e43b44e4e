#include "autograd/tensor.h"

#include <fmt/format.h>

#include <cstring>

#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "jit/convert.h"

namespace weft {
namespace {

[[noreturn]] void fail_dead(Site where) {
  fail_at(where, "tensor: this handle is dead", "its step has ended",
          "return the tensor from the step function to keep its value");
}

[[noreturn]] void fail_pending_elsewhere(Site where) {
  fail_at(where, "tensor: its value was never computed", "it was recorded outside run by another thread, or with what failed",
          "ask for its value, as by item(), in the thread that recorded it");
}

// Node of a value from outside on the active tape.
NodeId import_value(Tape& t, const Tensor& tensor, Site where) {
  Value& v = *tensor.value();
  const std::int64_t position = std::int64_t(t.bound.size());
  t.bound.push_back(tensor);
  const Out out{v.shape, v.dtype};
  const NodeId node = t.record(input_op(), {}, {&out, 1}, {&position, 1}, {}, where);
  v.place.set(t.epoch, node);
  return node;
}

template <class T, class From>
void convert_all(const std::byte* bytes, std::int64_t n, T* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    From x;
    std::memcpy(&x, bytes + i * std::int64_t(sizeof(From)), sizeof(From));
    out[i] = value_as<T>(x);
  }
}

template <class T>
constexpr DType element_dtype() {
  if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<T, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<T, std::int32_t>)
    return DType::i32;
  else if constexpr (std::is_same_v<T, std::int64_t>)
    return DType::i64;
  else
    return DType::boolean;
}

}  // namespace

Tensor Tensor::of_value(Value* value) {
  Tensor t;
  t.value_ = value;
  t.retain();
  return t;
}

Shape Tensor::shape(Site where) const { return value_ ? value_->shape : tape().nodes[node(where)].shape(); }
DType Tensor::dtype(Site where) const { return value_ ? value_->dtype : tape().nodes[node(where)].dtype; }

std::int64_t Tensor::dim(int i, Site where) const {
  const Shape s = shape(where);
  if (i < -s.rank() || i >= s.rank())
    fail_at(where, "dim: no such axis", fmt::format("axis {} of {}", i, to_string(s)),
            "axes count from 0, or from the end with -1");
  return s[i];
}

void Tensor::release() {
  if (value_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete value_;
}

Tensor Tensor::from_bytes(const void* bytes, DType dtype, Shape shape, Site where) {
  check_shape(shape, where);
  auto* v = new Value;
  const Tensor t = of_value(v);
  v->dtype = dtype;
  v->shape = shape;
  const std::size_t size = bytes_of(shape, dtype);
  v->memory = std::make_shared<Memory>(Device::cpu, size, "a tensor from the host");
  v->memory->write(bytes);
  if (dtype == DType::boolean) normalise_booleans({v->memory->data(), size});
  return t;
}

template <class T>
Tensor Tensor::from_stored(const std::vector<T>& values, Shape shape, Site where) {
  check_shape(shape, where);
  if (std::int64_t(values.size()) != shape.numel())
    fail_at(where, "Tensor::from: the number of values is not that of the shape",
            fmt::format("{} values, shape {} holds {}", values.size(), to_string(shape), shape.numel()));
  return from_bytes(values.data(), element_dtype<T>(), shape, where);
}
template Tensor Tensor::from_stored(const std::vector<float>&, Shape, Site);
template Tensor Tensor::from_stored(const std::vector<double>&, Shape, Site);
template Tensor Tensor::from_stored(const std::vector<std::int32_t>&, Shape, Site);
template Tensor Tensor::from_stored(const std::vector<std::int64_t>&, Shape, Site);
template Tensor Tensor::from_stored(const std::vector<std::uint8_t>&, Shape, Site);

NodeId Tensor::resolve(Site where) const {
  Tape& t = tape();
  if (value_) {
    if (const auto node = value_->place.on(t.epoch)) return *node;
    if (value_->memory) return import_value(t, *this, where);
    fail_pending_elsewhere(where);
  }
  if (epoch_ == t.epoch) return node_;
  if (epoch_ == 0) fail_at(where, "tensor: an absent tensor was used", {}, "assign a value to it first");
  fail_dead(where);
}

bool Tensor::requires_grad(Site where) const {
  if (value_ && !value_->place.on(tape().epoch)) return false;
  return tape().nodes[node(where)].has(Node::requires_grad);
}

const std::byte* Tensor::bytes(Site where) const {
  if (!value_ || !value_->memory) {
    if (recording())
      fail_at(where, "tensor: a value was asked for inside run", "the step is only being recorded",
              "return the tensor from the step function and read it afterwards");
    if (!value_) node(where);  // dead or absent: raises
    flush();
  }
  if (!value_) fail_dead(where);
  if (!value_->memory) fail_pending_elsewhere(where);
  const std::byte* const fetched = value_->memory->host() + value_->offset;
  look_at_watched();
  return fetched;
}

template <class T>
std::vector<T> Tensor::to_stored(Site where) const {
  const std::byte* data = bytes(where);
  std::vector<T> out(static_cast<std::size_t>(numel(where)));
  visit_dtype(dtype(where), [&](auto from) { convert_all<T, decltype(from)>(data, numel(where), out.data()); });
  return out;
}
template std::vector<float> Tensor::to_stored(Site) const;
template std::vector<double> Tensor::to_stored(Site) const;
template std::vector<std::int32_t> Tensor::to_stored(Site) const;
template std::vector<std::int64_t> Tensor::to_stored(Site) const;
template std::vector<std::uint8_t> Tensor::to_stored(Site) const;

double Tensor::item(Site where) const {
  if (dead()) fail_dead(where);
  if (const Shape s = shape(where); s.numel() != 1)
    fail_at(where, "item: the tensor has not one element", to_string(s), "reduce it first, or use to_host()");
  return to_host<double>(where)[0];
}

Arg::Arg(const State& state, Site where) : tensor_(state.read(where)), where_(where) {}

Arg::Arg(const Scalar& scalar, Site where) : where_(where) {
  static const Expr body = expr::slot(0);
  static const std::int64_t name = name_id("scalar");
  const double value = scalar.value();
  tensor_ = record_body(name, body, {}, {&value, 1}, Shape{}, DType::f32, where);
}

}  // namespace weft
