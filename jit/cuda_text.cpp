#include "jit/cuda_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include <xxhash.h>

#include "jit/error.h"
#include "jit/hole_text.h"

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

std::string_view value_type(ExprType type) {
  return type == ExprType::real ? "real" : type == ExprType::integer ? "i64" : "bool";
}

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

std::int64_t reach_of(const Operand& o) {
  std::int64_t reach = 0;
  for (int i = 0; i < o.rank; ++i) reach += (o.dims[std::size_t(i)] - 1) * std::abs(o.strides[std::size_t(i)]);
  return reach;
}

void CudaText::note(const Operand& o) {
  moved_ += o.bytes();
  elements(reach_of(o));
}

CudaText& CudaText::elements(std::int64_t n) {
  wide_ |= n > kMostNarrow;
  return *this;
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

std::string CudaText::row_offset(std::string_view name, const Operand& o) {
  const std::vector<Axis> axes = leading_axes(o);
  const std::string_view index = reach_of(o) > kMostNarrow ? "i64" : "index";
  if (axes.empty() || (axes.size() == 1 && axes[0].stride == 0)) return {};
  if (axes.size() == 1) {
    integer(fmt::format("{}_row", name), axes[0].stride);
    return fmt::format("{0}(row) * {0}(a.{1}_row)", index, name);
  }
  std::string sum, rest = fmt::format("{}(row)", index);
  for (std::size_t k = 0; k < axes.size(); ++k) {
    const bool last = k + 1 == axes.size();
    if (!last) integer(fmt::format("{}_size{}", name, k), axes[k].size);
    const std::string coordinate = last ? rest : fmt::format("{} % {}(a.{}_size{})", rest, index, name, k);
    if (axes[k].stride != 0) {
      integer(fmt::format("{}_stride{}", name, k), axes[k].stride);
      sum += fmt::format("{}({}) * {}(a.{}_stride{})", sum.empty() ? "" : " + ", coordinate, index, name, k);
    }
    if (!last) rest = fmt::format("({} / {}(a.{}_size{}))", rest, index, name, k);
  }
  return sum;
}

CudaText& CudaText::strided(std::string_view name, const Operand& o) {
  pointer(name, o);
  const std::string offset = o ? row_offset(name, o) : "";
  if (o) integer(fmt::format("{}_col", name), o.rank ? o.strides[std::size_t(o.rank - 1)] : 0);
  return function(
      fmt::format("DEVICE index {}_at(const Args& a, index row) {{ return {}; }}\n", name, offset.empty() ? "0" : offset));
}

CudaText& CudaText::source(std::string_view name, const Operand& o) {
  moved_ += o.bytes();
  member(fmt::format("const {}*", cuda_type(o.dtype)), name,
         {CudaArg::pointer, o.slot, o.offset * std::int64_t(size_of(o.dtype))});
  return *this;
}

CudaText& CudaText::function(std::string_view text) {
  functions_ += text;
  return *this;
}

CudaKernel CudaText::launch_text(std::string_view body, std::array<unsigned, 3> grid, std::array<unsigned, 3> block,
                                 unsigned shared) {
  std::string text = fmt::format(
      "\nusing real = {};\nusing index = {};\n"
      "DEVICE real infinity() {{ return real(__longlong_as_double(0x7ff0000000000000ll)); }}\n{}struct Args {{\n{}}};\n#define "
      "PARAMETERS const __grid_constant__ Args a\n{}",
      in_double_ ? "double" : "float", wide_ ? "i64" : "int", facts_, members_, functions_);
  const std::size_t begin = body.find('{', std::min(body.rfind("KERNEL(PARAMETERS)"), body.size()));
  if (begin == body.npos) {
    text += body;
  } else {
    text.append(body.substr(0, begin + 1)).append(" follow();").append(body.substr(begin + 1));
    kernel_.follows = true;
  }
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
  const bool placed = std::any_of(body.roots.begin(), body.roots.end(), [](Expr e) { return e.coordinates() > 0; });
  if (!placed) collapse_axes(dims, all);  // coordinates are those of the axes as they are
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
  text.define("ROWS", dims.size() > 1).elements(n);
  fused_rows(text, "compute", body, dims);
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
