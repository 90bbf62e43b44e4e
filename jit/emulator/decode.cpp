// From the syntax tree to a Program: places for registers, numbers and variables, and the functions that a kernel
// calls.
//
// A called function has its registers, its parameters and the address to return to in one fixed place, which is enough
// without recursion. Parameters of calls live in local memory.
#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "jit/emulator/execute.h"
#include "jit/emulator/lanes.h"
#include "jit/error.h"

namespace weft::emulator {
namespace {

std::uint64_t aligned(std::uint64_t n, std::uint64_t to) { return (n + to - 1) / to * to; }

void call(Warp& w, const Instruction& i, Mask lanes) {
  const std::uint32_t back = w.pc();
  write<std::uint32_t>(w, i.d, lanes, [&](int) { return back; });
  w.part(i.target, lanes);
}
void return_from(Warp& w, const Instruction& i, Mask lanes) { w.part(w.words<std::uint32_t>(i.a), lanes); }

// Parameters and results of calls: local memory to local memory.
void copy_local(Warp& w, const Instruction& i, Mask lanes) {
  for (Mask left = lanes; left; left &= left - 1) {
    std::byte* local = w.block.local(w, std::countr_zero(left));
    std::memcpy(local + i.d, local + i.a, i.b);
  }
}
void widen(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint32_t> a(w, i.a);
  const bool sign = i.mode;
  write<std::uint64_t>(w, i.d, lanes, [&](int l) { return sign ? std::uint64_t(std::int64_t(std::int32_t(a[l]))) : a[l]; });
}
void narrow(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint64_t> a(w, i.a);
  write<std::uint32_t>(w, i.d, lanes, [&](int l) { return std::uint32_t(a[l]); });
}

EmulatedCounters::Class class_of(const PtxInstruction& p) {
  using Counters = EmulatedCounters;
  struct Family {
    Counters::Class kind;
    std::initializer_list<std::string_view> words;
  };
  static const Family families[] = {
      {Counters::conversion, {"cvt"}},
      {Counters::matrix, {"mma", "wgmma"}},
      {Counters::special, {"ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt"}},
      {Counters::exchange, {"shfl", "vote", "match", "redux", "activemask", "elect", "movmatrix"}},
      {Counters::barrier, {"bar", "barrier", "membar", "fence"}},
      {Counters::branch, {"bra", "brx", "ret", "exit", "call", "trap"}},
      {Counters::other, {"mov", "selp", "slct", "cvta", "isspacep", "nanosleep", "griddepcontrol", "prefetch", "prefetchu"}}};
  const std::string_view op = p.words[0];
  for (const Family& family : families)
    if (std::find(family.words.begin(), family.words.end(), op) != family.words.end()) return family.kind;
  const bool number =
      std::any_of(p.words.begin(), p.words.end(), [](std::string_view word) { return is_float(type_named(word)); });
  if (op == "div" && number) return Counters::special;
  if (op == "ld" || op == "ldu" || op == "st" || op == "atom" || op == "red" || op == "cp" || op == "ldmatrix" ||
      op == "stmatrix") {
    if (p.has("commit_group") || p.has("wait_group") || p.has("wait_all")) return Counters::barrier;
    if (p.has("param") || p.has("const")) return Counters::other;
    if (p.has("local")) return Counters::local;
    const bool shared =
        std::any_of(p.words.begin(), p.words.end(), [](std::string_view word) { return word.starts_with("shared"); });
    return shared && op != "cp" ? Counters::shared : Counters::global;
  }
  return number ? Counters::floating : Counters::integer;
}

class ProgramDecoder final : public Decoder {
 public:
  ProgramDecoder(const Module& module, const Function& function, const Symbols& symbols)
      : module_(module), symbols_(symbols), program_(std::make_unique<Program>()) {
    program_->function = &function;
    program_->module = &module;
    program_->name = function.name;
    program_->lists.push_back(0);
  }
  std::unique_ptr<Program> run();

  std::uint32_t place(const Operand& operand, int bits) override;
  std::uint32_t source(const Operand& operand, int bits) override;
  std::uint32_t destination(const Operand& operand, int bits, bool sign) override;
  std::uint32_t list(const std::vector<std::uint32_t>& places) override;
  std::uint32_t base(const Operand& address, Instruction& i) override;
  void branch_to(int body_index) override { branch_target_ = body_index; }
  std::uint32_t labels(const std::vector<int>& body_indices) override;
  const Function& function() const override { return *frame_->function; }
  Program& program() override { return *program_; }

