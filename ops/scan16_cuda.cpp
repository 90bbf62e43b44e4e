// The selective scan of 16 states in bf16 on a GPU: the shapes of blocks of ops/scan16_*.cuh, and the launches.
#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "jit/hole_text.h"
#include "ops/cuda.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"
#include "ops/scan.h"

namespace weft {
namespace {

using namespace scan_layout;

constexpr int kGroup = 16, kQuad = 4;  // channels of a group; of a vector
constexpr int kHelpers = 4;            // warps of a forward block that stage and finish
constexpr int kBackTile = 16;          // steps of a backward tile; kTile16 those of a forward one
// Of the GPU that shapes are chosen for, so that results do not depend on another.
constexpr std::int64_t kMultiprocessors = 132;
constexpr std::int64_t kFewGroups = 2 * kMultiprocessors, kEnoughGroups = 6 * kMultiprocessors;  // of all channels and segments
constexpr std::int64_t kShortestForward = 256, kShortestBackward = 64;                           // segments, steps

// Shared memory that a block may have, bytes (CUDA C++ programming guide, technical specifications per compute capability).
std::int64_t shared_limit(int capability) {
  switch (capability) {
    case 80:
    case 87:
      return 163 << 10;
    case 90:
    case 100:
    case 103:
      return 227 << 10;
    default:
      return 99 << 10;
  }
}
std::int64_t rounded(std::int64_t bytes) { return ceil_div(bytes, 16) * 16; }

// sizeof(Shared) of the texts at most, with holes that stage so many bytes a thread.
std::int64_t forward_bytes(int groups, bool packed, std::int64_t delta, std::int64_t out) {
  const std::int64_t tile = kTile16, channels = groups * kGroup, vectors = tile * groups * 4, units = vectors / (kHelpers * 32);
  const std::int64_t stage =
      groups * (8 * (tile + 1) * 16 + 16) + 2 * tile * (channels + 4) * 4 + 16 * (tile + 4) * 4 + 2 * tile * 16;
  return 2 * stage + (4 * vectors + 8 * tile) * 8 + (packed ? 4 * vectors : 16 * units) +
         (delta ? delta * vectors : 16 * units) + 3 * (out ? out * vectors : 16 * units);
}
std::int64_t backward_bytes(int groups, bool packed, std::int64_t delta, std::int64_t delta_grad, std::int64_t out, int sums,
                            std::int64_t columns) {
  const std::int64_t tile = kBackTile, threads = groups * 64, quads = groups * 4;
  const std::int64_t stage = groups * (1040 + tile * 144 + 16 + 2 * (16 * (tile + 4) * 4 + 16)) + 3 * 16 * (tile + 4) * 4 +
                             groups * 2 * 2 * 16 * (tile + 4) * 4 + threads * 32;
  const auto staged = [&](std::int64_t bytes) { return bytes ? bytes * threads : 16; };
  return rounded(2 * stage + threads * (32 + 8 + 16) + (packed ? 4 * threads : 16) + tile * 64 + staged(delta) +
                 3 * staged(delta_grad) + staged(out) + groups * (128 + 4608) + quads * (columns + 16) + threads * 16 * sums +
                 256);
}

// An operand whose rows are read and written as vectors of four: itself, or a dense copy of it.
bool is_aligned(const Operand& o) {
  if (!o || last_stride(o) != 1) return true;
  const std::int64_t unit = std::min<std::int64_t>(16 / std::int64_t(size_of(o.dtype)), kQuad);
  bool aligned = o.offset % unit == 0;
  for (int k = 0; k + 1 < o.rank; ++k) aligned &= o.dims[std::size_t(k)] == 1 || o.strides[std::size_t(k)] % unit == 0;
  return aligned;
}
Operand copied(Lowering& l, const Operand& o) {
  const Operand to = l.scratch(o.dtype, std::span(o.dims.data(), std::size_t(o.rank)));
  l.emit_pointwise("scan_copy", copy_of(o, to), to);
  return to;
}
Operand vectors(Lowering& l, const Operand& o) { return is_aligned(o) ? o : copied(l, o); }
Fused vectors(Lowering& l, Fused fused) {
  for (Operand& leaf : fused.leaves) leaf = vectors(l, leaf);
  return fused;
}
// Outputs likewise: what stands in for one is copied to it afterwards.
class Outputs {
 public:
  explicit Outputs(Lowering& l) : l_(l) {}
  Operand add(const Operand& o) {
    if (is_aligned(o)) return o;
    copies_.emplace_back(l_.scratch(o.dtype, std::span(o.dims.data(), std::size_t(o.rank))), o);
    return copies_.back().first;
  }
  void emit_copies() {
    for (const auto& [from, to] : copies_) l_.emit_pointwise("scan_copy", copy_of(from, to), to);
  }

