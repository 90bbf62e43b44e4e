#include "autograd/backward.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <optional>
#include <utility>

#include "autograd/gradient_ops.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"

namespace weft {

namespace {
constexpr NodeId kOpenRange = ~NodeId(0);  // the end of a checkpointed range that is being recorded
}

// One reverse traversal. Contributions to a node's gradient are kept in a list until the node is reached.
struct BackwardPass {
  struct Contribution {
    NodeId gradient;
    std::int32_t next;  // older contribution to the same node, -1 at the end
    int axis = -1;      // >= 0: gradient of the slice [begin, end) of this axis
    std::int64_t begin = 0, end = 0;
  };

  Tape& t;
  std::vector<std::uint8_t> wanted;  // nodes that lead to something whose gradient is wanted
  std::vector<std::int32_t> head;    // newest contribution of each node, -1 if none
  std::vector<Contribution> contributions;
  std::pair<NodeId, NodeId> range{0, 0};  // the checkpointed range being differentiated
  std::vector<NodeId> clones;             // its nodes, evaluated again
  NodeId first_new;                       // the nodes that this pass records begin here;
  std::vector<NodeId> sources;            // each belongs to this node
  std::int32_t frame;                     // that is open while the pass runs

  // Buffers are kept from step to step; a pass inside of another begins with empty ones.
  explicit BackwardPass(Tape& tape)
      : t(tape),
        wanted(std::move(buffer<std::uint8_t>())),
        head(std::move(buffer<std::int32_t>())),
        contributions(std::move(buffer<Contribution>())),
        first_new(NodeId(tape.nodes.size())),
        sources(std::move(buffer<NodeId>())),
        frame(tape.frame) {
    sources.clear();
    wanted.assign(t.nodes.size(), 0);
    head.assign(t.nodes.size(), -1);
    contributions.clear();
    ++tapes().hold;
  }
  ~BackwardPass() {
    --tapes().hold;
    t.frame = frame;  // a rule may have thrown
    buffer<std::uint8_t>() = std::move(wanted);
    buffer<std::int32_t>() = std::move(head);
    buffer<Contribution>() = std::move(contributions);
    buffer<NodeId>() = std::move(sources);
  }
  BackwardPass(const BackwardPass&) = delete;
  BackwardPass& operator=(const BackwardPass&) = delete;
  template <class T>
  static std::vector<T>& buffer() {
    thread_local std::vector<T> b;
    return b;
  }

  // What a rule recorded belongs to the node that it differentiates, and has the place where that was written.
  void attribute(NodeId source) {
    for (std::size_t id = first_new + sources.size(); id < t.nodes.size(); ++id) t.origins[id].where = t.origins[source].where;
    sources.resize(t.nodes.size() - first_new, source);
  }

  void contribute(NodeId to, Contribution c) {
    c.next = head[to];
    head[to] = std::int32_t(contributions.size());
    contributions.push_back(c);
  }
  // A value as the rules see it: inside a checkpointed range, its clone.
  NodeId value(NodeId id) const { return id >= range.first && id < range.second ? clones[id - range.first] : id; }

