// From a recording to a plan: what is dead, what is computed inside which kernel, what is stored where and for how long.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "autograd/lowering.h"
#include "autograd/plan.h"
#include "autograd/tape.h"

namespace weft {

// Prices, in FMA-class operations an element (measured on an H200). Re-reading a stored bf16 value costs as much as 32 of them
// or 5 exponentials; a wider value as much a byte.
inline constexpr double kReadPrice = 16;  // of a byte
inline constexpr double kSpecialPrice = 6.4;
inline constexpr double kStoreMargin = 1.2;      // readers may share a kernel, and a value that is not stored takes no memory
inline constexpr int kKernelOps = 200;           // a kernel's expressions stay below this
inline constexpr std::size_t kKernelRoots = 8;   // values one pointwise kernel stores
inline constexpr std::size_t kGroupWindow = 16;  // recent kernels of which one may take a value in
inline constexpr std::int64_t kSmall = 65536;    // elements of which a kernel takes no longer than its launch

// Plans the recording. `results` are nodes of the recording whose values the caller wants (dense).
std::unique_ptr<Plan> schedule(const Tape& tape, const std::vector<NodeId>& results, const Target& target);

class Scheduler {
 public:
  Scheduler(const Tape& tape, const std::vector<NodeId>& results, const Target& target);
  std::unique_ptr<Plan> run();

 private:
  friend class Lowering;

  // A kernel to be made: a structured node, or a group of pointwise values of one shape that are stored together.
  struct Group {
    std::vector<NodeId> members;  // ascending; the kernel runs at the last one's place on the tape
    bool closed = false;          // writes a State: nothing may be added later
    bool early = false;           // all that they read is there from the start: the kernel runs at the first one's place
    NodeId host = Tape::kNone;    // the structured node whose kernel computes them
  };
  struct Reader {
    NodeId kernel;  // the stored pointwise or structured node whose kernel reads
    bool through_view;
  };

  // What a product writes besides itself: pointwise nodes that follow it and that its library computes too.
  struct Product {
    NodeId last;  // the node whose value is written, at whose place on the tape the product runs
    NodeId bias = Tape::kNone, addend = Tape::kNone;
    Activation activation = Activation::none;
    std::vector<std::string> reasons = {};
  };

  // Analysis.
  void mark_live();
  void find_users();
  void fuse_products();
  bool absorb_reader(NodeId id, Product& product) const;
  bool read_from_memory(NodeId id) const;
  std::string add_to(NodeId id, Product& product, NodeId other) const;
  void fuse();
  void decide(NodeId id);
  bool must_store(NodeId id, std::string* why) const;
  Expr fused_expr(NodeId id) const;
  Expr narrowed(NodeId id, Expr value) const;
  void find_readers();
  void group();
  bool can_join(const Group& group, NodeId id) const;
  bool shares_leaf(const Group& group, NodeId id) const;
  bool is_small(NodeId id) const;
  bool there_from_the_start(NodeId id) const;
  bool overwritten(NodeId leaf, NodeId until) const;
  void find_hosts();
  void merge_small();
  NodeId host_of(const Group& group) const;
  bool hosts_after(const Group& group, NodeId host) const;
  bool hosts_before(const Group& group, NodeId host, NodeId input) const;
  bool feeds_on_host(NodeId id) const;
  void find_snapshots();
  void write_in_place();
  bool may_write(NodeId producer, NodeId value, NodeId assign, std::span<const NodeId> reads) const;
  void place_outputs();
  void place_part(NodeId part, Operand place);

  // Emission.
  bool feeds_collective(NodeId id) const;
  std::vector<NodeId> emission_order() const;
  void emit_all();
  void emit_leaf(NodeId id);
  void emit_group(const Group& group);
  void emit_structured(NodeId id);
  void emit(std::string name, NodeId node, PlannedKernel kernel, std::vector<Operand> outputs,
            std::vector<std::string> reasons);
  void emit_pointwise(std::string name, NodeId node, Fused fused, std::vector<Operand> outputs, const Shape& space,
                      bool in_double, std::vector<std::string> reasons);
  Operand where(NodeId id);  // memory of a value; views are resolved, by a copy if they must
  Operand copied(const Operand& from, NodeId node, std::optional<DType> dtype = {});
  void emit_copy(const Operand& from, const Operand& to, NodeId node, std::string reason);
  Operand new_value(const Shape& shape, DType dtype, NodeId node);
  Operand state_memory(std::int64_t position);  // of Tape::states
  Operand twin_memory(std::int64_t position);
  Operand twin_of(const Operand& o, NodeId reader);  // the same elements in bf16, or an absent operand
  Operand converted(const Operand& from, DType dtype, NodeId input, NodeId reader);  // see Lowering::view
  void plan_twins();
  int new_slot(Slot::Kind kind, std::size_t bytes, int index, std::string name);
  Fused fused_over(const std::vector<Expr>& roots, const Shape& space, NodeId given = Tape::kNone);
  std::vector<Expr> roots_of(const Group& group, NodeId given = Tape::kNone);
  std::vector<std::string> reasons_of(const Group& group) const;
  std::string names_of(const Group& group) const;
  Operand memory_for(NodeId id);  // of a stored pointwise value
  void touch(const Operand& o);
  void land(int slot, int kernel);
  void assign_memory();

