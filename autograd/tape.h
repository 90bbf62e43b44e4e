// The tape: a vector of nodes in recording order. Its bytes, with the switches, are the key of the plan that runs it, so a
// node holds no address and no float.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "autograd/shape.h"
#include "autograd/tensor.h"
#include "jit/dtype.h"
#include "jit/error.h"

namespace weft {

struct Op;
struct StateImpl;

// An output to be recorded: its shape and storage type.
struct Out {
  Shape shape;
  DType dtype = DType::f32;
};

struct Node {
  enum Flag : std::uint8_t { requires_grad = 1, stopped = 2 };  // stopped: recorded under NoGrad
  std::uint16_t op = 0;                                         // Op::id
  DType dtype = DType::f32;
  std::uint8_t rank = 0;
  std::uint8_t flags = 0;
  std::uint8_t outputs = 1;  // further outputs are the nodes that follow at once (op `output`)
  std::uint16_t inputs = 0;
  std::uint16_t ints = 0;
  std::uint16_t constants = 0;
  std::uint32_t first_input = 0;
  std::uint32_t first_int = 0;
  std::uint32_t first_constant = 0;
  std::int64_t dims[kMaxRank] = {};

  Shape shape() const { return Shape::from_padded(dims, rank); }
  void set(const Out& out) {
    dtype = out.dtype;
    rank = std::uint8_t(out.shape.rank());
    std::memcpy(dims, out.shape.padded(), sizeof dims);
  }
  bool has(Flag flag) const { return flags & flag; }
};
static_assert(sizeof(Node) == 72 && std::is_trivially_copyable_v<Node>, "keys compare the bytes of nodes");

// Where a node was recorded: its call site and the module call it belongs to (-1: none).
struct Origin {
  Site where;
  std::int32_t frame;
};

// A module call: which module, from where. Frames form a tree; `draws` numbers the random draws made directly in one.
struct Frame {
  int parent;
  Site where;
  const std::string* path;  // interned, "layers.3.mixer"
  std::uint32_t draws;
  NodeId first, last;            // nodes recorded in it: [first, last)
  NodeId input = 0, output = 0;  // what `tap` gives; kNone if the call takes or gives no tensor
};

namespace detail {
inline constinit const Op* op_table[512] = {};  // by Op::id, filled at static initialisation
}

// What a recording knows of a State. It lies in the tape, so that threads may read a State at the same time.
struct StateUse {
  std::uint64_t epoch = 0, id = 0;  // of the recording and of the State: of another one it says nothing
  std::int32_t position = -1;       // in Tape::states, -1: the recording does not name it
  NodeId read = ~NodeId(0);         // reads it as of now
  NodeId gradient = ~NodeId(0);     // of this recording, not yet consumed
  bool assigned = false;
  bool zeroed = false;  // the gradient of earlier runs is consumed or forgotten
};

// Everything recorded since the epoch began. Plain data: backward, schedule and plan read it.
struct Tape {
  static constexpr NodeId kNone = ~NodeId(0);

  std::vector<Node> nodes;
  std::vector<NodeId> inputs;
  std::vector<std::int64_t> ints;
  std::vector<double> constants;  // the step's constants block; not part of the key
  std::vector<Origin> origins;    // of each node
  std::vector<Frame> frames;
  std::int32_t frame = -1;        // innermost open frame
  std::uint64_t epoch = 0;        // unique to this recording; a handle of another epoch is dead
  std::uint32_t root_draws = 0;   // random draws made outside any module
  NodeId first_gradient = kNone;  // where the first backward began, for people who look at kernels

  std::vector<Tensor> bound;              // values that `input` nodes stand for
  std::vector<Tensor> kept;               // outside run: handles of every node, to know which are held elsewhere
  bool eager = false;                     // the tape outside run
  bool retained = false;                  // outside run: executed, but kept because a live value may still be differentiated
  std::vector<StateImpl*> states;         // that nodes name by their position here; see ~StateImpl
  std::vector<std::uint64_t> state_ids;   // of each, part of the key
  std::vector<std::int32_t> first_reads;  // positions of the Params that the open frames read for the first time ever
  std::vector<StateUse> uses;             // by StateImpl::index; see use()
  std::vector<std::pair<std::uint32_t, std::uint64_t>> versions;  // of a retained tape: index and version of each of its States
  std::vector<StateImpl*> gradients;                              // Params with a gradient of this recording not yet consumed
  std::vector<std::pair<NodeId, NodeId>> checkpoints;             // ranges [begin, end) to evaluate again in backward
  std::vector<std::pair<NodeId, NodeId>> clones;                  // a node of such a range, and what it was evaluated again as
  std::vector<std::shared_ptr<std::uint64_t>> draws;              // ticks of generators, which advance when the run commits
  std::vector<std::function<void()>> commits;                     // host effects of recording, in order
  NodeId executed = 0;                                            // outside run, retained: its nodes before this one are
  NodeId in_use = 0;               // likewise: a node that something outside held when it was last looked for
  std::vector<NodeId> handed_out;  // outside run: nodes whose handles were given away since it was executed

