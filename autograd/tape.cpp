#include "autograd/tape.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
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
  for (const T& x : what) to.push_back(x);
  return first;
}

std::string_view file_name(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

constexpr std::size_t kPendingNodes = 4096;

std::string line_of(Site site) { return fmt::format("{}:{}", file_name(site.file_name()), site.line()); }

}  // namespace

NodeId Tape::record(const Op& op, std::span<const NodeId> node_inputs, std::span<const Out> outputs,
                    std::span<const std::int64_t> node_ints, std::span<const double> node_constants, Site where) {
  for (const Out& out : outputs) check_shape(out.shape, where);
  const auto id = NodeId(nodes.size());
  std::uint8_t flags = 0;
  if (!detail::gradients_on) {
    flags = Node::stopped;
  } else {
    for (const NodeId input : node_inputs)
      if (input != kNone && nodes[input].has(Node::requires_grad)) flags = Node::requires_grad;
  }
  Node& node = nodes.emplace_back();
  node.op = op.id;
  node.flags = flags;
  node.outputs = std::uint8_t(outputs.size());
  node.inputs = std::uint16_t(node_inputs.size());
  node.ints = std::uint16_t(node_ints.size());
  node.constants = std::uint16_t(node_constants.size());
  node.first_input = append(inputs, node_inputs);
  node.first_int = append(ints, node_ints);
  const double* block = constants.data();
  const bool own =
      !node_constants.empty() && node_constants.data() >= block && node_constants.data() < block + constants.size();
  node.first_constant = own ? std::uint32_t(node_constants.data() - block) : append(constants, node_constants);
  node.set(outputs[0]);
  origins.push_back({where, frame});
  for (std::size_t k = 1; k < outputs.size(); ++k) {  // a further output has one operand: the first
    Node& other = nodes.emplace_back();
    other.op = output_op().id;
    other.flags = flags;
    other.inputs = 1;
    other.first_input = append(inputs, std::span(&id, 1));
    other.first_int = std::uint32_t(ints.size());
    other.first_constant = std::uint32_t(constants.size());
    other.set(outputs[k]);
    origins.push_back({where, frame});
  }
  return id;
}

void Tape::read_first(StateImpl& parameter) {
  const std::int32_t position = use(parameter).position;
  if (frame < 0)
    parameter.placed = true;  // by the program itself
  else if (std::find(first_reads.begin(), first_reads.end(), position) == first_reads.end())
    first_reads.push_back(position);
}

void Tape::place_first_reads() {
  for (const std::int32_t position : first_reads)
    if (StateImpl* p = states[std::size_t(position)]) p->placed = true;
  first_reads.clear();
}

void Tape::clear() {
  nodes.clear();
  inputs.clear();
  ints.clear();
  constants.clear();
  origins.clear();
  frames.clear();
  frame = -1;
  bound.clear();
  kept.clear();
  retained = false;
  executed = in_use = 0;
  handed_out.clear();
  root_draws = 0;
  first_gradient = kNone;
  states.clear();
  state_ids.clear();
  first_reads.clear();
  gradients.clear();
  checkpoints.clear();
  clones.clear();
  draws.clear();
  commits.clear();
  epoch = next_epoch();
  if (this == detail::active_tape) detail::active_epoch = epoch;
}

std::string Tape::where(Site site, int f) const {
  std::string out = site.line() ? "at " + line_of(site) : "";  // some calls cannot tell
  for (; f >= 0; f = frames[f].parent)
    out += fmt::format("{}in {}, called at {}", out.empty() ? "" : "\n",
                       frames[f].path->empty() ? "the model" : *frames[f].path, line_of(frames[f].where));
  return out;
}

std::string Tape::where(NodeId id) const { return where(origins[id].where, origins[id].frame); }

std::string Tape::where_used(std::int32_t state) const {
  for (NodeId id = 0; id < nodes.size(); ++id) {
    std::vector<std::int32_t> used;
    if (&op(id) == &state_op()) used.push_back(std::int32_t(ints_of(id)[0]));
    if (op(id).writes) op(id).writes(*this, id, used);
    if (std::ranges::find(used, state) != used.end()) return where(id);
  }
  return "";
}

std::string Tape::name(NodeId id) const {
  const Node& node = nodes[id];
  const std::string what(node.op == pointwise_op().id ? pointwise_name(*this, id) : op(id).name);
  const int f = origins[id].frame;
  return f < 0 || frames[f].path->empty() ? what : *frames[f].path + ": " + what;
}

