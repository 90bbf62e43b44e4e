// Pieces of the shape and dtype checks that every structured op makes when it is called.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "autograd/lowering.h"
#include "autograd/tensor.h"

namespace weft {

// "f32 (8, 512)"
inline std::string describe(const Tensor& t) {
  return t ? fmt::format("{} {}", name_of(t.dtype()), to_string(t.shape())) : std::string("absent");
}

inline void require_real(Site where, std::string_view op, std::string_view name, const Tensor& t) {
  if (!t) fail_at(where, fmt::format("{}: {} is absent", op, name), {}, "pass a tensor");
  if (!is_real(t.dtype()))
    fail_at(where, fmt::format("{}: {} is not real", op, name), fmt::format("{} {}", name, describe(t)), "cast() it to f32");
}

inline void require_integer(Site where, std::string_view op, std::string_view name, const Tensor& t) {
  if (!t) fail_at(where, fmt::format("{}: {} is absent", op, name), {}, "pass a tensor");
  if (!is_integer(t.dtype()))
    fail_at(where, fmt::format("{}: {} must be integers", op, name), fmt::format("{} {}", name, describe(t)),
            "cast() it to i32 or i64");
}

// An operand that must have exactly this shape; `against` names and shows what it must fit.
inline void require_shape(Site where, std::string_view op, std::string_view name, const Tensor& t, const Shape& shape,
                          std::string_view against_name, const Tensor& against) {
  require_real(where, op, name, t);
  if (t.shape() != shape)
    fail_at(where, fmt::format("{}: {} does not fit {}", op, name, against_name),
            fmt::format("{} {}, {} {}", name, to_string(t.shape()), against_name, to_string(against.shape())),
            fmt::format("{} must be {}", name, to_string(shape)));
}

struct Documents;
// Documents, if there are any, for an operand (batch, time, ...).
void require_segments(Site where, std::string_view op, const Documents& segments, const Shape& shape);

struct NamedOperand {
  std::string_view name;
  const Tensor& tensor;  // may be absent
};

// f64 goes with f64 only: that an f64 tensor meets f32 weights is a mistake more often than it is meant. bf16 goes with f32.
inline void require_one_precision(Site where, std::string_view op, std::initializer_list<NamedOperand> operands) {
  int wide = 0, present = 0;
  for (const NamedOperand& o : operands)
    if (o.tensor) ++present, wide += o.tensor.dtype() == DType::f64;
  if (wide == 0 || wide == present) return;
  std::string text;
  for (const NamedOperand& o : operands)
    if (o.tensor) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", o.name, describe(o.tensor));
  fail_at(where, fmt::format("{}: some operands are f64 and some are not", op), text,
          "cast() the tensor to f32, or make the layer with .dtype = DType::f64");
}

// The dtype of statistics, states and losses: fp64 where any operand is f64, else fp32.
template <class... T>
DType compute_dtype(const T&... operands) {
  return ((operands && operands.dtype() == DType::f64) || ...) ? DType::f64 : DType::f32;
}

// Calls f(T{}) with the type the kernels of this node compute in.
template <class F>
void in_compute_type(const Lowering& lowering, F&& f) {
  if (lowering.in_double())
    f(double{});
  else
    f(float{});
}

// What both operands of a product are read as. A bf16 operand makes its partner, usually an fp32 master weight, bf16 too:
// tensor cores take one type, and the CPU computes what they do.
inline DType operand_type(const Lowering& l) {
  if (l.in_double()) return DType::f64;
  return l.dtype(0) == DType::bf16 || l.dtype(1) == DType::bf16 ? DType::bf16 : DType::f32;
}

}  // namespace weft
