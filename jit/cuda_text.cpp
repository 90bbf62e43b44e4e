#include "jit/cuda_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <unordered_map>

#include <xxhash.h>

#include "jit/error.h"

namespace weft {

std::string_view embedded_text(std::string_view file) {
  for (const EmbeddedText& e : embedded_texts())
    if (e.file == file) return e.text;
  fail(ErrorKind::usage, fmt::format("no kernel text '{}' is embedded", file), {}, "name it as in the source tree");
}

std::string complete_text(const CudaKernel& kernel) { return std::string(embedded_text("jit/prelude.cuh")) + kernel.text; }

std::string_view cuda_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float";
    case DType::f64:
      return "double";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::boolean:
      return "boolean";
  }
  return "?";
}

namespace {

std::string_view value_type(ExprType type) {
  return type == ExprType::real ? "real" : type == ExprType::integer ? "i64" : "bool";
}

// The leading axes of an operand as pairs (size, stride), innermost first, neighbours merged.
struct Axis {
  std::int64_t size, stride;
};
std::vector<Axis> leading_axes(const Operand& o) {
  std::vector<Axis> axes;
  for (int i = o.rank - 2; i >= 0; --i) {
    const std::int64_t size = o.dims[std::size_t(i)], stride = o.strides[std::size_t(i)];
    if (size == 1) continue;
    if (!axes.empty() && stride == axes.back().stride * axes.back().size)
      axes.back().size *= size;
    else
      axes.push_back({size, stride});
  }
  return axes;
}

std::int64_t last_stride(const Operand& o) {
  return o.rank == 0 || o.dims[std::size_t(o.rank - 1)] == 1 ? 0 : o.strides[std::size_t(o.rank - 1)];
}

// ---- the text of expressions ------------------------------------------------------------------------------------------------

class ExprText {
 public:
  explicit ExprText(const Fused& fused) : fused_(fused) {}

  // A statement for each node below the roots, in order; returns the names of the roots.
  std::vector<std::string> statements(std::string& out, std::string_view indent) {
    for (const Expr e : topological(fused_.roots)) {
      if (e.op() == ExprOp::input || e.op() == ExprOp::literal || e.op() == ExprOp::slot) continue;
      const std::string name = fmt::format("t{}", count_++);
      out += fmt::format("{}const {} {} = {};\n", indent, value_type(e.type()), name, text(e));
      names_[e.id()] = name;
    }
    std::vector<std::string> roots;
    for (const Expr r : fused_.roots) roots.push_back(name(r));
    return roots;
  }

 private:
  std::string name(Expr e) {
    switch (e.op()) {
      case ExprOp::input:
        return e.index() < fused_.values ? fmt::format("v{}[j]", e.index()) : fmt::format("x{}[j]", e.index() - fused_.values);
      case ExprOp::literal:
        return literal(e);
      case ExprOp::slot:
        return fmt::format("c{}", e.index());
      default:
        return names_.at(e.id());
    }
  }

  static std::string literal(Expr e) {
    if (e.type() == ExprType::boolean) return e.index() ? "true" : "false";
    if (e.type() == ExprType::integer)
      return e.index() == std::numeric_limits<std::int64_t>::min() ? "i64(0x8000000000000000ull)"
                                                                   : fmt::format("i64({}ll)", e.index());
    const double v = e.value();
    if (std::isnan(v)) return "real(__longlong_as_double(0x7ff8000000000000ll))";
    if (std::isinf(v)) return v > 0 ? "infinity()" : "-infinity()";
    return v == std::trunc(v) && std::abs(v) < 1e6 ? fmt::format("real({:.1f})", v) : fmt::format("real({:.17g})", v);
  }

  std::string binary(Expr e, std::string_view op) { return fmt::format("{} {} {}", name(e.arg(0)), op, name(e.arg(1))); }
  std::string call(Expr e, std::string_view f) {
    std::string s(f);
    s += '(';
    for (int i = 0; i < e.arity(); ++i) s += (i ? ", " : "") + name(e.arg(i));
    return s + ')';
  }

