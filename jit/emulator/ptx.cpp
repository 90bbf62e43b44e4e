#include "jit/emulator/ptx.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstring>
#include <utility>

#include "jit/error.h"

namespace weft::emulator {
namespace {

struct TypeName {
  std::string_view name;
  Type type;
  int bits;
};
constexpr std::array<TypeName, 21> kTypes{{{"pred", Type::pred, 1},  {"b8", Type::b8, 8},        {"b16", Type::b16, 16},
                                           {"b32", Type::b32, 32},   {"b64", Type::b64, 64},     {"b128", Type::b128, 128},
                                           {"u8", Type::u8, 8},      {"u16", Type::u16, 16},     {"u32", Type::u32, 32},
                                           {"u64", Type::u64, 64},   {"s8", Type::s8, 8},        {"s16", Type::s16, 16},
                                           {"s32", Type::s32, 32},   {"s64", Type::s64, 64},     {"f16", Type::f16, 16},
                                           {"bf16", Type::bf16, 16}, {"f16x2", Type::f16x2, 32}, {"bf16x2", Type::bf16x2, 32},
                                           {"tf32", Type::tf32, 32}, {"f32", Type::f32, 32},     {"f64", Type::f64, 64}}};

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

class Parser {
 public:
  explicit Parser(Module& module) : module_(module), p_(module.text.data()), end_(p_ + module.text.size()) {}
  void run();

 private:
  [[noreturn]] void error(const std::string& what) const {
    fail(ErrorKind::device, "PTX: " + what, "line " + std::to_string(line_));
  }
  // ---- characters -----------------------------------------------------------------------------------------------------------
  void space();
  void rest_of_line() {
    while (p_ < end_ && *p_ != '\n') ++p_;
  }
  char peek() {
    space();
    return p_ < end_ ? *p_ : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++p_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) error(std::string("expected '") + c + "' before '" + std::string(p_, std::min(end_, p_ + 20)) + "'");
  }
  std::string_view word();  // a name with its dots; empty if there is none
  std::int64_t integer();
  std::uint64_t number();

  // ---- declarations ---------------------------------------------------------------------------------------------------------
  void function(bool entry);
  std::vector<Variable> parameters();
  Variable variable(Space space);
  void initial_values(Variable& v, int bytes);
  void registers();
  void body();
  void statement(std::string_view first);
  void branch_table(const std::string& name);

  // ---- instructions ---------------------------------------------------------------------------------------------------------
  void instruction(std::string_view opcode, int guard, bool negated);
  Operand operand();
  Operand simple(std::string_view name);
  int find_register(std::string_view name) const;  // -1: no register of that name