  Tensor gradient(NodeId id);
  void walk(NodeId from, NodeId until = 0);
  void differentiate(NodeId id);
  void enter(std::pair<NodeId, NodeId> next);
  void collect_param(NodeId id);
};

namespace {

// Slices that tile an axis: one join. Sorted by begin; false if they overlap.
bool tile(std::vector<BackwardPass::Contribution>& parts) {
  std::sort(parts.begin(), parts.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < parts.size(); ++i)
    if (parts[i].begin < parts[i - 1].end) return false;
  return true;
}

Tensor join_slices(Tape& t, NodeId id, std::span<const BackwardPass::Contribution> parts) {
  std::vector<Tensor> tensors;
  std::vector<std::int64_t> sizes;
  std::int64_t at = 0;
  const std::int64_t size = t.nodes[id].dims[parts[0].axis];
  for (const auto& part : parts) {
    if (part.begin > at) tensors.push_back({}), sizes.push_back(part.begin - at);
    tensors.push_back(handle(part.gradient));
    sizes.push_back(part.end - part.begin);
    at = part.end;
  }
  if (at < size) tensors.push_back({}), sizes.push_back(size - at);
  if (tensors.size() == 1) return tensors[0];
  return join(tensors, sizes, parts[0].axis, t.origins[id].where);
}

}  // namespace

// The sum of what was contributed, oldest first; absent if nothing was.
Tensor BackwardPass::gradient(NodeId id) {
  std::int32_t at = head[id];
  if (at < 0) return {};
  if (contributions[at].next < 0 && contributions[at].axis < 0) return handle(contributions[at].gradient);
  std::vector<Contribution> parts;
  for (; at >= 0; at = contributions[at].next) parts.push_back(contributions[at]);
  std::reverse(parts.begin(), parts.end());
  const bool one_axis =
      std::all_of(parts.begin(), parts.end(), [&](auto& p) { return p.axis >= 0 && p.axis == parts[0].axis; });
  Tensor total;
  if (one_axis && tile(parts)) {
    total = join_slices(t, id, parts);
  } else {
    for (const Contribution& part : parts) {
      const Tensor g = part.axis < 0 ? handle(part.gradient) : join_slices(t, id, std::span(&part, 1));
      total = total ? add(total, g, t.origins[id].where) : g;
    }
  }
  head[id] = std::int32_t(contributions.size());
  contributions.push_back({total.node(), -1});
  return total;
}

namespace {
bool same_shape(const Node& a, const Node& b) { return a.rank == b.rank && std::memcmp(a.dims, b.dims, sizeof a.dims) == 0; }
}  // namespace

void BackwardPass::enter(std::pair<NodeId, NodeId> next) {
  range = {0, 0};
  clones.assign(next.second - next.first, 0);
  std::vector<NodeId> inputs;
  std::vector<Out> outs;
  for (NodeId id = next.first; id < next.second; ++id) {
    const Node node = t.nodes[id];
    NodeId& clone = clones[id - next.first];
    if (node.op == input_op().id || node.op == state_op().id) {
      clone = id;
    } else if (node.op == output_op().id) {
      const NodeId first = t.inputs_of(id)[0];
      clone = clones[first - next.first] + (id - first);
    } else {
      inputs.clear();
      outs.clear();
      for (const NodeId input : t.inputs_of(id))
        inputs.push_back(input >= next.first && input < next.second ? clones[input - next.first] : input);
      for (NodeId k = 0; k < node.outputs; ++k) outs.push_back({t.nodes[id + k].shape(), t.nodes[id + k].dtype});
      const auto ints = t.ints_of(id);
      const std::vector<std::int64_t> own_ints(ints.begin(), ints.end());
      const std::span<const double> constants(t.constants.data() + node.first_constant, node.constants);
      std::optional<NoGrad> off;  // as the node was recorded
      if (node.has(Node::stopped)) off.emplace();
      t.frame = t.origins[id].frame;
      clone = t.record(t.op(id), inputs, outs, own_ints, constants, t.origins[id].where);
      attribute(id);
    }
    if (clone != id) t.clones.emplace_back(id, clone);
  }
  range = next;
}

void BackwardPass::collect_param(NodeId id) {
  StateImpl* impl = t.states[std::size_t(t.ints_of(id)[0])];
  if (!impl->parameter || !impl->trainable) return;
  Tensor g = gradient(id);
  if (const NodeId before = t.use(*impl).gradient; before != Tape::kNone)
    g = add(handle(before), g, t.origins[id].where);
  else
    t.gradients.push_back(impl);
  t.use(*impl).gradient = g.node();
}

namespace {
[[noreturn]] void fail_without_rule(const Tape& t, NodeId id) {
  constexpr std::string_view kBackward = "_backward";
  std::string_view name = t.op(id).name;
  const bool second = name.ends_with(kBackward);
  if (second) name.remove_suffix(kBackward.size());
  fail_at(t.origins[id].where,
          fmt::format("{}: {} through this op", name, second ? "second derivatives do not go" : "no gradient goes"),
          fmt::format("{} {}", t.name(id), to_string(t.shape(id))),
          second ? "detach() its gradient where that is used again, or compute its value with other ops"
                 : "detach() what it is given");
}
}  // namespace

void BackwardPass::differentiate(NodeId id) {
  const Op& op = t.op(id);
  if (&op != &pointwise_op()) {
    Vjp vjp(*this, id);
    if (op.vjp) return op.vjp(vjp);
    for (int i = 0; i < vjp.inputs(); ++i)
      if (vjp.needs(i)) fail_without_rule(t, id);
    return;
  }
  const NodeId upstream = gradient(id).node();
  const int n = t.nodes[id].inputs;
  Few<NodeId, kMostOperands> inputs;
  for (const NodeId input : t.inputs_of(id)) inputs.push_back(value(input));
  for (int k = 0; k < n; ++k) {
    const NodeId input = t.inputs_of(id)[k];
    if (!wanted[input]) continue;
    const NodeId g = pointwise_gradient(t, id, k, inputs, value(id), upstream);
    if (g == Tape::kNone) continue;
    contribute(
        input,
        {same_shape(t.nodes[g], t.nodes[input]) ? g : sum_to(handle(g), t.shape(input), t.origins[id].where).node(), -1});
  }
}

void BackwardPass::walk(NodeId from, NodeId until) {
  std::size_t ranges = t.checkpoints.size();
  for (NodeId id = from + 1; id-- > until;) {
    if (!wanted[id]) continue;
    bool any = false;
    for (NodeId k = 0; k < t.nodes[id].outputs; ++k) any |= head[id + k] >= 0;
    if (!any) continue;
    const std::uint16_t op = t.nodes[id].op;
    if (op == state_op().id || op == input_op().id || op == output_op().id) continue;
    while (ranges > 0 && t.checkpoints[ranges - 1].first > id) --ranges;
    // What the range that is being recorded holds is evaluated again, gradients included, when that range is.
    const bool inside = ranges > 0 && id < t.checkpoints[ranges - 1].second && t.checkpoints[ranges - 1].second != kOpenRange;
    if (inside && range != t.checkpoints[ranges - 1]) enter(t.checkpoints[ranges - 1]);
    t.frame = t.origins[id].frame;  // a gradient belongs to the module of its value
    differentiate(id);
    attribute(id);
  }
  t.frame = frame;
}

// ---- what a rule sees -------------------------------------------------------------------------------------------------------

std::string_view Vjp::name() const { return pass_.t.op(node_).name; }
int Vjp::inputs() const { return pass_.t.nodes[node_].inputs; }
Tensor Vjp::input(int i) const {
  const NodeId id = pass_.t.inputs_of(node_)[i];
  return id == Tape::kNone ? Tensor{} : handle(pass_.value(id));
}
Tensor Vjp::output(int k) const { return handle(pass_.value(node_ + NodeId(k))); }
Tensor Vjp::grad(int k) const { return pass_.gradient(node_ + NodeId(k)); }
bool Vjp::needs(int i) const {
  const NodeId id = pass_.t.inputs_of(node_)[i];
  return id != Tape::kNone && pass_.wanted[id] && is_real(pass_.t.nodes[id].dtype);
}
void Vjp::add(int i, const Tensor& gradient) {
  const Tape& t = pass_.t;
  const NodeId id = t.inputs_of(node_)[i], g = gradient.node();
  if (!same_shape(t.nodes[g], t.nodes[id]))
    fail_at(where(), fmt::format("{}: its gradient rule gave input {} the wrong shape", name(), i),
            fmt::format("{} for {}", to_string(gradient.shape()), to_string(pass_.t.shape(id))));
  pass_.contribute(id, {t.nodes[g].dtype == t.nodes[id].dtype ? g : convert(gradient, t.nodes[id].dtype, where()).node(), -1});
}
void Vjp::add_slice(int i, int axis, std::int64_t begin, std::int64_t end, const Tensor& gradient) {
  const NodeId id = pass_.t.inputs_of(node_)[i];
  pass_.contribute(id, {convert(gradient, pass_.t.nodes[id].dtype, where()).node(), -1, axis, begin, end});
}
std::int64_t Vjp::integer(int j) const { return plain_ints(pass_.t, node_)[std::size_t(j)]; }
int Vjp::integers() const { return int(plain_ints(pass_.t, node_).size()); }
std::span<const double> Vjp::constants() const {
  const Node& node = pass_.t.nodes[node_];
  return {pass_.t.constants.data() + node.first_constant, node.constants};
}
Site Vjp::where() const { return pass_.t.origins[node_].where; }
int Vjp::hole_input(int h, int k) const { return hole_of(pass_.t, node_, h).first_input + k; }

void Vjp::differentiate(NodeId first, const std::vector<Tensor>& outputs) {
  Tape& t = pass_.t;
  BackwardPass pass(t);
  const int n = inputs();
  for (int i = 0; i < n; ++i)
    if (needs(i)) pass.wanted[pass_.value(t.inputs_of(node_)[i])] = 1;
  const auto last = NodeId(t.nodes.size() - 1);
  for (NodeId id = first; id <= last; ++id)
    for (const NodeId input : t.inputs_of(id))
      if (input != Tape::kNone && pass.wanted[input]) pass.wanted[id] = 1;
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const Tensor g = grad(int(k)), y = outputs[k];
    if (!g || !y) continue;
    if (y.shape() != g.shape())
      fail_at(where(), fmt::format("{}: its gradient rule gave output {} the wrong shape", name(), k),
              fmt::format("{} for {}", to_string(y.shape()), to_string(g.shape())));
    pass.contribute(y.node(), {convert(g, y.dtype(), where()).node(), -1});
  }
  pass.walk(last, first);
  for (int i = 0; i < n; ++i) {
    const auto before = t.inputs_of(node_).first(std::size_t(i));
    const NodeId id = t.inputs_of(node_)[i];
    if (!needs(i) || std::find(before.begin(), before.end(), id) != before.end()) continue;  // given twice
    if (const Tensor g = pass.gradient(pass_.value(id))) add(i, g);
  }
}