  std::string text(Expr e) {
    const bool integer = e.type() == ExprType::integer;
    switch (e.op()) {
      case ExprOp::index:
        if (e.index() > 0)
          fail(ErrorKind::usage, "a kernel's expression reads a coordinate that it has not",
               fmt::format("index {}", e.index()));
        return "element + j";
      case ExprOp::add:
        return integer ? fmt::format("i64(u64({}) + u64({}))", name(e.arg(0)), name(e.arg(1))) : binary(e, "+");
      case ExprOp::sub:
        return integer ? fmt::format("i64(u64({}) - u64({}))", name(e.arg(0)), name(e.arg(1))) : binary(e, "-");
      case ExprOp::mul:
        return integer ? fmt::format("i64(u64({}) * u64({}))", name(e.arg(0)), name(e.arg(1))) : binary(e, "*");
      case ExprOp::div:
        return integer ? call(e, "quotient") : binary(e, "/");
      case ExprOp::neg:
        return integer ? fmt::format("i64(0 - u64({}))", name(e.arg(0))) : "-" + name(e.arg(0));
      case ExprOp::min:
        return call(e, "min_of");
      case ExprOp::max:
        return call(e, "max_of");
      case ExprOp::pow:
        return call(e, "pow_of");
      case ExprOp::eq:
        return binary(e, "==");
      case ExprOp::ne:
        return binary(e, "!=");
      case ExprOp::lt:
        return binary(e, "<");
      case ExprOp::le:
        return binary(e, "<=");
      case ExprOp::logical_and:
        return binary(e, "&");
      case ExprOp::logical_or:
        return binary(e, "|");
      case ExprOp::logical_not:
        return "!" + name(e.arg(0));
      case ExprOp::select:
        return fmt::format("{} ? {} : {}", name(e.arg(0)), name(e.arg(1)), name(e.arg(2)));
      case ExprOp::exp:
        return call(e, "exp_of");
      case ExprOp::log:
        return call(e, "log_of");
      case ExprOp::log1p:
        return call(e, "log1p_of");
      case ExprOp::expm1:
        return call(e, "expm1_of");
      case ExprOp::sqrt:
        return call(e, "sqrt_of");
      case ExprOp::rsqrt:
        return call(e, "rsqrt_of");
      case ExprOp::tanh:
        return call(e, "tanh_of");
      case ExprOp::sigmoid:
        return call(e, "sigmoid_of");
      case ExprOp::softplus:
        return call(e, "softplus_of");
      case ExprOp::erf:
        return call(e, "erf_of");
      case ExprOp::abs:
        return call(e, "abs_of");
      case ExprOp::sign:
        return call(e, "sign_of");
      case ExprOp::floor:
        return call(e, "floor_of");
      case ExprOp::sin:
        return call(e, "sin_of");
      case ExprOp::cos:
        return call(e, "cos_of");
      case ExprOp::to_real:
        return fmt::format("real({})", name(e.arg(0)));
      case ExprOp::to_integer:
        return call(e, e.arg(0).type() == ExprType::real ? "integer_of" : "i64");
      case ExprOp::uniform:
        return e.arg(0) == expr::index(0) ? fmt::format("u{}[j]", e.index())
                                          : fmt::format("uniform_at<real>(k{}, {})", e.index(), name(e.arg(0)));
      case ExprOp::input:
      case ExprOp::literal:
      case ExprOp::slot:
        break;
    }
    return name(e);
  }

  const Fused& fused_;
  std::unordered_map<std::uint32_t, std::string> names_;
  int count_ = 0;
};

}  // namespace

// ---- the builder ------------------------------------------------------------------------------------------------------------

CudaText::CudaText(std::string name, bool in_double) : in_double_(in_double) {
  kernel_.name = std::move(name);
  member("const double*", "constants", {CudaArg::constants});
  member("u64*", "status", {CudaArg::status});
}

void CudaText::member(std::string_view type, std::string_view name, CudaArg arg) {
  members_ += fmt::format("  {} {};\n", type, name);
  kernel_.args.push_back(arg);
  kernel_.parameters.push_back({std::string(type), std::string(name)});
}

void CudaText::note(const Operand& o) {
  moved_ += o.bytes();
  std::int64_t last = 0;
  for (int i = 0; i < o.rank; ++i) last += (o.dims[std::size_t(i)] - 1) * o.strides[std::size_t(i)];
  wide_ |= std::max(last, o.numel()) >= (std::int64_t(1) << 31) - 1024;
}