 private:
  Lowering& l_;
  std::vector<std::pair<Operand, Operand>> copies_;
};

GroupRows aligned_rows(Lowering& l, int i) {
  const GroupRows rows = group_rows(l, i);
  return is_aligned(rows.operand) ? rows : GroupRows(copied(l, rows.operand));
}

// What both kernels read.
struct Scan16 {
  Shape space;  // (b, t, i)
  std::int64_t groups, group_size;
  Operand u, raw, A, D, borders;
  GroupRows B, C;
  Fused delta;

  explicit Scan16(Lowering& l)
      : space(l.shape(kU)),
        groups(l.shape(kB).rank() == 4 ? l.shape(kB)[2] : 1),
        group_size(space[2] / groups),
        u(vectors(l, l.rows(kU))),
        raw(vectors(l, l.rows(kDelta))),
        A(l.rows(kA)),
        D(l.dense(kD)),
        borders(l.dense(kBorders)),
        B(aligned_rows(l, kB)),
        C(aligned_rows(l, kC)),
        delta(vectors(l, l.hole(0, space))) {}

  // Groups of channels of a block: the most that leave work for every multiprocessor and fit, or the fewest there are. With few
  // channels time is split into segments of `span` steps, side by side: the scan goes over it twice, at first every segment
  // from zero, for its last state (backward: the gradient of its first), and then, from the states that follow from these, for
  // good. No more blocks than multiprocessors, where a second wave would double the time. By the shape alone.
  struct Cut {
    int groups;
    std::int64_t span, segments;
  };
  template <class Bytes>
  Cut cut(std::initializer_list<int> choices, std::int64_t shortest, std::int64_t limit, const Bytes& bytes) const {
    const std::int64_t all = space[0] * space[2] / kGroup, wanted = std::max<std::int64_t>(kEnoughGroups / all, 1);
    std::int64_t span = space[1];
    if (all <= kFewGroups) span = std::max(ceil_div(ceil_div(space[1], wanted), kTile16) * kTile16, shortest);
    const std::int64_t segments = ceil_div(space[1], span);
    int fewest = 0;
    for (const int n : choices) {
      if (group_size % (n * kGroup) != 0 || bytes(n) > limit) continue;
      fewest = n;
      if (all * segments / n >= kMultiprocessors * 9 / 10) break;
    }
    if (fewest == 0)
      fail(ErrorKind::usage, "scan: its holes read too much for the shared memory of a block",
           fmt::format("{} bytes at least, {} are there", bytes(*(choices.end() - 1)), limit),
           "compute a part of them before the scan");
    return {fewest, segments == 1 ? space[1] : span, segments};
  }

