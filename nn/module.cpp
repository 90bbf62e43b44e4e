#include "nn/module.h"

#include <algorithm>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <variant>

#include "autograd/op.h"
#include "autograd/random.h"
#include "nn/undrawn.h"

namespace weft {
namespace {

// Paths live as long as the process: tapes and plans keep pointers to them.
const std::string* intern(const std::string& path) {
  static std::mutex mutex;
  static std::unordered_set<std::string> paths;
  std::lock_guard lock(mutex);
  return &*paths.insert(path).first;
}

std::string join(const std::string& path, const std::string& name) { return path.empty() ? name : path + "." + name; }

}  // namespace

struct Module::Data {
  struct Entry {
    std::string name;
    std::variant<Param, State, std::shared_ptr<Data>> what;
    std::shared_ptr<const Module> part = {};  // of a child that parts() finds
    bool apart = false;                       // of a child that is in no state dict but its own
    Initialiser init = {};                    // of a param that has no values yet
    std::uint64_t seed = 0;
    std::shared_ptr<NameCounts> names = {};  // of that seed
    std::optional<Shape> file_shape = {};
  };
  const std::uint64_t serial = next_serial();
  std::vector<Entry> entries;  // in registration order
  const std::string* path = intern("");
  bool training = true;
  std::weak_ptr<Data> owner;  // the first module that it was added to, whose names it has
  bool placed = false;        // it was added to a module, or listed, loaded or put into a mode by itself
  bool initialised = true;    // all entries of this module and those below; may be false though they are

