// AdamW (arXiv:1711.05101) as one op of the step's graph: it clips, decays and updates all parameters in one pass over memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/host_tensor.h"
#include "autograd/state.h"
#include "optim/data_parallel.h"
#include "optim/shards.h"

namespace weft {

// What happens after a step whose gradient norm is not finite, which is left out as all later ones are. The host knows of it as
// soon as the step has run: on the CPU at once, on a GPU some steps later or when a value is fetched; it never waits for it.
enum class OnBadStep {
  fail,  // the step(), run or item() that knows of it first throws an Error (ErrorKind::training), once
  warn,  // it prints a line instead
  poll,  // nothing: the program asks bad_step()
};

// The defaults are those that Mamba was trained with (arXiv:2312.00752, appendix E.2).
struct AdamWOptions {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;  // of parameters with Param::decay()
  double clip_norm = 1.0;     // of the gradients' global norm; 0: no clipping
  OnBadStep on_bad_step = OnBadStep::fail;
  // In a process that has joined ranks (jit/ranks/ranks.h), ZeRO-1 (arXiv:1910.02054): step() takes the gradients of this
  // rank's part of the batch and sums them itself (not sum_gradients), as `sums` says; each rank keeps the
  // moments of its part of all elements, updates that part, and gathers the others'. Bits are those without, as far as sums
  // over the ranks are. Otherwise it changes nothing.
  bool sharded = false;
  SumOptions sums = {};  // of a sharded update
};

// With g the gradient, scaled by min(1, clip_norm / (norm + 1e-6)), and t the number of the parameter's updates, this one
// included (a step without a gradient for it, or one that is left out, is none):
//   p <- p (1 - lr wd),  m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2
//   p <- p - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
// Equal gradients give equal bits on all devices. Parameters are all f32 or all f64; the moments of all of them lie in one
// State.
class AdamW {
 public:
  explicit AdamW(std::vector<Param> params, AdamWOptions options = {}, Site where = Site::current());
  AdamW(const AdamW&) = default;  // shares moments and steps; so does what was moved from
  AdamW& operator=(const AdamW&) = default;

  // Records the update with the gradients of this step's backward and of earlier, pending ones; params without a
  // gradient are left as they are. Outside `run` it is executed at once. Errors: no param has a gradient; an earlier step was
  // bad (OnBadStep::fail).
  void step(Site where = Site::current());
  void zero_grad();  // forgets pending gradients

  double lr() const { return options_.lr; }
  void set_lr(double lr, Site where = Site::current());         // from the next step() on; costs nothing
  std::int64_t step_count() const { return progress_->steps; }  // steps executed, those that were left out too

  // The global norm of the gradients before clipping, a scalar: that of the last step() recorded, so return it from the step
  // function.
  Tensor grad_norm() const { return grad_norm_; }

  // The first step (from 1) whose gradient norm was not finite; 0: none. From that step on nothing is updated until it
  // is cleared. Read it between steps; it waits for the last one.
  std::int64_t bad_step() const;
  void clear_bad_step();

  std::size_t moment_bytes() const { return moments_.impl()->memory.size(); }  // of this rank

  // "m.NAME", "v.NAME" and "powers.NAME" (b1^t, b2^t in f64) of each parameter, "step", "bad_step". Loading is exact and
  // strict, but for a state without any powers, as it was once saved: there t is "step" for every parameter. Of sharded moments
  // rank 0 has all, the other ranks nothing; all call it.
  TensorMap state_dict() const;
  void load_state_dict(const TensorMap& tensors);

 private:
  struct Row {
    Param param;
    std::int64_t offset;  // of its moments
  };
  struct Saved {  // a tensor of a row in a checkpoint: elements [first, first + count) of a State
    std::string name;
    const State* state;
    std::int64_t first, count;
    std::vector<std::int64_t> shape;
  };
  std::array<Saved, 3> saved(const Row& row) const;
  void record_update(std::span<const Tensor> gradients, std::span<const int> updated, std::span<const double> constants,
                     Site where);
  void record_sharded(std::span<const Tensor> gradients, std::span<const int> updated, std::span<const double> constants,
                      Site where);
  std::vector<std::byte> whole_moments() const;
  std::vector<std::byte> own_moments(const std::vector<std::byte>& whole) const;
  struct Progress {  // shared by copies
    OnBadStep on_bad_step;
    State bad_step;  // i64 scalar, written by the update
    std::int64_t steps = 0;
    bool told = false;  // somebody knows of the bad step
    Site where = {};    // of the last step()
    void look();
  };
  std::vector<Row> rows_;
  std::int64_t size_ = 0;                 // elements of all parameters, each rounded up to 4
  std::shared_ptr<const Shards> shards_;  // of AdamWOptions::sharded on several ranks
  State moments_;                         // (2, size_), or of a rank (2, shards_->size): m, then v
  State powers_;                          // (rows, 2): b1^t and b2^t of each parameter, f64, multiplied on by the update
  AdamWOptions options_;
  std::shared_ptr<Progress> progress_;
  std::shared_ptr<const std::function<void()>> look_;  // at progress_, see watch
  Tensor grad_norm_;
};

}  // namespace weft
