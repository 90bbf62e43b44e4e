#include "autograd/state.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <vector>

#include "autograd/lowering.h"
#include "autograd/op.h"
#include "autograd/pointwise.h"
#include "autograd/run.h"
#include "jit/convert.h"
#include "jit/memory.h"

namespace weft {
namespace {

// Small numbers of the States that live, and their versions.
class Indices {
 public:
  std::uint32_t take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      versions_.push_back(0);
      return std::uint32_t(versions_.size() - 1);
    }
    const std::uint32_t index = free_.back();
    free_.pop_back();
    return index;
  }
  void give_back(std::uint32_t index) {
    const std::lock_guard lock(mutex_);
    ++versions_[index];
    free_.push_back(index);
  }
  void change(std::uint32_t index) {
    const std::lock_guard lock(mutex_);
    ++versions_[index];
  }
  void change(const Tape& tape, const std::vector<int>& positions) {
    const std::lock_guard lock(mutex_);
    for (const int p : positions) ++versions_[tape.states[std::size_t(p)]->index];
  }
  std::uint64_t version(std::uint32_t index) {
    const std::lock_guard lock(mutex_);
    return versions_[index];
  }

 private:
  std::mutex mutex_;
  std::vector<std::uint64_t> versions_;
  std::vector<std::uint32_t> free_;
};

Indices& indices() {
  static auto* const of_the_process = new Indices;  // States may die after the statics
  return *of_the_process;
}

// Host access happens between steps: what is pending runs first.
void settle(const StateImpl& s, Site where) {
  if (recording())
    fail_at(where, fmt::format("state '{}' was accessed from the host inside run", s.name), {},
            "read it with read(), write it with assign(), or do it between steps");
  flush();
}

// A State that a recording names is going away: what is pending runs first; a step being recorded cannot be run any more.
void state_dies(StateImpl& state) {
  if (!detail::active_tape) return;  // the thread is ending
  Tapes& t = tapes();
  if (const std::int32_t position = t.step.use(state).position; position >= 0) t.step.states[std::size_t(position)] = nullptr;
  if (t.pending.use(state).position < 0) return;
  try {
    if (!recording()) flush();
  } catch (const Error&) {  // the tape is cleared, its handles are dead
  }
  t.pending.clear();
}

void writes_first_int(const Tape& t, NodeId id, std::vector<std::int32_t>& positions) {
  positions.push_back(std::int32_t(plain_ints(t, id)[0]));
}

// assign_at: copies rows to position, position + 1, ... modulo the capacity.
void lower_assign_at(Lowering& l) {
  const Operand value = l.dense(0), to = l.state(l.integer(0));
  const int position = l.constant(0);
  const std::int64_t rows = value.dims[0], capacity = to.dims[0];
  std::int64_t row = 1;
  for (int i = 1; i < to.rank; ++i) row *= to.dims[i];
  l.emit("assign_at", [=](const Launch& launch) {
    const auto start = std::int64_t(launch.constants[position]);
    const std::size_t bytes = std::size_t(row) * size_of(to.dtype);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = ((start + r) % capacity + capacity) % capacity;
      std::memcpy(launch.view(to).data + std::size_t(at) * bytes, launch.view(value).data + std::size_t(r) * bytes, bytes);
    }
  });
}

void cuda_assign_at(Lowering& l) {
  const Operand value = l.dense(0), to = l.state(l.integer(0));
  const std::int64_t rows = value.dims[0], n = value.numel();
  if (n == 0) return;
  const std::int64_t dims[] = {rows, n / rows};
  Operand matrix = dense_operand(value.slot, value.dtype, dims);
  matrix.offset = value.offset;  // a State begins at an aligned address
  const int width = vector_width(dims, std::span<const Operand>(&matrix, 1));
  constexpr unsigned kThreads = 256;
  CudaText text = l.text("assign_at");
  text.define("V", width).define("T", kThreads).type("Element", to.dtype).pointer("value", value).pointer("state", to);
  text.integer("vectors", n / width).integer("columns", dims[1] / width).integer("capacity", to.dims[0]);
  text.integer("position", l.constant(0)).traffic(2.0 * double(n) * double(size_of(to.dtype)));
  l.emit(text.launch("jit/assign_at.cuh", {unsigned((n / width + kThreads - 1) / kThreads), 1, 1}, {kThreads, 1, 1}));
}

