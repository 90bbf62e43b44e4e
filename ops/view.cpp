#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "autograd/backward.h"
#include "autograd/gradient_ops.h"
#include "autograd/op.h"
#include "jit/parallel.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "ops/view.h"

namespace weft {
namespace {

int checked_axis(const Arg& a, int axis, std::string_view op) {
  const int rank = a.shape().rank();
  if (axis < -rank || axis >= rank)
    fail_at(a.where(), fmt::format("{}: no such axis", op), fmt::format("axis {} of {}", axis, to_string(a.shape())),
            "axes count from 0, or from the end with -1");
  return axis < 0 ? axis + rank : axis;
}

Tensor record_view(const Op& op, const Arg& a, const Shape& shape, std::span<const std::int64_t> ints) {
  return record(op, {a.tensor()}, {{shape, a.dtype()}}, ints, {}, a.where());
}

// ---- reshape ----------------------------------------------------------------------------------------------------------------

// Walks both shapes from the end, matching runs of axes with equal products; fails where a run of the base is not one
// stretch of memory.
Operand reshaped(const Operand& base, const Shape& to) {
  Operand o = base;
  o.rank = to.rank();
  o.dims = {};
  o.strides = {};
  std::copy(to.begin(), to.end(), o.dims.begin());
  if (to.numel() == 0) return o;
  int from = base.rank - 1;
  std::int64_t run = 1, stride = 1;  // of the current stretch of the base: elements left, and their stride
  for (int i = to.rank() - 1; i >= 0; --i) {
    if (to[i] == 1) continue;
    while (run == 1 && from >= 0) {
      run = base.dims[std::size_t(from)];
      stride = base.strides[std::size_t(from--)];
    }
    while (run % to[i] != 0) {  // the stretch must grow by the next axis of the base
      if (from < 0) return {};
      const auto d = base.dims[std::size_t(from)], s = base.strides[std::size_t(from)];
      if (d != 1 && s != stride * run) return {};
      run *= d;
      --from;
    }
    o.strides[std::size_t(i)] = stride;
    stride *= to[i];
    run /= to[i];
  }
  return o;
}

Operand reshape_view(const Tape& t, NodeId id, const Operand& base) { return reshaped(base, t.shape(id)); }
Operand reshape_base(const Tape& t, NodeId id, const Operand& result) { return reshaped(result, t.shape(t.inputs_of(id)[0])); }

void reshape_vjp(Vjp& v) { v.add(0, reshape(v.grad(), v.input(0).shape())); }
const Op& reshape_op = register_op({.name = "reshape", .vjp = reshape_vjp, .view = reshape_view, .base = reshape_base});

// ---- permute ----------------------------------------------------------------------------------------------------------------

Operand permute_view(const Tape& t, NodeId id, const Operand& base) {
  Operand o = base;
  const auto axes = t.ints_of(id);
  for (std::size_t i = 0; i < axes.size(); ++i) {
    o.dims[i] = base.dims[std::size_t(axes[i])];
    o.strides[i] = base.strides[std::size_t(axes[i])];
  }
  return o;
}

void permute_vjp(Vjp& v) {
  std::vector<int> inverse(std::size_t(v.integers()));
  for (int i = 0; i < v.integers(); ++i) inverse[std::size_t(v.integer(i))] = i;
  v.add(0, permute(v.grad(), inverse));
}
const Op& permute_op = register_op({.name = "permute", .vjp = permute_vjp, .view = permute_view});

// ---- slice: ints axis, begin ------------------------------------------------------------------------------------------------

// Elements [begin, begin + size) of an axis.
Operand slice_of(Operand o, std::size_t axis, std::int64_t begin, std::int64_t size) {
  o.offset += begin * o.strides[axis];
  o.dims[axis] = size;
  return o;
}

Operand slice_view(const Tape& t, NodeId id, const Operand& base) {
  const auto axis = std::size_t(t.ints_of(id)[0]);
  return slice_of(base, axis, t.ints_of(id)[1], t.shape(id)[int(axis)]);
}

void slice_vjp(Vjp& v) {
  const int axis = int(v.integer(0));
  v.add_slice(0, axis, v.integer(1), v.integer(1) + v.grad().dim(axis), v.grad());
}
const Op& slice_op = register_op({.name = "slice", .vjp = slice_vjp, .view = slice_view});

// ---- expand -----------------------------------------------------------------------------------------------------------------

Operand expand_view(const Tape& t, NodeId id, const Operand& base) { return broadcast_to(base, t.shape(id).dims()); }
void expand_vjp(Vjp& v) { v.add(0, sum_to(v.grad(), v.input(0).shape(), v.where())); }
const Op& expand_op = register_op({.name = "expand", .vjp = expand_vjp, .view = expand_view});

// ---- concat: ints axis, size of each part; an absent part is zeros ----------------------------------------------------------

Operand concat_place(const Tape& t, NodeId id, int i, const Operand& output) {
  const auto ints = t.ints_of(id), before = ints.subspan(1, std::size_t(i));
  return slice_of(output, std::size_t(ints[0]), std::accumulate(before.begin(), before.end(), std::int64_t(0)), ints[1 + i]);
}

// Operands of one shape. The stride of an axis of size 1 does not matter.
bool same_place(const Operand& a, const Operand& b) {
  bool same = a.slot == b.slot && a.offset == b.offset;
  for (std::size_t i = 0; i < std::size_t(a.rank); ++i) same &= a.dims[i] == 1 || a.strides[i] == b.strides[i];
  return same;
}

}  // namespace

std::vector<ConcatPart> parts_to_write(Lowering& l) {
  const Operand out = l.output();
  std::vector<ConcatPart> parts;
  std::int64_t at = 0;
  for (int i = 0; i < l.inputs(); at += l.integer(1 + i), ++i) {
    const Operand slice = slice_of(out, std::size_t(l.integer(0)), at, l.integer(1 + i));
    if (slice.numel() == 0) continue;
    const Operand part = l.view(i);
    if (part && same_place(part, slice)) continue;  // its producer wrote it here
    parts.push_back({part, slice});
  }
  return parts;
}

namespace {

// Copies or clears the parts, each row by row of the axes before `axis`.
void lower_concat(Lowering& l) {
  for (const auto& [part, slice] : parts_to_write(l)) {
    l.emit(part ? "concat_copy" : "concat_zero", [part = part, slice = slice](const Launch& launch) {
      const View to = launch.view(slice);
      const std::int64_t n = slice.numel();
      parallel((n + kPart - 1) / kPart, [&](std::int64_t p) {
        std::array<double, kBlock> buffer{};
        const ExprType type = expr_type(to.dtype);
        for (std::int64_t first = p * kPart; first < std::min(n, (p + 1) * kPart); first += kBlock) {
          const int m = int(std::min<std::int64_t>(kBlock, n - first));
          auto move = [&](auto real) {
            using T = decltype(real);
            const void* values = part ? read_block<T>(launch.view(part), type, first, m, buffer.data()) : buffer.data();
            write_block<T>(to, type, first, m, values);
          };
          to.dtype == DType::f64 ? move(double{}) : move(float{});
        }
      });
    });
  }
}

void concat_vjp(Vjp& v) {
  const int axis = int(v.integer(0));
  std::int64_t at = 0;
  for (int i = 0; i < v.inputs(); at += v.integer(1 + i), ++i)
    if (v.needs(i)) v.add(i, slice(v.grad(), axis, at, at + v.integer(1 + i)));
}
const Op& concat_op =
    register_op({.name = "concat", .vjp = concat_vjp, .lower = lower_concat, .cuda = cuda_concat, .place = concat_place});

}  // namespace

Tensor join(std::span<const Tensor> parts, std::span<const std::int64_t> sizes, int axis, Site where) {
  const auto present = std::find_if(parts.begin(), parts.end(), [](const Tensor& p) { return bool(p); });
  Shape shape = present->shape();
  shape[axis] = std::accumulate(sizes.begin(), sizes.end(), std::int64_t(0));
  std::vector<std::int64_t> ints = {axis};
  ints.insert(ints.end(), sizes.begin(), sizes.end());
  const Out out{shape, present->dtype()};
  return record(concat_op, parts, {&out, 1}, ints, {}, where);
}

Tensor reshape(Arg a, Shape shape) {
  const Shape from = a.shape();
  int free = -1;
  std::int64_t known = 1;
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] == -1 && free < 0)
      free = i;
    else
      known *= shape[i];
  }
  if (free >= 0) shape[free] = known > 0 && from.numel() % known == 0 ? from.numel() / known : -1;
  if (shape.numel() != from.numel() || std::any_of(shape.begin(), shape.end(), [](auto d) { return d < 0; }))
    fail_at(a.where(), "reshape: the number of elements changes", fmt::format("{} to {}", to_string(from), to_string(shape)),
            "the sizes must multiply to the same number; one may be -1");
  return shape == from ? a.tensor() : record_view(reshape_op, a, shape, {});
}