CudaText& CudaText::pointer(std::string_view name, const Operand& o) {
  facts_ += fmt::format("constexpr bool has_{} = {};\n", name, bool(o));
  if (o) {
    note(o);
    member(fmt::format("{}*", cuda_type(o.dtype)), name, {CudaArg::pointer, o.slot, o.offset * std::int64_t(size_of(o.dtype))});
  } else {
    member("float*", name, {CudaArg::integer, -1, 0});
  }
  return *this;
}

CudaText& CudaText::rows(std::string_view name, const Operand& o) {
  pointer(name, o);
  return integer(fmt::format("{}_row", name), o ? o.row_stride() : 0);
}

CudaText& CudaText::integer(std::string_view name, std::int64_t value) {
  member("i64", name, {CudaArg::integer, -1, value});
  return *this;
}

CudaText& CudaText::constant(std::string_view name, int position) {
  member("i64", fmt::format("{}_", name), {CudaArg::integer, -1, position});
  members_ += fmt::format("  DEVICE real {0}() const {{ return real(constants[{0}_]); }}\n", name);
  return *this;
}

CudaText& CudaText::table(std::string_view name, std::vector<CudaArg> words) {
  member("const i64*", name, {CudaArg::table, -1, std::int64_t(kernel_.tables.size())});
  kernel_.tables.push_back(std::move(words));
  return *this;
}

CudaText& CudaText::tma_map(std::string_view name, const Operand& o, std::span<const std::int64_t> box, int swizzle) {
  if (kernel_.maps.empty()) facts_ += "struct alignas(64) TmaMap {\n  unsigned long long opaque[16];\n};\n";
  member("TmaMap", name, {CudaArg::map, -1, std::int64_t(kernel_.maps.size())});
  kernel_.maps.push_back(weft::tma_map(o, box, swizzle));
  note(o);
  return *this;
}

CudaText& CudaText::define(std::string_view name, std::int64_t value) {
  facts_ += std::abs(value) < (std::int64_t(1) << 31) ? fmt::format("constexpr int {} = {};\n", name, value)
                                                      : fmt::format("constexpr i64 {} = {}ll;\n", name, value);
  return *this;
}

CudaText& CudaText::type(std::string_view name, DType dtype) {
  facts_ += fmt::format("using {} = {};\n", name, cuda_type(dtype));
  return *this;
}

// The expression of the element where row `row` begins. With several leading axes the row is taken apart.
std::string CudaText::offset_of(std::string_view name, const Operand& o) {
  const std::vector<Axis> axes = leading_axes(o);
  if (axes.empty() || (axes.size() == 1 && axes[0].stride == 0)) return "0";
  if (axes.size() == 1) {
    integer(fmt::format("{}_row", name), axes[0].stride);
    return fmt::format("row * index(a.{}_row)", name);
  }
  std::string sum, rest = "row";
  for (std::size_t k = 0; k < axes.size(); ++k) {
    const bool last = k + 1 == axes.size();
    if (!last) integer(fmt::format("{}_size{}", name, k), axes[k].size);
    std::string coordinate = last ? rest : fmt::format("{} % index(a.{}_size{})", rest, name, k);
    if (axes[k].stride != 0) {
      integer(fmt::format("{}_stride{}", name, k), axes[k].stride);
      sum += fmt::format("{}({}) * index(a.{}_stride{})", sum.empty() ? "" : " + ", coordinate, name, k);
    }
    if (!last) rest = fmt::format("({} / index(a.{}_size{}))", rest, name, k);
  }
  return sum.empty() ? "0" : sum;
}

CudaText& CudaText::strided(std::string_view name, const Operand& o) {
  pointer(name, o);
  const std::string offset = o ? offset_of(name, o) : "0";
  if (o) integer(fmt::format("{}_col", name), o.rank ? o.strides[std::size_t(o.rank - 1)] : 0);
  functions_ += fmt::format("DEVICE index {}_at(const Args& a, index row) {{ return {}; }}\n", name, offset);
  return *this;
}

