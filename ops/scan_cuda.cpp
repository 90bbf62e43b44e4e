// The selective scan on a GPU: the shape of a block of ops/scan.cuh, and the launches.
#include <algorithm>
#include <bit>
#include <string>
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

constexpr int kHeld = 4;                // steps whose states backward holds in registers
constexpr std::int64_t kStretch = 128;  // steps that backward adds up one after the other, so that long sums keep their digits
constexpr int kPadding = 4;             // elements between rows of shared memory, as in scan.cuh

// How a block divides channels and states among its threads, and time into rounds: by the state size and the type alone.
struct BlockShape {
  int value;     // bytes of a real
  int states;    // of a thread
  int channels;  // of a block: a power of two, as many as keep it small, a warp's lanes at most
  int slices;    // threads of a channel; they make whole warps

  BlockShape(std::int64_t n, bool in_double)
      : value(in_double ? 8 : 4),
        states(n <= 1                 ? 1
               : n <= 2               ? 2
               : n <= 16 || in_double ? 4
                                      : 8) {
    const int most = in_double ? 512 : 2048;  // states of a block: backward's shared memory stays below 99 KB
    const int needed = std::max(int(ceil_div(n, states)), 1);
    channels = std::clamp(int(std::bit_floor(unsigned(most / (needed * states)))), 1, 32);
    slices = int(ceil_div(needed, 32 / channels)) * (32 / channels);
  }
  int threads() const { return channels * slices; }
  int padded() const { return slices * states; }
  int part_bytes() const { return (threads() + kPadding) * value; }
  int states_bytes() const { return 2 * padded() * value; }  // B and C of a step
  int channels_bytes() const { return (channels + kPadding) * value; }

  // Steps of a round: as many as leave room in static shared memory.
  int forward_round() const {
    int steps = kTime;
    while (steps > 4 && steps * (states_bytes() + part_bytes()) > 24 * 1024) steps /= 2;
    return steps;
  }
  int backward_round() const { return kTime * states_bytes() <= 16 * 1024 ? int(kTime) : kHeld; }
  // sizeof(Shared) of scan_backward.cuh.
  int backward_bytes(int column_sums, int width) const {
    const int steps = kTime * 3 * channels_bytes(), saved = (kTime / kHeld - 1) * states * threads() * value;  // Delta, u, e
    const int sums = column_sums * threads() * width * value;
    const int all = steps + backward_round() * states_bytes() + saved + 2 * kHeld * part_bytes() + threads() * value + sums;
    return (all + 15) / 16 * 16;
  }
  // Blocks that a multiprocessor must be able to hold: registers of a thread are at most 65536 / (threads * blocks). They are
  // the fewest that cost no spills.
  int forward_blocks() const { return value == 8 ? 1 : 640 / threads(); }
  int backward_blocks() const { return value == 8 || states == 8 ? 1 : 512 / threads(); }
};

// What forward and backward read, and where a block stands.
struct Scan {
  Shape space;  // (b, t, i)
  std::int64_t n, groups, group_size;
  BlockShape block;
  Operand u, raw, A, D;
  GroupRows B, C;
  Fused delta;
  std::int64_t segments;  // of time, which run side by side

  explicit Scan(Lowering& l)
      : space(l.shape(kU)),
        n(l.shape(kA)[1]),
        groups(l.shape(kB).rank() == 4 ? l.shape(kB)[2] : 1),
        group_size(space[2] / groups),
        block(n, l.in_double()),
        u(l.rows(kU)),
        raw(l.rows(kDelta)),
        A(l.rows(kA)),
        D(l.dense(kD)),
        B(group_rows(l, kB)),
        C(group_rows(l, kC)),
        delta(l.hole(0, space)),
        segments(segments_of_time()) {}

  std::int64_t parts() const { return ceil_div(group_size, block.channels); }  // blocks of a group
  // The kernels see each segment as a batch element of its own.
  std::int64_t batch() const { return space[0] * segments; }
  std::int64_t length() const { return space[1] / segments; }
  std::int64_t blocks() const { return batch() * groups * parts(); }