const HoleSpec& Vjp::hole_spec(int h) const { return pass_.t.op(node_).holes[std::size_t(h)]; }

Hole Vjp::hole(int h) const {
  const HoleView view = hole_of(pass_.t, node_, h);
  Hole out;
  out.roots = view.roots;
  for (int k = 0; k < view.captured; ++k) out.captured.push_back(input(view.first_input + k));
  for (int k = 0; k < view.slots; ++k) out.constants.push_back(constant(view.first_slot + k));
  return out;
}

// ---- entry points -----------------------------------------------------------------------------------------------------------

namespace {

void check_loss(const Arg& loss, std::string_view what) {
  if (!loss) fail_at(loss.where(), fmt::format("{}: the loss is absent", what));
  if (loss.shape().numel() != 1 || !is_real(loss.dtype()))
    fail_at(loss.where(), fmt::format("{}: the loss is not one real number", what),
            fmt::format("{} {}", name_of(loss.dtype()), to_string(loss.shape())), "reduce it with mean() or sum()");
}

// x, and what it was evaluated again as: for a gradient one value.
std::vector<NodeId> copies_of(const Tape& t, NodeId x) {
  std::vector<NodeId> all = {x};
  for (const auto& [node, clone] : t.clones)
    if (std::find(all.begin(), all.end(), node) != all.end()) all.push_back(clone);
  return all;
}

// Whether a gradient could flow from `root` to each node: also where it is zero whatever the values are, as that of sign().
std::vector<std::uint8_t> reached_from(const Tape& t, NodeId root) {
  std::vector<std::uint8_t> reached(std::size_t(root) + 1, 0);
  reached[root] = 1;
  for (NodeId id = root + 1; id-- > 0;) {
    if (!reached[id] || t.nodes[id].has(Node::stopped)) continue;
    for (const NodeId input : t.inputs_of(id))
      if (input != Tape::kNone && is_real(t.nodes[input].dtype)) reached[input] = 1;
  }
  return reached;
}

std::vector<Tensor> gradients(const Tensor& output, const Tensor& upstream, const std::vector<Arg>& wrt, Unused unused,
                              Site where) {
  Tape& t = tape();
  // Before anything is sized by the tape: a value from outside becomes a node when it is first asked for.
  const NodeId root = output.node(where), seed = upstream.node(where);
  std::vector<std::vector<NodeId>> targets;
  bool is_target = false;
  for (const Arg& x : wrt) {
    if (!is_real(x.dtype()))
      fail_at(x.where(), "grad: the tensor is not real", fmt::format("{} {}", name_of(x.dtype()), to_string(x.shape())),
              "only real values have gradients: cast() it before the computation");
    targets.push_back(copies_of(t, x.tensor().node(where)));
    is_target |= targets.back()[0] == root;
  }
  if (&t.op(root) == &input_op() && !is_target)
    fail_at(where, "grad: the value has no history", t.name(root) + " was computed by an earlier run",
            "record it and its gradient in one step, or ask for the gradient before the value");
  t.first_gradient = std::min(t.first_gradient, NodeId(t.nodes.size()));
  BackwardPass pass(t);
  std::vector<std::uint8_t>& wanted = pass.wanted;
  std::vector<std::uint8_t> cut(t.nodes.size(), 0);  // depends on a target, but no gradient flows
  for (const auto& copies : targets)
    for (const NodeId x : copies) wanted[x] = 1;
  for (NodeId id = 0; id <= root; ++id) {
    const bool flows = !t.nodes[id].has(Node::stopped);
    for (const NodeId input : t.inputs_of(id)) {
      if (input == Tape::kNone) continue;
      if (wanted[input]) (flows ? wanted : cut)[id] = 1;
      if (cut[input]) cut[id] = 1;
    }
  }
  if (cut[root] && !wanted[root])
    fail_at(where, "grad: no gradient flows from here",
            t.name(root) + " depends on the tensors only through no_grad, detach or a gradient that backward() recorded",
            "differentiate a value recorded with gradients on; for second derivatives take the first with grad()");
  pass.contribute(root, {seed, -1});
  pass.walk(root);
  std::vector<std::uint8_t> from_root;  // made once it is asked for
  const auto reached = [&](const std::vector<NodeId>& copies) {
    if (from_root.empty()) from_root = reached_from(t, root);
    return std::ranges::any_of(copies, [&](NodeId x) { return x <= root && from_root[x]; });
  };
  std::vector<Tensor> out;
  for (std::size_t i = 0; i < wrt.size(); ++i) {
    Tensor g;
    for (const NodeId x : targets[i])
      if (const Tensor part = pass.gradient(x)) g = g ? add(g, part, where) : part;
    if (!g && unused == Unused::error && !reached(targets[i]))
      fail_at(where, "grad: the value does not depend on this tensor",
              fmt::format("tensor {} of {}, {}, is not among what {} is computed from", i, wrt.size(),
                          to_string(wrt[i].shape()), t.name(root)),
              "leave it out, or pass Unused::zeros; and check for detach(), no_grad and comparisons on the way to it, and for "
              "values that were looked at outside run");
    out.push_back(g ? g : constant(0, wrt[i].shape(), wrt[i].dtype(), where));
  }
  return out;
}

}  // namespace

