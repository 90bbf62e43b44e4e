#include "autograd/hole.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/lowering.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/state.h"
#include "jit/affine.h"
#include "jit/diff.h"

namespace weft {

// ---- what a body captures ---------------------------------------------------------------------------------------------------

namespace {
thread_local HoleScope* innermost_hole = nullptr;
}

HoleScope::HoleScope() : outer_(std::exchange(innermost_hole, this)) {}
HoleScope::~HoleScope() { innermost_hole = outer_; }
HoleScope* HoleScope::innermost() { return innermost_hole; }

int HoleScope::capture(const Tensor& tensor, Site where) {
  for (std::size_t k = 0; k < captured_.size(); ++k)
    if (captured_[k] && tensor && captured_[k].node(where) == tensor.node(where)) return int(k);
  captured_.push_back(tensor);
  return int(captured_.size()) - 1;
}

Hole HoleScope::hole(std::initializer_list<Expr> roots, Site where) const {
  const auto at_most = [&](std::size_t most, std::size_t given, const char* what, const char* hint) {
    if (given > most)
      fail_at(where, fmt::format("a hole holds too many {}", what), fmt::format("{} of at most {}", given, most), hint);
  };
  at_most(kMostCaptured, captured_.size(), "tensors",
          "join some to one tensor and index it, or compute with them before the op");
  at_most(kMostConstants, values().size(), "constants and Scalars", "put them into a tensor and index it: table(k)");
  Hole h;
  h.roots.append(std::span(roots.begin(), roots.size()));
  h.captured.append(captured_);
  h.constants.append(values());
  return h;
}

void detail::fail_hole_arity(std::size_t captured, Site where) {
  fail_at(where, "hole: the function does not take one value and each captured tensor", fmt::format("{} captured", captured),
          "declare one Expr parameter for the value and one for each captured tensor");
}

Expr Tensor::at(const Subscripts& subscripts) const {
  const Site where = subscripts[0].where();
  std::vector<Expr> given;
  for (const Subscript& s : subscripts) {
    if (!s.expr()) break;
    if (s.expr()->type() != ExprType::integer)
      fail_at(where, fmt::format("a subscript is {}", s.expr()->type() == ExprType::real ? "real" : "boolean"),
              to_string(*s.expr()), "to_integer() it");
    given.push_back(*s.expr());
  }
  HoleScope* scope = HoleScope::innermost();
  if (!*this) fail_at(where, "an absent tensor is indexed");
  if (dead()) node(where);  // says so
  if (!scope)
    fail_at(
        where, "a tensor is indexed outside of a hole", to_string(shape()),
        "index it inside the function that fills a hole of an op: {.delta = [&](Expr v, Index b, Index t, Index i) {...}}; a "
        "pointwise op cannot index: its tensors are its operands");
  if (int(given.size()) != rank())
    fail_at(where, "a tensor is indexed with the wrong number of subscripts",
            fmt::format("{} has {} axes, indexed with {}", to_string(shape()), rank(), given.size()),
            "give one subscript for each axis");
  return expr::load(scope->capture(*this, where), expr_type(dtype()), given);
}

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

namespace {

std::vector<std::string> split(std::string_view names) {
  std::vector<std::string> out(1);
  for (const char c : names) c == ' ' ? void(out.emplace_back()) : out.back().push_back(c);
  return out;
}

// "b, t, i": of a space with so many coordinates.
std::string coordinates_of(const HoleSpec& spec, int rank) {
  std::vector<std::string> names = split(spec.coordinates);
  names.resize(std::min(names.size(), std::size_t(rank)));
  return fmt::format("{}", fmt::join(names, ", "));
}

// With the names of values and coordinates in place of x0, x1, ... and i0, i1, ...
std::string named(Expr e, const HoleSpec& spec) {
  const std::vector<std::string> coordinates = split(spec.coordinates);
  const std::string text = to_string(e);
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const bool begins = at == 0 || !(std::isalnum(static_cast<unsigned char>(text[at - 1])) || text[at - 1] == '_');
    const auto k = at + 1 < text.size() ? std::size_t(text[at + 1] - '0') : text.size();
    if (begins && text[at] == 'i' && k < coordinates.size())
      out += coordinates[k], ++at;
    else if (begins && text[at] == 'x' && k < spec.names.size() && !spec.names[k].empty())
      out += spec.names[k], ++at;
    else
      out += text[at];
  }
  return out;
}

// What the subscripts of a load depend on.
struct Footprint {
  std::uint32_t coordinates = 0;  // bit c: coordinate c
  bool difference = false;        // row and column by their difference

