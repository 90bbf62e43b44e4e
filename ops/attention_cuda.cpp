// Attention on a GPU: how the work is cut, the lists of tiles, what the holes become, and the launches.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "jit/hole_text.h"
#include "jit/parallel.h"
#include "jit/tiles.h"
#include "jit/wgmma.h"
#include "ops/attention.h"
#include "ops/check.h"
#include "ops/cuda.h"
#include "ops/reduce.h"
#include "ops/rows_cuda.h"

namespace weft {
namespace {

using namespace attention_layout;

constexpr unsigned kMostShared = 99 * 1024;  // bytes of a block, on every GPU of compute capability 8.0 and later
constexpr unsigned kMostSharedHopper = 227 * 1024;
constexpr std::int64_t kShort = 384;  // queries and keys up to which both kinds of backward blocks share a launch
constexpr int kMostWgmma = 256;       // features of a key and a value together, for wgmma

// ---- how the work is cut: by the sizes of a head and the type alone ---------------------------------------------------------

// What multiplies: FMAs, mma.sync, or wgmma (ops/attention_plain.cuh, attention_tensor.cuh, attention_wgmma.cuh).
enum class Products { plain, tensor, wgmma };

struct Cut {
  int dk, dv;
  DType dtype;
  Products products;
  int own = 64, other = 64, sub = 64, stages = 2, slices = 1;  // facts of ops/attention.cuh; own rows

  bool tensor() const { return products != Products::plain; }
  bool wgmma() const { return products == Products::wgmma; }
  int words() const { return dtype == DType::f64 ? 2 : 1; }  // registers of a real
  int warps() const { return own / 16 * slices; }
  int threads() const { return 32 * warps(); }
  int padded(int features) const {
    const int unit = (tensor() ? 16 : 8) * slices;
    return (features + unit - 1) / unit * unit;
  }
  // Of a row in a tile: blocks of 64 features on tensor cores, else all features and a chunk.
  int row_bytes(int features) const {
    return tensor() ? (padded(features) + 63) / 64 * 128 : padded(features) * int(size_of(dtype)) + 16;
  }
  int accumulators(int features) const { return padded(features) / slices / 2 * words(); }  // registers of 16 rows

  // The largest tiles that fit into shared memory: with two stages if need be smaller ones, with few own rows as a last resort.
  template <class Bytes>
  void fit(int most_other, Bytes bytes) {
    if (wgmma()) {
      other = most_other;
      if (bytes() <= kMostSharedHopper) return;
      products = Products::tensor;
    }
    struct Choice {
      int other, stages;
    };
    const int least_other = tensor() ? 16 : 8;
    for (own = 64; own >= 16; own /= 2)
      for (const Choice c : {Choice{64, 2}, {32, 2}, {16, 2}, {16, 1}, {8, 1}}) {
        other = c.other, stages = c.stages;
        if (other <= most_other && other >= least_other && bytes() <= kMostShared) return;
      }
    fail(ErrorKind::usage, "attention: a head does not fit into shared memory", fmt::format("{} and {} features", dk, dv));
  }
  // `most`: of a multiprocessor's registers, a quarter of a block's thread each; fewer blocks leave a thread more registers.
  int blocks(int most) const { return std::max(most / threads(), 1); }
};

Products products_for(const Target& target, DType dtype, int dk, int dv) {
  if (dtype != DType::bf16) return Products::plain;
  return target.sm_90a() && dk + dv <= kMostWgmma ? Products::wgmma : Products::tensor;
}

struct ForwardCut : Cut {
  bool filled;  // holes are evaluated, which needs registers

  ForwardCut(const Target& target, int k, int v, DType type, bool holes)
      : Cut{k, v, type, products_for(target, type, k, v)}, filled(holes) {
    while (!wgmma() && accumulators(dv) > 64) slices *= 2;
    fit(dtype == DType::f64 ? 16 : !wgmma() && filled && accumulators(dv) > 32 ? 32 : 64, [&] { return shared(); });
  }
  unsigned shared() const {
    return unsigned(own * std::max(row_bytes(dk), row_bytes(dv)) + stages * other * (row_bytes(dk) + row_bytes(dv)));
  }
  int blocks_resident() const {
    if (wgmma()) return blocks(accumulators(dv) > 32 ? 256 : filled ? 384 : 512);
    return blocks(tensor() && !filled && accumulators(dv) <= 32 ? 384 : 256);
  }
  int held() const { return tensor() && padded(dk) <= 128; }
};

struct BackwardCut : Cut {
  bool filled;      // as forward's
  int differences;  // sums by i - j, whose roots pass through shared memory

