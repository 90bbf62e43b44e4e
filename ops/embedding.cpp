// Rows of a table by id. The gradient gives each id's row to one owner, which adds its occurrences in order of
// position.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/labels.h"
#include "ops/ops.h"
#include "ops/scatter.h"

namespace weft {
namespace {

constexpr std::int64_t kPartBytes = 1 << 16;  // rows copied or summed by one part

// Inputs weight (v, d), ids (...). Output (..., d) in the weight's dtype.
void lower_embedding(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const Operand weight = l.rows(0), ids = l.view(1);
  const Shape shape = l.shape(1);
  const std::int64_t v = l.shape(0)[0], d = l.shape(0)[1];
  l.emit("embedding", [=](const Launch& launch) {
    const std::vector<std::int64_t> rows = read_labels(launch, ids);
    check_labels("embedding", "id", rows, shape, v);
    const std::byte* from = launch.view(weight).data;
    std::byte* to = launch.view(out).data;
    const std::int64_t item = std::int64_t(size_of(weight.dtype)), count = std::int64_t(rows.size());
    const std::int64_t parts = part_count(count, std::max<std::int64_t>(1, kPartBytes / std::max<std::int64_t>(d * item, 1)));
    const std::int64_t from_stride = weight.row_stride() * item, to_stride = out.row_stride() * item;
    parallel(parts, [&](std::int64_t part) {
      const Range range = part_of(count, parts, part);
      for (std::int64_t i = range.begin; i < range.end; ++i)
        std::memcpy(to + i * to_stride, from + rows[i] * from_stride, std::size_t(d * item));
    });
  });
}

// Inputs ids (...), g (..., d). Output (v, d), dense: zero where an id does not occur.
void lower_embedding_backward(Lowering& l) {
  if (const Operand out = l.output()) emit_scatter(l, "embedding_backward", {l.view(0), l.rows(1), out, false});
}

void embedding_vjp(Vjp& v);
void embedding_backward_vjp(Vjp& v);

const Op& embedding_op =
    register_op({.name = "embedding", .vjp = embedding_vjp, .lower = lower_embedding, .cuda = cuda_embedding});
const Op& embedding_backward_op = register_op({.name = "embedding_backward",
                                               .vjp = embedding_backward_vjp,
                                               .lower = lower_embedding_backward,
                                               .cuda = cuda_embedding_backward});

void embedding_vjp(Vjp& v) {
  if (!v.needs(0)) return;
  const Tensor weight = v.input(0);
  v.add(0, record(embedding_backward_op, {v.input(1), v.grad()}, {{weight.shape(), weight.dtype()}}, {}, {}, v.where()));
}

// A sum of rows by id: each takes the gradient of the row that it was added to.
void embedding_backward_vjp(Vjp& v) { v.add(1, embedding(Arg(v.grad(), v.where()), v.input(0))); }

}  // namespace

Tensor embedding(Arg weight, Arg ids) {
  require_real(weight.where(), "embedding", "weight", weight);
  require_integer(weight.where(), "embedding", "ids", ids);
  const Shape table = weight.shape();
  if (table.rank() != 2)
    fail_at(weight.where(), "embedding: the weight is not a table",
            fmt::format("weight {}, ids {}", to_string(table), to_string(ids.shape())), "its shape is (vocabulary, width)");
  Shape shape = ids.shape();
  if (shape.rank() == kMaxRank)
    fail_at(weight.where(), "embedding: too many axes", fmt::format("ids {}", to_string(shape)), "flatten the ids");
  shape.push_back(table[1]);
  return record(embedding_op, {weight, ids}, {{shape, weight.dtype()}}, {}, {}, weight.where());
}

}  // namespace weft