  // Row and column are the last two of `rank` coordinates.
  void add(Expr e, int rank) {
    if (const std::optional<Affine> affine = affine_of(e); affine && is_difference(*affine, rank)) {
      difference = true;
      for (int c = 0; c + 2 < rank; ++c) coordinates |= std::uint32_t(affine->step[std::size_t(c)] != 0) << c;
      return;
    }
    if (e.op() == ExprOp::index) coordinates |= 1u << e.index();
    for (int k = 0; k < e.arity(); ++k) add(e.arg(k), rank);
  }
  static bool is_difference(const Affine& affine, int rank) {
    if (rank < 2) return false;
    const std::int64_t row = affine.step[std::size_t(rank - 2)], column = affine.step[std::size_t(rank - 1)];
    return row != 0 && row == -column;
  }
};

std::optional<SumForm> form_of(Expr load, int rank) {
  Footprint footprint;
  footprint.add(load, rank);
  const bool row = footprint.coordinates >> (rank - 2) & 1, column = footprint.coordinates >> (rank - 1) & 1;
  if (int(row) + int(column) + int(footprint.difference) > 1) return std::nullopt;
  return footprint.difference ? SumForm::difference : row ? SumForm::row : column ? SumForm::column : SumForm::none;
}

// The form to which the kernel sums the gradient of a load; an error if it cannot.
SumForm summed_form(std::string_view op, const HoleSpec& spec, Expr load, const Shape& shape, int rank, Site where) {
  const std::optional<SumForm> form = form_of(load, rank);
  if (form && (spec.sums >> int(*form) & 1)) return *form;
  std::vector<std::string> subscripts;
  for (int axis = 0; axis < load.arity(); ++axis) subscripts.push_back(named(load.arg(axis), spec));
  const std::vector<std::string> names = split(spec.coordinates);
  const std::string &row = names[std::size_t(rank - 2)], &column = names[std::size_t(rank - 1)];
  fail_at(where, fmt::format("{}: the {} gives no gradient to what it captures", op, spec.name),
          fmt::format("captured {}, {}, is indexed by ({})", load.index(), to_string(shape), fmt::join(subscripts, ", ")),
          fmt::format("index it by {0} - {1}, by {0} or by {1}, or detach() it", row, column));
}

// What a hole is recorded with. The same bodies are recorded at every step, so what they become is remembered.
class Contract {
 public:
  // `hidden`: some places may not be seen.
  Contract(const Op& op, const HoleSpec& spec, const Hole& hole, const Shape& space, bool hidden, Site where)
      : op_(op), spec_(spec), hole_(hole), space_(space), hidden_(hidden), where_(where) {}

  // The roots, with a load for every captured tensor; refuses what the contract does not allow.
  const Few<Expr, kMostRoots>& enforce() {
    for (std::size_t k = 0; k < hole_.captured.size(); ++k) check_captured(k);
    const Few<Expr, kMostRoots>& roots = checked_roots();
    if (spec_.sums)
      for (const Expr e : topological(roots))
        if (e.op() == ExprOp::load) check_form(e);
    return roots;
  }

