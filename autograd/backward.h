// Gradients: reverse traversal of the tape, appending ordinary nodes to it.
#pragma once

#include <string_view>
#include <vector>

#include "autograd/state.h"
#include "autograd/tape.h"
#include "autograd/tensor.h"

namespace weft {

// Adds d(loss)/d(p) to the gradient of every trainable Param that `loss` (one element, real) depends on. An optimizer's step
// in the same run consumes it; otherwise it is kept in the Param's gradient State, marked pending, and the next backward adds
// to it.
void backward(Arg loss);

// d(loss)/d(x) for each x, as tensors; zeros where loss does not depend on x. Params are passed by their read: grad(loss, {w}).
std::vector<Tensor> grad(Arg loss, std::vector<Arg> wrt);
// With an upstream gradient instead of a loss of one element.
std::vector<Tensor> grad(Arg output, Arg upstream, std::vector<Arg> wrt);

// For optimizers: the gradient of `param`, of this recording and of earlier runs together, which the caller thereby consumes;
// absent if there is none.
Tensor take_gradient(const Param& param);

// Adds gradients that nobody consumed to the Params' gradient States; called when a recording ends.
void keep_gradients();

// While alive, recorded nodes require no gradient.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
template <class F>
auto no_grad(F&& f) {
  NoGrad scope;
  return f();
}

// Marks what f records: backward evaluates it again (random draws included) instead of keeping its intermediate values.
class Checkpoint {
 public:
  Checkpoint();
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

 private:
  bool outer_;
};
template <class F>
auto checkpoint(F&& f) {
  Checkpoint scope;
  return f();
}

// The first tensor argument and the first result of the last call of the module at `path` ("layers.23.mixer") in this
// recording. An error names the modules that were called.
struct Tap {
  Tensor input, output;
};
Tap tap(std::string_view path, Site where = Site::current());

}  // namespace weft