  unsigned blocks(const Cut& cut) const { return unsigned(space[0] * cut.segments * space[2] / (cut.groups * kGroup)); }
  // Blocks that a multiprocessor must hold: as many as there are for it, fit, and leave each thread so many registers.
  int resident(const Cut& cut, int threads, int registers, std::int64_t limit, std::int64_t shared) const {
    const std::int64_t wanted = ceil_div(std::int64_t(blocks(cut)), kMultiprocessors);
    return int(std::max<std::int64_t>(
        std::min({wanted, std::int64_t(65536 / registers / threads), (limit + 1024) / (shared + 1024)}), 1));
  }
  // States, or what else a segment has for each channel: (b, segments, i, n), (b, segments, i).
  Operand states(Lowering& l, const Cut& cut, bool wanted = true) const {
    const std::int64_t dims[] = {space[0] * cut.segments, space[2], kStates16};
    return wanted ? l.scratch(DType::f32, dims) : Operand{};
  }
  Operand channels(Lowering& l, const Cut& cut, bool wanted = true) const {
    const std::int64_t dims[] = {space[0] * cut.segments, space[2]};
    return wanted ? l.scratch(DType::f32, dims) : Operand{};
  }
  // The states that the segments begin with; `last` is what follows from them all.
  Operand emit_join(Lowering& l, const Cut& cut, const Operand& ends, const Operand& delta_sum, const Operand& first,
                    const Operand& last, bool reverse) const {
    const Operand start = states(l, cut);
    CudaText text = l.text("scan_join");
    text.define("N", kStates16).define("REVERSE", reverse);
    text.integer("batch", space[0]).integer("segments", cut.segments).integer("channels", space[2]);
    text.rows("A", A).rows("first", first).rows("last", last);
    text.pointer("ends", ends).pointer("sums", delta_sum).pointer("start", start);
    const std::int64_t threads = space[0] * space[2] * kStates16;
    l.emit(text.launch("ops/scan_join.cuh", {unsigned(ceil_div(threads, 256)), 1, 1}, {256, 1, 1}));
    return start;
  }

