#include "jit/hole_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "jit/error.h"
#include "jit/interval.h"
#include "jit/op_facts.h"
#include "jit/order.h"

namespace weft {
namespace {

// Where a value is computed: bit 0 if it depends on the row, bit 1 if on the column.
enum Level : unsigned { outer = 0, row = 1, column = 2, element = 3 };

struct Coordinate {
  std::string name;
  Level level;
};

std::string literal_text(Expr e) {
  if (e.type() == ExprType::boolean) return e.index() ? "true" : "false";
  if (e.type() == ExprType::integer)
    return e.index() == std::numeric_limits<std::int64_t>::min() ? "i64(0x8000000000000000ull)"
                                                                 : fmt::format("i64({}ll)", e.index());
  const double v = e.value();
  if (std::isnan(v)) return "real(__longlong_as_double(0x7ff8000000000000ll))";
  if (std::isinf(v)) return v > 0 ? "infinity()" : "-infinity()";
  return v == std::trunc(v) && std::abs(v) < 1e6 ? fmt::format("real({:.1f})", v) : fmt::format("real({:.17g})", v);
}

// An operation on arguments whose texts are known. Integers wrap.
std::string operation_text(Expr e, std::span<const std::string> args) {
  const OpFacts& facts = facts_of(e.op());
  if (e.op() == ExprOp::select) return fmt::format("{} ? {} : {}", args[0], args[1], args[2]);
  if (e.op() == ExprOp::narrow) return fmt::format("narrow_{}({})", name_of(DType(e.index())), args[0]);
  const bool whole = e.arg(0).type() != ExprType::real;
  if (e.op() == ExprOp::mul && !whole && !contraction()) return fmt::format("product({}, {})", args[0], args[1]);
  const std::string_view f = whole && !facts.cuda_integer.empty() ? facts.cuda_integer : facts.cuda;
  if (!facts.sign.empty() && f == facts.cuda) {
    const bool wraps = whole && e.type() == ExprType::integer;
    if (e.arity() == 1) return wraps ? fmt::format("i64(0 - u64({}))", args[0]) : fmt::format("{}{}", f, args[0]);
    return wraps ? fmt::format("i64(u64({}) {} u64({}))", args[0], f, args[1]) : fmt::format("{} {} {}", args[0], f, args[1]);
  }
  return fmt::format("{}({})", f, fmt::join(args, ", "));
}

// ---- one set of expressions -------------------------------------------------------------------------------------------------

class Writer {
 public:
  // `flat`: one function over (row, col), with nothing kept from level to level.
  Writer(CudaText& text, std::string_view name, const Fused& fused, std::span<const std::int64_t> dims,
         std::vector<Coordinate> coordinates, bool flat)
      : text_(text),
        name_(name),
        fused_(fused),
        dims_(dims.begin(), dims.end()),
        coordinates_(std::move(coordinates)),
        flat_(flat),
        order_(fused.roots),
        level_(std::size_t(order_.size())),
        kept_(level_.size()),
        rows_(fused.leaves.size()) {
    for (auto& needed : needed_) needed.resize(level_.size());
    find_levels();
    for (const Expr root : fused.roots) need(element, order_.position(root));
    for (const Level level : {column, row, outer})
      for (int at = 0; at < order_.size(); ++at)
        if (kept_[std::size_t(at)] && level_[std::size_t(at)] == level) need(level, at);
    for (int at = 0, count = 0; at < order_.size(); ++at) name_node(at, count);
  }

  void write_flat();
  void write_levels();
  StagedBytes write_staged(int width);

 private:
  Expr node(int at) const { return order_.nodes()[std::size_t(at)]; }
  bool is_leaf(Expr e) const { return e.op() == ExprOp::input && e.index() >= fused_.values; }
  std::size_t leaf_of(Expr e) const { return std::size_t(e.index() - fused_.values); }
  std::int64_t stride(const Operand& o, std::size_t axis) const { return o.dims[axis] == 1 ? 0 : o.strides[axis]; }

  // Declares the arguments of a node, once each.
  void find_levels();
  void add_leaf(std::size_t k);
  void need(Level at, int position);
  bool is_worth_keeping(Expr e) const;
  void name_node(int at, int& count);