namespace {

// What backward appends is a function of what was recorded before. It is remembered with the recording it belongs to, and
// copied when a step records the same again: the rules of the ops run once a plan, not once a step.
struct RememberedBackward {
  std::vector<Node> before, appended;
  std::vector<NodeId> before_inputs, appended_inputs, sources;
  std::vector<std::int64_t> before_ints, appended_ints;
  std::vector<std::pair<NodeId, NodeId>> checkpoints;
  NodeId root;
  struct Gradient {
    std::int32_t state;  // position of the Param
    NodeId node;
  };
  std::vector<Gradient> gradients;

  bool fits(const Tape& t, NodeId r) const {
    auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
    };
    return r == root && same(before, t.nodes) && same(before_inputs, t.inputs) && same(before_ints, t.ints) &&
           checkpoints == t.checkpoints;
  }
  void append_to(Tape& t) const {
    t.nodes.insert(t.nodes.end(), appended.begin(), appended.end());
    t.inputs.insert(t.inputs.end(), appended_inputs.begin(), appended_inputs.end());
    t.ints.insert(t.ints.end(), appended_ints.begin(), appended_ints.end());
    for (const NodeId source : sources) t.origins.push_back(Origin(t.origins[source]));
    for (const Gradient& g : gradients) {
      StateImpl* impl = t.states[std::size_t(g.state)];
      t.use(*impl).gradient = g.node;
      t.gradients.push_back(impl);
    }
  }
};