  BackwardCut(const Target& target, int k, int v, DType type, bool holes, int by_difference)
      : Cut{k, v, type, products_for(target, type, k, v)}, filled(holes), differences(by_difference) {
    while (!wgmma() && sums() > 128) slices *= 2;
    fit(dtype == DType::f64 ? 16 : !tensor() || (wgmma() && filled && sums() > 64) ? 32 : 64, [&] { return shared(); });
    sub = columns();
  }
  // What is computed at a time.
  int columns() const { return wgmma() ? other : std::min(other, filled && sums() > 64 ? (tensor() ? 16 : 8) : 32); }
  int sums() const { return accumulators(dk) + accumulators(dv); }
  unsigned shared() const {
    const int statistics = stages * other * 2 + differences * own * (columns() + 1), place = wgmma() ? 32 : 0;
    return unsigned((own + stages * other) * (row_bytes(dk) + row_bytes(dv)) + statistics * 4 * words() + place);
  }
  // Blocks that own keys hold two sums, the others one.
  int blocks_resident(bool keys) const {
    if (wgmma()) return blocks(filled || sums() > 64 ? 256 : keys ? 384 : 512);
    return blocks(!tensor() || filled || sums() > (keys ? 32 : 64) ? 256 : 384);
  }
  int queries_held() const { return tensor() && padded(dk) <= 64 && padded(dv) <= 64 ? 2 : 0; }
  int keys_held() const { return queries_held(); }
};

// ---- operands ---------------------------------------------------------------------------------------------------------------

// What the products read: fp64 if anything is, bf16 if q, k and v are.
DType element_of(const Lowering& l) {
  if (l.in_double()) return DType::f64;
  return l.dtype(kQ) == DType::bf16 && l.dtype(kK) == DType::bf16 && l.dtype(kV) == DType::bf16 ? DType::bf16 : DType::f32;
}
Operand heads(Lowering& l, int input) { return l.sixteens(input, element_of(l)); }

std::span<const std::int64_t> dims_of(const Operand& o) { return {o.dims.data(), std::size_t(o.rank)}; }

// An output that a kernel writes in chunks: itself, or memory that is copied there afterwards.
class Result {
 public:
  Result(Lowering& l, const Operand& output) : output_(output), memory_(output) {
    if (output && !output.sixteens()) memory_ = l.scratch(output.dtype, dims_of(output));
  }
  const Operand& memory() const { return memory_; }
  void finish(Lowering& l) const {
    if (memory_.slot != output_.slot) l.emit_pointwise("attention_copy", copy_of(memory_, output_), output_);
  }

 private:
  Operand output_, memory_;
};

// a.NAME, its strides a.NAME_batch, a.NAME_time and a.NAME_head; an absent one has the type of q.
void heads_text(CudaText& text, std::string_view name, const Operand& o) {
  text.pointer(name, o);
  text.integer(fmt::format("{}_batch", name), o.strides[0]).integer(fmt::format("{}_time", name), o.strides[1]);
  text.integer(fmt::format("{}_head", name), o.strides[2]);
}

// ---- rotation: of pairs of features, in memory ------------------------------------------------------------------------------

// One feature of each pair of x (b, t, heads, d), as (b, heads, t, d / 2).
Operand features_of(const Operand& x, bool second, Pairing pairing) {
  Operand o = x;
  const std::int64_t pairs = x.dims[3] / 2, step = pairing == Pairing::halves ? 1 : 2;
  std::swap(o.dims[1], o.dims[2]), std::swap(o.strides[1], o.strides[2]);
  o.dims[3] = pairs, o.strides[3] = step * x.strides[3];
  if (second) o.offset += (pairing == Pairing::halves ? pairs : 1) * x.strides[3];
  return o;
}

// The pairs of `to` become what the hole makes of those of `from`.
void emit_rotation(Lowering& l, const char* name, Fused hole, const Operand& from, const Operand& to) {
  const auto pairing = Pairing(l.integer(kPairing));
  std::vector<Operand> leaves, outputs;
  for (const bool second : {false, true}) {
    leaves.push_back(features_of(from, second, pairing));
    outputs.push_back(features_of(to, second, pairing));
  }
  hole.dims.assign(outputs[0].dims.begin(), outputs[0].dims.begin() + 4);
  for (Operand& leaf : hole.leaves) std::copy(hole.dims.begin(), hole.dims.end(), leaf.dims.begin());
  hole.leaves.insert(hole.leaves.begin(), leaves.begin(), leaves.end());
  hole.values = 0;
  l.emit(pointwise_cuda(name, hole, outputs, hole.dims, l.in_double()));
}

// ---- what forward and backward have in common -------------------------------------------------------------------------------

struct HoleNumbers {
  int mask, score, weight, rotate;
};
constexpr HoleNumbers kForward = {kMask, kScore, kWeight, kRotate};
constexpr HoleNumbers kBackward = {kBackwardMask, kBackwardScore, kBackwardWeight, kBackwardRotate};

class Attention {
 public:
  Attention(Lowering& lowering, HoleNumbers numbers)
      : l(lowering),
        q(heads(l, kQ)),
        k(heads(l, kK)),
        v(heads(l, kV)),
        batch(q.dims[0]),
        tq(q.dims[1]),
        tk(k.dims[1]),
        head_count(q.dims[2]),
        groups(k.dims[2]),
        group(head_count / groups),
        real(l.in_double() ? DType::f64 : DType::f32),
        places({batch, head_count, tq, tk}),
        mask(hole(numbers.mask, places)),
        score(hole(numbers.score, places)),
        weight(hole(numbers.weight, places)),
        rotate(hole(numbers.rotate, {batch, head_count, std::max(tq, tk), q.dims[3] / 2})) {}

