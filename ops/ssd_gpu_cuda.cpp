// The kernels of ssd on a GPU: how the work is cut, and the launches.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <vector>

#include "jit/hole_text.h"
#include "jit/parallel.h"
#include "ops/cuda.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"
#include "ops/ssd_gpu.h"

namespace weft {
namespace ssd_layout {
namespace {

// Bytes of shared memory that a block may have. What runs on every GPU stays within the least of them.
unsigned most_shared(int capability) { return (capability >= 90 && capability < 110 ? 227 : 99) * 1024; }

// ---- how the work is cut ----------------------------------------------------------------------------------------------------

// Bytes of tiles in shared memory: features of a row; B or C; C B^T, or what stands for it of a row; facts of a row's steps.
struct Tiles {
  int features, states, products, steps;
  explicit Tiles(const SsdCut& cut)
      : features(cut.q * (cut.pt + 8) * 2),
        states(cut.q * (cut.padded() + 8) * 2),
        products(cut.q * (cut.q + 8) * 2),
        steps(kStepFacts * cut.q * 4) {}
};

// Rows of a block, its warps, and stages of what is copied. What is chosen by the shared memory that there is changes no
// result, but for the order of the sums over rows in dB and dC.
struct BlockCut {
  int rows, warps, stages;
  unsigned shared;
  unsigned threads() const { return unsigned(32 * warps); }
};
// For `most` rows, a power of two, or half of them with two stages; else as many as there is room for with one.
template <class Bytes>
BlockCut fit(int most, int row_warps, unsigned limit, Bytes bytes) {
  const auto cut = [&](int rows, int stages) {
    return BlockCut{rows, rows * row_warps, stages, unsigned(bytes(rows, stages))};
  };
  for (int rows = most; rows >= std::max(most / 2, 1); rows /= 2)
    if (const BlockCut c = cut(rows, 2); c.shared <= limit) return c;
  for (int rows = most; rows > 1; rows /= 2)
    if (const BlockCut c = cut(rows, 1); c.shared <= limit) return c;
  return cut(1, cut(1, 2).shared <= limit ? 2 : 1);
}

// ---- operands ---------------------------------------------------------------------------------------------------------------

// An output that a kernel writes 16 bytes at a time: itself, or memory that is copied there afterwards.
class TiledOutput {
 public:
  TiledOutput(Lowering& l, const Operand& output) : output_(output), memory_(output) {
    if (output && !output.sixteens())
      memory_ = l.scratch(output.dtype, std::span(output.dims.data(), std::size_t(output.rank)));
  }
  const Operand& memory() const { return memory_; }
  void finish(Lowering& l) const {
    if (memory_.slot != output_.slot) l.emit_pointwise("ssd_copy", copy_of(memory_, output_), output_);
  }

 private:
  Operand output_, memory_;
};

// a.NAME and its strides a.NAME_batch, a.NAME_time, a.NAME_UNIT.
void tiles_text(CudaText& text, std::string_view name, std::string_view unit, const Operand& o) {
  text.pointer(name, o);
  text.integer(fmt::format("{}_batch", name), o.strides[0]).integer(fmt::format("{}_time", name), o.strides[1]);
  text.integer(fmt::format("{}_{}", name, unit), o.strides[2]);
}

// ---- what the kernels have in common ----------------------------------------------------------------------------------------

class Ssd {
 public:
  explicit Ssd(Lowering& lowering)
      : l(lowering),
        x(l.sixteens(kX)),
        dt(l.view(kDt)),
        A(l.dense(kA)),
        B(l.sixteens(kB)),
        C(l.sixteens(kC)),
        D(l.dense(kD)),
        batch(x.dims[0]),
        length(x.dims[1]),
        heads(x.dims[2]),
        groups(B.dims[2]),
        cut(x.dims[3], B.dims[3]),
        tiles(cut),
        members(heads / groups * cut.slices()),
        chunks(cut.chunks(length)),
        segment_chunks(ceil_div(chunks, most_segments())),
        segments(ceil_div(chunks, segment_chunks)),
        limit(most_shared(l.target().capability)) {}