constexpr std::size_t kRemembered = 8;
std::list<RememberedBackward>& remembered() {
  thread_local std::list<RememberedBackward> list;  // most recent first
  return list;
}

// The gradients of the parameters. One that the loss depends on and whose gradient is zero whatever the values are has one,
// too: an update decays it.
void collect_params(BackwardPass& pass, NodeId root) {
  Tape& t = pass.t;
  const std::vector<std::uint8_t> reached = reached_from(t, root);
  for (NodeId id = root + 1; id-- > 0;) {
    if (t.nodes[id].op != state_op().id) continue;
    if (pass.head[id] < 0 && pass.wanted[id] && reached[id])
      pass.contribute(id, {constant(0, t.shape(id), t.nodes[id].dtype, t.origins[id].where).node(), -1});
    if (pass.head[id] < 0) continue;
    pass.collect_param(id);
    pass.attribute(id);
  }
}

void record_backward(Tape& t, const Arg& loss, NodeId root) {
  BackwardPass pass(t);
  for (NodeId id = 0; id <= root; ++id) pass.wanted[id] = t.nodes[id].has(Node::requires_grad);
  const NoGrad off;
  const std::size_t inputs = t.inputs.size(), ints = t.ints.size(), constants = t.constants.size();
  const bool first = t.gradients.empty();  // a second backward adds to the gradients of the first
  pass.contribute(root, {constant(1, loss.shape(), loss.dtype(), loss.where()).node(), -1});
  pass.attribute(root);
  pass.walk(root);
  collect_params(pass, root);
  if (t.eager || !first || t.constants.size() != constants) return;  // constants of its own would have to be made again
  const auto n = std::ptrdiff_t(pass.first_new), i = std::ptrdiff_t(inputs), k = std::ptrdiff_t(ints);
  RememberedBackward r{{t.nodes.begin(), t.nodes.begin() + n},
                       {t.nodes.begin() + n, t.nodes.end()},
                       {t.inputs.begin(), t.inputs.begin() + i},
                       {t.inputs.begin() + i, t.inputs.end()},
                       pass.sources,
                       {t.ints.begin(), t.ints.begin() + k},
                       {t.ints.begin() + k, t.ints.end()},
                       t.checkpoints,
                       root,
                       {}};
  for (const StateImpl* impl : t.gradients) r.gradients.push_back({t.use(*impl).position, t.use(*impl).gradient});
  remembered().push_front(std::move(r));
  if (remembered().size() > kRemembered) remembered().pop_back();
}

}  // namespace

