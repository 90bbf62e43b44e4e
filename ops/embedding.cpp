// Rows of a table by id. The gradient gives each id's row to one owner, which adds its occurrences in order of
// position.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "jit/parallel.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/labels.h"
#include "ops/ops.h"

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

// The positions of each id: those of id i are order[begin[i]] .. order[begin[i + 1] - 1], ascending.
struct Sorted {
  std::vector<std::int64_t> begin, order;
  Sorted(const std::vector<std::int64_t>& ids, std::int64_t v) : begin(std::size_t(v + 1)), order(ids.size()) {
    for (std::int64_t id : ids) ++begin[id + 1];
    for (std::int64_t i = 0; i < v; ++i) begin[i + 1] += begin[i];
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (std::size_t p = 0; p < ids.size(); ++p) order[next[ids[p]]++] = std::int64_t(p);
  }
};

// Inputs ids (...), g (..., d). Output (v, d), dense: zero where an id does not occur.
template <class T>
void lower_backward(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const Operand ids = l.view(0), g = l.rows(1);
  const Shape shape = l.shape(0);
  const std::int64_t v = out.dims[0], d = out.dims[1];
  l.emit("embedding_backward", [=](const Launch& launch) {
    const std::vector<std::int64_t> rows = read_labels(launch, ids);
    check_labels("embedding", "id", rows, shape, v);  // a step that wants the gradient alone has no forward kernel that does
    const Sorted sorted(rows, v);
    const Rows from(launch, g), to(launch, out);
    const std::int64_t parts = part_count(v, std::max<std::int64_t>(1, kPartBytes / std::max<std::int64_t>(4 * d, 1)), 1024);
    parallel(parts, [&](std::int64_t part) {
      std::vector<T> buffer(d), sum(d);
      const Range range = part_of(v, parts, part);
      for (std::int64_t id = range.begin; id < range.end; ++id) {
        T* total = to.template target<T>(id, 0, sum.data());
        std::fill_n(total, d, T(0));
        for (std::int64_t i = sorted.begin[id]; i < sorted.begin[id + 1]; ++i) {
          const T* row = from.read(sorted.order[i], 0, d, buffer.data());
          for (std::int64_t j = 0; j < d; ++j) total[j] += row[j];
        }
        to.write(id, 0, d, total);
      }
    });
  });
}

void lower_embedding_backward(Lowering& l) {
  in_compute_type(l, [&]<class T>(T) { lower_backward<T>(l); });
}

void embedding_vjp(Vjp& v);

const Op& embedding_op =
    register_op({.name = "embedding", .vjp = embedding_vjp, .lower = lower_embedding, .cuda = cuda_embedding});
const Op& embedding_backward_op =
    register_op({.name = "embedding_backward", .lower = lower_embedding_backward, .cuda = cuda_embedding_backward});

void embedding_vjp(Vjp& v) {
  if (!v.needs(0)) return;
  const Tensor weight = v.input(0);
  v.add(0, record(embedding_backward_op, {v.input(1), v.grad()}, {{weight.shape(), weight.dtype()}}, {}, {}, v.where()));
}

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