  void describe(CudaText& text, const Cut& cut, int resident, std::int64_t threads, std::int64_t bytes) const {
    text.define("GROUPS", cut.groups).define("BLOCKS", resident).define("SHARED", bytes);
    text.budget(int(std::min<std::int64_t>(65536 / (threads * resident), 255)));
    text.integer("batch", space[0]).integer("length", space[1]).integer("channels", space[2]);
    text.integer("groups", groups).integer("group_size", group_size).integer("chunks", chunks16(space[1]));
    text.integer("segments", cut.segments).integer("span", cut.span);
    text.rows("u", u).rows("raw", raw).rows("A", A).pointer("D", D).pointer("borders", borders);
    for (const auto& [name, rows] : {std::pair("B", &B), std::pair("C", &C)}) {
      text.pointer(name, rows->operand).integer(fmt::format("{}_batch", name), rows->batch);
      text.integer(fmt::format("{}_time", name), rows->time).integer(fmt::format("{}_group", name), rows->group);
    }
    text.function(embedded_text("ops/scan16_head.cuh"));
    text.function(embedded_text("jit/copy_async.cuh"));
    staged_hole_text(text, "delta_of", delta, kQuad);
  }
};

}  // namespace

namespace scan_layout {

bool takes_scan16(const Shape& u, std::int64_t states, std::int64_t groups) {
  const std::int64_t size = u[2] / std::max<std::int64_t>(groups, 1);
  return states == kStates16 && u.numel() > 0 && size % (2 * kGroup) == 0;
}

void cuda_scan16(Lowering& l) {
  const Scan16 scan(l);
  const Fused out = vectors(l, l.hole(1, scan.space));
  Outputs outputs(l);
  const Operand initial = l.rows(kInitial), last = l.output(kLast), kept = l.output(kKept);
  const Operand y = outputs.add(l.output(kY)), s = outputs.add(l.output(kS));
  const std::int64_t limit = shared_limit(l.target().capability), delta_bytes = staged_bytes(scan.delta, kQuad).staged,
                     out_bytes = staged_bytes(out, kQuad).staged;
  const auto bytes = [&](int n) { return forward_bytes(n, bool(scan.borders), delta_bytes, out_bytes); };
  const Scan16::Cut cut = scan.cut({6, 4, 3, 2, 1}, kShortestForward, limit, bytes);
  const int n = cut.groups, threads = (2 * n + kHelpers) * 32;
  const std::int64_t shared = bytes(n);
  const int resident = scan.resident(cut, threads, 80, limit, shared);
  const auto emit = [&](const std::string& name, Operand first, Operand ends, Operand delta_sum, bool all) {
    CudaText text = l.text(name);
    scan.describe(text, cut, resident, threads, shared);
    text.define("HELPERS", kHelpers).define("TILE", kTile16);
    text.rows("initial", first).rows("last", ends).pointer("delta_sum", delta_sum);
    text.rows("y", all ? y : Operand{}).rows("s", all ? s : Operand{}).pointer("kept", all ? kept : Operand{});
    staged_hole_text(text, "out_of", out, kQuad);
    const std::string body = joined_texts({"ops/scan16.cuh", "ops/scan16_forward.cuh"});
    l.emit(text.launch_text(body, {scan.blocks(cut), 1, 1}, {unsigned(threads), 1, 1}, unsigned(shared)));
  };
  if (cut.segments == 1) {
    emit("scan_forward", initial, last, {}, true);
  } else {
    const Operand ends = scan.states(l, cut), delta_sum = scan.channels(l, cut);
    emit("scan_segments", {}, ends, delta_sum, false);
    emit("scan_forward", scan.emit_join(l, cut, ends, delta_sum, initial, last, false), {}, {}, true);
  }
  outputs.emit_copies();
}

namespace {

// What a launch of the backward kernel leaves; an absent one is not computed.
struct Back16 {
  bool only_carry = false;
  Operand g_last{}, d_initial{}, delta_sum{}, du{}, dA_part{}, dB_part{}, dC_part{}, dD_part{};
  std::vector<Operand> delta_to, out_to, delta_sums, out_sums;  // of the roots of the holes' gradients, and parts of their sums
};

}  // namespace

void cuda_scan16_backward(Lowering& l) {
  const Scan16 scan(l);
  const Shape& space = scan.space;
  const Operand kept = l.dense(kStates), g = vectors(l, l.rows(kG, DType::bf16)), initial = l.rows(kInitial);
  const Operand s = l.has(kSValue) ? vectors(l, l.rows(kSValue)) : Operand{};
  const Fused delta_grad = vectors(l, l.hole(1, space)), out_grad = vectors(l, l.hole(2, space));
  const Operand dA = l.output(kDA), dB = l.output(kDB), dC = l.output(kDC), dD = l.output(kDD);
  Outputs outputs(l);

  // The outputs of the roots; the first of delta_grad is draw, with or without a hole; that of out_grad stays inside.
  const auto none = [](const Fused& hole) { return std::vector<Operand>(hole.roots.size()); };
  Back16 all{.g_last = l.rows(kGLast),
             .d_initial = l.output(kDInitial),
             .du = outputs.add(l.output(kDu)),
             .delta_to = none(delta_grad),
             .out_to = none(out_grad),
             .delta_sums = none(delta_grad),
             .out_sums = none(out_grad)};
  const auto outputs_of = [&](int first, std::vector<Operand>& each, std::vector<Operand>& sums) {
    const auto output = [&](int j) { return l.integer(j) < 0 ? Operand{} : l.output(int(l.integer(j))); };
    for (int r = 0, roots = int(each.size()); r < roots; ++r) {
      each[std::size_t(r)] = outputs.add(output(first + r));
      sums[std::size_t(r)] = output(first + roots + r);
    }
  };
  if (l.filled(1)) outputs_of(0, all.delta_to, all.delta_sums);
  if (l.filled(2)) outputs_of(l.filled(1) ? 2 * int(all.delta_to.size()) : 0, all.out_to, all.out_sums);
  if (!l.filled(1)) all.delta_to[0] = outputs.add(l.output(kDraw));

  const std::int64_t limit = shared_limit(l.target().capability);
  const StagedBytes delta_bytes = staged_bytes(scan.delta, kQuad), delta_grad_bytes = staged_bytes(delta_grad, kQuad),
                    out_bytes = staged_bytes(out_grad, kQuad);
  const int sums = summed(all.delta_sums) + summed(all.out_sums);
  const std::int64_t columns = delta_bytes.columns + delta_grad_bytes.columns + out_bytes.columns;
  const auto bytes = [&](int n) {
    return backward_bytes(n, bool(scan.borders), delta_bytes.staged, delta_grad_bytes.staged, out_bytes.staged, sums, columns);
  };
  const Scan16::Cut cut = scan.cut({6, 4, 2}, kShortestBackward, limit, bytes);
  const int n = cut.groups, threads = n * 64;
  const std::int64_t shared = bytes(n);
  const int resident = scan.resident(cut, threads, 168, limit, shared);  // it needs all of them

  std::vector<std::pair<Operand, Operand>> totals;  // parts, sum
  for (auto* parts : {&all.delta_sums, &all.out_sums})
    for (Operand& sum : *parts)
      if (sum) totals.emplace_back(scan.channels(l, cut), sum), sum = totals.back().first;
  all.dA_part = scan.states(l, cut, bool(dA)), all.dD_part = scan.channels(l, cut, bool(dD));
  if (dB || dC) {
    const std::int64_t dims[] = {scan.group_size / (n * kGroup), space[0], space[1], scan.groups, kStates16};
    all.dB_part = l.scratch(DType::f32, dims), all.dC_part = l.scratch(DType::f32, dims);
  }

  const auto emit = [&](const std::string& name, const Back16& to) {
    CudaText text = l.text(name);
    scan.describe(text, cut, resident, threads, shared);
    const bool needs_s = s && reads_value(out_grad, to.out_to, to.out_sums);
    text.define("NEEDS_S", needs_s).define("DELTA_SUMS", summed(to.delta_sums)).define("OUT_SUMS", summed(to.out_sums));
    text.define("ONLY_CARRY", to.only_carry);
    text.pointer("kept", kept).rows("g", g).rows("g_last", to.g_last).rows("initial", to.only_carry ? Operand{} : initial);
    text.rows("s", needs_s ? s : Operand{}).rows("du", to.du).rows("d_initial", to.d_initial);
    text.pointer("delta_sum", to.delta_sum).pointer("dA_part", to.dA_part).pointer("dD_part", to.dD_part);
    text.pointer("dB_part", to.dB_part).pointer("dC_part", to.dC_part);
    staged_gradients_text(text, "delta", delta_grad, to.delta_to, to.delta_sums, kQuad);
    staged_gradients_text(text, "out", out_grad, to.out_to, to.out_sums, kQuad);
    const std::string body = joined_texts({"jit/hole.cuh", "ops/scan16.cuh", "ops/scan16_backward.cuh"});
    l.emit(text.launch_text(body, {scan.blocks(cut), 1, 1}, {unsigned(threads), 1, 1}, unsigned(shared)));
  };
  if (cut.segments > 1) {
    const Operand ends = scan.states(l, cut), delta_sum = scan.channels(l, cut);
    emit("scan_segments_backward", {.only_carry = true,
                                    .d_initial = ends,
                                    .delta_sum = delta_sum,
                                    .delta_to = none(delta_grad),
                                    .out_to = none(out_grad),
                                    .delta_sums = none(delta_grad),
                                    .out_sums = none(out_grad)});
    all.g_last = scan.emit_join(l, cut, ends, delta_sum, all.g_last, all.d_initial, true);
    all.d_initial = {};
  }
  emit("scan_backward", all);
  outputs.emit_copies();
  emit_sum_of_parts(l, "scan_sum", all.dA_part, kTree, dA);
  emit_sum_of_parts(l, "scan_sum", all.dB_part, kInOrder, dB);
  emit_sum_of_parts(l, "scan_sum", all.dC_part, kInOrder, dC);
  emit_sum_of_parts(l, "scan_sum", all.dD_part, kTree, dD);
  for (const auto& [from, sum] : totals) emit_sum_of_parts(l, "scan_sum", from, kTree, sum);
}

}  // namespace scan_layout
}  // namespace weft
