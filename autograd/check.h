// Checking ops: gradients against finite differences, values against a reference, on shapes that break kernels. For tests of
// weft's own ops and of a user's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "autograd/tensor.h"

namespace weft {

using OpFunction = std::function<Tensor(const std::vector<Tensor>&)>;

struct GradcheckOptions {
  double step = 1e-6;
  double absolute = 1e-6, relative = 1e-5;  // what differences of this step reach in f64
  int elements = 24;                        // of each input, chosen by a fixed rule; all if there are fewer
};

// Compares the gradient of sum(fn(inputs) * w), w fixed and irregular, by each real input with central differences. Inputs are
// f64 (integers pass through). Throws ErrorKind::training naming input, element and both numbers.
void gradcheck(const OpFunction& fn, const std::vector<Tensor>& inputs, GradcheckOptions options = {});

// One input of a case: its shape and where its values come from.
struct OpInput {
  Shape shape;
  double low = -2, high = 2;        // uniform, irregular but fixed
  std::vector<double> values = {};  // if given: these, repeated
  DType integer = DType::f32;       // i32 or i64: whole numbers in [low, high], not converted between precisions
  bool differentiable = true;       // take part in the gradient check
};

struct OpCase {
  std::string name;
  std::vector<OpInput> inputs;
  bool gradient = true;  // false where finite differences do not apply (kinks); gradients must then still be finite
};

// The value in double: values of each input and its shape, to the values of the result.
using Reference = std::function<std::vector<double>(const std::vector<std::vector<double>>&, const std::vector<Shape>&)>;

struct CheckOptions {
  double f64 = 1e-10, f32 = 2e-5, bf16 = 3e-2;  // of the largest magnitude in the result
  bool check_bf16 = true;
  bool copies = false;  // the value's elements are the inputs': equal on every device
  GradcheckOptions gradcheck = {};
};

// For every case: the value in f64, f32 and bf16 against the reference (skipped if null), the gradient by finite differences
// in f64, finite gradients wherever the value is finite, equal bits on a second run, with one and with three threads, and with
// fusion off. On a GPU, emulated or not: value and gradients in f64, f32 and bf16 against those of the CPU, or the above where
// the CPU cannot run it. Throws ErrorKind::training naming the case.
void check_op(const OpFunction& fn, const Reference& reference, const std::vector<OpCase>& cases, CheckOptions options = {});

// For every case: value and gradients in f64, f32 and bf16 on two devices, within the tolerances; integers are equal.
void check_devices(const OpFunction& fn, const std::vector<OpCase>& cases, const CheckOptions& options, Device a, Device b);

// The fixed irregular numbers the checks use: n values in [low, high].
std::vector<double> irregular(std::int64_t n, double low, double high, std::uint64_t stream = 0);

}  // namespace weft
