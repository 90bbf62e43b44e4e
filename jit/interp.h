// The CPU back end of Expr: a linear program over registers of kBlock elements, each instruction one vectorised loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "jit/expr.h"

namespace weft {

struct View;

inline constexpr int kBlock = 256;                  // elements a register holds; a program's registers stay in L1
inline constexpr std::int64_t kPart = 64 * kBlock;  // elements of one part of a parallel loop

class Program {
 public:
  Program() = default;
  explicit Program(std::span<const Expr> roots);

  int inputs() const { return int(input_types_.size()); }
  int outputs() const { return int(outputs_.size()); }
  ExprType output_type(int k) const { return outputs_[k].type; }
  // Type each input must be delivered in: real as T (float or double), integer as std::int64_t, boolean as
  // std::uint8_t.
  ExprType input_type(int k) const { return input_types_[k]; }
  bool uses_input(int k) const { return used_[k]; }

  // Scratch for one thread: registers with the constants already broadcast. Make one per thread and kernel launch.
  // `constants[k]` is slot k, `tables[k]` the tensor that loads k read. T is float or double.
  template <class T>
  class State {
   public:
    State(const Program& program, const double* constants, const View* tables = nullptr);
    // Evaluates elements [first, first + n) of a space of the sizes `dims`, in row-major order, n <= kBlock; only programs that
    // read coordinates look at `dims`. inputs[k]: n values of input k (ignored if unused). outputs[k]: where n values of root k
    // go (real: T, integer: int64, boolean: uint8); may not overlap inputs unless equal to one. A subscript that lies outside
    // of its tensor is an error.
    void run(const void* const* inputs, void* const* outputs, int n, std::int64_t first = 0,
             std::span<const std::int64_t> dims = {});

   private:
    void bind(const void* const* inputs, void* const* outputs);
    void fill_coordinates(int n, std::int64_t first, std::span<const std::int64_t> dims);
    void copy(int output, void* to, const void* from, int n) const;

    const Program* program_;
    const double* constants_;
    const View* tables_;
    std::unique_ptr<std::byte[]> storage_;
    std::vector<void*> registers_;
    std::vector<void*> staging_;  // of each output, for when it may not be written before an input is read
    std::vector<void*> targets_;  // of each output: the caller's memory or `staging_`
  };

  // One loop. Two pairs of operations are fused, which saves a pass over the block: a product with the sum or
  // difference that is its only user, and a comparison with the selects that are all its users.
  struct Instruction {
    ExprOp op;
    ExprOp fused;                // mul or the comparison; literal if nothing is fused
    ExprType type;               // of the operands (of the arms for a select)
    ExprType compared;           // of the operands of the fused comparison
    bool reversed;               // z - x*y
    int out;                     // registers
    int args[kMostCoordinates];  // those of the fused operation first
    std::int64_t index;          // first slot of a uniform, table of a load
  };

 private:
  enum class Kind { temporary, constant, input, element, index, output };
  struct Register {
    Kind kind;
    ExprType type;
    int k;  // which input, index or output
  };
  struct Constant {
    int out;
    Expr leaf;  // a literal or a slot
  };
  struct Binding {  // register `r` is the caller's k-th input or output, or holds the k-th coordinate or element numbers
    int r, k;
  };
  struct Output {
    int source;  // the register that holds the root
    ExprType type;
  };
  struct Hazard {  // if this output lies on this input, it is written before the input has been read
    int output, input;
  };
  class Compiler;

  std::vector<Instruction> code_;
  std::vector<Register> registers_;
  std::vector<Constant> constants_;
  std::vector<Output> outputs_;
  std::vector<Binding> bound_inputs_, bound_indices_, bound_elements_, bound_outputs_;
  std::vector<int> copied_outputs_;  // those that no instruction writes: leaves and repeated roots
  std::vector<Hazard> hazards_;
  std::vector<ExprType> input_types_;
  std::vector<bool> used_;
};

// Philox-4x32-10 (philox.h): key philox_key(seed, site), counter (element / 4, tick); word element % 4.
// The same bits on every device. Uniforms are (word + 0.5) * 2^-32 rounded into (0, 1).
std::uint32_t philox(std::uint64_t seed, std::uint64_t site, std::uint64_t tick, std::uint64_t element);

}  // namespace weft
