// State: the only thing that is written. A buffer that outlives the step, with a fixed address and capacity. A Param is a
// State with a gradient. Handles share one buffer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "autograd/shape.h"
#include "autograd/tensor.h"
#include "jit/dtype.h"
#include "jit/memory.h"

namespace weft {

struct Op;
struct Tape;

// Numbers of States and modules, in the order in which they are made; unique in the process.
std::uint64_t next_serial();

// Changes when the State with this index is written, and when it dies.
std::uint64_t state_version(std::uint32_t index);
void states_change(const Tape& tape, const std::vector<int>& written);  // by their positions on the tape

struct StateImpl {
  std::uint64_t id = 0;     // its serial number; part of plan keys
  std::uint32_t index = 0;  // among the living; what a recording knows of it stands there (Tape::use)
  bool parameter = false;
  bool trainable = true;  // a frozen parameter takes no gradient
  bool decay = true;      // takes part in weight decay
  bool pending = false;   // `gradient` holds a gradient of earlier runs that no optimizer has consumed
  bool placed = false;    // of a parameter: a recording has read it, and the modules that were being called have it
  bool listed = false;    // of a parameter: an optimizer has it, or somebody asked a module for it

  DType dtype = DType::f32;
  Shape shape;
  Memory memory;
  // The values in bf16, of a parameter in f32 that products read: made when a plan first wants it (Plan::twins).
  struct Twin {
    Memory memory;
    bool stale = true;  // not equal
  };
  std::unique_ptr<Twin> twin;
  std::shared_ptr<StateImpl> gradient;
  std::string name;  // for errors; the full module path once a module owns it

  StateImpl(Shape shape, DType dtype, std::string name);
  ~StateImpl();
  StateImpl(const StateImpl&) = delete;
  StateImpl& operator=(const StateImpl&) = delete;
  Twin& make_twin();     // unless there is one
  void outdate_twin() {  // something writes the State that does not write the twin
    if (twin) twin->stale = true;
  }
  void changes();  // the host writes the State: it gets another version
};

// Handles are copied, to be moved too: what was moved from is the same State. Of an absent one everything but bool() is an
// error. Threads may read a State at the same time; while one writes it, no other may use it.
class State {
 public:
  State() = default;  // absent
  // Zeros. `name` appears in errors.
  explicit State(Shape shape, DType dtype = DType::f32, std::string name = "state", Site where = Site::current());
  explicit State(std::shared_ptr<StateImpl> impl) : impl_(std::move(impl)) {}
  State(const State&) = default;
  State& operator=(const State&) = default;

  explicit operator bool() const { return bool(impl_); }
  const Shape& shape(Site where = Site::current()) const { return there(where).shape; }
  DType dtype(Site where = Site::current()) const { return there(where).dtype; }
  const std::string& name(Site where = Site::current()) const { return there(where).name; }
  Tensor read(Site where = Site::current()) const;  // as of the assigns recorded so far
  // Inside the function that fills a hole (see Tensor).
  Expr operator()(Subscript a = {}, Subscript b = {}, Subscript c = {}, Subscript d = {}, Subscript e = {},
                  Subscript f = {}) const {
    return read(a.where()).at({a, b, c, d, e, f});
  }

  // Host access, between steps only (an error inside `run`; pending ops outside it run first). T: see is_host_element
  // (jit/dtype.h).
  template <class T>
  std::vector<T> to_host(Site where = Site::current()) const {
    return host_elements<T>(to_stored<StoredElement<T>>(where));
  }
  template <class T>
  void set(const std::vector<T>& values, Site where = Site::current()) {
    set_stored(stored_elements(values), where);
  }
  // The raw bytes, row-major in dtype(): for checkpoints. Between steps only.
  std::vector<std::byte> bytes(Site where = Site::current()) const;
  void set_bytes(const void* bytes, Site where = Site::current());

  const std::shared_ptr<StateImpl>& impl() const { return impl_; }

 protected:
  StateImpl& there(Site where) const {
    if (!impl_) [[unlikely]]
      fail_absent(where);
    return *impl_;
  }

  std::shared_ptr<StateImpl> impl_;

 private:
  [[noreturn]] static void fail_absent(Site where);
  template <class T>
  std::vector<T> to_stored(Site where) const;
  template <class T>
  void set_stored(const std::vector<T>& values, Site where);
};

class Param : public State {
 public:
  Param() = default;
  explicit Param(Shape shape, DType dtype = DType::f32, std::string name = "param", Site where = Site::current());
  bool trainable(Site where = Site::current()) const { return there(where).trainable; }
  void set_trainable(bool on, Site where = Site::current()) { there(where).trainable = on; }
  bool decay(Site where = Site::current()) const { return there(where).decay; }
  void set_decay(bool on, Site where = Site::current()) { there(where).decay = on; }
  // A gradient accumulated over runs and not yet consumed.
  bool has_gradient(Site where = Site::current()) const { return there(where).pending; }
  template <class T>
  std::vector<T> gradient(Site where = Site::current()) const {  // its values, zeros if there is none
    const State sums = gradient_sums(where);
    return sums ? sums.to_host<T>(where) : std::vector<T>(std::size_t(shape(where).numel()));
  }
  void zero_grad(Site where = Site::current());

 private:
  State gradient_sums(Site where) const;  // absent if there is none
};

const Op& assign_op();  // writes input 0 to the State at position ints[0] of Tape::states

// Writes `value` (shape and a dtype convertible to the state's) after every read recorded before and before every read
// recorded after; at most one assign per State and step. Outside `run` it runs at once.
void assign(const State& state, Arg value, Site where = Site::current());
// Writes rows [position, position + value.dim(0)) modulo the capacity state.dim(0).
void assign_at(const State& state, const Scalar& position, Arg value, Site where = Site::current());

}  // namespace weft