  // Facts about nodes.
  bool is_pointwise(NodeId id) const { return kind_[id] == Kind::pointwise; }
  NodeId written_by(NodeId id) const {  // the node whose value the kernel of structured `id` writes
    const auto product = products_.find(id);
    return product == products_.end() ? id : product->second.last;
  }
  const Group* guests_of(NodeId id) const {  // of a structured node
    return guest_group_[id] < 0 ? nullptr : &groups_[std::size_t(guest_group_[id])];
  }
  NodeId place_of(const Group& group) const {
    return group.host != Tape::kNone ? group.host : group.early ? group.members.front() : group.members.back();
  }
  bool is_guest_of(NodeId id, NodeId host) const {  // a stored pointwise value that the kernel of `host` computes
    return is_root(id) && groups_[std::size_t(group_of_[id])].host == host;
  }
  bool is_root(NodeId id) const { return is_pointwise(id) && live_[id] && stored_[id]; }
  bool in_double(NodeId id) const;
  NodeId memory_of(NodeId id, bool* through_view = nullptr) const;  // through views to the node that owns memory
  std::vector<NodeId> leaves(Expr e) const;
  template <class F>
  void each_leaf(NodeId kernel, F&& f) const;  // f(node) for each value the kernel of `kernel` reads from memory

  enum class Kind : std::uint8_t { leaf, view, pointwise, structured, output, absorbed };  // absorbed: by what it follows

  const Target target_;
  const bool gpu_;  // kernels are CUDA text
  const Tape& t_;
  const std::vector<NodeId>& results_;
  std::unique_ptr<Plan> plan_;
  std::vector<Kind> kind_;
  std::vector<std::uint8_t> live_, read_, stored_, snapshot_;
  std::vector<std::vector<NodeId>> users_;
  std::vector<Expr> expr_;                    // of pointwise nodes, over input(node) and slot(constant)
  std::vector<std::string> reason_;           // why a pointwise value is stored or inlined
  std::vector<std::vector<Reader>> readers_;  // kernels that read a node's memory
  std::vector<Group> groups_;
  std::vector<int> group_of_, guest_group_;
  std::vector<std::int64_t> assigned_;       // by state position: the node that writes it, or -1
  std::vector<NodeId> written_at_once_;      // assigns without a kernel: the producer of the value writes the State
  std::map<NodeId, Product> products_;       // if products are fused
  std::map<NodeId, NodeId> product_at_;      // the product that writes an absorbed node
  std::vector<Operand> operand_;             // where stored values live
  std::vector<std::uint8_t> resolved_;       // operand_ of a view is known
  std::vector<int> state_slot_, twin_slot_;  // by state position, or -1
  std::vector<NodeId> twin_reader_;          // by state position: the first node that reads the twin, or kNone
  std::vector<std::uint8_t> twin_written_;   // by state position: the node that writes the State writes the twin too
  std::map<std::pair<NodeId, DType>, Operand> converted_;  // copies, by input
  std::vector<int> touched_;                               // slots of the node being emitted
  // By collective kernel: the slots that it reads and writes, and the first kernel behind it that touches one.
  struct Flight {
    int kernel, from, to, join;
  };
  std::vector<Flight> flights_;
  // By node and constant, made once: a kernel that had its own would make planning quadratic.
  std::vector<std::optional<Expr>> registers_;  // of the group being emitted: what its members are there, else nothing
  std::vector<std::optional<Expr>> leaf_of_;    // of fused_over: only what its expressions read is valid
  std::vector<int> constant_of_;                // likewise
  int result_of(NodeId id) const;
};

}  // namespace weft