  int dk() const { return int(q.dims[3]); }
  int dv() const { return int(v.dims[3]); }
  // Without roots if it is not filled.
  Fused hole(int number, const Shape& space) const { return l.filled(number) ? l.hole(number, space) : Fused{}; }
  bool turns() const { return !rotate.roots.empty(); }
  Operand rotated(const Operand& x) const {
    if (!turns()) return x;
    const Operand to = l.scratch(x.dtype, dims_of(x));
    emit_rotation(l, "attention_rotate", rotate, x, to);
    return to;
  }
  TileLists lists(const Cut& cut, bool rows_are_keys, bool may_be_cut = false) const {
    return tile_lists(mask.roots.empty() ? expr::boolean(true) : mask.roots[0], {batch, head_count, tq, tk},
                      {.rows = cut.own,
                       .columns = cut.other,
                       .rows_are_keys = rows_are_keys,
                       .heads = rows_are_keys ? int(group) : 1,
                       .longest = may_be_cut ? kBalanced : 0});
  }
  // Facts and arguments of ops/attention.cuh.
  void describe(CudaText& text, const Cut& cut, int blocks) const {
    text.type("Element", q.dtype).define("DK", dk()).define("DV", dv());
    text.define("WARPS", cut.warps()).define("SLICES", cut.slices).define("OTHER", cut.other).define("STAGES", cut.stages);
    if (cut.wgmma()) text.function(wgmma_text(std::array{cut.other, cut.padded(cut.dk), cut.padded(cut.dv)}));
    text.define("BLOCKS", blocks).budget(std::min(65536 / (cut.threads() * blocks), 255));
    text.define("SCORE", !score.roots.empty()).define("WEIGHT", !weight.roots.empty());
    text.integer("batch", batch).integer("tq", tq).integer("tk", tk).integer("heads", head_count).integer("group", group);
    text.integer("groups", groups);
    text.constant("scale", l.constant(kScale));
  }
  void operands(CudaText& text, const Operand& queries, const Operand& keys) const {
    heads_text(text, "q", queries), heads_text(text, "k", keys), heads_text(text, "v", v);
  }
  // Whether places have holes of their own: a mask that the host knows is in the lists.
  bool holes() const {
    const bool known = mask.roots.empty() || (mask.leaves.empty() && mask.tables.empty() && mask.constants.empty());
    return !score.roots.empty() || !weight.roots.empty() || !known;
  }