  std::string reference(int at, Level from) const;
  std::string value(int at, Level from);  // what a statement assigns
  std::string load_value(Expr e, Level from);
  std::string offset(const Operand& leaf, const std::string& name, unsigned levels) const;
  std::string pointer(std::size_t leaf, Level from) const;
  std::string load_leaf(int at, Level from) const;
  bool is_staged(int at) const;         // copied to shared memory first
  std::string loads(Level from) const;  // of leaves and draws that are read as vectors
  std::string statements(Level from);   // of a scalar level, or inside the loop over V
  std::string loop(const std::string& body) const {
    return "#pragma unroll\n  for (int j = 0; j < V; ++j) {\n" + body + "  }\n";
  }
  std::string parameters(unsigned levels) const;  // ", index i0, index i1"
  std::string arguments(unsigned levels) const;
  std::string members(Level level) const;
  std::string comment() const;
  std::string signature() const;  // values and roots
  std::string passed() const;     // the same as arguments

  void write_scalar_level(Level level, std::string_view take, std::string_view take_types);
  void write_column_level();
  void write_element_level();

  CudaText& text_;
  std::string name_;
  const Fused& fused_;
  std::vector<std::int64_t> dims_;
  std::vector<Coordinate> coordinates_;
  bool flat_;
  Order order_;
  std::vector<Level> level_;     // of each node
  std::vector<char> kept_;       // computed at its own level and handed down
  std::vector<char> needed_[4];  // by level: computed there
  std::vector<std::string> names_;
  std::vector<std::string> rows_;               // flat: of each leaf, where a row begins
  bool divides_ = false;                        // flat: a leading coordinate is needed alone
  std::map<std::size_t, std::int64_t> staged_;  // while a function reads leaves from shared memory: bytes before each
};

// Levels, and the arguments that leaves, constants and tables need.
void Writer::find_levels() {
  bool numbered = false;
  for (int at = 0; at < order_.size(); ++at) {
    const Expr e = node(at);
    unsigned level = outer;
    for (int i = 0; i < e.arity(); ++i) level |= level_[std::size_t(order_.position(e.arg(i)))];
    switch (e.op()) {
      case ExprOp::input:
        if (!is_leaf(e)) {
          level = element;
        } else {
          const Operand& o = fused_.leaves[leaf_of(e)];
          add_leaf(leaf_of(e));
          if (flat_) level |= (rows_[leaf_of(e)].empty() ? outer : row) | (last_stride(o) != 0 ? column : outer);
          for (std::size_t axis = 0; axis < coordinates_.size() && !flat_; ++axis)
            if (stride(o, axis) != 0) level |= coordinates_[axis].level;
        }
        break;
      case ExprOp::index:
        if (std::size_t(e.index()) >= coordinates_.size())
          fail(ErrorKind::usage, fmt::format("{}: an expression reads a coordinate that it has not", name_),
               fmt::format("index {} of {}", e.index(), coordinates_.size()));
        level = coordinates_[std::size_t(e.index())].level;
        divides_ |= flat_ && level == row;
        break;
      case ExprOp::element:
        level = element;
        numbered = true;
        break;
      case ExprOp::slot:
        if (e.type() == ExprType::real)
          text_.constant(fmt::format("{}_c{}", name_, e.index()), fused_.constants[std::size_t(e.index())]);
        else
          text_.integer(fmt::format("{}_n{}", name_, e.index()), fused_.constants[std::size_t(e.index())]);
        break;
      case ExprOp::uniform:
        text_.integer(fmt::format("{}_k{}", name_, e.index()), fused_.constants[std::size_t(e.index())]);
        break;
      case ExprOp::load: {
        const Operand& table = fused_.tables[std::size_t(e.index())];
        const std::string name = fmt::format("{}_z{}", name_, at);
        text_.source(name, table);
        for (int axis = 0; axis < table.rank; ++axis)
          text_.integer(fmt::format("{}_size{}", name, axis), table.dims[std::size_t(axis)])
              .integer(fmt::format("{}_stride{}", name, axis), table.strides[std::size_t(axis)]);
        break;
      }
      default:
        break;
    }
    level_[std::size_t(at)] = flat_ && level == column ? element : Level(level);
  }
  if (numbered) text_.integer(name_ + "_columns", dims_.empty() ? 1 : dims_.back());
}

// The pointer, and a stride for each coordinate that matters.
void Writer::add_leaf(std::size_t k) {
  const Operand& o = fused_.leaves[k];
  const std::string name = fmt::format("{}_x{}", name_, k);
  text_.source(name, o);
  if (flat_) {
    rows_[k] = text_.row_offset(name, o);
    if (last_stride(o) != 0 && last_stride(o) != 1) text_.integer(name + "_col", last_stride(o));
    return;
  }
  for (std::size_t axis = 0; axis < coordinates_.size(); ++axis)
    if (stride(o, axis) != 0 && (coordinates_[axis].level != column || stride(o, axis) != 1))
      text_.integer(fmt::format("{}_s{}", name, axis), o.strides[axis]);
}

// What a deeper level takes from a shallower one instead of computing it again, which costs registers: what reads memory, a
// special function, or four operations.
bool Writer::is_worth_keeping(Expr e) const {
  if (flat_ || is_leaf(e) || e.op() == ExprOp::load || e.op() == ExprOp::slot) return true;
  const ExprCost cost = cost_of(std::span(&e, 1));
  return cost.special > 0 || cost.simple >= 4;
}

void Writer::need(Level at, int position) {
  const Expr e = node(position);
  if (e.op() == ExprOp::literal || (e.op() == ExprOp::input && !is_leaf(e))) return;
  const Level own = level_[std::size_t(position)];
  if (own != at && is_worth_keeping(e)) {
    kept_[std::size_t(position)] = 1;
    return;
  }
  if (needed_[at][std::size_t(position)]) return;
  needed_[at][std::size_t(position)] = 1;
  for (int i = 0; i < e.arity(); ++i) need(at, order_.position(e.arg(i)));
}

void Writer::name_node(int at, int& count) {
  const Expr e = node(at);
  switch (e.op()) {
    case ExprOp::literal:
      names_.push_back(literal_text(e));
      break;
    case ExprOp::input:
      names_.push_back(is_leaf(e) ? fmt::format("x{}", leaf_of(e)) : fmt::format("v{}", e.index()));
      break;
    case ExprOp::slot:
      names_.push_back(fmt::format("{}{}", e.type() == ExprType::real ? "c" : "n", e.index()));
      break;
    default:
      names_.push_back(fmt::format("t{}", count++));
  }
}

// The name of a node where level `from` is computed.
std::string Writer::reference(int at, Level from) const {
  const Expr e = node(at);
  const std::string& name = names_[std::size_t(at)];
  if (e.op() == ExprOp::literal) return name;
  const Level own = level_[std::size_t(at)];
  if (kept_[std::size_t(at)] && own != from && !flat_)
    return fmt::format("{}.{}{}", own == outer ? "o" : own == row ? "r" : "c", name, own == column ? "[j]" : "");
  const bool vector = e.op() == ExprOp::input && (own == column || own == element);
  return vector ? name + "[j]" : name;
}

// ---- addresses --------------------------------------------------------------------------------------------------------------

// The sum of products of the coordinates of these levels; "" if there is none.
std::string Writer::offset(const Operand& o, const std::string& name, unsigned levels) const {
  const bool far = reach_of(o) > kMostNarrow;
  const auto term = [&](std::string_view coordinate, std::string_view argument, bool wide) {
    const std::string_view type = wide ? "i64" : "index";
    return fmt::format("{}({}) * {}(a.{})", type, coordinate, type, argument);
  };
  std::vector<std::string> terms;
  for (std::size_t axis = 0; axis < coordinates_.size(); ++axis) {
    const Coordinate& c = coordinates_[axis];
    if (stride(o, axis) == 0 || (c.level == outer ? levels != outer : c.level != levels)) continue;
    terms.push_back(term(c.name, fmt::format("{}_s{}", name, axis), far));
  }
  return fmt::format("{}", fmt::join(terms, " + "));
}

// Where a leaf begins for these outer coordinates.
std::string Writer::pointer(std::size_t k, Level from) const {
  const std::string name = fmt::format("{}_x{}", name_, k), away = flat_ ? "" : offset(fused_.leaves[k], name, outer);
  if (away.empty()) return "a." + name;
  return from == outer ? fmt::format("a.{} + ({})", name, away) : fmt::format("o.p{}", k);
}

// Statements that read leaf `at` of level `from` into its name.
std::string Writer::load_leaf(int at, Level from) const {
  const std::size_t k = leaf_of(node(at));
  const Operand& o = fused_.leaves[k];
  const std::string name = fmt::format("{}_x{}", name_, k), begin = pointer(k, from);
  const std::string_view type = value_type(expr_type(o.dtype));
  std::string rows = flat_ ? rows_[k] : offset(o, name, row);
  if (!rows.empty() && from == element && !flat_) rows = fmt::format("r.x{}", k);
  const std::string plus = rows.empty() ? "" : rows + " + ";
  if (from == outer || from == row)
    return fmt::format("  const {} x{} = {}(value_at({}{}));\n", type, k, type, begin,
                       rows.empty() ? "" : fmt::format(" + ({})", rows));
  const auto along =
      std::find_if(coordinates_.begin(), coordinates_.end(), [](const Coordinate& c) { return c.level == column; });
  const std::size_t axis = std::size_t(along - coordinates_.begin());
  const std::string& col = along->name;
  if (const auto staged = staged_.find(k); staged != staged_.end())
    return fmt::format(
        "  {0} x{1}[V];\n  load_values<V>(reinterpret_cast<const {2}*>(from + {3} * THREADS) + int(threadIdx.x) * V, x{1});\n",
        type, k, cuda_type(o.dtype), staged->second);
  if ((flat_ ? last_stride(o) : stride(o, axis)) == 1)
    return fmt::format("  {} x{}[V];\n  load_values<V>({} + ({}{}), x{});\n", type, k, begin, plus, col, k);
  const std::string_view wide = reach_of(o) > kMostNarrow ? "i64" : "index";
  return fmt::format(
      "  {0} x{1}[V];\n#pragma unroll\n  for (int j = 0; j < V; ++j) x{1}[j] = {0}(value_at({2} + ({3}{4}({5} + j) * "
      "{4}(a.{6}_{7}))));\n",
      type, k, begin, plus, wide, col, name, flat_ ? "col" : fmt::format("s{}", axis));
}

bool Writer::is_staged(int at) const {
  const Expr e = node(at);
  if (!needed_[element][std::size_t(at)] || !is_leaf(e) || level_[std::size_t(at)] != element) return false;
  const Operand& o = fused_.leaves[leaf_of(e)];
  const auto along =
      std::find_if(coordinates_.begin(), coordinates_.end(), [](const Coordinate& c) { return c.level == column; });
  return stride(o, std::size_t(along - coordinates_.begin())) == 1 && (o.dtype == DType::bf16 || o.dtype == DType::f32);
}

// ---- statements -------------------------------------------------------------------------------------------------------------

// An element at general subscripts. What is not known to lie inside is checked: a subscript outside is an error.
std::string Writer::load_value(Expr e, Level from) {
  const Operand& table = fused_.tables[std::size_t(e.index())];
  const std::string name = fmt::format("{}_z{}", name_, order_.position(e));
  std::vector<Interval> bounds;
  for (const std::int64_t size : fused_.dims) bounds.push_back({0, double(size - 1)});
  std::vector<std::string> terms;
  for (int axis = 0; axis < e.arity(); ++axis) {
    const std::string subscript = reference(order_.position(e.arg(axis)), from);
    const Interval range = interval_of(e.arg(axis), bounds);
    if (range.low >= 0 && range.high < double(table.dims[std::size_t(axis)]))
      terms.push_back(fmt::format("{0} * a.{1}_stride{2}", subscript, name, axis));
    else
      terms.push_back(fmt::format("step_to(a.status, {0}, a.{1}_size{2}, a.{1}_stride{2}, {2})", subscript, name, axis));
  }
  const std::string_view type = value_type(e.type());
  return fmt::format("{}(value_at(a.{}{}))", type, name, terms.empty() ? "" : fmt::format(" + ({})", fmt::join(terms, " + ")));
}

std::string Writer::value(int at, Level from) {
  const Expr e = node(at);
  switch (e.op()) {
    case ExprOp::index: {
      const Coordinate& c = coordinates_[std::size_t(e.index())];
      return fmt::format("i64({}{})", c.name, c.level == column ? " + j" : "");
    }
    case ExprOp::element:
      return "element + j";
    case ExprOp::slot:
      return e.type() == ExprType::real ? fmt::format("a.{}_c{}()", name_, e.index())
                                        : fmt::format("integer_of(a.constants[a.{}_n{}])", name_, e.index());
    case ExprOp::uniform:
      if (same(e.arg(0), expr::element())) return fmt::format("u{}[j]", e.index());
      return fmt::format("uniform_at<real>(a.constants + a.{}_k{}, {})", name_, e.index(),
                         reference(order_.position(e.arg(0)), from));
    case ExprOp::load:
      return load_value(e, from);
    default:
      break;
  }
  std::vector<std::string> args;
  for (int i = 0; i < e.arity(); ++i) args.push_back(reference(order_.position(e.arg(i)), from));
  return operation_text(e, args);
}

std::string Writer::loads(Level from) const {
  std::string out;
  std::map<std::int64_t, bool> draws;
  for (int at = 0; at < order_.size(); ++at) {
    if (!needed_[from][std::size_t(at)]) continue;
    const Expr e = node(at);
    if (is_leaf(e)) out += load_leaf(at, from);
    if (e.op() == ExprOp::uniform && same(e.arg(0), expr::element())) draws[e.index()] = true;
  }
  for (const auto& [slot, unused] : draws)
    out += fmt::format("  real u{0}[V];\n  uniforms<V>(a.constants + a.{1}_k{0}, element, u{0});\n", slot, name_);
  return out;
}

std::string Writer::statements(Level from) {
  const bool looped = from == column || from == element;
  std::string out;
  for (int at = 0; at < order_.size(); ++at) {
    const Expr e = node(at);
    if (!needed_[from][std::size_t(at)] || e.op() == ExprOp::input) continue;
    out += fmt::format("{}const {} {} = {};\n", looped ? "    " : "  ", value_type(e.type()), names_[std::size_t(at)],
                       value(at, from));
  }
  return out;
}

// ---- functions --------------------------------------------------------------------------------------------------------------

std::string Writer::comment() const {
  std::string out;
  for (const Expr root : fused_.roots) out += fmt::format("// {}\n", to_string(root));
  return out;
}

std::string Writer::signature() const {
  std::string out;
  for (int k = 0; k < fused_.values; ++k) out += fmt::format(", const real (&v{})[V]", k);
  for (std::size_t k = 0; k < fused_.roots.size(); ++k)
    out += fmt::format(", {} (&y{})[V]", value_type(fused_.roots[k].type()), k);
  return out;
}

std::string Writer::passed() const {
  std::string out;
  for (int k = 0; k < fused_.values; ++k) out += fmt::format(", v{}", k);
  for (std::size_t k = 0; k < fused_.roots.size(); ++k) out += fmt::format(", y{}", k);
  return out;
}

// Of the coordinates that a function of this level knows, in order.
std::string Writer::parameters(unsigned levels) const {
  std::string out;
  for (const Coordinate& c : coordinates_)
    if ((c.level & ~levels) == 0) out += fmt::format(", index {}", c.name);
  return out;
}
std::string Writer::arguments(unsigned levels) const {
  std::string out;
  for (const Coordinate& c : coordinates_)
    if ((c.level & ~levels) == 0) out += ", " + c.name;
  return out;
}

void Writer::write_flat() {
  std::string body;
  if (std::size_t leading = coordinates_.size() - 1; divides_ && leading == 1) {
    body += fmt::format("  const index {} = row;\n", coordinates_[0].name);
  } else if (divides_) {
    std::string rest = "row";
    for (; leading-- > 1;) {
      const std::string size = fmt::format("{}_size{}", name_, leading), over = fmt::format("over{}", leading);
      text_.integer(size, dims_[leading]);
      body += fmt::format("  const index {0} = {1} / index(a.{2}), {3} = {1} - {0} * index(a.{2});\n", over, rest, size,
                          coordinates_[leading].name);
      rest = over;
    }
    body += fmt::format("  const index {} = {};\n", coordinates_[0].name, rest);
  }
  if (std::any_of(order_.nodes().begin(), order_.nodes().end(), [](Expr e) { return e.op() == ExprOp::element; }))
    body += fmt::format("  const i64 element = i64(row) * a.{}_columns + col;\n", name_);
  for (const Level level : {outer, row}) body += loads(level) + statements(level);
  body += loads(element);
  std::string elements = statements(element);
  for (std::size_t k = 0; k < fused_.roots.size(); ++k)
    elements += fmt::format("    y{}[j] = {};\n", k, reference(order_.position(fused_.roots[k]), element));
  text_.function(comment() + fmt::format("template <int V>\nDEVICE void {}(const Args& a, index row, index col{}) {{\n{}{}}}\n",
                                         name_, signature(), body, loop(elements)));
}

// The members of a level's struct: pointers and offsets of leaves that deeper levels read, and values that they use.
std::string Writer::members(Level level) const {
  std::string out;
  for (int at = 0; at < order_.size(); ++at) {
    const Expr e = node(at);
    const Level own = level_[std::size_t(at)];
    if (is_leaf(e)) {
      const std::size_t k = leaf_of(e);
      const Operand& o = fused_.leaves[k];
      const std::string name = fmt::format("{}_x{}", name_, k);
      if (level == outer && own != outer && !offset(o, name, outer).empty())
        out += fmt::format("  const {}* p{};\n", cuda_type(o.dtype), k);
      if (level == row && own == element && !offset(o, name, row).empty())
        out += fmt::format("  {} x{};\n", reach_of(o) > kMostNarrow ? "i64" : "index", k);
    }
    if (kept_[std::size_t(at)] && own == level)
      out += fmt::format("  {} {}{};\n", value_type(e.type()), names_[std::size_t(at)], level == column ? "[V]" : "");
  }
  return out;
}

// `take`: the parameters before the coordinates.
void Writer::write_scalar_level(Level level, std::string_view take, std::string_view suffix) {
  std::string sets;
  for (int at = 0; at < order_.size(); ++at) {
    const Expr e = node(at);
    const Level own = level_[std::size_t(at)];
    if (is_leaf(e)) {
      const std::size_t k = leaf_of(e);
      const Operand& o = fused_.leaves[k];
      const std::string name = fmt::format("{}_x{}", name_, k);
      if (level == outer && own != outer && !offset(o, name, outer).empty())
        sets += fmt::format("  {}.p{} = {};\n", suffix, k, pointer(k, outer));
      if (level == row && own == element && !offset(o, name, row).empty())
        sets += fmt::format("  {}.x{} = {};\n", suffix, k, offset(o, name, row));
    }
    if (kept_[std::size_t(at)] && own == level) sets += fmt::format("  {0}.{1} = {1};\n", suffix, names_[std::size_t(at)]);
  }
  const std::string_view kind = level == outer ? "outer" : "row";
  text_.function(
      fmt::format("struct {0}_{1} {{\n{2}}};\nDEVICE {0}_{1} {0}_{1}_at(const Args& a{3}{4}) {{\n  {0}_{1} {5};\n{6}{7}{8}  "
                  "return {5};\n}}\n",
                  name_, kind, members(level), take, parameters(level), suffix, loads(level), statements(level), sets));
}

void Writer::write_column_level() {
  std::string body = statements(column);
  for (int at = 0; at < order_.size(); ++at)
    if (kept_[std::size_t(at)] && level_[std::size_t(at)] == column)
      body += fmt::format("    c.{}[j] = {};\n", names_[std::size_t(at)],
                          names_[std::size_t(at)] + (is_leaf(node(at)) ? "[j]" : ""));
  text_.function(
      fmt::format("template <int V>\nstruct {0}_column {{\n{1}}};\ntemplate <int V>\nDEVICE {0}_column<V> {0}_column_at(const "
                  "Args& a, const "
                  "{0}_outer& o{2}) {{\n  {0}_column<V> c;\n{3}{4}  return c;\n}}\n",
                  name_, members(column), parameters(column), loads(column), body.empty() ? "" : loop(body)));
}

void Writer::write_element_level() {
  std::string elements = statements(element);
  for (std::size_t k = 0; k < fused_.roots.size(); ++k)
    elements += fmt::format("    y{}[j] = {};\n", k, reference(order_.position(fused_.roots[k]), element));
  text_.function(comment() +
                 fmt::format("template <int V>\nDEVICE void {0}(const Args& a, const {0}_outer& o, const {0}_row& r, const "
                             "{0}_column<V>& c{1}{2}) {{\n{3}{4}}}\n",
                             name_, parameters(element), signature(), loads(element), loop(elements)));
}

void Writer::write_levels() {
  write_scalar_level(outer, "", "o");
  write_scalar_level(row, fmt::format(", const {}_outer& o", name_), "r");
  write_column_level();
  write_element_level();
  text_.function(
      fmt::format("template <int V>\nDEVICE void {0}(const Args& a{1}{2}) {{\n  const {0}_outer o = {0}_outer_at(a{3});\n"
                  "  {0}<V>(a, o, {0}_row_at(a, o{4}), {0}_column_at<V>(a, o{5}){6}{7});\n}}\n",
                  name_, parameters(element), signature(), arguments(outer), arguments(row), arguments(column),
                  arguments(element), passed()));
}

// After write_levels(). A leaf has `width` elements of each thread one after the other, after those of the leaves before it.
StagedBytes Writer::write_staged(int width) {
  constexpr std::int64_t kMost = 32;
  std::int64_t bytes = 0;
  std::string copies;
  for (int at = 0; at < order_.size(); ++at) {
    if (!is_staged(at)) continue;
    const std::size_t k = leaf_of(node(at));
    const Operand& o = fused_.leaves[k];
    const auto size = width * std::int64_t(size_of(o.dtype));
    if (staged_.count(k) || bytes + size > kMost) continue;
    const std::string plus = offset(o, fmt::format("{}_x{}", name_, k), row).empty() ? "" : fmt::format("r.x{} + ", k);
    copies += fmt::format("  copy_async<{0}>(to + {1} * THREADS + int(threadIdx.x) * {0}, {2} + ({3}col), in);\n", size, bytes,
                          pointer(k, element), plus);
    staged_[k] = bytes;
    bytes += size;
  }
  text_.function(
      fmt::format("constexpr int {0}_staged = {1};\ntemplate <int V, int THREADS>\nDEVICE void {0}_fetch(const Args& a, const "
                  "{0}_outer& o, "
                  "const {0}_row& r, index col, bool in, u32 to) {{\n{2}}}\n",
                  name_, bytes, copies));
  std::string elements = statements(element);
  for (std::size_t k = 0; k < fused_.roots.size(); ++k)
    elements += fmt::format("    y{}[j] = {};\n", k, reference(order_.position(fused_.roots[k]), element));
  text_.function(
      fmt::format("template <int V, int THREADS>\nDEVICE void {0}_staged_at(const Args& a, const {0}_outer& o, const "
                  "{0}_row& r, const {0}_column<V>& c{1}{2}, const u8* from) {{\n{3}{4}}}\n",
                  name_, parameters(element), signature(), loads(element), loop(elements)));
  staged_.clear();
  std::int64_t columns = 0;
  for (int at = 0; at < order_.size(); ++at)
    if (kept_[std::size_t(at)] && level_[std::size_t(at)] == column)
      columns += width * (node(at).type() == ExprType::real ? 4 : 8);
  return {bytes, std::max<std::int64_t>((columns + 7) / 8 * 8, 8)};
}

}  // namespace

void fused_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const std::int64_t> dims) {
  std::vector<Coordinate> coordinates;
  for (std::size_t axis = 0; axis + 1 < dims.size(); ++axis) coordinates.push_back({fmt::format("i{}", axis), row});
  coordinates.push_back({"col", column});
  if (!fused.hole.empty()) text.hole(fused.hole);
  Writer(text, name, fused, dims, std::move(coordinates), true).write_flat();
}

