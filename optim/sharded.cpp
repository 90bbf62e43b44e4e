#include "optim/sharded.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "autograd/gradient_ops.h"
#include "autograd/lowering.h"
#include "autograd/op.h"
#include "jit/parallel.h"
#include "jit/ranks/ranks.h"
#include "ops/collective.h"
#include "optim/chunks.h"
#include "optim/clip.h"
#include "optim/cuda.h"
#include "optim/sharded_op.h"

namespace weft {

// Inputs: a bucket. Ints: the flag's position, then of each row the param's position and where it lies in the bucket.
sharded::PlaceOperands sharded::place_operands(Lowering& l) {
  PlaceOperands o{l.state(l.integer(0)), {}, {}};
  for (int i = 1; i < l.integers(); i += 2) {
    Operand from = l.dense(0);
    from.offset += l.integer(i + 1);
    const Operand param = l.state(l.integer(i));
    o.rows.push_back({from, param, l.twin(l.integer(i))});
    o.sizes.push_back(param.numel());
  }
  return o;
}

namespace {

template <class T>
void place_chunk(const Launch& launch, const sharded::PlaceOperands::Row& row, std::int64_t begin, std::int64_t end) {
  const T* const from = launch.pointer<T>(row.from);
  std::copy(from + begin, from + end, launch.pointer<T>(row.param) + begin);
  if (!row.twin) return;
  bf16* const twin = launch.pointer<bf16>(row.twin);
  for (std::int64_t i = begin; i < end; ++i) twin[i] = bf16(float(from[i]));
}

void lower_place_weights(Lowering& l) {
  const sharded::PlaceOperands o = sharded::place_operands(l);
  const std::vector<Chunk> chunks = cut_into_chunks(o.sizes);
  l.emit("place_weights", [=](const Launch& launch) {
    if (*launch.pointer<std::int64_t>(o.flag) != 0) return;
    parallel(std::int64_t(chunks.size()), [&](std::int64_t c) {
      const Chunk& chunk = chunks[std::size_t(c)];
      const auto& row = o.rows[std::size_t(chunk.segment)];
      if (row.param.dtype == DType::f64)
        place_chunk<double>(launch, row, chunk.begin, chunk.end);
      else
        place_chunk<float>(launch, row, chunk.begin, chunk.end);
    });
  });
}

void place_weights_writes(const Tape& tape, NodeId id, std::vector<std::int32_t>& positions) {
  const auto ints = tape.ints_of(id);
  for (std::size_t at = 1; at < ints.size(); at += 2) positions.push_back(std::int32_t(ints[at]));
}

const Op& place_weights_op = register_op(
    {.name = "place_weights", .lower = lower_place_weights, .cuda = cuda_place_weights, .writes = place_weights_writes});

}  // namespace

Tensor laid_out(std::span<const PlacedTensor> tensors, std::int64_t size, Site where) {
  std::vector<PlacedTensor> sorted(tensors.begin(), tensors.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.at < b.at; });
  std::vector<Tensor> parts;
  std::vector<std::int64_t> sizes;
  std::int64_t end = 0;
  const auto gap = [&](std::int64_t until) {
    if (until > end) parts.emplace_back(), sizes.push_back(until - end);
  };
  for (const PlacedTensor& t : sorted) {
    gap(t.at);
    const std::int64_t n = t.tensor.numel();
    parts.push_back(reshape(t.tensor, {n})), sizes.push_back(n);
    end = t.at + n;
  }
  gap(size);
  return join(parts, sizes, 0, where);
}

void place_weights(const State& bad_step, const Tensor& bucket, std::span<const PlacedParam> params, Site where) {
  std::vector<std::int64_t> ints = {state_position(bad_step)};
  for (const PlacedParam& p : params)
    for (const std::int64_t k : {std::int64_t(state_position(p.param)), p.at}) ints.push_back(k);
  const Out none{Shape{0}, DType::f32};  // an effect has no value
  record(place_weights_op, std::span(&bucket, 1), std::span(&none, 1), ints, {}, where);
}

}  // namespace weft
