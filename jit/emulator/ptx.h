// PTX text as a syntax tree: what a driver would compile, parsed for the emulator. Names of registers and labels are
// resolved; everything else keeps the words of the text.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace weft::emulator {

enum class Type : std::uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  b128,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  bf16,
  f16x2,
  bf16x2,
  tf32,
  f32,
  f64
};
int bits_of(Type type);                  // 1 for pred, 32 for a packed pair and tf32
Type type_named(std::string_view name);  // "f32" without the dot; none if it is not a type
bool is_signed(Type type);
bool is_float(Type type);  // f16 to f64, packed ones included

struct Operand {
  enum Kind : std::uint8_t {
    reg,      // `index` of Function::registers
    special,  // `name`: "%tid.x"
    number,   // `bits`
    symbol,   // `name`: a variable or a function
    label,    // `index` of Function::body
    address,  // [base + offset]: parts[0] is the base, `offset`
    list,     // {a, b}, (a, b) or a|b: `parts`
    nothing,  // _
  } kind = nothing;
  bool negated = false;  // !p
  int index = -1;
  std::uint64_t bits = 0;
  std::int64_t offset = 0;
  std::string name;
  std::vector<Operand> parts;
};

struct PtxInstruction {
  int line = 0;         // of the PTX text, from 1
  int source_line = 0;  // of the CUDA text, where the PTX has .loc directives
  int guard = -1;       // register; executed where it holds (or does not, if negated)
  bool guard_negated = false;
  std::string opcode;                   // "ld.global.v2.f32"
  std::vector<std::string_view> words;  // "ld", "global", "v2", "f32"
  std::vector<Operand> operands;

  bool has(std::string_view word) const;
  Type type() const;  // the last that a word names; none if none does
};

enum class Space : std::uint8_t { generic, global, shared, local, constant, param };

struct Variable {
  std::string name;
  Space space = Space::global;
  std::uint64_t size = 0, align = 1;  // bytes; size 0: as much as the launch gives (extern shared)
  std::vector<std::uint8_t> initial;  // empty: zeros
};

struct Function {
  std::string name;
  bool entry = false;
  int line = 0;
  std::vector<Variable> parameters, results;  // space param
  std::vector<Variable> variables;            // shared, local, and the param variables of calls
  std::vector<Type> registers;
  std::vector<PtxInstruction> body;
  std::map<std::string, std::vector<int>> branch_tables;  // .branchtargets: indices of `body`
  int max_threads = 0;                                    // .maxntid or .reqntid, 0: not said
};

struct Module {
  std::string text;
  std::string target;  // "sm_90"
  std::vector<Variable> variables;
  std::vector<Function> functions;  // those with a body
};

// Errors (device) name the line.
Module parse_ptx(std::string text);

}  // namespace weft::emulator