Tensor permute(Arg a, std::vector<int> axes) {
  const Shape from = a.shape();
  Shape shape = from;
  std::vector<bool> seen(std::size_t(from.rank()));
  bool valid = int(axes.size()) == from.rank();
  std::array<std::int64_t, kMaxRank> ints{};
  for (std::size_t i = 0; valid && i < axes.size(); ++i) {
    const int axis = checked_axis(a, axes[i], "permute");
    valid = !seen[std::size_t(axis)];
    seen[std::size_t(axis)] = true;
    ints[i] = axis;
    shape[int(i)] = from[axis];
  }
  if (!valid)
    fail_at(a.where(), "permute: not a permutation of the axes", fmt::format("{} axes of {}", axes.size(), to_string(from)),
            "name every axis once");
  return record_view(permute_op, a, shape, {ints.data(), axes.size()});
}

Tensor transpose(Arg a, int axis0, int axis1) {
  axis0 = checked_axis(a, axis0, "transpose"), axis1 = checked_axis(a, axis1, "transpose");
  std::vector<int> axes(std::size_t(a.shape().rank()));
  std::iota(axes.begin(), axes.end(), 0);
  std::swap(axes[std::size_t(axis0)], axes[std::size_t(axis1)]);
  return permute(a, axes);
}

Tensor slice(Arg a, int axis, std::int64_t begin, std::int64_t end) {
  axis = checked_axis(a, axis, "slice");
  Shape shape = a.shape();
  if (begin < 0 || end < begin || end > shape[axis])
    fail_at(a.where(), "slice: out of range", fmt::format("[{}, {}) of axis {} of {}", begin, end, axis, to_string(shape)),
            "give 0 <= begin <= end <= size");
  shape[axis] = end - begin;
  const std::int64_t ints[] = {axis, begin};
  return record_view(slice_op, a, shape, ints);
}