CudaText& CudaText::fused(std::string_view name, const Fused& fused, std::span<const std::int64_t> dims) {
  std::string body, arguments;
  for (int k = 0; k < fused.values; ++k) arguments += fmt::format(", const real (&v{})[V]", k);
  for (std::size_t k = 0; k < fused.roots.size(); ++k)
    arguments += fmt::format(", {} (&y{})[V]", value_type(fused.roots[k].type()), k);

  // What the roots use.
  std::vector<bool> used(fused.leaves.size());
  std::map<std::int64_t, bool> slots, draws;  // draws: first slot, whether of the running element
  bool positions = false;
  for (const Expr e : topological(fused.roots)) {
    if (e.op() == ExprOp::input && e.index() >= fused.values) used[std::size_t(e.index() - fused.values)] = true;
    if (e.op() == ExprOp::slot) slots[e.index()] = true;
    if (e.op() == ExprOp::index) positions = true;
    if (e.op() == ExprOp::uniform) draws[e.index()] |= e.arg(0) == expr::index(0);
  }
  if (positions || !draws.empty()) {
    integer(fmt::format("{}_columns", name), dims.empty() ? 1 : dims.back());
    body += fmt::format("  const i64 element = i64(row) * a.{}_columns + col;\n", name);
  }
  for (const auto& [slot, unused] : slots) {
    const std::string constant_name = fmt::format("{}_c{}", name, slot);
    constant(constant_name, fused.constants[std::size_t(slot)]);
    body += fmt::format("  const real c{} = a.{}();\n", slot, constant_name);
  }
  for (const auto& [slot, running] : draws) {
    integer(fmt::format("{}_k{}", name, slot), fused.constants[std::size_t(slot)]);
    body += fmt::format("  const double* k{0} = a.constants + a.{1}_k{0};\n", slot, name);
    if (running) body += fmt::format("  real u{0}[V];\n  uniforms<V>(k{0}, element, u{0});\n", slot);
  }
  for (std::size_t k = 0; k < fused.leaves.size(); ++k) {
    if (!used[k]) continue;
    const Operand& leaf = fused.leaves[k];
    const std::string leaf_name = fmt::format("{}_x{}", name, k);
    note(leaf);
    member(fmt::format("const {}*", cuda_type(leaf.dtype)), leaf_name,
           {CudaArg::pointer, leaf.slot, leaf.offset * std::int64_t(size_of(leaf.dtype))});
    const std::string offset = offset_of(leaf_name, leaf);
    const std::string_view type = value_type(expr_type(leaf.dtype));
    const std::int64_t stride = last_stride(leaf);
    body += fmt::format("  {} x{}[V];\n", type, k);
    if (stride == 1) {
      body += fmt::format("  load_values<V>(a.{} + ({} + col), x{});\n", leaf_name, offset, k);
    } else if (stride == 0) {
      body += fmt::format(
          "  {{\n    {0} t[1];\n    load_values<1>(a.{1} + ({2}), t);\n#pragma unroll\n    for (int j = 0; j < V; ++j) x{3}[j] "
          "= t[0];\n  }}\n",
          type, leaf_name, offset, k);
    } else {
      integer(leaf_name + "_col", stride);
      body += fmt::format(
          "  {{\n    const index at = {0};\n#pragma unroll\n    for (int j = 0; j < V; ++j) {{\n      {1} t[1];\n"
          "      load_values<1>(a.{2} + (at + (col + j) * index(a.{2}_col)), t);\n      x{3}[j] = t[0];\n    }}\n  }}\n",
          offset, type, leaf_name, k);
    }
  }
  body += "#pragma unroll\n  for (int j = 0; j < V; ++j) {\n";
  ExprText text(fused);
  const std::vector<std::string> roots = text.statements(body, "    ");
  for (std::size_t k = 0; k < roots.size(); ++k) body += fmt::format("    y{}[j] = {};\n", k, roots[k]);
  body += "  }\n";
  for (std::size_t k = 0; k < fused.roots.size(); ++k) functions_ += fmt::format("// {}\n", to_string(fused.roots[k]));
  functions_ +=
      fmt::format("template <int V>\nDEVICE void {}(const Args& a, index row, index col{}) {{\n{}}}\n", name, arguments, body);
  return *this;
}

CudaKernel CudaText::launch_text(std::string_view body, std::array<unsigned, 3> grid, std::array<unsigned, 3> block,
                                 unsigned shared) {
  std::string text = fmt::format(
      "\nusing real = {};\nusing index = {};\n"
      "DEVICE real infinity() {{ return real(__longlong_as_double(0x7ff0000000000000ll)); }}\n{}struct Args {{\n{}}};\n#define "
      "PARAMETERS const __grid_constant__ Args a\n{}",
      in_double_ ? "double" : "float", wide_ ? "i64" : "int", facts_, members_, functions_);
  text += body;
  kernel_.name = fmt::format("{}__{:06x}", kernel_.name, XXH3_64bits(text.data(), text.size()) & 0xffffff);
  kernel_.text = fmt::format("\n#define KERNEL {}\n", kernel_.name) + text;
  kernel_.grid = grid;
  kernel_.block = block;
  kernel_.shared = shared;
  if (kernel_.bytes == 0) kernel_.bytes = moved_;
  return std::move(kernel_);
}

