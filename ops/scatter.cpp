// Sums of rows by number, and scatter_sum, whose rows are single values.
#include "ops/scatter.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "autograd/pointwise.h"
#include "jit/parallel.h"
#include "jit/rows.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/labels.h"
#include "ops/ops.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

constexpr std::int64_t kPartElements = 1 << 14;  // added by one part

// The places of each id in [0, v): those of id e are order[begin[e]] .. order[begin[e + 1] - 1], ascending.
struct Sorted {
  std::vector<std::int64_t> begin, order;
  Sorted(const std::vector<std::int64_t>& ids, std::int64_t v) : begin(std::size_t(v + 1)), order(ids.size()) {
    const auto inside = [v](std::int64_t id) { return id >= 0 && id < v; };
    for (const std::int64_t id : ids)
      if (inside(id)) ++begin[std::size_t(id + 1)];
    for (std::size_t e = 0; e + 1 < begin.size(); ++e) begin[e + 1] += begin[e];
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (std::size_t p = 0; p < ids.size(); ++p)
      if (inside(ids[p])) order[std::size_t(next[std::size_t(ids[p])]++)] = std::int64_t(p);
  }
};

template <class T>
void scatter_rows(const Launch& launch, const RowScatter& s, const Sorted& sorted) {
  const std::int64_t v = s.out.dims[0], d = s.out.dims[1];
  const Rows from(launch, s.values), to(launch, s.out);
  const std::int64_t parts = part_count(v, std::max<std::int64_t>(1, kPartElements / std::max<std::int64_t>(d, 1)), 1024);
  parallel(parts, [&](std::int64_t part) {
    std::vector<T> buffer(static_cast<std::size_t>(d)), line(static_cast<std::size_t>(d));
    LongSums<T> sums(d);
    const Range range = part_of(v, parts, part);
    for (std::int64_t id = range.begin; id < range.end; ++id) {
      const std::int64_t begin = sorted.begin[std::size_t(id)], end = sorted.begin[std::size_t(id + 1)];
      T* total = to.template target<T>(id, 0, line.data());
      std::fill_n(total, d, T(0));
      for (std::int64_t i = begin; i < end; ++i) {
        const T* row = from.read(sorted.order[std::size_t(i)], 0, d, buffer.data());
        T* sum = sums.next();
        for (std::int64_t c = 0; c < d; ++c) sum[c] += row[c];
      }
      if (begin < end) sums.move_to(total, d);
      to.write(id, 0, d, total);
    }
  });
}

}  // namespace

void emit_scatter(Lowering& l, std::string name, const RowScatter& s) {
  const bool wide = l.in_double();
  l.emit(std::move(name), [=](const Launch& launch) {
    const std::vector<std::int64_t> ids = read_labels(launch, s.ids);
    const Shape shape(std::span(s.ids.dims.data(), std::size_t(s.ids.rank)));
    if (!s.drops) check_labels("embedding", "id", ids, shape, s.out.dims[0]);
    const Sorted sorted(ids, s.out.dims[0]);
    wide ? scatter_rows<double>(launch, s, sorted) : scatter_rows<float>(launch, s, sorted);
  });
}

// ---- scatter_sum: ids, values (count), out (n) ------------------------------------------------------------------------------

namespace {

RowScatter scatter_of(Lowering& l) {
  return {.ids = l.view(0), .values = as_rows(l.view(1)), .out = as_rows(l.output()), .drops = true};
}
void lower_scatter_sum(Lowering& l) { emit_scatter(l, "scatter_sum", scatter_of(l)); }
void cuda_scatter_sum(Lowering& l) { emit_scatter_cuda(l, "scatter_sum", scatter_of(l)); }

// dvalues[p] = dout[places[p]], 0 where that is outside.
void scatter_sum_vjp(Vjp& v) {
  if (!v.needs(1)) return;
  const Site where = v.where();
  const Arg places(v.input(0), where), g(v.grad(), where);
  const std::int64_t n = g.shape()[0];
  if (n == 0) return v.add(1, zeros(places.shape(), g.dtype(), where));
  const Arg outside(pointwise("outside", {places}, [n](Expr p) { return p < 0 || p >= n; }), where);
  const Arg inside(weft::where(outside, constant(0, Shape{}, places.dtype(), where), places), where);
  const Tensor each = reshape(embedding(reshape(g, Shape{n, 1}), inside), places.shape());
  v.add(1, weft::where(outside, constant(0, Shape{}, g.dtype(), where), each));
}

const Op& scatter_sum_op =
    register_op({.name = "scatter_sum", .vjp = scatter_sum_vjp, .lower = lower_scatter_sum, .cuda = cuda_scatter_sum});

}  // namespace

Tensor scatter_sum(Arg values, Arg places, std::int64_t n) {
  const Site where = values.where();
  require_real(where, "scatter_sum", "values", values);
  require_integer(where, "scatter_sum", "places", places);
  if (values.shape() != places.shape())
    fail_at(where, "scatter_sum: places do not fit the values",
            fmt::format("values {}, places {}", to_string(values.shape()), to_string(places.shape())),
            "every value has a place: both have the same shape");
  if (n < 0) fail_at(where, "scatter_sum: a negative number of sums", fmt::format("{}", n), "give the size of the result");
  const Shape flat{places.shape().numel()};
  return record(scatter_sum_op, {reshape(places, flat), reshape(values, flat)}, {{Shape{n}, values.dtype()}}, {}, {}, where);
}

}  // namespace weft
