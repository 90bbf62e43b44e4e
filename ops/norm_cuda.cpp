// RMS norm and layer norm on a GPU.
#include <algorithm>
#include <vector>

#include "jit/hole_text.h"
#include "jit/parallel.h"
#include "ops/cuda.h"
#include "ops/holes.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

// Blocks of a gradient that a multiprocessor holds at once, by the registers of a thread.
std::int64_t resident_blocks(const RowCut& cut, int sums) {
  const int values = std::max(cut.held, 1) * cut.width, registers = 48 + (2 + sums) * values;
  return std::max<std::int64_t>(1, 65536 / registers / std::int64_t(cut.threads * cut.rows));
}

// They stride over the rows: as many as 132 multiprocessors hold at once, or a multiple of that, so that a thread adds few
// rows. A constant, so that sums do not depend on the device.
std::int64_t striding_blocks(const RowCut& cut, std::int64_t resident, std::int64_t rows) {
  constexpr std::int64_t kFew = 256;
  const std::int64_t blocks = 132 * resident;
  return blocks * ceil_div(rows, blocks * std::int64_t(cut.rows) * kFew);
}

struct Space {
  std::int64_t rows, n;
  explicit Space(const Shape& shape) : rows(shape.first(shape.rank() - 1).numel()), n(shape[-1]) {}
};

// The vector width that guests allow, too.
int guest_width(std::int64_t n, const Guests& guests, int width) {
  width = std::min(width, row_width(n, {&guests.fused}, {}));
  for (const Operand& to : guests.to) width = std::min(width, row_width(n, {}, {to}));
  return width;
}

void add_guests(CudaText& text, Guests guests, const Shape& shape) {
  guests.fused.dims.assign(shape.dims().begin(), shape.dims().end());
  guests_of_rows(text, "Guest", guests.fused, guests.to);
}

}  // namespace

// Inputs x (..., n), weight (n), bias (n); holes out(y; the axes of x), in(x; the axes of x); ints [centered]; constants [eps].
// Outputs y (..., n), statistics (rows, 2).
void cuda_norm(Lowering& l) {
  const Space s(l.shape(0));
  if (s.rows == 0) return;
  const Fused source = l.source(0), out = l.hole(0, l.shape(0)), in = l.hole(1, l.shape(0));
  const Operand weight = l.dense(1), bias = l.dense(2), y = l.output(0), stats = l.output(1);
  const Guests guests = l.guests();
  const bool centered = l.integer(0) != 0;
  const int width = guest_width(s.n, guests, row_width(s.n, {&source, &out, &in}, {y, weight, bias}));
  const RowCut cut = cut_rows(s.n, width, l.in_double() ? 16 : 32);
  CudaText text = l.text((centered ? "layer_norm" : "rms_norm") + guests.names);
  text.define("CENTERED", centered).define("IN", l.filled(1)).define("GUESTS", !guests.to.empty());
  fused_rows(text, "source", source, l.shape(0).dims());
  fused_rows(text, "in_of", in, l.shape(0).dims());
  fused_rows(text, "out_of", out, l.shape(0).dims());
  add_guests(text, guests, l.shape(0));
  text.pointer("weight", weight).pointer("bias", bias).rows("y", y).rows("stats", stats).constant("eps", l.constant(0));
  text.integer("rows", s.rows).integer("n", s.n);
  l.emit(launch_rows(text, {"ops/rows.cuh", "ops/norm_value.cuh", "ops/norm.cuh"}, cut, (s.rows + cut.rows - 1) / cut.rows));
}

// Inputs x (..., n), dy (..., n), weight (n) and bias (n) or absent, statistics (rows, 2); holes, all over the axes of x,
// out_grad(y, dy), in(x), in_grad(x, dx); ints [centered, then the output of each root of out_grad, of in_grad, -1 for none].
// Outputs dx, dw, db, then those of the roots.
void cuda_norm_backward(Lowering& l) {
  const Space s(l.shape(0));
  const Operand dx = l.output(0), dw = l.output(1), db = l.output(2);
  if (s.n == 0) return;
  const Fused source = l.source(0), gradient = l.source(1), hole = l.hole(0, l.shape(0));
  const std::vector<Operand> roots = l.filled(0) ? root_outputs(l, hole.roots.size(), 1) : std::vector<Operand>(1);
  const Fused in = l.hole(1, l.shape(0)), in_hole = l.hole(2, l.shape(0));
  const bool given = l.filled(1);
  const std::vector<Operand> in_roots =
      given ? root_outputs(l, in_hole.roots.size(), 1 + (l.filled(0) ? int(roots.size()) : 0)) : std::vector<Operand>(1);
  const Guests guests = l.guests();
  const bool needs_dx =
      dx || !guests.to.empty() || std::any_of(in_roots.begin(), in_roots.end(), [](const Operand& o) { return bool(o); });
  const Operand weight = l.dense(2), bias = l.dense(3), stats = l.rows(4);
  // Twice to four times the values in registers that the forward kernel has.
  int width = row_width(s.n, {&source, &gradient, &hole, &in, &in_hole}, {dx, weight, bias});
  for (const auto* outputs : {&roots, &in_roots})
    for (const Operand& to : *outputs) width = std::min(width, row_width(s.n, {}, {to}));
  width = guest_width(s.n, guests, width);
  RowCut cut = cut_rows(s.n, width, l.in_double() ? 12 : 24, 256);
  // A warp takes rows up to 1024 columns: smaller blocks then fit.
  if (const RowCut wide = cut_rows(s.n, width, 32, 128); !l.in_double() && cut.threads > 32 && wide.threads <= 32) cut = wide;
  const std::int64_t resident = resident_blocks(cut, bool(dw) + bool(db));
  const std::int64_t parts =
      std::min((s.rows + cut.rows - 1) / cut.rows, dw || db ? striding_blocks(cut, resident, s.rows) : s.rows);
  const std::int64_t dims[] = {parts, s.n};
  const DType real = l.in_double() ? DType::f64 : DType::f32;
  const Operand dw_parts = dw ? l.scratch(real, dims) : Operand{}, db_parts = db ? l.scratch(real, dims) : Operand{};
  if (s.rows > 0) {
    CudaText text = l.text("norm_backward" + guests.names);
    text.define("CENTERED", l.integer(0));
    fused_rows(text, "source", source, l.shape(0).dims());
    fused_rows(text, "gradient", gradient, l.shape(0).dims());
    fused_rows(text, "in_of", in, l.shape(0).dims());
    gradients_of_rows(text, "out", hole, roots);
    gradients_of_rows(text, "in", in_hole, in_roots);
    text.define("IN", given).define("NEEDS_DX", needs_dx).define("GUESTS", !guests.to.empty());
    // The estimate holds where no hole asks for more.
    text.define("RESIDENT", cut.full && !l.in_double() && !l.filled(0) && !given ? resident : 1);
    add_guests(text, guests, l.shape(0));
    text.pointer("weight", weight)
        .pointer("bias", bias)
        .rows("stats", stats)
        .rows("dx", dx)
        .pointer("dw", dw_parts)
        .pointer("db", db_parts);
    text.integer("rows", s.rows).integer("n", s.n);
    l.emit(launch_rows(text, {"ops/rows.cuh", "ops/norm_value.cuh", "ops/norm_backward.cuh"}, cut, parts));
  }
  if (dw) emit_sum_of_parts(l, "norm_sum", dw_parts, kTree, dw);
  if (db) emit_sum_of_parts(l, "norm_sum", db_parts, kTree, db);
}

}  // namespace weft