  Lowering& l;
  const Operand q, k, v;
  const std::int64_t batch, tq, tk, head_count, groups, group;
  const DType real;
  const Shape places;  // (b, h, i, j)
  const Fused mask, score, weight, rotate;
};

// ---- lists in a kernel's tables ---------------------------------------------------------------------------------------------

CudaArg word(std::int64_t value) { return {CudaArg::integer, -1, value}; }
std::int64_t packed(std::int64_t low, std::int64_t high) {
  return std::int64_t(std::uint64_t(std::uint32_t(low)) | std::uint64_t(high) << 32);
}

// Tables NAMEs of items, NAME_entries, NAME_words, NAME_lists; NAME_items, how many items a list has.
void lists_text(CudaText& text, const std::string& name, const TileLists& lists, std::int64_t blocks, bool several) {
  std::vector<CudaArg> items, entries, words, list_of;
  for (const TileItem& i : lists.items)
    items.push_back(word(packed(i.tile, i.first))), items.push_back(word(packed(i.last, i.part)));
  for (const TileEntry& e : lists.entries) entries.push_back(word(packed(e.tile, e.bits)));
  for (std::size_t w = 0; w < lists.words.size(); w += 2)
    words.push_back(word(packed(lists.words[w], w + 1 < lists.words.size() ? lists.words[w + 1] : 0)));
  for (std::int64_t block = 0; several && lists.lists > 0 && block < blocks; ++block)
    list_of.push_back(word(lists.list(block)));
  for (auto* table : {&items, &entries, &words, &list_of})
    if (table->empty()) table->push_back(word(0));
  text.table(name, std::move(items)).table(name + "_entries", std::move(entries));
  text.table(name + "_words", std::move(words)).table(name + "_lists", std::move(list_of));
  text.integer(name + "_items", lists.item_count);
}

// ---- holes ------------------------------------------------------------------------------------------------------------------

// A class NAME of the holes at the places of a lane: two rows, queries or keys, and any column.
class PlacesText {
 public:
  PlacesText(CudaText& text, std::string name, std::string prefix, bool rows_are_keys)
      : text_(text), name_(std::move(name)), prefix_(std::move(prefix)), rows_are_keys_(rows_are_keys) {}

  // METHOD(r, column, values...) is the hole's root, `otherwise` if it is not filled.
  void add(const std::string& method, const Fused& hole, std::string_view type, std::string_view values,
           std::string_view otherwise) {
    const std::string body = hole.roots.empty() ? fmt::format("return {};", otherwise)
                                                : fmt::format("{} y0[1]; {} return y0[0];", type, call(method, hole));
    methods_ += fmt::format("  DEVICE {} {}(int r, index c{}) const {{ {} }}\n", type, method, values, body);
  }
  // score_gradient(r, column, s, g, y) sets y to these roots of the hole, y[0] to g if it is not filled.
  void add_gradient(Fused hole, const std::vector<int>& roots) {
    std::string body = "y[0] = v1;";
    if (!hole.roots.empty()) {
      std::vector<Expr> chosen;
      for (const int r : roots) chosen.push_back(hole.roots[std::size_t(r)]);
      hole.roots = std::move(chosen);
      std::string declared, taken;
      for (std::size_t r = 0; r < roots.size(); ++r) {
        declared += fmt::format("real y{}[1]; ", r);
        taken += fmt::format(" y[{0}] = y{0}[0];", r);
      }
      body = declared + call("score_gradient", hole) + taken;
    }
    methods_ += fmt::format("  DEVICE void score_gradient(int r, index c, real v0, real v1, real (&y)[{}]) const {{ {} }}\n",
                            roots.size(), body);
  }
  void finish() {
    text_.function(fmt::format(
        "class {0} {{\n public:\n  DEVICE {0}(const Args& a, index b, index h, index row0, index row1) : a_(a), b_(b), h_(h), "
        "rows_{{row0, row1}}{1} {{}}\n{2}\n private:\n  const Args& a_;\n  index b_, h_, rows_[2];\n{3}}};\n",
        name_, constructor_, methods_, members_));
  }

 private:
  // Prints the hole and calls it at place (r, c), with values v0, v1, ... and results y0, y1, ....
  std::string call(const std::string& method, const Fused& hole) {
    Fused printed = hole;
    if (rows_are_keys_) printed.hole.clear();  // people see it once
    const std::string function = prefix_ + method;
    hole_text(text_, function, printed, {rows_are_keys_ ? 3 : 2, rows_are_keys_ ? 2 : 3});
    members_ += fmt::format("  {0}_outer {1}_;\n  {0}_row {1}_rows_[2];\n", function, method);
    constructor_ += fmt::format(
        ",\n        {1}_({0}_outer_at(a, b, h)),\n        {1}_rows_{{{0}_row_at(a, {1}_, b, h, row0), {0}_row_at(a, {1}_, b, "
        "h, "
        "row1)}}",
        function, method);
    std::string declared, passed;
    for (int value = 0; value < hole.values; ++value) {
      declared += fmt::format("const real x{0}[1] = {{v{0}}}; ", value);
      passed += fmt::format(", x{}", value);
    }
    for (std::size_t r = 0; r < hole.roots.size(); ++r) passed += fmt::format(", y{}", r);
    return fmt::format("{}{}<1>(a_, {}_, {}_rows_[r], {}_column_at<1>(a_, {}_, b_, h_, c), b_, h_, {}{});", declared, function,
                       method, method, function, method, rows_are_keys_ ? "c, rows_[r]" : "rows_[r], c", passed);
  }

