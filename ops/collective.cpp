#include "ops/collective.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>

#include "autograd/backward.h"
#include "autograd/lowering.h"
#include "autograd/op.h"
#include "jit/ranks/ranks.h"
#include "ops/ops.h"

namespace weft {
namespace {

// Ints: the kind, the root, the number of ranks.
CollectiveCall collective_of(Lowering& l, const Operand& from, const Operand& to) {
  CollectiveCall call;
  call.kind = CollectiveKind(l.integer(0));
  call.root = int(l.integer(1)), call.ranks = int(l.integer(2));
  call.dtype = from.dtype;
  call.count = call.kind == CollectiveKind::reduce_scatter ? to.numel() : from.numel();
  call.from_slot = from.slot, call.from_offset = from.offset;
  call.to_slot = to.slot, call.to_offset = to.offset;
  return call;
}

void lower_collective(Lowering& l) {
  const Operand from = l.dense(0), to = l.output();
  const CollectiveCall call = collective_of(l, from, to);
  Collectives& by = Ranks::joined()->collectives(Device::cpu);
  l.emit(std::string(name_of(call.kind)), [call, &by](const Launch& launch) {
    const auto at = [&](int slot, std::int64_t offset) {
      return launch.slots[slot] + offset * std::int64_t(size_of(call.dtype));
    };
    by.run(call, at(call.from_slot, call.from_offset), at(call.to_slot, call.to_offset), nullptr);
  });
}

void cuda_collective(Lowering& l) {
  const Operand from = l.dense(0), to = l.output();
  const CollectiveCall call = collective_of(l, from, to);
  if (call.count == 0) return;
  Ranks::joined()->collectives(l.target().device);  // before anything is launched
  l.emit(std::string(name_of(call.kind)), call);
}

void collective_vjp(Vjp& v) {
  if (!v.needs(0)) return;
  switch (CollectiveKind(v.integer(0))) {
    case CollectiveKind::all_reduce:
      return v.add(0, all_reduce(v.grad()));
    case CollectiveKind::broadcast: {
      const Scalar own(Ranks::joined()->rank() == v.integer(1) ? 1 : 0);  // no structure: all ranks record the same
      return v.add(0, all_reduce(v.grad()) * own);
    }
    case CollectiveKind::all_gather:
      return v.add(0, reduce_scatter(v.grad()));
    case CollectiveKind::reduce_scatter:
      return v.add(0, all_gather(v.grad()));
  }
}

const Op& collective_op(CollectiveKind kind) {
  static const auto ops = [] {
    std::array<const Op*, 4> all{};
    for (std::size_t k = 0; k < all.size(); ++k)
      all[k] = &register_op({.name = name_of(CollectiveKind(k)),
                             .vjp = collective_vjp,
                             .lower = lower_collective,
                             .cuda = cuda_collective,
                             .collective = true,
                             .dense_outputs = true});
    return all;
  }();
  return *ops[std::size_t(kind)];
}
[[maybe_unused]] const Op& registered_at_start = collective_op(CollectiveKind::all_reduce);

Tensor record_collective(CollectiveKind kind, const Arg& x, const Shape& shape, int root) {
  const Tensor& value = x.tensor();
  const std::int64_t ints[] = {std::int64_t(kind), root, Ranks::joined()->size()};
  return record(collective_op(kind), {value}, {{shape, value.dtype()}}, ints, {}, x.where());
}

void check_dtype(CollectiveKind kind, const Arg& x) {
  if (x.dtype() == DType::boolean && kind != CollectiveKind::broadcast && kind != CollectiveKind::all_gather)
    fail_at(x.where(), fmt::format("{}: there is no sum of booleans", name_of(kind)), {}, "cast() them to a number");
}

// The size of the first axis.
std::int64_t first_axis(CollectiveKind kind, const Arg& x) {
  if (x.rank() == 0)
    fail_at(x.where(), fmt::format("{}: a scalar has no first axis", name_of(kind)), {}, "reshape() it to {1}");
  return x.dim(0);
}

}  // namespace

Tensor all_reduce(Arg x) {
  check_dtype(CollectiveKind::all_reduce, x);
  return Ranks::joined() ? record_collective(CollectiveKind::all_reduce, x, x.shape(), 0) : x.tensor();
}

Tensor broadcast_from(Arg x, int root) {
  const Ranks* ranks = Ranks::joined();
  const int n = ranks ? ranks->size() : 1;
  if (root < 0 || root >= n) fail_at(x.where(), "broadcast_from: there is no such rank", fmt::format("rank {} of {}", root, n));
  return ranks ? record_collective(CollectiveKind::broadcast, x, x.shape(), root) : x.tensor();
}

Tensor all_gather(Arg x) {
  Shape shape = x.shape();
  const std::int64_t d = first_axis(CollectiveKind::all_gather, x);
  const Ranks* ranks = Ranks::joined();
  if (!ranks) return x.tensor();
  shape[0] = d * ranks->size();
  return record_collective(CollectiveKind::all_gather, x, shape, 0);
}

Tensor reduce_scatter(Arg x) {
  check_dtype(CollectiveKind::reduce_scatter, x);
  Shape shape = x.shape();
  const std::int64_t d = first_axis(CollectiveKind::reduce_scatter, x);
  const Ranks* ranks = Ranks::joined();
  if (!ranks) return x.tensor();
  if (d % ranks->size())
    fail_at(x.where(), "reduce_scatter: the first axis cannot be cut into a part for each rank",
            fmt::format("{} rows, {} ranks", d, ranks->size()), "pad() it");
  shape[0] = d / ranks->size();
  return record_collective(CollectiveKind::reduce_scatter, x, shape, 0);
}

}  // namespace weft