  // Where a scan would leave most of a GPU idle, it goes over time twice, but in parallel: first every segment from zero, for
  // its last state (backward: the gradient of its first), then, from the states that follow from these, for good. By the
  // shape alone, so that results do not depend on the device.
  std::int64_t segments_of_time() const {
    constexpr std::int64_t kFew = 132, kEnough = 512, kShortest = 256;  // blocks, blocks, steps
    const bool dense = space[0] == 1 || (B.batch == B.time * space[1] && C.batch == C.time * space[1]);
    const std::int64_t blocks = space[0] * groups * parts();
    std::int64_t count = 1;
    if (blocks > kFew || !dense) return count;
    while (count * blocks < kEnough && space[1] % (2 * count * kTime) == 0 && space[1] / (2 * count) >= kShortest) count *= 2;
    return count;
  }

  // Channels that are moved as one vector: 16 bytes of what is read most.
  int vector(std::vector<Operand> operands, std::vector<const Fused*> holes) const {
    operands.insert(operands.end(), {u, raw});
    holes.push_back(&delta);
    const std::int64_t dims[] = {space[0], space[1], group_size};
    const int most = std::min(int(16 / size_of(u.dtype)), block.channels);
    return std::min(vector_width(dims, holes, operands), most);
  }
  int state_vector() const {
    const std::int64_t dims[] = {space[0], space[1], groups, n};
    const Operand operands[] = {B.operand, C.operand};
    return std::min(vector_width(dims, operands), block.padded());
  }
  void describe(CudaText& text, int blocks_resident, int round, int width) const {
    text.define("N", n).define("S", block.states).define("CHANNELS", block.channels).define("THREADS", block.threads());
    text.define("BLOCKS", blocks_resident).define("CHUNK", kTime).define("ROUND", round);
    text.define("V", width).define("VB", state_vector()).budget(std::min(65536 / (block.threads() * blocks_resident), 255));
    text.integer("batch", batch()).integer("length", length()).integer("channels", space[2]);
    text.integer("groups", groups).integer("group_size", group_size).integer("parts", parts());
    text.rows("u", u).rows("raw", raw).rows("A", A).pointer("D", D);
    for (const auto& [name, rows] : {std::pair("B", &B), std::pair("C", &C)}) {
      text.pointer(name, rows->operand)
          .integer(fmt::format("{}_batch", name), segments > 1 ? rows->time * length() : rows->batch);
      text.integer(fmt::format("{}_time", name), rows->time).integer(fmt::format("{}_group", name), rows->group);
    }
    text.integer("segments", segments);
    hole_text(text, "delta_of", delta);
  }
};

std::array<unsigned, 3> line(std::int64_t n) { return {unsigned(n), 1, 1}; }

// What a scan whose segments started from zero leaves behind.
struct Segments {
  Operand ends, delta_sum;  // (b, segments, i, n), (b, segments, i)
  Segments(Lowering& l, const Scan& scan) {
    const DType real = l.in_double() ? DType::f64 : DType::f32;
    const std::int64_t dims[] = {scan.batch(), scan.space[2], scan.n};
    ends = l.scratch(real, dims), delta_sum = l.scratch(real, std::span(dims, 2));
  }
};

// The states (b, segments, i, n) that the segments begin with: `first` (b, i, n), if it is there, and what follows from it.
Operand emit_join(Lowering& l, const Scan& scan, const Segments& from, const Operand& first, const Operand& last,
                  bool reverse) {
  const std::int64_t dims[] = {scan.batch(), scan.space[2], scan.n};
  const Operand start = l.scratch(from.ends.dtype, dims);
  CudaText text = l.text("scan_join");
  text.define("N", scan.n).define("REVERSE", reverse);
  text.integer("batch", scan.space[0]).integer("segments", scan.segments).integer("channels", scan.space[2]);
  text.rows("A", scan.A).rows("first", first).rows("last", last);
  text.pointer("ends", from.ends).pointer("sums", from.delta_sum).pointer("start", start);
  l.emit(text.launch("ops/scan_join.cuh", line(ceil_div(scan.space[0] * scan.space[2] * scan.n, 256)), {256, 1, 1}));
  return start;
}

}  // namespace