  struct Scope {
    // Name or prefix -> first index, count (0: one, by name).
    std::map<std::string, std::pair<int, int>, std::less<>> registers;
    std::map<std::string, std::string, std::less<>> variables;  // a call's param variables get names of their own
  };
  Module& module_;
  const char *p_, *end_;
  int line_ = 1, source_line_ = 0, unique_ = 0;
  Function* function_ = nullptr;
  std::vector<Scope> scopes_;
  std::map<std::string, int, std::less<>> labels_;
  std::map<std::string, std::vector<std::string>> tables_;
};

void Parser::space() {
  for (; p_ < end_; ++p_) {
    if (*p_ == '\n') {
      ++line_;
    } else if (p_[0] == '/' && p_ + 1 < end_ && p_[1] == '/') {
      rest_of_line();
      --p_;
    } else if (p_[0] == '/' && p_ + 1 < end_ && p_[1] == '*') {
      for (p_ += 2; p_ + 1 < end_ && !(p_[0] == '*' && p_[1] == '/'); ++p_) line_ += *p_ == '\n';
      ++p_;
    } else if (!std::isspace(static_cast<unsigned char>(*p_)) && *p_ != '\0') {
      return;
    }
  }
}

std::string_view Parser::word() {
  space();
  const char* begin = p_;
  while (p_ < end_ && is_name(*p_)) ++p_;
  // Names of inline functions have colons ("%p::x" of ".shared::cta"); a label's single one stays.
  while (p_ + 2 < end_ && p_ > begin && p_[0] == ':' && p_[1] == ':') {
    p_ += 2;
    while (p_ < end_ && is_name(*p_)) ++p_;
  }
  return {begin, std::size_t(p_ - begin)};
}

// Floats are given as bits: 0f3F800000, 0d3FF0000000000000.
std::uint64_t Parser::number() {
  bool negative = take('-');
  std::string_view text = word();
  std::uint64_t value = 0;
  int base = 10;
  if (text.size() > 2 && text[0] == '0' && std::strchr("fFdDxX", text[1])) base = 16, text.remove_prefix(2);
  while (!text.empty() && (text.back() == 'U' || text.back() == 'u')) text.remove_suffix(1);
  auto [last, code] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (code != std::errc{} || last != text.data() + text.size()) error("not a number: " + std::string(text));
  return negative ? 0 - value : value;
}

std::int64_t Parser::integer() { return std::int64_t(number()); }

void Parser::run() {
  while (peek()) {
    if (*p_ == ';' || *p_ == '}') {
      ++p_;
      continue;
    }
    std::string_view directive = word();
    if (directive == ".version" || directive == ".address_size" || directive == ".file") {
      rest_of_line();
    } else if (directive == ".target") {
      module_.target = word();
      rest_of_line();
    } else if (directive == ".entry" || directive == ".func") {
      function(directive == ".entry");
    } else if (directive == ".global" || directive == ".const" || directive == ".shared") {
      module_.variables.push_back(variable(directive == ".global"  ? Space::global
                                           : directive == ".const" ? Space::constant
                                                                   : Space::shared));
    } else if (directive == ".section") {
      while (p_ < end_ && *p_ != '}') {
        line_ += *p_ == '\n';
        ++p_;
      }
    } else if (directive != ".visible" && directive != ".extern" && directive != ".weak" && directive != ".common") {
      error("unknown directive '" + std::string(directive.empty() ? std::string_view(p_, 1) : directive) + "'");
    }
  }
}

// After the space: .align 16 .b8 name[128] = {1, 2};
Variable Parser::variable(Space space) {
  Variable v;
  v.space = space;
  Type type = Type::none;
  std::string_view w = word();
  for (; !w.empty() && w[0] == '.'; w = word()) {
    if (w == ".align") v.align = std::uint64_t(integer());
    if (Type t = type_named(w.substr(1)); t != Type::none) type = t;
  }
  v.name = w;
  const auto bytes = std::uint64_t(bits_of(type)) / 8;
  v.align = std::max<std::uint64_t>(v.align, bytes);
  v.size = bytes;
  for (bool first = true; take('['); first = false, expect(']')) {
    std::uint64_t count = peek() == ']' ? 0 : number();
    v.size = first ? bytes * count : v.size * count;
  }
  if (take('=')) initial_values(v, int(bytes));
  return v;
}

void Parser::initial_values(Variable& v, int bytes) {
  const bool braces = take('{');
  do {
    take('{');  // rows of an array of arrays
    if (peek() != '-' && !std::isdigit(static_cast<unsigned char>(*p_))) error("variable " + v.name + ": not a number");
    std::uint64_t value = number();
    for (int i = 0; i < bytes; ++i) v.initial.push_back(std::uint8_t(value >> (8 * i)));
    while (peek() == '}' && braces && p_[1] == ',') ++p_;
  } while (take(','));
  while (braces && take('}')) {
  }
}

std::vector<Variable> Parser::parameters() {
  std::vector<Variable> list;
  expect('(');
  if (take(')')) return list;
  do {
    if (std::string_view w = word(); w != ".param" && w != ".reg") error("expected .param, not '" + std::string(w) + "'");
    list.push_back(variable(Space::param));
  } while (take(','));
  expect(')');
  return list;
}

void Parser::function(bool entry) {
  Function f;
  f.entry = entry;
  f.line = line_;
  if (peek() == '(') f.results = parameters();
  f.name = word();
  if (peek() == '(') f.parameters = parameters();
  for (std::string_view w; peek() == '.';) {  // .maxntid 256, 1, 1
    w = word();
    int threads = 1;
    if (w == ".noreturn" || w == ".unique") continue;
    if (w == ".pragma") {
      rest_of_line();
      continue;
    }
    do threads *= int(integer());
    while (take(','));
    if (w == ".maxntid" || w == ".reqntid") f.max_threads = threads;
  }
  if (take(';')) return;  // a declaration
  function_ = &f;
  scopes_.clear(), labels_.clear(), tables_.clear();
  expect('{');
  body();
  auto at = [&](const std::string& label) {
    auto found = labels_.find(label);
    if (found == labels_.end()) error("no label " + label + " in " + f.name);
    return found->second;
  };
  for (PtxInstruction& i : f.body)
    if (i.words[0] == "bra") {
      Operand& target = i.operands.at(0);
      target.index = at(target.name);
      target.kind = Operand::label;
    }
  for (const auto& [name, targets] : tables_)
    for (const std::string& label : targets) f.branch_tables[name].push_back(at(label));
  module_.functions.push_back(std::move(f));
  function_ = nullptr;
}

// Up to the closing brace, nested scopes included.
void Parser::body() {
  scopes_.emplace_back();
  while (!scopes_.empty()) {
    if (take('{')) {
      scopes_.emplace_back();
    } else if (take('}')) {
      scopes_.pop_back();
    } else if (take(';')) {
    } else if (take('@')) {
      bool negated = take('!');
      int guard = find_register(word());
      if (guard < 0) error("unknown predicate");
      instruction(word(), guard, negated);
    } else {
      std::string_view first = word();
      if (first.empty()) error("unexpected '" + std::string(p_, std::min<std::size_t>(1, std::size_t(end_ - p_))) + "'");
      statement(first);
    }
  }
}

void Parser::statement(std::string_view first) {
  if (first[0] != '.') {
    if (take(':')) {
      labels_[std::string(first)] = int(function_->body.size());
      if (peek() == '.' && std::string_view(p_, std::size_t(end_ - p_)).starts_with(".branchtargets"))
        branch_table(std::string(first));
      return;
    }
    return instruction(first, -1, false);
  }
  if (first == ".reg") return registers();
  if (first == ".loc") {
    integer();
    source_line_ = int(integer());
    return rest_of_line();
  }
  if (first == ".pragma") return rest_of_line();
  if (first == ".shared" || first == ".local" || first == ".param") {
    Variable v = variable(first == ".shared" ? Space::shared : first == ".local" ? Space::local : Space::param);
    if (first == ".param") {
      std::string name = v.name + "@" + std::to_string(unique_++);
      scopes_.back().variables[v.name] = name;
      v.name = name;
    }
    function_->variables.push_back(std::move(v));
    return;
  }
  error("unknown directive '" + std::string(first) + "'");
}

void Parser::branch_table(const std::string& name) {
  word();
  do tables_[name].emplace_back(word());
  while (take(','));
}

// .reg .b32 %r<10>, %x;
void Parser::registers() {
  Type type = type_named(word().substr(1));
  if (type == Type::none) error("a register of unknown type");
  do {
    std::string name(word());
    int count = 0;
    if (take('<')) {
      count = int(integer());
      expect('>');
    }
    scopes_.back().registers[name] = {int(function_->registers.size()), count};
    function_->registers.insert(function_->registers.end(), std::size_t(std::max(count, 1)), type);
  } while (take(','));
}

int Parser::find_register(std::string_view name) const {
  std::size_t digits = name.size();
  while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (auto found = scope->registers.find(name); found != scope->registers.end() && found->second.second == 0)
      return found->second.first;
    if (digits == name.size()) continue;
    auto found = scope->registers.find(name.substr(0, digits));
    if (found == scope->registers.end()) continue;
    int index = 0;
    std::from_chars(name.data() + digits, name.data() + name.size(), index);
    if (index < found->second.second) return found->second.first + index;
  }
  return -1;
}