  CudaText& text_;
  std::string name_, prefix_;
  bool rows_are_keys_;
  std::string members_, constructor_, methods_;
};

// `gradient` and the roots of it that are used: backward alone.
void places_text(CudaText& text, const Attention& x, bool rows_are_keys, bool evaluated, const Fused* gradient = nullptr,
                 const std::vector<int>& roots = {}) {
  PlacesText places(text, rows_are_keys ? "KeyHoles" : "QueryHoles", rows_are_keys ? "key_" : "query_", rows_are_keys);
  places.add("visible", evaluated ? x.mask : Fused{}, "bool", "", "true");
  places.add("score", x.score, "real", ", real v0", "v0");
  places.add("weight", x.weight, "real", "", "real(1)");
  if (gradient) places.add_gradient(*gradient, roots);
  places.finish();
}

// class_of(a, b, h, tile of queries, tile of keys, never, always), where the mask is evaluated: by the ranges of what it reads.
void class_text(CudaText& text, const Attention& x, const Cut& cut, bool rows_are_keys, bool evaluated, const char* name) {
  if (!evaluated) {
    text.function(
        fmt::format("DEVICE void {}(const Args&, index, index, index, index, bool (&)[1], bool (&)[1]) {{}}\n", name));
    return;
  }
  const int queries = rows_are_keys ? cut.other : cut.own, keys = rows_are_keys ? cut.own : cut.other;
  const TileClass kind = tile_class(x.mask, queries, keys);
  std::vector<Operand> ranges;
  for (const TileRange& range : kind.ranges) {
    const Operand& leaf = x.mask.leaves[std::size_t(range.leaf)];
    ranges.push_back(x.l.scratch(DType::i64, ranges_dims(leaf, range)));
    x.l.emit(ranges_cuda(leaf, range, ranges.back()));
  }
  Fused hole = tile_class_hole(kind, x.mask, queries, keys, ranges);
  hole.hole.clear();
  const std::string roots = fmt::format("{}_roots", name);
  hole_text(text, roots, hole, {2, 3});
  text.function(
      fmt::format("DEVICE void {}(const Args& a, index b, index h, index i, index j, bool (&never)[1], bool (&always)[1]) {{\n "
                  " {}<1>(a, b, h, "
                  "i, j, never, always);\n}}\n",
                  name, roots));
}

std::string text_of(Products products, std::string_view file) {
  constexpr std::array kProducts = {"ops/attention_plain.cuh", "ops/attention_tensor.cuh", "ops/attention_wgmma.cuh"};
  const std::string text = joined_texts({kProducts[std::size_t(products)], "ops/attention.cuh", file});
  return products == Products::tensor ? joined_texts({"jit/fragments.cuh"}) + text : text;
}

}  // namespace

bool cuda_attention_takes(std::int64_t dk, std::int64_t dv) {
  return dk % 8 == 0 && dv % 8 == 0 && dk >= 8 && dv >= 8 && dk <= 256 && dv <= 256;
}

void cuda_attention(Lowering& l) {
  const Attention x(l, kForward);
  const Operand o = l.output(kO), lse = l.output(kLse);
  if ((!o && !lse) || x.batch * x.head_count * x.tq == 0) return;
  const std::int64_t dims[] = {x.batch, x.tq, x.head_count, x.dv()};
  const Result result(l, o ? o : l.scratch(x.q.dtype, dims));
  const ForwardCut cut(l.target(), x.dk(), x.dv(), x.q.dtype, x.holes());
  const TileLists lists = x.lists(cut, false);
  CudaText text = l.text("attention");
  x.describe(text, cut, cut.blocks_resident());
  text.define("HELD", cut.held()).define("EVALUATED", lists.evaluated).define("LISTS", lists.lists > 1);
  x.operands(text, x.rotated(x.q), x.rotated(x.k));
  heads_text(text, "o", result.memory());
  text.pointer("lse", lse);
  lists_text(text, "queries", lists, x.head_count, lists.lists > 1);
  places_text(text, x, false, lists.evaluated);
  class_text(text, x, cut, false, lists.evaluated, "class_of_queries");
  l.emit(text.launch_text(text_of(cut.products, "ops/attention_forward.cuh"),
                          {unsigned(x.batch * x.head_count), unsigned(lists.item_count), 1}, {unsigned(cut.threads()), 1, 1},
                          cut.shared()));
  result.finish(l);
}

namespace {

// ---- sums of what the score's derivative gives to the tensors that the score captures ---------------------------------------

// One sum: of a root of score_grad, in an output of the node.
struct RootSum {
  int root;
  SumForm form;
  Operand output;
};

class Sums {
 public:
  Sums(Lowering& l, std::size_t roots) {
    for (std::size_t r = 0; r < roots; ++r)
      for (int form = 0; form < kSumForms; ++form)
        if (const std::int64_t k = l.integer(kFirstSum + int(r) * kSumForms + form); k >= 0)
          if (const Operand output = l.output(int(k))) all_.push_back({int(r), SumForm(form), output});
  }
  std::vector<RootSum> of(std::initializer_list<SumForm> forms) const {
    std::vector<RootSum> out;
    for (const SumForm form : forms)
      for (const RootSum& s : all_)
        if (s.form == form) out.push_back(s);
    return out;
  }
  bool any(SumForm form) const { return !of({form}).empty(); }