CudaKernel CudaText::launch(std::string_view file, std::array<unsigned, 3> grid, std::array<unsigned, 3> block,
                            unsigned shared) {
  return launch_text(embedded_text(file), grid, block, shared);
}

// ---- tensor maps ------------------------------------------------------------------------------------------------------------

TmaMap tma_map(const Operand& o, std::span<const std::int64_t> box, int swizzle) {
  constexpr std::int64_t kUnit = 16, kMostBox = 256;  // bytes, elements: CUDA driver API, cuTensorMapEncodeTiled
  const auto size = std::int64_t(size_of(o.dtype));
  const auto refuse = [&](std::string_view why, std::int64_t value) {
    fail(ErrorKind::usage, fmt::format("tensor map: {}", why),
         fmt::format("{}, of {} axes of {}", value, o.rank, name_of(o.dtype)), "copy the operand, or read it without TMA");
  };
  if (o.rank < 1 || o.rank > 5 || box.size() != std::size_t(o.rank))
    refuse("an operand has 1 to 5 axes, and its box as many", o.rank);
  const auto last = std::size_t(o.rank - 1);
  if (o.dims[last] != 1 && o.strides[last] != 1) refuse("the last axis must be contiguous", o.strides[last]);
  if (o.offset * size % kUnit != 0) refuse("the first element must lie at a multiple of 16 bytes", o.offset * size);
  if (box[last] * size % kUnit != 0) refuse("a row of the box must be a multiple of 16 bytes", box[last] * size);
  if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128)
    refuse("a swizzle is of 0, 32, 64 or 128 bytes", swizzle);
  if (swizzle != 0 && box[last] * size > swizzle) refuse("a row of the box is longer than the swizzle", box[last] * size);
  TmaMap map{.slot = o.slot, .offset = o.offset * size, .dtype = o.dtype, .rank = o.rank, .swizzle = swizzle};
  for (std::size_t i = 0; i <= last; ++i) {
    const std::size_t axis = last - i;
    if (box[axis] < 1 || box[axis] > kMostBox) refuse("an axis of the box has 1 to 256 elements", box[axis]);
    map.dims[i] = std::uint64_t(o.dims[axis]);
    map.box[i] = unsigned(box[axis]);
    if (i == 0) continue;
    if (o.strides[axis] * size % kUnit != 0) refuse("strides must be multiples of 16 bytes", o.strides[axis] * size);
    map.strides[i - 1] = std::uint64_t(o.strides[axis] * size);
  }
  return map;
}

// ---- vectors ----------------------------------------------------------------------------------------------------------------

int vector_width(std::span<const std::int64_t> dims, std::span<const Operand> operands) {
  int width = 8;
  const std::int64_t columns = dims.empty() ? 1 : dims.back();
  while (width > 1 && columns % width != 0) width /= 2;
  for (const Operand& o : operands) {
    if (!o || last_stride(o) != 1) continue;
    const auto size = std::int64_t(size_of(o.dtype));
    auto aligned = [&](int v) {
      const std::int64_t bytes = std::min<std::int64_t>(16, v * size);
      if (o.offset * size % bytes != 0) return false;
      for (int i = 0; i + 1 < o.rank; ++i)
        if (o.dims[std::size_t(i)] > 1 && o.strides[std::size_t(i)] * size % bytes != 0) return false;
      return true;
    };
    while (width > 1 && !aligned(width)) width /= 2;
  }
  return width;
}

int vector_width(std::span<const std::int64_t> dims, std::span<const Fused* const> sources, std::span<const Operand> operands) {
  int width = vector_width(dims, operands);
  for (const Fused* f : sources) width = std::min(width, vector_width(dims, f->leaves));
  return width;
}

// ---- the pointwise kernel ---------------------------------------------------------------------------------------------------