 private:
  struct Variables {
    std::map<std::string, std::uint32_t, std::less<>> shared, local;  // offsets
  };
  struct Frame {  // of a function
    const Function* function = nullptr;
    std::vector<std::uint32_t> registers;                     // places
    std::vector<std::uint32_t> first;                         // instruction of each one of the body, and of its end
    std::uint32_t return_place = 0;                           // 0: the kernel itself
    std::map<std::string, std::uint32_t, std::less<>> local;  // offsets of local and param variables
  };

  [[noreturn]] void error(const std::string& what) const {
    throw Error(ErrorKind::device, {"emu: " + what,
                                    now_ ? "'" + now_->opcode + "'" : "",
                                    fmt::format("in kernel {}, PTX line {}", program_->name,
                                                now_     ? now_->line
                                                : frame_ ? frame_->function->line
                                                         : 0),
                                    {}});
  }
  std::uint32_t allocate(int bits);
  void lay_out_parameters();
  void add_shared(const std::vector<Variable>& variables);
  Frame& frame_of(const Function& function);
  void decode_function(Frame& frame);
  void decode_one(const PtxInstruction& p);
  void decode_call(const PtxInstruction& p);
  void emit(Instruction i) { program_->instructions.push_back(i); }
  std::uint32_t constant(std::uint64_t bits, int width);
  std::uint32_t special(const std::string& name, int width);
  std::uint32_t parameter(std::uint32_t offset);
  std::uint32_t symbol(const std::string& name, int bits, bool* local = nullptr);
  int width_of(const Operand& operand) const { return lane_bits(frame_->function->registers[std::size_t(operand.index)]); }