 private:
  std::vector<RootSum> all_;
};

// Root 0, and those of the sums behind it.
std::vector<int> roots_of(std::initializer_list<std::vector<RootSum>> sums) {
  std::vector<int> roots = {0};
  for (const auto& list : sums)
    for (const RootSum& s : list) roots.push_back(s.root);
  return roots;
}

// A function NAME(a, k, b, h, n): where the k-th of these operands has element n of head h, with these strides of (b, h, n).
struct Target {
  Operand memory;
  std::array<std::int64_t, 3> strides;
};
void targets_text(CudaText& text, const std::string& name, const std::vector<Target>& targets) {
  std::string cases;
  for (std::size_t k = 0; k < targets.size(); ++k) {
    const std::string to = fmt::format("{}{}", name, k);
    text.pointer(to, targets[k].memory);
    for (std::size_t axis = 0; axis < 3; ++axis) text.integer(fmt::format("{}_s{}", to, axis), targets[k].strides[axis]);
    cases += fmt::format("  if (k == {0}) return a.{1} + (b * a.{1}_s0 + h * a.{1}_s1 + n * a.{1}_s2);\n", k, to);
  }
  text.function(
      fmt::format("DEVICE real* {}_at(const Args& a, int k, i64 b, i64 h, i64 n) {{\n{}  return nullptr;\n}}\n", name, cases));
}

// ---- the backward launches --------------------------------------------------------------------------------------------------

class Backward {
 public:
  explicit Backward(Lowering& lowering)
      : l_(lowering),
        x_(l_, kBackward),
        gradient_(x_.hole(kScoreGrad, x_.places)),
        sums_(l_, gradient_.roots.size()),
        cut_(l_.target(), x_.dk(), x_.dv(), x_.q.dtype, x_.holes(), int(sums_.of({SumForm::difference}).size())),
        o_(heads(l_, kOut)),
        g_(heads(l_, kGradient)),
        lse_(l_.dense(kLogSum)),
        q_(x_.rotated(x_.q)),
        k_(x_.rotated(x_.k)),
        delta_(l_.scratch(x_.real, dims_of(lse_))) {}

  void run() {
    const Operand dq = l_.output(kDq), dk = l_.output(kDk), dv = l_.output(kDv);
    const bool queries = dq || sums_.any(SumForm::none) || sums_.any(SumForm::row) || sums_.any(SumForm::difference);
    const bool keys = dk || dv || sums_.any(SumForm::column);
    const Turned to_dq(*this, dq, x_.q, queries), to_dk(*this, dk, x_.k, keys);
    const Result to_dv(l_, dv || !keys ? dv : l_.scratch(x_.v.dtype, dims_of(x_.v)));
    dq_ = to_dq.memory(), dk_ = to_dk.memory(), dv_ = to_dv.memory();
    if (queries && keys && std::max(x_.tq, x_.tk) <= kShort) {
      emit_delta();
      emit("attention_backward", true, true);
    } else {
      if (queries)
        emit("attention_backward_queries", true, false);
      else if (keys)
        emit_delta();
      if (keys) emit("attention_backward_keys", false, true);
    }
    to_dq.finish(*this), to_dk.finish(*this), to_dv.finish(l_);
  }

 private:
  // dq or dk, which the kernel leaves before the rotation's derivative, if there is one.
  class Turned {
   public:
    Turned(const Backward& b, const Operand& output, const Operand& input, bool made)
        : output_(output),
          result_(b.l_, !made                     ? Operand{}
                        : b.x_.turns() || !output ? b.l_.scratch(b.x_.real, dims_of(input))
                                                  : output) {}
    const Operand& memory() const { return result_.memory(); }
    void finish(const Backward& b) const {
      if (!output_) return;
      if (!b.x_.turns()) return result_.finish(b.l_);
      const Shape pairs = {b.x_.batch, b.x_.head_count, std::max(b.x_.tq, b.x_.tk), b.x_.q.dims[3] / 2};
      emit_rotation(b.l_, "attention_rotate_backward", b.x_.hole(kRotateGrad, pairs), result_.memory(), output_);
    }