  int most_rows() const {
    return int(std::min<std::int64_t>(std::min((cut.n > 128 ? 8 : 16) / cut.row_warps, 8),
                                      std::int64_t(std::bit_ceil(std::uint64_t(members)))));
  }
  std::int64_t parts(int rows) const { return ceil_div(members, std::int64_t(rows)); }  // blocks of a group
  // Segments of time run side by side, so many that they fill a GPU: each adds up what those before it leave.
  std::int64_t most_segments() const {
    constexpr std::int64_t kEnough = 384;  // blocks
    const std::int64_t blocks = batch * groups * parts(most_rows()), most = chunks >= 64 ? 16 : 8;
    return std::min(std::clamp<std::int64_t>(ceil_div(kEnough, blocks), 1, most), chunks);
  }
  // Few blocks have fewer rows, as have those of groups whose rows they do not divide.
  int good_rows() const {
    constexpr std::int64_t kFew = 132;  // blocks
    int rows = most_rows();
    while (rows > 2 && (members % rows != 0 || batch * groups * parts(rows) * segments < kFew)) rows /= 2;
    return rows;
  }
  std::int64_t rows() const { return batch * groups * members; }
  Operand scratch(DType dtype, std::initializer_list<std::int64_t> dims) const {
    return l.scratch(dtype, std::span(dims.begin(), dims.size()));
  }
  // What a segment adds to a state, and its decay.
  Operand added() const { return scratch(DType::bf16, {rows(), segments, cut.pt * cut.padded()}); }
  Operand decays() const { return scratch(DType::f32, {rows(), segments}); }
  Operand or_scratch(const Operand& o, DType dtype, std::initializer_list<std::int64_t> dims) const {
    return o ? o : scratch(dtype, dims);
  }
  // States of operands (b, h, p, n) that can be moved at once.
  int pair(const Operand& one, const Operand& other) const {
    const std::int64_t dims[] = {batch, heads, cut.p, cut.n};
    return std::min(vector_width(dims, std::array{one, other}), 2);
  }

  // Facts and arguments of ops/ssd.cuh.
  void describe(CudaText& text, const BlockCut& block) const {
    text.define("P", cut.p).define("N", cut.n).define("PT", cut.pt).define("Q", cut.q).define("BLOCKS", 1);
    text.define("HEADS", block.rows).define("WARPS", block.warps).define("STAGES", block.stages);
    text.define("WARPS_OF_ROW", cut.row_warps);
    text.integer("batch", batch).integer("length", length).integer("heads", heads).integer("groups", groups);
    text.integer("group_heads", heads / groups).integer("members", members).integer("parts", parts(block.rows));
    text.integer("chunks", chunks).integer("segments", segments).integer("segment_chunks", segment_chunks);
  }
  void describe_states(CudaText& text) const { tiles_text(text, "B", "group", B), tiles_text(text, "C", "group", C); }
  void emit(CudaText& text, std::string_view file, const BlockCut& block, std::int64_t segment_count) const {
    l.emit(text.launch_text(joined_texts({"jit/fragments.cuh", "ops/ssd.cuh", file}),
                            {unsigned(batch * groups * parts(block.rows)), unsigned(segment_count), 1}, {block.threads(), 1, 1},
                            block.shared));
  }

