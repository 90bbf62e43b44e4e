// AdamW (arXiv:1711.05101) as one op of the step's graph: it clips, decays and updates all parameters in one pass over memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "autograd/host_tensor.h"
#include "autograd/state.h"

namespace weft {

// The defaults are those that Mamba was trained with (arXiv:2312.00752, appendix E.2).
struct AdamWOptions {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;  // of parameters with Param::decay()
  double clip_norm = 1.0;     // of the gradients' global norm; 0: no clipping
};

// With g the gradient, scaled by min(1, clip_norm / (norm + 1e-6)), and t the step from 1 on:
//   p <- p (1 - lr wd),  m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2
//   p <- p - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
// Parameters are all f32 or all f64; the moments of all of them lie in one State.
class AdamW {
 public:
  explicit AdamW(std::vector<Param> params, AdamWOptions options = {}, Site where = Site::current());

  // Records the update with the gradients of this step's backward and of earlier, pending ones; params without a
  // gradient are left as they are. Outside `run` it is executed at once. Errors: no param has a gradient.
  void step(Site where = Site::current());
  void zero_grad();  // forgets pending gradients

  double lr() const { return options_.lr; }
  void set_lr(double lr) { options_.lr = lr; }         // from the next step() on; costs nothing
  std::int64_t step_count() const { return *steps_; }  // steps executed

  // The global norm of the gradients before clipping, a scalar: that of the last step() recorded, so return it from the step
  // function.
  Tensor grad_norm() const { return grad_norm_; }

  // The first step (from 1) whose gradient norm was not finite; 0: none. From that step on nothing is updated until it
  // is cleared. Read it between steps.
  std::int64_t bad_step() const;
  void clear_bad_step();

  // "m.NAME" and "v.NAME" of each parameter, "step", "bad_step". Loading is exact and strict.
  TensorMap state_dict() const;
  void load_state_dict(const TensorMap& tensors);

 private:
  struct Row {
    Param param;
    std::int64_t offset;  // of its moments
  };
  std::vector<Row> rows_;
  std::int64_t size_ = 0;  // elements of all parameters, each rounded up to 4
  State moments_;          // (2, size_): m, then v
  AdamWOptions options_;
  State bad_step_;  // i64 scalar, written by the update
  std::shared_ptr<std::int64_t> steps_ = std::make_shared<std::int64_t>(0);
  Tensor grad_norm_;
};

}  // namespace weft