namespace {

std::vector<Coordinate> coordinates_of(const Fused& fused, HoleAxes axes) {
  std::vector<Coordinate> coordinates;
  for (int axis = 0; axis < int(fused.dims.size()); ++axis)
    coordinates.push_back({fmt::format("i{}", axis), axis == axes.column ? column : axis == axes.row ? row : outer});
  return coordinates;
}
HoleAxes last_axes(const Fused& fused) {
  const int rank = int(fused.dims.size());
  return {rank - 2, rank - 1};
}

}  // namespace

void hole_text(CudaText& text, std::string_view name, const Fused& fused, HoleAxes axes) {
  if (!fused.hole.empty()) text.hole(fused.hole);
  Writer(text, name, fused, fused.dims, coordinates_of(fused, axes), false).write_levels();
}
void hole_text(CudaText& text, std::string_view name, const Fused& fused) { hole_text(text, name, fused, last_axes(fused)); }
void staged_hole_text(CudaText& text, std::string_view name, const Fused& fused, int width) {
  if (!fused.hole.empty()) text.hole(fused.hole);
  Writer writer(text, name, fused, fused.dims, coordinates_of(fused, last_axes(fused)), false);
  writer.write_levels();
  writer.write_staged(width);
}
StagedBytes staged_bytes(const Fused& fused, int width) {
  CudaText unused("staged", false);
  return Writer(unused, "hole", fused, fused.dims, coordinates_of(fused, last_axes(fused)), false).write_staged(width);
}