  Lowering& l;
  const Operand x, dt, A, B, C, D;
  const std::int64_t batch, length, heads, groups;
  const SsdCut cut;
  const Tiles tiles;
  const std::int64_t members;  // rows of a group
  const std::int64_t chunks, segment_chunks, segments;
  const unsigned limit;
};

// ---- forward ----------------------------------------------------------------------------------------------------------------

// What both forward kernels leave for others.
struct Kept {
  Operand steps, products, added, decays;
  void describe(CudaText& text) const {
    text.pointer("steps", steps).pointer("products", products).pointer("added", added).pointer("decays", decays);
  }
};

void emit_state(const Ssd& ssd, const Kept& kept) {
  const Tiles& tiles = ssd.tiles;
  const BlockCut block = fit(ssd.good_rows(), ssd.cut.row_warps, ssd.limit, [&](int rows, int stages) {
    return stages * (rows * tiles.features + tiles.states) + tiles.states + ssd.cut.row_warps * rows * tiles.steps;
  });
  CudaText text = ssd.l.text("ssd_state");
  ssd.describe(text, block);
  tiles_text(text, "x", "head", ssd.x), tiles_text(text, "dt", "head", ssd.dt);
  ssd.describe_states(text);
  text.pointer("A", ssd.A).pointer("borders", ssd.l.dense(kBorders));
  kept.describe(text);
  hole_text(text, "step_of", ssd.l.hole(kStepHole, ssd.l.shape(kDt)));
  ssd.emit(text, "ops/ssd_state.cuh", block, ssd.segments);
}

void emit_out(const Ssd& ssd, const Kept& kept, const Operand& y, const Operand& s) {
  const SsdCut& cut = ssd.cut;
  const Tiles& tiles = ssd.tiles;
  const int matrices = cut.q / 16 * (cut.q / 16 + 1) / 2 * 512, buffers = 16 * (cut.pt + 4 * cut.row_warps) * 4;
  const BlockCut block = fit(ssd.good_rows(), cut.row_warps, ssd.limit, [&](int rows, int stages) {
    const int chunk = rows * (tiles.features + tiles.steps) + 2 * tiles.states + tiles.products;
    return stages * chunk + rows * (matrices + buffers);
  });
  const Operand last = ssd.l.output(kLast), initial = ssd.l.rows(kInitial);
  const Fused out = ssd.l.hole(kOutHole, ssd.l.shape(kX));
  CudaText text = ssd.l.text("ssd_out");
  ssd.describe(text, block);
  text.define("D_FEATURES", ssd.D && ssd.D.rank == 2).define("OUT", ssd.l.filled(kOutHole));
  text.define("V", vector_width(out.dims, std::array<const Fused*, 1>{&out}, {})).define("VS", ssd.pair(initial, last));
  tiles_text(text, "x", "head", ssd.x);
  ssd.describe_states(text);
  text.pointer("D", ssd.D).rows("initial", initial).rows("last", last).pointer("kept", ssd.l.output(kKept));
  kept.describe(text);
  tiles_text(text, "y", "head", y), tiles_text(text, "s", "head", s);
  hole_text(text, "out_of", out);
  ssd.emit(text, "ops/ssd_out.cuh", block, ssd.segments);
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

// The roots of a hole's gradient of (value, upstream), over the hole's space, to those of `outputs` that are present.
void emit_roots(Lowering& l, const char* name, Fused hole, const Operand& value, const Operand& upstream,
                std::span<const Operand> outputs) {
  std::vector<Expr> roots;
  std::vector<Operand> to;
  for (std::size_t r = 0; r < outputs.size(); ++r)
    if (outputs[r]) roots.push_back(hole.roots[r]), to.push_back(outputs[r]);
  if (roots.empty()) return;
  hole.roots.assign(roots.begin(), roots.end());
  hole.leaves.insert(hole.leaves.begin(), {value, upstream});
  hole.values = 0;
  l.emit(pointwise_cuda(name, hole, to, hole.dims, l.in_double()));
}

std::vector<Operand> outputs_of_roots(Lowering& l, std::size_t roots, int first) {
  std::vector<Operand> outputs(roots);
  for (std::size_t r = 0; r < roots; ++r)
    if (const std::int64_t k = l.integer(first + int(r)); k >= 0) outputs[r] = l.output(int(k));
  return outputs;
}

class Gradients {
 public:
  explicit Gradients(Lowering& lowering)
      : l_(lowering),
        ssd_(l_),
        step_grad_(l_.hole(kStepGrad, l_.shape(kDt))),
        steps_(l_.dense(kInSteps)),
        e_(gradient_of_s()),
        added_(ssd_.added()),
        decays_(ssd_.decays()) {}

  void run() {
    if (ssd_.segments > 1) emit_dstate();
    emit_grad();
  }

 private:
  // The upstream gradient itself, or what the out hole's derivative makes of it. Zeros if only the last state has a gradient.
  Operand gradient_of_s() const {
    const std::initializer_list<std::int64_t> dims = {ssd_.batch, ssd_.length, ssd_.heads, ssd_.cut.p};
    if (!l_.has(kGradient)) {
      const Operand zero = ssd_.scratch(DType::bf16, dims);
      emit_fill(l_, 0, zero);
      return zero;
    }
    if (!l_.filled(kOutGrad)) return l_.sixteens(kGradient, DType::bf16);
    const Fused hole = l_.hole(kOutGrad, l_.shape(kX));
    const int before = l_.filled(kStepGrad) ? int(step_grad_.roots.size()) : 0;
    std::vector<Operand> outputs = outputs_of_roots(l_, hole.roots.size(), before);
    outputs[0] = ssd_.scratch(DType::bf16, dims);
    emit_roots(l_, "ssd_out_backward", hole, l_.view(kInS), l_.view(kGradient), outputs);
    return outputs[0];
  }

  void emit_dstate() const {
    const Tiles& tiles = ssd_.tiles;
    const BlockCut block = fit(ssd_.good_rows(), ssd_.cut.row_warps, ssd_.limit, [&](int rows, int stages) {
      return stages * (rows * (tiles.features + tiles.steps) + tiles.states);
    });
    CudaText text = l_.text("ssd_dstate");
    ssd_.describe(text, block);
    tiles_text(text, "e", "head", e_), tiles_text(text, "C", "group", ssd_.C);
    text.pointer("steps", steps_).pointer("added", added_).pointer("decays", decays_);
    ssd_.emit(text, "ops/ssd_dstate.cuh", block, ssd_.segments - 1);
  }

  // Two rows a block if there is room, whose sums for dB and dC then need not pass through memory. The state has memory of its
  // own if there is room for it.
  struct GradCut {
    BlockCut block;
    bool own_state;
  };
  GradCut grad_cut() const {
    const SsdCut& cut = ssd_.cut;
    const Tiles& tiles = ssd_.tiles;
    const int times = cut.q / 16;
    const auto bytes = [&](int rows, int warps, int stages, bool own) {
      const int feature_parts = std::min(warps / rows / times, cut.pt / 16), pairs = times * (times + 1) / 2 * 512;
      const int sums = rows * cut.q * (4 * times + feature_parts + warps / times) * 4 + 2 * warps * 4;
      const int d_state = cut.pt * (cut.padded() + 8) * 2, state = own ? cut.pt * cut.padded() * 2 : 0;
      return 2 * rows * tiles.steps + sums + stages * (2 * rows * tiles.features + tiles.products) + 2 * tiles.states +
             rows * (2 * pairs + d_state + state);
    };
    GradCut chosen{};
    for (int rows = cut.n > 128 || ssd_.members == 1 ? 1 : 2; rows > 0; --rows)
      for (const auto& [stages, own] : {std::pair{2, true}, {1, true}, {2, false}, {1, false}}) {
        const int warps = 8 * rows;
        chosen = {{rows, warps, stages, unsigned(bytes(rows, warps, stages, own))}, own};
        if (chosen.block.shared <= ssd_.limit) return chosen;
      }
    return chosen;  // the least, which fits everywhere
  }

  void emit_grad() const {
    const SsdCut& cut = ssd_.cut;
    const auto [block, own_state] = grad_cut();
    const Operand dA = l_.output(kDA), dB = l_.output(kDB), dC = l_.output(kDC), dD = l_.output(kDD);
    const Operand g_last = l_.rows(kLastGradient), d_initial = l_.output(kDInitial);
    const TiledOutput dx(l_, l_.output(kDx));
    const std::int64_t parts = ssd_.parts(block.rows), sums = ssd_.batch * ssd_.segments * cut.slices();
    const bool of_heads = dD && dD.rank == 1;
    // Of dB and dC, of dA and dD.
    const Operand state_parts = ssd_.scratch(DType::bf16, {parts, 2, ssd_.batch, ssd_.length, ssd_.groups, cut.n});
    const Operand head_parts = ssd_.scratch(DType::f32, {sums, 2, ssd_.heads});
    const Operand dsteps = ssd_.scratch(DType::f32, {cut.slices(), ssd_.batch, ssd_.heads, ssd_.length});
    CudaText text = l_.text("ssd_grad");
    ssd_.describe(text, block);
    text.define("OWN_STATE", own_state).define("D_FEATURES", ssd_.D && ssd_.D.rank == 2);
    text.define("VS", ssd_.pair(g_last, d_initial));
    tiles_text(text, "x", "head", ssd_.x), tiles_text(text, "e", "head", e_);
    ssd_.describe_states(text);
    text.pointer("A", ssd_.A).pointer("D", ssd_.D).pointer("steps", steps_).pointer("products", l_.dense(kInProducts));
    text.pointer("kept", l_.dense(kInKept)).pointer("added", added_).pointer("decays", decays_);
    text.rows("g_last", g_last).rows("d_initial", d_initial);
    tiles_text(text, "dx", "head", dx.memory());
    text.pointer("state_parts", state_parts).pointer("head_parts", head_parts).pointer("dsteps", dsteps);
    ssd_.emit(text, "ops/ssd_grad.cuh", block, ssd_.segments);
    dx.finish(l_);
    emit_sums(head_parts, kTree, dA, of_heads ? dD : Operand{}), emit_sums(state_parts, kInOrder, dB, dC);
    if (dD && !of_heads) emit_skip_of_features(dD);
    emit_steps(dsteps);
  }
  // Of parts (parts, 2, ...), of which either may be absent.
  void emit_sums(Operand parts, SumOrder order, const Operand& first, const Operand& second) const {
    if (!first) parts.offset += parts.strides[1];
    emit_sum_of_parts(l_, "ssd_sum", parts, order, first, second);
  }

  // dD (h, p): the sum of x e over (b, t).
  void emit_skip_of_features(const Operand& dD) const {
    Fused product;
    product.roots = {expr::input(0) * expr::input(1)};
    product.leaves = {ssd_.x, e_};
    product.program = Program(product.roots);
    Shape shape{ssd_.batch, ssd_.length, ssd_.heads, ssd_.cut.p};
    product.dims.assign(shape.dims().begin(), shape.dims().end());
    const ReduceSpace space = canonical(product, shape, 3);
    emit_reduce(l_, kReduceSum, product, shape, space, dD);
  }

  // From the gradients of the step sizes, of each slice of the features of a head.
  void emit_steps(Operand dsteps) const {
    std::vector<Operand> outputs = {l_.output(kDraw)};
    if (l_.filled(kStepGrad)) {
      outputs = outputs_of_roots(l_, step_grad_.roots.size(), 0);
      outputs[0] = l_.output(kDraw);
    }
    if (std::none_of(outputs.begin(), outputs.end(), [](const Operand& o) { return bool(o); })) return;
    if (ssd_.cut.slices() > 1) {
      const Operand sum = ssd_.scratch(DType::f32, {ssd_.batch, ssd_.heads, ssd_.length});
      emit_sum_of_parts(l_, "ssd_sum", dsteps, kInOrder, sum);
      dsteps = sum;
    }
    const std::int64_t dims[] = {ssd_.batch, ssd_.length, ssd_.heads};
    Operand by_time = dense_operand(dsteps.slot, DType::f32, dims);
    by_time.offset = dsteps.offset;
    by_time.strides[0] = ssd_.heads * ssd_.length, by_time.strides[1] = 1, by_time.strides[2] = ssd_.length;
    if (l_.filled(kStepGrad))
      emit_roots(l_, "ssd_steps_backward", step_grad_, ssd_.dt, by_time, outputs);
    else
      l_.emit_pointwise("ssd_copy", copy_of(by_time, outputs[0]), outputs[0]);
  }

  Lowering& l_;
  const Ssd ssd_;
  const Fused step_grad_;
  const Operand steps_, e_, added_, decays_;
};

}  // namespace
}  // namespace ssd_layout

void ssd_layout::cuda_ssd(Lowering& l) {
  const Ssd ssd(l);
  const SsdCut& cut = ssd.cut;
  const TiledOutput y(l, l.output(kY)), s(l, l.output(kS));
  const Kept kept{
      .steps = ssd.or_scratch(l.output(kSteps), DType::f32, {ssd.rows(), ssd.chunks, kStepFacts * cut.q}),
      .products = ssd.or_scratch(l.output(kProducts), DType::bf16, {ssd.batch, ssd.groups, ssd.chunks, cut.q * cut.q}),
      .added = ssd.added(),
      .decays = ssd.decays()};
  emit_state(ssd, kept);
  emit_out(ssd, kept, y.memory(), s.memory());
  y.finish(l), s.finish(l);
}

void ssd_layout::cuda_ssd_backward(Lowering& l) { Gradients(l).run(); }

}  // namespace weft