void Tape::check_states(Site where) const {
  if (std::find(states.begin(), states.end(), nullptr) != states.end())
    fail_at(where, "run: a state was destroyed while the step that uses it was being recorded", {},
            "keep models, parameters and caches alive until run returns");
}

// ---- the tapes of a thread --------------------------------------------------------------------------------------------------

Tapes::Tapes() {
  pending.eager = true;
  pending.clear();
  step.clear();
  use(pending);
}

Tapes::~Tapes() { detail::active_tape = nullptr; }

void Tapes::use(Tape& t) {
  detail::active_tape = &t;
  detail::active_epoch = t.epoch;
}

Tapes& tapes() {
  thread_local Tapes t;
  return t;
}

bool recording() { return detail::active_tape == &tapes().step; }

namespace {

bool held(const Tape& t, NodeId id) { return t.kept[id] && t.kept[id].value()->references.load() > 1; }

// Something on the tape can still be asked for: a value that is held and is not there yet, or may be differentiated, a gradient
// that no optimizer has taken, an effect that has not happened.
bool is_needed(Tape& t) {
  const auto wanted = [&](NodeId id) {
    return held(t, id) && (t.nodes[id].has(Node::requires_grad) || !t.kept[id].value()->memory);
  };
  if (t.in_use < t.kept.size() && wanted(t.in_use)) return true;
  for (NodeId id = NodeId(t.kept.size()); id-- > 0;)
    if (wanted(id)) return t.in_use = id, true;
  const auto pending = [&](const StateImpl* p) { return p && t.use(*p).gradient != Tape::kNone; };
  return std::any_of(t.gradients.begin(), t.gradients.end(), pending) || !t.commits.empty() || !t.draws.empty() ||
         has_effects(t);
}

}  // namespace

bool differentiable(const Tape& t) {
  for (NodeId id = NodeId(t.kept.size()); id-- > 0;)
    if (held(t, id) && t.nodes[id].has(Node::requires_grad)) return true;
  return false;
}

bool has_effects(const Tape& t) {
  for (NodeId id = t.executed; id < t.nodes.size(); ++id)
    if (t.op(id).writes) return true;
  return false;
}

void detail::keep_house(Tape& t) {
  if (tapes().hold > 0) return;
  if (t.retained && (!is_needed(t) || t.outdated())) t.clear();
  if (t.nodes.size() >= kPendingNodes && t.nodes.size() % kPendingNodes < 64 && t.frame < 0 && !differentiable(t)) flush();
}

// ---- the remainder of a tape ------------------------------------------------------------------------------------------------

namespace {

// Marks what has to be evaluated, and what of it is there already.
struct Needs {
  enum Need : std::uint8_t { nothing, value, evaluation };

  explicit Needs(const Tape& tape) : t(tape), of(table()) {
    if (of.size() < t.nodes.size()) of.resize(t.nodes.size(), nothing);
  }
  ~Needs() {
    for (const NodeId id : ids) of[id] = nothing;
  }
  Needs(const Needs&) = delete;
  Needs& operator=(const Needs&) = delete;

  // Of every node of the longest tape so far: a read takes the time of what it evaluates, however long the tape is.
  static std::vector<Need>& table() {
    thread_local std::vector<Need> all;
    return all;
  }

