// A hole by itself: its expression at each place of a tensor, where an op that has the hole is made of other ops.
#pragma once

#include "autograd/hole.h"
#include "autograd/lowering.h"
#include "autograd/op.h"
#include "autograd/tape.h"
#include "autograd/tensor.h"

namespace weft {

// What is recorded while it lives is a part of the op at this place.
class RecordedAt {
 public:
  explicit RecordedAt(Site where) : first_(NodeId(tape().nodes.size())), where_(where) {}
  ~RecordedAt() {
    for (std::size_t id = first_; id < tape().nodes.size(); ++id) tape().origins[id].where = where_;
  }
  RecordedAt(const RecordedAt&) = delete;
  RecordedAt& operator=(const RecordedAt&) = delete;

 private:
  NodeId first_;
  Site where_;
};

// The rules of an op of one hole over the shape of input 0, which is its value:
//   register_op({.name = "ssd_step", .vjp = filled_vjp, .lower = lower_filled, .cuda = lower_filled, .holes = kStepHoles})
void filled_vjp(Vjp& v);
void lower_filled(Lowering& l);
// hole(value), over the shape of the value; the value itself if the hole is not filled.
Tensor filled(const Op& op, const Hole& hole, const Tensor& value, Site where);

}  // namespace weft