 private:
  const Few<Expr, kMostRoots>& checked_roots() {
    thread_local std::map<std::vector<std::int64_t>, Few<Expr, kMostRoots>> known;
    std::vector<std::int64_t> key = {std::int64_t(op_.id), &spec_ - op_.holes.data(), hidden_,
                                     std::int64_t(hole_.roots.size())};
    for (const Expr root : hole_.roots) key.push_back(root.id());
    const auto append = [&](const Shape& s) {
      key.push_back(s.rank());
      for (const std::int64_t d : s.dims()) key.push_back(d);
    };
    append(space_);
    for (const Tensor& c : hole_.captured) key.push_back(std::int64_t(c.dtype())), append(c.shape());
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
    Few<Expr, kMostRoots> roots;
    if (hole_.filled() && spec_.results != 0 && int(hole_.roots.size()) != spec_.results)
      refuse(fmt::format("hole '{}' gives another number of expressions", spec_.name),
             fmt::format("{} for {}", hole_.roots.size(), spec_.results));
    for (const Expr root : hole_.roots) roots.push_back(result(with_loads(root)));
    std::size_t loads = 0;
    for (const Expr e : topological(roots)) check(e), loads += e.op() == ExprOp::load;
    // Without values it may be made of a hole that reads its values, and gradients, as tensors.
    const std::size_t most = spec_.values == 0 ? kMostLoads + 4 : kMostLoads;
    if (loads > most)
      refuse(fmt::format("hole '{}' reads too many elements", spec_.name), fmt::format("{} of at most {}", loads, most),
             "compute some of it before the op, or after");
    return known.emplace(std::move(key), roots).first->second;
  }

  [[noreturn]] void refuse(const std::string& what, std::string numbers, std::string hint = {}) const {
    fail_at(where_, fmt::format("{}: {}", op_.name, what), std::move(numbers), std::move(hint));
  }

  std::string coordinates() const { return "(" + coordinates_of(spec_, space_.rank()) + ")"; }

  void check_captured(std::size_t k) const {
    const Tensor& c = hole_.captured[k];
    if (!c) refuse(fmt::format("hole '{}' captures an absent tensor", spec_.name), fmt::format("captured {}", k));
    if (!spec_.dense && !spec_.sums && c.requires_grad())
      refuse(fmt::format("the {} gives no gradient to what it captures", spec_.name),
             fmt::format("captured {}, {}, requires a gradient", k, to_string(c.shape())), "detach() it");
  }

  void check_form(Expr load) const {
    const Tensor& c = hole_.captured[std::size_t(load.index())];
    if (load.type() == ExprType::real && c.requires_grad())
      summed_form(op_.name, spec_, load, c.shape(), space_.rank(), where_);
  }

  // A further input stands for a captured tensor that is broadcast to the space.
  Expr with_loads(Expr root) const {
    return rewrite(root, [&](Expr e, Expr) -> std::optional<Expr> {
      if (e.op() != ExprOp::input || e.index() < spec_.values) return std::nullopt;
      const auto k = std::size_t(e.index() - spec_.values);
      if (k >= hole_.captured.size())
        refuse(fmt::format("hole '{}' reads an input that it was not given", spec_.name),
               fmt::format("input {} of {}", e.index(), std::size_t(spec_.values) + hole_.captured.size()));
      const Tensor& c = hole_.captured[k];
      const Shape shape = c.shape();
      if (!broadcasts_to(shape, space_))
        refuse(fmt::format("a tensor captured by hole '{}' does not broadcast to its space", spec_.name),
               fmt::format("captured {} is {}, the space {} is {}", k, to_string(shape), coordinates(), to_string(space_)),
               "give it the shape of the space, or one that broadcasts to it");
      std::vector<Expr> subscripts;
      for (int axis = 0; axis < shape.rank(); ++axis)
        subscripts.push_back(shape[axis] == 1 ? Expr(0) : expr::index(space_.rank() - shape.rank() + axis));
      const Expr load = expr::load(int(k), expr_type(c.dtype()), subscripts);
      return e.type() == ExprType::real ? to_real(load) : load;
    });
  }

  // In the type that the skeleton takes.
  Expr result(Expr root) const {
    if (spec_.result == root.type()) return root;
    if (spec_.result == ExprType::boolean)
      refuse(fmt::format("the {} is {}, not boolean", spec_.name, root.type() == ExprType::real ? "real" : "an integer"),
             named(root, spec_), "compare it: s > 0");
    if (root.type() == ExprType::boolean)
      refuse(fmt::format("the {} is boolean", spec_.name), named(root, spec_), "choose a number by it: where(c, a, b)");
    return spec_.result == ExprType::real ? to_real(root) : to_integer(root);
  }