const Op& assign_at_op =
    register_op({.name = "assign_at", .lower = lower_assign_at, .cuda = cuda_assign_at, .writes = writes_first_int});

}  // namespace

std::uint64_t next_serial() {
  static std::atomic<std::uint64_t> counter{0};
  return ++counter;
}

// The scheduler writes the value into the State's memory itself, so that the kernel that makes the value can do it.
const Op& assign_op() {
  static const Op& op = register_op({.name = "assign", .writes = writes_first_int});
  return op;
}

StateImpl::StateImpl(Shape s, DType d, std::string n)
    : id(next_serial()),
      index(indices().take()),
      dtype(d),
      shape(s),
      memory(device(), bytes_of(s, d), "state '" + n + "' " + to_string(s)),
      name(std::move(n)) {
  memory.fill(0);
}

std::uint64_t state_version(std::uint32_t index) { return indices().version(index); }
void states_change(const Tape& tape, const std::vector<int>& written) { indices().change(tape, written); }
void StateImpl::changes() { indices().change(index); }

StateImpl::Twin& StateImpl::make_twin() {
  if (!twin)
    twin.reset(
        new Twin{Memory(memory.device(), bytes_of(shape, DType::bf16), "bf16 twin of '" + name + "' " + to_string(shape))});
  return *twin;
}

StateImpl::~StateImpl() {
  state_dies(*this);
  indices().give_back(index);
}

State::State(Shape shape, DType dtype, std::string name, Site where) {
  check_shape(shape, where);
  impl_ = std::make_shared<StateImpl>(shape, dtype, std::move(name));
}

void State::fail_absent(Site where) {
  fail_at(where, "state: an absent State or Param was used", {},
          "make it with a shape, as Param w({2, 3}); what may be absent is asked first: if (layer.bias())");
}

Tensor State::read(Site where) const {
  there(where);
  before_record();
  Tape& t = tape();
  const bool differentiated = impl_->parameter && impl_->trainable && detail::gradients_on;
  NodeId id = t.use(*impl_).read;
  if (id == Tape::kNone) {
    const std::int64_t position = state_position(*this);
    const Out out{impl_->shape, impl_->dtype};
    id = t.record(state_op(), {}, {&out, 1}, {&position, 1}, {}, where);
    if (differentiated) t.nodes[id].flags |= Node::requires_grad;
    t.use(*impl_).read = id;
  } else if (differentiated) {
    // Read before under NoGrad: the leaf may be shared, its users decide by their own flags.
    t.nodes[id].flags = Node::requires_grad;
  }
  if (differentiated && !impl_->placed) [[unlikely]]
    t.read_first(*impl_);
  return handle(id);
}

template <class T>
std::vector<T> State::to_stored(Site where) const {
  settle(there(where), where);
  std::vector<T> out(std::size_t(impl_->shape.numel()));
  visit_dtype(impl_->dtype, [&](auto from) {
    std::vector<decltype(from)> data(out.size());
    impl_->memory.read(data.data());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = value_as<T>(data[i]);
  });
  return out;
}

template <class T>
void State::set_stored(const std::vector<T>& values, Site where) {
  settle(there(where), where);
  if (std::int64_t(values.size()) != impl_->shape.numel())
    fail_at(where, fmt::format("state '{}': the number of values is not that of the shape", impl_->name),
            fmt::format("{} values, shape {}", values.size(), weft::to_string(impl_->shape)));
  visit_dtype(impl_->dtype, [&](auto to) {
    std::vector<decltype(to)> data(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) data[i] = value_as<decltype(to)>(values[i]);
    impl_->memory.write(data.data());
  });
  impl_->outdate_twin();
  impl_->changes();
}