namespace {

// Merges neighbouring axes that every operand walks as one, so that most kernels see a vector or a matrix.
void collapse_axes(std::vector<std::int64_t>& dims, std::vector<Operand*>& operands) {
  std::vector<std::size_t> kept;  // axes of the result, each the last of those merged into it
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 1 && dims.size() > 1) continue;
    bool merges = !kept.empty();
    if (merges)
      for (const Operand* o : operands) merges &= o->strides[kept.back()] == o->strides[i] * dims[i];
    if (merges) {
      kept.back() = i;
      sizes.back() *= dims[i];
    } else {
      kept.push_back(i);
      sizes.push_back(dims[i]);
    }
  }
  if (kept.empty() && !dims.empty()) kept.push_back(dims.size() - 1), sizes.push_back(dims.back());
  for (Operand* o : operands) {
    const Operand before = *o;
    o->rank = int(kept.size());
    o->dims = {}, o->strides = {};
    for (std::size_t k = 0; k < kept.size(); ++k) o->dims[k] = sizes[k], o->strides[k] = before.strides[kept[k]];
  }
  dims = sizes;
}

}  // namespace

CudaKernel pointwise_cuda(std::string name, const Fused& fused, std::span<const Operand> outputs,
                          std::span<const std::int64_t> space, bool in_double) {
  std::vector<std::int64_t> dims(space.begin(), space.end());
  Fused body = fused;
  std::vector<Operand> to;
  for (const Operand& o : outputs) to.push_back(broadcast_to(o, space));
  std::vector<Operand*> all;
  for (Operand& o : body.leaves) all.push_back(&o);
  for (Operand& o : to) all.push_back(&o);
  collapse_axes(dims, all);
  std::vector<Operand> operands;
  for (const Operand* o : all) operands.push_back(*o);
  std::int64_t n = 1;
  for (const std::int64_t d : dims) n *= d;
  int width = vector_width(dims, operands);
  std::size_t largest = 1;  // a thread moves 16 bytes of the widest operand, 32 of none
  for (const Operand& o : operands) largest = std::max(largest, size_of(o.dtype));
  width = std::min(width, int(std::max<std::size_t>(16 / largest, 4)));
  CudaText text(std::move(name), in_double);
  text.define("V", width).integer("vectors", n / width).integer("columns", (dims.empty() ? 1 : dims.back()) / width);
  text.define("ROWS", dims.size() > 1);
  text.fused("compute", body, dims);
  std::string declarations, arguments, stores;
  for (std::size_t k = 0; k < to.size(); ++k) {
    const std::string y = fmt::format("y{}", k);
    text.strided(y, to[k]);
    declarations += fmt::format("  {} {}[V];\n", value_type(fused.roots[k].type()), y);
    arguments += fmt::format(", {}", y);
    const std::int64_t stride = last_stride(to[k]);
    if (stride <= 1)
      stores += fmt::format("  store_values<V>(a.{0} + ({0}_at(a, row) + col), {0});\n", y);
    else
      stores += fmt::format(
          "#pragma unroll\n  for (int j = 0; j < V; ++j) {{\n    {1} t[1] = {{{0}[j]}};\n"
          "    store_values<1>(a.{0} + ({0}_at(a, row) + (col + j) * index(a.{0}_col)), t);\n  }}\n",
          y, value_type(fused.roots[k].type()));
  }
  constexpr unsigned kThreads = 256;
  // If it is not told that it has more, the assembler spills at 32 or 40 registers (sm_100) in f64 and for sin and cos.
  bool told = in_double;
  for (const Expr e : topological(body.roots)) told |= e.op() == ExprOp::sin || e.op() == ExprOp::cos;
  const std::string kernel = fmt::format(
      "extern \"C\" __global__ void __launch_bounds__({}{}) KERNEL(PARAMETERS) {{\n"
      "  const i64 i = i64(blockIdx.x) * {} + threadIdx.x;\n  if (i >= a.vectors) return;\n"
      "  const index row = ROWS ? index(i) / index(a.columns) : 0;\n"
      "  const index col = (index(i) - row * index(a.columns)) * V;\n{}  compute<V>(a, row, col{});\n{}}}\n",
      kThreads, told ? ", 1" : "", kThreads, declarations, arguments, stores);
  const unsigned blocks = unsigned((n / width + kThreads - 1) / kThreads);
  return text.launch_text(kernel, {std::max(blocks, 1u), 1, 1}, {kThreads, 1, 1});
}

}  // namespace weft