void backward(Arg loss) {
  before_record();
  check_loss(loss, "backward");
  Tape& t = tape();
  t.check_states(loss.where());
  const NodeId root = loss.tensor().node(loss.where());
  if (!t.nodes[root].has(Node::requires_grad))
    fail_at(loss.where(), "backward: the loss does not depend on a trainable parameter", t.name(root),
            "check for no_grad, detach, frozen parameters, a loss that was already run, or parameters that were set since");
  t.first_gradient = std::min(t.first_gradient, NodeId(t.nodes.size()));
  std::list<RememberedBackward>& known = remembered();
  const auto found = t.eager || !t.gradients.empty()
                         ? known.end()
                         : std::find_if(known.begin(), known.end(), [&](const auto& r) { return r.fits(t, root); });
  if (found == known.end()) return record_backward(t, loss, root);
  found->append_to(t);
  known.splice(known.begin(), known, found);
}

std::vector<Tensor> grad(Arg loss, std::vector<Arg> wrt, Unused unused) {
  before_record();
  check_loss(loss, "grad");
  const Tensor one = constant(1, loss.shape(), loss.dtype(), loss.where());
  return gradients(loss.tensor(), one, wrt, unused, loss.where());
}

std::vector<Tensor> grad(Arg output, Arg upstream, std::vector<Arg> wrt, Unused unused) {
  before_record();
  if (output.shape() != upstream.shape())
    fail_at(output.where(), "grad: the upstream gradient has not the output's shape",
            fmt::format("{} against {}", to_string(upstream.shape()), to_string(output.shape())));
  return gradients(output.tensor(), convert(upstream.tensor(), output.dtype(), output.where()), wrt, unused, output.where());
}

