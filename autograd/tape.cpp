#include "autograd/tape.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/context.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/state.h"

namespace weft {
namespace {

std::uint64_t next_epoch() {
  static std::atomic<std::uint64_t> counter{0};
  return ++counter;
}

template <class T>
std::uint32_t append(std::vector<T>& to, std::span<const T> what) {
  const auto first = std::uint32_t(to.size());
  to.insert(to.end(), what.begin(), what.end());
  return first;
}

std::string_view file_name(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

std::string line_of(Site site) { return fmt::format("{}:{}", file_name(site.file_name()), site.line()); }

}  // namespace

NodeId Tape::record(const Op& op, std::span<const NodeId> node_inputs, std::span<const Out> outputs,
                    std::span<const std::int64_t> node_ints, std::span<const double> node_constants, Site where) {
  const Context& c = context();
  const auto id = NodeId(nodes.size());
  Node node;
  node.op = op.id;
  node.outputs = std::uint8_t(outputs.size());
  node.inputs = std::uint16_t(node_inputs.size());
  node.ints = std::uint16_t(node_ints.size());
  node.constants = std::uint16_t(node_constants.size());
  node.first_input = append(inputs, node_inputs);
  node.first_int = append(ints, node_ints);
  node.first_constant = append(constants, node_constants);
  if (!c.gradients) {
    node.flags = Node::stopped;
  } else if (op.vjp) {
    for (const NodeId input : node_inputs)
      if (input != kNone && nodes[input].has(Node::requires_grad)) node.flags = Node::requires_grad;
  }
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const Out& out = outputs[k];
    node.dtype = out.dtype;
    node.rank = std::uint8_t(out.shape.rank());
    std::copy_n(out.shape.begin(), out.shape.rank(), node.dims);
    std::fill(node.dims + node.rank, node.dims + kMaxRank, 0);
    if (k == 1) {  // a further output: a node without operands of its own but its first output
      node.op = output_op().id;
      node.inputs = 1;
      node.ints = node.constants = 0;
      node.first_input = std::uint32_t(inputs.size());
      node.outputs = 1;
      inputs.push_back(id);
    }
    nodes.push_back(node);
    sites.push_back(where);
    frame_of.push_back(frame);
  }
  return id;
}

void Tape::clear() {
  nodes.clear();
  inputs.clear();
  ints.clear();
  constants.clear();
  sites.clear();
  frame_of.clear();
  frames.clear();
  frame = -1;
  bound.clear();
  kept.clear();
  retained = false;
  root_draws = 0;
  states.clear();
  gradients.clear();
  checkpoints.clear();
  draws.clear();
  commits.clear();
  epoch = next_epoch();
}

const Op& Tape::op(NodeId id) const { return *registered_ops()[nodes[id].op]; }

std::string Tape::where(Site site, int f) const {
  std::string out = line_of(site);
  for (; f >= 0; f = frames[f].parent)
    out += fmt::format("\n  in {} called at {}", frames[f].path->empty() ? "the model" : *frames[f].path, line_of(frames[f].where));
  return out;
}

std::string Tape::where(NodeId id) const { return where(sites[id], frame_of[id]); }

std::string Tape::name(NodeId id) const {
  const Node& node = nodes[id];
  const std::string what(node.op == pointwise_op().id ? pointwise_name(*this, id) : op(id).name);
  const int f = frame_of[id];
  return f < 0 || frames[f].path->empty() ? what : *frames[f].path + ": " + what;
}

Tape& tape() { return *context().tape; }

std::int32_t open_frame(const std::string* path, Site where, const Tensor& input) {
  Tape& t = tape();
  const NodeId node = input ? input.node(where) : Tape::kNone;
  t.frames.push_back({t.frame, where, path, 0, NodeId(t.nodes.size()), NodeId(t.nodes.size()), node, Tape::kNone});
  return t.frame = std::int32_t(t.frames.size()) - 1;
}

void close_frame(std::int32_t frame, const Tensor& output) {
  Tape& t = tape();
  if (frame < 0 || std::size_t(frame) >= t.frames.size()) return;  // the tape was flushed meanwhile
  Frame& f = t.frames[frame];
  f.last = NodeId(t.nodes.size());
  if (const Value* v = output.value(); v ? v->epoch == t.epoch : output.epoch() == t.epoch)
    f.output = v ? v->node : output.raw_node();
  t.frame = f.parent;
}

std::int32_t state_position(const State& state) {
  Tape& t = tape();
  StateImpl& impl = *state.impl();
  if (impl.position_epoch != t.epoch) {
    impl.position_epoch = t.epoch;
    impl.position = std::int32_t(t.states.size());
    t.states.push_back(state.impl());
  }
  return impl.position;
}

void mark_assigned(const State& state, Site where) {
  Tape& t = tape();
  StateImpl& impl = *state.impl();
  if (impl.assigned_epoch == t.epoch)
    fail_at(where, fmt::format("assign: state '{}' is written twice in one step", impl.name), {},
            "combine the values and assign once");
  impl.assigned_epoch = t.epoch;
  impl.read_epoch = 0;  // a later read sees the new value
}

void on_commit(std::function<void()> f) { tape().commits.push_back(std::move(f)); }

Context& context() {
  thread_local std::unique_ptr<Context> c = [] {
    auto fresh = std::make_unique<Context>();
    fresh->pending.clear();
    fresh->step.clear();
    return fresh;
  }();
  return *c;
}

}  // namespace weft