  void check(Expr e) const {
    switch (e.op()) {
      case ExprOp::index:
        if (e.index() >= space_.rank())
          refuse(fmt::format("index {} does not exist", e.index()),
                 fmt::format("hole '{}' has coordinates {}", spec_.name, coordinates()),
                 fmt::format("take the coordinates as parameters of the function, after the {}",
                             spec_.values == 1 ? "value" : "values"));
        break;
      case ExprOp::uniform:
        if (spec_.draws) break;
        [[fallthrough]];
      case ExprOp::element:
        refuse(fmt::format("hole '{}' cannot draw", spec_.name), named(e, spec_), "apply dropout() after");
      case ExprOp::load:
        for (int axis = 0; axis < e.arity(); ++axis) check_inside(e, axis);
        break;
      default:
        break;
    }
  }

  // Where every place of the space is seen, a subscript that is known to leave its axis is a mistake. What is not known is
  // checked when the kernel runs.
  void check_inside(Expr load, int axis) const {
    const std::optional<Affine> affine = affine_of(load.arg(axis));
    if (!affine || hidden_ || space_.numel() == 0) return;
    const auto size = hole_.captured[std::size_t(load.index())].shape()[axis];
    const auto dims = space_.dims();
    for (const auto& place : {affine->lowest(dims), affine->highest(dims)}) {
      const std::int64_t subscript = affine->at(std::span(place).first(dims.size()));
      if (subscript >= 0 && subscript < size) continue;
      std::string at;
      const std::vector<std::string> names = split(spec_.coordinates);
      for (std::size_t c = 0; c < dims.size(); ++c) at += fmt::format("{}{} {}", c ? ", " : "", names[c], place[c]);
      const bool same_everywhere = load.arg(axis).op() == ExprOp::literal;
      refuse(fmt::format("hole '{}' indexes a tensor outside of it", spec_.name),
             same_everywhere
                 ? fmt::format("{} is outside of axis {}, which has {} places", subscript, axis, size)
                 : fmt::format("{} is {} of {} at {}; axis {} has {} places", named(load.arg(axis), spec_), subscript,
                               to_string(hole_.captured[std::size_t(load.index())].shape()), at, axis, size),
             "give the tensor more places, or clamp the subscript");
    }
  }

  const Op& op_;
  const HoleSpec& spec_;
  const Hole& hole_;
  const Shape& space_;
  bool hidden_;
  Site where_;
};

}  // namespace

Recorder::Recorder(const Op& op, Site where) : op_(op), where_(where) { before_record(); }

Recorder& Recorder::input(const Tensor& t) {
  inputs_.push_back(t ? t.node(where_) : Tape::kNone);
  return *this;
}

Recorder& Recorder::hole(int h, const Hole& filled, const Shape& space) {
  const HoleSpec& spec = op_.holes[h];
  if (h != holes_++) fail_at(where_, fmt::format("{}: holes must be recorded in order", op_.name), std::string(spec.name));
  const bool hidden = spec.hidden_by >= 0 && ints_[hole_begin(std::span(ints_.data(), ints_.size()), spec.hidden_by)] > 0;
  const Few<Expr, kMostRoots>& roots = Contract(op_, spec, filled, space, hidden, where_).enforce();
  for (const std::size_t header :
       {roots.size(), filled.captured.size(), inputs_.size(), constants_.size(), filled.constants.size()})
    ints_.push_back(std::int64_t(header));
  for (const Expr root : roots) ints_.push_back(root.id());
  for (const Tensor& c : filled.captured) input(c);
  for (const double c : filled.constants) constants_.push_back(c);
  return *this;
}

Recorder& Recorder::integer(std::int64_t value) {
  ints_.push_back(value);
  return *this;
}