std::vector<Arg> args_of(const std::vector<Tensor>& tensors, Site where) {
  std::vector<Arg> args;
  for (const Tensor& t : tensors) args.emplace_back(t, where);
  return args;
}

Tensor take_gradient(const Param& param, Site where) {
  param.shape(where);  // an error if it is absent
  Tape& t = tape();
  StateImpl& impl = *param.impl();
  Tensor g;
  const StateUse known = t.use(impl);
  if (known.gradient != Tape::kNone) g = handle(known.gradient);
  if (impl.pending && !known.zeroed) {
    const Tensor before = State(impl.gradient).read();
    g = g ? add(before, g, where) : before;
  }
  if (g) {
    t.use(impl).gradient = Tape::kNone;
    t.use(impl).zeroed = true;
    if (impl.pending) on_commit([i = param.impl()] { i->pending = false; });
  }
  return g;
}

void put_gradient(const Param& param, const Tensor& gradient) {
  Tape& t = tape();
  StateImpl& impl = *param.impl();
  t.use(impl).gradient = gradient.node();
  t.gradients.push_back(&impl);
}

void keep_gradients() {
  Tape& t = tape();
  const NoGrad off;
  for (StateImpl* impl : t.gradients) {
    const NodeId gradient = std::exchange(t.use(*impl).gradient, Tape::kNone);
    if (gradient == Tape::kNone) continue;
    const bool pending = impl->pending && !t.use(*impl).zeroed;
    if (!impl->gradient) impl->gradient = std::make_shared<StateImpl>(impl->shape, impl->dtype, impl->name + ".gradient");
    const State state(impl->gradient);
    Tensor g = handle(gradient);
    if (pending) g = add(state.read(), g, Site::current());
    mark_assigned(state, Site::current());
    const std::int64_t position = state_position(state);
    record(assign_op(), {g}, {{impl->shape, impl->dtype}}, {&position, 1}, {}, Site::current());
    on_commit([impl] { impl->pending = true; });
  }
}

NoGrad::NoGrad() : before_(detail::gradients_on) { detail::gradients_on = false; }
NoGrad::~NoGrad() { detail::gradients_on = before_; }

Checkpoint::Checkpoint() : outer_(!tapes().checkpointing) {
  if (!outer_) return;  // the outermost range covers this one
  tapes().checkpointing = true;
  Tape& t = tape();
  t.checkpoints.emplace_back(NodeId(t.nodes.size()), kOpenRange);
}

Checkpoint::~Checkpoint() {
  if (!outer_) return;
  tapes().checkpointing = false;
  Tape& t = tape();
  if (!t.checkpoints.empty() && t.checkpoints.back().second == kOpenRange) t.checkpoints.back().second = NodeId(t.nodes.size());
}

Tap tap(std::string_view path, Site where) {
  Tape& t = tape();
  for (std::size_t i = t.frames.size(); i-- > 0;) {
    const Frame& f = t.frames[i];
    if (*f.path != path) continue;
    return {f.input == Tape::kNone ? Tensor{} : handle(f.input), f.output == Tape::kNone ? Tensor{} : handle(f.output)};
  }
  std::vector<std::string> known;
  for (const Frame& f : t.frames)
    if (!f.path->empty() && std::find(known.begin(), known.end(), *f.path) == known.end()) known.push_back(*f.path);
  std::string list;
  for (const std::string& k : known) list += (list.empty() ? "" : ", ") + k;
  fail_at(where, fmt::format("tap: no module '{}' was called in this step{}", path, suggestion(path, known)), list,
          "call tap after the module, with its path");
}

}  // namespace weft