int summed(std::span<const Operand> sums) {
  return int(std::count_if(sums.begin(), sums.end(), [](const Operand& o) { return bool(o); }));
}

namespace {

// `width`: of staged parts, 0 without them.
void write_gradients(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                     std::span<const Operand> sums, int width) {
  const std::string roots = fmt::format("{}_roots", name);
  if (width > 0)
    staged_hole_text(text, roots, fused, width);
  else
    hole_text(text, roots, fused);
  std::string coordinates, arguments, declared, passed, stores, totals;
  for (std::size_t axis = 0; axis < fused.dims.size(); ++axis) {
    coordinates += fmt::format(", index i{}", axis);
    arguments += fmt::format(", i{}", axis);
  }
  for (std::size_t r = 0, n = 0; r < fused.roots.size(); ++r) {
    const std::string y = r == 0 ? "first" : fmt::format("y{}", r), to = fmt::format("{}_to{}", name, r);
    passed += ", " + y;
    if (r > 0) declared += fmt::format("  real {}[V];\n", y);
    if (outputs[r]) {
      text.pointer(to, outputs[r]);
      std::string place;
      for (std::size_t axis = 0; axis + 1 < fused.dims.size(); ++axis) {
        text.integer(fmt::format("{}_s{}", to, axis), outputs[r].strides[axis]);
        place += fmt::format("index(i{0}) * index(a.{1}_s{0}) + ", axis, to);
      }
      stores += fmt::format("  if (stored) store_real<V>(a.{} + ({}i{}), {});\n", to, place, fused.dims.size() - 1, y);
    }
    if (!sums[r]) continue;
    const std::string sum = fmt::format("{}_sum{}", name, r);
    text.pointer(sum, sums[r]);
    stores += fmt::format("  if (stored) sums.add({}, {});\n", n, y);
    totals += fmt::format("  a.{}[to] = sums.template total<COLUMNS>({}, column);\n", sum, n++);
  }
  text.function(fmt::format(
      "template <int V, class Sums>\nDEVICE void {0}_gradients(const Args& a{1}, const real (&value)[V], const real "
      "(&upstream)[V], "
      "real (&first)[V], Sums& sums, bool stored = true) {{\n{2}  {3}<V>(a{4}, value, upstream{5});\n{6}}}\n"
      "template <int COLUMNS, class Sums>\nDEVICE void {0}_store_sums(const Args& a, const Sums& sums, int column, index to) "
      "{{\n{7}}}\n",
      name, coordinates, declared, roots, arguments, passed, stores, totals));
  if (width > 0)
    text.function(fmt::format(
        "template <int V, int THREADS, class Sums>\nDEVICE void {0}_gradients_at(const Args& a, const {3}_outer& o, const "
        "{3}_row& r, const {3}_column<V>& c{1}, const real (&value)[V], const real (&upstream)[V], real (&first)[V], Sums& "
        "sums, "
        "bool stored, const u8* from) {{\n{2}  {3}_staged_at<V, THREADS>(a, o, r, c{4}, value, upstream{5}, from);\n{6}}}\n",
        name, coordinates, declared, roots, arguments, passed, stores));
}

}  // namespace

void gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                    std::span<const Operand> sums) {
  write_gradients(text, name, fused, outputs, sums, 0);
}
void staged_gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                           std::span<const Operand> sums, int width) {
  write_gradients(text, name, fused, outputs, sums, width);
}

void gradients_of_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs) {
  const std::string roots = fmt::format("{}_roots", name);
  fused_rows(text, roots, fused, fused.dims);
  std::string declared, passed, stores;
  for (std::size_t r = 0; r < fused.roots.size(); ++r) {
    const std::string y = r == 0 ? "first" : fmt::format("y{}", r), to = fmt::format("{}_to{}", name, r);
    passed += ", " + y;
    if (r > 0) declared += fmt::format("  real {}[V];\n", y);
    if (!outputs[r]) continue;
    text.rows(to, outputs[r]);
    stores += fmt::format("  if (stored) store_real<V>(a.{0} + (row * index(a.{0}_row) + col), {1});\n", to, y);
  }
  text.function(fmt::format(
      "template <int V>\nDEVICE void {}_gradients(const Args& a, index row, index col, const real (&value)[V], const real "
      "(&upstream)[V], real (&first)[V], bool stored) {{\n{}  {}<V>(a, row, col, value, upstream{});\n{}}}\n",
      name, declared, roots, passed, stores));
}