void cuda_scan(Lowering& l) {
  if (l.integer(0) != 0) return cuda_scan16(l);
  const Scan scan(l);
  const Fused out = l.hole(1, scan.space);
  const Operand initial = l.rows(kInitial), y = l.output(kY), last = l.output(kLast), kept = l.output(kKept);
  if (scan.blocks() == 0) return;
  const auto emit = [&](const std::string& name, Operand from, Operand to, Operand ends, Operand states, Operand delta_sum) {
    CudaText text = l.text(name);
    scan.describe(text, scan.block.forward_blocks(), scan.block.forward_round(), scan.vector({to, scan.D}, {&out}));
    text.rows("initial", from).rows("y", to).rows("last", ends).rows("kept", states).pointer("delta_sum", delta_sum);
    hole_text(text, "out_of", out);
    const std::string body = joined_texts({"ops/scan.cuh", "ops/scan_forward.cuh"});
    l.emit(text.launch_text(body, line(scan.blocks()), {unsigned(scan.block.threads()), 1, 1}));
  };
  if (scan.segments == 1) return emit("scan_forward", initial, y, last, kept, {});
  const Segments alone(l, scan);
  emit("scan_segments", {}, {}, alone.ends, {}, alone.delta_sum);
  emit("scan_forward", emit_join(l, scan, alone, initial, last, false), y, {}, kept, {});
}

namespace {

// What a launch of the backward kernel reads from the right and what it leaves; an absent one is not computed.
struct BackwardLaunch {
  Operand g_last{}, d_initial{}, delta_sum{}, du{}, dA_part{}, dB_part{}, dC_part{}, dD_part{};
  // Of the roots of the holes' gradients, over the space and as parts of sums (b, segments, stretches, i); the first of out_to
  // is e, which stays inside.
  std::vector<Operand> delta_to, out_to, delta_sums, out_sums;
};

}  // namespace