  const Module& module_;
  const Symbols& symbols_;
  std::unique_ptr<Program> program_;
  std::uint32_t next_place_ = 64, next_predicate_ = 0;
  std::map<std::pair<std::uint64_t, int>, std::uint32_t> constants_;
  std::map<std::pair<std::string, int>, std::uint32_t> specials_;
  std::map<std::string, std::uint32_t, std::less<>> shared_, parameters_;  // offsets
  std::deque<Frame> frames_;
  Frame* frame_ = nullptr;
  const PtxInstruction* now_ = nullptr;
  Instruction guard_;               // with the guard of the instruction being decoded
  std::vector<Instruction> after_;  // to emit behind it
  int branch_target_ = -1;
  struct Patch {
    std::size_t instruction;  // its target, or
    std::size_t list;         // this element of the lists (0: the instruction)
    const Frame* frame;
    int body_index;
  };
  std::vector<Patch> patches_;
};

std::uint32_t ProgramDecoder::allocate(int bits) {
  if (bits == 1) {  // predicates share a line
    if (next_predicate_ % 64 == 0) next_predicate_ = next_place_, next_place_ += 64;
    return std::exchange(next_predicate_, next_predicate_ + 4);
  }
  return std::exchange(next_place_, next_place_ + std::uint32_t(kLanes * bits / 8));
}

std::uint32_t ProgramDecoder::constant(std::uint64_t bits, int width) {
  if (width == 1) bits = bits ? ~0u : 0;
  if (width < 64) bits &= 0xffffffffu;
  auto [at, added] = constants_.try_emplace({bits, width}, 0);
  if (added) {
    at->second = allocate(width == 64 ? 64 : 32);
    program_->constants.push_back({Constant::value, width == 64, at->second, bits, {}});
  }
  return at->second;
}

std::uint32_t ProgramDecoder::special(const std::string& name, int width) {
  if (name == "WARP_SZ") return constant(kLanes, width);
  auto [at, added] = specials_.try_emplace({name, width}, 0);
  if (added) {
    at->second = allocate(width);
    program_->constants.push_back({Constant::special, width == 64, at->second, 0, name});
  }
  return at->second;
}

std::uint32_t ProgramDecoder::parameter(std::uint32_t offset) {
  auto [at, added] = specials_.try_emplace({"parameter " + std::to_string(offset), 64}, 0);
  if (added) {
    at->second = allocate(64);
    program_->constants.push_back({Constant::parameters, true, at->second, offset, {}});
  }
  return at->second;
}

// The address of a variable, as a register.
std::uint32_t ProgramDecoder::symbol(const std::string& name, int bits, bool* local) {
  if (auto found = frame_->local.find(name); found != frame_->local.end()) {
    if (local) *local = true;
    return constant(found->second, bits);
  }
  if (auto found = shared_.find(name); found != shared_.end()) return constant(found->second, bits);
  if (auto found = parameters_.find(name); found != parameters_.end() && !frame_->return_place) {
    if (bits != 64) error("the address of a parameter needs 64 bits");
    return parameter(found->second);
  }
  if (auto found = symbols_.find(name); found != symbols_.end()) return constant(found->second, bits);
  if (name == "WARP_SZ") return constant(kLanes, bits);
  error("unknown name " + name);
}

std::uint32_t ProgramDecoder::place(const Operand& operand, int bits) {
  switch (operand.kind) {
    case Operand::reg:
      if (width_of(operand) != bits) error(fmt::format("{} has another width than the instruction", operand.name));
      return frame_->registers[std::size_t(operand.index)];
    case Operand::special:
      return special(operand.name, bits);
    case Operand::number:
      return constant(operand.bits, bits);
    case Operand::symbol:
      return symbol(operand.name, bits);
    default:
      error("an operand of unknown form");
  }
}

std::uint32_t ProgramDecoder::source(const Operand& operand, int bits) {
  if (operand.kind != Operand::reg || width_of(operand) == bits) return place(operand, bits);
  Instruction i;
  i.source = now_;
  i.a = place(operand, width_of(operand));
  i.d = allocate(bits);
  i.run = bits == 32 ? narrow : widen;
  emit(i);
  return i.d;
}

std::uint32_t ProgramDecoder::destination(const Operand& operand, int bits, bool sign) {
  if (operand.kind != Operand::reg || width_of(operand) == bits) return place(operand, bits);
  Instruction i = guard_;
  i.d = place(operand, width_of(operand));
  i.a = allocate(bits);
  i.mode = sign;
  i.run = bits == 32 ? widen : narrow;
  after_.push_back(i);
  return i.a;
}

std::uint32_t ProgramDecoder::list(const std::vector<std::uint32_t>& places) {
  const auto first = std::uint32_t(program_->lists.size());
  program_->lists.insert(program_->lists.end(), places.begin(), places.end());
  return first;
}

std::uint32_t ProgramDecoder::labels(const std::vector<int>& body_indices) {
  const auto first = std::uint32_t(program_->lists.size());
  for (int index : body_indices) {
    patches_.push_back({0, program_->lists.size(), frame_, index});
    program_->lists.push_back(0);
  }
  return first;
}

std::uint32_t ProgramDecoder::base(const Operand& address, Instruction& i) {
  if (address.kind != Operand::address || address.parts.size() != 1) error("an address of unknown form");
  const Operand& of = address.parts[0];
  i.offset = address.offset;
  if (of.kind == Operand::reg && width_of(of) == 32) return place(of, 32);
  i.mode |= 1;
  if (of.kind != Operand::symbol) return place(of, 64);
  bool local = false;
  const std::uint32_t at = symbol(of.name, 64, &local);
  i.target = local;
  return at;
}

void ProgramDecoder::lay_out_parameters() {
  std::uint64_t offset = 0;
  for (const Variable& v : program_->function->parameters) {
    offset = aligned(offset, v.align);
    parameters_[v.name] = std::uint32_t(offset);
    program_->parameters.emplace_back(std::uint32_t(offset), std::uint32_t(v.size));
    offset += v.size;
  }
  program_->parameter_bytes = std::uint32_t(offset);
}

// Variables without a size begin behind all others.
void ProgramDecoder::add_shared(const std::vector<Variable>& variables) {
  for (const Variable& v : variables) {
    if (v.space != Space::shared || v.size == 0) continue;
    shared_[v.name] = std::uint32_t(aligned(program_->shared_bytes, v.align));
    program_->shared_bytes = shared_[v.name] + std::uint32_t(v.size);
  }
}

ProgramDecoder::Frame& ProgramDecoder::frame_of(const Function& function) {
  for (Frame& frame : frames_)
    if (frame.function == &function) return frame;
  Frame& frame = frames_.emplace_back();
  frame.function = &function;
  for (Type type : function.registers) frame.registers.push_back(allocate(lane_bits(type)));
  const auto add = [&](const std::vector<Variable>& variables) {
    for (const Variable& v : variables) {
      if (v.space == Space::shared) continue;
      frame.local[v.name] = std::uint32_t(aligned(program_->local_bytes, v.align));
      program_->local_bytes = frame.local[v.name] + std::uint32_t(v.size);
    }
  };
  add(function.variables);
  if (frames_.size() > 1) {
    frame.return_place = allocate(32);
    add(function.parameters), add(function.results);
  }
  return frame;
}

void ProgramDecoder::decode_call(const PtxInstruction& p) {
  // call (results), name, (parameters); without results the name is first.
  const bool has_results = p.operands.at(0).kind == Operand::list;
  const Operand& name = p.operands.at(has_results ? 1 : 0);
  const std::size_t next = has_results ? 2 : 1;
  const std::vector<Operand> none;
  const auto& given = p.operands.size() > next ? p.operands[next].parts : none;
  const auto& results = has_results ? p.operands[0].parts : none;
  const auto callee =
      std::find_if(module_.functions.begin(), module_.functions.end(), [&](const Function& f) { return f.name == name.name; });
  if (name.kind != Operand::symbol || callee == module_.functions.end())
    error("a call of " + name.name + ", which has no text here");
  Frame& caller = *frame_;
  Frame& frame = frame_of(*callee);
  const auto copy = [&](std::uint32_t from, std::uint32_t to, std::uint64_t bytes) {
    Instruction i = guard_;
    i.run = copy_local, i.a = from, i.d = to, i.b = std::uint32_t(bytes);
    emit(i);
  };
  if (given.size() != callee->parameters.size() || results.size() != callee->results.size())
    error("a call with another number of arguments");
  for (std::size_t k = 0; k < given.size(); ++k)
    copy(caller.local.at(given[k].name), frame.local.at(callee->parameters[k].name), callee->parameters[k].size);
  Instruction i = guard_;
  i.run = call, i.d = frame.return_place, i.kind = EmulatedCounters::branch;
  patches_.push_back({program_->instructions.size(), 0, &frame, 0});
  emit(i);
  for (std::size_t k = 0; k < results.size(); ++k)
    copy(frame.local.at(callee->results[k].name), caller.local.at(results[k].name), callee->results[k].size);
}

void ProgramDecoder::decode_one(const PtxInstruction& p) {
  now_ = &p;
  guard_ = {};
  guard_.source = &p;
  if (p.guard >= 0) guard_.guard = frame_->registers[std::size_t(p.guard)], guard_.guard_negated = p.guard_negated;
  if (p.words[0] == "call") return decode_call(p);
  Instruction i = guard_;
  after_.clear();
  branch_target_ = -1;
  if (p.words[0] == "ret" && frame_->return_place) {
    i.run = return_from, i.a = frame_->return_place;
  } else if (p.words[0] == "ret") {
    PtxInstruction exit = p;
    exit.words[0] = "exit";
    decode_warp(exit, *this, i);
  } else {
    bool known = false;
    try {
      for (auto family : {decode_warp, decode_memory, decode_convert, decode_matrix, decode_arithmetic})
        if ((known = family(p, *this, i))) break;
    } catch (const std::out_of_range&) {
      known = false;  // fewer operands or words than any form has
    }
    if (!known) error("an instruction that it does not know");
  }
  i.kind = class_of(p);
  if (branch_target_ >= 0) patches_.push_back({program_->instructions.size(), 0, frame_, branch_target_});
  emit(i);
  for (const Instruction& more : after_) emit(more);
}

void ProgramDecoder::decode_function(Frame& frame) {
  frame_ = &frame;
  for (const PtxInstruction& p : frame.function->body) {
    frame.first.push_back(std::uint32_t(program_->instructions.size()));
    decode_one(p);
  }
  // The end of the text is a return.
  static const PtxInstruction end = [] {
    PtxInstruction p;
    p.opcode = "ret", p.words = {"ret"};
    return p;
  }();
  frame.first.push_back(std::uint32_t(program_->instructions.size()));
  decode_one(end);
}

std::unique_ptr<Program> ProgramDecoder::run() {
  lay_out_parameters();
  add_shared(module_.variables);
  for (const Function& f : module_.functions)
    if (&f == program_->function || !f.entry) add_shared(f.variables);
  program_->shared_bytes = std::uint32_t(aligned(program_->shared_bytes, 16));
  for (const auto* variables : {&module_.variables, &program_->function->variables})
    for (const Variable& v : *variables)
      if (v.space == Space::shared && v.size == 0) shared_[v.name] = program_->shared_bytes;
  frame_of(*program_->function);
  for (std::size_t n = 0; n < frames_.size(); ++n) decode_function(frames_[n]);
  now_ = nullptr;
  for (const Patch& patch : patches_) {
    const std::uint32_t target = patch.frame->first.at(std::size_t(patch.body_index));
    if (patch.list)
      program_->lists[patch.list] = target;
    else
      program_->instructions[patch.instruction].target = target;
  }
  program_->local_bytes = std::uint32_t(aligned(program_->local_bytes, 16));
  program_->register_bytes = aligned(next_place_, 64);
  return std::move(program_);
}

}  // namespace

std::unique_ptr<Program> decode(const Module& module, const Function& function, const Symbols& symbols) {
  return ProgramDecoder(module, function, symbols).run();
}

}  // namespace weft::emulator