   private:
    Operand output_;
    Result result_;
  };

  void emit_delta() const {
    CudaText text = l_.text("attention_delta");
    text.type("Element", x_.q.dtype).define("DV", x_.dv());
    text.integer("rows", x_.batch * x_.head_count * x_.tq).integer("heads", x_.head_count).integer("tq", x_.tq);
    heads_text(text, "o", o_), heads_text(text, "g", g_);
    text.pointer("delta", delta_);
    const std::int64_t blocks = ceil_div(x_.batch * x_.head_count * x_.tq, 32);
    l_.emit(text.launch("ops/attention_delta.cuh", {unsigned(blocks), 1, 1}, {256, 1, 1}));
  }

  // Partial sums of keys whose lists are cut would hold no sums of their columns.
  TileLists lists(bool rows_are_keys) const {
    return x_.lists(cut_, rows_are_keys, rows_are_keys && !sums_.any(SumForm::column));
  }

  void emit(const std::string& name, bool queries, bool keys) const {
    const TileLists by_query = queries ? lists(false) : TileLists{}, by_key = keys ? lists(true) : TileLists{};
    const bool evaluated = by_query.evaluated || by_key.evaluated;
    const int most_lists = std::max(by_query.lists, by_key.lists);
    Operand parts;
    if (by_key.part_count > 0) {
      const std::int64_t dims[] = {by_key.part_count, x_.batch, x_.groups, cut_.own, cut_.dk + cut_.dv};
      parts = l_.scratch(x_.real, dims);
    }
    CudaText text = l_.text(name);
    x_.describe(text, cut_, cut_.blocks_resident(keys));
    text.define("QUERIES", queries).define("KEYS", keys).define("DELTA", queries && !keys).define("SUB", cut_.sub);
    text.define("QUERIES_HELD", cut_.queries_held()).define("KEYS_HELD", cut_.keys_held());
    text.define("EVALUATED", evaluated).define("LISTS", most_lists > 1).define("ITEM_HEADS", std::max(by_key.heads, 1));
    x_.operands(text, q_, k_);
    heads_text(text, "o", o_), heads_text(text, "g", g_);
    heads_text(text, "dq", queries ? dq_ : Operand{}), heads_text(text, "dk", keys ? dk_ : Operand{});
    heads_text(text, "dv", keys ? dv_ : Operand{});
    text.pointer("lse", lse_).pointer("delta", delta_).pointer("parts", parts ? parts : delta_);  // delta: none is written
    lists_text(text, "queries", by_query, x_.head_count, most_lists > 1);
    lists_text(text, "keys", by_key, x_.groups, most_lists > 1);
    const SumsOfLaunch of_launch(*this, text, queries, keys);
    places_text(text, x_, false, evaluated, &gradient_, of_launch.query_roots);
    places_text(text, x_, true, evaluated, &gradient_, of_launch.key_roots);
    class_text(text, x_, cut_, false, evaluated && queries, "class_of_queries");
    class_text(text, x_, cut_, true, evaluated && keys, "class_of_keys");
    const std::int64_t key_rows = keys ? ceil_div(by_key.item_count, x_.group) : 0, rows = key_rows + by_query.item_count;
    text.integer("keys_rows", key_rows);
    l_.emit(text.launch_text(text_of(cut_.products, "ops/attention_backward.cuh"),
                             {unsigned(x_.batch * x_.head_count), unsigned(rows), 1}, {unsigned(cut_.threads()), 1, 1},
                             cut_.shared()));
    if (parts) emit_sum(by_key, parts);
    of_launch.finish(*this);
  }

  // What a launch sums of the roots, and the kernels that add what its blocks have left.
  struct SumsOfLaunch {
    std::vector<RootSum> rows, differences, columns;
    std::vector<Target> row_targets, difference_targets, column_targets;
    std::vector<int> query_roots, key_roots;