void cuda_scan_backward(Lowering& l) {
  if (l.dtype(kStates) == DType::i32) return cuda_scan16_backward(l);
  const Scan scan(l);
  const Shape& space = scan.space;
  const BlockShape& block = scan.block;
  const Operand kept = l.rows(kStates), g = l.rows(kG);
  const Fused delta_grad = l.hole(1, space), out_grad = l.hole(2, space);
  const Operand dA = l.output(kDA), dB = l.output(kDB), dC = l.output(kDC), dD = l.output(kDD);
  const auto none = [](const Fused& hole) { return std::vector<Operand>(hole.roots.size()); };
  BackwardLaunch all{.g_last = l.rows(kGLast),
                     .d_initial = l.output(kDInitial),
                     .du = l.output(kDu),
                     .delta_to = none(delta_grad),
                     .out_to = none(out_grad),
                     .delta_sums = none(delta_grad),
                     .out_sums = none(out_grad)};
  const DType real = l.in_double() ? DType::f64 : DType::f32;
  const auto scratch = [&](bool wanted, std::initializer_list<std::int64_t> dims) {
    return wanted ? l.scratch(real, std::span(dims.begin(), dims.size())) : Operand{};
  };
  if (dB || dC) {
    all.dB_part = scratch(true, {scan.parts(), space[0], space[1], scan.groups, scan.n});
    all.dC_part = scratch(true, {scan.parts(), space[0], space[1], scan.groups, scan.n});
  }
  const std::int64_t stretches = ceil_div(scan.length(), kStretch), parts = scan.batch() * stretches;  // of a sum
  all.dA_part = scratch(bool(dA), {parts, space[2], scan.n}), all.dD_part = scratch(bool(dD), {parts, space[2]});

  // The outputs of the roots; the first of delta_grad is draw, with or without a hole.
  std::vector<std::pair<Operand, Operand>> totals;  // parts, sum
  const auto outputs_of = [&](int first, std::vector<Operand>& each, std::vector<Operand>& sums) {
    const auto output = [&](int j) { return l.integer(j) < 0 ? Operand{} : l.output(int(l.integer(j))); };
    for (int r = 0, roots = int(each.size()); r < roots; ++r) {
      each[std::size_t(r)] = output(first + r);
      const Operand sum = output(first + roots + r);
      sums[std::size_t(r)] = scratch(bool(sum), {parts, space[2]});
      totals.emplace_back(sums[std::size_t(r)], sum);
    }
  };
  if (l.filled(1)) outputs_of(0, all.delta_to, all.delta_sums);
  if (l.filled(2)) outputs_of(l.filled(1) ? 2 * int(all.delta_to.size()) : 0, all.out_to, all.out_sums);
  all.delta_to[0] = l.output(kDraw);

  const auto emit = [&](const std::string& name, const BackwardLaunch& to) {
    std::vector<Operand> stored = {g, to.du};
    for (const auto* outputs : {&to.delta_to, &to.out_to}) stored.insert(stored.end(), outputs->begin(), outputs->end());
    const int delta_sums = summed(to.delta_sums), out_sums = summed(to.out_sums);
    const bool steps = to.du || to.dD_part || delta_sums > 0 || summed(to.delta_to) > 0;
    const int width = scan.vector(std::move(stored), {&delta_grad, &out_grad});
    // Sums of products cut to TF32, which is far finer than activations in bf16. One channel a thread leaves no registers.
    const bool tensor = !l.in_double() && scan.u.dtype == DType::bf16 && block.states == 4 && block.channels == 32 && width > 1;
    const int shared = block.backward_bytes(delta_sums + out_sums, width);
    CudaText text = l.text(name);
    scan.describe(text, block.backward_blocks(), block.backward_round(), width);
    text.define("SUB", kHeld).define("NEEDS_S", reads_value(out_grad, to.out_to, to.out_sums)).define("SUMS", bool(to.dB_part));
    text.define("STEPS", steps).define("SHARED", shared).define("DELTA_SUMS", delta_sums).define("OUT_SUMS", out_sums);
    text.define("STRETCH", kStretch).integer("stretches", stretches);
    text.rows("kept", kept).rows("g", g).rows("g_last", to.g_last).rows("du", to.du).rows("d_initial", to.d_initial);
    text.pointer("delta_sum", to.delta_sum).pointer("dA_part", to.dA_part).pointer("dD_part", to.dD_part);
    text.pointer("dB_part", to.dB_part).pointer("dC_part", to.dC_part);
    gradients_text(text, "delta", delta_grad, to.delta_to, to.delta_sums);
    gradients_text(text, "out", out_grad, to.out_to, to.out_sums);
    const std::string body = joined_texts({"jit/hole.cuh", "ops/scan.cuh", "ops/sum_lanes.cuh",
                                           tensor ? "ops/scan_sums_tensor.cuh" : "ops/scan_sums.cuh", "ops/scan_backward.cuh"});
    l.emit(text.launch_text(body, line(scan.blocks()), {unsigned(block.threads()), 1, 1}, unsigned(shared)));
  };
  if (scan.blocks() > 0) {
    if (scan.segments > 1) {
      const Segments alone(l, scan);
      emit("scan_segments_backward", {.d_initial = alone.ends,
                                      .delta_sum = alone.delta_sum,
                                      .delta_to = none(delta_grad),
                                      .out_to = none(out_grad),
                                      .delta_sums = none(delta_grad),
                                      .out_sums = none(out_grad)});
      all.g_last = emit_join(l, scan, alone, all.g_last, all.d_initial, true);
      all.d_initial = {};
    }
    emit("scan_backward", all);
  }
  emit_sum_of_parts(l, "scan_sum", all.dA_part, kTree, dA);
  emit_sum_of_parts(l, "scan_sum", all.dB_part, kInOrder, dB);
  emit_sum_of_parts(l, "scan_sum", all.dC_part, kInOrder, dC);
  emit_sum_of_parts(l, "scan_sum", all.dD_part, kTree, dD);
  for (const auto& [from, sum] : totals) emit_sum_of_parts(l, "scan_sum", from, kTree, sum);
}

}  // namespace weft