  // Records a node; kNone among the inputs marks an absent optional operand. The node requires a gradient if an input does and
  // gradients are on; whether its op has a rule for it shows when a gradient arrives. Further outputs get the ids that follow.
  // Constants that lie in the tape's own block (a gradient uses those of its node) are shared, not copied.
  NodeId record(const Op& op, std::span<const NodeId> inputs, std::span<const Out> outputs, std::span<const std::int64_t> ints,
                std::span<const double> constants, Site where);
  void read_first(StateImpl& parameter);  // its first read with a gradient: see first_reads
  void place_first_reads();               // those of first_reads are where they should be
  void clear();                           // forgets everything, keeps capacity, begins a new epoch
  void check_states(Site where) const;    // an error if a State that the recording names has died since
  StateUse& use(const StateImpl& state);
  void retain();          // what was executed, for a later backward
  bool outdated() const;  // it was retained, and a State that it names has changed since: its values cannot be computed again

  const Op& op(NodeId id) const { return *detail::op_table[nodes[id].op]; }
  std::span<const NodeId> inputs_of(NodeId id) const { return {inputs.data() + nodes[id].first_input, nodes[id].inputs}; }
  std::span<const std::int64_t> ints_of(NodeId id) const { return {ints.data() + nodes[id].first_int, nodes[id].ints}; }
  Shape shape(NodeId id) const { return nodes[id].shape(); }

  std::string where(NodeId id) const;  // "at file:line", then each frame outward, a line each
  std::string where(Site site, int frame) const;
  std::string where_used(std::int32_t state) const;  // of the first node that reads or writes the State at this position
  std::string name(NodeId id) const;                 // "layers.3.mixer: matmul"
};

// ---- the tape in use on this thread -----------------------------------------------------------------------------------------

// What a thread records into: one tape for `run`, one for ops outside it.
struct Tapes {
  Tapes();
  ~Tapes();
  Tape step;     // inside run
  Tape pending;  // outside
  bool checkpointing = false;
  int hold = 0;  // > 0: `pending` must not be flushed now (gradients are being recorded by node)
  void use(Tape& t);
};
Tapes& tapes();

namespace detail {
inline constinit thread_local Tape* active_tape = nullptr;
inline constinit thread_local bool gradients_on = true;  // NoGrad
void keep_house(Tape& t);
Tensor kept_handle(Tape& t, NodeId id);
}  // namespace detail
inline Tape& tape() { return detail::active_tape ? *detail::active_tape : tapes().pending; }
bool recording();  // inside `run`

// A live value that may still be differentiated: something outside the tape holds it, and it leads to a parameter.
bool differentiable(const Tape& t);
bool has_effects(const Tape& t);  // it writes States, and has not been executed yet

// What is left to do of a tape that was executed before: the nodes that `results` and effects need, where values that are
// there, since somebody read them, are inputs. So a loop that reads what it carries records the same few nodes each time.
struct Remainder {
  Remainder(Tape& tape, const std::vector<NodeId>& results);
  ~Remainder();
  Remainder(const Remainder&) = delete;
  Remainder& operator=(const Remainder&) = delete;
  Tape rest;
  std::vector<NodeId> results;  // on it

 private:
  Tape& whole_;  // whose frames `rest` has meanwhile
};

// Before an op is recorded outside `run`: the tape is flushed when it has become long, and forgotten when nothing on it can be
// asked for any more.
inline void before_record() {
  if (Tape& t = tape(); t.eager) detail::keep_house(t);
}

// A handle of node `id` of the active tape; outside `run` one whose value is kept when the tape is flushed.
inline Tensor handle(NodeId id) {
  Tape& t = tape();
  return t.eager ? detail::kept_handle(t, id) : Tensor::of_node(t.epoch, id);
}

// A module call: opened with its path (a pointer that stays valid) and first tensor argument, closed with its result.
std::int32_t open_frame(const std::string* path, Site where, const Tensor& input);
void close_frame(std::int32_t frame, const Tensor& output);

// The position of a State in Tape::states: how the ints of a node name it.
std::int32_t state_position(const State& state);

// Declares that the op being recorded writes `state`. An error if it was written before in this recording.
void mark_assigned(const State& state, Site where);

// f runs when the recording has been executed; an exception before that drops it.
void on_commit(std::function<void()> f);

}  // namespace weft
