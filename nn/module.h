// Modules: a registry of named parameters, buffers and children; calling one opens a frame, so that errors, kernels and random
// draws know the module path.
//
// ```cpp
// struct Mlp : Layer<Mlp> {
//   Linear up, down;
//   Mlp(int d) : up(d, 4 * d), down(4 * d, d) { add("up", up), add("down", down); }
//   Tensor forward(const Tensor& x) { return down(gelu(up(x))); }
// };
// ```
//
// Modules are handles: a copy shares parameters and registry with the original, and so does what was moved from. They are not
// assigned: the module that a layer was added to would keep the old one. To replace the values of a layer load them; one that
// is chosen late is a std::optional<Linear>, filled by emplace() and then added.
//
// A parameter that a module reads when it is called, and that was made in it, must be added to it: forgetting add() is an
// error of the first call that records gradients. So must what behaves differently in training: forgetting the add() of a
// Dropout is an error of the first call. (Made in it: after it, and not listed, loaded or put into a mode by itself.)
#pragma once

#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/state.h"
#include "autograd/tape.h"
#include "autograd/tensor.h"
#include "nn/init.h"
#include "nn/safetensors.h"

namespace weft {

struct NamedParam {
  std::string name;  // "layers.0.mixer.in_proj.weight"
  Param param;
};
struct NamedState {
  std::string name;
  State state;
};

struct LoadOptions {
  bool strict = true;  // false: what is missing keeps its values, what is unexpected is left; a wrong shape is still an error
  // The model's name for a tensor of the file; "" leaves it out. Without one the names are equal.
  std::function<std::string(const std::string& name)> rename = {};
};
struct LoadReport {                     // of a load that is not strict
  std::vector<std::string> missing;     // names of the model
  std::vector<std::string> unexpected;  // names of the file
};

class Module {
 public:
  Module();
  virtual ~Module() = default;
  Module(const Module&) = default;
  Module& operator=(const Module&) = delete;

  // Parameters in registration order, depth first. Names, here and in state dicts, are those that things have in this module:
  // "in_proj.weight" of a mixer, wherever the mixer is a part. A Param registered twice (tied weights) is listed once, at its
  // first name.
  std::vector<NamedParam> named_parameters() const;
  std::vector<Param> parameters() const;
  std::vector<Param> trainable_parameters() const;  // those that take a gradient: what an optimizer needs
  std::vector<NamedState> named_states() const;     // buffers: States that are not parameters but are saved
  std::int64_t parameter_count() const;             // trainable or not, each once
  void set_trainable(bool on);                      // of every parameter below
  bool training() const;
  void train(bool on = true);       // dropout, masks; this module and those below
  const std::string& path() const;  // "layers.3.mixer", in the first module that it was added to; "" for a root

  // Draws the parameters that have an initialiser and no values yet, by the seed that was in use when they were added, their
  // full names, and how many of that name have had values under that seed: two models of one structure start differently.
  // Listing the parameters and calling the module do it first, so it need not be called: by then the modules around are
  // complete and names are final.
  void initialise() const;

  // The modules of type M below this one, depth first, in registration order, each once: `parts<GumbelMask>()`,
  // `parts<Linear>()`. Finds types that say `static constexpr bool is_part = true`.
  template <std::derived_from<Module> M>
  std::vector<M> parts() const {
    std::vector<M> found;
    each_part([&](const Module& part) {
      if (const M* m = dynamic_cast<const M*>(&part)) found.push_back(*m);
    });
    return found;
  }
  static constexpr bool is_part = false;

  // Values of parameters and buffers by name. Unless the options say otherwise, loading is strict: missing, unexpected and
  // mis-shaped tensors are all listed in one error (ErrorKind::io), and nothing is changed. Nor is anything when the tensors
  // have no bytes, of which this says whether they fit (describe_safetensors_folder).
  TensorMap state_dict() const;
  LoadReport load_state_dict(const TensorMap& tensors, const LoadOptions& options = {});

 protected:
  // Names the param. A second name for a tied param is allowed; give it no initialiser. `file_shape` is the shape in files,
  // if it differs.
  void add(std::string name, Param& param, Initialiser init = {}, std::optional<Shape> file_shape = {},
           Site where = Site::current());
  void add(std::string name, State& state, Site where = Site::current());
  template <std::derived_from<Module> M>
  void add(std::string name, M& child, Site where = Site::current()) {  // `name` may have dots: "layers.3"
    std::shared_ptr<const Module> part;
    if constexpr (M::is_part) part = std::make_shared<const M>(child);  // a handle, as every copy of a module is
    add_child(std::move(name), child, std::move(part), false, where);
  }
  // The same, of a child that is in no state dict but its own: what is saved apart from the model around it, as adapters are.
  template <std::derived_from<Module> M>
  void add_apart(std::string name, M& child, Site where = Site::current()) {
    add_child(std::move(name), child, std::make_shared<const M>(child), true, where);
  }
  struct Data;  // shared with the parent, so that modules can be moved
  std::shared_ptr<Data> data_;

 private:
  void add_child(std::string name, Module& child, std::shared_ptr<const Module> part, bool apart, Site where);
  void each_part(const std::function<void(const Module&)>& f) const;
  void check_mode() const;                         // of a module whose mode no other sets
  void check_parts(std::size_t reads_then) const;  // of the parameters in Tape::first_reads from there on

  friend class CallFrame;
};

// While alive, `module` is in evaluation mode: no dropout, masks without noise.
class Evaluating {
 public:
  explicit Evaluating(Module& module) : module_(module), before_(module.training()) { module.train(false); }
  ~Evaluating() { module_.train(before_); }
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;

 private:
  Module& module_;
  bool before_;
};

// Opens a frame for a module call on the tape (autograd) and closes it.
class CallFrame {
 public:
  CallFrame(const Module& module, Site where, const Tensor& input);
  ~CallFrame();  // of a call that ends with an exception
  CallFrame(const CallFrame&) = delete;
  CallFrame& operator=(const CallFrame&) = delete;
  void close(const Tensor& result);  // absent if the call gives no tensor

 private:
  friend class Module;
  const Module& module_;
  const Site where_;
  const CallFrame* outer_;  // the call around it
  std::int32_t frame_;      // -1 once closed
  std::size_t reads_then_;  // parameters in Tape::first_reads when it was opened
};

// CRTP: gives `Self` a call operator that opens a frame and calls Self::forward(first, rest...).
template <class Self, class Base = Module>
class Layer : public Base {
 public:
  template <class... Rest>
  auto operator()(Arg x, Rest&&... rest) {
    CallFrame frame(*this, x.where(), x.tensor());
    auto result = static_cast<Self*>(this)->forward(x.tensor(), std::forward<Rest>(rest)...);
    if constexpr (std::is_same_v<decltype(result), Tensor>)
      frame.close(result);
    else
      frame.close({});
    return result;
  }
};

}  // namespace weft