  bool is_there(NodeId id) const {  // not of a State, which may have another value now
    return id < t.kept.size() && t.kept[id] && t.kept[id].value()->memory && t.nodes[id].op != state_op().id;
  }
  void evaluate(NodeId id) {
    if (t.nodes[id].op == output_op().id) id = t.inputs_of(id)[0];  // all outputs of an op go together
    if (of[id] == evaluation) return;
    for (NodeId output = id; output < id + t.nodes[id].outputs; ++output) of[output] = evaluation, ids.push_back(output);
    open.push_back(id);
  }
  void need(NodeId id) {
    if (of[id] != nothing) return;
    if (!is_there(id)) return evaluate(id);
    of[id] = value, ids.push_back(id);
  }
  void close() {
    while (!open.empty()) {
      const NodeId id = open.back();
      open.pop_back();
      for (const NodeId input : t.inputs_of(id))
        if (input != Tape::kNone) need(input);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }

  const Tape& t;
  std::vector<Need>& of;
  std::vector<NodeId> ids, open;
};

}  // namespace

Remainder::Remainder(Tape& t, const std::vector<NodeId>& wanted) : whole_(t) {
  Needs needs(t);
  for (const NodeId id : wanted) needs.need(id);
  for (NodeId id = t.executed; id < t.nodes.size(); ++id)
    if (t.op(id).writes) needs.evaluate(id);
  needs.close();

  rest.states = t.states, rest.state_ids = t.state_ids;
  thread_local std::vector<NodeId> place;  // of the nodes in `ids`, to which all that are looked up belong
  if (place.size() < t.nodes.size()) place.resize(t.nodes.size());
  std::unordered_map<std::uint32_t, std::pair<std::uint32_t, std::uint16_t>> constants;  // of nodes that share them
  for (const NodeId id : needs.ids) {
    place[id] = NodeId(rest.nodes.size());
    if (rest.first_gradient == Tape::kNone && id >= t.first_gradient) rest.first_gradient = place[id];
    Node& node = rest.nodes.emplace_back(t.nodes[id]);
    rest.origins.push_back(t.origins[id]);
    node.first_input = std::uint32_t(rest.inputs.size());
    node.first_int = std::uint32_t(rest.ints.size());
    node.first_constant = 0;
    const bool there = needs.of[id] == Needs::value;
    if (there || node.op == input_op().id) {
      node.op = input_op().id, node.outputs = 1, node.inputs = 0, node.ints = 1, node.constants = 0;
      rest.ints.push_back(std::int64_t(rest.bound.size()));
      rest.bound.push_back(there ? t.kept[id] : t.bound[std::size_t(t.ints_of(id)[0])]);
      continue;
    }
    for (const NodeId input : t.inputs_of(id)) rest.inputs.push_back(input == Tape::kNone ? input : place[input]);
    for (const std::int64_t integer : t.ints_of(id)) rest.ints.push_back(integer);
    if (node.constants == 0) continue;
    const std::uint32_t first = t.nodes[id].first_constant;
    auto& [copy, count] = constants[first];
    if (count < node.constants) {
      copy = std::uint32_t(rest.constants.size()), count = node.constants;
      for (std::uint32_t k = first; k < first + count; ++k) rest.constants.push_back(t.constants[k]);
    }
    node.first_constant = copy;
  }
  for (const NodeId id : wanted) results.push_back(place[id]);
  rest.frames.swap(t.frames);
}

Remainder::~Remainder() { rest.frames.swap(whole_.frames); }

// ---- handles ----------------------------------------------------------------------------------------------------------------

Tensor detail::kept_handle(Tape& t, NodeId id) {
  t.kept.resize(t.nodes.size());
  if (!t.kept[id]) {
    auto* v = new Value;
    v->dtype = t.nodes[id].dtype;
    v->shape = t.nodes[id].shape();
    v->place.set(t.epoch, id);
    t.kept[id] = Tensor::of_value(v);
  }
  if (!t.kept[id].value()->memory && !held(t, id)) t.handed_out.push_back(id);
  return t.kept[id];
}

// ---- module calls and States ------------------------------------------------------------------------------------------------

std::int32_t open_frame(const std::string* path, Site where, const Tensor& input) {
  before_record();
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
  if (const Value* v = output.value()) {
    if (const auto node = v->place.on(t.epoch)) f.output = *node;
  } else if (output.epoch() == t.epoch) {
    f.output = output.raw_node();
  }
  t.frame = f.parent;
}

StateUse& Tape::use(const StateImpl& state) {
  if (uses.size() <= state.index) uses.resize(state.index + 1);
  StateUse& u = uses[state.index];
  if (u.epoch != epoch || u.id != state.id) u = {epoch, state.id};
  return u;
}

void Tape::retain() {
  retained = true;
  versions.clear();
  for (const StateImpl* s : states) versions.emplace_back(s->index, state_version(s->index));
}

bool Tape::outdated() const {
  return retained && std::ranges::any_of(versions, [](const auto& v) { return state_version(v.first) != v.second; });
}

std::int32_t state_position(const State& state) {
  state.shape();  // an error if it is absent
  Tape& t = tape();
  StateImpl& impl = *state.impl();
  StateUse& use = t.use(impl);
  if (use.position < 0) {
    use.position = std::int32_t(t.states.size());
    t.states.push_back(&impl);
    t.state_ids.push_back(impl.id);
  }
  return use.position;
}

void mark_assigned(const State& state, Site where) {
  Tape& t = tape();
  StateUse& use = t.use(*state.impl());
  if (use.assigned)
    fail_at(where, fmt::format("assign: state '{}' is written twice in one step", state.name()), {},
            "combine the values and assign once");
  use.assigned = true;
  use.read = Tape::kNone;  // a later read sees the new value
}

void on_commit(std::function<void()> f) { tape().commits.push_back(std::move(f)); }

}  // namespace weft
