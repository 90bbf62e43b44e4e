#include "autograd/hole.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/op.h"
#include "jit/diff.h"

namespace weft {

// ---- recording. Ints of a hole: [roots, captured, first_input, first_slot, slots, root ids...] ------------------------------

namespace {
constexpr int kHoleHeader = 5;

// Where the ints of hole h begin; h == number of holes gives the first plain int.
std::size_t hole_begin(std::span<const std::int64_t> ints, int h) {
  std::size_t at = 0;
  for (; h > 0; --h) at += kHoleHeader + std::size_t(ints[at]);
  return at;
}

}  // namespace

Recorder::Recorder(const Op& op, Site where) : op_(op), where_(where) { before_record(); }

Recorder& Recorder::input(const Tensor& t) {
  inputs_.push_back(t ? t.node(where_) : Tape::kNone);
  return *this;
}

Recorder& Recorder::hole(int h, const Hole& filled, const Shape& space) {
  const HoleSpec& spec = op_.holes[h];
  if (h != holes_++) fail_at(where_, fmt::format("{}: holes must be recorded in order", op_.name), std::string(spec.name));
  for (const Expr root : filled.roots)
    if (root.coordinates() > 1)
      fail_at(where_, fmt::format("{}: hole '{}' has no index {}", op_.name, spec.name, root.coordinates() - 1),
              fmt::format("its space is {}", spec.space), "index 0 is the element of the space, in row-major order");
  for (std::size_t k = 0; k < filled.captured.size(); ++k) {
    const Tensor& c = filled.captured[k];
    if (!c)
      fail_at(where_, fmt::format("{}: hole '{}' captures an absent tensor", op_.name, spec.name),
              fmt::format("captured {}", k));
    if (!broadcasts_to(c.shape(), space))
      fail_at(where_, fmt::format("{}: a tensor captured by hole '{}' does not broadcast to its space", op_.name, spec.name),
              fmt::format("captured {} is {}, the space {} is {}", k, to_string(c.shape()), spec.space, to_string(space)),
              "give it the shape of the space, or one that broadcasts to it");
    if (!spec.gradients && c.requires_grad())
      fail_at(where_, fmt::format("{}: hole '{}' gives no gradient to what it captures", op_.name, spec.name),
              fmt::format("captured {} requires a gradient", k), "detach() it, or apply the function outside the op");
  }
  for (const std::size_t header :
       {filled.roots.size(), filled.captured.size(), inputs_.size(), constants_.size(), filled.constants.size()})
    ints_.push_back(std::int64_t(header));
  for (const Expr root : filled.roots) ints_.push_back(root.id());
  for (const Tensor& c : filled.captured) input(c);
  for (const double c : filled.constants) constants_.push_back(c);
  return *this;
}

Recorder& Recorder::integer(std::int64_t value) {
  ints_.push_back(value);
  return *this;
}

Recorder& Recorder::constant(double value) {
  constants_.push_back(value);
  return *this;
}

Recorder& Recorder::out(const Shape& shape, DType dtype) {
  outs_.push_back({shape, dtype});
  return *this;
}

Tensor Recorder::record() { return handle(tape().record(op_, inputs_, outs_, ints_, constants_, where_)); }

// ---- holes of a recorded node -----------------------------------------------------------------------------------------------

HoleView hole_of(const Tape& tape, NodeId id, int h) {
  const auto ints = tape.ints_of(id).subspan(hole_begin(tape.ints_of(id), h));
  HoleView view;
  for (std::int64_t r = 0; r < ints[0]; ++r) view.roots.push_back(Expr::from_id(std::uint32_t(ints[kHoleHeader + r])));
  view.captured = int(ints[1]);
  view.first_input = int(ints[2]);
  view.first_slot = int(ints[3]);
  view.slots = int(ints[4]);
  return view;
}

std::span<const std::int64_t> plain_ints(const Tape& tape, NodeId id) {
  const auto ints = tape.ints_of(id);
  const std::size_t holes = tape.op(id).holes.size();
  return holes == 0 ? ints : ints.subspan(hole_begin(ints, int(holes)));
}

// ---- gradients --------------------------------------------------------------------------------------------------------------

namespace {

// The derivative of a hole body(value, captured...) as expressions of (value, upstream, captured...): distinct roots,
// the first by the value; which[k] is the root of captured tensor k, -1 where its gradient is not wanted or zero.
struct HoleGradient {
  Few<Expr, 10> roots;
  Few<int, 8> which;
};

// Bit k of `wanted`: the gradient by captured tensor k.
HoleGradient differentiate(Expr body, std::size_t captured, std::uint32_t wanted) {
  std::vector<std::optional<Expr>> inputs(captured + 1);
  for (const Expr e : topological(std::span(&body, 1)))  // captured tensors move up one place
    if (e.op() == ExprOp::input && e.index() > 0 && e.index() <= std::int64_t(captured))
      inputs[std::size_t(e.index())] = expr::input(int(e.index()) + 1, e.type());
  std::vector<int> wrt = {0};
  for (std::size_t k = 0; k < captured; ++k)
    if (wanted >> k & 1) wrt.push_back(int(k) + 2);
  const std::vector<Expr> all = diff(substitute(body, inputs), expr::input(1), wrt);
  HoleGradient out{{all[0]}, {}};
  for (std::size_t k = 0, at = 1; k < captured; ++k) {
    int root = -1;
    if (const Expr e = wanted >> k & 1 ? all[at++] : Expr(); !(e == Expr())) {
      root = int(std::find(out.roots.begin(), out.roots.end(), e) - out.roots.begin());
      if (root == int(out.roots.size())) out.roots.push_back(e);
    }
    out.which.push_back(root);
  }
  return out;
}

// The same, remembered: a model differentiates the same few bodies at every step.
const HoleGradient& hole_gradient(Expr body, std::size_t captured, std::uint32_t wanted) {
  thread_local std::unordered_map<std::uint64_t, HoleGradient> known;
  const std::uint64_t key = std::uint64_t(body.id()) << 16 | wanted << 8 | captured;
  const auto found = known.find(key);
  return found != known.end() ? found->second : known.emplace(key, differentiate(body, captured, wanted)).first->second;
}

}  // namespace

HoleInVjp::HoleInVjp(Vjp& v, int h, const Hole& filled, const Shape& space, DType real, int first, Outs& outs) {
  if (!filled.filled()) return;
  std::uint32_t wanted = 0;
  for (std::size_t k = 0; k < filled.captured.size(); ++k) wanted |= std::uint32_t(v.needs(v.hole_input(h, int(k)))) << k;
  const HoleGradient& found = hole_gradient(filled.roots[0], filled.captured.size(), wanted);
  gradient = {found.roots, filled.captured, filled.constants};
  which_ = found.which;
  for (std::size_t r = 0; r < gradient.roots.size(); ++r) outputs.push_back(r == 0 ? first : -1);
  for (std::size_t k = 0; k < which_.size(); ++k) {
    if (which_[k] < 0) continue;
    const Tensor& c = filled.captured[k];
    const DType dtype = c.shape() == space ? c.dtype() : real;  // what is summed afterwards is not rounded before
    int& output = outputs[std::size_t(which_[k])];
    if (output < 0)
      output = int(outs.size()), outs.push_back({space, dtype});
    else
      outs[std::size_t(output)].dtype = widest(outs[std::size_t(output)].dtype, dtype);
  }
}

void HoleInVjp::add(Vjp& v, int h, const Tensor& first_output) const {
  for (std::size_t k = 0; k < which_.size(); ++k) {
    if (which_[k] < 0) continue;
    const Tensor each = output_of(first_output, outputs[std::size_t(which_[k])]);
    v.add(v.hole_input(h, int(k)), sum_to(each, gradient.captured[k].shape(), v.where()));
  }
}

}  // namespace weft