Recorder& Recorder::integers(std::span<const int> values) {
  for (const int value : values) integer(value);
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
Recorder& Recorder::out(std::span<const Out> outs) {
  for (const Out& o : outs) out(o.shape, o.dtype);
  return *this;
}

Tensor Recorder::record(std::span<const double> known) {
  const bool same = std::ranges::equal(constants_, known);
  return handle(tape().record(op_, inputs_, outs_, ints_, same ? known : std::span<const double>(constants_), where_));
}

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

std::string describe_hole(const HoleSpec& spec, std::span<const Expr> roots, int rank) {
  std::vector<std::string> bodies;
  for (const Expr root : roots) bodies.push_back(named(root, spec));
  std::string values;
  for (int k = 0; k < spec.values; ++k) values.append(k ? ", " : "").append(spec.names[std::size_t(k)]);
  return fmt::format("{}({}; {}) = {}", spec.name, values, coordinates_of(spec, rank), fmt::join(bodies, ", "));
}

std::span<const std::int64_t> plain_ints(const Tape& tape, NodeId id) {
  const auto ints = tape.ints_of(id);
  const std::size_t holes = tape.op(id).holes.size();
  return holes == 0 ? ints : ints.subspan(hole_begin(ints, int(holes)));
}

// ---- gradients --------------------------------------------------------------------------------------------------------------

namespace {

// The derivative of a hole as expressions of (values, upstreams): distinct roots, those by the values first; loads[j] of the
// hole has the gradient roots[which[j]]. Those that are exactly zero are left out.
struct HoleGradient {
  Few<Expr, kMostRoots> roots;
  std::vector<Expr> loads;
  std::vector<int> which;
};

// Bit k of `wanted`: the gradients of the loads of captured tensor k.
HoleGradient differentiate(std::span<const Expr> body, int values, std::uint32_t wanted) {
  std::vector<Expr> wrt, upstreams;
  for (int k = 0; k < values; ++k) wrt.push_back(expr::input(k));
  for (std::size_t r = 0; r < body.size(); ++r) upstreams.push_back(expr::input(values + int(r)));
  for (const Expr e : topological(body))
    if (e.op() == ExprOp::load && e.type() == ExprType::real && (wanted >> e.index() & 1)) wrt.push_back(e);
  std::stable_sort(wrt.begin() + values, wrt.end(), [](Expr a, Expr b) { return a.index() < b.index(); });
  const std::vector<Expr> all = diff(body, upstreams, wrt);
  HoleGradient out;
  for (int k = 0; k < values; ++k) out.roots.push_back(all[std::size_t(k)]);
  for (std::size_t j = std::size_t(values); j < all.size(); ++j) {
    if (same(all[j], Expr())) continue;
    const auto found = std::find_if(out.roots.begin(), out.roots.end(), [&](Expr root) { return same(root, all[j]); });
    out.loads.push_back(wrt[j]);
    out.which.push_back(int(found - out.roots.begin()));
    if (found == out.roots.end()) out.roots.push_back(all[j]);
  }
  return out;
}

// The same, remembered: a model differentiates the same few bodies at every step.
const HoleGradient& hole_gradient(std::span<const Expr> body, int values, std::uint32_t wanted) {
  thread_local std::map<std::vector<std::uint32_t>, HoleGradient> known;
  std::vector<std::uint32_t> key = {std::uint32_t(values), wanted};
  for (const Expr root : body) key.push_back(root.id());
  const auto found = known.find(key);
  return found != known.end() ? found->second
                              : known.emplace(std::move(key), differentiate(body, values, wanted)).first->second;
}

// The tensor is read as if it were broadcast to the space: each axis by the coordinate that it is aligned with, or of size 1.
bool is_broadcast(Expr load, const Shape& shape, const Shape& space) {
  for (int axis = 0; axis < load.arity(); ++axis) {
    const int c = space.rank() - load.arity() + axis;
    if (shape[axis] == 1 ? !same(load.arg(axis), Expr(0))
                         : c < 0 || !same(load.arg(axis), expr::index(c)) || shape[axis] != space[c])
      return false;
  }
  return true;
}

bool reads_value(Expr load, int values) {
  const std::vector<Expr> all = topological(std::span(&load, 1));
  return std::any_of(all.begin(), all.end(), [&](Expr e) { return e.op() == ExprOp::input && e.index() < values; });
}

// Bit c: the subscripts depend on coordinate c.
std::uint32_t footprint_of(Expr load) {
  std::uint32_t bits = 0;
  for (const Expr e : topological(std::span(&load, 1)))
    if (e.op() == ExprOp::index) bits |= 1u << e.index();
  return bits;
}

// ---- the adjoint of general subscripts: the number of the element at each place, to which a sum is added --------------------

constexpr HoleSpec kPlaces[] = {
    {.name = "places", .coordinates = "i j k l m n", .values = 0, .result = ExprType::integer, .dense = true}};

void lower_places(Lowering& l) {
  if (const Operand out = l.output())
    l.emit_pointwise("places", l.hole(0, Shape(std::span(out.dims.data(), std::size_t(out.rank)))), out);
}
const Op& places_op = register_op({.name = "places", .lower = lower_places, .cuda = lower_places, .holes = kPlaces});

// The tensors and constants of a hole that some of its expressions use, numbered anew.
class Part {
 public:
  explicit Part(const Hole& whole) : whole_(whole), tensors_(whole.captured.size(), -1), slots_(whole.constants.size(), -1) {}

  Expr take(Expr e) {
    return rewrite(e, [&](Expr x, Expr rebuilt) -> std::optional<Expr> {
      if (x.op() == ExprOp::slot) return expr::slot(number(slots_, x.index(), whole_.constants, hole_.constants), x.type());
      if (x.op() != ExprOp::load) return std::nullopt;
      std::vector<Expr> subscripts;
      for (int axis = 0; axis < x.arity(); ++axis) subscripts.push_back(rebuilt.arg(axis));
      return expr::load(number(tensors_, x.index(), whole_.captured, hole_.captured), x.type(), subscripts);
    });
  }
  Hole& hole() { return hole_; }

 private:
  static int number(std::vector<int>& known, std::int64_t old, const auto& from, auto& to) {
    int& k = known[std::size_t(old)];
    if (k < 0) k = int(to.size()), to.push_back(from[std::size_t(old)]);
    return k;
  }

  const Hole& whole_;
  Hole hole_;
  std::vector<int> tensors_, slots_;
};

// Over `space`: the row-major number of the element of a tensor of this shape that `load` finds. A subscript outside of it is
// an error here too, as the kernel that reads the tensor may not run where only the gradient is wanted: one zero, seen in that
// shape, is read at the same subscripts. Strides are constants, so that no size is in the text.
Tensor places_of(const Hole& hole, Expr load, const Shape& shape, const Shape& space, Site where) {
  Part part(hole);
  std::vector<Expr> subscripts;
  for (int axis = 0; axis < load.arity(); ++axis) subscripts.push_back(part.take(load.arg(axis)));
  Hole& places = part.hole();
  Expr element = expr::load(int(places.captured.size()), ExprType::integer, subscripts);
  places.captured.push_back(expand(Arg(constant(0, {}, DType::i64, where), where), shape));
  std::int64_t stride = 1;
  for (int axis = load.arity() - 1; axis >= 0; stride *= shape[axis], --axis) {
    places.constants.push_back(double(stride));
    const Expr step = expr::slot(int(places.constants.size()) - 1, ExprType::integer);
    element = element + subscripts[std::size_t(axis)] * step;
  }
  places.roots = {element};
  Recorder r(places_op, where);
  return r.hole(0, places, space).out(space, DType::i64).record();
}

// The subscripts are coordinates, in order: what is summed over all others is the tensor.
bool is_permuted(Expr load, const Shape& shape, const Shape& space) {
  std::int64_t before = -1;
  for (int axis = 0; axis < load.arity(); ++axis) {
    const Expr subscript = load.arg(axis);
    if (subscript.op() != ExprOp::index || subscript.index() <= before || shape[axis] != space[int(subscript.index())])
      return false;
    before = subscript.index();
  }
  return true;
}

// The same with subscripts that stay inside, those of the tensors in which subscripts are looked up too.
Expr kept_inside(Expr load, const Hole& hole) {
  return rewrite(load, [&](Expr e, Expr rebuilt) -> std::optional<Expr> {
    if (e.op() != ExprOp::load) return std::nullopt;
    const Shape shape = hole.captured[std::size_t(e.index())].shape();
    std::vector<Expr> subscripts;
    for (int axis = 0; axis < e.arity(); ++axis)
      subscripts.push_back(clamp(rebuilt.arg(axis), Expr(0), Expr(std::max<std::int64_t>(shape[axis] - 1, 0))));
    return expr::load(int(e.index()), e.type(), subscripts);
  });
}

// In place of row and column of a space with so many coordinates, the load of their difference, coordinate rank - 2, where
// element 0 is the difference 1 - columns.
Expr by_difference(Expr load, int rank, std::int64_t columns) {
  return rewrite(load, [&](Expr e, Expr) -> std::optional<Expr> {
    const std::optional<Affine> affine = affine_of(e);
    if (!affine || !Footprint::is_difference(*affine, rank)) return std::nullopt;
    const auto step = [&](int c) { return Expr(affine->step[std::size_t(c)]); };
    Expr out = Expr(affine->constant) + step(rank - 2) * (expr::index(rank - 2) - Expr(columns - 1));
    for (int c = 0; c + 2 < rank; ++c) out = out + step(c) * expr::index(c);
    return out;
  });
}

Shape shape_of(SumForm form, const Shape& space) {
  const int rank = space.rank();
  const std::int64_t rows = space[rank - 2], columns = space[rank - 1];
  Shape out = space.first(rank - 2);
  if (form == SumForm::difference) {
    out.push_back(std::max<std::int64_t>(rows + columns - 1, 0));
    return out;
  }
  out.push_back(form == SumForm::row ? rows : 1);
  out.push_back(form == SumForm::column ? columns : 1);
  return out;
}

}  // namespace

Tensor adjoint(const Hole& hole, Expr load, const Tensor& each, const Shape& space, bool hidden, Site where) {
  const Shape shape = hole.captured[std::size_t(load.index())].shape();
  Shape footprint = space;
  for (int c = 0; c < space.rank(); ++c)
    if (!(footprint_of(load) >> c & 1)) footprint[c] = 1;
  const Tensor sum = sum_to(each, footprint, where);
  if (is_broadcast(load, shape, space) || is_permuted(load, shape, space))
    return sum.shape() == shape ? sum : reshape(Arg(sum, where), shape);
  const Shape line{footprint.numel()};
  const Tensor places = places_of(hole, hidden ? kept_inside(load, hole) : load, shape, footprint, where);
  const Tensor elements =
      scatter_sum(Arg(reshape(Arg(sum, where), line), where), reshape(Arg(places, where), line), shape.numel());
  return reshape(Arg(elements, where), shape);
}

namespace {

// What `load` reads, broadcast to the space.
Tensor read_elements(const Hole& hole, Expr load, const Shape& space, Site where) {
  const Tensor& from = hole.captured[std::size_t(load.index())];
  const Shape shape = from.shape();
  if (is_broadcast(load, shape, space)) return from;
  const Tensor places = places_of(hole, load, shape, space, where);
  const Tensor column = reshape(Arg(from, where), Shape{shape.numel(), 1});
  return reshape(Arg(embedding(Arg(column, where), reshape(Arg(places, where), Shape{space.numel()})), where), space);
}

}  // namespace

Tensor root_of(const Vjp& v, int h, int r, std::initializer_list<Tensor> values, const Shape& space, DType dtype) {
  const Hole hole = v.hole(h);
  const HoleSpec& spec = v.hole_spec(h);
  const auto given = int(values.size());
  std::vector<Expr> loads;  // load k is input `given + k` of the body
  const Expr body = rewrite(hole.roots[std::size_t(r)], [&](Expr e, Expr) -> std::optional<Expr> {
    if (e.op() != ExprOp::load) return std::nullopt;
    loads.push_back(e);
    return expr::input(given + int(loads.size()) - 1, e.type());
  });
  std::vector<Tensor> operands(values);
  std::vector<std::optional<Expr>> numbers(values.size() + loads.size());
  for (std::size_t k = 0; k < loads.size(); ++k) {
    const Expr load = loads[k];
    if (!uses_input(body, given + int(k))) continue;  // a subscript of another
    const bool by_value = reads_value(load, given);
    if (by_value ||
        (load.type() != ExprType::real && !is_broadcast(load, hole.captured[std::size_t(load.index())].shape(), space)))
      fail_at(v.where(), fmt::format("{}: second derivatives do not go through hole '{}'", v.name(), spec.name),
              fmt::format("{} is {}", named(load, spec), by_value ? "found by the hole's own value" : "not real"),
              "compute it before the op and capture the result");
    numbers[std::size_t(given) + k] = expr::input(int(operands.size()), load.type());
    operands.push_back(read_elements(hole, load, space, v.where()));
  }
  return record_body(name_id(spec.name), substitute(body, numbers), operands, hole.constants, space, dtype, v.where());
}

HoleInVjp::HoleInVjp(Vjp& v, int h, const Hole& filled, const Shape& space, DType real, int first, Outs& outs) : space_(space) {
  if (!filled.filled()) return;
  const HoleSpec& spec = v.hole_spec(h);
  std::uint32_t wanted = 0;
  for (std::size_t k = 0; k < filled.captured.size(); ++k) wanted |= std::uint32_t(v.needs(v.hole_input(h, int(k)))) << k;
  const HoleGradient& found = hole_gradient(filled.roots, spec.values, wanted);
  for (const Expr load : found.loads)
    if (reads_value(load, spec.values))
      fail_at(v.where(), fmt::format("hole '{}' finds an element by its own value, which has no gradient", spec.name),
              fmt::format("{} of {}", named(load, spec), to_string(filled.captured[std::size_t(load.index())].shape())),
              "detach() the tensor, or compute the value before the op and capture it too");
  gradient = {found.roots, filled.captured, filled.constants};
  hidden_ = spec.hidden_by >= 0 && v.hole(spec.hidden_by).filled();
  for (std::size_t r = 0; r < gradient.roots.size(); ++r) {
    outputs.push_back(r == 0 ? first : -1);
    sums.push_back(-1);
    forms.push_back({-1, -1, -1, -1});
  }
  const auto output = [&](int& known, const Shape& shape, DType dtype) {
    if (known < 0)
      known = int(outs.size()), outs.push_back({shape, dtype});
    else
      outs[std::size_t(known)].dtype = widest(outs[std::size_t(known)].dtype, dtype);
  };
  for (std::size_t j = 0; j < found.loads.size(); ++j) {
    const Tensor& c = filled.captured[std::size_t(found.loads[j].index())];
    const auto root = std::size_t(found.which[j]);
    const bool column = spec.columns && (footprint_of(found.loads[j]) & ~(1u << (space.rank() - 1))) == 0;
    std::optional<SumForm> form;
    if (spec.sums) form = summed_form(v.name(), spec, found.loads[j], c.shape(), space.rank(), v.where());
    loads_.push_back({found.loads[j], found.which[j], column, form});
    if (form)
      output(forms[root][std::size_t(*form)], shape_of(*form, space), real);
    else if (column)
      output(sums[root], Shape{space[-1]}, real);
    else  // what is summed afterwards is not rounded before
      output(outputs[root], space, c.shape() == space && is_broadcast(found.loads[j], c.shape(), space) ? c.dtype() : real);
  }
}

void HoleInVjp::add(Vjp& v, int h, const Tensor& first_output) const {
  Shape row = space_;
  for (int c = 0; c + 1 < row.rank(); ++c) row[c] = 1;
  for (const auto& [load, root, column, form] : loads_) {
    const auto r = std::size_t(root);
    const int output = form ? forms[r][std::size_t(*form)] : column ? sums[r] : outputs[r];
    const Tensor each = output_of(first_output, output);
    const auto add = [&](Expr l, const Tensor& given, const Shape& space) {
      v.add(v.hole_input(h, int(l.index())), adjoint(gradient, l, given, space, hidden_, v.where()));
    };
    if (form == SumForm::difference)
      add(by_difference(load, space_.rank(), space_[-1]), each, each.shape());
    else
      add(load, !form && column ? reshape(Arg(each, v.where()), row) : each, space_);
  }
}

}  // namespace weft