    SumsOfLaunch(const Backward& b, CudaText& text, bool queries, bool keys) {
      const Attention& attention = b.x_;
      const auto strides = [](const Operand& of, std::size_t last) {
        return std::array{of.strides[0], of.strides[1], of.strides[last]};
      };
      if (queries) rows = b.sums_.of({SumForm::none, SumForm::row}), differences = b.sums_.of({SumForm::difference});
      if (keys) columns = b.sums_.of({SumForm::column});
      query_roots = roots_of({rows, differences}), key_roots = roots_of({columns});
      for (const RootSum& s : rows) {
        const std::int64_t by_row[] = {attention.tq, attention.batch, attention.head_count};
        const Operand memory = s.form == SumForm::row ? s.output : b.l_.scratch(attention.real, by_row);
        row_targets.push_back({memory, s.form == SumForm::row ? strides(memory, 2)
                                                              : std::array{attention.head_count, std::int64_t(1),
                                                                           attention.batch * attention.head_count}});
      }
      for (std::size_t d = 0; d < differences.size(); ++d) {
        const std::int64_t by_tile[] = {attention.batch, attention.head_count, ceil_div(attention.tq, b.cut_.own),
                                        attention.tk + b.cut_.own - 1};
        const Operand memory = b.l_.scratch(attention.real, by_tile);
        difference_targets.push_back({memory, strides(memory, 2)});
      }
      for (const RootSum& s : columns) {
        column_targets.push_back({s.output, strides(s.output, 3)});
        emit_fill(b.l_, 0, s.output);  // keys that nobody sees have no block that stores
      }
      text.define("ROW_SUMS", std::int64_t(rows.size())).define("DIFFERENCES", std::int64_t(differences.size()));
      text.define("COLUMN_SUMS", std::int64_t(columns.size()));
      targets_text(text, "row_sum", row_targets), targets_text(text, "difference", difference_targets);
      targets_text(text, "column_sum", column_targets);
    }
    void finish(const Backward& b) const {
      for (std::size_t n = 0; n < rows.size(); ++n)
        if (rows[n].form == SumForm::none)
          emit_sum_of_parts(b.l_, "attention_sum_rows", row_targets[n].memory, kTree, rows[n].output);
      for (std::size_t k = 0; k < differences.size(); ++k)
        b.emit_differences(difference_targets[k].memory, differences[k].output);
    }
  };

  void emit_sum(const TileLists& lists_of_keys, const Operand& parts) const {
    CudaText text = l_.text("attention_sum");
    std::vector<CudaArg> tiles, list_of;
    for (const TileSum& s : lists_of_keys.sums)
      tiles.push_back(word(packed(s.tile, s.first))), tiles.push_back(word(packed(s.last, 0)));
    for (std::int64_t block = 0; block < x_.groups; ++block) list_of.push_back(word(lists_of_keys.list(block)));
    Cut cut = cut_;
    cut.products = Products::plain;  // none are made
    x_.describe(text, cut, 1);
    text.budget(0).define("EVALUATED", lists_of_keys.evaluated).define("LISTS", lists_of_keys.lists > 1);
    text.pointer("parts", parts);
    text.table("sums", std::move(tiles)).table("keys_lists", std::move(list_of));
    heads_text(text, "dk", dk_), heads_text(text, "dv", dv_);
    const std::int64_t blocks = ceil_div(std::int64_t(cut_.own) * (cut_.dk + cut_.dv) / 2, 256);
    l_.emit(text.launch_text(text_of(cut.products, "ops/attention_sum.cuh"),
                             {unsigned(x_.batch * x_.groups), unsigned(blocks), unsigned(lists_of_keys.sum_count)},
                             {256, 1, 1}));
  }

  void emit_differences(const Operand& by_tile, const Operand& to) const {
    CudaText text = l_.text("attention_sum_differences");
    text.define("OWN", cut_.own).integer("tiles", by_tile.dims[2]).integer("width", by_tile.dims[3]);
    text.integer("count", x_.tq + x_.tk - 1).integer("heads", x_.head_count);
    text.pointer("from", by_tile).pointer("to", to).integer("to_batch", to.strides[0]).integer("to_head", to.strides[1]);
    l_.emit(text.launch("ops/attention_differences.cuh",
                        {unsigned(x_.batch * x_.head_count), unsigned(ceil_div(x_.tq + x_.tk - 1, 256)), 1}, {256, 1, 1}));
  }

  Lowering& l_;
  const Attention x_;
  const Fused gradient_;
  const Sums sums_;
  const BackwardCut cut_;
  const Operand o_, g_, lse_, q_, k_;
  const Operand delta_;
  Operand dq_, dk_, dv_;
};

}  // namespace

void cuda_attention_backward(Lowering& l) {
  const Shape q = l.shape(kQ), k = l.shape(kK);
  if (q.numel() == 0 || k.numel() == 0) {
    for (int output = 0; output < l.node().outputs; ++output)
      if (const Operand o = l.output(output); o && o.numel() > 0) emit_fill(l, 0, o);
    return;
  }
  Backward(l).run();
}

}  // namespace weft
