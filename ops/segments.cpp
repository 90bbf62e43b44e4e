// Where documents that are packed one after the other begin. What looks back in time starts anew there.
#include <fmt/format.h>

#include <vector>

#include "jit/parallel.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/labels.h"
#include "ops/ops.h"

namespace weft {
namespace {

// Input ids (b, t). Output (b, t) i32, dense: 1 where an id is not that of the place before.
void lower_segments(Lowering& l) {
  const Operand out = l.output();
  if (!out) return;
  const Operand ids = l.view(0);
  const std::int64_t t = l.shape(0)[1];
  l.emit("segments", [=](const Launch& launch) {
    const std::vector<std::int64_t> of = read_labels(launch, ids);
    std::int32_t* borders = launch.pointer<std::int32_t>(out);
    for (std::int64_t i = 0; i < std::int64_t(of.size()); ++i) {
      const std::int64_t id = of[std::size_t(i)], before = i % t ? of[std::size_t(i - 1)] : id;
      if (id < before)
        fail(ErrorKind::usage, "segments: an id is less than the one before it",
             fmt::format("{} after {} at position ({}, {})", id, before, i / t, i % t), "ids of packed documents rise");
      borders[i] = id != before;
    }
  });
}

const Op& segments_op =
    register_op({.name = "segments", .lower = lower_segments, .cuda = cuda_segments, .dense_outputs = true});

}  // namespace

Documents::Documents(const Tensor& of, Site where) : ids(of) {
  if (!of) return;
  require_integer(where, "segments", "ids", of);
  if (of.shape().rank() != 2)
    fail_at(where, "segments: ids are not (batch, time)", fmt::format("ids {}", to_string(of.shape())), "one for each token");
  borders = record(segments_op, {of}, {{of.shape(), DType::i32}}, {}, {}, where);
}

void require_segments(Site where, std::string_view op, const Documents& segments, const Shape& shape) {
  if (!segments || segments.ids.shape() == shape.first(2)) return;
  fail_at(where, fmt::format("{}: the segments do not fit", op),
          fmt::format("segments {}, {} {}", to_string(segments.ids.shape()), op, to_string(shape)),
          "one id for each element of the batch and each time");
}

}  // namespace weft