  void check_new(const std::string& name, Site where) const;
  void set_path(const std::string& new_path);
  void train(bool on);
  void initialise();
  // f(name, entry, module) for each param and buffer, depth first; the name is what it has seen from here. `saved`: only for
  // those of the state dict.
  template <class F>
  void visit(F&& f, const std::string& prefix = {}, bool saved = false);
};

void Module::Data::check_new(const std::string& name, Site where) const {
  if (name.empty() || name.front() == '.' || name.back() == '.')
    fail_at(where, "module: a name may not be empty or begin or end with a dot", "'" + name + "' in '" + *path + "'");
  for (const Entry& e : entries)
    if (e.name == name)
      fail_at(where, "module: a name is registered twice", "'" + name + "' in module '" + *path + "'",
              "every parameter, buffer and child of a module needs its own name");
}

// Names from the last entry to the first, so that a tied param keeps its first name.
void Module::Data::set_path(const std::string& new_path) {
  path = intern(new_path);
  for (auto e = entries.rbegin(); e != entries.rend(); ++e) {
    const std::string full = join(new_path, e->name);
    if (auto* child = std::get_if<std::shared_ptr<Data>>(&e->what)) {
      if ((*child)->owner.lock().get() == this) (*child)->set_path(full);
    } else if (auto* param = std::get_if<Param>(&e->what)) {
      param->impl()->name = full;
    } else {
      std::get<State>(e->what).impl()->name = full;
    }
  }
}

void Module::Data::train(bool on) {
  training = on;
  for (Entry& e : entries)
    if (auto* child = std::get_if<std::shared_ptr<Data>>(&e.what)) (*child)->train(on);
}

template <class F>
void Module::Data::visit(F&& f, const std::string& prefix, bool saved) {
  for (Entry& e : entries) {
    if (saved && e.apart) continue;
    const std::string name = join(prefix, e.name);
    if (auto* child = std::get_if<std::shared_ptr<Data>>(&e.what)) {
      (*child)->visit(f, name, saved);
    } else {
      f(name, e, *this);
    }
  }
}

static thread_local bool draws_nothing = false;

Undrawn::Undrawn() : before_(std::exchange(draws_nothing, true)) {}
Undrawn::~Undrawn() { draws_nothing = before_; }

void Module::Data::initialise() {
  if (draws_nothing) return;
  for (Entry& e : entries) {
    if (auto* child = std::get_if<std::shared_ptr<Data>>(&e.what)) {
      (*child)->initialise();
    } else if (e.init) {
      const std::string name = join(*path, e.name);
      weft::initialise(std::get<Param>(e.what), e.init, e.seed, name, e.names->next(name));
      e.init = {};
    }
  }
  initialised = true;
}

// -----------------------------------------------------------------------------------------------------------------------------

Module::Module() : data_(std::make_shared<Data>()) {}

void Module::add(std::string name, Param& param, Initialiser init, std::optional<Shape> file_shape, Site where) {
  data_->check_new(name, where);
  if (!param) fail_at(where, "module: an absent parameter cannot be registered", "'" + name + "'");
  if (file_shape && file_shape->numel() != param.shape().numel())
    fail_at(where, "module: the shape in files has another number of elements",
            "'" + name + "' " + to_string(param.shape()) + ", in files " + to_string(*file_shape));
  bool named = false;  // a tied param keeps its first name
  data_->visit([&](const std::string&, Data::Entry& e, Data&) {
    if (auto* other = std::get_if<Param>(&e.what)) named |= other->impl() == param.impl();
  });
  if (!named) param.impl()->name = join(*data_->path, name);
  if (init) data_->initialised = false;
  Rng& drawn_by = rng();
  data_->entries.push_back({std::move(name), param, {}, false, std::move(init), drawn_by.seed(), drawn_by.names(), file_shape});
}

void Module::add(std::string name, State& state, Site where) {
  data_->check_new(name, where);
  if (!state) fail_at(where, "module: an absent state cannot be registered", "'" + name + "'");
  state.impl()->name = join(*data_->path, name);
  data_->entries.push_back({std::move(name), state});
}

void Module::add_child(std::string name, Module& child, std::shared_ptr<const Module> part, bool apart, Site where) {
  data_->check_new(name, where);
  if (child.data_ == data_) fail_at(where, "module: a module cannot be its own child", "'" + name + "'");
  child.data_->placed = true;
  if (child.data_->owner.expired()) child.data_->owner = data_;
  data_->initialised &= child.data_->initialised;
  if (!data_->training) child.train(false);
  data_->entries.push_back({std::move(name), child.data_, std::move(part), apart});
  data_->set_path(*data_->path);
}

std::vector<NamedParam> Module::named_parameters() const {
  data_->placed = true;
  initialise();
  std::vector<NamedParam> result;
  std::unordered_set<const StateImpl*> seen;
  data_->visit([&](const std::string& name, Data::Entry& e, Data&) {
    if (auto* param = std::get_if<Param>(&e.what); param && seen.insert(param->impl().get()).second) {
      param->impl()->listed = true;
      result.push_back({name, *param});
    }
  });
  return result;
}

std::vector<Param> Module::parameters() const {
  std::vector<Param> result;
  for (NamedParam& p : named_parameters()) result.push_back(std::move(p.param));
  return result;
}

std::vector<Param> Module::trainable_parameters() const {
  std::vector<Param> result = parameters();
  std::erase_if(result, [](const Param& p) { return !p.trainable(); });
  return result;
}

std::vector<NamedState> Module::named_states() const {
  std::vector<NamedState> result;
  std::unordered_set<const StateImpl*> seen;
  data_->visit([&](const std::string& name, Data::Entry& e, Data&) {
    if (auto* state = std::get_if<State>(&e.what); state && seen.insert(state->impl().get()).second)
      result.push_back({name, *state});
  });
  return result;
}

void Module::each_part(const std::function<void(const Module&)>& f) const {
  std::unordered_set<const Data*> seen;
  const std::function<void(const Data&)> below = [&](const Data& data) {
    for (const Data::Entry& e : data.entries) {
      auto* child = std::get_if<std::shared_ptr<Data>>(&e.what);
      if (!child || !seen.insert(child->get()).second) continue;
      if (e.part) f(*e.part);
      below(**child);
    }
  };
  below(*data_);
}

std::int64_t Module::parameter_count() const {
  std::int64_t count = 0;
  for (const NamedParam& p : named_parameters()) count += p.param.shape().numel();
  return count;
}

void Module::set_trainable(bool on) {
  for (Param& p : parameters()) p.set_trainable(on);
}

bool Module::training() const {
  if (!data_->placed) [[unlikely]]
    check_mode();
  return data_->training;
}
void Module::train(bool on) {
  data_->placed = true;
  data_->train(on);
}
const std::string& Module::path() const { return *data_->path; }
void Module::initialise() const { data_->initialise(); }

// -----------------------------------------------------------------------------------------------------------------------------
// State dict.

namespace {

struct ParameterSlot {
  State state;
  Shape file_shape;
};

std::string shape_text(const std::vector<std::int64_t>& dims) {
  return dims.size() <= std::size_t(kMaxRank) ? to_string(Shape(dims)) : std::to_string(dims.size()) + " dimensions";
}

// What is wrong with `tensor` as the value of `slot`, or "".
std::string problem(const std::string& name, const ParameterSlot& slot, const HostTensor& tensor) {
  if (!std::ranges::equal(tensor.shape, slot.file_shape.dims()))
    return "shape of " + name + ": the file has " + shape_text(tensor.shape) + ", the model " + to_string(slot.file_shape);
  if (tensor.dtype != slot.state.dtype() && !(is_real(tensor.dtype) && is_real(slot.state.dtype())))
    return "type of " + name + ": the file has " + std::string(name_of(tensor.dtype)) + ", the model " +
           std::string(name_of(slot.state.dtype()));
  if (!tensor.described() && tensor.bytes.size() != std::size_t(tensor.numel()) * size_of(tensor.dtype))
    return "bytes of " + name + ": " + std::to_string(tensor.bytes.size()) + " for " + std::string(name_of(tensor.dtype)) +
           " " + shape_text(tensor.shape);
  return {};
}

void set_value(const ParameterSlot& slot, const HostTensor& tensor) {
  if (tensor.dtype == slot.state.dtype()) {
    State(slot.state).set_bytes(tensor.bytes.data());
  } else {
    State(slot.state).set(tensor.values<double>());
  }
}

[[noreturn]] void fail_load(const std::vector<std::string>& problems) {
  constexpr std::size_t kShown = 50;
  std::string list;
  for (std::size_t i = 0; i < problems.size() && i < kShown; ++i) list += "\n  " + problems[i];
  if (problems.size() > kShown) list += "\n  ... and " + std::to_string(problems.size() - kShown) + " more";
  fail(ErrorKind::io, "load: the tensors do not fit the model", std::to_string(problems.size()) + " problems" + list,
       "compare the configuration with that of the checkpoint; nothing was loaded");
}

}  // namespace

// The saved states by name: each once, at its first name.
template <class Data>
static std::map<std::string, ParameterSlot> slots_of(Data& data) {
  std::map<std::string, ParameterSlot> slots;
  std::unordered_set<const StateImpl*> seen;
  data.visit(
      [&](const std::string& name, auto& e, Data&) {
        auto* param = std::get_if<Param>(&e.what);
        const State& state = param ? static_cast<const State&>(*param) : std::get<State>(e.what);
        if (seen.insert(state.impl().get()).second)
          slots.emplace(name, ParameterSlot{state, e.file_shape.value_or(state.shape())});
      },
      "", true);
  return slots;
}

TensorMap Module::state_dict() const {
  initialise();
  TensorMap tensors;
  for (auto& [name, slot] : slots_of(*data_)) {
    const auto dims = slot.file_shape.dims();
    tensors[name] = {slot.state.dtype(), {dims.begin(), dims.end()}, slot.state.bytes()};
  }
  return tensors;
}

LoadReport Module::load_state_dict(const TensorMap& tensors, const LoadOptions& options) {
  data_->placed = true;
  const std::map<std::string, ParameterSlot> slots = slots_of(*data_);
  LoadReport report;
  std::vector<std::string> problems;
  std::map<std::string, const TensorMap::value_type*> given;  // by the model's names
  for (const auto& tensor : tensors) {
    const std::string name = options.rename ? options.rename(tensor.first) : tensor.first;
    if (name.empty() && options.rename) continue;
    if (const auto [other, fresh] = given.emplace(name, &tensor); !fresh)
      problems.push_back("two tensors are renamed to " + name + ": " + other->second->first + ", " + tensor.first);
  }
  for (auto& [name, slot] : slots) {
    auto found = given.find(name);
    if (found == given.end()) {
      report.missing.push_back(name);
      if (options.strict) problems.push_back("missing: " + name + " " + to_string(slot.file_shape));
    } else if (std::string text = problem(name, slot, found->second->second); !text.empty()) {
      problems.push_back(std::move(text));
    }
  }
  for (auto& [name, tensor] : given)
    if (!slots.contains(name)) {
      report.unexpected.push_back(tensor->first);
      if (options.strict) problems.push_back("unexpected: " + tensor->first + " " + shape_text(tensor->second.shape));
    }
  if (!problems.empty()) fail_load(problems);
  const auto described = std::ranges::count_if(given, [](const auto& entry) { return entry.second->second.described(); });
  if (described > 0 && described < std::ptrdiff_t(given.size()))
    fail(ErrorKind::usage, "load: some of the tensors have no bytes",
         std::to_string(described) + " of " + std::to_string(given.size()));
  if (described > 0) return report;
  for (auto& [name, slot] : slots)
    if (const auto found = given.find(name); found != given.end()) set_value(slot, found->second->second);
  data_->visit([&](const std::string& name, Data::Entry& e, Data& module) {
    if (auto* param = std::get_if<Param>(&e.what)) param->impl()->listed = true;
    if (!e.init || !given.contains(name)) return;
    // Its place in the count stays: what is drawn after it does not depend on whether it was loaded. Nor is it drawn over.
    e.names->next(join(*module.path, e.name));
    e.init = {};
  });
  return report;
}

// -----------------------------------------------------------------------------------------------------------------------------

namespace {

thread_local const CallFrame* innermost_call = nullptr;

// Of the parameters that the frame of `module` read for the first time, one that was made in the module but is not below it.
const StateImpl* never_added(const Tape& t, std::size_t reads_then, std::uint64_t serial,
                             const std::unordered_set<const StateImpl*>& below) {
  for (std::size_t i = reads_then; i < t.first_reads.size(); ++i) {
    const StateImpl* p = t.states[std::size_t(t.first_reads[i])];
    if (p && p->id > serial && !p->listed && !below.contains(p)) return p;
  }
  return nullptr;
}

}  // namespace

void Module::check_mode() const {
  const CallFrame* own = innermost_call;
  const CallFrame* outer = own && own->module_.data_ == data_ ? own->outer_ : own;
  if (!outer || outer->module_.data_->serial > data_->serial) return;  // it is called by itself, or was given to the module
  fail_at(
      own->where_, "module: a layer is used that was never added to the module, so train() does not reach it", {},
      "add(\"name\", layer) in the constructor of the module that owns it; of one that belongs elsewhere call train() first");
}

void Module::check_parts(std::size_t reads_then) const {
  std::unordered_set<const StateImpl*> below;
  data_->visit([&](const std::string&, Data::Entry& e, Data&) {
    if (auto* param = std::get_if<Param>(&e.what)) below.insert(param->impl().get());
  });
  Tape& t = tape();
  const StateImpl* p = never_added(t, reads_then, data_->serial, below);
  if (!p) return;
  throw Error(
      ErrorKind::usage,
      {"module: a parameter is used that was never added to it", "'" + p->name + "' " + to_string(p->shape),
       t.where_used(t.use(*p).position),
       "add(\"name\", layer) in the constructor of the module that owns it, or an optimizer will not find it; of one that "
       "belongs elsewhere ask for the parameters() first, or call it under no_grad"});
}

CallFrame::CallFrame(const Module& module, Site where, const Tensor& input)
    : module_(module), where_(where), outer_(innermost_call) {
  if (!module.data_->initialised) [[unlikely]]
    module.initialise();
  reads_then_ = tape().first_reads.size();
  frame_ = open_frame(module.data_->path, where, input);
  innermost_call = this;
}

void CallFrame::close(const Tensor& result) {
  Tape& t = tape();
  if (t.first_reads.size() > reads_then_) [[unlikely]]
    module_.check_parts(reads_then_);
  close_frame(std::exchange(frame_, -1), result);
  innermost_call = outer_;
  if (t.frame < 0) t.place_first_reads();
}

CallFrame::~CallFrame() {
  if (frame_ < 0) return;
  Tape& t = tape();
  t.first_reads.resize(std::min(t.first_reads.size(), reads_then_));
  close_frame(frame_, Tensor());
  innermost_call = outer_;
}

}  // namespace weft
