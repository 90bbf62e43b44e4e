// Ops whose CUDA kernel a user writes. The object is made once, and lives as long as the program; calling `custom` with it
// records a node like any op's:
//
// ```cpp
// const CustomOp kSquaredRelu({
//     .name = "squared_relu",
//     .inputs = {{"x"}},
//     .outputs = {"y"},
//     .integers = {"n"},
//     .cuda = R"(
// extern "C" __global__ void __launch_bounds__(256) KERNEL(PARAMETERS) {
//   const i64 i = i64(blockIdx.x) * 256 + threadIdx.x;
//   if (i >= a.n) return;
//   const real x = max_of(real(read_real(a.x + i)), real(0));
//   write_real(a.y + i, x * x);
// })",
//     .launch = [](const CustomCall& c) { return CustomLaunch::of(c.integers[0], 256); },
//     .gradient = [](const CustomGrad& g) { return std::vector{2 * relu(g.input(0)) * g.upstream()}; },
// });
// Tensor squared_relu(Arg x) { return custom(kSquaredRelu, {x}, {{x.shape(), x.dtype()}}, {.integers = {x.numel()}}); }
// ```
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/op.h"

namespace weft {

// What a call gives to the text, in the order of the names in CustomOptions.
struct CustomValues {
  std::vector<std::int64_t> facts = {};     // part of the text: each value is a kernel of its own
  std::vector<std::int64_t> integers = {};  // arguments
  std::vector<double> constants = {};       // may change every step
  std::vector<Hole> holes = {};             // {} passes the value on
};

// A call, as the function that shapes the launch sees it.
struct CustomCall {
  std::vector<Shape> inputs, outputs;  // of an input that is not given: ()
  std::vector<std::int64_t> facts, integers;
};

struct CustomLaunch {
  std::array<unsigned, 3> grid{1, 1, 1}, block{1, 1, 1};
  unsigned shared = 0;                                           // bytes of dynamic shared memory
  static CustomLaunch of(std::int64_t threads, unsigned block);  // as many blocks as hold that many threads
};

// A call on the CPU: the values in double, whatever they are stored as; `out` has the sizes of the outputs and zeros.
struct CustomData : CustomCall {
  std::vector<double> constants;
  std::vector<std::vector<double>> in, out;
  std::vector<std::function<double(std::int64_t element, double value)>> holes;  // what each makes of a value at an element
};

// What a gradient rule sees.
class CustomGrad {
 public:
  Tensor input(int i) const { return vjp_.input(i); }
  Tensor output(int k = 0) const { return vjp_.output(k); }
  Tensor upstream(int k = 0) const;                  // the gradient of output k; zeros if nothing depends on it
  bool needs(int i) const { return vjp_.needs(i); }  // input i wants a gradient
  // The gradient before hole h, from the values that the kernel gave to it and the gradient of its results (each of the shape
  // of its output); what the hole captures receives its gradient. The rule must ask for it if that wants one.
  Tensor before_hole(int h, const Tensor& value, const Tensor& upstream) const;
  const CustomValues& values() const { return values_; }  // of the call

 private:
  friend class CustomOp;
  CustomGrad(Vjp& vjp, CustomValues values) : vjp_(vjp), values_(std::move(values)) {}
  Vjp& vjp_;
  CustomValues values_;
  mutable std::uint32_t passed_ = 0;  // bit h: before_hole(h) was asked for
};

struct CustomInput {
  enum Kind : std::uint8_t { real, integer, boolean };
  std::string name;
  Kind kind = real;
  int rank = -1;  // -1: any
  bool optional = false;
};

// A place of the kernel that a call fills with an expression of one value (see `hole`): in the text NAME<1>(a, row, col, value,
// result) with const real (&value)[1], real (&result)[1], where `col` is the last coordinate of output `output` and `row`
// numbers the others, row-major. It must not be called outside of the output.
struct CustomHole {
  std::string name;
  int output = 0;
};

struct CustomOptions {
  std::string name;                         // in errors and of the kernel
  std::vector<CustomInput> inputs;          // dense, row-major: a.NAME, of the type that it is stored as
  std::vector<std::string> outputs;         // likewise, all there
  std::vector<std::string> facts = {};      // constexpr int NAME
  std::vector<std::string> integers = {};   // a.NAME, i64
  std::vector<std::string> constants = {};  // a.NAME(), real
  std::vector<CustomHole> holes = {};       // at most 4
  std::string cuda;                         // defines KERNEL; what a text may use stands in jit/cuda_text.h and jit/prelude.cuh
  std::function<CustomLaunch(const CustomCall&)> launch;
  std::function<void(CustomData&)> cpu = {};  // serial and in double: for tests, and for machines without a GPU
  // One tensor an input, of its shape; absent where no gradient flows. Without a rule a gradient that is needed is an error.
  // What it records is differentiated for a second derivative.
  std::function<std::vector<Tensor>(const CustomGrad&)> gradient = {};
};

class CustomOp {
 public:
  // Usage errors: names that are no identifiers, no text, no launch, too many holes or a hole of no output.
  explicit CustomOp(CustomOptions options, Site where = Site::current());

 private:
  friend Tensor custom(const CustomOp&, std::initializer_list<Arg>, std::vector<Out>, CustomValues, Site);
  static void differentiate(Vjp& v);
  static const Op& op();
  std::int64_t id_;  // in the node; options are kept for the life of the process
};

// Records the op and returns its first output; output_of(result, k) is output k. Errors: other numbers of inputs, outputs or
// values than the op has, an input of another kind or rank.
Tensor custom(const CustomOp& op, std::initializer_list<Arg> inputs, std::vector<Out> outputs, CustomValues values = {},
              Site where = Site::current());

}  // namespace weft