Tensor expand(Arg a, Shape shape) {
  if (!broadcasts_to(a.shape(), shape))
    fail_at(a.where(), "expand: the shape does not broadcast", fmt::format("{} to {}", to_string(a.shape()), to_string(shape)),
            "only axes of size 1, or new ones on the left, can grow");
  return a.shape() == shape ? a.tensor() : record_view(expand_op, a, shape, {});
}

Tensor concat(std::vector<Arg> parts, int axis, Site where) {
  if (parts.empty()) fail_at(where, "concat: no parts", {}, "give at least one tensor");
  axis = checked_axis(parts[0], axis, "concat");
  std::vector<Tensor> tensors;
  std::vector<std::int64_t> sizes;
  for (const Arg& p : parts) {
    Shape expected = parts[0].shape();
    if (p.shape().rank() == expected.rank()) expected[axis] = p.shape()[axis];
    if (p.shape() != expected || p.dtype() != parts[0].dtype())
      fail_at(p.where(), "concat: the parts do not fit",
              fmt::format("{} {} and {} {} along axis {}", name_of(parts[0].dtype()), to_string(parts[0].shape()),
                          name_of(p.dtype()), to_string(p.shape()), axis),
              "all sizes but that of the axis, and the dtypes, must be equal");
    tensors.push_back(p.tensor());
    sizes.push_back(p.shape()[axis]);
  }
  return join(tensors, sizes, axis, parts[0].where());
}

Tensor pad(Arg a, int axis, std::int64_t before, std::int64_t after, double value) {
  axis = checked_axis(a, axis, "pad");
  if (before < 0 || after < 0)
    fail_at(a.where(), "pad: a negative size", fmt::format("{} before, {} after", before, after), "use slice to cut");
  std::vector<Tensor> parts;
  std::vector<std::int64_t> sizes;
  auto fill = [&](std::int64_t size) {
    if (size == 0) return;
    Shape shape = a.shape();
    shape[axis] = size;
    parts.push_back(value == 0 ? Tensor{} : full(shape, value, a.dtype(), a.where()));
    sizes.push_back(size);
  };
  fill(before);
  parts.push_back(a.tensor()), sizes.push_back(a.shape()[axis]);
  fill(after);
  return join(parts, sizes, axis, a.where());
}

std::vector<Tensor> split(Arg a, std::vector<std::int64_t> sizes, int axis) {
  axis = checked_axis(a, axis, "split");
  if (std::accumulate(sizes.begin(), sizes.end(), std::int64_t(0)) != a.shape()[axis])
    fail_at(a.where(), "split: the sizes do not add up", fmt::format("axis {} of {}", axis, to_string(a.shape())));
  std::vector<Tensor> out;
  std::int64_t at = 0;
  for (const std::int64_t size : sizes) out.push_back(slice(a, axis, at, at + size)), at += size;
  return out;
}

}  // namespace weft