void guests_of_rows(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs) {
  const std::string roots = fmt::format("{}_roots", name);
  fused_rows(text, roots, fused, fused.dims);
  std::string members, passed, stores;
  for (std::size_t r = 0; r < fused.roots.size(); ++r) {
    const std::string to = fmt::format("{}_to{}", name, r);
    text.rows(to, outputs[r]);
    members += fmt::format("  {} y{}[V];\n", value_type(fused.roots[r].type()), r);
    passed += fmt::format(", y{}", r);
    stores += fmt::format("    store_values<V>(a.{0} + (row * index(a.{0}_row) + col), y{1});\n", to, r);
  }
  text.function(fmt::format(
      "template <int V>\nstruct {} {{\n{}  DEVICE void make(const Args& a, index row, index col, const real (&value)[V]) {{\n"
      "    {}<V>(a, row, col, value{});\n  }}\n  DEVICE void store(const Args& a, index row, index col) const {{\n{}  "
      "}}\n}};\n",
      name, members, roots, passed, stores));
}

bool reads_value(const Fused& fused, std::span<const Operand> outputs, std::span<const Operand> sums) {
  std::vector<Expr> roots;
  for (std::size_t r = 0; r < fused.roots.size(); ++r)
    if (r == 0 || outputs[r] || sums[r]) roots.push_back(fused.roots[r]);
  const std::vector<Expr> all = topological(roots);
  return std::any_of(all.begin(), all.end(), [](Expr e) { return e.op() == ExprOp::input && e.index() == 0; });
}

}  // namespace weft