template std::vector<float> State::to_stored(Site) const;
template std::vector<double> State::to_stored(Site) const;
template std::vector<std::int32_t> State::to_stored(Site) const;
template std::vector<std::int64_t> State::to_stored(Site) const;
template std::vector<std::uint8_t> State::to_stored(Site) const;
template void State::set_stored(const std::vector<float>&, Site);
template void State::set_stored(const std::vector<double>&, Site);
template void State::set_stored(const std::vector<std::int32_t>&, Site);
template void State::set_stored(const std::vector<std::int64_t>&, Site);
template void State::set_stored(const std::vector<std::uint8_t>&, Site);

std::vector<std::byte> State::bytes(Site where) const {
  settle(there(where), where);
  std::vector<std::byte> out(impl_->memory.size());
  impl_->memory.read(out.data());
  return out;
}

void State::set_bytes(const void* bytes, Site where) {
  settle(there(where), where);
  if (impl_->dtype == DType::boolean) {
    const auto* from = static_cast<const std::byte*>(bytes);
    std::vector<std::byte> copy(from, from + impl_->memory.size());
    normalise_booleans(copy);
    impl_->memory.write(copy.data());
  } else {
    impl_->memory.write(bytes);
  }
  impl_->outdate_twin();
  impl_->changes();
}

Param::Param(Shape shape, DType dtype, std::string name, Site where) : State(shape, dtype, std::move(name), where) {
  impl_->parameter = true;
  impl_->decay = shape.rank() >= 2;
}

State Param::gradient_sums(Site where) const {
  settle(there(where), where);
  return impl_->pending ? State(impl_->gradient) : State();
}

void Param::zero_grad(Site where) {
  StateUse& use = tape().use(there(where));
  use.gradient = Tape::kNone;
  use.zeroed = true;
  on_commit([impl = impl_] { impl->pending = false; });
  if (!recording() && tape().nodes.empty()) {  // nothing to wait for
    impl_->pending = false;
    tape().commits.pop_back();
  }
}

void assign(const State& state, Arg value, Site where) {
  const Shape& shape = state.shape(where);
  if (!broadcasts_to(value.shape(), shape))
    fail_at(where, fmt::format("assign: the value does not fit state '{}'", state.name()),
            fmt::format("value {}, state {}", to_string(value.shape()), to_string(shape)));
  mark_assigned(state, where);
  const std::int64_t position = state_position(state);
  record(assign_op(), {value.tensor()}, {{shape, state.dtype()}}, {&position, 1}, {}, where);
  if (!recording()) flush();
}

void assign_at(const State& state, const Scalar& position, Arg value, Site where) {
  const Shape& shape = state.shape(where);
  const bool fits = shape.rank() > 0 && value.shape().rank() == shape.rank() && value.shape()[0] <= shape[0] &&
                    value.shape().last(shape.rank() - 1) == shape.last(shape.rank() - 1);
  if (!fits)
    fail_at(where, fmt::format("assign_at: the rows do not fit state '{}'", state.name()),
            fmt::format("value {}, state {}", to_string(value.shape()), to_string(shape)),
            "give rows of the state's shape, at most its capacity");
  mark_assigned(state, where);
  const std::int64_t at = state_position(state);
  const double start = position.value();
  if (!(start >= -0x1p53 && start <= 0x1p53) || start != std::trunc(start))  // up to there a double is exact
    fail_at(where, "assign_at: the position is no row", fmt::format("position {}, state '{}'", start, state.name()),
            "give the number of the first row; it is taken modulo the capacity");
  const Tensor rows = convert(value.tensor(), state.dtype(), where);
  record(assign_at_op, {rows}, {{Shape{0}, state.dtype()}}, {&at, 1}, {&start, 1}, where);
  if (!recording()) flush();
}

}  // namespace weft