void Parser::instruction(std::string_view opcode, int guard, bool negated) {
  PtxInstruction i;
  i.line = line_;
  i.source_line = source_line_;
  i.guard = guard;
  i.guard_negated = negated;
  i.opcode = opcode;
  for (std::size_t begin = 0; begin <= opcode.size();) {
    std::size_t end = std::min(opcode.find('.', begin), opcode.size());
    i.words.push_back(opcode.substr(begin, end - begin));
    begin = end + 1;
  }
  if (peek() != ';') {
    do i.operands.push_back(operand());
    while (take(','));
  }
  expect(';');
  function_->body.push_back(std::move(i));
}

Operand Parser::operand() {
  Operand o;
  const char c = peek();
  if (c == '{' || c == '(') {
    ++p_;
    o.kind = Operand::list;
    const char close = c == '{' ? '}' : ')';
    if (take(close)) return o;
    do o.parts.push_back(operand());
    while (take(','));
    expect(close);
  } else if (c == '[') {
    ++p_;
    o.kind = Operand::address;
    o.parts.push_back(operand());
    if (take('+')) o.offset = integer();
    while (take(',')) o.parts.push_back(operand());  // coordinates of tensor copies
    expect(']');
  } else if (c == '!') {
    ++p_;
    o = operand();
    o.negated = true;
  } else if (c == '-' || std::isdigit(static_cast<unsigned char>(c))) {
    o.kind = Operand::number;
    o.bits = number();
  } else {
    o = simple(word());
    if (take('|')) {
      Operand both;
      both.kind = Operand::list;
      both.parts.push_back(std::move(o));
      both.parts.push_back(operand());
      return both;
    }
  }
  return o;
}

Operand Parser::simple(std::string_view name) {
  Operand o;
  if (name.empty()) error("an operand is missing");
  if (name == "_") return o;
  o.name = name;
  if (int r = find_register(name); r >= 0) {
    o.kind = Operand::reg;
    o.index = r;
  } else if (name[0] == '%') {
    o.kind = Operand::special;
  } else {
    o.kind = Operand::symbol;
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (auto found = scope->variables.find(name); found != scope->variables.end()) {
        o.name = found->second;
        break;
      }
  }
  return o;
}

}  // namespace

int bits_of(Type type) {
  for (const TypeName& t : kTypes)
    if (t.type == type) return t.bits;
  return 0;
}

Type type_named(std::string_view name) {
  for (const TypeName& t : kTypes)
    if (t.name == name) return t.type;
  return Type::none;
}

bool is_signed(Type type) { return type >= Type::s8 && type <= Type::s64; }
bool is_float(Type type) { return type >= Type::f16; }

bool PtxInstruction::has(std::string_view word) const { return std::find(words.begin() + 1, words.end(), word) != words.end(); }

Type PtxInstruction::type() const {
  for (auto word = words.rbegin(); word != words.rend(); ++word)
    if (const Type t = type_named(*word); t != Type::none) return t;
  return Type::none;
}

Module parse_ptx(std::string text) {
  Module module;
  module.text = std::move(text);
  Parser(module).run();
  return module;
}

}  // namespace weft::emulator
