// A kernel decoded for execution: a dense array of instructions whose operands are places in a warp's register file.
//
// The register file of a warp is an array of bytes. A register of up to 32 bits is 32 words, one a lane; of 64 bits, 32
// double words; a predicate is one word, a bit a lane. Numbers, special registers and addresses of variables are
// registers too, written before the kernel starts, so an instruction has one form only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "jit/emulator/counters.h"
#include "jit/emulator/ptx.h"

namespace weft::emulator {

inline constexpr int kLanes = 32;
using Mask = std::uint32_t;  // a bit a lane
inline constexpr Mask kAllLanes = ~Mask{0};

class Warp;
struct Instruction;
using Handler = void (*)(Warp& warp, const Instruction& instruction, Mask lanes);  // lanes: not 0

struct Instruction {
  Handler run = nullptr;
  std::uint32_t guard = 0;  // place of the predicate; 0: none
  bool guard_negated = false;
  std::uint8_t count = 1;                                    // elements of a vector, or what the handler says
  std::uint8_t bytes = 0;                                    // of an element in memory
  std::uint8_t mode = 0;                                     // of the handler: rounding, comparison...
  EmulatedCounters::Class kind = EmulatedCounters::classes;  // classes: not of the text, and not counted
  std::uint32_t d = 0, a = 0, b = 0, c = 0;                  // places
  std::uint32_t list = 0;                                    // first of the further places, in Program::lists
  std::uint32_t target = 0;  // of a branch: index of an instruction; of a load or store: number of its access site
  std::int64_t offset = 0;   // of an address
  Handler inner = nullptr;   // what a wrapper wraps
  const PtxInstruction* source = nullptr;
};

// What a place holds before the first instruction.
struct Constant {
  enum Kind : std::uint8_t { value, parameters, special } kind = value;
  bool wide = false;  // 64-bit lanes
  std::uint32_t place = 0;
  std::uint64_t bits = 0;  // value; offset from the parameters
  std::string name;        // special register
};

struct Program {
  const Function* function = nullptr;
  const Module* module = nullptr;
  std::string name;
  std::vector<Instruction> instructions;
  std::vector<std::uint32_t> lists;
  std::vector<Constant> constants;
  std::size_t register_bytes = 0;                                   // of a warp
  std::vector<std::pair<std::uint32_t, std::uint32_t>> parameters;  // offset and size of each, bytes
  std::uint32_t parameter_bytes = 0;
  std::uint32_t shared_bytes = 0;    // static; the dynamic part follows
  std::uint32_t local_bytes = 0;     // a thread
  std::uint32_t access_sites = 0;    // loads and stores of global memory
  std::uint32_t shared_granule = 4;  // bytes of the smallest access to shared memory, at most 4
};

// Addresses of module variables, given when a module is loaded.
using Symbols = std::map<std::string, std::uint64_t, std::less<>>;

// Errors (device) name kernel, line and opcode of an instruction that is not known.
std::unique_ptr<Program> decode(const Module& module, const Function& function, const Symbols& symbols);

// ---- For the families of instructions: each finds the handler of an instruction that is its own. ----------------------------

// What a family sees: the words, the types, and the means to place operands.
class Decoder {
 public:
  virtual ~Decoder() = default;
  // The place of an operand that holds (or receives) values of `bits` lanes (1, 32 or 64; 16 is 32).
  virtual std::uint32_t place(const Operand& operand, int bits) = 0;
  // Like `place` for a value that is read or written at the width of the register, wider than `bits` or not.
  virtual std::uint32_t source(const Operand& operand, int bits) = 0;
  virtual std::uint32_t destination(const Operand& operand, int bits, bool sign) = 0;
  virtual std::uint32_t list(const std::vector<std::uint32_t>& places) = 0;
  // The register of an address; its offset goes into `i`.
  virtual std::uint32_t base(const Operand& address, Instruction& i) = 0;
  virtual void branch_to(int body_index) = 0;                              // sets the target of the instruction
  virtual std::uint32_t labels(const std::vector<int>& body_indices) = 0;  // a list of targets
  virtual const Function& function() const = 0;
  virtual Program& program() = 0;
};

// Fill `i` and return true if the instruction belongs to the family.
bool decode_arithmetic(const PtxInstruction& p, Decoder& decoder, Instruction& i);
bool decode_convert(const PtxInstruction& p, Decoder& decoder, Instruction& i);
bool decode_memory(const PtxInstruction& p, Decoder& decoder, Instruction& i);
bool decode_warp(const PtxInstruction& p, Decoder& decoder, Instruction& i);    // shuffles, votes, barriers, branches
bool decode_matrix(const PtxInstruction& p, Decoder& decoder, Instruction& i);  // mma, ldmatrix, stmatrix, movmatrix

}  // namespace weft::emulator
